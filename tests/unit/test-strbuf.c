/* Growing strings against a plain array, and failed allocations. */
#include "base/mem.h"
#include "base/strbuf.h"
#include "unit.h"

static unsigned fail_at;

static bool fail_nth(void)
{
	return fail_at > 0 && --fail_at == 0;
}

static void test_adds(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_strbuf sb = TIDE_STRBUF_INIT;

	tide_strbuf_adds(&sb, "a");
	tide_strbuf_addc(&sb, 'b');
	tide_strbuf_add(&sb, "c\0d", 3);
	tide_strbuf_addf(&sb, "%03d%s", 7, "x");
	CHECK_EQ_U64(sb.len, 9);
	CHECK_MEM(sb.buf, "abc\0d007x", 10);
	tide_strbuf_reset(&sb);
	CHECK_EQ_U64(sb.len, 0);
	CHECK_STR(sb.buf, "");
	tide_strbuf_adds(&sb, "again");
	char *s TIDE_AUTOFREE = tide_strbuf_steal(&sb, &err);
	CHECK_STR(s, "again");
	CHECK(sb.buf == NULL && sb.len == 0);
}

static void test_empty(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_strbuf sb = TIDE_STRBUF_INIT;
	char *s TIDE_AUTOFREE = tide_strbuf_steal(&sb, &err);

	CHECK_STR(s, "");
	tide_strbuf_adds(&sb, "");
	CHECK_STR(sb.buf, "");
	tide_strbuf_release(&sb);
	tide_strbuf_release(&sb);
	CHECK(sb.buf == NULL);
}

/* Every length around the growth steps, compared with a plain array. */
static void test_grows(void)
{
	struct tide_strbuf sb = TIDE_STRBUF_INIT;
	char plain[5000];

	for (size_t i = 0; i < sizeof(plain); i++) {
		plain[i] = (char)('a' + i % 26);
		tide_strbuf_addc(&sb, plain[i]);
		if (!CHECK(sb.len == i + 1 && sb.cap > sb.len && sb.buf[sb.len] == '\0'))
			break;
	}
	CHECK_MEM(sb.buf, plain, sizeof(plain));
	tide_strbuf_addf(&sb, "%5000s", "x");
	CHECK_EQ_U64(sb.len, 10000);
	tide_strbuf_release(&sb);
}

static void test_failure_sticks(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_strbuf sb = TIDE_STRBUF_INIT;

	tide_strbuf_adds(&sb, "kept");
	fail_at = 1;
	tide_mem_set_hook(fail_nth);
	tide_strbuf_addf(&sb, "%100s", "lost");
	tide_strbuf_adds(&sb, "lost too");
	CHECK_STR(sb.buf, "kept");
	CHECK(tide_strbuf_steal(&sb, &err) == NULL);
	CHECK_ERR(&err, TIDE_E_NOMEM, NULL);
	CHECK(sb.buf == NULL && !sb.failed);
	fail_at = 1;
	CHECK(tide_strbuf_steal(&sb, &err) == NULL);
	CHECK_ERR(&err, TIDE_E_NOMEM, NULL);
	tide_mem_set_hook(NULL);
	tide_strbuf_add(&sb, "", SIZE_MAX - 5);
	CHECK(sb.failed);
	tide_strbuf_release(&sb);
}

int main(void)
{
	UNIT_RUN(test_adds);
	UNIT_RUN(test_empty);
	UNIT_RUN(test_grows);
	UNIT_RUN(test_failure_sticks);
	return unit_done();
}
