/*
 * The steps of a commit: staging in one order, the record with the pointers that lead to it, the
 * renames, and taking the record back if no rename has been made.
 */
#include "commit.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "base/lock.h"
#include "base/mem.h"
#include "base/sysio.h"

/* A member and its place in the list. */
struct place {
	const struct tide_commit_member *member;
	size_t index;
};

static struct tide_node *node_of(const struct tide_commit_member *member)
{
	return member->ops->node(member->self);
}

/* ---- staging ----------------------------------------------------------------------- */

static const char *sidecar_of(const struct place *place)
{
	const struct tide_node *node = node_of(place->member);

	return node ? node->sidecar_path : NULL;
}

static int by_sidecar(const void *a, const void *b)
{
	const char *x = sidecar_of(a), *y = sidecar_of(b);

	return !x || !y ? (x != NULL) - (y != NULL) : strcmp(x, y);
}

static int stage_all(const struct tide_commit *c, size_t *bad, struct tide_error *err)
{
	TIDE_AUTOFREE struct place *places = tide_mem_alloc(c->n + 1, sizeof(*places), err);

	*bad = 0;
	if (!places)
		return -1;
	for (size_t i = 0; i < c->n; i++)
		places[i] = (struct place){ &c->members[i], i };
	qsort(places, c->n, sizeof(*places), by_sidecar);
	for (size_t i = 0; i < c->n; i++) {
		const struct tide_commit_member *m = places[i].member;

		*bad = places[i].index;
		if (m->ops->stage(m->self, c->sink, err) < 0)
			return -1;
	}
	*bad = 0;
	return 0;
}

static void unlock_all(const struct tide_commit *c)
{
	for (size_t i = 0; i < c->n; i++)
		c->members[i].ops->unlock(c->members[i].self);
}

/* ---- the decision ------------------------------------------------------------------ */

/* Does the node itself take part, with its bitmaps in either store? */
static bool has_stake(const struct tide_node *node)
{
	return tide_node_count_changes(node) > 0;
}

/* Where the record can be: beside the sidecar of a node, or that of a new image. */
struct lead {
	const struct tide_commit_member *member;
	char *sidecar; /* NULL: no place */
	struct tide_node *node;
};

static void release_lead(struct lead *lead)
{
	free(lead->sidecar);
}

#define AUTOLEAD TIDE_CLEANUP(release_lead)

/* The new image that leads to the record because its node cannot. */
static struct tide_target *target_of(const struct tide_commit_member *m)
{
	struct tide_node *node = node_of(m);
	struct tide_target *target = m->ops->target ? m->ops->target(m->self) : NULL;

	return target && target->staged.path && !(node && node->sidecar_path) ? target : NULL;
}

/* Each other new image leads to the record too; without a pointer it is completed with the others. */
static void point_targets(const struct tide_commit *c, const struct lead *lead, const char *record)
{
	for (size_t i = 0; i < c->n; i++) {
		struct tide_target *target = &c->members[i] == lead->member ? NULL : target_of(&c->members[i]);
		struct tide_error ignored = TIDE_ERROR_INIT;

		if (target)
			tide_target_point(target, record, &ignored);
		tide_error_release(&ignored);
	}
}

/*
 * Each other image leads to the record.  An unchanged image may lack a pointer: it is a member only
 * because of the target of its backup.
 */
static int point_all(const struct tide_commit *c, const struct tide_node *lead, const char *record,
                     struct tide_error *err)
{
	for (size_t i = 0; i < c->n; i++) {
		struct tide_node *node = node_of(&c->members[i]);
		struct tide_error why = TIDE_ERROR_INIT;

		if (!node || node == lead || !node->sidecar_path || tide_node_point(node, record, &why) == 0)
			continue;
		if (has_stake(node))
			return tide_error_move(err, &why);
		tide_error_release(&why);
	}
	return 0;
}

