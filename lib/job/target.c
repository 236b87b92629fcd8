/*
 * Targets: checking and locking the name, creating or opening the image, and giving a new one its name.
 *
 * No check of a name holds until the rename, because other programs may create a file meanwhile.  So the name is
 * checked again when the target is staged, and an exclusive rename replaces nothing.
 */
#include "target.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"
#include "base/lock.h"
#include "base/mark.h"
#include "base/mem.h"
#include "base/owner.h"
#include "base/strbuf.h"
#include "image/backing.h"
#include "image/fingerprint.h"
#include "store/sidecar.h"
#include "store/store.h"
#include "store/sums_file.h"
#include "store/write_log.h"

char *tide_target_final_path(const char *path, struct tide_error *err)
{
	TIDE_AUTOFREE char *dir = NULL;
	char *real;

	if (tide_sysio_real_path(path, &real, err) < 0)
		return NULL;
	if (real)
		return real;
	if (*path && tide_sysio_real_dir(path, &dir, err) < 0)
		return NULL;
	if (!dir)
		return tide_mem_strdup(path, err);
	return tide_mem_printf(err, "%s%s%s", dir, strcmp(dir, "/") ? "/" : "", tide_sysio_base_name(path));
}

/* An image of such a name would be taken for the bitmaps of another image, or would be in their way. */
static int check_not_reserved(const char *path, struct tide_error *err)
{
	if (!tide_store_is_reserved(path))
		return 0;
	tide_error_set(err, TIDE_E_REFUSED, "Could not create '%s': the name is one of the bitmaps of an image", path);
	return tide_error_hint(err, "choose a name without '.bitmaps', and another beginning than '.tidemark-'");
}

/* Refuses to replace a sidecar or a write log: a mistyped name must not destroy the bitmaps of an image. */
static int check_no_sidecar(int fd, const char *path, struct tide_error *err)
{
	uint8_t head[8] = { 0 };

	if (tide_sysio_pread(fd, head, sizeof(head), 0, true, err) < 0)
		return -1;
	if (tide_sidecar_is_one(head, sizeof(head)) || !memcmp(head, TIDE_WRITE_LOG_MAGIC, sizeof(head)))
		return tide_error_set(err, TIDE_E_REFUSED,
		                      "Could not create '%s': the existing file contains the bitmaps of an image",
		                      path);
	return 0;
}

/* The sidecar of the name would make later commands read the new image in the format that is pinned there. */
static int check_pinned(const char *path, const char *format, struct tide_error *err)
{
	struct tide_error ignored = TIDE_ERROR_INIT;
	struct tide_sidecar *sc = NULL;
	TIDE_AUTOFREE char *sidecar = NULL;
	int rc = 0;

	/* Also that of an image that was removed. A device never gets here. */
	sidecar = tide_store_default(path, &ignored);
	if (sidecar && tide_store_load(sidecar, &sc, &ignored) == 0 && sc && strcmp(sc->format, format)) {
		tide_error_set(err, TIDE_E_REFUSED,
		               "Could not create '%s': its sidecar pins the format '%s', and the new image is '%s'",
		               path, sc->format, format);
		rc = tide_error_hint(err, "choose another name, or remove the bitmaps in '%s' first", sidecar);
	}
	tide_sidecar_free(sc);
	tide_error_release(&ignored);
	return rc;
}

/* in_place: as in tide_target_create. */
static int refuse_taken(const char *path, const struct stat *st, const char *in_place, struct tide_error *err)
{
	TIDE_AUTOCLOSE int fd = S_ISREG(st->st_mode) ? open(path, O_RDONLY | O_CLOEXEC) : -1;

	/* --overwrite would not help there. */
	if (fd >= 0 && check_no_sidecar(fd, path, err) < 0)
		return -1;
	tide_error_set_sys(err, EEXIST, "Could not create '%s'", path);
	if (S_ISBLK(st->st_mode))
		return tide_error_hint(err, "the device is unchanged; write all of it with --overwrite, or %s",
		                       in_place);
	return tide_error_hint(
	        err, "the existing file is unchanged; choose another name, replace it with --overwrite, or %s",
	        in_place);
}

