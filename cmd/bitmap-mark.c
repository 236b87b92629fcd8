#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "cmd.h"

enum { UNSET = 1, FROM };

static const struct poptOption options[] = {
	{ "unset", 0, POPT_ARG_NONE, NULL, UNSET, "mark the ranges clean instead of dirty", NULL },
	{ "from", 0, POPT_ARG_STRING, NULL, FROM,
	  "read the ranges from FILE (- is standard input): lines of OFFSET LENGTH, or a JSON list", "FILE" },
	POPT_TABLEEND
};

static int read_ranges(const char *path, struct tide_range_list **list, struct tide_error *err)
{
	struct tide_error why = TIDE_ERROR_INIT;
	bool is_stdin = strcmp(path, "-") == 0;
	int fd = is_stdin ? STDIN_FILENO : open(path, O_RDONLY | O_CLOEXEC);
	int failed;

	if (fd < 0)
		return opt_fail(err, TIDE_E_IO, "Could not open '%s': %s", path, strerror(errno));
	failed = tide_ranges_read(fd, list, &why);
	if (!is_stdin)
		close(fd);
	if (failed)
		opt_fail(err, why.code, "%s: %s", is_stdin ? "standard input" : path, why.msg ? why.msg : "unreadable");
	tide_error_release(&why);
	return failed;
}

static int mark(struct cmd *c, size_t n, const struct tide_range *ranges, struct tide_error *err)
{
	struct tide_bitmap_mark args = {
		.name = c->args[1], .unset = opt_has(c->opt, UNSET), .n_ranges = n, .ranges = ranges
	};

	if (cmd_add_image(c, err) || cmd_begin(c, err))
		return -1;
	args.node = c->node;
	return tide_txn_bitmap_mark(c->txn, &args, err) ? -1 : tide_txn_run(c->txn, err);
}

static int run(struct cmd *c, struct tide_error *err)
{
	const char *from = opt_text(c->opt, FROM);
	struct tide_range_list *list = NULL;
	struct tide_range one;
	int failed;

	if (c->n_args != (from ? 2 : 4))
		return opt_usage(err, "give either OFFSET and LENGTH, or --from FILE");
	if (!from) {
		if (opt_parse_size("OFFSET", c->args[2], &one.off, err) ||
		    opt_parse_size("LENGTH", c->args[3], &one.len, err))
			return -1;
		return mark(c, 1, &one, err);
	}
	if (read_ranges(from, &list, err))
		return -1;
	failed = mark(c, list->n, list->ranges, err);
	tide_range_list_free(list);
	return failed;
}

const struct command command = {
	.name = "bitmap-mark",
	.summary = "Record in a dirty bitmap what was written elsewhere",
	.arguments = "IMAGE NAME [OFFSET LENGTH]",
	.completes = "fb-",
	.options = options,
	.min_args = 2,
	.max_args = 4,
	.flags = CMD_IMAGE | CMD_CHANGE,
	.run = run,
};
