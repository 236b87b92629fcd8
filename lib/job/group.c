#include "group.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/mem.h"
#include "store/commit_record.h"
#include "base/sysio.h"

struct group {
	const struct tide_group_plan *plan;
	struct tide_backup_job *const *jobs;
	size_t n;
	pthread_mutex_t lock;
	bool failed;
};

struct member {
	struct group *group;
	struct tide_backup_job *job;
	pthread_t thread;
	bool started;
};

static void *copy_member(void *arg)
{
	struct member *m = arg;
	struct group *g = m->group;
	bool ok = tide_backup_copy(m->job);

	pthread_mutex_lock(&g->lock);
	if (ok) {
		tide_backup_emit_waiting(m->job);
	} else if (!g->failed) {
		g->failed = true;
		for (size_t i = 0; i < g->n; i++) {
			if (g->jobs[i] != m->job)
				tide_backup_stop(g->jobs[i]);
		}
	}
	pthread_mutex_unlock(&g->lock);
	return NULL;
}

/* All jobs copy at once; where there can be no thread, one after the other. */
static int copy_all(struct group *g, struct tide_error *err)
{
	struct member *members = tide_mem_alloc(g->n, sizeof(*members), err);

	if (!members)
		return -1;
	for (size_t i = 0; i < g->n; i++) {
		struct member *m = &members[i];

		m->group = g;
		m->job = g->jobs[i];
		m->started = g->n > 1 && pthread_create(&m->thread, NULL, copy_member, m) == 0;
		if (!m->started)
			copy_member(m);
	}
	for (size_t i = 0; i < g->n; i++) {
		if (members[i].started)
			pthread_join(members[i].thread, NULL);
	}
	free(members);
	return 0;
}

/* ---- deciding ---------------------------------------------------------------------- */

static int by_sidecar(const void *a, const void *b)
{
	const char *x = tide_backup_sidecar(*(struct tide_backup_job *const *)a);
	const char *y = tide_backup_sidecar(*(struct tide_backup_job *const *)b);

	return !x || !y ? (x != NULL) - (y != NULL) : strcmp(x, y);
}

/* Does a job settle this node's bitmaps, and commit what else has changed with them? */
static bool is_brought_along(const struct group *g, const struct tide_node *node)
{
	for (size_t i = 0; i < g->n; i++) {
		if (tide_backup_sidecar(g->jobs[i]) == node->sidecar_path)
			return true;
	}
	return false;
}

static int stage_nodes(struct group *g, struct tide_commit_record *record, struct tide_sink *sink,
                       struct tide_error *err)
{
	for (size_t i = 0; i < g->plan->n_nodes; i++) {
		struct tide_node *node = g->plan->nodes[i];

		if (is_brought_along(g, node))
			continue;
		if (tide_node_load_deferred(node, sink, err) < 0 || tide_node_stage(node, err) < 0 ||
		    tide_node_add_to_record(node, record, err) < 0)
			return -1;
	}
	return 0;
}

/* Everything durable, and the names in the record; locks are taken in one order. */
static struct tide_backup_job *stage_all(struct group *g, struct tide_commit_record *record, struct tide_error *err)
{
	struct tide_backup_job **sorted = tide_mem_alloc(g->n, sizeof(*sorted), err);
	struct tide_backup_job *bad = NULL;

	if (!sorted)
		return g->jobs[0];
	memcpy(sorted, g->jobs, g->n * sizeof(*sorted));
	qsort(sorted, g->n, sizeof(*sorted), by_sidecar);
	for (size_t i = 0; i < g->n && !bad; i++) {
		if (!tide_backup_stage(sorted[i]) || tide_backup_add_to_record(sorted[i], record, err) < 0)
			bad = sorted[i];
	}
	free(sorted);
	return bad;
}

static void unlock_all(struct group *g)
{
	for (size_t i = 0; i < g->n; i++)
		tide_backup_unlock(g->jobs[i]);
	for (size_t i = 0; i < g->plan->n_nodes; i++)
		tide_node_unlock_store(g->plan->nodes[i]);
}

/* The temporary names must survive a power loss before a record may speak of them. */
static int sync_names(struct tide_commit_record *record, struct tide_error *err)
{
	const char *p = record->text.buf ? strchr(record->text.buf, '\n') + 1 : NULL;
	const char *end = p ? record->text.buf + record->text.len : NULL;

	while (p < end) {
		if (*p == '/' && tide_sysio_fsync_dir(p, err) < 0)
			return -1;
		p += strlen(p) + 1;
		p += strlen(p) + 1;
	}
	return 0;
}

/* The nodes of the jobs, then the others; one may come twice. */
static struct tide_node *member_node(const struct group *g, size_t i)
{
	return i < g->n ? tide_backup_node(g->jobs[i]) : g->plan->nodes[i - g->n];
}

/*
 * Each image of the group leads to the record; where nothing can be written beside it, the group does without, unless
 * the image is to take its own last step.
 */
