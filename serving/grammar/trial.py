"""Has every grammar tried in a process apart before the engine compiles it. Knows no torch.

The compiler is native code with limits of its own, and some inputs within them still take seconds or gigabytes:
`trial_process` compiles them where that can be ended.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import subprocess
import sys
import time

import msgspec

from serving.errors import GenerationFailed, Overloaded, from_wire
from serving.grammar.trial_process import Answer, Setting, first_frame, write_frame
from serving.sampling_params import Grammar

COMMAND = (sys.executable, "-m", "serving.grammar.trial_process")
_START_S = 30.0
_ANSWER_S = 0.2  # for the other process to say what it decided
_MAX_IDLE = 2
_SPARE_NICENESS = 5


class TrialProcesses:
    """Starts two processes with the first grammar, the second for when the first has a slow one, and another whenever none
    is idle. Any thread may use it."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._idle: list[_Process] = []
        self._has_spare = False

    def check(self, grammar: Grammar, *, within_s: float | None = None) -> Unfinished | None:
        """None when `grammar` compiles, or what goes on when that is not known `within_s` (by default: the limit).

        Raises `InvalidRequest` when it does not compile, or not within its processor time and memory, `Overloaded` when it
        got too little of the processor, and `GenerationFailed` when no process can be had.
        """
        process = self._take()
        process.send(msgspec.msgpack.encode(grammar))
        unfinished = Unfinished(process, self._idle)
        if within_s is None:
            unfinished.finish(time.monotonic() + self._setting.timeout_s + _ANSWER_S)
            return None
        return None if unfinished.wait(time.monotonic() + within_s) else unfinished

    def close(self) -> None:
        """Kill the idle processes. Those that work end with their `Unfinished`."""
        while self._idle:
            self._idle.pop().kill()

    def _take(self) -> _Process:
        try:
            process = self._idle.pop()
        except IndexError:
            process = self._start()
        if not process.await_start(time.monotonic() + _START_S):
            process.kill()
            raise GenerationFailed("grammars cannot be compiled now: their process did not start")
        if not self._has_spare:
            self._has_spare = True
            with contextlib.suppress(GenerationFailed):  # whoever needs it is told
                spare = self._start()
                spare.be_nice(_SPARE_NICENESS)
                self._idle.append(spare)
        return process

    def _start(self) -> _Process:
        """It may be taken before it is ready."""
        try:
            process = _Process()
        except OSError as error:
            raise GenerationFailed("grammars cannot be compiled now: no process could be started") from error
        process.send(msgspec.msgpack.encode(self._setting))
        return process


class Unfinished:
    """A trial that goes on in a process of its own. Ends with `finish` or `give_up`."""

    def __init__(self, process: _Process, idle: list[_Process]) -> None:
        self._process = process
        self._idle = idle

    def wait(self, deadline_s: float) -> bool:
        """False when it still works at `deadline_s` (of the monotonic clock). Raises what `TrialProcesses.check` raises."""
        answer = self._process.receive(deadline_s)
        if answer is not None:
            self._put_back()
            if answer.error is not None:
                raise from_wire(answer.error)
            return True
        if not self._process.ended:
            return False
        self._process.kill()
        raise GenerationFailed("the process that tries grammars ended; try again")

    def finish(self, deadline_s: float) -> None:
        """Returns when the grammar compiles. Raises as `wait`, and `Overloaded` at `deadline_s`."""
        if self.wait(deadline_s):
            return
        self.give_up()
        raise Overloaded("the server is too busy to compile this grammar now", retry_after_s=1.0)

    def give_up(self) -> None:
        """End it; the process stays for the next one."""
        self._process.send(b"")
        if self._process.receive(time.monotonic() + _ANSWER_S) is None:
            self._process.kill()
        else:
            self._put_back()

    def _put_back(self) -> None:
        if len(self._idle) < _MAX_IDLE:
            self._idle.append(self._process)
        else:
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
        self._ready = False

    @property
    def ended(self) -> bool:
        return self._popen.poll() is not None

    def await_start(self, deadline_s: float) -> bool:
        """Its first answer says that it is ready. False when it ends, or the time does."""
        self._ready = self._ready or self.receive(deadline_s) is not None
        return self._ready

    def be_nice(self, niceness: int) -> None:
        with contextlib.suppress(OSError):  # it is less nice to others then, or has ended
            os.setpriority(os.PRIO_PROCESS, self._popen.pid, niceness)

    def send(self, payload: bytes) -> None:
        write_frame(self._input, payload)

    def receive(self, deadline_s: float) -> Answer | None:
        """None when the process ends, or the time does; then it may be asked again."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._output, selectors.EVENT_READ)
            while (payload := first_frame(self._received)) is None:
                if not selector.select(max(0.0, deadline_s - time.monotonic())):
                    return None
                if not (piece := os.read(self._output.fileno(), 65536)):
                    self._popen.wait()
                    return None
                self._received += piece
        self._received = b""
        return msgspec.msgpack.decode(payload, type=Answer)

    def kill(self) -> None:
        self._popen.kill()
        self._popen.wait()
        for pipe in (self._input, self._output):
            try:
                pipe.close()
            except BrokenPipeError:
                continue  # what it did not read any more
