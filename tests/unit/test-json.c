/* JSON: the writer's output, the strict parser's results and refusals, and one against the other. */
#include "base/json.h"
#include "base/mem.h"
#include "unit.h"

/* ---- writing ----------------------------------------------------------------------- */

static void test_layout(void)
{
	struct tide_strbuf sb = TIDE_STRBUF_INIT;
	struct tide_json_writer w = { .sb = &sb };

	tide_json_begin(&w, NULL, '{');
	tide_json_begin(&w, "return", '{');
	tide_json_end(&w, '}');
	tide_json_end(&w, '}');
	CHECK_STR(sb.buf, "{\"return\": {}}");

	tide_strbuf_reset(&sb);
	w.comma = false;
	tide_json_begin(&w, NULL, '{');
	tide_json_uint(&w, "a", UINT64_MAX);
	tide_json_begin(&w, "b", '[');
	tide_json_int(&w, NULL, INT64_MIN);
	tide_json_int(&w, NULL, 2);
	tide_json_begin(&w, NULL, '[');
	tide_json_end(&w, ']');
	tide_json_begin(&w, NULL, '{');
	tide_json_bool(&w, "x", true);
	tide_json_end(&w, '}');
	tide_json_bool(&w, NULL, false);
	tide_json_end(&w, ']');
	tide_json_string(&w, "c\"", "x\"y");
	tide_json_raw(&w, "id", "[1, {}]");
	tide_json_end(&w, '}');
	CHECK_STR(sb.buf, "{\"a\": 18446744073709551615, \"b\": [-9223372036854775808, 2, [], {\"x\": true}, false], "
	                  "\"c\\\"\": \"x\\\"y\", \"id\": [1, {}]}");
	tide_strbuf_release(&sb);
}

/* The text that QEMU 7.2 prints for a bitmap of this name; the invalid ones were put into a qcow2 by hand. */
static const struct {
	const char *bytes, *json;
	bool utf8;
} names[] = {
	{ "", "", true },
	{ "plain /<&>'~ ", "plain /<&>'~ ", true },
	{ "q\"b\\s/\b\f\n\r\t\x01\x1f", "q\\\"b\\\\s/\\b\\f\\n\\r\\t\\u0001\\u001F", true },
	{ "\x7f\x01\"\\/", "\\u007F\\u0001\\\"\\\\/", true },
	{ "\xc3\xa9\xc3\xbf"
	  "AB",
	  "\\u00E9\\u00FFAB", true },
	{ "\xdf\xbf\xe0\xa0\x80\xef\xbf\xbd", "\\u07FF\\u0800\\uFFFD", true },
	{ "\xf0\x9f\x98\x80", "\\uD83D\\uDE00", true },
	{ "\xf0\x90\x80\x80", "\\uD800\\uDC00", true },
	{ "\xf4\x8f\xbf\xbd", "\\uDBFF\\uDFFD", true },
	{ "\xef\xbb\xbf", "\\uFEFF", true },
	{ "\xef\xbf\xbe", "\\uFFFD", true }, /* the noncharacters are UTF-8, but not to QEMU */
	{ "\xef\xb7\x90", "\\uFFFD", true },
	{ "\xf0\x9f\xbf\xbf", "\\uFFFD", true },
	{ "\xff\xfe", "\\uFFFD\\uFFFD", false },
	{ "\x80\x80", "\\uFFFD\\uFFFD", false },
	{ "\xc3(", "\\uFFFD(", false },
	{ "\xe2\x82x", "\\uFFFDx", false },
	{ "a\xe2\x82", "a\\uFFFD", false },
	{ "\xf0\x9f\x98x", "\\uFFFDx", false },
	{ "\xe9", "\\uFFFD", false },
	{ "\xe0\x9f\xbf\xc2", "\\uFFFD\\uFFFD", false },
	{ "\xed\xa0\x80", "\\uFFFD", false },
	{ "\xf4\x90\x80\x80", "\\uFFFD", false },
	{ "\xe0\x80\x80", "\\uFFFD", false },
	{ "\xc1\xbf", "\\uFFFD", false },
	{ "\xc0\x80", "\\u0000", false },
	{ "\xf8\x88\x80\x80\x80z", "\\uFFFDz", false },
	{ "\xfc\x84\x80\x80\x80\x80", "\\uFFFD", false },
};

static void test_escapes(void)
{
	for (size_t i = 0; i < TIDE_ARRAY_SIZE(names); i++) {
		struct tide_strbuf sb = TIDE_STRBUF_INIT;
		struct tide_json_writer w = { .sb = &sb };
		char want[256];
		UNIT_ROW("row %zu", i);
		/* A copy that ends where it ends, so that ASan sees a read beyond. */
		char *bytes TIDE_AUTOFREE = tide_mem_strdup(names[i].bytes, NULL);
		tide_json_string(&w, NULL, bytes);
		snprintf(want, sizeof(want), "\"%s\"", names[i].json);
		CHECK_STR(sb.buf, want);
		CHECK(tide_json_is_utf8(bytes) == names[i].utf8);
		tide_strbuf_release(&sb);
	}
}

