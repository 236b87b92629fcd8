#include "qmp.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "job/backup.h"
#include "base/error.h"
#include "image/image.h"
#include "base/mem.h"
#include "qmp_blockdev.h"
#include "reply.h"

enum { WAIT_MS = 50, CHUNK = 65536 };

/* The arguments of any command. */
struct arguments {
	union {
		struct tide_bitmap_add add;
		struct tide_bitmap_ref ref;
		struct tide_bitmap_merge merge;
		struct tide_bitmap_rescan rescan;
		struct tide_bitmap_transfer transfer;
		struct tide_backup backup;
		struct tide_drive drive;
		struct tide_qmp_blockdev blockdev;
		struct transaction {
			bool grouped;
			size_t n;
			struct action *actions;
		} transaction;
	};
	void *owned; /* an array that the above points to */
	bool is_blockdev;
};

struct verb {
	const char *name;
	bool is_action, is_command;
	const struct tide_qmp_field *fields; /* NULL: blockdev-add, whose arguments are a tree (qmp_blockdev.h) */
	int (*append)(struct tide_txn *txn, const struct arguments *args, struct tide_error *err);
	int (*answer)(struct tide_session *session, const struct arguments *args, struct tide_error *err);
};

struct action {
	const struct verb *verb;
	struct arguments args;
};

struct tide_stream {
	struct tide_session *session;
	int fd;
	struct tide_stream_options options;
	struct tide_qmp_json in;
};

static void release_arguments(struct arguments *args)
{
	if (args->is_blockdev)
		tide_qmp_blockdev_release(&args->blockdev);
	free(args->owned);
}

#define AUTOARGUMENTS TIDE_CLEANUP(release_arguments)

/* ---- fields: in the order of QEMU's schema ----------------------------------------- */

#define NOWHERE    TIDE_QMP_NOWHERE
#define AT(member) offsetof(struct arguments, member)
#define STRING(n, req, member)                                                                        \
	{                                                                                             \
		.name = n, .kind = TIDE_QMP_STRING, .required = req, .to = AT(member), .has = NOWHERE \
	}
#define BOOL(n, member)                                                            \
	{                                                                          \
		.name = n, .kind = TIDE_QMP_BOOL, .to = AT(member), .has = NOWHERE \
	}
#define ENUM(n, req, member, list, least)                                                                           \
	{                                                                                                           \
		.name = n, .kind = TIDE_QMP_ENUM, .required = req, .to = AT(member), .has = NOWHERE, .words = list, \
		.first = least                                                                                      \
	}
#define STRUCT(n, table)                                                                           \
	{                                                                                          \
		.name = n, .kind = TIDE_QMP_STRUCT, .to = NOWHERE, .has = NOWHERE, .fields = table \
	}
#define OTHER(n, req, fn)                                                                                       \
	{                                                                                                       \
		.name = n, .kind = TIDE_QMP_OTHER, .required = req, .to = NOWHERE, .has = NOWHERE, .decode = fn \
	}
#define CHECKED(n, what)                                               \
	{                                                              \
		.name = n, .kind = what, .to = NOWHERE, .has = NOWHERE \
	}
#define END                          \
	{                            \
		.kind = TIDE_QMP_END \
	}

static const char *const stores[] = { "sidecar", "image", NULL };
static const char *const syncs[] = { "full", "top", "incremental", "bitmap", "none", NULL };
static const char *const bitmap_modes[] = { "on-success", "never", "always", NULL };
static const char *const new_image_modes[] = { "absolute-paths", "existing", NULL };
static const char *const on_errors[] = { "report", "ignore", "enospc", "stop", "auto", NULL };
static const char *const completion_modes[] = { "individual", "grouped", NULL };

static const struct tide_qmp_field no_fields[] = { END };

static const struct tide_qmp_field add_fields[] = {
	STRING("node", true, add.node),
	STRING("name", true, add.name),
	{ .name = "granularity", .kind = TIDE_QMP_UINT32, .to = AT(add.granularity), .has = AT(add.has_granularity) },
	CHECKED("persistent", TIDE_QMP_BOOL),
	BOOL("disabled", add.disabled),
	ENUM("x-store", false, add.store, stores, TIDE_STORE_SIDECAR),
	END,
};

