/*
 * Structures of a caller that was built with another version of tidemark.h: shorter than the library's, or longer.
 *
 * Members are only ever added, at the end, and zero is the default of each.  So a shorter structure is extended by
 * zeroes, and a longer one is the same request as long as the rest of it is zero.
 */
#ifndef TIDE_SIZED_H
#define TIDE_SIZED_H

#include <stddef.h>

#include "compiler.h"
#include "tidemark.h"

/* From the caller's structure, `given` bytes (NULL: none), to the library's of `size` bytes. */
int tide_sized_take(void *to, size_t size, const void *from, size_t given, struct tide_error *err) TIDE_MUST_CHECK;
/* From the library's structure of `size` bytes to the caller's of `given`; refused if a member would be lost. */
int tide_sized_give(void *to, size_t given, const void *from, size_t size, struct tide_error *err) TIDE_MUST_CHECK;

#endif
