/*
 * Requests: what a command of a stream asks for, decoded.
 *
 * A request is the actions of one transaction, or a query: a command that is not an action (query-…, x-debug-…,
 * blockdev-add and -del, qmp_capabilities).  A single action is a transaction of one.
 */
#ifndef TIDE_QMP_REQUEST_H
#define TIDE_QMP_REQUEST_H

#include "action.h"
#include "qmp.h"
#include "qmp_blockdev.h"

struct tide_qmp_call {
	const struct tide_action *action;
	void *args;
};

enum tide_qmp_completion { TIDE_QMP_INDIVIDUAL = 0, TIDE_QMP_GROUPED };

struct tide_qmp_request {
	const struct tide_qmp_query *query; /* NULL: a transaction */
	/* A transaction's. */
	enum tide_qmp_completion completion;
	size_t n;
	struct tide_qmp_call *calls;
	/* A query's arguments. */
	struct tide_bitmap_ref ref;
	const char *node_name;
	struct tide_qmp_blockdev blockdev;
};

#define TIDE_AUTOQMPREQUEST TIDE_CLEANUP(tide_qmp_request_release)

/*
 * Decodes a command into *request, which is all zero.  arguments: an object, or NULL.  but: a member to ignore, or
 * NULL.  The strings of the request belong to the JSON tree.
 */
int tide_qmp_request_decode(const char *name, const struct tide_json *arguments, const char *but,
                            struct tide_qmp_request *request, struct tide_error *err);
void tide_qmp_request_release(struct tide_qmp_request *request);

/* Appends the actions to a transaction. */
int tide_qmp_request_append(const struct tide_qmp_request *request, struct tide_txn *txn, struct tide_error *err);
/* Answers a query. */
int tide_qmp_request_answer(const struct tide_qmp_request *request, struct tide_session *session,
                            struct tide_error *err);

#endif
