/*
 * Restoring a chain: the checks of the target, the comparison for a restore in place, and the copy.
 *
 * Every check comes before the first write.  An existing target stays open and locked from the checks to the end of the
 * copy; its bitmaps become inconsistent, durably, before it is written.
 */
#include "restore.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/error.h"
#include "base/mem.h"
#include "base/range.h"
#include "copy/copy.h"
#include "image/compare.h"
#include "image/fingerprint.h"
#include "node/node_log.h"
#include "store/kinship.h"
#include "store/proof.h"
#include "store/sums_file.h"
#include "target.h"
#include "target_bitmaps.h"
#include "target_node.h"

#define UNIT_MIN 65536u

struct tide_restore {
	struct tide_node *node;
	struct tide_sink *sink;
	struct tide_target target;
	struct tide_copy copy;
	uint64_t *written;
	bool salvage;
	char *doubt;                  /* why the result is not proven to be the disk that was backed up, or NULL */
	struct tide_bitmap *unproven; /* after a rescue: what comes from no image, or from another one; or NULL */
	uint64_t exact_size;          /* of the disk */
	/* For an existing target: */
	bool existing, is_device; /* is_device: a block device, or an export, which is treated as one */
	bool is_uri;
	bool overwrites; /* all of it is written, without a comparison */
	struct tide_target_bitmaps bitmaps;
	struct tide_node *into; /* the target, if its bitmaps record the restore; else NULL */
};

/* ---- a new target ------------------------------------------------------------------ */

static int create_target(struct tide_restore *restore, const struct tide_chain_restore *args, struct tide_error *err)
{
	struct tide_image *source = restore->node->image;
	struct tide_driver_create create = { .size = restore->exact_size, .settings = args->settings };

	if (args->sidecar) {
		tide_error_set(err, TIDE_E_REFUSED, "A new target has no bitmaps that could record the restore");
		return tide_error_hint(err, "--sidecar of the target needs --in-place, or a device to overwrite");
	}
	restore->target.dry_run = restore->node->want.dry_run;
	restore->target.cancel = restore->node->cancel;
	if (tide_target_create(&restore->target, args->target,
	                       args->format ? args->format : tide_image_raw_driver()->name, &create, source,
	                       args->overwrite ? NULL : "write only the differences to it with --in-place", err) < 0)
		return -1;
	if (args->compress && !tide_image_can_compress(restore->target.image))
		return tide_error_set(err, TIDE_E_REFUSED, "Compression is not supported for this drive ");
	restore->copy.compress = args->compress;
	restore->copy.target_reads_zero = true;
	return 0;
}

/* ---- an existing target ------------------------------------------------------------ */

