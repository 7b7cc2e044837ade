"""Compiles every grammar once in a process of its own, which may be killed, before the engine's process does.

The compiler is native code with limits of its own, and some inputs within them still take seconds or gigabytes. Knows
no torch. As a program (`python -m serving.grammar.trial`) it is that process: frames of four bytes of length and msgpack,
first the vocabulary, then grammars, one answer each.
"""

from __future__ import annotations

import os
import resource
import selectors
import struct
import subprocess
import sys
import time
from typing import BinaryIO

import msgspec

from serving.errors import GenerationFailed, InvalidRequest, WireError, from_wire, to_wire
from serving.grammar.compiler import GrammarCompiler
from serving.sampling_params import Grammar
from serving.vocabulary import Vocabulary

COMMAND = (sys.executable, "-m", "serving.grammar.trial")
_LENGTH = struct.Struct("<I")
_START_S = 30.0
_MEMORY_BYTES = 256 * 1024 * 1024
_NICENESS = 10


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """What the compiler of the other process is made of."""

    token_bytes: list[bytes]
    special_text: dict[int, str]
    vocab_size: int
    eos_token_ids: list[int]
    timeout_s: float


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    error: WireError | None = None


class TrialProcess:
    """One thread uses it. The process starts with the first grammar and is replaced when it had to be killed."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._process: subprocess.Popen[bytes] | None = None

    def check(self, grammar: Grammar) -> None:
        """Raises `InvalidRequest` when `grammar` does not compile, or not within its time and memory, and
        `GenerationFailed` when the process cannot be had."""
        process = self._process or self._start()
        _send(_input_of(process), grammar)
        answer = _receive_within(process, self._setting.timeout_s)
        if answer is not None:
            if answer.error is not None:
                raise from_wire(answer.error)
            return
        ended = process.poll() is not None
        self.close()
        problem = (
            "compiling it takes too much memory or time"
            if ended
            else f"compiling it takes longer than {self._setting.timeout_s:g} s"
        )
        raise InvalidRequest(f"`grammar` is refused: {problem}; use a simpler one", field="grammar")

    def close(self) -> None:
        """Kill the process; the next check starts another."""
        if (process := self._process) is None:
            return
        self._process = None
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue  # what it did not read any more

    def _start(self) -> subprocess.Popen[bytes]:
        # Its standard error is dropped: the compiler reports there what it was given by clients.
        try:
            process = self._process = subprocess.Popen(
                COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        except OSError as error:
            raise GenerationFailed("grammars cannot be compiled now: no process could be started") from error
        _send(_input_of(process), self._setting)
        if _receive_within(process, _START_S) is None:
            self.close()
            raise GenerationFailed("grammars cannot be compiled now: their process did not start")
        return process


def serve(source: BinaryIO, target: BinaryIO) -> None:
    """Answer until the other side closes."""
    setting = msgspec.msgpack.decode(_read(source), type=Setting)
    compiler = GrammarCompiler(
        Vocabulary(
            token_bytes=tuple(setting.token_bytes),
            special_text=setting.special_text,
            eos_token_ids=frozenset(setting.eos_token_ids),
        ),
        lambda text: [],
        vocab_size=setting.vocab_size,
        eos_token_ids=setting.eos_token_ids,
    )
    os.nice(_NICENESS)
    _limit_memory()
    _send(target, Answer())
    while payload := _read(source):
        # Should the engine die meanwhile, nobody else would end a compilation that does not.
        cpu_s = int(time.process_time() + setting.timeout_s) + 2
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, resource.RLIM_INFINITY))
        try:
            compiler.compile(msgspec.msgpack.decode(payload, type=Grammar))
        except InvalidRequest as error:
            _send(target, Answer(error=to_wire(error)))
        else:
            _send(target, Answer())


def _limit_memory() -> None:
    with open("/proc/self/statm", encoding="ascii") as statistics:
        used = int(statistics.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY_BYTES, used + _MEMORY_BYTES))


def _input_of(process: subprocess.Popen[bytes]) -> BinaryIO:
    if process.stdin is None:
        raise RuntimeError("the process that tries grammars has no standard input")
    return process.stdin  # type: ignore[return-value]


def _send(target: BinaryIO, message: msgspec.Struct) -> None:
    payload = msgspec.msgpack.encode(message)
    try:
        target.write(_LENGTH.pack(len(payload)) + payload)
        target.flush()
    except BrokenPipeError:
        return  # the missing answer tells


def _receive_within(process: subprocess.Popen[bytes], timeout_s: float) -> Answer | None:
    """None when the process ends, or the time does."""
    if process.stdout is None:
        return None
    deadline = time.monotonic() + timeout_s
    received = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while len(received) < _LENGTH.size or len(received) < _LENGTH.size + _LENGTH.unpack_from(received)[0]:
            if not selector.select(max(0.0, deadline - time.monotonic())):
                return None
            if not (piece := os.read(process.stdout.fileno(), 65536)):
                process.wait()
                return None
            received += piece
    return msgspec.msgpack.decode(received[_LENGTH.size :], type=Answer)


def _read(source: BinaryIO) -> bytes:
    """One frame, b"" at the end."""
    header = source.read(_LENGTH.size)
    return source.read(_LENGTH.unpack(header)[0]) if len(header) == _LENGTH.size else b""


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer)
