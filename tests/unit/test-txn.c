/*
 * The transaction engine: what a refused transaction and a dry run leave, how actions that decide become others, how
 * jobs end alone and as a group, in which order replies and events come, and what must be a transaction of its own.
 */
#include "job/commit.h"
#include "session_sample.h"

#define DIRTY   "x..x...x"
#define FAIL_AT (3 * GRANULE)

/* Two disks, a and b, with a bitmap each, and a transaction to fill. */
struct run {
	struct sample s;
	struct tide_txn *txn;
	struct tide_error err;
};

static void begin(struct run *r)
{
	sample_begin(&r->s);
	r->err = (struct tide_error)TIDE_ERROR_INIT;
	sample_disk(&r->s, "a", NULL);
	sample_disk(&r->s, "b", NULL);
	sample_put(&r->s, "a", "b", DIRTY);
	sample_put(&r->s, "b", "b", DIRTY);
	r->txn = tide_txn_new(r->s.session, &r->err);
}

static int run(struct run *r)
{
	int rc = tide_txn_run(r->txn, &r->err);

	tide_txn_free(r->txn);
	r->txn = tide_txn_new(r->s.session, NULL);
	return rc;
}

static void end(struct run *r)
{
	tide_txn_free(r->txn);
	tide_error_release(&r->err);
	sample_end(&r->s);
}

static void fail_reads(struct run *r, unsigned disk)
{
	memory_disk_fail(r->s.disk[disk], &(struct memory_fault){ MEMORY_READ, FAIL_AT, EIO, 0 });
}

/* ---- actions, by a letter: of disk a, in capitals of disk b ---- */

static void add_backup(struct run *r, const char *node, enum tide_sync_mode sync)
{
	char target[] = "new-?";
	struct tide_backup args = { .device = node, .sync = sync, .format = "raw" };

	target[4] = node[0];
	args.target = unit_path(target);
	if (sync == TIDE_SYNC_INCREMENTAL || sync == TIDE_SYNC_AUTO)
		args.bitmap = "b";
	CHECK_OK(tide_txn_backup(r->txn, &args, &r->err), &r->err);
}

static void add_write(struct run *r, const char *node)
{
	struct tide_image_write args = { .node = node,
		                         .kind = TIDE_WRITE_PATTERN,
		                         .offset = GRANULE,
		                         .has_length = true,
		                         .length = 512,
		                         .pattern = 7 };

	CHECK_OK(tide_txn_image_write(r->txn, &args, &r->err), &r->err);
}

static void add_rescue(struct run *r, const char *node)
{
	struct tide_chain_restore args = { .device = node, .target = unit_path("rescued"), .salvage = true };

	CHECK_OK(tide_txn_chain_restore(r->txn, &args, &r->err), &r->err);
}

/* n: new bitmap, c: clear, r: remove, f: full backup, i: incremental, u: auto, w: write, s: rescue, x: abort */
static void add(struct run *r, const char *actions)
{
	for (; *actions; actions++) {
		const char *node = *actions & 0x20 ? "a" : "b";
		struct tide_bitmap_add new = { .node = node, .name = "new" };
		struct tide_bitmap_edit edit = { .node = node, .name = "b" };

		switch (*actions | 0x20) {
		case 'n':
			CHECK_OK(tide_txn_bitmap_add(r->txn, &new, &r->err), &r->err);
			break;
		case 'c':
			CHECK_OK(tide_txn_bitmap_clear(r->txn, &edit, &r->err), &r->err);
			break;
		case 'r':
			CHECK_OK(tide_txn_bitmap_remove(r->txn, &edit, &r->err), &r->err);
			break;
		case 'f':
			add_backup(r, node, TIDE_SYNC_FULL);
			break;
		case 'i':
			add_backup(r, node, TIDE_SYNC_INCREMENTAL);
			break;
		case 'u':
			add_backup(r, node, TIDE_SYNC_AUTO);
			break;
		case 'w':
			add_write(r, node);
			break;
		case 's':
			add_rescue(r, node);
			break;
		default:
			CHECK_OK(tide_txn_abort(r->txn, &r->err), &r->err);
		}
	}
}

/* ---- what is on disk, and what was delivered ---- */

