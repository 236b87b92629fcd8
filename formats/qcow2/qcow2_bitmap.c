/*
 * Reads the persistent bitmaps of an image: the directory when the image is opened, a bitmap's
 * table and data when it is asked for. Messages are QEMU's where QEMU refuses the same. A bitmap
 * that is marked as in use is listed but not read, until a caller that knows it is sound reclaims it.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "base/range.h"
#include "base/sysio.h"
#include "qcow2.h"

#define FLAGS_RESERVED (~UINT32_C(3))

#define TABLE_ENTRIES_MAX 0x8000000u
#define TABLE_PIECE       512u /* entries that are checked at once */

/* A directory entry as in the file. */
struct entry {
	uint64_t table_offset;
	uint32_t table_entries, flags, extra;
	unsigned type, granularity_bits, name_len;
	const char *name;
};

void tide_qcow2_bitmap_free(struct tide_qcow2_bitmap *bitmaps, size_t n)
{
	for (size_t i = 0; i < n; i++)
		free(bitmaps[i].name);
	free(bitmaps);
}

void tide_qcow2_bitmap_release(struct tide_qcow2 *q)
{
	tide_qcow2_bitmap_free(q->bitmaps, q->n_bitmaps);
	q->bitmaps = NULL;
	q->n_bitmaps = 0;
}

uint64_t tide_qcow2_bitmap_entries(const struct tide_qcow2 *q, unsigned granularity_bits)
{
	uint64_t bits = tide_range_div_up(q->size, UINT64_C(1) << granularity_bits);

	return tide_qcow2_clusters(q, tide_range_div_up(bits, 8));
}

static bool is_sound(const struct tide_qcow2 *q, const struct entry *e)
{
	if (e->table_entries == 0 || e->table_entries > TABLE_ENTRIES_MAX || e->table_offset == 0 ||
	    (e->table_offset & (q->cluster_size - 1)))
		return false;
	if (e->granularity_bits < 9 || e->granularity_bits > 31 || (e->flags & FLAGS_RESERVED) ||
	    e->type != TIDE_QCOW2_BITMAP_TYPE_DIRTY)
		return false;
	if (e->name_len == 0 || e->name_len > TIDE_QCOW2_NAME_MAX || memchr(e->name, '\0', e->name_len))
		return false;
	if ((uint64_t)e->table_entries << q->cluster_bits > TIDE_QCOW2_BITMAP_DATA_MAX)
		return false;
	return (e->flags & TIDE_QCOW2_BITMAP_IN_USE) ||
	       tide_qcow2_bitmap_entries(q, e->granularity_bits) <= e->table_entries;
}

/* Parses the entry at *off: 1 and moves *off to the next one; 0 when the directory does not contain it completely. */
static int parse_entry(const uint8_t *dir, uint64_t dir_size, uint64_t *off, struct entry *e)
{
	const uint8_t *p = dir + *off;
	uint64_t len;

	if (dir_size - *off < TIDE_QCOW2_BITMAP_HEAD)
		return 0;
	e->table_offset = tide_get_be64(p);
	e->table_entries = tide_get_be32(p + 8);
	e->flags = tide_get_be32(p + 12);
	e->type = p[16];
	e->granularity_bits = p[17];
	e->name_len = tide_get_be16(p + 18);
	e->extra = tide_get_be32(p + 20);
	len = tide_range_align_up(TIDE_QCOW2_BITMAP_HEAD + (uint64_t)e->extra + e->name_len, 8);
	if (len > dir_size - *off)
		return 0;
	e->name = (const char *)p + TIDE_QCOW2_BITMAP_HEAD + e->extra;
	*off += len;
	return 1;
}

static int add_entry(struct tide_qcow2 *q, const struct entry *e, struct tide_error *err)
{
	struct tide_qcow2_bitmap *b = &q->bitmaps[q->n_bitmaps];

	if (e->extra != 0)
		return tide_error_set(err, TIDE_E_UNSUPPORTED, "Bitmap extra data is not supported");
	if (!is_sound(q, e))
		return tide_error_set(err, TIDE_E_CORRUPT, "Bitmap '%.*s' doesn't satisfy the constraints",
		                      (int)e->name_len, e->name);
	b->name = tide_mem_strndup(e->name, e->name_len, err);
	if (!b->name)
		return -1;
	b->table_offset = e->table_offset;
	b->table_entries = e->table_entries;
	b->granularity_bits = e->granularity_bits;
	b->in_use = e->flags & TIDE_QCOW2_BITMAP_IN_USE;
	b->enabled = e->flags & TIDE_QCOW2_BITMAP_AUTO;
	q->n_bitmaps++;
	return 0;
}

