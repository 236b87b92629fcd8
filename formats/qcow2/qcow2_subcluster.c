/*
 * Writes to subclusters of images with extended L2 entries, so that a small write takes the space of a
 * subcluster and not of a large cluster.
 *
 * Before the first write to a cluster, its entry gets a cluster of the file of its own, in which nothing is
 * allocated yet: the disk reads as before. Later writes to the same cluster, by other threads too, find it there, and
 * each of them allocates only its own subclusters when its data is in place. If the cluster of the file is
 * shared with a snapshot, or compressed, its allocated subclusters are copied first; all others stay zero, or
 * visible from the backing image, as they were.
 */
#include <string.h>

#include "base/error.h"
#include "base/mem.h"
#include "base/range.h"
#include "base/sysio.h"
#include "qcow2.h"

static unsigned shift_of(const struct tide_qcow2 *q)
{
	return q->cluster_bits - TIDE_QCOW2_SUBCLUSTER_BITS;
}

uint64_t tide_qcow2_subcluster_size(const struct tide_qcow2 *q)
{
	return q->extended ? UINT64_C(1) << shift_of(q) : q->cluster_size;
}

uint32_t tide_qcow2_subcluster_mask(const struct tide_qcow2 *q, uint64_t from, uint64_t to)
{
	unsigned first = (unsigned)(from >> shift_of(q)),
	         end = (unsigned)tide_range_div_up(to, UINT64_C(1) << shift_of(q));

	return (uint32_t)(((UINT64_C(1) << end) - 1) & ~((UINT64_C(1) << first) - 1));
}

struct tide_qcow2_entry tide_qcow2_subcluster_entry(uint64_t host, bool copied, uint32_t alloc, uint32_t zero)
{
	return (struct tide_qcow2_entry){ host | (copied ? TIDE_QCOW2_ENTRY_COPIED : 0), (uint64_t)zero << 32 | alloc };
}

/* The bytes from off on, within one cluster, each of whose subclusters is allocated or is written as a whole. */
static uint64_t writable(const struct tide_qcow2 *q, const struct tide_qcow2_cluster *c, uint64_t off, uint64_t len)
{
	uint64_t size = tide_qcow2_subcluster_size(q), pos = off;

	while (pos < off + len) {
		uint64_t start = tide_range_align_down(pos, size), end = TIDE_MIN(start + size, q->size);
		uint64_t stop = TIDE_MIN(end, off + len);
		bool is_allocated = c->kind == TIDE_QCOW2_COMPRESSED ||
		                    c->alloc & tide_qcow2_subcluster_mask(q, start & (q->cluster_size - 1),
		                                                          (start & (q->cluster_size - 1)) + size);

		if (!is_allocated && (pos != start || stop != end))
			break;
		pos = stop;
	}
	return pos - off;
}

static int copy_bytes(struct tide_qcow2 *q, uint64_t from, uint64_t to, uint64_t len, uint8_t *buf,
                      struct tide_error *err)
{
	if (tide_sysio_pread(q->fd, buf, len, from, true, err) < 0)
		return -1;
	return tide_sysio_pwrite(q->fd, buf, len, to, err);
}

/* Copies the content of a cluster of the disk to the cluster at host. */
static int copy_content(struct tide_qcow2 *q, const struct tide_qcow2_cluster *c, uint64_t host, struct tide_error *err)
{
	TIDE_AUTOFREE uint8_t *buf = NULL;
	uint64_t size = tide_qcow2_subcluster_size(q);

	if (c->kind != TIDE_QCOW2_COMPRESSED && c->alloc == 0)
		return 0;
	buf = tide_mem_aligned(4096, q->cluster_size, err);
	if (!buf)
		return -1;
	if (c->kind == TIDE_QCOW2_COMPRESSED)
		return tide_qcow2_compressed_get(q, c, buf, err) < 0
		               ? -1
		               : tide_sysio_pwrite(q->fd, buf, q->cluster_size, host, err);
	for (unsigned i = 0, end; i < TIDE_QCOW2_SUBCLUSTERS; i = end) {
		for (end = i + 1; end < TIDE_QCOW2_SUBCLUSTERS && (c->alloc >> end & 1) == (c->alloc >> i & 1);)
			end++;
		if ((c->alloc >> i & 1) &&
		    copy_bytes(q, c->host + i * size, host + i * size, (end - i) * size, buf, err) < 0)
			return -1;
	}
	return 0;
}

