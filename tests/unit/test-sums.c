/*
 * The table of checksums: what is noted in pieces, in any order, is what a look at the file gives; data that the
 * kernel copied has none; each changed byte of the file is found; each changed byte of the table is reported as damage
 * of the table, never of the data.
 */
#include <fcntl.h>

#include "base/sysio.h"
#include "base/xxh.h"
#include "image/sums.h"
#include "unit.h"

#define BLOCK  TIDE_SUMS_BLOCK
#define START  4096u
#define BLOCKS 40u
#define END    (START + BLOCKS * BLOCK + 1000)

static uint8_t *content(void)
{
	uint8_t *data = malloc(END);
	uint32_t x = 1;

	for (uint32_t i = 0; i < END; i++) {
		x = x * 1664525 + 1013904223;
		data[i] = (uint8_t)(x >> 24);
	}
	return data;
}

static int make_file(const uint8_t *data)
{
	struct tide_error err = TIDE_ERROR_INIT;
	char path[4200];
	int fd;

	snprintf(path, sizeof(path), "%s/file", unit_dir());
	fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	CHECK(fd >= 0);
	CHECK_OK(tide_sysio_pwrite(fd, data, END, 0, &err), &err);
	return fd;
}

static uint64_t at(struct tide_sums *s, uint64_t off)
{
	struct tide_error err = TIDE_ERROR_INIT;
	uint64_t sum = 0;

	CHECK_OK(tide_sums_find(s, off, 1, &sum, &err), &err);
	return sum;
}

static void check_table(struct tide_sums *s, const uint8_t *data, bool skipped)
{
	CHECK_EQ_U64(tide_sums_start(s), START);
	CHECK_EQ_U64(tide_sums_end(s), END);
	for (uint64_t off = START, i = 0; off < END; off += BLOCK, i++) {
		uint64_t n = END - off < BLOCK ? END - off : BLOCK;

		UNIT_ROW("block %" PRIu64, i);
		CHECK_EQ_U64(at(s, off), skipped && i == 7 ? 0 : tide_sums_of(data + off, n));
	}
}

struct note {
	uint64_t off, len;
};

static void test_notes(void)
{
	static const struct note rows[][6] = {
		{ { 0, 0 } },
		{ { START, END - START } },
		{ { START, 100 }, { START + 100, BLOCK - 100 }, { START + BLOCK, 5 * BLOCK } },
		{ { START + 100, BLOCK - 100 }, { START, 100 } },
		{ { START + 100, 100 }, { START + 300, 100 }, { START, 100 } },
		{ { START, 3 * BLOCK }, { START + 70000, 10 }, { START + BLOCK, BLOCK } },
		{ { 0, START }, { START + 5, 2 * BLOCK }, { START + 2 * BLOCK + 5, 2 * BLOCK } },
	};
	struct tide_error err = TIDE_ERROR_INIT;
	uint8_t *data = content();
	int fd = make_file(data);

	for (size_t r = 0; r < TIDE_ARRAY_SIZE(rows); r++) {
		struct tide_sums *s = tide_sums_new(START, &err);

		for (size_t i = 0; i < 6 && rows[r][i].len; i++)
			tide_sums_note(s, data + rows[r][i].off, rows[r][i].off, rows[r][i].len);
		CHECK_OK(tide_sums_finish(s, fd, END, false, NULL, &err), &err);
		check_table(s, data, false);
		CHECK_EQ_U64(tide_sums_proven(s), END - START);
		tide_sums_free(s);
	}
	close(fd);
	free(data);
}

/* Notes of other bytes than the file has, so that it shows which ones count. */
static void test_wrong_notes(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	uint8_t *data = content(), *other = calloc(1, END);
	int fd = make_file(data);

	for (int row = 0; row < 4; row++) {
		struct tide_sums *s = tide_sums_new(START, &err);

		UNIT_ROW("%d", row);
		tide_sums_note(s, other, START, 4 * BLOCK);
		if (row == 0)
			tide_sums_forget(s, START + 10, 4 * BLOCK - 20);
		else if (row == 1)
			tide_sums_note(s, data + START, START, 4 * BLOCK);
		else if (row == 2)
			tide_sums_spoil(s);
		CHECK_OK(tide_sums_finish(s, fd, END, false, NULL, &err), &err);
		if (row < 3)
			check_table(s, data, false);
		else
			CHECK(at(s, START) != tide_sums_of(data + START, BLOCK));
		tide_sums_free(s);
	}
	close(fd);
	free(data);
	free(other);
}

