/*
 * A node: an image and its bitmaps, found by name in either store, as one transaction sees
 * them.
 *
 * Opening for change locks the image and the sidecar and reads the sidecar; actions then
 * change the node in memory, each seeing what earlier ones did; tide_node_stage writes the
 * sidecar to come, tide_node_commit puts it in place.  Dropping a node that was not
 * committed leaves everything as it was, so actions need no undo for bitmaps.
 *
 * The image's locks, and the tokens of jobs, are on the image file.  Where the image is no file
 * but a URI they are on an empty one beside the sidecar, SIDECAR.lock, which comes with it.  Without
 * --sidecar such an image has no sidecar, and is used as its server lets it be used.
 *
 * Opening also repairs what a program that died left behind, in memory; it is on disk with
 * the next commit:
 *   - a busy bitmap whose token nobody holds: the job died.  Its successor is merged back,
 *     as after a failed job.
 *   - a write log: what it says is dirty (node_log.h).
 *   - a writer token that nobody holds: a change of the bitmaps inside the image died, so
 *     the stamp is taken anew.
 *   - a stamp that no longer matches the image: something wrote around the tracking, and
 *     every bitmap is `untracked` (inconsistent) until it is marked or vouched for.
 *   - another disk size: the bitmaps follow, and what was added is dirty.
 */
#ifndef TIDE_NODE_H
#define TIDE_NODE_H

#include "base/event.h"
#include "image/image.h"
#include "store/commit_record.h"
#include "store/sidecar.h"
#include "store/store.h"

enum tide_node_mode {
	TIDE_NODE_READ,         /* the image is read-locked (unless force_share); nothing can be changed */
	TIDE_NODE_EDIT_BITMAPS, /* bitmaps can be changed; the image is read-locked */
	TIDE_NODE_WRITE_DATA,   /* and its content: the image is write-locked */
};

struct tide_backup_job;
struct tide_bitmap_set_ops;

/* The node's bitmaps in one of the two stores: the sidecar, or the image itself. */
struct tide_bitmap_set {
	const struct tide_bitmap_set_ops *ops; /* node_impl.h */
	struct tide_sidecar *list;             /* the bitmaps, newest first; never NULL while the node is open */
	bool is_dirty;                         /* they differ from those on disk */
	bool is_staged;                        /* what will replace those is durable beside them */
};

/* How the transaction at hand is going to use the node (tide_node_want). */
struct tide_node_want {
	bool any;      /* at all */
	bool create;   /* a sidecar may be made */
	bool in_image; /* and a bitmap inside the image */
	enum tide_node_mode mode;
};

enum tide_node_log_state {
	TIDE_NODE_LOG_ABSENT = 0,
	TIDE_NODE_LOG_TAKEN,   /* its bits are in the bitmaps in memory; the file goes with the next commit */
	TIDE_NODE_LOG_PENDING, /* it was closed cleanly; its bits are in the file only, and the next writer may go on
	                          with it */
	TIDE_NODE_LOG_WRITER,  /* this node is its writer */
};

/* The write log beside the sidecar (node_log.h). */
struct tide_node_log {
	enum tide_node_log_state state;
	struct tide_write_log *file; /* NULL: there is none, or it is damaged */
	uint64_t token;              /* of the writer, while that is this node */
	bool vouches;                /* for the image's stamp, whatever that is now */
};

/* What goes with the bitmaps inside the image beside their set (node_image.h). */
struct tide_node_image_bitmaps {
	struct tide_error why_not;        /* why they cannot be changed, where the image is of a kind that holds some */
	struct tide_driver_switch change; /* makes the staged ones real */
	bool has_marked;                  /* the sidecar on disk says that a change is under way */
	bool is_held;                     /* a job uses one of them */
	bool is_deferred;                 /* a group's changes of them wait for its end */
	bool is_due;                      /* `change` is in a commit record */
};

