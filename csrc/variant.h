/* What one instruction set's build of variant.c offers. */
#ifndef NYB_VARIANT_H
#define NYB_VARIANT_H

#include <stddef.h>

#include "nybble.h"

typedef struct {
    /* One head, pages [page0, page1): m, l [rows], acc [rows][v.dim]. */
    void (*attend)(void *work, const nyb_call *call, int batch, int head, int page0, int page1,
                   float *m, float *l, float *acc);
    /* The part of the stretch that lies on one page. */
    void (*unpack)(void *work, const nyb_stretch *stretch, int batch, int head, int page);
    size_t work_bytes; /* of a thread */
} nyb_variant;

extern const nyb_variant nyb_baseline, nyb_avx2, nyb_avx512;

#endif
