/* Operations as records: the caller writes them down and a team of threads works them off, one after the other, in one
 * parallel region. What the fields of a record mean stands above each operation. */
#pragma once

#include <stdatomic.h>

struct operation {
    long kind;
    void *p[8]; /* addresses */
    long n[10]; /* sizes; the last says how much work it is, in floats, and whether a single thread does it faster */
    double f[2];
};

/* What the threads of a region share. All begin as 0. */
struct team {
    atomic_int arrived, phase, sleeping;
    atomic_long claimed;
};

struct worker {
    struct team *team;
    long index, count;
};

typedef void operation_part(const struct operation *, const struct worker *);
operation_part embed, linear_panels, linear_rows, pack_panels, rms_norm, rotary, silu_mul, write_kv, decode_attention,
    prefill_attention;

void meet(const struct worker *me);

/* This thread's share of `total` equal pieces: first <= piece < end. */
static inline void share(const struct worker *me, long total, long *first, long *end) {
    *first = total * me->index / me->count;
    *end = total * (me->index + 1) / me->count;
}

/* The next piece that no thread of the team has begun in this operation. */
static inline long claim(const struct worker *me) {
    return atomic_fetch_add_explicit(&me->team->claimed, 1, memory_order_relaxed);
}