/* The node's part in a commit with others, and in a group of jobs (node_group.c). */
struct tide_node_group {
	struct tide_sidecar *before, *after; /* the sidecar before and after changes that wait for the end of a group */
	uint64_t token;                      /* held on the image while the node is part of a commit */
	char *pointer;                       /* the file that leads to the commit record, while it exists; NULL: none */
	bool is_recorded;             /* what is staged is in a record: it will be put in place, by the next opener */
	struct tide_strbuf completed; /* final names in a dead transaction's record that opening has carried out */
};

struct tide_node {
	/* What was given: struct tide_drive. */
	char *id;                      /* device id */
	char *path, *format, *sidecar; /* format and sidecar may be NULL */
	bool ignore_stamp, force_share;
	unsigned allow; /* enum tide_allow */
	bool is_node;   /* not a device: blockdev-add made it */

	/* How it is wanted. */
	struct tide_node_want want;
	bool may_share_live; /* for reading: beside a writer that records in the write log */
	bool partial;        /* for reading: a chain that is broken further down is opened as far as that goes */
	const struct tide_backup_job *job; /* the backup job that reads or writes it; NULL: none */

	/* While it is open: */
	bool is_open;
	enum tide_node_mode mode;
	struct tide_image *image;
	int lock_fd;      /* of a URI: SIDECAR.lock, or -1 */
	bool lock_made;   /* by us: it goes when there is no sidecar in the end */
	bool untracked;   /* the stamp did not match: something wrote around the tracking */
	bool has_changes; /* actions have changed something, in either set: more than a death undoes by itself */

	struct tide_bitmap_set in_sidecar, in_image;
	size_t n_removed;
	struct tide_sidecar_bitmap **removed; /* go with the commit; until then their names are taken */

	struct tide_store store;
	char *sidecar_path;   /* NULL: there is no place for one: of a URI, or the mode is TIDE_NODE_READ */
	bool has_sidecar;     /* else in_sidecar.list is empty */
	uint64_t disk_writer; /* the living writer token that the sidecar on disk has */

	struct tide_node_log log;
	struct tide_node_image_bitmaps image_bitmaps;
	struct tide_node_group group;
};

struct tide_node *tide_node_new(const struct tide_drive *drive, struct tide_error *err);
void tide_node_free(struct tide_node *node);

/* Widens how tide_node_open will open it, whatever mode that is asked for. */
void tide_node_want(struct tide_node *node, enum tide_node_mode mode, bool create);
/* A bitmap is going to be made inside the image. */
void tide_node_want_in_image(struct tide_node *node);

/*
 * Already open in a mode that suffices: nothing happens.  create: the sidecar may come into
 * being (bitmap-add).
 */
int tide_node_open(struct tide_node *node, enum tide_node_mode mode, bool create, struct tide_sink *sink,
                   struct tide_error *err);
void tide_node_close(struct tide_node *node);

struct tide_bitmap_set *tide_node_set(struct tide_node *node, enum tide_store_kind kind);

/* QEMU's "Dirty bitmap 'x' not found" when neither store has it. */
struct tide_sidecar_bitmap *tide_node_find(struct tide_node *node, const char *name, struct tide_error *err);
bool tide_node_has(const struct tide_node *node, const char *name);

enum {
	TIDE_BITMAP_ALLOW_INCONSISTENT = 1 << 0,
	TIDE_BITMAP_WILL_WRITE = 1 << 1, /* refuses those inside an image that cannot be changed */
};

/* find, and QEMU's refusals in QEMU's order: busy, readonly, inconsistent. */
struct tide_sidecar_bitmap *tide_node_find_usable(struct tide_node *node, const char *name, unsigned flags,
                                                  struct tide_error *err);

/* Is it one that only an NBD server can change? */
bool tide_node_is_servers(const struct tide_node *node, const struct tide_sidecar_bitmap *entry);

