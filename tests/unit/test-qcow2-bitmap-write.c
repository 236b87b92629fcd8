/*
 * Changing the persistent bitmaps inside a qcow2: random programs of changes, each judged by
 * qemu-img check (nothing wrong, nothing leaked), by what qemu-img info lists, and by reading
 * the contents back.
 */
#include "base/checksum.h"
#include "base/mem.h"
#include "bitmap/bitmap.h"
#include "image/image.h"
#include "qcow2_sample.h"

#define SLOTS 6u

/* What the image should hold. */
struct model {
	size_t n;
	struct {
		char name[64];
		bool in_use, enabled;
		struct tide_bitmap *bm;
	} slot[SLOTS];
};

static void drop(struct model *m, size_t i)
{
	tide_bitmap_free(m->slot[i].bm);
	m->n--;
	memmove(&m->slot[i], &m->slot[i + 1], (m->n - i) * sizeof(m->slot[0]));
}

static void forget(struct model *m)
{
	while (m->n)
		drop(m, 0);
}

/* Nothing, all, a few runs, or every other bit of a stretch. */
static void scribble(struct tide_bitmap *bm, uint64_t *seed)
{
	struct tide_error err = TIDE_ERROR_INIT;
	uint64_t size = tide_bitmap_size(bm), unit = tide_bitmap_granularity(bm), how = rnd(seed) % 6;

	if (how == 0)
		tide_bitmap_clear(bm);
	else if (how == 1)
		CHECK_OK(tide_bitmap_set(bm, 0, size, &err), &err);
	for (unsigned i = 0; how > 1 && i < 5; i++) {
		uint64_t off = rnd(seed) % size, len = rnd(seed) % (size - off) / (how == 2 ? 1 : 50) + 1;

		CHECK_OK(rnd(seed) % 3 ? tide_bitmap_set(bm, off, len, &err) : tide_bitmap_reset(bm, off, len, &err),
		         &err);
	}
	for (uint64_t off = rnd(seed) % size, i = 0; how == 5 && i < 2000 && off < size; i++, off += 2 * unit)
		CHECK_OK(tide_bitmap_set(bm, off, 1, &err), &err);
}

struct kind {
	const char *options;
	uint64_t size;
	uint64_t granularity; /* the finest */
	bool snapshot;
	const char *backing; /* name, or NULL */
};

/* One change of the model, and the request for it. */
static void change(struct model *m, const struct kind *kind, uint64_t *seed, struct tide_driver_bitmap_put *put)
{
	struct tide_error err = TIDE_ERROR_INIT;
	size_t at[SLOTS] = { 0 };
	bool keep[SLOTS] = { false };

	for (size_t i = 0; i < m->n; i++) {
		at[i] = i;
		keep[i] = true;
	}
	for (size_t i = 0; i < m->n;) {
		uint64_t what = rnd(seed) % 8;

		if (what == 0) {
			drop(m, i);
			memmove(&at[i], &at[i + 1], (SLOTS - i - 1) * sizeof(at[0]));
			memmove(&keep[i], &keep[i + 1], (SLOTS - i - 1) * sizeof(keep[0]));
			continue;
		}
		if (what < 3) {
			scribble(m->slot[i].bm, seed);
			keep[i] = false;
		}
		m->slot[i].enabled = rnd(seed) % 2;
		m->slot[i].in_use = what == 3;
		i++;
	}
	while (m->n < SLOTS && rnd(seed) % 3 == 0) {
		uint64_t unit = TIDE_MIN(kind->granularity << rnd(seed) % 12, TIDE_BITMAP_GRANULARITY_MAX);
		int pad = (int)(rnd(seed) % 40);

		snprintf(m->slot[m->n].name, sizeof(m->slot[0].name), "b%u-%.*s", (unsigned)(rnd(seed) % 1000000), pad,
		         "0123456789012345678901234567890123456789");
		m->slot[m->n].bm = tide_bitmap_new(kind->size, unit, &err);
		m->slot[m->n].in_use = false;
		m->slot[m->n].enabled = rnd(seed) % 2;
		scribble(m->slot[m->n].bm, seed);
		keep[m->n++] = false;
	}
	for (size_t i = 0; i < m->n; i++)
		put[i] = (struct tide_driver_bitmap_put){ .name = m->slot[i].name,
			                                  .granularity = tide_bitmap_granularity(m->slot[i].bm),
			                                  .in_use = m->slot[i].in_use,
			                                  .enabled = m->slot[i].enabled,
			                                  .keep = keep[i],
			                                  .index = at[i],
			                                  .contents = keep[i] ? NULL : m->slot[i].bm };
}

