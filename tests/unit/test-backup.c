/*
 * The backup job between disks in memory: the bitmap, the target and the events after success, failure and cancel, for
 * each sync mode and bitmap mode; and each policy for errors, of the source and of the target.
 */
#include <fcntl.h>

#include "job/backup.h"
#include "session_sample.h"
#include "store/store.h"

#define DIRTY "x..x...x" /* the bitmap before the job: D in backup.h */
#define SPEED (UINT64_C(1) << 50)

enum { EVENT_AT = 3 }; /* the granule where something happens to the job */

enum outcome { SUCCEEDS, FAILS, IS_CANCELLED, SOURCE_CHANGES };

/* ---- during the job ---- */

struct run {
	struct sample s;
	enum outcome outcome;
	const char *recorded; /* S in backup.h; NULL: nothing */
};

/* As another program that records does: sets bits in the successor, on disk. */
static void record(const char *bits)
{
	TIDE_AUTOCLOSE int image = open(unit_path("d"), O_RDONLY | O_CLOEXEC);
	struct tide_store store = TIDE_STORE_INIT;
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_sidecar *sc = NULL;

	CHECK_OK(tide_store_lock(&store, unit_path("d.bitmaps"), false, NULL, &err), &err);
	CHECK_OK(tide_store_load(unit_path("d.bitmaps"), &sc, &err), &err);
	if (CHECK(sc && sc->items[0]->token && sc->items[0]->successor)) {
		sample_set_bits(tide_sidecar_bitmap_load(sc, sc->items[0]->successor, NULL), bits);
		sc->generation++;
		CHECK_OK(tide_store_stage(&store, sc, image, &err), &err);
		CHECK_OK(tide_store_commit(&store, &err), &err);
	}
	tide_sidecar_free(sc);
	tide_store_release(&store);
}

static void while_it_copies(void *data, enum memory_op op, uint64_t off, uint64_t len)
{
	struct run *r = data;

	if (op != MEMORY_READ)
		return;
	if (r->recorded)
		record(r->recorded);
	r->recorded = NULL;
	if (r->outcome == IS_CANCELLED && off == EVENT_AT * GRANULE)
		tide_session_cancel(r->s.session);
	if (r->outcome == SOURCE_CHANGES)
		sample_set_time("d", 77);
}

/* ---- a job ---- */

/* One piece after the other, a granule each. */
static const struct tide_backup plain = {
	.device = "d",
	.format = "raw",
	.speed = SPEED,
	.has_max_workers = true,
	.max_workers = 1,
	.has_max_chunk = true,
	.max_chunk = GRANULE,
};

static int run_backup(struct sample *s, const struct tide_backup *args, struct tide_error *err)
{
	struct tide_txn *txn = tide_txn_new(s->session, err);
	int rc = txn && tide_txn_backup(txn, args, err) == 0 ? tide_txn_run(txn, err) : -1;

	tide_txn_free(txn);
	return rc;
}

/* A source whose data is in the granules of DIRTY, over another image that has the rest. */
static void begin(struct run *r, enum outcome outcome, const char *recorded)
{
	struct memory_script script = {
		.size = DISK_SIZE,
		.cluster_size = GRANULE,
		.unmapped = true,
		.backing = "below",
		.backing_format = "memory",
		.hook = while_it_copies,
		.hook_data = r,
	};
	struct memory_disk *disk;

	sample_begin(&r->s);
	r->outcome = SUCCEEDS;
	r->recorded = NULL;
	sample_disk(&r->s, "below", NULL);
	disk = sample_disk(&r->s, "d", &script);
	for (unsigned i = 0; i < GRANULES; i++) {
		if (DIRTY[i] == '.')
			memory_disk_set_kind(disk, i * GRANULE, GRANULE, TIDE_EXTENT_HOLE);
	}
	sample_put(&r->s, "d", "b", DIRTY);
	r->outcome = outcome;
	r->recorded = recorded;
	if (outcome == FAILS)
		memory_disk_fail(disk, &(struct memory_fault){ MEMORY_READ, EVENT_AT * GRANULE, EIO, 0 });
}

static const char *events(enum outcome outcome, unsigned len, unsigned done)
{
	static char text[512];
	char counts[128];

	snprintf(counts, sizeof(counts), "\"len\": %u, \"offset\": %u, \"speed\": %" PRIu64 ", \"type\": \"backup\"",
	         len * GRANULE, done * GRANULE, SPEED);
	snprintf(text, sizeof(text),
	         "{\"return\": {}}\n%s{\"event\": \"BLOCK_JOB_%s\", \"data\": {\"device\": \"d\", %s%s}}\n",
	         outcome == FAILS ? "{\"event\": \"BLOCK_JOB_ERROR\", \"data\": {\"device\": \"d\", \"operation\": "
	                            "\"read\", \"action\": \"report\"}}\n"
	                          : "",
	         outcome == IS_CANCELLED ? "CANCELLED" : "COMPLETED", counts,
	         outcome == FAILS ? ", \"error\": \"Input/output error\"" : "");
	return text;
}

