/*
 * Replies of queries in the form of QMP: BlockDirtyInfo, ImageInfo and related types (QEMU 7.2,
 * qapi/block-core.json), with Tidemark's additions.
 */
#include <stdlib.h>

#include "base/error.h"
#include "base/json.h"
#include "base/mem.h"
#include "reply.h"

int tide_reply_send(struct tide_session *session, struct tide_json_writer *w)
{
	struct tide_error err = TIDE_ERROR_INIT;
	TIDE_AUTOFREE char *text = NULL;
	int rc;

	if (session->sink.id)
		tide_json_raw(w, "id", session->sink.id);
	tide_json_end(w, '}');
	text = tide_strbuf_steal(w->sb, &err);
	if (!text) {
		rc = tide_session_reply_error(session, &err);
		tide_error_release(&err);
		return rc < 0 ? rc : -1;
	}
	session->replied = true;
	return tide_event_line(&session->sink, text);
}

static void put_bitmap(struct tide_json_writer *w, const struct tide_bitmap_info *info, bool with_store)
{
	tide_json_begin(w, NULL, '{');
	tide_json_string(w, "name", info->name);
	tide_json_bool(w, "recording", info->recording);
	tide_json_bool(w, "persistent", info->persistent);
	tide_json_bool(w, "busy", info->busy);
	if (info->inconsistent)
		tide_json_bool(w, "inconsistent", true);
	tide_json_uint(w, "granularity", info->granularity);
	tide_json_uint(w, "count", info->count);
	if (with_store)
		tide_json_string(w, "store", info->store == TIDE_STORE_IMAGE ? "image" : "sidecar");
	if (info->base_id) {
		tide_json_begin(w, "base", '{');
		tide_json_string(w, "id", info->base_id);
		tide_json_string(w, "path", info->base_path);
		tide_json_int(w, "time", info->base_time);
		tide_json_end(w, '}');
	}
	tide_json_end(w, '}');
}

void tide_reply_put_bitmaps(struct tide_json_writer *w, const char *key, const struct tide_bitmap_list *list,
                            bool with_store)
{
	tide_json_begin(w, key, '[');
	for (size_t i = 0; i < list->n; i++)
		put_bitmap(w, list->items[i], with_store);
	tide_json_end(w, ']');
}

int tide_reply_bitmaps(struct tide_session *session, const struct tide_bitmap_list *list)
{
	struct tide_strbuf sb = TIDE_STRBUF_INIT;
	struct tide_json_writer w = { &sb, false };

	tide_json_begin(&w, NULL, '{');
	tide_reply_put_bitmaps(&w, "return", list, true);
	return tide_reply_send(session, &w);
}

static void put_range(struct tide_json_writer *w, uint64_t start, uint64_t end, bool dirty)
{
	if (start == end)
		return;
	tide_json_begin(w, NULL, '{');
	tide_json_uint(w, "start", start);
	tide_json_uint(w, "length", end - start);
	tide_json_bool(w, "dirty", dirty);
	tide_json_end(w, '}');
}

int tide_reply_dump(struct tide_session *session, const struct tide_dump *dump)
{
	struct tide_strbuf sb = TIDE_STRBUF_INIT;
	struct tide_json_writer w = { &sb, false };
	uint64_t off = 0;

	tide_json_begin(&w, NULL, '{');
	tide_json_begin(&w, "return", '[');
	for (size_t i = 0; i < dump->n; i++) {
		const struct tide_range *r = &dump->dirty[i];

		put_range(&w, off, r->off, false);
		put_range(&w, r->off, r->off + r->len, true);
		off = r->off + r->len;
	}
	put_range(&w, off, dump->disk_size, false);
	tide_json_end(&w, ']');
	return tide_reply_send(session, &w);
}

int tide_reply_sha256(struct tide_session *session, const char *hex)
{
	struct tide_strbuf sb = TIDE_STRBUF_INIT;
	struct tide_json_writer w = { &sb, false };

	tide_json_begin(&w, NULL, '{');
	tide_json_begin(&w, "return", '{');
	tide_json_string(&w, "sha256", hex);
	tide_json_end(&w, '}');
	return tide_reply_send(session, &w);
}

/* Qcow2BitmapInfo of the bitmaps inside the image, in directory order.  The list has the newest one first. */
static void put_inside(struct tide_json_writer *w, const struct tide_bitmap_list *list, bool newest_first)
{
	size_t n = 0;

	for (size_t i = 0; i < list->n; i++)
		n += list->items[i]->store == TIDE_STORE_IMAGE;
	if (n == 0)
		return;
	tide_json_begin(w, "bitmaps", '[');
	for (size_t k = 0; k < list->n; k++) {
		const struct tide_bitmap_info *info = list->items[newest_first ? list->n - 1 - k : k];

		if (info->store != TIDE_STORE_IMAGE)
			continue;
		tide_json_begin(w, NULL, '{');
		tide_json_begin(w, "flags", '[');
		if (info->inconsistent)
			tide_json_string(w, NULL, "in-use");
		if (info->recording)
			tide_json_string(w, NULL, "auto");
		tide_json_end(w, ']');
		tide_json_string(w, "name", info->name);
		tide_json_uint(w, "granularity", info->granularity);
		tide_json_end(w, '}');
	}
	tide_json_end(w, ']');
}

