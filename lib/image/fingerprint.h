/*
 * The fingerprint of an image: what an overlay remembers of the one that it was made on.
 *
 * Of the disk it is a SHA-256 of the disk's size, rounded up to 512 bytes, and of a sample of its bytes as
 * they are read through the whole chain: the first 128 KiB, 128 KiB at 1 MiB (where most first
 * partitions begin), the last 64 KiB, and a 4 KiB block somewhere in each 32nd part.  File
 * systems write to their first blocks whenever they are mounted, so a disk that was in use
 * since has another one; unlike a time or an inode it survives that the files are copied,
 * converted, compressed or flattened.  It costs 35 reads.
 *
 * The same fingerprint is no proof of the same content; another one is proof of another.  So it also knows the file: if
 * that is still the same one, and has not been written to, neither has the disk.  Of a copy the file tells nothing.
 */
#ifndef TIDE_FINGERPRINT_H
#define TIDE_FINGERPRINT_H

#include "image.h"

int tide_fingerprint_take(struct tide_image *image, struct tide_fingerprint *fp, struct tide_error *err);

/* Was the file written to between the two?  Not known of another file: false. */
bool tide_fingerprint_is_written(const struct tide_fingerprint *then, const struct tide_fingerprint *now);

#endif
