/*
 * The transaction engine (its calls are public, tidemark.h): every command is a transaction,
 * of one action or of many.
 *
 *   prepare all ─► stage every changed sidecar ─► commit them ─► run ─► reply ─► jobs ─► clean
 *        │ refused         │ refused
 *        └─────────────────┴─► nothing changed; the error is the reply
 */
#ifndef TIDE_TXN_H
#define TIDE_TXN_H

#include "action.h"

struct tide_session *tide_txn_session(const struct tide_txn *txn);
/* What the reply returns instead of {}: JSON, which is the transaction's from now on. */
void tide_txn_set_answer(struct tide_txn *txn, char *json);

/* args: the action's argument structure, which is copied. */
int tide_txn_append(struct tide_txn *txn, const struct tide_action *action, const void *args, struct tide_error *err);

#endif
