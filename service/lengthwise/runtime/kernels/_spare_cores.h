/* Threads that help while a core is idle: with one direction of a layer, or half of the scores of attention pooling; see
 * `_spare_cores.c`. All kernels use the same threads and count the same cores, so no core is lent twice.
 */
#ifndef LENGTHWISE_SPARE_CORES_H
#define LENGTHWISE_SPARE_CORES_H

#include <time.h>

#define APART 128 /* bytes between what two threads write: a processor may fetch lines of 64 in pairs */

struct Helper;

extern _Thread_local double helped_seconds; /* of this thread, ever */
extern _Thread_local int in_background;     /* whether this thread's layers let others run first */

double seconds_of(clockid_t clock);

/* Called at each step of a layer. A thread in the background lets whoever waits for its core run first: otherwise the
 * system may let it go on for milliseconds. */
void let_others_run(void);

/* Whether more cores are in use than are lent. */
int core_is_wanted(void);

/* Says how many cores are idle, and whether a batch is about to run: then the first helper wakes up beforehand. Else it need
 * not watch for work any more. */
void lend_cores(long count, int soon);

/* Has a helper begin some work; NULL if no core is idle. */
struct Helper *ask_for_help(void (*work)(void *), void *argument);

/* Waits until a helper has finished, or has stopped because its core is wanted. 0 if it has not even begun: a machine
 * that is busy with something else may wake it late, and then its work is taken back.
 *
 * `asked_at` is when it was asked, by the monotonic clock.
 */
int await_help(struct Helper *helper, double asked_at);

#endif
