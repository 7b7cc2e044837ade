/* Decode attention over the paged cache, read where it lies: online softmax over chunks of keys (Milakov and Gimelshein,
 * 2018), for all heads of a token before the next tokens, so that memory is read in one straight run. Long contexts are cut
 * into segments at fixed positions, which threads share and whose sums are merged in order: neither the batch nor the number
 * of threads changes a bit of a result. */

#include <limits.h>
#include <math.h>
#include <stddef.h>

#include "program.h"
#include "vectors.h"

#define MAX_HEADS 128   /* query heads of a rank */
#define MAX_HEAD 256    /* floats of a head */
#define MAX_SEGMENTS 64 /* of a row: operations.py */
#define SEGMENT 256     /* keys of the first segments: operations.py */
#define CHUNK 16        /* keys whose scores are held at once; 32 are slower */
#define GROUP 3         /* query heads in registers at once */

/* Kept apart: inlined together, the compiler runs out of registers. */
#define APART static __attribute__((noinline))

struct head_state {
    float best, total;
    float acc[MAX_HEAD];
};

struct chunk {
    const float *keys[CHUNK], *values[CHUNK]; /* of the span's first head; those from `count` on repeat the last one */
    long count, D;
    const float *next_keys, *next_values; /* to be fetched meanwhile: CHUNK * D floats for each head of the span, */
    long apart;                           /* that far from each other */
};

INLINE void fetch(const float *line) { __builtin_prefetch(line, 0, 2); }

/* Four sums in halves: lanes i and i + 4 make sum i. */
INLINE vec half_sums(const vec *v) {
    vec left = SHUFFLE(v[0], v[1], 0, 2, 8, 10, 4, 6, 12, 14) + SHUFFLE(v[0], v[1], 1, 3, 9, 11, 5, 7, 13, 15);
    vec right = SHUFFLE(v[2], v[3], 0, 2, 8, 10, 4, 6, 12, 14) + SHUFFLE(v[2], v[3], 1, 3, 9, 11, 5, 7, 13, 15);
    return SHUFFLE(left, right, 0, 2, 8, 10, 4, 6, 12, 14) + SHUFFLE(left, right, 1, 3, 9, 11, 5, 7, 13, 15);
}

/* Dot products of `heads` queries with four keys, as half sums. */
INLINE void score_four(const float *query, const float *const *keys, const float *next, long offset, long D, vec *halves,
                       int heads) {
    vec acc[GROUP][4];
    for (int q = 0; q < heads; q++)
        for (int t = 0; t < 4; t++) acc[q][t] = splat(0.0f);
    const float *k0 = keys[0] + offset, *k1 = keys[1] + offset, *k2 = keys[2] + offset, *k3 = keys[3] + offset;
    for (long d = 0; d < D; d += LANES) {
        vec key[4] = {load(k0 + d), load(k1 + d), load(k2 + d), load(k3 + d)};
        fetch(next + 4 * d);
        fetch(next + 4 * d + CACHE_LINE);
        for (int q = 0; q < heads; q++) {
            vec value = load(query + q * D + d);
            for (int t = 0; t < 4; t++) acc[q][t] += value * key[t];
        }
    }
    for (int q = 0; q < heads; q++) halves[q] = half_sums(acc[q]);
}

INLINE void score(const float *query, const struct chunk *c, long head, float (*scores)[CHUNK], int heads) {
    const float *next = c->next_keys + head * c->apart;
    for (long t = 0; t < c->count; t += LANES) {
        vec low[GROUP], high[GROUP];
        score_four(query, c->keys + t, next + t * c->D, head * c->D, c->D, low, heads);
        score_four(query, c->keys + t + 4, next + (t + 4) * c->D, head * c->D, c->D, high, heads);
        for (int q = 0; q < heads; q++)
            store(scores[q] + t, SHUFFLE(low[q], high[q], 0, 1, 2, 3, 8, 9, 10, 11) +
                                     SHUFFLE(low[q], high[q], 4, 5, 6, 7, 12, 13, 14, 15));
    }
}

