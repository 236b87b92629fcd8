/*
 * Zeroing of ranges of the disk: with the zero flag where the version has it, otherwise by writing
 * zeroes, and by freeing the clusters if the caller allows it.
 */
#include <inttypes.h>
#include <string.h>

#include "base/error.h"
#include "base/mem.h"
#include "base/range.h"
#include "base/sysio.h"
#include "qcow2.h"

/* The step that zeroes a cluster. */
enum step {
	NOTHING,    /* none: it reads as zeroes already */
	FLAG,       /* the zero flag; its cluster stays preallocated */
	FLAG_ALONE, /* the zero flag; its cluster is dropped */
	WRITE,      /* version 2 has no flag: write zero bytes */
};

static enum step choose_step(const struct tide_qcow2 *q, const struct tide_qcow2_cluster *c, bool may_unmap)
{
	switch (c->kind) {
	case TIDE_QCOW2_HOLE:
		if (q->data_is_raw && c->copied) /* as in QEMU's images, every cluster is allocated */
			return FLAG;
		/* Also without a backing image: if the image gets one later, this range must still read as zeroes. */
		return q->header.version >= 3 ? FLAG_ALONE : WRITE;
	case TIDE_QCOW2_ZEROES:
		return may_unmap && c->host && !q->data_is_raw ? FLAG_ALONE : NOTHING;
	case TIDE_QCOW2_DATA:
		if (q->data_is_raw) /* tide_qcow2_data_zero zeroes the bytes, as the data file alone is the disk too */
			return NOTHING;
		/* fall through */
	default:
		if (q->header.version < 3)
			return WRITE;
		return !may_unmap && c->copied ? FLAG : FLAG_ALONE;
	}
}

/*
 * Version 2 has no zero flag, and without data a backing image, now or later, would be visible: writes zeroes. Lock
 * held.
 */
static int write_zeroes(struct tide_qcow2 *q, uint64_t off, struct tide_error *err)
{
	uint64_t len = TIDE_MIN(q->cluster_size, q->size - off);
	struct tide_extent place;
	int rc = 0;

	TIDE_AUTOFREE uint8_t *zeroes = tide_mem_alloc(len, 1, err);
	if (!zeroes)
		return -1;
	pthread_mutex_unlock(&q->lock);
	if (tide_qcow2_write_begin(q, off, len, &place, err) < 0) {
		rc = -1;
	} else if (tide_sysio_pwrite(q->fd, zeroes, place.len, place.map_off, err) < 0) {
		tide_qcow2_write_abort(q, &place);
		rc = -1;
	} else {
		rc = tide_qcow2_write_commit(q, &place, err);
	}
	pthread_mutex_lock(&q->lock);
	return rc;
}

static int apply(struct tide_qcow2 *q, uint64_t off, const struct tide_qcow2_cluster *c, enum step step, bool may_unmap,
                 struct tide_error *err)
{
	struct tide_qcow2_table *t;
	uint64_t word = 0;

	if (step == NOTHING)
		return 0;
	if (step == WRITE)
		return write_zeroes(q, off, err);
	if (tide_qcow2_alloc_check_drop(q, c, err) < 0 ||
	    tide_qcow2_l2_load_for_write(q, tide_qcow2_l1_index(q, off), &t, err) < 0 ||
	    tide_qcow2_alloc_reserve(q, 1, err) < 0)
		return -1;
	if (step == FLAG)
		word = c->host | TIDE_QCOW2_ENTRY_COPIED;
	if (step != FLAG)
		tide_qcow2_alloc_drop_cluster(q, c, may_unmap);
	tide_qcow2_l2_set(q, t, off, tide_qcow2_l2_zero_entry(q, word));
	return 0;
}

bool tide_qcow2_can_zero_fast(void *state, bool may_unmap)
{
	const struct tide_qcow2 *q = state;

	return q->header.version >= 3 && !q->has_data_file;
}

