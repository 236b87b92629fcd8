/*
 * Sets, wraps and releases errors (error.h), and maps each code to its QMP class and exit status in
 * one table. The first error wins; a lack of memory for a text degrades to a fixed text.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "mem.h"

static const struct {
	const char *class;
	int exit_status;
} code_table[] = {
	[TIDE_E_NONE] = { "GenericError", 0 },
	[TIDE_E_REFUSED] = { "GenericError", 1 },
	[TIDE_E_USAGE] = { "GenericError", 2 },
	[TIDE_E_IO] = { "GenericError", 1 },
	[TIDE_E_NOMEM] = { "GenericError", 1 },
	[TIDE_E_CORRUPT] = { "GenericError", 1 },
	[TIDE_E_UNSUPPORTED] = { "GenericError", 1 },
	[TIDE_E_LOCKED] = { "GenericError", 1 },
	[TIDE_E_CANCELLED] = { "GenericError", 1 },
	[TIDE_E_PARTIAL] = { "GenericError", 3 },
	[TIDE_E_COMMAND_NOT_FOUND] = { "CommandNotFound", 1 },
	[TIDE_E_DEVICE_NOT_ACTIVE] = { "DeviceNotActive", 1 },
	[TIDE_E_DAMAGED] = { "GenericError", 3 },
	[TIDE_E_UNREPORTED] = { "GenericError", 4 },
};

/* Replaces msg when no memory is left for a text; never freed. */
static const char nomem_text[] = "Out of memory";

const char *tide_version(void)
{
	return TIDE_VERSION_STRING;
}

const char *tide_error_class(enum tide_code code)
{
	return (size_t)code < TIDE_ARRAY_SIZE(code_table) ? code_table[code].class : "GenericError";
}

int tide_error_exit_status(enum tide_code code)
{
	return (size_t)code < TIDE_ARRAY_SIZE(code_table) ? code_table[code].exit_status : 1;
}

static void free_msg(struct tide_error *err)
{
	if (err->msg != nomem_text)
		free(err->msg);
}

void tide_error_release(struct tide_error *err)
{
	if (!err)
		return;
	free_msg(err);
	free(err->hint);
	*err = (struct tide_error)TIDE_ERROR_INIT;
}

/* Expands fmt, or returns NULL. */
static TIDE_PRINTF(1, 0) char *expand(const char *fmt, va_list ap)
{
	va_list again;

	va_copy(again, ap);
	int len = vsnprintf(NULL, 0, fmt, again);
	va_end(again);
	char *text = len < 0 ? NULL : tide_mem_alloc((size_t)len + 1, 1, NULL);
	if (text)
		vsnprintf(text, (size_t)len + 1, fmt, ap);
	return text;
}

static void set_msg(struct tide_error *err, char *msg)
{
	err->msg = msg ? msg : (char *)nomem_text;
}

int(tide_error_set)(struct tide_error *err, enum tide_code code, const char *fmt, ...)
{
	va_list ap;

	if (!err || err->code != TIDE_E_NONE)
		return -1;
	va_start(ap, fmt);
	set_msg(err, expand(fmt, ap));
	va_end(ap);
	err->code = code;
	return -1;
}

int(tide_error_set_sys)(struct tide_error *err, int sys, const char *fmt, ...)
{
	va_list ap;
	char buf[64];

	if (!err || err->code != TIDE_E_NONE)
		return -1;
	va_start(ap, fmt);
	char *text TIDE_AUTOFREE = expand(fmt, ap);
	va_end(ap);
	/* GNU strerror_r: thread-safe, with the same texts as strerror. */
	set_msg(err, text ? tide_mem_printf(NULL, "%s: %s", text, strerror_r(sys, buf, sizeof(buf))) : NULL);
	err->code = sys == ENOMEM ? TIDE_E_NOMEM : TIDE_E_IO;
	err->sys = sys;
	return -1;
}

int(tide_error_wrap)(struct tide_error *err, const char *fmt, ...)
{
	va_list ap;

	if (!err || err->code == TIDE_E_NONE)
		return -1;
	va_start(ap, fmt);
	char *text TIDE_AUTOFREE = expand(fmt, ap);
	va_end(ap);
	char *whole = text ? tide_mem_printf(NULL, "%s: %s", text, err->msg) : NULL;
	if (whole) {
		free_msg(err);
		err->msg = whole;
	}
	return -1;
}

int(tide_error_hint)(struct tide_error *err, const char *fmt, ...)
{
	va_list ap;

	if (!err || err->code == TIDE_E_NONE || err->hint)
		return -1;
	va_start(ap, fmt);
	err->hint = expand(fmt, ap);
	va_end(ap);
	return -1;
}

int(tide_error_set_nomem)(struct tide_error *err)
{
	if (err && err->code == TIDE_E_NONE) {
		err->code = TIDE_E_NOMEM;
		err->sys = ENOMEM;
		set_msg(err, NULL);
	}
	return -1;
}

int(tide_error_move)(struct tide_error *dst, struct tide_error *src)
{
	if (dst && dst->code == TIDE_E_NONE) {
		*dst = *src;
		*src = (struct tide_error)TIDE_ERROR_INIT;
	}
	tide_error_release(src);
	return -1;
}
