/*
 * Allocation that reports failure as an error, with checked sizes and one hook for tests that make
 * an allocation fail.
 */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "mem.h"

static bool (*hook)(void);

void tide_mem_set_hook(bool (*fails)(void))
{
	hook = fails;
}

/* True when the size overflows, no allocator can provide it, or the hook asks for a failure. */
static bool must_fail(size_t n, size_t size)
{
	size_t bytes;

	return __builtin_mul_overflow(n, size, &bytes) || bytes > PTRDIFF_MAX || (hook && hook());
}

/* Returns p; when it is NULL, sets the error. */
static void *checked(void *p, struct tide_error *err)
{
	if (!p)
		tide_error_set_nomem(err);
	return p;
}

void *tide_mem_alloc(size_t n, size_t size, struct tide_error *err)
{
	if (n == 0 || size == 0)
		n = size = 1;
	return checked(must_fail(n, size) ? NULL : calloc(n, size), err);
}

void *tide_mem_realloc(void *p, size_t n, size_t size, struct tide_error *err)
{
	if (n == 0 || size == 0)
		n = size = 1;
	return checked(must_fail(n, size) ? NULL : reallocarray(p, n, size), err);
}

void *tide_mem_aligned(size_t align, size_t size, struct tide_error *err)
{
	void *p = NULL;

	if (must_fail(size, 1) || posix_memalign(&p, TIDE_MAX(align, sizeof(void *)), TIDE_MAX(size, (size_t)1)) != 0)
		p = NULL;
	return checked(p, err);
}

char *tide_mem_strndup(const char *s, size_t n, struct tide_error *err)
{
	size_t len = strnlen(s, n);
	char *copy = tide_mem_alloc(len + 1, 1, err);

	if (copy)
		memcpy(copy, s, len);
	return copy;
}

char *tide_mem_strdup(const char *s, struct tide_error *err)
{
	return tide_mem_strndup(s, strlen(s), err);
}

char *tide_mem_printf(struct tide_error *err, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	int len = vsnprintf(NULL, 0, fmt, ap);
	va_end(ap);
	char *text = len < 0 ? checked(NULL, err) : tide_mem_alloc((size_t)len + 1, 1, err);
	if (!text)
		return NULL;
	va_start(ap, fmt);
	vsnprintf(text, (size_t)len + 1, fmt, ap);
	va_end(ap);
	return text;
}

void tide_mem_freep(void *p)
{
	free(*(void **)p);
}
