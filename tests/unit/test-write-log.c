/* The write log: its codec against damage at every byte, bits set by many threads, against a plain array. */
#include <fcntl.h>
#include <pthread.h>
#include <sys/stat.h>

#include "base/lock.h"
#include "store/write_log.h"
#include "unit.h"

#define K UINT64_C(1024)
#define M (K * K)
#define G (K * M)
#define T (K * G)

static const char *log_path(void)
{
	static char path[4200];

	snprintf(path, sizeof(path), "%s/log", unit_dir());
	return path;
}

static struct tide_write_log *make(uint64_t disk, unsigned shift, bool durable, size_t n_in_image)
{
	struct tide_write_log_header h = {
		.generation = 7,
		.sidecar_crc = 0x12345678,
		.shift = shift,
		.disk_size = disk,
		.n_in_image = n_in_image,
		.in_image = calloc(n_in_image + 1, sizeof(uint64_t)),
		.state = { .token = 99, .durable = durable },
	};
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_write_log *log = NULL;
	int fd = open(unit_dir(), O_RDONLY);

	for (size_t i = 0; i < n_in_image; i++)
		h.in_image[i] = 1000 + i;
	unlink(log_path());
	CHECK_OK(tide_write_log_create(log_path(), &h, fd, &log, &err), &err);
	tide_write_log_header_release(&h);
	close(fd);
	return log;
}

static struct tide_write_log *reopen(struct tide_write_log *log)
{
	struct tide_error err = TIDE_ERROR_INIT;

	tide_write_log_close(log);
	log = NULL;
	CHECK(tide_write_log_open(log_path(), &log, &err) == 1 || !CHECK_STR(err.msg, ""));
	tide_error_release(&err);
	return log;
}

static struct tide_bitmap *contents(struct tide_write_log *log, uint64_t disk)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_bitmap *bm = tide_bitmap_new(disk, UINT64_C(1) << tide_write_log_header(log)->shift, &err);

	CHECK_OK(tide_write_log_read(log, bm, &err), &err);
	return bm;
}

static void test_states(void)
{
	struct tide_stamp stamp = { .valid = true, .size = 5, .mtime_sec = -3, .mtime_nsec = 999999999 };
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_write_log *log = make(10 * M, 16, true, 3);
	const struct tide_write_log_header *h = tide_write_log_header(log);
	uint64_t id = h->id;

	CHECK(!tide_write_log_why_lost(log)); /* its bits are durable */
	for (int i = 0; i < 5; i++) {
		log = reopen(log);
		h = tide_write_log_header(log);
		CHECK_EQ_U64(h->state.token, 99 + (uint64_t)i);
		CHECK_EQ_U64(h->id, id);
		CHECK_EQ_U64(h->generation, 7);
		CHECK_EQ_U64(h->sidecar_crc, 0x12345678);
		CHECK_EQ_U64(h->n_in_image, 3);
		CHECK_EQ_U64(h->in_image[2], 1002);
		CHECK(h->state.durable && !h->state.stamp.valid);
		stamp.size = 100 + (uint64_t)i;
		CHECK_OK(tide_write_log_clean(log, &stamp, &err), &err);
		log = reopen(log);
		h = tide_write_log_header(log);
		CHECK_EQ_U64(h->state.token, 0);
		CHECK(h->state.stamp.valid && tide_stamp_is_equal(&h->state.stamp, &stamp));
		CHECK_OK(tide_write_log_activate(log, 100 + (uint64_t)i, true, &err), &err);
	}
	tide_write_log_close(log);
}

