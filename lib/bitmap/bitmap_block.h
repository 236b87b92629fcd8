/*
 * One block of a dirty bitmap: the 32768 bits of a chunk, as 512 words.
 *
 * The words are little-endian in memory whatever the host, so that the bytes of a block are
 * what is stored and hashed: bit i is bit i % 8 of byte i / 8.  Ranges of bits are half-open
 * and not empty.  Internal to bitmap.c.
 */
#ifndef TIDE_BITMAP_BLOCK_H
#define TIDE_BITMAP_BLOCK_H

#include <endian.h>

#include "bitmap.h"

#define TIDE_BITMAP_BLOCK_WORDS (TIDE_BITMAP_CHUNK_BYTES / 8)

/* Counts set bits. Compilers may not assume the processor's instruction for this and would call a function. */
static inline unsigned tide_bitmap_word_count(uint64_t v)
{
	v -= v >> 1 & UINT64_C(0x5555555555555555);
	v = (v & UINT64_C(0x3333333333333333)) + (v >> 2 & UINT64_C(0x3333333333333333));
	v = (v + (v >> 4)) & UINT64_C(0x0f0f0f0f0f0f0f0f);
	return (unsigned)(v * UINT64_C(0x0101010101010101) >> 56);
}

/* Bits [lo, hi) of word w of a block, as it lies in memory. */
static inline uint64_t tide_bitmap_block_mask(unsigned w, unsigned lo, unsigned hi)
{
	uint64_t mask = UINT64_MAX;

	if (lo > w * 64)
		mask &= UINT64_MAX << (lo - w * 64);
	if (hi < w * 64 + 64)
		mask &= UINT64_MAX >> (w * 64 + 64 - hi);
	return htole64(mask);
}

/* Sets bits [lo, hi); thread-safe. Returns how many of them were clean. */
static inline unsigned tide_bitmap_block_set(uint64_t *block, unsigned lo, unsigned hi)
{
	unsigned added = 0;

	for (unsigned w = lo / 64; w <= (hi - 1) / 64; w++) {
		uint64_t mask = tide_bitmap_block_mask(w, lo, hi);

		if ((__atomic_load_n(&block[w], __ATOMIC_RELAXED) & mask) == mask)
			continue;
		uint64_t old = __atomic_fetch_or(&block[w], mask, __ATOMIC_RELAXED);
		added += tide_bitmap_word_count(mask & ~old);
	}
	return added;
}

static inline unsigned tide_bitmap_block_reset(uint64_t *block, unsigned lo, unsigned hi)
{
	unsigned removed = 0;

	for (unsigned w = lo / 64; w <= (hi - 1) / 64; w++) {
		uint64_t mask = tide_bitmap_block_mask(w, lo, hi);

		removed += tide_bitmap_word_count(block[w] & mask);
		block[w] &= ~mask;
	}
	return removed;
}

static inline unsigned tide_bitmap_block_count(const uint64_t *block)
{
	unsigned n = 0;

	for (unsigned w = 0; w < TIDE_BITMAP_BLOCK_WORDS; w++)
		if (block[w])
			n += tide_bitmap_word_count(block[w]);
	return n;
}

static inline bool tide_bitmap_block_is_clean(const uint64_t *block)
{
	for (unsigned w = 0; w < TIDE_BITMAP_BLOCK_WORDS; w++)
		if (block[w])
			return false;
	return true;
}

/* Are the first `bits` bits of the block set? */
static inline bool tide_bitmap_block_is_full(const uint64_t *block, unsigned bits)
{
	for (unsigned w = 0; w * 64 < bits; w++) {
		uint64_t mask = tide_bitmap_block_mask(w, 0, bits);

		if ((block[w] & mask) != mask)
			return false;
	}
	return true;
}

/* The first bit at or after pos that differs from `value` (0 or all ones), or TIDE_BITMAP_CHUNK_BITS. */
static inline unsigned tide_bitmap_block_find_not(const uint64_t *block, unsigned pos, uint64_t value)
{
	for (unsigned w = pos / 64; w < TIDE_BITMAP_BLOCK_WORDS; w++) {
		uint64_t word = le64toh(block[w]) ^ value;

		if (w == pos / 64)
			word &= UINT64_MAX << (pos % 64);
		if (word)
			return w * 64 + (unsigned)__builtin_ctzll(word);
	}
	return TIDE_BITMAP_CHUNK_BITS;
}

#endif
