"""Asks `/ping` again and again on new connections until its standard input closes, then prints the seconds as JSON.
A process of its own: what it measures must not be its neighbours' load.

    python -m benchmarks.pinger PORT
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time

_INTERVAL_S = 0.05


def ping(port: int) -> float:
    """Seconds from connecting to the status line. Raises when it is not 200."""
    started_s = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port), timeout=30) as sock:
        sock.sendall(b"GET /ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = sock.recv(4096)
    if not answer.startswith(b"HTTP/1.1 200"):
        raise SystemExit(f"/ping answered {answer[:100]!r}")
    return time.perf_counter() - started_s


def main() -> None:
    port = int(sys.argv[1])
    seconds = []
    while not select.select([sys.stdin], [], [], _INTERVAL_S)[0]:
        seconds.append(ping(port))
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
