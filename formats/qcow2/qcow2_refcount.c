/*
 * Reference counts of an image that is changed in place: loads refcount blocks, finds and counts
 * free clusters, and adds blocks, or a larger refcount table, when the file grows. A count that is
 * too high is a leak; a count that is too low would destroy data, so counts rise before and fall
 * after the references they are for.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "base/range.h"
#include "base/sysio.h"
#include "qcow2.h"

/* A run of free clusters smaller than this is skipped when more is wanted. */
#define RUN_BYTES_MIN (UINT64_C(1) << 20)

static uint64_t reftable_entries_max(void)
{
	return TIDE_QCOW2_REFTABLE_BYTES_MAX / 8;
}

uint64_t tide_qcow2_refcount_entry(unsigned order, const uint8_t *block, uint64_t index)
{
	unsigned per_byte_bits = 3 - order;

	switch (order) {
	case 3:
		return block[index];
	case 4:
		return tide_get_be16(block + 2 * index);
	case 5:
		return tide_get_be32(block + 4 * index);
	case 6:
		return tide_get_be64(block + 8 * index);
	default:
		return block[index >> per_byte_bits] >> ((index & ((1u << per_byte_bits) - 1)) << order) &
		       ((1u << (1u << order)) - 1);
	}
}

void tide_qcow2_refcount_set_entry(unsigned order, uint8_t *block, uint64_t index, uint64_t count)
{
	unsigned per_byte_bits = 3 - order;

	switch (order) {
	case 3:
		block[index] = (uint8_t)count;
		return;
	case 4:
		tide_put_be16(block + 2 * index, (uint16_t)count);
		return;
	case 5:
		tide_put_be32(block + 4 * index, (uint32_t)count);
		return;
	case 6:
		tide_put_be64(block + 8 * index, count);
		return;
	default: {
		unsigned shift = (unsigned)(index & ((1u << per_byte_bits) - 1)) << order;
		unsigned mask = ((1u << (1u << order)) - 1) << shift;
		uint8_t *byte = &block[index >> per_byte_bits];

		*byte = (uint8_t)((*byte & ~mask) | ((unsigned)count << shift));
	}
	}
}

int tide_qcow2_refcount_hint(struct tide_error *err)
{
	return tide_error_hint(err, "the image can still be read; to repair it: qemu-img check -r all IMAGE");
}

int tide_qcow2_refcount_check_table(const struct tide_qcow2 *q, struct tide_error *err)
{
	uint64_t bytes = q->header.reftable_clusters << q->cluster_bits;

	if (tide_range_is_within(q->header.reftable_offset, bytes, q->file_size))
		return 0;
	tide_error_set(err, TIDE_E_CORRUPT,
	               "Reference count table offset invalid: %" PRIu64 " bytes at %" PRIu64
	               " do not lie within the file of %" PRIu64 " bytes",
	               bytes, q->header.reftable_offset, q->file_size);
	return tide_qcow2_refcount_hint(err);
}

int tide_qcow2_refcount_open(struct tide_qcow2 *q, struct tide_error *err)
{
	uint64_t n = q->header.reftable_clusters << q->cluster_bits >> 3;

	q->reftable_offset = q->header.reftable_offset;
	q->reftable = tide_mem_alloc(n, sizeof(*q->reftable), err);
	if (!q->reftable || tide_qcow2_cache_init(&q->blocks, n, q->cluster_size, err) < 0)
		return -1;
	q->reftable_entries = n;
	if (q->late && tide_qcow2_refcount_check_table(q, NULL) < 0)
		return 0;
	if (tide_sysio_pread(q->fd, q->reftable, n * 8, q->reftable_offset, false, err) < 0)
		return tide_error_wrap(err, "Could not read the refcount table");
	for (uint64_t i = 0; i < n; i++)
		q->reftable[i] = tide_get_be64(&q->reftable[i]);
	return 0;
}

static bool has_block(const struct tide_qcow2 *q, uint64_t index)
{
	return index < q->reftable_entries && q->reftable[index] != 0;
}

