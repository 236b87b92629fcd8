/*
 * Checked requests to images: extents, reads, writes, zeroing and discarding, through the whole
 * chain. Each request is checked once, here, against the disk's size and the opener's rights.
 * Requests smaller than a cluster, or a subcluster, which a driver may decline, become requests for whole ones.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/error.h"
#include "base/mem.h"
#include "base/range.h"
#include "base/sysio.h"
#include "image_impl.h"

int tide_image_check_write(const struct tide_image *image, struct tide_error *err)
{
	if (!(image->flags & TIDE_OPEN_WRITE) || (image->write_later && !image->write_locked))
		return tide_error_set(err, TIDE_E_REFUSED, "The image is open for reading only");
	return 0;
}

int tide_image_check_range(const struct tide_image *image, uint64_t off, uint64_t len, bool write,
                           struct tide_error *err)
{
	if (!tide_range_is_within(off, len, image->info.size))
		return tide_error_set(err, TIDE_E_REFUSED,
		                      "The range %" PRIu64 "+%" PRIu64 " does not lie within the disk of %" PRIu64
		                      " bytes",
		                      off, len, image->info.size);
	return write ? tide_image_check_write(image, err) : 0;
}

int tide_image_extent_top(struct tide_image *image, uint64_t off, uint64_t len, struct tide_extent *out,
                          struct tide_error *err)
{
	if (tide_image_check_range(image, off, len, false, err) < 0)
		return -1;
	if (image->driver->extent(image->state, off, len, out, err) < 0)
		return tide_error_wrap(err, "'%s'", image->path);
	out->depth = 0;
	return 0;
}

/* Finds the extent at off and the image of the chain that holds it; *owner NULL: no image does, it reads as zeroes. */
static int find_extent(struct tide_image *image, uint64_t off, uint64_t len, struct tide_extent *out,
                       struct tide_image **owner, struct tide_error *err)
{
	struct tide_image *top = image;
	unsigned depth = 0;

	*owner = NULL;
	for (; image; image = image->backing, depth++) {
		struct tide_error cause = TIDE_ERROR_INIT;

		if (off >= image->info.size) { /* an overlay may be larger than its backing image */
			if (top->salvage && tide_image_salvage_end(top, image, off, &len, err) < 0)
				return -1;
			break;
		}
		len = TIDE_MIN(len, image->info.size - off);
		if (image->driver->extent(image->state, off, len, out, top->salvage ? &cause : err) < 0) {
			if (!top->salvage)
				return tide_error_wrap(err, "'%s'", image->path);
			tide_error_wrap(&cause, "'%s'", image->path);
			if (tide_image_salvage_extent(top, image, off, len, out, &cause, err) < 0)
				return -1;
		}
		out->depth = depth;
		len = out->len;
		if (out->kind != TIDE_EXTENT_HOLE) {
			*owner = image;
			return 0;
		}
		if (top->salvage && tide_image_salvage_below(top, image, off, &len, err) < 0)
			return -1;
	}
	*out = (struct tide_extent){ .off = off, .len = len, .kind = TIDE_EXTENT_HOLE, .depth = depth ? depth - 1 : 0 };
	return 0;
}

int tide_image_extent(struct tide_image *image, uint64_t off, uint64_t len, struct tide_extent *out,
                      struct tide_error *err)
{
	struct tide_image *owner;

	if (tide_image_check_range(image, off, len, false, err) < 0)
		return -1;
	return find_extent(image, off, len, out, &owner, err);
}

int tide_image_read_extent(struct tide_image *owner, const struct tide_extent *e, uint8_t *buf, struct tide_error *err)
{
	int rc;

	if (!owner || e->kind != TIDE_EXTENT_DATA) {
		memset(buf, 0, e->len);
		return 0;
	}
	if (e->mapped) {
		rc = tide_sysio_pread(e->map_fd, buf, e->len, e->map_off, true, err);
		if (rc == 0 && owner->proof)
			return tide_image_prove_bytes(owner, e->map_fd, buf, e->map_off, e->off, e->len, err);
	} else {
		rc = owner->driver->read(owner->state, buf, e->off, e->len, err);
	}
	return rc < 0 ? tide_error_wrap(err, "'%s'", owner->path) : 0;
}

static int read_extent(struct tide_image *image, struct tide_image *owner, const struct tide_extent *e, uint8_t *buf,
                       struct tide_error *err)
{
	if (!image->salvage)
		return tide_image_read_extent(owner, e, buf, err);
	return tide_image_read_extent(owner, e, buf, NULL) == 0 ? 0
	                                                        : tide_image_salvage_read(image, owner, e, buf, err);
}

