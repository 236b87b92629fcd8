/*
 * Reads lists of ranges that other programs print: finds the format, by name or by the first line,
 * and collects the ranges with their limits checked (ranges.h). The shared helpers for words, lines
 * and block numbers are here, too.
 */
#include "ranges.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/mem.h"
#include "base/range.h"
#include "base/sized.h"
#include "base/sysio.h"

/* Far more than any real list; keeps a wrong file from filling the memory. */
#define MAX_INPUT  ((size_t)256 << 20)
#define FIRST_READ ((size_t)64 << 10)

void tide_range_list_free(struct tide_range_list *list)
{
	if (!list)
		return;
	free(list->ranges);
	free(list);
}

static void free_list(struct tide_range_list **list)
{
	tide_range_list_free(*list);
}

/* ---- collecting -------------------------------------------------------------------- */

int tide_ranges_skip(struct tide_ranges_collector *c, uint64_t off, uint64_t len, struct tide_error *err)
{
	if (!tide_range_is_within(off, len, INT64_MAX))
		return tide_error_set(err, TIDE_E_REFUSED, "%" PRIu64 " bytes at %" PRIu64 " reach beyond 2^63 - 1",
		                      len, off);
	if (c->goes_through)
		c->list->covers = TIDE_MAX(c->list->covers, off + len);
	return 0;
}

int tide_ranges_collect(struct tide_ranges_collector *c, uint64_t off, uint64_t len, struct tide_error *err)
{
	struct tide_range_list *list = c->list;

	if (tide_ranges_skip(c, off, len, err) < 0)
		return -1;
	if (len == 0)
		return 0;
	if (list->n == c->cap) {
		size_t cap = c->cap ? c->cap * 2 : 64;
		struct tide_range *ranges = tide_mem_realloc(list->ranges, cap, sizeof(*ranges), err);
		if (!ranges)
			return -1;
		list->ranges = ranges;
		c->cap = cap;
	}
	list->ranges[list->n++] = (struct tide_range){ off, len };
	return 0;
}

int tide_ranges_collect_blocks(struct tide_ranges_collector *c, uint64_t first, uint64_t count, uint64_t unit,
                               struct tide_error *err)
{
	uint64_t off, len;

	if (__builtin_mul_overflow(first, unit, &off) || __builtin_mul_overflow(count, unit, &len))
		return tide_error_set(err, TIDE_E_REFUSED,
		                      "%" PRIu64 " blocks of %" PRIu64 " bytes from block %" PRIu64
		                      " on reach beyond 2^63 - 1",
		                      count, unit, first);
	return tide_ranges_collect(c, off, len, err);
}

bool tide_ranges_is_written(const char *description, bool *written)
{
	static const struct {
		const char *description;
		bool written;
	} known[] = {
		{ "clean", false }, { "dirty", true },      { "data", true },    { "hole", false },
		{ "zero", true },   { "hole,zero", false }, { "absent", false }, { "local", true },
	};

	for (size_t i = 0; i < TIDE_ARRAY_SIZE(known); i++) {
		if (strcmp(description, known[i].description) == 0) {
			*written = known[i].written;
			return true;
		}
	}
	*written = false;
	return strncmp(description, "backing depth ", 14) == 0;
}

/* ---- text -------------------------------------------------------------------------- */

char *tide_ranges_next_word(char **text)
{
	char *word = *text + strspn(*text, TIDE_RANGES_BLANKS);
	char *end = word + strcspn(word, TIDE_RANGES_BLANKS);

	if (word == end)
		return NULL;
	*text = *end ? end + 1 : end;
	*end = '\0';
	return word;
}

/* An error in a file is not a usage error. */
int tide_ranges_parse_size(const char *word, uint64_t *v, struct tide_error *err)
{
	if (tide_parse_size(word, v, err) == 0)
		return 0;
	if (err && err->code == TIDE_E_USAGE)
		err->code = TIDE_E_REFUSED;
	return -1;
}

int tide_ranges_each_line(struct tide_ranges_input *in, int (*fn)(void *data, char *line, struct tide_error *err),
                          void *data, struct tide_error *err)
{
	char *text = in->text, *end = text + in->len, *next;

	for (size_t n = 1 + in->dropped_lines; text < end; text = next, n++) {
		char *newline = memchr(text, '\n', (size_t)(end - text));
		char *line_end = newline ? newline : end;
		next = newline ? newline + 1 : end;
		*line_end = '\0';
		if (strlen(text) != (size_t)(line_end - text))
			tide_error_set(err, TIDE_E_REFUSED, "it holds a NUL byte");
		else if (fn(data, text, err) == 0)
			continue;
		return tide_error_wrap(err, "Line %zu", n);
	}
	return 0;
}

int tide_ranges_check_ended(const struct tide_ranges_input *in, struct tide_error *err)
{
	if (in->text[in->len - 1] == '\n')
		return 0;
	tide_error_set(err, TIDE_E_REFUSED, "The list is cut off within its last line");
	return tide_error_hint(err, "the list is incomplete: let the program that prints it finish");
}

/* ---- formats ----------------------------------------------------------------------- */

static const struct {
	const char *name;
	tide_ranges_reader *read;
} formats[] = {
	{ "ranges", tide_ranges_read_lines },
	{ "blocks", tide_ranges_read_blocks },
	{ "dump", tide_ranges_read_json },
	{ "nbdinfo", tide_ranges_read_nbdinfo },
	{ "qemu-img-map", tide_ranges_read_json },
	{ "qemu-img-map-dirty", tide_ranges_read_json },
	{ "extentlist", tide_ranges_read_extentlist },
	{ "nbdkit-log", tide_ranges_read_log },
	{ "thin-delta", tide_ranges_read_xml },
	{ "era-invalidate", tide_ranges_read_xml },
	{ "bmap", tide_ranges_read_xml },
	{ "rbd-diff", tide_ranges_read_json },
	{ "rbd-export-diff", tide_ranges_read_rbd },
	{ "imageio", tide_ranges_read_json },
};

