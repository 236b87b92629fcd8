/*
 * The commit's steps: staging in one order, the record with the pointers that lead to it, the
 * renames, and the way back as long as none is made.
 */
#include "commit.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/lock.h"
#include "base/mem.h"
#include "base/sysio.h"

/* A member and its place in the list. */
struct place {
	const struct tide_commit_member *member;
	size_t index;
};

char *tide_commit_record_path(const char *beside, struct tide_error *err)
{
	uint64_t token;

	if (tide_lock_token_new(&token, err) < 0)
		return NULL;
	return tide_mem_printf(err, "%s.group-%" PRIx64, beside, token);
}

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
		if (m->ops->stage(m->self, err) < 0)
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

/*
 * Each image leads to the record.  Where nothing can be written beside an image the commit does without, unless the
 * image is to make its own switch.
 */
static int point_all(const struct tide_commit *c, struct tide_error *err)
{
	for (size_t i = 0; i < c->n; i++) {
		struct tide_node *node = node_of(&c->members[i]);
		struct tide_error why = TIDE_ERROR_INIT;

		if (!node || tide_node_point(node, c->record, &why) == 0)
			continue;
		tide_node_unpoint(node);
		if (node->in_image.is_staged)
			return tide_error_move(err, &why);
		tide_event_warning(c->sink, node->path,
		                   "a crash in the next moment may leave the transaction half done: %s", why.msg);
		tide_error_release(&why);
	}
	return 0;
}

static void unpoint_all(const struct tide_commit *c)
{
	for (size_t i = 0; i < c->n; i++) {
		if (node_of(&c->members[i]))
			tide_node_unpoint(node_of(&c->members[i]));
	}
}

static void leave_pointers(const struct tide_commit *c)
{
	for (size_t i = 0; i < c->n; i++) {
		if (node_of(&c->members[i]))
			tide_node_leave_pointer(node_of(&c->members[i]));
	}
}

/* For more than one change; but a record that no image leads to is of no use. */
static bool needs_record(const struct tide_commit *c)
{
	bool has_node = false;
	unsigned changes = 0;

	for (size_t i = 0; i < c->n; i++) {
		has_node |= node_of(&c->members[i]) != NULL;
		changes += c->members[i].ops->count(c->members[i].self);
	}
	return has_node && changes > 1;
}

static int fill_record(const struct tide_commit *c, struct tide_commit_record *record, size_t *bad,
                       struct tide_error *err)
{
	for (size_t i = 0; i < c->n; i++) {
		*bad = i;
		if (c->members[i].ops->add_to_record(c->members[i].self, record, err) < 0)
			return -1;
	}
	*bad = 0;
	return 0;
}

/* The temporary names must survive a loss of power before a record may name them. */
static int write_record(const struct tide_commit *c, size_t *bad, struct tide_error *err)
{
	TIDE_CLEANUP(tide_commit_record_release) struct tide_commit_record text = TIDE_COMMIT_RECORD_INIT;
	struct tide_commit_record *record = &text;

	if (fill_record(c, record, bad, err) < 0 || point_all(c, err) < 0 ||
	    tide_commit_record_sync_names(record, err) < 0 || tide_commit_record_write(record, c->record, err) < 0) {
		unpoint_all(c);
		return -1;
	}
	for (size_t i = 0; i < c->n; i++)
		c->members[i].ops->recorded(c->members[i].self);
	return 0;
}

/* As long as no file has its name the decision can be taken back. */
static bool take_back(const struct tide_commit *c)
{
	for (size_t i = 0; i < c->n; i++) {
		if (!c->members[i].ops->is_untouched(c->members[i].self))
			return false;
	}
	if (tide_commit_record_revoke(c->record, NULL) < 0)
		return false;
	for (size_t i = 0; i < c->n; i++)
		c->members[i].ops->unrecorded(c->members[i].self);
	unpoint_all(c);
	return true;
}

/* Without a record there is one change at most: it is made, or nothing is changed. */
static int commit_one(const struct tide_commit *c, size_t *bad, struct tide_error *err)
{
	for (size_t i = 0; i < c->n; i++) {
		*bad = i;
		if (c->members[i].ops->commit(c->members[i].self, err) < 0)
			return -1;
	}
	return 0;
}

