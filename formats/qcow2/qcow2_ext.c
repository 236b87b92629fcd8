/*
 * Tidemark's own extensions in the header of an image that exists already: the exact size of the disk, the
 * fingerprint of the backing image, and the birth record of a backup.
 *
 * An extension that the header has is changed in place if the new content fits. Otherwise a new one takes the place of
 * the end mark. The backing file's name, which follows the extensions, is in the way; it moves first, a copy to free
 * bytes, then the eight bytes of its offset. Then everything of the extension but its type and length is written, with
 * a new end mark, and these eight bytes last, over the old end mark; then the old extension, if there is one, gets a
 * type that means nothing. A sync separates the steps, and after each of them the header is valid.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/checksum.h"
#include "base/error.h"
#include "base/mem.h"
#include "base/range.h"
#include "base/sysio.h"
#include "qcow2.h"

#define EXTENSION_HEAD 8u

enum { AT_BACKING = 8, AT_BACKING_LEN = 16, AT_HEADER_LENGTH = 100 };

/* The first cluster. */
struct head {
	const uint8_t *data;
	uint64_t size;
	uint64_t name, name_len; /* of the backing file; 0, 0: no name */
	uint64_t found, room;    /* the offset of the extension that is looked for, and the bytes it has; 0: none */
	uint64_t vacant, space;  /* the same of one that was replaced */
	uint64_t end;            /* the offset of the end mark */
};

/* The new content. */
struct content {
	uint32_t type;
	const uint8_t *data;
	size_t len;
	bool has_fixed_len; /* the version of the content follows from its length */
	size_t spare;       /* bytes of the first cluster to be left free */
};

/* Nobody else sees an image that is new, so there the order does not matter. */
static int write_synced(const struct tide_qcow2 *q, const void *buf, size_t len, uint64_t off, struct tide_error *err)
{
	if (tide_sysio_pwrite(q->fd, buf, len, off, err) < 0)
		return -1;
	return q->is_hidden ? 0 : tide_sysio_fdatasync(q->fd, err);
}

static bool fits(const struct content *c, uint64_t room)
{
	return c->has_fixed_len ? room == c->len : room >= c->len;
}

static void find(struct head *h, const struct content *c, uint64_t limit)
{
	const uint8_t *data = h->data;
	uint64_t off = h->end, len;

	for (; off + EXTENSION_HEAD <= limit && tide_get_be32(data + off) != TIDE_QCOW2_EXT_END;
	     off += EXTENSION_HEAD + tide_range_align_up(len, 8)) {
		uint32_t type = tide_get_be32(data + off);

		len = tide_get_be32(data + off + 4);
		if (!tide_range_is_within(off + EXTENSION_HEAD, len, limit))
			continue;
		if (type == c->type) {
			h->found = off;
			h->room = len;
		} else if (type == TIDE_QCOW2_EXT_VOID && fits(c, len)) {
			h->vacant = off;
			h->space = len;
		}
	}
	h->end = off;
}

static int read_head(const struct tide_qcow2 *q, uint8_t *data, const struct content *c, struct head *h,
                     struct tide_error *err)
{
	*h = (struct head){ .data = data, .size = q->cluster_size };
	if (tide_sysio_pread(q->fd, data, h->size, 0, true, err) < 0)
		return -1;
	h->end = q->header.version < 3 ? TIDE_QCOW2_HEADER_V2 : tide_get_be32(data + AT_HEADER_LENGTH);
	h->name = tide_get_be64(data + AT_BACKING);
	h->name_len = h->name ? tide_get_be32(data + AT_BACKING_LEN) : 0;
	if (h->end > h->size || !tide_range_is_within(h->name, h->name_len, h->size))
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "The header has changed since the image was opened: its length is %" PRIu64
		                      ", the backing file name's offset %" PRIu64,
		                      h->end, h->name);
	find(h, c, h->name ? h->name : h->size);
	return 0;
}

/* With its head and the end mark. */
static uint64_t need(const struct content *c)
{
	return EXTENSION_HEAD + tide_range_align_up(c->len, 8) + EXTENSION_HEAD;
}

/* The new offset of the backing file's name. */
static uint64_t place_name(const struct head *h, const struct content *c)
{
	return tide_range_align_up(TIDE_MAX(h->name + h->name_len, h->end + need(c)), 8);
}

