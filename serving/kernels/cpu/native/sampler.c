/* Choosing tokens from rows of float32 logits: one call per step for all rows. The rules, and the torch twin of everything
 * here, are those of serving/sampling/sampler.py. Filters and draws decide in float64, as the twin does: the two differ by
 * rounding at 1e-16 of a probability, so they draw the same tokens from the same seeds.
 *
 * A row is worked on in blocks of 64 tokens. A block in which nothing is permitted is never read. */

#include <math.h>
#include <omp.h>
#include <stddef.h>
#include <string.h>

#include "vectors.h"

#define BLOCK 64      /* tokens: two words of a mask */
#define WORD 32       /* tokens of one word of a mask */
#define CHUNK 1024    /* tokens whose maximum is taken before their exponentials, from the first-level cache */
#define BUCKETS 2048  /* of the histogram that finds where a cumulative probability is reached */
#define FAR_NATS 60.0 /* what is farther from the first key than this shares the last bucket */
#define FEW 24        /* elements that are sorted by insertion */
#define PARALLEL_UNITS 200000 /* logits of a call from which waking threads pays, also beside a busy neighbour */

typedef double dvec __attribute__((vector_size(32)));
typedef long long lvec __attribute__((vector_size(32)));
typedef float half_vec __attribute__((vector_size(16)));
typedef float loose_half __attribute__((vector_size(16), aligned(4), may_alias));

/* One row's parameters; the same fields as RowPlan in sampling.py, eight bytes each. Off: pointers NULL, counts 0. */
struct plan {
    double temperature; /* 0: greedy */
    long top_k;         /* 0: off */
    double top_p;       /* 1: off */
    double min_p;       /* its logarithm; -inf: off */
    double typical_p;   /* 1: off */
    double repetition, relative, frequency, presence;
    unsigned long long seed;
    long position;
    long top_n;
    long raw;
    long plain; /* greedy, and nothing but a mask may change its logits */
    const int *bias_ids;
    const float *biases;
    long num_biases;
    const unsigned char *green;
    double delta;
    const int *seen_ids, *seen_counts, *output_counts;
    long num_seen, length;
    const int *early_bans;
    long num_early_bans;
    const int *late_bans;
    long num_late_bans, min_new_tokens;
};

struct candidate {
    double key; /* the smallest first */
    double mass;
    long id;
};

/* What one row needs beside its logits. Blocks whose `best` is -inf hold nothing readable. */
struct work {
    long num_blocks;
    float *logits;
    double *mass, *keys;
    struct candidate *candidates;
    float *best;
    double *block_mass;
};

static struct work carve(char *scratch, long V) {
    struct work work;
    work.num_blocks = (V + BLOCK - 1) / BLOCK;
    long padded = work.num_blocks * BLOCK;
    work.candidates = (struct candidate *)scratch;
    work.mass = (double *)(work.candidates + padded);
    work.keys = work.mass + padded;
    work.block_mass = work.keys + padded;
    work.logits = (float *)(work.block_mass + work.num_blocks);
    work.best = work.logits + padded;
    return work;
}

long sampler_scratch_bytes(long V) {
    long blocks = (V + BLOCK - 1) / BLOCK;
    long bytes = blocks * BLOCK * (long)(sizeof(struct candidate) + 2 * sizeof(double) + sizeof(float)) +
                 blocks * (long)(sizeof(double) + sizeof(float));
    return (bytes + 255) / 256 * 256;
}

/* ---------------------------------------------------------------- vectors */

/* The larger of each pair; y where x is not a number. */
INLINE vec larger(vec x, vec y) {
#ifdef __AVX__
    return (vec)__builtin_ia32_maxps256(x, y);
#else
    return choose(x > y, x, y);
#endif
}

INLINE float highest(vec v) {
    float best = v[0];
    for (int i = 1; i < LANES; i++) best = v[i] > best ? v[i] : best;
    return best;
}

/* All ones in the lanes whose bit is set in the lowest byte of `octet`. */
INLINE ivec lanes_of(unsigned octet) {
    const ivec bit = {1, 2, 4, 8, 16, 32, 64, 128};
    int o = (int)(octet & 255);
    return ((ivec){o, o, o, o, o, o, o, o} & bit) == bit;
}

