/* Threads that help while a core is idle.
 *
 * The service says how many cores are idle (`lend_cores`). An operator asks for help, and gets it if a lent core is not in
 * use. A helper looks at each step (each 16 scores) whether its core is still lent: when somebody else wants it, it stops,
 * and the thread that asked does the rest. So nobody waits for longer than that. After its work a helper watches for the
 * next layer for a moment, which is faster than waking up, and then sleeps.
 *
 * The service knows of its own threads only. If something else on the machine uses the core, help can take longer than
 * the thread that asked would have taken. Then the next asks are refused, each time twice as many. Help that has not
 * begun when it is needed costs nothing: the work is taken back.
 */
#ifdef __linux__
#define _GNU_SOURCE
#endif
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>

#include "_lent_cores.h"

#define MOST_HELPERS 16
#define WATCH_SECONDS 0.0002 /* how long a helper watches for more work before it sleeps */
#define LATE_SECONDS 0.00005  /* help that is awaited for less time did not come too late */
#define MOST_REFUSED 1024    /* asks in a row that are refused at most after help that came too late */

enum { NO_WORK, ASKED, WORKING };

struct Helper {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    atomic_int there;  /* whether its thread was started; it changes under the lock of all */
    atomic_int busy;   /* whether somebody has it */
    atomic_int state;  /* of its work, one of those above; who sleeps until it changes is woken under the lock */
    atomic_int called; /* whether it is to watch for work, because a batch runs or is about to */
    atomic_int avoided; /* the core that its thread does not run on, and 1; 0 for none */
    void (*go_on)(void *part, int may_stop);
    void *part;
    double seconds;    /* the processor time of its last work */
} __attribute__((aligned(APART)));

struct LentCores {
    struct Helper helpers[MOST_HELPERS];
    pthread_mutex_t lock;
    int registered; /* whether a fork forgets the helpers; it changes under the lock */
    atomic_long lent, in_use;
    atomic_long refused_next, refused_before; /* how many asks are refused from now on, and were the last time */
};

static struct LentCores all_cores = {.lock = PTHREAD_MUTEX_INITIALIZER};
static struct LentCores *const cores = &all_cores;
_Thread_local double helped_seconds;
_Thread_local int in_background;

static double seconds_of(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return now.tv_sec + 1e-9 * now.tv_nsec;
}

static void pause_a_little(void)
{
#if defined(__x86_64__)
    for (int i = 0; i < 16; i++) __builtin_ia32_pause();
#endif
}

void let_others_run(void)
{
    if (in_background) sched_yield();
}

int core_is_wanted(void)
{
    return atomic_load_explicit(&cores->in_use, memory_order_relaxed) > atomic_load_explicit(&cores->lent, memory_order_relaxed);
}

static void *help_for_ever(void *argument)
{
    struct Helper *helper = argument;
    for (;;) {
        const double until = seconds_of(CLOCK_MONOTONIC) + WATCH_SECONDS;
        while (atomic_load(&helper->state) != ASKED && atomic_load(&helper->called) && atomic_load(&cores->lent)
               && seconds_of(CLOCK_MONOTONIC) < until)
            pause_a_little();
        int asked = ASKED;
        if (atomic_load(&helper->state) != ASKED) {
            pthread_mutex_lock(&helper->lock);
            atomic_store(&helper->called, 0);
            while (atomic_load(&helper->state) != ASKED && !atomic_load(&helper->called))
                pthread_cond_wait(&helper->changed, &helper->lock);
            pthread_mutex_unlock(&helper->lock);
        }
        if (!atomic_compare_exchange_strong(&helper->state, &asked, WORKING)) continue; /* only called, or too late */
        const double before = seconds_of(CLOCK_THREAD_CPUTIME_ID);
        helper->go_on(helper->part, 1);
        helper->seconds = seconds_of(CLOCK_THREAD_CPUTIME_ID) - before;
        atomic_store(&helper->state, NO_WORK); /* whoever watches need not wait for the lock */
        pthread_mutex_lock(&helper->lock);
        pthread_cond_broadcast(&helper->changed);
        pthread_mutex_unlock(&helper->lock);
    }
    return NULL;
}

/* A process that was forked has none of the threads. */
static void forget_helpers(void)
{
    memset(cores->helpers, 0, sizeof cores->helpers);
    pthread_mutex_init(&cores->lock, NULL);
    atomic_store(&cores->lent, 0);
    atomic_store(&cores->in_use, 0);
}

/* Starts a helper's thread unless it runs; 0 if there can be none. */
static int start_helper(struct Helper *helper)
{
    pthread_mutex_lock(&cores->lock);
    if (!helper->there) {
        if (!cores->registered) cores->registered = !pthread_atfork(NULL, NULL, forget_helpers);
        pthread_attr_t attributes;
        pthread_mutex_init(&helper->lock, NULL);
        pthread_cond_init(&helper->changed, NULL);
        if (cores->registered && !pthread_attr_init(&attributes)) {
            sigset_t all, before; /* signals are for the program's own threads */
            sigfillset(&all);
            pthread_sigmask(SIG_SETMASK, &all, &before);
            pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
            helper->there = !pthread_create(&helper->thread, &attributes, help_for_ever, helper);
            pthread_attr_destroy(&attributes);
            pthread_sigmask(SIG_SETMASK, &before, NULL);
        }
    }
    const int there = helper->there;
    pthread_mutex_unlock(&cores->lock);
    return there;
}

