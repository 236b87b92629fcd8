/*
 * Decides between an increment and a full backup (backup_auto.h): looks at the bitmap, then at the chain of backups
 * that the increment would be part of.
 */
#include "backup_auto.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "backup.h"
#include "base/error.h"
#include "base/mem.h"
#include "store/identity.h"
#include "store/kinship.h"
#include "target.h"
#include "target_bitmaps.h"

/* Sets the reason for a full backup. */
#define FULL(decision, err, ...)                                        \
	({                                                              \
		(decision)->full = true;                                \
		(decision)->reason = tide_mem_printf(err, __VA_ARGS__); \
		(decision)->reason ? 0 : -1;                            \
	})

/* ---- the bitmap -------------------------------------------------------------------- */

/* Can the bitmaps of this name in backing images be used, too? */
static bool can_unite(const struct tide_node *node, const char *name, struct tide_sink *sink)
{
	struct tide_error why = TIDE_ERROR_INIT;
	bool can = tide_backup_unite(node, name, sink, NULL, &why) == 0;

	if (!can)
		tide_event_warning(sink, node->path, "%s", why.msg);
	tide_error_release(&why);
	return can;
}

#define REASON_MAX 256

/* The reason against an increment, or NULL.  text: room for it. */
static const char *doubt(const struct tide_node *node, const struct tide_sidecar_bitmap *bitmap, struct tide_sink *sink,
                         char text[REASON_MAX])
{
	if (!bitmap)
		return "there was no such bitmap";
	if (bitmap->in_use)
		return "the bitmap was inconsistent: a program died while it used it";
	if (bitmap->untracked && !node->ignore_stamp) {
		snprintf(text, REASON_MAX, "the bitmap was inconsistent: the image %s", tide_node_why_untracked(node));
		return text;
	}
	if (!bitmap->enabled)
		return "the bitmap was disabled, and did not record what was written";
	if (!can_unite(node, bitmap->name, sink))
		return "a bitmap of the same name in a backing image could not be used";
	if (!bitmap->base && bitmap->in_image && node->image_bitmaps.is_stranger)
		return "the image and its sidecar are not of the same time: the backup that the bitmap counts from is "
		       "not known";
	if (!bitmap->base || bitmap->base->paused.valid)
		return "the backup that the bitmap counts from is not known";
	return NULL;
}

/* ---- the chain --------------------------------------------------------------------- */

struct chain {
	const struct tide_base *base;
	struct tide_image *image; /* the base, with its chain */
	unsigned images, increments;
	int64_t full_time; /* of the chain's full backup */
};

static int open_chain(const struct tide_node *node, struct chain *chain, struct tide_error *err)
{
	struct tide_image_options options = { .path = chain->base->path, .allow = node->allow };

	return tide_target_bitmaps_open(&options, &chain->image, err);
}

/* The increment would be refused on it.  *broken: why, or NULL. */
static int check_disk(struct tide_image *link, bool is_base, const char **broken, struct tide_error *err)
{
	TIDE_AUTOFREE char *text = NULL;
	struct tide_error why = TIDE_ERROR_INIT;
	enum tide_kinship kinship;

	if (tide_kinship_check(link, NULL, is_base, &kinship, &text, &why) < 0) {
		if (why.code == TIDE_E_CANCELLED || why.code == TIDE_E_NOMEM)
			return tide_error_move(err, &why);
		tide_error_release(&why);
		*broken = "cannot be read completely";
	} else if (kinship == TIDE_KINSHIP_WRONG) {
		*broken = "shows another disk than the one that was backed up";
	}
	return 0;
}

/* Follows the identifiers from the base down to a full backup.  *broken: what breaks the chain, or NULL. */
static int follow(struct chain *chain, const struct tide_id *disk, const char **broken, struct tide_error *err)
{
	struct tide_id wanted = chain->base->id;

	*broken = NULL;
	for (struct tide_image *link = chain->image; link; link = tide_image_backing(link)) {
		TIDE_AUTOBIRTH struct tide_birth *birth = NULL;

		if (tide_identity_find(link, &birth, err) < 0)
			return -1;
		chain->images++;
		if (birth && birth->unknown)
			*broken = birth->is_later ? "has a birth record that was made by a later version"
			                          : "has a damaged birth record";
		else if (!birth || !tide_id_is_same(&birth->id, &wanted))
			*broken = "is another file than the backup of that name";
		else if (!birth->intact)
			*broken = "was changed after it had been made";
		else if (tide_id_differs(disk, &birth->disk))
			*broken = "is a backup of another disk";
		else if (!birth->is_part || birth->is_incomplete)
			chain->full_time = birth->time;
		else if (!tide_image_backing(link))
			*broken = "is a part, and what it belongs on is missing";
		else if (!tide_id_is_set(&birth->base))
			*broken = "is on an image that no identifier proves to be its base";
		if (!*broken && check_disk(link, link == chain->image, broken, err) < 0)
			return -1;
		if (*broken || !birth->is_part)
			return 0;
		chain->increments++;
		wanted = birth->base;
	}
	return 0;
}