INLINE dvec splat_double(double x) { return (dvec){x, x, x, x}; }

/* exp for x <= 0 within 2e-16 of it; 0 below -700, where nothing weighs anything any more. */
INLINE dvec exp_double(dvec x) {
    const double rounder = 0x1.8p52;
    lvec gone = x < splat_double(-700.0);
    x = (dvec)((gone & (lvec)splat_double(-700.0)) | (~gone & (lvec)x));
    dvec shifted = x * splat_double(0x1.71547652b82fep0) + splat_double(rounder);
    dvec n = shifted - splat_double(rounder);
    dvec r = x - n * splat_double(0x1.62e42fefa3800p-1);
    r = r - n * splat_double(0x1.ef35793c76730p-45);
    static const double terms[] = {1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040,
                                   1.0 / 720,       1.0 / 120,      1.0 / 24,      1.0 / 6,      1.0 / 2,     1.0,
                                   1.0};
    dvec p = splat_double(1.0 / 6227020800.0);
    for (int i = 0; i < 13; i++) p = p * r + splat_double(terms[i]);
    return (dvec)(~gone & ((lvec)p + ((lvec)shifted << 52)));
}

/* ---------------------------------------------------------------- greedy: one pass */

struct peak {
    float best;
    long id;
    double total; /* of exp(logit - best) */
};

/* `count` values, a multiple of 8. Returns the place of a new maximum, or -1. */
static long absorb(struct peak *peak, const float *values, long count) {
    vec top = splat(-INFINITY);
    for (long i = 0; i < count; i += LANES) top = larger(load(values + i), top);
    float best = highest(top);
    long place = -1;
    if (best > peak->best) {
        peak->total *= exp((double)peak->best - best);
        peak->best = best;
        for (place = 0; values[place] != best; place++) {}
    }
    if (peak->best == -INFINITY) return place;
    vec total = splat(0.0f), other = splat(0.0f), limit = splat(peak->best);
    long i = 0;
    for (; i + 2 * LANES <= count; i += 2 * LANES) {
        total += exp_negative(load(values + i) - limit);
        other += exp_negative(load(values + i + LANES) - limit);
    }
    for (; i < count; i += LANES) total += exp_negative(load(values + i) - limit);
    peak->total += sum(total + other);
    return place;
}

/* Up to 32 tokens from `first` on, with -inf where not permitted and where the row has ended. */
INLINE void copy_word(float *to, const float *row, long first, long V, unsigned permitted) {
    if (first + WORD <= V) {
        for (int v = 0; v < WORD / LANES; v++) {
            vec x = load(row + first + v * LANES);
            ivec keep = lanes_of(permitted >> (v * LANES)) & (x > splat(-INFINITY));
            store(to + v * LANES, choose(keep, x, splat(-INFINITY)));
        }
        return;
    }
    for (long i = 0; i < WORD; i++) {
        int there = first + i < V && permitted >> i & 1 && row[first + i] > -INFINITY;
        to[i] = there ? row[first + i] : -INFINITY;
    }
}

/* Maximum, its first place, and the sum of exponentials, of what the mask permits; all of it without a mask. */
static struct peak measure(const float *row, long V, const unsigned *bits, long W) {
    struct peak peak = {-INFINITY, 0, 0.0};
    float buffer[CHUNK];
    long words[CHUNK / WORD], held = 0, first = 0;
    if (!bits)
        for (; first + CHUNK <= V; first += CHUNK) {
            long place = absorb(&peak, row + first, CHUNK);
            if (place >= 0) peak.id = first + place;
        }
    for (; first < V; first += WORD) {
        unsigned permitted = !bits ? ~0u : first / WORD < W ? bits[first / WORD] : 0;
        if (permitted) {
            copy_word(buffer + held * WORD, row, first, V, permitted);
            words[held++] = first;
        }
        if (held > 0 && (held == CHUNK / WORD || first + WORD >= V)) {
            long place = absorb(&peak, buffer, held * WORD);
            if (place >= 0) peak.id = words[place / WORD] + place % WORD;
            held = 0;
        }
    }
    return peak;
}

/* ---------------------------------------------------------------- adjustments */

