/*
 * Power cuts while the bitmaps inside a qcow2 change: after each prefix of what was done to the
 * file, also with the last write torn at any sector, and after random parts of what was not
 * synced, the image holds the old set of bitmaps or the new one, whole, and is damaged by no
 * more than leaks.
 */
#include "bitmap/bitmap.h"
#include "qcow2_tape.h"

#define SETS_MAX    64u
#define BITMAPS_MAX 4u

/* What a set of bitmaps looks like from outside. */
struct set {
	size_t n;
	struct {
		char name[32], hash[65];
		bool in_use, enabled;
	} bitmap[BITMAPS_MAX];
};

static struct set sets[SETS_MAX];
static unsigned n_sets;

static int read_set(struct sample *s, struct set *out, struct tide_error *err)
{
	*out = (struct set){ .n = s->info.n_bitmaps };
	for (size_t i = 0; i < out->n && i < BITMAPS_MAX; i++) {
		const struct tide_driver_bitmap *b = &s->info.bitmaps[i];
		struct tide_bitmap *bm = NULL;

		snprintf(out->bitmap[i].name, sizeof(out->bitmap[0].name), "%s", b->name);
		out->bitmap[i].in_use = b->in_use;
		out->bitmap[i].enabled = b->enabled;
		if (b->in_use)
			continue;
		if (qcow2->bitmap_read(s->state, i, &bm, err) < 0)
			return -1;
		tide_bitmap_sha256(bm, out->bitmap[i].hash);
		tide_bitmap_free(bm);
	}
	return 0;
}

static bool is_same(const struct set *a, const struct set *b)
{
	bool same = a->n == b->n;

	for (size_t i = 0; same && i < a->n; i++)
		same = !strcmp(a->bitmap[i].name, b->bitmap[i].name) && !strcmp(a->bitmap[i].hash, b->bitmap[i].hash) &&
		       a->bitmap[i].in_use == b->bitmap[i].in_use && a->bitmap[i].enabled == b->bitmap[i].enabled;
	return same;
}

static struct tide_bitmap *make_bitmap(uint64_t size, uint64_t *seed)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_bitmap *bm = tide_bitmap_new(size, UINT64_C(512) << rnd(seed) % 4, &err);

	if (!bm)
		exit(1);
	for (int i = 0; i < 4; i++) {
		uint64_t off = rnd(seed) % size;

		CHECK_OK(tide_bitmap_set(bm, off, rnd(seed) % (size - off) / (i ? 20 : 1), &err), &err);
	}
	return bm;
}

/* A random next set: some kept, some replaced, some gone, some new. */
static size_t next_set(struct sample *s, struct tide_driver_bitmap_put *put, uint64_t *seed)
{
	static char names[BITMAPS_MAX][32];
	size_t n = 0;

	if (rnd(seed) % 5 == 0)
		return 0;
	for (size_t i = 0; i < s->info.n_bitmaps; i++) {
		const struct tide_driver_bitmap *b = &s->info.bitmaps[i];

		if (rnd(seed) % 4 == 0)
			continue;
		snprintf(names[n], sizeof(names[0]), "%s", b->name);
		put[n] = (struct tide_driver_bitmap_put){ .name = names[n],
			                                  .granularity = b->granularity,
			                                  .in_use = b->in_use ? rnd(seed) % 2 : rnd(seed) % 4 == 0,
			                                  .enabled = rnd(seed) % 2,
			                                  .keep = true,
			                                  .index = i };
		n++;
	}
	while (n < BITMAPS_MAX && (n == 0 || rnd(seed) % 2)) {
		struct tide_bitmap *bm = make_bitmap(s->info.size, seed);

		snprintf(names[n], sizeof(names[0]), "n%u", (unsigned)(rnd(seed) % 100000));
		put[n] = (struct tide_driver_bitmap_put){ .name = names[n],
			                                  .granularity = tide_bitmap_granularity(bm),
			                                  .enabled = rnd(seed) % 2,
			                                  .contents = bm };
		n++;
	}
	return n;
}

