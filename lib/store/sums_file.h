/*
 * A table of checksums (image/sums.h) in a file of its own, for an image that has no place for it: IMAGE.bitmaps.sums.
 * The table counts as long as the image has the size and the time that are stored with it.
 */
#ifndef TIDE_SUMS_FILE_H
#define TIDE_SUMS_FILE_H

#include "base/sysio.h"
#include "image/image.h"

/*
 * *sums NULL: there is none, or it does not count, which *changed says. old: also one that does not count any more. An
 * error of the code TIDE_E_CORRUPT is about the table.
 */
int tide_sums_file_load(struct tide_image *image, bool old, struct tide_sums **sums, bool *changed,
                        struct tide_error *err);
/* Writes the file of the image with this path without its name. No write to the image may follow. */
int tide_sums_file_stage(struct tide_staged *staged, const char *image_path, int image_fd, struct tide_sums *sums,
                         struct tide_error *err);
/* The content of the image is another one now. */
void tide_sums_file_remove(const char *image_path);

#endif
