/*
 * Proves the data of a chain by its checksums, image by image.
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

/* ---- data without checksums: what is compressed must decompress --------------------- */

static int unpack(struct member *m, void *buf, uint64_t off, uint64_t len, struct tide_error *err)
{
	struct tide_error cause = TIDE_ERROR_INIT;
	struct tide_chain_image *to = m->chain->images[m->index];
	TIDE_AUTOFREE char *text = NULL;

	if (tide_image_read(m->image, buf, off, len, &cause) == 0)
		return 0;
	if (cause.code != TIDE_E_DAMAGED && cause.code != TIDE_E_CORRUPT)
		return tide_query_chain_find_error(to, TIDE_FINDING_DATA, &cause, err);
	text = tide_mem_printf(err, "this range of the disk cannot be decompressed: %s", cause.msg);
	tide_error_release(&cause);
	return text ? tide_query_chain_find(to, TIDE_FINDING_DATA, off, len, text, err) : -1;
}

static int unpack_extent(struct member *m, const struct tide_extent *x, void *buf, struct tide_sink *sink,
                         struct tide_error *err)
{
	uint64_t cluster = tide_image_info(m->image)->cluster_size;

	for (uint64_t off = x->off, len; off < x->off + x->len; off += len) {
		len = TIDE_MIN(cluster - off % cluster, x->off + x->len - off);
		if (tide_event_is_cancelled(sink))
			return tide_error_set(err, TIDE_E_CANCELLED, "Cancelled");
		if (unpack(m, buf, off, len, err) < 0)
			return -1;
	}
	return 0;
}

static int unpack_image(struct member *m, struct tide_sink *sink, struct tide_error *err)
{
	uint64_t size = tide_image_size(m->image), cluster = tide_image_info(m->image)->cluster_size;
	TIDE_AUTOFREE void *buf = NULL;
	struct tide_extent x;

	if (!cluster || m->chain->images[m->index]->is_remote)
		return 0;
	buf = tide_mem_alloc(cluster, 1, err);
	if (!buf)
		return -1;
	for (uint64_t off = 0; off < size; off = x.off + x.len) {
		if (tide_image_extent(m->image, off, size - off, &x, NULL) < 0)
			return 0; /* a table is damaged: that is a finding already */
		if (x.depth == 0 && x.kind == TIDE_EXTENT_DATA && !x.mapped && unpack_extent(m, &x, buf, sink, err) < 0)
			return -1;
	}
	return 0;
}

/* ---- one image --------------------------------------------------------------------- */

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
	if (!tide_bitmap_count(prove.unproven))
		return 0;
	return report_unproven(m, prove.unproven, err) < 0 ? -1 : unpack_image(m, sink, err);
}

static const char *why_none(const struct tide_image *image, bool changed)
{
	if (changed || tide_image_info(image)->sums != TIDE_SUMS_ABSENT)
		return "the checksums are void, because a program has changed the image since they were computed; "
		       "--record compares them, and computes new ones";
	return "the image has no checksums, so its data is not proven; --record adds them";
}

static int examine(struct member *m, struct tide_sink *sink, const char *device, struct tide_error *err)
{
	struct tide_chain_image *to = m->chain->images[m->index];
	struct tide_error cause = TIDE_ERROR_INIT;
	struct tide_sums *sums;
	bool changed = false;
	int rc;

	if ((tide_image_sums_are_beside(m->image) ? tide_sums_file_load(m->image, false, &sums, &changed, &cause)
	                                          : tide_image_sums_load(m->image, false, &sums, &cause)) < 0) {
		/* Without its table, the data is neither proven nor damaged. */
		if (cause.code == TIDE_E_CORRUPT)
			cause.code = TIDE_E_REFUSED;
		else if (cause.code == TIDE_E_DAMAGED)
			cause.code = TIDE_E_CORRUPT;
		return tide_query_chain_find_error(to, TIDE_FINDING_HEADER, &cause, err);
	}
	if (!sums) {
		if (tide_query_chain_find(to, TIDE_FINDING_UNKNOWN, 0, 0, why_none(m->image, changed), err) < 0)
			return -1;
		return unpack_image(m, sink, err);
	}
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
