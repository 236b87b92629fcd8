/*
 * Commit records and pointers: building, encoding and writing them.
 *
 * The file is text, a line a change, so that a person can read what is left to do:
 *
 *   tidemark commit 2
 *   token TOKEN
 *   rename INODE SIZE SECONDS NANOSECONDS x|r INODE SECONDS NANOSECONDS TEMPORARY FINAL RELATIVE
 *   switch OFFSET LENGTH BEFORE AFTER OFFSET LENGTH CRC VALID SIZE SECONDS NANOSECONDS IMAGE RELATIVE
 *   record INODE SECONDS NANOSECONDS RECORD RELATIVE
 *   crc CRC
 *
 * Numbers are hexadecimal; in names '%' and each byte that is not a visible ASCII character is %XX.
 */
#include "commit_record.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/checksum.h"
#include "base/error.h"
#include "base/lock.h"
#include "base/mem.h"
#include "commit_text.h"
#include "store.h"

static void release_change(struct tide_commit_change *change)
{
	free(change->path);
	free(change->relative);
	free(change->tmp);
}

void tide_commit_record_release(struct tide_commit_record *record)
{
	for (size_t i = 0; i < record->n; i++)
		release_change(&record->changes[i]);
	free(record->changes);
	free(record->record);
	free(record->relative);
	*record = (struct tide_commit_record)TIDE_COMMIT_RECORD_INIT;
}

struct tide_commit_change *tide_commit_text_new_change(struct tide_commit_record *record, struct tide_error *err)
{
	struct tide_commit_change *grown = tide_mem_realloc(record->changes, record->n + 1, sizeof(*grown), err);

	if (!grown)
		return NULL;
	record->changes = grown;
	grown[record->n] = (struct tide_commit_change){ 0 };
	return &grown[record->n++];
}

/* ---- identities -------------------------------------------------------------------- */

static void from_statx(const struct statx *st, struct tide_commit_identity *id)
{
	bool born = st->stx_mask & STATX_BTIME;

	*id = (struct tide_commit_identity){
		.inode = st->stx_ino,
		.size = st->stx_size,
		.birth_sec = born ? st->stx_btime.tv_sec : 0,
		.birth_nsec = born ? st->stx_btime.tv_nsec : 0,
	};
}

int tide_commit_identity_take(int fd, struct tide_commit_identity *id, struct tide_error *err)
{
	struct statx st;

	if (statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS | STATX_BTIME, &st) < 0)
		return tide_error_set_sys(err, errno, "Could not look at a file that is to be renamed");
	from_statx(&st, id);
	return 0;
}

bool tide_commit_identity_is(const struct tide_commit_identity *id, int dir_fd, const char *name, bool staged)
{
	struct tide_commit_identity now;
	struct statx st;

	if (statx(dir_fd, name, AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS | STATX_BTIME, &st) < 0 || !S_ISREG(st.stx_mode))
		return false;
	from_statx(&st, &now);
	if (!id->inode)
		return true;
	if (now.inode != id->inode || (staged && now.size != id->size))
		return false;
	return !id->birth_sec || !now.birth_sec || (now.birth_sec == id->birth_sec && now.birth_nsec == id->birth_nsec);
}

void tide_commit_identity_find(int dir_fd, const char *name, struct tide_commit_identity *id)
{
	struct statx st;

	*id = (struct tide_commit_identity){ 0 };
	if (statx(dir_fd, name, AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS | STATX_BTIME, &st) == 0)
		from_statx(&st, id);
}

bool tide_commit_identity_equals(const struct tide_commit_identity *a, const struct tide_commit_identity *b)
{
	if (a->inode != b->inode)
		return false;
	return !a->birth_sec || !b->birth_sec || (a->birth_sec == b->birth_sec && a->birth_nsec == b->birth_nsec);
}

/* ---- building ---------------------------------------------------------------------- */

static int refuse_relative(const char *path, struct tide_error *err)
{
	return tide_error_set(err, TIDE_E_REFUSED, "'%s' has no absolute path", path);
}

