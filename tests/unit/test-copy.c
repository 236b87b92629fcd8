/*
 * The copy engine between scripted disks: what it plans, reads and writes, and how it ends.  Ways of copying and
 * compression are in test-copy-ways.c.
 */
#include <pthread.h>
#include <time.h>

#include "copy/copy_impl.h"
#include "copy_sample.h"

#define SIZE (3u * 1024u * K + 700u)

/* ---- Plans ---- */

static const struct {
	const char *name;
	uint64_t size, unit, granularity, dirty_size; /* dirty_size 0: no bitmap */
	uint64_t off[2], len[2];                      /* dirty */
	uint64_t first, end, count;                   /* of the plan; its runs are one unless count says else */
} plans[] = {
	{ "no bitmap: all", 10 * 64 * K, 64 * K, 0, 0, { 0 }, { 0 }, 0, 10 * 64 * K, 10 * 64 * K },
	{ "no bitmap, a tail", 9 * 64 * K + 1, 64 * K, 0, 0, { 0 }, { 0 }, 0, 9 * 64 * K + 1, 10 * 64 * K },
	{ "an empty disk", 0, 64 * K, 0, 0, { 0 }, { 0 }, 0, 0, 0 },
	{ "a clean bitmap", 10 * 64 * K, 64 * K, 512, 10 * 64 * K, { 0 }, { 0 }, 0, 0, 0 },
	{ "one granule in a unit", 10 * 64 * K, 64 * K, 512, 10 * 64 * K, { 70000 }, { 1 }, 64 * K, 128 * K, 64 * K },
	{ "a run over a border", 10 * 64 * K, 64 * K, 512, 10 * 64 * K, { 65024 }, { 1024 }, 0, 128 * K, 128 * K },
	{ "coarser than a unit", 10 * 64 * K, 64 * K, 256 * K, 10 * 64 * K, { 1 }, { 1 }, 0, 256 * K, 256 * K },
	{ "coarse, clipped at the end",
	  5 * 64 * K,
	  64 * K,
	  256 * K,
	  5 * 64 * K,
	  { 5 * 64 * K - 1 },
	  { 1 },
	  256 * K,
	  320 * K,
	  64 * K },
	{ "a tail shorter than a unit",
	  64 * K + 5,
	  64 * K,
	  512,
	  64 * K + 5,
	  { 64 * K + 4 },
	  { 1 },
	  64 * K,
	  64 * K + 5,
	  64 * K },
	{ "a longer bitmap",
	  128 * K,
	  64 * K,
	  512,
	  512 * K,
	  { 100 * K, 300 * K },
	  { 100 * K, K },
	  64 * K,
	  128 * K,
	  64 * K },
	{ "a shorter bitmap", 512 * K, 64 * K, 512, 128 * K, { 127 * K }, { K }, 64 * K, 128 * K, 64 * K },
	{ "two runs", 512 * K, 64 * K, 512, 512 * K, { 0, 511 * K }, { 1, 1 }, 0, 512 * K, 128 * K },
};

static void check_plan(size_t i)
{
	struct tide_error err = TIDE_ERROR_INIT;
	TIDE_AUTOBITMAP struct tide_bitmap *dirty = NULL, *plan = NULL;
	uint64_t start = 0, len = 0, last = 0;

	if (plans[i].dirty_size) {
		dirty = tide_bitmap_new(plans[i].dirty_size, plans[i].granularity, &err);
		if (!CHECK_PTR(dirty, &err))
			return;
	}
	for (size_t k = 0; k < 2 && plans[i].len[k]; k++)
		CHECK_OK(tide_bitmap_set(dirty, plans[i].off[k], plans[i].len[k], &err), &err);
	plan = tide_copy_plan(plans[i].size, plans[i].unit, dirty, &err);
	if (!CHECK_PTR(plan, &err))
		return;
	CHECK_EQ_U64(tide_bitmap_count(plan) * plans[i].unit, plans[i].count);
	CHECK_EQ_U64(tide_bitmap_granularity(plan), plans[i].unit);
	CHECK_EQ_U64(tide_bitmap_size(plan), plans[i].size);
	if (plans[i].count == 0)
		return;
	CHECK(tide_bitmap_next_dirty(plan, 0, UINT64_MAX, &start, &len));
	CHECK_EQ_U64(start, plans[i].first);
	for (uint64_t off = 0; tide_bitmap_next_dirty(plan, off, UINT64_MAX, &start, &len); off = last)
		last = start + len;
	CHECK_EQ_U64(last, plans[i].end);
}

