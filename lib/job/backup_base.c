/*
 * The base of an increment, which holds what has changed since one backup, and so belongs on that one. Identifiers
 * prove which it is. Where there is none, because QEMU or an older version made the bitmap or the backup, a sample of
 * what the bitmap calls unchanged is compared.
 */
#include <stdlib.h>
#include <unistd.h>

#include "backup_job.h"
#include "base/error.h"
#include "base/mem.h"
#include "base/range.h"
#include "store/identity.h"
#include "store/kinship.h"

const struct tide_base *tide_backup_known_base(const struct tide_backup_job *job,
                                               const struct tide_sidecar_bitmap *entry)
{
	const struct tide_stamp *stamp = tide_image_stamp(job->node->image);
	const struct tide_base *base = entry ? entry->base : NULL;

	if (!base || (entry->enabled && !base->paused.valid))
		return base;
	return base->paused.valid && stamp->valid && tide_stamp_is_equal(&base->paused, stamp) ? base : NULL;
}

/*
 * A bitmap inside the image may have been used by QEMU since, for a backup of its own.  And nothing shows whether a
 * device or an export is still that disk.
 */
bool tide_backup_needs_sample(const struct tide_node *node, const struct tide_sidecar_bitmap *entry)
{
	return entry->in_image || !tide_image_stamp(node->image)->valid;
}

static int refuse_other(const struct tide_backup_job *job, const struct tide_base *base, const char *backing,
                        const struct tide_birth *birth, struct tide_error *err)
{
	char of_base[TIDE_IDENTITY_TIME], of_backing[TIDE_IDENTITY_TIME];

	tide_identity_format_time(base->time, of_base);
	tide_identity_format_time(birth->time, of_backing);
	tide_error_set(err, TIDE_E_REFUSED,
	               "The bitmap '%s' counts from the backup '%s' of %s, and '%s' is another backup, of %s",
	               job->bitmap, base->path, of_base, backing, of_backing);
	return tide_error_hint(err,
	                       "chain the increment on the backup that the bitmap counts from, or make a full backup; "
	                       "--sync auto chooses; --allow-base=other does as you say");
}

static int refuse_sample(const struct tide_backup_job *job, const char *backing, struct tide_error *err)
{
	if (job->sync == TIDE_SYNC_TOP) {
		tide_error_set(err, TIDE_E_REFUSED,
		               "'%s' differs from the disk where the top image of that holds nothing", backing);
		return tide_error_hint(err, "use a target on the backing image of the disk, or make a full backup; "
		                            "--allow-base=other does as you say");
	}
	tide_error_set(err, TIDE_E_REFUSED,
	               "'%s' differs from the disk where the bitmap '%s' says that nothing has changed since", backing,
	               job->bitmap);
	return tide_error_hint(err, "it is not the backup that the bitmap counts from; name that one, or make a full "
	                            "backup; --allow-base=other does as you say");
}

static int check_disk(const struct tide_backup_job *job, const struct tide_image *backing,
                      const struct tide_birth *birth, struct tide_error *err)
{
	if (!tide_id_differs(&job->node->in_sidecar.list->disk, &birth->disk))
		return 0;
	tide_error_set(err, TIDE_E_REFUSED, "'%s' is a backup of another disk", tide_image_path(backing));
	return tide_error_hint(err, "is the image the one that you mean? --allow-base=other does as you say");
}

/* No option makes these a base. */
static int check_possible(const struct tide_backup_job *job, struct tide_image *backing, const struct tide_birth *birth,
                          struct tide_error *err)
{
	if (tide_image_is_same_file(backing, job->node->image))
		return tide_error_set(err, TIDE_E_REFUSED,
		                      "The disk '%s' itself cannot be the backing image of its backup",
		                      tide_image_path(job->node->image));
	if (!birth || birth->unknown ||
	    tide_range_align_up(birth->exact_size, 512) == tide_range_align_up(tide_image_size(backing), 512))
		return 0;
	return tide_error_set(err, TIDE_E_REFUSED,
	                      "The backup '%s' was made of a disk of %llu bytes, and has another size now",
	                      tide_image_path(backing), (unsigned long long)birth->exact_size);
}

