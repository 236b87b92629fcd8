/*
 * Persistent bitmaps inside a qcow2: what QEMU recorded is read, and directories that are
 * damaged are refused with QEMU's words.
 */
#include "bitmap/bitmap.h"
#include "image/image.h"
#include "qcow2_sample.h"

struct written {
	uint64_t off, len;
};

static const struct written writes[] = { { 0, 512 }, { 70 * K, 3000 * K }, { 20 * M - 512, 512 }, { 9 * M, 1 } };

static void check_recorded(const char *name, uint64_t granularity, uint64_t size)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_bitmap *got = NULL, *want = NULL;
	struct sample s;

	if (!CHECK_OK(sample_open(&s, name, 0, &err), &err))
		return;
	if (CHECK_EQ_U64(s.info.n_bitmaps, 1) && CHECK_OK(qcow2->bitmap_read(s.state, 0, &got, &err), &err)) {
		char a[65], b[65];

		CHECK_STR(s.info.bitmaps[0].name, "b0");
		CHECK_EQ_U64(s.info.bitmaps[0].granularity, granularity);
		CHECK(s.info.bitmaps[0].enabled && !s.info.bitmaps[0].in_use);
		want = tide_bitmap_new(size, granularity, &err);
		for (size_t i = 0; i < TIDE_ARRAY_SIZE(writes); i++) {
			uint64_t off = writes[i].off / 512 * 512,
			         end = tide_range_align_up(writes[i].off + writes[i].len, 512);

			CHECK_OK(tide_bitmap_set(want, off, TIDE_MIN(end, size) - off, &err), &err);
		}
		tide_bitmap_sha256(got, a);
		tide_bitmap_sha256(want, b);
		CHECK_STR(a, b);
		CHECK_EQ_U64(tide_bitmap_count(got), tide_bitmap_count(want));
	}
	tide_bitmap_free(got);
	tide_bitmap_free(want);
	sample_close(&s);
}

static void test_reads_what_qemu_records(void)
{
	static const struct {
		uint64_t cluster, granularity;
	} rows[] = { { 512, 512 },   { 512, 65536 },   { 1024, 512 },  { 4096, 512 },
		     { 65536, 512 }, { 65536, 65536 }, { 2 * M, 4096 } };
	uint64_t size = 20 * M;

	if (!has_qemu())
		UNIT_SKIP("no qemu-img or qemu-io");
	for (size_t i = 0; i < TIDE_ARRAY_SIZE(rows); i++) {
		UNIT_ROW("cluster %" PRIu64 " granularity %" PRIu64, rows[i].cluster, rows[i].granularity);
		CHECK_EQ_I64(sh("rm -f b.qcow2; qemu-img create -q -f qcow2 -o cluster_size=%" PRIu64
		                " b.qcow2 %" PRIu64 " && qemu-img bitmap --add -g %" PRIu64
		                " b.qcow2 b0 && qemu-io -f qcow2 -c 'write %" PRIu64 " 512' -c 'write %" PRIu64
		                " %" PRIu64 "' -c 'write %" PRIu64 " 512' -c 'write %" PRIu64 " 512' b.qcow2",
		                rows[i].cluster, size, rows[i].granularity, writes[0].off, writes[1].off, writes[1].len,
		                writes[2].off, writes[3].off),
		             0);
		check_recorded("b.qcow2", rows[i].granularity, size);
	}
}

/* An image whose bitmap directory and table are known to the test. */
struct image {
	uint8_t *data;
	uint64_t len, ext, dir, table;
};

static void load_of(struct image *im, const char *size, const char *options, unsigned granularity)
{
	CHECK_EQ_I64(sh("rm -f b.qcow2; qemu-img create -q -f qcow2 %s b.qcow2 %s && qemu-img bitmap --add -g %u "
	                "b.qcow2 b0 && "
	                "qemu-io -f qcow2 -c 'write 64k 64k' b.qcow2",
	                options, size, granularity),
	             0);
	im->data = slurp("b.qcow2", &im->len);
	for (im->ext = 112; im->ext < 65536 && tide_get_be32(im->data + im->ext) != 0x23852875;)
		im->ext += 8 + tide_range_align_up(tide_get_be32(im->data + im->ext + 4), 8);
	im->dir = tide_get_be64(im->data + im->ext + 24);
	im->table = tide_get_be64(im->data + im->dir);
}

static void load(struct image *im)
{
	load_of(im, "1M", "", 4096);
}

