/* Accepts a chain that was changed by hand (accept.h). */
#include "accept.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/error.h"
#include "base/mem.h"
#include "image/fingerprint.h"
#include "store/identity.h"
#include "target.h"

struct member {
	struct tide_image *image; /* while it is planned */
	char *path;
	const char *format;
	struct tide_stamp stamp;
	struct tide_birth *own; /* its record, or NULL */
	struct tide_birth *birth;
	bool as_born; /* the disk looks like that of the record */
	bool due;     /* birth is to be written */
	uint8_t fingerprint[TIDE_BIRTH_FINGERPRINT_BYTES];
};

struct tide_accept {
	size_t n;
	struct member *members; /* the top one first */
};

/* ---- the chain now ------------------------------------------------------------------ */

static int look_at(struct member *m, struct tide_image *image, struct tide_error *err)
{
	m->image = image;
	m->path = tide_mem_strdup(tide_image_path(image), err);
	m->format = tide_image_format_name(image);
	m->stamp = *tide_image_stamp(image);
	if (!m->path || tide_identity_find(image, &m->own, err) < 0 ||
	    tide_fingerprint_take_short(image, m->fingerprint, err) < 0)
		return -1;
	/* A damaged record is replaced by a new one. */
	if (m->own && m->own->unknown && !m->own->is_later) {
		tide_birth_free(m->own);
		m->own = NULL;
	}
	m->as_born =
	        m->own && !m->own->unknown && memcmp(m->own->fingerprint, m->fingerprint, sizeof(m->fingerprint)) == 0;
	return 0;
}

static const char *refuse_member(const struct member *m, const struct member *below)
{
	const struct tide_birth *own = m->own;

	if (!tide_image_is_file(m->image))
		return "is not a file, and cannot get a record";
	if (!own)
		return NULL;
	if (own->unknown)
		return "has a birth record that was made by a later version";
	if (own->is_incomplete)
		return "is a backup that ended early";
	if (own->is_part && !below)
		return "is a part, and has no backing image";
	return NULL;
}

static const char *refuse_top(const struct member *top)
{
	if (!top->own || !tide_birth_has_fingerprint(top->own))
		return "has no record of the disk that was backed up, so nothing can be compared";
	return top->as_born ? NULL : "shows another disk than the one that was backed up";
}

/* Only a comparison of all of the disk shows that another backup than the base does as well. */
static const char *refuse_rebased(const struct member *m, const struct member *below, bool is_top, bool compared)
{
	const struct tide_birth *own = m->own, *other = below ? below->own : NULL;

	if (!own || !own->is_part || !other || !tide_id_is_set(&own->base) || tide_id_is_same(&own->base, &other->id))
		return NULL;
	if (!is_top)
		return "is on another backup than its base, and only the top image is compared; accept it first, by "
		       "itself, with --against the disk that it is a backup of";
	return compared ? NULL
	                : "is on another backup than its base, and a sample proves too little; use --against the disk "
	                  "that it is a backup of, or the original";
}

static int find_refusal(const struct tide_accept *accept, bool compared, char **refusal, struct tide_error *err)
{
	const char *why = refuse_top(&accept->members[0]);
	const struct member *m = accept->members;

	for (size_t i = 0; i < accept->n && !why; i++) {
		const struct member *below = i + 1 < accept->n ? &accept->members[i + 1] : NULL;

		m = &accept->members[i];
		why = refuse_member(m, below);
		if (!why)
			why = refuse_rebased(m, below, i == 0, compared);
	}
	if (!why)
		return 0;
	*refusal = tide_mem_printf(err, "'%s' %s", m->path, why);
	return *refusal ? 0 : -1;
}

/* ---- what it will be ---------------------------------------------------------------- */

/*
 * The record of a file that may be another backup than its record says, or has none. It has a new identifier, because
 * other backups may count from the one that it was.
 */
