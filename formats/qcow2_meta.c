#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "error.h"
#include "mem.h"
#include "qcow2.h"
#include "range.h"
#include "sysio.h"

/* ---- the hash set: open addressing, linear probing, at most half full ---- */

static size_t home(const struct tide_qcow2_meta *m, uint64_t key)
{
	return (size_t)((key * UINT64_C(0x9e3779b97f4a7c15)) >> 20) & (m->set_cap - 1);
}

/* Where the key stands, or the free place where it would. */
static size_t find_slot(const struct tide_qcow2_meta *m, uint64_t key)
{
	size_t i = home(m, key);

	while (m->set[i] && m->set[i] != key)
		i = (i + 1) & (m->set_cap - 1);
	return i;
}

static int grow_set(struct tide_qcow2_meta *m, struct tide_error *err)
{
	struct tide_qcow2_meta grown = {.set_cap = m->set_cap ? m->set_cap * 2 : 256};

	grown.set = tide_mem_alloc(grown.set_cap, sizeof(*grown.set), err);
	if (!grown.set)
		return -1;
	for (size_t i = 0; i < m->set_cap; i++) {
		if (m->set[i])
			grown.set[find_slot(&grown, m->set[i])] = m->set[i];
	}
	free(m->set);
	m->set = grown.set;
	m->set_cap = grown.set_cap;
	return 0;
}

int tide_qcow2_meta_add(struct tide_qcow2 *q, uint64_t cluster, struct tide_error *err)
{
	struct tide_qcow2_meta *m = &q->meta;
	size_t i;

	if (m->set_n >= m->set_cap / 2 && grow_set(m, err) < 0)
		return -1;
	i = find_slot(m, cluster + 1);
	m->set_n += m->set[i] == 0;
	m->set[i] = cluster + 1;
	return 0;
}

void tide_qcow2_meta_remove(struct tide_qcow2 *q, uint64_t cluster)
{
	struct tide_qcow2_meta *m = &q->meta;
	size_t mask = m->set_cap - 1, hole, i;

	if (m->set_cap == 0)
		return;
	hole = find_slot(m, cluster + 1);
	if (!m->set[hole])
		return;
	m->set_n--;
	/* Those that follow move up when the hole lies between their home and them. */
	for (i = (hole + 1) & mask; m->set[i]; i = (i + 1) & mask) {
		if (((i - home(m, m->set[i])) & mask) >= ((i - hole) & mask)) {
			m->set[hole] = m->set[i];
			hole = i;
		}
	}
	m->set[hole] = 0;
}

/* ---- areas ---- */

static int add_area(struct tide_qcow2 *q, uint64_t off, uint64_t bytes, const char *what, struct tide_error *err)
{
	struct tide_qcow2_meta *m = &q->meta;
	uint64_t n = tide_qcow2_clusters(q, bytes);

	if (n == 0)
		return 0;
	if (!tide_range_is_within(off, bytes, q->file_size) || (off & (q->cluster_size - 1)))
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "The %s, %" PRIu64 " bytes at %" PRIu64
		                      ", does not lie on clusters within the file of %" PRIu64 " bytes",
		                      what, bytes, off, q->file_size);
	if (m->n_areas == m->cap_areas) {
		size_t cap = m->cap_areas ? m->cap_areas * 2 : 32;
		struct tide_qcow2_area *area = tide_mem_realloc(m->area, cap, sizeof(*area), err);

		if (!area)
			return -1;
		m->area = area;
		m->cap_areas = cap;
	}
	m->area[m->n_areas++] = (struct tide_qcow2_area){off >> q->cluster_bits, n, what};
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

	qsort(m->area, m->n_areas, sizeof(*m->area), compare_area);
	for (size_t i = 1; i < m->n_areas; i++) {
		if (m->area[i - 1].first + m->area[i - 1].n > m->area[i].first)
			return tide_error_set(err, TIDE_E_CORRUPT, "The image's %s and its %s overlap at %" PRIu64,
			                      m->area[i - 1].what, m->area[i].what,
			                      m->area[i].first << q->cluster_bits);
	}
	return 0;
}

/* The L1 tables of the internal snapshots, and the table that lists them. */
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
	}
	/* The padding of the last entry need not be there. */
	return add_area(q, start, TIDE_MIN(off, q->file_size) - start, "snapshot table", err);
}

static int add_bitmaps(struct tide_qcow2 *q, struct tide_error *err)
{
	if (q->n_bitmaps == 0)
		return 0;
	for (size_t i = 0; i < q->n_bitmaps; i++) {
		if (add_area(q, q->bitmaps[i].table_offset, UINT64_C(8) * q->bitmaps[i].table_entries, "bitmap table",
		             err) < 0)
			return -1;
	}
	return add_area(q, q->header.bitmap_dir_offset, q->header.bitmap_dir_size, "bitmap directory", err);
}

static int add_table(struct tide_qcow2 *q, uint64_t off, const char *what, struct tide_error *err)
{
	const char *other = off == 0 ? "header" : tide_qcow2_meta_find(q, off >> q->cluster_bits, 1);

	if (other)
		return tide_error_set(err, TIDE_E_CORRUPT, "The %s at %" PRIu64 " overlaps with the image's %s", what,
		                      off, other);
	return tide_qcow2_meta_add(q, off >> q->cluster_bits, err);
}

static int add_tables(struct tide_qcow2 *q, struct tide_error *err)
{
	for (uint64_t i = 0; i < q->header.l1_entries; i++) {
		if (q->l1[i] && add_table(q, q->l1[i] & TIDE_QCOW2_ENTRY_OFFSET, "L2 table", err) < 0)
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

/* The refcount table can move, so it is no area; it must not overlap with one either. */
static int check_reftable(const struct tide_qcow2 *q, struct tide_error *err)
{
	const char *other =
	        find_area(&q->meta, q->reftable_offset >> q->cluster_bits, q->reftable_entries * 8 >> q->cluster_bits);

	if (other)
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "The refcount table at %" PRIu64 " overlaps with the image's %s",
		                      q->reftable_offset, other);
	return 0;
}

int tide_qcow2_meta_open(struct tide_qcow2 *q, struct tide_error *err)
{
	tide_qcow2_meta_release(q);
	if (add_area(q, 0, q->cluster_size, "header", err) < 0 ||
	    add_area(q, q->header.l1_offset, q->header.l1_entries * 8, "L1 table", err) < 0 ||
	    add_snapshots(q, err) < 0 || add_bitmaps(q, err) < 0)
		return -1;
	return sort_areas(q, err) < 0 || check_reftable(q, err) < 0 ? -1 : add_tables(q, err);
}

void tide_qcow2_meta_release(struct tide_qcow2 *q)
{
	free(q->meta.area);
	free(q->meta.set);
	q->meta = (struct tide_qcow2_meta){0};
}

const char *tide_qcow2_meta_find(const struct tide_qcow2 *q, uint64_t first, uint64_t n)
{
	const struct tide_qcow2_meta *m = &q->meta;
	uint64_t table = q->reftable_offset >> q->cluster_bits;
	uint64_t table_n = q->reftable_entries * 8 >> q->cluster_bits;

	if (table < first + n && first < table + table_n)
		return "refcount table";
	for (uint64_t i = 0; m->set_cap && i < n; i++) {
		if (m->set[find_slot(m, first + i + 1)])
			return "L2 table or refcount block";
	}
	return find_area(m, first, n);
}
