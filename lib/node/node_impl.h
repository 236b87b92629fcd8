/*
 * What the parts of a node share: node.c, bitmaps by name and the commit; node_open.c, which opens and
 * repairs; node_defer.c, changes that wait for a group.  Nobody else includes this.
 */
#ifndef TIDE_NODE_IMPL_H
#define TIDE_NODE_IMPL_H

#include "node.h"

/* The sidecar in memory, and what was changed in it, is forgotten; or read from disk. */
void tide_node_drop_sidecar(struct tide_node *node);
int tide_node_load_sidecar(struct tide_node *node, struct tide_error *err);

/* The job that owned this bitmap died: what its successor recorded goes back. */
int tide_node_roll_back(struct tide_node *node, struct tide_sidecar_bitmap *entry, struct tide_sink *sink,
                        struct tide_error *err);

/* What was marked as removed is gone. */
void tide_node_drop_removed(struct tide_node *node);

#endif
