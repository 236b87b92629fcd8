/*
 * Opening a node: locks and reads the sidecar, opens the image, and repairs in memory what interrupted programs left
 * (the list is in node.h).
 *
 * The sidecar is locked before the image is opened, and the stamp is checked only when the image is locked too.  A node
 * that is read takes no lock on the sidecar, so it reads again whenever another program has replaced the file.
 */
#include "node_impl.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "base/lock.h"
#include "base/mem.h"
#include "node_image.h"
#include "node_log.h"
#include "node_uri.h"

/* How often the sidecar is read at most, while other programs replace it. */
#define READS_MAX 100u

/* If bitmaps inside the image may be changed, opens it again, as an image that will be written later. */
static int open_for_bitmaps(struct tide_node *node, struct tide_image_options *options, struct tide_error *err)
{
	TIDE_AUTOFREE char *format = NULL;

	if (!tide_image_can_store_bitmaps(node->image) || node->mode != TIDE_NODE_EDIT_BITMAPS)
		return 0;
	if (tide_image_info(node->image)->n_bitmaps == 0 && !node->want.in_image)
		return 0;
	format = tide_mem_strdup(tide_image_format_name(node->image), err);
	if (!format)
		return -1;
	options->guessed = tide_image_is_probed(node->image);
	tide_image_close(node->image); /* its locks would block a program that is changing them now */
	node->image = NULL;
	options->write_later = options->records_bitmaps = true;
	options->format = format;
	if (tide_image_open(options, &node->image, &node->image_bitmaps.why_not) == 0)
		return 0;
	options->write_later = options->records_bitmaps = false;
	return tide_image_open(options, &node->image, err);
}

/* Opens the image for reading although a writer that records in the write log holds it. */
static int open_shared(struct tide_node *node, struct tide_image_options *options, struct tide_error *err)
{
	struct tide_error why = TIDE_ERROR_INIT;

	if (tide_image_open(options, &node->image, &why) == 0)
		return 0;
	if (why.code != TIDE_E_LOCKED || !node->may_share_live || node->mode != TIDE_NODE_READ ||
	    !tide_node_log_is_live(node))
		return tide_error_move(err, &why);
	tide_error_release(&why);
	options->force_share = true;
	return tide_image_open(options, &node->image, err);
}

static int open_image(struct tide_node *node, struct tide_sink *sink, struct tide_error *err)
{
	struct tide_image_options options = {
		.path = node->path,
		.format = node->format,
		.write = node->mode == TIDE_NODE_WRITE_DATA,
		.records_bitmaps = node->mode == TIDE_NODE_WRITE_DATA,
		.force_share = node->force_share && node->mode == TIDE_NODE_READ,
		.allow = node->allow,
		.partial = node->partial && node->mode == TIDE_NODE_READ,
		.salvage = node->want.salvage && node->mode == TIDE_NODE_READ,
		.no_backing = !node->want.chain,
		.cancel = sink ? &sink->cancelled : NULL,
	};

	if (tide_node_uri_lock(node, err) < 0)
		return -1;
	options.lock_fd = node->lock_fd;
	options.has_lock_fd = node->lock_fd >= 0;
	if (node->has_sidecar) {
		if (node->format && strcmp(node->format, node->in_sidecar.list->format)) {
			tide_error_set(err, TIDE_E_REFUSED, "The format of '%s' is pinned as '%s', not '%s'",
			               node->path, node->in_sidecar.list->format, node->format);
			return tide_error_hint(err, "it was pinned in '%s' when the first bitmap was added",
			                       node->sidecar_path);
		}
		options.format = node->in_sidecar.list->format;
		options.guessed = !node->format && tide_sidecar_is_guess(node->in_sidecar.list);
	}
	if (open_shared(node, &options, err) < 0 ||
	    (node->mode != TIDE_NODE_READ && tide_image_check_not_raw(node->image, node->path, "-f", err) < 0))
		return -1;
	if (tide_image_info(node->image)->bitmaps_lost && sink)
		tide_event_warning(sink, node->path,
		                   "a program lacking bitmap support modified this file, so all bitmaps are now "
		                   "considered inconsistent; some clusters may be leaked, 'qemu-img check -r leaks' "
		                   "frees them");
	if (open_for_bitmaps(node, &options, err) < 0 || tide_node_image_open(node, err) < 0)
		return -1;
	return 0;
}