static void unpoint_all(const struct tide_commit *c)
{
	for (size_t i = 0; i < c->n; i++) {
		if (node_of(&c->members[i]))
			tide_node_unpoint(node_of(&c->members[i]));
		if (target_of(&c->members[i]))
			tide_target_unpoint(target_of(&c->members[i]));
	}
}

static void leave_pointers(const struct tide_commit *c)
{
	for (size_t i = 0; i < c->n; i++) {
		if (node_of(&c->members[i]))
			tide_node_leave_pointer(node_of(&c->members[i]));
		if (target_of(&c->members[i]))
			tide_target_leave_pointer(target_of(&c->members[i]));
	}
}

/* For more than one change; but a record that no image leads to is of no use. */
static bool needs_record(const struct tide_commit *c)
{
	bool has_place = false;
	unsigned changes = 0;

	for (size_t i = 0; i < c->n; i++) {
		const struct tide_node *node = node_of(&c->members[i]);

		has_place |= (node && node->sidecar_path) || target_of(&c->members[i]);
		changes += c->members[i].ops->count(c->members[i].self);
	}
	return has_place && changes > 1;
}

static int fill_record(const struct tide_commit *c, struct tide_commit_record *record, size_t *bad,
                       struct tide_error *err)
{
	for (enum tide_commit_step step = 0; step < TIDE_COMMIT_STEPS; step++) {
		for (size_t i = 0; i < c->n; i++) {
			*bad = i;
			if (c->members[i].ops->add_to_record(c->members[i].self, step, record, err) < 0)
				return -1;
		}
	}
	*bad = 0;
	return tide_commit_record_sync_names(record, err);
}

/* In this slot of the lead.  1: it is taken. */
static int decide_at(const struct tide_commit *c, const struct lead *lead, struct tide_commit_record *record,
                     const char *slot, int *lock_fd, struct tide_error *err)
{
	int rc = access(slot, F_OK) == 0;

	if (rc == 0)
		point_targets(c, lead, slot);
	if (rc == 0)
		rc = point_all(c, lead->node, slot, err);
	if (rc == 0)
		rc = tide_commit_record_write_at(record, slot, lead->node ? tide_image_fd(lead->node->image) : -1,
		                                 lock_fd, err);
	if (rc)
		unpoint_all(c);
	return rc;
}

/* Beside the lead's sidecar.  *path: the record's, for the caller to free. */
static int decide_with(const struct tide_commit *c, const struct lead *lead, struct tide_commit_record *record,
                       char **path, int *lock_fd, struct tide_error *err)
{
	/* On a new image nobody can hold a token: only the lock on the record shows that the transaction runs. */
	if ((lead->node ? tide_node_hold_token(lead->node, &record->token, err)
	                : tide_lock_token_new(&record->token, err)) < 0)
		return -1;
	for (unsigned i = 0; i < TIDE_COMMIT_SLOTS; i++) {
		TIDE_AUTOFREE char *slot = tide_commit_record_slot(lead->sidecar, i, err);
		int rc = slot ? decide_at(c, lead, record, slot, lock_fd, err) : -1;

		if (rc > 0)
			continue;
		if (rc == 0) {
			*path = slot;
			slot = NULL;
		}
		return rc;
	}
	return tide_commit_record_refuse_full(lead->sidecar, err);
}

/* In the order in which they are tried. */
enum turn { NODES_WITH_STAKE, OTHER_NODES, NEW_IMAGES, N_TURNS };

static int find_lead(const struct tide_commit_member *m, enum turn turn, struct lead *lead, struct tide_error *err)
{
	struct tide_node *node = node_of(m);
	struct tide_target *target = target_of(m);

	*lead = (struct lead){ m, NULL, turn == NEW_IMAGES ? NULL : node };
	if (turn == NEW_IMAGES && target)
		lead->sidecar = tide_store_default(target->staged.path, err);
	else if (turn != NEW_IMAGES && node && node->sidecar_path && has_stake(node) == (turn == NODES_WITH_STAKE))
		lead->sidecar = tide_mem_strdup(node->sidecar_path, err);
	else
		return 0;
	return lead->sidecar ? 0 : -1;
}

