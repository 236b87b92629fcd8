/*
 * A session for tests: what it delivers is collected, and images and bitmaps of eight granules are made and shown as
 * words, "x.......": the first granule is dirty.
 *
 *     struct sample s;
 *
 *     sample_begin(&s);
 *     sample_disk(&s, "d", NULL);             // a memory disk, whose image is a drive of the session
 *     sample_put(&s, "d", "b", "x.......");   // with a bitmap
 *     …
 *     CHECK_STR(sample_show("d", "b"), "x......x");
 *     sample_end(&s);
 */
#ifndef TIDE_SESSION_SAMPLE_H
#define TIDE_SESSION_SAMPLE_H

#include <fcntl.h>
#include <sys/stat.h>

#include "base/error.h"
#include "base/mem.h"
#include "base/strbuf.h"
#include "memory_driver.h"
#include "node/node.h"
#include "request/session.h"
#include "unit.h"

#define GRANULE   65536u
#define GRANULES  8u
#define DISK_SIZE (GRANULES * GRANULE)
#define DISKS_MAX 3u

struct sample {
	struct tide_session *session;
	struct tide_strbuf lines;    /* replies and events without their timestamps, a newline after each */
	struct tide_strbuf warnings; /* the same */
	struct memory_disk *disk[DISKS_MAX];
	void (*on_line)(struct sample *s, const char *json); /* called for each line; NULL: nothing */
	void (*on_warning)(struct sample *s, const char *text);
};

static inline int sample_line(void *data, const char *json)
{
	struct sample *s = data;
	const char *end = strstr(json, "}, \"event\"");

	if (!strncmp(json, "{\"timestamp\"", 12) && end)
		tide_strbuf_addf(&s->lines, "{%s\n", end + 3);
	else
		tide_strbuf_addf(&s->lines, "%s\n", json);
	if (s->on_line)
		s->on_line(s, json);
	return 0;
}

static inline void sample_warning(void *data, const char *image, const char *text)
{
	struct sample *s = data;

	tide_strbuf_addf(&s->warnings, "%s\n", text);
	if (s->on_warning)
		s->on_warning(s, text);
}

/* Begins in an empty directory. */
static inline void sample_begin(struct sample *s)
{
	struct tide_session_options options = { .data = s, .line = sample_line, .warning = sample_warning };
	struct tide_error err = TIDE_ERROR_INIT;

	unit_rmdir();
	*s = (struct sample){ .lines = TIDE_STRBUF_INIT, .warnings = TIDE_STRBUF_INIT };
	s->session = tide_session_new(&options, &err);
	if (!CHECK_PTR(s->session, &err))
		exit(1);
}

static inline void sample_end(struct sample *s)
{
	tide_session_free(s->session);
	for (size_t i = 0; i < DISKS_MAX; i++)
		memory_disk_free(s->disk[i]);
	tide_strbuf_release(&s->lines);
	tide_strbuf_release(&s->warnings);
}

static inline const char *sample_text(const struct tide_strbuf *text)
{
	return text->len ? text->buf : "";
}

static inline void sample_forget_lines(struct sample *s)
{
	tide_strbuf_release(&s->lines);
	tide_strbuf_release(&s->warnings);
}

/* ---- images ---- */

/* The drive's id is the name of its file. */
static inline struct tide_node *sample_drive(struct sample *s, const char *id)
{
	struct tide_drive drive = { .id = id, .path = unit_path(id) };
	struct tide_error err = TIDE_ERROR_INIT;

	CHECK_OK(tide_session_add_drive(s->session, &drive, NULL, &err), &err);
	return tide_session_find(s->session, id);
}

/* script NULL: all of it is data, and read by the driver, not mapped. */
static inline struct memory_disk *sample_disk(struct sample *s, const char *id, const struct memory_script *script)
{
	static const struct memory_script plain = { .size = DISK_SIZE, .unmapped = true };
	struct tide_error err = TIDE_ERROR_INIT;
	size_t i = 0;

	while (s->disk[i])
		i++;
	s->disk[i] = memory_disk_new(unit_path(id), script ? script : &plain, &err);
	if (!CHECK_PTR(s->disk[i], &err))
		exit(1);
	memory_disk_fill(s->disk[i], 0, memory_disk_size(s->disk[i]), 1);
	sample_drive(s, id);
	return s->disk[i];
}

/* A new, empty image in a real file. */
static inline struct tide_node *sample_file(struct sample *s, const char *id, const char *format)
{
	struct tide_image_create create = {
		.path = unit_path(id), .format = format, .has_size = true, .size = DISK_SIZE
	};
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_txn *txn = tide_txn_new(s->session, &err);

	CHECK(txn && CHECK_OK(tide_txn_image_create(txn, &create, &err), &err) &&
	      CHECK_OK(tide_txn_run(txn, &err), &err));
	tide_txn_free(txn);
	sample_forget_lines(s);
	return sample_drive(s, id);
}