static const struct tide_qmp_field ref_fields[] = {
	STRING("node", true, ref.node),
	STRING("name", true, ref.name),
	END,
};

static const struct tide_qmp_field source_fields[] = {
	{ .name = "node",
	  .kind = TIDE_QMP_STRING,
	  .required = true,
	  .to = offsetof(struct tide_bitmap_ref, node),
	  .has = NOWHERE },
	{ .name = "name",
	  .kind = TIDE_QMP_STRING,
	  .required = true,
	  .to = offsetof(struct tide_bitmap_ref, name),
	  .has = NOWHERE },
	END,
};

static int decode_source(const struct tide_qmp_path *path, const struct tide_json *json, struct tide_bitmap_ref *ref,
                         struct tide_error *err)
{
	if (tide_json_get_string(json, &ref->name, NULL))
		return 0;
	if (tide_json_kind(json) == TIDE_JSON_OBJECT)
		return tide_qmp_decode(path, source_fields, json, NULL, ref, err);
	/* QEMU knows no better name than this one. */
	return tide_error_set(err, TIDE_E_REFUSED,
	                      "Invalid parameter type for 'null', expected: BlockDirtyBitmapOrStr");
}

static int decode_sources(const struct tide_qmp_path *path, const struct tide_json *json, void *to,
                          struct tide_error *err)
{
	struct arguments *args = to;
	struct tide_bitmap_ref *refs;
	size_t n = tide_json_count(json);

	if (tide_json_kind(json) != TIDE_JSON_ARRAY)
		return tide_qmp_decode_bad_type(path, "array", err);
	refs = tide_mem_alloc(n + 1, sizeof(*refs), err);
	if (!refs)
		return -1;
	args->owned = refs;
	args->merge.sources = refs;
	args->merge.n_sources = n;
	for (size_t i = 0; i < n; i++) {
		struct tide_qmp_path element = { path, NULL, i };

		if (decode_source(&element, tide_json_at(json, i), &refs[i], err) < 0)
			return -1;
	}
	return 0;
}

static const struct tide_qmp_field merge_fields[] = {
	STRING("node", true, merge.node),
	STRING("target", true, merge.target),
	OTHER("bitmaps", true, decode_sources),
	END,
};

static const struct tide_qmp_field rescan_fields[] = {
	STRING("node", true, rescan.node),
	STRING("name", true, rescan.name),
	STRING("against", true, rescan.against),
	STRING("against-format", false, rescan.against_format),
	END,
};

static const struct tide_qmp_field transfer_source_fields[] = {
	STRING("node", true, transfer.source.node),
	STRING("name", true, transfer.source.name),
	END,
};

static const struct tide_qmp_field transfer_sink_fields[] = {
	STRING("node", true, transfer.target.node),
	STRING("name", true, transfer.target.name),
	END,
};

/* What a new bitmap is to be like, as block-dirty-bitmap-add says it. */
#define NEW_BITMAP_FIELDS                            \
	{ .name = "granularity",                     \
	  .kind = TIDE_QMP_UINT32,                   \
	  .to = AT(transfer.granularity),            \
	  .has = AT(transfer.has_granularity) },     \
	        BOOL("disabled", transfer.disabled), \
	        ENUM("x-store", false, transfer.store, stores, TIDE_STORE_SIDECAR)

static const struct tide_qmp_field import_fields[] = {
	STRING("node", true, transfer.target.node),
	STRING("name", true, transfer.target.name),
	NEW_BITMAP_FIELDS,
	{ .name = "source",
	  .kind = TIDE_QMP_STRUCT,
	  .required = true,
	  .to = NOWHERE,
	  .has = NOWHERE,
	  .fields = transfer_source_fields },
	END,
};

static const struct tide_qmp_field export_fields[] = {
	STRING("node", true, transfer.source.node),
	STRING("name", true, transfer.source.name),
	NEW_BITMAP_FIELDS,
	{ .name = "sink",
	  .kind = TIDE_QMP_STRUCT,
	  .required = true,
	  .to = NOWHERE,
	  .has = NOWHERE,
	  .fields = transfer_sink_fields },
	END,
};

