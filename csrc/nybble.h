/* The kernels' C interface: attention over packed pages, unpacking, quantizing.
 *
 * A page holds 64 tokens of one side of one layer. For each batch row and KV head its bytes are
 * planar: the codes of all tokens, then the scales of all tokens (src/nybble/runtime/layout.py).
 * Everything here is plain C without Python or torch, so that one library serves all versions.
 */
#ifndef NYBBLE_H
#define NYBBLE_H

#include <stdint.h>

/* Raised with every change of a struct or a meaning; native.py refuses other numbers. */
#define NYB_ABI 1

#define NYB_PAGE 64
#define NYB_MAX_DIM 1024
#define NYB_MAX_GROUPS (NYB_MAX_DIM / 16)

enum nyb_kind {
    NYB_F32,
    NYB_F16,
    NYB_BF16,
    NYB_Q8_0,
    NYB_Q5_1,
    NYB_Q5_0,
    NYB_Q4_1,
    NYB_Q4_0,
    NYB_IQ4_NL,
    NYB_INT8, /* int8_per_token_head */
    NYB_INT4, /* int4_per_token_head */
    NYB_NYB4,
    NYB_KINDS
};

enum nyb_status { NYB_OK = 0, NYB_BAD_ARGUMENT = -1, NYB_NO_MEMORY = -2, NYB_NONFINITE = 1 };

typedef struct {
    int32_t kind;
    int32_t dim;        /* a multiple of 16, at most NYB_MAX_DIM */
    int32_t code_bytes; /* of one head of one token */
    int32_t scale_bytes;
    const uint8_t *widths; /* nyb4: bits of each group, [heads][groups]; else NULL */
    int32_t groups;        /* nyb4: groups of a head; else 0 */
    int32_t reserved;
} nyb_format;

/* Keys that are RoPE(weight * turned(y) + centre) of the V page's coded values y; pairs are
 * (i, i + dim / 2). q is then as the model has it. */
typedef struct {
    const float *weight;      /* [heads][dim] */
    const float *centre;      /* [heads][dim], or NULL */
    const float *frequencies; /* [pairs], radians a position */
    const int64_t *position;  /* [batch], of the first live token */
    int32_t pairs;            /* the first of dim / 2 that rotate */
    int32_t rotation;         /* 64: turned() is Hadamard blocks of 64; 0: nothing */
} nyb_latent;

/* One segment of one layer. Row r of q is query position r % positions. */
typedef struct {
    int32_t batch, heads, rows, positions;
    int32_t pages, threads;
    int64_t offset; /* dead tokens in front on the first page */
    int64_t count;  /* live tokens */
    nyb_format k, v;
    const uint64_t *k_pages; /* addresses of head 0, [pages][batch]; NULL with a latent */
    const uint64_t *v_pages;
    const float *q;       /* [batch][heads][rows][k.dim], scaled */
    const float *bias;    /* [batch][heads][rows], or NULL */
    const int64_t *start; /* [positions], first live token seen */
    const int64_t *stop;  /* [positions], the one behind the last */
    const uint8_t *mask;  /* [batch][positions][count], 1 = may see, or NULL */
    const float *added;   /* to add to capped scores, or NULL; -inf hides a token */
    int64_t added_batch, added_head, added_row; /* its strides in floats; tokens are contiguous */
    float softcap;                              /* 0 for none */
    int32_t reserved;
    const nyb_latent *latent; /* or NULL */
    float *m, *l;             /* [batch][heads][rows] */
    float *acc;               /* [batch][heads][rows][v.dim] */
} nyb_call;

/* Tokens of one side, for readers and writers of whole stretches; token `first` is a place counted
 * from the start of the first page. x is float32 [batch][heads][count][dim]. */
typedef struct {
    int32_t batch, heads, pages, threads;
    int64_t first, count;
    nyb_format format;
    const uint64_t *addresses; /* [pages][batch] */
    float *x;
} nyb_stretch;

#define NYB_EXPORT __attribute__((visibility("default")))

NYB_EXPORT int nyb_abi(void);
/* The variants that this processor can run, "avx512 avx2 baseline", best first. */
NYB_EXPORT const char *nyb_variants(void);
/* Choose a variant by name; NYB_BAD_ARGUMENT for one that is not among them. */
NYB_EXPORT int nyb_choose(const char *name);
/* GOMP_parallel of an OpenMP runtime whose threads are warm, or NULL for threads made per call. */
NYB_EXPORT void nyb_set_parallel(void *gomp_parallel);

NYB_EXPORT int nyb_attend(const nyb_call *call);
NYB_EXPORT int nyb_unpack(const nyb_stretch *stretch);
/* Writes codes and scales; NYB_NONFINITE when x held a NaN or an infinity (it is stored as the
 * format's specification says). q4_0, q8_0, nyb4, f16, bf16 and f32. */
NYB_EXPORT int nyb_quantize(const nyb_stretch *stretch);

#endif
