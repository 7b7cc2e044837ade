"""Streams that never end, seen from a process of its own: when did something arrive on each of them?

    python -m benchmarks.arrivals PORT COUNT        # until standard input closes; then a list per stream, as JSON

Half of the streams are greedy, half draw with a seed. One that comes to its limit is asked for again. They come to it one
after the other: were all as long at any time, a step would take twice as long at the end of a round as at its beginning, and
whatever is measured would depend on the moment.
"""

from __future__ import annotations

import json
import selectors
import socket
import sys
import time

MAX_TOKENS = 480


class Stream:
    def __init__(self, port: int, number: int, *, first_tokens: int = MAX_TOKENS) -> None:
        self._port = port
        self._number = number
        self.arrivals: list[float] = []
        self.socket = self._ask(first_tokens)
        self._tail = b""

    def take(self) -> None:
        """Read what is there, and begin anew after the end. Raises `SystemExit` for an error."""
        data = self.socket.recv(1 << 16)
        self._tail = (self._tail + data)[-2048:]
        if b'"text":' in data:
            self.arrivals.append(time.monotonic())
        if not data or b"data: [DONE]" in self._tail:
            if b"data: [DONE]" not in self._tail:
                raise SystemExit(f"stream {self._number} ended with {self._tail!r}")
            self.socket.close()
            self.socket, self._tail = self._ask(MAX_TOKENS), b""

    def _ask(self, max_tokens: int) -> socket.socket:
        sampling = {"temperature": 0} if self._number % 2 else {"temperature": 1, "seed": self._number}
        fields = {"max_tokens": max_tokens, "ignore_eos": True, "stream": True, **sampling}
        body = json.dumps({"prompt": f"Once upon a time {self._number}", **fields}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        connection = socket.create_connection(("127.0.0.1", self._port), timeout=60)
        connection.sendall(head.encode() + b"\r\n\r\n" + body)
        return connection


def main() -> None:
    port, count = int(sys.argv[1]), int(sys.argv[2])
    streams = [Stream(port, n, first_tokens=MAX_TOKENS * (n + 1) // count) for n in range(count)]
    with selectors.DefaultSelector() as selector:
        selector.register(sys.stdin, selectors.EVENT_READ)
        for stream in streams:
            selector.register(stream.socket, selectors.EVENT_READ, stream)
        while True:
            for key, _ in selector.select():
                stream = key.data
                if stream is None:
                    print(json.dumps([each.arrivals for each in streams]))
                    return
                stream.take()
                if stream.socket is not key.fileobj:
                    selector.unregister(key.fileobj)
                    selector.register(stream.socket, selectors.EVENT_READ, stream)


if __name__ == "__main__":
    main()
