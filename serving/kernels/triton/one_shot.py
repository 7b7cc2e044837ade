# Kernel bodies are Triton's language, not Python's.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
"""Sums over the ranks in one launch: every rank writes its part where the others can read it, and adds up all parts itself.

An all-reduce in a ring passes each part on size - 1 times, twice; a few rows of a decode step are too small for that to pay.
Knows addresses and turns, no process group.

Each rank owns `parts` (two halves of `HALF_BYTES`, used in turns) and `signals` [size, MAX_PROGRAMS] int64. Program p of
a rank takes bytes p * TILE_BYTES ... of every sum it takes part in, so that its place in the halves, and its column of
signals, belong to it alone. Two halves are enough, and no second wait: a part is written over two turns later, after its
writer has seen in the turn between that all others had begun it, and so had ended their reading of the turn before.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from serving.kernels.small_sums import HALF_BYTES, MAX_PROGRAMS, TILE_BYTES


def one_shot_sum(
    x: Tensor, parts: Tensor, signals: Tensor, turns: Tensor, *, rank: int, num_ranks: int
) -> Tensor:
    """Replace `x` by its sum over the ranks: added in float32 in the order of ranks, then rounded to its type.

    All ranks get the same bits, and must call this equally often with equal shapes, each on one stream. `x` is contiguous
    and at most `HALF_BYTES` long. `parts` and `signals` [size] int64 hold the addresses of the ranks' memory, `turns`
    [MAX_PROGRAMS] int64 is this rank's own; the memory and the turns began as zeros.
    """
    if x.numel() > 0:
        tile = TILE_BYTES // x.element_size()
        _one_shot_kernel[(triton.cdiv(x.numel(), tile),)](
            x, parts, signals, turns, x.numel(),
            RANK=rank,
            NUM_RANKS=num_ranks,
            NUM_RANKS_PADDED=triton.next_power_of_2(num_ranks),
            TILE=tile,
            HALF=HALF_BYTES // x.element_size(),
            MAX_PROGRAMS=MAX_PROGRAMS,
            num_warps=8,
        )  # fmt: skip
    return x


@triton.jit
def _one_shot_kernel(
    x, parts, signals, turns, num_elements,
    RANK: tl.constexpr, NUM_RANKS: tl.constexpr, NUM_RANKS_PADDED: tl.constexpr,
    TILE: tl.constexpr, HALF: tl.constexpr, MAX_PROGRAMS: tl.constexpr,
):  # fmt: skip
    kind = x.dtype.element_ty
    program = tl.program_id(0)
    turn = tl.load(turns + program) + 1
    elements = program * TILE + tl.arange(0, TILE)
    used = elements < num_elements
    place = (turn % 2) * HALF + elements
    peers = tl.arange(0, NUM_RANKS_PADDED)
    there = peers < NUM_RANKS
    to_peers = tl.load(signals + peers, mask=there, other=0).to(tl.pointer_type(tl.int64))
    to_peers += RANK * MAX_PROGRAMS + program
    from_peers = tl.load(signals + RANK).to(tl.pointer_type(tl.int64)) + peers * MAX_PROGRAMS + program

    own = tl.multiple_of(tl.load(parts + RANK).to(tl.pointer_type(kind)), 16)
    tl.store(own + place, tl.load(x + elements, mask=used), mask=used)
    tl.debug_barrier()  # the threads that signal do so for all of the program
    tl.atomic_xchg(to_peers, turn, mask=there, sem="release", scope="sys")
    begun = turn - 1
    while begun < turn:
        seen = tl.atomic_add(from_peers, 0, mask=there, sem="acquire", scope="sys")
        begun = tl.min(tl.where(there, seen, turn))
    tl.debug_barrier()
    tl.store(turns + program, turn)

    total = tl.zeros([TILE], dtype=tl.float32)
    for peer in tl.static_range(NUM_RANKS):
        part = tl.multiple_of(tl.load(parts + peer).to(tl.pointer_type(kind)), 16)
        total += tl.load(part + place, mask=used, other=0.0, volatile=True).to(tl.float32)
    tl.store(x + elements, total.to(kind), mask=used)
