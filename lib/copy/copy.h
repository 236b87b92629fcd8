/*
 * The copy engine: copies the marked parts of one image to another.
 *
 * The plan is a bitmap with one bit for each copy unit.  Workers take its dirty runs in ascending order, in pieces.
 * The source's extents divide each piece: zeroes and holes are never read, and are written to the target only where
 * it would not read as zeroes by itself; data is read through the source's chain and written in runs as long as the
 * target can place them.  Data that consists of zero bytes is stored as zeroes, too.  The engine starts the writeback
 * of what it has written early, so that little is left for the sync at the end.
 *
 * A compressed copy is stored piece by piece in the order of the disk, so the target's file depends on the source
 * alone and not on the speed of the workers.  Reading and compressing run in parallel.
 *
 * Memory: one buffer for each worker, two with compression, whatever the disk's size; smaller buffers when several
 * copies run at the same time.
 *
 * Ways of copying:
 *
 *   reflink   the target's file shares the blocks of the source's file (FICLONERANGE) on btrfs, XFS and bcachefs.
 *             Only metadata is written.
 *   kernel    copy_file_range: the bytes stay in the kernel, or on the server of a network file system.
 *   rw        workers read and write through the page cache.
 *   direct    the same around the page cache; by default only what is not in memory is read around it.
 *   uring     another name for direct: with transfers as large as these, four threads keep a disk as busy as a deep
 *             queue does (tests/bench/copier.c has both), and they are simpler.
 *
 * By default the engine chooses for each stretch of data: it shares what can be shared, lets a network file system
 * copy what it can copy by itself, and copies the rest directly if the copy is large, else through the page cache.  It
 * falls back to the next way when a way is impossible for a reason that has nothing to do with the data.  It falls
 * back after an I/O error, too, because only rw can distinguish a source that cannot be read from a target that cannot
 * be written.
 */
#ifndef TIDE_COPY_H
#define TIDE_COPY_H

#include "base/event.h"
#include "base/work.h"
#include "image/image.h"

#define TIDE_COPY_WORKERS        TIDE_WORK_USUAL
#define TIDE_COPY_WORKERS_DIRECT 8u /* for direct reads, during which each worker waits for the disk */

enum tide_copy_way {
	TIDE_COPY_WAY_AUTO = 0,
	TIDE_COPY_WAY_REFLINK,
	TIDE_COPY_WAY_KERNEL,
	TIDE_COPY_WAY_RW,
	TIDE_COPY_WAY_DIRECT,
};

struct tide_copy {
	/* What to do. */
	struct tide_image *source, *target;
	uint64_t unit;                 /* bytes, a power of two, at least tide_copy_unit_min */
	struct tide_bitmap *todo;      /* over the target's disk, granularity `unit`; each unit is reset once copied */
	bool target_reads_zero;        /* what is not written reads as zeroes */
	uint64_t speed;                /* bytes a second; 0: no limit */
	uint64_t piece_max;            /* bytes a worker takes at once; 0: the engine's own limit */
	unsigned workers;              /* maximum; 0: the engine chooses */
	struct tide_work_share *share; /* with copies that run at the same time; NULL: there are none */
	bool compress;                 /* only if tide_image_can_compress(target) */
	enum tide_copy_way way;        /* TIDE_COPY_WAY_AUTO: the best one for each stretch */
	bool detect_zeroes;            /* read all data and look for zeroes in it, whatever the way */
	const char *device;            /* for progress; NULL: none is reported */
	struct tide_sink *sink;        /* for cancelling and progress */
	atomic_bool stop;              /* another thread sets it to end the copy early, as if it was cancelled */
	/*
	 * Called when a piece fails, by one worker at a time; may wait.  Returns true to try the piece again.  tries
	 * counts the failures of this piece.  NULL: never try again.
	 */
	bool (*retry)(struct tide_copy *copy, bool reading, unsigned tries, const struct tide_error *err);

	/* Results. */
	uint64_t len, offset; /* bytes of whole copy units: to do, done */
	bool cancelled;
	bool failed_reading; /* the error came from the source */
};

/* The way that the environment variable TIDE_COPY asks for. */
int tide_copy_way_wanted(enum tide_copy_way *way, struct tide_error *err);

/* The smallest unit for this target: compressed data needs whole clusters. 0: any unit. */
uint64_t tide_copy_unit_min(const struct tide_image *target, bool compress);

/* The units of [0, size) that a bitmap of any granularity touches; all of them when dirty is NULL. */
struct tide_bitmap *tide_copy_plan(uint64_t size, uint64_t unit, const struct tide_bitmap *dirty,
                                   struct tide_error *err);

/* Should the copy end now?  For `retry`, which must not outlast a cancel. */
bool tide_copy_is_stopped(struct tide_copy *copy);

/*
 * Copies everything in todo.  Returns -1 on the first error (err->sys is its errno, if it has one) or when
 * cancelled; todo then holds the units that were not copied.  Does not flush.
 */
int tide_copy_run(struct tide_copy *copy, struct tide_error *err);

#endif
