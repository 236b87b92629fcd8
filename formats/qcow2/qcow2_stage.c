/*
 * Changes the bitmaps inside an image, in three steps; the second is a single write within one sector:
 *
 *   stage   1  write data, tables and directory of the new set into free clusters
 *           2  flush: their counts, then a sync (qcow2_flush.c). Nothing refers to them.
 *           3  if the header has no room for the switch, move its backing file name
 *              (qcow2_switch.c)
 *   commit  4  the switch: the bitmaps extension, its autoclear flag and the token, in one sector
 *           5  sync
 *           6  flush: the counts of clusters that only the old set used go down
 *           7  restore the table of feature names, if it had to make room
 *
 * Whatever part of this reaches the disk, the image holds the old set or the new one; besides, only unused
 * clusters can remain. Bitmaps that are kept keep their tables and data. After a switch that failed it is
 * unknown which set the file holds, so the clusters of both stay as they are.
 *
 * Without the autoclear flag the extension is invalid: the bitmaps count as absent, and their clusters stay
 * allocated until qemu-img check -r leaks finds them.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/checksum.h"
#include "base/error.h"
#include "base/mem.h"
#include "base/range.h"
#include "base/sysio.h"
#include "qcow2.h"

struct tide_qcow2_stage {
	size_t n;
	struct tide_qcow2_bitmap *bitmaps;
	struct tide_driver_bitmap *info;
	struct tide_qcow2_extension ext;
	struct tide_qcow2_runs added; /* clusters of the new set */
	struct tide_qcow2_runs old;   /* clusters that only the old set uses */
	struct tide_driver_switch sw;
	struct tide_qcow2_names names;
};

void tide_qcow2_stage_release(struct tide_qcow2 *q)
{
	struct tide_qcow2_stage *s = q->stage;

	if (!s)
		return;
	tide_qcow2_bitmap_free(s->bitmaps, s->n);
	tide_driver_bitmaps_free(s->info, s->info ? s->n : 0);
	free(s->added.run);
	free(s->old.run);
	free(s->names.data);
	free(s);
	q->stage = NULL;
}

/* Frees those of the clusters that are still registered as bitmaps'. */
static void free_clusters(struct tide_qcow2 *q, const struct tide_qcow2_runs *runs)
{
	for (size_t i = 0; i < runs->n; i++) {
		for (uint64_t c = 0; c < runs->run[i].n; c++) {
			if (tide_qcow2_meta_remove_bitmap(q, runs->run[i].first + c))
				tide_qcow2_alloc_undo(q, runs->run[i].first + c, 1);
		}
	}
}

static void give_up(struct tide_qcow2 *q)
{
	free_clusters(q, &q->stage->added);
	tide_qcow2_stage_release(q);
	/* If this fails, the clusters are leaked. */
	q->touched = true;
	tide_qcow2_flush_locked(q, NULL);
}

/* ---- stage ---- */

static int list_bitmap(struct tide_qcow2 *q, const struct tide_qcow2_bitmap *b, struct tide_qcow2_runs *runs,
                       struct tide_error *err)
{
	uint64_t bytes = UINT64_C(8) * b->table_entries;
	TIDE_AUTOFREE uint64_t *table = NULL;

	if (b->unsound)
		return 0;
	table = tide_qcow2_bitmap_table(q, b, err);
	if (!table)
		return -1;
	for (uint32_t i = 0; i < b->table_entries; i++) {
		uint64_t off = table[i] & TIDE_QCOW2_BITMAP_OFFSET;

		if (off && tide_qcow2_runs_add(runs, off >> q->cluster_bits, 1, err) < 0)
			return -1;
	}
	return tide_qcow2_runs_add(runs, b->table_offset >> q->cluster_bits, tide_qcow2_clusters(q, bytes), err);
}

