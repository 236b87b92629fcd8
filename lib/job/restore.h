/*
 * Restoring: the content of a chain as one image that needs no other.
 *
 * The target is a new image, which gets its name once it is complete and durable; or an
 * existing one: a block device, or an image that is restored in place.  An image restored in place
 * is compared first and gets only the differences, so that an unreadable chain is usually
 * noticed before the first write.  Once writing has begun it cannot be undone: an
 * error says that the target is partly written.
 *
 * An existing target must not be part of the chain, and its bitmaps must not miss the writes:
 * see target_bitmaps.h, and target_node.h for those that record them.
 */
#ifndef TIDE_RESTORE_H
#define TIDE_RESTORE_H

#include "base/event.h"
#include "node/node.h"
#include "target.h"

struct tide_restore;

/* The node, which is open, is the top of the chain.  Creates the target, still without its name, or opens it. */
int tide_restore_prepare(struct tide_node *node, const struct tide_chain_restore *args, struct tide_sink *sink,
                         struct tide_restore **restore, struct tide_error *err);
/* Copies.  A new target is then complete but has no name: the commit gives it. */
int tide_restore_run(struct tide_restore *restore, struct tide_error *err);
/* The new target, which the restore owns; NULL: it writes into an existing one. */
struct tide_target *tide_restore_new_target(struct tide_restore *restore);
struct tide_image *tide_restore_target_image(const struct tide_restore *restore);
/* After a rescue: the ranges that could not be read and are zeroes in the target. NULL: it was a plain restore. */
const struct tide_bitmap *tide_restore_lost(const struct tide_restore *restore);
/* The ranges that come from a base that is absent or wrong, or NULL: there are none. */
const struct tide_bitmap *tide_restore_unproven(const struct tide_restore *restore);
/*
 * Reports these ranges as warnings, and fails with TIDE_E_DAMAGED, if there are any, or if nothing proves that the
 * result is the disk that was backed up.
 */
int tide_restore_check_lost(struct tide_restore *restore, const char *target, struct tide_error *err);
void tide_restore_free(struct tide_restore *restore);

#endif
