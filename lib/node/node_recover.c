/*
 * Recovery: completing the transactions that were interrupted after their decision (commit_recover.h), and rolling back
 * the jobs that died before theirs.
 *
 * A command that changes something completes a transaction before it does anything else, or is refused with what is
 * missing. One that only looks reports it, and shows the bitmaps as the transaction has decided them.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"
#include "base/lock.h"
#include "base/mem.h"
#include "node_image.h"
#include "node_impl.h"
#include "store/commit_recover.h"

static bool may_repair(const struct tide_node *node)
{
	return !node->want.dry_run && (node->mode != TIDE_NODE_READ || node->want.repair);
}

/* The job that owned this bitmap died: what its successor recorded goes back. */
int tide_node_roll_back(struct tide_node *node, struct tide_sidecar_bitmap *entry, struct tide_sink *sink,
                        struct tide_error *err)
{
	if (tide_sidecar_bitmap_thaw(node->in_sidecar.list, entry, err) < 0)
		return -1;
	node->in_sidecar.is_dirty = true;
	if (sink)
		tide_event_warning(sink, node->path,
		                   "the job that used bitmap '%s' died; the bitmap is as after a failed job",
		                   entry->name);
	return 0;
}

/* ---- transactions that had decided --------------------------------------------------- */

/* A record that was found for the node. */
struct found {
	const char *slot; /* the file beside the node's sidecar: the record, or the pointer that led to it */
	struct tide_commit_found at;
};

static void release_found(struct found *f)
{
	tide_commit_found_release(&f->at);
}

#define AUTOFOUND TIDE_CLEANUP(release_found)

/* Reads a record or pointer and checks whose it is.  1, 0: there is none, -1. */
static int read_trusted(const struct tide_node *node, const char *path, struct tide_commit_record *record, int *fd,
                        struct tide_error *err)
{
	int rc = tide_commit_record_read(path, record, fd, err);

	if (rc <= 0)
		return rc;
	return tide_commit_recover_check_trust(*fd, path, tide_image_fd(node->image), err) < 0 ? -1 : 1;
}

/* Is the transaction still running? */
static int is_alive(const struct tide_node *node, const struct tide_commit_record *record, struct tide_error *err)
{
	return record->token ? tide_lock_token_is_held(tide_image_fd(node->image), record->token, err) : 0;
}

/* 1: found; 0: there is nothing to do, *gone: a pointer leads to a record that is gone; -1. */
static int find_record(const struct tide_node *node, const char *slot, struct found *f, bool *gone,
                       struct tide_error *err)
{
	TIDE_AUTOCOMMITRECORD struct tide_commit_record first = TIDE_COMMIT_RECORD_INIT;
	int fd TIDE_AUTOCLOSE = -1, alive = 0, rc = read_trusted(node, slot, &first, &fd, err);

	if (rc > 0)
		alive = is_alive(node, &first, err);
	if (rc <= 0 || alive)
		return rc < 0 || alive < 0 ? -1 : 0;
	f->slot = slot;
	rc = tide_commit_recover_resolve(&first, &fd, slot, &f->at, err);
	if (rc > 1)
		rc = read_trusted(node, f->at.path, &f->at.record, &f->at.fd, err);
	*gone = rc == 0;
	return rc;
}

static bool is_own(const struct tide_node *node, const char *image)
{
	return image && !strcmp(image, tide_image_path(node->image));
}

/* Has another program changed the node's image since its switch was staged? */
static int find_foreign(struct tide_node *node, const struct found *f, struct tide_error *err)
{
	for (size_t i = 0; i < f->at.record.n; i++) {
		const struct tide_commit_change *change = &f->at.record.changes[i];
		TIDE_AUTOFREE char *image = NULL;

		if (change->kind != TIDE_COMMIT_SWITCH)
			continue;
		if (tide_commit_recover_place(change->path, change->relative, f->at.path, &image, err) < 0)
			return -1;
		if (is_own(node, image) && tide_node_image_is_foreign(image, change))
			node->group.is_foreign = true;
	}
	return 0;
}

/* To commands that only look. */
static void say_waiting(struct tide_node *node, const struct found *f, struct tide_sink *sink)
{
	struct tide_error why = TIDE_ERROR_INIT;

	/* A record that is gone by now was completed meanwhile. */
	if (tide_commit_recover_check(&f->at.record, f->at.path, f->at.fd, &why) < 0 && access(f->at.path, F_OK) == 0)
		tide_event_warning(sink, node->path, "%s%s%s", why.msg, why.hint ? "; " : "", why.hint ? why.hint : "");
	else
		tide_event_warning(sink, node->path,
		                   "a transaction was interrupted after its commit; the next command that changes "
		                   "something will complete it");
	tide_error_release(&why);
}

