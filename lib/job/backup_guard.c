/*
 * Keeps a target from replacing a backup that is still needed: the one that a bitmap of the disk counts from, and the
 * images below it. Only the first may be written to as an existing target: an increment brings it up to date.
 */
#include <sys/stat.h>

#include "backup_job.h"
#include "base/error.h"
#include "store/identity.h"

/* The chain of a base.  A base that is not there, or is another file by now, holds up nothing. */
static struct tide_image *open_chain(const struct tide_base *base)
{
	struct tide_image_options options = { .path = base->path, .allow = TIDE_ALLOW_ANY, .force_share = true };
	struct tide_image *image;

	return tide_target_bitmaps_open(&options, &image, NULL) == 0 ? image : NULL;
}

static bool is_file(const char *path, const struct stat *file)
{
	struct stat st;

	return stat(path, &st) == 0 && st.st_dev == file->st_dev && st.st_ino == file->st_ino;
}

/* Does the base need this file? */
static bool needs(const struct tide_base *base, const struct stat *file)
{
	TIDE_AUTOIMAGE struct tide_image *chain = open_chain(base);
	TIDE_AUTOBIRTH struct tide_birth *birth = NULL;

	if (!chain || tide_identity_find(chain, &birth, NULL) < 0 || !birth || !tide_id_is_same(&birth->id, &base->id))
		return false;
	for (const struct tide_image *link = chain; link; link = tide_image_backing(link)) {
		if (tide_image_is_file(link) && is_file(tide_image_path(link), file))
			return true;
	}
	return false;
}

/* The record in the existing file, which may have been moved here, or NULL. */
static struct tide_birth *find_birth(const char *path)
{
	TIDE_AUTOIMAGE struct tide_image *image = NULL;

	return tide_backup_find_birth(path, &image);
}

static int refuse_base(const char *target, const struct tide_sidecar_bitmap *entry, struct tide_error *err)
{
	tide_error_set(err, TIDE_E_REFUSED,
	               "Could not create '%s': the bitmap '%s' counts from the backup of that name", target,
	               entry->name);
	return tide_error_hint(err, "the existing file is unchanged; choose another name");
}

static int refuse_below(const char *target, const struct tide_sidecar_bitmap *entry, bool existing,
                        struct tide_error *err)
{
	tide_error_set(err, TIDE_E_REFUSED,
	               "Could not %s '%s': '%s', from which the bitmap '%s' counts, needs the backup of that name",
	               existing ? "write to" : "create", target, entry->base->path, entry->name);
	return tide_error_hint(err, "the existing file is unchanged; choose another name");
}

int tide_backup_guard_base(const struct tide_node *node, const char *target, bool existing, struct tide_error *err)
{
	const struct tide_sidecar *const stores[] = { node->in_sidecar.list, node->in_image.list };
	TIDE_AUTOBIRTH struct tide_birth *birth = NULL;
	struct stat old;

	/* Nothing has the name, or it is that of a device or an export. */
	if (tide_image_is_uri(target) || stat(target, &old) < 0 || !S_ISREG(old.st_mode))
		return 0;
	birth = find_birth(target);
	if (birth && birth->is_later && !existing) {
		tide_error_set(err, TIDE_E_REFUSED,
		               "Could not create '%s': the backup of that name was made by a later version", target);
		return tide_error_hint(err, "other backups may need it; choose another name, or remove it");
	}
	for (size_t i = 0; i < TIDE_ARRAY_SIZE(stores); i++) {
		for (size_t k = 0; stores[i] && k < stores[i]->n; k++) {
			const struct tide_sidecar_bitmap *entry = stores[i]->items[k];

			if (!entry->base)
				continue;
			if (birth && tide_id_is_same(&birth->id, &entry->base->id)) {
				if (existing)
					continue;
				return refuse_base(target, entry, err);
			}
			if (needs(entry->base, &old))
				return refuse_below(target, entry, existing, err);
		}
	}
	return 0;
}
