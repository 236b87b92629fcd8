/*
 * Keeps allocation in place away from clusters that the image uses although their reference counts are too
 * low: damage, or a program's mistake, can leave such counts, and a write to such a cluster would destroy
 * other data of the disk or of a snapshot.
 *
 * qcow2_meta.c knows where the metadata is, and refuses those clusters. Only L2 tables tell which clusters
 * hold data. So before the first allocation this file counts the references that all L2 tables contain,
 * those of snapshots too, and compares them with the reference counts:
 *
 *   counts suffice       free clusters within the file may be used
 *   a count is too low   allocation starts at the end of the file, and leaves what is before it alone
 *   data past the end    the file was cut; it must not grow, because the lost bytes would become zeroes,
 *                        or what is written there
 *
 * Reading all tables takes a time that follows the disk. If they exceed TABLES_BYTES_MAX, allocation starts at
 * the end of the file without a look at them, so a small write to a large image stays a small write. Then
 * only counts past the end of the file, as a cut leaves them, make the search necessary; and a device, whose
 * end does not move.
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

#define TABLES_BYTES_MAX (UINT64_C(16) << 20)
/* Two bytes for each cluster count its references. Larger files are not searched. */
#define CLUSTERS_MAX (UINT64_C(1) << 25)
#define TIMES_MAX    UINT16_MAX
/* Bytes of a table that are passed over together if they are all zero. */
#define SKIP 512u
/* The most bytes of snapshots' L1 tables. */
#define L1_BYTES_MAX (UINT64_C(64) << 20)

struct guard {
	struct tide_qcow2 *q;
	uint64_t *table; /* the offsets of all L2 tables, one for each L1 entry that refers to it */
	size_t n, cap;
	uint64_t clusters; /* of the file */
	uint16_t *times;   /* references to each cluster; NULL: they are not counted */
	uint8_t *buf;
	uint64_t l1_left; /* bytes of snapshots' L1 tables that may still be read */
	bool low;         /* a count is too low, or may be */
	uint64_t cut;     /* the first cluster past the end of the file that an entry leads to */
};

static void release(struct guard *g)
{
	free(g->table);
	free(g->times);
	free(g->buf);
}

static int add_table(struct guard *g, uint64_t entry, struct tide_error *err)
{
	uint64_t host = entry & TIDE_QCOW2_ENTRY_OFFSET;

	if (host == 0)
		return 0;
	if (g->n == g->cap) {
		size_t cap = g->cap ? g->cap * 2 : 64;
		uint64_t *table = tide_mem_realloc(g->table, cap, sizeof(*table), err);

		if (!table)
			return -1;
		g->table = table;
		g->cap = cap;
	}
	g->table[g->n++] = host;
	return 0;
}

static int add_active(struct guard *g, struct tide_error *err)
{
	uint64_t n = g->q->header.l1_entries, entry;

	for (uint64_t i = 0; i < n; i++) {
		if (tide_qcow2_l1_next(g->q, i, n, &i, err) < 0)
			return -1;
		if (i < n && (tide_qcow2_l1_get(g->q, i, &entry, err) < 0 || add_table(g, entry, err) < 0))
			return -1;
	}
	return 0;
}

/* The L1 tables of snapshots are the areas of that name; qcow2_meta.c has checked their places. */
static int add_snapshot(struct guard *g, const struct tide_qcow2_area *area, struct tide_error *err)
{
	uint64_t off = area->first << g->q->cluster_bits, left = area->bytes;
	uint8_t chunk[4096];

	while (left) {
		uint64_t n = TIDE_MIN(left, sizeof(chunk));

		if (tide_sysio_pread(g->q->fd, chunk, n, off, false, err) < 0)
			return tide_error_wrap(err, "Could not read a snapshot's L1 table");
		for (uint64_t i = 0; i + 8 <= n; i += 8) {
			if (add_table(g, tide_get_be64(chunk + i), err) < 0)
				return -1;
		}
		off += n;
		left -= n;
	}
	return 0;
}

static int add_tables(struct guard *g, struct tide_error *err)
{
	const struct tide_qcow2_meta *m = &g->q->meta;

	if (add_active(g, err) < 0)
		return -1;
	for (size_t i = 0; i < m->n_areas; i++) {
		const struct tide_qcow2_area *area = &m->area[i];

		if (!area->is_snapshot)
			continue;
		if (area->bytes > g->l1_left) {
			g->low = true; /* which clusters the snapshot uses stays unknown */
			continue;
		}
		g->l1_left -= area->bytes;
		if (add_snapshot(g, area, err) < 0)
			return -1;
	}
	return 0;
}

