/*
 * Records of groups: what they rename, and what a forged one does not.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/checksum.h"
#include "base/mem.h"
#include "base/sysio.h"
#include "store/commit_recover.h"
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

/* ---- records ----------------------------------------------------------------------- */

/* A file that waits under a temporary name for `name`. */
static void stage(struct tide_staged *st, const char *name, const char *content)
{
	struct tide_error err = TIDE_ERROR_INIT;

	CHECK_OK(tide_staged_begin(st, unit_path(name), 0600, &err), &err);
	CHECK_OK(tide_sysio_pwrite(st->fd, content, strlen(content), 0, &err), &err);
	CHECK_OK(tide_staged_sync(st, &err), &err);
}

/* A record of one rename, written beside the sidecar s; its path goes to *path. */
static void make_record(struct tide_staged *st, const char *name, bool exclusive, char **path)
{
	TIDE_AUTOCOMMITRECORD struct tide_commit_record record = { .token = 7 };
	struct tide_error err = TIDE_ERROR_INIT;

	stage(st, name, "new");
	st->kept = true;
	CHECK_OK(tide_commit_record_add_rename(&record, st, exclusive, &err), &err);
	CHECK_OK(tide_commit_record_write(&record, unit_path("s"), -1, path, &err), &err);
}

static int recover(const char *path, struct tide_error *err)
{
	TIDE_AUTOCOMMITRECORD struct tide_commit_record record = TIDE_COMMIT_RECORD_INIT;
	TIDE_AUTOCLOSE int fd = -1;

	return tide_commit_record_read(path, &record, &fd, err) > 0
	               ? tide_commit_recover_renames(&record, path, fd, err)
	               : -1;
}

static void test_renaming(void)
{
	struct tide_staged st = TIDE_STAGED_INIT;
	struct tide_error err = TIDE_ERROR_INIT;
	char *path = NULL;

	make_file(unit_path("s"));
	make_record(&st, "x", false, &path);
	CHECK_OK(recover(path, &err), &err);
	CHECK(is_there(unit_path("x")) && !is_there(st.tmp));
	/* Again: the final name is that file. */
	CHECK_OK(recover(path, &err), &err);
	tide_staged_release(&st);
	free(path);
}

/* Neither of the names is that file. */
static void test_absence_is_not_success(void)
{
	static const char *const cases[] = { "removed", "another file has the name",
		                             "another file has the temporary name" };

	for (size_t i = 0; i < TIDE_ARRAY_SIZE(cases); i++) {
		struct tide_staged st = TIDE_STAGED_INIT;
		struct tide_error err = TIDE_ERROR_INIT;
		char *path = NULL;

		UNIT_ROW("%s", cases[i]);
		make_record(&st, "y", false, &path);
		unlink(st.tmp);
		if (i)
			make_file(i == 1 ? unit_path("y") : st.tmp);
		CHECK_EQ_I64(recover(path, &err), -1);
		CHECK(err.code == TIDE_E_REFUSED && strstr(err.msg, "is missing") && strstr(err.hint, path));
		CHECK(is_there(path) && is_there(unit_path("y")) == (i == 1));
		tide_error_release(&err);
		unlink(unit_path("y"));
		unlink(st.tmp);
		unlink(path);
		tide_staged_release(&st);
		free(path);
	}
}

/* Another file has come in the place of the one that was to be replaced. */
static void test_replaced_meanwhile(void)
{
	struct tide_staged st = TIDE_STAGED_INIT;
	struct tide_error err = TIDE_ERROR_INIT;
	char *path = NULL;

	make_file(unit_path("v"));
	make_record(&st, "v", false, &path);
	CHECK(rename(unit_path("v"), unit_path("v-old")) == 0);
	make_file(unit_path("v"));
	CHECK_EQ_I64(recover(path, &err), -1);
	CHECK(strstr(err.msg, "has been replaced since") && is_there(st.tmp));
	tide_error_release(&err);
	CHECK(rename(unit_path("v-old"), unit_path("v")) == 0);
	CHECK_OK(recover(path, &err), &err);
	CHECK(!is_there(st.tmp));
	unlink(path);
	tide_staged_release(&st);
	free(path);
}

static void test_exclusive(void)
{
	struct tide_staged st = TIDE_STAGED_INIT;
	struct tide_error err = TIDE_ERROR_INIT;
	char *path = NULL;

	make_record(&st, "z", true, &path);
	make_file(unit_path("z"));
	CHECK_EQ_I64(recover(path, &err), -1);
	CHECK(strstr(err.msg, "another program has created") && is_there(st.tmp));
	tide_error_release(&err);
	unlink(unit_path("z"));
	CHECK_OK(recover(path, &err), &err);
	CHECK(is_there(unit_path("z")));
	tide_staged_release(&st);
	free(path);
}

