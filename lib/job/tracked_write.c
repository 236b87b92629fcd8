/*
 * One tracked write: of input data, a pattern, zeroes or holes.
 *
 * The order holds throughout: record a range durably, then write it, and only after the data and the file's times are
 * durable, close the log cleanly with the new stamp, or add it to the sidecar of a block device.  The write runs in the
 * caller's thread; a cancel ends it between two pieces.
 */
#include "tracked_write.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"
#include "base/mem.h"
#include "base/range.h"
#include "base/sysio.h"
#include "node/node_image.h"
#include "node/node_log.h"
#include "store/write_log.h"

#define BUFFER_SIZE  (UINT64_C(4) << 20)
#define FIRST_WINDOW (UINT64_C(64) << 20)
#define CANCEL_MS    50
#define ZERO_STEP    (UINT64_C(1) << 30)

struct tide_tracked_write {
	struct tide_node *node;
	struct tide_sink *sink;
	struct tide_image_write args;
	bool logged;                       /* the sidecar has bitmaps: the log records for them, and keeps the stamp */
	bool in_image;                     /* bitmaps inside the image record, too */
	struct tide_sidecar *image_before; /* the bitmaps inside the image before this write */
	struct tide_bitmap *newly_set;     /* the bits that this write has set in the log */
	uint64_t recorded;                 /* bytes from the offset that are dirty on disk */
	uint64_t done;                     /* bytes from the offset that may have changed; never above `recorded` */
	uint8_t *buf;
	uint64_t ready; /* bytes of input in buf */
};

static int beyond(const struct tide_tracked_write *w, struct tide_error *err)
{
	uint64_t size = tide_image_size(w->node->image);

	tide_error_set(err, TIDE_E_REFUSED, "The write extends beyond the end of the disk, which has %" PRIu64 " bytes",
	               size);
	return tide_error_hint(err, "at offset %" PRIu64 " there is room for %" PRIu64 " bytes", w->args.offset,
	                       w->args.offset < size ? size - w->args.offset : 0);
}

/* Fills the buffer with len bytes of input, or fewer at the end of it; a cancel ends the wait. */
static int fill_buffer(struct tide_tracked_write *w, uint64_t len, struct tide_error *err)
{
	w->ready = 0;
	while (w->ready < len) {
		struct pollfd input = { .fd = w->args.input, .events = POLLIN };
		ssize_t n;

		if (tide_event_is_cancelled(w->sink))
			return tide_error_set(err, TIDE_E_CANCELLED, "Cancelled while waiting for input");
		/* A signal may arrive just before poll() begins and would not end it, so each poll is short. */
		if (poll(&input, 1, CANCEL_MS) <= 0)
			continue;
		n = read(w->args.input, w->buf + w->ready, len - w->ready);
		if (n < 0 && errno != EINTR && errno != EAGAIN)
			return tide_error_set_sys(err, errno, "Could not read the input");
		if (n == 0)
			break;
		if (n > 0)
			w->ready += (uint64_t)n;
	}
	return 0;
}

/* Reads the first buffer of input, and determines its length if the input is a file or ends within the buffer. */
static int read_first(struct tide_tracked_write *w, struct tide_error *err)
{
	uint64_t want = w->args.has_length ? TIDE_MIN(w->args.length, BUFFER_SIZE) : BUFFER_SIZE;
	struct stat st;
	off_t pos;
	bool eof;

	if (!w->args.has_length && fstat(w->args.input, &st) == 0 && S_ISREG(st.st_mode) &&
	    (pos = lseek(w->args.input, 0, SEEK_CUR)) >= 0) {
		w->args.has_length = true;
		w->args.length = st.st_size > pos ? (uint64_t)(st.st_size - pos) : 0;
		want = TIDE_MIN(w->args.length, BUFFER_SIZE);
	}
	if (w->args.has_length && w->args.length > tide_image_size(w->node->image) - w->args.offset)
		return beyond(w, err);
	w->buf = tide_mem_aligned(4096, BUFFER_SIZE, err);
	if (!w->buf || fill_buffer(w, want, err) < 0)
		return -1;
	eof = w->ready < want;
	if (eof && w->args.has_length)
		return tide_error_set(err, TIDE_E_REFUSED, "The input ended after %" PRIu64 " of %" PRIu64 " bytes",
		                      w->ready, w->args.length);
	if (eof) {
		w->args.has_length = true;
		w->args.length = w->ready;
	}
	return 0;
}

static int check(struct tide_tracked_write *w, struct tide_error *err)
{
	uint64_t size = tide_image_size(w->node->image);

	if (w->args.offset > size || (w->args.has_length && w->args.length > size - w->args.offset))
		return beyond(w, err);
	if (w->args.kind != TIDE_WRITE_DATA)
		return w->args.has_length ? 0 : tide_error_set(err, TIDE_E_USAGE, "This kind of write needs a length");
	if (read_first(w, err) < 0)
		return -1;
	return w->ready > size - w->args.offset ? beyond(w, err) : 0;
}

