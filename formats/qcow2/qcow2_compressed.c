/*
 * Reads compressed clusters of the disk: finds them, reads those that are close together in one go,
 * and decompresses each. The compressed data is not trusted; a cluster must decompress to exactly
 * its size.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/compress.h"
#include "base/error.h"
#include "base/mem.h"
#include "base/range.h"
#include "base/sysio.h"
#include "qcow2.h"
#include "qcow2_deflate.h"

/* Clusters whose data is close together are read at once, up to these limits. */
#define BATCH_CLUSTERS 64
#define BATCH_BYTES    (UINT64_C(1) << 20)

struct reader {
	struct tide_qcow2 *q;
	struct libdeflate_decompressor *inflate;
	uint8_t *packed;  /* bytes [from, to) of the file */
	uint8_t *cluster; /* a whole cluster, when the request needs only part of it */
	uint64_t file_size;
	uint64_t from, to;
	uint64_t read; /* the bytes of them that the file has */
	size_t room;
};

static void reader_release(struct reader *r)
{
	tide_qcow2_compressed_release(r->inflate);
	free(r->packed);
	free(r->cluster);
}

int tide_qcow2_compressed_unpack(struct libdeflate_decompressor **inflate, unsigned compression, void *out,
                                 size_t cluster_size, const void *in, size_t len, struct tide_error *err)
{
	if (compression == TIDE_QCOW2_ZSTD)
		return tide_compress_unzstd(out, cluster_size, in, len, false, err);
	if (!*inflate) {
		if (tide_qcow2_deflate_load(err) < 0)
			return -1;
		*inflate = tide_qcow2_deflate.alloc_decompressor();
		if (!*inflate)
			return tide_error_set_nomem(err);
	}
	/* NULL instead of a result length: the result must be exactly one cluster. */
	if (tide_qcow2_deflate.deflate_decompress(*inflate, in, len, out, cluster_size, NULL) != LIBDEFLATE_SUCCESS)
		return tide_error_set(err, TIDE_E_CORRUPT, "expected deflate data of a cluster of %zu bytes",
		                      cluster_size);
	return 0;
}

void tide_qcow2_compressed_release(struct libdeflate_decompressor *inflate)
{
	if (inflate)
		tide_qcow2_deflate.free_decompressor(inflate);
}

static int unpack(struct reader *r, void *out, const struct tide_qcow2_cluster *c, struct tide_error *err)
{
	uint64_t at = c->host - r->from;

	return tide_qcow2_compressed_unpack(&r->inflate, r->q->header.compression, out, r->q->cluster_size,
	                                    r->packed + at, TIDE_MIN(c->len, r->read - at), err);
}

/* Reads the data of clusters [0, n), or of fewer if they are far apart; returns their number, or -1. */
static int fetch(struct reader *r, const struct tide_qcow2_cluster *c, int n, struct tide_error *err)
{
	int i = 1;

	/* NOLINTNEXTLINE(clang-analyzer-core.uninitialized.Assign): a range that is not empty has a cluster */
	r->from = c[0].host;
	r->to = c[0].host + c[0].len;
	while (i < n && c[i].host >= r->from && c[i].host <= r->to && c[i].host + c[i].len - r->from <= BATCH_BYTES) {
		r->to = TIDE_MAX(r->to, c[i].host + c[i].len);
		i++;
	}
	if (r->to - r->from > r->room) {
		free(r->packed);
		r->room = 0;
		r->packed = tide_mem_aligned(4096, r->to - r->from, err);
		if (!r->packed)
			return -1;
		r->room = r->to - r->from;
	}
	/* A cluster may end within its last sector, and the file with it; the bytes that it lacks are not zeroes. */
	r->read = TIDE_MIN(r->to, r->file_size) - r->from;
	if (tide_sysio_pread(r->q->fd, r->packed, r->read, r->from, true, err) < 0 ||
	    tide_qcow2_sums_prove(r->q, r->packed, r->from, r->read, err) < 0)
		return -1;
	return i;
}

