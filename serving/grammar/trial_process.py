"""The process that tries grammars: `python -m serving.grammar.trial_process`. A fork compiles them, one after the other, in
short turns and at low priority; the one that comes to its limits is killed, and the next one has a new fork.

Frames of four bytes of length and msgpack: in, the setting, then grammars, or an empty frame to give one up; out, an answer
to each, the setting included. Knows no torch, and starts no thread: it forks.
"""

from __future__ import annotations

import ctypes
import gc
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
from serving.grammar.short_turns import ShortTurns
from serving.grammar.source import check_source
from serving.sampling_params import Grammar
from serving.vocabulary import Vocabulary

_LENGTH = struct.Struct("<I")
_MEMORY_BYTES = 256 * 1024 * 1024
_NICENESS = 10
_TURN_S = 0.0003
_PROCESSOR_SHARE = 1 / 2
"""Of the time limit: the processor time of a trial. The rest is for waiting and for compiling in the engine."""
_ORDINARY_S = 0.01
"""Of processor time, after which a fork is replaced. Schemas as people write them take 1 to 2 ms."""
_LEAST_CHECK_S = 0.005
_MOST_GROWTH_BYTES = 32 * 1024 * 1024
"""A fork that has grown by more tries no other grammar."""
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
    os.setpriority(os.PRIO_PROCESS, 0, max(_NICENESS, os.getpriority(os.PRIO_PROCESS, 0)))
    _limit_memory()
    gc.freeze()  # else the first collection in a fork copies all that is here
    write_frame(target, msgspec.msgpack.encode(Answer()))
    fork: _Fork | None = None
    while (payload := _read(source)) is not None:
        if not payload:
            continue  # given up, but the answer was faster
        if fork is None:
            fork = _Fork(compiler, setting.timeout_s)
        answer = fork.try_one(payload, source.fileno())
        write_frame(target, msgspec.msgpack.encode(answer))
        if fork.ended:
            fork = None


class _Fork:
    """Tries grammars, one after the other, as long as they are ordinary: a new fork costs more than most of them do."""

    def __init__(self, compiler: GrammarCompiler, timeout_s: float) -> None:
        self.ended = False
        self._timeout_s = timeout_s
        self._limit_s = _PROCESSOR_SHARE * timeout_s
        grammars, writer = os.pipe()
        self._output, answers = os.pipe()
        parent = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(writer)
            _try_and_leave(compiler, grammars, answers, parent=parent, cpu_limit_s=2 * timeout_s)
        os.close(grammars)
        os.close(answers)
        self._input = os.fdopen(writer, "wb")
        self._first_bytes = _size_bytes(self._pid)

    def try_one(self, payload: bytes, source_fd: int) -> Answer:
        """The answer to a grammar, or what ended its trial: a limit, or a word from `source_fd`."""
        ordinary, before_s = False, _processor_s(self._pid)
        try:
            write_frame(self._input, payload)
            answer, finished = self._watch(source_fd, before_s)
            ordinary = finished and self._is_fresh(before_s)
        finally:
            if not ordinary:
                self._end()
        return answer

    def _is_fresh(self, before_s: float) -> bool:
        """May it try another, after one that it began with `before_s` of processor time?"""
        used_s = _processor_s(self._pid)
        grown_bytes = _size_bytes(self._pid) - self._first_bytes
        return used_s - before_s < _ORDINARY_S and used_s < self._limit_s and grown_bytes < _MOST_GROWTH_BYTES

    def _end(self) -> None:
        """Nothing of it is left then."""
        self.ended = True
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._output)
        try:
            self._input.close()
        except BrokenPipeError:
            return  # what it did not read any more

    def _watch(self, source_fd: int, before_s: float) -> tuple[Answer, bool]:
        """The answer, and whether the fork itself gave it and waits for the next grammar."""
        deadline_s = time.monotonic() + self._timeout_s
        while True:
            used_s = _processor_s(self._pid) - before_s
            if used_s >= self._limit_s:
                problem = f"compiling it takes longer than {self._limit_s:.2g} s of processor time"
                return _refused(problem), False
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                return _overloaded(self._timeout_s), False
            # It has one thread: its processor time cannot pass faster than the clock.
            wait_s = max(_LEAST_CHECK_S, min(self._limit_s - used_s, left_s))
            ready, _, _ = select.select([self._output, source_fd], [], [], wait_s)
            if self._output in ready:
                payload = os.read(self._output, 65536)
                if payload:
                    return msgspec.msgpack.decode(payload, type=Answer), True
                return _refused("compiling it takes too much memory or time"), False
            if source_fd in ready:
                return _overloaded(self._timeout_s), False


def _try_and_leave(
    compiler: GrammarCompiler, grammars: int, answers: int, *, parent: int, cpu_limit_s: float
) -> NoReturn:
    """All that the fork does. A compiler that dies, by whatever, leaves an answer without content."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() == parent:
            # Whatever else fails, the kernel ends it.
            resource.setrlimit(resource.RLIMIT_CPU, (int(cpu_limit_s) + 2, int(cpu_limit_s) + 2))
            turns = ShortTurns(_NICENESS, turn_s=_TURN_S)
            source = os.fdopen(grammars, "rb", buffering=0)
            while (payload := _read(source)) is not None:
                with turns:
                    answer = _compiled(compiler, msgspec.msgpack.decode(payload, type=Grammar))
                os.write(answers, msgspec.msgpack.encode(answer))
    finally:
        os._exit(0)


def _compiled(compiler: GrammarCompiler, grammar: Grammar) -> Answer:
    try:
        check_source(grammar)
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


def _size_bytes(pid: int) -> int:
    """The address space of a process that was not waited for; 0 when it has ended."""
    with open(f"/proc/{pid}/statm", encoding="ascii") as statistics:
        return int(statistics.read().split()[0]) * resource.getpagesize()


def _limit_memory() -> None:
    used = _size_bytes(os.getpid())
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