static int prepare(struct tide_tracked_write *w, struct tide_error *err)
{
	struct tide_node *node = w->node;

	if (check(w, err) < 0)
		return -1;
	if (w->args.has_length && w->args.length == 0)
		return 0;
	tide_node_log_keep_untracked(node, w->sink);
	w->logged = node->has_sidecar && node->in_sidecar.list->n > 0;
	w->in_image = tide_sidecar_records(node->in_image.list);
	return 0;
}

int tide_tracked_write_prepare(struct tide_node *node, const struct tide_image_write *args, struct tide_sink *sink,
                               struct tide_tracked_write **out, struct tide_error *err)
{
	struct tide_tracked_write *w = tide_mem_alloc(1, sizeof(*w), err);

	if (!w)
		return -1;
	w->node = node;
	w->sink = sink;
	w->args = *args;
	if (prepare(w, err) < 0) {
		tide_tracked_write_free(w);
		return -1;
	}
	*out = w;
	return 0;
}

void tide_tracked_write_free(struct tide_tracked_write *w)
{
	if (!w)
		return;
	tide_sidecar_free(w->image_before);
	tide_bitmap_free(w->newly_set);
	free(w->buf);
	free(w);
}

/* ---- writing ----------------------------------------------------------------------- */

/* Copies the bitmaps inside the image, with the contents of those that record. */
static int copy_in_image(struct tide_tracked_write *w, struct tide_error *err)
{
	struct tide_sidecar *bitmaps = w->node->in_image.list;

	for (size_t i = 0; i < bitmaps->n; i++) {
		if (tide_sidecar_bitmap_records(bitmaps->items[i]) &&
		    !tide_node_bitmap(w->node, bitmaps->items[i], err))
			return -1;
	}
	w->image_before = tide_sidecar_copy(bitmaps, err);
	return w->image_before ? 0 : -1;
}

static int commit_image(struct tide_node *node, struct tide_error *err)
{
	if (!node->in_image.is_dirty)
		return 0;
	return tide_node_image_stage(node, err) < 0 ? -1 : tide_node_image_commit(node, err);
}

/* Makes sure that [0, end) of the write is dirty on disk before it is written. */
static int record_ahead(struct tide_tracked_write *w, uint64_t end, struct tide_error *err)
{
	uint64_t off = w->args.offset, len;

	if (end <= w->recorded)
		return 0;
	len = TIDE_MIN(TIDE_MAX(end, w->recorded * 2), tide_image_size(w->node->image) - off);
	w->recorded = len;
	if (w->logged && tide_write_log_set(w->node->log.file, off, len, w->newly_set, err) < 0)
		return -1;
	if (!w->in_image)
		return 0;
	return tide_node_image_record(w->node, off, len, err) < 0 ? -1 : commit_image(w->node, err);
}

static int begin(struct tide_tracked_write *w, struct tide_error *err)
{
	uint64_t size = tide_image_size(w->node->image);

	if (w->in_image && copy_in_image(w, err) < 0)
		return -1;
	tide_image_watch_closely(w->node->image);
	if (w->logged) {
		if (tide_node_log_begin(w->node, true, false, err) < 0)
			return -1;
		w->newly_set =
		        tide_bitmap_new(size, UINT64_C(1) << tide_write_log_header(w->node->log.file)->shift, err);
		if (!w->newly_set)
			return -1;
	}
	return record_ahead(w, w->args.has_length ? w->args.length : TIDE_MIN(FIRST_WINDOW, size - w->args.offset),
	                    err);
}

static int write_input(struct tide_tracked_write *w, struct tide_error *err)
{
	struct tide_image *image = w->node->image;
	uint64_t off = w->args.offset, pos = 0;

	while (w->ready) {
		uint64_t want = BUFFER_SIZE;

		if (tide_event_is_cancelled(w->sink))
			return tide_error_set(err, TIDE_E_CANCELLED, "Cancelled after %" PRIu64 " bytes", pos);
		if (w->ready > tide_image_size(image) - off - pos)
			return beyond(w, err);
		if (record_ahead(w, pos + w->ready, err) < 0)
			return -1;
		w->done = pos + w->ready;
		if (tide_image_write(image, w->buf, off + pos, w->ready, err) < 0)
			return -1;
		pos += w->ready;
		if (w->args.has_length)
			want = TIDE_MIN(BUFFER_SIZE, w->args.length - pos);
		if (fill_buffer(w, want, err) < 0)
			return -1;
	}
	if (w->args.has_length && pos < w->args.length)
		return tide_error_set(err, TIDE_E_IO, "The input ended after %" PRIu64 " of %" PRIu64 " bytes", pos,
		                      w->args.length);
	return 0;
}

