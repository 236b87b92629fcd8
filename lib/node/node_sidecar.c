/*
 * The node's bitmaps in the sidecar: locking, reading and replacing the file (store.h).
 *
 * Every replacement ends the lock, which is on the file that was replaced.  A job holds no lock while it copies; it
 * locks and reads the sidecar again when it settles.
 */
#include <fcntl.h>
#include <stdlib.h>

#include "base/error.h"
#include "node_image.h"
#include "node_impl.h"
#include "node_log.h"

void tide_node_drop_sidecar(struct tide_node *node)
{
	tide_sidecar_free(node->in_sidecar.list);
	node->in_sidecar.list = NULL;
	node->in_sidecar.is_dirty = node->in_sidecar.is_staged = false;
	node->has_gap = false;
	node->has_changes = node->untracked = node->has_sidecar = node->group.is_shown = false;
	node->group.is_foreign = false;
}

int tide_node_load_sidecar(struct tide_node *node, struct tide_error *err)
{
	struct tide_sidecar *sc = NULL;

	if (node->sidecar_path && tide_store_load(node->sidecar_path, &sc, err) < 0)
		return -1;
	node->has_sidecar = sc != NULL;
	node->disk_writer = sc ? sc->writer : 0;
	node->in_sidecar.list = sc ? sc : tide_sidecar_new(err);
	return node->in_sidecar.list ? 0 : -1;
}

void tide_node_distrust(struct tide_node *node)
{
	node->untracked = true;
	tide_sidecar_distrust(node->in_sidecar.list);
}

int tide_node_store_distrust(struct tide_node *node, struct tide_error *err)
{
	TIDE_AUTOCLOSE int fd = tide_sysio_open(node->path, O_RDONLY | O_NONBLOCK, err);
	bool any;

	if (fd < 0 || (node->store.lock_fd < 0 &&
	               tide_store_lock(&node->store, node->sidecar_path, false, node->cancel, err) < 0))
		return -1;
	return tide_store_distrust(&node->store, node->sidecar_path, fd, &any, err);
}

void tide_node_unlock_store(struct tide_node *node)
{
	tide_node_image_end(node, node->group.is_pending);
	tide_store_release(&node->store);
	node->in_sidecar.is_staged = false;
	/* Other programs may change the bitmaps inside the image, unless a job or a group of this node will. */
	if (!node->image_bitmaps.is_held && !(node->image_bitmaps.is_deferred && node->in_image.is_dirty))
		tide_image_renounce_write(node->image);
}

int tide_node_relock_store(struct tide_node *node, struct tide_sink *sink, struct tide_error *err)
{
	tide_node_drop_sidecar(node);
	if (tide_store_lock(&node->store, node->sidecar_path, false, node->cancel, err) < 0 ||
	    tide_node_load_sidecar(node, err) < 0)
		return -1;
	if (!node->has_sidecar)
		return tide_error_set(err, TIDE_E_CORRUPT, "The sidecar '%s' has vanished", node->sidecar_path);
	/* A tracked write of the same transaction may have left a clean log. */
	if (tide_node_log_open(node, sink, err) < 0)
		return -1;
	return tide_node_log_fold(node, err);
}

int tide_node_begin_settling(struct tide_node *node, struct tide_sink *sink, struct tide_error *err)
{
	if (node->group.after || node->image_bitmaps.is_deferred)
		return tide_node_load_deferred(node, sink, err);
	return node->has_sidecar ? tide_node_relock_store(node, sink, err) : 0;
}

/* ---- the set ----------------------------------------------------------------------- */

static int can_add(const struct tide_node *node, struct tide_error *err)
{
	return 0;
}

static int can_change(const struct tide_node *node, const struct tide_sidecar_bitmap *entry, struct tide_error *err)
{
	return 0;
}

static struct tide_bitmap *load(struct tide_node *node, struct tide_sidecar_bitmap *entry, struct tide_error *err)
{
	return tide_sidecar_bitmap_load(node->in_sidecar.list, entry, err);
}

static struct tide_bitmap *clear(struct tide_node *node, struct tide_sidecar_bitmap *entry, struct tide_error *err)
{
	return tide_sidecar_bitmap_clear(node->in_sidecar.list, entry, err);
}

/* The reasons stay as long as a bitmap is inconsistent or unchecked. */
void tide_node_put_stamp(const struct tide_node *node, struct tide_sidecar *sc)
{
	struct tide_device device = *tide_image_device(node->image);

	sc->stamp = *tide_image_stamp(node->image);
	device.counter = sc->stamp.counter;
	for (size_t i = 0; i < sc->n; i++) {
		sc->items[i]->unchecked &= device.is_one;
		if (sc->items[i]->untracked)
			device.doubt = sc->device.doubt;
		if (sc->items[i]->unchecked)
			device.gap = sc->device.gap;
	}
	sc->device = device.is_one ? device : (struct tide_device){ 0 };
}

static int stage(struct tide_node *node, struct tide_error *err)
{
	struct tide_sidecar *sc = node->in_sidecar.list;

	/*
	 * The stamp is that of the moment when the image was locked, or of our own last change, not of now: a write in
	 * between was not recorded.
	 */
	if (tide_image_settle(node->image, err) < 0)
		return -1;
	if (tide_image_others_wrote(node->image))
		tide_node_distrust(node);
	tide_node_put_stamp(node, sc);
	sc->generation++;
	if (tide_store_stage(&node->store, sc, tide_image_fd(node->image), err) < 0)
		return -1;
	node->in_sidecar.is_staged = true;
	return 0;
}

static int commit(struct tide_node *node, struct tide_error *err)
{
	int rc = tide_store_commit(&node->store, err);

	if (rc < 0 && !node->store.staged.named)
		return -1;
	node->in_sidecar.is_dirty = node->in_sidecar.is_staged = false;
	node->has_sidecar = true;
	node->disk_writer = node->in_sidecar.list->writer;
	node->in_sidecar.list->checksum = node->store.checksum;
	return rc;
}

const struct tide_bitmap_set_ops tide_node_sidecar_ops = {
	.kind = TIDE_STORE_SIDECAR,
	.check_add = can_add,
	.check_change = can_change,
	.load = load,
	.clear = clear,
	.stage = stage,
	.commit = commit,
};
