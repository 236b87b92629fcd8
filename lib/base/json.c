/*
 * Writes JSON as QEMU's QMP server lays it out, and reads it strictly. json-c does the reading; a
 * scan before it refuses what json-c would let pass or change silently. This is the only code that
 * calls json-c, which is loaded on first use.
 */
#include <inttypes.h>
#include <json-c/json.h>
#include <limits.h>
#include <string.h>

#include "dynlib.h"
#include "error.h"
#include "json.h"
#include "mem.h"

/* ---- UTF-8 ------------------------------------------------------------------------- */

/*
 * The code point at s, or -1 for bytes that are not UTF-8. *next: after it, or after the bytes that look
 * like one sequence, cut where QEMU cuts them.
 */
static int32_t decode(const unsigned char *s, const unsigned char **next)
{
	static const int32_t least[] = { 0, 0, 0x80, 0x800, 0x10000, 0x200000, 0x4000000 };
	int len = s[0] < 0x80 ? 1 : s[0] < 0xc0 || s[0] >= 0xfe ? 0 : __builtin_clz((unsigned char)~s[0]) - 24;
	int32_t cp = len == 1 ? s[0] : s[0] & (0x7f >> len);

	*next = s + 1;
	if (len < 2)
		return len == 1 ? cp : -1;
	for (int i = 1; i < len; i++, (*next)++) {
		if ((s[i] & 0xc0) != 0x80)
			return -1;
		cp = cp << 6 | (s[i] & 0x3f);
	}
	return cp < least[len] || cp > 0x10ffff || (cp >= 0xd800 && cp <= 0xdfff) ? -1 : cp;
}

bool tide_json_is_utf8(const char *s)
{
	const unsigned char *p = (const unsigned char *)s;

	while (*p)
		if (decode(p, &p) < 0)
			return false;
	return true;
}

/* ---- writing ----------------------------------------------------------------------- */

static void add_escape(struct tide_strbuf *sb, int32_t cp)
{
	/* QEMU replaces noncharacters, such as U+FFFF, by U+FFFD. */
	if (cp < 0 || (cp & 0xfffe) == 0xfffe || (cp >= 0xfdd0 && cp <= 0xfdef))
		cp = 0xfffd;
	if (cp < 0x10000)
		tide_strbuf_addf(sb, "\\u%04X", (unsigned)cp);
	else
		tide_strbuf_addf(sb, "\\u%04X\\u%04X", 0xd7c0 + ((unsigned)cp >> 10), 0xdc00 + ((unsigned)cp & 0x3ff));
}

static void add_quoted(struct tide_strbuf *sb, const char *s)
{
	static const char plain[] = "\"\\\b\f\n\r\t", letter[] = "\"\\bfnrt";
	const unsigned char *p = (const unsigned char *)s;

	tide_strbuf_addc(sb, '"');
	while (*p) {
		const unsigned char *next = p;
		const char *short_form = strchr(plain, *p);
		while (*next >= 0x20 && *next < 0x7f && *next != '"' && *next != '\\')
			next++;
		if (next > p) {
			tide_strbuf_add(sb, p, (size_t)(next - p));
			p = next;
		} else if (short_form) {
			tide_strbuf_addc(sb, '\\');
			tide_strbuf_addc(sb, letter[short_form - plain]);
			p++;
		} else if (p[0] == 0xc0 && p[1] == 0x80) { /* QEMU's way to write a NUL */
			add_escape(sb, 0);
			p += 2;
		} else {
			add_escape(sb, decode(p, &p));
		}
	}
	tide_strbuf_addc(sb, '"');
}

/* Writes what precedes a value: the comma and the key. */
static void lead_in(struct tide_json_writer *w, const char *key)
{
	if (w->comma)
		tide_strbuf_adds(w->sb, ", ");
	w->comma = true;
	if (key) {
		add_quoted(w->sb, key);
		tide_strbuf_adds(w->sb, ": ");
	}
}