static void test_plan_is_whole_units(void)
{
	for (size_t i = 0; i < TIDE_ARRAY_SIZE(plans); i++) {
		UNIT_ROW("%s", plans[i].name);
		check_plan(i);
	}
}

static const struct {
	uint64_t unit, most, piece_max, speed, piece;
} pieces[] = {
	{ 64 * K, 1024 * K, 0, 0, 1024 * K },
	{ 64 * K, 1024 * K, 256 * K, 0, 256 * K },
	{ 64 * K, 1024 * K, 300 * K, 0, 256 * K },
	{ 64 * K, 1024 * K, 1, 0, 64 * K },
	{ 2048 * K, 1024 * K, 0, 0, 2048 * K },
	{ 64 * K, 1024 * K, 0, 10240 * K, 1024 * K },
	{ 64 * K, 1024 * K, 0, 10239 * K, 512 * K },
	{ 64 * K, 1024 * K, 0, 1, 64 * K },
	{ 64 * K, 1024 * K, 128 * K, 10240 * K, 128 * K },
};

static void test_size_of_pieces(void)
{
	for (size_t i = 0; i < TIDE_ARRAY_SIZE(pieces); i++) {
		struct tide_copy c = { .unit = pieces[i].unit,
			               .piece_max = pieces[i].piece_max,
			               .speed = pieces[i].speed };

		UNIT_ROW("row %zu", i);
		CHECK_EQ_U64(tide_copy_plan_piece(&c, pieces[i].most), pieces[i].piece);
	}
}

/* ---- The target is the source ---- */

static const struct memory_script sources[] = {
	{ .size = SIZE },
	{ .size = SIZE, .unmapped = true },
	{ .size = SIZE, .extent_max = 1024 }, /* more parts than a stretch can have */
	{ .size = SIZE, .cluster_size = 4 * K, .remote = true },
	{ .size = SIZE - 70 * K, .cluster_size = 64 * K },
};

static const struct memory_script targets[] = {
	{ .size = SIZE },
	{ .size = SIZE, .cluster_size = 64 * K },
	{ .size = SIZE, .cluster_size = 4 * K, .place_max = 12 * K },
	{ .size = SIZE, .cluster_size = 4 * K, .remote = true },
};

static const struct {
	bool all, reads_zero, detect_zeroes;
	unsigned workers;
	uint64_t unit, piece_max, speed;
} runs[] = {
	{ true, true, false, 0, 64 * K, 0, 0 },
	{ true, false, false, 1, 64 * K, 0, 0 },
	{ false, false, true, 4, 128 * K, 0, 0 },
	{ false, false, false, 4, 64 * K, 128 * K, 0 },
	{ false, true, false, 2, 64 * K, 0, UINT64_C(1) << 40 },
};

/* Scattered granules and longer runs. */
static struct tide_bitmap *new_dirty(unsigned seed)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_bitmap *dirty = tide_bitmap_new(SIZE, 16 * K, &err);
	uint64_t state = seed * 31u + 7;

	if (!CHECK_PTR(dirty, &err))
		exit(1);
	for (unsigned i = 0; i < 25; i++) {
		uint64_t off = sample_random(&state, SIZE), len = 1 + sample_random(&state, i % 5 ? 20000 : 400000);

		CHECK_OK(tide_bitmap_set(dirty, off, TIDE_MIN(len, SIZE - off), &err), &err);
	}
	return dirty;
}

