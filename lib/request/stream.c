/*
 * The stream of QMP commands: reads them as they come, takes each out of its envelope and runs it.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "base/mem.h"
#include "base/sized.h"
#include "qmp_request.h"

enum {
	WAIT_MS = 50,
	CHUNK = 65536,
	UNREADABLE_MAX = 16, /* errors in a row: the input is something else than commands */
};

struct tide_stream {
	struct tide_session *session;
	int fd;
	struct tide_stream_options options;
	struct tide_qmp_json in;
	unsigned unreadable; /* errors of the input since the last command */
};

/* ---- one command ------------------------------------------------------------------- */

/* The command and its arguments, which may be NULL.  A bare {"actions": …} is the arguments of a transaction. */
static int open_envelope(const struct tide_json *json, const char **name, const struct tide_json **arguments,
                         struct tide_error *err)
{
	const struct tide_json *value;
	const void *place = NULL;
	const char *key;

	*name = NULL;
	*arguments = NULL;
	if (tide_json_member(json, "actions") && !tide_json_member(json, "execute")) {
		*name = "transaction";
		*arguments = json;
		return 0;
	}
	while (tide_json_next_member(json, &place, &key, &value)) {
		if (!strcmp(key, "execute")) {
			if (!tide_json_get_string(value, name, NULL))
				return tide_error_set(err, TIDE_E_REFUSED,
				                      "QMP input member 'execute' must be a string");
		} else if (!strcmp(key, "arguments")) {
			if (tide_json_kind(value) != TIDE_JSON_OBJECT)
				return tide_error_set(err, TIDE_E_REFUSED,
				                      "QMP input member 'arguments' must be an object");
			*arguments = value;
		} else if (strcmp(key, "id")) {
			return tide_error_set(err, TIDE_E_REFUSED, "QMP input member '%s' is unexpected", key);
		}
	}
	return *name ? 0 : tide_error_set(err, TIDE_E_REFUSED, "QMP input lacks member 'execute'");
}

/* Other JSON than a command, also one that is refused, counts as unreadable. */
static int decode_command(struct tide_stream *stream, const struct tide_json *json, struct tide_qmp_request *request,
                          struct tide_error *err)
{
	const struct tide_json *arguments;
	const char *name;

	if (open_envelope(json, &name, &arguments, err) < 0) {
		stream->unreadable++;
		return -1;
	}
	stream->unreadable = 0;
	return tide_qmp_request_decode(name, arguments, arguments == json ? "id" : NULL, request, err);
}

/* The options of the stream are arguments of every backup. */
static void apply_options(const struct tide_stream *stream, struct tide_qmp_request *request)
{
	for (size_t i = 0; i < request->n; i++) {
		const struct tide_qmp_call *call = &request->calls[i];
		const struct tide_qmp_field *field = tide_qmp_field_find(call->action->fields, "x-retry-after");

		if (field)
			*(uint32_t *)((char *)call->args + field->to) = stream->options.retry_after;
	}
}

static int run_actions(struct tide_stream *stream, const struct tide_qmp_request *request, struct tide_error *err)
{
	struct tide_txn *txn = tide_txn_new(stream->session, err);
	int rc = -1;

	if (!txn)
		return -1;
	tide_txn_set_dry_run(txn, stream->options.dry_run);
	if (tide_qmp_request_append(request, txn, err) == 0)
		rc = tide_txn_run(txn, err);
	tide_txn_free(txn);
	return rc;
}

static int answer_query(struct tide_session *session, const struct tide_qmp_request *request, struct tide_error *err)
{
	if (tide_qmp_request_answer(request, session, err) < 0 && !session->sink.failed)
		return err->code ? -1 : tide_error_set_nomem(err);
	return err->code ? -1 : tide_session_check_reported(session, false, err);
}

static int execute(struct tide_stream *stream, const struct tide_json *json, struct tide_error *err)
{
	TIDE_AUTOQMPREQUEST struct tide_qmp_request request = { 0 };

	if (decode_command(stream, json, &request, err) < 0)
		return -1;
	if (request.query)
		return answer_query(stream->session, &request, err);
	apply_options(stream, &request);
	return run_actions(stream, &request, err);
}

/* ---- the stream -------------------------------------------------------------------- */

struct tide_stream *tide_stream_new_sized(struct tide_session *session, int fd,
                                          const struct tide_stream_options *options, size_t size,
                                          struct tide_error *err)
{
	struct tide_stream_options own;
	struct tide_stream *stream;

