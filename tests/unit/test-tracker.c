/*
 * The tracker: many threads on one image, sector by sector within the same clusters; and the state after a power cut at
 * any moment.
 *
 * For the second, this program replaces the system calls of the library.  Stable storage has the contents that the
 * write log had when the last completed sync began.  Any subset of the image's unsynced writes may survive a cut, so no
 * bit is missing only if stable storage has the bits of a write when it is issued; this is checked at each write.  The
 * check itself is checked: without durability it fails.
 */
#include <fcntl.h>
#include <linux/falloc.h>
#include <pthread.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "store/write_log.h"
#include "unit.h"

enum { THREADS = 4, ROUNDS = 60, SECTOR = 512, GRANULE = 4096 };
#define DISK    (UINT64_C(2) << 20)
#define LOG_MAX (1 << 16)

/* ---- the system calls ---- */

static struct {
	pthread_mutex_t lock;
	ino_t image, log;
	uint8_t durable[LOG_MAX]; /* of the log */
	bool watching;
	uint64_t writes, early; /* of the image; before their bits */
} power = { .lock = PTHREAD_MUTEX_INITIALIZER };

static __thread uint64_t now_off, now_len; /* what the thread's request changes */

static ino_t inode(int fd)
{
	struct stat st;

	return fstat(fd, &st) == 0 ? st.st_ino : 0;
}

static void note_write(int fd)
{
	if (!power.watching || !now_len || inode(fd) != power.image)
		return;
	pthread_mutex_lock(&power.lock);
	power.writes++;
	for (uint64_t g = now_off / GRANULE; g <= (now_off + now_len - 1) / GRANULE; g++) {
		if (!(power.durable[4096 + g / 8] >> g % 8 & 1)) {
			power.early++;
			break;
		}
	}
	pthread_mutex_unlock(&power.lock);
}

static int note_sync(int fd, int call)
{
	static __thread uint8_t at_begin[LOG_MAX];
	bool ours = power.watching && inode(fd) == power.log;
	ssize_t n = ours ? pread(fd, at_begin, sizeof(at_begin), 0) : 0;
	int rc = (int)syscall(call, fd);

	pthread_mutex_lock(&power.lock);
	for (ssize_t i = 0; i < n; i++)
		power.durable[i] |= at_begin[i]; /* bits are only ever set */
	pthread_mutex_unlock(&power.lock);
	return rc;
}

ssize_t pwrite64(int fd, const void *buf, size_t len, off_t off);
int fallocate64(int fd, int mode, off_t off, off_t len);

ssize_t pwrite64(int fd, const void *buf, size_t len, off_t off)
{
	note_write(fd);
	return syscall(SYS_pwrite64, fd, buf, len, off);
}

int fallocate64(int fd, int mode, off_t off, off_t len)
{
	if (mode & FALLOC_FL_PUNCH_HOLE)
		note_write(fd);
	return (int)syscall(SYS_fallocate, fd, mode, off, len);
}

int fdatasync(int fd)
{
	return note_sync(fd, SYS_fdatasync);
}

int fsync(int fd)
{
	return note_sync(fd, SYS_fsync);
}

/* ---- a node ---- */

static char *image_path(void)
{
	static char path[4200];

	snprintf(path, sizeof(path), "%s/disk", unit_dir());
	return path;
}

static bool act(struct tide_session *session, const char *node, bool add)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_txn *txn = tide_txn_new(session, &err);
	struct tide_bitmap_add a = { .node = node, .name = "b", .has_granularity = true, .granularity = GRANULE };
	struct tide_bitmap_edit ref = { .node = node, .name = "b" };
	int rc = add ? tide_txn_bitmap_add(txn, &a, &err) : tide_txn_bitmap_clear(txn, &ref, &err);
	bool good = CHECK_OK(rc, &err) && CHECK_OK(tide_txn_run(txn, &err), &err);

	tide_txn_free(txn);
	return good;
}

