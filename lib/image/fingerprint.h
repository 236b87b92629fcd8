/*
 * The fingerprint of an image: what an overlay remembers of the image it was made on.
 *
 * The disk's part is a SHA-256 of the disk's size, rounded up to 512 bytes, and of a sample of its bytes as
 * read through the whole chain: the first 128 KiB, 128 KiB at 1 MiB (where most first partitions begin),
 * the last 64 KiB, and a 4 KiB block somewhere in each 32nd part. File systems write to their first blocks
 * whenever they are mounted, so a disk that was in use since then has a different fingerprint. Unlike a
 * time or an inode it survives when the files are copied, converted, compressed or flattened. It costs 35
 * reads.
 *
 * Different fingerprints prove different content; equal ones do not prove equal content. Therefore the
 * fingerprint also identifies the file: if the file is the same and nothing wrote to it, the disk is the
 * same. For a copy, the file's part proves nothing.
 */
#ifndef TIDE_FINGERPRINT_H
#define TIDE_FINGERPRINT_H

#include "birth.h"
#include "image.h"

int tide_fingerprint_take(struct tide_image *image, struct tide_fingerprint *fp, struct tide_error *err);

/*
 * Stores the fingerprint of its backing image in an image that is open for writing and has none of it, because another
 * program made or rebased it. A stored one stays, so that a change since then is noticed. Nothing happens if the format
 * has no place for it, if the header has no room, or if the backing image cannot be read.
 */
int tide_fingerprint_remember(struct tide_image *image, struct tide_error *err);

/* The first bytes of the disk's part, as a birth record has them (birth.h). */
void tide_fingerprint_shorten(const struct tide_fingerprint *fp, uint8_t out[TIDE_BIRTH_FINGERPRINT_BYTES]);
int tide_fingerprint_take_short(struct tide_image *image, uint8_t out[TIDE_BIRTH_FINGERPRINT_BYTES],
                                struct tide_error *err);

/* Was the file written to between the two? False also when they are of different files, where this is unknown. */
bool tide_fingerprint_is_written(const struct tide_fingerprint *then, const struct tide_fingerprint *now);

#endif
