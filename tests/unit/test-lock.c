#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>

#include "base/lock.h"
#include "base/sysio.h"
#include "unit.h"

enum { CR = TIDE_PERM_CONSISTENT_READ, W = TIDE_PERM_WRITE, WU = TIDE_PERM_WRITE_UNCHANGED, RS = TIDE_PERM_RESIZE };

static const char *image(void)
{
	const char *path = unit_path("image");
	int fd = open(path, O_RDWR | O_CREAT, 0600);

	CHECK(fd >= 0 && ftruncate(fd, 1 << 20) == 0);
	close(fd);
	return path;
}

static int open_image(int flags)
{
	return tide_sysio_open(image(), flags, NULL);
}

/* How many locks any process has on the file. */
static int count_locks(int fd)
{
	static const int bases[] = { 100, 200 };
	int n = 0;

	for (int i = 0; i < 8; i++) {
		struct flock fl = { .l_type = F_WRLCK, .l_start = bases[i / 4] + i % 4, .l_len = 1 };
		CHECK(fcntl(fd, F_OFD_GETLK, &fl) == 0);
		n += fl.l_type != F_UNLCK;
	}
	return n;
}

static void test_conflicts(void)
{
	static const struct {
		unsigned held1, unshared1, held2, unshared2;
		const char *error; /* NULL: both get it */
	} rows[] = {
		{ TIDE_LOCK_READ_HELD, TIDE_LOCK_READ_UNSHARED, TIDE_LOCK_READ_HELD, TIDE_LOCK_READ_UNSHARED, NULL },
		{ TIDE_LOCK_WRITE_HELD, TIDE_LOCK_WRITE_UNSHARED, TIDE_LOCK_READ_HELD, TIDE_LOCK_READ_UNSHARED,
		  "Failed to get shared \"write\" lock" },
		{ TIDE_LOCK_READ_HELD, TIDE_LOCK_READ_UNSHARED, TIDE_LOCK_WRITE_HELD, TIDE_LOCK_WRITE_UNSHARED,
		  "Failed to get \"write\" lock" },
		{ TIDE_LOCK_WRITE_HELD, TIDE_LOCK_WRITE_UNSHARED, TIDE_LOCK_WRITE_HELD, TIDE_LOCK_WRITE_UNSHARED,
		  "Failed to get \"write\" lock" },
		{ TIDE_LOCK_WRITE_HELD, TIDE_LOCK_WRITE_UNSHARED, CR, 0, NULL },
		{ 0, CR, CR, 0, "Failed to get \"consistent read\" lock" },
		{ CR, 0, 0, CR, "Failed to get shared \"consistent read\" lock" },
		{ 0, WU, WU, 0, "Failed to get \"write unchanged\" lock" },
		{ WU, 0, 0, WU, "Failed to get shared \"write unchanged\" lock" },
		{ 0, RS, RS, 0, "Failed to get \"resize\" lock" },
		{ RS, 0, 0, RS, "Failed to get shared \"resize\" lock" },
		{ 0, W | RS, RS | W, 0, "Failed to get \"write\" lock" },
		{ CR, W, CR, RS, NULL },
		{ 0, 0, 15, 15, NULL },
	};
	struct tide_error err = TIDE_ERROR_INIT;

	for (size_t i = 0; i < TIDE_ARRAY_SIZE(rows); i++) {
		int one TIDE_AUTOCLOSE = open_image(O_RDONLY), two TIDE_AUTOCLOSE = open_image(O_RDONLY);
		int witness TIDE_AUTOCLOSE = open_image(O_RDONLY);
		UNIT_ROW("row %zu", i);
		CHECK_OK(tide_lock_acquire(one, rows[i].held1, rows[i].unshared1, "image", &err), &err);
		int before = count_locks(witness);
		CHECK_EQ_I64(before, __builtin_popcount(rows[i].held1) + __builtin_popcount(rows[i].unshared1));
		int ret = tide_lock_acquire(two, rows[i].held2, rows[i].unshared2, "image", &err);
		if (!rows[i].error) {
			CHECK_OK(ret, &err);
			continue;
		}
		CHECK_EQ_I64(ret, -1);
		CHECK_STR(err.hint, "Is another process using the image [image]?");
		CHECK_ERR(&err, TIDE_E_LOCKED, rows[i].error);
		tide_sysio_close(one);
		one = -1;
		CHECK_EQ_I64(count_locks(witness), 0);
		CHECK_OK(tide_lock_acquire(two, rows[i].held2, rows[i].unshared2, "image", &err), &err);
	}
}

