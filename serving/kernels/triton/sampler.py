# Kernel bodies are Triton's language, not Python's.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
"""Choosing tokens on the GPU, in Triton: launches whose number and shapes depend on nothing but R, V and which filters any
row uses, so that they can be captured. Knows rows of logits and their parameters as tensors, not requests.

Rows are cut into tiles, each in a program of its own, and what tiles find is added up in a fixed order: no atomics, no sort
of the vocabulary. Top-k and top-p are searches for the key (a float's bits, ordered as integers) of the last token that
stays: every launch tries _FAN keys at once. Probabilities are float64, as in the torch twin (serving.sampling.sampler).
Logits are only read. Nothing here waits for the device.
"""

from __future__ import annotations

import triton
import triton.language as tl

TILE = 2048
CHUNK = 128
FAN = 32
LEVELS = 7  # 5 bits each: all 32 of a key
SHIFTS = (27, 22, 17, 12, 7, 2, 0)
"""Bits below those that each level finds. The last level overlaps the one before."""
LATER = 2
"""Levels from this one on are the same kernel."""
TOP_K, TOP_P, TOP_N = 0, 1, 2

# Columns of the parameters [R, 9] int64; the doubles are stored as their bits.
TEMPERATURE, TOP_P_SHARE, MIN_P_LOG, TOP_K_COUNT, SEED, POSITION, RAW, MASK, TOP_N_COUNT = range(9)


@triton.jit
def _key_of(value):
    """Order of floats as order of integers in [0, 2^32)."""
    bits = (value + 0.0).to(tl.int32, bitcast=True).to(tl.int64)
    return tl.where(bits >= 0, bits + 2147483648, -1 - bits)


@triton.jit
def _value_of(key):
    bits = tl.where(key >= 2147483648, key - 2147483648, -1 - key)
    return bits.to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def _real(lines, row, COLUMN: tl.constexpr):
    return tl.load(lines + row * 9 + COLUMN).to(tl.float64, bitcast=True)