static int make_record(struct member *m, const struct member *above, struct tide_error *err)
{
	const struct tide_birth *wanted = above->birth;
	struct tide_birth made = { .disk = wanted->disk, .time = (int64_t)time(NULL), .device = wanted->device };

	if (tide_id_new(&made.id, err) < 0)
		return -1;
	made.exact_size = tide_image_exact_size(m->image);
	made.is_part = tide_image_backing(m->image) != NULL;
	made.sync = made.is_part ? TIDE_SYNC_INCREMENTAL : TIDE_SYNC_FULL;
	memcpy(made.fingerprint, m->fingerprint, sizeof(made.fingerprint));
	m->birth = tide_birth_copy(&made, err);
	m->due = true;
	return m->birth ? 0 : -1;
}

static int keep_record(struct member *m, struct tide_error *err)
{
	m->birth = tide_birth_copy(m->own, err);
	m->due = !m->own->intact;
	if (!m->birth)
		return -1;
	return m->due ? tide_id_new(&m->birth->id, err) : 0;
}

static int decide(struct tide_accept *accept, struct tide_error *err)
{
	for (size_t i = 0; i < accept->n; i++) {
		struct member *m = &accept->members[i];

		/* The top one has been compared. */
		if (m->as_born && (i == 0 || m->own->intact) ? keep_record(m, err) < 0 : make_record(m, m - 1, err) < 0)
			return -1;
		if (i == 0 || !m[-1].birth->is_part || tide_id_is_same(&m[-1].birth->base, &m->birth->id))
			continue;
		m[-1].birth->base = m->birth->id;
		m[-1].birth->base_time = m->birth->time;
		m[-1].due = true;
	}
	return 0;
}

int tide_accept_plan(struct tide_image *top, bool compared, struct tide_accept **out, char **refusal,
                     struct tide_error *err)
{
	struct tide_accept *accept = tide_mem_alloc(1, sizeof(*accept), err);
	size_t depth = 0;
	int rc = -1;

	*out = NULL;
	*refusal = NULL;
	for (struct tide_image *link = top; link; link = tide_image_backing(link))
		depth++;
	if (accept)
		accept->members = tide_mem_alloc(depth, sizeof(*accept->members), err);
	if (accept && accept->members)
		rc = 0;
	for (struct tide_image *link = top; link && rc == 0; link = tide_image_backing(link))
		rc = look_at(&accept->members[accept->n++], link, err);
	if (rc == 0)
		rc = find_refusal(accept, compared, refusal, err);
	if (rc == 0 && !*refusal)
		rc = decide(accept, err);
	if (rc == 0 && !*refusal)
		*out = accept;
	else
		tide_accept_free(accept);
	return rc;
}

/* ---- writing it ---------------------------------------------------------------------- */

static int write_record(const struct member *m, unsigned allow, struct tide_sink *sink, struct tide_error *err)
{
	struct tide_target target = TIDE_TARGET_INIT;
	int rc = tide_target_open(&target, m->path, m->format, false, allow, &sink->cancelled, err);

	if (rc == 0 && !tide_stamp_is_equal(&m->stamp, tide_image_stamp(target.image)))
		rc = tide_error_set(err, TIDE_E_REFUSED, "'%s' was changed meanwhile", m->path);
	target.birth = m->birth;
	if (rc == 0)
		rc = tide_target_stage(&target, err);
	if (rc == 0)
		rc = tide_target_name(&target, err);
	tide_target_release(&target);
	return rc;
}

bool tide_accept_is_due(const struct tide_accept *accept)
{
	for (size_t i = 0; i < accept->n; i++) {
		if (accept->members[i].due)
			return true;
	}
	return false;
}

int tide_accept_apply(const struct tide_accept *accept, unsigned allow, struct tide_sink *sink, size_t *n,
                      struct tide_error *err)
{
	*n = 0;
	for (size_t i = 0; i < accept->n; i++) {
		if (!accept->members[i].due)
			continue;
		if (write_record(&accept->members[i], allow, sink, err) < 0)
			return -1;
		(*n)++;
	}
	return 0;
}

void tide_accept_free(struct tide_accept *accept)
{
	if (!accept)
		return;
	for (size_t i = 0; accept->members && i < accept->n; i++) {
		free(accept->members[i].path);
		tide_birth_free(accept->members[i].own);
		tide_birth_free(accept->members[i].birth);
	}
	free(accept->members);
	free(accept);
}
