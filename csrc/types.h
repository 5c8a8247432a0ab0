/* Every KV type as a reader sees it: VL channels of one token, in the coded domain.
 *
 * A value is code * d + m, with d and m of its group prepared once a page (`prepare`); for types
 * without a minimum m carries the zero point, which costs nothing since the multiply is fused.
 * The specification of each type is its file in src/nybble/formats/.
 */
#ifndef NYB_TYPES_H
#define NYB_TYPES_H

#include "nybble.h"
#include "simd.h"

/* nyb4 whose groups all have 4 bits, 32 or 16 channels a group: read like any other type. */
enum { NYB4_32 = NYB_KINDS, NYB4_16, ALL_KINDS };

/* One head of one page of one side. */
typedef struct {
    const uint8_t *codes, *scales;
    int kind, dim, code_bytes, scale_bytes, groups, group;
    const uint8_t *widths;                      /* nyb4: of this head's groups */
    uint16_t at[NYB_MAX_GROUPS];                /* nyb4: where a group's planes start in a row */
    float zero[NYB_PAGE * NYB_MAX_GROUPS + VL]; /* nyb4: code of zero, for every token's groups */
    /* Scales and minima of the page's tokens, [64][groups]. */
    float d[NYB_PAGE * NYB_MAX_GROUPS + VL] __attribute__((aligned(64)));
    float m[NYB_PAGE * NYB_MAX_GROUPS + VL] __attribute__((aligned(64)));
} side;

/* A reader of one head of a format. */
static void open_side(side *s, const nyb_format *f, int head) {
    s->kind = f->kind;
    s->dim = f->dim;
    s->code_bytes = f->code_bytes;
    s->scale_bytes = f->scale_bytes;
    s->widths = 0;
    switch (f->kind) {
    case NYB_Q8_0:
    case NYB_Q5_1:
    case NYB_Q5_0:
    case NYB_Q4_1:
    case NYB_Q4_0:
    case NYB_IQ4_NL: s->group = 32; break;
    case NYB_NYB4: s->group = f->dim / f->groups; break;
    default: s->group = f->dim;
    }
    s->groups = s->dim / s->group;
    if (f->kind != NYB_NYB4) return;
    s->widths = f->widths + (int64_t)head * f->groups;
    int at = 0, plain = 1;
    for (int g = 0; g < s->groups; g++) {
        int bits = s->widths[g];
        s->at[g] = (uint16_t)at;
        at += s->group * bits / 8;
        s->zero[g] = (float)(1 << bits) / 2 - (bits > 2 ? 0.0f : 0.5f);
        plain &= bits == 4;
    }
    for (int i = s->groups; i < NYB_PAGE * s->groups; i++) s->zero[i] = s->zero[i - s->groups];
    if (plain) s->kind = s->group == 32 ? NYB4_32 : NYB4_16;
}

/* Point it at a page. */
static inline void turn_page(side *s, uint64_t address, int head) {
    const uint8_t *p = (const uint8_t *)(uintptr_t)address;
    p += (int64_t)head * NYB_PAGE * (s->code_bytes + s->scale_bytes);
    s->codes = p;
    s->scales = p + NYB_PAGE * s->code_bytes;
}

static inline void halves(const uint8_t *p, int n, float *out) {
    int i = 0;
    for (; i + VL <= n; i += VL) store(out + i, widen_f16(p + 2 * i));
    for (; i < n; i++) {
        uint16_t h;
        memcpy(&h, p + 2 * i, 2);
        out[i] = f16_one(h);
    }
}

/* Scales of tokens [a, b) of the page. */
static void prepare(side *s, int a, int b) {
    const uint8_t *p = s->scales + a * s->scale_bytes;
    const int n = (b - a) * s->groups;
    float *d = s->d + a * s->groups, *m = s->m + a * s->groups;
    switch (s->kind) {
    case NYB_Q8_0:
    case NYB_IQ4_NL: halves(p, n, d); break;
    case NYB_Q4_0:
    case NYB_Q5_0: {
        const float zero = s->kind == NYB_Q4_0 ? -8.0f : -16.0f;
        halves(p, n, d);
        for (int i = 0; i < n; i++) m[i] = d[i] * zero;
        break;
    }
    case NYB_Q4_1:
    case NYB_Q5_1:
        for (int i = 0; i < n; i += 32) {
            float both[64];
            int take = n - i < 32 ? n - i : 32;
            halves(p + 4 * i, 2 * take, both);
            for (int j = 0; j < take; j++) d[i + j] = both[2 * j], m[i + j] = both[2 * j + 1];
        }
        break;
    case NYB_INT8: memcpy(d, p, 4 * (size_t)n); break;
    case NYB_INT4:
        for (int i = 0; i < n; i++) {
            uint32_t hidden = read_u32(p + 4 * i), plain = hidden & ~15u;
            memcpy(d + i, &plain, 4);
            m[i] = d[i] * -(float)(hidden & 15);
        }
        break;
    case NYB_NYB4:
    case NYB4_32:
    case NYB4_16:
        for (int i = 0; i < n; i += VL) {
            uint8_t last[VL] = {0};
            const int whole = i + VL <= n;
            if (!whole) memcpy(last, p + i, (size_t)(n - i)); /* a page ends behind it */
            const vf x = nyb4_scales(whole ? p + i : last);
            store(d + i, x);
            store(m + i, -load(s->zero + i) * x);
        }
        break;
    default: break;
    }
}