static void check_equal(size_t from, size_t to, size_t run)
{
	TIDE_AUTOBITMAP struct tide_bitmap *dirty =
	        runs[run].all ? NULL : new_dirty((unsigned)(from * 20 + to * 5 + run));
	struct memory_script script = sources[from], below = { .size = SIZE - 300 * K };
	struct sample s = { .err = TIDE_ERROR_INIT };

	if (script.cluster_size) {
		script.backing = "below";
		script.backing_format = "memory";
		s.below = memory_disk_new(unit_path("below"), &below, &s.err);
		memory_disk_fill(s.below, 0, below.size, 5);
	}
	s.from = memory_disk_new(unit_path("from"), &script, &s.err);
	s.to = memory_disk_new(unit_path("to"), &targets[to], &s.err);
	sample_fill(s.from, TIDE_MAX(script.cluster_size, 512), (unsigned)run);
	if (!runs[run].reads_zero)
		memory_disk_fill(s.to, 0, SIZE, 9);
	if (sample_open(&s, runs[run].unit, dirty)) {
		s.copy.target_reads_zero = runs[run].reads_zero;
		s.copy.detect_zeroes = runs[run].detect_zeroes;
		s.copy.workers = runs[run].workers;
		s.copy.piece_max = runs[run].piece_max;
		s.copy.speed = runs[run].speed;
		sample_run(&s);
	}
	sample_end(&s);
}

static void test_target_equals_source(void)
{
	for (size_t from = 0; from < TIDE_ARRAY_SIZE(sources); from++) {
		for (size_t to = 0; to < TIDE_ARRAY_SIZE(targets); to++) {
			for (size_t run = 0; run < TIDE_ARRAY_SIZE(runs); run++) {
				UNIT_ROW("source %zu, target %zu, run %zu", from, to, run);
				check_equal(from, to, run);
			}
		}
	}
}

/* ---- What is read, and what is written ---- */

static const struct memory_script remote = { .size = SIZE, .remote = true };
static const struct memory_script local = { .size = SIZE, .cluster_size = 4 * K };

static uint64_t bytes_of(struct memory_disk *disk, bool data)
{
	uint64_t n = 0;

	for (uint64_t off = 0; off < memory_disk_size(disk); off += 512) {
		if ((memory_disk_kind(disk, off) == TIDE_EXTENT_DATA) == data)
			n += TIDE_MIN(512, memory_disk_size(disk) - off);
	}
	return n;
}

/* The driver refuses to read what is no data. */
static void test_only_data_is_read_and_once(void)
{
	for (unsigned workers = 1; workers <= 4; workers += 3) {
		struct sample s;

		UNIT_ROW("%u workers", workers);
		if (sample_begin(&s, &remote, &local, 4 * K, 64 * K)) {
			s.copy.workers = workers;
			sample_run(&s);
			CHECK_EQ_U64(memory_disk_count_bytes(s.from, MEMORY_READ), bytes_of(s.from, true));
			CHECK_EQ_U64(memory_disk_count(s.to, MEMORY_ZERO), 0);
		}
		sample_end(&s);
	}
}

static void test_zeroes_are_written_where_they_must(void)
{
	struct memory_script to = { .size = SIZE, .remote = true };
	struct sample s;

	if (sample_begin(&s, &remote, &to, 64 * K, 64 * K)) {
		s.copy.target_reads_zero = false;
		memory_disk_set_kind(s.from, 0, SIZE, TIDE_EXTENT_HOLE);
		memory_disk_fill(s.from, 64 * K, 64 * K, 3);
		sample_model(s.from, NULL, s.source, SIZE);
		sample_run(&s);
		CHECK_EQ_U64(memory_disk_count_bytes(s.to, MEMORY_WRITE), 64 * K);
		CHECK_EQ_U64(memory_disk_count_bytes(s.to, MEMORY_ZERO), SIZE - 64 * K);
	}
	sample_end(&s);
}