static int lock_old(struct tide_target *target, const char *path, const char *in_place, struct tide_error *err)
{
	struct stat st;

	if (stat(path, &st) < 0) {
		if (lstat(path, &st) == 0 && S_ISLNK(st.st_mode)) {
			tide_error_set(err, TIDE_E_REFUSED,
			               "Could not create '%s': it is a symbolic link that leads to no file", path);
			return tide_error_hint(err, "remove the link, or create the directory that it leads to");
		}
		/* The name is free: a file that exists there at the end is another program's and is not replaced. */
		if (lstat(path, &st) < 0)
			target->exclusive = true;
		return 0;
	}
	if (in_place && (S_ISREG(st.st_mode) || S_ISBLK(st.st_mode)))
		return refuse_taken(path, &st, in_place, err);
	if (!S_ISREG(st.st_mode))
		return tide_error_set(err, TIDE_E_REFUSED, "Could not create '%s': it exists and is not a regular file",
		                      path);
	target->old_fd = tide_sysio_open(path, O_RDONLY, err);
	if (target->old_fd < 0 || check_no_sidecar(target->old_fd, path, err) < 0)
		return -1;
	return tide_lock_acquire(target->old_fd, TIDE_LOCK_WRITE_HELD, TIDE_LOCK_WRITE_UNSHARED, path, err);
}

/* The mode that open(2) with 0666 would result in.  Only /proc shows the umask without changing it. */
static mode_t default_mode(void)
{
	char text[4096], *field;
	int fd = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);

	if (fd >= 0)
		close(fd);
	text[n > 0 ? n : 0] = '\0';
	field = strstr(text, "\nUmask:");
	return field ? 0666 & ~(mode_t)strtoul(field + 7, NULL, 8) : 0600;
}

/* Finds the value of a setting, of up to 256 bytes.  1: it is given; 0: it is not. */
static int find_setting(const char *settings, const char *wanted, char *value, struct tide_error *err)
{
	char key[64], text[256];
	int rc, found = 0;

	while ((rc = tide_driver_next_setting(&settings, key, text, err)) > 0) {
		if (!strcmp(key, wanted)) {
			memcpy(value, text, sizeof(text));
			found = 1;
		}
	}
	return rc < 0 ? -1 : found;
}

/* A copy of a disk is as confidential as the disk, and as each image of its chain. */
static int copy_owner(int fd, const struct tide_image *like, struct tide_error *err)
{
	if (tide_owner_copy(fd, tide_image_fd(like), 0, err) < 0)
		return -1;
	for (const struct tide_image *link = tide_image_backing(like); link; link = tide_image_backing(link)) {
		if (tide_image_is_file(link) && tide_owner_narrow(fd, tide_image_fd(link), err) < 0)
			return -1;
	}
	return 0;
}

/* An external data file is created with its image.  An existing file of its name may be another image's disk. */
static int begin_data_file(struct tide_target *target, const struct tide_image_driver *driver, const char *path,
                           const char *settings, const struct tide_image *like, struct tide_error *err)
{
	char name[256];
	TIDE_AUTOFREE char *found = NULL;
	TIDE_AUTOFREE char *where = NULL;
	struct stat st;
	int rc = driver->set_data_file ? find_setting(settings, "data_file", name, err) : 0;

	if (rc <= 0)
		return rc;
	if (!*name)
		return tide_error_set_sys(err, ENOENT, "Could not create ''");
	found = tide_image_find_data_file(path, name, TIDE_ALLOW_ANY, err);
	where = found ? tide_target_final_path(found, err) : NULL;
	if (!where)
		return -1;
	if (!strcmp(where, path))
		return tide_error_set(err, TIDE_E_REFUSED, "The image and its data file cannot be the same file, '%s'",
		                      path);
	if (lstat(where, &st) == 0) {
		tide_error_set_sys(err, EEXIST, "Could not create '%s'", where);
		return tide_error_hint(
		        err, "the existing file is unchanged; choose another name for the data file, or remove it");
	}
	if (tide_sysio_check_place(name, where, "an image", err) < 0 || check_not_reserved(where, err) < 0)
		return -1;
	if (tide_staged_begin(&target->data, where, like ? 0600 : default_mode(), err) < 0)
		return -1;
	return like ? copy_owner(target->data.fd, like, err) : 0;
}

/* Stored in the new image to reveal a later change of the backing image.  An unreadable one is reported elsewhere. */
static bool take_fingerprint(const char *path, const struct tide_driver_create *options, struct tide_fingerprint *fp)
{
	TIDE_AUTOFREE char *where = options->backing ? tide_image_resolve(path, options->backing, NULL) : NULL;
	struct tide_image_options open = { .path = where, .format = options->backing_format, .allow = options->allow };
	TIDE_AUTOIMAGE struct tide_image *backing = NULL;

	if (!where || !open.format || tide_image_open(&open, &backing, NULL) < 0)
		return false;
	return tide_fingerprint_take(backing, fp, NULL) == 0;
}

