/*
 * Records of groups: what they rename, and what a forged one does not.
 */
#include <fcntl.h>
#include <unistd.h>

#include "base/sysio.h"
#include "store/commit_record.h"
#include "unit.h"

static void make_file(const char *path)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);

	CHECK(fd >= 0 && close(fd) == 0);
}

static bool is_there(const char *path)
{
	return access(path, F_OK) == 0;
}

static void test_temporary_names(void)
{
	static const struct {
		const char *tmp, *path;
		bool is_temp;
	} rows[] = {
		{ "/d/.disk.img.bitmaps.a0z9b1", "/d/disk.img.bitmaps", true },
		{ "//.x.abcdef", "/x", true },
		{ "/d/.x.abcdef", "/e/x", false },
		{ "/d/e/.x.abcdef", "/d/x", false },
		{ "/d/.x.abcdef", "/d/e/x", false },
		{ "/d/../d/.x.abcdef", "/d/x", false },
		{ "/d/x.abcdef", "/d/x", false },
		{ "/d/.x.abcde", "/d/x", false },
		{ "/d/.x.abcdefg", "/d/x", false },
		{ "/d/.x.abcde/", "/d/x", false },
		{ "/d/.x.ABCDEF", "/d/x", false },
		{ "/d/.xy.abcdef", "/d/x", false },
		{ "/d/..abcdef", "/d/", false },
		{ "", "", false },
	};

	for (size_t i = 0; i < TIDE_ARRAY_SIZE(rows); i++) {
		UNIT_ROW("%s for %s", rows[i].tmp, rows[i].path);
		CHECK_EQ_I64(tide_staged_is_temp(rows[i].tmp, rows[i].path), rows[i].is_temp);
	}
}

/* Also a name that had to be cut. */
static void test_what_staging_makes(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	char name[256];

	for (size_t len = 1; len < sizeof(name); len += 127) {
		struct tide_staged st = TIDE_STAGED_INIT;

		memset(name, 'n', len);
		name[len] = '\0';
		CHECK_OK(tide_staged_begin(&st, unit_path(name), 0600, &err), &err);
		CHECK_OK(tide_staged_sync(&st, &err), &err);
		CHECK(st.tmp && tide_staged_is_temp(st.tmp, st.path));
		tide_staged_release(&st);
	}
}

/* Commits a record of one rename and follows it. */
static int follow(const char *from, const char *to, struct tide_error *err)
{
	struct tide_commit_record record = TIDE_COMMIT_RECORD_INIT;
	int rc = -1;

	unlink(unit_path("record"));
	if (tide_commit_record_add(&record, from, to, err) == 0 &&
	    tide_commit_record_write(&record, unit_path("record"), err) == 0)
		rc = tide_commit_record_roll_forward(unit_path("record"), NULL, err);
	tide_commit_record_release(&record);
	return rc;
}

static void test_rolling_forward(void)
{
	struct tide_error err = TIDE_ERROR_INIT;

	make_file(unit_path(".x.abcdef"));
	CHECK_EQ_I64(follow(unit_path(".x.abcdef"), unit_path("x"), &err), 1);
	CHECK(is_there(unit_path("x")) && !is_there(unit_path(".x.abcdef")) && is_there(unit_path("record.done")));

	make_file(unit_path("payload"));
	make_file(unit_path("victim"));
	CHECK_EQ_I64(follow(unit_path("payload"), unit_path("victim"), &err), -1);
	CHECK(err.code == TIDE_E_CORRUPT && strstr(err.msg, "is no temporary name of"));
	tide_error_release(&err);
	CHECK(is_there(unit_path("payload")) && is_there(unit_path("victim")) && is_there(unit_path("record")));
}

int main(void)
{
	UNIT_RUN(test_temporary_names);
	UNIT_RUN(test_what_staging_makes);
	UNIT_RUN(test_rolling_forward);
	return unit_done();
}
