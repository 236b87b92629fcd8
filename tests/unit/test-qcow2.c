/*
 * The qcow2 driver against qemu-img and qemu-io: what they write is read, what is written
 * they read, and qemu-img check finds nothing to complain about.
 */
#include <pthread.h>

#include "base/mem.h"
#include "qcow2_sample.h"

struct shape {
	const char *compat;
	uint64_t cluster;
	unsigned refcount_bits;
	bool extended; /* L2 entries */
};

static const struct shape shapes[] = {
	{ "1.1", 512, 1, false },    { "1.1", 512, 16, false },    { "1.1", 512, 64, false },
	{ "0.10", 512, 16, false },  { "1.1", 4096, 1, false },    { "1.1", 4096, 16, false },
	{ "1.1", 4096, 64, false },  { "0.10", 4096, 16, false },  { "1.1", 65536, 1, false },
	{ "1.1", 65536, 16, false }, { "1.1", 65536, 64, false },  { "0.10", 65536, 16, false },
	{ "1.1", 65536, 2, false },  { "1.1", 65536, 4, false },   { "1.1", 65536, 8, false },
	{ "1.1", 65536, 32, false }, { "1.1", 2 * M, 1, false },   { "1.1", 2 * M, 16, false },
	{ "1.1", 2 * M, 64, false }, { "0.10", 2 * M, 16, false }, { "1.1", 16384, 16, true },
	{ "1.1", 65536, 16, true },  { "1.1", 65536, 1, true },    { "1.1", 2 * M, 16, true },
};

/* The widths that tests go through which are about something else. */
static bool is_usual(const struct shape *s)
{
	return s->refcount_bits == 16;
}

static const char *extended(const struct shape *s)
{
	return s->extended ? ",extended_l2=on" : "";
}

/* A disk of some clusters, that ends within one. */
static uint64_t disk_size(const struct shape *s)
{
	return TIDE_MAX(11 * s->cluster + 512, 640 * K + 1536);
}

static void make_image(const char *name, const struct shape *s, const char *more)
{
	if (!CHECK_EQ_I64(sh("rm -f %s; qemu-img create -q -u -f qcow2 -o compat=%s,cluster_size=%" PRIu64
	                     ",refcount_bits=%u%s%s %s %" PRIu64,
	                     name, s->compat, s->cluster, s->refcount_bits, extended(s), more, name, disk_size(s)),
	                  0))
		show_output();
}

/* Writes, zero writes and discards by qemu-io, in sectors. */
static void scribble(const char *name, const struct shape *s, uint64_t *seed, int n)
{
	static char cmd[32768];
	uint64_t sectors = disk_size(s) / 512;
	size_t len = 0;

	for (int i = 0; i < n; i++) {
		uint64_t off = rnd(seed) % sectors, most = TIDE_MIN(sectors - off, 3 * TIDE_MAX(s->cluster / 512, 8));
		unsigned pattern = 1 + (unsigned)(rnd(seed) % 255);
		char verb[64];

		switch (rnd(seed) % 5) {
		case 0:
		case 1:
			snprintf(verb, sizeof(verb), "write -P 0x%02x", pattern);
			break;
		case 2:
			strcpy(verb, "write -z");
			break;
		case 3:
			strcpy(verb, "write -z -u");
			break;
		default:
			strcpy(verb, "discard");
		}
		len += (size_t)snprintf(cmd + len, sizeof(cmd) - len, " -c '%s %" PRIu64 " %" PRIu64 "'", verb,
		                        off * 512, (1 + rnd(seed) % most) * 512);
	}
	if (!CHECK_EQ_I64(sh("qemu-io -f qcow2 -d unmap %s %s", cmd, name), 0))
		show_output();
}

static void check_reading(const char *name, uint64_t *seed)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct sample s;
	uint64_t len;
	uint8_t *want, *got;

	if (!CHECK_EQ_I64(sh("qemu-img convert -f qcow2 -O raw %s want.raw", name), 0) ||
	    !CHECK_OK(sample_open(&s, name, 0, &err), &err))
		return;
	want = slurp("want.raw", &len);
	if (CHECK_EQ_U64(s.info.size, len) && check_content(&s, want)) {
		got = malloc(len);
		for (int i = 0; i < 50; i++) {
			uint64_t off = rnd(seed) % len, n = 1 + rnd(seed) % TIDE_MIN(len - off, 200000);

			CHECK_OK(sample_read(&s, got, off, n, &err), &err);
			CHECK_MEM(got, want + off, n);
		}
		free(got);
	}
	free(want);
	sample_close(&s);
}

