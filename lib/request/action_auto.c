/*
 * backup-run --sync auto: an incremental backup where the bitmap permits it, otherwise a full one that begins the
 * bitmap anew.  What is decided, with the node open and locked, becomes ordinary actions.
 */
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/json.h"
#include "txn.h"

/* A bitmap that is made here may be the node's first. */
static void auto_declare(struct tide_session *session, const struct tide_step *step)
{
	const struct tide_backup *args = step->args;
	struct tide_node *node = tide_session_find(session, args->device);

	if (!node)
		return;
	tide_node_want(node, TIDE_NODE_EDIT_BITMAPS, args->store == TIDE_STORE_SIDECAR);
	if (args->store == TIDE_STORE_IMAGE)
		tide_node_want_inside(node);
}

static int check_args(const struct tide_backup *args, struct tide_error *err)
{
	if (!args->bitmap)
		return tide_error_set(err, TIDE_E_REFUSED, "must provide a valid bitmap name for 'auto' sync mode");
	if (args->bitmap_mode != TIDE_BITMAP_MODE_UNSET && args->bitmap_mode != TIDE_BITMAP_MODE_ON_SUCCESS)
		return tide_error_set(err, TIDE_E_REFUSED,
		                      "Bitmap sync mode must be 'on-success' when using sync mode 'auto'");
	return 0;
}

/* Why not incremental; NULL: nothing speaks against it. */
static const char *doubt(const struct tide_node *node, const struct tide_sidecar_bitmap *bitmap)
{
	if (!bitmap)
		return "there was no such bitmap";
	if (bitmap->token) /* refused by the backup, with the text for that */
		return NULL;
	if (bitmap->in_use)
		return "the bitmap was inconsistent: a program died while it used it";
	if (bitmap->untracked && !node->ignore_stamp)
		return "the bitmap was inconsistent: the image was changed without being tracked";
	return bitmap->enabled ? NULL : "the bitmap was disabled, and did not record what was written";
}

static int set_answer(struct tide_txn *txn, const char *reason, struct tide_error *err)
{
	struct tide_strbuf sb = TIDE_STRBUF_INIT;
	struct tide_json_writer w = { &sb, false };
	char *answer;

	tide_json_begin(&w, NULL, '{');
	tide_json_string(&w, "sync", reason ? "full" : "incremental");
	tide_json_string(&w, "reason", reason ? reason : "the bitmap has recorded what was written");
	tide_json_end(&w, '}');
	answer = tide_strbuf_steal(&sb, err);
	if (!answer)
		return -1;
	tide_txn_set_answer(txn, answer);
	return 0;
}

/* The chain begins anew: nothing lies below. */
static void drop_backing(struct tide_txn *txn, const char *path, struct tide_backup *args)
{
	if (!args->backing)
		return;
	tide_event_warning(&tide_txn_session(txn)->sink, path,
	                   "the backup is a full one, so '%s' does not become its backing image", args->backing);
	args->backing = args->backing_format = NULL;
}

static int add_full(struct tide_txn *txn, struct tide_backup *args, bool has_bitmap, struct tide_error *err)
{
	struct tide_bitmap_add add = { .node = args->device, .name = args->bitmap, .store = args->store };

	args->sync = TIDE_SYNC_FULL;
	if (has_bitmap) {
		args->reset_bitmap = true;
		args->bitmap_mode = TIDE_BITMAP_MODE_ON_SUCCESS;
		return tide_txn_append(txn, &tide_action_backup, args, err);
	}
	/* In a group with the backup, the new bitmap is gone if that fails. */
	args->bitmap = NULL;
	args->bitmap_mode = TIDE_BITMAP_MODE_UNSET;
	tide_txn_set_grouped(txn, true);
	if (tide_txn_bitmap_add(txn, &add, err) < 0)
		return -1;
	return tide_txn_append(txn, &tide_action_backup, args, err);
}

static int add_incremental(struct tide_txn *txn, const char *path, struct tide_backup *args, struct tide_error *err)
{
	args->sync = TIDE_SYNC_INCREMENTAL;
	if (!args->backing && args->mode == TIDE_MODE_ABSOLUTE_PATHS)
		tide_event_warning(
		        &tide_txn_session(txn)->sink, path,
		        "the backup is an incremental one and has no backing image: '%s' holds only what has changed",
		        args->target);
	return tide_txn_append(txn, &tide_action_backup, args, err);
}

static int auto_decide(struct tide_txn *txn, const struct tide_step *step, struct tide_error *err)
{
	struct tide_backup args = *(const struct tide_backup *)step->args;
	struct tide_node *node = tide_session_find(tide_txn_session(txn), args.device);
	struct tide_sidecar_bitmap *bitmap = NULL;
	const char *reason;

	if (!node)
		return tide_error_set(err, TIDE_E_REFUSED, "Cannot find device='%s' nor node-name='%s'", args.device,
		                      args.device);
	if (check_args(&args, err) < 0)
		return -1;
	if (tide_node_has(node, args.bitmap)) {
		bitmap = tide_node_find(node, args.bitmap, err);
		if (!bitmap)
			return -1;
	}
	reason = doubt(node, bitmap);
	if (set_answer(txn, reason, err) < 0)
		return -1;
	if (!reason)
		return add_incremental(txn, node->path, &args, err);
	drop_backing(txn, node->path, &args);
	return add_full(txn, &args, bitmap != NULL, err);
}

const struct tide_action tide_action_backup_auto = {
	.name = "x-backup-auto",
	.args_size = sizeof(struct tide_backup),
	.copy_args = tide_action_backup_copy,
	.declare = auto_declare,
	.decide = auto_decide,
};
