/*
 * The sidecar as a file: its default path, the lock, reading, and replacing it as a whole.
 *
 * Replacing gives the name to another file, so a lock counts only if the locked file still has the name; every locker
 * checks that after it got the lock, and tries again.  Symbolic links are not followed: in a directory that others can
 * write to, a link may be somebody else's.
 */
#include "store.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/checksum.h"
#include "base/error.h"
#include "base/lock.h"
#include "base/mem.h"
#include "base/owner.h"

#define LOCK_TIMEOUT_MS 10000
/* The largest sidecar, in bytes: it is held in memory as a whole. */
#define SIDECAR_MAX (UINT64_C(1) << 30)
/* The content of a claim.  The next program that locks it takes over a claim whose maker died. */
#define CLAIM      "tidemark sidecar to come\n"
#define DEVICE_DIR "/var/lib/tidemark"
/* How names begin that are made of a hash. */
#define HASHED ".tidemark-"

#define NAME_BYTES 255u /* of a file, in one directory */

/* The name that device-mapper has for a block device, or NULL. */
static char *mapper_name(dev_t rdev, struct tide_error *err)
{
	char path[64], name[256];
	int fd;
	ssize_t n;

	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/dm/name", major(rdev), minor(rdev));
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return NULL;
	n = read(fd, name, sizeof(name));
	close(fd);
	while (n > 0 && name[n - 1] == '\n')
		n--;
	return n > 0 ? tide_mem_strndup(name, (size_t)n, err) : NULL;
}

/* The first of the names that udev keeps stable across reboots, or NULL. */
static char *by_id_name(dev_t rdev, struct tide_error *err)
{
	DIR *dir = opendir("/dev/disk/by-id");
	char *best = NULL;
	struct dirent *e;

	if (!dir)
		return NULL;
	while ((e = readdir(dir))) {
		struct stat st;

		if (fstatat(dirfd(dir), e->d_name, &st, 0) < 0 || !S_ISBLK(st.st_mode) || st.st_rdev != rdev)
			continue;
		if (best && strcmp(best, e->d_name) <= 0)
			continue;
		free(best);
		best = tide_mem_strdup(e->d_name, err);
		if (!best)
			break;
	}
	closedir(dir);
	return best;
}

bool tide_store_is_reserved(const char *path)
{
	static const char *const ends[] = { "", ".log", ".lock", ".group", ".commit", ".sums" };
	const char *name = tide_sysio_base_name(path), *at;

	if (!strncmp(name, HASHED, strlen(HASHED)))
		return true;
	for (at = name; (at = strstr(at, ".bitmaps")); at++) {
		const char *end = at + strlen(".bitmaps");

		for (size_t i = 0; at > name && i < TIDE_ARRAY_SIZE(ends); i++) {
			if (!strcmp(end, ends[i]))
				return true;
		}
		if (at > name && (!strncmp(end, ".group-", 7) || !strncmp(end, ".commit-", 8)))
			return true;
	}
	return false;
}

char *tide_store_beside(const char *sidecar, const char *suffix, struct tide_error *err)
{
	const char *base = tide_sysio_base_name(sidecar);
	size_t n = strlen(sidecar), m = strlen(suffix);
	struct tide_sha256 sha;
	char hex[65], *path;

	if (strlen(base) + m <= NAME_BYTES) {
		/* Each command looks for these names: no formatted print. */
		path = tide_mem_alloc(n + m + 1, 1, err);
		if (path)
			memcpy((char *)memcpy(path, sidecar, n) + n, suffix, m + 1);
		return path;
	}
	tide_checksum_sha256_init(&sha);
	tide_checksum_sha256_update(&sha, base, strlen(base));
	tide_checksum_sha256_final(&sha, hex);
	return tide_mem_printf(err, "%.*s" HASHED "%.32s%s", (int)(base - sidecar), sidecar, hex, suffix);
}

char *tide_store_default(const char *path, struct tide_error *err)
{
	return tide_mem_printf(err, "%s.bitmaps", path);
}