static uint64_t index_in_block(const struct tide_qcow2 *q, uint64_t cluster)
{
	return cluster & ((UINT64_C(1) << q->block_bits) - 1);
}

static int check_block(const struct tide_qcow2 *q, uint64_t index, struct tide_error *err)
{
	uint64_t off = q->reftable[index];

	if (off & (q->cluster_size - 1))
		tide_error_set(err, TIDE_E_CORRUPT,
		               "Refcount table entry %" PRIu64 ": the offset %" PRIu64
		               " is not a multiple of the cluster size",
		               index, off);
	else if (!tide_range_is_within(off, q->cluster_size, q->file_size))
		tide_error_set(err, TIDE_E_CORRUPT,
		               "Refcount table entry %" PRIu64 ": the refcount block at %" PRIu64
		               " does not lie within the file of %" PRIu64 " bytes",
		               index, off, q->file_size);
	else
		return 0;
	return tide_qcow2_refcount_hint(err);
}

int tide_qcow2_refcount_check_header(const struct tide_qcow2 *q, struct tide_error *err)
{
	uint8_t first[8] = { 0 };

	if (q->reftable[0] && (check_block(q, 0, err) < 0 ||
	                       tide_sysio_pread(q->fd, first, sizeof(first), q->reftable[0], false, err) < 0))
		return -1;
	if (tide_qcow2_refcount_entry(q->header.refcount_order, first, 0) != 0)
		return 0;
	tide_error_set(err, TIDE_E_CORRUPT,
	               "The header has the reference count 0, expected 1: the image's reference counts are lost");
	return tide_qcow2_refcount_hint(err);
}

/* Loads block `index`, which exists. */
static int load_block(struct tide_qcow2 *q, uint64_t index, struct tide_qcow2_table **out, struct tide_error *err)
{
	struct tide_qcow2_table *t = tide_qcow2_cache_find(&q->blocks, index);

	*out = t;
	if (t)
		return 0;
	if (check_block(q, index, err) < 0)
		return -1;
	t = tide_qcow2_cache_add(&q->blocks, index, err);
	if (!t)
		return -1;
	t->host = q->reftable[index];
	if (tide_sysio_pread(q->fd, t->data, q->cluster_size, t->host, false, err) < 0) {
		tide_qcow2_cache_drop(&q->blocks, t);
		return tide_error_wrap(err, "Could not read refcount block %" PRIu64, index);
	}
	*out = t;
	return 0;
}

int tide_qcow2_refcount_get(struct tide_qcow2 *q, uint64_t cluster, uint64_t *count, struct tide_error *err)
{
	struct tide_qcow2_table *t;
	uint64_t index = cluster >> q->block_bits;

	*count = 0;
	if (!has_block(q, index))
		return 0;
	if (load_block(q, index, &t, err) < 0)
		return -1;
	*count = tide_qcow2_refcount_entry(q->header.refcount_order, t->data, index_in_block(q, cluster));
	return 0;
}

int tide_qcow2_refcount_decrease(struct tide_qcow2 *q, uint64_t cluster, bool *is_free, struct tide_error *err)
{
	struct tide_qcow2_table *t = NULL;
	uint64_t index = cluster >> q->block_bits, count = 0;

	*is_free = false;
	if (has_block(q, index)) {
		if (load_block(q, index, &t, err) < 0)
			return -1;
		count = tide_qcow2_refcount_entry(q->header.refcount_order, t->data, index_in_block(q, cluster));
	}
	if (count == 0)
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "The cluster at %" PRIu64
		                      " was in use with the reference count 0, expected at least 1",
		                      cluster << q->cluster_bits);
	tide_qcow2_refcount_set_entry(q->header.refcount_order, t->data, index_in_block(q, cluster), count - 1);
	tide_qcow2_cache_set_dirty(&q->blocks, t, true);
	*is_free = count == 1;
	if (*is_free) {
		q->cursor = TIDE_MIN(q->cursor, TIDE_MAX(cluster, q->floor));
		if (q->pack_at >> q->cluster_bits == cluster)
			q->pack_at = 0;
	}
	return 0;
}

