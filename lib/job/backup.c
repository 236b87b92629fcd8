#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "backup_job.h"
#include "base/error.h"
#include "base/lock.h"
#include "base/mem.h"
#include "node/node_inside.h"

#define RETRY_NAP_NS 10000000
#define IGNORE_TRIES 4

/* ---- errors on the way ------------------------------------------------------------- */

static int sys_of(const struct tide_error *err)
{
	return err->sys ? err->sys : EIO;
}

/* Waits for SIGCONT, for the time that was asked for, or for the end. */
static void wait_stopped(struct tide_backup_job *job, const struct tide_error *err)
{
	unsigned seen = atomic_load(&job->sink->resumed);
	uint64_t naps = (uint64_t)job->retry_after * (1000000000 / RETRY_NAP_NS);
	struct timespec nap = { 0, RETRY_NAP_NS };

	tide_event_job_status(job->sink, job->id, "paused");
	if (naps)
		tide_event_warning(job->sink, job->node->path,
		                   "job '%s' is stopped: %s; it goes on in %u s, or with SIGCONT", job->id, err->msg,
		                   job->retry_after);
	else
		tide_event_warning(job->sink, job->node->path, "job '%s' is stopped: %s; SIGCONT lets it go on",
		                   job->id, err->msg);
	for (uint64_t n = 0; !tide_copy_is_stopped(&job->copy) && atomic_load(&job->sink->resumed) == seen; n++) {
		if (naps && n >= naps)
			break;
		nanosleep(&nap, NULL);
	}
	tide_event_job_status(job->sink, job->id, "running");
}

/* The pauses of `ignore` grow: 20 ms, 80 ms, 320 ms, 1.3 s. */
static void wait_ignored(struct tide_backup_job *job, unsigned tries)
{
	struct timespec nap = { 0, RETRY_NAP_NS };

	for (unsigned naps = 1u << (2 * tries - 1); naps > 0 && !tide_copy_is_stopped(&job->copy); naps--)
		nanosleep(&nap, NULL);
}

bool tide_backup_retry(struct tide_copy *copy, bool reading, unsigned tries, const struct tide_error *err)
{
	struct tide_backup_job *job = (struct tide_backup_job *)((char *)copy - offsetof(struct tide_backup_job, copy));
	enum tide_on_error policy = reading ? job->on_source_error : job->on_target_error;
	const char *operation = reading ? "read" : "write";

	if (policy == TIDE_ON_ERROR_ENOSPC || policy == TIDE_ON_ERROR_AUTO)
		policy = sys_of(err) == ENOSPC ? TIDE_ON_ERROR_STOP : TIDE_ON_ERROR_REPORT;
	if (policy == TIDE_ON_ERROR_IGNORE && tries <= IGNORE_TRIES) {
		tide_event_job_error(job->sink, job->id, operation, "ignore");
		wait_ignored(job, tries);
		return !tide_copy_is_stopped(copy);
	}
	if (policy != TIDE_ON_ERROR_STOP)
		return false;
	tide_event_job_error(job->sink, job->id, operation, "stop");
	wait_stopped(job, err);
	return !tide_copy_is_stopped(copy);
}

bool tide_backup_is_empty(const struct tide_backup_job *job)
{
	return job->copy.len == 0;
}

void tide_backup_free(struct tide_backup_job *job)
{
	if (!job)
		return;
	if (job->node->job == job)
		job->node->job = NULL;
	if (job->onto && job->onto->job == job)
		job->onto->job = NULL;
	tide_target_release(&job->target);
	tide_target_bitmaps_release(&job->bitmaps);
	tide_bitmap_free(job->copy.todo);
	if (job->token && job->node->image)
		tide_lock_token_drop(tide_image_fd(job->node->image), job->token);
	free(job->id);
	free(job->bitmap);
	for (size_t i = 0; i < job->n_older; i++)
		free(job->older[i]);
	free(job->older);
	tide_error_release(&job->cause);
	free(job);
}

/* ---- settling ---------------------------------------------------------------------- */

static struct tide_sidecar *store_of(const struct tide_backup_job *job)
{
	return job->is_inside ? job->node->inside : job->node->sc;
}

