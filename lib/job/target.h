/*
 * A target: the image that a backup, a restore or image-create writes.
 *
 * A new target is a nameless file until it is complete; the commit makes it durable and gives it
 * its name, and so replaces an older file of that name, in one step.  The older file is locked
 * like an image that is written, so that an image which a running QEMU (or the job itself) uses is never
 * replaced.  A new target that is released without a commit leaves no file.
 *
 * The birth record of a backup goes into the image; if that has no place for it, into the sidecar of the target, which
 * takes part in the commit like the target.
 */
#ifndef TIDE_TARGET_H
#define TIDE_TARGET_H

#include "base/event.h"
#include "base/sysio.h"
#include "image/birth.h"
#include "image/image.h"
#include "store/commit_record.h"
#include "store/store.h"

struct tide_target {
	struct tide_staged staged; /* of a new target */
	struct tide_staged data;   /* its external data file, if it has one, which never replaces a file */
	struct tide_image *image;
	int old_fd;                /* the older file of the name, locked; or -1 */
	bool existing;             /* it was opened, not created */
	bool adopted;              /* the image is not closed with it */
	bool exclusive;            /* it must not replace a file */
	const atomic_bool *cancel; /* of the session, ends waits for others; NULL: never; set before it is created */
	bool dry_run;              /* it will not be kept; set before it is created */
	char *pointer;             /* the file that leads to the commit record, if there is one */
	const struct tide_birth *birth; /* to be stored by stage; NULL: no backup.  It stays the caller's */
	struct tide_store sidecar;      /* with the birth record, if that has no place in the image */
	bool has_sidecar;
	struct tide_staged sums; /* the file with the checksums of a raw target */
};

#define TIDE_TARGET_INIT                                                                                        \
	{                                                                                                       \
		.staged = TIDE_STAGED_INIT, .data = TIDE_STAGED_INIT, .old_fd = -1, .sidecar = TIDE_STORE_INIT, \
		.sums = TIDE_STAGED_INIT,                                                                       \
	}

/*
 * like: an image whose owner and mode the new file gets; NULL: the default ones.  in_place: refuses a taken name, and
 * the hint then suggests this way to write to what exists; NULL: replaces a file.
 */
int tide_target_create(struct tide_target *target, const char *path, const char *format,
                       const struct tide_driver_create *options, const struct tide_image *like, const char *in_place,
                       struct tide_error *err);
/* Is it a block device or a URI?  These are not replaced, but written completely. */
bool tide_target_is_device(const char *path);
/* allow: enum tide_allow, for the target's own chain.  guessed, cancel: as in image.h. */
int tide_target_open(struct tide_target *target, const char *path, const char *format, bool guessed, unsigned allow,
                     const atomic_bool *cancel, struct tide_error *err);
/* Makes an open image the target, which does not own it: the caller releases the target before the image. */
int tide_target_adopt(struct tide_target *target, struct tide_image *image, const char *path, struct tide_error *err);
/*
 * Completes the transaction that was to give a new image this name, if it was interrupted after its commit, and refuses
 * the request then: it may be the one that was interrupted.  path: absolute, without symbolic links.
 */
int tide_target_recover(const char *path, bool dry_run, const atomic_bool *cancel, struct tide_error *err);
/* The pointer from the target to a commit record, written before the record and removed after it, or left. */
int tide_target_point(struct tide_target *target, const char *record, struct tide_error *err);
void tide_target_unpoint(struct tide_target *target);
void tide_target_leave_pointer(struct tide_target *target);
/* Warns if the backing image of a new target is in another directory, because opening it needs an option then. */
void tide_target_warn_outside(const struct tide_target *target, struct tide_sink *sink, const char *path);
/* Makes the target durable; only its renames are left for the commit. */
int tide_target_stage(struct tide_target *target, struct tide_error *err);
/* The number of renames that are left after stage. */
unsigned tide_target_count_renames(const struct tide_target *target);
/* Gives the files temporary names and adds the renames to a commit record; tide_target_name carries them out. */
int tide_target_add_to_record(struct tide_target *target, struct tide_commit_record *record, struct tide_error *err);
/* recorded: the record is durable, so a file stays even if its rename fails now.  unrecorded: the record was removed.
 */
void tide_target_recorded(struct tide_target *target);
void tide_target_unrecorded(struct tide_target *target);
/* Is neither file renamed yet? */
bool tide_target_is_untouched(const struct tide_target *target);
/* Have the image and its data file their names?  The sidecar with its record may lack its own. */
bool tide_target_is_named(const struct tide_target *target);
int tide_target_name(struct tide_target *target, struct tide_error *err);
/* The absolute path that a name leads to, through symbolic links; the name itself if its directory does not exist. */
char *tide_target_final_path(const char *path, struct tide_error *err);
/* The path under which the target will be found, without symbolic links. */
const char *tide_target_path(const struct tide_target *target);
void tide_target_release(struct tide_target *target);
/* Would two new targets get the same name, as images or as data files? */
bool tide_target_collides(const struct tide_target *a, const struct tide_target *b);

/*
 * The backing name to store in a new image at path, for a backing image that a person named
 * on a command line.  If the name leads to a file from the new image's directory, it is stored unchanged
 * (qemu-img's rule); if it does so from the current directory only, a name that leads there from the new image.  Two
 * different files are refused as ambiguous.
 */
char *tide_target_backing_name(const char *path, const char *backing, struct tide_error *err);

/* A name that leads to the file from the directory of path: its base name if it is in that directory, else its absolute
 * path. */
char *tide_target_name_from(const char *path, const char *file, struct tide_error *err);

#endif
