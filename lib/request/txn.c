/*
 * The transaction engine: opens the nodes of all actions in one order, prepares the actions, commits them, and runs the
 * jobs.
 *
 * The order decides which changes an error leaves.  Until the commit, dropping nodes and targets undoes everything but
 * the data that a restore has written to an existing target.  After it only jobs run, and each job or group settles by
 * itself; so a run step, which is neither undone nor settled, has a transaction of its own.  Jobs run in threads of
 * their own, all else in the caller's.
 */
#include "txn.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/error.h"
#include "base/mem.h"
#include "job/group.h"

struct tide_txn {
	struct tide_session *session;
	bool dry_run, grouped;
	char *answer; /* what the reply returns, in JSON; NULL: {} */
	size_t n;
	struct tide_step *steps;
	size_t n_given; /* steps that were appended before some of them decided on others */
};

struct tide_txn *tide_txn_new(struct tide_session *session, struct tide_error *err)
{
	struct tide_txn *txn = tide_mem_alloc(1, sizeof(*txn), err);

	if (txn)
		txn->session = session;
	return txn;
}

static void release_step(struct tide_step *step)
{
	tide_qmp_owned_release(&step->owned);
	free(step->args);
}

void tide_txn_free(struct tide_txn *txn)
{
	if (!txn)
		return;
	for (size_t i = 0; i < txn->n; i++)
		release_step(&txn->steps[i]);
	free(txn->steps);
	free(txn->answer);
	free(txn);
}

void tide_txn_set_dry_run(struct tide_txn *txn, bool dry_run)
{
	txn->dry_run = dry_run;
}

/* The transaction owns the step from now on, unless this fails. */
static int take_step(struct tide_txn *txn, const struct tide_step *step, struct tide_error *err)
{
	struct tide_step *grown = tide_mem_realloc(txn->steps, txn->n + 1, sizeof(*grown), err);

	if (!grown)
		return -1;
	txn->steps = grown;
	txn->steps[txn->n++] = *step;
	return 0;
}

int tide_txn_append(struct tide_txn *txn, const struct tide_action *action, const void *args, struct tide_error *err)
{
	struct tide_step step = { .action = action };

	step.args = tide_mem_alloc(1, action->args_size, err);
	if (!step.args)
		return -1;
	if (tide_qmp_field_copy(action->fields, args, step.args, &step.owned, err) < 0 ||
	    take_step(txn, &step, err) < 0) {
		release_step(&step);
		return -1;
	}
	return 0;
}

/* ---- preparing --------------------------------------------------------------------- */

struct tide_session *tide_txn_session(const struct tide_txn *txn)
{
	return txn->session;
}

int tide_txn_set_answer(struct tide_txn *txn, struct tide_strbuf *json, struct tide_error *err)
{
	free(txn->answer);
	txn->answer = tide_strbuf_steal(json, err);
	return txn->answer ? 0 : -1;
}

void tide_txn_set_grouped(struct tide_txn *txn, bool grouped)
{
	txn->grouped = grouped;
}

/* A node and its file.  Several paths may lead to one file, so nodes are ordered by file. */
struct place {
	struct tide_node *node;
	struct stat st;
};

static int by_file(const void *a, const void *b)
{
	const struct place *x = a, *y = b;

	if (x->st.st_dev != y->st.st_dev)
		return x->st.st_dev < y->st.st_dev ? -1 : 1;
	return (x->st.st_ino > y->st.st_ino) - (x->st.st_ino < y->st.st_ino);
}

static void declare_all(struct tide_txn *txn)
{
	for (size_t i = 0; i < txn->n; i++) {
		if (txn->steps[i].action->declare)
			txn->steps[i].action->declare(txn->session, &txn->steps[i]);
	}
}