/* The whole directory has moved: the places relative to the record count. */
static void test_moved_directory(void)
{
	struct tide_staged st = TIDE_STAGED_INIT;
	struct tide_error err = TIDE_ERROR_INIT;
	char *path = NULL, *moved;

	CHECK(mkdir(unit_path("d"), 0700) == 0 && mkdir(unit_path("d/e"), 0700) == 0);
	stage(&st, "d/e/x", "new");
	st.kept = true;
	{
		TIDE_AUTOCOMMITRECORD struct tide_commit_record record = { .token = 7 };

		CHECK_OK(tide_commit_record_add_rename(&record, &st, false, &err), &err);
		CHECK_OK(tide_commit_record_write(&record, unit_path("d/s"), -1, &path, &err), &err);
	}
	CHECK(rename(unit_path("d"), unit_path("moved")) == 0);
	moved = tide_mem_strdup(unit_path("moved/s.commit"), &err);
	CHECK_OK(recover(moved, &err), &err);
	CHECK(is_there(unit_path("moved/e/x")));
	tide_staged_release(&st);
	free(path);
	free(moved);
}

/* A forged record moves nothing but from temporary names, and only what its owner owns. */
static void test_forged(void)
{
	static const struct {
		const char *text, *says;
	} rows[] = {
		{ "rename 1 0 0 0 r 0 0 0 payload /d/victim victim\n", "damaged in line 3" },
		{ "rename 1 0 0 0 r 0 0 0 .victim.abcde/ /d/victim victim\n", "damaged in line 3" },
		{ "rename 1 0 0 0 r 0 0 0 .victim.abcdef victim victim\n", "damaged in line 3" },
		{ "rename 0 0 0 0 r 0 0 0 .victim.abcdef /d/victim victim\n", "damaged in line 3" },
		{ "rename 1 0 0 0 q 0 0 0 .victim.abcdef /d/victim victim\n", "damaged in line 3" },
		{ "rename 1 0 0 0 r 0 0 0 .victim.abcdef /d/vic%00tim victim\n", "damaged in line 3" },
		{ "rename 1 0 0 0 r 0 0 0 .victim.abcdef /d/victim victim more\n", "damaged in line 3" },
		{ "record 1 0 0 relative relative\n", "damaged in line 3" },
		{ "switch 0 ffff 00 00 0 0 0 0 0 0 0 /d/i i\n", "damaged in line 3" },
		{ "something 1\n", "damaged in line 3" },
		{ "", "damaged in line 3" },
	};

	for (size_t i = 0; i < TIDE_ARRAY_SIZE(rows); i++) {
		TIDE_AUTOCOMMITRECORD struct tide_commit_record record = TIDE_COMMIT_RECORD_INIT;
		struct tide_error err = TIDE_ERROR_INIT;
		struct tide_strbuf text = TIDE_STRBUF_INIT;

		UNIT_ROW("%s", rows[i].text);
		tide_strbuf_addf(&text, "tidemark commit 2\ntoken 7\n%s", rows[i].text);
		tide_strbuf_addf(&text, "crc %08x\n", tide_checksum_crc32c(0, text.buf, text.len));
		CHECK_EQ_I64(tide_commit_record_decode(text.buf, text.len, "r", &record, &err), -1);
		CHECK(err.code == TIDE_E_CORRUPT && strstr(err.msg, rows[i].says) && err.hint);
		tide_error_release(&err);
		tide_strbuf_release(&text);
	}
}

/* Each byte changed, and each length: damage, never a crash. */
static void test_damage(void)
{
	struct tide_staged st = TIDE_STAGED_INIT;
	struct tide_error err = TIDE_ERROR_INIT;
	char data[4096], *path = NULL;
	ssize_t len;
	int fd;

	make_record(&st, "w", false, &path);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	len = read(fd, data, sizeof(data));
	close(fd);
	CHECK(len > 0);
	for (ssize_t i = 0; i < 2 * len; i++) {
		TIDE_AUTOCOMMITRECORD struct tide_commit_record record = TIDE_COMMIT_RECORD_INIT;
		char was = data[i % len];

		if (i < len)
			data[i] ^= 1;
		CHECK_EQ_I64(tide_commit_record_decode(data, (size_t)(i < len ? len : i - len), path, &record, &err),
		             -1);
		CHECK_EQ_I64(err.code, TIDE_E_CORRUPT);
		tide_error_release(&err);
		data[i % len] = was;
	}
	unlink(path);
	st.kept = false;
	tide_staged_release(&st);
	free(path);
}

