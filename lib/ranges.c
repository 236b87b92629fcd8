#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "json.h"
#include "mem.h"
#include "range.h"
#include "sysio.h"

/* Far more than any real list; keeps a wrong file from filling the memory. */
#define MAX_INPUT ((size_t)256 << 20)

struct collector {
	struct tide_range_list *list;
	size_t cap;
};

void tide_range_list_free(struct tide_range_list *list)
{
	if (!list)
		return;
	free(list->ranges);
	free(list);
}

static void free_list(struct tide_range_list **list)
{
	tide_range_list_free(*list);
}

static int collect(struct collector *c, uint64_t off, uint64_t len, struct tide_error *err)
{
	struct tide_range_list *list = c->list;

	if (!tide_range_is_within(off, len, INT64_MAX))
		return tide_error_set(err, TIDE_E_REFUSED, "%" PRIu64 " bytes at %" PRIu64 " reach beyond 2^63 - 1",
		                      len, off);
	if (len == 0)
		return 0;
	if (list->n == c->cap) {
		size_t cap = c->cap ? c->cap * 2 : 64;
		struct tide_range *ranges = tide_mem_realloc(list->ranges, cap, sizeof(*ranges), err);
		if (!ranges)
			return -1;
		list->ranges = ranges;
		c->cap = cap;
	}
	list->ranges[list->n++] = (struct tide_range){ off, len };
	return 0;
}

/* ---- JSON: each kind of element says by its members which program printed it --------- */

static int get_number(const struct tide_json *element, const char *key, uint64_t *v, struct tide_error *err)
{
	const struct tide_json *member = tide_json_member(element, key);

	if (!member)
		return tide_error_set(err, TIDE_E_REFUSED, "it has no \"%s\"", key);
	if (!tide_json_get_uint(member, v))
		return tide_error_set(err, TIDE_E_REFUSED, "\"%s\" is not an integer from 0 to 2^63 - 1", key);
	return 0;
}

static int get_flag(const struct tide_json *element, const char *key, bool *v, struct tide_error *err)
{
	const struct tide_json *member = tide_json_member(element, key);

	if (!member || !tide_json_get_bool(member, v))
		return tide_error_set(err, TIDE_E_REFUSED, "\"%s\" is not true or false", key);
	return 0;
}

/* bitmap-dump: {"start", "length", "dirty"}. */
static int is_dirty_flagged(const struct tide_json *element, bool *written, struct tide_error *err)
{
	return get_flag(element, "dirty", written, err);
}

/* qemu-img map: what the top image itself says something about. */
static int is_mapped(const struct tide_json *element, bool *written, struct tide_error *err)
{
	bool data, zero, present;
	uint64_t depth;

	if (get_number(element, "depth", &depth, err) < 0 || get_flag(element, "data", &data, err) < 0 ||
	    get_flag(element, "zero", &zero, err) < 0)
		return -1;
	present = data || zero; /* QEMU before 6.1 does not tell */
	if (tide_json_member(element, "present") && get_flag(element, "present", &present, err) < 0)
		return -1;
	/* With x-dirty-bitmap, qemu-img map shows what is dirty as a hole, and nothing else tells. */
	if (!present && !data && !zero)
		return tide_error_set(err, TIDE_E_REFUSED,
		                      "it is neither data nor zeroes, as when qemu-img map shows an x-dirty-bitmap "
		                      "(nbdinfo --map=qemu:dirty-bitmap:NAME --json shows that clearly)");
	*written = depth == 0 && present;
	return 0;
}

