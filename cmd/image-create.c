/*
 * image-create: creates an image, as qemu-img create does.
 * Turns the options into an argument structure of the library.
 */
#include "cmd.h"

enum { FORMAT = 1, BACKING, BACKING_FORMAT, SETTINGS };

static const struct poptOption options[] = {
	{ "format", 'f', POPT_ARG_STRING, NULL, FORMAT, "format of the new image (default: raw)", OPT_NEW_FORMAT },
	{ "backing", 'b', POPT_ARG_STRING, NULL, BACKING,
	  "create an overlay of this image; a relative name is relative to PATH's directory", "PATH" },
	{ "backing-format", 'F', POPT_ARG_STRING, NULL, BACKING_FORMAT, "format of the backing image, required with -b",
	  OPT_FILE_FORMAT },
	{ "settings", 'o', POPT_ARG_STRING, NULL, SETTINGS,
	  "settings of the format: cluster_size=64K, compression_type=zstd, ...; may be repeated", "KEY=VALUE,..." },
	OPT_ALLOW_BACKING_ENTRY,
	POPT_TABLEEND
};

static int run(struct cmd *c, struct tide_error *err)
{
	CMD_AUTOFREE char *settings = opt_join(c->opt, SETTINGS);
	struct tide_image_create args = {
		.path = c->args[0],
		.format = opt_text(c->opt, FORMAT),
		.backing = opt_text(c->opt, BACKING),
		.backing_format = opt_text(c->opt, BACKING_FORMAT),
		.has_size = c->n_args > 1,
		.settings = settings,
		.allow = c->allow,
	};

	if (opt_has(c->opt, SETTINGS) && !settings)
		return opt_fail(err, TIDE_E_NOMEM, "Out of memory");
	if ((args.has_size && opt_parse_size("SIZE", c->args[1], &args.size, err)) || cmd_begin(c, err))
		return -1;
	return tide_txn_image_create(c->txn, &args, err) ? -1 : tide_txn_run(c->txn, err);
}

const struct command command = {
	.name = "image-create",
	.summary = "Create an image, empty or as an overlay of another",
	.arguments = "PATH [SIZE]",
	.completes = "f-",
	.options = options,
	.min_args = 1,
	.max_args = 2,
	.flags = CMD_CHANGE,
	.run = run,
};
