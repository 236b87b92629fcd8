/*
 * The declarations that the encoder and the decoder of commit records share.  No other file includes this.
 */
#ifndef TIDE_COMMIT_TEXT_H
#define TIDE_COMMIT_TEXT_H

#include "commit_record.h"

#define TIDE_COMMIT_TEXT_MAGIC "tidemark commit 2\n"
#define TIDE_COMMIT_TEXT_OLD   "tidemark group 1\n"
#define TIDE_COMMIT_TEXT_MAX   (16u << 20)

/* An empty change at the end of the list, which owns it. */
struct tide_commit_change *tide_commit_text_new_change(struct tide_commit_record *record, struct tide_error *err);

#endif
