/*
 * The long-lived writer: struct tide_tracker of tidemark.h.
 *
 * The write log records (node_log.h): a bit is set before the data is written.  Requests come from several threads, and
 * the image layer forbids concurrent writes that share a cluster.  So in formats with clusters a request holds the
 * stripes of its clusters, a fixed number of locks that all clusters share: readers together, writers alone, taken in
 * ascending order.  A raw image needs no locks: the client is responsible for overlapping requests.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/event.h"
#include "base/mem.h"
#include "base/range.h"
#include "base/sized.h"
#include "node/node_log.h"
#include "store/write_log.h"

enum { STRIPES = 64 };

struct tide_tracker {
	struct tide_sink sink;
	struct tide_node *node;
	struct tide_image *image;
	bool recording; /* the log is active */
	bool clustered;
	bool is_distrusted; /* the log says that others wrote; changed with flush locked */
	pthread_mutex_t flush;
	pthread_rwlock_t stripes[STRIPES];
};

/* ---- opening and closing ---- */

static bool has_bitmaps(const struct tide_node *node)
{
	return (node->has_sidecar && node->in_sidecar.list->n > 0) || tide_sidecar_records(node->in_image.list);
}

static bool records(const struct tide_node *node)
{
	return tide_sidecar_records(node->in_sidecar.list) || tide_sidecar_records(node->in_image.list);
}

static int begin(struct tide_tracker *t, const struct tide_tracker_options *options, struct tide_error *err)
{
	struct tide_node *node = t->node;
	bool durable = options->durability == TIDE_DURABILITY_POWER;

	if (tide_node_log_prepare(node, &t->sink, err) < 0)
		return -1;
	if (!records(node))
		tide_event_warning(&t->sink, node->path, "no bitmap records the writes");
	if (!has_bitmaps(node))
		return 0;
	t->recording = true;
	return tide_node_log_begin(node, durable, true, err);
}

static void tracker_free(struct tide_tracker *t)
{
	tide_node_free(t->node);
	tide_event_release(&t->sink);
	pthread_mutex_destroy(&t->flush);
	for (unsigned i = 0; i < STRIPES; i++)
		pthread_rwlock_destroy(&t->stripes[i]);
	free(t);
}

static struct tide_tracker *tracker_new(const struct tide_drive *drive, const struct tide_tracker_options *options,
                                        struct tide_error *err)
{
	struct tide_tracker *t = tide_mem_alloc(1, sizeof(*t), err);
	struct tide_session_options to = { .data = options->data, .warning = options->warning };

	if (!t)
		return NULL;
	tide_event_init(&t->sink, &to);
	pthread_mutex_init(&t->flush, NULL);
	for (unsigned i = 0; i < STRIPES; i++)
		pthread_rwlock_init(&t->stripes[i], NULL);
	t->node = tide_node_new(drive, err);
	if (t->node)
		return t;
	tracker_free(t);
	return NULL;
}

static int open_tracker(const struct tide_drive *drive, const struct tide_tracker_options *options,
                        struct tide_tracker **tracker, struct tide_error *err)
{
	enum tide_node_mode mode = options->read_only ? TIDE_NODE_READ : TIDE_NODE_WRITE_DATA;
	struct tide_tracker *t;

	if (drive->format && !tide_image_find_driver(drive->format))
		return tide_error_set(err, TIDE_E_REFUSED, "Unknown driver '%s'", drive->format);
	t = tracker_new(drive, options, err);
	if (!t)
		return -1;
	if (tide_node_open(t->node, mode, false, &t->sink, err) < 0 ||
	    (!options->read_only && begin(t, options, err) < 0)) {
		tracker_free(t);
		return -1;
	}
	t->image = t->node->image;
	t->clustered = tide_image_info(t->image)->cluster_size > 1;
	*tracker = t;
	return 0;
}

int tide_tracker_open_sized(const struct tide_drive *drive, size_t drive_size,
                            const struct tide_tracker_options *options, size_t size, struct tide_tracker **tracker,
                            struct tide_error *err)
{
	struct tide_drive own_drive;
	struct tide_tracker_options own;

	if (tide_sized_take(&own_drive, sizeof(own_drive), drive, drive_size, err) < 0 ||
	    tide_sized_take(&own, sizeof(own), options, size, err) < 0)
		return -1;
	return open_tracker(&own_drive, &own, tracker, err);
}

