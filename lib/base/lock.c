/*
 * Locks on bytes of image files and sidecars: QEMU's permissions, job tokens, the right to change
 * bitmaps inside an image, and the lock under which a sidecar is replaced (lock.h). All are open
 * file description locks, so they end with the descriptor, also when the process dies.
 */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "error.h"
#include "lock.h"
#include "strbuf.h"
#include "sysio.h"

enum { PERM_BASE = 100, SHARED_BASE = 200 };

#define TOKEN_BASE (UINT64_C(1) << 62)

static const char *const perm_names[] = { "consistent read", "write", "write unchanged", "resize" };

/* How long a program that is cancelled already waits, because it may have to roll something back. */
#define CANCELLED_WAIT_MS 500

/* A wait for a lock that another program holds. */
struct wait {
	const atomic_bool *cancel; /* NULL: it cannot be cancelled, or was already */
	uint64_t deadline;
	uint64_t pause_ms;
};

static uint64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

static struct wait wait_begin(unsigned timeout_ms, const atomic_bool *cancel)
{
	bool was_cancelled = cancel && atomic_load(cancel);
	uint64_t ms = was_cancelled ? TIDE_MIN(timeout_ms, CANCELLED_WAIT_MS) : timeout_ms;

	return (struct wait){ .cancel = was_cancelled ? NULL : cancel, .deadline = now_ms() + ms, .pause_ms = 1 };
}

static bool wait_is_over(const struct wait *w)
{
	return now_ms() >= w->deadline;
}

/* A signal ends the pause. */
static int wait_pause(struct wait *w, struct tide_error *err)
{
	uint64_t now = now_ms(), left = w->deadline > now ? w->deadline - now : 0;

	nanosleep(&(struct timespec){ .tv_nsec = (long)TIDE_MIN(w->pause_ms, left) * 1000000 }, NULL);
	w->pause_ms = TIDE_MIN(w->pause_ms * 2, (uint64_t)50);
	if (w->cancel && atomic_load(w->cancel))
		return tide_error_set(err, TIDE_E_CANCELLED, "Cancelled while waiting for another process");
	return 0;
}

/* F_OFD_SETLK on [off, off + len); 0 or errno. */
static int set_lock(int fd, short type, uint64_t off, uint64_t len)
{
	struct flock fl = { .l_type = type, .l_whence = SEEK_SET, .l_start = (off_t)off, .l_len = (off_t)len };
	int ret;

	do
		ret = fcntl(fd, F_OFD_SETLK, &fl);
	while (ret < 0 && errno == EINTR);
	return ret < 0 ? errno : 0;
}

/* Has another open file description any lock on this byte?  *pid is its process, or -1.  0 or errno. */
static int test_lock(int fd, uint64_t off, bool *locked, pid_t *pid)
{
	struct flock fl = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = (off_t)off, .l_len = 1 };

	if (fcntl(fd, F_OFD_GETLK, &fl) < 0)
		return errno;
	*locked = fl.l_type != F_UNLCK;
	*pid = fl.l_pid;
	return 0;
}

/* ---- the holder: OFD locks belong to no process, so search those that have the file open and locked ---- */

static void close_dir(DIR **dir)
{
	if (*dir)
		closedir(*dir);
}

static bool fdinfo_has_lock(pid_t pid, const char *fd_name)
{
	char path[64], text[4096];

	snprintf(path, sizeof(path), "/proc/%d/fdinfo/%.16s", (int)pid, fd_name);
	int fd TIDE_AUTOCLOSE = tide_sysio_open(path, O_RDONLY, NULL);
	ssize_t n = fd < 0 ? -1 : tide_sysio_read(fd, text, sizeof(text) - 1, NULL);
	if (n < 0)
		return false;
	text[n] = '\0';
	return strstr(text, "\nlock:") != NULL;
}

static bool pid_holds(pid_t pid, const struct stat *image)
{
	char path[64];
	struct stat st;
	struct dirent *entry;

	snprintf(path, sizeof(path), "/proc/%d/fd", (int)pid);
	DIR *dir TIDE_CLEANUP(close_dir) = opendir(path);
	while (dir && (entry = readdir(dir)))
		if (isdigit((unsigned char)entry->d_name[0]) && fstatat(dirfd(dir), entry->d_name, &st, 0) == 0 &&
		    st.st_dev == image->st_dev && st.st_ino == image->st_ino && fdinfo_has_lock(pid, entry->d_name))
			return true;
	return false;
}

