/*
 * Declarations that the parts of the backup job share: backup_prepare.c, up to the frozen bitmap; backup.c,
 * from the start to the last event; and backup_settle.c, its part in the commit.  No other file includes this.
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
	struct tide_target_bitmaps bitmaps; /* of an existing target */
	uint64_t exact_size;                /* of the source */
	struct tide_copy copy;
	enum tide_backup_outcome outcome; /* the outcome that this commit brings about */
	bool is_decided;         /* it is committed; the next opener completes what could not be put in place */
	bool is_settling;        /* the node's store is locked for settling */
	bool unsound;            /* the target could not be synced: a second sync could succeed although data is lost */
	struct tide_error cause; /* why it does not succeed */
};

/* The callback of the copy engine after an error: applies the job's policy.  True: try again. */
bool tide_backup_retry(struct tide_copy *copy, bool reading, unsigned tries, const struct tide_error *err);

#endif
