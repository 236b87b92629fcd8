/*
 * The definition of a command, and the parts that main does for all commands.
 *
 * Each cmd/<noun>-<verb>.c defines one `const struct command command`: its name, its
 * options, and a run function that fills in an argument structure of tidemark.h and
 * hands it to the library.  main.c does the rest: parsing, --help, --usage and
 * --version, completion, the session and its callbacks, replies on stdout and messages
 * on stderr, signals, progress, and the exit status.
 *
 * Each reply or event is one line of JSON on stdout, written with one write and checked.
 * An error there does not stop a job, but makes the exit status of a command that has
 * succeeded 4.  A show command prints text for people instead, unless its --output asks
 * for JSON.
 */
#ifndef CMD_H
#define CMD_H

#include <popt.h>
#include <stdbool.h>
#include <stdint.h>

#include "opt.h"
#include "tidemark.h"
#include "ui.h"

#define CMD_CLEANUP(fn)   __attribute__((cleanup(fn)))
#define CMD_AUTOFREE      CMD_CLEANUP(cmd_freep)
#define CMD_ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

enum {
	CMD_IMAGE = 1,  /* the first argument is an image of the session: -f, --sidecar, -d, --ignore-stamp,
	                   --allow-backing */
	CMD_SHOW = 2,   /* only reads: -U; prints for people unless --output says otherwise */
	CMD_CHANGE = 4, /* --dry-run */
	CMD_JOB = 8,    /* --progress, --no-progress */
};

struct cmd {
	const struct command *command;
	const struct opt_line *opt;
	const char **args; /* the positional arguments, n_args of them */
	int n_args;
	struct tide_session *session;
	struct tide_txn *txn; /* from cmd_begin */
	const char *node;     /* from cmd_add_image */
	unsigned allow;       /* enum tide_allow, for every image that the command opens */
	bool other_sidecar;   /* --sidecar is not of the first argument */
	struct ui ui;
	int out_errno; /* why standard output could not be written, or 0 */
};

struct command {
	const char *name;
	const char *summary;
	const char *arguments; /* as in the usage line: "IMAGE NAME" */
	const char *completes; /* a letter for each argument: f file, b bitmap of the first one, s either,
	                          - neither; the last letter applies to all following arguments */
	const struct poptOption *options;
	int min_args, max_args; /* max_args -1: no limit */
	unsigned flags;
	int (*run)(struct cmd *c, struct tide_error *err);
};

extern const struct command command;

/* Adds the first argument to the session as c->node, according to the common options. */
int cmd_add_image(struct cmd *c, struct tide_error *err);

/* Refuses a format that this version does not know; NULL means that no format was given. */
int cmd_check_format(const char *format, struct tide_error *err);

/* From now on SIGINT and SIGTERM cancel the session. */
void cmd_catch_signals(struct cmd *c);

/* Opens c->txn; from then on SIGINT and SIGTERM cancel it. */
int cmd_begin(struct cmd *c, struct tide_error *err);

/* Runs a command whose only arguments are IMAGE NAME. */
int cmd_run_bitmap(struct cmd *c,
                   int (*action)(struct tide_txn *, const struct tide_bitmap_edit *, struct tide_error *),
                   struct tide_error *err);

/* The value of --output for people, which is the first one of every list. */
enum { CMD_OUTPUT_HUMAN = 0 };

/* For CMD_AUTOFREE: free(*p). */
void cmd_freep(void *p);

#endif
