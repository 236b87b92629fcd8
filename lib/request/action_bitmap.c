/*
 * The actions on bitmaps: QMP's block-dirty-bitmap-* and Tidemark's own mark and rescan; and abort.
 */
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/json.h"
#include "base/mem.h"
#include "job/rescan.h"
#include "txn.h"

#define NAME_MAX_BYTES 1023

static struct tide_node *open_node(struct tide_session *session, const char *id, bool create, struct tide_error *err)
{
	struct tide_node *node = tide_session_find(session, id);

	if (!node) {
		tide_error_set(err, TIDE_E_REFUSED, "Node '%s' not found", id);
		return NULL;
	}
	return tide_node_open_bitmaps(node, TIDE_NODE_EDIT_BITMAPS, create, &session->sink, err) < 0 ? NULL : node;
}

static void declare(struct tide_session *session, const char *id, enum tide_node_mode mode, bool create)
{
	struct tide_node *node = id ? tide_session_find(session, id) : NULL;

	if (node)
		tide_node_want_bitmaps(node, mode, create);
}

/* ---- add --------------------------------------------------------------------------- */

const char *const tide_action_stores[] = { "sidecar", "image", NULL };

static const struct tide_qmp_field add_fields[] = {
	TIDE_FIELD_STRING("node", true, struct tide_bitmap_add, node),
	TIDE_FIELD_STRING("name", true, struct tide_bitmap_add, name),
	TIDE_FIELD_OPTIONAL(TIDE_QMP_UINT32, "granularity", struct tide_bitmap_add, granularity, has_granularity),
	TIDE_FIELD_CHECKED("persistent", TIDE_QMP_BOOL),
	TIDE_FIELD_BOOL("disabled", struct tide_bitmap_add, disabled),
	TIDE_FIELD_ENUM("x-store", false, struct tide_bitmap_add, store, tide_action_stores, TIDE_STORE_SIDECAR),
	TIDE_FIELD_END,
};

static void add_declare(struct tide_session *session, const struct tide_step *step)
{
	const struct tide_bitmap_add *args = step->args;

	bool inside = args->store == TIDE_STORE_IMAGE;

	if (!*args->name)
		return; /* prepare refuses it without opening the image */
	declare(session, args->node, TIDE_NODE_EDIT_BITMAPS, !inside);
	if (inside && tide_session_find(session, args->node))
		tide_node_want_in_image(tide_session_find(session, args->node));
}

static int check_granularity(uint64_t granularity, struct tide_error *err)
{
	if (granularity > UINT32_MAX)
		return tide_error_set(err, TIDE_E_REFUSED, "Parameter 'granularity' expects uint32_t");
	if (granularity < TIDE_BITMAP_GRANULARITY_MIN || (granularity & (granularity - 1)))
		return tide_error_set(err, TIDE_E_REFUSED, "Granularity must be power of 2 and at least 512");
	return 0;
}

/* In QEMU's order: duplicate, then length; a name that is not UTF-8 could not be a QMP string at all. */
static int check_new_name(struct tide_node *node, const char *name, struct tide_error *err)
{
	if (tide_node_has(node, name))
		return tide_error_set(err, TIDE_E_REFUSED, "Bitmap already exists: %s", name);
	if (strlen(name) > NAME_MAX_BYTES)
		return tide_error_set(err, TIDE_E_REFUSED, "Bitmap name too long: %s", name);
	return 0;
}

