/*
 * An existing target whose own bitmaps record what a job writes to it: opened as a node, with the sidecar that the user
 * named.
 *
 * The ranges to write are in the write log before the first of them is written.  If the job dies, the next command on
 * the target finds the log and counts them as dirty.
 */
#ifndef TIDE_TARGET_NODE_H
#define TIDE_TARGET_NODE_H

#include "node/node.h"
#include "target.h"

/*
 * Opens the target, whose image stays the node's.  source: the node that is read; allow and dry-run are as for it. The
 * sidecar must exist.
 */
int tide_target_node_open(struct tide_target *target, const char *path, const char *format, const char *sidecar,
                          const struct tide_node *source, struct tide_sink *sink, struct tide_node **node,
                          struct tide_error *err);
/* Records what is going to be written, after tide_node_log_prepare; to be followed by end, also if the write fails. */
int tide_target_node_record(struct tide_node *node, const struct tide_bitmap *todo, struct tide_error *err);
/* Makes the target durable, and adds what was recorded to the bitmaps. */
int tide_target_node_end(struct tide_node *node, struct tide_sink *sink, struct tide_error *err);

#endif
