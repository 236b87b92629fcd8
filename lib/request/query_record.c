/*
 * Stores the checksums of the images of a chain.
 *
 * New checksums must not make damage look right. So the data is compared with the checksums that the image had, also if
 * they do not count any more because the file is a copy or was changed; the comparison is one of the new table with the
 * old one, so that exactly those bytes are compared that get a checksum. Nothing is stored before all images passed.
 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

#include "base/error.h"
#include "base/mem.h"
#include "base/range.h"
#include "base/sysio.h"
#include "image/sums.h"
#include "query_chain.h"
#include "store/store.h"
#include "store/sums_file.h"

struct recording {
	struct tide_image *image;
	struct tide_sums *old; /* the checksums it had, or NULL */
	bool counts;           /* they are of the file as it is: a difference is damage and nothing else */
	bool due;              /* it gets a new table */
};

static void release(struct recording *r)
{
	tide_sums_free(r->old);
	tide_image_close(r->image);
}

/* A sidecar has the stamp of its image: the change would make its bitmaps inconsistent. */
static int check_no_bitmaps(const char *path, struct tide_error *err)
{
	TIDE_AUTOFREE char *sidecar = tide_mem_printf(err, "%s.bitmaps", path);
	struct tide_sidecar *sc;
	bool in_use;

	if (!sidecar || tide_store_load(sidecar, &sc, err) < 0)
		return -1;
	in_use = sc && sc->n > 0;
	tide_sidecar_free(sc);
	if (!in_use)
		return 0;
	return tide_error_set(err, TIDE_E_REFUSED,
	                      "'%s' has bitmaps in a sidecar, so it is a disk in use: checksums are for backups", path);
}

/* ---- the old checksums ------------------------------------------------------------- */

static TIDE_PRINTF(3, 4) int differs(const struct recording *r, struct tide_error *err, const char *fmt, ...)
{
	char what[160];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(what, sizeof(what), fmt, ap);
	va_end(ap);
	tide_error_set(err, TIDE_E_DAMAGED, "'%s': %s: no checksums were stored", tide_image_path(r->image), what);
	if (r->counts)
		return tide_error_hint(err, "%s", tide_image_sums_hint(TIDE_SUMS_VALID));
	return tide_error_hint(err, "the file is damaged, or a program has changed it since; if that was intended, "
	                            "--record --accept stores checksums of what it is now");
}

/* A table that cannot be read proves nothing, and is replaced. */
static int load_old(struct recording *r, bool accept, struct tide_error *err)
{
	struct tide_error why = TIDE_ERROR_INIT;
	bool changed = false;
	int rc;

	if (tide_image_sums_are_beside(r->image)) {
		rc = tide_sums_file_load(r->image, true, &r->old, &changed, &why);
		r->counts = rc == 0 && r->old && !changed;
	} else {
		rc = tide_image_sums_load(r->image, true, &r->old, &why);
		r->counts = tide_image_info(r->image)->sums == TIDE_SUMS_VALID;
	}
	if (rc == 0 || why.code == TIDE_E_CORRUPT || why.code == TIDE_E_UNSUPPORTED) {
		tide_error_release(&why);
		return 0;
	}
	if (why.code != TIDE_E_DAMAGED)
		return tide_error_move(err, &why);
	tide_error_release(&why);
	return accept && !r->counts ? 0 : differs(r, err, "the header does not have its checksum");
}

/* Are they complete, so that chain-verify --data can tell all that there is to tell? */
static bool is_complete(const struct recording *r)
{
	return r->old && (r->counts || tide_image_info(r->image)->sums == TIDE_SUMS_DOUBTFUL) &&
	       tide_sums_proven(r->old) == tide_sums_end(r->old) - tide_sums_start(r->old);
}

/* The checksum of those bytes of the block that the old table covers, as the file has them. */
static int sum_now(const struct recording *r, struct tide_sums *now, uint64_t off, uint64_t *sum,
                   struct tide_error *err)
{
	uint64_t len = TIDE_MIN(TIDE_SUMS_BLOCK, tide_sums_end(r->old) - off), start, end;
	TIDE_AUTOFREE uint8_t *buf = NULL;
	int fd;

	if (off < tide_sums_end(now) && len == TIDE_MIN(TIDE_SUMS_BLOCK, tide_sums_end(now) - off))
		return tide_sums_find(now, off, 1, sum, err);
	buf = tide_mem_alloc(len, 1, err);
	if (!buf || tide_image_sums_range(r->image, &fd, &start, &end, err) < 0 ||
	    tide_sysio_pread(fd, buf, len, off, true, err) < 0)
		return -1;
	*sum = tide_sums_of(buf, len);
	return 0;
}

/* A qcow2 may have grown after the range of the old table, or over the table. */
static bool is_of_other_size(const struct recording *r, const struct tide_sums *now)
{
	return tide_sums_end(now) < tide_sums_end(r->old) ||
	       (tide_image_sums_are_beside(r->image) && tide_sums_end(now) != tide_sums_end(r->old));
}