static bool is_same(const struct stat *a, const struct stat *b)
{
	if (S_ISBLK(a->st_mode) && S_ISBLK(b->st_mode))
		return a->st_rdev == b->st_rdev;
	return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

/* Replaces a loop device by its backing file, because both are the same data. */
static void resolve_loop(struct stat *st)
{
	char name[64], path[PATH_MAX];
	struct stat file;
	ssize_t n;
	int fd;

	if (!S_ISBLK(st->st_mode))
		return;
	snprintf(name, sizeof(name), "/sys/dev/block/%u:%u/loop/backing_file", major(st->st_rdev), minor(st->st_rdev));
	fd = open(name, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? -1 : read(fd, path, sizeof(path));
	tide_sysio_close(fd);
	if (n <= 1 || n == sizeof(path))
		return;
	path[n - 1] = '\0'; /* in place of the newline */
	if (stat(path, &file) == 0)
		*st = file;
}

/* Refuses an image of the chain as target.  The lock would refuse it too, with a message that is harder to understand.
 */
static int check_apart(const struct tide_restore *restore, const char *path, struct stat target, struct tide_error *err)
{
	resolve_loop(&target);
	for (struct tide_image *link = restore->node->image; link; link = tide_image_backing(link)) {
		struct stat st;

		if (!tide_image_is_file(link) || restore->is_uri) {
			if (!tide_image_is_file(link) && restore->is_uri && !strcmp(tide_image_path(link), path))
				return tide_error_set(err, TIDE_E_REFUSED, "'%s' is an image of the chain itself",
				                      path);
			continue;
		}
		if (fstat(tide_image_fd(link), &st) < 0)
			return tide_error_set_sys(err, errno, "Could not look at '%s'", tide_image_path(link));
		resolve_loop(&st);
		if (is_same(&st, &target))
			return tide_error_set(err, TIDE_E_REFUSED, "'%s' is an image of the chain itself", path);
	}
	return 0;
}

/* A target whose format is neither given nor pinned must not look like an image: it could be meant as raw or as that.
 */
static int open_existing(struct tide_restore *restore, const struct tide_chain_restore *args, struct tide_error *err)
{
	const char *format = args->format;

	if (args->sidecar) {
		if (tide_target_node_open(&restore->target, args->target, format, args->sidecar, restore->node,
		                          restore->sink, &restore->into, err) < 0)
			return -1;
		tide_target_bitmaps_except(&restore->bitmaps, restore->into->sidecar_path);
		return 0;
	}
	if (tide_target_bitmaps_format(&restore->bitmaps, args->target, &format, err) < 0 ||
	    tide_target_open(&restore->target, args->target, format, restore->bitmaps.is_guess, restore->node->allow,
	                     &restore->sink->cancelled, err) < 0)
		return -1;
	if (format || restore->is_uri || tide_image_is_raw(restore->target.image))
		return 0;
	format = tide_image_format_name(restore->target.image);
	tide_error_set(err, TIDE_E_REFUSED, "'%s' looks like an image of format '%s', and its format was not given",
	               args->target, format);
	return tide_error_hint(err, "use -F %s to write to the disk inside it, -F %s to overwrite the image itself",
	                       format, tide_image_raw_driver()->name);
}

static int check_size(const struct tide_restore *restore, const char *path, struct tide_error *err)
{
	uint64_t need = restore->exact_size, have = tide_image_size(restore->target.image);
	bool is_rounded = tide_image_info(restore->target.image)->cluster_size != 0;
	bool is_raw_device = restore->is_device && !is_rounded;

	if (have == need || (is_rounded && have == tide_range_align_up(need, 512)))
		return 0;
	if (is_raw_device && have > need) {
		tide_event_warning(restore->sink, path,
		                   "the %s has %" PRIu64 " bytes: those beyond the disk's %" PRIu64 " stay unchanged",
		                   restore->is_uri ? "export" : "device", have, need);
		return 0;
	}
	tide_error_set(err, TIDE_E_REFUSED, "'%s' has a size of %" PRIu64 " bytes, the disk to restore has %" PRIu64,
	               path, have, need);
	return tide_error_hint(err, restore->is_uri      ? "an export must be at least as large as the disk"
	                            : restore->is_device ? "a device must be at least as large as the disk"
	                                                 : "resize it, or replace it with --overwrite");
}

static int use_target(struct tide_restore *restore, const struct tide_chain_restore *args, const struct stat *st,
                      struct tide_error *err)
{
	restore->existing = true;
	restore->is_device = restore->is_uri || S_ISBLK(st->st_mode);
	restore->overwrites = !args->in_place;
	if (!restore->is_device && !S_ISREG(st->st_mode))
		return tide_error_set(err, TIDE_E_REFUSED, "'%s' is neither a regular file nor a block device",
		                      args->target);
	if (restore->overwrites && !restore->is_uri && args->format && !tide_image_is_raw_format(args->format))
		return tide_error_set(err, TIDE_E_REFUSED,
		                      "Could not create '%s': a new image on a block device must be %s", args->target,
		                      tide_image_raw_driver()->name);
	if (check_apart(restore, args->target, *st, err) < 0 ||
	    tide_target_bitmaps_find(&restore->bitmaps, args->target, NULL, err) < 0 ||
	    open_existing(restore, args, err) < 0)
		return -1;
	return check_size(restore, args->target, err) < 0
	               ? -1
	               : tide_target_bitmaps_check(&restore->bitmaps, args->target, err);
}

/* ---- a rescue ---------------------------------------------------------------------- */

/* The chain would find the target, with its zeroes, in the place of the file that it lacks. */
static int check_is_other(const char *missing, const char *target, struct tide_error *err)
{
	TIDE_AUTOFREE char *a = missing ? tide_target_final_path(missing, err) : NULL;
	TIDE_AUTOFREE char *b = a ? tide_target_final_path(target, err) : NULL;

	if (!b)
		return -1;
	if (strcmp(a, b) != 0)
		return 0;
	tide_error_set(err, TIDE_E_REFUSED, "'%s' is a file of the chain, which is missing or damaged", target);
	return tide_error_hint(err, "restore to another name");
}

/* Warns about an image of the chain that cannot be opened, and refuses it as target. */
static int check_break(const struct tide_restore *restore, const struct tide_image *link, const char *target,
                       struct tide_error *err)
{
	const struct tide_error *why = tide_image_broken(link), *why_data = tide_image_data_broken(link);
	const struct tide_driver_info *info = tide_image_info(link);
	const char *path = tide_image_path(link);
	TIDE_AUTOFREE char *missing = NULL, *data = NULL;

	if (why)
		tide_event_warning(
		        restore->sink, path, "%s%s", why->msg,
		        tide_image_backing(link) ? "" : "; data that only it, or images below it, can hold is lost");
	if (why && !tide_image_backing(link)) {
		missing = tide_image_resolve(path, info->backing, err);
		if (check_is_other(missing, target, err) < 0)
			return -1;
	}
	if (!why_data)
		return 0;
	tide_event_warning(restore->sink, path, "%s; data in the external data file is lost", why_data->msg);
	data = tide_image_find_data_file(path, info->data_file, TIDE_ALLOW_ANY, err);
	return check_is_other(data, target, err);
}

static int begin_salvage(struct tide_restore *restore, const struct tide_chain_restore *args, struct tide_error *err)
{
	struct tide_image *source = restore->node->image;

	if (!args->salvage)
		return 0;
	restore->salvage = true;
	for (const struct tide_image *link = source; link; link = tide_image_backing(link)) {
		if (check_break(restore, link, args->target, err) < 0)
			return -1;
	}
	return tide_image_salvage_begin(source, err);
}

/* A part would restore to a disk that never existed, with zeroes in the place of what is missing. */
static int refuse_kinship(const struct tide_image *link, const char *text, bool is_rebased, struct tide_error *err)
{
	tide_error_set(err, TIDE_E_REFUSED, "'%s' cannot be restored: %s", tide_image_path(link), text);
	if (is_rebased)
		return tide_error_hint(err, "if the chain is right, chain-verify --accept records it; "
		                            "--allow-part restores what there is");
	return tide_error_hint(err, "chain-verify checks the whole chain; --allow-part restores what there is");
}

/* The chain is restored, and the command says in the end that nothing proves the result. */
static int add_doubt(struct tide_restore *restore, const struct tide_image *link, const char *text,
                     struct tide_error *err)
{
	tide_event_warning(restore->sink, tide_image_path(link), "%s", text);
	if (!restore->doubt)
		restore->doubt = tide_mem_printf(err, "'%s': %s", tide_image_path(link), text);
	return restore->doubt ? 0 : -1;
}

/* All that the images down to this depth do not hold comes from another image than their base, or from none. */
static int find_unproven(struct tide_restore *restore, unsigned depth, struct tide_error *err)
{
	struct tide_image *image = restore->node->image;
	uint64_t size = tide_image_size(image);
	struct tide_extent x;

	restore->unproven = tide_bitmap_new(size, 512, err);
	if (!restore->unproven)
		return -1;
	for (uint64_t off = 0; off < size; off += x.len) {
		if (tide_image_extent(image, off, size - off, &x, err) < 0)
			return -1;
		if ((x.kind == TIDE_EXTENT_HOLE || x.depth > depth) &&
		    tide_bitmap_set(restore->unproven, off, x.len, err) < 0)
			return -1;
	}
	return 0;
}

/* An image without a record has stored what its backing image was like. */
static int check_content(struct tide_restore *restore, struct tide_image *link, struct tide_error *err)
{
	const struct tide_fingerprint *recorded = tide_image_info(link)->fingerprint;
	struct tide_fingerprint now;

	if (!recorded || !tide_image_backing(link))
		return 0;
	if (tide_fingerprint_take(tide_image_backing(link), &now, err) < 0)
		return -1;
	if (strcmp(recorded->disk, now.disk) != 0)
		return add_doubt(restore, link,
		                 "its backing image has another content than when this image was created on it", err);
	if (tide_fingerprint_is_written(recorded, &now))
		return add_doubt(restore, link, "its backing image was written to after this image was created on it",
		                 err);
	return 0;
}

/* *bad: the images below this one do not belong to it. */
static int check_link(struct tide_restore *restore, struct tide_image *link, const struct tide_image *above, bool *bad,
                      enum tide_kinship *kinship, struct tide_error *err)
{
	TIDE_AUTOFREE char *text = NULL;

	if (tide_kinship_check(link, above, false, kinship, &text, err) < 0)
		return -1;
	*bad = tide_kinship_is_bad(*kinship);
	if (*bad && !restore->salvage)
		return refuse_kinship(link, text, *kinship == TIDE_KINSHIP_REBASED, err);
	if (*bad || *kinship == TIDE_KINSHIP_LIKELY)
		return add_doubt(restore, link, text, err);
	if (*kinship == TIDE_KINSHIP_SAMPLED)
		tide_event_warning(restore->sink, tide_image_path(link), "%s", text);
	if (*kinship != TIDE_KINSHIP_SAMPLED && *kinship != TIDE_KINSHIP_FOREIGN)
		return 0;
	return check_content(restore, link, err);
}

static int check_kinship(struct tide_restore *restore, struct tide_error *err)
{
	const struct tide_image *above = NULL;
	unsigned depth = 0;

	if (tide_proof_of_copies(restore->node->image, restore->sink, err) < 0)
		return -1;
	for (struct tide_image *link = restore->node->image; link; above = link, link = tide_image_backing(link)) {
		struct tide_error why = TIDE_ERROR_INIT;
		enum tide_kinship kinship = TIDE_KINSHIP_FOREIGN;
		bool bad = false;
		int rc = check_link(restore, link, above, &bad, &kinship, &why);

		/* A rescue reads what can be read; data that is lost is reported in the end. */
		if (rc < 0 && restore->salvage && why.code != TIDE_E_NOMEM && why.code != TIDE_E_CANCELLED)
			rc = add_doubt(restore, link, why.msg, err);
		else if (rc < 0)
			return tide_error_move(err, &why);
		tide_error_release(&why);
		if (rc < 0 || (bad && !restore->unproven && find_unproven(restore, depth, err) < 0))
			return -1;
		if (kinship == TIDE_KINSHIP_COMPLETE)
			break;
		depth++;
	}
	return 0;
}

/* ---- preparing --------------------------------------------------------------------- */

static int find_target(struct tide_restore *restore, const struct tide_chain_restore *args, struct tide_error *err)
{
	bool is_uri = restore->is_uri = tide_image_is_uri(args->target);
	struct stat st = { 0 };
	bool exists = is_uri || stat(args->target, &st) == 0;

	if (args->in_place && args->overwrite)
		return tide_error_set(err, TIDE_E_USAGE, "A target is either replaced or written in place");
	if (!args->in_place && !(args->overwrite && exists && (is_uri || S_ISBLK(st.st_mode)))) {
		if (args->overwrite && exists && check_apart(restore, args->target, st, err) < 0)
			return -1;
		return create_target(restore, args, err);
	}
	if (args->compress || args->settings)
		return tide_error_set(err, TIDE_E_REFUSED,
		                      "Only a new target can be compressed or created with settings");
	if (exists)
		return use_target(restore, args, &st, err);
	tide_error_set_sys(err, errno, "Could not open '%s'", args->target);
	return tide_error_hint(err, "omit --in-place to create it");
}

static int prepare(struct tide_restore *restore, const struct tide_chain_restore *args, struct tide_error *err)
{
	struct tide_image *source = restore->node->image;
	struct tide_copy *copy = &restore->copy;
	uint64_t size;

	if (args->salvage && args->in_place)
		return tide_error_set(
		        err, TIDE_E_USAGE,
		        "A rescue needs a new target, or one that is replaced: in place it would overwrite "
		        "data with zeroes");
	if (begin_salvage(restore, args, err) < 0)
		return -1;
	restore->exact_size = tide_image_exact_size(source);
	if (tide_image_check_format(source, restore->node->path, "-f", err) < 0 ||
	    (!(restore->node->allow & TIDE_ALLOW_PART) && check_kinship(restore, err) < 0))
		return -1;
	if (tide_copy_way_wanted(&copy->way, err) < 0 || find_target(restore, args, err) < 0)
		return -1;
	copy->source = source;
	copy->target = restore->target.image;
	copy->unit = TIDE_MAX(UNIT_MIN, tide_copy_unit_min(copy->target, copy->compress));
	copy->device = restore->node->id;
	size = restore->is_device ? TIDE_MIN(restore->exact_size, tide_image_size(copy->target))
	                          : tide_image_size(copy->target);
	if (restore->existing && !restore->overwrites)
		copy->todo = tide_bitmap_new(size, copy->unit, err);
	else
		copy->todo = tide_copy_plan(size, copy->unit, NULL, err);
	return copy->todo ? 0 : -1;
}

int tide_restore_prepare(struct tide_node *node, const struct tide_chain_restore *args, struct tide_sink *sink,
                         struct tide_restore **out, struct tide_error *err)
{
	struct tide_restore *restore = tide_mem_alloc(1, sizeof(*restore), err);

	if (!restore)
		return -1;
	restore->node = node;
	restore->sink = restore->copy.sink = sink;
	restore->written = args->written;
	restore->target = (struct tide_target)TIDE_TARGET_INIT;
	if (prepare(restore, args, err) < 0) {
		tide_restore_free(restore);
		return -1;
	}
	*out = restore;
	return 0;
}

struct tide_image *tide_restore_target_image(const struct tide_restore *restore)
{
	return restore->target.image;
}

void tide_restore_free(struct tide_restore *restore)
{
	if (!restore)
		return;
	tide_bitmap_free(restore->copy.todo);
	tide_bitmap_free(restore->unproven);
	free(restore->doubt);
	tide_target_release(&restore->target);
	tide_node_free(restore->into);
	tide_target_bitmaps_release(&restore->bitmaps);
	free(restore);
}

/* ---- running ----------------------------------------------------------------------- */

static int set_different(struct tide_compare *compare, uint64_t off, uint64_t len, struct tide_error *err)
{
	return tide_bitmap_set(compare->data, off, len, err);
}

static int find_differences(struct tide_restore *restore, struct tide_error *err)
{
	struct tide_copy *copy = &restore->copy;
	struct tide_compare compare = {
		.a = copy->source,
		.b = copy->target,
		.end = tide_bitmap_size(copy->todo),
		.unit = copy->unit,
		.device = copy->device,
		.sink = copy->sink,
		.differs = set_different,
		.data = copy->todo,
	};

	if (tide_compare_run(&compare, err) < 0)
		return -1;
	if (restore->written)
		*restore->written = compare.differing;
	return tide_image_check_unchanged(copy->source, err);
}

/* Has the target a format that rounds sizes up, and another exact size? */
static bool has_other_size(const struct tide_restore *restore)
{
	struct tide_image *target = restore->copy.target;

	return tide_image_info(target)->cluster_size && tide_image_exact_size(target) != restore->exact_size;
}

static int write_existing(struct tide_restore *restore, struct tide_error *err)
{
	if (has_other_size(restore) && tide_image_set_exact_size(restore->copy.target, restore->exact_size, err) < 0)
		return -1;
	if (tide_fingerprint_remember(restore->copy.target, err) < 0)
		return -1;
	if (tide_copy_run(&restore->copy, err) == 0 && tide_image_check_unchanged(restore->node->image, err) == 0 &&
	    tide_target_stage(&restore->target, err) == 0)
		return 0;
	return tide_error_wrap(err, "'%s' is partly written now", tide_image_path(restore->target.image));
}

/* The same with the target's bitmaps.  The ranges are dirty there also after a failure. */
static int write_recorded(struct tide_restore *restore, struct tide_error *err)
{
	struct tide_error late = TIDE_ERROR_INIT;
	int rc;

	if (tide_target_node_record(restore->into, restore->copy.todo, err) < 0)
		return -1;
	rc = write_existing(restore, err);
	if (tide_target_node_end(restore->into, restore->sink, &late) == 0)
		return rc;
	if (rc == 0)
		return tide_error_move(err, &late);
	tide_error_release(&late);
	return -1;
}

static int run_existing(struct tide_restore *restore, struct tide_error *err)
{
	if (restore->into && tide_node_log_prepare(restore->into, restore->sink, err) < 0)
		return -1;
	if (!restore->overwrites && find_differences(restore, err) < 0)
		return -1;
	if (tide_bitmap_count(restore->copy.todo) == 0 && !has_other_size(restore))
		return 0;
	if (tide_target_bitmaps_distrust(&restore->bitmaps, restore->copy.target, "a restore", restore->sink, err) < 0)
		return -1;
	return restore->into ? write_recorded(restore, err) : write_existing(restore, err);
}

static int prove_image(struct tide_image *image, struct tide_error *err)
{
	struct tide_sums *sums;
	bool changed;

	if (!tide_image_sums_are_beside(image))
		return tide_image_prove(image, err);
	if (tide_sums_file_load(image, false, &sums, &changed, err) < 0)
		return -1;
	if (sums)
		tide_image_prove_by(image, sums);
	return 0;
}

/* Data is proven by its checksums as it is read. A table that is damaged only means that the data is not proven. */
static int prove_chain(struct tide_restore *restore, struct tide_error *err)
{
	for (struct tide_image *image = restore->node->image; image; image = tide_image_backing(image)) {
		struct tide_error why = TIDE_ERROR_INIT;

		if (prove_image(image, &why) == 0)
			continue;
		if (why.code == TIDE_E_DAMAGED && !restore->salvage)
			why.code = TIDE_E_CORRUPT;
		else if (why.code == TIDE_E_CORRUPT || why.code == TIDE_E_DAMAGED)
			why.code = TIDE_E_UNSUPPORTED;
		if (why.code != TIDE_E_UNSUPPORTED)
			return tide_error_move(err, &why);
		tide_event_warning(restore->sink, restore->node->path, "%s; its data is not proven", why.msg);
		tide_error_release(&why);
	}
	return 0;
}

int tide_restore_run(struct tide_restore *restore, struct tide_error *err)
{
	if (prove_chain(restore, err) < 0)
		return -1;
	/* So that a change of the chain is noticed at the end. */
	if (tide_image_settle_chain(restore->node->image, err) < 0)
		return -1;
	if (restore->existing)
		return run_existing(restore, err);
	return tide_copy_run(&restore->copy, err) < 0 ? -1 : tide_image_check_unchanged(restore->node->image, err);
}

const struct tide_bitmap *tide_restore_lost(const struct tide_restore *restore)
{
	return restore->salvage ? tide_image_salvage_lost(restore->node->image) : NULL;
}

const struct tide_bitmap *tide_restore_unproven(const struct tide_restore *restore)
{
	return restore->unproven;
}

/* Reports the ranges, and returns how many bytes they have. */
static uint64_t list_ranges(const struct tide_restore *restore, const struct tide_bitmap *ranges, const char *what)
{
	uint64_t off = 0, len, bytes = 0;

	for (; tide_bitmap_next_dirty(ranges, off, UINT64_MAX, &off, &len); off += len, bytes += len)
		tide_event_warning(restore->sink, restore->node->path,
		                   "%" PRIu64 " bytes at %" PRIu64 " of the disk %s", len, off, what);
	return bytes;
}

int tide_restore_check_lost(struct tide_restore *restore, const char *target, struct tide_error *err)
{
	const struct tide_bitmap *lost = tide_restore_lost(restore);
	uint64_t bytes;

	if (restore->unproven)
		list_ranges(restore, restore->unproven, "come from a base that is absent or not proven");
	if (lost && tide_bitmap_count(lost) > 0) {
		tide_event_warning(restore->sink, restore->node->path, "the first error: %s",
		                   tide_image_salvage_first(restore->node->image)->msg);
		bytes = list_ranges(restore, lost, "cannot be read");
		tide_error_set(err, TIDE_E_DAMAGED,
		               "%" PRIu64 " bytes of the disk could not be read, and are zeroes in '%s'; the rest is "
		               "restored",
		               bytes, target);
		return tide_error_hint(err, "restore these ranges from another backup");
	}
	if (!restore->doubt)
		return 0;
	tide_error_set(err, TIDE_E_DAMAGED,
	               "'%s' is restored, and nothing proves that it is the disk that was backed up: %s", target,
	               restore->doubt);
	return tide_error_hint(err,
	                       "compare the chain with chain-verify --against; if it is right, chain-verify --accept "
	                       "records that; --allow-part restores without this check");
}

struct tide_target *tide_restore_new_target(struct tide_restore *restore)
{
	return restore->existing ? NULL : &restore->target;
}
