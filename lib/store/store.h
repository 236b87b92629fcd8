/*
 * The sidecar as a file: where it stands, reading it, and replacing it whole.
 *
 * Readers need no lock: they see the old file or the new one.  Who changes a sidecar locks
 * it first (tide_store_lock), reads it, stages its successor and commits.  The lock is on
 * the file itself; because the file is replaced, a locker makes sure that what it locked is
 * still what stands under the name.  To lock a sidecar that is not there yet a claim
 * is made, a short text that counts as no sidecar.
 */
#ifndef TIDE_STORE_H
#define TIDE_STORE_H

#include "base/sysio.h"
#include "image/image.h"
#include "sidecar.h"

struct tide_store {
	char *path;
	int lock_fd; /* -1 while not locked */
	bool made;   /* the claim is ours: it goes when nothing is committed */
	struct tide_staged staged;
	uint32_t checksum; /* of the header of what is staged */
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

/* *sc NULL: there is no sidecar. */
int tide_store_load(const char *path, struct tide_sidecar **sc, struct tide_error *err);

/* create: make a claim if there is none; else without a sidecar there is nothing to lock, and that is fine. */
int tide_store_lock(struct tide_store *store, const char *path, bool create, struct tide_error *err);
/* The content to come, durable, but not under its name yet.  Owner and mode become those of image_fd, never wider. */
int tide_store_stage(struct tide_store *store, const struct tide_sidecar *sc, int image_fd, struct tide_error *err);
int tide_store_commit(struct tide_store *store, struct tide_error *err);
/* Unlocks, and drops what was not committed. */
void tide_store_release(struct tide_store *store);

/* Is what stands under the name still this sidecar (NULL: nothing)?  Without a lock it may have been replaced since. */
int tide_store_is_current(const char *path, const struct tide_sidecar *sc, bool *current, struct tide_error *err);

/* Gives a file beside an image the image's owner, where the caller may do that; its mode stays. */
int tide_store_set_owner_only(int fd, int image_fd, struct tide_error *err);
/* And its mode, never wider. */
int tide_store_set_owner(int fd, int image_fd, struct tide_error *err);

#endif
