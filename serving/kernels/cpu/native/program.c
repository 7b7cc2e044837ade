/* Works off operations with the threads of the OpenMP runtime that torch has loaded: one region for all of them. Each is cut into
 * pieces, which threads claim; the next begins when all pieces of it are finished, whoever has come or not. A thread that
 * lost its core in the middle of a piece is not waited for: others compute the piece once more. */

#define _GNU_SOURCE /* sched_setaffinity, sched_getcpu */
#include <linux/futex.h>
#include <omp.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "pause.h"
#include "program.h"

#define SPINS 3000         /* about 0.1 ms */
#define PLACED_SPINS 40000 /* on a core of its own: to sleep and wake takes longer than what others keep a thread from */
#define HELP_SPINS 200     /* at least, and HELP_PIECES times what its own last piece took, a thread waits before it helps */
#define HELP_PIECES 3
#define SMALL_WORK 65536 /* floats that one thread goes through before others have woken up */

/* In the order of program.py. */
static operation_part *const PARTS[] = {embed,    linear_panels, linear_rows,      pack_panels,    rms_norm,         rotary,
                                        silu_mul, write_kv,      decode_attention, merge_segments, prefill_attention};

/* Of `progress`: operation, finished pieces, claimed pieces. */
#define FIELD 22
#define MASK ((1ul << FIELD) - 1)
#define operation_of(progress) ((long)((progress) >> 2 * FIELD))
#define finished_of(progress) ((long)((progress) >> FIELD & MASK))
#define claimed_of(progress) ((long)((progress) & MASK))

/* Of `busy`: operation + 1, piece, and two bits. */
#define WORD(operation, piece) ((unsigned long)((operation) + 1) << (FIELD + 2) | (unsigned long)(piece) << 2)
#define HELPING 2ul /* the piece is another thread's */
#define COVERED 1ul /* somebody else has finished the piece */
#define busy_with(word) ((long)((word) >> (FIELD + 2)) - 1)
#define piece_of(word) ((long)((word) >> 2 & MASK))

static int homes[MAX_THREADS];
static long num_homes; /* 0: threads run where the system puts them */

void place_threads(const int *cores, long count) {
    num_homes = count <= MAX_THREADS ? count : 0;
    for (long i = 0; i < num_homes; i++) homes[i] = cores[i];
}

/* Each thread of a full team on a core of its own. Two that wake each other in turn are otherwise left on the same one for
 * tens of milliseconds while the other is idle. The calling thread is only moved, not held: whatever it starts elsewhere
 * (threads, processes) inherits where it may run. */
static void go_home(const struct worker *me) {
    static _Thread_local int held_on = -1;
    if (num_homes != me->count) return;
    int home = homes[me->index];
    if (me->index == 0 ? sched_getcpu() == home : held_on == home) return;
    cpu_set_t before, only;
    CPU_ZERO(&only);
    CPU_SET(home, &only);
    if (sched_getaffinity(0, sizeof before, &before) || sched_setaffinity(0, sizeof only, &only)) return;
    if (me->index == 0) sched_setaffinity(0, sizeof before, &before);
    else held_on = home;
}

/* Can its pieces be computed twice? Not if they change what they read. */
static int repeats(const struct operation *o) {
    return PARTS[o->kind] != pack_panels && !(PARTS[o->kind] == rms_norm && o->p[0]);
}

const struct operation *next_product(const struct operation *o, const struct worker *me) {
    for (const struct operation *later = o + 1; later < me->operations + me->length; later++) {
        if (PARTS[later->kind] == linear_panels) return later;
        if (PARTS[later->kind] == decode_attention) return NULL;
    }
    return NULL;
}

/* All pieces of the current operation are finished: on to the next one, unless it would write what late threads still use. */
static void advance(const struct worker *me) {
    struct team *team = me->team;
    long next = me->current + 1, after = next < me->length ? me->operations[next].after : 0;
    for (long i = 0; i < me->count; i++)
        for (long spin = 0;; spin++) {
            unsigned long word = i == me->index ? 0 : atomic_load(&team->seats[i].busy);
            if (word == 0 || busy_with(word) >= after) break;
            if (spin < SPINS) PAUSE();
            else sched_yield();
        }
    atomic_store(&team->progress, (unsigned long)next << 2 * FIELD);
    atomic_fetch_add(&team->phase, 1);
    if (atomic_load(&team->sleeping)) syscall(SYS_futex, &team->phase, FUTEX_WAKE_PRIVATE, (int)me->count, 0, 0, 0);
}