static void test_empty_disk_costs_one_look(void)
{
	struct sample s;

	if (sample_begin(&s, &remote, &local, 4 * K, 64 * K)) {
		memory_disk_set_kind(s.from, 0, SIZE, TIDE_EXTENT_HOLE);
		memset(s.source, 0, SIZE);
		sample_run(&s);
		CHECK_EQ_U64(memory_disk_count(s.from, MEMORY_EXTENT), 1);
		CHECK_EQ_U64(memory_disk_count(s.from, MEMORY_READ), 0);
		for (unsigned op = 0; op < MEMORY_OPS; op++)
			CHECK(op == MEMORY_EXTENT || memory_disk_count(s.to, op) == 0);
	}
	sample_end(&s);
}

static void test_zero_bytes_become_zeroes(void)
{
	struct sample s;

	if (sample_begin(&s, &remote, &local, 64 * K, 64 * K)) {
		memory_disk_set_kind(s.from, 0, SIZE, TIDE_EXTENT_DATA);
		memory_disk_fill(s.from, 256 * K, 128 * K, 3);
		sample_model(s.from, NULL, s.source, SIZE);
		sample_run(&s);
		CHECK_EQ_U64(memory_disk_count_bytes(s.from, MEMORY_READ), SIZE);
		CHECK_EQ_U64(bytes_of(s.to, true), 128 * K);
	}
	sample_end(&s);
}

/* ---- Errors ---- */

static const struct {
	const char *name;
	enum memory_op op;
	bool source, remote_source, remote_target;
	int sys, expected;
} faults[] = {
	{ "extent", MEMORY_EXTENT, true, true, false, EIO, EIO },
	{ "read, remote", MEMORY_READ, true, true, false, EREMOTEIO, EREMOTEIO },
	{ "read, mapped", MEMORY_READ, true, false, false, EIO, EIO },
	{ "begin", MEMORY_BEGIN, false, false, false, EDQUOT, EDQUOT },
	{ "write", MEMORY_WRITE, false, false, false, EIO, ENOSPC },
	{ "write, remote", MEMORY_WRITE, false, true, true, EIO, EIO },
	{ "commit", MEMORY_COMMIT, false, true, false, EIO, EIO },
	{ "zero", MEMORY_ZERO, false, true, false, EIO, EIO },
};

#define FAULT_OFF (1024u * K + 5u * K)

static bool begin_fault(struct sample *s, size_t i, unsigned times)
{
	struct memory_script from = { .size = SIZE, .remote = faults[i].remote_source };
	struct memory_script to = { .size = SIZE, .remote = faults[i].remote_target };
	struct memory_fault fault = { faults[i].op, FAULT_OFF, faults[i].sys, times };

	if (!sample_begin(s, &from, &to, 4 * K, 64 * K))
		return false;
	if (faults[i].op == MEMORY_ZERO)
		memory_disk_set_kind(s->from, FAULT_OFF - 5 * K, 64 * K, TIDE_EXTENT_HOLE);
	else
		memory_disk_fill(s->from, FAULT_OFF - 5 * K, 64 * K, 3);
	memory_disk_set_kind(s->from, FAULT_OFF + 507 * K, 64 * K, TIDE_EXTENT_HOLE); /* no batch takes such a piece */
	sample_model(s->from, NULL, s->source, SIZE);
	memory_disk_fail(faults[i].source ? s->from : s->to, &fault);
	s->copy.target_reads_zero = false;
	s->copy.way = TIDE_COPY_WAY_RW;
	return true;
}

