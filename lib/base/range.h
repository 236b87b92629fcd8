/*
 * Half-open byte ranges [off, off + len), and arithmetic on them that must not wrap.
 */
#ifndef TIDE_RANGE_H
#define TIDE_RANGE_H

#include <stdbool.h>
#include <stdint.h>

/* Does [off, off + len) lie within [0, size)? False, without wrapping, when off + len overflows. */
static inline bool tide_range_is_within(uint64_t off, uint64_t len, uint64_t size)
{
	return off <= size && len <= size - off;
}

static inline bool tide_range_is_pow2(uint64_t v)
{
	return v != 0 && (v & (v - 1)) == 0;
}

/* align is a power of two. */
static inline uint64_t tide_range_align_down(uint64_t v, uint64_t align)
{
	return v & ~(align - 1);
}

/* align is a power of two; saturates at the largest aligned value. */
static inline uint64_t tide_range_align_up(uint64_t v, uint64_t align)
{
	return v > UINT64_MAX - (align - 1) ? UINT64_MAX & ~(align - 1) : (v + (align - 1)) & ~(align - 1);
}

static inline uint64_t tide_range_div_up(uint64_t v, uint64_t d)
{
	return v / d + (v % d != 0);
}

/* log2 of a power of two. */
static inline unsigned tide_range_shift(uint64_t pow2)
{
	return (unsigned)__builtin_ctzll(pow2);
}

/* v << shift into *out; false when bits would be lost. */
static inline bool tide_range_shl(uint64_t v, unsigned shift, uint64_t *out)
{
	if (shift >= 64 || (v << shift) >> shift != v)
		return false;
	*out = v << shift;
	return true;
}

#endif
