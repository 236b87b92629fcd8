/*
 * Declarations that the parts of the backup job share: backup_prepare.c, up to the frozen bitmap; backup_guard.c, what
 * the target must not replace; backup_base.c, the backup that an increment belongs on; backup_birth.c, its place among
 * other backups; backup.c, from the start to the last event; and backup_settle.c, its part in the commit.  No other
 * file includes this.
 */
#ifndef TIDE_BACKUP_JOB_H
#define TIDE_BACKUP_JOB_H

#include "backup.h"
#include "copy/copy.h"
#include "target.h"
#include "target_bitmaps.h"

enum tide_backup_outcome {
	TIDE_BACKUP_FAILED = 0, /* also: cancelled, or never begun */
	TIDE_BACKUP_KEPT,       /* failed, but the partial target stays (bitmap-mode always) */
	TIDE_BACKUP_SUCCEEDED,
};

struct tide_backup_job {
	struct tide_node *node;
	struct tide_sink *sink;
	char *id, *bitmap;
	enum tide_sync_mode sync;
	enum tide_bitmap_mode bitmap_mode;
	bool reset_bitmap; /* success replaces the bitmap by an empty one that records, whatever its state was */
	enum tide_on_error on_source_error, on_target_error;
	uint32_t retry_after;
	uint64_t token; /* of the busy bitmap; 0: the job has no bitmap to settle */
	bool in_image;  /* the bitmap is inside the image */
	char **older;   /* names of its store's bitmaps when it was frozen; the settled bitmap comes after newer ones */
	size_t n_older;
	struct tide_node *onto; /* the drive that is the target; NULL: none */
	struct tide_target target;
	struct tide_birth birth;            /* its names are the job's and the node's */
	struct tide_fingerprint *source;    /* of the disk, or NULL */
	struct tide_target_bitmaps bitmaps; /* of an existing target */
	enum tide_checksums checksums;
	uint64_t exact_size; /* of the source */
	struct tide_copy copy;
	enum tide_backup_outcome outcome; /* the outcome that this commit brings about */
	bool is_decided;         /* it is committed; the next opener completes what could not be put in place */
	bool is_settling;        /* the node's store is locked for settling */
	bool unsound;            /* the target could not be synced: a second sync could succeed although data is lost */
	struct tide_error cause; /* why it does not succeed */
};

/* The callback of the copy engine after an error: applies the job's policy.  True: try again. */
bool tide_backup_retry(struct tide_copy *copy, bool reading, unsigned tries, const struct tide_error *err);

/*
 * The backup that the bitmap counts from, or NULL.  A bitmap that was disabled lacks what was written meanwhile, unless
 * nothing was written.
 */
const struct tide_base *tide_backup_known_base(const struct tide_backup_job *job,
                                               const struct tide_sidecar_bitmap *entry);
/*
 * The backup that a new target is to be chained on: *path is that of the bitmap's base, with *format; NULL if the
 * bitmap has none.  Fails if the base is not there any more.
 */
int tide_backup_find_base(const struct tide_backup_job *job, const struct tide_sidecar_bitmap *entry, char **path,
                          const char **format, struct tide_error *err);
/*
 * Decides what the backup is part of, for its record.  Refuses a backing image of the target that is not the backup
 * which the bitmap counts from, and an existing target that would show data of its own in place of the disk's.  The
 * plan of what is copied is complete.
 */
int tide_backup_check_base(struct tide_backup_job *job, const struct tide_sidecar_bitmap *entry,
                           struct tide_error *err);
/* The record of the backup at this path, or NULL.  *image: the file alone, or NULL; the caller closes it. */
struct tide_birth *tide_backup_find_birth(const char *path, struct tide_image **image);
/*
 * Refuses to replace a backup that a bitmap of the disk counts from, or an image below such a one (backup_guard.c).
 * existing: the target is written to as it is, which the first of these may be.
 */
int tide_backup_guard_base(const struct tide_node *node, const char *target, bool existing, struct tide_error *err);
/* Decides the rest of the birth record.  point: the same for all backups of a transaction. */
int tide_backup_set_birth(struct tide_backup_job *job, const struct tide_id *point,
                          const struct tide_sidecar_bitmap *entry, struct tide_error *err);
/* After the copy. */
void tide_backup_take_fingerprint(struct tide_backup_job *job);
/* The bitmap counts from this backup from now on. */
int tide_backup_set_base(const struct tide_backup_job *job, struct tide_sidecar_bitmap *entry, struct tide_error *err);
/*
 * tell: the sidecar of the node, in memory, knows the disk of the backup, and that it was the last full one.
 * remember_full: for a job that does not settle, the sidecar on disk.
 */
int tide_backup_tell(const struct tide_backup_job *job, struct tide_node *node, struct tide_error *err);
void tide_backup_remember_full(const struct tide_backup_job *job);

#endif