static void free_contents(struct tide_driver_bitmap_put *put, size_t n)
{
	for (size_t i = 0; i < n; i++)
		tide_bitmap_free((struct tide_bitmap *)put[i].contents);
}

/* From here on the image holds set `from` or set `to`. */
static void mark(unsigned from, unsigned to)
{
	record(MARK, 0, to, NULL, from);
}

static bool run_change(struct sample *s, uint64_t *seed)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_driver_bitmap_put put[BITMAPS_MAX];
	struct tide_driver_switch sw;
	size_t n = next_set(s, put, seed);
	unsigned now = n_sets - 1;
	bool good = CHECK_OK(qcow2->bitmaps_stage(s->state, put, n, &sw, &err), &err);

	free_contents(put, n);
	if (!good)
		return false;
	if (rnd(seed) % 5 == 0) {
		qcow2->bitmaps_abort(s->state);
		return true;
	}
	mark(now, now + 1);
	if (!CHECK_OK(qcow2->bitmaps_commit(s->state, &s->info, &err), &err) ||
	    !CHECK_OK(read_set(s, &sets[n_sets], &err), &err))
		return false;
	n_sets++;
	mark(now + 1, now + 1);
	return true;
}

static void run_program(const char *name, unsigned changes, uint64_t *seed)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct sample s;
	bool good;

	if (!CHECK_OK(sample_open(&s, name, TIDE_OPEN_WRITE, &err), &err))
		return;
	n_sets = 1;
	good = CHECK_OK(read_set(&s, &sets[0], &err), &err);
	mark(0, 0);
	tape.fd = s.fd;
	for (unsigned i = 0; i < changes && good; i++) {
		if (rnd(seed) % 3 == 0) {
			uint8_t buf[4096] = { 1 };

			CHECK_OK(sample_write(&s, buf, rnd(seed) % (s.info.size / 4096) * 4096, 4096, &err), &err);
		}
		good = run_change(&s, seed);
	}
	tape.fd = -1;
	sample_close(&s);
}

static void locate(size_t at, unsigned *from, unsigned *to)
{
	*from = *to = 0;
	for (size_t i = 0; i < at; i++) {
		if (tape.event[i].kind == MARK) {
			*from = tape.event[i].op;
			*to = (unsigned)tape.event[i].len;
		}
	}
}

static unsigned n_old, n_new; /* cuts within a commit, by what they left */

static bool check_cut(const struct cut *c, bool with_qemu)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct set got = { 0 };
	struct sample s;
	unsigned from, to;
	int rc = with_qemu ? sh("qemu-img check -f qcow2 cut.qcow2") : 0;
	bool good = CHECK(rc == 0 || rc == 3) &&
	            (!with_qemu || CHECK_EQ_I64(sh("cat out.txt >check.txt; ! grep 'lacking bitmap' check.txt"), 0));

	locate(c->at, &from, &to);
	if (good && CHECK_OK(sample_open(&s, "cut.qcow2", 0, &err), &err)) {
		good = CHECK_OK(read_set(&s, &got, &err), &err) &&
		       CHECK(is_same(&got, &sets[from]) || is_same(&got, &sets[to]));
		sample_close(&s);
		if (from != to && !is_same(&sets[from], &sets[to])) {
			n_old += is_same(&got, &sets[from]);
			n_new += is_same(&got, &sets[to]);
		}
	} else {
		good = false;
	}
	if (!good) {
		const struct event *e = &tape.event[c->at - 1];

		printf("#   cut at %zu of %zu: event %d at %" PRIu64 " length %" PRIu64 ", sets %u to %u, torn %d %d\n",
		       c->at, tape.n, (int)e->kind, e->off, e->len, from, to, c->torn, c->cut_last);
		show_output();
	}
	return good;
}

static bool try_cut(const uint8_t *file, uint64_t len, const struct cut *c, uint64_t *seed)
{
	const struct event *e = &tape.event[c->at - 1];
	bool header = e->kind == WRITE && e->off < 4096;

	make_cut_image("cut.qcow2", file, len, c, seed);
	return check_cut(c, header || rnd(seed) % 8 == 0);
}

