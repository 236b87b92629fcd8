/*
 * The transaction engine; most of its calls are public (tidemark.h).  Every command is a transaction of one or more
 * actions.
 *
 *   begin all ─► prepare all ─► work ─► commit all ─► run ─► reply ─► jobs ─► clean
 *      │ fails       │ fails     │ fails    │ fails
 *      └─────────────┴───────────┴──────────┴─► the error is the reply; nothing has changed
 *
 * One exception: work writes the data of a restore to an existing target, which is not undone.
 */
#ifndef TIDE_TXN_H
#define TIDE_TXN_H

#include "action.h"

struct tide_session *tide_txn_session(const struct tide_txn *txn);
/* Sets what the reply returns instead of {}: the JSON that was written to the buffer, which is empty afterwards. */
int tide_txn_set_answer(struct tide_txn *txn, struct tide_strbuf *json, struct tide_error *err);

/*
 * For an action that decides: does an earlier action of the transaction change the bitmap?  *exists: does that exist
 * afterwards; unchanged if none does.
 */
bool tide_txn_changes_bitmap(const struct tide_txn *txn, const char *node, const char *name, bool *exists);

/* Appends an action.  args: its argument structure, which is copied. */
int tide_txn_append(struct tide_txn *txn, const struct tide_action *action, const void *args, struct tide_error *err);

#endif