void tide_json_begin(struct tide_json_writer *w, const char *key, char bracket)
{
	lead_in(w, key);
	tide_strbuf_addc(w->sb, bracket);
	w->comma = false;
}

void tide_json_end(struct tide_json_writer *w, char bracket)
{
	tide_strbuf_addc(w->sb, bracket);
	w->comma = true;
}

void tide_json_string(struct tide_json_writer *w, const char *key, const char *value)
{
	lead_in(w, key);
	add_quoted(w->sb, value);
}

void tide_json_uint(struct tide_json_writer *w, const char *key, uint64_t value)
{
	lead_in(w, key);
	tide_strbuf_addf(w->sb, "%" PRIu64, value);
}

void tide_json_int(struct tide_json_writer *w, const char *key, int64_t value)
{
	lead_in(w, key);
	tide_strbuf_addf(w->sb, "%" PRIi64, value);
}

void tide_json_bool(struct tide_json_writer *w, const char *key, bool value)
{
	tide_json_raw(w, key, value ? "true" : "false");
}

void tide_json_real(struct tide_json_writer *w, const char *key, double value)
{
	lead_in(w, key);
	tide_strbuf_addf(w->sb, "%.17g", value);
}

void tide_json_raw(struct tide_json_writer *w, const char *key, const char *json)
{
	lead_in(w, key);
	tide_strbuf_adds(w->sb, json);
}

/* ---- reading: struct tide_json is json-c's object; its null, a NULL pointer, gets an address here ---- */

enum { MAX_DEPTH = 128 };

#define CALLS(CALL)                                \
	CALL(json_c, json_, object_array_get_idx)  \
	CALL(json_c, json_, object_array_length)   \
	CALL(json_c, json_, object_get_boolean)    \
	CALL(json_c, json_, object_get_double)     \
	CALL(json_c, json_, object_get_int64)      \
	CALL(json_c, json_, object_get_object)     \
	CALL(json_c, json_, object_get_string)     \
	CALL(json_c, json_, object_get_string_len) \
	CALL(json_c, json_, object_get_type)       \
	CALL(json_c, json_, object_get_uint64)     \
	CALL(json_c, json_, object_is_type)        \
	CALL(json_c, json_, object_object_get_ex)  \
	CALL(json_c, json_, object_object_length)  \
	CALL(json_c, json_, object_put)            \
	CALL(json_c, json_, tokener_error_desc)    \
	CALL(json_c, json_, tokener_free)          \
	CALL(json_c, json_, tokener_get_error)     \
	CALL(json_c, json_, tokener_get_parse_end) \
	CALL(json_c, json_, tokener_new_ex)        \
	CALL(json_c, json_, tokener_parse_ex)      \
	CALL(json_c, json_, tokener_set_flags)

TIDE_DYNLIB_DOOR(json_c, CALLS, "libjson-c.so.5", "JSON", "libjson-c5");

static const char null_value;

static struct tide_json *wrap(struct json_object *object)
{
	return object ? (struct tide_json *)object : (struct tide_json *)&null_value;
}

static struct json_object *unwrap(const struct tide_json *json)
{
	return (const void *)json == &null_value ? NULL : (struct json_object *)json;
}

/*
 * The scan before json-c. Even in strict mode json-c lets some errors pass or changes the value silently:
 * quotes of the wrong kind, control characters in strings, NaN, "1.", integers that it would clamp, and a
 * key twice in one object.
 */
struct scan {
	const char *text;
	size_t len, at;
	size_t colons; /* colons outside strings, one a member */
};

static char peek(const struct scan *s)
{
	return s->at < s->len ? s->text[s->at] : '\0';
}

static size_t skip_digits(struct scan *s)
{
	size_t start = s->at;

	while (peek(s) >= '0' && peek(s) <= '9')
		s->at++;
	return s->at - start;
}

