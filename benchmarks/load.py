"""A small load generator for the native streaming route: one thread per stream, times taken at each event."""

from __future__ import annotations

import http.client
import json
import threading
import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class StreamTimes:
    """Seconds since the start of the request of every token event; the ids that came with them."""

    token_s: list[float] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    error: str = ""


def run_streams(port: int, bodies: list[dict[str, object]]) -> tuple[float, list[StreamTimes]]:
    """Send all bodies at once, each on its own connection; returns the seconds until the last one ended."""
    results = [StreamTimes() for _ in bodies]
    threads = [
        threading.Thread(target=_stream, args=(port, json.dumps(body), result))
        for body, result in zip(bodies, results, strict=True)
    ]
    started_s = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - started_s, results


def _stream(port: int, body: str, result: StreamTimes) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    started_s = time.perf_counter()
    try:
        connection.request("POST", "/generate_stream", body, {"content-type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            result.error = f"{response.status} {response.read().decode()}"
            return
        # Read now, understand later: the client shares the cores with what it measures.
        lines: list[bytes] = []
        while line := response.readline():
            if line.startswith(b"data:"):
                result.token_s.append(time.perf_counter() - started_s)
                lines.append(line)
        for event in map(json.loads, (line[5:] for line in lines)):
            if "error" in event:
                result.error = event["error"]
                return
            result.token_ids.append(event["token"]["id"])
    finally:
        connection.close()
