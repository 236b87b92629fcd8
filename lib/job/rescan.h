/*
 * Rescanning: which granules of a disk differ from another image, the last backup say.
 *
 * It is the way back for a bitmap that cannot be trusted any more: the result takes the
 * place of whatever the bitmap held.
 */
#ifndef TIDE_RESCAN_H
#define TIDE_RESCAN_H

#include "base/event.h"
#include "node/node.h"

/*
 * Compares the node, which is open and so locked, with args->against and its chain.  *out: a new bitmap of the
 * granularity, over the node's disk; what the disk is longer is dirty where it is not zero.  Both images are as they
 * were when it returns 0.
 */
int tide_rescan_run(struct tide_node *node, const struct tide_bitmap_rescan *args, uint64_t granularity,
                    struct tide_sink *sink, struct tide_bitmap **out, struct tide_error *err);

#endif