static const char *scan_string(struct scan *s)
{
	for (s->at++; s->at < s->len && s->text[s->at] != '"'; s->at++) {
		if ((unsigned char)s->text[s->at] < 0x20)
			return "control character in a string";
		if (s->text[s->at] == '\\' && s->at + 1 < s->len)
			s->at++;
	}
	if (s->at == s->len)
		return "unexpected end of the text";
	s->at++;
	return NULL;
}

static bool fits(const char *digits, size_t n, uint64_t most)
{
	uint64_t v = 0;

	for (size_t i = 0; i < n; i++)
		if (__builtin_mul_overflow(v, (uint64_t)10, &v) ||
		    __builtin_add_overflow(v, (uint64_t)(digits[i] - '0'), &v))
			return false;
	return v <= most;
}

static const char *scan_number(struct scan *s)
{
	bool negative = peek(s) == '-';

	s->at += negative;
	const char *digits = s->text + s->at;
	size_t n = skip_digits(s);
	bool good = n == 1 || (n > 1 && digits[0] != '0');
	bool integer = true;
	if (good && peek(s) == '.') {
		integer = false;
		s->at++;
		good = skip_digits(s) > 0;
	}
	if (good && (peek(s) == 'e' || peek(s) == 'E')) {
		integer = false;
		s->at++;
		s->at += peek(s) == '+' || peek(s) == '-';
		good = skip_digits(s) > 0;
	}
	if (!good)
		return "malformed number";
	if (integer && !fits(digits, n, negative ? (uint64_t)INT64_MAX + 1 : UINT64_MAX))
		return "number out of range";
	return NULL;
}

/* Returns what is wrong at s->at, or NULL. */
static const char *scan(struct scan *s)
{
	const char *wrong = NULL;

	while (!wrong && s->at < s->len) {
		char c = s->text[s->at];
		if (c == '"') {
			wrong = scan_string(s);
		} else if (c == '-' || (c >= '0' && c <= '9')) {
			wrong = scan_number(s);
		} else if (c && strchr(" \t\r\n{}[]:,truefalsn", c)) {
			s->colons += c == ':';
			s->at++;
		} else {
			wrong = "unexpected character";
		}
	}
	return wrong;
}

static size_t count_members(struct json_object *object)
{
	size_t n = 0;

	if (json_c.object_is_type(object, json_type_array)) {
		for (size_t i = 0; i < json_c.object_array_length(object); i++)
			n += count_members(json_c.object_array_get_idx(object, i));
	} else if (json_c.object_is_type(object, json_type_object)) {
		struct lh_table *table = json_c.object_get_object(object);
		for (struct lh_entry *entry = lh_table_head(table); entry; entry = lh_entry_next(entry))
			n += 1 + count_members(lh_entry_v(entry));
	}
	return n;
}

static void free_tokener(struct json_tokener **tok)
{
	if (*tok)
		json_c.tokener_free(*tok);
}

/* The number of blanks at `at`. */
static size_t count_blanks(const char *text, size_t len, size_t at)
{
	size_t n = 0;

	while (at + n < len && text[at + n] && strchr(" \t\r\n", text[at + n]))
		n++;
	return n;
}

static struct tide_json *refuse(struct tide_error *err, size_t at, const char *wrong)
{
	tide_error_set(err, TIDE_E_REFUSED, "JSON parse error at byte %zu: %s", at, wrong);
	return NULL;
}

struct tide_json *tide_json_parse(const char *text, size_t len, struct tide_error *err)
{
	struct json_tokener *tok TIDE_CLEANUP(free_tokener) = NULL;
	struct scan s = { .text = text, .len = len };

