/*
 * Actions: the steps of a transaction.
 *
 * An action is one entry, a struct tide_action, beside its functions in the file action_*.c of its subject, and a line
 * in actions.def.  The table of all entries drives the stream of requests (qmp_request.c), the copying of arguments
 * (txn.c), and the lints.  The functions:
 *
 *   declare  says how prepare will open the nodes it needs (tide_node_want); NULL: it opens none with more rights than
 *            reading takes.  All nodes are opened, in one order, before the first action is prepared.
 *   begin    does what takes long and needs its own node only, before the nodes of all are opened: the comparison of a
 *            rescan.  It is called only if there are other actions.
 *   decide   for an action that depends on the state of its nodes, which are open by now: appends the steps that
 *            are run in its place and returns 1, or returns 0: it is run itself.
 *   changes  names the bitmap that the action creates, removes, or lets count from another point; actions that decide
 *            look at those before them.
 *   announce says what later and earlier actions of the transaction need to know of this one; all are asked before the
 *            first action is prepared.
 *   prepare  does all that can fail: checks, changes bitmaps in memory, makes targets that have no name yet.
 *   image    returns the image that begin or prepare has opened beside the nodes.
 *   work     does what takes long and makes what the commit will put in place: a restore's copy.
 *   member   says what takes part in the commit (job/commit.h) beside the bitmaps of the nodes: a new image's names.
 *   run      comes after the commit and before the reply: a tracked write.  Nothing can undo it, so it is a transaction
 *            of its own.
 *   result   comes after run: sets what the reply returns.  If it fails, the transaction has done its work, replies,
 *            and fails with that error.
 *   job      returns the backup job that prepare made.  Its work comes after the reply, and it delivers its own events.
 *   describe adds members to what the reply returns; false: it has none.  w NULL: only asks.
 *   clean    frees what the step holds, whatever became of the transaction.
 *
 * An action has prepare; all else may be NULL.  There is no abort: bitmaps change in nodes that are dropped
 * unless they are committed (node.h), and targets have no name until a commit gives them one.
 */
#ifndef TIDE_ACTION_H
#define TIDE_ACTION_H

#include "job/backup.h"
#include "node/node.h"
#include "qmp_field.h"
#include "session.h"

struct tide_step {
	const struct tide_action *action;
	void *args;                  /* the action's argument structure, a copy */
	void *state;                 /* the action's own */
	struct tide_qmp_owned owned; /* what the copy of the arguments points to */
};

/* How a stream of requests may name an action. */
enum tide_action_use {
	TIDE_ACTION_IN_TRANSACTION = 1 << 0,
	TIDE_ACTION_AS_COMMAND = 1 << 1,
	TIDE_ACTION_ANYWHERE = 3,
};

struct tide_bitmap_change {
	const char *node, *name;
	bool removes; /* the bitmap does not exist afterwards */
};

struct tide_action {
	const char *name; /* in QMP */
	unsigned use;     /* enum tide_action_use; 0: only the library's calls make it */
	const struct tide_qmp_field *fields;
	size_t args_size;
	void (*declare)(struct tide_session *session, const struct tide_step *step);
	/* The step is steps[i]; those before it will change its node. */
	int (*begin)(struct tide_session *session, struct tide_step *steps, size_t i, struct tide_error *err);
	int (*decide)(struct tide_txn *txn, const struct tide_step *step, struct tide_error *err);
	void (*changes)(const struct tide_step *step, struct tide_bitmap_change *change); /* no name: none */
	int (*announce)(struct tide_session *session, const struct tide_step *step, struct tide_error *err);
	int (*prepare)(struct tide_session *session, struct tide_step *step, struct tide_error *err);
	struct tide_image *(*image)(const struct tide_step *step);
	int (*work)(struct tide_session *session, struct tide_step *step, struct tide_error *err);
	bool (*member)(struct tide_step *step, struct tide_commit_member *member); /* false: it has none */
	/* If the step must be the only one of its transaction, returns its name for a message; else NULL.  NULL: never.
	 */
	const char *(*alone)(const struct tide_step *step);
	int (*run)(struct tide_session *session, struct tide_step *step, struct tide_error *err);
	int (*result)(struct tide_txn *txn, const struct tide_step *step, struct tide_error *err);
	struct tide_backup_job *(*job)(const struct tide_step *step);
	bool (*describe)(const struct tide_step *step, struct tide_json_writer *w);
	void (*clean)(struct tide_step *step);
};

#define TIDE_ACTION(name) extern const struct tide_action tide_action_##name;
#include "actions.def"
#undef TIDE_ACTION

/* The table: the action at place i, NULL after the last one. */
const struct tide_action *tide_action_at(size_t i);
const struct tide_action *tide_action_find(const char *name);

/* The words of enum tide_store_kind, from TIDE_STORE_SIDECAR on. */
extern const char *const tide_action_stores[];

/* The prepare of bitmap-add, for other actions that create a bitmap. */
int tide_action_add_bitmap(struct tide_session *session, const struct tide_bitmap_add *args, struct tide_error *err);

#endif
