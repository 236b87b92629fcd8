#include "write.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "error.h"
#include "lock.h"
#include "mem.h"
#include "sysio.h"

#define BUFFER_SIZE (UINT64_C(4) << 20)
#define FIRST_WINDOW (UINT64_C(64) << 20)
#define CANCEL_MS 50
#define ZERO_STEP (UINT64_C(1) << 30)

struct tide_write {
	struct tide_node *node;
	struct tide_sink *sink;
	struct tide_image_write args;
	bool tracked;                       /* a bitmap records */
	struct tide_sidecar *before;        /* the sidecar's bitmaps without this write; NULL: there is none */
	struct tide_sidecar *before_inside; /* and the image's */
	uint64_t token;
	uint64_t recorded; /* bytes from the offset that are dirty on disk */
	uint64_t done;     /* bytes from the offset that may have changed */
	uint8_t *buf;
	uint64_t ready;    /* bytes of input in buf */
};

static int beyond(const struct tide_write *w, struct tide_error *err)
{
	uint64_t size = tide_image_size(w->node->image);

	tide_error_set(err, TIDE_E_REFUSED, "The write reaches past the end of the disk, which has %" PRIu64 " bytes", size);
	return tide_error_hint(err, "at offset %" PRIu64 " there is room for %" PRIu64 " bytes", w->args.offset,
	                       w->args.offset < size ? size - w->args.offset : 0);
}

