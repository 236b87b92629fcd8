/*
 * The backup job from its start to its last event: the copy, the policies for errors, and the commit or the rollback.
 * backup_prepare.c creates the job, backup_settle.c is its part in the commit.
 *
 * One thread at a time uses a job; only tide_backup_stop, which sets a flag that the copy polls, comes from others.
 */
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "backup_job.h"
#include "base/error.h"
#include "base/lock.h"
#include "base/mark.h"
#include "base/mem.h"
#include "image/fingerprint.h"

const char *const tide_backup_sync_names[] = {
	[TIDE_SYNC_FULL] = "full",     [TIDE_SYNC_TOP] = "top",   [TIDE_SYNC_INCREMENTAL] = "incremental",
	[TIDE_SYNC_BITMAP] = "bitmap", [TIDE_SYNC_NONE] = "none", [TIDE_SYNC_NONE + 1] = NULL,
};

#define RETRY_NAP_NS 10000000
#define IGNORE_TRIES 4

/* ---- policies for errors ----------------------------------------------------------- */

static int sys_of(const struct tide_error *err)
{
	return err->sys ? err->sys : EIO;
}

/* Waits until the job is resumed after the resume `seen`, the retry time has passed, or the job is stopped. */
static void wait_stopped(struct tide_backup_job *job, unsigned seen, const struct tide_error *err)
{
	uint64_t naps = (uint64_t)job->retry_after * (1000000000 / RETRY_NAP_NS);
	struct timespec nap = { 0, RETRY_NAP_NS };

	tide_event_job_status(job->sink, job->id, "paused");
	if (naps)
		tide_event_warning(job->sink, job->node->path,
		                   "job '%s' is stopped: %s; it continues in %u s, or on SIGCONT", job->id, err->msg,
		                   job->retry_after);
	else
		tide_event_warning(job->sink, job->node->path, "job '%s' is stopped: %s; send SIGCONT to continue it",
		                   job->id, err->msg);
	for (uint64_t n = 0; !tide_copy_is_stopped(&job->copy) && atomic_load(&job->sink->resumed) == seen; n++) {
		if (naps && n >= naps)
			break;
		nanosleep(&nap, NULL);
	}
	tide_event_job_status(job->sink, job->id, "running");
}

/* The pauses of the policy `ignore` grow: 20 ms, 80 ms, 320 ms, 1.3 s. */
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
	unsigned seen;

	if (policy == TIDE_ON_ERROR_ENOSPC || policy == TIDE_ON_ERROR_AUTO)
		policy = sys_of(err) == ENOSPC ? TIDE_ON_ERROR_STOP : TIDE_ON_ERROR_REPORT;
	if (policy == TIDE_ON_ERROR_IGNORE && tries <= IGNORE_TRIES) {
		tide_event_job_error(job->sink, job->id, operation, "ignore");
		wait_ignored(job, tries);
		return !tide_copy_is_stopped(copy);
	}
	if (policy != TIDE_ON_ERROR_STOP)
		return false;
	/* Before the event: a program may resume the job as soon as it gets it. */
	seen = atomic_load(&job->sink->resumed);
	tide_event_job_error(job->sink, job->id, operation, "stop");
	wait_stopped(job, seen, err);
	return !tide_copy_is_stopped(copy);
}