static float best_of_block(const float *logits) {
    vec top = splat(-INFINITY);
    for (int i = 0; i < BLOCK; i += LANES) top = larger(load(logits + i), top);
    return highest(top);
}

static void read_row(struct work *work, const float *row, long V, const unsigned *bits, long W) {
    for (long b = 0; b < work->num_blocks; b++) {
        unsigned permitted[2] = {~0u, ~0u};
        if (bits)
            for (int half = 0; half < 2; half++) permitted[half] = 2 * b + half < W ? bits[2 * b + half] : 0;
        work->best[b] = -INFINITY;
        if (!(permitted[0] | permitted[1])) continue;
        for (int half = 0; half < 2; half++)
            copy_word(work->logits + b * BLOCK + half * WORD, row, b * BLOCK + half * WORD, V, permitted[half]);
        work->best[b] = best_of_block(work->logits + b * BLOCK);
    }
}

INLINE int readable(const struct work *work, long id) {
    return id >= 0 && id < work->num_blocks * BLOCK && work->best[id / BLOCK] > -INFINITY;
}

/* The product of two floats, rounded once: a compiler must not fuse it with what follows. */
INLINE float times(float x, float y) { return (float)((double)x * (double)y); }

/* Bias, watermark, penalties, in the twin's order and float32. Tokens of blocks where nothing is permitted stay away. */
static void adjust(struct work *work, const struct plan *plan, long V) {
    float *logits = work->logits;
    for (long i = 0; i < plan->num_biases; i++)
        if (readable(work, plan->bias_ids[i])) logits[plan->bias_ids[i]] += plan->biases[i];
    if (plan->green)
        for (long b = 0; b < work->num_blocks; b++) {
            if (work->best[b] == -INFINITY) continue;
            long end = (b + 1) * BLOCK < V ? (b + 1) * BLOCK : V;
            for (long i = b * BLOCK; i < end; i++) logits[i] += plan->green[i] ? (float)plan->delta : 0.0f;
        }
    float repetition = (float)plan->repetition;
    for (long i = 0; i < plan->num_seen; i++) {
        long id = plan->seen_ids[i];
        if (!readable(work, id)) continue;
        float value = logits[id], share;
        if (plan->repetition != 1.0) value = value > 0.0f ? value / repetition : times(value, repetition);
        if (plan->relative != 0.0) {
            share = times((float)plan->relative, (float)plan->seen_counts[i]) / (float)plan->length;
            value -= share;
        }
        if (plan->output_counts[i] > 0) {
            share = times((float)plan->frequency, (float)plan->output_counts[i]);
            share += (float)plan->presence;
            value -= share;
        }
        logits[id] = value;
    }
}

/* Take tokens away, unless nothing would be left. `ids` differ from each other. */
static void ban(struct work *work, const int *ids, long count) {
    float *before = (float *)work->candidates;
    for (long i = 0; i < count; i++) {
        if (!readable(work, ids[i])) continue;
        before[i] = work->logits[ids[i]];
        work->logits[ids[i]] = -INFINITY;
    }
    for (long b = 0; b < work->num_blocks && count > 0; b++)
        if (work->best[b] > -INFINITY && best_of_block(work->logits + b * BLOCK) > -INFINITY) return;
    for (long i = 0; i < count; i++)
        if (readable(work, ids[i])) work->logits[ids[i]] = before[i];
}

/* ---------------------------------------------------------------- selection */

/* The k-th largest of `count` values, 1 <= k <= count, none of them NaN; reorders them. */
static float kth_largest(float *values, long count, long k) {
    long low = 0, high = count;
    while (high - low > 1) {
        float a = values[low], b = values[(low + high) / 2], c = values[high - 1];
        float pivot = a > b ? (b > c ? b : a > c ? c : a) : (a > c ? a : b > c ? c : b);
        long above = low, at = low, below = high; /* [low, above) > pivot, [above, at) == pivot, [below, high) < pivot */
        while (at < below) {
            float value = values[at];
            if (value > pivot) {
                values[at++] = values[above];
                values[above++] = value;
            } else if (value < pivot) {
                values[at] = values[--below];
                values[below] = value;
            } else at++;
        }
        if (k - 1 < above) high = above;
        else if (k - 1 < below) return pivot;
        else low = below;
    }
    return values[low];
}

