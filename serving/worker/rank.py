"""`worker-tp{r}`: one tensor-parallel rank above 0, from `exec` to exit. Obeys the engine, in order.

Knows the worker and its socket, no scheduling. It never outlives the engine.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import msgspec
from setproctitle import setproctitle

from serving import logs
from serving.config import EngineConfig
from serving.engine.executor import WorkerFactory, create_worker
from serving.errors import ServingError, TransportError
from serving.ipc.channel import FrameReader, decode_to_rank, encode_frame
from serving.ipc.lifeline import die_with_parent, on_hangup
from serving.messages import (
    ExecuteBatch,
    FromRank,
    InitializeCache,
    RankFailed,
    RankReady,
    RunWarmup,
    Shutdown,
    ToRank,
)

if TYPE_CHECKING:
    from serving.worker.worker import Worker

_READ_BYTES = 256 * 1024

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None, *, worker_factory: WorkerFactory = create_worker) -> None:
    """Serve the engine until `Shutdown`. On any error the process reports it and ends with status 1."""
    options = _parse(arguments)
    title = f"worker-tp{options.rank}"
    setproctitle(title)
    die_with_parent(options.parent_pid)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the engine decides
    config = msgspec.json.decode(options.config, type=EngineConfig)
    logs.configure(title, level=config.log_level, json_output=config.json_logs)
    channel = EngineChannel(socket.socket(fileno=options.socket_fd))
    on_hangup(channel.sock, _leave)
    _report_uncaught(channel, options.rank)
    worker = worker_factory(config, rank=options.rank, rendezvous=options.rendezvous)
    worker.load(None)
    channel.send(RankReady(rank=options.rank, free_bytes=worker.free_bytes()))
    serve(channel, worker, options.rank)
    worker.close()


class EngineChannel:
    """The rank's end of the socket pair; blocking."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._reader = FrameReader()
        self._payloads: deque[bytes] = deque()

    def receive(self) -> ToRank:
        """The next command. Raises `TransportError` when the engine is gone."""
        while not self._payloads:
            data = self.sock.recv(_READ_BYTES)
            if not data:
                raise TransportError("the engine closed the channel")
            self._payloads.extend(self._reader.feed(data))
        return decode_to_rank(self._payloads.popleft())

    def send(self, report: FromRank) -> None:
        self.sock.sendall(encode_frame(report))


def serve(channel: EngineChannel, worker: Worker, rank: int) -> None:
    """Obey until `Shutdown`. Steps are neither answered nor collected: their collectives keep the ranks together, and what
    was sampled matters to rank 0 alone."""
    while not isinstance(command := channel.receive(), Shutdown):
        if isinstance(command, ExecuteBatch):
            worker.launch(command.batch)
            continue
        if isinstance(command, InitializeCache):
            worker.initialize_cache(command.num_blocks)
        elif isinstance(command, RunWarmup):
            worker.warm_up(command.num_tokens)
        else:
            raise TransportError(f"a rank does not know the command {type(command).__name__}")
        channel.send(RankReady(rank=rank, free_bytes=worker.free_bytes()))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="worker-tp", description="One tensor-parallel rank; started by the engine."
    )
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--socket-fd", type=int, required=True)
    parser.add_argument("--parent-pid", type=int, required=True)
    parser.add_argument("--rendezvous", type=Path, required=True)
    parser.add_argument("--config", required=True, help="EngineConfig as JSON")
    return parser.parse_args(arguments)


def _report_uncaught(channel: EngineChannel, rank: int) -> None:
    """Whatever escapes `main` is logged once and told to the engine.

    The process then ends without clean-up: taking down a broken group of ranks may never return.
    """

    def report(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        expected = isinstance(error, ServingError)
        logger.error("rank failed: %s", error, exc_info=None if expected else (kind, error, traceback))
        reason = str(error) if expected else f"{kind.__name__}: {error}"
        try:
            channel.send(RankFailed(rank=rank, reason=reason))
        finally:
            _leave()

    sys.excepthook = report


def _leave() -> None:
    logging.shutdown()
    os._exit(1)


if __name__ == "__main__":
    main()