/* Each granule that was copied is the source's. */
static void check_target(struct run *r, const char *copied)
{
	TIDE_AUTOCLOSE int fd = open(unit_path("new"), O_RDONLY | O_CLOEXEC);
	static uint8_t buf[DISK_SIZE];

	if (!CHECK(fd >= 0 && pread(fd, buf, DISK_SIZE, 0) == DISK_SIZE))
		return;
	for (unsigned i = 0; i < GRANULES; i++) {
		struct memory_disk *from = r->s.disk[DIRTY[i] == 'x' ? 1 : 0];

		if (copied[i] == 'x')
			CHECK_MEM(buf + i * GRANULE, memory_disk_bytes(from) + i * GRANULE, GRANULE);
	}
}

/*
 * The table in backup.h.  `copied` is what is in the target at the end of a success, of a failure and of a cancel; the
 * granule of the event is copied before a cancel.
 */
static const struct {
	enum tide_sync_mode sync;
	enum tide_bitmap_mode mode;
	const char *copied[3], *after[3];
	bool keeps; /* a partial target */
} modes[] = {
	{ TIDE_SYNC_INCREMENTAL,
	  TIDE_BITMAP_MODE_ON_SUCCESS,
	  { "x..x...x", "x.......", "x..x...." },
	  { ".x......", "xx.x...x", "xx.x...x" },
	  false },
	{ TIDE_SYNC_BITMAP,
	  TIDE_BITMAP_MODE_ON_SUCCESS,
	  { "x..x...x", "x.......", "x..x...." },
	  { ".x......", "xx.x...x", "xx.x...x" },
	  false },
	{ TIDE_SYNC_BITMAP,
	  TIDE_BITMAP_MODE_NEVER,
	  { "x..x...x", "x.......", "x..x...." },
	  { "xx.x...x", "xx.x...x", "xx.x...x" },
	  false },
	{ TIDE_SYNC_BITMAP,
	  TIDE_BITMAP_MODE_ALWAYS,
	  { "x..x...x", "x.......", "x..x...." },
	  { ".x......", ".x.x...x", ".x.....x" },
	  true },
	{ TIDE_SYNC_FULL,
	  TIDE_BITMAP_MODE_ON_SUCCESS,
	  { "xxxxxxxx", "xxx.....", "xxxx...." },
	  { ".x......", "xx.x...x", "xx.x...x" },
	  false },
	{ TIDE_SYNC_FULL,
	  TIDE_BITMAP_MODE_ALWAYS,
	  { "xxxxxxxx", "xxx.....", "xxxx...." },
	  { ".x......", ".x.xxxxx", ".x..xxxx" },
	  true },
	{ TIDE_SYNC_TOP,
	  TIDE_BITMAP_MODE_ON_SUCCESS,
	  { "x..x...x", "x.......", "x..x...." },
	  { ".x......", "xx.x...x", "xx.x...x" },
	  false },
	{ TIDE_SYNC_TOP,
	  TIDE_BITMAP_MODE_ALWAYS,
	  { "x..x...x", "x.......", "x..x...." },
	  { ".x......", ".x.x...x", ".x.....x" },
	  true },
};

static unsigned count_granules(const char *bits)
{
	unsigned n = 0;

	for (; *bits; bits++)
		n += *bits == 'x';
	return n;
}

static void check_mode(size_t i, enum outcome outcome)
{
	struct tide_backup args = plain;
	struct tide_error err = TIDE_ERROR_INIT;
	bool stays = outcome == SUCCEEDS || modes[i].keeps;
	struct run r;

	begin(&r, outcome, ".x......");
	args.target = unit_path("new");
	args.bitmap = "b";
	args.sync = modes[i].sync;
	args.bitmap_mode = modes[i].mode;
	if (args.sync == TIDE_SYNC_TOP)
		args.format = "memory"; /* has a backing image, as raw has not */
	CHECK_EQ_I64(run_backup(&r.s, &args, &err), outcome == SUCCEEDS ? 0 : -1);
	CHECK_EQ_I64(err.code, outcome == SUCCEEDS ? TIDE_E_NONE : outcome == FAILS ? TIDE_E_IO : TIDE_E_CANCELLED);
	CHECK_STR(sample_text(&r.s.lines),
	          events(outcome, count_granules(modes[i].copied[0]), count_granules(modes[i].copied[outcome])));
	CHECK_STR(sample_show("d", "b"), modes[i].after[outcome]);
	CHECK_EQ_I64(access(unit_path("new"), F_OK), stays ? 0 : -1);
	if (stays && args.sync != TIDE_SYNC_TOP)
		check_target(&r, modes[i].copied[outcome]);
	if (args.sync == TIDE_SYNC_TOP && stays)
		memory_disk_free(memory_disk_find(unit_path("new")));
	tide_error_release(&err);
	sample_check_settled(&r.s, "d");
	sample_end(&r.s);
}