static bool make(const char *format)
{
	struct tide_session_options options = { 0 };
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_session *session = tide_session_new(&options, &err);
	struct tide_drive drive = { .path = image_path(), .id = "d" };
	struct tide_image_create create = {
		.path = image_path(),
		.format = format,
		.has_size = true,
		.size = DISK,
	};
	struct tide_txn *txn = tide_txn_new(session, &err);
	char file[4300];
	bool good;

	unlink(image_path());
	snprintf(file, sizeof(file), "%s.bitmaps", image_path());
	unlink(file);
	good = CHECK_OK(tide_txn_image_create(txn, &create, &err), &err) && CHECK_OK(tide_txn_run(txn, &err), &err) &&
	       CHECK_OK(tide_session_add_drive(session, &drive, NULL, &err), &err) && act(session, "d", true);
	tide_txn_free(txn);
	tide_session_free(session);
	return good;
}

static struct tide_tracker *track(enum tide_durability durability)
{
	struct tide_drive drive = { .path = image_path() };
	struct tide_tracker_options options = { .durability = durability };
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_tracker *t = NULL;

	CHECK_OK(tide_tracker_open(&drive, &options, &t, &err), &err);
	return t;
}

/* The dirty bytes that another reader sees. */
static uint64_t count(void)
{
	struct tide_session_options options = { 0 };
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_session *session = tide_session_new(&options, &err);
	struct tide_drive drive = { .path = image_path(), .id = "d" };
	struct tide_bitmap_list *list = NULL;
	uint64_t n = UINT64_MAX;

	if (CHECK_OK(tide_session_add_drive(session, &drive, NULL, &err), &err) &&
	    CHECK_OK(tide_query_bitmaps(session, "d", &list, &err), &err))
		n = list->items[0]->inconsistent ? UINT64_MAX : list->items[0]->count;
	tide_bitmap_list_free(list);
	tide_session_free(session);
	return n;
}

/* ---- threads ---- */

/* Sectors k of which k % THREADS is the thread's: neighbours in a cluster are another's. */
struct worker {
	struct tide_tracker *t;
	unsigned id, seed;
	bool failed;
	uint8_t model[DISK / SECTOR]; /* what the first byte of each sector is */
	pthread_t thread;
};

static void step(struct worker *w, int i)
{
	uint64_t sector = (uint64_t)rand_r(&w->seed) % (DISK / SECTOR / THREADS) * THREADS + w->id;
	uint8_t buf[SECTOR], value = (uint8_t)(rand_r(&w->seed) % 255 + 1);
	int rc;

	now_off = sector * SECTOR;
	now_len = SECTOR;
	memset(buf, value, sizeof(buf));
	if (i % 7 == 3) {
		rc = tide_tracker_zero(w->t, now_off, SECTOR, TIDE_TRACKER_MAY_TRIM, NULL);
		value = 0;
	} else {
		rc = tide_tracker_write(w->t, buf, now_off, SECTOR, i % 13 == 5 ? TIDE_TRACKER_FUA : 0, NULL);
	}
	now_len = 0;
	w->model[sector] = value;
	w->failed |= rc < 0 || tide_tracker_read(w->t, buf, sector * SECTOR, SECTOR, NULL) < 0 || buf[0] != value ||
	             buf[SECTOR - 1] != value;
	if (i % 29 == 11)
		w->failed |= tide_tracker_flush(w->t, NULL) < 0;
}

static void *work(void *arg)
{
	struct worker *w = arg;

	for (int i = 0; i < ROUNDS; i++)
		step(w, i);
	return NULL;
}

