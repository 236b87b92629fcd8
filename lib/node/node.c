/*
 * A node and its bitmaps by name: creating and closing it, finding, adding, changing and removing bitmaps of either
 * set, and the two steps of its commit.
 *
 * Actions change bitmaps in memory only.  Until tide_node_stage, closing the node is all it takes to undo them.
 */
#include "node_impl.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/mem.h"
#include "bitmap/bitmap_list.h"
#include "node_image.h"
#include "node_log.h"
#include "node_uri.h"

static char *default_id(const char *path, struct tide_error *err)
{
	if (tide_image_is_uri(path))
		return tide_node_uri_id(path, err);

	const char *base = tide_sysio_base_name(path);
	size_t n = strcspn(base, ".");

	return tide_mem_strndup(base, n ? n : strlen(base), err);
}

static char *dup_or_null(const char *s, bool *failed, struct tide_error *err)
{
	char *copy = s ? tide_mem_strdup(s, err) : NULL;

	if (s && !copy)
		*failed = true;
	return copy;
}

struct tide_node *tide_node_new(const struct tide_drive *drive, struct tide_error *err)
{
	struct tide_node *node = tide_mem_alloc(1, sizeof(*node), err);
	/* The disk of a URI is raw, so the user may call it raw.  The sidecar pins only the driver's name for it. */
	const struct tide_image_driver *uri_driver = tide_image_uri_driver(drive->path);
	bool failed = false;

	if (!node)
		return NULL;
	node->store = (struct tide_store)TIDE_STORE_INIT;
	node->in_sidecar.ops = &tide_node_sidecar_ops;
	node->in_image.ops = &tide_node_image_ops;
	node->lock_fd = -1;
	node->path = dup_or_null(drive->path, &failed, err);
	node->format = dup_or_null(
	        uri_driver && tide_image_is_raw_format(drive->format) ? uri_driver->name : drive->format, &failed, err);
	node->sidecar = dup_or_null(drive->sidecar, &failed, err);
	node->id = drive->id ? tide_mem_strdup(drive->id, err) : default_id(drive->path, err);
	node->ignore_stamp = drive->ignore_stamp;
	node->force_share = drive->force_share;
	node->allow = drive->allow;
	if (failed || !node->id) {
		tide_node_free(node);
		return NULL;
	}
	return node;
}

struct tide_node *tide_node_new_like(const struct tide_node *node, struct tide_error *err)
{
	const struct tide_drive drive = {
		.id = node->id,
		.path = node->path,
		.format = node->format,
		.sidecar = node->sidecar,
		.ignore_stamp = node->ignore_stamp,
		.allow = node->allow,
	};

	return tide_node_new(&drive, err);
}

void tide_node_free(struct tide_node *node)
{
	if (!node)
		return;
	tide_node_close(node);
	free(node->id);
	free(node->path);
	free(node->format);
	free(node->sidecar);
	tide_lineage_base_free(node->next_full);
	free(node);
}

void tide_node_close(struct tide_node *node)
{
	if (node->in_image.is_staged)
		tide_node_image_abort(node);
	tide_node_log_release(node);
	tide_node_uri_unmake_lock(node);
	tide_node_drop_sidecar(node);
	tide_node_image_release(node);
	tide_store_release(&node->store);
	tide_image_close(node->image);
	node->image = NULL;
	tide_sysio_close(node->lock_fd);
	node->lock_fd = -1;
	free(node->sidecar_path);
	node->sidecar_path = NULL;
	free(node->unusable);
	node->unusable = NULL;
	tide_sidecar_free(node->group.before);
	tide_sidecar_free(node->group.after);
	node->group.before = node->group.after = NULL;
	tide_node_unpoint(node);
	node->group.token = 0;
	node->image_bitmaps.is_held = node->image_bitmaps.ends_late = false;
	node->group.is_recorded = node->group.is_pending = node->group.is_shown = false;
	node->image_bitmaps.is_due = false;
	tide_strbuf_release(&node->group.completed);
	node->job = NULL;
	node->want = (struct tide_node_want){ 0 };
	node->is_open = false;
}

/* ---- bitmaps by name --------------------------------------------------------------- */

struct tide_bitmap_set *tide_node_set(struct tide_node *node, enum tide_store_kind kind)
{
	return kind == TIDE_STORE_IMAGE ? &node->in_image : &node->in_sidecar;
}

