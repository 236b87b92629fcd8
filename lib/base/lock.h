/*
 * Image locks, compatible with QEMU's, so that QEMU and these commands refuse each other's images (QEMU
 * 7.2, block/file-posix.c; observed through /proc/locks).
 *
 * A program that uses an image read-locks (OFD, F_RDLCK) one byte of it for each permission it holds, at
 * 100 + i, and one for each permission it does not share, at 200 + i. Then it checks whether another
 * program has locked a conflicting byte: 200 + i for a permission it holds, 100 + i for one it does not
 * share. It takes only read locks, so a read-only file descriptor is enough.
 *
 * A job adds a lock of Tidemark's own: one byte far beyond any image, whose offset is the token that the
 * sidecar stores for the busy bitmap. When nobody holds that lock, the job is dead.
 */
#ifndef TIDE_LOCK_H
#define TIDE_LOCK_H

#include "compiler.h"
#include "tidemark.h"
#include <stdatomic.h>

enum {
	TIDE_PERM_CONSISTENT_READ = 1 << 0,
	TIDE_PERM_WRITE = 1 << 1,
	TIDE_PERM_WRITE_UNCHANGED = 1 << 2,
	TIDE_PERM_RESIZE = 1 << 3,
};

/* The permissions that readers and writers hold and do not share. */
#define TIDE_LOCK_READ_HELD      TIDE_PERM_CONSISTENT_READ
#define TIDE_LOCK_READ_UNSHARED  (TIDE_PERM_WRITE | TIDE_PERM_RESIZE)
#define TIDE_LOCK_WRITE_HELD     (TIDE_PERM_CONSISTENT_READ | TIDE_PERM_WRITE)
#define TIDE_LOCK_WRITE_UNSHARED (TIDE_PERM_WRITE | TIDE_PERM_RESIZE)

/*
 * Locks the open file description of fd. After a conflict nothing stays locked, and the error is QEMU's:
 * Failed to get "write" lock, or Failed to get shared "write" lock. The hint names path and, if it can be
 * found, the process that holds the lock.
 */
int tide_lock_acquire(int fd, unsigned held, unsigned unshared, const char *path, struct tide_error *err);

void tide_lock_release(int fd, unsigned held, unsigned unshared);

/*
 * Adds permissions to a file that is locked as a reader's and shares neither permission, retrying for up to
 * timeout_ms while another program does not share them. On failure the previous locks stay. The lock itself
 * is only taken when it may succeed, so that waiting programs do not turn readers away.
 */
int tide_lock_raise(int fd, unsigned held, unsigned timeout_ms, const atomic_bool *cancel, const char *path,
                    struct tide_error *err);
void tide_lock_lower(int fd, unsigned held);

/* Tokens: any value from 1 to TIDE_LOCK_TOKEN_MAX. */
#define TIDE_LOCK_TOKEN_MAX ((UINT64_C(1) << 61) - 1)
int tide_lock_token_new(uint64_t *token, struct tide_error *err); /* picks a random one */
int tide_lock_token_hold(int fd, uint64_t token, struct tide_error *err);
void tide_lock_token_drop(int fd, uint64_t token);
/* Does another open file description hold the token? 1 yes, 0 no, -1 error. fd -1: no lock file exists, so 0. */
int tide_lock_token_is_held(int fd, uint64_t token, struct tide_error *err);

/* Held, beside its own token, by a job on a bitmap inside the image. */
#define TIDE_LOCK_TOKEN_JOB 1

/*
 * The right to change the bitmaps inside an image, exclusive among the programs that ask for it, whatever
 * else is locked. Waits for up to timeout_ms, but not for a job. fd must be open for writing.
 */
int tide_lock_bitmaps(int fd, unsigned timeout_ms, const atomic_bool *cancel, const char *path, struct tide_error *err);
void tide_lock_bitmaps_drop(int fd);

/*
 * A write lock on the whole file except the tokens' bytes. It serialises the short moments in which a
 * sidecar is replaced, and waits for up to timeout_ms. fd must be open for writing.
 */
int tide_lock_exclusive(int fd, unsigned timeout_ms, const atomic_bool *cancel, struct tide_error *err);

#endif
