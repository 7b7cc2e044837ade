/* Has a thread bring grammars' constraints to the tokens that were sampled, and compute the masks of the next step, while the
 * step that sampled them is accounted for: that is one thread's work, in the interpreter, so another core is free. Knows
 * llguidance's C interface by addresses that it is given; neither rows nor grammars. */

#define _GNU_SOURCE
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "pause.h"

#define SPINS 2000        /* a few tens of microseconds */
#define SLICE_NS 100000   /* the shortest that Linux gives: what is short gets its turn soon */
#define TEXTS 4096        /* of forced text whose tokens are remembered */
#define LONGEST_TEXT 256
#define PROBES 8

/* ---------------------------------------------------------------- forced text */

typedef size_t tokenize_text(const void *user, const uint8_t *text, size_t length, uint32_t *tokens, size_t room);

struct text {
    uint64_t hash;
    size_t length, count;
    uint8_t *bytes; /* NULL: free */
    uint32_t *tokens;
};

/* What `ask` answered before. It may have to wait for the interpreter, and the same few texts come again and again. */
struct forced_texts {
    tokenize_text *ask;
    pthread_mutex_t lock;
    struct text texts[TEXTS];
};

struct forced_texts *forced_texts_new(tokenize_text *ask) {
    struct forced_texts *forced = calloc(1, sizeof *forced);
    if (!forced) return NULL;
    forced->ask = ask;
    pthread_mutex_init(&forced->lock, NULL);
    return forced;
}

void forced_texts_free(struct forced_texts *forced) {
    for (long i = 0; i < TEXTS; i++) {
        free(forced->texts[i].bytes);
        free(forced->texts[i].tokens);
    }
    pthread_mutex_destroy(&forced->lock);
    free(forced);
}

static uint64_t hash_of(const uint8_t *text, size_t length) { /* FNV-1a */
    uint64_t hash = 0xcbf29ce484222325ULL;
    for (size_t i = 0; i < length; i++) hash = (hash ^ text[i]) * 0x100000001b3ULL;
    return hash;
}

/* Where it is, or where it may be put; NULL: no room. */
static struct text *place_of(struct forced_texts *forced, uint64_t hash, const uint8_t *text, size_t length) {
    for (int probe = 0; probe < PROBES; probe++) {
        struct text *place = &forced->texts[(hash + (uint64_t)probe) % TEXTS];
        if (!place->bytes) return place;
        if (place->hash == hash && place->length == length && !memcmp(place->bytes, text, length)) return place;
    }
    return NULL;
}

static void remember(struct forced_texts *forced, uint64_t hash, const uint8_t *text, size_t length, const uint32_t *tokens,
                     size_t count) {
    struct text *place = place_of(forced, hash, text, length);
    if (!place || place->bytes) return;
    uint8_t *bytes = malloc(length + 1);
    uint32_t *copy = malloc(count * sizeof *copy + 1);
    if (!bytes || !copy) {
        free(bytes);
        free(copy);
        return;
    }
    memcpy(bytes, text, length);
    memcpy(copy, tokens, count * sizeof *copy);
    *place = (struct text){hash, length, count, bytes, copy};
}

/* As llguidance's `LlgTokenizeFn`, with a `struct forced_texts` for a user: all tokens are counted, `room` are written. */
size_t forced_tokens(const void *user, const uint8_t *text, size_t length, uint32_t *tokens, size_t room) {
    struct forced_texts *forced = (struct forced_texts *)user;
    if (length > LONGEST_TEXT) return forced->ask(NULL, text, length, tokens, room);
    uint64_t hash = hash_of(text, length);
    pthread_mutex_lock(&forced->lock);
    struct text *place = place_of(forced, hash, text, length);
    size_t count = 0;
    int known = place && place->bytes;
    if (known) {
        count = place->count;
        memcpy(tokens, place->tokens, (count < room ? count : room) * sizeof *tokens);
    }
    pthread_mutex_unlock(&forced->lock);
    if (known) return count;
    count = forced->ask(NULL, text, length, tokens, room);
    if (count <= room) {
        pthread_mutex_lock(&forced->lock);
        remember(forced, hash, text, length, tokens, count);
        pthread_mutex_unlock(&forced->lock);
    }
    return count;
}

/* ---------------------------------------------------------------- masks */

/* llguidance's LlgMaskResult and LlgCommitResult. */
struct mask_result {
    const uint32_t *mask;
    float temperature;
    _Bool is_stop;
};
struct commit_result {
    const uint32_t *tokens;
    uint32_t num_tokens;
    _Bool is_stop;
};

/* Its functions llg_compute_mask, llg_commit_token and llg_is_stopped, in this order. */
struct interface {
    int32_t (*compute)(void *constraint, struct mask_result *result);
    int32_t (*commit)(void *constraint, uint32_t token, struct commit_result *result);
    _Bool (*is_stopped)(const void *constraint);
};

/* One row: the same fields as `Job` in serving/grammar/ahead.py, eight bytes each. */
struct job {
    void *constraint;
    long token;  /* sampled with its last mask */
    long ended;  /* out: the mask permits the end alone, for whatever reason */
};

enum { IDLE, OFFERED, TAKEN, DONE };

