/*
 * A node's write log: deciding at opening what its state means for the bitmaps, and recording as its writer.
 *
 * The order of writes keeps every bit: the log has a bit, durably if the writer asked for that, before the data is
 * written; the bitmaps on disk have the log's bits before the log is removed, and before a new one begins.  The writer
 * holds a token on the image, which is how other programs know whether it lives.
 */
#include "node_log.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "base/lock.h"
#include "base/mem.h"
#include "base/range.h"
#include "node_image.h"
#include "node_impl.h"
#include "store/write_log.h"

#define NO_BITMAP_SHIFT 31u

static char *log_path(const struct tide_node *node, struct tide_error *err)
{
	return tide_store_beside(node->sidecar_path, ".log", err);
}

void tide_node_log_release(struct tide_node *node)
{
	if (node->log.state == TIDE_NODE_LOG_WRITER && node->image)
		tide_lock_token_drop(tide_image_fd(node->image), node->log.token);
	tide_write_log_close(node->log.file);
	node->log = (struct tide_node_log){ 0 };
}

/* A damaged log was closed; the file may have been replaced by one that is not ours. */
static void remove_damaged(struct tide_node *node)
{
	TIDE_AUTOFREE char *path = log_path(node, NULL);
	struct tide_error why = TIDE_ERROR_INIT;
	struct tide_write_log *log = NULL;

	if (path && tide_write_log_open(path, &log, &why) < 0 && why.code == TIDE_E_CORRUPT)
		unlink(path);
	else
		tide_write_log_close(log);
	tide_error_release(&why);
}

void tide_node_log_remove(struct tide_node *node)
{
	if (node->log.file)
		tide_write_log_unlink(node->log.file);
	else if (node->log.state)
		remove_damaged(node);
	tide_node_log_release(node);
}

/* ---- adding its bits to the bitmaps ------------------------------------------------- */

static struct tide_bitmap *everything(uint64_t size, struct tide_error *err)
{
	TIDE_AUTOBITMAP struct tide_bitmap *bm = tide_bitmap_new(size, TIDE_BITMAP_GRANULARITY_MAX, err);
	struct tide_bitmap *ret;

	if (!bm || (size && tide_bitmap_set(bm, 0, size, err) < 0))
		return NULL;
	ret = bm;
	bm = NULL;
	return ret;
}

/* The bits of the log, for a disk of this size. */
static struct tide_bitmap *recorded(const struct tide_node *node, uint64_t size, struct tide_error *err)
{
	unsigned shift = tide_write_log_header(node->log.file)->shift;
	TIDE_AUTOBITMAP struct tide_bitmap *bm = tide_bitmap_new(size, UINT64_C(1) << shift, err);
	struct tide_bitmap *ret;

	if (!bm || tide_write_log_read(node->log.file, bm, err) < 0)
		return NULL;
	ret = bm;
	bm = NULL;
	return ret;
}

static struct tide_bitmap *dirty_ranges(const struct tide_node *node, bool lost, uint64_t size, struct tide_error *err)
{
	return lost ? everything(size, err) : recorded(node, size, err);
}

/* Sets the bits in every bitmap of the sidecar that records; for a busy one, in its successor. */
static int add_to_sidecar(struct tide_node *node, const struct tide_bitmap *bits, struct tide_error *err)
{
	for (size_t i = 0; i < node->in_sidecar.list->n; i++) {
		struct tide_sidecar_bitmap *entry = node->in_sidecar.list->items[i];
		struct tide_sidecar_bitmap *half = entry->successor ? entry->successor : entry;
		struct tide_bitmap *bm;

		if (!half->enabled)
			continue;
		bm = tide_sidecar_bitmap_load(node->in_sidecar.list, half, err);
		if (!bm || tide_bitmap_merge(bm, bits, err) < 0)
			return -1;
	}
	if (node->log.file)
		node->in_sidecar.list->log = tide_write_log_header(node->log.file)->id;
	node->in_sidecar.is_dirty |= node->has_sidecar;
	return 0;
}

static bool is_recorded_here(const struct tide_write_log_header *h, const struct tide_sidecar_bitmap *entry)
{
	uint64_t token = tide_node_image_token(entry->name);

	for (size_t i = 0; i < h->n_in_image; i++) {
		if (h->in_image[i] == token)
			return true;
	}
	return false;
}

