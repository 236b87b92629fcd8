/*
 * Puts bitmaps into an image: checks that they may be stored, and writes their data, tables and directory.
 *
 * A bitmap is divided into pieces of one cluster. A piece without dirty bits is 0 in the table, a
 * completely dirty one is 1. The last piece is never 1 when it has bits past the end of the disk, because
 * QEMU takes 1 to include those.
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

/* ---- checks ---- */

static int check_constraints(const struct tide_qcow2 *q, const struct tide_driver_bitmap_put *p, struct tide_error *err)
{
	uint64_t bytes = tide_range_div_up(tide_range_div_up(q->size, TIDE_MAX(p->granularity, 1)), 8);

	if (p->granularity > TIDE_BITMAP_GRANULARITY_MAX)
		return tide_error_set(err, TIDE_E_REFUSED, "Granularity exceeds maximum (%" PRIu64 " bytes)",
		                      TIDE_BITMAP_GRANULARITY_MAX);
	if (p->granularity < TIDE_BITMAP_GRANULARITY_MIN || !tide_range_is_pow2(p->granularity))
		return tide_error_set(err, TIDE_E_REFUSED, "Granularity is under minimum (%u bytes)",
		                      TIDE_BITMAP_GRANULARITY_MIN);
	if (!p->keep && bytes > TIDE_QCOW2_BITMAP_DATA_MAX)
		return tide_error_set(err, TIDE_E_REFUSED,
		                      "Too much space will be occupied by the bitmap. Use larger granularity");
	if (!p->keep && bytes == 0)
		return tide_error_set(err, TIDE_E_REFUSED, "A disk of 0 bytes has no bits to store");
	if (p->name[0] == '\0')
		return tide_error_set(err, TIDE_E_REFUSED, "Bitmap name cannot be empty");
	if (strlen(p->name) > TIDE_QCOW2_NAME_MAX)
		return tide_error_set(err, TIDE_E_REFUSED, "Name length exceeds maximum (%u characters)",
		                      TIDE_QCOW2_NAME_MAX);
	return 0;
}

/* Checks the caller's part. */
static int check_source(const struct tide_qcow2 *q, const struct tide_driver_bitmap_put *p, struct tide_error *err)
{
	if (p->keep &&
	    (p->index >= q->n_bitmaps || q->bitmaps[p->index].granularity_bits != tide_range_shift(p->granularity)))
		return tide_error_set(err, TIDE_E_REFUSED,
		                      "Bitmap '%s' cannot keep the contents of number %zu of the %zu stored ones",
		                      p->name, p->index, q->n_bitmaps);
	if (!p->keep && (!p->contents || tide_bitmap_size(p->contents) != q->size ||
	                 tide_bitmap_granularity(p->contents) != p->granularity))
		return tide_error_set(err, TIDE_E_REFUSED,
		                      "Bitmap '%s' has no contents of granularity %" PRIu64 " for a disk of %" PRIu64
		                      " bytes",
		                      p->name, p->granularity, q->size);
	return 0;
}

static uint64_t entry_bytes(const char *name)
{
	return tide_range_align_up(TIDE_QCOW2_BITMAP_HEAD + strlen(name), 8);
}

