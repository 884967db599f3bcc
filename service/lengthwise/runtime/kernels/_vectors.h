/* Vectors of one instruction set. A part of the library includes its arithmetic once for each set, with
 *
 *     SET        the instruction set
 *     MOST_ROWS  rows that are computed at once: the sums of 4 gates, a number of each and a weight fill the registers
 *
 * and the arithmetic includes this first. By SET there are then
 *
 *     TARGET     the attribute of functions that may use it
 *     NAMED(x)   x with the instruction set's suffix
 *     LANES      floats in a vector: 16 of AVX-512, 8 of AVX2, 4 of NEON or in plain C
 *     BY_ROWS(f) the switch over `rows` that calls f(1) to f(MOST_ROWS)
 *     SPLAT(x)   the initializer of a vector of x
 *     FUSED(a, b, c)  a * b + c, rounded once; the compiler fuses no others (-ffp-contract=off)
 *     SMALLER(a, b), LARGER(a, b)  of two vectors; b where one of them is NaN
 *     SMALLER_DOUBLES, LARGER_DOUBLES  the same of vectors of LANES / 2 doubles
 */
#ifndef LENGTHWISE_VECTORS_H
#define LENGTHWISE_VECTORS_H

#include <math.h>
#include <stdint.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define JOINED_(a, b) a##b
#define JOINED(a, b) JOINED_(a, b)
#define NAMED(x) JOINED(JOINED(x, _), SET)
#define TARGET NAMED(TARGET)
#define LANES NAMED(LANES)
#define INLINE static inline __attribute__((always_inline)) TARGET
#define UNROLLED _Pragma("GCC unroll 8")
#define BY_ROWS(f) switch (rows) { JOINED(UP_TO_, MOST_ROWS)(f) }
#define UP_TO_2(f) case 1: f(1); break; case 2: f(2); break;
#define UP_TO_3(f) UP_TO_2(f) case 3: f(3); break;
#define UP_TO_4(f) UP_TO_3(f) case 4: f(4); break;
#define UP_TO_6(f) UP_TO_4(f) case 5: f(5); break; case 6: f(6); break;
#define UP_TO_8(f) UP_TO_6(f) case 7: f(7); break; case 8: f(8); break;

#define AVX2 "avx2,fma"
#define AVX512 "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"
#define LANES_amx 16
#define LANES_avx512vnni 16
#define LANES_avx512 16
#define LANES_avxvnni 8
#define LANES_avx2 8
#define LANES_i8mm 4
#define LANES_dotprod 4
#define LANES_neon 4
#define LANES_portable 4
#define LANES_amx_emulated 4
#define TARGET_amx __attribute__((target("amx-int8,amx-tile,avx512vnni," AVX512)))
#define TARGET_avx512vnni __attribute__((target("avx512vnni," AVX512)))
#define TARGET_avx512 __attribute__((target(AVX512)))
#define TARGET_avxvnni __attribute__((target("avxvnni," AVX2)))
#define TARGET_avx2 __attribute__((target(AVX2)))
#define TARGET_i8mm __attribute__((target("arch=armv8.2-a+i8mm")))
#define TARGET_dotprod __attribute__((target("arch=armv8.2-a+dotprod")))
#define TARGET_neon
#define TARGET_portable
#define TARGET_amx_emulated

#define SPLAT JOINED(SPLAT_, LANES)
#define SPLAT_4(x) {x, x, x, x}
#define SPLAT_8(x) {x, x, x, x, x, x, x, x}
#define SPLAT_16(x) {x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}
#define FUSED JOINED(fused_, LANES)
#define SMALLER JOINED(smaller_, LANES)
#define LARGER JOINED(larger_, LANES)
#define SMALLER_DOUBLES JOINED(smaller_doubles_, LANES)
#define LARGER_DOUBLES JOINED(larger_doubles_, LANES)
#define fused_16 _mm512_fmadd_ps
#define smaller_16 _mm512_min_ps
#define larger_16 _mm512_max_ps
#define smaller_doubles_16 _mm512_min_pd
#define larger_doubles_16 _mm512_max_pd
#define fused_8 _mm256_fmadd_ps
#define smaller_8 _mm256_min_ps
#define larger_8 _mm256_max_ps
#define smaller_doubles_8 _mm256_min_pd
#define larger_doubles_8 _mm256_max_pd

/* Vectors of four: NEON on ARM, plain C everywhere else. The bits are the same: each operation is rounded once. */
typedef float Floats4 __attribute__((vector_size(16)));
typedef int32_t Integers4 __attribute__((vector_size(16)));
typedef double Doubles2 __attribute__((vector_size(16)));

static inline Floats4 fused_4(Floats4 a, Floats4 b, Floats4 c)
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

static inline Floats4 smaller_4(Floats4 a, Floats4 b) { return where(a < b, a, b); }

static inline Floats4 larger_4(Floats4 a, Floats4 b) { return where(a > b, a, b); }

static inline Doubles2 smaller_doubles_4(Doubles2 a, Doubles2 b)
{
    return (Doubles2){a[0] < b[0] ? a[0] : b[0], a[1] < b[1] ? a[1] : b[1]};
}

static inline Doubles2 larger_doubles_4(Doubles2 a, Doubles2 b)
{
    return (Doubles2){a[0] > b[0] ? a[0] : b[0], a[1] > b[1] ? a[1] : b[1]};
}

#define Vector NAMED(Vector)
#define Integers NAMED(Integers)
#endif

typedef float Vector __attribute__((vector_size(4 * LANES)));
typedef float NAMED(Unaligned) __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t Integers __attribute__((vector_size(4 * LANES)));
typedef int32_t NAMED(UnalignedIntegers) __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

INLINE Vector NAMED(load)(const float *from) { return *(const NAMED(Unaligned) *)from; }

INLINE void NAMED(store)(float *to, Vector x) { *(NAMED(Unaligned) *)to = x; }

INLINE Vector NAMED(all)(float x) { return (Vector)SPLAT(x); }

INLINE Integers NAMED(load_integers)(const void *from) { return *(const NAMED(UnalignedIntegers) *)from; }