/* Sets the bits in the bitmaps that the log's writer marked as in use, and clears that mark: they are complete now. */
static int add_to_image(struct tide_node *node, const struct tide_bitmap *bits, struct tide_error *err)
{
	const struct tide_write_log_header *h = tide_write_log_header(node->log.file);

	for (size_t i = 0; i < node->in_image.list->n; i++) {
		struct tide_sidecar_bitmap *entry = node->in_image.list->items[i];
		struct tide_bitmap *bm;

		if (!is_recorded_here(h, entry))
			continue;
		if (h->state.untracked) { /* it lacks writes: the mark stays, which means inconsistent */
			entry->in_use = true;
			entry->checked_out = false;
			continue;
		}
		entry->checked_out |= entry->in_use;
		entry->in_use = false;
		bm = tide_node_bitmap_for_change(node, entry, err);
		if (!bm || tide_bitmap_merge(bm, bits, err) < 0)
			return -1;
		entry->checked_out = false;
	}
	return 0;
}

/* Adds the log's bits to the bitmaps of these stores.  lost: the log may lack bits, so everything is dirty. */
static int take(struct tide_node *node, bool lost, bool sidecar, bool image, struct tide_error *err)
{
	uint64_t size = node->in_sidecar.list->disk_size;

	if (sidecar && node->in_sidecar.list->n) {
		TIDE_AUTOBITMAP struct tide_bitmap *bits = dirty_ranges(node, lost, size, err);

		if (!bits || add_to_sidecar(node, bits, err) < 0)
			return -1;
	}
	if (image && node->log.file && tide_write_log_header(node->log.file)->n_in_image) {
		TIDE_AUTOBITMAP struct tide_bitmap *bits = dirty_ranges(node, lost, tide_image_size(node->image), err);

		if (!bits || add_to_image(node, bits, err) < 0)
			return -1;
	}
	return 0;
}

int tide_node_log_fold(struct tide_node *node, struct tide_error *err)
{
	if (node->log.state != TIDE_NODE_LOG_PENDING)
		return 0;
	node->log.state = TIDE_NODE_LOG_TAKEN;
	return take(node, false, true, false, err);
}

/* ---- opening ----------------------------------------------------------------------- */

static bool is_of_this_sidecar(const struct tide_node *node, const struct tide_write_log_header *h)
{
	if (!node->has_sidecar)
		return h->generation == 0 && h->sidecar_crc == 0;
	return h->generation == node->in_sidecar.list->generation &&
	       h->sidecar_crc == node->in_sidecar.list->checksum && h->disk_size == node->in_sidecar.list->disk_size;
}

/*
 * A node that is read has no lock on the sidecar: since it was read, another program may have replaced the sidecar and
 * removed the log.  1: it has.
 */
static int was_replaced(const struct tide_node *node, struct tide_error *err)
{
	bool current = true;

	if (node->mode == TIDE_NODE_READ && !node->group.is_shown &&
	    tide_store_is_current(node->sidecar_path, node->has_sidecar ? node->in_sidecar.list : NULL, &current, err) <
	            0)
		return -1;
	return !current;
}

static int take_damaged(struct tide_node *node, const struct tide_error *why, struct tide_sink *sink,
                        struct tide_error *err)
{
	tide_event_warning(sink, node->path,
	                   "%s; the writes that it recorded are unknown, so the whole disk counts as dirty", why->msg);
	node->log.vouches = true;
	return take(node, true, true, false, err);
}

/*
 * Another program's file has the name of the log.  If it replaced a log of ours, the stamp reveals that; without a
 * stamp nobody knows.
 */
static int take_foreign(struct tide_node *node, const char *path, struct tide_sink *sink, struct tide_error *err)
{
	bool has_stamp = node->in_sidecar.list->stamp.valid && tide_image_stamp(node->image)->valid;
	int again = was_replaced(node, err);

	if (again || !node->has_sidecar)
		return again;
	tide_event_warning(sink, node->path, "'%s' is not a write log and is not used%s", path,
	                   has_stamp ? "" : "; it may have replaced one, so the whole disk counts as dirty");
	return has_stamp ? 0 : take(node, true, true, false, err);
}

