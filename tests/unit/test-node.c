/*
 * Nodes: how the modes of opening share an image, bitmaps by name in both sets, QEMU's refusals, and everything that
 * opening repairs: another disk size, untracked changes, the bitmap of a job that died.  test-node-log.c has the write
 * log.
 *
 * Disks are in memory (memory_driver.h), but for bitmaps inside images, which need a qcow2.
 */
#include <fcntl.h>
#include <sys/stat.h>

#include "base/lock.h"
#include "session_sample.h"

#define READ  TIDE_NODE_READ
#define EDIT  TIDE_NODE_EDIT_BITMAPS
#define WRITE TIDE_NODE_WRITE_DATA

/* ---- opening ---- */

static int open_another(struct sample *s, bool force_share, enum tide_node_mode mode, struct tide_error *err)
{
	struct tide_drive drive = { .path = unit_path("d"), .force_share = force_share };
	struct tide_node *node = tide_node_new(&drive, err);
	int rc = tide_node_open(node, mode, false, &s->session->sink, err);

	tide_node_free(node);
	return rc;
}

static void test_modes_share(void)
{
	static const struct {
		const char *name;
		enum tide_node_mode first, second;
		bool force_share;
		const char *refused; /* QEMU's words */
	} rows[] = {
		{ "two readers", READ, READ, false, NULL },
		{ "reader, editor", READ, EDIT, false, NULL },
		{ "editor, reader", EDIT, READ, false, NULL },
		{ "reader, writer", READ, WRITE, false, "Failed to get \"write\" lock" },
		{ "editor, writer", EDIT, WRITE, false, "Failed to get \"write\" lock" },
		{ "writer, reader", WRITE, READ, false, "Failed to get shared \"write\" lock" },
		{ "writer, editor", WRITE, EDIT, false, "Failed to get shared \"write\" lock" },
		{ "writer, reader that looks anyway", WRITE, READ, true, NULL },
		{ "force_share is for readers", WRITE, EDIT, true, "Failed to get shared \"write\" lock" },
	};

	for (size_t i = 0; i < TIDE_ARRAY_SIZE(rows); i++) {
		struct tide_error err = TIDE_ERROR_INIT;
		struct sample s;
		struct tide_node *node;

		sample_begin(&s);
		sample_disk(&s, "d", NULL);
		node = tide_session_find(s.session, "d");
		UNIT_ROW("%s", rows[i].name);
		CHECK_OK(tide_node_open(node, rows[i].first, false, &s.session->sink, &err), &err);
		CHECK_EQ_I64(open_another(&s, rows[i].force_share, rows[i].second, &err), rows[i].refused ? -1 : 0);
		if (rows[i].refused)
			CHECK(err.msg && strstr(err.msg, rows[i].refused));
		CHECK_ERR(&err, rows[i].refused ? TIDE_E_LOCKED : TIDE_E_NONE, NULL);
		CHECK(access(unit_path("d.bitmaps"), F_OK) < 0); /* looking creates no file */
		sample_end(&s);
	}
}

/* A transaction opens a node once, in the widest mode that it wants. */
static void test_open_again(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_node *node;
	struct sample s;

	sample_begin(&s);
	sample_disk(&s, "d", NULL);
	node = sample_open(&s, "d", EDIT);
	CHECK_OK(tide_node_open(node, READ, false, &s.session->sink, &err), &err);
	CHECK_EQ_I64(node->mode, EDIT);
	CHECK_EQ_I64(tide_node_open(node, WRITE, false, &s.session->sink, &err), -1);
	CHECK_ERR(&err, TIDE_E_REFUSED, NULL);
	CHECK(access(unit_path("d.bitmaps"), F_OK) == 0); /* the claim */
	tide_node_close(node);
	CHECK(access(unit_path("d.bitmaps"), F_OK) < 0);

	tide_node_want(node, WRITE, false);
	sample_open(&s, "d", READ);
	CHECK_EQ_I64(node->mode, WRITE);
	sample_end(&s);
}

/* ---- bitmaps by name ---- */

