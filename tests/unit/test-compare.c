/*
 * The compare engine against a loop over bytes, and the promises about what is not read.
 */
#include "base/error.h"
#include "base/mem.h"
#include "image/compare.h"
#include "qcow2_sample.h"

struct told {
	uint8_t *units; /* times each was told */
	uint64_t n;
	uint64_t start, end;
	bool refuse;
};

static int remember(struct tide_compare *c, uint64_t off, uint64_t len, struct tide_error *err)
{
	struct told *told = c->data;

	if (told->refuse)
		return tide_error_set(err, TIDE_E_REFUSED, "No room for it");
	CHECK(len > 0 && off >= told->start && off + len <= told->end);
	CHECK(off == told->start || off % c->unit == 0);
	CHECK(off + len == told->end || (off + len) % c->unit == 0);
	for (uint64_t i = off / c->unit; i * c->unit < off + len; i++)
		told->units[i]++;
	return 0;
}

static struct tide_image *open_image(const char *name, const char *format)
{
	struct tide_image_options options = { .path = unit_path(name), .format = format };
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_image *image = NULL;

	CHECK_OK(tide_image_open(&options, &image, &err), &err);
	return image;
}

/* rc of the run; told says what it reported. */
static int compare(struct tide_image *a, struct tide_image *b, uint64_t start, uint64_t end, uint64_t unit,
                   struct told *told, struct tide_compare *c, struct tide_error *err)
{
	static const struct tide_session_options none;
	struct tide_sink sink;
	int rc;

	tide_event_init(&sink, &none);
	*c = (struct tide_compare){ .a = a,
		                    .b = b,
		                    .start = start,
		                    .end = end,
		                    .unit = unit,
		                    .sink = &sink,
		                    .differs = remember,
		                    .data = told };
	told->n = end / unit + 1;
	told->start = start;
	told->end = end;
	told->units = calloc(told->n, 1);
	rc = tide_compare_run(c, err);
	tide_event_release(&sink);
	return rc;
}

static uint8_t byte_at(const uint8_t *disk, uint64_t size, uint64_t off)
{
	return off < size ? disk[off] : 0;
}

static void check_against_model(const struct told *told, const struct tide_compare *c, const uint8_t *x, uint64_t nx,
                                const uint8_t *y, uint64_t ny)
{
	uint64_t differing = 0;

	for (uint64_t i = c->start / c->unit; i * c->unit < c->end; i++) {
		uint64_t from = TIDE_MAX(i * c->unit, c->start), to = TIDE_MIN((i + 1) * c->unit, c->end);
		bool differs = false;

		for (uint64_t off = from; off < to && !differs; off++)
			differs = byte_at(x, nx, off) != byte_at(y, ny, off);
		if (!CHECK_EQ_U64(told->units[i], differs))
			return;
		differing += differs ? to - from : 0;
	}
	CHECK_EQ_U64(c->differing, differing);
	CHECK_EQ_U64(c->offset, c->end - c->start);
}

/* Data, zero bytes that are data, and holes; the second disk is the first one with some changes. */
static void make_pair(uint64_t *seed, uint8_t *x, uint64_t nx, uint8_t *y, uint64_t ny)
{
	uint64_t n = TIDE_MAX(nx, ny);
	uint8_t *disk = calloc(n, 1);

	for (int i = 0; i < 6; i++) {
		uint64_t off = rnd(seed) % n, len = 1 + rnd(seed) % TIDE_MIN(n - off, 2 * M);

		memset(disk + off, (int)(rnd(seed) % 3), len);
	}
	memcpy(x, disk, nx);
	memcpy(y, disk, ny);
	for (int i = 0; i < 8; i++) {
		uint64_t off = rnd(seed) % ny, len = 1 + rnd(seed) % TIDE_MIN(ny - off, i % 2 ? 3 : 300 * K);

		memset(y + off, (int)(rnd(seed) % 4), len);
	}
	free(disk);
}

/* Blocks of zeroes are holes, or not. */
static void spew_sparse(const char *name, const uint8_t *disk, uint64_t len, bool sparse)
{
	spew(name, disk, len);
	if (sparse)
		CHECK_EQ_I64(sh("fallocate -d %s", name), 0);
}

