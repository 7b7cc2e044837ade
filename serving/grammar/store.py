"""Compiled grammars that are kept: the last used up to a number of bytes, and all that somebody still holds."""

from __future__ import annotations

from collections import OrderedDict
from weakref import WeakValueDictionary

from serving.grammar.compiler import CompiledGrammar
from serving.sampling_params import Grammar


class GrammarStore:
    """One thread uses it: the engine's."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[Grammar, CompiledGrammar] = OrderedDict()
        self._living: WeakValueDictionary[Grammar, CompiledGrammar] = WeakValueDictionary()
        self.num_bytes = 0

    def find(self, grammar: Grammar) -> CompiledGrammar | None:
        if (compiled := self._living.get(grammar)) is not None and grammar in self._kept:
            self._kept.move_to_end(grammar)
        return compiled

    def add(self, compiled: CompiledGrammar) -> None:
        """Keep it, and let go of the least recently used ones that no longer fit."""
        self.discard(compiled.grammar)
        self._living[compiled.grammar] = compiled
        self._kept[compiled.grammar] = compiled
        self.num_bytes += compiled.num_bytes
        while self.num_bytes > self._max_bytes:
            _, dropped = self._kept.popitem(last=False)
            self.num_bytes -= dropped.num_bytes

    def discard(self, grammar: Grammar) -> None:
        """Let go of it: once nobody holds it any more, the next request compiles it anew."""
        if (dropped := self._kept.pop(grammar, None)) is not None:
            self.num_bytes -= dropped.num_bytes
