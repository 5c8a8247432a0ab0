/* Attention of one head over a stretch of pages, compiled once for every instruction set.
 *
 * Online softmax over tiles of one page (Milakov and Gimelshein 2018, arXiv 1805.02867). NYB_NAME
 * names the variant.
 */
#include "variant.h"
#include "latent.h"

typedef struct {
    side k, v, spare;
    /* Rows of these are ROW(dim) apart. */
    float few[FEW * MAX_ROW] __attribute__((aligned(64)));
    float q[8 * MAX_ROW] __attribute__((aligned(64)));
    float acc[8 * MAX_ROW] __attribute__((aligned(64)));
    float s[NYB_PAGE * 8 + SLACK]; /* scores, then weights, [64][R] */
    float one[NYB_PAGE + SLACK];   /* weights of one row */
    float bias[8], m[8], l[8];
    int64_t start[8], stop[8];
    const uint8_t *mask[8];
    const float *added[8];
    latent latent;
} work;

static int64_t clamp(int64_t x, int64_t low, int64_t high) {
    return x < low ? low : x > high ? high : x;
}

/* Rows [first, first + rows) of a head, padded with zeros to 1, 2, 4 or 8. */
static int take_rows(work *w, const nyb_call *c, int b, int h, int first, int rows) {
    int log_rows = rows > 4 ? 3 : rows > 2 ? 2 : rows - 1;
    const size_t dim = (size_t)c->k.dim;
    const int64_t at = ((int64_t)b * c->heads + h) * c->rows + first;
    memset(w->q, 0, sizeof(float) * ROW(dim) << log_rows);
    for (int r = 0; r < rows; r++)
        memcpy(w->q + r * ROW(dim), c->q + (at + r) * dim, sizeof(float) * dim);
    memset(w->acc, 0, sizeof(float) * ROW(c->v.dim) << log_rows);
    for (int r = 0; r < 1 << log_rows; r++) {
        const int i = (first + (r < rows ? r : 0)) % c->positions;
        w->bias[r] = r < rows && c->bias ? c->bias[at + r] : 0.0f;
        w->start[r] = clamp(c->start[i], 0, c->count);
        w->stop[r] = clamp(c->stop[i], w->start[r], c->count);
        w->mask[r] = c->mask ? c->mask + ((int64_t)b * c->positions + i) * c->count : 0;
        w->added[r] = c->added ? c->added + b * c->added_batch + h * c->added_head +
                                     (first + (r < rows ? r : 0)) * c->added_row
                               : 0;
        w->m[r] = -INFINITY;
        w->l[r] = 0;
    }
    return log_rows;
}

/* Slots of a page that are weighed at once. Those of a latent are few, so that they stay unpacked
 * in the first-level cache until their values have been summed. */
typedef struct {
    int from, to; /* multiples of 16 */
    int a, b;     /* the live ones among them */
} window;

/* Bias and cap on the live scores, -inf on the others. */
static void finish_scores(work *w, int R, window at, float softcap) {
    float bias[16];
    int any = 0;
    for (int i = 0; i < 16; i++) bias[i] = w->bias[i % R];
    for (int r = 0; r < R; r++) any |= w->bias[r] != 0;
    const int period = R > VL ? R : VL; /* slots of the pattern of rows */
    if (any || softcap > 0)
        for (int i = at.from * R; i < at.to * R; i += period)
            for (int j = 0; j < period; j += VL) {
                vf x = load(w->s + i + j) + load(bias + j);
                if (softcap > 0) x = softcap * tanh_all(x / softcap);
                store(w->s + i + j, x);
            }
    for (int i = at.from * R; i < at.a * R; i++) w->s[i] = -INFINITY;
    for (int i = at.b * R; i < at.to * R; i++) w->s[i] = -INFINITY;
}

/* Hide what a row may not see; `origin` is the live token of slot 0. 1 when anything was. */
static int hide(work *w, int R, int rows, int a, int b, int64_t origin) {
    int hidden = 0;
    for (int r = 0; r < rows; r++) {
        const int from = (int)clamp(w->start[r] - origin, a, b),
                  to = (int)clamp(w->stop[r] - origin, from, b);
        for (int t = a; t < from; t++) w->s[t * R + r] = -INFINITY;
        for (int t = to; t < b; t++) w->s[t * R + r] = -INFINITY;
        hidden |= from > a || to < b;
        if (w->added[r])
            for (int t = from; t < to; t++) {
                const float x = w->added[r][origin + t];
                w->s[t * R + r] = x > -INFINITY || x != x ? w->s[t * R + r] + x : -INFINITY;
                hidden |= x == -INFINITY;
            }
        if (!w->mask[r] || !memchr(w->mask[r] + origin + a, 0, (size_t)(b - a))) continue;
        for (int t = a; t < b; t++)
            if (!w->mask[r][origin + t]) w->s[t * R + r] = -INFINITY;
        hidden = 1;
    }
    return hidden;
}

