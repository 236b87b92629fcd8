/*
 * Requests: which command is meant, its arguments, and the answers to queries.
 */
#include "qmp_request.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "base/mem.h"
#include "image/image.h"
#include "job/backup.h"
#include "reply.h"
#include "txn.h"

/* A command that is not an action. */
struct tide_qmp_query {
	const char *name;
	const struct tide_qmp_field *fields; /* NULL: blockdev-add, whose arguments are a tree (qmp_blockdev.h) */
	int (*answer)(struct tide_session *session, const struct tide_qmp_request *request, struct tide_error *err);
};

/* ---- answers ----------------------------------------------------------------------- */

static int answer_nothing(struct tide_session *session, const struct tide_qmp_request *request, struct tide_error *err)
{
	session->replied = true;
	return tide_event_return_empty(&session->sink);
}

static int answer_sha256(struct tide_session *session, const struct tide_qmp_request *request, struct tide_error *err)
{
	char hex[65];

	if (!tide_session_find(session, request->ref.node))
		return tide_error_set(err, TIDE_E_REFUSED, "Node '%s' not found", request->ref.node);
	if (tide_query_sha256(session, request->ref.node, request->ref.name, hex, err) < 0)
		return -1;
	return tide_reply_sha256(session, hex);
}

/* devices: without the nodes that blockdev-add has added. */
static int answer_blocks(struct tide_session *session, bool devices, struct tide_error *err,
                         int (*reply)(struct tide_session *session, const struct tide_reply_node *nodes, size_t n))
{
	size_t n = 0;
	TIDE_AUTOFREE struct tide_reply_node *nodes = tide_mem_alloc(session->n_nodes + 1, sizeof(*nodes), err);
	int rc = nodes ? 0 : -1;

	for (size_t i = 0; rc == 0 && i < session->n_nodes; i++) {
		if (devices && session->nodes[i]->is_node)
			continue;
		nodes[n].id = session->nodes[i]->id;
		rc = tide_query_image(session, nodes[n].id, &nodes[n].info, err);
		n++;
	}
	if (rc == 0)
		rc = reply(session, nodes, n);
	for (size_t i = 0; nodes && i < n; i++)
		tide_image_info_free(nodes[i].info);
	return rc;
}

static int answer_devices(struct tide_session *session, const struct tide_qmp_request *request, struct tide_error *err)
{
	return answer_blocks(session, true, err, tide_reply_devices);
}

static int answer_nodes(struct tide_session *session, const struct tide_qmp_request *request, struct tide_error *err)
{
	return answer_blocks(session, false, err, tide_reply_nodes);
}

/* As in QEMU, the node is opened when it is used; only its existence is checked now. */
static int check_there(struct tide_session *session, const struct tide_qmp_blockdev *blockdev, struct tide_error *err)
{
	struct tide_image_options options = {
		.path = blockdev->path,
		.format = blockdev->format,
		.allow = session->allow,
		.cancel = &session->sink.cancelled,
	};
	TIDE_AUTOIMAGE struct tide_image *image = NULL;

	if (!blockdev->is_export && access(blockdev->path, R_OK) < 0)
		return tide_error_set_sys(err, errno, "Could not open '%s'", blockdev->path);
	if (blockdev->socket && access(blockdev->socket, R_OK | W_OK) < 0)
		return tide_error_set_sys(err, errno, "Failed to connect to '%s'", blockdev->socket);
	return blockdev->is_export ? tide_image_open(&options, &image, err) : 0;
}

static int answer_blockdev_add(struct tide_session *session, const struct tide_qmp_request *request,
                               struct tide_error *err)
{
	const struct tide_qmp_blockdev *blockdev = &request->blockdev;
	struct tide_drive drive = {
		.id = blockdev->node_name,
		.path = blockdev->path,
		.format = blockdev->format,
		.allow = session->allow,
	};
	struct tide_node *other;

	if (!drive.id)
		return tide_error_set(err, TIDE_E_REFUSED, "'node-name' must be specified for the root node");
	if (tide_backup_check_node_name(drive.id, err) < 0)
		return -1;
	other = tide_session_find(session, drive.id);
	if (other && !other->is_node)
		return tide_error_set(err, TIDE_E_REFUSED, "node-name=%s is conflicting with a device id", drive.id);
	if (other)
		return tide_error_set(err, TIDE_E_REFUSED, "Duplicate nodes with node-name='%s'", drive.id);
	if (check_there(session, blockdev, err) < 0 || tide_session_add_drive(session, &drive, NULL, err) < 0)
		return -1;
	tide_session_find(session, drive.id)->is_node = true;
	return answer_nothing(session, request, err);
}

