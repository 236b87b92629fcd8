#include "copy.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <time.h>

#include "copy_pack.h"
#include "error.h"
#include "range.h"
#include "sysio.h"

#define PIECE_MAX (UINT64_C(1) << 20)
#define NAP_NS 10000000u
#define ZERO_BLOCK 65536u

struct engine {
	struct tide_work work;
	struct tide_copy *copy;
	uint64_t piece;          /* most bytes a worker takes at once */
	uint64_t align;          /* of what goes to the target */
	struct tide_bitmap *plan; /* todo as it was at the start */
	pthread_mutex_t retry_lock;
	_Atomic unsigned retries; /* how often `retry` has said yes */
	uint64_t start_ns;
	/* Under the lock: */
	uint64_t cursor;
	uint64_t issued; /* bytes handed out, for the speed limit */
	uint64_t taken, turn; /* pieces that have begun, that have ended; a piece's number is its place in that order */
	uint64_t broken;      /* those after this one will not get their turn */
	pthread_cond_t turned;
};

struct worker {
	struct engine *e;
	uint8_t *buf;
	struct tide_copy_pack *pack; /* or NULL */
};

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

/* ---- one piece --------------------------------------------------------------------- */

static int write_run(struct engine *e, const uint8_t *buf, uint64_t off, uint64_t len, struct tide_error *err)
{
	struct tide_image *target = e->copy->target;

	while (len) {
		struct tide_extent place;
		int rc = tide_image_write_begin(target, off, len, &place, err);

		if (rc > 0)
			return tide_image_write(target, buf, off, len, err);
		if (rc < 0)
			return -1;
		if (tide_sysio_pwrite(place.map_fd, buf, place.len, place.map_off, err) < 0) {
			tide_image_write_abort(target, &place);
			return -1;
		}
		if (tide_image_write_commit(target, &place, err) < 0)
			return -1;
		/* A hint: what it says about errors, the sync at the end says too. */
		sync_file_range(place.map_fd, (off_t)place.map_off, (off_t)place.len, SYNC_FILE_RANGE_WRITE);
		buf += place.len;
		off += place.len;
		len -= place.len;
	}
	return 0;
}

static int zero_run(struct engine *e, uint64_t off, uint64_t len, struct tide_error *err)
{
	if (e->copy->target_reads_zero || len == 0)
		return 0;
	return tide_image_zero(e->copy->target, off, len, true, err);
}

/* Writes what was read, stretches of zero bytes as zeroes. */
static int store(struct engine *e, const uint8_t *buf, uint64_t off, uint64_t len, struct tide_error *err)
{
	uint64_t block = TIDE_MAX(e->align, ZERO_BLOCK), pos = 0;

	while (pos < len) {
		uint64_t end = pos;
		bool zero = false;

		while (end < len) {
			uint64_t n = TIDE_MIN(block, len - end);
			bool z = tide_sysio_is_zero(buf + end, n);

			if (end > pos && z != zero)
				break;
			zero = z;
			end += n;
		}
		if ((zero ? zero_run(e, off + pos, end - pos, err) : write_run(e, buf + pos, off + pos, end - pos, err)) < 0)
			return -1;
		pos = end;
	}
	return 0;
}

/* The zeroes at off, in bytes that are whole blocks of the target (or reach the end of the range); 0: data. */
static int zeroes_at(struct engine *e, uint64_t off, uint64_t len, uint64_t *zeroes, uint64_t *data,
                     struct tide_error *err)
{
	uint64_t size = tide_image_size(e->copy->source);
	uint64_t end = off;
	struct tide_extent x;

	*zeroes = *data = 0;
	while (end < off + len) {
		if (end >= size) {
			end = off + len;
			break;
		}
		if (tide_image_extent(e->copy->source, end, TIDE_MIN(off + len, size) - end, &x, err) < 0)
			return -1;
		if (x.kind == TIDE_EXTENT_DATA)
			break;
		end += x.len;
	}
	if (end < off + len)
		end = tide_range_align_down(end, e->align);
	if (end > off) {
		*zeroes = end - off;
		return 0;
	}
	end = TIDE_MIN(tide_range_align_up(x.off + x.len, e->align), off + len);
	*data = end - off;
	return 0;
}

/* Reads the data at off; *zeroes are what follows it. */
static int read_data(struct engine *e, uint8_t *buf, uint64_t off, uint64_t len, uint64_t *n, uint64_t *zeroes,
                     struct tide_error *err)
{
	uint64_t data;

	*n = 0;
	if (zeroes_at(e, off, len, zeroes, &data, err) < 0)
		return -1;
	while (!*zeroes && *n + data < len) { /* gather data that is scattered in the source */
		*n += data;
		if (zeroes_at(e, off + *n, len - *n, zeroes, &data, err) < 0)
			return -1;
	}
	*n += *zeroes ? 0 : data;
	return *n ? tide_image_read(e->copy->source, buf, off, *n, err) : 0;
}

