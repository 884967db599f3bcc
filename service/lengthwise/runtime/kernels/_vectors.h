/* Vectors of one instruction set, by LANES: 16 of AVX-512, 8 of AVX2, 4 of NEON or in plain C. Included by the arithmetic,
 * for each set; what it defines ends with `_vectors_end.h`.
 *
 *     SPLAT(x)    the initializer of a vector of x
 *     FUSED(a, b, c)  a * b + c, rounded once; the compiler fuses no others (-ffp-contract=off)
 *     SMALLER(a, b), LARGER(a, b)  of two vectors; b where one of them is NaN
 */
#if LANES == 16
#define SPLAT(x) {x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}
#define FUSED(a, b, c) _mm512_fmadd_ps(a, b, c)
#define SMALLER(a, b) _mm512_min_ps(a, b)
#define LARGER(a, b) _mm512_max_ps(a, b)
#elif LANES == 8
#define SPLAT(x) {x, x, x, x, x, x, x, x}
#define FUSED(a, b, c) _mm256_fmadd_ps(a, b, c)
#define SMALLER(a, b) _mm256_min_ps(a, b)
#define LARGER(a, b) _mm256_max_ps(a, b)
#else
#define SPLAT(x) {x, x, x, x}
#define FUSED fused
#define SMALLER smaller
#define LARGER larger
#endif

typedef float NAMED(Vector) __attribute__((vector_size(4 * LANES)));
typedef float NAMED(Unaligned) __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
#define Vector NAMED(Vector)
#define INLINE static inline __attribute__((always_inline)) TARGET

INLINE Vector NAMED(load)(const float *from) { return *(const NAMED(Unaligned) *)from; }

INLINE void NAMED(store)(float *to, Vector x) { *(NAMED(Unaligned) *)to = x; }

INLINE Vector NAMED(all)(float x) { return (Vector)SPLAT(x); }