static void test_reads_what_qemu_writes(void)
{
	uint64_t seed = 1;

	if (!has_qemu())
		UNIT_SKIP("no qemu-img or qemu-io");
	for (size_t i = 0; i < TIDE_ARRAY_SIZE(shapes); i++) {
		UNIT_ROW("compat %s cluster %" PRIu64 " refcount %u", shapes[i].compat, shapes[i].cluster,
		         shapes[i].refcount_bits);
		make_image("a.qcow2", &shapes[i], "");
		scribble("a.qcow2", &shapes[i], &seed, 25);
		check_reading("a.qcow2", &seed);
		if (shapes[i].refcount_bits == 1)
			continue;
		CHECK_EQ_I64(sh("qemu-img snapshot -c s1 a.qcow2"), 0);
		scribble("a.qcow2", &shapes[i], &seed, 15);
		check_reading("a.qcow2", &seed);
	}
}

static void test_reads_compressed(void)
{
	uint64_t seed = 2;

	if (!has_qemu())
		UNIT_SKIP("no qemu-img or qemu-io");
	for (size_t i = 0; i < TIDE_ARRAY_SIZE(shapes); i++) {
		for (int zstd = 0; zstd < 2; zstd++) {
			const struct shape *s = &shapes[i];
			bool v2 = !strcmp(s->compat, "0.10");

			if ((zstd && v2) || !is_usual(s))
				continue;
			UNIT_ROW("compat %s cluster %" PRIu64 " refcount %u zstd %d", s->compat, s->cluster,
			         s->refcount_bits, zstd);
			make_image("a.qcow2", s, "");
			scribble("a.qcow2", s, &seed, 30);
			if (!CHECK_EQ_I64(sh("rm -f c.qcow2; cat /usr/bin/qemu-img | head -c 300000 > lib; "
			                     "qemu-io -f qcow2 -c 'write -s lib 65536 300032' a.qcow2 &&"
			                     "qemu-img convert -c -O qcow2 -o compat=%s,cluster_size=%" PRIu64
			                     ",refcount_bits=%u%s%s a.qcow2 c.qcow2",
			                     s->compat, s->cluster, s->refcount_bits, extended(s),
			                     zstd ? ",compression_type=zstd" : ""),
			                  0))
				show_output();
			check_reading("c.qcow2", &seed);
			scribble("c.qcow2", s, &seed, 6);
			check_reading("c.qcow2", &seed);
		}
	}
}

static void test_reads_preallocated(void)
{
	static const char *const modes[] = { "metadata", "falloc", "full" };
	uint64_t seed = 3;

	if (!has_qemu())
		UNIT_SKIP("no qemu-img or qemu-io");
	for (size_t i = 0; i < TIDE_ARRAY_SIZE(modes); i++) {
		UNIT_ROW("%s", modes[i]);
		CHECK_EQ_I64(sh("rm -f p.qcow2; qemu-img create -q -f qcow2 -o lazy_refcounts=on,preallocation=%s "
		                "p.qcow2 5000K",
		                modes[i]),
		             0);
		check_reading("p.qcow2", &seed);
		CHECK_EQ_I64(sh("qemu-io -c 'write -P 5 1M 100k' p.qcow2"), 0);
		check_reading("p.qcow2", &seed);
	}
}

/* Clusters from the one at *off on, some of which compress. */
static void pack(struct sample *s, uint8_t *model, uint64_t off, uint64_t len, uint64_t *seed)
{
	struct tide_error err = TIDE_ERROR_INIT;
	uint64_t cluster = s->info.cluster_size, end = TIDE_MIN(tide_range_align_up(off + len, cluster), s->info.size);
	unsigned n_plain = 0;

	off = tide_range_align_down(off, cluster);
	for (uint64_t at = off; at < end; at += cluster)
		fill_soft(model + at, TIDE_MIN(cluster, end - at), seed);
	CHECK_OK(sample_pack(s, model + off, off, end - off, &n_plain, &err), &err);
}

