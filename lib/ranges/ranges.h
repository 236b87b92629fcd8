/*
 * The lists of ranges that other programs print (tide_ranges_read in tidemark.h): what their
 * readers share.  ranges.c has the table of formats and finds out which one an input is in; a
 * family of formats has a file of its own:
 *
 *   ranges_json.c   lists of objects: bitmap-dump, nbdinfo, qemu-img map, rbd diff, imageio
 *   ranges_lines.c  a range a line: OFFSET LENGTH, nbdinfo's columns, nbdkit's extent lists, block numbers
 *   ranges_log.c    nbdkit's log filter
 *   ranges_xml.c    thin_delta, era_invalidate, bmap files
 *   ranges_rbd.c    rbd export-diff, the one binary format, which is not read into memory
 *
 * A reader hands to tide_ranges_collect what changed, or may have, and to tide_ranges_skip what its
 * input says did not: both are checked.  Whatever it does not know is an error, for a range
 * that is passed over is a change that the next backup lacks.
 */
#ifndef TIDE_RANGES_H
#define TIDE_RANGES_H

#include "base/compiler.h"
#include "tidemark.h"

struct tide_ranges_input {
	int fd;
	char *text; /* what has been read: all of it, but for rbd's files the beginning; a NUL follows */
	size_t len;
	const char *format;  /* the one asked for, or NULL */
	uint64_t block_size; /* 0: not said */
};

struct tide_ranges_collector {
	struct tide_range_list *list;
	size_t cap;
	bool goes_through; /* this format lists what did not change, too: its last range ends where the disk did */
};

int tide_ranges_collect(struct tide_ranges_collector *c, uint64_t off, uint64_t len, struct tide_error *err);
int tide_ranges_skip(struct tide_ranges_collector *c, uint64_t off, uint64_t len, struct tide_error *err);
/* The same for `count` blocks of `unit` bytes from block `first` on. */
int tide_ranges_collect_blocks(struct tide_ranges_collector *c, uint64_t first, uint64_t count, uint64_t unit,
                               struct tide_error *err);

/* The words for a state, as NBD's tools have them: "dirty", "hole,zero", "backing depth 2", ...; false: not known. */
bool tide_ranges_is_written(const char *description, bool *written);

/* A size in an input, TIDE_E_REFUSED when it is none. */
int tide_ranges_parse_size(const char *word, uint64_t *v, struct tide_error *err);

/* Calls fn for each line, without its newline, until one fails; the line's number is put before the message. */
int tide_ranges_each_line(struct tide_ranges_input *in, int (*fn)(void *data, char *line, struct tide_error *err),
                          void *data, struct tide_error *err);
/* Refuses text whose last line does not end, from programs that end every line. */
int tide_ranges_check_ended(const struct tide_ranges_input *in, struct tide_error *err);

#define TIDE_RANGES_BLANKS " \t\r\v\f"

/* The next word of *text, cut off with a NUL; NULL when there is none. */
char *tide_ranges_next_word(char **text);

/* ---- the families ------------------------------------------------------------------ */

typedef int tide_ranges_reader(struct tide_ranges_input *in, struct tide_ranges_collector *c, struct tide_error *err);

tide_ranges_reader tide_ranges_read_json;  /* any of its formats, or in->format alone */
tide_ranges_reader tide_ranges_read_lines; /* OFFSET LENGTH, and a type in words */
tide_ranges_reader tide_ranges_read_extentlist, tide_ranges_read_nbdinfo, tide_ranges_read_blocks;
tide_ranges_reader tide_ranges_read_log;
tide_ranges_reader tide_ranges_read_xml; /* the root element says which */
tide_ranges_reader tide_ranges_read_rbd;

/* The bytes of a block, from what era_dump printed. */
int tide_ranges_unit_of(const struct tide_ranges_input *in, uint64_t *unit, struct tide_error *err);

/* Does this first line look like one of theirs? */
bool tide_ranges_is_log(const char *line);
bool tide_ranges_is_nbdinfo(const char *line);
bool tide_ranges_is_rbd(const struct tide_ranges_input *in);

#endif