static int read_directory(struct tide_qcow2 *q, struct tide_error *err)
{
	uint64_t size = q->header.bitmap_dir_size, off = 0;
	TIDE_AUTOFREE uint8_t *dir = tide_mem_alloc(size, 1, err);

	if (!dir)
		return -1;
	if (tide_sysio_pread(q->fd, dir, size, q->header.bitmap_dir_offset, false, err) < 0)
		return tide_error_wrap(err, "Failed to read bitmap directory");
	/* Each entry takes at least 32 bytes, so the directory's size limits the allocation. */
	q->bitmaps = tide_mem_alloc(TIDE_MIN(q->header.n_bitmaps, size / 32 + 1), sizeof(*q->bitmaps), err);
	if (!q->bitmaps)
		return -1;
	while (off < size) {
		struct entry e;

		if (!parse_entry(dir, size, &off, &e))
			return tide_error_set(err, TIDE_E_CORRUPT, "Broken bitmap directory");
		if (q->n_bitmaps == q->header.n_bitmaps)
			return tide_error_set(err, TIDE_E_CORRUPT,
			                      "More bitmaps found than specified in header extension");
		if (add_entry(q, &e, err) < 0)
			return -1;
	}
	if (q->n_bitmaps != q->header.n_bitmaps)
		return tide_error_set(err, TIDE_E_CORRUPT, "Less bitmaps found than specified in header extension");
	return 0;
}

