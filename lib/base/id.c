/* Random identifiers, from the kernel's generator, and their text. */
#include "id.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

int tide_id_new(struct tide_id *id, struct tide_error *err)
{
	do {
		if (getrandom(id->bytes, sizeof(id->bytes), 0) != (ssize_t)sizeof(id->bytes))
			return tide_error_set_sys(err, errno, "Could not get random bytes");
	} while (!tide_id_is_set(id));
	return 0;
}

bool tide_id_is_set(const struct tide_id *id)
{
	static const struct tide_id none;

	return memcmp(id, &none, sizeof(none)) != 0;
}

bool tide_id_is_same(const struct tide_id *a, const struct tide_id *b)
{
	return memcmp(a, b, sizeof(*a)) == 0;
}

bool tide_id_differs(const struct tide_id *a, const struct tide_id *b)
{
	return tide_id_is_set(a) && tide_id_is_set(b) && !tide_id_is_same(a, b);
}

void tide_id_format(const struct tide_id *id, char text[TIDE_ID_TEXT])
{
	for (size_t i = 0; i < TIDE_ID_BYTES; i++)
		snprintf(text + 2 * i, 3, "%02x", id->bytes[i]);
}
