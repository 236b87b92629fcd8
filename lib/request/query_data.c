/*
 * Proves the data of a chain by its checksums, image by image, and stores the checksums of images that have none.
 *
 * A block of a file that does not have its checksum is traced to the ranges of the disk that it holds, and these to
 * the restore points in which they are visible: the image itself, and each image above it that does not cover them.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "base/mem.h"
#include "base/range.h"
#include "base/strbuf.h"
#include "base/sysio.h"
#include "bitmap/bitmap.h"
#include "image/prove.h"
#include "image/sums.h"
#include "query_chain.h"
#include "store/store.h"
#include "store/sums_file.h"

#define NAMES_MAX 8u /* restore points that a finding names */

/* The image of the chain that is examined. */
struct member {
	struct tide_image *top, *image;
	struct tide_chain *chain;
	size_t index;
	struct tide_bitmap *disk; /* ranges of the disk that were found */
};

static int on_disk(void *data, uint64_t off, uint64_t len, struct tide_error *err)
{
	struct member *m = data;

	return tide_bitmap_set(m->disk, off, len, err);
}

/* The ranges of the disk for which the file has bytes where `blocks` has bits. */
static struct tide_bitmap *find_disk(struct member *m, const struct tide_bitmap *blocks, struct tide_error *err)
{
	uint64_t granularity = TIDE_MAX(tide_image_info(m->image)->cluster_size, 512);

	m->disk = tide_bitmap_new(tide_image_size(m->image), granularity, err);
	if (m->disk && tide_bitmap_count(blocks) && tide_image_sums_disk(m->image, blocks, on_disk, m, err) < 0) {
		tide_bitmap_free(m->disk);
		m->disk = NULL;
	}
	return m->disk;
}

/* Does the image `depth` levels above the examined one show the range as that one holds it? In doubt it does. */
static bool shows(struct tide_image *above, unsigned depth, uint64_t off, uint64_t len)
{
	uint64_t end = TIDE_MIN(off + len, tide_image_size(above));
	struct tide_extent x;

	for (; off < end; off += x.len) {
		if (tide_image_extent(above, off, end - off, &x, NULL) < 0)
			return true;
		if (x.depth == depth && x.kind != TIDE_EXTENT_HOLE)
			return true;
	}
	return false;
}

/* Names the restore points in which the range is visible, from the examined image up. */
static void name_points(const struct member *m, uint64_t off, uint64_t len, struct tide_strbuf *text)
{
	size_t n = 0;

	for (size_t up = 0; up <= m->index; up++) {
		struct tide_image *above = m->top;

		for (size_t i = 0; i < m->index - up; i++)
			above = tide_image_backing(above);
		if (!shows(above, (unsigned)up, off, len))
			continue;
		if (n++ < NAMES_MAX)
			tide_strbuf_addf(text, "%s%s", n == 1 ? "; it is visible in " : ", ",
			                 m->chain->images[m->index - up]->filename);
	}
	if (n > NAMES_MAX)
		tide_strbuf_addf(text, " and %zu more", n - NAMES_MAX);
	if (n == 0)
		tide_strbuf_addf(text, "; it is visible in no image of the chain");
}

static int report_range(struct member *m, uint64_t off, uint64_t len, struct tide_error *err)
{
	struct tide_strbuf sb = TIDE_STRBUF_INIT;
	TIDE_AUTOFREE char *text = NULL;

	tide_strbuf_addf(&sb, "this range of the disk does not have its checksum%s",
	                 tide_image_info(m->image)->sums == TIDE_SUMS_DOUBTFUL
	                         ? ": it is damaged, or a program that does not mark its changes, such as qemu-img "
	                           "commit, has written to it"
	                         : "");
	name_points(m, off, len, &sb);
	text = tide_strbuf_steal(&sb, err);
	return text ? tide_query_chain_find(m->chain->images[m->index], TIDE_FINDING_DATA, off, len, text, err) : -1;
}

