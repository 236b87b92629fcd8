/*
 * System calls on files that are repeated after a signal and continued after a short transfer, with
 * errors in one form (sysio.h). Also: real paths, sizes, holes, zeroing, and a fast test for
 * zeroes.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "error.h"
#include "mem.h"
#include "range.h"
#include "sysio.h"

int tide_sysio_open(const char *path, int flags, struct tide_error *err)
{
	int fd;

	do
		fd = open(path, flags | O_CLOEXEC | O_NOCTTY, 0666);
	while (fd < 0 && errno == EINTR);
	if (fd < 0)
		tide_error_set_sys(err, errno, "Could not open '%s'", path);
	return fd;
}

int tide_sysio_reopen(int fd, int flags)
{
	char name[64];

	snprintf(name, sizeof(name), "/proc/self/fd/%d", fd);
	return open(name, flags | O_CLOEXEC | O_NOCTTY);
}

/* Opens the node that the kernel made for the device; -1: it has none, or it cannot be opened. */
static int open_kernels_node(const struct stat *dev, int flags)
{
	char name[64], text[4096], path[256];
	struct stat st;
	ssize_t n;
	char *at;
	int fd;

	snprintf(name, sizeof(name), "/sys/dev/block/%u:%u/uevent", major(dev->st_rdev), minor(dev->st_rdev));
	fd = open(name, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
	tide_sysio_close(fd);
	if (n <= 0)
		return -1;
	text[n] = '\0';
	at = strstr(text, "DEVNAME=");
	if (!at || (at != text && at[-1] != '\n'))
		return -1;
	at[strcspn(at, "\n")] = '\0';
	if ((size_t)snprintf(path, sizeof(path), "/dev/%s", at + strlen("DEVNAME=")) >= sizeof(path) ||
	    stat(path, &st) < 0 || !S_ISBLK(st.st_mode) || st.st_rdev != dev->st_rdev ||
	    (st.st_dev == dev->st_dev && st.st_ino == dev->st_ino))
		return -1;
	return open(path, flags | O_CLOEXEC | O_NOCTTY);
}

int tide_sysio_open_disk(const char *path, int flags, struct tide_error *err)
{
	int fd = tide_sysio_open(path, flags, err), own;
	struct stat st;

	if (fd < 0 || fstat(fd, &st) < 0 || !S_ISBLK(st.st_mode))
		return fd;
	own = open_kernels_node(&st, flags);
	if (own < 0)
		return fd;
	close(fd);
	return own;
}

int tide_sysio_claim(int fd, const char *path, int *claim, struct tide_error *err)
{
	struct stat st;
	int sys;

	*claim = -1;
	if (fstat(fd, &st) < 0 || !S_ISBLK(st.st_mode))
		return 0;
	*claim = tide_sysio_reopen(fd, O_RDONLY | O_EXCL);
	if (*claim >= 0)
		return 0;
	sys = errno;
	tide_error_set_sys(err, sys, "Could not open '%s'", path);
	return sys != EBUSY ? -1
	                    : tide_error_hint(err, "the device is mounted, part of another device, or written by a "
	                                           "program that opened it through another node");
}

void tide_sysio_close(int fd)
{
	int sys = errno;

	if (fd >= 0)
		close(fd);
	errno = sys;
}

void tide_sysio_closep(int *fd)
{
	tide_sysio_close(*fd);
}

/* One transfer at an offset, or from a stream when off is NULL; repeated after a signal. */
static ssize_t read_some(int fd, void *buf, size_t len, const uint64_t *off)
{
	ssize_t n;

	do
		n = off ? pread(fd, buf, len, (off_t)*off) : read(fd, buf, len);
	while (n < 0 && errno == EINTR);
	return n;
}

int tide_sysio_pread(int fd, void *buf, size_t len, uint64_t off, bool zero_eof, struct tide_error *err)
{
	size_t done = 0;

	while (done < len) {
		uint64_t at = off + done;
		ssize_t n = read_some(fd, (char *)buf + done, len - done, &at);
		if (n < 0)
			return tide_error_set_sys(err, errno, "Could not read %zu bytes at %" PRIu64, len, off);
		if (n == 0)
			break;
		done += (size_t)n;
	}
	if (done < len && !zero_eof)
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "Could not read %zu bytes at %" PRIu64 ": the file ends at %" PRIu64, len, off,
		                      off + done);
	memset((char *)buf + done, 0, len - done);
	return 0;
}

