/*
 * The query of a chain: describes its images, checks them, and compares the disk with another one.
 *
 * Each defect becomes a finding of the image that it concerns, and the checks continue with the rest.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/error.h"
#include "base/mem.h"
#include "base/range.h"
#include "base/sized.h"
#include "base/sysio.h"
#include "bitmap/bitmap_list.h"
#include "image/compare.h"
#include "image/fingerprint.h"
#include "image/sums.h"
#include "job/accept.h"
#include "job/target_bitmaps.h"
#include "query_backup.h"
#include "query_chain.h"
#include "session.h"
#include "store/kinship.h"
#include "store/proof.h"
#include "store/sums_file.h"

#define UNIT_MIN  4096u
#define UNITS_MAX (UINT64_C(1) << 30) /* of a comparison: a bit each, 128 MiB */

static const char *const finding_names[] = {
	[TIDE_FINDING_LEAK] = "leak",       [TIDE_FINDING_REFCOUNT] = "refcount", [TIDE_FINDING_OVERLAP] = "overlap",
	[TIDE_FINDING_BOUNDS] = "bounds",   [TIDE_FINDING_ENTRY] = "entry",       [TIDE_FINDING_COPIED] = "copied",
	[TIDE_FINDING_HEADER] = "header",   [TIDE_FINDING_LINK] = "link",         [TIDE_FINDING_DOUBT] = "doubt",
	[TIDE_FINDING_UNKNOWN] = "unknown", [TIDE_FINDING_PART] = "part",         [TIDE_FINDING_DATA] = "data",
};

const char *tide_finding_name(enum tide_finding_kind kind)
{
	return (size_t)kind < TIDE_FINDING_KINDS ? finding_names[kind] : "unknown";
}

/* ---- findings ---------------------------------------------------------------------- */

static enum tide_verdict verdict_of(enum tide_finding_kind kind)
{
	if (kind == TIDE_FINDING_DOUBT)
		return TIDE_VERDICT_WHOLE;
	if (kind == TIDE_FINDING_PART)
		return TIDE_VERDICT_PART;
	return kind == TIDE_FINDING_UNKNOWN ? TIDE_VERDICT_UNKNOWN : TIDE_VERDICT_DAMAGED;
}

/* Damage is worse than a part, in whichever order they are found. */
static enum tide_verdict worse(enum tide_verdict a, enum tide_verdict b)
{
	static const int badness[] = {
		[TIDE_VERDICT_WHOLE] = 0,
		[TIDE_VERDICT_UNKNOWN] = 1,
		[TIDE_VERDICT_PART] = 2,
		[TIDE_VERDICT_DAMAGED] = 3,
	};

	return badness[a] > badness[b] ? a : b;
}

/* The last finding continues: it is of the same kind and ends where this one begins. */
static bool continues(const struct tide_chain_image *to, enum tide_finding_kind kind, uint64_t off, const char *text)
{
	const struct tide_finding *last = to->n_findings ? to->findings[to->n_findings - 1] : NULL;

	return last && last->kind == kind && last->len && last->off + last->len == off && !strcmp(last->text, text);
}

int tide_query_chain_find(void *data, enum tide_finding_kind kind, uint64_t off, uint64_t len, const char *text,
                          struct tide_error *err)
{
	struct tide_chain_image *to = data;
	struct tide_finding *finding;

	to->counts[kind]++;
	to->verdict = worse(to->verdict, verdict_of(kind));
	if (continues(to, kind, off, text)) {
		to->findings[to->n_findings - 1]->len += len;
		return 0;
	}
	if (to->n_findings == TIDE_FINDINGS_MAX)
		return 0;
	if (!(to->n_findings & (to->n_findings - 1))) {
		struct tide_finding **grown =
		        tide_mem_realloc(to->findings, TIDE_MAX(to->n_findings * 2, 1), sizeof(*grown), err);

		if (!grown)
			return -1;
		to->findings = grown;
	}
	finding = tide_mem_alloc(1, sizeof(*finding), err);
	if (!finding)
		return -1;
	*finding = (struct tide_finding){ kind, off, len, tide_mem_strdup(text, err) };
	to->findings[to->n_findings++] = finding;
	return finding->text ? 0 : -1;
}

static TIDE_PRINTF(4, 5) int say(struct tide_chain_image *to, enum tide_finding_kind kind, struct tide_error *err,
                                 const char *fmt, ...)
{
	va_list ap;
	char text[512];

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	return tide_query_chain_find(to, kind, 0, 0, text, err);
}

