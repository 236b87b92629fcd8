/*
 * XXH3 for processors with AVX2, from the header of libxxhash: three times as fast as the library, which distributions
 * build for every processor.
 */
#include "xxh.h"

#ifdef TIDE_XXH_AVX2

#include <immintrin.h>
#include <stdlib.h>
#include <string.h>

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2")
#endif

#define XXH_INLINE_ALL
#define XXH_VECTOR 2 /* XXH_AVX2 */
#include <xxhash.h>

uint64_t tide_xxh_avx2(const void *data, size_t len)
{
	return XXH3_64bits(data, len);
}

#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
