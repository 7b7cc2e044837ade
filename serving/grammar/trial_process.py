"""The process that tries grammars: `python -m serving.grammar.trial_process`. Each is compiled in a fork of its own, which
gets a moment like everybody's, then only the time that nobody else wants, and is killed at its limits.

Frames of four bytes of length and msgpack: in, the setting, then grammars, or an empty frame to give one up; out, an answer
to each, the setting included. Knows no torch, and starts no thread: it forks.
"""

from __future__ import annotations

import ctypes
import os
import resource
import select
import signal
import struct
import sys
import time
from typing import IO, BinaryIO, NoReturn

import msgspec

from serving.errors import InvalidRequest, Overloaded, WireError, to_wire
from serving.grammar.compiler import GrammarCompiler
from serving.sampling_params import Grammar
from serving.vocabulary import Vocabulary

_LENGTH = struct.Struct("<I")
_MEMORY_BYTES = 256 * 1024 * 1024
_NICENESS = 10
_PROCESSOR_SHARE = 1 / 2
"""Of the time limit: the processor time of a trial. The rest is for waiting and for compiling in the engine."""
_FAVOURED_S = 0.01
"""Processor time after which a trial runs only where nobody else wants to. Schemas as people write them need 4 to 7 ms."""
_LEAST_CHECK_S = 0.005
_PR_SET_PDEATHSIG = 1


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """What the compiler is made of, and the time limit of one grammar."""

    token_bytes: list[bytes]
    special_text: dict[int, str]
    vocab_size: int
    eos_token_ids: list[int]
    timeout_s: float


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """None: the grammar compiles."""

    error: WireError | None = None


def write_frame(target: IO[bytes], payload: bytes) -> None:
    try:
        target.write(_LENGTH.pack(len(payload)) + payload)
        target.flush()
    except BrokenPipeError:
        return  # the missing answer tells


def first_frame(received: bytes) -> bytes | None:
    """The payload of a whole frame at the beginning of `received`, None while it is not all there."""
    head, rest = received[: _LENGTH.size], received[_LENGTH.size :]
    if len(head) < _LENGTH.size or len(rest) < _LENGTH.unpack(head)[0]:
        return None
    return rest[: _LENGTH.unpack(head)[0]]


def serve(source: BinaryIO, target: BinaryIO) -> None:
    """Answer until the other side closes. `source` is not buffered: a frame to come must show in its descriptor."""
    setting = msgspec.msgpack.decode(_read(source) or b"", type=Setting)
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
    write_frame(target, msgspec.msgpack.encode(Answer()))
    while (payload := _read(source)) is not None:
        if not payload:
            continue  # given up, but the answer was faster
        grammar = msgspec.msgpack.decode(payload, type=Grammar)
        answer = _Trial(compiler, grammar, setting.timeout_s).watch(source.fileno())
        write_frame(target, msgspec.msgpack.encode(answer))


class _Trial:
    """One grammar in its fork."""

    def __init__(self, compiler: GrammarCompiler, grammar: Grammar, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._deadline_s = time.monotonic() + timeout_s
        self._output, writer = os.pipe()
        parent = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            _compile_and_leave(compiler, grammar, writer, parent=parent, cpu_limit_s=timeout_s)
        os.close(writer)

    def watch(self, source_fd: int) -> Answer:
        """Its answer, or what ended it: a limit, or a word from `source_fd`. Nothing of it is left then."""
        try:
            return self._watch(source_fd)
        finally:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            os.close(self._output)

    def _watch(self, source_fd: int) -> Answer:
        favoured, limit_s = True, _PROCESSOR_SHARE * self._timeout_s
        while True:
            used_s = _processor_s(self._pid)
            if used_s >= limit_s:
                return _refused(f"compiling it takes longer than {limit_s:.2g} s of processor time")
            left_s = self._deadline_s - time.monotonic()
            if left_s <= 0:
                return _overloaded(self._timeout_s)
            if favoured and used_s >= _FAVOURED_S:
                favoured = False
                os.sched_setscheduler(self._pid, os.SCHED_IDLE, os.sched_param(0))
            # It has one thread: its processor time cannot pass faster than the clock.
            next_s = (_FAVOURED_S if favoured else limit_s) - used_s
            ready, _, _ = select.select(
                [self._output, source_fd], [], [], max(_LEAST_CHECK_S, min(next_s, left_s))
            )
            if self._output in ready:
                payload = os.read(self._output, 65536)
                if payload:
                    return msgspec.msgpack.decode(payload, type=Answer)
                return _refused("compiling it takes too much memory or time")
            if source_fd in ready:
                return _overloaded(self._timeout_s)


def _compile_and_leave(
    compiler: GrammarCompiler, grammar: Grammar, writer: int, *, parent: int, cpu_limit_s: float
) -> NoReturn:
    """All that the fork does. A compiler that dies, by whatever, leaves an answer without content."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() == parent:
            # Whatever else fails, the kernel ends it.
            resource.setrlimit(resource.RLIMIT_CPU, (int(cpu_limit_s) + 2, int(cpu_limit_s) + 2))
            os.write(writer, msgspec.msgpack.encode(_compiled(compiler, grammar)))
    finally:
        os._exit(0)


def _compiled(compiler: GrammarCompiler, grammar: Grammar) -> Answer:
    try:
        compiler.compile(grammar)
    except InvalidRequest as error:
        return Answer(error=to_wire(error))
    return Answer()


def _processor_s(pid: int) -> float:
    """Processor time of a process that was not waited for. Its clock's number is that of `clock_getcpuclockid(3)`."""
    return time.clock_gettime((~pid << 3) | 2)


def _refused(problem: str) -> Answer:
    error = InvalidRequest(f"`grammar` is refused: {problem}; use a simpler one", field="grammar")
    return Answer(error=to_wire(error))


def _overloaded(timeout_s: float) -> Answer:
    error = Overloaded(
        "this grammar takes long to compile, and the server is too busy for that now", retry_after_s=timeout_s
    )
    return Answer(error=to_wire(error))


def _limit_memory() -> None:
    with open("/proc/self/statm", encoding="ascii") as statistics:
        used = int(statistics.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY_BYTES, used + _MEMORY_BYTES))


def _read(source: BinaryIO) -> bytes | None:
    """The payload of one frame, None at the end."""
    header = _read_exactly(source, _LENGTH.size)
    return None if header is None else _read_exactly(source, _LENGTH.unpack(header)[0])


def _read_exactly(source: BinaryIO, size: int) -> bytes | None:
    data = b""
    while len(data) < size:
        piece = source.read(size - len(data))
        if not piece:
            return None
        data += piece
    return data


if __name__ == "__main__":
    serve(os.fdopen(sys.stdin.fileno(), "rb", buffering=0, closefd=False), sys.stdout.buffer)