/* Looks up the compressed clusters from off on; returns their number, or -1. */
static int look_up(struct reader *r, uint64_t off, uint64_t end, struct tide_qcow2_cluster *c, struct tide_error *err)
{
	struct tide_qcow2 *q = r->q;
	int n = 0, rc = 0;

	pthread_mutex_lock(&q->lock);
	r->file_size = q->file_size;
	for (uint64_t at = tide_range_align_down(off, q->cluster_size); at < end && n < BATCH_CLUSTERS;
	     at += q->cluster_size) {
		rc = tide_qcow2_l2_lookup(q, at, &c[n], err);
		if (rc == 0 && c[n].kind != TIDE_QCOW2_COMPRESSED)
			rc = tide_error_set(err, TIDE_E_REFUSED, "The cluster at %" PRIu64 " is not compressed", at);
		if (rc < 0)
			break;
		n++;
	}
	pthread_mutex_unlock(&q->lock);
	return rc < 0 ? -1 : n;
}

/* Reads the part of the cluster around off that the request covers; *done is its length. */
static int read_cluster(struct reader *r, const struct tide_qcow2_cluster *c, uint8_t *buf, uint64_t off, uint64_t len,
                        uint64_t *done, struct tide_error *err)
{
	uint64_t size = r->q->cluster_size, within = off & (size - 1);

	*done = TIDE_MIN(len, size - within);
	if (*done == size) {
		if (unpack(r, buf, c, err) == 0)
			return 0;
	} else {
		if (!r->cluster)
			r->cluster = tide_mem_aligned(4096, size, err);
		if (!r->cluster)
			return -1;
		if (unpack(r, r->cluster, c, err) == 0) {
			memcpy(buf, r->cluster + within, *done);
			return 0;
		}
	}
	return tide_error_wrap(err, "The compressed cluster at %" PRIu64 " cannot be read", off - within);
}

int tide_qcow2_compressed_get(struct tide_qcow2 *q, const struct tide_qcow2_cluster *c, void *buf,
                              struct tide_error *err)
{
	TIDE_CLEANUP(reader_release) struct reader r = { .q = q, .file_size = q->file_size };

	if (fetch(&r, c, 1, err) < 0)
		return -1;
	if (unpack(&r, buf, c, err) < 0)
		return tide_error_wrap(err, "The compressed cluster at %" PRIu64 " of the file cannot be read",
		                       c->host);
	return 0;
}

int tide_qcow2_compressed_check(struct tide_qcow2 *q, const struct tide_qcow2_cluster *c, struct tide_error *err)
{
	TIDE_CLEANUP(reader_release) struct reader r = { .q = q, .file_size = q->file_size };
	struct tide_error cause = TIDE_ERROR_INIT;
	int rc;

	r.cluster = tide_mem_aligned(4096, q->cluster_size, err);
	if (!r.cluster || fetch(&r, c, 1, err) < 0)
		return -1;
	if (unpack(&r, r.cluster, c, &cause) == 0)
		return 0;
	if (cause.code != TIDE_E_CORRUPT)
		return tide_error_move(err, &cause);
	/* Damage that zeroes do not hide is reported when the cluster is read. */
	memset(r.packed + r.read, 0, r.to - r.from - r.read);
	r.read = r.to - r.from;
	rc = unpack(&r, r.cluster, c, NULL) == 0 ? tide_error_move(err, &cause) : 0;
	tide_error_release(&cause);
	return rc;
}

int tide_qcow2_compressed_read(void *state, void *buf, uint64_t off, uint64_t len, struct tide_error *err)
{
	TIDE_CLEANUP(reader_release) struct reader r = { .q = state };
	struct tide_qcow2_cluster c[BATCH_CLUSTERS];
	uint8_t *p = buf;

	if (!tide_range_is_within(off, len, r.q->size))
		return tide_error_set(err, TIDE_E_REFUSED,
		                      "Cannot read %" PRIu64 " bytes at %" PRIu64 " of a disk of %" PRIu64, len, off,
		                      r.q->size);
	while (len) {
		int n = look_up(&r, off, off + len, c, err);

		if (n >= 0)
			n = fetch(&r, c, n, err);
		if (n < 0)
			return -1;
		for (int i = 0; i < n; i++) {
			uint64_t done;

			if (read_cluster(&r, &c[i], p, off, len, &done, err) < 0)
				return -1;
			p += done;
			off += done;
			len -= done;
		}
	}
	return 0;
}
