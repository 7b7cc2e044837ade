/* Attention of several new tokens of a row over the paged cache: tiles of queries and keys with an online softmax (Dao et al.,
 * 2022). Keys lie in tiles at fixed positions and what a query may not see weighs exactly zero, so that the bits of a result
 * depend neither on how a prompt is cut into chunks nor on the batch. */

#include <math.h>
#include <stddef.h>

#include "program.h"
#include "vectors.h"

#define MAX_HEAD 256 /* floats of a head */
#define KEYS 64      /* of a tile */
#define PANEL 16     /* keys that lie together in a packed tile */
#define ROWS 6       /* rows, which are pairs of a token and a query head, in registers at once */
#define BLOCK 96     /* rows that one packed tile serves, at most; a multiple of ROWS */
#define LEAST_BLOCK 24
#define LOWEST -1e30f

/* Kept apart: inlined together, the compiler runs out of registers. */
#define APART static __attribute__((noinline))

/* What a thread works on: rows of a KV head, and a tile of its keys. */
struct block {
    float queries[BLOCK * MAX_HEAD]; /* times the scale; missing rows repeat the last one */
    float acc[BLOCK * MAX_HEAD];
    float keys[KEYS * MAX_HEAD];   /* [KEYS / PANEL, D, PANEL] */
    float values[KEYS * MAX_HEAD]; /* [KEYS, D] */
    vec total[BLOCK];
    float best[BLOCK];
    long position[BLOCK];
};

INLINE vec larger(vec a, vec b) { return choose(a > b, a, b); }

INLINE float largest(vec v) {
    v = larger(v, SHUFFLE(v, v, 4, 5, 6, 7, 0, 1, 2, 3));
    v = larger(v, SHUFFLE(v, v, 2, 3, 0, 1, 6, 7, 4, 5));
    return v[0] > v[1] ? v[0] : v[1];
}

/* Eight floats of eight keys to one float of eight keys, eight times. */
INLINE void transpose(const float *const *keys, long d, float *out) {
    vec pairs[8], fours[8];
    for (int i = 0; i < 8; i += 2) {
        vec a = load(keys[i] + d), b = load(keys[i + 1] + d);
        pairs[i] = SHUFFLE(a, b, 0, 8, 1, 9, 4, 12, 5, 13);
        pairs[i + 1] = SHUFFLE(a, b, 2, 10, 3, 11, 6, 14, 7, 15);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            fours[i + 2 * j] = SHUFFLE(pairs[i + j], pairs[i + j + 2], 0, 1, 8, 9, 4, 5, 12, 13);
            fours[i + 2 * j + 1] = SHUFFLE(pairs[i + j], pairs[i + j + 2], 2, 3, 10, 11, 6, 7, 14, 15);
        }
    for (int i = 0; i < 4; i++) {
        store(out + i * PANEL, SHUFFLE(fours[i], fours[i + 4], 0, 1, 2, 3, 8, 9, 10, 11));
        store(out + (i + 4) * PANEL, SHUFFLE(fours[i], fours[i + 4], 4, 5, 6, 7, 12, 13, 14, 15));
    }
}

/* `count` keys from position `start` on. Missing ones repeat the last key, with values of zero. */
APART void pack_tile(const struct operation *o, const int *table, long head, long start, long count, struct block *b) {
    long heads = o->n[2], D = o->n[3], block_size = o->n[4], at = start / block_size, within = start % block_size;
    const float *keys[KEYS], *values[KEYS];
    for (long t = 0; t < KEYS; t++) {
        long from = (((long)table[at] * block_size + within) * heads + head) * D;
        keys[t] = (const float *)o->p[1] + from;
        values[t] = (const float *)o->p[2] + from;
        if (t + 1 < count && ++within == block_size) within = 0, at++;
    }
    for (long t = 0; t < KEYS && t < count; t += LANES)
        for (long d = 0; d < D; d += LANES) transpose(keys + t, d, b->keys + (t / PANEL * D + d) * PANEL + t % PANEL);
    for (long t = 0; t < KEYS; t++)
        for (long d = 0; d < D; d += LANES) store(b->values + t * D + d, t < count ? load(values[t] + d) : splat(0.0f));
}

