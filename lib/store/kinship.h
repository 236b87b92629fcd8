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
	TIDE_KINSHIP_LIKELY,      /* a file was changed since, and the disk looks as it did */
	TIDE_KINSHIP_REBASED,     /* the same, and its backing image is another backup than its base */
	TIDE_KINSHIP_PART,        /* it holds only changes, and its base is not there */
	TIDE_KINSHIP_WRONG,       /* it shows another disk than that of its record */
};

/*
 * *text explains all but FOREIGN, COMPLETE and PROVEN, else NULL; the caller frees it.  -1: the disk cannot be read.
 * is_continued: what is on top of it counts from it, so it may be a backup that ended early (bitmap-mode always).
 */
int tide_kinship_check(struct tide_image *image, bool is_continued, enum tide_kinship *kinship, char **text,
                       struct tide_error *err);
/* Does the backup above count from this image?  NULL: no. */
bool tide_kinship_is_continued(const struct tide_image *above, const struct tide_image *image);

#endif
