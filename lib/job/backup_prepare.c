/*
 * Preparing a backup job: QEMU's checks of the arguments in QEMU's order, the target, the plan of units to copy, and
 * freezing the bitmap.
 *
 * Everything that can be refused is refused here.  If the job uses a bitmap, the node's store stays locked until the
 * commit, so the plan and the frozen bitmap are of the same moment.  No file changes: a new target has no name yet.
 */
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "backup_job.h"
#include "base/error.h"
#include "base/lock.h"
#include "base/mark.h"
#include "base/mem.h"
#include "base/range.h"
#include "node/node_image.h"

#define UNIT_MIN      65536u
#define NODE_NAME_MAX 31

/* ---- arguments --------------------------------------------------------------------- */

/* QEMU's checks, in its order (blockdev.c, do_backup_common); *entry becomes the bitmap if one is given. */
static int check_bitmap_args(struct tide_backup_job *job, const struct tide_backup *args,
                             struct tide_sidecar_bitmap **entry, struct tide_error *err)
{
	bool wants = tide_backup_is_increment(job->sync);
	const char *sync = tide_backup_sync_names[job->sync];
	unsigned flags = job->bitmap_mode == TIDE_BITMAP_MODE_NEVER ? 0 : TIDE_BITMAP_WILL_WRITE;

	if (wants && !args->bitmap)
		return tide_error_set(err, TIDE_E_REFUSED, "must provide a valid bitmap name for '%s' sync mode", sync);
	if (job->sync == TIDE_SYNC_INCREMENTAL && job->bitmap_mode != TIDE_BITMAP_MODE_UNSET &&
	    job->bitmap_mode != TIDE_BITMAP_MODE_ON_SUCCESS)
		return tide_error_set(err, TIDE_E_REFUSED,
		                      "Bitmap sync mode must be 'on-success' when using sync mode 'incremental'");
	if (job->sync == TIDE_SYNC_INCREMENTAL)
		job->bitmap_mode = TIDE_BITMAP_MODE_ON_SUCCESS;
	if (!args->bitmap) {
		if (job->bitmap_mode != TIDE_BITMAP_MODE_UNSET)
			return tide_error_set(err, TIDE_E_REFUSED, "Cannot specify bitmap sync mode without a bitmap");
		return 0;
	}
	if (!tide_node_has(job->node, args->bitmap))
		return tide_error_set(err, TIDE_E_REFUSED, "Bitmap '%s' could not be found", args->bitmap);
	if (job->bitmap_mode == TIDE_BITMAP_MODE_UNSET)
		return tide_error_set(err, TIDE_E_REFUSED, "Bitmap sync mode must be given when providing a bitmap");
	if (job->reset_bitmap)
		flags |= TIDE_BITMAP_ALLOW_INCONSISTENT;
	*entry = tide_node_find_usable(job->node, args->bitmap, flags, err);
	if (!*entry)
		return -1;
	if (job->sync == TIDE_SYNC_NONE)
		return tide_error_set(err, TIDE_E_REFUSED,
		                      "sync mode 'none' does not produce meaningful bitmap outputs");
	if (job->bitmap_mode == TIDE_BITMAP_MODE_NEVER && !wants)
		return tide_error_set(
		        err, TIDE_E_REFUSED,
		        "Bitmap sync mode 'never' has no meaningful effect when combined with sync mode '%s'", sync);
	return 0;
}

/* onto: the id of the drive that is the target, or "". */
static int check_supported(const struct tide_backup_job *job, const struct tide_backup *args, const char *onto,
                           struct tide_error *err)
{
	if (job->sync == TIDE_SYNC_NONE) {
		tide_error_set(
		        err, TIDE_E_REFUSED,
		        "sync mode 'none' copies data that a running guest overwrites; an image without a guest has "
		        "nothing to copy");
		return tide_error_hint(err, "use full, top or incremental");
	}
	if (args->compress && !tide_image_can_compress(job->target.image))
		return tide_error_set(err, TIDE_E_REFUSED, "Compression is not supported for this drive %s", onto);
	return 0;
}

