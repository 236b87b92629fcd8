/*
 * Reads a JSON list from a file element by element, so that a list of millions takes the memory of one element.
 *
 * The bytes of an element are collected up to the comma or bracket that ends it, and then parsed like any JSON text.
 * The text around the list (none, or an object with the list as its member "return") is collected in the same way, with
 * an empty list in place of the list, and parsed at the end, so that errors there are found, too.  Long runs of blanks
 * between words are shortened.
 */
#include <inttypes.h>
#include <string.h>

#include "base/error.h"
#include "base/json.h"
#include "base/strbuf.h"
#include "base/sysio.h"
#include "ranges.h"

#define READ_SIZE  ((size_t)64 << 10)
#define TEXT_MAX   ((size_t)1 << 20) /* of an element, and of the text around the list */
#define BLANKS_MAX 64u               /* of a run of blanks */

enum { END = -1, FAILED = -2 };

struct source {
	struct tide_ranges_input *in;
	size_t at;      /* in the part of the input that is in memory */
	uint64_t place; /* in the input */
};

/* Text that is collected for the parser. */
struct text {
	struct tide_strbuf sb;
	unsigned blanks; /* at its end */
	bool quoted, escaped;
};

/* A byte, END, or FAILED. */
static int next_byte(struct source *s, struct tide_error *err)
{
	if (s->at == s->in->len) {
		ssize_t n = tide_sysio_read(s->in->fd, s->in->text, READ_SIZE, err);

		if (n <= 0)
			return n < 0 ? FAILED : END;
		s->in->len = (size_t)n;
		s->at = 0;
	}
	s->place++;
	return (unsigned char)s->in->text[s->at++];
}

