/* Scores against keys that follow from the values: k = RoPE_p(weight * turned(y) + centre).
 *
 * Most channels do not rotate: for them weight, centre and the Hadamard blocks go into the query
 * once. For the pairs that do, the query is turned back by the position of the page's first slot
 * and the key forth by its place in the page, a table of 64, so no token needs a sine. The model
 * rounds p * frequency to float32, which at position 2^18 moves an angle by up to 2^-7: what the
 * rounding left out is found exactly and applied too, so keys are those the model would have.
 */
#ifndef NYB_LATENT_H
#define NYB_LATENT_H

#include "tile.h"

#define MAX_PAIRS (NYB_MAX_DIM / 2)
/* Tokens weighed at once. Fewer would stay in the first-level cache, but then what is summed is
 * loaded and stored too often; of 8, 16, 32 and 64 this was the fastest. */
#define STRETCH 32

typedef struct {
    const nyb_latent *call;
    int head, dim, half;
    int known; /* pairs that the tables below were made for */
    int pairs; /* rounded up to a multiple of 16, the rest at frequency 0 */
    int spans; /* stretches of channels that take part as they are stored */
    int from[8], to[8];
    int blocks; /* Hadamard blocks to undo, or 0 */
    int block[NYB_MAX_DIM / 64];
    float bias[8];
    double cosine[MAX_PAIRS], sine[MAX_PAIRS];           /* of the page's first slot */
    double step_cosine[MAX_PAIRS], step_sine[MAX_PAIRS]; /* of 64 positions */
    float frequency[MAX_PAIRS];
    float in_page[NYB_PAGE][2 * MAX_PAIRS]; /* cosines, then sines at `pairs` */
    /* Rows of these are ROW(...) apart. */
    float fold[8 * MAX_ROW] __attribute__((aligned(64)));  /* queries, channels as stored */
    float ahead[8 * MAX_ROW] __attribute__((aligned(64))); /* rotated ones, [R][2 * pairs] */
    float turned[NYB_MAX_DIM];
    float keys[(STRETCH + 4) * MAX_ROW] __attribute__((aligned(64))); /* [][2 * pairs] */
    float weight[2 * MAX_PAIRS]; /* of the rotated channels, [2 * pairs] */
    float centre[2 * MAX_PAIRS];
    float rows[(STRETCH + 4) * MAX_ROW] __attribute__((aligned(64))); /* unpacked values */
} latent;

/* 64 channels times the unnormalised Hadamard matrix; `to` may be `from`. */
INLINE void turn64(const float *from, float *to) {
    vf x[64 / VL];
    EACH(i, 64 / VL) x[i] = load(from + VL * i);
    UNROLL for (int stride = 1; stride < 64 / VL; stride *= 2) EACH(i, 64 / VL) if (!(i & stride)) {
        vf a = x[i], b = x[i + stride];
        x[i] = a + b;
        x[i + stride] = a - b;
    }
#if defined(__clang__)
#define SWAP(x, ...) __builtin_shufflevector(x, x, __VA_ARGS__)
#else
#define SWAP(x, ...) __builtin_shuffle(x, (vi){__VA_ARGS__})
#endif
    EACH(i, 64 / VL) {
        vf y = x[i];
#if VL == 16
        y = SWAP(y, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7) +
            y * (vf){1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1, -1};
        y = SWAP(y, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11) +
            y * (vf){1, 1, 1, 1, -1, -1, -1, -1, 1, 1, 1, 1, -1, -1, -1, -1};
        y = SWAP(y, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13) +
            y * (vf){1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1};
        y = SWAP(y, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14) +
            y * (vf){1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1};
#elif VL == 8
        y = SWAP(y, 4, 5, 6, 7, 0, 1, 2, 3) + y * (vf){1, 1, 1, 1, -1, -1, -1, -1};
        y = SWAP(y, 2, 3, 0, 1, 6, 7, 4, 5) + y * (vf){1, 1, -1, -1, 1, 1, -1, -1};
        y = SWAP(y, 1, 0, 3, 2, 5, 4, 7, 6) + y * (vf){1, -1, 1, -1, 1, -1, 1, -1};
#else
        y = SWAP(y, 2, 3, 0, 1) + y * (vf){1, 1, -1, -1};
        y = SWAP(y, 1, 0, 3, 2) + y * (vf){1, -1, 1, -1};
#endif
        store(to + VL * i, y);
    }
}