static int answer_blockdev_del(struct tide_session *session, const struct tide_qmp_request *request,
                               struct tide_error *err)
{
	struct tide_node *node = tide_session_find(session, request->node_name);

	if (!node || !node->is_node)
		return tide_error_set(err, TIDE_E_REFUSED, "Failed to find node with node-name='%s'",
		                      request->node_name);
	tide_session_remove_drive(session, node);
	return answer_nothing(session, request, err);
}

/* ---- arguments of queries ---------------------------------------------------------- */

static const struct tide_qmp_field ref_fields[] = {
	TIDE_FIELD_STRING("node", true, struct tide_qmp_request, ref.node),
	TIDE_FIELD_STRING("name", true, struct tide_qmp_request, ref.name),
	TIDE_FIELD_END,
};

static const struct tide_qmp_field node_name_fields[] = {
	TIDE_FIELD_STRING("node-name", true, struct tide_qmp_request, node_name),
	TIDE_FIELD_END,
};

static const struct tide_qmp_field nodes_fields[] = { TIDE_FIELD_CHECKED("flat", TIDE_QMP_BOOL), TIDE_FIELD_END };

static int decode_enable(const struct tide_qmp_path *path, const struct tide_json *json, void *to,
                         struct tide_error *err)
{
	static const char *const capabilities[] = { "oob", NULL };
	int place;

	if (tide_json_kind(json) != TIDE_JSON_ARRAY)
		return tide_qmp_decode_bad_type(path, "array", err);
	for (size_t i = 0; i < tide_json_count(json); i++) {
		struct tide_qmp_path element = { path, NULL, i };

		if (tide_json_kind(tide_json_at(json, i)) != TIDE_JSON_STRING)
			return tide_qmp_decode_bad_type(&element, "string", err);
		element = (struct tide_qmp_path){ NULL, path->name, 0 };
		if (tide_qmp_decode_word(&element, capabilities, tide_json_at(json, i), &place, err) < 0)
			return -1;
		return tide_error_set(err, TIDE_E_REFUSED,
		                      "Capability 'oob' is not available: commands run one after another");
	}
	return 0;
}

static const struct tide_qmp_field capabilities_fields[] = { TIDE_FIELD_OTHER("enable", false, decode_enable),
	                                                     TIDE_FIELD_END };

static const struct tide_qmp_query queries[] = {
	{ "x-debug-block-dirty-bitmap-sha256", ref_fields, answer_sha256 },
	{ "query-block", tide_qmp_field_none, answer_devices },
	{ "query-named-block-nodes", nodes_fields, answer_nodes },
	{ "blockdev-add", NULL, answer_blockdev_add },
	{ "blockdev-del", node_name_fields, answer_blockdev_del },
	{ "qmp_capabilities", capabilities_fields, answer_nothing },
};

static const struct tide_qmp_query *find_query(const char *name)
{
	for (size_t i = 0; i < TIDE_ARRAY_SIZE(queries); i++) {
		if (!strcmp(queries[i].name, name))
			return &queries[i];
	}
	return NULL;
}

/* ---- actions ----------------------------------------------------------------------- */

/* The arguments are not decoded yet. */
static int add_call(struct tide_qmp_request *request, const struct tide_action *action, struct tide_error *err)
{
	struct tide_qmp_call *call = &request->calls[request->n];

	call->args = tide_mem_alloc(1, action->args_size, err);
	if (!call->args)
		return -1;
	call->action = action;
	request->n++;
	return 0;
}

static int find_action(const struct tide_qmp_path *up, const struct tide_json *json, const struct tide_action **action,
                       struct tide_error *err)
{
	struct tide_qmp_path path = { up, "type", 0 };
	const struct tide_json *type = tide_json_member(json, "type");
	const char *name;

	if (!type)
		return tide_qmp_decode_missing(&path, err);
	if (!tide_json_get_string(type, &name, NULL))
		return tide_qmp_decode_bad_type(&path, "string", err);
	*action = tide_action_find(name);
	if (*action && (*action)->use & TIDE_ACTION_IN_TRANSACTION)
		return 0;
	if (!strcmp(name, "blockdev-snapshot") || !strcmp(name, "blockdev-snapshot-sync") ||
	    !strcmp(name, "blockdev-snapshot-internal-sync"))
		return tide_error_set(err, TIDE_E_UNSUPPORTED, "Action '%s' needs a running virtual machine", name);
	return tide_error_set(err, TIDE_E_REFUSED, "Parameter 'type' does not accept value '%s'", name);
}

