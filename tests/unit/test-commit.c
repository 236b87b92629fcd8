/*
 * The commit: in which order the members take their steps, what each failure leaves, and when there is a record.
 *
 * A member of these tests is a real node, whose functions are called through ones that note each step ("Sa": member a
 * was staged) and that fail where a test wants it.
 */
#include <dirent.h>

#include "job/commit.h"
#include "session_sample.h"

#define BEFORE "x......."
#define AFTER  "xx......"

enum { MEMBERS_MAX = 3 };

/* How a step fails. */
enum fault {
	NO_FAULT,
	FAILS_STAGE,
	FAILS_ADD,
	FAILS_COMMIT,      /* nothing is renamed */
	FAILS_LATE_COMMIT, /* it is renamed, but not known to be durable */
};

struct member {
	struct tide_commit_member inner;
	char name;
	enum fault fault;
	bool is_unchanged; /* it has nothing to commit */
	struct tide_strbuf *trace;
};

static void note(const struct member *m, char step)
{
	tide_strbuf_addf(m->trace, "%s%c%c", m->trace->len ? " " : "", step, m->name);
}

static int fail(const struct member *m, enum fault fault, struct tide_error *err)
{
	return m->fault == fault ? tide_error_set(err, TIDE_E_REFUSED, "Planted in '%c'", m->name) : 0;
}

static struct tide_node *member_node(void *member)
{
	const struct member *m = member;

	return m->inner.ops->node(m->inner.self);
}

static int stage(void *member, struct tide_sink *sink, struct tide_error *err)
{
	struct member *m = member;

	note(m, 'S');
	return fail(m, FAILS_STAGE, err) < 0 ? -1 : m->inner.ops->stage(m->inner.self, sink, err);
}

static unsigned count(const void *member)
{
	const struct member *m = member;

	return m->inner.ops->count(m->inner.self);
}

/* A node has no names. */
static int add_to_record(void *member, enum tide_commit_step step, struct tide_commit_record *record,
                         struct tide_error *err)
{
	struct member *m = member;

	if (step == TIDE_COMMIT_NAMES)
		return m->inner.ops->add_to_record(m->inner.self, step, record, err);
	note(m, 'A');
	return fail(m, FAILS_ADD, err) < 0 ? -1 : m->inner.ops->add_to_record(m->inner.self, step, record, err);
}

static void recorded(void *member)
{
	struct member *m = member;

	note(m, 'R');
	m->inner.ops->recorded(m->inner.self);
}

static void unrecorded(void *member)
{
	struct member *m = member;

	note(m, 'U');
	m->inner.ops->unrecorded(m->inner.self);
}

static int commit(void *member, enum tide_commit_step step, struct tide_error *err)
{
	struct member *m = member;

	if (step == TIDE_COMMIT_NAMES)
		return m->inner.ops->commit(m->inner.self, step, err);
	note(m, 'C');
	if (fail(m, FAILS_COMMIT, err) < 0 || m->inner.ops->commit(m->inner.self, step, err) < 0)
		return -1;
	return fail(m, FAILS_LATE_COMMIT, err);
}

static bool is_untouched(const void *member)
{
	const struct member *m = member;

	return m->inner.ops->is_untouched(m->inner.self);
}

static bool is_made(const void *member, enum tide_commit_step step)
{
	const struct member *m = member;

	return m->inner.ops->is_made(m->inner.self, step);
}

static void unlock(void *member)
{
	struct member *m = member;

	note(m, 'u');
	m->inner.ops->unlock(m->inner.self);
}

static const struct tide_commit_ops ops = {
	.node = member_node,
	.stage = stage,
	.count = count,
	.add_to_record = add_to_record,
	.recorded = recorded,
	.unrecorded = unrecorded,
	.commit = commit,
	.is_untouched = is_untouched,
	.is_made = is_made,
	.unlock = unlock,
};

/* How many files there are besides images and sidecars: temporary names, the record, pointers. */
static unsigned count_others(void)
{
	DIR *dir = opendir(unit_dir());
	struct dirent *e;
	unsigned n = 0;

	while (dir && (e = readdir(dir))) {
		const char *end = strchr(e->d_name, '.');

		n += end && strcmp(e->d_name, ".") && strcmp(e->d_name, "..") && strcmp(end, ".bitmaps");
	}
	if (dir)
		closedir(dir);
	return n;
}