static void test_bits(void)
{
	static const struct {
		uint64_t disk;
		unsigned shift;
		uint64_t off, len, granules;
	} rows[] = {
		{ 10 * M, 16, 0, 1, 1 },          { 10 * M, 16, 65535, 2, 2 },      { 10 * M, 16, 0, 10 * M, 160 },
		{ 10 * M + 1, 16, 10 * M, 1, 1 }, { 1 * M, 9, 511, 1025, 3 },       { 64 * T, 16, 64 * T - 1, 1, 1 },
		{ 64 * T, 16, 33 * T, G, 16384 }, { 512 * G, 9, 300 * G, M, 2048 }, { 0, 16, 0, 0, 0 },
	};
	struct tide_error err = TIDE_ERROR_INIT;

	for (size_t i = 0; i < TIDE_ARRAY_SIZE(rows); i++) {
		UNIT_ROW("%" PRIu64 " + %" PRIu64, rows[i].off, rows[i].len);
		struct tide_write_log *log = make(rows[i].disk, rows[i].shift, i % 2, i);
		struct stat st;

		CHECK_OK(tide_write_log_set(log, rows[i].off, rows[i].len, NULL, &err), &err);
		log = reopen(log);
		TIDE_AUTOBITMAP struct tide_bitmap *bm = contents(log, rows[i].disk);
		CHECK_EQ_U64(tide_bitmap_count(bm), rows[i].granules);
		if (rows[i].len)
			CHECK(tide_bitmap_test(bm, rows[i].off) && tide_bitmap_test(bm, rows[i].off + rows[i].len - 1));
		/* What is not touched takes no space. */
		CHECK(stat(log_path(), &st) == 0 && st.st_blocks * 512 < (off_t)(4 * M));
		/* A disk of another size: what it has. */
		TIDE_AUTOBITMAP struct tide_bitmap *half = contents(log, rows[i].disk / 2);
		CHECK(tide_bitmap_count(half) <= rows[i].granules);
		tide_write_log_close(log);
	}
	struct tide_write_log *log = make(M, 16, false, 0);
	CHECK_EQ_I64(tide_write_log_set(log, M, 1, NULL, &err), -1);
	tide_error_release(&err);
	tide_write_log_close(log);
	CHECK_EQ_U64(tide_write_log_shift(64 * T, 9), 9);
	CHECK(tide_write_log_shift(INT64_MAX, 9) > 9);
}

static void test_fresh(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_write_log *log = make(M, 12, true, 0);
	TIDE_AUTOBITMAP struct tide_bitmap *fresh = tide_bitmap_new(M, 4096, &err);

	CHECK_OK(tide_write_log_set(log, 8192, 8192, NULL, &err), &err);
	CHECK_OK(tide_write_log_set(log, 0, 5 * 4096, fresh, &err), &err);
	CHECK_EQ_U64(tide_bitmap_count(fresh), 3);
	CHECK(!tide_bitmap_test(fresh, 8192) && tide_bitmap_test(fresh, 4096) && tide_bitmap_test(fresh, 16384));
	tide_write_log_unset(log, 4096, 4096);
	TIDE_AUTOBITMAP struct tide_bitmap *bm = contents(log, M);
	CHECK_EQ_U64(tide_bitmap_count(bm), 4);
	CHECK(!tide_bitmap_test(bm, 4096) && tide_bitmap_test(bm, 0) && tide_bitmap_test(bm, 8192));
	tide_write_log_close(log);
}

/* ---- damage ---- */

static void test_every_byte_of_the_header(void)
{
	struct tide_stamp stamp = { .valid = true, .size = 1, .mtime_sec = 2, .mtime_nsec = 3 };
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_write_log *log = make(M, 16, true, 5);
	uint8_t head[8192];
	struct tide_write_log_header h;
	int fd = open(log_path(), O_RDONLY);

	CHECK_OK(tide_write_log_clean(log, &stamp, &err), &err);
	tide_write_log_close(log);
	CHECK_EQ_I64(pread(fd, head, sizeof(head), 0), sizeof(head));
	close(fd);
	for (size_t i = 0; i < 4096; i++) {
		for (unsigned bit = 0; bit < 8; bit += 7) {
			UNIT_ROW("byte %zu, bit %u", i, bit);
			head[i] ^= (uint8_t)(1u << bit);
			CHECK_EQ_I64(tide_write_log_decode(head, sizeof(head), sizeof(head), &h, &err), -1);
			CHECK(err.code == TIDE_E_CORRUPT || err.code == TIDE_E_UNSUPPORTED);
			CHECK(strstr(err.msg, "byte") != NULL);
			tide_error_release(&err);
			head[i] ^= (uint8_t)(1u << bit);
		}
	}
	for (size_t len = 0; len < sizeof(head); len += 13) {
		UNIT_ROW("cut off at %zu", len);
		CHECK_EQ_I64(tide_write_log_decode(head, TIDE_MIN(len, sizeof(head)), len, &h, &err), -1);
		CHECK_EQ_I64(err.code, TIDE_E_CORRUPT);
		tide_error_release(&err);
	}
	CHECK_OK(tide_write_log_decode(head, sizeof(head), sizeof(head), &h, &err), &err);
	tide_write_log_header_release(&h);
}

