/*
 * The table of checksums: collecting, and comparing what is read.
 *
 * Two values are not checksums: NONE, and SKIPPED while they are
 * collected.
 */
#include "sums.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/mem.h"
#include "base/range.h"
#include "base/sysio.h"
#include "base/xxh.h"
#include "sums_impl.h"

#define READ_BYTES (UINT64_C(1) << 20)

struct tide_sums *tide_sums_new(uint64_t start, struct tide_error *err)
{
	struct tide_sums *s;

	if (tide_xxh_load(err) < 0)
		return NULL;
	s = tide_mem_alloc(1, sizeof(*s), err);
	if (!s)
		return NULL;
	s->start = s->end = start;
	s->table_fd = s->spill_fd = s->owned_fd = -1;
	s->zeroes = tide_sums_of_zeroes();
	pthread_mutex_init(&s->lock, NULL);
	return s;
}

void tide_sums_free(struct tide_sums *s)
{
	if (!s)
		return;
	tide_sums_chunks_release(s);
	for (size_t i = 0; i < TIDE_SUMS_PARTS; i++)
		free(s->part[i].data);
	pthread_mutex_destroy(&s->lock);
	free(s);
}

uint64_t tide_sums_of(const void *buf, size_t len)
{
	uint64_t sum = tide_xxh_of(buf, len);

	return sum > TIDE_SUMS_SKIPPED ? sum : 2;
}

uint64_t tide_sums_of_zeroes(void)
{
	static const uint8_t zeroes[TIDE_SUMS_BLOCK];

	return tide_sums_of(zeroes, sizeof(zeroes));
}

void tide_sums_own(struct tide_sums *s, int fd)
{
	s->owned_fd = fd;
}

bool tide_sums_has_skipped(struct tide_sums *s)
{
	return s->skipped;
}

uint64_t tide_sums_start(const struct tide_sums *s)
{
	return s->start;
}

uint64_t tide_sums_end(const struct tide_sums *s)
{
	return s->end;
}

uint64_t tide_sums_proven(const struct tide_sums *s)
{
	return s->proven;
}

/* Lock held. A checksum that cannot be read counts as missing. */
static uint64_t get(struct tide_sums *s, uint64_t block)
{
	uint64_t sum;

	return tide_sums_get(s, block, 1, &sum, NULL) == 0 ? sum : TIDE_SUMS_NONE;
}

int tide_sums_find(struct tide_sums *s, uint64_t off, uint64_t n, uint64_t *out, struct tide_error *err)
{
	int rc;

	pthread_mutex_lock(&s->lock);
	rc = tide_sums_get(s, (off - s->start) / TIDE_SUMS_BLOCK, n, out, err);
	pthread_mutex_unlock(&s->lock);
	return rc;
}

/* ---- collecting -------------------------------------------------------------------- */

/* Lock held. A block whose checksum cannot be stored is read back. */
static void store(struct tide_sums *s, uint64_t block, uint64_t sum)
{
	if (tide_sums_set(s, block, sum, NULL) < 0)
		s->spoilt = true;
}

static struct tide_sums_part *find_part(struct tide_sums *s, uint64_t block)
{
	for (size_t i = 0; i < TIDE_SUMS_PARTS; i++) {
		if (s->part[i].used && s->part[i].block == block)
			return &s->part[i];
	}
	return NULL;
}

/* The oldest one makes room: its block is read back. */
static struct tide_sums_part *add_part(struct tide_sums *s, uint64_t block)
{
	struct tide_sums_part *p = &s->part[s->next_part++ % TIDE_SUMS_PARTS];

	if (!p->data)
		p->data = tide_mem_alloc(TIDE_SUMS_BLOCK, 1, NULL);
	p->used = p->data != NULL;
	p->block = block;
	p->from = p->to = 0;
	return p->used ? p : NULL;
}

/* Lock held. Adds bytes of one block to those that precede them. */
static void note_part(struct tide_sums *s, const uint8_t *buf, uint64_t block, uint32_t within, uint32_t len)
{
	struct tide_sums_part *p = find_part(s, block);

	if (!p && get(s, block) == TIDE_SUMS_NONE)
		p = add_part(s, block);
	store(s, block, TIDE_SUMS_NONE);
	if (!p)
		return;
	if (p->from == p->to)
		p->from = p->to = within;
	if (within == p->to)
		p->to += len;
	else if (within + len == p->from)
		p->from = within;
	else
		p->used = false;
	if (!p->used)
		return;
	memcpy(p->data + within, buf, len);
	if (p->to - p->from < TIDE_SUMS_BLOCK)
		return;
	store(s, block, tide_sums_of(p->data, TIDE_SUMS_BLOCK));
	p->used = false;
}

