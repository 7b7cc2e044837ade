"""`python -m benchmarks`: the record that docs/performance.md is written from."""

from __future__ import annotations

import sys

from benchmarks.suite import main

sys.exit(main())