/* Beside names of any length, and never in the place of another one. */
static void test_slots(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	char sidecar[300];

	for (size_t len = 230; len <= 255; len++) {
		memset(sidecar, 'n', sizeof(sidecar));
		sidecar[0] = '/';
		sidecar[len + 1] = '\0';
		for (unsigned i = 0; i < TIDE_COMMIT_SLOTS; i++) {
			TIDE_AUTOFREE char *slot = tide_commit_record_slot(sidecar, i, &err);

			CHECK(slot && slot[0] == '/' && strlen(slot + 1) <= 255);
		}
	}
	for (unsigned i = 0; i <= TIDE_COMMIT_SLOTS; i++) {
		TIDE_AUTOCOMMITRECORD struct tide_commit_record pointer = { .token = 7 };
		TIDE_AUTOFREE char *path = NULL;
		int rc;

		CHECK_OK(tide_commit_record_point(&pointer, unit_path("s.commit"), &err), &err);
		rc = tide_commit_record_write(&pointer, unit_path("many"), -1, &path, &err);
		CHECK_EQ_I64(rc, i < TIDE_COMMIT_SLOTS ? 0 : -1);
	}
	CHECK(strstr(err.msg, "Too many transactions") && err.hint);
	tide_error_release(&err);
}

/* A pointer whose record is gone, or cannot be reached. */
static void test_pointers(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	TIDE_AUTOCOMMITRECORD struct tide_commit_record pointer = { .token = 7 };
	TIDE_AUTOFREE char *path = NULL;
	char *found = NULL;

	CHECK(mkdir(unit_path("far"), 0700) == 0);
	CHECK_OK(tide_commit_record_point(&pointer, unit_path("far/r"), &err), &err);
	CHECK_OK(tide_commit_record_write(&pointer, unit_path("near"), -1, &path, &err), &err);
	CHECK_EQ_I64(tide_commit_recover_follow(&pointer, path, &found, &err), 0);
	make_file(unit_path("far/r"));
	CHECK_EQ_I64(tide_commit_recover_follow(&pointer, path, &found, &err), 1);
	free(found);
	CHECK(rename(unit_path("far"), unit_path("away")) == 0);
	CHECK_EQ_I64(tide_commit_recover_follow(&pointer, path, &found, &err), -1);
	CHECK(strstr(err.msg, "cannot be reached") && strstr(err.hint, path));
	tide_error_release(&err);
	/* A directory of that name, as an empty mount point is one, is not that directory. */
	CHECK(mkdir(unit_path("far"), 0700) == 0);
	CHECK_EQ_I64(tide_commit_recover_follow(&pointer, path, &found, &err), -1);
	tide_error_release(&err);
}

/* What the version before has written. */
static void test_old(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_strbuf text = TIDE_STRBUF_INIT;
	TIDE_AUTOCOMMITRECORD struct tide_commit_record record = TIDE_COMMIT_RECORD_INIT;
	uint8_t crc[4];

	tide_strbuf_adds(&text, "tidemark group 1\n");
	tide_strbuf_add(&text, "/d/.x.abcdef", 13);
	tide_strbuf_add(&text, "/d/x", 5);
	tide_put_le32(crc, tide_checksum_crc32c(0, text.buf, text.len));
	tide_strbuf_add(&text, crc, sizeof(crc));
	CHECK_OK(tide_commit_record_decode(text.buf, text.len, "r", &record, &err), &err);
	CHECK(record.n == 1 && record.is_old && !strcmp(record.changes[0].path, "/d/x") &&
	      !strcmp(record.changes[0].tmp, ".x.abcdef"));
	tide_strbuf_release(&text);
}

int main(void)
{
	UNIT_RUN(test_temporary_names);
	UNIT_RUN(test_what_staging_makes);
	UNIT_RUN(test_renaming);
	UNIT_RUN(test_absence_is_not_success);
	UNIT_RUN(test_replaced_meanwhile);
	UNIT_RUN(test_exclusive);
	UNIT_RUN(test_moved_directory);
	UNIT_RUN(test_forged);
	UNIT_RUN(test_damage);
	UNIT_RUN(test_slots);
	UNIT_RUN(test_pointers);
	UNIT_RUN(test_old);
	return unit_done();
}