static void copy_model(struct model *to, const struct model *from)
{
	struct tide_error err = TIDE_ERROR_INIT;

	*to = *from;
	for (size_t i = 0; i < to->n; i++)
		to->slot[i].bm = tide_bitmap_copy(from->slot[i].bm, &err);
}

static bool check_info(const struct tide_driver_info *info, const struct model *m)
{
	bool good = CHECK_EQ_U64(info->n_bitmaps, m->n);

	for (size_t i = 0; good && i < m->n; i++) {
		const struct tide_driver_bitmap *b = &info->bitmaps[i];

		good = CHECK_STR(b->name, m->slot[i].name) &&
		       CHECK_EQ_U64(b->granularity, tide_bitmap_granularity(m->slot[i].bm)) &&
		       CHECK(b->in_use == m->slot[i].in_use && b->enabled == m->slot[i].enabled);
	}
	return good;
}

static bool check_contents(struct sample *s, const struct model *m)
{
	struct tide_error err = TIDE_ERROR_INIT;
	bool good = true;

	for (size_t i = 0; good && i < m->n; i++) {
		struct tide_bitmap *bm = NULL;
		char a[65], b[65];

		if (m->slot[i].in_use)
			continue;
		good = CHECK_OK(qcow2->bitmap_read(s->state, i, &bm, &err), &err);
		if (!good)
			break;
		tide_bitmap_sha256(bm, a);
		tide_bitmap_sha256(m->slot[i].bm, b);
		good = CHECK_STR(a, b);
		tide_bitmap_free(bm);
	}
	return good;
}

/* The file as a program that opens it now finds it. */
static bool check_file(const char *name, const struct model *m)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct sample s;
	bool good;

	if (!is_clean(name) || !CHECK_OK(sample_open(&s, name, 0, &err), &err))
		return false;
	good = check_info(&s.info, m) && check_contents(&s, m);
	sample_close(&s);
	good &= CHECK_EQ_I64(sh("qemu-img info %s >info.txt && ! grep -i -e warning -e leaked info.txt && "
	                        "test `grep -c 'name: b' info.txt` -eq %zu",
	                        name, m->n),
	                     0);
	for (size_t i = 0; good && i < m->n; i++)
		good = CHECK_EQ_I64(sh("grep -qx ' *name: %s' info.txt", m->slot[i].name), 0);
	if (!good)
		show_output();
	return good;
}

static bool is_switch_sound(const struct sample *s, const struct tide_driver_switch *sw)
{
	uint8_t now[512], *dir = malloc(sw->guard_len + 1);
	bool good = true;

	if (sw->len)
		good = CHECK(sw->len <= 512 && sw->offset / 512 == (sw->offset + sw->len - 1) / 512) &&
		       CHECK_EQ_I64(pread(s->fd, now, sw->len, (off_t)sw->offset), (int64_t)sw->len) &&
		       CHECK_MEM(now, sw->before, sw->len);
	good &= CHECK_EQ_I64(pread(s->fd, dir, sw->guard_len, (off_t)sw->guard_offset), (int64_t)sw->guard_len);
	good &= CHECK_EQ_U64(sw->guard_len ? tide_checksum_crc32c(0, dir, sw->guard_len) : 0, sw->guard_crc);
	free(dir);
	return good;
}

static bool run_step(struct sample *s, struct model *m, const struct kind *kind, uint64_t *seed)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_driver_bitmap_put put[SLOTS];
	struct tide_driver_switch sw;
	struct model before;
	bool good;

	copy_model(&before, m);
	change(m, kind, seed, put);
	good = CHECK_OK(qcow2->bitmaps_stage(s->state, put, m->n, &sw, &err), &err) && is_switch_sound(s, &sw) &&
	       check_info(&s->info, &before);
	if (good && rnd(seed) % 4 == 0) {
		qcow2->bitmaps_abort(s->state);
		forget(m);
		*m = before;
		return check_info(&s->info, m);
	}
	forget(&before);
	return good && CHECK_OK(qcow2->bitmaps_commit(s->state, &s->info, &err), &err) && check_info(&s->info, m) &&
	       check_contents(s, m);
}

