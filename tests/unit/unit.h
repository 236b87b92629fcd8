/*
 * A test harness of one header: test functions, checks, TAP.
 *
 *     static void test_adds(void)
 *     {
 *             for (size_t i = 0; i < TIDE_ARRAY_SIZE(rows); i++) {
 *                     UNIT_ROW("%s", rows[i].name);           // shown with a failure
 *                     CHECK_EQ_U64(add(rows[i].a, rows[i].b), rows[i].sum);
 *             }
 *     }
 *
 *     int main(void)
 *     {
 *             UNIT_RUN(test_adds);
 *             return unit_done();
 *     }
 *
 * A failed check reports its place and its values, and the test continues; each check is also an
 * expression, true if it held, for tests that cannot continue.  Each test prints one TAP line.
 * unit_done plants a failure and checks that it is counted.
 */
#ifndef TIDE_UNIT_H
#define TIDE_UNIT_H

#include <errno.h>
#include <ftw.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/compiler.h"
#include "tidemark.h"

static struct {
	unsigned tests, failed_tests, failed_checks; /* failed_checks: of the test that runs */
	bool quiet;
	char row[256], skip[256], dir[4096];
} unit_state;

#define UNIT_RUN(fn)  unit_run(#fn, fn)
#define UNIT_ROW(...) ((void)snprintf(unit_state.row, sizeof(unit_state.row), __VA_ARGS__))
/* Ends the test function; the checks so far still count. */
#define UNIT_SKIP(...)                                                           \
	do {                                                                     \
		snprintf(unit_state.skip, sizeof(unit_state.skip), __VA_ARGS__); \
		return;                                                          \
	} while (0)

#define CHECK(cond)          unit_check(__FILE__, __LINE__, (cond), "%s", #cond)
#define CHECK_EQ_U64(a, b)   unit_eq_u64(__FILE__, __LINE__, #a, #b, (a), (b))
#define CHECK_EQ_I64(a, b)   unit_eq_i64(__FILE__, __LINE__, #a, #b, (a), (b))
#define CHECK_STR(a, b)      unit_str(__FILE__, __LINE__, #a, #b, (a), (b))
#define CHECK_MEM(a, b, len) unit_mem(__FILE__, __LINE__, #a, #b, (a), (b), (len))
/* The call succeeded (is 0, or not NULL): else the error's text is shown.  Releases the error. */
#define CHECK_OK(call, err)  unit_ok(__FILE__, __LINE__, #call, (call) == 0, (err))
#define CHECK_PTR(call, err) unit_ok(__FILE__, __LINE__, #call, (call) != NULL, (err))
/* The error has this code and this text (NULL: any).  Releases the error. */
#define CHECK_ERR(err, code, text) unit_err(__FILE__, __LINE__, (err), (code), (text))

static inline TIDE_PRINTF(4, 5) bool unit_check(const char *file, int line, bool held, const char *fmt, ...)
{
	va_list ap;

	if (held)
		return true;
	unit_state.failed_checks++;
	if (unit_state.quiet)
		return false;
	printf("# %s:%d: ", file, line);
	if (unit_state.row[0])
		printf("[%s] ", unit_state.row);
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	printf("\n");
	return false;
}

static inline bool unit_eq_u64(const char *file, int line, const char *as, const char *bs, uint64_t a, uint64_t b)
{
	return unit_check(file, line, a == b, "%s is %" PRIu64 " (0x%" PRIx64 "), %s is %" PRIu64 " (0x%" PRIx64 ")",
	                  as, a, a, bs, b, b);
}

static inline bool unit_eq_i64(const char *file, int line, const char *as, const char *bs, int64_t a, int64_t b)
{
	return unit_check(file, line, a == b, "%s is %" PRIi64 ", %s is %" PRIi64, as, a, bs, b);
}

static inline bool unit_str(const char *file, int line, const char *as, const char *bs, const char *a, const char *b)
{
	bool held = a == b || (a && b && strcmp(a, b) == 0);

	return unit_check(file, line, held, "%s is <%s>, %s is <%s>", as, a ? a : "NULL", bs, b ? b : "NULL");
}

