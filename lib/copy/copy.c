/*
 * The engine: starts the workers, hands out the pieces of the plan in ascending order, and
 * collects the results.
 *
 * One worker shares what can be shared before any piece is handed out.  A piece that fails is
 * tried again if `retry` says so; else its error ends the copy.  A piece that was not copied
 * stays in `todo`.  Compressed pieces are stored in the order of their numbers: `turn` is the
 * next one, and once a piece is given up, `broken` releases the workers that wait for a turn
 * after it.
 */
#include "copy.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <time.h>

#include "base/error.h"
#include "base/range.h"
#include "base/sysio.h"
#include "copy_impl.h"

#define NAP_NS 10000000u

bool tide_copy_wait_turn(struct tide_copy_engine *e, uint64_t n)
{
	bool go;

	pthread_mutex_lock(&e->work.lock);
	while (e->turn != n && e->broken > n)
		pthread_cond_wait(&e->turned, &e->work.lock);
	go = e->turn == n;
	pthread_mutex_unlock(&e->work.lock);
	return go;
}

bool tide_copy_is_stopped(struct tide_copy *copy)
{
	return atomic_load_explicit(&copy->stop, memory_order_relaxed) || tide_event_is_cancelled(copy->sink);
}

/* Gives up this piece and all after it, and ends the copy.  The caller holds the lock. */
static void break_off(struct tide_copy_engine *e, uint64_t number)
{
	e->work.stop = true;
	e->broken = TIDE_MIN(e->broken, number);
	pthread_cond_broadcast(&e->turned);
}

bool tide_copy_throttle(struct tide_copy_engine *e, uint64_t number, uint64_t len)
{
	struct tide_copy *c = e->copy;
	bool go;

	pthread_mutex_lock(&e->work.lock);
	for (;;) {
		/* The nap is short, so that a cancel or another worker's error ends the wait soon. */
		struct timespec nap = { 0, NAP_NS };
		unsigned __int128 due = c->speed ? (unsigned __int128)e->issued * 1000000000u / c->speed : 0;

		go = !e->work.stop && !tide_copy_is_stopped(c);
		if (!go || tide_work_now_ns() - e->start_ns >= due)
			break;
		pthread_mutex_unlock(&e->work.lock);
		nanosleep(&nap, NULL);
		pthread_mutex_lock(&e->work.lock);
	}
	e->issued += len;
	if (!go)
		break_off(e, number);
	pthread_mutex_unlock(&e->work.lock);
	return go;
}

/* Takes the next piece of the plan, of at most max bytes.  The caller holds the lock. */
static bool take_piece(struct tide_copy_engine *e, uint64_t max, struct tide_copy_piece *p)
{
	uint64_t end;

	if (!tide_bitmap_next_dirty(e->plan, e->cursor, max, &p->off, &p->len))
		return false;
	/* Pieces end on multiples of the piece size and so stay aligned in the target. */
	end = tide_range_align_down(p->off, e->piece) + e->piece;
	p->len = TIDE_MIN(p->len, end - p->off);
	p->number = e->taken++;
	e->cursor = p->off + p->len;
	e->taken_bytes += p->len;
	return true;
}

/* While one worker waits to try a piece again, the job is paused and no other worker begins a piece. */
static void wait_paused(struct tide_copy_engine *e)
{
	pthread_mutex_lock(&e->retry_lock);
	pthread_mutex_unlock(&e->retry_lock);
}

/* Takes as many pieces as fit into the worker's buffer; false: there are none. */
static bool take_batch(struct tide_copy_engine *e, struct tide_copy_batch *b)
{
	b->n = 0;
	b->len = 0;
	wait_paused(e);
	pthread_mutex_lock(&e->work.lock);
	while (!e->work.stop && b->n < e->batch && b->len < e->work.buf_size &&
	       take_piece(e, e->work.buf_size - b->len, &b->piece[b->n]))
		b->len += b->piece[b->n++].len;
	pthread_mutex_unlock(&e->work.lock);
	return b->n > 0;
}