static void put_features(struct tide_json_writer *w, const struct tide_image_info *info, bool top)
{
	if (info->n_features == 0)
		return;
	tide_json_begin(w, "format-specific", '{');
	tide_json_string(w, "type", info->format);
	tide_json_begin(w, "data", '{');
	for (size_t i = 0; i < info->n_features; i++) {
		const struct tide_feature *f = info->features[i];

		if (f->kind == TIDE_FEATURE_BOOL)
			tide_json_bool(w, f->key, f->number != 0);
		else if (f->kind == TIDE_FEATURE_NUMBER)
			tide_json_uint(w, f->key, f->number);
		else
			tide_json_string(w, f->key, f->text);
	}
	put_inside(w, info->bitmaps, top);
	tide_json_end(w, '}');
	tide_json_end(w, '}');
}

/* A list of SnapshotInfo. */
static void put_snapshots(struct tide_json_writer *w, struct tide_snapshot *const *list)
{
	if (!list)
		return;
	tide_json_begin(w, "snapshots", '[');
	for (; *list; list++) {
		const struct tide_snapshot *s = *list;

		tide_json_begin(w, NULL, '{');
		if (s->has_icount)
			tide_json_uint(w, "icount", s->icount);
		tide_json_uint(w, "vm-clock-nsec", s->vm_clock_nsec);
		tide_json_string(w, "name", s->name);
		tide_json_uint(w, "date-sec", s->date_sec);
		tide_json_uint(w, "date-nsec", s->date_nsec);
		tide_json_uint(w, "vm-clock-sec", s->vm_clock_sec);
		tide_json_string(w, "id", s->id);
		tide_json_uint(w, "vm-state-size", s->vm_state_size);
		tide_json_end(w, '}');
	}
	tide_json_end(w, ']');
}

static void put_image(struct tide_json_writer *w, const char *key, const struct tide_image_info *info, bool top)
{
	tide_json_begin(w, key, '{');
	tide_json_string(w, "filename", info->filename);
	tide_json_string(w, "format", info->format);
	tide_json_uint(w, "virtual-size", info->virtual_size);
	if (!info->is_remote)
		tide_json_uint(w, "actual-size", info->actual_size);
	if (info->cluster_size)
		tide_json_uint(w, "cluster-size", info->cluster_size);
	tide_json_bool(w, "dirty-flag", info->dirty);
	put_snapshots(w, info->snapshot);
	put_features(w, info, top);
	if (info->backing_filename) {
		tide_json_string(w, "backing-filename", info->backing_filename);
		tide_json_string(w, "full-backing-filename", info->backing_path);
	}
	if (info->backing_format)
		tide_json_string(w, "backing-filename-format", info->backing_format);
	if (top) {
		if (info->sidecar)
			tide_json_string(w, "sidecar", info->sidecar);
		tide_reply_put_bitmaps(w, "bitmaps", info->bitmaps, true);
	}
}

int tide_reply_image(struct tide_session *session, const struct tide_image_info *info)
{
	struct tide_strbuf sb = TIDE_STRBUF_INIT;
	struct tide_json_writer w = { &sb, false };
	size_t depth = 0;

	tide_json_begin(&w, NULL, '{');
	for (const struct tide_image_info *i = info; i; i = i->backing, depth++)
		put_image(&w, depth ? "backing-image" : "return", i, depth == 0);
	while (depth--)
		tide_json_end(&w, '}');
	return tide_reply_send(session, &w);
}

/* ---- block devices ----------------------------------------------------------------- */

/* ImageInfo of the whole chain. */
static void put_chain(struct tide_json_writer *w, const struct tide_image_info *info)
{
	size_t depth = 0;

	for (; info; info = info->backing, depth++)
		put_image(w, depth ? "backing-image" : "image", info, false);
	while (depth--)
		tide_json_end(w, '}');
}

/* BlockDeviceInfo, in the parts that apply to an image that no guest uses. */
static void put_node(struct tide_json_writer *w, const char *key, const struct tide_reply_node *node)
{
	uint64_t depth = 0;

	for (const struct tide_image_info *i = node->info->backing; i; i = i->backing)
		depth++;
	tide_json_begin(w, key, '{');
	put_chain(w, node->info);
	tide_json_bool(w, "ro", false);
	tide_json_string(w, "node-name", node->id);
	tide_json_uint(w, "backing_file_depth", depth);
	tide_json_string(w, "drv", node->info->format);
	tide_json_bool(w, "encrypted", false);
	if (node->info->bitmaps->n)
		tide_reply_put_bitmaps(w, "dirty-bitmaps", node->info->bitmaps, false);
	tide_json_string(w, "file", node->info->filename);
	if (node->info->backing_path)
		tide_json_string(w, "backing_file", node->info->backing_path);
	tide_json_end(w, '}');
}

int tide_reply_nodes(struct tide_session *session, const struct tide_reply_node *nodes, size_t n)
{
	struct tide_strbuf sb = TIDE_STRBUF_INIT;
	struct tide_json_writer w = { &sb, false };

	tide_json_begin(&w, NULL, '{');
	tide_json_begin(&w, "return", '[');
	while (n-- > 0)
		put_node(&w, NULL, &nodes[n]);
	tide_json_end(&w, ']');
	return tide_reply_send(session, &w);
}

int tide_reply_devices(struct tide_session *session, const struct tide_reply_node *nodes, size_t n)
{
	struct tide_strbuf sb = TIDE_STRBUF_INIT;
	struct tide_json_writer w = { &sb, false };

	tide_json_begin(&w, NULL, '{');
	tide_json_begin(&w, "return", '[');
	for (size_t i = 0; i < n; i++) {
		tide_json_begin(&w, NULL, '{');
		tide_json_string(&w, "device", nodes[i].id);
		tide_json_bool(&w, "locked", false);
		tide_json_bool(&w, "removable", true);
		put_node(&w, "inserted", &nodes[i]);
		tide_json_string(&w, "type", "unknown");
		tide_json_end(&w, '}');
	}
	tide_json_end(&w, ']');
	return tide_reply_send(session, &w);
}
