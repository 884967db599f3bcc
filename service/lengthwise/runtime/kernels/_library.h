/* What the parts of the library share: calls of onnxruntime, idle cores, and what all operators answer alike.
 *
 * The parts are `_kernels.c` (Python's module, and the registration), `_recurrent.c` (products of float32),
 * `_integer.c` (products of bytes) and `_shares.c` (fixed kernels).
 */
#ifndef LENGTHWISE_LIBRARY_H
#define LENGTHWISE_LIBRARY_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "_onnxruntime_calls.h"
#include "_spare_cores.h"
#include "_vectors_of_four.h"

/* Whether the compiler knows the instructions on tiles, and the system may give them to a process. */
#if defined(__x86_64__) && defined(__linux__) && (__has_include(<amxintrin.h>) || __has_include(<amxint8intrin.h>))
#define AMX_COMPILES 1
#else
#define AMX_COMPILES 0
#endif

#define ALIGNMENT 64
#define STEPS_AT_ONCE 64 /* steps whose inputs are multiplied at once: what that gives stays in the second-level cache */

#define UNROLLED _Pragma("GCC unroll 8")
#define UP_TO_2(f) case 1: f(1); break; case 2: f(2); break;
#define UP_TO_3(f) UP_TO_2(f) case 3: f(3); break;
#define UP_TO_4(f) UP_TO_3(f) case 4: f(4); break;
#define UP_TO_6(f) UP_TO_4(f) case 5: f(5); break; case 6: f(6); break;

/* The kernels of one part. */
struct Kernels {
    const char *numbers;               /* what they multiply */
    const char *(*set)(int place);     /* the instruction sets that this processor has, best first; NULL past the last */
    int (*choose)(const char *set);    /* for sessions opened from now on; 0 if this processor does not have it */
    const char *(*chosen)(void);       /* NULL where there is none */
    OrtStatus *(*add)(OrtSessionOptions *options); /* lets a session use the operators */
};
extern const struct Kernels float_kernels, integer_kernels, shares_kernels;

/* Whether the processor has an instruction set, and the system keeps the registers. */
int processor_has(const char *set);

/* The order of a layer's output: ONNX's own, or the directions of a step side by side. */
enum Order { DIRECTIONS_SECOND, STEPS_FIRST, ROWS_FIRST };

/* What the operators answer to onnxruntime. */
static inline const char *lstm_name(const OrtCustomOp *op) { return (void)op, "LSTM"; }
static inline const char *gru_name(const OrtCustomOp *op) { return (void)op, "GRU"; }
static inline const char *provider(const OrtCustomOp *op) { return (void)op, NULL; } /* the CPU's */
static inline int output_type(const OrtCustomOp *op, size_t index) { return (void)op, (void)index, ORT_FLOAT; }
static inline size_t one_output(const OrtCustomOp *op) { return (void)op, 1; }
static inline size_t two_outputs(const OrtCustomOp *op) { return (void)op, 2; }
static inline size_t three_outputs(const OrtCustomOp *op) { return (void)op, 3; }
static inline int optional(const OrtCustomOp *op, size_t index) { return (void)op, (void)index, ORT_OPTIONAL; }
static inline int required(const OrtCustomOp *op, size_t index) { return (void)op, (void)index, ORT_REQUIRED; }
static inline int input_memory(const OrtCustomOp *op, size_t index) { return (void)op, (void)index, 0; }
static inline int not_variadic(const OrtCustomOp *op) { return (void)op, 1; }

/* An operator: functions of its name, its inputs and their types and presence, its outputs, and its kernels. */
#define OPERATOR(name, inputs, input_type, input_presence, outputs, output_presence, create, compute, destroy)      \
    {                                                                                                               \
        .version = ORT_API_VERSION, .GetName = name, .GetExecutionProviderType = provider,                          \
        .GetInputType = input_type, .GetInputTypeCount = inputs, .GetOutputType = output_type,                      \
        .GetOutputTypeCount = outputs, .KernelDestroy = destroy, .GetInputCharacteristic = input_presence,          \
        .GetOutputCharacteristic = output_presence, .GetInputMemoryType = input_memory,                             \
        .GetVariadic = {not_variadic, not_variadic, not_variadic, not_variadic}, .CreateKernelV2 = create,          \
        .KernelComputeV2 = compute,                                                                                 \
    }

/* A recurrent layer has 4 gates (LSTM) or 3 (GRU); `create` is of the part that includes this. */
#define CREATE(kind, gates)                                                                                          \
    static OrtStatus *create_##kind(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info, void **kernel) \
    {                                                                                                                \
        return (void)op, (void)api, create(gates, info, kernel);                                                     \
    }

/* A domain of operators, which is added to a session; it is made once, under Python's lock, and never freed, as sessions
 * refer to it. */
static inline OrtStatus *add_domain(OrtSessionOptions *options, OrtCustomOpDomain **domain, const char *name,
                                    const OrtCustomOp *const *operators)
{
    if (!*domain) {
        OrtCustomOpDomain *made = NULL;
        OrtStatus *error = api->CreateCustomOpDomain(name, &made);
        for (; !error && *operators; operators++) error = api->CustomOpDomain_Add(made, *operators);
        if (error) return error;
        *domain = made;
    }
    return api->AddCustomOpDomain(options, *domain);
}

#endif