/*
 * Beside the first image that has a stake, or else beside any where a file can be written.  *path stays NULL when there
 * is no such place.
 */
static int decide(const struct tide_commit *c, char **path, int *lock_fd, size_t *bad, struct tide_error *err)
{
	TIDE_AUTOCOMMITRECORD struct tide_commit_record record = TIDE_COMMIT_RECORD_INIT;
	struct tide_error why = TIDE_ERROR_INIT;

	if (fill_record(c, &record, bad, err) < 0)
		return -1;
	for (enum turn turn = 0; turn < N_TURNS; turn++) {
		for (size_t i = 0; i < c->n; i++) {
			struct lead lead AUTOLEAD = { 0 };

			if (find_lead(&c->members[i], turn, &lead, err) < 0)
				return -1;
			if (!lead.sidecar)
				continue;
			tide_error_release(&why);
			if (decide_with(c, &lead, &record, path, lock_fd, &why) == 0)
				return 0;
			if (turn == NODES_WITH_STAKE)
				return tide_error_move(err, &why);
		}
	}
	tide_event_warning(c->sink, NULL, "a crash in the next moment may leave the transaction half done: %s",
	                   why.msg);
	tide_error_release(&why);
	return 0;
}

static void set_recorded(const struct tide_commit *c)
{
	for (size_t i = 0; i < c->n; i++)
		c->members[i].ops->recorded(c->members[i].self);
}

/* The decision can be taken back until a file has its name. */
static bool take_back(const struct tide_commit *c, const char *record)
{
	for (size_t i = 0; i < c->n; i++) {
		if (!c->members[i].ops->is_untouched(c->members[i].self))
			return false;
	}
	if (tide_commit_record_remove(record, NULL) < 0)
		return false;
	for (size_t i = 0; i < c->n; i++)
		c->members[i].ops->unrecorded(c->members[i].self);
	unpoint_all(c);
	return true;
}

/* ---- the renames ------------------------------------------------------------------- */

static void say_late(const struct tide_commit *c, const struct tide_commit_member *m, const char *what,
                     struct tide_error *why)
{
	const struct tide_node *node = node_of(m);

	tide_event_alert(c->sink, node ? node->path : NULL, "%s; %s", why->msg, what);
	if (m->ops->late)
		m->ops->late(m->self, why);
	tide_error_release(why);
}

/* The member has done its work; only the sync of a directory failed. */
static void say_unsynced(const struct tide_commit *c, const struct tide_commit_member *m, const char *what,
                         struct tide_error *why)
{
	const struct tide_node *node = node_of(m);

	tide_event_alert(c->sink, node ? node->path : NULL, "%s; the change is done, %s", why->msg, what);
	tide_error_release(why);
}

/* Without a record: one change, which is made or not; or several that nothing could lead to after a death. */
static int commit_plainly(const struct tide_commit *c, size_t *bad, struct tide_error *err)
{
	for (size_t i = 0; i < c->n * TIDE_COMMIT_STEPS; i++) {
		const struct tide_commit_member *m = &c->members[i % c->n];
		enum tide_commit_step step = (enum tide_commit_step)(i / c->n);
		struct tide_error why = TIDE_ERROR_INIT;

		*bad = i % c->n;
		if (m->ops->commit(m->self, step, &why) == 0)
			continue;
		if (m->ops->is_untouched(m->self))
			return tide_error_move(err, &why);
		if (m->ops->is_made(m->self, step))
			say_unsynced(c, m, "and may be lost if the machine loses power now", &why);
		else
			say_late(c, m, "the change is not complete", &why);
	}
	return 0;
}

