/*
 * A node and its write log (write_log.h): SIDECAR.log, what was written since the sidecar was
 * last replaced.
 *
 * Opening the node looks at it.  What it says is taken into the bitmaps in memory, and is on
 * disk with the next commit, after which the log goes; the sidecar remembers its identity, so that a
 * log that was left behind by a death in between is not taken twice.
 *   - clean, and of this sidecar: its stamp is the image's.  A tracked write leaves it
 *     as it is and goes on with it (log_pending).
 *   - its writer died: the stamp is taken anew, for what the writer wrote is there.
 *     But a log whose bits may have been lost with the machine's power counts as damaged.
 *   - its writer lives: shows what is dirty at this moment, to those who only look.
 *   - damaged: nobody knows what was written, so everything is dirty.
 *   - of another sidecar: its bits are taken, its stamp is not.
 *
 * While this node is itself the writer, between begin and clean or end, the sidecar on disk is
 * node->in_sidecar.list, and nobody else can change it: the image is locked.
 */
#ifndef TIDE_NODE_LOG_H
#define TIDE_NODE_LOG_H

#include "node.h"

void tide_node_log_release(struct tide_node *node);

/* Called when sidecar and image are open.  1: the sidecar was replaced meanwhile, read it again. */
int tide_node_log_open(struct tide_node *node, struct tide_sink *sink, struct tide_error *err);
/* Takes a pending log into the bitmaps, for they are going to be looked at. */
int tide_node_log_fold(struct tide_node *node, struct tide_error *err);
/* What is on disk now has the log's bits. */
void tide_node_log_remove(struct tide_node *node);

/* Is somebody writing to the node's log, whom a looker need not wait for? */
bool tide_node_log_is_live(const struct tide_node *node);

/*
 * From now on the log records for this node.  with_image: the enabled bitmaps inside the image too, which are marked
 * there as in use.  Everything else has been committed.
 */
int tide_node_log_begin(struct tide_node *node, bool durable, bool with_image, struct tide_error *err);
/* The write that has ended is all there, durable, and the image's stamp is that of now; the next one may go on. */
int tide_node_log_clean(struct tide_node *node, struct tide_error *err);
/* The same, but the bitmaps get what was recorded, on disk, and the log goes. */
int tide_node_log_end(struct tide_node *node, struct tide_error *err);

#endif
