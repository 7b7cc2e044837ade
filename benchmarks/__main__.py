"""`python -m benchmarks`: the comparison that is quick enough to run at any time."""

from __future__ import annotations

import sys

from benchmarks.against_transformers import main

sys.exit(main())
