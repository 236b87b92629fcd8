/*
 * What the parts of a node share: node.c, bitmaps by name and the commit; node_open.c, which opens and
 * repairs; node_defer.c, changes that wait for a group.  Nobody else includes this.
 */
#ifndef TIDE_NODE_IMPL_H
#define TIDE_NODE_IMPL_H

#include "node.h"

/*
 * What differs between the two stores of bitmaps.  load and clear make an entry's contents available in memory.  stage
 * makes the set to come durable beside the one on disk; commit puts it in place; each is called for a dirty set only.
 */
struct tide_bitmap_set_ops {
	enum tide_store_kind kind;
	/* May bitmaps be added, and existing ones be changed?  Else why not. */
	int (*check_add)(const struct tide_node *node, struct tide_error *err);
	int (*check_change)(const struct tide_node *node, const struct tide_sidecar_bitmap *entry,
	                    struct tide_error *err);
	struct tide_bitmap *(*load)(struct tide_node *node, struct tide_sidecar_bitmap *entry, struct tide_error *err);
	struct tide_bitmap *(*clear)(struct tide_node *node, struct tide_sidecar_bitmap *entry, struct tide_error *err);
	int (*stage)(struct tide_node *node, struct tide_error *err);
	int (*commit)(struct tide_node *node, struct tide_error *err);
};

extern const struct tide_bitmap_set_ops tide_node_sidecar_ops, tide_node_image_ops;

/* The sidecar in memory, and what was changed in it, is forgotten; or read from disk. */
void tide_node_drop_sidecar(struct tide_node *node);
int tide_node_load_sidecar(struct tide_node *node, struct tide_error *err);

/* The job that owned this bitmap died: what its successor recorded goes back. */
int tide_node_roll_back(struct tide_node *node, struct tide_sidecar_bitmap *entry, struct tide_sink *sink,
                        struct tide_error *err);

/* What was marked as removed is gone. */
void tide_node_drop_removed(struct tide_node *node);

#endif
