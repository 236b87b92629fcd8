/*
 * The table of checksums of an image (image/sums.h), in the image's own file.
 *
 * The table follows the last cluster that is in use. Its clusters have the reference count 0, so QEMU sees free space
 * there: qemu-img check finds nothing wrong, and a later allocation overwrites it. An extension of the header locates
 * and proves the table, and an autoclear flag of Tidemark says that it describes the file: QEMU clears the flag, and
 * syncs, when it opens the image for writing, and so do the writers here before they change the disk. It does not when
 * it reopens an image, as for a commit. So the size and the time of the file are stored, too: if they are the same, a
 * byte that differs from its checksum is damage; if not, as in a copy, it may be a change of such a program instead.
 * Bytes that have their checksum are proven either way.
 *
 * Extension "TIDC", little-endian: u16 version 1, u16 flags, u32 CRC-32C of the other bytes; u64 each: the table's
 * offset, its length, the XXH3 of its head and directory, and the XXH3 of those fields of the header that decide how
 * the rest is read, the size of the file, and the seconds of its time; u32 nanoseconds, UINT32_MAX: unknown; u32 0.
 * Flag 1: the birth record was intact when the checksums were computed, and the file was not a copy.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/checksum.h"
#include "base/error.h"
#include "base/mem.h"
#include "base/range.h"
#include "base/strbuf.h"
#include "base/sysio.h"
#include "base/xxh.h"
#include "image/sums.h"
#include "qcow2.h"

enum {
	VERSION = 1,
	OF_BIRTH = 1,
	AT_FLAGS = 2,
	AT_CRC = 4,
	AT_OFFSET = 8,
	AT_LENGTH = 16,
	AT_SUM = 24,
	AT_GUARD = 32,
	AT_SIZE = 40,
	AT_SEC = 48,
	AT_NSEC = 56
};

/* Of all bytes but its own. */
static uint32_t crc_of(const uint8_t *data)
{
	return tide_checksum_crc32c(tide_checksum_crc32c(0, data, AT_CRC), data + AT_OFFSET,
	                            TIDE_QCOW2_SUMS_BYTES - AT_OFFSET);
}

void tide_qcow2_sums_read_extension(const uint8_t *data, uint32_t len, struct tide_qcow2_header *h)
{
	struct tide_qcow2_sums_place *p = &h->sums;

	*p = (struct tide_qcow2_sums_place){ .exists = true };
	if (len != TIDE_QCOW2_SUMS_BYTES || tide_get_le16(data) != VERSION ||
	    tide_get_le32(data + AT_CRC) != crc_of(data))
		return;
	p->known = true;
	p->offset = tide_get_le64(data + AT_OFFSET);
	p->len = tide_get_le64(data + AT_LENGTH);
	p->sum = tide_get_le64(data + AT_SUM);
	p->guard = tide_get_le64(data + AT_GUARD);
	p->of_birth = tide_get_le16(data + AT_FLAGS) & OF_BIRTH;
	p->file_size = tide_get_le64(data + AT_SIZE);
	p->mtime.tv_sec = (time_t)tide_get_le64(data + AT_SEC);
	p->mtime.tv_nsec = tide_get_le32(data + AT_NSEC);
}

static void encode(const struct tide_qcow2_sums_place *p, uint8_t *data)
{
	memset(data, 0, TIDE_QCOW2_SUMS_BYTES);
	tide_put_le16(data, VERSION);
	tide_put_le16(data + AT_FLAGS, p->of_birth ? OF_BIRTH : 0);
	tide_put_le64(data + AT_SIZE, p->file_size);
	tide_put_le64(data + AT_SEC, (uint64_t)p->mtime.tv_sec);
	tide_put_le32(data + AT_NSEC, (uint32_t)p->mtime.tv_nsec);
	tide_put_le64(data + AT_OFFSET, p->offset);
	tide_put_le64(data + AT_LENGTH, p->len);
	tide_put_le64(data + AT_SUM, p->sum);
	tide_put_le64(data + AT_GUARD, p->guard);
	tide_put_le32(data + AT_CRC, crc_of(data));
}

/* Not what Tidemark changes without a change of the disk: the reference counts, bitmaps and its own extensions. */
static int guard_of(const struct tide_qcow2_header *h, uint64_t *guard, struct tide_error *err)
{
	struct tide_strbuf text = TIDE_STRBUF_INIT;
	TIDE_AUTOFREE char *all = NULL;

	tide_strbuf_addf(&text, "%u %u %u %u %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu32 " %" PRIu64 " %" PRIu64,
	                 h->version, h->cluster_bits, h->refcount_order, h->compression, h->size, h->l1_offset,
	                 h->l1_entries, h->snapshots, h->snapshots_offset, h->incompatible);
	tide_strbuf_addf(&text, "\n%s\n%s\n%s\n", h->backing ? h->backing : "",
	                 h->backing_format ? h->backing_format : "", h->data_file ? h->data_file : "");
	all = tide_strbuf_steal(&text, err);
	if (!all || tide_xxh_load(err) < 0)
		return -1;
	*guard = tide_xxh_of(all, strlen(all));
	return 0;
}

