/*
 * Image locks, as QEMU takes them, so that it and these commands refuse each other's
 * images (QEMU 7.2, block/file-posix.c; observed through /proc/locks).
 *
 * A program that uses an image read-locks (OFD, F_RDLCK) one byte of it for each permission
 * it holds, at 100 + i, and one for each permission it does not share, at 200 + i.  Then it
 * looks whether somebody else has locked a byte that conflicts: 200 + i for a permission it
 * holds, 100 + i for one it does not share.  Only read locks are taken, so a read-only file
 * descriptor is enough.
 *
 * A job adds a lock of Tidemark's own: one byte far beyond any image, whose offset is the
 * token that the busy bitmap carries in the sidecar.  When nobody holds it, the job is dead.
 */
#ifndef TIDE_LOCK_H
#define TIDE_LOCK_H

#include "compiler.h"
#include "tidemark.h"

enum {
	TIDE_PERM_CONSISTENT_READ = 1 << 0,
	TIDE_PERM_WRITE = 1 << 1,
	TIDE_PERM_WRITE_UNCHANGED = 1 << 2,
	TIDE_PERM_RESIZE = 1 << 3,
};

/* What the three kinds of use hold and do not share. */
#define TIDE_LOCK_READ_HELD      TIDE_PERM_CONSISTENT_READ
#define TIDE_LOCK_READ_UNSHARED  (TIDE_PERM_WRITE | TIDE_PERM_RESIZE)
#define TIDE_LOCK_WRITE_HELD     (TIDE_PERM_CONSISTENT_READ | TIDE_PERM_WRITE)
#define TIDE_LOCK_WRITE_UNSHARED (TIDE_PERM_WRITE | TIDE_PERM_RESIZE)

/*
 * Locks the open file description of fd.  On a conflict nothing stays locked and the error
 * is QEMU's: Failed to get "write" lock, or Failed to get shared "write" lock; the hint
 * names path and, where the kernel tells, the process that holds it.
 */
int tide_lock_acquire(int fd, unsigned held, unsigned unshared, const char *path, struct tide_error *err);

/*
 * For a file that is locked already and shares neither permission, as a reader: holds more,
 * trying again for up to timeout_ms while somebody does not share it.  On failure what was
 * held before still is.  Only one who may succeed takes the lock, so that those who wait
 * do not turn readers away.
 */
int tide_lock_raise(int fd, unsigned held, unsigned timeout_ms, const char *path, struct tide_error *err);
void tide_lock_lower(int fd, unsigned held);

/* Tokens: any value from 1 to TIDE_LOCK_TOKEN_MAX. */
#define TIDE_LOCK_TOKEN_MAX ((UINT64_C(1) << 61) - 1)
int tide_lock_token_new(uint64_t *token, struct tide_error *err); /* random */
int tide_lock_token_hold(int fd, uint64_t token, struct tide_error *err);
void tide_lock_token_drop(int fd, uint64_t token);
/* Does another open file description hold it?  1 yes, 0 no, -1 error.  fd -1: there is no file that could be locked. */
int tide_lock_token_is_held(int fd, uint64_t token, struct tide_error *err);

/* Held beside its own by a job on a bitmap that is kept inside the image. */
#define TIDE_LOCK_TOKEN_JOB 1

/*
 * One at a time may be about to change the bitmaps inside an image: exclusive among those who
 * ask for it, whatever else is locked.  Waits for up to timeout_ms, but not for a job.  fd must
 * be open for writing.
 */
int tide_lock_bitmaps(int fd, unsigned timeout_ms, const char *path, struct tide_error *err);
void tide_lock_bitmaps_drop(int fd);

/*
 * A write lock on the whole file (tokens apart), waited for up to timeout_ms: serialises the short
 * moments in which a sidecar is replaced.  fd must be open for writing.
 */
int tide_lock_exclusive(int fd, unsigned timeout_ms, struct tide_error *err);

#endif
