#include "qcow2_deflate.h"

#include "base/library.h"

struct tide_qcow2_deflate tide_qcow2_deflate;

#define CALL(name) { "libdeflate_" #name, &tide_qcow2_deflate.name },
static const struct tide_library_call calls[] = { TIDE_QCOW2_DEFLATE_CALLS(CALL) };
#undef CALL

static struct tide_library library = TIDE_LIBRARY("libdeflate.so.0", "zlib compression", "libdeflate0", calls);

int tide_qcow2_deflate_load(struct tide_error *err)
{
	return tide_library_load(&library, err);
}
