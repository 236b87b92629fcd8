/*
 * Where the checksums of a table are: a bounded number of chunks in memory, and the others in a file. That is the file
 * that the table was read from, or, while checksums are collected, one without a name, in the directory for temporary
 * files. If there is no such file, all chunks stay in memory: 8 bytes for each 64 KiB of the file.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "base/range.h"
#include "base/sysio.h"
#include "sums_impl.h"

#define RESIDENT_MAX 512u /* chunks: 32 MiB, of 256 GiB of the file */
#define CHUNK_BYTES  (TIDE_SUMS_PER_CHUNK * 8u)

uint64_t tide_sums_chunk_blocks(const struct tide_sums *s, uint64_t i)
{
	uint64_t blocks = tide_range_div_up(s->end - s->start, TIDE_SUMS_BLOCK);

	return TIDE_MIN(TIDE_SUMS_PER_CHUNK, blocks - i * TIDE_SUMS_PER_CHUNK);
}

int tide_sums_grow(struct tide_sums *s, uint64_t n, struct tide_error *err)
{
	struct tide_sums_chunk *grown;

	if (n <= s->n_chunks)
		return 0;
	grown = tide_mem_realloc(s->chunk, n, sizeof(*grown), err);
	if (!grown)
		return -1;
	memset(grown + s->n_chunks, 0, (n - s->n_chunks) * sizeof(*grown));
	s->chunk = grown;
	s->n_chunks = n;
	return 0;
}

/* ---- the spill file ---- */

static bool spill(struct tide_sums *s, uint64_t i)
{
	struct tide_sums_chunk *c = &s->chunk[i];

	if (s->spill_fd < 0)
		s->spill_fd = open("/var/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	if (s->spill_fd < 0)
		s->spill_fd = open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	if (s->spill_fd < 0 || tide_sysio_pwrite(s->spill_fd, c->sum, CHUNK_BYTES, i * CHUNK_BYTES, NULL) < 0)
		return false;
	c->spilled = true;
	c->dirty = false;
	return true;
}

void tide_sums_chunk_drop(struct tide_sums *s, uint64_t i)
{
	struct tide_sums_chunk *c = &s->chunk[i];

	if (!c->sum || (c->dirty && !spill(s, i)))
		return;
	free(c->sum);
	c->sum = NULL;
	s->n_resident--;
}

static void make_room(struct tide_sums *s)
{
	for (uint64_t tries = 0; tries < s->n_chunks && s->n_resident >= RESIDENT_MAX; tries++)
		tide_sums_chunk_drop(s, s->hand++ % s->n_chunks);
}

/* ---- chunks ---- */

static int read_table(struct tide_sums *s, uint64_t i, struct tide_error *err)
{
	struct tide_sums_chunk *c = &s->chunk[i];
	uint64_t n = tide_sums_chunk_blocks(s, i);

	for (uint64_t k = 0; c->want == TIDE_SUMS_ZEROES && k < n; k++)
		c->sum[k] = s->zeroes;
	if (c->want == TIDE_SUMS_ZEROES)
		return 0;
	if (tide_sysio_pread(s->table_fd, c->sum, 8 * n, c->at, false, err) < 0)
		return -1;
	if (tide_sums_of(c->sum, 8 * n) != c->want)
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "the table of checksums is damaged: a part of it does not have its own checksum");
	for (uint64_t k = 0; k < n; k++)
		c->sum[k] = tide_get_le64(&c->sum[k]);
	return 0;
}

int tide_sums_chunk_use(struct tide_sums *s, uint64_t i, bool create, uint64_t **out, struct tide_error *err)
{
	struct tide_sums_chunk *c = &s->chunk[i];
	int rc = 0;

	*out = c->sum;
	if (c->sum || !(create || c->want || c->spilled))
		return 0;
	make_room(s);
	c->sum = tide_mem_alloc(TIDE_SUMS_PER_CHUNK, sizeof(*c->sum), err);
	if (!c->sum)
		return -1;
	s->n_resident++;
	if (c->spilled)
		rc = tide_sysio_pread(s->spill_fd, c->sum, CHUNK_BYTES, i * CHUNK_BYTES, false, err);
	else if (c->want)
		rc = read_table(s, i, err);
	*out = c->sum;
	if (rc < 0)
		tide_sums_chunk_drop(s, i);
	return rc;
}

int tide_sums_get(struct tide_sums *s, uint64_t block, uint64_t n, uint64_t *out, struct tide_error *err)
{
	for (uint64_t k; n; n -= k, block += k, out += k) {
		uint64_t i = block / TIDE_SUMS_PER_CHUNK, within = block % TIDE_SUMS_PER_CHUNK, *sum = NULL;

		k = TIDE_MIN(n, TIDE_SUMS_PER_CHUNK - within);
		if (i < s->n_chunks && tide_sums_chunk_use(s, i, false, &sum, err) < 0)
			return -1;
		if (sum)
			memcpy(out, sum + within, k * sizeof(*out));
		else
			memset(out, 0, k * sizeof(*out));
	}
	return 0;
}

int tide_sums_set(struct tide_sums *s, uint64_t block, uint64_t sum, struct tide_error *err)
{
	uint64_t i = block / TIDE_SUMS_PER_CHUNK, *to;

	if ((i >= s->n_chunks && tide_sums_grow(s, TIDE_MAX(i + 1, s->n_chunks * 2), err) < 0) ||
	    tide_sums_chunk_use(s, i, sum != TIDE_SUMS_NONE, &to, err) < 0)
		return -1;
	if (to) {
		to[block % TIDE_SUMS_PER_CHUNK] = sum;
		s->chunk[i].dirty = true;
	}
	return 0;
}

void tide_sums_chunks_release(struct tide_sums *s)
{
	for (uint64_t i = 0; i < s->n_chunks; i++)
		free(s->chunk[i].sum);
	free(s->chunk);
	tide_sysio_close(s->spill_fd);
	tide_sysio_close(s->owned_fd);
}