/* A random program on an open image and its model. */
static void run_program(struct sample *s, uint8_t *model, uint64_t *seed, int n, bool flushes, bool packs)
{
	struct tide_error err = TIDE_ERROR_INIT;
	uint64_t size = s->info.size;
	uint8_t *buf = malloc(size);

	for (int i = 0; i < n; i++) {
		uint64_t unit = rnd(seed) % 3 ? s->info.cluster_size : 512, off, len;

		off = rnd(seed) % (size / unit + 1) * unit;
		if (off >= size)
			off = 0;
		len = (1 + rnd(seed) % (4 * TIDE_MAX(s->info.cluster_size, 2048) / unit)) * unit;
		if (len > size - off || rnd(seed) % 8 == 0)
			len = TIDE_MIN(size - off, len * 4);
		switch (rnd(seed) % (packs ? 10 : 8)) {
		case 0:
		case 1:
			CHECK_OK(sample_zero(s, off, len, rnd(seed) % 2, &err), &err);
			memset(model + off, 0, len);
			break;
		case 2: {
			struct tide_extent place;
			int rc = qcow2->write_begin(s->state, off, len, &place, &err);

			CHECK(rc >= 0);
			if (rc == 0)
				qcow2->write_abort(s->state, &place);
			break;
		}
		case 3:
			if (flushes)
				CHECK_OK(qcow2->flush(s->state, &err), &err);
			break;
		case 4:
			CHECK_OK(sample_read(s, buf, off, len, &err), &err);
			CHECK_MEM(buf, model + off, len);
			break;
		case 8:
		case 9:
			pack(s, model, off, len, seed);
			break;
		default:
			fill(buf, len, seed);
			CHECK_OK(sample_write(s, buf, off, len, &err), &err);
			memcpy(model + off, buf, len);
		}
	}
	check_content(s, model);
	CHECK_OK(qcow2->flush(s->state, &err), &err);
	check_content(s, model);
	free(buf);
}

/* Opens, runs a program, closes, and has it judged. */
static void write_and_check(const char *name, uint8_t *model, const uint8_t *below, bool packs, uint64_t *seed)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct sample s;
	uint64_t size;

	if (!CHECK_OK(sample_open(&s, name, TIDE_OPEN_WRITE, &err), &err))
		return;
	s.below = below;
	size = s.info.size;
	check_content(&s, model);
	run_program(&s, model, seed, 40, true, packs);
	sample_close(&s);
	if (is_clean(name))
		check_with_qemu(name, NULL, model, size);
}

/* With internal snapshots, made, deleted and applied by qemu-img. */
static void write_beside_snapshots(uint8_t *model, uint64_t len, bool all, bool packs, uint64_t *seed)
{
	uint8_t *before = malloc(len);

	memcpy(before, model, len);
	CHECK_EQ_I64(sh("qemu-img snapshot -c s1 a.qcow2"), 0);
	write_and_check("a.qcow2", model, NULL, packs, seed);
	check_with_qemu("a.qcow2", "s1", before, len);
	if (all) {
		CHECK_EQ_I64(sh("qemu-img snapshot -c s2 a.qcow2"), 0);
		write_and_check("a.qcow2", model, NULL, packs, seed);
		check_with_qemu("a.qcow2", "s1", before, len);
		CHECK_EQ_I64(sh("qemu-img snapshot -d s2 a.qcow2"), 0);
		write_and_check("a.qcow2", model, NULL, packs, seed);
		check_with_qemu("a.qcow2", "s1", before, len);
		CHECK_EQ_I64(sh("qemu-img snapshot -a s1 a.qcow2"), 0);
		memcpy(model, before, len);
		write_and_check("a.qcow2", model, NULL, packs, seed);
		check_with_qemu("a.qcow2", "s1", before, len);
	}
	free(before);
}

