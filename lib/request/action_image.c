/*
 * The verbs that make or change images: backup, restore, create, tracked writes.
 */
#include <stdlib.h>
#include <string.h>

#include "job/backup.h"
#include "job/create.h"
#include "base/error.h"
#include "base/mem.h"
#include "job/restore.h"
#include "txn.h"
#include "job/tracked_write.h"

static struct tide_node *find_device(struct tide_session *session, const char *id, struct tide_error *err)
{
	struct tide_node *node = tide_session_find(session, id);

	if (!node)
		tide_error_set(err, TIDE_E_REFUSED, "Cannot find device='%s' nor node-name='%s'", id, id);
	return node;
}

static int own_strings(struct tide_step *step, const char **const strings[], size_t n, struct tide_error *err)
{
	for (size_t i = 0; i < n; i++) {
		if (tide_action_own_string(step, strings[i], err) < 0)
			return -1;
	}
	return 0;
}

/* ---- backup ------------------------------------------------------------------------ */

int tide_action_backup_copy(struct tide_step *step, struct tide_error *err)
{
	struct tide_backup *a = step->args;
	const char **const strings[] = { &a->device,         &a->target,   &a->format, &a->bitmap,          &a->backing,
		                         &a->backing_format, &a->settings, &a->job_id, &a->filter_node_name };

	return own_strings(step, strings, TIDE_ARRAY_SIZE(strings), err);
}

static void backup_declare(struct tide_session *session, const struct tide_step *step)
{
	const struct tide_backup *args = step->args;
	struct tide_node *node = tide_session_find(session, args->device);

	if (node)
		tide_node_want(node, args->bitmap ? TIDE_NODE_EDIT_BITMAPS : TIDE_NODE_READ, false);
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

/* What makes no difference to a backup here, but has its rules. */
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

/* The later one would replace what the earlier one has made. */
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
	/* QEMU's drive-backup does this, blockdev-backup does not. */
	if (args->sync == TIDE_SYNC_TOP && !tide_image_backing(node->image) && step->action == &tide_action_backup)
		args->sync = TIDE_SYNC_FULL;
	if (check_job_id(session, args->job_id ? args->job_id : node->id, err) < 0 ||
	    tide_backup_prepare(node, args, onto, session->group, &session->sink, &job, err) < 0)
		return -1;
	if (check_target_free(session, job, err) < 0) {
		tide_backup_free(job);
		return -1;
	}
	tide_backup_register(job);
	step->state = job;
	return 0;
}

static int backup_prepare(struct tide_session *session, struct tide_step *step, struct tide_error *err)
{
	return prepare_backup(session, step, NULL, err);
}

static struct tide_backup_job *backup_job(const struct tide_step *step)
{
	return step->state;
}

static void backup_clean(struct tide_step *step)
{
	tide_backup_free(step->state);
	step->state = NULL;
}

const struct tide_action tide_action_backup = {
	.name = "drive-backup",
	.args_size = sizeof(struct tide_backup),
	.copy_args = tide_action_backup_copy,
	.declare = backup_declare,
	.prepare = backup_prepare,
	.job = backup_job,
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
	/* Another action has it, or is going to. */
	if (target->job || target->wanted)
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
	.args_size = sizeof(struct tide_backup),
	.copy_args = tide_action_backup_copy,
	.declare = backup_declare,
	.prepare = blockdev_prepare,
	.job = backup_job,
	.clean = backup_clean,
};

/* ---- restore ----------------------------------------------------------------------- */

static int restore_copy(struct tide_step *step, struct tide_error *err)
{
	struct tide_chain_restore *a = step->args;
	const char **const strings[] = { &a->device, &a->target, &a->format, &a->settings };

	return own_strings(step, strings, TIDE_ARRAY_SIZE(strings), err);
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

static int restore_run(struct tide_session *session, struct tide_step *step, struct tide_error *err)
{
	return tide_restore_run(step->state, err);
}

static void restore_clean(struct tide_step *step)
{
	tide_restore_free(step->state);
	step->state = NULL;
}

const struct tide_action tide_action_chain_restore = {
	.name = "x-chain-restore",
	.args_size = sizeof(struct tide_chain_restore),
	.copy_args = restore_copy,
	.prepare = restore_prepare,
	.run = restore_run,
	.clean = restore_clean,
};

/* ---- create ------------------------------------------------------------------------ */

static int create_copy(struct tide_step *step, struct tide_error *err)
{
	struct tide_image_create *a = step->args;
	const char **const strings[] = { &a->path, &a->format, &a->backing, &a->backing_format, &a->settings };

	return own_strings(step, strings, TIDE_ARRAY_SIZE(strings), err);
}

static int create_prepare(struct tide_session *session, struct tide_step *step, struct tide_error *err)
{
	const struct tide_image_create *args = step->args;
	struct tide_target *target = tide_mem_alloc(1, sizeof(*target), err);

	if (!target)
		return -1;
	*target = (struct tide_target)TIDE_TARGET_INIT;
	step->state = target;
	if (tide_create_image(target, step->args, err) < 0)
		return -1;
	tide_target_warn_outside(target, &session->sink, args->path);
	return 0;
}

static int create_run(struct tide_session *session, struct tide_step *step, struct tide_error *err)
{
	return tide_target_commit(step->state, err);
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
	.args_size = sizeof(struct tide_image_create),
	.copy_args = create_copy,
	.prepare = create_prepare,
	.run = create_run,
	.clean = create_clean,
};

/* ---- write ------------------------------------------------------------------------- */

static int write_copy(struct tide_step *step, struct tide_error *err)
{
	struct tide_image_write *a = step->args;

	return tide_action_own_string(step, &a->node, err);
}

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

const struct tide_action tide_action_image_write = {
	.name = "x-image-write",
	.args_size = sizeof(struct tide_image_write),
	.copy_args = write_copy,
	.prepare = write_prepare,
	.run = write_run,
	.clean = write_clean,
};

/* ---- the public calls -------------------------------------------------------------- */

int tide_txn_backup(struct tide_txn *txn, const struct tide_backup *args, struct tide_error *err)
{
	return tide_txn_append(txn, args->sync == TIDE_SYNC_AUTO ? &tide_action_backup_auto : &tide_action_backup, args,
	                       err);
}

int tide_txn_blockdev_backup(struct tide_txn *txn, const struct tide_backup *args, struct tide_error *err)
{
	if (args->sync == TIDE_SYNC_AUTO)
		return tide_error_set(err, TIDE_E_REFUSED, "Sync mode 'auto' is not for blockdev-backup");
	return tide_txn_append(txn, &tide_action_blockdev_backup, args, err);
}

int tide_txn_chain_restore(struct tide_txn *txn, const struct tide_chain_restore *args, struct tide_error *err)
{
	return tide_txn_append(txn, &tide_action_chain_restore, args, err);
}

int tide_txn_image_create(struct tide_txn *txn, const struct tide_image_create *args, struct tide_error *err)
{
	return tide_txn_append(txn, &tide_action_image_create, args, err);
}

int tide_txn_image_write(struct tide_txn *txn, const struct tide_image_write *args, struct tide_error *err)
{
	return tide_txn_append(txn, &tide_action_image_write, args, err);
}