int tide_query_chain_find_error(struct tide_chain_image *to, enum tide_finding_kind damage, struct tide_error *cause,
                                struct tide_error *err)
{
	int rc;

	if (cause->code == TIDE_E_CANCELLED || cause->code == TIDE_E_NOMEM)
		return tide_error_move(err, cause);
	rc = tide_query_chain_find(to, cause->code == TIDE_E_CORRUPT ? damage : TIDE_FINDING_UNKNOWN, 0, 0, cause->msg,
	                           err);
	tide_error_release(cause);
	return rc;
}

/* ---- one image --------------------------------------------------------------------- */

static int copy_text(char **to, const char *from, struct tide_error *err)
{
	if (!from)
		return 0;
	*to = tide_mem_strdup(from, err);
	return *to ? 0 : -1;
}

/* Both are absolute.  The path of an image outside the top image's directory stays absolute. */
static int set_path(struct tide_chain_image *to, const char *path, const char *top, struct tide_error *err)
{
	const char *slash = strrchr(top, '/');
	size_t dir = slash ? (size_t)(slash - top) + 1 : 0;

	if (copy_text(&to->path, path, err) < 0)
		return -1;
	return copy_text(&to->filename, dir && !strncmp(path, top, dir) ? path + dir : path, err);
}

static int measure(struct tide_image *image, struct tide_chain_image *to, struct tide_error *err)
{
	uint64_t size = tide_image_size(image);
	struct tide_error cause = TIDE_ERROR_INIT;
	struct tide_extent x;

	for (uint64_t off = 0; off < size; off += x.len) {
		if (tide_image_extent_top(image, off, size - off, &x, &cause) < 0)
			return tide_query_chain_find_error(to, TIDE_FINDING_ENTRY, &cause, err);
		if (x.kind == TIDE_EXTENT_DATA)
			to->data += x.len;
		else if (x.kind == TIDE_EXTENT_ZERO)
			to->zeroes += x.len;
	}
	return 0;
}

static int count_bitmap(struct tide_image *image, size_t index, struct tide_bitmap_info *to,
                        struct tide_chain_image *at, struct tide_error *err)
{
	struct tide_error cause = TIDE_ERROR_INIT;
	struct tide_bitmap *bm;

	if (to->inconsistent)
		return 0;
	if (tide_image_read_bitmap(image, index, &bm, &cause) < 0)
		return tide_query_chain_find_error(at, TIDE_FINDING_ENTRY, &cause, err);
	to->count = tide_bitmap_count(bm) * to->granularity;
	tide_bitmap_free(bm);
	return 0;
}

/* The bitmaps inside an image that is not the top one. */
static int list_inside(struct tide_image *image, struct tide_chain_image *to, struct tide_error *err)
{
	const struct tide_driver_info *info = tide_image_info(image);

	to->bitmaps = tide_bitmap_list_new(info->n_bitmaps, err);
	if (!to->bitmaps)
		return -1;
	for (size_t i = 0; i < info->n_bitmaps; i++) {
		struct tide_bitmap_info *b = tide_bitmap_list_add(to->bitmaps, info->bitmaps[i].name, err);

		if (!b)
			return -1;
		b->granularity = info->bitmaps[i].granularity;
		b->recording = info->bitmaps[i].enabled;
		b->inconsistent = info->bitmaps[i].in_use;
		b->persistent = true;
		b->store = TIDE_STORE_IMAGE;
		if (count_bitmap(image, i, b, to, err) < 0)
			return -1;
	}
	return 0;
}

static int look_at_flags(const struct tide_driver_info *info, struct tide_chain_image *to, struct tide_error *err)
{
	if (info->corrupt && say(to, TIDE_FINDING_HEADER, err, "the header says that the image is corrupt") < 0)
		return -1;
	if (info->dirty)
		return say(to, TIDE_FINDING_DOUBT, err,
		           "the image was not closed properly: its reference counts may be out of date");
	return 0;
}

/* A table that is damaged or void does not count. */
static bool has_checksums(struct tide_image *image)
{
	enum tide_sums_state state = tide_image_info(image)->sums;
	struct tide_error ignored = TIDE_ERROR_INIT;
	struct tide_sums *sums = NULL;
	bool changed, has;

	if (!tide_image_sums_are_beside(image))
		return state == TIDE_SUMS_VALID || state == TIDE_SUMS_DOUBTFUL;
	has = tide_sums_file_load(image, false, &sums, &changed, &ignored) == 0 && sums;
	tide_sums_free(sums);
	tide_error_release(&ignored);
	return has;
}

