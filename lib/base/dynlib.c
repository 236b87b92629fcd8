/*
 * Loads a shared library on first use and looks up its functions (dynlib.h). A failure names the
 * feature that needs the library and the package to install.
 */
#include "dynlib.h"

#include <dlfcn.h>
#include <string.h>

#include "error.h"

static int find_all(struct tide_dynlib *library, void *handle, struct tide_error *err)
{
	for (size_t i = 0; i < library->n_calls; i++) {
		const struct tide_dynlib_call *call = &library->calls[i];
		void *found = dlsym(handle, call->name);

		if (!found)
			return tide_error_set(err, TIDE_E_UNSUPPORTED,
			                      "%s needs the function '%s', which %s does not have", library->what,
			                      call->name, library->file);
		/*
		 * POSIX guarantees that a data pointer from dlsym can be converted to a function pointer; memcpy
		 * avoids the cast that ISO C forbids.
		 */
		memcpy(call->to, &found, sizeof(found));
	}
	return 0;
}

static int load(struct tide_dynlib *library, struct tide_error *err)
{
	/* RTLD_NODELETE: some of these libraries depend on others that cannot be unloaded. */
	void *handle = dlopen(library->file, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);

	if (!handle) {
		const char *why = dlerror();

		tide_error_set(err, TIDE_E_UNSUPPORTED, "%s needs a library that cannot be loaded: %s", library->what,
		               why ? why : library->file);
		return tide_error_hint(err, "install it; Debian has it in the package %s", library->package);
	}
	return find_all(library, handle, err);
}

int tide_dynlib_load(struct tide_dynlib *library, struct tide_error *err)
{
	int rc = 0;

	if (library->loaded)
		return 0;
	pthread_mutex_lock(&library->lock);
	if (!library->loaded) {
		rc = load(library, err);
		library->loaded = rc == 0;
	}
	pthread_mutex_unlock(&library->lock);
	return rc;
}
