/*
 * Reading ahead.  Scattered data that is not in memory needs many reads under way at once, and
 * the plan knows what will be wanted: so the kernel is told some way ahead of the workers.  What
 * is in memory already is left alone; what was brought in for the copy is given up behind it: a
 * backup must not push out what others use.
 */
#include <fcntl.h>

#include "copy_impl.h"
#include "base/range.h"

#define WINDOW    (UINT64_C(16) << 20)
#define STEP      (UINT64_C(1) << 20)
#define AT_HAND   64u /* when so many ranges were in memory, only one in LOOK_EACH is looked at */
#define LOOK_EACH 16u

/* False when all of it was in memory. */
static bool fetch(struct tide_copy_engine *e, const struct tide_extent *x)
{
	if (tide_copy_get_is_cached(x->map_fd, x->map_off)) {
		if (!tide_copy_get_is_cached(x->map_fd, x->map_off + x->len - 1))
			posix_fadvise(x->map_fd, (off_t)x->map_off, (off_t)x->len, POSIX_FADV_WILLNEED);
		return false;
	}
	if (!tide_copy_get_is_cached(x->map_fd, x->map_off + x->len - 1) && e->brought)
		(void)!tide_bitmap_set(e->brought, x->off, x->len, NULL);
	posix_fadvise(x->map_fd, (off_t)x->map_off, (off_t)x->len, POSIX_FADV_WILLNEED);
	return true;
}

static bool fetch_range(struct tide_copy_engine *e, uint64_t off, uint64_t len)
{
	uint64_t end = TIDE_MIN(off + len, tide_image_size(e->copy->source));
	struct tide_extent x;
	bool fetched = false;

	for (; off < end; off += x.len) {
		if (tide_image_extent(e->copy->source, off, end - off, &x, NULL) < 0)
			break;
		if (x.kind == TIDE_EXTENT_DATA && x.mapped && fetch(e, &x))
			fetched = true;
	}
	return fetched;
}

void tide_copy_ahead(struct tide_copy_engine *e)
{
	uint64_t off, len;

	if (tide_copy_get_is_direct(e))
		return;
	pthread_mutex_lock(&e->work.lock);
	while (e->ahead_bytes < e->taken_bytes + WINDOW &&
	       tide_bitmap_next_dirty(e->plan, e->ahead, STEP, &off, &len)) {
		bool look = e->at_hand < AT_HAND || e->at_hand % LOOK_EACH == 0, fetched = false;

		e->ahead = off + len;
		e->ahead_bytes += len;
		if (look) {
			pthread_mutex_unlock(&e->work.lock);
			fetched = fetch_range(e, off, len);
			pthread_mutex_lock(&e->work.lock);
		}
		e->at_hand = fetched ? 0 : e->at_hand + 1;
	}
	pthread_mutex_unlock(&e->work.lock);
}

void tide_copy_ahead_drop(struct tide_copy_engine *e, const struct tide_copy_stretch *s)
{
	if (!e->brought || tide_bitmap_count(e->brought) == 0)
		return;
	for (size_t i = 0; i < s->n; i++) {
		const struct tide_copy_part *p = &s->part[i];

		if (p->fd >= 0 && tide_bitmap_test(e->brought, p->off))
			posix_fadvise(p->fd, (off_t)p->at, (off_t)p->len, POSIX_FADV_DONTNEED);
	}
}
