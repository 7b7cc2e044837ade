"""Stands in for the engine process: walks through the stages it is told to, on the descriptor it is given.

    python fake_engine.py SCRIPT --run-dir … --stage-fd …

SCRIPT is a comma list: `loading`, `warm-up`, `ready`, `failed`, `exit`, `orphan` (a sleeping grandchild),
`hold` (waits for `<run_dir>/go`), `deaf` (ignores SIGTERM), `foreign` (orphans that exit with codes 3 and 4).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("script")
    for flag in ("--run-dir", "--model-dir", "--model-id", "--revision"):
        parser.add_argument(flag)
    parser.add_argument("--stage-fd", type=int)
    arguments = parser.parse_args()
    run_dir = Path(arguments.run_dir)
    (run_dir / "engine.json").write_text(json.dumps({"argv": vars(arguments), "environ": dict(os.environ)}))
    for step in arguments.script.split(","):
        if step == "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        elif step == "hold":
            while not (run_dir / "go").exists():
                time.sleep(0.01)
        elif step == "orphan":
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", "textgen-orphan"])
        elif step == "foreign":
            _make_orphans()
        elif step == "exit":
            sys.exit(7)
        else:
            stage = {
                "stage": step,
                "detail": "3/8" if step == "loading" else "no luck; try again" * (step == "failed"),
            }
            os.write(arguments.stage_fd, json.dumps(stage).encode() + b"\n")
    signal.pause()


def _make_orphans() -> None:
    """Grandchildren whose parent is gone before they exit with the codes that gunicorn gives its workers."""
    for code in (3, 4):
        middle = os.fork()
        if middle == 0:
            if os.fork() == 0:
                os._exit(code)
            os._exit(0)
        os.waitpid(middle, 0)
    print("foreign processes ended", flush=True)


if __name__ == "__main__":
    main()
