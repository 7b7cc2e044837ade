/* Operations as records: the caller writes them down and a team of threads works them off, one after the other, in one
 * parallel region. What the fields of a record mean stands above each operation. */
#pragma once

#include <stdatomic.h>

#define MAX_THREADS 512

struct operation {
    long kind;
    void *p[8]; /* addresses */
    long n[10]; /* sizes; the last says how much work it is, in floats, and whether a single thread does it faster */
    double f;
    long after; /* it writes what operations before this one read or wrote: no thread may be busy with one of them still */
};

/* What a thread is busy with, or 0: program.c. Each in a cache line of its own. */
struct seat {
    _Alignas(64) atomic_ulong busy;
};

/* What the threads of a region share. */
struct team {
    _Alignas(64) atomic_ulong progress; /* the current operation, and how many of its pieces are finished and claimed */
    atomic_int phase, sleeping;
    struct seat seats[MAX_THREADS];
};

struct worker {
    struct team *team;
    long index, count;
    const struct operation *operations;
    long length, current;     /* of the program; the operation that this thread is in */
    long piece;               /* what a thread without a team has got to */
    long helped;              /* whose piece it computes, if not its own */
    unsigned long word;       /* of what it is busy with, or 0 */
    unsigned long began, took; /* ticks at the start of its piece, and how many the last one took */
};

typedef void operation_part(const struct operation *, struct worker *);
operation_part embed, linear_panels, linear_rows, pack_panels, rms_norm, rotary, silu_mul, write_kv, decode_attention,
    merge_segments, prefill_attention;

/* The next piece, 0 <= piece < total, of the operation for this thread to compute, or -1 when all are finished. What a thread
 * that lost its core is busy with may be handed out once more: both write the same bits. */
long next_piece(struct worker *me, long total);

/* The next product of the program if nothing before it reads much memory, or NULL: what fetches its weights now has them then. */
const struct operation *next_product(const struct operation *o, const struct worker *me);

/* A run of memory that a thread is about to read. */
struct run {
    const float *from;
    long length; /* floats */
};

/* Where a thread starts to read the weights of a product, most likely. */
struct run first_weights(const struct operation *product, const struct worker *me);

/* The next of some equal shares of `total`, `per_thread` for each thread: first <= i < end. */
static inline int next_share(struct worker *me, long total, long per_thread, long *first, long *end) {
    long most = me->count * per_thread, shares = total < most ? total : most;
    long share = next_piece(me, shares);
    if (share < 0) return 0;
    *first = total * share / (shares > 0 ? shares : 1);
    *end = total * (share + 1) / (shares > 0 ? shares : 1);
    return 1;
}
