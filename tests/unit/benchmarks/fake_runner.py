"""A runner whose engine counts: request `index` gets the tokens 100 · index, 100 · index + 1, …

One argument tells how it misbehaves: nothing, `noisy`, `dies`, `babbles` or `short`.
"""

from __future__ import annotations

import sys

from benchmarks.peers.runners.protocol import run_batcher, serve


class Counting:
    def __init__(self, behaviour):
        self._left = {}
        self._behaviour = behaviour
        self.most_open = 0

    def add(self, index, prompt, num_output_tokens):
        self._left[index] = [100 * index + step for step in range(num_output_tokens)]
        self.most_open = max(self.most_open, len(self._left))

    def step(self):
        if self._behaviour == "noisy":
            print("a library prints this")
        news = []
        for index, tokens in list(self._left.items()):
            token = tokens.pop(0)
            has_ended = not tokens or (self._behaviour == "short" and index == 1)
            if has_ended:
                del self._left[index]
            news.append((index, [token], has_ended))
        return news


def make_run(weights, settings):
    if weights.name == "dies":
        sys.exit("no such weights")
    if weights.name == "babbles":
        return lambda workload: {"wall_s": 1.0}
    batcher = Counting(weights.name)
    return lambda workload: run_batcher(batcher, workload)


if __name__ == "__main__":
    serve(make_run)