@triton.jit
def _load_logits(
    logits, lines, bits, row, tokens, stride, vocab_size, num_words, RAW_ROW: tl.constexpr, HAS_MASK: tl.constexpr
):  # fmt: skip
    """Logits as they came, or masked and divided by the temperature; -inf beyond the vocabulary."""
    there = tokens < vocab_size
    values = tl.load(logits + row * stride + tokens, mask=there, other=float("-inf")).to(tl.float32)
    if not RAW_ROW:
        if HAS_MASK:
            mask = tl.load(lines + row * 9 + 7)
            covered = there & (tokens < num_words * 32)
            words = tl.load(bits + mask * num_words + tokens // 32, mask=covered & (mask >= 0), other=0)
            permitted = ((words >> (tokens % 32).to(tl.int32)) & 1) != 0
            values = tl.where(permitted | (mask < 0), values, float("-inf"))
        temperature = _real(lines, row, 0).to(tl.float32)
        values = tl.div_rn(values, tl.where(temperature > 0.0, temperature, 1.0) + tl.zeros_like(values))
    return values


@triton.jit(do_not_specialize=["num_words"])
def peaks_kernel(
    best, best_id, total, raw_best, raw_total, logits, lines, bits, stride, vocab_size, num_words, num_tiles,
    TILE: tl.constexpr, HAS_MASK: tl.constexpr, WANTS_RAW: tl.constexpr,
):  # fmt: skip
    """Per tile: the highest logit, its first id, and the sum of exponentials relative to it. Grid (R, tiles)."""
    row = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    tokens = tile * TILE + tl.arange(0, TILE)
    values = _load_logits(logits, lines, bits, row, tokens, stride, vocab_size, num_words, False, HAS_MASK)
    highest = tl.max(values, axis=0)
    shift = tl.where(highest == float("-inf"), 0.0, highest)
    place = row * num_tiles + tile
    tl.store(best + place, highest)
    tl.store(best_id + place, tile * TILE + tl.argmax(values, axis=0))
    tl.store(total + place, tl.sum(tl.exp(values - shift), axis=0))
    if WANTS_RAW:
        values = _load_logits(logits, lines, bits, row, tokens, stride, vocab_size, num_words, True, HAS_MASK)
        highest = tl.max(values, axis=0)
        shift = tl.where(highest == float("-inf"), 0.0, highest)
        tl.store(raw_best + place, highest)
        tl.store(raw_total + place, tl.sum(tl.exp(values - shift), axis=0))


@triton.jit
def _row_best(best, row, num_tiles, TILES_PADDED: tl.constexpr):
    tiles = tl.arange(0, TILES_PADDED)
    found = tl.load(best + row * num_tiles + tiles, mask=tiles < num_tiles, other=float("-inf"))
    return tl.max(found, axis=0)


@triton.jit
def _sums_over_tiles(partials, row, num_tiles, TILES_PADDED: tl.constexpr, FAN: tl.constexpr):
    """[FAN]: what the tiles found at each tried key."""
    tiles = tl.arange(0, TILES_PADDED)
    fan = tl.arange(0, FAN)
    found = tl.load(
        partials + (row * num_tiles + tiles[:, None]) * FAN + fan[None, :],
        mask=(tiles < num_tiles)[:, None], other=0.0,
    )  # fmt: skip
    return tl.sum(found, axis=0)


@triton.jit
def _target(lines, whole, row, MODE: tl.constexpr):
    """What tokens from the searched key on have to reach; 0: the row does not ask."""
    temperature = _real(lines, row, 0)
    if MODE == 0:
        return tl.where(temperature > 0.0, tl.load(lines + row * 9 + 3), 0).to(tl.float64)
    if MODE == 1:
        share = _real(lines, row, 1)
        return tl.where((temperature > 0.0) & (share < 1.0), share * whole, 0.0)
    return tl.load(lines + row * 9 + 8).to(tl.float64)


@triton.jit
def _narrowed(partials, key, whole, lines, row, num_tiles, shift,
              MODE: tl.constexpr, TILES_PADDED: tl.constexpr, FAN: tl.constexpr):  # fmt: skip
    """The last of the tried keys at which the target is reached."""
    sums = _sums_over_tiles(partials, row, num_tiles, TILES_PADDED, FAN)
    reached = (sums >= _target(lines, whole, row, MODE)).to(tl.int64)
    step = tl.full([1], 1, tl.int64) << shift
    return key + tl.max(tl.maximum(tl.sum(reached, axis=0) - 1, 0) * step, axis=0)


@triton.jit(do_not_specialize=["num_words", "shift", "shift_before"])
def search_kernel(
    partials_out, keys_out, whole, partials, keys, best, kept_key, limits,
    logits, lines, bits, stride, vocab_size, num_words, num_tiles, shift, shift_before,
    MODE: tl.constexpr, LEVEL: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr, FAN: tl.constexpr,
    TILES_PADDED: tl.constexpr, HAS_MASK: tl.constexpr, WANTS_RAW: tl.constexpr,
):  # fmt: skip
    """One level of the search for a row's last key; LEVEL is 0, 1 or LATER. Grid (R, tiles). Per tile and tried key: how
    many tokens (or how much mass) have that key or a higher one. `kept_key` [R] bounds top-p by what top-k left, and
    `limits` [R] top-n by all filters."""
    row = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    fan = tl.arange(0, FAN)
    key = tl.zeros([], tl.int64)
    mass_of_all = tl.zeros([], tl.float64)
    if LEVEL > 0:
        if MODE == 1:
            if LEVEL == 1:
                sums = _sums_over_tiles(partials, row, num_tiles, TILES_PADDED, FAN)
                mass_of_all = tl.sum(tl.where(fan == 0, sums, 0.0), axis=0)
                if tile == 0:
                    tl.store(whole + row, mass_of_all)
            else:
                mass_of_all = tl.load(whole + row)
        first = tl.load(keys + row)
        key = _narrowed(
            partials, first, mass_of_all, lines, row, num_tiles, shift_before, MODE, TILES_PADDED, FAN
        )
    if tile == 0:
        tl.store(keys_out + row, key)
    place = (row * num_tiles + tile) * FAN
    asks = _target(lines, tl.full([], 1.0, tl.float64), row, MODE) > 0.0
    if not asks:
        return
    tried = key + (fan.to(tl.int64) << shift)
    highest = _row_best(best, row, num_tiles, TILES_PADDED).to(tl.float64)
    sums = tl.zeros([CHUNK, FAN], tl.float64)
    least = tl.zeros([], tl.int64)
    raw = tl.load(lines + row * 9 + 6) != 0
    if MODE == 1:
        least = tl.load(kept_key + row)
    if MODE == 2:
        least = tl.where(raw, 0, tl.load(limits + row))
    for start in range(0, TILE, CHUNK):
        tokens = tile * TILE + start + tl.arange(0, CHUNK)
        values = _load_logits(
            logits, lines, bits, row, tokens, stride, vocab_size, num_words, False, HAS_MASK
        )
        if MODE == 2 and WANTS_RAW:
            own = _load_logits(
                logits, lines, bits, row, tokens, stride, vocab_size, num_words, True, HAS_MASK
            )
            values = tl.where(raw, own, values)
        found = _key_of(values)
        weight = tl.full([CHUNK], 1.0, tl.float64)
        if MODE == 1:
            weight = tl.exp(values.to(tl.float64) - highest)
        counted = (values > float("-inf")) & (found >= least)
        weight = tl.where(counted, weight, 0.0)
        sums += tl.where(found[:, None] >= tried[None, :], weight[:, None], 0.0)
    tl.store(partials_out + place + fan, tl.sum(sums, axis=0))


@triton.jit
def finish_kernel(
    found, partials, keys, whole, lines, num_tiles,
    MODE: tl.constexpr, FAN: tl.constexpr, TILES_PADDED: tl.constexpr,
):  # fmt: skip
    """The key that the last level leaves, 0 where the row does not ask. Grid (R,)."""
    row = tl.program_id(0).to(tl.int64)
    mass_of_all = tl.zeros([], tl.float64)
    if MODE == 1:
        mass_of_all = tl.load(whole + row)
    asks = _target(lines, tl.full([], 1.0, tl.float64), row, MODE) > 0.0
    key = tl.zeros([], tl.int64)
    if asks:
        first = tl.load(keys + row)
        key = _narrowed(partials, first, mass_of_all, lines, row, num_tiles, 0, MODE, TILES_PADDED, FAN)
    tl.store(found + row, key)


@triton.jit
def _least_key(top_k_key, top_p_key, lines, highest, row):
    """Lower keys are filtered out; the key of top-p itself may be cut among its equals."""
    floor = highest.to(tl.float64) + _real(lines, row, 2)
    # The first float that is not below the floor.
    narrow = floor.to(tl.float32)
    key = _key_of(narrow) + (narrow.to(tl.float64) < floor).to(tl.int64)
    key = tl.where((narrow == float("-inf")) | (_real(lines, row, 0) == 0.0), 0, key)
    return tl.maximum(tl.maximum(tl.load(top_k_key + row), tl.load(top_p_key + row)), key)


@triton.jit(do_not_specialize=["num_words"])
def mass_kernel(
    mass, ties, least, best, top_k_key, top_p_key, logits, lines, bits, stride, vocab_size, num_words, num_tiles,
    TILE: tl.constexpr, TILES_PADDED: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    """Per tile: the mass that filters leave, tokens with top-p's own key apart, and their number. Grid (R, tiles)."""
    row = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    highest = _row_best(best, row, num_tiles, TILES_PADDED)
    key = _least_key(top_k_key, top_p_key, lines, highest, row)
    if tile == 0:
        tl.store(least + row, key)
    if _real(lines, row, 0) == 0.0:
        return
    tokens = tile * TILE + tl.arange(0, TILE)
    values = _load_logits(logits, lines, bits, row, tokens, stride, vocab_size, num_words, False, HAS_MASK)
    found = _key_of(values)
    there = (values > float("-inf")) & (found >= key)
    tied = there & (found == tl.load(top_p_key + row))
    weight = tl.exp(values.to(tl.float64) - highest.to(tl.float64))
    place = row * num_tiles + tile
    tl.store(mass + place, tl.sum(tl.where(there & (tied == 0), weight, 0.0), axis=0))
    tl.store(ties + place, tl.sum(tied.to(tl.int64), axis=0))


@triton.jit
def _mixed(x):
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def _uniform(lines, row):
    """The twin is serving.sampling.uniform, with the purpose SAMPLE."""
    at = tl.arange(0, 1)
    seed = tl.load(lines + row * 9 + 4 + at).to(tl.uint64, bitcast=True)
    position = tl.load(lines + row * 9 + 5 + at).to(tl.uint64, bitcast=True)
    state = _mixed(seed + 0x9E3779B97F4A7C15)
    state = _mixed((state ^ position) + 0x9E3779B97F4A7C15)
    state = _mixed(state + 0x9E3779B97F4A7C15)
    return tl.max((state >> 11).to(tl.int64).to(tl.float64) * (1.0 / 9007199254740992.0), axis=0)


@triton.jit
def _tied_left(mass, ties, whole, top_p_key, lines, highest, row, num_tiles, TILES_PADDED: tl.constexpr):
    """How many tokens with top-p's own key stay, the first ones in id order, and what each weighs."""
    tiles = tl.arange(0, TILES_PADDED)
    place = row * num_tiles + tiles
    above = tl.sum(tl.load(mass + place, mask=tiles < num_tiles, other=0.0), axis=0)
    key = tl.load(top_p_key + row)
    weight = tl.exp(_value_of(key).to(tl.float64) - highest.to(tl.float64))
    weight = tl.where(key > 0, weight, 0.0)
    missing = _real(lines, row, 1) * tl.load(whole + row) - above
    count = tl.ceil(missing / tl.where(weight > 0.0, weight, 1.0))
    return tl.where(key > 0, tl.maximum(count, 1.0), 0.0), weight


@triton.jit
def _drawn(
    mass, ties, least, whole, top_p_key, logits, lines, bits, highest, row, stride, vocab_size, num_words, num_tiles,
    TILE: tl.constexpr, TILES_PADDED: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    """Inverse CDF, in id order: the tile first, then the token in it. Also what `_tied_left` counts, and the mass of all."""
    tiles = tl.arange(0, TILES_PADDED)
    there = tiles < num_tiles
    place = row * num_tiles + tiles
    left, weight = _tied_left(mass, ties, whole, top_p_key, lines, highest, row, num_tiles, TILES_PADDED)
    tied = tl.load(ties + place, mask=there, other=0).to(tl.float64)
    tied_before = tl.cumsum(tied, axis=0) - tied
    tied_here = tl.minimum(tl.maximum(left - tied_before, 0.0), tied)
    masses = tl.load(mass + place, mask=there, other=0.0) + tied_here * weight
    reached = tl.cumsum(masses, axis=0)
    mass_left = tl.sum(masses, axis=0)
    target = _uniform(lines, row) * mass_left
    last = tl.max(tl.where(masses > 0.0, tiles, 0), axis=0)
    tile = tl.minimum(tl.sum((there & (reached <= target)).to(tl.int32), axis=0), last)
    start = tl.sum(tl.where(tiles == tile, reached - masses, 0.0), axis=0)
    first_tie = tl.sum(tl.where(tiles == tile, tied_before, 0.0), axis=0)
    tokens = tile * TILE + tl.arange(0, TILE)
    values = _load_logits(logits, lines, bits, row, tokens, stride, vocab_size, num_words, False, HAS_MASK)
    found = _key_of(values)
    keep = (values > float("-inf")) & (found >= tl.load(least + row))
    equal = keep & (found == tl.load(top_p_key + row))
    rank = first_tie + tl.cumsum(equal.to(tl.int32), axis=0).to(tl.float64)
    keep = keep & ((equal == 0) | (rank <= left))
    weights = tl.where(keep, tl.exp(values.to(tl.float64) - highest.to(tl.float64)), 0.0)
    passed = tl.sum(((start + tl.cumsum(weights, axis=0)) <= target).to(tl.int32), axis=0)
    final = tl.max(tl.where(weights > 0.0, tokens, 0), axis=0)
    return tl.minimum(tile * TILE + passed, final).to(tl.int64), left, mass_left


@triton.jit(do_not_specialize=["num_words"])
def draw_kernel(
    ids, logprobs, normalizers, tied_left, best, best_id, total, raw_best, raw_total, mass, ties, least, whole, top_p_key,
    logits, lines, bits, stride, vocab_size, num_words, num_tiles,
    TILE: tl.constexpr, TILES_PADDED: tl.constexpr, HAS_MASK: tl.constexpr, WANTS_RAW: tl.constexpr, DRAWS: tl.constexpr,
):  # fmt: skip
    """The token of each row, its log-probability, and what to subtract from other logits for theirs. Grid (R,)."""
    row = tl.program_id(0).to(tl.int64)
    tiles = tl.arange(0, TILES_PADDED)
    there = tiles < num_tiles
    place = row * num_tiles + tiles
    bests = tl.load(best + place, mask=there, other=float("-inf"))
    highest = tl.max(bests, axis=0)
    winner = tl.argmax(bests, axis=0)
    chosen = tl.load(best_id + row * num_tiles + winner).to(tl.int64)
    totals = tl.load(total + place, mask=there, other=0.0).to(tl.float64)
    sum_of_all = tl.sum(tl.where(totals > 0.0, totals * tl.exp(bests.to(tl.float64) - highest), 0.0), axis=0)
    if DRAWS:
        drawn, left, mass_left = _drawn(
            mass, ties, least, whole, top_p_key, logits, lines, bits, highest, row, stride, vocab_size, num_words,
            num_tiles, TILE, TILES_PADDED, HAS_MASK,
        )  # fmt: skip
        draws = _real(lines, row, 0) > 0.0
        tl.store(tied_left + row, left)
        chosen = tl.where(draws, drawn, chosen)
        sum_of_all = tl.where(draws, mass_left, sum_of_all)
    at = chosen + tl.arange(0, 1)
    own = _load_logits(logits, lines, bits, row, at, stride, vocab_size, num_words, False, HAS_MASK)
    normalizer = highest.to(tl.float64) + tl.log(sum_of_all)
    if WANTS_RAW:
        raw = tl.load(lines + row * 9 + 6) != 0
        bests = tl.load(raw_best + place, mask=there, other=float("-inf"))
        totals = tl.load(raw_total + place, mask=there, other=0.0).to(tl.float64)
        highest = tl.max(bests, axis=0).to(tl.float64)
        scaled = tl.where(totals > 0.0, totals * tl.exp(bests.to(tl.float64) - highest), 0.0)
        normalizer = tl.where(raw, highest + tl.log(tl.sum(scaled, axis=0)), normalizer)
        as_it_came = _load_logits(logits, lines, bits, row, at, stride, vocab_size, num_words, True, HAS_MASK)
        own = tl.where(raw, as_it_came, own)
    tl.store(ids + row, chosen)
    logprob = tl.max(own.to(tl.float64), axis=0) - normalizer
    tl.store(logprobs + row, tl.minimum(logprob, 0.0).to(tl.float32))
    tl.store(normalizers + row, normalizer)


@triton.jit(do_not_specialize=["num_words"])
def collect_kernel(
    packed, num_found, best, raw_best, last_key, least, top_p_key, tied_left,
    logits, lines, bits, stride, vocab_size, num_words, num_tiles,
    TILE: tl.constexpr, CAPACITY: tl.constexpr, HAS_MASK: tl.constexpr, WANTS_RAW: tl.constexpr,
):  # fmt: skip
    """Tokens from `last_key` on, in id order, as (inverted key, id) in one integer. Grid (R,).

    Those that tie with the last come in a second pass: where they exceed CAPACITY, the first of them in id order stay.
    """
    row = tl.program_id(0).to(tl.int64)
    found = tl.zeros([], tl.int32)
    # Equals of the key at which top-p cuts are all above the last key, or all are the last.
    tied_before = tl.zeros([], tl.int32)
    places = tl.arange(0, CAPACITY)
    tl.store(packed + row * CAPACITY + places, tl.full([CAPACITY], 9223372036854775807, tl.int64))
    tl.debug_barrier()  # before others of this program write there
    raw = tl.load(lines + row * 9 + 6) != 0
    last = tl.load(last_key + row)
    asks = tl.load(lines + row * 9 + 8) > 0
    # The model's own distribution was neither filtered nor cut among equals.
    first = tl.maximum(last, tl.where(raw, 0, tl.load(least + row)))
    cut = tl.where(raw, -1, tl.load(top_p_key + row))
    for step in range(0, 2 * num_tiles):
        tile = step % num_tiles
        of_last = step >= num_tiles
        highest = tl.load(best + row * num_tiles + tile)
        if WANTS_RAW:
            highest = tl.where(raw, tl.load(raw_best + row * num_tiles + tile), highest)
        relevant = (highest > float("-inf")) & (_key_of(highest) >= last + tl.where(of_last, 0, 1))
        if asks and relevant:
            tokens = tile * TILE + tl.arange(0, TILE)
            values = _load_logits(
                logits, lines, bits, row, tokens, stride, vocab_size, num_words, False, HAS_MASK
            )
            if WANTS_RAW:
                own = _load_logits(
                    logits, lines, bits, row, tokens, stride, vocab_size, num_words, True, HAS_MASK
                )
                values = tl.where(raw, own, values)
            key = _key_of(values)
            keep = (values > float("-inf")) & (key >= first) & ((key == last) == of_last)
            equal = keep & (key == cut)
            rank = tied_before + tl.cumsum(equal.to(tl.int32), axis=0)
            keep = keep & ((equal == 0) | (rank.to(tl.float64) <= tl.load(tied_left + row)))
            place = found + tl.cumsum(keep.to(tl.int32), axis=0) - 1
            entry = (2147483647 - key) * 4294967296 + tokens
            tl.store(packed + row * CAPACITY + place, entry, mask=keep & (place < CAPACITY))
            found += tl.sum(keep.to(tl.int32), axis=0)
            tied_before += tl.sum(equal.to(tl.int32), axis=0)
    tl.store(num_found + row, found)


@triton.jit
def order_kernel(top_ids, top_logprobs, packed, num_found, normalizers, CAPACITY: tl.constexpr):
    """What was collected, the likeliest first. Grid (R,)."""
    row = tl.program_id(0).to(tl.int64)
    places = tl.arange(0, CAPACITY)
    entries = tl.sort(tl.load(packed + row * CAPACITY + places))
    inverted = entries >> 32
    tokens = entries - inverted * 4294967296
    there = places < tl.load(num_found + row)
    key = tl.where(there, 2147483647 - inverted, 2147483648)
    logprob = tl.minimum(_value_of(key).to(tl.float64) - tl.load(normalizers + row), 0.0)
    tl.store(top_ids + row * CAPACITY + places, tl.where(there, tokens, -1))
    tl.store(top_logprobs + row * CAPACITY + places, tl.where(there, logprob, 0.0).to(tl.float32))


@triton.jit
def score_kernel(logprobs, logits, targets, stride, vocab_size, TILE: tl.constexpr):
    """The log-probability of one token per row of logits, in one pass. Grid (R,)."""
    row = tl.program_id(0).to(tl.int64)
    highest = tl.full([TILE], float("-inf"), tl.float32)
    total = tl.zeros([TILE], tl.float32)
    for start in range(0, vocab_size, TILE):
        tokens = start + tl.arange(0, TILE)
        values = tl.load(logits + row * stride + tokens, mask=tokens < vocab_size, other=float("-inf")).to(
            tl.float32
        )
        higher = tl.maximum(highest, values)
        shift = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(highest - shift) + tl.exp(values - shift)
        highest = higher
    best = tl.max(highest, axis=0)
    total_of_row = tl.sum((total * tl.exp(highest - best)).to(tl.float64), axis=0)
    own = tl.load(logits + row * stride + tl.load(targets + row)).to(tl.float64)
    logprob = own - best.to(tl.float64) - tl.log(total_of_row)
    tl.store(logprobs + row, tl.minimum(logprob, 0.0).to(tl.float32))