/* acc[heads][vectors] += sum over t of weights[head][t] * values[t][vectors] in registers, from float d of a head on. */
INLINE void add_vectors(struct head_state *states, float (*weights)[CHUNK], const struct chunk *c, long head, long d,
                        int heads, int vectors) {
    const float *next = c->next_values + head * c->apart + d * CHUNK;
    vec sums[GROUP][8];
    for (int q = 0; q < heads; q++)
        for (int v = 0; v < vectors; v++) sums[q][v] = load(states[q].acc + d + v * LANES);
    for (long t = 0; t < c->count; t++) {
        const float *value = c->values[t] + head * c->D + d;
        for (int v = 0; v < vectors; v += CACHE_LINE / LANES) fetch(next + (t * vectors + v) * LANES);
        for (int v = 0; v < vectors; v++) {
            vec values = load(value + v * LANES);
            for (int q = 0; q < heads; q++) sums[q][v] += splat(weights[q][t]) * values;
        }
    }
    for (int q = 0; q < heads; q++)
        for (int v = 0; v < vectors; v++) store(states[q].acc + d + v * LANES, sums[q][v]);
}

INLINE void add(struct head_state *states, float (*weights)[CHUNK], const struct chunk *c, long head, int heads) {
    long d = 0;
    if (heads == 1)
        for (; d + 8 * LANES <= c->D; d += 8 * LANES) add_vectors(states, weights, c, head, d, heads, 8);
    for (; d + 4 * LANES <= c->D; d += 4 * LANES) add_vectors(states, weights, c, head, d, heads, 4);
    for (; d < c->D; d += LANES) add_vectors(states, weights, c, head, d, heads, 1);
}

INLINE float largest(vec v) {
    vec other = SHUFFLE(v, v, 4, 5, 6, 7, 0, 1, 2, 3);
    v = choose(v > other, v, other);
    other = SHUFFLE(v, v, 2, 3, 0, 1, 6, 7, 4, 5);
    v = choose(v > other, v, other);
    return v[0] > v[1] ? v[0] : v[1];
}

/* Scores to softmax weights against the running maximum; what was summed before is scaled to a new one. */
APART void weigh(struct head_state *state, float *scores, const struct chunk *c, float scale) {
    const ivec lanes = {0, 1, 2, 3, 4, 5, 6, 7};
    vec x[CHUNK / LANES], highest = splat(-INFINITY), total = splat(0.0f);
    for (int i = 0; i < CHUNK / LANES; i++) {
        ivec present = lanes + i * LANES < (int)c->count;
        x[i] = choose(present, load(scores + i * LANES) * splat(scale), splat(-INFINITY));
        highest = choose(x[i] > highest, x[i], highest);
    }
    float best = largest(highest);
    if (best > state->best) {
        float rescale = expf(state->best - best);
        state->total *= rescale;
        for (long d = 0; d < c->D; d += LANES) store(state->acc + d, load(state->acc + d) * splat(rescale));
        state->best = best;
    }
    for (int i = 0; i < CHUNK / LANES; i++) {
        ivec present = lanes + i * LANES < (int)c->count;
        vec weights = choose(present, exp_negative(x[i] - splat(state->best)), splat(0.0f));
        store(scores + i * LANES, weights);
        total += weights;
    }
    state->total += sum(total);
}

#define HEADS(n)                                                                                               \
    APART void score_##n(const float *query, const struct chunk *c, long head, float (*scores)[CHUNK]) {       \
        score(query, c, head, scores, n);                                                                      \
    }                                                                                                          \
    APART void add_##n(struct head_state *states, float (*weights)[CHUNK], const struct chunk *c, long head) { \
        add(states, weights, c, head, n);                                                                      \
    }                                                                                                          \
    static void attend_##n(struct head_state *states, const float *query, const struct chunk *c, long head,    \
                           float scale) {                                                                      \
        float scores[GROUP][CHUNK] __attribute__((aligned(32)));                                               \
        score_##n(query, c, head, scores);                                                                     \
        for (int q = 0; q < n; q++) weigh(&states[q], scores[q], c, scale);                                    \
        add_##n(states, scores, c, head);                                                                      \
    }
HEADS(1)
HEADS(2)
HEADS(3)

/* Keys first ... end of a row, for its KV heads first_head ... end_head. */
struct span {
    const int *table;
    long first, end, first_head, end_head;
};

/* The keys from `start` to the next multiple of CHUNK or to the end of the span; the position after them. */
static long find_chunk(const struct operation *o, const struct span *span, long start, struct chunk *c) {
    long heads = o->n[2], D = o->n[3], block_size = o->n[4], stop = (start / CHUNK + 1) * CHUNK;
    long at = start / block_size, within = start % block_size;
    if (stop > span->end) stop = span->end;
    c->count = stop - start;
    c->D = D;
    for (long t = 0; t < CHUNK; t++) {
        long from = (((long)span->table[at] * block_size + within) * heads + span->first_head) * D;
        c->keys[t] = (const float *)o->p[1] + from;
        c->values[t] = (const float *)o->p[2] + from;
        if (t + 1 < c->count && ++within == block_size) within = 0, at++;
    }
    return stop;
}

