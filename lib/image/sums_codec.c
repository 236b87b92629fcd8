/*
 * The bytes of a table of checksums: a head, a directory with an entry for each chunk, and the chunks that the
 * directory names, in order. A damaged chunk is an error, not a reason to call the data damaged.
 */
#include <inttypes.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "base/range.h"
#include "base/sysio.h"
#include "base/xxh.h"
#include "sums_impl.h"

#define MAGIC         "TIDESUMS"
#define VERSION       1u
#define DIRECTORY_MAX (UINT64_C(16) << 20) /* bytes; of a file of 1 PiB */

enum { AT_VERSION = 8, AT_BLOCK = 12, AT_START = 16, AT_END = 24, AT_CHUNKS = 32 };

static uint64_t count_blocks(const struct tide_sums *s)
{
	return tide_range_div_up(s->end - s->start, TIDE_SUMS_BLOCK);
}

/* Puts the bytes of chunk i at out, and its entry in the directory: 0 or ZEROES, if it is absent. */
static int encode_chunk(struct tide_sums *s, uint64_t i, uint8_t *out, uint64_t *entry, struct tide_error *err)
{
	uint64_t n = tide_sums_chunk_blocks(s, i), any = 0, zeroes = 0, *sum = NULL;

	if (i < s->n_chunks && tide_sums_chunk_use(s, i, false, &sum, err) < 0)
		return -1;
	for (uint64_t k = 0; sum && k < n; k++) {
		any |= sum[k];
		zeroes += sum[k] == s->zeroes;
		tide_put_le64(out + 8 * k, sum[k]);
	}
	*entry = !any ? 0 : zeroes == n ? TIDE_SUMS_ZEROES : tide_sums_of(out, 8 * n);
	return 0;
}

static void put_head(const struct tide_sums *s, uint8_t *head, uint64_t chunks)
{
	memcpy(head, MAGIC, 8);
	tide_put_le16(head + AT_VERSION, VERSION);
	tide_put_le32(head + AT_BLOCK, TIDE_SUMS_BLOCK);
	tide_put_le64(head + AT_START, s->start);
	tide_put_le64(head + AT_END, s->end);
	tide_put_le64(head + AT_CHUNKS, chunks);
}

int tide_sums_write(struct tide_sums *s, int fd, uint64_t at, uint64_t *len, uint64_t *sum, struct tide_error *err)
{
	uint64_t chunks = tide_range_div_up(count_blocks(s), TIDE_SUMS_PER_CHUNK),
	         head_len = TIDE_SUMS_HEAD + 8 * chunks;
	TIDE_AUTOFREE uint8_t *head = tide_mem_alloc(1, head_len, err);
	TIDE_AUTOFREE uint8_t *buf = tide_mem_alloc(TIDE_SUMS_PER_CHUNK, 8, err);

	if (!head || !buf)
		return -1;
	put_head(s, head, chunks);
	*len = head_len;
	for (uint64_t i = 0; i < chunks; i++) {
		uint64_t n = 8 * tide_sums_chunk_blocks(s, i), entry;

		if (encode_chunk(s, i, buf, &entry, err) < 0)
			return -1;
		tide_put_le64(head + TIDE_SUMS_HEAD + 8 * i, entry);
		if (entry <= TIDE_SUMS_ZEROES)
			continue;
		if (tide_sysio_pwrite(fd, buf, n, at + *len, err) < 0)
			return -1;
		*len += n;
	}
	*sum = tide_xxh_of(head, head_len);
	return tide_sysio_pwrite(fd, head, head_len, at, err);
}

/* ---- reading ----------------------------------------------------------------------- */

static int damaged(struct tide_error *err, const char *what)
{
	return tide_error_set(err, TIDE_E_CORRUPT, "the table of checksums is damaged: %s", what);
}

