/* Vectors of eight floats, with the extensions of GCC and Clang, and what every kernel does with them. */
#pragma once

typedef float vec __attribute__((vector_size(32)));
typedef int ivec __attribute__((vector_size(32)));
typedef float loose_vec __attribute__((vector_size(32), aligned(4), may_alias));

#define INLINE static inline __attribute__((always_inline))
#define LANES 8
#define CACHE_LINE 16 /* floats */

INLINE vec load(const float *p) { return *(const loose_vec *)p; }
INLINE void store(float *p, vec v) { *(loose_vec *)p = v; }
INLINE vec splat(float x) { return (vec){x, x, x, x, x, x, x, x}; }

INLINE vec choose(ivec mask, vec yes, vec no) { return (vec)((mask & (ivec)yes) | (~mask & (ivec)no)); }

/* Lanes of two vectors, by number: those of the second follow those of the first. */
#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (ivec){__VA_ARGS__})
#endif

INLINE float sum(vec v) {
    v += SHUFFLE(v, v, 4, 5, 6, 7, 0, 1, 2, 3);
    v += SHUFFLE(v, v, 2, 3, 0, 1, 6, 7, 4, 5);
    return v[0] + v[1];
}

/* The four sums of four vectors. */
INLINE void sum_four(const vec *v, float *sums) {
    vec left = SHUFFLE(v[0], v[1], 0, 2, 8, 10, 4, 6, 12, 14) + SHUFFLE(v[0], v[1], 1, 3, 9, 11, 5, 7, 13, 15);
    vec right = SHUFFLE(v[2], v[3], 0, 2, 8, 10, 4, 6, 12, 14) + SHUFFLE(v[2], v[3], 1, 3, 9, 11, 5, 7, 13, 15);
    vec both = SHUFFLE(left, right, 0, 2, 8, 10, 4, 6, 12, 14) + SHUFFLE(left, right, 1, 3, 9, 11, 5, 7, 13, 15);
    for (int i = 0; i < 4; i++) sums[i] = both[i] + both[i + 4];
}

/* exp for x <= 0: 2^n times a degree-6 polynomial in the rest; relative error below 2e-7 (Cephes expf's reduction). */
INLINE vec exp_negative(vec x) {
    x = choose(x < splat(-87.0f), splat(-87.0f), x);
    vec scaled = x * splat(1.44269504088896341f);
    ivec n = __builtin_convertvector(scaled - splat(0.5f), ivec);
    vec whole = __builtin_convertvector(n, vec);
    vec r = x - whole * splat(0.693359375f) - whole * splat(-2.12194440e-4f);
    vec p = splat(1.9875691500e-4f);
    p = p * r + splat(1.3981999507e-3f);
    p = p * r + splat(8.3334519073e-3f);
    p = p * r + splat(4.1665795894e-2f);
    p = p * r + splat(1.6666665459e-1f);
    p = p * r + splat(5.0000001201e-1f);
    p = p * r * r + r + splat(1.0f);
    return p * (vec)((n + 127) << 23);
}