/* nbdinfo --map: the contexts qemu:dirty-bitmap:*, base:allocation and qemu:allocation-depth. */
static int is_described(const struct tide_json *element, bool *written, struct tide_error *err)
{
	static const struct {
		const char *description;
		bool written;
	} known[] = {
		{ "clean", false }, { "dirty", true },       { "data", true },     { "hole", false },
		{ "zero", true },   { "hole,zero", false },  { "absent", false },  { "local", true },
	};
	const char *text = NULL;
	const struct tide_json *member = tide_json_member(element, "description");
	uint64_t type;

	if (get_number(element, "type", &type, err) < 0)
		return -1;
	if (!member || !tide_json_get_string(member, &text, NULL))
		return tide_error_set(err, TIDE_E_REFUSED, "it has no \"description\" that is a string");
	for (size_t i = 0; i < TIDE_ARRAY_SIZE(known); i++)
		if (strcmp(text, known[i].description) == 0) {
			*written = known[i].written;
			return 0;
		}
	if (strncmp(text, "backing depth ", 14) == 0) {
		*written = false;
		return 0;
	}
	return tide_error_set(err, TIDE_E_REFUSED, "its \"description\" is '%s', which is not known", text);
}

/* rbd diff: everything listed changed, whether it exists still or not. */
static int is_listed(const struct tide_json *element, bool *written, struct tide_error *err)
{
	const struct tide_json *exists = tide_json_member(element, "exists");
	const char *text;
	bool flag;

	*written = true;
	if (tide_json_get_bool(exists, &flag) ||
	    (tide_json_get_string(exists, &text, NULL) && (strcmp(text, "true") == 0 || strcmp(text, "false") == 0)))
		return 0;
	return tide_error_set(err, TIDE_E_REFUSED, "\"exists\" is not true or false");
}

static const struct {
	const char *start, *mark; /* the members that tell this kind */
	int (*is_written)(const struct tide_json *element, bool *written, struct tide_error *err);
} forms[] = {
	{ "start", "dirty", is_dirty_flagged },
	{ "start", "depth", is_mapped },
	{ "offset", "type", is_described },
	{ "offset", "exists", is_listed },
};

static int collect_element(struct collector *c, const struct tide_json *element, struct tide_error *err)
{
	uint64_t off, len;
	bool written;

	if (tide_json_kind(element) != TIDE_JSON_OBJECT)
		return tide_error_set(err, TIDE_E_REFUSED, "it is %s, not an object",
		                      tide_json_kind_name(tide_json_kind(element)));
	for (size_t i = 0; i < TIDE_ARRAY_SIZE(forms); i++) {
		if (!tide_json_member(element, forms[i].start) || !tide_json_member(element, forms[i].mark))
			continue;
		if (get_number(element, forms[i].start, &off, err) < 0 ||
		    get_number(element, "length", &len, err) < 0 || forms[i].is_written(element, &written, err) < 0)
			return -1;
		/* What is not taken must make sense too. */
		if (!written && tide_range_is_within(off, len, INT64_MAX))
			return 0;
		return collect(c, off, len, err);
	}
	return tide_error_set(err, TIDE_E_REFUSED,
	                      "it is not a range as bitmap-dump, nbdinfo --map, qemu-img map or rbd diff print it");
}

static int collect_json(struct collector *c, const char *text, size_t len, struct tide_error *err)
{
	struct tide_json *json TIDE_AUTOJSON = tide_json_parse(text, len, err);

	if (!json)
		return -1;
	const struct tide_json *list = tide_json_member(json, "return") ? tide_json_member(json, "return") : json;
	if (tide_json_kind(list) != TIDE_JSON_ARRAY)
		return tide_error_set(err, TIDE_E_REFUSED, "Expected a JSON list of ranges, found %s",
		                      tide_json_kind_name(tide_json_kind(list)));
	for (size_t i = 0; i < tide_json_count(list); i++)
		if (collect_element(c, tide_json_at(list, i), err) < 0)
			return tide_error_wrap(err, "Element %zu of the list", i);
	return 0;
}

/* ---- lines of OFFSET LENGTH -------------------------------------------------------- */

#define BLANKS " \t\r\v\f"