	if (tide_sized_take(&own, sizeof(own), options, size, err) < 0)
		return NULL;
	stream = tide_mem_alloc(1, sizeof(*stream), err);
	session->allow = own.allow;
	if (stream)
		*stream = (struct tide_stream){ .session = session, .fd = fd, .options = own };
	return stream;
}

void tide_stream_free(struct tide_stream *stream)
{
	if (!stream)
		return;
	tide_qmp_json_release(&stream->in);
	free(stream);
}

static int cancelled(struct tide_stream *stream, struct tide_error *err)
{
	if (!tide_event_is_cancelled(&stream->session->sink))
		return 0;
	return tide_error_set(err, TIDE_E_CANCELLED, "Operation canceled");
}

/* A signal may arrive just before poll() begins and would not end it, so each poll is short. */
static int wait_for_input(struct tide_stream *stream, struct tide_error *err)
{
	struct pollfd in = { .fd = stream->fd, .events = POLLIN };

	for (;;) {
		int n = poll(&in, 1, WAIT_MS);

		if (cancelled(stream, err) < 0)
			return -1;
		if (n < 0 && errno != EINTR && errno != EAGAIN) {
			stream->in.ended = true;
			return tide_error_set_sys(err, errno, "Could not wait for commands");
		}
		if (n > 0)
			return 0;
	}
}

static int read_more(struct tide_stream *stream, struct tide_error *err)
{
	char chunk[CHUNK];
	ssize_t n;

	if (wait_for_input(stream, err) < 0)
		return -1;
	n = read(stream->fd, chunk, sizeof(chunk));
	if (n < 0 && (errno == EINTR || errno == EAGAIN))
		return 0;
	if (n < 0) {
		stream->in.ended = true;
		return tide_error_set_sys(err, errno, "Could not read commands");
	}
	tide_strbuf_add(&stream->in.text, chunk, (size_t)n);
	stream->in.ended = n == 0;
	return 0;
}

/* 1: *json is the next message. */
static int next_message(struct tide_stream *stream, struct tide_json **json, struct tide_error *err)
{
	for (;;) {
		int rc;

		if (cancelled(stream, err) < 0)
			return -1;
		rc = tide_qmp_json_next(&stream->in, json, err);
		if (rc || stream->in.ended)
			return rc;
		if (read_more(stream, err) < 0)
			return -1;
	}
}

/* The id as JSON; the caller frees it.  *id stays NULL if the command has none. */
static int copy_id(const struct tide_json *json, char **id, struct tide_error *err)
{
	const struct tide_json *value = tide_json_member(json, "id");
	struct tide_strbuf sb = TIDE_STRBUF_INIT;
	struct tide_json_writer w = { &sb, false };

	if (!value)
		return 0;
	tide_json_copy(&w, NULL, value);
	*id = tide_strbuf_steal(&sb, err);
	return *id ? 0 : -1;
}

static int run_message(struct tide_stream *stream, const struct tide_json *json, struct tide_error *err)
{
	struct tide_session *session = stream->session;
	TIDE_AUTOFREE char *id = NULL;
	int rc;

	tide_session_begin_request(session);
	if (tide_json_kind(json) != TIDE_JSON_OBJECT) {
		stream->unreadable++;
		tide_error_set(err, TIDE_E_REFUSED, "QMP input must be a JSON object");
		tide_session_reply_error(session, err);
		return -1;
	}
	rc = copy_id(json, &id, err);
	session->sink.id = id;
	if (rc == 0)
		rc = execute(stream, json, err);
	if (rc < 0)
		tide_session_reply_error(session, err);
	session->sink.id = NULL;
	return rc;
}

/* An image that is given in place of a file of commands would be refused token by token. */
static int give_up(struct tide_stream *stream, struct tide_error *err)
{
	tide_qmp_json_release(&stream->in);
	stream->in.ended = true;
	return tide_error_hint(err, "after %u errors in a row nothing more is read: is this a file of QMP commands?",
	                       UNREADABLE_MAX);
}

int tide_stream_next(struct tide_stream *stream, struct tide_error *err)
{
	struct tide_error own = TIDE_ERROR_INIT;
	struct tide_json *json = NULL;
	int rc = next_message(stream, &json, &own);

	if (rc > 0 && run_message(stream, json, &own) < 0)
		rc = -1;
	else if (rc < 0 && own.code != TIDE_E_CANCELLED) {
		stream->unreadable++;
		stream->session->replied = false;
		tide_session_reply_error(stream->session, &own);
	}
	if (rc < 0 && stream->unreadable == UNREADABLE_MAX)
		give_up(stream, &own);
	tide_json_free(json);
	return rc < 0 ? tide_error_move(err, &own) : rc;
}
