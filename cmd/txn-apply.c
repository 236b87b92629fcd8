/*
 * txn-apply: runs QMP commands from a file or standard input.
 * The library parses each command and writes its reply; this file adds the images of --drive, reads the input, and
 * keeps the error of the first command that fails for the exit status.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cmd.h"

enum { DRIVE = 1, RETRY_AFTER };

static const struct poptOption options[] = {
	{ "drive", 0, POPT_ARG_STRING, NULL, DRIVE, "an image, and the name that commands use for it; may be repeated",
	  "ID=PATH[,format=FORMAT][,sidecar=PATH]" },
	{ "ignore-stamp", 0, POPT_ARG_NONE, NULL, OPT_IGNORE_STAMP,
	  "trust the bitmaps despite unrecorded changes of the images", NULL },
	OPT_ALLOW_BACKING_ENTRY,
	OPT_ALLOW_BASE_ENTRY,
	OPT_ALLOW_CHANGING_ENTRY,
	{ "retry-after", 0, POPT_ARG_STRING, NULL, RETRY_AFTER,
	  "how long an error may stop a job before it tries again (default: until SIGCONT)", "SECONDS" },
	{ "job-events", 0, POPT_ARG_NONE, NULL, OPT_JOB_EVENTS, "print the event JOB_STATUS_CHANGE too", NULL },
	POPT_TABLEEND
};

/* ID=PATH[,format=FORMAT][,sidecar=PATH]; `text` is split in place. */
static int parse_drive(char *text, struct tide_drive *drive, struct tide_error *err)
{
	struct tide_error why = TIDE_ERROR_INIT;
	int rc = tide_parse_drive(text, drive, &why);

	if (rc)
		rc = opt_usage(err, "--drive: %s", why.msg ? why.msg : "not understood");
	tide_error_release(&why);
	return rc;
}

static int add_drives(struct cmd *c, struct tide_error *err)
{
	for (size_t i = 0; i < c->opt->n; i++) {
		struct tide_drive drive = { .ignore_stamp = opt_has(c->opt, OPT_IGNORE_STAMP), .allow = c->allow };
		CMD_AUTOFREE char *text = NULL;

		if (c->opt->given[i].val != DRIVE)
			continue;
		text = strdup(c->opt->given[i].text);
		if (!text)
			return opt_fail(err, TIDE_E_NOMEM, "Out of memory");
		if (parse_drive(text, &drive, err) || tide_session_add_drive(c->session, &drive, NULL, err))
			return -1;
	}
	return 0;
}

/* Some commands failed: the others must not be repeated. */
static void report_unreported(struct cmd *c, size_t n)
{
	char text[128];

	if (n == 0)
		return;
	snprintf(text, sizeof(text), "%zu command%s succeeded, but the report could not be delivered: do not repeat %s",
	         n, n == 1 ? "" : "s", n == 1 ? "it" : "them");
	ui_hint(&c->ui, text);
}

/*
 * Each failure is reported when it happens; the first one determines the exit status.  A lost report counts only if
 * nothing else failed, because it means that all was done.
 */
static int run_all(struct cmd *c, struct tide_stream *stream, struct tide_error *err)
{
	size_t unreported = 0;
	int rc;

	do {
		struct tide_error own = TIDE_ERROR_INIT;

		rc = tide_stream_next(stream, &own);
		if (rc < 0 && own.code == TIDE_E_UNREPORTED)
			unreported++;
		else if (rc < 0 && (own.code != TIDE_E_CANCELLED || !err->code))
			ui_error(&c->ui, &own);
		if (rc < 0 && own.code != TIDE_E_UNREPORTED && !err->code)
			err->code = own.code;
		if (own.code == TIDE_E_CANCELLED)
			rc = 0;
		tide_error_release(&own);
	} while (rc != 0);
	if (err->code)
		report_unreported(c, unreported);
	else if (unreported)
		err->code = TIDE_E_UNREPORTED;
	return err->code ? -1 : 0;
}

static void close_file(int *fd)
{
	if (*fd > STDIN_FILENO)
		close(*fd);
}

static int run(struct cmd *c, struct tide_error *err)
{
	const char *name = c->n_args ? c->args[0] : "-";
	bool from_stdin = strcmp(name, "-") == 0;
	CMD_CLEANUP(close_file) int fd = from_stdin ? STDIN_FILENO : open(name, O_RDONLY | O_CLOEXEC);
	struct tide_stream_options stream_options = { .dry_run = opt_has(c->opt, OPT_DRY_RUN), .allow = c->allow };
	struct tide_stream *stream;
	int rc;

	c->ui.image = NULL;
	if (opt_seconds(c->opt, RETRY_AFTER, &stream_options.retry_after, err))
		return -1;
	if (fd < 0)
		return opt_fail(err, TIDE_E_IO, "Could not open '%s': %s", name, strerror(errno));
	if (add_drives(c, err))
		return -1;
	cmd_catch_signals(c);
	stream = tide_stream_new(c->session, fd, &stream_options, err);
	if (!stream)
		return -1;
	rc = run_all(c, stream, err);
	tide_stream_free(stream);
	return rc;
}

const struct command command = {
	.name = "txn-apply",
	.summary = "Run QMP commands and transactions on images that no virtual machine uses",
	.arguments = "[FILE|-]",
	.completes = "f",
	.options = options,
	.min_args = 0,
	.max_args = 1,
	.flags = CMD_CHANGE | CMD_JOB,
	.run = run,
};
