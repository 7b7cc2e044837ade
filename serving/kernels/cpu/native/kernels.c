/* float32 kernels for few rows: matrix products that read each weight once, and decode attention that reads the paged
 * cache where it lies. Compiled on the machine that runs them (see library.py), for its own instruction set, with the
 * vector extensions of GCC and Clang. Threads are those of the OpenMP runtime that torch has loaded. */

#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "vectors.h"

#define CACHE_LINE 16    /* floats */
#define MAX_HEADS 128 /* query heads of a rank */
#define MAX_HEAD 256  /* floats of a head */
#define CHUNK 32      /* keys whose scores are held at once */

/* ---------------------------------------------------------------- y[M, N] = x[M, K] w[N, K]^T + bias */

INLINE void product_tile(const float *x, const float *w, const float *bias, float *y, long K, long N, int rows, int cols) {
    vec acc[4][4];
    for (int m = 0; m < rows; m++)
        for (int n = 0; n < cols; n++) acc[m][n] = splat(0.0f);
    long k = 0;
    for (; k + LANES <= K; k += LANES) {
        vec weights[4];
        for (int n = 0; n < cols; n++) weights[n] = load(w + n * K + k);
        for (int m = 0; m < rows; m++) {
            vec values = load(x + m * K + k);
            for (int n = 0; n < cols; n++) acc[m][n] += values * weights[n];
        }
    }
    for (int m = 0; m < rows; m++)
        for (int n = 0; n < cols; n++) {
            float total = sum(acc[m][n]);
            for (long rest = k; rest < K; rest++) total += x[m * K + rest] * w[n * K + rest];
            y[m * N + n] = bias ? total + bias[n] : total;
        }
}

INLINE void product_columns(const float *x, const float *w, const float *bias, float *y, long M, long K, long N, int cols) {
    if (M == 3) product_tile(x, w, bias, y, K, N, 3, cols);
    else if (M == 2) product_tile(x, w, bias, y, K, N, 2, cols);
    else product_tile(x, w, bias, y, K, N, 1, cols);
}

/* Up to three rows: dot products, four rows of w at a time. */
static void few_rows(const float *x, const float *w, const float *bias, float *y, long M, long N, long K, int threads) {
    long blocks = N / 4;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long b = 0; b < blocks; b++)
        product_columns(x, w + 4 * b * K, bias ? bias + 4 * b : NULL, y + 4 * b, M, K, N, 4);
    for (long n = 4 * blocks; n < N; n++) product_columns(x, w + n * K, bias ? bias + n : NULL, y + n, M, K, N, 1);
}

/* A panel of `width` vectors of rows of x, transposed to [K, width * LANES], times `cols` rows of w. No sum crosses lanes. */
INLINE void panel_tile(const float *panel, const float *w, const float *bias, float *y, long K, long N, long rows, int width,
                       int cols) {
    vec acc[12][2];
    for (int n = 0; n < cols; n++)
        for (int v = 0; v < width; v++) acc[n][v] = splat(bias ? bias[n] : 0.0f);
    for (long start = 0; start < K; start += CACHE_LINE) {
        long end = start + CACHE_LINE < K ? start + CACHE_LINE : K;
        for (int n = 0; n < cols; n++) __builtin_prefetch(w + (n + cols) * K + start); /* the next rows of w */
        for (long k = start; k < end; k++) {
            vec values[2];
            for (int v = 0; v < width; v++) values[v] = load(panel + (k * width + v) * LANES);
            for (int n = 0; n < cols; n++) {
                vec weight = splat(w[n * K + k]);
                for (int v = 0; v < width; v++) acc[n][v] += values[v] * weight;
            }
        }
    }
    float tile[12][2 * LANES];
    for (int n = 0; n < cols; n++)
        for (int v = 0; v < width; v++) store(&tile[n][v * LANES], acc[n][v]);
    for (long m = 0; m < rows; m++)
        for (int n = 0; n < cols; n++) y[m * N + n] = tile[n][m];
}