struct masks {
    struct interface llguidance;
    long num_words;
    const uint32_t *when_stopped; /* the mask of a constraint that permits nothing but the end */
    struct job *jobs;
    uint32_t *bits; /* [num_jobs, num_words] */
    long num_jobs, num_ended;
    atomic_int state, offers, sleeping, closing;
    pthread_t thread;
    int other_than; /* the processor that the thread keeps away from */
};

static void wake(atomic_int *word) { syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1, 0, 0, 0); }
static void wait_while(atomic_int *word, int value) { syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, 0, 0, 0); }

/* Returns 0 when the constraint has stopped, or fails. */
static int mask_row(const struct masks *masks, const struct job *job, uint32_t *mask) {
    const struct interface *llguidance = &masks->llguidance;
    struct mask_result result = {0};
    struct commit_result committed = {0};
    if (llguidance->is_stopped(job->constraint)) return 0;
    if (llguidance->commit(job->constraint, (uint32_t)job->token, &committed)) return 0;
    if (llguidance->compute(job->constraint, &result) || result.is_stop || !result.mask) return 0;
    memcpy(mask, result.mask, (size_t)masks->num_words * sizeof *mask);
    return 1;
}

static void work_off(struct masks *masks) {
    for (long i = 0; i < masks->num_jobs; i++) {
        struct job *job = &masks->jobs[i];
        uint32_t *mask = masks->bits + i * masks->num_words;
        job->ended = !mask_row(masks, job, mask);
        masks->num_ended += job->ended;
        if (job->ended) memcpy(mask, masks->when_stopped, (size_t)masks->num_words * sizeof *mask);
    }
}

static int take(struct masks *masks) {
    int offered = OFFERED;
    return atomic_compare_exchange_strong(&masks->state, &offered, TAKEN);
}

static void finish(struct masks *masks) {
    atomic_store(&masks->state, DONE);
    if (atomic_load(&masks->sleeping)) wake(&masks->state);
}

/* struct sched_attr of sched_setattr(2), as far as it has a slice. */
struct attributes {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period;
};

static void *serve(void *argument) {
    struct masks *masks = argument;
    struct attributes attributes = {.size = sizeof attributes, .policy = SCHED_OTHER, .runtime = SLICE_NS};
    syscall(SYS_sched_setattr, 0, &attributes, 0); /* older kernels have one slice for all */
    for (int seen = 0;;) {
        while (atomic_load(&masks->offers) == seen && !atomic_load(&masks->closing)) wait_while(&masks->offers, seen);
        if (atomic_load(&masks->closing)) return NULL;
        seen = atomic_load(&masks->offers);
        if (take(masks)) {
            work_off(masks);
            finish(masks);
        }
    }
}

/* The caller goes on, and compute threads that spin beside it look busy: left to itself Linux may let both share one core. */
static void keep_away(struct masks *masks) {
    int here = sched_getcpu();
    if (here < 0 || here == masks->other_than) return;
    masks->other_than = here;
    cpu_set_t allowed;
    if (pthread_getaffinity_np(pthread_self(), sizeof allowed, &allowed)) return;
    CPU_CLR(here, &allowed);
    if (CPU_COUNT(&allowed) > 0) pthread_setaffinity_np(masks->thread, sizeof allowed, &allowed);
}

/* Returns NULL when no thread can be had. `when_stopped` [num_words] stays the caller's. */
struct masks *masks_open(const struct interface *llguidance, const uint32_t *when_stopped, long num_words) {
    struct masks *masks = calloc(1, sizeof *masks);
    if (!masks) return NULL;
    masks->llguidance = *llguidance;
    masks->when_stopped = when_stopped;
    masks->num_words = num_words;
    masks->other_than = -1;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are for the interpreter's threads */
    int failed = pthread_create(&masks->thread, NULL, serve, masks);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!failed) return masks;
    free(masks);
    return NULL;
}

/* Begin with `jobs`, which stay the caller's, as do `bits`; until `masks_wait` both are the thread's. */
void masks_begin(struct masks *masks, struct job *jobs, uint32_t *bits, long num_jobs) {
    masks->jobs = jobs;
    masks->bits = bits;
    masks->num_jobs = num_jobs;
    masks->num_ended = 0;
    keep_away(masks);
    atomic_store(&masks->state, OFFERED);
    atomic_fetch_add(&masks->offers, 1);
    wake(&masks->offers);
}

/* Returns when the masks are there, with the number of rows that ended. If the thread has not begun, because others have its core,
 * the caller does the work. */
long masks_wait(struct masks *masks) {
    if (take(masks)) {
        work_off(masks);
        atomic_store(&masks->state, IDLE);
        return masks->num_ended;
    }
    for (int spin = 0; spin < SPINS && atomic_load(&masks->state) == TAKEN; spin++) PAUSE();
    atomic_store(&masks->sleeping, 1);
    while (atomic_load(&masks->state) == TAKEN) wait_while(&masks->state, TAKEN);
    atomic_store(&masks->sleeping, 0);
    atomic_store(&masks->state, IDLE);
    return masks->num_ended;
}

/* Nothing is under way. */
void masks_close(struct masks *masks) {
    atomic_store(&masks->closing, 1);
    atomic_fetch_add(&masks->offers, 1);
    wake(&masks->offers);
    pthread_join(masks->thread, NULL);
    free(masks);
}
