/*
 * Reads lists of blocks in XML, from thin_delta, era_invalidate and bmap-tools, and the block size from
 * era_dump. The root element decides which program printed the list.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/xml.h"
#include "ranges.h"

#define SECTOR   512u
#define TEXT_MAX 64u

struct list;

/* A kind of list, identified by its root element and an attribute of that element. */
struct kind {
	const char *name, *root, *mark;
	int (*start)(struct list *l, unsigned depth, const char *name, const char *const *attributes,
	             struct tide_error *err);
	int (*end)(struct list *l, unsigned depth, const char *name, struct tide_error *err);
	int (*over)(struct list *l, struct tide_error *err);
};

struct list {
	struct tide_ranges_collector *c;
	const char *asked;
	const struct kind *kind;
	uint64_t unit; /* bytes a block; 0: not known yet */
	bool said;     /* the element that holds the list was seen */
	int changed;   /* thin_delta: inside an element of changed ranges; -1: in no element */
	char text[TEXT_MAX];
	size_t text_len;
	uint64_t size, mapped, listed; /* bmap: the image's bytes, mapped blocks as stated and as listed */
	bool has_mapped;
};

static int get_number(const char *const *attributes, const char *name, uint64_t *v, struct tide_error *err)
{
	const char *value = tide_xml_attribute(attributes, name);
	uint64_t number = 0;

	if (!value)
		return tide_error_set(err, TIDE_E_REFUSED, "'%s' is missing", name);
	if (!*value || strspn(value, "0123456789") != strlen(value) || strlen(value) > 19)
		return tide_error_set(err, TIDE_E_REFUSED, "%s=\"%s\" is not a number of blocks", name, value);
	for (; *value; value++)
		number = number * 10 + (uint64_t)(*value - '0');
	*v = number;
	return 0;
}

static int unknown(const char *name, const char *program, struct tide_error *err)
{
	return tide_error_set(err, TIDE_E_REFUSED, "<%s> is not an element that %s prints", name, program);
}

/* Gets a block size that is given as a number of sectors. */
static int get_unit(const char *const *attributes, const char *name, uint64_t *unit, struct tide_error *err)
{
	uint64_t sectors;

	if (get_number(attributes, name, &sectors, err) < 0)
		return -1;
	if (sectors == 0 || sectors > UINT32_MAX)
		return tide_error_set(err, TIDE_E_REFUSED, "%s=\"%" PRIu64 "\" is not a block size in sectors", name,
		                      sectors);
	*unit = sectors * SECTOR;
	return 0;
}

/* ---- thin_delta -------------------------------------------------------------------- */

/* 1: changed, 0: not, -1: neither. */
static int thin_state(const char *name)
{
	if (!strcmp(name, "different") || !strcmp(name, "left_only") || !strcmp(name, "right_only"))
		return 1;
	return strcmp(name, "same") ? -1 : 0;
}

static int thin_range(struct list *l, const char *const *attributes, bool changed, struct tide_error *err)
{
	uint64_t begin, length;

	if (get_number(attributes, "begin", &begin, err) < 0 || get_number(attributes, "length", &length, err) < 0)
		return -1;
	return changed ? tide_ranges_collect_blocks(l->c, begin, length, l->unit, err) : 0;
}

/* Ranges are elements named by their state, or with --verbose <range> elements within those. */
static int thin_start(struct list *l, unsigned depth, const char *name, const char *const *attributes,
                      struct tide_error *err)
{
	int state = thin_state(name);

	if (depth == 0)
		return get_unit(attributes, "data_block_size", &l->unit, err);
	if (depth == 1 && !strcmp(name, "diff")) {
		l->said = true;
		return 0;
	}
	if (depth == 2 && state >= 0) {
		l->changed = state;
		return tide_xml_attribute(attributes, "begin") ? thin_range(l, attributes, state, err) : 0;
	}
	if (depth == 3 && !strcmp(name, "range"))
		return thin_range(l, attributes, l->changed, err);
	return unknown(name, "thin_delta", err);
}

static int thin_over(struct list *l, struct tide_error *err)
{
	if (l->said)
		return 0;
	return tide_error_set(err, TIDE_E_REFUSED, "It has no <diff>, so it is not a list of thin_delta");
}