static struct tide_bitmap_set *set_of(struct tide_node *node, const struct tide_sidecar_bitmap *entry)
{
	return tide_node_set(node, entry->in_image ? TIDE_STORE_IMAGE : TIDE_STORE_SIDECAR);
}

static struct tide_sidecar_bitmap *find(const struct tide_node *node, const char *name)
{
	struct tide_sidecar_bitmap *entry = tide_sidecar_lookup(node->in_sidecar.list, name);

	return entry ? entry : tide_sidecar_lookup(node->in_image.list, name);
}

bool tide_node_has(const struct tide_node *node, const char *name)
{
	return find(node, name) != NULL;
}

struct tide_sidecar_bitmap *tide_node_find(struct tide_node *node, const char *name, struct tide_error *err)
{
	struct tide_sidecar_bitmap *entry = find(node, name);

	if (tide_node_log_fold(node, err) < 0)
		return NULL;
	if (entry)
		return entry;
	tide_error_set(err, TIDE_E_REFUSED, "Dirty bitmap '%s' not found", name);
	if (!tide_image_is_file(node->image))
		tide_node_uri_hint(node, err);
	return NULL;
}

const char *tide_node_why_untracked(const struct tide_node *node)
{
	switch (node->in_sidecar.list->device.doubt) {
	case TIDE_DEVICE_OTHER:
		return "is another disk than the one that the bitmaps were kept for";
	case TIDE_DEVICE_ATTACHED:
		return "was detached and attached again, and may have been changed meanwhile";
	case TIDE_DEVICE_NEW:
		return "is another disk than the one that the bitmaps were kept for, or was attached again";
	default:
		return "was changed without being tracked";
	}
}

const char *tide_node_why_unchecked(const struct tide_node *node, const struct tide_sidecar_bitmap *entry)
{
	if (entry->in_image || node->ignore_stamp)
		return NULL;
	if (!tide_image_is_file(node->image))
		return "its server does not report what others write";
	return entry->unchecked ? tide_device_gap_text(node->in_sidecar.list->device.gap) : NULL;
}

void tide_node_warn_unchecked(const struct tide_node *node, const struct tide_sidecar_bitmap *entry,
                              struct tide_sink *sink)
{
	const char *why = tide_node_why_unchecked(node, entry);

	if (why && tide_image_is_file(node->image))
		tide_event_warning(sink, node->path,
		                   "the device is unchecked: %s; a write that was not recorded is not in the backup",
		                   why);
}

void tide_node_take_unchecked(struct tide_node *node, struct tide_sidecar_bitmap *entry, const struct tide_node *from,
                              const struct tide_sidecar_bitmap *source, struct tide_sink *sink)
{
	struct tide_device *device = &node->in_sidecar.list->device;

	if (!source->unchecked)
		return;
	entry->unchecked = true;
	if (device->gap == TIDE_DEVICE_NO_GAP)
		device->gap = from->in_sidecar.list->device.gap;
	if (entry->in_image || !tide_image_device(node->image)->is_one)
		tide_event_warning(sink, node->path,
		                   "bitmap '%s' of '%s' is unchecked (%s), which bitmap '%s' cannot store",
		                   source->name, from->path, tide_device_gap_text(device->gap), entry->name);
}

static int check_inconsistent(struct tide_node *node, struct tide_sidecar_bitmap *entry, unsigned flags,
                              struct tide_error *err)
{
	if (entry->untracked && node->ignore_stamp) {
		entry->untracked = entry->unchecked = false; /* the user vouches for this one */
		node->in_sidecar.is_dirty = true;
	}
	if ((flags & TIDE_BITMAP_ALLOW_INCONSISTENT) || (!entry->untracked && !entry->in_use))
		return 0;
	tide_error_set(err, TIDE_E_REFUSED, "Bitmap '%s' is inconsistent and cannot be used", entry->name);
	if (entry->untracked) {
		/* A device keeps no clean log. */
		bool lost = node->sidecar_path && node->log.state == TIDE_NODE_LOG_ABSENT &&
		            !tide_image_device(node->image)->is_one && !node->in_sidecar.list->device.doubt;
		return tide_error_hint(
		        err,
		        "'%s' %s%s%s%s; mark the written ranges with bitmap-mark, "
		        "compare it with the last backup (bitmap-rescan), or, if its content did not change, "
		        "use --ignore-stamp",
		        node->path, tide_node_why_untracked(node), lost ? ", or was renamed without its log, '" : "",
		        lost ? node->sidecar_path : "", lost ? ".log'" : "");
	}
	return tide_error_hint(
	        err, "a program died while it used the bitmap; bitmap-rescan against the last backup makes it "
	             "usable again");
}