/* Keeps a helper off the core of the thread that it helps: the system may wake it there, and then it would have to wait for
 * that thread. */
static void keep_off_this_core(struct Helper *helper)
{
#ifdef __linux__
    const int core = sched_getcpu();
    cpu_set_t others;
    if (core < 0 || core + 1 == atomic_load(&helper->avoided) || sched_getaffinity(0, sizeof others, &others)) return;
    CPU_CLR(core, &others);
    if (CPU_COUNT(&others) && !pthread_setaffinity_np(helper->thread, sizeof others, &others))
        atomic_store(&helper->avoided, core + 1);
#else
    (void)helper;
#endif
}

void lend_cores(long count, int soon)
{
    struct Helper *first = cores->helpers;
    atomic_store(&cores->lent, count < 0 ? 0 : count > MOST_HELPERS ? MOST_HELPERS : count);
    if (!soon) atomic_store(&first->called, 0);
    if (!soon || count < 1 || atomic_load(&cores->refused_next) > 0 || atomic_load(&first->busy) || !atomic_load(&first->there))
        return;
    keep_off_this_core(first);
    pthread_mutex_lock(&first->lock);
    atomic_store(&first->called, 1);
    pthread_cond_broadcast(&first->changed);
    pthread_mutex_unlock(&first->lock);
}

/* Has a helper begin with a part; NULL if no core is idle. */
static struct Helper *ask_for_help(void (*go_on)(void *part, int may_stop), void *part)
{
    if (atomic_load(&cores->in_use) >= atomic_load(&cores->lent)) return NULL;
    if (atomic_load(&cores->refused_next) > 0 && atomic_fetch_sub(&cores->refused_next, 1) > 0) return NULL;
    if (atomic_fetch_add(&cores->in_use, 1) < atomic_load(&cores->lent))
        for (struct Helper *helper = cores->helpers; helper < cores->helpers + MOST_HELPERS; helper++) {
            int free_one = 0;
            if (!atomic_compare_exchange_strong(&helper->busy, &free_one, 1)) continue;
            if (!start_helper(helper)) {
                atomic_store(&helper->busy, 0);
                break;
            }
            keep_off_this_core(helper);
            helper->go_on = go_on;
            helper->part = part;
            atomic_store(&helper->state, ASKED);
            pthread_mutex_lock(&helper->lock);
            atomic_store(&helper->called, 1);
            pthread_cond_broadcast(&helper->changed);
            pthread_mutex_unlock(&helper->lock);
            return helper;
        }
    atomic_fetch_sub(&cores->in_use, 1);
    return NULL;
}

/* Waits until a helper, asked at some time, has finished or has stopped because its core is wanted. If it has not even
 * begun, its part is taken back: a machine that is busy with something else may wake it late. */
static void await_help(struct Helper *helper, double asked_at)
{
    int state = ASKED;
    const double now = seconds_of(CLOCK_MONOTONIC);
    const int late = atomic_compare_exchange_strong(&helper->state, &state, NO_WORK);
    if (!late) {
        const double until = now + WATCH_SECONDS;
        while (atomic_load(&helper->state) == WORKING && seconds_of(CLOCK_MONOTONIC) < until) pause_a_little();
        if (atomic_load(&helper->state) == WORKING) {
            pthread_mutex_lock(&helper->lock);
            while (atomic_load(&helper->state) == WORKING) pthread_cond_wait(&helper->changed, &helper->lock);
            pthread_mutex_unlock(&helper->lock);
        }
        helped_seconds += helper->seconds;
    }
    atomic_store(&helper->busy, 0);
    atomic_fetch_sub(&cores->in_use, 1);
    if (late) return;
    const double waited = seconds_of(CLOCK_MONOTONIC) - now;
    if (waited > now - asked_at && waited > LATE_SECONDS) { /* longer than this thread's own half took */
        const long before = atomic_load(&cores->refused_before), next = before ? 2 * before : 16;
        atomic_store(&cores->refused_before, next < MOST_REFUSED ? next : MOST_REFUSED);
        atomic_store(&cores->refused_next, next < MOST_REFUSED ? next : MOST_REFUSED);
    } else {
        atomic_store(&cores->refused_before, atomic_load(&cores->refused_before) / 2);
    }
}

void do_both(void (*go_on)(void *part, int may_stop), void *one, void *other, int is_worth_a_core)
{
    const double asked_at = seconds_of(CLOCK_MONOTONIC);
    struct Helper *helper = is_worth_a_core ? ask_for_help(go_on, other) : NULL;
    go_on(one, 0);
    if (helper) await_help(helper, asked_at);
    go_on(other, 0);
}
