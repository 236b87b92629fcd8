#include "prove.h"

#include <fcntl.h>

#include "base/error.h"
#include "base/range.h"
#include "base/sysio.h"
#include "base/work.h"
#include "bitmap/bitmap.h"
#include "sums.h"

#define PIECE (UINT64_C(1) << 20)

struct engine {
	struct tide_work work;
	struct tide_prove *prove;
	int fd;
	uint64_t start, end;
	uint64_t cursor; /* under the lock */
};

static bool take_piece(struct engine *e, uint64_t *off, uint64_t *len)
{
	bool more;

	pthread_mutex_lock(&e->work.lock);
	more = !e->work.stop && e->cursor < e->end && !tide_event_is_cancelled(e->prove->sink);
	*off = e->cursor;
	*len = more ? TIDE_MIN(PIECE, e->end - *off) : 0;
	e->cursor += *len;
	pthread_mutex_unlock(&e->work.lock);
	return more;
}

static int mark(struct engine *e, struct tide_bitmap *bm, uint64_t off, uint64_t len, struct tide_error *err)
{
	int rc;

	pthread_mutex_lock(&e->work.lock);
	rc = tide_bitmap_set(bm, off, len, err);
	pthread_mutex_unlock(&e->work.lock);
	return rc;
}

/* NULL: of zeroes. */
static uint64_t sum_of(const uint8_t *buf, uint64_t len)
{
	static const uint8_t zeroes[TIDE_SUMS_BLOCK];

	return tide_sums_of(buf ? buf : zeroes, len);
}

static int prove_piece(struct engine *e, uint8_t *buf, uint64_t off, uint64_t len, struct tide_error *err)
{
	struct tide_prove *p = e->prove;
	uint64_t want[PIECE / TIDE_SUMS_BLOCK], extent;
	bool data, hole;

	tide_sysio_extent(e->fd, off, len, &data, &extent);
	hole = !data && extent == len;
	if (!hole && tide_sysio_pread(e->fd, buf, len, off, true, err) < 0)
		return tide_error_wrap(err, "'%s'", tide_image_path(p->image));
	if (tide_sums_find(p->sums, off, tide_range_div_up(len, TIDE_SUMS_BLOCK), want, err) < 0)
		return -1;
	for (uint64_t pos = 0; pos < len; pos += TIDE_SUMS_BLOCK) {
		uint64_t sum = want[pos / TIDE_SUMS_BLOCK], n = TIDE_MIN(TIDE_SUMS_BLOCK, len - pos);
		struct tide_bitmap *which = sum == TIDE_SUMS_NONE ? p->unproven
		                            : sum != sum_of(hole ? NULL : buf + pos, n) ? p->bad
		                                                                        : NULL;

		if (which && mark(e, which, off + pos - e->start, n, err) < 0)
			return -1;
	}
	return 0;
}

static void work(struct tide_work *work, uint8_t *buf)
{
	struct engine *e = (struct engine *)work;
	uint64_t off, len;

	while (take_piece(e, &off, &len)) {
		struct tide_error err = TIDE_ERROR_INIT;
		int rc = prove_piece(e, buf, off, len, &err);

		pthread_mutex_lock(&work->lock);
		if (rc == 0)
			e->prove->offset += len;
		else
			tide_work_fail(work, &err);
		pthread_mutex_unlock(&work->lock);
		tide_error_release(&err);
	}
}

static int run(struct engine *e, struct tide_error *err)
{
	struct tide_prove *p = e->prove;
	int rc;

	p->offset = 0;
	p->len = e->work.len = e->end - e->start;
	e->work.workers = (unsigned)TIDE_MIN(tide_range_div_up(p->len, PIECE), TIDE_WORK_USUAL);
	e->work.alone = e->work.workers == 1;
	posix_fadvise(e->fd, 0, 0, POSIX_FADV_SEQUENTIAL);
	tide_work_init(&e->work);
	rc = tide_work_run(&e->work, err);
	if (rc == 0 && e->work.error.code)
		rc = tide_error_move(err, &e->work.error);
	else if (rc == 0 && p->offset < p->len)
		rc = tide_error_set(err, TIDE_E_CANCELLED, "Cancelled");
	tide_work_release(&e->work);
	return rc;
}

int tide_prove_run(struct tide_prove *p, struct tide_error *err)
{
	struct engine e = {
		.work = { .run = work, .buf_size = PIECE, .sink = p->sink, .device = p->device, .offset = &p->offset },
		.prove = p,
	};
	uint64_t start, end;

	if (tide_image_sums_range(p->image, &e.fd, &start, &end, err) < 0)
		return -1;
	e.cursor = e.start = tide_sums_start(p->sums);
	e.end = tide_sums_end(p->sums);
	p->bad = tide_bitmap_new(e.end - e.start, TIDE_SUMS_BLOCK, err);
	p->unproven = tide_bitmap_new(e.end - e.start, TIDE_SUMS_BLOCK, err);
	return p->bad && p->unproven ? run(&e, err) : -1;
}

void tide_prove_release(struct tide_prove *p)
{
	tide_bitmap_free(p->bad);
	tide_bitmap_free(p->unproven);
	p->bad = p->unproven = NULL;
}