INLINE void panel_columns(const float *panel, const float *w, const float *bias, float *y, long M, long K, long N, int cols) {
    long m = 0;
    for (; M - m > LANES; m += 2 * LANES)
        panel_tile(panel + m * K, w, bias, y + m * N, K, N, M - m < 2 * LANES ? M - m : 2 * LANES, 2, cols);
    if (m < M) panel_tile(panel + m * K, w, bias, y + m * N, K, N, M - m, 1, cols);
}

/* More rows: sums over k of outer products, six rows of w by sixteen rows of x in registers. */
static int many_rows(const float *x, const float *w, const float *bias, float *y, long M, long N, long K, int threads) {
    long padded = (M + LANES - 1) / LANES * LANES, blocks = N / 6;
    float *panels = aligned_alloc(64, (size_t)(padded * K * (long)sizeof(float) + 63) / 64 * 64);
    if (!panels) return 0;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (long p = 0; p < padded / LANES; p++) {
            /* Pairs of vectors form one panel, as panel_columns takes them. */
            long first = p / 2 * 2, width = first + 1 < padded / LANES ? 2 : 1;
            float *panel = panels + first * LANES * K + (p - first) * LANES;
            for (long k = 0; k < K; k++)
                for (long lane = 0; lane < LANES; lane++) {
                    long m = p * LANES + lane;
                    panel[k * width * LANES + lane] = m < M ? x[m * K + k] : 0.0f;
                }
        }
#pragma omp for schedule(static)
        for (long b = 0; b < blocks; b++)
            panel_columns(panels, w + 6 * b * K, bias ? bias + 6 * b : NULL, y + 6 * b, M, K, N, 6);
#pragma omp single
        for (long n = 6 * blocks; n < N; n++)
            panel_columns(panels, w + n * K, bias ? bias + n : NULL, y + n, M, K, N, 1);
    }
    free(panels);
    return 1;
}

void linear_f32(const float *x, const float *w, const float *bias, float *y, long M, long N, long K, int threads) {
    if (M > 3 && many_rows(x, w, bias, y, M, N, K, threads)) return;
    for (long m = 0; m < M; m += 3)
        few_rows(x + m * K, w, bias, y + m * N, M - m < 3 ? M - m : 3, N, K, threads);
}

/* ---------------------------------------------------------------- paged cache */

/* Rows [T, H, D] with `stride` floats between tokens, into slots of a cache [slots, H, D]. */
static void write_side(const float *from, long stride, float *cache, const long *slots, long T, long width) {
    for (long t = 0; t < T; t++) memcpy(cache + slots[t] * width, from + t * stride, width * sizeof(float));
}

void write_kv_f32(const float *key, long key_stride, const float *value, long value_stride, float *key_cache,
                  float *value_cache, const long *slots, long T, long width) {
    write_side(key, key_stride, key_cache, slots, T, width);
    write_side(value, value_stride, value_cache, slots, T, width);
}

/* acc[vectors] += sum over t of weights[t] * rows[t][vectors]; the sums stay in registers. */
INLINE void add_weighted(vec *acc, const float *weights, const float *const *rows, long offset, long count, int vectors) {
    vec sums[8];
    for (int d = 0; d < vectors; d++) sums[d] = acc[d];
    for (long t = 0; t < count; t++) {
        vec weight = splat(weights[t]);
        for (int d = 0; d < vectors; d++) sums[d] += weight * load(rows[t] + offset + d * LANES);
    }
    for (int d = 0; d < vectors; d++) acc[d] = sums[d];
}

struct head_state {
    float best, total;
    vec acc[MAX_HEAD / LANES];
};

