/*
 * The exact size of the disk in the header of an image that exists already.
 *
 * An extension that the header has is changed in place: eight bytes of one sector. Without one, a new
 * extension takes the place of the end mark. The backing file's name, which follows the extensions, is in the
 * way; it moves first, a copy to free bytes, then the eight bytes of its offset. Then everything of the
 * extension but its type and length is written, with a new end mark, and these eight bytes last, over the old
 * end mark. A sync separates the steps, and after each of them the header is valid.
 */
#include <inttypes.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "base/range.h"
#include "base/sysio.h"
#include "qcow2.h"

#define EXTENSION_HEAD 8u
#define EXACT_BYTES    8u
#define NEED           (EXTENSION_HEAD + EXACT_BYTES + EXTENSION_HEAD) /* with the end mark */

enum { AT_BACKING = 8, AT_BACKING_LEN = 16, AT_HEADER_LENGTH = 100 };

/* The first cluster. */
struct head {
	const uint8_t *data;
	uint64_t size;
	uint64_t name, name_len; /* of the backing file; 0, 0: no name */
	uint64_t exact;          /* the offset of the exact size; 0: none */
	uint64_t end;            /* the offset of the end mark */
};

static int write_synced(const struct tide_qcow2 *q, const void *buf, size_t len, uint64_t off, struct tide_error *err)
{
	if (tide_sysio_pwrite(q->fd, buf, len, off, err) < 0)
		return -1;
	return tide_sysio_fdatasync(q->fd, err);
}

static int read_head(const struct tide_qcow2 *q, uint8_t *data, struct head *h, struct tide_error *err)
{
	uint64_t off, limit, len;

	*h = (struct head){ .data = data, .size = q->cluster_size };
	if (tide_sysio_pread(q->fd, data, h->size, 0, true, err) < 0)
		return -1;
	off = q->header.version < 3 ? TIDE_QCOW2_HEADER_V2 : tide_get_be32(data + AT_HEADER_LENGTH);
	h->name = tide_get_be64(data + AT_BACKING);
	h->name_len = h->name ? tide_get_be32(data + AT_BACKING_LEN) : 0;
	if (off > h->size || !tide_range_is_within(h->name, h->name_len, h->size))
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "The header has changed since the image was opened: its length is %" PRIu64
		                      ", the backing file name's offset %" PRIu64,
		                      off, h->name);
	limit = h->name ? h->name : h->size;
	for (; off + EXTENSION_HEAD <= limit && tide_get_be32(data + off) != TIDE_QCOW2_EXT_END;
	     off += EXTENSION_HEAD + tide_range_align_up(len, 8)) {
		len = tide_get_be32(data + off + 4);
		if (tide_get_be32(data + off) == TIDE_QCOW2_EXT_EXACT_SIZE && len == EXACT_BYTES &&
		    off + EXTENSION_HEAD + EXACT_BYTES <= limit)
			h->exact = off + EXTENSION_HEAD;
	}
	h->end = off;
	return 0;
}

/* The new offset of the backing file's name. */
static uint64_t place_name(const struct head *h)
{
	return tide_range_align_up(TIDE_MAX(h->name + h->name_len, h->end + NEED), 8);
}

static int move_name(const struct tide_qcow2 *q, const struct head *h, struct tide_error *err)
{
	uint8_t to[8];

	if (!h->name || h->name >= h->end + NEED)
		return 0;
	tide_put_be64(to, place_name(h));
	if (write_synced(q, h->data + h->name, h->name_len, place_name(h), err) < 0)
		return -1;
	return write_synced(q, to, sizeof(to), AT_BACKING, err);
}

static int insert(const struct tide_qcow2 *q, const struct head *h, uint64_t size, struct tide_error *err)
{
	uint64_t last = h->name && h->name < h->end + NEED ? place_name(h) + h->name_len : h->end + NEED;
	uint8_t ext[NEED] = { 0 };

	if (last > h->size) {
		tide_error_set(err, TIDE_E_UNSUPPORTED,
		               "The image's header has no room for the exact size of the disk, %" PRIu64
		               " bytes: it needs %" PRIu64 " bytes, and the cluster has %" PRIu64,
		               size, last, h->size);
		return tide_error_hint(err, "create an image with larger clusters, or let the command create it");
	}
	tide_put_be32(ext, TIDE_QCOW2_EXT_EXACT_SIZE);
	tide_put_be32(ext + 4, EXACT_BYTES);
	tide_put_be64(ext + EXTENSION_HEAD, size);
	if (move_name(q, h, err) < 0 ||
	    write_synced(q, ext + EXTENSION_HEAD, NEED - EXTENSION_HEAD, h->end + EXTENSION_HEAD, err) < 0)
		return -1;
	return write_synced(q, ext, EXTENSION_HEAD, h->end, err);
}

static int set_locked(struct tide_qcow2 *q, uint64_t size, struct tide_error *err)
{
	TIDE_AUTOFREE uint8_t *data = tide_mem_alloc(1, q->cluster_size, err);
	uint8_t exact[EXACT_BYTES];
	struct head h;

	if (!data || tide_qcow2_flush_prepare(q, err) < 0 || read_head(q, data, &h, err) < 0)
		return -1;
	if (!h.exact)
		return insert(q, &h, size, err);
	tide_put_be64(exact, size);
	return write_synced(q, exact, sizeof(exact), h.exact, err);
}

int tide_qcow2_exact_set(void *state, uint64_t size, struct tide_driver_info *info, struct tide_error *err)
{
	struct tide_qcow2 *q = state;
	uint64_t now = q->header.exact_size ? q->header.exact_size : q->size;
	int rc;

	if (tide_range_align_up(size, 512) != q->size)
		return tide_error_set(err, TIDE_E_REFUSED,
		                      "A disk of %" PRIu64 " bytes is not one of %" PRIu64 " bytes, rounded up", size,
		                      q->size);
	if (size == now)
		return 0;
	pthread_mutex_lock(&q->lock);
	rc = set_locked(q, size, err);
	pthread_mutex_unlock(&q->lock);
	if (rc == 0)
		q->header.exact_size = info->exact_size = size;
	return rc;
}
