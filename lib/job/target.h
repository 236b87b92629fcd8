/*
 * A target: the image that a backup, a restore or image-create writes.
 *
 * A new one is a nameless file until it is complete; commit makes it durable and gives it
 * its name, replacing what stood there, in one step.  What stands there meanwhile is locked
 * like an image that is written, so that a running QEMU (or the source itself) is not
 * replaced under somebody's feet.  Released without commit, a new target was never there.
 */
#ifndef TIDE_TARGET_H
#define TIDE_TARGET_H

#include "base/event.h"
#include "image/image.h"
#include "store/commit_record.h"
#include "base/sysio.h"

struct tide_target {
	struct tide_staged staged; /* of a new target */
	struct tide_staged data;   /* its external data file, if it has one: never in the place of another file */
	struct tide_image *image;
	int old_fd;    /* what stood under the name, locked; or -1 */
	bool existing; /* opened, not made */
	bool exclusive;
};

#define TIDE_TARGET_INIT                                                   \
	{                                                                  \
		TIDE_STAGED_INIT, TIDE_STAGED_INIT, NULL, -1, false, false \
	}

/* like: whose owner and mode the new file gets; NULL: the usual ones of a new file. exclusive: refuse a taken name. */
int tide_target_create(struct tide_target *target, const char *path, const char *format,
                       const struct tide_driver_create *options, const struct tide_image *like, bool exclusive,
                       struct tide_error *err);
/* allow: enum tide_allow, for the target's own chain.  cancel: as in image.h. */
int tide_target_open(struct tide_target *target, const char *path, const char *format, unsigned allow,
                     const atomic_bool *cancel, struct tide_error *err);
/* Says so when others will need an option to open the new target: its backing image is in another directory. */
void tide_target_warn_outside(const struct tide_target *target, struct tide_sink *sink, const char *path);
/* Durable, and but for its name complete: what is left of the commit is a rename. */
int tide_target_stage(struct tide_target *target, struct tide_error *err);
/* The renames that are left after stage. */
unsigned tide_target_count_renames(const struct tide_target *target);
/* Gives the files temporary names and adds the renames to a commit record; tide_target_name makes them. */
int tide_target_add_to_record(struct tide_target *target, struct tide_commit_record *record, struct tide_error *err);
/* The record is durable: what cannot be named now must not go; or it was taken back. */
void tide_target_recorded(struct tide_target *target);
void tide_target_unrecorded(struct tide_target *target);
/* Neither file has its name yet. */
bool tide_target_is_untouched(const struct tide_target *target);
int tide_target_name(struct tide_target *target, struct tide_error *err);
void tide_target_release(struct tide_target *target);
/* Two new targets that would come to stand under one name, as images or as data files. */
bool tide_target_collides(const struct tide_target *a, const struct tide_target *b);

/*
 * The backing name to store in a new image at path, for a backing image that a person named
 * on a command line: as it stands when it leads somewhere from the new image's directory
 * (qemu-img's rule); else, when it does from the current directory, a name that leads
 * there.  Refused when both lead somewhere, and not to the same file.
 */
char *tide_target_backing_name(const char *path, const char *backing, struct tide_error *err);

/* A name that leads to the file from the directory of path: its own, when it stands there too, else the absolute one.
 */
char *tide_target_name_from(const char *path, const char *file, struct tide_error *err);

#endif