static int move_name(const struct tide_qcow2 *q, const struct head *h, const struct content *c, struct tide_error *err)
{
	uint8_t to[8];

	if (!h->name || h->name >= h->end + need(c))
		return 0;
	tide_put_be64(to, place_name(h, c));
	if (write_synced(q, h->data + h->name, h->name_len, place_name(h, c), err) < 0)
		return -1;
	return write_synced(q, to, sizeof(to), AT_BACKING, err);
}

static int retire(const struct tide_qcow2 *q, const struct head *h, struct tide_error *err)
{
	uint8_t type[4];

	if (!h->found)
		return 0;
	tide_put_be32(type, TIDE_QCOW2_EXT_VOID);
	return write_synced(q, type, sizeof(type), h->found, err);
}

/* Into the space of an extension that was replaced, which keeps its length: the content must tell where it ends. */
static int reuse(const struct tide_qcow2 *q, const struct head *h, const struct content *c, struct tide_error *err)
{
	uint8_t type[4];

	tide_put_be32(type, c->type);
	if (write_synced(q, c->data, c->len, h->vacant + EXTENSION_HEAD, err) < 0)
		return -1;
	return write_synced(q, type, sizeof(type), h->vacant, err);
}

static int insert(const struct tide_qcow2 *q, const struct head *h, const struct content *c, struct tide_error *err)
{
	TIDE_AUTOFREE uint8_t *ext = tide_mem_alloc(1, need(c), err);
	uint64_t last = h->name && h->name < h->end + need(c) ? place_name(h, c) + h->name_len : h->end + need(c);

	if (!ext)
		return -1;
	if (last + c->spare > h->size)
		return 1;
	tide_put_be32(ext, c->type);
	tide_put_be32(ext + 4, (uint32_t)c->len);
	memcpy(ext + EXTENSION_HEAD, c->data, c->len);
	if (move_name(q, h, c, err) < 0 ||
	    write_synced(q, ext + EXTENSION_HEAD, need(c) - EXTENSION_HEAD, h->end + EXTENSION_HEAD, err) < 0)
		return -1;
	return write_synced(q, ext, EXTENSION_HEAD, h->end, err);
}

/* Lock held.  1: the header has no room. */
static int put(struct tide_qcow2 *q, const struct content *c, struct tide_error *err)
{
	TIDE_AUTOFREE uint8_t *data = tide_mem_alloc(1, q->cluster_size, err);
	struct head h;
	int rc;

	if (!data || tide_qcow2_flush_prepare_meta(q, err) < 0 || read_head(q, data, c, &h, err) < 0)
		return -1;
	if (h.found && fits(c, h.room))
		return write_synced(q, c->data, c->len, h.found + EXTENSION_HEAD, err);
	rc = h.vacant ? reuse(q, &h, c, err) : insert(q, &h, c, err);
	return rc == 0 ? retire(q, &h, err) : rc;
}

int tide_qcow2_ext_put(struct tide_qcow2 *q, uint32_t type, const uint8_t *data, size_t len, struct tide_error *err)
{
	return put(q, &(struct content){ .type = type, .data = data, .len = len, .has_fixed_len = true }, err);
}

int tide_qcow2_ext_set_exact_size(void *state, uint64_t size, struct tide_driver_info *info, struct tide_error *err)
{
	struct tide_qcow2 *q = state;
	uint64_t now = q->header.exact_size ? q->header.exact_size : q->size;
	uint8_t exact[8];
	int rc;

	if (tide_range_align_up(size, 512) != q->size)
		return tide_error_set(err, TIDE_E_REFUSED,
		                      "A disk of %" PRIu64 " bytes is not one of %" PRIu64 " bytes, rounded up", size,
		                      q->size);
	if (size == now)
		return 0;
	tide_put_be64(exact, size);
	pthread_mutex_lock(&q->lock);
	rc = put(q, &(struct content){ .type = TIDE_QCOW2_EXT_EXACT_SIZE, .data = exact, .len = sizeof(exact) }, err);
	pthread_mutex_unlock(&q->lock);
	if (rc > 0) {
		tide_error_set(err, TIDE_E_UNSUPPORTED,
		               "The image's header has no room for the exact size of the disk, %" PRIu64 " bytes",
		               size);
		return tide_error_hint(err, "create an image with larger clusters, or let the command create it");
	}
	if (rc == 0)
		q->header.exact_size = info->exact_size = size;
	return rc;
}