static const struct tide_qmp_field perf_fields[] = {
	CHECKED("use-copy-range", TIDE_QMP_BOOL),
	{ .name = "max-workers",
	  .kind = TIDE_QMP_INT64,
	  .to = AT(backup.max_workers),
	  .has = AT(backup.has_max_workers) },
	{ .name = "max-chunk", .kind = TIDE_QMP_INT64, .to = AT(backup.max_chunk), .has = AT(backup.has_max_chunk) },
	END,
};

static const struct tide_qmp_field backing_fields[] = {
	STRING("path", true, backup.backing),
	STRING("format", false, backup.backing_format),
	END,
};

/* A negative speed is refused by the backup itself, as one that is too large. */
#define BACKUP_FIELDS                                                                                      \
	STRING("job-id", false, backup.job_id), STRING("device", true, backup.device),                     \
	        ENUM("sync", true, backup.sync, syncs, TIDE_SYNC_FULL),                                    \
	        { .name = "speed", .kind = TIDE_QMP_INT64, .to = AT(backup.speed), .has = NOWHERE },       \
	        STRING("bitmap", false, backup.bitmap),                                                    \
	        ENUM("bitmap-mode", false, backup.bitmap_mode, bitmap_modes, TIDE_BITMAP_MODE_ON_SUCCESS), \
	        BOOL("compress", backup.compress),                                                         \
	        ENUM("on-source-error", false, backup.on_source_error, on_errors, TIDE_ON_ERROR_REPORT),   \
	        ENUM("on-target-error", false, backup.on_target_error, on_errors, TIDE_ON_ERROR_REPORT),   \
	        CHECKED("auto-finalize", TIDE_QMP_BOOL), CHECKED("auto-dismiss", TIDE_QMP_BOOL),           \
	        STRING("filter-node-name", false, backup.filter_node_name), STRUCT("x-perf", perf_fields), \
	        STRING("target", true, backup.target)

static const struct tide_qmp_field drive_backup_fields[] = {
	BACKUP_FIELDS,
	STRING("format", false, backup.format),
	ENUM("mode", false, backup.mode, new_image_modes, TIDE_MODE_ABSOLUTE_PATHS),
	STRUCT("x-backing", backing_fields),
	STRING("x-settings", false, backup.settings),
	END,
};

static const struct tide_qmp_field blockdev_backup_fields[] = { BACKUP_FIELDS, END };

static const struct tide_qmp_field blockdev_del_fields[] = { STRING("node-name", true, drive.id), END };

static const struct tide_qmp_field nodes_fields[] = { CHECKED("flat", TIDE_QMP_BOOL), END };

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

static const struct tide_qmp_field capabilities_fields[] = { OTHER("enable", false, decode_enable), END };

/* ---- transaction ------------------------------------------------------------------- */

static const struct verb *find_verb(const char *name, bool action);

static int find_action(const struct tide_qmp_path *up, const struct tide_json *json, const struct verb **verb,
                       struct tide_error *err)
{
	struct tide_qmp_path path = { up, "type", 0 };
	const struct tide_json *type = tide_json_member(json, "type");
	const char *name;

	if (!type)
		return tide_qmp_decode_missing(&path, err);
	if (!tide_json_get_string(type, &name, NULL))
		return tide_qmp_decode_bad_type(&path, "string", err);
	*verb = find_verb(name, true);
	if (*verb)
		return 0;
	if (!strcmp(name, "blockdev-snapshot") || !strcmp(name, "blockdev-snapshot-sync") ||
	    !strcmp(name, "blockdev-snapshot-internal-sync"))
		return tide_error_set(err, TIDE_E_UNSUPPORTED, "Action '%s' needs a running virtual machine", name);
	return tide_error_set(err, TIDE_E_REFUSED, "Parameter 'type' does not accept value '%s'", name);
}

