/*
 * Writes to the disk: reserves clusters for a range, and enters them into the L2 tables once the
 * caller has written the data. A cluster is overwritten in place only if this image alone refers to
 * it; otherwise the data goes to a preallocated or a new cluster, and the old one is dropped. With extended L2
 * entries, less than a cluster is written by qcow2_subcluster.c.
 */
#include <inttypes.h>
#include <string.h>

#include "base/error.h"
#include "base/range.h"
#include "base/sysio.h"
#include "qcow2.h"

/* The number of clusters that the range covers completely, if it starts on one; the last one may end with the disk. */
static uint64_t whole_clusters(const struct tide_qcow2 *q, uint64_t off, uint64_t len)
{
	if (off & (q->cluster_size - 1))
		return 0;
	return off + len == q->size ? tide_qcow2_clusters(q, len) : len >> q->cluster_bits;
}

/* May this cluster be overwritten in place, where the write is visible at once? */
static int is_in_place(struct tide_qcow2 *q, const struct tide_qcow2_cluster *c, bool *yes, struct tide_error *err)
{
	*yes = c->kind == TIDE_QCOW2_DATA && c->copied;
	return *yes ? tide_qcow2_alloc_is_exclusive(q, c->host, yes, err) : 0;
}

/* Does the entry have a preallocated cluster, not visible as a whole, that new data may use? */
static int is_preallocated(struct tide_qcow2 *q, const struct tide_qcow2_cluster *c, bool *yes, struct tide_error *err)
{
	*yes = c->kind != TIDE_QCOW2_DATA && c->kind != TIDE_QCOW2_COMPRESSED && c->copied && c->host &&
	       tide_range_is_within(c->host, q->cluster_size, q->file_size);
	return *yes ? tide_qcow2_alloc_is_exclusive(q, c->host, yes, err) : 0;
}

/* The most clusters of one reservation, because other threads need the lock, too. */
#define CLUSTERS_MAX UINT64_C(65536)

enum how { IN_PLACE, PREALLOCATED, NEW_CLUSTER };

/* Chooses the destination of a write to the cluster at off. */
static int choose(struct tide_qcow2 *q, uint64_t off, enum how *how, uint64_t *host, struct tide_error *err)
{
	struct tide_qcow2_cluster c;
	bool yes;

	if (tide_qcow2_l2_lookup(q, off, &c, err) < 0)
		return -1;
	if (q->has_data_file) { /* its offset in the data file is fixed */
		*host = off;
		*how = c.kind == TIDE_QCOW2_DATA ? IN_PLACE : PREALLOCATED;
		return 0;
	}
	*host = c.host;
	*how = IN_PLACE;
	if (is_in_place(q, &c, &yes, err) < 0)
		return -1;
	if (yes)
		return 0;
	*how = PREALLOCATED;
	if (is_preallocated(q, &c, &yes, err) < 0)
		return -1;
	if (!yes)
		*how = NEW_CLUSTER;
	return 0;
}

/*
 * Counts the clusters from off on, the first one known, that can be written the same way; unless new, they must be
 * contiguous in the file.
 */
static int count_same(struct tide_qcow2 *q, uint64_t off, uint64_t max, enum how how, uint64_t host, uint64_t *n,
                      struct tide_error *err)
{
	for (*n = 1; *n < max; (*n)++) {
		enum how next;
		uint64_t next_host;

		if (choose(q, off + (*n << q->cluster_bits), &next, &next_host, err) < 0)
			return -1;
		if (next != how || (how != NEW_CLUSTER && next_host != host + (*n << q->cluster_bits)))
			break;
	}
	return 0;
}

/* Zeroes the part of the last cluster beyond the disk's end, which becomes visible if the disk grows. */
static int clear_tail(struct tide_qcow2 *q, uint64_t off, uint64_t n, uint64_t host, struct tide_error *err)
{
	static const uint8_t zeroes[4096];
	uint64_t end = off + (n << q->cluster_bits), at = host + (n << q->cluster_bits);
	/* A data file ends with the disk; any bytes after that do not belong to the disk. */
	uint64_t left = end > q->size && !q->has_data_file ? end - q->size : 0;

	while (left) {
		uint64_t len = TIDE_MIN(left, sizeof(zeroes));

		if (tide_sysio_pwrite(q->fd, zeroes, len, at - left, err) < 0)
			return -1;
		left -= len;
	}
	return 0;
}

static int reserve_whole(struct tide_qcow2 *q, uint64_t off, uint64_t n, enum how how, uint64_t *host,
                         struct tide_extent *out, struct tide_error *err)
{
	uint64_t first, got = n;

