/*
 * Shared libraries that are loaded when a function of theirs is first needed. Most commands need none of
 * them, and finding, mapping and binding one takes longer than such a command's own work.
 *
 *     #define CALLS(CALL) CALL(zstd, ZSTD_, compress) CALL(zstd, ZSTD_, isError)
 *     TIDE_DYNLIB_DOOR(zstd, CALLS, "libzstd.so.1", "zstd compression", "libzstd1");
 *
 * turns the functions that the library's header declares into the members zstd.compress and zstd.isError,
 * which may be called after tide_dynlib_load(&zstd_library, err).
 */
#ifndef TIDE_DYNLIB_H
#define TIDE_DYNLIB_H

#include <pthread.h>
#include <stddef.h>

#include "compiler.h"
#include "tidemark.h"

struct tide_dynlib_call {
	const char *name;
	void *to; /* a pointer to the function's pointer */
};

struct tide_dynlib {
	const char *file;    /* file name, with the version of its interface */
	const char *what;    /* the feature that needs it, for messages */
	const char *package; /* Debian's package */
	const struct tide_dynlib_call *calls;
	size_t n_calls;
	pthread_mutex_t lock;
	_Atomic bool loaded;
};

#define TIDE_DYNLIB(file, what, package, calls)                                                      \
	{                                                                                            \
		file, what, package, calls, TIDE_ARRAY_SIZE(calls), PTHREAD_MUTEX_INITIALIZER, false \
	}

#define TIDE_DYNLIB_MEMBER(var, prefix, name) __typeof__(&prefix##name) name;
#define TIDE_DYNLIB_CALL(var, prefix, name)   { #prefix #name, &(var).name },

#define TIDE_DYNLIB_DOOR(var, CALLS, file, what, package)                                 \
	static struct {                                                                   \
		CALLS(TIDE_DYNLIB_MEMBER)                                                 \
	} var;                                                                            \
	static const struct tide_dynlib_call var##_calls[] = { CALLS(TIDE_DYNLIB_CALL) }; \
	static struct tide_dynlib var##_library = TIDE_DYNLIB(file, what, package, var##_calls)

/* Loads the library unless it is loaded already, for the life of the process, and sets its calls. From any thread. */
int tide_dynlib_load(struct tide_dynlib *library, struct tide_error *err);

#endif
