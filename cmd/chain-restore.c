/*
 * chain-restore: writes the disk that a chain of images shows to one image.
 * Turns the options into an argument structure of the library and prints how much an existing target differed.
 */
#include <inttypes.h>
#include <stdio.h>
#include <sys/stat.h>

#include "cmd.h"

enum { FORMAT = 1, OVERWRITE, IN_PLACE, COMPRESS, SETTINGS, SALVAGE };

static const struct poptOption options[] = {
	{ "format", 'F', POPT_ARG_STRING, NULL, FORMAT, "format of TARGET (default: raw)", OPT_NEW_FORMAT },
	{ "overwrite", 0, POPT_ARG_NONE, NULL, OVERWRITE, "replace an existing TARGET", NULL },
	{ "in-place", 0, POPT_ARG_NONE, NULL, IN_PLACE, "write only the differences to an existing TARGET", NULL },
	{ "compress", 'c', POPT_ARG_NONE, NULL, COMPRESS, "compress the data written to a new TARGET", NULL },
	{ "settings", 'o', POPT_ARG_STRING, NULL, SETTINGS,
	  "settings of a new TARGET's format: compression_type=zstd, cluster_size=64K, ...; may be repeated",
	  "KEY=VALUE,..." },
	{ "salvage", 0, POPT_ARG_NONE, NULL, SALVAGE, "write zeroes where damage makes the chain unreadable", NULL },
	{ "allow-part", 0, POPT_ARG_NONE, NULL, OPT_ALLOW_PART,
	  "restore a part without its base, with zeroes for what is missing", NULL },
	POPT_TABLEEND
};

static void say_how_much(struct cmd *c, uint64_t written)
{
	char size[UI_SIZE_MAX];
	char text[160];

	if (written)
		snprintf(text, sizeof(text), "%" PRIu64 " bytes (%s) differed, in whole units, and were written",
		         written, ui_size(size, written));
	else
		snprintf(text, sizeof(text), "nothing differed");
	ui_note(&c->ui, text);
}

/* Is the target, and not TOP, the image of --sidecar? */
static bool is_targets(const struct tide_chain_restore *args)
{
	struct stat st;

	return args->in_place || (args->overwrite && stat(args->target, &st) == 0 && S_ISBLK(st.st_mode));
}

static int run(struct cmd *c, struct tide_error *err)
{
	CMD_AUTOFREE char *settings = opt_join(c->opt, SETTINGS);
	uint64_t written = 0;
	struct tide_chain_restore args = {
		.target = c->args[1],
		.format = opt_text(c->opt, FORMAT),
		.overwrite = opt_has(c->opt, OVERWRITE),
		.in_place = opt_has(c->opt, IN_PLACE),
		.written = &written,
		.compress = opt_has(c->opt, COMPRESS),
		.settings = settings,
		.salvage = opt_has(c->opt, SALVAGE),
	};

	if (opt_has(c->opt, SETTINGS) && !settings)
		return opt_fail(err, TIDE_E_NOMEM, "Out of memory");
	if (args.overwrite && args.in_place)
		return opt_usage(err, "--overwrite replaces the target, --in-place writes to it: use only one of them");
	if (args.salvage && args.in_place)
		return opt_usage(err,
		                 "--salvage needs a new target or --overwrite: in place it would overwrite data with "
		                 "zeroes");
	c->other_sidecar = is_targets(&args);
	if (c->other_sidecar)
		args.sidecar = opt_text(c->opt, OPT_SIDECAR);
	if (cmd_add_image(c, err) || cmd_begin(c, err))
		return -1;
	args.device = c->node;
	if (tide_txn_chain_restore(c->txn, &args, err) || tide_txn_run(c->txn, err))
		return -1;
	if (args.in_place && !opt_has(c->opt, OPT_DRY_RUN))
		say_how_much(c, written);
	return 0;
}

const struct command command = {
	.name = "chain-restore",
	.summary = "Flatten a chain of backups into one image",
	.arguments = "TOP TARGET",
	.completes = "ff",
	.options = options,
	.min_args = 2,
	.max_args = 2,
	.flags = CMD_IMAGE | CMD_CHANGE | CMD_JOB,
	.run = run,
};