/* A write gives the image a new stamp, so the user's word for the bitmaps is stored with it, before the write. */
static void trust(struct tide_node *node)
{
	for (size_t i = 0; i < node->in_sidecar.list->n; i++)
		node->in_sidecar.list->items[i]->untracked = node->in_sidecar.list->items[i]->unchecked = false;
	node->in_sidecar.is_dirty = true;
	node->untracked = false;
}

/* Is the image another disk, or an image of another kind, than the sidecar was stored for? */
static enum tide_device_verdict compare_device(const struct tide_node *node, struct tide_device *now)
{
	const struct tide_sidecar *sc = node->in_sidecar.list;
	const struct tide_stamp *stamp = tide_image_stamp(node->image);

	*now = *tide_image_device(node->image);
	if (!tide_image_is_file(node->image))
		return TIDE_DEVICE_UNCHANGED;
	if (now->is_one ? sc->stamp.valid && !stamp->valid : sc->device.is_one) {
		now->doubt = TIDE_DEVICE_OTHER;
		return TIDE_DEVICE_REPLACED;
	}
	if (!now->is_one)
		return TIDE_DEVICE_UNCHANGED;
	now->counter = stamp->counter;
	return tide_device_compare(&sc->device, now);
}

/* Compares the device with its description; true: it was written. */
static bool check_device(struct tide_node *node)
{
	struct tide_sidecar *sc = node->in_sidecar.list;
	struct tide_device now;

	switch (compare_device(node, &now)) {
	case TIDE_DEVICE_REPLACED:
		sc->device.doubt = now.doubt;
		tide_node_distrust(node);
		return false;
	case TIDE_DEVICE_UNCHECKED:
		sc->device.gap = now.gap;
		node->has_gap = true;
		for (size_t i = 0; i < sc->n; i++)
			sc->items[i]->unchecked = true;
		return false;
	case TIDE_DEVICE_WRITTEN:
		return true;
	default:
		return false;
	}
}

static int compare_stamp(struct tide_node *node, struct tide_sink *sink, struct tide_error *err)
{
	bool is_written;
	int held;

	if (!node->has_sidecar)
		return 0;
	is_written = check_device(node);
	if (node->log.untracked || node->group.is_foreign) {
		tide_node_distrust(node);
		return 0;
	}
	if (node->log.vouches)
		return 0;
	if (node->in_sidecar.list->writer) {
		held = tide_lock_token_is_held(tide_image_fd(node->image), node->in_sidecar.list->writer, err);
		if (held < 0)
			return -1;
		if (!held) {
			node->in_sidecar.list->writer = node->disk_writer = 0;
			node->in_sidecar.is_dirty = true;
			tide_event_warning(
			        sink, node->path,
			        "a tracked write was interrupted; the ranges that it may have written are dirty");
		}
		return 0;
	}
	if (is_written || !tide_stamp_is_equal(tide_image_stamp(node->image), &node->in_sidecar.list->stamp))
		tide_node_distrust(node);
	return 0;
}

static int check_stamp(struct tide_node *node, struct tide_sink *sink, struct tide_error *err)
{
	bool was_untracked = false;

	if (compare_stamp(node, sink, err) < 0)
		return -1;
	for (size_t i = 0; i < node->in_sidecar.list->n; i++)
		was_untracked |= node->in_sidecar.list->items[i]->untracked;
	if (node->ignore_stamp && node->mode == TIDE_NODE_WRITE_DATA && was_untracked)
		trust(node);
	return 0;
}

/* Resizes the bitmaps to the disk.  The part that was added is dirty, because no bitmap recorded its writes. */
static int follow_size(struct tide_node *node, struct tide_error *err)
{
	uint64_t was = node->in_sidecar.list->disk_size, size = tide_image_size(node->image);

	if (was == size)
		return 0;
	for (size_t i = 0; i < node->in_sidecar.list->n; i++) {
		struct tide_sidecar_bitmap *half[2] = { node->in_sidecar.list->items[i],
			                                node->in_sidecar.list->items[i]->successor };

		for (int k = 0; k < 2 && half[k]; k++) {
			struct tide_bitmap *bm = tide_sidecar_bitmap_load(node->in_sidecar.list, half[k], err);

			if (!bm || tide_bitmap_resize(bm, size, err) < 0)
				return -1;
			if (size > was && tide_bitmap_set(bm, was, size - was, err) < 0)
				return -1;
		}
	}
	node->in_sidecar.list->disk_size = size;
	node->in_sidecar.is_dirty = node->has_sidecar;
	return 0;
}

