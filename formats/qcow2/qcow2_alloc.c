/*
 * Allocation of clusters, with the same calls for images that are changed in place
 * (qcow2_refcount.c) and new ones (qcow2_build.c). A released cluster of an in-place image waits
 * for the next flush, because until then the image on disk refers to it.
 */
#include <inttypes.h>

#include "base/error.h"
#include "base/mem.h"
#include "qcow2.h"

int tide_qcow2_runs_reserve(struct tide_qcow2_runs *runs, size_t more, struct tide_error *err)
{
	size_t cap = runs->cap ? runs->cap : 64;
	struct tide_qcow2_run *run;

	if (more <= runs->cap - runs->n)
		return 0;
	while (cap - runs->n < more)
		cap *= 2;
	run = tide_mem_realloc(runs->run, cap, sizeof(*run), err);
	if (!run)
		return -1;
	runs->run = run;
	runs->cap = cap;
	return 0;
}

int tide_qcow2_runs_add(struct tide_qcow2_runs *runs, uint64_t first, uint64_t n, struct tide_error *err)
{
	struct tide_qcow2_run *last = runs->n ? &runs->run[runs->n - 1] : NULL;

	if (last && last->first + last->n == first) {
		last->n += n;
		return 0;
	}
	if (tide_qcow2_runs_reserve(runs, 1, err) < 0)
		return -1;
	runs->run[runs->n++] = (struct tide_qcow2_run){ first, n, false };
	return 0;
}

int tide_qcow2_alloc_clusters(struct tide_qcow2 *q, uint64_t want, uint64_t *first, uint64_t *got,
                              struct tide_error *err)
{
	return q->is_new ? tide_qcow2_build_alloc(q, want, first, got, err)
	                 : tide_qcow2_refcount_alloc(q, want, first, got, err);
}

void tide_qcow2_alloc_undo(struct tide_qcow2 *q, uint64_t first, uint64_t n)
{
	bool is_free;

	if (q->is_new) {
		tide_qcow2_build_free(q, first, n);
		return;
	}
	/* A cluster that cannot be released is a leak, and nothing worse. */
	for (uint64_t i = 0; i < n; i++)
		tide_qcow2_refcount_decrease(q, first + i, &is_free, NULL);
}

int tide_qcow2_alloc_reserve(struct tide_qcow2 *q, size_t n, struct tide_error *err)
{
	return q->is_new ? 0 : tide_qcow2_runs_reserve(&q->deferred, n, err);
}

void tide_qcow2_alloc_drop(struct tide_qcow2 *q, uint64_t first, uint64_t n, bool punch)
{
	struct tide_qcow2_runs *d = &q->deferred;
	struct tide_qcow2_run *last = d->n ? &d->run[d->n - 1] : NULL;

	if (q->is_new)
		tide_qcow2_build_free(q, first, n);
	else if (last && last->first + last->n == first && last->punch == punch)
		last->n += n;
	else
		/* NOLINTNEXTLINE(clang-analyzer-core.NullDereference): reserved before */
		d->run[d->n++] = (struct tide_qcow2_run){ first, n, punch };
}

/*
 * The clusters of the file that hold a cluster of the disk: whole clusters, also for compressed data. Returns their
 * number.
 */
static uint64_t span(const struct tide_qcow2 *q, const struct tide_qcow2_cluster *c, uint64_t *first)
{
	uint64_t len = c->kind == TIDE_QCOW2_COMPRESSED ? c->len : 1;

	if (q->has_data_file)
		return 0;
	*first = c->host >> q->cluster_bits;
	return c->host ? ((c->host + len - 1) >> q->cluster_bits) - *first + 1 : 0;
}

int tide_qcow2_alloc_check_drop(const struct tide_qcow2 *q, const struct tide_qcow2_cluster *c, struct tide_error *err)
{
	uint64_t first, n = span(q, c, &first);
	const char *what = n && !q->is_new ? tide_qcow2_meta_find(q, first, n) : NULL;

	if (what)
		return tide_error_set(err, TIDE_E_CORRUPT, "A data cluster at %" PRIu64 " overlaps with the image's %s",
		                      c->host, what);
	return 0;
}

void tide_qcow2_alloc_drop_cluster(struct tide_qcow2 *q, const struct tide_qcow2_cluster *c, bool punch)
{
	uint64_t first, n = span(q, c, &first);

	if (n)
		tide_qcow2_alloc_drop(q, first, n, punch);
}

int tide_qcow2_alloc_is_exclusive(struct tide_qcow2 *q, uint64_t host, bool *exclusive, struct tide_error *err)
{
	uint64_t cluster = host >> q->cluster_bits, count;
	const char *what;

	*exclusive = true;
	if (q->is_new)
		return 0;
	what = tide_qcow2_meta_find(q, cluster, 1);
	if (what)
		return tide_error_set(err, TIDE_E_CORRUPT, "A data cluster at %" PRIu64 " overlaps with the image's %s",
		                      host, what);
	if (tide_qcow2_refcount_get(q, cluster, &count, err) < 0)
		return -1;
	if (count == 0) {
		tide_error_set(err, TIDE_E_CORRUPT,
		               "The data cluster at %" PRIu64 " has the reference count 0, expected at least 1", host);
		return tide_qcow2_refcount_hint(err);
	}
	*exclusive = count == 1;
	return 0;
}
