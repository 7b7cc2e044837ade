/* What stands between the products: rows looked up, normed, rotated, activated, written to the cache, masked. */

#include <math.h>
#include <string.h>

#include "program.h"
#include "vectors.h"

#define PANEL 16
#define ACTIVATED 128 /* activations that are one piece of work */

/* p: token ids [T], weight [V, N], y [T, N]; n: T, N, whether the weight lies in panels. */
void embed(const struct operation *o, struct worker *me) {
    const long *token_ids = o->p[0];
    const float *weight = o->p[1];
    long N = o->n[1], first, end;
    while (next_share(me, o->n[0], 1, &first, &end))
        for (long t = first; t < end; t++) {
            float *to = (float *)o->p[2] + t * N;
            if (!o->n[2]) {
                memcpy(to, weight + token_ids[t] * N, N * sizeof(float));
                continue;
            }
            const float *from = weight + token_ids[t] / PANEL * PANEL * N + token_ids[t] % PANEL;
            for (long i = 0; i < N; i++) to[i] = from[i * PANEL];
        }
}

/* residual += x when x is given; y = residual / rms(residual) * weight. Rows of the residual lie `stride` floats apart and
 * hold H parts of N, each with its own norm and its own part of the weight; x and y lie tightly.
 * p: x or NULL, residual [T, H, N], weight [H, N], y; n: T, H, N, stride; f: epsilon. */
void rms_norm(const struct operation *o, struct worker *me) {
    const float *x = o->p[0], *weights = o->p[2];
    float *residual = o->p[1], *y = o->p[3];
    long H = o->n[1], N = o->n[2], stride = o->n[3], first, end;
    float eps = (float)o->f;
    while (next_share(me, o->n[0] * H, 1, &first, &end))
        for (long t = first; t < end; t++) {
            float *row = residual + t / H * stride + t % H * N;
            const float *weight = weights + t % H * N;
            float squares = 0.0f;
            if (x)
                for (long i = 0; i < N; i++) row[i] += x[t * N + i];
            vec even = splat(0.0f), odd = splat(0.0f);
            long i = 0;
            for (; i + 2 * LANES <= N; i += 2 * LANES) {
                even += load(row + i) * load(row + i);
                odd += load(row + i + LANES) * load(row + i + LANES);
            }
            for (; i < N; i++) squares += row[i] * row[i];
            float scale = 1.0f / sqrtf((sum(even + odd) + squares) / (float)N + eps);
            for (i = 0; i < N; i++) y[t * N + i] = row[i] * scale * weight[i];
        }
}

/* Pairs (i, i + D/2) of every head of x [T, heads, D], `stride` floats between tokens; a row of the table: D/2 cosines, then
 * sines. p: x, table [.., D], positions [T], y; n: T, heads, D, stride. */
void rotary(const struct operation *o, struct worker *me) {
    const float *x = o->p[0], *table = o->p[1];
    const long *positions = o->p[2];
    long heads = o->n[1], D = o->n[2], stride = o->n[3], half = D / 2, first, end;
    while (next_share(me, o->n[0], 1, &first, &end))
        for (long t = first; t < end; t++)
            for (long h = 0; h < heads; h++) {
                const float *from = x + t * stride + h * D, *c = table + positions[t] * D, *s = c + half;
                float *to = (float *)o->p[3] + (t * heads + h) * D;
                for (long i = 0; i < half; i++) {
                    to[i] = from[i] * c[i] - from[i + half] * s[i];
                    to[i + half] = from[i + half] * c[i] + from[i] * s[i];
                }
            }
}

/* y [T, I] = silu(gate) * up of x [T, 2 I]. p: x, y; n: T, I. */
void silu_mul(const struct operation *o, struct worker *me) {
    long I = o->n[1], pieces = (I + ACTIVATED - 1) / ACTIVATED, first, end;
    while (next_share(me, o->n[0] * pieces, 1, &first, &end))
        for (long piece = first; piece < end; piece++) {
            long t = piece / pieces, i = piece % pieces * ACTIVATED, stop = i + ACTIVATED < I ? i + ACTIVATED : I;
            const float *gate = (const float *)o->p[0] + 2 * t * I, *up = gate + I;
            float *to = (float *)o->p[1] + t * I;
            for (; i + LANES <= stop; i += LANES) {
                vec g = load(gate + i);
                ivec negative = g < splat(0.0f);
                vec small = exp_negative(choose(negative, g, -g)); /* exp(-|g|) never overflows */
                vec upper = splat(1.0f) / (splat(1.0f) + small);
                store(to + i, g * choose(negative, small * upper, upper) * load(up + i));
            }
            for (; i < stop; i++) to[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
        }
}

/* Rows [T, width] of keys and values into slots of the two sides of a cache [slots, width].
 * p: key, value, key cache, value cache, slots [T]; n: T, width, floats between keys, floats between values. */
void write_kv(const struct operation *o, struct worker *me) {
    const long *slots = o->p[4];
    long width = o->n[1], first, end;
    while (next_share(me, o->n[0], 1, &first, &end))
        for (long t = first; t < end; t++)
            for (int side = 0; side < 2; side++)
                memcpy((float *)o->p[2 + side] + slots[t] * width, (const float *)o->p[side] + t * o->n[2 + side],
                       width * sizeof(float));
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
