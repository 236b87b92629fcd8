/* The stream of QMP messages, cut into pieces of any length, and the decoding and copying of fields. */
#include "base/mem.h"
#include "request/qmp.h"
#include "unit.h"

/* The messages and errors that a text results in, one a line.  step: bytes that arrive at once, 0: all. */
static char *replay(const char *text, size_t len, size_t step)
{
	struct tide_qmp_json in = { 0 };
	struct tide_strbuf said = TIDE_STRBUF_INIT;
	struct tide_json_writer w = { &said, false };
	size_t fed = 0;

	for (;;) {
		struct tide_error err = TIDE_ERROR_INIT;
		struct tide_json *json = NULL;
		int rc = tide_qmp_json_next(&in, &json, &err);

		if (rc > 0)
			tide_json_copy(&w, NULL, json);
		if (rc < 0)
			tide_strbuf_adds(&said, err.msg ? err.msg : "?");
		if (rc)
			tide_strbuf_addc(&said, '\n');
		w.comma = false;
		tide_json_free(json);
		tide_error_release(&err);
		if (rc)
			continue;
		if (in.ended)
			break;
		size_t n = step && step < len - fed ? step : len - fed;

		tide_strbuf_add(&in.text, text + fed, n);
		fed += n;
		in.ended = n == 0;
	}
	tide_qmp_json_release(&in);
	return tide_strbuf_steal(&said, NULL);
}

static const char *const texts[] = {
	"{\"execute\": \"a\", \"arguments\": {\"b\": [1, -2.5e3, true, null, \"\\u00e9\\n\"]}} {'id': 'x\"y\\''}",
	"-> { \"a\": [ 1, ], }\n<- { \"return\": {...} }\n...\n[]{}5 ",
	"foo {\"a\": tru} & x {\"b\": 01} {\"c\": \"\\ud83d\\ude00\xc3\xa9\"} 18446744073709551616 -0 \"z\"",
};

static void test_messages(void)
{
	static const struct {
		const char *text, *said;
	} rows[] = {
		{ "", "" },
		{ " \n\t", "" },
		{ "{}", "{}\n" },
		{ "{}{}", "{}\n{}\n" },
		{ "5 ", "5\n" },
		{ "18446744073709551616", "1.8446744073709552e+19\n" },
		{ "-0", "0\n" },
		{ "1.50", "1.5\n" },
		{ "'a\"\\''", "\"a\\\"'\"\n" },
		{ "{'a':1,}", "{\"a\": 1}\n" },
		{ "[,]", "JSON parse error, expecting value\n" },
		{ "-> {} <- {} {'a':1}", "{}\n{\"a\": 1}\n" },
		{ "<- { 'timestamp': {...}, 'a': 1 } {}", "{}\n" },
		{ "<- nonsense {}", "{}\n" },
		{ "->", "" },
		{ "-", "JSON parse error, stray '-'\n" },
		{ "{", "JSON parse error, premature EOI\n" },
		{ "}{}", "JSON parse error, expecting value\n{}\n" },
		{ "& x {}", "JSON parse error, stray '&'\n{}\n" },
	};

	for (size_t i = 0; i < TIDE_ARRAY_SIZE(rows); i++) {
		for (size_t step = 0; step < 4; step++) {
			char *said = replay(rows[i].text, strlen(rows[i].text), step);

			UNIT_ROW("%s in pieces of %zu", rows[i].text, step);
			CHECK_STR(said, rows[i].said);
			free(said);
		}
	}
}

/* The result is the same however the bytes are cut, and whatever they are. */
static void test_pieces(void)
{
	static const char often[] = "{}[]:,\"'\\-.0159eu<>atn \n\x01\xfe\xc3";
	uint64_t seed = 1;

	for (size_t round = 0; round < 20000; round++) {
		char text[256];
		size_t len = strlen(texts[round % TIDE_ARRAY_SIZE(texts)]);

		memcpy(text, texts[round % TIDE_ARRAY_SIZE(texts)], len);
		for (size_t k = 0; k < round / 64 % 5; k++) {
			seed = seed * 6364136223846793005u + 1442695040888963407u;
			text[(seed >> 33) % len] = often[(seed >> 50) % (sizeof(often) - 1)];
		}
		char *whole = replay(text, len, 0), *pieces = replay(text, len, 1 + round % 3);

		UNIT_ROW("round %zu: %.*s", round, (int)len, text);
		CHECK_STR(pieces, whole);
		free(whole);
		free(pieces);
	}
}

static unsigned allocations, fail_at;

static bool fail_nth(void)
{
	return ++allocations == fail_at;
}