/*
 * An increment restores to the disk only if its backing image does.  is_base: the bitmap counts from it.  *proven:
 * identifiers prove all links below, so nothing has to be compared.
 */
static int check_chain(struct tide_image *backing, bool is_base, bool *proven, struct tide_error *err)
{
	const struct tide_image *above = NULL;

	*proven = true;
	for (struct tide_image *link = backing; link; above = link, link = tide_image_backing(link)) {
		TIDE_AUTOFREE char *text = NULL;
		enum tide_kinship kinship;

		if (tide_kinship_check(link, above, is_base && !above, &kinship, &text, err) < 0)
			return -1;
		if (kinship == TIDE_KINSHIP_COMPLETE)
			break;
		*proven = *proven && kinship == TIDE_KINSHIP_PROVEN;
		if (!tide_kinship_is_bad(kinship))
			continue;
		tide_error_set(err, TIDE_E_REFUSED,
		               "An increment on '%s' could not be restored: '%s' is not in order: %s",
		               tide_image_path(backing), tide_image_path(link), text);
		return tide_error_hint(
		        err, "chain-verify checks all of the chain, and --accept makes a right one whole; "
		             "or make a full backup, as --sync auto does; --allow-base=other does as you say");
	}
	return 0;
}

/* ---- what the backup is part of ----------------------------------------------------- */

struct basis {
	struct tide_backup_job *job;
	const struct tide_sidecar_bitmap *entry;
	const struct tide_base *base;   /* that the bitmap counts from, or NULL */
	struct tide_birth *own, *below; /* of an existing target; of its backing image; or NULL */
	bool updates;                   /* the target is the base itself, which becomes the new backup */
	bool proven;                    /* identifiers prove all links below the new backup */
	bool linked;                    /* the image below is the base: by identifiers, or all of it was compared */
};

static int refuse_own(const struct tide_backup_job *job, struct tide_error *err)
{
	tide_error_set(err, TIDE_E_REFUSED,
	               "The target '%s' holds data of its own that differs from the disk where nothing is copied",
	               tide_image_path(job->target.image));
	return tide_error_hint(err, "write to a new target or to an empty overlay, or make a full backup; "
	                            "--allow-base=other does as you say");
}

static int refuse_stranger(const struct tide_backup_job *job, struct tide_error *err)
{
	tide_error_set(err, TIDE_E_REFUSED,
	               "The image and its sidecar are not of the same time, so the backup that the bitmap '%s' counts "
	               "from is not known",
	               job->bitmap);
	return tide_error_hint(err, "one of the two was restored without the other; make a full backup, as --sync auto "
	                            "does; --allow-base=other does as you say");
}

/* Has the sidecar a base for this bitmap inside the image, which is not that of these bitmaps? */
static bool is_stranger(const struct basis *b)
{
	const struct tide_node *node = b->job->node;

	return b->entry && b->entry->in_image && node->image_bitmaps.is_stranger && !b->entry->base &&
	       tide_lineage_named_find(&node->in_sidecar.list->inside, b->entry->name);
}

/* Nothing is known of a backup whose record cannot be read. */
static int check_known(const struct tide_birth *birth, const struct tide_image *image, struct tide_error *err)
{
	if (!birth || !birth->unknown)
		return 0;
	tide_error_set(err, TIDE_E_REFUSED, "'%s' may be any backup, because its birth record %s",
	               tide_image_path(image), birth->unknown);
	return tide_error_hint(err, "make a full backup in a new file, as --sync auto does; "
	                            "--allow-base=other does as you say");
}

static bool is_forced(const struct basis *b)
{
	return b->job->node->allow & TIDE_ALLOW_BASE;
}

/* Data that the target holds already is visible where nothing is copied. */
static int check_own(struct basis *b, struct tide_error *err)
{
	struct tide_backup_job *job = b->job;
	bool complete;
	int differs;

	if (!job->target.existing || b->updates)
		return 0;
	differs = tide_backup_compare_all(job->node->image, job->target.image, job->copy.todo, true, job->sink,
	                                  &complete, err);
	b->linked &= complete;
	return differs > 0 ? refuse_own(job, err) : differs;
}

