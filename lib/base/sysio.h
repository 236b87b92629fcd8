/*
 * Files: whole reads and writes, and files that appear under their name only when complete.
 *
 * Calls interrupted by a signal are repeated, short transfers continued.  Errors name what
 * was attempted ("read 65536 bytes at 1048576"), not the file: the caller knows its name.
 */
#ifndef TIDE_SYSIO_H
#define TIDE_SYSIO_H

#include <sys/types.h>

#include "compiler.h"
#include "tidemark.h"

/* open(2) with O_CLOEXEC | O_NOCTTY.  The error reads as QEMU's: Could not open 'path': reason. */
int tide_sysio_open(const char *path, int flags, struct tide_error *err) TIDE_MUST_CHECK;
/* The same file once more, with flags of its own (O_DIRECT, say); -1: not possible. */
int tide_sysio_reopen(int fd, int flags);
void tide_sysio_close(int fd); /* abandons; -1 is fine */
void tide_sysio_closep(int *fd);
#define TIDE_AUTOCLOSE TIDE_CLEANUP(tide_sysio_closep)

/* Fills all of buf; bytes beyond the end of the file read as zeroes when zero_eof, else are an error. */
int tide_sysio_pread(int fd, void *buf, size_t len, uint64_t off, bool zero_eof, struct tide_error *err);
int tide_sysio_pwrite(int fd, const void *buf, size_t len, uint64_t off, struct tide_error *err);
/* From a stream, up to len bytes; less only at its end.  -1 on error. */
ssize_t tide_sysio_read(int fd, void *buf, size_t len, struct tide_error *err);
int tide_sysio_fdatasync(int fd, struct tide_error *err);
int tide_sysio_fsync_dir(const char *path, struct tide_error *err); /* the directory that holds path */

/* The name of the directory that holds path; the caller frees it. */
char *tide_sysio_dir_name(const char *path, struct tide_error *err) TIDE_MUST_CHECK;
/* Path, or the directory that holds it, absolute and without symbolic links, for the caller to free; *real is NULL when
 * it leads nowhere.  -1 when that cannot be told. */
int tide_sysio_real_path(const char *path, char **real, struct tide_error *err) TIDE_MUST_CHECK;
int tide_sysio_real_dir(const char *path, char **real, struct tide_error *err) TIDE_MUST_CHECK;

/* Size in bytes of a regular file or block device. */
int tide_sysio_size(int fd, uint64_t *size, struct tide_error *err);

/* The next data or hole at off: *data says which, *len how long it lasts (at most limit). Never fails: in doubt, data.
 */
void tide_sysio_extent(int fd, uint64_t off, uint64_t limit, bool *data, uint64_t *len);

/*
 * Makes [off, off + len) read as zeroes, as a hole where the file system can; grows nothing.  Not may_unmap: takes the
 * space afterwards that data would.
 */
int tide_sysio_zero(int fd, uint64_t off, uint64_t len, bool may_unmap, struct tide_error *err);

/* Is every byte zero? */
bool tide_sysio_is_zero(const void *buf, size_t len);

/*
 * A file that is being made and has no name yet (or a temporary one where the file system
 * cannot do without): commit syncs it and puts it under its name, replacing what stood
 * there or, with exclusive, failing with EEXIST; release drops it unless it is committed,
 * frees the struct's strings, and leaves nothing behind.  fd is open for reading and writing
 * until release; a caller that wants to keep it sets it to -1 after the commit.
 */
struct tide_staged {
	int fd;     /* -1 when there is none */
	char *path; /* the final name */
	char *tmp;  /* the temporary name, or NULL while it has none */
	char *dir;
	bool synced; /* by sync: nothing was written since */
	bool kept;   /* release leaves the file under its temporary name: somebody else will give it the final one */
};

#define TIDE_STAGED_INIT                           \
	{                                          \
		-1, NULL, NULL, NULL, false, false \
	}

int tide_staged_begin(struct tide_staged *st, const char *path, mode_t mode, struct tide_error *err);
/*
 * The content is durable, and what is left of the commit is a rename and the directory's sync.  The last write comes
 * before.  The temporary name itself is durable only once somebody syncs the directory.
 */
int tide_staged_sync(struct tide_staged *st, struct tide_error *err);
int tide_staged_commit(struct tide_staged *st, bool exclusive, struct tide_error *err);
/* Gives the file its name if that is free: 1 when it is taken.  The content is durable, the name is not yet. */
int tide_staged_publish(struct tide_staged *st, struct tide_error *err);
void tide_staged_release(struct tide_staged *st);
/* Is tmp such a temporary name as begin and sync make for path, in the same directory? */
bool tide_staged_is_temp(const char *tmp, const char *path);

#endif
