/*
 * bitmap-clear: clears all bits of a dirty bitmap.
 * The command has only the common options: cmd_run_bitmap does everything.
 */
#include "cmd.h"

static int run(struct cmd *c, struct tide_error *err)
{
	return cmd_run_bitmap(c, tide_txn_bitmap_clear, err);
}

const struct command command = {
	.name = "bitmap-clear",
	.summary = "Clear all bits of a dirty bitmap",
	.arguments = "IMAGE NAME",
	.completes = "fb",
	.min_args = 2,
	.max_args = 2,
	.flags = CMD_IMAGE | CMD_CHANGE,
	.run = run,
};
