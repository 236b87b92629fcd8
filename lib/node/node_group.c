/*
 * A node in a commit with others: changes that wait for the end of a group, the node's changes for the commit record,
 * and the pointer that leads to the record.
 *
 * While a group runs, the sidecar on disk has the bitmaps of before the group, all busy with the token of a job or of
 * the node, so that no other program changes them, and a death rolls them back.  The changed sidecar waits in memory.
 */
#include "node_impl.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "base/lock.h"
#include "base/mem.h"
#include "node_image.h"
#include "store/commit_record.h"

int tide_node_defer(struct tide_node *node, struct tide_error *err)
{
	node->image_bitmaps.is_deferred = true;
	node->group.before = tide_sidecar_copy(node->in_sidecar.list, err);
	return node->group.before ? 0 : -1;
}

static int make_busy(struct tide_node *node, struct tide_sidecar_bitmap *entry, uint64_t token, bool records,
                     struct tide_error *err)
{
	struct tide_sidecar_bitmap *successor =
	        tide_sidecar_bitmap_new(NULL, node->group.before->disk_size, entry->granularity, err);

	if (!successor)
		return -1;
	successor->enabled = records;
	entry->successor = successor;
	entry->token = token;
	return 0;
}

int tide_node_begin_deferred(struct tide_node *node, struct tide_error *err)
{
	if (node->mode == TIDE_NODE_READ)
		return 0;
	tide_node_drop_removed(node);
	if (!node->in_sidecar.is_dirty)
		return 0;
	if (tide_lock_token_new(&node->group.token, err) < 0 ||
	    tide_lock_token_hold(tide_image_fd(node->image), node->group.token, err) < 0)
		return -1;
	for (size_t i = 0; i < node->group.before->n; i++) {
		struct tide_sidecar_bitmap *entry = node->group.before->items[i];
		const struct tide_sidecar_bitmap *now = tide_sidecar_lookup(node->in_sidecar.list, entry->name);
		uint64_t token = now && now->token ? now->token : node->group.token;

		if (!entry->token && make_busy(node, entry, token, entry->enabled, err) < 0)
			return -1;
	}
	node->group.after = node->in_sidecar.list;
	node->in_sidecar.list = node->group.before;
	node->group.before = NULL;
	if (!node->has_sidecar) /* without a sidecar there are no bitmaps to make busy */
		node->in_sidecar.is_dirty = false;
	node->has_changes = false; /* the changes come with the end of the group */
	return 0;
}

bool tide_node_is_deferred(const struct tide_node *node)
{
	return node->group.after || (node->image_bitmaps.is_deferred && node->in_image.is_dirty);
}

int tide_node_load_deferred(struct tide_node *node, struct tide_sink *sink, struct tide_error *err)
{
	uint64_t generation = node->in_sidecar.list->generation;
	bool had = node->has_sidecar;

	node->image_bitmaps.is_deferred = false;
	if (!node->group.after)
		return had ? tide_node_relock_store(node, sink, err) : 0;
	tide_node_drop_sidecar(node);
	if (tide_store_lock(&node->store, node->sidecar_path, true, node->cancel, err) < 0 ||
	    tide_node_load_sidecar(node, err) < 0)
		return -1;
	if (node->has_sidecar != had || (had && node->in_sidecar.list->generation != generation))
		return tide_error_set(err, TIDE_E_REFUSED,
		                      "Another program changed the bitmaps of '%s' while the group ran", node->path);
	tide_sidecar_free(node->in_sidecar.list);
	node->in_sidecar.list = node->group.after;
	node->group.after = NULL;
	node->in_sidecar.list->generation = generation;
	node->in_sidecar.is_dirty = true;
	return 0;
}