/* One query head over `count` keys: scores, softmax weights against the running maximum, weighted values. */
static void attend_chunk(struct head_state *state, const float *query, const float *const *keys, const float *const *values,
                         long count, long D, float scale) {
    float scores[CHUNK] __attribute__((aligned(32)));
    float highest = state->best;
    for (long t = 0; t < count; t++) {
        vec even = splat(0.0f), odd = splat(0.0f);
        long d = 0;
        for (; d + 2 * LANES <= D; d += 2 * LANES) {
            even += load(query + d) * load(keys[t] + d);
            odd += load(query + d + LANES) * load(keys[t] + d + LANES);
        }
        if (d < D) even += load(query + d) * load(keys[t] + d);
        scores[t] = sum(even + odd) * scale;
        highest = scores[t] > highest ? scores[t] : highest;
    }
    if (highest > state->best) {
        float rescale = expf(state->best - highest);
        state->total *= rescale;
        for (long d = 0; d < D / LANES; d++) state->acc[d] *= splat(rescale);
        state->best = highest;
    }
    for (long t = count; t < CHUNK; t++) scores[t] = -INFINITY;
    for (long t = 0; t < CHUNK; t += LANES) store(scores + t, exp_negative(load(scores + t) - splat(highest)));
    for (long t = count; t < CHUNK; t++) scores[t] = 0.0f;
    vec total = splat(0.0f);
    for (long t = 0; t < CHUNK; t += LANES) total += load(scores + t);
    state->total += sum(total);
    long left = D / LANES, done = 0;
    for (; left >= 8; left -= 8, done += 8) add_weighted(state->acc + done, scores, values, done * LANES, count, 8);
    for (; left >= 4; left -= 4, done += 4) add_weighted(state->acc + done, scores, values, done * LANES, count, 4);
    for (; left > 0; left--, done++) add_weighted(state->acc + done, scores, values, done * LANES, count, 1);
}

/* Query heads of one row that belong to KV heads first_head ... end_head: online softmax over chunks of keys. Heads are the
 * inner loop, because the keys of all heads of a token lie together. `states` has room for the query heads. */
static void attend(const float *query, const float *key_cache, const float *value_cache, const int *table, long first,
                   long end, long first_head, long end_head, long group, long heads, long D, long block_size, float scale,
                   struct head_state *states, float *out) {
    const float *keys[CHUNK], *values[CHUNK];
    for (long q = first_head * group; q < end_head * group; q++) {
        states[q].best = -INFINITY;
        states[q].total = 0.0f;
        for (long d = 0; d < D / LANES; d++) states[q].acc[d] = splat(0.0f);
    }
    for (long start = first; start < end; start += CHUNK) {
        long count = end - start < CHUNK ? end - start : CHUNK;
        for (long h = first_head; h < end_head; h++) {
            for (long t = 0; t < count; t++) {
                long position = start + t;
                long slot = (long)table[position / block_size] * block_size + position % block_size;
                keys[t] = key_cache + (slot * heads + h) * D;
                values[t] = value_cache + (slot * heads + h) * D;
            }
            for (long g = 0; g < group; g++)
                attend_chunk(&states[h * group + g], query + (h * group + g) * D, keys, values, count, D, scale);
        }
    }
    for (long q = first_head * group; q < end_head * group; q++)
        for (long d = 0; d < D / LANES; d++) store(out + q * D + d * LANES, states[q].acc[d] / splat(states[q].total));
}

/* One query per listed row. query: token t at query + t * query_stride, [Hq, D]; cache sides [slots, Hkv, D]; out [T, Hq, D].
 * rows[i] indexes tables and seq_lens, tokens[i] query and out; without them row i has token i. Needs Hq <= MAX_HEADS, D <= MAX_HEAD and a multiple of 8. */
void decode_f32(const float *query, long query_stride, const float *key_cache, const float *value_cache,
                const int *tables, long table_width, const int *seq_lens, const long *rows, const long *tokens,
                long num_rows, long num_heads, long num_kv_heads, long D, long block_size, float scale, long window,
                float *out, int threads) {
    long group = num_heads / num_kv_heads;
    long parts = num_rows >= 2 * threads ? 1 : num_kv_heads; /* few rows: threads share the heads of a row */
#pragma omp parallel num_threads(threads)
    {
        struct head_state states[MAX_HEADS];
#pragma omp for collapse(2) schedule(dynamic, 1)
        for (long i = 0; i < num_rows; i++)
            for (long part = 0; part < parts; part++) {
                long row = rows ? rows[i] : i, token = tokens ? tokens[i] : i, end = seq_lens[row];
                long first = window > 0 && end > window ? end - window : 0;
                long first_head = part * num_kv_heads / parts, end_head = (part + 1) * num_kv_heads / parts;
                attend(query + token * query_stride, key_cache, value_cache, tables + row * table_width, first, end,
                       first_head, end_head, group, num_kv_heads, D, block_size, scale, states,
                       out + token * num_heads * D);
            }
    }
}