/* May the cluster of the file that the entry has be written? */
static int is_own(struct tide_qcow2 *q, const struct tide_qcow2_cluster *c, bool *yes, struct tide_error *err)
{
	*yes = c->kind != TIDE_QCOW2_COMPRESSED && c->copied && c->host &&
	       tide_range_is_within(c->host, q->cluster_size, q->file_size);
	return *yes ? tide_qcow2_alloc_is_exclusive(q, c->host, yes, err) : 0;
}

/* Gives the entry for the cluster of the disk at off a cluster of its own; the disk reads as before. */
static int give_cluster(struct tide_qcow2 *q, uint64_t off, const struct tide_qcow2_cluster *c, uint64_t *host,
                        struct tide_error *err)
{
	bool is_compressed = c->kind == TIDE_QCOW2_COMPRESSED;
	struct tide_qcow2_table *t;
	uint64_t first, got;

	if (tide_qcow2_alloc_check_drop(q, c, err) < 0 ||
	    tide_qcow2_l2_load_for_write(q, tide_qcow2_l1_index(q, off), &t, err) < 0 ||
	    tide_qcow2_alloc_clusters(q, 1, &first, &got, err) < 0)
		return -1;
	*host = first << q->cluster_bits;
	if (tide_qcow2_alloc_reserve(q, 1, err) < 0 || copy_content(q, c, *host, err) < 0) {
		tide_qcow2_alloc_undo(q, first, 1);
		return -1;
	}
	tide_qcow2_alloc_drop_cluster(q, c, false);
	tide_qcow2_l2_set(q, t, off,
	                  tide_qcow2_subcluster_entry(*host, true, is_compressed ? UINT32_MAX : c->alloc, c->zero));
	return 0;
}

/* Zeroes what the last subcluster has beyond the disk's end, which becomes visible if the disk grows. */
static int clear_tail(struct tide_qcow2 *q, const struct tide_qcow2_cluster *c, uint64_t end, uint64_t at,
                      struct tide_error *err)
{
	static const uint8_t zeroes[4096];
	uint64_t size = tide_qcow2_subcluster_size(q), left = tide_range_align_up(end, size) - end;
	uint64_t within = end & (q->cluster_size - 1);

	if (end != q->size || q->has_data_file || left == 0 ||
	    c->alloc & tide_qcow2_subcluster_mask(q, tide_range_align_down(within, size), within))
		return 0;
	while (left) {
		uint64_t n = TIDE_MIN(left, sizeof(zeroes));

		if (tide_sysio_pwrite(q->fd, zeroes, n, at, err) < 0)
			return -1;
		at += n;
		left -= n;
	}
	return 0;
}

int tide_qcow2_subcluster_begin(struct tide_qcow2 *q, uint64_t off, uint64_t len, struct tide_extent *out,
                                struct tide_error *err)
{
	uint64_t within = off & (q->cluster_size - 1), start = off - within, host = start;
	struct tide_qcow2_cluster c;
	bool own;

	if (tide_qcow2_l2_lookup(q, off, &c, err) < 0)
		return -1;
	len = writable(q, &c, off, TIDE_MIN(len, q->cluster_size - within));
	if (len == 0)
		return 1;
	if (!q->has_data_file) {
		host = c.host;
		if (is_own(q, &c, &own, err) < 0 || (!own && give_cluster(q, start, &c, &host, err) < 0))
			return -1;
	}
	if (clear_tail(q, &c, off + len, host + within + len, err) < 0)
		return -1;
	out->len = len;
	out->map_off = host + within;
	return 0;
}

int tide_qcow2_subcluster_zero(struct tide_qcow2 *q, uint64_t off, uint64_t len, struct tide_error *err)
{
	uint64_t within = off & (q->cluster_size - 1);
	uint32_t mask = tide_qcow2_subcluster_mask(q, within, within + len);
	struct tide_qcow2_table *t;
	struct tide_qcow2_cluster c;

	if (tide_qcow2_flush_prepare(q, err) < 0 || tide_qcow2_l2_lookup(q, off, &c, err) < 0)
		return -1;
	if (c.kind == TIDE_QCOW2_COMPRESSED)
		return 1;
	if (q->data_is_raw) /* the bytes are zeroes: see qcow2_data.c */
		mask &= ~c.alloc;
	if ((c.zero & mask) == mask)
		return 0;
	if (tide_qcow2_l2_load_for_write(q, tide_qcow2_l1_index(q, off), &t, err) < 0)
		return -1;
	/* The cluster of the file stays, because another thread may be about to write to other parts of it. */
	tide_qcow2_l2_set(q, t, off, tide_qcow2_subcluster_entry(c.host, c.copied, c.alloc & ~mask, c.zero | mask));
	return 0;
}
