#include "node.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "error.h"
#include "lock.h"
#include "mem.h"
#include "node_inside.h"
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
	node->allow = drive->allow;
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
	if (node->inside_staged)
		tide_node_inside_abort(node);
	drop_sidecar(node);
	tide_node_inside_release(node);
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
	node->inside_held = false;
	node->completed = false;
	node->job = NULL;
	node->is_open = node->wanted = node->want_create = node->want_inside = false;
}

/* ---- opening ----------------------------------------------------------------------- */

static int load_sidecar(struct tide_node *node, struct tide_error *err)
{
	if (node->sidecar_path && tide_store_load(node->sidecar_path, &node->sc, err) < 0)
		return -1;
	node->has_sidecar = node->sc != NULL;
	node->disk_writer = node->sc ? node->sc->writer : 0;
	if (!node->sc)
		node->sc = tide_sidecar_new(err);
	return node->sc ? 0 : -1;
}

/* Bitmaps inside the image are going to be changed, perhaps: it is opened anew, as one that will be written later. */
static int open_for_bitmaps(struct tide_node *node, struct tide_image_options *options, struct tide_error *err)
{
	TIDE_AUTOFREE char *format = NULL;

	if (!tide_image_can_store_bitmaps(node->image) || node->mode != TIDE_NODE_CHANGE)
		return 0;
	if (tide_image_info(node->image)->n_bitmaps == 0 && !node->want_inside)
		return 0;
	format = tide_mem_strdup(tide_image_format(node->image), err);
	if (!format)
		return -1;
	tide_image_close(node->image); /* its locks must not be in the way of who changes them now */
	node->image = NULL;
	options->write_later = options->records_bitmaps = true;
	options->format = format;
	if (tide_image_open(options, &node->image, &node->inside_error) == 0)
		return 0;
	options->write_later = options->records_bitmaps = false;
	return tide_image_open(options, &node->image, err);
}

