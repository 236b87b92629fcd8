/*
 * Files that get their name only when they are complete: written without a name where the file
 * system can, otherwise under a temporary one; then synced, renamed, and made durable with their
 * directory (sysio.h).
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "error.h"
#include "mem.h"
#include "sysio.h"

enum { TEMP_TRIES = 100, TEMP_SUFFIX = 6, TEMP_STEM = 240 };

static const char letters[] = "abcdefghijklmnopqrstuvwxyz0123456789";

/* The length of the directory part, without the slashes at its end. */
static size_t parent_len(const char *path)
{
	size_t n = (size_t)(tide_sysio_base_name(path) - path);

	while (n > 0 && path[n - 1] == '/')
		n--;
	return n;
}

bool tide_staged_is_temp(const char *tmp, const char *path)
{
	const char *name = tide_sysio_base_name(tmp), *base = tide_sysio_base_name(path);
	size_t n = parent_len(tmp), stem = strnlen(base, TEMP_STEM);

	return n == parent_len(path) && !memcmp(tmp, path, n) && stem > 0 && strlen(name) == stem + 2 + TEMP_SUFFIX &&
	       name[0] == '.' && !memcmp(name + 1, base, stem) && name[stem + 1] == '.' &&
	       strspn(name + stem + 2, letters) == TEMP_SUFFIX;
}

/* A temporary name that most likely is free: DIR/.NAME. and six letters. */
static char *temp_name(const struct tide_staged *st, struct tide_error *err)
{
	unsigned char raw[TEMP_SUFFIX];
	char suffix[TEMP_SUFFIX + 1] = "";

	if (getrandom(raw, sizeof(raw), 0) != (ssize_t)sizeof(raw)) {
		tide_error_set_sys(err, errno, "Could not get random bytes");
		return NULL;
	}
	for (size_t i = 0; i < TEMP_SUFFIX; i++)
		suffix[i] = letters[raw[i] % (sizeof(letters) - 1)];
	return tide_mem_printf(err, "%s/.%.*s.%s", st->dir, TEMP_STEM, tide_sysio_base_name(st->path), suffix);
}

static int cannot_create(const struct tide_staged *st, int sys, struct tide_error *err)
{
	return tide_error_set_sys(err, sys, "Could not create '%s'", st->path);
}

/* Gives the nameless file the name `to`. */
static int link_fd(const struct tide_staged *st, const char *to)
{
	char proc[64];

	snprintf(proc, sizeof(proc), "/proc/self/fd/%d", st->fd);
	return linkat(AT_FDCWD, proc, AT_FDCWD, to, AT_SYMLINK_FOLLOW);
}