static int decode_data(const struct tide_qmp_path *path, const struct tide_json *json, void *to, struct tide_error *err)
{
	struct action *action = to;

	return tide_qmp_decode(path, action->verb->fields, json, NULL, &action->args, err);
}

static const struct tide_qmp_field action_fields[] = {
	CHECKED("type", TIDE_QMP_STRING),
	OTHER("data", true, decode_data),
	END,
};

static int decode_action(const struct tide_qmp_path *path, const struct tide_json *json, struct action *action,
                         struct tide_error *err)
{
	if (tide_json_kind(json) != TIDE_JSON_OBJECT)
		return tide_qmp_decode_bad_type(path, "object", err);
	if (find_action(path, json, &action->verb, err) < 0)
		return -1;
	return tide_qmp_decode(path, action_fields, json, NULL, action, err);
}

static int decode_actions(const struct tide_qmp_path *path, const struct tide_json *json, void *to,
                          struct tide_error *err)
{
	struct arguments *args = to;
	size_t n = tide_json_count(json);

	if (tide_json_kind(json) != TIDE_JSON_ARRAY)
		return tide_qmp_decode_bad_type(path, "array", err);
	args->transaction.actions = tide_mem_alloc(n + 1, sizeof(*args->transaction.actions), err);
	args->owned = args->transaction.actions;
	if (!args->owned)
		return -1;
	for (size_t i = 0; i < n; i++) {
		struct tide_qmp_path element = { path, NULL, i };

		args->transaction.n = i + 1;
		if (decode_action(&element, tide_json_at(json, i), &args->transaction.actions[i], err) < 0)
			return -1;
	}
	return 0;
}

static int decode_completion(const struct tide_qmp_path *path, const struct tide_json *json, void *to,
                             struct tide_error *err)
{
	int place;

	if (tide_qmp_decode_word(path, completion_modes, json, &place, err) < 0)
		return -1;
	((struct arguments *)to)->transaction.grouped = place == 1;
	return 0;
}

static const struct tide_qmp_field properties_fields[] = { OTHER("completion-mode", false, decode_completion), END };
static const struct tide_qmp_field transaction_fields[] = {
	OTHER("actions", true, decode_actions),
	STRUCT("properties", properties_fields),
	END,
};

static int append_transaction(struct tide_txn *txn, const struct arguments *args, struct tide_error *err)
{
	tide_txn_set_grouped(txn, args->transaction.grouped);
	for (size_t i = 0; i < args->transaction.n; i++) {
		const struct action *action = &args->transaction.actions[i];

		if (action->verb->append(txn, &action->args, err) < 0)
			return -1;
	}
	return 0;
}

/* ---- what each command does -------------------------------------------------------- */

static int append_add(struct tide_txn *txn, const struct arguments *args, struct tide_error *err)
{
	return tide_txn_bitmap_add(txn, &args->add, err);
}

static int append_remove(struct tide_txn *txn, const struct arguments *args, struct tide_error *err)
{
	return tide_txn_bitmap_remove(txn, &args->ref, err);
}

static int append_clear(struct tide_txn *txn, const struct arguments *args, struct tide_error *err)
{
	return tide_txn_bitmap_clear(txn, &args->ref, err);
}

static int append_enable(struct tide_txn *txn, const struct arguments *args, struct tide_error *err)
{
	return tide_txn_bitmap_enable(txn, &args->ref, err);
}

static int append_disable(struct tide_txn *txn, const struct arguments *args, struct tide_error *err)
{
	return tide_txn_bitmap_disable(txn, &args->ref, err);
}

static int append_merge(struct tide_txn *txn, const struct arguments *args, struct tide_error *err)
{
	return tide_txn_bitmap_merge(txn, &args->merge, err);
}

static int append_rescan(struct tide_txn *txn, const struct arguments *args, struct tide_error *err)
{
	return tide_txn_bitmap_rescan(txn, &args->rescan, err);
}

static int append_import(struct tide_txn *txn, const struct arguments *args, struct tide_error *err)
{
	return tide_txn_bitmap_import(txn, &args->transfer, err);
}

static int append_export(struct tide_txn *txn, const struct arguments *args, struct tide_error *err)
{
	return tide_txn_bitmap_export(txn, &args->transfer, err);
}

