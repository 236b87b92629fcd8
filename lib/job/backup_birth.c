/*
 * The place of a backup among others: the birth record of the new backup, and the base that its bitmap gets.
 */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "backup_job.h"
#include "base/error.h"
#include "base/mem.h"
#include "commit.h"
#include "image/fingerprint.h"
#include "node/node_log.h"
#include "store/identity.h"

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
	if ((backing && tide_identity_find(backing, &below, err) < 0) || set_disk(job, entry, below, err) < 0)
		return -1;
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
