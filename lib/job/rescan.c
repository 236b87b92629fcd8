/*
 * Rescanning: opens the image to compare with, refuses one that is not an independent copy, and collects the
 * differences.
 */
#include "rescan.h"

#include <string.h>

#include "base/error.h"
#include "image/compare.h"
#include "store/identity.h"
#include "target_bitmaps.h"

static int open_other(const struct tide_bitmap_rescan *args, unsigned allow, struct tide_sink *sink,
                      struct tide_image **other, struct tide_error *err)
{
	struct tide_image_options options = {
		.path = args->against, .format = args->against_format, .allow = allow, .cancel = &sink->cancelled
	};

	if (tide_target_bitmaps_open(&options, other, err) < 0)
		return -1;
	return tide_image_check_format(*other, args->against, "--against-format", err);
}

/* An image that reads from the disk itself never differs there, and proves nothing. */
static int check_apart(const struct tide_image *image, struct tide_image *other, const char *name,
                       struct tide_error *err)
{
	if (tide_image_is_same_file(image, other))
		return tide_error_set(err, TIDE_E_REFUSED, "'%s' is the image itself: it cannot differ", name);
	while ((other = tide_image_backing(other))) {
		if (tide_image_is_same_file(image, other))
			return tide_error_set(
			        err, TIDE_E_REFUSED,
			        "'%s' reads from the image itself: data that it reads from there cannot differ", name);
	}
	return 0;
}

static int set_dirty(struct tide_compare *compare, uint64_t off, uint64_t len, struct tide_error *err)
{
	return tide_bitmap_set(compare->data, off, len, err);
}

/* *base: the other image as a backup; NULL unless it is a backup and known to be as it was made. */
static int find_base(const struct tide_image *other, struct tide_base **base, struct tide_error *err)
{
	TIDE_AUTOBIRTH struct tide_birth *birth = NULL;

	*base = NULL;
	if (tide_identity_find(other, &birth, err) < 0)
		return -1;
	if (!birth || birth->unknown || !birth->intact || (birth->is_part && !tide_image_backing(other)))
		return 0;
	*base = tide_lineage_base_new(&birth->id, birth->time, tide_image_path(other), err);
	return *base ? 0 : -1;
}

int tide_rescan_run(struct tide_node *node, const struct tide_bitmap_rescan *args, uint64_t granularity,
                    struct tide_sink *sink, struct tide_bitmap **out, struct tide_base **base, struct tide_error *err)
{
	uint64_t size = tide_image_size(node->image);
	TIDE_AUTOBITMAP struct tide_bitmap *dirty = tide_bitmap_new(size, granularity, err);
	TIDE_AUTOIMAGE struct tide_image *other = NULL;
	struct tide_compare compare = {
		.a = node->image,
		.end = size,
		.unit = granularity,
		.device = node->id,
		.sink = sink,
		.differs = set_dirty,
		.data = dirty,
	};

	if (!dirty || open_other(args, node->allow, sink, &other, err) < 0 ||
	    check_apart(node->image, other, args->against, err) < 0)
		return -1;
	compare.b = other;
	if (tide_compare_run(&compare, err) < 0 || tide_image_check_unchanged(node->image, err) < 0 ||
	    tide_image_check_unchanged(other, err) < 0 || find_base(other, base, err) < 0)
		return -1;
	if (args->differing)
		*args->differing = compare.differing;
	*out = dirty;
	dirty = NULL;
	return 0;
}