const char *tide_ranges_format(size_t i)
{
	return i < TIDE_ARRAY_SIZE(formats) ? formats[i].name : NULL;
}

static int find_format(const char *name, size_t *found, struct tide_error *err)
{
	for (*found = 0; *found < TIDE_ARRAY_SIZE(formats); ++*found) {
		if (!strcmp(formats[*found].name, name))
			return 0;
	}
	return tide_error_set(err, TIDE_E_USAGE, "Unknown format of a list of ranges: '%s'", name);
}

/* The first line with a word in it, without comments. */
static const char *first_line(const char *text)
{
	for (const char *p = text;;) {
		p += strspn(p, TIDE_RANGES_BLANKS "\n");
		if (*p != '#')
			return p;
		p += strcspn(p, "\n");
	}
}

static tide_ranges_reader *detect(const struct tide_ranges_input *in)
{
	const char *line = first_line(in->text);

	if (*line == '[' || *line == '{')
		return tide_ranges_read_json;
	if (*line == '<')
		return tide_ranges_read_xml;
	if (tide_ranges_is_log(line))
		return tide_ranges_read_log;
	if (tide_ranges_is_nbdinfo(line))
		return tide_ranges_read_nbdinfo;
	return in->block_size ? tide_ranges_read_blocks : tide_ranges_read_lines;
}

/* ---- reading ----------------------------------------------------------------------- */

/* Reads more, up to `want` bytes in all, with a NUL after them. */
static int read_more(struct tide_ranges_input *in, size_t want, struct tide_error *err)
{
	char *bigger = tide_mem_realloc(in->text, want + 1, 1, err);

	if (!bigger)
		return -1;
	in->text = bigger;
	ssize_t n = tide_sysio_read(in->fd, in->text + in->len, want - in->len, err);
	if (n < 0)
		return -1;
	in->len += (size_t)n;
	in->text[in->len] = '\0';
	return 0;
}

static int read_all(struct tide_ranges_input *in, struct tide_error *err)
{
	for (size_t cap = FIRST_READ; in->len == cap;) {
		if (cap >= MAX_INPUT)
			return tide_error_set(err, TIDE_E_REFUSED, "The list of ranges has more than %zu bytes",
			                      MAX_INPUT);
		cap *= 2;
		if (read_more(in, cap, err) < 0)
			return -1;
	}
	return 0;
}

/*
 * Drops what is in memory, and reads more, as long as there are only blanks.  A list without a word says nothing, not
 * even that nothing was written: the program that printed it may have failed.
 */
static int skip_blanks(struct tide_ranges_input *in, struct tide_error *err)
{
	while (strspn(in->text, TIDE_RANGES_BLANKS "\n") == in->len) {
		if (in->len < FIRST_READ) {
			tide_error_set(err, TIDE_E_REFUSED,
			               in->len || in->dropped ? "The list of ranges has only blank lines"
			                                      : "The list of ranges is empty");
			return tide_error_hint(err, "if nothing was written, use [] or a comment line");
		}
		for (size_t i = 0; i < in->len; i++)
			in->dropped_lines += in->text[i] == '\n';
		in->dropped += in->len;
		in->len = 0;
		if (read_more(in, FIRST_READ, err) < 0)
			return -1;
	}
	return 0;
}

static int read_input(struct tide_ranges_input *in, struct tide_ranges_collector *c, struct tide_error *err)
{
	tide_ranges_reader *read = NULL;
	size_t i = 0;

	if (in->format && find_format(in->format, &i, err) < 0)
		return -1;
	if (in->format)
		read = formats[i].read;
	if (read_more(in, FIRST_READ, err) < 0 || skip_blanks(in, err) < 0)
		return -1;
	if (!read)
		read = tide_ranges_is_rbd(in) ? tide_ranges_read_rbd : detect(in);
	/* nbdinfo --json prints such a list. */
	if (read == tide_ranges_read_nbdinfo && in->text[strspn(in->text, TIDE_RANGES_BLANKS "\n")] == '[')
		read = tide_ranges_read_json;
	if (read != tide_ranges_read_rbd && read != tide_ranges_read_json && read_all(in, err) < 0)
		return -1;
	return read(in, c, err);
}

int tide_ranges_read_sized(int fd, const struct tide_ranges_options *options, size_t size,
                           struct tide_range_list **list, struct tide_error *err)
{
	struct tide_ranges_options own;
	struct tide_range_list *new_list TIDE_CLEANUP(free_list) = tide_mem_alloc(1, sizeof(*new_list), err);
	struct tide_ranges_input in = { .fd = fd };
	struct tide_ranges_collector c = { .list = new_list };
	int rc;

	if (!new_list || tide_sized_take(&own, sizeof(own), options, size, err) < 0)
		return -1;
	in.format = own.format;
	in.block_size = own.block_size;
	rc = read_input(&in, &c, err);
	free(in.text);
	if (rc < 0)
		return -1;
	*list = new_list;
	new_list = NULL;
	return 0;
}

int tide_ranges_read_era_dump(int fd, uint64_t *block_size, struct tide_error *err)
{
	struct tide_ranges_input in = { .fd = fd };
	int rc = -1;

	if (read_more(&in, FIRST_READ, err) == 0 && read_all(&in, err) == 0)
		rc = tide_ranges_unit_of(&in, block_size, err);
	free(in.text);
	return rc;
}