/* An export can be written but not created. */
static int check_can_create(const char *path, const char *format, const struct tide_image_driver *driver,
                            const char *in_place, struct tide_error *err)
{
	const struct tide_image_driver *uri_driver = tide_image_uri_driver(path);

	if (!driver)
		return tide_error_set(err, TIDE_E_REFUSED, "Unknown file format '%s'", format);
	if (tide_image_check_scheme(path, err) < 0)
		return tide_error_wrap(err, "Could not create '%s'", path);
	if (uri_driver) {
		tide_error_set(err, TIDE_E_REFUSED, "Could not create '%s': %s cannot be created, only written", path,
		               uri_driver->uri_noun);
		return in_place ? tide_error_hint(err, "write all of it with --overwrite, or %s", in_place)
		                : tide_error_hint(err, "use --mode existing to write to an existing one");
	}
	if (driver->create)
		return 0;
	return tide_error_set(err, TIDE_E_REFUSED, "Format driver '%s' does not support image creation", format);
}

bool tide_target_is_device(const char *path)
{
	struct stat st;

	return tide_image_is_uri(path) || (stat(path, &st) == 0 && S_ISBLK(st.st_mode));
}

int tide_target_create(struct tide_target *target, const char *path, const char *format,
                       const struct tide_driver_create *options, const struct tide_image *like, const char *in_place,
                       struct tide_error *err)
{
	const struct tide_image_driver *driver = tide_image_find_driver(format);
	TIDE_AUTOFREE char *final = tide_target_final_path(path, err);
	struct tide_driver_create full = *options;
	struct tide_fingerprint fingerprint;

	if (!final)
		return -1;
	if (like && !tide_image_is_file(like))
		like = NULL;
	if (check_can_create(path, format, driver, in_place, err) < 0)
		return -1;
	if (options->backing && !driver->has_backing)
		return tide_error_set(err, TIDE_E_REFUSED, "Backing file not supported for file format '%s'", format);
	target->exclusive = in_place != NULL;
	if (tide_sysio_check_place(path, final, "an image", err) < 0 ||
	    tide_target_recover(final, target->dry_run, target->cancel, err) < 0 ||
	    check_pinned(final, format, err) < 0 || check_not_reserved(final, err) < 0 ||
	    lock_old(target, final, in_place, err) < 0 ||
	    begin_data_file(target, driver, final, options->settings, like, err) < 0 ||
	    tide_staged_begin(&target->staged, final, like ? 0600 : default_mode(), err) < 0)
		return -1;
	if (driver->is_raw)
		tide_mark_set(target->staged.fd, driver->name);
	if (target->data.fd >= 0)
		tide_mark_set(target->data.fd, TIDE_MARK_DATA_FILE);
	if (like && copy_owner(target->staged.fd, like, err) < 0)
		return -1;
	if (take_fingerprint(final, options, &fingerprint))
		full.fingerprint = &fingerprint;
	if (tide_image_create(target->staged.fd, target->data.fd, final, driver, &full, &target->image, err) < 0)
		return err && err->sys && !options->backing ? tide_error_wrap(err, "Could not create '%s'", path) : -1;
	return 0;
}

static int check_opened(const struct tide_target *target, const char *path, struct tide_error *err)
{
	if (!tide_image_is_file(target->image))
		return 0;
	return check_no_sidecar(tide_image_fd(target->image), path, err) < 0
	               ? -1
	               : check_not_reserved(tide_image_path(target->image), err);
}

int tide_target_open(struct tide_target *target, const char *path, const char *format, bool guessed, unsigned allow,
                     const atomic_bool *cancel, struct tide_error *err)
{
	struct tide_image_options options = {
		.path = path,
		.format = format,
		.guessed = guessed,
		.write = true,
		.allow = allow,
		.cancel = cancel,
	};

	if (format && !tide_image_find_driver(format))
		return tide_error_set(err, TIDE_E_REFUSED, "Unknown file format '%s'", format);
	target->existing = true;
	return tide_image_open(&options, &target->image, err) < 0 ? -1 : check_opened(target, path, err);
}

int tide_target_adopt(struct tide_target *target, struct tide_image *image, const char *path, struct tide_error *err)
{
	target->existing = target->adopted = true;
	target->image = image;
	return check_opened(target, path, err);
}

