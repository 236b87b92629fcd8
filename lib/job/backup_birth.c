/*
 * The place of a backup among others: the base of an increment, the birth record of the new backup, and the base that
 * its bitmap gets.
 *
 * An increment holds what has changed since one backup, so it belongs on that one. Identifiers prove which it is. Where
 * there is none, because QEMU or an older version made the bitmap or the backup, a sample of what the bitmap calls
 * unchanged is compared: a difference proves that it is another one.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "backup_job.h"
#include "base/error.h"
#include "base/mem.h"
#include "base/range.h"
#include "commit.h"
#include "image/fingerprint.h"
#include "node/node_log.h"
#include "store/identity.h"
#include "store/kinship.h"

#define ALL_MAX      (UINT64_C(16) << 20) /* disks of up to this size are compared completely */
#define PIECE_BYTES  65536u
#define SAMPLES      256u
#define SAMPLE_BYTES 4096u
#define SKIPS_MAX    64u /* zero extents that one sample leaps over, in search of data */

/* A bitmap that was disabled lacks what was written meanwhile, unless nothing was written. */
static const struct tide_base *known_base(const struct tide_backup_job *job, const struct tide_sidecar_bitmap *entry)
{
	const struct tide_stamp *stamp = tide_image_stamp(job->node->image);
	const struct tide_base *base = entry ? entry->base : NULL;

	if (!base || (entry->enabled && !base->paused.valid))
		return base;
	return base->paused.valid && stamp->valid && tide_stamp_is_equal(&base->paused, stamp) ? base : NULL;
}

/* ---- the sample -------------------------------------------------------------------- */

struct sample {
	struct tide_image *disk, *backing;
	const struct tide_bitmap *changed;
	uint64_t size; /* of what both have */
	uint8_t *a, *b;
};

static bool is_zero(struct tide_image *image, uint64_t off, uint64_t len, uint64_t *n)
{
	struct tide_extent x;

	if (tide_image_extent(image, off, len, &x, NULL) < 0)
		return false;
	*n = x.len;
	return x.kind != TIDE_EXTENT_DATA;
}

/* The next block at or after off in which one of the images has data, and which is unchanged; or the end, if none
 * is near. */
static uint64_t next_block(const struct sample *s, uint64_t off)
{
	for (unsigned i = 0; i < SKIPS_MAX && off < s->size; i++) {
		uint64_t n = 0, m = 0, dirty, len = s->size - off;

		if (tide_bitmap_next_dirty(s->changed, off, len, &dirty, &n) && dirty < off + SAMPLE_BYTES) {
			off = tide_range_align_up(dirty + n, SAMPLE_BYTES);
			continue;
		}
		if (!is_zero(s->disk, off, len, &n) || !is_zero(s->backing, off, len, &m))
			return off;
		off = tide_range_align_down(off + TIDE_MAX(TIDE_MIN(n, m), SAMPLE_BYTES), SAMPLE_BYTES);
	}
	return s->size;
}

/* 1: this block differs.  A disk may refuse to be read where nothing has changed, as QEMU's export of a fleecing does.
 */
static int compare_block(const struct sample *s, uint64_t off, uint64_t len, struct tide_error *err)
{
	if (tide_image_read(s->disk, s->a, off, len, NULL) < 0)
		return 0;
	if (tide_image_read(s->backing, s->b, off, len, err) < 0)
		return -1;
	return memcmp(s->a, s->b, len) != 0;
}

/*
 * A bitmap inside the image may have been used by QEMU since, for a backup of its own.  And nothing shows whether a
 * device or an export is still that disk.
 */
bool tide_backup_needs_sample(const struct tide_node *node, const struct tide_sidecar_bitmap *entry)
{
	return entry->in_image || !tide_image_stamp(node->image)->valid;
}

