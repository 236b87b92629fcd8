/*
 * Tracked writes: data reaches the image only after every enabled bitmap has recorded it,
 * durably.
 *
 * The sidecar's bitmaps record in the write log (node_log.h), which is left clean for the next write: the
 * sidecar itself is not written.  Those inside the image are changed there, before and, if something
 * else was written than expected, after the write.  A program that dies in between leaves too
 * many dirty bits, never too few (node.h).  When the length of the input is not known, ranges are recorded
 * ahead of it in growing steps, and what was not reached is taken back at the end.
 */
#ifndef TIDE_TRACKED_WRITE_H
#define TIDE_TRACKED_WRITE_H

#include "base/event.h"
#include "node/node.h"

struct tide_tracked_write;

/* The node is open for writing.  Checks; changes nothing on disk. */
int tide_tracked_write_prepare(struct tide_node *node, const struct tide_image_write *args, struct tide_sink *sink,
                               struct tide_tracked_write **write, struct tide_error *err);
/* Once the node is committed: records, writes, and settles what was recorded. */
int tide_tracked_write_run(struct tide_tracked_write *write, struct tide_error *err);
void tide_tracked_write_free(struct tide_tracked_write *write);

#endif
