"""What hostile grammars cost those who share the server: the time between tokens of running streams, with and without
100 attacks beside them, and how soon a harmless new schema is served meanwhile.

    python -m benchmarks.neighbours                 # 32 streams, 100 attacks by 4 clients, on the demo model
    python -m benchmarks.neighbours --streams 8 --attacks 40 --list

Three phases take turns, so that a busy machine disturbs all: quiet; attacked; and the same prompts as those attacks that
were served, at the same moments, without their grammars. Against these the grammars are judged: any client may send them.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import http.client
import itertools
import json
import os
import queue
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import psutil

from benchmarks.hostile_grammars import Attack, attacks
from local_mode.server_process import ServerProcess

MAX_RISE_PERCENT = 20.0
MAX_ANSWER_S = 3.0
MAX_GROWTH_MIB = 100.0
_READY_LIMIT_S = 120.0
_TOKENS_PER_STREAM = 512
_WARM_UP_S = 3.0
_PAUSE_S = 0.5  # between phases: what an attack left behind counts to neither
_LEGITIMATE_EVERY_S = 0.25


@dataclass(slots=True)
class Reply:
    attack: Attack
    status: int
    took_s: float
    error: str
    sent_s: float
    """After the beginning of its phase."""


@dataclass(slots=True)
class Phase:
    """What was sent between two moments of the monotonic clock."""

    kind: Literal["quiet", "attacked", "control"]
    started_s: float
    ended_s: float = 0.0
    legitimate_s: list[float] = field(default_factory=list)
    legitimate_refused: int = 0
    replies: list[Reply] = field(default_factory=list)
    plain_s: list[float] = field(default_factory=list)  # of the answers without grammars
    cpu_s: float = 0.0  # of the server
    others_s: float = 0.0  # of what is neither the server nor its clients here


class Streams:
    """The streams, in a process of their own, which notes when something arrived."""

    def __init__(self, port: int, count: int) -> None:
        command = [sys.executable, "-m", "benchmarks.arrivals", str(port), str(count)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def end(self) -> list[list[float]]:
        """For each stream the moments at which tokens arrived, on the monotonic clock of this machine."""
        output, _ = self._process.communicate("")
        if self._process.returncode:
            raise SystemExit("a stream did not go on throughout")
        arrivals: list[list[float]] = json.loads(output)
        return arrivals


class Legitimate:
    """A client with a harmless schema that nobody sent before, again and again."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._number = 0

    def ask(self) -> float | None:
        """Seconds to the answer of one token; None when the server was too busy for another grammar (429)."""
        self._number += 1
        properties = {
            f"name{self._number}": {"type": "string", "maxLength": 40},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "tags": {"type": "array", "items": {"enum": ["a", "b", "c"]}, "maxItems": 5},
        }
        schema = {"type": "object", "properties": properties, "required": list(properties)}
        body = {
            "inputs": "Once",
            "parameters": {"max_new_tokens": 1, "grammar": {"type": "json", "value": schema}},
        }
        status, took_s, error = post(self._port, "/generate", json.dumps(body).encode())
        if status == 429:
            return None
        if status != 200:
            raise SystemExit(f"a harmless schema was answered with {status}: {error}")
        return took_s


