/* SIMDe for simd.h, and what the version in Debian 12 lacks. */
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <stdint.h>
#include <string.h>
#if defined(NYB_SIMDE_AVX512)
#include <simde/x86/avx512.h>
#include <simde/x86/fma.h>
#define WIDEN(name, element, n, loaded)                                                            \
    static inline simde__m512i name(loaded x) {                                                    \
        element from[n];                                                                           \
        int32_t to[16];                                                                            \
        simde__m512i out;                                                                          \
        memcpy(from, &x, sizeof from);                                                             \
        for (int i = 0; i < 16; i++) to[i] = from[i];                                              \
        memcpy(&out, to, sizeof out);                                                              \
        return out;                                                                                \
    }
#ifndef _mm512_cvtepu8_epi32
WIDEN(shim_cvtepu8, uint8_t, 16, simde__m128i)
#define _mm512_cvtepu8_epi32 shim_cvtepu8
#endif
#ifndef _mm512_cvtepi8_epi32
WIDEN(shim_cvtepi8, int8_t, 16, simde__m128i)
#define _mm512_cvtepi8_epi32 shim_cvtepi8
#endif
#ifndef _mm512_cvtepu16_epi32
WIDEN(shim_cvtepu16, uint16_t, 16, simde__m256i)
#define _mm512_cvtepu16_epi32 shim_cvtepu16
#endif
#ifndef _mm512_cvtph_ps
static inline float shim_half(uint16_t h) {
    uint32_t u = (uint32_t)(h & 0x7fff) << 13;
    float x;
    memcpy(&x, &u, 4);
    x *= 0x1p112f;
    if ((h & 0x7c00) == 0x7c00) x += h & 0x3ff ? 0.0f / 0.0f : 1.0f / 0.0f;
    return h & 0x8000 ? -x : x;
}
static inline simde__m512 shim_cvtph(simde__m256i x) {
    uint16_t from[16];
    float to[16];
    simde__m512 out;
    memcpy(from, &x, sizeof from);
    for (int i = 0; i < 16; i++) to[i] = shim_half(from[i]);
    memcpy(&out, to, sizeof out);
    return out;
}
#define _mm512_cvtph_ps shim_cvtph
#endif
/* SIMDe's own rounds twice where the processor has no fused instruction. */
static inline simde__m512 shim_fnmadd(simde__m512 x, simde__m512 y, simde__m512 z) {
    float a[16], b[16], c[16];
    memcpy(a, &x, sizeof a);
    memcpy(b, &y, sizeof b);
    memcpy(c, &z, sizeof c);
    for (int i = 0; i < 16; i++) c[i] = __builtin_fmaf(-a[i], b[i], c[i]);
    memcpy(&z, c, sizeof c);
    return z;
}
#undef _mm512_fnmadd_ps
#define _mm512_fnmadd_ps shim_fnmadd
#elif defined(NYB_SIMDE_NEON)
#include <simde/arm/neon.h>
#endif