/* The bitmaps wait for the names of all new images: no job that has one to settle has succeeded. */
static void say_unsettled(const struct tide_commit *c)
{
	for (size_t i = 0; i < c->n; i++) {
		const struct tide_commit_member *m = &c->members[i];
		const struct tide_node *node = node_of(m);
		struct tide_error why = TIDE_ERROR_INIT;

		if (!m->ops->late || !node || !has_stake(node))
			continue;
		tide_error_set(&why, TIDE_E_REFUSED, "Another image of the transaction could not be put in place");
		m->ops->late(m->self, &why);
		tide_error_release(&why);
	}
}

/* A job says itself that it has not succeeded.  A restore has no job. */
static bool lacks_image(const struct tide_commit_member *m)
{
	const struct tide_target *target = m->ops->late || !m->ops->target ? NULL : m->ops->target(m->self);

	return target && !target->staged.named;
}

/* Why the record stays. */
struct pending {
	bool any;         /* a member could not put everything in place */
	bool lacks_image; /* and no job answers for it */
	bool unsynced;    /* everything may be in place, and is not known to be durable */
};

/* -1: the decision was taken back. */
static int commit_step(const struct tide_commit *c, enum tide_commit_step step, const char *record,
                       struct pending *pending, size_t *bad, struct tide_error *err)
{
	for (size_t i = 0; i < c->n; i++) {
		const struct tide_commit_member *m = &c->members[i];
		struct tide_error why = TIDE_ERROR_INIT;

		if (m->ops->commit(m->self, step, &why) == 0)
			continue;
		if (m->ops->is_made(m->self, step)) {
			pending->unsynced = true;
			say_unsynced(c, m,
			             "but is not known to be durable; the next command that changes the image will "
			             "make it so",
			             &why);
			continue;
		}
		*bad = i;
		if (!pending->any && take_back(c, record))
			return tide_error_move(err, &why);
		pending->any = true;
		pending->lacks_image |= lacks_image(m);
		say_late(c, m,
		         "the transaction is decided, and the next command that changes the image will complete it",
		         &why);
	}
	return 0;
}

static int commit_recorded(const struct tide_commit *c, const char *record, size_t *bad, struct tide_error *err)
{
	struct pending pending = { 0 };

	if (commit_step(c, TIDE_COMMIT_NAMES, record, &pending, bad, err) < 0)
		return -1;
	if (pending.any)
		say_unsettled(c);
	else if (commit_step(c, TIDE_COMMIT_BITMAPS, record, &pending, bad, err) < 0)
		return -1;
	if (pending.any || pending.unsynced) {
		leave_pointers(c);
		return pending.lacks_image
		               ? tide_error_set(err, TIDE_E_PARTIAL,
		                                "The transaction is decided, and could not be completed yet")
		               : 0;
	}
	/* The record goes first: a pointer that leads nowhere is harmless, a record that nothing leads to stays for
	 * ever. */
	if (tide_commit_record_remove(record, NULL) == 0)
		unpoint_all(c);
	else
		leave_pointers(c);
	return 0;
}

/* ---- the whole --------------------------------------------------------------------- */

int tide_commit_run(const struct tide_commit *c, size_t *bad, struct tide_error *err)
{
	TIDE_AUTOFREE char *record = NULL;
	TIDE_AUTOCLOSE int lock_fd = -1; /* of the record: while it is locked, no other program completes it */
	size_t at;
	int rc = stage_all(c, &at, err);

	if (rc == 0 && needs_record(c))
		rc = decide(c, &record, &lock_fd, &at, err);
	if (rc == 0 && record) {
		set_recorded(c);
		rc = commit_recorded(c, record, &at, err);
	} else if (rc == 0) {
		rc = commit_plainly(c, &at, err);
	}
	if (rc < 0 && bad)
		*bad = at;
	unlock_all(c);
	return rc;
}

/* ---- nodes as members -------------------------------------------------------------- */

static struct tide_node *member_node(void *member)
{
	return member;
}

static int stage_node(void *member, struct tide_sink *sink, struct tide_error *err)
{
	return tide_node_stage(member, err);
}

