/*
 * Starts the workers of an engine, reports progress while they run, and adds workers when another
 * engine ends and leaves its part (work.h).
 */
#include "work.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#include "error.h"
#include "mem.h"
#include "range.h"

#define PROGRESS_NS  100000000u
#define HUGE_PAGE    ((size_t)2 << 20)
#define BUFFERS_MOST ((size_t)32 << 20) /* of all sharing engines together */
#define BUFFER_MIN   ((size_t)256 << 10)

struct worker {
	struct tide_work *work;
	uint8_t *buf;
	pthread_t thread;
};

struct crew {
	struct tide_work *work;
	struct worker workers[TIDE_WORK_MAX];
	unsigned started; /* how many of workers[] have started */
	bool full;        /* no more threads or memory */
};

uint64_t tide_work_now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

void tide_work_init(struct tide_work *work)
{
	pthread_mutex_init(&work->lock, NULL);
	pthread_cond_init(&work->ended, NULL);
}

void tide_work_release(struct tide_work *work)
{
	pthread_cond_destroy(&work->ended);
	pthread_mutex_destroy(&work->lock);
	tide_error_release(&work->error);
}

void tide_work_fail(struct tide_work *work, struct tide_error *err)
{
	if (!work->error.code)
		tide_error_move(&work->error, err);
	work->stop = true;
}

static void *begin(void *arg)
{
	struct worker *w = arg;
	struct tide_work *work = w->work;

	work->run(work, w->buf);
	pthread_mutex_lock(&work->lock);
	work->running--;
	pthread_cond_signal(&work->ended);
	pthread_mutex_unlock(&work->lock);
	return NULL;
}

static void report(struct tide_work *work, bool finished)
{
	struct tide_progress p = { work->device, 0, work->len, finished };

	pthread_mutex_lock(&work->lock);
	p.offset = *work->offset;
	pthread_mutex_unlock(&work->lock);
	if (work->device)
		tide_event_progress(work->sink, &p);
}

/* ---- sharing ----------------------------------------------------------------------- */

void tide_work_share_enter(struct tide_work_share *share)
{
	share->entered++;
	atomic_fetch_add(&share->engines, 1);
}

void tide_work_share_leave(struct tide_work_share *share)
{
	atomic_fetch_sub(&share->engines, 1);
}

static unsigned part(unsigned n, unsigned engines)
{
	return (unsigned)tide_range_div_up(n, TIDE_MAX(engines, 1));
}

unsigned tide_work_share_of(const struct tide_work_share *share, unsigned n)
{
	return part(n, share ? atomic_load(&share->engines) : 1);
}

size_t tide_work_share_buffer(const struct tide_work_share *share, unsigned workers, size_t most)
{
	unsigned engines = share ? TIDE_MAX(share->entered, 1) : 1;
	size_t buffers = (size_t)engines * part(workers, engines), size = most;

	while (size > BUFFER_MIN && size * buffers > BUFFERS_MOST)
		size /= 2;
	return size;
}

/* ---- running ----------------------------------------------------------------------- */

/*
 * Allocates a buffer, a large one in huge pages if possible: a direct transfer then has few segments, which disks
 * handle faster.
 */
static uint8_t *buffer(size_t size, struct tide_error *err)
{
	uint8_t *buf = tide_mem_aligned(size >= HUGE_PAGE ? HUGE_PAGE : 4096, size, err);

	if (buf && size >= HUGE_PAGE)
		madvise(buf, size, MADV_HUGEPAGE);
	return buf;
}

static int start_one(struct crew *crew, struct tide_error *err)
{
	struct tide_work *work = crew->work;
	struct worker *w = &crew->workers[crew->started];
	int sys;

	w->work = work;
	w->buf = buffer(work->buf_size, err);
	if (!w->buf)
		return -1;
	pthread_mutex_lock(&work->lock);
	work->running++;
	pthread_mutex_unlock(&work->lock);
	sys = pthread_create(&w->thread, NULL, begin, w);
	if (sys == 0) {
		crew->started++;
		return 0;
	}
	pthread_mutex_lock(&work->lock);
	work->running--;
	pthread_mutex_unlock(&work->lock);
	free(w->buf);
	return tide_error_set_sys(err, sys, "Could not start a thread");
}

/* Starts as many workers as are this engine's part now, or as memory and threads permit; the first one is required. */
static int start(struct crew *crew, struct tide_error *err)
{
	struct tide_error late = TIDE_ERROR_INIT;
	unsigned n;

	pthread_mutex_lock(&crew->work->lock);
	n = tide_work_share_of(crew->work->share, TIDE_MIN(crew->work->workers, TIDE_WORK_MAX));
	pthread_mutex_unlock(&crew->work->lock);
	while (crew->started < n && !crew->full)
		crew->full = start_one(crew, crew->started ? &late : err) < 0;
	tide_error_release(&late);
	return crew->started ? 0 : -1;
}

/*
 * Waits until all workers are done; meanwhile reports progress, and starts workers when this engine's part has
 * grown.
 */
static void watch(struct crew *crew)
{
	struct tide_work *work = crew->work;
	uint64_t last = tide_work_now_ns();

	pthread_mutex_lock(&work->lock);
	while (work->running) {
		bool stop = work->stop;
		struct timespec until;

		clock_gettime(CLOCK_REALTIME, &until);
		until.tv_nsec += PROGRESS_NS;
		if (until.tv_nsec >= 1000000000) {
			until.tv_nsec -= 1000000000;
			until.tv_sec++;
		}
		pthread_cond_timedwait(&work->ended, &work->lock, &until);
		if (tide_work_now_ns() - last >= PROGRESS_NS) {
			pthread_mutex_unlock(&work->lock);
			report(work, false);
			if (!stop)
				(void)!start(crew, NULL);
			pthread_mutex_lock(&work->lock);
			last = tide_work_now_ns();
		}
	}
	pthread_mutex_unlock(&work->lock);
}

static int work_alone(struct tide_work *work, struct tide_error *err)
{
	struct worker w = { .work = work, .buf = buffer(work->buf_size, err) };

	if (!w.buf)
		return -1;
	work->running = 1;
	begin(&w);
	free(w.buf);
	return 0;
}

static int work_together(struct tide_work *work, struct tide_error *err)
{
	struct crew crew = { .work = work };

	if (start(&crew, err) < 0)
		return -1;
	watch(&crew);
	for (unsigned i = 0; i < crew.started; i++) {
		pthread_join(crew.workers[i].thread, NULL);
		free(crew.workers[i].buf);
	}
	return 0;
}

int tide_work_run(struct tide_work *work, struct tide_error *err)
{
	int rc = 0;

	if (work->workers)
		rc = (work->alone ? work_alone : work_together)(work, err);
	report(work, true);
	return rc;
}
