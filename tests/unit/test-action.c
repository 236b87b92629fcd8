/*
 * The table of actions, and the copies of arguments that its fields describe.
 */
#include "base/json.h"
#include "base/mem.h"
#include "request/action.h"
#include "request/qmp.h"
#include "unit.h"

/* Every member that the fields name lies within the structure. */
static void check_fields(const struct tide_qmp_field *fields, size_t size, bool *has_strings)
{
	for (const struct tide_qmp_field *f = fields; f->kind != TIDE_QMP_END; f++) {
		if (f->kind == TIDE_QMP_INTERNAL)
			continue;
		UNIT_ROW("%s", f->name);
		if (f->to != TIDE_QMP_NOWHERE)
			CHECK(f->size > 0 && f->to + f->size <= size);
		if (f->has != TIDE_QMP_NOWHERE)
			CHECK(f->has + sizeof(bool) <= size);
		if (f->kind == TIDE_QMP_ENUM)
			CHECK(f->words && f->words[0] && f->size == sizeof(int));
		if (f->kind == TIDE_QMP_STRUCT)
			check_fields(f->fields, size, has_strings);
		if (f->kind == TIDE_QMP_LIST) {
			CHECK(f->element > 0 && f->count + sizeof(size_t) <= size);
			check_fields(f->fields, f->element, has_strings);
		}
		*has_strings |= f->kind == TIDE_QMP_STRING;
	}
}

static void test_table(void)
{
	const struct tide_action *action;
	size_t n = 0;

	for (; (action = tide_action_at(n)); n++) {
		bool has_strings = false;

		UNIT_ROW("%s", action->name);
		CHECK(tide_action_find(action->name) == action);
		CHECK(action->prepare);
		check_fields(action->fields, action->args_size, &has_strings);
		UNIT_ROW("%s", action->name);
		CHECK(has_strings == (action->args_size > 0));
	}
	CHECK(n > 10);
	CHECK(!tide_action_find("no-such-action"));
}

/* ---- copies ---- */

static unsigned allocations, fail_at;

static bool fail_nth(void)
{
	return ++allocations == fail_at;
}

static int copy_merge(struct tide_bitmap_merge *to, struct tide_qmp_owned *owned, struct tide_error *err)
{
	char node[] = "node", target[] = "target", first[] = "first", second[] = "second";
	struct tide_bitmap_ref sources[] = { { node, first }, { NULL, second } };
	struct tide_bitmap_merge from = { node, target, 2, sources };
	int rc = tide_qmp_field_copy(tide_action_bitmap_merge.fields, &from, to, owned, err);

	/* The caller's own are no longer needed. */
	memset(node, 'x', sizeof(node) - 1);
	memset(first, 'x', sizeof(first) - 1);
	memset(sources, 0, sizeof(sources));
	return rc;
}

static void test_copy_list(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_qmp_owned owned = { 0, NULL };
	struct tide_bitmap_merge to = { 0 };

	if (CHECK_OK(copy_merge(&to, &owned, &err), &err)) {
		CHECK_STR(to.node, "node");
		CHECK_STR(to.target, "target");
		CHECK_EQ_U64(to.n_sources, 2);
		CHECK_STR(to.sources[0].node, "node");
		CHECK_STR(to.sources[0].name, "first");
		CHECK(!to.sources[1].node);
		CHECK_STR(to.sources[1].name, "second");
	}
	tide_qmp_owned_release(&owned);
}

static void test_copy_all_kinds(void)
{
	struct tide_backup from = {
		.device = "d",
		.target = "t",
		.sync = TIDE_SYNC_TOP,
		.mode = TIDE_MODE_EXISTING,
		.backing = "b",
		.speed = UINT64_MAX,
		.detect_zeroes = true,
		.has_max_chunk = true,
		.max_chunk = -5,
		.retry_after = 7,
	};
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_qmp_owned owned = { 0, NULL };
	struct tide_backup to = { 0 };

	if (CHECK_OK(tide_qmp_field_copy(tide_action_backup.fields, &from, &to, &owned, &err), &err)) {
		CHECK_STR(to.device, "d");
		CHECK_STR(to.backing, "b");
		CHECK(!to.bitmap && to.sync == TIDE_SYNC_TOP && to.mode == TIDE_MODE_EXISTING);
		CHECK_EQ_U64(to.speed, UINT64_MAX);
		CHECK(to.detect_zeroes && to.has_max_chunk && !to.has_max_workers);
		CHECK_EQ_I64(to.max_chunk, -5);
		CHECK_EQ_U64(to.retry_after, 7);
	}
	tide_qmp_owned_release(&owned);
}