/* Fails if the name leads to a different file than at the start: another program may have created one meanwhile. */
static int check_name(const struct tide_target *target, struct tide_error *err)
{
	struct stat old, now;
	bool taken = lstat(target->staged.path, &now) == 0;

	if (target->old_fd < 0 ? !(target->exclusive && taken)
	                       : fstat(target->old_fd, &old) == 0 &&
	                                 (!taken || (old.st_dev == now.st_dev && old.st_ino == now.st_ino)))
		return 0;
	tide_error_set_sys(err, EEXIST, "Could not create '%s'", target->staged.path);
	return tide_error_hint(err, "another program created it meanwhile, and it is unchanged; choose another name");
}

/* ---- the birth record -------------------------------------------------------------- */

/* A file of the caller's own: neither a device nor an export. */
static bool has_default_sidecar(const struct tide_target *target)
{
	struct stat st;

	return tide_image_is_file(target->image) && fstat(tide_image_fd(target->image), &st) == 0 &&
	       S_ISREG(st.st_mode);
}

/* The bitmaps that the name had were those of another content. */
static struct tide_sidecar *make_sidecar(const struct tide_target *target, const char *path, struct tide_error *err)
{
	struct tide_sidecar *sc;

	if (tide_store_load(path, &sc, err) < 0)
		return NULL;
	if (!sc) {
		sc = tide_sidecar_new(err);
		if (!sc)
			return NULL;
	}
	tide_sidecar_distrust(sc);
	snprintf(sc->format, sizeof(sc->format), "%s", tide_image_format_name(target->image));
	if (!target->existing)
		sc->compatible |= TIDE_SIDECAR_FORMAT_GIVEN;
	if (sc->n == 0)
		sc->disk_size = tide_image_size(target->image);
	sc->disk = target->birth->disk;
	tide_birth_free(sc->birth);
	sc->birth = tide_birth_copy(target->birth, err);
	if (sc->birth)
		return sc;
	tide_sidecar_free(sc);
	return NULL;
}

/* Called when the content of the target is complete, because the sidecar has its stamp. */
static int stage_sidecar(struct tide_target *target, struct tide_error *err)
{
	TIDE_AUTOFREE char *path = tide_store_default(tide_target_path(target), err);
	int fd = tide_image_fd(target->image), rc;
	struct tide_sidecar *sc = NULL;

	if (!path || tide_store_lock(&target->sidecar, path, true, target->cancel, err) < 0)
		return -1;
	sc = make_sidecar(target, path, err);
	if (!sc)
		return -1;
	sc->generation++;
	rc = tide_stamp_settle(&fd, 1, err);
	if (rc == 0)
		rc = tide_stamp_take(fd, &sc->stamp, err);
	if (rc == 0)
		rc = tide_store_stage(&target->sidecar, sc, fd, err);
	tide_sidecar_free(sc);
	target->has_sidecar = rc == 0;
	return rc;
}

/* 1: the record has no place in the image. */
static int set_birth(struct tide_target *target, struct tide_error *err)
{
	return target->birth ? tide_image_set_birth(target->image, target->birth, err) : 0;
}

static int flush_files(struct tide_target *target, struct tide_error *err)
{
	if (check_name(target, err) < 0)
		return -1;
	if (target->data.fd < 0)
		return tide_staged_flush(&target->staged, err);
	/* The name may have been taken meanwhile.  After the commit record is written the target could not fail any
	 * more. */
	if (access(target->data.path, F_OK) == 0)
		return tide_error_set_sys(err, EEXIST, "Could not create '%s'", target->data.path);
	if (tide_staged_flush(&target->data, err) < 0)
		return -1;
	return tide_staged_flush(&target->staged, err);
}

static int stage_birth(struct tide_target *target, struct tide_error *err)
{
	struct tide_error why = TIDE_ERROR_INIT;
	int rc = set_birth(target, err);

	if (rc < 0 || (!target->existing && flush_files(target, err) < 0))
		return -1;
	if (rc == 0 || !has_default_sidecar(target))
		return 0;
	if (stage_sidecar(target, &why) == 0)
		return 0;
	/* The directory of an existing image may be closed to the caller, and a long name has no room for more. */
	if (!target->existing && why.sys != ENAMETOOLONG)
		return tide_error_move(err, &why);
	tide_error_release(&why);
	tide_store_release(&target->sidecar);
	return 0;
}

