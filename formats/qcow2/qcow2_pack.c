/*
 * Writes compressed clusters.
 *
 * They are stored back to back in the file, at any byte. A cluster of the file counts one reference for
 * each compressed cluster that touches it. The next compressed cluster follows the last one (pack_at) if
 * that cluster's count can grow and, when it does not fit into the rest of the cluster, the next cluster of
 * the file is free. Otherwise it begins a new cluster.
 *
 * Deflate: the format's readers inflate a cluster with a window of 4 KiB, but in one call and into one
 * buffer, and zlib looks for repeated data in the buffer before it uses the window. So matches may reach as
 * far back as libdeflate's do.
 */
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/compress.h"
#include "base/error.h"
#include "base/mem.h"
#include "base/range.h"
#include "base/sysio.h"
#include "qcow2.h"
#include "qcow2_deflate.h"

/* zstd's level is QEMU's. */
#define ZSTD_LEVEL 3

/*
 * These levels give results no larger than zlib's default level, in a third of its time. In large clusters the
 * larger window makes up for less effort.
 */
static int deflate_level(uint64_t cluster_size)
{
	return cluster_size < 32768 ? 5 : 3;
}

/* ---- packing ----------------------------------------------------------------------- */

struct packer {
	size_t cluster_size;
	struct libdeflate_compressor *deflate; /* exactly one of the two is set */
	struct tide_compress *zstd;
};

static int check_supported(const struct tide_qcow2 *q, struct tide_error *err)
{
	if (q->has_data_file)
		return tide_error_set(err, TIDE_E_REFUSED,
		                      "An image with an external data file holds no compressed clusters");
	return 0;
}

static struct libdeflate_compressor *new_deflate(uint64_t cluster_size, struct tide_error *err)
{
	struct libdeflate_compressor *c;

	if (tide_qcow2_deflate_load(err) < 0)
		return NULL;
	c = tide_qcow2_deflate.alloc_compressor(deflate_level(cluster_size));
	if (!c)
		tide_error_set_nomem(err);
	return c;
}

int tide_qcow2_pack_new(void *state, void **out, struct tide_error *err)
{
	const struct tide_qcow2 *q = state;
	struct packer *p;

	if (check_supported(q, err) < 0)
		return -1;
	p = tide_mem_alloc(1, sizeof(*p), err);
	if (!p)
		return -1;
	p->cluster_size = q->cluster_size;
	if (q->header.compression == TIDE_QCOW2_ZSTD)
		p->zstd = tide_compress_new(ZSTD_LEVEL, err);
	else
		p->deflate = new_deflate(q->cluster_size, err);
	if (!p->zstd && !p->deflate) {
		tide_qcow2_pack_free(p);
		return -1;
	}
	*out = p;
	return 0;
}

void tide_qcow2_pack_free(void *packer)
{
	struct packer *p = packer;

	if (p->deflate)
		tide_qcow2_deflate.free_compressor(p->deflate);
	tide_compress_free(p->zstd);
	free(p);
}

int tide_qcow2_pack_cluster(void *packer, const void *cluster, void *out, size_t *len, struct tide_error *err)
{
	struct packer *p = packer;

	/* The format cannot store the length of a whole cluster. */
	*len = TIDE_MIN(*len, p->cluster_size - 1);
	if (p->zstd)
		return tide_compress_next(p->zstd, out, len, cluster, p->cluster_size, err);
	*len = tide_qcow2_deflate.deflate_compress(p->deflate, cluster, p->cluster_size, out, *len);
	return *len == 0;
}

/* ---- placing ----------------------------------------------------------------------- */

/* The number of bits of an L2 entry that hold the data's offset; the number of its sectors is above them. */
static unsigned offset_bits(const struct tide_qcow2 *q)
{
	return 62 - (q->cluster_bits - 8);
}

static int count_more(struct tide_qcow2 *q, uint64_t host, bool *yes, struct tide_error *err)
{
	uint64_t count;

	*yes = false;
	if (host == 0)
		return 0;
	if (tide_qcow2_refcount_get(q, host >> q->cluster_bits, &count, err) < 0)
		return -1;
	*yes = count > 0 && count < tide_qcow2_refcount_max(q);
	return 0;
}

/* Allocates space for len bytes, less than a cluster, and counts the references. */
static int place(struct tide_qcow2 *q, size_t len, uint64_t *host, struct tide_error *err)
{
	uint64_t at = q->pack_at, left, first, got;
	bool goes_on;

	if (count_more(q, at, &goes_on, err) < 0)
		return -1;
	left = goes_on ? q->cluster_size - (at & (q->cluster_size - 1)) : 0;
	if (left < len) {
		if (tide_qcow2_alloc_clusters(q, 1, &first, &got, err) < 0)
			return -1;
		if (!goes_on || at + left != first << q->cluster_bits) {
			goes_on = false;
			at = first << q->cluster_bits;
		}
	}
	if (goes_on && tide_qcow2_refcount_increase(q, at >> q->cluster_bits, err) < 0) {
		if (left < len)
			tide_qcow2_alloc_undo(q, first, 1);
		return -1;
	}
	*host = at;
	q->pack_at = (at + len) & (q->cluster_size - 1) ? at + len : 0;
	return 0;
}