int tide_sysio_pwrite(int fd, const void *buf, size_t len, uint64_t off, struct tide_error *err)
{
	size_t done = 0;

	while (done < len) {
		ssize_t n = pwrite(fd, (const char *)buf + done, len - done, (off_t)(off + done));
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return tide_error_set_sys(err, n < 0 ? errno : EIO, "Could not write %zu bytes at %" PRIu64,
			                          len, off);
		done += (size_t)n;
	}
	return 0;
}

ssize_t tide_sysio_read(int fd, void *buf, size_t len, struct tide_error *err)
{
	size_t done = 0;

	while (done < len) {
		ssize_t n = read_some(fd, (char *)buf + done, len - done, NULL);
		if (n < 0)
			return tide_error_set_sys(err, errno, "Could not read");
		if (n == 0)
			break;
		done += (size_t)n;
	}
	return (ssize_t)done;
}

int tide_sysio_fdatasync(int fd, struct tide_error *err)
{
	int ret;

	do
		ret = fdatasync(fd);
	while (ret < 0 && errno == EINTR);
	return ret < 0 ? tide_error_set_sys(err, errno, "Could not flush") : 0;
}

char *tide_sysio_dir_name(const char *path, struct tide_error *err)
{
	const char *slash = strrchr(path, '/');

	if (!slash)
		return tide_mem_strdup(".", err);
	return tide_mem_strndup(path, slash == path ? 1 : (size_t)(slash - path), err);
}

/* EACCES and ELOOP count too, because the path cannot be opened either. */
static bool leads_nowhere(int sys)
{
	return sys == ENOENT || sys == ENOTDIR || sys == EACCES || sys == ELOOP;
}

int tide_sysio_real_path(const char *path, char **real, struct tide_error *err)
{
	TIDE_AUTOFREE char *buf = tide_mem_alloc(PATH_MAX, 1, err);

	*real = NULL;
	if (!buf)
		return -1;
	if (!realpath(path, buf))
		return leads_nowhere(errno) ? 0
		                            : tide_error_set_sys(err, errno, "Could not resolve the path '%s'", path);
	*real = tide_mem_strdup(buf, err);
	return *real ? 0 : -1;
}

int tide_sysio_real_dir(const char *path, char **real, struct tide_error *err)
{
	TIDE_AUTOFREE char *dir = tide_sysio_dir_name(path, err);

	*real = NULL;
	return dir ? tide_sysio_real_path(dir, real, err) : -1;
}

int tide_sysio_check_place(const char *path, const char *final, const char *what, struct tide_error *err)
{
	struct stat st;

	if (!strcmp(path, "-")) {
		tide_error_set(err, TIDE_E_REFUSED, "Could not create '-': %s cannot be written to standard output",
		               what);
		return tide_error_hint(err, "for a file of this name, write ./-");
	}
	if (strncmp(final, "/dev/", 5) || !strncmp(final, "/dev/shm/", 9) ||
	    (stat(final, &st) == 0 && !S_ISREG(st.st_mode)))
		return 0;
	tide_error_set(err, TIDE_E_REFUSED, "Could not create '%s': it would be a regular file in /dev", path);
	return tide_error_hint(err, "no device has this name; is it spelled correctly, and attached?");
}

const char *tide_sysio_base_name(const char *path)
{
	const char *slash = strrchr(path, '/');

	return slash ? slash + 1 : path;
}

/* No file has a name that is longer than the file system permits; but a path that is too long may lead to a file. */
bool tide_sysio_is_absent(const char *path, int sys)
{
	return sys == ENOENT || (sys == ENAMETOOLONG && strlen(path) < PATH_MAX);
}

bool tide_sysio_is_never_file(int sys)
{
	return sys == EISDIR || sys == ELOOP || sys == ENXIO;
}

int tide_sysio_fsync_dir(const char *path, struct tide_error *err)
{
	char *dir TIDE_AUTOFREE = tide_sysio_dir_name(path, err);

	if (!dir)
		return -1;
	int fd TIDE_AUTOCLOSE = tide_sysio_open(dir, O_RDONLY | O_DIRECTORY, err);
	if (fd < 0)
		return -1;
	/* EINVAL: directories of this file system need no sync. */
	if (fsync(fd) < 0 && errno != EINVAL)
		return tide_error_set_sys(err, errno, "Could not flush directory '%s'", dir);
	return 0;
}

int tide_sysio_size(int fd, uint64_t *size, struct tide_error *err)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		return tide_error_set_sys(err, errno, "Could not get the size");
	if (S_ISREG(st.st_mode)) {
		*size = (uint64_t)st.st_size;
		return 0;
	}
	if (!S_ISBLK(st.st_mode))
		return tide_error_set(err, TIDE_E_REFUSED, "%s is neither a regular file nor a block device",
		                      S_ISDIR(st.st_mode) ? "A directory" : "This");
	if (ioctl(fd, BLKGETSIZE64, size) < 0)
		return tide_error_set_sys(err, errno, "Could not get the size of the block device");
	return 0;
}