static int append_drive_backup(struct tide_txn *txn, const struct arguments *args, struct tide_error *err)
{
	return tide_txn_backup(txn, &args->backup, err);
}

static int append_blockdev_backup(struct tide_txn *txn, const struct arguments *args, struct tide_error *err)
{
	return tide_txn_blockdev_backup(txn, &args->backup, err);
}

static int append_abort(struct tide_txn *txn, const struct arguments *args, struct tide_error *err)
{
	return tide_txn_abort(txn, err);
}

static int answer_nothing(struct tide_session *session, const struct arguments *args, struct tide_error *err)
{
	session->replied = true;
	return tide_event_return_empty(&session->sink);
}

static int answer_sha256(struct tide_session *session, const struct arguments *args, struct tide_error *err)
{
	char hex[65];

	if (!tide_session_find(session, args->ref.node))
		return tide_error_set(err, TIDE_E_REFUSED, "Node '%s' not found", args->ref.node);
	if (tide_query_sha256(session, args->ref.node, args->ref.name, hex, err) < 0)
		return -1;
	return tide_reply_sha256(session, hex);
}

/* devices: leaves out what blockdev-add has added. */
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

static int answer_devices(struct tide_session *session, const struct arguments *args, struct tide_error *err)
{
	return answer_blocks(session, true, err, tide_reply_devices);
}

static int answer_nodes(struct tide_session *session, const struct arguments *args, struct tide_error *err)
{
	return answer_blocks(session, false, err, tide_reply_nodes);
}

/* That there is something to open is found out now, as QEMU does; what it is when it is used. */
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

static int answer_blockdev_add(struct tide_session *session, const struct arguments *args, struct tide_error *err)
{
	const struct tide_qmp_blockdev *blockdev = &args->blockdev;
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
	return answer_nothing(session, args, err);
}

static int answer_blockdev_del(struct tide_session *session, const struct arguments *args, struct tide_error *err)
{
	struct tide_node *node = tide_session_find(session, args->drive.id);

	if (!node || !node->is_node)
		return tide_error_set(err, TIDE_E_REFUSED, "Failed to find node with node-name='%s'", args->drive.id);
	tide_session_remove_drive(session, node);
	return answer_nothing(session, args, err);
}

static const struct verb verbs[] = {
	{ "abort", true, false, no_fields, append_abort, NULL },
	{ "block-dirty-bitmap-add", true, true, add_fields, append_add, NULL },
	{ "block-dirty-bitmap-remove", true, true, ref_fields, append_remove, NULL },
	{ "block-dirty-bitmap-clear", true, true, ref_fields, append_clear, NULL },
	{ "block-dirty-bitmap-enable", true, true, ref_fields, append_enable, NULL },
	{ "block-dirty-bitmap-disable", true, true, ref_fields, append_disable, NULL },
	{ "block-dirty-bitmap-merge", true, true, merge_fields, append_merge, NULL },
	{ "x-block-dirty-bitmap-rescan", true, true, rescan_fields, append_rescan, NULL },
	{ "x-block-dirty-bitmap-import", true, true, import_fields, append_import, NULL },
	{ "x-block-dirty-bitmap-export", true, true, export_fields, append_export, NULL },
	{ "drive-backup", true, true, drive_backup_fields, append_drive_backup, NULL },
	{ "blockdev-backup", true, true, blockdev_backup_fields, append_blockdev_backup, NULL },
	{ "transaction", false, true, transaction_fields, append_transaction, NULL },
	{ "x-debug-block-dirty-bitmap-sha256", false, true, ref_fields, NULL, answer_sha256 },
	{ "query-block", false, true, no_fields, NULL, answer_devices },
	{ "query-named-block-nodes", false, true, nodes_fields, NULL, answer_nodes },
	{ "blockdev-add", false, true, NULL, NULL, answer_blockdev_add },
	{ "blockdev-del", false, true, blockdev_del_fields, NULL, answer_blockdev_del },
	{ "qmp_capabilities", false, true, capabilities_fields, NULL, answer_nothing },
};

