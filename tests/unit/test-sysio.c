/*
 * System calls: complete reads and writes although the kernel delivers less, interrupts or fails; holes, syncs, renames
 * and paths.  The calls are replaced by functions that behave as badly as they may.
 */
#undef _FORTIFY_SOURCE /* its inline wrappers would bypass the functions that replace the calls below */
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "base/mem.h"
#include "base/sysio.h"
#include "unit.h"

/* ---- system calls that behave as badly as they may --------------------------------- */

static struct {
	bool choppy;      /* transfers of a few bytes, every third interrupted */
	int pwrite_error; /* after so many bytes, fail with ENOSPC; -1 never */
	bool no_proc;     /* /proc/self/fd is not there */
	bool no_noreplace, no_punch, no_zero_range;
	int fsync_error;
	unsigned calls, syncs;
} fake = { .pwrite_error = -1 };

static bool chop(size_t *len)
{
	if (!fake.choppy)
		return false;
	*len = TIDE_MIN(*len, (size_t)7);
	if (++fake.calls % 3 == 0) {
		errno = EINTR;
		return true;
	}
	return false;
}

ssize_t pread(int fd, void *buf, size_t len, off_t off)
{
	return chop(&len) ? -1 : syscall(SYS_pread64, fd, buf, len, off);
}

ssize_t pwrite(int fd, const void *buf, size_t len, off_t off)
{
	if (fake.pwrite_error >= 0 && off >= fake.pwrite_error) {
		errno = ENOSPC;
		return -1;
	}
	return chop(&len) ? -1 : syscall(SYS_pwrite64, fd, buf, len, off);
}

int access(const char *path, int mode)
{
	if (fake.no_proc && strncmp(path, "/proc/self/fd/", 14) == 0) {
		errno = ENOENT;
		return -1;
	}
	return (int)syscall(SYS_faccessat, AT_FDCWD, path, mode);
}

int renameat2(int from_dir, const char *from, int to_dir, const char *to, unsigned flags)
{
	if (fake.no_noreplace) {
		errno = EINVAL;
		return -1;
	}
	return (int)syscall(SYS_renameat2, from_dir, from, to_dir, to, flags);
}

int fallocate(int fd, int mode, off_t off, off_t len)
{
	if ((mode & FALLOC_FL_PUNCH_HOLE && fake.no_punch) || (mode & FALLOC_FL_ZERO_RANGE && fake.no_zero_range)) {
		errno = EOPNOTSUPP;
		return -1;
	}
	return (int)syscall(SYS_fallocate, fd, mode, off, len);
}

int fsync(int fd)
{
	fake.syncs++;
	if (fake.fsync_error) {
		errno = fake.fsync_error;
		return -1;
	}
	return (int)syscall(SYS_fsync, fd);
}

static void fake_reset(void)
{
	memset(&fake, 0, sizeof(fake));
	fake.pwrite_error = -1;
}

/* ---- reading and writing ----------------------------------------------------------- */

static int new_file(const char *name, struct tide_error *err)
{
	return tide_sysio_open(unit_path(name), O_RDWR | O_CREAT | O_TRUNC, err);
}

static void test_open(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	char want[5000];
	const char *path = unit_path("missing");

	CHECK_EQ_I64(tide_sysio_open(path, O_RDONLY, &err), -1);
	snprintf(want, sizeof(want), "Could not open '%s': No such file or directory", path);
	CHECK_EQ_I64(err.sys, ENOENT);
	CHECK_ERR(&err, TIDE_E_IO, want);
	int fd TIDE_AUTOCLOSE = new_file("made", &err);
	CHECK(fd >= 0 && fcntl(fd, F_GETFD) == FD_CLOEXEC);
	tide_sysio_close(-1);
}

