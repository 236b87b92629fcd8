/*
 * bitmap-add: adds a dirty bitmap to an image.
 * Turns the options into struct tide_bitmap_add; the library checks name, granularity and store.
 */
#include "cmd.h"

enum { GRANULARITY = 1, DISABLED, STORE };

static const struct poptOption options[] = {
	{ "granularity", 'g', POPT_ARG_STRING, NULL, GRANULARITY,
	  "bytes for each bit, a power of two from 512 to 2G (default: the image's cluster size, 4K to 64K)", "SIZE" },
	{ "disabled", 0, POPT_ARG_NONE, NULL, DISABLED, "do not record writes until bitmap-enable", NULL },
	{ "store", 0, POPT_ARG_STRING, NULL, STORE, "where the bitmap is kept (default: sidecar)", "sidecar|image" },
	POPT_TABLEEND
};

static int run(struct cmd *c, struct tide_error *err)
{
	struct tide_bitmap_add args = { .name = c->args[1], .disabled = opt_has(c->opt, DISABLED) };
	int store = TIDE_STORE_SIDECAR;

	if (opt_size(c->opt, GRANULARITY, &args.granularity, &args.has_granularity, err) ||
	    opt_choice(c->opt, STORE, &store, err) || cmd_add_image(c, err) || cmd_begin(c, err))
		return -1;
	args.node = c->node;
	args.store = (enum tide_store_kind)store;
	return tide_txn_bitmap_add(c->txn, &args, err) ? -1 : tide_txn_run(c->txn, err);
}

const struct command command = {
	.name = "bitmap-add",
	.summary = "Add a dirty bitmap to an image",
	.arguments = "IMAGE NAME",
	.completes = "f-",
	.options = options,
	.min_args = 2,
	.max_args = 2,
	.flags = CMD_IMAGE | CMD_CHANGE,
	.run = run,
};