static int compare_all(const struct sample *s, struct tide_error *err)
{
	int rc = 0;

	for (uint64_t off = 0, end, dirty, n = 0; off < s->size && rc == 0; off = end + n) {
		end = s->size;
		n = 0;
		if (tide_bitmap_next_dirty(s->changed, off, s->size - off, &dirty, &n))
			end = TIDE_MIN(dirty, s->size); /* a granule may reach over the end */
		for (uint64_t len; off < end && rc == 0; off += len) {
			len = TIDE_MIN(PIECE_BYTES, end - off);
			rc = compare_block(s, off, len, err);
		}
	}
	return rc;
}

int tide_backup_compare_sample(struct tide_image *disk, struct tide_image *backing, const struct tide_bitmap *changed,
                               struct tide_error *err)
{
	TIDE_AUTOFREE uint8_t *buf = tide_mem_alloc(2, PIECE_BYTES, err);
	struct sample s = {
		.disk = disk,
		.backing = backing,
		.changed = changed,
		.size = TIDE_MIN(TIDE_MIN(tide_image_size(disk), tide_image_size(backing)), tide_bitmap_size(changed)),
	};
	uint64_t random[SAMPLES];
	int rc = 0;

	if (!buf || getrandom(random, sizeof(random), 0) != (ssize_t)sizeof(random))
		return buf ? tide_error_set_sys(err, errno, "Could not get random bytes") : -1;
	s.a = buf;
	s.b = buf + PIECE_BYTES;
	if (s.size <= ALL_MAX)
		return compare_all(&s, err);
	/* The first blocks of a disk change with each use of a file system. */
	for (unsigned i = 0; i < SAMPLES && s.size > 0 && rc == 0; i++) {
		uint64_t from = i < 8 ? i * SAMPLE_BYTES : tide_range_align_down(random[i] % s.size, SAMPLE_BYTES);
		uint64_t off = next_block(&s, TIDE_MIN(from, s.size - 1));

		if (off < s.size)
			rc = compare_block(&s, off, TIDE_MIN(SAMPLE_BYTES, s.size - off), err);
	}
	return rc;
}

/* ---- the base ---------------------------------------------------------------------- */

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
	const struct tide_base *base = known_base(job, entry);
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
	const struct tide_base *base = known_base(job, entry);
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

/* ---- the record -------------------------------------------------------------------- */

/*
 * The disk's identifier is in the sidecar.  If that has none, as it is new or was lost, the disk is that of the backup
 * below the increment, which has been checked.
 */
static int set_disk(struct tide_backup_job *job, const struct tide_sidecar_bitmap *entry,
                    const struct tide_birth *below, struct tide_error *err)
{
	const struct tide_node *node = job->node;
	struct tide_sidecar *list = node->in_sidecar.list;
	/* The base of a bitmap inside the image comes into the sidecar, too. */
	bool makes = node->sidecar_path && (node->want.create || (entry && entry->in_image));
	bool is_kept = node->has_sidecar || (node->mode != TIDE_NODE_READ && makes);

	if (!tide_id_is_set(&list->disk) && below && tide_backup_is_increment(job->sync) &&
	    !(node->allow & TIDE_ALLOW_BASE))
		list->disk = below->disk;
	/* Without a sidecar nothing would remember it. */
	if (is_kept && !tide_id_is_set(&list->disk) && tide_id_new(&list->disk, err) < 0)
		return -1;
	job->birth.disk = list->disk;
	return 0;
}

/*
 * Does an existing target without a backing image hold the base itself, which the increment then brings up to date?  1:
 * yes.
 */
static int updates_base(const struct tide_backup_job *job, const struct tide_sidecar_bitmap *entry,
                        struct tide_error *err)
{
	const struct tide_base *base = known_base(job, entry);
	struct tide_image *target = job->target.image;
	TIDE_AUTOBIRTH struct tide_birth *birth = NULL;
	int differs;

