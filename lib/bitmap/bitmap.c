/*
 * The dirty bitmap: a table of slots (bitmap_slot.h), one for each chunk of the disk, a summary of
 * the slots that are not clean, and the count of dirty granules, which every change updates.
 * Offsets become bits here, and nothing below knows of bytes.
 */
#include "bitmap.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/checksum.h"
#include "base/error.h"
#include "base/mem.h"
#include "base/range.h"
#include "bitmap_slot.h"

#define CHUNK_BITS TIDE_BITMAP_CHUNK_BITS

/*
 * More chunks would make the table itself larger than 256 MiB. A sidecar or an image may claim any disk
 * size; this allows 512 TiB with the finest granularity and 64 PiB with the default one.
 */
#define CHUNKS_MAX (UINT64_C(1) << 25)

struct tide_bitmap {
	uint64_t size;
	unsigned shift;
	uint64_t bits, chunks, count;
	struct tide_bitmap_slot *table;
	uint64_t *summary;    /* one bit a chunk: not clean */
	pthread_mutex_t lock; /* for all slots that hold no block */
};

/* ---- the table --------------------------------------------------------------------- */

/* How many bits of a chunk are within the disk. */
static unsigned chunk_bits(const struct tide_bitmap *bm, uint64_t index)
{
	return (unsigned)TIDE_MIN((uint64_t)CHUNK_BITS, bm->bits - index * CHUNK_BITS);
}

static void summary_set(struct tide_bitmap *bm, uint64_t index)
{
	__atomic_fetch_or(&bm->summary[index / 64], UINT64_C(1) << (index % 64), __ATOMIC_RELAXED);
}

/* Updates the summary of a chunk after a change that no other thread can have seen. */
static void summary_renew(struct tide_bitmap *bm, uint64_t index)
{
	if (tide_bitmap_slot_is_clean(bm->table[index]))
		bm->summary[index / 64] &= ~(UINT64_C(1) << (index % 64));
	else
		summary_set(bm, index);
}

static void chunk_drop(struct tide_bitmap *bm, uint64_t index)
{
	tide_bitmap_slot_drop(&bm->table[index]);
	summary_renew(bm, index);
}

static bool is_shared_block(struct tide_bitmap_slot slot)
{
	return tide_bitmap_slot_block(slot) != NULL;
}

/*
 * Several threads may set: in a block without a lock, in other slots one at a time. A slot never stops holding a
 * block while threads set, so the unlocked check is enough.
 */
static int chunk_set(struct tide_bitmap *bm, uint64_t index, unsigned lo, unsigned hi, struct tide_error *err)
{
	struct tide_bitmap_slot *slot = &bm->table[index];
	bool alone = !is_shared_block(tide_bitmap_slot_load(slot));
	uint64_t added = 0;
	int rc;

	if (alone)
		pthread_mutex_lock(&bm->lock);
	rc = tide_bitmap_slot_set(slot, lo, hi, &added, err);
	if (alone && rc == 0)
		summary_set(bm, index);
	if (alone)
		pthread_mutex_unlock(&bm->lock);
	if (added)
		__atomic_fetch_add(&bm->count, added, __ATOMIC_RELAXED);
	return rc;
}

static int chunk_reset(struct tide_bitmap *bm, uint64_t index, unsigned lo, unsigned hi, struct tide_error *err)
{
	uint64_t removed = 0;
	int rc = tide_bitmap_slot_reset(&bm->table[index], lo, hi >= chunk_bits(bm, index) ? CHUNK_BITS : hi, &removed,
	                                err);

	bm->count -= removed;
	summary_renew(bm, index);
	return rc;
}

typedef int chunk_fn(struct tide_bitmap *bm, uint64_t index, unsigned lo, unsigned hi, struct tide_error *err);