static void begin(struct sample *s, const char *names)
{
	sample_begin(s);
	for (; *names; names++) {
		char id[2] = { *names, '\0' };

		sample_disk(s, id, NULL);
		sample_put(s, id, "b", BEFORE);
	}
}

/* Opens the node for a change of its bitmap. */
static struct tide_node *open_and_change(struct sample *s, const char *id, bool change)
{
	struct tide_node *node = sample_open(s, id, TIDE_NODE_EDIT_BITMAPS);
	struct tide_error err = TIDE_ERROR_INIT;

	if (change)
		sample_set_bits(tide_node_bitmap_for_change(node, tide_node_find(node, "b", &err), &err), AFTER);
	return node;
}

static int run(struct sample *s, const struct tide_commit_member *members, size_t n, size_t *bad,
               struct tide_error *err)
{
	struct tide_commit all = { .members = members, .n = n, .sink = &s->session->sink };

	return tide_commit_run(&all, bad, err);
}

/* The bitmap after the next command that changes something: this command completes what is decided. */
static const char *show_completed(struct sample *s, const char *id)
{
	tide_node_close(sample_open(s, id, TIDE_NODE_EDIT_BITMAPS));
	return sample_show(id, "b");
}

static const struct {
	const char *name;
	const char *members; /* in this order; a capital letter: unchanged */
	enum fault fault[MEMBERS_MAX];
	const char *trace;
	int rc;
	size_t bad;
	bool is_pending; /* the record stays */
} steps[] = {
	{ "one", "a", { 0 }, "Sa Ca ua", 0, 0, false },
	{ "two", "ab", { 0 }, "Sa Sb Aa Ab Ra Rb Ca Cb ua ub", 0, 0, false },
	{ "staged in the order of the paths",
	  "cab",
	  { 0 },
	  "Sa Sb Sc Ac Aa Ab Rc Ra Rb Cc Ca Cb uc ua ub",
	  0,
	  0,
	  false },
	{ "no record for one change", "Ab", { 0 }, "Sa Sb Ca Cb ua ub", 0, 0, false },
	{ "one that cannot be staged", "ba", { FAILS_STAGE }, "Sa Sb ub ua", -1, 0, false },
	{ "the first that cannot be staged", "ba", { 0, FAILS_STAGE }, "Sa ub ua", -1, 1, false },
	{ "one that cannot be recorded", "ab", { 0, FAILS_ADD }, "Sa Sb Aa Ab ua ub", -1, 1, false },
	{ "one alone that fails", "a", { FAILS_COMMIT }, "Sa Ca ua", -1, 0, false },
	{ "the first rename fails: taken back",
	  "ab",
	  { FAILS_COMMIT },
	  "Sa Sb Aa Ab Ra Rb Ca Ua Ub ua ub",
	  -1,
	  0,
	  false },
	{ "the second rename fails", "ab", { 0, FAILS_COMMIT }, "Sa Sb Aa Ab Ra Rb Ca Cb ua ub", 0, 0, true },
	{ "those after it are made",
	  "abc",
	  { 0, FAILS_COMMIT },
	  "Sa Sb Sc Aa Ab Ac Ra Rb Rc Ca Cb Cc ua ub uc",
	  0,
	  0,
	  true },
	{ "all but the first fail",
	  "abc",
	  { 0, FAILS_COMMIT, FAILS_COMMIT },
	  "Sa Sb Sc Aa Ab Ac Ra Rb Rc Ca Cb Cc ua ub uc",
	  0,
	  0,
	  true },
	{ "renamed, but not durable", "ab", { FAILS_LATE_COMMIT }, "Sa Sb Aa Ab Ra Rb Ca Cb ua ub", 0, 0, true },
};

