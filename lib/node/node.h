/*
 * A node: an image and its bitmaps, found by name in either store, as one transaction sees
 * them.
 *
 * Opening for change locks the image and the sidecar and reads the sidecar; actions then
 * change the node in memory, and each action sees the changes of earlier ones; tide_node_stage
 * writes the new sidecar beside the old one, tide_node_commit puts it in place.  Dropping a node
 * that was not committed changes nothing on disk, so actions need no undo for bitmaps.
 *
 * The image's locks, and the tokens of jobs, are held on the image file.  If the image is a URI, they
 * are held on an empty file beside the sidecar, SIDECAR.lock, which is created with it.  Without
 * --sidecar such an image has no sidecar and no locks: its server decides who may use it.
 *
 * Opening also repairs, in memory, what an interrupted program left; the next commit writes
 * the repairs to disk:
 *   - a busy bitmap whose token nobody holds: the job died.  Its successor is merged back,
 *     as after a failed job.
 *   - a write log: the ranges that it records become dirty (node_log.h).
 *   - a writer token that nobody holds: a change of the bitmaps inside the image was
 *     interrupted, so a new stamp is taken.
 *   - a stamp that does not match the image: a program wrote to it without recording, and every
 *     bitmap is `untracked` (inconsistent) until its writes are marked or the user vouches for it.
 *     The same is done if the image is another disk than the sidecar says.
 *   - a different disk size: the bitmaps are resized, and the part that was added is dirty.
 */
#ifndef TIDE_NODE_H
#define TIDE_NODE_H

#include "base/event.h"
#include "image/image.h"
#include "store/commit_record.h"
#include "store/sidecar.h"
#include "store/store.h"

enum tide_node_mode {
	TIDE_NODE_READ,         /* the image is read-locked (unless force_share); nothing may change */
	TIDE_NODE_EDIT_BITMAPS, /* bitmaps may change; the image is read-locked */
	TIDE_NODE_WRITE_DATA,   /* bitmaps and data may change; the image is write-locked */
};

struct tide_backup_job;
struct tide_bitmap_set_ops;

/* The node's bitmaps in one of the two stores: the sidecar, or the image itself. */
struct tide_bitmap_set {
	const struct tide_bitmap_set_ops *ops; /* node_impl.h */
	struct tide_sidecar *list;             /* the bitmaps, newest first; never NULL while the node is open */
	bool is_dirty;                         /* they differ from the bitmaps on disk */
	bool is_staged;                        /* the bitmaps that will replace those on disk are durable beside them */
};

/* How the current transaction will use the node (tide_node_want). */
struct tide_node_want {
	bool any;      /* at all */
	bool create;   /* a sidecar may be made */
	bool in_image; /* and a bitmap inside the image */
	bool chain;    /* the disk is read, so its backing images are opened, too */
	bool salvage;  /* what is damaged or missing is read as far as possible */
	bool repair;   /* complete an interrupted transaction although the mode is for reading */
	bool optional; /* if the sidecar is damaged, open it for reading, without bitmaps */
	bool certain;  /* refuse when such a transaction is in doubt, rather than warn */
	bool dry_run;  /* complete nothing */
	enum tide_node_mode mode;
};

enum tide_node_log_state {
	TIDE_NODE_LOG_ABSENT = 0,
	TIDE_NODE_LOG_TAKEN,   /* its bits are in the bitmaps in memory; the next commit removes the file */
	TIDE_NODE_LOG_PENDING, /* it was closed cleanly; its bits are in the file only, and the next writer may
	                          continue it */
	TIDE_NODE_LOG_WRITER,  /* this node is its writer */
};

/* The write log beside the sidecar (node_log.h). */
struct tide_node_log {
	enum tide_node_log_state state;
	struct tide_write_log *file; /* NULL: it does not exist, or it is damaged */
	uint64_t token;              /* of the writer, while this node is the writer */
	bool vouches;                /* the log accounts for all writes, so the image's stamp is not checked */
	bool untracked;              /* its writer noticed that another program wrote to the image */
};