/* Checksums that are beside the target: the file has its final time. Without them it is a backup, too. */
static int stage_sums(struct tide_target *target, struct tide_error *err)
{
	struct tide_error why = TIDE_ERROR_INIT;
	struct tide_sums *sums;
	int rc;

	if (!tide_image_sums_are_beside(target->image))
		return 0;
	if (tide_image_sums_finish(target->image, &sums, err) < 0)
		return -1;
	rc = sums ? tide_sums_file_stage(&target->sums, tide_target_path(target), tide_image_fd(target->image), sums,
	                                 &why)
	          : 0;
	tide_image_sums_drop(target->image);
	if (rc == 0 || (!target->existing && why.sys != ENAMETOOLONG))
		return rc < 0 ? tide_error_move(err, &why) : 0;
	tide_error_release(&why);
	tide_staged_release(&target->sums);
	return 0;
}

/*
 * The record is the last that is written, because it contains the time of the file. A target without a place for it is
 * a backup too.
 */
int tide_target_stage(struct tide_target *target, struct tide_error *err)
{
	if (tide_image_flush(target->image, err) < 0 || tide_image_sums_store(target->image, err) < 0 ||
	    stage_birth(target, err) < 0)
		return -1;
	return stage_sums(target, err);
}

unsigned tide_target_count_renames(const struct tide_target *target)
{
	return (target->existing ? 0 : 1 + (target->data.fd >= 0)) + target->has_sidecar;
}

int tide_target_add_to_record(struct tide_target *target, struct tide_commit_record *record, struct tide_error *err)
{
	struct tide_staged *const files[] = { &target->data, &target->staged };

	for (size_t i = 0; i < TIDE_ARRAY_SIZE(files) && !target->existing; i++) {
		if (files[i]->fd < 0)
			continue;
		if (tide_staged_sync(files[i], err) < 0 ||
		    tide_commit_record_add_rename(record, files[i], i == 0 || target->exclusive, err) < 0)
			return -1;
	}
	return target->has_sidecar ? tide_commit_record_add_rename(record, &target->sidecar.staged, false, err) : 0;
}

void tide_target_recorded(struct tide_target *target)
{
	target->staged.kept = target->data.kept = target->sidecar.staged.kept = true;
}

void tide_target_unrecorded(struct tide_target *target)
{
	target->staged.kept = target->data.kept = target->sidecar.staged.kept = false;
}

bool tide_target_is_untouched(const struct tide_target *target)
{
	return !target->sidecar.staged.named && (target->existing || (!target->staged.named && !target->data.named));
}

bool tide_target_is_named(const struct tide_target *target)
{
	return target->existing || (target->staged.named && (target->data.fd < 0 || target->data.named));
}

static int name_data_file(struct tide_target *target, struct tide_error *err)
{
	return target->data.fd >= 0 ? tide_staged_commit(&target->data, true, err) : 0;
}

/* The data file gets its temporary name back, so that a transaction which nothing has begun can be taken back. */
static void unname_data_file(struct tide_target *target, char **tmp)
{
	if (!*tmp || renameat2(AT_FDCWD, target->data.path, AT_FDCWD, *tmp, RENAME_NOREPLACE) < 0)
		return;
	target->data.named = false;
	target->data.tmp = *tmp;
	*tmp = NULL;
}

/* A file with checksums that is missing only means that the data is not proven, and an old one does not count. */
static int name_sidecar(struct tide_target *target, struct tide_error *err)
{
	bool named = target->sums.fd >= 0 && tide_staged_commit(&target->sums, false, NULL) == 0;

	if (!named && !target->existing)
		tide_sums_file_remove(tide_target_path(target));
	return target->has_sidecar ? tide_store_commit(&target->sidecar, err) : 0;
}

/*
 * The data file first: it may exist without its image, but the image must not exist without it. The sidecar last: its
 * stamp is that of the new image.
 */
int tide_target_name(struct tide_target *target, struct tide_error *err)
{
	TIDE_AUTOFREE char *tmp = target->data.tmp ? tide_mem_strdup(target->data.tmp, NULL) : NULL;

	if (target->existing)
		return name_sidecar(target, err);
	if (name_data_file(target, err) == 0 && tide_staged_commit(&target->staged, target->exclusive, err) == 0)
		return name_sidecar(target, err);
	/* Both files have their names afterwards, or neither; if that fails, a record completes them. */
	if (target->staged.named || !target->data.named)
		return -1;
	if (target->data.kept) {
		unname_data_file(target, &tmp);
	} else {
		unlink(target->data.path);
		target->data.named = false;
	}
	return -1;
}

