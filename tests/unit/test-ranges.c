#include <fcntl.h>

#include "mem.h"
#include "unit.h"

static unsigned fail_at;

static bool fail_nth(void)
{
	return fail_at > 0 && --fail_at == 0;
}

static int read_bytes(const void *bytes, size_t len, struct tide_range_list **list, struct tide_error *err)
{
	const char *path = unit_path("input");
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);

	CHECK(fd >= 0 && write(fd, bytes, len) == (ssize_t)len && lseek(fd, 0, SEEK_SET) == 0);
	int ret = tide_ranges_read(fd, list, err);
	close(fd);
	return ret;
}

static int read_text(const char *text, struct tide_range_list **list, struct tide_error *err)
{
	return read_bytes(text, strlen(text), list, err);
}

/* "off+len off+len" */
static void check_list(const struct tide_range_list *list, const char *want)
{
	char got[1024] = "";
	size_t len = 0;

	for (size_t i = 0; i < list->n && len < sizeof(got); i++)
		len += (size_t)snprintf(got + len, sizeof(got) - len, "%s%" PRIu64 "+%" PRIu64, i ? " " : "",
		                        list->ranges[i].off, list->ranges[i].len);
	CHECK_STR(got, want);
}

/* What other programs printed, as it was. */
static void test_samples(void)
{
	static const struct {
		const char *file, *ranges;
	} rows[] = {
		{ "nbdinfo-qemu_dirty-bitmap_b0.json", "65536+196608 1048576+65536 2097152+65536" },
		{ "nbdinfo-base_allocation.json", "65536+196608 1048576+65536" },
		{ "nbdinfo-qemu_allocation-depth.json", "65536+196608 1048576+65536" },
		{ "qemu-img-map.json", "65536+65536 262144+65536" },
	};
	struct tide_error err = TIDE_ERROR_INIT;
	char path[256];

	for (size_t i = 0; i < TIDE_ARRAY_SIZE(rows); i++) {
		struct tide_range_list *list = NULL;
		UNIT_ROW("%s", rows[i].file);
		snprintf(path, sizeof(path), "tests/images/ranges/%s", rows[i].file);
		int fd = open(path, O_RDONLY);
		if (CHECK(fd >= 0) && CHECK_OK(tide_ranges_read(fd, &list, &err), &err))
			check_list(list, rows[i].ranges);
		close(fd);
		tide_range_list_free(list);
	}
	/* Its dirty parts look like holes: taking the rest would lose every change. */
	UNIT_ROW("x-dirty-bitmap");
	struct tide_range_list *none = NULL;
	int fd = open("tests/images/ranges/qemu-img-map-x-dirty-bitmap.json", O_RDONLY);
	CHECK(fd >= 0 && tide_ranges_read(fd, &none, &err) == -1);
	CHECK(err.msg && strstr(err.msg, "Element 1 of the list: ") && strstr(err.msg, "x-dirty-bitmap"));
	CHECK_ERR(&err, TIDE_E_REFUSED, NULL);
	close(fd);
	CHECK(none == NULL);
}

