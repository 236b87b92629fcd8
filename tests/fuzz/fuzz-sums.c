/*
 * Tables of checksums. The checksums of the table's own parts are corrected first, so that a change gets past them
 * (test-sums tests these checksums). A table that is read is used, written again, and must then read as the same.
 */
#include "base/xxh.h"
#include "fuzz.h"
#include "image/sums.h"

#define CHUNK_BYTES (8u * TIDE_SUMS_PER_CHUNK)

enum { AT_START = 16, AT_END = 24, AT_CHUNKS = 32 };

static uint64_t get(const uint8_t *data, size_t size, uint64_t at)
{
	return at + 8 <= size ? tide_get_le64(data + at) : 0;
}

/* Returns the checksum of the head and the directory. */
static uint64_t seal(uint8_t *data, size_t size)
{
	uint64_t chunks = get(data, size, AT_CHUNKS), room = (size - TIDE_SUMS_HEAD) / 8, at;
	uint64_t range = get(data, size, AT_END) - get(data, size, AT_START);
	uint64_t blocks = range / TIDE_SUMS_BLOCK + (range % TIDE_SUMS_BLOCK != 0);

	chunks = chunks < room ? chunks : room;
	at = TIDE_SUMS_HEAD + 8 * chunks;
	for (uint64_t i = 0; i < chunks; i++) {
		uint64_t left = blocks > i * TIDE_SUMS_PER_CHUNK ? blocks - i * TIDE_SUMS_PER_CHUNK : 0;
		uint64_t len = left < TIDE_SUMS_PER_CHUNK ? 8 * left : CHUNK_BYTES;

		/* 0 and 1 say that the chunk is absent. */
		if (get(data, size, TIDE_SUMS_HEAD + 8 * i) <= 1)
			continue;
		if (len == 0 || len > size - at)
			break;
		tide_put_le64(data + TIDE_SUMS_HEAD + 8 * i, tide_sums_of(data + at, len));
		at += len;
	}
	return tide_xxh_of(data, TIDE_SUMS_HEAD + 8 * chunks);
}

static void use(struct tide_sums *s)
{
	uint64_t start = tide_sums_start(s), end = tide_sums_end(s), sums[4], again[4], len, sum, bad;
	uint64_t blocks = (end - start + TIDE_SUMS_BLOCK - 1) / TIDE_SUMS_BLOCK, n = blocks < 4 ? blocks : 4;
	struct tide_error err = TIDE_ERROR_INIT;
	uint8_t few[100] = { 0 };
	struct tide_sums *other;
	int fd = fuzz_file(few, sizeof(few), 0);

	fuzz_must(start <= end && tide_sums_proven(s) <= end - start);
	fuzz_must(tide_sums_find(s, start, n, sums, &err) == 0);
	if (tide_sums_check(s, fd, few, start, sizeof(few), &bad, &err) < 0)
		fuzz_failed(&err);
	fuzz_must(tide_sums_write(s, fd, 1000, &len, &sum, &err) == 0);
	other = tide_sums_read(fd, 1000, len, sum, &err);
	fuzz_must(other && tide_sums_start(other) == start && tide_sums_end(other) == end);
	fuzz_must(tide_sums_proven(other) == tide_sums_proven(s));
	fuzz_must(tide_sums_find(other, start, n, again, &err) == 0 && memcmp(sums, again, 8 * n) == 0);
	tide_sums_free(other);
	close(fd);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct tide_error err = TIDE_ERROR_INIT;
	uint8_t *copy = malloc(size + 1);
	struct tide_sums *s;
	uint64_t sum;
	int fd;

	fuzz_must(copy && tide_xxh_load(&err) == 0);
	memcpy(copy, data, size);
	sum = size >= TIDE_SUMS_HEAD ? seal(copy, size) : 0;
	fd = fuzz_file(copy, size, 0);
	s = tide_sums_read(fd, 0, size, sum, &err);
	if (s)
		use(s);
	else
		fuzz_failed(&err);
	tide_sums_free(s);
	close(fd);
	free(copy);
	return 0;
}
