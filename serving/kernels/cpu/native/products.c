/* Matrix products with few to some hundred rows. Weights lie in panels of sixteen outputs, [N / 16, K, 16], so that each
 * thread reads long runs of memory whatever the shape is, and no sum crosses lanes: each output adds its products in the
 * order of k, alone, so that its bits do not depend on how many rows there are. */

#include <stddef.h>
#include <string.h>

#include "program.h"
#include "vectors.h"

#define PANEL 16
/* A panel is one vector where registers hold sixteen floats. There are twice as many of those, so tiles are larger: more
 * products for each value that is loaded. */
#ifdef __AVX512F__
typedef float strip __attribute__((vector_size(64)));
typedef float loose_strip __attribute__((vector_size(64), aligned(4), may_alias));
#define TILE_ROWS 12
#define TILE_PANELS 2
#define CLAIM 2
#else
typedef vec strip;
typedef loose_vec loose_strip;
#define TILE_ROWS 6
#define TILE_PANELS 1
#define CLAIM 4 /* panels that a thread takes at a time: who loses its core for a while takes fewer of them */
#endif
#define STRIP ((long)(sizeof(strip) / sizeof(float)))
#define WIDTH (PANEL / STRIP)
#define STREAMS 4    /* panels of one row read side by side: that many runs of memory keep the prefetchers busy */
#define ROW_BLOCK 96 /* rows of x that all panels go through before the next ones */
#define FEW_ROWS 3   /* up to which products are bound by memory, whatever is done */

struct product {
    const float *x, *w, *bias;
    float *y;
    long M, N, K;
};

INLINE strip load_strip(const float *p) { return *(const loose_strip *)p; }
INLINE void store_strip(float *p, strip v) { *(loose_strip *)p = v; }

/* `rows` rows of x times `panels` panels of w, the first for the outputs from `panel` on. Meanwhile `ahead` cache lines for
 * every eight of k are fetched from `next` on. */
INLINE void tile(const struct product *p, long row, long panel, int rows, int panels, int ahead, const float *next) {
    const float *x = p->x + row * p->K, *w = p->w + panel * p->K * PANEL;
    long K = p->K, k = 0;
    strip acc[TILE_ROWS][STREAMS * WIDTH];
    for (int m = 0; m < rows; m++)
        for (int v = 0; v < panels * WIDTH; v++) acc[m][v] = (strip){0};
#define STEP(k)                                                                                            \
    {                                                                                                      \
        strip weights[STREAMS * WIDTH];                                                                    \
        for (int v = 0; v < panels * WIDTH; v++)                                                           \
            weights[v] = load_strip(w + (v / WIDTH * K + (k)) * PANEL + v % WIDTH * STRIP);                \
        for (int m = 0; m < rows; m++) {                                                                   \
            float value = x[m * K + (k)];                                                                  \
            for (int v = 0; v < panels * WIDTH; v++) acc[m][v] += value * weights[v];                      \
        }                                                                                                  \
    }
    for (; k + 8 <= K; k += 8) {
        for (int i = 0; i < ahead; i++) __builtin_prefetch(next + i * CACHE_LINE, 0, 2);
        next += ahead * CACHE_LINE;
        STEP(k) STEP(k + 1) STEP(k + 2) STEP(k + 3) STEP(k + 4) STEP(k + 5) STEP(k + 6) STEP(k + 7)
    }
    for (; k < K; k++) STEP(k)
#undef STEP
    for (int v = 0; v < panels * WIDTH; v++) {
        long output = panel * PANEL + v * STRIP;
        for (int m = 0; m < rows; m++)
            store_strip(p->y + (row + m) * p->N + output,
                        p->bias ? acc[m][v] + load_strip(p->bias + output) : acc[m][v]);
    }
}

INLINE void tile_of(const struct product *p, long row, long panel, long rows, int panels, int ahead, const float *next) {
#define HEIGHT(rows) \
    case rows: tile(p, row, panel, rows, panels, ahead, next); break;
    switch (rows) {
        HEIGHT(1) HEIGHT(2) HEIGHT(3) HEIGHT(4) HEIGHT(5) HEIGHT(6)
#if TILE_ROWS == 12
        HEIGHT(7) HEIGHT(8) HEIGHT(9) HEIGHT(10) HEIGHT(11) HEIGHT(12)
#endif
    }
#undef HEIGHT
}

/* Not inlined: each of their tiles is some hundred instructions, and the compiler would take seconds for every copy. */
#define APART static __attribute__((noinline))
APART void tile_of_one(const struct product *p, long row, long panel, long rows, int ahead, const float *next) {
    tile_of(p, row, panel, rows, 1, ahead, next);
}
APART void tile_of_two(const struct product *p, long row, long panel, long rows, int ahead, const float *next) {
    tile_of(p, row, panel, rows, 2, ahead, next);
}

/* One to three rows: every panel once, several side by side. */
static void side_by_side(const struct product *p, long first, long end) {
    int streams = p->M == 1 ? STREAMS : 2;
    long panel = first;
    for (; panel + streams <= end; panel += streams) {
        if (p->M == 1) tile(p, 0, panel, 1, STREAMS, 0, NULL);
        else if (p->M == 2) tile(p, 0, panel, 2, 2, 0, NULL);
        else tile(p, 0, panel, 3, 2, 0, NULL);
    }
    for (; panel < end; panel++) tile_of_one(p, 0, panel, p->M, 0, NULL);
}

