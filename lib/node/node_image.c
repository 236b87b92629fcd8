/*
 * The bitmaps inside an image: listing and reading them, making them busy, and changing them in an order that a death
 * or a power loss cannot turn into a lost write:
 *
 *   1. the sidecar on disk gets a writer token, so that the change of the image's stamp is not an unrecorded write;
 *   2. the new bitmaps are written to unused clusters and synced, with the image's times;
 *   3. one sector puts them in place (commit), and the times are synced again;
 *   4. the sidecar gets the stamp of now, without the token.
 */
#include "node_image.h"

#include "node_impl.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/checksum.h"
#include "base/error.h"
#include "base/lock.h"
#include "base/mem.h"
#include "base/range.h"
#include "base/sysio.h"

/* ---- listing and reading ------------------------------------------------------------ */

uint64_t tide_node_image_token(const char *name)
{
	struct tide_sha256 sha;
	char hex[65];

	tide_checksum_sha256_init(&sha);
	tide_checksum_sha256_update(&sha, name, strlen(name));
	tide_checksum_sha256_final(&sha, hex);
	hex[15] = '\0'; /* 60 bits; the lowest values are reserved (lock.h) */
	return strtoull(hex, NULL, 16) + TIDE_LOCK_TOKEN_JOB + 1;
}

static struct tide_sidecar_bitmap *entry_new(const struct tide_driver_bitmap *from, size_t index,
                                             struct tide_error *err)
{
	struct tide_sidecar_bitmap *entry = tide_mem_alloc(1, sizeof(*entry), err);

	if (!entry)
		return NULL;
	entry->name = tide_mem_strdup(from->name, err);
	if (!entry->name) {
		free(entry);
		return NULL;
	}
	entry->granularity = from->granularity;
	entry->enabled = from->enabled;
	entry->in_use = from->in_use;
	entry->in_image = entry->is_stored = true;
	entry->stored = index;
	return entry;
}

int tide_node_image_open(struct tide_node *node, struct tide_error *err)
{
	const struct tide_driver_info *info = tide_image_info(node->image);

	node->in_image.list = tide_sidecar_new(err);
	if (!node->in_image.list)
		return -1;
	node->in_image.list->disk_size = tide_image_size(node->image);
	for (size_t i = 0; i < info->n_bitmaps; i++) {
		struct tide_sidecar_bitmap *entry = entry_new(&info->bitmaps[i], i, err);
		int held;

		if (!entry || tide_sidecar_insert(node->in_image.list, 0, entry, err) < 0) {
			tide_sidecar_bitmap_free(entry);
			return -1;
		}
		held = tide_lock_token_is_held(tide_image_fd(node->image), tide_node_image_token(entry->name), err);
		if (held < 0)
			return -1;
		if (held)
			entry->token = tide_node_image_token(entry->name);
	}
	return node->in_sidecar.list ? tide_node_base_attach(node, err) : 0;
}

void tide_node_image_release(struct tide_node *node)
{
	tide_sidecar_free(node->in_image.list);
	node->in_image.list = NULL;
	node->in_image.is_dirty = node->image_bitmaps.is_deferred = false;
	tide_error_release(&node->image_bitmaps.why_not);
}

int tide_node_image_reload(struct tide_node *node, struct tide_error *err)
{
	tide_node_image_abort(node);
	tide_sidecar_free(node->in_image.list);
	node->in_image.is_dirty = node->image_bitmaps.is_deferred = false;
	return tide_node_image_open(node, err);
}

int tide_node_image_check(const struct tide_node *node, struct tide_error *err)
{
	const struct tide_error *why = &node->image_bitmaps.why_not;

	if (!tide_image_can_store_bitmaps(node->image))
		return tide_error_set(err, TIDE_E_REFUSED,
		                      "Can't store persistent bitmaps to %s: Operation not supported", node->id);
	if (!why->code)
		return 0;
	tide_error_set(err, why->code, "%s", why->msg);
	if (err)
		err->sys = why->sys;
	return why->hint ? tide_error_hint(err, "%s", why->hint) : -1;
}