/* ---- storing ----------------------------------------------------------------------- */

/* Can the image have a table? Version 2 has no autoclear flags, and a data file is changed without the image. */
static bool can_have(const struct tide_qcow2 *q)
{
	return q->header.version >= 3 && !q->has_data_file && !q->is_device;
}

/* Does the file end with a table in clusters that are free? Then the new one takes its place. */
static bool has_old_table(struct tide_qcow2 *q, uint64_t file_end)
{
	const struct tide_qcow2_sums_place *p = &q->header.sums;
	uint64_t count, first = p->offset >> q->cluster_bits, end = tide_qcow2_clusters(q, file_end);
	uint8_t magic[8];

	if (!p->known || q->is_new || (p->offset & (q->cluster_size - 1)) || p->offset >= file_end ||
	    !tide_range_is_within(p->offset, p->len, file_end) || tide_qcow2_clusters(q, p->offset + p->len) != end ||
	    tide_sysio_pread(q->fd, magic, sizeof(magic), p->offset, true, NULL) < 0 || memcmp(magic, "TIDESUMS", 8))
		return false;
	for (uint64_t c = first; c < end; c++) {
		if (tide_qcow2_refcount_get(q, c, &count, NULL) < 0 || count)
			return false;
	}
	return true;
}

int tide_qcow2_sums_range(void *state, int *fd, uint64_t *start, uint64_t *end, struct tide_error *err)
{
	struct tide_qcow2 *q = state;
	uint64_t size;

	if (!can_have(q))
		return 1;
	*fd = q->fd;
	*start = q->cluster_size;
	if (tide_sysio_size(q->fd, &size, err) < 0)
		return -1;
	pthread_mutex_lock(&q->lock);
	*end = tide_range_align_up(TIDE_MAX(size, q->file_size), q->cluster_size);
	if (has_old_table(q, *end))
		*end = q->header.sums.offset;
	pthread_mutex_unlock(&q->lock);
	return 0;
}

static int sync_file(const struct tide_qcow2 *q, struct tide_error *err)
{
	return q->is_hidden ? 0 : tide_sysio_fdatasync(q->fd, err);
}

/* Of whole clusters, so that a later change finds no cluster that was cut. */
static int write_table(struct tide_qcow2 *q, struct tide_sums *sums, struct tide_qcow2_sums_place *p, uint64_t *end,
                       struct tide_error *err)
{
	if (tide_sums_write(sums, q->fd, p->offset, &p->len, &p->sum, err) < 0)
		return -1;
	*end = tide_range_align_up(p->offset + p->len, q->cluster_size);
	if (ftruncate(q->fd, (off_t)*end) < 0)
		return tide_error_set_sys(err, errno, "Could not extend the file to %" PRIu64 " bytes", *end);
	return sync_file(q, err);
}

static bool is_copy(const struct tide_qcow2 *q)
{
	bool is_changed, copy;

	tide_qcow2_ext_compare_file(q->fd, q->header.birth_file, &is_changed, &copy);
	return copy;
}

int tide_qcow2_sums_put(struct tide_qcow2 *q, const struct stat *st, struct tide_error *err)
{
	struct tide_qcow2_sums_place *p = &q->header.sums;
	uint8_t bytes[TIDE_QCOW2_SUMS_BYTES];

	p->of_birth = (q->header.autoclear & TIDE_QCOW2_AUTOCLEAR_INTACT) && !is_copy(q);
	p->file_size = st ? (uint64_t)st->st_size : 0;
	p->mtime = st ? st->st_mtim : (struct timespec){ .tv_nsec = UINT32_MAX };
	encode(p, bytes);
	return tide_qcow2_ext_put(q, TIDE_QCOW2_EXT_SUMS, bytes, sizeof(bytes), err);
}