static void test_modes(void)
{
	for (size_t i = 0; i < TIDE_ARRAY_SIZE(modes); i++) {
		for (enum outcome outcome = SUCCEEDS; outcome <= IS_CANCELLED; outcome++) {
			UNIT_ROW("row %zu, outcome %d", i, (int)outcome);
			check_mode(i, outcome);
		}
	}
}

/* A job with nothing to copy ends before the reply, and its target holds nothing. */
static void test_nothing_to_copy(void)
{
	struct tide_backup args = plain;
	struct tide_error err = TIDE_ERROR_INIT;
	struct sample s;

	sample_begin(&s);
	sample_disk(&s, "d", NULL);
	sample_put(&s, "d", "b", "........");
	args.target = unit_path("new");
	args.bitmap = "b";
	args.sync = TIDE_SYNC_INCREMENTAL;
	CHECK_OK(run_backup(&s, &args, &err), &err);
	CHECK_STR(sample_text(&s.lines),
	          "{\"event\": \"BLOCK_JOB_COMPLETED\", \"data\": {\"device\": \"d\", \"len\": 0, "
	          "\"offset\": 0, \"speed\": 1125899906842624, \"type\": \"backup\"}}\n"
	          "{\"return\": {}}\n");
	CHECK(access(unit_path("new"), F_OK) == 0);
	sample_end(&s);
}

/* ---- failures at the end ---- */

/* A partial target is kept only if it is known to be what the bitmap says. */
static void test_late_failures(void)
{
	static const struct {
		const char *name;
		enum tide_bitmap_mode mode;
		enum outcome outcome; /* FAILS: the target cannot be flushed */
		const char *after;
	} rows[] = {
		{ "a flush fails", TIDE_BITMAP_MODE_ON_SUCCESS, FAILS, DIRTY },
		{ "a flush fails, always", TIDE_BITMAP_MODE_ALWAYS, FAILS, DIRTY },
		{ "the source changes", TIDE_BITMAP_MODE_ON_SUCCESS, SOURCE_CHANGES, DIRTY " inconsistent" },
		{ "the source changes, always", TIDE_BITMAP_MODE_ALWAYS, SOURCE_CHANGES, DIRTY " inconsistent" },
	};

	for (size_t i = 0; i < TIDE_ARRAY_SIZE(rows); i++) {
		struct memory_script script = { .size = DISK_SIZE, .remote = true };
		struct tide_backup args = plain;
		struct tide_error err = TIDE_ERROR_INIT;
		struct run r;

		UNIT_ROW("%s", rows[i].name);
		begin(&r, rows[i].outcome == SOURCE_CHANGES ? SOURCE_CHANGES : SUCCEEDS, NULL);
		if (rows[i].outcome == FAILS)
			script.fault[0] =
			        (struct memory_fault){ MEMORY_FLUSH, 0, EIO, 1 }; /* a second one says nothing */
		sample_disk(&r.s, "t", &script);
		args.target = unit_path("t");
		args.format = NULL;
		args.mode = TIDE_MODE_EXISTING;
		args.bitmap = "b";
		args.sync = TIDE_SYNC_BITMAP;
		args.bitmap_mode = rows[i].mode;
		CHECK_EQ_I64(run_backup(&r.s, &args, &err), -1);
		tide_error_release(&err);
		CHECK(strstr(sample_text(&r.s.lines), "\"action\": \"report\"") != NULL);
		CHECK_STR(sample_show("d", "b"), rows[i].after);
		sample_check_settled(&r.s, "d");
		sample_end(&r.s);
	}
}

/* ---- policies for errors ---- */

enum then { LIFTED, LASTS, CANCELLED }; /* what happens when the first event says that there is an error */

struct fault_run {
	struct sample s; /* first: on_line gets it */
	struct memory_disk *disk;
	enum then then;
};

static void on_event(struct sample *s, const char *json)
{
	struct fault_run *r = (struct fault_run *)s;

	if (!strstr(json, "BLOCK_JOB_ERROR"))
		return;
	if (r->then == LIFTED)
		memory_disk_fail(r->disk, &(struct memory_fault){ MEMORY_READ, 0, 0, 0 });
	if (r->then == CANCELLED)
		tide_session_cancel(s->session);
	else if (strstr(json, "\"stop\""))
		tide_session_resume(s->session);
}

