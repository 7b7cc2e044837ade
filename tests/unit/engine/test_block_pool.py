from __future__ import annotations

from serving.config import KVGroupConfig
from serving.engine.block_pool import BlockPool
from serving.engine.kv_cache import KVCacheManager


def test_what_was_ever_used_are_the_first_blocks() -> None:
    pool = BlockPool(6)
    assert pool.num_ever_used == 1, "the padding block is written to"
    first, second = pool.allocate(), pool.allocate()
    assert {first, second} == {1, 2} and pool.num_ever_used == 3
    pool.release(second)
    assert pool.allocate() == second and pool.num_ever_used == 3
    pool.publish(first, b"content")
    pool.release(first)
    assert [pool.allocate() for _ in range(4)] == [3, 4, 5, first], "what is cached is taken last"
    assert pool.num_ever_used == pool.num_blocks


def test_the_group_that_used_most_says_how_much_of_the_cache_was_used() -> None:
    groups = [KVGroupConfig(name="full", window=None), KVGroupConfig(name="window", window=32)]
    cache = KVCacheManager(groups, [8, 8], block_size=16, prefix_caching=True)
    assert cache.share_ever_used == 1 / 8
    for _ in range(3):
        cache.pools[1].allocate()
    assert cache.share_ever_used == 4 / 8
