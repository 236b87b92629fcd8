/* Arithmetic on offsets and the parser of sizes, at the edges of 64 bits. */
#include "base/range.h"
#include "unit.h"

static void test_is_within(void)
{
	static const struct {
		uint64_t off, len, size;
		bool within;
	} rows[] = {
		{ 0, 0, 0, true },
		{ 0, 1, 0, false },
		{ 1, 0, 0, false },
		{ 5, 5, 10, true },
		{ 5, 6, 10, false },
		{ 10, 0, 10, true },
		{ 11, 0, 10, false },
		{ 1, UINT64_MAX, UINT64_MAX, false },
		{ UINT64_MAX, 1, UINT64_MAX, false },
		{ UINT64_MAX - 1, 1, UINT64_MAX, true },
		{ UINT64_MAX, UINT64_MAX, 10, false },
	};

	for (size_t i = 0; i < TIDE_ARRAY_SIZE(rows); i++) {
		UNIT_ROW("row %zu", i);
		CHECK(tide_range_is_within(rows[i].off, rows[i].len, rows[i].size) == rows[i].within);
	}
}

static void test_powers(void)
{
	CHECK(!tide_range_is_pow2(0) && !tide_range_is_pow2(3) && !tide_range_is_pow2(UINT64_MAX));
	for (unsigned i = 0; i < 64; i++) {
		CHECK(tide_range_is_pow2(UINT64_C(1) << i));
		CHECK_EQ_U64(tide_range_shift(UINT64_C(1) << i), i);
	}
}

static void test_align(void)
{
	CHECK_EQ_U64(tide_range_align_down(4095, 4096), 0);
	CHECK_EQ_U64(tide_range_align_down(4096, 4096), 4096);
	CHECK_EQ_U64(tide_range_align_up(0, 4096), 0);
	CHECK_EQ_U64(tide_range_align_up(1, 4096), 4096);
	CHECK_EQ_U64(tide_range_align_up(4096, 4096), 4096);
	CHECK_EQ_U64(tide_range_align_up(7, 1), 7);
	CHECK_EQ_U64(tide_range_align_up(UINT64_MAX, 4096), UINT64_MAX - 4095);
	CHECK_EQ_U64(tide_range_align_up(UINT64_MAX - 4095, 4096), UINT64_MAX - 4095);
	CHECK_EQ_U64(tide_range_div_up(0, 7), 0);
	CHECK_EQ_U64(tide_range_div_up(7, 7), 1);
	CHECK_EQ_U64(tide_range_div_up(8, 7), 2);
	CHECK_EQ_U64(tide_range_div_up(UINT64_MAX, 2), UINT64_C(1) << 63);
}

static void test_shl(void)
{
	uint64_t v = 1;

	CHECK(tide_range_shl(3, 2, &v) && v == 12);
	CHECK(tide_range_shl(1, 63, &v) && v == UINT64_C(1) << 63);
	CHECK(tide_range_shl(UINT64_MAX, 0, &v) && v == UINT64_MAX);
	CHECK(!tide_range_shl(2, 63, &v) && !tide_range_shl(0, 64, &v) && !tide_range_shl(UINT64_MAX, 1, &v));
	CHECK_EQ_U64(v, UINT64_MAX);
}

/* tide_parse_size: what it takes and, with its words, what it refuses. */
static void test_parse_size(void)
{
	static const struct {
		const char *text;
		uint64_t size;
	} good[] = {
		{ "0", 0 },
		{ "1", 1 },
		{ "010", 10 },
		{ "64K", 65536 },
		{ "64k", 65536 },
		{ "64KiB", 65536 },
		{ "64kiB", 65536 },
		{ "4M", 4 << 20 },
		{ "1g", 1 << 30 },
		{ "2T", UINT64_C(2) << 40 },
		{ "3P", UINT64_C(3) << 50 },
		{ "15E", UINT64_C(15) << 60 },
		{ "0x10", 16 },
		{ "0XfF", 255 },
		{ "0x1E", 30 },
		{ "0x10K", 16384 },
		{ "1.5K", 1536 },
		{ "1.5GiB", 1610612736 },
		{ "0.1K", 102 },
		{ "1.999999999999999999E", (UINT64_C(2) << 60) - 2 },
		{ "15.999999999999999999E", UINT64_MAX - 1 },
		{ "4.0k", 4096 },
		{ "18446744073709551615", UINT64_MAX },
		{ "0xffffffffffffffff", UINT64_MAX },
	};
	static const char *const bad[] = {
		"",     " 4",   "+4",   "-1",  "4x",    "4K ", "4 ",           "4 K",    "K",
		"iB",   "4iB",  "4B",   "4KB", "4KiBx", "4Ki", "4KK",          "0x",     "0xg",
		"0x 1", "0x-1", "0x0x", "1.5", "1.K",   ".5K", "0x1.5K",       "1.5.5K", "1.1234567890123456789E",
		"1,5K", "1e3",  "4\n",  "4Z",  "4KIB",  "4,",  "\xc2\xa0\x34",
	};
	static const char *const large[] = {
		"18446744073709551616", "0x10000000000000000",         "16E",
		"18014398509481984K",   "99999999999999999999999999K",
	};
	struct tide_error err = TIDE_ERROR_INIT;
	uint64_t size;

	for (size_t i = 0; i < TIDE_ARRAY_SIZE(good); i++) {
		UNIT_ROW("%s", good[i].text);
		size = 77;
		CHECK_OK(tide_parse_size(good[i].text, &size, &err), &err);
		CHECK_EQ_U64(size, good[i].size);
	}
	for (size_t i = 0; i < TIDE_ARRAY_SIZE(bad); i++) {
		UNIT_ROW("%s", bad[i]);
		CHECK_EQ_I64(tide_parse_size(bad[i], &size, &err), -1);
		CHECK(err.msg && strstr(err.msg, "is not a size"));
		CHECK_ERR(&err, TIDE_E_USAGE, NULL);
	}
	for (size_t i = 0; i < TIDE_ARRAY_SIZE(large); i++) {
		UNIT_ROW("%s", large[i]);
		CHECK_EQ_I64(tide_parse_size(large[i], &size, &err), -1);
		CHECK(err.msg && strstr(err.msg, "is too large"));
		CHECK_ERR(&err, TIDE_E_USAGE, NULL);
	}
}

int main(void)
{
	UNIT_RUN(test_is_within);
	UNIT_RUN(test_powers);
	UNIT_RUN(test_align);
	UNIT_RUN(test_shl);
	UNIT_RUN(test_parse_size);
	return unit_done();
}
