/* Vectors of VL floats and the few primitives that need an instruction set's own names.
 *
 * All else is GCC's and Clang's vector extension, so one source gives every variant. The variant
 * is what the compiler's flags say: SSE2 or NEON (4 floats), AVX2 with FMA and F16C (8), AVX-512
 * F, BW, DQ and VL (16).
 */
#ifndef NYB_SIMD_H
#define NYB_SIMD_H

#include <math.h>
#include <stdint.h>
#include <string.h>

/* NYB_SIMDE_*: a test includes SIMDe in front of this file and so tries the names of an instruction
 * set that its machine lacks. */
#if defined(NYB_SIMDE_AVX512)
#define NYB_AVX512 1
#elif defined(NYB_SIMDE_NEON)
#define NYB_NEON 1
#elif defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) &&                    \
    defined(__AVX512VL__)
#include <immintrin.h>
#define NYB_AVX512 1
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include <immintrin.h>
#define NYB_AVX2 1
#elif defined(__SSE2__)
#include <emmintrin.h>
#define NYB_SSE2 1
#elif defined(__aarch64__)
#include <arm_neon.h>
#define NYB_NEON 1
#endif

#if defined(NYB_AVX512)
#define VL 16
#elif defined(NYB_AVX2)
#define VL 8
#else
#define VL 4
#endif

#define INLINE static inline __attribute__((always_inline))
/* Loops of a known few steps, written out by the compiler. */
#define UNROLL _Pragma("GCC unroll 16")
#define EACH(i, n) UNROLL for (int i = 0; i < (n); i++)
#define LANES (32 / VL) /* vectors of 32 channels */
#define HALF (16 / VL)  /* vectors of 16 channels */

/* Floats between the starts of two rows of `dim` floats that are used side by side: no power of
 * two, or all rows would share few cache sets; and with 32-byte vectors neighbours lie in different
 * halves of a line, since AMD's first-level cache serves only one of two loads of the same half. */
#define PAD (VL == 16 ? 16 : 24)
#define ROW(dim) ((dim) + PAD)

typedef float vf __attribute__((vector_size(4 * VL)));
typedef int32_t vi __attribute__((vector_size(4 * VL)));
typedef uint32_t vu __attribute__((vector_size(4 * VL)));
/* The same in memory: any address a float may have. */
typedef float vf_mem __attribute__((vector_size(4 * VL), aligned(4), may_alias));

/* Between equal sizes, also where SIMDe's types are structs. */
#define BITS(type, value)                                                                          \
    ({                                                                                             \
        type bits_;                                                                                \
        __typeof__(value) value_ = (value);                                                        \
        _Static_assert(sizeof bits_ == sizeof value_, "sizes differ");                             \
        memcpy(&bits_, &value_, sizeof bits_);                                                     \
        bits_;                                                                                     \
    })

/* Hold a vector in a register: GCC would rather load it again for every product. */
#if defined(NYB_SSE2) || defined(NYB_AVX2) || (defined(NYB_AVX512) && defined(__AVX512F__))
#define KEEP(v) __asm__("" : "+v"(v))
#else
#define KEEP(v) (void)0
#endif

INLINE vf load(const float *p) { return *(const vf_mem *)p; }
INLINE void store(float *p, vf x) { *(vf_mem *)p = x; }
INLINE vf splat(float x) { return x - (vf){0}; }
INLINE vf to_float(vi x) { return __builtin_convertvector(x, vf); }
INLINE vf pick(vi mask, vf yes, vf no) { return (vf)((mask & (vi)yes) | (~mask & (vi)no)); }
INLINE vf larger(vf a, vf b) { return pick(a > b, a, b); }

INLINE uint32_t read_u32(const uint8_t *p) {
    uint32_t w;
    memcpy(&w, p, 4);
    return w;
}

INLINE float f16_one(uint16_t h) {
    /* The exponent moves from bias 15 to 127 by a product, which also mends denormals. */
    union {
        uint32_t u;
        float f;
    } x = {(uint32_t)(h & 0x7fff) << 13};
    x.f *= 0x1p112f;
    if (x.f >= 65536.0f) x.u |= 0x7f800000; /* infinities and NaNs */
    x.u |= (uint32_t)(h & 0x8000) << 16;
    return x.f;
}