static void test_directory_texts(void)
{
	static const char constraints[] = "Bitmap 'b0' doesn't satisfy the constraints";
	static const char entry_text[] =
	        "Could not read bitmap_table table from image for bitmap 'b0': Invalid argument";
	static const char extra[] = "Bitmap extra data is not supported";
	const struct {
		char base; /* x: the extension's data, d: the directory, t: the table */
		unsigned off, bytes;
		uint64_t value;
		const char *text;
	} rows[] = {
		{ 'd', 12, 4, 4, constraints },
		{ 'd', 12, 4, 0x80000000, constraints },
		{ 'd', 16, 1, 2, constraints },
		{ 'd', 17, 1, 8, constraints },
		{ 'd', 17, 1, 32, constraints },
		{ 'd', 0, 8, 0, constraints },
		{ 'd', 0, 8, 512, constraints },
		{ 'd', 8, 4, 0, constraints },
		{ 'd', 8, 4, UINT32_MAX, constraints },
		{ 'd', 18, 2, 0, "Bitmap '' doesn't satisfy the constraints" },
		{ 'd', 18, 2, 3, constraints },
		{ 'd', 18, 2, 900, "Broken bitmap directory" },
		{ 'd', 20, 4, 1, extra },
		{ 'd', 20, 4, UINT32_MAX, "Broken bitmap directory" },
		{ 'd', 8, 4, 2, "Could not read bitmap 'b0' from image: Invalid argument" },
		{ 't', 0, 8, 2, entry_text },
		{ 't', 0, 8, 512, entry_text },
		{ 't', 0, 8, 0x10001, entry_text },
		{ 'x', 0, 4, 0, "found bitmaps extension with zero bitmaps" },
		{ 'x', 0, 4, 2, "Less bitmaps found than specified in header extension" },
		{ 'x', 0, 4, 70000,
		  "bitmaps_ext: Image has 70000 bitmaps, exceeding the QEMU supported maximum of 65535" },
		{ 'x', 4, 4, 1, "bitmaps_ext: Reserved field is not zero" },
		{ 'x', 8, 8, 0, "Requested bitmap directory size is zero" },
		{ 'x', 8, 8, UINT64_C(1) << 40,
		  "bitmaps_ext: bitmap directory size (1099511627776) exceeds the maximum supported size (67107840)" },
		{ 'x', 8, 8, 31, "Broken bitmap directory" },
		{ 'x', 16, 8, 512, "bitmaps_ext: invalid bitmap directory offset" },
		{ 'x', 16, 8, UINT64_C(1) << 40, "bitmaps_ext: the bitmap directory lies beyond the end of the file" },
	};
	struct tide_error err = TIDE_ERROR_INIT;
	struct image im;

	if (!has_qemu())
		UNIT_SKIP("no qemu-img or qemu-io");
	load(&im);
	for (size_t i = 0; i < TIDE_ARRAY_SIZE(rows); i++) {
		uint8_t *copy = malloc(im.len);
		uint64_t at = rows[i].off + (rows[i].base == 'x'   ? im.ext + 8
		                             : rows[i].base == 'd' ? im.dir
		                                                   : im.table);
		uint64_t value = rows[i].value;
		struct sample s;

		UNIT_ROW("%c %u: %s", rows[i].base, rows[i].off, rows[i].text);
		memcpy(copy, im.data, im.len);
		for (unsigned b = rows[i].bytes; b-- > 0; value >>= 8)
			copy[at + b] = (uint8_t)value;
		spew("bad.qcow2", copy, im.len);
		free(copy);
		if (sample_open(&s, "bad.qcow2", 0, &err) == 0)
			sample_close(&s);
		CHECK_ERR(&err, rows[i].text == extra ? TIDE_E_UNSUPPORTED : TIDE_E_CORRUPT, rows[i].text);
		/* QEMU opens none of these either; but a NUL in a name ends it there. */
		if (rows[i].base != 'd' || rows[i].value != 3)
			CHECK(sh("qemu-img info bad.qcow2") != 0);
	}
	free(im.data);
}

static void test_all_ones_end_with_the_disk(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_bitmap *bm = NULL;
	struct image im;
	struct sample s;

	if (!has_qemu())
		UNIT_SKIP("no qemu-img or qemu-io");
	load(&im);
	tide_put_be64(im.data + im.table, 1);
	spew("b.qcow2", im.data, im.len);
	free(im.data);
	if (!CHECK_OK(sample_open(&s, "b.qcow2", 0, &err), &err))
		return;
	if (CHECK_OK(qcow2->bitmap_read(s.state, 0, &bm, &err), &err))
		CHECK_EQ_U64(tide_bitmap_count(bm), 256);
	tide_bitmap_free(bm);
	sample_close(&s);
}

/* A cluster that all entries share would be many times its size in memory. */
static void test_shared_clusters(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_bitmap *bm = NULL;
	struct image im;
	struct sample s;

	if (!has_qemu())
		UNIT_SKIP("no qemu-img or qemu-io");
	load_of(&im, "8M", "-o cluster_size=512", 512);
	CHECK(tide_get_be64(im.data + im.table) >= 512 && tide_get_be64(im.data + im.table + 8) == 0);
	tide_put_be64(im.data + im.table + 24, tide_get_be64(im.data + im.table));
	spew("b.qcow2", im.data, im.len);
	free(im.data);
	if (!CHECK_OK(sample_open(&s, "b.qcow2", 0, &err), &err))
		return;
	CHECK_EQ_I64(qcow2->bitmap_read(s.state, 0, &bm, &err), -1);
	CHECK(err.code == TIDE_E_CORRUPT && strstr(err.msg, "two entries of its table share the cluster at"));
	tide_error_release(&err);
	sample_close(&s);
}