/* Scores of ROWS rows for a panel of keys. */
APART void score(const float *queries, const float *keys, long D, float *scores) {
    vec acc[ROWS][2];
    for (int m = 0; m < ROWS; m++) acc[m][0] = acc[m][1] = splat(0.0f);
    for (long d = 0; d < D; d++) {
        vec low = load(keys + d * PANEL), high = load(keys + d * PANEL + LANES);
        for (int m = 0; m < ROWS; m++) {
            vec value = splat(queries[m * D + d]);
            acc[m][0] += value * low;
            acc[m][1] += value * high;
        }
    }
    for (int m = 0; m < ROWS; m++) {
        store(scores + m * KEYS, acc[m][0]);
        store(scores + m * KEYS + LANES, acc[m][1]);
    }
}

/* acc[ROWS][vectors] = acc * rescale + sum over t of weights[row][t] * values[t][vectors]. */
INLINE void add_vectors(float *acc, const float *weights, const float *rescale, const float *values, long count, long D,
                        int vectors) {
    vec sums[ROWS][2];
    for (int m = 0; m < ROWS; m++)
        for (int v = 0; v < vectors; v++) sums[m][v] = load(acc + m * D + v * LANES) * splat(rescale[m]);
    for (long t = 0; t < count; t++) {
        vec x[2];
        for (int v = 0; v < vectors; v++) x[v] = load(values + t * D + v * LANES);
        for (int m = 0; m < ROWS; m++) {
            vec weight = splat(weights[m * KEYS + t]);
            for (int v = 0; v < vectors; v++) sums[m][v] += weight * x[v];
        }
    }
    for (int m = 0; m < ROWS; m++)
        for (int v = 0; v < vectors; v++) store(acc + m * D + v * LANES, sums[m][v]);
}

APART void add(float *acc, const float *weights, const float *rescale, const float *values, long count, long D) {
    long d = 0;
    for (; d + 2 * LANES <= D; d += 2 * LANES) add_vectors(acc + d, weights, rescale, values + d, count, D, 2);
    if (d < D) add_vectors(acc + d, weights, rescale, values + d, count, D, 1);
}

/* Scores of a row to softmax weights against the running maximum: of `vectors` vectors the keys first <= t < end. What was
 * summed before has to be scaled by the result. */
INLINE float weigh(float *scores, long vectors, long first, long end, int masked, float *best, vec *total) {
    const ivec lanes = {0, 1, 2, 3, 4, 5, 6, 7};
    vec highest = splat(LOWEST), sums = splat(0.0f);
    for (long i = 0; i < vectors; i++) {
        vec x = load(scores + i * LANES);
        if (masked) {
            ivec t = lanes + (int)(i * LANES);
            x = choose((t >= (int)first) & (t < (int)end), x, splat(-INFINITY));
        }
        highest = larger(x, highest);
    }
    float now = largest(highest), rescale = 1.0f;
    if (now > *best) {
        rescale = exp_negative(splat(*best - now))[0];
        *best = now;
    }
    for (long i = 0; i < vectors; i++) {
        vec weights = exp_negative(load(scores + i * LANES) - splat(*best));
        if (masked) {
            ivec t = lanes + (int)(i * LANES);
            weights = choose((t >= (int)first) & (t < (int)end), weights, splat(0.0f));
        }
        store(scores + i * LANES, weights);
        sums += weights;
    }
    *total = *total * splat(rescale) + sums;
    return rescale;
}

APART void weigh_rows(struct block *b, long row, float *scores, long vectors, long start, long count, long window,
                      float *rescale) {
    for (int m = 0; m < ROWS; m++) {
        long position = b->position[row + m], end = position + 1 - start < count ? position + 1 - start : count;
        long first = window > 0 ? position + 1 - window - start : 0;
        float *mine = scores + m * KEYS;
        int masked = first > 0 || end < vectors * LANES;
        if (masked) rescale[m] = weigh(mine, vectors, first, end, 1, &b->best[row + m], &b->total[row + m]);
        else rescale[m] = weigh(mine, vectors, 0, 0, 0, &b->best[row + m], &b->total[row + m]);
    }
}

