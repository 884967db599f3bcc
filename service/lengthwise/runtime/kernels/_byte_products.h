/* The operations on bytes of each instruction set that `_integer_cells.h` is compiled for, by SET and LANES:
 *
 *     DOT(sum, number, weight)  adds four products of each lane: of unsigned bytes with signed bytes of at most 63
 *     Four, FOUR(from), WEIGHT(from)  four bytes of a row for all lanes; four weights of each lane
 *     STORE_BYTES(to, x)  the lowest byte of each lane's 32 bits
 *     ANY_NAN(x)  whether an element is NaN
 */
#ifndef LENGTHWISE_BYTE_PRODUCTS_H
#define LENGTHWISE_BYTE_PRODUCTS_H

#include "_tiles.h"

#define DOT NAMED(DOT)
#define Four JOINED(Four, LANES)
#define FOUR JOINED(FOUR_, LANES)
#define WEIGHT JOINED(WEIGHT_, LANES)
#define STORE_BYTES JOINED(store_bytes_, LANES)
#define ANY_NAN JOINED(any_nan_, LANES)
#define LARGER_INTEGER JOINED(larger_integer_, LANES)

#if defined(__x86_64__)
#define DOT_amx DOT_avx512vnni
#define DOT_avx512vnni(sum, number, weight) (Integers)_mm512_dpbusd_epi32((__m512i)(sum), number, weight)
#define DOT_avxvnni(sum, number, weight) (Integers)_mm256_dpbusd_avx_epi32((__m256i)(sum), number, weight)
#define DOT_avx512(sum, number, weight) \
    ((sum) + (Integers)_mm512_madd_epi16(_mm512_maddubs_epi16(number, weight), _mm512_set1_epi16(1)))
#define DOT_avx2(sum, number, weight) \
    ((sum) + (Integers)_mm256_madd_epi16(_mm256_maddubs_epi16(number, weight), _mm256_set1_epi16(1)))

static inline __attribute__((always_inline)) int32_t four(const uint8_t *from)
{
    int32_t bytes;
    memcpy(&bytes, from, sizeof bytes);
    return bytes;
}

#define Four16 __m512i
#define FOUR_16(from) _mm512_set1_epi32(four(from))
#define WEIGHT_16(from) _mm512_load_si512((const void *)(from))
#define store_bytes_16(to, x) _mm_storeu_si128((__m128i *)(to), _mm512_cvtepi32_epi8(_mm512_castps_si512(x)))
#define any_nan_16(x) _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q)
#define larger_integer_16(a, b) (Integers)_mm512_max_epi32((__m512i)(a), (__m512i)(b))

#define Four8 __m256i
#define FOUR_8(from) _mm256_set1_epi32(four(from))
#define WEIGHT_8(from) _mm256_load_si256((const __m256i *)(from))
/* The lowest byte of each 32 bits, moved together within each half, and the halves side by side. */
#define store_bytes_8(to, x)                                                                                      \
    do {                                                                                                          \
        const __m256i lowest = _mm256_shuffle_epi8(                                                               \
            _mm256_castps_si256(x),                                                                               \
            _mm256_setr_epi32(0x0c080400, -1, -1, -1, 0x0c080400, -1, -1, -1));                                   \
        _mm_storel_epi64((__m128i *)(to), _mm_unpacklo_epi32(_mm256_castsi256_si128(lowest),                      \
                                                             _mm256_extracti128_si256(lowest, 1)));               \
    } while (0)
#define any_nan_8(x) _mm256_movemask_ps(_mm256_cmp_ps(x, x, _CMP_UNORD_Q))
#define larger_integer_8(a, b) (Integers)_mm256_max_epi32((__m256i)(a), (__m256i)(b))
#endif

/* Vectors of four: with the dot products of ARM, and in plain C for every other processor. */
typedef const uint8_t *Four4;
#define FOUR_4(from) (from)
#define WEIGHT_4(from) (Four4)(from)
#define larger_integer_4(a, b) (((a) & ((a) > (b))) | ((b) & ~((a) > (b))))
#define DOT_portable dot
#define DOT_amx_emulated dot

static inline int any_nan_4(Floats4 x) { return x[0] != x[0] || x[1] != x[1] || x[2] != x[2] || x[3] != x[3]; }

static inline void store_bytes_4(uint8_t *to, Floats4 x)
{
    for (int i = 0; i < 4; i++) {
        /* A copy: clang takes no address of a vector's element. */
        const float one = x[i];
        uint32_t bits;
        memcpy(&bits, &one, sizeof bits);
        to[i] = (uint8_t)bits;
    }
}

static inline Integers4 dot(Integers4 sum, Four4 numbers, Four4 from)
{
    const int8_t *weights = (const int8_t *)from;
    for (int i = 0; i < 4; i++, weights += 4)
        sum[i] += numbers[0] * weights[0] + numbers[1] * weights[1] + numbers[2] * weights[2] + numbers[3] * weights[3];
    return sum;
}

#if defined(__aarch64__)
static inline int8x16_t four(Four4 from)
{
    uint32_t bytes;
    memcpy(&bytes, from, sizeof bytes);
    return vreinterpretq_s8_u32(vdupq_n_u32(bytes));
}

static inline TARGET_i8mm Integers4 DOT_i8mm(Integers4 sum, Four4 numbers, Four4 weights)
{
    return (Integers4)vusdotq_s32((int32x4_t)sum, vreinterpretq_u8_s8(four(numbers)), vld1q_s8((const int8_t *)weights));
}

/* Both factors have a sign here: 128 is subtracted from each byte, and its products with the weights are added again. */
static inline TARGET_dotprod Integers4 DOT_dotprod(Integers4 sum, Four4 numbers, Four4 from)
{
    const int8x16_t weights = vld1q_s8((const int8_t *)from), least = vdupq_n_s8(-128);
    return (Integers4)vsubq_s32(vdotq_s32((int32x4_t)sum, veorq_s8(four(numbers), least), weights),
                                vdotq_s32(vdupq_n_s32(0), least, weights));
}
#endif

#endif