/* The bits become durable before the data that they stand for. */
static int flush(struct tide_tracker *t, struct tide_error *err)
{
	int rc;

	if (t->recording && tide_write_log_sync(t->node->log.file, err) < 0)
		return -1;
	pthread_mutex_lock(&t->flush);
	rc = tide_image_flush(t->image, err);
	pthread_mutex_unlock(&t->flush);
	return rc;
}

/* Another program wrote to the image.  Stored at once: this one may be killed before it can say so. */
static int distrust(struct tide_tracker *t, struct tide_error *err)
{
	int rc = 0;

	if (!t->recording || !tide_image_others_wrote(t->image))
		return 0;
	pthread_mutex_lock(&t->flush);
	if (!t->is_distrusted) {
		t->is_distrusted = true;
		tide_event_warning(&t->sink, t->node->path,
		                   "another program wrote to the image while it was served; its bitmaps are "
		                   "inconsistent now");
		rc = tide_node_log_distrust(t->node, err);
	}
	pthread_mutex_unlock(&t->flush);
	return rc;
}

/* The log must stay until the data and the times of the image are durable. */
static int end(struct tide_tracker *t, struct tide_error *err)
{
	if (t->node->mode != TIDE_NODE_WRITE_DATA)
		return 0;
	if (flush(t, err) < 0 || tide_image_sync_times(t->image, err) < 0 || distrust(t, err) < 0)
		return -1;
	return t->recording ? tide_node_log_end(t->node, &t->sink, err) : 0;
}

int tide_tracker_close(struct tide_tracker *t, struct tide_error *err)
{
	int rc = end(t, err);

	tracker_free(t);
	return rc;
}

void tide_tracker_get_info_sized(const struct tide_tracker *t, struct tide_tracker_info *info, size_t size)
{
	const struct tide_driver_info *d = tide_image_info(t->image);

	struct tide_tracker_info full = {
		.size = tide_image_size(t->image),
		.cluster_size = d->cluster_size,
		.read_only = t->node->mode != TIDE_NODE_WRITE_DATA,
		.recording = t->recording && records(t->node),
		.fast_zero = tide_image_can_zero_fast(t->image, true),
		.format = tide_image_format_name(t->image),
	};

	memset(info, 0, size);
	memcpy(info, &full, TIDE_MIN(size, sizeof(full)));
}

/* ---- requests ---- */

/* Gives the error an errno, which the plugin sends to its client. */
static int failed(struct tide_error *err)
{
	if (err && !err->sys)
		err->sys = err->code == TIDE_E_NOMEM ? ENOMEM : EIO;
	return -1;
}

static int check(const struct tide_tracker *t, uint64_t off, uint64_t len, bool write, struct tide_error *err)
{
	uint64_t size = tide_image_size(t->image);
	bool within = tide_range_is_within(off, len, size);

	if (within && (!write || t->node->mode == TIDE_NODE_WRITE_DATA))
		return 0;
	if (within)
		return tide_error_set_sys(err, EROFS, "The image is open for reading only");
	return tide_error_set_sys(err, write ? ENOSPC : EINVAL,
	                          "The range %" PRIu64 "+%" PRIu64 " does not lie within the disk of %" PRIu64 " bytes",
	                          off, len, size);
}

/* Bit i: the clusters of the range need stripe i. */
static uint64_t stripes_of(const struct tide_tracker *t, uint64_t off, uint64_t len)
{
	unsigned shift = tide_range_shift(tide_image_info(t->image)->cluster_size);
	uint64_t first = off >> shift, n = ((off + len - 1) >> shift) - first + 1, mask;

	if (n >= STRIPES)
		return UINT64_MAX;
	mask = (UINT64_C(1) << n) - 1;
	first %= STRIPES;
	return first ? mask << first | mask >> (STRIPES - first) : mask;
}

/* Locks the stripes in ascending order, so that two requests never wait for each other. */
static uint64_t lock(struct tide_tracker *t, uint64_t off, uint64_t len, bool write)
{
	uint64_t wanted = t->clustered && len ? stripes_of(t, off, len) : 0;

	for (uint64_t left = wanted; left; left &= left - 1) {
		pthread_rwlock_t *stripe = &t->stripes[__builtin_ctzll(left)];

		if (write)
			pthread_rwlock_wrlock(stripe);
		else
			pthread_rwlock_rdlock(stripe);
	}
	return wanted;
}

static void unlock(struct tide_tracker *t, uint64_t held)
{
	for (; held; held &= held - 1)
		pthread_rwlock_unlock(&t->stripes[__builtin_ctzll(held)]);
}