static int list_old(struct tide_qcow2 *q, const struct tide_driver_bitmap_put *put, size_t n, struct tide_error *err)
{
	TIDE_AUTOFREE bool *kept = tide_mem_alloc(q->n_bitmaps, sizeof(*kept), err);
	const struct tide_qcow2_header *h = &q->header;

	if (!kept)
		return -1;
	for (size_t i = 0; i < n; i++) {
		if (put[i].keep)
			kept[put[i].index] = true;
	}
	for (size_t i = 0; i < q->n_bitmaps; i++) {
		if (!kept[i] && list_bitmap(q, &q->bitmaps[i], &q->stage->old, err) < 0)
			return -1;
	}
	if (q->n_bitmaps == 0)
		return 0;
	return tide_qcow2_runs_add(&q->stage->old, h->bitmap_dir_offset >> q->cluster_bits,
	                           tide_qcow2_clusters(q, h->bitmap_dir_size), err);
}

static int guard_directory(const struct tide_qcow2 *q, struct tide_driver_switch *sw, struct tide_error *err)
{
	TIDE_AUTOFREE uint8_t *dir = NULL;

	if (q->n_bitmaps == 0)
		return 0;
	dir = tide_mem_alloc(q->header.bitmap_dir_size, 1, err);
	if (!dir ||
	    tide_sysio_pread(q->fd, dir, q->header.bitmap_dir_size, q->header.bitmap_dir_offset, false, err) < 0)
		return -1;
	sw->guard_offset = q->header.bitmap_dir_offset;
	sw->guard_len = q->header.bitmap_dir_size;
	sw->guard_crc = tide_checksum_crc32c(0, dir, sw->guard_len);
	return 0;
}

static int put_bitmap(struct tide_qcow2 *q, const struct tide_driver_bitmap_put *p, struct tide_error *err)
{
	struct tide_qcow2_stage *s = q->stage;
	struct tide_qcow2_bitmap *b = &s->bitmaps[s->n];
	struct tide_driver_bitmap *info = &s->info[s->n];

	if (p->keep)
		*b = q->bitmaps[p->index];
	b->granularity_bits = tide_range_shift(p->granularity);
	b->in_use = p->in_use;
	b->enabled = p->enabled;
	*info = (struct tide_driver_bitmap){ .granularity = p->granularity,
		                             .in_use = p->in_use,
		                             .enabled = p->enabled };
	b->name = tide_mem_strdup(p->name, err);
	info->name = tide_mem_strdup(p->name, err);
	s->n++;
	if (!b->name || !info->name)
		return -1;
	if (p->keep)
		return tide_qcow2_put_check_kept(q, b, err);
	return tide_qcow2_put_contents(q, p->contents, b, &s->added, err);
}

static int put_all(struct tide_qcow2 *q, const struct tide_driver_bitmap_put *put, size_t n, struct tide_error *err)
{
	struct tide_qcow2_stage *s = q->stage;

	s->bitmaps = tide_mem_alloc(n, sizeof(*s->bitmaps), err);
	s->info = tide_mem_alloc(n, sizeof(*s->info), err);
	if (!s->bitmaps || !s->info)
		return -1;
	for (size_t i = 0; i < n; i++) {
		if (put_bitmap(q, &put[i], err) < 0)
			return -1;
	}
	s->ext.n = (uint32_t)n;
	s->ext.sets_token = q->has_next_token;
	if (n > 0)
		s->ext.token = q->next_token;
	if (n == 0)
		return 0;
	return tide_qcow2_put_directory(q, s->bitmaps, n, &s->ext.dir_offset, &s->ext.dir_size, &s->added, err);
}

static int stage(struct tide_qcow2 *q, const struct tide_driver_bitmap_put *put, size_t n,
                 struct tide_driver_switch *sw, struct tide_error *err)
{
	struct tide_qcow2_stage *s;