/* The next word of *text, cut off with a NUL; NULL when there is none. */
static char *next_word(char **text)
{
	char *word = *text + strspn(*text, BLANKS);
	char *end = word + strcspn(word, BLANKS);

	if (word == end)
		return NULL;
	*text = *end ? end + 1 : end;
	*end = '\0';
	return word;
}

/* What is wrong in a file is not the command line's fault. */
static int parse_word(const char *word, uint64_t *v, struct tide_error *err)
{
	if (tide_parse_size(word, v, err) == 0)
		return 0;
	if (err && err->code == TIDE_E_USAGE)
		err->code = TIDE_E_REFUSED;
	return -1;
}

static int collect_line(struct collector *c, char *line, struct tide_error *err)
{
	uint64_t off, len;

	line[strcspn(line, "#")] = '\0';
	char *offset = next_word(&line);
	if (!offset)
		return 0;
	char *length = next_word(&line);
	if (!length)
		return tide_error_set(err, TIDE_E_REFUSED, "expected OFFSET LENGTH, found '%s' alone", offset);
	char *more = next_word(&line);
	if (more)
		return tide_error_set(err, TIDE_E_REFUSED, "expected OFFSET LENGTH, found '%s' after them", more);
	if (parse_word(offset, &off, err) < 0 || parse_word(length, &len, err) < 0)
		return -1;
	return collect(c, off, len, err);
}

static int collect_lines(struct collector *c, char *text, size_t len, struct tide_error *err)
{
	char *end = text + len, *next;

	for (size_t n = 1; text < end; text = next, n++) {
		char *newline = memchr(text, '\n', (size_t)(end - text));
		char *line_end = newline ? newline : end;
		next = newline ? newline + 1 : end;
		*line_end = '\0';
		if (strlen(text) != (size_t)(line_end - text))
			tide_error_set(err, TIDE_E_REFUSED, "it holds a NUL byte");
		else if (collect_line(c, text, err) == 0)
			continue;
		return tide_error_wrap(err, "Line %zu", n);
	}
	return 0;
}

/* ------------------------------------------------------------------------------------ */

/* The whole input, with a NUL after it. */
static char *read_all(int fd, size_t *len, struct tide_error *err)
{
	char *buf TIDE_AUTOFREE = NULL;
	size_t cap = 64 << 10;

	for (*len = 0;; cap *= 2) {
		char *bigger = tide_mem_realloc(buf, cap + 1, 1, err);
		if (!bigger)
			return NULL;
		buf = bigger;
		ssize_t n = tide_sysio_read(fd, buf + *len, cap - *len, err);
		if (n < 0)
			return NULL;
		*len += (size_t)n;
		if (*len < cap)
			break;
		if (cap >= MAX_INPUT) {
			tide_error_set(err, TIDE_E_REFUSED, "The list of ranges has more than %zu bytes", MAX_INPUT);
			return NULL;
		}
	}
	char *text = buf;
	text[*len] = '\0';
	buf = NULL;
	return text;
}

int tide_ranges_read(int fd, struct tide_range_list **list, struct tide_error *err)
{
	size_t len;
	char *text TIDE_AUTOFREE = read_all(fd, &len, err);

	if (!text)
		return -1;
	if (len == 0) {
		tide_error_set(err, TIDE_E_REFUSED, "The list of ranges is empty");
		return tide_error_hint(err, "If nothing was written, say so: [] or a comment line.");
	}
	struct tide_range_list *new_list TIDE_CLEANUP(free_list) = tide_mem_alloc(1, sizeof(*new_list), err);
	if (!new_list)
		return -1;
	struct collector c = { .list = new_list };
	char first = text[strspn(text, BLANKS "\n")];
	bool json = first == '[' || first == '{';
	if ((json ? collect_json(&c, text, len, err) : collect_lines(&c, text, len, err)) < 0)
		return -1;
	*list = new_list;
	new_list = NULL;
	return 0;
}
