/*
 * backup-run: copies an image, or its dirty ranges, to a target.
 * Turns the options into struct tide_backup and runs it as a transaction of one action; for --sync auto the library
 * decides whether the backup is full or incremental.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cmd.h"

enum {
	SYNC = 1,
	BITMAP,
	BITMAP_MODE,
	FORMAT,
	MODE,
	OVERWRITE,
	BACKING,
	SETTINGS,
	SPEED,
	COMPRESS,
	DETECT_ZEROES,
	CHECKSUMS,
	ON_SOURCE_ERROR,
	ON_TARGET_ERROR,
	RETRY_AFTER,
	JOB_ID,
	STORE,
	FULL_EVERY
};

static const struct poptOption options[] = {
	{ "sync", 0, POPT_ARG_STRING, NULL, SYNC, "what to copy (default: full)",
	  "full|top|incremental|bitmap|none|auto" },
	{ "bitmap", 0, POPT_ARG_STRING, NULL, BITMAP, "the dirty bitmap that records the changes", "NAME" },
	{ "bitmap-mode", 0, POPT_ARG_STRING, NULL, BITMAP_MODE, "when the copied ranges are cleared in the bitmap",
	  "on-success|never|always" },
	{ "store", 0, POPT_ARG_STRING, NULL, STORE, "where --sync auto creates a bitmap (default: sidecar)",
	  "sidecar|image" },
	{ "full-every", 0, POPT_ARG_STRING, NULL, FULL_EVERY,
	  "with --sync auto: a full backup after N increments, or when the last one is that old", "N|DAYSd" },
	{ "format", 'F', POPT_ARG_STRING, NULL, FORMAT,
	  "format of TARGET (default: IMAGE's when it is created, else probed)", OPT_NEW_FORMAT },
	{ "mode", 0, POPT_ARG_STRING, NULL, MODE,
	  "create TARGET, or write to an existing one (default: absolute-paths)", "absolute-paths|existing" },
	{ "overwrite", 0, POPT_ARG_NONE, NULL, OVERWRITE, "replace an existing TARGET", NULL },
	{ "backing", 0, POPT_ARG_STRING, NULL, BACKING,
	  "the backup that a new TARGET is chained on (default: the one that the bitmap counts from)",
	  "none|PATH[,format=FORMAT]" },
	{ "settings", 'o', POPT_ARG_STRING, NULL, SETTINGS,
	  "settings of a new TARGET's format: compression_type=zstd, cluster_size=64K, ...; may be repeated",
	  "KEY=VALUE,..." },
	{ "speed", 0, POPT_ARG_STRING, NULL, SPEED, "limit in bytes a second (default: 0, none)", "SIZE" },
	{ "compress", 0, POPT_ARG_NONE, NULL, COMPRESS, "compress the data", NULL },
	{ "detect-zeroes", 0, POPT_ARG_NONE, NULL, DETECT_ZEROES,
	  "read all data to find zeroes, even where the file system can share it with IMAGE", NULL },
	{ "checksums", 0, POPT_ARG_STRING, NULL, CHECKSUMS,
	  "store checksums of TARGET's data, for chain-verify --data (default: auto)", "auto|never|always" },
	{ "on-source-error", 0, POPT_ARG_STRING, NULL, ON_SOURCE_ERROR, "when reading IMAGE fails (default: report)",
	  "report|ignore|enospc|stop|auto" },
	{ "on-target-error", 0, POPT_ARG_STRING, NULL, ON_TARGET_ERROR, "when writing TARGET fails (default: report)",
	  "report|ignore|enospc|stop|auto" },
	{ "retry-after", 0, POPT_ARG_STRING, NULL, RETRY_AFTER,
	  "how long an error may stop the job before it tries again (default: until SIGCONT)", "SECONDS" },
	{ "job-id", 0, POPT_ARG_STRING, NULL, JOB_ID, "name of the job in events (default: the device)", "ID" },
	OPT_ALLOW_BASE_ENTRY,
	OPT_ALLOW_CHANGING_ENTRY,
	{ "job-events", 0, POPT_ARG_NONE, NULL, OPT_JOB_EVENTS, "print the event JOB_STATUS_CHANGE too", NULL },
	POPT_TABLEEND
};

static int parse_choices(const struct opt_line *line, struct tide_backup *args, struct tide_error *err)
{
	int sync = TIDE_SYNC_FULL, mode = TIDE_MODE_ABSOLUTE_PATHS, bitmap_mode = -1;
	int store = TIDE_STORE_SIDECAR, on_source = TIDE_ON_ERROR_REPORT, on_target = TIDE_ON_ERROR_REPORT;
	int checksums = -1;

	if (opt_choice(line, SYNC, &sync, err) || opt_choice(line, STORE, &store, err) ||
	    opt_choice(line, BITMAP_MODE, &bitmap_mode, err) || opt_choice(line, MODE, &mode, err) ||
	    opt_choice(line, ON_SOURCE_ERROR, &on_source, err) || opt_choice(line, ON_TARGET_ERROR, &on_target, err) ||
	    opt_choice(line, CHECKSUMS, &checksums, err))
		return -1;
	if (opt_has(line, STORE) && sync != TIDE_SYNC_AUTO)
		return opt_usage(err, "--store can be used only with --sync auto, which creates a missing bitmap");
	if (opt_has(line, OVERWRITE) && mode == TIDE_MODE_EXISTING)
		return opt_usage(err,
		                 "--overwrite replaces the target, --mode existing writes to it: use only one of them");
	if (!opt_has(line, OVERWRITE) && mode == TIDE_MODE_ABSOLUTE_PATHS)
		mode = TIDE_MODE_NEW;
	args->sync = (enum tide_sync_mode)sync;
	args->store = (enum tide_store_kind)store;
	args->mode = (enum tide_new_image_mode)mode;
	args->bitmap_mode =
	        (enum tide_bitmap_mode)(bitmap_mode + 1); /* the list does not contain the first value, "unset" */
	args->on_source_error = (enum tide_on_error)on_source;
	args->on_target_error = (enum tide_on_error)on_target;
	args->checksums = (enum tide_checksums)(checksums + 1); /* the same */
	return 0;
}

