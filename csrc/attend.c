/* The exported functions: which variant runs, how work is shared out, how parts are joined. */
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "parallel.h"
#include "variant.h"

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#define MAYBE __attribute__((unused)) /* where a variant is left out */
static int MAYBE runs_avx2(void) {
    unsigned a, b, c, d;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
static int MAYBE runs_avx512(void) {
    return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif
static int runs_always(void) { return 1; }

static const struct {
    const char *name;
    const nyb_variant *variant;
    int (*runs)(void);
} known[] = {
#ifdef NYB_WITH_AVX512
    {"avx512", &nyb_avx512, runs_avx512},
#endif
#ifdef NYB_WITH_AVX2
    {"avx2", &nyb_avx2, runs_avx2},
#endif
    {"baseline", &nyb_baseline, runs_always},
};
enum { KNOWN = sizeof known / sizeof *known };

static _Atomic(const nyb_variant *) active;

int nyb_abi(void) { return NYB_ABI; }

const char *nyb_variants(void) {
    static char names[64];
    char found[64] = "";
    for (int i = 0; i < KNOWN; i++)
        if (known[i].runs()) {
            if (*found) strcat(found, " ");
            strcat(found, known[i].name);
        }
    memcpy(names, found, sizeof names);
    return names;
}

int nyb_choose(const char *name) {
    for (int i = 0; i < KNOWN; i++)
        if (!strcmp(name, known[i].name) && known[i].runs()) {
            atomic_store(&active, known[i].variant);
            return NYB_OK;
        }
    return NYB_BAD_ARGUMENT;
}

/* Working memory of threads, kept for the next call: fresh pages would be faulted in each time. */
typedef union block {
    union block *next;
    double aligned[8];
} block;
static block *spare;
static size_t spare_bytes;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static block *borrow(size_t bytes) {
    block *taken = 0;
    pthread_mutex_lock(&lock);
    if (bytes != spare_bytes) { /* another variant was chosen */
        while (spare) {
            block *next = spare->next;
            free(spare);
            spare = next;
        }
        spare_bytes = bytes;
    }
    if (spare) {
        taken = spare;
        spare = taken->next;
    }
    pthread_mutex_unlock(&lock);
    if (taken) return taken;
    void *memory = 0;
    if (posix_memalign(&memory, 64, sizeof(block) + bytes)) return 0;
    return memset(memory, 0, sizeof(block) + bytes); /* no tables of sines in it yet */
}

static void give_back(block *b, size_t bytes) {
    pthread_mutex_lock(&lock);
    if (bytes == spare_bytes) {
        b->next = spare;
        spare = b;
        b = 0;
    }
    pthread_mutex_unlock(&lock);
    free(b);
}

static int bad_format(const nyb_format *f) {
    if (f->kind < 0 || f->kind >= NYB_KINDS || f->dim < 16 || f->dim > NYB_MAX_DIM || f->dim % 16)
        return 1;
    const int blocks = f->dim / 32;
    int codes, scales;
    switch (f->kind) {
    case NYB_F32: codes = 4 * f->dim, scales = 0; break;
    case NYB_F16:
    case NYB_BF16: codes = 2 * f->dim, scales = 0; break;
    case NYB_INT8: codes = f->dim, scales = 4; break;
    case NYB_INT4: codes = f->dim / 2, scales = 4; break;
    case NYB_NYB4:
        if (!f->widths || f->groups < 1 || f->groups > NYB_MAX_GROUPS || f->dim % f->groups)
            return 1;
        if (f->dim / f->groups != 16 && f->dim / f->groups != 32) return 1;
        return f->scale_bytes != f->groups || f->code_bytes < 1;
    default:
        if (f->dim % 32) return 1;
        scales = blocks * (f->kind == NYB_Q4_1 || f->kind == NYB_Q5_1 ? 4 : 2);
        codes = blocks * (f->kind == NYB_Q5_0 || f->kind == NYB_Q5_1 ? 20 : 16);
        if (f->kind == NYB_Q8_0) codes = blocks * 32;
    }
    return f->code_bytes != codes || f->scale_bytes != scales;
}

/* Widths must be 1 to 7 and fill the row, or a kernel would read past it. */
static int bad_widths(const nyb_format *f, int heads) {
    if (f->kind != NYB_NYB4) return 0;
    for (int h = 0; h < heads; h++) {
        int bits = 0;
        for (int g = 0; g < f->groups; g++) {
            const int width = f->widths[(int64_t)h * f->groups + g];
            if (width < 1 || width > 7) return 1;
            bits += width;
        }
        if (bits * (f->dim / f->groups) / 8 != f->code_bytes) return 1;
    }
    return 0;
}

static int bad_latent(const nyb_latent *x, int dim) {
    const int unit = x->rotation ? 64 : 32;
    return (x->rotation && x->rotation != 64) || dim % unit || x->pairs < 0 ||
           (x->pairs + 15) / 16 * 16 > dim / 2 || !x->weight || !x->position ||
           (x->pairs && !x->frequencies);
}

static int bad_call(const nyb_call *c) {
    if (c->batch < 1 || c->heads < 1 || c->rows < 1 || c->positions < 1 || c->rows % c->positions)
        return 1;
    if (c->pages < 0 || c->offset < 0 || c->count < 0) return 1;
    if (c->offset + c->count > (int64_t)c->pages * NYB_PAGE) return 1;
    if (bad_format(&c->v) || bad_widths(&c->v, c->heads) || (c->pages && !c->v_pages)) return 1;
    if (!c->q || !c->start || !c->stop || !c->m || !c->l || !c->acc) return 1;
    if (c->latent) return bad_latent(c->latent, c->v.dim) || c->k.dim != c->v.dim;
    return bad_format(&c->k) || bad_widths(&c->k, c->heads) || (c->pages && !c->k_pages);
}

typedef struct {
    const nyb_call *call;
    const nyb_variant *variant;
    int parts, first_page, last_page;
    int64_t items;
    float *m, *l, *acc;        /* of parts, [batch * heads][parts][rows](.dim) */
    atomic_int *left;          /* parts of a head that are not done */
    atomic_int_least64_t next; /* item */
    atomic_int failed;
} job;

/* Whoever finishes a head's last part joins them: sum_i exp(m_i - m) (l_i, acc_i). */
static void join(const job *j, int64_t head) {
    const nyb_call *c = j->call;
    const int rows = c->rows, dim = c->v.dim;
    for (int r = 0; r < rows; r++) {
        const int64_t to = head * rows + r;
        float m = -INFINITY, l = 0;
        for (int p = 0; p < j->parts; p++) {
            const float x = j->m[(head * j->parts + p) * rows + r];
            m = x > m ? x : m;
        }
        float *out = c->acc + to * dim;
        memset(out, 0, sizeof(float) * (size_t)dim);
        for (int p = 0; p < j->parts; p++) {
            const int64_t from = (head * j->parts + p) * rows + r;
            /* A part that saw nothing weighs 0; NaNs it may hold stay. */
            const float w = j->m[from] > -INFINITY ? expf(j->m[from] - m) : 0.0f;
            const float *acc = j->acc + from * dim;
            l += w * j->l[from];
            for (int i = 0; i < dim; i++) out[i] += w * acc[i];
        }
        c->m[to] = m;
        c->l[to] = l;
    }
}

static void attend_items(void *memory) {
    job *j = memory;
    const nyb_call *c = j->call;
    block *b = borrow(j->variant->work_bytes);
    if (!b) atomic_store(&j->failed, 1);
    const int pages = j->last_page - j->first_page;
    for (;;) {
        const int64_t item = atomic_fetch_add(&j->next, 1);
        if (item >= j->items || !b) break;
        const int64_t head = item / j->parts;
        const int part = (int)(item % j->parts);
        const int from = j->first_page + (int)((int64_t)pages * part / j->parts);
        const int to = j->first_page + (int)((int64_t)pages * (part + 1) / j->parts);
        const int64_t row = item * c->rows;
        j->variant->attend(b + 1, c, (int)(head / c->heads), (int)(head % c->heads), from, to,
                           j->m + row, j->l + row, j->acc + row * c->v.dim);
        if (j->parts > 1 && atomic_fetch_sub(&j->left[head], 1) == 1) join(j, head);
    }
    if (b) give_back(b, j->variant->work_bytes);
}

int nyb_attend(const nyb_call *c) {
    const nyb_variant *variant = atomic_load(&active);
    if (!variant || bad_call(c)) return NYB_BAD_ARGUMENT;
    job j = {.call = c, .variant = variant, .m = c->m, .l = c->l, .acc = c->acc};
    const int64_t heads = (int64_t)c->batch * c->heads;
    /* Only pages that some query sees. */
    int64_t low = c->count, high = 0;
    for (int i = 0; i < c->positions; i++) {
        const int64_t a = c->start[i] > 0 ? c->start[i] : 0;
        const int64_t z = c->stop[i] < c->count ? c->stop[i] : c->count;
        if (a >= z) continue;
        low = a < low ? a : low;
        high = z > high ? z : high;
    }
    if (low < high) {
        j.first_page = (int)((c->offset + low) / NYB_PAGE);
        j.last_page = (int)((c->offset + high + NYB_PAGE - 1) / NYB_PAGE);
    }
    const int pages = j.last_page - j.first_page;
    /* Below some 50 us of work other threads cost more than they give. */
    const int64_t products = heads * c->rows * pages * NYB_PAGE * (int64_t)(c->k.dim + c->v.dim);
    const int threads = products < 400000 || c->threads < 1 ? 1 : c->threads;
    /* Four items a thread even out what differs; a part has four pages at least. */
    int64_t parts = threads == 1 ? 1 : (4 * threads + heads - 1) / heads;
    if (parts > pages / 4) parts = pages / 4;
    j.parts = parts > 1 ? (int)parts : 1;
    j.items = heads * j.parts;
    if (j.parts > 1) {
        const size_t rows = (size_t)j.items * (size_t)c->rows;
        j.m = malloc(sizeof(float) * rows * (size_t)(c->v.dim + 2));
        j.left = malloc(sizeof(atomic_int) * (size_t)heads);
        if (!j.m || !j.left) {
            free(j.m);
            free(j.left);
            return NYB_NO_MEMORY;
        }
        j.l = j.m + rows;
        j.acc = j.l + rows;
        for (int64_t h = 0; h < heads; h++) atomic_init(&j.left[h], j.parts);
    }
    nyb_parallel(attend_items, &j, threads < j.items ? threads : (int)j.items);
    if (j.parts > 1) {
        free(j.m);
        free(j.left);
    }
    /* A thread without memory does no item; the others do them all, unless all had none. */
    return atomic_load(&j.failed) && atomic_load(&j.next) < j.items ? NYB_NO_MEMORY : NYB_OK;
}

typedef struct {
    const nyb_stretch *x;
    const nyb_variant *variant;
    int first_page, pages;
    int64_t items;
    atomic_int_least64_t next;
    atomic_int failed;
} walk;

static void unpack_items(void *memory) {
    walk *j = memory;
    block *b = borrow(j->variant->work_bytes);
    if (!b) atomic_store(&j->failed, 1);
    for (;;) {
        const int64_t item = atomic_fetch_add(&j->next, 1);
        if (item >= j->items || !b) break;
        const int64_t head = item / j->pages;
        j->variant->unpack(b + 1, j->x, (int)(head / j->x->heads), (int)(head % j->x->heads),
                           j->first_page + (int)(item % j->pages));
    }
    if (b) give_back(b, j->variant->work_bytes);
}

int nyb_check_stretch(const nyb_stretch *x) {
    if (x->batch < 1 || x->heads < 1 || x->pages < 0 || x->first < 0 || x->count < 0 || !x->x)
        return NYB_BAD_ARGUMENT;
    if (x->first + x->count > (int64_t)x->pages * NYB_PAGE || (x->pages && !x->addresses))
        return NYB_BAD_ARGUMENT;
    return bad_format(&x->format) || bad_widths(&x->format, x->heads) ? NYB_BAD_ARGUMENT : NYB_OK;
}

int nyb_unpack(const nyb_stretch *x) {
    const nyb_variant *variant = atomic_load(&active);
    if (!variant || nyb_check_stretch(x)) return NYB_BAD_ARGUMENT;
    if (!x->count) return NYB_OK;
    walk j = {.x = x, .variant = variant, .first_page = (int)(x->first / NYB_PAGE)};
    j.pages = (int)((x->first + x->count + NYB_PAGE - 1) / NYB_PAGE) - j.first_page;
    j.items = (int64_t)x->batch * x->heads * j.pages;
    const int few = x->count * x->batch * x->heads * x->format.dim < 100000;
    nyb_parallel(unpack_items, &j, few ? 1 : x->threads);
    return atomic_load(&j.failed) && atomic_load(&j.next) < j.items ? NYB_NO_MEMORY : NYB_OK;
}