/* ---- reading ----------------------------------------------------------------------- */

static struct tide_json *parse(const char *text, struct tide_error *err)
{
	size_t len = strlen(text);
	char *copy TIDE_AUTOFREE = tide_mem_alloc(len, 1, NULL); /* no NUL after it */

	memcpy(copy, text, len);
	return tide_json_parse(copy, len, err);
}

static void test_read(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_json *json TIDE_AUTOJSON =
	        parse(" {\"b\": [1, -2, 18446744073709551615, 1.5, null, true, \"x\\u0000y\", \"\\u00e9\"],"
	              "\r\n\t\"a\": {}} \n",
	              &err);
	const char *text;
	size_t len;
	uint64_t u;
	int64_t s;
	bool b;

	if (!CHECK_PTR(json, &err))
		return;
	CHECK(tide_json_kind(json) == TIDE_JSON_OBJECT && tide_json_count(json) == 2);
	CHECK(tide_json_member(json, "c") == NULL && tide_json_at(json, 0) == NULL);
	const struct tide_json *list = tide_json_member(json, "b");
	CHECK(tide_json_kind(list) == TIDE_JSON_ARRAY && tide_json_count(list) == 8);
	CHECK(tide_json_at(list, 8) == NULL && tide_json_member(list, "b") == NULL);
	CHECK(tide_json_get_uint(tide_json_at(list, 0), &u) && u == 1);
	CHECK(tide_json_get_int(tide_json_at(list, 0), &s) && s == 1);
	CHECK(!tide_json_get_uint(tide_json_at(list, 1), &u));
	CHECK(tide_json_get_int(tide_json_at(list, 1), &s) && s == -2);
	CHECK(tide_json_get_uint(tide_json_at(list, 2), &u) && u == UINT64_MAX);
	CHECK(!tide_json_get_int(tide_json_at(list, 2), &s));
	CHECK(tide_json_kind(tide_json_at(list, 3)) == TIDE_JSON_REAL);
	CHECK(!tide_json_get_uint(tide_json_at(list, 3), &u) && !tide_json_get_int(tide_json_at(list, 3), &s));
	CHECK(tide_json_kind(tide_json_at(list, 4)) == TIDE_JSON_NULL && tide_json_count(tide_json_at(list, 4)) == 0);
	CHECK(!tide_json_get_bool(tide_json_at(list, 4), &b) && !tide_json_get_bool(tide_json_at(list, 0), &b));
	CHECK(tide_json_get_bool(tide_json_at(list, 5), &b) && b);
	CHECK(!tide_json_get_string(tide_json_at(list, 6), &text, NULL));
	CHECK(tide_json_get_string(tide_json_at(list, 6), &text, &len) && len == 3 && memcmp(text, "x\0y", 3) == 0);
	CHECK(tide_json_get_string(tide_json_at(list, 7), &text, NULL));
	CHECK_STR(text, "\xc3\xa9");
	CHECK(!tide_json_get_string(tide_json_at(list, 0), &text, NULL));
}

static void test_members(void)
{
	static const char *const keys[] = { "z", "a", "m" };
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_json *json TIDE_AUTOJSON = parse("{\"z\": 0, \"a\": 1, \"m\": 2}", &err);
	struct tide_json *empty TIDE_AUTOJSON = parse("{}", &err);
	const struct tide_json *value;
	const void *place = NULL;
	const char *key;
	uint64_t i, v;

	for (i = 0; tide_json_next_member(json, &place, &key, &value) && i < 3; i++) {
		CHECK_STR(key, keys[i]);
		CHECK(tide_json_get_uint(value, &v) && v == i);
	}
	CHECK_EQ_U64(i, 3);
	place = NULL;
	CHECK(!tide_json_next_member(empty, &place, &key, &value));
	CHECK(!tide_json_next_member(tide_json_member(json, "z"), &place, &key, &value));
}

static void test_top_values(void)
{
	static const struct {
		const char *text;
		enum tide_json_kind kind;
	} rows[] = {
		{ "null", TIDE_JSON_NULL },    { "true", TIDE_JSON_BOOL }, { "12", TIDE_JSON_INTEGER },
		{ " -0 ", TIDE_JSON_INTEGER }, { "1e3", TIDE_JSON_REAL },  { "\"\"", TIDE_JSON_STRING },
		{ "[]\n", TIDE_JSON_ARRAY },
	};
	struct tide_error err = TIDE_ERROR_INIT;

	for (size_t i = 0; i < TIDE_ARRAY_SIZE(rows); i++) {
		UNIT_ROW("%s", rows[i].text);
		struct tide_json *json TIDE_AUTOJSON = parse(rows[i].text, &err);
		if (CHECK_PTR(json, &err))
			CHECK_STR(tide_json_kind_name(tide_json_kind(json)), tide_json_kind_name(rows[i].kind));
	}
}