/* Opens a file without a name, if the file system and /proc allow that. */
static void open_nameless(struct tide_staged *st)
{
	char proc[64];

	st->fd = open(st->dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	if (st->fd < 0)
		return;
	snprintf(proc, sizeof(proc), "/proc/self/fd/%d", st->fd);
	if (access(proc, F_OK) < 0) {
		tide_sysio_close(st->fd);
		st->fd = -1;
		errno = EOPNOTSUPP;
	}
}

/* Tries temporary names until one is free; make is open or link. */
static int take_temp_name(struct tide_staged *st, int (*make)(struct tide_staged *st, const char *tmp),
                          struct tide_error *err)
{
	for (int i = 0; i < TEMP_TRIES; i++) {
		char *tmp TIDE_AUTOFREE = temp_name(st, err);
		if (!tmp)
			return -1;
		if (make(st, tmp) == 0) {
			st->tmp = tmp;
			tmp = NULL;
			return 0;
		}
		if (errno != EEXIST)
			break;
	}
	return cannot_create(st, errno, err);
}

static int make_by_open(struct tide_staged *st, const char *tmp)
{
	st->fd = open(tmp, O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC | O_NOFOLLOW, 0600);
	return st->fd < 0 ? -1 : 0;
}

static int make_by_link(struct tide_staged *st, const char *tmp)
{
	return link_fd(st, tmp);
}

/* An existing file at the final name must be one that a rename may replace. */
static int check_final_name(const struct tide_staged *st, struct tide_error *err)
{
	struct stat sb;

	if (*tide_sysio_base_name(st->path) == '\0')
		return cannot_create(st, *st->path ? EISDIR : ENOENT, err);
	if (lstat(st->path, &sb) < 0)
		return errno == ENOENT ? 0 : cannot_create(st, errno, err);
	if (S_ISDIR(sb.st_mode))
		return cannot_create(st, EISDIR, err);
	if (!S_ISREG(sb.st_mode) && !S_ISLNK(sb.st_mode))
		return tide_error_set(err, TIDE_E_REFUSED,
		                      "Could not create '%s': the existing file is not a regular file", st->path);
	return 0;
}

static int begin(struct tide_staged *st, mode_t mode, struct tide_error *err)
{
	if (check_final_name(st, err) < 0)
		return -1;
	open_nameless(st);
	if (st->fd < 0 && errno != EOPNOTSUPP && errno != EISDIR && errno != ENOENT && errno != EINVAL &&
	    errno != ENOSYS)
		return cannot_create(st, errno, err);
	if (st->fd < 0 && take_temp_name(st, make_by_open, err) < 0)
		return -1;
	if (fchmod(st->fd, mode) < 0)
		return cannot_create(st, errno, err);
	return 0;
}

int tide_staged_begin(struct tide_staged *st, const char *path, mode_t mode, struct tide_error *err)
{
	size_t dir_len = (size_t)(tide_sysio_base_name(path) - path);

	*st = (struct tide_staged)TIDE_STAGED_INIT;
	st->path = tide_mem_strdup(path, err);
	/* Removes the slash, except the root's. */
	st->dir = dir_len == 0 ? tide_mem_strdup(".", err)
	                       : tide_mem_strndup(path, TIDE_MAX(dir_len - 1, (size_t)1), err);
	if (!st->path || !st->dir || begin(st, mode, err) < 0) {
		tide_staged_release(st);
		return -1;
	}
	return 0;
}

int tide_staged_flush(struct tide_staged *st, struct tide_error *err)
{
	if (st->synced)
		return 0;
	if (fsync(st->fd) < 0)
		return tide_error_set_sys(err, errno, "Could not flush '%s'", st->path);
	st->synced = true;
	return 0;
}

int tide_staged_sync(struct tide_staged *st, struct tide_error *err)
{
	return tide_staged_flush(st, err) < 0 || (!st->tmp && take_temp_name(st, make_by_link, err) < 0) ? -1 : 0;
}

/* Renames the temporary name to the final one unless that exists. */
static int rename_exclusive(struct tide_staged *st)
{
	if (renameat2(AT_FDCWD, st->tmp, AT_FDCWD, st->path, RENAME_NOREPLACE) == 0)
		return 0;
	if (errno != EINVAL && errno != ENOSYS)
		return -1;
	if (link(st->tmp, st->path) < 0)
		return -1;
	unlink(st->tmp);
	return 0;
}

static int put_name(struct tide_staged *st, bool exclusive, struct tide_error *err)
{
	if (!st->tmp) {
		if (link_fd(st, st->path) == 0)
			return 0;
		if (exclusive || errno != EEXIST)
			return cannot_create(st, errno, err);
		if (take_temp_name(st, make_by_link, err) < 0)
			return -1;
	}
	if ((exclusive ? rename_exclusive(st) : rename(st->tmp, st->path)) < 0)
		return cannot_create(st, errno, err);
	free(st->tmp);
	st->tmp = NULL;
	return 0;
}

int tide_staged_commit(struct tide_staged *st, bool exclusive, struct tide_error *err)
{
	if (tide_staged_flush(st, err) < 0)
		return -1;
	/* The directory is opened first, so that once the file has its name only the sync itself can fail. */
	int dir TIDE_AUTOCLOSE = tide_sysio_open(st->dir, O_RDONLY | O_DIRECTORY, err);
	if (dir < 0 || put_name(st, exclusive, err) < 0)
		return -1;
	st->named = true;
	if (fsync(dir) < 0 && errno != EINVAL)
		return tide_error_set_sys(err, errno, "Could not flush directory '%s'", st->dir);
	return 0;
}

int tide_staged_publish(struct tide_staged *st, struct tide_error *err)
{
	if (tide_staged_flush(st, err) < 0)
		return -1;
	if ((st->tmp ? rename_exclusive(st) : link_fd(st, st->path)) < 0)
		return errno == EEXIST ? 1 : cannot_create(st, errno, err);
	free(st->tmp);
	st->tmp = NULL;
	return 0;
}

void tide_staged_release(struct tide_staged *st)
{
	if (st->tmp && !st->kept)
		unlink(st->tmp);
	tide_sysio_close(st->fd);
	free(st->path);
	free(st->tmp);
	free(st->dir);
	*st = (struct tide_staged)TIDE_STAGED_INIT;
}