static const struct {
	const char *name;
	enum tide_store_kind store;
} stores[] = { { "sidecar", TIDE_STORE_SIDECAR }, { "image", TIDE_STORE_IMAGE } };

static void begin_with_two(struct sample *s, enum tide_store_kind store)
{
	struct tide_node *node;

	sample_begin(s);
	sample_file(s, "d", "qcow2");
	node = tide_session_find(s->session, "d");
	tide_node_want_in_image(node);
	sample_open(s, "d", EDIT);
	sample_add(node, "old", "x.......", store);
	sample_add(node, "new", ".......x", store);
	CHECK_STR(sample_show("d", "old"), "none"); /* only in memory so far */
	sample_commit(node);
}

static void test_add_and_list(void)
{
	for (size_t i = 0; i < TIDE_ARRAY_SIZE(stores); i++) {
		struct tide_bitmap_list *list = NULL;
		struct tide_error err = TIDE_ERROR_INIT;
		struct sample s;

		UNIT_ROW("%s", stores[i].name);
		begin_with_two(&s, stores[i].store);
		CHECK_STR(sample_show("d", "old"), "x.......");
		CHECK_STR(sample_show("d", "new"), ".......x");
		CHECK(!tide_node_find(sample_open(&s, "d", READ), "x", &err));
		CHECK_ERR(&err, TIDE_E_REFUSED, "Dirty bitmap 'x' not found");
		if (CHECK_OK(tide_node_list(s.session->nodes[0], &list, &err), &err) && CHECK_EQ_U64(list->n, 2)) {
			CHECK_STR(list->items[0]->name, "new");
			CHECK_STR(list->items[1]->name, "old");
			CHECK_EQ_U64(list->items[1]->count, GRANULE);
			CHECK(list->items[1]->recording && list->items[1]->persistent && !list->items[1]->busy);
			CHECK_EQ_I64(list->items[1]->store, stores[i].store);
		}
		tide_bitmap_list_free(list);
		sample_end(&s);
	}
}

static void clear_old(struct tide_node *node, struct tide_sidecar_bitmap *entry, struct tide_error *err)
{
	CHECK_PTR(tide_node_bitmap_clear(node, entry, err), err);
}

static void mark_old(struct tide_node *node, struct tide_sidecar_bitmap *entry, struct tide_error *err)
{
	struct tide_bitmap *bm = tide_node_bitmap_for_change(node, entry, err);

	if (CHECK_PTR(bm, err))
		CHECK_OK(tide_bitmap_set(bm, GRANULE, 2 * GRANULE, err), err);
}

static void replace_old(struct tide_node *node, struct tide_sidecar_bitmap *entry, struct tide_error *err)
{
	struct tide_bitmap *bm = tide_bitmap_new(DISK_SIZE, GRANULE, err);

	sample_set_bits(bm, "..xx....");
	tide_node_replace_bitmap(node, entry, bm);
}

static void disable_old(struct tide_node *node, struct tide_sidecar_bitmap *entry, struct tide_error *err)
{
	entry->enabled = false;
	tide_node_mark_changed(node, entry);
}

static void remove_old(struct tide_node *node, struct tide_sidecar_bitmap *entry, struct tide_error *err)
{
	tide_node_mark_removed(node, entry);
	/* Its name is taken until the commit. */
	CHECK(tide_node_has(node, "old") && !tide_node_find_usable(node, "old", 0, err));
	CHECK_ERR(err, TIDE_E_REFUSED, "Bitmap 'old' is currently in use by another operation and cannot be used");
}

