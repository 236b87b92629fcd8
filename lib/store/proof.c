/* Proves backups by their checksums where the times of their files prove nothing. */
#include "proof.h"

#include "base/error.h"
#include "bitmap/bitmap.h"
#include "image/birth.h"
#include "image/driver.h"
#include "image/prove.h"
#include "image/sums.h"

static bool is_doubtful(const struct tide_image *image)
{
	const struct tide_driver_info *info = tide_image_info(image);

	return info->birth && !info->birth->intact && info->sums == TIDE_SUMS_DOUBTFUL && info->sums_of_birth;
}

static int prove(struct tide_image *image, struct tide_sums *sums, struct tide_sink *sink, struct tide_error *err)
{
	struct tide_prove prove TIDE_CLEANUP(tide_prove_release) = { .image = image, .sums = sums, .sink = sink };

	if (tide_prove_run(&prove, err) < 0)
		return -1;
	if (!tide_bitmap_count(prove.bad) && !tide_bitmap_count(prove.unproven))
		tide_image_sums_confirm(image);
	return 0;
}

int tide_proof_of_copies(struct tide_image *top, struct tide_sink *sink, struct tide_error *err)
{
	for (struct tide_image *image = top; image; image = tide_image_backing(image)) {
		struct tide_error why = TIDE_ERROR_INIT;
		struct tide_sums *sums = NULL;
		int rc;

		if (!is_doubtful(image))
			continue;
		rc = tide_image_sums_load(image, false, &sums, &why);
		if (rc == 0 && sums)
			rc = prove(image, sums, sink, &why);
		tide_sums_free(sums);
		if (rc < 0 && (why.code == TIDE_E_CANCELLED || why.code == TIDE_E_NOMEM))
			return tide_error_move(err, &why);
		tide_error_release(&why);
	}
	return 0;
}