static const struct {
	const char *name;
	enum tide_on_error policy;
	int sys;
	enum then then;
	const char *actions; /* of the events: i, s or r, for ignore, stop, report */
	enum tide_code code;
} policies[] = {
	{ "report", TIDE_ON_ERROR_REPORT, EIO, LIFTED, "r", TIDE_E_IO },
	{ "ignore", TIDE_ON_ERROR_IGNORE, EIO, LIFTED, "i", TIDE_E_NONE },
	{ "ignore, but it lasts", TIDE_ON_ERROR_IGNORE, EIO, LASTS, "iiiir", TIDE_E_IO },
	{ "ignore, cancelled", TIDE_ON_ERROR_IGNORE, EIO, CANCELLED, "i", TIDE_E_CANCELLED },
	{ "stop", TIDE_ON_ERROR_STOP, EIO, LIFTED, "s", TIDE_E_NONE },
	{ "stop, cancelled", TIDE_ON_ERROR_STOP, EIO, CANCELLED, "s", TIDE_E_CANCELLED },
	{ "enospc of another error", TIDE_ON_ERROR_ENOSPC, EIO, LIFTED, "r", TIDE_E_IO },
	{ "enospc", TIDE_ON_ERROR_ENOSPC, ENOSPC, LIFTED, "s", TIDE_E_NONE },
	{ "auto of another error", TIDE_ON_ERROR_AUTO, EIO, LIFTED, "r", TIDE_E_IO },
	{ "auto", TIDE_ON_ERROR_AUTO, ENOSPC, LIFTED, "s", TIDE_E_NONE },
};

/* The letters of the actions in the events, each of which must be of this operation. */
static const char *actions_of(const struct sample *s, const char *operation)
{
	static char text[16];
	char wanted[64];
	size_t n = 0;

	snprintf(wanted, sizeof(wanted), "\"operation\": \"%s\", \"action\": \"", operation);
	for (const char *p = sample_text(&s->lines); (p = strstr(p, "\"operation\"")) && n < sizeof(text) - 1; p++)
		text[n++] = strncmp(p, wanted, strlen(wanted)) == 0 ? p[strlen(wanted)] : '?';
	text[n] = '\0';
	return text;
}

static void check_policy(size_t i, bool reading)
{
	struct memory_script script = { .size = DISK_SIZE, .remote = true };
	struct memory_fault fault = { reading ? MEMORY_READ : MEMORY_WRITE, EVENT_AT * GRANULE, policies[i].sys, 0 };
	struct tide_backup args = plain;
	struct tide_error err = TIDE_ERROR_INIT;
	struct fault_run r = { .then = policies[i].then };

	sample_begin(&r.s);
	r.s.on_line = on_event;
	r.disk = sample_disk(&r.s, "d", NULL);
	sample_disk(&r.s, "t", &script);
	if (!reading)
		r.disk = r.s.disk[1];
	memory_disk_fail(r.disk, &fault);
	args.target = unit_path("t");
	args.format = NULL;
	args.mode = TIDE_MODE_EXISTING;
	*(reading ? &args.on_source_error : &args.on_target_error) = policies[i].policy;
	CHECK_EQ_I64(run_backup(&r.s, &args, &err), policies[i].code ? -1 : 0);
	CHECK_EQ_I64(err.code, policies[i].code);
	CHECK_STR(actions_of(&r.s, reading ? "read" : "write"), policies[i].actions);
	CHECK(strstr(sample_text(&r.s.lines),
	             policies[i].then == CANCELLED ? "BLOCK_JOB_CANCELLED" : "BLOCK_JOB_COMPLETED"));
	if (!policies[i].code)
		CHECK_MEM(memory_disk_bytes(r.s.disk[1]), memory_disk_bytes(r.s.disk[0]), DISK_SIZE);
	tide_error_release(&err);
	sample_end(&r.s);
}

/* A program may resume the job in the callback of the very event that says that it is stopped. */
static void test_policies(void)
{
	for (size_t i = 0; i < TIDE_ARRAY_SIZE(policies); i++) {
		for (int reading = 0; reading < 2; reading++) {
			UNIT_ROW("%s, %s", policies[i].name, reading ? "source" : "target");
			check_policy(i, reading);
		}
	}
}

int main(void)
{
	UNIT_RUN(test_modes);
	UNIT_RUN(test_nothing_to_copy);
	UNIT_RUN(test_late_failures);
	UNIT_RUN(test_policies);
	return unit_done();
}
