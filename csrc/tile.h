/* Scores of, and weighted sums over, the tokens of one page: one function per type and side.
 *
 * Rows of queries come 1, 2, 4 or 8 at a time and stay in registers, so a token is unpacked once
 * for all of them. Scores lie token by token, [64][R]: what a query group shares is side by side.
 */
#ifndef NYB_TILE_H
#define NYB_TILE_H

#include "types.h"

#define SLACK 32 /* floats a tile of scores may be overrun by */

INLINE void score_vec(const int kind, const int R, const int T, const float *q, int dim,
                      const token *t, int c, const int h, const int k, vf *acc) {
    vf y[4];
    EACH(j, T) y[j] = vec(kind, t[j], c, h, k);
    EACH(r, R) {
        vf x = load(q + r * ROW(dim) + c + 16 * h + VL * k);
        if (T > 1 && kind <= NYB_Q8_0) KEEP(x); /* others need the registers */
        EACH(j, T) acc[j * R + r] += y[j] * x;
    }
}

/* Scores of tokens [a, b); q [R][ROW(dim)]. T tokens at once fill the pipelines. */
INLINE void score_body(const int kind, const int R, const side *s, const float *q, int a, int b,
                       float *out) {
    const int T = R == 1 ? 4 : R == 8 ? 1 : 2, dim = s->dim;
    for (int t = a; t < b; t += T) {
        vf acc[8] = {{0}};
        token at[4];
        EACH(j, T) at[j] = token_at(s, t + j < b ? t + j : b - 1);
        int c = 0;
        for (; c + 32 <= dim; c += 32)
            EACH(k, HALF) {
                score_vec(kind, R, T, q, dim, at, c, 0, k, acc);
                score_vec(kind, R, T, q, dim, at, c, 1, k, acc);
            }
        if (c < dim)
            EACH(k, HALF) score_vec(kind, R, T, q, dim, at, c, 0, k, acc);
        sum4(acc, out + t * R);
        if (T * R == 8) sum4(acc + 4, out + t * R + 4);
    }
}

/* Vectors of 32 channels summed in one pass over the tokens: as many as registers hold. */
#if VL == 16
#define AT_ONCE(R) 2
#else
#define AT_ONCE(R) ((R) == 8 ? 1 : (R) == 4 ? 2 : 4)
#endif

/* Vector i of 32 channels: halves alternate where both come from the same bytes. */
#define PART(kind, halves, i) ((halves) == 1 ? 0 : (kind) > NYB_Q8_0 ? (i) & 1 : (i) / HALF)
#define INNER(kind, halves, i) ((halves) == 1 ? (i) : (kind) > NYB_Q8_0 ? (i) / 2 : (i) % HALF)

/* Pass over the tokens for vectors [first, first + n) of the 32 (16) channels from c on. */
INLINE void accumulate_pass(const int kind, const int R, const int all_rows, const int n,
                            const int first, const int halves, const side *s, const float *p, int a,
                            int b, int c, float *acc) {
    vf x[16];
    EACH(i, n) {
        const int h = PART(kind, halves, first + i), k = INNER(kind, halves, first + i);
        EACH(r, R) x[i * R + r] = load(acc + r * ROW(s->dim) + c + 16 * h + VL * k);
    }
    for (int t = a; t < b; t++) {
        const token at = token_at(s, t);
        EACH(i, n) {
            const int h = PART(kind, halves, first + i), k = INNER(kind, halves, first + i);
            vf y = vec(kind, at, c, h, k);
            EACH(r, R) x[i * R + r] += p[t * all_rows + r] * y;
        }
    }
    EACH(i, n) {
        const int h = PART(kind, halves, first + i), k = INNER(kind, halves, first + i);
        EACH(r, R) store(acc + r * ROW(s->dim) + c + 16 * h + VL * k, x[i * R + r]);
    }
}