static int take_live(struct tide_node *node, struct tide_error *err)
{
	const struct tide_write_log_header *h = tide_write_log_header(node->log.file);

	node->log.vouches = true;
	node->log.untracked = h->state.untracked;
	if (node->mode == TIDE_NODE_READ)
		return take(node, false, h->id != node->in_sidecar.list->log, true, err);
	tide_error_set(err, TIDE_E_LOCKED, "Another program is recording its writes to '%s'", node->path);
	return tide_error_hint(err, "wait until it ends");
}

static int take_dead(struct tide_node *node, bool lost, struct tide_sink *sink, struct tide_error *err)
{
	if (!lost)
		tide_event_warning(sink, node->path,
		                   "a tracked write was interrupted; the ranges that it may have written are dirty");
	node->log.vouches = true;
	return take(node, lost, true, true, err);
}

/* The log has no living writer. */
static int take_ended(struct tide_node *node, struct tide_sink *sink, struct tide_error *err)
{
	const struct tide_write_log_header *h = tide_write_log_header(node->log.file);
	bool is_in_sidecar = node->has_sidecar && h->id == node->in_sidecar.list->log;
	const char *lost = is_in_sidecar && !h->n_in_image ? NULL : tide_write_log_why_lost(node->log.file);

	if (lost)
		tide_event_warning(sink, node->path, "%s, and records may be lost: the whole disk counts as dirty",
		                   lost);
	node->log.untracked = h->state.untracked && node->has_sidecar && !is_in_sidecar;
	if (is_in_sidecar) /* the image may lack its bits */
		return take(node, lost, false, h->state.token, err);
	if (!is_of_this_sidecar(node, h)) {
		tide_event_warning(sink, node->path,
		                   "the write log belongs to another sidecar; the ranges that it recorded are dirty");
		return take(node, lost, true, h->state.token, err);
	}
	if (h->state.token || lost)
		return take_dead(node, lost, sink, err);
	node->in_sidecar.list->stamp = h->state.stamp;
	if (node->mode != TIDE_NODE_WRITE_DATA || node->in_sidecar.is_dirty || h->state.untracked ||
	    !tide_stamp_is_equal(tide_image_stamp(node->image), &h->state.stamp))
		return take(node, false, true, false, err);
	node->log.state = TIDE_NODE_LOG_PENDING;
	return 0;
}

static int judge(struct tide_node *node, struct tide_sink *sink, struct tide_error *err)
{
	const struct tide_write_log_header *h = tide_write_log_header(node->log.file);
	int held = h->state.token ? tide_lock_token_is_held(tide_image_fd(node->image), h->state.token, err) : 0;

	if (held < 0)
		return -1;
	if (!is_of_this_sidecar(node, h)) {
		int again = was_replaced(node, err);

		if (again)
			return again;
	}
	return held ? take_live(node, err) : take_ended(node, sink, err);
}

int tide_node_log_open(struct tide_node *node, struct tide_sink *sink, struct tide_error *err)
{
	TIDE_AUTOFREE char *path = NULL;
	struct tide_error why = TIDE_ERROR_INIT;
	int rc;

	tide_node_log_release(node);
	if (!node->sidecar_path)
		return 0;
	path = log_path(node, err);
	if (!path)
		return -1;
	rc = tide_write_log_open(path, &node->log.file, &why);
	if (rc == 0)
		return was_replaced(node, err);
	if (rc == 2)
		return take_foreign(node, path, sink, err);
	node->log.state = TIDE_NODE_LOG_TAKEN;
	if (rc > 0) {
		rc = judge(node, sink, err);
	} else if (why.code == TIDE_E_CORRUPT) {
		rc = take_damaged(node, &why, sink, err);
	} else {
		tide_error_hint(&why, "without it the bitmaps of '%s' lack the last writes", node->path);
		return tide_error_move(err, &why);
	}
	tide_error_release(&why);
	return rc;
}

bool tide_node_log_is_live(const struct tide_node *node)
{
	TIDE_AUTOFREE char *path = node->sidecar_path ? log_path(node, NULL) : NULL;
	TIDE_AUTOCLOSE int fd = path ? tide_sysio_open_disk(node->path, O_RDONLY | O_NONBLOCK, NULL) : -1;
	struct tide_write_log *log;
	uint64_t token;

	if (fd < 0 || tide_write_log_open(path, &log, NULL) != 1)
		return false;
	token = tide_write_log_header(log)->state.token;
	tide_write_log_close(log);
	return token && tide_lock_token_is_held(fd, token, NULL) > 0;
}

