#include "node.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "error.h"
#include "lock.h"
#include "mem.h"
#include "record.h"

static char *default_id(const char *path, struct tide_error *err)
{
	const char *slash = strrchr(path, '/');
	const char *base = slash ? slash + 1 : path;
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
	bool failed = false;

	if (!node)
		return NULL;
	node->store = (struct tide_store)TIDE_STORE_INIT;
	node->path = dup_or_null(drive->path, &failed, err);
	node->format = dup_or_null(drive->format, &failed, err);
	node->sidecar = dup_or_null(drive->sidecar, &failed, err);
	node->id = drive->id ? tide_mem_strdup(drive->id, err) : default_id(drive->path, err);
	node->ignore_stamp = drive->ignore_stamp;
	node->force_share = drive->force_share;
	if (failed || !node->id) {
		tide_node_free(node);
		return NULL;
	}
	return node;
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
	free(node);
}

static void drop_sidecar(struct tide_node *node)
{
	free(node->removed);
	node->removed = NULL;
	node->n_removed = 0;
	tide_sidecar_free(node->sc);
	node->sc = NULL;
	node->dirty = node->untracked = node->has_sidecar = false;
}

void tide_node_close(struct tide_node *node)
{
	drop_sidecar(node);
	tide_store_release(&node->store);
	tide_image_close(node->image);
	node->image = NULL;
	free(node->sidecar_path);
	node->sidecar_path = NULL;
	tide_sidecar_free(node->base);
	tide_sidecar_free(node->after);
	node->base = node->after = NULL;
	tide_node_unpoint(node);
	node->token = 0;
	node->completed = false;
	node->job = NULL;
	node->is_open = node->wanted = node->want_create = false;
}

/* ---- opening ----------------------------------------------------------------------- */

static int load_sidecar(struct tide_node *node, struct tide_error *err)
{
	if (tide_store_load(node->sidecar_path, &node->sc, err) < 0)
		return -1;
	node->has_sidecar = node->sc != NULL;
	if (!node->sc)
		node->sc = tide_sidecar_new(err);
	return node->sc ? 0 : -1;
}

static int open_image(struct tide_node *node, struct tide_error *err)
{
	struct tide_image_options options = {
		.path = node->path,
		.format = node->format,
		.write = node->mode == TIDE_NODE_WRITE,
		.force_share = node->force_share && node->mode == TIDE_NODE_LOOK,
	};

	if (node->has_sidecar) {
		if (node->format && strcmp(node->format, node->sc->format)) {
			tide_error_set(err, TIDE_E_REFUSED, "The format of '%s' is pinned as '%s', not '%s'", node->path,
			               node->sc->format, node->format);
			return tide_error_hint(err, "it was pinned in '%s' when the first bitmap was added",
			                       node->sidecar_path);
		}
		options.format = node->sc->format;
	}
	if (tide_image_open(&options, &node->image, err) < 0)
		return -1;
	if (!node->has_sidecar) {
		strncpy(node->sc->format, tide_image_format(node->image), TIDE_SIDECAR_FORMAT_MAX);
		node->sc->disk_size = tide_image_size(node->image);
	}
	return 0;
}

/* The job that owned this bitmap died: what its successor recorded goes back. */
static int roll_back(struct tide_node *node, struct tide_sidecar_bitmap *entry, struct tide_sink *sink,
                     struct tide_error *err)
{
	if (tide_sidecar_bitmap_thaw(node->sc, entry, err) < 0)
		return -1;
	node->dirty = true;
	if (sink)
		tide_event_warning(sink, node->path, "the job that used bitmap '%s' died; the bitmap is as after a failed job",
		                   entry->name);
	return 0;
}

/* 1: a group had decided before it died, and the sidecar is another one now. */
static int recover_jobs(struct tide_node *node, struct tide_sink *sink, struct tide_error *err)
{
	for (size_t i = 0; i < node->sc->n; i++) {
		struct tide_sidecar_bitmap *entry = node->sc->items[i];
		int held;

		if (!entry->token)
			continue;
		held = tide_lock_token_is_held(tide_image_fd(node->image), entry->token, err);
		if (held < 0)
			return -1;
		if (!held && entry->group) {
			int forward = tide_record_roll_forward(entry->group, err);

			if (forward)
				return forward;
		}
		if (!held && roll_back(node, entry, sink, err) < 0)
			return -1;
	}
	return 0;
}