int tide_commit_record_add_rename(struct tide_commit_record *record, const struct tide_staged *staged, bool exclusive,
                                  struct tide_error *err)
{
	struct tide_commit_change *change;

	if (staged->path[0] != '/')
		return refuse_relative(staged->path, err);
	change = tide_commit_text_new_change(record, err);
	if (!change)
		return -1;
	change->kind = TIDE_COMMIT_RENAME;
	change->exclusive = exclusive;
	tide_commit_identity_find(AT_FDCWD, staged->path, &change->replaced);
	change->path = tide_mem_strdup(staged->path, err);
	change->tmp = tide_mem_strdup(strrchr(staged->tmp, '/') + 1, err);
	return change->path && change->tmp ? tide_commit_identity_take(staged->fd, &change->file, err) : -1;
}

int tide_commit_record_add_switch(struct tide_commit_record *record, const char *image,
                                  const struct tide_driver_switch *sw, const struct tide_stamp *stamp,
                                  struct tide_error *err)
{
	struct tide_commit_change *change;

	if (image[0] != '/')
		return refuse_relative(image, err);
	change = tide_commit_text_new_change(record, err);
	if (!change)
		return -1;
	change->kind = TIDE_COMMIT_SWITCH;
	change->sw = *sw;
	change->stamp = *stamp;
	change->path = tide_mem_strdup(image, err);
	return change->path ? 0 : -1;
}

int tide_commit_record_sync_names(const struct tide_commit_record *record, struct tide_error *err)
{
	for (size_t i = 0; i < record->n; i++) {
		const struct tide_commit_change *change = &record->changes[i];

		if (change->kind == TIDE_COMMIT_RENAME && tide_sysio_fsync_dir(change->path, err) < 0)
			return -1;
	}
	return 0;
}

/* ---- slots ------------------------------------------------------------------------- */

char *tide_commit_record_slot(const char *sidecar, unsigned i, struct tide_error *err)
{
	char suffix[] = ".commit-1";

	suffix[sizeof(suffix) - 2] = (char)('1' + i);
	if (i == 0)
		suffix[strlen(".commit")] = '\0';
	return tide_store_beside(sidecar, suffix, err);
}

/* ---- encoding ---------------------------------------------------------------------- */

static void add_name(struct tide_strbuf *text, const char *name)
{
	tide_strbuf_addc(text, ' ');
	for (; *name; name++) {
		if (*name > ' ' && *name < 0x7f && *name != '%')
			tide_strbuf_addc(text, *name);
		else
			tide_strbuf_addf(text, "%%%02X", (unsigned char)*name);
	}
}

static void add_bytes(struct tide_strbuf *text, const uint8_t *bytes, size_t n)
{
	tide_strbuf_addc(text, ' ');
	for (size_t i = 0; i < n; i++)
		tide_strbuf_addf(text, "%02x", bytes[i]);
}

static void add_rename(struct tide_strbuf *text, const struct tide_commit_change *change)
{
	const struct tide_commit_identity *id = &change->file, *old = &change->replaced;

	tide_strbuf_addf(text, "rename %" PRIx64 " %" PRIx64 " %" PRIx64 " %" PRIx32 " %c", id->inode, id->size,
	                 (uint64_t)id->birth_sec, id->birth_nsec, change->exclusive ? 'x' : 'r');
	tide_strbuf_addf(text, " %" PRIx64 " %" PRIx64 " %" PRIx32, old->inode, (uint64_t)old->birth_sec,
	                 old->birth_nsec);
	add_name(text, change->tmp);
}

static void add_switch(struct tide_strbuf *text, const struct tide_commit_change *change)
{
	const struct tide_driver_switch *sw = &change->sw;
	const struct tide_stamp *stamp = &change->stamp;

	tide_strbuf_addf(text, "switch %" PRIx64 " %zx", sw->offset, sw->len);
	add_bytes(text, sw->before, sw->len);
	add_bytes(text, sw->after, sw->len);
	tide_strbuf_addf(text, " %" PRIx64 " %" PRIx64 " %" PRIx32 " %x %" PRIx64 " %" PRIx64 " %" PRIx32,
	                 sw->guard_offset, sw->guard_len, sw->guard_crc, stamp->valid, stamp->size,
	                 (uint64_t)stamp->mtime_sec, stamp->mtime_nsec);
}