static void check_untouched(void)
{
	CHECK_STR(sample_show("a", "b"), DIRTY);
	CHECK_STR(sample_show("b", "b"), DIRTY);
	CHECK_STR(sample_show("a", "new"), "none");
	CHECK(access(unit_path("new-a"), F_OK) < 0 && access(unit_path("new-b"), F_OK) < 0);
}

/* The lines in short: R reply, E error reply; e an error of a job, C it completed, F it failed, X it was cancelled. */
static const char *order(const struct run *r)
{
	static char text[128];
	const char *p = sample_text(&r->s.lines);
	size_t n = 0;

	for (; *p && n < sizeof(text) - 4; p = strchr(p, '\n') + 1) {
		const char *device = strstr(p, "\"device\": \"");
		size_t len = strcspn(p, "\n");

		n += (size_t)snprintf(text + n, 2, n ? " " : "");
		if (!strncmp(p, "{\"return\"", 9))
			text[n++] = 'R';
		else if (!strncmp(p, "{\"error\"", 8))
			text[n++] = 'E';
		else if (!strncmp(p, "{\"event\": \"BLOCK_JOB_ERROR", 26))
			text[n++] = 'e';
		else if (!strncmp(p, "{\"event\": \"BLOCK_JOB_CANCELLED", 30))
			text[n++] = 'X';
		else
			text[n++] = memmem(p, len, "\"error\"", 7) ? 'F' : 'C';
		if (p[2] == 'e' && p[3] == 'v' && device)
			text[n++] = device[11];
	}
	text[n] = '\0';
	return text;
}

/* ---- refused, and dry ---- */

static const char *const refused[] = { "x", "nx", "cnfx", "xcn", "crCx", "cCrc", "ifIx", "rr", "nn", "fw", "wc" };

static void test_refused_changes_nothing(void)
{
	for (size_t i = 0; i < 2 * TIDE_ARRAY_SIZE(refused); i++) {
		struct run r;

		UNIT_ROW("%s, %s", refused[i / 2], i % 2 ? "grouped" : "individual");
		begin(&r);
		tide_txn_set_grouped(r.txn, i % 2);
		add(&r, refused[i / 2]);
		CHECK_EQ_I64(run(&r), -1);
		CHECK_ERR(&r.err, TIDE_E_REFUSED, NULL);
		CHECK_STR(order(&r), "E");
		check_untouched();
		end(&r);
	}
}

static void test_dry_run(void)
{
	static const struct {
		const char *actions, *order;
	} rows[] = {
		{ "", "R" },  { "cnfI", "R" }, { "rCN", "R" }, { "w", "R" },
		{ "u", "R" }, { "cnfx", "E" }, { "wc", "E" },  { "rc", "E" },
	};

	for (size_t i = 0; i < TIDE_ARRAY_SIZE(rows); i++) {
		struct run r;

		UNIT_ROW("%s", rows[i].actions);
		begin(&r);
		tide_txn_set_dry_run(r.txn, true);
		add(&r, rows[i].actions);
		CHECK_EQ_I64(run(&r), rows[i].order[0] == 'R' ? 0 : -1);
		tide_error_release(&r.err);
		CHECK_STR(order(&r), rows[i].order);
		check_untouched();
		end(&r);
	}
}

/* ---- actions that decide, and those that must be alone ---- */

static void test_decide(void)
{
	static const struct {
		const char *before, *reply; /* the actions of a transaction before it; how the reply begins */
	} rows[] = {
		{ "", "{\"return\": {\"sync\": \"full\"" },
		{ "r", "{\"return\": {\"sync\": \"full\"" },
	};

	for (size_t i = 0; i < TIDE_ARRAY_SIZE(rows); i++) {
		struct run r;

		UNIT_ROW("after '%s'", rows[i].before);
		begin(&r);
		add(&r, rows[i].before);
		CHECK_OK(run(&r), &r.err);
		sample_forget_lines(&r.s);
		add(&r, "u");
		CHECK_OK(run(&r), &r.err);
		CHECK(strstr(sample_text(&r.s.lines), rows[i].reply) == sample_text(&r.s.lines));
		CHECK_STR(order(&r), "R Ca");
		CHECK_STR(sample_show("a", "b"), "........");
		end(&r);
	}
}