	if (how == NEW_CLUSTER) {
		if (tide_qcow2_alloc_clusters(q, n, &first, &got, err) < 0)
			return -1;
		*host = first << q->cluster_bits;
	}
	if (clear_tail(q, off, got, *host, err) < 0) {
		if (how == NEW_CLUSTER)
			tide_qcow2_alloc_undo(q, first, got);
		return -1;
	}
	out->len = TIDE_MIN(out->len, got << q->cluster_bits);
	return 0;
}

static int begin(struct tide_qcow2 *q, uint64_t off, uint64_t len, struct tide_extent *out, struct tide_error *err)
{
	uint64_t within = off & (q->cluster_size - 1), host, n;
	uint64_t whole = TIDE_MIN(whole_clusters(q, off, len), CLUSTERS_MAX);
	enum how how;

	if (len == 0 || !tide_range_is_within(off, len, q->size))
		return tide_error_set(err, TIDE_E_REFUSED,
		                      "Cannot write %" PRIu64 " bytes at %" PRIu64 " of a disk of %" PRIu64, len, off,
		                      q->size);
	len = TIDE_MIN(len, (CLUSTERS_MAX << q->cluster_bits) - within);
	*out = (struct tide_extent){
		.off = off, .len = len, .kind = TIDE_EXTENT_DATA, .mapped = true, .map_fd = q->data_fd
	};
	if (tide_qcow2_flush_prepare(q, err) < 0 || tide_qcow2_data_prepare(q, err) < 0 ||
	    choose(q, off - within, &how, &host, err) < 0)
		return -1;
	if (how == IN_PLACE) {
		if (count_same(q, off - within, tide_qcow2_clusters(q, within + len), how, host, &n, err) < 0)
			return -1;
		out->len = TIDE_MIN(len, (n << q->cluster_bits) - within);
		out->map_off = host + within;
		return 0;
	}
	if (whole == 0)
		return q->extended ? tide_qcow2_subcluster_begin(q, off, len, out, err) : 1;
	if (count_same(q, off, whole, how, host, &n, err) < 0 || reserve_whole(q, off, n, how, &host, out, err) < 0)
		return -1;
	out->map_off = host;
	return 0;
}

int tide_qcow2_write_begin(void *state, uint64_t off, uint64_t len, struct tide_extent *out, struct tide_error *err)
{
	struct tide_qcow2 *q = state;
	int rc;

	pthread_mutex_lock(&q->lock);
	rc = begin(q, off, len, out, err);
	pthread_mutex_unlock(&q->lock);
	return rc;
}

/* The subclusters of the cluster of the disk at off that the place covers; only with extended L2 entries. */
static uint32_t covered(const struct tide_qcow2 *q, const struct tide_extent *place, uint64_t off)
{
	uint64_t from = TIDE_MAX(place->off, off), to = TIDE_MIN(place->off + place->len, off + q->cluster_size);

	return tide_qcow2_subcluster_mask(q, from - off, to - off);
}

/* Does the entry c lead to the cluster at host, of which the place may be a part? */
static bool leads_to(const struct tide_qcow2 *q, const struct tide_qcow2_cluster *c, uint64_t host)
{
	return q->has_data_file || (c->kind != TIDE_QCOW2_COMPRESSED && c->host == host);
}

/* Checks, before any change, that the entry c can be set to the cluster at host. */
static int check_entry(const struct tide_qcow2 *q, const struct tide_qcow2_cluster *c, uint64_t host,
                       const struct tide_extent *place, struct tide_error *err)
{
	uint64_t mask = q->cluster_size - 1, end = place->off + place->len;

	if (!leads_to(q, c, host) && ((place->off & mask) || ((end & mask) && end != q->size)))
		return tide_error_set(err, TIDE_E_IO, "The cluster at %" PRIu64 " has moved during a write",
		                      place->off & ~mask);
	return tide_qcow2_alloc_check_drop(q, c, err);
}

static struct tide_qcow2_entry new_entry(const struct tide_qcow2 *q, const struct tide_qcow2_cluster *c, uint64_t off,
                                         uint64_t host, const struct tide_extent *place)
{
	uint32_t mask;

	if (!q->extended || !leads_to(q, c, host))
		return tide_qcow2_l2_data_entry(q, host);
	mask = covered(q, place, off);
	return tide_qcow2_subcluster_entry(host, true, c->alloc | mask, c->zero & ~mask);
}

