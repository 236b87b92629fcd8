/*
 * Completing what a commit record has decided (commit_record.h), after its transaction died.
 *
 * Everything is checked before anything is renamed: a file that is neither under its temporary
 * name nor, by its identity, under its final one stops the recovery, and the record stays.  An
 * unmounted file system, a moved directory or a removed file are never taken for success.
 *
 * A record is trusted only if root, the caller or the image's owner owns it and nobody else can
 * write it; one of the image's owner moves that owner's files only, in the place of such files.
 *
 * Threads and processes: whoever completes a record holds a lock on it; others wait, and find it
 * gone.
 */
#ifndef TIDE_COMMIT_RECOVER_H
#define TIDE_COMMIT_RECOVER_H

#include "commit_record.h"

/* Is the open file one that may be followed?  image_fd: -1, or the image beside which it was found. */
int tide_commit_recover_check_trust(int fd, const char *path, int image_fd, struct tide_error *err);

/* A record that was found beside an image, and is open. */
struct tide_commit_found {
	char *path; /* the record's */
	int fd;
	struct tide_commit_record record;
};

#define TIDE_COMMIT_FOUND_INIT                    \
	{                                         \
		NULL, -1, TIDE_COMMIT_RECORD_INIT \
	}

void tide_commit_found_release(struct tide_commit_found *found);
/*
 * *first was read from slot, with its descriptor.  1: it is the record, and moves to *found.  2: it is a pointer, and
 * found->path the record that is still to be read.  0: that is gone; -1: as for follow.
 */
int tide_commit_recover_resolve(struct tide_commit_record *first, int *fd, const char *slot,
                                struct tide_commit_found *found, struct tide_error *err);

/*
 * Locks the record, which was opened for writing, unless it is no longer the file of that name: 0, and the caller looks
 * again.  1: locked, until fd is closed.
 */
int tide_commit_recover_lock(int fd, const char *path, const atomic_bool *cancel, struct tide_error *err);

/* The names of all files that the record puts in place, in a list of NUL-terminated ones. */
void tide_commit_recover_names(const struct tide_commit_record *record, struct tide_strbuf *names);

/*
 * Makes all renames that are left, durably.  path: the record's; fd: the record, for its owner.  -1: the first change
 * that cannot be made, with a hint how to continue; then none has been made, unless the renaming itself failed.
 */
int tide_commit_recover_renames(const struct tide_commit_record *record, const char *path, int fd,
                                struct tide_error *err);
/* Could it?  Makes nothing. */
int tide_commit_recover_check(const struct tide_commit_record *record, const char *path, int fd,
                              struct tide_error *err);

/*
 * Where the decided content of a file is, as long as it has not got its name: its temporary path, which the caller
 * frees. NULL without an error: the record says nothing of it, or it has its name.
 */
char *tide_commit_recover_find_staged(const struct tide_commit_record *record, const char *path, const char *file,
                                      struct tide_error *err);

/*
 * Where a path of a record is now: where it was, or else in the same place from the record.  1: *place, which the
 * caller frees; 0: there is nothing in either place; -1: it cannot be known.
 */
int tide_commit_recover_place(const char *absolute, const char *relative, const char *record, char **place,
                              struct tide_error *err);

/*
 * The record that a pointer leads to.  1: *path, which the caller frees; 0: it is gone, so nothing was decided or all
 * is done; -1: it cannot be reached.
 */
int tide_commit_recover_follow(const struct tide_commit_record *pointer, const char *path, char **record,
                               struct tide_error *err);

#endif
