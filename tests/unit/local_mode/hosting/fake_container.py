"""A container for tests, on the standard library: what it does is told by its environment.

BEHAVIOUR: `good`; `unready` (/ping is 503); `dies` (logs a reason, exits with 3); `stubborn` (ignores SIGTERM);
`no adapters`; `family` (starts a grandchild in a session of its own, its pid in /invocations).
`POST /become-unhealthy` makes /ping 503.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

BEHAVIOUR = os.environ.get("BEHAVIOUR", "good")
FAMILY: list[int] = []
PINGS: list[dict[str, str]] = []
ADAPTERS: dict[str, str] = {}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/ping":
            PINGS.append(dict(self.headers))
            self.answer(503 if BEHAVIOUR == "unready" else 200, {"stage": "loading shard 1/2"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/become-unhealthy":
            globals()["BEHAVIOUR"] = "unready"
            self.answer(200, {})
            return
        if self.path == "/adapters":
            wanted = json.loads(body)
            if BEHAVIOUR == "no adapters":
                self.answer(400, {"error": "this server takes no adapters"})
                return
            found = sorted(path.name for path in Path(wanted["src"]).iterdir())
            ADAPTERS[wanted["name"]] = ",".join(found)
            self.answer(200, {})
            return
        base = Path(os.environ["SAGEMAKER_BASE_DIR"])
        self.answer(
            200,
            {
                "environment": dict(os.environ),
                "files": sorted(str(path.relative_to(base)) for path in base.rglob("*")),
                "model": sorted(path.name for path in (base / "model").iterdir()),
                "pids": [os.getpid(), *FAMILY],
                "pings": PINGS[-1],
                "adapters": ADAPTERS,
            },
        )

    def do_DELETE(self) -> None:
        ADAPTERS.pop(self.path.rpartition("/")[2])
        self.answer(200, {})

    def answer(self, status: int, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        return


def main() -> None:
    print("fake container starts", flush=True)
    if BEHAVIOUR == "dies":
        print('12:00 ERROR container failed reason="the model has \\"no\\" weights"', flush=True)
        sys.exit(3)
    if BEHAVIOUR == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    if BEHAVIOUR == "family":
        sleeper = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)"]
        FAMILY.append(subprocess.Popen(sleeper, start_new_session=True).pid)
    server = ThreadingHTTPServer(("127.0.0.1", int(os.environ["SAGEMAKER_BIND_TO_PORT"])), Handler)
    server.serve_forever()


main()
