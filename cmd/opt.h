/*
 * Command lines: popt's tables in, checked values out.
 *
 * An option of a command has a `val` of its own, from 1 up, and takes either nothing
 * (POPT_ARG_NONE) or a text (POPT_ARG_STRING, arg NULL); struct opt_line keeps the given
 * ones in order.  An argument description with bars, "report|ignore|stop", is the
 * list of the accepted words: help shows it, opt_choice checks against it, and
 * completion offers it, so the three cannot disagree.
 *
 * An invalid word is an error with code TIDE_E_USAGE.  Only tide_parse_size reads
 * numbers.
 */
#ifndef OPT_H
#define OPT_H

#include <popt.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tidemark.h"

struct command;

/* The values of the options that main handles. */
enum {
	OPT_OUTPUT = 256, /* of the show commands, in their own tables */
	OPT_IMAGE_FORMAT,
	OPT_SIDECAR,
	OPT_DEVICE,
	OPT_IGNORE_STAMP,
	OPT_FORCE_SHARE,
	OPT_ALLOW_BACKING,
	OPT_ALLOW_PART,     /* of chain-restore */
	OPT_ALLOW_CHANGING, /* of the commands that back up, in their own tables */
	OPT_ALLOW_BASE,     /* the same */
	OPT_DRY_RUN,
	OPT_JOB_EVENTS, /* of backup-run, in its own table */
	OPT_PROGRESS,
	OPT_NO_PROGRESS,
	OPT_QUIET,
	OPT_HELP,
	OPT_USAGE,
	OPT_VERSION,
	OPT_COMPLETE_OPTIONS,
	OPT_COMPLETE_VALUES,
};

/* The argument descriptions of options that take a format: opt_line_parse replaces them by the library's list. */
#define OPT_ANY_FORMAT  "FORMAT"
#define OPT_FILE_FORMAT "FORMAT-OF-FILE"
#define OPT_NEW_FORMAT  "FORMAT-OF-NEW"

/* An entry for the tables of commands that open chains and have no IMAGE. */
#define OPT_ALLOW_BACKING_ENTRY                                                                                     \
	{                                                                                                           \
		"allow-backing", 0, POPT_ARG_STRING, NULL, OPT_ALLOW_BACKING,                                       \
		        "names in the images of a chain to trust; a list with commas", "outside|protocol|probe|any" \
	}

#define OPT_ALLOW_CHANGING_ENTRY                                                             \
	{                                                                                    \
		"allow-changing-source", 0, POPT_ARG_NONE, NULL, OPT_ALLOW_CHANGING,         \
		        "back up an NBD export although other clients can write to it", NULL \
	}

#define OPT_ALLOW_BASE_ENTRY                                                                                       \
	{                                                                                                          \
		"allow-base", 0, POPT_ARG_STRING, NULL, OPT_ALLOW_BASE,                                            \
		        "chain an increment on another image than the backup that its bitmap counts from", "other" \
	}

struct opt_given {
	int val;
	char *text; /* NULL for an option without an argument */
};

struct opt_line {
	const struct command *command;
	struct poptOption tables[7];  /* the command's own and the ones that its flags select */
	struct poptOption *copies[7]; /* copies of the tables that list formats; else NULL */
	char *formats[3];             /* the lists in them */
	poptContext popt;
	size_t n;
	struct opt_given *given;
	const char **args;
	int n_args;
};

/* argv[0] is skipped.  Returns 0 or popt's error, with *bad the offending word (owned by popt). */
int opt_line_parse(struct opt_line *line, const struct command *command, int argc, const char **argv, const char **bad);
void opt_line_release(struct opt_line *line);

/* Puts the lists of formats into the tables, for help and completion; no other command has to make them. */
void opt_list_formats(struct opt_line *line);

/* Prints the text of --help (help.c). */
void opt_print_help(struct opt_line *line);

/* Is one of the settings `help` or `?`, as in qemu-img?  print shows those of the given format, or of all (help.c). */
bool opt_asks_for_settings(const struct opt_line *line);
void opt_print_settings(const struct opt_line *line);

/* Checks the number of arguments. */
int opt_check_args(const struct opt_line *line, struct tide_error *err);

bool opt_has(const struct opt_line *line, int val);

/* The text given last, or NULL. */
const char *opt_text(const struct opt_line *line, int val);

/* The texts of all occurrences joined by commas, to be freed, or NULL. */
char *opt_join(const struct opt_line *line, int val);

/* Sets *choice to the index of the given word in the list of accepted words; unchanged if the option was not given. */
int opt_choice(const struct opt_line *line, int val, int *choice, struct tide_error *err);

/* Joins comma-separated lists: sets the bit of each word, in the order of the accepted words; the last word sets all.
 */
int opt_flags(const struct opt_line *line, int val, unsigned *flags, struct tide_error *err);

/* Sets *size to the given number, and *has (may be NULL) to true; unchanged if the option was not given. */
int opt_size(const struct opt_line *line, int val, uint64_t *size, bool *has, struct tide_error *err);

/* Does the same for a time in seconds. */
int opt_seconds(const struct opt_line *line, int val, uint32_t *seconds, struct tide_error *err);

/* Parses a number in an argument; `what` names it in messages. */
int opt_parse_size(const char *what, const char *text, uint64_t *size, struct tide_error *err);

/* The option of that value, or of that name ("sync", "--sync", "-f"), or NULL. */
const struct poptOption *opt_find(const struct opt_line *line, int val, const char *name);

/* Calls fn for every option that is not hidden, in the order of --help. */
void opt_each(const struct opt_line *line, void (*fn)(const struct poptOption *option, void *data), void *data);

/* Whether this is the entry that ends a table. */
bool opt_is_end(const struct poptOption *option);

/* Iterates over the words of a list with bars: false at its end. */
bool opt_next_word(const char **list, const char **word, size_t *len);

/* Set an error; return -1.  opt_usage has code TIDE_E_USAGE. */
int opt_usage(struct tide_error *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
int opt_fail(struct tide_error *err, enum tide_code code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

#endif
