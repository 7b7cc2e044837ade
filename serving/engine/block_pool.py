"""Ref-counted KV blocks of one group, the prefix-hash index over them and LRU eviction. Knows blocks, not requests.

    free list (LRU order)             index: hash -> block
    ┌ never used / hash-less ┐ ┌ cached, unreferenced ┐
    │ taken first            │ │ evicted when taken   │

A block is either referenced (ref_count > 0) or in the free list, never both. Block 0 is padding and never handed out.
"""

from __future__ import annotations

from collections import OrderedDict

from serving.errors import ServingError

PADDING_BLOCK = 0


class BlockAccountingError(ServingError):
    """An invariant of the block accounting is broken: a bug of ours, never a client's."""

    error_type = "block_accounting"


class BlockPool:
    def __init__(self, num_blocks: int) -> None:
        """`num_blocks` includes the padding block, so `num_blocks - 1` can be allocated."""
        if num_blocks < 2:
            raise BlockAccountingError(f"a block pool needs at least 2 blocks, got {num_blocks}")
        self.num_blocks = num_blocks
        self.num_ever_used = 1
        """Those from this number on were never handed out."""
        self._ref_counts = [0] * num_blocks
        self._hashes: list[bytes | None] = [None] * num_blocks
        self._index: dict[bytes, int] = {}
        self._free: OrderedDict[int, None] = OrderedDict((block, None) for block in range(1, num_blocks))

    @property
    def num_free(self) -> int:
        """Blocks that can be allocated now, cached but unreferenced ones included."""
        return len(self._free)

    @property
    def num_allocatable(self) -> int:
        return self.num_blocks - 1

    def num_references(self, block: int) -> int:
        return self._ref_counts[block]

    def allocate(self) -> int:
        """Take the least recently used free block; its cached content, if any, is forgotten."""
        if not self._free:
            raise BlockAccountingError("allocate() on an exhausted block pool")
        block, _ = self._free.popitem(last=False)
        self._forget(block)
        self._ref_counts[block] = 1
        if block >= self.num_ever_used:
            self.num_ever_used = block + 1
        return block

    def lookup(self, block_hash: bytes) -> int | None:
        """The block that holds this content, without taking a reference."""
        return self._index.get(block_hash)

    def acquire(self, block: int) -> None:
        """Add a reference; a cached block leaves the free list."""
        if self._ref_counts[block] == 0:
            del self._free[block]
        self._ref_counts[block] += 1

    def release(self, block: int) -> None:
        """Drop a reference. The last one returns the block: to the back of the free list if its content is indexed,
        to the front otherwise, so that useless blocks are reused first."""
        count = self._ref_counts[block]
        if block == PADDING_BLOCK or count <= 0:
            raise BlockAccountingError(f"release() of block {block} with {count} references")
        self._ref_counts[block] = count - 1
        if count == 1:
            self._free[block] = None
            if self._hashes[block] is None:
                self._free.move_to_end(block, last=False)

    def publish(self, block: int, block_hash: bytes) -> None:
        """Index a computed block. The first block with a given content wins; later twins stay private."""
        if block_hash not in self._index and self._hashes[block] is None:
            self._index[block_hash] = block
            self._hashes[block] = block_hash

    def check(self, references: dict[int, int]) -> None:
        """Compare with an independent count of references. Raises `BlockAccountingError` at the first difference."""
        for block in range(1, self.num_blocks):
            expected = references.get(block, 0)
            if self._ref_counts[block] != expected:
                raise BlockAccountingError(
                    f"block {block}: {self._ref_counts[block]} references, {expected} holders"
                )
            if (expected == 0) != (block in self._free):
                raise BlockAccountingError(
                    f"block {block}: {expected} holders, in free list: {block in self._free}"
                )
        for block_hash, block in self._index.items():
            if self._hashes[block] != block_hash:
                raise BlockAccountingError(f"block {block} is indexed under a hash it does not carry")
        if sum(value is not None for value in self._hashes) != len(self._index):
            raise BlockAccountingError("a block carries a hash that the index does not know")

    def _forget(self, block: int) -> None:
        block_hash = self._hashes[block]
        if block_hash is not None:
            del self._index[block_hash]
            self._hashes[block] = None