/* PATH[,format=FORMAT]; `text` is split in place. */
static int parse_backing(char *text, struct tide_backup *args, struct tide_error *err)
{
	args->backing = text;
	for (char *next = tide_parse_cut(text); next;) {
		char *setting = next;

		next = tide_parse_cut(setting);
		if (strncmp(setting, "format=", 7) != 0)
			return opt_usage(err,
			                 "--backing: '%s' is neither format=FORMAT nor, with its comma doubled, part "
			                 "of the path",
			                 setting);
		args->backing_format = setting + 7;
	}
	if (!*args->backing)
		return opt_usage(err, "--backing: the path is empty");
	return 0;
}

/* N, or a number of days and a "d". */
static int parse_full_every(const struct opt_line *line, struct tide_backup *args, struct tide_error *err)
{
	const char *text = opt_text(line, FULL_EVERY);
	unsigned long long n;
	char *end;

	if (!text)
		return 0;
	if (args->sync != TIDE_SYNC_AUTO)
		return opt_usage(err, "--full-every can be used only with --sync auto");
	errno = 0;
	n = strtoull(text, &end, 10);
	if (*text < '0' || *text > '9' || errno || n < 1 || n > 1000000 || (*end && strcmp(end, "d") != 0))
		return opt_usage(err, "--full-every: '%s' is neither a number of increments nor of days, such as 7d",
		                 text);
	if (*end)
		args->full_every_seconds = n * 86400;
	else
		args->full_every = n;
	return 0;
}

/* A negative number gets QEMU's error. */
static int parse_speed(const struct opt_line *line, struct tide_backup *args, struct tide_error *err)
{
	const char *text = opt_text(line, SPEED);

	if (text && *text == '-')
		return opt_usage(err, "Parameter 'speed' expects a non-negative value");
	return opt_size(line, SPEED, &args->speed, NULL, err);
}

static int run(struct cmd *c, struct tide_error *err)
{
	const struct opt_line *line = c->opt;
	CMD_AUTOFREE char *backing = opt_has(line, BACKING) ? strdup(opt_text(line, BACKING)) : NULL;
	CMD_AUTOFREE char *settings = opt_join(line, SETTINGS);
	struct tide_backup args = {
		.target = c->args[1],
		.format = opt_text(line, FORMAT),
		.bitmap = opt_text(line, BITMAP),
		.job_id = opt_text(line, JOB_ID),
		.settings = settings,
		.compress = opt_has(line, COMPRESS),
		.detect_zeroes = opt_has(line, DETECT_ZEROES),
		.use_base = !opt_has(line, BACKING),
		.describe = true,
	};

	if ((opt_has(line, BACKING) && !backing) || (opt_has(line, SETTINGS) && !settings))
		return opt_fail(err, TIDE_E_NOMEM, "Out of memory");
	if (parse_choices(line, &args, err) || parse_full_every(line, &args, err) ||
	    (backing && strcmp(backing, "none") != 0 && parse_backing(backing, &args, err)) ||
	    parse_speed(line, &args, err) || opt_seconds(line, RETRY_AFTER, &args.retry_after, err) ||
	    cmd_add_image(c, err) || cmd_begin(c, err))
		return -1;
	args.device = c->node;
	return tide_txn_backup(c->txn, &args, err) ? -1 : tide_txn_run(c->txn, err);
}

const struct command command = {
	.name = "backup-run",
	.summary = "Back up an image completely, or the changes that a dirty bitmap records",
	.arguments = "IMAGE TARGET",
	.completes = "ff",
	.options = options,
	.min_args = 2,
	.max_args = 2,
	.flags = CMD_IMAGE | CMD_CHANGE | CMD_JOB,
	.run = run,
};