int tide_image_read(struct tide_image *image, void *buf, uint64_t off, uint64_t len, struct tide_error *err)
{
	uint8_t *p = buf;

	if (off <= image->info.size && len > image->info.size - off) {
		uint64_t within = image->info.size - off;

		memset(p + within, 0, len - within);
		len = within;
	}
	if (tide_image_check_range(image, off, len, false, err) < 0)
		return -1;
	while (len) {
		struct tide_image *owner;
		struct tide_extent e;

		if (find_extent(image, off, len, &e, &owner, err) < 0 || read_extent(image, owner, &e, p, err) < 0)
			return -1;
		p += e.len;
		off += e.len;
		len -= e.len;
	}
	return 0;
}

bool tide_image_is_zero(struct tide_image *image, uint64_t off, uint64_t len)
{
	uint8_t buf[512];

	return len <= sizeof(buf) && tide_image_read(image, buf, off, len, NULL) == 0 && tide_sysio_is_zero(buf, len);
}

int tide_image_write_begin(struct tide_image *image, uint64_t off, uint64_t len, struct tide_extent *place,
                           struct tide_error *err)
{
	int rc;

	if (tide_image_check_range(image, off, len, true, err) < 0)
		return -1;
	if (image->driver->write)
		return 1;
	rc = image->driver->write_begin(image->state, off, len, place, err);
	return rc < 0 ? tide_error_wrap(err, "'%s'", image->path) : rc;
}

int tide_image_write_commit(struct tide_image *image, const struct tide_extent *place, struct tide_error *err)
{
	if (image->driver->write_commit(image->state, place, err) == 0)
		return 0;
	tide_image_sums_forget(image, place);
	return tide_error_wrap(err, "'%s'", image->path);
}

void tide_image_write_abort(struct tide_image *image, const struct tide_extent *place)
{
	tide_image_sums_forget(image, place);
	image->driver->write_abort(image->state, place);
}

static int write_place(struct tide_image *image, const struct tide_extent *place, const void *buf,
                       struct tide_error *err)
{
	if (tide_sysio_pwrite(place->map_fd, buf, place->len, place->map_off, err) < 0) {
		tide_image_write_abort(image, place);
		return tide_error_wrap(err, "'%s'", image->path);
	}
	tide_image_sums_note(image, place->map_fd, buf, place->map_off, place->len);
	return tide_image_write_commit(image, place, err);
}

static int write_whole(struct tide_image *image, const uint8_t *buf, uint64_t off, uint64_t len, struct tide_error *err)
{
	while (len) {
		struct tide_extent place;
		int rc = tide_image_write_begin(image, off, len, &place, err);

		if (rc > 0)
			return tide_error_set(err, TIDE_E_CORRUPT,
			                      "'%s': whole clusters at %" PRIu64 " cannot be written", image->path,
			                      off);
		if (rc < 0 || write_place(image, &place, buf, err) < 0)
			return -1;
		buf += place.len;
		off += place.len;
		len -= place.len;
	}
	return 0;
}

/*
 * Writes part of the cluster, or subcluster, at off by rewriting all of it; *done is the number of bytes of the
 * request that this wrote.
 */
static int write_part(struct tide_image *image, const void *buf, uint64_t off, uint64_t len, uint64_t *done,
                      struct tide_error *err)
{
	uint64_t unit = tide_image_write_unit(image);
	uint64_t start = tide_range_align_down(off, unit);
	uint64_t whole = TIDE_MIN(unit, image->info.size - start);
	TIDE_AUTOFREE uint8_t *bounce = tide_mem_aligned(4096, unit, err);

	if (!bounce)
		return -1;
	*done = TIDE_MIN(len, start + whole - off);
	if (tide_image_read(image, bounce, start, whole, err) < 0)
		return -1;
	memcpy(bounce + (off - start), buf, *done);
	return write_whole(image, bounce, start, whole, err);
}