static int check_head(const uint8_t *head, uint64_t len, uint64_t *chunks, struct tide_error *err)
{
	uint64_t start = tide_get_le64(head + AT_START), end = tide_get_le64(head + AT_END);

	if (memcmp(head, MAGIC, 8) || tide_get_le32(head + AT_BLOCK) != TIDE_SUMS_BLOCK)
		return damaged(err, "its head is not one");
	if (tide_get_le16(head + AT_VERSION) != VERSION)
		return tide_error_set(err, TIDE_E_UNSUPPORTED, "the table of checksums has the unknown version %u",
		                      (unsigned)tide_get_le16(head + AT_VERSION));
	if (start > end || end > INT64_MAX)
		return damaged(err, "its range is not one");
	*chunks = tide_range_div_up(tide_range_div_up(end - start, TIDE_SUMS_BLOCK), TIDE_SUMS_PER_CHUNK);
	if (tide_get_le64(head + AT_CHUNKS) != *chunks || *chunks * 8 > TIDE_MIN(DIRECTORY_MAX, len - TIDE_SUMS_HEAD))
		return damaged(err, "its length does not fit its range");
	return 0;
}

static int check_chunk(struct tide_sums *s, uint64_t i, struct tide_error *err)
{
	uint64_t *sum, n = tide_sums_chunk_blocks(s, i), off = i * TIDE_SUMS_PER_CHUNK * TIDE_SUMS_BLOCK;

	if (s->chunk[i].want == TIDE_SUMS_ZEROES) {
		s->proven += TIDE_MIN(n * TIDE_SUMS_BLOCK, s->end - s->start - off);
		return 0;
	}
	if (tide_sums_chunk_use(s, i, false, &sum, err) < 0)
		return -1;
	for (uint64_t k = 0; k < n; k++, off += TIDE_SUMS_BLOCK) {
		if (sum[k] != TIDE_SUMS_NONE)
			s->proven += TIDE_MIN(TIDE_SUMS_BLOCK, s->end - s->start - off);
	}
	return 0;
}

static int read_chunks(struct tide_sums *s, const uint8_t *directory, uint64_t chunks, uint64_t at, uint64_t end,
                       struct tide_error *err)
{
	if (tide_sums_grow(s, chunks, err) < 0)
		return -1;
	for (uint64_t i = 0; i < chunks; i++) {
		uint64_t n = 8 * tide_sums_chunk_blocks(s, i);

		s->chunk[i].want = tide_get_le64(directory + 8 * i);
		if (!s->chunk[i].want)
			continue;
		if (s->chunk[i].want == TIDE_SUMS_ZEROES)
			n = 0;
		if (n > end - at)
			return damaged(err, "it ends too early");
		s->chunk[i].at = at;
		if (check_chunk(s, i, err) < 0)
			return -1;
		at += n;
	}
	return 0;
}

struct tide_sums *tide_sums_read(int fd, uint64_t at, uint64_t len, uint64_t sum, struct tide_error *err)
{
	uint8_t fixed[TIDE_SUMS_HEAD];
	TIDE_AUTOFREE uint8_t *head = NULL;
	uint64_t chunks, head_len, size;
	struct tide_sums *s;

	if (tide_sysio_size(fd, &size, err) < 0)
		return NULL;
	if (len < TIDE_SUMS_HEAD || !tide_range_is_within(at, len, size)) {
		damaged(err, "its place is not in the file");
		return NULL;
	}
	if (tide_xxh_load(err) < 0 || tide_sysio_pread(fd, fixed, sizeof(fixed), at, true, err) < 0 ||
	    check_head(fixed, len, &chunks, err) < 0)
		return NULL;
	head_len = TIDE_SUMS_HEAD + 8 * chunks;
	head = tide_mem_alloc(head_len, 1, err);
	if (!head || tide_sysio_pread(fd, head, head_len, at, true, err) < 0)
		return NULL;
	if (tide_xxh_of(head, head_len) != sum) {
		damaged(err, "its directory does not have its checksum");
		return NULL;
	}
	s = tide_sums_new(tide_get_le64(head + AT_START), err);
	if (!s)
		return NULL;
	s->end = tide_get_le64(head + AT_END);
	s->table_fd = fd;
	if (read_chunks(s, head + TIDE_SUMS_HEAD, chunks, at + head_len, at + len, err) < 0) {
		tide_sums_free(s);
		return NULL;
	}
	return s;
}