/* An error tells the side and the file; what it left is copied by the next run. */
static void check_fault(struct sample *s, size_t i)
{
	const char *path = tide_image_path(faults[i].source ? s->copy.source : s->copy.target);
	struct memory_fault none = { .sys = 0 };

	CHECK_EQ_I64(tide_copy_run(&s->copy, &s->err), -1);
	CHECK_EQ_I64(s->copy.failed_reading, faults[i].source);
	CHECK_EQ_I64(s->err.sys, faults[i].expected);
	CHECK(s->err.msg && strstr(s->err.msg, path));
	CHECK(!s->copy.cancelled);
	CHECK(tide_bitmap_test(s->copy.todo, FAULT_OFF));
	tide_error_release(&s->err);
	sample_check(s);

	memory_disk_fail(faults[i].source ? s->from : s->to, &none);
	tide_bitmap_free(s->plan);
	s->plan = tide_bitmap_copy(s->copy.todo, &s->err);
	memcpy(s->before, s->source, SIZE); /* what was copied before stays */
	sample_run(s);
}

static void test_errors_tell_the_side(void)
{
	for (size_t i = 0; i < TIDE_ARRAY_SIZE(faults); i++) {
		for (unsigned workers = 1; workers <= 4; workers += 3) {
			struct sample s;

			UNIT_ROW("%s, %u workers", faults[i].name, workers);
			if (begin_fault(&s, i, 0)) {
				s.copy.workers = workers;
				check_fault(&s, i);
			}
			sample_end(&s);
		}
	}
}

/* Several pieces are written at once; where that fails, one by one: an error that passes does no harm. */
static void test_failed_batch_is_done_in_pieces(void)
{
	static const enum memory_op ops[] = { MEMORY_BEGIN, MEMORY_WRITE, MEMORY_COMMIT };

	for (size_t i = 0; i < TIDE_ARRAY_SIZE(ops); i++) {
		struct memory_script from = { .size = DISK_MAX }, to = { .size = DISK_MAX, .cluster_size = 64 * K };
		struct sample s;

		UNIT_ROW("op %d", (int)ops[i]);
		to.fault[0] = (struct memory_fault){ ops[i], 5 * 128 * K, EIO, 1 };
		if (sample_begin(&s, &from, &to, 64 * K, 64 * K)) {
			s.copy.way = TIDE_COPY_WAY_RW;
			memory_disk_fill(s.from, 0, DISK_MAX, 3);
			sample_model(s.from, NULL, s.source, DISK_MAX);
			for (uint64_t off = 64 * K; off < DISK_MAX; off += 128 * K) {
				CHECK_OK(tide_bitmap_reset(s.copy.todo, off, 64 * K, &s.err), &s.err);
				CHECK_OK(tide_bitmap_reset(s.plan, off, 64 * K, &s.err), &s.err);
			}
			sample_run(&s);
			CHECK(memory_disk_count(s.to, MEMORY_ABORT) > 0);
			CHECK_EQ_U64(bytes_of(s.to, true), DISK_MAX / 2);
		}
		sample_end(&s);
	}
}

/* ---- Retry ---- */

static struct {
	unsigned asked, last_tries, yes; /* yes: answers of that kind, the first ones */
	bool reading, stops;
} asked;

static bool retry(struct tide_copy *copy, bool reading, unsigned tries, const struct tide_error *err)
{
	CHECK(err->code == TIDE_E_IO);
	CHECK(!tide_copy_is_stopped(copy));
	asked.asked++;
	asked.last_tries = tries;
	asked.reading = reading;
	if (asked.stops)
		atomic_store(&copy->stop, true);
	return asked.asked <= asked.yes;
}

/* The piece with the fault fails so often. */
static void check_retry(size_t i, unsigned failures, unsigned yes)
{
	struct sample s;

	memset(&asked, 0, sizeof(asked));
	asked.yes = yes;
	if (begin_fault(&s, i, failures)) {
		s.copy.retry = retry;
		s.copy.workers = 1;
		if (yes >= failures) {
			sample_run(&s);
		} else {
			CHECK_EQ_I64(tide_copy_run(&s.copy, &s.err), -1);
			CHECK_EQ_I64(s.err.sys, faults[i].expected);
			CHECK_EQ_I64(s.copy.failed_reading, faults[i].source);
			tide_error_release(&s.err);
			sample_check(&s);
		}
		CHECK_EQ_U64(asked.asked, TIDE_MIN(failures, yes + 1));
		CHECK_EQ_U64(asked.last_tries, asked.asked);
		CHECK_EQ_I64(asked.reading, faults[i].source);
	}
	sample_end(&s);
}

