/*
 * Reads lists with a range a line: words separated by blanks, and comments that begin with #. They are
 * OFFSET LENGTH, nbdinfo's four columns, nbdkit's extent lists, and block numbers.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "ranges.h"

struct lines {
	struct tide_ranges_collector *c;
	bool numbered; /* a type may be a number */
	uint64_t block_size;
};

static int parse_range(const char *offset, char **line, uint64_t *off, uint64_t *len, struct tide_error *err)
{
	char *length = tide_ranges_next_word(line);

	if (!length)
		return tide_error_set(err, TIDE_E_REFUSED, "expected OFFSET LENGTH, found '%s' alone", offset);
	if (tide_ranges_parse_size(offset, off, err) < 0)
		return -1;
	return tide_ranges_parse_size(length, len, err);
}

/* An extent list's third column: NBD's flags, 1 for a hole and 2 for zeroes, or their names. */
static int parse_type(const char *type, bool numbered, bool *written, struct tide_error *err)
{
	uint64_t flags;

	if (!type)
		*written = true;
	else if (strcmp(type, "zero,hole") == 0)
		*written = false;
	else if (strcmp(type, "hole") == 0 || strcmp(type, "zero") == 0 || strcmp(type, "hole,zero") == 0)
		tide_ranges_is_written(type, written);
	else if (!numbered)
		return tide_error_set(err, TIDE_E_REFUSED, "expected OFFSET LENGTH, found '%s' after them", type);
	else if (tide_ranges_parse_size(type, &flags, err) < 0 || flags > 3)
		return tide_error_set(err, TIDE_E_REFUSED, "unknown type '%s'", type);
	else
		*written = !(flags & 1);
	return 0;
}

static int collect_line(void *data, char *line, struct tide_error *err)
{
	struct lines *l = data;
	uint64_t off, len;
	bool written;

	line[strcspn(line, "#")] = '\0';
	char *offset = tide_ranges_next_word(&line);
	if (!offset)
		return 0;
	char *rest = line;
	tide_ranges_next_word(&rest);
	/* A line that is not a range at all is reported before one that has too many words. */
	char *type = tide_ranges_next_word(&rest);
	if (parse_type(type, l->numbered, &written, err) < 0)
		return -1;
	char *more = tide_ranges_next_word(&rest);
	if (more)
		return tide_error_set(err, TIDE_E_REFUSED, "expected OFFSET LENGTH TYPE, found '%s' after them", more);
	if (parse_range(offset, &line, &off, &len, err) < 0)
		return -1;
	return (written ? tide_ranges_collect : tide_ranges_skip)(l->c, off, len, err);
}

int tide_ranges_read_lines(struct tide_ranges_input *in, struct tide_ranges_collector *c, struct tide_error *err)
{
	struct lines l = { .c = c };

	return tide_ranges_each_line(in, collect_line, &l, err);
}

int tide_ranges_read_extentlist(struct tide_ranges_input *in, struct tide_ranges_collector *c, struct tide_error *err)
{
	struct lines l = { .c = c, .numbered = true };

	return tide_ranges_each_line(in, collect_line, &l, err);
}

/* ---- nbdinfo --map ----------------------------------------------------------------- */

/* Four columns: offset, length, the number of a state, its name. */
bool tide_ranges_is_nbdinfo(const char *line)
{
	unsigned columns;

	for (columns = 0; columns < 3; columns++) {
		size_t digits = strspn(line, "0123456789");

		line += digits;
		if (!digits || !strspn(line, " \t"))
			return false;
		line += strspn(line, " \t");
	}
	return *line >= 'a' && *line <= 'z';
}

static int collect_described(void *data, char *line, struct tide_error *err)
{
	struct lines *l = data;
	uint64_t off, len, type;
	bool written;

	char *offset = tide_ranges_next_word(&line);
	if (!offset)
		return 0;
	if (parse_range(offset, &line, &off, &len, err) < 0)
		return -1;
	char *number = tide_ranges_next_word(&line);
	if (!number)
		return tide_error_set(err, TIDE_E_REFUSED, "expected OFFSET LENGTH TYPE DESCRIPTION, found two words");
	if (tide_ranges_parse_size(number, &type, err) < 0)
		return -1;
	line += strspn(line, TIDE_RANGES_BLANKS);
	line[strcspn(line, "\r")] = '\0';
	if (!tide_ranges_is_written(line, &written))
		return tide_error_set(err, TIDE_E_REFUSED, "unknown description '%s'", line);
	return (written ? tide_ranges_collect : tide_ranges_skip)(l->c, off, len, err);
}

int tide_ranges_read_nbdinfo(struct tide_ranges_input *in, struct tide_ranges_collector *c, struct tide_error *err)
{
	struct lines l = { .c = c };

	if (tide_ranges_check_ended(in, err) < 0)
		return -1;
	c->goes_through = true;
	return tide_ranges_each_line(in, collect_described, &l, err);
}

/* ---- block numbers ----------------------------------------------------------------- */

static int collect_block(void *data, char *line, struct tide_error *err)
{
	struct lines *l = data;
	unsigned long long block;
	char *end;

	line[strcspn(line, "#")] = '\0';
	char *word = tide_ranges_next_word(&line);
	if (!word)
		return 0;
	char *more = tide_ranges_next_word(&line);
	if (more)
		return tide_error_set(err, TIDE_E_REFUSED, "expected one block number, found '%s' after it", more);
	/* Not parsed as a size: 4K is not a block number. */
	if (strspn(word, "0123456789") != strlen(word) || strlen(word) > 19)
		return tide_error_set(err, TIDE_E_REFUSED, "'%s' is not a block number", word);
	block = strtoull(word, &end, 10);
	return tide_ranges_collect_blocks(l->c, block, 1, l->block_size, err);
}

int tide_ranges_read_blocks(struct tide_ranges_input *in, struct tide_ranges_collector *c, struct tide_error *err)
{
	struct lines l = { .c = c, .block_size = in->block_size };

	if (!in->block_size) {
		tide_error_set(err, TIDE_E_USAGE, "The block size is not specified");
		return tide_error_hint(err, "use --block-size SIZE");
	}
	return tide_ranges_each_line(in, collect_block, &l, err);
}
