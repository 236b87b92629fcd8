/*
 * Allocation in new images: clusters are assigned in the order of the requests, and the refcount
 * table and its blocks are written once, at the end. Nobody sees the file before that, so no order
 * of writes has to be kept.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <errno.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "base/range.h"
#include "base/sysio.h"
#include "qcow2.h"

/* Refcount blocks are written in pieces of this size. */
#define PIECE_BYTES (UINT64_C(1) << 20)

/* The layout of the end of a new file. */
struct layout {
	uint64_t clusters;   /* of the whole file */
	uint64_t blocks;     /* refcount blocks */
	uint64_t old_blocks; /* refcount blocks that are in the file already */
	uint64_t new_table;  /* clusters of a new refcount table; 0: the old one is large enough */
};

static void remove_run(struct tide_qcow2_runs *runs, size_t i)
{
	runs->n--;
	memmove(&runs->run[i], &runs->run[i + 1], (runs->n - i) * sizeof(*runs->run));
}

static bool take_free(struct tide_qcow2 *q, uint64_t want, uint64_t *first)
{
	for (size_t i = 0; i < q->free.n; i++) {
		struct tide_qcow2_run *run = &q->free.run[i];

		if (run->n < want)
			continue;
		*first = run->first;
		run->first += want;
		run->n -= want;
		if (run->n == 0)
			remove_run(&q->free, i);
		return true;
	}
	return false;
}

int tide_qcow2_build_alloc(struct tide_qcow2 *q, uint64_t want, uint64_t *first, uint64_t *got, struct tide_error *err)
{
	uint64_t limit = UINT64_C(1) << (TIDE_QCOW2_HOST_BITS - q->cluster_bits);

	*got = want;
	if (take_free(q, want, first))
		return 0;
	if (want > limit - q->cursor)
		return tide_error_set(err, TIDE_E_REFUSED,
		                      "The image file would exceed the format's limit of 2^%u bytes",
		                      TIDE_QCOW2_HOST_BITS);
	*first = q->cursor;
	q->cursor += want;
	q->file_size = q->cursor << q->cluster_bits;
	return 0;
}

