/*
 * A backup job as a member of a commit: it names its target and settles its bitmap.
 *
 * The table in backup.h lists the bitmap's contents afterwards.  The same steps serve all three outcomes: success; a
 * failure whose partial target is kept (bitmap-mode always); and failure, which names no target and merges the bitmap
 * and its successor.  The target is durable before the bitmap is staged, and gets its name before the bitmap is
 * settled.
 */
#include <stdlib.h>
#include <string.h>

#include "backup_job.h"
#include "base/error.h"
#include "node/node_image.h"

/* ---- the bitmap -------------------------------------------------------------------- */

static struct tide_sidecar *store_of(const struct tide_backup_job *job)
{
	return tide_node_set(job->node, job->in_image ? TIDE_STORE_IMAGE : TIDE_STORE_SIDECAR)->list;
}

/* The index of this job's bitmap in its store, or -1. */
static long find_own(const struct tide_backup_job *job)
{
	const struct tide_sidecar *store = store_of(job);

	if (job->in_image)
		return tide_sidecar_find(store, job->bitmap);
	for (size_t i = 0; i < store->n; i++) {
		if (store->items[i]->token == job->token)
			return (long)i;
	}
	return -1;
}

static bool is_older(const struct tide_backup_job *job, const char *name)
{
	for (size_t i = 0; i < job->n_older; i++) {
		if (!strcmp(job->older[i], name))
			return true;
	}
	return false;
}

/* Replaces the contents by an empty bitmap that records, whatever was wrong with the old one. */
static struct tide_bitmap *reset(struct tide_backup_job *job, struct tide_sidecar_bitmap *entry, struct tide_error *err)
{
	struct tide_bitmap *bm = tide_bitmap_new(tide_image_size(job->node->image), entry->granularity, err);

	if (!bm)
		return NULL;
	tide_node_replace_bitmap(job->node, entry, bm);
	entry->untracked = false;
	entry->enabled = true;
	return bm;
}

/* The contents of the bitmap for the outcome: reset, cleared or unchanged. */
static struct tide_bitmap *contents(struct tide_backup_job *job, struct tide_sidecar_bitmap *entry, bool ok,
                                    bool clears, struct tide_error *err)
{
	if (ok && job->reset_bitmap)
		return reset(job, entry, err);
	entry->unchecked &= !(ok && clears && job->sync == TIDE_SYNC_FULL);
	if (clears)
		return tide_node_bitmap_clear(job->node, entry, err);
	return job->in_image ? tide_node_bitmap(job->node, entry, err)
	                     : tide_node_bitmap_for_change(job->node, entry, err);
}

static int settle_entry(struct tide_backup_job *job, struct tide_error *err)
{
	bool ok = job->outcome == TIDE_BACKUP_SUCCEEDED, kept = job->outcome == TIDE_BACKUP_KEPT;
	bool clears = (ok && job->bitmap_mode != TIDE_BITMAP_MODE_NEVER) || kept;
	struct tide_sidecar *store = store_of(job);
	long index = find_own(job);
	struct tide_sidecar_bitmap *entry;
	struct tide_bitmap *bm;
	size_t newer = 0;

	if (index < 0)
		return tide_error_set(err, TIDE_E_CORRUPT, "The bitmap '%s' is no longer this job's", job->bitmap);
	entry = store->items[index];
	bm = contents(job, entry, ok, clears, err);
	if (!bm)
		return -1;
	if (kept) {
		TIDE_AUTOBITMAP struct tide_bitmap *rest =
		        tide_copy_plan(tide_bitmap_size(bm), entry->granularity, job->copy.todo, err);

		if (!rest || tide_bitmap_merge(bm, rest, err) < 0)
			return -1;
	}
	if (tide_sidecar_bitmap_thaw(store, entry, err) < 0)
		return -1;
	if (!clears)
		return 0;
	if (tide_backup_set_base(job, entry, err) < 0 || tide_backup_tell(job, job->node, err) < 0)
		return -1;
	/* QEMU replaces the bitmap by its successor, which is the first of the list when the job begins; newer ones
	 * precede it. */
	entry = tide_sidecar_take(store, (size_t)index);
	while (newer < store->n && !is_older(job, store->items[newer]->name))
		newer++;
	return tide_sidecar_insert(store, newer, entry, err);
}

/*
 * Settles the bitmap in the node in memory, and locks the store for that.  Without a lock there is nothing to settle:
 * after a failure the bitmaps inside an image are those of before the job, and a bitmap that a group was to create does
 * not exist.
 */