static int open_image(struct tide_node *node, struct tide_error *err)
{
	struct tide_image_options options = {
		.path = node->path,
		.format = node->format,
		.write = node->mode == TIDE_NODE_WRITE,
		.records_bitmaps = node->mode == TIDE_NODE_WRITE,
		.force_share = node->force_share && node->mode == TIDE_NODE_LOOK,
		.allow = node->allow,
		.partial = node->partial && node->mode == TIDE_NODE_LOOK,
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
	if (open_for_bitmaps(node, &options, err) < 0 || tide_node_inside_open(node, err) < 0)
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
			node->sc->writer = node->disk_writer = 0;
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
	TIDE_AUTOFREE char *pointer = NULL;
	TIDE_AUTOFREE char *record = NULL;
	uint64_t token;
	int rc;

	if (!node->sidecar_path)
		return 0;
	pointer = tide_mem_printf(err, "%s.group", node->sidecar_path);
	rc = pointer ? tide_record_read_pointer(pointer, &token, &record, err) : -1;

	if (rc <= 0)
		return rc;
	rc = tide_lock_token_is_held(tide_image_fd(node->image), token, err);
	if (rc)
		return rc < 0 ? -1 : 0; /* it is at work */
	rc = tide_record_roll_forward(record, err);
	if (rc > 0 && tide_node_inside_roll_forward(node, record, sink, err) < 0)
		return -1;
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
	struct tide_error why = TIDE_ERROR_INIT;
	bool nameless;

	if (!real)
		return tide_error_set_sys(err, errno, "Could not open '%s'", node->path);
	node->sidecar_path = tide_store_path(real, node->sidecar, &nameless, &why);
	/* Who only looks at a device that has no usual place for bitmaps sees none. */
	if (!node->sidecar_path && (!nameless || node->mode != TIDE_NODE_LOOK))
		return tide_error_move(err, &why);
	tide_error_release(&why);
	return read_node(node, create, sink, err);
}

void tide_node_want(struct tide_node *node, enum tide_node_mode mode, bool create)
{
	node->want = node->wanted ? TIDE_MAX(node->want, mode) : mode;
	node->want_create |= create;
	node->wanted = true;
}

void tide_node_want_inside(struct tide_node *node)
{
	node->want_inside = true;
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
	/* Others may change what is inside the image, unless a job or a group is going to. */
	if (!node->inside_held && !(node->inside_deferred && node->inside_dirty))
		tide_image_renounce_write(node->image);
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

int tide_node_begin_settling(struct tide_node *node, struct tide_sink *sink, struct tide_error *err)
{
	if (node->after || node->inside_deferred)
		return tide_node_load_deferred(node, sink, err);
	return node->has_sidecar ? tide_node_relock_store(node, sink, err) : 0;
}

/* ---- bitmaps by name --------------------------------------------------------------- */

static struct tide_sidecar_bitmap *find(const struct tide_node *node, const char *name)
{
	long i = tide_sidecar_find(node->sc, name);

	if (i >= 0)
		return node->sc->items[i];
	i = tide_sidecar_find(node->inside, name);
	return i >= 0 ? node->inside->items[i] : NULL;
}

bool tide_node_has(const struct tide_node *node, const char *name)
{
	return find(node, name) != NULL;
}

struct tide_sidecar_bitmap *tide_node_find(struct tide_node *node, const char *name, struct tide_error *err)
{
	struct tide_sidecar_bitmap *entry = find(node, name);

	if (!entry)
		tide_error_set(err, TIDE_E_REFUSED, "Dirty bitmap '%s' not found", name);
	return entry;
}

static bool is_removed(const struct tide_node *node, const struct tide_sidecar_bitmap *entry)
{
	for (size_t i = 0; i < node->n_removed; i++) {
		if (node->removed[i] == entry)
			return true;
	}
	return false;
}

static int check_inconsistent(struct tide_node *node, struct tide_sidecar_bitmap *entry, unsigned flags,
                              struct tide_error *err)
{
	if (entry->untracked && node->ignore_stamp) {
		entry->untracked = false; /* the user vouches for this one */
		node->dirty = true;
	}
	if ((flags & TIDE_BITMAP_ALLOW_INCONSISTENT) || (!entry->untracked && !entry->in_use))
		return 0;
	tide_error_set(err, TIDE_E_REFUSED, "Bitmap '%s' is inconsistent and cannot be used", entry->name);
	if (entry->untracked)
		return tide_error_hint(err, "'%s' was changed without being tracked; say what was written with "
		                            "bitmap-mark, compare it with the last backup (bitmap-rescan), or, if its content "
		                            "did not change, use --ignore-stamp",
		                       node->path);
	return tide_error_hint(err, "a program died while it used the bitmap; bitmap-rescan against the last backup makes it "
	                            "usable again");
}

struct tide_sidecar_bitmap *tide_node_find_usable(struct tide_node *node, const char *name, unsigned flags,
                                                  struct tide_error *err)
{
	struct tide_sidecar_bitmap *entry = tide_node_find(node, name, err);

	if (!entry)
		return NULL;
	if (entry->token || is_removed(node, entry)) {
		tide_error_set(err, TIDE_E_REFUSED,
		               "Bitmap '%s' is currently in use by another operation and cannot be used", name);
		return NULL;
	}
	if (entry->inside && (flags & TIDE_BITMAP_WILL_WRITE) && node->inside_error.code) {
		if (node->inside_error.code == TIDE_E_LOCKED) {
			tide_node_inside_check(node, err);
		} else {
			tide_error_set(err, TIDE_E_REFUSED, "Bitmap '%s' is readonly and cannot be modified", name);
			tide_error_hint(err, "%s", node->inside_error.msg);
		}
		return NULL;
	}
	return check_inconsistent(node, entry, flags, err) < 0 ? NULL : entry;
}

struct tide_bitmap *tide_node_bitmap(struct tide_node *node, struct tide_sidecar_bitmap *entry, struct tide_error *err)
{
	if (!entry->inside)
		return tide_sidecar_bitmap_load(node->sc, entry, err);
	return tide_node_inside_load(node, entry, err) < 0 ? NULL : entry->bitmap;
}

void tide_node_touch(struct tide_node *node, const struct tide_sidecar_bitmap *entry)
{
	if (entry->inside)
		node->inside_dirty = true;
	else
		node->dirty = true;
}

struct tide_bitmap *tide_node_bitmap_for_change(struct tide_node *node, struct tide_sidecar_bitmap *entry,
                                                struct tide_error *err)
{
	struct tide_bitmap *bm = tide_node_bitmap(node, entry, err);

	if (!bm)
		return NULL;
	entry->changed = true;
	tide_node_touch(node, entry);
	return bm;
}

void tide_node_replace_bitmap(struct tide_node *node, struct tide_sidecar_bitmap *entry, struct tide_bitmap *bm)
{
	tide_bitmap_free(entry->bitmap);
	free(entry->encoded);
	entry->bitmap = bm;
	entry->encoded = NULL;
	entry->encoded_len = 0;
	entry->in_use = false;
	entry->changed = true;
	tide_node_touch(node, entry);
}

struct tide_sidecar_bitmap *tide_node_add(struct tide_node *node, const char *name, uint64_t granularity,
                                          enum tide_store_kind store, struct tide_error *err)
{
	bool inside = store == TIDE_STORE_IMAGE;
	struct tide_sidecar_bitmap *entry;

	if (inside && tide_node_inside_check(node, err) < 0)
		return NULL;
	entry = tide_sidecar_bitmap_new(name, tide_image_size(node->image), granularity, err);
	if (!entry)
		return NULL;
	entry->inside = entry->changed = inside;
	if (tide_sidecar_insert(inside ? node->inside : node->sc, 0, entry, err) < 0) {
		tide_sidecar_bitmap_free(entry);
		return NULL;
	}
	tide_node_touch(node, entry);
	return entry;
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
	tide_node_touch(node, entry);
	return 0;
}

static bool is_dirty(const struct tide_bitmap *bm, uint64_t off, uint64_t len)
{
	uint64_t start, run;

	return len == 0 || (tide_bitmap_next_dirty(bm, off, len, &start, &run) && start <= off && start + run >= off + len);
}

/* ... and, where a job uses the bitmap, in what will be its content after either end of the job. */
static int record_entry(struct tide_node *node, struct tide_sidecar_bitmap *entry, uint64_t off, uint64_t len,
                        struct tide_error *err)
{
	struct tide_sidecar_bitmap *half = entry->successor ? entry->successor : entry;
	struct tide_bitmap *bm;

	if (!half->enabled || entry->in_use)
		return 0;
	/* To change what the image holds takes several writes: not for bits that are set already. */
	if (entry->inside) {
		bm = tide_node_bitmap(node, entry, err);
		if (!bm)
			return -1;
		if (half == entry && is_dirty(bm, off, len))
			return 0;
	}
	if (half != entry) {
		bm = tide_sidecar_bitmap_load(node->sc, half, err);
		if (!bm || tide_bitmap_set(bm, off, len, err) < 0)
			return -1;
		tide_node_touch(node, entry);
		if (!entry->inside)
			return 0; /* the sidecar keeps the two apart */
	}
	bm = tide_node_bitmap_for_change(node, entry, err);
	return bm ? tide_bitmap_set(bm, off, len, err) : -1;
}

int tide_node_record(struct tide_node *node, uint64_t off, uint64_t len, struct tide_error *err)
{
	for (size_t i = 0; i < node->sc->n; i++) {
		if (record_entry(node, node->sc->items[i], off, len, err) < 0)
			return -1;
	}
	for (size_t i = 0; i < node->inside->n; i++) {
		if (record_entry(node, node->inside->items[i], off, len, err) < 0)
			return -1;
	}
	return 0;
}

/* ---- committing -------------------------------------------------------------------- */

static void drop_removed(struct tide_node *node)
{
	struct tide_sidecar *stores[] = { node->sc, node->inside };

	for (size_t s = 0; s < TIDE_ARRAY_SIZE(stores); s++) {
		for (size_t k = stores[s]->n; k-- > 0;) {
			if (is_removed(node, stores[s]->items[k]))
				tide_sidecar_bitmap_free(tide_sidecar_take(stores[s], k));
		}
	}
	node->n_removed = 0;
}

int tide_node_stage(struct tide_node *node, struct tide_error *err)
{
	bool inside = node->inside_dirty && !node->inside_deferred;

	if (node->mode == TIDE_NODE_LOOK || (!node->dirty && !inside))
		return 0;
	drop_removed(node);
	if (inside && tide_node_inside_stage(node, err) < 0)
		return -1;
	if (!node->dirty)
		return 0;
	/* The stamp of the moment the image was locked, not of now: what came in between came around the tracking. */
	node->sc->stamp = *tide_image_stamp(node->image);
	node->sc->generation++;
	return tide_store_stage(&node->store, node->sc, tide_image_fd(node->image), err);
}

int tide_node_commit(struct tide_node *node, struct tide_error *err)
{
	if (node->dirty && node->mode != TIDE_NODE_LOOK) {
		if (tide_store_commit(&node->store, err) < 0)
			return -1;
		node->dirty = false;
		node->has_sidecar = true;
		node->disk_writer = node->sc->writer;
	}
	return node->inside_staged ? tide_node_inside_commit(node, err) : 0;
}

/* ---- waiting for a group ------------------------------------------------------------ */

int tide_node_defer(struct tide_node *node, struct tide_error *err)
{
	node->inside_deferred = true;
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
	if (node->mode == TIDE_NODE_LOOK)
		return 0;
	drop_removed(node);
	if (!node->dirty)
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
	node->after = node->sc;
	node->sc = node->base;
	node->base = NULL;
	if (!node->has_sidecar) /* nothing was there before */
		node->dirty = false;
	return 0;
}

bool tide_node_is_deferred(const struct tide_node *node)
{
	return node->after || (node->inside_deferred && node->inside_dirty);
}

int tide_node_load_deferred(struct tide_node *node, struct tide_sink *sink, struct tide_error *err)
{
	uint64_t generation = node->sc->generation;
	bool had = node->has_sidecar;

	node->inside_deferred = false;
	if (!node->after)
		return had ? tide_node_relock_store(node, sink, err) : 0;
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
	tide_node_inside_reload(node, &err);
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

int tide_node_add_to_record(const struct tide_node *node, struct tide_record *record, struct tide_error *err)
{
	const struct tide_staged *staged = &node->store.staged;
	struct tide_stamp stamp;

	if (staged->tmp && tide_record_add(record, staged->tmp, staged->path, err) < 0)
		return -1;
	if (!node->inside_staged)
		return 0;
	if (tide_stamp_take(tide_image_fd(node->image), &stamp, err) < 0)
		return -1;
	return tide_record_add_switch(record, tide_image_path(node->image), &node->inside_switch, &stamp, err);
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

static int list_entry(struct tide_node *node, struct tide_sidecar_bitmap *entry, struct tide_bitmap_info *out,
                      struct tide_error *err)
{
	out->name = tide_mem_strdup(entry->name, err);
	if (!out->name)
		return -1;
	if (entry->inside && !entry->in_use && !tide_node_bitmap(node, entry, err))
		return -1;
	out->granularity = entry->granularity;
	out->count = tide_sidecar_bitmap_count(entry) * entry->granularity;
	out->busy = entry->token != 0;
	out->inconsistent = (entry->untracked && !node->ignore_stamp) || entry->in_use;
	out->recording = (entry->enabled || (entry->successor && entry->successor->enabled)) && !out->inconsistent;
	out->persistent = true;
	out->store = entry->inside ? TIDE_STORE_IMAGE : TIDE_STORE_SIDECAR;
	return 0;
}

int tide_node_list(struct tide_node *node, struct tide_bitmap_list **out, struct tide_error *err)
{
	struct tide_bitmap_list *list = tide_mem_alloc(1, sizeof(*list), err);

	if (!list)
		return -1;
	list->items = tide_mem_alloc(node->sc->n + node->inside->n + 1, sizeof(*list->items), err);
	if (!list->items)
		goto fail;
	for (size_t i = 0; i < node->sc->n; i++) {
		if (list_entry(node, node->sc->items[i], &list->items[list->n++], err) < 0)
			goto fail;
	}
	for (size_t i = 0; i < node->inside->n; i++) {
		if (list_entry(node, node->inside->items[i], &list->items[list->n++], err) < 0)
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
