/*
 * The commit: the one way in which a transaction takes effect on disk.
 *
 * Its members are nodes and jobs.  Each makes what it brings durable beside what it will
 * replace (stage); what is left of it is a rename, or a switch of a few bytes inside an image.  As soon
 * as more than one of those is due, a commit record is written first (commit_record.h): without
 * the record nothing has happened, with it every one of them will, whoever makes it.  So several
 * files change together or not at all, a death or a loss of power included.
 *
 *   stage all ─► record ─► recorded ─► commit all ─► remove the record ─► unlock all
 *        │ fails     │ fails               │ fails
 *        └───────────┴─► nothing changed   ├─► nothing is renamed yet: the record is taken back, nothing changed
 *                                          └─► it stays, and the next opener makes the rest
 *
 * Members are staged in the order of their sidecars' paths, as staging locks those; that order
 * is the same for every program, so two commits never wait for each other.
 *
 * Threads: one commit belongs to one thread; commits of other jobs may run beside it.
 */
#ifndef TIDE_COMMIT_H
#define TIDE_COMMIT_H

#include "base/event.h"
#include "node/node.h"
#include "store/commit_record.h"
#include "target.h"

struct tide_commit_ops {
	/* The node whose image leads to the record after a death; NULL: none. */
	struct tide_node *(*node)(void *member);
	/* All that can fail: locks the sidecar, makes all content durable. */
	int (*stage)(void *member, struct tide_error *err);
	/* How many renames and switches are left. */
	unsigned (*count)(const void *member);
	/* Adds them to the record, with durable temporary names. */
	int (*add_to_record)(void *member, struct tide_commit_record *record, struct tide_error *err);
	/* The record is durable: from now on what is staged is kept, whatever happens. */
	void (*recorded)(void *member);
	/* The record was taken back: what is staged may go again. */
	void (*unrecorded)(void *member);
	/* Makes them.  A member that fails keeps what it could not put in place. */
	int (*commit)(void *member, struct tide_error *err);
	/* Is everything that was staged still under its temporary name? */
	bool (*is_untouched)(const void *member);
	/*
	 * The transaction has been decided, and what this member brings could not be put in place, or is not known to
	 * be durable there; the next opener will try again.  NULL: a warning is enough.
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

/* A new image of its own: its names.  On failure it is never there. */
struct tide_commit_member tide_commit_target_member(struct tide_target *target);

/*
 * 0: all members have taken effect, or will when the next opener completes the record; a warning says which could not.
 * -1: none has.  *bad (may be NULL): the member that failed, 0 where it was none in particular.
 */
int tide_commit_run(const struct tide_commit *commit, size_t *bad, struct tide_error *err);

#endif
