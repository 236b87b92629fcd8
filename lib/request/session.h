/*
 * A session: the images that requests may name, and where answers go.
 */
#ifndef TIDE_SESSION_H
#define TIDE_SESSION_H

#include "base/event.h"
#include "base/id.h"
#include "node/node.h"

struct tide_session {
	struct tide_sink sink;
	bool replied;         /* the current request has had its reply */
	unsigned allow;       /* enum tide_allow, for drives that requests add */
	struct tide_id point; /* identifies the present transaction in the backups that it makes */
	size_t n_nodes;
	struct tide_node **nodes;
};

/* If a request died after its commit and is repeated, it must not replace its complete targets by empty increments. */
int tide_session_refuse_completed(const struct tide_session *session, const char *target, struct tide_error *err);
/* NULL when no drive has this id. */
struct tide_node *tide_session_find(struct tide_session *session, const char *id);

void tide_session_remove_drive(struct tide_session *session, struct tide_node *node);

/* A request begins: it has had no reply yet, and none of its lines is lost. */
void tide_session_begin_request(struct tide_session *session);

/* Fails with TIDE_E_UNREPORTED if a line of the request could not be delivered.  For a request that has succeeded. */
int tide_session_check_reported(struct tide_session *session, bool changed, struct tide_error *err);

/* Closes every node that a request left open. */
void tide_session_close_nodes(struct tide_session *session);

#endif
