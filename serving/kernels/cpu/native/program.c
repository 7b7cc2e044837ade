/* Works off operations with the threads of the OpenMP runtime that torch has loaded: one region for all of them, and between
 * two of them a barrier that spins for a short time and then sleeps, because other processes share the cores. */

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
#define SMALL_WORK 65536   /* floats that one thread goes through before others have woken up */

/* In the order of operations.py. */
static operation_part *const PARTS[] = {embed,    linear_panels, linear_rows, pack_panels,      rms_norm,
                                        rotary, silu_mul,      write_kv,    decode_attention,
                                        prefill_attention};

#define MAX_THREADS 512

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

/* Every thread of the team waits here for the others. */
void meet(const struct worker *me) {
    struct team *team = me->team;
    if (me->count == 1) {
        atomic_store_explicit(&team->claimed, 0, memory_order_relaxed);
        return;
    }
    int phase = atomic_load_explicit(&team->phase, memory_order_relaxed);
    if (atomic_fetch_add(&team->arrived, 1) + 1 == (int)me->count) {
        atomic_store_explicit(&team->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&team->claimed, 0, memory_order_relaxed);
        atomic_store(&team->phase, phase + 1);
        if (atomic_load(&team->sleeping)) syscall(SYS_futex, &team->phase, FUTEX_WAKE_PRIVATE, (int)me->count, 0, 0, 0);
        return;
    }
    for (int spin = num_homes == me->count ? PLACED_SPINS : SPINS; spin > 0; spin--) {
        if (atomic_load_explicit(&team->phase, memory_order_acquire) != phase) return;
        PAUSE();
    }
    atomic_fetch_add(&team->sleeping, 1);
    while (atomic_load(&team->phase) == phase) syscall(SYS_futex, &team->phase, FUTEX_WAIT_PRIVATE, phase, 0, 0, 0);
    atomic_fetch_sub(&team->sleeping, 1);
    go_home(me);
}

static void work_off(const struct operation *operations, long count, const struct worker *me) {
    go_home(me);
    for (long i = 0; i < count; i++) {
        PARTS[operations[i].kind](&operations[i], me);
        meet(me);
    }
}

void run_operations(const struct operation *operations, long count, int threads) {
    struct team team = {0};
    if (threads == 1 || (count == 1 && operations->n[9] < SMALL_WORK)) {
        work_off(operations, count, &(struct worker){&team, 0, 1});
        return;
    }
#pragma omp parallel num_threads(threads)
    work_off(operations, count, &(struct worker){&team, omp_get_thread_num(), omp_get_num_threads()});
}