static void test_steps(void)
{
	for (size_t i = 0; i < TIDE_ARRAY_SIZE(steps); i++) {
		struct tide_commit_member members[MEMBERS_MAX];
		struct member self[MEMBERS_MAX];
		struct tide_strbuf trace = TIDE_STRBUF_INIT;
		struct tide_error err = TIDE_ERROR_INIT;
		size_t n = strlen(steps[i].members), bad = 99;
		struct sample s;

		UNIT_ROW("%s", steps[i].name);
		begin(&s, "abc");
		for (size_t k = 0; k < n; k++) {
			char id[2] = { (char)(steps[i].members[k] | 0x20), '\0' };
			struct tide_node *node = open_and_change(&s, id, steps[i].members[k] == id[0]);

			self[k] = (struct member){ tide_commit_node_member(node), id[0], steps[i].fault[k],
				                   steps[i].members[k] != id[0], &trace };
			members[k] = (struct tide_commit_member){ &ops, &self[k] };
		}
		CHECK_EQ_I64(run(&s, members, n, &bad, &err), steps[i].rc);
		CHECK_STR(sample_text(&trace), steps[i].trace);
		CHECK_EQ_U64(bad, steps[i].rc ? steps[i].bad : 99);
		CHECK_ERR(&err, steps[i].rc ? TIDE_E_REFUSED : TIDE_E_NONE, NULL);
		CHECK_EQ_I64(s.warnings.len > 0, steps[i].is_pending);
		for (size_t k = 0; k < n; k++)
			tide_node_close(member_node(&self[k]));
		CHECK_EQ_I64(count_others() > 0, steps[i].is_pending);
		for (size_t k = n; k-- > 0;) {
			char id[2] = { self[k].name, '\0' };

			CHECK_STR(show_completed(&s, id), steps[i].rc || self[k].is_unchanged ? BEFORE : AFTER);
		}
		tide_strbuf_release(&trace);
		sample_end(&s);
	}
}

/* After a commit that was taken back, the same members can be committed. */
static void test_again(void)
{
	struct tide_strbuf trace = TIDE_STRBUF_INIT;
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_commit_member members[2];
	struct member self[2];
	struct sample s;

	begin(&s, "ab");
	for (int round = 0; round < 2; round++) {
		for (int k = 0; k < 2; k++) {
			struct tide_node *node = open_and_change(&s, k ? "b" : "a", true);

			self[k] = (struct member){ tide_commit_node_member(node), (char)('a' + k),
				                   round || k ? NO_FAULT : FAILS_COMMIT, false, &trace };
			members[k] = (struct tide_commit_member){ &ops, &self[k] };
		}
		CHECK_EQ_I64(run(&s, members, 2, NULL, &err), round ? 0 : -1);
		tide_error_release(&err);
		for (int k = 0; k < 2; k++)
			tide_node_close(member_node(&self[k]));
		CHECK_STR(sample_show("a", "b"), round ? AFTER : BEFORE);
		CHECK_STR(sample_show("b", "b"), round ? AFTER : BEFORE);
	}
	tide_strbuf_release(&trace);
	sample_end(&s);
}

/* ---- what changes at once ---- */

/* Commits a node's member, whose own commit fails or not, and compares the trace of its calls. */
static void commit_one(struct sample *s, struct tide_commit_member of_node, bool fails, const char *calls)
{
	struct tide_strbuf trace = TIDE_STRBUF_INIT;
	struct tide_error err = TIDE_ERROR_INIT;
	struct member self = { of_node, 'a', fails ? FAILS_COMMIT : NO_FAULT, false, &trace };
	struct tide_commit_member member = { &ops, &self };

	CHECK_EQ_I64(run(s, &member, 1, NULL, &err), fails ? -1 : 0);
	CHECK_STR(sample_text(&trace), calls);
	tide_error_release(&err);
	tide_strbuf_release(&trace);
}

/* The sidecar and the image's own bitmaps are two changes of one member. */
static void test_both_stores(void)
{
	for (int fails = 0; fails < 2; fails++) {
		struct tide_node *node;
		struct sample s;

		UNIT_ROW("%s", fails ? "fails" : "succeeds");
		sample_begin(&s);
		sample_file(&s, "a", "qcow2");
		tide_node_want_in_image(tide_session_find(s.session, "a"));
		node = sample_open(&s, "a", TIDE_NODE_EDIT_BITMAPS);
		sample_add(node, "one", BEFORE, TIDE_STORE_SIDECAR);
		sample_add(node, "two", AFTER, TIDE_STORE_IMAGE);
		commit_one(&s, tide_commit_node_member(node), fails, fails ? "Sa Aa Ra Ca Ua ua" : "Sa Aa Ra Ca ua");
		tide_node_close(node);
		CHECK_EQ_U64(count_others(), 0);
		CHECK_STR(sample_show("a", "one"), fails ? "none" : BEFORE);
		CHECK_STR(sample_show("a", "two"), fails ? "none" : AFTER);
		sample_end(&s);
	}
}

/* The changes of a node that wait for the end of a group: until its member is committed, the disk has those of before.
 */