static void test_equals_a_loop_over_bytes(void)
{
	static const uint64_t units[] = { 1, 512, 4096, 65536, M, 4 * M, 64 * M };
	uint64_t seed = 7;

	for (int i = 0; i < 40; i++) {
		uint64_t nx = 1 + rnd(&seed) % (6 * M), ny = i % 3 ? nx : 1 + rnd(&seed) % (6 * M);
		uint64_t most = TIDE_MAX(nx, ny), end = i % 4 == 3 ? most + rnd(&seed) % M : most;
		uint64_t start = i % 2 ? rnd(&seed) % end : 0, unit = units[rnd(&seed) % TIDE_ARRAY_SIZE(units)];
		uint8_t *x = malloc(nx), *y = malloc(ny);
		struct tide_error err = TIDE_ERROR_INIT;
		struct tide_image *a, *b;
		struct tide_compare c;
		struct told told = { 0 };

		UNIT_ROW("%d: %" PRIu64 " and %" PRIu64 " bytes, from %" PRIu64 " to %" PRIu64 ", unit %" PRIu64, i, nx,
		         ny, start, end, unit);
		make_pair(&seed, x, nx, y, ny);
		spew_sparse("x.raw", x, nx, i & 1);
		spew_sparse("y.raw", y, ny, i & 2);
		a = open_image("x.raw", "raw");
		b = open_image("y.raw", "raw");
		if (a && b && CHECK_OK(compare(a, b, start, end, unit, &told, &c, &err), &err))
			check_against_model(&told, &c, x, nx, y, ny);
		tide_image_close(a);
		tide_image_close(b);
		free(told.units);
		free(x);
		free(y);
	}
}

/* Bytes that this process has read so far. */
static uint64_t bytes_read(void)
{
	FILE *f = fopen("/proc/self/io", "r");
	unsigned long long n = 0;

	if (!f)
		return 0;
	if (fscanf(f, "rchar: %llu", &n) != 1)
		n = 0;
	fclose(f);
	return n;
}

/* Compares two files; the units of 64 KiB that differ, at most `most` bytes having been read for it. */
static uint64_t differing_units(const char *a, const char *fmt_a, const char *b, const char *fmt_b, uint64_t most)
{
	struct tide_image *x = open_image(a, fmt_a), *y = open_image(b, fmt_b);
	struct tide_error err = TIDE_ERROR_INIT;
	struct told told = { 0 };
	struct tide_compare c = { 0 };
	uint64_t before = bytes_read();

	if (x && y) {
		uint64_t end = TIDE_MAX(tide_image_size(x), tide_image_size(y));

		CHECK_OK(compare(x, y, 0, end, 64 * K, &told, &c, &err), &err);
		CHECK(bytes_read() - before <= most);
	}
	tide_image_close(x);
	tide_image_close(y);
	free(told.units);
	return c.differing / (64 * K);
}

static void test_holes_are_not_read(void)
{
	if (sh("truncate -s 1T a.raw && truncate -s 1T b.raw") != 0)
		UNIT_SKIP("no sparse files of a terabyte here");
	CHECK_EQ_U64(differing_units("a.raw", "raw", "b.raw", "raw", 4 * K), 0);
	CHECK_EQ_I64(sh("printf x | dd of=b.raw bs=1 seek=900G conv=notrunc"), 0);
	CHECK_EQ_U64(differing_units("a.raw", "raw", "b.raw", "raw", 68 * K), 1);
	CHECK_EQ_I64(sh("truncate -s 2T a.raw"), 0);
	CHECK_EQ_U64(differing_units("a.raw", "raw", "b.raw", "raw", 68 * K), 1);
}

static void test_a_shared_backing_image_is_not_read(void)
{
	if (!has_qemu())
		UNIT_SKIP("no qemu-img or qemu-io");
	CHECK_EQ_I64(sh("qemu-img create -q -f qcow2 base.qcow2 32M && qemu-io -c 'write -P 7 0 24M' base.qcow2 &&"
	                "qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 a.qcow2 &&"
	                "qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 b.qcow2"),
	             0);
	CHECK_EQ_U64(differing_units("a.qcow2", "qcow2", "b.qcow2", "qcow2", M), 0);
	/* The same bytes over again, and others: these are read, and tables. */
	CHECK_EQ_I64(sh("qemu-io -c 'write -P 7 1M 64k' -c 'write -P 8 2M 64k' -c 'write -z 3M 64k' a.qcow2"), 0);
	CHECK_EQ_U64(differing_units("a.qcow2", "qcow2", "b.qcow2", "qcow2", 2 * M), 2);
	/* An overlay against its own backing image. */
	CHECK_EQ_U64(differing_units("base.qcow2", "qcow2", "a.qcow2", "qcow2", 2 * M), 2);
	/* The same file by another format is other content. */
	CHECK(differing_units("base.qcow2", "qcow2", "base.qcow2", "raw", UINT64_MAX) > 0);
}

