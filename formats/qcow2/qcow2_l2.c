/*
 * L2 tables and their entries: decodes and checks an entry, loads tables into the cache, and gives
 * a table that is to be changed a cluster of its own. A table that another L1 table shares (an
 * internal snapshot's) is copied before its first change.
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

static int decode_compressed(const struct tide_qcow2 *q, uint64_t entry, uint64_t off, struct tide_qcow2_cluster *out,
                             struct tide_error *err)
{
	unsigned x = 62 - (q->cluster_bits - 8);
	uint64_t sectors = (entry & ~(UINT64_C(3) << 62)) >> x;

	*out = (struct tide_qcow2_cluster){ .kind = TIDE_QCOW2_COMPRESSED };
	if (q->has_data_file)
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "L2 entry for the cluster at %" PRIu64
		                      ": compressed, in an image with an external data file",
		                      off);
	out->host = entry & ((UINT64_C(1) << x) - 1);
	if (out->host >> TIDE_QCOW2_HOST_BITS)
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "L2 entry for the cluster at %" PRIu64 ": reserved bits are set: %#018" PRIx64,
		                      off, entry);
	if (out->host < q->cluster_size || out->host >= q->file_size)
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "L2 entry for the cluster at %" PRIu64 ": compressed data at %" PRIu64
		                      " does not lie within the file of %" PRIu64 " bytes",
		                      off, out->host, q->file_size);
	out->len = (sectors + 1) * 512 - (out->host & 511);
	return 0;
}

/* Checks that data in the external data file is at the disk's offset. */
static int check_in_data_file(const struct tide_qcow2 *q, uint64_t off, uint64_t host, struct tide_error *err)
{
	uint64_t start = off & ~(q->cluster_size - 1);

	if (host != start)
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "L2 entry for the cluster at %" PRIu64
		                      ": the offset in the external data file, %" PRIu64
		                      ", does not match: expected %" PRIu64,
		                      off, host, start);
	return 0;
}

/*
 * The bytes of the cluster at off that can be read: up to the end of the disk, and of subclusters up to the last
 * allocated one.
 */
static uint64_t visible_bytes(const struct tide_qcow2 *q, const struct tide_qcow2_cluster *c, uint64_t off)
{
	uint64_t visible = TIDE_MIN(q->cluster_size, q->size - (off & ~(q->cluster_size - 1)));
	unsigned last = 0;

	if (c->kind != TIDE_QCOW2_MIXED)
		return visible;
	while (last < TIDE_QCOW2_SUBCLUSTERS && c->alloc >> last)
		last++;
	return TIDE_MIN(visible, (uint64_t)last << (q->cluster_bits - TIDE_QCOW2_SUBCLUSTER_BITS));
}

/* All of these bytes must be in the file: a file that lacks them was cut, and must not read as zeroes. */
static int check_complete(const struct tide_qcow2 *q, const struct tide_qcow2_cluster *c, uint64_t off,
                          struct tide_error *err)
{
	uint64_t file_size = q->has_data_file ? q->data_size : q->file_size, bytes = visible_bytes(q, c, off);

	/* A rescue takes what is left: see qcow2_read.c. */
	if (tide_range_is_within(c->host, bytes, file_size) || (q->salvage && c->host < file_size))
		return 0;
	return tide_error_set(err, TIDE_E_CORRUPT,
	                      "L2 entry for the cluster at %" PRIu64 ": %" PRIu64 " bytes of data at %" PRIu64
	                      " end beyond the end of the %s at %" PRIu64 ", which was cut",
	                      off, bytes, c->host, q->has_data_file ? "external data file" : "file", file_size);
}

/* Checks the offset of a standard cluster; read: are bytes of it visible? */
static int check_host(const struct tide_qcow2 *q, const struct tide_qcow2_cluster *c, bool read, uint64_t off,
                      struct tide_error *err)
{
	if (c->host & (q->cluster_size - 1))
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "L2 entry for the cluster at %" PRIu64 ": the offset %" PRIu64
		                      " is not a multiple of the cluster size",
		                      off, c->host);
	if (q->has_data_file && !c->host && !c->copied)
		return 0;
	if (q->has_data_file && check_in_data_file(q, off, c->host, err) < 0)
		return -1;
	if (q->has_data_file)
		return read && q->data_fd >= 0 ? check_complete(q, c, off, err) : 0;
	if (c->host == 0 && c->copied)
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "L2 entry for the cluster at %" PRIu64 ": data at offset 0, the header's", off);
	if (c->host >= q->file_size && read)
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "L2 entry for the cluster at %" PRIu64 ": the offset %" PRIu64
		                      " lies beyond the end of the file at %" PRIu64,
		                      off, c->host, q->file_size);
	return read ? check_complete(q, c, off, err) : 0;
}

