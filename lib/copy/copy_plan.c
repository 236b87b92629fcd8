#include "copy_impl.h"
#include "base/range.h"

struct tide_bitmap *tide_copy_plan(uint64_t size, uint64_t unit, const struct tide_bitmap *dirty,
                                   struct tide_error *err)
{
	TIDE_AUTOBITMAP struct tide_bitmap *plan = tide_bitmap_new(size, unit, err);
	struct tide_bitmap *result;
	uint64_t off = 0, start, len;

	if (!plan)
		return NULL;
	if (!dirty) {
		if (size && tide_bitmap_set(plan, 0, size, err) < 0)
			return NULL;
	} else {
		while (off < tide_bitmap_size(dirty) && tide_bitmap_next_dirty(dirty, off, UINT64_MAX, &start, &len)) {
			if (start >= size)
				break;
			if (tide_bitmap_set(plan, start, TIDE_MIN(len, size - start), err) < 0)
				return NULL;
			off = start + len;
		}
	}
	result = plan;
	plan = NULL;
	return result;
}

uint64_t tide_copy_plan_piece(const struct tide_copy *c, uint64_t most)
{
	uint64_t piece = most;

	while (c->piece_max && piece > c->unit && piece > c->piece_max)
		piece /= 2;
	while (c->speed && piece > c->unit && piece > c->speed / 10)
		piece /= 2;
	return TIDE_MAX(piece, c->unit);
}

void tide_copy_plan_skip_zeroes(struct tide_copy_engine *e)
{
	struct tide_copy *c = e->copy;
	uint64_t size = tide_image_size(c->source), off = 0, start, len;
	struct tide_extent x;

	while (tide_bitmap_next_dirty(e->plan, off, UINT64_MAX, &start, &len)) {
		for (off = start; off < start + len; off += x.len) {
			x = (struct tide_extent){ .off = off, .len = start + len - off, .kind = TIDE_EXTENT_ZERO };
			if (off < size &&
			    tide_image_extent(c->source, off, TIDE_MIN(start + len, size) - off, &x, NULL) < 0)
				return;
			if (x.kind != TIDE_EXTENT_DATA && (tide_bitmap_reset(e->plan, off, x.len, NULL) < 0 ||
			                                   tide_bitmap_reset(c->todo, off, x.len, NULL) < 0))
				return;
		}
	}
	c->offset = c->len - tide_bitmap_count(c->todo) * c->unit;
}
