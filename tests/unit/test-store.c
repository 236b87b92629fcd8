/*
 * The sidecar as a file: its path, reading it, the lock with the claim, staging and committing, and what becomes of a
 * locker when another program replaces the file at that moment.
 *
 * For the last, this program replaces fcntl: `meanwhile` runs when the library asks for a lock.
 */
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "base/lock.h"
#include "sidecar_sample.h"
#include "store/store.h"

static void (*meanwhile)(void); /* NULL: nothing happens */
static unsigned replacements;   /* how often it is called */

int fcntl64(int fd, int cmd, ...);

int fcntl64(int fd, int cmd, ...)
{
	va_list ap;
	long arg;

	va_start(ap, cmd);
	arg = va_arg(ap, long);
	va_end(ap);
	if (cmd == F_OFD_SETLK && replacements > 0 && meanwhile) {
		replacements--;
		meanwhile();
	}
	return (int)syscall(SYS_fcntl, fd, cmd, arg);
}

/* ---- files ---- */

static const char *sidecar_path(void)
{
	return unit_path("disk.bitmaps");
}

static void write_file(const char *path, const void *data, size_t len)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	CHECK(fd >= 0 && write(fd, data, len) == (ssize_t)len && close(fd) == 0);
}

/* A sidecar with one bitmap, of this generation. */
static struct tide_sidecar *make_generation(uint64_t generation)
{
	struct tide_sidecar *sc = make(M);

	add(sc, "b", 64 * K);
	sc->generation = generation;
	return sc;
}

static void put_sidecar(const char *path, uint64_t generation)
{
	AUTOSIDECAR struct tide_sidecar *sc = make_generation(generation);
	AUTOSTRBUF struct tide_strbuf text = TIDE_STRBUF_INIT;

	encode(sc, &text);
	write_file(path, text.buf, text.len);
}

/* The generation of the sidecar; 0: there is none. */
static uint64_t generation_at(const char *path)
{
	struct tide_error err = TIDE_ERROR_INIT;
	AUTOSIDECAR struct tide_sidecar *sc = NULL;

	CHECK_OK(tide_store_load(path, &sc, &err), &err);
	return sc ? sc->generation : 0;
}

static bool exists(const char *path)
{
	struct stat st;

	return lstat(path, &st) == 0;
}

/* How many files are in the test's directory. */
static unsigned count_files(void)
{
	DIR *dir = opendir(unit_dir());
	struct dirent *e;
	unsigned n = 0;

	while (dir && (e = readdir(dir)))
		n += strcmp(e->d_name, ".") && strcmp(e->d_name, "..");
	if (dir)
		closedir(dir);
	return n;
}