static int check_sample(struct basis *b, struct tide_error *err)
{
	struct tide_backup_job *job = b->job;
	struct tide_image *target = job->target.image, *backing = tide_image_backing(target);
	bool complete;
	int differs = tide_backup_compare_sample(job->node->image, b->updates ? target : backing, job->copy.todo,
	                                         job->sink, &complete, err);

	b->linked |= !differs && complete;
	return differs > 0 ? refuse_sample(job, tide_image_path(b->updates ? target : backing), err) : differs;
}

/* Identifiers: another backup than the base is refused. */
static int check_identity(struct basis *b, struct tide_error *err)
{
	struct tide_backup_job *job = b->job;
	struct tide_image *target = job->target.image, *backing = tide_image_backing(target);
	struct tide_image *source = tide_image_backing(job->node->image);

	if (job->sync == TIDE_SYNC_TOP) {
		/* Both read the same file where the top image has nothing. */
		b->proven = source && tide_image_is_same_file(source, backing);
		return 0;
	}
	if (b->updates)
		return check_chain(target, true, &b->proven, err);
	if (b->below && b->base && !tide_id_is_same(&b->below->id, &b->base->id))
		return refuse_other(job, b->base, tide_image_path(backing), b->below, err);
	if ((b->below && check_disk(job, backing, b->below, err) < 0) ||
	    check_chain(backing, b->below && b->base, &b->proven, err) < 0)
		return -1;
	b->proven = b->proven && b->below && b->base;
	return 0;
}

/* Do identifiers say that the image below is the base? */
static bool is_linked(const struct basis *b)
{
	if (b->job->sync == TIDE_SYNC_TOP)
		return b->proven;
	return b->below && b->base && tide_id_is_same(&b->below->id, &b->base->id);
}

static int check_link(struct basis *b, struct tide_error *err)
{
	if (check_identity(b, err) < 0)
		return -1;
	b->linked = is_linked(b);
	if ((!b->proven || (b->entry && tide_backup_needs_sample(b->job->node, b->entry))) && check_sample(b, err) < 0)
		return -1;
	return check_own(b, err);
}

/* A link that only a sample speaks for, or the caller, has no identifier. */
static void set_link(const struct basis *b, struct tide_birth *birth)
{
	birth->is_part = !b->updates || b->own->is_part;
	if (birth->is_part && b->updates) {
		birth->base = b->own->base;
		birth->base_time = b->own->base_time;
	} else if (birth->is_part && b->below && b->linked) {
		birth->base = b->below->id;
		birth->base_time = b->below->time;
	}
}

static int decide_on_backing(struct basis *b, struct tide_error *err)
{
	struct tide_backup_job *job = b->job;

	if (check_possible(job, tide_image_backing(job->target.image), b->below, err) < 0)
		return -1;
	if (!is_forced(b)) {
		if (is_stranger(b))
			return refuse_stranger(job, err);
		if (check_link(b, err) < 0)
			return -1;
	}
	/* Nothing has compared data of the target's own then. */
	if (is_forced(b))
		b->linked = is_linked(b) && !job->target.existing;
	set_link(b, &job->birth);
	return 0;
}

/* Can the target be asked later which backup it is?  A raw device or an export has no place for a record. */
static bool has_record(const struct tide_backup_job *job)
{
	const struct tide_image *target = job->target.image;

	return !tide_image_is_raw(target) || !tide_target_is_device(tide_image_path(target));
}

/* 1: the target shows the disk, as the existing target is the base, or is like it. */
static int is_whole(const struct basis *b, struct tide_error *err)
{
	struct tide_backup_job *job = b->job;
	struct tide_image *disk = job->node->image, *target = job->target.image;
	bool complete, by_sample = (b->updates || !has_record(job)) && !is_stranger(b);
	int differs;

	if (!job->target.existing || (b->own && (b->own->is_part || b->own->is_incomplete)))
		return 0;
	if (b->updates && !tide_backup_needs_sample(job->node, b->entry))
		return 1;
	if (by_sample)
		differs = tide_backup_compare_sample(disk, target, job->copy.todo, job->sink, &complete, err);
	else
		differs = tide_backup_compare_all(disk, target, job->copy.todo, false, job->sink, &complete, err);
	return differs < 0 ? -1 : !differs && (complete || by_sample);
}