/* Decodes the subclusters; has_host: does the entry have a cluster for the allocated ones? */
static int decode_subclusters(struct tide_qcow2_cluster *out, uint64_t bitmap, bool has_host, uint64_t off,
                              struct tide_error *err)
{
	out->alloc = (uint32_t)bitmap;
	out->zero = (uint32_t)(bitmap >> 32);
	if (out->alloc & out->zero)
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "L2 entry for the cluster at %" PRIu64
		                      ": subclusters are both allocated and zero: %#018" PRIx64,
		                      off, bitmap);
	if (out->alloc && !has_host)
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "L2 entry for the cluster at %" PRIu64
		                      ": subclusters are allocated, but no cluster is: %#018" PRIx64,
		                      off, bitmap);
	if (bitmap == 0)
		out->kind = TIDE_QCOW2_HOLE;
	else if (bitmap == TIDE_QCOW2_BITMAP_ALLOC)
		out->kind = TIDE_QCOW2_DATA;
	else
		out->kind = bitmap == TIDE_QCOW2_BITMAP_ZERO ? TIDE_QCOW2_ZEROES : TIDE_QCOW2_MIXED;
	return 0;
}

/* The bits that the entry of a standard cluster may have. */
static uint64_t known_bits(const struct tide_qcow2 *q)
{
	return TIDE_QCOW2_ENTRY_COPIED | TIDE_QCOW2_ENTRY_OFFSET | (q->extended ? 0 : TIDE_QCOW2_ENTRY_ZERO);
}

/* Decodes standard clusters, zero or not. */
static int decode_standard(const struct tide_qcow2 *q, struct tide_qcow2_entry entry, uint64_t off,
                           struct tide_qcow2_cluster *out, struct tide_error *err)
{
	bool zero = entry.word & TIDE_QCOW2_ENTRY_ZERO, has_host;

	out->host = entry.word & TIDE_QCOW2_ENTRY_OFFSET;
	out->copied = entry.word & TIDE_QCOW2_ENTRY_COPIED;
	has_host = out->host || (q->has_data_file && out->copied);
	if (entry.word & ~known_bits(q))
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "L2 entry for the cluster at %" PRIu64 ": reserved bits are set: %#018" PRIx64,
		                      off, entry.word);
	if (zero && q->header.version < 3)
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "L2 entry for the cluster at %" PRIu64 ": zero flag in a version 2 image", off);
	if (q->extended) {
		if (decode_subclusters(out, entry.bitmap, has_host, off, err) < 0)
			return -1;
	} else {
		out->kind = zero ? TIDE_QCOW2_ZEROES : has_host ? TIDE_QCOW2_DATA : TIDE_QCOW2_HOLE;
	}
	return check_host(q, out, out->kind == TIDE_QCOW2_DATA || out->alloc, off, err);
}

int tide_qcow2_l2_decode(const struct tide_qcow2 *q, struct tide_qcow2_entry entry, uint64_t off,
                         struct tide_qcow2_cluster *out, struct tide_error *err)
{
	*out = (struct tide_qcow2_cluster){ .kind = TIDE_QCOW2_HOLE };
	if (q->salvage)
		entry.word &= entry.word & TIDE_QCOW2_ENTRY_COMPRESSED ? ~TIDE_QCOW2_ENTRY_COPIED : known_bits(q);
	if (!(entry.word & TIDE_QCOW2_ENTRY_COMPRESSED))
		return entry.word || entry.bitmap ? decode_standard(q, entry, off, out, err) : 0;
	if (entry.word & TIDE_QCOW2_ENTRY_COPIED)
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "L2 entry for the cluster at %" PRIu64
		                      ": compressed, but flagged as used once: %#018" PRIx64,
		                      off, entry.word);
	if (entry.bitmap)
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "L2 entry for the cluster at %" PRIu64
		                      ": compressed, but with subclusters: %#018" PRIx64,
		                      off, entry.bitmap);
	return decode_compressed(q, entry.word, off, out, err);
}

static size_t entry_at(const struct tide_qcow2 *q, uint64_t off)
{
	return (q->extended ? 16 : 8) * tide_qcow2_l2_index(q, off);
}