/* Shows the bitmaps as the transaction has decided them, to commands that only look. */
static int show_decided(struct tide_node *node, const struct found *f, struct tide_sink *sink, struct tide_error *err)
{
	TIDE_AUTOFREE char *staged =
	        tide_commit_recover_find_staged(&f->at.record, f->at.path, node->sidecar_path, err);
	struct tide_sidecar *decided = NULL;

	say_waiting(node, f, sink);
	if (find_foreign(node, f, err) < 0)
		return -1;
	if (!staged || tide_store_load(staged, &decided, err) < 0 || !decided)
		return staged ? -1 : 0;
	tide_sidecar_free(node->in_sidecar.list);
	node->in_sidecar.list = decided;
	node->has_sidecar = node->group.is_shown = true;
	return 0;
}

/*
 * Another program changed the node's image, and the bitmaps in its sidecar did not record that.  This is stored before
 * the record is removed.  2: later, because the sidecar was replaced just now.
 */
static int give_up_switch(struct tide_node *node, bool had_renames, struct tide_sink *sink, struct tide_error *err)
{
	if (had_renames)
		return 2;
	tide_event_warning(sink, node->path,
	                   "another program changed the image after a transaction had been interrupted; the bitmaps "
	                   "inside it are those of before the transaction, and those in its sidecar are inconsistent");
	return node->has_sidecar ? tide_node_store_distrust(node, err) : 0;
}

/* 1: the switch stays in the record; 2: so does the node's own. */
static int make_switch(struct tide_node *node, const struct found *f, const struct tide_commit_change *change,
                       uid_t owner, const char *own, bool had_renames, struct tide_sink *sink, struct tide_error *err)
{
	TIDE_AUTOFREE char *image = NULL;
	struct tide_error why = TIDE_ERROR_INIT;
	int rc;

	if (change->kind != TIDE_COMMIT_SWITCH)
		return 0;
	if (tide_commit_recover_place(change->path, change->relative, f->at.path, &image, err) < 0)
		return -1;
	if (image && !strcmp(image, own)) {
		tide_node_image_close(node);
		rc = tide_node_image_switch(image, change, owner, err);
		return rc > 0 ? give_up_switch(node, had_renames, sink, err) : rc;
	}
	rc = image ? tide_node_image_switch(image, change, owner, &why) : -1;
	tide_error_release(&why);
	return rc != 0;
}

/* The switches of other images stay in the record if they are in use now, or if another program has changed them. */
static int make_switches(struct tide_node *node, struct found *f, bool had_renames, bool *keeps_own,
                         struct tide_sink *sink, struct tide_error *err)
{
	TIDE_AUTOFREE char *own = tide_mem_strdup(tide_image_path(node->image), err);
	struct stat st;
	size_t left = 0;

	if (!own)
		return -1;
	if (fstat(f->at.fd, &st) < 0)
		return tide_error_set_sys(err, errno, "Could not access '%s'", f->at.path);
	for (size_t i = 0; i < f->at.record.n; i++) {
		struct tide_commit_change *change = &f->at.record.changes[i], kept;
		int rc = make_switch(node, f, change, st.st_uid, own, had_renames, sink, err);

		if (rc < 0)
			return -1;
		*keeps_own |= rc == 2;
		if (rc > 0) {
			kept = f->at.record.changes[left];
			f->at.record.changes[left++] = *change;
			*change = kept;
		}
	}
	/* The changes that were made are at the end of the list. */
	while (f->at.record.n > left)
		tide_commit_record_drop(&f->at.record, left);
	return 0;
}

static bool has_renames(const struct tide_commit_record *record)
{
	for (size_t i = 0; i < record->n; i++) {
		if (record->changes[i].kind == TIDE_COMMIT_RENAME)
			return true;
	}
	return false;
}

/* The transaction may have made the image itself: then what is open is the one that had its name before. */
static void close_replaced(struct tide_node *node)
{
	struct stat now, open;

	if (node->image && tide_image_is_file(node->image) && fstat(tide_image_fd(node->image), &open) == 0 &&
	    (stat(tide_image_path(node->image), &now) < 0 || now.st_dev != open.st_dev || now.st_ino != open.st_ino))
		tide_node_image_close(node);
}

/* 1: done, and all has to be read again; 0: only switches of other images are left, and cannot be made now. */
static int complete(struct tide_node *node, struct found *f, struct tide_sink *sink, struct tide_error *err)
{
	bool had_renames = has_renames(&f->at.record), keeps_own = false;
	size_t before = f->at.record.n;
	int rc = tide_commit_recover_lock(f->at.fd, f->at.path, node->cancel, err);

	if (rc <= 0)
		return rc < 0 ? -1 : 1;
	if (tide_commit_recover_renames(&f->at.record, f->at.path, f->at.fd, err) < 0)
		return -1;
	tide_commit_recover_names(&f->at.record, &node->group.completed);
	if (make_switches(node, f, had_renames, &keeps_own, sink, err) < 0)
		return -1;
	if (had_renames)
		close_replaced(node);
	if (f->at.record.n && (had_renames || f->at.record.n < before) &&
	    tide_commit_record_rewrite(&f->at.record, f->at.path, err) < 0)
		return -1;
	if (!f->at.record.n && tide_commit_record_finish(f->at.path, f->at.record.is_old, err) < 0)
		return -1;
	if (!keeps_own && strcmp(f->slot, f->at.path) != 0 && unlink(f->slot) < 0 && errno != ENOENT)
		return tide_error_set_sys(err, errno, "Could not remove '%s'", f->slot);
	return had_renames || f->at.record.n < before;
}