static int describe(struct tide_image *image, const char *top, bool verify, struct tide_chain_image *to,
                    struct tide_error *err)
{
	const struct tide_driver_info *info = tide_image_info(image);
	bool is_file = tide_image_is_file(image);
	struct stat st = { 0 };

	if (is_file && fstat(tide_image_fd(image), &st) < 0)
		return tide_error_set_sys(err, errno, "fstat");
	to->is_remote = !is_file;
	to->has_checksums = is_file && has_checksums(image);
	to->virtual_size = info->size;
	to->cluster_size = info->cluster_size;
	to->actual_size = (uint64_t)st.st_blocks * 512;
	to->modified_s = st.st_mtim.tv_sec;
	to->modified_ns = (uint32_t)st.st_mtim.tv_nsec;
	if ((is_file && tide_sysio_size(tide_image_fd(image), &to->file_size, err) < 0) ||
	    set_path(to, tide_image_path(image), top, err) < 0 ||
	    copy_text(&to->format, tide_image_format_name(image), err) < 0 ||
	    copy_text(&to->backing_filename, info->backing, err) < 0 ||
	    copy_text(&to->backing_format, info->backing_format, err) < 0)
		return -1;
	if (verify)
		return 0;
	return look_at_flags(info, to, err) < 0 ? -1 : measure(image, to, err);
}

/* The next image of the chain, in the room that it has. */
static struct tide_chain_image *add_image(struct tide_chain *chain, struct tide_error *err)
{
	struct tide_chain_image *image = tide_mem_alloc(1, sizeof(*image), err);

	if (!image)
		return NULL;
	chain->images[chain->n++] = image;
	image->counts = tide_mem_alloc(TIDE_FINDING_KINDS, sizeof(*image->counts), err);
	return image->counts ? image : NULL;
}

/* ---- links ------------------------------------------------------------------------- */

/* An increment without its base is a part: the missing image is that base. */
static int say_part(struct tide_image *image, struct tide_chain_image *to, struct tide_error *err)
{
	TIDE_AUTOFREE char *text = NULL;
	enum tide_kinship kinship;

	if (tide_kinship_check(image, NULL, false, &kinship, &text, err) < 0)
		return -1;
	if (kinship != TIDE_KINSHIP_PART)
		return 0;
	return say(to, TIDE_FINDING_PART, err, "the image above is a part: %s", text);
}

/* The chain ends here although the image has a backing image: because of damage, or for an unknown reason. */
static int explain_break(struct tide_chain *chain, struct tide_image *above, const char *top, struct tide_error *err)
{
	const struct tide_error *why = tide_image_broken(above);
	struct tide_chain_image *to = add_image(chain, err);
	bool gone = why->code == TIDE_E_IO && (why->sys == ENOENT || why->sys == ENOTDIR || why->sys == ELOOP);
	TIDE_AUTOFREE char *path = tide_image_resolve(tide_image_path(above), tide_image_info(above)->backing, err);

	if (!to || !path || set_path(to, path, top, err) < 0)
		return -1;
	if (tide_query_chain_find(to, gone || why->code == TIDE_E_CORRUPT ? TIDE_FINDING_LINK : TIDE_FINDING_UNKNOWN, 0,
	                          0, why->msg, err) < 0)
		return -1;
	return gone ? say_part(above, to, err) : 0;
}

static int check_sizes(struct tide_chain_image *to, const struct tide_chain_image *below, struct tide_error *err)
{
	uint64_t size = tide_range_align_up(to->virtual_size, 512),
	         other = tide_range_align_up(below->virtual_size, 512);

	if (size == other)
		return 0;
	return say(to, TIDE_FINDING_DOUBT, err,
	           "the disk has %" PRIu64 " bytes and the backing image's %" PRIu64 ": %s", to->virtual_size,
	           below->virtual_size,
	           size < other ? "the end of the backing image is not visible" : "the rest reads as zeroes");
}

/* A backing image that is newer than its overlay may have changed since the overlay was created. */
static int check_times(const struct tide_image *image, struct tide_chain_image *to, struct tide_error *err)
{
	const struct tide_stamp *a = tide_image_stamp(image), *b = tide_image_stamp(tide_image_backing(image));

	if (!a->valid || !b->valid || b->mtime_sec < a->mtime_sec ||
	    (b->mtime_sec == a->mtime_sec && b->mtime_nsec <= a->mtime_nsec))
		return 0;
	return say(to, TIDE_FINDING_DOUBT, err, "the backing image was modified later than this one");
}