int tide_qcow2_refcount_find_low(struct tide_qcow2 *q, const uint16_t *times, uint64_t n, bool *low,
                                 struct tide_error *err)
{
	uint64_t per_block = UINT64_C(1) << q->block_bits;
	struct tide_qcow2_table *t;

	*low = false;
	for (uint64_t first = 0; first < n && !*low; first += per_block) {
		uint64_t part = TIDE_MIN(per_block, n - first);

		if (!has_block(q, first >> q->block_bits)) {
			*low = !tide_sysio_is_zero(times + first, part * sizeof(*times));
			continue;
		}
		if (load_block(q, first >> q->block_bits, &t, err) < 0)
			return -1;
		for (uint64_t i = 0; i < part && !*low; i++)
			*low = times[first + i] > 0 &&
			       tide_qcow2_refcount_entry(q->header.refcount_order, t->data, i) < times[first + i];
	}
	return 0;
}

/* Gives the clusters of one part of the file their counts. */
static int set_part(struct tide_qcow2 *q, uint64_t index, const uint16_t *times, uint64_t n, struct tide_error *err)
{
	struct tide_qcow2_table *t;

	if (load_block(q, index, &t, err) < 0)
		return -1;
	for (uint64_t i = 0; i < UINT64_C(1) << q->block_bits; i++) {
		uint64_t count = i < n ? times[i] : 0;

		if (count > tide_qcow2_refcount_max(q))
			return tide_error_set(err, TIDE_E_CORRUPT,
			                      "%" PRIu64 " references to one cluster, at most %" PRIu64
			                      " can be counted",
			                      count, tide_qcow2_refcount_max(q));
		if (tide_qcow2_refcount_entry(q->header.refcount_order, t->data, i) == count)
			continue;
		tide_qcow2_refcount_set_entry(q->header.refcount_order, t->data, i, count);
		tide_qcow2_cache_set_dirty(&q->blocks, t, true);
	}
	return 0;
}

int tide_qcow2_refcount_set_all(struct tide_qcow2 *q, const uint16_t *times, uint64_t n, struct tide_error *err)
{
	uint64_t per_block = UINT64_C(1) << q->block_bits, parts = tide_range_div_up(n, per_block);

	for (uint64_t i = q->reftable_entries; i < parts; i++) {
		if (!tide_sysio_is_zero(times + i * per_block, TIDE_MIN(per_block, n - i * per_block) * sizeof(*times)))
			return tide_error_set(err, TIDE_E_CORRUPT, "The refcount table ends before the file");
	}
	for (uint64_t i = 0; i < q->reftable_entries; i++) {
		uint64_t first = i * per_block, part = first < n ? TIDE_MIN(per_block, n - first) : 0;

		if (has_block(q, i)) {
			if (set_part(q, i, times + TIDE_MIN(first, n), part, err) < 0)
				return -1;
		} else if (part && !tide_sysio_is_zero(times + first, part * sizeof(*times))) {
			return tide_error_set(err, TIDE_E_CORRUPT,
			                      "The file has no refcount block for its part at %" PRIu64,
			                      first << q->cluster_bits);
		}
	}
	return tide_qcow2_cache_write(&q->blocks, q->fd, false, err);
}

uint64_t tide_qcow2_refcount_max(const struct tide_qcow2 *q)
{
	return UINT64_MAX >> (64 - (1u << q->header.refcount_order));
}

