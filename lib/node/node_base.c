/*
 * The base of a bitmap, the backup that it counts from, through the actions on bitmaps (node.h). Wherever it is not
 * certain that the bitmap has every change since that backup, the base becomes unknown.
 */
#include <errno.h>

#include "base/error.h"
#include "node.h"

static int set(struct tide_sidecar_bitmap *entry, const struct tide_base *base, struct tide_error *err)
{
	struct tide_base *copy;

	if (tide_lineage_base_copy(&copy, base, err) < 0)
		return -1;
	tide_lineage_base_free(entry->base);
	entry->base = copy;
	return 0;
}

void tide_node_base_drop(struct tide_sidecar_bitmap *entry)
{
	tide_lineage_base_free(entry->base);
	entry->base = NULL;
}

int tide_node_base_begin(const struct tide_node *node, struct tide_sidecar_bitmap *entry, bool is_new,
                         struct tide_error *err)
{
	const struct tide_last_full *last = node->in_sidecar.list->last_full;
	const struct tide_stamp *stamp = tide_image_stamp(node->image);

	if (!entry->enabled)
		tide_node_base_drop(entry);
	else if (node->next_full)
		return set(entry, node->next_full, err);
	else if (!is_new && last && stamp->valid && last->stamp.valid && tide_stamp_is_equal(&last->stamp, stamp))
		return set(entry, &last->base, err);
	else
		tide_node_base_drop(entry);
	return 0;
}

void tide_node_base_enable(const struct tide_node *node, struct tide_sidecar_bitmap *entry, bool enabled)
{
	const struct tide_stamp *stamp = tide_image_stamp(node->image);

	if (!entry->base || entry->enabled == enabled)
		return;
	if (!enabled && stamp->valid)
		entry->base->paused = *stamp;
	else if (enabled && stamp->valid && entry->base->paused.valid &&
	         tide_stamp_is_equal(&entry->base->paused, stamp))
		entry->base->paused.valid = false;
	else
		tide_node_base_drop(entry);
}

int tide_node_base_attach(struct tide_node *node, struct tide_error *err)
{
	const struct tide_named_bases *inside = &node->in_sidecar.list->inside;
	const struct tide_id *token = &tide_image_info(node->image)->bitmaps_token;
	/* If only one of the two files was restored, the bitmaps count from another backup. */
	bool fits = tide_id_is_set(token) && tide_id_is_same(token, &inside->token);

	node->image_bitmaps.is_stranger = inside->n && !fits;
	for (size_t i = 0; i < node->in_image.list->n; i++) {
		struct tide_sidecar_bitmap *entry = node->in_image.list->items[i];

		if (set(entry, fits ? tide_lineage_named_find(inside, entry->name) : NULL, err) < 0)
			return -1;
	}
	return 0;
}

static bool is_same(const struct tide_named_bases *a, const struct tide_named_bases *b)
{
	bool same = a->n == b->n;

	for (size_t i = 0; i < a->n && same; i++) {
		const struct tide_base *other = tide_lineage_named_find(b, a->items[i].name);

		same = tide_lineage_base_is_same(&a->items[i].base, other) &&
		       a->items[i].base.paused.valid == other->paused.valid;
	}
	return same;
}

/* Locks the store, which may create the sidecar.  *there: can there be one? */
static int lock_sidecar(struct tide_node *node, bool *there, struct tide_error *err)
{
	struct tide_error why = TIDE_ERROR_INIT;

	*there = true;
	if (node->store.lock_fd >= 0 ||
	    tide_store_lock(&node->store, node->sidecar_path, true, node->cancel, &why) == 0)
		return 0;
	/* As if QEMU had used the bitmap. */
	*there = node->has_sidecar || (why.sys != ENAMETOOLONG && why.sys != EACCES && why.sys != EROFS);
	if (*there)
		return tide_error_move(err, &why);
	tide_error_release(&why);
	return 0;
}

/*
 * The bases have changed: the image gets a new token in the step that changes the bitmaps. Without bases, no sidecar
 * has it.
 */
static int renew_token(struct tide_node *node, struct tide_named_bases *now, struct tide_error *err)
{
	if (tide_id_new(&now->token, err) < 0)
		return -1;
	return tide_image_set_bitmaps_token(node->image, &now->token, err);
}

int tide_node_base_collect(struct tide_node *node, struct tide_error *err)
{
	struct tide_named_bases *inside = &node->in_sidecar.list->inside, now = { 0 };
	bool there = true, any = false;
	int rc = 0;

	for (size_t i = 0; i < node->in_image.list->n && rc == 0; i++) {
		const struct tide_sidecar_bitmap *entry = node->in_image.list->items[i];

		any |= !entry->removed;
		if (entry->base && !entry->removed)
			rc = tide_lineage_named_add(&now, entry->name, entry->base, err);
	}
	/* A sidecar that belongs to other bitmaps says so until one of these has a base. */
	if (rc == 0 && node->sidecar_path &&
	    (node->image_bitmaps.is_stranger ? now.n || !any : !is_same(&now, inside))) {
		rc = renew_token(node, &now, err);
		if (rc == 0)
			rc = lock_sidecar(node, &there, err);
		if (rc == 0 && there) {
			struct tide_named_bases was = *inside;

			*inside = now;
			now = was;
			node->in_sidecar.is_dirty = true;
		}
	}
	tide_lineage_named_free(&now);
	return rc;
}

/* The target has every change that the source has. */
int tide_node_base_merge(struct tide_sidecar_bitmap *into, const struct tide_sidecar_bitmap *from,
                         struct tide_error *err)
{
	if (into->base || !into->enabled || !from->base || !from->enabled || from->base->paused.valid)
		return 0;
	return set(into, from->base, err);
}

int tide_node_base_set(const struct tide_node *node, struct tide_sidecar_bitmap *entry, const struct tide_base *base,
                       struct tide_error *err)
{
	const struct tide_stamp *stamp = tide_image_stamp(node->image);

	if (set(entry, base, err) < 0)
		return -1;
	if (entry->base && !entry->enabled)
		entry->base->paused = *stamp;
	if (entry->base && !entry->enabled && !stamp->valid)
		tide_node_base_drop(entry);
	return 0;
}
