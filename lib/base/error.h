/*
 * Setting errors.  `struct tide_error` and its codes are public (tidemark.h).
 *
 * Three verbs, each returning -1 so that a failing check is one statement:
 *
 *     return tide_error_set(err, TIDE_E_CORRUPT, "L1 table ends at %" PRIu64 ", after the end of the file", end);
 *     return tide_error_set_sys(err, errno, "Could not open '%s'", path);
 *     return tide_error_wrap(err, "Could not open '%s'", path);
 *
 * err may be NULL everywhere.  The first error wins: a set on an error already set is
 * ignored, so that a failing clean-up does not hide the cause.  Out of memory while
 * building a text degrades to a fixed text, never to a crash.
 */
#ifndef TIDE_ERROR_H
#define TIDE_ERROR_H

#include <stdarg.h>

#include "compiler.h"
#include "tidemark.h"

int tide_error_set(struct tide_error *err, enum tide_code code, const char *fmt, ...) TIDE_PRINTF(3, 4);

/* Code TIDE_E_IO (TIDE_E_NOMEM for ENOMEM); the text gets ": " and strerror(sys) appended. */
int tide_error_set_sys(struct tide_error *err, int sys, const char *fmt, ...) TIDE_PRINTF(3, 4);

/* Puts the text and ": " before the message; code and hint stay. */
int tide_error_wrap(struct tide_error *err, const char *fmt, ...) TIDE_PRINTF(2, 3);

/* Adds a hint: what a person can do about the error. Returns -1 too, so it can end the statement. */
int tide_error_hint(struct tide_error *err, const char *fmt, ...) TIDE_PRINTF(2, 3);

int tide_error_set_nomem(struct tide_error *err);

/* Moves src into dst. If dst is NULL or set already, src is only released. Returns -1. */
int tide_error_move(struct tide_error *dst, struct tide_error *src);

/* All of them return -1; these wrappers let compilers and static analysis know it. */
static inline int tide_error_returned(int minus_one)
{
	(void)minus_one;
	return -1;
}

#define tide_error_set(...)       tide_error_returned(tide_error_set(__VA_ARGS__))
#define tide_error_set_sys(...)   tide_error_returned(tide_error_set_sys(__VA_ARGS__))
#define tide_error_wrap(...)      tide_error_returned(tide_error_wrap(__VA_ARGS__))
#define tide_error_hint(...)      tide_error_returned(tide_error_hint(__VA_ARGS__))
#define tide_error_set_nomem(err) tide_error_returned(tide_error_set_nomem(err))
#define tide_error_move(dst, src) tide_error_returned(tide_error_move(dst, src))

#endif