/* The image's file was changed at this time. */
static inline void sample_set_time(const char *id, time_t seconds)
{
	const struct timespec times[2] = { { seconds, 0 }, { seconds, 0 } };

	CHECK(utimensat(AT_FDCWD, unit_path(id), times, 0) == 0);
}

/* ---- nodes ---- */

static inline struct tide_node *sample_open(struct sample *s, const char *id, enum tide_node_mode mode)
{
	struct tide_node *node = tide_session_find(s->session, id);
	struct tide_error err = TIDE_ERROR_INIT;

	if (!CHECK_OK(tide_node_open(node, mode, mode != TIDE_NODE_READ, &s->session->sink, &err), &err))
		exit(1);
	return node;
}

/* Puts the changes on disk, and closes the node. */
static inline void sample_commit(struct tide_node *node)
{
	struct tide_error err = TIDE_ERROR_INIT;

	CHECK(CHECK_OK(tide_node_stage(node, &err), &err) && CHECK_OK(tide_node_commit(node, &err), &err));
	tide_node_close(node);
}

static inline void sample_set_bits(struct tide_bitmap *bm, const char *bits)
{
	for (uint64_t i = 0; bits[i]; i++) {
		if (bits[i] == 'x')
			CHECK(tide_bitmap_set(bm, i * GRANULE, 1, NULL) == 0);
	}
}

/* A new bitmap in an open node. */
static inline struct tide_sidecar_bitmap *sample_add(struct tide_node *node, const char *name, const char *bits,
                                                     enum tide_store_kind store)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_sidecar_bitmap *entry = tide_node_add(node, name, GRANULE, store, &err);
	struct tide_bitmap *bm;

	if (!CHECK_PTR(entry, &err))
		exit(1);
	entry->enabled = true;
	bm = tide_node_bitmap_for_change(node, entry, &err);
	if (CHECK_PTR(bm, &err))
		sample_set_bits(bm, bits);
	return entry;
}

/* The same on disk. */
static inline void sample_put(struct sample *s, const char *id, const char *name, const char *bits)
{
	struct tide_node *node = sample_open(s, id, TIDE_NODE_EDIT_BITMAPS);

	sample_add(node, name, bits, TIDE_STORE_SIDECAR);
	sample_commit(node);
}

/* The next opener has nothing to repair. */
static inline void sample_check_settled(struct sample *s, const char *id)
{
	sample_forget_lines(s);
	tide_node_close(sample_open(s, id, TIDE_NODE_READ));
	CHECK_STR(sample_text(&s->warnings), "");
}

/* ---- bitmaps in words ---- */

static inline const char *sample_bits(const struct tide_bitmap *bm)
{
	static char text[4 * GRANULES + 1];
	size_t n = 0;

	for (; n < 4 * GRANULES && n * GRANULE < tide_bitmap_size(bm); n++)
		text[n] = tide_bitmap_test(bm, n * GRANULE) ? 'x' : '.';
	text[n] = '\0';
	return text;
}

/*
 * The bitmap as another program sees it: its granules, and " busy", " disabled" or "inconsistent"; "none" if there
 * is no such bitmap.
 */
static inline const char *sample_show(const char *id, const char *name)
{
	static char text[4][128];
	static unsigned next;
	char *out = text[next++ % 4];
	struct tide_sink sink;
	struct tide_session_options options = { 0 };
	struct tide_drive drive = { .id = id, .path = unit_path(id) };
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_node *node = tide_node_new(&drive, &err);
	struct tide_sidecar_bitmap *entry;
	struct tide_bitmap *bm;

	tide_event_init(&sink, &options);
	node->may_share_live = true;
	strcpy(out, "none");
	if (CHECK_OK(tide_node_open(node, TIDE_NODE_READ, false, &sink, &err), &err) && tide_node_has(node, name)) {
		entry = tide_node_find(node, name, &err);
		bm = CHECK_PTR(entry, &err) && !entry->in_use ? tide_node_bitmap(node, entry, &err) : NULL;
		snprintf(out, sizeof(text[0]), "%s%s%s%s", bm ? sample_bits(bm) : "", entry->token ? " busy" : "",
		         entry->enabled ? "" : " disabled", entry->untracked || entry->in_use ? " inconsistent" : "");
	}
	tide_error_release(&err);
	tide_node_free(node);
	tide_event_release(&sink);
	return out;
}

#endif
