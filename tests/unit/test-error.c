/* Errors: setting, wrapping, hints, and callers that pass no error. */
#include "base/error.h"
#include "base/mem.h"
#include "unit.h"

static unsigned fail_at;

static bool fail_nth(void)
{
	return fail_at > 0 && --fail_at == 0;
}

static bool fail_always(void)
{
	return true;
}

static void test_set(void)
{
	struct tide_error err = TIDE_ERROR_INIT;

	CHECK_EQ_I64(tide_error_set(&err, TIDE_E_CORRUPT, "table ends at %d", 7), -1);
	CHECK_STR(err.msg, "table ends at 7");
	CHECK_EQ_I64(err.sys, 0);
	CHECK_EQ_I64(tide_error_set(&err, TIDE_E_REFUSED, "second"), -1);
	CHECK_EQ_I64(tide_error_set_sys(&err, ENOENT, "third"), -1);
	CHECK_EQ_I64(tide_error_set_nomem(&err), -1);
	CHECK_EQ_I64(tide_error_wrap(&err, "image '%s'", "a.img"), -1);
	CHECK_EQ_I64(tide_error_hint(&err, "Try %s.", "again"), -1);
	CHECK_EQ_I64(tide_error_hint(&err, "Or not."), -1);
	CHECK_STR(err.hint, "Try again.");
	CHECK_ERR(&err, TIDE_E_CORRUPT, "image 'a.img': table ends at 7");
	CHECK(!err.msg && !err.hint && err.code == TIDE_E_NONE);
}

static void test_set_sys(void)
{
	struct tide_error err = TIDE_ERROR_INIT;

	CHECK_EQ_I64(tide_error_set_sys(&err, ENOENT, "Could not open '%s'", "x"), -1);
	CHECK_EQ_I64(err.sys, ENOENT);
	CHECK_ERR(&err, TIDE_E_IO, "Could not open 'x': No such file or directory");
	tide_error_set_sys(&err, ENOMEM, "Could not map");
	CHECK_ERR(&err, TIDE_E_NOMEM, "Could not map: Cannot allocate memory");
}

static void test_unset(void)
{
	struct tide_error err = TIDE_ERROR_INIT;

	tide_error_wrap(&err, "nothing");
	tide_error_hint(&err, "nothing");
	CHECK(!err.msg && !err.hint && err.code == TIDE_E_NONE);
	CHECK_EQ_I64(tide_error_set(NULL, TIDE_E_IO, "x"), -1);
	CHECK_EQ_I64(tide_error_set_sys(NULL, 1, "x"), -1);
	CHECK_EQ_I64(tide_error_wrap(NULL, "x"), -1);
	CHECK_EQ_I64(tide_error_hint(NULL, "x"), -1);
	CHECK_EQ_I64(tide_error_set_nomem(NULL), -1);
	tide_error_release(NULL);
}

static void test_move(void)
{
	struct tide_error a = TIDE_ERROR_INIT, b = TIDE_ERROR_INIT;

	tide_error_set(&a, TIDE_E_LOCKED, "first");
	tide_error_hint(&a, "hint");
	CHECK_EQ_I64(tide_error_move(&b, &a), -1);
	CHECK(a.code == TIDE_E_NONE && !a.msg && !a.hint);
	CHECK_STR(b.hint, "hint");
	tide_error_set(&a, TIDE_E_IO, "second");
	tide_error_move(&b, &a);
	CHECK(a.code == TIDE_E_NONE && !a.msg);
	CHECK_ERR(&b, TIDE_E_LOCKED, "first");
	tide_error_set(&a, TIDE_E_IO, "third");
	tide_error_move(NULL, &a);
	CHECK(a.code == TIDE_E_NONE && !a.msg);
}