/* A process that has locks on fd's file, or -1. Searches for at most a quarter of a second. */
static pid_t find_holder(int fd)
{
	uint64_t deadline = now_ms() + 250;
	struct stat image;
	struct dirent *entry;
	DIR *dir TIDE_CLEANUP(close_dir) = opendir("/proc");

	if (fstat(fd, &image) < 0)
		return -1;
	while (dir && now_ms() < deadline && (entry = readdir(dir))) {
		pid_t pid = isdigit((unsigned char)entry->d_name[0]) ? (pid_t)strtol(entry->d_name, NULL, 10) : -1;
		if (pid > 0 && pid != getpid() && pid_holds(pid, &image))
			return pid;
	}
	return -1;
}

static int hint_holder(int fd, pid_t pid, const char *path, struct tide_error *err)
{
	char name[64], comm_path[64];

	if (!err)
		return -1;
	if (pid <= 0)
		pid = find_holder(fd);
	if (pid <= 0)
		return tide_error_hint(err, "Is another process using the image [%s]?", path);
	snprintf(comm_path, sizeof(comm_path), "/proc/%d/comm", (int)pid);
	int comm TIDE_AUTOCLOSE = tide_sysio_open(comm_path, O_RDONLY, NULL);
	ssize_t n = comm < 0 ? 0 : tide_sysio_read(comm, name, sizeof(name) - 1, NULL);
	name[TIDE_MAX(n, 0)] = '\0';
	name[strcspn(name, "\n")] = '\0';
	return tide_error_hint(err, "Is another process using the image [%s]? Process %d (%s) is.", path, (int)pid,
	                       name[0] ? name : "name unknown");
}

/* ---- images ------------------------------------------------------------------------ */

static int lock_bytes(int fd, unsigned base, unsigned perms, const char *path, struct tide_error *err)
{
	for (unsigned i = 0; i < TIDE_ARRAY_SIZE(perm_names); i++) {
		int sys = perms & (1U << i) ? set_lock(fd, F_RDLCK, base + i, 1) : 0;
		if (sys == EAGAIN || sys == EACCES) {
			tide_error_set(err, TIDE_E_LOCKED, "Failed to lock byte %u", base + i);
			return hint_holder(fd, -1, path, err);
		}
		if (sys != 0)
			return tide_error_set_sys(err, sys, "Failed to lock byte %u", base + i);
	}
	return 0;
}

static int check_bytes(int fd, unsigned base, unsigned perms, const char *path, struct tide_error *err)
{
	for (unsigned i = 0; i < TIDE_ARRAY_SIZE(perm_names); i++) {
		bool locked = false;
		pid_t pid = -1;
		int sys = perms & (1U << i) ? test_lock(fd, base + i, &locked, &pid) : 0;
		if (sys != 0)
			return tide_error_set_sys(err, sys, "Failed to query the lock of byte %u", base + i);
		if (locked) {
			tide_error_set(err, TIDE_E_LOCKED, "Failed to get %s\"%s\" lock",
			               base == PERM_BASE ? "shared " : "", perm_names[i]);
			return hint_holder(fd, pid, path, err);
		}
	}
	return 0;
}

static void unlock_bytes(int fd, unsigned base, unsigned perms)
{
	for (unsigned i = 0; i < TIDE_ARRAY_SIZE(perm_names); i++)
		if (perms & (1U << i))
			set_lock(fd, F_UNLCK, base + i, 1);
}

void tide_lock_release(int fd, unsigned held, unsigned unshared)
{
	unlock_bytes(fd, PERM_BASE, held);
	unlock_bytes(fd, SHARED_BASE, unshared);
}

int tide_lock_acquire(int fd, unsigned held, unsigned unshared, const char *path, struct tide_error *err)
{
	if (lock_bytes(fd, PERM_BASE, held, path, err) == 0 && lock_bytes(fd, SHARED_BASE, unshared, path, err) == 0 &&
	    check_bytes(fd, SHARED_BASE, held, path, err) == 0 && check_bytes(fd, PERM_BASE, unshared, path, err) == 0)
		return 0;
	tide_lock_release(fd, held, unshared);
	return -1;
}