static int commit_recorded(const struct tide_commit *c, size_t *bad, struct tide_error *err)
{
	bool pending = false;

	for (size_t i = 0; i < c->n; i++) {
		struct tide_error why = TIDE_ERROR_INIT;

		if (c->members[i].ops->commit(c->members[i].self, &why) == 0)
			continue;
		*bad = i;
		if (!pending && take_back(c))
			return tide_error_move(err, &why);
		pending = true;
		tide_event_warning(c->sink, NULL, "%s; the next command that opens the image will complete it",
		                   why.msg);
		tide_error_release(&why);
	}
	if (pending) {
		leave_pointers(c);
		return 0;
	}
	/* The record goes first: a pointer that leads nowhere is harmless, a record that nothing leads to stays for
	 * ever. */
	tide_commit_record_forget(c->record);
	unpoint_all(c);
	return 0;
}

/* ---- the whole --------------------------------------------------------------------- */

static char *choose_record(const struct tide_commit *c, struct tide_error *err)
{
	for (size_t i = 0; i < c->n; i++) {
		const struct tide_node *node = node_of(&c->members[i]);

		if (node && node->sidecar_path)
			return tide_commit_record_path(node->sidecar_path, err);
	}
	tide_error_set(err, TIDE_E_REFUSED, "There is no place for the transaction's record");
	return NULL;
}

static int commit_with_record(const struct tide_commit *c, size_t *bad, struct tide_error *err)
{
	TIDE_AUTOFREE char *chosen = c->record ? NULL : choose_record(c, err);
	struct tide_commit with = *c;

	with.record = c->record ? c->record : chosen;
	return !with.record || write_record(&with, bad, err) < 0 ? -1 : commit_recorded(&with, bad, err);
}

int tide_commit_run(const struct tide_commit *c, size_t *bad, struct tide_error *err)
{
	size_t at;
	int rc = stage_all(c, &at, err);

	if (rc == 0)
		rc = (needs_record(c) ? commit_with_record : commit_one)(c, &at, err);
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

static int stage_node(void *member, struct tide_error *err)
{
	return tide_node_stage(member, err);
}

static unsigned count_node(const void *member)
{
	return tide_node_count_changes(member);
}

static int add_node(void *member, struct tide_commit_record *record, struct tide_error *err)
{
	return tide_node_add_to_record(member, record, err);
}

static void node_recorded(void *member)
{
	tide_node_recorded(member);
}

static void node_unrecorded(void *member)
{
	tide_node_unrecorded(member);
}

static int commit_node(void *member, struct tide_error *err)
{
	return tide_node_commit(member, err);
}

static bool node_is_untouched(const void *member)
{
	return tide_node_is_untouched(member);
}

static void unlock_node(void *member)
{
	tide_node_unlock_store(member);
}

struct tide_commit_member tide_commit_node_member(struct tide_node *node)
{
	static const struct tide_commit_ops ops = {
		.node = member_node,
		.stage = stage_node,
		.count = count_node,
		.add_to_record = add_node,
		.recorded = node_recorded,
		.unrecorded = node_unrecorded,
		.commit = commit_node,
		.is_untouched = node_is_untouched,
		.unlock = unlock_node,
	};

	return (struct tide_commit_member){ &ops, node };
}

/* ---- targets as members ------------------------------------------------------------ */

static struct tide_node *no_node(void *member)
{
	return NULL;
}

static int stage_target(void *member, struct tide_error *err)
{
	return tide_target_stage(member, err);
}

static unsigned count_target(const void *member)
{
	return tide_target_count_renames(member);
}

static int add_target(void *member, struct tide_commit_record *record, struct tide_error *err)
{
	return tide_target_add_to_record(member, record, err);
}

static void target_recorded(void *member)
{
	tide_target_recorded(member);
}

static void target_unrecorded(void *member)
{
	tide_target_unrecorded(member);
}

static int name_target(void *member, struct tide_error *err)
{
	return tide_target_name(member, err);
}

static bool target_is_untouched(const void *member)
{
	return tide_target_is_untouched(member);
}

static void nothing_to_unlock(void *member)
{
}

struct tide_commit_member tide_commit_target_member(struct tide_target *target)
{
	static const struct tide_commit_ops ops = {
		.node = no_node,
		.stage = stage_target,
		.count = count_target,
		.add_to_record = add_target,
		.recorded = target_recorded,
		.unrecorded = target_unrecorded,
		.commit = name_target,
		.is_untouched = target_is_untouched,
		.unlock = nothing_to_unlock,
	};

	return (struct tide_commit_member){ &ops, target };
}