/* p * f as the model's float32 product minus the exact one. */
INLINE vf rounding(vf p, vf f) {
    vf product = p * f;
#if defined(NYB_AVX2)
    return (vf)_mm256_fnmadd_ps((__m256)p, (__m256)f, (__m256)product);
#elif defined(NYB_AVX512)
    return BITS(vf, _mm512_fnmadd_ps(BITS(__m512, p), BITS(__m512, f), BITS(__m512, product)));
#else
    vf out;
    for (int i = 0; i < VL; i++) out[i] = (float)((double)product[i] - (double)p[i] * f[i]);
    return out;
#endif
}

/* Tables of sines; a thread that had the same frequencies before has them still. */
static void set_frequencies(latent *x, const nyb_latent *call) {
    const size_t bytes = sizeof(float) * (size_t)call->pairs;
    if (x->known == call->pairs && !memcmp(x->frequency, call->frequencies, bytes)) return;
    x->known = call->pairs;
    for (int i = 0; i < x->pairs; i++) {
        const double f = i < call->pairs ? (double)call->frequencies[i] : 0.0;
        x->frequency[i] = (float)f;
        x->step_cosine[i] = cos(NYB_PAGE * f);
        x->step_sine[i] = sin(NYB_PAGE * f);
        for (int j = 0; j < NYB_PAGE; j++) {
            x->in_page[j][i] = (float)cos(j * f);
            x->in_page[j][x->pairs + i] = (float)sin(j * f);
        }
    }
}

/* Once for all pages of a head. */
static void open_latent(latent *x, const nyb_latent *call, int head, int dim) {
    x->call = call;
    x->head = head;
    x->dim = dim;
    x->half = dim / 2;
    x->pairs = (call->pairs + 15) / 16 * 16;
    set_frequencies(x, call);
    const float *w = call->weight + (int64_t)head * dim;
    const float *centre = call->centre ? call->centre + (int64_t)head * dim : 0;
    const float scale = call->rotation ? 0.125f : 1.0f; /* the Hadamard matrix's norm */
    for (int i = 0; i < x->pairs; i++) {
        x->weight[i] = w[i] * scale;
        x->weight[x->pairs + i] = w[x->half + i] * scale;
        x->centre[i] = centre ? centre[i] : 0.0f;
        x->centre[x->pairs + i] = centre ? centre[x->half + i] : 0.0f;
    }
    /* Channels by unit: wholly rotated ones drop out of the stretches scored as stored. */
    const int unit = call->rotation ? 64 : 16;
    x->spans = x->blocks = 0;
    for (int c = 0; c < dim; c += unit) {
        int rotated = 0;
        for (int i = c; i < c + unit; i++) rotated += i % x->half < x->pairs;
        if (rotated && call->rotation) x->block[x->blocks++] = c;
        if (rotated == unit) continue;
        if (x->spans && x->to[x->spans - 1] == c)
            x->to[x->spans - 1] = c + unit;
        else {
            x->from[x->spans] = c;
            x->to[x->spans++] = c + unit;
        }
    }
}

/* Take in R rows of queries [R][ROW(dim)]. */
static void fold_queries(latent *x, const float *q, int rows) {
    const float *w = x->call->weight + (int64_t)x->head * x->dim;
    const float *centre = x->call->centre ? x->call->centre + (int64_t)x->head * x->dim : 0;
    for (int r = 0; r < rows; r++) {
        float *out = x->fold + r * ROW(x->dim);
        double bias = 0;
        for (int i = 0; i < x->dim; i++) {
            const int rotated = i % x->half < x->pairs;
            out[i] = rotated ? 0.0f : q[r * ROW(x->dim) + i] * w[i];
            if (!rotated && centre) bias += (double)q[r * ROW(x->dim) + i] * centre[i];
        }
        x->bias[r] = (float)bias;
        if (!x->call->rotation) continue;
        for (int c = 0; c < x->dim; c += 64) {
            turn64(out + c, out + c);
            for (int i = c; i < c + 64; i++) out[i] *= 0.125f;
        }
    }
}

/* Sines of a page's first slot, from scratch. */
static void set_position(latent *x, int64_t position) {
    for (int i = 0; i < x->pairs; i++) {
        const double angle = (double)position * x->frequency[i];
        x->cosine[i] = cos(angle);
        x->sine[i] = sin(angle);
    }
}

/* The same for the next page: one complex product in double, good for any context. */
static void next_page(latent *x) {
    for (int i = 0; i < x->pairs; i++) {
        const double c = x->cosine[i], s = x->sine[i];
        x->cosine[i] = c * x->step_cosine[i] - s * x->step_sine[i];
        x->sine[i] = s * x->step_cosine[i] + c * x->step_sine[i];
    }
}