static bool scribble_disk(struct sample *s, const struct kind *kind, uint64_t *seed)
{
	struct tide_error err = TIDE_ERROR_INIT;
	uint64_t off = rnd(seed) % (kind->size / 512) * 512, len = TIDE_MIN(64 * K, kind->size - off);
	uint8_t *buf;
	bool good;

	if (kind->backing || kind->size > M * K)
		return true;
	buf = malloc(len);
	fill(buf, len, seed);
	good = CHECK_OK(sample_write(s, buf, off, len, &err), &err);
	free(buf);
	return good;
}

static void run_program(const struct kind *kind, unsigned steps, uint64_t *seed)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct model m = { 0 };
	struct sample s;
	bool good = true;

	if (kind->backing)
		CHECK_EQ_I64(sh("truncate -s 512 '%s'", kind->backing), 0);
	CHECK_EQ_I64(sh("rm -f w.qcow2; qemu-img create -q -f qcow2 -o %s %s%s%s w.qcow2 %" PRIu64, kind->options,
	                kind->backing ? "-F raw -b '" : "", kind->backing ? kind->backing : "",
	                kind->backing ? "'" : "", kind->size),
	             0);
	if (kind->snapshot)
		CHECK_EQ_I64(sh("qemu-io -f qcow2 -c 'write -P 3 0 64k' w.qcow2 && qemu-img snapshot -c s w.qcow2"), 0);
	for (unsigned i = 0; i < steps && good; i++) {
		if (!CHECK_OK(sample_open(&s, "w.qcow2", TIDE_OPEN_WRITE, &err), &err))
			break;
		good = check_info(&s.info, &m);
		for (unsigned n = 1 + (unsigned)(rnd(seed) % 3); n > 0 && good; n--) {
			if (rnd(seed) % 3 == 0)
				good = scribble_disk(&s, kind, seed);
			good = good && run_step(&s, &m, kind, seed);
		}
		CHECK_OK(qcow2->flush(s.state, &err), &err);
		sample_close(&s);
		good = good && check_file("w.qcow2", &m);
		if (!good)
			printf("#   step %u\n", i);
	}
	forget(&m);
}

static const char long_name[] =
        "a-long-name-0123456789-0123456789-0123456789-0123456789-0123456789-0123456789-0123456789-"
        "0123456789-0123456789-0123456789-0123456789-0123456789-0123456789-0123456789.raw";

static void test_random_changes(void)
{
	const struct kind rows[] = {
		{ "cluster_size=512", 3 * M + 512, 512, false, NULL },
		{ "cluster_size=512,refcount_bits=64", 40 * M, 512, false, NULL },
		{ "cluster_size=512,refcount_bits=1", 5 * M, 512, false, NULL },
		{ "cluster_size=512", 1 * M, 512, false, "b.raw" },
		{ "cluster_size=512", 1 * M, 512, false, long_name },
		{ "cluster_size=1K,refcount_bits=2", 7 * M + 1536, 512, true, NULL },
		{ "cluster_size=1K", 3 * M, 512, false, long_name },
		{ "cluster_size=2K,refcount_bits=8", 9 * M, 512, false, "b.raw" },
		{ "cluster_size=4K,refcount_bits=32", 300 * M + 512, 512, true, NULL },
		{ "cluster_size=4K,lazy_refcounts=on", 512, 512, false, NULL },
		{ "cluster_size=64K", 3 * G + 512, 512, true, NULL },
		{ "cluster_size=64K", 64 * M, 512, false, "b.raw" },
		{ "cluster_size=64K,refcount_bits=4", 1 * T, 64 * K, false, long_name },
		{ "cluster_size=2M", 70 * G, 512, false, NULL },
		{ "cluster_size=2M,refcount_bits=64", 100 * M, 4096, true, NULL },
	};
	uint64_t seed = 7;

	if (!has_qemu())
		UNIT_SKIP("no qemu-img or qemu-io");
	for (size_t i = 0; i < TIDE_ARRAY_SIZE(rows); i++) {
		UNIT_ROW("%s size %" PRIu64 " backing %s", rows[i].options, rows[i].size, rows[i].backing);
		run_program(&rows[i], 12, &seed);
	}
}