bool tide_node_is_owned_by_server(const struct tide_node *node, const struct tide_sidecar_bitmap *entry)
{
	return entry->in_image && !tide_image_can_store_bitmaps(node->image);
}

struct tide_sidecar_bitmap *tide_node_find_usable(struct tide_node *node, const char *name, unsigned flags,
                                                  struct tide_error *err)
{
	struct tide_sidecar_bitmap *entry = tide_node_find(node, name, err);

	if (!entry)
		return NULL;
	if (entry->token || entry->removed) {
		tide_error_set(err, TIDE_E_REFUSED,
		               "Bitmap '%s' is currently in use by another operation and cannot be used", name);
		return NULL;
	}
	if ((flags & TIDE_BITMAP_WILL_WRITE) && set_of(node, entry)->ops->check_change(node, entry, err) < 0)
		return NULL;
	return check_inconsistent(node, entry, flags, err) < 0 ? NULL : entry;
}

struct tide_bitmap *tide_node_bitmap(struct tide_node *node, struct tide_sidecar_bitmap *entry, struct tide_error *err)
{
	return set_of(node, entry)->ops->load(node, entry, err);
}

void tide_node_mark_changed(struct tide_node *node, const struct tide_sidecar_bitmap *entry)
{
	set_of(node, entry)->is_dirty = true;
	node->has_changes = true;
}

struct tide_bitmap *tide_node_bitmap_for_change(struct tide_node *node, struct tide_sidecar_bitmap *entry,
                                                struct tide_error *err)
{
	struct tide_bitmap *bm = tide_node_bitmap(node, entry, err);

	if (!bm)
		return NULL;
	entry->changed = true;
	tide_node_mark_changed(node, entry);
	return bm;
}

struct tide_bitmap *tide_node_bitmap_clear(struct tide_node *node, struct tide_sidecar_bitmap *entry,
                                           struct tide_error *err)
{
	struct tide_bitmap *bm = set_of(node, entry)->ops->clear(node, entry, err);

	if (!bm)
		return NULL;
	entry->changed = true;
	tide_node_mark_changed(node, entry);
	return bm;
}

void tide_node_replace_bitmap(struct tide_node *node, struct tide_sidecar_bitmap *entry, struct tide_bitmap *bm)
{
	tide_bitmap_free(entry->bitmap);
	free(entry->encoded);
	entry->bitmap = bm;
	entry->encoded = NULL;
	entry->encoded_len = 0;
	entry->in_use = entry->unchecked = false;
	entry->changed = true;
	tide_node_mark_changed(node, entry);
}

struct tide_sidecar_bitmap *tide_node_add(struct tide_node *node, const char *name, uint64_t granularity,
                                          enum tide_store_kind store, struct tide_error *err)
{
	struct tide_bitmap_set *set = tide_node_set(node, store);
	struct tide_sidecar_bitmap *entry;

	if (set->ops->check_add(node, err) < 0)
		return NULL;
	entry = tide_sidecar_bitmap_new(name, tide_image_size(node->image), granularity, err);
	if (!entry)
		return NULL;
	entry->in_image = entry->changed = store == TIDE_STORE_IMAGE;
	if (tide_sidecar_insert(set->list, 0, entry, err) < 0) {
		tide_sidecar_bitmap_free(entry);
		return NULL;
	}
	tide_node_mark_changed(node, entry);
	return entry;
}

uint64_t tide_node_default_granularity(const struct tide_node *node)
{
	uint64_t cluster = tide_image_info(node->image)->cluster_size;

	return cluster ? TIDE_MIN(TIDE_MAX(cluster, 4096), 65536) : 65536;
}

void tide_node_mark_removed(struct tide_node *node, struct tide_sidecar_bitmap *entry)
{
	entry->removed = true;
	tide_node_mark_changed(node, entry);
}

/* ---- committing -------------------------------------------------------------------- */

void tide_node_drop_removed(struct tide_node *node)
{
	tide_sidecar_drop_removed(node->in_sidecar.list);
	tide_sidecar_drop_removed(node->in_image.list);
}

/* Does this set have changes to commit now? */
static bool is_due(const struct tide_node *node, const struct tide_bitmap_set *set)
{
	return node->mode != TIDE_NODE_READ && set->is_dirty &&
	       !(set == &node->in_image && node->image_bitmaps.is_deferred);
}

