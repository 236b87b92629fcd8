/*
 * A node and its write log: what the states of the log are after each way in which its writer can end, what opening
 * takes from it, and when the file goes.
 */
#include "node/node_log.h"
#include "session_sample.h"
#include "store/write_log.h"

#define READ  TIDE_NODE_READ
#define EDIT  TIDE_NODE_EDIT_BITMAPS
#define WRITE TIDE_NODE_WRITE_DATA

#define BEFORE 1000000000 /* the time of the image when its bitmap was added */

/* Records and writes the second granule. */
static struct tide_node *begin_write(struct sample *s)
{
	struct tide_node *node = sample_open(s, "d", WRITE);
	struct tide_error err = TIDE_ERROR_INIT;
	uint8_t data[512] = { 1 };

	tide_node_unlock_store(node);
	CHECK_OK(tide_node_log_begin(node, true, false, &err), &err);
	CHECK_EQ_I64(node->log.state, TIDE_NODE_LOG_WRITER);
	CHECK_OK(tide_write_log_set(node->log.file, GRANULE, sizeof(data), NULL, &err), &err);
	CHECK_OK(tide_image_write(node->image, data, GRANULE, sizeof(data), &err), &err);
	CHECK_OK(tide_image_flush(node->image, &err), &err);
	return node;
}

static void clean(struct sample *s)
{
	struct tide_node *node = begin_write(s);
	struct tide_error err = TIDE_ERROR_INIT;

	CHECK_OK(tide_node_log_clean(node, &err), &err);
	CHECK_EQ_I64(node->log.state, TIDE_NODE_LOG_PENDING);
	tide_node_close(node);
}

static void end(struct sample *s)
{
	struct tide_node *node = begin_write(s);
	struct tide_error err = TIDE_ERROR_INIT;

	CHECK_OK(tide_node_log_end(node, NULL, &err), &err);
	CHECK_EQ_I64(node->log.state, TIDE_NODE_LOG_ABSENT);
	tide_node_close(node);
	CHECK(access(unit_path("d.bitmaps.log"), F_OK) < 0);
}

static void die(struct sample *s)
{
	tide_node_close(begin_write(s));
}

static void die_and_touch(struct sample *s)
{
	die(s);
	sample_set_time("d", 77);
}

static void clean_and_touch(struct sample *s)
{
	clean(s);
	sample_set_time("d", 77);
}

static void clean_and_damage(struct sample *s)
{
	clean(s);
	CHECK(truncate(unit_path("d.bitmaps.log"), 100) == 0);
}

/* The sidecar has been replaced, by a program that did not see the log. */
static void clean_of_another(struct sample *s)
{
	clean(s);
	sample_set_time("d", BEFORE); /* the stamp of the sidecar, not that of the log */
	CHECK(rename(unit_path("d.bitmaps.log"), unit_path("kept")) == 0);
	sample_put(s, "d", "other", "........");
	CHECK(rename(unit_path("kept"), unit_path("d.bitmaps.log")) == 0);
	sample_forget_lines(s);
}

/* Its bits were committed, and cleared since; but the program died before it removed the log. */
static void clean_and_taken(struct sample *s)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_node *node;

	clean(s);
	CHECK(link(unit_path("d.bitmaps.log"), unit_path("kept")) == 0);
	node = sample_open(s, "d", EDIT);
	CHECK_PTR(tide_node_bitmap_clear(node, tide_node_find(node, "b", &err), &err), &err);
	sample_commit(node);
	CHECK(rename(unit_path("kept"), unit_path("d.bitmaps.log")) == 0);
}

