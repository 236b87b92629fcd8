/*
 * Workers: the threads of an engine that goes through a disk in pieces (copy, compare).
 *
 * The engine embeds a struct tide_work, says how many workers it wants and what one does,
 * and keeps its own state under the same lock.  Here are the parts that every engine has:
 * a buffer for each worker, fewer threads when no more can be had, progress about ten times
 * a second from the caller's thread while they run, and the first error, which ends the
 * others.
 *
 * Engines that run side by side share the machine: each has an equal part of the workers and of the memory for their
 * buffers, and when one has ended, the others get more workers.
 */
#ifndef TIDE_WORK_H
#define TIDE_WORK_H

#include "event.h"

#define TIDE_WORK_MAX   16u
#define TIDE_WORK_USUAL 4u /* for those that wait for disks */

struct tide_work_share {
	unsigned entered;         /* all of them */
	_Atomic unsigned engines; /* that are at work, or will be */
};

struct tide_work {
	/* What the engine says. */
	void (*run)(struct tide_work *work, uint8_t *buf); /* one worker: takes pieces until there are no more */
	const struct tide_work_share *share;               /* with whom; NULL: with nobody */
	bool alone;      /* not worth a thread: the caller's does it; for one worker */
	size_t buf_size; /* bytes for each worker; aligned for direct transfers */
	struct tide_sink *sink;
	const char *device;     /* for progress; NULL: none is reported */
	uint64_t len;           /* for progress: bytes to do, and */
	const uint64_t *offset; /* where the engine counts those done, under the lock */

	pthread_mutex_t lock;
	/* Under the lock: */
	unsigned workers; /* at most TIDE_WORK_MAX; 0: nothing to do; may grow while they run */
	bool stop;        /* no worker takes another piece */
	struct tide_error error;

	/* Its own. */
	pthread_cond_t ended;
	unsigned running;
};

/* CLOCK_MONOTONIC. */
uint64_t tide_work_now_ns(void);

void tide_work_init(struct tide_work *work);
void tide_work_release(struct tide_work *work);

/* All enter before the first one begins, so that it does not take what is the others'. */
void tide_work_share_enter(struct tide_work_share *share);
void tide_work_share_leave(struct tide_work_share *share);
/* This engine's part of n, rounded up; share may be NULL. */
unsigned tide_work_share_of(const struct tide_work_share *share, unsigned n);
/*
 * What a worker's buffer may be, a power of two, at most `most`, which is one too.  workers: of one engine that is
 * alone. It is the same for all who entered, whoever has left.
 */
size_t tide_work_share_buffer(const struct tide_work_share *share, unsigned workers, size_t most);

/* For a worker that holds the lock: the first error stays, later ones are dropped; all workers end soon. */
void tide_work_fail(struct tide_work *work, struct tide_error *err);

/* Until the last worker is done.  -1 only when none could be started; what they met is in work->error. */
int tide_work_run(struct tide_work *work, struct tide_error *err);

#endif