/* The packed tile of `count` keys from position `start` on, for ROWS rows of the block. */
static void attend_tile(struct block *b, long row, long start, long count, long D, long window) {
    float scores[ROWS * KEYS] __attribute__((aligned(32))), rescale[ROWS];
    long last = b->position[row + ROWS - 1], first = b->position[row];
    if (last + 1 - start < count) count = last + 1 - start;
    if (count <= 0 || (window > 0 && first + 1 - window >= start + count)) return;
    for (long t = 0; t < count; t += PANEL) score(b->queries + row * D, b->keys + t * D, D, scores + t);
    weigh_rows(b, row, scores, (count + LANES - 1) / LANES, start, count, window, rescale);
    add(b->acc + row * D, scores, rescale, b->values, count, D);
}

/* A row of the batch: where its new tokens, its table and its keys are. */
struct row {
    long first_token, tokens, end;
    const int *table;
};

static struct row find_row(const struct operation *o, long i) {
    const long *picks = o->p[5];
    long R = o->n[0], row = picks ? picks[i] : i, first = picks ? picks[R + i] : i, tokens = picks ? picks[2 * R + i] : 1;
    return (struct row){first, tokens, ((const int *)o->p[4])[row], (const int *)o->p[3] + row * o->n[5]};
}

/* Rows first ... end of a KV head. */
static void attend(const struct operation *o, const struct row *row, long head, long first, long end, struct block *b) {
    long group = o->n[1] / o->n[2], D = o->n[3], window = o->n[7], rows = (end - first + ROWS - 1) / ROWS * ROWS;
    for (long m = 0; m < rows; m++) {
        long r = first + m < end ? first + m : end - 1;
        const float *query = (const float *)o->p[0] + (row->first_token + r / group) * o->n[6] + (head * group + r % group) * D;
        b->best[m] = LOWEST;
        b->total[m] = splat(0.0f);
        b->position[m] = row->end - row->tokens + r / group;
        for (long d = 0; d < D; d += LANES) {
            store(b->queries + m * D + d, load(query + d) * splat((float)o->f));
            store(b->acc + m * D + d, splat(0.0f));
        }
    }
    long stop = b->position[rows - 1] + 1, start = window > 0 && b->position[0] >= window ? b->position[0] + 1 - window : 0;
    for (start -= start % KEYS; start < stop; start += KEYS) {
        long count = stop - start < KEYS ? stop - start : KEYS;
        pack_tile(o, row->table, head, start, count, b);
        for (long m = 0; m < rows; m += ROWS) attend_tile(b, m, start, count, D, window);
    }
    for (long m = 0; first + m < end; m++) {
        long r = first + m;
        float *out = (float *)o->p[7] + ((row->first_token + r / group) * o->n[1] + head * group + r % group) * D;
        vec total = splat(sum(b->total[m]));
        for (long d = 0; d < D; d += LANES) store(out + d, load(b->acc + m * D + d) / total);
    }
}

static long blocks_of(const struct operation *o, long i, long size) {
    return (find_row(o, i).tokens * (o->n[1] / o->n[2]) + size - 1) / size * o->n[2];
}

/* p: query [.., Hq, D], key cache, value cache [slots, Hkv, D], tables [.., width] int32, seq_lens int32, picks [3, R] int64:
 * rows of these two, the first of their new tokens and how many, or NULL: one token each; nothing, output [.., Hq, D];
 * n: R, Hq, Hkv, D, block size, width, floats between queries, window or 0; f: scale. Needs D <= MAX_HEAD, a multiple of 8. */
void prefill_attention(const struct operation *o, struct worker *me) {
    long R = o->n[0], heads = o->n[2], group = o->n[1] / heads, size = 2 * BLOCK, total;
    do { /* few rows: smaller blocks, so that every thread has some */
        size /= 2;
        total = 0;
        for (long i = 0; i < R; i++) total += blocks_of(o, i, size);
    } while (total < 2 * me->count && size > LEAST_BLOCK);
    struct block b;
    long i = 0, before = 0; /* blocks of the rows before row i */
    for (long piece; (piece = next_piece(me, total)) >= 0;) {
        if (piece < before) i = before = 0;
        for (long mine = blocks_of(o, i, size); piece >= before + mine; mine = blocks_of(o, ++i, size)) before += mine;
        struct row row = find_row(o, i);
        long rows = row.tokens * group, blocks = (rows + size - 1) / size;
        long block = blocks - 1 - (piece - before) / heads; /* the longest first */
        attend(o, &row, (piece - before) % heads, block * size, (block + 1) * size < rows ? (block + 1) * size : rows, &b);
    }
}
