#include "xxh.h"

#include <stdbool.h>
#include <xxhash.h>

#include "dynlib.h"

#define CALLS(CALL) CALL(xxhash, XX, H3_64bits)

TIDE_DYNLIB_DOOR(xxhash, CALLS, "libxxhash.so.0", "Checksums of stored data", "libxxhash0");

static bool has_avx2(void)
{
#ifdef TIDE_XXH_AVX2
	return __builtin_cpu_supports("avx2");
#else
	return false;
#endif
}

int tide_xxh_load(struct tide_error *err)
{
	return has_avx2() ? 0 : tide_dynlib_load(&xxhash_library, err);
}

uint64_t tide_xxh_of(const void *data, size_t len)
{
#ifdef TIDE_XXH_AVX2
	if (has_avx2())
		return tide_xxh_avx2(data, len);
#endif
	return xxhash.H3_64bits(data, len);
}
