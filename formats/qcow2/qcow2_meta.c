/*
 * The places of all metadata in the file of an in-place image: header, tables, refcount blocks,
 * snapshots and bitmaps. Before a cluster is allocated, freed or written as data, it is looked up
 * here, so that a damaged image cannot lead to a write over its own tables.
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

/* ---- the hash set: open addressing, linear probing, at most half full ---- */

static size_t home(const struct tide_qcow2_set *s, uint64_t key)
{
	return (size_t)((key * UINT64_C(0x9e3779b97f4a7c15)) >> 20) & (s->cap - 1);
}

/* The slot of the key, or the free slot for it. */
static size_t find_slot(const struct tide_qcow2_set *s, uint64_t key)
{
	size_t i = home(s, key);

	while (s->slot[i] && s->slot[i] != key)
		i = (i + 1) & (s->cap - 1);
	return i;
}

static int grow_set(struct tide_qcow2_set *s, struct tide_error *err)
{
	struct tide_qcow2_set grown = { .cap = s->cap ? s->cap * 2 : 256, .n = s->n };

	grown.slot = tide_mem_alloc(grown.cap, sizeof(*grown.slot), err);
	if (!grown.slot)
		return -1;
	for (size_t i = 0; i < s->cap; i++) {
		if (s->slot[i])
			grown.slot[find_slot(&grown, s->slot[i])] = s->slot[i];
	}
	free(s->slot);
	*s = grown;
	return 0;
}

static int set_add(struct tide_qcow2_set *s, uint64_t cluster, struct tide_error *err)
{
	size_t i;

	if (s->n >= s->cap / 2 && grow_set(s, err) < 0)
		return -1;
	i = find_slot(s, cluster + 1);
	s->n += s->slot[i] == 0;
	s->slot[i] = cluster + 1;
	return 0;
}

static bool set_has(const struct tide_qcow2_set *s, uint64_t cluster)
{
	return s->cap && s->slot[find_slot(s, cluster + 1)];
}

static bool set_has_any(const struct tide_qcow2_set *s, uint64_t first, uint64_t n)
{
	for (uint64_t i = 0; s->n && i < n; i++) {
		if (set_has(s, first + i))
			return true;
	}
	return false;
}

static bool set_remove(struct tide_qcow2_set *s, uint64_t cluster)
{
	size_t mask = s->cap - 1, hole, i;

	if (!set_has(s, cluster))
		return false;
	hole = find_slot(s, cluster + 1);
	s->n--;
	/* A later entry moves into the hole when the hole lies between its home and its present slot. */
	for (i = (hole + 1) & mask; s->slot[i]; i = (i + 1) & mask) {
		if (((i - home(s, s->slot[i])) & mask) >= ((i - hole) & mask)) {
			s->slot[hole] = s->slot[i];
			hole = i;
		}
	}
	s->slot[hole] = 0;
	return true;
}

int tide_qcow2_meta_add(struct tide_qcow2 *q, uint64_t cluster, struct tide_error *err)
{
	return set_add(&q->meta.tables, cluster, err);
}

void tide_qcow2_meta_remove(struct tide_qcow2 *q, uint64_t cluster)
{
	set_remove(&q->meta.tables, cluster);
}

int tide_qcow2_meta_add_bitmap(struct tide_qcow2 *q, uint64_t cluster, struct tide_error *err)
{
	return set_add(&q->meta.bitmaps, cluster, err);
}

bool tide_qcow2_meta_remove_bitmap(struct tide_qcow2 *q, uint64_t cluster)
{
	return set_remove(&q->meta.bitmaps, cluster);
}

/* ---- areas ---- */

static int check_place(const struct tide_qcow2 *q, uint64_t off, uint64_t bytes, const char *what,
                       struct tide_error *err)
{
	if (!tide_range_is_within(off, bytes, q->file_size) || (off & (q->cluster_size - 1)))
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "The %s, %" PRIu64 " bytes at %" PRIu64
		                      ", does not lie on clusters within the file of %" PRIu64 " bytes",
		                      what, bytes, off, q->file_size);
	return 0;
}

static int add_area(struct tide_qcow2 *q, uint64_t off, uint64_t bytes, const char *what, struct tide_error *err)
{
	struct tide_qcow2_meta *m = &q->meta;
	uint64_t n = tide_qcow2_clusters(q, bytes);

	if (n == 0)
		return 0;
	if (check_place(q, off, bytes, what, err) < 0)
		return -1;
	if (m->n_areas == m->cap_areas) {
		size_t cap = m->cap_areas ? m->cap_areas * 2 : 32;
		struct tide_qcow2_area *area = tide_mem_realloc(m->area, cap, sizeof(*area), err);

		if (!area)
			return -1;
		m->area = area;
		m->cap_areas = cap;
	}
	m->area[m->n_areas++] =
	        (struct tide_qcow2_area){ .first = off >> q->cluster_bits, .n = n, .bytes = bytes, .what = what };
	return 0;
}