static int check_stamp(struct tide_node *node, struct tide_sink *sink, struct tide_error *err)
{
	int held;

	if (!node->has_sidecar)
		return 0;
	if (node->sc->writer) {
		held = tide_lock_token_is_held(tide_image_fd(node->image), node->sc->writer, err);
		if (held < 0)
			return -1;
		if (!held) {
			node->sc->writer = 0;
			node->dirty = true;
			tide_event_warning(sink, node->path, "a tracked write died; what it may have written is dirty");
		}
		return 0;
	}
	node->untracked = !tide_stamp_is_equal(tide_image_stamp(node->image), &node->sc->stamp);
	if (!node->untracked)
		return 0;
	for (size_t i = 0; i < node->sc->n; i++)
		node->sc->items[i]->untracked = true;
	return 0;
}

/* The bitmaps follow the disk; what the disk gained is dirty, for nobody tracked how. */
static int follow_size(struct tide_node *node, struct tide_error *err)
{
	uint64_t was = node->sc->disk_size, size = tide_image_size(node->image);

	if (was == size)
		return 0;
	for (size_t i = 0; i < node->sc->n; i++) {
		struct tide_sidecar_bitmap *half[2] = { node->sc->items[i], node->sc->items[i]->successor };

		for (int k = 0; k < 2 && half[k]; k++) {
			struct tide_bitmap *bm = tide_sidecar_bitmap_load(node->sc, half[k], err);

			if (!bm || tide_bitmap_resize(bm, size, err) < 0)
				return -1;
			if (size > was && tide_bitmap_set(bm, was, size - was, err) < 0)
				return -1;
		}
	}
	node->sc->disk_size = size;
	node->dirty = node->has_sidecar;
	return 0;
}

/* What a group that died left beside an image whose sidecar could not tell.  1: it had succeeded, and is finished now. */
static int recover_pointer(struct tide_node *node, struct tide_sink *sink, struct tide_error *err)
{
	TIDE_AUTOFREE char *pointer = tide_mem_printf(err, "%s.group", node->sidecar_path);
	TIDE_AUTOFREE char *record = NULL;
	uint64_t token;
	int rc = pointer ? tide_record_read_pointer(pointer, &token, &record, err) : -1;

	if (rc <= 0)
		return rc;
	rc = tide_lock_token_is_held(tide_image_fd(node->image), token, err);
	if (rc)
		return rc < 0 ? -1 : 0; /* it is at work */
	rc = tide_record_roll_forward(record, err);
	if (rc >= 0)
		unlink(pointer);
	return rc;
}

static void say_completed(struct tide_node *node, struct tide_sink *sink)
{
	node->completed = true;
	tide_event_warning(sink, node->path,
	                   "a grouped transaction died after it had succeeded; what was left of it is done now");
}

static int read_node(struct tide_node *node, bool create, struct tide_sink *sink, struct tide_error *err)
{
	int rc;

	do {
		if (node->mode != TIDE_NODE_LOOK && node->store.lock_fd < 0 &&
		    tide_store_lock(&node->store, node->sidecar_path, create, err) < 0)
			return -1;
		drop_sidecar(node);
		if (load_sidecar(node, err) < 0 || (!node->image && open_image(node, err) < 0))
			return -1;
		rc = recover_pointer(node, sink, err);
		if (rc == 0)
			rc = recover_jobs(node, sink, err);
		if (rc > 0) {
			say_completed(node, sink);
			tide_store_release(&node->store);
		}
	} while (rc > 0);
	if (rc < 0 || check_stamp(node, sink, err) < 0)
		return -1;
	return follow_size(node, err);
}

static int open_parts(struct tide_node *node, bool create, struct tide_sink *sink, struct tide_error *err)
{
	TIDE_AUTOFREE char *real = realpath(node->path, NULL);

	if (!real)
		return tide_error_set_sys(err, errno, "Could not open '%s'", node->path);
	node->sidecar_path = tide_store_path(real, node->sidecar, err);
	if (!node->sidecar_path)
		return -1;
	return read_node(node, create, sink, err);
}

void tide_node_want(struct tide_node *node, enum tide_node_mode mode, bool create)
{
	node->want = node->wanted ? TIDE_MAX(node->want, mode) : mode;
	node->want_create |= create;
	node->wanted = true;
}

int tide_node_open(struct tide_node *node, enum tide_node_mode mode, bool create, struct tide_sink *sink,
                   struct tide_error *err)
{
	if (node->is_open && node->mode >= mode && (node->has_sidecar || !create || node->store.lock_fd >= 0))
		return 0;
	if (node->is_open)
		return tide_error_set(err, TIDE_E_REFUSED, "'%s' is already in use by this transaction in another way",
		                      node->path);
	tide_node_want(node, mode, create);
	node->mode = node->want;
	if (open_parts(node, node->want_create, sink, err) < 0) {
		tide_node_close(node);
		return -1;
	}
	node->is_open = true;
	return 0;
}

