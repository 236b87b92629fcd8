/*
 * Answers where the disk's bytes are: joins adjacent clusters and subclusters of one kind, across
 * L2 tables, into one extent.
 */
#include <inttypes.h>

#include "base/error.h"
#include "base/range.h"
#include "qcow2.h"

/* One call examines at most this many L2 tables, because other threads need the lock, too. */
#define TABLES_MAX 32

/* Narrows the piece, which reaches to the end of its cluster, to subclusters of one kind, and returns that kind. */
static enum tide_qcow2_kind narrow(const struct tide_qcow2 *q, const struct tide_qcow2_cluster *c, uint64_t within,
                                   struct tide_extent *out)
{
	unsigned shift = q->cluster_bits - TIDE_QCOW2_SUBCLUSTER_BITS, first = (unsigned)(within >> shift),
	         end = first + 1;
	bool alloc = c->alloc >> first & 1, zero = c->zero >> first & 1;

	while (end < TIDE_QCOW2_SUBCLUSTERS && (c->alloc >> end & 1) == alloc && (c->zero >> end & 1) == zero)
		end++;
	out->len = ((uint64_t)end << shift) - within;
	if (alloc)
		return TIDE_QCOW2_DATA;
	return zero ? TIDE_QCOW2_ZEROES : TIDE_QCOW2_HOLE;
}

/* Ends a piece where a cut file does; only a rescue meets one. */
static int end_with_file(const struct tide_qcow2 *q, struct tide_extent *piece, struct tide_error *err)
{
	uint64_t end = q->has_data_file ? q->data_size : q->file_size;

	if (piece->map_off >= end)
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "The data of the cluster at %" PRIu64
		                      " ends beyond the end of the file at %" PRIu64 ", which was cut",
		                      piece->off, end);
	piece->len = TIDE_MIN(piece->len, end - piece->map_off);
	return 0;
}

/* Describes the piece from off to the end of its cluster, or less. */
static int piece_at(const struct tide_qcow2 *q, struct tide_qcow2_entry entry, uint64_t off, struct tide_extent *out,
                    struct tide_error *err)
{
	uint64_t within = off & (q->cluster_size - 1);
	struct tide_qcow2_cluster c;

	if (tide_qcow2_l2_decode(q, entry, off, &c, err) < 0)
		return -1;
	*out = (struct tide_extent){
		.off = off, .len = q->cluster_size - within, .kind = TIDE_EXTENT_DATA, .map_fd = -1
	};
	switch (c.kind == TIDE_QCOW2_MIXED ? narrow(q, &c, within, out) : c.kind) {
	case TIDE_QCOW2_HOLE:
		out->kind = TIDE_EXTENT_HOLE;
		break;
	case TIDE_QCOW2_ZEROES:
		out->kind = TIDE_EXTENT_ZERO;
		break;
	case TIDE_QCOW2_MIXED:
	case TIDE_QCOW2_COMPRESSED:
		break;
	case TIDE_QCOW2_DATA:
		if (q->data_fd < 0) /* only in a rescue */
			return tide_error_set(err, TIDE_E_CORRUPT,
			                      "The data of the cluster at %" PRIu64
			                      " is in the external data file, which cannot be read",
			                      off);
		out->mapped = true;
		out->map_fd = q->data_fd;
		out->map_off = c.host + within;
		return q->salvage ? end_with_file(q, out, err) : 0;
	}
	return 0;
}

/* Appends a piece if it continues the extent. */
static bool join(struct tide_extent *e, const struct tide_extent *piece)
{
	if (e->len == 0) {
		*e = *piece;
		return true;
	}
	if (e->kind != piece->kind || e->mapped != piece->mapped)
		return false;
	if (e->mapped && e->map_off + e->len != piece->map_off)
		return false;
	e->len += piece->len;
	return true;
}

/* *stop: the end of the part of the disk from off on, at most `end`, that has no L2 tables. */
static int skip_absent(struct tide_qcow2 *q, uint64_t off, uint64_t end, uint64_t *stop, struct tide_error *err)
{
	unsigned shift = q->cluster_bits + q->l2_bits;
	uint64_t first = off >> shift, last = (end - 1) >> shift, i;

	if (tide_qcow2_l1_next(q, first, last + 1, &i, err) < 0)
		return -1;
	/* Some tables exist in memory but have no cluster yet. */
	for (uint64_t k = first; q->writable && k < i; k++) {
		if (q->l2.slot[k])
			i = k;
	}
	*stop = i > last ? end : i << shift;
	return 0;
}

/* Joins pieces of one table, from e's end up to `end`: 1 when the extent may continue after it. */
static int walk_table(const struct tide_qcow2 *q, const struct tide_qcow2_table *t, uint64_t end, struct tide_extent *e,
                      struct tide_error *err)
{
	while (e->off + e->len < end) {
		uint64_t at = e->off + e->len;
		struct tide_extent piece;

		/* An error in a later piece is reported when a caller asks for that piece. */
		if (piece_at(q, tide_qcow2_l2_get(q, t, at), at, &piece, e->len ? NULL : err) < 0)
			return e->len ? 0 : -1;
		if (!join(e, &piece))
			return 0;
	}
	return 1;
}

static int find_extent(struct tide_qcow2 *q, uint64_t end, struct tide_extent *e, struct tide_error *err)
{
	unsigned shift = q->cluster_bits + q->l2_bits;

	for (unsigned n = 0; e->off + e->len < end && n < TABLES_MAX;) {
		uint64_t at = e->off + e->len, stop;
		struct tide_qcow2_table *t;
		int rc;

		if (skip_absent(q, at, end, &stop, e->len ? NULL : err) < 0)
			return e->len ? 0 : -1;
		if (stop > at) {
			struct tide_extent hole = {
				.off = at, .len = stop - at, .kind = TIDE_EXTENT_HOLE, .map_fd = -1
			};

			if (!join(e, &hole))
				return 0;
			continue;
		}
		if (tide_qcow2_l2_load(q, at >> shift, &t, e->len ? NULL : err) < 0)
			return e->len ? 0 : -1;
		rc = walk_table(q, t, TIDE_MIN(end, ((at >> shift) + 1) << shift), e, err);
		if (rc <= 0)
			return rc;
		n++;
	}
	return 0;
}

int tide_qcow2_read_extent(void *state, uint64_t off, uint64_t len, struct tide_extent *out, struct tide_error *err)
{
	struct tide_qcow2 *q = state;
	struct tide_extent e = { .off = off };
	int rc;

	if (len == 0 || !tide_range_is_within(off, len, q->size))
		return tide_error_set(err, TIDE_E_REFUSED,
		                      "Cannot read %" PRIu64 " bytes at %" PRIu64 " of a disk of %" PRIu64, len, off,
		                      q->size);
	pthread_mutex_lock(&q->lock);
	rc = tide_qcow2_data_check(q, err) < 0 ? -1 : find_extent(q, off + len, &e, err);
	pthread_mutex_unlock(&q->lock);
	if (rc < 0)
		return -1;
	e.len = TIDE_MIN(e.len, len);
	*out = e;
	return 0;
}