static void cut_everywhere(const uint8_t *file, uint64_t len, uint64_t *seed)
{
	bool good = true;

	for (size_t at = 1; at <= tape.n && good; at++) {
		const struct event *e = &tape.event[at - 1];
		uint64_t sectors = e->kind == WRITE ? (e->off % SECTOR + e->len + SECTOR - 1) / SECTOR : 0;
		uint64_t step = TIDE_MAX(sectors / 8, 1);

		good = try_cut(file, len, &(struct cut){ .at = at }, seed);
		for (uint64_t n = 1; n < sectors && good; n += step)
			good = try_cut(file, len, &(struct cut){ .at = at, .cut_last = true, .sectors = n }, seed);
		for (int i = e->kind == WRITE && e->off < 4096 ? 8 : e->kind == WRITE; i > 0 && good; i--)
			good = try_cut(file, len, &(struct cut){ .at = at, .torn = true }, seed);
	}
}

/* A backing image's name that has to move out of the way. */
#define LONG "a-rather-long-name-of-a-backing-image-that-has-to-move"

struct setup {
	const char *options, *backing;
	const char *before; /* commands that make the first set */
	uint64_t size;
};

static const char qemus[] = "qemu-img bitmap --add -g 4096 p.qcow2 q1 && qemu-img bitmap --add --disable p.qcow2 q2 && "
                            "qemu-io -f qcow2 -c 'write 0 64k' -c 'write 300k 8k' p.qcow2";

static void test_survives_power_cuts(void)
{
	const struct setup rows[] = {
		{ "cluster_size=512,refcount_bits=64", NULL, "true", 1 * M },
		{ "cluster_size=512", "b.raw", qemus, 1 * M },
		{ "cluster_size=512", LONG LONG LONG LONG ".raw", "true", 300 * K },
		{ "cluster_size=1K", LONG ".raw", "true", 1 * M },
		{ "cluster_size=4K", NULL, qemus, 2 * M },
		{ "cluster_size=4K,refcount_bits=1", "b.raw", qemus, 2 * M + 512 },
		{ "cluster_size=4K", "b.raw", "true", 2 * M },
		{ "cluster_size=64K", "b.raw", qemus, 2 * M },
	};
	uint64_t seed = 4711, len;

	if (!has_qemu())
		UNIT_SKIP("no qemu-img or qemu-io");
	for (size_t i = 0; i < TIDE_ARRAY_SIZE(rows); i++) {
		const struct setup *r = &rows[i];

		UNIT_ROW("%s backing %s %s", r->options, r->backing, r->before);
		CHECK_EQ_I64(sh("rm -f p.qcow2; truncate -s %" PRIu64
		                " %s; qemu-img create -q -f qcow2 -o %s %s%s p.qcow2 %" PRIu64 " && %s",
		                r->size, r->backing ? r->backing : "none", r->options, r->backing ? "-F raw -b " : "",
		                r->backing ? r->backing : "", r->size, r->before),
		             0);
		uint8_t *file = slurp("p.qcow2", &len);
		forget();
		run_program("p.qcow2", 6, &seed);
		is_clean("p.qcow2");
		cut_everywhere(file, len, &seed);
		forget();
		free(file);
	}
	/* Both sides of a switch were met. */
	CHECK(n_old > 0 && n_new > 0);
}

/* The test must notice when a switch is torn, or comes before what it refers to. */
static void test_notices_missing_syncs(void)
{
	uint64_t seed = 5, len;
	unsigned bad = 0;
	uint8_t *file;

	if (!has_qemu())
		UNIT_SKIP("no qemu-img or qemu-io");
	CHECK_EQ_I64(sh("rm -f p.qcow2; qemu-img create -q -f qcow2 -o cluster_size=4K p.qcow2 1M"), 0);
	file = slurp("p.qcow2", &len);
	forget();
	run_program("p.qcow2", 6, &seed);
	for (size_t i = 0; i < tape.n; i++) {
		if (tape.event[i].kind == SYNC)
			tape.event[i].kind = MARK;
		if (tape.event[i].kind == MARK)
			tape.event[i].len = tape.event[i].op = 0;
	}
	for (int i = 0; i < 20 && !bad; i++) {
		make_cut_image("cut.qcow2", file, len, &(struct cut){ .at = tape.n, .torn = true }, &seed);
		int rc = sh("qemu-img check -f qcow2 cut.qcow2");
		bad += rc != 0 && rc != 3;
	}
	CHECK(bad > 0);
	forget();
	free(file);
}