void tide_lock_lower(int fd, unsigned held)
{
	unlock_bytes(fd, PERM_BASE, held);
}

static int try_raise(int fd, unsigned held, const char *path, struct tide_error *err)
{
	if (check_bytes(fd, SHARED_BASE, held, path, err) < 0)
		return -1;
	/* Checks again with the lock taken: of two programs that check at the same time, both could find it free. */
	if (lock_bytes(fd, PERM_BASE, held, path, err) == 0 && check_bytes(fd, SHARED_BASE, held, path, err) == 0)
		return 0;
	tide_lock_lower(fd, held);
	return -1;
}

int tide_lock_raise(int fd, unsigned held, unsigned timeout_ms, const atomic_bool *cancel, const char *path,
                    struct tide_error *err)
{
	struct wait w = wait_begin(timeout_ms, cancel);

	for (;;) {
		bool last = wait_is_over(&w);

		if (try_raise(fd, held, path, last ? err : NULL) == 0)
			return 0;
		if (last || wait_pause(&w, err) < 0)
			return -1;
	}
}

/* ---- tokens ------------------------------------------------------------------------ */

int tide_lock_token_new(uint64_t *token, struct tide_error *err)
{
	do {
		if (getrandom(token, sizeof(*token), 0) != (ssize_t)sizeof(*token))
			return tide_error_set_sys(err, errno, "Could not get random bytes");
		*token &= TIDE_LOCK_TOKEN_MAX;
	} while (*token == 0);
	return 0;
}

int tide_lock_token_hold(int fd, uint64_t token, struct tide_error *err)
{
	int sys = set_lock(fd, F_RDLCK, TOKEN_BASE + token, 1);

	return sys == 0 ? 0 : tide_error_set_sys(err, sys, "Failed to lock the byte of a job");
}

void tide_lock_token_drop(int fd, uint64_t token)
{
	set_lock(fd, F_UNLCK, TOKEN_BASE + token, 1);
}

int tide_lock_token_is_held(int fd, uint64_t token, struct tide_error *err)
{
	bool locked = false;
	pid_t pid;
	int sys = fd < 0 ? 0 : test_lock(fd, TOKEN_BASE + token, &locked, &pid);

	return sys == 0 ? locked : tide_error_set_sys(err, sys, "Failed to query the lock of a job");
}

/* ---- bitmaps inside images --------------------------------------------------------- */

int tide_lock_bitmaps(int fd, unsigned timeout_ms, const atomic_bool *cancel, const char *path, struct tide_error *err)
{
	struct wait w = wait_begin(timeout_ms, cancel);

	for (;;) {
		int sys = set_lock(fd, F_WRLCK, TOKEN_BASE, 1), job;

		if (sys == 0)
			return 0;
		if (sys != EAGAIN && sys != EACCES)
			return tide_error_set_sys(err, sys, "Failed to lock the bitmaps inside '%s'", path);
		job = tide_lock_token_is_held(fd, TIDE_LOCK_TOKEN_JOB, err);
		if (job < 0)
			return -1;
		if (job || wait_is_over(&w)) {
			tide_error_set(err, TIDE_E_LOCKED, "Another program is about to change the bitmaps inside '%s'",
			               path);
			return tide_error_hint(err,
			                       "wait until it ends: it is a backup that uses one of these bitmaps");
		}
		if (wait_pause(&w, err) < 0)
			return -1;
	}
}

void tide_lock_bitmaps_drop(int fd)
{
	set_lock(fd, F_UNLCK, TOKEN_BASE, 1);
}

/* ---- sidecars ---------------------------------------------------------------------- */

int tide_lock_exclusive(int fd, unsigned timeout_ms, const atomic_bool *cancel, struct tide_error *err)
{
	struct wait w = wait_begin(timeout_ms, cancel);

	for (;;) {
		/* The lock ends before the tokens, which other programs may hold meanwhile. */
		int sys = set_lock(fd, F_WRLCK, 0, TOKEN_BASE);

		if (sys == 0)
			return 0;
		if (sys != EAGAIN && sys != EACCES)
			return tide_error_set_sys(err, sys, "Failed to lock the file");
		if (wait_is_over(&w))
			return tide_error_set(err, TIDE_E_LOCKED, "The file is being changed by another process");
		if (wait_pause(&w, err) < 0)
			return -1;
	}
}
