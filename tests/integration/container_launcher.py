"""Runs the real entrypoint with a stand-in for the engine: `container_launcher.py ENGINE_SCRIPT [ARGUMENT]...`."""

from __future__ import annotations

import sys
from pathlib import Path

from container.entrypoint import main
from container.environment import process_environment
from container.processes import Programs

if __name__ == "__main__":
    programs = Programs(
        api="tests.integration.tiny_front:build",
        engine=(str(Path(__file__).with_name("fake_engine.py")), sys.argv[1]),
    )
    sys.exit(main(sys.argv[2:], process_environment(), programs))
