#include "bitmap.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "bitmap_block.h"
#include "checksum.h"
#include "error.h"
#include "mem.h"
#include "range.h"

#define CHUNK_BITS TIDE_BITMAP_CHUNK_BITS

/*
 * More would make the table itself larger than 256 MiB.  A sidecar or an image may claim any size of its disk; 512 TiB can
 * be had with the finest granularity, 64 PiB with the usual one.
 */
#define CHUNKS_MAX (UINT64_C(1) << 25)

/*
 * `full` stands only for a chunk all of whose 32768 bits exist.  The partial chunk at the
 * end of the disk has a block of its own even when all its bits are set.
 */
struct tide_bitmap {
	uint64_t size;
	unsigned shift;
	uint64_t bits, chunks, count;
	uint64_t **table;  /* NULL: clean; full_block(): all dirty */
	uint64_t *summary; /* one bit a chunk: not clean */
};

static const uint64_t full[TIDE_BITMAP_BLOCK_WORDS] = { [0 ... TIDE_BITMAP_BLOCK_WORDS - 1] = UINT64_MAX };
static const uint64_t clean[TIDE_BITMAP_BLOCK_WORDS];

/* Never written to: whoever finds it has nothing left to set, and whoever resets takes a copy first. */
static uint64_t *full_block(void)
{
	return (uint64_t *)full;
}

/* ---- the table --------------------------------------------------------------------- */

static uint64_t *block_copy(const void *block, struct tide_error *err)
{
	uint64_t *copy = tide_mem_realloc(NULL, 1, TIDE_BITMAP_CHUNK_BYTES, err);

	if (copy)
		memcpy(copy, block, TIDE_BITMAP_CHUNK_BYTES);
	return copy;
}

static unsigned dirty_bits(const uint64_t *block)
{
	return block == full ? CHUNK_BITS : tide_bitmap_block_count(block);
}

/* How many bits of a chunk exist. */
static unsigned chunk_bits(const struct tide_bitmap *bm, uint64_t index)
{
	return (unsigned)TIDE_MIN((uint64_t)CHUNK_BITS, bm->bits - index * CHUNK_BITS);
}

static void summary_set(struct tide_bitmap *bm, uint64_t index)
{
	__atomic_fetch_or(&bm->summary[index / 64], UINT64_C(1) << (index % 64), __ATOMIC_RELAXED);
}

static void chunk_install(struct tide_bitmap *bm, uint64_t index, uint64_t *block)
{
	bm->table[index] = block;
	summary_set(bm, index);
}

static void chunk_drop(struct tide_bitmap *bm, uint64_t index)
{
	if (bm->table[index] != full)
		free(bm->table[index]);
	bm->table[index] = NULL;
	bm->summary[index / 64] &= ~(UINT64_C(1) << (index % 64));
}

/* Gives a full chunk a block that can be written to. */
static int chunk_own(struct tide_bitmap *bm, uint64_t index, struct tide_error *err)
{
	if (bm->table[index] != full)
		return 0;
	uint64_t *block = block_copy(full, err);
	if (!block)
		return -1;
	bm->table[index] = block;
	return 0;
}

