/*
 * A node's bitmaps inside its image, the persistent ones that QEMU loads, records and
 * saves: node->in_image.list holds them, newest first as QEMU lists them, entries of the
 * same kind as the sidecar's, each read when it is first needed.
 *
 * A change is staged in clusters that nothing refers to, and one sector of the image makes
 * it real (driver.h).  Until then the image is locked as for reading, so that a job
 * may run for long beside other readers; staging takes a writer's lock, and waits for it.
 * Only one program at a time holds an image open in this way (image.h, write_later), so
 * two never wait for each other.
 *
 * What a job uses is busy for other programs through a lock token made of its name.  On disk
 * nothing tells, for nothing has to be undone after a death: what the image holds is what
 * it held before the job.
 *
 * A change of the image moves the stamp that its sidecar knows.  So a sidecar with
 * bitmaps is first marked as by a tracked write (its writer token), and gets the new
 * stamp when all is done.
 */
#ifndef TIDE_NODE_IMAGE_H
#define TIDE_NODE_IMAGE_H

#include "node.h"

/* What the image holds; called when it has been opened. */
int tide_node_image_open(struct tide_node *node, struct tide_error *err);
void tide_node_image_release(struct tide_node *node);
/* What was changed in memory is forgotten. */
int tide_node_image_reload(struct tide_node *node, struct tide_error *err);

/* Can they be changed?  Else why not, in QEMU's words where it has them. */
int tide_node_image_check(const struct tide_node *node, struct tide_error *err);

/* Sets the range in every one that records. */
int tide_node_image_record(struct tide_node *node, uint64_t off, uint64_t len, struct tide_error *err);

/* Busy for other programs, as long as the image is open or until it is dropped. */
int tide_node_image_hold(struct tide_node *node, struct tide_sidecar_bitmap *entry, struct tide_error *err);
uint64_t tide_node_image_token(const char *name);

/* The three steps of a change; after abort, or instead of commit, the image is what it was. */
int tide_node_image_stage(struct tide_node *node, struct tide_error *err);
int tide_node_image_commit(struct tide_node *node, struct tide_error *err);
void tide_node_image_abort(struct tide_node *node);

/*
 * A group that had decided died before its last step in this image: takes that step, unless another program has
 * been there since (then the bitmaps are those of before the group).  Afterwards the image is closed.
 */
int tide_node_image_roll_forward(struct tide_node *node, const char *record, struct tide_sink *sink,
                                 struct tide_error *err);

#endif
