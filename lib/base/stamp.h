/*
 * The stamp of an image file: its size and the time of its last change. Equal stamps mean that nothing has
 * written to the file in between (tidemark.7, Trust).
 */
#ifndef TIDE_STAMP_H
#define TIDE_STAMP_H

#include "tidemark.h"

struct tide_stamp {
	bool valid;    /* false for block devices, whose files have no such time */
	uint64_t size; /* bytes */
	int64_t mtime_sec;
	uint32_t mtime_nsec;
};

int tide_stamp_take(int fd, struct tide_stamp *stamp, struct tide_error *err);

/*
 * Adds the stamp of an image's second file: the result is the sum of both, so that a change of either file
 * changes it. A stamp that is not valid adds nothing.
 */
void tide_stamp_add(struct tide_stamp *stamp, const struct tide_stamp *other);

/* True also when one of them is not valid, because then nothing can be compared. */
bool tide_stamp_is_equal(const struct tide_stamp *a, const struct tide_stamp *b);

#endif