static void test_retry_asks_each_time(void)
{
	/* Without the first one: reading ahead asks for extents, too. */
	for (size_t i = 1; i < TIDE_ARRAY_SIZE(faults); i++) {
		UNIT_ROW("%s", faults[i].name);
		check_retry(i, 1, 1);
		check_retry(i, 3, 3);
		check_retry(i, 3, 1);
		check_retry(i, 1, 0);
	}
}

static void test_retry_with_several_workers(void)
{
	struct sample s;

	memset(&asked, 0, sizeof(asked));
	asked.yes = 100;
	if (begin_fault(&s, 1, 3)) {
		s.copy.retry = retry;
		s.copy.workers = 4;
		sample_run(&s);
		CHECK_EQ_U64(asked.asked, 3);
	}
	sample_end(&s);
}

static void test_no_retry_after_a_stop(void)
{
	struct sample s;

	memset(&asked, 0, sizeof(asked));
	asked.yes = 1;
	asked.stops = true;
	if (begin_fault(&s, 1, 0)) {
		s.copy.retry = retry;
		CHECK_EQ_I64(tide_copy_run(&s.copy, &s.err), -1);
		CHECK_ERR(&s.err, TIDE_E_CANCELLED, "Cancelled");
		CHECK(s.copy.cancelled);
		CHECK_EQ_U64(asked.asked, 1);
		sample_check(&s);
	}
	sample_end(&s);
}

/* ---- Stop and cancel ---- */

struct stopper {
	struct sample *sample;
	enum memory_op op;
	_Atomic int left; /* requests until the copy is to end */
	bool cancel;      /* through the sink */
};

static void stop_soon(void *data, enum memory_op op, uint64_t off, uint64_t len)
{
	struct stopper *stopper = data;

	if (op != stopper->op || atomic_fetch_sub(&stopper->left, 1) != 1)
		return;
	if (stopper->cancel)
		atomic_store(&stopper->sample->sink.cancelled, true);
	else
		atomic_store(&stopper->sample->copy.stop, true);
}

static void check_stop(enum memory_op op, int left, bool cancel, unsigned workers)
{
	struct sample s;
	struct stopper stopper = { &s, op, left, cancel };
	struct memory_script from = remote, to = local;

	from.hook = to.hook = stop_soon;
	from.hook_data = to.hook_data = &stopper;
	if (sample_begin(&s, &from, &to, 4 * K, 64 * K)) {
		s.copy.workers = workers;
		s.copy.piece_max = 64 * K;
		s.copy.speed = UINT64_C(1) << 40; /* a piece at a time */
		CHECK_EQ_I64(tide_copy_run(&s.copy, &s.err), -1);
		CHECK_ERR(&s.err, TIDE_E_CANCELLED, "Cancelled");
		CHECK(s.copy.cancelled);
		CHECK(s.copy.offset < s.copy.len);
		sample_check(&s);
	}
	sample_end(&s);
}

static void test_stop_leaves_the_rest_to_do(void)
{
	for (unsigned workers = 1; workers <= 4; workers += 3) {
		for (int left = 1; left <= 9; left += 4) {
			UNIT_ROW("%u workers, after %d", workers, left);
			check_stop(MEMORY_READ, left, false, workers);
			check_stop(MEMORY_COMMIT, left, true, workers);
		}
	}
}

static void test_stopped_before_it_begins(void)
{
	struct sample s;

	if (sample_begin(&s, &remote, &local, 4 * K, 64 * K)) {
		s.copy.target_reads_zero = false;
		atomic_store(&s.copy.stop, true);
		CHECK_EQ_I64(tide_copy_run(&s.copy, &s.err), -1);
		CHECK_ERR(&s.err, TIDE_E_CANCELLED, "Cancelled");
		CHECK_EQ_U64(s.copy.offset, 0);
		CHECK_EQ_U64(memory_disk_count(s.from, MEMORY_READ), 0);
		CHECK_EQ_U64(memory_disk_count(s.to, MEMORY_BEGIN), 0);
	}
	sample_end(&s);
}

