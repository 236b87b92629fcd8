/*
 * The bitmaps of a target that is there already: nothing records what a job writes over it.
 *
 * Of a regular file they become inconsistent, durably, before the first write.  A device is
 * written by others too, who never tell, so its bitmaps are not distrusted later: those that
 * record are a reason to refuse.  (Bitmaps inside an image are refused when it is opened
 * for writing.)
 *
 * Their sidecar also says what the target is: the format that was pinned in it decides.
 */
#ifndef TIDE_TARGET_BITMAPS_H
#define TIDE_TARGET_BITMAPS_H

#include "base/event.h"
#include "image/image.h"

struct tide_target_bitmaps {
	char *sidecar;  /* where they belong; NULL: nowhere */
	bool is_device; /* or like one, an export: nothing tells of writes */
};

#define TIDE_TARGET_BITMAPS_INIT \
	{                        \
		NULL, false      \
	}

/* override: a sidecar in place of the usual one, or NULL. A target that is not there has none. */
int tide_target_bitmaps_find(struct tide_target_bitmaps *tb, const char *path, const char *override,
                             struct tide_error *err);
/*
 * What to open the target as.  *format: what was asked for, or NULL; becomes what the sidecar pins, or stays NULL where
 * the target has to be probed.
 */
int tide_target_bitmaps_format(const struct tide_target_bitmaps *tb, const char *path, const char **format,
                               struct tide_error *err);
/* Called with the target locked. */
int tide_target_bitmaps_check(const struct tide_target_bitmaps *tb, const char *path, struct tide_error *err);
/* Called before the first write; what: the job, with its article, for a warning. */
int tide_target_bitmaps_distrust(const struct tide_target_bitmaps *tb, const struct tide_image *target,
                                 const char *what, struct tide_sink *sink, struct tide_error *err);
void tide_target_bitmaps_release(struct tide_target_bitmaps *tb);

#endif
