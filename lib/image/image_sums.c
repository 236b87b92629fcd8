/*
 * The checksums of an image's stored data: collected while it is written, stored with it, and compared with what is
 * read from the images of a chain.
 */
#include <inttypes.h>
#include <sys/stat.h>

#include "base/error.h"
#include "base/range.h"
#include "base/sysio.h"
#include "birth.h"
#include "bitmap/bitmap.h"
#include "image_impl.h"
#include "sums.h"

bool tide_image_sums_are_beside(const struct tide_image *image)
{
	struct stat st;

	return image->driver->is_raw && tide_image_is_file(image) && fstat(tide_image_fd(image), &st) == 0 &&
	       S_ISREG(st.st_mode);
}

int tide_image_sums_range(struct tide_image *image, int *fd, uint64_t *start, uint64_t *end, struct tide_error *err)
{
	if (image->driver->sums_range)
		return image->driver->sums_range(image->state, fd, start, end, err);
	if (!tide_image_sums_are_beside(image))
		return 1;
	*fd = tide_image_fd(image);
	*start = 0;
	return tide_sysio_size(*fd, end, err);
}

/* ---- collecting -------------------------------------------------------------------- */

static int use(struct tide_image *image, struct tide_sums *collect, struct tide_sums *proof, struct tide_error *err)
{
	return image->driver->sums_use ? image->driver->sums_use(image->state, collect, proof, err) : 0;
}

int tide_image_sums_begin(struct tide_image *image, bool all, const atomic_bool *cancel, struct tide_error *err)
{
	uint64_t start, end;
	int rc;

	rc = tide_image_sums_range(image, &image->sums_fd, &start, &end, err);
	if (rc != 0)
		return rc;
	image->sums_all = all;
	image->sums_cancel = cancel;
	image->sums = tide_sums_new(start, err);
	if (!image->sums)
		return -1;
	return use(image, image->sums, NULL, err);
}

void tide_image_sums_note(struct tide_image *image, int fd, const void *buf, uint64_t off, uint64_t len)
{
	if (image->sums && fd == image->sums_fd)
		tide_sums_note(image->sums, buf, off, len);
}

void tide_image_sums_skip(struct tide_image *image, const struct tide_extent *place)
{
	if (image->sums && place->map_fd == image->sums_fd)
		tide_sums_skip(image->sums, place->map_off, place->len);
}

void tide_image_sums_forget(struct tide_image *image, const struct tide_extent *place)
{
	if (image->sums && place->map_fd == image->sums_fd)
		tide_sums_forget(image->sums, place->map_off, place->len);
}

void tide_image_sums_spoil(struct tide_image *image)
{
	tide_sums_spoil(image->sums);
}

void tide_image_sums_drop(struct tide_image *image)
{
	if (!image->sums)
		return;
	use(image, NULL, NULL, NULL);
	tide_sums_free(image->sums);
	image->sums = NULL;
}

static int store(struct tide_image *image, struct tide_error *err)
{
	uint64_t start, end;
	int fd, rc = tide_image_sums_range(image, &fd, &start, &end, err);

	if (rc != 0)
		return rc;
	if (tide_sums_finish(image->sums, fd, end, image->sums_all, image->sums_cancel, err) < 0)
		return -1;
	rc = image->driver->sums_store(image->state, image->sums, err);
	if (rc > 0 && image->sums_all) {
		tide_error_set(err, TIDE_E_REFUSED, "The image's header has no room for checksums of its data");
		return tide_error_hint(err, "use larger clusters, or --checksums never");
	}
	return rc;
}

int tide_image_sums_finish(struct tide_image *image, struct tide_sums **sums, struct tide_error *err)
{
	uint64_t start, end;
	int fd;

	*sums = NULL;
	/* Without the skipped data nothing would be whole, and holes have to be looked at. */
	if (!image->sums || (tide_sums_has_skipped(image->sums) && !image->sums_all))
		return 0;
	if (tide_image_sums_range(image, &fd, &start, &end, err) < 0 ||
	    tide_sums_finish(image->sums, fd, end, image->sums_all, image->sums_cancel, err) < 0)
		return tide_error_wrap(err, "'%s'", image->path);
	*sums = image->sums;
	return 0;
}