/* Is the file a backing image of one of these nodes? */
static bool is_backing(const struct place *places, size_t n, const struct stat *file)
{
	for (size_t i = 0; i < n; i++) {
		const struct tide_node *node = places[i].node;

		if (node->is_open && tide_image_reads_file(node->image, file->st_dev, file->st_ino))
			return true;
	}
	return false;
}

static bool is_same_file(const struct stat *a, const struct stat *b)
{
	if (S_ISBLK(a->st_mode) && S_ISBLK(b->st_mode))
		return a->st_rdev == b->st_rdev;
	return a->st_ino && a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

/* A lock was refused: by a node of this transaction that has the same file? */
static void say_if_own(const struct place *places, size_t n, const struct place *refused, struct tide_error *err)
{
	for (size_t i = 0; i < n; i++) {
		if (!places[i].node->is_open || !is_same_file(&places[i].st, &refused->st))
			continue;
		tide_error_release(err);
		tide_error_set(err, TIDE_E_REFUSED, "'%s' and '%s' are the same image, '%s'", places[i].node->id,
		               refused->node->id, refused->node->path);
		tide_error_hint(err, "give the image one name, and use that in all actions of the transaction");
		return;
	}
}

/* *blocked: the place that could not be opened because a node that was opened earlier reads its file; or n. */
static int open_places(struct tide_session *session, const struct place *places, size_t n, size_t *blocked,
                       struct tide_error *err)
{
	*blocked = n;
	for (size_t i = 0; i < n; i++) {
		struct tide_node *node = places[i].node;

		if (!node->want.any ||
		    tide_node_open_bitmaps(node, node->want.mode, node->want.create, &session->sink, err) == 0)
			continue;
		if (err->code == TIDE_E_LOCKED && is_backing(places, i, &places[i].st))
			*blocked = i;
		if (err->code == TIDE_E_LOCKED)
			say_if_own(places, i, &places[i], err);
		return -1;
	}
	return 0;
}

/*
 * Completing what a dead program left can need a lock that an overlay refuses: then the backing image is opened
 * first.
 */
static int open_in_order(struct tide_txn *txn, struct place *places, struct tide_error *err)
{
	struct tide_session *session = txn->session;
	size_t n = session->n_nodes;

	for (size_t tries = 0;; tries++) {
		struct tide_error why = TIDE_ERROR_INIT;
		size_t blocked;
		struct place first;

		if (open_places(session, places, n, &blocked, &why) == 0)
			return 0;
		if (blocked == n || tries == n)
			return tide_error_move(err, &why);
		tide_error_release(&why);
		tide_session_close_nodes(session);
		declare_all(txn);
		first = places[blocked];
		memmove(&places[1], &places[0], blocked * sizeof(*places));
		places[0] = first;
	}
}

/*
 * Opens every node that the actions need, in the widest mode.  All transactions of all programs lock files in the same
 * order, so they never wait for each other in a circle.
 */
static int open_nodes(struct tide_txn *txn, struct tide_error *err)
{
	struct tide_session *session = txn->session;
	TIDE_AUTOFREE struct place *places = tide_mem_alloc(session->n_nodes + 1, sizeof(*places), err);

	if (!places)
		return -1;
	declare_all(txn);
	for (size_t i = 0; i < session->n_nodes; i++) {
		session->nodes[i]->want.dry_run = txn->dry_run;
		places[i].node = session->nodes[i];
		stat(places[i].node->path, &places[i].st); /* a missing file is reported when it is opened */
	}
	qsort(places, session->n_nodes, sizeof(*places), by_file);
	return open_in_order(txn, places, err);
}

/* Images of this transaction do not refuse the change of bitmaps inside their backing images by it. */
static void share_owners(struct tide_txn *txn)
{
	struct tide_session *session = txn->session;

	for (size_t i = 0; i < session->n_nodes; i++) {
		struct tide_image *owner = session->nodes[i]->image;

		for (size_t k = 0; owner && k < session->n_nodes; k++) {
			if (session->nodes[k]->image)
				tide_image_share_owner(session->nodes[k]->image, owner);
		}
		for (size_t k = 0; owner && k < txn->n; k++) {
			struct tide_image *other =
			        txn->steps[k].action->image ? txn->steps[k].action->image(&txn->steps[k]) : NULL;

			if (other)
				tide_image_share_owner(other, owner);
		}
	}
}

/* In a group of backups and other actions, the changes of bitmaps wait for the end of the group, too. */
static int defer_changes(struct tide_txn *txn, struct tide_error *err)
{
	bool jobs = false, others = false;

	for (size_t i = 0; i < txn->n; i++) {
		jobs |= txn->steps[i].action->job != NULL;
		others |= !txn->steps[i].action->job;
	}
	for (size_t i = 0; txn->grouped && jobs && others && i < txn->session->n_nodes; i++) {
		struct tide_node *node = txn->session->nodes[i];

		if (node->is_open && node->mode == TIDE_NODE_EDIT_BITMAPS && tide_node_defer(node, err) < 0)
			return -1;
	}
	return 0;
}

static int refuse_completed(struct tide_txn *txn, struct tide_error *err)
{
	for (size_t i = 0; i < txn->n; i++) {
		const struct tide_step *step = &txn->steps[i];

		if (step->action->job &&
		    tide_session_refuse_completed(txn->session, tide_backup_target(step->action->job(step)), err) < 0)
			return -1;
	}
	return 0;
}

bool tide_txn_changes_bitmap(const struct tide_txn *txn, const char *node, const char *name, bool *exists)
{
	bool changes = false;

	for (size_t i = 0; i < txn->n; i++) {
		const struct tide_step *step = &txn->steps[i];
		struct tide_bitmap_change change = { 0 };

		if (step->action->changes)
			step->action->changes(step, &change);
		if (!change.name || !change.node || strcmp(change.node, node) != 0 || strcmp(change.name, name) != 0)
			continue;
		changes = true;
		*exists = !change.removes;
	}
	return changes;
}

/* Replaces each action that decides by the actions that it decides on. */
static int decide(struct tide_txn *txn, struct tide_error *err)
{
	struct tide_step *steps = txn->steps;
	size_t n = txn->n, i;
	int rc = 0;

	txn->steps = NULL;
	txn->n = 0;
	for (i = 0; i < n && rc == 0; i++) {
		struct tide_step *step = &steps[i];

		rc = step->action->decide ? step->action->decide(txn, step, err) : 0;
		if (rc > 0)
			release_step(step);
		else if (rc == 0)
			rc = take_step(txn, step, err);
		rc = rc > 0 ? 0 : rc;
	}
	for (size_t k = rc < 0 ? i - 1 : i; k < n; k++)
		release_step(&steps[k]);
	free(steps);
	return rc;
}

static int check_alone(const struct tide_txn *txn, struct tide_error *err)
{
	for (size_t i = 0; i < txn->n && txn->n > 1; i++) {
		const struct tide_step *step = &txn->steps[i];
		const char *what = step->action->alone ? step->action->alone(step) : NULL;

		if (what)
			return tide_error_set(err, TIDE_E_REFUSED, "%s must be the only action of its transaction",
			                      what);
	}
	return 0;
}

static int begin_all(struct tide_txn *txn, struct tide_error *err)
{
	if (txn->n < 2)
		return 0;
	declare_all(txn);
	for (size_t i = 0; i < txn->n; i++) {
		if (txn->steps[i].action->begin && txn->steps[i].action->begin(txn->session, txn->steps, i, err) < 0)
			return -1;
	}
	return 0;
}

static int announce_all(struct tide_txn *txn, struct tide_error *err)
{
	struct tide_session *session = txn->session;

	if (tide_id_new(&session->point, err) < 0)
		return -1;
	for (size_t i = 0; i < session->n_nodes; i++) {
		tide_lineage_base_free(session->nodes[i]->next_full);
		session->nodes[i]->next_full = NULL;
	}
	for (size_t i = 0; i < txn->n; i++) {
		const struct tide_step *step = &txn->steps[i];

		if (step->action->announce && step->action->announce(session, step, err) < 0)
			return -1;
	}
	return 0;
}

static void describe_one(const struct tide_step *step, bool in_list, struct tide_json_writer *w)
{
	if (!step->action->describe || !step->action->describe(step, NULL))
		return;
	if (in_list)
		tide_json_begin(w, NULL, '{');
	step->action->describe(step, w);
	if (in_list)
		tide_json_end(w, '}');
}

/* The backup of a command is described in what its reply returns, those of a transaction in a list there. */
static int make_answer(struct tide_txn *txn, struct tide_error *err)
{
	struct tide_strbuf sb = TIDE_STRBUF_INIT;
	struct tide_json_writer w = { &sb, false };
	bool any = false, in_list = txn->n_given > 1;

	for (size_t i = 0; i < txn->n; i++)
		any |= txn->steps[i].action->describe && txn->steps[i].action->describe(&txn->steps[i], NULL);
	if (!any)
		return 0;
	tide_json_begin(&w, NULL, '{');
	if (in_list)
		tide_json_begin(&w, "x-backups", '[');
	for (size_t i = 0; i < txn->n; i++)
		describe_one(&txn->steps[i], in_list, &w);
	if (in_list)
		tide_json_end(&w, ']');
	tide_json_end(&w, '}');
	return tide_txn_set_answer(txn, &sb, err);
}

static int prepare_all(struct tide_txn *txn, struct tide_error *err)
{
	txn->n_given = txn->n;
	if (check_alone(txn, err) < 0 || begin_all(txn, err) < 0 || open_nodes(txn, err) < 0 || decide(txn, err) < 0 ||
	    defer_changes(txn, err) < 0 || announce_all(txn, err) < 0)
		return -1;
	for (size_t i = 0; i < txn->n; i++) {
		if (txn->steps[i].action->prepare(txn->session, &txn->steps[i], err) < 0)
			return -1;
	}
	return make_answer(txn, err);
}

/* ---- committing -------------------------------------------------------------------- */

static int commit(struct tide_txn *txn, const struct tide_commit_member *members, size_t n, struct tide_error *err)
{
	struct tide_commit commit = {
		.members = members,
		.n = n,
		.sink = &txn->session->sink,
	};

	return tide_commit_run(&commit, NULL, err);
}

/*
 * Commits frozen bitmaps, which the next opener thaws after a death, and repairs, which it would make again.  Neither
 * needs to be atomic with other nodes, so each node has a commit of its own.
 */
static int commit_unchanged(struct tide_txn *txn, struct tide_error *err)
{
	for (size_t i = 0; i < txn->session->n_nodes; i++) {
		struct tide_node *node = txn->session->nodes[i];
		struct tide_commit_member member = tide_commit_node_member(node);

		if (node->is_open && !node->has_changes && commit(txn, &member, 1, err) < 0)
			return -1;
	}
	return 0;
}

/* Commits all changes that the transaction makes before its jobs run: the members together, or none. */
static int commit_all(struct tide_txn *txn, struct tide_error *err)
{
	struct tide_session *session = txn->session;
	TIDE_AUTOFREE struct tide_commit_member *members =
	        tide_mem_alloc(session->n_nodes + txn->n + 1, sizeof(*members), err);
	size_t n = 0;

	if (!members)
		return -1;
	for (size_t i = 0; i < txn->n; i++) {
		struct tide_step *step = &txn->steps[i];

		if (step->action->member && step->action->member(step, &members[n]))
			n++;
	}
	for (size_t i = 0; i < session->n_nodes; i++) {
		struct tide_node *node = session->nodes[i];

		if (!node->is_open)
			continue;
		if (node->group.before && tide_node_begin_deferred(node, err) < 0)
			return -1;
		if (node->has_changes)
			members[n++] = tide_commit_node_member(node);
	}
	return commit_unchanged(txn, err) < 0 || commit(txn, members, n, err) < 0 ? -1 : 0;
}

/* ---- running ----------------------------------------------------------------------- */

static int work_steps(struct tide_txn *txn, struct tide_error *err)
{
	for (size_t i = 0; i < txn->n; i++) {
		struct tide_step *step = &txn->steps[i];

		if (step->action->work && step->action->work(txn->session, step, err) < 0)
			return -1;
	}
	return 0;
}

static int run_steps(struct tide_txn *txn, struct tide_error *err)
{
	for (size_t i = 0; i < txn->n; i++) {
		struct tide_step *step = &txn->steps[i];

		if (step->action->run && step->action->run(txn->session, step, err) < 0)
			return -1;
	}
	return 0;
}

/* The first error of the steps that have done their work; the reply says so before it is returned. */
static void collect_results(struct tide_txn *txn, struct tide_error *err)
{
	for (size_t i = 0; i < txn->n; i++) {
		struct tide_step *step = &txn->steps[i];
		struct tide_error own = TIDE_ERROR_INIT;

		if (step->action->result && step->action->result(txn, step, &own) < 0 && err->code == TIDE_E_NONE)
			tide_error_move(err, &own);
		tide_error_release(&own);
	}
}

static void reply(struct tide_txn *txn)
{
	if (txn->session->replied)
		return;
	txn->session->replied = true;
	tide_event_return(&txn->session->sink, txn->answer ? txn->answer : "{}");
}

/* A job that runs in its own thread. */
struct running {
	struct tide_backup_job *job;
	pthread_t thread;
	bool started;
	int rc;
	struct tide_error err;
};

static void *run_job(void *arg)
{
	struct running *r = arg;

	r->rc = tide_backup_run(r->job, &r->err);
	return NULL;
}

/* Runs all jobs at once; err becomes the first failure in their order. */
static void run_side_by_side(struct running *jobs, size_t n, size_t *failed, struct tide_error *err)
{
	for (size_t i = 0; i < n; i++) {
		jobs[i].started = n > 1 && pthread_create(&jobs[i].thread, NULL, run_job, &jobs[i]) == 0;
		if (!jobs[i].started)
			run_job(&jobs[i]);
	}
	for (size_t i = 0; i < n; i++) {
		if (jobs[i].started)
			pthread_join(jobs[i].thread, NULL);
		if (jobs[i].rc < 0) {
			++*failed;
			tide_error_move(err, &jobs[i].err);
		}
		tide_error_release(&jobs[i].err);
	}
}

/* Jobs with nothing to copy end before the reply, as in QEMU; the others begin after it. */
static int run_individual(struct tide_txn *txn, struct tide_backup_job *const *jobs, size_t n, size_t *failed,
                          struct tide_error *err)
{
	TIDE_AUTOFREE struct running *running = tide_mem_alloc(n + 1, sizeof(*running), err);
	size_t k;

	if (!running)
		return -1;
	for (int empty = 1; empty >= 0; empty--) {
		k = 0;
		for (size_t i = 0; i < n; i++) {
			if (tide_backup_is_empty(jobs[i]) == (bool)empty)
				running[k++] = (struct running){ .job = jobs[i], .err = TIDE_ERROR_INIT };
		}
		if (!empty)
			reply(txn);
		run_side_by_side(running, k, failed, err);
	}
	return 0;
}

static int run_grouped(struct tide_txn *txn, struct tide_backup_job *const *jobs, size_t n, size_t *failed,
                       struct tide_error *err)
{
	TIDE_AUTOFREE struct tide_node **nodes = tide_mem_alloc(txn->session->n_nodes + 1, sizeof(*nodes), err);
	struct tide_group_plan plan = { .jobs = jobs, .n_jobs = n, .nodes = nodes };
	bool empty = true;

	if (!nodes)
		return -1;
	for (size_t i = 0; i < txn->session->n_nodes; i++) {
		if (tide_node_is_deferred(txn->session->nodes[i]))
			nodes[plan.n_nodes++] = txn->session->nodes[i];
	}
	for (size_t i = 0; i < n; i++)
		empty &= tide_backup_is_empty(jobs[i]);
	if (!empty)
		reply(txn);
	tide_group_run(&plan, &txn->session->sink, failed, err);
	reply(txn);
	return 0;
}

static int run_jobs(struct tide_txn *txn, struct tide_error *err)
{
	TIDE_AUTOFREE struct tide_backup_job **jobs = tide_mem_alloc(txn->n + 1, sizeof(*jobs), err);
	struct tide_work_share share = { 0 };
	size_t n = 0, failed = 0;

	if (!jobs)
		return -1;
	for (size_t i = 0; i < txn->n; i++) {
		if (txn->steps[i].action->job)
			jobs[n++] = txn->steps[i].action->job(&txn->steps[i]);
	}
	for (size_t i = 0; i < n; i++)
		tide_backup_start(jobs[i], &share);
	if ((txn->grouped && n ? run_grouped : run_individual)(txn, jobs, n, &failed, err) < 0)
		return -1;
	if (failed && failed < n && err->code != TIDE_E_CANCELLED) {
		err->code = TIDE_E_PARTIAL;
		tide_error_wrap(err, "%zu of %zu jobs did not succeed", failed, n);
	}
	return failed ? -1 : 0;
}

/* Delivers the events of jobs that were prepared and will not begin, the last job's first. */
static void drop_jobs(struct tide_txn *txn)
{
	for (size_t i = txn->n; i-- > 0;) {
		const struct tide_step *step = &txn->steps[i];

		if (step->action->job && step->action->job(step))
			tide_backup_drop(step->action->job(step));
	}
}

/* Thaws bitmaps that may have been frozen on disk before the commit failed. */
static void thaw_jobs(struct tide_txn *txn)
{
	for (size_t i = 0; i < txn->n; i++) {
		const struct tide_step *step = &txn->steps[i];

		if (step->action->job)
			tide_backup_thaw(step->action->job(step));
	}
}

static int run_txn(struct tide_txn *txn, struct tide_error *err)
{
	struct tide_error result = TIDE_ERROR_INIT;

	if (prepare_all(txn, err) < 0 || refuse_completed(txn, err) < 0) {
		drop_jobs(txn);
		return -1;
	}
	if (txn->dry_run) {
		drop_jobs(txn);
		reply(txn);
		return 0;
	}
	share_owners(txn);
	if (work_steps(txn, err) < 0 || commit_all(txn, err) < 0 || run_steps(txn, err) < 0) {
		thaw_jobs(txn);
		drop_jobs(txn);
		return -1;
	}
	collect_results(txn, &result);
	if (run_jobs(txn, err) < 0) {
		tide_error_release(&result);
		return -1;
	}
	return result.code ? tide_error_move(err, &result) : 0;
}

int tide_txn_run(struct tide_txn *txn, struct tide_error *err)
{
	struct tide_error own = TIDE_ERROR_INIT;
	int rc;

	tide_session_begin_request(txn->session);
	rc = run_txn(txn, &own);
	if (rc < 0)
		tide_session_reply_error(txn->session, &own);
	for (size_t i = txn->n; i-- > 0;) {
		if (txn->steps[i].action->clean)
			txn->steps[i].action->clean(&txn->steps[i]);
	}
	tide_session_close_nodes(txn->session);
	if (rc == 0)
		rc = tide_session_check_reported(txn->session, !txn->dry_run, &own);
	return rc < 0 ? tide_error_move(err, &own) : 0;
}