int tide_qcow2_refcount_increase(struct tide_qcow2 *q, uint64_t cluster, struct tide_error *err)
{
	struct tide_qcow2_table *t;
	uint64_t count;

	if (tide_qcow2_refcount_get(q, cluster, &count, err) < 0)
		return -1;
	if (count == 0 || count >= tide_qcow2_refcount_max(q))
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "The cluster at %" PRIu64 " has the reference count %" PRIu64
		                      ", expected 1 to %" PRIu64,
		                      cluster << q->cluster_bits, count, tide_qcow2_refcount_max(q) - 1);
	if (load_block(q, cluster >> q->block_bits, &t, err) < 0)
		return -1;
	tide_qcow2_refcount_set_entry(q->header.refcount_order, t->data, index_in_block(q, cluster), count + 1);
	tide_qcow2_cache_set_dirty(&q->blocks, t, true);
	return 0;
}

/* Checks that these clusters may be allocated, and extends the file to include them. */
static int claim(struct tide_qcow2 *q, uint64_t first, uint64_t n, struct tide_error *err)
{
	const char *what = tide_qcow2_meta_find(q, first, n);
	uint64_t end = (first + n) << q->cluster_bits;

	if (what)
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "The clusters at %" PRIu64 " are counted as free, but hold the image's %s",
		                      first << q->cluster_bits, what);
	if (first + n > UINT64_C(1) << (TIDE_QCOW2_HOST_BITS - q->cluster_bits))
		return tide_error_set(err, TIDE_E_REFUSED,
		                      "The image file would exceed the format's limit of 2^%u bytes",
		                      TIDE_QCOW2_HOST_BITS);
	if (first + n > q->cut) {
		tide_error_set(err, TIDE_E_CORRUPT,
		               "The image refers to %" PRIu64 ", which is past the end of its file at %" PRIu64
		               ": the file was cut",
		               q->cut << q->cluster_bits, q->file_size);
		return tide_error_hint(err, "restore the image from a copy: a write would extend the file, and the "
		                            "lost bytes would become zeroes");
	}
	if (end > q->file_size) {
		if (q->is_device)
			return tide_error_set_sys(err, ENOSPC, "The device of %" PRIu64 " bytes is full", q->file_size);
		q->file_size = end;
	}
	return 0;
}

static void set_reftable(struct tide_qcow2 *q, uint64_t index, uint64_t off)
{
	if (q->reftable_dirty_from == q->reftable_dirty_to) {
		q->reftable_dirty_from = index;
		q->reftable_dirty_to = index + 1;
	} else {
		q->reftable_dirty_from = TIDE_MIN(q->reftable_dirty_from, index);
		q->reftable_dirty_to = TIDE_MAX(q->reftable_dirty_to, index + 1);
	}
	q->reftable[index] = off;
}

/* Adds a block for `index` in `cluster`, with the clusters [used, used + n_used) of its part counted as used. */
static int add_block(struct tide_qcow2 *q, uint64_t index, uint64_t cluster, uint64_t used, uint64_t n_used,
                     struct tide_error *err)
{
	struct tide_qcow2_table *t;

	if (tide_qcow2_meta_add(q, cluster, err) < 0)
		return -1;
	t = tide_qcow2_cache_add(&q->blocks, index, err);
	if (!t) {
		tide_qcow2_meta_remove(q, cluster);
		return -1;
	}
	t->host = cluster << q->cluster_bits;
	for (uint64_t i = 0; i < n_used; i++)
		tide_qcow2_refcount_set_entry(q->header.refcount_order, t->data, used + i, 1);
	tide_qcow2_cache_set_dirty(&q->blocks, t, true);
	set_reftable(q, index, t->host);
	return 0;
}

/*
 * Makes a larger refcount table, and the blocks that count it, in one run after everything that is counted:
 * first the blocks, then the table. The flush updates the header.
 */