struct tide_qcow2_entry tide_qcow2_l2_get(const struct tide_qcow2 *q, const struct tide_qcow2_table *t, uint64_t off)
{
	const uint8_t *p = t->data + entry_at(q, off);

	return (struct tide_qcow2_entry){ tide_get_be64(p), q->extended ? tide_get_be64(p + 8) : 0 };
}

void tide_qcow2_l2_set(const struct tide_qcow2 *q, struct tide_qcow2_table *t, uint64_t off,
                       struct tide_qcow2_entry entry)
{
	uint8_t *p = t->data + entry_at(q, off);

	tide_put_be64(p, entry.word);
	if (q->extended)
		tide_put_be64(p + 8, entry.bitmap);
}

struct tide_qcow2_entry tide_qcow2_l2_data_entry(const struct tide_qcow2 *q, uint64_t host)
{
	return (struct tide_qcow2_entry){ host | TIDE_QCOW2_ENTRY_COPIED, q->extended ? TIDE_QCOW2_BITMAP_ALLOC : 0 };
}

struct tide_qcow2_entry tide_qcow2_l2_zero_entry(const struct tide_qcow2 *q, uint64_t word)
{
	if (q->extended)
		return (struct tide_qcow2_entry){ word, TIDE_QCOW2_BITMAP_ZERO };
	return (struct tide_qcow2_entry){ word | TIDE_QCOW2_ENTRY_ZERO, 0 };
}

static int check_l1_entry(const struct tide_qcow2 *q, uint64_t index, uint64_t entry, struct tide_error *err)
{
	uint64_t host = entry & TIDE_QCOW2_ENTRY_OFFSET;

	if ((entry & ~(TIDE_QCOW2_ENTRY_COPIED | TIDE_QCOW2_ENTRY_OFFSET)) && !q->salvage)
		return tide_error_set(err, TIDE_E_CORRUPT, "L1 entry %" PRIu64 ": reserved bits are set: %#018" PRIx64,
		                      index, entry);
	if (host & (q->cluster_size - 1))
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "L1 entry %" PRIu64 ": the offset %" PRIu64
		                      " is not a multiple of the cluster size",
		                      index, host);
	if (host == 0)
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "L1 entry %" PRIu64 ": an L2 table at offset 0, the header's", index);
	if (!tide_range_is_within(host, q->cluster_size, q->file_size))
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "L1 entry %" PRIu64 ": the L2 table at %" PRIu64
		                      " does not lie within the file of %" PRIu64 " bytes",
		                      index, host, q->file_size);
	return 0;
}

/* New images: allocates a cluster for the table if it has none. */
static int allocate_table(struct tide_qcow2 *q, struct tide_qcow2_table *t, struct tide_error *err)
{
	uint64_t first, got;

	if (t->host)
		return 0;
	if (tide_qcow2_build_alloc(q, 1, &first, &got, err) < 0)
		return -1;
	t->host = first << q->cluster_bits;
	tide_qcow2_l1_set(q, t->index, t->host);
	return 0;
}

/* New images: writes the least recently used table, so that it may be dropped from the cache. */
static int make_room(struct tide_qcow2 *q, struct tide_error *err)
{
	struct tide_qcow2_table *t;

	tide_qcow2_cache_trim(&q->l2);
	if (!q->is_new || q->l2.n < q->l2.n_max)
		return 0;
	t = q->l2.dirty.oldest;
	if (allocate_table(q, t, err) < 0 || tide_sysio_pwrite(q->fd, t->data, q->cluster_size, t->host, err) < 0)
		return -1;
	tide_qcow2_cache_drop(&q->l2, t);
	return 0;
}

int tide_qcow2_l2_load(struct tide_qcow2 *q, uint64_t l1_index, struct tide_qcow2_table **out, struct tide_error *err)
{
	struct tide_qcow2_table *t = tide_qcow2_cache_find(&q->l2, l1_index);
	uint64_t entry;

	*out = t;
	if (t)
		return 0;
	if (tide_qcow2_l1_get(q, l1_index, &entry, err) < 0)
		return -1;
	if (entry == 0)
		return 0;
	if (check_l1_entry(q, l1_index, entry, err) < 0 || make_room(q, err) < 0)
		return -1;
	t = tide_qcow2_cache_add(&q->l2, l1_index, err);
	if (!t)
		return -1;
	t->host = entry & TIDE_QCOW2_ENTRY_OFFSET;
	if (tide_sysio_pread(q->fd, t->data, q->cluster_size, t->host, false, err) < 0) {
		tide_qcow2_cache_drop(&q->l2, t);
		return tide_error_wrap(err, "Could not read the L2 table of L1 entry %" PRIu64, l1_index);
	}
	if (tide_qcow2_sums_prove(q, t->data, t->host, q->cluster_size, err) < 0) {
		tide_qcow2_cache_drop(&q->l2, t);
		return -1;
	}
	*out = t;
	return 0;
}

