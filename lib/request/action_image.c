/*
 * The actions that make or change images: chain-restore, image-create, image-write.
 */
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/mem.h"
#include "job/create.h"
#include "job/restore.h"
#include "job/tracked_write.h"
#include "txn.h"

static struct tide_node *find_device(struct tide_session *session, const char *id, struct tide_error *err)
{
	struct tide_node *node = tide_session_find(session, id);

	if (!node)
		tide_error_set(err, TIDE_E_REFUSED, "Cannot find device='%s' nor node-name='%s'", id, id);
	return node;
}

/* ---- restore ----------------------------------------------------------------------- */

static const struct tide_qmp_field restore_fields[] = {
	TIDE_FIELD_STRING("device", true, struct tide_chain_restore, device),
	TIDE_FIELD_STRING("target", true, struct tide_chain_restore, target),
	TIDE_FIELD_STRING("format", false, struct tide_chain_restore, format),
	TIDE_FIELD_BOOL("overwrite", struct tide_chain_restore, overwrite),
	TIDE_FIELD_BOOL("in-place", struct tide_chain_restore, in_place),
	TIDE_FIELD_RESULT("written", struct tide_chain_restore, written),
	TIDE_FIELD_BOOL("compress", struct tide_chain_restore, compress),
	TIDE_FIELD_STRING("settings", false, struct tide_chain_restore, settings),
	TIDE_FIELD_BOOL("salvage", struct tide_chain_restore, salvage),
	TIDE_FIELD_STRING("sidecar", false, struct tide_chain_restore, sidecar),
	TIDE_FIELD_END,
};

static void restore_declare(struct tide_session *session, const struct tide_step *step)
{
	const struct tide_chain_restore *args = step->args;
	struct tide_node *node = tide_session_find(session, args->device);

	if (!node)
		return;
	tide_node_want(node, TIDE_NODE_READ, false);
	if (args->salvage)
		tide_node_want_salvage(node);
}

/* Another job would take the zeroes in place of what is lost for the disk's content. */
static const char *restore_alone(const struct tide_step *step)
{
	const struct tide_chain_restore *args = step->args;

	return args->salvage ? "A rescue of a chain" : NULL;
}

static int restore_prepare(struct tide_session *session, struct tide_step *step, struct tide_error *err)
{
	const struct tide_chain_restore *args = step->args;
	struct tide_node *node = find_device(session, args->device, err);
	struct tide_restore *restore;

	if (!node || tide_node_open(node, TIDE_NODE_READ, false, &session->sink, err) < 0 ||
	    tide_restore_prepare(node, args, &session->sink, &restore, err) < 0)
		return -1;
	step->state = restore;
	return 0;
}

static int restore_work(struct tide_session *session, struct tide_step *step, struct tide_error *err)
{
	return tide_restore_run(step->state, err);
}

static bool restore_member(struct tide_step *step, struct tide_commit_member *member)
{
	struct tide_target *target = tide_restore_new_target(step->state);

	if (target)
		*member = tide_commit_target_member(target);
	return target != NULL;
}

static void put_ranges(struct tide_json_writer *w, const char *name, const struct tide_bitmap *ranges)
{
	uint64_t off = 0, len;

	tide_json_begin(w, name, '[');
	for (; tide_bitmap_next_dirty(ranges, off, UINT64_MAX, &off, &len); off += len) {
		tide_json_begin(w, NULL, '{');
		tide_json_uint(w, "start", off);
		tide_json_uint(w, "length", len);
		tide_json_end(w, '}');
	}
	tide_json_end(w, ']');
}

/* After a rescue the reply lists the ranges that are lost. */
static int restore_result(struct tide_txn *txn, const struct tide_step *step, struct tide_error *err)
{
	const struct tide_chain_restore *args = step->args;
	struct tide_strbuf sb = TIDE_STRBUF_INIT;
	struct tide_json_writer w = { &sb, false };
	const struct tide_bitmap *lost = tide_restore_lost(step->state), *unproven = tide_restore_unproven(step->state);

	if (lost) {
		tide_json_begin(&w, NULL, '{');
		put_ranges(&w, "x-unreadable", lost);
		if (unproven)
			put_ranges(&w, "x-unproven", unproven);
		tide_json_end(&w, '}');
		if (tide_txn_set_answer(txn, &sb, err) < 0)
			return -1;
	}
	return tide_restore_check_lost(step->state, args->target, err);
}

static struct tide_image *restore_image(const struct tide_step *step)
{
	return tide_restore_target_image(step->state);
}

static void restore_clean(struct tide_step *step)
{
	tide_restore_free(step->state);
	step->state = NULL;
}

