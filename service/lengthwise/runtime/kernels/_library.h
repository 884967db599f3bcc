/* What the parts of the library share: calls of onnxruntime, idle cores, and how operators are described.
 *
 * The parts are `_kernels.c` (Python's module, and the registration), `_recurrent.c` (products of float32),
 * `_integer.c` (products of bytes), `_shares.c` (fixed kernels), `_convolutions.c` (convolutions of valid steps),
 * `_attention.c` (attention of valid steps), `_summaries.c` (summaries of sequences) and `_states.c` (the texts of states, for
 * Python alone).
 */
#ifndef LENGTHWISE_LIBRARY_H
#define LENGTHWISE_LIBRARY_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "_onnxruntime_calls.h"
#include "_lent_cores.h"

/* Whether the compiler knows the instructions on tiles, and the system may give them to a process. */
#if defined(__x86_64__) && defined(__linux__) && (__has_include(<amxintrin.h>) || __has_include(<amxint8intrin.h>))
#define AMX_COMPILES 1
#else
#define AMX_COMPILES 0
#endif

#define STEPS_AT_ONCE 64 /* steps whose inputs are multiplied at once: what that gives stays in the second-level cache */

/* An operator. A letter stands for each input and output: f float32, i int32, b int8, a of any type; a capital for one that
 * may be missing. */
struct Operator {
    OrtCustomOp op; /* first: onnxruntime gives its address back. Filled in when the operator is registered */
    const char *name, *inputs, *outputs;
    OrtStatus *(*create)(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info, void **kernel);
    OrtStatus *(*compute)(void *kernel, OrtKernelContext *context);
    void (*destroy)(void *kernel);
    int gates; /* of a recurrent layer: 4 of an LSTM, 3 of a GRU */
};

/* A domain of operators. It is made once, under Python's lock, and never freed, as sessions refer to it. */
struct Domain {
    const char *name;           /* NULL behind the last */
    struct Operator *operators; /* without a name behind the last */
    OrtCustomOpDomain *made;
};

/* The kernels of one part. Its `struct Cells` is the arithmetic for one instruction set, and begins with the set's name. */
struct Kernels {
    const char *numbers;              /* what they multiply */
    const struct Cells *const *known; /* best first, NULL behind the last */
    const struct Cells *chosen;       /* what sessions use that are opened from now on; NULL where this processor has none */
    struct Domain *domains;
};
extern struct Kernels float_kernels, integer_kernels, shares_kernels, convolution_kernels, summaries_kernels,
    attention_kernels;

#define ALIGNMENT 64

/* Allocates aligned memory; NULL if there is none. */
static inline void *room(long bytes) { return aligned_alloc(ALIGNMENT, (bytes / ALIGNMENT + 1) * ALIGNMENT); }

static inline float *floats(long count) { return room(count * (long)sizeof(float)); }

/* Whether each row has a length that it can have. */
static inline int are_lengths(const int32_t *lengths, long rows, long steps)
{
    for (long row = 0; row < rows; row++)
        if (lengths[row] < 0 || lengths[row] > steps) return 0;
    return 1;
}

/* How many valid steps packed rows have; -1 if a length is negative, or they are more than there are packed steps. */
static inline long valid_steps(const int32_t *lengths, long rows, long packed)
{
    long valid = 0;
    for (long row = 0; row < rows; row++) {
        if (lengths[row] < 0 || lengths[row] > packed - valid) return -1;
        valid += lengths[row];
    }
    return valid;
}

/* The transform of `_shares.c`, also for Python's module: the kernels of a plan, NULL if it is damaged or there is no memory;
 * and the shares of rows, each [length][channels], 0 if there is no memory. */
struct Shares;
struct Shares *make_shares(const int32_t *plan, long plan_size, const float *biases, long count);
void forget_shares(struct Shares *shares);
long channels_of(const struct Shares *shares);
int transform_rows(const struct Shares *shares, const float *const *rows, const int32_t *lengths, long count, float *to);

static inline OrtStatus *no_memory(void) { return status(ORT_FAIL, "no memory"); }

static inline OrtStatus *unfit_shapes(void)
{
    return status(ORT_INVALID_ARGUMENT, "the inputs' shapes do not fit the weights or each other");
}

static inline OrtStatus *unfit_length(void)
{
    return status(ORT_INVALID_ARGUMENT, "a length is not between 0 and the number of steps");
}

#endif