static inline bool unit_mem(const char *file, int line, const char *as, const char *bs, const void *a, const void *b,
                            size_t len)
{
	const uint8_t *x = a, *y = b;
	size_t i = 0;

	while (i < len && x[i] == y[i])
		i++;
	return unit_check(file, line, i == len, "%s and %s differ at byte %zu of %zu: 0x%02x, 0x%02x", as, bs, i, len,
	                  i < len ? x[i] : 0, i < len ? y[i] : 0);
}

static inline bool unit_ok(const char *file, int line, const char *call, bool held, struct tide_error *err)
{
	held = unit_check(file, line, held && err->code == TIDE_E_NONE, "%s: code %d: %s", call, (int)err->code,
	                  err->msg ? err->msg : "(no error set)");
	tide_error_release(err);
	return held;
}

static inline bool unit_err(const char *file, int line, struct tide_error *err, enum tide_code code, const char *text)
{
	bool held = unit_check(file, line, err->code == code, "error code is %d (%s), not %d", (int)err->code,
	                       err->msg ? err->msg : "no error", (int)code);

	if (text)
		held &= unit_str(file, line, "message", "expected", err->msg, text);
	tide_error_release(err);
	return held;
}

static inline void unit_run(const char *name, void (*fn)(void))
{
	unit_state.failed_checks = 0;
	unit_state.row[0] = unit_state.skip[0] = '\0';
	fn();
	unit_state.tests++;
	if (unit_state.failed_checks > 0)
		unit_state.failed_tests++;
	printf("%s %u - %s%s%s\n", unit_state.failed_checks > 0 ? "not ok" : "ok", unit_state.tests, name,
	       unit_state.skip[0] ? " # SKIP " : "", unit_state.skip);
	fflush(stdout);
}

static inline int unit_rm(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	return remove(path);
}

static inline void unit_rmdir(void)
{
	if (unit_state.dir[0])
		nftw(unit_state.dir, unit_rm, 16, FTW_DEPTH | FTW_PHYS);
	unit_state.dir[0] = '\0';
}

/* The program's own temporary directory, made at the first call and removed at exit. */
static inline const char *unit_dir(void)
{
	const char *tmp = getenv("TMPDIR");

	if (unit_state.dir[0])
		return unit_state.dir;
	snprintf(unit_state.dir, sizeof(unit_state.dir), "%s/tidemark-unit.XXXXXX", tmp && *tmp ? tmp : "/tmp");
	if (!mkdtemp(unit_state.dir)) {
		printf("Bail out! mkdtemp %s: %s\n", unit_state.dir, strerror(errno));
		unit_state.dir[0] = '\0';
		exit(1);
	}
	atexit(unit_rmdir);
	return unit_state.dir;
}

/* A path in unit_dir; one of a few static buffers. */
static inline const char *unit_path(const char *name)
{
	static char paths[8][4400];
	static unsigned next;
	char *path = paths[next++ % TIDE_ARRAY_SIZE(paths)];

	snprintf(path, sizeof(paths[0]), "%s/%s", unit_dir(), name);
	return path;
}

static inline void unit_planted(void)
{
	static const uint8_t a[2] = { 1, 2 }, b[2] = { 1, 3 };
	struct tide_error err = TIDE_ERROR_INIT;

	CHECK(false);
	CHECK_EQ_U64(1, 2);
	CHECK_EQ_I64(-1, 1);
	CHECK_STR("a", "b");
	CHECK_STR(NULL, "b");
	CHECK_MEM(a, b, 2);
	CHECK_OK(-1, &err);
	CHECK_PTR((void *)NULL, &err);
	CHECK_ERR(&err, TIDE_E_IO, NULL);
}

/* Prints the plan; the exit status. */
static inline int unit_done(void)
{
	unit_state.quiet = true;
	unit_state.failed_checks = 0;
	unit_planted();
	bool detects = unit_state.failed_checks == 9;
	unit_state.tests++;
	unit_state.failed_tests += !detects;
	printf("%s %u - a planted failure is detected\n", detects ? "ok" : "not ok", unit_state.tests);
	printf("1..%u\n", unit_state.tests);
	return unit_state.failed_tests > 0;
}

#endif