static void test_deferred(void)
{
	for (int fails = 0; fails < 2; fails++) {
		struct tide_error err = TIDE_ERROR_INIT;
		struct tide_commit_member member;
		struct tide_node *node;
		struct sample s;

		UNIT_ROW("%s", fails ? "fails" : "succeeds");
		begin(&s, "a");
		node = sample_open(&s, "a", TIDE_NODE_EDIT_BITMAPS);
		CHECK_OK(tide_node_defer(node, &err), &err);
		sample_set_bits(tide_node_bitmap_for_change(node, tide_node_find(node, "b", &err), &err), AFTER);
		CHECK_OK(tide_node_begin_deferred(node, &err), &err);
		member = tide_commit_node_member(node);
		CHECK_OK(run(&s, &member, 1, NULL, &err), &err);
		CHECK_STR(sample_show("a", "b"), "x....... busy");
		commit_one(&s, tide_commit_deferred_member(node), fails, "Sa Ca ua");
		if (fails)
			tide_node_drop_deferred(node, &s.session->sink);
		tide_node_close(node);
		CHECK_EQ_U64(count_others(), 0);
		CHECK_STR(show_completed(&s, "a"), fails ? BEFORE : AFTER);
		sample_end(&s);
	}
}

/* A new image and a bitmap: both, or neither. */
static void test_target(void)
{
	static const struct {
		const char *name;
		enum fault fault;
		bool is_pending;
	} rows[] = {
		{ "succeeds", NO_FAULT, false },
		{ "the node cannot be staged", FAILS_STAGE, false },
		{ "the node cannot be recorded", FAILS_ADD, false },
		{ "the node cannot be renamed", FAILS_COMMIT, true },
	};

	for (size_t i = 0; i < TIDE_ARRAY_SIZE(rows); i++) {
		bool done = rows[i].fault == NO_FAULT || rows[i].is_pending;
		struct tide_target target = TIDE_TARGET_INIT;
		struct tide_driver_create create = { .size = DISK_SIZE };
		struct tide_strbuf trace = TIDE_STRBUF_INIT;
		struct tide_error err = TIDE_ERROR_INIT;
		struct tide_commit_member members[2];
		struct tide_node *node;
		struct member self;
		struct sample s;

		UNIT_ROW("%s", rows[i].name);
		begin(&s, "a");
		node = open_and_change(&s, "a", true);
		CHECK_OK(tide_target_create(&target, unit_path("new"), "raw", &create, NULL, false, &err), &err);
		self = (struct member){ tide_commit_node_member(node), 'a', rows[i].fault, false, &trace };
		members[0] = tide_commit_target_member(&target);
		members[1] = (struct tide_commit_member){ &ops, &self };
		CHECK_EQ_I64(run(&s, members, 2, NULL, &err), done ? 0 : -1);
		tide_error_release(&err);
		tide_target_release(&target);
		tide_node_close(node);
		CHECK_EQ_I64(access(unit_path("new"), F_OK), done ? 0 : -1);
		CHECK_EQ_I64(count_others() > 0, rows[i].is_pending);
		CHECK_STR(show_completed(&s, "a"), done ? AFTER : BEFORE);
		tide_strbuf_release(&trace);
		sample_end(&s);
	}
}

/* Without a node there is no place for a record: each new image gets its name. */
static void test_targets_alone(void)
{
	struct tide_target targets[2] = { TIDE_TARGET_INIT, TIDE_TARGET_INIT };
	struct tide_driver_create create = { .size = DISK_SIZE };
	struct tide_commit_member members[2];
	struct tide_error err = TIDE_ERROR_INIT;
	struct sample s;

	sample_begin(&s);
	for (int i = 0; i < 2; i++) {
		CHECK_OK(tide_target_create(&targets[i], unit_path(i ? "two" : "one"), "raw", &create, NULL, false,
		                            &err),
		         &err);
		members[i] = tide_commit_target_member(&targets[i]);
	}
	CHECK_OK(run(&s, members, 2, NULL, &err), &err);
	for (int i = 0; i < 2; i++)
		tide_target_release(&targets[i]);
	CHECK(access(unit_path("one"), F_OK) == 0 && access(unit_path("two"), F_OK) == 0 && count_others() == 0);
	sample_end(&s);
}

int main(void)
{
	UNIT_RUN(test_steps);
	UNIT_RUN(test_again);
	UNIT_RUN(test_both_stores);
	UNIT_RUN(test_deferred);
	UNIT_RUN(test_target);
	UNIT_RUN(test_targets_alone);
	return unit_done();
}