/* Runs them, and checks that the disk is what they made of it, all told. */
static void run(struct tide_tracker *t)
{
	struct worker *w = calloc(THREADS, sizeof(*w));
	uint8_t *disk = malloc(DISK);
	uint64_t wrong = 0;

	for (unsigned i = 0; i < THREADS; i++) {
		w[i].t = t;
		w[i].id = i;
		w[i].seed = i + 1;
		pthread_create(&w[i].thread, NULL, work, &w[i]);
	}
	for (unsigned i = 0; i < THREADS; i++) {
		pthread_join(w[i].thread, NULL);
		CHECK(!w[i].failed);
	}
	CHECK_EQ_I64(tide_tracker_read(t, disk, 0, DISK, NULL), 0);
	for (uint64_t k = 0; k < DISK / SECTOR; k++)
		wrong += disk[k * SECTOR] != w[k % THREADS].model[k];
	CHECK_EQ_U64(wrong, 0);
	free(disk);
	free(w);
}

static const char *const formats[] = { "raw", "qcow2" };

static void test_threads(void)
{
	for (size_t i = 0; i < TIDE_ARRAY_SIZE(formats); i++) {
		struct tide_error err = TIDE_ERROR_INIT;
		struct tide_tracker *t;
		uint64_t live;

		UNIT_ROW("%s", formats[i]);
		if (!make(formats[i]) || !(t = track(TIDE_DURABILITY_CRASH)))
			continue;
		run(t);
		live = count();
		CHECK(live > 0 && live < DISK);
		CHECK_OK(tide_tracker_close(t, &err), &err);
		CHECK_EQ_U64(count(), live);
	}
}

/* ---- power ---- */

static ino_t inode_of(const char *suffix)
{
	char path[4300];
	struct stat st;

	snprintf(path, sizeof(path), "%s%s", image_path(), suffix);
	return CHECK(stat(path, &st) == 0) ? st.st_ino : 0;
}

static void cut(const char *format, enum tide_durability durability)
{
	struct tide_tracker *t;

	memset(power.durable, 0, sizeof(power.durable));
	power.writes = power.early = 0;
	if (!make(format) || !(t = track(durability)))
		return;
	power.image = inode_of("");
	power.log = inode_of(".bitmaps.log");
	power.watching = true;
	run(t);
	power.watching = false;
	CHECK_EQ_I64(tide_tracker_close(t, NULL), 0);
	CHECK(power.writes > THREADS * ROUNDS / 2);
}

static void test_power(void)
{
	for (size_t i = 0; i < TIDE_ARRAY_SIZE(formats); i++) {
		UNIT_ROW("%s", formats[i]);
		cut(formats[i], TIDE_DURABILITY_POWER);
		CHECK_EQ_U64(power.early, 0);
	}
	/* The check finds it when nobody waits. */
	cut("raw", TIDE_DURABILITY_CRASH);
	CHECK(power.early > 0);
}

static void test_refusals(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_tracker *t;
	uint8_t byte = 1;
	unsigned kind;
	uint64_t n;

	if (!make("raw") || !(t = track(TIDE_DURABILITY_CRASH)))
		return;
	CHECK_EQ_I64(tide_tracker_write(t, &byte, DISK, 1, 0, &err), -1);
	CHECK_EQ_I64(err.sys, ENOSPC);
	tide_error_release(&err);
	CHECK_EQ_I64(tide_tracker_read(t, &byte, UINT64_MAX, 2, &err), -1);
	CHECK_EQ_I64(err.sys, EINVAL);
	tide_error_release(&err);
	CHECK_EQ_I64(tide_tracker_write(t, &byte, 5, 0, 0, &err), 0);
	CHECK_EQ_I64(tide_tracker_extent(t, 0, DISK, &kind, &n, &err), 0);
	CHECK(kind == (TIDE_EXTENT_IS_HOLE | TIDE_EXTENT_IS_ZERO) && n == DISK);
	CHECK_EQ_U64(count(), 0);
	CHECK_OK(tide_tracker_close(t, &err), &err);
}

int main(void)
{
	UNIT_RUN(test_threads);
	UNIT_RUN(test_power);
	UNIT_RUN(test_refusals);
	return unit_done();
}
