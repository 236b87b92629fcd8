/*
 * Tracked writes: data reaches the image only after every enabled bitmap has recorded it,
 * durably.
 *
 * The sidecar is replaced twice: before the write, with the range dirty and a writer token
 * that says a tracked write is under way, and after it, with the image's new stamp.  A
 * program that dies in between leaves too many dirty bits, never too few (node.h).  When
 * the length of the input is not known, ranges are recorded ahead of it in growing steps,
 * and the last replacement takes back what was not reached.
 */
#ifndef TIDE_WRITE_H
#define TIDE_WRITE_H

#include "event.h"
#include "node.h"

struct tide_write;

/* The node is open for writing.  Checks, records the range in the node and raises the writer token. */
int tide_write_prepare(struct tide_node *node, const struct tide_image_write *args, struct tide_sink *sink,
                       struct tide_write **write, struct tide_error *err);
/* Once the node's sidecar is committed: writes, and commits the sidecar that tells what was written. */
int tide_write_run(struct tide_write *write, struct tide_error *err);
void tide_write_free(struct tide_write *write);

#endif