static int compare_area(const void *a, const void *b)
{
	const struct tide_qcow2_area *x = a, *y = b;

	return (x->first > y->first) - (x->first < y->first);
}

static int sort_areas(struct tide_qcow2 *q, struct tide_error *err)
{
	struct tide_qcow2_meta *m = &q->meta;

	if (m->n_areas > 1)
		qsort(m->area, m->n_areas, sizeof(*m->area), compare_area);
	for (size_t i = 1; i < m->n_areas; i++) {
		if (m->area[i - 1].first + m->area[i - 1].n > m->area[i].first)
			return tide_error_set(err, TIDE_E_CORRUPT, "The image's %s and its %s overlap at %" PRIu64,
			                      m->area[i - 1].what, m->area[i].what,
			                      m->area[i].first << q->cluster_bits);
	}
	return 0;
}

/* Adds the L1 tables of the internal snapshots, and the table that lists them. */
static int add_snapshots(struct tide_qcow2 *q, struct tide_error *err)
{
	uint64_t start = q->header.snapshots_offset, off = start;
	uint8_t head[40];

	for (uint32_t i = 0; i < q->header.snapshots; i++) {
		uint64_t extra, len, l1_bytes;

		if (tide_sysio_pread(q->fd, head, sizeof(head), off, false, err) < 0)
			return tide_error_wrap(err, "Could not read snapshot table entry %" PRIu32, i);
		extra = tide_get_be32(head + 36);
		len = tide_range_align_up(sizeof(head) + extra + tide_get_be16(head + 12) + tide_get_be16(head + 14),
		                          8);
		l1_bytes = UINT64_C(8) * tide_get_be32(head + 8);
		off += len;
		if (off - start > TIDE_QCOW2_SNAPSHOTS_BYTES_MAX)
			return tide_error_set(err, TIDE_E_CORRUPT, "The snapshot table exceeds %" PRIu64 " bytes",
			                      TIDE_QCOW2_SNAPSHOTS_BYTES_MAX);
		if (add_area(q, tide_get_be64(head), l1_bytes, "snapshot L1 table", err) < 0)
			return -1;
		if (l1_bytes)
			q->meta.area[q->meta.n_areas - 1].is_snapshot = true;
	}
	/* The padding of the last entry may be missing. */
	return add_area(q, start, TIDE_MIN(off, q->file_size) - start, "snapshot table", err);
}

/* Adds clusters of bitmaps, which must not belong to anything else. added: receives a list of them. */
static int add_bitmap_clusters(struct tide_qcow2 *q, uint64_t off, uint64_t bytes, const char *what,
                               struct tide_qcow2_runs *added, struct tide_error *err)
{
	uint64_t first = off >> q->cluster_bits, n = tide_qcow2_clusters(q, bytes);
	const char *other = tide_qcow2_meta_find(q, first, n);

	if (other)
		return tide_error_set(err, TIDE_E_CORRUPT, "The %s at %" PRIu64 " overlaps with the image's %s", what,
		                      off, other);
	for (uint64_t i = 0; i < n; i++) {
		if (tide_qcow2_meta_add_bitmap(q, first + i, err) < 0)
			return -1;
	}
	return added ? tide_qcow2_runs_add(added, first, n, err) : 0;
}

static int add_bitmap(struct tide_qcow2 *q, const struct tide_qcow2_bitmap *b, struct tide_qcow2_runs *added,
                      struct tide_error *err)
{
	uint64_t bytes = UINT64_C(8) * b->table_entries;
	TIDE_AUTOFREE uint64_t *table = NULL;

	if (check_place(q, b->table_offset, bytes, "bitmap table", err) < 0)
		return -1;
	table = tide_qcow2_bitmap_table(q, b, err);
	if (!table || add_bitmap_clusters(q, b->table_offset, bytes, "bitmap table", added, err) < 0)
		return -1;
	for (uint32_t i = 0; i < b->table_entries; i++) {
		uint64_t off = table[i] & TIDE_QCOW2_BITMAP_OFFSET;

		if (off && (check_place(q, off, q->cluster_size, "bitmap data", err) < 0 ||
		            add_bitmap_clusters(q, off, 1, "bitmap data", added, err) < 0))
			return -1;
	}
	return 0;
}

/*
 * A bitmap that was in use when a program died may be damaged. That does not forbid writing; then none of its
 * clusters are added.
 */
static int add_bitmap_in_use(struct tide_qcow2 *q, struct tide_qcow2_bitmap *b, struct tide_error *err)
{
	struct tide_qcow2_runs added = { 0 };
	struct tide_error failure = TIDE_ERROR_INIT;
	bool unknown;

	b->unsound = add_bitmap(q, b, &added, &failure) < 0;
	for (size_t i = 0; b->unsound && i < added.n; i++) {
		for (uint64_t c = 0; c < added.run[i].n; c++)
			tide_qcow2_meta_remove_bitmap(q, added.run[i].first + c);
	}
	free(added.run);
	unknown = failure.code == TIDE_E_NOMEM || failure.code == TIDE_E_IO;
	if (unknown)
		return tide_error_move(err, &failure);
	tide_error_release(&failure);
	return 0;
}