static int load_entry(struct tide_node *node, struct tide_sidecar_bitmap *entry, struct tide_error *err)
{
	if (entry->bitmap)
		return 0;
	if (entry->checked_out && tide_image_reclaim_bitmap(node->image, entry->stored, err) < 0)
		return -1;
	if (!entry->is_stored)
		return tide_error_set(err, TIDE_E_CORRUPT, "Bitmap '%s' has no contents", entry->name);
	if (tide_image_read_bitmap(node->image, entry->stored, &entry->bitmap, err) < 0)
		return -1;
	entry->granularity = tide_bitmap_granularity(entry->bitmap); /* a server reports it only with the contents */
	return 0;
}

static bool is_dirty(const struct tide_bitmap *bm, uint64_t off, uint64_t len)
{
	uint64_t start, run;

	return len == 0 ||
	       (tide_bitmap_next_dirty(bm, off, len, &start, &run) && start <= off && start + run >= off + len);
}

int tide_node_image_record(struct tide_node *node, uint64_t off, uint64_t len, struct tide_error *err)
{
	for (size_t i = 0; i < node->in_image.list->n; i++) {
		struct tide_sidecar_bitmap *entry = node->in_image.list->items[i];
		struct tide_bitmap *bm;

		if (!entry->enabled || entry->in_use)
			continue;
		bm = tide_node_bitmap(node, entry, err);
		if (!bm)
			return -1;
		/* A change takes several writes to the image, so it is avoided for bits that are set already. */
		if (is_dirty(bm, off, len))
			continue;
		bm = tide_node_bitmap_for_change(node, entry, err);
		if (!bm || tide_bitmap_set(bm, off, len, err) < 0)
			return -1;
	}
	return 0;
}

int tide_node_image_hold(struct tide_node *node, struct tide_sidecar_bitmap *entry, struct tide_error *err)
{
	int fd = tide_image_fd(node->image);
	uint64_t token = tide_node_image_token(entry->name);

	if (tide_lock_token_hold(fd, token, err) < 0 || tide_lock_token_hold(fd, TIDE_LOCK_TOKEN_JOB, err) < 0)
		return -1;
	entry->token = token;
	node->image_bitmaps.is_held = true;
	return 0;
}

/* ---- the sidecar's stamp ------------------------------------------------------------ */

/* Replacing the sidecar ends the lock on it, so it is locked again; fails if another program changed it in between. */
static int lock_again(struct tide_node *node, struct tide_error *err)
{
	struct tide_sidecar *now = NULL;
	uint64_t generation;

	tide_store_release(&node->store);
	if (tide_store_lock(&node->store, node->sidecar_path, false, node->cancel, err) < 0 ||
	    tide_store_load(node->sidecar_path, &now, err) < 0)
		return -1;
	generation = now ? now->generation : 0;
	tide_sidecar_free(now);
	if (generation != node->in_sidecar.list->generation)
		return tide_error_set(err, TIDE_E_REFUSED, "Another program changed the bitmaps of '%s' meanwhile",
		                      node->path);
	return 0;
}

/* Replaces the sidecar on disk by itself with this writer token; writer 0: without a token and with the stamp of now.
 */