/* A value that at least `count` tokens reach, if there are as many: that many blocks have a best one as high. */
static float reached_by(const struct work *work, long count) {
    if (count > work->num_blocks) return -INFINITY;
    float *values = (float *)work->candidates;
    memcpy(values, work->best, (size_t)work->num_blocks * sizeof(float));
    return kth_largest(values, work->num_blocks, count);
}

/* The value of the k-th place, or -inf if fewer tokens are left. */
static float value_of_place(const struct work *work, long k) {
    float least = reached_by(work, k);
    float *values = (float *)work->candidates;
    long found = 0;
    for (long b = 0; b < work->num_blocks; b++) {
        if (work->best[b] == -INFINITY || work->best[b] < least) continue;
        for (long i = b * BLOCK; i < (b + 1) * BLOCK; i++) {
            values[found] = work->logits[i];
            found += work->logits[i] >= least && work->logits[i] > -INFINITY;
        }
    }
    return k <= found ? kth_largest(values, found, k) : -INFINITY;
}

static int before(const struct candidate *x, const struct candidate *y) {
    return x->key < y->key || (x->key == y->key && x->id < y->id);
}

/* By key, then by id. */
static void sort_candidates(struct candidate *all, long count) {
    while (count > FEW) {
        struct candidate pivot = all[count / 2];
        long left = 0, right = count - 1;
        while (left <= right) {
            while (before(&all[left], &pivot)) left++;
            while (before(&pivot, &all[right])) right--;
            if (left > right) break;
            struct candidate other = all[left];
            all[left++] = all[right];
            all[right--] = other;
        }
        if (right + 1 < count - left) { /* the shorter part by recursion: depth stays logarithmic */
            sort_candidates(all, right + 1);
            all += left;
            count -= left;
        } else {
            sort_candidates(all + left, count - left);
            count = right + 1;
        }
    }
    for (long i = 1; i < count; i++) {
        struct candidate moved = all[i];
        long place = i;
        for (; place > 0 && before(&moved, &all[place - 1]); place--) all[place] = all[place - 1];
        all[place] = moved;
    }
}

/* The `count` likeliest tokens and all that tie with the last of them, likeliest first. Returns how many there are; what
 * is beyond `capacity` is not written. */
static long likeliest(const struct work *work, long count, double normalizer, int *ids, float *logprobs, long capacity) {
    float least = value_of_place(work, count);
    long found = 0;
    for (long b = 0; b < work->num_blocks; b++) {
        if (work->best[b] == -INFINITY || work->best[b] < least) continue;
        for (long i = b * BLOCK; i < (b + 1) * BLOCK; i++) {
            work->candidates[found] = (struct candidate){-(double)work->logits[i], 0.0, i};
            found += work->logits[i] >= least && work->logits[i] > -INFINITY;
        }
    }
    sort_candidates(work->candidates, found);
    for (long i = 0; i < found && i < capacity; i++) {
        double value = -work->candidates[i].key - normalizer;
        ids[i] = (int)work->candidates[i].id;
        logprobs[i] = value < 0.0 ? (float)value : 0.0f;
    }
    return found;
}

/* ---------------------------------------------------------------- filters */

static double total_mass(const struct work *work) {
    double total = 0.0;
    for (long b = 0; b < work->num_blocks; b++) total += work->block_mass[b];
    return total;
}

/* mass = exp(logit - best), and its sum per block. */
static void weigh(struct work *work, float best) {
    for (long b = 0; b < work->num_blocks; b++) {
        work->block_mass[b] = 0.0;
        if (work->best[b] == -INFINITY) continue;
        dvec sums[2] = {splat_double(0.0), splat_double(0.0)};
        for (long i = b * BLOCK; i < (b + 1) * BLOCK; i += 8)
            for (int half = 0; half < 2; half++) {
                half_vec narrow = *(const loose_half *)(work->logits + i + 4 * half);
                dvec mass = exp_double(__builtin_convertvector(narrow, dvec) - splat_double((double)best));
                *(dvec *)(work->mass + i + 4 * half) = mass;
                sums[half] += mass;
            }
        dvec all = sums[0] + sums[1];
        work->block_mass[b] = (all[0] + all[1]) + (all[2] + all[3]);
    }
}