const struct tide_action tide_action_chain_restore = {
	.name = "x-chain-restore",
	.fields = restore_fields,
	.args_size = sizeof(struct tide_chain_restore),
	.declare = restore_declare,
	.alone = restore_alone,
	.prepare = restore_prepare,
	.image = restore_image,
	.work = restore_work,
	.result = restore_result,
	.member = restore_member,
	.clean = restore_clean,
};

/* ---- create ------------------------------------------------------------------------ */

static const struct tide_qmp_field create_fields[] = {
	TIDE_FIELD_STRING("path", true, struct tide_image_create, path),
	TIDE_FIELD_STRING("format", true, struct tide_image_create, format),
	TIDE_FIELD_STRING("backing", false, struct tide_image_create, backing),
	TIDE_FIELD_STRING("backing-format", false, struct tide_image_create, backing_format),
	TIDE_FIELD_OPTIONAL(TIDE_QMP_UINT, "size", struct tide_image_create, size, has_size),
	TIDE_FIELD_STRING("settings", false, struct tide_image_create, settings),
	TIDE_FIELD(TIDE_QMP_UINT, "allow", false, struct tide_image_create, allow),
	TIDE_FIELD_END,
};

static int create_prepare(struct tide_session *session, struct tide_step *step, struct tide_error *err)
{
	const struct tide_image_create *args = step->args;
	struct tide_target *target = tide_mem_alloc(1, sizeof(*target), err);

	if (!target)
		return -1;
	*target = (struct tide_target)TIDE_TARGET_INIT;
	target->cancel = &session->sink.cancelled;
	step->state = target;
	if (tide_create_image(target, step->args, err) < 0)
		return -1;
	tide_target_warn_outside(target, &session->sink, args->path);
	return 0;
}

static struct tide_image *create_image(const struct tide_step *step)
{
	const struct tide_target *target = step->state;

	return target->image;
}

static bool create_member(struct tide_step *step, struct tide_commit_member *member)
{
	*member = tide_commit_target_member(step->state);
	return true;
}

static void create_clean(struct tide_step *step)
{
	if (step->state)
		tide_target_release(step->state);
	free(step->state);
	step->state = NULL;
}

const struct tide_action tide_action_image_create = {
	.name = "x-image-create",
	.fields = create_fields,
	.args_size = sizeof(struct tide_image_create),
	.prepare = create_prepare,
	.image = create_image,
	.member = create_member,
	.clean = create_clean,
};

/* ---- write ------------------------------------------------------------------------- */

static const char *const write_kinds[] = { "data", "pattern", "zero", "discard", NULL };

static const struct tide_qmp_field write_fields[] = {
	TIDE_FIELD_STRING("node", true, struct tide_image_write, node),
	TIDE_FIELD_ENUM("type", true, struct tide_image_write, kind, write_kinds, TIDE_WRITE_DATA),
	TIDE_FIELD(TIDE_QMP_UINT, "offset", true, struct tide_image_write, offset),
	TIDE_FIELD_OPTIONAL(TIDE_QMP_UINT, "length", struct tide_image_write, length, has_length),
	TIDE_FIELD(TIDE_QMP_UINT, "pattern", false, struct tide_image_write, pattern),
	TIDE_FIELD(TIDE_QMP_FILE, "input", false, struct tide_image_write, input),
	TIDE_FIELD_END,
};

static int write_prepare(struct tide_session *session, struct tide_step *step, struct tide_error *err)
{
	const struct tide_image_write *args = step->args;
	struct tide_node *node = find_device(session, args->node, err);
	struct tide_tracked_write *write;

	if (!node || tide_node_open(node, TIDE_NODE_WRITE_DATA, false, &session->sink, err) < 0 ||
	    tide_tracked_write_prepare(node, args, &session->sink, &write, err) < 0)
		return -1;
	step->state = write;
	return 0;
}

static int write_run(struct tide_session *session, struct tide_step *step, struct tide_error *err)
{
	return tide_tracked_write_run(step->state, err);
}

static void write_clean(struct tide_step *step)
{
	tide_tracked_write_free(step->state);
	step->state = NULL;
}

/* A write cannot be undone if another action fails. */
static const char *write_alone(const struct tide_step *step)
{
	(void)step;
	return "A write to an image";
}

const struct tide_action tide_action_image_write = {
	.name = "x-image-write",
	.fields = write_fields,
	.args_size = sizeof(struct tide_image_write),
	.prepare = write_prepare,
	.alone = write_alone,
	.run = write_run,
	.clean = write_clean,
};