static void test_skipped(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	uint8_t *data = content();
	int fd = make_file(data);

	for (int all = 0; all < 2; all++) {
		struct tide_sums *s = tide_sums_new(START, &err);

		tide_sums_skip(s, START + 7 * BLOCK + 5, 10);
		CHECK_OK(tide_sums_finish(s, fd, END, all, NULL, &err), &err);
		check_table(s, data, !all);
		CHECK_EQ_U64(tide_sums_proven(s), END - START - (all ? 0 : BLOCK));
		tide_sums_free(s);
	}
	close(fd);
	free(data);
}

static void test_cancel(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	uint8_t *data = content();
	int fd = make_file(data);
	struct tide_sums *s = tide_sums_new(START, &err);
	atomic_bool cancel = true;

	CHECK_EQ_I64(tide_sums_finish(s, fd, END, false, &cancel, &err), -1);
	CHECK_ERR(&err, TIDE_E_CANCELLED, NULL);
	tide_sums_free(s);
	close(fd);
	free(data);
}

static void test_check(void)
{
	static const struct note rows[] = {
		{ 0, END },           { START, BLOCK },          { START + 10, 20 }, { START + BLOCK - 1, 2 },
		{ END - 1, 1 },       { END - 1500, 1500 },      { 0, 100 },         { START - 10, 20 },
		{ END - 10, 100000 }, { START + 3 * BLOCK, 10 },
	};
	struct tide_error err = TIDE_ERROR_INIT;
	uint8_t *data = content(), *more = calloc(1, END + 100000);
	int fd = make_file(data);
	struct tide_sums *s = tide_sums_new(START, &err);
	uint64_t bad;

	memcpy(more, data, END);
	CHECK_OK(tide_sums_finish(s, fd, END, true, NULL, &err), &err);
	for (size_t i = 0; i < TIDE_ARRAY_SIZE(rows); i++) {
		uint64_t off = rows[i].off, len = rows[i].len, hit = off + len / 2 < END ? off + len / 2 : END - 1;

		UNIT_ROW("%" PRIu64 "+%" PRIu64, off, len);
		CHECK_EQ_I64(tide_sums_check(s, fd, more + off, off, len, &bad, &err), 0);
		more[hit] ^= 4;
		CHECK_EQ_I64(tide_sums_check(s, fd, more + off, off, len, &bad, &err), hit >= START);
		if (hit >= START)
			CHECK_EQ_U64(bad, hit - (hit - START) % BLOCK);
		more[hit] ^= 4;
	}
	tide_sums_free(s);
	close(fd);
	free(data);
	free(more);
}

static void test_codec(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	uint8_t *data = content(), byte;
	int fd = make_file(data);
	struct tide_sums *s = tide_sums_new(START, &err), *again;
	uint64_t len, sum;

	tide_sums_skip(s, START + 7 * BLOCK, BLOCK);
	CHECK_OK(tide_sums_finish(s, fd, END, false, NULL, &err), &err);
	CHECK_OK(tide_sums_write(s, fd, END + 24, &len, &sum, &err), &err);
	again = tide_sums_read(fd, END + 24, len, sum, &err);
	if (CHECK_PTR(again, &err))
		check_table(again, data, true);
	tide_sums_free(again);
	for (uint64_t i = 0; i < len; i++) {
		UNIT_ROW("byte %" PRIu64, i);
		CHECK_OK(tide_sysio_pread(fd, &byte, 1, END + 24 + i, false, &err), &err);
		byte ^= 1;
		CHECK_OK(tide_sysio_pwrite(fd, &byte, 1, END + 24 + i, &err), &err);
		CHECK(tide_sums_read(fd, END + 24, len, sum, &err) == NULL);
		CHECK(err.code == TIDE_E_CORRUPT || (i / 2 == 4 && err.code == TIDE_E_UNSUPPORTED));
		tide_error_release(&err);
		byte ^= 1;
		CHECK_OK(tide_sysio_pwrite(fd, &byte, 1, END + 24 + i, &err), &err);
	}
	for (uint64_t cut = 0; cut < len; cut++) {
		CHECK(tide_sums_read(fd, END + 24, cut, sum, &err) == NULL);
		tide_error_release(&err);
	}
	tide_sums_free(s);
	close(fd);
	free(data);
}

