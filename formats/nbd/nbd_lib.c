/*
 * Loads libnbd on first use and provides its functions as members of a structure.
 */
#include "nbd_lib.h"

#include "base/dynlib.h"
#include "base/error.h"

static struct tide_nbd_lib nbd;

#define CALL(name) { "nbd_" #name, &nbd.name },
static const struct tide_dynlib_call calls[] = { TIDE_NBD_CALLS(CALL) };
#undef CALL

static struct tide_dynlib library = TIDE_DYNLIB("libnbd.so.0", "NBD", "libnbd0", calls);

int tide_nbd_lib_load(struct tide_nbd_lib *lib, struct tide_error *err)
{
	if (tide_dynlib_load(&library, err) < 0)
		return -1;
	*lib = nbd;
	return 0;
}
