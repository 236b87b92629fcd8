/*
 * What the parts of the image layer share: image.c, which opens and closes, and image_io.c, the
 * checked requests.  Nobody else includes this.
 */
#ifndef TIDE_IMAGE_IMPL_H
#define TIDE_IMAGE_IMPL_H

#include <sys/types.h>

#include "image.h"

struct tide_image {
	char *path;
	int fd; /* is_uri: that of a file that is locked in its place, or -1 */
	bool is_uri;
	bool own_fd;
	char *data_path; /* the external data file, NULL: none */
	int data_fd;     /* or -1 */
	unsigned flags;
	const struct tide_image_driver *driver;
	void *state;
	struct tide_driver_info info;
	struct tide_image *backing;
	bool backing_outside;
	struct tide_error broken; /* why backing is NULL although there should be one */
	dev_t dev;
	ino_t ino;
	struct tide_stamp stamp, data_stamp; /* stamp: of both files */
	bool write_later, records_bitmaps, locks;
	bool write_locked; /* write_later: by lock_write */
	bool renounced;
};

/* May the image be written now? */
int tide_image_check_write(const struct tide_image *image, struct tide_error *err);
int tide_image_check_range(const struct tide_image *image, uint64_t off, uint64_t len, bool write,
                           struct tide_error *err);

#endif
