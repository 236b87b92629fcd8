/*
 * Shared by query_chain.c, query_data.c, which proves the data of a chain by its checksums, and query_record.c, which
 * stores them. No other file includes this.
 */
#ifndef TIDE_QUERY_CHAIN_H
#define TIDE_QUERY_CHAIN_H

#include "session.h"

int tide_query_chain_find(void *to, enum tide_finding_kind kind, uint64_t off, uint64_t len, const char *text,
                          struct tide_error *err);
/* An error becomes a finding: damage, if the file causes it, else unknown. Cancelling and lack of memory are errors. */
int tide_query_chain_find_error(struct tide_chain_image *to, enum tide_finding_kind damage, struct tide_error *cause,
                                struct tide_error *err);

/* chain->images of a complete or broken chain, in its order. */
int tide_query_data(struct tide_image *top, struct tide_chain *chain, struct tide_sink *sink, const char *device,
                    struct tide_error *err);
/*
 * query_record.c: stores the checksums of those images that can have them and have no complete table that counts; the
 * chain is not open. Data that differs from a checksum it had is refused before anything is stored; accept: only if no
 * other program can have changed it.
 */
int tide_query_record(const struct tide_chain *chain, bool accept, unsigned allow, struct tide_sink *sink,
                      struct tide_error *err);

#endif