size_t tide_qcow2_ext_encode_fingerprint(const struct tide_fingerprint *fp, const char *backing, uint8_t *out)
{
	memset(out, 0, TIDE_QCOW2_FINGERPRINT_2_BYTES);
	tide_put_be32(out, fp->has_file ? 2 : 1);
	tide_put_be32(out + 4, tide_checksum_crc32c(0, backing, strlen(backing)));
	memcpy(out + 8, fp->disk, 64);
	tide_put_be64(out + 72, fp->dev);
	tide_put_be64(out + 80, fp->ino);
	tide_put_be64(out + 88, fp->stamp.size);
	tide_put_be64(out + 96, (uint64_t)fp->stamp.mtime_sec);
	tide_put_be32(out + 104, fp->stamp.mtime_nsec);
	return fp->has_file ? TIDE_QCOW2_FINGERPRINT_2_BYTES : TIDE_QCOW2_FINGERPRINT_BYTES;
}

int tide_qcow2_ext_set_fingerprint(void *state, const struct tide_fingerprint *fp, struct tide_error *err)
{
	struct tide_qcow2 *q = state;
	uint8_t bytes[TIDE_QCOW2_FINGERPRINT_2_BYTES];
	struct content c = {
		.type = TIDE_QCOW2_EXT_FINGERPRINT,
		.data = bytes,
		.len = tide_qcow2_ext_encode_fingerprint(fp, q->header.backing, bytes),
		.has_fixed_len = true,
		.spare = TIDE_QCOW2_HEADER_ROOM,
	};
	int rc;

	pthread_mutex_lock(&q->lock);
	rc = put(q, &c, err);
	pthread_mutex_unlock(&q->lock);
	return rc;
}

/*
 * The identity of a file: two checksums of its inode and birth time, which say which file it is, then one of size and
 * modification time and one without the nanoseconds. A file system that is mounted as another device changes none of
 * them. The same file with other times was changed; another file is a copy. Zeroes: unknown.
 */
enum { AT_WHICH = 0, AT_CHANGE = 8, AT_CHANGE_SEC = 12 };

static void identify(int fd, const struct stat *st, uint8_t out[TIDE_QCOW2_ID_BYTES])
{
	uint8_t raw[20] = { 0 };
	struct statx sx;

	tide_put_le64(raw, st->st_ino);
	if (statx(fd, "", AT_EMPTY_PATH, STATX_BTIME, &sx) == 0 && (sx.stx_mask & STATX_BTIME)) {
		tide_put_le64(raw + 8, (uint64_t)sx.stx_btime.tv_sec);
		tide_put_le32(raw + 16, sx.stx_btime.tv_nsec);
	}
	tide_put_le32(out + AT_WHICH, tide_checksum_crc32c(0, raw, sizeof(raw)));
	tide_put_le32(out + AT_WHICH + 4, tide_checksum_crc32c(UINT32_MAX, raw, sizeof(raw)));
	tide_put_le64(raw, (uint64_t)st->st_size);
	tide_put_le64(raw + 8, (uint64_t)st->st_mtim.tv_sec);
	tide_put_le32(raw + 16, (uint32_t)st->st_mtim.tv_nsec);
	tide_put_le32(out + AT_CHANGE, tide_checksum_crc32c(0, raw, sizeof(raw)));
	tide_put_le32(out + AT_CHANGE_SEC, tide_checksum_crc32c(0, raw, 16));
}

/* A copy may have lost the nanoseconds, such as one from an archive of tar. */
static bool has_changed(const struct stat *st, const uint8_t *then, const uint8_t *now)
{
	return memcmp(then + AT_CHANGE_SEC, now + AT_CHANGE_SEC, 4) != 0 ||
	       (st->st_mtim.tv_nsec != 0 && memcmp(then + AT_CHANGE, now + AT_CHANGE, 4) != 0);
}

void tide_qcow2_ext_compare_file(int fd, const uint8_t id[TIDE_QCOW2_ID_BYTES], bool *is_changed, bool *is_copy)
{
	static const uint8_t unknown[TIDE_QCOW2_ID_BYTES];
	uint8_t now[TIDE_QCOW2_ID_BYTES];
	struct stat st;

	*is_changed = *is_copy = true;
	if (memcmp(id, unknown, sizeof(unknown)) == 0 || fstat(fd, &st) < 0)
		return;
	identify(fd, &st, now);
	*is_copy = memcmp(id + AT_WHICH, now + AT_WHICH, 8) != 0;
	*is_changed = has_changed(&st, id, now);
}