static void check_header(const char *name, const struct tide_driver_create *made, size_t n_bitmaps)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct sample s;

	if (!CHECK_OK(sample_open(&s, name, 0, &err), &err))
		return;
	CHECK_EQ_U64(s.info.n_bitmaps, n_bitmaps);
	CHECK_EQ_U64(s.info.exact_size, made->size);
	CHECK_STR(s.info.backing, made->backing);
	CHECK_STR(s.info.backing_format, made->backing_format);
	sample_close(&s);
	CHECK_EQ_I64(sh("qemu-img info %s >info.txt && grep -q 'virtual size: .*(%" PRIu64 " bytes)' info.txt", name,
	                tide_range_align_up(made->size, 512)),
	             0);
	if (made->backing)
		CHECK_EQ_I64(sh("grep -q 'backing file: %s' info.txt", made->backing), 0);
}

/* The rest of the header stays what it was: extensions that QEMU does not know, names. */
static void test_keeps_the_header(void)
{
	static const char *const settings[] = { "cluster_size=512", "cluster_size=1K",
		                                "cluster_size=4K,compression_type=zstd", "cluster_size=64K" };
	static const char *const backings[] = { NULL, "b.raw", long_name };
	struct tide_driver_switch sw;

	if (!has_qemu())
		UNIT_SKIP("no qemu-img or qemu-io");
	for (size_t i = 0; i < TIDE_ARRAY_SIZE(settings) * TIDE_ARRAY_SIZE(backings); i++) {
		const char *backing = backings[i % TIDE_ARRAY_SIZE(backings)];
		struct tide_driver_create made = { .size = 1000001,
			                           .settings = settings[i / TIDE_ARRAY_SIZE(backings)],
			                           .backing = backing,
			                           .backing_format = backing ? "raw" : NULL };
		struct tide_error err = TIDE_ERROR_INIT;
		struct sample s;

		UNIT_ROW("%s backing %s", made.settings, backing ? backing : "none");
		CHECK_EQ_I64(sh("truncate -s 512 %s", backing ? backing : "none"), 0);
		if (!CHECK_OK(sample_create("h.qcow2", &made, &err), &err))
			return;
		for (size_t step = 0; step < 4; step++) {
			struct tide_bitmap *bm = tide_bitmap_new(1000448, 512, &err);
			struct tide_driver_bitmap_put put = { .name = "b", .granularity = 512, .contents = bm };

			if (CHECK_OK(sample_open(&s, "h.qcow2", TIDE_OPEN_WRITE, &err), &err)) {
				CHECK_OK(qcow2->bitmaps_stage(s.state, &put, step % 3 < 2, &sw, &err), &err);
				check_header("h.qcow2", &made, step == 0 || step == 3 ? 0 : 1);
				CHECK_OK(qcow2->bitmaps_commit(s.state, &s.info, &err), &err);
				sample_close(&s);
			}
			tide_bitmap_free(bm);
			check_header("h.qcow2", &made, step % 3 < 2);
			is_clean("h.qcow2");
		}
	}
}

static unsigned fail_in;

static bool no_memory(void)
{
	return fail_in && --fail_in == 0;
}

