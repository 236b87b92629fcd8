/*
 * A new image in a commit record: the record or the pointer beside it, and what a later command for the same name does
 * with them after a death.
 *
 * A transaction that changes bitmaps has its record beside the sidecar of an image, which leads to it (node_recover.c).
 * A restore into an image with a data file, or into several images, has no such image.  Its record is beside the first
 * new image, and the next command that would create this image completes it.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "base/lock.h"
#include "base/mem.h"
#include "store/commit_recover.h"
#include "target.h"

/* ---- the pointer ------------------------------------------------------------------- */

int tide_target_point(struct tide_target *target, const char *record, struct tide_error *err)
{
	TIDE_AUTOCOMMITRECORD struct tide_commit_record pointer = TIDE_COMMIT_RECORD_INIT;
	TIDE_AUTOFREE char *sidecar = tide_store_default(target->staged.path, err);

	if (!sidecar || target->pointer)
		return sidecar ? 0 : -1;
	if (tide_lock_token_new(&pointer.token, err) < 0 || tide_commit_record_point(&pointer, record, err) < 0)
		return -1;
	return tide_commit_record_write(&pointer, sidecar, -1, &target->pointer, err);
}

void tide_target_unpoint(struct tide_target *target)
{
	if (target->pointer)
		unlink(target->pointer);
	tide_target_leave_pointer(target);
}

void tide_target_leave_pointer(struct tide_target *target)
{
	free(target->pointer);
	target->pointer = NULL;
}

/* ---- recovery ---------------------------------------------------------------------- */

/* A record that was found for a name. */
struct found {
	char *slot; /* the file beside the new image: the record, or the pointer that led to it */
	struct tide_commit_found at;
};

static void release_found(struct found *f)
{
	free(f->slot);
	tide_commit_found_release(&f->at);
}

#define AUTOFOUND TIDE_CLEANUP(release_found)

/* A new image is not refused because of a file that is damaged or a stranger's. */
static bool read_trusted(const char *path, int old_fd, struct tide_commit_record *record, int *fd)
{
	struct tide_error ignored = TIDE_ERROR_INIT;
	bool ok = tide_commit_record_read(path, record, fd, &ignored) > 0 &&
	          tide_commit_recover_check_trust(*fd, path, old_fd, &ignored) == 0;

	tide_error_release(&ignored);
	return ok;
}

/* 1: found; 0: there is none; -1. */
static int find(struct found *f, int old_fd, bool dry_run, struct tide_error *err)
{
	TIDE_AUTOCOMMITRECORD struct tide_commit_record first = TIDE_COMMIT_RECORD_INIT;
	int fd TIDE_AUTOCLOSE = -1, rc;

	if (!read_trusted(f->slot, old_fd, &first, &fd) ||
	    (old_fd >= 0 && tide_lock_token_is_held(old_fd, first.token, NULL)))
		return 0;
	rc = tide_commit_recover_resolve(&first, &fd, f->slot, &f->at, err);
	if (rc > 1)
		return read_trusted(f->at.path, old_fd, &f->at.record, &f->at.fd);
	if (rc == 0 && !dry_run)
		unlink(f->slot);
	return rc;
}

/* Does the record bring an image of this name, and nothing but files? */
static int brings(const struct found *f, const char *name, struct tide_error *err)
{
	bool is_named = false;

	for (size_t i = 0; i < f->at.record.n; i++) {
		if (f->at.record.changes[i].kind != TIDE_COMMIT_RENAME)
			return 0;
		is_named |= !strcmp(f->at.record.changes[i].path, name);
	}
	if (!is_named) {
		TIDE_AUTOFREE char *staged = tide_commit_recover_find_staged(&f->at.record, f->at.path, name, err);

		is_named = staged;
	}
	return is_named;
}

static int say_completed(const char *name, struct tide_error *err)
{
	tide_error_set(err, TIDE_E_REFUSED,
	               "A transaction that makes '%s' was interrupted after its commit; it has been completed now, "
	               "and this request was not run",
	               name);
	return tide_error_hint(err, "if it was this one, do not repeat it");
}

static int complete(const struct found *f, const char *name, const atomic_bool *cancel, struct tide_error *err)
{
	int rc = tide_commit_recover_lock(f->at.fd, f->at.path, cancel, err);

	if (rc <= 0) /* 0: it has ended meanwhile */
		return rc;
	if (tide_commit_recover_renames(&f->at.record, f->at.path, f->at.fd, err) < 0 ||
	    tide_commit_record_finish(f->at.path, f->at.record.is_old, err) < 0)
		return -1;
	if (strcmp(f->slot, f->at.path) != 0 && unlink(f->slot) < 0 && errno != ENOENT)
		return tide_error_set_sys(err, errno, "Could not remove '%s'", f->slot);
	return say_completed(name, err);
}

static int recover(const char *name, const char *sidecar, unsigned i, bool dry_run, const atomic_bool *cancel,
                   struct tide_error *err)
{
	struct found f AUTOFOUND = { .at = TIDE_COMMIT_FOUND_INIT };
	int old_fd TIDE_AUTOCLOSE = -1, rc;

	f.slot = tide_commit_record_slot(sidecar, i, err);
	if (!f.slot)
		return -1;
	if (access(f.slot, F_OK) < 0)
		return tide_sysio_is_absent(f.slot, errno)
		               ? 0
		               : tide_error_set_sys(err, errno, "Could not look for '%s', the record of a transaction",
		                                    f.slot);
	old_fd = open(name, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	rc = find(&f, old_fd, dry_run, err);
	if (rc > 0)
		rc = brings(&f, name, err);
	if (rc <= 0)
		return rc;
	if (!dry_run)
		return complete(&f, name, cancel, err);
	tide_error_set(err, TIDE_E_REFUSED, "A transaction that makes '%s' was interrupted after its commit", name);
	return tide_error_hint(err, "the same request without a dry run completes it");
}

int tide_target_recover(const char *path, bool dry_run, const atomic_bool *cancel, struct tide_error *err)
{
	TIDE_AUTOFREE char *sidecar = tide_store_default(path, err);

	if (!sidecar)
		return -1;
	for (unsigned i = 0; i < TIDE_COMMIT_SLOTS; i++) {
		if (recover(path, sidecar, i, dry_run, cancel, err) < 0)
			return -1;
	}
	return 0;
}