static int compare_name(const void *a, const void *b)
{
	return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static int check_names(const struct tide_qcow2 *q, struct tide_error *err)
{
	TIDE_AUTOFREE const char **names = tide_mem_alloc(q->n_bitmaps, sizeof(*names), err);

	if (!names)
		return -1;
	for (size_t i = 0; i < q->n_bitmaps; i++)
		names[i] = q->bitmaps[i].name;
	qsort(names, q->n_bitmaps, sizeof(*names), compare_name);
	for (size_t i = 1; i < q->n_bitmaps; i++) {
		if (!strcmp(names[i - 1], names[i]))
			return tide_error_set(err, TIDE_E_CORRUPT, "Bitmap already exists: %s", names[i]);
	}
	return 0;
}

static int table_is_bad(const struct tide_qcow2_bitmap *b, const char *why, struct tide_error *err)
{
	return tide_error_set(err, TIDE_E_CORRUPT, "Could not read bitmap_table table from image for bitmap '%s': %s",
	                      b->name, why);
}

static int check_place(const struct tide_qcow2 *q, const struct tide_qcow2_bitmap *b, struct tide_error *err)
{
	if (tide_range_is_within(b->table_offset, UINT64_C(8) * b->table_entries, q->file_size))
		return 0;
	return table_is_bad(b, "it lies beyond the end of the file", err);
}

/*
 * Reads the table from its entry `first` on, up to `room` entries, or to the end of an extent of the file.  Entries in
 * a hole are zero; they are skipped, not read, and may be more: a sparse file of no size can have 65535 tables of
 * megabytes.  Returns the number of entries that were read or skipped, or 0 after an error.
 */
static uint64_t read_entries(const struct tide_qcow2 *q, const struct tide_qcow2_bitmap *b, uint64_t first,
                             uint64_t room, uint64_t *entries, struct tide_error *err)
{
	uint64_t at = b->table_offset + 8 * first, left = b->table_entries - first, n, len;
	bool data;

	tide_sysio_extent(q->fd, at, 8 * left, &data, &len);
	if (!data && len >= 8)
		return len / 8;
	n = TIDE_MIN(room, TIDE_MAX(len / 8, UINT64_C(1)));
	if (tide_sysio_pread(q->fd, entries, 8 * n, at, false, err) < 0)
		return 0;
	for (uint64_t i = 0; i < n; i++) {
		uint64_t e = entries[i] = tide_get_be64(&entries[i]), off = e & TIDE_QCOW2_BITMAP_OFFSET;

		if ((e & TIDE_QCOW2_BITMAP_RESERVED) || (off & (q->cluster_size - 1)) ||
		    (off && (e & TIDE_QCOW2_BITMAP_ALL_ONES))) {
			table_is_bad(b, "Invalid argument", err);
			return 0;
		}
	}
	return n;
}

uint64_t *tide_qcow2_bitmap_table(const struct tide_qcow2 *q, const struct tide_qcow2_bitmap *b, struct tide_error *err)
{
	TIDE_AUTOFREE uint64_t *table = NULL;
	uint64_t *result;

	if (check_place(q, b, err) < 0)
		return NULL;
	table = tide_mem_alloc(b->table_entries, sizeof(*table), err);
	if (!table)
		return NULL;
	for (uint64_t i = 0, n; i < b->table_entries; i += n) {
		n = read_entries(q, b, i, b->table_entries - i, table + i, err);
		if (n == 0)
			return NULL;
	}
	result = table;
	table = NULL;
	return result;
}

/* Checks the table of a reliable bitmap, piece by piece. */
static int check_table(const struct tide_qcow2 *q, const struct tide_qcow2_bitmap *b, struct tide_error *err)
{
	uint64_t piece[TABLE_PIECE];

	if (check_place(q, b, err) < 0)
		return -1;
	for (uint64_t i = 0, n; i < b->table_entries; i += n) {
		n = read_entries(q, b, i, TABLE_PIECE, piece, err);
		if (n == 0)
			return -1;
	}
	if (b->table_entries != tide_qcow2_bitmap_entries(q, b->granularity_bits))
		return tide_error_set(err, TIDE_E_CORRUPT, "Could not read bitmap '%s' from image: Invalid argument",
		                      b->name);
	return 0;
}

static int compare_place(const void *a, const void *b)
{
	const struct tide_qcow2_bitmap *x = *(const struct tide_qcow2_bitmap *const *)a;
	const struct tide_qcow2_bitmap *y = *(const struct tide_qcow2_bitmap *const *)b;

	return (x->table_offset > y->table_offset) - (x->table_offset < y->table_offset);
}

/* No two tables may share a cluster, so that all of them together are no larger than the file. */
static int check_apart(const struct tide_qcow2 *q, struct tide_error *err)
{
	TIDE_AUTOFREE const struct tide_qcow2_bitmap **sorted = tide_mem_alloc(q->n_bitmaps, sizeof(*sorted), err);
	size_t n = 0;

	if (!sorted)
		return -1;
	for (size_t i = 0; i < q->n_bitmaps; i++) {
		if (!q->bitmaps[i].in_use)
			sorted[n++] = &q->bitmaps[i];
	}
	qsort(sorted, n, sizeof(*sorted), compare_place);
	for (size_t i = 1; i < n; i++) {
		const struct tide_qcow2_bitmap *b = sorted[i - 1];
		uint64_t len = tide_range_align_up(UINT64_C(8) * b->table_entries, q->cluster_size);

		if (len > sorted[i]->table_offset - b->table_offset)
			return tide_error_set(err, TIDE_E_CORRUPT,
			                      "The tables of bitmaps '%s' and '%s' share the cluster at %" PRIu64,
			                      b->name, sorted[i]->name, sorted[i]->table_offset);
	}
	return 0;
}

static int check_tables(const struct tide_qcow2 *q, struct tide_error *err)
{
	if (check_apart(q, err) < 0)
		return -1;
	for (size_t i = 0; i < q->n_bitmaps; i++) {
		if (!q->bitmaps[i].in_use && check_table(q, &q->bitmaps[i], err) < 0)
			return -1;
	}
	return 0;
}

int tide_qcow2_bitmap_reclaim(void *state, size_t index, struct tide_error *err)
{
	struct tide_qcow2 *q = state;

	if (check_table(q, &q->bitmaps[index], err) < 0)
		return -1;
	q->bitmaps[index].in_use = false;
	return 0;
}

int tide_qcow2_bitmap_open(struct tide_qcow2 *q, struct tide_error *err)
{
	if (q->header.n_bitmaps == 0)
		return 0;
	return read_directory(q, err) < 0 || check_names(q, err) < 0 ? -1 : check_tables(q, err);
}

int tide_qcow2_bitmap_info(const struct tide_qcow2 *q, struct tide_driver_info *info, struct tide_error *err)
{
	if (q->n_bitmaps == 0)
		return 0;
	info->bitmaps = tide_mem_alloc(q->n_bitmaps, sizeof(*info->bitmaps), err);
	if (!info->bitmaps)
		return -1;
	for (size_t i = 0; i < q->n_bitmaps; i++) {
		struct tide_driver_bitmap *b = &info->bitmaps[i];

		b->name = tide_mem_strdup(q->bitmaps[i].name, err);
		if (!b->name)
			return -1;
		info->n_bitmaps++;
		b->granularity = UINT64_C(1) << q->bitmaps[i].granularity_bits;
		b->in_use = q->bitmaps[i].in_use;
		b->enabled = q->bitmaps[i].enabled;
	}
	return 0;
}

/* Reads the piece of the bitmap that one table entry describes. */
static int read_piece(const struct tide_qcow2 *q, uint64_t entry, uint8_t *buf, struct tide_error *err)
{
	uint64_t off = entry & TIDE_QCOW2_BITMAP_OFFSET;

	if (off == 0) {
		memset(buf, entry & TIDE_QCOW2_BITMAP_ALL_ONES ? 0xff : 0, q->cluster_size);
		return 0;
	}
	if (!tide_range_is_within(off, q->cluster_size, q->file_size))
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "bitmap data at %" PRIu64 " lie beyond the end of the file at %" PRIu64, off,
		                      q->file_size);
	return tide_sysio_pread(q->fd, buf, q->cluster_size, off, false, err);
}