static void test_writes_in_place(void)
{
	uint64_t seed = 4, len;

	if (!has_qemu())
		UNIT_SKIP("no qemu-img or qemu-io");
	for (size_t i = 0; i < TIDE_ARRAY_SIZE(shapes); i++) {
		const struct shape *s = &shapes[i];
		/* Where counts are small, compressed clusters leave none for qemu-img's snapshots. */
		bool packs = s->refcount_bits == 1 || s->refcount_bits >= 8;
		uint8_t *model;

		UNIT_ROW("compat %s cluster %" PRIu64 " refcount %u%s", s->compat, s->cluster, s->refcount_bits,
		         extended(s));
		make_image("a.qcow2", s, "");
		scribble("a.qcow2", s, &seed, 20);
		CHECK_EQ_I64(sh("qemu-img convert -O raw a.qcow2 m.raw"), 0);
		model = slurp("m.raw", &len);
		write_and_check("a.qcow2", model, NULL, packs, &seed);
		if (s->refcount_bits > 1)
			write_beside_snapshots(model, len, is_usual(s), packs, &seed);
		free(model);
	}
}

static void test_writes_over_backing(void)
{
	uint64_t seed = 5, len;

	if (!has_qemu())
		UNIT_SKIP("no qemu-img or qemu-io");
	for (size_t i = 0; i < TIDE_ARRAY_SIZE(shapes); i++) {
		const struct shape *s = &shapes[i];
		uint8_t *below, *model;

		if (!is_usual(s))
			continue;
		below = malloc(disk_size(s));
		UNIT_ROW("compat %s cluster %" PRIu64 " refcount %u%s", s->compat, s->cluster, s->refcount_bits,
		         extended(s));
		fill(below, disk_size(s), &seed);
		spew("base.raw", below, disk_size(s));
		make_image("a.qcow2", s, " -b base.raw -F raw");
		model = malloc(disk_size(s));
		memcpy(model, below, disk_size(s));
		write_and_check("a.qcow2", model, below, true, &seed);
		write_and_check("a.qcow2", model, below, true, &seed);
		scribble("a.qcow2", s, &seed, 6);
		CHECK_EQ_I64(sh("qemu-img convert -O raw a.qcow2 m.raw"), 0);
		free(model);
		model = slurp("m.raw", &len);
		write_and_check("a.qcow2", model, below, true, &seed);
		free(model);
		free(below);
	}
}

static void test_writes_over_compressed(void)
{
	uint64_t seed = 6, len;

	if (!has_qemu())
		UNIT_SKIP("no qemu-img or qemu-io");
	for (size_t i = 0; i < TIDE_ARRAY_SIZE(shapes); i++) {
		const struct shape *s = &shapes[i];
		uint8_t *model;

		if (!is_usual(s))
			continue;
		UNIT_ROW("compat %s cluster %" PRIu64 " refcount %u%s", s->compat, s->cluster, s->refcount_bits,
		         extended(s));
		make_image("a.qcow2", s, "");
		scribble("a.qcow2", s, &seed, 30);
		CHECK_EQ_I64(sh("rm -f c.qcow2; qemu-img convert -c -O qcow2 -o compat=%s,cluster_size=%" PRIu64
		                ",refcount_bits=%u%s a.qcow2 c.qcow2 && qemu-img convert -O raw c.qcow2 m.raw",
		                s->compat, s->cluster, s->refcount_bits, extended(s)),
		             0);
		model = slurp("m.raw", &len);
		write_and_check("c.qcow2", model, NULL, true, &seed);
		CHECK_EQ_I64(sh("qemu-img snapshot -c s1 c.qcow2"), 0);
		write_and_check("c.qcow2", model, NULL, true, &seed);
		free(model);
	}
}

static void make_new(const struct shape *s, const char *backing)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_driver_create o = { .size = disk_size(s), .cluster_size = s->cluster };
	char settings[64];

	snprintf(settings, sizeof(settings), "compat=%s,refcount_bits=%u%s", s->compat, s->refcount_bits, extended(s));
	o.settings = settings;
	o.backing = backing;
	o.backing_format = backing ? "raw" : NULL;
	CHECK_OK(sample_create("n.qcow2", &o, &err), &err);
}

