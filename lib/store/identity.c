/* Finds the birth record of an image, wherever it is stored. */
#include "identity.h"

#include <stdio.h>
#include <time.h>

#include "base/mem.h"
#include "store.h"

/* The record beside a file counts as long as the file has the stamp that is stored with it. */
static int find_beside(const struct tide_image *image, struct tide_birth **birth, struct tide_error *err)
{
	TIDE_AUTOFREE char *path = tide_store_default(tide_image_path(image), err);
	const struct tide_stamp *stamp = tide_image_stamp(image);
	struct tide_error why = TIDE_ERROR_INIT;
	struct tide_sidecar *sc = NULL;

	if (!path)
		return -1;
	/* Commands that use the bitmaps report damage to the sidecar; there may be a record in it. */
	if (tide_store_load(path, &sc, &why) < 0) {
		bool is_later = why.code == TIDE_E_UNSUPPORTED, is_damaged = why.code == TIDE_E_CORRUPT;

		tide_error_release(&why);
		if (is_later || is_damaged)
			*birth = tide_birth_unknown(is_later, err);
		return *birth || !(is_later || is_damaged) ? 0 : -1;
	}
	if (!sc)
		return 0;
	if (sc->birth) {
		*birth = sc->birth;
		sc->birth = NULL;
		(*birth)->intact = stamp->valid && sc->stamp.valid && tide_stamp_is_equal(stamp, &sc->stamp);
	}
	tide_sidecar_free(sc);
	return 0;
}

int tide_identity_find(const struct tide_image *image, struct tide_birth **birth, struct tide_error *err)
{
	const struct tide_birth *inside = tide_image_info(image)->birth;

	*birth = NULL;
	if (inside) {
		*birth = tide_birth_copy(inside, err);
		return *birth ? 0 : -1;
	}
	return tide_image_is_file(image) && tide_image_stamp(image)->valid ? find_beside(image, birth, err) : 0;
}

void tide_identity_format_time(int64_t time, char text[TIDE_IDENTITY_TIME])
{
	time_t t = (time_t)time;
	struct tm tm;

	if (!gmtime_r(&t, &tm) || strftime(text, TIDE_IDENTITY_TIME, "%Y-%m-%d %H:%M:%S UTC", &tm) == 0)
		snprintf(text, TIDE_IDENTITY_TIME, "an unknown time");
}