/* The overlay declares its backing image raw.  If the content looks like another format, that may be a mistake. */
static int check_raw(struct tide_image *below, struct tide_chain_image *to, struct tide_error *err)
{
	const struct tide_image_driver *other;
	struct tide_error ignored = TIDE_ERROR_INIT;
	uint8_t head[512];

	if (!tide_image_is_raw(below))
		return 0;
	if (tide_sysio_pread(tide_image_fd(below), head, sizeof(head), 0, true, &ignored) < 0) {
		tide_error_release(&ignored);
		return 0;
	}
	other = tide_image_probe_driver(head, sizeof(head));
	if (!other || other->is_raw)
		return 0;
	return say(to, TIDE_FINDING_DOUBT, err, "the backing image is recorded as %s but begins like a %s",
	           tide_image_format_name(below), other->name);
}

/* ---- the chain --------------------------------------------------------------------- */

static size_t depth_of(const struct tide_image *image)
{
	size_t n = 0;

	for (; image; image = tide_image_backing(image))
		n++;
	return n;
}

static int walk(struct tide_image *top, bool verify, struct tide_chain *chain, struct tide_error *err)
{
	const char *path = tide_image_path(top);

	for (struct tide_image *image = top; image; image = tide_image_backing(image)) {
		struct tide_chain_image *to = add_image(chain, err);

		if (!to || describe(image, path, verify, to, err) < 0 ||
		    tide_query_backup(image, &to->backup, err) < 0 || (image != top && list_inside(image, to, err) < 0))
			return -1;
		if (tide_image_broken(image) && explain_break(chain, image, path, err) < 0)
			return -1;
	}
	return 0;
}

/* Checksums that are added make the file larger and keep the time of its last change. */
static bool is_only_recorded(const struct tide_image *image, const struct tide_fingerprint *then,
                             const struct tide_fingerprint *now)
{
	return tide_image_info(tide_image_backing(image))->sums == TIDE_SUMS_VALID &&
	       then->stamp.mtime_sec == now->stamp.mtime_sec && then->stamp.mtime_nsec == now->stamp.mtime_nsec;
}

/*
 * Compares the fingerprint that the image stores of its backing disk with the disk.  A difference means that the image
 * shows data that never belonged together.  compared: the caller also compares every byte, so a doubt is not reported.
 */
static int check_content(struct tide_image *image, bool compared, struct tide_chain_image *to, struct tide_error *err)
{
	const struct tide_fingerprint *recorded = tide_image_info(image)->fingerprint;
	struct tide_error cause = TIDE_ERROR_INIT;
	struct tide_fingerprint now;

	if (!recorded)
		return 0;
	if (tide_fingerprint_take(tide_image_backing(image), &now, &cause) < 0)
		return tide_query_chain_find_error(to, TIDE_FINDING_ENTRY, &cause, err);
	if (strcmp(recorded->disk, now.disk))
		return say(to, TIDE_FINDING_LINK, err,
		           "the backing image has changed: its disk has a different content than when this image was "
		           "created on it");
	if (compared || !tide_fingerprint_is_written(recorded, &now) || is_only_recorded(image, recorded, &now))
		return 0;
	return say(to, TIDE_FINDING_UNKNOWN, err,
	           "the backing image was written to after this image was created on it; --against checks whether its "
	           "disk is "
	           "still the same");
}

/* The place of a backup among others, unless another finding explains already why the disk may be another one. */
static int say_kinship(enum tide_kinship kinship, const char *text, bool compared, bool explained,
                       struct tide_chain_image *to, struct tide_error *err)
{
	if (kinship == TIDE_KINSHIP_PART)
		return say(to, TIDE_FINDING_PART, err, "%s", text);
	if (kinship == TIDE_KINSHIP_SAMPLED && !compared)
		return say(to, TIDE_FINDING_DOUBT, err, "%s; --against compares all of it", text);
	if (kinship == TIDE_KINSHIP_WRONG && !explained)
		return say(to, TIDE_FINDING_LINK, err, "%s", text);
	if (kinship == TIDE_KINSHIP_UNKNOWN && !compared)
		return say(to, TIDE_FINDING_UNKNOWN, err, "%s; --against compares it with the disk", text);
	if ((kinship == TIDE_KINSHIP_LIKELY || kinship == TIDE_KINSHIP_REBASED) && !explained && !compared &&
	    to->verdict == TIDE_VERDICT_WHOLE)
		return say(to, TIDE_FINDING_UNKNOWN, err,
		           kinship == TIDE_KINSHIP_REBASED
		                   ? "%s; --against compares all of it, and with --accept it is accepted then"
		                   : "%s; --against compares all of it, --accept trusts the sample",
		           text);
	return 0;
}

