/*
 * XXH3, 64 bits: the checksum of stored data. It is faster than memory, and finds damage by accident, not forgery. No
 * other file calls libxxhash.
 */
#ifndef TIDE_XXH_H
#define TIDE_XXH_H

#include <stddef.h>
#include <stdint.h>

#include "tidemark.h"

/* Before the first _of: loads the library. From any thread. */
int tide_xxh_load(struct tide_error *err);
uint64_t tide_xxh_of(const void *data, size_t len);

#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__)
#define TIDE_XXH_AVX2
/* xxh_avx2.c: the same value, if the processor has AVX2. */
uint64_t tide_xxh_avx2(const void *data, size_t len);
#endif

#endif