/* Is this the file of the base? */
static bool is_base(const char *path, const struct tide_base *base)
{
	TIDE_AUTOFREE char *real = realpath(path, NULL), *where = realpath(base->path, NULL);

	return real && where && !strcmp(real, where);
}

static bool is_record_of(const struct tide_image *image, const struct tide_base *base)
{
	TIDE_AUTOBIRTH struct tide_birth *birth = NULL;

	return tide_identity_find(image, &birth, NULL) == 0 && birth && birth->intact &&
	       tide_id_is_same(&birth->id, &base->id);
}

/* The reason against an increment in the existing target, or NULL: it is the base, or an overlay of it. */
static const char *doubt_existing(struct tide_node *node, const struct tide_backup *args,
                                  struct tide_sidecar_bitmap *entry, struct tide_sink *sink)
{
	struct tide_image_options options = {
		.path = args->target, .format = args->format, .allow = node->allow, .force_share = true
	};
	TIDE_AUTOIMAGE struct tide_image *image = NULL;
	const struct tide_image *backing;
	const struct tide_bitmap *bm;
	bool complete = false;

	if (tide_target_bitmaps_open(&options, &image, NULL) < 0)
		return "the target could not be looked at";
	if (is_record_of(image, entry->base))
		return NULL;
	backing = tide_image_backing(image);
	if (!backing || !is_record_of(backing, entry->base))
		return "the target is not chained on the backup that the bitmap counts from";
	bm = tide_node_bitmap(node, entry, NULL);
	if (bm && tide_backup_compare_all(node->image, image, bm, true, sink, &complete, NULL) == 0)
		return NULL;
	return "the target holds data of its own that differs from the disk";
}

/* A reason that lies in the target and its arguments, or NULL. */
static const char *doubt_target(struct tide_node *node, const struct tide_backup *args,
                                struct tide_sidecar_bitmap *entry, struct tide_sink *sink)
{
	const struct tide_base *base = entry->base;
	const char *own =
	        tide_image_is_file(node->image) ? tide_image_format_name(node->image) : tide_image_raw_driver()->name;
	const struct tide_image_driver *driver = tide_image_find_driver(args->format ? args->format : own);
	TIDE_AUTOFREE char *given = NULL;

	if (args->mode == TIDE_MODE_EXISTING)
		return doubt_existing(node, args, entry, sink);
	if (driver && !driver->has_backing)
		return "the target's format has no backing images, so an increment could not be restored";
	given = args->backing ? tide_target_backing_name(args->target, args->backing, NULL) : NULL;
	if (given) {
		TIDE_AUTOFREE char *where = tide_image_resolve(args->target, given, NULL);

		if (!where || !is_base(where, base))
			return "the backing image that was given is not the backup that the bitmap counts from";
	}
	return NULL;
}

/* The reason for an increment. */
static char *trust(const struct tide_node *node, const struct tide_sidecar_bitmap *bitmap, struct tide_error *err)
{
	const char *unchecked = tide_node_why_unchecked(node, bitmap);

	if (!unchecked)
		return tide_mem_strdup("the bitmap has recorded what was written", err);
	return tide_mem_printf(err, "the bitmap can be used, but the %s is unchecked: %s",
	                       tide_image_is_file(node->image) ? "device" : "export", unchecked);
}

static int decide_age(const struct chain *chain, const struct tide_backup *args, struct tide_backup_decision *decision,
                      struct tide_error *err)
{
	int64_t age = (int64_t)time(NULL) - chain->full_time;