/* A new bitmap, empty, in the store that is asked for. */
struct tide_sidecar_bitmap *tide_node_add(struct tide_node *node, const char *name, uint64_t granularity,
                                          enum tide_store_kind store, struct tide_error *err);

/* The contents, which stay the entry's: to look at, or to change. */
struct tide_bitmap *tide_node_bitmap(struct tide_node *node, struct tide_sidecar_bitmap *entry, struct tide_error *err);
struct tide_bitmap *tide_node_bitmap_for_change(struct tide_node *node, struct tide_sidecar_bitmap *entry,
                                                struct tide_error *err);
/* The same, emptied. */
struct tide_bitmap *tide_node_bitmap_clear(struct tide_node *node, struct tide_sidecar_bitmap *entry,
                                           struct tide_error *err);
/* Other contents, which are the entry's then; what they were, and whether anybody could tell, does not matter. */
void tide_node_replace_bitmap(struct tide_node *node, struct tide_sidecar_bitmap *entry, struct tide_bitmap *bm);
/* Something else about the entry has changed. */
void tide_node_mark_dirty(struct tide_node *node, const struct tide_sidecar_bitmap *entry);

/* QEMU's default: the image's cluster size within 4 KiB and 64 KiB, or 64 KiB. */
uint64_t tide_node_default_granularity(const struct tide_node *node);

int tide_node_mark_removed(struct tide_node *node, struct tide_sidecar_bitmap *entry, struct tide_error *err);

/* Writes the sidecar and the image's bitmaps to come, if anything changed; the last step that can be refused. */
int tide_node_stage(struct tide_node *node, struct tide_error *err);
int tide_node_commit(struct tide_node *node, struct tide_error *err);

/* Gives the sidecar's lock back, for the time a job runs; the image stays open and locked. */
void tide_node_unlock_store(struct tide_node *node);
/* Locks and reads the sidecar again, at the end of a job. */
int tide_node_relock_store(struct tide_node *node, struct tide_sink *sink, struct tide_error *err);
/* At the end of a job, where there may be no sidecar, or changes that waited for a group. */
int tide_node_begin_settling(struct tide_node *node, struct tide_sink *sink, struct tide_error *err);

/*
 * Changes that are made on disk only when a group has succeeded.  defer: from now on, called before the first change.
 * begin: in place of the commit, makes the bitmaps of before busy on disk (those that jobs own already, or all of
 * them), group being the path of the record.  load_deferred: locks the sidecar, and sc is what it will be.
 * drop_deferred: the group failed.
 */
int tide_node_defer(struct tide_node *node, struct tide_error *err);
int tide_node_begin_deferred(struct tide_node *node, const char *group, struct tide_error *err);
int tide_node_load_deferred(struct tide_node *node, struct tide_sink *sink, struct tide_error *err);
bool tide_node_is_deferred(const struct tide_node *node);
void tide_node_drop_deferred(struct tide_node *node, struct tide_sink *sink);

/* How many renames and switches are due for what has been staged; and the same for a commit record. */
unsigned tide_node_count_changes(const struct tide_node *node);
int tide_node_add_to_record(const struct tide_node *node, struct tide_commit_record *record, struct tide_error *err);
/* The record is durable: what cannot be committed now is left to the next opener; or it was taken back. */
void tide_node_recorded(struct tide_node *node);
void tide_node_unrecorded(struct tide_node *node);
/* Nothing of what was staged is in its place yet. */
bool tide_node_is_untouched(const struct tide_node *node);

/* Makes sure that whoever opens the node after a crash finds the record; unpoint: it is not needed any more. */
int tide_node_point(struct tide_node *node, const char *record, struct tide_error *err);
void tide_node_unpoint(struct tide_node *node);
/* The record stays, so the pointer to it does too. */
void tide_node_leave_pointer(struct tide_node *node);

/* The bitmaps of the node for people and QMP, newest first. */
int tide_node_list(struct tide_node *node, struct tide_bitmap_list **list, struct tide_error *err);

#endif