static int encode(const struct tide_commit_record *record, struct tide_strbuf *text, struct tide_error *err)
{
	tide_strbuf_addf(text, TIDE_COMMIT_TEXT_MAGIC "token %" PRIx64 "\n", record->token);
	for (size_t i = 0; i < record->n; i++) {
		const struct tide_commit_change *change = &record->changes[i];

		(change->kind == TIDE_COMMIT_RENAME ? add_rename : add_switch)(text, change);
		add_name(text, change->path);
		add_name(text, change->relative ? change->relative : change->path);
		tide_strbuf_addc(text, '\n');
	}
	if (record->record) {
		const struct tide_commit_identity *dir = &record->record_dir;

		tide_strbuf_addf(text, "record %" PRIx64 " %" PRIx64 " %" PRIx32, dir->inode, (uint64_t)dir->birth_sec,
		                 dir->birth_nsec);
		add_name(text, record->record);
		add_name(text, record->relative ? record->relative : record->record);
		tide_strbuf_addc(text, '\n');
	}
	if (!text->failed)
		tide_strbuf_addf(text, "crc %08" PRIx32 "\n", tide_checksum_crc32c(0, text->buf, text->len));
	if (text->failed)
		return tide_error_set_nomem(err);
	return text->len <= TIDE_COMMIT_TEXT_MAX
	               ? 0
	               : tide_error_set(err, TIDE_E_REFUSED, "The transaction changes too many files");
}

/* ---- writing ----------------------------------------------------------------------- */

/* The path `to`, absolute, from the directory of `from`, absolute. */
static char *relative_path(const char *from, const char *to, struct tide_error *err)
{
	size_t common = 0, ups = 0;
	struct tide_strbuf sb = TIDE_STRBUF_INIT;

	for (size_t i = 0; from[i] && from[i] == to[i]; i++) {
		if (from[i] == '/')
			common = i + 1;
	}
	for (const char *p = from + common; (p = strchr(p, '/')); p++)
		ups++;
	while (ups--)
		tide_strbuf_adds(&sb, "../");
	tide_strbuf_adds(&sb, to + common);
	return tide_strbuf_steal(&sb, err);
}

static int make_relative(struct tide_commit_record *record, const char *path, struct tide_error *err)
{
	for (size_t i = 0; i < record->n; i++) {
		free(record->changes[i].relative);
		record->changes[i].relative = relative_path(path, record->changes[i].path, err);
		if (!record->changes[i].relative)
			return -1;
	}
	if (!record->record)
		return 0;
	free(record->relative);
	record->relative = relative_path(path, record->record, err);
	return record->relative ? 0 : -1;
}

/* The record may have its name and not be durable: the caller gives up, and nobody may find that it was decided. */
static void unlink_own(const struct tide_staged *st, const char *path)
{
	struct tide_commit_identity own;

	if (st->fd >= 0 && tide_commit_identity_take(st->fd, &own, NULL) == 0 &&
	    tide_commit_identity_is(&own, AT_FDCWD, path, true))
		unlink(path);
}

/* 1: the name is taken. */
static int write_file(struct tide_commit_record *record, const char *path, int image_fd, bool exclusive, int *lock_fd,
                      struct tide_error *err)
{
	struct tide_strbuf text = TIDE_STRBUF_INIT;
	struct tide_staged st = TIDE_STAGED_INIT;
	struct tide_error why = TIDE_ERROR_INIT;
	int rc = -1;

