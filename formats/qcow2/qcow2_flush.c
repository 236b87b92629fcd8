/*
 * The order in which changes of an in-place image reach the disk.
 *
 *   1  refcount blocks with the new allocations, and new L2 tables: nothing refers to those
 *      tables yet, and a count that is too high is only a leak
 *   2  sync, the refcount table, sync, and, if the table has moved, the header's pointer to it
 *   3  sync: now all data and all counts are durable
 *   4  L2 tables that were in use, and the L1 table: the disk changes, sector by sector
 *   5  sync
 *   6  the counts of released clusters go down; only after that may they be allocated again
 *
 * Syncs with no writes before them are left out.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "base/sysio.h"
#include "qcow2.h"

/* A change flushes first when dirty tables exceed this memory, or when more runs than this wait to be freed. */
#define DIRTY_BYTES_MAX (UINT64_C(32) << 20)
#define DEFERRED_MAX    262144u

static int set_file_size(struct tide_qcow2 *q, struct tide_error *err)
{
	uint64_t now;

	if (q->is_device)
		return 0;
	if (tide_sysio_size(q->fd, &now, err) < 0)
		return -1;
	if (now < q->file_size && ftruncate(q->fd, (off_t)q->file_size) < 0)
		return tide_error_set_sys(err, errno, "Could not extend the file to %" PRIu64 " bytes", q->file_size);
	return 0;
}

static int write_reftable(struct tide_qcow2 *q, struct tide_error *err)
{
	uint64_t from = q->reftable_moved ? 0 : q->reftable_dirty_from;
	uint64_t n = (q->reftable_moved ? q->reftable_entries : q->reftable_dirty_to) - from;
	TIDE_AUTOFREE uint8_t *buf = tide_mem_alloc(n, 8, err);

	if (!buf)
		return -1;
	for (uint64_t i = 0; i < n; i++)
		tide_put_be64(buf + 8 * i, q->reftable[from + i]);
	if (tide_sysio_pwrite(q->fd, buf, 8 * n, q->reftable_offset + 8 * from, err) < 0)
		return -1;
	q->reftable_dirty_from = q->reftable_dirty_to = 0;
	return 0;
}

static int write_reftable_pointer(struct tide_qcow2 *q, struct tide_error *err)
{
	uint8_t buf[12];

	tide_put_be64(buf, q->reftable_offset);
	tide_put_be32(buf + 8, (uint32_t)(q->reftable_entries * 8 >> q->cluster_bits));
	if (tide_sysio_pwrite(q->fd, buf, sizeof(buf), TIDE_QCOW2_AT_REFTABLE, err) < 0)
		return -1;
	q->reftable_moved = false;
	return 0;
}

/* Steps 1 and 2. */
static int write_counts(struct tide_qcow2 *q, struct tide_error *err)
{
	if (tide_qcow2_cache_write(&q->blocks, q->fd, false, err) < 0 ||
	    tide_qcow2_cache_write(&q->l2, q->fd, true, err) < 0)
		return -1;
	if (q->reftable_dirty_from == q->reftable_dirty_to)
		return 0;
	if (tide_sysio_fdatasync(q->fd, err) < 0 || write_reftable(q, err) < 0)
		return -1;
	if (!q->reftable_moved)
		return 0;
	return tide_sysio_fdatasync(q->fd, err) < 0 ? -1 : write_reftable_pointer(q, err);
}

static int compare_run(const void *a, const void *b)
{
	const struct tide_qcow2_run *x = a, *y = b;

	return (x->first > y->first) - (x->first < y->first);
}

/* Step 6 for one run: frees its space in as few calls as possible. */
static int release_run(struct tide_qcow2 *q, const struct tide_qcow2_run *run, struct tide_error *err)
{
	uint64_t start = run->first, n = 0;

	for (uint64_t i = 0; i < run->n; i++) {
		bool is_free;

		if (tide_qcow2_refcount_decrease(q, run->first + i, &is_free, err) < 0)
			return -1;
		if (is_free && run->punch) {
			n += 1;
			if (i + 1 < run->n)
				continue;
		}
		/* This only saves space in the file system, so a failure is ignored. */
		if (n)
			tide_sysio_zero(q->fd, start << q->cluster_bits, n << q->cluster_bits, true, NULL);
		start = run->first + i + 1;
		n = 0;
	}
	return 0;
}

static int release_deferred(struct tide_qcow2 *q, struct tide_error *err)
{
	struct tide_qcow2_runs *d = &q->deferred;

	if (d->n > 1)
		qsort(d->run, d->n, sizeof(*d->run), compare_run);
	for (size_t i = 0; i < d->n; i++) {
		if (release_run(q, &d->run[i], err) < 0)
			return -1;
	}
	d->n = 0;
	return tide_qcow2_cache_write(&q->blocks, q->fd, false, err);
}

static int flush_in_place(struct tide_qcow2 *q, struct tide_error *err)
{
	if (set_file_size(q, err) < 0 || write_counts(q, err) < 0 || tide_sysio_fdatasync(q->fd, err) < 0)
		return -1;
	if (q->l2.n_dirty || tide_qcow2_l1_is_dirty(q)) {
		if (tide_qcow2_cache_write(&q->l2, q->fd, false, err) < 0 || tide_qcow2_l1_write(q, err) < 0 ||
		    tide_sysio_fdatasync(q->fd, err) < 0)
			return -1;
	}
	if (release_deferred(q, err) < 0)
		return -1;
	tide_qcow2_cache_trim(&q->l2);
	tide_qcow2_cache_trim(&q->blocks);
	return 0;
}