/* Calls fn for the part of each chunk that lies in the bits [first, end). */
static int for_chunks(struct tide_bitmap *bm, uint64_t first, uint64_t end, chunk_fn *fn, struct tide_error *err)
{
	while (first < end) {
		uint64_t index = first / CHUNK_BITS;
		unsigned lo = (unsigned)(first % CHUNK_BITS);
		unsigned hi = (unsigned)TIDE_MIN((uint64_t)CHUNK_BITS, end - index * CHUNK_BITS);

		if (fn(bm, index, lo, hi, err) < 0)
			return -1;
		first += hi - lo;
	}
	return 0;
}

/* ---- life -------------------------------------------------------------------------- */

struct tide_bitmap *tide_bitmap_new(uint64_t disk_size, uint64_t granularity, struct tide_error *err)
{
	if (granularity < TIDE_BITMAP_GRANULARITY_MIN || granularity > TIDE_BITMAP_GRANULARITY_MAX ||
	    !tide_range_is_pow2(granularity)) {
		tide_error_set(err, TIDE_E_REFUSED, "Granularity must be power of 2 and at least %u",
		               TIDE_BITMAP_GRANULARITY_MIN);
		return NULL;
	}
	uint64_t bits = tide_range_div_up(disk_size, granularity);
	uint64_t chunks = tide_range_div_up(bits, CHUNK_BITS);
	if (chunks > CHUNKS_MAX) {
		tide_error_set(err, TIDE_E_REFUSED,
		               "A disk of %" PRIu64 " bytes is too large for a bitmap of granularity %" PRIu64,
		               disk_size, granularity);
		tide_error_hint(err, "a bitmap has at most %" PRIu64 " granules: choose larger ones",
		                CHUNKS_MAX * CHUNK_BITS);
		return NULL;
	}

	TIDE_AUTOBITMAP struct tide_bitmap *bm = tide_mem_alloc(1, sizeof(*bm), err);
	if (!bm)
		return NULL;
	pthread_mutex_init(&bm->lock, NULL);
	bm->size = disk_size;
	bm->shift = tide_range_shift(granularity);
	bm->bits = bits;
	bm->chunks = chunks;
	/* Large allocations come zeroed from the kernel and cost nothing until they are touched. */
	bm->summary = tide_mem_alloc((size_t)TIDE_MAX(tide_range_div_up(chunks, 64), 1u), sizeof(*bm->summary), err);
	bm->table = tide_mem_alloc((size_t)TIDE_MAX(chunks, 1u), sizeof(*bm->table), err);
	if (!bm->summary || !bm->table)
		return NULL;
	struct tide_bitmap *ret = bm;
	bm = NULL;
	return ret;
}

struct tide_bitmap *tide_bitmap_copy(const struct tide_bitmap *bm, struct tide_error *err)
{
	TIDE_AUTOBITMAP struct tide_bitmap *copy = tide_bitmap_new(bm->size, tide_bitmap_granularity(bm), err);

	if (!copy || tide_bitmap_merge(copy, bm, err) < 0)
		return NULL;
	struct tide_bitmap *ret = copy;
	copy = NULL;
	return ret;
}

void tide_bitmap_clear(struct tide_bitmap *bm)
{
	for (uint64_t i = tide_bitmap_next_chunk(bm, 0); i < bm->chunks; i = tide_bitmap_next_chunk(bm, i + 1))
		chunk_drop(bm, i);
	bm->count = 0;
}

void tide_bitmap_free(struct tide_bitmap *bm)
{
	if (!bm)
		return;
	if (bm->table && bm->summary)
		tide_bitmap_clear(bm);
	free(bm->table);
	free(bm->summary);
	pthread_mutex_destroy(&bm->lock);
	free(bm);
}

void tide_bitmap_freep(struct tide_bitmap **bm)
{
	tide_bitmap_free(*bm);
}

uint64_t tide_bitmap_size(const struct tide_bitmap *bm)
{
	return bm->size;
}

uint64_t tide_bitmap_granularity(const struct tide_bitmap *bm)
{
	return UINT64_C(1) << bm->shift;
}