/* Another program cuts the file: new bits are an error, and those that were set are in memory. */
static void test_cut_file(void)
{
	static const off_t lens[] = { 0, 100, 4096, 5000, 1 << 20 };

	for (size_t i = 0; i < TIDE_ARRAY_SIZE(lens); i++) {
		UNIT_ROW("%d bytes", (int)lens[i]);
		struct tide_write_log *log = make(G, 12, i % 2, 0);
		struct tide_error err = TIDE_ERROR_INIT;

		CHECK_OK(tide_write_log_set(log, M, 8192, NULL, &err), &err);
		CHECK(truncate(log_path(), lens[i]) == 0);
		CHECK_EQ_I64(tide_write_log_set(log, 600 * M, 1, NULL, &err), -1);
		CHECK(err.sys == EIO && strstr(err.msg, "changed its size"));
		tide_error_release(&err);
		CHECK_OK(tide_write_log_set(log, M + 4096, 1, NULL, &err), &err);
		tide_write_log_unset(log, M, 4096);
		TIDE_AUTOBITMAP struct tide_bitmap *bm = contents(log, G);
		CHECK_EQ_U64(tide_bitmap_count(bm), 2);
		tide_write_log_close(log);
	}
}

/* A writer that continues a log reads the bits it needs, and has all at the end. */
static void test_continued(void)
{
	struct tide_stamp stamp = { .valid = true };
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_write_log *log = make(G, 12, true, 0);
	TIDE_AUTOBITMAP struct tide_bitmap *fresh = tide_bitmap_new(G, 4096, &err);

	CHECK_OK(tide_write_log_set(log, 0, 4096, NULL, &err), &err);
	CHECK_OK(tide_write_log_set(log, 600 * M, 4096, NULL, &err), &err);
	CHECK_OK(tide_write_log_clean(log, &stamp, &err), &err);
	log = reopen(log);
	CHECK_OK(tide_write_log_activate(log, 5, true, &err), &err);
	CHECK_OK(tide_write_log_set(log, 0, 8192, fresh, &err), &err);
	CHECK_EQ_U64(tide_bitmap_count(fresh), 1);
	for (int i = 0; i < 2; i++) {
		TIDE_AUTOBITMAP struct tide_bitmap *bm = contents(log, G);

		CHECK_EQ_U64(tide_bitmap_count(bm), 3);
		CHECK(tide_bitmap_test(bm, 4096) && tide_bitmap_test(bm, 600 * M));
		log = reopen(log);
	}
	tide_write_log_close(log);
}

/* ---- whose, and where ---- */

static void put_file(const char *path, const char *text, size_t len)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);

	CHECK(fd >= 0 && write(fd, text, len) == (ssize_t)len);
	close(fd);
}

static void test_foreign(void)
{
	static const struct {
		const char *text;
		size_t len;
		int rc;
	} rows[] = {
		{ "", 0, -1 },
		{ "\x89TL", 3, -1 },
		{ TIDE_WRITE_LOG_MAGIC, 8, -1 },
		{ "?TLOG\r\n\x1a\1\0\0\0\0\2\0\0", 16, -1 },
		{ "?TLOG\r\n\x1a\2\0\0\0\0\2\0\0", 16, 2 },
		{ "x", 1, 2 },
		{ "2026-11-28 10:00:00 started\n", 28, 2 },
	};

	for (size_t i = 0; i < TIDE_ARRAY_SIZE(rows); i++) {
		struct tide_error err = TIDE_ERROR_INIT;
		struct tide_write_log *log;

		UNIT_ROW("row %zu", i);
		put_file(log_path(), rows[i].text, rows[i].len);
		CHECK_EQ_I64(tide_write_log_open(log_path(), &log, &err), rows[i].rc);
		CHECK(!log && (rows[i].rc == 2 || err.code == TIDE_E_CORRUPT));
		tide_error_release(&err);
	}
}