/* Several threads may set; each chunk is installed once, and the one who did puts it in the summary. */
static int chunk_set(struct tide_bitmap *bm, uint64_t index, unsigned lo, unsigned hi, struct tide_error *err)
{
	uint64_t **slot = &bm->table[index];
	uint64_t *block = __atomic_load_n(slot, __ATOMIC_ACQUIRE);

	if (!block && hi - lo == CHUNK_BITS &&
	    __atomic_compare_exchange_n(slot, &block, full_block(), false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
		summary_set(bm, index);
		__atomic_fetch_add(&bm->count, CHUNK_BITS, __ATOMIC_RELAXED);
		return 0;
	}
	if (!block) {
		uint64_t *fresh = tide_mem_alloc(1, TIDE_BITMAP_CHUNK_BYTES, err);

		if (!fresh)
			return -1;
		if (__atomic_compare_exchange_n(slot, &block, fresh, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
			summary_set(bm, index);
			block = fresh;
		} else {
			free(fresh);
		}
	}
	if (block == full)
		return 0;
	unsigned added = tide_bitmap_block_set(block, lo, hi);
	if (added)
		__atomic_fetch_add(&bm->count, added, __ATOMIC_RELAXED);
	return 0;
}

static int chunk_reset(struct tide_bitmap *bm, uint64_t index, unsigned lo, unsigned hi, struct tide_error *err)
{
	uint64_t *block = bm->table[index];

	if (!block)
		return 0;
	if (lo == 0 && hi >= chunk_bits(bm, index)) {
		bm->count -= dirty_bits(block);
		chunk_drop(bm, index);
		return 0;
	}
	if (chunk_own(bm, index, err) < 0)
		return -1;
	block = bm->table[index];
	unsigned removed = tide_bitmap_block_reset(block, lo, hi);
	bm->count -= removed;
	if (removed && tide_bitmap_block_is_clean(block))
		chunk_drop(bm, index);
	return 0;
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
		tide_error_hint(err, "a bitmap has at most %" PRIu64 " granules: choose larger ones", CHUNKS_MAX * CHUNK_BITS);
		return NULL;
	}

	TIDE_AUTOBITMAP struct tide_bitmap *bm = tide_mem_alloc(1, sizeof(*bm), err);
	if (!bm)
		return NULL;
	bm->size = disk_size;
	bm->shift = tide_range_shift(granularity);
	bm->bits = bits;
	bm->chunks = chunks;
	/* Large blocks come from the kernel zeroed and cost nothing until they are touched. */
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
	unsigned pos = (unsigned)(bit % CHUNK_BITS);
	const uint64_t *block = __atomic_load_n(&bm->table[bit / CHUNK_BITS], __ATOMIC_ACQUIRE);
	return block && (le64toh(__atomic_load_n(&block[pos / 64], __ATOMIC_RELAXED)) >> (pos % 64) & 1);
}

static uint64_t find_dirty(const struct tide_bitmap *bm, uint64_t bit)
{
	while (bit < bm->bits) {
		uint64_t index = tide_bitmap_next_chunk(bm, bit / CHUNK_BITS);

		if (index == bm->chunks)
			break;
		bit = TIDE_MAX(bit, index * CHUNK_BITS);
		unsigned pos = tide_bitmap_block_find_not(bm->table[index], (unsigned)(bit % CHUNK_BITS), 0);
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
		const uint64_t *block = bm->table[index];

		if (!block)
			return bit;
		unsigned pos = CHUNK_BITS;
		if (block != full)
			pos = tide_bitmap_block_find_not(block, (unsigned)(bit % CHUNK_BITS), UINT64_MAX);
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

static int merge_chunk(struct tide_bitmap *dst, uint64_t index, const uint64_t *from, struct tide_error *err)
{
	uint64_t *to = dst->table[index];

	if (from == full)
		return chunk_set(dst, index, 0, CHUNK_BITS, err);
	if (to == full)
		return 0;
	if (!to) {
		to = block_copy(from, err);
		if (!to)
			return -1;
		chunk_install(dst, index, to);
		dst->count += dirty_bits(to);
		return 0;
	}
	for (unsigned w = 0; w < TIDE_BITMAP_BLOCK_WORDS; w++) {
		if (!(from[w] & ~to[w]))
			continue;
		dst->count += tide_bitmap_word_count(from[w] & ~to[w]);
		to[w] |= from[w];
	}
	return 0;
}

/* Source bits behind a granule of the target that is set already need no look. */
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
	for (uint64_t i = tide_bitmap_next_chunk(src, 0); i < src->chunks; i = tide_bitmap_next_chunk(src, i + 1))
		if (merge_chunk(dst, i, src->table[i], err) < 0)
			return -1;
	return 0;
}

int tide_bitmap_resize(struct tide_bitmap *bm, uint64_t disk_size, struct tide_error *err)
{
	TIDE_AUTOBITMAP struct tide_bitmap *to = tide_bitmap_new(disk_size, tide_bitmap_granularity(bm), err);

	if (!to)
		return -1;
	unsigned cut = (unsigned)(to->bits % CHUNK_BITS);
	uint64_t last = to->chunks - 1;
	if (cut && last < bm->chunks && chunk_own(bm, last, err) < 0)
		return -1;

	/* Nothing fails from here on.  What stays behind goes with the old table. */
	for (uint64_t i = tide_bitmap_next_chunk(bm, 0); i < to->chunks && i < bm->chunks;
	     i = tide_bitmap_next_chunk(bm, i + 1)) {
		chunk_install(to, i, bm->table[i]);
		bm->table[i] = NULL;
		to->count += dirty_bits(to->table[i]);
	}
	if (cut && to->table[last]) {
		to->count -= tide_bitmap_block_reset(to->table[last], cut, CHUNK_BITS);
		if (tide_bitmap_block_is_clean(to->table[last]))
			chunk_drop(to, last);
	}
	struct tide_bitmap old = *bm;
	*bm = *to;
	*to = old;
	return 0;
}

void tide_bitmap_sha256(const struct tide_bitmap *bm, char hex[65])
{
	struct tide_sha256 sha;

	tide_checksum_sha256_init(&sha);
	for (uint64_t i = 0; i < bm->chunks; i++)
		tide_checksum_sha256_update(&sha, bm->table[i] ? bm->table[i] : clean,
		                            (size_t)tide_range_div_up(chunk_bits(bm, i), 64) * 8);
	if (!bm->chunks)
		tide_checksum_sha256_update(&sha, clean, 8);
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

enum tide_bitmap_chunk tide_bitmap_get_chunk(const struct tide_bitmap *bm, uint64_t index, const uint8_t **data)
{
	const uint64_t *block = index < bm->chunks ? bm->table[index] : NULL;

	*data = (const uint8_t *)(block ? block : clean);
	if (!block)
		return TIDE_BITMAP_CHUNK_CLEAN;
	if (block == full || tide_bitmap_block_is_full(block, chunk_bits(bm, index)))
		return TIDE_BITMAP_CHUNK_FULL;
	return TIDE_BITMAP_CHUNK_MIXED;
}

int tide_bitmap_put_chunk(struct tide_bitmap *bm, uint64_t index, const uint8_t *data, struct tide_error *err)
{
	if (index >= bm->chunks)
		return tide_error_set(err, TIDE_E_REFUSED,
		                      "Chunk %" PRIu64 " is not within the bitmap of %" PRIu64 " chunks", index,
		                      bm->chunks);
	unsigned bits = chunk_bits(bm, index);
	TIDE_AUTOFREE uint64_t *block = block_copy(data ? (const void *)data : full, err);
	if (!block)
		return -1;
	if (bits < CHUNK_BITS)
		tide_bitmap_block_reset(block, bits, CHUNK_BITS);
	if (bm->table[index]) {
		bm->count -= dirty_bits(bm->table[index]);
		chunk_drop(bm, index);
	}
	unsigned n = dirty_bits(block);
	bm->count += n;
	if (n == CHUNK_BITS) {
		chunk_install(bm, index, full_block());
	} else if (n) {
		chunk_install(bm, index, block);
		block = NULL;
	}
	return 0;
}