static int rewrite_mark(struct tide_node *node, uint64_t writer, struct tide_error *err)
{
	struct tide_sidecar *now = NULL;
	int rc = -1;

	if (tide_store_load(node->sidecar_path, &now, err) < 0)
		return -1;
	if (!now)
		return tide_error_set(err, TIDE_E_CORRUPT, "The sidecar '%s' has vanished", node->sidecar_path);
	/* The new stamp will match the image, so a mismatch that was found must be stored in the bitmaps. */
	if ((writer && node->untracked) || tide_image_others_wrote(node->image))
		tide_sidecar_distrust(now);
	for (size_t i = 0; writer && node->has_gap && i < now->n; i++) {
		now->items[i]->unchecked = true;
		now->device.gap = node->in_sidecar.list->device.gap;
	}
	now->writer = writer;
	now->generation++;
	if (!writer)
		tide_node_put_stamp(node, now);
	if (writer || tide_image_settle(node->image, err) == 0)
		rc = tide_store_stage(&node->store, now, tide_image_fd(node->image), err);
	if (rc == 0)
		rc = tide_store_commit(&node->store, err);
	if (rc == 0) {
		node->in_sidecar.list->generation = now->generation;
		node->disk_writer = writer;
		node->store.staged.named = false; /* the mark is not the change: is_untouched must not count it */
	}
	tide_sidecar_free(now);
	return rc;
}

static int mark(struct tide_node *node, struct tide_error *err)
{
	uint64_t writer = node->in_sidecar.list->writer;

	/* The node's own write log reveals the writer to other programs, and will contain the new stamp. */
	if (!node->in_sidecar.list->n || node->log.state == TIDE_NODE_LOG_WRITER)
		return 0;
	if (!node->disk_writer) {
		if (!writer && !node->group.token &&
		    (tide_lock_token_new(&node->group.token, err) < 0 ||
		     tide_lock_token_hold(tide_image_fd(node->image), node->group.token, err) < 0))
			return -1;
		/* The first sidecar does not exist yet: it is staged after this, with the mark. */
		if (!node->has_sidecar)
			node->disk_writer = writer ? writer : node->group.token;
		else if (rewrite_mark(node, writer ? writer : node->group.token, err) < 0 || lock_again(node, err) < 0)
			return -1;
	}
	if (!writer) {
		node->image_bitmaps.has_marked = true;
		node->in_sidecar.list->writer = node->disk_writer;
	}
	return 0;
}

/* If this fails, the token stays, and the next opener removes it. */
static void unmark(struct tide_node *node)
{
	struct tide_error ignored = TIDE_ERROR_INIT;

	if (!node->image_bitmaps.has_marked)
		return;
	node->image_bitmaps.has_marked = false;
	node->in_sidecar.list->writer = 0;
	if (lock_again(node, &ignored) == 0)
		rewrite_mark(node, 0, &ignored);
	tide_error_release(&ignored);
}

/* ---- changing ----------------------------------------------------------------------- */

/* The list has the newest bitmap first, the image's directory the oldest. */
static int stage_puts(struct tide_node *node, struct tide_error *err)
{
	size_t n = node->in_image.list->n;
	TIDE_AUTOFREE struct tide_driver_bitmap_put *puts = tide_mem_alloc(n + 1, sizeof(*puts), err);

	if (!puts)
		return -1;
	for (size_t i = 0; i < n; i++) {
		const struct tide_sidecar_bitmap *entry = node->in_image.list->items[n - 1 - i];

		puts[i] = (struct tide_driver_bitmap_put){
			.name = entry->name,
			.granularity = entry->granularity,
			.in_use = entry->in_use || entry->checked_out,
			.enabled = entry->enabled,
			.keep = entry->is_stored && !entry->changed,
			.index = entry->stored,
			.contents = entry->bitmap,
		};
	}
	if (tide_image_stage_bitmaps(node->image, puts, n, &node->image_bitmaps.change, err) == 0) {
		/* Nothing would reveal that one of the two files was restored alone. */
		if (node->image_bitmaps.change.lacks_token)
			tide_lineage_named_free(&node->in_sidecar.list->inside);
		return 0;
	}
	for (size_t i = 0; i < n; i++) {
		const struct tide_sidecar_bitmap *entry = node->in_image.list->items[i];

		if (!entry->is_stored && err && err->code != TIDE_E_IO)
			return tide_error_wrap(err, "Can't make bitmap '%s' persistent in '%s'", entry->name, node->id);
	}
	return -1;
}