/* The image comes first: staging it replaces the sidecar on disk by itself with a writer token. */
int tide_node_stage(struct tide_node *node, struct tide_error *err)
{
	bool image = is_due(node, &node->in_image), sidecar;

	if (image && tide_node_base_collect(node, err) < 0)
		return -1;
	sidecar = is_due(node, &node->in_sidecar);
	if (sidecar && tide_node_log_fold(node, err) < 0)
		return -1;
	if (image || sidecar)
		tide_node_drop_removed(node);
	if (image && node->in_image.ops->stage(node, err) < 0)
		return -1;
	return sidecar ? node->in_sidecar.ops->stage(node, err) : 0;
}

int tide_node_commit(struct tide_node *node, struct tide_error *err)
{
	int rc = is_due(node, &node->in_sidecar) ? node->in_sidecar.ops->commit(node, err) : 0;

	/* A sidecar that has its name, and is not known to be durable, keeps nothing back but the log. */
	if (rc < 0 && !node->store.staged.named)
		return -1;
	if (node->in_image.is_staged && node->in_image.ops->commit(node, rc < 0 ? NULL : err) < 0)
		return -1;
	/* The log stays while bitmaps inside the image lack its bits on disk. */
	if (rc == 0 && node->mode != TIDE_NODE_READ && node->log.state == TIDE_NODE_LOG_TAKEN &&
	    !node->in_sidecar.is_dirty && !node->in_image.is_dirty)
		tide_node_log_remove(node);
	return rc;
}

bool tide_node_has_completed(const struct tide_node *node, const char *path)
{
	const char *p = node->group.completed.buf, *end = p ? p + node->group.completed.len : p;

	for (; p < end; p += strlen(p) + 1) {
		if (!strcmp(p, path))
			return true;
	}
	return false;
}

/* ---- listing ----------------------------------------------------------------------- */

static int list_base(const struct tide_base *base, struct tide_bitmap_info *item, struct tide_error *err)
{
	char id[TIDE_ID_TEXT];

	if (!base)
		return 0;
	tide_id_format(&base->id, id);
	item->base_id = tide_mem_strdup(id, err);
	item->base_path = tide_mem_strdup(base->path, err);
	item->base_time = base->time;
	return item->base_id && item->base_path ? 0 : -1;
}

static int list_entry(struct tide_node *node, struct tide_sidecar_bitmap *entry, struct tide_bitmap_list *list,
                      struct tide_error *err)
{
	struct tide_bitmap_info *item = tide_bitmap_list_add(list, entry->name, err);
	bool was_loaded = entry->bitmap != NULL;

	if (!item || list_base(entry->base, item, err) < 0)
		return -1;
	if (entry->in_image && !entry->in_use && !tide_node_bitmap(node, entry, err))
		return -1;
	item->granularity = entry->granularity;
	item->count = tide_sidecar_bitmap_count(entry) * entry->granularity;
	item->busy = entry->token != 0;
	item->inconsistent = (entry->untracked && !node->ignore_stamp) || entry->in_use;
	item->recording = (entry->enabled || (entry->successor && entry->successor->enabled)) && !item->inconsistent;
	item->persistent = true;
	item->store = entry->in_image ? TIDE_STORE_IMAGE : TIDE_STORE_SIDECAR;
	/* A list needs no contents, and all of them together could fill the memory. */
	if (entry->in_image && !was_loaded && node->mode == TIDE_NODE_READ) {
		tide_bitmap_free(entry->bitmap);
		entry->bitmap = NULL;
	}
	return 0;
}

static int list_set(struct tide_node *node, const struct tide_bitmap_set *set, struct tide_bitmap_list *list,
                    struct tide_error *err)
{
	for (size_t i = 0; i < set->list->n; i++) {
		if (list_entry(node, set->list->items[i], list, err) < 0)
			return -1;
	}
	return 0;
}

int tide_node_list(struct tide_node *node, struct tide_bitmap_list **out, struct tide_error *err)
{
	struct tide_bitmap_list *list;

	if (tide_node_log_fold(node, err) < 0)
		return -1;
	list = tide_bitmap_list_new(node->in_sidecar.list->n + node->in_image.list->n, err);
	if (!list)
		return -1;
	if (list_set(node, &node->in_sidecar, list, err) < 0 || list_set(node, &node->in_image, list, err) < 0) {
		tide_bitmap_list_free(list);
		return -1;
	}
	*out = list;
	return 0;
}