int tide_action_add_bitmap(struct tide_session *session, const struct tide_bitmap_add *args, struct tide_error *err)
{
	struct tide_sidecar_bitmap *entry;
	struct tide_node *node = tide_session_find(session, args->node);
	uint64_t granularity = args->granularity;

	if (!*args->name)
		return tide_error_set(err, TIDE_E_REFUSED, "Bitmap name cannot be empty");
	if (!tide_json_is_utf8(args->name))
		return tide_error_set(err, TIDE_E_REFUSED, "A bitmap's name must be valid UTF-8");
	if (!node)
		return tide_error_set(err, TIDE_E_REFUSED, "Cannot find device='%s' nor node-name='%s'", args->node,
		                      args->node);
	if (args->has_granularity && check_granularity(granularity, err) < 0)
		return -1;
	if (tide_node_open_bitmaps(node, TIDE_NODE_EDIT_BITMAPS, args->store == TIDE_STORE_SIDECAR, &session->sink,
	                           err) < 0)
		return -1;
	if (check_new_name(node, args->name, err) < 0)
		return -1;
	if (!args->has_granularity)
		granularity = tide_node_default_granularity(node);
	entry = tide_node_add(node, args->name, granularity, args->store, err);
	if (!entry)
		return -1;
	entry->enabled = !args->disabled;
	return tide_node_base_begin(node, entry, true, err);
}

static int add_prepare(struct tide_session *session, struct tide_step *step, struct tide_error *err)
{
	return tide_action_add_bitmap(session, step->args, err);
}

static void add_changes(const struct tide_step *step, struct tide_bitmap_change *change)
{
	const struct tide_bitmap_add *args = step->args;

	*change = (struct tide_bitmap_change){ .node = args->node, .name = args->name };
}

const struct tide_action tide_action_bitmap_add = {
	.name = "block-dirty-bitmap-add",
	.use = TIDE_ACTION_ANYWHERE,
	.fields = add_fields,
	.args_size = sizeof(struct tide_bitmap_add),
	.declare = add_declare,
	.changes = add_changes,
	.prepare = add_prepare,
};

/* ---- remove, clear, enable, disable ------------------------------------------------ */

static const struct tide_qmp_field edit_fields[] = {
	TIDE_FIELD_STRING("node", true, struct tide_bitmap_edit, node),
	TIDE_FIELD_STRING("name", true, struct tide_bitmap_edit, name),
	TIDE_FIELD_END,
};

/* A bitmap that is removed is gone whatever an interrupted transaction had decided about it. */
static void remove_declare(struct tide_session *session, const struct tide_step *step)
{
	const struct tide_bitmap_ref *args = step->args;
	struct tide_node *node = args->node ? tide_session_find(session, args->node) : NULL;

	if (node)
		tide_node_want_in_doubt(node, TIDE_NODE_EDIT_BITMAPS, false);
}

static void edit_declare(struct tide_session *session, const struct tide_step *step)
{
	const struct tide_bitmap_edit *args = step->args;

	declare(session, args->node, TIDE_NODE_EDIT_BITMAPS, false);
}

static struct tide_sidecar_bitmap *find_edited(struct tide_session *session, const struct tide_step *step,
                                               unsigned flags, struct tide_node **node, struct tide_error *err)
{
	const struct tide_bitmap_edit *args = step->args;

	*node = open_node(session, args->node, false, err);
	return *node ? tide_node_find_usable(*node, args->name, flags | TIDE_BITMAP_WILL_WRITE, err) : NULL;
}

static void edit_changes(const struct tide_step *step, struct tide_bitmap_change *change)
{
	const struct tide_bitmap_edit *args = step->args;

	*change = (struct tide_bitmap_change){ .node = args->node,
		                               .name = args->name,
		                               .removes = step->action == &tide_action_bitmap_remove };
}

static int remove_prepare(struct tide_session *session, struct tide_step *step, struct tide_error *err)
{
	struct tide_node *node;
	struct tide_sidecar_bitmap *entry = find_edited(session, step, TIDE_BITMAP_ALLOW_INCONSISTENT, &node, err);

	if (!entry)
		return -1;
	tide_node_mark_removed(node, entry);
	return 0;
}

const struct tide_action tide_action_bitmap_remove = {
	.name = "block-dirty-bitmap-remove",
	.use = TIDE_ACTION_ANYWHERE,
	.fields = edit_fields,
	.args_size = sizeof(struct tide_bitmap_edit),
	.declare = remove_declare,
	.changes = edit_changes,
	.prepare = remove_prepare,
};

