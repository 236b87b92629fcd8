/*
 * A group's record: the one decision that several renames hang on (tidemark-sidecar.5, Groups).
 *
 * The files are complete and durable under temporary names before it is written.  While it
 * is not there, the group has not succeeded; once it is, every rename in it will be made,
 * by the group or by whoever comes after it.
 *
 * A record may come from a stranger, with an image and a sidecar that leads to it.  So it moves
 * files from such temporary names to the names they were made for, in the same directory, and
 * nothing else.
 */
#ifndef TIDE_COMMIT_RECORD_H
#define TIDE_COMMIT_RECORD_H

#include "base/stamp.h"
#include "base/strbuf.h"
#include "image/driver.h"
#include "tidemark.h"

struct tide_commit_record {
	struct tide_strbuf text;
	size_t count; /* of renames and switches */
};

#define TIDE_COMMIT_RECORD_INIT     \
	{                           \
		TIDE_STRBUF_INIT, 0 \
	}

/* Absolute paths. */
int tide_commit_record_add(struct tide_commit_record *record, const char *from, const char *to, struct tide_error *err);
/* A last step inside an image: it takes part once the record is there, by whoever opens that image first. */
int tide_commit_record_add_switch(struct tide_commit_record *record, const char *image,
                                  const struct tide_driver_switch *sw, const struct tide_stamp *stamp,
                                  struct tide_error *err);
/* That of this image, in a record that has been rolled forward or not: 1, or 0: there is none; -1 error. */
int tide_commit_record_find_switch(const char *path, const char *image, struct tide_driver_switch *sw,
                                   struct tide_stamp *stamp, struct tide_error *err);
/* Makes the temporary names durable: before the decision. */
int tide_commit_record_sync_names(const struct tide_commit_record *record, struct tide_error *err);
/* Makes the decision: the record is at path, durable. */
int tide_commit_record_write(struct tide_commit_record *record, const char *path, struct tide_error *err);
/* Takes the decision back, durably.  The caller knows that no rename has been made. */
int tide_commit_record_revoke(const char *path, struct tide_error *err);
void tide_commit_record_release(struct tide_commit_record *record);

/*
 * Makes all renames that are not made yet, durably; then the record has ".done" appended to its name, so that whoever
 * still comes by a pointer knows.  1: done, now or before; 0: there is no record; -1 error, and the record stays.
 * names (may be NULL) gets the final names, each with a NUL after it.
 */
int tide_commit_record_roll_forward(const char *path, struct tide_strbuf *names, struct tide_error *err);

/* Everything in it is done. */
void tide_commit_record_forget(const char *path);

/*
 * A pointer tells whoever opens an image of a group's record, where no busy bitmap of a sidecar can: it stands beside
 * the sidecar's place, and belongs to the holder of a lock token.
 */
int tide_commit_record_point(const char *pointer, uint64_t token, const char *record, struct tide_error *err);
/* 1 and the token and path, which the caller frees; 0: there is none; -1 error. */
int tide_commit_record_read_pointer(const char *pointer, uint64_t *token, char **record, struct tide_error *err);

#endif
