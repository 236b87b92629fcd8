#include "copy_impl.h"
#include "base/range.h"

#define SHARE_MAX  (UINT64_C(1) << 30)
#define MISSES_MAX 64u

static void note_done(struct tide_copy_engine *e, uint64_t off, uint64_t len)
{
	struct tide_copy *c = e->copy;

	pthread_mutex_lock(&e->work.lock);
	/* What cannot be noted is done once more. */
	if (tide_bitmap_reset(e->plan, off, len, NULL) == 0)
		(void)!tide_bitmap_reset(c->todo, off, len, NULL);
	c->offset = c->len - tide_bitmap_count(c->todo) * c->unit;
	pthread_mutex_unlock(&e->work.lock);
}

/* A run of the plan; false: sharing is pointless, or it is the end of the copy. */
static bool share_run(struct tide_copy_engine *e, struct tide_copy_mover *m, uint64_t off, uint64_t len,
                      unsigned *misses)
{
	struct tide_copy *c = e->copy;
	struct tide_copy_stretch s;
	uint64_t most = tide_copy_plan_piece(c, SHARE_MAX);

	for (uint64_t end = off + len; off < end; off += s.len + s.zeroes) {
		if (tide_copy_look(c->source, c->unit, off, TIDE_MIN(end - off, most), &s, NULL) < 0 ||
		    !tide_copy_throttle(e, UINT64_MAX, 0))
			return false;
		if (s.len == 0)
			continue;
		if (tide_copy_move(m, &s)) {
			*misses = 0;
			note_done(e, off, s.len);
			if (!tide_copy_throttle(e, UINT64_MAX, s.len))
				return false;
		} else if (++*misses == MISSES_MAX || (m->n_refused && !tide_image_backing(c->source))) {
			return false;
		}
	}
	return true;
}

void tide_copy_share(struct tide_copy_engine *e)
{
	struct tide_copy *c = e->copy;
	struct tide_copy_mover m;
	uint64_t off = 0, start, len;
	unsigned misses = 0;

	if (c->compress || c->detect_zeroes || (c->way != TIDE_COPY_WAY_AUTO && c->way != TIDE_COPY_WAY_REFLINK))
		return;
	tide_copy_move_init(&m, c->target, TIDE_COPY_WAY_REFLINK, c->target_reads_zero);
	while (tide_bitmap_next_dirty(e->plan, off, UINT64_MAX, &start, &len) && share_run(e, &m, start, len, &misses))
		off = start + len;
}