static int compare(const struct recording *r, struct tide_sums *now, struct tide_error *err)
{
	uint64_t end = tide_sums_end(r->old), bad = 0, first = 0, was, is;

	if (is_of_other_size(r, now))
		return differs(r, err, "it has %" PRIu64 " bytes, and had %" PRIu64, tide_sums_end(now), end);
	for (uint64_t off = tide_sums_start(r->old); off < end; off += TIDE_SUMS_BLOCK) {
		if (tide_sums_find(r->old, off, 1, &was, err) < 0)
			return -1;
		if (was == TIDE_SUMS_NONE)
			continue;
		if (sum_now(r, now, off, &is, err) < 0)
			return -1;
		if (is == was)
			continue;
		first = bad ? first : off;
		bad += TIDE_MIN(TIDE_SUMS_BLOCK, end - off);
	}
	if (bad == 0)
		return 0;
	return differs(r, err,
	               "%" PRIu64 " bytes of the file, the first at %" PRIu64 ", do not have the checksum they had",
	               bad, first);
}

/* ---- one image --------------------------------------------------------------------- */

static int examine(struct recording *r, bool accept, struct tide_sink *sink, struct tide_error *err)
{
	struct tide_sums *now;
	int rc;

	if (load_old(r, accept, err) < 0)
		return -1;
	if (is_complete(r) && (r->counts || !accept))
		return 0;
	rc = tide_image_sums_begin(r->image, true, &sink->cancelled, err);
	if (rc != 0)
		return rc < 0 ? -1 : 0;
	r->due = true;
	if (!r->old || (accept && !r->counts))
		return 0;
	return tide_image_sums_finish(r->image, &now, err) < 0 ? -1 : compare(r, now, err);
}

static int store_beside(struct tide_image *image, struct tide_error *err)
{
	struct tide_staged staged TIDE_CLEANUP(tide_staged_release) = TIDE_STAGED_INIT;
	struct tide_sums *sums;

	if (tide_image_sums_finish(image, &sums, err) < 0 ||
	    tide_sums_file_stage(&staged, tide_image_path(image), tide_image_fd(image), sums, err) < 0)
		return -1;
	return tide_image_check_unchanged(image, err) < 0 ? -1 : tide_staged_commit(&staged, false, err);
}

static int store(struct recording *r, struct tide_error *err)
{
	if (!r->due)
		return 0;
	if (tide_image_sums_are_beside(r->image))
		return store_beside(r->image, err);
	return tide_image_sums_store(r->image, err) < 0 ? -1 : tide_image_sync_times(r->image, err);
}

static int open_image(struct recording *r, const struct tide_chain_image *to, unsigned allow, struct tide_sink *sink,
                      struct tide_error *err)
{
	struct tide_image_options options = { .path = to->path,
		                              .format = to->format,
		                              .write = to->cluster_size > 0,
		                              .no_backing = true,
		                              .allow = allow,
		                              .cancel = &sink->cancelled };

	return check_no_bitmaps(to->path, err) < 0 ? -1 : tide_image_open(&options, &r->image, err);
}

/* ---- the chain --------------------------------------------------------------------- */

static int check_sound(const struct tide_chain *chain, struct tide_error *err)
{
	for (size_t i = 0; i < chain->n; i++) {
		if (chain->images[i]->format && chain->images[i]->verdict != TIDE_VERDICT_DAMAGED)
			continue;
		return tide_error_set(err, TIDE_E_DAMAGED, "'%s' is damaged or missing: no checksums were stored",
		                      chain->images[i]->path);
	}
	return 0;
}

static int record_all(struct recording *all, const struct tide_chain *chain, bool accept, unsigned allow,
                      struct tide_sink *sink, struct tide_error *err)
{
	for (size_t i = 0; i < chain->n; i++) {
		if (!chain->images[i]->is_remote && (open_image(&all[i], chain->images[i], allow, sink, err) < 0 ||
		                                     examine(&all[i], accept, sink, err) < 0))
			return -1;
	}
	for (size_t i = 0; i < chain->n; i++) {
		if (store(&all[i], err) < 0)
			return -1;
	}
	return 0;
}

int tide_query_record(const struct tide_chain *chain, bool accept, unsigned allow, struct tide_sink *sink,
                      struct tide_error *err)
{
	TIDE_AUTOFREE struct recording *all = NULL;
	int rc;

	if (check_sound(chain, err) < 0)
		return -1;
	all = tide_mem_alloc(TIDE_MAX(chain->n, 1), sizeof(*all), err);
	if (!all)
		return -1;
	rc = record_all(all, chain, accept, allow, sink, err);
	for (size_t i = 0; i < chain->n; i++)
		release(&all[i]);
	return rc;
}
