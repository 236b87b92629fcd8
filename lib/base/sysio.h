/*
 * Files: complete reads and writes, and files that get their name only when they are complete.
 *
 * Calls that a signal interrupts are repeated, short transfers continued. An error names the operation
 * ("read 65536 bytes at 1048576"), not the file, whose name the caller adds.
 */
#ifndef TIDE_SYSIO_H
#define TIDE_SYSIO_H

#include <sys/types.h>

#include "compiler.h"
#include "tidemark.h"

/* open(2) with O_CLOEXEC | O_NOCTTY.  The error reads as QEMU's: Could not open 'path': reason. */
int tide_sysio_open(const char *path, int flags, struct tide_error *err) TIDE_MUST_CHECK;
/*
 * The same; but a block device is opened through the kernel's own node in /dev, if it has one, so that all its nodes
 * share their locks.
 */
int tide_sysio_open_disk(const char *path, int flags, struct tide_error *err) TIDE_MUST_CHECK;
/*
 * Claims a block device for as long as the new descriptor is open; -1: it is mounted, part of another device, or
 * claimed. Other files: 0, and *claim is -1.
 */
int tide_sysio_claim(int fd, const char *path, int *claim, struct tide_error *err);
/* After a call that failed with the error `sys`: is it certain that no file has this name? */
bool tide_sysio_is_absent(const char *path, int sys);
/* After an open(2) with O_NOFOLLOW that failed: has a directory, a symbolic link or a socket the name? */
bool tide_sysio_is_never_file(int sys);
/* Opens the same file again, with other flags (such as O_DIRECT); -1: not possible. */
int tide_sysio_reopen(int fd, int flags);
void tide_sysio_close(int fd); /* abandons; -1 is fine */
void tide_sysio_closep(int *fd);
#define TIDE_AUTOCLOSE TIDE_CLEANUP(tide_sysio_closep)

/* Fills all of buf. Bytes beyond the end of the file read as zeroes with zero_eof and are an error without. */
int tide_sysio_pread(int fd, void *buf, size_t len, uint64_t off, bool zero_eof, struct tide_error *err);
int tide_sysio_pwrite(int fd, const void *buf, size_t len, uint64_t off, struct tide_error *err);
/* Reads up to len bytes from a stream; fewer only at its end. -1 on error. */
ssize_t tide_sysio_read(int fd, void *buf, size_t len, struct tide_error *err);
int tide_sysio_fdatasync(int fd, struct tide_error *err);
int tide_sysio_fsync_dir(const char *path, struct tide_error *err); /* the directory that holds path */

/* The last part of a path, in the path itself. */
const char *tide_sysio_base_name(const char *path);
/* The name of the directory that holds path; the caller frees it. */
char *tide_sysio_dir_name(const char *path, struct tide_error *err) TIDE_MUST_CHECK;
/*
 * The path, or the directory that holds it, absolute and without symbolic links; the caller frees it. *real is NULL
 * when the path leads to no file that can be opened. -1 when it cannot be resolved.
 */
int tide_sysio_real_path(const char *path, char **real, struct tide_error *err) TIDE_MUST_CHECK;
int tide_sysio_real_dir(const char *path, char **real, struct tide_error *err) TIDE_MUST_CHECK;

/*
 * Refuses a name under which no new file may be made: a mistyped device, or a request for standard output. path: as the
 * user gave it; final: where it leads, absolute. what: the thing to be made, "an image".
 */
int tide_sysio_check_place(const char *path, const char *final, const char *what, struct tide_error *err);

/* Size in bytes of a regular file or block device. */
int tide_sysio_size(int fd, uint64_t *size, struct tide_error *err);

/* The data or hole at off: *data is its kind, *len its length (at most limit). Never fails: in doubt it is data. */
void tide_sysio_extent(int fd, uint64_t off, uint64_t limit, bool *data, uint64_t *len);

/*
 * Makes [off, off + len) read as zeroes, as a hole where the file system can; does not grow the file.
 * Without may_unmap the range afterwards takes the space that data would.
 */
int tide_sysio_zero(int fd, uint64_t off, uint64_t len, bool may_unmap, struct tide_error *err);

/* Is every byte zero? */
bool tide_sysio_is_zero(const void *buf, size_t len);

/*
 * A file that is being made and has no name yet (or a temporary one if the file system cannot do without).
 * commit syncs it and gives it its name, replacing an existing file or, with exclusive, failing with
 * EEXIST. release deletes the file unless it is committed, and frees the struct's strings. fd is open for
 * reading and writing until release; a caller that keeps it sets it to -1 after the commit.
 */
struct tide_staged {
	int fd;     /* -1: no file */
	char *path; /* the final name */
	char *tmp;  /* the temporary name, or NULL while it has none */
	char *dir;
	bool synced; /* set by sync: nothing was written since */
	bool named;  /* it has its final name */
	bool kept;   /* release keeps the file with its temporary name; another part of the program renames it */
};

#define TIDE_STAGED_INIT                                  \
	{                                                 \
		-1, NULL, NULL, NULL, false, false, false \
	}

int tide_staged_begin(struct tide_staged *st, const char *path, mode_t mode, struct tide_error *err);
/* The content is durable; the file may still have no name.  The last write comes before. */
int tide_staged_flush(struct tide_staged *st, struct tide_error *err);
/*
 * Makes the content durable, so that only a rename and the directory's sync remain. The last write must
 * come before. The temporary name itself is durable only after a sync of the directory.
 */
int tide_staged_sync(struct tide_staged *st, struct tide_error *err);
int tide_staged_commit(struct tide_staged *st, bool exclusive, struct tide_error *err);
/* Gives the file its name if that is free; 1 when it exists. The content is durable, the name not yet. */
int tide_staged_publish(struct tide_staged *st, struct tide_error *err);
void tide_staged_release(struct tide_staged *st);
/* Is tmp a temporary name as begin and sync make for path, in the same directory? */
bool tide_staged_is_temp(const char *tmp, const char *path);

#endif