/* ---- era_invalidate ---------------------------------------------------------------- */

static int era_start(struct list *l, unsigned depth, const char *name, const char *const *attributes,
                     struct tide_error *err)
{
	uint64_t begin, end;

	if (depth == 0) {
		if (l->unit)
			return 0;
		tide_error_set(err, TIDE_E_USAGE, "era_invalidate does not print the block size");
		return tide_error_hint(
		        err, "use --block-size SIZE, or --era-dump FILE with era_dump's output of the same metadata");
	}
	if (depth == 1 && !strcmp(name, "block"))
		return get_number(attributes, "block", &begin, err) < 0
		               ? -1
		               : tide_ranges_collect_blocks(l->c, begin, 1, l->unit, err);
	if (depth != 1 || strcmp(name, "range"))
		return unknown(name, "era_invalidate", err);
	if (get_number(attributes, "begin", &begin, err) < 0 || get_number(attributes, "end", &end, err) < 0)
		return -1;
	if (end < begin)
		return tide_error_set(err, TIDE_E_REFUSED,
		                      "a range from %" PRIu64 " to %" PRIu64 " ends before it begins", begin, end);
	return tide_ranges_collect_blocks(l->c, begin, end - begin, l->unit, err);
}

/* ---- bmap-tools -------------------------------------------------------------------- */

static int bmap_start(struct list *l, unsigned depth, const char *name, const char *const *attributes,
                      struct tide_error *err)
{
	l->text_len = 0;
	if (depth == 1 && !strcmp(name, "BlockMap")) {
		if (!l->unit)
			return tide_error_set(err, TIDE_E_REFUSED, "<BlockMap> comes before <BlockSize>");
		l->said = true;
	}
	if (depth == 2 && strcmp(name, "Range"))
		return unknown(name, "bmaptool", err);
	return 0;
}

/* A whole number with blanks around it; *rest is the text after it. */
static int text_number(char *text, char **rest, uint64_t *v, struct tide_error *err)
{
	size_t digits;

	text += strspn(text, TIDE_RANGES_BLANKS "\n");
	digits = strspn(text, "0123456789");
	if (digits == 0 || digits > 18)
		return tide_error_set(err, TIDE_E_REFUSED, "'%s' is not a number", text);
	*v = strtoull(text, NULL, 10);
	*rest = text + digits + strspn(text + digits, TIDE_RANGES_BLANKS "\n");
	return 0;
}

static int bmap_number(struct list *l, uint64_t *v, struct tide_error *err)
{
	char *rest;

	if (text_number(l->text, &rest, v, err) < 0)
		return -1;
	return *rest ? tide_error_set(err, TIDE_E_REFUSED, "'%s' follows a number", rest) : 0;
}

/* FIRST-LAST, or a single block; the last block of an image may extend beyond it. */
static int bmap_range(struct list *l, struct tide_error *err)
{
	uint64_t first, last, off, end;
	char *rest;

	if (text_number(l->text, &rest, &first, err) < 0)
		return -1;
	last = first;
	if (*rest == '-' && text_number(rest + 1, &rest, &last, err) < 0)
		return -1;
	if (*rest || last < first)
		return tide_error_set(err, TIDE_E_REFUSED, "'%s' is not a range of blocks", l->text);
	if (__builtin_mul_overflow(first, l->unit, &off) || __builtin_mul_overflow(last + 1, l->unit, &end))
		return tide_ranges_collect_blocks(l->c, first, last - first + 1, l->unit, err);
	l->listed += last - first + 1;
	if (off < l->size && end > l->size && end - l->size < l->unit)
		end = l->size;
	return tide_ranges_collect(l->c, off, end - off, err);
}

static int bmap_end(struct list *l, unsigned depth, const char *name, struct tide_error *err)
{
	l->text[l->text_len] = '\0';
	if (depth == 2)
		return bmap_range(l, err);
	if (depth != 1)
		return 0;
	if (!strcmp(name, "ImageSize"))
		return bmap_number(l, &l->size, err);
	if (!strcmp(name, "MappedBlocksCount")) {
		l->has_mapped = true;
		return bmap_number(l, &l->mapped, err);
	}
	if (strcmp(name, "BlockSize"))
		return 0;
	if (bmap_number(l, &l->unit, err) < 0)
		return -1;
	return l->unit ? 0 : tide_error_set(err, TIDE_E_REFUSED, "the block size is 0");
}