	if (chain->images + 1 > TIDE_IMAGE_DEPTH_MAX)
		return FULL(decision, err, "the chain has %u images, which is the limit", chain->images);
	if (args->full_every && chain->increments >= args->full_every)
		return FULL(decision, err, "the chain has %u increment%s", chain->increments,
		            chain->increments == 1 ? "" : "s");
	if (args->full_every_seconds && age >= 0 && (uint64_t)age >= args->full_every_seconds)
		return FULL(decision, err, "the last full backup is %lld day%s old", (long long)(age / 86400),
		            age / 86400 == 1 ? "" : "s");
	return 0;
}

/* The increment belongs on the base, whether the caller has named it or not. */
static int choose_backing(const struct chain *chain, const struct tide_backup *args,
                          struct tide_backup_decision *decision, struct tide_error *err)
{
	if (args->mode == TIDE_MODE_EXISTING)
		return 0;
	decision->backing = tide_target_name_from(args->target, chain->base->path, err);
	decision->backing_format = tide_image_format_name(chain->image);
	return decision->backing ? 0 : -1;
}

/* 1: the disk has changed where the bitmap says that it has not. */
static int compare(struct tide_node *node, struct tide_sidecar_bitmap *entry, const struct chain *chain,
                   struct tide_sink *sink, struct tide_error *err)
{
	const struct tide_bitmap *bm = tide_node_bitmap(node, entry, err);
	bool complete;

	return bm ? tide_backup_compare_sample(node->image, chain->image, bm, sink, &complete, err) : -1;
}

static int decide_chain(struct tide_node *node, const struct tide_backup *args, struct tide_sidecar_bitmap *entry,
                        struct chain *chain, struct tide_sink *sink, struct tide_backup_decision *decision,
                        struct tide_error *err)
{
	const char *target = doubt_target(node, args, entry, sink), *broken;
	struct tide_error why = TIDE_ERROR_INIT;
	char when[TIDE_IDENTITY_TIME];
	int rc;

	tide_identity_format_time(chain->base->time, when);
	if (target)
		return FULL(decision, err, "%s", target);
	if (open_chain(node, chain, &why) < 0) {
		rc = FULL(decision, err, "the backup that the bitmap counts from, '%s' of %s, cannot be opened: %s",
		          chain->base->path, when, why.msg);
		tide_error_release(&why);
		return rc;
	}
	if (follow(chain, &node->in_sidecar.list->disk, &broken, err) < 0)
		return -1;
	if (broken)
		return FULL(decision, err,
		            "in the chain of the backup that the bitmap counts from, '%s' of %s, a file %s",
		            chain->base->path, when, broken);
	rc = tide_backup_needs_sample(node, entry) ? compare(node, entry, chain, sink, &why) : 0;
	if (rc < 0 && (why.code == TIDE_E_NOMEM || why.code == TIDE_E_CANCELLED))
		return tide_error_move(err, &why);
	if (rc < 0) {
		rc = FULL(decision, err, "the backup that the bitmap counts from, '%s' of %s, cannot be read: %s",
		          chain->base->path, when, why.msg);
		tide_error_release(&why);
		return rc;
	}
	if (rc > 0)
		return FULL(decision, err,
		            "the disk differs from the backup '%s' of %s where the bitmap says that nothing "
		            "has changed since",
		            chain->base->path, when);
	if (decide_age(chain, args, decision, err) < 0)
		return -1;
	if (decision->full)
		return 0;
	decision->reason = trust(node, entry, err);
	return decision->reason ? choose_backing(chain, args, decision, err) : -1;
}

int tide_backup_auto_decide(struct tide_node *node, const struct tide_backup *args, struct tide_sidecar_bitmap *bitmap,
                            bool will_change, struct tide_sink *sink, struct tide_backup_decision *decision,
                            struct tide_error *err)
{
	const char *reason;
	char text[REASON_MAX];
	struct chain chain = { 0 };
	int rc;

	*decision = (struct tide_backup_decision){ 0 };
	if (node->unusable)
		return FULL(decision, err, "%s", node->unusable);
	if (will_change)
		return FULL(decision, err, "an earlier action of the transaction changes the bitmap");
	if (bitmap && bitmap->token) /* busy: the backup refuses it, with QEMU's text */
		return 0;
	reason = doubt(node, bitmap, sink, text);
	if (reason)
		return FULL(decision, err, "%s", reason);
	chain.base = bitmap->base;
	rc = decide_chain(node, args, bitmap, &chain, sink, decision, err);
	tide_image_close(chain.image);
	return rc;
}

void tide_backup_auto_release(struct tide_backup_decision *decision)
{
	free(decision->reason);
	free(decision->backing);
}
