/*
 * bitmap-mark: marks ranges of a bitmap dirty (or, with --unset, clean) that another program wrote.
 * The ranges are on the command line or in a file; the library parses the file, which may have one of many formats.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "cmd.h"

enum { UNSET = 1, FROM, INPUT_FORMAT, BLOCK_SIZE, ERA_DUMP };

static const struct poptOption options[] = {
	{ "unset", 0, POPT_ARG_NONE, NULL, UNSET, "mark the ranges clean instead of dirty", NULL },
	{ "from", 0, POPT_ARG_STRING, NULL, FROM,
	  "read the ranges from FILE (- is standard input), in the format of many programs", "FILE" },
	{ "input-format", 0, POPT_ARG_STRING, NULL, INPUT_FORMAT, "format of FILE (default: detected)",
	  "ranges|blocks|dump|nbdinfo|qemu-img-map|qemu-img-map-dirty|extentlist|nbdkit-log|thin-delta|era-invalidate|"
	  "bmap|"
	  "rbd-diff|rbd-export-diff|imageio" },
	{ "block-size", 0, POPT_ARG_STRING, NULL, BLOCK_SIZE,
	  "block size, for a list of blocks that does not contain it", "SIZE" },
	{ "era-dump", 0, POPT_ARG_STRING, NULL, ERA_DUMP, "read the block size from the output of era_dump", "FILE" },
	POPT_TABLEEND
};

/* Opens a file, or duplicates standard input. */
static int open_input(const char *path, struct tide_error *err)
{
	int fd = strcmp(path, "-") == 0 ? dup(STDIN_FILENO) : open(path, O_RDONLY | O_CLOEXEC);

	return fd < 0 ? opt_fail(err, TIDE_E_IO, "Could not open '%s': %s", path, strerror(errno)) : fd;
}

/* Puts the name of the file before the error. */
static int name_input(const char *path, struct tide_error *why, struct tide_error *err)
{
	opt_fail(err, why->code, "%s: %s", strcmp(path, "-") == 0 ? "standard input" : path,
	         why->msg ? why->msg : "unreadable");
	if (err && why->hint)
		err->hint = strdup(why->hint);
	tide_error_release(why);
	return -1;
}

static int read_era_dump(const char *path, uint64_t *block_size, struct tide_error *err)
{
	struct tide_error why = TIDE_ERROR_INIT;
	int fd = open_input(path, err);
	int failed;

	if (fd < 0)
		return -1;
	failed = tide_ranges_read_era_dump(fd, block_size, &why);
	close(fd);
	return failed ? name_input(path, &why, err) : 0;
}

static int check_block_size(bool given, uint64_t block_size, const char *era_dump, const char *path,
                            struct tide_error *err)
{
	if (given && era_dump)
		return opt_usage(err, "give either --block-size or --era-dump");
	if (given && !block_size)
		return opt_usage(err, "--block-size: a block cannot have 0 bytes");
	if (era_dump && strcmp(era_dump, "-") == 0 && strcmp(path, "-") == 0)
		return opt_usage(err, "only one of --from and --era-dump can be standard input");
	return 0;
}

static struct tide_range_list *read_ranges(const struct opt_line *line, const char *path, struct tide_error *err)
{
	struct tide_ranges_options how = { NULL, 0 };
	struct tide_error why = TIDE_ERROR_INIT;
	const char *era_dump = opt_text(line, ERA_DUMP);
	struct tide_range_list *list = NULL;
	bool has_size = false;
	int choice = -1, fd;

	if (opt_choice(line, INPUT_FORMAT, &choice, err) || opt_size(line, BLOCK_SIZE, &how.block_size, &has_size, err))
		return NULL;
	how.format = choice < 0 ? NULL : tide_ranges_format((size_t)choice);
	if (check_block_size(has_size, how.block_size, era_dump, path, err) ||
	    (era_dump && read_era_dump(era_dump, &how.block_size, err)))
		return NULL;
	fd = open_input(path, err);
	if (fd < 0)
		return NULL;
	if (tide_ranges_read(fd, &how, &list, &why))
		name_input(path, &why, err);
	close(fd);
	return list;
}

static int mark(struct cmd *c, const struct tide_range_list *list, struct tide_error *err)
{
	struct tide_bitmap_mark args = { .name = c->args[1],
		                         .unset = opt_has(c->opt, UNSET),
		                         .clamp = opt_has(c->opt, FROM),
		                         .covers = list->covers,
		                         .n_ranges = list->n,
		                         .ranges = list->ranges };

	if (cmd_add_image(c, err) || cmd_begin(c, err))
		return -1;
	args.node = c->node;
	return tide_txn_bitmap_mark(c->txn, &args, err) ? -1 : tide_txn_run(c->txn, err);
}

static int run(struct cmd *c, struct tide_error *err)
{
	const char *from = opt_text(c->opt, FROM);
	struct tide_range_list *list;
	struct tide_range one;
	struct tide_range_list only = { .n = 1, .ranges = &one };
	int failed;

	if (c->n_args != (from ? 2 : 4))
		return opt_usage(err, "give either OFFSET and LENGTH, or --from FILE");
	if (!from && (opt_has(c->opt, INPUT_FORMAT) || opt_has(c->opt, BLOCK_SIZE) || opt_has(c->opt, ERA_DUMP)))
		return opt_usage(err, "--input-format, --block-size and --era-dump can be used only with --from FILE");
	if (!from) {
		if (opt_parse_size("OFFSET", c->args[2], &one.off, err) ||
		    opt_parse_size("LENGTH", c->args[3], &one.len, err))
			return -1;
		return mark(c, &only, err);
	}
	list = read_ranges(c->opt, from, err);
	if (!list)
		return -1;
	failed = mark(c, list, err);
	tide_range_list_free(list);
	return failed;
}

const struct command command = {
	.name = "bitmap-mark",
	.summary = "Record writes made by other programs in a dirty bitmap",
	.arguments = "IMAGE NAME [OFFSET LENGTH]",
	.completes = "fb-",
	.options = options,
	.min_args = 2,
	.max_args = 4,
	.flags = CMD_IMAGE | CMD_CHANGE,
	.run = run,
};