/* *complete: the images below do not matter. */
static int check_kinship(struct tide_image *image, const struct tide_image *above, bool compared,
                         struct tide_chain_image *to, bool *complete, struct tide_error *err)
{
	struct tide_error cause = TIDE_ERROR_INIT;
	TIDE_AUTOFREE char *text = NULL;
	bool damaged = to->verdict == TIDE_VERDICT_DAMAGED;
	enum tide_kinship kinship;

	if (tide_kinship_check(image, above, false, &kinship, &text, &cause) < 0)
		return tide_query_chain_find_error(to, TIDE_FINDING_ENTRY, &cause, err);
	*complete = kinship == TIDE_KINSHIP_COMPLETE;
	if (!*complete && kinship != TIDE_KINSHIP_PROVEN && tide_image_backing(image) &&
	    check_content(image, compared, to, err) < 0)
		return -1;
	return say_kinship(kinship, text, compared, damaged || to->counts[TIDE_FINDING_LINK], to, err);
}

/* Only for a complete chain: a missing image would read as zeroes. */
static int check_contents(struct tide_image *image, bool compared, struct tide_chain *chain, struct tide_sink *sink,
                          struct tide_error *err)
{
	const struct tide_image *above = NULL;
	bool complete = false;

	for (size_t i = 0; image && !complete; above = image, image = tide_image_backing(image), i++) {
		if (tide_event_is_cancelled(sink))
			return tide_error_set(err, TIDE_E_CANCELLED, "Cancelled");
		if (check_kinship(image, above, compared, chain->images[i], &complete, err) < 0)
			return -1;
	}
	return 0;
}

/* Checks each link between two known images. */
static int check_links(struct tide_image *image, struct tide_chain *chain, struct tide_error *err)
{
	for (size_t i = 0; tide_image_backing(image); image = tide_image_backing(image), i++) {
		struct tide_chain_image *to = chain->images[i];

		if (check_sizes(to, chain->images[i + 1], err) < 0 || check_times(image, to, err) < 0 ||
		    check_raw(tide_image_backing(image), to, err) < 0)
			return -1;
	}
	return 0;
}

static bool is_cancelled(void *data)
{
	return tide_event_is_cancelled(data);
}

/* The callbacks of a check get one pointer for both. */
struct checking {
	struct tide_chain_image *to;
	struct tide_sink *sink;
};

static int on_found(void *data, enum tide_finding_kind kind, uint64_t off, uint64_t len, const char *text,
                    struct tide_error *err)
{
	return tide_query_chain_find(((struct checking *)data)->to, kind, off, len, text, err);
}

static bool on_cancelled(void *data)
{
	return is_cancelled(((struct checking *)data)->sink);
}

static int check_images(struct tide_image *image, struct tide_chain *chain, struct tide_sink *sink,
                        struct tide_error *err)
{
	for (size_t i = 0; image; image = tide_image_backing(image), i++) {
		struct checking data = { chain->images[i], sink };
		struct tide_check check = { .found = on_found, .cancelled = on_cancelled, .data = &data };
		struct tide_error cause = TIDE_ERROR_INIT;

		if (tide_image_check(image, &check, &cause) < 0 &&
		    tide_query_chain_find_error(data.to, TIDE_FINDING_HEADER, &cause, err) < 0)
			return -1;
	}
	chain->verified = true;
	return 0;
}

/* ---- comparing --------------------------------------------------------------------- */

static int open_other(const struct tide_chain_options *options, const struct tide_node *node, struct tide_sink *sink,
                      struct tide_image **other, struct tide_error *err)
{
	struct tide_image_options open = {
		.path = options->against,
		.format = options->against_format,
		.force_share = node->force_share,
		.allow = node->allow,
		.cancel = &sink->cancelled,
	};

	if (tide_target_bitmaps_open(&open, other, err) < 0)
		return -1;
	return tide_image_check_format(*other, options->against, "--against-format", err);
}

