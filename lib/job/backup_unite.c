/*
 * Bitmaps of one name in an image and its backing images.
 *
 * libvirt's checkpoints make them: before a snapshot the bitmap of the image records, after it a bitmap of the same
 * name in the overlay, and what was written since the last backup is what either of them has.  QEMU leaves it to
 * libvirt to unite them.  Here an incremental backup copies the ranges of all of them, because one of the top image
 * alone would lack what was written before the snapshot.
 */
#include <string.h>
#include <unistd.h>

#include "backup_job.h"
#include "base/error.h"
#include "base/mem.h"

static void free_node(struct tide_node **node)
{
	tide_node_free(*node);
}

static bool has_inside(const struct tide_image *image, const char *name)
{
	const struct tide_driver_info *info = tide_image_info(image);

	for (size_t i = 0; i < info->n_bitmaps; i++) {
		if (!strcmp(info->bitmaps[i].name, name))
			return true;
	}
	return false;
}

/* Opens a backing image with its bitmaps.  *node NULL: it cannot have a bitmap of this name. */
static int open_link(const struct tide_image *link, const char *name, unsigned allow, struct tide_sink *sink,
                     struct tide_node **node, struct tide_error *err)
{
	struct tide_drive drive = {
		.id = "backing",
		.path = tide_image_path(link),
		.format = tide_image_format_name(link),
		.allow = allow,
	};
	TIDE_AUTOFREE char *sidecar = NULL;
	struct tide_error why = TIDE_ERROR_INIT;
	bool nameless = false;

	*node = NULL;
	if (!tide_image_is_file(link))
		return 0;
	sidecar = tide_store_path(drive.path, NULL, &nameless, &why);
	/* A device without a default sidecar path has no bitmaps. */
	if (!sidecar && !nameless)
		return tide_error_move(err, &why);
	tide_error_release(&why);
	if (!has_inside(link, name) && (!sidecar || access(sidecar, F_OK) < 0))
		return 0;
	*node = tide_node_new(&drive, err);
	if (!*node)
		return -1;
	return tide_node_open_bitmaps(*node, TIDE_NODE_READ, false, sink, err);
}

/* Adds the bits of a bitmap to those of the disk above it, which may have another size. */
static int add(struct tide_bitmap *to, const struct tide_bitmap *from, struct tide_error *err)
{
	TIDE_AUTOBITMAP struct tide_bitmap *own = tide_bitmap_copy(from, err);

	if (!own || tide_bitmap_resize(own, tide_bitmap_size(to), err) < 0)
		return -1;
	return tide_bitmap_merge(to, own, err);
}

static int unite_link(const struct tide_image *link, const char *name, const struct tide_node *top,
                      struct tide_sink *sink, struct tide_bitmap *into, struct tide_error *err)
{
	TIDE_CLEANUP(free_node) struct tide_node *node = NULL;
	struct tide_sidecar_bitmap *entry;
	struct tide_bitmap *bm;

	if (open_link(link, name, top->allow, sink, &node, err) < 0)
		return -1;
	if (!node || !tide_node_has(node, name))
		return 0;
	entry = tide_node_find_usable(node, name, 0, err);
	bm = entry ? tide_node_bitmap(node, entry, err) : NULL;
	if (!bm)
		return -1;
	if (tide_bitmap_count(bm) == 0 || !into)
		return 0;
	tide_event_warning(
	        sink, top->path,
	        "the backing image '%s' has a bitmap '%s' too, and what is dirty there is copied as well; to "
	        "unite the two: bitmap-merge '%s' '%s' '%s#%s', and then bitmap-remove '%s' '%s'",
	        node->path, name, top->path, name, node->path, name, node->path, name);
	return add(into, bm, err);
}

int tide_backup_unite(const struct tide_node *top, const char *name, struct tide_sink *sink, struct tide_bitmap *into,
                      struct tide_error *err)
{
	struct tide_error why = TIDE_ERROR_INIT;

	for (const struct tide_image *link = tide_image_backing(top->image); link; link = tide_image_backing(link)) {
		if (unite_link(link, name, top, sink, into, &why) == 0)
			continue;
		tide_error_set(err, why.code, "Bitmap '%s' of the backing image '%s' belongs to this backup: %s", name,
		               tide_image_path(link), why.msg);
		tide_error_release(&why);
		return tide_error_hint(
		        err,
		        "make it usable, with bitmap-rescan or bitmap-mark, or make a full backup; after "
		        "a full backup, or if bitmap '%s' of '%s' alone has recorded everything since the "
		        "last one: bitmap-remove '%s' '%s'",
		        name, top->path, tide_image_path(link), name);
	}
	return 0;
}