/* A change during which the write or sync number `fail_in` fails: 1 it did not come to that, 0 it did. */
static int change_with_error(unsigned fail_in, struct set *old, struct set *new, int *staged, int *committed)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_driver_bitmap_put put[2];
	struct tide_driver_switch sw;
	uint64_t seed = 3;
	struct sample s;
	int reached;

	*staged = *committed = -1;
	if (!CHECK_OK(sample_open(&s, "p.qcow2", TIDE_OPEN_WRITE, &err), &err) ||
	    !CHECK_OK(read_set(&s, old, &err), &err))
		return 1;
	put[0] = (struct tide_driver_bitmap_put){
		.name = "q2", .granularity = s.info.bitmaps[1].granularity, .enabled = true, .keep = true, .index = 1
	};
	put[1] = (struct tide_driver_bitmap_put){ .name = "n", .contents = make_bitmap(s.info.size, &seed) };
	put[1].granularity = tide_bitmap_granularity(put[1].contents);
	tape.fd = s.fd;
	tape.fail_in = fail_in;
	*staged = qcow2->bitmaps_stage(s.state, put, 2, &sw, &err);
	if (*staged == 0)
		*committed = qcow2->bitmaps_commit(s.state, &s.info, &err);
	reached = tape.fail_in == 0;
	tape.fail_in = 0;
	tape.fd = -1;
	/* An error after the switch costs space, and is none to the caller. */
	if (*committed == 0)
		CHECK_OK(read_set(&s, new, &err), &err);
	else
		CHECK_ERR(&err, TIDE_E_IO, NULL);
	free_contents(&put[1], 1);
	sample_close(&s);
	return !reached;
}

static void test_errors(void)
{
	unsigned n_staged = 0, n_committed = 0, n;
	struct set old, new = { 0 };
	uint64_t len;
	uint8_t *file;

	if (!has_qemu())
		UNIT_SKIP("no qemu-img or qemu-io");
	CHECK_EQ_I64(sh("rm -f p.qcow2; truncate -s 1M b.raw; qemu-img create -q -f qcow2 -o cluster_size=4K -b b.raw "
	                "-F raw "
	                "p.qcow2 && %s",
	                qemus),
	             0);
	file = slurp("p.qcow2", &len);
	for (n = 1; n < 200; n++) {
		struct tide_error err = TIDE_ERROR_INIT;
		struct set got = { 0 };
		int staged, committed, done, rc;
		struct sample s;

		UNIT_ROW("error at %u", n);
		spew("p.qcow2", file, len);
		done = change_with_error(n, &old, &new, &staged, &committed);
		rc = sh("qemu-img check -f qcow2 p.qcow2");
		CHECK(rc == 0 || (rc == 3 && !done));
		if (!CHECK_OK(sample_open(&s, "p.qcow2", 0, &err), &err) || !CHECK_OK(read_set(&s, &got, &err), &err))
			break;
		/* A switch that failed here wrote nothing, or was not synced: old and new are both right. */
		CHECK(committed == 0 ? is_same(&got, &new) : is_same(&got, &old) || (staged == 0 && got.n == 2));
		sample_close(&s);
		n_staged += staged < 0;
		n_committed += staged == 0 && committed < 0;
		if (done)
			break;
	}
	CHECK(n_staged >= 5 && n_committed == 2 && n < 200);
	forget();
	free(file);
}

int main(void)
{
	UNIT_RUN(test_survives_power_cuts);
	UNIT_RUN(test_errors);
	UNIT_RUN(test_notices_missing_syncs);
	int status = unit_done();
	free(tape.event);
	return status;
}
