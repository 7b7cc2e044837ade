"""Compiles every grammar once in a process apart, which may be killed, before the engine's process does.

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
_MAX_IDLE = 2


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """What the compiler of the other process is made of."""

    token_bytes: list[bytes]
    special_text: dict[int, str]
    vocab_size: int
    eos_token_ids: list[int]
    timeout_s: float


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    error: WireError | None = None


class TrialProcesses:
    """Starts a process with the first grammar, and another whenever none is idle. Any thread may use it."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._idle: list[_Process] = []

    def check(self, grammar: Grammar, *, within_s: float | None = None) -> Unfinished | None:
        """None when `grammar` compiles, or what goes on when that is not known `within_s` (by default: the limit).

        Raises `InvalidRequest` when it does not compile, or not within its time and memory, and `GenerationFailed`
        when no process can be had.
        """
        try:
            process = self._idle.pop()
        except IndexError:
            process = self._start()
        started_s = time.monotonic()
        process.send(grammar)
        unfinished = Unfinished(process, self._idle, started_s)
        if within_s is None:
            unfinished.finish(started_s + self._setting.timeout_s)
            return None
        if unfinished.wait(started_s + within_s):
            return None
        return unfinished

    def close(self) -> None:
        """Kill the idle processes. Those that work end with their `Unfinished`."""
        while self._idle:
            self._idle.pop().kill()

    def _start(self) -> _Process:
        try:
            process = _Process()
        except OSError as error:
            raise GenerationFailed("grammars cannot be compiled now: no process could be started") from error
        process.send(self._setting)
        if process.receive(time.monotonic() + _START_S) is None:
            process.kill()
            raise GenerationFailed("grammars cannot be compiled now: their process did not start")
        return process


class Unfinished:
    """A trial that goes on in a process of its own. Ends with `finish` or `give_up`."""

    def __init__(self, process: _Process, idle: list[_Process], started_s: float) -> None:
        self._process = process
        self._idle = idle
        self._started_s = started_s

    def wait(self, deadline_s: float) -> bool:
        """False when it still works at `deadline_s` (of the monotonic clock). Raises `InvalidRequest`."""
        answer = self._process.receive(deadline_s)
        if answer is not None:
            if len(self._idle) < _MAX_IDLE:
                self._idle.append(self._process)
            else:
                self._process.kill()
            if answer.error is not None:
                raise from_wire(answer.error)
            return True
        if not self._process.ended:
            return False
        self.give_up()
        raise _refusal("compiling it takes too much memory or time")

    def finish(self, deadline_s: float) -> None:
        """Returns when the grammar compiles. Raises `InvalidRequest` when it does not, or not until `deadline_s`."""
        if self.wait(deadline_s):
            return
        self.give_up()
        raise _refusal(f"compiling it takes longer than {deadline_s - self._started_s:.2g} s")

    def give_up(self) -> None:
        self._process.kill()


class _Process:
    """One process and its pipes. Its standard error is dropped: the compiler reports there what clients sent."""

    def __init__(self) -> None:
        self._popen = subprocess.Popen(
            COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        if self._popen.stdin is None or self._popen.stdout is None:
            raise RuntimeError("the process that tries grammars has no pipes")
        self._input, self._output = self._popen.stdin, self._popen.stdout
        self._received = b""

    @property
    def ended(self) -> bool:
        return self._popen.poll() is not None

    def send(self, message: msgspec.Struct) -> None:
        _send(self._input, message)  # type: ignore[arg-type]

    def receive(self, deadline_s: float) -> Answer | None:
        """None when the process ends, or the time does; then it may be asked again."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._output, selectors.EVENT_READ)
            while (answer := self._whole_answer()) is None:
                if not selector.select(max(0.0, deadline_s - time.monotonic())):
                    return None
                if not (piece := os.read(self._output.fileno(), 65536)):
                    self._popen.wait()
                    return None
                self._received += piece
        self._received = b""
        return answer

    def kill(self) -> None:
        self._popen.kill()
        self._popen.wait()
        for pipe in (self._input, self._output):
            try:
                pipe.close()
            except BrokenPipeError:
                continue  # what it did not read any more

    def _whole_answer(self) -> Answer | None:
        head, rest = self._received[: _LENGTH.size], self._received[_LENGTH.size :]
        if len(head) < _LENGTH.size or len(rest) < _LENGTH.unpack(head)[0]:
            return None
        return msgspec.msgpack.decode(rest, type=Answer)


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


def _send(target: BinaryIO, message: msgspec.Struct) -> None:
    payload = msgspec.msgpack.encode(message)
    try:
        target.write(_LENGTH.pack(len(payload)) + payload)
        target.flush()
    except BrokenPipeError:
        return  # the missing answer tells


def _refusal(problem: str) -> InvalidRequest:
    return InvalidRequest(f"`grammar` is refused: {problem}; use a simpler one", field="grammar")


def _read(source: BinaryIO) -> bytes:
    """One frame, b"" at the end."""
    header = source.read(_LENGTH.size)
    return source.read(_LENGTH.unpack(header)[0]) if len(header) == _LENGTH.size else b""


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer)