#if defined(NYB_AVX512)
INLINE vi widen_u8(const uint8_t *p) {
    return BITS(vi, _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)p)));
}
INLINE vi widen_s8(const uint8_t *p) {
    return BITS(vi, _mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)p)));
}
INLINE vi widen_u16(const uint8_t *p) {
    return BITS(vi, _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)p)));
}
INLINE vf widen_f16(const uint8_t *p) {
    return BITS(vf, _mm512_cvtph_ps(_mm256_loadu_si256((const void *)p)));
}
#elif defined(NYB_AVX2)
INLINE vi widen_u8(const uint8_t *p) {
    return (vi)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)p));
}
INLINE vi widen_s8(const uint8_t *p) {
    return (vi)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)p));
}
INLINE vi widen_u16(const uint8_t *p) {
    return (vi)_mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)p));
}
INLINE vf widen_f16(const uint8_t *p) {
    return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const void *)p));
}
#elif defined(NYB_SSE2)
INLINE vi widen_u8(const uint8_t *p) {
    __m128i x = _mm_cvtsi32_si128((int)read_u32(p)), none = _mm_setzero_si128();
    return (vi)_mm_unpacklo_epi16(_mm_unpacklo_epi8(x, none), none);
}
INLINE vi widen_s8(const uint8_t *p) { return (vi)((vu)widen_u8(p) << 24) >> 24; }
INLINE vi widen_u16(const uint8_t *p) {
    return (vi)_mm_unpacklo_epi16(_mm_loadl_epi64((const void *)p), _mm_setzero_si128());
}
#elif defined(NYB_NEON)
INLINE vi widen_u8(const uint8_t *p) {
    uint8x8_t x = vreinterpret_u8_u32(vdup_n_u32(read_u32(p)));
    return BITS(vi, vmovl_u16(vget_low_u16(vmovl_u8(x))));
}
INLINE vi widen_s8(const uint8_t *p) {
    int8x8_t x = vreinterpret_s8_u32(vdup_n_u32(read_u32(p)));
    return BITS(vi, vmovl_s16(vget_low_s16(vmovl_s8(x))));
}
INLINE vi widen_u16(const uint8_t *p) {
    uint16_t x[4];
    memcpy(x, p, 8);
    return BITS(vi, vmovl_u16(vld1_u16(x)));
}
#else
INLINE vi widen_u8(const uint8_t *p) { return (vi){p[0], p[1], p[2], p[3]}; }
INLINE vi widen_s8(const uint8_t *p) { return (vi)((vu)widen_u8(p) << 24) >> 24; }
INLINE vi widen_u16(const uint8_t *p) {
    return (vi){p[0] | p[1] << 8, p[2] | p[3] << 8, p[4] | p[5] << 8, p[6] | p[7] << 8};
}
#endif

#if VL == 4
INLINE vf widen_f16(const uint8_t *p) {
    vi h = widen_u16(p);
    vf x = (vf)((h & 0x7fff) << 13) * 0x1p112f;
    vi special = x >= 65536.0f;
    return (vf)((vi)x | (special & 0x7f800000) | (h & 0x8000) << 16);
}
#endif

INLINE vf widen_bf16(const uint8_t *p) { return (vf)(widen_u16(p) << 16); }

/* Codes first..first + VL - 1 of a plane of 1, 2 or 4 bits a code, lowest first. Reads whole words
 * of 4 bytes from p on. */
INLINE vi fields(const uint8_t *p, const int width, const int first) {
    const int top = (1 << width) - 1, bit = first * width % 32;
    p += first * width / 32 * 4;
#if defined(NYB_SSE2) /* has no shift by lane */
    const uint32_t w = read_u32(p) >> bit;
    return (vi){(int)w & top, (int)(w >> width) & top, (int)(w >> 2 * width) & top,
                (int)(w >> 3 * width) & top};
#else
#if VL == 16
    const vi lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    if (width == 4) {
        const int32_t a = (int32_t)read_u32(p), b = (int32_t)read_u32(p + 4);
        const vi words = {a, a, a, a, a, a, a, a, b, b, b, b, b, b, b, b};
        return words >> ((lane & 7) * 4) & top;
    }
#elif VL == 8
    const vi lane = {0, 1, 2, 3, 4, 5, 6, 7};
#else
    const vi lane = {0, 1, 2, 3};
#endif
    return (vi)(read_u32(p) - (vu){0}) >> (lane * width + bit) & top;
#endif
}

/* Bit i of w in lane i, for bits first..first + VL - 1, as 0 or 16. */
INLINE vi fifth(uint32_t w, const int first) {
    w >>= first;
#if VL == 16
    const vi bit = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768};
#elif VL == 8
    const vi bit = {1, 2, 4, 8, 16, 32, 64, 128};
#else
    const vi bit = {1, 2, 4, 8};
#endif
    vi x = (vi)(w - (vu){0}) & bit;
    return (x == bit) & 16;
}

/* kvalues_iq4nl of ggml-common.h */
static const int8_t IQ4_VALUES[16] __attribute__((aligned(16))) = {
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

INLINE vf iq4(vi code) {
#if defined(NYB_AVX512)
    static const float values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                     1,    13,   25,  38,  53,  69,  89,  113};
    return BITS(vf, _mm512_permutexvar_ps(BITS(__m512i, code), _mm512_loadu_ps(values)));
#elif defined(NYB_AVX2)
    __m256i table = _mm256_broadcastsi128_si256(_mm_load_si128((const void *)IQ4_VALUES));
    vi byte = (vi)_mm256_shuffle_epi8(table, (__m256i)code);
    return to_float(byte << 24 >> 24);
#else
    return to_float(
        (vi){IQ4_VALUES[code[0]], IQ4_VALUES[code[1]], IQ4_VALUES[code[2]], IQ4_VALUES[code[3]]});
#endif
}

