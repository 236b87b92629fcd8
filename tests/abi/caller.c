/*
 * A program that was built with another version of tidemark.h than the library.  It is compiled against each of the
 * headers in the folders here and against what make-header makes of today's, and runs with today's library.
 *
 * It uses only what all of these headers have.
 */
#include <fcntl.h>

#include "unit.h"

enum { DISK = 1 << 20, GRANULE = 65536 };

/* All zero: padding too, as a program gets it that takes the header's advice. */
#define ZEROED(type, name) \
	struct type name;  \
	memset(&name, 0, sizeof(name))

/* A structure is refused while its unknown member is not zero, and then the call is what it is without that. */
#ifdef ABI_LONGER
#define CHECK_LATER(args, failed)                                      \
	do {                                                           \
		struct tide_error err_ = TIDE_ERROR_INIT;              \
		struct tide_error *later_err = &err_;                  \
		(args).later = 1;                                      \
		CHECK(failed);                                         \
		CHECK(err_.code == TIDE_E_UNSUPPORTED);                \
		CHECK(err_.hint &&strstr(err_.hint, "later version")); \
		tide_error_release(&err_);                             \
		(args).later = 0;                                      \
	} while (0)
#else
#define CHECK_LATER(args, failed) ((void)0)
#endif

static const char *path(const char *name)
{
	static char paths[4][4200];
	static unsigned next;
	char *to = paths[next++ % 4];

	snprintf(to, sizeof(paths[0]), "%s/%s", unit_dir(), name);
	return to;
}

static int no_line(void *data, const char *json)
{
	return 0;
}

static struct tide_session *new_session(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_session *session;

	ZEROED(tide_session_options, options);
	options.line = no_line;
	CHECK_LATER(options, !tide_session_new(&options, later_err));
	session = tide_session_new(&options, &err);
	CHECK_OK(session ? 0 : -1, &err);
	return session;
}

static void add_drive(struct tide_session *session, const char *id)
{
	struct tide_error err = TIDE_ERROR_INIT;

	ZEROED(tide_drive, drive);
	drive.id = id;
	drive.path = path(id);
	drive.format = "qcow2";
	CHECK_LATER(drive, tide_session_add_drive(session, &drive, NULL, later_err) < 0);
	CHECK_OK(tide_session_add_drive(session, &drive, NULL, &err), &err);
}

static void run(struct tide_txn *txn)
{
	struct tide_error err = TIDE_ERROR_INIT;

	CHECK_OK(tide_txn_run(txn, &err), &err);
	tide_txn_free(txn);
}

/* One transaction of one action, whose arguments are `args`. */
#define ACT(session, call, args)                                      \
	do {                                                          \
		struct tide_error own = TIDE_ERROR_INIT;              \
		struct tide_txn *txn = tide_txn_new(session, &own);   \
		CHECK_LATER(args, call(txn, &(args), later_err) < 0); \
		CHECK_OK(call(txn, &(args), &own), &own);             \
		run(txn);                                             \
	} while (0)

static void create_image(struct tide_session *session, const char *name)
{
	ZEROED(tide_image_create, create);
	create.path = path(name);
	create.format = "qcow2";
	create.has_size = true;
	create.size = DISK;
	ACT(session, tide_txn_image_create, create);
}

static void add_bitmap(struct tide_session *session, const char *name)
{
	ZEROED(tide_bitmap_add, add);
	add.node = "disk";
	add.name = name;
	add.has_granularity = true;
	add.granularity = GRANULE;
	ACT(session, tide_txn_bitmap_add, add);
}

static void mark(struct tide_session *session, const char *name)
{
	struct tide_range range = { 0, 1 };

	ZEROED(tide_bitmap_mark, args);
	args.node = "disk";
	args.name = name;
	args.n_ranges = 1;
	args.ranges = &range;
	ACT(session, tide_txn_bitmap_mark, args);
}