/* The panels of the tile at a thread's claim. */
INLINE struct run panels_of(const struct operation *o, long claim) {
    long panel = o->n[2] * PANEL;
    return (struct run){(const float *)o->p[1] + claim * CLAIM * panel, TILE_PANELS * panel};
}

struct run first_weights(const struct operation *product, const struct worker *me) { return panels_of(product, me->index); }

/* What this thread reads after `piece` of a product with `claims` claims, as far as can be told: threads mostly take turns. */
static struct run weights_after(const struct operation *o, const struct worker *me, long piece, long pieces, long claims) {
    long then = piece + me->count;
    if (then < pieces) return panels_of(o, then % claims);
    const struct operation *next = next_product(o, me);
    return next ? first_weights(next, me) : (struct run){NULL, 0};
}

/* Rows start ... stop of some panels, in tiles of equal height, each of which fetches a part of `next` from memory. Without it
 * memory rests while a tile computes: what the processor fetches ahead by itself ends with every page. */
INLINE void panel_rows(const struct product *p, long panel, int panels, long start, long stop, struct run next) {
    long tiles = (stop - start + TILE_ROWS - 1) / TILE_ROWS;
    int ahead = tiles == 1 ? (3 * (stop - start) > 2 * TILE_ROWS ? 8 : 0) : tiles == 2 ? 4 : tiles == 3 ? 3 : tiles == 4 ? 2 : 1;
    long share = p->K / 8 * panels * ahead * CACHE_LINE;
    for (long row = start; tiles > 0; tiles--) {
        long rows = (stop - row + tiles - 1) / tiles;
        int fetched = next.length > 0 ? panels * ahead : 0;
        if (panels == 2) tile_of_two(p, row, panel, rows, fetched, next.from);
        else tile_of_one(p, row, panel, rows, fetched, next.from);
        if (fetched) next.from += share;
        next.length -= share;
        row += rows;
    }
}

/* p: x [M, K], w in panels, bias [N] or NULL, y [M, N]; n: M, N, K. */
void linear_panels(const struct operation *o, struct worker *me) {
    struct product p = {o->p[0], o->p[1], o->p[2], o->p[3], o->n[0], o->n[1], o->n[2]};
    long claim = p.M <= FEW_ROWS ? STREAMS : CLAIM;
    long panels = p.N / PANEL, claims = (panels + claim - 1) / claim, pieces = (p.M + ROW_BLOCK - 1) / ROW_BLOCK * claims;
    for (long piece; (piece = next_piece(me, pieces)) >= 0;) {
        long panel = piece % claims * claim, end = panel + claim < panels ? panel + claim : panels;
        if (p.M <= FEW_ROWS) {
            side_by_side(&p, panel, end);
            continue;
        }
        long start = piece / claims * ROW_BLOCK, stop = start + ROW_BLOCK < p.M ? start + ROW_BLOCK : p.M;
        struct run after = weights_after(o, me, piece, pieces, claims);
        for (long step; panel < end; panel += step) {
            step = panel + TILE_PANELS <= end ? TILE_PANELS : 1;
            struct run next = {p.w + (panel + step) * p.K * PANEL, TILE_PANELS * p.K * PANEL};
            panel_rows(&p, panel, step, start, stop, panel + step < end ? next : after);
        }
    }
}

/* Rewrites rows [N, K] as panels in their own memory. p: w, scratch [count of threads, 16, K]; n: N, K. */
void pack_panels(const struct operation *o, struct worker *me) {
    long N = o->n[0], K = o->n[1], first, end;
    float *scratch = (float *)o->p[1] + me->index * PANEL * K;
    while (next_share(me, N / PANEL, 1, &first, &end))
        for (long panel = first; panel < end; panel++) {
            float *at = (float *)o->p[0] + panel * PANEL * K;
            memcpy(scratch, at, PANEL * K * sizeof(float));
            for (long k = 0; k < K; k++)
                for (long lane = 0; lane < PANEL; lane++) at[k * PANEL + lane] = scratch[lane * K + k];
        }
}

/* Dot products of `rows` rows of x with `cols` rows of w. */
INLINE void dots(const float *x, const float *w, const float *bias, float *y, long K, long N, int rows, int cols) {
    vec acc[3][4];
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

INLINE void dot_rows(const float *x, const float *w, const float *bias, float *y, long M, long K, long N, int cols) {
    long m = 0;
    for (; m + 3 <= M; m += 3) dots(x + m * K, w, bias, y + m * N, K, N, 3, cols);
    for (; m < M; m++) dots(x + m * K, w, bias, y + m * N, K, N, 1, cols);
}

/* Weights as they are, [N, K], for shapes that make no whole panels. Fields as in linear_panels. */
void linear_rows(const struct operation *o, struct worker *me) {
    const float *x = o->p[0], *w = o->p[1], *bias = o->p[2];
    float *y = o->p[3];
    long M = o->n[0], N = o->n[1], K = o->n[2], first, end;
    while (next_share(me, (N + 3) / 4, 8, &first, &end))
        for (long n = 4 * first; n < 4 * end && n < N; n += 4) {
            if (n + 4 <= N) dot_rows(x, w + n * K, bias ? bias + n : NULL, y + n, M, K, N, 4);
            else
                for (long last = n; last < N; last++)
                    dot_rows(x, w + last * K, bias ? bias + last : NULL, y + last, M, K, N, 1);
        }
}