void tide_sysio_extent(int fd, uint64_t off, uint64_t limit, bool *data, uint64_t *len)
{
	*data = true;
	*len = limit;
	if (off > INT64_MAX)
		return;
	off_t next = lseek(fd, (off_t)off, SEEK_DATA);
	if (next < 0) {
		*data = errno != ENXIO;
		return;
	}
	*data = (uint64_t)next == off;
	if (*data)
		next = lseek(fd, (off_t)off, SEEK_HOLE);
	if (next > (off_t)off)
		*len = TIDE_MIN(limit, (uint64_t)next - off);
	else
		*data = true;
}

/* 0: done, 1: the file system or device does not have this operation, -1: error. */
static int try_fallocate(int fd, int mode, uint64_t off, uint64_t len, bool block)
{
	int ret;

	do
		ret = fallocate(fd, mode | FALLOC_FL_KEEP_SIZE, (off_t)off, (off_t)len);
	while (ret < 0 && errno == EINTR);
	if (ret == 0)
		return 0;
	/* Block devices answer EINVAL to ranges that are not whole sectors. */
	return errno == EOPNOTSUPP || errno == ENOSYS || errno == ENOTTY || errno == ENODEV ||
	                       (block && errno == EINVAL)
	               ? 1
	               : -1;
}

static int write_zeroes(int fd, uint64_t off, uint64_t len, struct tide_error *err)
{
	const size_t piece = 1 << 20;
	uint64_t size;

	if (tide_sysio_size(fd, &size, err) < 0)
		return -1;
	len = off < size ? TIDE_MIN(len, size - off) : 0;
	if (len == 0)
		return 0;
	char *zeroes TIDE_AUTOFREE = tide_mem_alloc(piece, 1, err);
	if (!zeroes)
		return -1;
	for (uint64_t done = 0; done < len; done += piece)
		if (tide_sysio_pwrite(fd, zeroes, (size_t)TIDE_MIN(len - done, piece), off + done, err) < 0)
			return -1;
	return 0;
}

int tide_sysio_zero(int fd, uint64_t off, uint64_t len, bool may_unmap, struct tide_error *err)
{
	static const int modes[] = { FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE };
	struct stat st;

	if (len == 0)
		return 0;
	if (!tide_range_is_within(off, len, INT64_MAX))
		return tide_error_set_sys(err, EFBIG, "Could not zero %" PRIu64 " bytes at %" PRIu64, len, off);
	if (fstat(fd, &st) < 0)
		return tide_error_set_sys(err, errno, "Could not get the type of the file");
	for (size_t i = may_unmap ? 0 : 1; i < TIDE_ARRAY_SIZE(modes); i++) {
		int ret = try_fallocate(fd, modes[i], off, len, S_ISBLK(st.st_mode));
		if (ret < 0)
			return tide_error_set_sys(err, errno, "Could not zero %" PRIu64 " bytes at %" PRIu64, len, off);
		if (ret == 0)
			return 0;
	}
	return write_zeroes(fd, off, len, err);
}

/* Compilers turn this into the widest registers that the target has. */
typedef uint64_t words __attribute__((vector_size(64)));

bool tide_sysio_is_zero(const void *buf, size_t len)
{
	const uint8_t *p = buf;

	/* A few bytes usually show that the buffer is not zero. */
	if (len > 0 && (p[0] | p[len / 2] | p[len - 1]) != 0)
		return false;
	for (; len >= 4 * sizeof(words); p += 4 * sizeof(words), len -= 4 * sizeof(words)) {
		words a, b, c, d;
		memcpy(&a, p, sizeof(a));
		memcpy(&b, p + sizeof(a), sizeof(b));
		memcpy(&c, p + 2 * sizeof(a), sizeof(c));
		memcpy(&d, p + 3 * sizeof(a), sizeof(d));
		a |= b | c | d;
		if ((a[0] | a[1] | a[2] | a[3] | a[4] | a[5] | a[6] | a[7]) != 0)
			return false;
	}
	uint64_t any = 0, w;
	for (; len >= sizeof(w); p += sizeof(w), len -= sizeof(w)) {
		memcpy(&w, p, sizeof(w));
		any |= w;
	}
	for (; len > 0; p++, len--)
		any |= *p;
	return any == 0;
}
