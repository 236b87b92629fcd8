/*
 * The commit record: the one decision that several renames hang on (tidemark-sidecar.5, COMMIT RECORDS).
 *
 * A transaction that changes several files makes their new contents durable under temporary
 * names, then writes the record, then renames.  While the record does not exist the transaction
 * has not happened; once it does, every change in it will be made, by the transaction itself or
 * by the next command that opens one of the images for change (commit_recover.h).
 *
 * The record is a file beside the sidecar of one of the images, in one of a few fixed names
 * (slots), so that whoever opens the image finds it.  Each other image of the transaction has a
 * pointer in one of its slots, which leads to the record.  Both begin with a lock token: as long
 * as it is held on the image beside which the file is, the transaction is running.
 *
 * The description of a file in the record must be enough to tell it from every other one: absence of
 * a temporary name proves nothing by itself.  So each rename notes inode, size and birth time
 * of the file, and where it goes twice, by an absolute path and by one relative to the record.
 */
#ifndef TIDE_COMMIT_RECORD_H
#define TIDE_COMMIT_RECORD_H

#include "base/stamp.h"
#include "base/strbuf.h"
#include "base/sysio.h"
#include "image/driver.h"
#include "tidemark.h"

/* Identifies a file, also after a reboot, when device numbers may have changed. */
struct tide_commit_identity {
	uint64_t inode;    /* 0: not known (a record of an older version) */
	uint64_t size;     /* bytes, when it was staged */
	int64_t birth_sec; /* 0, 0: the file system does not know */
	uint32_t birth_nsec;
};

enum tide_commit_kind {
	TIDE_COMMIT_RENAME,
	TIDE_COMMIT_SWITCH, /* a few bytes inside an image (struct tide_driver_switch) */
};

struct tide_commit_change {
	enum tide_commit_kind kind;
	char *path;     /* the final name, or the image; absolute */
	char *relative; /* the same from the record's directory; NULL: not known */
	/* A rename: */
	char *tmp;      /* the temporary name, in the directory of the final one */
	bool exclusive; /* never in the place of another file */
	struct tide_commit_identity file;
	struct tide_commit_identity replaced; /* the file that had the final name before; inode 0: none had */
	/* A switch: */
	struct tide_driver_switch sw;
	struct tide_stamp stamp; /* of the image, when the switch was staged */
};

struct tide_commit_record {
	uint64_t token;
	size_t n;
	struct tide_commit_change *changes;
	/* A pointer, which has no changes: */
	char *record;                           /* the record's path, absolute; NULL: this is a record itself */
	char *relative;                         /* the same from the pointer's directory */
	struct tide_commit_identity record_dir; /* the directory that holds the record */
	bool is_old;                            /* written by a version that knew no identities */
};

#define TIDE_COMMIT_RECORD_INIT                      \
	{                                            \
		0, 0, NULL, NULL, NULL, { 0 }, false \
	}

void tide_commit_record_release(struct tide_commit_record *record);
#define TIDE_AUTOCOMMITRECORD TIDE_CLEANUP(tide_commit_record_release)

/* A file that tide_staged_sync has given a temporary name. */
int tide_commit_record_add_rename(struct tide_commit_record *record, const struct tide_staged *staged, bool exclusive,
                                  struct tide_error *err);
int tide_commit_record_add_switch(struct tide_commit_record *record, const char *image,
                                  const struct tide_driver_switch *sw, const struct tide_stamp *stamp,
                                  struct tide_error *err);
/* Makes the temporary names durable: before the decision. */
int tide_commit_record_sync_names(const struct tide_commit_record *record, struct tide_error *err);

/* The path of an image's slot; i from 0 to TIDE_COMMIT_SLOTS - 1.  The caller frees it. */
#define TIDE_COMMIT_SLOTS 4u
char *tide_commit_record_slot(const char *sidecar, unsigned i, struct tide_error *err);

/*
 * Writes a record (the decision) or a pointer into the first free slot of the sidecar, durably.  *path: that slot,
 * which the caller frees.  image_fd: the image, whose owner the file gets.
 */
int tide_commit_record_write(struct tide_commit_record *record, const char *sidecar, int image_fd, char **path,
                             struct tide_error *err);
/* -1: no slot is free. */
int tide_commit_record_refuse_full(const char *sidecar, struct tide_error *err);
/*
 * The same into one slot.  1: the slot is taken.  lock_fd: NULL, or gets the file, locked against recovery until it is
 * closed: for a record, as long as its transaction runs.
 */
int tide_commit_record_write_at(struct tide_commit_record *record, const char *slot, int image_fd, int *lock_fd,
                                struct tide_error *err);
/* A pointer to the record at `to`; *pointer is empty. */
int tide_commit_record_point(struct tide_commit_record *pointer, const char *to, struct tide_error *err);
/* The record at path with fewer changes than before. */
int tide_commit_record_rewrite(struct tide_commit_record *record, const char *path, struct tide_error *err);

/* Decodes a record or a pointer, of this version or an older one.  TIDE_E_CORRUPT names what is damaged. */
int tide_commit_record_decode(const char *data, size_t len, const char *path, struct tide_commit_record *record,
                              struct tide_error *err);
/* 1: read; 0: there is no such file; -1: error.  fd: NULL, or gets the file, open for reading and, where permitted,
 * writing. */
int tide_commit_record_read(const char *path, struct tide_commit_record *record, int *fd, struct tide_error *err);

/* Takes a change out of the list. */
void tide_commit_record_drop(struct tide_commit_record *record, size_t i);
/* All is done.  A record of an older version gets another name, for the pointers that lead to it. */
int tide_commit_record_finish(const char *path, bool is_old, struct tide_error *err);
/* Takes the decision back, or removes what is done with.  The caller knows that nothing depends on it any more. */
int tide_commit_record_remove(const char *path, struct tide_error *err);

/* Identity of an open file, and whether `st` of a name is that file.  staged: it has its size still. */
int tide_commit_identity_take(int fd, struct tide_commit_identity *id, struct tide_error *err);
bool tide_commit_identity_is(const struct tide_commit_identity *id, int dir_fd, const char *name, bool staged);
/* Of whatever has this name; inode 0 if nothing has. */
void tide_commit_identity_find(int dir_fd, const char *name, struct tide_commit_identity *id);
/* The same file, at whatever size. */
bool tide_commit_identity_equals(const struct tide_commit_identity *a, const struct tide_commit_identity *b);

#endif