static int clear_prepare(struct tide_session *session, struct tide_step *step, struct tide_error *err)
{
	struct tide_node *node;
	struct tide_sidecar_bitmap *entry = find_edited(session, step, 0, &node, err);

	if (!entry || !tide_node_bitmap_clear(node, entry, err))
		return -1;
	entry->unchecked = false;
	return tide_node_base_begin(node, entry, false, err);
}

const struct tide_action tide_action_bitmap_clear = {
	.name = "block-dirty-bitmap-clear",
	.use = TIDE_ACTION_ANYWHERE,
	.fields = edit_fields,
	.args_size = sizeof(struct tide_bitmap_edit),
	.declare = edit_declare,
	.changes = edit_changes,
	.prepare = clear_prepare,
};

static int set_enabled(struct tide_session *session, struct tide_step *step, bool enabled, struct tide_error *err)
{
	struct tide_node *node;
	struct tide_sidecar_bitmap *entry = find_edited(session, step, 0, &node, err);

	if (!entry)
		return -1;
	tide_node_base_enable(node, entry, enabled);
	entry->enabled = enabled;
	tide_node_mark_changed(node, entry);
	return 0;
}

static int enable_prepare(struct tide_session *session, struct tide_step *step, struct tide_error *err)
{
	return set_enabled(session, step, true, err);
}

static int disable_prepare(struct tide_session *session, struct tide_step *step, struct tide_error *err)
{
	return set_enabled(session, step, false, err);
}

const struct tide_action tide_action_bitmap_enable = {
	.name = "block-dirty-bitmap-enable",
	.use = TIDE_ACTION_ANYWHERE,
	.fields = edit_fields,
	.args_size = sizeof(struct tide_bitmap_edit),
	.declare = edit_declare,
	.changes = edit_changes,
	.prepare = enable_prepare,
};

const struct tide_action tide_action_bitmap_disable = {
	.name = "block-dirty-bitmap-disable",
	.use = TIDE_ACTION_ANYWHERE,
	.fields = edit_fields,
	.args_size = sizeof(struct tide_bitmap_edit),
	.declare = edit_declare,
	.changes = edit_changes,
	.prepare = disable_prepare,
};

/* ---- merge ------------------------------------------------------------------------- */

static const struct tide_qmp_field source_fields[] = {
	TIDE_FIELD_STRING("node", true, struct tide_bitmap_ref, node),
	TIDE_FIELD_STRING("name", true, struct tide_bitmap_ref, name),
	TIDE_FIELD_END,
};

static const struct tide_qmp_field merge_fields[] = {
	TIDE_FIELD_STRING("node", true, struct tide_bitmap_merge, node),
	TIDE_FIELD_STRING("target", true, struct tide_bitmap_merge, target),
	TIDE_FIELD_LIST("bitmaps", struct tide_bitmap_merge, sources, n_sources, source_fields,
	                "BlockDirtyBitmapOrStr"),
	TIDE_FIELD_END,
};

static void merge_declare(struct tide_session *session, const struct tide_step *step)
{
	const struct tide_bitmap_merge *args = step->args;

	declare(session, args->node, TIDE_NODE_EDIT_BITMAPS, false);
	for (size_t i = 0; i < args->n_sources; i++)
		declare(session, args->sources[i].node, TIDE_NODE_READ, false);
}

static int find_source(struct tide_session *session, struct tide_node *target_node, const struct tide_bitmap_ref *ref,
                       struct tide_node **node, struct tide_error *err)
{
	*node = ref->node ? tide_session_find(session, ref->node) : target_node;
	if (!*node)
		return tide_error_set(err, TIDE_E_REFUSED, "Node '%s' not found", ref->node);
	if (tide_node_open_bitmaps(*node, TIDE_NODE_READ, false, &session->sink, err) < 0)
		return -1;
	return tide_node_find(*node, ref->name, err) ? 0 : -1;
}