/* Scores become weights exp(score - m); sums and what was summed before are brought to the new m.
 */
static void weigh(work *w, int R, int dim, window at) {
    const int period = R > VL ? R : VL, vectors = R > VL ? 2 : 1;
    float lanes[2 * VL], base[2 * VL] = {0};
    vf high[2], total[2] = {{0}, {0}}, low[2];
    for (int j = 0; j < vectors; j++) high[j] = splat(-INFINITY);
    for (int i = at.from * R; i < at.to * R; i += period)
        for (int j = 0; j < vectors; j++) high[j] = larger(load(w->s + i + VL * j), high[j]);
    for (int j = 0; j < vectors; j++) store(lanes + VL * j, high[j]);
    for (int r = 0; r < R; r++) {
        float m = w->m[r];
        for (int j = r; j < period; j += R) m = lanes[j] > m ? lanes[j] : m;
        if (m > w->m[r] && w->m[r] > -INFINITY) {
            const float factor = expf(w->m[r] - m);
            w->l[r] *= factor;
            float *acc = w->acc + r * ROW(dim);
            for (int i = 0; i < dim; i += VL) store(acc + i, load(acc + i) * factor);
        }
        w->m[r] = m;
        /* Nothing seen yet: weights are exp(-inf) = 0, and NaN where a score is NaN. */
        for (int j = r; j < period; j += R) base[j] = m > -INFINITY ? m : 0.0f;
    }
    for (int j = 0; j < vectors; j++) low[j] = load(base + VL * j);
    for (int i = at.from * R; i < at.to * R; i += period)
        for (int j = 0; j < vectors; j++) {
            vf p = exp_negative(load(w->s + i + VL * j) - low[j]);
            store(w->s + i + VL * j, p);
            total[j] += p;
        }
    for (int j = 0; j < vectors; j++) store(lanes + VL * j, total[j]);
    for (int r = 0; r < R; r++)
        for (int j = r; j < period; j += R) w->l[r] += lanes[j];
}

/* A latent's values lie unpacked already, from slot `unpacked` on; else that is -1. */
static void add_values(work *w, int unpacked, int log_rows, const float *p, int a, int b,
                       float *acc) {
    if (unpacked < 0) {
        sum(&w->v, &w->spare, w->few, log_rows, p, a, b, acc);
        return;
    }
    as_floats(&w->spare, w->latent.rows, w->v.dim);
    summers[NYB_F32][log_rows](&w->spare, p + (unpacked << log_rows), a - unpacked, b - unpacked,
                               acc);
}

static int sees(const work *w, int r, int64_t origin) {
    return (!w->mask[r] || w->mask[r][origin]) &&
           (!w->added[r] || w->added[r][origin] != -INFINITY);
}

/* Rows that see different tokens go one by one, over the tokens each sees: a value that is not
 * finite must not reach a row that does not look at it, not even times a weight of 0. */
static void add_visible(work *w, const nyb_call *c, int R, int rows, int a, int b, int64_t origin,
                        int unpacked) {
    for (int r = 0; r < rows; r++) {
        const int from = (int)clamp(w->start[r] - origin, a, b),
                  to = (int)clamp(w->stop[r] - origin, from, b);
        for (int t = from; t < to; t++) w->one[t] = w->s[t * R + r];
        for (int t = from; t < to;) {
            int end = t;
            while (end < to && sees(w, r, origin + end)) end++;
            if (end > t) add_values(w, unpacked, 0, w->one, t, end, w->acc + r * ROW(c->v.dim));
            t = end + 1;
        }
    }
}

/* Scores are there: weigh them and sum the values. */
static void finish(work *w, const nyb_call *c, int log_rows, int rows, window at, int64_t origin,
                   int unpacked) {
    const int R = 1 << log_rows;
    finish_scores(w, R, at, c->softcap);
    const int hidden = hide(w, R, rows, at.a, at.b, origin);
    weigh(w, R, c->v.dim, at);
    if (hidden)
        add_visible(w, c, R, rows, at.a, at.b, origin, unpacked);
    else
        add_values(w, unpacked, log_rows, w->s, at.a, at.b, w->acc);
}

