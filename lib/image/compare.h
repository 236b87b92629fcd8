/*
 * The compare engine: where do two disks differ?
 *
 * Workers take a range in ascending order, in pieces.  Each piece is split by what both
 * chains say is there:
 *
 *   nothing but zeroes on both sides    equal, nothing is read, however long it is;
 *   the same place of the same file     equal, nothing is read: two overlays of one backing
 *                                       image differ only where one of them holds something;
 *   data against zeroes                 the data is read and tested for zero;
 *   data on both sides                  both are read and compared.
 *
 * What lies past the end of a disk counts as zeroes.  A caller to whom the longer disk's tail
 * does not matter ends the range where the shorter one does.
 *
 * The answer comes in units: a unit differs when one of its bytes does, and once that is
 * known the rest of the unit is not read.  Units lie on multiples of their size, not of the
 * range's start; those at the range's ends are clipped to it.
 *
 * Memory: two buffers a worker, whatever the disks' sizes.
 */
#ifndef TIDE_COMPARE_H
#define TIDE_COMPARE_H

#include "base/event.h"
#include "image.h"

struct tide_compare {
	/* What to do. */
	struct tide_image *a, *b; /* open for reading at least; each with its chain */
	uint64_t start, end;      /* bytes of the disks; see above for what may lie past an end */
	uint64_t unit;            /* bytes, a power of two */
	const char *device;       /* for progress; NULL: none is reported */
	struct tide_sink *sink;   /* cancels, and hears of progress */
	/*
	 * [off, off + len) differs: whole units, clipped to the range, each told once.  Neighbours are told together as
	 * far as one worker saw them, in NO particular order.  One call at a time, from any thread.  -1 ends it all.
	 */
	int (*differs)(struct tide_compare *compare, uint64_t off, uint64_t len, struct tide_error *err);
	void *data; /* the caller's */

	/* How it went. */
	uint64_t len, offset; /* bytes: of the range, done */
	uint64_t differing;   /* bytes told to `differs` */
	bool cancelled;
};

/* -1 on the first error, which names the file, or when cancelled: what was told so far is then not all there is. */
int tide_compare_run(struct tide_compare *compare, struct tide_error *err);

#endif
