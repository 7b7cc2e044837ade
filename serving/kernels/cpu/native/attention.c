/* Decode attention over the paged cache, read where it lies: online softmax over chunks of keys (Milakov and Gimelshein,
 * 2018). The query heads that share a KV head are computed together. */

#include <math.h>
#include <stddef.h>

#include "program.h"
#include "vectors.h"

#define MAX_HEADS 128 /* query heads of a rank */
#define MAX_HEAD 256  /* floats of a head */
#define CHUNK 32      /* keys whose scores are held at once */
#define GROUP 3       /* query heads in registers at once */

struct head_state {
    float best, total;
    float acc[MAX_HEAD];
};

struct chunk {
    const float *keys[CHUNK], *values[CHUNK]; /* those from `count` on repeat the last one */
    long count, D;
    float scale;
};

/* Dot products of `heads` queries with four keys. */
INLINE void score_four(const float *query, const float *const *keys, long D, float (*scores)[CHUNK], int heads) {
    vec acc[GROUP][4];
    for (int q = 0; q < heads; q++)
        for (int t = 0; t < 4; t++) acc[q][t] = splat(0.0f);
    for (long d = 0; d < D; d += LANES) {
        vec key[4];
        for (int t = 0; t < 4; t++) key[t] = load(keys[t] + d);
        for (int q = 0; q < heads; q++) {
            vec value = load(query + q * D + d);
            for (int t = 0; t < 4; t++) acc[q][t] += value * key[t];
        }
    }
    for (int q = 0; q < heads; q++) sum_four(acc[q], scores[q]);
}

/* acc[heads][vectors] += sum over t of weights[head][t] * values[t][vectors] in registers. */
INLINE void add_weighted(struct head_state *states, float (*weights)[CHUNK], const struct chunk *c, long offset, int heads,
                         int vectors) {
    vec sums[GROUP][4];
    for (int q = 0; q < heads; q++)
        for (int v = 0; v < vectors; v++) sums[q][v] = load(states[q].acc + offset + v * LANES);
    for (long t = 0; t < c->count; t++)
        for (int q = 0; q < heads; q++) {
            vec weight = splat(weights[q][t]);
            for (int v = 0; v < vectors; v++) sums[q][v] += weight * load(c->values[t] + offset + v * LANES);
        }
    for (int q = 0; q < heads; q++)
        for (int v = 0; v < vectors; v++) store(states[q].acc + offset + v * LANES, sums[q][v]);
}

/* Scores to softmax weights against the running maximum; what was summed before is scaled to a new one. */
INLINE void weigh(struct head_state *state, float *scores, long count, long D, float scale) {
    vec highest = splat(-INFINITY);
    for (long t = count; t < CHUNK; t++) scores[t] = -INFINITY;
    for (long t = 0; t < CHUNK; t += LANES) {
        vec scaled = load(scores + t) * splat(scale);
        store(scores + t, scaled);
        highest = choose(scaled > highest, scaled, highest);
    }
    float best = state->best;
    for (int lane = 0; lane < LANES; lane++) best = highest[lane] > best ? highest[lane] : best;
    if (best > state->best) {
        float rescale = expf(state->best - best);
        state->total *= rescale;
        for (long d = 0; d < D; d += LANES) store(state->acc + d, load(state->acc + d) * splat(rescale));
        state->best = best;
    }
    vec total = splat(0.0f);
    for (long t = 0; t < CHUNK; t += LANES) {
        vec weights = exp_negative(load(scores + t) - splat(best));
        if (t + LANES > count)
            for (int lane = 0; lane < LANES; lane++)
                if (t + lane >= count) weights[lane] = 0.0f;
        store(scores + t, weights);
        total += weights;
    }
    state->total += sum(total);
}

