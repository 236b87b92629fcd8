/*
 * Power cuts: an image is written in place while every change of its file is recorded, then
 * built as a cut could leave it: with all synced changes and any subset of the later ones, in
 * sectors.  Each such image must pass qemu-img check except for
 * leaks, and each sector of the disk must have the data of the last flush or of a later
 * write to it.
 */
#include "qcow2_tape.h"

/* ---- what was written to the disk ---- */

#define OPS_MAX 400

/* One write or zeroing of the disk.  A written sector holds its number and the operation's. */
struct op {
	uint64_t off, len;
	bool zero;
};

static struct op ops[OPS_MAX];
static unsigned n_ops;

static void make_sector(uint8_t *p, uint64_t sector, unsigned op)
{
	for (uint64_t i = 0; i < SECTOR; i += 16) {
		tide_put_be64(p + i, sector);
		tide_put_be64(p + i + 8, op + 1);
	}
}

static bool holds(const uint8_t *p, uint64_t sector, unsigned op)
{
	static const uint8_t zeroes[SECTOR];
	uint8_t want[SECTOR];

	if (ops[op].zero)
		return memcmp(p, zeroes, SECTOR) == 0;
	make_sector(want, sector, op);
	return memcmp(p, want, SECTOR) == 0;
}

/* May the sector hold this when `durable` operations were flushed and `issued` begun? */
static bool is_plausible(const uint8_t *p, const uint8_t *base, uint64_t sector, unsigned durable, unsigned issued)
{
	for (unsigned i = issued; i-- > 0;) {
		if (sector * SECTOR < ops[i].off || sector * SECTOR >= ops[i].off + ops[i].len)
			continue;
		if (holds(p, sector, i))
			return true;
		if (i < durable)
			return false;
	}
	return memcmp(p, base + sector * SECTOR, SECTOR) == 0;
}

/* ---- the image after the cut ---- */

static bool check_cut(const char *name, const uint8_t *base, const struct cut *c, unsigned issued)
{
	int rc = sh("qemu-img check -f qcow2 %s", name);
	uint64_t len;
	uint8_t *got;
	bool good = CHECK(rc == 0 || rc == 3);

	if (!good) {
		show_output();
		return false;
	}
	if (!CHECK_EQ_I64(sh("qemu-img convert -f qcow2 -O raw %s cut.raw", name), 0)) {
		show_output();
		return false;
	}
	got = slurp("cut.raw", &len);
	for (uint64_t s = 0; s < len / SECTOR && good; s++) {
		good = CHECK(is_plausible(got + s * SECTOR, base, s, c->durable, issued));
		if (!good)
			printf("#   sector %" PRIu64 ", %u operations durable of %u\n", s, c->durable, issued);
	}
	free(got);
	return good;
}

/* ---- the programs ---- */

static void run_op(struct sample *s, unsigned stretch, uint64_t *seed)
{
	struct tide_error err = TIDE_ERROR_INIT;
	uint64_t kind = rnd(seed) % 3, size = s->info.size, subcluster = s->info.subcluster_size;
	uint64_t unit = kind == 0 ? SECTOR : kind == 1 && subcluster ? subcluster : s->info.cluster_size;
	bool packs = rnd(seed) % 3 == 0 && s->data_fd < 0; /* a data file holds nothing compressed */
	unsigned n_plain = 0;
	struct op *op = &ops[n_ops];
	uint8_t *buf;

	op->off = rnd(seed) % (size / unit) * unit;
	if (packs)
		unit = s->info.cluster_size;
	op->off -= op->off % unit;
	op->len = (1 + rnd(seed) % (4 * stretch)) * unit;
	op->len = TIDE_MIN(op->len, size - op->off);
	op->zero = rnd(seed) % 3 == 0;
	n_ops++;
	if (op->zero) {
		CHECK_OK(sample_zero(s, op->off, op->len, rnd(seed) % 2, &err), &err);
		return;
	}
	buf = malloc(op->len);
	for (uint64_t i = 0; i < op->len; i += SECTOR)
		make_sector(buf + i, (op->off + i) / SECTOR, n_ops - 1);
	if (packs)
		CHECK_OK(sample_pack(s, buf, op->off, op->len, &n_plain, &err), &err);
	else
		CHECK_OK(sample_write(s, buf, op->off, op->len, &err), &err);
	free(buf);
}