/* The state of changes to the bitmaps inside the image, beside their set (node_image.h). */
struct tide_node_image_bitmaps {
	struct tide_error why_not;        /* why they cannot be changed, in a format that can store bitmaps */
	struct tide_driver_switch change; /* puts the staged bitmaps in place */
	bool is_stranger;                 /* the sidecar has bases of bitmaps that are not those in the image */
	bool has_marked;                  /* the sidecar on disk contains a writer token for this change */
	bool is_held;                     /* a job uses one of them */
	bool is_deferred;                 /* a group changes them only at its end */
	bool is_due;                      /* `change` is in a commit record */
	bool ends_late;                   /* the change is made, and the sidecar still has its mark */
};

/* The node's part in a commit with others, and in a group of jobs (node_group.c). */
struct tide_node_group {
	struct tide_sidecar *before,
	        *after;               /* the sidecar before and after the changes that wait for the end of a group */
	uint64_t token;               /* held on the image while the node is part of a commit */
	char *pointer;                /* the file that leads to the commit record, while it exists; NULL: none */
	bool is_recorded;             /* a durable record lists the staged changes: the next opener completes them */
	struct tide_strbuf completed; /* the final names in the record of an interrupted transaction that opening has
	                                 completed; each ends with a zero byte */
	bool is_pending;              /* a record stays, and the next opener completes it */
	bool is_shown;   /* the list is not the sidecar on disk, but what an interrupted transaction has decided */
	bool is_foreign; /* another program changed the image since a transaction was interrupted */
};

struct tide_node {
	/* As given in struct tide_drive. */
	char *id;                      /* device id */
	char *path, *format, *sidecar; /* format and sidecar may be NULL */
	bool ignore_stamp, force_share;
	unsigned allow; /* enum tide_allow */
	bool is_node;   /* blockdev-add added it, so it is not a device */

	/* How it will be used. */
	struct tide_node_want want;
	char *unusable;                    /* why it was opened without its bitmaps (want.optional); NULL: it was not */
	bool may_share_live;               /* for reading: opens it beside a writer that records in the write log */
	bool partial;                      /* for reading: opens a broken chain as far as it is readable */
	const atomic_bool *cancel;         /* of the session: ends the waits for locks; NULL: never */
	struct tide_base *next_full;       /* the full backup that the present transaction makes of it; NULL: none */
	const struct tide_backup_job *job; /* the backup job that reads or writes it; NULL: none */

	/* While it is open: */
	bool is_open;
	enum tide_node_mode mode;
	struct tide_image *image;
	int lock_fd;      /* of a URI: SIDECAR.lock, or -1 */
	bool lock_made;   /* this node created SIDECAR.lock, and removes it if no sidecar is committed */
	bool untracked;   /* the stamp did not match: a program wrote without recording, or it is another disk */
	bool has_gap;     /* nothing is known of unrecorded writes to a block device since the sidecar was stored */
	bool has_changes; /* actions have changed bitmaps; repairs and frozen bitmaps, which the next opener rolls back
	                     or repeats, do not count */

	struct tide_bitmap_set in_sidecar, in_image;

	struct tide_store store;
	char *sidecar_path;   /* NULL: it has none: a URI, or a device without a lasting name that is read */
	bool has_sidecar;     /* false: in_sidecar.list is empty */
	uint64_t disk_writer; /* the writer token in the sidecar on disk, held by a living program; 0: none */

	struct tide_node_log log;
	struct tide_node_image_bitmaps image_bitmaps;
	struct tide_node_group group;
};

struct tide_node *tide_node_new(const struct tide_drive *drive, struct tide_error *err);
/* Another node of the same image, to be opened apart from this one. */
struct tide_node *tide_node_new_like(const struct tide_node *node, struct tide_error *err);
void tide_node_free(struct tide_node *node);

/*
 * Widens how tide_node_open will open it, whatever mode that is asked for. want_bitmaps: for its bitmaps only, which do
 * not depend on the backing images; so a bitmap can be listed and changed even if one of those is missing.
 */
void tide_node_want(struct tide_node *node, enum tide_node_mode mode, bool create);
void tide_node_want_bitmaps(struct tide_node *node, enum tide_node_mode mode, bool create);
/* The same for an action that a damaged record of an interrupted transaction cannot mislead. */
void tide_node_want_in_doubt(struct tide_node *node, enum tide_node_mode mode, bool create);
/* The transaction will create a bitmap inside the image. */
void tide_node_want_in_image(struct tide_node *node);
/* The chain is read for a rescue, and for nothing else. */
void tide_node_want_salvage(struct tide_node *node);

