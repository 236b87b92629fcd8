/*
 * Changes the bitmaps inside an image, as a test's standard input says, a word list a line:
 *
 *     put NAME GRANULARITY FLAGS keep INDEX
 *     put NAME GRANULARITY FLAGS OFF+LEN...    dirty ranges; FLAGS: letters of i (in use), a (auto), or -
 *     stage | commit | abort                   what was put so far; commit stages, too, unless it is
 *     switch                                   makes the staged switch without commit, and ends
 *     write OFF LEN BYTE                       of the disk
 *     lock | unlock                            a writer's locks, which changes need
 *
 *     image-bitmaps IMAGE
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "base/mem.h"
#include "image/image.h"

#define PUT_MAX 70000u

static struct tide_driver_bitmap_put *put;
static size_t n_put;
static bool staged;
static struct tide_driver_switch sw;

static void forget(void)
{
	for (size_t i = 0; i < n_put; i++) {
		free((char *)put[i].name);
		tide_bitmap_free((struct tide_bitmap *)put[i].contents);
	}
	n_put = 0;
}

static const char *word(void)
{
	const char *w = strtok(NULL, " ");

	return w ? w : "";
}

static uint64_t number(const char *text)
{
	return strtoull(text, NULL, 0);
}

static int read_ranges(struct tide_bitmap *bm, const char *w, struct tide_error *err)
{
	for (; *w; w = word()) {
		char *plus;
		uint64_t off = strtoull(w, &plus, 0);

		if (*plus != '+' || tide_bitmap_set(bm, off, number(plus + 1), err) < 0)
			return tide_error_set(err, TIDE_E_REFUSED, "range '%s'", w);
	}
	return 0;
}

static int read_put(struct tide_image *image, struct tide_error *err)
{
	struct tide_driver_bitmap_put *p = &put[n_put];
	const char *flags, *w;

	if (n_put == PUT_MAX)
		return tide_error_set(err, TIDE_E_REFUSED, "too many");
	*p = (struct tide_driver_bitmap_put){ .name = tide_mem_strdup(word(), err) };
	n_put++;
	p->granularity = number(word());
	flags = word();
	p->in_use = strchr(flags, 'i');
	p->enabled = strchr(flags, 'a');
	w = word();
	p->keep = !strcmp(w, "keep");
	if (p->keep) {
		p->index = number(word());
		return 0;
	}
	struct tide_bitmap *bm = tide_bitmap_new(tide_image_size(image), p->granularity, NULL);
	p->contents = bm;
	/* A granularity that no bitmap can have is for the image to refuse. */
	return bm ? read_ranges(bm, w, err) : 0;
}

static int stage(struct tide_image *image, struct tide_error *err)
{
	if (staged)
		return 0;
	staged = tide_image_stage_bitmaps(image, put, n_put, &sw, err) == 0;
	forget();
	return staged ? 0 : -1;
}

static int make_switch(struct tide_image *image, struct tide_error *err)
{
	if (stage(image, err) < 0)
		return -1;
	if (pwrite(tide_image_fd(image), sw.after, sw.len, (off_t)sw.offset) != (ssize_t)sw.len)
		return tide_error_set(err, TIDE_E_IO, "pwrite");
	exit(0);
}

static int write_disk(struct tide_image *image, struct tide_error *err)
{
	uint64_t off = number(word()), len = number(word());
	TIDE_AUTOFREE void *buf = tide_mem_alloc(len, 1, err);

	if (!buf)
		return -1;
	memset(buf, (int)number(word()), len);
	return tide_image_write(image, buf, off, len, err);
}

static int run_line(struct tide_image *image, char *line, struct tide_error *err)
{
	const char *verb = strtok(line, " \n");

	if (!verb || !strcmp(verb, "put"))
		return verb ? read_put(image, err) : 0;
	if (!strcmp(verb, "stage"))
		return stage(image, err);
	if (!strcmp(verb, "switch"))
		return make_switch(image, err);
	if (!strcmp(verb, "write"))
		return write_disk(image, err);
	if (!strcmp(verb, "lock"))
		return tide_image_lock_write(image, err);
	if (!strcmp(verb, "unlock")) {
		tide_image_unlock_write(image);
		return 0;
	}
	if (!strcmp(verb, "abort")) {
		tide_image_abort_bitmaps(image);
		staged = false;
		return 0;
	}
	if (strcmp(verb, "commit") != 0)
		return tide_error_set(err, TIDE_E_REFUSED, "unknown: %s", verb);
	if (stage(image, err) < 0)
		return -1;
	staged = false;
	return tide_image_commit_bitmaps(image, err);
}

static int run(const char *path, struct tide_error *err)
{
	struct tide_image_options options = { .path = path, .write_later = true, .records_bitmaps = true };
	TIDE_AUTOIMAGE struct tide_image *image = NULL;
	TIDE_AUTOFREE char *line = NULL;
	size_t cap = 0;
	ssize_t len;

	if (tide_image_open(&options, &image, err) < 0)
		return -1;
	while ((len = getline(&line, &cap, stdin)) > 0) {
		line[strcspn(line, "\n")] = '\0';
		if (run_line(image, line, err) < 0)
			return -1;
	}
	return tide_image_flush(image, err);
}

int main(int argc, char **argv)
{
	struct tide_error err = TIDE_ERROR_INIT;
	int rc;

	put = calloc(PUT_MAX, sizeof(*put));
	if (argc != 2 || !put)
		return 2;
	rc = run(argv[1], &err);
	if (rc < 0)
		fprintf(stderr, "%s\n", err.msg);
	tide_error_release(&err);
	forget();
	free(put);
	return rc < 0;
}
