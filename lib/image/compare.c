/*
 * The compare engine: workers take pieces of the range, split each by the extents of both chains,
 * read only what the extents cannot decide, and report the units that differ (compare.h).
 */
#include "compare.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "base/error.h"
#include "base/range.h"
#include "base/sysio.h"
#include "base/work.h"

#define PIECE (UINT64_C(1) << 20)
#define BLOCK (UINT64_C(256) << 10) /* bytes of one read; small enough to stay in a core's cache */

struct engine {
	struct tide_work work;
	struct tide_compare *compare;
	uint64_t piece;
	/* Under the lock: */
	uint64_t cursor;
};

/* One worker's piece. */
struct piece {
	struct engine *e;
	uint8_t *buf_a, *buf_b;
	uint64_t off, end;
	uint64_t run, run_end; /* units that differ and are not reported yet */
};

static bool is_stopped(const struct tide_compare *c)
{
	return tide_event_is_cancelled(c->sink);
}

/* ---- extents ----------------------------------------------------------------------- */

enum verdict { SAME, TEST_A, TEST_B, READ_BOTH };

/* The extent of a disk at off. Beyond the disk's end it is zeroes of any length. */
static int extent_at(struct tide_image *image, uint64_t off, uint64_t len, struct tide_extent *x,
                     struct tide_error *err)
{
	uint64_t size = tide_image_size(image);

	if (off < size)
		return tide_image_extent(image, off, TIDE_MIN(len, size - off), x, err);
	*x = (struct tide_extent){ .off = off, .len = len, .kind = TIDE_EXTENT_ZERO };
	return 0;
}

static struct tide_image *owner(struct tide_image *image, const struct tide_extent *x)
{
	for (unsigned i = 0; i < x->depth && image; i++)
		image = tide_image_backing(image);
	return image;
}

