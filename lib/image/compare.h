/*
 * The compare engine: where do two disks differ?
 *
 * Workers take a range in ascending order, in pieces. Each piece is split by the extents of both chains:
 *
 *   zeroes on both sides                equal; nothing is read, however long it is
 *   the same offset of the same file    equal; nothing is read: two overlays of one backing image
 *                                       differ only where one of them holds data
 *   data on one side, zeroes on the     the data is read and tested for zero
 *   other
 *   data on both sides                  both are read and compared
 *
 * Bytes past the end of a disk count as zeroes. A caller that ignores the longer disk's tail ends the range
 * at the end of the shorter disk.
 *
 * The answer comes in units: a unit differs when one of its bytes does, and once that is known the rest of
 * the unit is not read. Units begin at multiples of their size, not of the range's start; those at the
 * range's ends are clipped to it.
 *
 * Memory: two buffers a worker, whatever the disks' sizes.
 */
#ifndef TIDE_COMPARE_H
#define TIDE_COMPARE_H

#include "base/event.h"
#include "image.h"

struct tide_compare {
	/* The task. */
	struct tide_image *a, *b; /* open for reading at least; each with its chain */
	uint64_t start, end;      /* bytes of the disks; may lie past an end, see above */
	uint64_t unit;            /* bytes, a power of two */
	const char *device;       /* for progress reports; NULL: no reports */
	struct tide_sink *sink;   /* checked for cancellation, receives progress */
	/*
	 * Called for a range [off, off + len) that differs: whole units, clipped to the range, each
	 * reported once. Adjacent units are reported together as far as one worker saw them, in NO
	 * particular order. One call at a time, from any thread. -1 ends the comparison.
	 */
	int (*differs)(struct tide_compare *compare, uint64_t off, uint64_t len, struct tide_error *err);
	void *data; /* the caller's */

	/* The result. */
	uint64_t len, offset; /* bytes: of the range, compared so far */
	uint64_t differing;   /* bytes reported to `differs` */
	bool cancelled;
};

/* -1 on the first error, which names the file, or when cancelled; the reported ranges are then incomplete. */
int tide_compare_run(struct tide_compare *compare, struct tide_error *err);

#endif
