/*
 * A growing string. Failure is sticky: after the first failed allocation all calls do nothing, and
 * tide_strbuf_steal reports it, so that callers check once, at the end.
 */
#ifndef TIDE_STRBUF_H
#define TIDE_STRBUF_H

#include <stdarg.h>

#include "compiler.h"
#include "tidemark.h"

struct tide_strbuf {
	char *buf; /* NUL-terminated once anything was added, else NULL */
	size_t len, cap;
	bool failed;
};

#define TIDE_STRBUF_INIT          \
	{                         \
		NULL, 0, 0, false \
	}

void tide_strbuf_add(struct tide_strbuf *sb, const void *data, size_t len);
void tide_strbuf_adds(struct tide_strbuf *sb, const char *s);
void tide_strbuf_addc(struct tide_strbuf *sb, char c);
void tide_strbuf_addf(struct tide_strbuf *sb, const char *fmt, ...) TIDE_PRINTF(2, 3);
void tide_strbuf_vaddf(struct tide_strbuf *sb, const char *fmt, va_list ap) TIDE_PRINTF(2, 0);
void tide_strbuf_reset(struct tide_strbuf *sb);
void tide_strbuf_release(struct tide_strbuf *sb);

/* Hands the string to the caller, who frees it, and empties the buffer. NULL only on failure. */
char *tide_strbuf_steal(struct tide_strbuf *sb, struct tide_error *err) TIDE_MUST_CHECK;

#endif
