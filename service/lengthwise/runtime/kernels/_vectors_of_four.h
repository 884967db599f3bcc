/* Vectors of four: NEON on ARM, plain C everywhere else. The bits are the same: each operation is rounded once. */
#ifndef LENGTHWISE_VECTORS_OF_FOUR_H
#define LENGTHWISE_VECTORS_OF_FOUR_H

#include <math.h>
#include <stdint.h>

#if defined(__aarch64__)
#include <arm_neon.h>
#endif

typedef float Floats4 __attribute__((vector_size(16)));
typedef int32_t Integers4 __attribute__((vector_size(16)));

static inline Floats4 fused(Floats4 a, Floats4 b, Floats4 c)
{
#if defined(__aarch64__)
    return (Floats4)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return (Floats4){fmaf(a[0], b[0], c[0]), fmaf(a[1], b[1], c[1]), fmaf(a[2], b[2], c[2]), fmaf(a[3], b[3], c[3])};
#endif
}

static inline Floats4 where(Integers4 first, Floats4 a, Floats4 b)
{
    return (Floats4)(((Integers4)a & first) | ((Integers4)b & ~first));
}

static inline Floats4 smaller(Floats4 a, Floats4 b) { return where(a < b, a, b); }

static inline Floats4 larger(Floats4 a, Floats4 b) { return where(a > b, a, b); }

#endif