	if (!job->target.existing || tide_image_backing(target))
		return 0;
	if (tide_identity_find(target, &birth, err) < 0)
		return -1;
	if (birth && (birth->is_part || birth->is_incomplete))
		return 0;
	if (birth && birth->intact && base && !tide_backup_needs_sample(job->node, entry))
		return tide_id_is_same(&birth->id, &base->id);
	differs = tide_backup_compare_sample(job->node->image, target, job->copy.todo, err);
	return differs < 0 ? -1 : !differs;
}

static int set_part(struct tide_backup_job *job, const struct tide_sidecar_bitmap *entry, struct tide_error *err)
{
	int updates;

	if (!tide_backup_is_increment(job->sync)) {
		job->birth.is_part = job->sync == TIDE_SYNC_TOP && tide_image_backing(job->target.image);
		return 0;
	}
	updates = updates_base(job, entry, err);
	job->birth.is_part = !updates;
	return updates < 0 ? -1 : 0;
}

/* The id of the backup below the target; if that has none, the one that the bitmap knows. */
static void set_base_id(struct tide_backup_job *job, const struct tide_sidecar_bitmap *entry,
                        const struct tide_birth *below)
{
	const struct tide_base *base = tide_backup_is_increment(job->sync) ? known_base(job, entry) : NULL;

	if (!job->birth.is_part)
		return;
	if (below) {
		job->birth.base = below->id;
		job->birth.base_time = below->time;
	} else if (base && !tide_image_backing(job->target.image)) {
		job->birth.base = base->id;
		job->birth.base_time = base->time;
	}
}

/* A name that leads nowhere is reported when the target is made. */
int tide_backup_announce_full(struct tide_node *node, const char *target, struct tide_error *err)
{
	TIDE_AUTOFREE char *path =
	        tide_image_is_uri(target) ? tide_mem_strdup(target, err) : tide_target_final_path(target, NULL);
	struct tide_id id;

	if (!path || !*path)
		return 0;
	if (tide_id_new(&id, err) < 0)
		return -1;
	tide_lineage_base_free(node->next_full);
	node->next_full = tide_lineage_base_new(&id, (int64_t)time(NULL), path, err);
	return node->next_full ? 0 : -1;
}

int tide_backup_set_birth(struct tide_backup_job *job, const struct tide_id *point,
                          const struct tide_sidecar_bitmap *entry, struct tide_error *err)
{
	struct tide_birth *birth = &job->birth;
	const struct tide_base *next = job->sync == TIDE_SYNC_FULL ? job->node->next_full : NULL;
	const struct tide_image *backing = tide_image_backing(job->target.image);
	TIDE_AUTOBIRTH struct tide_birth *below = NULL;

	birth->sync = job->sync;
	birth->exact_size = job->exact_size;
	birth->device = job->node->id;
	birth->bitmap = job->bitmap;
	birth->point = *point;
	birth->time = next ? next->time : (int64_t)time(NULL);
	if (next)
		birth->id = next->id;
	else if (tide_id_new(&birth->id, err) < 0)
		return -1;
	if (set_part(job, entry, err) < 0 || (backing && tide_identity_find(backing, &below, err) < 0) ||
	    set_disk(job, entry, below, err) < 0)
		return -1;
	set_base_id(job, entry, below);
	job->target.birth = birth;
	return 0;
}

bool tide_backup_is_dry(const struct tide_backup_job *job)
{
	return job->node->want.dry_run;
}

void tide_backup_describe(const struct tide_backup_job *job, struct tide_json_writer *w)
{
	char text[TIDE_ID_TEXT];

	if (!tide_backup_is_dry(job)) {
		tide_id_format(&job->birth.id, text);
		tide_json_string(w, "x-id", text);
	}
	if (tide_id_is_set(&job->birth.base)) {
		tide_id_format(&job->birth.base, text);
		tide_json_string(w, "x-base", text);
	}
	tide_json_string(w, "x-target", tide_target_path(&job->target));
	if (job->birth.is_part && !tide_image_backing(job->target.image))
		tide_json_bool(w, "x-part", true);
}