/* The piece is in the target: only now `todo` loses it.  The caller holds the lock. */
static bool count_done(struct tide_copy_engine *e, const struct tide_copy_piece *p, struct tide_error *err)
{
	struct tide_copy *c = e->copy;

	if (tide_bitmap_reset(c->todo, p->off, p->len, err) < 0)
		return false;
	c->offset = c->len - tide_bitmap_count(c->todo) * c->unit;
	e->turn = p->number + 1;
	pthread_cond_broadcast(&e->turned);
	return true;
}

static void finish_piece(struct tide_copy_engine *e, const struct tide_copy_piece *p, bool ok, bool reading,
                         struct tide_error *err)
{
	struct tide_copy *c = e->copy;

	pthread_mutex_lock(&e->work.lock);
	if (!ok || !count_done(e, p, err)) {
		/* After a cancel, errors no longer matter. */
		if (!e->work.error.code && (ok || !tide_copy_is_stopped(c))) {
			c->failed_reading = !ok && reading;
			tide_work_fail(&e->work, err);
		}
		break_off(e, p->number);
	}
	tide_error_release(err);
	pthread_mutex_unlock(&e->work.lock);
}

/*
 * Only one worker at a time calls `retry`.  A worker that waited here while another worker's question was answered with
 * yes tries again without asking: the cause is probably the same.
 */
static bool may_retry(struct tide_copy_engine *e, bool reading, unsigned tries, const struct tide_error *err)
{
	unsigned seen = atomic_load(&e->retries);
	bool again = false;

	if (!e->copy->retry)
		return false;
	pthread_mutex_lock(&e->retry_lock);
	if (tries == 1 && seen != atomic_load(&e->retries))
		again = true;
	else if (!tide_copy_is_stopped(e->copy))
		again = e->copy->retry(e->copy, reading, tries, err);
	if (again)
		atomic_fetch_add(&e->retries, 1);
	pthread_mutex_unlock(&e->retry_lock);
	return again;
}

static void do_piece(struct tide_copy_worker *w, const struct tide_copy_piece *p)
{
	struct tide_error err = TIDE_ERROR_INIT;
	unsigned tries = 0;
	bool reading;
	int rc;

	for (;;) {
		reading = false;
		rc = w->compressor ? tide_copy_compress_piece(w, p, &reading, &err)
		                   : tide_copy_pieces_one(w, p->off, p->len, &reading, &err);
		if (rc >= 0 || !may_retry(w->e, reading, ++tries, &err))
			break;
		tide_error_release(&err);
		/* The piece may get other places now, and its first ones another use. */
		tide_image_sums_spoil(w->e->copy->target);
	}
	if (rc <= 0)
		finish_piece(w->e, p, rc == 0, reading, &err);
}

static void do_batch(struct tide_copy_worker *w, const struct tide_copy_batch *b)
{
	struct tide_error err = TIDE_ERROR_INIT;
	bool done = w->batches && tide_copy_pieces_batch(w, b);

	for (size_t i = 0; i < b->n && done; i++)
		finish_piece(w->e, &b->piece[i], true, false, &err);
	for (size_t i = 0; i < b->n && !done; i++) {
		wait_paused(w->e);
		/* False once one of these pieces, or another worker, has ended the copy. */
		if (!tide_copy_throttle(w->e, b->piece[i].number, 0))
			break;
		do_piece(w, &b->piece[i]);
	}
}

/*
 * The first worker shares what can be shared; the others wait, because file systems share one range at a time.  So the
 * plan has only one user while sharing changes it.
 */
static void share_first(struct tide_copy_engine *e)
{
	bool first;

	pthread_mutex_lock(&e->work.lock);
	first = !e->sharing;
	e->sharing = true;
	while (!first && !e->shared)
		pthread_cond_wait(&e->turned, &e->work.lock);
	pthread_mutex_unlock(&e->work.lock);
	if (!first)
		return;
	tide_copy_offload_share(e);
	pthread_mutex_lock(&e->work.lock);
	e->shared = true;
	pthread_cond_broadcast(&e->turned);
	pthread_mutex_unlock(&e->work.lock);
}

