/*
 * The image formats that this version has, and the schemes of the URIs that they open: the drivers of formats.def.
 *
 * Nothing else lists formats or schemes by hand.  Messages, --help, completion, blockdev-add and the names in images
 * all ask here, so that a line in formats.def is all that a new format needs.
 */
#ifndef TIDE_IMAGE_FORMATS_H
#define TIDE_IMAGE_FORMATS_H

#include "driver.h"

/* NULL for a name that no driver has. */
const struct tide_image_driver *tide_image_find_driver(const char *format);

/* The driver that recognizes the first len bytes of a file; raw, which takes every file, comes last. */
const struct tide_image_driver *tide_image_probe_driver(const uint8_t *head, size_t len);

/* How many first and last bytes of a file decide its format. */
#define TIDE_IMAGE_PROBED 512u

/*
 * The driver for a file with these first and last bytes: len of each, as many as it has, up to TIDE_IMAGE_PROBED.
 * *foreign: the name of a format that no driver is for, or NULL.
 */
const struct tide_image_driver *tide_image_judge(const uint8_t *head, const uint8_t *tail, size_t len,
                                                 const char **foreign);

/* The driver of raw disks, the format of images without any other. */
const struct tide_image_driver *tide_image_raw_driver(void);

/* Whether it is the name of a driver whose images are raw disks; false for NULL. */
bool tide_image_is_raw_format(const char *format);

/*
 * The driver that opens this URI, or what begins like one ("SCHEME:").  NULL: it is a path, or no driver has its
 * scheme.
 */
const struct tide_image_driver *tide_image_uri_driver(const char *name);
bool tide_image_is_uri(const char *name);

/* Refuses "SCHEME://…" by name when no driver has the scheme.  0: it is a path, or a URI that a driver opens. */
int tide_image_check_scheme(const char *name, struct tide_error *err);

/* The names of the formats that can do all of `uses` (enum tide_format_use), as "a, b, c"; the caller frees it. */
char *tide_image_format_list(unsigned uses, struct tide_error *err);

#endif