static int put_chunks(struct tide_bitmap *bm, uint64_t first, const uint8_t *buf, uint64_t n, struct tide_error *err)
{
	for (uint64_t i = 0; i < n && first + i < tide_bitmap_chunks(bm); i++) {
		const uint8_t *data = buf + i * TIDE_BITMAP_CHUNK_BYTES;

		if (!tide_sysio_is_zero(data, TIDE_BITMAP_CHUNK_BYTES) &&
		    tide_bitmap_put_chunk(bm, first + i, data, err) < 0)
			return -1;
	}
	return 0;
}

static int compare_entry(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

/*
 * No two entries may share a cluster: shared clusters could make the bitmap in memory many times larger than the
 * file.
 */
static int check_distinct(const struct tide_qcow2_bitmap *b, const uint64_t *table, struct tide_error *err)
{
	TIDE_AUTOFREE uint64_t *sorted = tide_mem_alloc(b->table_entries, sizeof(*sorted), err);
	uint32_t n = 0;

	if (!sorted)
		return -1;
	for (uint32_t i = 0; i < b->table_entries; i++) {
		if (table[i] & TIDE_QCOW2_BITMAP_OFFSET)
			sorted[n++] = table[i];
	}
	qsort(sorted, n, sizeof(*sorted), compare_entry);
	for (uint32_t i = 1; i < n; i++) {
		if (sorted[i] == sorted[i - 1])
			return tide_error_set(err, TIDE_E_CORRUPT,
			                      "two entries of its table share the cluster at %" PRIu64, sorted[i]);
	}
	return 0;
}

static int read_contents(const struct tide_qcow2 *q, const struct tide_qcow2_bitmap *b, const uint64_t *table,
                         struct tide_bitmap *bm, struct tide_error *err)
{
	uint64_t unit = TIDE_MAX(q->cluster_size, TIDE_BITMAP_CHUNK_BYTES);
	uint64_t pieces = unit >> q->cluster_bits, chunks = unit / TIDE_BITMAP_CHUNK_BYTES;
	TIDE_AUTOFREE uint8_t *buf = tide_mem_aligned(4096, unit, err);

	if (!buf || check_distinct(b, table, err) < 0)
		return -1;
	for (uint64_t i = 0; i < b->table_entries; i += pieces) {
		uint64_t n = TIDE_MIN(pieces, b->table_entries - i);

		if (tide_sysio_is_zero(&table[i], n * sizeof(table[i])))
			continue;
		for (uint64_t j = 0; j < pieces; j++) {
			if (read_piece(q, j < n ? table[i + j] : 0, buf + (j << q->cluster_bits), err) < 0)
				return -1;
		}
		if (put_chunks(bm, i / pieces * chunks, buf, chunks, err) < 0)
			return -1;
	}
	return 0;
}

/* Is the table one hole of the file, so that all of its entries are zero? */
static bool is_hole(const struct tide_qcow2 *q, const struct tide_qcow2_bitmap *b)
{
	uint64_t len;
	bool data;

	tide_sysio_extent(q->fd, b->table_offset, UINT64_C(8) * b->table_entries, &data, &len);
	return !data && len == UINT64_C(8) * b->table_entries && check_place(q, b, NULL) == 0;
}

int tide_qcow2_bitmap_read(void *state, size_t index, struct tide_bitmap **out, struct tide_error *err)
{
	const struct tide_qcow2 *q = state;
	const struct tide_qcow2_bitmap *b = &q->bitmaps[index];
	TIDE_AUTOBITMAP struct tide_bitmap *bm = NULL;
	TIDE_AUTOFREE uint64_t *table = NULL;

	if (b->in_use) {
		tide_error_set(err, TIDE_E_REFUSED, "Bitmap '%s' is inconsistent and cannot be used", b->name);
		return tide_error_hint(err, "Try block-dirty-bitmap-remove to delete this bitmap from disk");
	}
	bm = tide_bitmap_new(q->size, UINT64_C(1) << b->granularity_bits, err);
	if (!bm)
		return -1;
	if (!is_hole(q, b)) {
		table = tide_qcow2_bitmap_table(q, b, err);
		if (!table)
			return -1;
	}
	if (table && read_contents(q, b, table, bm, err) < 0)
		return tide_error_wrap(err, "Could not read bitmap '%s' from image", b->name);
	*out = bm;
	bm = NULL;
	return 0;
}
