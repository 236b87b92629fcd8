#include "nbd_lib.h"

#include <dlfcn.h>

#include "error.h"

#define LIBRARY "libnbd.so.0"

static int find(void *handle, const char *name, void **to, struct tide_error *err)
{
	*to = dlsym(handle, name);
	return *to ? 0 : tide_error_set(err, TIDE_E_UNSUPPORTED, LIBRARY " has no function '%s'", name);
}

int tide_nbd_lib_load(struct tide_nbd_lib *lib, struct tide_error *err)
{
	void *handle = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);

	if (!handle) {
		const char *why = dlerror();

		tide_error_set(err, TIDE_E_UNSUPPORTED, "NBD needs libnbd, which cannot be loaded: %s", why ? why : LIBRARY);
		return tide_error_hint(err, "install it; Debian has it in the package libnbd0");
	}
	/* POSIX has it that a pointer to data, as dlsym gives it, can be one to a function. */
#define TIDE_NBD_CALL(name)                                                                                            \
	if (find(handle, "nbd_" #name, (void **)&lib->name, err) < 0)                                                  \
		return -1;
	TIDE_NBD_CALLS(TIDE_NBD_CALL)
#undef TIDE_NBD_CALL
	return 0;
}