static void fill_new(const struct shape *s, bool backing, bool packs, uint64_t *seed)
{
	struct tide_error err = TIDE_ERROR_INIT;
	uint64_t size = disk_size(s);
	uint8_t *below = calloc(1, size), *model = malloc(size);
	struct sample n;

	if (backing)
		fill(below, size, seed);
	spew("base.raw", below, size);
	memcpy(model, below, size);
	make_new(s, backing ? "base.raw" : NULL);
	is_clean("n.qcow2");
	if (CHECK_OK(sample_open(&n, "n.qcow2", TIDE_OPEN_NEW, &err), &err)) {
		n.below = backing ? below : NULL;
		run_program(&n, model, seed, 40, false, packs);
		if (is_clean("n.qcow2"))
			check_with_qemu("n.qcow2", NULL, model, size);
		/* Once more after the flush. */
		run_program(&n, model, seed, 20, true, packs);
		sample_close(&n);
		if (is_clean("n.qcow2"))
			check_with_qemu("n.qcow2", NULL, model, size);
		write_and_check("n.qcow2", model, backing ? below : NULL, packs, seed);
	}
	free(below);
	free(model);
}

static void test_fills_new_images(void)
{
	uint64_t seed = 7;

	if (!has_qemu())
		UNIT_SKIP("no qemu-img or qemu-io");
	for (size_t i = 0; i < TIDE_ARRAY_SIZE(shapes); i++) {
		const struct shape *s = &shapes[i];

		UNIT_ROW("compat %s cluster %" PRIu64 " refcount %u%s", s->compat, s->cluster, s->refcount_bits,
		         extended(s));
		fill_new(s, false, false, &seed);
		fill_new(s, false, true, &seed);
		if (is_usual(s)) {
			fill_new(s, true, false, &seed);
			fill_new(s, true, true, &seed);
		}
	}
}

/* Where the compressed clusters of a disk whose one L2 table is in use stand, as the file says. */
static void read_places(const char *name, unsigned bits, size_t n, uint64_t *host, uint64_t *end)
{
	unsigned x = 62 - (bits - 8);
	uint64_t len, l2;
	uint8_t *file = slurp(name, &len);

	l2 = tide_get_be64(file + tide_get_be64(file + 40)) & UINT64_C(0x00fffffffffffe00);
	for (size_t i = 0; i < n; i++) {
		uint64_t entry = tide_get_be64(file + l2 + 8 * i);

		CHECK_EQ_U64(entry >> 62, 1);
		host[i] = entry & ((UINT64_C(1) << x) - 1);
		end[i] = (host[i] & ~UINT64_C(511)) + 512 * (((entry & ~(UINT64_C(1) << 62)) >> x) + 1);
	}
	free(file);
}

/* Compressed clusters stand back to back as far as a cluster of the file can count them. */
static void test_packs_back_to_back(void)
{
	enum { N = 60, CLUSTER = 4096 };
	uint64_t seed = 11, host[N], end[N];
	uint8_t *buf = malloc(N * CLUSTER);

	if (!has_qemu())
		UNIT_SKIP("no qemu-img or qemu-io");
	for (unsigned bits = 1; bits <= 64; bits *= 2) {
		struct shape s = { .compat = "1.1", .cluster = CLUSTER, .refcount_bits = bits };
		struct tide_error err = TIDE_ERROR_INIT;
		unsigned gaps = 0, n_plain = 0;
		struct sample n;

		UNIT_ROW("refcount %u", bits);
		make_new(&s, NULL);
		if (!CHECK_OK(sample_open(&n, "n.qcow2", TIDE_OPEN_NEW, &err), &err))
			break;
		for (size_t i = 0; i < N; i++) {
			fill(buf + i * CLUSTER, 400, &seed);
			memset(buf + i * CLUSTER + 400, (int)i, CLUSTER - 400);
		}
		/* In one call, and one by one. */
		CHECK_OK(sample_pack(&n, buf, 0, 30 * CLUSTER, &n_plain, &err), &err);
		for (size_t i = 30; i < N; i++)
			CHECK_OK(sample_pack(&n, buf + i * CLUSTER, i * CLUSTER, CLUSTER, &n_plain, &err), &err);
		CHECK_EQ_U64(n_plain, 0);
		CHECK_OK(qcow2->flush(n.state, &err), &err);
		sample_close(&n);
		is_clean("n.qcow2");
		read_places("n.qcow2", 12, N, host, end);
		for (size_t i = 0; i + 1 < N; i++) {
			CHECK(host[i] < host[i + 1] && end[i] - host[i] >= 400 && end[i] - host[i] < 1024);
			if (host[i + 1] > end[i])
				gaps++; /* never more than the rest of the sector otherwise */
		}
		/* One a cluster; three, the third of which may not reach into the next one; then no gap for want of
		 * counts. */
		if (bits == 1)
			CHECK_EQ_U64(gaps, N - 1);
		else if (bits == 2)
			CHECK_EQ_U64(gaps, N / 3 - 1);
		else
			CHECK(gaps <= 1);
	}
	free(buf);
}

