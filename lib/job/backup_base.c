/*
 * The base of an increment, which holds what has changed since one backup, and so belongs on that one. Identifiers
 * prove which it is. Where there is none, because QEMU or an older version made the bitmap or the backup, a sample of
 * what the bitmap calls unchanged is compared.
 */
#include <stdlib.h>

#include "backup_job.h"
#include "base/error.h"
#include "base/mem.h"
#include "base/range.h"
#include "store/identity.h"
#include "store/kinship.h"

const struct tide_base *tide_backup_known_base(const struct tide_backup_job *job, const struct tide_sidecar_bitmap *entry)
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
	tide_error_set(err, TIDE_E_REFUSED,
	               "'%s' differs from the disk where the bitmap '%s' says that nothing has changed since", backing,
	               job->bitmap);
	return tide_error_hint(err, "it is not the backup that the bitmap counts from; name that one, or make a full "
	                            "backup; --allow-base=other does as you say");
}

static int check_birth(const struct tide_backup_job *job, struct tide_image *backing, const struct tide_birth *birth,
                       struct tide_error *err)
{
	const struct tide_id *disk = &job->node->in_sidecar.list->disk;
	const char *path = tide_image_path(backing);

	if (tide_range_align_up(birth->exact_size, 512) != tide_range_align_up(tide_image_size(backing), 512))
		return tide_error_set(err, TIDE_E_REFUSED,
		                      "The backup '%s' was made of a disk of %llu bytes, and has another size now",
		                      path, (unsigned long long)birth->exact_size);
	if (tide_id_differs(disk, &birth->disk)) {
		tide_error_set(err, TIDE_E_REFUSED, "'%s' is a backup of another disk", path);
		return tide_error_hint(err, "is the image the one that you mean? --allow-base=other does as you say");
	}
	return 0;
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

int tide_backup_check_base(struct tide_backup_job *job, const struct tide_sidecar_bitmap *entry, struct tide_error *err)
{
	struct tide_image *backing = tide_image_backing(job->target.image);
	const struct tide_base *base = tide_backup_known_base(job, entry);
	TIDE_AUTOBIRTH struct tide_birth *birth = NULL;
	bool proven;
	int differs;

	if (!backing || !tide_backup_is_increment(job->sync) || (job->node->allow & TIDE_ALLOW_BASE))
		return 0;
	if (tide_image_is_same_file(backing, job->node->image))
		return tide_error_set(err, TIDE_E_REFUSED,
		                      "The disk '%s' itself cannot be the backing image of its backup",
		                      tide_image_path(backing));
	if (tide_identity_find(backing, &birth, err) < 0)
		return -1;
	if (birth && base && !tide_id_is_same(&birth->id, &base->id))
		return refuse_other(job, base, tide_image_path(backing), birth, err);
	if ((birth && check_birth(job, backing, birth, err) < 0) ||
	    check_chain(backing, birth && base, &proven, err) < 0)
		return -1;
	if (birth && base && proven && !tide_backup_needs_sample(job->node, entry))
		return 0;
	differs = tide_backup_compare_sample(job->node->image, backing, job->copy.todo, err);
	return differs > 0 ? refuse_sample(job, tide_image_path(backing), err) : differs;
}

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
	tide_error_set(err, TIDE_E_REFUSED, "The backup that the bitmap '%s' counts from, '%s' of %s, is not there",
	               entry->name, base->path, time);
	return tide_error_hint(err, "say where it is with --backing, or make a full backup, as --sync auto does; "
	                            "--backing none makes a part that cannot be restored alone");
}