/* Takes note that the piece that this thread had is finished, once for every piece. */
static void finish(struct worker *me, long total) {
    struct team *team = me->team;
    unsigned long word = me->word;
    if (word == 0) return;
    int first;
    if (word & HELPING) {
        unsigned long theirs = word & ~HELPING;
        first = atomic_compare_exchange_strong(&team->seats[me->helped].busy, &theirs, theirs | COVERED);
        atomic_store_explicit(&team->seats[me->index].busy, 0, memory_order_release);
    } else {
        first = !(atomic_exchange(&team->seats[me->index].busy, 0) & COVERED);
        me->took = ticks() - me->began;
    }
    me->word = 0;
    if (first && finished_of(atomic_fetch_add(&team->progress, 1ul << FIELD)) + 1 == total) advance(me);
}

/* A piece of the current operation that another thread has been busy with for long, or -1. */
static long help(struct worker *me, long total) {
    struct team *team = me->team;
    for (long i = 1; i < me->count; i++) {
        long other = (me->index + i) % me->count;
        unsigned long word = atomic_load(&team->seats[other].busy);
        if (word == 0 || word & (COVERED | HELPING) || busy_with(word) != me->current) continue;
        atomic_store(&team->seats[me->index].busy, word | HELPING);
        /* Who finishes the last piece looks at the seats after that: this one is seen, or it is too late. */
        unsigned long progress = atomic_load(&team->progress);
        if (operation_of(progress) == me->current && finished_of(progress) < total) {
            me->helped = other;
            me->word = word | HELPING;
            return piece_of(word);
        }
        atomic_store(&team->seats[me->index].busy, 0);
        return -1;
    }
    return -1;
}

/* All pieces are claimed: waits until they are finished and returns -1, or returns one that is finished late. */
static long wait_for_others(struct worker *me, long total) {
    struct team *team = me->team;
    int patience = num_homes == me->count ? PLACED_SPINS : SPINS, helps = me->length > 1 && repeats(&me->operations[me->current]);
    unsigned long began = ticks();
    for (int spin = 0; spin < patience; spin++) {
        if (operation_of(atomic_load_explicit(&team->progress, memory_order_acquire)) != me->current) return -1;
        if (helps && spin >= HELP_SPINS && ticks() - began > HELP_PIECES * me->took) {
            long piece = help(me, total);
            if (piece >= 0) return piece;
        }
        PAUSE();
    }
    atomic_fetch_add(&team->sleeping, 1);
    for (;;) {
        int phase = atomic_load(&team->phase);
        if (operation_of(atomic_load(&team->progress)) != me->current) break;
        syscall(SYS_futex, &team->phase, FUTEX_WAIT_PRIVATE, phase, 0, 0, 0);
    }
    atomic_fetch_sub(&team->sleeping, 1);
    go_home(me);
    return -1;
}

long next_piece(struct worker *me, long total) {
    if (total < 1) total = 1; /* somebody has to find that there is nothing to do */
    if (me->count == 1) return me->piece < total ? me->piece++ : -1;
    struct team *team = me->team;
    finish(me, total);
    unsigned long progress = atomic_load_explicit(&team->progress, memory_order_acquire);
    while (operation_of(progress) == me->current) {
        if (claimed_of(progress) >= total) return wait_for_others(me, total);
        if (!atomic_compare_exchange_weak(&team->progress, &progress, progress + 1)) continue;
        me->word = WORD(me->current, claimed_of(progress));
        me->began = ticks();
        atomic_store_explicit(&team->seats[me->index].busy, me->word, memory_order_release);
        return claimed_of(progress);
    }
    return -1;
}

static void work_off(const struct operation *operations, long count, struct team *team, long index, long threads) {
    struct worker me = {.team = team, .index = index, .count = threads, .operations = operations, .length = count};
    go_home(&me);
    for (;;) {
        if (threads > 1) me.current = operation_of(atomic_load_explicit(&team->progress, memory_order_acquire));
        if (me.current >= count) return;
        me.piece = 0;
        PARTS[operations[me.current].kind](&operations[me.current], &me);
        if (threads == 1) me.current++;
    }
}

void run_operations(const struct operation *operations, long count, int threads) {
    if (threads == 1 || (count == 1 && operations->n[9] < SMALL_WORK)) {
        work_off(operations, count, NULL, 0, 1);
        return;
    }
    struct team team;
    atomic_init(&team.progress, 0);
    atomic_init(&team.phase, 0);
    atomic_init(&team.sleeping, 0);
    if (threads > MAX_THREADS) threads = MAX_THREADS;
    for (int i = 0; i < threads; i++) atomic_init(&team.seats[i].busy, 0);
#pragma omp parallel num_threads(threads)
    work_off(operations, count, &team, omp_get_thread_num(), omp_get_num_threads());
}
