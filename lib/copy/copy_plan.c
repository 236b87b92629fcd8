/*
 * Decides what to copy and how: the units of the plan, the way that the user has asked for, the
 * size of pieces and buffers, and the number of workers.
 *
 * A piece is a power of two and at least a copy unit, so that it covers whole units.
 */
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "base/compiler.h"
#include "base/error.h"
#include "base/range.h"
#include "copy_impl.h"

#define PIECE_MAX (UINT64_C(1) << 20)
/* Compressed pieces are stored in order, and a worker that is early waits; with large pieces that is rare. */
#define PACK_MAX  (UINT64_C(4) << 20)
#define BATCH_LEN (UINT64_C(2) << 20)

int tide_copy_way_wanted(enum tide_copy_way *way, struct tide_error *err)
{
	static const struct {
		const char *name;
		enum tide_copy_way way;
	} names[] = {
		{ "reflink", TIDE_COPY_WAY_REFLINK }, { "kernel", TIDE_COPY_WAY_KERNEL }, { "rw", TIDE_COPY_WAY_RW },
		{ "direct", TIDE_COPY_WAY_DIRECT },   { "uring", TIDE_COPY_WAY_DIRECT },
	};
	const char *wanted = getenv("TIDE_COPY");

	*way = TIDE_COPY_WAY_AUTO;
	if (!wanted || !*wanted)
		return 0;
	for (size_t i = 0; i < TIDE_ARRAY_SIZE(names); i++) {
		if (!strcmp(wanted, names[i].name)) {
			*way = names[i].way;
			return 0;
		}
	}
	tide_error_set(err, TIDE_E_REFUSED, "TIDE_COPY is '%s': there is no such way to copy", wanted);
	return tide_error_hint(err, "reflink, kernel, rw, direct or uring; without it the best one is chosen");
}

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

uint64_t tide_copy_unit_min(const struct tide_image *target, bool compress)
{
	return compress ? tide_image_info(target)->cluster_size : tide_image_write_unit(target);
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

/* A plain copy waits for the disk, a compressed one for processors. */
unsigned tide_copy_plan_workers(const struct tide_copy *c)
{
	cpu_set_t set;
	unsigned cpus = sched_getaffinity(0, sizeof(set), &set) == 0 ? (unsigned)CPU_COUNT(&set) : 1;
	unsigned most =
	        c->compress ? TIDE_MIN(TIDE_MAX(cpus + 2, TIDE_COPY_WORKERS), TIDE_WORK_MAX) : TIDE_COPY_WORKERS;

	return c->workers ? TIDE_MIN(most, c->workers) : most;
}

/* The maximum size of a compressed piece.  A worker needs a second buffer, and should get several pieces. */
static uint64_t pack_most(const struct tide_copy *c, unsigned workers)
{
	uint64_t most = tide_work_share_buffer(c->share, 2 * workers, PACK_MAX);

	while (most > PIECE_MAX && c->len / most < 4 * workers)
		most /= 2;
	return most;
}

void tide_copy_plan_pieces(struct tide_copy_engine *e, unsigned workers)
{
	const struct tide_copy *c = e->copy;
	uint64_t most = tide_work_share_buffer(c->share, workers, BATCH_LEN);

	e->piece = tide_copy_plan_piece(c, c->compress ? pack_most(c, workers) : TIDE_MIN(PIECE_MAX, most));
	e->work.buf_size = e->batch > 1 && c->len >= TIDE_COPY_LARGE ? TIDE_MAX(most, e->piece) : e->piece;
}

void tide_copy_plan_work(struct tide_copy_engine *e, unsigned workers)
{
	const struct tide_copy *c = e->copy;
	uint64_t left = c->len - c->offset;

	e->work.workers = (unsigned)TIDE_MIN(tide_range_div_up(left, e->piece), workers);
	e->work.alone = left <= e->piece;
	e->work.len = c->len;
}