char *tide_store_path(const char *image_path, const char *override, bool *nameless, struct tide_error *err)
{
	TIDE_AUTOFREE char *name = NULL;
	struct stat st;

	*nameless = false;
	if (override && override[0] != '/') {
		TIDE_AUTOFREE char *here = realpath(".", NULL);

		return here ? tide_mem_printf(err, "%s/%s", here, override) : tide_mem_strdup(override, err);
	}
	if (override)
		return tide_mem_strdup(override, err);
	if (stat(image_path, &st) < 0) {
		tide_error_set_sys(err, errno, "Could not open '%s'", image_path);
		return NULL;
	}
	if (!S_ISBLK(st.st_mode))
		return tide_store_default(image_path, err);
	name = mapper_name(st.st_rdev, err);
	if (!name)
		name = by_id_name(st.st_rdev, err);
	if (!name) {
		*nameless = true;
		tide_error_set(err, TIDE_E_REFUSED, "The device '%s' has no name that stays the same across reboots",
		               image_path);
		tide_error_hint(err, "say where its bitmaps belong: --sidecar PATH");
		return NULL;
	}
	return tide_mem_printf(err, DEVICE_DIR "/%s.bitmaps", name);
}

int tide_store_check_place(const char *sidecar, const char *override, struct tide_error *err)
{
	TIDE_AUTOFREE char *dir = NULL;
	TIDE_AUTOFREE char *final = NULL;

	if ((!override || strcmp(override, "-")) && access(sidecar, F_OK) == 0)
		return 0;
	if (tide_sysio_real_dir(sidecar, &dir, err) < 0)
		return -1;
	final = tide_mem_printf(err, "%s/%s", dir ? dir : "", tide_sysio_base_name(sidecar));
	return final ? tide_sysio_check_place(override ? override : sidecar, final, "a sidecar", err) : -1;
}

static bool is_claim(const void *data, uint64_t len)
{
	return len == strlen(CLAIM) && !memcmp(data, CLAIM, len);
}

/* A link may be somebody else's, in a directory that others can write to: it is not followed. */
static int open_failed(const char *path, struct tide_error *err)
{
	bool is_long = errno == ENAMETOOLONG;

	if (errno != ELOOP) {
		tide_error_set_sys(err, errno, "Could not open '%s'", path);
		if (is_long)
			tide_error_hint(err, "say where its bitmaps belong, under a shorter name: --sidecar PATH");
		return -1;
	}
	tide_error_set(err, TIDE_E_REFUSED, "The sidecar '%s' is a symbolic link", path);
	return tide_error_hint(err, "links are not followed here; say where the bitmaps are with --sidecar PATH");
}

static int read_part(void *ctx, void *buf, size_t len, uint64_t off, struct tide_error *err)
{
	return tide_sysio_pread(*(int *)ctx, buf, len, off, false, err);
}

static int load_fd(int fd, const char *path, struct tide_sidecar **sc, struct tide_error *err)
{
	struct tide_sidecar_reader reader = { read_part, &fd };
	char claim[sizeof(CLAIM)] = "";
	struct stat st;

	if (fstat(fd, &st) < 0)
		return tide_error_set_sys(err, errno, "Could not look at '%s'", path);
	if (!S_ISREG(st.st_mode))
		return tide_error_set(err, TIDE_E_REFUSED, "The sidecar '%s' is not a regular file", path);
	if ((uint64_t)st.st_size > SIDECAR_MAX)
		return tide_error_set(err, TIDE_E_CORRUPT, "The sidecar '%s' has %lld bytes: no sidecar is that large",
		                      path, (long long)st.st_size);
	if (st.st_size == (off_t)strlen(CLAIM) && tide_sysio_pread(fd, claim, strlen(CLAIM), 0, false, NULL) == 0 &&
	    is_claim(claim, (uint64_t)st.st_size))
		return 0;
	*sc = tide_sidecar_read(&reader, (size_t)st.st_size, err);
	if (!*sc && err && err->sys)
		return tide_error_wrap(err, "Could not read '%s'", path);
	if (!*sc) {
		tide_error_wrap(err, "The sidecar '%s' cannot be used", path);
		return tide_error_hint(err,
		                       "nothing was changed; put a good copy in its place, or move it away, add the "
		                       "bitmaps again and begin the chain with a full backup");
	}
	return 0;
}