unsigned tide_bitmap_shift(const struct tide_bitmap *bm)
{
	return bm->shift;
}

uint64_t tide_bitmap_bits(const struct tide_bitmap *bm)
{
	return bm->bits;
}

uint64_t tide_bitmap_count(const struct tide_bitmap *bm)
{
	return __atomic_load_n(&bm->count, __ATOMIC_RELAXED);
}

/* ---- bits -------------------------------------------------------------------------- */

static int check_range(const struct tide_bitmap *bm, uint64_t off, uint64_t len, struct tide_error *err)
{
	if (tide_range_is_within(off, len, bm->size))
		return 0;
	return tide_error_set(err, TIDE_E_REFUSED,
	                      "Range of %" PRIu64 " bytes at %" PRIu64 " is not within the disk of %" PRIu64 " bytes",
	                      len, off, bm->size);
}

int tide_bitmap_set(struct tide_bitmap *bm, uint64_t off, uint64_t len, struct tide_error *err)
{
	if (check_range(bm, off, len, err) < 0)
		return -1;
	if (!len)
		return 0;
	return for_chunks(bm, off >> bm->shift, ((off + len - 1) >> bm->shift) + 1, chunk_set, err);
}

int tide_bitmap_reset(struct tide_bitmap *bm, uint64_t off, uint64_t len, struct tide_error *err)
{
	if (check_range(bm, off, len, err) < 0)
		return -1;
	uint64_t first = tide_range_div_up(off, tide_bitmap_granularity(bm));
	uint64_t end = off + len == bm->size ? bm->bits : (off + len) >> bm->shift;
	return for_chunks(bm, first, end, chunk_reset, err);
}

bool tide_bitmap_test(const struct tide_bitmap *bm, uint64_t off)
{
	if (off >= bm->size)
		return false;
	uint64_t bit = off >> bm->shift;
	const struct tide_bitmap_slot *slot = &bm->table[bit / CHUNK_BITS];
	/* The bitmap is const, but its lock does not belong to its value. */
	pthread_mutex_t *lock = is_shared_block(tide_bitmap_slot_load(slot)) ? NULL : (pthread_mutex_t *)&bm->lock;
	bool dirty;

	if (lock)
		pthread_mutex_lock(lock);
	dirty = tide_bitmap_slot_test(tide_bitmap_slot_load(slot), (unsigned)(bit % CHUNK_BITS));
	if (lock)
		pthread_mutex_unlock(lock);
	return dirty;
}

static uint64_t find_dirty(const struct tide_bitmap *bm, uint64_t bit)
{
	while (bit < bm->bits) {
		uint64_t index = tide_bitmap_next_chunk(bm, bit / CHUNK_BITS);

		if (index == bm->chunks)
			break;
		bit = TIDE_MAX(bit, index * CHUNK_BITS);
		unsigned pos = tide_bitmap_slot_find_dirty(bm->table[index], (unsigned)(bit % CHUNK_BITS));
		bit = index * CHUNK_BITS + pos;
		if (pos < CHUNK_BITS)
			return bit;
	}
	return bm->bits;
}

static uint64_t find_clean(const struct tide_bitmap *bm, uint64_t bit, uint64_t limit)
{
	while (bit < limit) {
		uint64_t index = bit / CHUNK_BITS;
		unsigned pos = tide_bitmap_slot_find_clean(bm->table[index], (unsigned)(bit % CHUNK_BITS));

		bit = index * CHUNK_BITS + pos;
		if (pos < CHUNK_BITS)
			break;
	}
	return TIDE_MIN(bit, limit);
}

