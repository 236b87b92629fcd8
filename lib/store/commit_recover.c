/*
 * Recovery of a commit record: finding the files by their identity, checking all, then renaming them.
 *
 * Directories are opened once and used by descriptor, so that a directory that is exchanged meanwhile cannot make a
 * rename hit another place than the one that was checked.
 */
#include "commit_recover.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"
#include "base/lock.h"
#include "base/mem.h"

#define LOCK_WAIT_MS 10000

/* ---- trust ------------------------------------------------------------------------- */

int tide_commit_recover_check_trust(int fd, const char *path, int image_fd, struct tide_error *err)
{
	struct stat st, image = { .st_uid = 0 };

	if (fstat(fd, &st) < 0 || (image_fd >= 0 && fstat(image_fd, &image) < 0))
		return tide_error_set_sys(err, errno, "Could not look at '%s'", path);
	if ((st.st_uid == 0 || st.st_uid == geteuid() || st.st_uid == image.st_uid) && !(st.st_mode & 022))
		return 0;
	tide_error_set(err, TIDE_E_CORRUPT, "'%s' looks like the record of a transaction, but %s", path,
	               st.st_mode & 022 ? "others can write it" : "neither you nor the owner of the image owns it");
	return tide_error_hint(err, "find out who made it; it has no effect once it is moved away");
}

int tide_commit_recover_lock(int fd, const char *path, const atomic_bool *cancel, struct tide_error *err)
{
	struct tide_commit_identity id;

	if ((fcntl(fd, F_GETFL) & O_ACCMODE) == O_RDONLY)
		return tide_error_set_sys(err, EACCES, "Could not open '%s', the record of a transaction, for writing",
		                          path);
	if (tide_lock_exclusive(fd, LOCK_WAIT_MS, cancel, err) < 0)
		return tide_error_wrap(err, "'%s'", path);
	if (tide_commit_identity_take(fd, &id, err) < 0)
		return -1;
	return tide_commit_identity_is(&id, AT_FDCWD, path, true);
}

void tide_commit_recover_names(const struct tide_commit_record *record, struct tide_strbuf *names)
{
	for (size_t i = 0; i < record->n; i++) {
		if (record->changes[i].kind == TIDE_COMMIT_RENAME)
			tide_strbuf_add(names, record->changes[i].path, strlen(record->changes[i].path) + 1);
	}
}

/* ---- places ------------------------------------------------------------------------ */

/* relative, from the directory of the record. */
static char *from_record(const char *relative, const char *record, struct tide_error *err)
{
	const char *slash = strrchr(record, '/');

	return tide_mem_printf(err, "%.*s%s", slash ? (int)(slash + 1 - record) : 0, record, relative);
}

/* Only these errors prove that a file does not exist. */
static bool is_absence(int sys)
{
	return sys == ENOENT || sys == ENOTDIR;
}

/* 1, 0: there is no such file, -1 */
static int exists(const char *path, struct tide_error *err)
{
	if (access(path, F_OK) == 0)
		return 1;
	return is_absence(errno) ? 0 : tide_error_set_sys(err, errno, "Could not look at '%s'", path);
}

/* Both places exist: the record was copied, together with files that it names. */
static int say_copied(const char *absolute, const char *moved, const char *record, struct tide_error *err)
{
	tide_error_set(
	        err, TIDE_E_REFUSED,
	        "The record of an interrupted transaction, '%s', was copied: it names '%s', and '%s' exists, too",
	        record, absolute, moved);
	return tide_error_hint(err,
	                       "complete the transaction where it ran; a copy is as before the transaction once '%s' "
	                       "is moved away",
	                       record);
}