int tide_store_load(const char *path, struct tide_sidecar **sc, struct tide_error *err)
{
	TIDE_AUTOCLOSE int fd = -1;

	*sc = NULL;
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK | O_NOFOLLOW);
	if (fd < 0 && tide_sysio_is_absent(path, errno))
		return 0;
	if (fd < 0)
		return open_failed(path, err);
	return load_fd(fd, path, sc, err);
}

int tide_store_is_current(const char *path, const struct tide_sidecar *sc, bool *current, struct tide_error *err)
{
	TIDE_AUTOCLOSE int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK | O_NOFOLLOW);
	uint8_t head[TIDE_SIDECAR_HEAD] = { 0 };

	*current = !sc;
	if (fd < 0)
		return tide_sysio_is_absent(path, errno) ? 0 : open_failed(path, err);
	if (tide_sysio_pread(fd, head, sizeof(head), 0, true, err) < 0)
		return tide_error_wrap(err, "Could not read '%s'", path);
	*current = (sc ? sc->checksum : 0) == tide_sidecar_checksum(head, sizeof(head));
	return 0;
}

/* Makes the claim: it is complete and locked before it gets its name. */
static int make_claim(struct tide_store *store, bool *again, struct tide_error *err)
{
	struct tide_staged st = TIDE_STAGED_INIT;
	int rc = -1;

	if (tide_staged_begin(&st, store->path, 0600, err) < 0)
		return -1;
	if (tide_lock_exclusive(st.fd, 0, NULL, err) < 0 || tide_sysio_pwrite(st.fd, CLAIM, strlen(CLAIM), 0, err) < 0)
		tide_error_wrap(err, "Could not make the sidecar '%s'", store->path);
	else
		rc = tide_staged_publish(&st, err);
	if (rc == 0) {
		store->lock_fd = st.fd;
		store->made = true;
		st.fd = -1;
	}
	tide_staged_release(&st);
	*again = rc > 0;
	return rc < 0 ? -1 : 0;
}

/* Opens and locks the file of that name, or makes a claim.  *again: the file was replaced meanwhile. */
static int lock_once(struct tide_store *store, bool create, bool *again, const atomic_bool *cancel,
                     struct tide_error *err)
{
	struct stat held, named;
	int fd = open(store->path, O_RDWR | O_CLOEXEC | O_NOCTTY | O_NONBLOCK | O_NOFOLLOW);

	*again = false;
	if (fd < 0 && !create && tide_sysio_is_absent(store->path, errno))
		return 0;
	if (fd < 0 && errno == ENOENT)
		return make_claim(store, again, err);
	if (fd < 0)
		return open_failed(store->path, err);
	store->lock_fd = fd;
	if (fstat(fd, &held) == 0 && !S_ISREG(held.st_mode)) {
		tide_error_set(err, TIDE_E_REFUSED, "'%s' is not a regular file, and so not a sidecar", store->path);
		return tide_error_hint(err, "move it away, or name another file with --sidecar");
	}
	if (tide_lock_exclusive(fd, LOCK_TIMEOUT_MS, cancel, err) < 0)
		return tide_error_wrap(err, "'%s'", store->path);
	if (fstat(fd, &held) < 0)
		return tide_error_set_sys(err, errno, "Could not look at '%s'", store->path);
	if (lstat(store->path, &named) == 0 && held.st_dev == named.st_dev && held.st_ino == named.st_ino) {
		char text[sizeof(CLAIM)] = "";

		if (tide_sysio_pread(fd, text, sizeof(text) - 1, 0, true, err) < 0)
			return -1;
		/* A claim whose maker was killed belongs to this program now. */
		store->made = is_claim(text, (uint64_t)held.st_size);
		return 0;
	}
	close(fd);
	store->lock_fd = -1;
	store->made = false;
	*again = true;
	return 0;
}

int tide_store_lock(struct tide_store *store, const char *path, bool create, const atomic_bool *cancel,
                    struct tide_error *err)
{
	store->path = tide_mem_strdup(path, err);
	if (!store->path)
		return -1;
	for (unsigned tries = 0; tries < 1000; tries++) {
		bool again;
		int rc = lock_once(store, create, &again, cancel, err);

		if (rc < 0)
			return -1;
		if (!again)
			return 0;
	}
	return tide_error_set(err, TIDE_E_LOCKED, "The sidecar '%s' is being replaced all the time", path);
}

