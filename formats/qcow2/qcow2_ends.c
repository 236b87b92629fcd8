/*
 * The end of the file of an image that is about to be changed.
 *
 * A change extends the file to whole clusters. If the file was cut within a cluster that is in use, the lost
 * bytes would then read as zeroes, and nothing would reveal it any more; so the extents that end there are looked
 * for first. Files of whole clusters, which all images are once they have been changed, need no search.
 */
#include <inttypes.h>

#include "base/error.h"
#include "base/range.h"
#include "qcow2.h"

/* Does the entry lead to bytes that the file may lack a part of? */
static bool is_last(const struct tide_qcow2 *q, struct tide_qcow2_entry entry)
{
	uint64_t last = q->file_size >> q->cluster_bits;

	if (entry.word & TIDE_QCOW2_ENTRY_COMPRESSED)
		return true;
	return !q->has_data_file && (entry.word & TIDE_QCOW2_ENTRY_OFFSET) >> q->cluster_bits == last;
}

static int check_entry(struct tide_qcow2 *q, struct tide_qcow2_entry entry, uint64_t off, struct tide_error *err)
{
	struct tide_error other = TIDE_ERROR_INIT;
	struct tide_qcow2_cluster c;

	if (!is_last(q, entry))
		return 0;
	if (!(entry.word & TIDE_QCOW2_ENTRY_COMPRESSED))
		return tide_qcow2_l2_decode(q, entry, off, &c, err);
	/* Damage of another kind does not forbid a change elsewhere. */
	if (tide_qcow2_l2_decode(q, entry, off, &c, &other) < 0) {
		tide_error_release(&other);
		return 0;
	}
	if (tide_range_is_within(c.host, c.len, q->file_size) || tide_qcow2_compressed_check(q, &c, err) == 0)
		return 0;
	return tide_error_wrap(err, "The compressed cluster at %" PRIu64 " cannot be read", off);
}

static int check_table(struct tide_qcow2 *q, uint64_t index, struct tide_error *err)
{
	unsigned shift = q->cluster_bits + q->l2_bits;
	uint64_t end = q->size >> shift == index ? q->size : (index + 1) << shift;
	struct tide_error other = TIDE_ERROR_INIT;
	struct tide_qcow2_table *t;

	/* A table that was cut has been found already: tables are known before data is. */
	if (tide_qcow2_l2_load(q, index, &t, &other) < 0) {
		tide_error_release(&other);
		return 0;
	}
	for (uint64_t off = index << shift; t && off < end; off += q->cluster_size) {
		if (check_entry(q, tide_qcow2_l2_get(q, t, off), off, err) < 0)
			return -1;
	}
	return 0;
}

int tide_qcow2_ends_check(struct tide_qcow2 *q, struct tide_error *err)
{
	unsigned shift = q->cluster_bits + q->l2_bits;
	uint64_t end = q->size ? ((q->size - 1) >> shift) + 1 : 0, i = 0;

	if (q->is_device || !(q->file_size & (q->cluster_size - 1)))
		return 0;
	for (;; i++) {
		if (tide_qcow2_l1_next(q, i, end, &i, err) < 0)
			return -1;
		if (i >= end)
			return 0;
		if (check_table(q, i, err) < 0)
			return tide_error_hint(err, "restore the image from a copy: a write would extend the file, and "
			                            "the lost bytes would become zeroes");
	}
}
