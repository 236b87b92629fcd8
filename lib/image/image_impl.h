/*
 * Shared by the files of the image layer: image_open.c, which opens images, image.c, the calls on an
 * open one, and image_io.c, the checked requests. No other file includes this.
 */
#ifndef TIDE_IMAGE_IMPL_H
#define TIDE_IMAGE_IMPL_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/types.h>

#include "image.h"

/* How long a writer waits for other users of the image. */
#define TIDE_IMAGE_LOCK_WAIT_MS 10000u

/* image_watch.c */
struct tide_image_watch {
	bool on;
	bool times_are_local; /* our data changes the files' times when it is written, not when it is flushed */
	bool is_known;        /* image->stamp is the one after our last change */
	bool is_unflushed;    /* data was written since the last flush began */
	unsigned running;     /* changes of ours that have begun and not ended */
	atomic_bool others_wrote;
	pthread_mutex_t lock;
};

struct tide_image {
	char *path;
	int fd; /* is_uri: of a file that is locked in the image's place, or -1 */
	bool is_uri;
	const atomic_bool *cancel; /* as in the options */
	bool own_fd;
	char *data_path;             /* the external data file, or NULL */
	int data_fd;                 /* or -1 */
	int claim_fd, data_claim_fd; /* keep a block device that is written for this program; or -1 */
	unsigned flags;
	const struct tide_image_driver *driver;
	void *state;
	struct tide_driver_info info;
	struct tide_image *backing;
	bool backing_outside;
	struct tide_error broken;      /* why the backing image could not be opened (partial, salvage) */
	struct tide_error data_broken; /* the same of the external data file (salvage) */
	uint64_t uncut_size;           /* of the disk, before its file was cut (salvage); 0: it was not */
	dev_t dev;
	ino_t ino;
	struct tide_stamp stamp, data_stamp; /* stamp: of image and data file together */
	struct tide_device device;           /* the same of the block devices among them, without counter */
	bool write_later, records_bitmaps, locks;
	bool write_locked;           /* write_later: lock_write has locked it */
	pthread_mutex_t change_lock; /* for write_locked, and for stamp while that is false */
	struct tide_image *owner;    /* of the file, which this program changes through it; or NULL */
	bool renounced;
	bool probed;               /* the format was derived from the content */
	bool is_top;               /* a person named it, not an image */
	pthread_mutex_t head_lock; /* held while the first or last bytes of a probed raw image are written */
	struct tide_image_watch watch;
	struct tide_salvage *salvage; /* of the top image; NULL: damage is an error */
	/* Checksums, and the files that they are of: of what is written, to be stored; of what is read. */
	struct tide_sums *sums, *proof;
	int sums_fd, proof_fd;
	bool sums_all; /* of everything in the file */
	const atomic_bool *sums_cancel;
};

/* The stamp of all files of the image; *data: of its data file alone. */
int tide_image_take_stamp(const struct tide_image *image, struct tide_stamp *stamp, struct tide_stamp *data,
                          struct tide_error *err);
void tide_image_watch_release(struct tide_image *image);
/* Refuses to write while a bitmap inside the image is enabled into which the caller does not record. */
int tide_image_check_recording(const struct tide_image *image, struct tide_error *err);
/* May the image be written now? */
int tide_image_check_write(const struct tide_image *image, struct tide_error *err);
int tide_image_check_range(const struct tide_image *image, uint64_t off, uint64_t len, bool write,
                           struct tide_error *err);
/* Reads an extent of the image that owns it. */
int tide_image_read_extent(struct tide_image *owner, const struct tide_extent *e, uint8_t *buf, struct tide_error *err);

/* Is the cause that an image is damaged or missing? */
bool tide_image_salvage_may(const struct tide_error *cause);
/*
 * Finds out whether the range at off, a hole in this image of the chain, is lost because the images below cannot be
 * read: 1, and *len is cut to what is; 0: the hole is sound.
 */
int tide_image_salvage_below(const struct tide_image *image, const struct tide_image *link, uint64_t off, uint64_t *len,
                             struct tide_error *err);
/* The same for the range at off past the end of this image. */
int tide_image_salvage_end(const struct tide_image *image, const struct tide_image *link, uint64_t off, uint64_t *len,
                           struct tide_error *err);
/* image_salvage.c; image: the top one. These calls consume cause, and fail with it if it is not damage. */
void tide_image_salvage_free(struct tide_salvage *salvage);
int tide_image_salvage_lose(const struct tide_image *image, uint64_t off, uint64_t len, struct tide_error *cause,
                            struct tide_error *err);
/* The extent that replaces the one at off, which cannot be found out because this image of the chain is damaged. */
int tide_image_salvage_extent(const struct tide_image *image, const struct tide_image *link, uint64_t off, uint64_t len,
                              struct tide_extent *out, struct tide_error *cause, struct tide_error *err);
/* Reads what can be read of an extent that could not be read as a whole. */
int tide_image_salvage_read(struct tide_image *image, struct tide_image *owner, const struct tide_extent *e,
                            uint8_t *buf, struct tide_error *err);

#endif