/* QEMU's id_wellformed: a letter, then letters, digits, '-', '.' and '_'. */
static bool is_id(const char *id)
{
	const char *letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";

	return *id && strchr(letters, *id) &&
	       !id[1 + strspn(id + 1, "abcdefghijklmnopqrstuvwxyz"
	                              "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._")];
}

static int check_checksums(const struct tide_backup_job *job, const struct tide_backup *args, struct tide_error *err)
{
	uint64_t start, end;
	int fd, rc;

	if (args->checksums != TIDE_CHECKSUMS_ALWAYS)
		return 0;
	rc = tide_image_sums_range(job->target.image, &fd, &start, &end, err);
	if (rc <= 0)
		return rc;
	tide_error_set(err, TIDE_E_REFUSED, "'%s' cannot have checksums of its data", args->target);
	return tide_error_hint(err, "a raw file can, and a qcow2 file of version 3 without an external data file");
}

/* The checks that QEMU makes last. */
static int check_job(const struct tide_backup_job *job, const struct tide_backup *args, struct tide_error *err)
{
	if (args->job_id && !is_id(job->id)) {
		tide_error_set(err, TIDE_E_REFUSED, "Invalid job ID '%s'", job->id);
		return tide_error_hint(err, "a letter, then letters, digits, '-', '.', '_'");
	}
	if (args->speed <= INT64_MAX)
		return 0;
	tide_event_job_status(job->sink, job->id, "created");
	tide_event_job_status(job->sink, job->id, "null");
	return tide_error_set(err, TIDE_E_REFUSED, "Parameter 'speed' expects a non-negative value");
}

int tide_backup_check_node_name(const char *name, struct tide_error *err)
{
	if (!is_id(name))
		return tide_error_set(err, TIDE_E_REFUSED, "Invalid node-name: '%s'", name);
	if (strlen(name) > NODE_NAME_MAX)
		return tide_error_set(err, TIDE_E_REFUSED, "Node name too long");
	return 0;
}

/* ---- the target -------------------------------------------------------------------- */

static const char *probe_backing(const char *path, const char *name, struct tide_error *err)
{
	TIDE_AUTOIMAGE struct tide_image *image = NULL;
	TIDE_AUTOFREE char *where = tide_image_resolve(path, name, err);
	struct tide_image_options options = { .path = where, .force_share = true, .no_backing = true };

	if (!where || tide_target_bitmaps_pinned(where, &options.format, err) < 0)
		return NULL;
	if (options.format)
		return options.format;
	if (tide_image_open(&options, &image, err) < 0) {
		tide_error_wrap(err, "Could not open backing file");
		return NULL;
	}
	if (tide_image_check_format(image, name, "format=", NULL) == 0)
		return tide_image_format_name(image);
	tide_error_set(err, TIDE_E_REFUSED, "The format of the backing image '%s' cannot be derived from its content",
	               name);
	tide_error_hint(err, "specify --backing '%s',format=%s", name, tide_image_format_name(image));
	return NULL;
}

/* The target must not be the sidecar of the source, whether that exists or not. */
static int check_not_sidecar(const struct tide_backup_job *job, const char *target, struct tide_error *err)
{
	TIDE_AUTOFREE char *name = NULL;
	TIDE_AUTOFREE char *where = NULL;

	if (!job->node->sidecar_path)
		return 0;
	name = tide_target_name_from(job->node->sidecar_path, target, err);
	where = name ? tide_image_resolve(job->node->sidecar_path, name, err) : NULL;
	if (!where)
		return -1;
	if (!strcmp(where, job->node->sidecar_path))
		return tide_error_set(err, TIDE_E_REFUSED, "Could not create '%s': it is the sidecar of the source",
		                      target);
	return 0;
}

/* The backup that the bitmap counts from becomes the backing image.  Errors of the bitmap itself are reported later. */
static int find_base(struct tide_backup_job *job, const struct tide_backup *args, char **backing,
                     struct tide_driver_create *create, struct tide_error *err)
{
	TIDE_AUTOFREE char *path = NULL;
	struct tide_sidecar_bitmap *entry = NULL;