/* The base is kept only within one node: another knows nothing of the target's backups. */
static int merge_source(struct tide_node *node, struct tide_sidecar_bitmap *target, struct tide_bitmap *into,
                        struct tide_node *from, const char *name, struct tide_sink *sink, struct tide_error *err)
{
	struct tide_sidecar_bitmap *entry = tide_node_find_usable(from, name, 0, err);
	struct tide_bitmap *source = entry ? tide_node_bitmap(from, entry, err) : NULL;

	if (!source || tide_bitmap_merge(into, source, err) < 0)
		return -1;
	tide_node_take_unchecked(node, target, from, entry, sink);
	return from == node ? tide_node_base_merge(target, entry, err) : 0;
}

/* QEMU's order: the target's name; then for each source its name, the target's state, the source's. */
static int merge_prepare(struct tide_session *session, struct tide_step *step, struct tide_error *err)
{
	const struct tide_bitmap_merge *args = step->args;
	struct tide_node *node = open_node(session, args->node, false, err), *other;
	struct tide_sidecar_bitmap *entry = NULL;
	struct tide_bitmap *target = NULL;

	if (!node || !tide_node_find(node, args->target, err))
		return -1;
	for (size_t i = 0; i < args->n_sources; i++) {
		const struct tide_bitmap_ref *ref = &args->sources[i];

		if (find_source(session, node, ref, &other, err) < 0)
			return -1;
		if (!target) {
			entry = tide_node_find_usable(node, args->target, TIDE_BITMAP_WILL_WRITE, err);
			target = entry ? tide_node_bitmap_for_change(node, entry, err) : NULL;
		}
		if (!target || merge_source(node, entry, target, other, ref->name, &session->sink, err) < 0)
			return -1;
	}
	if (target)
		return 0;
	return tide_node_find_usable(node, args->target, TIDE_BITMAP_WILL_WRITE, err) ? 0 : -1;
}

const struct tide_action tide_action_bitmap_merge = {
	.name = "block-dirty-bitmap-merge",
	.use = TIDE_ACTION_ANYWHERE,
	.fields = merge_fields,
	.args_size = sizeof(struct tide_bitmap_merge),
	.declare = merge_declare,
	.prepare = merge_prepare,
};

/* ---- mark -------------------------------------------------------------------------- */

static const struct tide_qmp_field range_fields[] = {
	TIDE_FIELD(TIDE_QMP_UINT, "start", true, struct tide_range, off),
	TIDE_FIELD(TIDE_QMP_UINT, "length", true, struct tide_range, len),
	TIDE_FIELD_END,
};

static const struct tide_qmp_field mark_fields[] = {
	TIDE_FIELD_STRING("node", true, struct tide_bitmap_mark, node),
	TIDE_FIELD_STRING("name", true, struct tide_bitmap_mark, name),
	TIDE_FIELD_BOOL("unset", struct tide_bitmap_mark, unset),
	TIDE_FIELD_BOOL("clamp", struct tide_bitmap_mark, clamp),
	TIDE_FIELD(TIDE_QMP_UINT, "covers", false, struct tide_bitmap_mark, covers),
	TIDE_FIELD_LIST("ranges", struct tide_bitmap_mark, ranges, n_ranges, range_fields, NULL),
	TIDE_FIELD_END,
};

static void mark_declare(struct tide_session *session, const struct tide_step *step)
{
	const struct tide_bitmap_mark *args = step->args;

	declare(session, args->node, TIDE_NODE_EDIT_BITMAPS, false);
}

static int mark_range(struct tide_bitmap *bm, const struct tide_range *r, const struct tide_bitmap_mark *args,
                      size_t *clamped, struct tide_error *err)
{
	uint64_t size = tide_bitmap_size(bm), len = r->len;

	if (r->off > size || len > size - r->off) {
		if (!args->clamp)
			return tide_error_set(
			        err, TIDE_E_REFUSED, "The range %llu+%llu does not lie within the disk of %llu bytes",
			        (unsigned long long)r->off, (unsigned long long)len, (unsigned long long)size);
		++*clamped;
		len = r->off > size ? 0 : size - r->off;
	}
	if (len == 0)
		return 0;
	return args->unset ? tide_bitmap_reset(bm, r->off, len, err) : tide_bitmap_set(bm, r->off, len, err);
}