/* The first free run at or after `first`. */
static size_t find_free(const struct tide_qcow2 *q, uint64_t first)
{
	size_t lo = 0, hi = q->free.n;

	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;

		if (q->free.run[mid].first < first)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

/* Removes free clusters at the end of the file, which then ends before them. */
static void cut_end(struct tide_qcow2 *q)
{
	while (q->free.n > 0) {
		const struct tide_qcow2_run *last = &q->free.run[q->free.n - 1];

		if (last->first + last->n != q->cursor)
			return;
		q->cursor = last->first;
		q->free.n--;
	}
}

void tide_qcow2_build_free(struct tide_qcow2 *q, uint64_t first, uint64_t n)
{
	struct tide_qcow2_runs *f = &q->free;
	size_t i = find_free(q, first);

	if (i > 0 && f->run[i - 1].first + f->run[i - 1].n == first) {
		f->run[i - 1].n += n;
		if (i < f->n && first + n == f->run[i].first) {
			f->run[i - 1].n += f->run[i].n;
			remove_run(f, i);
		}
	} else if (i < f->n && first + n == f->run[i].first) {
		f->run[i].first = first;
		f->run[i].n += n;
	} else {
		if (tide_qcow2_runs_reserve(f, 1, NULL) < 0) {
			q->failed = true; /* otherwise the file would contain unused clusters */
			return;
		}
		memmove(&f->run[i + 1], &f->run[i], (f->n - i) * sizeof(*f->run));
		f->run[i] = (struct tide_qcow2_run){ first, n, false };
		f->n++;
	}
	cut_end(q);
}

static uint64_t count_old_blocks(const struct tide_qcow2 *q)
{
	uint64_t n = 0;

	while (n < q->reftable_entries && q->reftable[n])
		n++;
	return n;
}

static int plan(const struct tide_qcow2 *q, struct layout *l, struct tide_error *err)
{
	uint64_t per_block = UINT64_C(1) << q->block_bits;

	*l = (struct layout){ .old_blocks = count_old_blocks(q) };
	l->blocks = l->old_blocks;
	for (;;) {
		uint64_t need;

		l->new_table = l->blocks > q->reftable_entries ? tide_qcow2_clusters(q, l->blocks * 8) : 0;
		l->clusters = q->cursor + (l->blocks - l->old_blocks) + l->new_table;
		need = tide_range_div_up(l->clusters, per_block);
		if (need <= l->blocks)
			break;
		l->blocks = need;
	}
	if (l->blocks * 8 > TIDE_QCOW2_REFTABLE_BYTES_MAX)
		return tide_error_set(err, TIDE_E_REFUSED,
		                      "The refcount table would exceed its limit of %" PRIu64
		                      " bytes: the image file is too large",
		                      TIDE_QCOW2_REFTABLE_BYTES_MAX);
	return 0;
}

static int grow_table(struct tide_qcow2 *q, const struct layout *l, struct tide_error *err)
{
	uint64_t old = q->reftable_entries, n = l->new_table * q->cluster_size / 8;
	uint64_t *table;

	if (l->new_table) {
		table = tide_mem_realloc(q->reftable, n, sizeof(*table), err);
		if (!table)
			return -1;
		q->reftable = table;
		memset(table + old, 0, (n - old) * sizeof(*table));
		q->reftable_entries = n;
	}
	for (uint64_t i = l->old_blocks; i < l->blocks; i++)
		q->reftable[i] = (q->cursor + i - l->old_blocks) << q->cluster_bits;
	return 0;
}

/* Every cluster before `end` has the count 1, released ones 0. */
static void fill_block(const struct tide_qcow2 *q, uint8_t *block, uint64_t index, uint64_t end)
{
	uint64_t per_block = UINT64_C(1) << q->block_bits, first = index << q->block_bits;
	uint64_t n = first < end ? TIDE_MIN(end - first, per_block) : 0;
	unsigned order = q->header.refcount_order;

	memset(block, 0, q->cluster_size);
	for (uint64_t i = 0; i < n; i++)
		tide_qcow2_refcount_set_entry(order, block, i, 1);
	size_t r = find_free(q, first);
	for (r -= r > 0; r < q->free.n && q->free.run[r].first < first + n; r++) {
		uint64_t from = TIDE_MAX(q->free.run[r].first, first);
		uint64_t to = TIDE_MIN(q->free.run[r].first + q->free.run[r].n, first + n);

		for (uint64_t c = from; c < to; c++)
			tide_qcow2_refcount_set_entry(order, block, c - first, 0);
	}
}

static int write_blocks(struct tide_qcow2 *q, const struct layout *l, struct tide_error *err)
{
	uint64_t piece = TIDE_MAX(PIECE_BYTES >> q->cluster_bits, 1);
	TIDE_AUTOFREE uint8_t *buf = tide_mem_alloc(piece, q->cluster_size, err);

	if (!buf)
		return -1;
	for (uint64_t i = 0; i < l->blocks;) {
		uint64_t at = q->reftable[i], n = 0;

		while (n < piece && i + n < l->blocks && q->reftable[i + n] == at + (n << q->cluster_bits)) {
			fill_block(q, buf + (n << q->cluster_bits), i + n, l->clusters);
			n++;
		}
		if (tide_sysio_pwrite(q->fd, buf, n << q->cluster_bits, at, err) < 0)
			return -1;
		i += n;
	}
	return 0;
}

static int write_table(struct tide_qcow2 *q, struct tide_error *err)
{
	uint64_t n = q->reftable_entries;
	TIDE_AUTOFREE uint8_t *buf = tide_mem_alloc(n, 8, err);

	if (!buf)
		return -1;
	for (uint64_t i = 0; i < n; i++)
		tide_put_be64(buf + 8 * i, q->reftable[i]);
	return tide_sysio_pwrite(q->fd, buf, 8 * n, q->reftable_offset, err);
}

static int write_header(struct tide_qcow2 *q, struct tide_error *err)
{
	uint8_t buf[12];

	tide_put_be64(buf, q->reftable_offset);
	tide_put_be32(buf + 8, (uint32_t)(q->reftable_entries * 8 >> q->cluster_bits));
	return tide_sysio_pwrite(q->fd, buf, sizeof(buf), TIDE_QCOW2_AT_REFTABLE, err);
}

static int write_counts(struct tide_qcow2 *q, const struct layout *l, struct tide_error *err)
{
	uint64_t old_entries = q->reftable_entries, table_at = q->cursor + (l->blocks - l->old_blocks);

	if (tide_qcow2_runs_reserve(&q->free, 1, err) < 0 || grow_table(q, l, err) < 0)
		return -1;
	q->cursor = l->clusters;
	q->file_size = q->cursor << q->cluster_bits;
	if (l->new_table) {
		tide_qcow2_build_free(q, q->reftable_offset >> q->cluster_bits, old_entries * 8 >> q->cluster_bits);
		q->reftable_offset = table_at << q->cluster_bits;
	}
	return write_blocks(q, l, err) < 0 || write_table(q, err) < 0 ? -1 : write_header(q, err);
}

int tide_qcow2_build_flush(struct tide_qcow2 *q, struct tide_error *err)
{
	struct layout l;

	if (tide_qcow2_l2_write_all_new(q, err) < 0 || tide_qcow2_l1_write(q, err) < 0)
		return -1;
	if (plan(q, &l, err) < 0 || write_counts(q, &l, err) < 0)
		return -1;
	if (!q->is_device && ftruncate(q->fd, (off_t)q->file_size) < 0)
		return tide_error_set_sys(err, errno, "Could not set the file's length to %" PRIu64, q->file_size);
	return 0;
}