static void test_pread_pwrite(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	char out[100], in[120], zeroes[20] = "";
	int fd TIDE_AUTOCLOSE = new_file("io", &err);

	for (size_t i = 0; i < sizeof(out); i++)
		out[i] = (char)(i + 1);
	for (int choppy = 0; choppy < 2; choppy++) {
		UNIT_ROW("choppy %d", choppy);
		fake.choppy = choppy;
		CHECK_OK(tide_sysio_pwrite(fd, out, sizeof(out), 5, &err), &err);
		memset(in, 0xee, sizeof(in));
		CHECK_OK(tide_sysio_pread(fd, in, sizeof(out), 5, false, &err), &err);
		CHECK_MEM(in, out, sizeof(out));
		CHECK_OK(tide_sysio_pread(fd, in, sizeof(in), 5, true, &err), &err);
		CHECK_MEM(in, out, sizeof(out));
		CHECK_MEM(in + sizeof(out), zeroes, sizeof(zeroes));
		CHECK_OK(tide_sysio_pread(fd, in, sizeof(zeroes), 1000, true, &err), &err);
		CHECK_MEM(in, zeroes, sizeof(zeroes));
		CHECK_EQ_I64(tide_sysio_pread(fd, in, sizeof(in), 5, false, &err), -1);
		CHECK_ERR(&err, TIDE_E_CORRUPT, "Could not read 120 bytes at 5: the file ends at 105");
	}
	fake_reset();
	fake.choppy = true;
	fake.pwrite_error = 50;
	CHECK_EQ_I64(tide_sysio_pwrite(fd, out, 100, 0, &err), -1);
	fake_reset();
	CHECK_EQ_I64(err.sys, ENOSPC);
	CHECK_ERR(&err, TIDE_E_IO, "Could not write 100 bytes at 0: No space left on device");
	CHECK_EQ_I64(tide_sysio_pread(fd, in, 1, UINT64_MAX, true, &err), -1);
	CHECK_ERR(&err, TIDE_E_IO, NULL);
	CHECK_OK(tide_sysio_fdatasync(fd, &err), &err);
	CHECK_EQ_I64(tide_sysio_fdatasync(-1, &err), -1);
	CHECK_ERR(&err, TIDE_E_IO, "Could not flush: Bad file descriptor");
}

static void on_alarm(int sig)
{
}

/* A pipe that delivers in drops while signals arrive. */
static void test_read_stream(void)
{
	struct sigaction sa = { .sa_handler = on_alarm };
	struct tide_error err = TIDE_ERROR_INIT;
	char buf[64];
	int ends[2];

	if (!CHECK(pipe(ends) == 0))
		return;
	sigaction(SIGALRM, &sa, NULL);
	pid_t pid = fork();
	if (pid == 0) {
		for (int i = 0; i < 10; i++) {
			usleep(2000);
			kill(getppid(), SIGALRM);
			usleep(2000);
			if (write(ends[1], "abcde", 5) != 5)
				_exit(1);
		}
		_exit(0);
	}
	close(ends[1]);
	CHECK_EQ_I64(tide_sysio_read(ends[0], buf, 33, &err), 33);
	CHECK_EQ_I64(tide_sysio_read(ends[0], buf + 33, 31, &err), 17);
	CHECK_MEM(buf, "abcdeabcdeabcdeabcdeabcdeabcdeabcdeabcdeabcdeabcde", 50);
	CHECK_EQ_I64(tide_sysio_read(ends[0], buf, 31, &err), 0);
	CHECK(err.code == TIDE_E_NONE);
	close(ends[0]);
	waitpid(pid, NULL, 0);
	CHECK_EQ_I64(tide_sysio_read(-1, buf, 1, &err), -1);
	CHECK_ERR(&err, TIDE_E_IO, NULL);
}

static void test_size(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	uint64_t size = 0;
	int fd TIDE_AUTOCLOSE = new_file("size", &err);
	int dir TIDE_AUTOCLOSE = tide_sysio_open(unit_dir(), O_RDONLY, &err);
	int null TIDE_AUTOCLOSE = tide_sysio_open("/dev/null", O_RDONLY, &err);

	CHECK(ftruncate(fd, (off_t)1 << 40) == 0);
	CHECK_OK(tide_sysio_size(fd, &size, &err), &err);
	CHECK_EQ_U64(size, UINT64_C(1) << 40);
	CHECK_EQ_I64(tide_sysio_size(dir, &size, &err), -1);
	CHECK_ERR(&err, TIDE_E_REFUSED, "A directory is neither a regular file nor a block device");
	CHECK_EQ_I64(tide_sysio_size(null, &size, &err), -1);
	CHECK_ERR(&err, TIDE_E_REFUSED, NULL);
}