static void test_errors(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	int two TIDE_AUTOCLOSE = open_image(O_RDWR), one TIDE_AUTOCLOSE = open_image(O_RDWR);
	struct flock fl = { .l_type = F_WRLCK, .l_start = 101, .l_len = 1 };

	CHECK_EQ_I64(tide_lock_acquire(-1, CR, 0, "image", &err), -1);
	CHECK_EQ_I64(err.sys, EBADF);
	CHECK_ERR(&err, TIDE_E_IO, "Failed to lock byte 100: Bad file descriptor");
	CHECK(fcntl(one, F_OFD_SETLK, &fl) == 0);
	CHECK_EQ_I64(tide_lock_acquire(two, CR | W, 0, "image", &err), -1);
	CHECK(err.hint != NULL);
	CHECK_ERR(&err, TIDE_E_LOCKED, "Failed to lock byte 101");
	CHECK_EQ_I64(count_locks(one), 0);
}

/* Starts a program with its output in a file; its standard input is the pipe that comes back. */
static pid_t start(char *const argv[], const char *output, int *input)
{
	int ends[2];

	if (!CHECK(pipe2(ends, O_CLOEXEC) == 0))
		return -1;
	unlink(output);
	pid_t pid = fork();
	if (pid == 0) {
		int out = open(output, O_WRONLY | O_CREAT | O_TRUNC, 0600);
		dup2(ends[0], 0);
		dup2(out, 1);
		dup2(out, 2);
		execvp(argv[0], argv);
		_exit(127);
	}
	close(ends[0]);
	*input = ends[1];
	return pid;
}

static bool has_qemu(void)
{
	return system("qemu-io --version >/dev/null 2>&1 && qemu-img --version >/dev/null 2>&1") == 0;
}

/* An image of this format; to qemu-io a raw one is shared, a qcow2 is not. */
static const char *format_image(const char *format)
{
	const char *path = unit_path(format);
	char command[5000];

	snprintf(command, sizeof(command), "qemu-img create -q -f %s '%s' 1M", format, path);
	CHECK(system(command) == 0);
	return path;
}

/* A real QEMU refuses what is locked here. */
static void test_qemu_refuses(void)
{
	static const struct {
		unsigned held, unshared;
		const char *format, *mode, *error; /* NULL: it opens */
	} rows[] = {
		{ TIDE_LOCK_READ_HELD, TIDE_LOCK_READ_UNSHARED, "qcow2", "-r", NULL },
		{ TIDE_LOCK_READ_HELD, TIDE_LOCK_READ_UNSHARED, "qcow2", "-n", "Failed to get \"write\" lock" },
		{ TIDE_LOCK_READ_HELD, TIDE_LOCK_READ_UNSHARED, "raw", "-n", "Failed to get \"write\" lock" },
		{ TIDE_LOCK_WRITE_HELD, TIDE_LOCK_WRITE_UNSHARED, "qcow2", "-r",
		  "Failed to get shared \"write\" lock" },
		{ TIDE_LOCK_WRITE_HELD, TIDE_LOCK_WRITE_UNSHARED, "qcow2", "-n", "Failed to get \"write\" lock" },
		{ TIDE_LOCK_WRITE_HELD, TIDE_LOCK_WRITE_UNSHARED, "raw", "-n", "Failed to get \"write\" lock" },
	};
	struct tide_error err = TIDE_ERROR_INIT;

	if (!has_qemu())
		UNIT_SKIP("no qemu-io or qemu-img");
	for (size_t i = 0; i < TIDE_ARRAY_SIZE(rows); i++) {
		const char *path = format_image(rows[i].format);
		char *argv[] = { "qemu-io", "-f",         (char *)rows[i].format, (char *)rows[i].mode,
			         "-c",      "read 0 512", (char *)path,           NULL };
		const char *output = unit_path("output");
		char text[4096] = "";
		int input = -1;
		UNIT_ROW("row %zu", i);
		int fd TIDE_AUTOCLOSE = tide_sysio_open(path, O_RDONLY, &err);
		CHECK_OK(tide_lock_acquire(fd, rows[i].held, rows[i].unshared, "image", &err), &err);
		pid_t pid = start(argv, output, &input);
		close(input);
		waitpid(pid, NULL, 0);
		int out TIDE_AUTOCLOSE = tide_sysio_open(output, O_RDONLY, &err);
		CHECK(tide_sysio_read(out, text, sizeof(text) - 1, &err) > 0);
		if (!CHECK(strstr(text, rows[i].error ? rows[i].error : "read 512/512 bytes")))
			printf("# qemu-io: %s\n", text);
	}
}