/* Bytes of the file that hold no data of the disk: counts, or free space. */
static int report_file(struct member *m, const struct tide_bitmap *bad, uint64_t first, struct tide_error *err)
{
	uint64_t start, len;
	char text[160];

	if (!tide_bitmap_next_dirty(bad, 0, UINT64_MAX, &start, &len))
		return 0;
	snprintf(text, sizeof(text),
	         "%" PRIu64 " bytes at %" PRIu64
	         " of the file do not have their checksum; they hold no data of the disk",
	         len, first + start);
	return tide_query_chain_find(m->chain->images[m->index], TIDE_FINDING_REFCOUNT, 0, 0, text, err);
}

static int report_bad(struct member *m, const struct tide_bitmap *bad, uint64_t first, struct tide_error *err)
{
	TIDE_AUTOBITMAP struct tide_bitmap *disk = find_disk(m, bad, err);
	uint64_t off = 0, start, len, size = tide_image_size(m->image);

	if (!disk)
		return -1;
	if (tide_bitmap_count(disk) == 0)
		return report_file(m, bad, first, err);
	for (; off < size && tide_bitmap_next_dirty(disk, off, UINT64_MAX, &start, &len); off = start + len) {
		if (report_range(m, start, TIDE_MIN(len, size - start), err) < 0)
			return -1;
	}
	return 0;
}

static int report_unproven(struct member *m, const struct tide_bitmap *blocks, struct tide_error *err)
{
	TIDE_AUTOBITMAP struct tide_bitmap *disk = find_disk(m, blocks, err);
	uint64_t n;
	char text[160];

	if (!disk)
		return -1;
	n = tide_bitmap_count(disk) * TIDE_MAX(tide_image_info(m->image)->cluster_size, 512);
	if (n == 0)
		return 0;
	m->chain->images[m->index]->unproven = n;
	snprintf(text, sizeof(text),
	         "%" PRIu64 " bytes of the disk have no checksum and are not proven; --record adds the checksums", n);
	return tide_query_chain_find(m->chain->images[m->index], TIDE_FINDING_UNKNOWN, 0, 0, text, err);
}

static int prove_image(struct member *m, struct tide_sums *sums, struct tide_sink *sink, const char *device,
                       struct tide_error *err)
{
	struct tide_prove prove TIDE_CLEANUP(
	        tide_prove_release) = { .image = m->image, .sums = sums, .device = device, .sink = sink };
	struct tide_error cause = TIDE_ERROR_INIT;

	if (tide_prove_run(&prove, &cause) < 0)
		return tide_query_chain_find_error(m->chain->images[m->index], TIDE_FINDING_ENTRY, &cause, err);
	m->chain->images[m->index]->proven = tide_sums_proven(sums);
	if (!tide_bitmap_count(prove.bad) && !tide_bitmap_count(prove.unproven))
		tide_image_sums_confirm(m->image);
	if (tide_bitmap_count(prove.bad) && report_bad(m, prove.bad, tide_sums_start(sums), err) < 0)
		return -1;
	return tide_bitmap_count(prove.unproven) ? report_unproven(m, prove.unproven, err) : 0;
}

static const char *why_none(const struct tide_image *image, bool changed)
{
	if (changed || tide_image_info(image)->sums != TIDE_SUMS_ABSENT)
		return "the checksums are void, because a program has changed the image since they were computed; "
		       "--record computes new ones";
	return "the image has no checksums, so its data is not proven; --record adds them";
}

static int examine(struct member *m, struct tide_sink *sink, const char *device, struct tide_error *err)
{
	struct tide_chain_image *to = m->chain->images[m->index];
	struct tide_error cause = TIDE_ERROR_INIT;
	struct tide_sums *sums;
	bool changed = false;
	int rc;

	if ((tide_image_sums_are_beside(m->image) ? tide_sums_file_load(m->image, &sums, &changed, &cause)
	                                          : tide_image_sums_load(m->image, &sums, &cause)) < 0) {
		/* Without its table, the data is neither proven nor damaged. */
		if (cause.code == TIDE_E_CORRUPT)
			cause.code = TIDE_E_REFUSED;
		else if (cause.code == TIDE_E_DAMAGED)
			cause.code = TIDE_E_CORRUPT;
		return tide_query_chain_find_error(to, TIDE_FINDING_HEADER, &cause, err);
	}
	if (!sums)
		return tide_query_chain_find(to, TIDE_FINDING_UNKNOWN, 0, 0, why_none(m->image, changed), err);
	rc = prove_image(m, sums, sink, device, err);
	tide_sums_free(sums);
	return rc;
}

