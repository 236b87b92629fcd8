/*
 * bitmap-import and bitmap-export: merge one bitmap into another of any image and any store, and create it if it does
 * not exist.
 */
#include <string.h>

#include "base/error.h"
#include "txn.h"

/*
 * New bitmaps are described as in block-dirty-bitmap-add.  Both commands have the same arguments: the members of one
 * side are those of the command, the other side is an object.
 */
#define NEW_BITMAP_FIELDS                                                                                 \
	TIDE_FIELD_OPTIONAL(TIDE_QMP_UINT32, "granularity", struct tide_bitmap_transfer, granularity,     \
	                    has_granularity),                                                             \
	        TIDE_FIELD_BOOL("disabled", struct tide_bitmap_transfer, disabled),                       \
	        TIDE_FIELD_ENUM("x-store", false, struct tide_bitmap_transfer, store, tide_action_stores, \
	                        TIDE_STORE_SIDECAR)

static const struct tide_qmp_field source_fields[] = {
	TIDE_FIELD_STRING("node", true, struct tide_bitmap_transfer, source.node),
	TIDE_FIELD_STRING("name", true, struct tide_bitmap_transfer, source.name),
	TIDE_FIELD_END,
};

static const struct tide_qmp_field target_fields[] = {
	TIDE_FIELD_STRING("node", true, struct tide_bitmap_transfer, target.node),
	TIDE_FIELD_STRING("name", true, struct tide_bitmap_transfer, target.name),
	TIDE_FIELD_END,
};

static const struct tide_qmp_field import_fields[] = {
	TIDE_FIELD_STRING("node", true, struct tide_bitmap_transfer, target.node),
	TIDE_FIELD_STRING("name", true, struct tide_bitmap_transfer, target.name),
	NEW_BITMAP_FIELDS,
	TIDE_FIELD_STRUCT("source", true, source_fields),
	TIDE_FIELD_END,
};

static const struct tide_qmp_field export_fields[] = {
	TIDE_FIELD_STRING("node", true, struct tide_bitmap_transfer, source.node),
	TIDE_FIELD_STRING("name", true, struct tide_bitmap_transfer, source.name),
	NEW_BITMAP_FIELDS,
	TIDE_FIELD_STRUCT("sink", true, target_fields),
	TIDE_FIELD_END,
};

static void transfer_declare(struct tide_session *session, const struct tide_step *step)
{
	const struct tide_bitmap_transfer *args = step->args;
	struct tide_node *source = tide_session_find(session, args->source.node);
	struct tide_node *target = tide_session_find(session, args->target.node);
	bool inside = args->store == TIDE_STORE_IMAGE;

	if (source)
		tide_node_want_bitmaps(source, TIDE_NODE_READ, false);
	if (!target)
		return;
	tide_node_want_bitmaps(target, TIDE_NODE_EDIT_BITMAPS, !inside);
	if (inside)
		tide_node_want_in_image(target);
}

static struct tide_node *open_node(struct tide_session *session, const char *id, enum tide_node_mode mode,
                                   bool may_create, struct tide_error *err)
{
	struct tide_node *node = tide_session_find(session, id);

	if (!node) {
		tide_error_set(err, TIDE_E_REFUSED, "Node '%s' not found", id);
		return NULL;
	}
	return tide_node_open_bitmaps(node, mode, may_create, &session->sink, err) < 0 ? NULL : node;
}

/* A copy of the source's bits, which the caller may resize to the target's disk. */
static struct tide_bitmap *read_source(struct tide_session *session, const struct tide_bitmap_ref *ref,
                                       struct tide_error *err)
{
	struct tide_node *node = open_node(session, ref->node, TIDE_NODE_READ, false, err);
	struct tide_sidecar_bitmap *entry = node ? tide_node_find_usable(node, ref->name, 0, err) : NULL;
	struct tide_bitmap *bm = entry ? tide_node_bitmap(node, entry, err) : NULL;

	return bm ? tide_bitmap_copy(bm, err) : NULL;
}

/* ---- the target -------------------------------------------------------------------- */

static int create(struct tide_session *session, const struct tide_bitmap_transfer *args, uint64_t granularity,
                  struct tide_error *err)
{
	struct tide_bitmap_add add = {
		.node = args->target.node,
		.name = args->target.name,
		.has_granularity = true,
		.granularity = args->has_granularity ? args->granularity : granularity,
		.disabled = args->disabled,
		.store = args->store,
	};

	return tide_action_add_bitmap(session, &add, err);
}

static int refuse_settings(const struct tide_bitmap_transfer *args, struct tide_error *err)
{
	const char *setting = args->has_granularity ? "granularity" : args->disabled ? "disabled" : NULL;

	if (!setting)
		return 0;
	tide_error_set(err, TIDE_E_REFUSED, "Bitmap '%s' exists: '%s' is only for a new bitmap", args->target.name,
	               setting);
	return tide_error_hint(err, "leave it out to add to the bitmap, or choose another name");
}