/* If one of the two images reads from the other, a comparison proves nothing. */
static int check_apart(struct tide_image *top, struct tide_image *other, const char *name, struct tide_error *err)
{
	for (struct tide_image *i = top; i; i = tide_image_backing(i)) {
		if (tide_image_is_same_file(i, other))
			return tide_error_set(
			        err, TIDE_E_REFUSED,
			        "'%s' belongs to the chain itself: data that the chain reads from it cannot differ",
			        name);
	}
	for (struct tide_image *i = other; i; i = tide_image_backing(i)) {
		if (tide_image_is_same_file(i, top))
			return tide_error_set(
			        err, TIDE_E_REFUSED,
			        "'%s' reads from the image itself: data that it reads from there cannot differ", name);
	}
	return 0;
}

/* An image that both read: the comparison proves nothing of it.  NULL: there is none. */
static const struct tide_image *find_shared(const struct tide_image *top, const struct tide_image *other)
{
	for (; top; top = tide_image_backing(top)) {
		for (const struct tide_image *i = other; i; i = tide_image_backing(i)) {
			if (tide_image_is_same_file(i, top))
				return top;
		}
	}
	return NULL;
}

static int refuse_shared(const char *against, const struct tide_image *shared, struct tide_error *err)
{
	tide_error_set(err, TIDE_E_REFUSED, "'%s' reads from '%s', too, so it proves nothing of that image", against,
	               tide_image_path(shared));
	return tide_error_hint(err, "compare with the disk itself, or with an image that reads from none of the chain");
}

static int set_different(struct tide_compare *compare, uint64_t off, uint64_t len, struct tide_error *err)
{
	return tide_bitmap_set(compare->data, off, len, err);
}

static int list_differences(const struct tide_bitmap *bm, struct tide_chain *chain, struct tide_error *err)
{
	uint64_t off = 0, start, len;
	size_t room = 0;

	while (off < chain->size && tide_bitmap_next_dirty(bm, off, UINT64_MAX, &start, &len)) {
		if (chain->n_differences == room) {
			struct tide_range *grown;

			room = room ? room * 2 : 64;
			grown = tide_mem_realloc(chain->differences, room, sizeof(*grown), err);
			if (!grown)
				return -1;
			chain->differences = grown;
		}
		chain->differences[chain->n_differences++] = (struct tide_range){ start, len };
		chain->differing += len;
		off = start + len;
	}
	return 0;
}

/* The longer disk has only zeroes more; but a restored disk has another length. */
static int compare_sizes(struct tide_image *top, struct tide_image *other, struct tide_chain *chain,
                         struct tide_error *err)
{
	uint64_t a = tide_image_exact_size(top), b = tide_image_exact_size(other);

	if (a == b || chain->n_differences)
		return 0;
	return say(chain->images[0], TIDE_FINDING_DOUBT, err,
	           "the chain restores to a disk of %" PRIu64 " bytes, and '%s' has %" PRIu64
	           ": the longer one ends with zeroes",
	           a, tide_image_path(other), b);
}

static uint64_t choose_unit(uint64_t size)
{
	uint64_t unit = UNIT_MIN;

	while (size / unit > UNITS_MAX)
		unit *= 2;
	return unit;
}

static int compare_disks(struct tide_node *node, struct tide_image *other, struct tide_sink *sink,
                         struct tide_chain *chain, struct tide_error *err)
{
	TIDE_AUTOBITMAP struct tide_bitmap *different = NULL;
	struct tide_error cause = TIDE_ERROR_INIT;
	struct tide_compare compare = {
		.a = node->image,
		.b = other,
		.device = node->id,
		.sink = sink,
		.differs = set_different,
	};

	chain->size = TIDE_MAX(tide_image_size(node->image), tide_image_size(other));
	chain->unit = choose_unit(chain->size);
	compare.end = chain->size;
	compare.unit = chain->unit;
	compare.data = different = tide_bitmap_new(chain->size, chain->unit, err);
	if (!different)
		return -1;
	if (tide_compare_run(&compare, &cause) < 0 || tide_image_check_unchanged(other, &cause) < 0)
		return compare.cancelled
		               ? tide_error_move(err, &cause)
		               : tide_query_chain_find_error(chain->images[0], TIDE_FINDING_ENTRY, &cause, err);
	chain->compared = true;
	if (list_differences(different, chain, err) < 0)
		return -1;
	return compare_sizes(node->image, other, chain, err);
}

static int compare_with(struct tide_node *node, struct tide_image *other, struct tide_sink *sink,
                        struct tide_chain *chain, struct tide_error *err)
{
	if (!chain->images[chain->n - 1]->format)
		return say(chain->images[0], TIDE_FINDING_UNKNOWN, err, "not compared: the chain is broken");
	return compare_disks(node, other, sink, chain, err);
}