void tide_node_unlock_store(struct tide_node *node)
{
	tide_store_release(&node->store);
}

int tide_node_relock_store(struct tide_node *node, struct tide_sink *sink, struct tide_error *err)
{
	drop_sidecar(node);
	if (tide_store_lock(&node->store, node->sidecar_path, false, err) < 0 || load_sidecar(node, err) < 0)
		return -1;
	if (!node->has_sidecar)
		return tide_error_set(err, TIDE_E_CORRUPT, "The sidecar '%s' has vanished", node->sidecar_path);
	return 0;
}

/* ---- bitmaps by name --------------------------------------------------------------- */

int tide_node_find(struct tide_node *node, const char *name, struct tide_node_found *found, struct tide_error *err)
{
	const struct tide_driver_info *info = tide_image_info(node->image);
	long i = tide_sidecar_find(node->sc, name);

	*found = (struct tide_node_found){ 0 };
	if (i >= 0) {
		found->entry = node->sc->items[i];
		return 0;
	}
	for (size_t k = 0; k < info->n_bitmaps; k++) {
		if (!strcmp(info->bitmaps[k].name, name)) {
			found->index = k;
			found->inside = &info->bitmaps[k];
			return 0;
		}
	}
	return tide_error_set(err, TIDE_E_REFUSED, "Dirty bitmap '%s' not found", name);
}

static bool is_removed(const struct tide_node *node, const struct tide_sidecar_bitmap *entry)
{
	for (size_t i = 0; i < node->n_removed; i++) {
		if (node->removed[i] == entry)
			return true;
	}
	return false;
}

static int check_inconsistent(struct tide_node *node, const char *name, struct tide_node_found *found, unsigned flags,
                              struct tide_error *err)
{
	if (found->entry && found->entry->untracked && node->ignore_stamp) {
		found->entry->untracked = false; /* the user vouches for this one */
		node->dirty = true;
	}
	if (flags & TIDE_BITMAP_ALLOW_INCONSISTENT)
		return 0;
	if (found->entry ? !found->entry->untracked : !found->inside->in_use)
		return 0;
	tide_error_set(err, TIDE_E_REFUSED, "Bitmap '%s' is inconsistent and cannot be used", name);
	if (found->entry)
		return tide_error_hint(err, "'%s' was changed without being tracked; say what was written with "
		                            "bitmap-mark, or, if its content did not change, use --ignore-stamp",
		                       node->path);
	return tide_error_hint(err, "a program died while it used the bitmap; remove it and begin a new chain");
}

int tide_node_find_usable(struct tide_node *node, const char *name, unsigned flags, struct tide_node_found *found,
                          struct tide_error *err)
{
	if (tide_node_find(node, name, found, err) < 0)
		return -1;
	if (found->entry && (found->entry->token || is_removed(node, found->entry)))
		return tide_error_set(err, TIDE_E_REFUSED,
		                      "Bitmap '%s' is currently in use by another operation and cannot be used", name);
	if (!found->entry && (flags & TIDE_BITMAP_WILL_WRITE)) {
		tide_error_set(err, TIDE_E_REFUSED, "Bitmap '%s' is readonly and cannot be modified", name);
		return tide_error_hint(err, "it is kept inside the image, where this version only reads bitmaps");
	}
	return check_inconsistent(node, name, found, flags, err);
}

struct tide_bitmap *tide_node_bitmap(struct tide_node *node, const struct tide_node_found *found, bool *own,
                                     struct tide_error *err)
{
	struct tide_bitmap *bm = NULL;

	*own = !found->entry;
	if (found->entry)
		return tide_sidecar_bitmap_load(node->sc, found->entry, err);
	return tide_image_read_bitmap(node->image, found->index, &bm, err) < 0 ? NULL : bm;
}

uint64_t tide_node_default_granularity(const struct tide_node *node)
{
	uint64_t cluster = tide_image_info(node->image)->cluster_size;

	return cluster ? TIDE_MIN(TIDE_MAX(cluster, 4096), 65536) : 65536;
}