static int point_all(struct group *g, struct tide_sink *sink, struct tide_error *err)
{
	for (size_t i = 0; i < g->n + g->plan->n_nodes; i++) {
		struct tide_node *node = member_node(g, i);
		struct tide_error why = TIDE_ERROR_INIT;

		if (tide_node_point(node, g->plan->record, &why) == 0)
			continue;
		tide_node_unpoint(node);
		if (node->inside_staged)
			return tide_error_move(err, &why);
		tide_event_warning(sink, node->path, "a crash in the next moment may leave the group half done: %s",
		                   why.msg);
		tide_error_release(&why);
	}
	return 0;
}

/* From the record on there is no way back: what cannot be renamed now will be by whoever opens the node next. */
static int decide(struct group *g, const char *path, struct tide_commit_record *record, struct tide_sink *sink,
                  struct tide_error *err)
{
	struct tide_error late = TIDE_ERROR_INIT;
	bool named = record->text.len > 0;

	if (named && (point_all(g, sink, err) < 0 || sync_names(record, err) < 0 ||
	              tide_commit_record_commit(record, path, err) < 0))
		return -1;
	for (size_t i = 0; named && i < g->n + g->plan->n_nodes; i++) {
		if (i < g->n)
			tide_backup_recorded(g->jobs[i]);
		else
			tide_node_recorded(g->plan->nodes[i - g->n]);
	}
	for (size_t i = 0; i < g->n + g->plan->n_nodes; i++) {
		int rc = i < g->n ? tide_backup_commit(g->jobs[i], &late)
		                  : tide_node_commit(g->plan->nodes[i - g->n], &late);

		if (rc < 0) {
			tide_event_warning(sink, NULL, "%s; the next command on the image will do it", late.msg);
			tide_error_release(&late);
			named = false;
		}
	}
	if (named && tide_commit_record_roll_forward(path, &late) < 0) {
		tide_event_warning(sink, NULL, "%s", late.msg);
		tide_error_release(&late);
		named = false;
	}
	for (size_t i = 0; i < g->n + g->plan->n_nodes; i++)
		(named ? tide_node_unpoint : tide_node_leave_pointer)(member_node(g, i));
	if (named)
		tide_commit_record_forget(path);
	return 0;
}

static bool commit_all(struct group *g, struct tide_sink *sink)
{
	struct tide_commit_record record = TIDE_COMMIT_RECORD_INIT;
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_backup_job *bad = stage_all(g, &record, &err);

	if (!bad && (stage_nodes(g, &record, sink, &err) < 0 || decide(g, g->plan->record, &record, sink, &err) < 0))
		bad = g->jobs[0];
	if (bad && err.code)
		tide_backup_fail(bad, &err);
	tide_error_release(&err);
	tide_commit_record_release(&record);
	unlock_all(g);
	return !bad;
}

/* ---- ending ------------------------------------------------------------------------ */

/* Terminal events come in reverse order of the actions, as QEMU's. */
static void conclude_all(struct group *g, size_t *failed, struct tide_error *err)
{
	struct tide_error why = TIDE_ERROR_INIT;

	for (size_t i = g->n; i-- > 0;) {
		struct tide_error one = TIDE_ERROR_INIT;

		if (tide_backup_conclude(g->jobs[i], &one) == 0)
			continue;
		++*failed;
		if (!why.code || (why.code == TIDE_E_CANCELLED && one.code != TIDE_E_CANCELLED)) {
			tide_error_release(&why);
			why = one;
		} else {
			tide_error_release(&one);
		}
	}
	if (why.code)
		tide_error_move(err, &why);
}

int tide_group_run(const struct tide_group_plan *plan, struct tide_sink *sink, size_t *failed, struct tide_error *err)
{
	struct tide_backup_job *const *jobs = plan->jobs;
	size_t n = plan->n_jobs;
	struct group g = { .plan = plan, .jobs = jobs, .n = n };
	struct tide_error early = TIDE_ERROR_INIT;

	pthread_mutex_init(&g.lock, NULL);
	if (copy_all(&g, &early) < 0) {
		tide_backup_fail(jobs[0], &early);
		g.failed = true;
	}
	if (!g.failed)
		g.failed = !commit_all(&g, sink);
	pthread_mutex_destroy(&g.lock);
	for (size_t i = n; i-- > 0;) {
		if (!g.failed) {
			tide_backup_emit_pending(jobs[i]);
			continue;
		}
		tide_backup_cancel(jobs[i]);
		tide_backup_emit_aborting(jobs[i]);
	}
	for (size_t i = n; g.failed && i-- > 0;)
		tide_backup_roll_back(jobs[i]);
	for (size_t i = 0; g.failed && i < plan->n_nodes; i++)
		tide_node_drop_deferred(plan->nodes[i], sink);
	conclude_all(&g, failed, err);
	return *failed ? -1 : 0;
}