/* Whatever allocation fails, nothing is lost, and a second try goes well. */
static void test_no_memory(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_driver_switch sw;
	unsigned n, refused = 0;
	struct sample s;
	uint64_t len;
	uint8_t *file;

	if (!has_qemu())
		UNIT_SKIP("no qemu-img or qemu-io");
	CHECK_EQ_I64(sh("rm -f w.qcow2; qemu-img create -q -f qcow2 -o cluster_size=4K w.qcow2 64M && "
	                "qemu-img bitmap --add w.qcow2 b1 && qemu-img bitmap --add w.qcow2 b2"),
	             0);
	file = slurp("w.qcow2", &len);
	for (n = 1; n < 500; n++) {
		struct tide_bitmap *bm = tide_bitmap_new(64 * M, 512, &err);
		struct tide_driver_bitmap_put put[2] = {
			{ .name = "b2", .granularity = 4096, .keep = true, .index = 1 },
			{ .name = "c", .granularity = 512, .contents = bm },
		};
		int rc;

		UNIT_ROW("allocation %u", n);
		spew("w.qcow2", file, len);
		CHECK_OK(tide_bitmap_set(bm, 5 * M, 9 * M, &err), &err);
		if (!CHECK_OK(sample_open(&s, "w.qcow2", TIDE_OPEN_WRITE, &err), &err))
			break;
		tide_mem_set_hook(no_memory);
		fail_in = n;
		rc = qcow2->bitmaps_stage(s.state, put, 2, &sw, &err);
		if (rc < 0) {
			CHECK_ERR(&err, TIDE_E_NOMEM, NULL);
			CHECK_EQ_U64(s.info.n_bitmaps, 2);
			refused++;
			rc = qcow2->bitmaps_stage(s.state, put, 2, &sw, &err);
		}
		if (rc == 0 && CHECK_OK(qcow2->bitmaps_commit(s.state, &s.info, &err), &err))
			CHECK_EQ_U64(s.info.n_bitmaps, 2);
		/* A flush that could not be made whole leaves the image useless for writing. */
		if (rc < 0)
			CHECK_ERR(&err, TIDE_E_IO, "An earlier error left the image without its last changes");
		tide_mem_set_hook(NULL);
		sample_close(&s);
		tide_bitmap_free(bm);
		rc = sh("qemu-img check -f qcow2 w.qcow2");
		CHECK(rc == 0 || (rc == 3 && fail_in == 0));
		if (fail_in)
			break;
	}
	CHECK(refused > 10 && n < 500);
	free(file);
}

/* Writes one bitmap's directory entry anew, as a damaged image has it. */
static void damage(const char *name, uint64_t from_dir, const void *bytes, size_t len)
{
	uint64_t size, ext = 112;
	uint8_t *file = slurp(name, &size);

	while (tide_get_be32(file + ext) != 0x23852875)
		ext += 8 + tide_range_align_up(tide_get_be32(file + ext + 4), 8);
	memcpy(file + tide_get_be64(file + ext + 24) + from_dir, bytes, len);
	spew(name, file, size);
	free(file);
}

/* One that a dead program left may have a table that leads anywhere: it goes, and takes nothing else along. */
static void test_damaged_bitmap_in_use(void)
{
	static const struct {
		uint64_t table;
		int check; /* exit status at the end: clean, or leaks */
	} rows[] = { { 0, 0 }, { 0x10000, 3 }, { 0x30000, 3 }, { 0x7fff0000, 3 } };
	struct tide_driver_bitmap_put keep = { .name = "b2", .granularity = 65536, .keep = true, .index = 1 };
	struct tide_driver_switch sw;

	if (!has_qemu())
		UNIT_SKIP("no qemu-img or qemu-io");
	for (size_t i = 0; i < TIDE_ARRAY_SIZE(rows); i++) {
		struct tide_error err = TIDE_ERROR_INIT;
		uint8_t table[8], flags[4];
		struct sample s;

		UNIT_ROW("table %#" PRIx64, rows[i].table);
		CHECK_EQ_I64(sh("rm -f w.qcow2; qemu-img create -q -f qcow2 w.qcow2 4M && qemu-img bitmap --add "
		                "w.qcow2 b1 && "
		                "qemu-img bitmap --add w.qcow2 b2 && qemu-io -f qcow2 -c 'write 0 1M' w.qcow2"),
		             0);
		tide_put_be64(table, rows[i].table);
		tide_put_be32(flags, 3);
		if (rows[i].table)
			damage("w.qcow2", 0, table, sizeof(table));
		damage("w.qcow2", 12, flags, sizeof(flags));
		if (!CHECK_OK(sample_open(&s, "w.qcow2", TIDE_OPEN_WRITE, &err), &err))
			return;
		if (CHECK_OK(qcow2->bitmaps_stage(s.state, &keep, 1, &sw, &err), &err))
			CHECK_OK(qcow2->bitmaps_commit(s.state, &s.info, &err), &err);
		sample_close(&s);
		CHECK_EQ_I64(sh("qemu-img check -f qcow2 w.qcow2"), rows[i].check);
		CHECK_EQ_I64(
		        sh("qemu-img info w.qcow2 | grep -q 'name: b2' && qemu-io -r -f qcow2 -c 'read 0 4M' w.qcow2"),
		        0);
	}
}

