/*
 * The actions that start a backup: drive-backup and blockdev-backup, and the one that decides between a full and an
 * incremental drive-backup.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/json.h"
#include "base/mem.h"
#include "job/backup.h"
#include "job/backup_auto.h"
#include "job/target.h"
#include "txn.h"

static struct tide_node *find_device(struct tide_session *session, const char *id, struct tide_error *err)
{
	struct tide_node *node = tide_session_find(session, id);

	if (!node)
		tide_error_set(err, TIDE_E_REFUSED, "Cannot find device='%s' nor node-name='%s'", id, id);
	return node;
}

/* ---- arguments --------------------------------------------------------------------- */

static const char *const auto_syncs[] = { "auto", NULL };
static const char *const checksums[] = { "auto", "never", "always", NULL };
static const char *const bitmap_modes[] = { "on-success", "never", "always", NULL };
static const char *const new_image_modes[] = { "absolute-paths", "existing", NULL };
static const char *const on_errors[] = { "report", "ignore", "enospc", "stop", "auto", NULL };

static const struct tide_qmp_field perf_fields[] = {
	TIDE_FIELD_CHECKED("use-copy-range", TIDE_QMP_BOOL),
	TIDE_FIELD_OPTIONAL(TIDE_QMP_INT64, "max-workers", struct tide_backup, max_workers, has_max_workers),
	TIDE_FIELD_OPTIONAL(TIDE_QMP_INT64, "max-chunk", struct tide_backup, max_chunk, has_max_chunk),
	TIDE_FIELD_END,
};

static const struct tide_qmp_field backing_fields[] = {
	TIDE_FIELD_STRING("path", true, struct tide_backup, backing),
	TIDE_FIELD_STRING("format", false, struct tide_backup, backing_format),
	TIDE_FIELD_END,
};

/*
 * The fields of QEMU's type BackupCommon, with SYNC in its place or without.  A negative speed is refused by the backup
 * itself, as is one that is too large.
 */
#define BACKUP_FIELDS(...)                                                                                             \
	TIDE_FIELD_STRING("job-id", false, struct tide_backup, job_id),                                                \
	        TIDE_FIELD_STRING("device", true, struct tide_backup, device),                                         \
	        __VA_ARGS__ TIDE_FIELD(TIDE_QMP_INT64, "speed", false, struct tide_backup, speed),                     \
	        TIDE_FIELD_STRING("bitmap", false, struct tide_backup, bitmap),                                        \
	        TIDE_FIELD_ENUM("bitmap-mode", false, struct tide_backup, bitmap_mode, bitmap_modes,                   \
	                        TIDE_BITMAP_MODE_ON_SUCCESS),                                                          \
	        TIDE_FIELD_BOOL("compress", struct tide_backup, compress),                                             \
	        TIDE_FIELD_ENUM("on-source-error", false, struct tide_backup, on_source_error, on_errors,              \
	                        TIDE_ON_ERROR_REPORT),                                                                 \
	        TIDE_FIELD_ENUM("on-target-error", false, struct tide_backup, on_target_error, on_errors,              \
	                        TIDE_ON_ERROR_REPORT),                                                                 \
	        TIDE_FIELD_CHECKED("auto-finalize", TIDE_QMP_BOOL), TIDE_FIELD_CHECKED("auto-dismiss", TIDE_QMP_BOOL), \
	        TIDE_FIELD_STRING("filter-node-name", false, struct tide_backup, filter_node_name),                    \
	        TIDE_FIELD_ENUM("x-checksums", false, struct tide_backup, checksums, checksums, TIDE_CHECKSUMS_AUTO),  \
	        TIDE_FIELD_STRUCT("x-perf", false, perf_fields),                                                       \
	        TIDE_FIELD_STRING("target", true, struct tide_backup, target)

#define SYNC TIDE_FIELD_ENUM("sync", true, struct tide_backup, sync, tide_backup_sync_names, TIDE_SYNC_FULL),

/* With x-sync, the mode of QEMU may be left out. */
#define SYNC_OR_AUTO                                                                                            \
	TIDE_FIELD_ENUM_OR("sync", "x-sync", struct tide_backup, sync, tide_backup_sync_names, TIDE_SYNC_FULL), \
	        TIDE_FIELD_ENUM("x-sync", false, struct tide_backup, sync, auto_syncs, TIDE_SYNC_AUTO),

