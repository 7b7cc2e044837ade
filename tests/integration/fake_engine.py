"""Stands in for the engine process: walks through the stages it is told to, on the descriptor it is given.

    python fake_engine.py SCRIPT --run-dir … --stage-fd …

SCRIPT is a comma list: `loading`, `warm-up`, `ready`, `failed`, `exit`, `orphan` (leaves a sleeping grandchild),
`hold` (waits for `<run_dir>/go`), `deaf` (ignores SIGTERM).
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
        elif step == "exit":
            sys.exit(7)
        else:
            stage = {
                "stage": step,
                "detail": "3/8" if step == "loading" else "no luck; try again" * (step == "failed"),
            }
            os.write(arguments.stage_fd, json.dumps(stage).encode() + b"\n")
    signal.pause()


if __name__ == "__main__":
    main()