static int add_new_table(struct tide_qcow2 *q, uint64_t l1_index, struct tide_qcow2_table **out, struct tide_error *err)
{
	if (make_room(q, err) < 0)
		return -1;
	*out = tide_qcow2_cache_add(&q->l2, l1_index, err);
	if (!*out)
		return -1;
	(*out)->unreferenced = true;
	tide_qcow2_cache_set_dirty(&q->l2, *out, true);
	return 0;
}

/* In place: gives the table a cluster of its own, to which nothing on the disk points. */
static int move_table(struct tide_qcow2 *q, struct tide_qcow2_table *t, struct tide_error *err)
{
	uint64_t first, got;

	if (tide_qcow2_alloc_clusters(q, 1, &first, &got, err) < 0)
		return -1;
	/* This comes after the allocation, which may defer a cluster, too. */
	if (tide_qcow2_alloc_reserve(q, 1, err) < 0 || tide_qcow2_meta_add(q, first, err) < 0) {
		tide_qcow2_alloc_undo(q, first, 1);
		return -1;
	}
	if (t->host) {
		tide_qcow2_meta_remove(q, t->host >> q->cluster_bits);
		tide_qcow2_alloc_drop(q, t->host >> q->cluster_bits, 1, false);
	}
	t->host = first << q->cluster_bits;
	t->unreferenced = true;
	tide_qcow2_cache_set_dirty(&q->l2, t, true);
	tide_qcow2_l1_set(q, t->index, t->host);
	return 0;
}

/* Is this table of an in-place image referenced only once? */
static int is_own_table(struct tide_qcow2 *q, const struct tide_qcow2_table *t, bool *own, struct tide_error *err)
{
	uint64_t count, entry;

	if (tide_qcow2_l1_get(q, t->index, &entry, err) < 0 ||
	    tide_qcow2_refcount_get(q, t->host >> q->cluster_bits, &count, err) < 0)
		return -1;
	if (count == 0) {
		tide_error_set(err, TIDE_E_CORRUPT,
		               "The L2 table at %" PRIu64 " has the reference count 0, expected at least 1", t->host);
		return tide_qcow2_refcount_hint(err);
	}
	*own = count == 1 && (entry & TIDE_QCOW2_ENTRY_COPIED);
	return 0;
}

int tide_qcow2_l2_load_for_write(struct tide_qcow2 *q, uint64_t l1_index, struct tide_qcow2_table **out,
                                 struct tide_error *err)
{
	struct tide_qcow2_table *t;
	bool own = true;

	if (tide_qcow2_l2_load(q, l1_index, &t, err) < 0)
		return -1;
	if (!t) {
		if (add_new_table(q, l1_index, &t, err) < 0)
			return -1;
		if (!q->is_new && move_table(q, t, err) < 0) {
			tide_qcow2_cache_drop(&q->l2, t);
			return -1;
		}
	} else if (!t->dirty) {
		if (!q->is_new && (is_own_table(q, t, &own, err) < 0 || (!own && move_table(q, t, err) < 0)))
			return -1;
		tide_qcow2_cache_set_dirty(&q->l2, t, true);
	}
	*out = t;
	return 0;
}

int tide_qcow2_l2_lookup(struct tide_qcow2 *q, uint64_t off, struct tide_qcow2_cluster *out, struct tide_error *err)
{
	struct tide_qcow2_table *t;
	struct tide_qcow2_entry entry = { 0 };

	if (tide_qcow2_l2_load(q, tide_qcow2_l1_index(q, off), &t, err) < 0)
		return -1;
	if (t)
		entry = tide_qcow2_l2_get(q, t, off);
	return tide_qcow2_l2_decode(q, entry, off, out, err);
}

int tide_qcow2_l2_write_all_new(struct tide_qcow2 *q, struct tide_error *err)
{
	TIDE_AUTOFREE struct tide_qcow2_table **dirty = tide_qcow2_cache_dirty(&q->l2, err);

	if (!dirty)
		return -1;
	for (size_t i = 0; i < q->l2.n_dirty; i++) {
		if (allocate_table(q, dirty[i], err) < 0)
			return -1;
	}
	return tide_qcow2_cache_write(&q->l2, q->fd, false, err);
}