static void write_pattern(struct tide_session *session)
{
	ZEROED(tide_image_write, args);
	args.node = "disk";
	args.kind = TIDE_WRITE_PATTERN;
	args.offset = 2 * GRANULE;
	args.has_length = true;
	args.length = 2;
	args.pattern = 7;
	ACT(session, tide_txn_image_write, args);
}

static void transfer(struct tide_session *session)
{
	ZEROED(tide_bitmap_transfer, args);
	args.source.node = args.target.node = "disk";
	args.source.name = "b";
	args.target.name = "copy";
	ACT(session, tide_txn_bitmap_import, args);
	args.target.name = "a";
	ACT(session, tide_txn_bitmap_export, args);
}

static void merge(struct tide_session *session)
{
	struct tide_bitmap_ref refs[2] = { { NULL, "a" }, { "disk", "b" } };

	ZEROED(tide_bitmap_merge, args);
	args.node = "disk";
	args.target = "copy";
	args.n_sources = 2;
	args.sources = refs;
	ACT(session, tide_txn_bitmap_merge, args);
}

static void edit(struct tide_session *session)
{
	ZEROED(tide_bitmap_edit, args);
	args.node = "disk";
	args.name = "copy";
	ACT(session, tide_txn_bitmap_disable, args);
	ACT(session, tide_txn_bitmap_enable, args);
	ACT(session, tide_txn_bitmap_clear, args);
	ACT(session, tide_txn_bitmap_remove, args);
}

static void check_bitmaps(struct tide_session *session)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_bitmap_list *list = NULL;

	if (CHECK_OK(tide_query_bitmaps(session, "disk", &list, &err), &err) && CHECK_EQ_U64(list->n, 2)) {
		CHECK_STR(list->items[0]->name, "b");
		CHECK_STR(list->items[1]->name, "a");
		CHECK_EQ_U64(list->items[0]->count, 2 * GRANULE);
		CHECK_EQ_U64(list->items[1]->count, 2 * GRANULE);
		CHECK(list->items[1]->recording);
	}
	tide_bitmap_list_free(list);
}

static void backup(struct tide_session *session)
{
	ZEROED(tide_backup, args);
	args.device = "disk";
	args.target = path("full");
	args.sync = TIDE_SYNC_FULL;
	ACT(session, tide_txn_backup, args);
	args.target = path("auto");
	args.sync = TIDE_SYNC_AUTO;
	args.bitmap = "b";
	ACT(session, tide_txn_backup, args);
	args.target = "target";
	args.sync = TIDE_SYNC_FULL;
	args.bitmap = NULL;
	ACT(session, tide_txn_blockdev_backup, args);
}

static void rescan(struct tide_session *session)
{
	ZEROED(tide_bitmap_rescan, args);
	args.node = "disk";
	args.name = "a";
	args.against = path("full");
	args.against_format = "qcow2";
	ACT(session, tide_txn_bitmap_rescan, args);
}

static void restore(struct tide_session *session)
{
	ZEROED(tide_chain_restore, args);
	args.device = "disk";
	args.target = path("restored");
	ACT(session, tide_txn_chain_restore, args);
}

static void test_actions(void)
{
	struct tide_session *session = new_session();

	create_image(session, "disk");
	create_image(session, "target");
	add_drive(session, "disk");
	add_drive(session, "target");
	add_bitmap(session, "a");
	add_bitmap(session, "b");
	mark(session, "b");
	write_pattern(session);
	transfer(session);
	merge(session);
	edit(session);
	check_bitmaps(session);
	backup(session);
	rescan(session);
	restore(session);
	tide_session_free(session);
}

