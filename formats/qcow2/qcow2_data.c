/*
 * The external data file of an image: sets it, checks that it is open before the disk's bytes are
 * used, gives it the disk's length, and zeroes and syncs it.
 */
#include <errno.h>
#include <inttypes.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"
#include "base/sysio.h"
#include "qcow2.h"

/*
 * Gives the file its length. If the file alone is also the disk (data_is_raw), all its clusters are allocated, so
 * that this stays true.
 */
static int start_new(struct tide_qcow2 *q, struct tide_error *err)
{
	struct tide_extent all = { .len = q->size, .kind = TIDE_EXTENT_DATA, .mapped = true, .map_fd = q->data_fd };

	if (tide_qcow2_data_prepare(q, err) < 0)
		return -1;
	return q->data_is_raw && q->size ? tide_qcow2_write_commit(q, &all, err) : 0;
}

int tide_qcow2_data_set_file(void *state, int fd, struct tide_error *err)
{
	struct tide_qcow2 *q = state;

	if (!q->has_data_file)
		return tide_error_set(err, TIDE_E_REFUSED,
		                      "'data-file' can only be set for images with an external data file");
	if (tide_sysio_size(fd, &q->data_size, err) < 0)
		return -1;
	q->data_fd = fd;
	if (q->data_is_raw && !q->is_new && !q->salvage && q->data_size < q->size)
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "The external data file '%s' was cut: it has %" PRIu64
		                      " bytes, fewer than the disk's %" PRIu64,
		                      q->header.data_file, q->data_size, q->size);
	return q->is_new ? start_new(q, err) : 0;
}

int tide_qcow2_data_check(const struct tide_qcow2 *q, struct tide_error *err)
{
	if (q->data_fd < 0 && !q->salvage)
		return tide_error_set(err, TIDE_E_REFUSED, "The external data file '%s' is not open",
		                      q->header.data_file);
	return 0;
}

int tide_qcow2_data_prepare(struct tide_qcow2 *q, struct tide_error *err)
{
	struct stat st;

	if (!q->has_data_file)
		return 0;
	if (tide_qcow2_data_check(q, err) < 0)
		return -1;
	if (q->data_size >= q->size)
		return 0;
	if (fstat(q->data_fd, &st) < 0)
		return tide_error_set_sys(err, errno, "fstat");
	/* Extended, a file that was cut would read as zeroes where it lost bytes. */
	if (!S_ISREG(st.st_mode) || !q->is_new) {
		tide_error_set(err, TIDE_E_REFUSED,
		               "The external data file '%s' has %" PRIu64 " bytes, fewer than the disk's %" PRIu64,
		               q->header.data_file, q->data_size, q->size);
		return tide_error_hint(err, "if nothing was cut off, extend it: truncate -s %" PRIu64 " FILE", q->size);
	}
	if (ftruncate(q->data_fd, (off_t)q->size) < 0)
		return tide_error_set_sys(err, errno, "Could not extend the external data file to %" PRIu64 " bytes",
		                          q->size);
	q->data_size = q->size;
	return 0;
}

int tide_qcow2_data_zero(struct tide_qcow2 *q, uint64_t off, uint64_t len, bool may_unmap, struct tide_error *err)
{
	if (!q->has_data_file || (!may_unmap && !q->data_is_raw))
		return 0;
	if (tide_qcow2_flush_prepare(q, err) < 0)
		return -1;
	return tide_sysio_zero(q->data_fd, off, len, may_unmap, err);
}

int tide_qcow2_data_sync(const struct tide_qcow2 *q, struct tide_error *err)
{
	return q->has_data_file && q->data_fd >= 0 ? tide_sysio_fdatasync(q->data_fd, err) : 0;
}
