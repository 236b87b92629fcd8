/*
 * Reading a damaged chain for rescue: a range that damage or a bad disk makes unreadable reads as zeroes, and is
 * recorded. So is a range that only an image that is missing, or those below it, can hold: what they held, and whether
 * they did, is unknown. Errors with another cause, such as a lack of memory or a server that has gone, remain errors.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/mem.h"
#include "base/range.h"
#include "base/sysio.h"
#include "image_impl.h"

#define SECTOR 512u

struct tide_salvage {
	struct tide_bitmap *lost; /* of the disk, in sectors */
	pthread_mutex_t lock;
	struct tide_error first; /* the error of the first range that was lost */
};

int tide_image_salvage_begin(struct tide_image *image, struct tide_error *err)
{
	struct tide_salvage *s = tide_mem_alloc(1, sizeof(*s), err);

	if (!s)
		return -1;
	s->lost = tide_bitmap_new(image->info.size, SECTOR, err);
	if (!s->lost) {
		free(s);
		return -1;
	}
	pthread_mutex_init(&s->lock, NULL);
	image->salvage = s;
	return 0;
}

void tide_image_salvage_free(struct tide_salvage *s)
{
	if (!s)
		return;
	tide_bitmap_free(s->lost);
	tide_error_release(&s->first);
	pthread_mutex_destroy(&s->lock);
	free(s);
}

const struct tide_bitmap *tide_image_salvage_lost(const struct tide_image *image)
{
	return image->salvage->lost;
}

const struct tide_error *tide_image_salvage_first(const struct tide_image *image)
{
	return &image->salvage->first;
}

static bool is_damage(const struct tide_error *cause)
{
	switch (cause->sys) {
	case EIO:
	case EREMOTEIO:
	case ENODATA:
	case EBADMSG:
	case EUCLEAN:
	case EILSEQ:
		return true;
	default:
		return cause->code == TIDE_E_CORRUPT;
	}
}

bool tide_image_salvage_may(const struct tide_error *cause)
{
	return is_damage(cause) || cause->sys == ENOENT || cause->sys == ENOTDIR;
}

int tide_image_salvage_lose(const struct tide_image *image, uint64_t off, uint64_t len, struct tide_error *cause,
                            struct tide_error *err)
{
	struct tide_salvage *s = image->salvage;

	if (!s || !is_damage(cause))
		return tide_error_move(err, cause);
	if (tide_bitmap_set(s->lost, off, len, err) < 0) {
		tide_error_release(cause);
		return -1;
	}
	pthread_mutex_lock(&s->lock);
	if (!s->first.code)
		tide_error_move(&s->first, cause);
	pthread_mutex_unlock(&s->lock);
	tide_error_release(cause);
	return 0;
}

/* Loses a range for a reason that was found when the chain was opened. */
static int lose(const struct tide_image *image, uint64_t off, uint64_t len, const struct tide_error *why,
                struct tide_error *err)
{
	struct tide_error cause = TIDE_ERROR_INIT;

	tide_error_set(&cause, TIDE_E_CORRUPT, "%s", why->msg);
	return tide_image_salvage_lose(image, off, len, &cause, err) < 0 ? -1 : 1;
}

/* The size of the image below that could not be opened, if it is known: only a raw file's is. */
static uint64_t size_below(const struct tide_image *link)
{
	const struct tide_fingerprint *made_on = link->info.fingerprint;
	const char *format = link->info.backing_format;

	return made_on && made_on->has_file && format && tide_image_is_raw_format(format) ? made_on->stamp.size
	                                                                                  : UINT64_MAX;
}

int tide_image_salvage_below(const struct tide_image *image, const struct tide_image *link, uint64_t off, uint64_t *len,
                             struct tide_error *err)
{
	uint64_t end = size_below(link);

	if (link->backing || !link->broken.code || off >= end)
		return 0;
	*len = TIDE_MIN(*len, end - off);
	return lose(image, off, *len, &link->broken, err);
}

int tide_image_salvage_end(const struct tide_image *image, const struct tide_image *link, uint64_t off, uint64_t *len,
                           struct tide_error *err)
{
	const struct tide_image *above = image;

	if (off >= link->uncut_size)
		return 0;
	while (above->backing != link)
		above = above->backing;
	*len = TIDE_MIN(*len, link->uncut_size - off);
	return lose(image, off, *len, &above->broken, err);
}

int tide_image_salvage_extent(const struct tide_image *image, const struct tide_image *link, uint64_t off, uint64_t len,
                              struct tide_extent *out, struct tide_error *cause, struct tide_error *err)
{
	uint64_t unit = TIDE_MAX(link->info.cluster_size, SECTOR);

	len = TIDE_MIN(len, tide_range_align_down(off, unit) + unit - off);
	*out = (struct tide_extent){ .off = off, .len = len, .kind = TIDE_EXTENT_ZERO, .map_fd = -1 };
	return tide_image_salvage_lose(image, off, len, cause, err);
}

int tide_image_salvage_read(struct tide_image *image, struct tide_image *owner, const struct tide_extent *e,
                            uint8_t *buf, struct tide_error *err)
{
	/* The least that can be read by itself: a compressed cluster is lost as a whole. */
	uint64_t unit = e->mapped ? SECTOR : TIDE_MAX(owner->info.cluster_size, SECTOR);

	for (uint64_t done = 0, n; done < e->len; done += n) {
		struct tide_extent part = *e;
		struct tide_error cause = TIDE_ERROR_INIT;

		n = tide_range_align_down(e->off + done, unit) + unit - (e->off + done);
		n = TIDE_MIN(n, e->len - done);
		part.off += done;
		part.map_off += done;
		part.len = n;
		if (tide_image_read_extent(owner, &part, buf + done, &cause) == 0)
			continue;
		memset(buf + done, 0, n);
		if (tide_image_salvage_lose(image, part.off, n, &cause, err) < 0)
			return -1;
	}
	return 0;
}