static void refer(struct guard *g, uint64_t cluster, uint64_t times)
{
	if (g->times && cluster < g->clusters)
		g->times[cluster] = (uint16_t)TIDE_MIN(g->times[cluster] + times, (uint64_t)TIMES_MAX);
}

/* A compressed cluster, or damage, which is reported when the cluster is read. */
static void see_compressed(struct guard *g, uint64_t host, uint64_t len, uint64_t times)
{
	unsigned bits = g->q->cluster_bits;

	if (host >> bits >= g->clusters)
		g->cut = TIDE_MIN(g->cut, host >> bits);
	for (uint64_t i = host >> bits; i <= (host + len - 1) >> bits; i++)
		refer(g, i, times);
}

/* An entry that is compressed, or leads past the end of the file, or does not lead to a cluster. */
static int see_special(struct guard *g, struct tide_qcow2_entry entry, uint64_t times, struct tide_error *err)
{
	struct tide_qcow2 *q = g->q;
	uint64_t host = entry.word & TIDE_QCOW2_ENTRY_OFFSET, count;
	unsigned x = 62 - (q->cluster_bits - 8);

	if (entry.word & TIDE_QCOW2_ENTRY_COMPRESSED) {
		host = entry.word & ((UINT64_C(1) << x) - 1);
		see_compressed(g, host, (((entry.word << 2 >> 2) >> x) + 1) * 512 - (host & 511), times);
		return 0;
	}
	if (host >> q->cluster_bits < g->clusters) {
		refer(g, host >> q->cluster_bits, times);
		return 0;
	}
	/* A cluster that is preallocated past the end must be counted, or it would be allocated again. */
	if (tide_qcow2_refcount_get(q, host >> q->cluster_bits, &count, err) < 0)
		return -1;
	if (count == 0 ||
	    (q->extended ? entry.bitmap & TIDE_QCOW2_BITMAP_ALLOC : !(entry.word & TIDE_QCOW2_ENTRY_ZERO)))
		g->cut = TIDE_MIN(g->cut, host >> q->cluster_bits);
	return 0;
}

static int see_table(struct guard *g, const uint8_t *table, uint64_t times, struct tide_error *err)
{
	struct tide_qcow2 *q = g->q;
	uint64_t step = q->extended ? 16 : 8, mask = q->cluster_size - 1, end = g->clusters;

	for (uint64_t at = 0; at < q->cluster_size; at += step) {
		if (at % SKIP == 0 && tide_sysio_is_zero(table + at, SKIP)) {
			at += SKIP - step;
			continue;
		}
		struct tide_qcow2_entry entry = { tide_get_be64(table + at), 0 };
		uint64_t host = entry.word & TIDE_QCOW2_ENTRY_OFFSET;

		if (q->extended)
			entry.bitmap = tide_get_be64(table + at + 8);
		if (!(entry.word & (TIDE_QCOW2_ENTRY_COMPRESSED | TIDE_QCOW2_ENTRY_OFFSET)))
			continue;
		if (!(entry.word & TIDE_QCOW2_ENTRY_COMPRESSED) && !(host & mask) && host >> q->cluster_bits < end)
			refer(g, host >> q->cluster_bits, times);
		else if (see_special(g, entry, times, err) < 0)
			return -1;
	}
	return 0;
}

/* The table at host as it is in memory, if it has changed there, else from the file; NULL: it cannot be read. */
static const uint8_t *read_table(struct guard *g, uint64_t host)
{
	for (const struct tide_qcow2_table *t = g->q->l2.dirty.newest; t; t = t->older) {
		if (t->host == host)
			return t->data;
	}
	if ((host & (g->q->cluster_size - 1)) || !tide_range_is_within(host, g->q->cluster_size, g->q->file_size) ||
	    tide_sysio_pread(g->q->fd, g->buf, g->q->cluster_size, host, true, NULL) < 0)
		return NULL;
	return g->buf;
}