/* 1: from off on nothing is allocated, and no backing image exists; *next is the end of that part. */
static int skip_nothing(struct tide_qcow2 *q, uint64_t off, uint64_t end, uint64_t *next, struct tide_error *err)
{
	unsigned shift = q->cluster_bits + q->l2_bits;
	uint64_t i = off >> shift, entry;

	if (q->has_backing || q->l2.slot[i])
		return 0;
	if (tide_qcow2_l1_get(q, i, &entry, err) < 0)
		return -1;
	if (entry == 0)
		*next = TIDE_MIN(end, (i + 1) << shift);
	return entry == 0;
}

static int zero_clusters(struct tide_qcow2 *q, uint64_t off, uint64_t end, bool may_unmap, struct tide_error *err)
{
	while (off < end) {
		struct tide_qcow2_cluster c;
		uint64_t next = off + q->cluster_size;

		if (tide_qcow2_flush_prepare(q, err) < 0)
			return -1;
		if (tide_qcow2_l2_lookup(q, off, &c, err) < 0 ||
		    apply(q, off, &c, choose_step(q, &c, may_unmap), may_unmap, err) < 0)
			return -1;
		off = next;
	}
	return 0;
}

/* Does the range read as zeroes already, whatever a backing image holds? */
static int reads_as_zeroes(struct tide_qcow2 *q, uint64_t off, uint64_t end, bool *yes, struct tide_error *err)
{
	for (*yes = true; *yes && off < end;) {
		struct tide_qcow2_cluster c;
		uint64_t next = (off & ~(q->cluster_size - 1)) + q->cluster_size;
		int rc = skip_nothing(q, off, end, &next, err);

		if (rc < 0 || (rc == 0 && tide_qcow2_l2_lookup(q, off, &c, err) < 0))
			return -1;
		if (rc == 0)
			*yes = c.kind == TIDE_QCOW2_ZEROES || (c.kind == TIDE_QCOW2_HOLE && !q->has_backing);
		off = next;
	}
	return 0;
}

/* Is the range a part of one cluster, in whole subclusters? */
static bool is_part(const struct tide_qcow2 *q, uint64_t off, uint64_t end)
{
	uint64_t mask = q->cluster_size - 1, start = off & ~mask, size = tide_qcow2_subcluster_size(q);

	if (!q->extended || off >= end || end > start + q->cluster_size)
		return false;
	if (off == start && (end == start + q->cluster_size || end == q->size))
		return false;
	return !(off & (size - 1)) && (!(end & (size - 1)) || end == q->size);
}

static int zero_part(struct tide_qcow2 *q, uint64_t off, uint64_t len, bool may_unmap, struct tide_error *err)
{
	if (tide_qcow2_data_zero(q, off, len, may_unmap, err) < 0)
		return -1;
	return tide_qcow2_subcluster_zero(q, off, len, err);
}

int tide_qcow2_zero_range(void *state, uint64_t off, uint64_t len, bool may_unmap, struct tide_error *err)
{
	struct tide_qcow2 *q = state;
	uint64_t mask = q->cluster_size - 1, end = off + len;
	bool zeroes;
	int rc;

	if (!tide_range_is_within(off, len, q->size))
		return tide_error_set(err, TIDE_E_REFUSED,
		                      "Cannot zero %" PRIu64 " bytes at %" PRIu64 " of a disk of %" PRIu64, len, off,
		                      q->size);
	pthread_mutex_lock(&q->lock);
	if (tide_qcow2_data_check(q, err) < 0) {
		rc = -1;
	} else if (is_part(q, off, end)) {
		rc = zero_part(q, off, len, may_unmap, err);
	} else if ((off & mask) || ((end & mask) && end != q->size)) {
		rc = reads_as_zeroes(q, off, end, &zeroes, err);
		rc = rc < 0 ? -1 : !zeroes;
	} else if (tide_qcow2_data_zero(q, off, len, may_unmap, err) < 0) {
		rc = -1;
	} else {
		rc = zero_clusters(q, off, end, may_unmap, err);
	}
	pthread_mutex_unlock(&q->lock);
	return rc;
}
