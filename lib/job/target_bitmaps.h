/*
 * The bitmaps of an existing target, which do not record the writes of the job.
 *
 * They become inconsistent, durably, before the first write.  A bitmap of a device that records is a reason to refuse,
 * because nothing may reveal unrecorded writes later.  (An image that contains bitmaps is refused when it is opened for
 * writing.)
 *
 * Their sidecar also decides the format of the target, by the one that is pinned in it.
 */
#ifndef TIDE_TARGET_BITMAPS_H
#define TIDE_TARGET_BITMAPS_H

#include "base/event.h"
#include "image/image.h"

struct tide_target_bitmaps {
	char *sidecar;    /* its path, whether it exists or not; NULL: the target has none */
	bool is_device;   /* a block device or an export: perhaps nothing reveals writes */
	bool is_nameless; /* a device without a default sidecar */
	bool is_guess;    /* the format in it is only what a probe found, and no one gave it */
};

#define TIDE_TARGET_BITMAPS_INIT          \
	{                                 \
		NULL, false, false, false \
	}

/* override: a sidecar in place of the default one, or NULL.  A target that does not exist has no sidecar. */
int tide_target_bitmaps_find(struct tide_target_bitmaps *tb, const char *path, const char *override,
                             struct tide_error *err);
/*
 * Decides the format to open the target with.  *format: the one that the user gave, or NULL; becomes the pinned one, or
 * stays NULL if the target has to be probed.
 */
int tide_target_bitmaps_format(struct tide_target_bitmaps *tb, const char *path, const char **format,
                               struct tide_error *err);
/* Refuses a device with a bitmap that records or is busy.  The target must be locked. */
int tide_target_bitmaps_check(const struct tide_target_bitmaps *tb, const char *path, struct tide_error *err);
/* Makes the bitmaps inconsistent, or says that this is impossible; called before the first write.  job: its noun and
 * article, for the warning. */
int tide_target_bitmaps_distrust(const struct tide_target_bitmaps *tb, const struct tide_image *target, const char *job,
                                 struct tide_sink *sink, struct tide_error *err);
/* Leaves the bitmaps of this sidecar out: they record the job. */
void tide_target_bitmaps_except(struct tide_target_bitmaps *tb, const char *sidecar);
void tide_target_bitmaps_release(struct tide_target_bitmaps *tb);

/* The same in one call, for an image that is only read: *format becomes the pinned one if the image has a sidecar. */
int tide_target_bitmaps_pinned(const char *path, const char **format, struct tide_error *err);
/* Opens an image that is only read, in the pinned format if it has one. */
int tide_target_bitmaps_open(struct tide_image_options *options, struct tide_image **image, struct tide_error *err);

#endif
