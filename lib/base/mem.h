/*
 * Allocation, through one hook, so that a test can make any allocation fail.
 *
 * A size that overflows fails like a lack of memory. New memory is zeroed, except where noted.
 */
#ifndef TIDE_MEM_H
#define TIDE_MEM_H

#include <stddef.h>

#include "compiler.h"
#include "tidemark.h"

void *tide_mem_alloc(size_t n, size_t size, struct tide_error *err) TIDE_MUST_CHECK;
/* Grows or shrinks to n elements; the old block stays valid when this fails. New bytes are not zeroed. */
void *tide_mem_realloc(void *p, size_t n, size_t size, struct tide_error *err) TIDE_MUST_CHECK;
/* Aligned for O_DIRECT and whole pages; not zeroed. Free with free(). */
void *tide_mem_aligned(size_t align, size_t size, struct tide_error *err) TIDE_MUST_CHECK;
char *tide_mem_strdup(const char *s, struct tide_error *err) TIDE_MUST_CHECK;
char *tide_mem_strndup(const char *s, size_t n, struct tide_error *err) TIDE_MUST_CHECK;
char *tide_mem_printf(struct tide_error *err, const char *fmt, ...) TIDE_PRINTF(2, 3) TIDE_MUST_CHECK;

/* For TIDE_CLEANUP: free(*p). */
void tide_mem_freep(void *p);

#define TIDE_AUTOFREE TIDE_CLEANUP(tide_mem_freep)

/* Sets the hook, which returns true to make an allocation fail; NULL removes it. Not thread-safe. */
void tide_mem_set_hook(bool (*fails)(void));

#endif