int tide_bitmap_next_dirty(const struct tide_bitmap *bm, uint64_t off, uint64_t len_max, uint64_t *start, uint64_t *len)
{
	if (off >= bm->size || !len_max)
		return 0;
	uint64_t bit = find_dirty(bm, off >> bm->shift);
	if (bit == bm->bits)
		return 0;
	*start = TIDE_MAX(off, bit << bm->shift);
	uint64_t stop = *start + TIDE_MIN(len_max, bm->size - *start);
	bit = find_clean(bm, bit, ((stop - 1) >> bm->shift) + 1);
	/* The last granule's end need not be representable: compare bits, not bytes. */
	*len = (bit > (stop - 1) >> bm->shift ? stop : bit << bm->shift) - *start;
	return 1;
}

/* ---- whole bitmaps ----------------------------------------------------------------- */

/* Once a granule of the target is set, the source bits within it are skipped. */
static int merge_runs(struct tide_bitmap *dst, const struct tide_bitmap *src, struct tide_error *err)
{
	uint64_t off = 0, start, len;

	while (tide_bitmap_next_dirty(src, off, UINT64_MAX, &start, &len)) {
		if (tide_bitmap_set(dst, start, len, err) < 0)
			return -1;
		off = start + len;
		if (off > ((dst->bits - 1) << dst->shift))
			break;
		off = tide_range_align_up(off, tide_bitmap_granularity(dst));
	}
	return 0;
}

int tide_bitmap_merge(struct tide_bitmap *dst, const struct tide_bitmap *src, struct tide_error *err)
{
	if (dst->size != src->size)
		return tide_error_set(err, TIDE_E_REFUSED,
		                      "Bitmaps are of different sizes (destination size is %" PRIu64
		                      ", source size is %" PRIu64 ") and can't be merged",
		                      dst->size, src->size);
	if (dst == src)
		return 0;
	if (dst->shift != src->shift)
		return merge_runs(dst, src, err);
	for (uint64_t i = tide_bitmap_next_chunk(src, 0); i < src->chunks; i = tide_bitmap_next_chunk(src, i + 1)) {
		if (tide_bitmap_slot_merge(&dst->table[i], src->table[i], &dst->count, err) < 0)
			return -1;
		summary_set(dst, i);
	}
	return 0;
}

int tide_bitmap_resize(struct tide_bitmap *bm, uint64_t disk_size, struct tide_error *err)
{
	TIDE_AUTOBITMAP struct tide_bitmap *to = tide_bitmap_new(disk_size, tide_bitmap_granularity(bm), err);

	if (!to)
		return -1;
	unsigned cut = (unsigned)(to->bits % CHUNK_BITS);
	uint64_t last = to->chunks - 1, gone = 0;
	if (cut && last < bm->chunks) {
		if (tide_bitmap_slot_reset(&bm->table[last], cut, CHUNK_BITS, &gone, err) < 0)
			return -1;
		bm->count -= gone;
		summary_renew(bm, last);
	}

	/* No call fails from here on. Slots that are not moved are freed with the old table. */
	for (uint64_t i = tide_bitmap_next_chunk(bm, 0); i < to->chunks && i < bm->chunks;
	     i = tide_bitmap_next_chunk(bm, i + 1)) {
		to->table[i] = bm->table[i];
		bm->table[i].v = 0;
		to->count += tide_bitmap_slot_count(to->table[i]);
		summary_set(to, i);
	}
	struct tide_bitmap old = *bm;
	*bm = *to;
	*to = old;
	return 0;
}

void tide_bitmap_sha256(const struct tide_bitmap *bm, char hex[65])
{
	uint64_t words[TIDE_BITMAP_BLOCK_WORDS] = { 0 };
	struct tide_sha256 sha;

	tide_checksum_sha256_init(&sha);
	for (uint64_t i = 0; i < bm->chunks; i++)
		tide_checksum_sha256_update(&sha, tide_bitmap_slot_words(bm->table[i], words),
		                            (size_t)tide_range_div_up(chunk_bits(bm, i), 64) * 8);
	if (!bm->chunks)
		tide_checksum_sha256_update(&sha, words, 8);
	tide_checksum_sha256_final(&sha, hex);
}

/* ---- chunks ------------------------------------------------------------------------ */