/* A log removes and replaces nothing but itself. */
static void test_name(void)
{
	struct tide_write_log *log = make(M, 16, false, 0), *second = NULL;
	struct tide_write_log_header h = { .shift = 16, .disk_size = M, .state = { .token = 1 } };
	struct tide_error err = TIDE_ERROR_INIT;

	CHECK_EQ_I64(tide_write_log_create(log_path(), &h, STDIN_FILENO, &second, &err), -1);
	CHECK(err.sys == EEXIST && strstr(err.hint, "move it away"));
	tide_error_release(&err);
	unlink(log_path());
	put_file(log_path(), "other", 5);
	tide_write_log_unlink(log);
	CHECK(access(log_path(), F_OK) == 0);
	tide_write_log_close(log);
	log = make(M, 16, false, 0);
	tide_write_log_unlink(log);
	CHECK(access(log_path(), F_OK) < 0);
	tide_write_log_close(log);
}

/* Bits that are not durable count only in the file into which they were written. */
static void test_copy(void)
{
	for (int durable = 0; durable < 2; durable++) {
		struct tide_write_log *log = make(M, 16, durable, 0);
		char bytes[8192];
		int fd = open(log_path(), O_RDONLY);

		UNIT_ROW("durable %d", durable);
		log = reopen(log);
		CHECK(!tide_write_log_why_lost(log) || strstr(tide_write_log_why_lost(log), "kernel"));
		CHECK_EQ_I64(pread(fd, bytes, sizeof(bytes), 0), sizeof(bytes));
		unlink(log_path());
		put_file(log_path(), bytes, sizeof(bytes));
		log = reopen(log);
		CHECK_EQ_I64(tide_write_log_why_lost(log) != NULL, !durable);
		tide_write_log_close(log);
		close(fd);
	}
}

/* ---- threads ---- */

enum { THREADS = 8, ROUNDS = 400 };
#define DISK (G + 123)

struct worker {
	struct tide_write_log *log;
	unsigned seed;
	uint8_t model[DISK / 4096 + 1]; /* of this thread alone */
	bool failed;
	pthread_t thread;
};

static void *work(void *arg)
{
	struct worker *w = arg;

	for (int i = 0; i < ROUNDS; i++) {
		uint64_t off = (uint64_t)rand_r(&w->seed) * 4099 % DISK;
		uint64_t len = TIDE_MIN(DISK - off, (uint64_t)rand_r(&w->seed) % (i % 7 ? 20000 : 3000000) + 1);

		w->failed |= tide_write_log_set(w->log, off, len, NULL, NULL) < 0;
		for (uint64_t g = off / 4096; g <= (off + len - 1) / 4096; g++)
			w->model[g] = 1;
	}
	return NULL;
}

static void test_threads(void)
{
	for (int durable = 0; durable < 2; durable++) {
		UNIT_ROW("durable %d", durable);
		struct tide_write_log *log = make(DISK, 12, durable, 0);
		struct worker *w = calloc(THREADS, sizeof(*w));
		uint64_t wrong = 0;

		for (unsigned i = 0; i < THREADS; i++) {
			w[i].log = log;
			w[i].seed = i + 1;
			pthread_create(&w[i].thread, NULL, work, &w[i]);
		}
		for (unsigned i = 0; i < THREADS; i++) {
			pthread_join(w[i].thread, NULL);
			CHECK(!w[i].failed);
		}
		TIDE_AUTOBITMAP struct tide_bitmap *bm = contents(log, DISK);
		for (uint64_t g = 0; g <= DISK / 4096; g++) {
			bool want = false;

			for (unsigned i = 0; i < THREADS; i++)
				want |= w[i].model[g];
			wrong += tide_bitmap_test(bm, TIDE_MIN(g * 4096, DISK - 1)) != want;
		}
		CHECK_EQ_U64(wrong, 0);
		tide_write_log_close(log);
		free(w);
	}
}

int main(void)
{
	UNIT_RUN(test_states);
	UNIT_RUN(test_bits);
	UNIT_RUN(test_fresh);
	UNIT_RUN(test_every_byte_of_the_header);
	UNIT_RUN(test_cut_file);
	UNIT_RUN(test_continued);
	UNIT_RUN(test_foreign);
	UNIT_RUN(test_name);
	UNIT_RUN(test_copy);
	UNIT_RUN(test_threads);
	return unit_done();
}
