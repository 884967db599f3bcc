/* Threads that help while a core is idle: with one direction of a layer, or half of the products of a dense layer; see
 * `_lent_cores.c`. All kernels use the same threads and count the same cores, so no core is lent twice.
 */
#ifndef LENGTHWISE_LENT_CORES_H
#define LENGTHWISE_LENT_CORES_H

#define APART 128 /* bytes between what two threads write: a processor may fetch lines of 64 in pairs */

extern _Thread_local double helped_seconds; /* of this thread, ever */
extern _Thread_local int in_background;     /* whether this thread's layers let others run first */

/* Called at each step of a layer. A thread in the background lets whoever waits for its core run first: otherwise the
 * system may let it go on for milliseconds. */
void let_others_run(void);

/* Whether more cores are in use than are lent. */
int core_is_wanted(void);

/* Says how many cores are idle, and whether a batch is about to run: then the first helper wakes up beforehand. Else it need
 * not watch for work any more. */
void lend_cores(long count, int soon);

/* Does two parts of some work: at once where a core is idle and it is worth it, else one after the other.
 *
 * `go_on` begins a part, or goes on with it, and returns when it is done; with `may_stop` also when its core is wanted.
 */
void do_both(void (*go_on)(void *part, int may_stop), void *one, void *other, int is_worth_a_core);

#endif