/* ---- writing ----------------------------------------------------------------------- */

/* The shift of the finest granularity among the bitmaps that record. */
static unsigned finest(const struct tide_node *node, bool with_image)
{
	unsigned shift = NO_BITMAP_SHIFT;

	for (size_t i = 0; i < node->in_sidecar.list->n; i++) {
		const struct tide_sidecar_bitmap *entry = node->in_sidecar.list->items[i];

		if (entry->enabled || (entry->successor && entry->successor->enabled))
			shift = TIDE_MIN(shift, tide_range_shift(entry->granularity));
	}
	for (size_t i = 0; with_image && i < node->in_image.list->n; i++) {
		const struct tide_sidecar_bitmap *entry = node->in_image.list->items[i];

		if (entry->enabled && !entry->in_use)
			shift = TIDE_MIN(shift, tide_range_shift(entry->granularity));
	}
	return tide_write_log_shift(tide_image_size(node->image), shift);
}

static int list_in_image(const struct tide_node *node, struct tide_write_log_header *h, struct tide_error *err)
{
	h->in_image = tide_mem_alloc(node->in_image.list->n + 1, sizeof(*h->in_image), err);
	if (!h->in_image)
		return -1;
	for (size_t i = 0; i < node->in_image.list->n; i++) {
		const struct tide_sidecar_bitmap *entry = node->in_image.list->items[i];

		if (entry->enabled && !entry->in_use)
			h->in_image[h->n_in_image++] = tide_node_image_token(entry->name);
	}
	return 0;
}

static int create(struct tide_node *node, bool durable, bool with_image, struct tide_error *err)
{
	TIDE_AUTOFREE char *path = log_path(node, err);
	struct tide_write_log_header h = {
		.generation = node->has_sidecar ? node->in_sidecar.list->generation : 0,
		.sidecar_crc = node->has_sidecar ? node->in_sidecar.list->checksum : 0,
		.shift = finest(node, with_image),
		.disk_size = tide_image_size(node->image),
		.state = { .token = node->log.token, .durable = durable },
	};
	int rc = -1;

	if (path && (!with_image || list_in_image(node, &h, err) == 0))
		rc = tide_write_log_create(path, &h, tide_image_fd(node->image), &node->log.file, err);
	tide_write_log_header_release(&h);
	return rc;
}

/* Commits the log's bits to the bitmaps on disk, so that a new log can begin. */
static int commit_pending(struct tide_node *node, struct tide_error *err)
{
	int rc;

	if (tide_node_log_fold(node, err) < 0 ||
	    tide_store_lock(&node->store, node->sidecar_path, false, node->cancel, err) < 0)
		return -1;
	rc = tide_node_stage(node, err);
	if (rc == 0)
		rc = tide_node_commit(node, err);
	tide_node_unlock_store(node);
	return rc;
}

/* Marks the enabled bitmaps inside the image as in use: after a death QEMU must not take them for complete. */
static int check_out(struct tide_node *node, struct tide_error *err)
{
	bool any = false;

	for (size_t i = 0; i < node->in_image.list->n; i++) {
		struct tide_sidecar_bitmap *entry = node->in_image.list->items[i];

		entry->checked_out = entry->enabled && !entry->in_use;
		any |= entry->checked_out;
	}
	if (!any)
		return 0;
	node->in_image.is_dirty = true;
	return tide_node_image_stage(node, err) < 0 ? -1 : tide_node_image_commit(node, err);
}

