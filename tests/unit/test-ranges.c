#include <fcntl.h>

#include "base/mem.h"
#include "unit.h"

static unsigned fail_at;

static bool fail_nth(void)
{
	return fail_at > 0 && --fail_at == 0;
}

static int read_as(const void *bytes, size_t len, const struct tide_ranges_options *options,
                   struct tide_range_list **list, struct tide_error *err)
{
	const char *path = unit_path("input");
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);

	CHECK(fd >= 0 && write(fd, bytes, len) == (ssize_t)len && lseek(fd, 0, SEEK_SET) == 0);
	int ret = tide_ranges_read(fd, options, list, err);
	close(fd);
	return ret;
}

static int read_bytes(const void *bytes, size_t len, struct tide_range_list **list, struct tide_error *err)
{
	return read_as(bytes, len, NULL, list, err);
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

/* Output of other programs, unchanged. */
static void test_samples(void)
{
	static const struct {
		const char *file, *ranges;
		struct tide_ranges_options options;
	} rows[] = {
		{ "nbdinfo-qemu_dirty-bitmap_b0.json", "65536+196608 1048576+65536 2097152+65536", { NULL, 0 } },
		{ "nbdinfo-base_allocation.json", "65536+196608 1048576+65536", { NULL, 0 } },
		{ "nbdinfo-qemu_allocation-depth.json", "65536+196608 1048576+65536", { NULL, 0 } },
		{ "qemu-img-map.json", "65536+65536 262144+65536", { NULL, 0 } },
		{ "qemu-img-map-x-dirty-bitmap.json",
		  "65536+196608 1048576+65536 2097152+65536",
		  { "qemu-img-map-dirty", 0 } },
		{ "nbdinfo-qemu_dirty-bitmap_b0.txt", "65536+196608 1048576+65536 2097152+65536", { NULL, 0 } },
		{ "nbdinfo-base_allocation.txt", "65536+196608 1048576+65536", { NULL, 0 } },
		{ "nbdinfo-qemu_allocation-depth.txt", "65536+196608 1048576+65536", { "nbdinfo", 0 } },
		{ "nbdkit-log-filter.txt", "65536+196608 1048576+65536 2097152+65536", { NULL, 0 } },
		{ "thin_delta.out", "327680+196608 1179648+131072 1966080+262144", { NULL, 0 } },
		{ "thin_delta-verbose.out", "327680+196608 1179648+131072 1966080+262144", { "thin-delta", 0 } },
		{ "era_invalidate.out", "65536+65536 196608+131072", { NULL, 65536 } },
		{ "era_invalidate.out", "512+512 1536+1024", { "era-invalidate", 512 } },
	};
	struct tide_error err = TIDE_ERROR_INIT;
	char path[256];

	for (size_t i = 0; i < TIDE_ARRAY_SIZE(rows); i++) {
		struct tide_range_list *list = NULL;
		UNIT_ROW("%s", rows[i].file);
		snprintf(path, sizeof(path), "tests/images/ranges/%s", rows[i].file);
		int fd = open(path, O_RDONLY);
		if (CHECK(fd >= 0) && CHECK_OK(tide_ranges_read(fd, &rows[i].options, &list, &err), &err))
			check_list(list, rows[i].ranges);
		close(fd);
		tide_range_list_free(list);
	}
	/* Its dirty parts look like holes: taking the rest would lose every change. */
	UNIT_ROW("x-dirty-bitmap");
	struct tide_range_list *none = NULL;
	int fd = open("tests/images/ranges/qemu-img-map-x-dirty-bitmap.json", O_RDONLY);
	CHECK(fd >= 0 && tide_ranges_read(fd, NULL, &none, &err) == -1);
	CHECK(err.msg && strstr(err.msg, "Element 1 of the list: ") && strstr(err.msg, "x-dirty-bitmap"));
	CHECK_ERR(&err, TIDE_E_REFUSED, NULL);
	close(fd);
	CHECK(none == NULL);
}

static void test_era_dump(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	uint64_t unit = 0;
	int fd = open("tests/images/ranges/era_dump-logical.out", O_RDONLY);

	CHECK_OK(tide_ranges_read_era_dump(fd, &unit, &err), &err);
	CHECK_EQ_U64(unit, 65536);
	close(fd);
	fd = open("tests/images/ranges/era_invalidate.out", O_RDONLY);
	CHECK_EQ_I64(tide_ranges_read_era_dump(fd, &unit, &err), -1);
	CHECK_ERR(&err, TIDE_E_REFUSED, "Line 1: <blocks> is not an element that era_dump prints");
	close(fd);
}

#define LOG  "2026-11-22 04:28:56.615984 "
#define THIN "<superblock data_block_size=\"2\"><diff left=\"1\" right=\"2\">"

/* The formats that are recognised, and the messages for other input. */
static const struct {
	const char *text, *ranges, *error;
	struct tide_ranges_options options;
} format_rows[] = {
	{ "0 1M\n2M 1M hole,zero\n4M 1M zero\n5M 1M hole\n", "0+1048576 4194304+1048576", NULL, { NULL, 0 } },
	{ "0 1 0\n2 1 1\n4 1 2\n6 1 3\n", "0+1 4+1", NULL, { "extentlist", 0 } },
	{ "0 1 4\n", NULL, "Line 1: unknown type '4'", { "extentlist", 0 } },
	{ "0 1 hole extra\n", NULL, "Line 1: expected OFFSET LENGTH TYPE, found 'extra' after them", { NULL, 0 } },
	{ "3\n# x\n7 # y\n", "1536+512 3584+512", NULL, { NULL, 512 } },
	{ "3\n", NULL, "The block size is not specified", { "blocks", 0 } },
	{ "4K\n", NULL, "Line 1: '4K' is not a block number", { NULL, 512 } },
	{ "1 2\n", NULL, "Line 1: expected one block number, found '2' after it", { NULL, 512 } },
	{ "9223372036854775807\n",
	  NULL,
	  "Line 1: 1 blocks of 512 bytes from block 9223372036854775807 on reach beyond 2^63 - 1",
	  { NULL, 512 } },
	{ "0 5 1 dirty\n5 5 0 clean", NULL, "The list is cut off within its last line", { NULL, 0 } },
	{ "0 5 2 backing depth 2\n5 5 1 local\n", "5+5", NULL, { NULL, 0 } },
	{ "0 5 1 odd\n", NULL, "Line 1: unknown description 'odd'", { NULL, 0 } },
	{ "0 5 1 dirty\n5 5\n", NULL, "Line 2: expected OFFSET LENGTH TYPE DESCRIPTION, found two words", { NULL, 0 } },
	{ LOG "connection=1 Write id=1 offset=0x200 count=0x10 fua=0 ...\n" LOG
	      "connection=1 ...Write id=1 return=-1 error=EIO\n" LOG
	      "connection=1 Read id=2 offset=0x0 count=0x200 ...\n",
	  "512+16",
	  NULL,
	  { NULL, 0 } },
	{ LOG "connection=1 Write id=1 offset=0x200 count=0x1",
	  NULL,
	  "The list is cut off within its last line",
	  { NULL, 0 } },
	{ LOG "connection=1 Write id=1 offset=0x200 count=0x1\n",
	  NULL,
	  "Line 1: a request without its 'count='",
	  { NULL, 0 } },
	{ LOG "connection=1 Write id=1 count=0x200 ...\n",
	  NULL,
	  "Line 1: a request without its 'offset='",
	  { NULL, 0 } },
	{ LOG "connection=1 Smash id=1 offset=0x200 count=0x1 ...\n",
	  NULL,
	  "Line 1: unknown request 'Smash'",
	  { NULL, 0 } },
	{ LOG "connection=1 Connect export=\"a\" tls=0\n" LOG "connection=2 Connect export=\"b\" tls=0\n",
	  NULL,
	  "Line 2: the log is about several disks: the exports \"a\" and \"b\"",
	  { NULL, 0 } },
	{ LOG "Fork\nhello\n",
	  NULL,
	  "Line 2: it does not begin with a date and a time, as nbdkit's log does",
	  { NULL, 0 } },
	{ THIN "<left_only begin=\"1\" length=\"2\"/></diff></superblock>", "1024+2048", NULL, { NULL, 0 } },
	{ THIN "<left_only begin=\"1\"/></diff></superblock>", NULL, "Line 1: 'length' is missing", { NULL, 0 } },
	{ THIN "<left_only begin=\"-1\" length=\"2\"/></diff></superblock>",
	  NULL,
	  "Line 1: begin=\"-1\" is not a number of blocks",
	  { NULL, 0 } },
	{ THIN "<odd begin=\"1\" length=\"2\"/></diff></superblock>",
	  NULL,
	  "Line 1: <odd> is not an element that thin_delta prints",
	  { NULL, 0 } },
	{ THIN "<different begin=\"9223372036854775807\" length=\"1\"/></diff></superblock>",
	  NULL,
	  "Line 1: 1 blocks of 1024 bytes from block 9223372036854775807 on reach beyond 2^63 - 1",
	  { NULL, 0 } },
	{ THIN "<left_only begin=\"1\" length=\"2\"/></diff>",
	  NULL,
	  "Line 1: the XML is cut off: no element found",
	  { NULL, 0 } },
	{ THIN "<left_only begin=\"1\" len", NULL, "Line 1: the XML is cut off: unclosed token", { NULL, 0 } },
	{ "<superblock data_block_size=\"2\"/>",
	  NULL,
	  "It has no <diff>, so it is not a list of thin_delta",
	  { NULL, 0 } },
	{ "<superblock data_block_size=\"0\"/>",
	  NULL,
	  "Line 1: data_block_size=\"0\" is not a block size in sectors",
	  { NULL, 0 } },
	{ "<blocks/>", "", NULL, { NULL, 4096 } },
	{ "<blocks/>",
	  NULL,
	  "Line 1: <blocks> begins a list of the format era-invalidate, not thin-delta",
	  { "thin-delta", 0 } },
	{ "<blocks/>", NULL, "Line 1: era_invalidate does not print the block size", { NULL, 0 } },
	{ "<blocks><range begin=\"3\" end=\"2\"/></blocks>",
	  NULL,
	  "Line 1: a range from 3 to 2 ends before it begins",
	  { NULL, 4096 } },
	{ "<!DOCTYPE x [<!ENTITY a \"b\">]><blocks>&a;</blocks>",
	  NULL,
	  "Line 1: it declares a document type, which lists of ranges do not need",
	  { NULL, 4096 } },
	{ "<svg/>",
	  NULL,
	  "Line 1: <svg> does not begin a list of thin_delta, era_invalidate or bmaptool",
	  { NULL, 0 } },
	{ "<bmap version=\"2.0\"><ImageSize> 10000 </ImageSize><BlockSize> 4096 </BlockSize><MappedBlocksCount> 3 "
	  "</MappedBlocksCount><BlockMap><Range chksum=\"a\"> 0-1 </Range><Range>2</Range></BlockMap></bmap>",
	  "0+8192 8192+1808",
	  NULL,
	  { NULL, 0 } },
	{ "<bmap><BlockSize>4096</BlockSize><MappedBlocksCount>3</MappedBlocksCount><BlockMap><Range>0-1</Range></"
	  "BlockMap>"
	  "</bmap>",
	  NULL,
	  "It states 3 mapped blocks but lists 2: it is incomplete",
	  { NULL, 0 } },
	{ "<bmap><BlockSize>4096</BlockSize><BlockMap><Range>2-1</Range></BlockMap></bmap>",
	  NULL,
	  "Line 1: '2-1' is not a range of blocks",
	  { NULL, 0 } },
	{ "<bmap><BlockMap><Range>1</Range></BlockMap></bmap>",
	  NULL,
	  "Line 1: <BlockMap> comes before <BlockSize>",
	  { NULL, 0 } },
	{ "[{\"start\":0,\"length\":5,\"zero\":false,\"hole\":false},{\"start\":5,\"length\":5,\"zero\":true,\"hole\":"
	  "true},{\"start\":10,\"length\":5,\"zero\":true,\"hole\":false}]",
	  "0+5 10+5",
	  NULL,
	  { "imageio", 0 } },
	{ "[{\"start\":0,\"length\":5,\"dirty\":true,\"zero\":true},{\"start\":5,\"length\":5,\"dirty\":false,\"zero\":"
	  "true}]",
	  "0+5",
	  NULL,
	  { NULL, 0 } },
	{ "[{\"start\":0,\"length\":5,\"dirty\":true}]",
	  NULL,
	  "Element 0 of the list: it is not a range as nbdinfo has it",
	  { "nbdinfo", 0 } },
	{ "[{\"start\":0,\"length\":5,\"depth\":0,\"data\":false,\"zero\":true}]",
	  NULL,
	  "Element 0 of the list: \"zero\" is true or \"depth\" not 0: this is not a map of an x-dirty-bitmap",
	  { "qemu-img-map-dirty", 0 } },
	{ "0 5\n", NULL, "It does not begin with 'rbd diff v1' or 'rbd diff v2'", { "rbd-export-diff", 0 } },
};

static void test_formats(void)
{
	struct tide_error err = TIDE_ERROR_INIT;

	for (size_t i = 0; i < TIDE_ARRAY_SIZE(format_rows); i++) {
		struct tide_range_list *list = NULL;
		UNIT_ROW("%s", format_rows[i].text);
		int rc =
		        read_as(format_rows[i].text, strlen(format_rows[i].text), &format_rows[i].options, &list, &err);
		if (format_rows[i].error) {
			CHECK_EQ_I64(rc, -1);
			CHECK(list == NULL);
			CHECK_STR(err.msg, format_rows[i].error);
			tide_error_release(&err);
		} else if (CHECK_OK(rc, &err)) {
			check_list(list, format_rows[i].ranges);
		}
		tide_range_list_free(list);
	}
	for (size_t i = 0; tide_ranges_format(i); i++)
		CHECK(strlen(tide_ranges_format(i)) > 3);
}

#define V2                                              \
	"rbd diff v2\nf\x07\0\0\0\0\0\0\0\x03\0\0\0abc" \
	"q\x01\0\0\0\0\0\0\0x"                          \
	"s\x08\0\0\0\0\0\0\0\0\0\x80\0\0\0\0\0"
#define W2 "w\x14\0\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\x04\0\0\0\0\0\0\0data"
#define Z2 "z\x10\0\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0\x02\0\0\0\0\0\0"

/* Both versions, and each beginning of them: nothing, and a message. */
static void test_rbd(void)
{
	static const char v1[] =
	        "rbd diff v1\nf\x03\0\0\0abct\x01\0\0\0xs\0\0\x80\0\0\0\0\0w\0\x02\0\0\0\0\0\0\x04\0\0\0\0\0\0"
	        "\0dataz\0\x04\0\0\0\0\0\0\0\x02\0\0\0\0\0\0e";
	static const char v2[] = V2 W2 Z2 "e";
	static const struct {
		const char *bytes;
		size_t len;
	} files[] = { { v1, sizeof(v1) - 1 }, { v2, sizeof(v2) - 1 } };
	static const char more[] = V2 W2 "ee", odd[] = V2 W2 "q\x01\0\0\0\0\0\0\0xe",
	                  wrong[] = V2 "z\x11\0\0\0\0\0\0\0";
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_range_list *list = NULL;

	for (size_t i = 0; i < TIDE_ARRAY_SIZE(files); i++) {
		UNIT_ROW("version %zu", i + 1);
		if (CHECK_OK(read_bytes(files[i].bytes, files[i].len, &list, &err), &err))
			check_list(list, "512+4 1024+512");
		tide_range_list_free(list);
		list = NULL;
		for (size_t cut = 12; cut < files[i].len; cut++) {
			UNIT_ROW("version %zu, %zu bytes", i + 1, cut);
			CHECK_EQ_I64(read_bytes(files[i].bytes, cut, &list, &err), -1);
			CHECK(list == NULL && err.msg && strstr(err.msg, "The file is cut off at "));
			tide_error_release(&err);
		}
	}
	CHECK_EQ_I64(read_bytes(more, sizeof(more) - 1, &list, &err), -1);
	CHECK_ERR(&err, TIDE_E_REFUSED, NULL);
	CHECK_EQ_I64(read_bytes(odd, sizeof(odd) - 1, &list, &err), -1);
	CHECK(err.msg && strstr(err.msg, "A record of the unknown kind 0x71"));
	tide_error_release(&err);
	CHECK_EQ_I64(read_bytes(wrong, sizeof(wrong) - 1, &list, &err), -1);
	CHECK(list == NULL);
	tide_error_release(&err);
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
		{ "5 0\n", "" },
		{ "9223372036854775806 1", "9223372036854775806+1" },
		{ "[]", "" },
		{ " \n[ ]\n", "" },
		{ "{\"id\":[1],\"return\" :\n[{\"start\":0,\"length\":5,\"dirty\":true}],\"x\":{\"return\":[5]}}",
		  "0+5" },
		{ "{\"retur\\u006e\":[{\"start\":0,\"length\":5,\"dirty\":true}]}", "0+5" },
		{ "[{\"start\":0,\"length\":5,\"dirty\":true,\"x\":[1,{\"y\":\"]},[\\\"\"}]}]", "0+5" },
		{ "{\"return\": []}", "" },
		{ "{\"return\": [{\"start\": 1, \"length\": 2, \"dirty\": true}, {\"start\": 3, \"length\": 4, "
		  "\"dirty\": "
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

#define DIRTY(off, len) \
	"[{\"start\":0,\"length\":1,\"dirty\":true},{\"start\":" off ",\"length\":" len ",\"dirty\":true}]"

static void test_refused(void)
{
	static const struct {
		const char *text, *error;
	} rows[] = {
		{ "", "The list of ranges is empty" },
		{ "\n", "The list of ranges has only blank lines" },
		{ " \t\r\n\n \f", "The list of ranges has only blank lines" },
		{ "0 512\n512", "Line 2: expected OFFSET LENGTH, found '512' alone" },
		{ "0 512\n512\n", "Line 2: expected OFFSET LENGTH, found '512' alone" },
		{ "0 512 7\n", "Line 1: expected OFFSET LENGTH, found '7' after them" },
		{ "# x\n0 -1\n", "Line 2: '-1' is not a size: it does not start with a digit" },
		{ "0,5 1\n", "Line 1: '0,5' is not a size: expected a number and at most one of K M G T P E, "
		             "found ',5'" },
		{ "Offset Length\n", "Line 1: 'Offset' is not a size: it does not start with a digit" },
		{ "9223372036854775807 1\n", "Line 1: 1 bytes at 9223372036854775807 reach beyond 2^63 - 1" },
		{ "1 18446744073709551615", "Line 1: 18446744073709551615 bytes at 1 reach beyond 2^63 - 1" },
		{ "99999999999999999999 1", "Line 1: '99999999999999999999' is too large: sizes go up to 2^64 - 1" },
		{ "[", NULL },
		{ "[] []", NULL },
		{ "[", "JSON parse error at byte 1: unexpected end of the text" },
		{ "[{\"a\":1}", "JSON parse error at byte 8: unexpected end of the text" },
		{ "[1,]", "Element 0 of the list: it is an integer, not an object" },
		{ "[{},]", NULL },
		{ "[,{}]", NULL },
		{ "[{}{}]", NULL },
		{ "[{]", NULL },
		{ "[[}]", NULL },
		{ "[1 2]", NULL },
		{ "]", NULL },
		{ "[]]", NULL },
		{ "{\"return\":[]", NULL },
		{ "{\"return\":[],}", NULL },
		{ "{\"return\":[],\"return\":[]}", NULL },
		{ "{\"return\" []}", NULL },
		{ "{\"x\":{\"return\":[]}}", "Expected a JSON list of ranges, found an object" },
		{ "{\"x\":\"return\"}", "Expected a JSON list of ranges, found an object" },
		{ "[{\"start\":1,\"start\":1,\"length\":1,\"dirty\":true}]", NULL },
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
		  "Element 0 of the list: unknown \"description\" 'wet'" },
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
	CHECK_EQ_I64(tide_ranges_read(-1, NULL, &list, &err), -1);
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
	if (CHECK_OK(tide_ranges_read(ends[0], NULL, &list, &err), &err)) {
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
	UNIT_RUN(test_era_dump);
	UNIT_RUN(test_formats);
	UNIT_RUN(test_rbd);
	UNIT_RUN(test_good);
	UNIT_RUN(test_refused);
	UNIT_RUN(test_bytes);
	UNIT_RUN(test_pipe);
	UNIT_RUN(test_no_memory);
	return unit_done();
}