static void test_queries(void)
{
	struct tide_session *session = new_session();
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_image_info *info = NULL;
	struct tide_chain *chain = NULL;
	bool has_refcounts = false;

	ZEROED(tide_chain_options, options);
	options.verify = true;
	add_drive(session, "disk");
	if (CHECK_OK(tide_query_image(session, "disk", &info, &err), &err)) {
		CHECK_EQ_U64(info->virtual_size, DISK);
		for (size_t i = 0; i < info->n_features; i++)
			has_refcounts |= !strcmp(info->features[i]->key, "refcount-bits");
		CHECK(has_refcounts);
		CHECK_EQ_U64(info->bitmaps->n, 2);
	}
	CHECK_LATER(options, tide_query_chain(session, "disk", &options, &chain, later_err) < 0);
	if (CHECK_OK(tide_query_chain(session, "disk", &options, &chain, &err), &err) && CHECK_EQ_U64(chain->n, 1)) {
		CHECK_STR(chain->images[0]->format, "qcow2");
		CHECK_EQ_U64(chain->images[0]->counts[TIDE_FINDING_UNKNOWN], 0);
		CHECK(chain->images[0]->verdict == TIDE_VERDICT_WHOLE);
	}
	tide_image_info_free(info);
	tide_chain_free(chain);
	tide_session_free(session);
}

static void test_stream(void)
{
	static const char text[] = "{\"execute\": \"query-block\"}";
	struct tide_session *session = new_session();
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_stream *stream;
	int ends[2];

	ZEROED(tide_stream_options, options);
	options.dry_run = true;
	if (!CHECK(pipe(ends) == 0))
		return;
	CHECK(write(ends[1], text, strlen(text)) == (ssize_t)strlen(text) && close(ends[1]) == 0);
	CHECK_LATER(options, !tide_stream_new(session, ends[0], &options, later_err));
	stream = tide_stream_new(session, ends[0], &options, &err);
	CHECK_EQ_I64(tide_stream_next(stream, &err), 1);
	CHECK_EQ_I64(tide_stream_next(stream, &err), 0);
	tide_stream_free(stream);
	close(ends[0]);
	tide_session_free(session);
}

static void test_tracker(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_tracker *tracker = NULL;
	/* Nothing beyond the structure is written to. */
	struct {
		struct tide_tracker_info info;
		char after[64];
	} got;

	ZEROED(tide_drive, drive);
	ZEROED(tide_tracker_options, options);
	drive.path = path("disk");
	options.read_only = true;
	CHECK_LATER(drive, tide_tracker_open(&drive, &options, &tracker, later_err) < 0);
	CHECK_LATER(options, tide_tracker_open(&drive, &options, &tracker, later_err) < 0);
	if (!CHECK_OK(tide_tracker_open(&drive, &options, &tracker, &err), &err))
		return;
	memset(&got, 'x', sizeof(got));
	tide_tracker_get_info(tracker, &got.info);
	CHECK_EQ_U64(got.info.size, DISK);
	CHECK(got.info.read_only && !got.info.recording);
	for (size_t i = 0; i < sizeof(got.after); i++)
		CHECK(got.after[i] == 'x');
#ifdef ABI_LONGER
	CHECK_EQ_U64(got.info.later, 0);
#endif
	CHECK_OK(tide_tracker_close(tracker, &err), &err);
}

static void test_texts(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_range_list *list = NULL;
	char text[] = "a=b,format=raw";
	int ends[2];

	ZEROED(tide_drive, drive);
	ZEROED(tide_ranges_options, options);
	options.format = "ranges";
	drive.force_share = true;
	CHECK_LATER(drive, tide_parse_drive(text, &drive, later_err) < 0);
	CHECK_OK(tide_parse_drive(text, &drive, &err), &err);
	CHECK_STR(drive.format, "raw");
	CHECK(drive.force_share);
	if (!CHECK(pipe(ends) == 0))
		return;
	CHECK(write(ends[1], "512 1024\n", 9) == 9 && close(ends[1]) == 0);
	CHECK_LATER(options, tide_ranges_read(ends[0], &options, &list, later_err) < 0);
	if (CHECK_OK(tide_ranges_read(ends[0], &options, &list, &err), &err) && CHECK_EQ_U64(list->n, 1))
		CHECK_EQ_U64(list->ranges[0].len, 1024);
	tide_range_list_free(list);
	close(ends[0]);
}

int main(void)
{
	UNIT_RUN(test_actions);
	UNIT_RUN(test_queries);
	UNIT_RUN(test_stream);
	UNIT_RUN(test_tracker);
	UNIT_RUN(test_texts);
	return unit_done();
}
