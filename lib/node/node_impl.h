/*
 * Declarations that the parts of a node share: node.c, bitmaps by name and the commit; node_open.c, opening and
 * repairs; node_sidecar.c and node_image.c, the two stores; node_group.c, changes that wait for a group.  No other file
 * includes this.
 */
#ifndef TIDE_NODE_IMPL_H
#define TIDE_NODE_IMPL_H

#include "node.h"

/*
 * The operations in which the two stores of bitmaps differ.  load and clear make an entry's contents available in
 * memory.  stage writes the changed set durably beside the one on disk; commit puts it in place; each is called for a
 * dirty set only.
 */
struct tide_bitmap_set_ops {
	enum tide_store_kind kind;
	/* Fail with the reason if bitmaps may not be added, or this one may not be changed. */
	int (*check_add)(const struct tide_node *node, struct tide_error *err);
	int (*check_change)(const struct tide_node *node, const struct tide_sidecar_bitmap *entry,
	                    struct tide_error *err);
	struct tide_bitmap *(*load)(struct tide_node *node, struct tide_sidecar_bitmap *entry, struct tide_error *err);
	struct tide_bitmap *(*clear)(struct tide_node *node, struct tide_sidecar_bitmap *entry, struct tide_error *err);
	int (*stage)(struct tide_node *node, struct tide_error *err);
	int (*commit)(struct tide_node *node, struct tide_error *err);
};

extern const struct tide_bitmap_set_ops tide_node_sidecar_ops, tide_node_image_ops;

/* drop: forgets the sidecar in memory with all changes.  load: reads it from disk. */
void tide_node_drop_sidecar(struct tide_node *node);
int tide_node_load_sidecar(struct tide_node *node, struct tide_error *err);
/* Something was written that the bitmaps did not record: those of the sidecar, in memory, become inconsistent. */
void tide_node_distrust(struct tide_node *node);
/* Marks all bitmaps of the sidecar on disk as inconsistent; it has to be read again. */
int tide_node_store_distrust(struct tide_node *node, struct tide_error *err);
/* Stores the image's stamp and block device in a sidecar of the node. */
void tide_node_put_stamp(const struct tide_node *node, struct tide_sidecar *sc);

/* The job that owned this bitmap died: merges the successor back into it. */
int tide_node_roll_back(struct tide_node *node, struct tide_sidecar_bitmap *entry, struct tide_sink *sink,
                        struct tide_error *err);

/*
 * Completes what dead programs left undone, where the node may; node_recover.c.  1: done, and everything has to be read
 * again, the image too if node->image is NULL now.
 */
int tide_node_recover(struct tide_node *node, struct tide_sink *sink, struct tide_error *err);

/* Drops the bitmaps that were marked as removed. */
void tide_node_drop_removed(struct tide_node *node);

#endif