/* The query heads of a span over its keys; the last ones fetch what lies at `after` in place of the next chunk. */
static void attend(const struct operation *o, const struct span *span, const float *query, struct head_state *states,
                   const struct chunk *after) {
    long heads = o->n[2], group = o->n[1] / heads, D = o->n[3], count = span->end_head - span->first_head;
    int runs_straight = count == heads && o->n[4] % CHUNK == 0; /* a chunk is then one run of memory */
    float scale = (float)o->f;
    struct chunk chunks[2];
    for (long q = 0; q < count * group; q++) {
        states[q].best = -INFINITY;
        states[q].total = 0.0f;
        for (long d = 0; d < D; d += LANES) store(states[q].acc + d, splat(0.0f));
    }
    long start = span->first, stop = find_chunk(o, span, start, &chunks[0]);
    for (long i = 0; start < span->end; i++) {
        struct chunk *c = &chunks[i % 2], *next = &chunks[(i + 1) % 2];
        start = stop;
        if (start < span->end) stop = find_chunk(o, span, start, next);
        else if (after) *next = *after;
        else next = c;
        c->next_keys = runs_straight ? next->keys[0] : states->acc; /* which is in the cache: nothing is fetched */
        c->next_values = runs_straight ? next->values[0] : states->acc;
        c->apart = runs_straight ? CHUNK * D : 0;
        for (long head = 0; head < count; head++) {
            struct head_state *mine = states + head * group;
            const float *queries = query + (span->first_head + head) * group * D;
            long q = 0;
            for (; group - q >= 3 && group - q != 4; q += 3) attend_3(mine + q, queries + q * D, c, head, scale);
            for (; group - q >= 2; q += 2) attend_2(mine + q, queries + q * D, c, head, scale);
            if (q < group) attend_1(mine + q, queries + q * D, c, head, scale);
        }
    }
}

/* Segments have SEGMENT keys up to position 4,096, and from then on four times as many whenever positions are four times as
 * large: a sixteenth of a long context at most. The last one has no end. */
static long segment_start(long index) {
    if (index < 16) return index * SEGMENT;
    if (index >= MAX_SEGMENTS) return LONG_MAX;
    long level = (index - 16) / 12;
    return (16L * SEGMENT << 2 * level) + (index - 16) % 12 * (4L * SEGMENT << 2 * level);
}

static long segment_of(long position) {
    long index = position < 16 * SEGMENT ? position / SEGMENT : 16;
    while (segment_start(index + 1) <= position) index++;
    return index;
}

/* A row of the batch: which query and table it has, and the segments that its keys lie in. */
struct row {
    long token, first, end, first_segment, segments;
    const int *table;
};

static struct row find_row(const struct operation *o, long i) {
    const long *picks = o->p[5];
    long row = picks ? picks[i] : i, window = o->n[7];
    struct row found = {.token = picks ? picks[o->n[0] + i] : i, .end = ((const int *)o->p[4])[row]};
    found.first = window > 0 && found.end > window ? found.end - window : 0;
    found.first_segment = segment_of(found.first);
    found.segments = segment_of(found.end - 1) - found.first_segment + 1;
    found.table = (const int *)o->p[3] + row * o->n[5];
    return found;
}

/* What a segment of a row came to, for a query head: D sums, the total of the weights, and what they are relative to. */
static float *partial(const struct operation *o, long row, long segment, long head) {
    return (float *)o->p[6] + ((row * o->n[8] + segment) * o->n[1] + head) * (o->n[3] + LANES);
}

/* A segment of the batch: of row i, before which other rows have `before`. */
struct place {
    long i, before, segment;
    struct row row;
};

/* On to segment `number` of the batch, which is not before the last one. */
static void go_on(const struct operation *o, struct place *at, long number) {
    for (; number >= at->before + at->row.segments; at->row = find_row(o, ++at->i)) at->before += at->row.segments;
    at->segment = number - at->before;
}

static struct span find_span(const struct place *at, long first_head, long end_head) {
    const struct row *row = &at->row;
    long from = segment_start(row->first_segment + at->segment), to = segment_start(row->first_segment + at->segment + 1);
    return (struct span){row->table, from > row->first ? from : row->first, to < row->end ? to : row->end, first_head, end_head};
}