/* acc [R][ROW(dim)] += sum over [a, b) of p [64][R] times the values. */
INLINE void accumulate_body(const int kind, const int R, const side *s, const float *p, int a,
                            int b, float *acc) {
    /* Where unpacking is cheap, 8 rows go as twice 4 by more channels: loads of weights are then
     * fewer than products. */
    const int costly = kind == NYB_Q5_0 || kind == NYB_Q5_1 || kind == NYB_IQ4_NL;
    const int some = R == 8 && VL < 16 && !costly ? 4 : R;
    const int n = AT_ONCE(some) < LANES ? AT_ONCE(some) : LANES;
    int c = 0;
    for (; c + 32 <= s->dim; c += 32)
        EACH(part, R / some)
            EACH(pass, LANES / n) {
                const int r = part * some;
                accumulate_pass(kind, some, R, n, pass * n, 2, s, p + r, a, b, c,
                                acc + r * ROW(s->dim));
            }
    if (c < s->dim)
        EACH(first, HALF) accumulate_pass(kind, R, R, 1, first, 1, s, p, a, b, c, acc);
}

#define TILE(kind, R)                                                                              \
    static void score_##kind##_##R(const side *s, const float *q, int a, int b, float *out) {      \
        score_body(kind, R, s, q, a, b, out);                                                      \
    }                                                                                              \
    static void sum_##kind##_##R(const side *s, const float *p, int a, int b, float *acc) {        \
        accumulate_body(kind, R, s, p, a, b, acc);                                                 \
    }
#define TILES(kind) TILE(kind, 1) TILE(kind, 2) TILE(kind, 4) TILE(kind, 8)
EACH_KIND(TILES)

typedef void (*score_fn)(const side *s, const float *q, int a, int b, float *out);
typedef void (*sum_fn)(const side *s, const float *p, int a, int b, float *acc);

#define SCORES(kind)                                                                               \
    [kind] = {score_##kind##_1, score_##kind##_2, score_##kind##_4, score_##kind##_8},
#define SUMS(kind) [kind] = {sum_##kind##_1, sum_##kind##_2, sum_##kind##_4, sum_##kind##_8},
static const score_fn scorers[ALL_KINDS][4] = {EACH_KIND(SCORES)};
static const sum_fn summers[ALL_KINDS][4] = {EACH_KIND(SUMS)};

#define FEW 8 /* tokens unpacked at a time where a type has no function of its own */
#define MAX_ROW ROW(NYB_MAX_DIM)

/* A view of unpacked tokens as a page of f32. */
static inline void as_floats(side *s, const float *rows, int dim) {
    s->codes = (const uint8_t *)rows;
    s->kind = NYB_F32;
    s->dim = dim;
    s->code_bytes = 4 * ROW(dim);
}

static void score(const side *s, side *spare, float *few, int log_rows, const float *q, int a,
                  int b, float *out) {
    if (scorers[s->kind][log_rows]) {
        scorers[s->kind][log_rows](s, q, a, b, out);
        return;
    }
    as_floats(spare, few, s->dim);
    for (int t = a; t < b; t += FEW) {
        int n = b - t < FEW ? b - t : FEW;
        unpackers[s->kind](s, t, t + n, few, ROW(s->dim));
        scorers[NYB_F32][log_rows](spare, q, 0, n, out + (t << log_rows));
    }
}

static void sum(const side *s, side *spare, float *few, int log_rows, const float *p, int a, int b,
                float *acc) {
    if (summers[s->kind][log_rows]) {
        summers[s->kind][log_rows](s, p, a, b, acc);
        return;
    }
    as_floats(spare, few, s->dim);
    for (int t = a; t < b; t += FEW) {
        int n = b - t < FEW ? b - t : FEW;
        unpackers[s->kind](s, t, t + n, few, ROW(s->dim));
        summers[NYB_F32][log_rows](spare, p + (t << log_rows), 0, n, acc);
    }
}

#endif