/* ---- holes ------------------------------------------------------------------------- */

static void check_extent(int fd, uint64_t off, uint64_t limit, bool want_data, uint64_t want_len)
{
	bool data;
	uint64_t len;

	tide_sysio_extent(fd, off, limit, &data, &len);
	CHECK_EQ_U64(data, want_data);
	CHECK_EQ_U64(len, want_len);
}

static void test_extent(void)
{
	const uint64_t M = 1 << 20;
	struct tide_error err = TIDE_ERROR_INIT;
	int fd TIDE_AUTOCLOSE = new_file("holes", &err);
	int pipe_fd[2];
	char *data TIDE_AUTOFREE = tide_mem_alloc(M, 1, &err);

	memset(data, 1, M);
	CHECK_OK(tide_sysio_pwrite(fd, data, M, M, &err), &err);
	CHECK(ftruncate(fd, 4 * (off_t)M) == 0);
	if (lseek(fd, 0, SEEK_DATA) != (off_t)M)
		UNIT_SKIP("no holes on this file system");
	check_extent(fd, 0, 4 * M, false, M);
	check_extent(fd, 0, 4096, false, 4096);
	check_extent(fd, M, 3 * M, true, M);
	check_extent(fd, M, 4096, true, 4096);
	check_extent(fd, M + M / 2, 3 * M, true, M / 2);
	check_extent(fd, 2 * M, 2 * M, false, 2 * M);
	check_extent(fd, 9 * M, M, false, M);
	check_extent(fd, UINT64_MAX - 1, 1, true, 1);
	/* A file that cannot tell is all data. */
	if (CHECK(pipe(pipe_fd) == 0)) {
		check_extent(pipe_fd[0], 0, M, true, M);
		close(pipe_fd[0]);
		close(pipe_fd[1]);
	}
}

static void test_zero(void)
{
	enum { SIZE = 3 << 20 };
	struct tide_error err = TIDE_ERROR_INIT;
	uint8_t *plain TIDE_AUTOFREE = tide_mem_alloc(SIZE, 1, &err);
	uint8_t *back TIDE_AUTOFREE = tide_mem_alloc(SIZE, 1, &err);
	struct stat st;

	for (int way = 0; way < 3; way++) {
		UNIT_ROW("way %d", way);
		int fd TIDE_AUTOCLOSE = new_file("zero", &err);
		memset(plain, 0x77, SIZE);
		CHECK_OK(tide_sysio_pwrite(fd, plain, SIZE, 0, &err), &err);
		fake.no_punch = way >= 1;
		fake.no_zero_range = way >= 2;
		CHECK_OK(tide_sysio_zero(fd, 4000, 2 << 20, true, &err), &err);
		CHECK_OK(tide_sysio_zero(fd, SIZE - 100, 4096, true, &err), &err);
		CHECK_OK(tide_sysio_zero(fd, 2 * SIZE, 4096, true, &err), &err);
		CHECK_OK(tide_sysio_zero(fd, SIZE / 2, 0, true, &err), &err);
		memset(plain + 4000, 0, 2 << 20);
		memset(plain + SIZE - 100, 0, 100);
		CHECK_OK(tide_sysio_pread(fd, back, SIZE, 0, false, &err), &err);
		CHECK_MEM(back, plain, SIZE);
		CHECK(fstat(fd, &st) == 0 && st.st_size == SIZE);
	}
	for (int way = 0; way < 2; way++) {
		UNIT_ROW("kept, way %d", way);
		int fd TIDE_AUTOCLOSE = new_file("kept", &err);
		CHECK_OK(tide_sysio_pwrite(fd, plain, SIZE, 0, &err), &err);
		CHECK_OK(tide_sysio_fdatasync(fd, &err), &err);
		CHECK(fstat(fd, &st) == 0);
		blkcnt_t before = st.st_blocks;
		fake.no_zero_range = way == 1;
		CHECK_OK(tide_sysio_zero(fd, 0, SIZE, false, &err), &err);
		CHECK_OK(tide_sysio_fdatasync(fd, &err), &err);
		CHECK(fstat(fd, &st) == 0 && st.st_blocks >= before);
		CHECK_OK(tide_sysio_pread(fd, back, SIZE, 0, false, &err), &err);
		CHECK(tide_sysio_is_zero(back, SIZE));
	}
	fake_reset();
	UNIT_ROW("errors");
	int fd TIDE_AUTOCLOSE = tide_sysio_open(unit_path("zero"), O_RDONLY, &err);
	CHECK_EQ_I64(tide_sysio_zero(fd, 0, 10, true, &err), -1);
	CHECK_EQ_I64(err.sys, EBADF);
	CHECK_ERR(&err, TIDE_E_IO, "Could not zero 10 bytes at 0: Bad file descriptor");
	CHECK_EQ_I64(tide_sysio_zero(fd, UINT64_MAX, 10, true, &err), -1);
	CHECK_ERR(&err, TIDE_E_IO, NULL);
}

