/*
 * Reports the content of the source at a place.  The extents of its chain are joined into a stretch of data
 * that ends where whole blocks of zeroes begin.  Zeroes within a block that also holds data
 * belong to the data, as a part of their own: the caller copies whole blocks but need not read
 * such a part.
 */
#include <string.h>

#include "base/error.h"
#include "base/range.h"
#include "base/sysio.h"
#include "copy_impl.h"

static int extent_at(struct tide_image *source, uint64_t off, uint64_t len, struct tide_extent *x,
                     struct tide_error *err)
{
	uint64_t size = tide_image_size(source);

	if (off < size)
		return tide_image_extent(source, off, TIDE_MIN(len, size - off), x, err);
	*x = (struct tide_extent){ .off = off, .len = len, .kind = TIDE_EXTENT_ZERO };
	return 0;
}

/* Finds the end of the zeroes at off, at most `end`.  *x is the last extent seen: data there, if there is any. */
static int zeroes_end(struct tide_image *source, uint64_t off, uint64_t end, uint64_t *zero_end, struct tide_extent *x,
                      struct tide_error *err)
{
	for (*zero_end = off; *zero_end < end; *zero_end += x->len) {
		if (extent_at(source, *zero_end, end - *zero_end, x, err) < 0)
			return -1;
		if (x->kind == TIDE_EXTENT_DATA)
			break;
	}
	return 0;
}

/* Appends an extent, or extends the last part with it if that is of the same kind and adjoins it. */
static void add(struct tide_copy_stretch *s, const struct tide_extent *x, uint64_t len)
{
	struct tide_copy_part p = {
		.off = x->off,
		.len = len,
		.zero = x->kind != TIDE_EXTENT_DATA,
		.fd = -1,
	};
	struct tide_copy_part *last = s->n ? &s->part[s->n - 1] : NULL;

	if (!p.zero && x->mapped) {
		p.fd = x->map_fd;
		p.at = x->map_off;
	}
	if (last && last->zero == p.zero && last->fd == p.fd && (p.fd < 0 || last->at + last->len == p.at))
		last->len += len;
	else
		s->part[s->n++] = p;
}

/* Removes parts after the stretch: only whole blocks that are described completely stay. */
static void cut(struct tide_copy_stretch *s)
{
	while (s->n && s->part[s->n - 1].off >= s->off + s->len)
		s->n--;
	if (s->n)
		s->part[s->n - 1].len = s->off + s->len - s->part[s->n - 1].off;
}

/* Adds one block, whatever it holds, and the data that continues after it.  x: its first extent.  0: too many parts. */
static int add_block(struct tide_image *source, uint64_t block, uint64_t end, struct tide_extent x,
                     struct tide_copy_stretch *s, struct tide_error *err)
{
	uint64_t pos = s->off + s->len, stop = TIDE_MIN(tide_range_align_down(pos, block) + block, end);

	while (pos < stop) {
		uint64_t len;

		if (pos != x.off && extent_at(source, pos, end - pos, &x, err) < 0)
			return -1;
		/* Zeroes that continue after this block are left to the caller, who looks for whole blocks of them. */
		len = TIDE_MIN(x.len, (x.kind == TIDE_EXTENT_DATA ? end : stop) - pos);
		if (s->n == TIDE_COPY_PARTS_MAX) {
			cut(s);
			return 0;
		}
		add(s, &x, len);
		pos += len;
		stop = TIDE_MIN(tide_range_align_up(pos, block), end);
	}
	s->len = pos - s->off;
	return 1;
}

int tide_copy_map(struct tide_image *source, uint64_t block, uint64_t off, uint64_t len, struct tide_copy_stretch *s,
                  struct tide_error *err)
{
	uint64_t end = off + len, zero_end;
	struct tide_extent x;
	int rc;

	s->off = off;
	s->len = s->zeroes = 0;
	s->n = 0;
	while (s->off + s->len < end) {
		uint64_t pos = s->off + s->len;

		if (zeroes_end(source, pos, end, &zero_end, &x, err) < 0)
			return -1;
		if (zero_end < end)
			zero_end = tide_range_align_down(zero_end, block);
		if (zero_end > pos) {
			s->zeroes = zero_end - pos;
			return 0;
		}
		/* Less than a block of zeroes: they are the beginning of this block. */
		if (x.off != pos)
			x = (struct tide_extent){ .off = pos, .len = x.off - pos, .kind = TIDE_EXTENT_ZERO };
		rc = add_block(source, block, end, x, s, err);
		if (rc < 0)
			return -1;
		if (rc > 0)
			continue;
		if (s->len == 0)
			s->len = TIDE_MIN(block, len); /* without parts: cut has left none */
		return 0;
	}
	return 0;
}
