/*
 * Loads libdeflate on first use, for the code that compresses and decompresses clusters.
 */
#include "qcow2_deflate.h"

#include "base/dynlib.h"

struct tide_qcow2_deflate tide_qcow2_deflate;

#define CALL(name) { "libdeflate_" #name, &tide_qcow2_deflate.name },
static const struct tide_dynlib_call calls[] = { TIDE_QCOW2_DEFLATE_CALLS(CALL) };
#undef CALL

static struct tide_dynlib library = TIDE_DYNLIB("libdeflate.so.0", "zlib compression", "libdeflate0", calls);

int tide_qcow2_deflate_load(struct tide_error *err)
{
	return tide_dynlib_load(&library, err);
}
