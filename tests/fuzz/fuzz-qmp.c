/*
 * The stream of QMP commands: it arrives in pieces of any length, and runs as a dry run against two small
 * images.  Every command gets one reply, which is JSON, and the pieces make no difference to the messages.
 */
#include <fcntl.h>
#include <sys/stat.h>

#include "base/json.h"
#include "fuzz.h"
#include "request/qmp.h"

#define COMMANDS_MAX 200u

static char top[] = P_tmpdir "/tidemark-fuzz-qmp.XXXXXX";
static unsigned replies;

static void leave(void)
{
	unlink("a.img");
	unlink("b.img");
	rmdir(top);
}

/* A directory of its own, for relative names that come in the input. */
static void enter(void)
{
	static bool done;

	if (done)
		return;
	done = true;
	fuzz_must(mkdtemp(top) && chdir(top) == 0);
	for (const char *const *name = (const char *const[]){ "a.img", "b.img", NULL }; *name; name++) {
		int fd = open(*name, O_CREAT | O_RDWR | O_CLOEXEC, 0600);

		fuzz_must(fd >= 0 && ftruncate(fd, 65536) == 0);
		close(fd);
	}
	atexit(leave);
}

/* How many messages and errors a text is, and the sum of their lengths. */
static size_t count_messages(const uint8_t *data, size_t size, size_t step)
{
	struct tide_qmp_json in = { 0 };
	size_t fed = 0, sum = 0;

	for (;;) {
		struct tide_error err = TIDE_ERROR_INIT;
		struct tide_json *json = NULL;
		int rc = tide_qmp_json_next(&in, &json, &err);

		if (rc < 0)
			fuzz_failed(&err);
		tide_json_free(json);
		sum += rc > 0 ? 1 : rc < 0 ? 1000003 : 0;
		if (rc)
			continue;
		if (in.ended)
			break;
		size_t n = step && step < size - fed ? step : size - fed;

		tide_strbuf_add(&in.text, data + fed, n);
		fed += n;
		in.ended = n == 0;
	}
	tide_qmp_json_release(&in);
	return sum;
}

static int on_line(void *data, const char *line)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_json *json = tide_json_parse(line, strlen(line), &err);

	fuzz_must(json);
	replies += tide_json_member(json, "return") || tide_json_member(json, "error");
	tide_json_free(json);
	return 0;
}

static void run_stream(const uint8_t *data, size_t size)
{
	struct tide_session_options options = { .line = on_line };
	struct tide_stream_options stream_options = { .dry_run = true };
	struct tide_session *session = tide_session_new(&options, NULL);
	struct tide_drive a = { .id = "a", .path = "a.img", .format = "raw" },
	                  b = { .id = "b", .path = "b.img", .format = "raw" };
	int fd = fuzz_file(data, size, 0);
	struct tide_stream *stream;
	unsigned n = 0;
	int rc = 1;

	fuzz_must(session && tide_session_add_drive(session, &a, NULL, NULL) == 0 &&
	          tide_session_add_drive(session, &b, NULL, NULL) == 0);
	stream = tide_stream_new(session, fd, &stream_options, NULL);
	fuzz_must(stream);
	for (replies = 0; rc && n < COMMANDS_MAX; n++) {
		struct tide_error err = TIDE_ERROR_INIT;

		rc = tide_stream_next(stream, &err);
		if (rc < 0)
			fuzz_failed(&err);
		fuzz_must(replies == n + (rc != 0));
	}
	tide_stream_free(stream);
	tide_session_free(session);
	close(fd);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	enter();
	if (size > 16384)
		return 0;
	fuzz_must(count_messages(data, size, 0) == count_messages(data, size, 1 + size % 7));
	run_stream(data, size);
	return 0;
}
