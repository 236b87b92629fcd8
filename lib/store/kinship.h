/*
 * Whether an image of a chain belongs on the image below it: by the identifiers in their birth records, which is exact,
 * or, where a file may have been changed since, by the fingerprint of its disk, which proves only a difference.
 */
#ifndef TIDE_KINSHIP_H
#define TIDE_KINSHIP_H

#include "image/image.h"

enum tide_kinship {
	TIDE_KINSHIP_FOREIGN = 0, /* no record: nothing is known here */
	TIDE_KINSHIP_COMPLETE,    /* it holds all of its disk: the images below, if any, do not matter */
	TIDE_KINSHIP_PROVEN,      /* its backing image is its base */
	TIDE_KINSHIP_SAMPLED,     /* both are as they were made, and only a sample says that they belong together */
	TIDE_KINSHIP_LIKELY,      /* a file was changed since, and the disk looks as it did */
	TIDE_KINSHIP_REBASED,     /* the same, and its backing image is another backup than its base */
	TIDE_KINSHIP_UNKNOWN,     /* its record cannot be read: it may be a part */
	TIDE_KINSHIP_PART,        /* it holds only changes, and its base is not there */
	TIDE_KINSHIP_WRONG,       /* it shows another disk than that of its record */
};

/*
 * *text explains all but FOREIGN, COMPLETE and PROVEN, else NULL; the caller frees it.  -1: the disk cannot be read.
 * above: the image on top of it, or NULL; is_base: a new backup that counts from it will be. A backup that ended early
 * (bitmap-mode always) is in order below one that counts from it.
 */
int tide_kinship_check(struct tide_image *image, const struct tide_image *above, bool is_base,
                       enum tide_kinship *kinship, char **text, struct tide_error *err);

/* Is no backup above it to be restored? */
static inline bool tide_kinship_is_bad(enum tide_kinship kinship)
{
	return kinship == TIDE_KINSHIP_UNKNOWN || kinship == TIDE_KINSHIP_WRONG || kinship == TIDE_KINSHIP_PART ||
	       kinship == TIDE_KINSHIP_REBASED;
}

#endif