/* qemu-io asks for commands once it has opened the image. */
static bool await_prompt(const char *output)
{
	char text[256];

	for (int t = 0; t < 3000; t++) {
		int fd TIDE_AUTOCLOSE = tide_sysio_open(output, O_RDONLY, NULL);
		ssize_t n = fd < 0 ? -1 : tide_sysio_read(fd, text, sizeof(text) - 1, NULL);
		text[TIDE_MAX(n, 0)] = '\0';
		if (strstr(text, "qemu-io>"))
			return true;
		usleep(10000);
	}
	return false;
}

/* What a real QEMU has open is refused here, with the process named. */
static void test_refuses_qemu(void)
{
	static const struct {
		const char *format, *mode;
		unsigned held, unshared;
		const char *error; /* NULL: granted */
	} rows[] = {
		{ "qcow2", "-r", TIDE_LOCK_READ_HELD, TIDE_LOCK_READ_UNSHARED, NULL },
		{ "qcow2", "-r", TIDE_LOCK_WRITE_HELD, TIDE_LOCK_WRITE_UNSHARED, "Failed to get \"write\" lock" },
		{ "qcow2", "-n", TIDE_LOCK_READ_HELD, TIDE_LOCK_READ_UNSHARED, "Failed to get shared \"write\" lock" },
		{ "qcow2", "-n", TIDE_LOCK_WRITE_HELD, TIDE_LOCK_WRITE_UNSHARED, "Failed to get \"write\" lock" },
		{ "raw", "-n", TIDE_LOCK_READ_HELD, TIDE_LOCK_READ_UNSHARED, "Failed to get shared \"write\" lock" },
		{ "raw", "-n", TIDE_LOCK_WRITE_HELD, TIDE_LOCK_WRITE_UNSHARED, "Failed to get shared \"write\" lock" },
	};
	struct tide_error err = TIDE_ERROR_INIT;

	if (!has_qemu())
		UNIT_SKIP("no qemu-io or qemu-img");
	for (size_t i = 0; i < TIDE_ARRAY_SIZE(rows); i++) {
		const char *path = format_image(rows[i].format);
		char *argv[] = { "qemu-io", "-f", (char *)rows[i].format, (char *)rows[i].mode, (char *)path, NULL };
		char who[64];
		int input = -1;
		UNIT_ROW("row %zu", i);
		const char *output = unit_path("output");
		pid_t pid = start(argv, output, &input);
		int fd TIDE_AUTOCLOSE = tide_sysio_open(path, O_RDONLY, &err);
		CHECK(await_prompt(output));
		int ret = tide_lock_acquire(fd, rows[i].held, rows[i].unshared, "image", &err);
		if (rows[i].error) {
			snprintf(who, sizeof(who), "Process %d (qemu-io) is.", (int)pid);
			CHECK_EQ_I64(ret, -1);
			if (!CHECK(err.hint && strstr(err.hint, who)))
				printf("# hint: %s\n", err.hint ? err.hint : "none");
			CHECK_ERR(&err, TIDE_E_LOCKED, rows[i].error);
		} else {
			CHECK_OK(ret, &err);
		}
		close(input);
		waitpid(pid, NULL, 0);
	}
}

