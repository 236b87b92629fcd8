/* Compression: round trips, damaged and truncated input, and contexts that are used again. */
#include "base/compress.h"
#include "base/mem.h"
#include "unit.h"

enum { SIZE = 100000 };

static uint8_t plain[SIZE], packed[2 * SIZE], back[SIZE + 1];

static size_t pack(size_t len)
{
	struct tide_error err = TIDE_ERROR_INIT;
	size_t used = sizeof(packed);

	for (size_t i = 0; i < SIZE; i++)
		plain[i] = (uint8_t)(i * i >> 7);
	CHECK(tide_compress_bound(len) <= used);
	CHECK_OK(tide_compress_zstd(packed, &used, plain, len, 3, &err), &err);
	return used;
}

static void test_round_trip(void)
{
	static const size_t lens[] = { 0, 1, 2, 511, 65536, SIZE };
	struct tide_error err = TIDE_ERROR_INIT;

	for (size_t i = 0; i < TIDE_ARRAY_SIZE(lens); i++)
		for (int exact = 0; exact < 2; exact++) {
			UNIT_ROW("%zu bytes, exact %d", lens[i], exact);
			size_t used = pack(lens[i]);
			memset(back, 0xee, sizeof(back));
			CHECK_OK(tide_compress_unzstd(back, lens[i], packed, used, exact, &err), &err);
			CHECK_MEM(back, plain, lens[i]);
			CHECK_EQ_U64(back[lens[i]], 0xee);
		}
}

static void test_too_small(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	size_t used = pack(SIZE) - 1;

	CHECK_EQ_I64(tide_compress_zstd(packed, &used, plain, SIZE, 3, &err), -1);
	CHECK_ERR(&err, TIDE_E_REFUSED, NULL);
}

/* Cut at every length: never success, never a byte beyond the room. */
static void test_cut(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	size_t used = pack(5000);

	for (size_t len = 0; len < used; len++) {
		UNIT_ROW("cut to %zu of %zu", len, used);
		uint8_t *in TIDE_AUTOFREE = tide_mem_alloc(len, 1, &err);
		memcpy(in, packed, len);
		if (!CHECK_EQ_I64(tide_compress_unzstd(back, 5000, in, len, len & 1, &err), -1))
			return;
		CHECK_ERR(&err, TIDE_E_CORRUPT, NULL);
	}
}

static void test_tail(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	size_t used = pack(5000);

	memset(packed + used, 0xaa, 100);
	CHECK_OK(tide_compress_unzstd(back, 5000, packed, used + 100, false, &err), &err);
	CHECK_EQ_I64(tide_compress_unzstd(back, 5000, packed, used + 100, true, &err), -1);
	CHECK_ERR(&err, TIDE_E_CORRUPT, "The zstd data do not end after 5000 bytes");
}

static void test_wrong_length(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	size_t used = pack(5000);

	for (int exact = 0; exact < 2; exact++) {
		CHECK_EQ_I64(tide_compress_unzstd(back, 4999, packed, used, exact, &err), -1);
		CHECK_ERR(&err, TIDE_E_CORRUPT, "The zstd data do not end after 4999 bytes");
		CHECK_EQ_I64(tide_compress_unzstd(back, 5001, packed, used, exact, &err), -1);
		CHECK_ERR(&err, TIDE_E_CORRUPT, "The zstd data end after 5000 of 5001 bytes");
	}
}

/* Several frames one after the other fill the room together. */
static void test_frames(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	size_t first = pack(3000), second = sizeof(packed) - first;

	CHECK_OK(tide_compress_zstd(packed + first, &second, plain + 3000, 2000, 1, &err), &err);
	CHECK_OK(tide_compress_unzstd(back, 5000, packed, first + second, true, &err), &err);
	CHECK_MEM(back, plain, 5000);
	CHECK_OK(tide_compress_unzstd(back, 3000, packed, first + second, false, &err), &err);
	CHECK_EQ_I64(tide_compress_unzstd(back, 3000, packed, first + second, true, &err), -1);
	CHECK_ERR(&err, TIDE_E_CORRUPT, NULL);
}

static void test_damage(void)
{
	struct tide_error err = TIDE_ERROR_INIT;

	memset(packed, 0x5a, 100);
	CHECK_EQ_I64(tide_compress_unzstd(back, 10, packed, 100, true, &err), -1);
	CHECK(err.msg && strncmp(err.msg, "The zstd data are damaged: ", 27) == 0);
	CHECK_ERR(&err, TIDE_E_CORRUPT, NULL);
}

static size_t pack_fresh(size_t len)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_compress *ctx = tide_compress_new(3, &err);
	size_t used = sizeof(packed);

	CHECK_EQ_I64(tide_compress_next(ctx, packed, &used, plain, len, &err), 0);
	tide_compress_free(ctx);
	return used;
}

/* Each changed byte of a frame is found by the frame's own checksum, if not by something else. */
static void test_frame_checksum(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	size_t used = pack_fresh(3000);

	CHECK_OK(tide_compress_unzstd(back, 3000, packed, used, true, &err), &err);
	for (size_t i = 6; i < used; i += 7) {
		UNIT_ROW("byte %zu", i);
		packed[i] ^= 1;
		CHECK_EQ_I64(tide_compress_unzstd(back, 3000, packed, used, true, &err), -1);
		CHECK_ERR(&err, TIDE_E_CORRUPT, NULL);
		packed[i] ^= 1;
	}
}

/* A context gives what a new one would, whatever it did before. */
static void test_context(void)
{
	static uint8_t again[sizeof(packed)];
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_compress *ctx = tide_compress_new(3, &err);
	static const size_t lens[] = { 65536, 511, SIZE, 65536, 1, 4096 };

	if (!CHECK(ctx))
		return;
	for (size_t i = 0; i < TIDE_ARRAY_SIZE(lens); i++) {
		size_t want = pack_fresh(lens[i]), used = sizeof(again);

		UNIT_ROW("%zu bytes, the %zu.", lens[i], i);
		CHECK_EQ_I64(tide_compress_next(ctx, again, &used, plain, lens[i], &err), 0);
		CHECK_EQ_U64(used, want);
		CHECK_MEM(again, packed, want);
		used = want - 1;
		CHECK_EQ_I64(tide_compress_next(ctx, again, &used, plain, lens[i], &err), 1);
	}
	tide_compress_free(ctx);
	tide_compress_free(NULL);
}

int main(void)
{
	UNIT_RUN(test_round_trip);
	UNIT_RUN(test_too_small);
	UNIT_RUN(test_frame_checksum);
	UNIT_RUN(test_context);
	UNIT_RUN(test_cut);
	UNIT_RUN(test_tail);
	UNIT_RUN(test_wrong_length);
	UNIT_RUN(test_frames);
	UNIT_RUN(test_damage);
	return unit_done();
}
