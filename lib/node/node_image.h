/*
 * A node's bitmaps inside its image, the persistent ones that QEMU loads, records and
 * saves: node->in_image.list holds them, newest first as QEMU lists them, entries of the
 * same kind as the sidecar's, each read when it is first needed.
 *
 * A change is staged in clusters that nothing refers to, and the write of one sector puts it
 * in place (driver.h).  Until staging the image is locked as for reading, so that a long job
 * can run beside other readers; staging takes a writer's lock, and waits for it.
 * Only one program at a time holds an image open in this way (image.h, write_later), so
 * two never wait for each other.
 *
 * A bitmap that a job uses is busy for other programs through a lock token made of its name.  On disk
 * there is no sign of it, because a death needs no repair: the image still has the bitmaps of
 * before the job.
 *
 * A change of the image makes the stamp in its sidecar wrong.  So a sidecar with bitmaps first
 * gets a writer token, as from a tracked write, and the new stamp when the change is complete.
 */
#ifndef TIDE_NODE_IMAGE_H
#define TIDE_NODE_IMAGE_H

#include <sys/types.h>

#include "node.h"
#include "store/commit_record.h"

/* Lists the bitmaps inside the image; called when the image has been opened. */
int tide_node_image_open(struct tide_node *node, struct tide_error *err);
void tide_node_image_release(struct tide_node *node);
/* Forgets the changes in memory and lists the bitmaps again. */
int tide_node_image_reload(struct tide_node *node, struct tide_error *err);

/* Fails with the reason if they cannot be changed, in QEMU's words where it has them. */
int tide_node_image_check(const struct tide_node *node, struct tide_error *err);

/* Sets the range in every bitmap that records. */
int tide_node_image_record(struct tide_node *node, uint64_t off, uint64_t len, struct tide_error *err);

/* Makes a bitmap busy for other programs, until the image is closed or the token is dropped. */
int tide_node_image_hold(struct tide_node *node, struct tide_sidecar_bitmap *entry, struct tide_error *err);
uint64_t tide_node_image_token(const char *name);

/* The three steps of a change.  abort, in place of commit, leaves the image as it was. */
int tide_node_image_stage(struct tide_node *node, struct tide_error *err);
int tide_node_image_commit(struct tide_node *node, struct tide_error *err);
void tide_node_image_abort(struct tide_node *node);
/* The end of a commit that was recorded: the record is gone.  is_pending: it is not, the transaction waits for
 * completion. */
void tide_node_image_end(struct tide_node *node, bool is_pending);

/*
 * Makes a switch that a transaction had decided on before it died, in any image that nobody uses.  1: another program
 * has changed the image since, so the bitmaps inside it stay those of before the transaction.
 */
int tide_node_image_switch(const char *path, const struct tide_commit_change *change, uid_t owner,
                           struct tide_error *err);
/* Would it be 1? */
bool tide_node_image_is_foreign(const char *path, const struct tide_commit_change *change);
/* Closes the node's image, whose locks would be in the way; it is opened again with the next read. */
void tide_node_image_close(struct tide_node *node);

#endif