static int bmap_over(struct list *l, struct tide_error *err)
{
	if (!l->said)
		return tide_error_set(err, TIDE_E_REFUSED, "It has no <BlockMap>");
	if (l->has_mapped && l->mapped != l->listed)
		return tide_error_set(err, TIDE_E_REFUSED,
		                      "It states %" PRIu64 " mapped blocks but lists %" PRIu64 ": it is incomplete",
		                      l->mapped, l->listed);
	l->c->list->covers = l->size;
	return 0;
}

/* ------------------------------------------------------------------------------------ */

static const struct kind kinds[] = {
	{ "thin-delta", "superblock", "data_block_size", thin_start, NULL, thin_over },
	{ "era-invalidate", "blocks", NULL, era_start, NULL, NULL },
	{ "bmap", "bmap", NULL, bmap_start, bmap_end, bmap_over },
};

static int find_kind(struct list *l, const char *root, const char *const *attributes, struct tide_error *err)
{
	for (size_t i = 0; i < TIDE_ARRAY_SIZE(kinds); i++) {
		const struct kind *k = &kinds[i];

		if (strcmp(k->root, root) || (k->mark && !tide_xml_attribute(attributes, k->mark)))
			continue;
		l->kind = k;
		if (!l->asked || !strcmp(l->asked, k->name))
			return 0;
		return tide_error_set(err, TIDE_E_REFUSED, "<%s> begins a list of the format %s, not %s", root, k->name,
		                      l->asked);
	}
	tide_error_set(err, TIDE_E_REFUSED, "<%s> does not begin a list of thin_delta, era_invalidate or bmaptool",
	               root);
	if (!strcmp(root, "superblock") && tide_xml_attribute(attributes, "block_size"))
		tide_error_hint(err, "use --era-dump for era_dump's output, and --from for era_invalidate's");
	return -1;
}

static int on_start(void *data, unsigned depth, const char *name, const char *const *attributes, struct tide_error *err)
{
	struct list *l = data;

	if (depth == 0 && find_kind(l, name, attributes, err) < 0)
		return -1;
	return l->kind->start(l, depth, name, attributes, err);
}

static int on_end(void *data, unsigned depth, const char *name, struct tide_error *err)
{
	struct list *l = data;

	return l->kind->end ? l->kind->end(l, depth, name, err) : 0;
}

/* Keeps the beginning of the text. No number needs more room, and other texts are not used. */
static int on_text(void *data, const char *text, size_t len, struct tide_error *err)
{
	struct list *l = data;
	size_t n = TIDE_MIN(len, TEXT_MAX - 1 - l->text_len);

	memcpy(l->text + l->text_len, text, n);
	l->text_len += n;
	return 0;
}

int tide_ranges_read_xml(struct tide_ranges_input *in, struct tide_ranges_collector *c, struct tide_error *err)
{
	static const struct tide_xml_handler handler = { on_start, on_end, on_text };
	struct list l = { .c = c, .asked = in->format, .unit = in->block_size, .changed = -1 };

	if (tide_xml_parse(in->text, in->len, &handler, &l, err) < 0)
		return -1;
	return l.kind->over ? l.kind->over(&l, err) : 0;
}

/* ---- era_dump ---------------------------------------------------------------------- */

static int on_dump_start(void *data, unsigned depth, const char *name, const char *const *attributes,
                         struct tide_error *err)
{
	if (depth > 0)
		return 0;
	if (strcmp(name, "superblock"))
		return unknown(name, "era_dump", err);
	return get_unit(attributes, "block_size", data, err);
}

static int on_dump_end(void *data, unsigned depth, const char *name, struct tide_error *err)
{
	return 0;
}

int tide_ranges_unit_of(const struct tide_ranges_input *in, uint64_t *unit, struct tide_error *err)
{
	static const struct tide_xml_handler handler = { on_dump_start, on_dump_end, NULL };

	return tide_xml_parse(in->text, in->len, &handler, unit, err);
}
