/* Works off operations with the threads of the OpenMP runtime that torch has loaded: one region for all of them, and between
 * two of them a barrier that spins for a short time and then sleeps, because other processes share the cores. */

#include <linux/futex.h>
#include <omp.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "program.h"

#define SPINS 3000        /* a few tens of microseconds */
#define SMALL_WORK 65536 /* floats that one thread goes through before others have woken up */

/* In the order of operations.py. */
static operation_part *const PARTS[] = {embed,    linear_panels, linear_rows, pack_panels,      rms_norm,
                                        rotary, silu_mul,      write_kv,    decode_attention};

#if defined(__x86_64__)
#define PAUSE() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define PAUSE() __asm__ volatile("yield")
#else
#define PAUSE() ((void)0)
#endif

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
    for (int spin = 0; spin < SPINS; spin++) {
        if (atomic_load_explicit(&team->phase, memory_order_acquire) != phase) return;
        PAUSE();
    }
    atomic_fetch_add(&team->sleeping, 1);
    while (atomic_load(&team->phase) == phase) syscall(SYS_futex, &team->phase, FUTEX_WAIT_PRIVATE, phase, 0, 0, 0);
    atomic_fetch_sub(&team->sleeping, 1);
}

static void work_off(const struct operation *operations, long count, const struct worker *me) {
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
