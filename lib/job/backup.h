/*
 * The backup job: QEMU's drive-backup of one device (qemu-semantics of 7.2: argument checks,
 * copy units, len and offset, what becomes of the bitmap).
 *
 *   prepare   checks the arguments in QEMU's order, makes or opens the target, plans the copy
 *             units, and freezes the bitmap in the node: busy, with a successor.
 *   run       a job alone: copies, makes the target durable and gives it its name, and
 *             settles the bitmap; delivers the job's events.  The node's sidecar must have
 *             been committed and unlocked by then.
 *   free      before run: the job never was (the caller drops the node's changes).
 *
 * A job that ends with others (group.h) goes through the steps one by one: copy; the commit of all
 * (commit.h), or roll_back; and conclude, its last events.
 *
 * The bitmap afterwards, with D what it held, S what its successor recorded and R the units
 * not copied:
 *
 *   bitmap-mode   success   failure or cancel
 *   on-success    S         D ∪ S
 *   always        S         R ∪ S, and the partial target is kept
 *   never         D ∪ S     D ∪ S
 *
 * On disk the bitmap stays busy until it is settled, with D and S both there: a job that
 * dies leaves D ∪ S to whoever opens the node next.
 */
#ifndef TIDE_BACKUP_H
#define TIDE_BACKUP_H

#include "base/event.h"
#include "node/node.h"
#include "base/work.h"
#include "commit.h"

struct tide_backup_job;

/* onto: the drive that is the target, or NULL.  group: the path of the record of the group that the job will end with,
 * or NULL. */
int tide_backup_prepare(struct tide_node *node, const struct tide_backup *args, struct tide_node *onto,
                        const char *group, struct tide_sink *sink, struct tide_backup_job **job,
                        struct tide_error *err);
/* QEMU's rules for the names of nodes. */
int tide_backup_check_node_name(const char *name, struct tide_error *err);
const char *tide_backup_id(const struct tide_backup_job *job);
/* Both would give the same name to what they make. */
bool tide_backup_collides(const struct tide_backup_job *job, const struct tide_backup_job *other);
/* It is there: its node is busy, and the drive that is its target, if it is one. */
void tide_backup_register(struct tide_backup_job *job);
/* Nothing to copy: QEMU's job is over before the command's reply. */
bool tide_backup_is_empty(const struct tide_backup_job *job);
/* The job begins, before the command's reply; all that share do before one of them copies. */
void tide_backup_start(struct tide_backup_job *job, struct tide_work_share *share);
/* The transaction is refused: the events of a job that never began. */
void tide_backup_drop(struct tide_backup_job *job);
/* The same, when the node has been committed with the bitmap frozen: it is thawed on disk. */
void tide_backup_thaw(struct tide_backup_job *job);
int tide_backup_run(struct tide_backup_job *job, struct tide_error *err);
void tide_backup_free(struct tide_backup_job *job);

/* False when it failed or was stopped; the job remembers why, and has said so. */
bool tide_backup_copy(struct tide_backup_job *job);
/* From another thread: ends a copy soon. */
void tide_backup_stop(struct tide_backup_job *job);
/* It has to end because another one failed. */
void tide_backup_cancel(struct tide_backup_job *job);
void tide_backup_fail(struct tide_backup_job *job, struct tide_error *err);
const char *tide_backup_target(const struct tide_backup_job *job); /* its path, absolute */
/* The job's part in a commit that makes it succeed; run sets the outcome by itself. */
struct tide_commit_member tide_backup_member(struct tide_backup_job *job);
void tide_backup_succeed(struct tide_backup_job *job);
/* Will it change the bitmaps of this node? */
bool tide_backup_settles(const struct tide_backup_job *job, const struct tide_node *node);
/* In place of success: what it froze or recorded is as if the job had failed. */
void tide_backup_roll_back(struct tide_backup_job *job);
void tide_backup_emit_waiting(struct tide_backup_job *job);
void tide_backup_emit_pending(struct tide_backup_job *job);
void tide_backup_emit_aborting(struct tide_backup_job *job);
/* The event that ends the job; -1 and the cause when it did not succeed. */
int tide_backup_conclude(struct tide_backup_job *job, struct tide_error *err);

#endif