/* One segment, for the KV heads of the span: to the output if the row has no other. */
static void attend_segment(const struct operation *o, const struct place *at, const struct span *span, const struct chunk *after) {
    long group = o->n[1] / o->n[2], D = o->n[3];
    const struct row *row = &at->row;
    struct head_state states[MAX_HEADS];
    attend(o, span, (const float *)o->p[0] + row->token * o->n[6], states, after);
    for (long q = span->first_head * group; q < span->end_head * group; q++) {
        struct head_state *state = &states[q - span->first_head * group];
        float *out = (float *)o->p[7] + (row->token * o->n[1] + q) * D;
        vec divisor = splat(state->total);
        if (row->segments > 1) {
            out = partial(o, at->i, at->segment, q);
            out[D] = state->total;
            out[D + 1] = state->best;
            divisor = splat(1.0f);
        }
        for (long d = 0; d < D; d += LANES) store(out + d, load(state->acc + d) / divisor);
    }
}

static void merge(const struct operation *o, const struct row *row, long i, long head) {
    long D = o->n[3];
    float *out = (float *)o->p[7] + (row->token * o->n[1] + head) * D, best = -INFINITY, total = 0.0f, weights[MAX_SEGMENTS];
    for (long s = 0; s < row->segments; s++) best = fmaxf(best, partial(o, i, s, head)[D + 1]);
    for (long s = 0; s < row->segments; s++) {
        weights[s] = expf(partial(o, i, s, head)[D + 1] - best);
        total += weights[s] * partial(o, i, s, head)[D];
    }
    for (long d = 0; d < D; d += LANES) {
        vec acc = splat(0.0f);
        for (long s = 0; s < row->segments; s++) acc += splat(weights[s]) * load(partial(o, i, s, head) + d);
        store(out + d, acc / splat(total));
    }
}

/* What this thread reads after the segment at `at`: most likely segment `number`, or if that is -1 the weights of the next
 * product. */
static int find_after(const struct operation *o, const struct worker *me, const struct place *at, long number, struct chunk *c) {
    if (number >= 0) {
        struct place then = *at;
        go_on(o, &then, number);
        struct span span = find_span(&then, 0, o->n[2]);
        find_chunk(o, &span, span.first, c);
        return 1;
    }
    const struct operation *product = next_product(o, me);
    if (!product) return 0;
    c->keys[0] = first_weights(product, me).from;
    c->values[0] = c->keys[0] + CHUNK * o->n[2] * o->n[3];
    return 1;
}

/* p: query [.., Hq, D], key cache, value cache [slots, Hkv, D], tables [.., width] int32, seq_lens int32, picks [2, R] or
 * NULL: the rows of these two and the tokens of query and output (otherwise both are 0 ... R), partial sums [R, S, Hq, D + 8],
 * output [.., Hq, D]; n: R, Hq, Hkv, D, block size, width, floats between queries, window or 0, S, which is as many segments
 * as a row can have; f: scale. Needs Hq <= MAX_HEADS, D <= MAX_HEAD and a multiple of 8. */
void decode_attention(const struct operation *o, struct worker *me) {
    long R = o->n[0], heads = o->n[2], total = 0;
    for (long i = 0; i < R; i++) total += find_row(o, i).segments;
    long parts = total > 0 ? (2 * me->count + total - 1) / total : 1; /* few segments: threads share the heads of one */
    if (parts > heads) parts = heads;
    struct place at = {.before = LONG_MAX};
    for (long piece; (piece = next_piece(me, total * parts)) >= 0;) {
        if (total == 0) continue;
        long part = piece % parts, then = piece + me->count;
        if (piece / parts < at.before) at = (struct place){.row = find_row(o, 0)};
        go_on(o, &at, piece / parts);
        struct span span = find_span(&at, part * heads / parts, (part + 1) * heads / parts);
        struct chunk after;
        int known = find_after(o, me, &at, then < total * parts ? then / parts : -1, &after);
        attend_segment(o, &at, &span, known ? &after : NULL);
    }
}

/* After decode_attention, with the same record: rows of several segments get their output. */
void merge_segments(const struct operation *o, struct worker *me) {
    long first, end;
    while (next_share(me, o->n[0], 2, &first, &end))
        for (long i = first; i < end; i++) {
            struct row row = find_row(o, i);
            for (long head = 0; row.segments > 1 && head < o->n[1]; head++) merge(o, &row, i, head);
        }
}
