/*
 * Restoring: the content of a chain as one new image that needs no other.
 */
#ifndef TIDE_RESTORE_H
#define TIDE_RESTORE_H

#include "event.h"
#include "node.h"

struct tide_restore;

/* The node is the top of the chain, open.  Makes the target, which has no name yet. */
int tide_restore_prepare(struct tide_node *node, const struct tide_chain_restore *args, struct tide_sink *sink,
                         struct tide_restore **restore, struct tide_error *err);
/* Copies; the target gets its name once it is complete and durable. */
int tide_restore_run(struct tide_restore *restore, struct tide_error *err);
void tide_restore_free(struct tide_restore *restore);

#endif