/* A change is on disk after the commit, and nowhere without one. */
static void test_change(void)
{
	static const struct {
		const char *name;
		void (*change)(struct tide_node *node, struct tide_sidecar_bitmap *entry, struct tide_error *err);
		const char *after;
	} rows[] = {
		{ "clear", clear_old, "........" },     { "mark", mark_old, "xxx....." },
		{ "replace", replace_old, "..xx...." }, { "disable", disable_old, "x....... disabled" },
		{ "remove", remove_old, "none" },
	};

	for (size_t i = 0; i < 4 * TIDE_ARRAY_SIZE(rows); i++) {
		bool commit = i % 2;
		struct tide_error err = TIDE_ERROR_INIT;
		struct tide_node *node;
		struct sample s;

		begin_with_two(&s, stores[i / 2 % 2].store);
		UNIT_ROW("%s, %s, %s", rows[i / 4].name, stores[i / 2 % 2].name, commit ? "commit" : "drop");
		node = sample_open(&s, "d", EDIT);
		rows[i / 4].change(node, tide_node_find_usable(node, "old", TIDE_BITMAP_WILL_WRITE, &err), &err);
		CHECK(node->has_changes);
		CHECK_STR(sample_show("d", "old"), "x.......");
		if (commit)
			sample_commit(node);
		tide_node_close(node);
		CHECK_STR(sample_show("d", "old"), commit ? rows[i / 4].after : "x.......");
		CHECK_STR(sample_show("d", "new"), ".......x");
		sample_end(&s);
	}
}

static void test_no_place_in_image(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_node *node;
	struct sample s;

	sample_begin(&s);
	sample_disk(&s, "d", NULL);
	node = sample_open(&s, "d", EDIT);
	CHECK(!tide_node_add(node, "b", GRANULE, TIDE_STORE_IMAGE, &err));
	CHECK_ERR(&err, TIDE_E_REFUSED, "Can't store persistent bitmaps to d: Operation not supported");
	CHECK(!node->has_changes);
	sample_end(&s);
}

/* ---- refusals ---- */

#define BUSY         "Bitmap 'old' is currently in use by another operation and cannot be used"
#define READONLY     "Bitmap 'old' is readonly and cannot be modified"
#define INCONSISTENT "Bitmap 'old' is inconsistent and cannot be used"

static void test_refusals_are_qemus(void)
{
	enum { CHANGE = TIDE_BITMAP_WILL_WRITE, ANY = TIDE_BITMAP_ALLOW_INCONSISTENT };
	static const struct {
		const char *name;
		bool token, readonly, untracked, in_use, ignore_stamp;
		unsigned flags;
		const char *refused;
	} rows[] = {
		{ "usable", .flags = CHANGE },
		{ "busy", .token = true, .refused = BUSY },
		{ "busy before all else", .token = true, .readonly = true, .in_use = true, .flags = CHANGE,
		  .refused = BUSY },
		{ "busy, whatever is allowed", .token = true, .in_use = true, .flags = ANY, .refused = BUSY },
		{ "read-only", .readonly = true, .flags = CHANGE, .refused = READONLY },
		{ "read-only, to look at", .readonly = true },
		{ "read-only before inconsistent", .readonly = true, .in_use = true, .flags = CHANGE,
		  .refused = READONLY },
		{ "in use", .in_use = true, .refused = INCONSISTENT },
		{ "in use, allowed", .in_use = true, .flags = ANY },
		{ "in use is not a matter of the stamp", .in_use = true, .ignore_stamp = true,
		  .refused = INCONSISTENT },
		{ "untracked", .untracked = true, .refused = INCONSISTENT },
		{ "untracked, allowed", .untracked = true, .flags = ANY },
		{ "untracked, vouched for", .untracked = true, .ignore_stamp = true },
	};

	for (size_t i = 0; i < TIDE_ARRAY_SIZE(rows); i++) {
		struct tide_error err = TIDE_ERROR_INIT;
		struct tide_sidecar_bitmap *entry;
		struct tide_node *node;
		struct sample s;

		UNIT_ROW("%s", rows[i].name);
		begin_with_two(&s, TIDE_STORE_IMAGE);
		node = sample_open(&s, "d", EDIT);
		entry = tide_node_find(node, "old", &err);
		entry->token = rows[i].token;
		entry->untracked = rows[i].untracked;
		entry->in_use = rows[i].in_use;
		node->ignore_stamp = rows[i].ignore_stamp;
		if (rows[i].readonly)
			tide_error_set(&node->image_bitmaps.why_not, TIDE_E_UNSUPPORTED, "Planted");
		CHECK(tide_node_find_usable(node, "old", rows[i].flags, &err) == (rows[i].refused ? NULL : entry));
		CHECK_ERR(&err, rows[i].refused ? TIDE_E_REFUSED : TIDE_E_NONE, rows[i].refused);
		sample_end(&s);
	}
}

