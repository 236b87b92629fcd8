/*
 * The stamp of an image file: its size and the time of its last change; of a block device, the kernel's counter of
 * writes. Equal stamps mean that nothing has written to the file in between (tidemark.7, Trust).
 */
#ifndef TIDE_STAMP_H
#define TIDE_STAMP_H

#include "device.h"
#include "tidemark.h"

struct tide_stamp {
	bool valid;    /* size and times are; false for block devices, whose files have no such time */
	uint64_t size; /* bytes */
	int64_t mtime_sec;
	uint32_t mtime_nsec;
	struct tide_counter counter; /* of a block device; compared within one boot and one attachment only */
};

int tide_stamp_take(int fd, struct tide_stamp *stamp, struct tide_error *err);

/*
 * Returns when each later change of these files will change their times, so that a stamp taken before stays equal only
 * if nothing is written from now on.  Two things could hide a change: a clock that has not advanced since the last one,
 * so this waits for its next tick (a whole second where the file system counts in seconds); and a page of a shared
 * mapping that was dirty already, so this writes the pages out, after which the next store updates the time again.
 * Block devices and -1 are skipped.
 */
int tide_stamp_settle(const int *fds, size_t n, struct tide_error *err);
/* Does a write change the file's stamp at once, by this machine's clock? A device's counter waits for the write-out. */
bool tide_stamp_is_local(int fd);

/*
 * Adds the stamp of an image's second file: the result is the sum of both, so that a change of either file
 * changes it. A stamp that is not valid adds nothing.
 */
void tide_stamp_add(struct tide_stamp *stamp, const struct tide_stamp *other);

/* True also when something is not valid in one of them, because then it cannot be compared. */
bool tide_stamp_is_equal(const struct tide_stamp *a, const struct tide_stamp *b);

#endif