/* ---------------------------------------------------------------- pointwise, [T, N] rows */

/* Rows of weight [V, N]. */
void embed_f32(const long *token_ids, const float *weight, float *y, long T, long N) {
    for (long t = 0; t < T; t++) memcpy(y + t * N, weight + token_ids[t] * N, N * sizeof(float));
}

/* residual += x when x is given; y = residual / rms(residual) * weight. Rows t of `residual` are `stride` floats apart and
 * hold H parts of N, each with its own norm and its own part of weight [H, N]; x and y lie tightly. */
void rms_norm_f32(const float *x, float *residual, long stride, const float *weights, float *y, long T, long H, long N,
                  float eps, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (T * H * N > 65536)
    for (long t = 0; t < T * H; t++) {
        float *row = residual + t / H * stride + t % H * N;
        const float *weight = weights + t % H * N;
        float squares = 0.0f;
        if (x)
            for (long i = 0; i < N; i++) row[i] += x[t * N + i];
        vec partial = splat(0.0f);
        long i = 0;
        for (; i + LANES <= N; i += LANES) partial += load(row + i) * load(row + i);
        for (; i < N; i++) squares += row[i] * row[i];
        float scale = 1.0f / sqrtf((sum(partial) + squares) / (float)N + eps);
        for (i = 0; i < N; i++) y[t * N + i] = row[i] * scale * weight[i];
    }
}

/* Pairs (i, i + D/2) of every head of x [T, heads, D], `stride` floats between tokens; a row of table [.., D]: cosines, then
 * sines. */
void rotary_f32(const float *x, long stride, const float *table, const long *positions, float *y, long T, long heads, long D,
                int threads) {
    long half = D / 2;
#pragma omp parallel for schedule(static) num_threads(threads) if (T * heads * D > 65536)
    for (long t = 0; t < T; t++)
        for (long h = 0; h < heads; h++) {
            const float *from = x + t * stride + h * D, *c = table + positions[t] * D, *s = c + half;
            float *to = y + (t * heads + h) * D;
            for (long i = 0; i < half; i++) {
                to[i] = from[i] * c[i] - from[i + half] * s[i];
                to[i + half] = from[i + half] * c[i] + from[i] * s[i];
            }
        }
}

/* y[T, I] = silu(gate) * up of x [T, 2 I]. */
void silu_mul_f32(const float *x, float *y, long T, long I, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (T * I > 32768)
    for (long t = 0; t < T; t++) {
        const float *gate = x + 2 * t * I, *up = gate + I;
        float *to = y + t * I;
        long i = 0;
        for (; i + LANES <= I; i += LANES) {
            vec g = load(gate + i);
            ivec negative = g < splat(0.0f);
            vec small = exp_negative(choose(negative, g, -g)); /* exp(-|g|) never overflows */
            vec upper = splat(1.0f) / (splat(1.0f) + small);
            store(to + i, g * choose(negative, small * upper, upper) * load(up + i));
        }
        for (; i < I; i++) to[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
    }
}

/* Of M rows of logits [.., V], those named in rows, tokens whose bit is 0 in bits [M, W] get -inf, as do those beyond 32 W. */
void mask_tokens_f32(float *logits, long stride, const unsigned *bits, long W, const long *rows, long M, long V) {
    for (long m = 0; m < M; m++) {
        float *row = logits + rows[m] * stride;
        const unsigned *words = bits + m * W;
        for (long first = 0, w = 0; first < V; first += 32, w++) {
            long end = first + 32 < V ? first + 32 : V;
            unsigned permitted = w < W ? words[w] : 0;
            if (permitted == ~0u) continue;
            for (long i = first; i < end; i++) row[i] = permitted >> (i - first) & 1 ? row[i] : -INFINITY;
        }
    }
}