static bool is_blank(int c)
{
	return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

static void text_begin(struct text *t)
{
	tide_strbuf_reset(&t->sb);
	t->blanks = 0;
	t->quoted = t->escaped = false;
}

static int text_add(struct text *t, int c, struct tide_error *err)
{
	bool quoted = t->quoted;

	if (!t->quoted)
		t->quoted = c == '"';
	else if (!t->escaped && c == '"')
		t->quoted = false;
	t->escaped = t->quoted && quoted && !t->escaped && c == '\\';
	t->blanks = !quoted && is_blank(c) ? t->blanks + 1 : 0;
	if (t->blanks > BLANKS_MAX)
		return 0;
	if (t->sb.len == TEXT_MAX)
		return tide_error_set(err, TIDE_E_REFUSED, "It has more than %zu bytes", TEXT_MAX);
	tide_strbuf_addc(&t->sb, (char)c);
	return t->sb.failed ? tide_error_set_nomem(err) : 0;
}

/* Collects an element.  Returns the character that ends it, ',' or ']', or END, or FAILED. */
static int take_element(struct source *s, struct text *t, struct tide_error *err)
{
	int depth = 0, c;

	text_begin(t);
	while ((c = next_byte(s, err)) >= 0) {
		if (!t->quoted && depth == 0 && (c == ',' || c == ']'))
			return c;
		if (!t->quoted)
			depth += (c == '{' || c == '[') - (c == '}' || c == ']');
		if (text_add(t, c, err) < 0)
			return FAILED;
	}
	return c;
}

struct visitor {
	int (*fn)(void *data, const struct tide_json *element, struct tide_error *err);
	void *data;
};

/* start: where the element begins in the input. */
static int visit(const struct visitor *v, const struct text *t, size_t number, uint64_t start, struct tide_error *err)
{
	struct tide_json *json TIDE_AUTOJSON = tide_json_parse(t->sb.buf ? t->sb.buf : "", t->sb.len, err);

	if (!json)
		return tide_error_wrap(err, "Element %zu of the list, which begins at byte %" PRIu64, number, start);
	return v->fn(v->data, json, err) < 0 ? tide_error_wrap(err, "Element %zu of the list", number) : 0;
}

/* Called after the opening bracket. */
static int visit_list(struct source *s, struct text *t, const struct visitor *v, struct tide_error *err)
{
	for (size_t i = 0;; i++) {
		uint64_t start = s->place;
		int end = take_element(s, t, err);

		if (end == FAILED)
			return tide_error_wrap(err, "Element %zu of the list", i);
		if (end == END)
			return tide_error_set(err, TIDE_E_REFUSED,
			                      "JSON parse error at byte %" PRIu64 ": unexpected end of the text",
			                      s->place);
		if (end == ']' && i == 0 && t->blanks == t->sb.len)
			return 0;
		if (visit(v, t, i, start, err) < 0)
			return -1;
		if (end == ']')
			return 0;
	}
}

/* A list that is small, or in an unusual place. */
static int visit_tree(const struct tide_json *json, const struct visitor *v, struct tide_error *err)
{
	const struct tide_json *list = tide_json_member(json, "return") ? tide_json_member(json, "return") : json;

	if (tide_json_kind(list) != TIDE_JSON_ARRAY)
		return tide_error_set(err, TIDE_E_REFUSED, "Expected a JSON list of ranges, found %s",
		                      tide_json_kind_name(tide_json_kind(list)));
	for (size_t i = 0; i < tide_json_count(list); i++) {
		if (v->fn(v->data, tide_json_at(list, i), err) < 0)
			return tide_error_wrap(err, "Element %zu of the list", i);
	}
	return 0;
}

/* The text around the list. */
struct around {
	struct text text;
	int depth;
	bool is_return; /* the last string is "return", and a member of the object */
	bool expects;   /* a colon after it: its value follows */
	size_t string;  /* where the last string begins */
	bool visited;
};

/* Does the list begin with this bracket? */
static bool begins_list(const struct around *a, int c)
{
	if (c != '[' || a->text.quoted || a->visited)
		return false;
	return a->depth == 0 ? a->text.blanks == a->text.sb.len : a->depth == 1 && a->expects;
}

static int add_around(struct around *a, int c, struct tide_error *err)
{
	static const char key[] = "\"return\"";
	bool was_quoted = a->text.quoted;

	if (!was_quoted && !is_blank(c)) {
		a->expects = c == ':' && a->is_return;
		a->is_return = false;
		a->depth += (c == '{' || c == '[') - (c == '}' || c == ']');
	}
	if (text_add(&a->text, c, err) < 0)
		return -1;
	if (!was_quoted && a->text.quoted)
		a->string = a->text.sb.len - 1;
	if (was_quoted && !a->text.quoted)
		a->is_return = a->depth == 1 && !strcmp(a->text.sb.buf + a->string, key);
	return 0;
}

static int read_around(struct source *s, struct around *a, const struct visitor *v, struct tide_error *err)
{
	struct text element = { .sb = TIDE_STRBUF_INIT };
	int c, rc = 0;

	while (rc == 0 && (c = next_byte(s, err)) >= 0) {
		if (!begins_list(a, c)) {
			rc = add_around(a, c, err);
			continue;
		}
		rc = visit_list(s, &element, v, err);
		a->visited = true;
		if (rc == 0)
			rc = add_around(a, '[', err);
		if (rc == 0)
			rc = add_around(a, ']', err);
	}
	tide_strbuf_release(&element.sb);
	return rc < 0 || c == FAILED ? -1 : 0;
}

int tide_ranges_each_element(struct tide_ranges_input *in,
                             int (*fn)(void *data, const struct tide_json *element, struct tide_error *err), void *data,
                             struct tide_error *err)
{
	struct source s = { .in = in, .place = in->dropped };
	struct around a = { .text = { .sb = TIDE_STRBUF_INIT } };
	struct visitor v = { fn, data };
	struct tide_json *json TIDE_AUTOJSON = NULL;
	int rc = read_around(&s, &a, &v, err);

	if (rc == 0) {
		json = tide_json_parse(a.text.sb.buf ? a.text.sb.buf : "", a.text.sb.len, err);
		rc = !json ? -1 : a.visited ? 0 : visit_tree(json, &v, err);
	}
	tide_strbuf_release(&a.text.sb);
	return rc;
}