#define NEW_TARGET_FIELDS                                                                                             \
	TIDE_FIELD_STRING("format", false, struct tide_backup, format),                                               \
	        TIDE_FIELD_ENUM("mode", false, struct tide_backup, mode, new_image_modes, TIDE_MODE_ABSOLUTE_PATHS),  \
	        TIDE_FIELD_STRUCT("x-backing", false, backing_fields),                                                \
	        TIDE_FIELD_STRING("x-settings", false, struct tide_backup, settings),                                 \
	        TIDE_FIELD_ENUM("x-store", false, struct tide_backup, store, tide_action_stores, TIDE_STORE_SIDECAR), \
	        TIDE_FIELD(TIDE_QMP_UINT, "x-full-every", false, struct tide_backup, full_every),                     \
	        TIDE_FIELD(TIDE_QMP_UINT, "x-full-every-seconds", false, struct tide_backup, full_every_seconds),     \
	        TIDE_FIELD_BOOL("x-describe", struct tide_backup, describe)

#define INTERNAL_FIELDS                                                                           \
	TIDE_FIELD_INTERNAL, TIDE_FIELD_BOOL("x-reset-bitmap", struct tide_backup, reset_bitmap), \
	        TIDE_FIELD_STRING("x-reason", false, struct tide_backup, reason),                 \
	        TIDE_FIELD_BOOL("x-use-base", struct tide_backup, use_base),                      \
	        TIDE_FIELD_BOOL("x-detect-zeroes", struct tide_backup, detect_zeroes),            \
	        TIDE_FIELD(TIDE_QMP_UINT, "x-retry-after", false, struct tide_backup, retry_after)

static const struct tide_qmp_field drive_fields[] = { BACKUP_FIELDS(SYNC_OR_AUTO), NEW_TARGET_FIELDS, INTERNAL_FIELDS,
	                                              TIDE_FIELD_END };

/* The target is another drive, which exists. */
static const struct tide_qmp_field blockdev_fields[] = { BACKUP_FIELDS(SYNC), INTERNAL_FIELDS, TIDE_FIELD_END };

/* ---- backup ------------------------------------------------------------------------ */

/* A full backup takes nothing from the bitmaps, and auto decides by their state. */
static void want(struct tide_node *node, const struct tide_backup *args, enum tide_node_mode mode, bool create)
{
	bool from_bitmap = tide_backup_is_increment(args->sync);

	(from_bitmap ? tide_node_want : tide_node_want_in_doubt)(node, mode, create);
	node->want.chain = true;
}

static void backup_declare(struct tide_session *session, const struct tide_step *step)
{
	const struct tide_backup *args = step->args;
	struct tide_node *node = tide_session_find(session, args->device);
	bool is_auto = args->sync == TIDE_SYNC_AUTO;

	if (!node)
		return;
	/* The bitmap that auto creates may be the node's first, so the sidecar may be created. */
	want(node, args, args->bitmap || is_auto ? TIDE_NODE_EDIT_BITMAPS : TIDE_NODE_READ,
	     is_auto && args->store == TIDE_STORE_SIDECAR);
	node->want.optional = is_auto;
	if (is_auto && args->store == TIDE_STORE_IMAGE)
		tide_node_want_in_image(node);
}

static int check_job_id(struct tide_session *session, const char *id, struct tide_error *err)
{
	for (size_t i = 0; i < session->n_nodes; i++) {
		const struct tide_backup_job *other = session->nodes[i]->job;

		if (other && !strcmp(tide_backup_id(other), id))
			return tide_error_set(err, TIDE_E_REFUSED, "Job ID '%s' already in use", id);
	}
	return 0;
}

/* Arguments that have no effect here; QEMU's rules for them are checked. */
static int check_details(struct tide_session *session, const struct tide_backup *args, struct tide_error *err)
{
	const char *name = args->filter_node_name;

	if (name && tide_session_find(session, name))
		return tide_error_set(err, TIDE_E_REFUSED,
		                      "Could not create node: node-name=%s is conflicting with a device id", name);
	if (name && tide_backup_check_node_name(name, err) < 0)
		return tide_error_wrap(err, "Could not create node");
	return 0;
}

/* Two jobs with one target: the later one would replace the earlier one's. */
static int check_target_free(struct tide_session *session, const struct tide_backup_job *job, struct tide_error *err)
{
	for (size_t i = 0; i < session->n_nodes; i++) {
		if (session->nodes[i]->job && tide_backup_collides(job, session->nodes[i]->job))
			return tide_error_set(err, TIDE_E_REFUSED, "Failed to get \"write\" lock");
	}
	return 0;
}

/* onto: the drive that is the target, or NULL. */
static int prepare_backup(struct tide_session *session, struct tide_step *step, struct tide_node *onto,
                          struct tide_error *err)
{
	struct tide_backup *args = step->args;
	struct tide_node *node = find_device(session, args->device, err);
	struct tide_backup_job *job;

