/* Threads: those of an OpenMP runtime that is there already, else made for the call. */
#ifndef NYB_PARALLEL_H
#define NYB_PARALLEL_H

/* Run body(data) on up to `threads` threads at once, this one among them. */
void nyb_parallel(void (*body)(void *), void *data, int threads);

#endif
