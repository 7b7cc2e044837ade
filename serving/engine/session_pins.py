"""KV prefixes that sessions keep between two turns: references on published blocks, bounded, given up for whoever needs
room. Knows blocks and hashes; neither the life of a session nor what is running.

A pin only makes the next turn faster. Without it the same blocks lie in the pools' LRU lists and may be evicted.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from serving.engine.block_pool import PADDING_BLOCK, BlockAccountingError, BlockPool


@dataclass(slots=True, frozen=True)
class _Pin:
    """The leading blocks of a sequence by their chained `hashes`; `blocks[group]` are those that the group has kept of them,
    in order."""

    hashes: list[bytes]
    blocks: list[list[int]]


class SessionPins:
    """At most one pin per open session. The least recently used one is given up first."""

    def __init__(self, pools: Sequence[BlockPool], *, kv_fraction: float) -> None:
        """Of each pool at most the share `kv_fraction` is ever pinned, blocks that several sessions share counted once."""
        self.num_given_up = 0
        self._pools = list(pools)
        self._quotas = [int(kv_fraction * pool.num_allocatable) for pool in pools]
        self._open: set[str] = set()
        self._pins: OrderedDict[str, _Pin] = OrderedDict()
        self._holders: list[Counter[int]] = [Counter() for _ in pools]

    @property
    def num_blocks(self) -> int:
        """Pinned blocks of the group that has most."""
        return max(len(holders) for holders in self._holders)

    def num_idle_blocks(self, group: int) -> int:
        """Blocks that nobody but pins refers to: they are free for whoever needs them."""
        pool = self._pools[group]
        return sum(pool.num_references(block) == count for block, count in self._holders[group].items())

    # ------------------------------------------------------------ sessions

    def open(self, session_id: str) -> None:
        """From now on the ends of its requests may be pinned."""
        self._open.add(session_id)

    def close(self, session_id: str) -> None:
        """Let go of what it has; what its running requests leave is not pinned any more."""
        self._open.discard(session_id)
        pin = self._pins.pop(session_id, None)
        if pin is not None:
            self._release(pin)

    def touch(self, session_id: str) -> None:
        """It has work: its pin is the last to be given up."""
        if session_id in self._pins:
            self._pins.move_to_end(session_id)

    def keep(
        self,
        session_id: str,
        hashes: Sequence[bytes],
        tables: Sequence[Sequence[int]],
        *,
        starts: Sequence[int],
    ) -> None:
        """Pin the published blocks behind `hashes`, of each group those from `starts` on, instead of what the session had;
        unless that goes on where this ends. Call before the request lets go of the blocks in `tables`."""
        if session_id not in self._open or not hashes or not min(self._quotas):
            return
        old = self._pins.get(session_id)
        if old is not None and len(old.hashes) >= len(hashes) and old.hashes[len(hashes) - 1] == hashes[-1]:
            self.touch(session_id)
            return
        pin = self._acquire(hashes, tables, starts)
        if old is not None:
            self._release(self._pins.pop(session_id))
        self._pins[session_id] = pin
        while self._over_quota() and len(self._pins) > 1:
            self._give_up(next(iter(self._pins)))
        if self._over_quota():
            self._shorten(session_id)

    # ------------------------------------------------------------ room for others

    def give_up_for(self, lacking: Sequence[int]) -> bool:
        """Give up the least recently used pin if without pins the `lacking` blocks of every group would be free. False: they
        would not, because requests hold them, too."""
        if not self._pins or any(
            count > len(self._holders[group]) or count > self.num_idle_blocks(group)
            for group, count in enumerate(lacking)
        ):
            return False
        self._give_up(next(iter(self._pins)))
        return True

    def references(self, group: int) -> Counter[int]:
        """References by block, counted anew. Raises `BlockAccountingError` if the running count differs."""
        counted: Counter[int] = Counter()
        for pin in self._pins.values():
            counted.update(pin.blocks[group])
        if counted != self._holders[group] or len(counted) > self._quotas[group]:
            raise BlockAccountingError(
                f"pins of group {group}: {counted.total()} references to {len(counted)} blocks, quota "
                f"{self._quotas[group]}, {self._holders[group].total()} in the books"
            )
        if self._pins.keys() - self._open:
            raise BlockAccountingError("a session that is not open has a pin")
        return counted

    def _acquire(
        self, hashes: Sequence[bytes], tables: Sequence[Sequence[int]], starts: Sequence[int]
    ) -> _Pin:
        """Pinned is what will be found: under a hash that may be a twin of the request's own block, or one that its window
        has just left and that nobody has taken yet."""
        blocks: list[list[int]] = []
        for group, (table, pool) in enumerate(zip(tables, self._pools, strict=True)):
            kept = []
            for position in range(starts[group], len(hashes)):
                if table[position] != PADDING_BLOCK:
                    pool.publish(table[position], hashes[position])  # its twin may have been evicted
                found = pool.lookup(hashes[position])
                if found is not None:
                    pool.acquire(found)
                    kept.append(found)
            self._holders[group].update(kept)
            blocks.append(kept)
        return _Pin(list(hashes), blocks)

    def _release(self, pin: _Pin) -> None:
        """The tail goes first, as when a request ends, so that beginnings stay cached longest."""
        for group, blocks in enumerate(pin.blocks):
            holders, pool = self._holders[group], self._pools[group]
            for block in reversed(blocks):
                pool.release(block)
                holders[block] -= 1
                if not holders[block]:
                    del holders[block]

    def _give_up(self, session_id: str) -> None:
        self._release(self._pins.pop(session_id))
        self.num_given_up += 1

    def _over_quota(self) -> bool:
        return any(len(holders) > quota for holders, quota in zip(self._holders, self._quotas, strict=True))

    def _shorten(self, session_id: str) -> None:
        """The only pin left is over the quota by itself: keep its beginning. Where a group has not kept the beginning (a
        window has moved past it), a part of a prefix is of no use."""
        pin = self._pins.pop(session_id)
        num_kept = min(self._quotas)
        if num_kept and all(len(blocks) == len(pin.hashes) for blocks in pin.blocks):
            shorter = _Pin(pin.hashes[:num_kept], [blocks[:num_kept] for blocks in pin.blocks])
            self._release(_Pin(pin.hashes, [blocks[num_kept:] for blocks in pin.blocks]))
            self._pins[session_id] = shorter
            return
        self._release(pin)
        self.num_given_up += 1
