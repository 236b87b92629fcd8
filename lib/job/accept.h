/*
 * Accepting a chain of backups that was changed by hand, by qemu-img commit, rebase or convert: birth records say again
 * what each image is.
 *
 * Without the disk that was backed up, only the top image's fingerprint (image/fingerprint.h) can be compared: a
 * different one proves that the chain is wrong, and nothing is accepted. An image below whose disk is not that of its
 * record, or whose file was changed, has become another backup, with a new identifier: other backups that counted from
 * it have lost their base. An image on another backup than its base is accepted only as the top image, with all of its
 * disk compared.
 */
#ifndef TIDE_ACCEPT_H
#define TIDE_ACCEPT_H

#include "base/event.h"
#include "image/image.h"

struct tide_accept;

/*
 * Decides the records of all images of the chain, which is complete and has no damage.  compared: the whole disk of the
 * top image is that of another image which a person has named.  *refusal: why the chain cannot
 * be accepted, to be freed, or NULL; *accept is NULL then.
 */
int tide_accept_plan(struct tide_image *top, bool compared, struct tide_accept **accept, char **refusal,
                     struct tide_error *err);
bool tide_accept_is_due(const struct tide_accept *accept); /* false: all records are as they should be */
/*
 * Writes the records, with the chain closed, from the top down: after each of them, whatever follows, no image seems to
 * belong on another one than before.  *n: how many images got a record.
 */
int tide_accept_apply(const struct tide_accept *accept, unsigned allow, struct tide_sink *sink, size_t *n,
                      struct tide_error *err);
void tide_accept_free(struct tide_accept *accept); /* NULL: nothing */

#endif
