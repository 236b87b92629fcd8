/*
 * Copies structures between a caller and the library whose versions of tidemark.h differ.
 */
#include "sized.h"

#include <string.h>

#include "error.h"

/* Copies the bytes that both have, and sets the rest of `to` to zero.  False: the rest of `from` is not all zero. */
static bool copy(void *to, size_t to_size, const char *from, size_t from_size)
{
	size_t n = TIDE_MIN(to_size, from_size);

	if (n)
		memcpy(to, from, n);
	memset((char *)to + n, 0, to_size - n);
	for (size_t i = n; i < from_size; i++) {
		if (from[i])
			return false;
	}
	return true;
}

int tide_sized_take(void *to, size_t size, const void *from, size_t given, struct tide_error *err)
{
	if (copy(to, size, from, from ? given : 0))
		return 0;
	tide_error_set(err, TIDE_E_UNSUPPORTED,
	               "The request has an argument that libtidemark " TIDE_VERSION_STRING " does not know");
	return tide_error_hint(err, "the program was built for a later version of the library: update the library");
}

int tide_sized_give(void *to, size_t given, const void *from, size_t size, struct tide_error *err)
{
	if (copy(to, given, from, size))
		return 0;
	tide_error_set(err, TIDE_E_UNSUPPORTED, "The program does not know a part of the result");
	return tide_error_hint(err, "it was built for an earlier version of the library: rebuild it");
}