static const struct verb *find_verb(const char *name, bool action)
{
	for (size_t i = 0; i < TIDE_ARRAY_SIZE(verbs); i++) {
		if (!strcmp(verbs[i].name, name) && (action ? verbs[i].is_action : verbs[i].is_command))
			return &verbs[i];
	}
	return NULL;
}

/* ---- one command ------------------------------------------------------------------- */

/* The command and its arguments, which may be NULL; a bare {"actions": …} is a transaction's. */
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

static int run_actions(struct tide_stream *stream, const struct verb *verb, const struct arguments *args,
                       struct tide_error *err)
{
	struct tide_txn *txn = tide_txn_new(stream->session, err);
	int rc = -1;

	if (!txn)
		return -1;
	tide_txn_set_dry_run(txn, stream->options.dry_run);
	if (verb->append(txn, args, err) == 0)
		rc = tide_txn_run(txn, err);
	tide_txn_free(txn);
	return rc;
}

static int decode_command(const struct tide_json *json, const struct verb **verb, struct arguments *args,
                          struct tide_error *err)
{
	const struct tide_json *given;
	const char *name;

	if (open_envelope(json, &name, &given, err) < 0)
		return -1;
	*verb = find_verb(name, false);
	if (!*verb)
		return tide_error_set(err, TIDE_E_COMMAND_NOT_FOUND, "The command %s has not been found", name);
	if (!(*verb)->fields) {
		args->is_blockdev = true;
		return tide_qmp_blockdev_decode(given, &args->blockdev, err);
	}
	return tide_qmp_decode(NULL, (*verb)->fields, given, given == json ? "id" : NULL, args, err);
}

/* What the stream's options say about the arguments. */
static void apply_options(const struct tide_stream *stream, const struct verb *verb, struct arguments *args)
{
	if (verb->append == append_drive_backup || verb->append == append_blockdev_backup)
		args->backup.retry_after = stream->options.retry_after;
	for (size_t i = 0; verb->append == append_transaction && i < args->transaction.n; i++)
		apply_options(stream, args->transaction.actions[i].verb, &args->transaction.actions[i].args);
}

static void release_inner(struct arguments *args)
{
	for (size_t i = 0; i < args->transaction.n; i++)
		release_arguments(&args->transaction.actions[i].args);
}

static int execute(struct tide_stream *stream, const struct tide_json *json, struct tide_error *err)
{
	AUTOARGUMENTS struct arguments args = { 0 };
	const struct verb *verb = NULL;
	int rc = decode_command(json, &verb, &args, err);

	if (rc == 0)
		apply_options(stream, verb, &args);
	if (rc == 0)
		rc = verb->append ? run_actions(stream, verb, &args, err) : verb->answer(stream->session, &args, err);
	if (verb && verb->append == append_transaction)
		release_inner(&args);
	return rc;
}

/* ---- the stream -------------------------------------------------------------------- */

struct tide_stream *tide_stream_new(struct tide_session *session, int fd, const struct tide_stream_options *options,
                                    struct tide_error *err)
{
	struct tide_stream *stream = tide_mem_alloc(1, sizeof(*stream), err);

	session->allow = options->allow;
	if (stream)
		*stream = (struct tide_stream){ .session = session, .fd = fd, .options = *options };
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

/* A signal may come just before the wait begins, so none is longer than this. */
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

/* The id as JSON, to be freed; *id stays NULL when there is none. */
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

	session->replied = false;
	if (tide_json_kind(json) != TIDE_JSON_OBJECT) {
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

int tide_stream_next(struct tide_stream *stream, struct tide_error *err)
{
	struct tide_error own = TIDE_ERROR_INIT;
	struct tide_json *json = NULL;
	int rc = next_message(stream, &json, &own);

	if (rc > 0 && run_message(stream, json, &own) < 0)
		rc = -1;
	else if (rc < 0 && own.code != TIDE_E_CANCELLED) {
		stream->session->replied = false;
		tide_session_reply_error(stream->session, &own);
	}
	tide_json_free(json);
	return rc < 0 ? tide_error_move(err, &own) : rc;
}