static int grow_reftable(struct tide_qcow2 *q, uint64_t need, struct tide_error *err)
{
	uint64_t per_block = UINT64_C(1) << q->block_bits, per_cluster = q->cluster_size / 8;
	uint64_t base = q->reftable_entries, blocks = 1, clusters = 1, entries, *table;

	while (base > 0 && q->reftable[base - 1] == 0)
		base--;
	base = TIDE_MAX(base, tide_range_div_up(q->floor, per_block));
	need = TIDE_MIN(need + need / 2, reftable_entries_max());
	for (;;) {
		clusters = tide_range_div_up(TIDE_MAX(need, base + blocks), per_cluster);
		if (blocks * per_block >= blocks + clusters)
			break;
		blocks++;
	}
	entries = clusters * per_cluster;
	if (entries > reftable_entries_max())
		return tide_error_set(err, TIDE_E_REFUSED,
		                      "The refcount table would exceed its limit of %" PRIu64
		                      " bytes: the image file cannot grow further",
		                      TIDE_QCOW2_REFTABLE_BYTES_MAX);
	if (tide_qcow2_alloc_reserve(q, 1, err) < 0 || tide_qcow2_cache_grow(&q->blocks, entries, err) < 0)
		return -1;
	table = tide_mem_realloc(q->reftable, entries, sizeof(*table), err);
	if (!table)
		return -1;
	q->reftable = table;
	memset(table + q->reftable_entries, 0, (entries - q->reftable_entries) * sizeof(*table));
	if (claim(q, base << q->block_bits, blocks + clusters, err) < 0)
		return -1;
	uint64_t old_entries = q->reftable_entries;
	q->reftable_entries = entries;
	for (uint64_t i = 0; i < blocks; i++) {
		uint64_t n = TIDE_MIN(blocks + clusters - i * per_block, per_block);

		if (add_block(q, base + i, (base << q->block_bits) + i, 0, n, err) < 0) {
			q->failed = true; /* the table in memory has entries that the file's has no room for */
			return -1;
		}
	}
	tide_qcow2_alloc_drop(q, q->reftable_offset >> q->cluster_bits, old_entries / per_cluster, false);
	q->reftable_offset = ((base << q->block_bits) + blocks) << q->cluster_bits;
	q->reftable_moved = true;
	return 0;
}

/* Makes a block for the cluster's part of the file, stored in that cluster. */
static int make_block(struct tide_qcow2 *q, uint64_t cluster, struct tide_error *err)
{
	uint64_t index = cluster >> q->block_bits;

	if (index >= q->reftable_entries)
		return grow_reftable(q, index + 1, err);
	if (claim(q, cluster, 1, err) < 0)
		return -1;
	return add_block(q, index, cluster, index_in_block(q, cluster), 1, err);
}

/*
 * Counts the clusters from `cluster` on, up to max and to the end of the part with blocks, that are free (or in
 * use).
 */
static int count_run(struct tide_qcow2 *q, uint64_t cluster, uint64_t max, bool in_use, uint64_t *n,
                     struct tide_error *err)
{
	uint64_t per_block = UINT64_C(1) << q->block_bits;
	struct tide_qcow2_table *t;

	*n = 0;
	while (*n < max && has_block(q, (cluster + *n) >> q->block_bits)) {
		uint64_t i = index_in_block(q, cluster + *n);

		if (load_block(q, (cluster + *n) >> q->block_bits, &t, err) < 0)
			return -1;
		for (; i < per_block && *n < max; i++, (*n)++) {
			if ((tide_qcow2_refcount_entry(q->header.refcount_order, t->data, i) != 0) != in_use)
				return 0;
		}
	}
	return 0;
}

static int mark_used(struct tide_qcow2 *q, uint64_t first, uint64_t n, struct tide_error *err)
{
	struct tide_qcow2_table *t;

	for (uint64_t i = 0; i < n; i++) {
		/* The block is in the cache, unless the run is longer than the cache; then a failure here is a leak. */
		if (load_block(q, (first + i) >> q->block_bits, &t, err) < 0)
			return -1;
		tide_qcow2_refcount_set_entry(q->header.refcount_order, t->data, index_in_block(q, first + i), 1);
		tide_qcow2_cache_set_dirty(&q->blocks, t, true);
	}
	return 0;
}