/* One byte at every place of every length, in a block that ends where it ends. */
static void test_is_zero(void)
{
	for (size_t len = 0; len <= 600; len++) {
		uint8_t *buf TIDE_AUTOFREE = tide_mem_alloc(len, 1, NULL);
		UNIT_ROW("length %zu", len);
		bool good = tide_sysio_is_zero(buf, len);
		for (size_t i = 0; i < len; i++) {
			buf[i] = 0x80;
			good &= !tide_sysio_is_zero(buf, len) && !tide_sysio_is_zero(buf + i, len - i) &&
			        tide_sysio_is_zero(buf + i + 1, len - i - 1) && tide_sysio_is_zero(buf, i);
			buf[i] = 0;
		}
		if (!CHECK(good))
			return;
	}
}

/* ---- staged files ------------------------------------------------------------------ */

static int count_names(const char *dir)
{
	char command[5000];
	int n = -1;

	snprintf(command, sizeof(command), "ls -A '%s' | wc -l", dir);
	FILE *out = popen(command, "r");
	if (!out || fscanf(out, "%d", &n) != 1)
		n = -1;
	if (out)
		pclose(out);
	return n;
}

static void check_file(const char *path, const char *text, mode_t mode)
{
	char buf[64] = "";
	struct stat st = { 0 };
	int fd = open(path, O_RDONLY);

	if (!CHECK(fd >= 0))
		return;
	CHECK(read(fd, buf, sizeof(buf) - 1) >= 0);
	CHECK_STR(buf, text);
	CHECK(fstat(fd, &st) == 0);
	CHECK_EQ_U64(st.st_mode & 07777, mode);
	close(fd);
}

static void put_file(const char *path, const char *text)
{
	FILE *f = fopen(path, "w");

	if (CHECK(f != NULL)) {
		fputs(text, f);
		fclose(f);
	}
}

static const char *fresh_dir(void)
{
	static unsigned n;
	char name[32];

	snprintf(name, sizeof(name), "dir%u", n++);
	const char *dir = unit_path(name);
	CHECK(mkdir(dir, 0700) == 0);
	return dir;
}