/* Everything whose key is beyond (last_key, last_id) goes. */
static void keep_until(struct work *work, const double *keys, double last_key, long last_id) {
    for (long b = 0; b < work->num_blocks; b++) {
        if (work->best[b] == -INFINITY) continue;
        double mass = 0.0;
        for (long i = b * BLOCK; i < (b + 1) * BLOCK; i++) {
            int keep = keys[i] < last_key || (keys[i] == last_key && i <= last_id);
            work->logits[i] = keep ? work->logits[i] : -INFINITY;
            work->mass[i] = keep ? work->mass[i] : 0.0;
            mass += work->mass[i];
        }
        work->block_mass[b] = mass;
        work->best[b] = best_of_block(work->logits + b * BLOCK);
    }
}

INLINE long bucket_of(double key, double first, double scale) {
    double place = (key - first) * scale;
    return place < BUCKETS - 1 ? (long)place : BUCKETS - 1;
}

/* Keep, in the order of their keys (then ids), tokens until those before reach `share` of the mass. A histogram finds the
 * bucket where that happens; only what is in it is sorted. */
static void keep_share(struct work *work, double share) {
    double histogram[BUCKETS] = {0}, total = total_mass(work), first = INFINITY, last = -INFINITY;
    const double *keys = work->keys;
    for (long b = 0; b < work->num_blocks; b++) {
        if (work->best[b] == -INFINITY) continue;
        for (long i = b * BLOCK; i < (b + 1) * BLOCK; i++) {
            first = keys[i] < first ? keys[i] : first;
            last = keys[i] > last && keys[i] < INFINITY ? keys[i] : last;
        }
    }
    double scale = BUCKETS / (last - first < FAR_NATS ? last - first + 1e-9 : FAR_NATS);
    for (long b = 0; b < work->num_blocks; b++) {
        if (work->best[b] == -INFINITY) continue;
        for (long i = b * BLOCK; i < (b + 1) * BLOCK; i++)
            if (work->mass[i] > 0.0) histogram[bucket_of(keys[i], first, scale)] += work->mass[i];
    }
    double reached = 0.0;
    long bucket = 0;
    while (bucket < BUCKETS && (reached + histogram[bucket]) / total < share) reached += histogram[bucket++];
    if (bucket == BUCKETS) return;
    long found = 0;
    for (long b = 0; b < work->num_blocks; b++) {
        if (work->best[b] == -INFINITY) continue;
        for (long i = b * BLOCK; i < (b + 1) * BLOCK; i++)
            if (keys[i] < INFINITY && bucket_of(keys[i], first, scale) == bucket)
                work->candidates[found++] = (struct candidate){keys[i], work->mass[i], i};
    }
    if (found == 0) return;
    sort_candidates(work->candidates, found);
    reached /= total;
    long kept = 0;
    for (; kept < found && reached < share; kept++) reached += work->candidates[kept].mass / total;
    struct candidate end = work->candidates[kept > 0 ? kept - 1 : 0];
    keep_until(work, keys, end.key, end.id);
}

static void keep_top_k(struct work *work, long k) {
    float least = value_of_place(work, k);
    if (least == -INFINITY) return;
    for (long b = 0; b < work->num_blocks; b++) {
        float *logits = work->logits + b * BLOCK;
        if (work->best[b] < least) work->best[b] = -INFINITY;
        if (work->best[b] == -INFINITY) continue;
        for (long i = 0; i < BLOCK; i++) logits[i] = logits[i] >= least ? logits[i] : -INFINITY;
    }
}

/* Keys that order by logit, the highest first. */
static void key_by_logit(struct work *work) {
    for (long b = 0; b < work->num_blocks; b++)
        if (work->best[b] > -INFINITY)
            for (long i = b * BLOCK; i < (b + 1) * BLOCK; i++) work->keys[i] = -(double)work->logits[i];
}