/* Rolls back the bitmaps that were made busy with the node's token; those of jobs are settled by the jobs. */
void tide_node_drop_deferred(struct tide_node *node, struct tide_sink *sink)
{
	struct tide_error err = TIDE_ERROR_INIT;

	tide_node_unlock_store(node);
	tide_node_image_reload(node, &err);
	if (node->has_sidecar && node->group.token) {
		tide_lock_token_drop(tide_image_fd(node->image), node->group.token);
		tide_node_drop_sidecar(node);
		if (tide_store_lock(&node->store, node->sidecar_path, false, node->cancel, &err) == 0 &&
		    tide_node_load_sidecar(node, &err) == 0) {
			for (size_t i = 0; i < node->in_sidecar.list->n; i++) {
				if (node->in_sidecar.list->items[i]->token == node->group.token)
					tide_node_roll_back(node, node->in_sidecar.list->items[i], NULL, &err);
			}
			if (tide_node_stage(node, &err) == 0)
				tide_node_commit(node, &err);
		}
		tide_node_unlock_store(node);
	}
	if (err.code)
		tide_event_warning(sink, node->path,
		                   "%s; it will be completed by the next command that opens the image", err.msg);
	tide_error_release(&err);
}

unsigned tide_node_count_changes(const struct tide_node *node)
{
	return (node->store.staged.tmp != NULL) + node->in_image.is_staged;
}

int tide_node_add_to_record(const struct tide_node *node, struct tide_commit_record *record, struct tide_error *err)
{
	const struct tide_staged *staged = &node->store.staged;
	struct tide_stamp stamp;

	if (staged->tmp && tide_commit_record_add_rename(record, staged, false, err) < 0)
		return -1;
	if (!node->in_image.is_staged)
		return 0;
	if (tide_stamp_take(tide_image_fd(node->image), &stamp, err) < 0)
		return -1;
	return tide_commit_record_add_switch(record, tide_image_path(node->image), &node->image_bitmaps.change, &stamp,
	                                     err);
}

void tide_node_recorded(struct tide_node *node)
{
	node->group.is_recorded = node->store.staged.kept = true;
	node->image_bitmaps.is_due = node->in_image.is_staged;
}

void tide_node_unrecorded(struct tide_node *node)
{
	node->group.is_recorded = node->store.staged.kept = node->image_bitmaps.is_due = false;
}

bool tide_node_is_untouched(const struct tide_node *node)
{
	const struct tide_staged *staged = &node->store.staged;

	return !staged->named && (!node->image_bitmaps.is_due || node->in_image.is_staged);
}

bool tide_node_is_made(const struct tide_node *node)
{
	return !node->store.staged.tmp && !node->in_image.is_staged &&
	       !(node->image_bitmaps.is_due && node->in_image.is_dirty);
}

int tide_node_hold_token(struct tide_node *node, uint64_t *token, struct tide_error *err)
{
	if (!node->group.token && (tide_lock_token_new(&node->group.token, err) < 0 ||
	                           tide_lock_token_hold(tide_image_fd(node->image), node->group.token, err) < 0))
		return -1;
	*token = node->group.token;
	return 0;
}

int tide_node_point(struct tide_node *node, const char *record, struct tide_error *err)
{
	TIDE_AUTOCOMMITRECORD struct tide_commit_record pointer = TIDE_COMMIT_RECORD_INIT;

	if (node->group.pointer)
		return 0;
	if (tide_node_hold_token(node, &pointer.token, err) < 0 || tide_commit_record_point(&pointer, record, err) < 0)
		return -1;
	return tide_commit_record_write(&pointer, node->sidecar_path, tide_image_fd(node->image), &node->group.pointer,
	                                err);
}

void tide_node_leave_pointer(struct tide_node *node)
{
	node->group.is_pending = true;
	free(node->group.pointer);
	node->group.pointer = NULL;
}

void tide_node_unpoint(struct tide_node *node)
{
	if (node->group.pointer)
		unlink(node->group.pointer);
	free(node->group.pointer);
	node->group.pointer = NULL;
	node->group.is_recorded = false;
}