static int stage_deferred(void *member, struct tide_sink *sink, struct tide_error *err)
{
	return tide_node_load_deferred(member, sink, err) < 0 ? -1 : tide_node_stage(member, err);
}

static unsigned count_node(const void *member)
{
	return tide_node_count_changes(member);
}

static int add_node(void *member, enum tide_commit_step step, struct tide_commit_record *record, struct tide_error *err)
{
	return step == TIDE_COMMIT_BITMAPS ? tide_node_add_to_record(member, record, err) : 0;
}

static void node_recorded(void *member)
{
	tide_node_recorded(member);
}

static void node_unrecorded(void *member)
{
	tide_node_unrecorded(member);
}

static int commit_node(void *member, enum tide_commit_step step, struct tide_error *err)
{
	return step == TIDE_COMMIT_BITMAPS ? tide_node_commit(member, err) : 0;
}

static bool node_is_untouched(const void *member)
{
	return tide_node_is_untouched(member);
}

static bool node_is_made(const void *member, enum tide_commit_step step)
{
	return step != TIDE_COMMIT_BITMAPS || tide_node_is_made(member);
}

static void unlock_node(void *member)
{
	tide_node_unlock_store(member);
}

/* The functions that both kinds of nodes share. */
#define NODE_OPS                                                                                        \
	.node = member_node, .count = count_node, .add_to_record = add_node, .recorded = node_recorded, \
	.unrecorded = node_unrecorded, .commit = commit_node, .is_untouched = node_is_untouched,        \
	.is_made = node_is_made, .unlock = unlock_node

struct tide_commit_member tide_commit_node_member(struct tide_node *node)
{
	static const struct tide_commit_ops ops = { NODE_OPS, .stage = stage_node };

	return (struct tide_commit_member){ &ops, node };
}

struct tide_commit_member tide_commit_deferred_member(struct tide_node *node)
{
	static const struct tide_commit_ops ops = { NODE_OPS, .stage = stage_deferred };

	return (struct tide_commit_member){ &ops, node };
}

/* ---- targets as members ------------------------------------------------------------ */

static struct tide_node *no_node(void *member)
{
	return NULL;
}

static struct tide_target *member_target(void *member)
{
	struct tide_target *target = member;

	return target->existing ? NULL : target;
}

static int stage_target(void *member, struct tide_sink *sink, struct tide_error *err)
{
	return tide_target_stage(member, err);
}

static unsigned count_target(const void *member)
{
	return tide_target_count_renames(member);
}

static int add_target(void *member, enum tide_commit_step step, struct tide_commit_record *record,
                      struct tide_error *err)
{
	return step == TIDE_COMMIT_NAMES ? tide_target_add_to_record(member, record, err) : 0;
}

static void target_recorded(void *member)
{
	tide_target_recorded(member);
}

static void target_unrecorded(void *member)
{
	tide_target_unrecorded(member);
}

static int name_target(void *member, enum tide_commit_step step, struct tide_error *err)
{
	return step == TIDE_COMMIT_NAMES ? tide_target_name(member, err) : 0;
}

static bool target_is_untouched(const void *member)
{
	return tide_target_is_untouched(member);
}

static bool target_is_made(const void *member, enum tide_commit_step step)
{
	return step != TIDE_COMMIT_NAMES || tide_target_is_named(member);
}

static void nothing_to_unlock(void *member)
{
}

struct tide_commit_member tide_commit_target_member(struct tide_target *target)
{
	static const struct tide_commit_ops ops = {
		.node = no_node,
		.target = member_target,
		.stage = stage_target,
		.count = count_target,
		.add_to_record = add_target,
		.recorded = target_recorded,
		.unrecorded = target_unrecorded,
		.commit = name_target,
		.is_untouched = target_is_untouched,
		.is_made = target_is_made,
		.unlock = nothing_to_unlock,
	};

	return (struct tide_commit_member){ &ops, target };
}