static bool is_same_file(const char *a, const char *b)
{
	struct stat x, y;

	return stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

int tide_commit_recover_place(const char *absolute, const char *relative, const char *record, char **place,
                              struct tide_error *err)
{
	TIDE_AUTOFREE char *moved = NULL;
	int here = exists(absolute, err), there = 0;

	*place = NULL;
	if (here < 0)
		return -1;
	if (relative) {
		moved = from_record(relative, record, err);
		there = moved ? exists(moved, err) : -1;
	}
	if (there < 0)
		return -1;
	if (here && there && !is_same_file(absolute, moved))
		return say_copied(absolute, moved, record, err);
	if (here) {
		*place = tide_mem_strdup(absolute, err);
		return *place ? 1 : -1;
	}
	*place = there ? moved : NULL;
	moved = there ? NULL : moved;
	return there;
}

/* A directory where a file may be, and the file's name in it. */
struct place {
	int dir;
	const char *base;
};

static void close_place(struct place *place)
{
	tide_sysio_close(place->dir);
}

#define AUTOPLACE TIDE_CLEANUP(close_place)

/* *dir: -1 if there is no such directory. */
static int open_dir_of(const char *path, int *dir, struct tide_error *err)
{
	TIDE_AUTOFREE char *name = tide_mem_strndup(path, (size_t)(tide_sysio_base_name(path) - path), err);

	*dir = -1;
	if (!name)
		return -1;
	*dir = open(*name ? name : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (*dir >= 0 || is_absence(errno))
		return 0;
	return tide_error_set_sys(err, errno, "Could not open the directory '%s'", name);
}

enum state { FAILED, MISSING, STAGED, DONE };

static enum state look(const struct tide_commit_change *change, const struct place *place)
{
	if (place->dir < 0)
		return MISSING;
	if (tide_commit_identity_is(&change->file, place->dir, change->tmp, true))
		return STAGED;
	return tide_commit_identity_is(&change->file, place->dir, place->base, false) ? DONE : MISSING;
}

static enum state look_in(const struct tide_commit_change *change, const char *path, struct place *place,
                          struct tide_error *err)
{
	tide_sysio_close(place->dir);
	return open_dir_of(path, &place->dir, err) < 0 ? FAILED : look(change, place);
}

/* Is there a file of the change, found in `place`, in the same place from the record as well?  1, 0, -1 */
static int is_copied(const struct tide_commit_change *change, const struct place *place, const char *moved,
                     struct tide_error *err)
{
	struct stat here, there, st;
	int dir, copied = 0;

	if (open_dir_of(moved, &dir, err) < 0)
		return -1;
	if (dir >= 0 && fstat(place->dir, &here) == 0 && fstat(dir, &there) == 0)
		copied = (here.st_dev != there.st_dev || here.st_ino != there.st_ino) &&
		         (fstatat(dir, change->tmp, &st, AT_SYMLINK_NOFOLLOW) == 0 ||
		          fstatat(dir, place->base, &st, AT_SYMLINK_NOFOLLOW) == 0);
	tide_sysio_close(dir);
	return copied;
}

/*
 * Looks where the file was to go, then in the same place from the record.  place->dir stays the caller's to close.
 * FAILED: with an error; where the file is cannot be known.
 */
static enum state find(const struct tide_commit_change *change, const char *record, struct place *place,
                       struct tide_error *err)
{
	TIDE_AUTOFREE char *moved = NULL;
	enum state state;

	*place = (struct place){ -1, tide_sysio_base_name(change->path) };
	state = look_in(change, change->path, place, err);
	if (state == FAILED || !change->relative)
		return state;
	moved = from_record(change->relative, record, err);
	if (!moved)
		return FAILED;
	if (state == MISSING)
		return look_in(change, moved, place, err);
	switch (is_copied(change, place, moved, err)) {
	case 0:
		return state;
	case 1:
		say_copied(change->path, moved, record, err); /* fall through */
	default:
		return FAILED;
	}
}

char *tide_commit_recover_find_staged(const struct tide_commit_record *record, const char *path, const char *file,
                                      struct tide_error *err)
{
	for (size_t i = 0; i < record->n; i++) {
		const struct tide_commit_change *change = &record->changes[i];
		struct place place AUTOPLACE = { -1, NULL };
		struct stat a, b;
		TIDE_AUTOFREE char *dir = NULL;

		if (change->kind != TIDE_COMMIT_RENAME ||
		    strcmp(tide_sysio_base_name(change->path), tide_sysio_base_name(file)) != 0 ||
		    find(change, path, &place, NULL) != STAGED)
			continue;
		dir = tide_mem_strndup(file, (size_t)(tide_sysio_base_name(file) - file), err);
		if (!dir)
			return NULL;
		if (fstat(place.dir, &a) == 0 && stat(*dir ? dir : ".", &b) == 0 && a.st_dev == b.st_dev &&
		    a.st_ino == b.st_ino)
			return tide_mem_printf(err, "%s%s", dir, change->tmp);
	}
	return NULL;
}

/* ---- following a pointer ----------------------------------------------------------- */

/* 1, 0, -1 */
static int is_that_directory(const char *record, const struct tide_commit_identity *id, struct tide_error *err)
{
	struct tide_commit_identity now;
	int dir, rc = open_dir_of(record, &dir, err);

	if (rc == 0 && dir >= 0)
		rc = tide_commit_identity_take(dir, &now, err) < 0 ? -1 : tide_commit_identity_equals(&now, id);
	tide_sysio_close(dir);
	return rc;
}

int tide_commit_recover_follow(const struct tide_commit_record *pointer, const char *path, char **record,
                               struct tide_error *err)
{
	TIDE_AUTOFREE char *moved = pointer->relative ? from_record(pointer->relative, path, err) : NULL;
	int rc, same;

	if (pointer->relative && !moved)
		return -1;
	rc = tide_commit_recover_place(pointer->record, pointer->relative, path, record, err);
	if (rc || pointer->is_old)
		return rc;
	/* The directory exists without the record: it was never written, or all that it decided is done. */
	same = is_that_directory(pointer->record, &pointer->record_dir, err);
	if (same == 0)
		same = is_that_directory(moved, &pointer->record_dir, err);
	if (same)
		return same < 0 ? -1 : 0;
	tide_error_set(err, TIDE_E_REFUSED, "The record of an interrupted transaction, '%s', cannot be reached",
	               pointer->record);
	return tide_error_hint(err,
	                       "mount the file system that holds it, or bring its directory back; to give the "
	                       "transaction up, move '%s' away",
	                       path);
}

/* ---- renaming ---------------------------------------------------------------------- */

static int say_missing(const struct tide_commit_change *change, const char *record, struct tide_error *err)
{
	bool has_dir;
	int dir;

	if (open_dir_of(change->path, &dir, err) < 0)
		return -1;
	has_dir = dir >= 0;
	tide_sysio_close(dir);
	tide_error_set(err, TIDE_E_REFUSED,
	               has_dir ? "An interrupted transaction cannot be completed: its file for '%s' is missing"
	                       : "An interrupted transaction cannot be completed: the directory of '%s' is missing",
	               change->path);
	return tide_error_hint(
	        err,
	        "mount the file system it is on, or bring back what was moved, and run the command again; "
	        "to give up what is left of the transaction, move '%s' away",
	        record);
}

/* A record of the image's owner has no more rights than that owner. */
static int check_owner(const struct tide_commit_change *change, const struct place *place, const char *record,
                       uid_t owner, struct tide_error *err)
{
	struct stat from, to;

	if (owner == 0 || owner == geteuid())
		return 0;
	if (fstatat(place->dir, change->tmp, &from, AT_SYMLINK_NOFOLLOW) == 0 && from.st_uid == owner &&
	    (fstatat(place->dir, place->base, &to, AT_SYMLINK_NOFOLLOW) < 0 || to.st_uid == owner))
		return 0;
	tide_error_set(err, TIDE_E_REFUSED, "The record '%s' names a file that its owner does not own: '%s'", record,
	               change->path);
	return tide_error_hint(err, "find out who made the record; it has no effect once it is moved away");
}

/* The transaction was to replace a certain file: another one is newer, and must not get lost. */
static int check_replaced(const struct tide_commit_change *change, const struct place *place, const char *record,
                          struct tide_error *err)
{
	struct tide_commit_identity now;

	tide_commit_identity_find(place->dir, place->base, &now);
	if (!change->file.inode || !now.inode || tide_commit_identity_equals(&now, &change->replaced))
		return 0;
	tide_error_set(err, TIDE_E_REFUSED,
	               "An interrupted transaction cannot be completed: '%s' has been replaced since", change->path);
	return tide_error_hint(err, "to give up what is left of the transaction, move '%s' away", record);
}

static int check_change(const struct tide_commit_change *change, const char *record, uid_t owner,
                        struct tide_error *err)
{
	struct place place AUTOPLACE = { -1, NULL };
	enum state state = find(change, record, &place, err);
	struct stat st;

	if (state == FAILED)
		return -1;
	if (state == MISSING)
		return say_missing(change, record, err);
	if (state == DONE)
		return 0;
	if (change->exclusive && fstatat(place.dir, place.base, &st, AT_SYMLINK_NOFOLLOW) == 0) {
		tide_error_set(err, TIDE_E_REFUSED,
		               "An interrupted transaction cannot be completed: another program has created '%s'",
		               change->path);
		return tide_error_hint(
		        err,
		        "that file is unchanged; move it away and run the command again; to give up what "
		        "is left of the transaction, move '%s' away",
		        record);
	}
	return check_replaced(change, &place, record, err) < 0 ? -1 : check_owner(change, &place, record, owner, err);
}

static int make_change(const struct tide_commit_change *change, const char *record, uid_t owner, struct tide_error *err)
{
	struct place place AUTOPLACE = { -1, NULL };
	enum state state = find(change, record, &place, err);
	unsigned flags = change->exclusive ? RENAME_NOREPLACE : 0;
	int rc = 0;

	if (state == FAILED)
		return -1;
	if (state == MISSING)
		return say_missing(change, record, err);
	if (state == STAGED && check_owner(change, &place, record, owner, err) < 0)
		return -1;
	if (state == STAGED) {
		rc = renameat2(place.dir, change->tmp, place.dir, place.base, flags);
		if (rc < 0 && flags && (errno == EINVAL || errno == ENOSYS))
			rc = linkat(place.dir, change->tmp, place.dir, place.base, 0) < 0
			             ? -1
			             : unlinkat(place.dir, change->tmp, 0);
	}
	if (rc < 0)
		return tide_error_set_sys(err, errno, "Could not rename '%s' to '%s'", change->tmp, change->path);
	if (fsync(place.dir) < 0 && errno != EINVAL)
		return tide_error_set_sys(err, errno, "Could not flush the directory of '%s'", change->path);
	return 0;
}

/* Does this with all changes that are renames. */
typedef int for_rename(const struct tide_commit_change *change, const char *path, uid_t owner, struct tide_error *err);

static int each_rename(const struct tide_commit_record *record, const char *path, uid_t owner, for_rename *act,
                       struct tide_error *err)
{
	for (size_t i = 0; i < record->n; i++) {
		if (record->changes[i].kind == TIDE_COMMIT_RENAME && act(&record->changes[i], path, owner, err) < 0)
			return -1;
	}
	return 0;
}

int tide_commit_recover_check(const struct tide_commit_record *record, const char *path, int fd, struct tide_error *err)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		return tide_error_set_sys(err, errno, "Could not look at '%s'", path);
	return each_rename(record, path, st.st_uid, check_change, err);
}

int tide_commit_recover_renames(const struct tide_commit_record *record, const char *path, int fd,
                                struct tide_error *err)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		return tide_error_set_sys(err, errno, "Could not look at '%s'", path);
	if (each_rename(record, path, st.st_uid, check_change, err) < 0)
		return -1;
	return each_rename(record, path, st.st_uid, make_change, err);
}

void tide_commit_found_release(struct tide_commit_found *found)
{
	free(found->path);
	tide_sysio_close(found->fd);
	tide_commit_record_release(&found->record);
}

int tide_commit_recover_resolve(struct tide_commit_record *first, int *fd, const char *slot,
                                struct tide_commit_found *found, struct tide_error *err)
{
	int rc;

	if (first->record) {
		rc = tide_commit_recover_follow(first, slot, &found->path, err);
		return rc > 0 ? 2 : rc;
	}
	found->path = tide_mem_strdup(slot, err);
	found->fd = *fd;
	found->record = *first;
	*fd = -1;
	*first = (struct tide_commit_record)TIDE_COMMIT_RECORD_INIT;
	return found->path ? 1 : -1;
}