/* 1: the header has no room. */
static int store(struct tide_qcow2 *q, struct tide_sums *sums, struct tide_error *err)
{
	struct tide_qcow2_sums_place p = { .exists = true, .known = true, .offset = tide_sums_end(sums) };
	uint64_t end;
	int rc;

	if (guard_of(&q->header, &p.guard, err) < 0)
		return -1;
	/* The file is flushed, and a flush need not write this change. */
	rc = tide_qcow2_flush_set_autoclear(q, 0, TIDE_QCOW2_AUTOCLEAR_SUMS, err);
	if (rc < 0 || write_table(q, sums, &p, &end, err) < 0)
		return -1;
	q->header.sums = p;
	rc = tide_qcow2_sums_put(q, NULL, err);
	if (rc == 0)
		rc = tide_qcow2_flush_set_autoclear(q, TIDE_QCOW2_AUTOCLEAR_SUMS, 0, err);
	if (rc != 0)
		return rc;
	if (!q->is_new)
		q->file_size = end;
	return 0;
}

int tide_qcow2_sums_store(void *state, struct tide_sums *sums, struct tide_error *err)
{
	struct tide_qcow2 *q = state;
	struct stat st;
	bool touched;
	int rc;

	if (!can_have(q))
		return 1;
	if (fstat(q->fd, &st) < 0)
		return tide_error_set_sys(err, errno, "fstat");
	pthread_mutex_lock(&q->lock);
	rc = q->is_new ? 0 : tide_qcow2_flush_prepare_meta(q, err);
	touched = q->touched;
	if (rc == 0)
		rc = store(q, sums, err);
	q->touched = touched && !q->is_new;
	/* The disk is the same as before, so the time of its change is, too. */
	if (rc == 0)
		rc = tide_qcow2_ext_seal(q, &st.st_mtim, is_copy(q), err);
	pthread_mutex_unlock(&q->lock);
	return rc;
}

enum tide_sums_state tide_qcow2_sums_state(int fd, const struct tide_qcow2_header *h)
{
	struct stat st;

	if (!h->sums.exists)
		return TIDE_SUMS_ABSENT;
	if (!(h->autoclear & TIDE_QCOW2_AUTOCLEAR_SUMS))
		return TIDE_SUMS_VOID;
	if (!h->sums.known || h->sums.mtime.tv_nsec == UINT32_MAX)
		return TIDE_SUMS_VALID;
	return fstat(fd, &st) == 0 && (uint64_t)st.st_size == h->sums.file_size &&
	                       st.st_mtim.tv_sec == h->sums.mtime.tv_sec && st.st_mtim.tv_nsec == h->sums.mtime.tv_nsec
	               ? TIDE_SUMS_VALID
	               : TIDE_SUMS_DOUBTFUL;
}

/* ---- loading ----------------------------------------------------------------------- */

static int load(const struct tide_qcow2 *q, struct tide_sums **out, struct tide_error *err)
{
	const struct tide_qcow2_sums_place *p = &q->header.sums;
	uint64_t guard;

	if (!p->known)
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "the table of checksums cannot be found: its extension of "
		                      "the header is damaged or of an unknown version");
	if (guard_of(&q->header, &guard, err) < 0)
		return -1;
	if (guard != p->guard)
		return tide_error_set(err, TIDE_E_DAMAGED, "the header does not have its checksum");
	*out = tide_sums_read(q->fd, p->offset, p->len, p->sum, err);
	if (!*out)
		return -1;
	if (tide_sums_start(*out) == q->cluster_size && tide_sums_end(*out) == p->offset)
		return 0;
	tide_sums_free(*out);
	*out = NULL;
	return tide_error_set(err, TIDE_E_CORRUPT, "the table of checksums is damaged: it is of another file");
}

int tide_qcow2_sums_load(void *state, bool old, struct tide_sums **out, struct tide_error *err)
{
	const struct tide_qcow2 *q = state;
	enum tide_sums_state is = can_have(q) ? tide_qcow2_sums_state(q->fd, &q->header) : TIDE_SUMS_ABSENT;
	struct tide_error why = TIDE_ERROR_INIT;

	*out = NULL;
	if (is == TIDE_SUMS_ABSENT || (is == TIDE_SUMS_VOID && !old))
		return 0;
	if (load(q, out, &why) == 0)
		return 0;
	/* A program that changed the file may have used the place of the table, or changed the header. */
	if (is == TIDE_SUMS_VALID || (why.code != TIDE_E_CORRUPT && (old || why.code != TIDE_E_DAMAGED)))
		return tide_error_move(err, &why);
	tide_error_release(&why);
	return 0;
}

/* ---- proving what is read ---------------------------------------------------------- */

int tide_qcow2_sums_prove(const struct tide_qcow2 *q, const void *buf, uint64_t off, uint64_t len,
                          struct tide_error *err)
{
	uint64_t bad;
	int rc = q->proof ? tide_sums_check(q->proof, q->fd, buf, off, len, &bad, err) : 0;

	if (rc <= 0)
		return rc;
	tide_error_set(err, TIDE_E_CORRUPT,
	               "%u bytes at %" PRIu64 " of the file do not have their checksum: the file is damaged",
	               TIDE_SUMS_BLOCK, bad);
	return tide_error_hint(err, "%s", tide_image_sums_hint(tide_qcow2_sums_state(q->fd, &q->header)));
}