/* A file of more than one chunk, which is a hole but for its ends. */
static void test_large(void)
{
	const uint64_t end = UINT64_C(3) * TIDE_SUMS_PER_CHUNK * BLOCK + 5000;
	struct tide_error err = TIDE_ERROR_INIT;
	static uint8_t block[BLOCK];
	char path[4200];
	struct tide_sums *s = tide_sums_new(0, &err), *again;
	uint64_t len, sum;
	int fd;

	snprintf(path, sizeof(path), "%s/large", unit_dir());
	fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	CHECK_EQ_I64(ftruncate(fd, (off_t)end), 0);
	tide_sums_skip(s, 0, end - BLOCK);
	tide_sums_note(s, block, 0, BLOCK);
	CHECK_OK(tide_sums_finish(s, fd, end, false, NULL, &err), &err);
	CHECK_OK(tide_sums_write(s, fd, end, &len, &sum, &err), &err);
	/* The chunks in the middle take no space. */
	CHECK_EQ_U64(len, TIDE_SUMS_HEAD + 4 * 8 + 8 * TIDE_SUMS_PER_CHUNK + 8);
	again = tide_sums_read(fd, end, len, sum, &err);
	if (CHECK_PTR(again, &err)) {
		CHECK_EQ_U64(at(again, 0), tide_sums_of(block, BLOCK));
		CHECK_EQ_U64(at(again, end / 2), 0);
		CHECK_EQ_U64(at(again, end - 1), tide_sums_of(block, 5000));
	}
	tide_sums_free(again);
	tide_sums_free(s);
	close(fd);
}

/* More chunks than stay in memory: the others are in a file without a name, or in the table's own. */
static void test_spilled(void)
{
	const uint64_t chunks = 1500, stride = (uint64_t)TIDE_SUMS_PER_CHUNK * BLOCK, end = chunks * stride;
	struct tide_error err = TIDE_ERROR_INIT;
	uint8_t *block = calloc(1, BLOCK);
	char path[4200];
	struct tide_sums *s = tide_sums_new(0, &err), *again;
	uint64_t len, sum, wrong = 0;
	int fd;

	snprintf(path, sizeof(path), "%s/spilled", unit_dir());
	fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	CHECK_EQ_I64(ftruncate(fd, (off_t)end), 0);
	tide_sums_skip(s, 0, end);
	for (uint64_t i = 0; i < chunks; i++) {
		memcpy(block, &i, sizeof(i));
		tide_sums_note(s, block, i * stride + BLOCK, BLOCK);
	}
	CHECK_OK(tide_sums_finish(s, fd, end, false, NULL, &err), &err);
	CHECK_EQ_U64(tide_sums_proven(s), chunks * BLOCK);
	CHECK_OK(tide_sums_write(s, fd, end, &len, &sum, &err), &err);
	again = tide_sums_read(fd, end, len, sum, &err);
	if (CHECK_PTR(again, &err)) {
		CHECK_EQ_U64(tide_sums_proven(again), chunks * BLOCK);
		for (uint64_t i = chunks; i-- > 0;) {
			memcpy(block, &i, sizeof(i));
			wrong += at(s, i * stride + BLOCK) != tide_sums_of(block, BLOCK);
			wrong += at(again, i * stride + BLOCK) != tide_sums_of(block, BLOCK);
			wrong += at(again, i * stride) != 0;
		}
	}
	CHECK_EQ_U64(wrong, 0);
	tide_sums_free(again);
	tide_sums_free(s);
	close(fd);
	free(block);
}

/* The value is that of the library, however it is computed: the specification of XXH3 has these. */
static void test_values(void)
{
	static const uint8_t zeroes[TIDE_SUMS_BLOCK];
	struct tide_error err = TIDE_ERROR_INIT;

	CHECK_OK(tide_xxh_load(&err), &err);
	CHECK_EQ_U64(tide_xxh_of("", 0), UINT64_C(0x2d06800538d394c2));
	CHECK_EQ_U64(tide_xxh_of("Tidemark", 8), UINT64_C(0xa081929b4120ec78));
	CHECK_EQ_U64(tide_xxh_of(zeroes, sizeof(zeroes)), UINT64_C(0x33b202d302b65caa));
}

int main(void)
{
	UNIT_RUN(test_values);
	UNIT_RUN(test_notes);
	UNIT_RUN(test_wrong_notes);
	UNIT_RUN(test_skipped);
	UNIT_RUN(test_cancel);
	UNIT_RUN(test_check);
	UNIT_RUN(test_codec);
	UNIT_RUN(test_large);
	UNIT_RUN(test_spilled);
	return unit_done();
}