static void test_good(void)
{
	static const struct {
		const char *text, *ranges;
	} rows[] = {
		{ "0 512\n", "0+512" },
		{ "0 512", "0+512" },
		{ "# header\n\n  4K\t0x1000  # note\r\n\v\n1M 64KiB\n", "4096+4096 1048576+65536" },
		{ "#\n", "" },
		{ "\n", "" },
		{ "5 0\n", "" },
		{ "9223372036854775806 1", "9223372036854775806+1" },
		{ "[]", "" },
		{ " \n[ ]\n", "" },
		{ "{\"return\": []}", "" },
		{ "{\"return\": [{\"start\": 1, \"length\": 2, \"dirty\": true}, {\"start\": 3, \"length\": 4, \"dirty\": "
		  "false}]}",
		  "1+2" },
		{ "[{\"offset\":0,\"length\":4194304,\"exists\":\"true\"},{\"offset\":8388608,\"length\":1,\"exists\":"
		  "\"false\"},{\"offset\":9,\"length\":3,\"exists\":true}]",
		  "0+4194304 8388608+1 9+3" },
		{ "[{\"start\":0,\"length\":5,\"depth\":0,\"zero\":false,\"data\":true},"
		  "{\"start\":5,\"length\":5,\"depth\":1,\"zero\":false,\"data\":true}]",
		  "0+5" },
		{ "[{\"offset\":0,\"length\":5,\"type\":2,\"description\":\"zero\"},"
		  "{\"offset\":5,\"length\":5,\"type\":1,\"description\":\"hole\"},"
		  "{\"offset\":10,\"length\":5,\"type\":3,\"description\":\"backing depth 3\"}]",
		  "0+5" },
	};
	struct tide_error err = TIDE_ERROR_INIT;

	for (size_t i = 0; i < TIDE_ARRAY_SIZE(rows); i++) {
		struct tide_range_list *list = NULL;
		UNIT_ROW("%s", rows[i].text);
		if (CHECK_OK(read_text(rows[i].text, &list, &err), &err))
			check_list(list, rows[i].ranges);
		tide_range_list_free(list);
	}
}

#define DIRTY(off, len) "[{\"start\":0,\"length\":1,\"dirty\":true},{\"start\":" off ",\"length\":" len ",\"dirty\":true}]"

static void test_refused(void)
{
	static const struct {
		const char *text, *error;
	} rows[] = {
		{ "", "The list of ranges is empty" },
		{ "0 512\n512", "Line 2: expected OFFSET LENGTH, found '512' alone" },
		{ "0 512\n512\n", "Line 2: expected OFFSET LENGTH, found '512' alone" },
		{ "0 512 7\n", "Line 1: expected OFFSET LENGTH, found '7' after them" },
		{ "# x\n0 -1\n", "Line 2: '-1' is not a size: it does not start with a digit" },
		{ "0,5 1\n", "Line 1: '0,5' is not a size: expected a number and nothing more than one of K M G T P E, "
		             "found ',5'" },
		{ "Offset Length\n", "Line 1: 'Offset' is not a size: it does not start with a digit" },
		{ "9223372036854775807 1\n", "Line 1: 1 bytes at 9223372036854775807 reach beyond 2^63 - 1" },
		{ "1 18446744073709551615", "Line 1: 18446744073709551615 bytes at 1 reach beyond 2^63 - 1" },
		{ "99999999999999999999 1", "Line 1: '99999999999999999999' is too large: sizes go up to 2^64 - 1" },
		{ "[", NULL },
		{ "[] []", NULL },
		{ "{}", "Expected a JSON list of ranges, found an object" },
		{ "{\"return\": 5}", "Expected a JSON list of ranges, found an integer" },
		{ "[[0, 1]]", "Element 0 of the list: it is an array, not an object" },
		{ "[null]", "Element 0 of the list: it is null, not an object" },
		{ "[{\"start\": 1, \"length\": 2}]", "Element 0 of the list: it is not a range as bitmap-dump, nbdinfo "
		                                     "--map, qemu-img map or rbd diff print it" },
		{ "[{\"start\": 1, \"dirty\": true}]", "Element 0 of the list: it has no \"length\"" },
		{ "[{\"start\": 1, \"length\": 1, \"dirty\": 1}]",
		  "Element 0 of the list: \"dirty\" is not true or false" },
		{ DIRTY("-1", "1"), "Element 1 of the list: \"start\" is not an integer from 0 to 2^63 - 1" },
		{ DIRTY("1.5", "1"), "Element 1 of the list: \"start\" is not an integer from 0 to 2^63 - 1" },
		{ DIRTY("1", "\"1\""), "Element 1 of the list: \"length\" is not an integer from 0 to 2^63 - 1" },
		{ DIRTY("9223372036854775808", "0"),
		  "Element 1 of the list: 0 bytes at 9223372036854775808 reach beyond 2^63 - 1" },
		{ DIRTY("9223372036854775807", "1"),
		  "Element 1 of the list: 1 bytes at 9223372036854775807 reach beyond 2^63 - 1" },
		{ DIRTY("1", "18446744073709551615"),
		  "Element 1 of the list: 18446744073709551615 bytes at 1 reach beyond 2^63 - 1" },
		{ DIRTY("1", "18446744073709551616"), NULL },
		{ "[{\"start\":9223372036854775807,\"length\":2,\"dirty\":false}]",
		  "Element 0 of the list: 2 bytes at 9223372036854775807 reach beyond 2^63 - 1" },
		{ "[{\"offset\":0,\"length\":5,\"type\":1}]",
		  "Element 0 of the list: it has no \"description\" that is a string" },
		{ "[{\"offset\":0,\"length\":5,\"type\":1,\"description\":\"wet\"}]",
		  "Element 0 of the list: its \"description\" is 'wet', which is not known" },
		{ "[{\"offset\":0,\"length\":5,\"exists\":\"maybe\"}]",
		  "Element 0 of the list: \"exists\" is not true or false" },
		{ "[{\"start\":0,\"length\":5,\"depth\":0,\"data\":true}]",
		  "Element 0 of the list: \"zero\" is not true or false" },
	};
	struct tide_error err = TIDE_ERROR_INIT;

	for (size_t i = 0; i < TIDE_ARRAY_SIZE(rows); i++) {
		struct tide_range_list *list = NULL;
		UNIT_ROW("%s", rows[i].text);
		CHECK_EQ_I64(read_text(rows[i].text, &list, &err), -1);
		CHECK(list == NULL);
		CHECK_ERR(&err, TIDE_E_REFUSED, rows[i].error);
	}
}

