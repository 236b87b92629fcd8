/*
 * bitmap-dump: shows the dirty ranges of a bitmap.
 * The library returns them as struct tide_dump or as a reply in JSON.  This file prints them for people: as a table,
 * as a picture of the disk, or in the formats of other programs.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "cmd.h"

enum { HUMAN = CMD_OUTPUT_HUMAN, JSON, MAP, SHA256, RANGES, NBDINFO, EXTENTLIST, RBD_DIFF };

static const struct poptOption options[] = {
	{ "output", 0, POPT_ARG_STRING, NULL, OPT_OUTPUT,
	  "a table (default), the reply, a picture of the disk, a hash, or a list for other programs",
	  "human|json|map|sha256|ranges|nbdinfo|extentlist|rbd-diff" },
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

/* ---- what other programs read ------------------------------------------------------- */

/* Prints one range of a form that covers the disk or lists its dirty ranges. */
typedef void put_fn(uint64_t off, uint64_t len, bool dirty, bool first);

static void put_nbdinfo(uint64_t off, uint64_t len, bool dirty, bool first)
{
	printf("%s\n{ \"offset\": %" PRIu64 ", \"length\": %" PRIu64 ", \"type\": %d, \"description\": \"%s\"}",
	       first ? "" : ",", off, len, dirty, dirty ? "dirty" : "clean");
}

static void put_extent(uint64_t off, uint64_t len, bool dirty, bool first)
{
	(void)first;
	printf("%" PRIu64 " %" PRIu64 "%s\n", off, len, dirty ? "" : " hole,zero");
}

static void put_rbd(uint64_t off, uint64_t len, bool dirty, bool first)
{
	if (dirty)
		printf("%s{\"offset\":%" PRIu64 ",\"length\":%" PRIu64 ",\"exists\":\"true\"}", first ? "" : ",", off,
		       len);
}

/* Calls a put_fn for every range of the disk in order, or only for the dirty ones. */
static void put_all(const struct tide_dump *dump, bool clean_too, put_fn *put)
{
	uint64_t off = 0;
	bool first = true;

	for (size_t i = 0; i < dump->n; i++) {
		const struct tide_range *r = &dump->dirty[i];

		if (clean_too && r->off > off) {
			put(off, r->off - off, false, first);
			first = false;
		}
		put(r->off, r->len, true, first);
		first = false;
		off = r->off + r->len;
	}
	if (clean_too && off < dump->disk_size)
		put(off, dump->disk_size - off, false, first);
}

/* The comment distinguishes an empty list from one that was lost in transfer. */
static void print_list(int form, const struct tide_dump *dump)
{
	switch (form) {
	case RANGES:
		puts("# OFFSET LENGTH");
		put_all(dump, false, put_extent);
		break;
	case NBDINFO:
		putchar('[');
		put_all(dump, true, put_nbdinfo);
		puts("\n]");
		break;
	case EXTENTLIST:
		put_all(dump, true, put_extent);
		break;
	default:
		putchar('[');
		put_all(dump, false, put_rbd);
		puts("]");
	}
}

/* ---- the picture ------------------------------------------------------------------- */

#define MAX_ROWS 16
#define LABEL    9
#define HOTTEST  3

/* Clean, up to a third, up to two thirds, nearly all, all dirty. */
static const char *const blocks[] = { "·", "░", "▒", "▓", "█" };
static const char *const letters[] = { ".", "-", "+", "*", "#" };

struct region {
	uint64_t off, len, dirty;
};

struct map {
	const struct tide_dump *dump;
	const char *const *shades;
	uint64_t cell;    /* bytes in a cell, a power of two and at least a granule */
	uint64_t columns; /* cells in a line */
	uint64_t n;       /* cells in all */
	size_t next;      /* the first range that may overlap the present cell */
	size_t n_hot;
	struct region hot[HOTTEST]; /* the most dirty bytes first */
};

/* Chooses the largest power of two of columns that fits the terminal, and cells large enough for MAX_ROWS lines. */
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

static uint64_t cell_len(const struct map *m, uint64_t i)
{
	uint64_t left = m->dump->disk_size - i * m->cell;

	return left < m->cell ? left : m->cell;
}