static void test_alone(void)
{
	static const struct {
		const char *actions, *refused; /* NULL: it is not */
	} rows[] = {
		{ "w", NULL },
		{ "wn", "A write to an image must be the only action of its transaction" },
		{ "NW", "A write to an image must be the only action of its transaction" },
		{ "wW", "A write to an image must be the only action of its transaction" },
		{ "s", NULL },
		{ "sf", "A rescue of a chain must be the only action of its transaction" },
		{ "Cs", "A rescue of a chain must be the only action of its transaction" },
		{ "u", NULL },
	};

	for (size_t i = 0; i < TIDE_ARRAY_SIZE(rows); i++) {
		struct run r;

		UNIT_ROW("%s", rows[i].actions);
		begin(&r);
		add(&r, rows[i].actions);
		CHECK_EQ_I64(run(&r), rows[i].refused ? -1 : 0);
		CHECK_ERR(&r.err, rows[i].refused ? TIDE_E_REFUSED : TIDE_E_NONE, rows[i].refused);
		if (rows[i].refused)
			check_untouched();
		else if (rows[i].actions[0] == 'w')
			CHECK_STR(sample_show("a", "b"), "xx.x...x");
		end(&r);
	}
}

/* ---- jobs ---- */

/* Disk b fails where `fails` says so. */
static const struct {
	const char *actions;
	bool grouped, fails;
	enum tide_code code;
	const char *order;
	const char *a, *b; /* the bitmaps afterwards */
	const char *targets;
} ends[] = {
	{ "f", false, false, TIDE_E_NONE, "R Ca", DIRTY, DIRTY, "a" },
	{ "F", false, true, TIDE_E_IO, "R eb Fb", DIRTY, DIRTY, "" },
	{ "cI", false, true, TIDE_E_IO, "R eb Fb", "........", DIRTY, "" },
	{ "fF", true, false, TIDE_E_NONE, "R Cb Ca", DIRTY, DIRTY, "ab" },
	{ "iI", true, false, TIDE_E_NONE, "R Cb Ca", "........", "........", "ab" },
	{ "cI", true, false, TIDE_E_NONE, "R Cb", "........", "........", "b" },
	{ "rI", true, false, TIDE_E_NONE, "R Cb", "none", "........", "b" },
	{ "cI", true, true, TIDE_E_IO, "R eb Fb", DIRTY, DIRTY, "" },
	{ "rI", true, true, TIDE_E_IO, "R eb Fb", DIRTY, DIRTY, "" },
	{ "cC", true, false, TIDE_E_NONE, "R", "........", "........", "" },
};

static void test_ends(void)
{
	for (size_t i = 0; i < TIDE_ARRAY_SIZE(ends); i++) {
		struct run r;

		UNIT_ROW("%s, %s%s", ends[i].actions, ends[i].grouped ? "grouped" : "individual",
		         ends[i].fails ? ", b fails" : "");
		begin(&r);
		tide_txn_set_grouped(r.txn, ends[i].grouped);
		add(&r, ends[i].actions);
		if (ends[i].fails)
			fail_reads(&r, 1);
		CHECK_EQ_I64(run(&r), ends[i].code ? -1 : 0);
		CHECK_EQ_I64(r.err.code, ends[i].code);
		CHECK_STR(order(&r), ends[i].order);
		CHECK_STR(sample_show("a", "b"), ends[i].a);
		CHECK_STR(sample_show("b", "b"), ends[i].b);
		CHECK_EQ_I64(access(unit_path("new-a"), F_OK), strchr(ends[i].targets, 'a') ? 0 : -1);
		CHECK_EQ_I64(access(unit_path("new-b"), F_OK), strchr(ends[i].targets, 'b') ? 0 : -1);
		sample_check_settled(&r.s, "a");
		sample_check_settled(&r.s, "b");
		end(&r);
	}
}