/* A pointer without a record: nothing was decided, or another program has completed it meanwhile. */
static int end_pointer(struct tide_node *node, const char *slot, struct tide_error *err)
{
	bool current = true;

	if (may_repair(node) && unlink(slot) < 0 && errno != ENOENT)
		return tide_error_set_sys(err, errno, "Could not remove '%s'", slot);
	if (tide_store_is_current(node->sidecar_path, node->has_sidecar ? node->in_sidecar.list : NULL, &current, err) <
	    0)
		return -1;
	return !current;
}

static int recover_slot(struct tide_node *node, const char *slot, struct tide_sink *sink, struct tide_error *err)
{
	AUTOFOUND struct found f = { .at = TIDE_COMMIT_FOUND_INIT };
	bool gone = false;
	int rc = find_record(node, slot, &f, &gone, err);

	if (gone)
		return end_pointer(node, slot, err);
	if (rc <= 0)
		return rc;
	if (!may_repair(node))
		return show_decided(node, &f, sink, err);
	rc = complete(node, &f, sink, err);
	if (rc > 0)
		tide_event_warning(sink, node->path,
		                   "a transaction was interrupted after its commit; it has been completed now");
	return rc;
}

/*
 * A command that only looks, or that a lost transaction cannot mislead, gets a warning instead of a refusal.  A command
 * that replaces the sidecar continues only if nothing can be completed: a record that is merely out of reach is still
 * valid, and could not be completed over a newer sidecar.
 */
static int tolerate(struct tide_node *node, struct tide_sink *sink, struct tide_error *why, struct tide_error *err)
{
	bool is_damage = why->code == TIDE_E_CORRUPT;

	if (why->code == TIDE_E_CANCELLED || node->want.certain ||
	    (may_repair(node) && node->mode != TIDE_NODE_READ && !is_damage))
		return tide_error_move(err, why);
	tide_event_warning(sink, node->path, "%s%s%s", why->msg, why->hint ? "; " : "", why->hint ? why->hint : "");
	tide_error_release(why);
	return 0;
}

/* ---- jobs that died ------------------------------------------------------------------ */

/* Older programs wrote the path of a group's record into its busy bitmaps. */
static int recover_old_group(struct tide_node *node, const char *record, struct tide_sink *sink, struct tide_error *err)
{
	struct tide_error why = TIDE_ERROR_INIT;
	int rc = record ? recover_slot(node, record, sink, &why) : 0;

	return rc < 0 ? (node->image ? tolerate(node, sink, &why, err) : tide_error_move(err, &why)) : rc;
}

static int recover_jobs(struct tide_node *node, struct tide_sink *sink, struct tide_error *err)
{
	bool current = true;

	for (size_t i = 0; i < node->in_sidecar.list->n; i++) {
		struct tide_sidecar_bitmap *entry = node->in_sidecar.list->items[i];
		int held;

		if (!entry->token)
			continue;
		held = tide_lock_token_is_held(tide_image_fd(node->image), entry->token, err);
		if (held < 0)
			return -1;
		/* No record was found; but another program may have completed it, and removed it, since the sidecar was
		 * read. */
		if (!held && !node->group.is_shown &&
		    tide_store_is_current(node->sidecar_path, node->in_sidecar.list, &current, err) < 0)
			return -1;
		if (!current)
			return 1;
		if (!held) {
			int rc = recover_old_group(node, entry->group, sink, err);

			if (rc)
				return rc;
		}
		if (!held && tide_node_roll_back(node, entry, sink, err) < 0)
			return -1;
	}
	return 0;
}

/* ---- all of it ----------------------------------------------------------------------- */

/* Of this version and the one before. */
static char *slot_path(const struct tide_node *node, unsigned i, struct tide_error *err)
{
	return i < TIDE_COMMIT_SLOTS ? tide_commit_record_slot(node->sidecar_path, i, err)
	                             : tide_mem_printf(err, "%s.group", node->sidecar_path);
}

int tide_node_recover(struct tide_node *node, struct tide_sink *sink, struct tide_error *err)
{
	for (unsigned i = 0; node->sidecar_path && i <= TIDE_COMMIT_SLOTS; i++) {
		TIDE_AUTOFREE char *slot = slot_path(node, i, err);
		struct tide_error why = TIDE_ERROR_INIT;
		int rc = slot ? recover_slot(node, slot, sink, &why) : -1;

		if (!slot)
			return -1;
		if (rc < 0 && node->image)
			rc = tolerate(node, sink, &why, err);
		else if (rc < 0)
			return tide_error_move(err, &why);
		if (rc)
			return rc;
	}
	return recover_jobs(node, sink, err);
}