int tide_store_check_owner(const struct tide_store *store, const char *image_path, int image_fd, struct tide_error *err)
{
	struct stat st;

	if (!store->made || fstat(image_fd, &st) < 0 || !S_ISREG(st.st_mode) || st.st_uid == geteuid() ||
	    eaccess(image_path, W_OK) == 0 || errno != EACCES || fchown(store->lock_fd, st.st_uid, (gid_t)-1) == 0)
		return 0;
	tide_error_set(err, TIDE_E_REFUSED,
	               "'%s' can only be read by you, and its owner could not change the bitmaps that you add",
	               image_path);
	return tide_error_hint(err, "let the owner add the first bitmap, or keep your own with --sidecar PATH");
}

int tide_store_set_owner_only(int fd, int image_fd, struct tide_error *err)
{
	struct stat st;

	if (fstat(image_fd, &st) < 0)
		return tide_error_set_sys(err, errno, "Could not look at the image's mode");
	if (!S_ISBLK(st.st_mode) && fchown(fd, st.st_uid, st.st_gid) < 0 && errno != EPERM)
		return tide_error_set_sys(err, errno, "Could not give it to the image's owner");
	return 0;
}

/* The owner of an image that is read-only must be able to change its bitmaps. */
int tide_store_set_owner(int fd, int image_fd, struct tide_error *err)
{
	return tide_owner_copy(fd, image_fd, 0600, err);
}

/* A sidecar that readers would refuse as too large is not written. */
static int write_part(void *ctx, const void *buf, size_t len, uint64_t off, struct tide_error *err)
{
	if (off + len <= SIDECAR_MAX)
		return tide_sysio_pwrite(*(int *)ctx, buf, len, off, err);
	tide_error_set(err, TIDE_E_REFUSED, "It would have more than %" PRIu64 " bytes", SIDECAR_MAX);
	return tide_error_hint(err, "use larger granules, or fewer bitmaps");
}

int tide_store_stage(struct tide_store *store, const struct tide_sidecar *sc, int image_fd, struct tide_error *err)
{
	struct tide_sidecar_writer writer = { write_part, &store->staged.fd };
	int rc = -1;

	if (tide_staged_begin(&store->staged, store->path, 0600, err) == 0 &&
	    tide_store_set_owner(store->staged.fd, image_fd, err) == 0 &&
	    tide_sidecar_write(sc, &writer, &store->checksum, err) == 0 && tide_staged_sync(&store->staged, err) == 0)
		rc = 0;
	return rc < 0 ? tide_error_wrap(err, "Could not write the sidecar '%s'", store->path) : 0;
}

int tide_store_commit(struct tide_store *store, struct tide_error *err)
{
	int rc = tide_staged_commit(&store->staged, false, err);

	/* The file may have its name although the sync failed: once a commit record lists it, it stays. */
	if (rc == 0 || (store->staged.kept && !store->staged.tmp))
		store->made = false;
	return rc < 0 ? tide_error_wrap(err, "Could not replace the sidecar '%s'", store->path) : 0;
}

/* Is the locked file still the one of that name?  A transaction that was recovered may have put a sidecar there. */
static bool is_named(const struct tide_store *store)
{
	struct stat held, named;

	return fstat(store->lock_fd, &held) == 0 && lstat(store->path, &named) == 0 && held.st_dev == named.st_dev &&
	       held.st_ino == named.st_ino;
}

void tide_store_release(struct tide_store *store)
{
	tide_staged_release(&store->staged);
	if (store->made && store->lock_fd >= 0 && is_named(store))
		unlink(store->path);
	tide_sysio_close(store->lock_fd);
	free(store->path);
	*store = (struct tide_store)TIDE_STORE_INIT;
}

int tide_store_distrust(struct tide_store *store, const char *path, int image_fd, bool *any, struct tide_error *err)
{
	struct tide_sidecar *sc = NULL;
	int rc = tide_store_load(path, &sc, err);

	*any = rc == 0 && sc && sc->n > 0;
	if (*any) {
		tide_sidecar_distrust(sc);
		sc->generation++;
		rc = tide_store_stage(store, sc, image_fd, err);
		if (rc == 0)
			rc = tide_store_commit(store, err);
	}
	tide_sidecar_free(sc);
	return rc;
}