/* Each test begins in an empty directory, with an image of this mode. */
static int begin(mode_t mode)
{
	const char *image;
	int fd;

	unit_rmdir();
	meanwhile = NULL;
	image = unit_path("disk");
	fd = open(image, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	CHECK(fd >= 0 && fchmod(fd, mode) == 0);
	return fd;
}

/* ---- where it is ---- */

static void test_path(void)
{
	static const struct {
		const char *image, *override,
		        *path; /* an override that is absolute, or relative to the current directory */
	} rows[] = {
		{ "disk", NULL, "disk.bitmaps" },
		{ "disk", "/elsewhere/x", "/elsewhere/x" },
		{ "disk", "x", "x" },
		{ "none", NULL, NULL },
		{ "none", "x", "x" },
	};
	TIDE_AUTOCLOSE int image = begin(0600);

	for (size_t i = 0; i < TIDE_ARRAY_SIZE(rows); i++) {
		const char *want = rows[i].path && rows[i].path[0] != '/' ? unit_path(rows[i].path) : rows[i].path;
		struct tide_error err = TIDE_ERROR_INIT;
		TIDE_AUTOFREE char *path = NULL;
		bool nameless;

		UNIT_ROW("%s, %s", rows[i].image, rows[i].override ? rows[i].override : "no override");
		CHECK(chdir(unit_dir()) == 0);
		path = tide_store_path(unit_path(rows[i].image), rows[i].override, &nameless, &err);
		CHECK_STR(path, want);
		CHECK(!nameless);
		if (!want)
			CHECK_EQ_I64(err.sys, ENOENT);
		tide_error_release(&err);
	}
	CHECK(chdir("/") == 0);
}

/* ---- reading ---- */

static void put_nothing(const char *path)
{
}

static void put_good(const char *path)
{
	put_sidecar(path, 7);
}

/* As a program that was killed leaves it. */
static void put_claim(const char *path)
{
	struct tide_store store = TIDE_STORE_INIT;
	struct tide_error err = TIDE_ERROR_INIT;

	CHECK_OK(tide_store_lock(&store, path, true, NULL, &err), &err);
	store.made = false;
	tide_store_release(&store);
}

static void put_link(const char *path)
{
	put_sidecar(unit_path("other"), 7);
	CHECK(symlink(unit_path("other"), path) == 0);
}

static void put_fifo(const char *path)
{
	CHECK(mkfifo(path, 0600) == 0);
}

static void put_directory(const char *path)
{
	CHECK(mkdir(path, 0700) == 0);
}

static void put_huge(const char *path)
{
	put_good(path);
	CHECK(truncate(path, (off_t)2 << 30) == 0);
}

static void put_short(const char *path)
{
	put_good(path);
	CHECK(truncate(path, 150) == 0);
}

static void put_text(const char *path)
{
	write_file(path, "tidemark sidecar to come?", 25);
}

static const struct {
	const char *name;
	void (*put)(const char *path);
	enum tide_code load, lock; /* what the two calls make of it */
	uint64_t generation;
} kinds[] = {
	{ "nothing", put_nothing, TIDE_E_NONE, TIDE_E_NONE, 0 },
	{ "a sidecar", put_good, TIDE_E_NONE, TIDE_E_NONE, 7 },
	{ "a claim", put_claim, TIDE_E_NONE, TIDE_E_NONE, 0 },
	{ "a link", put_link, TIDE_E_REFUSED, TIDE_E_REFUSED, 0 },
	{ "a FIFO", put_fifo, TIDE_E_REFUSED, TIDE_E_REFUSED, 0 },
	{ "a directory", put_directory, TIDE_E_REFUSED, TIDE_E_IO, 0 },
	{ "too large", put_huge, TIDE_E_CORRUPT, TIDE_E_NONE, 0 },
	{ "cut off", put_short, TIDE_E_CORRUPT, TIDE_E_NONE, 0 },
	{ "a text", put_text, TIDE_E_CORRUPT, TIDE_E_NONE, 0 },
};

static void test_load(void)
{
	for (size_t i = 0; i < TIDE_ARRAY_SIZE(kinds); i++) {
		TIDE_AUTOCLOSE int image = begin(0600);
		struct tide_error err = TIDE_ERROR_INIT;
		AUTOSIDECAR struct tide_sidecar *sc = NULL;

		UNIT_ROW("%s", kinds[i].name);
		kinds[i].put(sidecar_path());
		CHECK_EQ_I64(tide_store_load(sidecar_path(), &sc, &err), kinds[i].load ? -1 : 0);
		CHECK_EQ_U64(sc ? sc->generation : 0, kinds[i].generation);
		CHECK_ERR(&err, kinds[i].load, NULL);
	}
}

static void test_is_current(void)
{
	AUTOSIDECAR struct tide_sidecar *old = NULL, *now = NULL;
	TIDE_AUTOCLOSE int image = begin(0600);
	struct tide_error err = TIDE_ERROR_INIT;
	bool current;

	CHECK(tide_store_is_current(sidecar_path(), NULL, &current, &err) == 0 && current);
	put_sidecar(sidecar_path(), 1);
	CHECK_OK(tide_store_load(sidecar_path(), &old, &err), &err);
	CHECK(tide_store_is_current(sidecar_path(), NULL, &current, &err) == 0 && !current);
	CHECK(tide_store_is_current(sidecar_path(), old, &current, &err) == 0 && current);
	put_sidecar(sidecar_path(), 2);
	CHECK_OK(tide_store_load(sidecar_path(), &now, &err), &err);
	CHECK(tide_store_is_current(sidecar_path(), old, &current, &err) == 0 && !current);
	CHECK(tide_store_is_current(sidecar_path(), now, &current, &err) == 0 && current);
	unlink(sidecar_path());
	CHECK(tide_store_is_current(sidecar_path(), now, &current, &err) == 0 && !current);
	put_claim(sidecar_path());
	CHECK(tide_store_is_current(sidecar_path(), NULL, &current, &err) == 0 && current);
	tide_error_release(&err);
}

/* ---- locking ---- */

/* Does another program have to wait for the lock? */
static bool is_locked(void)
{
	TIDE_AUTOCLOSE int fd = open(sidecar_path(), O_RDWR | O_CLOEXEC);

	return fd >= 0 && tide_lock_exclusive(fd, 0, NULL, NULL) < 0;
}

static bool holds_named_file(const struct tide_store *store)
{
	struct stat held, named;

	return store->lock_fd >= 0 && fstat(store->lock_fd, &held) == 0 && lstat(sidecar_path(), &named) == 0 &&
	       held.st_ino == named.st_ino;
}

/* A file that is not a sidecar stays as it is, locked or not; only a claim goes. */
static void test_lock(void)
{
	for (size_t i = 0; i < 2 * TIDE_ARRAY_SIZE(kinds); i++) {
		bool create = i % 2, there, claim;
		TIDE_AUTOCLOSE int image = begin(0600);
		struct tide_store store = TIDE_STORE_INIT;
		struct tide_error err = TIDE_ERROR_INIT;

		UNIT_ROW("%s%s", kinds[i / 2].name, create ? ", create" : "");
		kinds[i / 2].put(sidecar_path());
		claim = kinds[i / 2].put == put_claim || (create && kinds[i / 2].put == put_nothing);
		there = exists(sidecar_path());
		CHECK_EQ_I64(tide_store_lock(&store, sidecar_path(), create, NULL, &err), kinds[i / 2].lock ? -1 : 0);
		CHECK_ERR(&err, kinds[i / 2].lock, NULL);
		if (!kinds[i / 2].lock && (there || create))
			CHECK(holds_named_file(&store) && is_locked());
		else if (!kinds[i / 2].lock)
			CHECK(store.lock_fd < 0);
		CHECK_EQ_I64(store.made, claim);
		if (claim)
			CHECK_EQ_U64(generation_at(sidecar_path()), 0);
		tide_store_release(&store);
		CHECK(store.lock_fd < 0 && !store.path && !is_locked());
		CHECK_EQ_I64(exists(sidecar_path()), there && !claim);
	}
}

/* ---- replaced while it is being locked ---- */

static void replace(void)
{
	put_sidecar(unit_path("new"), 8 + replacements);
	CHECK(rename(unit_path("new"), sidecar_path()) == 0);
}

static void delete (void)
{
	unlink(sidecar_path());
}

static void test_replaced_meanwhile(void)
{
	static const struct {
		const char *name;
		void (*put)(const char *path);
		void (*meanwhile)(void);
		unsigned times;
		bool create;
		enum tide_code code;
		uint64_t generation; /* of what is locked in the end; 0: nothing, or a claim */
	} rows[] = {
		{ "once", put_good, replace, 1, false, TIDE_E_NONE, 8 },
		{ "five times", put_good, replace, 5, true, TIDE_E_NONE, 8 },
		{ "always", put_good, replace, UINT32_MAX, false, TIDE_E_LOCKED, 0 },
		{ "deleted", put_good, delete, 1, false, TIDE_E_NONE, 0 },
		{ "deleted, create", put_good, delete, 1, true, TIDE_E_NONE, 0 },
		{ "another was first to create it", put_nothing, replace, 1, true, TIDE_E_NONE, 8 },
		{ "a claim becomes a sidecar", put_claim, replace, 1, true, TIDE_E_NONE, 8 },
	};

	for (size_t i = 0; i < TIDE_ARRAY_SIZE(rows); i++) {
		TIDE_AUTOCLOSE int image = begin(0600);
		struct tide_store store = TIDE_STORE_INIT;
		struct tide_error err = TIDE_ERROR_INIT;

		UNIT_ROW("%s", rows[i].name);
		rows[i].put(sidecar_path());
		meanwhile = rows[i].meanwhile;
		replacements = rows[i].times;
		CHECK_EQ_I64(tide_store_lock(&store, sidecar_path(), rows[i].create, NULL, &err),
		             rows[i].code ? -1 : 0);
		CHECK_ERR(&err, rows[i].code, NULL);
		meanwhile = NULL;
		if (rows[i].generation)
			CHECK(holds_named_file(&store) && is_locked() && !store.made &&
			      generation_at(sidecar_path()) == rows[i].generation);
		else if (!rows[i].code)
			CHECK(store.made == rows[i].create && holds_named_file(&store) == rows[i].create);
		tide_store_release(&store);
		CHECK(exists(sidecar_path()) == (rows[i].generation || rows[i].code));
	}
}

/* ---- staging and committing ---- */

static void test_stage_and_commit(void)
{
	static const struct {
		const char *name;
		void (*put)(const char *path);
		bool commits, kept;
		uint64_t generation; /* afterwards */
		unsigned files;      /* afterwards: the image, the sidecar, a temporary name */
	} rows[] = {
		{ "replaces one", put_good, true, false, 9, 2 },
		{ "makes one", put_nothing, true, false, 9, 2 },
		{ "dropped", put_good, false, false, 7, 2 },
		{ "dropped, the claim too", put_nothing, false, false, 0, 1 },
		{ "in a record", put_good, false, true, 7, 3 },
		{ "in a record, of a claim", put_nothing, false, true, 0, 2 },
	};

	for (size_t i = 0; i < TIDE_ARRAY_SIZE(rows); i++) {
		TIDE_AUTOCLOSE int image = begin(0600);
		AUTOSIDECAR struct tide_sidecar *sc = make_generation(9);
		struct tide_store store = TIDE_STORE_INIT;
		struct tide_error err = TIDE_ERROR_INIT;
		AUTOSIDECAR struct tide_sidecar *now = NULL;

		UNIT_ROW("%s", rows[i].name);
		rows[i].put(sidecar_path());
		CHECK_OK(tide_store_lock(&store, sidecar_path(), true, NULL, &err), &err);
		CHECK_OK(tide_store_stage(&store, sc, image, &err), &err);
		CHECK_EQ_U64(generation_at(sidecar_path()), rows[i].put == put_good ? 7 : 0);
		CHECK(store.staged.tmp && generation_at(store.staged.tmp) == 9);
		store.staged.kept = rows[i].kept;
		if (rows[i].commits)
			CHECK_OK(tide_store_commit(&store, &err), &err);
		tide_store_release(&store);
		CHECK_EQ_U64(generation_at(sidecar_path()), rows[i].generation);
		CHECK_EQ_U64(count_files(), rows[i].files);
		if (rows[i].commits && CHECK_OK(tide_store_load(sidecar_path(), &now, &err), &err))
			CHECK(now && now->n == 1 && now->disk_size == M && !strcmp(now->items[0]->name, "b"));
	}
}

/* The checksum by which a write log knows its sidecar is that of the file. */
static void test_checksum(void)
{
	TIDE_AUTOCLOSE int image = begin(0600);
	AUTOSIDECAR struct tide_sidecar *sc = make_generation(9), *now = NULL;
	struct tide_store store = TIDE_STORE_INIT;
	struct tide_error err = TIDE_ERROR_INIT;

	CHECK_OK(tide_store_lock(&store, sidecar_path(), true, NULL, &err), &err);
	CHECK_OK(tide_store_stage(&store, sc, image, &err), &err);
	CHECK_OK(tide_store_commit(&store, &err), &err);
	if (CHECK_OK(tide_store_load(sidecar_path(), &now, &err), &err))
		CHECK(now && now->checksum == store.checksum);
	tide_store_release(&store);
}

static void test_commit_fails(void)
{
	TIDE_AUTOCLOSE int image = begin(0600);
	AUTOSIDECAR struct tide_sidecar *sc = make_generation(9);
	struct tide_store store = TIDE_STORE_INIT;
	struct tide_error err = TIDE_ERROR_INIT;

	put_good(sidecar_path());
	CHECK_OK(tide_store_lock(&store, sidecar_path(), true, NULL, &err), &err);
	CHECK_OK(tide_store_stage(&store, sc, image, &err), &err);
	unlink(sidecar_path());
	put_directory(sidecar_path());
	CHECK_EQ_I64(tide_store_commit(&store, &err), -1);
	CHECK_EQ_I64(err.sys, EISDIR);
	tide_error_release(&err);
	tide_store_release(&store);
	CHECK(exists(sidecar_path()) && count_files() == 2);
}

/* ---- owner and mode ---- */

static void test_owner_and_mode(void)
{
	static const struct {
		mode_t image, sidecar;
		uid_t uid;
		gid_t gid;
	} rows[] = {
		{ 0600, 0600, 0, 0 },         { 0644, 0644, 12345, 54321 }, { 0640, 0640, 0, 54321 },
		{ 0777, 0666, 1, 0 },         { 04755, 0644, 12345, 0 },    { 0400, 0600, 0, 0 },
		{ 0444, 0644, 12345, 54321 }, { 01666, 0666, 0, 0 },
	};
	mode_t mask = umask(0077);

	for (size_t i = 0; i < TIDE_ARRAY_SIZE(rows); i++) {
		TIDE_AUTOCLOSE int image = begin(0600);
		AUTOSIDECAR struct tide_sidecar *sc = make_generation(9);
		struct tide_store store = TIDE_STORE_INIT;
		struct tide_error err = TIDE_ERROR_INIT;
		struct stat want, st;

		UNIT_ROW("%o, %u:%u", rows[i].image, rows[i].uid, rows[i].gid);
		if (geteuid() == 0)
			CHECK(fchown(image, rows[i].uid, rows[i].gid) == 0);
		CHECK(fchmod(image, rows[i].image) == 0 && fstat(image, &want) == 0);
		CHECK_OK(tide_store_lock(&store, sidecar_path(), true, NULL, &err), &err);
		CHECK(fstat(store.lock_fd, &st) == 0 && (st.st_mode & 07777) == 0600);
		CHECK_OK(tide_store_stage(&store, sc, image, &err), &err);
		CHECK_OK(tide_store_commit(&store, &err), &err);
		CHECK(stat(sidecar_path(), &st) == 0);
		CHECK_EQ_U64(st.st_mode & 07777, rows[i].sidecar);
		CHECK_EQ_U64(st.st_uid, want.st_uid);
		CHECK_EQ_U64(st.st_gid, want.st_gid);
		tide_store_release(&store);
	}
	umask(mask);
}

int main(void)
{
	UNIT_RUN(test_path);
	UNIT_RUN(test_load);
	UNIT_RUN(test_is_current);
	UNIT_RUN(test_lock);
	UNIT_RUN(test_replaced_meanwhile);
	UNIT_RUN(test_stage_and_commit);
	UNIT_RUN(test_checksum);
	UNIT_RUN(test_commit_fails);
	UNIT_RUN(test_owner_and_mode);
	return unit_done();
}