/* Adds all bitmaps. All other metadata is known by now. */
static int add_bitmaps(struct tide_qcow2 *q, struct tide_error *err)
{
	uint64_t dir = q->header.bitmap_dir_offset, size = q->header.bitmap_dir_size;

	if (q->n_bitmaps == 0)
		return 0;
	if (check_place(q, dir, size, "bitmap directory", err) < 0 ||
	    add_bitmap_clusters(q, dir, size, "bitmap directory", NULL, err) < 0)
		return -1;
	for (size_t i = 0; i < q->n_bitmaps; i++) {
		if (!q->bitmaps[i].in_use && add_bitmap(q, &q->bitmaps[i], NULL, err) < 0)
			return -1;
	}
	for (size_t i = 0; i < q->n_bitmaps; i++) {
		if (q->bitmaps[i].in_use && add_bitmap_in_use(q, &q->bitmaps[i], err) < 0)
			return -1;
	}
	return 0;
}

static int add_table(struct tide_qcow2 *q, uint64_t off, const char *what, struct tide_error *err)
{
	const char *other = off == 0 ? "header" : tide_qcow2_meta_find(q, off >> q->cluster_bits, 1);

	if (other) {
		tide_error_set(err, TIDE_E_CORRUPT, "The %s at %" PRIu64 " overlaps with the image's %s", what, off,
		               other);
		return tide_qcow2_refcount_hint(err);
	}
	/* A table that was cut would read as zeroes once the file is extended; others fail when they are used. */
	if (off < q->file_size && q->file_size - off < q->cluster_size && !(off & (q->cluster_size - 1)))
		return check_place(q, off, q->cluster_size, what, err);
	return tide_qcow2_meta_add(q, off >> q->cluster_bits, err);
}

static int add_tables(struct tide_qcow2 *q, struct tide_error *err)
{
	uint64_t entry;

	for (uint64_t i = 0; i < q->header.l1_entries; i++) {
		if (tide_qcow2_l1_get(q, i, &entry, err) < 0 ||
		    (entry && add_table(q, entry & TIDE_QCOW2_ENTRY_OFFSET, "L2 table", err) < 0))
			return -1;
	}
	for (uint64_t i = 0; i < q->reftable_entries; i++) {
		if (q->reftable[i] && add_table(q, q->reftable[i], "refcount block", err) < 0)
			return -1;
	}
	return 0;
}

static const char *find_area(const struct tide_qcow2_meta *m, uint64_t first, uint64_t n)
{
	size_t lo = 0, hi = m->n_areas;

	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;

		if (m->area[mid].first + m->area[mid].n <= first)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo < m->n_areas && m->area[lo].first < first + n ? m->area[lo].what : NULL;
}

/* The refcount table is not an area, because it can move, but it must not overlap with one either. */
static int check_reftable(const struct tide_qcow2 *q, struct tide_error *err)
{
	const char *other =
	        find_area(&q->meta, q->reftable_offset >> q->cluster_bits, q->reftable_entries * 8 >> q->cluster_bits);

	if (!other)
		return 0;
	tide_error_set(err, TIDE_E_CORRUPT, "The refcount table at %" PRIu64 " overlaps with the image's %s",
	               q->reftable_offset, other);
	return tide_qcow2_refcount_hint(err);
}

int tide_qcow2_meta_open(struct tide_qcow2 *q, struct tide_error *err)
{
	tide_qcow2_meta_release(q);
	if (add_area(q, 0, q->cluster_size, "header", err) < 0 ||
	    add_area(q, q->header.l1_offset, q->header.l1_entries * 8, "L1 table", err) < 0 ||
	    add_snapshots(q, err) < 0)
		return -1;
	if (sort_areas(q, err) < 0 || check_reftable(q, err) < 0 || add_tables(q, err) < 0)
		return -1;
	return add_bitmaps(q, err);
}

void tide_qcow2_meta_release(struct tide_qcow2 *q)
{
	free(q->meta.area);
	free(q->meta.tables.slot);
	free(q->meta.bitmaps.slot);
	q->meta = (struct tide_qcow2_meta){ 0 };
}

const char *tide_qcow2_meta_find(const struct tide_qcow2 *q, uint64_t first, uint64_t n)
{
	const struct tide_qcow2_meta *m = &q->meta;
	uint64_t table = q->reftable_offset >> q->cluster_bits;
	uint64_t table_n = q->reftable_entries * 8 >> q->cluster_bits;

	if (table < first + n && first < table + table_n)
		return "refcount table";
	if (set_has_any(&m->tables, first, n))
		return "L2 table or refcount block";
	if (set_has_any(&m->bitmaps, first, n))
		return "bitmaps";
	return find_area(m, first, n);
}
