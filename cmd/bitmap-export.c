/*
 * bitmap-export: adds the dirty ranges of a bitmap of IMAGE to a bitmap of another image or store.
 * The reverse of bitmap-import; refs.c resolves the argument of --to.
 */
#include "refs.h"

enum { GRANULARITY = 1, DISABLED, STORE, TO };

static const struct poptOption options[] = {
	{ "to", 0, POPT_ARG_STRING, NULL, TO, "the bitmap to write; without #NAME the one with the same name",
	  "PATH#NAME" },
	{ "granularity", 'g', POPT_ARG_STRING, NULL, GRANULARITY,
	  "bytes for each bit of a new bitmap (default: as in the original)", "SIZE" },
	{ "disabled", 0, POPT_ARG_NONE, NULL, DISABLED, "a new bitmap does not record writes until bitmap-enable",
	  NULL },
	{ "store", 0, POPT_ARG_STRING, NULL, STORE, "where a new bitmap is kept (default: sidecar)", "sidecar|image" },
	POPT_TABLEEND
};

static int run(struct cmd *c, struct tide_error *err)
{
	CMD_CLEANUP(refs_release) struct refs other = { 0 };
	struct tide_bitmap_transfer args = { .disabled = opt_has(c->opt, DISABLED) };
	const char *to = opt_text(c->opt, TO);
	int store = TIDE_STORE_SIDECAR;

	if (!to)
		return opt_usage(err, "--to is missing");
	if (opt_size(c->opt, GRANULARITY, &args.granularity, &args.has_granularity, err) ||
	    opt_choice(c->opt, STORE, &store, err) || cmd_add_image(c, err) || refs_init(&other, 1, err) ||
	    refs_add(c, &other, to, c->args[1], err) || cmd_begin(c, err))
		return -1;
	args.source = (struct tide_bitmap_ref){ c->node, c->args[1] };
	args.target = other.items[0];
	args.store = (enum tide_store_kind)store;
	return tide_txn_bitmap_export(c->txn, &args, err) ? -1 : tide_txn_run(c->txn, err);
}

const struct command command = {
	.name = "bitmap-export",
	.summary = "Copy a bitmap of an image to another image or store",
	.arguments = "IMAGE NAME",
	.completes = "fb",
	.options = options,
	.min_args = 2,
	.max_args = 2,
	.flags = CMD_IMAGE | CMD_CHANGE,
	.run = run,
};