static struct tide_bitmap *open_target(struct tide_session *session, const struct tide_bitmap_transfer *args,
                                       uint64_t granularity, struct tide_node **node, struct tide_error *err)
{
	const char *name = args->target.name;
	struct tide_sidecar_bitmap *entry = NULL, *source;
	struct tide_node *from = tide_session_find(session, args->source.node);

	*node = open_node(session, args->target.node, TIDE_NODE_EDIT_BITMAPS, args->store == TIDE_STORE_SIDECAR, err);
	if (!*node)
		return NULL;
	if ((tide_node_has(*node, name) ? refuse_settings(args, err) : create(session, args, granularity, err)) == 0)
		entry = tide_node_find_usable(*node, name, TIDE_BITMAP_WILL_WRITE, err);
	source = tide_node_find(from, args->source.name, NULL);
	if (entry && source)
		tide_node_take_unchecked(*node, entry, from, source, &session->sink);
	return entry ? tide_node_bitmap_for_change(*node, entry, err) : NULL;
}

/* ---- from one size to another ------------------------------------------------------ */

static int refuse_beyond(const struct tide_bitmap *source, const char *name, const struct tide_node *node,
                         struct tide_error *err)
{
	uint64_t size = tide_image_size(node->image), granularity = tide_bitmap_granularity(source), start, len;
	uint64_t edge = size + (granularity - size % granularity) %
	                               granularity; /* the end of the granule that contains `size` */

	if (edge >= tide_bitmap_size(source) || !tide_bitmap_next_dirty(source, edge, 1, &start, &len))
		return 0;
	tide_error_set(err, TIDE_E_REFUSED,
	               "Bitmap '%s' is dirty at %llu, beyond the end of the disk '%s' of %llu bytes", name,
	               (unsigned long long)start, node->path, (unsigned long long)size);
	return tide_error_hint(err, "the bitmap's own disk has %llu bytes: is it the right one?",
	                       (unsigned long long)tide_bitmap_size(source));
}

/* Nothing is known of the part of the target beyond the source's disk, so it becomes dirty. */
static int set_rest(struct tide_session *session, const struct tide_bitmap_transfer *args, uint64_t known,
                    struct tide_bitmap *target, const struct tide_node *node, struct tide_error *err)
{
	uint64_t size = tide_bitmap_size(target);

	if (known >= size)
		return 0;
	tide_event_warning(&session->sink, node->path,
	                   "bitmap '%s' covers only %llu of %llu bytes; the rest is dirty in bitmap '%s'",
	                   args->source.name, (unsigned long long)known, (unsigned long long)size, args->target.name);
	return tide_bitmap_set(target, known, size - known, err);
}

/* Between the stores of one image a bitmap keeps its base. */
static int pass_base(const struct tide_bitmap_transfer *args, struct tide_node *node, struct tide_error *err)
{
	struct tide_sidecar_bitmap *from, *into;

	if (strcmp(args->source.node, args->target.node) != 0)
		return 0;
	from = tide_node_find(node, args->source.name, err);
	into = tide_node_find(node, args->target.name, err);
	return from && into ? tide_node_base_merge(into, from, err) : -1;
}

static int transfer_prepare(struct tide_session *session, struct tide_step *step, struct tide_error *err)
{
	const struct tide_bitmap_transfer *args = step->args;
	TIDE_AUTOBITMAP struct tide_bitmap *source = read_source(session, &args->source, err);
	struct tide_bitmap *target;
	struct tide_node *node;
	uint64_t known;

	target = source ? open_target(session, args, tide_bitmap_granularity(source), &node, err) : NULL;
	if (!target || refuse_beyond(source, args->source.name, node, err) < 0)
		return -1;
	known = tide_bitmap_size(source);
	if (tide_bitmap_resize(source, tide_bitmap_size(target), err) < 0 || tide_bitmap_merge(target, source, err) < 0)
		return -1;
	return pass_base(args, node, err) < 0 ? -1 : set_rest(session, args, known, target, node, err);
}

/* The target may be new. */
static void transfer_changes(const struct tide_step *step, struct tide_bitmap_change *change)
{
	const struct tide_bitmap_transfer *args = step->args;

	*change = (struct tide_bitmap_change){ .node = args->target.node, .name = args->target.name };
}

const struct tide_action tide_action_bitmap_import = {
	.name = "x-block-dirty-bitmap-import",
	.use = TIDE_ACTION_ANYWHERE,
	.fields = import_fields,
	.args_size = sizeof(struct tide_bitmap_transfer),
	.declare = transfer_declare,
	.changes = transfer_changes,
	.prepare = transfer_prepare,
};

const struct tide_action tide_action_bitmap_export = {
	.name = "x-block-dirty-bitmap-export",
	.use = TIDE_ACTION_ANYWHERE,
	.fields = export_fields,
	.args_size = sizeof(struct tide_bitmap_transfer),
	.declare = transfer_declare,
	.changes = transfer_changes,
	.prepare = transfer_prepare,
};
