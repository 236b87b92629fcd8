/*
 * Writes to an image through struct tide_tracker, as standard input says, a command a line:
 *
 *     write OFF LEN BYTE
 *     flush
 *     begin FILE    starts a flush in another thread, and waits until FILE exists
 *     end FILE      creates FILE, and waits for that flush
 *
 *     tracker IMAGE SIDECAR
 *
 * At the end of the input it closes the tracker.  A request that fails is reported on standard output.
 */
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tidemark.h"

static struct tide_tracker *tracker;
static pthread_t thread;

static void report(const char *what, int rc, struct tide_error *err)
{
	if (rc < 0)
		printf("%s: %s\n", what, err->msg);
	tide_error_release(err);
}

static void *flush(void *data)
{
	struct tide_error err = TIDE_ERROR_INIT;

	report("flush", tide_tracker_flush(tracker, &err), &err);
	return data;
}

static void write_disk(uint64_t off, uint64_t len, int byte)
{
	struct tide_error err = TIDE_ERROR_INIT;
	void *buf = malloc(len);

	if (!buf)
		exit(2);
	memset(buf, byte, len);
	report("write", tide_tracker_write(tracker, buf, off, len, 0, &err), &err);
	free(buf);
}

static void await(const char *path)
{
	for (int i = 0; access(path, F_OK) < 0; i++) {
		if (i == 1000)
			exit(2);
		usleep(10000);
	}
}

static void run_line(char *line)
{
	char *verb = strtok(line, " \n"), *words[3];

	for (int i = 0; i < 3; i++)
		words[i] = strtok(NULL, " \n");
	if (!strcmp(verb, "write") && words[2]) {
		write_disk(strtoull(words[0], NULL, 0), strtoull(words[1], NULL, 0), atoi(words[2]));
	} else if (!strcmp(verb, "flush")) {
		flush(NULL);
	} else if (!strcmp(verb, "begin") && words[0]) {
		if (pthread_create(&thread, NULL, flush, NULL))
			exit(2);
		await(words[0]);
	} else if (!strcmp(verb, "end") && words[0]) {
		close(open(words[0], O_CREAT | O_WRONLY, 0600));
		pthread_join(thread, NULL);
	} else {
		exit(2);
	}
}

int main(int argc, char **argv)
{
	struct tide_tracker_options options = { .read_only = false };
	struct tide_drive drive = { .path = argv[1], .sidecar = argc == 3 ? argv[2] : NULL };
	struct tide_error err = TIDE_ERROR_INIT;
	char line[256];

	if (argc != 3 || tide_tracker_open(&drive, &options, &tracker, &err) < 0) {
		fprintf(stderr, "%s\n", err.msg ? err.msg : "usage: tracker IMAGE SIDECAR");
		return 2;
	}
	while (fgets(line, sizeof(line), stdin))
		run_line(line);
	report("close", tide_tracker_close(tracker, &err), &err);
	return 0;
}
