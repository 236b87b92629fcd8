/*
 * The knowledge of a sidecar about backups: the base of a bitmap, and the last full backup of the disk.
 *
 * The base of a bitmap is the backup that it counts from: every granule that has changed since that backup is dirty.
 */
#ifndef TIDE_LINEAGE_H
#define TIDE_LINEAGE_H

#include "base/id.h"
#include "base/stamp.h"

struct tide_base {
	struct tide_id id;
	int64_t time;         /* of the backup, seconds since 1970 */
	char *path;           /* where it was put, absolute */
	char fingerprint[65]; /* of the disk then (image/fingerprint.h), 64 hexadecimal digits; empty: unknown */
	/*
	 * The bitmap was disabled when the image had this stamp, and has recorded nothing since. It counts from its
	 * base only if the image still has it.
	 */
	struct tide_stamp paused;
};

/* The last full backup. The disk is that of the backup as long as the image has this stamp. */
struct tide_last_full {
	struct tide_base base;
	struct tide_stamp stamp;
};

/* The bases of bitmaps that are not in the sidecar, but inside the image. */
struct tide_named_bases {
	struct tide_id token; /* that of the bitmaps in the image (driver.h): the bases are theirs; zero: unknown */
	size_t n;
	struct tide_named_base {
		char *name;
		struct tide_base base;
	} * items;
};

void tide_lineage_base_free(struct tide_base *base); /* NULL: nothing */
struct tide_base *tide_lineage_base_new(const struct tide_id *id, int64_t time, const char *path,
                                        struct tide_error *err);
/* from NULL: *to becomes NULL. */
int tide_lineage_base_copy(struct tide_base **to, const struct tide_base *from, struct tide_error *err);
bool tide_lineage_base_is_same(const struct tide_base *a, const struct tide_base *b);

void tide_lineage_named_free(struct tide_named_bases *named);
int tide_lineage_named_add(struct tide_named_bases *named, const char *name, const struct tide_base *base,
                           struct tide_error *err);
/* NULL: the bitmap of this name has no base. */
const struct tide_base *tide_lineage_named_find(const struct tide_named_bases *named, const char *name);

void tide_lineage_last_free(struct tide_last_full *last);
int tide_lineage_last_copy(struct tide_last_full **to, const struct tide_last_full *from, struct tide_error *err);

#endif
