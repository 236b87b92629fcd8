/*
 * bitmap-merge: adds the dirty ranges of one or more bitmaps to a bitmap of IMAGE.
 * A source may be a bitmap of another image, PATH#NAME; refs.c resolves it.
 */
#include "refs.h"

static int run(struct cmd *c, struct tide_error *err)
{
	CMD_CLEANUP(refs_release) struct refs sources = { 0 };
	struct tide_bitmap_merge args = { .target = c->args[1] };
	size_t n = (size_t)c->n_args - 2;

	if (refs_init(&sources, n, err) || cmd_add_image(c, err))
		return -1;
	for (size_t i = 0; i < n; i++)
		if (refs_add(c, &sources, c->args[2 + i], NULL, err))
			return -1;
	if (cmd_begin(c, err))
		return -1;
	args.node = c->node;
	args.n_sources = sources.n;
	args.sources = sources.items;
	return tide_txn_bitmap_merge(c->txn, &args, err) ? -1 : tide_txn_run(c->txn, err);
}

const struct command command = {
	.name = "bitmap-merge",
	.summary = "Add the dirty ranges of other bitmaps to a bitmap",
	.arguments = "IMAGE TARGET SOURCE...",
	.completes = "fbs",
	.min_args = 3,
	.max_args = -1,
	.flags = CMD_IMAGE | CMD_CHANGE,
	.run = run,
};