/* Two jobs side by side, whose events mix: the one that fails takes the other with it only in a group. */
static void test_one_of_two_fails(void)
{
	for (int grouped = 0; grouped < 2; grouped++) {
		struct run r;

		UNIT_ROW("%s", grouped ? "grouped" : "individual");
		begin(&r);
		tide_txn_set_grouped(r.txn, grouped);
		add(&r, "iI");
		fail_reads(&r, 1);
		CHECK_EQ_I64(run(&r), -1);
		CHECK_EQ_I64(r.err.code, grouped ? TIDE_E_IO : TIDE_E_PARTIAL);
		CHECK(order(&r)[0] == 'R' && strstr(order(&r), grouped ? "Fb Xa" : "Fb"));
		CHECK_EQ_I64(strstr(order(&r), "Ca") == NULL, grouped);
		CHECK_STR(sample_show("a", "b"), grouped ? DIRTY : "........");
		CHECK_STR(sample_show("b", "b"), DIRTY);
		CHECK_EQ_I64(access(unit_path("new-a"), F_OK), -grouped);
		CHECK(access(unit_path("new-b"), F_OK) < 0);
		sample_check_settled(&r.s, "a");
		sample_check_settled(&r.s, "b");
		end(&r);
	}
}

/* A job with nothing to copy ends before the reply, unless others of its group have something. */
static void test_empty_jobs(void)
{
	static const struct {
		const char *actions;
		bool grouped;
		const char *order;
	} rows[] = {
		{ "i", false, "Ca R" },     { "i", true, "Ca R" },     { "iF", false, "Ca R Cb" },
		{ "Fi", false, "Ca R Cb" }, { "iF", true, "R Cb Ca" },
	};

	for (size_t i = 0; i < TIDE_ARRAY_SIZE(rows); i++) {
		struct run r;

		UNIT_ROW("%s, %s", rows[i].actions, rows[i].grouped ? "grouped" : "individual");
		begin(&r);
		add(&r, "c");
		CHECK_OK(run(&r), &r.err);
		sample_forget_lines(&r.s);
		tide_txn_set_grouped(r.txn, rows[i].grouped);
		add(&r, rows[i].actions);
		CHECK_OK(run(&r), &r.err);
		CHECK_STR(order(&r), rows[i].order);
		end(&r);
	}
}

/* ---- a transaction that was interrupted ---- */

static int die(void *member, enum tide_commit_step step, struct tide_error *err)
{
	return step == TIDE_COMMIT_BITMAPS ? tide_error_set(err, TIDE_E_IO, "Planted") : 0;
}

/* Decides that the bitmap of a is cleared and that new-a appears, and completes only the latter. */
static void interrupt(struct run *r)
{
	struct tide_node *node = sample_open(&r->s, "a", TIDE_NODE_EDIT_BITMAPS);
	struct tide_commit_member members[2] = { { NULL, NULL }, tide_commit_node_member(node) };
	struct tide_commit_ops dies = *members[1].ops;
	struct tide_commit commit = { .members = members, .n = 2, .sink = &r->s.session->sink };
	struct tide_driver_create create = { .size = DISK_SIZE };
	struct tide_target target = TIDE_TARGET_INIT;

	dies.commit = die;
	members[1].ops = &dies;
	CHECK_OK(tide_target_create(&target, unit_path("new-a"), "raw", &create, NULL, false, &r->err), &r->err);
	members[0] = tide_commit_target_member(&target);
	CHECK_PTR(tide_node_bitmap_clear(node, tide_node_find(node, "b", &r->err), &r->err), &r->err);
	CHECK_OK(tide_commit_run(&commit, NULL, &r->err), &r->err);
	tide_target_release(&target);
	tide_node_close(node);
	sample_forget_lines(&r->s);
}

/* To repeat it would replace its target by a backup of nothing; the time after, the target is a new one. */
static void test_repeated(void)
{
	struct run r;

	begin(&r);
	interrupt(&r);
	add(&r, "i");
	CHECK_EQ_I64(run(&r), -1);
	CHECK(r.err.code == TIDE_E_REFUSED && strstr(r.err.msg, "interrupted"));
	CHECK_STR(order(&r), "E");
	tide_error_release(&r.err);
	CHECK_STR(sample_show("a", "b"), "........");
	sample_forget_lines(&r.s);
	add(&r, "i");
	CHECK_OK(run(&r), &r.err);
	CHECK_STR(order(&r), "Ca R");
	end(&r);
}

int main(void)
{
	UNIT_RUN(test_refused_changes_nothing);
	UNIT_RUN(test_dry_run);
	UNIT_RUN(test_decide);
	UNIT_RUN(test_alone);
	UNIT_RUN(test_ends);
	UNIT_RUN(test_one_of_two_fails);
	UNIT_RUN(test_empty_jobs);
	UNIT_RUN(test_repeated);
	return unit_done();
}
