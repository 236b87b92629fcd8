/*
 * Bitmaps for tests: made and changed by calls that must succeed.
 */
#ifndef TIDE_BITMAP_SAMPLE_H
#define TIDE_BITMAP_SAMPLE_H

#include "bitmap/bitmap.h"
#include "unit.h"

#define K     UINT64_C(1024)
#define M     (K * K)
#define G     (K * M)
#define T     (K * G)
#define CHUNK TIDE_BITMAP_CHUNK_BITS

static inline uint64_t rnd(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state * UINT64_C(0x2545f4914f6cdd1d) >> 16;
}

/* A bitmap that must come to be. */
static inline struct tide_bitmap *make(uint64_t size, uint64_t granularity)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_bitmap *bm = tide_bitmap_new(size, granularity, &err);

	if (!CHECK_PTR(bm, &err))
		exit(1);
	return bm;
}

static inline void set(struct tide_bitmap *bm, uint64_t off, uint64_t len)
{
	struct tide_error err = TIDE_ERROR_INIT;

	CHECK_OK(tide_bitmap_set(bm, off, len, &err), &err);
}

static inline void reset(struct tide_bitmap *bm, uint64_t off, uint64_t len)
{
	struct tide_error err = TIDE_ERROR_INIT;

	CHECK_OK(tide_bitmap_reset(bm, off, len, &err), &err);
}

static inline void merge(struct tide_bitmap *dst, const struct tide_bitmap *src)
{
	struct tide_error err = TIDE_ERROR_INIT;

	CHECK_OK(tide_bitmap_merge(dst, src, &err), &err);
}

#endif
