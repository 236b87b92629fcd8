#include "work.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#include "error.h"
#include "mem.h"

#define PROGRESS_NS 100000000u
#define HUGE_PAGE   ((size_t)2 << 20)

struct worker {
	struct tide_work *work;
	uint8_t *buf;
	pthread_t thread;
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

/* Reports progress until all workers are done. */
static void watch(struct tide_work *work)
{
	uint64_t last = tide_work_now_ns();

	pthread_mutex_lock(&work->lock);
	while (work->running) {
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
			pthread_mutex_lock(&work->lock);
			last = tide_work_now_ns();
		}
	}
	pthread_mutex_unlock(&work->lock);
}

/* As many of the n workers as there are threads for. */
static int start(struct worker *workers, unsigned n, unsigned *started, struct tide_error *err)
{
	struct tide_work *work = workers[0].work;

	for (*started = 0; *started < n; (*started)++) {
		int sys;

		pthread_mutex_lock(&work->lock);
		work->running++;
		pthread_mutex_unlock(&work->lock);
		sys = pthread_create(&workers[*started].thread, NULL, begin, &workers[*started]);
		if (sys == 0)
			continue;
		pthread_mutex_lock(&work->lock);
		work->running--;
		pthread_mutex_unlock(&work->lock);
		return *started ? 0 : tide_error_set_sys(err, sys, "Could not start a thread");
	}
	return 0;
}

/* A large one in large pages if there are any: a direct transfer is then of few segments, which disks like. */
static uint8_t *buffer(size_t size, struct tide_error *err)
{
	uint8_t *buf = tide_mem_aligned(size >= HUGE_PAGE ? HUGE_PAGE : 4096, size, err);

	if (buf && size >= HUGE_PAGE)
		madvise(buf, size, MADV_HUGEPAGE);
	return buf;
}

int tide_work_run(struct tide_work *work, struct tide_error *err)
{
	struct worker workers[TIDE_WORK_MAX] = { { 0 } };
	unsigned n = TIDE_MIN(work->workers, TIDE_WORK_MAX), started = 0;
	int rc = 0;

	for (unsigned i = 0; i < n && rc == 0; i++) {
		workers[i].work = work;
		workers[i].buf = buffer(work->buf_size, err);
		rc = workers[i].buf ? 0 : -1;
	}
	if (rc == 0 && n && work->alone) {
		work->running = 1;
		begin(&workers[0]);
	} else if (rc == 0 && n) {
		rc = start(workers, n, &started, err);
	}
	if (started)
		watch(work);
	for (unsigned i = 0; i < started; i++)
		pthread_join(workers[i].thread, NULL);
	for (unsigned i = 0; i < n; i++)
		free(workers[i].buf);
	report(work, true);
	return rc;
}
