/*
 * Queries of bitmaps and images: they open the node for reading, copy the results and close it.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/error.h"
#include "base/mem.h"
#include "bitmap/bitmap_list.h"
#include "session.h"

static struct tide_node *find(struct tide_session *session, const char *id, struct tide_error *err)
{
	struct tide_node *node = tide_session_find(session, id);

	session->replied = false;
	if (!node)
		tide_error_set(err, TIDE_E_REFUSED, "Cannot find device='%s' nor node-name='%s'", id, id);
	return node;
}

static struct tide_node *look(struct tide_session *session, const char *id, struct tide_error *err)
{
	struct tide_node *node = find(session, id, err);

	return node && tide_node_open(node, TIDE_NODE_READ, false, &session->sink, err) == 0 ? node : NULL;
}

/* For the bitmaps only, which can be read while a writer records in them. */
static struct tide_node *look_at_bitmaps(struct tide_session *session, const char *id, struct tide_error *err)
{
	struct tide_node *node = find(session, id, err);
	int rc;

	if (!node)
		return NULL;
	node->may_share_live = true;
	rc = tide_node_open_bitmaps(node, TIDE_NODE_READ, false, &session->sink, err);
	node->may_share_live = false;
	return rc < 0 ? NULL : node;
}

int tide_query_bitmaps(struct tide_session *session, const char *id, struct tide_bitmap_list **list,
                       struct tide_error *err)
{
	struct tide_node *node = look_at_bitmaps(session, id, err);
	int rc = node ? tide_node_list(node, list, err) : -1;

	tide_session_close_nodes(session);
	return rc;
}

/* ---- dump -------------------------------------------------------------------------- */

static int dump_ranges(const struct tide_bitmap *bm, struct tide_dump *dump, struct tide_error *err)
{
	uint64_t off = 0, start, len;
	size_t room = 0;

	while (off < dump->disk_size && tide_bitmap_next_dirty(bm, off, UINT64_MAX, &start, &len)) {
		if (dump->n == room) {
			struct tide_range *grown;

			room = room ? room * 2 : 64;
			grown = tide_mem_realloc(dump->dirty, room, sizeof(*grown), err);
			if (!grown)
				return -1;
			dump->dirty = grown;
		}
		dump->dirty[dump->n++] = (struct tide_range){ start, len };
		off = start + len;
	}
	return 0;
}

static int dump_bitmap(const struct tide_bitmap *bm, struct tide_dump **out, struct tide_error *err)
{
	struct tide_dump *dump = tide_mem_alloc(1, sizeof(*dump), err);

	if (!dump)
		return -1;
	dump->disk_size = tide_bitmap_size(bm);
	dump->granularity = tide_bitmap_granularity(bm);
	dump->count = tide_bitmap_count(bm) * dump->granularity;
	if (dump_ranges(bm, dump, err) < 0) {
		tide_dump_free(dump);
		return -1;
	}
	*out = dump;
	return 0;
}

/* The contents of a usable bitmap.  The node stays open. */
static struct tide_bitmap *find_contents(struct tide_session *session, const char *id, const char *name,
                                         struct tide_error *err)
{
	struct tide_node *node = look_at_bitmaps(session, id, err);
	struct tide_sidecar_bitmap *entry = node ? tide_node_find(node, name, err) : NULL;

	if (!entry)
		return NULL;
	if (entry->in_use) {
		tide_error_set(err, TIDE_E_REFUSED, "Bitmap '%s' is inconsistent and cannot be used", name);
		return NULL;
	}
	return tide_node_bitmap(node, entry, err);
}

int tide_query_dump(struct tide_session *session, const char *id, const char *name, struct tide_dump **dump,
                    struct tide_error *err)
{
	const struct tide_bitmap *bm = find_contents(session, id, name, err);
	int rc = bm ? dump_bitmap(bm, dump, err) : -1;

	tide_session_close_nodes(session);
	return rc;
}

int tide_query_sha256(struct tide_session *session, const char *id, const char *name, char hex[65],
                      struct tide_error *err)
{
	const struct tide_bitmap *bm = find_contents(session, id, name, err);

	if (bm)
		tide_bitmap_sha256(bm, hex);
	tide_session_close_nodes(session);
	return bm ? 0 : -1;
}

void tide_dump_free(struct tide_dump *dump)
{
	if (!dump)
		return;
	free(dump->dirty);
	free(dump);
}

/* ---- image ------------------------------------------------------------------------- */

static int copy_text(char **to, const char *from, struct tide_error *err)
{
	if (!from)
		return 0;
	/* NOLINTNEXTLINE(clang-analyzer-core.NullDereference): a node has an image, so there is a description */
	*to = tide_mem_strdup(from, err);
	return *to ? 0 : -1;
}