uint64_t tide_bitmap_chunks(const struct tide_bitmap *bm)
{
	return bm->chunks;
}

uint64_t tide_bitmap_next_chunk(const struct tide_bitmap *bm, uint64_t index)
{
	if (index >= bm->chunks)
		return bm->chunks;
	uint64_t words = tide_range_div_up(bm->chunks, 64);
	uint64_t w = index / 64, word = bm->summary[w] & UINT64_MAX << (index % 64);
	while (!word && ++w < words)
		word = bm->summary[w];
	return word ? w * 64 + (unsigned)__builtin_ctzll(word) : bm->chunks;
}

enum tide_bitmap_chunk tide_bitmap_get_chunk(const struct tide_bitmap *bm, uint64_t index,
                                             uint8_t buf[TIDE_BITMAP_CHUNK_BYTES], const uint8_t **data)
{
	struct tide_bitmap_slot slot = index < bm->chunks ? bm->table[index] : (struct tide_bitmap_slot){ 0 };

	*data = (const uint8_t *)tide_bitmap_slot_words(slot, (uint64_t *)(void *)buf);
	if (tide_bitmap_slot_is_clean(slot))
		return TIDE_BITMAP_CHUNK_CLEAN;
	if (tide_bitmap_slot_find_clean(slot, 0) >= chunk_bits(bm, index))
		return TIDE_BITMAP_CHUNK_FULL;
	return TIDE_BITMAP_CHUNK_MIXED;
}

unsigned tide_bitmap_get_list(const struct tide_bitmap *bm, uint64_t index, const uint16_t **positions)
{
	const struct tide_bitmap_list_slot *list = index < bm->chunks ? tide_bitmap_slot_list(bm->table[index]) : NULL;

	*positions = list ? list->pos : NULL;
	return list && list->n < chunk_bits(bm, index) ? list->n : 0;
}

static int check_index(const struct tide_bitmap *bm, uint64_t index, struct tide_error *err)
{
	if (index < bm->chunks)
		return 0;
	return tide_error_set(err, TIDE_E_REFUSED, "Chunk %" PRIu64 " is not within the bitmap of %" PRIu64 " chunks",
	                      index, bm->chunks);
}

/* Replaces a chunk's slot and updates count and summary. */
static void exchange(struct tide_bitmap *bm, uint64_t index, struct tide_bitmap_slot slot)
{
	bm->count -= tide_bitmap_slot_count(bm->table[index]);
	tide_bitmap_slot_drop(&bm->table[index]);
	bm->table[index] = slot;
	bm->count += tide_bitmap_slot_count(slot);
	summary_renew(bm, index);
}

int tide_bitmap_put_chunk(struct tide_bitmap *bm, uint64_t index, const uint8_t *data, struct tide_error *err)
{
	uint64_t words[TIDE_BITMAP_BLOCK_WORDS];
	struct tide_bitmap_slot slot = { 0 };

	if (check_index(bm, index, err) < 0)
		return -1;
	memcpy(words, data ? (const void *)data : tide_bitmap_slot_ones, sizeof(words));
	if (chunk_bits(bm, index) < CHUNK_BITS)
		tide_bitmap_block_reset(words, chunk_bits(bm, index), CHUNK_BITS);
	if (tide_bitmap_slot_put(&slot, words, err) < 0)
		return -1;
	exchange(bm, index, slot);
	return 0;
}

int tide_bitmap_put_list(struct tide_bitmap *bm, uint64_t index, const uint16_t *positions, unsigned n,
                         struct tide_error *err)
{
	struct tide_bitmap_slot slot = { 0 };

	if (check_index(bm, index, err) < 0)
		return -1;
	while (n && positions[n - 1] >= chunk_bits(bm, index))
		n--;
	if (n && tide_bitmap_slot_put_list(&slot, positions, n, err) < 0)
		return -1;
	exchange(bm, index, slot);
	return 0;
}