static bool is_same_file(int fd_a, int fd_b)
{
	struct stat a, b;

	if (fd_a == fd_b)
		return true;
	return fstat(fd_a, &a) == 0 && fstat(fd_b, &b) == 0 && a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

/* Do both sides refer to the same bytes? x and y are data at the same offset of their disks. */
static bool is_shared(struct tide_compare *c, const struct tide_extent *x, const struct tide_extent *y)
{
	struct tide_image *a = owner(c->a, x), *b = owner(c->b, y);

	if (x->mapped && y->mapped)
		return x->map_off == y->map_off && is_same_file(x->map_fd, y->map_fd);
	/* Compressed data is not mapped; it is shared when it comes from the same image, at the same offset. */
	return x->mapped == y->mapped && a && b && tide_image_is_same_file(a, b) &&
	       !strcmp(tide_image_format_name(a), tide_image_format_name(b));
}

/* A stretch of the disk that is compared in one way. */
struct stretch {
	enum verdict verdict;
	uint64_t len;
	struct tide_extent x, y; /* at its start */
};

/* Classifies what is at off, for at most len bytes. */
static int classify(struct tide_compare *c, uint64_t off, uint64_t len, struct stretch *s, struct tide_error *err)
{
	bool x, y;

	if (extent_at(c->a, off, len, &s->x, err) < 0 || extent_at(c->b, off, s->x.len, &s->y, err) < 0)
		return -1;
	s->len = TIDE_MIN(s->x.len, s->y.len);
	x = s->x.kind == TIDE_EXTENT_DATA;
	y = s->y.kind == TIDE_EXTENT_DATA;
	if (x && y)
		s->verdict = is_shared(c, &s->x, &s->y) ? SAME : READ_BOTH;
	else
		s->verdict = x ? TEST_A : y ? TEST_B : SAME;
	return 0;
}

/* ---- one piece --------------------------------------------------------------------- */

/* Reports the gathered units. */
static int report(struct piece *p, struct tide_error *err)
{
	struct tide_compare *c = p->e->compare;
	uint64_t len = p->run_end - p->run;
	int rc = 0;

	if (len == 0)
		return 0;
	pthread_mutex_lock(&p->e->work.lock);
	if (!p->e->work.stop) {
		c->differing += len;
		rc = c->differs(c, p->run, len, err);
	}
	pthread_mutex_unlock(&p->e->work.lock);
	p->run = p->run_end = 0;
	return rc;
}

/* Marks the unit that holds off as different; *next is where the next unit begins. */
static int mark(struct piece *p, uint64_t off, uint64_t *next, struct tide_error *err)
{
	uint64_t start = tide_range_align_down(off, p->e->compare->unit);

	*next = TIDE_MIN(start + p->e->compare->unit, p->end);
	start = TIDE_MAX(start, p->off);
	if (p->run_end != start && report(p, err) < 0)
		return -1;
	if (p->run_end != start)
		p->run = start;
	p->run_end = *next;
	return 0;
}

static bool is_equal(const uint8_t *x, const uint8_t *y, uint64_t len)
{
	if (x && y)
		return memcmp(x, y, len) == 0;
	return tide_sysio_is_zero(x ? x : y, len);
}

/*
 * Compares a block. x and y (NULL: zeroes) are the bytes of the two sides at off. *next is where to continue, which
 * may lie after the block, when the rest of a unit need not be read.
 */
static int compare_block(struct piece *p, const uint8_t *x, const uint8_t *y, uint64_t off, uint64_t len,
                         uint64_t *next, struct tide_error *err)
{
	uint64_t unit = p->e->compare->unit, pos = off;

	*next = off + len;
	if (is_equal(x, y, len))
		return 0;
	while (pos < off + len) {
		uint64_t end = TIDE_MIN(tide_range_align_down(pos, unit) + unit, off + len);

		if (!is_equal(x ? x + (pos - off) : NULL, y ? y + (pos - off) : NULL, end - pos) &&
		    mark(p, pos, &end, err) < 0)
			return -1;
		pos = end;
	}
	*next = pos;
	return 0;
}

static int read_block(struct piece *p, enum verdict verdict, uint64_t off, uint64_t len, uint64_t *next,
                      struct tide_error *err)
{
	struct tide_compare *c = p->e->compare;
	const uint8_t *x = verdict == TEST_B ? NULL : p->buf_a, *y = verdict == TEST_A ? NULL : p->buf_b;

	if (x && tide_image_read(c->a, p->buf_a, off, len, err) < 0)
		return -1;
	if (y && tide_image_read(c->b, p->buf_b, off, len, err) < 0)
		return -1;
	return compare_block(p, x, y, off, len, next, err);
}

static void read_ahead(const struct tide_extent *x, uint64_t len)
{
	if (x->kind == TIDE_EXTENT_DATA && x->mapped)
		posix_fadvise(x->map_fd, (off_t)x->map_off, (off_t)TIDE_MIN(len, PIECE), POSIX_FADV_WILLNEED);
}

/* Starts to read from both disks, so that the second one works while the worker waits for the first. */
static void start_reading(const struct stretch *s)
{
	if (s->verdict == SAME)
		return;
	read_ahead(&s->x, s->len);
	read_ahead(&s->y, s->len);
}

static int compare_piece(struct piece *p, struct tide_error *err)
{
	uint64_t off = p->off, next;

	while (off < p->end) {
		struct stretch s;
		uint64_t end;

		if (classify(p->e->compare, off, p->end - off, &s, err) < 0)
			return -1;
		start_reading(&s);
		for (end = off + s.len; s.verdict != SAME && off < end; off = next) {
			if (is_stopped(p->e->compare))
				return tide_error_set(err, TIDE_E_CANCELLED, "Cancelled");
			if (read_block(p, s.verdict, off, TIDE_MIN(end - off, BLOCK), &next, err) < 0)
				return -1;
		}
		off = TIDE_MAX(off, end);
	}
	return report(p, err);
}

/* ---- workers ----------------------------------------------------------------------- */

/*
 * Moves the cursor over whole pieces that need no reading, however many. An error here is ignored: the
 * worker that takes the piece meets it again and reports it.
 */
static void skip_same(struct engine *e)
{
	struct tide_compare *c = e->compare;

	while (e->cursor < c->end && !is_stopped(c)) {
		struct stretch s;
		uint64_t to;

		if (classify(c, e->cursor, c->end - e->cursor, &s, NULL) < 0 || s.verdict != SAME)
			return;
		to = e->cursor + s.len;
		if (to < c->end)
			to = tide_range_align_down(to, e->piece);
		if (to <= e->cursor)
			return;
		c->offset += to - e->cursor;
		e->cursor = to;
	}
}

static bool take_piece(struct engine *e, struct piece *p)
{
	struct tide_compare *c = e->compare;
	bool more;

	pthread_mutex_lock(&e->work.lock);
	if (!e->work.stop)
		skip_same(e);
	more = !e->work.stop && !is_stopped(c) && e->cursor < c->end;
	if (more) {
		p->off = e->cursor;
		p->end = e->cursor = TIDE_MIN(tide_range_align_down(p->off, e->piece) + e->piece, c->end);
	}
	pthread_mutex_unlock(&e->work.lock);
	return more;
}

static void work(struct tide_work *work, uint8_t *buf)
{
	struct engine *e = (struct engine *)work;
	struct piece p = { .e = e, .buf_a = buf, .buf_b = buf + BLOCK };

	while (take_piece(e, &p)) {
		struct tide_error err = TIDE_ERROR_INIT;
		int rc = compare_piece(&p, &err);

		p.run = p.run_end = 0;
		pthread_mutex_lock(&work->lock);
		if (rc == 0)
			e->compare->offset += p.end - p.off;
		else
			tide_work_fail(work, &err);
		pthread_mutex_unlock(&work->lock);
		tide_error_release(&err);
	}
}

int tide_compare_run(struct tide_compare *c, struct tide_error *err)
{
	struct engine e = {
		.work = { .run = work,
		          .buf_size = 2 * BLOCK,
		          .sink = c->sink,
		          .device = c->device,
		          .offset = &c->offset },
		.compare = c,
		.piece = TIDE_MAX(PIECE, c->unit),
		.cursor = c->start,
	};
	int rc;

	c->len = e.work.len = c->end - c->start;
	c->offset = c->differing = 0;
	c->cancelled = false;
	/* So that the caller can check afterwards that nothing changed meanwhile. */
	if (tide_image_settle_chain(c->a, err) < 0 || tide_image_settle_chain(c->b, err) < 0)
		return -1;
	e.work.workers = (unsigned)TIDE_MIN(tide_range_div_up(c->len, e.piece), TIDE_WORK_USUAL);
	e.work.alone = e.work.workers == 1 && e.piece == PIECE;
	tide_work_init(&e.work);
	rc = tide_work_run(&e.work, err);
	c->cancelled = is_stopped(c) && c->offset < c->len;
	if (rc == 0 && c->cancelled)
		rc = tide_error_set(err, TIDE_E_CANCELLED, "Cancelled");
	else if (rc == 0 && e.work.error.code)
		rc = tide_error_move(err, &e.work.error);
	tide_work_release(&e.work);
	return c->offset < c->len ? -1 : rc;
}