static int write_checked(struct tide_image *image, const void *buf, uint64_t off, uint64_t len, struct tide_error *err)
{
	const uint8_t *p = buf;

	if (tide_image_check_range(image, off, len, true, err) < 0)
		return -1;
	if (image->driver->write && image->driver->write(image->state, buf, off, len, err) < 0)
		return tide_error_wrap(err, "'%s'", image->path);
	while (len && !image->driver->write) {
		struct tide_extent place = { .len = 0 };
		uint64_t done = 0;
		int rc = tide_image_write_begin(image, off, len, &place, err);

		if (rc == 0) {
			rc = write_place(image, &place, p, err);
			done = place.len;
		} else if (rc > 0) {
			rc = write_part(image, p, off, len, &done, err);
		}
		if (rc < 0)
			return -1;
		p += done;
		off += done;
		len -= done;
	}
	return 0;
}

/* Reads the n bytes at `at`, as they would be after a write of buf (NULL: of zeroes). */
static int read_ahead(struct tide_image *image, uint8_t *to, uint64_t at, uint64_t n, const uint8_t *buf, uint64_t off,
                      uint64_t len, struct tide_error *err)
{
	uint64_t start = TIDE_MAX(at, off), end = TIDE_MIN(at + n, off + len);

	if (tide_image_read(image, to, at, n, err) < 0)
		return -1;
	if (start < end && buf)
		memcpy(to + (start - at), buf + (start - off), end - start);
	else if (start < end)
		memset(to + (start - at), 0, end - start);
	return 0;
}

/*
 * A probed raw image keeps first and last bytes that are probed as raw; QEMU does it with the first sector. Otherwise
 * its guest could turn it into an image of another format, which names other files, or which no command opens.
 */
static int check_probed(struct tide_image *image, const uint8_t *buf, uint64_t off, uint64_t len,
                        struct tide_error *err)
{
	uint8_t head[TIDE_IMAGE_PROBED] = { 0 }, tail[TIDE_IMAGE_PROBED] = { 0 };
	uint64_t n = TIDE_MIN(sizeof(head), image->info.size);
	const struct tide_image_driver *driver;
	const char *format;

	if (read_ahead(image, head, 0, n, buf, off, len, err) < 0 ||
	    read_ahead(image, tail, image->info.size - n, n, buf, off, len, err) < 0)
		return -1;
	driver = tide_image_judge(head, tail, n, &format);
	if (!format && (!driver || driver->is_raw))
		return 0;
	tide_error_set_sys(err, EPERM, "'%s' would look like an image of format '%s'", image->path,
	                   format ? format : driver->name);
	return tide_error_hint(err,
	                       "its format was derived from its content; if it is a raw disk, specify the format %s",
	                       image->driver->name);
}

/* Before a write of buf (NULL: of zeroes).  1: head_lock is held until it is done; 0: it need not. */
static int guard(struct tide_image *image, const uint8_t *buf, uint64_t off, uint64_t len, struct tide_error *err)
{
	if (!image->probed || !image->driver->is_raw || len == 0 ||
	    (off >= TIDE_IMAGE_PROBED && off + len + TIDE_IMAGE_PROBED <= image->info.size))
		return 0;
	if (tide_image_check_range(image, off, len, true, err) < 0)
		return -1;
	pthread_mutex_lock(&image->head_lock);
	if (check_probed(image, buf, off, len, err) == 0)
		return 1;
	pthread_mutex_unlock(&image->head_lock);
	return -1;
}

static void unguard(struct tide_image *image, int guarded)
{
	if (guarded > 0)
		pthread_mutex_unlock(&image->head_lock);
}

int tide_image_write(struct tide_image *image, const void *buf, uint64_t off, uint64_t len, struct tide_error *err)
{
	int rc = guard(image, buf, off, len, err), guarded = rc;

	if (rc < 0)
		return -1;
	tide_image_change_begin(image, false);
	rc = write_checked(image, buf, off, len, err);
	tide_image_change_end(image, false);
	unguard(image, guarded);
	return rc;
}

/* Zeroes part of one cluster by writing zero bytes, unless it reads as zeroes already. */
static int zero_part(struct tide_image *image, uint64_t off, uint64_t len, struct tide_error *err)
{
	TIDE_AUTOFREE uint8_t *zeroes = NULL;
	struct tide_image *owner;
	struct tide_extent e;

	if (len == 0)
		return 0;
	if (find_extent(image, off, len, &e, &owner, err) < 0)
		return -1;
	if (e.kind != TIDE_EXTENT_DATA && e.len == len)
		return 0;
	zeroes = tide_mem_alloc(len, 1, err);
	return zeroes ? write_checked(image, zeroes, off, len, err) : -1;
}