int tide_qcow2_check_failed(const struct tide_qcow2 *q, struct tide_error *err)
{
	if (!q->failed)
		return 0;
	if (!q->failure.code)
		return tide_error_set(err, TIDE_E_IO, "An earlier error left the image without its last changes");
	return tide_error_set(err, q->failure.code, "An earlier error left the image without its last changes: %s",
	                      q->failure.msg);
}

/* When err is NULL the reason is kept and reported later. */
static int fail(struct tide_qcow2 *q, struct tide_error *why, struct tide_error *err)
{
	q->failed = true;
	return tide_error_move(err || q->failure.code ? err : &q->failure, why);
}

int tide_qcow2_flush_locked(struct tide_qcow2 *q, struct tide_error *err)
{
	struct tide_error why = TIDE_ERROR_INIT;
	int rc;

	if (tide_qcow2_check_failed(q, err) < 0)
		return -1;
	if (!q->touched)
		return 0;
	rc = tide_qcow2_data_sync(q, &why);
	if (rc == 0)
		rc = q->is_new ? tide_qcow2_build_flush(q, &why) : flush_in_place(q, &why);
	if (rc < 0)
		return fail(q, &why, err);
	q->touched = false;
	return 0;
}

int tide_qcow2_flush_image(void *state, struct tide_error *err)
{
	struct tide_qcow2 *q = state;
	int rc;

	if (!q->writable)
		return 0;
	pthread_mutex_lock(&q->lock);
	rc = tide_qcow2_flush_locked(q, err);
	pthread_mutex_unlock(&q->lock);
	return rc;
}

int tide_qcow2_flush_put_flags(struct tide_qcow2 *q, uint64_t at, uint64_t *flags, uint64_t to, struct tide_error *err)
{
	uint8_t buf[8];

	if (q->header.version < 3 || to == *flags)
		return 0;
	tide_put_be64(buf, to);
	if (tide_sysio_pwrite(q->fd, buf, sizeof(buf), at, err) < 0 ||
	    (!q->is_hidden && tide_sysio_fdatasync(q->fd, err) < 0))
		return -1;
	*flags = to;
	return 0;
}

static int keep_features(struct tide_qcow2 *q, uint64_t kept, struct tide_error *err)
{
	return tide_qcow2_flush_put_flags(q, TIDE_QCOW2_AT_AUTOCLEAR, &q->header.autoclear, kept, err);
}

/* A program must clear the autoclear flags of features it does not know before its first change. */
static int clear_unknown(struct tide_qcow2 *q, struct tide_error *err)
{
	uint64_t kept = TIDE_QCOW2_AUTOCLEAR_BITMAPS | TIDE_QCOW2_AUTOCLEAR_DATA_FILE_RAW;
	bool is_changed, is_copy;

	/* QEMU does not clear a flag for a commit. */
	tide_qcow2_ext_compare_file(q->fd, q->header.birth_file, &is_changed, &is_copy);
	if (!is_changed)
		kept |= TIDE_QCOW2_AUTOCLEAR_INTACT;
	if (tide_qcow2_sums_state(q->fd, &q->header) != TIDE_SUMS_DOUBTFUL)
		kept |= TIDE_QCOW2_AUTOCLEAR_SUMS;
	return keep_features(q, q->header.autoclear & kept, err);
}

int tide_qcow2_flush_set_autoclear(struct tide_qcow2 *q, uint64_t set, uint64_t clear, struct tide_error *err)
{
	return keep_features(q, (q->header.autoclear | set) & ~clear, err);
}

/* Extends the file to whole clusters, so that writes near its end need no special care. */
static int make_ready(struct tide_qcow2 *q, struct tide_error *err)
{
	if ((q->late && tide_qcow2_check_writable(q, err) < 0) || tide_qcow2_meta_open(q, err) < 0 ||
	    tide_qcow2_ends_check(q, err) < 0 || tide_qcow2_repair(q, err) < 0 ||
	    tide_qcow2_refcount_check_header(q, err) < 0 || clear_unknown(q, err) < 0)
		return -1;
	if (!q->is_device) {
		q->file_size = tide_qcow2_clusters(q, q->file_size) << q->cluster_bits;
		if (set_file_size(q, err) < 0)
			return -1;
	}
	return 0;
}

int tide_qcow2_flush_prepare_meta(struct tide_qcow2 *q, struct tide_error *err)
{
	uint64_t dirty = (q->l2.n_dirty + q->blocks.n_dirty) << q->cluster_bits;

	if (tide_qcow2_check_failed(q, err) < 0)
		return -1;
	if (!q->prepared && !q->is_new && make_ready(q, err) < 0)
		return -1;
	q->prepared = true;
	if (!q->is_new && (dirty > DIRTY_BYTES_MAX || q->deferred.n > DEFERRED_MAX) &&
	    tide_qcow2_flush_locked(q, err) < 0)
		return -1;
	q->touched = true;
	return 0;
}

int tide_qcow2_flush_prepare(struct tide_qcow2 *q, struct tide_error *err)
{
	if (tide_qcow2_flush_prepare_meta(q, err) < 0)
		return -1;
	if (q->is_new)
		return 0;
	return tide_qcow2_flush_set_autoclear(q, 0, TIDE_QCOW2_AUTOCLEAR_INTACT | TIDE_QCOW2_AUTOCLEAR_SUMS, err);
}