/* A list of bitmaps that is not read from a sidecar gets what a sidecar would say of the image. */
static void describe_image(struct tide_node *node)
{
	if (!node->has_sidecar) {
		strncpy(node->in_sidecar.list->format, tide_image_format_name(node->image), TIDE_SIDECAR_FORMAT_MAX);
		node->in_sidecar.list->disk_size = tide_image_size(node->image);
	}
	if (node->format && node->mode != TIDE_NODE_READ)
		node->in_sidecar.list->compatible |= TIDE_SIDECAR_FORMAT_GIVEN;
}

/* Locked for change, and read; 1: something was completed, or changed by another program, so that it has to be read
 * again. */
static int read_once(struct tide_node *node, bool create, struct tide_sink *sink, struct tide_error *err)
{
	int rc;

	if (node->sidecar_path && node->mode != TIDE_NODE_READ && node->store.lock_fd < 0 &&
	    tide_store_lock(&node->store, node->sidecar_path, create, node->cancel, err) < 0)
		return -1;
	tide_node_drop_sidecar(node);
	if (tide_node_load_sidecar(node, err) < 0 || (!node->image && open_image(node, sink, err) < 0))
		return -1;
	if (!node->sidecar && tide_image_is_file(node->image) &&
	    tide_store_check_owner(&node->store, node->path, tide_image_fd(node->image), err) < 0)
		return -1;
	describe_image(node);
	if (tide_node_base_attach(node, err) < 0)
		return -1;
	rc = tide_node_recover(node, sink, err);
	if (rc == 0)
		return tide_node_log_open(node, sink, err);
	tide_store_release(&node->store);
	return rc;
}

static int read_node(struct tide_node *node, bool create, struct tide_sink *sink, struct tide_error *err)
{
	for (unsigned reads = 0; reads < READS_MAX; reads++) {
		int rc = read_once(node, create, sink, err);

		if (rc < 0)
			return -1;
		if (rc > 0 && sink && tide_event_is_cancelled(sink))
			return tide_error_set(err, TIDE_E_CANCELLED, "Cancelled while '%s' was opened", node->path);
		if (rc > 0)
			continue;
		if (check_stamp(node, sink, err) < 0 || follow_size(node, err) < 0)
			return -1;
		if (node->mode != TIDE_NODE_READ)
			tide_image_watch(node->image);
		node->has_changes = false; /* a repair does not count as a change */
		return 0;
	}
	tide_error_set(err, TIDE_E_LOCKED, "Other programs keep changing the bitmaps of '%s'", node->path);
	return tide_error_hint(err, "find the program that changes '%s', and run the command again",
	                       node->sidecar_path);
}

static int open_parts(struct tide_node *node, bool create, struct tide_sink *sink, struct tide_error *err)
{
	bool is_uri = tide_image_is_uri(node->path), nameless = false;
	TIDE_AUTOFREE char *real = is_uri ? NULL : realpath(node->path, NULL);
	struct tide_error why = TIDE_ERROR_INIT;

	if (tide_image_check_scheme(node->path, err) < 0)
		return tide_error_wrap(err, "Could not open '%s'", node->path);
	if (!real && !is_uri)
		return tide_error_set_sys(err, errno, "Could not open '%s'", node->path);
	if (is_uri && !node->sidecar && create) {
		tide_error_set(err, TIDE_E_REFUSED,
		               "The bitmaps of '%s' belong to its server, and it has no sidecar for others",
		               node->path);
		return tide_error_hint(err, "use --sidecar PATH to keep others in a local file");
	}
	if ((real || node->sidecar) && !node->unusable)
		node->sidecar_path = tide_store_path(real, node->sidecar, &nameless, &why);
	/* Opened for reading, a device without a default sidecar path has no bitmaps. */
	if (why.code && (!nameless || node->mode != TIDE_NODE_READ))
		return tide_error_move(err, &why);
	tide_error_release(&why);
	if (create && node->sidecar_path && tide_store_check_place(node->sidecar_path, node->sidecar, err) < 0)
		return -1;
	return read_node(node, create, sink, err);
}