static int compare_offset(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

/* Reads each table once; its references count as often as the table is referred to. */
static int see_tables(struct guard *g, struct tide_error *err)
{
	size_t times;

	for (size_t i = 0; i < g->n; i += times) {
		const uint8_t *table = read_table(g, g->table[i]);

		for (times = 1; i + times < g->n && g->table[i + times] == g->table[i];)
			times++;
		refer(g, g->table[i] >> g->q->cluster_bits, times);
		if (!table)
			g->low = true; /* which clusters it uses is unknown */
		else if (!g->q->has_data_file && see_table(g, table, times, err) < 0)
			return -1;
	}
	return 0;
}

/* References that the image on the disk still has: their clusters are released by the next flush. */
static void see_deferred(struct guard *g)
{
	for (size_t i = 0; i < g->q->deferred.n; i++) {
		const struct tide_qcow2_run *run = &g->q->deferred.run[i];

		for (uint64_t k = 0; k < run->n; k++)
			refer(g, run->first + k, 1);
	}
}

/* Do reference counts past the end of the file say that it was longer? */
static int has_counts_past_end(const struct guard *g, bool *yes, struct tide_error *err)
{
	struct tide_qcow2 *q = g->q;
	uint64_t part = UINT64_C(1) << q->block_bits, count = 0;

	*yes = false;
	for (uint64_t i = g->clusters; !*yes && (i >> q->block_bits) < q->reftable_entries;) {
		if (!q->reftable[i >> q->block_bits]) {
			i = ((i >> q->block_bits) + 1) << q->block_bits;
			continue;
		}
		for (uint64_t end = (i & ~(part - 1)) + part; !*yes && i < end; i++) {
			if (tide_qcow2_refcount_get(q, i, &count, err) < 0)
				return -1;
			*yes = count != 0;
		}
	}
	return 0;
}

static int search(struct guard *g, struct tide_error *err)
{
	struct tide_qcow2 *q = g->q;

	g->buf = tide_mem_aligned(4096, q->cluster_size, err);
	g->times = g->clusters <= CLUSTERS_MAX ? tide_mem_alloc(g->clusters, sizeof(*g->times), err) : NULL;
	if (!g->buf || (g->clusters <= CLUSTERS_MAX && !g->times))
		return -1;
	g->low = !g->times;
	if (g->n > 1)
		qsort(g->table, g->n, sizeof(*g->table), compare_offset);
	if (see_tables(g, err) < 0)
		return -1;
	see_deferred(g);
	return 0;
}

/* Are the tables worth reading? *only_cuts: no, but they must be, because the file was perhaps cut. */
static int decide(const struct guard *g, bool *yes, bool *only_cuts, struct tide_error *err)
{
	*yes = g->q->is_device || g->n <= TABLES_BYTES_MAX >> g->q->cluster_bits;
	*only_cuts = false;
	return *yes ? 0 : has_counts_past_end(g, only_cuts, err);
}

static struct guard start(struct tide_qcow2 *q)
{
	return (struct guard){
		.q = q,
		.clusters = tide_qcow2_clusters(q, q->file_size),
		.l1_left = L1_BYTES_MAX,
		.cut = UINT64_MAX,
	};
}

int tide_qcow2_guard_count(struct tide_qcow2 *q, uint16_t **times, uint64_t *n, struct tide_error *err)
{
	TIDE_CLEANUP(release) struct guard g = start(q);

	if (add_tables(&g, err) < 0 || search(&g, err) < 0)
		return -1;
	if (g.low || g.cut != UINT64_MAX)
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "The references to the file's %" PRIu64 " clusters cannot be counted",
		                      g.clusters);
	*times = g.times;
	*n = g.clusters;
	g.times = NULL;
	return 0;
}

int tide_qcow2_guard_open(struct tide_qcow2 *q, struct tide_error *err)
{
	TIDE_CLEANUP(release) struct guard g = start(q);
	bool yes, only_cuts;

	if (q->guarded)
		return 0;
	if (add_tables(&g, err) < 0 || decide(&g, &yes, &only_cuts, err) < 0)
		return -1;
	if ((yes || only_cuts) && search(&g, err) < 0)
		return -1;
	if (g.times && !g.low && tide_qcow2_refcount_find_low(q, g.times, g.clusters, &g.low, err) < 0)
		return -1;
	q->floor = g.low || !yes ? g.clusters : 0;
	q->cut = g.cut;
	q->cursor = TIDE_MAX(q->cursor, q->floor);
	q->guarded = true;
	return 0;
}