static void test_default_granularity(void)
{
	static const uint64_t rows[][2] = { { 0, 65536 },     { 512, 4096 },    { 4096, 4096 },
		                            { 32768, 32768 }, { 65536, 65536 }, { 131072, 65536 } };

	for (size_t i = 0; i < TIDE_ARRAY_SIZE(rows); i++) {
		struct memory_script script = { .size = DISK_SIZE, .cluster_size = rows[i][0] };
		struct sample s;

		UNIT_ROW("clusters of %" PRIu64, rows[i][0]);
		sample_begin(&s);
		sample_disk(&s, "d", &script);
		CHECK_EQ_U64(tide_node_default_granularity(sample_open(&s, "d", READ)), rows[i][1]);
		sample_end(&s);
	}
}

/* ---- what opening repairs ---- */

/* Makes "b" busy on disk, with what its successor has recorded, as a job of the token does. */
static void put_busy(struct sample *s, uint64_t token, const char *recorded)
{
	struct tide_node *node = sample_open(s, "d", EDIT);
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_sidecar_bitmap *entry = tide_node_find(node, "b", &err);

	entry->successor = tide_sidecar_bitmap_new(NULL, DISK_SIZE, GRANULE, &err);
	if (!CHECK_PTR(entry->successor, &err))
		exit(1);
	entry->successor->enabled = entry->enabled;
	sample_set_bits(entry->successor->bitmap, recorded);
	entry->token = token;
	tide_node_mark_changed(node, entry);
	sample_commit(node);
}

enum { TOKEN = 12345 }; /* of the job whose bitmap is busy */

/* Changes the disk's size, opens it for change, commits, and looks at both halves of "b". */
static void check_size(struct sample *s, unsigned granules, const char *after, const char *recorded)
{
	struct tide_node *node = tide_session_find(s->session, "d");
	const struct tide_sidecar_bitmap *entry;

	CHECK(truncate(unit_path("d"), granules * GRANULE) == 0);
	node->ignore_stamp = true; /* the size is a part of it */
	sample_open(s, "d", EDIT);
	CHECK(!node->has_changes); /* it is repaired, not changed */
	CHECK_EQ_U64(node->in_sidecar.list->disk_size, granules * GRANULE);
	CHECK(recorded || tide_node_find_usable(node, "b", 0, NULL));
	sample_commit(node);
	sample_open(s, "d", READ);
	entry = node->in_sidecar.list->items[0];
	CHECK_STR(sample_bits(tide_node_bitmap(node, node->in_sidecar.list->items[0], NULL)), after);
	if (CHECK_EQ_I64(entry->successor != NULL, recorded != NULL) && recorded)
		CHECK_STR(sample_bits(tide_sidecar_bitmap_load(node->in_sidecar.list, entry->successor, NULL)),
		          recorded);
}

