"""The numbers under which workers keep running sequences: handed out, taken back, and reported as released once."""

from __future__ import annotations

from serving.engine.request import Request


class Rows:
    def __init__(self, count: int) -> None:
        self._free = list(range(count - 1, -1, -1))
        self._released: list[int] = []

    @property
    def num_free(self) -> int:
        return len(self._free)

    def give(self, request: Request) -> None:
        request.row = self._free.pop()

    def release(self, request: Request) -> None:
        self._free.append(request.row)
        self._released.append(request.row)
        request.row = -1

    def take_released(self) -> list[int]:
        """Those released since the last call: the next plan tells the workers."""
        released, self._released = self._released, []
        return released

    def check(self, running: list[Request]) -> None:
        """Raise unless every row is either free or that of one request in `running`."""
        rows = [request.row for request in running] + self._free
        if len(set(rows)) != len(rows) or -1 in rows:
            raise RuntimeError(f"rows are shared or missing: {sorted(rows)}")