/* Lock held. */
static void drop_part(struct tide_sums *s, uint64_t block)
{
	struct tide_sums_part *p = find_part(s, block);

	if (p)
		p->used = false;
}

/* Whole blocks: their checksums are computed without the lock. */
static void note_blocks(struct tide_sums *s, const uint8_t *buf, uint64_t block, uint64_t n)
{
	while (n) {
		uint64_t sum[32];
		size_t k = TIDE_MIN(n, TIDE_ARRAY_SIZE(sum));

		for (size_t i = 0; i < k; i++)
			sum[i] = tide_sums_of(buf + i * TIDE_SUMS_BLOCK, TIDE_SUMS_BLOCK);
		pthread_mutex_lock(&s->lock);
		for (size_t i = 0; i < k; i++) {
			drop_part(s, block + i);
			store(s, block + i, sum[i]);
		}
		pthread_mutex_unlock(&s->lock);
		buf += k * TIDE_SUMS_BLOCK;
		block += k;
		n -= k;
	}
}

void tide_sums_note(struct tide_sums *s, const void *buf, uint64_t off, uint64_t len)
{
	const uint8_t *p = buf;

	if (!s || off < s->start)
		return;
	off -= s->start;
	while (len) {
		uint32_t within = off % TIDE_SUMS_BLOCK;
		uint64_t n = TIDE_MIN(len, TIDE_SUMS_BLOCK - within);

		if (n < TIDE_SUMS_BLOCK) {
			pthread_mutex_lock(&s->lock);
			note_part(s, p, off / TIDE_SUMS_BLOCK, within, (uint32_t)n);
			pthread_mutex_unlock(&s->lock);
		} else {
			n = tide_range_align_down(len, TIDE_SUMS_BLOCK);
			note_blocks(s, p, off / TIDE_SUMS_BLOCK, n / TIDE_SUMS_BLOCK);
		}
		p += n;
		off += n;
		len -= n;
	}
}

static void set_range(struct tide_sums *s, uint64_t off, uint64_t len, uint64_t sum)
{
	if (!s || off < s->start || len == 0)
		return;
	off -= s->start;
	pthread_mutex_lock(&s->lock);
	s->skipped |= sum == TIDE_SUMS_SKIPPED;
	for (uint64_t b = off / TIDE_SUMS_BLOCK; b <= (off + len - 1) / TIDE_SUMS_BLOCK; b++) {
		drop_part(s, b);
		store(s, b, sum);
	}
	pthread_mutex_unlock(&s->lock);
}

void tide_sums_forget(struct tide_sums *s, uint64_t off, uint64_t len)
{
	set_range(s, off, len, TIDE_SUMS_NONE);
}

void tide_sums_skip(struct tide_sums *s, uint64_t off, uint64_t len)
{
	set_range(s, off, len, TIDE_SUMS_SKIPPED);
}

void tide_sums_spoil(struct tide_sums *s)
{
	if (!s)
		return;
	pthread_mutex_lock(&s->lock);
	s->spoilt = true;
	pthread_mutex_unlock(&s->lock);
}

/* Must the block's checksum be computed from the file? */
static bool is_missing(struct tide_sums *s, uint64_t block, bool all)
{
	uint64_t sum = get(s, block);

	return s->spoilt || sum == TIDE_SUMS_NONE || (all && sum == TIDE_SUMS_SKIPPED);
}

/* Blocks of a hole of the file; the last block of the file may be shorter. */
static int set_hole(struct tide_sums *s, uint64_t block, uint64_t n, struct tide_error *err)
{
	for (uint64_t i = 0; i < n; i++) {
		if (tide_sums_set(s, block + i, s->zeroes, err) < 0)
			return -1;
	}
	return 0;
}

/* The whole blocks of the hole at a block, if there is one. */
static uint64_t count_hole(const struct tide_sums *s, int fd, uint64_t block, uint64_t n)
{
	uint64_t off = s->start + block * TIDE_SUMS_BLOCK, len;
	bool data;

	tide_sysio_extent(fd, off, TIDE_MIN(n * TIDE_SUMS_BLOCK, s->end - off), &data, &len);
	return data ? 0 : len / TIDE_SUMS_BLOCK;
}