/* nyb4's scale of a byte: 2^((e - 88) / 8) with the sign in the highest bit, 0 for e = 0. The eight
 * fractions of an octave make the mantissa, what is left the exponent (88 = 8 * 11). */
static const uint32_t EIGHTHS[16] = {0x000000, 0x0b95c2, 0x1837f0, 0x25fed7, 0x3504f3, 0x45672a,
                                     0x5744fd, 0x6ac0c7, 0x000000, 0x0b95c2, 0x1837f0, 0x25fed7,
                                     0x3504f3, 0x45672a, 0x5744fd, 0x6ac0c7};

INLINE vf nyb4_scales(const uint8_t *p) {
    vi byte = widen_u8(p), e = byte & 127, step = byte & 7;
#if defined(NYB_AVX512)
    vi mantissa =
        BITS(vi, _mm512_permutexvar_epi32(BITS(__m512i, step), _mm512_loadu_si512(EIGHTHS)));
#elif defined(NYB_AVX2)
    vi mantissa =
        (vi)_mm256_permutevar8x32_epi32(_mm256_loadu_si256((const void *)EIGHTHS), (__m256i)step);
#else
    vi mantissa = {(int)EIGHTHS[step[0]], (int)EIGHTHS[step[1]], (int)EIGHTHS[step[2]],
                   (int)EIGHTHS[step[3]]};
#endif
    vi bits = (((e >> 3) + (127 - 11)) << 23) | mantissa | (byte & 128) << 24;
    return (vf)(bits & (e != 0));
}

/* Sums over the lanes of four vectors. */
INLINE void sum4(const vf *x, float *out) {
#if defined(NYB_NEON)
    float32x4_t y[4];
    memcpy(y, x, sizeof y);
    vst1q_f32(out, vpaddq_f32(vpaddq_f32(y[0], y[1]), vpaddq_f32(y[2], y[3])));
#elif defined(NYB_AVX512)
    __m512 y[4], a, b, s;
    memcpy(y, x, sizeof y);
    a = _mm512_add_ps(_mm512_unpacklo_ps(y[0], y[1]), _mm512_unpackhi_ps(y[0], y[1]));
    b = _mm512_add_ps(_mm512_unpacklo_ps(y[2], y[3]), _mm512_unpackhi_ps(y[2], y[3]));
    s = _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
    __m256 high = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(s), 1));
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256(s), high);
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
#elif defined(NYB_AVX2)
    __m256 a = _mm256_unpacklo_ps((__m256)x[0], (__m256)x[1]) +
               _mm256_unpackhi_ps((__m256)x[0], (__m256)x[1]);
    __m256 b = _mm256_unpacklo_ps((__m256)x[2], (__m256)x[3]) +
               _mm256_unpackhi_ps((__m256)x[2], (__m256)x[3]);
    __m256 s = _mm256_shuffle_ps(a, b, 0x44) + _mm256_shuffle_ps(a, b, 0xee);
    _mm_storeu_ps(out, _mm256_castps256_ps128(s) + _mm256_extractf128_ps(s, 1));
#elif defined(NYB_SSE2)
    __m128 a =
        _mm_unpacklo_ps((__m128)x[0], (__m128)x[1]) + _mm_unpackhi_ps((__m128)x[0], (__m128)x[1]);
    __m128 b =
        _mm_unpacklo_ps((__m128)x[2], (__m128)x[3]) + _mm_unpackhi_ps((__m128)x[2], (__m128)x[3]);
    _mm_storeu_ps(out, _mm_movelh_ps(a, b) + _mm_movehl_ps(b, a));
#else
    for (int i = 0; i < 4; i++) {
        float s = 0;
        for (int j = 0; j < VL; j++) s += x[i][j];
        out[i] = s;
    }
#endif
}

/* exp(x) for x <= 0, within 2 ulp; 0 below -87.3. Polynomial of Cephes' expf (Moshier). */
INLINE vf exp_negative(vf x) {
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to a whole number */
    vf shifted = x * 1.44269504088896341f + magic;
    vf n = shifted - magic;
    vf r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    vf y = r * 1.9875691500e-4f + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * r * r + r + 1.0f;
    y = (vf)((vi)y + (((vi)shifted - (vi)splat(magic)) << 23));
    y = pick(x < -87.3f, (vf){0}, y);
    return pick(x == x, y, x); /* NaN stays */
}

/* tanh, within 3 ulp; Cephes' tanhf near zero. */
INLINE vf tanh_all(vf x) {
    vf size = (vf)((vi)x & 0x7fffffff);
    vf z = x * x;
    vf near = z * -5.70498872745e-3f + 2.06390887954e-2f;
    near = near * z + -5.37397155531e-2f;
    near = near * z + 1.33314422036e-1f;
    near = near * z + -3.33332819422e-1f;
    near = near * z * x + x;
    vf e = exp_negative(size * -2.0f);
    vf far = (1.0f - e) / (1.0f + e);
    far = (vf)((vi)far | ((vi)x & (int32_t)0x80000000));
    return pick(size < 0.625f, near, pick(x == x, far, x));
}

#endif