static const char *shade(const struct map *m, uint64_t dirty, uint64_t len)
{
	if (dirty == 0 || dirty == len)
		return m->shades[dirty ? 4 : 0];
	return m->shades[1 + (int)((double)dirty / (double)len * 3)];
}

/* Keeps the HOTTEST regions with the most dirty bytes; among equal ones the first. */
static void note_region(struct map *m, uint64_t off, uint64_t len, uint64_t dirty)
{
	size_t i = m->n_hot;

	while (i > 0 && m->hot[i - 1].dirty < dirty)
		i--;
	if (i == HOTTEST || dirty == 0)
		return;
	m->n_hot += m->n_hot < HOTTEST;
	memmove(&m->hot[i + 1], &m->hot[i], (m->n_hot - i - 1) * sizeof(m->hot[0]));
	m->hot[i] = (struct region){ off, len, dirty };
}

/* Prints the cells and collects the hottest regions; a region is a run of cells that are not clean. */
static void print_cells(struct map *m)
{
	struct region run = { 0 };
	char size[UI_SIZE_MAX];

	for (uint64_t i = 0; i < m->n; i++) {
		uint64_t off = i * m->cell, len = cell_len(m, i), dirty = dirty_between(m, off, off + len);

		if (i % m->columns == 0)
			printf("%*s ", LABEL, ui_size(size, off));
		fputs(shade(m, dirty, len), stdout);
		if ((i + 1) % m->columns == 0 || i + 1 == m->n)
			putchar('\n');
		if (dirty && !run.len)
			run.off = off;
		if (dirty) {
			run.len += len;
			run.dirty += dirty;
		}
		if (!dirty || i + 1 == m->n) {
			note_region(m, run.off, run.len, run.dirty);
			run = (struct region){ 0 };
		}
	}
}

static void print_hottest(const struct map *m)
{
	char off[UI_SIZE_MAX], len[UI_SIZE_MAX], dirty[UI_SIZE_MAX];

	for (size_t i = 0; i < m->n_hot; i++) {
		const struct region *r = &m->hot[i];

		printf("%*s %s +%s: %s (%.0f %%)\n", LABEL, i ? "" : "hottest", ui_size(off, r->off),
		       ui_size(len, r->len), ui_size(dirty, r->dirty), (double)r->dirty / (double)r->len * 100);
	}
}

static void print_legend(const struct map *m)
{
	const char *const *s = m->shades;

	printf("%*s %s clean %s%s%s partly %s dirty\n", LABEL, "", s[0], s[1], s[2], s[3], s[4]);
}

static void print_map(struct cmd *c, const struct tide_dump *dump)
{
	struct map m = { .dump = dump, .shades = ui_is_utf8() ? blocks : letters };
	CMD_AUTOFREE char *name = ui_escape(c->args[1]);
	uint64_t dirty = dirty_between(&m, 0, dump->disk_size);
	char a[UI_SIZE_MAX], b[UI_SIZE_MAX];

	m.next = 0;
	lay_out(&m);
	printf("%s: %s of %s dirty (%.1f %%)%s", name ? name : "", ui_size(a, dirty), ui_size(b, dump->disk_size),
	       dump->disk_size ? (double)dirty / (double)dump->disk_size * 100 : 0.0, ui_columns(1) < 76 ? "\n" : ", ");
	printf("granularity %s, a cell is %s\n", ui_size(a, dump->granularity), ui_size(b, m.cell));
	print_cells(&m);
	print_legend(&m);
	print_hottest(&m);
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
	else if (output == JSON)
		tide_reply_dump(c->session, dump);
	else
		print_list(output, dump);
	tide_dump_free(dump);
	return 0;
}

const struct command command = {
	.name = "bitmap-dump",
	.summary = "Show the dirty ranges of a bitmap",
	.arguments = "IMAGE NAME",
	.completes = "fb",
	.options = options,
	.min_args = 2,
	.max_args = 2,
	.flags = CMD_IMAGE | CMD_SHOW,
	.run = run,
};
