/*
 * Names in images: the files that they lead to, and the names that are refused without a flag.
 */
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"
#include "image/backing.h"
#include "unit.h"

static void make_tree(void)
{
	FILE *f;

	mkdir(unit_path("vm"), 0755);
	mkdir(unit_path("vm/sub"), 0755);
	for (int i = 0; i < 3; i++) {
		f = fopen(unit_path(i == 0 ? "vm/base" : i == 1 ? "vm/sub/base" : "base"), "w");
		CHECK(f && fclose(f) == 0);
	}
	CHECK(symlink("../base", unit_path("vm/out")) == 0);
	CHECK(symlink("nowhere", unit_path("vm/dangling")) == 0);
}

static void test_plain_names(void)
{
	static const struct {
		const char *name;
		bool outside, there;
	} rows[] = {
		{ "base", false, true },       { "./base", false, true },
		{ "sub/base", false, true },   { "sub/../base", false, true },
		{ "nosuch", false, false },    { "sub/nosuch", false, false },
		{ "nosuch/x", false, false },  { "dangling", false, false },
		{ "../base", true, true },     { "out", true, true },
		{ "../vm/base", false, true }, { "sub/../../base", true, true },
		{ "/etc/passwd", true, true }, { "/nosuch/x", true, false },
		{ "../nosuch", true, false },  { "nosuch/../../x", true, false },
		{ "..", true, true },          { "x..y/z", false, false },
	};

	for (size_t i = 0; i < TIDE_ARRAY_SIZE(rows); i++) {
		struct tide_error err = TIDE_ERROR_INIT;
		TIDE_AUTOBACKING struct tide_backing found = TIDE_BACKING_INIT;
		int rc = tide_backing_find(unit_path("vm/top"), "backing file", rows[i].name, 0, &found, &err);

		UNIT_ROW("%s", rows[i].name);
		CHECK_EQ_I64(rc, rows[i].outside ? -1 : 0);
		CHECK(rc == 0 || (err.code == TIDE_E_REFUSED && strstr(err.msg, rows[i].name) &&
		                  strstr(err.msg, "vm/top") && strstr(err.hint, "--allow-backing=outside")));
		tide_error_release(&err);
		tide_backing_release(&found);
		CHECK_OK(tide_backing_find(unit_path("vm/top"), "backing file", rows[i].name, TIDE_ALLOW_OUTSIDE,
		                           &found, &err),
		         &err);
		CHECK(found.outside == rows[i].outside && (found.real != NULL) == rows[i].there && !found.format);
	}
}

static unsigned allocs, fail_at;

static bool fail_nth(void)
{
	return ++allocs == fail_at;
}

/* Where memory ends before it is clear where a name leads, it is not followed; least of all when it leads outside. */
static void test_judged_or_refused(void)
{
	static const struct {
		const char *name;
		bool outside;
	} rows[] = {
		{ "base", false }, { "nosuch", false }, { "../base", true }, { "out", true }, { "/nosuch/x", true }
	};

	for (size_t i = 0; i < TIDE_ARRAY_SIZE(rows); i++) {
		int code = TIDE_E_NOMEM;

		UNIT_ROW("%s", rows[i].name);
		for (fail_at = 1; code == TIDE_E_NOMEM && fail_at < 100; fail_at++) {
			struct tide_error err = TIDE_ERROR_INIT;
			TIDE_AUTOBACKING struct tide_backing found = TIDE_BACKING_INIT;

			allocs = 0;
			tide_mem_set_hook(fail_nth);
			int rc = tide_backing_find(unit_path("vm/top"), "data file", rows[i].name, 0, &found, &err);
			tide_mem_set_hook(NULL);
			code = rc < 0 ? (int)err.code : 0;
			CHECK(rc == 0 ||
			      (!found.path && !found.real && (code == TIDE_E_NOMEM || code == TIDE_E_REFUSED)));
			CHECK(rc < 0 || allocs < fail_at);
			tide_error_release(&err);
		}
		CHECK(fail_at > 5);
		CHECK_EQ_I64(code, rows[i].outside ? TIDE_E_REFUSED : 0);
	}
}

static void test_wrapped_names(void)
{
	static const struct {
		const char *name, *format, *error;
	} rows[] = {
		{ "file:base", NULL, NULL },
		{ "json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\",\"filename\":\"base\"}}", "qcow2", NULL },
		{ "json:{\"file\":{\"filename\":\"base\",\"driver\":\"host_device\"},\"driver\":\"raw\"}", "raw",
		  NULL },
		{ "json:{\"driver\":\"file\",\"filename\":\"base\"}", NULL, NULL },
		{ "json:{\"file.driver\":\"file\",\"file.filename\":\"base\",\"file.locking\":\"off\"}", NULL, NULL },
		{ "json:{'driver':'qcow2','file':{'driver':'file','filename':'base'}}", "qcow2", NULL },
		{ "json:{'driver':\"raw\",'file.filename':'\\u0062ase'}", "raw", NULL },
		{ "json:{'driver':'raw,'file.filename':'base'}", NULL, "JSON parse error" },
		{ "json:{'driver':'raw','file.filename':'base", NULL, "JSON parse error" },
		{ "json:{}", NULL, "it has no file name" },
		{ "json:", NULL, "" },
		{ "json:{\"driver\":\"raw\",\"size\":1,\"file.filename\":\"base\"}", NULL,
		  "it needs the option 'size'" },
		{ "json:{\"file\":{\"filename\":\"base\",\"x\":1}}", NULL, "it needs the option 'x'" },
		{ "json:{\"driver\":null,\"file.filename\":\"base\"}", NULL, "'driver' is not a string" },
		{ "rbd:pool/image", NULL, "it needs the driver 'rbd'" },
		{ ":x", NULL, "it needs the driver ''" },
	};

	for (size_t i = 0; i < TIDE_ARRAY_SIZE(rows); i++) {
		struct tide_error err = TIDE_ERROR_INIT;
		TIDE_AUTOBACKING struct tide_backing found = TIDE_BACKING_INIT;
		const char *top = unit_path("vm/top");
		int rc = tide_backing_find(top, "data file", rows[i].name, TIDE_ALLOW_PROTOCOL, &found, &err);

		UNIT_ROW("%s", rows[i].name);
		CHECK_EQ_I64(rc, rows[i].error ? -1 : 0);
		CHECK(rc == 0 || (strstr(err.msg, "data file") && strstr(err.msg, rows[i].error)));
		if (rc == 0) {
			CHECK_STR(found.path, unit_path("vm/base"));
			CHECK(rows[i].format ? found.format && !strcmp(found.format, rows[i].format) : !found.format);
		}
		tide_error_release(&err);
		tide_backing_release(&found);
		CHECK_EQ_I64(tide_backing_find(top, "data file", rows[i].name, TIDE_ALLOW_OUTSIDE | TIDE_ALLOW_PROBE,
		                               &found, &err),
		             -1);
		CHECK(err.code == TIDE_E_REFUSED && strstr(err.hint, "--allow-backing=protocol"));
		tide_error_release(&err);
	}
	CHECK(!tide_backing_has_protocol("a/b:c") && !tide_backing_has_protocol("abc") &&
	      tide_backing_has_protocol("a b:c"));
}

int main(void)
{
	make_tree();
	UNIT_RUN(test_plain_names);
	UNIT_RUN(test_judged_or_refused);
	UNIT_RUN(test_wrapped_names);
	return unit_done();
}