int tide_image_sums_store(struct tide_image *image, struct tide_error *err)
{
	int rc;

	if (!image->sums || tide_image_sums_are_beside(image))
		return 0;
	if (tide_image_check_write(image, err) < 0)
		return -1;
	tide_image_change_begin(image, false);
	rc = store(image, err);
	tide_image_change_end(image, rc >= 0);
	tide_image_sums_drop(image);
	if (rc == 0)
		image->info.sums = TIDE_SUMS_VALID;
	return rc < 0 ? tide_error_wrap(err, "'%s'", image->path) : 0;
}

/* ---- using ------------------------------------------------------------------------- */

int tide_image_sums_load(struct tide_image *image, bool old, struct tide_sums **sums, struct tide_error *err)
{
	*sums = NULL;
	return image->driver->sums_load ? image->driver->sums_load(image->state, old, sums, err) : 0;
}

int tide_image_sums_disk(struct tide_image *image, const struct tide_bitmap *bad,
                         int (*found)(void *data, uint64_t off, uint64_t len, struct tide_error *err), void *data,
                         struct tide_error *err)
{
	uint64_t off = 0, start, len, size = TIDE_MIN(tide_bitmap_size(bad), image->info.size);

	if (image->driver->sums_disk)
		return image->driver->sums_disk(image->state, bad, found, data, err);
	for (; off < size && tide_bitmap_next_dirty(bad, off, UINT64_MAX, &start, &len); off = start + len) {
		if (found(data, start, TIDE_MIN(len, size - start), err) < 0)
			return -1;
	}
	return 0;
}

void tide_image_sums_confirm(struct tide_image *image)
{
	if (!image->info.birth || !image->info.sums_of_birth)
		return;
	image->info.birth->intact = true;
	image->info.birth->is_copy = false;
}

const char *tide_image_sums_hint(enum tide_sums_state state)
{
	return state == TIDE_SUMS_DOUBTFUL
	               ? "or a program that does not mark its changes, such as qemu-img commit, has written to it; if "
	                 "that "
	                 "was intended, chain-verify --record --accept computes new checksums; --salvage restores the "
	                 "rest"
	               : "chain-verify --data lists all damage; chain-restore --salvage restores the rest";
}

int tide_image_prove(struct tide_image *image, struct tide_error *err)
{
	uint64_t start, end;

	if (!image->driver->sums_load || image->proof)
		return 0;
	if (tide_image_sums_load(image, false, &image->proof, err) < 0)
		return tide_error_wrap(err, "'%s'", image->path);
	if (!image->proof)
		return 0;
	if (image->driver->sums_range(image->state, &image->proof_fd, &start, &end, err) == 0 &&
	    image->driver->sums_use(image->state, NULL, image->proof, err) == 0)
		return 0;
	if (err && err->code == TIDE_E_CORRUPT)
		err->code = TIDE_E_DAMAGED;
	return tide_error_wrap(err, "'%s'", image->path);
}

void tide_image_prove_by(struct tide_image *image, struct tide_sums *sums)
{
	image->proof = sums;
	image->proof_fd = tide_image_fd(image);
	image->info.sums = TIDE_SUMS_VALID;
}

bool tide_image_proves(const struct tide_image *image, int fd)
{
	for (; image; image = image->backing) {
		if (image->proof && image->proof_fd == fd)
			return true;
	}
	return false;
}

int tide_image_prove_bytes(struct tide_image *image, int fd, const void *buf, uint64_t at, uint64_t off, uint64_t len,
                           struct tide_error *err)
{
	uint64_t bad;
	int rc;

	for (; image; image = image->backing) {
		if (!image->proof || image->proof_fd != fd)
			continue;
		rc = tide_sums_check(image->proof, fd, buf, at, len, &bad, err);
		if (rc <= 0)
			return rc;
		bad = off + (bad > at ? bad - at : 0);
		tide_error_set(err, TIDE_E_CORRUPT,
		               "'%s': the file is damaged: the disk's bytes %" PRIu64 "+%" PRIu64
		               " do not have their checksum",
		               image->path, bad, TIDE_MIN(TIDE_SUMS_BLOCK, off + len - bad));
		return tide_error_hint(err, "%s", tide_image_sums_hint(image->info.sums));
	}
	return 0;
}