/* What is damaged and not in use forbids to write, before anything is written. */
static void test_overlaps(void)
{
	static const struct {
		uint64_t from_dir, table;
		const char *text;
	} rows[] = {
		{ 0, 0x10000, "The bitmap table at 65536 overlaps with the image's refcount table" },
		{ 0, 0x30000, "The bitmap table at 196608 overlaps with the image's L1 table" },
	};
	struct tide_driver_switch sw;

	if (!has_qemu())
		UNIT_SKIP("no qemu-img or qemu-io");
	for (size_t i = 0; i < TIDE_ARRAY_SIZE(rows); i++) {
		struct tide_error err = TIDE_ERROR_INIT;
		uint8_t table[8], *before, *after;
		uint64_t len, len2;
		struct sample s;

		UNIT_ROW("table %#" PRIx64, rows[i].table);
		CHECK_EQ_I64(sh("rm -f w.qcow2; qemu-img create -q -f qcow2 w.qcow2 0x20000000000 && "
		                "qemu-img bitmap --add -g 2G w.qcow2 b1"),
		             0);
		tide_put_be64(table, rows[i].table);
		damage("w.qcow2", rows[i].from_dir, table, sizeof(table));
		before = slurp("w.qcow2", &len);
		if (CHECK_OK(sample_open(&s, "w.qcow2", TIDE_OPEN_WRITE, &err), &err)) {
			CHECK_EQ_I64(qcow2->bitmaps_stage(s.state, NULL, 0, &sw, &err), -1);
			CHECK_ERR(&err, TIDE_E_CORRUPT, rows[i].text);
			sample_close(&s);
		}
		after = slurp("w.qcow2", &len2);
		CHECK(len == len2 && !memcmp(before, after, len));
		free(before);
		free(after);
	}
}

static void test_misuse(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_bitmap *bm = tide_bitmap_new(4 * M, 65536, &err);
	struct tide_driver_bitmap_put put[2] = { { .name = "b", .granularity = 65536, .contents = bm },
		                                 { .name = "b", .granularity = 65536, .contents = bm } };
	struct tide_driver_switch sw;
	struct sample s;

	if (!has_qemu())
		UNIT_SKIP("no qemu-img or qemu-io");
	CHECK_EQ_I64(sh("rm -f w.qcow2; qemu-img create -q -f qcow2 w.qcow2 4M"), 0);
	if (!CHECK_OK(sample_open(&s, "w.qcow2", TIDE_OPEN_WRITE, &err), &err))
		return;
	CHECK_EQ_I64(qcow2->bitmaps_stage(s.state, put, 2, &sw, &err), -1);
	CHECK_ERR(&err, TIDE_E_REFUSED, "Bitmap already exists: b");
	put[0].keep = true;
	CHECK_EQ_I64(qcow2->bitmaps_stage(s.state, put, 1, &sw, &err), -1);
	CHECK_ERR(&err, TIDE_E_REFUSED, "Bitmap 'b' cannot keep the contents of number 0 of the 0 stored ones");
	put[0].keep = false;
	put[0].granularity = 4096;
	CHECK_EQ_I64(qcow2->bitmaps_stage(s.state, put, 1, &sw, &err), -1);
	CHECK_ERR(&err, TIDE_E_REFUSED, "Bitmap 'b' has no contents of granularity 4096 for a disk of 4194304 bytes");
	put[0].granularity = 256;
	CHECK_EQ_I64(qcow2->bitmaps_stage(s.state, put, 1, &sw, &err), -1);
	CHECK_ERR(&err, TIDE_E_REFUSED, "Granularity is under minimum (512 bytes)");
	put[0].granularity = 4 * G;
	CHECK_EQ_I64(qcow2->bitmaps_stage(s.state, put, 1, &sw, &err), -1);
	CHECK_ERR(&err, TIDE_E_REFUSED, "Granularity exceeds maximum (2147483648 bytes)");
	CHECK_EQ_I64(qcow2->bitmaps_commit(s.state, &s.info, &err), -1);
	CHECK_ERR(&err, TIDE_E_REFUSED, "No change of the image's bitmaps is staged");
	qcow2->bitmaps_abort(s.state);
	put[0].granularity = 65536;
	CHECK_OK(qcow2->bitmaps_stage(s.state, put, 1, &sw, &err), &err);
	CHECK_EQ_I64(qcow2->bitmaps_stage(s.state, put, 1, &sw, &err), -1);
	CHECK_ERR(&err, TIDE_E_REFUSED, "The image has a staged change of its bitmaps already");
	CHECK_OK(qcow2->bitmaps_commit(s.state, &s.info, &err), &err);
	sample_close(&s);
	is_clean("w.qcow2");
	tide_bitmap_free(bm);
}