static void work(struct tide_work *work, uint8_t *buf)
{
	struct tide_copy_engine *e = (struct tide_copy_engine *)work;
	struct tide_copy *c = e->copy;
	struct tide_copy_worker w = { .e = e, .buf = buf };
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_copy_batch b;

	share_first(e);
	w.moves = !c->detect_zeroes && c->way == TIDE_COPY_WAY_KERNEL;
	tide_copy_offload_init(&w.mover, c, TIDE_COPY_WAY_KERNEL);
	if (c->compress && !(w.compressor = tide_copy_compress_new(c->target, e->piece, &err))) {
		pthread_mutex_lock(&work->lock);
		tide_work_fail(work, &err);
		pthread_mutex_unlock(&work->lock);
		tide_error_release(&err);
		return;
	}
	w.batches = !c->compress && !w.moves && tide_image_is_file(c->target);
	while (take_batch(e, &b) && tide_copy_throttle(e, b.piece[0].number, b.len)) {
		tide_copy_read_ahead(e);
		do_batch(&w, &b);
	}
	tide_copy_compress_free(w.compressor);
}

int tide_copy_run(struct tide_copy *copy, struct tide_error *err)
{
	struct tide_copy_engine e = {
		.workers_direct =
		        copy->workers ? TIDE_MIN(copy->workers, TIDE_COPY_WORKERS_DIRECT) : TIDE_COPY_WORKERS_DIRECT,
		.work = { .run = work,
		          .share = copy->share,
		          .sink = copy->sink,
		          .device = copy->device,
		          .offset = &copy->offset },
		.copy = copy,
		.align = TIDE_MAX(tide_copy_unit_min(copy->target, copy->compress), 4096),
		.batch = copy->speed || copy->compress ? 1 : TIDE_COPY_BATCH,
		.start_ns = tide_work_now_ns(),
		.broken = UINT64_MAX,
	};
	unsigned workers = tide_copy_plan_workers(copy);
	int rc;

	copy->len = tide_bitmap_count(copy->todo) * copy->unit;
	copy->offset = 0;
	if (copy->len == 0)
		return 0;
	e.plan = tide_bitmap_copy(copy->todo, err);
	if (!e.plan)
		return -1;
	e.fetched = tide_bitmap_new(tide_bitmap_size(copy->todo), copy->unit, NULL);
	tide_copy_read_begin(&e);
	tide_copy_plan_pieces(&e, tide_copy_read_is_direct(&e) ? TIDE_MAX(workers, e.workers_direct) : workers);
	tide_work_init(&e.work);
	pthread_cond_init(&e.turned, NULL);
	pthread_mutex_init(&e.retry_lock, NULL);
	pthread_mutex_init(&e.place_lock, NULL);
	tide_copy_write_begin(&e);
	if (copy->target_reads_zero)
		tide_copy_plan_skip_zeroes(&e);
	tide_copy_plan_work(&e, workers);
	rc = tide_work_run(&e.work, err);
	tide_copy_write_end(&e);
	tide_copy_read_end(&e);
	pthread_mutex_destroy(&e.place_lock);
	pthread_mutex_destroy(&e.retry_lock);
	pthread_cond_destroy(&e.turned);
	tide_bitmap_free(e.plan);
	tide_bitmap_free(e.fetched);
	copy->cancelled = tide_copy_is_stopped(copy) && copy->offset < copy->len;
	if (e.work.error.code)
		rc = tide_error_move(err, &e.work.error);
	else if (rc == 0 && copy->cancelled)
		rc = tide_error_set(err, TIDE_E_CANCELLED, "Cancelled");
	tide_work_release(&e.work);
	return rc;
}