struct worker {
	struct sample *s;
	uint8_t *model;
	uint64_t from, to, seed;
	pthread_t thread;
};

static void *work(void *arg)
{
	struct worker *w = arg;
	struct tide_error err = TIDE_ERROR_INIT;
	uint64_t cluster = w->s->info.cluster_size;

	for (int i = 0; i < 300; i++) {
		uint64_t off = w->from + rnd(&w->seed) % ((w->to - w->from) / cluster) * cluster;
		uint64_t len = (1 + rnd(&w->seed) % 8) * cluster;

		len = TIDE_MIN(len, w->to - off);

		if (i % 4 == 0) {
			CHECK_OK(sample_zero(w->s, off, len, rnd(&w->seed) % 2, &err), &err);
			memset(w->model + off, 0, len);
		} else {
			fill(w->model + off, len, &w->seed);
			CHECK_OK(sample_write(w->s, w->model + off, off, len, &err), &err);
		}
	}
	return NULL;
}

static void test_several_threads(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_driver_create o = { .size = 4 * M, .cluster_size = 512 };
	uint8_t *model = calloc(1, o.size);

	if (!has_qemu())
		UNIT_SKIP("no qemu-img or qemu-io");
	CHECK_OK(sample_create("n.qcow2", &o, &err), &err);
	for (int pass = 0; pass < 3; pass++) {
		struct worker w[4];
		struct sample s;

		UNIT_ROW("pass %d", pass);
		if (!CHECK_OK(sample_open(&s, "n.qcow2", pass ? TIDE_OPEN_WRITE : TIDE_OPEN_NEW, &err), &err))
			break;
		for (int i = 0; i < 4; i++) {
			w[i] = (struct worker){
				&s, model, (uint64_t)i * M, (uint64_t)(i + 1) * M, 77 + (uint64_t)(pass * 4 + i), 0
			};
			pthread_create(&w[i].thread, NULL, work, &w[i]);
		}
		for (int i = 0; i < 4; i++)
			pthread_join(w[i].thread, NULL);
		CHECK_OK(qcow2->flush(s.state, &err), &err);
		check_content(&s, model);
		sample_close(&s);
		if (is_clean("n.qcow2"))
			check_with_qemu("n.qcow2", NULL, model, o.size);
	}
	free(model);
}

/* Enough clusters that the refcount table has to grow, several times over. */
static void test_refcount_table_grows(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	uint64_t size = 24 * M, seed = 8;
	uint8_t *model = malloc(size);

	if (!has_qemu())
		UNIT_SKIP("no qemu-img or qemu-io");
	fill(model, size, &seed);
	for (int new = 0; new < 2; new ++) {
		struct tide_driver_create o = { .size = size, .cluster_size = 512, .settings = "refcount_bits=64" };
		struct sample s;

		UNIT_ROW("new %d", new);
		CHECK_OK(sample_create("n.qcow2", &o, &err), &err);
		if (!CHECK_OK(sample_open(&s, "n.qcow2", new ? TIDE_OPEN_NEW : TIDE_OPEN_WRITE, &err), &err))
			break;
		for (uint64_t at = 0; at < size; at += size / 8) {
			CHECK_OK(sample_write(&s, model + at, at, size / 8, &err), &err);
			if (at == size / 2)
				CHECK_OK(qcow2->flush(s.state, &err), &err);
		}
		CHECK_OK(qcow2->flush(s.state, &err), &err);
		sample_close(&s);
		if (is_clean("n.qcow2"))
			check_with_qemu("n.qcow2", NULL, model, size);
	}
	free(model);
}

