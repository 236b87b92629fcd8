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

struct tide_node {
	char *id;                      /* device id */
	char *path, *format, *sidecar; /* as given; format and sidecar may be NULL */
	bool ignore_stamp, force_share;
	bool look_live; /* to look at, one that is being written by who records it in the write log is shared */
	unsigned allow; /* enum tide_allow */
	bool is_node;   /* not a device: blockdev-add made it */
	bool partial;   /* a chain that is broken further down is opened as far as that goes, for looking */

	/* How the transaction at hand is going to use it (tide_node_want). */
	bool wanted, want_create, want_inside;
	enum tide_node_mode want;
	const struct tide_backup_job *job; /* the backup job that reads or writes it; NULL: none */

	/* While open: */
	bool is_open;
	enum tide_node_mode mode;
	struct tide_image *image;
	struct tide_store store;
	char *sidecar_path;      /* NULL: there is no place for one: of a URI, or the mode is TIDE_NODE_READ */
	int lock_fd;             /* URIs: SIDECAR.lock, or -1 */
	bool lock_made;          /* by us: it goes when there is no sidecar in the end */
	struct tide_sidecar *sc; /* never NULL while open; without a sidecar it is empty and has_sidecar false */
	bool has_sidecar;
	bool dirty;       /* sc differs from what is on disk */
	bool has_changes; /* in what actions have changed, in either store: more than a death undoes by itself */
	bool untracked;   /* the stamp did not match */
	struct tide_sidecar *inside; /* the bitmaps inside the image: node_inside.h */
	bool inside_dirty;           /* they differ from what the image holds */
	bool inside_staged, inside_marked;
	bool recorded;        /* what is staged is in a commit record: it is carried out, now or by the next opener */
	bool switch_due;      /* and a switch inside the image is part of it */
	bool inside_held;     /* a job uses one of them */
	uint64_t disk_writer; /* the living writer token that the sidecar on disk has */
	struct tide_write_log *log;              /* node_log.h */
	bool log_there;                          /* a file stands under its name */
	bool log_pending;                        /* its bits are not in the bitmaps of memory yet */
	bool log_active;                         /* this node is its writer, */
	uint64_t log_token;                      /* by this token */
	bool log_vouches;                        /* whatever the image's stamp is now */
	struct tide_driver_switch inside_switch; /* what makes the staged ones real */
	struct tide_error inside_error; /* why they cannot be changed, where the image is of a kind that holds some */
	size_t n_removed;
	struct tide_sidecar_bitmap **removed; /* gone with the commit; until then their names are taken */

	/* A grouped transaction's changes wait for its end: what was there before it, then what will be. */
	struct tide_sidecar *base, *after;
	bool inside_deferred;
	uint64_t token; /* of the bitmaps that it has made busy, where no job does */
	char *pointer;  /* the file that leads to the group's record, while it stands; NULL: none */
	struct tide_strbuf
	        completed; /* the final names in a dead transaction's record that opening it has carried out */
};

struct tide_node *tide_node_new(const struct tide_drive *drive, struct tide_error *err);
void tide_node_free(struct tide_node *node);

/* Widens how tide_node_open will open it, whatever mode that is asked for. */
void tide_node_want(struct tide_node *node, enum tide_node_mode mode, bool create);
/* A bitmap is going to be made inside the image. */
void tide_node_want_inside(struct tide_node *node);

/*
 * Already open in a mode that suffices: nothing happens.  create: the sidecar may come into
 * being (bitmap-add).
 */
int tide_node_open(struct tide_node *node, enum tide_node_mode mode, bool create, struct tide_sink *sink,
                   struct tide_error *err);
void tide_node_close(struct tide_node *node);

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

/* Is it one that only a server can change? */
bool tide_node_is_foreign(const struct tide_node *node, const struct tide_sidecar_bitmap *entry);

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
