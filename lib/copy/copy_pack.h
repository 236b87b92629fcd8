/*
 * One worker's compressed piece of a copy.
 *
 * The worker first takes its piece apart, beside the others: what is zero, what is
 * compressed, what does not compress.  Then, when the pieces before it are stored, it
 * stores all that, in the order of the disk: so the file is the same whoever was faster.
 *
 * Memory: a buffer of the piece's size for what is compressed; plain data stays in the
 * caller's until it is stored.
 */
#ifndef TIDE_COPY_PACK_H
#define TIDE_COPY_PACK_H

#include "image/image.h"

struct tide_copy_pack;

/* For pieces of at most `piece` bytes, whole clusters, one after the other. */
struct tide_copy_pack *tide_copy_pack_new(struct tide_image *target, uint64_t piece, struct tide_error *err);
void tide_copy_pack_free(struct tide_copy_pack *pack);

/* A new piece; the old one's parts are forgotten.  The parts then come without gaps. */
void tide_copy_pack_begin(struct tide_copy_pack *pack, uint64_t off);
void tide_copy_pack_add_zeroes(struct tide_copy_pack *pack, uint64_t len);
/* buf is filled up with zeroes to whole clusters, and needed until the piece is stored. */
int tide_copy_pack_add_data(struct tide_copy_pack *pack, uint8_t *buf, uint64_t len, struct tide_error *err);
/* reads_zero: zeroes need not be stored.  After a failure, again from the start or not at all. */
int tide_copy_pack_store(struct tide_copy_pack *pack, bool reads_zero, struct tide_error *err);

#endif
