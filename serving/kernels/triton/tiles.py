"""Launch shapes of the attention kernels by compute capability: how much of a step one program takes.

Owns the numbers and the reasons for them; knows no tensors and asks no device. `benchmarks/gpu/tune_attention.py`
measures alternatives. Shared memory in the reasons is that of bfloat16, head size 128; K + V are 32 KiB per 64 keys.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

MIN_HEAD_DIM = 16
MAX_HEAD_DIM = 256
MAX_TILE_HEADS = 32
MIN_ROWS = 16
"""The matrix units take no fewer rows."""

PARTIALS_LIMIT_BYTES = 64 * 2**20
DETERMINISTIC_SEGMENT = 1024


@dataclass(slots=True, frozen=True)
class TileShape:
    """Launch shape: rows = queries x padded group of one tile, keys = KV positions loaded at a time."""

    rows: int
    keys: int
    num_warps: int
    num_stages: int


@dataclass(slots=True, frozen=True)
class Tuning:
    """How one model's attention is cut on one kind of GPU.

    `short` is the tile of rows that have one query (or few), `long` that of all others. Short rows are split over the
    keys until every multiprocessor has `programs_per_sm` programs, which is as many as its registers hold. No part is
    shorter than `min_segment` keys while that fills the device, and than `balance_segment` once it is full, where only
    rows much longer than the rest are split.
    """

    short: TileShape
    long: TileShape
    programs_per_sm: int = 3
    min_segment: int = 128
    balance_segment: int = 1024
    balance_splits: int = 8
    max_splits: int = 64


@dataclass(slots=True, frozen=True)
class Splits:
    """The third dimension of the short rows' grid, and the least keys that a program takes."""

    count: int
    min_segment: int


def heads_per_tile(group_size: int) -> int:
    """Query heads of one KV head that share a tile, a power of two; larger groups take several tiles."""
    return min(MAX_TILE_HEADS, padded(group_size))


def padded(size: int) -> int:
    """The next power of two."""
    return 1 << (size - 1).bit_length()


def tuning_for(
    capability: tuple[int, int], *, head_dim: int, group_size: int, itemsize: int, cache_itemsize: int | None = None
) -> Tuning:  # fmt: skip
    """For `capability` as (major, minor), heads of `head_dim` elements of `itemsize` bytes."""
    dim, heads = max(MIN_HEAD_DIM, padded(head_dim)), heads_per_tile(group_size)
    choose = _float32 if itemsize == 4 else _of_capability(capability)
    short, long = choose(dim)
    if cache_itemsize == 1 and itemsize > 1:
        # Both forms of a key are in registers while it is converted.
        long = replace(long, keys=min(long.keys, 32))
    return Tuning(short=_at_least(short, heads), long=_at_least(long, heads))


def splits_for(
    tuning: Tuning, *, num_programs: int, num_multiprocessors: int, max_keys: int, bytes_per_split: int
) -> Splits:
    """From what a captured launch keeps: its rows times tiles of heads, and the longest context its tables can hold."""
    # Not one more than run at once: it would have the device for itself.
    wanted = tuning.programs_per_sm * num_multiprocessors // num_programs
    least, count = tuning.min_segment, wanted
    if wanted < tuning.balance_splits:
        least, count = tuning.balance_segment, tuning.balance_splits
    affordable = PARTIALS_LIMIT_BYTES // max(1, bytes_per_split)
    count = min(count, tuning.max_splits, affordable, -(-max_keys // least))
    return Splits(count=max(1, count), min_segment=least)


def _at_least(tile: TileShape, rows: int) -> TileShape:
    if tile.rows >= rows:
        return tile
    return replace(tile, rows=rows, num_warps=8)  # 4 would need more registers than there are


def _of_capability(capability: tuple[int, int]) -> Callable[[int], tuple[TileShape, TileShape]]:
    if capability >= (9, 0):
        return _hopper
    return _ampere if capability == (8, 0) else _small_shared_memory


def _hopper(dim: int) -> tuple[TileShape, TileShape]:
    """9.0 and above: 227 KiB a program, 228 a multiprocessor.

    Short: 3.35 TB/s x ~0.7 us / 132 = 18 KiB have to be in flight per multiprocessor; one stage of two programs is
    that several times over, so occupancy counts more than depth. Long: 128 rows are two 64-row products of a warp group each
    (wgmma); 8 warps hold the 128 x 128 float32 sums in 64 registers a thread.
    """
    if dim > 128:
        return TileShape(MIN_ROWS, 32, 4, 3), TileShape(64, 64, 8, 2)
    if dim > 64:
        return TileShape(MIN_ROWS, 64, 4, 3), TileShape(128, 64, 8, 3)
    return TileShape(MIN_ROWS, 128, 4, 2), TileShape(128, 64, 4, 3)


def _ampere(dim: int) -> tuple[TileShape, TileShape]:
    """8.0: 163 KiB a program, 164 a multiprocessor.

    Short: 2 TB/s x ~0.6 us / 108 = 11 KiB in flight are enough; two programs fit. Long: 128 x 64 with 4 warps is the
    shape that FlashAttention-2 settled on for this GPU; heads above 32 elements need the registers of 8, and with smaller
    ones 8 are given too few.
    """
    if dim > 128:
        return TileShape(MIN_ROWS, 32, 4, 2), TileShape(64, 32, 8, 2)
    if dim > 64:
        return TileShape(MIN_ROWS, 64, 4, 2), TileShape(128, 64, 8, 2)
    if dim > 32:
        return TileShape(MIN_ROWS, 64, 4, 3), TileShape(128, 64, 8, 3)
    return TileShape(MIN_ROWS, 64, 4, 3), TileShape(128, 64, 4, 3)


def _small_shared_memory(dim: int) -> tuple[TileShape, TileShape]:
    """8.6, 8.7 and 8.9: 99 KiB a program, 100 a multiprocessor, so two programs only with at most 49 KiB each.

    Short: 0.3 to 0.9 TB/s over 58 to 142 multiprocessors need 5 KiB in flight. Long: 64 x 64 is square, which wastes least
    on the diagonal and is what FlashAttention-2 takes here for causal attention; with wider heads than 64 the compiler
    needs more than 255 registers for it, so they take half the keys.
    """
    if dim > 128:
        return TileShape(MIN_ROWS, 32, 4, 2), TileShape(64, 32, 8, 2)
    if dim > 64:
        return TileShape(MIN_ROWS, 32, 4, 2), TileShape(64, 32, 4, 2)
    return TileShape(MIN_ROWS, 64, 4, 2), TileShape(64, 64, 4, 2)


def _float32(dim: int) -> tuple[TileShape, TileShape]:
    """For checking, not for speed: no tensor cores in full precision, and at most 99 KiB on every GPU."""
    if dim > 128:
        return TileShape(MIN_ROWS, 32, 4, 1), TileShape(32, 16, 4, 1)
    return TileShape(MIN_ROWS, 32, 4, 1), TileShape(32, 32, 4, 1)
