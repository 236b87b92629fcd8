#include <inttypes.h>
#include <stdio.h>

#include "cmd.h"

enum { HUMAN = CMD_OUTPUT_HUMAN, JSON, MAP, SHA256 };

static const struct poptOption options[] = {
	{ "output", 0, POPT_ARG_STRING, NULL, OPT_OUTPUT,
	  "the dirty ranges, the reply, a picture of the disk, or a hash (default: human)", "human|json|map|sha256" },
	POPT_TABLEEND
};

static void print_ranges(const struct tide_dump *dump)
{
	char size[UI_SIZE_MAX];
	int width = snprintf(NULL, 0, "%" PRIu64, dump->disk_size);

	width = width < 6 ? 6 : width;
	printf("%*s  %*s  SIZE\n", width, "START", width, "LENGTH");
	for (size_t i = 0; i < dump->n; i++)
		printf("%*" PRIu64 "  %*" PRIu64 "  %s\n", width, dump->dirty[i].off, width, dump->dirty[i].len,
		       ui_size(size, dump->dirty[i].len));
}

/* ---- the picture ------------------------------------------------------------------- */

#define MAX_ROWS 16
#define LABEL 9

/* Clean, up to a third, up to two thirds, nearly all, all dirty. */
static const char *const blocks[] = { "·", "░", "▒", "▓", "█" };
static const char *const letters[] = { ".", "-", "+", "*", "#" };

struct map {
	const struct tide_dump *dump;
	const char *const *shades;
	uint64_t cell;    /* bytes a cell, a power of two and at least a granule */
	uint64_t columns; /* cells a line */
	uint64_t n;       /* cells in all */
	size_t next;      /* the first range that may reach into the cell at hand */
};

/* The widest power of two that fits the terminal, and cells so large that the disk fits in MAX_ROWS lines. */
static void lay_out(struct map *m)
{
	int room = ui_columns(1) - LABEL - 1;
	uint64_t size = m->dump->disk_size;

	for (m->columns = 8; m->columns * 2 <= (uint64_t)(room > 8 ? room : 8);)
		m->columns *= 2;
	for (m->cell = m->dump->granularity; size && (size - 1) / m->cell >= m->columns * MAX_ROWS;)
		m->cell *= 2;
	m->n = size ? (size - 1) / m->cell + 1 : 0;
}

static uint64_t end_of(const struct tide_range *r)
{
	return r->off + r->len;
}

static uint64_t dirty_between(struct map *m, uint64_t start, uint64_t end)
{
	const struct tide_dump *d = m->dump;
	uint64_t sum = 0;

	while (m->next < d->n && end_of(&d->dirty[m->next]) <= start)
		m->next++;
	for (size_t i = m->next; i < d->n && d->dirty[i].off < end; i++) {
		uint64_t from = d->dirty[i].off > start ? d->dirty[i].off : start;
		uint64_t to = end_of(&d->dirty[i]) < end ? end_of(&d->dirty[i]) : end;

		sum += to - from;
	}
	return sum;
}

static const char *shade(struct map *m, uint64_t i)
{
	uint64_t start = i * m->cell, left = m->dump->disk_size - start;
	uint64_t len = left < m->cell ? left : m->cell;
	uint64_t dirty = dirty_between(m, start, start + len);

	if (dirty == 0 || dirty == len)
		return m->shades[dirty ? 4 : 0];
	return m->shades[1 + (int)((double)dirty / (double)len * 3)];
}

static void print_map(struct cmd *c, const struct tide_dump *dump)
{
	struct map m = { .dump = dump, .shades = ui_is_utf8() ? blocks : letters };
	CMD_AUTOFREE char *name = ui_escape(c->args[1]);
	uint64_t dirty = dirty_between(&m, 0, dump->disk_size);
	char a[UI_SIZE_MAX], b[UI_SIZE_MAX];

	m.next = 0;
	lay_out(&m);
	printf("%s: %s of %s dirty (%.1f %%), ", name ? name : "", ui_size(a, dirty), ui_size(b, dump->disk_size),
	       dump->disk_size ? (double)dirty / (double)dump->disk_size * 100 : 0.0);
	printf("granularity %s, a cell is %s\n", ui_size(a, dump->granularity), ui_size(b, m.cell));
	for (uint64_t i = 0; i < m.n; i++) {
		if (i % m.columns == 0)
			printf("%*s ", LABEL, ui_size(a, i * m.cell));
		fputs(shade(&m, i), stdout);
		if ((i + 1) % m.columns == 0 || i + 1 == m.n)
			putchar('\n');
	}
	printf("%*s %s clean  %s %s %s partly  %s all dirty\n", LABEL, "", m.shades[0], m.shades[1], m.shades[2],
	       m.shades[3], m.shades[4]);
}

static int print_sha256(struct cmd *c, struct tide_error *err)
{
	char hex[65];

	if (tide_query_sha256(c->session, c->node, c->args[1], hex, err))
		return -1;
	tide_reply_sha256(c->session, hex);
	return 0;
}

static int run(struct cmd *c, struct tide_error *err)
{
	struct tide_dump *dump = NULL;
	int output = HUMAN;

	if (opt_choice(c->opt, OPT_OUTPUT, &output, err) || cmd_add_image(c, err))
		return -1;
	if (output == SHA256)
		return print_sha256(c, err);
	if (tide_query_dump(c->session, c->node, c->args[1], &dump, err))
		return -1;
	if (output == HUMAN)
		print_ranges(dump);
	else if (output == MAP)
		print_map(c, dump);
	else
		tide_reply_dump(c->session, dump);
	tide_dump_free(dump);
	return 0;
}

const struct command command = {
	.name = "bitmap-dump",
	.summary = "Show what a dirty bitmap holds",
	.arguments = "IMAGE NAME",
	.completes = "fb",
	.options = options,
	.min_args = 2,
	.max_args = 2,
	.flags = CMD_IMAGE | CMD_SHOW,
	.run = run,
};