static void *close_soon(void *fd)
{
	nanosleep(&(struct timespec){ .tv_nsec = 100 * 1000000 }, NULL);
	close(*(int *)fd);
	return NULL;
}

/* A reader becomes a writer once it is the only one, and a reader again. */
static void test_raise(void)
{
	int a TIDE_AUTOCLOSE = open_image(O_RDWR), b = open_image(O_RDONLY), c TIDE_AUTOCLOSE = open_image(O_RDONLY);
	struct tide_error err = TIDE_ERROR_INIT;
	pthread_t thread;

	CHECK_OK(tide_lock_acquire(a, TIDE_LOCK_READ_HELD, TIDE_LOCK_READ_UNSHARED, "image", &err), &err);
	CHECK_OK(tide_lock_acquire(b, TIDE_LOCK_READ_HELD, TIDE_LOCK_READ_UNSHARED, "image", &err), &err);
	CHECK_EQ_I64(tide_lock_raise(a, W, 20, NULL, "image", &err), -1);
	CHECK(err.hint != NULL);
	CHECK_ERR(&err, TIDE_E_LOCKED, "Failed to get \"write\" lock");
	/* What it had it has, and no more: another reader may come. */
	CHECK_EQ_I64(count_locks(c), 3);
	CHECK_OK(tide_lock_acquire(c, TIDE_LOCK_READ_HELD, TIDE_LOCK_READ_UNSHARED, "image", &err), &err);
	close(c);
	c = open_image(O_RDONLY);
	CHECK_EQ_I64(pthread_create(&thread, NULL, close_soon, &b), 0);
	CHECK_OK(tide_lock_raise(a, W, 60000, NULL, "image", &err), &err);
	pthread_join(thread, NULL);
	CHECK_EQ_I64(tide_lock_acquire(c, TIDE_LOCK_READ_HELD, TIDE_LOCK_READ_UNSHARED, "image", &err), -1);
	CHECK_ERR(&err, TIDE_E_LOCKED, "Failed to get shared \"write\" lock");
	tide_lock_lower(a, W);
	CHECK_OK(tide_lock_acquire(c, TIDE_LOCK_READ_HELD, TIDE_LOCK_READ_UNSHARED, "image", &err), &err);
}

static void test_tokens(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	int one TIDE_AUTOCLOSE = open_image(O_RDONLY), two TIDE_AUTOCLOSE = open_image(O_RDONLY);
	uint64_t a = 0, b = 0;

	CHECK_OK(tide_lock_token_new(&a, &err), &err);
	CHECK_OK(tide_lock_token_new(&b, &err), &err);
	CHECK(a != 0 && b != 0 && a != b && a <= TIDE_LOCK_TOKEN_MAX && b <= TIDE_LOCK_TOKEN_MAX);
	const uint64_t tokens[] = { a, 1, TIDE_LOCK_TOKEN_MAX };
	for (size_t i = 0; i < TIDE_ARRAY_SIZE(tokens); i++) {
		UNIT_ROW("token %" PRIu64, tokens[i]);
		CHECK_EQ_I64(tide_lock_token_is_held(two, tokens[i], &err), 0);
		CHECK_OK(tide_lock_token_hold(one, tokens[i], &err), &err);
		CHECK_EQ_I64(tide_lock_token_is_held(two, tokens[i], &err), 1);
		CHECK_EQ_I64(tide_lock_token_is_held(one, tokens[i], &err), 0); /* one's own */
		CHECK_EQ_I64(tide_lock_token_is_held(two, tokens[i] ^ 2, &err), 0);
		tide_lock_token_drop(one, tokens[i]);
		CHECK_EQ_I64(tide_lock_token_is_held(two, tokens[i], &err), 0);
	}
	CHECK_EQ_I64(tide_lock_token_is_held(-1, 1, &err), 0); /* there is no file that could be locked */
	CHECK_EQ_I64(tide_lock_token_is_held(1 << 20, 1, &err), -1);
	CHECK_ERR(&err, TIDE_E_IO, NULL);
	CHECK_EQ_I64(tide_lock_token_hold(-1, 1, &err), -1);
	CHECK_ERR(&err, TIDE_E_IO, NULL);
}