/* Every combination: nameless or named file, synced first or not, exclusive or not, name taken or not. */
static void staged_case(bool no_proc, bool sync_first, bool exclusive, bool taken, bool no_noreplace)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_staged st = TIDE_STAGED_INIT;
	const char *dir = fresh_dir();
	char path[5000];

	UNIT_ROW("no_proc %d sync %d exclusive %d taken %d no_noreplace %d", no_proc, sync_first, exclusive, taken,
	         no_noreplace);
	snprintf(path, sizeof(path), "%s/file", dir);
	if (taken)
		put_file(path, "old");
	fake.no_proc = no_proc;
	fake.no_noreplace = no_noreplace;
	if (!CHECK_OK(tide_staged_begin(&st, path, 0640, &err), &err))
		return;
	CHECK(no_proc ? st.tmp != NULL : st.tmp == NULL);
	CHECK_OK(tide_sysio_pwrite(st.fd, "new", 3, 0, &err), &err);
	CHECK_EQ_I64(count_names(dir), taken + no_proc);
	if (sync_first) {
		CHECK_OK(tide_staged_sync(&st, &err), &err);
		CHECK(st.tmp != NULL);
		CHECK_EQ_I64(count_names(dir), taken + 1);
	}
	int ret = tide_staged_commit(&st, exclusive, &err);
	if (exclusive && taken) {
		CHECK_EQ_I64(ret, -1);
		CHECK_EQ_I64(err.sys, EEXIST);
		CHECK(err.msg && strstr(err.msg, "Could not create '") && strstr(err.msg, "/file': File exists"));
		CHECK_ERR(&err, TIDE_E_IO, NULL);
	} else {
		CHECK_OK(ret, &err);
		check_file(path, "new", 0640);
	}
	tide_staged_release(&st);
	CHECK(st.fd == -1 && !st.path && !st.tmp && !st.dir);
	CHECK_EQ_I64(count_names(dir), 1);
	if (exclusive && taken) {
		char old[4] = "";
		int fd = open(path, O_RDONLY);
		CHECK(read(fd, old, 3) == 3);
		CHECK_STR(old, "old");
		close(fd);
	}
	fake_reset();
}

static void test_staged(void)
{
	for (int i = 0; i < 32; i++)
		staged_case(i & 1, i & 2, i & 4, i & 8, i & 16);
}

static void test_staged_release(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_staged st = TIDE_STAGED_INIT;
	const char *dir = fresh_dir();
	char path[5000];

	snprintf(path, sizeof(path), "%s/file", dir);
	tide_staged_release(&st);
	for (int i = 0; i < 4; i++) {
		UNIT_ROW("case %d", i);
		fake.no_proc = i & 1;
		CHECK_OK(tide_staged_begin(&st, path, 0600, &err), &err);
		if (i & 2)
			CHECK_OK(tide_staged_sync(&st, &err), &err);
		tide_staged_release(&st);
		CHECK_EQ_I64(count_names(dir), 0);
	}
	fake_reset();
}

