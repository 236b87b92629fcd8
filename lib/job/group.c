/*
 * Running a group: each job copies in a thread of its own; then one thread, the caller's, commits or rolls back all.
 *
 * The lock protects `failed`: the first job that fails stops the others, and a later failure changes nothing.
 */
#include "group.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/mem.h"

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

/* All jobs copy at once; a job whose thread cannot be created copies here, and the next one follows. */
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

/* ---- committing -------------------------------------------------------------------- */

/* Does a job settle this node's bitmaps?  Then its member commits all changes of the node. */
static bool is_settled_by_job(const struct group *g, const struct tide_node *node)
{
	for (size_t i = 0; i < g->n; i++) {
		if (tide_backup_settles(g->jobs[i], node))
			return true;
	}
	return false;
}

static bool commit_all(struct group *g, struct tide_sink *sink)
{
	const struct tide_group_plan *plan = g->plan;
	TIDE_AUTOFREE struct tide_commit_member *members = tide_mem_alloc(g->n + plan->n_nodes, sizeof(*members), NULL);
	struct tide_commit commit = { .members = members, .n = g->n, .sink = sink };
	struct tide_error err = TIDE_ERROR_INIT;
	size_t bad = 0;
	int rc = members ? 0 : tide_error_set_nomem(&err);

	for (size_t i = 0; rc == 0 && i < g->n; i++) {
		tide_backup_succeed(g->jobs[i]);
		members[i] = tide_backup_member(g->jobs[i]);
	}
	for (size_t i = 0; rc == 0 && i < plan->n_nodes; i++) {
		if (!is_settled_by_job(g, plan->nodes[i]))
			members[commit.n++] = tide_commit_deferred_member(plan->nodes[i]);
	}
	if (rc == 0)
		rc = tide_commit_run(&commit, &bad, &err);
	if (rc < 0)
		tide_backup_fail(g->jobs[bad < g->n ? bad : 0], &err);
	return rc == 0;
}

/* ---- ending ------------------------------------------------------------------------ */

/* The last events come in reverse order of the actions, as in QEMU. */
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
