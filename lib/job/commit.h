/*
 * The commit: the one way in which a transaction takes effect on disk.
 *
 * Its members are nodes and jobs.  Each stages its new content durably beside the content that it
 * replaces; only a rename, or a switch of a few bytes inside an image, is left.  If more than one of
 * these is due, a commit record is written first (commit_record.h): without the record nothing has happened,
 * with it all of them will take place, made by this program or the next opener.  So several
 * files change together or not at all, also after a death or a loss of power.
 *
 *   stage all ─► record ─► recorded ─► commit all ─► remove the record ─► unlock all
 *        │ fails     │ fails               │ fails
 *        └───────────┴─► nothing changed   ├─► nothing is renamed yet: the record is taken back, nothing changed
 *                                          └─► it stays, and the next opener completes it
 *
 * All new images get their names before any bitmap is settled, also in the order of the record: so
 * a person who gives up a record while an image lacks its name has the bitmaps of before.
 *
 * Members are staged in the order of their sidecars' paths, as staging locks those; that order
 * is the same for every program, so two commits never wait for each other.
 *
 * Threads: one commit belongs to one thread; commits of other jobs may run at the same time.
 */
#ifndef TIDE_COMMIT_H
#define TIDE_COMMIT_H

#include "base/event.h"
#include "node/node.h"
#include "store/commit_record.h"
#include "target.h"

/* The order of the renames and switches. */
enum tide_commit_step {
	TIDE_COMMIT_NAMES,   /* of new images */
	TIDE_COMMIT_BITMAPS, /* in either store */
	TIDE_COMMIT_STEPS,
};

struct tide_commit_ops {
	/* The node whose image leads to the record after a death; NULL: none. */
	struct tide_node *(*node)(void *member);
	/* The new image that the member names, beside which the record is if no node has a place for it; NULL: none.
	 */
	struct tide_target *(*target)(void *member);
	/* Does everything that can be refused: locks the sidecar, makes all content durable.  The sink takes warnings.
	 */
	int (*stage)(void *member, struct tide_sink *sink, struct tide_error *err);
	/* How many renames and switches are left. */
	unsigned (*count)(const void *member);
	/* Adds those of the step to the record, with durable temporary names. */
	int (*add_to_record)(void *member, enum tide_commit_step step, struct tide_commit_record *record,
	                     struct tide_error *err);
	/* The record is durable: from now on the staged files are kept, even after an error. */
	void (*recorded)(void *member);
	/* The record was removed: the staged files may be removed, too. */
	void (*unrecorded)(void *member);
	/*
	 * Makes the renames and switches of the step.  A member that fails keeps the staged files that it could not put
	 * in place.
	 */
	int (*commit)(void *member, enum tide_commit_step step, struct tide_error *err);
	/* Do all staged files still have their temporary names? */
	bool (*is_untouched)(const void *member);
	/* After an error: are those of the step in place, and only not known to be durable there? */
	bool (*is_made)(const void *member, enum tide_commit_step step);
	/*
	 * The transaction has been decided, and what this member brings could not be put in place; the next opener will
	 * try again.  NULL: a warning is enough.
	 */
	void (*late)(void *member, struct tide_error *why);
	/* Gives the sidecar's lock back. */
	void (*unlock)(void *member);
};

struct tide_commit_member {
	const struct tide_commit_ops *ops;
	void *self;
};

struct tide_commit {
	const struct tide_commit_member *members;
	size_t n;
	struct tide_sink *sink;
};

/* A node as a member: its changed bitmaps, in either store (node.h). */
struct tide_commit_member tide_commit_node_member(struct tide_node *node);

/* A node whose changes wait for the end of a group: staging it begins with them (tide_node_load_deferred). */
struct tide_commit_member tide_commit_deferred_member(struct tide_node *node);

/* A new image as a member: its names.  If the commit fails, the image does not exist. */
struct tide_commit_member tide_commit_target_member(struct tide_target *target);

/*
 * 0: all members have taken effect, or will when the next opener completes the record; a warning says which could not,
 * or are not known to be durable.
 * -1: none has.  With TIDE_E_PARTIAL the record stays, because a new image that no job answers for could not be put in
 * place.  *bad (may be NULL): the member that failed, 0 if no single one did.
 */
int tide_commit_run(const struct tide_commit *commit, size_t *bad, struct tide_error *err);

#endif
