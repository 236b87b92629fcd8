/*
 * Actions: the verbs of a transaction, one table entry each.
 *
 *   decide   only where the state of the nodes, which are open by now, says what is to be done:
 *            appends the steps that are run in this one's place.
 *   prepare  does all that can fail: opens and locks nodes, checks, changes them in memory,
 *            makes targets that have no name yet.
 *   run      work that comes before the reply: tracked writes, new images, restores.
 *            Called once the sidecars of all nodes are committed.
 *   job      the backup job that prepare made: its work comes after the reply, and it
 *            delivers its own events.
 *   clean    whatever became of the transaction: frees what the step holds.
 *
 * There is no abort: bitmaps change in nodes that are dropped unless they are committed
 * (node.h), and targets have no name until their job gives them one.
 */
#ifndef TIDE_ACTION_H
#define TIDE_ACTION_H

#include "job/backup.h"
#include "node/node.h"
#include "session.h"

struct tide_step {
	const struct tide_action *action;
	void *args;     /* the action's argument structure, a copy */
	void *state;    /* the action's own */
	size_t n_owned; /* strings and arrays that the copy of args points to */
	void **owned;
};

struct tide_action {
	const char *name; /* QMP's */
	size_t args_size;
	/* Tells each node that prepare will open how it will (tide_node_want); NULL: none. */
	void (*declare)(struct tide_session *session, const struct tide_step *step);
	/* Makes the step's own copies of what args points to. */
	int (*copy_args)(struct tide_step *step, struct tide_error *err);
	int (*decide)(struct tide_txn *txn, const struct tide_step *step, struct tide_error *err);
	int (*prepare)(struct tide_session *session, struct tide_step *step, struct tide_error *err);
	int (*run)(struct tide_session *session, struct tide_step *step, struct tide_error *err);
	struct tide_backup_job *(*job)(const struct tide_step *step);
	void (*clean)(struct tide_step *step);
};

extern const struct tide_action tide_action_bitmap_add, tide_action_bitmap_remove, tide_action_bitmap_clear,
        tide_action_bitmap_enable, tide_action_bitmap_disable, tide_action_bitmap_merge, tide_action_bitmap_mark,
        tide_action_bitmap_rescan, tide_action_bitmap_import, tide_action_bitmap_export, tide_action_image_write,
        tide_action_image_create, tide_action_backup, tide_action_backup_auto, tide_action_chain_restore,
        tide_action_blockdev_backup, tide_action_abort;

/* The whole of bitmap-add's prepare, for the actions that make a bitmap on their way. */
int tide_action_add_bitmap(struct tide_session *session, const struct tide_bitmap_add *args, struct tide_error *err);

/* The copy_args of all that begins a backup. */
int tide_action_backup_copy(struct tide_step *step, struct tide_error *err);

/* Replaces *s, which may be NULL, by a copy that lives as long as the step. */
int tide_action_own_string(struct tide_step *step, const char **s, struct tide_error *err);
/* The same for an array. */
void *tide_action_own(struct tide_step *step, const void *data, size_t n, size_t size, struct tide_error *err);

#endif