/*
 * The bitmap is complete again.  The next stamp will vouch for the whole node, so the user is warned of each other
 * bitmap that still lacks writes.
 */
static void trust_again(struct tide_session *session, struct tide_node *node, struct tide_sidecar_bitmap *entry)
{
	entry->unchecked = false;
	if (!entry->untracked)
		return;
	entry->untracked = false;
	for (size_t i = 0; i < node->in_sidecar.list->n; i++) {
		if (node->in_sidecar.list->items[i]->untracked)
			tide_event_warning(&session->sink, node->path, "bitmap '%s' is still inconsistent",
			                   node->in_sidecar.list->items[i]->name);
	}
}

static int mark_prepare(struct tide_session *session, struct tide_step *step, struct tide_error *err)
{
	const struct tide_bitmap_mark *args = step->args;
	struct tide_node *node = open_node(session, args->node, false, err);
	unsigned flags = TIDE_BITMAP_WILL_WRITE;
	struct tide_sidecar_bitmap *entry = node ? tide_node_find(node, args->name, err) : NULL;
	struct tide_bitmap *bm;
	size_t clamped = 0;

	if (!entry)
		return -1;
	/* The writes that a bitmap lost when its program died are unknown, so no list of ranges completes it. */
	if (!entry->in_use)
		flags |= TIDE_BITMAP_ALLOW_INCONSISTENT;
	entry = tide_node_find_usable(node, args->name, flags, err);
	bm = entry ? tide_node_bitmap_for_change(node, entry, err) : NULL;
	if (!bm)
		return -1;
	for (size_t i = 0; i < args->n_ranges; i++) {
		if (mark_range(bm, &args->ranges[i], args, &clamped, err) < 0)
			return -1;
	}
	if (clamped)
		tide_event_warning(&session->sink, node->path,
		                   "%zu of %zu ranges extend beyond the end of the disk at %llu and were cut there",
		                   clamped, args->n_ranges, (unsigned long long)tide_bitmap_size(bm));
	if (args->covers && args->covers < tide_bitmap_size(bm))
		tide_event_warning(
		        &session->sink, node->path,
		        "the list covers only %llu of the disk's %llu bytes; nothing was marked beyond that point",
		        (unsigned long long)args->covers, (unsigned long long)tide_bitmap_size(bm));
	if (args->unset) /* it lacks changes since its base */
		tide_node_base_drop(entry);
	else /* the caller has listed the unrecorded writes */
		trust_again(session, node, entry);
	return 0;
}

/* Dirty ranges only add to an increment. */
static void mark_changes(const struct tide_step *step, struct tide_bitmap_change *change)
{
	const struct tide_bitmap_mark *args = step->args;

	if (args->unset)
		*change = (struct tide_bitmap_change){ .node = args->node, .name = args->name };
}

const struct tide_action tide_action_bitmap_mark = {
	.name = "x-block-dirty-bitmap-mark",
	.fields = mark_fields,
	.args_size = sizeof(struct tide_bitmap_mark),
	.declare = mark_declare,
	.changes = mark_changes,
	.prepare = mark_prepare,
};

/* ---- rescan ------------------------------------------------------------------------ */

static const struct tide_qmp_field rescan_fields[] = {
	TIDE_FIELD_STRING("node", true, struct tide_bitmap_rescan, node),
	TIDE_FIELD_STRING("name", true, struct tide_bitmap_rescan, name),
	TIDE_FIELD_STRING("against", true, struct tide_bitmap_rescan, against),
	TIDE_FIELD_STRING("against-format", false, struct tide_bitmap_rescan, against_format),
	TIDE_FIELD_INTERNAL,
	TIDE_FIELD_RESULT("differing", struct tide_bitmap_rescan, differing),
	TIDE_FIELD_END,
};

static void rescan_declare(struct tide_session *session, const struct tide_step *step)
{
	const struct tide_bitmap_rescan *args = step->args;
	struct tide_node *node = tide_session_find(session, args->node);

	if (node)
		tide_node_want(node, TIDE_NODE_EDIT_BITMAPS, false);
}