static int copy_features(struct tide_image_info *out, const struct tide_driver_info *info, struct tide_error *err)
{
	out->features = tide_mem_alloc(info->n_features + 1, sizeof(*out->features), err);
	if (!out->features)
		return -1;
	for (size_t i = 0; i < info->n_features; i++) {
		const struct tide_feature *f = &info->features[i];
		struct tide_feature *to = tide_mem_alloc(1, sizeof(*to), err);

		if (!to)
			return -1;
		out->features[out->n_features++] = to;
		to->kind = f->kind;
		to->number = f->number;
		if (copy_text(&to->key, f->key, err) < 0 || copy_text(&to->text, f->text, err) < 0)
			return -1;
	}
	return 0;
}

/* The bitmaps that the image file itself holds, as its directory says; their contents are not read. */
static int copy_inside(struct tide_image_info *out, const struct tide_driver_info *info, struct tide_error *err)
{
	out->bitmaps = tide_bitmap_list_new(info->n_bitmaps, err);
	if (!out->bitmaps)
		return -1;
	for (size_t i = 0; i < info->n_bitmaps; i++) {
		struct tide_bitmap_info *to = tide_bitmap_list_add(out->bitmaps, info->bitmaps[i].name, err);

		if (!to)
			return -1;
		to->granularity = info->bitmaps[i].granularity;
		to->recording = info->bitmaps[i].enabled;
		to->inconsistent = info->bitmaps[i].in_use;
		to->persistent = true;
		to->store = TIDE_STORE_IMAGE;
	}
	return 0;
}

static int describe(struct tide_image *image, const char *filename, struct tide_image_info *out, struct tide_error *err)
{
	const struct tide_driver_info *info = tide_image_info(image);
	struct stat st;

	out->virtual_size = info->size;
	out->cluster_size = info->cluster_size;
	out->dirty = info->dirty;
	out->corrupt = info->corrupt;
	out->snapshots = info->snapshots;
	if (info->snapshots && tide_image_snapshots(image, &out->snapshot, err) < 0)
		return -1;
	out->is_remote = !tide_image_is_file(image);
	if (!out->is_remote && fstat(tide_image_fd(image), &st) == 0)
		out->actual_size = (uint64_t)st.st_blocks * 512;
	if (copy_text(&out->filename, filename, err) < 0 ||
	    copy_text(&out->format, tide_image_format_name(image), err) < 0 ||
	    copy_text(&out->backing_filename, info->backing, err) < 0 ||
	    copy_text(&out->backing_format, info->backing_format, err) < 0 || copy_features(out, info, err) < 0)
		return -1;
	if (info->backing) {
		out->backing_path = tide_image_backing_path(image, filename, err);
		if (!out->backing_path)
			return -1;
	}
	return 0;
}

static int query_image(struct tide_session *session, const char *id, struct tide_image_info **out,
                       struct tide_error *err)
{
	struct tide_node *node = look(session, id, err);
	struct tide_image_info **next = out;
	const char *name;

	if (!node)
		return -1;
	name = node->path;
	for (struct tide_image *image = node->image; image; image = tide_image_backing(image)) {
		struct tide_image_info *info = tide_mem_alloc(1, sizeof(*info), err);

		if (!info)
			return -1;
		*next = info;
		if (describe(image, name, info, err) < 0)
			return -1;
		if (image != node->image && copy_inside(info, tide_image_info(image), err) < 0)
			return -1;
		name = info->backing_path;
		next = &info->backing;
	}
	if (node->has_sidecar && copy_text(&(*out)->sidecar, node->sidecar_path, err) < 0)
		return -1;
	return tide_node_list(node, &(*out)->bitmaps, err);
}

int tide_query_image(struct tide_session *session, const char *id, struct tide_image_info **info,
                     struct tide_error *err)
{
	int rc;

	*info = NULL;
	rc = query_image(session, id, info, err);
	tide_session_close_nodes(session);
	if (rc < 0) {
		tide_image_info_free(*info);
		*info = NULL;
	}
	return rc;
}

void tide_image_info_free(struct tide_image_info *info)
{
	while (info) {
		struct tide_image_info *backing = info->backing;

		free(info->filename);
		free(info->format);
		for (size_t i = 0; info->features && i < info->n_features; i++) {
			free(info->features[i]->key);
			free(info->features[i]->text);
			free(info->features[i]);
		}
		free(info->features);
		tide_driver_snapshots_free(info->snapshot);
		tide_bitmap_list_free(info->bitmaps);
		free(info->sidecar);
		free(info->backing_filename);
		free(info->backing_path);
		free(info->backing_format);
		free(info);
		info = backing;
	}
}