	if (make_relative(record, path, &why) == 0 && encode(record, &text, &why) == 0 &&
	    tide_staged_begin(&st, path, 0600, &why) == 0 &&
	    (image_fd < 0 || tide_store_set_owner_only(st.fd, image_fd, &why) == 0) &&
	    tide_sysio_pwrite(st.fd, text.buf, text.len, 0, &why) == 0 &&
	    (!lock_fd || tide_lock_exclusive(st.fd, 0, NULL, &why) == 0))
		rc = tide_staged_commit(&st, exclusive, &why);
	if (rc < 0 && exclusive)
		unlink_own(&st, path);
	if (rc == 0 && lock_fd) {
		*lock_fd = st.fd;
		st.fd = -1;
	}
	tide_staged_release(&st);
	tide_strbuf_release(&text);
	if (rc < 0 && why.sys == EEXIST) {
		tide_error_release(&why);
		return 1;
	}
	return rc < 0 ? tide_error_move(err, &why) : 0;
}

int tide_commit_record_write_at(struct tide_commit_record *record, const char *slot, int image_fd, int *lock_fd,
                                struct tide_error *err)
{
	int rc = write_file(record, slot, image_fd, true, lock_fd, err);

	return rc < 0 ? tide_error_wrap(err, "Could not write the record of the transaction") : rc;
}

int tide_commit_record_refuse_full(const char *sidecar, struct tide_error *err)
{
	tide_error_set(err, TIDE_E_REFUSED, "Too many transactions on the image have not been completed");
	return tide_error_hint(err, "look at the files '%s.commit*', which say what is left to do", sidecar);
}

int tide_commit_record_write(struct tide_commit_record *record, const char *sidecar, int image_fd, char **path,
                             struct tide_error *err)
{
	for (unsigned i = 0; i < TIDE_COMMIT_SLOTS; i++) {
		TIDE_AUTOFREE char *slot = tide_commit_record_slot(sidecar, i, err);
		int rc = slot ? tide_commit_record_write_at(record, slot, image_fd, NULL, err) : -1;

		if (rc < 0)
			return -1;
		if (rc > 0)
			continue;
		*path = slot;
		slot = NULL;
		return 0;
	}
	return tide_commit_record_refuse_full(sidecar, err);
}

int tide_commit_record_point(struct tide_commit_record *pointer, const char *to, struct tide_error *err)
{
	TIDE_AUTOFREE char *dir = NULL;

	if (tide_sysio_real_dir(to, &dir, err) < 0)
		return -1;
	if (dir)
		tide_commit_identity_find(AT_FDCWD, dir, &pointer->record_dir);
	if (!pointer->record_dir.inode)
		return tide_error_set_sys(err, ENOENT, "Could not look at the directory of '%s'", to);
	pointer->record = tide_mem_strdup(to, err);
	return pointer->record ? 0 : -1;
}

int tide_commit_record_rewrite(struct tide_commit_record *record, const char *path, struct tide_error *err)
{
	struct stat st;
	int fd TIDE_AUTOCLOSE = tide_sysio_open(path, O_RDONLY | O_NOFOLLOW, err);

	if (fd < 0 || fstat(fd, &st) < 0)
		return -1;
	return write_file(record, path, fd, false, NULL, err) ? -1 : 0;
}

void tide_commit_record_drop(struct tide_commit_record *record, size_t i)
{
	release_change(&record->changes[i]);
	record->n--;
	memmove(&record->changes[i], &record->changes[i + 1], (record->n - i) * sizeof(*record->changes));
}

int tide_commit_record_finish(const char *path, bool is_old, struct tide_error *err)
{
	TIDE_AUTOFREE char *done = is_old ? tide_mem_printf(err, "%s.done", path) : NULL;

	if (!is_old)
		return tide_commit_record_remove(path, err);
	if (!done)
		return -1;
	return rename(path, done) < 0 ? tide_error_set_sys(err, errno, "Could not rename '%s'", path) : 0;
}

int tide_commit_record_remove(const char *path, struct tide_error *err)
{
	if (unlink(path) < 0 && errno != ENOENT)
		return tide_error_set_sys(err, errno, "Could not remove '%s'", path);
	/* It is gone for everybody but a loss of power; nothing better can be done when this fails. */
	tide_sysio_fsync_dir(path, NULL);
	return 0;
}