static void undo_place(struct tide_qcow2 *q, uint64_t host, size_t len)
{
	uint64_t first = host >> q->cluster_bits;

	tide_sums_forget(q->collect, host, len);
	tide_qcow2_alloc_undo(q, first, ((host + len - 1) >> q->cluster_bits) - first + 1);
	q->pack_at = 0;
}

/* Allocates space for the clusters; *n_placed of them have it, also after a failure. */
static int place_all(struct tide_qcow2 *q, const struct tide_packed *c, size_t n, uint64_t *host, size_t *n_placed,
                     struct tide_error *err)
{
	struct tide_qcow2_table *t;

	for (size_t i = 0; i < n; i++) {
		if (c[i].len == 0 || c[i].len >= q->cluster_size || (c[i].off & (q->cluster_size - 1)))
			return tide_error_set(err, TIDE_E_REFUSED,
			                      "Not a compressed cluster: %zu bytes for the cluster at %" PRIu64,
			                      c[i].len, c[i].off);
		/* The table comes first, so that its place does not depend on how many clusters one call writes. */
		if (tide_qcow2_l2_load_for_write(q, tide_qcow2_l1_index(q, c[i].off), &t, err) < 0 ||
		    place(q, c[i].len, &host[i], err) < 0)
			return -1;
		*n_placed = i + 1;
		if ((host[i] + c[i].len) >> TIDE_MIN(offset_bits(q), TIDE_QCOW2_HOST_BITS))
			return tide_error_set(
			        err, TIDE_E_REFUSED,
			        "The image file is too large: an entry cannot hold the offset of a compressed cluster");
	}
	return 0;
}

/* Clusters that are contiguous in memory and in the file are written together. */
static int write_all(struct tide_qcow2 *q, const struct tide_packed *c, size_t n, const uint64_t *host,
                     struct tide_error *err)
{
	for (size_t i = 0; i < n;) {
		size_t first = i, len = c[i].len;

		while (++i < n && host[i] == host[first] + len && c[i].data == c[first].data + len)
			len += c[i].len;
		if (tide_sysio_pwrite(q->fd, c[first].data, len, host[first], err) < 0)
			return -1;
		tide_sums_note(q->collect, c[first].data, host[first], len);
		/* Only starts writeback early. An error is reported by the sync at the end, too. */
		sync_file_range(q->fd, (off_t)host[first], (off_t)len, SYNC_FILE_RANGE_WRITE);
	}
	return 0;
}

static int set_entry(struct tide_qcow2 *q, uint64_t off, uint64_t host, size_t len, struct tide_error *err)
{
	uint64_t sectors = ((host + len - 1) >> 9) - (host >> 9);
	struct tide_qcow2_entry entry = { 0 };
	struct tide_qcow2_cluster old;
	struct tide_qcow2_table *t;

	if (tide_qcow2_l2_lookup(q, off, &old, err) < 0 || tide_qcow2_alloc_check_drop(q, &old, err) < 0 ||
	    tide_qcow2_l2_load_for_write(q, tide_qcow2_l1_index(q, off), &t, err) < 0 ||
	    tide_qcow2_alloc_reserve(q, 1, err) < 0)
		return -1;
	tide_qcow2_alloc_drop_cluster(q, &old, false);
	entry.word = TIDE_QCOW2_ENTRY_COMPRESSED | sectors << offset_bits(q) | host;
	tide_qcow2_l2_set(q, t, off, entry);
	return 0;
}

/*
 * Writes the counts of a new image and continues in place. Nobody else can see the file, so no order of writes is
 * needed.
 */
static int begin_counting(struct tide_qcow2 *q, struct tide_error *err)
{
	if (!q->is_new)
		return 0;
	if (tide_qcow2_check_failed(q, err) < 0)
		return -1;
	q->failed = true;
	if (tide_qcow2_build_flush(q, err) < 0 || tide_qcow2_cache_grow(&q->blocks, q->reftable_entries, err) < 0)
		return -1;
	q->failed = false;
	q->is_new = q->prepared = false;
	q->guarded = true;
	q->cut = UINT64_MAX;
	return 0;
}

/* Releases the lock while the data is written. */
static int write_locked(struct tide_qcow2 *q, const struct tide_packed *c, size_t n, uint64_t *host,
                        struct tide_error *err)
{
	size_t n_placed = 0, n_set = 0;
	int rc;

	if (begin_counting(q, err) < 0 || tide_qcow2_flush_prepare(q, err) < 0)
		return -1;
	rc = place_all(q, c, n, host, &n_placed, err);
	if (rc == 0) {
		pthread_mutex_unlock(&q->lock);
		rc = write_all(q, c, n, host, err);
		pthread_mutex_lock(&q->lock);
	}
	while (rc == 0 && n_set < n) {
		rc = set_entry(q, c[n_set].off, host[n_set], c[n_set].len, err);
		n_set += rc == 0;
	}
	while (n_placed > n_set) {
		n_placed--;
		undo_place(q, host[n_placed], c[n_placed].len);
	}
	return rc;
}

int tide_qcow2_pack_write(void *state, const struct tide_packed *clusters, size_t n, struct tide_error *err)
{
	struct tide_qcow2 *q = state;
	TIDE_AUTOFREE uint64_t *host = tide_mem_alloc(TIDE_MAX(n, 1), sizeof(*host), err);
	int rc;

	if (!host)
		return -1;
	pthread_mutex_lock(&q->lock);
	rc = write_locked(q, clusters, n, host, err);
	pthread_mutex_unlock(&q->lock);
	return rc;
}
