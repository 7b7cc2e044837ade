"""Which blocks each request holds, per KV group: prefix hits, growth, window release, forks, freeing. No tensors.

A request has one block table per group. Table entry i covers tokens i*block_size … (i+1)*block_size - 1; an entry 0
(the padding block) means that nothing is kept there, because a sliding window has moved past it.
Only blocks whose every token has been computed are published to the prefix index, under
SHA-256(parent hash, token ids); the chain starts at `Request.cache_root`, which carries the boot seed, the adapter and the
request's cache salt, so that content is shared only where it is equal and allowed.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import dropwhile

from serving.batch import BlockCopy
from serving.config import KVGroupConfig
from serving.engine.block_pool import PADDING_BLOCK, BlockPool
from serving.engine.request import Request
from serving.engine.session_pins import SessionPins


def cache_root(boot_seed: bytes, *, adapter_digest: bytes = b"", salt: str = "") -> bytes:
    """Start of a hash chain. Lengths are included, so that no two different triples collide."""
    digest = hashlib.sha256(boot_seed)
    for part in (adapter_digest, salt.encode()):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()


def chain_hash(parent: bytes, token_ids: Sequence[int]) -> bytes:
    return hashlib.sha256(parent + array("i", token_ids).tobytes()).digest()


def num_blocks_for(num_tokens: int, block_size: int) -> int:
    return -(-num_tokens // block_size)


class KVCacheManager:
    def __init__(
        self,
        groups: Sequence[KVGroupConfig],
        num_blocks: Sequence[int],
        *,
        block_size: int,
        prefix_caching: bool,
        session_kv_fraction: float = 0.0,
    ) -> None:
        self.groups = list(groups)
        self.block_size = block_size
        self.prefix_caching = prefix_caching
        self._has_windows = any(group.window is not None for group in groups)
        self.pools = [BlockPool(count) for count in num_blocks]
        self.pins = SessionPins(self.pools, kv_fraction=session_kv_fraction)

    # ------------------------------------------------------------ capacity

    @property
    def num_free_blocks(self) -> int:
        """Free blocks of the scarcest group; what only sessions keep is free for whoever needs it."""
        return min(pool.num_free + self.pins.num_idle_blocks(group) for group, pool in enumerate(self.pools))

    @property
    def num_blocks(self) -> int:
        """Allocatable blocks of the scarcest group."""
        return min(pool.num_allocatable for pool in self.pools)

    @property
    def share_ever_used(self) -> float:
        """Of the blocks, in the group that used most: these are the first ones, and no other was ever written to."""
        return max(pool.num_ever_used / pool.num_blocks for pool in self.pools)

    def fits_alone(self, num_tokens: int, max_step_tokens: int) -> bool:
        """Could a sequence of this length ever run, with the whole cache to itself?"""
        return all(
            self._peak_blocks(group, num_tokens, max_step_tokens) <= pool.num_allocatable
            for group, pool in zip(self.groups, self.pools, strict=True)
        )

    def make_room(self, request: Request, max_step_tokens: int) -> bool:
        """Are there free blocks for the whole rest of the request's known tokens and the first sampled one? If pins of
        sessions are in the way, they go."""
        return self._free_up(
            [
                self._peak_blocks(group, request.num_tokens + 1, max_step_tokens) - len(table)
                for group, table in zip(self.groups, request.block_tables, strict=True)
            ]
        )

    def max_tokens_alone(self, max_step_tokens: int, upper: int) -> int:
        """The longest sequence, at most `upper`, that `fits_alone`."""
        low, high = 0, upper
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.fits_alone(middle, max_step_tokens) else (low, middle - 1)
        return low

    def _peak_blocks(self, group: KVGroupConfig, num_tokens: int, max_step_tokens: int) -> int:
        if group.window is None:
            return num_blocks_for(num_tokens, self.block_size)
        # The window, the largest chunk after it, and one block for misalignment.
        in_window = num_blocks_for(group.window + max_step_tokens, self.block_size) + 1
        return min(num_blocks_for(num_tokens, self.block_size), in_window)

    # ------------------------------------------------------------ life of a request

    def begin(self, request: Request) -> None:
        """Give a request that holds no blocks the longest cached prefix. Sets its tables and counters.

        At least one token is always left to compute; requests for prompt logprobs take no hits.
        """
        request.block_tables = [[] for _ in self.groups]
        request.num_computed_tokens = request.num_published_blocks = 0
        if not self.prefix_caching or request.params.prompt_logprobs:
            return
        hashes = self._extend_hashes(request, (request.num_tokens - 1) // self.block_size)
        num_hit = self._longest_hit(hashes)
        for table, group, pool in zip(request.block_tables, self.groups, self.pools, strict=True):
            first = self._first_needed(group, num_hit * self.block_size)
            for position in range(num_hit):
                block = pool.lookup(hashes[position]) if position >= first else PADDING_BLOCK
                if block is None:
                    raise RuntimeError("a prefix hit vanished between lookup and use")
                if block != PADDING_BLOCK:
                    pool.acquire(block)
                table.append(block)
        request.num_computed_tokens = num_hit * self.block_size
        request.num_published_blocks = num_hit
        if request.first_scheduled_s is None:
            request.num_cached_tokens = request.num_computed_tokens

    def missing(self, request: Request) -> Iterator[bytes]:
        """Hashes of the blocks that `begin` would take if they were in the prefix index, from the first that is not."""
        if not self.prefix_caching or request.params.prompt_logprobs:
            return iter(())
        hashes = self._extend_hashes(request, (request.num_tokens - 1) // self.block_size)
        return dropwhile(lambda value: self.pools[0].lookup(value) is not None, hashes)

    def unpublished(self, request: Request) -> frozenset[bytes]:
        """Hashes of the blocks that `request` holds, or will, and whose tokens are known, but not yet in the cache."""
        if request.num_published_blocks == len(request.block_hashes):
            return frozenset()
        return frozenset(request.block_hashes[request.num_published_blocks :])

    def allocate(self, request: Request, num_tokens: int) -> list[list[int]] | None:
        """Room for the next `num_tokens` tokens: the blocks appended per group, or None if there are too few free blocks
        even without what sessions keep. An empty list: nothing was missing."""
        needed = num_blocks_for(request.num_computed_tokens + num_tokens, self.block_size)
        for table in request.block_tables:
            if len(table) < needed:
                break
        else:
            return []
        missing = [max(0, needed - len(table)) for table in request.block_tables]
        if not self._free_up(missing):
            return None
        new_blocks = [
            [pool.allocate() for _ in range(count)] for count, pool in zip(missing, self.pools, strict=True)
        ]
        for table, blocks in zip(request.block_tables, new_blocks, strict=True):
            table.extend(blocks)
        return new_blocks

    def advance(self, request: Request, num_computed_tokens: int) -> None:
        """When the first `num_computed_tokens` of `request` really are in the cache: publish full blocks, drop what a window
        left. Steps run in order, so that a block may be handed out, or hit, while a step that names it still runs."""
        num_full = num_computed_tokens // self.block_size
        if self.prefix_caching and num_full > request.num_published_blocks:
            hashes = self._extend_hashes(request, num_full)
            for position in range(request.num_published_blocks, num_full):
                for table, pool in zip(request.block_tables, self.pools, strict=True):
                    if table[position] != PADDING_BLOCK:
                        pool.publish(table[position], hashes[position])
            request.num_published_blocks = num_full
        if self._has_windows:
            for table, group, pool in zip(request.block_tables, self.groups, self.pools, strict=True):
                if group.window is not None:
                    _release_before(table, self._first_needed(group, num_computed_tokens), pool)

    def keep_for_session(self, request: Request) -> None:
        """It has ended: let its session keep what is published of it. Call before `free`."""
        if request.session_id:
            hashes = request.block_hashes[: request.num_published_blocks]
            starts = [self._first_needed(group, len(hashes) * self.block_size) for group in self.groups]
            self.pins.keep(request.session_id, hashes, request.block_tables, starts=starts)

    def free(self, request: Request) -> None:
        """Give everything back. The tail goes first, so that LRU keeps beginnings of prompts longest."""
        for table, pool in zip(request.block_tables, self.pools, strict=False):
            for block in reversed(table):
                if block != PADDING_BLOCK:
                    pool.release(block)
        for block, pool in zip(request.fork_blocks, self.pools, strict=False):
            if block != PADDING_BLOCK:
                pool.release(block)
        request.block_tables, request.fork_blocks = [], []
        request.num_computed_tokens = request.num_published_blocks = 0

    # ------------------------------------------------------------ forks (n > 1)

    def fork(self, parent: Request, child: Request) -> None:
        """Let `child` share what `parent` has computed of the common prompt, but for the last token, which the child
        computes itself to get its own first sample. The partial block is only held here; `take_forks` makes it the child's.
        """
        num_shared = parent.num_prompt_tokens - 1
        num_full, remainder = divmod(num_shared, self.block_size)
        for table, group in zip(parent.block_tables, self.groups, strict=True):
            if PADDING_BLOCK in table[self._first_needed(group, num_shared) : num_full + bool(remainder)]:
                return  # the parent's window has moved on; the child begins like any other request
        child.block_tables, child.fork_blocks = [], []
        for table, pool in zip(parent.block_tables, self.pools, strict=True):
            shared = table[:num_full]
            for block in shared:
                if block != PADDING_BLOCK:
                    pool.acquire(block)
            child.block_tables.append(list(shared))
            partial = table[num_full] if remainder else PADDING_BLOCK
            if partial != PADDING_BLOCK:
                pool.acquire(partial)
            child.fork_blocks.append(partial)
        child.block_hashes = parent.block_hashes[:num_full]
        child.num_computed_tokens = child.num_cached_tokens = num_shared
        child.num_published_blocks = min(num_full, parent.num_published_blocks)

    def take_forks(self, requests: Iterable[Request]) -> list[BlockCopy]:
        """Copies that turn the parents' partial blocks into the children's own, after their blocks were allocated and before
        their counters advance. Whoever gets a parent's block next writes to it in a later step: it is let go of here."""
        copies: list[BlockCopy] = []
        for child in requests:
            position = child.num_computed_tokens // self.block_size
            for group, (source, pool) in enumerate(zip(child.fork_blocks, self.pools, strict=False)):
                if source != PADDING_BLOCK:
                    target = child.block_tables[group][position]
                    copies.append(BlockCopy(group=group, source=source, target=target))
                    pool.release(source)
            child.fork_blocks = []
        return copies

    # ------------------------------------------------------------ invariants

    def check(self, holders: Iterable[Request]) -> None:
        """Recount references from the tables of all living requests and the pins of sessions. Raises
        `BlockAccountingError`."""
        counts = [self.pins.references(group) for group in range(len(self.pools))]
        for request in holders:
            for group, table in enumerate(request.block_tables):
                counts[group].update(block for block in table if block != PADDING_BLOCK)
            for group, block in enumerate(request.fork_blocks):
                if block != PADDING_BLOCK:
                    counts[group][block] += 1
        for pool, count in zip(self.pools, counts, strict=True):
            pool.check(count)

    # ------------------------------------------------------------ arithmetic

    def _free_up(self, wanted: Sequence[int]) -> bool:
        """True when every group has `wanted` free blocks, be it at the cost of sessions' pins."""
        while True:
            lacking = [max(0, count - pool.num_free) for count, pool in zip(wanted, self.pools, strict=True)]
            if not any(lacking):
                return True
            if not self.pins.give_up_for(lacking):
                return False

    def _extend_hashes(self, request: Request, num_blocks: int) -> list[bytes]:
        """The request's hash chain, at least `num_blocks` long."""
        hashes, size = request.block_hashes, self.block_size
        while len(hashes) < num_blocks:
            start = len(hashes) * size
            parent = hashes[-1] if hashes else request.cache_root
            hashes.append(chain_hash(parent, request.token_ids[start : start + size]))
        return hashes

    def _longest_hit(self, hashes: list[bytes]) -> int:
        """The largest number of leading blocks that every group can serve: an unbroken run from the start in full
        groups, an unbroken run that covers the window in the others."""
        longest = len(hashes)
        windowed: list[tuple[KVGroupConfig, list[bool]]] = []
        for group, pool in zip(self.groups, self.pools, strict=True):
            found = [pool.lookup(value) is not None for value in hashes]
            if group.window is None:
                longest = min(longest, found.index(False) if False in found else len(found))
            else:
                windowed.append((group, found))
        for num_hit in range(longest, 0, -1):
            if all(
                all(found[self._first_needed(group, num_hit * self.block_size) : num_hit])
                for group, found in windowed
            ):
                return num_hit
        return 0

    def _first_needed(self, group: KVGroupConfig, num_computed: int) -> int:
        """First table entry that the next query, at position `num_computed`, can still see."""
        if group.window is None:
            return 0
        return max(0, num_computed - group.window + 1) // self.block_size


def _release_before(table: list[int], end: int, pool: BlockPool) -> None:
    for position in range(min(end, len(table)) - 1, -1, -1):
        if table[position] == PADDING_BLOCK:
            return
        pool.release(table[position])
        table[position] = PADDING_BLOCK