int tide_node_image_stage(struct tide_node *node, struct tide_error *err)
{
	if (tide_node_image_check(node, err) < 0 || tide_image_lock_write(node->image, err) < 0)
		return -1;
	node->in_image.is_staged = true;
	/* A commit record stores the image's stamp, which must still be right after a power loss. */
	if (mark(node, err) == 0 && stage_puts(node, err) == 0 && tide_image_sync_times(node->image, err) == 0)
		return 0;
	tide_node_image_abort(node);
	return -1;
}

static void end_change(struct tide_node *node)
{
	unmark(node);
	tide_image_unlock_write(node->image);
	node->in_image.is_staged = false;
}

int tide_node_image_commit(struct tide_node *node, struct tide_error *err)
{
	int rc = tide_image_commit_bitmaps(node->image, err);

	for (size_t i = 0; rc == 0 && i < node->in_image.list->n; i++) {
		struct tide_sidecar_bitmap *entry = node->in_image.list->items[node->in_image.list->n - 1 - i];

		entry->is_stored = true;
		entry->changed = false;
		entry->stored = i;
	}
	if (rc == 0)
		node->in_image.is_dirty = false;
	node->in_image.is_staged = false;
	/* The times must be durable before the sidecar stores them.  If the sync fails, a power loss may restore older
	 * times; then the stamp does not match, and the bitmaps are inconsistent. */
	tide_image_sync_times(node->image, NULL);
	/* The mark in the sidecar goes after the commit record, which knows the sidecar with the mark. */
	if (node->group.is_recorded)
		node->image_bitmaps.ends_late = true;
	else
		end_change(node);
	return rc;
}

void tide_node_image_end(struct tide_node *node, bool is_pending)
{
	if (!node->image_bitmaps.ends_late)
		return;
	node->image_bitmaps.ends_late = false;
	if (is_pending) /* as after a death: the sidecar keeps its mark */
		node->image_bitmaps.has_marked = false;
	end_change(node);
}

void tide_node_image_abort(struct tide_node *node)
{
	if (!node->in_image.is_staged)
		return;
	if (node->group.is_recorded) { /* image and sidecar stay as after a death: the next opener completes them */
		tide_image_unlock_write(node->image);
		node->in_image.is_staged = node->image_bitmaps.has_marked = false;
		return;
	}
	tide_image_abort_bitmaps(node->image);
	end_change(node);
}

/* ---- after a group's death ---------------------------------------------------------- */

/* Once the switch is made, something else may follow it, in place of zeroes that mark the end of a header. */
static bool has_switch(const struct tide_driver_switch *sw, const uint8_t *now)
{
	static const uint8_t end[8];
	size_t len = sw->len;

	if (len > sizeof(end) && !memcmp(sw->after + len - sizeof(end), end, sizeof(end)) &&
	    memcmp(sw->before, sw->after, len - sizeof(end)) != 0)
		len -= sizeof(end);
	return !memcmp(now, sw->after, len);
}

/* 1: the file is as it was when the change was staged; 2: it has the change; 0: neither. */
static int compare_switch(int fd, const struct tide_driver_switch *sw, const struct tide_stamp *stamp,
                          struct tide_error *err)
{
	TIDE_AUTOFREE uint8_t *guard = NULL;
	uint8_t now[sizeof(sw->before)];
	struct tide_stamp taken;
	uint64_t size;

	if (tide_sysio_size(fd, &size, err) < 0 || tide_stamp_take(fd, &taken, err) < 0)
		return -1;
	if (!tide_range_is_within(sw->offset, sw->len, size) ||
	    !tide_range_is_within(sw->guard_offset, sw->guard_len, size))
		return 0;
	if (tide_sysio_pread(fd, now, sw->len, sw->offset, false, err) < 0)
		return -1;
	if (has_switch(sw, now))
		return 2;
	if (memcmp(now, sw->before, sw->len) || !tide_stamp_is_equal(&taken, stamp))
		return 0;
	guard = tide_mem_alloc(sw->guard_len + 1, 1, err);
	if (!guard || tide_sysio_pread(fd, guard, sw->guard_len, sw->guard_offset, false, err) < 0)
		return -1;
	return tide_checksum_crc32c(0, guard, sw->guard_len) == sw->guard_crc;
}