static void test_size(void)
{
	static const struct {
		const char *name;
		unsigned granules;
		const char *bits, *recorded; /* recorded NULL: not busy */
		bool alive;                  /* the job of the busy bitmap */
		const char *after, *recorded_after;
	} rows[] = {
		{ "the same", 8, "x......x", NULL, false, "x......x", NULL },
		{ "longer: what was added is dirty", 11, "x.......", NULL, false, "x.......xxx", NULL },
		{ "shorter", 4, "x..x...x", NULL, false, "x..x", NULL },
		{ "shorter, nothing left", 2, "...x...x", NULL, false, "..", NULL },
		{ "longer, of a job that died", 10, "x.......", ".x......", false, "xx......xx", NULL },
		{ "shorter, of a job that died", 3, "x......x", ".x.....x", false, "xx.", NULL },
		{ "longer, of a job", 10, "x.......", ".x......", true, "x.......xx", ".x......xx" },
		{ "shorter, of a job", 3, "x......x", ".x.....x", true, "x..", ".x." },
	};

	for (size_t i = 0; i < TIDE_ARRAY_SIZE(rows); i++) {
		TIDE_AUTOCLOSE int job = -1;
		struct sample s;

		UNIT_ROW("%s", rows[i].name);
		sample_begin(&s);
		sample_file(&s, "d", "raw");
		sample_put(&s, "d", "b", rows[i].bits);
		job = open(unit_path("d"), O_RDWR | O_CLOEXEC);
		if (rows[i].alive)
			CHECK(tide_lock_token_hold(job, TOKEN, NULL) == 0);
		if (rows[i].recorded)
			put_busy(&s, TOKEN, rows[i].recorded);
		check_size(&s, rows[i].granules, rows[i].after, rows[i].recorded_after);
		sample_end(&s);
	}
}

static void test_untracked(void)
{
	struct tide_node *node;
	struct sample s;

	sample_begin(&s);
	sample_disk(&s, "d", NULL);
	sample_put(&s, "d", "b", "x.......");
	CHECK_STR(sample_show("d", "b"), "x.......");
	sample_set_time("d", 77);
	CHECK_STR(sample_show("d", "b"), "x....... inconsistent");
	/* A commit of something else does not forget it. */
	sample_put(&s, "d", "other", "........");
	CHECK_STR(sample_show("d", "b"), "x....... inconsistent");
	CHECK_STR(sample_show("d", "other"), "........");

	node = tide_session_find(s.session, "d");
	node->ignore_stamp = true;
	sample_open(&s, "d", EDIT);
	CHECK(tide_node_find_usable(node, "b", TIDE_BITMAP_WILL_WRITE, NULL) != NULL);
	sample_commit(node);
	CHECK_STR(sample_show("d", "b"), "x.......");
	sample_end(&s);
}

/* The job owns its bitmap as long as it holds its token on the image. */
static void test_dead_job(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	uint64_t token = 0;
	struct sample s;
	int job;

	sample_begin(&s);
	sample_disk(&s, "d", NULL);
	job = open(unit_path("d"), O_RDWR | O_CLOEXEC);
	sample_put(&s, "d", "b", "x.......");
	CHECK_OK(tide_lock_token_new(&token, &err), &err);
	CHECK_OK(tide_lock_token_hold(job, token, &err), &err);
	put_busy(&s, token, ".......x");
	CHECK_STR(sample_show("d", "b"), "x....... busy");
	sample_put(&s, "d", "other", "........");
	CHECK_STR(sample_show("d", "b"), "x....... busy");
	CHECK_EQ_U64(s.warnings.len, 0);

	close(job);
	CHECK_STR(sample_show("d", "b"), "x......x");
	sample_open(&s, "d", READ); /* looking does not repair it on disk */
	CHECK(strstr(sample_text(&s.warnings), "'b'") != NULL);
	tide_node_close(s.session->nodes[0]);
	sample_forget_lines(&s);
	sample_commit(sample_open(&s, "d", EDIT));
	CHECK(strstr(sample_text(&s.warnings), "'b'") != NULL);
	sample_forget_lines(&s);
	sample_open(&s, "d", READ);
	CHECK_EQ_U64(s.warnings.len, 0);
	CHECK_STR(sample_show("d", "b"), "x......x");
	sample_end(&s);
}

int main(void)
{
	UNIT_RUN(test_modes_share);
	UNIT_RUN(test_open_again);
	UNIT_RUN(test_add_and_list);
	UNIT_RUN(test_change);
	UNIT_RUN(test_no_place_in_image);
	UNIT_RUN(test_refusals_are_qemus);
	UNIT_RUN(test_default_granularity);
	UNIT_RUN(test_size);
	UNIT_RUN(test_untracked);
	UNIT_RUN(test_dead_job);
	return unit_done();
}