def post(port: int, path: str, body: bytes) -> tuple[int, float, str]:
    """Status, seconds, and the error's text or ""."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    started_s = time.monotonic()
    try:
        connection.request("POST", path, body, {"content-type": "application/json"})
        response = connection.getresponse()
        answer = response.read()
    finally:
        connection.close()
    took_s = time.monotonic() - started_s
    if response.status == 200:
        return 200, took_s, ""
    error = json.loads(answer)["error"]
    return response.status, took_s, error["message"] if isinstance(error, dict) else error


def fill_cache(port: int, num_tokens: int) -> None:
    """Write every block of the KV cache once: memory that the engine has not touched yet would count as growth."""
    rng = random.Random(0)
    for _ in range(0, 2 * num_tokens, 1000):
        prompt = [rng.randrange(100, 2000) for _ in range(1000)]
        status, _, error = post(
            port, "/v1/completions", json.dumps({"prompt": prompt, "max_tokens": 1}).encode()
        )
        if status != 200:
            raise SystemExit(f"a prompt of token ids was answered with {status}: {error}")


def quiet_phase(port: int, length_s: float, legitimate: Legitimate) -> Phase:
    return _run(Phase(kind="quiet", started_s=time.monotonic()), [], length_s, legitimate)


def attacked_phase(port: int, todo: Sequence[Attack], *, clients: int, legitimate: Legitimate) -> Phase:
    """Send `todo` by `clients` at once, without pause."""
    waiting: queue.SimpleQueue[Attack | None] = queue.SimpleQueue()
    for attack in [*todo, *([None] * clients)]:
        waiting.put(attack)
    phase = Phase(kind="attacked", started_s=time.monotonic())

    def attacker() -> None:
        while (attack := waiting.get()) is not None:
            sent_s = time.monotonic() - phase.started_s
            phase.replies.append(Reply(attack, *post(port, attack.path, attack.body), sent_s=sent_s))

    threads = [threading.Thread(target=attacker) for _ in range(clients)]
    return _run(phase, threads, 0.0, legitimate)


def control_phase(port: int, attacked: Phase, *, clients: int, legitimate: Legitimate) -> Phase:
    """What was served in `attacked`, again at the same moments, without grammars."""
    phase = Phase(kind="control", started_s=time.monotonic())
    served = [reply for reply in attacked.replies if reply.status == 200]
    waiting: queue.SimpleQueue[Reply | None] = queue.SimpleQueue()
    for reply in [*sorted(served, key=lambda reply: reply.sent_s), *([None] * clients)]:
        waiting.put(reply)

    def client() -> None:
        while (reply := waiting.get()) is not None:
            time.sleep(max(0.0, phase.started_s + reply.sent_s - time.monotonic()))
            status, took_s, error = post(port, reply.attack.path, reply.attack.plain)
            if status != 200:
                raise SystemExit(f"a plain request was answered with {status}: {error}")
            phase.plain_s.append(took_s)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    return _run(phase, threads, attacked.ended_s - attacked.started_s, legitimate)


def _run(phase: Phase, threads: list[threading.Thread], length_s: float, legitimate: Legitimate) -> Phase:
    """Until the threads are done and `length_s` are over, with a harmless schema now and then."""
    for thread in threads:
        thread.start()
    while time.monotonic() - phase.started_s < length_s or any(t.is_alive() for t in threads):
        if (took_s := legitimate.ask()) is None:
            phase.legitimate_refused += 1
        else:
            phase.legitimate_s.append(took_s)
        time.sleep(_LEGITIMATE_EVERY_S)
    phase.ended_s = max(time.monotonic(), phase.started_s)
    return phase


def gaps_of(arrivals: list[list[float]], phases: Sequence[Phase]) -> list[float]:
    """Seconds between neighbouring arrivals of each stream that ended within one of `phases`, sorted."""
    gaps = []
    for moments in arrivals:
        for before_s, after_s in itertools.pairwise(moments):
            if any(phase.started_s <= after_s <= phase.ended_s for phase in phases):
                gaps.append(after_s - before_s)
    return sorted(gaps)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MAX_", "SM_"))}
    environment = {
        **inherited,
        "MODEL_ID": options.model,
        "DEVICE": "cpu",
        "HOSTNAME": "127.0.0.1",
        "PORT": "0",
    }
    environment["MAX_BATCH_TOTAL_TOKENS"] = str(options.streams * _TOKENS_PER_STREAM)
    if options.threads:
        environment["NUM_THREADS"] = str(options.threads)
    print(f"load of the machine before: {os.getloadavg()[0]:.2f} on {os.cpu_count()} cores")
    with ServerProcess(environment) as server:
        server.wait_ready(_READY_LIMIT_S)
        return _measure(server, options)


def _measure(server: ServerProcess, options: argparse.Namespace) -> int:
    port, legitimate = server.port, Legitimate(server.port)
    fill_cache(port, options.streams * _TOKENS_PER_STREAM)
    legitimate.ask()  # starts the process that tries grammars
    streams = Streams(port, options.streams)
    time.sleep(_WARM_UP_S)
    engine = _engine(server)
    before_mib = engine.memory_info().rss / 2**20
    every = list(attacks(options.attacks))
    share = -(-len(every) // options.turns)
    phases = []
    for turn in range(options.turns):
        todo = every[turn * share : (turn + 1) * share]
        for kind in ("quiet", "attacked", "control"):
            used_s, busy_s = _cpu_s(server.pid), _busy_s() - _cpu_s(os.getpid())
            if kind == "quiet":
                phase = quiet_phase(port, options.quiet_s, legitimate)
            elif kind == "attacked":
                phase = attacked_phase(port, todo, clients=options.clients, legitimate=legitimate)
            else:
                phase = control_phase(port, phases[-1], clients=options.clients, legitimate=legitimate)
            phase.cpu_s = _cpu_s(server.pid) - used_s
            phase.others_s = _busy_s() - _cpu_s(os.getpid()) - busy_s
            phases.append(phase)
            time.sleep(_PAUSE_S)
    growth_mib = engine.memory_info().rss / 2**20 - before_mib
    arrivals = streams.end()
    return _report(phases, arrivals, growth_mib=growth_mib, list_all=options.list)


def _report(phases: list[Phase], arrivals: list[list[float]], *, growth_mib: float, list_all: bool) -> int:
    figures = {}
    for name in ("quiet", "control", "attacked"):
        chosen = [phase for phase in phases if phase.kind == name]
        gaps = gaps_of(arrivals, chosen)
        figures[name] = (_at(gaps, 0.5), _at(gaps, 0.99))
        print(_described(name, chosen, gaps))
    replies = [reply for phase in phases for reply in phase.replies]
    plain_s = [took_s for phase in phases for took_s in phase.plain_s]
    slowest = max(replies, key=lambda reply: reply.took_s)
    rises = [100 * (figures["attacked"][i] / figures["control"][i] - 1) for i in range(2)]
    prompts = [100 * (figures["control"][i] / figures["quiet"][i] - 1) for i in range(2)]
    statuses = collections.Counter(reply.status for reply in replies)
    for reply in sorted(replies, key=lambda reply: -reply.took_s) if list_all else []:
        print(f"  {reply.status} {1e3 * reply.took_s:7.0f} ms  {reply.attack.name}: {reply.error[:110]}")
    print(f"statuses of {len(replies)} attacks: {dict(sorted(statuses.items()))}")
    print(
        f"slowest answer {slowest.took_s:.2f} s ({slowest.attack.name}), must be at most {MAX_ANSWER_S:g} s; "
        f"slowest without grammars {max(plain_s, default=0.0):.2f} s"
    )
    print(f"engine's memory {growth_mib:+.0f} MiB, must grow by at most {MAX_GROWTH_MIB:g} MiB")
    print(f"the served prompts alone: p50 {prompts[0]:+.1f} %, p99 {prompts[1]:+.1f} % above quiet")
    print(
        f"the grammars: p50 {rises[0]:+.1f} %, p99 {rises[1]:+.1f} % above that "
        f"(must rise by at most {MAX_RISE_PERCENT:g} %)"
    )
    answered = all(status == 200 or 400 <= status < 500 for status in statuses)
    bounded = slowest.took_s <= MAX_ANSWER_S and growth_mib <= MAX_GROWTH_MIB
    return 0 if answered and bounded and max(rises) <= MAX_RISE_PERCENT else 1


def _described(name: str, phases: list[Phase], gaps: list[float]) -> str:
    seconds = sum(phase.ended_s - phase.started_s for phase in phases)
    server, others = (sum(p.cpu_s for p in phases) / seconds, sum(p.others_s for p in phases) / seconds)
    first_use_s = [took_s for phase in phases for took_s in phase.legitimate_s]
    refused = sum(phase.legitimate_refused for phase in phases)
    return (
        f"{name}: {seconds:.1f} s, server on {server:.2f} cores, other programs on {others:.2f}\n"
        f"  between tokens p50 {1e3 * _at(gaps, 0.5):.2f} ms, p99 {1e3 * _at(gaps, 0.99):.2f} ms, "
        f"longest {1e3 * gaps[-1]:.0f} ms ({len(gaps)} gaps)\n"
        f"  a new harmless schema is served after {1e3 * statistics.median(first_use_s):.0f} ms (median of "
        f"{len(first_use_s)}), at most {1e3 * max(first_use_s):.0f} ms; {refused} refused with 429"
    )


def _at(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _cpu_s(pid: int) -> float:
    """Processor seconds of a process and its descendants so far, ended ones included."""
    used_s, root = 0.0, psutil.Process(pid)
    for process in [root, *root.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            used_s += sum(process.cpu_times()[:4])
    return used_s


def _busy_s() -> float:
    """Processor seconds of everything on this machine so far."""
    times = psutil.cpu_times()
    return times.user + times.nice + times.system + times.irq + times.softirq


def _engine(server: ServerProcess) -> psutil.Process:
    children = psutil.Process(server.pid).children(recursive=True)
    return next(process for process in children if process.cmdline()[:1] == ["engine"])


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.neighbours",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default="demo", help="model id or folder")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--attacks", type=int, default=100)
    parser.add_argument("--clients", type=int, default=4, help="attackers at once")
    parser.add_argument("--turns", type=int, default=5, help="quiet and attacked phases each")
    parser.add_argument("--quiet-s", type=float, default=4.0, help="length of a quiet phase")
    parser.add_argument("--threads", type=int, default=None, help="compute threads; absent: all cores")
    parser.add_argument("--list", action="store_true", help="print every attack's answer")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