/* A record of the image's owner has no more rights than that owner: it changes no other's file. */
static int check_switch_owner(int fd, const char *path, uid_t owner, struct tide_error *err)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		return tide_error_set_sys(err, errno, "Could not access '%s'", path);
	if (S_ISREG(st.st_mode) && (owner == 0 || owner == geteuid() || st.st_uid == owner))
		return 0;
	return tide_error_set(err, TIDE_E_REFUSED, "A record of a transaction names '%s', which its owner does not own",
	                      path);
}

int tide_node_image_switch(const char *path, const struct tide_commit_change *change, uid_t owner,
                           struct tide_error *err)
{
	const struct tide_driver_switch *sw = &change->sw;
	TIDE_AUTOCLOSE int fd = tide_sysio_open(path, O_RDWR | O_NOFOLLOW | O_NONBLOCK, err);
	int rc = -1;

	if (fd >= 0 && check_switch_owner(fd, path, owner, err) < 0)
		return -1;
	if (fd >= 0 && tide_lock_acquire(fd, TIDE_LOCK_WRITE_HELD, TIDE_LOCK_WRITE_UNSHARED, path, err) == 0)
		rc = compare_switch(fd, sw, &change->stamp, err);
	if (rc < 0)
		return tide_error_wrap(err, "Could not complete an interrupted transaction on '%s'", path);
	if (rc != 1)
		return rc == 0;
	if (tide_sysio_pwrite(fd, sw->after, sw->len, sw->offset, err) < 0)
		return -1;
	return fsync(fd) < 0 ? tide_error_set_sys(err, errno, "Could not flush '%s'", path) : 0;
}

bool tide_node_image_is_foreign(const char *path, const struct tide_commit_change *change)
{
	TIDE_AUTOCLOSE int fd = tide_sysio_open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK, NULL);

	return fd >= 0 && compare_switch(fd, &change->sw, &change->stamp, NULL) == 0;
}

void tide_node_image_close(struct tide_node *node)
{
	tide_node_image_release(node);
	tide_image_close(node->image);
	node->image = NULL;
}

/* ---- the set ------------------------------------------------------------------------ */

/* Uses QEMU's words where it has them. */
static int check_change(const struct tide_node *node, const struct tide_sidecar_bitmap *entry, struct tide_error *err)
{
	const struct tide_error *why = &node->image_bitmaps.why_not;

	if (why->code == TIDE_E_LOCKED)
		return tide_node_image_check(node, err);
	if (!why->code && !tide_node_is_owned_by_server(node, entry))
		return 0;
	tide_error_set(err, TIDE_E_REFUSED, "Bitmap '%s' is readonly and cannot be modified", entry->name);
	return why->code ? tide_error_hint(err, "%s", why->msg)
	                 : tide_error_hint(err,
	                                   "it belongs to the server; it can be read, and copied with bitmap-import");
}

static struct tide_bitmap *load(struct tide_node *node, struct tide_sidecar_bitmap *entry, struct tide_error *err)
{
	return load_entry(node, entry, err) < 0 ? NULL : entry->bitmap;
}

static struct tide_bitmap *clear(struct tide_node *node, struct tide_sidecar_bitmap *entry, struct tide_error *err)
{
	struct tide_bitmap *bm = load(node, entry, err);

	if (bm)
		tide_bitmap_clear(bm);
	return bm;
}

const struct tide_bitmap_set_ops tide_node_image_ops = {
	.kind = TIDE_STORE_IMAGE,
	.check_add = tide_node_image_check,
	.check_change = check_change,
	.load = load,
	.clear = clear,
	.stage = tide_node_image_stage,
	.commit = tide_node_image_commit,
};