/*
 * The identity is part of the file whose time it contains: the time is chosen first, and set after the last write.
 * False: this is impossible, because the file is another user's or a device.
 */
static bool choose_time(const struct tide_qcow2 *q, const struct timespec *given, struct stat *st)
{
	struct timespec times[2] = { { .tv_nsec = UTIME_OMIT } };

	if (given)
		times[1] = *given;
	if (q->is_device || (!given && clock_gettime(CLOCK_REALTIME, &times[1]) < 0) || futimens(q->fd, times) < 0)
		return false;
	return fstat(q->fd, st) == 0; /* the file system may cut the time */
}

static int set_time(const struct tide_qcow2 *q, const struct stat *st, struct tide_error *err)
{
	struct timespec times[2] = { { .tv_nsec = UTIME_OMIT }, st->st_mtim };

	if (futimens(q->fd, times) < 0)
		return tide_error_set_sys(err, errno, "Could not set the time of the file");
	/* fdatasync need not store the time. */
	return q->is_hidden || fsync(q->fd) == 0 ? 0 : tide_error_set_sys(err, errno, "Could not flush the file");
}

static int put_birth(struct tide_qcow2 *q, const uint8_t id[TIDE_QCOW2_ID_BYTES], struct tide_error *err)
{
	uint8_t bytes[TIDE_QCOW2_ID_BYTES + TIDE_BIRTH_BYTES_MAX];

	memcpy(q->header.birth_file, id, TIDE_QCOW2_ID_BYTES);
	memcpy(bytes, id, TIDE_QCOW2_ID_BYTES);
	memcpy(bytes + TIDE_QCOW2_ID_BYTES, q->header.birth, q->header.birth_len);
	return put(q,
	           &(struct content){
	                   .type = TIDE_QCOW2_EXT_BIRTH,
	                   .data = bytes,
	                   .len = TIDE_QCOW2_ID_BYTES + q->header.birth_len,
	           },
	           err);
}

int tide_qcow2_ext_seal(struct tide_qcow2 *q, const struct timespec *mtime, bool is_copy, struct tide_error *err)
{
	uint64_t *flags = &q->header.autoclear;
	uint8_t id[TIDE_QCOW2_ID_BYTES] = { 0 };
	bool timed, sums = *flags & TIDE_QCOW2_AUTOCLEAR_SUMS;
	struct stat st;
	int rc = 0;

	timed = choose_time(q, mtime, &st);
	if (timed)
		identify(q->fd, &st, id);
	if ((*flags & TIDE_QCOW2_AUTOCLEAR_INTACT) && !is_copy)
		rc = put_birth(q, id, err);
	if (rc == 0 && sums)
		rc = tide_qcow2_sums_put(q, timed ? &st : NULL, err);
	if (rc < 0)
		return -1;
	return timed && set_time(q, &st, err) < 0 ? -1 : rc;
}

/* 1: the header has no room. */
static int set_birth(struct tide_qcow2 *q, const struct tide_birth *birth, struct tide_error *err)
{
	uint64_t *flags = &q->header.autoclear;
	static const uint8_t unknown[TIDE_QCOW2_ID_BYTES];
	int rc;

	/* The first change of an image may extend its file. */
	if (tide_qcow2_flush_prepare_meta(q, err) < 0)
		return -1;
	q->header.birth_len = tide_birth_encode(birth, q->header.birth);
	rc = put_birth(q, unknown, err);
	if (rc == 0)
		rc = tide_qcow2_flush_put_flags(q, TIDE_QCOW2_AT_AUTOCLEAR, flags, *flags | TIDE_QCOW2_AUTOCLEAR_INTACT,
		                                err);
	if (rc != 0) {
		q->header.birth_len = 0;
		return rc;
	}
	return tide_qcow2_ext_seal(q, NULL, false, err);
}

int tide_qcow2_ext_set_birth(void *state, const struct tide_birth *birth, struct tide_error *err)
{
	struct tide_qcow2 *q = state;
	int rc;

	/* Version 2 has no flags that another program clears. */
	if (q->header.version < 3)
		return 1;
	pthread_mutex_lock(&q->lock);
	rc = set_birth(q, birth, err);
	pthread_mutex_unlock(&q->lock);
	return rc;
}