/* Without a backing image: a part, unless an existing target is brought up to date. */
static int decide_alone(struct basis *b, struct tide_error *err)
{
	struct tide_birth *birth = &b->job->birth;
	int whole = is_whole(b, err);

	if (whole < 0)
		return -1;
	birth->is_part = !whole;
	if (whole)
		return 0;
	if (b->updates) {
		birth->base = b->own->base;
		birth->base_time = b->own->base_time;
	} else if (b->base) {
		birth->base = b->base->id;
		birth->base_time = b->base->time;
	}
	/* Data in a part is visible when it gets a backing image; a raw file gets none. */
	return is_forced(b) || tide_image_is_raw(b->job->target.image) ? 0 : check_own(b, err);
}

int tide_backup_check_base(struct tide_backup_job *job, const struct tide_sidecar_bitmap *entry, struct tide_error *err)
{
	bool counts = tide_backup_is_increment(job->sync);
	struct basis b = {
		.job = job,
		.entry = entry,
		.base = counts ? tide_backup_known_base(job, entry) : NULL,
	};
	struct tide_image *target = job->target.image, *backing = tide_image_backing(target);
	bool is_linked = counts || (job->sync == TIDE_SYNC_TOP && (job->target.existing || backing));
	int rc = job->target.existing ? tide_identity_find(target, &b.own, err) : 0;

	/* The new record would replace it. */
	if (rc == 0 && b.own && (is_linked || b.own->is_later) && !is_forced(&b))
		rc = check_known(b.own, target, err);
	if (rc == 0 && is_linked && backing)
		rc = tide_identity_find(backing, &b.below, err);
	if (rc == 0 && b.below && !is_forced(&b))
		rc = check_known(b.below, backing, err);
	b.updates = b.own && b.own->intact && b.base && tide_id_is_same(&b.own->id, &b.base->id);
	if (rc == 0 && is_linked)
		rc = backing ? decide_on_backing(&b, err) : decide_alone(&b, err);
	tide_birth_free(b.own);
	tide_birth_free(b.below);
	return rc;
}

/* ---- where the base is --------------------------------------------------------------- */

struct tide_birth *tide_backup_find_birth(const char *path, struct tide_image **image)
{
	struct tide_image_options options = { .path = path, .no_backing = true, .force_share = true };
	struct tide_birth *birth = NULL;

	if (tide_target_bitmaps_open(&options, image, NULL) == 0)
		tide_identity_find(*image, &birth, NULL);
	return birth;
}

/* Is the file at the path of the base that backup?  *format becomes its format; *is_alone: it is a part, on nothing. */
static bool is_there(const struct tide_base *base, const char **format, bool *is_alone)
{
	TIDE_AUTOIMAGE struct tide_image *image = NULL;
	TIDE_AUTOBIRTH struct tide_birth *birth = tide_backup_find_birth(base->path, &image);

	if (!birth)
		return false;
	*format = tide_image_format_name(image);
	*is_alone = birth->is_part && !tide_image_info(image)->backing;
	return tide_id_is_same(&birth->id, &base->id);
}

int tide_backup_find_base(const struct tide_backup_job *job, const struct tide_sidecar_bitmap *entry, char **path,
                          const char **format, struct tide_error *err)
{
	const struct tide_base *base = tide_backup_known_base(job, entry);
	char time[TIDE_IDENTITY_TIME];
	bool is_alone;

	*path = NULL;
	if (!base)
		return 0;
	if (is_there(base, format, &is_alone)) {
		/* Chained on a part, the backup would look like one that can be restored. */
		if (is_alone)
			return 0;
		*path = tide_mem_strdup(base->path, err);
		return *path ? 0 : -1;
	}
	tide_identity_format_time(base->time, time);
	tide_error_set(err, TIDE_E_REFUSED, "The backup that the bitmap '%s' counts from, '%s' of %s, is not there%s",
	               entry->name, base->path, time,
	               access(base->path, F_OK) == 0 ? ": another file has its name" : "");
	return tide_error_hint(err, "say where it is with --backing, or make a full backup, as --sync auto does; "
	                            "--backing none makes a part that cannot be restored alone");
}