static int copy_piece(struct engine *e, uint8_t *buf, uint64_t off, uint64_t len, bool *reading, struct tide_error *err)
{
	while (len) {
		uint64_t zeroes, n;

		*reading = true;
		if (read_data(e, buf, off, len, &n, &zeroes, err) < 0)
			return -1;
		*reading = false;
		if (n && store(e, buf, off, n, err) < 0)
			return -1;
		if (zeroes && zero_run(e, off + n, zeroes, err) < 0)
			return -1;
		off += n + zeroes;
		len -= n + zeroes;
	}
	return 0;
}

/* Waits until all pieces before number `n` are stored; false when one of them will not be. */
static bool wait_turn(struct engine *e, uint64_t n)
{
	bool go;

	pthread_mutex_lock(&e->work.lock);
	while (e->turn != n && e->broken > n)
		pthread_cond_wait(&e->turned, &e->work.lock);
	go = e->turn == n;
	pthread_mutex_unlock(&e->work.lock);
	return go;
}

/* As copy_piece, but compressed, and stored in order; 1: it will not be its turn. */
static int pack_piece(struct worker *w, uint64_t number, uint64_t off, uint64_t len, bool *reading,
                      struct tide_error *err)
{
	struct engine *e = w->e;
	uint64_t zeroes, n;

	tide_copy_pack_begin(w->pack, off);
	for (uint64_t pos = 0; pos < len; pos += n + zeroes) {
		*reading = true;
		if (read_data(e, w->buf + pos, off + pos, len - pos, &n, &zeroes, err) < 0)
			return -1;
		*reading = false;
		if (tide_copy_pack_add_data(w->pack, w->buf + pos, n, err) < 0)
			return -1;
		tide_copy_pack_add_zeroes(w->pack, zeroes);
	}
	if (!wait_turn(e, number))
		return 1;
	return tide_copy_pack_store(w->pack, e->copy->target_reads_zero, err);
}

/* ---- workers ----------------------------------------------------------------------- */

bool tide_copy_is_stopped(struct tide_copy *copy)
{
	return atomic_load_explicit(&copy->stop, memory_order_relaxed) || tide_event_is_cancelled(copy->sink);
}

/* The piece will not be stored, and none of those after it.  Lock held. */
static void break_off(struct engine *e, uint64_t number)
{
	e->work.stop = true;
	e->broken = TIDE_MIN(e->broken, number);
	pthread_cond_broadcast(&e->turned);
}