	if (tide_dynlib_load(&json_c_library, err) < 0)
		return NULL;
	tok = json_c.tokener_new_ex(MAX_DEPTH);
	if (!tok) {
		tide_error_set_nomem(err);
		return NULL;
	}
	if (len >= INT_MAX)
		return refuse(err, INT_MAX, "text too long");
	const char *wrong = scan(&s);
	if (wrong)
		return refuse(err, s.at, wrong);
	json_c.tokener_set_flags(tok, JSON_TOKENER_STRICT | JSON_TOKENER_VALIDATE_UTF8);
	struct json_object *object = json_c.tokener_parse_ex(tok, text, (int)len);
	enum json_tokener_error bad = json_c.tokener_get_error(tok);
	size_t end = json_c.tokener_get_parse_end(tok);
	/* A number at the very end could continue; a NUL shows that it does not. */
	if (bad == json_tokener_continue) {
		object = json_c.tokener_parse_ex(tok, "", 1);
		bad = json_c.tokener_get_error(tok);
		end = len;
	}
	if (bad == json_tokener_success)
		end += count_blanks(text, len, end);
	if (bad == json_tokener_success && end == len && count_members(object) == s.colons)
		return wrap(object);
	json_c.object_put(object);
	return refuse(err, end,
	              bad != json_tokener_success ? json_c.tokener_error_desc(bad)
	              : end < len                 ? "text after the value"
	                                          : "a key occurs twice in one object");
}

/* Appends the string at the start of text in double quotes; returns its length in the text. */
static size_t requote(const char *text, size_t len, struct tide_strbuf *sb)
{
	size_t n = 1;

	tide_strbuf_addc(sb, '"');
	for (; n < len && text[n] != text[0]; n++) {
		if (text[n] == '\\' && n + 1 < len) {
			n++;
			if (text[n] != '\'')
				tide_strbuf_addc(sb, '\\');
		} else if (text[n] == '"') {
			tide_strbuf_addc(sb, '\\');
		}
		tide_strbuf_addc(sb, text[n]);
	}
	if (n == len) /* the string has no end, and the parser will say so */
		return n;
	tide_strbuf_addc(sb, '"');
	return n + 1;
}

struct tide_json *tide_json_parse_qemu(const char *text, size_t len, struct tide_error *err)
{
	struct tide_strbuf sb = TIDE_STRBUF_INIT;
	TIDE_AUTOFREE char *strict = NULL;
	size_t n;

	for (size_t at = 0; at < len; at += n) {
		n = 1;
		if (text[at] == '"' || text[at] == '\'')
			n = requote(text + at, len - at, &sb);
		else
			tide_strbuf_addc(&sb, text[at]);
	}
	n = sb.len;
	strict = tide_strbuf_steal(&sb, err);
	return strict ? tide_json_parse(strict, n, err) : NULL;
}

void tide_json_free(struct tide_json *json)
{
	if (json)
		json_c.object_put(unwrap(json));
}

void tide_json_freep(struct tide_json **json)
{
	tide_json_free(*json);
}

enum tide_json_kind tide_json_kind(const struct tide_json *json)
{
	switch (json_c.object_get_type(unwrap(json))) {
	case json_type_boolean:
		return TIDE_JSON_BOOL;
	case json_type_int:
		return TIDE_JSON_INTEGER;
	case json_type_double:
		return TIDE_JSON_REAL;
	case json_type_string:
		return TIDE_JSON_STRING;
	case json_type_array:
		return TIDE_JSON_ARRAY;
	case json_type_object:
		return TIDE_JSON_OBJECT;
	case json_type_null:
		break;
	}
	return TIDE_JSON_NULL;
}

const char *tide_json_kind_name(enum tide_json_kind kind)
{
	static const char *const names[] = {
		"null", "a boolean", "an integer", "a fraction", "a string", "an array", "an object",
	};

	return names[kind];
}

bool tide_json_get_uint(const struct tide_json *json, uint64_t *v)
{
	*v = json_c.object_get_uint64(unwrap(json));
	return tide_json_kind(json) == TIDE_JSON_INTEGER && json_c.object_get_int64(unwrap(json)) >= 0;
}

bool tide_json_get_int(const struct tide_json *json, int64_t *v)
{
	*v = json_c.object_get_int64(unwrap(json));
	return tide_json_kind(json) == TIDE_JSON_INTEGER && json_c.object_get_uint64(unwrap(json)) <= INT64_MAX;
}