int tide_qcow2_refcount_alloc(struct tide_qcow2 *q, uint64_t want, uint64_t *first, uint64_t *got,
                              struct tide_error *err)
{
	uint64_t least = TIDE_MIN(want, TIDE_MAX(RUN_BYTES_MIN >> q->cluster_bits, 1));
	uint64_t at, n;

	if (tide_qcow2_guard_open(q, err) < 0)
		return -1;
	at = q->cursor;
	for (;;) {
		if (!has_block(q, at >> q->block_bits)) {
			if (make_block(q, at, err) < 0)
				return -1;
			continue;
		}
		if (count_run(q, at, UINT64_MAX, true, &n, err) < 0)
			return -1;
		at += n;
		if (n > 0)
			continue;
		if (count_run(q, at, want, false, &n, err) < 0)
			return -1;
		if (n >= least || !has_block(q, (at + n) >> q->block_bits))
			break;
		at += n;
	}
	if (claim(q, at, n, err) < 0 || mark_used(q, at, n, err) < 0)
		return -1;
	q->cursor = at + n;
	*first = at;
	*got = n;
	return 0;
}

/*
 * Finds a row of free clusters in the part with refcount blocks: 1; or 0, with *end the first cluster without a
 * block.  The next search begins after the row if no free cluster lies before it, so that many searches take a time
 * that is proportional to their number.
 */
static int find_row(struct tide_qcow2 *q, uint64_t want, uint64_t *first, uint64_t *end, struct tide_error *err)
{
	bool skipped = false;
	uint64_t n;

	for (uint64_t index = q->cursor >> q->block_bits; index < q->reftable_entries; index++) {
		uint64_t at = TIDE_MAX(index << q->block_bits, q->cursor);

		while (has_block(q, at >> q->block_bits)) {
			if (count_run(q, at, UINT64_MAX, true, &n, err) < 0)
				return -1;
			at += n;
			if (count_run(q, at, want, false, &n, err) < 0)
				return -1;
			if (n == want) {
				*first = at;
				if (!skipped)
					q->cursor = at + n;
				return 1;
			}
			skipped |= n > 0;
			at += n;
		}
		index = TIDE_MAX(index, at >> q->block_bits);
	}
	*end = 0;
	for (uint64_t i = q->reftable_entries; i-- > 0 && !*end;)
		*end = q->reftable[i] ? (i + 1) << q->block_bits : 0;
	*end = TIDE_MAX(*end, tide_range_align_up(q->floor, UINT64_C(1) << q->block_bits));
	return 0;
}

/* Makes a row after everything that is counted: first the blocks that the row needs, then the row. */
static int make_row(struct tide_qcow2 *q, uint64_t base, uint64_t n, uint64_t *first, struct tide_error *err)
{
	uint64_t per_block = UINT64_C(1) << q->block_bits;
	uint64_t blocks = tide_range_div_up(n, per_block - 1), index = base >> q->block_bits;

	if (index + blocks > q->reftable_entries)
		return grow_reftable(q, index + blocks, err);
	if (claim(q, base, blocks + n, err) < 0)
		return -1;
	for (uint64_t i = 0; i < blocks; i++) {
		/* A failure midway leaves blocks that count too much, a leak; the disk is intact. */
		if (add_block(q, index + i, base + i, 0, TIDE_MIN(blocks + n - i * per_block, per_block), err) < 0)
			return -1;
	}
	*first = base + blocks;
	return 1;
}

int tide_qcow2_refcount_alloc_row(struct tide_qcow2 *q, uint64_t n, uint64_t *first, struct tide_error *err)
{
	uint64_t end;
	int rc;

	if (tide_qcow2_guard_open(q, err) < 0)
		return -1;
	do {
		rc = find_row(q, n, first, &end, err);
		if (rc < 0)
			return -1;
		if (rc > 0)
			return claim(q, *first, n, err) < 0 ? -1 : mark_used(q, *first, n, err);
		/* A larger refcount table has moved the end: try again. */
		rc = make_row(q, end, n, first, err);
	} while (rc == 0);
	return rc < 0 ? -1 : 0;
}