/* *n: in, the blocks that are missing; out, those that were computed. */
static int read_back(struct tide_sums *s, int fd, uint64_t block, uint64_t *n, uint8_t *buf, struct tide_error *err)
{
	uint64_t off = s->start + block * TIDE_SUMS_BLOCK, hole = count_hole(s, fd, block, *n), len;

	if (hole) {
		*n = hole;
		return set_hole(s, block, hole, err);
	}
	*n = TIDE_MIN(*n, READ_BYTES / TIDE_SUMS_BLOCK);
	len = TIDE_MIN(*n * TIDE_SUMS_BLOCK, s->end - off);
	if (tide_sysio_pread(fd, buf, len, off, true, err) < 0)
		return -1;
	for (uint64_t pos = 0; pos < len; pos += TIDE_SUMS_BLOCK) {
		uint64_t sum = tide_sums_of(buf + pos, TIDE_MIN(TIDE_SUMS_BLOCK, len - pos));

		if (tide_sums_set(s, block + pos / TIDE_SUMS_BLOCK, sum, err) < 0)
			return -1;
	}
	return 0;
}

/* The last step: what is not known has no checksum. */
static int complete(struct tide_sums *s, uint64_t blocks, struct tide_error *err)
{
	s->proven = 0;
	for (uint64_t b = 0; b < blocks; b++) {
		uint64_t sum = get(s, b);

		if (sum > TIDE_SUMS_SKIPPED)
			s->proven += TIDE_MIN(TIDE_SUMS_BLOCK, s->end - s->start - b * TIDE_SUMS_BLOCK);
		else if (sum == TIDE_SUMS_SKIPPED && tide_sums_set(s, b, TIDE_SUMS_NONE, err) < 0)
			return -1;
	}
	s->spoilt = false;
	return 0;
}

int tide_sums_finish(struct tide_sums *s, int fd, uint64_t end, bool all, const atomic_bool *cancel,
                     struct tide_error *err)
{
	uint64_t blocks = tide_range_div_up(end > s->start ? end - s->start : 0, TIDE_SUMS_BLOCK), n;
	TIDE_AUTOFREE uint8_t *buf = tide_mem_alloc(READ_BYTES, 1, err);

	if (!buf)
		return -1;
	s->end = TIDE_MAX(end, s->start);
	for (uint64_t b = 0; b < blocks; b += TIDE_MAX(n, 1)) {
		if (cancel && atomic_load_explicit(cancel, memory_order_relaxed))
			return tide_error_set(err, TIDE_E_CANCELLED, "Cancelled");
		for (n = 0; b + n < blocks && n < TIDE_SUMS_PER_CHUNK && is_missing(s, b + n, all);)
			n++;
		if (n && read_back(s, fd, b, &n, buf, err) < 0)
			return -1;
	}
	return complete(s, blocks, err);
}

/* ---- comparing --------------------------------------------------------------------- */

/* One block, of which [within, within + len) is at buf. 1: it differs. */
static int check_block(struct tide_sums *s, int fd, const uint8_t *buf, uint64_t block, uint64_t within, uint64_t len,
                       struct tide_error *err)
{
	uint64_t off = s->start + block * TIDE_SUMS_BLOCK, size = TIDE_MIN(TIDE_SUMS_BLOCK, s->end - off), want;
	TIDE_AUTOFREE uint8_t *whole = NULL;

	if (tide_sums_find(s, off, 1, &want, err) < 0)
		return -1;
	if (want == TIDE_SUMS_NONE)
		return 0;
	if (len < size) {
		whole = tide_mem_alloc(size, 1, err);
		if (!whole || tide_sysio_pread(fd, whole, size, off, true, err) < 0)
			return -1;
		memcpy(whole + within, buf, len);
	}
	return tide_sums_of(whole ? whole : buf, size) != want;
}

int tide_sums_check(struct tide_sums *s, int fd, const void *buf, uint64_t off, uint64_t len, uint64_t *bad,
                    struct tide_error *err)
{
	const uint8_t *p = buf;
	int rc = 0;

	if (off < s->start) {
		uint64_t n = TIDE_MIN(len, s->start - off);

		off += n;
		p += n;
		len -= n;
	}
	for (len = off < s->end ? TIDE_MIN(len, s->end - off) : 0; len && rc == 0;) {
		uint64_t block = (off - s->start) / TIDE_SUMS_BLOCK, within = (off - s->start) % TIDE_SUMS_BLOCK,
		         n = TIDE_MIN(len, TIDE_SUMS_BLOCK - within);

		rc = check_block(s, fd, p, block, within, n, err);
		*bad = off - within;
		p += n;
		off += n;
		len -= n;
	}
	return rc;
}