static void turn_queries(latent *x, const float *q, int rows) {
    for (int r = 0; r < rows; r++) {
        const float *first = q + r * ROW(x->dim), *second = first + x->half;
        float *out = x->ahead + r * ROW(2 * x->pairs);
        for (int i = 0; i < x->pairs; i++) {
            const float c = (float)x->cosine[i], s = (float)x->sine[i];
            out[i] = first[i] * c + second[i] * s;
            out[x->pairs + i] = second[i] * c - first[i] * s;
        }
    }
}

/* Rotated channels of one token's key, turned forth by its place in the page. */
INLINE void rotate_key(latent *x, const float *y, int place, int64_t position, float *key) {
    if (x->blocks) {
        for (int i = 0; i < x->blocks; i++) turn64(y + x->block[i], x->turned + x->block[i]);
        y = x->turned;
    }
    const vf p = splat((float)position);
    const int n = x->pairs;
    const float *in_page = x->in_page[place];
    for (int i = 0; i < n; i += VL) {
        vf a = load(y + i) * load(x->weight + i) + load(x->centre + i);
        vf b = load(y + x->half + i) * load(x->weight + n + i) + load(x->centre + n + i);
        vf c = load(in_page + i), s = load(in_page + n + i);
        vf off = rounding(p, load(x->frequency + i));
        vf near = 1.0f - 0.5f * off * off;
        vf c2 = c * near - s * off;
        vf s2 = s * near + c * off;
        store(key + i, a * c2 - b * s2);
        store(key + n + i, b * c2 + a * s2);
    }
}

/* Products of R rows of queries with T tokens over channels [from, to). */
INLINE void latent_dots(const int R, const int T, const float *q, int q_stride, const float *y,
                        int y_stride, int from, int to, vf *acc) {
    for (int c = from; c < to; c += 16)
        EACH(k, HALF) {
            vf v[4];
            EACH(j, T) v[j] = load(y + j * y_stride + c + VL * k);
            EACH(r, R) {
                vf x = load(q + r * q_stride + c + VL * k);
                KEEP(x);
                EACH(j, T) acc[j * R + r] += v[j] * x;
            }
        }
}

/* Scores of rows [first, first + R) for n tokens, out [n][all]; tokens behind the last are read,
 * not used. */
INLINE void latent_body(const int R, const int all, const int first, const latent *x,
                        const float *rows, int n, float *out) {
    const int T = R == 1 ? 4 : 2, stride = ROW(x->dim), pairs = 2 * x->pairs;
    const float *fold = x->fold + first * stride, *ahead = x->ahead + first * ROW(pairs);
    for (int t = 0; t < n; t += T) {
        vf acc[8] = {{0}};
        for (int j = 0; j < x->spans; j++)
            latent_dots(R, T, fold, stride, rows + t * stride, stride, x->from[j], x->to[j], acc);
        latent_dots(R, T, ahead, ROW(pairs), x->keys + t * ROW(pairs), ROW(pairs), 0, pairs, acc);
        float sums[8];
        sum4(acc, sums);
        if (T * R == 8) sum4(acc + 4, sums + 4);
        for (int j = 0; j < T && t + j < n; j++)
            EACH(r, R) out[(t + j) * all + first + r] = sums[j * R + r];
    }
}

/* 8 rows go as twice 4 by 2 tokens: loads are fewer than products then. */
static void dots_of_latent(int log_rows, const latent *x, const float *rows, int n, float *out) {
    switch (log_rows) {
    case 0: latent_body(1, 1, 0, x, rows, n, out); break;
    case 1: latent_body(2, 2, 0, x, rows, n, out); break;
    case 2: latent_body(4, 4, 0, x, rows, n, out); break;
    default: EACH(half, 2) latent_body(4, 8, 4 * half, x, rows, n, out);
    }
}

/* Scores of at most STRETCH slots [a, b); leaves their values in x->rows, [STRETCH][ROW(dim)]. */
static void score_latent(latent *x, const side *v, int log_rows, int64_t position, int a, int b,
                         float *out) {
    const int stride = ROW(x->dim);
    unpackers[v->kind](v, a, b, x->rows, stride);
    for (int t = a; t < b; t++)
        rotate_key(x, x->rows + (t - a) * stride, t, position + t,
                   x->keys + (t - a) * ROW(2 * x->pairs));
    dots_of_latent(log_rows, x, x->rows, b - a, out + (a << log_rows));
}

#endif
