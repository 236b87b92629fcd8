/* Libraries that are loaded when they are needed: there, not there, or not what they should be. */
#include <string.h>

#include "base/dynlib.h"
#include "unit.h"

static size_t (*length)(const char *s);
static void *nothing;

static void test_load(void)
{
	static const struct tide_dynlib_call calls[] = { { "strlen", &length } };
	static struct tide_dynlib library = TIDE_DYNLIB("libc.so.6", "Counting", "libc6", calls);
	struct tide_error err = TIDE_ERROR_INIT;

	CHECK_OK(tide_dynlib_load(&library, &err), &err);
	if (CHECK(length != NULL))
		CHECK_EQ_U64(length("four"), 4);
	length = NULL;
	CHECK_OK(tide_dynlib_load(&library, &err), &err);
	CHECK(length == NULL); /* once is enough */
}

static void test_absent(void)
{
	static const struct tide_dynlib_call calls[] = { { "strlen", &nothing } };
	static struct tide_dynlib library = TIDE_DYNLIB("libabsent.so.9", "Counting", "libabsent9", calls);

	for (unsigned i = 0; i < 2; i++) {
		struct tide_error err = TIDE_ERROR_INIT;

		CHECK(tide_dynlib_load(&library, &err) < 0);
		CHECK_STR(err.hint, "install it; Debian has it in the package libabsent9");
		CHECK_ERR(&err, TIDE_E_UNSUPPORTED,
		          "Counting needs a library that cannot be loaded: libabsent.so.9: cannot open "
		          "shared object file: No such file or directory");
		CHECK(!nothing);
	}
}

static void test_without_function(void)
{
	static const struct tide_dynlib_call calls[] = { { "strlen_of_nothing", &nothing } };
	static struct tide_dynlib library = TIDE_DYNLIB("libc.so.6", "Counting", "libc6", calls);
	struct tide_error err = TIDE_ERROR_INIT;

	CHECK(tide_dynlib_load(&library, &err) < 0);
	CHECK_ERR(&err, TIDE_E_UNSUPPORTED,
	          "Counting needs the function 'strlen_of_nothing', which libc.so.6 does not have");
}

int main(void)
{
	UNIT_RUN(test_load);
	UNIT_RUN(test_absent);
	UNIT_RUN(test_without_function);
	return unit_done();
}