static void test_bytes(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_range_list *list = NULL;

	CHECK_EQ_I64(read_bytes("0 1\n1\0002 5\n", 10, &list, &err), -1);
	CHECK_ERR(&err, TIDE_E_REFUSED, "Line 2: it holds a NUL byte");
	CHECK_EQ_I64(tide_ranges_read(-1, &list, &err), -1);
	CHECK_EQ_I64(err.sys, EBADF);
	CHECK_ERR(&err, TIDE_E_IO, NULL);
	tide_range_list_free(NULL);
}

/* Many lines through a pipe, in pieces that end anywhere. */
static void test_pipe(void)
{
	enum { LINES = 50000 };
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_range_list *list = NULL;
	int ends[2];

	if (!CHECK(pipe(ends) == 0))
		return;
	pid_t pid = fork();
	if (pid == 0) {
		FILE *out = fdopen(ends[1], "w");
		close(ends[0]);
		for (int i = 0; i < LINES; i++)
			fprintf(out, "%d %d\n", i * 1000, i % 999 + 1);
		fclose(out);
		_exit(0);
	}
	close(ends[1]);
	if (CHECK_OK(tide_ranges_read(ends[0], &list, &err), &err)) {
		CHECK_EQ_U64(list->n, LINES);
		bool same = true;
		for (size_t i = 0; i < list->n; i++)
			same &= list->ranges[i].off == i * 1000 && list->ranges[i].len == i % 999 + 1;
		CHECK(same);
	}
	close(ends[0]);
	tide_range_list_free(list);
}

/* Whichever allocation fails: an error, nothing returned, nothing lost. */
static void test_no_memory(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_range_list *list = NULL;

	tide_mem_set_hook(fail_nth);
	for (unsigned n = 1; n < 100; n++) {
		UNIT_ROW("allocation %u", n);
		fail_at = n;
		if (read_text("[{\"start\": 1, \"length\": 2, \"dirty\": true}]", &list, &err) == 0)
			break;
		CHECK(list == NULL);
		CHECK_ERR(&err, TIDE_E_NOMEM, NULL);
	}
	tide_mem_set_hook(NULL);
	if (CHECK(list != NULL))
		check_list(list, "1+2");
	tide_range_list_free(list);
}

int main(void)
{
	UNIT_RUN(test_samples);
	UNIT_RUN(test_good);
	UNIT_RUN(test_refused);
	UNIT_RUN(test_bytes);
	UNIT_RUN(test_pipe);
	UNIT_RUN(test_no_memory);
	return unit_done();
}