static int write_step(struct tide_tracked_write *w, uint64_t off, uint64_t len, struct tide_error *err)
{
	switch (w->args.kind) {
	case TIDE_WRITE_PATTERN:
		return tide_image_write(w->node->image, w->buf, off, len, err);
	case TIDE_WRITE_ZERO:
		return tide_image_zero(w->node->image, off, len, true, err);
	default:
		/* A server determines what is read afterwards; other images read as zeroes, also at the ends. */
		if (!tide_image_is_file(w->node->image))
			return tide_image_discard(w->node->image, off, len, err);
		return tide_image_zero(w->node->image, off, len, true, err);
	}
}

static int write_steps(struct tide_tracked_write *w, struct tide_error *err)
{
	uint64_t step = w->args.kind == TIDE_WRITE_PATTERN ? BUFFER_SIZE : ZERO_STEP;

	if (w->args.kind == TIDE_WRITE_PATTERN) {
		w->buf = tide_mem_aligned(4096, BUFFER_SIZE, err);
		if (!w->buf)
			return -1;
		memset(w->buf, w->args.pattern, BUFFER_SIZE);
	}
	for (uint64_t pos = 0; pos < w->args.length;) {
		uint64_t n = TIDE_MIN(step, w->args.length - pos);

		if (tide_event_is_cancelled(w->sink))
			return tide_error_set(err, TIDE_E_CANCELLED, "Cancelled after %" PRIu64 " bytes", pos);
		w->done = pos + n;
		if (write_step(w, w->args.offset + pos, n, err) < 0)
			return -1;
		pos += n;
	}
	return 0;
}

/* Syncs the data, then the file's times: the stamp must still be right after a power loss. */
static int make_durable(struct tide_tracked_write *w, struct tide_error *err)
{
	if (tide_image_flush(w->node->image, err) < 0)
		return -1;
	return tide_image_sync_times(w->node->image, err);
}

/* Clears the granules that only this write made dirty and that it did not reach. */
static void unset_unwritten(struct tide_tracked_write *w)
{
	uint64_t granule = tide_bitmap_granularity(w->newly_set), start, len;
	uint64_t off = tide_range_align_up(w->args.offset + w->done, granule);

	if (w->done == 0)
		off = tide_range_align_down(w->args.offset, granule);
	while (off < tide_bitmap_size(w->newly_set) &&
	       tide_bitmap_next_dirty(w->newly_set, off, UINT64_MAX, &start, &len)) {
		tide_write_log_unset(w->node->log.file, start, len);
		off = start + len;
	}
}

/* Puts the bitmaps inside the image back, in memory, to their state before the write. */
static void restore_image_bitmaps(struct tide_tracked_write *w)
{
	tide_sidecar_free(w->node->in_image.list);
	w->node->in_image.list = w->image_before;
	w->image_before = NULL;
	for (size_t i = 0; i < w->node->in_image.list->n; i++) {
		struct tide_sidecar_bitmap *entry = w->node->in_image.list->items[i];

		entry->changed = entry->bitmap != NULL;
		w->node->in_image.is_dirty |= entry->changed;
	}
}

/* Another program wrote to the image: the bitmaps inside it become inconsistent, too. */
static int distrust(struct tide_tracked_write *w, struct tide_error *err)
{
	struct tide_node *node = w->node;

	tide_node_log_warn_others(node, w->sink);
	for (size_t i = 0; w->in_image && i < node->in_image.list->n; i++) {
		node->in_image.list->items[i]->in_use |= tide_sidecar_bitmap_records(node->in_image.list->items[i]);
		node->in_image.is_dirty = true;
	}
	return w->in_image ? commit_image(node, err) : 0;
}

/* Leaves the bitmaps with exactly the written range, and closes the log with the stamp of now. */
static int end(struct tide_tracked_write *w, struct tide_error *err)
{
	if (w->in_image && w->recorded != w->done) {
		restore_image_bitmaps(w);
		if (tide_node_image_record(w->node, w->args.offset, w->done, err) < 0 || commit_image(w->node, err) < 0)
			return -1;
	}
	if (tide_image_others_wrote(w->node->image) && (w->logged || w->in_image) && distrust(w, err) < 0)
		return -1;
	if (!w->logged)
		return 0;
	unset_unwritten(w);
	/* A clean log has the times of a file; only the sidecar describes a device. */
	return tide_image_device(w->node->image)->is_one ? tide_node_log_end(w->node, w->sink, err)
	                                                 : tide_node_log_clean(w->node, err);
}

int tide_tracked_write_run(struct tide_tracked_write *w, struct tide_error *err)
{
	struct tide_error late = TIDE_ERROR_INIT;
	int rc;

	if (w->args.has_length && w->args.length == 0)
		return 0;
	if (begin(w, err) < 0)
		return -1;
	rc = w->args.kind == TIDE_WRITE_DATA ? write_input(w, err) : write_steps(w, err);
	/* Also after a failure: the data that reached the image must be durable before the log is closed cleanly. */
	if (make_durable(w, &late) == 0)
		end(w, &late);
	if (late.code && rc == 0)
		return tide_error_move(err, &late);
	tide_error_release(&late);
	return rc;
}
