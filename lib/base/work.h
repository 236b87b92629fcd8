/*
 * Workers: the threads of an engine that processes a disk in pieces (copy, compare).
 *
 * The engine embeds a struct tide_work, sets how many workers it wants and the function that a worker runs,
 * and keeps its own state under the same lock. This module has what all engines share: a buffer for each
 * worker, fewer threads when no more can be started, progress about ten times a second from the caller's
 * thread while they run, and the first error, which ends the other workers.
 *
 * Engines that run at the same time share the machine: each gets an equal part of the workers and of the
 * memory for their buffers, and when one ends, the others get more workers.
 */
#ifndef TIDE_WORK_H
#define TIDE_WORK_H

#include "event.h"

#define TIDE_WORK_MAX   16u
#define TIDE_WORK_USUAL 4u /* for workers that mostly wait for disks */

struct tide_work_share {
	unsigned entered;         /* engines that have ever entered */
	_Atomic unsigned engines; /* engines that have entered and not left */
};

struct tide_work {
	/* Set by the engine: */
	void (*run)(struct tide_work *work, uint8_t *buf); /* one worker: takes pieces until none is left */
	const struct tide_work_share *share;               /* NULL: the engine shares with no other */
	bool alone;                                        /* one worker only: runs it in the caller's thread */
	size_t buf_size;                                   /* bytes for each worker; aligned for direct transfers */
	struct tide_sink *sink;
	const char *device;     /* for progress reports; NULL: no reports */
	uint64_t len;           /* for progress: bytes to process */
	const uint64_t *offset; /* the engine's count of bytes done, under the lock */

	pthread_mutex_t lock;
	/* Under the lock: */
	unsigned workers; /* at most TIDE_WORK_MAX; 0: nothing to do; may grow meanwhile */
	bool stop;        /* set: no worker takes another piece */
	struct tide_error error;

	/* Internal: */
	pthread_cond_t ended;
	unsigned running;
};

/* CLOCK_MONOTONIC. */
uint64_t tide_work_now_ns(void);

void tide_work_init(struct tide_work *work);
void tide_work_release(struct tide_work *work);

/* All engines enter before the first one begins, so that it does not take the others' part. */
void tide_work_share_enter(struct tide_work_share *share);
void tide_work_share_leave(struct tide_work_share *share);
/* This engine's part of n, rounded up; share may be NULL. */
unsigned tide_work_share_of(const struct tide_work_share *share, unsigned n);
/*
 * The size of a worker's buffer: a power of two, at most `most`, which is one too. workers: of one engine
 * that runs alone. The result is the same for all engines that entered, even when some have left.
 */
size_t tide_work_share_buffer(const struct tide_work_share *share, unsigned workers, size_t most);

/* Called by a worker that holds the lock: the first error is kept, later ones are dropped; all workers end soon. */
void tide_work_fail(struct tide_work *work, struct tide_error *err);

/*
 * Runs the workers until the last one is done. -1 only when none could be started; the workers' own error is in
 * work->error.
 */
int tide_work_run(struct tide_work *work, struct tide_error *err);

#endif