/* The whole units, a power of two or 0, of a range: [*start, *end); empty when it holds none. */
static void whole_units(const struct tide_image *image, uint64_t unit, uint64_t off, uint64_t len, uint64_t *start,
                        uint64_t *end)
{
	unit = TIDE_MAX(unit, 1);
	*start = tide_range_align_up(off, unit);
	*end = off + len == image->info.size ? off + len : tide_range_align_down(off + len, unit);
	if (*start > *end)
		*start = *end = off + len;
}

/* Zeroes part of one cluster: its whole subclusters as the driver can, the rest by writing zero bytes. */
static int zero_subclusters(struct tide_image *image, uint64_t off, uint64_t len, bool may_unmap,
                            struct tide_error *err)
{
	uint64_t start, end;
	int rc = 1;

	whole_units(image, image->info.subcluster_size, off, len, &start, &end);
	/* In this order, because data in the first part makes a compressed cluster one with subclusters. */
	if (zero_part(image, off, start - off, err) < 0)
		return -1;
	if (start < end)
		rc = image->driver->zero(image->state, start, end - start, may_unmap, err);
	if (rc < 0)
		return tide_error_wrap(err, "'%s'", image->path);
	if (rc > 0 && zero_part(image, start, end - start, err) < 0)
		return -1;
	return zero_part(image, end, off + len - end, err);
}

/* Zeroes a range that contains no whole cluster. */
static int zero_edge(struct tide_image *image, uint64_t off, uint64_t len, bool may_unmap, struct tide_error *err)
{
	uint64_t cluster = image->info.cluster_size, n;

	if (!image->info.subcluster_size)
		return zero_part(image, off, len, err);
	for (; len; off += n, len -= n) {
		n = TIDE_MIN(len, tide_range_align_down(off, cluster) + cluster - off);
		if (zero_subclusters(image, off, n, may_unmap, err) < 0)
			return -1;
	}
	return 0;
}

static int zero_range(struct tide_image *image, uint64_t off, uint64_t len, bool may_unmap, struct tide_error *err)
{
	uint64_t start, end;
	int rc;

	if (tide_image_check_range(image, off, len, true, err) < 0)
		return -1;
	if (len == 0)
		return 0;
	whole_units(image, image->info.cluster_size, off, len, &start, &end);
	if (zero_edge(image, off, start - off, may_unmap, err) < 0)
		return -1;
	if (start < end) {
		rc = image->driver->zero(image->state, start, end - start, may_unmap, err);
		if (rc > 0)
			return tide_error_set(err, TIDE_E_CORRUPT,
			                      "'%s': whole clusters at %" PRIu64 " cannot be zeroed", image->path,
			                      start);
		if (rc < 0)
			return tide_error_wrap(err, "'%s'", image->path);
	}
	return zero_edge(image, end, off + len - end, may_unmap, err);
}

int tide_image_zero(struct tide_image *image, uint64_t off, uint64_t len, bool may_unmap, struct tide_error *err)
{
	int rc = guard(image, NULL, off, len, err), guarded = rc;

	if (rc < 0)
		return -1;
	tide_image_change_begin(image, false);
	rc = zero_range(image, off, len, may_unmap, err);
	tide_image_change_end(image, false);
	unguard(image, guarded);
	return rc;
}

/* The driver may try it, which changes the file's times, and leaves nothing to be written. */
bool tide_image_can_zero_fast(struct tide_image *image, bool may_unmap)
{
	bool can;

	if (!image->driver->can_zero_fast)
		return false;
	tide_image_change_begin(image, false);
	can = image->driver->can_zero_fast(image->state, may_unmap);
	tide_image_change_end(image, true);
	return can;
}

static int discard_range(struct tide_image *image, uint64_t off, uint64_t len, struct tide_error *err)
{
	uint64_t start, end;

	if (tide_image_check_range(image, off, len, true, err) < 0)
		return -1;
	if (len == 0)
		return 0;
	if (image->driver->discard)
		return image->driver->discard(image->state, off, len, err) < 0
		               ? tide_error_wrap(err, "'%s'", image->path)
		               : 0;
	whole_units(image, image->info.cluster_size, off, len, &start, &end);
	return start < end ? zero_range(image, start, end - start, true, err) : 0;
}

int tide_image_discard(struct tide_image *image, uint64_t off, uint64_t len, struct tide_error *err)
{
	int rc = guard(image, NULL, off, len, err), guarded = rc;

	if (rc < 0)
		return -1;
	tide_image_change_begin(image, false);
	rc = discard_range(image, off, len, err);
	tide_image_change_end(image, false);
	unguard(image, guarded);
	return rc;
}
