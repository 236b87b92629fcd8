/*
 * The qcow2 driver: opens and closes images and fills in the driver's table. The header decides
 * what is possible, and a flag that forbids writing is reported here, at open or, with
 * TIDE_OPEN_LATER, before the first change.
 */
#include "qcow2.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "base/error.h"
#include "base/mem.h"
#include "base/sysio.h"

static void close_image(void *state)
{
	struct tide_qcow2 *q = state;

	if (!q)
		return;
	tide_qcow2_stage_release(q);
	tide_qcow2_bitmap_release(q);
	tide_qcow2_cache_release(&q->l2);
	tide_qcow2_cache_release(&q->blocks);
	tide_qcow2_meta_release(q);
	tide_qcow2_header_release(&q->header);
	tide_error_release(&q->failure);
	tide_qcow2_l1_release(q);
	free(q->reftable);
	free(q->free.run);
	free(q->deferred.run);
	pthread_mutex_destroy(&q->lock);
	free(q);
}

static void close_imagep(struct tide_qcow2 **q)
{
	close_image(*q);
}

static int measure_file(struct tide_qcow2 *q, struct tide_error *err)
{
	struct stat st;

	if (fstat(q->fd, &st) < 0)
		return tide_error_set_sys(err, errno, "fstat");
	q->is_device = !S_ISREG(st.st_mode);
	return tide_sysio_size(q->fd, &q->file_size, err);
}

int tide_qcow2_check_writable(const struct tide_qcow2 *q, struct tide_error *err)
{
	if (q->header.incompatible & TIDE_QCOW2_INCOMPAT_CORRUPT) {
		tide_error_set(err, TIDE_E_CORRUPT, "qcow2: Image is corrupt; cannot be opened read/write");
		return tide_error_hint(err, "open it for reading only, or repair it: qemu-img check -r all IMAGE");
	}
	if (q->has_data_file && q->header.snapshots)
		return tide_error_set(err, TIDE_E_UNSUPPORTED,
		                      "The image has internal snapshots and an external data file, which cannot hold "
		                      "them: it cannot be written");
	return tide_qcow2_refcount_check_table(q, err);
}

/* A new image grows from the end of its L1 table. */
static void start_new(struct tide_qcow2 *q)
{
	q->cursor = tide_qcow2_clusters(q, q->header.l1_offset + q->header.l1_entries * 8);
	q->file_size = q->cursor << q->cluster_bits;
	q->touched = true;
}

/* A rescue of the disk does without bitmaps that are damaged. */
static int open_bitmaps(struct tide_qcow2 *q, struct tide_error *err)
{
	if (!q->salvage)
		return tide_qcow2_bitmap_open(q, err);
	if (tide_qcow2_bitmap_open(q, NULL) < 0) {
		tide_qcow2_bitmap_release(q);
		q->header.n_bitmaps = 0;
	}
	return 0;
}

static int open_state(struct tide_qcow2 *q, struct tide_error *err)
{
	if (measure_file(q, err) < 0 || tide_qcow2_header_read(q->fd, q->file_size, q->salvage, &q->header, err) < 0)
		return -1;
	q->cluster_bits = q->header.cluster_bits;
	q->cluster_size = UINT64_C(1) << q->cluster_bits;
	q->extended = q->header.incompatible & TIDE_QCOW2_INCOMPAT_EXTENDED_L2;
	q->l2_bits = q->cluster_bits - (q->extended ? 4 : 3);
	q->block_bits = q->cluster_bits + 3 - q->header.refcount_order;
	q->size = q->header.size;
	q->has_backing = q->header.backing != NULL;
	q->has_data_file = q->header.data_file != NULL;
	q->data_is_raw = q->has_data_file && (q->header.autoclear & TIDE_QCOW2_AUTOCLEAR_DATA_FILE_RAW);
	q->data_fd = q->has_data_file ? -1 : q->fd;
	if (open_bitmaps(q, err) < 0 || (q->writable && !q->late && tide_qcow2_check_writable(q, err) < 0) ||
	    tide_qcow2_l1_open(q, err) < 0 ||
	    tide_qcow2_cache_init(&q->l2, q->header.l1_entries, q->cluster_size, err) < 0)
		return -1;
	if (q->writable && tide_qcow2_refcount_open(q, err) < 0)
		return -1;
	if (q->is_new)
		start_new(q);
	return 0;
}

static int open_image(int fd, const char *dir, unsigned flags, struct tide_driver_info *info, void **state,
                      struct tide_error *err)
{
	struct tide_qcow2 *q TIDE_CLEANUP(close_imagep) = tide_mem_alloc(1, sizeof(*q), err);

	if (!q)
		return -1;
	q->fd = fd;
	q->is_new = q->is_hidden = flags & TIDE_OPEN_NEW;
	q->writable = q->is_new || (flags & TIDE_OPEN_WRITE);
	q->late = flags & TIDE_OPEN_LATER;
	q->salvage = (flags & TIDE_OPEN_SALVAGE) && !q->writable;
	pthread_mutex_init(&q->lock, NULL);
	if (open_state(q, err) < 0 || tide_qcow2_header_info(fd, &q->header, info, err) < 0 ||
	    tide_qcow2_bitmap_info(q, info, err) < 0)
		return -1;
	*state = q;
	q = NULL;
	return 0;
}

const struct tide_image_driver tide_qcow2_driver = {
	.name = "qcow2",
	.has_backing = true,
	.settings = tide_qcow2_settings,
	.probe = tide_qcow2_header_probe,
	.create = tide_qcow2_create_image,
	.open = open_image,
	.set_data_file = tide_qcow2_data_set_file,
	.close = close_image,
	.flush = tide_qcow2_flush_image,
	.extent = tide_qcow2_read_extent,
	.read = tide_qcow2_compressed_read,
	.write_begin = tide_qcow2_write_begin,
	.write_commit = tide_qcow2_write_commit,
	.write_abort = tide_qcow2_write_abort,
	.zero = tide_qcow2_zero_range,
	.can_zero_fast = tide_qcow2_can_zero_fast,
	.set_exact_size = tide_qcow2_ext_set_exact_size,
	.set_fingerprint = tide_qcow2_ext_set_fingerprint,
	.set_birth = tide_qcow2_ext_set_birth,
	.sums_range = tide_qcow2_sums_range,
	.sums_store = tide_qcow2_sums_store,
	.sums_load = tide_qcow2_sums_load,
	.sums_use = tide_qcow2_sums_use,
	.sums_disk = tide_qcow2_sums_disk,
	.packer_new = tide_qcow2_pack_new,
	.packer_free = tide_qcow2_pack_free,
	.pack = tide_qcow2_pack_cluster,
	.write_packed = tide_qcow2_pack_write,
	.check = tide_qcow2_check,
	.snapshots = tide_qcow2_snapshot_list,
	.bitmap_reclaim = tide_qcow2_bitmap_reclaim,
	.bitmap_read = tide_qcow2_bitmap_read,
	.bitmaps_token = tide_qcow2_stage_token,
	.bitmaps_stage = tide_qcow2_stage_bitmaps,
	.bitmaps_commit = tide_qcow2_stage_commit,
	.bitmaps_abort = tide_qcow2_stage_abort,
};
