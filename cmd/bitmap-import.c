/*
 * bitmap-import: adds the dirty ranges of a bitmap of another image or store to a bitmap of IMAGE.
 * The reverse of bitmap-export; refs.c resolves the argument of --from.
 */
#include "refs.h"

enum { GRANULARITY = 1, DISABLED, STORE, FROM };

static const struct poptOption options[] = {
	{ "from", 0, POPT_ARG_STRING, NULL, FROM, "the bitmap to read; without #NAME the one with the same name",
	  "PATH#NAME" },
	{ "granularity", 'g', POPT_ARG_STRING, NULL, GRANULARITY,
	  "bytes for each bit of a new bitmap (default: as in the source)", "SIZE" },
	{ "disabled", 0, POPT_ARG_NONE, NULL, DISABLED, "a new bitmap does not record writes until bitmap-enable",
	  NULL },
	{ "store", 0, POPT_ARG_STRING, NULL, STORE, "where a new bitmap is kept (default: sidecar)", "sidecar|image" },
	POPT_TABLEEND
};

static int run(struct cmd *c, struct tide_error *err)
{
	CMD_CLEANUP(refs_release) struct refs other = { 0 };
	struct tide_bitmap_transfer args = { .disabled = opt_has(c->opt, DISABLED) };
	const char *from = opt_text(c->opt, FROM);
	int store = TIDE_STORE_SIDECAR;

	if (!from)
		return opt_usage(err, "--from is missing");
	if (opt_size(c->opt, GRANULARITY, &args.granularity, &args.has_granularity, err) ||
	    opt_choice(c->opt, STORE, &store, err) || cmd_add_image(c, err) || refs_init(&other, 1, err) ||
	    refs_add(c, &other, from, c->args[1], err) || cmd_begin(c, err))
		return -1;
	args.target = (struct tide_bitmap_ref){ c->node, c->args[1] };
	args.source = other.items[0];
	args.store = (enum tide_store_kind)store;
	return tide_txn_bitmap_import(c->txn, &args, err) ? -1 : tide_txn_run(c->txn, err);
}

const struct command command = {
	.name = "bitmap-import",
	.summary = "Copy a bitmap from another image or store to an image",
	.arguments = "IMAGE NAME",
	.completes = "fb",
	.options = options,
	.min_args = 2,
	.max_args = 2,
	.flags = CMD_IMAGE | CMD_CHANGE,
	.run = run,
};