int tide_node_mark_removed(struct tide_node *node, struct tide_sidecar_bitmap *entry, struct tide_error *err)
{
	struct tide_sidecar_bitmap **grown =
		tide_mem_realloc(node->removed, node->n_removed + 1, sizeof(*grown), err);

	if (!grown)
		return -1;
	node->removed = grown;
	node->removed[node->n_removed++] = entry;
	node->dirty = true;
	return 0;
}

int tide_node_record(struct tide_node *node, uint64_t off, uint64_t len, struct tide_error *err)
{
	for (size_t i = 0; i < node->sc->n; i++) {
		struct tide_sidecar_bitmap *entry = node->sc->items[i];
		struct tide_bitmap *bm;

		if (entry->successor)
			entry = entry->successor;
		if (!entry->enabled)
			continue;
		bm = tide_sidecar_bitmap_load(node->sc, entry, err);
		if (!bm || tide_bitmap_set(bm, off, len, err) < 0)
			return -1;
		node->dirty = true;
	}
	return 0;
}

/* ---- committing -------------------------------------------------------------------- */

static void drop_removed(struct tide_node *node)
{
	for (size_t k = node->sc->n; k-- > 0;) {
		if (is_removed(node, node->sc->items[k]))
			tide_sidecar_bitmap_free(tide_sidecar_take(node->sc, k));
	}
	node->n_removed = 0;
}

int tide_node_stage(struct tide_node *node, struct tide_error *err)
{
	if (!node->dirty || node->mode == TIDE_NODE_LOOK)
		return 0;
	drop_removed(node);
	/* The stamp of the moment the image was locked, not of now: what came in between came around the tracking. */
	node->sc->stamp = *tide_image_stamp(node->image);
	node->sc->generation++;
	return tide_store_stage(&node->store, node->sc, tide_image_fd(node->image), err);
}

int tide_node_commit(struct tide_node *node, struct tide_error *err)
{
	if (!node->dirty || node->mode == TIDE_NODE_LOOK)
		return 0;
	if (tide_store_commit(&node->store, err) < 0)
		return -1;
	node->dirty = false;
	node->has_sidecar = true;
	return 0;
}

/* ---- waiting for a group ------------------------------------------------------------ */

int tide_node_defer(struct tide_node *node, struct tide_error *err)
{
	node->base = tide_sidecar_copy(node->sc, err);
	return node->base ? 0 : -1;
}

static int make_busy(struct tide_node *node, struct tide_sidecar_bitmap *entry, uint64_t token, bool records,
                     const char *group, struct tide_error *err)
{
	struct tide_sidecar_bitmap *successor =
		tide_sidecar_bitmap_new(NULL, node->base->disk_size, entry->granularity, err);

	if (!successor)
		return -1;
	successor->enabled = records;
	entry->successor = successor;
	entry->token = token;
	entry->group = tide_mem_strdup(group, err);
	return entry->group ? 0 : -1;
}

int tide_node_begin_deferred(struct tide_node *node, const char *group, struct tide_error *err)
{
	if (!node->dirty || node->mode == TIDE_NODE_LOOK)
		return 0;
	if (tide_lock_token_new(&node->token, err) < 0 ||
	    tide_lock_token_hold(tide_image_fd(node->image), node->token, err) < 0)
		return -1;
	for (size_t i = 0; i < node->base->n; i++) {
		struct tide_sidecar_bitmap *entry = node->base->items[i];
		long k = tide_sidecar_find(node->sc, entry->name);
		uint64_t token = k >= 0 && node->sc->items[k]->token ? node->sc->items[k]->token : node->token;

		if (!entry->token && make_busy(node, entry, token, entry->enabled, group, err) < 0)
			return -1;
	}
	drop_removed(node);
	node->after = node->sc;
	node->sc = node->base;
	node->base = NULL;
	if (!node->has_sidecar) /* nothing was there before */
		node->dirty = false;
	return 0;
}

int tide_node_load_deferred(struct tide_node *node, struct tide_sink *sink, struct tide_error *err)
{
	uint64_t generation = node->sc->generation;
	bool had = node->has_sidecar;

	drop_sidecar(node);
	if (tide_store_lock(&node->store, node->sidecar_path, true, err) < 0 || load_sidecar(node, err) < 0)
		return -1;
	if (node->has_sidecar != had || (had && node->sc->generation != generation))
		return tide_error_set(err, TIDE_E_REFUSED,
		                      "The bitmaps of '%s' were changed by another program while the group ran", node->path);
	tide_sidecar_free(node->sc);
	node->sc = node->after;
	node->after = NULL;
	node->sc->generation = generation;
	node->dirty = true;
	return 0;
}