/* Keys that order by the distance of a token's surprise from the entropy. */
static void key_by_typicality(struct work *work, float best) {
    double total = total_mass(work), normalizer = log(total), expected = 0.0;
    for (long b = 0; b < work->num_blocks; b++)
        if (work->best[b] > -INFINITY)
            for (long i = b * BLOCK; i < (b + 1) * BLOCK; i++)
                if (work->mass[i] > 0.0) expected += work->mass[i] * ((double)work->logits[i] - best);
    double entropy = normalizer - expected / total;
    for (long b = 0; b < work->num_blocks; b++)
        if (work->best[b] > -INFINITY)
            for (long i = b * BLOCK; i < (b + 1) * BLOCK; i++) {
                double distance = fabs(normalizer - ((double)work->logits[i] - best) - entropy);
                work->keys[i] = work->mass[i] > 0.0 ? distance : INFINITY;
            }
}

static void filter(struct work *work, const struct plan *plan, float best) {
    if (plan->top_p < 1.0 || plan->min_p > -INFINITY) key_by_logit(work);
    if (plan->top_p < 1.0) keep_share(work, plan->top_p);
    if (plan->min_p > -INFINITY) keep_until(work, work->keys, -((double)best + plan->min_p), work->num_blocks * BLOCK);
    if (plan->typical_p < 1.0) {
        key_by_typicality(work, best);
        keep_share(work, plan->typical_p);
    }
}

/* ---------------------------------------------------------------- choice */

static unsigned long long mix(unsigned long long x) {
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
    return x ^ (x >> 31);
}

/* The twin is serving/sampling/uniform.py, with the purpose SAMPLE. */
static double uniform(unsigned long long seed, unsigned long long position) {
    const unsigned long long golden = 0x9E3779B97F4A7C15ULL;
    unsigned long long state = mix(seed + golden);
    state = mix((state ^ position) + golden);
    state = mix(state + golden);
    return (double)(state >> 11) * 0x1p-53;
}

/* Inverse CDF: the first token, in id order, whose cumulative mass exceeds the row's share of the total. */
static long draw(const struct work *work, double total, double share) {
    double target = share * total, reached = 0.0;
    for (long b = 0; b < work->num_blocks; b++) {
        if (!(reached + work->block_mass[b] > target)) {
            reached += work->block_mass[b];
            continue;
        }
        for (long i = b * BLOCK; i < (b + 1) * BLOCK; i++) {
            reached += work->mass[i];
            if (reached > target) return i;
        }
    }
    /* Sums of blocks and of tokens are rounded differently: the last token that can be drawn. */
    for (long b = work->num_blocks - 1; b >= 0; b--)
        for (long i = (b + 1) * BLOCK - 1; i >= b * BLOCK && work->block_mass[b] > 0.0; i--)
            if (work->mass[i] > 0.0) return i;
    return 0;
}

static float highest_of(const struct work *work) {
    float best = -INFINITY;
    for (long b = 0; b < work->num_blocks; b++) best = work->best[b] > best ? work->best[b] : best;
    return best;
}

static long first_place_of(const struct work *work, float best) {
    for (long b = 0; b < work->num_blocks; b++)
        if (work->best[b] == best && best > -INFINITY)
            for (long i = b * BLOCK;; i++)
                if (work->logits[i] == best) return i;
    return 0;
}

/* Divide by the temperature; blocks' maxima anew. */
static void rescale(struct work *work, float temperature) {
    vec divisor = splat(temperature);
    for (long b = 0; b < work->num_blocks; b++) {
        if (work->best[b] == -INFINITY) continue;
        float *logits = work->logits + b * BLOCK;
        vec top = splat(-INFINITY);
        for (int i = 0; i < BLOCK; i += LANES) {
            vec x = load(logits + i);
            if (temperature != 1.0f) store(logits + i, x = x / divisor);
            top = larger(x, top);
        }
        work->best[b] = highest(top);
    }
}

struct choice {
    long id;
    float logprob;
    int num_top;
};

static float logprob_of(double logit, double normalizer) {
    double value = logit - normalizer;
    return value > 0.0 ? 0.0f : (float)value;
}

