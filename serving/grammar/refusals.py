"""Why grammars were refused, so that the same one costs nothing when it is sent again. Knows digests of sources."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict

from serving.errors import InvalidRequest
from serving.sampling_params import Grammar

MAX_REFUSALS = 1024
MAX_AGE_S = 600.0
"""A refusal may be the machine's fault: for want of memory, say."""


class Refusals:
    """The last `MAX_REFUSALS`, each for `MAX_AGE_S`. One thread uses it: the engine's."""

    def __init__(self) -> None:
        self._kept: OrderedDict[bytes, tuple[float, str, str | None]] = OrderedDict()

    def check(self, grammar: Grammar) -> None:
        """Raises the `InvalidRequest` that `grammar` was refused with. Takes microseconds."""
        if not self._kept:
            return
        key = _key(grammar)
        refused_s, message, field = self._kept.get(key, (float("-inf"), "", None))
        if time.monotonic() - refused_s < MAX_AGE_S:
            self._kept.move_to_end(key)
            raise InvalidRequest(message, field=field)

    def add(self, grammar: Grammar, error: InvalidRequest) -> None:
        key = _key(grammar)
        self._kept[key] = (time.monotonic(), error.message, error.field)
        self._kept.move_to_end(key)
        if len(self._kept) > MAX_REFUSALS:
            self._kept.popitem(last=False)


def _key(grammar: Grammar) -> bytes:
    source = grammar.source.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(source, digest_size=16, person=grammar.kind.encode()).digest()
