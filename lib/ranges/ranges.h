/*
 * Lists of ranges that other programs print (tide_ranges_read in tidemark.h): the part that their readers
 * share. ranges.c has the table of formats and detects the format of an input; each family of formats has a
 * file of its own:
 *
 *   ranges_json.c   lists of objects: bitmap-dump, nbdinfo, qemu-img map, rbd diff, imageio
 *   ranges_elements.c  such a list, read from the file element by element
 *   ranges_lines.c  a range a line: OFFSET LENGTH, nbdinfo's columns, nbdkit's extent lists, block numbers
 *   ranges_log.c    nbdkit's log filter
 *   ranges_xml.c    thin_delta, era_invalidate, bmap files
 *   ranges_rbd.c    rbd export-diff, the one binary format, which is not read into memory
 *
 * A reader passes the ranges that changed, or may have changed, to tide_ranges_collect, and those that did
 * not to tide_ranges_skip: both are checked. Anything that a reader does not know is an error, because a
 * range that it skips by mistake is a change that the next backup lacks.
 */
#ifndef TIDE_RANGES_H
#define TIDE_RANGES_H

#include "base/compiler.h"
#include "base/json.h"
#include "tidemark.h"

struct tide_ranges_input {
	int fd;
	char *text; /* the input, of JSON and of rbd's files only the beginning; then a NUL */
	size_t len;
	uint64_t dropped; /* blank bytes before that, and the lines that ended among them */
	size_t dropped_lines;
	const char *format;  /* the requested one, or NULL */
	uint64_t block_size; /* 0: not specified */
};

struct tide_ranges_collector {
	struct tide_range_list *list;
	size_t cap;
	bool goes_through; /* the format also lists unchanged ranges: its last range ends at the end of the disk */
};

int tide_ranges_collect(struct tide_ranges_collector *c, uint64_t off, uint64_t len, struct tide_error *err);
int tide_ranges_skip(struct tide_ranges_collector *c, uint64_t off, uint64_t len, struct tide_error *err);
/* The same for `count` blocks of `unit` bytes from block `first` on. */
int tide_ranges_collect_blocks(struct tide_ranges_collector *c, uint64_t first, uint64_t count, uint64_t unit,
                               struct tide_error *err);

/*
 * Recognizes the words for a state that NBD's tools print: "dirty", "hole,zero", "backing depth 2", ...; false:
 * unknown.
 */
bool tide_ranges_is_written(const char *description, bool *written);

/* Parses a size in an input; TIDE_E_REFUSED when it is not one. */
int tide_ranges_parse_size(const char *word, uint64_t *v, struct tide_error *err);

/* Calls fn for each line, without its newline, until a call fails; its line number is put before the message. */
int tide_ranges_each_line(struct tide_ranges_input *in, int (*fn)(void *data, char *line, struct tide_error *err),
                          void *data, struct tide_error *err);
/* Calls fn for each element of a JSON list, which is read from the file; the place of the element precedes the message.
 */
int tide_ranges_each_element(struct tide_ranges_input *in,
                             int (*fn)(void *data, const struct tide_json *element, struct tide_error *err), void *data,
                             struct tide_error *err);
/* Refuses text whose last line does not end, from programs that end every line. */
int tide_ranges_check_ended(const struct tide_ranges_input *in, struct tide_error *err);

#define TIDE_RANGES_BLANKS " \t\r\v\f"

/* The next word of *text, cut off with a NUL; NULL when no word is left. */
char *tide_ranges_next_word(char **text);

/* ---- the families ------------------------------------------------------------------ */

typedef int tide_ranges_reader(struct tide_ranges_input *in, struct tide_ranges_collector *c, struct tide_error *err);

tide_ranges_reader tide_ranges_read_json;  /* any JSON format, or in->format alone */
tide_ranges_reader tide_ranges_read_lines; /* OFFSET LENGTH, and a type in words */
tide_ranges_reader tide_ranges_read_extentlist, tide_ranges_read_nbdinfo, tide_ranges_read_blocks;
tide_ranges_reader tide_ranges_read_log;
tide_ranges_reader tide_ranges_read_xml; /* the root element decides the format */
tide_ranges_reader tide_ranges_read_rbd;

/* The block size in bytes, from the output of era_dump. */
int tide_ranges_unit_of(const struct tide_ranges_input *in, uint64_t *unit, struct tide_error *err);

/* Does this first line look like one of that format? */
bool tide_ranges_is_log(const char *line);
bool tide_ranges_is_nbdinfo(const char *line);
bool tide_ranges_is_rbd(const struct tide_ranges_input *in);

#endif