/* Sets the entries of n clusters of one L2 table, from off on, to the clusters from host on. */
static int set_entries(struct tide_qcow2 *q, uint64_t off, uint64_t n, uint64_t host, const struct tide_extent *place,
                       struct tide_error *err)
{
	struct tide_qcow2_table *t;
	struct tide_qcow2_cluster c;

	if (tide_qcow2_l2_load_for_write(q, tide_qcow2_l1_index(q, off), &t, err) < 0 ||
	    tide_qcow2_alloc_reserve(q, n, err) < 0)
		return -1;
	for (uint64_t i = 0; i < n; i++) {
		uint64_t at = off + (i << q->cluster_bits), here = host + (i << q->cluster_bits);

		if (tide_qcow2_l2_decode(q, tide_qcow2_l2_get(q, t, at), at, &c, err) < 0 ||
		    check_entry(q, &c, here, place, err) < 0)
			return -1;
	}
	for (uint64_t i = 0; i < n; i++) {
		uint64_t at = off + (i << q->cluster_bits), here = host + (i << q->cluster_bits);

		if (tide_qcow2_l2_decode(q, tide_qcow2_l2_get(q, t, at), at, &c, err) < 0)
			return -1;
		if (!leads_to(q, &c, here))
			tide_qcow2_alloc_drop_cluster(q, &c, false);
		tide_qcow2_l2_set(q, t, at, new_entry(q, &c, at, here, place));
	}
	return 0;
}

/* Is the place, whose first cluster is stored at host, part of the disk already? */
static int is_placed(struct tide_qcow2 *q, const struct tide_extent *place, uint64_t host, bool *yes,
                     struct tide_error *err)
{
	uint64_t off = place->off & ~(q->cluster_size - 1);
	struct tide_qcow2_cluster c;

	*yes = false;
	if (tide_qcow2_l2_lookup(q, off, &c, err) < 0)
		return -1;
	if (c.kind == TIDE_QCOW2_MIXED && place->off + place->len <= off + q->cluster_size)
		*yes = c.host == host && (covered(q, place, off) & ~c.alloc) == 0;
	else
		*yes = c.kind == TIDE_QCOW2_DATA && c.host == host;
	return 0;
}

static int commit(struct tide_qcow2 *q, const struct tide_extent *place, struct tide_error *err)
{
	uint64_t mask = q->cluster_size - 1, off = place->off & ~mask, host = place->map_off & ~mask;
	uint64_t left = tide_qcow2_clusters(q, (place->off & mask) + place->len);
	bool placed;

	/* All clusters of a reservation are of one kind, so the first one decides. */
	if (tide_qcow2_flush_prepare(q, err) < 0 || is_placed(q, place, host, &placed, err) < 0)
		return -1;
	while (!placed && left) {
		uint64_t n = TIDE_MIN(left, (UINT64_C(1) << q->l2_bits) - tide_qcow2_l2_index(q, off));

		if (set_entries(q, off, n, host, place, err) < 0)
			return -1;
		left -= n;
		off += n << q->cluster_bits;
		host += n << q->cluster_bits;
	}
	return 0;
}

int tide_qcow2_write_commit(void *state, const struct tide_extent *place, struct tide_error *err)
{
	struct tide_qcow2 *q = state;
	int rc;

	pthread_mutex_lock(&q->lock);
	rc = commit(q, place, err);
	pthread_mutex_unlock(&q->lock);
	if (rc < 0)
		tide_qcow2_write_abort(q, place);
	return rc;
}

void tide_qcow2_write_abort(void *state, const struct tide_extent *place)
{
	struct tide_qcow2 *q = state;
	uint64_t mask = q->cluster_size - 1, off = place->off & ~mask, host = place->map_off & ~mask;
	uint64_t n = tide_qcow2_clusters(q, (place->off & mask) + place->len);
	struct tide_qcow2_cluster c;

	if (q->has_data_file)
		return;
	pthread_mutex_lock(&q->lock);
	/* From the end, so that the clusters allocated last are freed first. */
	while (n-- > 0) {
		/* A cluster in place, preallocated or, after a commit that failed midway, in use stays. */
		if (tide_qcow2_l2_lookup(q, off + (n << q->cluster_bits), &c, NULL) == 0 &&
		    (c.kind == TIDE_QCOW2_COMPRESSED || c.host != host + (n << q->cluster_bits)))
			tide_qcow2_alloc_undo(q, (host >> q->cluster_bits) + n, 1);
	}
	pthread_mutex_unlock(&q->lock);
}
