/*
 * Rescanning: which granules of a disk differ from another image, such as the last backup.
 *
 * It makes an inconsistent bitmap usable again: the result replaces the contents of the bitmap.
 */
#ifndef TIDE_RESCAN_H
#define TIDE_RESCAN_H

#include "base/event.h"
#include "node/node.h"

/*
 * Compares the node, which is open and therefore locked, with args->against and its chain.  *out: a new bitmap of the
 * granularity, over the node's disk; if the disk is longer than the other, the rest is dirty where it is not zero. When
 * it returns 0, neither image has changed during the comparison.  *base: what the new bitmap counts from, which the
 * caller frees; NULL unless the other image is a backup that is known.
 */
int tide_rescan_run(struct tide_node *node, const struct tide_bitmap_rescan *args, uint64_t granularity,
                    struct tide_sink *sink, struct tide_bitmap **out, struct tide_base **base, struct tide_error *err);

#endif