static void test_log(void)
{
	static const struct {
		const char *name;
		void (*act)(struct sample *s);
		enum tide_node_mode mode;
		enum tide_node_log_state state;
		bool warns;
		const char *after;
	} rows[] = {
		{ "ended, read", end, READ, TIDE_NODE_LOG_ABSENT, false, ".x.....x" },
		{ "clean, read", clean, READ, TIDE_NODE_LOG_TAKEN, false, ".x.....x" },
		{ "clean, edit", clean, EDIT, TIDE_NODE_LOG_TAKEN, false, ".x.....x" },
		{ "clean, write", clean, WRITE, TIDE_NODE_LOG_PENDING, false, ".x.....x" },
		{ "its writer died, read", die, READ, TIDE_NODE_LOG_TAKEN, true, ".x.....x" },
		{ "its writer died, edit", die, EDIT, TIDE_NODE_LOG_TAKEN, true, ".x.....x" },
		{ "its writer died, write", die, WRITE, TIDE_NODE_LOG_TAKEN, true, ".x.....x" },
		{ "its writer died; a new stamp", die_and_touch, EDIT, TIDE_NODE_LOG_TAKEN, true, ".x.....x" },
		{ "clean, but another wrote since", clean_and_touch, EDIT, TIDE_NODE_LOG_TAKEN, false,
		  ".x.....x inconsistent" },
		{ "the same, write", clean_and_touch, WRITE, TIDE_NODE_LOG_TAKEN, false, ".x.....x inconsistent" },
		{ "damaged", clean_and_damage, EDIT, TIDE_NODE_LOG_TAKEN, true, "xxxxxxxx" },
		{ "of another sidecar", clean_of_another, EDIT, TIDE_NODE_LOG_TAKEN, true, ".x.....x" },
		{ "its bits were taken before", clean_and_taken, EDIT, TIDE_NODE_LOG_TAKEN, false, "........" },
	};

	for (size_t i = 0; i < TIDE_ARRAY_SIZE(rows); i++) {
		struct tide_node *node;
		struct sample s;
		bool kept;

		UNIT_ROW("%s", rows[i].name);
		sample_begin(&s);
		sample_disk(&s, "d", NULL);
		sample_set_time("d", BEFORE);
		sample_put(&s, "d", "b", ".......x");
		rows[i].act(&s);
		sample_forget_lines(&s);
		node = sample_open(&s, "d", rows[i].mode);
		CHECK_EQ_I64(node->log.state, rows[i].state);
		CHECK_EQ_I64(s.warnings.len > 0, rows[i].warns);
		CHECK(!node->has_changes);
		if (rows[i].mode != READ)
			sample_commit(node);
		tide_node_close(node);
		/* A change takes the log with it, unless its bits are in the file only. */
		kept = rows[i].state == TIDE_NODE_LOG_PENDING || (rows[i].mode == READ && rows[i].state);
		CHECK_EQ_I64(access(unit_path("d.bitmaps.log"), F_OK), kept ? 0 : -1);
		CHECK_STR(sample_show("d", "b"), rows[i].after);
		sample_end(&s);
	}
}

/* Readers see what a living writer has recorded so far; it is in nobody else's way. */
static void test_living_writer(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_node *node, *other;
	struct sample s;

	sample_begin(&s);
	sample_disk(&s, "d", NULL);
	sample_put(&s, "d", "b", ".......x");
	node = begin_write(&s);
	CHECK_STR(sample_show("d", "b"), ".x.....x");
	CHECK(tide_node_log_is_live(node));
	other = tide_node_new(&(struct tide_drive){ .path = unit_path("d") }, &err);
	CHECK_EQ_I64(tide_node_open(other, READ, false, &s.session->sink, &err), -1); /* it did not ask for that */
	CHECK_ERR(&err, TIDE_E_LOCKED, NULL);
	tide_node_free(other);
	CHECK_OK(tide_node_log_clean(node, &err), &err);
	CHECK(!tide_node_log_is_live(node));

	/* The next write continues with the same log. */
	CHECK_OK(tide_node_log_begin(node, true, false, &err), &err);
	CHECK_OK(tide_write_log_set(node->log.file, 3 * GRANULE, 1, NULL, &err), &err);
	CHECK_OK(tide_node_log_end(node, NULL, &err), &err);
	tide_node_close(node);
	CHECK_STR(sample_show("d", "b"), ".x.x...x");
	sample_end(&s);
}

int main(void)
{
	UNIT_RUN(test_log);
	UNIT_RUN(test_living_writer);
	return unit_done();
}
