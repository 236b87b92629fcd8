/*
 * Comparing a disk with the backup that a bitmap seems to count from, where no identifiers prove it: in what the bitmap
 * calls unchanged, both are the same. A difference proves that it is another backup.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "backup.h"
#include "base/error.h"
#include "base/mem.h"
#include "base/range.h"

#define ALL_MAX      (UINT64_C(16) << 20) /* disks of up to this size are compared completely */
#define PIECE_BYTES  65536u
#define SAMPLES      256u
#define SAMPLE_BYTES 4096u
#define SKIPS_MAX    64u /* zero extents that one sample leaps over, in search of data */

struct sample {
	struct tide_image *disk, *backing;
	const struct tide_bitmap *changed;
	uint64_t size; /* of what both have */
	uint8_t *a, *b;
	bool is_partial; /* some of it could not be read */
};

static bool is_zero(struct tide_image *image, uint64_t off, uint64_t len, uint64_t *n)
{
	struct tide_extent x;

	if (tide_image_extent(image, off, len, &x, NULL) < 0)
		return false;
	*n = x.len;
	return x.kind != TIDE_EXTENT_DATA;
}

/* The next block at or after off in which one of the images has data, and which is unchanged; or the end, if none
 * is near. */
static uint64_t next_block(const struct sample *s, uint64_t off)
{
	for (unsigned i = 0; i < SKIPS_MAX && off < s->size; i++) {
		uint64_t n = 0, m = 0, dirty, len = s->size - off;

		if (tide_bitmap_next_dirty(s->changed, off, len, &dirty, &n) && dirty < off + SAMPLE_BYTES) {
			off = tide_range_align_up(dirty + n, SAMPLE_BYTES);
			continue;
		}
		if (!is_zero(s->disk, off, len, &n) || !is_zero(s->backing, off, len, &m))
			return off;
		off = tide_range_align_down(off + TIDE_MAX(TIDE_MIN(n, m), SAMPLE_BYTES), SAMPLE_BYTES);
	}
	return s->size;
}

/* 1: this block differs.  A disk may refuse to be read where nothing has changed, as QEMU's export of a fleecing does.
 */
static int compare_block(struct sample *s, uint64_t off, uint64_t len, struct tide_error *err)
{
	if (tide_image_read(s->disk, s->a, off, len, NULL) < 0) {
		s->is_partial = true;
		return 0;
	}
	if (tide_image_read(s->backing, s->b, off, len, err) < 0)
		return -1;
	return memcmp(s->a, s->b, len) != 0;
}

static int compare_range(struct sample *s, uint64_t off, uint64_t end, struct tide_sink *sink, struct tide_error *err)
{
	int rc = 0;

	for (uint64_t len, n = 0, m = 0; off < end && rc == 0; off += len) {
		if (tide_event_is_cancelled(sink))
			return tide_error_set(err, TIDE_E_CANCELLED, "Cancelled");
		len = TIDE_MIN(PIECE_BYTES, end - off);
		if (is_zero(s->disk, off, end - off, &n) && is_zero(s->backing, off, end - off, &m))
			len = TIDE_MIN(n, m);
		else
			rc = compare_block(s, off, len, err);
	}
	return rc;
}

/* Compares the unchanged ranges in [off, end). */
static int compare_unchanged(struct sample *s, uint64_t off, uint64_t end, struct tide_sink *sink,
                             struct tide_error *err)
{
	int rc = 0;

	for (uint64_t to, dirty, n = 0; off < end && rc == 0; off = to + n) {
		to = end;
		n = 0;
		if (tide_bitmap_next_dirty(s->changed, off, end - off, &dirty, &n))
			to = TIDE_MIN(dirty, end); /* a granule may reach over the end */
		rc = compare_range(s, off, to, sink, err);
	}
	return rc;
}

/* Compares the unchanged ranges that the image holds itself. */
static int compare_own(struct sample *s, struct tide_sink *sink, struct tide_error *err)
{
	struct tide_extent x;
	int rc = 0;

	for (uint64_t off = 0; off < s->size && rc == 0; off += x.len) {
		if (tide_image_extent_top(s->backing, off, s->size - off, &x, err) < 0)
			return -1;
		if (x.kind != TIDE_EXTENT_HOLE)
			rc = compare_unchanged(s, off, off + x.len, sink, err);
	}
	return rc;
}

static uint64_t common_size(struct tide_image *disk, struct tide_image *other, const struct tide_bitmap *changed)
{
	return TIDE_MIN(TIDE_MIN(tide_image_size(disk), tide_image_size(other)), tide_bitmap_size(changed));
}

int tide_backup_compare_all(struct tide_image *disk, struct tide_image *other, const struct tide_bitmap *changed,
                            bool own, struct tide_sink *sink, bool *complete, struct tide_error *err)
{
	TIDE_AUTOFREE uint8_t *buf = tide_mem_alloc(2, PIECE_BYTES, err);
	struct sample s = {
		.disk = disk,
		.backing = other,
		.changed = changed,
		.size = common_size(disk, other, changed),
		.a = buf,
		.b = buf + PIECE_BYTES,
	};
	int rc;

	if (!buf)
		return -1;
	rc = own ? compare_own(&s, sink, err) : compare_unchanged(&s, 0, s.size, sink, err);
	*complete = !s.is_partial;
	return rc;
}

int tide_backup_compare_sample(struct tide_image *disk, struct tide_image *backing, const struct tide_bitmap *changed,
                               struct tide_sink *sink, bool *complete, struct tide_error *err)
{
	TIDE_AUTOFREE uint8_t *buf = tide_mem_alloc(2, PIECE_BYTES, err);
	struct sample s = {
		.disk = disk,
		.backing = backing,
		.changed = changed,
		.size = common_size(disk, backing, changed),
	};
	uint64_t random[SAMPLES];
	int rc = 0;

	if (!buf || getrandom(random, sizeof(random), 0) != (ssize_t)sizeof(random))
		return buf ? tide_error_set_sys(err, errno, "Could not get random bytes") : -1;
	s.a = buf;
	s.b = buf + PIECE_BYTES;
	*complete = s.size <= ALL_MAX;
	if (*complete) {
		rc = compare_unchanged(&s, 0, s.size, sink, err);
		*complete = !s.is_partial;
		return rc;
	}
	/* The first blocks of a disk change with each use of a file system. */
	for (unsigned i = 0; i < SAMPLES && s.size > 0 && rc == 0; i++) {
		uint64_t from = i < 8 ? i * SAMPLE_BYTES : tide_range_align_down(random[i] % s.size, SAMPLE_BYTES);
		uint64_t off = next_block(&s, TIDE_MIN(from, s.size - 1));

		if (off < s.size)
			rc = compare_block(&s, off, TIDE_MIN(SAMPLE_BYTES, s.size - off), err);
	}
	return rc;
}
