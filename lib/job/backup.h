/*
 * The backup job: QEMU's drive-backup of one device, with the semantics of QEMU 7.2: the argument checks,
 * the copy units, len and offset, and the bitmap's contents at the end.
 *
 *   prepare   checks the arguments in QEMU's order, creates or opens the target, plans the copy
 *             units, and freezes the bitmap in the node: busy, with a successor.
 *   run       for a single job: copies, makes the target durable and gives it its name, and
 *             settles the bitmap; delivers the job's events.  The node's sidecar must have
 *             been committed and unlocked before.
 *   free      before run: leaves nothing of the job (the caller drops the node's changes).
 *
 * A job that ends with others (group.h) takes the steps one by one: copy; the commit of all jobs
 * (commit.h), or roll_back; and conclude, which delivers its last events.
 *
 * The bitmap at the end, where D is its contents at the start, S the bits that its successor recorded and R
 * the units not copied:
 *
 *   bitmap-mode   success   failure or cancel
 *   on-success    S         D ∪ S
 *   always        S         R ∪ S, and the partial target is kept
 *   never         D ∪ S     D ∪ S
 *
 * On disk the bitmap stays busy until it is settled, with both D and S: if the job
 * dies, the next opener of the node merges them to D ∪ S.
 *
 * Threads: one thread at a time uses a job, and while that copies, others may only call tide_backup_stop.
 */
#ifndef TIDE_BACKUP_H
#define TIDE_BACKUP_H

#include "base/event.h"
#include "base/json.h"
#include "base/work.h"
#include "commit.h"
#include "node/node.h"

struct tide_backup_job;

/* QEMU's names of the modes that a job has: all but auto. */
extern const char *const tide_backup_sync_names[TIDE_SYNC_NONE + 2]; /* NULL at the end */

/* Does a job of this mode copy what a bitmap selects? */
static inline bool tide_backup_is_increment(enum tide_sync_mode sync)
{
	return sync == TIDE_SYNC_INCREMENTAL || sync == TIDE_SYNC_BITMAP;
}

/* point: identifies the transaction.  onto: the drive that is the target, or NULL. */
int tide_backup_prepare(struct tide_node *node, const struct tide_backup *args, const struct tide_id *point,
                        struct tide_node *onto, struct tide_sink *sink, struct tide_backup_job **job,
                        struct tide_error *err);
/* A full backup of the node to this target will be prepared: node->next_full becomes what is known of it. */
int tide_backup_announce_full(struct tide_node *node, const char *target, struct tide_error *err);
/* Checks QEMU's rules for the names of nodes. */
int tide_backup_check_node_name(const char *name, struct tide_error *err);
const char *tide_backup_id(const struct tide_backup_job *job);
/*
 * Adds to `into` what the bitmaps of this name in the backing images of an open node have, with a warning
 * (backup_unite.c).  Fails if one of them cannot be used.  into NULL: only checks that.
 */
int tide_backup_unite(const struct tide_node *top, const char *name, struct tide_sink *sink, struct tide_bitmap *into,
                      struct tide_error *err);
/* Is the identifier of the base not enough, so that a sample of the disk decides too? */
bool tide_backup_needs_sample(const struct tide_node *node, const struct tide_sidecar_bitmap *entry);
/*
 * Compares a sample of what has not changed, or all of it: own: of what the other image holds itself.  1: they differ
 * there.  *complete: all was compared; a small disk is, also for a sample.
 */
int tide_backup_compare_sample(struct tide_image *disk, struct tide_image *backing, const struct tide_bitmap *changed,
                               struct tide_sink *sink, bool *complete, struct tide_error *err);
int tide_backup_compare_all(struct tide_image *disk, struct tide_image *other, const struct tide_bitmap *changed,
                            bool own, struct tide_sink *sink, bool *complete, struct tide_error *err);
/* Is nothing made, as the request is only tried? */
bool tide_backup_is_dry(const struct tide_backup_job *job);
/* Adds to an object what the backup is: its id and base, and its target. */
void tide_backup_describe(const struct tide_backup_job *job, struct tide_json_writer *w);
/* Would both jobs give the same name to their targets? */
bool tide_backup_collides(const struct tide_backup_job *job, const struct tide_backup_job *other);
/* Makes the job known: its node is busy, and so is its target if that is a drive. */
void tide_backup_register(struct tide_backup_job *job);
struct tide_image *tide_backup_target_image(const struct tide_backup_job *job);
/* Is there nothing to copy?  Such a job ends before the command's reply, as in QEMU. */
bool tide_backup_is_empty(const struct tide_backup_job *job);
/* Begins the job, before the command's reply.  All jobs of a share begin before one of them copies. */
void tide_backup_start(struct tide_backup_job *job, struct tide_work_share *share);
/* Delivers the events of a job that never began, because the transaction was refused. */
void tide_backup_drop(struct tide_backup_job *job);
/* Called besides drop if the node may have been committed with the frozen bitmap: thaws it on disk. */
void tide_backup_thaw(struct tide_backup_job *job);
int tide_backup_run(struct tide_backup_job *job, struct tide_error *err);
void tide_backup_free(struct tide_backup_job *job);

/* Copies.  False if that failed or was stopped; the job stores the cause, and has delivered an event about it. */
bool tide_backup_copy(struct tide_backup_job *job);
/* Called from any thread: makes the copy end soon. */
void tide_backup_stop(struct tide_backup_job *job);
/* Cancels the job, because another one of its group failed. */
void tide_backup_cancel(struct tide_backup_job *job);
void tide_backup_fail(struct tide_backup_job *job, struct tide_error *err);
const char *tide_backup_target(const struct tide_backup_job *job); /* its path, absolute */
/* The job as a member of a commit.  succeed sets the outcome that the commit of a group brings about. */
struct tide_commit_member tide_backup_member(struct tide_backup_job *job);
void tide_backup_succeed(struct tide_backup_job *job);
/* Will the job change the bitmaps of this node when it settles? */
bool tide_backup_settles(const struct tide_backup_job *job, const struct tide_node *node);
/* In place of a commit that succeeds: settles the bitmap as after a failed job. */
void tide_backup_roll_back(struct tide_backup_job *job);
void tide_backup_emit_waiting(struct tide_backup_job *job);
void tide_backup_emit_pending(struct tide_backup_job *job);
void tide_backup_emit_aborting(struct tide_backup_job *job);
/* Delivers the event that ends the job.  Returns -1 and the cause if the job did not succeed. */
int tide_backup_conclude(struct tide_backup_job *job, struct tide_error *err);

#endif