static int decode_data(const struct tide_qmp_path *path, const struct tide_json *json, void *to, struct tide_error *err)
{
	struct tide_qmp_call *call = to;

	return tide_qmp_decode(path, call->action->fields, json, NULL, call->args, err);
}

static const struct tide_qmp_field call_fields[] = {
	TIDE_FIELD_CHECKED("type", TIDE_QMP_STRING),
	TIDE_FIELD_OTHER("data", true, decode_data),
	TIDE_FIELD_END,
};

static int decode_call(const struct tide_qmp_path *path, const struct tide_json *json, struct tide_qmp_request *request,
                       struct tide_error *err)
{
	const struct tide_action *action = NULL;

	if (tide_json_kind(json) != TIDE_JSON_OBJECT)
		return tide_qmp_decode_bad_type(path, "object", err);
	if (find_action(path, json, &action, err) < 0 || add_call(request, action, err) < 0)
		return -1;
	return tide_qmp_decode(path, call_fields, json, NULL, &request->calls[request->n - 1], err);
}

static int decode_calls(const struct tide_qmp_path *path, const struct tide_json *json, void *to,
                        struct tide_error *err)
{
	struct tide_qmp_request *request = to;
	size_t n = tide_json_count(json);

	if (tide_json_kind(json) != TIDE_JSON_ARRAY)
		return tide_qmp_decode_bad_type(path, "array", err);
	request->calls = tide_mem_alloc(n, sizeof(*request->calls), err);
	if (!request->calls)
		return -1;
	for (size_t i = 0; i < n; i++) {
		struct tide_qmp_path element = { path, NULL, i };

		if (decode_call(&element, tide_json_at(json, i), request, err) < 0)
			return -1;
	}
	return 0;
}

static const char *const completion_modes[] = { "individual", "grouped", NULL };

static const struct tide_qmp_field properties_fields[] = {
	TIDE_FIELD_ENUM("completion-mode", false, struct tide_qmp_request, completion, completion_modes,
	                TIDE_QMP_INDIVIDUAL),
	TIDE_FIELD_END,
};

static const struct tide_qmp_field transaction_fields[] = {
	TIDE_FIELD_OTHER("actions", true, decode_calls),
	TIDE_FIELD_STRUCT("properties", false, properties_fields),
	TIDE_FIELD_END,
};

/* ---- requests ---------------------------------------------------------------------- */

static int decode_query(const struct tide_json *arguments, const char *but, struct tide_qmp_request *request,
                        struct tide_error *err)
{
	if (!request->query->fields)
		return tide_qmp_blockdev_decode(arguments, &request->blockdev, err);
	return tide_qmp_decode(NULL, request->query->fields, arguments, but, request, err);
}

/* A command that is one action. */
static int decode_single(const struct tide_action *action, const struct tide_json *arguments, const char *but,
                         struct tide_qmp_request *request, struct tide_error *err)
{
	request->calls = tide_mem_alloc(1, sizeof(*request->calls), err);
	if (!request->calls || add_call(request, action, err) < 0)
		return -1;
	return tide_qmp_decode(NULL, action->fields, arguments, but, request->calls[0].args, err);
}

int tide_qmp_request_decode(const char *name, const struct tide_json *arguments, const char *but,
                            struct tide_qmp_request *request, struct tide_error *err)
{
	const struct tide_action *action = tide_action_find(name);

	if (action && action->use & TIDE_ACTION_AS_COMMAND)
		return decode_single(action, arguments, but, request, err);
	if (!strcmp(name, "transaction"))
		return tide_qmp_decode(NULL, transaction_fields, arguments, but, request, err);
	request->query = find_query(name);
	if (!request->query)
		return tide_error_set(err, TIDE_E_COMMAND_NOT_FOUND, "The command %s has not been found", name);
	return decode_query(arguments, but, request, err);
}

void tide_qmp_request_release(struct tide_qmp_request *request)
{
	for (size_t i = 0; i < request->n; i++) {
		tide_qmp_decode_release(request->calls[i].action->fields, request->calls[i].args);
		free(request->calls[i].args);
	}
	free(request->calls);
	tide_qmp_blockdev_release(&request->blockdev);
}

int tide_qmp_request_append(const struct tide_qmp_request *request, struct tide_txn *txn, struct tide_error *err)
{
	tide_txn_set_grouped(txn, request->completion == TIDE_QMP_GROUPED);
	for (size_t i = 0; i < request->n; i++) {
		if (tide_txn_append(txn, request->calls[i].action, request->calls[i].args, err) < 0)
			return -1;
	}
	return 0;
}

int tide_qmp_request_answer(const struct tide_qmp_request *request, struct tide_session *session,
                            struct tide_error *err)
{
	return request->query->answer(session, request, err);
}