/* ---- the query --------------------------------------------------------------------- */

static void judge(struct tide_chain *chain)
{
	chain->verdict = chain->n_differences ? TIDE_VERDICT_DAMAGED : TIDE_VERDICT_WHOLE;
	for (size_t i = 0; i < chain->n; i++)
		chain->verdict = worse(chain->verdict, chain->images[i]->verdict);
}

/* A file that lost its header looks like a raw image. */
static int check_format(const struct tide_node *node, struct tide_chain *chain, struct tide_error *err)
{
	struct tide_error cause = TIDE_ERROR_INIT;

	if (tide_image_check_format(node->image, node->path, "-f", &cause) == 0)
		return 0;
	return tide_query_chain_find_error(chain->images[0], TIDE_FINDING_UNKNOWN, &cause, err);
}

static int verify_chain(struct tide_session *session, struct tide_node *node, const struct tide_chain_options *options,
                        struct tide_chain *chain, struct tide_error *err)
{
	struct tide_error cause = TIDE_ERROR_INIT;
	TIDE_AUTOIMAGE struct tide_image *other = NULL;
	const struct tide_image *shared;

	if (check_format(node, chain, err) < 0 || check_images(node->image, chain, &session->sink, err) < 0)
		return -1;
	if (options->record && !options->data)
		return 0;
	/* A backup all of which is proven is as it was made, whatever the times of the files say. */
	if ((options->data ? tide_query_data(node->image, chain, &session->sink, node->id, err)
	                   : tide_proof_of_copies(node->image, &session->sink, err)) < 0)
		return -1;
	if (options->against && (open_other(options, node, &session->sink, &other, err) < 0 ||
	                         check_apart(node->image, other, options->against, err) < 0))
		return -1;
	shared = find_shared(node->image, other);
	if (shared && options->accept && !options->record)
		return refuse_shared(options->against, shared, err);
	if (chain->images[chain->n - 1]->format &&
	    check_contents(node->image, other && !shared, chain, &session->sink, err) < 0)
		return -1;
	if (other && compare_with(node, other, &session->sink, chain, err) < 0)
		return -1;
	/* With force_share the caller accepts that other programs write. */
	if (!node->force_share && tide_image_check_unchanged(node->image, &cause) < 0)
		return tide_query_chain_find_error(chain->images[0], TIDE_FINDING_UNKNOWN, &cause, err);
	return 0;
}

static int query_chain(struct tide_session *session, struct tide_node *node, const struct tide_chain_options *options,
                       struct tide_chain *chain, struct tide_error *err)
{
	struct tide_error cause = TIDE_ERROR_INIT;

	/* A broken chain has one image more than could be opened. */
	chain->images = tide_mem_alloc(depth_of(node->image) + 1, sizeof(*chain->images), err);
	if (!chain->images || walk(node->image, options->verify, chain, err) < 0 ||
	    check_links(node->image, chain, err) < 0)
		return -1;
	if (tide_node_list(node, &chain->images[0]->bitmaps, &cause) < 0 &&
	    tide_query_chain_find_error(chain->images[0], TIDE_FINDING_ENTRY, &cause, err) < 0)
		return -1;
	if (options->verify && verify_chain(session, node, options, chain, err) < 0)
		return -1;
	judge(chain);
	return 0;
}

/* Opens the node, and leaves it open. */
static int run_query(struct tide_session *session, struct tide_node *node, const struct tide_chain_options *options,
                     struct tide_chain **out, struct tide_error *err)
{
	struct tide_chain *chain = tide_mem_alloc(1, sizeof(*chain), err);
	int rc = -1;

	if (!chain)
		return -1;
	node->partial = true;
	if (tide_node_open(node, TIDE_NODE_READ, false, &session->sink, err) == 0)
		rc = query_chain(session, node, options, chain, err);
	else if (options->verify && err && err->code == TIDE_E_CORRUPT)
		err->code = TIDE_E_DAMAGED;
	node->partial = false;
	if (rc == 0)
		*out = chain;
	else
		tide_chain_free(chain);
	return rc;
}

/* ---- accepting ---------------------------------------------------------------------- */