/* Waits until the speed limit lets `len` more bytes go; returns false when there is no reason to go on. */
static bool throttle(struct engine *e, uint64_t number, uint64_t len)
{
	struct tide_copy *c = e->copy;
	bool go;

	pthread_mutex_lock(&e->work.lock);
	for (;;) {
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

static bool take_piece(struct engine *e, uint64_t *number, uint64_t *off, uint64_t *len)
{
	bool more;

	/* Nobody begins a new piece while somebody waits to try one again: the job is paused. */
	pthread_mutex_lock(&e->retry_lock);
	pthread_mutex_unlock(&e->retry_lock);
	pthread_mutex_lock(&e->work.lock);
	more = !e->work.stop && tide_bitmap_next_dirty(e->plan, e->cursor, e->piece, off, len) == 1;
	if (more) {
		/* Pieces end on multiples of the piece size, so that they stay aligned in the target. */
		uint64_t end = tide_range_align_down(*off, e->piece) + e->piece;

		*len = TIDE_MIN(*len, end - *off);
		e->cursor = *off + *len;
		*number = e->taken++;
	}
	pthread_mutex_unlock(&e->work.lock);
	return more;
}

static void finish_piece(struct engine *e, uint64_t number, uint64_t off, uint64_t len, bool ok, bool reading,
                         struct tide_error *err)
{
	struct tide_copy *c = e->copy;

	pthread_mutex_lock(&e->work.lock);
	if (ok && tide_bitmap_reset(c->todo, off, len, err) == 0) {
		c->offset = c->len - tide_bitmap_count(c->todo) * c->unit;
		e->turn = number + 1;
		pthread_cond_broadcast(&e->turned);
	} else {
		/* Cancelled, what went wrong on the way does not matter any more. */
		if (!e->work.error.code && (ok || !tide_copy_is_stopped(c))) {
			c->failed_reading = !ok && reading;
			tide_work_fail(&e->work, err);
		}
		break_off(e, number);
	}
	tide_error_release(err);
	pthread_mutex_unlock(&e->work.lock);
}

/* One asks at a time; who waited while another one's wait was answered tries again without asking. */
static bool may_retry(struct engine *e, bool reading, unsigned tries, const struct tide_error *err)
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

static void do_piece(struct worker *w, uint64_t number, uint64_t off, uint64_t len)
{
	struct tide_error err = TIDE_ERROR_INIT;
	unsigned tries = 0;
	bool reading;
	int rc;

	for (;;) {
		reading = false;
		rc = w->pack ? pack_piece(w, number, off, len, &reading, &err)
		             : copy_piece(w->e, w->buf, off, len, &reading, &err);
		if (rc >= 0 || !may_retry(w->e, reading, ++tries, &err))
			break;
		tide_error_release(&err);
	}
	if (rc <= 0)
		finish_piece(w->e, number, off, len, rc == 0, reading, &err);
}

static void work(struct tide_work *work, uint8_t *buf)
{
	struct engine *e = (struct engine *)work;
	struct worker w = { e, buf, NULL };
	struct tide_error err = TIDE_ERROR_INIT;
	uint64_t number, off, len;

	if (e->copy->compress && !(w.pack = tide_copy_pack_new(e->copy->target, e->piece, &err))) {
		pthread_mutex_lock(&work->lock);
		tide_work_fail(work, &err);
		pthread_mutex_unlock(&work->lock);
		tide_error_release(&err);
		return;
	}
	while (take_piece(e, &number, &off, &len) && throttle(e, number, len))
		do_piece(&w, number, off, len);
	tide_copy_pack_free(w.pack);
}

/* Plain copies wait for the disk, compressed ones for processors. */
unsigned tide_copy_workers_max(const struct tide_copy *copy)
{
	cpu_set_t set;
	unsigned cpus = sched_getaffinity(0, sizeof(set), &set) == 0 ? (unsigned)CPU_COUNT(&set) : 1;

	return copy->compress ? TIDE_MIN(TIDE_MAX(cpus + 2, TIDE_COPY_WORKERS), TIDE_WORK_MAX) : TIDE_COPY_WORKERS;
}

static void plan_work(struct engine *e)
{
	const struct tide_copy *c = e->copy;
	uint64_t left = c->len - c->offset;
	unsigned most = tide_copy_workers_max(c);

	if (c->workers)
		most = TIDE_MIN(most, c->workers);
	e->work.workers = (unsigned)TIDE_MIN(tide_range_div_up(left, e->piece), most);
	e->work.alone = left <= e->piece;
	e->work.len = c->len;
}

/*
 * Where the target reads as zeroes by itself, units that the source says are zeroes need nobody's visit: an empty disk
 * of any size costs one look.  An error here is met again, and told, by the worker that comes to the place.
 */
static void skip_zeroes(struct engine *e)
{
	struct tide_copy *c = e->copy;
	uint64_t size = tide_image_size(c->source), off = 0, start, len;
	struct tide_extent x;

	while (tide_bitmap_next_dirty(e->plan, off, UINT64_MAX, &start, &len)) {
		for (off = start; off < start + len; off += x.len) {
			x = (struct tide_extent){ .off = off, .len = start + len - off, .kind = TIDE_EXTENT_ZERO };
			if (off < size && tide_image_extent(c->source, off, TIDE_MIN(start + len, size) - off, &x, NULL) < 0)
				return;
			if (x.kind != TIDE_EXTENT_DATA && (tide_bitmap_reset(e->plan, off, x.len, NULL) < 0 ||
			                                   tide_bitmap_reset(c->todo, off, x.len, NULL) < 0))
				return;
		}
	}
	c->offset = c->len - tide_bitmap_count(c->todo) * c->unit;
}

/* Piece size: large, but with a speed limit no more than a tenth of a second's worth. */
static uint64_t piece_size(const struct tide_copy *c)
{
	uint64_t piece = PIECE_MAX;

	while (c->piece_max && piece > c->unit && piece > c->piece_max)
		piece /= 2;
	while (c->speed && piece > c->unit && piece > c->speed / 10)
		piece /= 2;
	return TIDE_MAX(piece, c->unit);
}

int tide_copy_run(struct tide_copy *copy, struct tide_error *err)
{
	struct engine e = {
		.work = { .run = work, .sink = copy->sink, .device = copy->device, .offset = &copy->offset },
		.copy = copy,
		.piece = piece_size(copy),
		.align = TIDE_MAX(tide_image_info(copy->target)->cluster_size, 4096),
		.start_ns = tide_work_now_ns(),
		.broken = UINT64_MAX,
	};
	int rc;

	copy->len = tide_bitmap_count(copy->todo) * copy->unit;
	copy->offset = 0;
	if (copy->len == 0)
		return 0;
	e.plan = tide_bitmap_copy(copy->todo, err);
	if (!e.plan)
		return -1;
	e.work.buf_size = e.piece;
	tide_work_init(&e.work);
	pthread_cond_init(&e.turned, NULL);
	pthread_mutex_init(&e.retry_lock, NULL);
	if (copy->target_reads_zero)
		skip_zeroes(&e);
	plan_work(&e);
	rc = tide_work_run(&e.work, err);
	pthread_mutex_destroy(&e.retry_lock);
	pthread_cond_destroy(&e.turned);
	tide_bitmap_free(e.plan);
	copy->cancelled = tide_copy_is_stopped(copy) && copy->offset < copy->len;
	if (e.work.error.code)
		rc = tide_error_move(err, &e.work.error);
	else if (rc == 0 && copy->cancelled)
		rc = tide_error_set(err, TIDE_E_CANCELLED, "Cancelled");
	tide_work_release(&e.work);
	return rc;
}
