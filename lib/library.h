/*
 * Shared libraries that are loaded when what they do is first asked for.  Most commands need none of them, and finding,
 * mapping and binding one takes longer than such a command's own work.
 *
 *	#define ZSTD_CALLS(CALL) CALL(compress) CALL(isError)
 *	static struct {
 *		ZSTD_CALLS(TIDE_ZSTD_MEMBER)            the functions' types, from the library's header
 *	} zstd;
 *	static const struct tide_library_call calls[] = { ZSTD_CALLS(TIDE_ZSTD_CALL) };
 *	static struct tide_library library = TIDE_LIBRARY("libzstd.so.1", "zstd", "libzstd1", calls);
 */
#ifndef TIDE_LIBRARY_H
#define TIDE_LIBRARY_H

#include <pthread.h>
#include <stddef.h>

#include "compiler.h"
#include "tidemark.h"

struct tide_library_call {
	const char *name;
	void *to; /* a pointer to the function's pointer */
};

struct tide_library {
	const char *file;    /* with the version of its interface */
	const char *what;    /* needs it */
	const char *package; /* Debian's */
	const struct tide_library_call *calls;
	size_t n_calls;
	pthread_mutex_t lock;
	_Atomic bool loaded;
};

#define TIDE_LIBRARY(file, what, package, calls)                                                                       \
	{ file, what, package, calls, TIDE_ARRAY_SIZE(calls), PTHREAD_MUTEX_INITIALIZER, false }

/* Loads it, if it is not loaded, and keeps it; its calls are set then.  From any thread. */
int tide_library_load(struct tide_library *library, struct tide_error *err);

#endif