struct tide_image *tide_backup_target_image(const struct tide_backup_job *job)
{
	return job->target.image;
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
	free(job->source);
	tide_error_release(&job->cause);
	free(job);
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

/* Stores the first failure as the cause, and delivers its event at once unless the job was cancelled. */
static void fail(struct tide_backup_job *job, bool reading, struct tide_error *err)
{
	if (!job->cause.code) {
		if (err->code != TIDE_E_CANCELLED)
			tide_event_job_error(job->sink, job->id, reading ? "read" : "write", "report");
		tide_error_move(&job->cause, err);
	}
	tide_error_release(err);
}

/* An existing target gets the source's size, if its own is another one of the same sectors. */
static int ready_target(struct tide_backup_job *job, struct tide_error *err)
{
	bool other_size = job->target.existing && tide_image_exact_size(job->target.image) != job->exact_size;

	if ((other_size || !tide_backup_is_empty(job)) &&
	    tide_target_bitmaps_distrust(&job->bitmaps, job->target.image, "a backup", job->sink, err) < 0)
		return -1;
	if (tide_image_can_resize(job->target.image))
		tide_mark_set(tide_image_fd(job->target.image), tide_image_format_name(job->target.image));
	if (!job->target.existing)
		return 0;
	if (tide_image_set_exact_size(job->target.image, job->exact_size, err) < 0)
		return -1;
	return tide_fingerprint_remember(job->target.image, err);
}

/* A file that existed before has data whose checksums would have to be computed by reading it. */
static int begin_checksums(struct tide_backup_job *job, struct tide_error *err)
{
	struct tide_error why = TIDE_ERROR_INIT;
	bool always = job->checksums == TIDE_CHECKSUMS_ALWAYS;

	if (job->checksums == TIDE_CHECKSUMS_NEVER || (job->target.existing && !always) ||
	    tide_image_sums_begin(job->target.image, always, &job->sink->cancelled, &why) >= 0)
		return 0;
	if (always || why.code == TIDE_E_NOMEM)
		return tide_error_move(err, &why);
	tide_event_warning(job->sink, job->node->path, "the backup has no checksums: %s", why.msg);
	tide_error_release(&why);
	return 0;
}

bool tide_backup_copy(struct tide_backup_job *job)
{
	struct tide_error err = TIDE_ERROR_INIT;
	bool reading;

	if (ready_target(job, &err) < 0 || begin_checksums(job, &err) < 0) {
		fail(job, false, &err);
	} else if (tide_image_settle_chain(job->node->image, &err) < 0) {
		fail(job, true, &err);
	} else if (tide_copy_run(&job->copy, &err) < 0) {
		/* The copy ignores errors after a stop, so the cause is then that the job was cancelled. */
		reading = job->copy.failed_reading;
		fail(job, reading, &err);
	} else {
		tide_backup_take_fingerprint(job);
		if (tide_image_check_unchanged(job->node->image, &err) < 0)
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

/* The text of the event's `error`: that of errno if the cause has one, as in QEMU. */
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
	if (!job->cause.code) {
		tide_backup_remember_full(job);
		return 0;
	}
	if (job->cause.code != TIDE_E_CANCELLED)
		tide_error_wrap(&job->cause, "The backup job '%s' failed", job->id);
	return tide_error_move(err, &job->cause);
}

/* May the partial target stay although the job failed?  Then the bitmap will contain the units that it lacks. */
static bool can_keep_partial(struct tide_backup_job *job)
{
	return job->bitmap_mode == TIDE_BITMAP_MODE_ALWAYS && !job->unsound && job->target.image &&
	       tide_image_check_unchanged(job->node->image, NULL) == 0;
}

static int commit(struct tide_backup_job *job, enum tide_backup_outcome outcome, struct tide_error *err)
{
	struct tide_commit_member member = tide_backup_member(job);
	struct tide_commit commit = { .members = &member, .n = 1, .sink = job->sink };

	job->outcome = outcome;
	return tide_commit_run(&commit, NULL, err);
}

void tide_backup_roll_back(struct tide_backup_job *job)
{
	struct tide_error err = TIDE_ERROR_INIT;

	if (can_keep_partial(job) && commit(job, TIDE_BACKUP_KEPT, NULL) == 0) {
		tide_event_warning(
		        job->sink, job->node->path,
		        "the backup ended early (%s); its partial target is kept, and the next backup from bitmap '%s' "
		        "must be chained on it",
		        job->cause.msg, job->bitmap);
		return;
	}
	/* The target is dropped first, so that syncs of the rollback need not wait for its pages to reach the disk. */
	tide_target_release(&job->target);
	if (commit(job, TIDE_BACKUP_FAILED, &err) < 0)
		tide_event_warning(job->sink, job->node->path,
		                   "%s; it will be completed by the next command that opens the image", err.msg);
	tide_error_release(&err);
}

void tide_backup_thaw(struct tide_backup_job *job)
{
	struct tide_error err = TIDE_ERROR_INIT;

	if (!job || !job->token || job->in_image || job->node->in_sidecar.is_dirty || !job->node->has_sidecar)
		return;
	if (commit(job, TIDE_BACKUP_FAILED, &err) < 0)
		tide_event_warning(job->sink, job->node->path,
		                   "%s; it will be completed by the next command that opens the image", err.msg);
	tide_error_release(&err);
}

int tide_backup_run(struct tide_backup_job *job, struct tide_error *err)
{
	struct tide_error late = TIDE_ERROR_INIT;

	if (tide_backup_copy(job) && commit(job, TIDE_BACKUP_SUCCEEDED, &late) < 0)
		fail(job, false, &late);
	if (job->cause.code) {
		tide_backup_emit_aborting(job);
		if (!job->is_decided)
			tide_backup_roll_back(job);
		return tide_backup_conclude(job, err);
	}
	tide_backup_emit_waiting(job);
	tide_backup_emit_pending(job);
	return tide_backup_conclude(job, err);
}

void tide_backup_fail(struct tide_backup_job *job, struct tide_error *err)
{
	fail(job, false, err);
}

void tide_backup_succeed(struct tide_backup_job *job)
{
	job->outcome = TIDE_BACKUP_SUCCEEDED;
}

bool tide_backup_settles(const struct tide_backup_job *job, const struct tide_node *node)
{
	return job->token && job->node == node;
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
