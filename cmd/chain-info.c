/*
 * chain-info: draws an image and its backing images, with their data, bitmaps and problems.
 * The library returns struct tide_chain or a reply in JSON; this file prints the chain as an indented table.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmd.h"

#define INDENT_MAX 12 /* levels that are indented further than the one above */

static const struct poptOption options[] = { { "output", 0, POPT_ARG_STRING, NULL, OPT_OUTPUT,
	                                       "a picture, or the reply (default: human)", "human|json" },
	                                     POPT_TABLEEND };

/* The cells of one image.  The name is escaped; the other cells fit into their arrays. */
struct row {
	char *name;
	char disk[UI_SIZE_MAX], data[UI_SIZE_MAX], file[UI_SIZE_MAX], modified[UI_TIME_MAX];
	const char *format;
};

struct table {
	size_t n;
	struct row *rows;
};

static void table_release(struct table *t)
{
	for (size_t i = 0; t->rows && i < t->n; i++)
		free(t->rows[i].name);
	free(t->rows);
}

static int indent_of(size_t depth)
{
	return 3 * (int)(depth < INDENT_MAX ? depth : INDENT_MAX);
}

static int fill(struct row *row, const struct tide_chain_image *image, size_t depth)
{
	CMD_AUTOFREE char *plain = ui_escape(image->filename);

	if (!plain || asprintf(&row->name, "%*s%s%s", depth ? indent_of(depth - 1) : 0, "",
	                       depth == 0     ? ""
	                       : ui_is_utf8() ? "└─ "
	                                      : "`- ",
	                       plain) < 0) {
		row->name = NULL;
		return -1;
	}
	row->format = image->format ? image->format : "?";
	if (!image->format)
		return 0;
	ui_size(row->disk, image->virtual_size);
	ui_size(row->data, image->data);
	if (image->is_remote) {
		strcpy(row->file, "-");
		strcpy(row->modified, "-");
		return 0;
	}
	ui_size(row->file, image->actual_size);
	ui_time(row->modified, image->modified_s);
	return 0;
}

static void print_cell(const char *text, int width)
{
	printf("%s%*s", text, width - ui_width(text) + 2, "");
}

static void print_row(const struct row *row, int name)
{
	print_cell(row->name, name);
	if (!row->modified[0]) {
		puts(row->format);
		return;
	}
	print_cell(row->format, 6);
	print_cell(row->disk, 8);
	print_cell(row->data, 8);
	print_cell(row->file, 8);
	puts(row->modified);
}

static void print_bitmap(const struct tide_bitmap_info *b, int indent)
{
	CMD_AUTOFREE char *name = ui_escape(b->name);
	char size[UI_SIZE_MAX];

	printf("%*s# %s: ", indent, "", name ? name : "");
	if (b->inconsistent)
		puts("inconsistent");
	else
		printf("%s%s, %s dirty\n", b->recording ? "recording" : "disabled", b->busy ? ", busy" : "",
		       ui_size(size, b->count));
}

static void print_backup(const struct tide_backup_info *b, bool has_checksums, int indent)
{
	char text[UI_TIME_MAX] = "an unknown time";

	ui_time(text, b->time);
	printf("%*s= backup %s of %s", indent, "", b->id, text);
	if (b->disk)
		printf(", disk %s", b->disk);
	if (b->base)
		printf(", counts from %s", b->base);
	else if (b->is_part)
		printf(", counts from an unknown backup");
	else if (b->is_part)
		printf(", a part");
	if (has_checksums)
		printf(", with checksums");
	puts(b->is_incomplete ? ", incomplete" : b->is_unchanged ? "" : ", changed since");
}

static void print_notes(const struct tide_chain_image *image, int indent)
{
	if (image->backup)
		print_backup(image->backup, image->has_checksums, indent);
	for (size_t i = 0; image->bitmaps && i < image->bitmaps->n; i++)
		print_bitmap(image->bitmaps->items[i], indent);
	for (size_t i = 0; i < image->n_findings; i++) {
		const struct tide_finding *f = image->findings[i];
		CMD_AUTOFREE char *text = ui_escape(f->text);

		printf("%*s%c %s\n", indent, "", f->kind == TIDE_FINDING_DOUBT ? '?' : '!', text ? text : "");
	}
}

static void print_chain(const struct tide_chain *chain, const struct table *t)
{
	static const struct row head = { (char *)"IMAGE", "DISK", "DATA", "FILE", "MODIFIED", "FORMAT" };
	int name = 5;

	for (size_t i = 0; i < t->n; i++) {
		int w = ui_width(t->rows[i].name);

		if (w > name)
			name = w;
	}
	print_row(&head, name);
	for (size_t i = 0; i < t->n; i++) {
		print_row(&t->rows[i], name);
		print_notes(chain->images[i], indent_of(i) + 3);
	}
}

static int show(const struct tide_chain *chain, struct tide_error *err)
{
	CMD_CLEANUP(table_release) struct table t = { .rows = calloc(chain->n + 1, sizeof(*t.rows)) };

	for (; t.rows && t.n < chain->n; t.n++)
		if (fill(&t.rows[t.n], chain->images[t.n], t.n))
			break;
	if (!t.rows || t.n < chain->n)
		return opt_fail(err, TIDE_E_NOMEM, "Out of memory");
	print_chain(chain, &t);
	return 0;
}

static int run(struct cmd *c, struct tide_error *err)
{
	static const struct tide_chain_options plain;
	struct tide_chain *chain = NULL;
	int output = CMD_OUTPUT_HUMAN, failed = 0;

	if (opt_choice(c->opt, OPT_OUTPUT, &output, err) || cmd_add_image(c, err) ||
	    tide_query_chain(c->session, c->node, &plain, &chain, err))
		return -1;
	if (output == CMD_OUTPUT_HUMAN)
		failed = show(chain, err);
	else
		tide_reply_chain(c->session, chain);
	if (!failed && chain->verdict != TIDE_VERDICT_WHOLE)
		failed = opt_fail(err, TIDE_E_REFUSED, "The chain is not whole");
	tide_chain_free(chain);
	return failed;
}

const struct command command = {
	.name = "chain-info",
	.summary = "Show the images of a chain, their data, and broken links",
	.arguments = "TOP",
	.completes = "f",
	.options = options,
	.min_args = 1,
	.max_args = 1,
	.flags = CMD_IMAGE | CMD_SHOW,
	.run = run,
};
