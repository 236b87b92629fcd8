/* Judges one link of a chain of backups (kinship.h). */
#include "kinship.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/mem.h"
#include "base/range.h"
#include "identity.h"
#include "image/fingerprint.h"

struct link {
	struct tide_image *image;
	const struct tide_image *above; /* what is on top of it, or NULL */
	struct tide_birth *own, *below; /* or NULL */
	enum tide_kinship kinship;
	char *text;
};

/* Sets the verdict and the text that explains it. */
#define JUDGE(link, verdict, err, ...)                            \
	({                                                        \
		(link)->kinship = verdict;                        \
		(link)->text = tide_mem_printf(err, __VA_ARGS__); \
		(link)->text ? 0 : -1;                            \
	})

static int judge_part(struct link *link, struct tide_error *err)
{
	const struct tide_birth *own = link->own;
	char id[TIDE_ID_TEXT], when[TIDE_IDENTITY_TIME];

	if (!tide_id_is_set(&own->base))
		return JUDGE(link, TIDE_KINSHIP_PART, err,
		             "it holds only what changed since another backup, which is not there");
	tide_id_format(&own->base, id);
	tide_identity_format_time(own->base_time, when);
	return JUDGE(link, TIDE_KINSHIP_PART, err,
	             "it holds only what changed since its base, backup %s of %s, which is "
	             "not there",
	             id, own->base_time ? when : "an unknown time");
}

/* Both are as they were made, so their identifiers decide. */
static int judge_ids(struct link *link, struct tide_error *err)
{
	char base[TIDE_ID_TEXT], id[TIDE_ID_TEXT], when[TIDE_IDENTITY_TIME];

	if (tide_id_is_same(&link->own->base, &link->below->id)) {
		link->kinship = TIDE_KINSHIP_PROVEN;
		return 0;
	}
	tide_id_format(&link->own->base, base);
	tide_id_format(&link->below->id, id);
	tide_identity_format_time(link->below->time, when);
	return JUDGE(link, TIDE_KINSHIP_WRONG, err,
	             "its base is backup %s, and the backing image is another one, %s of %s", base, id, when);
}

/*
 * A program that has the image open for reading and reopens it, as QEMU's commit does, leaves the flag that others
 * clear, and in a copy the identity of the file says nothing.  So the sample has to agree, too.
 */
static bool is_unlike(const struct link *link)
{
	uint8_t now[TIDE_BIRTH_FINGERPRINT_BYTES];

	return link->own->is_copy && tide_birth_has_fingerprint(link->own) &&
	       tide_fingerprint_take_short(link->image, now, NULL) == 0 &&
	       memcmp(link->own->fingerprint, now, sizeof(now)) != 0;
}

static bool is_rebased(const struct link *link)
{
	return link->own->is_part && link->below && !link->below->unknown && tide_id_is_set(&link->own->base) &&
	       !tide_id_is_same(&link->own->base, &link->below->id);
}

static int judge_content(struct link *link, struct tide_error *err)
{
	const struct tide_birth *own = link->own;
	uint8_t now[TIDE_BIRTH_FINGERPRINT_BYTES];
	struct tide_error why = TIDE_ERROR_INIT;

	if (!tide_birth_has_fingerprint(own)) {
		link->kinship = TIDE_KINSHIP_FOREIGN;
		return 0;
	}
	if (tide_fingerprint_take_short(link->image, now, &why) < 0) {
		int rc = why.code == TIDE_E_CORRUPT ? JUDGE(link, TIDE_KINSHIP_LIKELY, err,
		                                            "it or its backing image was changed after it had been "
		                                            "made, and cannot be read completely")
		                                    : tide_error_move(err, &why);

		tide_error_release(&why);
		return rc;
	}
	if (memcmp(own->fingerprint, now, sizeof(now)) != 0)
		return JUDGE(link, TIDE_KINSHIP_WRONG, err,
		             "it or its backing image was changed after it had been made: the disk is not the one that "
		             "was backed up");
	if (is_rebased(link))
		return JUDGE(link, TIDE_KINSHIP_REBASED, err,
		             "its backing image is another backup than its base; a sample of the disk is as it was");
	/* Only a sample was compared when it was made, or the image below has no record. */
	if (own->intact && own->is_part && !tide_id_is_set(&own->base) && (!link->below || link->below->intact))
		return JUDGE(link, TIDE_KINSHIP_SAMPLED, err,
		             "no identifier proves that its backing image is its base; a sample of the disk is as it "
		             "was");
	return JUDGE(link, TIDE_KINSHIP_LIKELY, err,
	             "it or its backing image may have been changed after it had been made; a sample of the disk is as "
	             "it was");
}

/* Does the backup on top of the image count from it? */
static bool is_continued(const struct link *link)
{
	TIDE_AUTOBIRTH struct tide_birth *upper = NULL;

	return link->above && tide_identity_find(link->above, &upper, NULL) == 0 && upper &&
	       tide_id_is_same(&upper->base, &link->own->id);
}

static int judge(struct link *link, bool is_base, struct tide_error *err)
{
	const struct tide_birth *own = link->own, *below = link->below;

	if (!own)
		return 0;
	if (own->unknown)
		return JUDGE(link, TIDE_KINSHIP_UNKNOWN, err, "it may be a part, because its birth record %s",
		             own->unknown);
	if (own->is_incomplete && !is_base && !is_continued(link))
		return JUDGE(link, TIDE_KINSHIP_PART, err,
		             "its backup ended early: it holds only some of what it was to hold");
	if (own->is_part && !tide_image_backing(link->image))
		return judge_part(link, err);
	if (own->intact && !is_unlike(link) &&
	    (!own->is_part || (below && below->intact && tide_id_is_set(&own->base)))) {
		link->kinship = TIDE_KINSHIP_COMPLETE;
		return own->is_part ? judge_ids(link, err) : 0;
	}
	return judge_content(link, err);
}

int tide_kinship_check(struct tide_image *image, const struct tide_image *above, bool is_base,
                       enum tide_kinship *kinship, char **text, struct tide_error *err)
{
	struct link link = { .image = image, .above = above };
	const struct tide_image *backing = tide_image_backing(image);
	int rc = tide_identity_find(image, &link.own, err);

	if (rc == 0 && link.own && backing)
		rc = tide_identity_find(backing, &link.below, err);
	if (rc == 0)
		rc = judge(&link, is_base, err);
	tide_birth_free(link.own);
	tide_birth_free(link.below);
	*kinship = link.kinship;
	*text = link.text;
	return rc;
}