/* Damage cannot be accepted; an image that shows another disk than before may be accepted. */
static bool is_acceptable(const struct tide_chain *chain)
{
	for (size_t i = 0; i < chain->n; i++) {
		const struct tide_chain_image *image = chain->images[i];

		for (int kind = TIDE_FINDING_REFCOUNT; kind < TIDE_FINDING_LINK; kind++) {
			if (image->counts[kind])
				return false;
		}
		if (!image->format || image->counts[TIDE_FINDING_DATA])
			return false;
	}
	return !chain->n_differences;
}

/* The chain as it is afterwards, with what the comparison has found before. */
static int query_again(struct tide_session *session, struct tide_node *node, bool data, struct tide_chain **chain,
                       struct tide_error *err)
{
	struct tide_chain *before = *chain, *after;

	if (run_query(session, node, &(struct tide_chain_options){ .verify = true, .data = data }, &after, err) < 0)
		return -1;
	after->compared = before->compared;
	after->size = before->size;
	after->unit = before->unit;
	after->accepted = before->accepted;
	tide_chain_free(before);
	*chain = after;
	return 0;
}

static int accept_chain(struct tide_session *session, struct tide_node *node, const struct tide_chain_options *options,
                        struct tide_chain **chain, struct tide_error *err)
{
	TIDE_AUTOFREE char *refusal = NULL;
	struct tide_accept *accept;
	int rc;

	if (!is_acceptable(*chain))
		return 0;
	if (tide_accept_plan(node->image, (*chain)->compared, &accept, &refusal, err) < 0)
		return -1;
	if (refusal) {
		tide_event_warning(&session->sink, node->path, "nothing is accepted: %s", refusal);
		return 0;
	}
	if (!tide_accept_is_due(accept)) {
		tide_accept_free(accept);
		return 0;
	}
	tide_session_close_nodes(session);
	rc = tide_accept_apply(accept, node->allow, &session->sink, &(*chain)->accepted, err);
	tide_accept_free(accept);
	return rc < 0 ? -1 : query_again(session, node, options->data, chain, err);
}

/* ---- recording ---------------------------------------------------------------------- */

/* The structures of the images are checked first, so that no damage of theirs is given checksums. */
static int check_and_record(struct tide_session *session, struct tide_node *node, struct tide_chain_options *options,
                            struct tide_error *err)
{
	unsigned allow = node->allow;
	struct tide_chain *chain;
	int rc;

	options->data = false;
	rc = run_query(session, node, options, &chain, err);
	options->data = true;
	tide_session_close_nodes(session);
	if (rc < 0)
		return -1;
	rc = tide_query_record(chain, options->accept, allow, &session->sink, err);
	tide_chain_free(chain);
	return rc;
}

/* ---- the entry ----------------------------------------------------------------------- */

static int query(struct tide_session *session, struct tide_node *node, struct tide_chain_options *options,
                 struct tide_chain **chain, struct tide_error *err)
{
	if (options->verify && options->record && check_and_record(session, node, options, err) < 0)
		return -1;
	if (run_query(session, node, options, chain, err) < 0)
		return -1;
	return options->verify && options->accept && !options->record ? accept_chain(session, node, options, chain, err)
	                                                              : 0;
}

int tide_query_chain_sized(struct tide_session *session, const char *id, const struct tide_chain_options *given,
                           size_t size, struct tide_chain **out, struct tide_error *err)
{
	struct tide_chain_options options;
	struct tide_node *node = tide_session_find(session, id);
	struct tide_chain *chain = NULL;
	int rc;

	session->replied = false;
	if (tide_sized_take(&options, sizeof(options), given, size, err) < 0)
		return -1;
	if (!node)
		return tide_error_set(err, TIDE_E_REFUSED, "Cannot find device='%s' nor node-name='%s'", id, id);
	rc = query(session, node, &options, &chain, err);
	tide_session_close_nodes(session);
	if (rc < 0) {
		tide_chain_free(chain);
		return -1;
	}
	*out = chain;
	return 0;
}

void tide_chain_free(struct tide_chain *chain)
{
	if (!chain)
		return;
	for (size_t i = 0; chain->images && i < chain->n; i++) {
		struct tide_chain_image *image = chain->images[i];

		free(image->filename);
		free(image->path);
		free(image->format);
		free(image->backing_filename);
		free(image->backing_format);
		tide_bitmap_list_free(image->bitmaps);
		for (size_t k = 0; k < image->n_findings; k++) {
			free(image->findings[k]->text);
			free(image->findings[k]);
		}
		free(image->findings);
		tide_query_backup_free(image->backup);
		free(image->counts);
		free(image);
	}
	free(chain->images);
	free(chain->differences);
	free(chain);
}
