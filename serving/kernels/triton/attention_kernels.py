# Kernel bodies are Triton's language, not Python's.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
"""The kernels of paged attention. Own memory access and arithmetic; `paged_attention` launches them.

A tile holds some consecutive queries of one row times the query heads that share a KV head (up to 32), so that a key is
loaded once for all of them and even a decode step fills a tile of the matrix units.

Short rows (few queries, as in decode) have one tile each, whose keys are split over programs: program s takes the s-th
part of the row's visible keys, the length of a part being computed from `seq_lens` on the device. Every program leaves its
maximum, sum and accumulator in memory; the last to arrive at the row's counter puts them together, in order, and sets
the counter back to 0. Parts beyond the row's end cost a program that looks at two numbers and ends.

Long rows have tiles of TILE_QUERIES queries. Row b starts at tile `query_start[b] // TILE_QUERIES + b`, which leaves every
row at least the tiles it needs and lets a program find its row by bisection. Last tiles start first: they see most keys.

With SEGMENT > 0 parts begin at multiples of SEGMENT and both kernels fold them in the same order.
"""

from __future__ import annotations

import triton
import triton.language as tl

MERGE_ELEMENTS = 8192
"""Float32 partial sums held at once while they are put together: 64 registers a thread of 4 warps."""

_LOG2_E = tl.constexpr(1.4426950408889634)
_HIDDEN = tl.constexpr(float("-inf"))


@triton.jit
def _find_row(query_start, tile, num_rows, TILE_QUERIES: tl.constexpr):
    """The last row whose first tile is not after `tile`."""
    low = 0
    high = num_rows
    while low < high:
        middle = (low + high) // 2
        if tl.load(query_start + middle) // TILE_QUERIES + middle <= tile:
            low = middle + 1
        else:
            high = middle
    return low - 1


@triton.jit
def _dequantized(stored, like, FP8: tl.constexpr):
    """Cache elements in the type of `like`. "bits": e4m3 moved into float16 is 2^-8 of its value, subnormals included."""
    if FP8 == "native":
        return stored.to(tl.float8e4nv, bitcast=True).to(like.dtype)
    elif FP8 == "bits":
        wide = stored.to(tl.uint16)
        half = (((wide & 0x80) << 8) | ((wide & 0x7F) << 7)).to(tl.float16, bitcast=True)
        return (half * 256.0).to(like.dtype)
    else:
        return stored