/* A token dies with its process, however that ends. */
static void test_token_of_the_dead(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	int fd TIDE_AUTOCLOSE = open_image(O_RDONLY);
	const char *path = image();
	int ready[2];
	char c;

	if (!CHECK(pipe(ready) == 0))
		return;
	pid_t pid = fork();
	if (pid == 0) {
		int own = open(path, O_RDONLY);
		if (tide_lock_token_hold(own, 42, NULL) == 0 && write(ready[1], "x", 1) == 1)
			pause();
		_exit(1);
	}
	CHECK(read(ready[0], &c, 1) == 1);
	CHECK_EQ_I64(tide_lock_token_is_held(fd, 42, &err), 1);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	CHECK_EQ_I64(tide_lock_token_is_held(fd, 42, &err), 0);
	close(ready[0]);
	close(ready[1]);
}

static uint64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

static void test_exclusive(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	int one = open_image(O_RDWR), two TIDE_AUTOCLOSE = open_image(O_RDWR);
	int reader TIDE_AUTOCLOSE = open_image(O_RDONLY);

	CHECK_OK(tide_lock_token_hold(reader, 7, &err), &err);
	CHECK_OK(tide_lock_exclusive(one, 0, NULL, &err), &err);
	CHECK_EQ_I64(tide_lock_exclusive(two, 0, NULL, &err), -1);
	CHECK_ERR(&err, TIDE_E_LOCKED, "The file is being changed by another process");
	uint64_t start = now_ms();
	CHECK_EQ_I64(tide_lock_exclusive(two, 120, NULL, &err), -1);
	CHECK_ERR(&err, TIDE_E_LOCKED, NULL);
	CHECK(now_ms() - start >= 120 && now_ms() - start < 5000);
	/* Who was cancelled before waits for a moment; whoever waits already ends at once (signals.bats). */
	atomic_bool cancelled = true;
	start = now_ms();
	CHECK_EQ_I64(tide_lock_exclusive(two, 20000, &cancelled, &err), -1);
	CHECK_ERR(&err, TIDE_E_LOCKED, NULL);
	CHECK(now_ms() - start >= 100 && now_ms() - start < 10000);
	/* Given up meanwhile, it is had before the time is over. */
	pid_t pid = fork();
	if (pid == 0) {
		usleep(100000);
		_exit(0); /* the child's copy of `one` is the last */
	}
	close(one);
	start = now_ms();
	CHECK_OK(tide_lock_exclusive(two, 20000, NULL, &err), &err);
	CHECK(now_ms() - start < 10000);
	waitpid(pid, NULL, 0);
	CHECK_EQ_I64(tide_lock_exclusive(reader, 1000, NULL, &err), -1);
	CHECK_EQ_I64(err.sys, EBADF);
	CHECK_ERR(&err, TIDE_E_IO, NULL);
}

int main(void)
{
	UNIT_RUN(test_conflicts);
	UNIT_RUN(test_errors);
	UNIT_RUN(test_qemu_refuses);
	UNIT_RUN(test_refuses_qemu);
	UNIT_RUN(test_raise);
	UNIT_RUN(test_tokens);
	UNIT_RUN(test_token_of_the_dead);
	UNIT_RUN(test_exclusive);
	return unit_done();
}
