/*
 * Targets as nodes: opening one with its sidecar, recording a job's writes in its bitmaps, and the end (target_node.h).
 *
 * The image is watched as one change from record to end: the copy engine writes to its file in ways of its own.
 */
#include "target_node.h"

#include <string.h>
#include <sys/stat.h>

#include "base/error.h"
#include "base/mem.h"
#include "node/node_log.h"
#include "store/write_log.h"

static int open_node(struct tide_node *node, const struct tide_node *source, struct tide_sink *sink,
                     struct tide_error *err)
{
	if (node->format && !tide_image_find_driver(node->format))
		return tide_error_set(err, TIDE_E_REFUSED, "Unknown file format '%s'", node->format);
	node->want.dry_run = source->want.dry_run;
	if (tide_node_open(node, TIDE_NODE_WRITE_DATA, false, sink, err) < 0)
		return -1;
	if (node->has_sidecar)
		return 0;
	tide_error_set(err, TIDE_E_REFUSED, "'%s' has no bitmaps in '%s'", node->path, node->sidecar);
	return tide_error_hint(err, "omit --sidecar if no bitmap is to record the write");
}

int tide_target_node_open(struct tide_target *target, const char *path, const char *format, const char *sidecar,
                          const struct tide_node *source, struct tide_sink *sink, struct tide_node **out,
                          struct tide_error *err)
{
	struct tide_drive drive = { .path = path, .format = format, .sidecar = sidecar, .allow = source->allow };
	struct tide_node *node = tide_node_new(&drive, err);

	if (!node)
		return -1;
	if (open_node(node, source, sink, err) < 0 || tide_target_adopt(target, node->image, path, err) < 0) {
		tide_node_free(node);
		return -1;
	}
	*out = node;
	return 0;
}

/* One sync for all ranges. */
int tide_target_node_record(struct tide_node *node, const struct tide_bitmap *todo, struct tide_error *err)
{
	uint64_t off = 0, len;

	if (tide_node_log_begin(node, false, tide_sidecar_records(node->in_image.list), err) < 0)
		return -1;
	for (; tide_bitmap_next_dirty(todo, off, UINT64_MAX, &off, &len); off += len) {
		if (tide_write_log_set(node->log.file, off, len, NULL, err) < 0)
			return -1;
	}
	if (tide_write_log_sync(node->log.file, err) < 0)
		return -1;
	tide_image_change_begin(node->image, false);
	return 0;
}

int tide_target_node_end(struct tide_node *node, struct tide_sink *sink, struct tide_error *err)
{
	tide_image_change_end(node->image, false);
	if (tide_image_flush(node->image, err) < 0 || tide_image_sync_times(node->image, err) < 0)
		return -1;
	if (tide_image_others_wrote(node->image))
		tide_node_log_warn_others(node, sink);
	return tide_node_log_end(node, sink, err);
}