/* ---- after the backup --------------------------------------------------------------- */

/* It costs some reads of the disk. Without it, only identifiers tell whether a file is still this backup. */
void tide_backup_take_fingerprint(struct tide_backup_job *job)
{
	job->source = tide_mem_alloc(1, sizeof(*job->source), NULL);
	if (job->source && tide_fingerprint_take(job->node->image, job->source, NULL) == 0) {
		tide_fingerprint_shorten(job->source, job->birth.fingerprint);
		return;
	}
	free(job->source);
	job->source = NULL;
}

static struct tide_base *new_base(const struct tide_backup_job *job, struct tide_error *err)
{
	struct tide_base *base =
	        tide_lineage_base_new(&job->birth.id, job->birth.time, tide_target_path(&job->target), err);

	if (base && job->source)
		memcpy(base->fingerprint, job->source->disk, sizeof(base->fingerprint));
	return base;
}

int tide_backup_set_base(const struct tide_backup_job *job, struct tide_sidecar_bitmap *entry, struct tide_error *err)
{
	struct tide_base *base = new_base(job, err);

	if (!base)
		return -1;
	tide_lineage_base_free(entry->base);
	entry->base = base;
	return 0;
}

static int set_last_full(const struct tide_backup_job *job, struct tide_sidecar *sc, struct tide_error *err)
{
	const struct tide_stamp *stamp = tide_image_stamp(job->node->image);
	struct tide_last_full *last;
	struct tide_base *base = new_base(job, err);

	last = base ? tide_mem_alloc(1, sizeof(*last), err) : NULL;
	if (!last) {
		tide_lineage_base_free(base);
		return -1;
	}
	last->base = *base;
	last->stamp = *stamp;
	free(base);
	tide_lineage_last_free(sc->last_full);
	sc->last_full = last;
	return 0;
}

int tide_backup_tell(const struct tide_backup_job *job, struct tide_node *node, struct tide_error *err)
{
	struct tide_sidecar *sc = node->in_sidecar.list;

	/* The settling of a bitmap inside the image has read the sidecar again. */
	if (!tide_id_is_set(&sc->disk))
		sc->disk = job->birth.disk;
	if (job->sync != TIDE_SYNC_FULL || job->birth.is_incomplete || !tide_image_stamp(job->node->image)->valid)
		return 0;
	return set_last_full(job, sc, err);
}

/* A node of the same image whose bitmaps can be changed, or NULL. */
static struct tide_node *open_apart(const struct tide_node *node, struct tide_sink *sink)
{
	struct tide_node *apart = tide_node_new_like(node, NULL);

	if (apart && tide_node_open_bitmaps(apart, TIDE_NODE_EDIT_BITMAPS, false, sink, NULL) == 0)
		return apart;
	tide_node_free(apart);
	return NULL;
}

/*
 * A job without a bitmap does not settle, so its node is not committed. The knowledge of the sidecar only spares a
 * later command a comparison; a failure is ignored.
 */
void tide_backup_remember_full(const struct tide_backup_job *job)
{
	const struct tide_node *node = job->node;
	struct tide_sink silent = *job->sink;
	struct tide_node *apart;

	/* A sidecar for which a record waits must stay what the record says. */
	if (job->sync != TIDE_SYNC_FULL || job->token || !node->has_sidecar || node->store.lock_fd >= 0 ||
	    node->group.is_pending || tide_node_log_is_live(node))
		return;
	silent.to.warning = NULL;
	apart = open_apart(node, &silent);
	if (!apart)
		return;
	if (tide_backup_tell(job, apart, NULL) == 0) {
		struct tide_commit_member member = tide_commit_node_member(apart);
		struct tide_commit commit = { .members = &member, .n = 1, .sink = &silent };

		apart->in_sidecar.is_dirty = true;
		tide_commit_run(&commit, NULL, NULL);
	}
	tide_node_free(apart);
}
