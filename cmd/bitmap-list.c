/*
 * bitmap-list: lists the dirty bitmaps of an image.
 * The library returns them as a list or as a reply in JSON; this file prints the list as a table.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "cmd.h"

static const struct poptOption options[] = { { "output", 0, POPT_ARG_STRING, NULL, OPT_OUTPUT,
	                                       "a table, or the reply (default: human)", "human|json" },
	                                     POPT_TABLEEND };

/* The cells of one line.  The name is escaped; the other cells fit into their arrays. */
struct row {
	char *name;
	char count[64];
	char granularity[UI_SIZE_MAX];
	char state[48];
	const char *store;
	char *base; /* NULL: unknown */
};

struct table {
	size_t n;
	struct row *rows;
};

static void table_release(struct table *t)
{
	for (size_t i = 0; t->rows && i < t->n; i++) {
		free(t->rows[i].name);
		free(t->rows[i].base);
	}
	free(t->rows);
}

static int fill(struct row *row, const struct tide_bitmap_info *info)
{
	char size[UI_SIZE_MAX];

	row->name = ui_escape(info->name);
	snprintf(row->count, sizeof(row->count), "%s (%" PRIu64 ")", ui_size(size, info->count), info->count);
	ui_size(row->granularity, info->granularity);
	snprintf(row->state, sizeof(row->state), "%s%s%s", info->recording ? "recording" : "disabled",
	         info->busy ? ",busy" : "", info->inconsistent ? ",inconsistent" : "");
	row->store = info->store == TIDE_STORE_IMAGE ? "image" : "sidecar";
	if (info->base_id)
		row->base = ui_escape(info->base_path);
	return row->name && (row->base || !info->base_id) ? 0 : -1;
}

static void print_cell(const char *text, int width)
{
	printf("%s%*s", text, width - ui_width(text) + 2, "");
}

static void widen(int *width, const char *text)
{
	int w = ui_width(text);

	if (w > *width)
		*width = w;
}

static void print_table(const struct table *t)
{
	static const struct row head = { (char *)"NAME", "COUNT", "GRANULARITY", "STATE", "STORE", (char *)"BASE" };
	int name = 4, count = 5, granularity = 11, state = 5;
	bool has_base = false;

	for (size_t i = 0; i < t->n; i++) {
		widen(&name, t->rows[i].name);
		widen(&count, t->rows[i].count);
		widen(&granularity, t->rows[i].granularity);
		widen(&state, t->rows[i].state);
		has_base |= t->rows[i].base != NULL;
	}
	for (size_t i = 0; i <= t->n; i++) {
		const struct row *row = i ? &t->rows[i - 1] : &head;

		print_cell(row->name, name);
		print_cell(row->count, count);
		print_cell(row->granularity, granularity);
		print_cell(row->state, state);
		if (has_base && row->base)
			printf("%-9s%s\n", row->store, row->base);
		else
			puts(row->store);
	}
}

static int show(struct cmd *c, const struct tide_bitmap_list *list, struct tide_error *err)
{
	CMD_CLEANUP(table_release) struct table t = { .rows = calloc(list->n + 1, sizeof(*t.rows)) };

	for (; t.rows && t.n < list->n; t.n++)
		if (fill(&t.rows[t.n], list->items[t.n]))
			break;
	if (!t.rows || t.n < list->n)
		return opt_fail(err, TIDE_E_NOMEM, "Out of memory");
	if (t.n)
		print_table(&t);
	else
		ui_note(&c->ui, "no bitmaps");
	return 0;
}

static int run(struct cmd *c, struct tide_error *err)
{
	struct tide_bitmap_list *list = NULL;
	int output = CMD_OUTPUT_HUMAN, failed = 0;

	if (opt_choice(c->opt, OPT_OUTPUT, &output, err) || cmd_add_image(c, err) ||
	    tide_query_bitmaps(c->session, c->node, &list, err))
		return -1;
	if (output == CMD_OUTPUT_HUMAN)
		failed = show(c, list, err);
	else
		tide_reply_bitmaps(c->session, list);
	tide_bitmap_list_free(list);
	return failed;
}

const struct command command = {
	.name = "bitmap-list",
	.summary = "List the dirty bitmaps of an image",
	.arguments = "IMAGE",
	.completes = "f",
	.options = options,
	.min_args = 1,
	.max_args = 1,
	.flags = CMD_IMAGE | CMD_SHOW,
	.run = run,
};