/* Before each operation and after each flush the tape learns how far the program is. */
static void run_program(const char *name, const uint8_t *below, unsigned count, unsigned stretch, uint64_t *seed)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct sample s;
	unsigned durable = 0;

	if (!CHECK_OK(sample_open(&s, name, TIDE_OPEN_WRITE, &err), &err))
		return;
	s.below = below;
	tape.fd = s.fd;
	tape.data_fd = s.data_fd;
	n_ops = 0;
	for (unsigned i = 0; i < count; i++) {
		record(MARK, 0, n_ops + 1, NULL, durable);
		run_op(&s, stretch, seed);
		if (rnd(seed) % 6 == 0 || i + 1 == count) {
			CHECK_OK(qcow2->flush(s.state, &err), &err);
			durable = n_ops;
			record(MARK, 0, n_ops, NULL, durable);
		}
	}
	tape.fd = tape.data_fd = -1;
	sample_close(&s);
}

/* Where the program was at this point of the tape. */
static void locate(size_t at, unsigned *durable, unsigned *issued)
{
	*durable = *issued = 0;
	for (size_t i = 0; i < at; i++) {
		if (tape.event[i].kind == MARK) {
			*durable = tape.event[i].op;
			*issued = (unsigned)tape.event[i].len;
		}
	}
}

/* Just before a sync most of what was issued is at stake, and what changes the header is rare: many cuts are there. */
static size_t choose_cut(uint64_t *seed)
{
	size_t at = 1 + rnd(seed) % tape.n;
	uint64_t how = rnd(seed) % 4;

	if (how == 0)
		return at;
	if (how == 1) {
		for (size_t i = 0; i < tape.n; i++) {
			const struct event *e = &tape.event[(at + i) % tape.n];

			if (e->kind == WRITE && e->off < SECTOR)
				return (at + i) % tape.n + 1;
		}
	}
	while (at < tape.n && tape.event[at].kind != SYNC)
		at++;
	return at;
}

struct setup {
	const char *options;
	bool snapshot, backing;
	uint64_t size;
	unsigned stretch; /* how long the writes are */
};

static void cut_and_check(const char *name, const struct setup *setup, uint64_t *seed)
{
	uint64_t len, n, size = setup->size;
	uint8_t *file, *base, *below = NULL;

	if (setup->backing) {
		below = malloc(size);
		fill(below, size, seed);
		spew("base.raw", below, size);
	}
	CHECK_EQ_I64(sh("rm -f %s; qemu-img create -q -u -f qcow2 %s%s %s %" PRIu64, name, setup->options,
	                setup->backing ? " -b base.raw -F raw" : "", name, size),
	             0);
	CHECK_EQ_I64(sh("qemu-io -f qcow2 -c 'write -P 7 0 %" PRIu64 "' -c 'write -z %" PRIu64 " %" PRIu64 "' %s",
	                size / 4, size / 8, size / 16, name),
	             0);
	if (setup->snapshot)
		CHECK_EQ_I64(sh("qemu-img snapshot -c s1 %s", name), 0);
	CHECK_EQ_I64(sh("qemu-img convert -f qcow2 -O raw %s base0.raw", name), 0);
	file = slurp(name, &len);
	base = slurp("base0.raw", &n);
	forget();
	run_program(name, below, 60, setup->stretch, seed);
	is_clean(name);
	for (int i = 0; i < 60; i++) {
		struct cut c = { .at = choose_cut(seed), .torn = i % 4 != 0 };
		unsigned issued;

		if (i == 0)
			c.at = tape.n;
		locate(c.at, &c.durable, &issued);
		make_cut_image("cut.qcow2", file, len, &c, seed);
		if (!check_cut("cut.qcow2", base, &c, issued))
			break;
	}
	forget();
	free(file);
	free(base);
	free(below);
}

