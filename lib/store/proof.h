/*
 * Proof that backups whose files have other times are as they were made: all of their checksums are compared.
 *
 * A copy that does not keep the time of its file looks like one into which QEMU has committed. Only its bytes tell.
 */
#ifndef TIDE_PROOF_H
#define TIDE_PROOF_H

#include "base/event.h"
#include "image/image.h"

/*
 * Reads each image of the chain that is in such a doubt and has checksums of all that it held at its birth; the record
 * of one that has them all still counts as intact from then on. Other images are not read, and damage is not an
 * error. -1: cancelled, or no memory.
 */
int tide_proof_of_copies(struct tide_image *top, struct tide_sink *sink, struct tide_error *err);

#endif