static int compare_name(const void *a, const void *b)
{
	return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static int check_unique(const struct tide_qcow2 *q, const struct tide_driver_bitmap_put *put, size_t n,
                        struct tide_error *err)
{
	TIDE_AUTOFREE const char **names = tide_mem_alloc(n, sizeof(*names), err);
	TIDE_AUTOFREE bool *kept = tide_mem_alloc(q->n_bitmaps, sizeof(*kept), err);

	if (!names || !kept)
		return -1;
	for (size_t i = 0; i < n; i++) {
		names[i] = put[i].name;
		if (put[i].keep && kept[put[i].index])
			return tide_error_set(err, TIDE_E_REFUSED,
			                      "Bitmap '%s' cannot keep contents that another bitmap keeps",
			                      put[i].name);
		if (put[i].keep)
			kept[put[i].index] = true;
	}
	qsort(names, n, sizeof(*names), compare_name);
	for (size_t i = 1; i < n; i++) {
		if (!strcmp(names[i - 1], names[i]))
			return tide_error_set(err, TIDE_E_REFUSED, "Bitmap already exists: %s", names[i]);
	}
	return 0;
}

int tide_qcow2_put_check(const struct tide_qcow2 *q, const struct tide_driver_bitmap_put *put, size_t n,
                         struct tide_error *err)
{
	uint64_t dir = 0;

	if (n == 0)
		return 0;
	if (q->header.version < 3)
		return tide_error_set(err, TIDE_E_UNSUPPORTED, "Cannot store dirty bitmaps in qcow2 v2 files");
	for (size_t i = 0; i < n; i++) {
		if (check_constraints(q, &put[i], err) < 0)
			return -1;
		dir += entry_bytes(put[i].name);
	}
	if (n > TIDE_QCOW2_BITMAPS_MAX)
		return tide_error_set(err, TIDE_E_REFUSED, "Maximum number of persistent bitmaps is already reached");
	if (dir > TIDE_QCOW2_BITMAP_DIR_MAX)
		return tide_error_set(err, TIDE_E_REFUSED, "Not enough space in the bitmap directory");
	for (size_t i = 0; i < n; i++) {
		if (check_source(q, &put[i], err) < 0)
			return -1;
	}
	return check_unique(q, put, n, err);
}

int tide_qcow2_put_check_kept(const struct tide_qcow2 *q, const struct tide_qcow2_bitmap *b, struct tide_error *err)
{
	if (b->in_use || (!b->unsound && b->table_entries == tide_qcow2_bitmap_entries(q, b->granularity_bits)))
		return 0;
	tide_error_set(err, TIDE_E_REFUSED, "Bitmap '%s' is inconsistent and cannot be used", b->name);
	return tide_error_hint(err, "Try block-dirty-bitmap-remove to delete this bitmap from disk");
}

/* ---- data ---- */

/* Pieces that are adjacent in the file are written together. */
struct writer {
	struct tide_qcow2 *q;
	struct tide_qcow2_runs *used;
	uint8_t *buf;
	uint64_t at, filled, room; /* bytes */
};

#define WRITE_BYTES (UINT64_C(1) << 20)

static int writer_flush(struct writer *w, struct tide_error *err)
{
	if (w->filled && tide_sysio_pwrite(w->q->fd, w->buf, w->filled, w->at, err) < 0)
		return -1;
	w->filled = 0;
	return 0;
}

/* Registers clusters as bitmap metadata, so that nothing else is written there. */
static int own(struct tide_qcow2 *q, uint64_t first, uint64_t n, struct tide_qcow2_runs *used, struct tide_error *err)
{
	/* The list comes first, because the caller releases the clusters on it after a failure. */
	if (tide_qcow2_runs_add(used, first, n, err) < 0) {
		tide_qcow2_alloc_undo(q, first, n);
		return -1;
	}
	for (uint64_t i = 0; i < n; i++) {
		if (tide_qcow2_meta_add_bitmap(q, first + i, err) < 0)
			return -1;
	}
	return 0;
}

static int writer_put(struct writer *w, const uint8_t *piece, uint64_t *host, struct tide_error *err)
{
	uint64_t first, got, cluster = w->q->cluster_size;

	if (tide_qcow2_alloc_clusters(w->q, 1, &first, &got, err) < 0 || own(w->q, first, 1, w->used, err) < 0)
		return -1;
	*host = first << w->q->cluster_bits;
	if ((w->filled == w->room || *host != w->at + w->filled) && writer_flush(w, err) < 0)
		return -1;
	if (w->filled == 0)
		w->at = *host;
	memcpy(w->buf + w->filled, piece, cluster);
	w->filled += cluster;
	return 0;
}

/*
 * Copies bytes [off, off + len) of the bitmap in its stored form, with zeroes past its end. Returns false when all
 * are zero.
 */
static bool fetch(const struct tide_bitmap *bm, uint64_t off, uint8_t *buf, uint64_t len)
{
	uint8_t chunk[TIDE_BITMAP_CHUNK_BYTES] __attribute__((aligned(8)));
	bool any = false;

	while (len) {
		uint64_t within = off % TIDE_BITMAP_CHUNK_BYTES, n = TIDE_MIN(len, TIDE_BITMAP_CHUNK_BYTES - within);
		const uint8_t *data;

		any |= tide_bitmap_get_chunk(bm, off / TIDE_BITMAP_CHUNK_BYTES, chunk, &data) !=
		       TIDE_BITMAP_CHUNK_CLEAN;
		memcpy(buf, data + within, n);
		buf += n;
		off += n;
		len -= n;
	}
	return any;
}

static bool is_all_ones(const uint8_t *p, uint64_t len)
{
	return p[0] == 0xff && !memcmp(p, p + 1, len - 1);
}

/* Writes one piece; *entry is its table entry. */
static int put_piece(struct writer *w, const struct tide_bitmap *bm, uint64_t index, uint8_t *piece, uint64_t *entry,
                     struct tide_error *err)
{
	uint64_t size = w->q->cluster_size;

	*entry = 0;
	if (!fetch(bm, index * size, piece, size) || tide_sysio_is_zero(piece, size))
		return 0;
	if ((index + 1) * size * 8 <= tide_bitmap_bits(bm) && is_all_ones(piece, size)) {
		*entry = TIDE_QCOW2_BITMAP_ALL_ONES;
		return 0;
	}
	return writer_put(w, piece, entry, err);
}

static int put_data(struct tide_qcow2 *q, const struct tide_bitmap *bm, uint8_t *table, uint64_t entries,
                    struct tide_qcow2_runs *used, struct tide_error *err)
{
	struct writer w = { .q = q, .used = used, .room = TIDE_MAX(WRITE_BYTES, q->cluster_size) };
	TIDE_AUTOFREE uint8_t *buf = tide_mem_aligned(4096, w.room, err);
	TIDE_AUTOFREE uint8_t *piece = tide_mem_alloc(1, q->cluster_size, err);
	uint64_t per_chunk = TIDE_MAX(TIDE_BITMAP_CHUNK_BYTES >> q->cluster_bits, 1);

	if (!buf || !piece)
		return -1;
	w.buf = buf;
	for (uint64_t i = 0; i < entries;) {
		uint64_t chunk = tide_bitmap_next_chunk(bm, (i << q->cluster_bits) / TIDE_BITMAP_CHUNK_BYTES), entry;

		if (chunk == tide_bitmap_chunks(bm))
			break;
		i = TIDE_MAX(i, chunk * TIDE_BITMAP_CHUNK_BYTES >> q->cluster_bits);
		for (uint64_t n = TIDE_MIN(per_chunk, entries - i); n > 0; n--, i++) {
			if (put_piece(&w, bm, i, piece, &entry, err) < 0)
				return -1;
			tide_put_be64(table + 8 * i, entry);
		}
	}
	return writer_flush(&w, err);
}

/* ---- table and directory: clusters in a row ---- */

static int put_row(struct tide_qcow2 *q, const uint8_t *data, uint64_t bytes, uint64_t *offset,
                   struct tide_qcow2_runs *used, struct tide_error *err)
{
	uint64_t n = tide_qcow2_clusters(q, bytes), first = 0;

	if (tide_qcow2_refcount_alloc_row(q, n, &first, err) < 0 || own(q, first, n, used, err) < 0)
		return -1;
	*offset = first << q->cluster_bits;
	return tide_sysio_pwrite(q->fd, data, n << q->cluster_bits, *offset, err);
}

static uint8_t *row_new(const struct tide_qcow2 *q, uint64_t bytes, struct tide_error *err)
{
	return tide_mem_alloc(tide_qcow2_clusters(q, bytes), q->cluster_size, err);
}

int tide_qcow2_put_contents(struct tide_qcow2 *q, const struct tide_bitmap *bm, struct tide_qcow2_bitmap *b,
                            struct tide_qcow2_runs *used, struct tide_error *err)
{
	uint64_t entries = tide_qcow2_bitmap_entries(q, b->granularity_bits);
	TIDE_AUTOFREE uint8_t *table = row_new(q, 8 * entries, err);

	if (!table || put_data(q, bm, table, entries, used, err) < 0)
		return -1;
	b->table_entries = (uint32_t)entries;
	return put_row(q, table, 8 * entries, &b->table_offset, used, err);
}

static uint8_t *put_entry(uint8_t *p, const struct tide_qcow2_bitmap *b)
{
	uint32_t flags = (b->in_use ? TIDE_QCOW2_BITMAP_IN_USE : 0) | (b->enabled ? TIDE_QCOW2_BITMAP_AUTO : 0);

	tide_put_be64(p, b->table_offset);
	tide_put_be32(p + 8, b->table_entries);
	tide_put_be32(p + 12, flags);
	p[16] = TIDE_QCOW2_BITMAP_TYPE_DIRTY;
	p[17] = (uint8_t)b->granularity_bits;
	tide_put_be16(p + 18, (uint16_t)strlen(b->name));
	memcpy(p + TIDE_QCOW2_BITMAP_HEAD, b->name, strlen(b->name));
	return p + entry_bytes(b->name);
}

int tide_qcow2_put_directory(struct tide_qcow2 *q, const struct tide_qcow2_bitmap *bitmaps, size_t n, uint64_t *offset,
                             uint64_t *size, struct tide_qcow2_runs *used, struct tide_error *err)
{
	TIDE_AUTOFREE uint8_t *dir = NULL;
	uint8_t *p;

	*size = 0;
	for (size_t i = 0; i < n; i++)
		*size += entry_bytes(bitmaps[i].name);
	dir = p = row_new(q, *size, err);
	if (!dir)
		return -1;
	for (size_t i = 0; i < n; i++)
		p = put_entry(p, &bitmaps[i]);
	return put_row(q, dir, *size, offset, used, err);
}
