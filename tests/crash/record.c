/*
 * A preload library: it writes all changes that a command makes in one directory to a tape, in their order:
 * writes, holes, lengths, names and syncs.  A shared mapping is compared with a copy before each event, and a
 * difference counts as a write at that moment.
 *
 * POWER_DIR   the directory, the current one; its files are recognised by their device
 * POWER_TAPE  the tape, elsewhere: a sequence of struct event, the two names and the data (read by `power`)
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum op {
	NEW = 'n',
	WRITE = 'w',
	ZERO = 'z',
	SIZE = 's',
	SYNC = 'S',
	DATASYNC = 'D',
	DIRSYNC = 'd',
	LINK = 'l',
	RENAME = 'r',
	UNLINK = 'u'
};

struct event {
	uint64_t op, ino, off, len, size, sec, nsec; /* of the file, when all is done */
	char from[256], to[256];
};

static struct map {
	uint64_t ino, off, len;
	int fd;
	uint8_t *at, *copy;
} maps[16];

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct stat dir;
static int tape = -1;

__attribute__((constructor)) static void begin(void)
{
	const char *path = getenv("POWER_TAPE"), *where = getenv("POWER_DIR");

	if (path && where && stat(where, &dir) == 0)
		tape = (int)syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

static void put(const void *data, size_t len)
{
	if (syscall(SYS_write, tape, data, len) != (long)len)
		abort();
}

static bool is_ours(int fd, struct stat *st)
{
	return tape >= 0 && fd >= 0 && fstat(fd, st) == 0 && st->st_dev == dir.st_dev && S_ISREG(st->st_mode);
}

static const char *base(const char *path)
{
	const char *slash = strrchr(path, '/');

	return slash ? slash + 1 : path;
}

static void tell(enum op op, const struct stat *st, uint64_t off, uint64_t len, const void *data, const char *from,
                 const char *to)
{
	struct event e = { .op = op,
		           .ino = st->st_ino,
		           .off = off,
		           .len = len,
		           .size = (uint64_t)st->st_size,
		           .sec = (uint64_t)st->st_mtim.tv_sec,
		           .nsec = (uint64_t)st->st_mtim.tv_nsec };

	snprintf(e.from, sizeof(e.from), "%s", base(from));
	snprintf(e.to, sizeof(e.to), "%s", base(to));
	put(&e, sizeof(e));
	if (data)
		put(data, len);
}

static void tell_map(struct map *m)
{
	struct stat st;

	if (fstat(m->fd, &st) < 0)
		return;
	for (uint64_t at = 0; at < m->len; at += 512) {
		uint64_t n = m->len - at < 512 ? m->len - at : 512;

		if (!memcmp(m->at + at, m->copy + at, n))
			continue;
		memcpy(m->copy + at, m->at + at, n);
		tell(WRITE, &st, m->off + at, n, m->copy + at, "", "");
	}
}

static void enter(void)
{
	pthread_mutex_lock(&lock);
	for (size_t i = 0; tape >= 0 && i < sizeof(maps) / sizeof(maps[0]); i++)
		if (maps[i].at)
			tell_map(&maps[i]);
}

static void leave(void)
{
	int sys = errno;

	pthread_mutex_unlock(&lock);
	errno = sys;
}

__attribute__((destructor)) static void end(void)
{
	enter();
	leave();
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

int open64(const char *path, int flags, ...)
{
	struct stat st, was;
	va_list ap;

	va_start(ap, flags);
	bool nameless = (flags & O_TMPFILE) == O_TMPFILE;
	mode_t mode = (flags & O_CREAT) || nameless ? va_arg(ap, mode_t) : 0;
	va_end(ap);
	enter();
	bool existed = lstat(path, &was) == 0;
	int fd = REAL(open64)(path, flags, mode);
	if (is_ours(fd, &st)) {
		if (nameless || !existed)
			tell(NEW, &st, 0, 0, NULL, "", nameless ? "" : path);
		else if (flags & O_TRUNC)
			tell(SIZE, &st, 0, 0, NULL, "", "");
	}
	leave();
	return fd;
}

ssize_t pwrite64(int fd, const void *buf, size_t n, off64_t off)
{
	struct stat st;

	enter();
	ssize_t done = REAL(pwrite64)(fd, buf, n, off);
	if (done > 0 && is_ours(fd, &st))
		tell(WRITE, &st, (uint64_t)off, (uint64_t)done, buf, "", "");
	leave();
	return done;
}

ssize_t write(int fd, const void *buf, size_t n)
{
	struct stat st;

	enter();
	ssize_t done = REAL(write)(fd, buf, n);
	if (done > 0 && is_ours(fd, &st))
		tell(WRITE, &st, (uint64_t)(lseek(fd, 0, SEEK_CUR) - done), (uint64_t)done, buf, "", "");
	leave();
	return done;
}

static int synced(int fd, int rc, enum op op)
{
	struct stat st;

	if (rc == 0 && is_ours(fd, &st))
		tell(op, &st, 0, 0, NULL, "", "");
	else if (rc == 0 && tape >= 0 && fstat(fd, &st) == 0 && st.st_dev == dir.st_dev && st.st_ino == dir.st_ino)
		tell(DIRSYNC, &st, 0, 0, NULL, "", "");
	return rc;
}

int fsync(int fd)
{
	enter();
	int rc = synced(fd, REAL(fsync)(fd), SYNC);
	leave();
	return rc;
}

int fdatasync(int fd)
{
	enter();
	int rc = synced(fd, REAL(fdatasync)(fd), DATASYNC);
	leave();
	return rc;
}

int ftruncate64(int fd, off64_t len)
{
	struct stat st;

	enter();
	int rc = REAL(ftruncate64)(fd, len);
	if (rc == 0 && is_ours(fd, &st))
		tell(SIZE, &st, 0, 0, NULL, "", "");
	leave();
	return rc;
}

/* The modification time is part of each event. */
int futimens(int fd, const struct timespec times[2])
{
	struct stat st;

	enter();
	int rc = REAL(futimens)(fd, times);
	if (rc == 0 && is_ours(fd, &st))
		tell(SIZE, &st, 0, 0, NULL, "", "");
	leave();
	return rc;
}

int fallocate64(int fd, int mode, off64_t off, off64_t len)
{
	struct stat st;

	enter();
	int rc = REAL(fallocate64)(fd, mode, off, len);
	if (rc == 0 && is_ours(fd, &st))
		tell(mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE) ? ZERO : SIZE, &st, (uint64_t)off,
		     (uint64_t)len, NULL, "", "");
	leave();
	return rc;
}

/* Names: what stands under the new one tells which file it is. */
static int named(int rc, enum op op, const char *from, const char *to)
{
	struct stat st;

	if (rc == 0 && tape >= 0 && lstat(to, &st) == 0 && st.st_dev == dir.st_dev)
		tell(op, &st, 0, 0, NULL, from, to);
	return rc;
}

int rename(const char *from, const char *to)
{
	enter();
	int rc = named(REAL(rename)(from, to), RENAME, from, to);
	leave();
	return rc;
}

int renameat2(int fd, const char *from, int fd2, const char *to, unsigned flags)
{
	enter();
	int rc = named(REAL(renameat2)(fd, from, fd2, to, flags), RENAME, from, to);
	leave();
	return rc;
}

int link(const char *from, const char *to)
{
	enter();
	int rc = named(REAL(link)(from, to), LINK, from, to);
	leave();
	return rc;
}

int linkat(int fd, const char *from, int fd2, const char *to, int flags)
{
	enter();
	int rc = named(REAL(linkat)(fd, from, fd2, to, flags), LINK, from, to);
	leave();
	return rc;
}

int unlink(const char *path)
{
	struct stat st = { 0 };

	enter();
	bool ours = tape >= 0 && lstat(path, &st) == 0 && st.st_dev == dir.st_dev;
	int rc = REAL(unlink)(path);
	if (rc == 0 && ours)
		tell(UNLINK, &st, 0, 0, NULL, path, "");
	leave();
	return rc;
}

void *mmap64(void *addr, size_t len, int prot, int flags, int fd, off64_t off)
{
	struct stat st;

	enter();
	void *at = REAL(mmap64)(addr, len, prot, flags, fd, off);
	for (size_t i = 0; at != MAP_FAILED && (flags & MAP_SHARED) && (prot & PROT_WRITE) && is_ours(fd, &st); i++) {
		if (i == sizeof(maps) / sizeof(maps[0]))
			abort();
		if (maps[i].at)
			continue;
		maps[i] = (struct map){ st.st_ino, (uint64_t)off, len, dup(fd), at, malloc(len) };
		memcpy(maps[i].copy, at, len);
		break;
	}
	leave();
	return at;
}

int munmap(void *addr, size_t len)
{
	enter();
	for (size_t i = 0; i < sizeof(maps) / sizeof(maps[0]); i++) {
		if (maps[i].at != addr || !addr)
			continue;
		close(maps[i].fd);
		free(maps[i].copy);
		maps[i] = (struct map){ 0 };
	}
	leave();
	return (int)syscall(SYS_munmap, addr, len);
}

/* What moves data behind this library's back is not there: the caller has other ways. */
ssize_t copy_file_range(int in, off64_t *in_off, int out, off64_t *out_off, size_t n, unsigned flags)
{
	errno = ENOSYS;
	return -1;
}

int ioctl(int fd, unsigned long request, ...)
{
	va_list ap;

	va_start(ap, request);
	void *arg = va_arg(ap, void *);
	va_end(ap);
	if (request != FICLONERANGE && request != FICLONE)
		return REAL(ioctl)(fd, request, arg);
	errno = EOPNOTSUPP;
	return -1;
}
