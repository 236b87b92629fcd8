#include "cmd.h"

enum { FORMAT = 1, OVERWRITE };

static const struct poptOption options[] = {
	{ "format", 'F', POPT_ARG_STRING, NULL, FORMAT, "format of TARGET (default: raw)", "raw|qcow2" },
	{ "overwrite", 0, POPT_ARG_NONE, NULL, OVERWRITE, "replace a TARGET that exists", NULL },
	POPT_TABLEEND
};

static int run(struct cmd *c, struct tide_error *err)
{
	struct tide_chain_restore args = {
		.target = c->args[1],
		.format = opt_text(c->opt, FORMAT),
		.overwrite = opt_has(c->opt, OVERWRITE),
	};

	if (cmd_add_image(c, err) || cmd_begin(c, err))
		return -1;
	args.device = c->node;
	return tide_txn_chain_restore(c->txn, &args, err) ? -1 : tide_txn_run(c->txn, err);
}

const struct command command = {
	.name = "chain-restore",
	.summary = "Flatten a chain of backups into one new image",
	.arguments = "TOP TARGET",
	.completes = "ff",
	.options = options,
	.min_args = 2,
	.max_args = 2,
	.flags = CMD_IMAGE | CMD_CHANGE | CMD_JOB,
	.run = run,
};