static void test_survives_power_cuts(void)
{
	static const struct setup rows[] = {
		{ "-o cluster_size=512,refcount_bits=64", false, false, 5 * M, 64 },
		{ "-o cluster_size=512,refcount_bits=64", false, true, 1 * M, 8 },
		{ "-o cluster_size=512", true, false, 200 * K, 1 },
		{ "-o cluster_size=4096,refcount_bits=1", false, true, 300 * K, 1 },
		{ "-o cluster_size=4096,compat=0.10", false, true, 300 * K, 1 },
		{ "-o cluster_size=4096", true, true, 300 * K, 1 },
		{ "-o cluster_size=65536", true, true, 1 * M + 512, 1 },
		{ "-o cluster_size=16384,extended_l2=on", false, true, 600 * K, 1 },
		{ "-o cluster_size=16384,extended_l2=on", true, true, 600 * K + 512, 1 },
		{ "-o cluster_size=65536,extended_l2=on", false, false, 2 * M, 1 },
		{ "-o cluster_size=131072,extended_l2=on", false, true, 2 * M + 512, 1 },
		{ "-o cluster_size=131072,extended_l2=on", true, true, 2 * M + 512, 1 },
	};
	uint64_t seed = 99;

	if (!has_qemu())
		UNIT_SKIP("no qemu-img or qemu-io");
	for (size_t i = 0; i < TIDE_ARRAY_SIZE(rows); i++) {
		UNIT_ROW("%s snapshot %d backing %d", rows[i].options, rows[i].snapshot, rows[i].backing);
		cut_and_check("p.qcow2", &rows[i], &seed);
	}
}

/* No entry says that data is in the external data file before it is there for good. */
static void test_data_file_comes_first(void)
{
	uint64_t seed = 12;

	if (!has_qemu())
		UNIT_SKIP("no qemu-img or qemu-io");
	for (int raw = 0; raw < 2; raw++) {
		bool changed = false;
		unsigned syncs = 0;

		UNIT_ROW("raw %d", raw);
		CHECK_EQ_I64(sh("rm -f p.qcow2; qemu-img create -q -f qcow2 -o cluster_size=4k,data_file=disk.data%s "
		                "p.qcow2 1M",
		                raw ? ",data_file_raw=on" : ""),
		             0);
		run_program("p.qcow2", NULL, 60, 1, &seed);
		is_clean("p.qcow2");
		for (size_t i = 0; i < tape.n; i++) {
			const struct event *e = &tape.event[i];

			if (e->kind == DATA_CHANGE)
				changed = true;
			else if (e->kind == DATA_SYNC)
				changed = false;
			else if (e->kind == WRITE)
				CHECK(!changed);
			syncs += e->kind == DATA_SYNC;
		}
		CHECK(!changed && syncs > 3);
		forget();
	}
}

/* The test must notice when syncs are missing: a tape without them has to fail somewhere. */
static void test_notices_missing_syncs(void)
{
	uint64_t seed = 5, len, n, size = 300 * K;
	unsigned bad = 0;
	uint8_t *file, *base;

	if (!has_qemu())
		UNIT_SKIP("no qemu-img or qemu-io");
	CHECK_EQ_I64(sh("rm -f p.qcow2; qemu-img create -q -f qcow2 -o cluster_size=512 p.qcow2 %" PRIu64, size), 0);
	CHECK_EQ_I64(sh("qemu-img convert -f qcow2 -O raw p.qcow2 base0.raw"), 0);
	file = slurp("p.qcow2", &len);
	base = slurp("base0.raw", &n);
	run_program("p.qcow2", NULL, 30, 1, &seed);
	for (size_t i = 0; i < tape.n; i++) {
		if (tape.event[i].kind == SYNC)
			tape.event[i].kind = MARK;
	}
	for (int i = 0; i < 20 && !bad; i++) {
		struct cut c = { .at = tape.n, .torn = true };

		make_cut_image("cut.qcow2", file, len, &c, &seed);
		int rc = sh("qemu-img check -f qcow2 cut.qcow2");
		bad += rc != 0 && rc != 3;
	}
	CHECK(bad > 0);
	forget();
	free(file);
	free(base);
}

int main(void)
{
	UNIT_RUN(test_survives_power_cuts);
	UNIT_RUN(test_data_file_comes_first);
	UNIT_RUN(test_notices_missing_syncs);
	int status = unit_done();
	free(tape.event);
	return status;
}