/* One token: kept apart from the side, so that no store of a float makes its fields be read anew.
 */
typedef struct {
    const uint8_t *row;
    const float *d, *m; /* of its groups */
} token;

INLINE token token_at(const side *s, int t) {
    const int64_t g = (int64_t)t * s->groups;
    return (token){s->codes + (int64_t)t * s->code_bytes, s->d + g, s->m + g};
}

/* Channels c + 16 * h + VL * k and up of a token; c a multiple of 32. Vectors h = 0 and h = 1 of
 * ggml's 4-bit types are the two halves of the same bytes, so read them side by side. */
INLINE vf vec(const int kind, token x, int c, const int h, const int k) {
    const int inner = 16 * h + VL * k, ch = c + inner, b = c / 32;
    switch (kind) {
    case NYB_F32: return load((const float *)(x.row + 4 * ch));
    case NYB_F16: return widen_f16(x.row + 2 * ch);
    case NYB_BF16: return widen_bf16(x.row + 2 * ch);
    case NYB_INT8: return to_float(widen_s8(x.row + ch)) * x.d[0];
    case NYB_INT4: return to_float(fields(x.row + c / 2, 4, inner)) * x.d[0] + x.m[0];
    case NYB4_32: return to_float(fields(x.row + c / 2, 4, inner)) * x.d[b] + x.m[b];
    case NYB4_16: {
        const int g = c / 16 + h;
        return to_float(fields(x.row + c / 2, 4, inner)) * x.d[g] + x.m[g];
    }
    case NYB_Q8_0: return to_float(widen_s8(x.row + ch)) * x.d[b];
    default: break;
    }
    const int five = kind == NYB_Q5_0 || kind == NYB_Q5_1;
    const uint8_t *block = x.row + b * (five ? 20 : 16);
    vi w = widen_u8(block + (five ? 4 : 0) + VL * k);
    vi code = h ? w >> 4 : w & 15;
    if (kind == NYB_IQ4_NL) return iq4(code) * x.d[b];
    if (five) code |= fifth(read_u32(block), inner);
    return to_float(code) * x.d[b] + x.m[b];
}

/* A group of nyb4 with `bits` bits, planes of 4, 2 and 1. */
INLINE void nyb4_group(const int bits, const uint8_t *p, const int group, float d, float m,
                       float *out) {
    const uint8_t *four = p, *two = four + (bits & 4 ? group / 2 : 0);
    const uint8_t *one = two + (bits & 2 ? group / 4 : 0);
    EACH(v, group / VL) {
        const int i = v * VL;
        vi code = {0};
        if (bits & 4) code = fields(four, 4, i);
        if (bits & 2) code = code << 2 | fields(two, 2, i);
        if (bits & 1) code = code << 1 | fields(one, 1, i);
        store(out + i, to_float(code) * d + m);
    }
}

#define WIDTH(bits)                                                                                \
    case bits:                                                                                     \
        if (group == 32)                                                                           \
            nyb4_group(bits, p, 32, d, m, out);                                                    \
        else                                                                                       \
            nyb4_group(bits, p, 16, d, m, out);                                                    \
        break;

static void nyb4_row(const side *s, int t, float *out) {
    const token x = token_at(s, t);
    const int group = s->group;
    for (int g = 0; g < s->groups; g++, out += group) {
        const uint8_t *p = x.row + s->at[g];
        const float d = x.d[g], m = x.m[g];
        switch (s->widths[g]) {
            WIDTH(1)
            WIDTH(2)
            WIDTH(3)
            WIDTH(4)
            WIDTH(5)
            WIDTH(6)
            default : /* widths are checked: it is 7 */
                      WIDTH(7)
        }
    }
}

INLINE void row_of(const int kind, const side *s, int t, float *out) {
    const token x = token_at(s, t);
    const int dim = s->dim;
    int c = 0;
    for (; c + 32 <= dim; c += 32)
        EACH(k, HALF) {
            const vf first = vec(kind, x, c, 0, k), second = vec(kind, x, c, 1, k);
            store(out + c + VL * k, first);
            store(out + c + 16 + VL * k, second);
        }
    if (c < dim)
        EACH(k, HALF) store(out + c + VL * k, vec(kind, x, c, 0, k));
}

#define EACH_KIND(X)                                                                               \
    X(NYB_F32)                                                                                     \
    X(NYB_F16)                                                                                     \
    X(NYB_BF16)                                                                                    \
    X(NYB_Q8_0)                                                                                    \
    X(NYB_Q5_1)                                                                                    \
    X(NYB_Q5_0) X(NYB_Q4_1) X(NYB_Q4_0) X(NYB_IQ4_NL) X(NYB_INT8) X(NYB_INT4) X(NYB4_32) X(NYB4_16)

#define UNPACK(kind)                                                                               \
    static void unpack_##kind(const side *s, int a, int b, float *out, int stride) {               \
        for (int t = a; t < b; t++, out += stride) row_of(kind, s, t, out);                        \
    }
EACH_KIND(UNPACK)

static void unpack_mixed(const side *s, int a, int b, float *out, int stride) {
    for (int t = a; t < b; t++, out += stride) nyb4_row(s, t, out);
}

/* Tokens [a, b) of a prepared page as floats, `stride` apart. */
static void (*const unpackers[ALL_KINDS])(const side *, int, int, float *, int) = {
#define ENTRY(kind) [kind] = unpack_##kind,
    EACH_KIND(ENTRY)[NYB_NYB4] = unpack_mixed,
};

#endif