/* What was made busy, and belongs to no job, is as it was. */
void tide_node_drop_deferred(struct tide_node *node, struct tide_sink *sink)
{
	struct tide_error err = TIDE_ERROR_INIT;

	tide_node_unlock_store(node);
	if (node->has_sidecar && node->token) {
		tide_lock_token_drop(tide_image_fd(node->image), node->token);
		drop_sidecar(node);
		if (tide_store_lock(&node->store, node->sidecar_path, false, &err) == 0 && load_sidecar(node, &err) == 0) {
			for (size_t i = 0; i < node->sc->n; i++) {
				if (node->sc->items[i]->token == node->token)
					roll_back(node, node->sc->items[i], NULL, &err);
			}
			if (tide_node_stage(node, &err) == 0)
				tide_node_commit(node, &err);
		}
		tide_node_unlock_store(node);
	}
	if (err.code)
		tide_event_warning(sink, node->path, "%s; the next command on the image will do it", err.msg);
	tide_error_release(&err);
}

int tide_node_point(struct tide_node *node, const char *record, struct tide_error *err)
{
	if (node->pointer)
		return 0;
	if (!node->token && (tide_lock_token_new(&node->token, err) < 0 ||
	                     tide_lock_token_hold(tide_image_fd(node->image), node->token, err) < 0))
		return -1;
	node->pointer = tide_mem_printf(err, "%s.group", node->sidecar_path);
	if (!node->pointer)
		return -1;
	return tide_record_point(node->pointer, node->token, record, err);
}

void tide_node_leave_pointer(struct tide_node *node)
{
	free(node->pointer);
	node->pointer = NULL;
}

void tide_node_unpoint(struct tide_node *node)
{
	if (node->pointer)
		unlink(node->pointer);
	free(node->pointer);
	node->pointer = NULL;
}

/* ---- listing ----------------------------------------------------------------------- */

static int list_entry(const struct tide_node *node, const struct tide_sidecar_bitmap *entry,
                      struct tide_bitmap_info *out, struct tide_error *err)
{
	out->name = tide_mem_strdup(entry->name, err);
	if (!out->name)
		return -1;
	out->granularity = entry->granularity;
	out->count = tide_sidecar_bitmap_count(entry) * entry->granularity;
	out->busy = entry->token != 0;
	out->inconsistent = entry->untracked && !node->ignore_stamp;
	out->recording = (entry->enabled || (entry->successor && entry->successor->enabled)) && !out->inconsistent;
	out->persistent = true;
	out->store = TIDE_STORE_SIDECAR;
	return 0;
}

static int list_inside(struct tide_node *node, size_t index, struct tide_bitmap_info *out, struct tide_error *err)
{
	const struct tide_driver_bitmap *inside = &tide_image_info(node->image)->bitmaps[index];

	out->name = tide_mem_strdup(inside->name, err);
	if (!out->name)
		return -1;
	out->granularity = inside->granularity;
	out->inconsistent = inside->in_use;
	out->recording = inside->enabled && !inside->in_use;
	out->persistent = true;
	out->store = TIDE_STORE_IMAGE;
	if (!inside->in_use) {
		TIDE_AUTOBITMAP struct tide_bitmap *bm = NULL;

		if (tide_image_read_bitmap(node->image, index, &bm, err) < 0)
			return -1;
		out->count = tide_bitmap_count(bm) * inside->granularity;
	}
	return 0;
}

int tide_node_list(struct tide_node *node, struct tide_bitmap_list **out, struct tide_error *err)
{
	size_t n_inside = tide_image_info(node->image)->n_bitmaps;
	struct tide_bitmap_list *list = tide_mem_alloc(1, sizeof(*list), err);

	if (!list)
		return -1;
	list->items = tide_mem_alloc(node->sc->n + n_inside + 1, sizeof(*list->items), err);
	if (!list->items)
		goto fail;
	for (size_t i = 0; i < node->sc->n; i++) {
		if (list_entry(node, node->sc->items[i], &list->items[list->n++], err) < 0)
			goto fail;
	}
	for (size_t i = n_inside; i-- > 0;) { /* the directory holds the oldest of a session last */
		if (list_inside(node, i, &list->items[list->n++], err) < 0)
			goto fail;
	}
	*out = list;
	return 0;
fail:
	tide_bitmap_list_free(list);
	return -1;
}

void tide_bitmap_list_free(struct tide_bitmap_list *list)
{
	if (!list)
		return;
	for (size_t i = 0; list->items && i < list->n; i++)
		free(list->items[i].name);
	free(list->items);
	free(list);
}
