/*
 * The copy engine: moves the marked parts of one image to another.
 *
 * The plan is a bitmap with one bit a copy unit.  Workers take its dirty runs in ascending
 * order, in pieces; each piece is split by what the source says is there: zeroes and holes
 * are never read, and reach the target as zeroes only where it would not read as zeroes by
 * itself; data is read through the source's chain and written in runs as long as the target
 * can place them.  Data that turns out to be all zero bytes is stored as zeroes too.
 * Writeback of each piece is started at once, so that the sync at the end finds little to do.
 *
 * A compressed copy is stored in the order of the disk, piece after piece, so that the target's
 * file depends on the source alone and not on how fast which worker was; reading and
 * compressing go on side by side meanwhile (copy_pack.h).
 *
 * Memory: one buffer a worker, two to compress, whatever the disk's size; smaller ones for many copies at once.
 */
#ifndef TIDE_COPY_H
#define TIDE_COPY_H

#include "copy_way.h"
#include "base/event.h"
#include "image/image.h"
#include "base/work.h"

#define TIDE_COPY_WORKERS        TIDE_WORK_USUAL
#define TIDE_COPY_WORKERS_DIRECT 8u /* that read directly, each waiting for the disk */

struct tide_copy {
	/* What to do. */
	struct tide_image *source, *target;
	uint64_t unit;                 /* bytes, a power of two, at least the target's cluster size */
	struct tide_bitmap *todo;      /* over the target's disk, granularity `unit`; unit by unit reset once copied */
	bool target_reads_zero;        /* what is not written reads as zeroes */
	uint64_t speed;                /* bytes a second; 0: no limit */
	uint64_t piece_max;            /* bytes a worker takes at once; 0: no limit but the engine's */
	unsigned workers;              /* at most so many; 0: as many as is best */
	struct tide_work_share *share; /* with copies that run at the same time; NULL: there are none */
	bool compress;                 /* the target's format can: tide_image_can_compress */
	enum tide_copy_way way;        /* TIDE_COPY_WAY_AUTO: the best for each stretch */
	bool detect_zeroes;            /* all data passes through here and is looked at, whatever the way */
	const char *device;            /* for progress; NULL: none is reported */
	struct tide_sink *sink;        /* cancels, and hears of progress */
	atomic_bool stop;              /* set from elsewhere: end soon, as cancelled */
	/*
	 * Asked when a piece fails, by one worker at a time: true to try it again, which may be after a wait.
	 * tries counts the failures of this piece.  NULL: never.
	 */
	bool (*retry)(struct tide_copy *copy, bool reading, unsigned tries, const struct tide_error *err);

	/* How it went. */
	uint64_t len, offset; /* bytes of whole copy units: to do, done */
	bool cancelled;
	bool failed_reading; /* which side the error came from */
};

/* The units of [0, size) that a bitmap of any granularity touches; all of them when dirty is NULL. */
struct tide_bitmap *tide_copy_plan(uint64_t size, uint64_t unit, const struct tide_bitmap *dirty,
                                   struct tide_error *err);

/* Should the copy end now?  For `retry`, which must not outlast a cancel. */
bool tide_copy_is_stopped(struct tide_copy *copy);

/*
 * Copies everything in todo.  -1 on the first error (err->sys holds errno where there is
 * one) or when cancelled; todo then holds the units that were not copied.  Nothing is
 * flushed.
 */
int tide_copy_run(struct tide_copy *copy, struct tide_error *err);

#endif
