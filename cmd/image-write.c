/*
 * image-write: writes standard input, a pattern, zeroes or a discard to an image.
 * The library records the range in the enabled bitmaps before it writes.
 */
#include <string.h>
#include <unistd.h>

#include "cmd.h"

enum { ZERO = 1, DISCARD, PATTERN };

static const struct poptOption options[] = { { "zero", 0, POPT_ARG_NONE, NULL, ZERO, "write zeroes", NULL },
	                                     { "discard", 0, POPT_ARG_NONE, NULL, DISCARD,
	                                       "discard the range: it reads as zeroes and occupies no space", NULL },
	                                     { "pattern", 0, POPT_ARG_STRING, NULL, PATTERN,
	                                       "write this byte, 0 to 255, over the range", "BYTE" },
	                                     POPT_TABLEEND };

static int parse_pattern(const char *text, struct tide_image_write *args, struct tide_error *err)
{
	const char *digits = strncmp(text, "0x", 2) == 0 ? "0123456789abcdefABCDEF" : "0123456789";
	const char *number = digits[10] ? text + 2 : text;
	uint64_t byte;

	if (!*number || number[strspn(number, digits)] || tide_parse_size(text, &byte, NULL) || byte > 255)
		return opt_usage(err, "Parameter 'pattern' expects a byte from 0 to 255, not '%s'", text);
	args->kind = TIDE_WRITE_PATTERN;
	args->pattern = (uint8_t)byte;
	return 0;
}

static int parse_kind(struct cmd *c, struct tide_image_write *args, struct tide_error *err)
{
	const char *pattern = opt_text(c->opt, PATTERN);

	if (opt_has(c->opt, ZERO) + opt_has(c->opt, DISCARD) + (pattern != NULL) > 1)
		return opt_usage(err, "--zero, --discard and --pattern exclude each other");
	if (opt_has(c->opt, ZERO))
		args->kind = TIDE_WRITE_ZERO;
	if (opt_has(c->opt, DISCARD))
		args->kind = TIDE_WRITE_DISCARD;
	if (pattern && parse_pattern(pattern, args, err))
		return -1;
	if (args->kind != TIDE_WRITE_DATA && !args->has_length)
		return opt_usage(err, "--zero, --discard and --pattern need a LENGTH");
	return 0;
}

static int run(struct cmd *c, struct tide_error *err)
{
	struct tide_image_write args = { .has_length = c->n_args > 2, .input = STDIN_FILENO };

	if (parse_kind(c, &args, err) || opt_parse_size("OFFSET", c->args[1], &args.offset, err) ||
	    (args.has_length && opt_parse_size("LENGTH", c->args[2], &args.length, err)) || cmd_add_image(c, err) ||
	    cmd_begin(c, err))
		return -1;
	args.node = c->node;
	return tide_txn_image_write(c->txn, &args, err) ? -1 : tide_txn_run(c->txn, err);
}

const struct command command = {
	.name = "image-write",
	.summary = "Write to an image and record the write in its dirty bitmaps",
	.arguments = "IMAGE OFFSET [LENGTH]",
	.completes = "f-",
	.options = options,
	.min_args = 2,
	.max_args = 3,
	.flags = CMD_IMAGE | CMD_CHANGE,
	.run = run,
};
