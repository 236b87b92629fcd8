/*
 * What the parts of the backup job share: backup_prepare.c, up to the frozen bitmap; backup.c,
 * from there on; and backup_settle.c, its part in the commit.  No other file includes this.
 */
#ifndef TIDE_BACKUP_JOB_H
#define TIDE_BACKUP_JOB_H

#include "backup.h"
#include "copy/copy.h"
#include "target.h"
#include "target_bitmaps.h"

enum tide_backup_outcome {
	TIDE_BACKUP_FAILED = 0, /* or cancelled, or never begun */
	TIDE_BACKUP_KEPT,       /* failed, and the partial target stays (bitmap-mode always) */
	TIDE_BACKUP_SUCCEEDED,
};

struct tide_backup_job {
	struct tide_node *node;
	struct tide_sink *sink;
	char *id, *bitmap;
	enum tide_sync_mode sync;
	enum tide_bitmap_mode bitmap_mode;
	bool reset_bitmap; /* with success the bitmap begins anew, whatever it was */
	enum tide_on_error on_source_error, on_target_error;
	uint32_t retry_after;
	uint64_t token; /* of the busy bitmap; 0: no bitmap */
	bool in_image;  /* it is kept in the image */
	char **older;   /* names of its store's bitmaps when it was frozen; what comes later stands before it */
	size_t n_older;
	struct tide_node *onto; /* the drive that the target is; NULL: none */
	struct tide_target target;
	struct tide_target_bitmaps bitmaps; /* of a target that is there */
	struct tide_copy copy;
	char *record;                     /* where the record of the commit that ends it is written */
	enum tide_backup_outcome outcome; /* what that commit makes true */
	bool is_settling;                 /* the node is locked for it */
	bool unsound;            /* the target could not be made durable: a second sync would not tell the truth */
	struct tide_error cause; /* why it does not succeed */
};

/* The copy engine's question after an error: what the job's policy says. */
bool tide_backup_retry(struct tide_copy *copy, bool reading, unsigned tries, const struct tide_error *err);

#endif