/* A stop that comes when everything has been copied is too late. */
static void test_stopped_after_the_last_piece(void)
{
	struct sample s;
	struct stopper stopper = { &s, MEMORY_COMMIT, 1, false };
	struct memory_script from = { .size = 64 * K }, to = { .size = 64 * K };

	to.hook = stop_soon;
	to.hook_data = &stopper;
	if (sample_begin(&s, &from, &to, 64 * K, 64 * K)) {
		memory_disk_fill(s.from, 0, 64 * K, 3);
		sample_model(s.from, NULL, s.source, 64 * K);
		sample_run(&s);
		CHECK(atomic_load(&s.copy.stop));
	}
	sample_end(&s);
}

/* ---- The speed limit ---- */

static void engine_begin(struct tide_copy_engine *e, struct sample *s)
{
	static const struct tide_session_options none;

	*s = (struct sample){ .copy = { .sink = &s->sink, .speed = 1000 } };
	tide_event_init(&s->sink, &none);
	*e = (struct tide_copy_engine){ .copy = &s->copy, .broken = UINT64_MAX, .start_ns = tide_work_now_ns() };
	tide_work_init(&e->work);
	pthread_cond_init(&e->turned, NULL);
}

static void engine_end(struct tide_copy_engine *e, struct sample *s)
{
	pthread_cond_destroy(&e->turned);
	tide_work_release(&e->work);
	tide_event_release(&s->sink);
}

/* The first bytes may go at once, and so may those whose time has come long ago. */
static void test_speed_counts_what_was_issued(void)
{
	struct tide_copy_engine e;
	struct sample s;

	engine_begin(&e, &s);
	CHECK(tide_copy_throttle(&e, 0, 500));
	CHECK_EQ_U64(e.issued, 500);
	e.start_ns = tide_work_now_ns() - UINT64_C(3600000000000);
	CHECK(tide_copy_throttle(&e, 1, 1000));
	CHECK(tide_copy_throttle(&e, 2, 0));
	CHECK_EQ_U64(e.issued, 1500);
	s.copy.speed = 1; /* a product that does not fit in 64 bits */
	e.issued = UINT64_C(1) << 62;
	atomic_store(&s.copy.stop, true);
	CHECK(!tide_copy_throttle(&e, 3, 1));
	CHECK(e.work.stop);
	CHECK_EQ_U64(e.broken, 3);
	engine_end(&e, &s);
}

static void *stop_the_copy(void *data)
{
	struct timespec nap = { 0, 20000000 };

	nanosleep(&nap, NULL);
	atomic_store((atomic_bool *)data, true);
	return NULL;
}

/* It would wait for years. */
static void test_stop_ends_the_wait_for_speed(void)
{
	struct tide_copy_engine e;
	struct sample s;
	pthread_t thread;

	engine_begin(&e, &s);
	e.issued = UINT64_C(1) << 50;
	if (CHECK(pthread_create(&thread, NULL, stop_the_copy, &s.copy.stop) == 0)) {
		CHECK(!tide_copy_throttle(&e, 7, 1));
		pthread_join(thread, NULL);
	}
	CHECK_EQ_U64(e.broken, 7);
	engine_end(&e, &s);
}

static void note_longest(void *data, enum memory_op op, uint64_t off, uint64_t len)
{
	_Atomic uint64_t *longest = data;
	uint64_t seen = atomic_load(longest);

	while (op == MEMORY_WRITE && len > seen && !atomic_compare_exchange_weak(longest, &seen, len))
		;
}