int tide_node_log_begin(struct tide_node *node, bool durable, bool with_image, struct tide_error *err)
{
	int fd = tide_image_fd(node->image);
	uint64_t token;
	bool continues;

	if (node->log.state == TIDE_NODE_LOG_PENDING &&
	    (with_image || tide_write_log_header(node->log.file)->shift != finest(node, false)) &&
	    commit_pending(node, err) < 0)
		return -1;
	continues = node->log.state == TIDE_NODE_LOG_PENDING;
	if (!continues)
		tide_node_log_remove(node);
	if (tide_lock_token_new(&token, err) < 0 || tide_lock_token_hold(fd, token, err) < 0)
		return -1;
	node->log.token = token;
	node->log.state = TIDE_NODE_LOG_WRITER;
	if (continues ? tide_write_log_activate(node->log.file, token, durable, err) < 0
	              : create(node, durable, with_image, err) < 0)
		return -1;
	return with_image ? check_out(node, err) : 0;
}

void tide_node_log_keep_untracked(struct tide_node *node, struct tide_sink *sink)
{
	if (!node->untracked)
		return;
	if (node->in_sidecar.list->n)
		tide_event_warning(sink, node->path, "the image %s; its bitmaps stay inconsistent",
		                   tide_node_why_untracked(node));
	node->in_sidecar.is_dirty = true; /* the stamp will match again */
}

int tide_node_log_prepare(struct tide_node *node, struct tide_sink *sink, struct tide_error *err)
{
	tide_node_log_keep_untracked(node, sink);
	if (tide_node_stage(node, err) < 0 || tide_node_commit(node, err) < 0)
		return -1;
	tide_node_unlock_store(node);
	return 0;
}

void tide_node_log_warn_others(const struct tide_node *node, struct tide_sink *sink)
{
	tide_event_warning(sink, node->path,
	                   "another program wrote to the image meanwhile; its bitmaps are inconsistent now");
}

int tide_node_log_distrust(struct tide_node *node, struct tide_error *err)
{
	if (tide_write_log_header(node->log.file)->state.untracked)
		return 0;
	tide_node_distrust(node);
	return tide_write_log_distrust(node->log.file, err);
}

int tide_node_log_clean(struct tide_node *node, struct tide_error *err)
{
	if (tide_image_settle(node->image, err) < 0 ||
	    (tide_image_others_wrote(node->image) && tide_node_log_distrust(node, err) < 0))
		return -1;
	if (tide_write_log_clean(node->log.file, tide_image_stamp(node->image), err) < 0)
		return -1;
	tide_lock_token_drop(tide_image_fd(node->image), node->log.token);
	node->in_sidecar.list->stamp = *tide_image_stamp(node->image);
	node->log.state = TIDE_NODE_LOG_PENDING;
	return 0;
}

/*
 * No program should have replaced the sidecar while this one was the writer.  If one did, for example through another
 * name of a device, its bitmaps stay, with the log's bits, but nobody knows whether they are complete.
 */
static int lock_for_end(struct tide_node *node, struct tide_sink *sink, struct tide_error *err)
{
	bool current = true;

	if (tide_store_lock(&node->store, node->sidecar_path, false, node->cancel, err) < 0 ||
	    tide_store_is_current(node->sidecar_path, node->in_sidecar.list, &current, err) < 0)
		return -1;
	if (current)
		return 0;
	tide_event_warning(sink, node->path,
	                   "another program changed the bitmaps meanwhile; they are inconsistent now");
	tide_node_drop_sidecar(node);
	if (tide_node_load_sidecar(node, err) < 0)
		return -1;
	if (!node->has_sidecar)
		return tide_error_set(err, TIDE_E_CORRUPT, "The sidecar '%s' has vanished", node->sidecar_path);
	tide_node_distrust(node);
	return take(node, false, true, false, err);
}

int tide_node_log_end(struct tide_node *node, struct tide_sink *sink, struct tide_error *err)
{
	int rc = tide_image_others_wrote(node->image) ? tide_node_log_distrust(node, err) : 0;

	if (rc == 0)
		rc = take(node, false, true, true, err);
	/* The image first: its change moves the image's stamp, which the sidecar stores. */
	if (rc == 0 && node->in_image.is_dirty)
		rc = tide_node_image_stage(node, err) < 0 ? -1 : tide_node_image_commit(node, err);
	if (rc == 0 && node->in_sidecar.is_dirty)
		rc = lock_for_end(node, sink, err);
	if (rc == 0)
		rc = tide_node_stage(node, err);
	if (rc == 0)
		rc = tide_node_commit(node, err);
	tide_node_unlock_store(node);
	if (rc == 0)
		tide_node_log_remove(node);
	return rc;
}
