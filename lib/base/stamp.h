/*
 * The stamp of an image file: how large it was, and when it was last changed.  Two equal
 * stamps say that nothing has written to the file in between (tidemark.7, Trust).
 */
#ifndef TIDE_STAMP_H
#define TIDE_STAMP_H

#include "tidemark.h"

struct tide_stamp {
	bool valid;    /* false for block devices, which have no such time */
	uint64_t size; /* bytes */
	int64_t mtime_sec;
	uint32_t mtime_nsec;
};

int tide_stamp_take(int fd, struct tide_stamp *stamp, struct tide_error *err);

/*
 * For an image of two files: the stamp then is the sum of theirs, so that a change of either changes it.  One that is
 * not valid adds nothing.
 */
void tide_stamp_add(struct tide_stamp *stamp, const struct tide_stamp *other);

/* True also when one of them is not valid: then there is nothing to compare. */
bool tide_stamp_is_equal(const struct tide_stamp *a, const struct tide_stamp *b);

#endif
