/* Quantizers, equal byte for byte to src/nybble/formats/ (built without contraction of a * b + c).
 *
 * nyb4 takes groups that were centred and turned already; its search may pick the neighbouring
 * scale where two are equally good but for rounding, since sums run in another order there.
 */
#include <math.h>
#include <stdatomic.h>
#include <string.h>

#include "parallel.h"
#include "variant.h"

int nyb_check_stretch(const nyb_stretch *x);

/* The loader picks the wider build of a function where it can; results are the same. */
#if defined(__x86_64__) && defined(__GLIBC__)
#define WIDER __attribute__((target_clones("avx2", "default")))
#else
#define WIDER
#endif

/* To nearest, ties to even; a NaN becomes 0x7e00 with its sign (formats/pack.py, to_f16). */
static uint16_t to_f16(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    const uint16_t sign = (uint16_t)(u >> 16 & 0x8000);
    u &= 0x7fffffff;
    if (u > 0x7f800000) return sign | 0x7e00;
    if (u >= 0x477ff000) return sign | 0x7c00; /* from 65520 on */
    if (u < 0x38800000) { /* below 2^-14: adding 0.5 leaves the denormal's bits, rounded */
        float x;
        memcpy(&x, &u, 4);
        x += 0.5f;
        memcpy(&u, &x, 4);
        return sign | (uint16_t)(u - 0x3f000000);
    }
    u += 0xc8000fff + (u >> 13 & 1);
    return sign | (uint16_t)(u >> 13);
}