/* Readers beside us until we write, and a reader beside us again afterwards. */
static void test_write_later(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_image_options later = { .write_later = true }, reader = { .path = NULL };
	struct tide_image *a = NULL, *b = NULL;
	uint8_t buf[512] = { 1 };

	if (!has_qemu())
		UNIT_SKIP("no qemu-img or qemu-io");
	CHECK_EQ_I64(sh("rm -f w.qcow2; qemu-img create -q -f qcow2 w.qcow2 4M && qemu-io -f qcow2 -c 'write -P 5 0 "
	                "1M' w.qcow2"),
	             0);
	later.path = reader.path = unit_path("w.qcow2");
	if (!CHECK_OK(tide_image_open(&later, &a, &err), &err))
		return;
	CHECK_OK(tide_image_read(a, buf, 4096, sizeof(buf), &err), &err);
	CHECK(buf[0] == 5 && buf[511] == 5);
	CHECK_EQ_I64(tide_image_write(a, buf, 0, sizeof(buf), &err), -1);
	CHECK_ERR(&err, TIDE_E_REFUSED, "The image is open for reading only");
	CHECK_EQ_I64(sh("qemu-io -r -f qcow2 -c 'read 0 512' w.qcow2"), 0);
	CHECK_OK(tide_image_lock_write(a, &err), &err);
	CHECK_EQ_I64(tide_image_open(&reader, &b, &err), -1);
	CHECK_ERR(&err, TIDE_E_LOCKED, "Failed to get shared \"write\" lock");
	CHECK_EQ_I64(sh("qemu-io -r -f qcow2 -c 'read 0 512' w.qcow2"), 1);
	CHECK_OK(tide_image_write(a, buf, 0, sizeof(buf), &err), &err);
	CHECK_OK(tide_image_flush(a, &err), &err);
	tide_image_unlock_write(a);
	if (CHECK_OK(tide_image_open(&reader, &b, &err), &err)) {
		CHECK_OK(tide_image_read(b, buf, 0, sizeof(buf), &err), &err);
		tide_image_close(b);
	}
	CHECK_EQ_I64(sh("qemu-io -r -f qcow2 -c 'read 0 512' w.qcow2"), 0);
	tide_image_close(a);
	CHECK_EQ_I64(sh("qemu-io -f qcow2 -c 'write 0 512' w.qcow2"), 0);
}

/* A header that forbids writing is no reason not to read. */
static void test_write_later_on_a_corrupt_image(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_image_options later = { .write_later = true };
	struct tide_driver_switch sw;
	struct tide_image *a = NULL;
	uint8_t buf[512] = { 1 }, *file;
	uint64_t len;

	if (!has_qemu())
		UNIT_SKIP("no qemu-img or qemu-io");
	CHECK_EQ_I64(sh("rm -f w.qcow2; qemu-img create -q -f qcow2 w.qcow2 4M"), 0);
	file = slurp("w.qcow2", &len);
	file[79] = 2;
	spew("w.qcow2", file, len);
	free(file);
	later.path = unit_path("w.qcow2");
	if (!CHECK_OK(tide_image_open(&later, &a, &err), &err))
		return;
	CHECK_OK(tide_image_read(a, buf, 0, sizeof(buf), &err), &err);
	CHECK_OK(tide_image_lock_write(a, &err), &err);
	CHECK_EQ_I64(tide_image_stage_bitmaps(a, NULL, 0, &sw, &err), -1);
	CHECK_ERR(&err, TIDE_E_CORRUPT, "qcow2: Image is corrupt; cannot be opened read/write");
	tide_image_close(a);
}

int main(void)
{
	UNIT_RUN(test_random_changes);
	UNIT_RUN(test_keeps_the_header);
	UNIT_RUN(test_no_memory);
	UNIT_RUN(test_damaged_bitmap_in_use);
	UNIT_RUN(test_overlaps);
	UNIT_RUN(test_misuse);
	UNIT_RUN(test_write_later);
	UNIT_RUN(test_write_later_on_a_corrupt_image);
	return unit_done();
}