static void test_pieces_are_as_long_as_they_may_be(void)
{
	for (unsigned limited = 0; limited < 2; limited++) {
		_Atomic uint64_t longest = 0;
		struct memory_script from = { .size = SIZE }, to = { .size = SIZE };
		struct sample s;

		to.hook = note_longest;
		to.hook_data = &longest;
		if (sample_begin(&s, &from, &to, 64 * K, 64 * K)) {
			memory_disk_fill(s.from, 0, SIZE, 3);
			sample_model(s.from, NULL, s.source, SIZE);
			s.copy.way = TIDE_COPY_WAY_RW;
			s.copy.piece_max = limited ? 128 * K : 0;
			s.copy.speed = UINT64_C(1) << 40;
			sample_run(&s);
			CHECK_EQ_U64(atomic_load(&longest), limited ? 128 * K : 1024 * K);
		}
		sample_end(&s);
	}
}

/* ---- Workers ---- */

struct meeting {
	pthread_mutex_t lock;
	pthread_cond_t met;
	unsigned expected, here, most; /* workers within a read: that are waited for; now; at most so far */
};

/* Nobody leaves the first reads before all expected workers are there; a minute means that they will not come. */
static void meet_others(void *data, enum memory_op op, uint64_t off, uint64_t len)
{
	struct meeting *m = data;
	struct timespec end;

	if (op != MEMORY_READ)
		return;
	clock_gettime(CLOCK_REALTIME, &end);
	end.tv_sec += 60;
	pthread_mutex_lock(&m->lock);
	m->here++;
	m->most = TIDE_MAX(m->most, m->here);
	pthread_cond_broadcast(&m->met);
	while (m->most < m->expected && pthread_cond_timedwait(&m->met, &m->lock, &end) == 0)
		;
	m->here--;
	pthread_mutex_unlock(&m->lock);
}

static void test_workers_read_side_by_side(void)
{
	for (unsigned workers = 1; workers <= 4; workers++) {
		struct meeting m = { PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, workers, 0, 0 };
		struct memory_script from = {
			.size = DISK_MAX, .unmapped = true, .hook = meet_others, .hook_data = &m
		};
		struct memory_script to = { .size = DISK_MAX };
		struct sample s;

		UNIT_ROW("%u workers", workers);
		if (sample_begin(&s, &from, &to, 64 * K, 64 * K)) {
			memory_disk_fill(s.from, 0, DISK_MAX, 3);
			sample_model(s.from, NULL, s.source, DISK_MAX);
			s.copy.way = TIDE_COPY_WAY_RW;
			s.copy.workers = workers;
			sample_run(&s);
			CHECK_EQ_U64(m.most, workers);
			CHECK_EQ_U64(memory_disk_count_bytes(s.to, MEMORY_WRITE), DISK_MAX);
		}
		sample_end(&s);
	}
}

int main(void)
{
	UNIT_RUN(test_plan_is_whole_units);
	UNIT_RUN(test_size_of_pieces);
	UNIT_RUN(test_target_equals_source);
	UNIT_RUN(test_only_data_is_read_and_once);
	UNIT_RUN(test_zeroes_are_written_where_they_must);
	UNIT_RUN(test_empty_disk_costs_one_look);
	UNIT_RUN(test_zero_bytes_become_zeroes);
	UNIT_RUN(test_errors_tell_the_side);
	UNIT_RUN(test_failed_batch_is_done_in_pieces);
	UNIT_RUN(test_retry_asks_each_time);
	UNIT_RUN(test_retry_with_several_workers);
	UNIT_RUN(test_no_retry_after_a_stop);
	UNIT_RUN(test_stop_leaves_the_rest_to_do);
	UNIT_RUN(test_stopped_before_it_begins);
	UNIT_RUN(test_stopped_after_the_last_piece);
	UNIT_RUN(test_speed_counts_what_was_issued);
	UNIT_RUN(test_stop_ends_the_wait_for_speed);
	UNIT_RUN(test_pieces_are_as_long_as_they_may_be);
	UNIT_RUN(test_workers_read_side_by_side);
	return unit_done();
}
