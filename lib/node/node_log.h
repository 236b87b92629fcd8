/*
 * A node and its write log (write_log.h): SIDECAR.log, the writes since the sidecar was last
 * replaced.
 *
 * Opening the node reads the log and sets its bits in the bitmaps in memory.  The next commit writes
 * them to disk and then removes the log; the sidecar stores the identity of the log, so that a
 * log that stayed because of a death in between is not counted twice.
 *   - clean, and of this sidecar: its stamp is the image's.  A tracked write keeps and
 *     continues it (TIDE_NODE_LOG_PENDING).
 *   - its writer died: a new stamp is taken, because the log has the bits of all its writes.
 *     But a log whose bits may have been lost, because the storage went back, counts as damaged.
 *   - its writer lives: a node that is opened for reading shows the bits of this moment.
 *   - damaged: the writes are unknown, so everything is dirty.
 *   - of another sidecar: its bits are set, its stamp is not used.
 *   - a file of another program: it stays, and tracked writes are refused until it is moved.
 *
 * While this node is itself the writer, between begin and clean or end, node->in_sidecar.list equals the
 * sidecar on disk, and no other program can change that: the image is locked.
 */
#ifndef TIDE_NODE_LOG_H
#define TIDE_NODE_LOG_H

#include "node.h"

void tide_node_log_release(struct tide_node *node);

/* Called when sidecar and image are open.  1: the sidecar was replaced meanwhile, read it again. */
int tide_node_log_open(struct tide_node *node, struct tide_sink *sink, struct tide_error *err);
/* Sets the bits of a pending log in the bitmaps; called before the bitmaps are used. */
int tide_node_log_fold(struct tide_node *node, struct tide_error *err);
/* Removes the file; called when the bitmaps on disk have its bits. */
void tide_node_log_remove(struct tide_node *node);

/* Does another program record in the node's log now?  Then the node can be opened for reading beside it. */
bool tide_node_log_is_live(const struct tide_node *node);

/* Writes that nothing recorded came before this node's: warns, and the sidecar stores that with its next commit. */
void tide_node_log_keep_untracked(struct tide_node *node, struct tide_sink *sink);
/* Before begin: stores what opening the node has found and repaired, and unlocks the sidecar. */
int tide_node_log_prepare(struct tide_node *node, struct tide_sink *sink, struct tide_error *err);
/*
 * From now on the log records the writes of this node.  with_image: also for the enabled bitmaps inside the image,
 * which are marked there as in use.  All other changes of the node have been committed.
 */
int tide_node_log_begin(struct tide_node *node, bool durable, bool with_image, struct tide_error *err);
/* Another program has written to the image: the bitmaps are inconsistent, and the log says so too. */
int tide_node_log_distrust(struct tide_node *node, struct tide_error *err);
void tide_node_log_warn_others(const struct tide_node *node, struct tide_sink *sink);
/* Called after a write that is durable, with its times: closes the log cleanly, so that the next write can continue it.
 */
int tide_node_log_clean(struct tide_node *node, struct tide_error *err);
/* The same, but commits the recorded bits to the bitmaps and removes the log. */
int tide_node_log_end(struct tide_node *node, struct tide_sink *sink, struct tide_error *err);

#endif