static uint16_t to_bf16(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    if ((u & 0x7fffffff) > 0x7f800000) return 0x7fc0;
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

static void put_f16(uint8_t *p, float x) {
    const uint16_t h = to_f16(x);
    memcpy(p, &h, 2);
}

/* C's cast on x86: the low byte of an int32, 0 for what does not fit and for NaN. */
static uint8_t low_byte(float x) { return fabsf(x) < 2147483648.0f ? (uint8_t)(int32_t)x : 0; }

WIDER static void q4_0(const float *x, int dim, uint8_t *codes, uint8_t *scales) {
    for (int b = 0; b < dim / 32; b++, x += 32, codes += 16, scales += 2) {
        float size = 0, largest = 0;
        for (int i = 0; i < 32; i++)
            if (fabsf(x[i]) > size) {
                size = fabsf(x[i]);
                largest = x[i];
            }
        const float d = largest / -8.0f, inverse = d != 0 ? 1.0f / d : 0.0f;
        uint8_t code[32];
        for (int i = 0; i < 32; i++) {
            const uint8_t c = low_byte(x[i] * inverse + 8.5f);
            code[i] = c < 15 ? c : 15;
        }
        for (int i = 0; i < 16; i++) codes[i] = (uint8_t)(code[i] | code[16 + i] << 4);
        put_f16(scales, d);
    }
}

WIDER static void q8_0(const float *x, int dim, uint8_t *codes, uint8_t *scales) {
    for (int b = 0; b < dim / 32; b++, x += 32, codes += 32, scales += 2) {
        float size = 0;
        for (int i = 0; i < 32; i++) size = size > fabsf(x[i]) ? size : fabsf(x[i]);
        const float d = size / 127.0f, inverse = d != 0 ? 1.0f / d : 0.0f;
        for (int i = 0; i < 32; i++) {
            const float y = x[i] * inverse;
            float whole = truncf(y);
            if (fabsf(y - whole) >= 0.5f) whole += y > 0 ? 1.0f : -1.0f;
            codes[i] = low_byte(whole);
        }
        put_f16(scales, d);
    }
}

/* To nearest, ties to even, for |x| < 2^22. */
static float nearest(float x) { return (x + 12582912.0f) - 12582912.0f; }

static float held(float x, float low, float high) { return x < low ? low : x > high ? high : x; }

/* 2^(code / 8), rounded, for a table: exp2 in the search would take most of its time. */
static const float EIGHTHS[8] = {0x1p0f,        0x1.172b84p0f, 0x1.306fe0p0f, 0x1.4bfdaep0f,
                                 0x1.6a09e6p0f, 0x1.8ace54p0f, 0x1.ae89fap0f, 0x1.d5818ep0f};

/* The scale of a code, 2^((code - 88) / 8); code 1 to 127. */
static float scale_of(int code) { return ldexpf(EIGHTHS[code & 7], (code >> 3) - 11); }

/* The best of 16 scales for one group; codes as floats. Returns the scale's byte. */
WIDER static uint8_t nyb4_search(const float *y, int group, float zero, float top, float *best) {
    float peak = y[0];
    for (int i = 1; i < group; i++)
        if (fabsf(y[i]) > fabsf(peak)) peak = y[i];
    if (peak == 0) {
        for (int i = 0; i < group; i++) best[i] = floorf(zero);
        return 0;
    }
    const float size = fabsf(peak) > 1e-30f ? fabsf(peak) : 1e-30f;
    const float start = log2f(size / zero) * 8.0f + 88.0f;
    float least = INFINITY;
    uint8_t scale = 0;
    for (int i = 0; i < group; i++) best[i] = 0;
    for (int step = -1; step < 15; step++) {
        const float code = held(nearest(start - (float)step), 1, 127);
        float d = scale_of((int)code), codes[32], error = 0;
        if (peak > 0) d = -d;
        for (int i = 0; i < group; i++) codes[i] = nearest(held(y[i] / d + zero, -1, 300));
        for (int i = 0; i < group; i++) {
            codes[i] = held(codes[i], 0, top);
            const float off = (codes[i] - zero) * d - y[i];
            error += off * off;
        }
        if (error < least) {
            least = error;
            memcpy(best, codes, sizeof(float) * (size_t)group);
            scale = (uint8_t)((int)code + (d < 0 ? 128 : 0));
        }
    }
    return scale;
}

static void nyb4(const float *x, const nyb_format *f, int head, uint8_t *codes, uint8_t *scales) {
    const int group = f->dim / f->groups;
    for (int g = 0; g < f->groups; g++, x += group) {
        const int bits = f->widths[(int64_t)head * f->groups + g];
        const float levels = (float)(1 << bits), zero = levels / 2 - (bits > 2 ? 0.0f : 0.5f);
        float y[32], best[32];
        for (int i = 0; i < group; i++) {
            y[i] = x[i];
            if (isnan(y[i])) y[i] = 0;
            if (isinf(y[i])) y[i] = y[i] > 0 ? 0x1.fffffep127f : -0x1.fffffep127f;
        }
        scales[g] = nyb4_search(y, group, zero, levels - 1, best);
        int left = bits;
        for (int plane = 4; plane; plane /= 2) {
            if (!(bits & plane)) continue;
            left -= plane;
            const int size = group * plane / 8, each = 8 / plane;
            memset(codes, 0, (size_t)size);
            for (int i = 0; i < group; i++)
                codes[i / each] |=
                    (uint8_t)(((int)best[i] >> left & ((1 << plane) - 1)) << i % each * plane);
            codes += size;
        }
    }
}

static void row(const nyb_format *f, int head, const float *x, uint8_t *codes, uint8_t *scales) {
    switch (f->kind) {
    case NYB_Q4_0: q4_0(x, f->dim, codes, scales); break;
    case NYB_Q8_0: q8_0(x, f->dim, codes, scales); break;
    case NYB_NYB4: nyb4(x, f, head, codes, scales); break;
    case NYB_F32: memcpy(codes, x, 4 * (size_t)f->dim); break;
    case NYB_F16:
        for (int i = 0; i < f->dim; i++) put_f16(codes + 2 * i, x[i]);
        break;
    default:
        for (int i = 0; i < f->dim; i++) {
            const uint16_t h = to_bf16(x[i]);
            memcpy(codes + 2 * i, &h, 2);
        }
    }
}

typedef struct {
    const nyb_stretch *x;
    int64_t items;
    atomic_int_least64_t next;
    atomic_int nonfinite;
} job;

enum { TOKENS = 16 }; /* of an item */

static void items(void *memory) {
    job *j = memory;
    const nyb_stretch *x = j->x;
    const nyb_format *f = &x->format;
    const int64_t pieces = (x->count + TOKENS - 1) / TOKENS;
    for (;;) {
        const int64_t item = atomic_fetch_add(&j->next, 1);
        if (item >= j->items) break;
        const int64_t at = item / pieces, from = item % pieces * TOKENS;
        const int b = (int)(at / x->heads), h = (int)(at % x->heads);
        for (int64_t t = from; t < from + TOKENS && t < x->count; t++) {
            const float *row_in = x->x + (at * x->count + t) * f->dim;
            const int64_t slot = x->first + t;
            const int place = (int)(slot % NYB_PAGE);
            uint8_t *p = (uint8_t *)(uintptr_t)x->addresses[slot / NYB_PAGE * x->batch + b];
            p += (int64_t)h * NYB_PAGE * (f->code_bytes + f->scale_bytes);
            float zero = 0; /* stays 0 unless something is not finite */
            for (int i = 0; i < f->dim; i++) zero += row_in[i] * 0.0f;
            if (zero != 0) atomic_store(&j->nonfinite, 1);
            row(f, h, row_in, p + place * f->code_bytes,
                p + NYB_PAGE * f->code_bytes + place * f->scale_bytes);
        }
    }
}

int nyb_quantize(const nyb_stretch *x) {
    if (nyb_check_stretch(x)) return NYB_BAD_ARGUMENT;
    const int kind = x->format.kind;
    if (kind != NYB_Q4_0 && kind != NYB_Q8_0 && kind != NYB_NYB4 && kind > NYB_BF16)
        return NYB_BAD_ARGUMENT;
    job j = {.x = x};
    j.items = (int64_t)x->batch * x->heads * ((x->count + TOKENS - 1) / TOKENS);
    const int few = x->count * x->batch * x->heads * x->format.dim < 20000;
    nyb_parallel(items, &j, few ? 1 : x->threads);
    return atomic_load(&j.nonfinite) ? NYB_NONFINITE : NYB_OK;
}