static int settle_bitmap(struct tide_backup_job *job, struct tide_error *err)
{
	bool ok = job->outcome == TIDE_BACKUP_SUCCEEDED, failed = job->outcome == TIDE_BACKUP_FAILED;
	int rc;

	if (!job->token || (job->in_image && !ok && tide_node_image_reload(job->node, err) < 0))
		return job->token ? -1 : 0;
	if (job->in_image && failed)
		return 0;
	job->is_settling = true;
	rc = ok || job->in_image ? tide_node_begin_settling(job->node, job->sink, err)
	                         : tide_node_relock_store(job->node, job->sink, err);
	if (rc == 0 && !ok && (job->node->group.after || job->in_image) && find_own(job) < 0)
		return 0;
	return rc < 0 ? -1 : settle_entry(job, err);
}

/* ---- the member -------------------------------------------------------------------- */

static struct tide_node *member_node(void *member)
{
	const struct tide_backup_job *job = member;

	return job->node;
}

static struct tide_target *member_target(void *member)
{
	struct tide_backup_job *job = member;

	return job->outcome == TIDE_BACKUP_FAILED ? NULL : &job->target;
}

static int stage(void *member, struct tide_sink *sink, struct tide_error *err)
{
	struct tide_backup_job *job = member;

	job->is_settling = false;
	job->birth.is_incomplete = job->outcome == TIDE_BACKUP_KEPT;
	/* To compute the rest of its checksums takes time, and a cancelled job ends at once. */
	if (job->outcome == TIDE_BACKUP_KEPT)
		tide_image_sums_drop(job->target.image);
	if (job->outcome != TIDE_BACKUP_FAILED && tide_target_stage(&job->target, err) < 0) {
		job->unsound = true;
		return -1;
	}
	if (settle_bitmap(job, err) < 0 || (job->is_settling && tide_node_stage(job->node, err) < 0))
		return tide_error_wrap(err, "The bitmap '%s' could not be updated", job->bitmap);
	return 0;
}

static unsigned count(const void *member)
{
	const struct tide_backup_job *job = member;
	unsigned n = job->outcome == TIDE_BACKUP_FAILED ? 0 : tide_target_count_renames(&job->target);

	return n + (job->is_settling ? tide_node_count_changes(job->node) : 0);
}

/* Does the job take part in the step? */
static bool takes_step(const struct tide_backup_job *job, enum tide_commit_step step)
{
	return step == TIDE_COMMIT_NAMES ? job->outcome != TIDE_BACKUP_FAILED : job->is_settling;
}

static int add_to_record(void *member, enum tide_commit_step step, struct tide_commit_record *record,
                         struct tide_error *err)
{
	struct tide_backup_job *job = member;

	if (!takes_step(job, step))
		return 0;
	return step == TIDE_COMMIT_NAMES ? tide_target_add_to_record(&job->target, record, err)
	                                 : tide_node_add_to_record(job->node, record, err);
}

static void recorded(void *member)
{
	struct tide_backup_job *job = member;

	tide_target_recorded(&job->target);
	tide_node_recorded(job->node);
}

static void unrecorded(void *member)
{
	struct tide_backup_job *job = member;

	tide_target_unrecorded(&job->target);
	tide_node_unrecorded(job->node);
}

static int commit(void *member, enum tide_commit_step step, struct tide_error *err)
{
	struct tide_backup_job *job = member;

	if (!takes_step(job, step))
		return 0;
	return step == TIDE_COMMIT_NAMES ? tide_target_name(&job->target, err) : tide_node_commit(job->node, err);
}

static bool is_untouched(const void *member)
{
	const struct tide_backup_job *job = member;

	return tide_target_is_untouched(&job->target) && tide_node_is_untouched(job->node);
}

static bool is_made(const void *member, enum tide_commit_step step)
{
	const struct tide_backup_job *job = member;

	if (!takes_step(job, step))
		return true;
	return step == TIDE_COMMIT_NAMES ? tide_target_is_named(&job->target) : tide_node_is_made(job->node);
}

/* A decision is not rolled back; but the job has not succeeded until everything is in place. */
static void late(void *member, struct tide_error *why)
{
	struct tide_backup_job *job = member;

	job->is_decided = true;
	free(why->hint);
	why->hint = NULL;
	tide_error_hint(why, "the backup is decided: the next command that changes the image will complete it");
	tide_backup_fail(job, why);
}

static void unlock(void *member)
{
	struct tide_backup_job *job = member;

	if (job->is_settling)
		tide_node_unlock_store(job->node);
	job->is_settling = false;
}

struct tide_commit_member tide_backup_member(struct tide_backup_job *job)
{
	static const struct tide_commit_ops ops = {
		.node = member_node,
		.target = member_target,
		.stage = stage,
		.count = count,
		.add_to_record = add_to_record,
		.recorded = recorded,
		.unrecorded = unrecorded,
		.commit = commit,
		.is_untouched = is_untouched,
		.is_made = is_made,
		.late = late,
		.unlock = unlock,
	};

	return (struct tide_commit_member){ &ops, job };
}