/* Any row. `top_ids` and `top_logprobs` have room for `capacity`. */
static struct choice choose_with_work(const struct plan *plan, const float *row, long V, const unsigned *bits, long W,
                                      struct work *work, int *top_ids, float *top_logprobs, long capacity) {
    struct choice choice = {0, 0.0f, 0};
    read_row(work, row, V, bits, W);
    adjust(work, plan, V);
    if (plan->position < plan->min_new_tokens) ban(work, plan->early_bans, plan->num_early_bans);
    else ban(work, plan->late_bans, plan->num_late_bans);
    rescale(work, plan->temperature > 0.0 ? (float)plan->temperature : 1.0f);
    float best = highest_of(work);
    if (plan->temperature > 0.0 && plan->top_k > 0) keep_top_k(work, plan->top_k);
    double total = 0.0;
    if (plan->temperature > 0.0 || !plan->raw) {
        weigh(work, best);
        if (plan->temperature > 0.0) filter(work, plan, best);
        total = total_mass(work);
    }
    choice.id = plan->temperature > 0.0 ? draw(work, total, uniform(plan->seed, (unsigned long long)plan->position))
                                        : first_place_of(work, best);
    double normalizer = (double)best + log(total);
    if (plan->raw) {
        struct peak peak = measure(row, V, NULL, 0);
        normalizer = (double)peak.best + log(peak.total);
        choice.logprob = logprob_of(row[choice.id], normalizer);
        if (plan->top_n > 0) read_row(work, row, V, NULL, 0);
    } else choice.logprob = logprob_of(work->logits[choice.id], normalizer);
    if (plan->top_n > 0)
        choice.num_top = (int)likeliest(work, plan->top_n < V ? plan->top_n : V, normalizer, top_ids, top_logprobs, capacity);
    return choice;
}

/* One token for each row of logits [R, V], which are `stride` apart. Row r obeys plans[r] and, where mask_of_row[r] >= 0,
 * that mask of bits [.., W]. Its likeliest tokens go to row r of top_ids and top_logprobs [R, capacity]; num_top[r] says how
 * many there are, of which `capacity` are written. `scratch`: sampler_scratch_bytes(V) per thread, aligned to 64 bytes; may
 * be absent if all plans are plain. */
void sample_rows_f32(const struct plan *const *plans, const float *logits, long stride, long V, long R, const unsigned *bits,
                     long W, const int *mask_of_row, long *ids, float *logprobs, int *num_top, int *top_ids,
                     float *top_logprobs, long capacity, char *scratch, int threads) {
    long scratch_bytes = sampler_scratch_bytes(V), work_units = 0;
    for (long r = 0; r < R; r++) work_units += plans[r]->plain ? V : 4 * V;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (R > 1 && work_units > PARALLEL_UNITS)
    for (long r = 0; r < R; r++) {
        const float *row = logits + r * stride;
        const unsigned *mask = bits && mask_of_row[r] >= 0 ? bits + mask_of_row[r] * W : NULL;
        struct choice choice;
        if (plans[r]->plain) {
            struct peak peak = measure(row, V, mask, W);
            choice = (struct choice){peak.id, logprob_of(0.0, log(peak.total)), 0};
        } else {
            struct work work = carve(scratch + omp_get_thread_num() * scratch_bytes, V);
            choice = choose_with_work(plans[r], row, V, mask, W, &work, top_ids + r * capacity, top_logprobs + r * capacity,
                                      capacity);
        }
        ids[r] = choice.id;
        logprobs[r] = choice.logprob;
        num_top[r] = choice.num_top;
    }
}

/* The log-probability of targets[r] in row r of logits, and the row's `top_n` likeliest tokens as above. */
void score_rows_f32(const float *logits, long stride, long V, long R, const long *targets, long top_n, float *logprobs,
                    int *num_top, int *top_ids, float *top_logprobs, long capacity, char *scratch, int threads) {
    long scratch_bytes = sampler_scratch_bytes(V);
#pragma omp parallel for schedule(static) num_threads(threads) if (R > 1 && R * V > PARALLEL_UNITS)
    for (long r = 0; r < R; r++) {
        const float *row = logits + r * stride;
        struct peak peak = measure(row, V, NULL, 0);
        double normalizer = (double)peak.best + log(peak.total);
        logprobs[r] = logprob_of(row[targets[r]], normalizer);
        num_top[r] = 0;
        if (top_n == 0) continue;
        struct work work = carve(scratch + omp_get_thread_num() * scratch_bytes, V);
        read_row(&work, row, V, NULL, 0);
        num_top[r] = (int)likeliest(&work, top_n < V ? top_n : V, normalizer, top_ids + r * capacity,
                                    top_logprobs + r * capacity, capacity);
    }
}