static void test_no_memory(void)
{
	for (size_t i = 0; i < TIDE_ARRAY_SIZE(texts); i++) {
		for (fail_at = 1; fail_at < 200; fail_at++) {
			struct tide_qmp_json in = { 0 };
			bool refused = false;

			allocations = 0;
			tide_mem_set_hook(fail_nth);
			tide_strbuf_adds(&in.text, texts[i]);
			in.ended = true;
			for (int rc = 1; rc;) {
				struct tide_error err = TIDE_ERROR_INIT;
				struct tide_json *json = NULL;

				rc = tide_qmp_json_next(&in, &json, &err);
				refused |= rc < 0;
				CHECK((rc < 0) == (err.code != TIDE_E_NONE));
				tide_json_free(json);
				tide_error_release(&err);
			}
			tide_mem_set_hook(NULL);
			UNIT_ROW("text %zu, allocation %u", i, fail_at);
			CHECK(refused || allocations < fail_at || i == 1);
			tide_qmp_json_release(&in);
		}
	}
}

/* ---- fields ------------------------------------------------------------------------ */

struct sample {
	const char *text;
	bool flag, has_small, has_big;
	uint64_t small;
	int64_t big;
	int word;
};

static const char *const words[] = { "one", "two", NULL };

#define FIELD(n, k, member) .name = n, .kind = k, .to = offsetof(struct sample, member), .has = TIDE_QMP_NOWHERE

static const struct tide_qmp_field inner[] = { { FIELD("big", TIDE_QMP_INT64, big) }, { .kind = TIDE_QMP_END } };
static const struct tide_qmp_field fields[] = {
	{ FIELD("text", TIDE_QMP_STRING, text), .required = true },
	{ FIELD("flag", TIDE_QMP_BOOL, flag) },
	{ .name = "small",
	  .kind = TIDE_QMP_UINT32,
	  .to = offsetof(struct sample, small),
	  .has = offsetof(struct sample, has_small) },
	{ FIELD("word", TIDE_QMP_ENUM, word), .words = words, .first = 7 },
	{ .name = "in", .kind = TIDE_QMP_STRUCT, .to = TIDE_QMP_NOWHERE, .has = TIDE_QMP_NOWHERE, .fields = inner },
	{ .kind = TIDE_QMP_END },
};

static void test_fields(void)
{
	static const char text[] =
	        "{\"text\": \"t\", \"flag\": true, \"small\": 4294967295, \"word\": \"two\", \"in\": {\"big\": -5}}";
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_json *json TIDE_AUTOJSON = tide_json_parse(text, strlen(text), &err);
	struct sample s = { 0 };

	CHECK_OK(tide_qmp_decode(NULL, fields, json, NULL, &s, &err), &err);
	CHECK_STR(s.text, "t");
	CHECK(s.flag && s.has_small);
	CHECK_EQ_U64(s.small, UINT32_MAX);
	CHECK_EQ_I64(s.big, -5);
	CHECK_EQ_I64(s.word, 8);
}

static void test_field_texts(void)
{
	static const struct {
		const char *text, *error;
	} rows[] = {
		{ "{}", "Parameter 'text' is missing" },
		{ "{\"text\": 5}", "Invalid parameter type for 'text', expected: string" },
		{ "{\"text\": \"\", \"flag\": 1}", "Invalid parameter type for 'flag', expected: boolean" },
		{ "{\"text\": \"\", \"small\": 4294967296}", "Parameter 'small' expects uint32_t" },
		{ "{\"text\": \"\", \"small\": -1}", "Parameter 'small' expects uint32_t" },
		{ "{\"text\": \"\", \"small\": 1.0}", "Parameter 'small' expects uint64" },
		{ "{\"text\": \"\", \"word\": \"six\"}", "Parameter 'word' does not accept value 'six'" },
		{ "{\"text\": \"\", \"in\": []}", "Invalid parameter type for 'in', expected: object" },
		{ "{\"text\": \"\", \"in\": {\"big\": 9223372036854775808}}",
		  "Invalid parameter type for 'in.big', expected: integer" },
		{ "{\"text\": \"\", \"in\": {\"x\": 1}, \"y\": 2}", "Parameter 'in.x' is unexpected" },
		{ "{\"text\": \"\", \"y\": 2}", "Parameter 'y' is unexpected" },
	};

	for (size_t i = 0; i < TIDE_ARRAY_SIZE(rows); i++) {
		struct tide_error err = TIDE_ERROR_INIT;
		struct tide_json *json TIDE_AUTOJSON = tide_json_parse(rows[i].text, strlen(rows[i].text), &err);
		struct sample s = { 0 };

		UNIT_ROW("%s", rows[i].text);
		CHECK(tide_qmp_decode(NULL, fields, json, NULL, &s, &err) < 0);
		CHECK_ERR(&err, TIDE_E_REFUSED, rows[i].error);
	}
}

int main(void)
{
	UNIT_RUN(test_messages);
	UNIT_RUN(test_pieces);
	UNIT_RUN(test_no_memory);
	UNIT_RUN(test_fields);
	UNIT_RUN(test_field_texts);
	return unit_done();
}