static void test_refused(void)
{
	static const char *const rows[] = {
		"",
		" ",
		"{",
		"[1",
		"[1,]",
		"{\"a\":1,}",
		"{a:1}",
		"{'a':1}",
		"[1] [2]",
		"[1]x",
		"nul",
		"NULL",
		"True",
		"\"a",
		"\"\n\"",
		"\"\\x\"",
		"\"\xff\"",
		"\"\xc3(\"",
		"01",
		"+1",
		"1.",
		"- 1",
		"0x10",
		"18446744073709551616",
		"-9223372036854775809",
		"[1 2]",
		"{\"a\" 1}",
		"// x\n1",
		"/* x */ 1",
		"]",
		"NaN",
		"[Infinity]",
		"-",
		"-Infinity",
		"1e",
		"1e+",
		"{\"a\": 1, \"b\": {}, \"a\": 2}",
		"[{\"\\u0061\": 1, \"a\": 2}]",
		"\"\\",
	};
	struct tide_error err = TIDE_ERROR_INIT;
	char deep[2001];

	for (size_t i = 0; i < TIDE_ARRAY_SIZE(rows); i++) {
		UNIT_ROW("%s", rows[i]);
		struct tide_json *json TIDE_AUTOJSON = parse(rows[i], &err);
		CHECK(json == NULL);
		CHECK(err.msg && strncmp(err.msg, "JSON parse error at byte ", 25) == 0);
		CHECK_ERR(&err, TIDE_E_REFUSED, NULL);
	}
	UNIT_ROW("deep");
	memset(deep, '[', 1000);
	memset(deep + 1000, ']', 1000);
	deep[2000] = '\0';
	CHECK(parse(deep, &err) == NULL);
	CHECK_ERR(&err, TIDE_E_REFUSED, NULL);
	UNIT_ROW("NUL");
	CHECK(tide_json_parse("1\0001", 3, &err) == NULL);
	CHECK_ERR(&err, TIDE_E_REFUSED, NULL);
}

/* Text that the writer wrote is read back unchanged. */
static void test_round_trip(void)
{
	struct tide_error err = TIDE_ERROR_INIT;

	for (size_t i = 0; i < TIDE_ARRAY_SIZE(names); i++) {
		/* Where QEMU's replacements are no part of it. */
		if (!names[i].utf8 || strstr(names[i].json, "\\uFFFD"))
			continue;
		struct tide_strbuf sb = TIDE_STRBUF_INIT;
		struct tide_json_writer w = { .sb = &sb };
		const char *text = NULL;
		UNIT_ROW("row %zu", i);
		tide_json_string(&w, NULL, names[i].bytes);
		struct tide_json *json TIDE_AUTOJSON = parse(sb.buf, &err);
		if (CHECK_PTR(json, &err) && CHECK(tide_json_get_string(json, &text, NULL)))
			CHECK_STR(text, names[i].bytes);
		tide_strbuf_release(&sb);
	}
}

/* QEMU's dialect: what it makes of quotes, and that everything else is as strict. */
static void test_qemu(void)
{
	static const struct {
		const char *text, *value;
	} rows[] = {
		{ "{'a': 'b'}", "b" },       { "{\"a\": 'b\"c'}", "b\"c" }, { "{'a': \"b'c\"}", "b'c" },
		{ "{'a': 'b\\'c'}", "b'c" }, { "{'a': \"b\\'c\"}", "b'c" }, { "{'a': '\\\\\\u0041\\\"'}", "\\A\"" },
		{ "{'a': 'b}", NULL },       { "{'a': 'b\\", NULL },        { "{'a': 'b\\'}", NULL },
		{ "{a: 'b'}", NULL },        { "{'a': 'b'c'}", NULL },      { "", NULL },
	};

	for (size_t i = 0; i < TIDE_ARRAY_SIZE(rows); i++) {
		struct tide_error err = TIDE_ERROR_INIT;
		struct tide_json *json TIDE_AUTOJSON = tide_json_parse_qemu(rows[i].text, strlen(rows[i].text), &err);
		const char *value = NULL;

		UNIT_ROW("%s", rows[i].text);
		CHECK_EQ_I64(json != NULL, rows[i].value != NULL);
		CHECK_EQ_I64(err.code, rows[i].value ? 0 : TIDE_E_REFUSED);
		if (json && rows[i].value) {
			CHECK(tide_json_get_string(tide_json_member(json, "a"), &value, NULL));
			CHECK_STR(value, rows[i].value);
		}
		tide_error_release(&err);
	}
}

int main(void)
{
	UNIT_RUN(test_layout);
	UNIT_RUN(test_escapes);
	UNIT_RUN(test_read);
	UNIT_RUN(test_members);
	UNIT_RUN(test_top_values);
	UNIT_RUN(test_refused);
	UNIT_RUN(test_round_trip);
	UNIT_RUN(test_qemu);
	return unit_done();
}