	if (!tide_backup_is_increment(job->sync) || check_bitmap_args(job, args, &entry, NULL) < 0)
		return 0;
	if (tide_backup_find_base(job, entry, &path, &create->backing_format, err) < 0)
		return -1;
	if (!path)
		return 0;
	*backing = tide_target_name_from(args->target, path, err);
	create->backing = *backing;
	return *backing ? 0 : -1;
}

static int create_target(struct tide_backup_job *job, const struct tide_backup *args, struct tide_error *err)
{
	struct tide_image *source = job->node->image;
	const struct tide_driver_info *info = tide_image_info(source);
	struct tide_driver_create create = {
		.size = job->exact_size,
		.allow = job->node->allow,
		.settings = args->settings,
	};
	const char *own = tide_image_is_file(source) ? tide_image_format_name(source) : tide_image_raw_driver()->name;
	const char *format = args->format ? args->format : own;
	const struct tide_image_driver *driver = tide_image_find_driver(format);
	TIDE_AUTOFREE char *backing = NULL;

	if ((job->node->sidecar_path && check_not_sidecar(job, args->target, err) < 0) ||
	    (args->mode != TIDE_MODE_NEW && tide_backup_guard_base(job->node, args->target, false, err) < 0))
		return -1;
	/* In QEMU such a target gets the source as its backing image. */
	if (job->sync == TIDE_SYNC_NONE && driver && driver->create && !driver->has_backing)
		return tide_error_set(err, TIDE_E_REFUSED, "Backing file not supported for file format '%s'", format);
	if (args->backing) {
		backing = tide_target_backing_name(args->target, args->backing, err);
		if (!backing)
			return -1;
		create.backing_format =
		        args->backing_format ? args->backing_format : probe_backing(args->target, backing, err);
		if (!create.backing_format)
			return -1;
	} else if (job->sync == TIDE_SYNC_TOP && tide_image_backing(source)) {
		backing = tide_target_name_from(args->target, tide_image_path(tide_image_backing(source)), err);
		if (!backing)
			return -1;
		create.backing_format = info->backing_format;
	}
	create.backing = backing;
	job->target.dry_run = job->node->want.dry_run;
	job->target.cancel = &job->sink->cancelled;
	if (!backing && args->use_base && driver && driver->has_backing &&
	    find_base(job, args, &backing, &create, err) < 0)
		return -1;
	if (tide_target_create(&job->target, args->target, format, &create, source,
	                       args->mode == TIDE_MODE_NEW ? "write to it with --mode existing" : NULL, err) < 0)
		return -1;
	tide_target_warn_outside(&job->target, job->sink, args->target);
	/* A target that may get a backing image below it later, or that stays although it is incomplete, must store
	 * where zeroes are.  In a raw image and in a complete full backup all that is not written reads as zeroes. */
	job->copy.target_reads_zero = driver->is_raw || (!backing && job->sync == TIDE_SYNC_FULL &&
	                                                 job->bitmap_mode != TIDE_BITMAP_MODE_ALWAYS);
	return 0;
}

/*
 * Writing to a probed raw target would let its next probe find what the guest has written. A drive of the request
 * has been opened as raw already, and a mark keeps it raw.
 */
static int check_format(struct tide_backup_job *job, const char *name, struct tide_error *err)
{
	struct tide_image *target = job->target.image;

	if (job->onto && tide_image_can_resize(target) &&
	    tide_mark_set(tide_image_fd(target), tide_image_format_name(target)))
		return 0;
	return tide_image_check_format(target, name, "-F", err);
}

/* As in QEMU, to replace a device or an export means to write all of it. */
static int check_overwrite(const struct tide_backup_job *job, const struct tide_backup *args, bool *is_device,
                           struct tide_error *err)
{
	*is_device = args->mode == TIDE_MODE_ABSOLUTE_PATHS && tide_target_is_device(args->target);
	if (!*is_device || job->sync == TIDE_SYNC_FULL)
		return 0;
	tide_error_set(err, TIDE_E_REFUSED, "Could not create '%s': only a full backup can replace its content",
	               args->target);
	return tide_error_hint(err, "to write the changes to it, use --mode existing");
}

