/*
 * The bitmaps in the sidecar of an existing target: finding it, its pinned format, and making its bitmaps inconsistent
 * before a job writes to the image without recording.
 */
#include "target_bitmaps.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/error.h"
#include "base/mem.h"
#include "store/store.h"

int tide_target_bitmaps_find(struct tide_target_bitmaps *tb, const char *path, const char *override,
                             struct tide_error *err)
{
	bool is_uri = tide_image_is_uri(path);
	TIDE_AUTOFREE char *real = is_uri ? NULL : realpath(path, NULL);
	struct stat st;

	if (is_uri ? !override : !real || stat(real, &st) < 0)
		return 0;
	tb->is_device = is_uri || S_ISBLK(st.st_mode);
	/* A device without a lasting name has no default sidecar path. */
	tb->sidecar = tide_store_path(real, override, &tb->is_nameless, tb->is_device && !override ? NULL : err);
	return tb->sidecar || (tb->is_device && !override) ? 0 : -1;
}

int tide_target_bitmaps_format(struct tide_target_bitmaps *tb, const char *path, const char **format,
                               struct tide_error *err)
{
	const struct tide_image_driver *pinned;
	struct tide_sidecar *sc = NULL;
	int rc = 0;

	if (!tb->sidecar || tide_store_load(tb->sidecar, &sc, err) < 0)
		return tb->sidecar ? -1 : 0;
	if (!sc)
		return 0;
	pinned = tide_image_find_driver(sc->format);
	if (!pinned) {
		rc = tide_error_set(err, TIDE_E_REFUSED, "Unknown file format '%s'", sc->format);
	} else if (*format && strcmp(*format, pinned->name)) {
		tide_error_set(err, TIDE_E_REFUSED, "The format of '%s' is pinned as '%s', not '%s'", path,
		               pinned->name, *format);
		rc = tide_error_hint(err, "it was pinned in '%s' when the first bitmap was added", tb->sidecar);
	} else {
		tb->is_guess = !*format && tide_sidecar_is_guess(sc);
		*format = pinned->name;
	}
	tide_sidecar_free(sc);
	return rc;
}

int tide_target_bitmaps_pinned(const char *path, const char **format, struct tide_error *err)
{
	struct tide_target_bitmaps tb = TIDE_TARGET_BITMAPS_INIT;
	int rc = tide_target_bitmaps_find(&tb, path, NULL, err);

	if (rc == 0)
		rc = tide_target_bitmaps_format(&tb, path, format, err);
	tide_target_bitmaps_release(&tb);
	return rc;
}

int tide_target_bitmaps_open(struct tide_image_options *options, struct tide_image **image, struct tide_error *err)
{
	if (tide_target_bitmaps_pinned(options->path, &options->format, err) < 0)
		return -1;
	return tide_image_open(options, image, err);
}

int tide_target_bitmaps_check(const struct tide_target_bitmaps *tb, const char *path, struct tide_error *err)
{
	struct tide_sidecar *sc = NULL;
	int rc = 0;

	if (!tb->is_device || !tb->sidecar)
		return 0;
	if (tide_store_load(tb->sidecar, &sc, err) < 0)
		return -1;
	for (size_t i = 0; sc && i < sc->n && rc == 0; i++) {
		const struct tide_sidecar_bitmap *entry = sc->items[i];

		if (!entry->token && !entry->enabled)
			continue;
		rc = tide_error_set(err, TIDE_E_REFUSED, "Bitmap '%s' of '%s' would not record this write", entry->name,
		                    path);
		tide_error_hint(err,
		                "disable it first with bitmap-disable, and complete it afterwards with bitmap-rescan");
	}
	tide_sidecar_free(sc);
	return rc;
}

/* The replacement of the sidecar is durable: after a power loss the file's times alone might not reveal the write. */
int tide_target_bitmaps_distrust(const struct tide_target_bitmaps *tb, const struct tide_image *target, const char *job,
                                 struct tide_sink *sink, struct tide_error *err)
{
	struct tide_store store = TIDE_STORE_INIT;
	bool any = false;
	int rc;

	if (tb->is_nameless)
		tide_event_warning(
		        sink, tide_image_path(target),
		        "bitmaps of this device that --sidecar keeps do not record %s; compare it with a backup "
		        "(bitmap-rescan) before you use them",
		        job);
	/* The enabled bitmaps of an export are a reason to refuse, and the others do not record. */
	if (!tb->sidecar || !tide_image_is_file(target))
		return 0;
	rc = tide_store_lock(&store, tb->sidecar, false, &sink->cancelled, err);
	if (rc == 0)
		rc = tide_store_distrust(&store, tb->sidecar, tide_image_fd(target), &any, err);
	if (rc == 0 && any)
		tide_event_warning(sink, tide_image_path(target),
		                   "its bitmaps do not record %s and are inconsistent now", job);
	tide_store_release(&store);
	return rc;
}

void tide_target_bitmaps_except(struct tide_target_bitmaps *tb, const char *sidecar)
{
	struct stat own, other;

	tb->is_nameless = false;
	if (!tb->sidecar || stat(tb->sidecar, &own) < 0 || stat(sidecar, &other) < 0 || own.st_dev != other.st_dev ||
	    own.st_ino != other.st_ino)
		return;
	free(tb->sidecar);
	tb->sidecar = NULL;
}

void tide_target_bitmaps_release(struct tide_target_bitmaps *tb)
{
	free(tb->sidecar);
	*tb = (struct tide_target_bitmaps)TIDE_TARGET_BITMAPS_INIT;
}