int tide_query_data(struct tide_image *top, struct tide_chain *chain, struct tide_sink *sink, const char *device,
                    struct tide_error *err)
{
	struct member m = { .top = top, .chain = chain };

	for (m.image = top; m.image; m.image = tide_image_backing(m.image), m.index++) {
		if (tide_event_is_cancelled(sink))
			return tide_error_set(err, TIDE_E_CANCELLED, "Cancelled");
		if (examine(&m, sink, device, err) < 0)
			return -1;
	}
	return 0;
}

/* ---- recording --------------------------------------------------------------------- */

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

static int record_beside(struct tide_image *image, struct tide_error *err)
{
	struct tide_staged staged TIDE_CLEANUP(tide_staged_release) = TIDE_STAGED_INIT;
	struct tide_sums *sums;
	bool changed;

	/* A damaged table is replaced. */
	if (tide_sums_file_load(image, &sums, &changed, NULL) == 0 && sums) {
		tide_sums_free(sums);
		return 0;
	}
	if (tide_image_sums_finish(image, &sums, err) < 0 ||
	    tide_sums_file_stage(&staged, tide_image_path(image), tide_image_fd(image), sums, err) < 0)
		return -1;
	return tide_image_check_unchanged(image, err) < 0 ? -1 : tide_staged_commit(&staged, false, err);
}

/* 1: it has a table. A damaged one is replaced, but not if the image is. */
static int has_table(struct tide_image *image, struct tide_error *err)
{
	struct tide_error why = TIDE_ERROR_INIT;
	struct tide_sums *sums;
	bool has;

	if (tide_image_info(image)->sums != TIDE_SUMS_VALID)
		return 0;
	if (tide_image_sums_load(image, &sums, &why) == 0) {
		has = sums != NULL;
		tide_sums_free(sums);
		return has;
	}
	if (why.code != TIDE_E_CORRUPT && why.code != TIDE_E_UNSUPPORTED)
		return tide_error_move(err, &why);
	tide_error_release(&why);
	return 0;
}

static int record(struct tide_image *image, struct tide_sink *sink, struct tide_error *err)
{
	bool beside = tide_image_sums_are_beside(image);
	int rc = has_table(image, err);

	if (rc != 0)
		return rc < 0 ? tide_error_wrap(err, "'%s'", tide_image_path(image)) : 0;
	rc = tide_image_sums_begin(image, true, &sink->cancelled, err);
	if (rc != 0)
		return rc < 0 ? -1 : 0;
	if (beside)
		return record_beside(image, err);
	return tide_image_sums_store(image, err) < 0 ? -1 : tide_image_sync_times(image, err);
}

static int record_image(const struct tide_chain_image *to, unsigned allow, struct tide_sink *sink,
                        struct tide_error *err)
{
	struct tide_image_options options = { .path = to->path,
		                              .format = to->format,
		                              .write = to->cluster_size > 0,
		                              .no_backing = true,
		                              .allow = allow,
		                              .cancel = &sink->cancelled };
	TIDE_AUTOIMAGE struct tide_image *image = NULL;

	if (check_no_bitmaps(to->path, err) < 0 || tide_image_open(&options, &image, err) < 0)
		return -1;
	return record(image, sink, err);
}

int tide_query_data_record(const struct tide_chain *chain, unsigned allow, struct tide_sink *sink,
                           struct tide_error *err)
{
	for (size_t i = 0; i < chain->n; i++) {
		if (chain->images[i]->format && chain->images[i]->verdict != TIDE_VERDICT_DAMAGED)
			continue;
		return tide_error_set(err, TIDE_E_DAMAGED, "'%s' is damaged or missing: no checksums were stored",
		                      chain->images[i]->path);
	}
	for (size_t i = 0; i < chain->n; i++) {
		if (!chain->images[i]->is_remote && record_image(chain->images[i], allow, sink, err) < 0)
			return -1;
	}
	return 0;
}