static void test_copy_no_memory(void)
{
	for (fail_at = 1; fail_at < 50; fail_at++) {
		struct tide_error err = TIDE_ERROR_INIT;
		struct tide_qmp_owned owned = { 0, NULL };
		struct tide_bitmap_merge to = { 0 };
		int rc;

		allocations = 0;
		tide_mem_set_hook(fail_nth);
		rc = copy_merge(&to, &owned, &err);
		tide_mem_set_hook(NULL);
		UNIT_ROW("allocation %u", fail_at);
		CHECK((rc < 0) == (allocations >= fail_at));
		CHECK(rc == 0 || err.code == TIDE_E_NOMEM);
		tide_error_release(&err);
		tide_qmp_owned_release(&owned);
	}
}

/* ---- decoding ---- */

static int decode(const struct tide_action *action, const char *text, void *to, struct tide_json **json,
                  struct tide_error *err)
{
	*json = tide_json_parse(text, strlen(text), err);
	return *json ? tide_qmp_decode(NULL, action->fields, *json, NULL, to, err) : -1;
}

static void test_decode_list(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_json *json TIDE_AUTOJSON = NULL;
	struct tide_bitmap_merge to = { 0 };

	if (CHECK_OK(decode(&tide_action_bitmap_merge,
	                    "{\"node\": \"n\", \"target\": \"t\", \"bitmaps\": [\"a\", {\"node\": \"m\", \"name\": "
	                    "\"b\"}]}",
	                    &to, &json, &err),
	             &err) &&
	    CHECK_EQ_U64(to.n_sources, 2)) {
		CHECK(!to.sources[0].node);
		CHECK_STR(to.sources[0].name, "a");
		CHECK_STR(to.sources[1].node, "m");
		CHECK_STR(to.sources[1].name, "b");
	}
	tide_qmp_decode_release(tide_action_bitmap_merge.fields, &to);
}

static void test_decode_numbers(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_json *json TIDE_AUTOJSON = NULL;
	struct tide_image_write to = { 0 };

	CHECK_OK(decode(&tide_action_image_write,
	                "{\"node\": \"n\", \"type\": \"discard\", \"offset\": 18446744073709551615, \"length\": 0, "
	                "\"pattern\": 255}",
	                &to, &json, &err),
	         &err);
	CHECK(to.kind == TIDE_WRITE_DISCARD && to.has_length && to.length == 0);
	CHECK_EQ_U64(to.offset, UINT64_MAX);
	CHECK_EQ_U64(to.pattern, 255);
}

static void test_decode_refusals(void)
{
	static const struct {
		const struct tide_action *action;
		const char *text, *error;
	} rows[] = {
		{ &tide_action_image_write, "{\"node\": \"n\", \"type\": \"zero\", \"offset\": 0, \"pattern\": 256}",
		  "Invalid parameter type for 'pattern', expected: uint8" },
		{ &tide_action_image_write, "{\"node\": \"n\", \"type\": \"zero\", \"offset\": -1}",
		  "Invalid parameter type for 'offset', expected: uint64" },
		{ &tide_action_bitmap_mark, "{\"node\": \"n\", \"name\": \"b\", \"ranges\": [{\"start\": 5}]}",
		  "Parameter 'ranges[0].length' is missing" },
		{ &tide_action_bitmap_merge, "{\"node\": \"n\", \"target\": \"t\", \"bitmaps\": [7]}",
		  "Invalid parameter type for 'null', expected: BlockDirtyBitmapOrStr" },
		{ &tide_action_backup,
		  "{\"device\": \"d\", \"target\": \"t\", \"sync\": \"full\", \"x-retry-after\": 1}",
		  "Parameter 'x-retry-after' is unexpected" },
	};

	for (size_t i = 0; i < TIDE_ARRAY_SIZE(rows); i++) {
		struct tide_error err = TIDE_ERROR_INIT;
		struct tide_json *json TIDE_AUTOJSON = NULL;
		union {
			struct tide_image_write write;
			struct tide_bitmap_mark mark;
			struct tide_bitmap_merge merge;
			struct tide_backup backup;
		} to;

		memset(&to, 0, sizeof(to));
		UNIT_ROW("%s", rows[i].text);
		CHECK(decode(rows[i].action, rows[i].text, &to, &json, &err) < 0);
		CHECK_ERR(&err, TIDE_E_REFUSED, rows[i].error);
		tide_qmp_decode_release(rows[i].action->fields, &to);
	}
}

int main(void)
{
	UNIT_RUN(test_table);
	UNIT_RUN(test_copy_list);
	UNIT_RUN(test_copy_all_kinds);
	UNIT_RUN(test_copy_no_memory);
	UNIT_RUN(test_decode_list);
	UNIT_RUN(test_decode_numbers);
	UNIT_RUN(test_decode_refusals);
	return unit_done();
}