	if (!node || check_details(session, args, err) < 0)
		return -1;
	if (tide_node_open(node, args->bitmap ? TIDE_NODE_EDIT_BITMAPS : TIDE_NODE_READ, false, &session->sink, err) <
	    0)
		return -1;
	/* As in QEMU: drive-backup accepts top without a backing image, blockdev-backup refuses it. */
	if (args->sync == TIDE_SYNC_TOP && !tide_image_backing(node->image) && step->action == &tide_action_backup)
		args->sync = TIDE_SYNC_FULL;
	if (check_job_id(session, args->job_id ? args->job_id : node->id, err) < 0 ||
	    tide_backup_prepare(node, args, &session->point, onto, &session->sink, &job, err) < 0)
		return -1;
	if (check_target_free(session, job, err) < 0) {
		tide_backup_free(job);
		return -1;
	}
	tide_backup_register(job);
	step->state = job;
	return 0;
}

/* The repeated request would find its own targets. */
static int check_not_completed(const struct tide_session *session, const char *target, struct tide_error *err)
{
	TIDE_AUTOFREE char *path = tide_image_is_uri(target) ? NULL : tide_target_final_path(target, NULL);

	return path ? tide_session_refuse_completed(session, path, err) : 0;
}

static int backup_prepare(struct tide_session *session, struct tide_step *step, struct tide_error *err)
{
	const struct tide_backup *args = step->args;

	if (check_not_completed(session, args->target, err) < 0)
		return -1;
	return prepare_backup(session, step, NULL, err);
}

/* Bitmaps that the transaction adds or clears count from the full backup that it makes. */
static int backup_announce(struct tide_session *session, const struct tide_step *step, struct tide_error *err)
{
	const struct tide_backup *args = step->args;
	struct tide_node *node = tide_session_find(session, args->device);

	if (!node || args->sync != TIDE_SYNC_FULL)
		return 0;
	return tide_backup_announce_full(node, args->target, err);
}

static struct tide_image *backup_image(const struct tide_step *step)
{
	return tide_backup_target_image(step->state);
}

static struct tide_backup_job *backup_job(const struct tide_step *step)
{
	return step->state;
}

/* Both spellings of mode and reason where the library has chosen; older programs know the first. */
static bool backup_describe(const struct tide_step *step, struct tide_json_writer *w)
{
	const struct tide_backup *args = step->args;
	const char *sync = tide_backup_sync_names[args->sync];

	if (!args->describe || (!args->reason && tide_backup_is_dry(step->state)))
		return false;
	if (!w)
		return true;
	if (args->reason) {
		tide_json_string(w, "sync", sync);
		tide_json_string(w, "reason", args->reason);
	}
	tide_json_string(w, "x-sync", sync);
	tide_json_string(w, "x-reason", args->reason ? args->reason : "as requested");
	tide_backup_describe(step->state, w);
	return true;
}

static void backup_clean(struct tide_step *step)
{
	tide_backup_free(step->state);
	step->state = NULL;
}

/* ---- auto -------------------------------------------------------------------------- */

static int check_args(const struct tide_backup *args, struct tide_error *err)
{
	if (!args->bitmap)
		return tide_error_set(err, TIDE_E_REFUSED, "must provide a valid bitmap name for 'auto' sync mode");
	if (args->bitmap_mode != TIDE_BITMAP_MODE_UNSET && args->bitmap_mode != TIDE_BITMAP_MODE_ON_SUCCESS)
		return tide_error_set(err, TIDE_E_REFUSED,
		                      "Bitmap sync mode must be 'on-success' when using sync mode 'auto'");
	return 0;
}

/* A full backup starts a new chain, without a backing image. */
static void drop_backing(struct tide_txn *txn, const char *path, struct tide_backup *args)
{
	if (!args->backing)
		return;
	tide_event_warning(&tide_txn_session(txn)->sink, path,
	                   "the backup is a full one, so '%s' does not become its backing image", args->backing);
	args->backing = args->backing_format = NULL;
}

/* is_without: the bitmaps cannot be used. */
static int add_full(struct tide_txn *txn, struct tide_backup *args, bool has_bitmap, bool is_without,
                    struct tide_error *err)
{
	struct tide_bitmap_add add = { .node = args->device, .name = args->bitmap, .store = args->store };

	args->sync = TIDE_SYNC_FULL;
	if (is_without) {
		args->bitmap = NULL;
		args->bitmap_mode = TIDE_BITMAP_MODE_UNSET;
		return tide_txn_append(txn, &tide_action_backup, args, err);
	}
	if (has_bitmap) {
		args->reset_bitmap = true;
		args->bitmap_mode = TIDE_BITMAP_MODE_ON_SUCCESS;
		return tide_txn_append(txn, &tide_action_backup, args, err);
	}
	/* The bitmap and the backup are one group: if the backup fails, the new bitmap is dropped. */
	args->bitmap = NULL;
	args->bitmap_mode = TIDE_BITMAP_MODE_UNSET;
	tide_txn_set_grouped(txn, true);
	if (tide_txn_bitmap_add(txn, &add, err) < 0)
		return -1;
	return tide_txn_append(txn, &tide_action_backup, args, err);
}