/* A new image on a device would need a size of its own, so only raw is possible there. */
static int find_device_format(const struct tide_backup_job *job, const struct tide_backup *args, const char **format,
                              struct tide_error *err)
{
	if (tide_image_is_uri(args->target))
		return 0;
	if (!*format && tide_image_is_file(job->node->image))
		*format = tide_image_format_name(job->node->image);
	if (!*format || tide_image_is_raw_format(*format)) {
		*format = tide_image_raw_driver()->name;
		return 0;
	}
	tide_error_set(err, TIDE_E_REFUSED, "Could not create '%s': a new image on a block device must be %s",
	               args->target, tide_image_raw_driver()->name);
	return tide_error_hint(err, "specify -F %s", tide_image_raw_driver()->name);
}

static int open_target(struct tide_backup_job *job, const struct tide_backup *args, struct tide_error *err)
{
	const char *format = args->format;
	bool is_device;

	job->exact_size = tide_image_exact_size(job->node->image);
	if (check_overwrite(job, args, &is_device, err) < 0)
		return -1;
	if (args->mode != TIDE_MODE_EXISTING && !is_device)
		return create_target(job, args, err);
	if (args->backing || args->settings)
		return tide_error_set(err, TIDE_E_REFUSED, "Only a new target can %s, not %s",
		                      args->backing ? "be given a backing image" : "be created with settings",
		                      is_device ? "a device or an export" : "one of mode 'existing'");
	if ((is_device && find_device_format(job, args, &format, err) < 0) ||
	    tide_backup_guard_base(job->node, args->target, true, err) < 0 ||
	    tide_target_bitmaps_find(&job->bitmaps, args->target, job->onto ? job->onto->sidecar : NULL, err) < 0 ||
	    tide_target_bitmaps_format(&job->bitmaps, args->target, &format, err) < 0 ||
	    tide_target_open(&job->target, args->target, format, job->bitmaps.is_guess, job->node->allow,
	                     &job->sink->cancelled, err) < 0 ||
	    check_format(job, args->target, err) < 0)
		return -1;
	return tide_target_bitmaps_check(&job->bitmaps, args->target, err);
}

/* Compares the sizes in sectors, as QEMU does. */
static int check_sizes(const struct tide_backup_job *job, struct tide_error *err)
{
	uint64_t source = tide_range_align_up(tide_image_size(job->node->image), 512);
	uint64_t target = tide_range_align_up(tide_image_size(job->target.image), 512);

	if (source != target)
		return tide_error_set(err, TIDE_E_REFUSED, "Source and target image have different sizes");
	return 0;
}

/*
 * A guest of a raw disk on a device may have written the header of an image. A copy of a disk that changes meanwhile
 * may be a disk that never existed.
 */
static int check_source(const struct tide_node *node, struct tide_error *err)
{
	if (tide_image_check_not_raw(node->image, node->path, "-f", err) < 0)
		return -1;
	if (node->allow & TIDE_ALLOW_CHANGING)
		return 0;
	for (const struct tide_image *link = node->image; link; link = tide_image_backing(link)) {
		if (!tide_image_info(link)->may_change)
			continue;
		tide_error_set(err, TIDE_E_REFUSED, "'%s' can be written while it is backed up", tide_image_path(link));
		return tide_error_hint(
		        err, "the backup may belong to no single moment; export the disk read-only, such as a snapshot "
		             "of it, or, if nothing writes to it now, use --allow-changing-source");
	}
	return 0;
}

/* ---- the plan ---------------------------------------------------------------------- */

static struct tide_bitmap *plan_top(const struct tide_backup_job *job, uint64_t target_size, struct tide_error *err)
{
	uint64_t size = tide_image_size(job->node->image);
	TIDE_AUTOBITMAP struct tide_bitmap *own = tide_bitmap_new(size, job->copy.unit, err);
	struct tide_extent x;

	if (!own)
		return NULL;
	for (uint64_t off = 0; off < size; off += x.len) {
		if (tide_image_extent_top(job->node->image, off, size - off, &x, err) < 0)
			return NULL;
		if (x.kind != TIDE_EXTENT_HOLE && tide_bitmap_set(own, off, x.len, err) < 0)
			return NULL;
	}
	return tide_copy_plan(target_size, job->copy.unit, own, err);
}

/*
 * A disk that has become smaller leaves old bytes in the target, after its end but within the size that the target
 * rounds to. They are replaced by zeroes.
 */
