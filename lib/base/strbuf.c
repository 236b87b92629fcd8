/*
 * A growing string whose calls need no check: after a failed allocation it stays failed, and only
 * taking the string out reports that.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "mem.h"
#include "strbuf.h"

/* Makes room for len more bytes and the NUL. */
static bool reserve(struct tide_strbuf *sb, size_t len)
{
	if (sb->failed)
		return false;
	if (sb->buf && len < sb->cap - sb->len)
		return true;
	if (len > SIZE_MAX / 2 - sb->len - 1) {
		sb->failed = true;
		return false;
	}
	size_t cap = TIDE_MAX(TIDE_MAX(sb->cap * 2, sb->len + len + 1), (size_t)64);
	char *buf = tide_mem_realloc(sb->buf, cap, 1, NULL);
	if (!buf) {
		sb->failed = true;
		return false;
	}
	sb->buf = buf;
	sb->cap = cap;
	return true;
}

void tide_strbuf_add(struct tide_strbuf *sb, const void *data, size_t len)
{
	if (!reserve(sb, len))
		return;
	if (len > 0)
		memcpy(sb->buf + sb->len, data, len);
	sb->len += len;
	sb->buf[sb->len] = '\0';
}

void tide_strbuf_adds(struct tide_strbuf *sb, const char *s)
{
	tide_strbuf_add(sb, s, strlen(s));
}

void tide_strbuf_addc(struct tide_strbuf *sb, char c)
{
	tide_strbuf_add(sb, &c, 1);
}

void tide_strbuf_vaddf(struct tide_strbuf *sb, const char *fmt, va_list ap)
{
	va_list again;

	va_copy(again, ap);
	int len = vsnprintf(NULL, 0, fmt, again);
	va_end(again);
	if (len < 0)
		sb->failed = true;
	if (len < 0 || !reserve(sb, (size_t)len))
		return;
	vsnprintf(sb->buf + sb->len, (size_t)len + 1, fmt, ap);
	sb->len += (size_t)len;
}

void tide_strbuf_addf(struct tide_strbuf *sb, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	tide_strbuf_vaddf(sb, fmt, ap);
	va_end(ap);
}

void tide_strbuf_reset(struct tide_strbuf *sb)
{
	sb->len = 0;
	sb->failed = false;
	if (sb->buf)
		sb->buf[0] = '\0';
}

void tide_strbuf_release(struct tide_strbuf *sb)
{
	free(sb->buf);
	*sb = (struct tide_strbuf)TIDE_STRBUF_INIT;
}

char *tide_strbuf_steal(struct tide_strbuf *sb, struct tide_error *err)
{
	if (!sb->buf)
		tide_strbuf_add(sb, "", 0);
	if (sb->failed) {
		tide_strbuf_release(sb);
		tide_error_set_nomem(err);
		return NULL;
	}
	char *s = sb->buf;
	*sb = (struct tide_strbuf)TIDE_STRBUF_INIT;
	return s;
}