static void widen(struct tide_node *node, enum tide_node_mode mode, bool create)
{
	node->want.mode = node->want.any ? TIDE_MAX(node->want.mode, mode) : mode;
	node->want.create |= create;
	node->want.any = true;
}

void tide_node_want_bitmaps(struct tide_node *node, enum tide_node_mode mode, bool create)
{
	widen(node, mode, create);
	node->want.certain |= mode != TIDE_NODE_READ;
}

void tide_node_want_in_doubt(struct tide_node *node, enum tide_node_mode mode, bool create)
{
	widen(node, mode, create);
	node->want.repair = true;
}

void tide_node_want(struct tide_node *node, enum tide_node_mode mode, bool create)
{
	tide_node_want_bitmaps(node, mode, create);
	node->want.chain = true;
}

void tide_node_want_salvage(struct tide_node *node)
{
	node->want.salvage = true;
}

void tide_node_want_in_image(struct tide_node *node)
{
	node->want.in_image = true;
}

/* Is it open in a mode that suffices? */
static bool is_open(const struct tide_node *node, enum tide_node_mode mode, bool create)
{
	return node->is_open && node->mode >= mode && (node->has_sidecar || !create || node->store.lock_fd >= 0);
}

/*
 * A full backup needs no bitmaps, so it reads the disk although the sidecar is damaged.  The format that it pinned is
 * unknown then: nothing but raw is believed, because a guest may have written what looks like another one.
 */
static int open_without_bitmaps(struct tide_node *node, struct tide_sink *sink, struct tide_error *why,
                                struct tide_error *err)
{
	struct tide_node_want want = node->want;
	char *text;

	if (why->code != TIDE_E_CORRUPT || !want.optional || want.certain)
		return tide_error_move(err, why);
	text = tide_mem_strdup(why->msg, err);
	tide_node_close(node);
	want.mode = node->mode = TIDE_NODE_READ;
	want.create = false;
	node->want = want;
	node->unusable = text;
	if (!text || open_parts(node, false, sink, err) < 0)
		return -1;
	if (!node->format && !tide_image_is_raw_format(tide_image_format_name(node->image)))
		return tide_error_move(err, why);
	if (sink)
		tide_event_warning(sink, node->path, "%s; the bitmaps are not used until the sidecar is replaced: %s",
		                   text, why->hint ? why->hint : "move the file away");
	return 0;
}

static int open_as_wanted(struct tide_node *node, enum tide_node_mode mode, bool create, struct tide_sink *sink,
                          struct tide_error *err)
{
	struct tide_error why = TIDE_ERROR_INIT;
	int rc;

	if (node->want.any)
		widen(node, mode, create);
	else
		tide_node_want_bitmaps(node, mode, create);
	node->mode = node->want.mode;
	node->cancel = sink ? &sink->cancelled : NULL;
	rc = open_parts(node, node->want.create, sink, &why);
	if (rc < 0)
		rc = open_without_bitmaps(node, sink, &why, err);
	tide_error_release(&why);
	if (rc < 0) {
		tide_node_close(node);
		return -1;
	}
	node->is_open = true;
	return 0;
}

static int refuse_mode(const struct tide_node *node, struct tide_error *err)
{
	return tide_error_set(err, TIDE_E_REFUSED, "This transaction already uses '%s' in another mode", node->path);
}

int tide_node_open(struct tide_node *node, enum tide_node_mode mode, bool create, struct tide_sink *sink,
                   struct tide_error *err)
{
	if (is_open(node, mode, create) && node->want.chain)
		return 0;
	if (node->is_open)
		return refuse_mode(node, err);
	node->want.chain = true;
	return open_as_wanted(node, mode, create, sink, err);
}

int tide_node_open_bitmaps(struct tide_node *node, enum tide_node_mode mode, bool create, struct tide_sink *sink,
                           struct tide_error *err)
{
	if (is_open(node, mode, create))
		return 0;
	if (node->is_open)
		return refuse_mode(node, err);
	return open_as_wanted(node, mode, create, sink, err);
}