static int plan_tail(struct tide_backup_job *job, uint64_t size, struct tide_error *err)
{
	uint64_t exact = job->exact_size, have = TIDE_MIN(size, tide_image_size(job->target.image));

	if (exact >= have || tide_image_is_zero(job->target.image, exact, have - exact))
		return 0;
	return tide_bitmap_set(job->copy.todo, exact, have - exact, err);
}

/* The ranges that the bitmap has, and those that bitmaps of its name in backing images have. */
static struct tide_bitmap *plan_dirty(struct tide_backup_job *job, struct tide_sidecar_bitmap *entry, uint64_t size,
                                      struct tide_error *err)
{
	struct tide_bitmap *own = tide_node_bitmap(job->node, entry, err);
	TIDE_AUTOBITMAP struct tide_bitmap *all = NULL;

	if (!own)
		return NULL;
	if (!tide_image_backing(job->node->image))
		return tide_copy_plan(size, job->copy.unit, own, err);
	all = tide_bitmap_copy(own, err);
	if (!all || tide_backup_unite(job->node, entry->name, job->sink, all, err) < 0)
		return NULL;
	return tide_copy_plan(size, job->copy.unit, all, err);
}

static uint64_t copy_unit(const struct tide_backup_job *job)
{
	return TIDE_MAX(UNIT_MIN, tide_copy_unit_min(job->target.image, job->copy.compress));
}

static int plan(struct tide_backup_job *job, struct tide_sidecar_bitmap *entry, struct tide_error *err)
{
	uint64_t size = tide_image_can_resize(job->target.image) ? job->exact_size : tide_image_size(job->target.image);

	job->copy.unit = copy_unit(job);
	if (job->sync == TIDE_SYNC_TOP) {
		job->copy.todo = plan_top(job, size, err);
	} else if (job->sync == TIDE_SYNC_FULL) {
		job->copy.todo = tide_copy_plan(size, job->copy.unit, NULL, err);
	} else {
		tide_node_warn_unchecked(job->node, entry, job->sink);
		job->copy.todo = plan_dirty(job, entry, size, err);
	}
	if (!job->copy.todo || plan_tail(job, size, err) < 0)
		return -1;
	job->copy.len = tide_bitmap_count(job->copy.todo) * job->copy.unit;
	return 0;
}

static int take_token(struct tide_backup_job *job, struct tide_sidecar_bitmap *entry, struct tide_error *err)
{
	int fd = tide_image_fd(job->node->image);

	if (entry->in_image) {
		job->in_image = true;
		job->token = tide_node_image_token(entry->name);
		return tide_node_image_hold(job->node, entry, err);
	}
	if (tide_lock_token_new(&job->token, err) < 0 || tide_lock_token_hold(fd, job->token, err) < 0)
		return -1;
	entry->token = job->token;
	job->node->in_sidecar.is_dirty = true;
	return 0;
}

static int remember_older(struct tide_backup_job *job, const struct tide_sidecar *store, struct tide_error *err)
{
	job->older = tide_mem_alloc(store->n + 1, sizeof(*job->older), err);
	if (!job->older)
		return -1;
	for (size_t i = 0; i < store->n; i++) {
		job->older[i] = tide_mem_strdup(store->items[i]->name, err);
		if (!job->older[i])
			return -1;
		job->n_older++;
	}
	return 0;
}

/* Makes the bitmap busy, with a successor that records from now on. */
static int freeze(struct tide_backup_job *job, struct tide_sidecar_bitmap *entry, struct tide_error *err)
{
	struct tide_sidecar_bitmap *successor =
	        tide_sidecar_bitmap_new(NULL, tide_image_size(job->node->image), entry->granularity, err);

	if (!successor)
		return -1;
	successor->enabled = entry->enabled || job->reset_bitmap;
	if (take_token(job, entry, err) < 0) {
		tide_sidecar_bitmap_free(successor);
		return -1;
	}
	entry->successor = successor;
	return remember_older(job, entry->in_image ? job->node->in_image.list : job->node->in_sidecar.list, err);
}