@triton.jit
def _rows_of_tile(
    first_row, query_len, kv_head, first_member,
    ROWS: tl.constexpr, TILE_HEADS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """(query within its row, query head, whether there is one) of each row of a tile."""
    tile_rows = tl.arange(0, ROWS)
    queries = first_row + tile_rows // TILE_HEADS
    members = first_member + tile_rows % TILE_HEADS
    return queries, kv_head * GROUP + members, (queries < query_len) & (members < GROUP)


@triton.jit
def _load_queries(
    query, alibi_slopes, tokens, heads, used, head_dims, stride_token, stride_head, HEAD_DIM: tl.constexpr
):  # fmt: skip
    """The tile's queries, zero where there is none, and the slope of each in base 2."""
    at = (tokens.to(tl.int64) * stride_token + heads * stride_head)[:, None] + head_dims[None, :]
    tile = tl.load(query + at, mask=used[:, None] & (head_dims[None, :] < HEAD_DIM), other=0.0)
    slopes = tl.zeros([used.shape[0]], dtype=tl.float32)
    if alibi_slopes is not None:
        slopes = tl.load(alibi_slopes + heads, mask=used, other=0.0).to(tl.float32) * _LOG2_E
    return tile, slopes


@triton.jit
def _load_keys(
    cache, keys, readable, head_dims, like,
    HEAD_DIM: tl.constexpr, HEAD_DIM_PADDED: tl.constexpr, BLOCK_SIZE: tl.constexpr, FP8: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """Keys [D, TILE_KEYS] and values [TILE_KEYS, D]. Without MASKED all of them are read."""
    key_at, value_at, table, key_block, key_token, value_block, value_token = cache
    if MASKED:
        blocks = tl.load(table + keys // BLOCK_SIZE, mask=readable, other=0).to(tl.int64)
    else:
        blocks = tl.load(table + keys // BLOCK_SIZE).to(tl.int64)
    key_at += (blocks * key_block + keys % BLOCK_SIZE * key_token)[None, :] + head_dims[:, None]
    value_at += (blocks * value_block + keys % BLOCK_SIZE * value_token)[:, None] + head_dims[None, :]
    if MASKED:
        key = tl.load(key_at, mask=readable[None, :] & (head_dims[:, None] < HEAD_DIM), other=0)
        value = tl.load(value_at, mask=readable[:, None] & (head_dims[None, :] < HEAD_DIM), other=0)
    elif HEAD_DIM < HEAD_DIM_PADDED:
        key = tl.load(key_at, mask=head_dims[:, None] < HEAD_DIM, other=0)
        value = tl.load(value_at, mask=head_dims[None, :] < HEAD_DIM, other=0)
    else:
        key = tl.load(key_at)
        value = tl.load(value_at)
    return _dequantized(key, like, FP8), _dequantized(value, like, FP8)


@triton.jit
def _nothing(ROWS: tl.constexpr, HEAD_DIM_PADDED: tl.constexpr):
    """Maximum, sum and accumulator of no keys."""
    maximum = tl.full([ROWS], _HIDDEN, dtype=tl.float32)
    return maximum, tl.zeros([ROWS], dtype=tl.float32), tl.zeros([ROWS, HEAD_DIM_PADDED], dtype=tl.float32)


@triton.jit
def _attend(
    softmax, query, slopes, positions, cache, scoring, head_dims, first_tile, first_key, last_key,
    HEAD_DIM: tl.constexpr, HEAD_DIM_PADDED: tl.constexpr, TILE_KEYS: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, ALIBI: tl.constexpr, FP8: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Fold the keys first_key..last_key-1 into `softmax`: maximum, sum and accumulator so far, base 2.

    `first_tile` is a multiple of TILE_KEYS not after `first_key`. Without MASKED every query sees every key of every tile.
    """
    maximum, total, accumulator = softmax
    scale_log2, softcap = scoring
    for tile_start in range(first_tile, last_key, TILE_KEYS):
        keys = tile_start + tl.arange(0, TILE_KEYS)
        readable = (keys >= first_key) & (keys < last_key)
        key, value = _load_keys(
            cache, keys, readable, head_dims, query, HEAD_DIM, HEAD_DIM_PADDED, BLOCK_SIZE, FP8, MASKED
        )
        scores = tl.dot(query, key, input_precision="ieee") * scale_log2
        if SOFTCAP:
            # tanh(x) = 2 * sigmoid(2x) - 1; the scores carry log2(e), the cap does not.
            scores = softcap * _LOG2_E * (2.0 / (1.0 + tl.exp2(-2.0 * scores / softcap)) - 1.0)
        if ALIBI:
            scores += slopes[:, None] * (keys[None, :] - positions[:, None]).to(tl.float32)
        if MASKED:
            visible = readable[None, :] & (keys[None, :] <= positions[:, None])
            if WINDOW > 0:
                visible = visible & (keys[None, :] > positions[:, None] - WINDOW)
            scores = tl.where(visible, scores, _HIDDEN)

        new_maximum = tl.maximum(maximum, tl.max(scores, axis=1))
        # A row that has seen no key yet would subtract infinity from infinity.
        shift = tl.where(new_maximum == _HIDDEN, 0.0, new_maximum)
        weights = tl.exp2(scores - shift[:, None])
        rescale = tl.exp2(maximum - shift)
        total = total * rescale + tl.sum(weights, axis=1)
        accumulator = accumulator * rescale[:, None]
        accumulator = tl.dot(weights.to(value.dtype), value, accumulator, input_precision="ieee")
        maximum = new_maximum
    return maximum, total, accumulator


@triton.jit
def _merge(softmax, other):
    """Softmax over the keys of both. Together with `_nothing` the bits of the other side stay."""
    maximum = tl.maximum(softmax[0], other[0])
    shift = tl.where(maximum == _HIDDEN, 0.0, maximum)
    left = tl.exp2(softmax[0] - shift)
    right = tl.exp2(other[0] - shift)
    return (
        maximum,
        softmax[1] * left + other[1] * right,
        softmax[2] * left[:, None] + other[2] * right[:, None],
    )


@triton.jit
def _finish(
    output, softmax, tokens, heads, used, head_dims, sinks, value_scale, kv_head, stride_token, stride_head,
    HEAD_DIM: tl.constexpr, VALUE_SCALES: tl.constexpr,
):  # fmt: skip
    """Divide by the sum and store the rows that are `used`."""
    maximum, total, accumulator = softmax
    if sinks is not None:
        sink = tl.load(sinks + heads, mask=used, other=0.0).to(tl.float32) * _LOG2_E
        highest = tl.maximum(maximum, sink)
        rescale = tl.exp2(maximum - highest)
        total = total * rescale + tl.exp2(sink - highest)
        accumulator = accumulator * rescale[:, None]
    # Padding rows of the tile may have seen no key; they are not stored.
    result = accumulator / tl.where(total == 0.0, 1.0, total)[:, None]
    if VALUE_SCALES > 0:
        result = result * tl.load(value_scale + kv_head % VALUE_SCALES)
    at = (tokens.to(tl.int64) * stride_token + heads * stride_head)[:, None] + head_dims[None, :]
    tl.store(
        output + at, result.to(output.dtype.element_ty), mask=used[:, None] & (head_dims[None, :] < HEAD_DIM)
    )


@triton.jit
def _cache_of_head(
    key_cache, value_cache, table, kv_head, key_block, key_token, key_head, value_block, value_token, value_head
):  # fmt: skip
    kv_head = kv_head.to(tl.int64)
    key_at, value_at = key_cache + kv_head * key_head, value_cache + kv_head * value_head
    return key_at, value_at, table, key_block, key_token, value_block, value_token


@triton.jit
def _scoring(scale_log2, softcap, key_scale, kv_head, KEY_SCALES: tl.constexpr):
    if KEY_SCALES > 0:
        scale_log2 = scale_log2 * tl.load(key_scale + kv_head % KEY_SCALES)
    return scale_log2, softcap


@triton.jit
def _parts_of_row(
    num_computed, last_key, num_splits, min_segment,
    TILE_KEYS: tl.constexpr, WINDOW: tl.constexpr, SEGMENT: tl.constexpr,
):  # fmt: skip
    """(first visible key, where the first part begins, keys of a part, number of parts)."""
    ALIGNMENT: tl.constexpr = SEGMENT if SEGMENT > 0 else TILE_KEYS
    first_key = 0
    if WINDOW > 0:
        first_key = tl.maximum(num_computed - WINDOW + 1, 0)
    origin = first_key // ALIGNMENT * ALIGNMENT
    length = SEGMENT
    if SEGMENT == 0:
        length = tl.maximum(tl.cdiv(last_key - origin, num_splits), min_segment)
        length = tl.cdiv(length, TILE_KEYS) * TILE_KEYS
    return first_key, origin, length, tl.cdiv(last_key - origin, length)


@triton.jit
def _leave_part(
    partials, partial_stats, softmax, owners, split, num_splits, used, head_dims, HEAD_DIM: tl.constexpr
):  # fmt: skip
    at = ((owners * num_splits + split) * HEAD_DIM)[:, None] + head_dims[None, :]
    tl.store(partials + at, softmax[2], mask=used[:, None] & (head_dims[None, :] < HEAD_DIM))
    tl.store(partial_stats + owners * 2 * num_splits + split, softmax[0], mask=used)
    tl.store(partial_stats + (owners * 2 + 1) * num_splits + split, softmax[1], mask=used)


@triton.jit
def _gather_parts(
    partials, partial_stats, owners, num_parts, num_splits, used, head_dims,
    ROWS: tl.constexpr, HEAD_DIM: tl.constexpr, HEAD_DIM_PADDED: tl.constexpr, MERGED: tl.constexpr,
):  # fmt: skip
    """Put all parts together, MERGED at a time. Loads go past the first-level cache: it knows no other program's stores."""
    softmax = _nothing(ROWS, HEAD_DIM_PADDED)
    for first_part in range(0, num_parts, MERGED):
        parts = first_part + tl.arange(0, MERGED)
        present = used[:, None] & (parts < num_parts)[None, :]
        stats_at = partial_stats + (owners * 2 * num_splits)[:, None] + parts[None, :]
        maxima = tl.load(stats_at, mask=present, other=_HIDDEN, cache_modifier=".cg")
        totals = tl.load(stats_at + num_splits, mask=present, other=0.0, cache_modifier=".cg")
        sums_at = ((owners * num_splits)[:, None] + parts[None, :])[:, :, None] * HEAD_DIM
        sums = tl.load(
            partials + sums_at + head_dims[None, None, :],
            mask=present[:, :, None] & (head_dims < HEAD_DIM)[None, None, :], other=0.0, cache_modifier=".cg",
        )  # fmt: skip
        maximum = tl.max(maxima, axis=1)
        shares = tl.exp2(maxima - tl.where(maximum == _HIDDEN, 0.0, maximum)[:, None])
        total, accumulator = tl.sum(totals * shares, axis=1), tl.sum(sums * shares[:, :, None], axis=1)
        softmax = _merge(softmax, (maximum, total, accumulator))
    return softmax


# What changes from step to step; variants for 1 and for multiples of 16 would be compiled in the middle of serving.
_VARYING = ["num_rows", "table_stride", "num_splits", "min_segment"]


@triton.jit(do_not_specialize=_VARYING)
def short_rows_kernel(
    output, query, key_cache, value_cache, block_tables, seq_lens, query_start,
    partials, partial_stats, counters, alibi_slopes, sinks, key_scale, value_scale,
    scale_log2, softcap, num_splits, min_segment,
    query_stride_token, query_stride_head, output_stride_token, output_stride_head,
    key_stride_block, key_stride_token, key_stride_head,
    value_stride_block, value_stride_token, value_stride_head, table_stride,
    HEAD_DIM: tl.constexpr, HEAD_DIM_PADDED: tl.constexpr, GROUP: tl.constexpr, TILE_HEADS: tl.constexpr,
    ROWS: tl.constexpr, SHORT_QUERIES: tl.constexpr, TILE_KEYS: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, SEGMENT: tl.constexpr, MERGED: tl.constexpr,
    FP8: tl.constexpr, KEY_SCALES: tl.constexpr, VALUE_SCALES: tl.constexpr,
):  # fmt: skip
    """Grid (rows, tiles of heads, splits); rows of more than SHORT_QUERIES queries are left to the other kernel.

    partials [rows * SHORT_QUERIES, Hq, splits, HEAD_DIM] and partial_stats [rows * SHORT_QUERIES, Hq, 2, splits] float32
    need not be initialized.
    """
    TILES_PER_GROUP: tl.constexpr = (GROUP + TILE_HEADS - 1) // TILE_HEADS
    row = tl.program_id(0)
    split = tl.program_id(2)
    row_start = tl.load(query_start + row)
    query_len = tl.load(query_start + row + 1) - row_start
    if (query_len == 0) | (query_len > SHORT_QUERIES):
        return
    last_key = tl.load(seq_lens + row)
    num_computed = last_key - query_len
    first_key, origin, length, num_parts = _parts_of_row(
        num_computed, last_key, num_splits, min_segment, TILE_KEYS, WINDOW, SEGMENT
    )
    if split >= num_parts:
        return

    kv_head = tl.program_id(1) // TILES_PER_GROUP
    first_member = tl.program_id(1) % TILES_PER_GROUP * TILE_HEADS
    head_dims = tl.arange(0, HEAD_DIM_PADDED)
    queries, heads, used = _rows_of_tile(0, query_len, kv_head, first_member, ROWS, TILE_HEADS, GROUP)
    tile, slopes = _load_queries(
        query, alibi_slopes, row_start + queries, heads, used, head_dims, query_stride_token, query_stride_head, HEAD_DIM
    )  # fmt: skip
    cache = _cache_of_head(
        key_cache, value_cache, block_tables + row.to(tl.int64) * table_stride, kv_head,
        key_stride_block, key_stride_token, key_stride_head, value_stride_block, value_stride_token, value_stride_head,
    )  # fmt: skip
    part = origin + split * length
    softmax = _attend(
        _nothing(ROWS, HEAD_DIM_PADDED), tile, slopes, num_computed + queries, cache,
        _scoring(scale_log2, softcap, key_scale, kv_head, KEY_SCALES), head_dims,
        part, tl.maximum(part, first_key), tl.minimum(part + length, last_key),
        HEAD_DIM, HEAD_DIM_PADDED, TILE_KEYS, BLOCK_SIZE, WINDOW, SOFTCAP, alibi_slopes is not None, FP8, True,
    )  # fmt: skip
    _put_together(
        softmax, output, partials, partial_stats, counters, row, row_start, query_len, kv_head, first_member, head_dims,
        split, num_parts, num_splits, sinks, value_scale, output_stride_token, output_stride_head,
        HEAD_DIM, HEAD_DIM_PADDED, GROUP, TILE_HEADS, ROWS, SHORT_QUERIES, MERGED, VALUE_SCALES,
    )  # fmt: skip


@triton.jit
def _put_together(
    softmax, output, partials, partial_stats, counters, row, row_start, query_len, kv_head, first_member, head_dims,
    split, num_parts, num_splits, sinks, value_scale, output_stride_token, output_stride_head,
    HEAD_DIM: tl.constexpr, HEAD_DIM_PADDED: tl.constexpr, GROUP: tl.constexpr, TILE_HEADS: tl.constexpr,
    ROWS: tl.constexpr, SHORT_QUERIES: tl.constexpr, MERGED: tl.constexpr, VALUE_SCALES: tl.constexpr,
):  # fmt: skip
    """Leave this part for the last program of the row's tile to arrive, or be it. The only part of a row is the result."""
    queries, heads, used = _rows_of_tile(0, query_len, kv_head, first_member, ROWS, TILE_HEADS, GROUP)
    if num_parts == 1:
        _finish(
            output, softmax, row_start + queries, heads, used, head_dims, sinks, value_scale, kv_head,
            output_stride_token, output_stride_head, HEAD_DIM, VALUE_SCALES,
        )  # fmt: skip
    else:
        num_heads = tl.num_programs(1) // ((GROUP + TILE_HEADS - 1) // TILE_HEADS) * GROUP
        owners = (row * SHORT_QUERIES + queries).to(tl.int64) * num_heads + heads
        _leave_part(partials, partial_stats, softmax, owners, split, num_splits, used, head_dims, HEAD_DIM)
        # All threads have stored before one of them tells so: the barrier orders the program, the atomic the device.
        tl.debug_barrier()
        counter = counters + row * tl.num_programs(1) + tl.program_id(1)
        if tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == num_parts - 1:
            tl.store(counter, 0)
            _put_all_together(
                output, partials, partial_stats, row, row_start, query_len, kv_head, first_member, head_dims, num_heads,
                num_parts, num_splits, sinks, value_scale, output_stride_token, output_stride_head,
                HEAD_DIM, HEAD_DIM_PADDED, GROUP, TILE_HEADS, SHORT_QUERIES, MERGED, VALUE_SCALES,
            )  # fmt: skip


@triton.jit
def _put_all_together(
    output, partials, partial_stats, row, row_start, query_len, kv_head, first_member, head_dims, num_heads,
    num_parts, num_splits, sinks, value_scale, output_stride_token, output_stride_head,
    HEAD_DIM: tl.constexpr, HEAD_DIM_PADDED: tl.constexpr, GROUP: tl.constexpr, TILE_HEADS: tl.constexpr,
    SHORT_QUERIES: tl.constexpr, MERGED: tl.constexpr, VALUE_SCALES: tl.constexpr,
):  # fmt: skip
    """Without the rows that pad the tile for the matrix units."""
    ROWS: tl.constexpr = SHORT_QUERIES * TILE_HEADS
    queries, heads, used = _rows_of_tile(0, query_len, kv_head, first_member, ROWS, TILE_HEADS, GROUP)
    owners = (row * SHORT_QUERIES + queries).to(tl.int64) * num_heads + heads
    softmax = _gather_parts(
        partials, partial_stats, owners, num_parts, num_splits, used, head_dims, ROWS, HEAD_DIM, HEAD_DIM_PADDED, MERGED
    )  # fmt: skip
    _finish(
        output, softmax, row_start + queries, heads, used, head_dims, sinks, value_scale, kv_head,
        output_stride_token, output_stride_head, HEAD_DIM, VALUE_SCALES,
    )  # fmt: skip


@triton.jit
def _attend_in_segments(
    query, slopes, positions, cache, scoring, head_dims, first_key, last_key,
    ROWS: tl.constexpr, HEAD_DIM: tl.constexpr, HEAD_DIM_PADDED: tl.constexpr, TILE_KEYS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, SEGMENT: tl.constexpr,
    ALIBI: tl.constexpr, FP8: tl.constexpr,
):  # fmt: skip
    """As the short rows' parts, one after the other."""
    softmax = _nothing(ROWS, HEAD_DIM_PADDED)
    for part in range(first_key // SEGMENT * SEGMENT, last_key, SEGMENT):
        in_part = _attend(
            _nothing(ROWS, HEAD_DIM_PADDED), query, slopes, positions, cache, scoring, head_dims,
            part, tl.maximum(part, first_key), tl.minimum(part + SEGMENT, last_key),
            HEAD_DIM, HEAD_DIM_PADDED, TILE_KEYS, BLOCK_SIZE, WINDOW, SOFTCAP, ALIBI, FP8, True,
        )  # fmt: skip
        softmax = _merge(softmax, in_part)
    return softmax


@triton.jit
def _attend_in_one(
    query, slopes, positions, cache, scoring, head_dims, first_key, last_key, lowest_position,
    ROWS: tl.constexpr, HEAD_DIM: tl.constexpr, HEAD_DIM_PADDED: tl.constexpr, TILE_KEYS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, ALIBI: tl.constexpr, FP8: tl.constexpr,
):  # fmt: skip
    """Tiles that every query sees whole need no mask: all but those at the window's edge and at the diagonal."""
    softmax = _nothing(ROWS, HEAD_DIM_PADDED)
    seen_from = first_key // TILE_KEYS * TILE_KEYS
    if WINDOW > 0:
        first_tile = seen_from
        seen_from = tl.maximum(tl.cdiv(tl.maximum(last_key - WINDOW, 0), TILE_KEYS) * TILE_KEYS, first_tile)
        softmax = _attend(
            softmax, query, slopes, positions, cache, scoring, head_dims,
            first_tile, first_key, tl.minimum(seen_from, last_key),
            HEAD_DIM, HEAD_DIM_PADDED, TILE_KEYS, BLOCK_SIZE, WINDOW, SOFTCAP, ALIBI, FP8, True,
        )  # fmt: skip
    seen_until = tl.maximum((lowest_position + 1) // TILE_KEYS * TILE_KEYS, seen_from)
    softmax = _attend(
        softmax, query, slopes, positions, cache, scoring, head_dims, seen_from, seen_from, seen_until,
        HEAD_DIM, HEAD_DIM_PADDED, TILE_KEYS, BLOCK_SIZE, WINDOW, SOFTCAP, ALIBI, FP8, False,
    )  # fmt: skip
    return _attend(
        softmax, query, slopes, positions, cache, scoring, head_dims, seen_until, seen_until, last_key,
        HEAD_DIM, HEAD_DIM_PADDED, TILE_KEYS, BLOCK_SIZE, WINDOW, SOFTCAP, ALIBI, FP8, True,
    )  # fmt: skip


@triton.jit(do_not_specialize=_VARYING)
def long_rows_kernel(
    output, query, key_cache, value_cache, block_tables, seq_lens, query_start,
    alibi_slopes, sinks, key_scale, value_scale, scale_log2, softcap, num_rows,
    query_stride_token, query_stride_head, output_stride_token, output_stride_head,
    key_stride_block, key_stride_token, key_stride_head,
    value_stride_block, value_stride_token, value_stride_head, table_stride,
    HEAD_DIM: tl.constexpr, HEAD_DIM_PADDED: tl.constexpr, GROUP: tl.constexpr, TILE_HEADS: tl.constexpr,
    TILE_QUERIES: tl.constexpr, SHORT_QUERIES: tl.constexpr, TILE_KEYS: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, SEGMENT: tl.constexpr,
    FP8: tl.constexpr, KEY_SCALES: tl.constexpr, VALUE_SCALES: tl.constexpr,
):  # fmt: skip
    """Grid (tiles of queries, tiles of heads); rows of SHORT_QUERIES queries or fewer are left to the other kernel."""
    ROWS: tl.constexpr = TILE_QUERIES * TILE_HEADS
    TILES_PER_GROUP: tl.constexpr = (GROUP + TILE_HEADS - 1) // TILE_HEADS
    tile_index = tl.num_programs(0) - 1 - tl.program_id(0)
    kv_head = tl.program_id(1) // TILES_PER_GROUP
    first_member = tl.program_id(1) % TILES_PER_GROUP * TILE_HEADS
    row = _find_row(query_start, tile_index, num_rows, TILE_QUERIES)
    row_start = tl.load(query_start + row)
    query_len = tl.load(query_start + row + 1) - row_start
    first_query = (tile_index - (row_start // TILE_QUERIES + row)) * TILE_QUERIES
    if (query_len <= SHORT_QUERIES) | (first_query >= query_len):
        return
    num_computed = tl.load(seq_lens + row) - query_len
    head_dims = tl.arange(0, HEAD_DIM_PADDED)
    queries, heads, used = _rows_of_tile(
        first_query, query_len, kv_head, first_member, ROWS, TILE_HEADS, GROUP
    )
    tile, slopes = _load_queries(
        query, alibi_slopes, row_start + queries, heads, used, head_dims, query_stride_token, query_stride_head, HEAD_DIM
    )  # fmt: skip
    cache = _cache_of_head(
        key_cache, value_cache, block_tables + row.to(tl.int64) * table_stride, kv_head,
        key_stride_block, key_stride_token, key_stride_head, value_stride_block, value_stride_token, value_stride_head,
    )  # fmt: skip
    scoring = _scoring(scale_log2, softcap, key_scale, kv_head, KEY_SCALES)
    lowest = num_computed + first_query
    last_key = num_computed + tl.minimum(first_query + TILE_QUERIES, query_len)
    first_key = 0
    if WINDOW > 0:
        first_key = tl.maximum(lowest - WINDOW + 1, 0)
    if SEGMENT > 0:
        softmax = _attend_in_segments(
            tile, slopes, num_computed + queries, cache, scoring, head_dims, first_key, last_key, ROWS, HEAD_DIM,
            HEAD_DIM_PADDED, TILE_KEYS, BLOCK_SIZE, WINDOW, SOFTCAP, SEGMENT, alibi_slopes is not None, FP8,
        )  # fmt: skip
    else:
        softmax = _attend_in_one(
            tile, slopes, num_computed + queries, cache, scoring, head_dims, first_key, last_key, lowest, ROWS, HEAD_DIM,
            HEAD_DIM_PADDED, TILE_KEYS, BLOCK_SIZE, WINDOW, SOFTCAP, alibi_slopes is not None, FP8,
        )  # fmt: skip
    _finish(
        output, softmax, row_start + queries, heads, used, head_dims, sinks, value_scale, kv_head,
        output_stride_token, output_stride_head, HEAD_DIM, VALUE_SCALES,
    )  # fmt: skip
