/*
 * Sessions: creating and closing them, their drives, and replies of errors.
 *
 * A session belongs to one thread, except that tide_session_cancel and tide_session_resume may be called from any
 * thread and from signal handlers: they only change atomic variables.
 */
#include "session.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/mem.h"
#include "base/sized.h"

struct tide_session *tide_session_new_sized(const struct tide_session_options *options, size_t size,
                                            struct tide_error *err)
{
	struct tide_session_options own;
	struct tide_session *session;

	if (tide_sized_take(&own, sizeof(own), options, size, err) < 0)
		return NULL;
	session = tide_mem_alloc(1, sizeof(*session), err);
	if (session)
		tide_event_init(&session->sink, &own);
	return session;
}

void tide_session_free(struct tide_session *session)
{
	if (!session)
		return;
	for (size_t i = 0; i < session->n_nodes; i++)
		tide_node_free(session->nodes[i]);
	free(session->nodes);
	tide_event_release(&session->sink);
	free(session);
}

void tide_session_cancel(struct tide_session *session)
{
	atomic_store(&session->sink.cancelled, true);
}

void tide_session_resume(struct tide_session *session)
{
	atomic_fetch_add(&session->sink.resumed, 1);
}

int tide_session_reply_error(struct tide_session *session, const struct tide_error *err)
{
	if (session->replied)
		return 0;
	session->replied = true;
	return tide_event_error_reply(&session->sink, err);
}

struct tide_node *tide_session_find(struct tide_session *session, const char *id)
{
	for (size_t i = 0; i < session->n_nodes; i++) {
		if (!strcmp(session->nodes[i]->id, id))
			return session->nodes[i];
	}
	return NULL;
}

static int add_drive(struct tide_session *session, const struct tide_drive *drive, const char **id,
                     struct tide_error *err)
{
	struct tide_node **grown, *node;

	if (!drive->path || !*drive->path)
		return tide_error_set(err, TIDE_E_REFUSED, "Could not open '': No such file or directory");
	if (drive->format && !tide_image_find_driver(drive->format))
		return tide_error_set(err, TIDE_E_REFUSED, "Unknown driver '%s'", drive->format);
	grown = tide_mem_realloc(session->nodes, session->n_nodes + 1, sizeof(*grown), err);
	if (!grown)
		return -1;
	session->nodes = grown;
	node = tide_node_new(drive, err);
	if (!node)
		return -1;
	if (tide_session_find(session, node->id)) {
		tide_error_set(err, TIDE_E_REFUSED, "Duplicate ID '%s' for drive", node->id);
		tide_node_free(node);
		return -1;
	}
	session->nodes[session->n_nodes++] = node;
	if (id)
		*id = node->id;
	return 0;
}

int tide_session_add_drive_sized(struct tide_session *session, const struct tide_drive *drive, size_t size,
                                 const char **id, struct tide_error *err)
{
	struct tide_drive own;

	return tide_sized_take(&own, sizeof(own), drive, size, err) < 0 ? -1 : add_drive(session, &own, id, err);
}

void tide_session_remove_drive(struct tide_session *session, struct tide_node *node)
{
	size_t i = 0;

	while (session->nodes[i] != node)
		i++;
	session->n_nodes--;
	memmove(&session->nodes[i], &session->nodes[i + 1], (session->n_nodes - i) * sizeof(struct tide_node *));
	tide_node_free(node);
}

void tide_session_begin_request(struct tide_session *session)
{
	session->replied = false;
	session->sink.failed = false;
}

int tide_session_check_reported(struct tide_session *session, bool changed, struct tide_error *err)
{
	if (!session->sink.failed)
		return 0;
	tide_error_set(err, TIDE_E_UNREPORTED, "The reply or an event could not be delivered");
	return tide_error_hint(err, changed ? "all was done: do not repeat it" : "nothing was changed: repeat it");
}

void tide_session_close_nodes(struct tide_session *session)
{
	for (size_t i = 0; i < session->n_nodes; i++)
		tide_node_close(session->nodes[i]);
}

int tide_session_refuse_completed(const struct tide_session *session, const char *target, struct tide_error *err)
{
	for (size_t i = 0; i < session->n_nodes; i++) {
		if (!tide_node_has_completed(session->nodes[i], target))
			continue;
		tide_error_set(
		        err, TIDE_E_REFUSED,
		        "A transaction on '%s' was interrupted after its commit; it has been completed now, and this "
		        "request was not run",
		        session->nodes[i]->path);
		return tide_error_hint(
		        err, "if it was this one, do not repeat it: the next backup needs a target of its own");
	}
	return 0;
}
