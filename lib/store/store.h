/*
 * The sidecar as a file: its path, reading it, and replacing it as a whole.
 *
 * Readers need no lock: they see the old file or the new one.  A writer locks the sidecar
 * (tide_store_lock), reads it, stages the new one and commits it.  The lock is on the file
 * itself; because the file gets replaced, a locker checks that the locked file still has the
 * name.  To lock a sidecar that does not exist yet, a claim is made: a file with a short text
 * that counts as no sidecar.
 */
#ifndef TIDE_STORE_H
#define TIDE_STORE_H

#include "base/sysio.h"
#include "image/image.h"
#include "sidecar.h"

struct tide_store {
	char *path;
	int lock_fd; /* -1 while not locked */
	bool made;   /* this program made the claim: it is removed if nothing is committed */
	struct tide_staged staged;
	uint32_t checksum; /* of the header of the staged sidecar */
};

#define TIDE_STORE_INIT                              \
	{                                            \
		NULL, -1, false, TIDE_STAGED_INIT, 0 \
	}

/*
 * Where the bitmaps of this image (symbolic links resolved) belong; the caller frees it. override NULL: the usual
 * place. *nameless: it fails because the image is a device without a lasting name, which has no usual place.
 */
char *tide_store_path(const char *image_path, const char *override, bool *nameless, struct tide_error *err);

/* The same for a file, or for one that is to be made. */
char *tide_store_default(const char *path, struct tide_error *err);

/* Refuses a sidecar in a place where no new file may be made, or called "-". override: as above. */
int tide_store_check_place(const char *sidecar, const char *override, struct tide_error *err);

/*
 * The name of another file of these bitmaps: the sidecar's name and the suffix. If that is too long for a file, it is
 * .tidemark-HASH and the suffix, in the same directory.
 */
char *tide_store_beside(const char *sidecar, const char *suffix, struct tide_error *err);

/* Does the name belong to the bitmaps of an image: IMAGE.bitmaps, its log, its lock file, the checksums of the
 * image, or one of a transaction? */
bool tide_store_is_reserved(const char *path);

/* *sc NULL: there is no sidecar. */
int tide_store_load(const char *path, struct tide_sidecar **sc, struct tide_error *err);

/* create: make a claim if no sidecar exists.  Without it and without a sidecar nothing is locked, and the call
 * succeeds. */
int tide_store_lock(struct tide_store *store, const char *path, bool create, const atomic_bool *cancel,
                    struct tide_error *err);
/*
 * Makes the bitmaps of the locked sidecar on disk inconsistent, durably.  *any: it has bitmaps.  image_fd: as in stage.
 */
int tide_store_distrust(struct tide_store *store, const char *path, int image_fd, bool *any, struct tide_error *err);
/* Writes the new content, durably, without its name.  Owner and mode become those of image_fd, never wider. */
int tide_store_stage(struct tide_store *store, const struct tide_sidecar *sc, int image_fd, struct tide_error *err);
int tide_store_commit(struct tide_store *store, struct tide_error *err);
/* Unlocks, and drops what was not committed. */
void tide_store_release(struct tide_store *store);

/*
 * Refuses a new sidecar, whose claim is locked, beside an image that the caller may only read, if it cannot be given to
 * the owner of the image, who could neither change the bitmaps nor record in them then.
 */
int tide_store_check_owner(const struct tide_store *store, const char *image_path, int image_fd,
                           struct tide_error *err);

/* Is the file of that name still this sidecar (NULL: no file)?  Without a lock it may have been replaced since. */
int tide_store_is_current(const char *path, const struct tide_sidecar *sc, bool *current, struct tide_error *err);

/* Gives a file beside an image the image's owner, where the caller may do that; its mode stays. */
int tide_store_set_owner_only(int fd, int image_fd, struct tide_error *err);
/* And its mode, never wider, except that its owner can always read and write it. */
int tide_store_set_owner(int fd, int image_fd, struct tide_error *err);

#endif