/* The tables that were read before. */
static int prove_known(struct tide_qcow2 *q, struct tide_error *err)
{
	uint64_t len = q->header.l1_entries * 8;
	TIDE_AUTOFREE uint8_t *l1 = tide_mem_alloc(TIDE_MAX(len, 1), 1, err);

	if (!l1 || tide_sysio_pread(q->fd, l1, len, q->header.l1_offset, true, err) < 0 ||
	    tide_qcow2_sums_prove(q, l1, q->header.l1_offset, len, err) < 0)
		return -1;
	for (uint64_t i = 0; i < q->header.l1_entries; i++) {
		const struct tide_qcow2_table *t = q->l2.slot[i];

		if (t && tide_qcow2_sums_prove(q, t->data, t->host, q->cluster_size, err) < 0)
			return -1;
	}
	return 0;
}

int tide_qcow2_sums_use(void *state, struct tide_sums *collect, struct tide_sums *proof, struct tide_error *err)
{
	struct tide_qcow2 *q = state;
	int rc;

	pthread_mutex_lock(&q->lock);
	q->collect = collect;
	q->proof = proof;
	rc = proof ? prove_known(q, err) : 0;
	pthread_mutex_unlock(&q->lock);
	return rc;
}

/* ---- the part of the disk that bytes of the file are for --------------------------- */

struct search {
	struct tide_qcow2 *q;
	const struct tide_bitmap *bad; /* over the table's range of the file */
	int (*found)(void *data, uint64_t off, uint64_t len, struct tide_error *err);
	void *data;
};

static bool is_bad(const struct search *s, uint64_t off, uint64_t len)
{
	uint64_t start, n, from = s->q->cluster_size, size = tide_bitmap_size(s->bad);

	if (off < from) {
		len -= TIDE_MIN(len, from - off);
		off = from;
	}
	off -= from;
	return len && off < size && tide_bitmap_next_dirty(s->bad, off, UINT64_MAX, &start, &n) && start < off + len;
}

static int search_table(const struct search *s, const struct tide_qcow2_table *t, uint64_t off, uint64_t end,
                        struct tide_error *err)
{
	struct tide_qcow2_cluster c;

	for (; off < end; off += s->q->cluster_size) {
		uint64_t len;

		if (tide_qcow2_l2_decode(s->q, tide_qcow2_l2_get(s->q, t, off), off, &c, NULL) < 0)
			continue;
		len = c.kind == TIDE_QCOW2_COMPRESSED ? c.len : s->q->cluster_size;
		if ((c.kind == TIDE_QCOW2_DATA || c.kind == TIDE_QCOW2_COMPRESSED || c.kind == TIDE_QCOW2_MIXED) &&
		    c.host && is_bad(s, c.host, len) &&
		    s->found(s->data, off, TIDE_MIN(s->q->cluster_size, s->q->size - off), err) < 0)
			return -1;
	}
	return 0;
}

/* A damaged table makes all that it describes doubtful. */
static int search_part(const struct search *s, uint64_t index, uint64_t off, uint64_t end, struct tide_error *err)
{
	struct tide_qcow2_table *t;
	uint64_t entry;

	if (tide_qcow2_l1_get(s->q, index, &entry, NULL) < 0)
		return s->found(s->data, off, end - off, err);
	if (entry == 0)
		return 0;
	if (is_bad(s, entry & TIDE_QCOW2_ENTRY_OFFSET, s->q->cluster_size) ||
	    tide_qcow2_l2_load(s->q, index, &t, NULL) < 0)
		return s->found(s->data, off, end - off, err);
	return t ? search_table(s, t, off, end, err) : 0;
}

int tide_qcow2_sums_disk(void *state, const struct tide_bitmap *bad,
                         int (*found)(void *data, uint64_t off, uint64_t len, struct tide_error *err), void *data,
                         struct tide_error *err)
{
	struct tide_qcow2 *q = state;
	const struct search s = { q, bad, found, data };
	unsigned shift = q->cluster_bits + q->l2_bits;
	int rc = 0;

	if (q->header.l1_entries && is_bad(&s, q->header.l1_offset, q->header.l1_entries * 8))
		return found(data, 0, q->size, err);
	pthread_mutex_lock(&q->lock);
	for (uint64_t off = 0; off < q->size && rc == 0; off += UINT64_C(1) << shift)
		rc = search_part(&s, off >> shift, off, TIDE_MIN(q->size, off + (UINT64_C(1) << shift)), err);
	pthread_mutex_unlock(&q->lock);
	return rc;
}