/* Where this job's bitmap is, or -1. */
static long find_own(const struct tide_backup_job *job)
{
	const struct tide_sidecar *store = store_of(job);

	if (job->is_inside)
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

/* An empty bitmap that records, whatever was wrong with the one before. */
static struct tide_bitmap *begin_anew(struct tide_backup_job *job, struct tide_sidecar_bitmap *entry,
                                      struct tide_error *err)
{
	struct tide_bitmap *bm = tide_bitmap_new(tide_image_size(job->node->image), entry->granularity, err);

	if (!bm)
		return NULL;
	tide_node_replace_bitmap(job->node, entry, bm);
	entry->untracked = false;
	entry->enabled = true;
	return bm;
}

/* What the bitmap holds, cleared or as it is. */
static struct tide_bitmap *contents(struct tide_backup_job *job, struct tide_sidecar_bitmap *entry, bool ok,
                                    bool clears, struct tide_error *err)
{
	if (ok && job->reset_bitmap)
		return begin_anew(job, entry, err);
	if (clears)
		return tide_node_bitmap_clear(job->node, entry, err);
	return job->is_inside ? tide_node_bitmap(job->node, entry, err)
	                      : tide_node_bitmap_for_change(job->node, entry, err);
}

/* ok: the job succeeded.  kept: it did not, but its partial target was kept (always). */
static int settle_entry(struct tide_backup_job *job, bool ok, bool kept, struct tide_error *err)
{
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
	/* To where QEMU's successor stands, which takes over: the front as it was when the job began. */
	entry = tide_sidecar_take(store, (size_t)index);
	while (newer < store->n && !is_older(job, store->items[newer]->name))
		newer++;
	return tide_sidecar_insert(store, newer, entry, err);
}

static int settle_bitmap(struct tide_backup_job *job, bool ok, bool kept, struct tide_error *err)
{
	int rc;

	if (!job->token)
		return 0;
	/* After a failure an image holds what it held before. */
	if (job->is_inside && !ok && tide_node_inside_reload(job->node, err) < 0)
		return -1;
	if (job->is_inside && !ok && !kept)
		return 0;
	rc = job->is_inside ? tide_node_begin_settling(job->node, job->sink, err)
	                    : tide_node_relock_store(job->node, job->sink, err);
	if (rc == 0 && (job->node->after || job->is_inside) && find_own(job) < 0) {
		tide_node_unlock_store(job->node);
		return 0; /* a bitmap that was to come with the group */
	}
	if (rc == 0)
		rc = settle_entry(job, ok, kept, err);
	if (rc == 0)
		rc = tide_node_stage(job->node, err);
	if (rc == 0)
		rc = tide_node_commit(job->node, err);
	tide_node_unlock_store(job->node);
	return rc < 0 ? tide_error_wrap(err, "The bitmap '%s' could not be updated", job->bitmap) : 0;
}

/* ---- running ----------------------------------------------------------------------- */

void tide_backup_start(struct tide_backup_job *job, struct tide_work_share *share)
{
	job->copy.share = share;
	tide_work_share_enter(share);
	tide_event_job_status(job->sink, job->id, "running");
}

void tide_backup_drop(struct tide_backup_job *job)
{
	tide_event_job_status(job->sink, job->id, "aborting");
	tide_event_job_status(job->sink, job->id, "concluded");
	tide_event_job_status(job->sink, job->id, "null");
}

/* The first failure is the cause; an error of I/O is an event at once. */
static void fail(struct tide_backup_job *job, bool reading, struct tide_error *err)
{
	if (!job->cause.code) {
		if (err->code != TIDE_E_CANCELLED)
			tide_event_job_error(job->sink, job->id, reading ? "read" : "write", "report");
		tide_error_move(&job->cause, err);
	}
	tide_error_release(err);
}

bool tide_backup_copy(struct tide_backup_job *job)
{
	struct tide_error err = TIDE_ERROR_INIT;
	bool reading;

	if (!tide_backup_is_empty(job) &&
	    tide_target_bitmaps_distrust(&job->bitmaps, job->target.image, "a backup", job->sink, &err) < 0) {
		fail(job, false, &err);
	} else if (tide_copy_run(&job->copy, &err) < 0) {
		/* Stopped, it may have met an error on the way; that is not why it ended. */
		reading = job->copy.failed_reading;
		fail(job, reading, &err);
	} else if (tide_image_check_unchanged(job->node->image, &err) < 0) {
		fail(job, true, &err);
	}
	tide_work_share_leave(job->copy.share);
	return !job->cause.code;
}

void tide_backup_stop(struct tide_backup_job *job)
{
	atomic_store(&job->copy.stop, true);
}

void tide_backup_cancel(struct tide_backup_job *job)
{
	if (!job->cause.code)
		tide_error_set(&job->cause, TIDE_E_CANCELLED, "Cancelled");
}

/* After a failure with bitmap-mode always: what was copied stays, and the bitmap knows what is missing. */
static bool keep_partial(struct tide_backup_job *job)
{
	struct tide_error err = TIDE_ERROR_INIT;

	if (job->bitmap_mode != TIDE_BITMAP_MODE_ALWAYS || job->unsound ||
	    tide_image_check_unchanged(job->node->image, &err) < 0 || tide_target_commit(&job->target, &err) < 0) {
		tide_error_release(&err);
		return false;
	}
	tide_event_warning(
	        job->sink, job->node->path,
	        "the backup ended early (%s); its partial target is kept, and the next backup from bitmap '%s' "
	        "must be chained on it",
	        job->cause.msg, job->bitmap);
	return true;
}

void tide_backup_emit_pending(struct tide_backup_job *job)
{
	tide_event_job_status(job->sink, job->id, "pending");
}

void tide_backup_emit_waiting(struct tide_backup_job *job)
{
	tide_event_job_status(job->sink, job->id, "waiting");
}

void tide_backup_emit_aborting(struct tide_backup_job *job)
{
	tide_event_job_status(job->sink, job->id, "aborting");
}

/* The words of the event's `error`: errno's where there is one, as QEMU has them. */
static const char *error_text(const struct tide_error *cause)
{
	if (cause->sys || cause->code == TIDE_E_CORRUPT)
		return strerror(sys_of(cause));
	return cause->msg;
}

int tide_backup_conclude(struct tide_backup_job *job, struct tide_error *err)
{
	struct tide_job_result r = {
		.device = job->id,
		.len = job->copy.len,
		.offset = job->copy.offset,
		.speed = job->copy.speed,
	};

	if (job->cause.code)
		r.error = error_text(&job->cause);
	if (job->cause.code == TIDE_E_CANCELLED)
		tide_event_job_cancelled(job->sink, &r);
	else
		tide_event_job_completed(job->sink, &r);
	tide_event_job_status(job->sink, job->id, "concluded");
	tide_event_job_status(job->sink, job->id, "null");
	if (!job->cause.code)
		return 0;
	if (job->cause.code != TIDE_E_CANCELLED)
		tide_error_wrap(&job->cause, "The backup job '%s' failed", job->id);
	return tide_error_move(err, &job->cause);
}

void tide_backup_roll_back(struct tide_backup_job *job)
{
	struct tide_error err = TIDE_ERROR_INIT;
	bool kept = keep_partial(job);

	/* First, so that its pages are gone before anything has to wait for the disk. */
	if (!kept)
		tide_target_release(&job->target);
	if (settle_bitmap(job, false, kept, &err) < 0)
		tide_event_warning(job->sink, job->node->path, "%s; the next command on the image will do it", err.msg);
	tide_error_release(&err);
}

int tide_backup_run(struct tide_backup_job *job, struct tide_error *err)
{
	struct tide_error late = TIDE_ERROR_INIT;

	if (tide_backup_copy(job) && tide_target_commit(&job->target, &late) < 0) {
		job->unsound = true;
		fail(job, false, &late);
	}
	if (job->cause.code) {
		tide_backup_emit_aborting(job);
		tide_backup_roll_back(job);
		return tide_backup_conclude(job, err);
	}
	if (settle_bitmap(job, true, false, &late) < 0) {
		tide_error_hint(&late, "the backup itself is complete; the bitmap still holds all it held");
		fail(job, false, &late);
		tide_backup_emit_aborting(job);
		return tide_backup_conclude(job, err);
	}
	tide_backup_emit_waiting(job);
	tide_backup_emit_pending(job);
	return tide_backup_conclude(job, err);
}

/* ---- with others ------------------------------------------------------------------- */

bool tide_backup_stage(struct tide_backup_job *job)
{
	struct tide_error err = TIDE_ERROR_INIT;
	int rc = tide_target_stage(&job->target, &err);

	job->unsound = rc < 0;
	if (rc == 0 && job->token) {
		rc = tide_node_begin_settling(job->node, job->sink, &err);
		if (rc == 0)
			rc = settle_entry(job, true, false, &err);
		if (rc == 0)
			rc = tide_node_stage(job->node, &err);
	}
	if (rc < 0)
		fail(job, false, &err);
	return rc == 0;
}

int tide_backup_add_to_record(const struct tide_backup_job *job, struct tide_commit_record *record,
                              struct tide_error *err)
{
	if (tide_target_add_to_record(&job->target, record, err) < 0)
		return -1;
	return tide_node_add_to_record(job->node, record, err);
}

void tide_backup_recorded(struct tide_backup_job *job)
{
	tide_target_recorded(&job->target);
	tide_node_recorded(job->node);
}

int tide_backup_commit(struct tide_backup_job *job, struct tide_error *err)
{
	int rc = tide_target_name(&job->target, err);

	if (rc == 0 && job->token)
		rc = tide_node_commit(job->node, err);
	return rc;
}

void tide_backup_unlock(struct tide_backup_job *job)
{
	if (job->token)
		tide_node_unlock_store(job->node);
}

void tide_backup_fail(struct tide_backup_job *job, struct tide_error *err)
{
	fail(job, false, err);
}

struct tide_node *tide_backup_node(const struct tide_backup_job *job)
{
	return job->node;
}

const char *tide_backup_id(const struct tide_backup_job *job)
{
	return job->id;
}

bool tide_backup_collides(const struct tide_backup_job *job, const struct tide_backup_job *other)
{
	return tide_target_collides(&job->target, &other->target);
}

void tide_backup_register(struct tide_backup_job *job)
{
	job->node->job = job;
	if (job->onto)
		job->onto->job = job;
	tide_event_job_status(job->sink, job->id, "created");
}

const char *tide_backup_target(const struct tide_backup_job *job)
{
	return tide_image_path(job->target.image);
}

const char *tide_backup_sidecar(const struct tide_backup_job *job)
{
	return job->token ? job->node->sidecar_path : NULL;
}