/* More tables than the cache holds, dirty and clean. */
static void test_more_tables_than_memory(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_driver_create o = { .size = 12 * T, .cluster_size = 2 * M };
	uint8_t *buf = malloc(2 * M), *got = malloc(2 * M);
	uint64_t step = o.size / 24 / (2 * M) * (2 * M);

	if (!has_qemu())
		UNIT_SKIP("no qemu-img or qemu-io");
	for (int new = 0; new < 2; new ++) {
		struct sample s;

		UNIT_ROW("new %d", new);
		CHECK_OK(sample_create("n.qcow2", &o, &err), &err);
		if (!CHECK_OK(sample_open(&s, "n.qcow2", new ? TIDE_OPEN_NEW : TIDE_OPEN_WRITE, &err), &err))
			break;
		for (int pass = 0; pass < 2; pass++) {
			for (uint64_t i = 0; i < 24; i++) {
				memset(buf, (int)(i + 1), 2 * M);
				CHECK_OK(sample_write(&s, buf, (i * 7 % 24) * step + (uint64_t)pass * 2 * M, 2 * M,
				                      &err),
				         &err);
			}
		}
		CHECK_OK(qcow2->flush(s.state, &err), &err);
		for (uint64_t i = 0; i < 24; i++) {
			memset(buf, (int)(i + 1), 2 * M);
			CHECK_OK(sample_read(&s, got, (i * 7 % 24) * step + 2 * M, 2 * M, &err), &err);
			CHECK_MEM(got, buf, 2 * M);
		}
		sample_close(&s);
		is_clean("n.qcow2");
		if (!CHECK_EQ_I64(sh("qemu-io -f qcow2 -r -c 'read -P 1 0 4M' -c 'read -P 2 %" PRIu64
		                     " 4M' n.qcow2 | tee o; "
		                     "! grep -i fail o",
		                     7 * step),
		                  0))
			show_output();
	}
	free(buf);
	free(got);
}

/* Bytes behind the disk's end in its last cluster must not show when the disk grows. */
static void test_tail_is_zero(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_driver_create o = { .size = 3 * 65536 + 512 };
	struct sample s;
	uint8_t *buf = malloc(4 * 65536);

	if (!has_qemu())
		UNIT_SKIP("no qemu-img or qemu-io");
	memset(buf, 0xaa, 4 * 65536);
	for (int new = 0; new < 2; new ++) {
		CHECK_OK(sample_create("n.qcow2", &o, &err), &err);
		if (!CHECK_OK(sample_open(&s, "n.qcow2", new ? TIDE_OPEN_NEW : TIDE_OPEN_WRITE, &err), &err))
			break;
		/* The cluster that the tail gets was used for other data before. */
		CHECK_OK(sample_write(&s, buf, 0, 3 * 65536, &err), &err);
		CHECK_OK(qcow2->flush(s.state, &err), &err);
		CHECK_OK(sample_zero(&s, 0, 3 * 65536, true, &err), &err);
		CHECK_OK(qcow2->flush(s.state, &err), &err);
		CHECK_OK(sample_write(&s, buf, 3 * 65536, 512, &err), &err);
		CHECK_OK(qcow2->flush(s.state, &err), &err);
		sample_close(&s);
		is_clean("n.qcow2");
		CHECK_EQ_I64(sh("qemu-img resize -q n.qcow2 262144 && qemu-io -f qcow2 -r -c 'read -P 0 197120 65024' "
		                "-c 'read -P 0xaa 196608 512' -c 'read -P 0 0 196608' n.qcow2 >o; ! grep -qi fail o"),
		             0);
	}
	free(buf);
}

int main(void)
{
	UNIT_RUN(test_reads_what_qemu_writes);
	UNIT_RUN(test_reads_compressed);
	UNIT_RUN(test_reads_preallocated);
	UNIT_RUN(test_writes_in_place);
	UNIT_RUN(test_writes_over_backing);
	UNIT_RUN(test_writes_over_compressed);
	UNIT_RUN(test_fills_new_images);
	UNIT_RUN(test_packs_back_to_back);
	UNIT_RUN(test_several_threads);
	UNIT_RUN(test_refcount_table_grows);
	UNIT_RUN(test_more_tables_than_memory);
	UNIT_RUN(test_tail_is_zero);
	return unit_done();
}
