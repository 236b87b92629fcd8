/*
 * Tracked writes: data reaches the image only after every enabled bitmap has recorded it,
 * durably.
 *
 * The sidecar's bitmaps record in the write log (node_log.h), which is closed cleanly for the next write: the
 * sidecar itself is not written.  Bitmaps inside the image are changed there before the write and, if less
 * was written than recorded, once more after it.  A program that dies in between leaves too
 * many dirty bits, never too few (node.h).  If the length of the input is unknown, ranges are recorded
 * ahead of it in growing steps, and at the end the ranges that were not written become clean again.
 */
#ifndef TIDE_TRACKED_WRITE_H
#define TIDE_TRACKED_WRITE_H

#include "base/event.h"
#include "node/node.h"

struct tide_tracked_write;

/* Checks the write to a node that is open for writing, and reads the first input; changes nothing on disk. */
int tide_tracked_write_prepare(struct tide_node *node, const struct tide_image_write *args, struct tide_sink *sink,
                               struct tide_tracked_write **write, struct tide_error *err);
/* Records and writes, then clears the bits that were recorded but not written.  The node must be committed. */
int tide_tracked_write_run(struct tide_tracked_write *write, struct tide_error *err);
void tide_tracked_write_free(struct tide_tracked_write *write);

#endif