static void test_no_memory(void)
{
	struct tide_error err = TIDE_ERROR_INIT;

	tide_mem_set_hook(fail_always);
	tide_error_set(&err, TIDE_E_CORRUPT, "text");
	tide_error_wrap(&err, "more");
	tide_error_hint(&err, "hint");
	CHECK(!err.hint);
	CHECK_ERR(&err, TIDE_E_CORRUPT, "Out of memory");
	CHECK(tide_mem_alloc(1, 1, &err) == NULL);
	CHECK_ERR(&err, TIDE_E_NOMEM, "Out of memory");
	tide_mem_set_hook(fail_nth);
	fail_at = 2; /* the text, then the whole */
	tide_error_set_sys(&err, EIO, "text");
	CHECK_ERR(&err, TIDE_E_IO, "Out of memory");
	tide_error_set(&err, TIDE_E_REFUSED, "kept");
	fail_at = 2;
	tide_error_wrap(&err, "lost");
	tide_mem_set_hook(NULL);
	CHECK_ERR(&err, TIDE_E_REFUSED, "kept");
}

static void test_codes(void)
{
	static const struct {
		enum tide_code code;
		int status;
		const char *class;
	} rows[] = {
		{ TIDE_E_NONE, 0, "GenericError" },
		{ TIDE_E_REFUSED, 1, "GenericError" },
		{ TIDE_E_USAGE, 2, "GenericError" },
		{ TIDE_E_IO, 1, "GenericError" },
		{ TIDE_E_NOMEM, 1, "GenericError" },
		{ TIDE_E_CORRUPT, 1, "GenericError" },
		{ TIDE_E_UNSUPPORTED, 1, "GenericError" },
		{ TIDE_E_LOCKED, 1, "GenericError" },
		{ TIDE_E_CANCELLED, 1, "GenericError" },
		{ TIDE_E_PARTIAL, 3, "GenericError" },
		{ TIDE_E_COMMAND_NOT_FOUND, 1, "CommandNotFound" },
		{ TIDE_E_DEVICE_NOT_ACTIVE, 1, "DeviceNotActive" },
		{ TIDE_E_DAMAGED, 3, "GenericError" },
		{ TIDE_E_UNREPORTED, 4, "GenericError" },
		{ (enum tide_code)99, 1, "GenericError" },
	};

	for (size_t i = 0; i < TIDE_ARRAY_SIZE(rows); i++) {
		UNIT_ROW("code %d", (int)rows[i].code);
		CHECK_EQ_I64(tide_error_exit_status(rows[i].code), rows[i].status);
		CHECK_STR(tide_error_class(rows[i].code), rows[i].class);
	}
	CHECK_STR(tide_version(), TIDE_VERSION_STRING);
}

static void test_mem(void)
{
	static const char zeroes[64];
	struct tide_error err = TIDE_ERROR_INIT;
	char *p TIDE_AUTOFREE = tide_mem_alloc(8, 8, &err);
	char *none TIDE_AUTOFREE = tide_mem_alloc(0, 8, &err);
	char *cut TIDE_AUTOFREE = tide_mem_strndup("abcdef", 3, &err);
	char *whole TIDE_AUTOFREE = tide_mem_strdup("abc", &err);
	char *text TIDE_AUTOFREE = tide_mem_printf(&err, "%s-%d", "a", 5);
	void *page TIDE_AUTOFREE = tide_mem_aligned(4096, 1, &err);

	CHECK(err.code == TIDE_E_NONE && none);
	CHECK_MEM(p, zeroes, 64);
	CHECK_STR(cut, "abc");
	CHECK_STR(whole, "abc");
	CHECK_STR(text, "a-5");
	CHECK_EQ_U64((uintptr_t)page % 4096, 0);
	CHECK(tide_mem_alloc(SIZE_MAX / 2, 3, &err) == NULL);
	CHECK_ERR(&err, TIDE_E_NOMEM, "Out of memory");
	CHECK(tide_mem_realloc(p, SIZE_MAX / 2, 3, &err) == NULL);
	CHECK_ERR(&err, TIDE_E_NOMEM, NULL);
	CHECK_MEM(p, zeroes, 64);
	CHECK(tide_mem_aligned(4096, SIZE_MAX - 100, &err) == NULL);
	CHECK_ERR(&err, TIDE_E_NOMEM, NULL);
}

int main(void)
{
	UNIT_RUN(test_set);
	UNIT_RUN(test_set_sys);
	UNIT_RUN(test_unset);
	UNIT_RUN(test_move);
	UNIT_RUN(test_no_memory);
	UNIT_RUN(test_codes);
	UNIT_RUN(test_mem);
	return unit_done();
}
