"""Prefixes that running requests are computing at this moment, and who waits for them. Knows hashes, not tensors."""

from __future__ import annotations

from collections.abc import Iterable

from serving.engine.kv_cache import KVCacheManager
from serving.engine.request import Request


class PrefixesUnderWay:
    """Of many requests with one long beginning that come together, one computes it: the others wait to find it in the
    cache."""

    def __init__(self, cache: KVCacheManager) -> None:
        self._cache = cache
        self._hashes: set[bytes] = set()

    def look_at(self, running: Iterable[Request]) -> None:
        """Begin a step: what `running` have not yet in the cache is under way."""
        self._hashes = set()
        for request in running:
            self.add(request)

    def add(self, request: Request) -> None:
        self._hashes |= self._cache.unpublished(request)

    def awaited_by(self, request: Request) -> bool:
        """Is the next block that `request`, which is waiting, lacks being computed for another one? It remembers the last
        such block, which is there when all are, so that the next steps need not look for it again."""
        if not self._hashes or request.block_tables:
            return False
        if request.awaited_hash in self._hashes:
            return True
        awaited = b""
        for missing in self._cache.missing(request):
            if missing not in self._hashes:
                break
            awaited = missing
        request.awaited_hash = awaited
        return bool(awaited)