/* A head's part of a page lies apart from that of the page before, too short a stretch for the
 * processor to fetch ahead by itself; asked for one step before it is read, it is there. */
static inline void fetch(const nyb_format *f, uint64_t address, int head) {
    const int64_t bytes = NYB_PAGE * (int64_t)(f->code_bytes + f->scale_bytes);
    const char *p = (const char *)(uintptr_t)address + head * bytes;
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(p + i, 0, 2);
}

/* Rows [first, first + rows) over pages [page0, page1). */
static void some_rows(work *w, const nyb_call *c, int b, int h, int first, int rows, int page0,
                      int page1) {
    const int log_rows = take_rows(w, c, b, h, first, rows), R = 1 << log_rows;
    int64_t low = c->count, high = 0;
    for (int r = 0; r < rows; r++)
        if (w->stop[r] > w->start[r]) {
            low = w->start[r] < low ? w->start[r] : low;
            high = w->stop[r] > high ? w->stop[r] : high;
        }
    latent *x = c->latent ? &w->latent : 0;
    if (x) {
        fold_queries(x, w->q, R);
        for (int r = 0; r < R; r++) w->bias[r] += x->bias[r];
    }
    int seen = 0;
    for (int page = page0; page < page1; page++) {
        const int64_t origin = (int64_t)page * NYB_PAGE - c->offset; /* of slot 0 */
        const int a = (int)clamp(low - origin, 0, NYB_PAGE),
                  z = (int)clamp(high - origin, 0, NYB_PAGE);
        if (a >= z) continue;
        const int64_t at_page = (int64_t)page * c->batch + b, next = at_page + c->batch;
        turn_page(&w->v, c->v_pages[at_page], h);
        if (!x) {
            turn_page(&w->k, c->k_pages[at_page], h);
            fetch(&c->v, c->v_pages[at_page], h);
            prepare(&w->k, a, z);
            score(&w->k, &w->spare, w->few, log_rows, w->q, a, z, w->s);
            if (page + 1 < page1) fetch(&c->k, c->k_pages[next], h);
            prepare(&w->v, a, z);
            finish(w, c, log_rows, rows, (window){0, NYB_PAGE, a, z}, origin, -1);
            continue;
        }
        if (page + 1 < page1) fetch(&c->v, c->v_pages[next], h);
        prepare(&w->v, a, z);
        const int64_t position = c->latent->position[b] + origin;
        if (seen++)
            next_page(x);
        else
            set_position(x, position);
        turn_queries(x, w->q, R);
        for (int t = a; t < z;) {
            const int from = t / STRETCH * STRETCH, to = from + STRETCH, end = to < z ? to : z;
            const window at = {from, to, t, end};
            score_latent(x, &w->v, log_rows, position, t, end, w->s);
            finish(w, c, log_rows, rows, at, origin, t);
            t = end;
        }
    }
}

static void attend(void *memory, const nyb_call *c, int b, int h, int page0, int page1, float *m,
                   float *l, float *acc) {
    work *w = memory;
    open_side(&w->v, &c->v, h);
    if (c->latent)
        open_latent(&w->latent, c->latent, h, c->v.dim);
    else
        open_side(&w->k, &c->k, h);
    for (int first = 0; first < c->rows; first += 8) {
        const int rows = c->rows - first < 8 ? c->rows - first : 8;
        some_rows(w, c, b, h, first, rows, page0, page1);
        memcpy(m + first, w->m, sizeof(float) * (size_t)rows);
        memcpy(l + first, w->l, sizeof(float) * (size_t)rows);
        for (int r = 0; r < rows; r++)
            memcpy(acc + (int64_t)(first + r) * c->v.dim, w->acc + r * ROW(c->v.dim),
                   sizeof(float) * (size_t)c->v.dim);
    }
}

static void unpack(void *memory, const nyb_stretch *x, int b, int h, int page) {
    work *w = memory;
    open_side(&w->v, &x->format, h);
    const int64_t slot = (int64_t)page * NYB_PAGE;
    const int a = (int)clamp(x->first - slot, 0, NYB_PAGE);
    const int z = (int)clamp(x->first + x->count - slot, 0, NYB_PAGE);
    if (a >= z) return;
    turn_page(&w->v, x->addresses[(int64_t)page * x->batch + b], h);
    prepare(&w->v, a, z);
    float *out =
        x->x + (((int64_t)b * x->heads + h) * x->count + slot + a - x->first) * x->format.dim;
    unpackers[w->v.kind](&w->v, a, z, out, w->v.dim);
}

const nyb_variant NYB_NAME = {attend, unpack, sizeof(work)};