bool tide_json_get_bool(const struct tide_json *json, bool *v)
{
	*v = json_c.object_get_boolean(unwrap(json));
	return tide_json_kind(json) == TIDE_JSON_BOOL;
}

bool tide_json_get_real(const struct tide_json *json, double *v)
{
	*v = json_c.object_get_double(unwrap(json));
	return tide_json_kind(json) == TIDE_JSON_REAL;
}

bool tide_json_get_string(const struct tide_json *json, const char **v, size_t *len)
{
	if (tide_json_kind(json) != TIDE_JSON_STRING)
		return false;
	size_t bytes = (size_t)json_c.object_get_string_len(unwrap(json));
	*v = json_c.object_get_string(unwrap(json));
	if (len)
		*len = bytes;
	return len || strlen(*v) == bytes;
}

size_t tide_json_count(const struct tide_json *json)
{
	switch (tide_json_kind(json)) {
	case TIDE_JSON_ARRAY:
		return json_c.object_array_length(unwrap(json));
	case TIDE_JSON_OBJECT:
		return (size_t)json_c.object_object_length(unwrap(json));
	default:
		return 0;
	}
}

const struct tide_json *tide_json_at(const struct tide_json *array, size_t i)
{
	if (tide_json_kind(array) != TIDE_JSON_ARRAY || i >= tide_json_count(array))
		return NULL;
	return wrap(json_c.object_array_get_idx(unwrap(array), i));
}

const struct tide_json *tide_json_member(const struct tide_json *object, const char *key)
{
	struct json_object *value;

	if (tide_json_kind(object) != TIDE_JSON_OBJECT || !json_c.object_object_get_ex(unwrap(object), key, &value))
		return NULL;
	return wrap(value);
}

bool tide_json_next_member(const struct tide_json *object, const void **place, const char **key,
                           const struct tide_json **value)
{
	if (tide_json_kind(object) != TIDE_JSON_OBJECT)
		return false;
	const struct lh_entry *entry = *place ? lh_entry_next((const struct lh_entry *)*place)
	                                      : lh_table_head(json_c.object_get_object(unwrap(object)));
	if (!entry)
		return false;
	*place = entry;
	*key = lh_entry_k(entry);
	*value = wrap(lh_entry_v(entry));
	return true;
}

static void copy_parts(struct tide_json_writer *w, const char *key, const struct tide_json *json)
{
	bool object = tide_json_kind(json) == TIDE_JSON_OBJECT;
	const struct tide_json *value;
	const void *place = NULL;
	const char *name;

	tide_json_begin(w, key, object ? '{' : '[');
	while (object && tide_json_next_member(json, &place, &name, &value))
		tide_json_copy(w, name, value);
	for (size_t i = 0; !object && i < tide_json_count(json); i++)
		tide_json_copy(w, NULL, tide_json_at(json, i));
	tide_json_end(w, object ? '}' : ']');
}

void tide_json_copy(struct tide_json_writer *w, const char *key, const struct tide_json *json)
{
	const char *text = "";
	uint64_t u;
	int64_t i;
	double real;
	bool flag;

	if (tide_json_get_uint(json, &u))
		tide_json_uint(w, key, u);
	else if (tide_json_get_int(json, &i))
		tide_json_int(w, key, i);
	else if (tide_json_get_real(json, &real))
		tide_json_real(w, key, real);
	else if (tide_json_get_bool(json, &flag))
		tide_json_bool(w, key, flag);
	else if (tide_json_kind(json) == TIDE_JSON_NULL)
		tide_json_raw(w, key, "null");
	else if (tide_json_kind(json) != TIDE_JSON_STRING)
		copy_parts(w, key, json);
	else if (tide_json_get_string(json, &text, &(size_t){ 0 }))
		tide_json_string(w, key, text);
}