static void test_left_in_use(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_bitmap *bm = NULL;
	struct image im;
	struct sample s;

	if (!has_qemu())
		UNIT_SKIP("no qemu-img or qemu-io");
	load(&im);
	tide_put_be32(im.data + im.dir + 12, 3);
	spew("b.qcow2", im.data, im.len);
	free(im.data);
	if (!CHECK_OK(sample_open(&s, "b.qcow2", 0, &err), &err))
		return;
	CHECK(s.info.n_bitmaps == 1 && s.info.bitmaps[0].in_use && s.info.bitmaps[0].enabled);
	CHECK_EQ_I64(qcow2->bitmap_read(s.state, 0, &bm, &err), -1);
	CHECK_ERR(&err, TIDE_E_REFUSED, "Bitmap 'b0' is inconsistent and cannot be used");
	sample_close(&s);
}

/* A program without bitmaps has written to the image: they are as if they were not there. */
static void test_autoclear_flag_is_off(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct image im;
	struct sample s;

	if (!has_qemu())
		UNIT_SKIP("no qemu-img or qemu-io");
	load(&im);
	im.data[95] = 0;
	spew("b.qcow2", im.data, im.len);
	free(im.data);
	if (!CHECK_OK(sample_open(&s, "b.qcow2", TIDE_OPEN_WRITE, &err), &err))
		return;
	CHECK_EQ_U64(s.info.n_bitmaps, 0);
	sample_close(&s);
}

/* Unless the caller says that it records its writes. */
static void refuses_to_write_beside(const char *name)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_image_options options = { .path = unit_path(name), .write = true };
	struct tide_image *image = NULL;
	char text[5000];

	CHECK_EQ_I64(tide_image_open(&options, &image, &err), -1);
	CHECK(err.hint != NULL);
	snprintf(text, sizeof(text),
	         "Could not open '%s': "
	         "The bitmap 'b0' inside the image is enabled, but this version cannot record writes in it",
	         options.path);
	CHECK_ERR(&err, TIDE_E_UNSUPPORTED, text);
	options.records_bitmaps = true;
	if (CHECK_OK(tide_image_open(&options, &image, &err), &err))
		tide_image_close(image);
	options = (struct tide_image_options){ .path = unit_path(name), .write_later = true };
	if (CHECK_OK(tide_image_open(&options, &image, &err), &err)) {
		CHECK_EQ_I64(tide_image_lock_write(image, &err), -1);
		CHECK_ERR(&err, TIDE_E_UNSUPPORTED,
		          "The bitmap 'b0' inside the image is enabled, but this version cannot record writes in it");
		tide_image_close(image);
	}
}

static void test_writing_beside_bitmaps(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	uint8_t *buf = malloc(M);
	struct image im;
	struct sample s;

	if (!has_qemu())
		UNIT_SKIP("no qemu-img or qemu-io");
	load(&im);
	refuses_to_write_beside("b.qcow2");
	CHECK_EQ_I64(sh("qemu-img bitmap --disable b.qcow2 b0"), 0);
	memset(buf, 3, M);
	if (CHECK_OK(sample_open(&s, "b.qcow2", TIDE_OPEN_WRITE, &err), &err)) {
		CHECK_OK(sample_write(&s, buf, 0, M, &err), &err);
		CHECK_OK(qcow2->flush(s.state, &err), &err);
		sample_close(&s);
		is_clean("b.qcow2");
		check_with_qemu("b.qcow2", NULL, buf, M);
		CHECK_EQ_I64(sh("qemu-img info b.qcow2 | grep 'name: b0'"), 0);
	}
	if (CHECK_OK(sample_open(&s, "b.qcow2", 0, &err), &err)) {
		struct tide_bitmap *bm = NULL;

		CHECK_OK(qcow2->bitmap_read(s.state, 0, &bm, &err), &err);
		CHECK(bm && tide_bitmap_count(bm) == 16 && tide_bitmap_test(bm, 65536));
		tide_bitmap_free(bm);
		sample_close(&s);
	}
	free(im.data);
	free(buf);
}

int main(void)
{
	UNIT_RUN(test_reads_what_qemu_records);
	UNIT_RUN(test_directory_texts);
	UNIT_RUN(test_all_ones_end_with_the_disk);
	UNIT_RUN(test_shared_clusters);
	UNIT_RUN(test_left_in_use);
	UNIT_RUN(test_autoclear_flag_is_off);
	UNIT_RUN(test_writing_beside_bitmaps);
	return unit_done();
}