/* The bitmap of auto, or NULL; an error other than that it does not exist is one. */
static int find_bitmap(struct tide_node *node, const char *name, struct tide_sidecar_bitmap **bitmap,
                       struct tide_error *err)
{
	*bitmap = tide_node_has(node, name) ? tide_node_find(node, name, err) : NULL;
	return *bitmap || !tide_node_has(node, name) ? 0 : -1;
}

static int append_decided(struct tide_txn *txn, const struct tide_node *node, struct tide_backup *args, bool has_bitmap,
                          const struct tide_backup_decision *decision, struct tide_error *err)
{
	args->reason = decision->reason;
	args->describe = true;
	if (decision->full) {
		drop_backing(txn, node->path, args);
		return add_full(txn, args, has_bitmap, node->unusable != NULL, err);
	}
	args->sync = TIDE_SYNC_INCREMENTAL;
	if (decision->backing) {
		args->backing = decision->backing;
		args->backing_format = decision->backing_format;
	}
	return tide_txn_append(txn, &tide_action_backup, args, err);
}

/*
 * An incremental backup where the bitmap and its chain permit it, otherwise a full one that starts the bitmap from
 * scratch.  It is decided with the node open and locked, and becomes ordinary actions.
 */
static int backup_decide(struct tide_txn *txn, const struct tide_step *step, struct tide_error *err)
{
	struct tide_backup args = *(const struct tide_backup *)step->args;
	struct tide_node *node;
	struct tide_backup_decision decision = { 0 };
	struct tide_sidecar_bitmap *bitmap;
	bool exists, changes;
	int rc;

	if (args.sync != TIDE_SYNC_AUTO)
		return 0;
	node = find_device(tide_txn_session(txn), args.device, err);
	if (!node || check_args(&args, err) < 0 || find_bitmap(node, args.bitmap, &bitmap, err) < 0)
		return -1;
	exists = bitmap != NULL;
	changes = tide_txn_changes_bitmap(txn, args.device, args.bitmap, &exists);
	/* As in QEMU, the name is not free before the commit. */
	if (changes && !exists)
		return tide_error_set(
		        err, TIDE_E_REFUSED,
		        "The transaction removes the bitmap '%s' before a backup of sync mode 'auto' uses it",
		        args.bitmap);
	rc = tide_backup_auto_decide(node, &args, bitmap, changes, &tide_txn_session(txn)->sink, &decision, err);
	if (rc == 0)
		rc = append_decided(txn, node, &args, exists, &decision, err);
	tide_backup_auto_release(&decision);
	return rc < 0 ? -1 : 1;
}

const struct tide_action tide_action_backup = {
	.name = "drive-backup",
	.use = TIDE_ACTION_ANYWHERE,
	.fields = drive_fields,
	.args_size = sizeof(struct tide_backup),
	.declare = backup_declare,
	.decide = backup_decide,
	.announce = backup_announce,
	.prepare = backup_prepare,
	.image = backup_image,
	.job = backup_job,
	.describe = backup_describe,
	.clean = backup_clean,
};

/* The same, onto another drive of the session. */
static int blockdev_prepare(struct tide_session *session, struct tide_step *step, struct tide_error *err)
{
	struct tide_backup *args = step->args;
	struct tide_node *source = find_device(session, args->device, err);
	struct tide_node *target = source ? find_device(session, args->target, err) : NULL;

	if (!target)
		return -1;
	if (source == target)
		return tide_error_set(err, TIDE_E_REFUSED, "Source and target cannot be the same");
	/* Another action uses it, or will. */
	if (target->job || target->want.any)
		return tide_error_set(err, TIDE_E_REFUSED,
		                      "Node '%s' is busy: block device is in use by block job: backup", target->id);
	args->target = target->path;
	args->format = target->format;
	args->mode = TIDE_MODE_EXISTING;
	args->backing = args->backing_format = args->settings = NULL;
	return prepare_backup(session, step, target, err);
}

const struct tide_action tide_action_blockdev_backup = {
	.name = "blockdev-backup",
	.use = TIDE_ACTION_ANYWHERE,
	.fields = blockdev_fields,
	.args_size = sizeof(struct tide_backup),
	.declare = backup_declare,
	.prepare = blockdev_prepare,
	.image = backup_image,
	.job = backup_job,
	.clean = backup_clean,
};