static const char *find_busy(const struct tide_sidecar *sc)
{
	for (size_t i = 0; i < sc->n; i++) {
		if (sc->items[i]->token)
			return sc->items[i]->name;
	}
	return NULL;
}

/* The store stays locked during the comparison, longer than a job that settles could wait for the lock. */
static int check_no_jobs(const struct tide_node *node, const char *name, struct tide_error *err)
{
	const char *busy = find_busy(node->in_sidecar.list);

	if (!busy)
		busy = find_busy(node->in_image.list);
	if (!busy)
		return 0;
	tide_error_set(err, TIDE_E_REFUSED, "Bitmap '%s' is currently in use by another operation and cannot be used",
	               busy);
	return tide_error_hint(err, "compare bitmap '%s' again after that operation", name);
}

/*
 * The comparison takes long and needs one node only, so in a transaction that changes others it comes first, before
 * those are locked.  The node is opened apart for it.  It stays open until the transaction ends, without the lock on
 * its sidecar, so that nobody writes to the image meanwhile.
 */
struct early_rescan {
	struct tide_node *node;
	struct tide_bitmap *dirty; /* NULL: not compared yet */
	struct tide_base *base;    /* what it counts from, or NULL */
};

static bool others_change(const struct tide_session *session, const struct tide_node *node)
{
	for (size_t i = 0; i < session->n_nodes; i++) {
		const struct tide_node *other = session->nodes[i];

		if (other != node && other->want.any && other->want.mode != TIDE_NODE_READ)
			return true;
	}
	return false;
}

/* Prepare reports all that is wrong with the node, and completes what an interrupted program left. */
static struct tide_node *open_apart(const struct tide_node *node, struct tide_sink *sink)
{
	struct tide_error ignored = TIDE_ERROR_INIT;
	struct tide_node *apart = tide_node_new_like(node, &ignored);
	void (*warning)(void *data, const char *image, const char *message) = sink->to.warning;
	int rc = -1;

	sink->to.warning = NULL;
	if (apart) {
		apart->want.dry_run = true;
		rc = tide_node_open(apart, TIDE_NODE_EDIT_BITMAPS, false, sink, &ignored);
	}
	sink->to.warning = warning;
	tide_error_release(&ignored);
	if (rc == 0)
		return apart;
	tide_node_free(apart);
	return NULL;
}

/* The granularity that the bitmap will have after the earlier steps; 0: it cannot be rescanned. */
static uint64_t future_granularity(struct tide_node *node, const struct tide_step *steps, size_t i)
{
	const struct tide_bitmap_rescan *args = steps[i].args;
	struct tide_error ignored = TIDE_ERROR_INIT;
	struct tide_sidecar_bitmap *entry;
	uint64_t granularity = 0;

	while (i-- > 0) {
		const struct tide_bitmap_add *add = steps[i].args;

		if (steps[i].action == &tide_action_bitmap_add && !strcmp(add->node, args->node) &&
		    !strcmp(add->name, args->name)) {
			granularity = add->has_granularity ? add->granularity : tide_node_default_granularity(node);
			return check_granularity(granularity, NULL) == 0 ? granularity : 0;
		}
	}
	entry = tide_node_find_usable(node, args->name, TIDE_BITMAP_WILL_WRITE | TIDE_BITMAP_ALLOW_INCONSISTENT,
	                              &ignored);
	if (entry && check_no_jobs(node, args->name, &ignored) == 0)
		granularity = entry->granularity;
	tide_error_release(&ignored);
	return granularity;
}