/* `heads` query heads over the keys of a chunk. */
INLINE void attend_heads(struct head_state *states, const float *query, const struct chunk *c, int heads) {
    float scores[GROUP][CHUNK] __attribute__((aligned(32)));
    for (long t = 0; t < c->count; t += 4) {
        float four[GROUP][CHUNK];
        score_four(query, c->keys + t, c->D, four, heads);
        for (int q = 0; q < heads; q++)
            for (int i = 0; i < 4; i++) scores[q][t + i] = four[q][i];
    }
    for (int q = 0; q < heads; q++) weigh(&states[q], scores[q], c->count, c->D, c->scale);
    long d = 0;
    for (; d + 4 * LANES <= c->D; d += 4 * LANES) add_weighted(states, scores, c, d, heads, 4);
    for (; d < c->D; d += LANES) add_weighted(states, scores, c, d, heads, 1);
}

static void attend_group(struct head_state *states, const float *query, const struct chunk *c, long group) {
    long q = 0;
    for (; group - q >= 3 && group - q != 4; q += 3) attend_heads(states + q, query + q * c->D, c, 3);
    for (; group - q >= 2; q += 2) attend_heads(states + q, query + q * c->D, c, 2);
    if (q < group) attend_heads(states + q, query + q * c->D, c, 1);
}

/* Keys first ... end of a row, for its KV heads first_head ... end_head. */
struct span {
    const int *table;
    long first, end, first_head, end_head;
};

/* p: query [.., Hq, D], key cache, value cache [slots, Hkv, D], tables [.., width] int32, seq_lens int32, rows [R] of these
 * two or NULL, tokens [R] of query and output or NULL (row i is then i), output [.., Hq, D];
 * n: R, Hq, Hkv, D, block size, width, floats between queries, window or 0; f: scale. */
static void attend(const struct operation *o, const struct span *span, const float *query, float *out,
                   struct head_state *states) {
    long heads = o->n[2], group = o->n[1] / heads, D = o->n[3], block_size = o->n[4];
    const float *key_cache = o->p[1], *value_cache = o->p[2];
    struct chunk c = {.D = D, .scale = (float)o->f[0]};
    long slots[CHUNK];
    for (long q = span->first_head * group; q < span->end_head * group; q++) {
        states[q].best = -INFINITY;
        states[q].total = 0.0f;
        for (long d = 0; d < D; d += LANES) store(states[q].acc + d, splat(0.0f));
    }
    for (long start = span->first; start < span->end; start += CHUNK) {
        c.count = span->end - start < CHUNK ? span->end - start : CHUNK;
        for (long t = 0; t < CHUNK; t++) {
            long position = start + (t < c.count ? t : c.count - 1);
            slots[t] = (long)span->table[position / block_size] * block_size + position % block_size;
        }
        for (long h = span->first_head; h < span->end_head; h++) {
            for (long t = 0; t < CHUNK; t++) {
                c.keys[t] = key_cache + (slots[t] * heads + h) * D;
                c.values[t] = value_cache + (slots[t] * heads + h) * D;
            }
            attend_group(states + h * group, query + h * group * D, &c, group);
        }
    }
    for (long q = span->first_head * group; q < span->end_head * group; q++)
        for (long d = 0; d < D; d += LANES) store(out + q * D + d, load(states[q].acc + d) / splat(states[q].total));
}

/* Fields: see attend. Needs Hq <= MAX_HEADS, D <= MAX_HEAD and a multiple of 8. */
void decode_attention(const struct operation *o, const struct worker *me) {
    const int *tables = o->p[3], *seq_lens = o->p[4];
    const long *rows = o->p[5], *tokens = o->p[6];
    long R = o->n[0], heads = o->n[2], window = o->n[7];
    long parts = R >= 2 * me->count ? 1 : heads; /* few rows: threads share the heads of a row */
    struct head_state states[MAX_HEADS];
    for (long piece = claim(me); piece < R * parts; piece = claim(me)) {
        long i = piece / parts, part = piece % parts;
        long row = rows ? rows[i] : i, token = tokens ? tokens[i] : i, end = seq_lens[row];
        struct span span = {
            .table = tables + row * o->n[5],
            .first = window > 0 && end > window ? end - window : 0,
            .end = end,
            .first_head = part * heads / parts,
            .end_head = (part + 1) * heads / parts,
        };
        attend(o, &span, (const float *)o->p[0] + token * o->n[6], (float *)o->p[7] + token * o->n[1] * o->n[3], states);
    }
}