int tide_tracker_read(struct tide_tracker *t, void *buf, uint64_t off, uint64_t len, struct tide_error *err)
{
	uint64_t held;
	int rc;

	if (check(t, off, len, false, err) < 0)
		return failed(err);
	held = lock(t, off, len, false);
	rc = tide_image_read(t->image, buf, off, len, err);
	unlock(t, held);
	return rc < 0 ? failed(err) : 0;
}

enum change { WRITE, ZERO, TRIM };

static int change_locked(struct tide_tracker *t, enum change kind, const void *buf, uint64_t off, uint64_t len,
                         unsigned flags, struct tide_error *err)
{
	switch (kind) {
	case WRITE:
		return tide_image_write(t->image, buf, off, len, err);
	case ZERO:
		return tide_image_zero(t->image, off, len, flags & TIDE_TRACKER_MAY_TRIM, err);
	default:
		return tide_image_discard(t->image, off, len, err);
	}
}

/* The only function that changes the image: it records the range first. */
static int change(struct tide_tracker *t, enum change kind, const void *buf, uint64_t off, uint64_t len, unsigned flags,
                  struct tide_error *err)
{
	uint64_t held;
	int rc;

	if (check(t, off, len, true, err) < 0)
		return failed(err);
	if (len == 0)
		return 0;
	if (t->recording && tide_write_log_set(t->node->log.file, off, len, NULL, err) < 0)
		return failed(err);
	held = lock(t, off, len, true);
	rc = change_locked(t, kind, buf, off, len, flags, err);
	unlock(t, held);
	if (rc == 0)
		rc = distrust(t, err);
	if (rc == 0 && (flags & TIDE_TRACKER_FUA))
		rc = flush(t, err);
	return rc < 0 ? failed(err) : 0;
}

int tide_tracker_write(struct tide_tracker *t, const void *buf, uint64_t off, uint64_t len, unsigned flags,
                       struct tide_error *err)
{
	return change(t, WRITE, buf, off, len, flags, err);
}

int tide_tracker_zero(struct tide_tracker *t, uint64_t off, uint64_t len, unsigned flags, struct tide_error *err)
{
	uint64_t cluster = TIDE_MAX(tide_image_info(t->image)->cluster_size, 1);
	uint64_t unaligned = (off | len) & (cluster - 1);
	bool may_unmap = flags & TIDE_TRACKER_MAY_TRIM;

	if ((flags & TIDE_TRACKER_FAST_ZERO) && (unaligned || !tide_image_can_zero_fast(t->image, may_unmap)))
		return tide_error_set_sys(err, EOPNOTSUPP, "This range cannot be zeroed without writing data");
	return change(t, ZERO, NULL, off, len, flags, err);
}

int tide_tracker_trim(struct tide_tracker *t, uint64_t off, uint64_t len, unsigned flags, struct tide_error *err)
{
	return change(t, TRIM, NULL, off, len, flags, err);
}

int tide_tracker_flush(struct tide_tracker *t, struct tide_error *err)
{
	if (t->node->mode != TIDE_NODE_WRITE_DATA)
		return 0;
	return flush(t, err) < 0 ? failed(err) : 0;
}

static int extent(struct tide_tracker *t, uint64_t off, uint64_t len, struct tide_extent *e, struct tide_error *err)
{
	uint64_t held;
	int rc;

	if (check(t, off, len, false, err) < 0 || len == 0)
		return len ? -1 : tide_error_set_sys(err, EINVAL, "An empty range has no extent");
	held = lock(t, off, len, false);
	rc = tide_image_extent(t->image, off, len, e, err);
	unlock(t, held);
	return rc;
}

int tide_tracker_cache(struct tide_tracker *t, uint64_t off, uint64_t len, struct tide_error *err)
{
	while (len) {
		struct tide_extent e;

		if (extent(t, off, len, &e, err) < 0)
			return failed(err);
		if (e.mapped)
			posix_fadvise(e.map_fd, (off_t)e.map_off, (off_t)e.len, POSIX_FADV_WILLNEED);
		off += e.len;
		len -= e.len;
	}
	return 0;
}

int tide_tracker_extent(struct tide_tracker *t, uint64_t off, uint64_t len, unsigned *kind, uint64_t *n,
                        struct tide_error *err)
{
	struct tide_extent e;

	if (extent(t, off, len, &e, err) < 0)
		return failed(err);
	*kind = e.kind == TIDE_EXTENT_DATA ? 0 : TIDE_EXTENT_IS_HOLE | TIDE_EXTENT_IS_ZERO;
	*n = e.len;
	return 0;
}
