"""`keeper.py PARENT_PID COMMAND [ARGUMENT]...`: be to a command what a container's PID namespace is.

SIGTERM is handed on to the command. When the command ends, when SIGHUP comes or when the parent dies, every process that
descends from it is killed, whatever group or session it moved to; then this ends with the command's status, 128 + n for
signal n. Runs on the standard library alone, under `python -I -S`; knows nothing of containers.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_SIGNALS = {signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD}
_CANNOT_RUN = 127


def main() -> int:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    # Signals wait for sigwait below, so that none is lost while the command starts.
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGHUP, 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above took effect
        return 1

    def become_child() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)

    try:
        leader = subprocess.Popen(command, preexec_fn=become_child, start_new_session=True)
    except OSError as error:
        print(f"cannot run {command[0]}: {error.strerror or error}", flush=True)
        return _CANNOT_RUN
    return _keep(leader.pid)


def _keep(leader: int) -> int:
    while True:
        received = signal.sigwait(_SIGNALS)
        if received == signal.SIGTERM:
            os.kill(leader, signal.SIGTERM)
        elif received == signal.SIGHUP:
            os.kill(leader, signal.SIGKILL)
        status = _reap_until(leader)
        if status is not None:
            _kill_all()
            return status if status >= 0 else 128 - status


def _reap_until(leader: int) -> int | None:
    """Collect what has ended. The leader's exit code (negative: its signal), None while it runs."""
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == leader:
            return os.waitstatus_to_exitcode(status)
        if pid == 0:
            return None


def _kill_all() -> None:
    """Kill and collect until there is no descendant: orphans of those who die become children of this process."""
    while True:
        for pid in _children():
            os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _children() -> list[int]:
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            # pid (name, which may hold anything) state parent …
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        if int(fields[1]) == os.getpid():
            found.append(int(folder.name))
    return found


if __name__ == "__main__":
    sys.exit(main())
