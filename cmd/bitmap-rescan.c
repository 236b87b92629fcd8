/*
 * bitmap-rescan: compares a disk with another image and sets a bitmap to the differences.
 * The library compares; this file prints how much differs.
 */
#include <inttypes.h>
#include <stdio.h>

#include "cmd.h"

enum { AGAINST = 1, AGAINST_FORMAT };

static const struct poptOption options[] = {
	{ "against", 0, POPT_ARG_STRING, NULL, AGAINST, "the image, or the top of a chain, to compare with", "PATH" },
	{ "against-format", 'F', POPT_ARG_STRING, NULL, AGAINST_FORMAT,
	  "format of that image (default: probed; a raw image is refused)", OPT_FILE_FORMAT },
	POPT_TABLEEND
};

static void say_how_much(struct cmd *c, uint64_t differing)
{
	char size[UI_SIZE_MAX];
	char text[160];

	if (differing)
		snprintf(text, sizeof(text), "%" PRIu64 " bytes (%s) differ, in whole granules", differing,
		         ui_size(size, differing));
	else
		snprintf(text, sizeof(text), "nothing differs");
	ui_note(&c->ui, text);
}

static int run(struct cmd *c, struct tide_error *err)
{
	uint64_t differing = 0;
	struct tide_bitmap_rescan args = {
		.name = c->args[1],
		.against = opt_text(c->opt, AGAINST),
		.against_format = opt_text(c->opt, AGAINST_FORMAT),
		.differing = &differing,
	};

	if (!args.against)
		return opt_usage(err, "specify the image to compare with: --against PATH");
	if (cmd_check_format(args.against_format, err) || cmd_add_image(c, err) || cmd_begin(c, err))
		return -1;
	args.node = c->node;
	if (tide_txn_bitmap_rescan(c->txn, &args, err) || tide_txn_run(c->txn, err))
		return -1;
	say_how_much(c, differing);
	return 0;
}

const struct command command = {
	.name = "bitmap-rescan",
	.summary = "Set a dirty bitmap to the differences from another image",
	.arguments = "IMAGE NAME",
	.completes = "fb",
	.options = options,
	.min_args = 2,
	.max_args = 2,
	.flags = CMD_IMAGE | CMD_CHANGE | CMD_JOB,
	.run = run,
};