bool tide_target_collides(const struct tide_target *a, const struct tide_target *b)
{
	const char *const mine[] = { a->staged.path, a->data.path }, *const theirs[] = { b->staged.path, b->data.path };

	for (size_t i = 0; i < 4; i++) {
		if (mine[i / 2] && theirs[i % 2] && !strcmp(mine[i / 2], theirs[i % 2]))
			return true;
	}
	return false;
}

const char *tide_target_path(const struct tide_target *target)
{
	return target->existing ? tide_image_path(target->image) : target->staged.path;
}

void tide_target_release(struct tide_target *target)
{
	if (!target->adopted)
		tide_image_close(target->image);
	tide_staged_release(&target->staged);
	tide_staged_release(&target->data);
	tide_store_release(&target->sidecar);
	tide_staged_release(&target->sums);
	tide_sysio_close(target->old_fd);
	free(target->pointer);
	*target = (struct tide_target)TIDE_TARGET_INIT;
}

void tide_target_warn_outside(const struct tide_target *target, struct tide_sink *sink, const char *path)
{
	if (tide_image_is_backing_outside(target->image))
		tide_event_warning(sink, path,
		                   "its backing image '%s' is outside its directory: commands that open it need "
		                   "--allow-backing=outside",
		                   tide_image_info(target->image)->backing);
}

/* A colon in the first part of a name would make it one of a protocol.  Takes the name, which may be NULL. */
static char *as_file(char *name, struct tide_error *err)
{
	TIDE_AUTOFREE char *taken = name;

	if (!name || !tide_backing_has_protocol(name)) {
		taken = NULL;
		return name;
	}
	return tide_mem_printf(err, "./%s", name);
}

char *tide_target_name_from(const char *path, const char *file, struct tide_error *err)
{
	TIDE_AUTOFREE char *real = NULL;
	TIDE_AUTOFREE char *file_dir = NULL;
	TIDE_AUTOFREE char *target_dir = NULL;

	if (tide_sysio_real_path(file, &real, err) < 0 || (real && tide_sysio_real_dir(real, &file_dir, err) < 0) ||
	    tide_sysio_real_dir(path, &target_dir, err) < 0)
		return NULL;
	if (file_dir && target_dir && !strcmp(file_dir, target_dir))
		return as_file(tide_mem_strdup(strrchr(real, '/') + 1, err), err);
	return tide_mem_strdup(real ? real : file, err);
}

/* The path from one directory to a file, both without symbolic links: from /a/b to /a/c/d it is ../c/d. */
static char *relative_path(const char *dir, const char *file, struct tide_error *err)
{
	struct tide_strbuf text = TIDE_STRBUF_INIT;
	size_t same = 0;
	char *path;

	for (size_t i = 0; dir[i] == file[i] || (!dir[i] && file[i] == '/'); i++) {
		if (file[i] == '/')
			same = i + 1;
		if (!dir[i] || !file[i])
			break;
	}
	for (const char *p = dir + TIDE_MIN(same, strlen(dir)); *p; p += strcspn(p, "/"), p += *p == '/')
		tide_strbuf_addf(&text, "../");
	tide_strbuf_addf(&text, "%s", file + same);
	path = tide_strbuf_steal(&text, err);
	tide_strbuf_release(&text);
	return path;
}

char *tide_target_backing_name(const char *path, const char *backing, struct tide_error *err)
{
	TIDE_AUTOFREE char *beside = tide_image_resolve(path, backing, err);
	TIDE_AUTOFREE char *real = NULL;
	TIDE_AUTOFREE char *dir = NULL;
	struct stat a, b;
	bool have_a, have_b;

	if (!beside)
		return NULL;
	have_a = stat(beside, &a) == 0;
	have_b = stat(backing, &b) == 0;
	if (have_a && have_b && (a.st_dev != b.st_dev || a.st_ino != b.st_ino)) {
		tide_error_set(err, TIDE_E_REFUSED,
		               "The backing image '%s' could be '%s' or the one in the current directory", backing,
		               beside);
		tide_error_hint(err, "specify an absolute path");
		return NULL;
	}
	if (have_a || !have_b)
		return tide_mem_strdup(backing, err);
	if (tide_sysio_real_path(backing, &real, err) < 0 || tide_sysio_real_dir(path, &dir, err) < 0)
		return NULL;
	return real && dir ? as_file(relative_path(dir, real, err), err) : tide_mem_strdup(backing, err);
}
