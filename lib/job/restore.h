/*
 * Restoring: the content of a chain as one image that needs no other.
 *
 * The target is a new image, which gets its name once it is complete and durable; or one that
 * is there: a block device, or an image that is restored in place.  Into those is written
 * what differs only, found by comparing first, so that a chain that cannot be read is
 * noticed before the first write as a rule.  Once writing has begun there is no way back: an
 * error says that the target is partly written.
 *
 * A target that is there must not be part of the chain, and nothing may be told a lie about
 * it: see target_bitmaps.h.
 */
#ifndef TIDE_RESTORE_H
#define TIDE_RESTORE_H

#include "base/event.h"
#include "node/node.h"
#include "target.h"

struct tide_restore;

/* The node is the top of the chain, open.  Makes the target, which has no name yet, or opens it. */
int tide_restore_prepare(struct tide_node *node, const struct tide_chain_restore *args, struct tide_sink *sink,
                         struct tide_restore **restore, struct tide_error *err);
/* Copies.  A new target is complete then and has no name: the commit gives it. */
int tide_restore_run(struct tide_restore *restore, struct tide_error *err);
/* The new target, which stays the restore's; NULL: it writes into one that exists. */
struct tide_target *tide_restore_new_target(struct tide_restore *restore);
void tide_restore_free(struct tide_restore *restore);

#endif
