/*
 * chain-verify: checks the images of a chain and their links, and with --against compares every byte.
 * The library checks; this file prints the findings and chooses the exit status.
 */
#include <inttypes.h>
#include <stdio.h>

#include "cmd.h"

#define LINES_MAX 20 /* printed of the findings of an image, and of the differences */

enum { AGAINST = 1, AGAINST_FORMAT, ACCEPT, DATA, RECORD };

static const struct poptOption options[] = {
	{ "against", 0, POPT_ARG_STRING, NULL, AGAINST, "compare every byte with this image or top of a chain",
	  "PATH" },
	{ "against-format", 'F', POPT_ARG_STRING, NULL, AGAINST_FORMAT,
	  "format of that image (default: probed; a raw image is refused)", OPT_FILE_FORMAT },
	{ "accept", 0, POPT_ARG_NONE, NULL, ACCEPT,
	  "if the disk looks like the one that was backed up, record that the images are as they should be", NULL },
	{ "data", 0, POPT_ARG_NONE, NULL, DATA, "prove all stored data by its checksums", NULL },
	{ "record", 0, POPT_ARG_NONE, NULL, RECORD,
	  "store checksums in images that have none or not all, then prove the data", NULL },
	{ "output", 0, POPT_ARG_STRING, NULL, OPT_OUTPUT, "text, or the reply (default: human)", "human|json" },
	POPT_TABLEEND
};

static const char *const verdicts[] = {
	[TIDE_VERDICT_WHOLE] = "whole",
	[TIDE_VERDICT_UNKNOWN] = "cannot tell",
	[TIDE_VERDICT_DAMAGED] = "damaged",
	[TIDE_VERDICT_PART] = "a part",
};

static void print_finding(const struct tide_finding *f)
{
	CMD_AUTOFREE char *text = ui_escape(f->text);

	printf("    %s: ", tide_finding_name(f->kind));
	if (f->len)
		printf("%" PRIu64 "+%" PRIu64 ": ", f->off, f->len);
	puts(text ? text : "");
}

static void print_proven(const struct tide_chain_image *image)
{
	char size[UI_SIZE_MAX];

	printf("    checksums: %" PRIu64 " bytes of the file (%s) were compared\n", image->proven,
	       ui_size(size, image->proven));
}

static void print_image(const struct tide_chain_image *image)
{
	CMD_AUTOFREE char *name = ui_escape(image->filename);
	size_t shown = image->n_findings < LINES_MAX ? image->n_findings : LINES_MAX;

	printf("%s: %s%s%s\n", name ? name : "", image->format ? image->format : "", image->format ? ", " : "",
	       verdicts[image->verdict]);
	if (image->proven)
		print_proven(image);
	for (size_t i = 0; i < shown; i++)
		print_finding(image->findings[i]);
	if (shown < image->n_findings)
		printf("    … and %zu more\n", image->n_findings - shown);
}

static void print_differences(const struct tide_chain *chain, const char *against)
{
	CMD_AUTOFREE char *name = ui_escape(against);
	char size[UI_SIZE_MAX];

	if (chain->n_differences == 0) {
		printf("compared with %s: the same, %s\n", name ? name : "", ui_size(size, chain->size));
		return;
	}
	printf("compared with %s: %zu range%s, %" PRIu64 " bytes (%s), differ, in units of %" PRIu64 "\n",
	       name ? name : "", chain->n_differences, chain->n_differences == 1 ? "" : "s", chain->differing,
	       ui_size(size, chain->differing), chain->unit);
	for (size_t i = 0; i < chain->n_differences && i < LINES_MAX; i++)
		printf("    %" PRIu64 "+%" PRIu64 "\n", chain->differences[i].off, chain->differences[i].len);
	if (chain->n_differences > LINES_MAX)
		printf("    … and %zu more\n", chain->n_differences - LINES_MAX);
}

static int judge(const struct tide_chain *chain, const char *against, struct tide_error *err)
{
	bool damaged = false;

	for (size_t i = 0; i < chain->n; i++)
		damaged |= chain->images[i]->verdict == TIDE_VERDICT_DAMAGED;
	if (damaged)
		return opt_fail(err, TIDE_E_DAMAGED, "The chain is damaged");
	if (chain->verdict == TIDE_VERDICT_PART)
		return opt_fail(err, TIDE_E_DAMAGED, "The chain holds only a part of the disk");
	if (chain->n_differences)
		return opt_fail(err, TIDE_E_DAMAGED, "The chain and '%s' differ", against);
	if (chain->verdict != TIDE_VERDICT_WHOLE)
		return opt_fail(err, TIDE_E_REFUSED, "Not all of the chain could be checked");
	return 0;
}

static int run(struct cmd *c, struct tide_error *err)
{
	struct tide_chain_options args = {
		.verify = true,
		.against = opt_text(c->opt, AGAINST),
		.against_format = opt_text(c->opt, AGAINST_FORMAT),
		.accept = opt_has(c->opt, ACCEPT),
		.data = opt_has(c->opt, DATA),
		.record = opt_has(c->opt, RECORD),
	};
	struct tide_chain *chain = NULL;
	int output = CMD_OUTPUT_HUMAN, failed;

	if (args.against_format && !args.against)
		return opt_usage(err, "--against-format can be used only with --against");
	if (opt_choice(c->opt, OPT_OUTPUT, &output, err) || cmd_check_format(args.against_format, err) ||
	    cmd_add_image(c, err))
		return -1;
	cmd_catch_signals(c);
	if (tide_query_chain(c->session, c->node, &args, &chain, err))
		return -1;
	ui_clear(&c->ui);
	if (output != CMD_OUTPUT_HUMAN)
		tide_reply_chain(c->session, chain);
	for (size_t i = 0; output == CMD_OUTPUT_HUMAN && i < chain->n; i++)
		print_image(chain->images[i]);
	if (output == CMD_OUTPUT_HUMAN && chain->compared)
		print_differences(chain, args.against);
	if (output == CMD_OUTPUT_HUMAN && chain->accepted)
		printf("accepted: %zu image%s got a record\n", chain->accepted, chain->accepted == 1 ? "" : "s");
	failed = judge(chain, args.against, err);
	tide_chain_free(chain);
	return failed;
}

const struct command command = {
	.name = "chain-verify",
	.summary = "Check the images of a chain, their links, and with --against their data",
	.arguments = "TOP",
	.completes = "f",
	.options = options,
	.min_args = 1,
	.max_args = 1,
	.flags = CMD_IMAGE | CMD_SHOW | CMD_JOB,
	.run = run,
};