/* Checks x-perf by QEMU's rules; only max-workers and max-chunk have an effect here. */
static int check_perf(const struct tide_backup *args, struct tide_error *err)
{
	if (args->has_max_workers && (args->max_workers < 1 || args->max_workers > INT_MAX))
		return tide_error_set(err, TIDE_E_REFUSED, "max-workers must be between 1 and %d", INT_MAX);
	if (args->has_max_chunk && args->max_chunk < 0)
		return tide_error_set(err, TIDE_E_REFUSED, "max-chunk must be zero (which means no limit) or positive");
	return 0;
}

static int check_chunk(const struct tide_backup_job *job, const struct tide_backup *args, struct tide_error *err)
{
	long long unit = (long long)copy_unit(job);

	if (args->max_chunk > 0 && args->max_chunk < unit)
		return tide_error_set(err, TIDE_E_REFUSED,
		                      "Required max-chunk (%lld) is less than backup cluster size (%lld)",
		                      (long long)args->max_chunk, unit);
	return 0;
}

static int prepare(struct tide_backup_job *job, const struct tide_backup *args, const struct tide_id *point,
                   const char *onto, struct tide_error *err)
{
	struct tide_sidecar_bitmap *entry = NULL;

	if (job->node->job)
		return tide_error_set(err, TIDE_E_REFUSED,
		                      "Node '%s' is busy: block device is in use by block job: backup", job->node->id);
	if (check_source(job->node, err) < 0 || open_target(job, args, err) < 0 ||
	    check_bitmap_args(job, args, &entry, err) < 0 || check_supported(job, args, onto, err) < 0 ||
	    check_perf(args, err) < 0 || check_checksums(job, args, err) < 0 || check_sizes(job, err) < 0 ||
	    check_chunk(job, args, err) < 0 || check_job(job, args, err) < 0)
		return -1;
	if (tide_copy_way_wanted(&job->copy.way, err) < 0 || plan(job, entry, err) < 0 ||
	    tide_backup_check_base(job, entry, err) < 0 || tide_backup_set_birth(job, point, entry, err) < 0)
		return -1;
	/* A server's bitmap cannot be changed, so it is neither frozen nor settled. */
	return entry && !tide_node_is_owned_by_server(job->node, entry) ? freeze(job, entry, err) : 0;
}

int tide_backup_prepare(struct tide_node *node, const struct tide_backup *args, const struct tide_id *point,
                        struct tide_node *onto, struct tide_sink *sink, struct tide_backup_job **out,
                        struct tide_error *err)
{
	struct tide_backup_job *job = tide_mem_alloc(1, sizeof(*job), err);

	if (!job)
		return -1;
	job->target = (struct tide_target)TIDE_TARGET_INIT;
	job->node = node;
	job->onto = onto;
	job->sink = sink;
	job->sync = args->sync;
	job->bitmap_mode = args->bitmap_mode;
	job->reset_bitmap =
	        args->reset_bitmap && args->sync == TIDE_SYNC_FULL && args->bitmap_mode == TIDE_BITMAP_MODE_ON_SUCCESS;
	job->on_source_error = args->on_source_error;
	job->on_target_error = args->on_target_error;
	job->retry_after = args->retry_after;
	job->checksums = args->checksums;
	job->copy.sink = sink;
	job->copy.speed = args->speed;
	job->copy.workers = args->has_max_workers ? (unsigned)TIDE_MIN(args->max_workers, INT_MAX) : 0;
	job->copy.compress = args->compress;
	job->copy.detect_zeroes = args->detect_zeroes;
	job->copy.piece_max = args->max_chunk > 0 ? (uint64_t)args->max_chunk : 0;
	job->copy.retry = tide_backup_retry;
	atomic_init(&job->copy.stop, false);
	job->id = tide_mem_strdup(args->job_id ? args->job_id : node->id, err);
	if (job->id && args->bitmap)
		job->bitmap = tide_mem_strdup(args->bitmap, err);
	if (!job->id || (args->bitmap && !job->bitmap) || prepare(job, args, point, onto ? onto->id : "", err) < 0) {
		tide_backup_free(job);
		return -1;
	}
	job->copy.device = job->id;
	job->copy.source = node->image;
	job->copy.target = job->target.image;
	*out = job;
	return 0;
}
