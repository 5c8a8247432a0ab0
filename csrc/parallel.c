#include "parallel.h"

#include <pthread.h>
#include <stdatomic.h>

#include "nybble.h"

#define MOST 256

/* libgomp's entry, which LLVM's and Intel's runtimes have too. torch's own threads stay warm and
 * spin for a moment after an operation, so a call costs 2 us where making threads costs 30. */
typedef void (*gomp_parallel)(void (*)(void *), void *, unsigned, unsigned);
static _Atomic(gomp_parallel) gomp;

void nyb_set_parallel(void *function) {
    gomp_parallel typed;
    *(void **)&typed = function; /* POSIX has no other way from an object to a function */
    atomic_store(&gomp, typed);
}

typedef struct {
    void (*body)(void *);
    void *data;
} task;

static void *start(void *memory) {
    const task *t = memory;
    t->body(t->data);
    return 0;
}

void nyb_parallel(void (*body)(void *), void *data, int threads) {
    gomp_parallel openmp = atomic_load(&gomp);
    if (threads > MOST) threads = MOST;
    if (threads <= 1) {
        body(data);
    } else if (openmp) {
        openmp(body, data, (unsigned)threads, 0);
    } else {
        pthread_t others[MOST];
        task t = {body, data};
        int made = 0;
        while (made < threads - 1 && pthread_create(&others[made], 0, start, &t) == 0) made++;
        body(data);
        for (int i = 0; i < made; i++) pthread_join(others[i], 0);
    }
}