static int rescan_begin(struct tide_session *session, struct tide_step *steps, size_t i, struct tide_error *err)
{
	const struct tide_bitmap_rescan *args = steps[i].args;
	struct tide_node *node = tide_session_find(session, args->node);
	struct early_rescan *early;
	uint64_t granularity;

	if (!node || !others_change(session, node))
		return 0;
	early = steps[i].state = tide_mem_alloc(1, sizeof(*early), err);
	if (!early)
		return -1;
	early->node = open_apart(node, &session->sink);
	granularity = early->node ? future_granularity(early->node, steps, i) : 0;
	if (granularity == 0)
		return 0;
	if (tide_rescan_run(early->node, args, granularity, &session->sink, &early->dirty, &early->base, err) < 0)
		return -1;
	tide_node_unlock_store(early->node);
	return 0;
}

/* 1: *result is what an early comparison found; 0: there was none, or the bitmap is another one by now. */
static int take_early(struct early_rescan *early, const struct tide_node *node, uint64_t granularity,
                      struct tide_bitmap **result, struct tide_base **base, struct tide_error *err)
{
	if (!early || !early->dirty || tide_bitmap_granularity(early->dirty) != granularity ||
	    tide_bitmap_size(early->dirty) != tide_image_size(node->image))
		return 0;
	if (tide_image_check_unchanged(early->node->image, err) < 0)
		return -1;
	*result = early->dirty;
	*base = early->base;
	early->dirty = NULL;
	early->base = NULL;
	return 1;
}

static int rescan_prepare(struct tide_session *session, struct tide_step *step, struct tide_error *err)
{
	const struct tide_bitmap_rescan *args = step->args;
	struct tide_node *node = open_node(session, args->node, false, err);
	struct tide_sidecar_bitmap *entry;
	struct tide_bitmap *result;
	struct tide_base *base = NULL;
	int rc;

	/* The disk is read, too. */
	if (!node || tide_node_open(node, TIDE_NODE_EDIT_BITMAPS, false, &session->sink, err) < 0)
		return -1;
	entry = tide_node_find_usable(node, args->name, TIDE_BITMAP_WILL_WRITE | TIDE_BITMAP_ALLOW_INCONSISTENT, err);
	if (!entry || check_no_jobs(node, args->name, err) < 0)
		return -1;
	rc = take_early(step->state, node, entry->granularity, &result, &base, err);
	if (rc < 0 ||
	    (rc == 0 && tide_rescan_run(node, args, entry->granularity, &session->sink, &result, &base, err) < 0))
		return -1;
	tide_node_replace_bitmap(node, entry, result);
	trust_again(session, node, entry);
	rc = tide_node_base_set(node, entry, base, err);
	tide_lineage_base_free(base);
	return rc;
}

static struct tide_image *rescan_image(const struct tide_step *step)
{
	const struct early_rescan *early = step->state;

	return early && early->node ? early->node->image : NULL;
}

static void rescan_clean(struct tide_step *step)
{
	struct early_rescan *early = step->state;

	if (!early)
		return;
	tide_bitmap_free(early->dirty);
	tide_lineage_base_free(early->base);
	tide_node_free(early->node);
	free(early);
	step->state = NULL;
}

static void rescan_changes(const struct tide_step *step, struct tide_bitmap_change *change)
{
	const struct tide_bitmap_rescan *args = step->args;

	*change = (struct tide_bitmap_change){ .node = args->node, .name = args->name };
}

const struct tide_action tide_action_bitmap_rescan = {
	.name = "x-block-dirty-bitmap-rescan",
	.use = TIDE_ACTION_ANYWHERE,
	.fields = rescan_fields,
	.args_size = sizeof(struct tide_bitmap_rescan),
	.declare = rescan_declare,
	.changes = rescan_changes,
	.begin = rescan_begin,
	.prepare = rescan_prepare,
	.image = rescan_image,
	.clean = rescan_clean,
};

/* ---- abort ------------------------------------------------------------------------- */

static int abort_prepare(struct tide_session *session, struct tide_step *step, struct tide_error *err)
{
	return tide_error_set(err, TIDE_E_REFUSED, "Transaction aborted using Abort action");
}

const struct tide_action tide_action_abort = {
	.name = "abort",
	.use = TIDE_ACTION_IN_TRANSACTION,
	.fields = tide_qmp_field_none,
	.prepare = abort_prepare,
};