/* Does nothing if the node is already open in a sufficient mode.  create: the sidecar may be created (bitmap-add). */
int tide_node_open(struct tide_node *node, enum tide_node_mode mode, bool create, struct tide_sink *sink,
                   struct tide_error *err);
/* The same for its bitmaps only; opens the backing images if others want them. */
int tide_node_open_bitmaps(struct tide_node *node, enum tide_node_mode mode, bool create, struct tide_sink *sink,
                           struct tide_error *err);
void tide_node_close(struct tide_node *node);

struct tide_bitmap_set *tide_node_set(struct tide_node *node, enum tide_store_kind kind);

/* Fails with QEMU's "Dirty bitmap 'x' not found" if neither store has it. */
struct tide_sidecar_bitmap *tide_node_find(struct tide_node *node, const char *name, struct tide_error *err);
bool tide_node_has(const struct tide_node *node, const char *name);

enum {
	TIDE_BITMAP_ALLOW_INCONSISTENT = 1 << 0,
	TIDE_BITMAP_WILL_WRITE = 1 << 1, /* refuses a bitmap inside an image that cannot be changed */
};

/* Finds the bitmap, and refuses it with QEMU's texts in QEMU's order: busy, readonly, inconsistent. */
struct tide_sidecar_bitmap *tide_node_find_usable(struct tide_node *node, const char *name, unsigned flags,
                                                  struct tide_error *err);

/* Why bitmaps in the sidecar are inconsistent, as a clause about the image. */
const char *tide_node_why_untracked(const struct tide_node *node);
/* Why it is unknown whether this bitmap has recorded everything, as a clause; NULL: it has. */
const char *tide_node_why_unchecked(const struct tide_node *node, const struct tide_sidecar_bitmap *entry);
/* The same as a warning, before the bitmap of a block device decides what is copied. */
void tide_node_warn_unchecked(const struct tide_node *node, const struct tide_sidecar_bitmap *entry,
                              struct tide_sink *sink);

/*
 * The bitmap gets the bits of another one, and is unchecked if that is. An image file cannot store
 * that, so it is a warning there.
 */
void tide_node_take_unchecked(struct tide_node *node, struct tide_sidecar_bitmap *entry, const struct tide_node *from,
                              const struct tide_sidecar_bitmap *source, struct tide_sink *sink);

/* Has opening the node completed an interrupted transaction that gave this name to a file? */
bool tide_node_has_completed(const struct tide_node *node, const char *path);

/* Can only an NBD server change this bitmap? */
bool tide_node_is_owned_by_server(const struct tide_node *node, const struct tide_sidecar_bitmap *entry);

/* Adds an empty bitmap to the store. */
struct tide_sidecar_bitmap *tide_node_add(struct tide_node *node, const char *name, uint64_t granularity,
                                          enum tide_store_kind store, struct tide_error *err);

/* The contents, which the entry owns: for reading, and for changing. */
struct tide_bitmap *tide_node_bitmap(struct tide_node *node, struct tide_sidecar_bitmap *entry, struct tide_error *err);
struct tide_bitmap *tide_node_bitmap_for_change(struct tide_node *node, struct tide_sidecar_bitmap *entry,
                                                struct tide_error *err);
/* The same, cleared. */
struct tide_bitmap *tide_node_bitmap_clear(struct tide_node *node, struct tide_sidecar_bitmap *entry,
                                           struct tide_error *err);
/* Replaces the contents, also of an inconsistent bitmap; the entry owns bm from now on. */
void tide_node_replace_bitmap(struct tide_node *node, struct tide_sidecar_bitmap *entry, struct tide_bitmap *bm);
/* Called when a change of the entry is not one of its contents. */
void tide_node_mark_changed(struct tide_node *node, const struct tide_sidecar_bitmap *entry);

/* QEMU's default: the image's cluster size within 4 KiB and 64 KiB, or 64 KiB. */
uint64_t tide_node_default_granularity(const struct tide_node *node);