/* Fills the buffer with up to len bytes of input, less at its end; a cancel ends the wait for them. */
static int fill_buffer(struct tide_write *w, uint64_t len, struct tide_error *err)
{
	w->ready = 0;
	while (w->ready < len) {
		struct pollfd input = { .fd = w->args.input, .events = POLLIN };
		ssize_t n;

		if (tide_event_is_cancelled(w->sink))
			return tide_error_set(err, TIDE_E_CANCELLED, "Cancelled while waiting for input");
		/* A signal may come just before the wait: look again soon. */
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

/* Reads ahead one buffer of input, and learns its length where that can be known. */
static int look_at_input(struct tide_write *w, struct tide_error *err)
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
		return tide_error_set(err, TIDE_E_REFUSED, "The input ended after %" PRIu64 " of %" PRIu64 " bytes", w->ready,
		                      w->args.length);
	if (eof) {
		w->args.has_length = true;
		w->args.length = w->ready;
	}
	return 0;
}

static int check(struct tide_write *w, struct tide_error *err)
{
	uint64_t size = tide_image_size(w->node->image);

	if (w->args.offset > size || (w->args.has_length && w->args.length > size - w->args.offset))
		return beyond(w, err);
	if (w->args.kind != TIDE_WRITE_DATA)
		return w->args.has_length ? 0 : tide_error_set(err, TIDE_E_USAGE, "This kind of write needs a length");
	if (look_at_input(w, err) < 0)
		return -1;
	return w->ready > size - w->args.offset ? beyond(w, err) : 0;
}

/* Makes the first len bytes dirty in the node; the caller commits. */
static int record(struct tide_write *w, uint64_t len, struct tide_error *err)
{
	len = TIDE_MIN(len, tide_image_size(w->node->image) - w->args.offset);
	if (len && tide_node_record(w->node, w->args.offset, len, err) < 0)
		return -1;
	w->recorded = len;
	if (w->token) {
		w->node->sc->writer = w->token;
		w->node->dirty = true;
	}
	return 0;
}

/* A copy of the bitmaps inside the image, those that record with their contents. */
static int copy_inside(struct tide_write *w, struct tide_error *err)
{
	struct tide_sidecar *inside = w->node->inside;

	for (size_t i = 0; i < inside->n; i++) {
		struct tide_sidecar_bitmap *entry = inside->items[i];

		if (!entry->enabled || entry->in_use)
			continue;
		w->tracked = true;
		if (!tide_node_bitmap(w->node, entry, err))
			return -1;
	}
	w->before_inside = tide_sidecar_copy(inside, err);
	return w->before_inside ? 0 : -1;
}

static int prepare(struct tide_write *w, struct tide_error *err)
{
	if (check(w, err) < 0)
		return -1;
	if (w->args.has_length && w->args.length == 0)
		return 0;
	if (w->node->untracked)
		tide_event_warning(w->sink, w->node->path,
		                   "the image was changed without being tracked; its bitmaps stay inconsistent");
	if (copy_inside(w, err) < 0)
		return -1;
	if (w->node->has_sidecar) {
		w->tracked = true;
		w->before = tide_sidecar_copy(w->node->sc, err);
		if (!w->before || tide_lock_token_new(&w->token, err) < 0 ||
		    tide_lock_token_hold(tide_image_fd(w->node->image), w->token, err) < 0)
			return -1;
	}
	if (!w->tracked)
		return 0;
	return record(w, w->args.has_length ? w->args.length : FIRST_WINDOW, err);
}

int tide_write_prepare(struct tide_node *node, const struct tide_image_write *args, struct tide_sink *sink,
                       struct tide_write **out, struct tide_error *err)
{
	struct tide_write *w = tide_mem_alloc(1, sizeof(*w), err);

	if (!w)
		return -1;
	w->node = node;
	w->sink = sink;
	w->args = *args;
	if (prepare(w, err) < 0) {
		tide_write_free(w);
		return -1;
	}
	*out = w;
	return 0;
}

void tide_write_free(struct tide_write *w)
{
	if (!w)
		return;
	if (w->token && w->node->image)
		tide_lock_token_drop(tide_image_fd(w->node->image), w->token);
	tide_sidecar_free(w->before);
	tide_sidecar_free(w->before_inside);
	free(w->buf);
	free(w);
}

/* ---- writing ----------------------------------------------------------------------- */

/* Makes sure that [0, end) of the write is dirty on disk before it is written. */
static int record_ahead(struct tide_write *w, uint64_t end, struct tide_error *err)
{
	int rc;

	if (!w->tracked || end <= w->recorded)
		return 0;
	if (w->before && tide_node_relock_store(w->node, w->sink, err) < 0)
		return -1;
	rc = record(w, TIDE_MAX(end, w->recorded * 2), err);
	if (rc == 0)
		rc = tide_node_stage(w->node, err);
	if (rc == 0)
		rc = tide_node_commit(w->node, err);
	tide_node_unlock_store(w->node);
	return rc;
}

static int write_input(struct tide_write *w, struct tide_error *err)
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

static int write_step(struct tide_write *w, uint64_t off, uint64_t len, struct tide_error *err)
{
	switch (w->args.kind) {
	case TIDE_WRITE_PATTERN:
		return tide_image_write(w->node->image, w->buf, off, len, err);
	case TIDE_WRITE_ZERO:
		return tide_image_zero(w->node->image, off, len, true, err);
	default:
		return tide_image_discard(w->node->image, off, len, err);
	}
}

static int write_steps(struct tide_write *w, struct tide_error *err)
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

/* The data, and then the file's times too: the stamp must still be right after a power loss. */
static int make_durable(struct tide_write *w, struct tide_error *err)
{
	if (tide_image_flush(w->node->image, err) < 0)
		return -1;
	return tide_image_sync_times(w->node->image, err);
}

static int settle_sidecar(struct tide_write *w, struct tide_error *err)
{
	if (tide_node_relock_store(w->node, w->sink, err) < 0)
		return -1;
	w->before->generation = w->node->sc->generation;
	tide_sidecar_free(w->node->sc);
	w->node->sc = w->before;
	w->before = NULL;
	w->node->dirty = true;
	w->node->sc->writer = 0;
	return 0;
}

static void settle_inside(struct tide_write *w)
{
	tide_sidecar_free(w->node->inside);
	w->node->inside = w->before_inside;
	w->before_inside = NULL;
	for (size_t i = 0; i < w->node->inside->n; i++) {
		struct tide_sidecar_bitmap *entry = w->node->inside->items[i];

		entry->changed = entry->bitmap != NULL;
		w->node->inside_dirty |= entry->changed;
	}
}

/* The bitmaps as they were, with exactly what was written; and the stamp of now. */
static int settle(struct tide_write *w, struct tide_error *err)
{
	int rc = 0;

	if (!w->tracked)
		return 0;
	if (w->before)
		rc = settle_sidecar(w, err);
	if (w->recorded != w->done)
		settle_inside(w);
	if (rc == 0 && w->done)
		rc = tide_node_record(w->node, w->args.offset, w->done, err);
	if (rc == 0)
		rc = tide_node_stage(w->node, err);
	if (rc == 0)
		rc = tide_node_commit(w->node, err);
	tide_node_unlock_store(w->node);
	return rc;
}

int tide_write_run(struct tide_write *w, struct tide_error *err)
{
	struct tide_error late = TIDE_ERROR_INIT;
	int rc = w->args.kind == TIDE_WRITE_DATA ? write_input(w, err) : write_steps(w, err);

	/* Also after a failure: what did reach the image must be durable before it counts as tracked. */
	if (make_durable(w, &late) == 0)
		settle(w, &late);
	if (late.code && rc == 0)
		return tide_error_move(err, &late);
	tide_error_release(&late);
	return rc;
}