	if (q->is_new || !q->writable)
		return tide_error_set(err, TIDE_E_REFUSED, "Bitmaps of this image cannot be changed: it is open %s",
		                      q->is_new ? "for creation" : "for reading only");
	if (q->stage)
		return tide_error_set(err, TIDE_E_REFUSED, "The image has a staged change of its bitmaps already");
	/* All refusals come before the first change. */
	if (tide_qcow2_put_check(q, put, n, err) < 0 ||
	    tide_qcow2_switch_check(q, &(struct tide_qcow2_extension){ .n = (uint32_t)n }, err) < 0 ||
	    tide_qcow2_flush_prepare_meta(q, err) < 0 ||
	    tide_qcow2_flush_set_autoclear(q, 0, TIDE_QCOW2_AUTOCLEAR_SUMS, err) < 0)
		return -1;
	q->stage = s = tide_mem_alloc(1, sizeof(*s), err);
	if (!s)
		return -1;
	/* The counts are flushed first, so that the switch is prepared on a header that does not change any more. */
	if (list_old(q, put, n, err) == 0 && put_all(q, put, n, err) == 0 && tide_qcow2_flush_locked(q, err) == 0 &&
	    tide_qcow2_switch_plan(q, &s->ext, &s->sw, &s->names, err) == 0 && guard_directory(q, &s->sw, err) == 0) {
		s->sw.lacks_token = n > 0 && q->has_next_token && !tide_id_is_same(&s->ext.token, &q->next_token);
		*sw = s->sw;
		q->has_next_token = false;
		return 0;
	}
	give_up(q);
	return -1;
}

int tide_qcow2_stage_token(void *state, const struct tide_id *token, struct tide_error *err)
{
	struct tide_qcow2 *q = state;

	q->has_next_token = true;
	q->next_token = *token;
	return 0;
}

int tide_qcow2_stage_bitmaps(void *state, const struct tide_driver_bitmap_put *put, size_t n,
                             struct tide_driver_switch *sw, struct tide_error *err)
{
	struct tide_qcow2 *q = state;
	int rc;

	pthread_mutex_lock(&q->lock);
	rc = stage(q, put, n, sw, err);
	pthread_mutex_unlock(&q->lock);
	return rc;
}

/* ---- commit, abort ---- */

/* Updates the state in memory after the switch on disk. */
static void take_over(struct tide_qcow2 *q, struct tide_driver_info *info)
{
	struct tide_qcow2_stage *s = q->stage;

	tide_qcow2_bitmap_release(q);
	q->bitmaps = s->bitmaps;
	q->n_bitmaps = s->n;
	q->header.n_bitmaps = s->ext.n;
	q->header.bitmap_dir_offset = s->ext.dir_offset;
	q->header.bitmap_dir_size = s->ext.dir_size;
	if (s->n)
		q->header.autoclear |= TIDE_QCOW2_AUTOCLEAR_BITMAPS;
	else
		q->header.autoclear &= ~(uint64_t)TIDE_QCOW2_AUTOCLEAR_BITMAPS;
	if (s->ext.sets_token)
		q->header.token = info->bitmaps_token = s->ext.token;
	tide_driver_bitmaps_free(info->bitmaps, info->n_bitmaps);
	info->bitmaps = s->info;
	info->n_bitmaps = s->n;
	s->bitmaps = NULL;
	s->info = NULL;
	s->n = 0;
}

static int commit(struct tide_qcow2 *q, struct tide_driver_info *info, struct tide_error *err)
{
	struct tide_qcow2_stage *s = q->stage;

	if (!s)
		return tide_error_set(err, TIDE_E_REFUSED, "No change of the image's bitmaps is staged");
	if (tide_qcow2_check_failed(q, err) < 0)
		return -1;
	if (s->sw.len && (tide_sysio_pwrite(q->fd, s->sw.after, s->sw.len, s->sw.offset, err) < 0 ||
	                  tide_sysio_fdatasync(q->fd, err) < 0)) {
		q->failed = true;
		tide_qcow2_stage_release(q);
		return tide_error_wrap(err, "Could not switch to the new bitmaps");
	}
	take_over(q, info);
	free_clusters(q, &s->old);
	/* From here on a failure costs only space and names. */
	q->touched = true;
	if (tide_qcow2_flush_locked(q, NULL) == 0)
		tide_qcow2_switch_restore_names(q, &s->names);
	tide_qcow2_stage_release(q);
	return 0;
}

int tide_qcow2_stage_commit(void *state, struct tide_driver_info *info, struct tide_error *err)
{
	struct tide_qcow2 *q = state;
	int rc;

	pthread_mutex_lock(&q->lock);
	rc = commit(q, info, err);
	pthread_mutex_unlock(&q->lock);
	return rc;
}

void tide_qcow2_stage_abort(void *state)
{
	struct tide_qcow2 *q = state;

	pthread_mutex_lock(&q->lock);
	if (q->stage)
		give_up(q);
	pthread_mutex_unlock(&q->lock);
}