/* Compressed clusters of one image are equal to themselves; a damaged one shows that nobody looked at them. */
static void test_shared_compressed_clusters_are_not_read(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_image *a, *b;
	struct told told = { 0 };
	struct tide_compare c;

	if (!has_qemu())
		UNIT_SKIP("no qemu-img or qemu-io");
	CHECK_EQ_I64(sh("yes | head -c 1M >z.raw && qemu-img convert -c -O qcow2 z.raw z.qcow2 &&"
	                "qemu-img create -q -f qcow2 -b z.qcow2 -F qcow2 za.qcow2 &&"
	                "qemu-img create -q -f qcow2 -b z.qcow2 -F qcow2 zb.qcow2 &&"
	                "yes no | head -c 64k | dd of=z.qcow2 bs=64k seek=5 conv=notrunc"),
	             0);
	CHECK_EQ_U64(differing_units("za.qcow2", "qcow2", "zb.qcow2", "qcow2", M), 0);
	a = open_image("za.qcow2", "qcow2");
	b = open_image("z.raw", "raw");
	/* Against other data they are, and the error says of which file. */
	if (a && b && CHECK(compare(a, b, 0, M, 512, &told, &c, &err) < 0))
		CHECK(err.msg && strstr(err.msg, "z.qcow2"));
	tide_error_release(&err);
	free(told.units);
	tide_image_close(a);
	tide_image_close(b);
}

static void test_ends_early(void)
{
	static const struct tide_session_options none;
	struct tide_error err = TIDE_ERROR_INIT;
	struct told told = { .refuse = true };
	struct tide_sink sink;
	struct tide_compare c;
	struct tide_image *a, *b;

	CHECK_EQ_I64(sh("yes | head -c 9M >c.raw; yes no | head -c 9M >d.raw"), 0);
	a = open_image("c.raw", "raw");
	b = open_image("d.raw", "raw");
	CHECK(compare(a, b, 0, 9 * M, 4096, &told, &c, &err) < 0);
	CHECK(c.offset < c.len && !c.cancelled);
	CHECK_ERR(&err, TIDE_E_REFUSED, "No room for it");
	tide_event_init(&sink, &none);
	c.sink = &sink;
	atomic_store(&sink.cancelled, true);
	CHECK(tide_compare_run(&c, &err) < 0);
	CHECK(c.cancelled);
	CHECK_ERR(&err, TIDE_E_CANCELLED, "Cancelled");
	tide_event_release(&sink);
	free(told.units);
	tide_image_close(a);
	tide_image_close(b);
}

static void test_names_the_file_that_fails(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct told told = { 0 };
	struct tide_compare c;
	struct tide_image *a, *b;

	if (!has_qemu())
		UNIT_SKIP("no qemu-img or qemu-io");
	CHECK_EQ_I64(sh("yes | head -c 1M >e.raw; qemu-img convert -O qcow2 e.raw e.qcow2"), 0);
	a = open_image("e.raw", "raw");
	b = open_image("e.qcow2", "qcow2");
	CHECK_OK(compare(a, b, 0, M, 512, &told, &c, &err), &err);
	CHECK_EQ_U64(c.differing, 0);
	free(told.units);
	tide_image_close(b);
	/* An L2 entry that points past the end of the file's possible size. */
	CHECK_EQ_I64(sh("printf '\\x80\\xff\\xff\\xff\\xff\\xff\\x00\\x01' | dd of=e.qcow2 bs=1 seek=$((0x40000)) "
	                "conv=notrunc"),
	             0);
	b = open_image("e.qcow2", "qcow2");
	if (a && b && CHECK(compare(a, b, 0, M, 512, &told, &c, &err) < 0))
		CHECK(err.msg && strstr(err.msg, "e.qcow2"));
	tide_error_release(&err);
	free(told.units);
	tide_image_close(a);
	tide_image_close(b);
}

int main(void)
{
	UNIT_RUN(test_equals_a_loop_over_bytes);
	UNIT_RUN(test_holes_are_not_read);
	UNIT_RUN(test_a_shared_backing_image_is_not_read);
	UNIT_RUN(test_shared_compressed_clusters_are_not_read);
	UNIT_RUN(test_ends_early);
	UNIT_RUN(test_names_the_file_that_fails);
	return unit_done();
}