/* kill -9 before the commit leaves nothing, where the file system knows nameless files. */
static void test_staged_killed(void)
{
	const char *dir = fresh_dir();
	char path[5000];
	int fd = open(dir, O_TMPFILE | O_RDWR, 0600), status;

	if (fd < 0)
		UNIT_SKIP("no O_TMPFILE on this file system");
	close(fd);
	snprintf(path, sizeof(path), "%s/file", dir);
	pid_t pid = fork();
	if (pid == 0) {
		struct tide_staged st = TIDE_STAGED_INIT;
		if (tide_staged_begin(&st, path, 0600, NULL) == 0 && tide_sysio_pwrite(st.fd, "x", 1, 0, NULL) == 0)
			kill(getpid(), SIGKILL);
		_exit(1);
	}
	CHECK(waitpid(pid, &status, 0) == pid && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	CHECK_EQ_I64(count_names(dir), 0);
}

static void test_staged_errors(void)
{
	char long_name[300];
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_staged st = TIDE_STAGED_INIT;

	memset(long_name, 'n', sizeof(long_name) - 1);
	long_name[sizeof(long_name) - 1] = '\0';
	const struct {
		const char *name;
		int sys;
	} rows[] = {
		{ "no/file", ENOENT }, { "plain/file", ENOTDIR }, { "", EISDIR },
		{ "sub", EISDIR },     { "sub/", EISDIR },        { long_name, ENAMETOOLONG },
	};
	put_file(unit_path("plain"), "");
	CHECK(mkdir(unit_path("sub"), 0700) == 0);
	for (size_t i = 0; i < TIDE_ARRAY_SIZE(rows); i++) {
		const char *path = unit_path(rows[i].name);
		char want[5000];
		UNIT_ROW("%.40s", rows[i].name);
		snprintf(want, sizeof(want), "Could not create '%s': %s", path, strerror(rows[i].sys));
		CHECK_EQ_I64(tide_staged_begin(&st, path, 0600, &err), -1);
		CHECK_EQ_I64(err.sys, rows[i].sys);
		CHECK_ERR(&err, TIDE_E_IO, want);
		CHECK(st.fd == -1 && !st.path && !st.dir);
	}
	UNIT_ROW("no name");
	CHECK_EQ_I64(tide_staged_begin(&st, "", 0600, &err), -1);
	CHECK_ERR(&err, TIDE_E_IO, "Could not create '': No such file or directory");
	UNIT_ROW("device");
	CHECK_EQ_I64(tide_staged_begin(&st, "/dev/null", 0600, &err), -1);
	CHECK_ERR(&err, TIDE_E_REFUSED, "Could not create '/dev/null': the existing file is not a regular file");
}

/* The longest name that the directory takes, in the current directory, replacing a link rather than its target. */
static void test_staged_names(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_staged st = TIDE_STAGED_INIT;
	const char *dir = fresh_dir();
	char name[256], old[4096];

	memset(name, 'n', 255);
	name[255] = '\0';
	if (!CHECK(getcwd(old, sizeof(old)) && chdir(dir) == 0))
		return;
	CHECK(symlink("target", name) == 0);
	for (int i = 0; i < 2; i++) {
		UNIT_ROW("case %d", i);
		fake.no_proc = i;
		CHECK_OK(tide_staged_begin(&st, name, 0400, &err), &err);
		CHECK_OK(tide_staged_sync(&st, &err), &err);
		CHECK_OK(tide_staged_commit(&st, false, &err), &err);
		tide_staged_release(&st);
		check_file(name, "", 0400);
		CHECK_EQ_I64(count_names("."), 1);
	}
	fake_reset();
	CHECK(chdir(old) == 0);
}

/* A sync that fails is no success, and leaves what was there. */
static void test_staged_sync_fails(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_staged st = TIDE_STAGED_INIT;
	const char *dir = fresh_dir();
	char path[5000], want[5100];

	snprintf(path, sizeof(path), "%s/file", dir);
	put_file(path, "old");
	CHECK_OK(tide_staged_begin(&st, path, 0600, &err), &err);
	fake.fsync_error = EIO;
	CHECK_EQ_I64(tide_staged_commit(&st, false, &err), -1);
	snprintf(want, sizeof(want), "Could not flush '%s': Input/output error", path);
	CHECK_ERR(&err, TIDE_E_IO, want);
	CHECK_EQ_I64(tide_staged_sync(&st, &err), -1);
	CHECK_ERR(&err, TIDE_E_IO, want);
	fake_reset();
	tide_staged_release(&st);
	CHECK_EQ_I64(count_names(dir), 1);
	/* Synced once for the file and once for the directory with its final name. */
	CHECK_OK(tide_staged_begin(&st, path, 0600, &err), &err);
	CHECK_OK(tide_staged_sync(&st, &err), &err);
	CHECK_EQ_U64(fake.syncs, 1);
	CHECK_OK(tide_staged_commit(&st, false, &err), &err);
	CHECK_EQ_U64(fake.syncs, 2);
	tide_staged_release(&st);
	fake_reset();
}

static void test_fsync_dir(void)
{
	struct tide_error err = TIDE_ERROR_INIT;

	CHECK_OK(tide_sysio_fsync_dir(unit_path("x"), &err), &err);
	CHECK_OK(tide_sysio_fsync_dir("x", &err), &err);
	CHECK_OK(tide_sysio_fsync_dir("/x", &err), &err);
	CHECK_EQ_I64(tide_sysio_fsync_dir("/no such directory/x", &err), -1);
	CHECK_ERR(&err, TIDE_E_IO, "Could not open '/no such directory': No such file or directory");
}

int main(void)
{
	UNIT_RUN(test_open);
	UNIT_RUN(test_pread_pwrite);
	UNIT_RUN(test_read_stream);
	UNIT_RUN(test_size);
	UNIT_RUN(test_extent);
	UNIT_RUN(test_zero);
	UNIT_RUN(test_is_zero);
	UNIT_RUN(test_staged);
	UNIT_RUN(test_staged_release);
	UNIT_RUN(test_staged_killed);
	UNIT_RUN(test_staged_errors);
	UNIT_RUN(test_staged_names);
	UNIT_RUN(test_staged_sync_fails);
	UNIT_RUN(test_fsync_dir);
	return unit_done();
}