/*
 * The backup that a bitmap counts from (lineage.h), in memory, through the actions on it (node_base.c).
 *
 * begin: it was made or has been cleared: it counts from the full backup that this transaction makes, or, unless it is
 * new, from the last full backup if nothing was written since; else from none that is known.
 * enable: it is about to be enabled or disabled.
 * merge: it has got the bits of another bitmap of the same node.
 * attach: the bitmaps inside the image get the bases that the sidecar has for them, if both files have the same token.
 * collect: the sidecar, made if there is none, gets the bases of the bitmaps inside the image, before both are staged.
 * set: its contents are the differences from this backup; NULL: from one that is unknown.
 */
int tide_node_base_begin(const struct tide_node *node, struct tide_sidecar_bitmap *entry, bool is_new,
                         struct tide_error *err);
void tide_node_base_enable(const struct tide_node *node, struct tide_sidecar_bitmap *entry, bool enabled);
int tide_node_base_merge(struct tide_sidecar_bitmap *into, const struct tide_sidecar_bitmap *from,
                         struct tide_error *err);
int tide_node_base_set(const struct tide_node *node, struct tide_sidecar_bitmap *entry, const struct tide_base *base,
                       struct tide_error *err);
int tide_node_base_attach(struct tide_node *node, struct tide_error *err);
int tide_node_base_collect(struct tide_node *node, struct tide_error *err);
void tide_node_base_drop(struct tide_sidecar_bitmap *entry);

/* The commit drops it; until then its name is taken. */
void tide_node_mark_removed(struct tide_node *node, struct tide_sidecar_bitmap *entry);

/* Writes the changed bitmaps of both stores durably beside those on disk; after this the transaction is not refused. */
int tide_node_stage(struct tide_node *node, struct tide_error *err);
int tide_node_commit(struct tide_node *node, struct tide_error *err);

/* Releases the sidecar's lock while a job runs; the image stays open and locked. */
void tide_node_unlock_store(struct tide_node *node);
/* Locks and reads the sidecar again, at the end of a job. */
int tide_node_relock_store(struct tide_node *node, struct tide_sink *sink, struct tide_error *err);
/* The same where the node may have no sidecar, or changes that waited for the end of a group. */
int tide_node_begin_settling(struct tide_node *node, struct tide_sink *sink, struct tide_error *err);

/*
 * Changes that are made on disk only when a group has succeeded.  defer: from now on, called before the first change.
 * begin: in place of the commit, makes the bitmaps of before busy on disk (those that jobs own already, or all of
 * them).  load_deferred: locks the sidecar, and sc is what it will be.
 * drop_deferred: the group failed.
 */
int tide_node_defer(struct tide_node *node, struct tide_error *err);
int tide_node_begin_deferred(struct tide_node *node, struct tide_error *err);
int tide_node_load_deferred(struct tide_node *node, struct tide_sink *sink, struct tide_error *err);
bool tide_node_is_deferred(const struct tide_node *node);
void tide_node_drop_deferred(struct tide_node *node, struct tide_sink *sink);

/* The number of renames and switches that the staged changes need; add_to_record adds them to a commit record. */
unsigned tide_node_count_changes(const struct tide_node *node);
int tide_node_add_to_record(const struct tide_node *node, struct tide_commit_record *record, struct tide_error *err);
/* recorded: the record is durable, so the next opener completes a change that fails now.  unrecorded: the record was
 * removed. */
void tide_node_recorded(struct tide_node *node);
void tide_node_unrecorded(struct tide_node *node);
/* Is none of the staged changes in place? */
bool tide_node_is_untouched(const struct tide_node *node);
/* Are all of them? */
bool tide_node_is_made(const struct tide_node *node);

/* The node's token for a commit, held on its image: as long as it is, the commit is running. */
int tide_node_hold_token(struct tide_node *node, uint64_t *token, struct tide_error *err);
/*
 * Writes a pointer to the record beside the sidecar, so that the next opener finds it after a death.  unpoint: it is
 * not needed any more.
 */
int tide_node_point(struct tide_node *node, const char *record, struct tide_error *err);
void tide_node_unpoint(struct tide_node *node);
/* The record stays, so the pointer to it must stay too. */
void tide_node_leave_pointer(struct tide_node *node);

/* The bitmaps of the node as commands and QMP show them, newest first. */
int tide_node_list(struct tide_node *node, struct tide_bitmap_list **list, struct tide_error *err);

#endif
