/*
 * qcow2 images that are damaged, hostile or ask for too much: an error that says what is
 * wrong, or a correct open; never a crash and never a byte read from outside the file.
 */
#include "base/error.h"
#include "base/mem.h"
#include "qcow2_sample.h"

/* Opens and reads whatever can be read, within bounds of time. */
static int visit(const char *name, unsigned flags, struct tide_error *err)
{
	struct sample s;
	uint8_t *buf = malloc(65536);
	int rc = sample_open(&s, name, flags, err);

	if (rc == 0) {
		uint64_t off = 0;

		for (int i = 0; i < 200 && off < s.info.size && rc == 0; i++) {
			struct tide_extent e;

			rc = qcow2->extent(s.state, off, s.info.size - off, &e, err);
			if (rc == 0 && !CHECK(e.off == off && e.len > 0 && e.len <= s.info.size - off))
				break;
			if (rc == 0 && e.kind == TIDE_EXTENT_DATA && !e.mapped)
				rc = qcow2->read(s.state, buf, off, TIDE_MIN(e.len, 65536), err);
			if (rc == 0 && e.mapped)
				CHECK(e.map_fd == (s.data_fd < 0 ? s.fd : s.data_fd) && (int64_t)e.map_off >= 0);
			off += rc == 0 ? e.len : 0;
		}
		for (size_t i = 0; i < s.info.n_bitmaps && rc == 0; i++) {
			struct tide_bitmap *bm = NULL;

			rc = qcow2->bitmap_read(s.state, i, &bm, err);
			tide_bitmap_free(bm);
		}
		if (flags && s.info.size >= 65536) {
			struct tide_error ignored = TIDE_ERROR_INIT;

			memset(buf, 1, 65536);
			if (sample_write(&s, buf, 0, 65536, &ignored) == 0 &&
			    qcow2->zero(s.state, 0, s.info.cluster_size, true, &ignored) == 0)
				qcow2->flush(s.state, &ignored);
			tide_error_release(&ignored);
		}
		sample_close(&s);
	}
	free(buf);
	if (rc < 0)
		CHECK(err->code != TIDE_E_NONE && err->msg && err->msg[0]);
	return rc;
}

/* An image with something of everything. */
static uint8_t *make_image(uint64_t *len)
{
	CHECK_EQ_I64(
	        sh("rm -f g.qcow2 h.qcow2; qemu-img create -q -u -f qcow2 -b base.raw -F raw -o cluster_size=4096 "
	           "g.qcow2 1M &&"
	           "qemu-img bitmap --add g.qcow2 b0 && qemu-io -f qcow2 -c 'write -P 3 0 100k' -c 'write -z 200k 64k' "
	           "-c 'write -c -P 9 400k 4k' -c 'write -c -P 8 404k 4k' g.qcow2 && "
	           "qemu-img bitmap --add --disable g.qcow2 b1 && qemu-img snapshot -c s1 g.qcow2 && "
	           "qemu-img bitmap --disable g.qcow2 b0"),
	        0);
	return slurp("g.qcow2", len);
}

static void make_base(void)
{
	uint8_t *zeroes = calloc(1, M);

	spew("base.raw", zeroes, M);
	free(zeroes);
}

static void test_cut_at_every_length(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	uint64_t len;
	uint8_t *data;

	if (!has_qemu())
		UNIT_SKIP("no qemu-img or qemu-io");
	make_base();
	data = make_image(&len);
	CHECK_OK(visit("g.qcow2", 0, &err), &err);
	for (uint64_t n = 0; n < len; n += n < 1200 ? 1 : 509) {
		UNIT_ROW("cut at %" PRIu64, n);
		spew("bad.qcow2", data, n);
		visit("bad.qcow2", 0, &err);
		CHECK(n >= 4096 || err.code != TIDE_E_NONE);
		tide_error_release(&err);
	}
	free(data);
}

static void test_every_header_byte_flipped(void)
{
	static const uint8_t flips[] = { 0xff, 0x01, 0x80 };
	struct tide_error err = TIDE_ERROR_INIT;
	uint64_t len, refused = 0;
	uint8_t *data;

	if (!has_qemu())
		UNIT_SKIP("no qemu-img or qemu-io");
	make_base();
	data = make_image(&len);
	for (uint64_t at = 0; at < 700; at++) {
		for (size_t f = 0; f < sizeof(flips); f++) {
			UNIT_ROW("byte %" PRIu64 " flip %02x", at, flips[f]);
			data[at] ^= flips[f];
			spew("bad.qcow2", data, len);
			refused += visit("bad.qcow2", f % 2 ? TIDE_OPEN_WRITE : 0, &err) < 0;
			tide_error_release(&err);
			data[at] ^= flips[f];
		}
	}
	CHECK(refused > 100);
	free(data);
}

static void test_random_metadata(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	uint64_t len, seed = 17;
	uint8_t *data, *copy;

	if (!has_qemu())
		UNIT_SKIP("no qemu-img or qemu-io");
	make_base();
	data = make_image(&len);
	copy = malloc(len);
	for (int i = 0; i < 1500; i++) {
		UNIT_ROW("round %d", i);
		memcpy(copy, data, len);
		for (int n = 0; n < 1 + i % 4; n++) {
			uint64_t cluster = rnd(&seed) % (len / 4096) * 4096,
			         at = cluster + rnd(&seed) % (i % 2 ? 64 : 4096);

			copy[at] ^= (uint8_t)(1 + rnd(&seed) % 255);
		}
		spew("bad.qcow2", copy, len);
		visit("bad.qcow2", i % 2 ? TIDE_OPEN_WRITE : 0, &err);
		tide_error_release(&err);
	}
	free(copy);
	free(data);
}

struct patch {
	uint64_t at;
	unsigned bytes;
	uint64_t value;
};

static void put_value(uint8_t *p, unsigned bytes, uint64_t value)
{
	while (bytes--) {
		p[bytes] = (uint8_t)value;
		value >>= 8;
	}
}

/* What one changed field of a header is answered with. */
static const struct {
	struct patch patch;
	unsigned flags;
	enum tide_code code;
	const char *text;
} header_rows[] = {
	{ { 0, 4, 0x514649fa }, 0, TIDE_E_CORRUPT, "Image is not in qcow2 format" },
	{ { 4, 4, 1 }, 0, TIDE_E_UNSUPPORTED, "Unsupported qcow2 version 1" },
	{ { 4, 4, 4 }, 0, TIDE_E_UNSUPPORTED, "Unsupported qcow2 version 4" },
	{ { 20, 4, 8 }, 0, TIDE_E_UNSUPPORTED, "Unsupported cluster size: 2^8" },
	{ { 20, 4, 22 }, 0, TIDE_E_UNSUPPORTED, "Unsupported cluster size: 2^22" },
	{ { 8, 8, 65537 }, 0, TIDE_E_CORRUPT, "Invalid backing file offset: expected 112 to 65536, found 65537" },
	{ { 8, 8, 50 }, 0, TIDE_E_CORRUPT, "Invalid backing file offset: expected 112 to 65536, found 50" },
	{ { 24, 8, UINT64_C(1) << 40 }, 0, TIDE_E_CORRUPT, "L1 table is too small: expected 2048 entries, found 1" },
	{ { 24, 8, UINT64_MAX }, 0, TIDE_E_CORRUPT, "Image is too big: 18446744073709551104 bytes" },
	{ { 32, 4, 1 }, 0, TIDE_E_UNSUPPORTED, "The image is AES encrypted, which this version does not support" },
	{ { 32, 4, 2 }, 0, TIDE_E_UNSUPPORTED, "The image is LUKS encrypted, which this version does not support" },
	{ { 32, 4, 3 }, 0, TIDE_E_UNSUPPORTED, "Unsupported encryption method 3" },
	{ { 36, 4, 4194305 },
	  0,
	  TIDE_E_CORRUPT,
	  "Active L1 table too large: expected at most 33554432 bytes, found 33554440" },
	{ { 40, 8, 512 },
	  0,
	  TIDE_E_CORRUPT,
	  "Active L1 table offset invalid: expected a multiple of the cluster size, found 512" },
	{ { 40, 8, UINT64_C(1) << 50 },
	  0,
	  TIDE_E_CORRUPT,
	  "Active L1 table offset invalid: 8 bytes at 1125899906842624 do not lie within the file of 262144 "
	  "bytes" },
	{ { 56, 4, 0 }, 0, TIDE_E_CORRUPT, "Image does not contain a reference count table" },
	{ { 56, 4, 129 },
	  0,
	  TIDE_E_CORRUPT,
	  "Reference count table too large: expected at most 8388608 bytes, found 8454144" },
	{ { 56, 4, UINT32_MAX },
	  0,
	  TIDE_E_CORRUPT,
	  "Reference count table too large: expected at most 8388608 bytes, found 281474976645120" },
	{ { 60, 4, 65537 },
	  0,
	  TIDE_E_CORRUPT,
	  "Snapshot table too large: expected at most 65536 snapshots, found 65537" },
	{ { 72, 8, 0x20 }, 0, TIDE_E_UNSUPPORTED, "Unsupported qcow2 feature(s): Unknown incompatible feature: 20" },
	{ { 72, 8, 0x60 },
	  0,
	  TIDE_E_UNSUPPORTED,
	  "Unsupported qcow2 feature(s): Unknown incompatible feature: 20, Unknown incompatible feature: 40" },
	{ { 72, 8, 4 }, 0, TIDE_E_CORRUPT, "'data-file' is required for this image, and the image does not name it" },
	{ { 88, 8, 2 }, 0, TIDE_E_CORRUPT, "data-file-raw requires a data file" },
	{ { 72, 8, 8 }, 0, TIDE_E_CORRUPT, "qcow2: Compression type incompatible feature bit must not be set" },
	{ { 104, 1, 1 }, 0, TIDE_E_CORRUPT, "qcow2: Compression type incompatible feature bit must be set" },
	{ { 104, 1, 7 }, 0, TIDE_E_UNSUPPORTED, "qcow2: unknown compression type: 7" },
	{ { 72, 8, 2 }, TIDE_OPEN_WRITE, TIDE_E_CORRUPT, "qcow2: Image is corrupt; cannot be opened read/write" },
	{ { 72, 8, 1 }, TIDE_OPEN_WRITE, TIDE_E_NONE, NULL },
	{ { 72, 8, 3 }, 0, TIDE_E_NONE, NULL },
	{ { 80, 8, UINT64_MAX }, 0, TIDE_E_NONE, NULL },
	{ { 88, 8, 0xf0 }, TIDE_OPEN_WRITE, TIDE_E_NONE, NULL },
	{ { 96, 4, 7 }, 0, TIDE_E_CORRUPT, "Reference count entry width too large; may not exceed 64 bits" },
	{ { 100, 4, 96 }, 0, TIDE_E_CORRUPT, "qcow2 header too short: expected at least 104 bytes, found 96" },
	{ { 100, 4, 65544 }, 0, TIDE_E_CORRUPT, "qcow2 header exceeds cluster size: it has 65544 bytes" },
	{ { 100, 4, 105 }, 0, TIDE_E_CORRUPT, "qcow2 header length 105 is not a multiple of 8" },
	{ { 116, 4, 65536 },
	  0,
	  TIDE_E_CORRUPT,
	  "Header extension too large: extension 6803f857 has 65536 bytes, there is room for 65416" },
};

static void test_header_texts(void)
{
	struct tide_driver_create o = { .size = M };
	struct tide_error err = TIDE_ERROR_INIT;
	uint64_t len;
	uint8_t *data;

	CHECK_OK(sample_create("g.qcow2", &o, &err), &err);
	data = slurp("g.qcow2", &len);
	for (size_t i = 0; i < TIDE_ARRAY_SIZE(header_rows); i++) {
		uint8_t *copy = malloc(len);
		struct sample s;

		UNIT_ROW("%s", header_rows[i].text ? header_rows[i].text : "fine");
		memcpy(copy, data, len);
		put_value(copy + header_rows[i].patch.at, header_rows[i].patch.bytes, header_rows[i].patch.value);
		spew("bad.qcow2", copy, len);
		free(copy);
		if (sample_open(&s, "bad.qcow2", header_rows[i].flags, &err) == 0)
			sample_close(&s);
		CHECK_ERR(&err, header_rows[i].code, header_rows[i].text);
	}
	free(data);
}

static void test_unknown_autoclear_is_cleared(void)
{
	struct tide_driver_create o = { .size = M };
	struct tide_error err = TIDE_ERROR_INIT;
	uint64_t len;
	uint8_t *data, buf[512] = { 1 };
	struct sample s;

	CHECK_OK(sample_create("g.qcow2", &o, &err), &err);
	data = slurp("g.qcow2", &len);
	data[95] = 0xf0;
	spew("g.qcow2", data, len);
	free(data);
	if (!CHECK_OK(sample_open(&s, "g.qcow2", TIDE_OPEN_WRITE, &err), &err))
		return;
	data = slurp("g.qcow2", &len);
	CHECK_EQ_U64(data[95], 0xf0);
	free(data);
	CHECK_OK(sample_write(&s, buf, 0, 512, &err), &err);
	data = slurp("g.qcow2", &len);
	CHECK_EQ_U64(data[95], 0);
	free(data);
	sample_close(&s);
}

#define COPIED (UINT64_C(1) << 63)

/* Layout of these images: header, refcount table, refcount block, L1 table, L2 table, data; 64 KiB each. */
static const struct {
	struct patch patch;
	bool write;
	const char *text;
} table_rows[] = {
	{ { 3 * 65536, 8, COPIED | 0x40001 }, false, "L1 entry 0: reserved bits are set: 0x8000000000040001" },
	{ { 3 * 65536, 8, COPIED | 0x40200 },
	  false,
	  "L1 entry 0: the offset 262656 is not a multiple of the cluster size" },
	{ { 3 * 65536, 8, COPIED | 0x10000000 },
	  false,
	  "L1 entry 0: the L2 table at 268435456 does not lie within the file of 393216 bytes" },
	{ { 4 * 65536, 8, COPIED | 0x50002 },
	  false,
	  "L2 entry for the cluster at 0: reserved bits are set: 0x8000000000050002" },
	{ { 4 * 65536, 8, COPIED | 0x50200 },
	  false,
	  "L2 entry for the cluster at 0: the offset 328192 is not a multiple of the cluster size" },
	{ { 4 * 65536, 8, COPIED | 0x60000 },
	  false,
	  "L2 entry for the cluster at 0: the offset 393216 lies beyond the end of the file at 393216" },
	{ { 4 * 65536, 8, COPIED }, false, "L2 entry for the cluster at 0: data at offset 0, the header's" },
	{ { 4 * 65536, 8, UINT64_C(3) << 62 | 0x50000 },
	  false,
	  "L2 entry for the cluster at 0: compressed, but flagged as used once: 0xc000000000050000" },
	{ { 4 * 65536, 8, UINT64_C(1) << 62 | 0x60000 },
	  false,
	  "L2 entry for the cluster at 0: compressed data at 393216 does not lie within the file of 393216 "
	  "bytes" },
	{ { 4 * 65536, 8, COPIED | 0x30000 }, true, "A data cluster at 196608 overlaps with the image's L1 table" },
	{ { 4 * 65536, 8, COPIED | 0x10000 },
	  true,
	  "A data cluster at 65536 overlaps with the image's refcount table" },
	{ { 4 * 65536, 8, COPIED | 0x20000 },
	  true,
	  "A data cluster at 131072 overlaps with the image's L2 table or refcount block" },
	{ { 4 * 65536, 8, COPIED | 0x40000 },
	  true,
	  "A data cluster at 262144 overlaps with the image's L2 table or refcount block" },
	{ { 3 * 65536, 8, COPIED | 0x20000 },
	  true,
	  "The refcount block at 131072 overlaps with the image's L2 table or refcount block" },
	{ { 3 * 65536, 8, COPIED | 0x30000 }, true, "The L2 table at 196608 overlaps with the image's L1 table" },
	{ { 2 * 65536 + 10, 2, 0 }, true, "The data cluster at 327680 has the reference count 0, expected at least 1" },
	{ { 65536, 8, 0x20200 },
	  true,
	  "Refcount table entry 0: the offset 131584 is not a multiple of the cluster size" },
	{ { 65536, 8, 0x200000 },
	  true,
	  "Refcount table entry 0: the refcount block at 2097152 does not lie within the file of 393216 bytes" },
	{ { 40, 8, 0x10000 }, true, "The refcount table at 65536 overlaps with the image's L1 table" },
};

static void test_table_texts(void)
{
	struct tide_driver_create o = { .size = M };
	struct tide_error err = TIDE_ERROR_INIT;
	uint8_t *data, *buf = malloc(65536);
	uint64_t len;
	struct sample s;

	memset(buf, 5, 65536);
	CHECK_OK(sample_create("g.qcow2", &o, &err), &err);
	if (!CHECK_OK(sample_open(&s, "g.qcow2", TIDE_OPEN_WRITE, &err), &err))
		return;
	/* The data come first, then the table: put them in the order that the rows want. */
	CHECK_OK(sample_write(&s, buf, 0, 65536, &err), &err);
	CHECK_OK(qcow2->flush(s.state, &err), &err);
	sample_close(&s);
	data = slurp("g.qcow2", &len);
	CHECK_EQ_U64(len, 6 * 65536);
	CHECK_EQ_U64(tide_get_be64(data + 3 * 65536), COPIED | 0x50000);
	memcpy(data + 4 * 65536, data + 5 * 65536, 65536);
	memcpy(data + 5 * 65536, buf, 65536);
	put_value(data + 3 * 65536, 8, COPIED | 0x40000);
	put_value(data + 4 * 65536, 8, COPIED | 0x50000);
	for (size_t i = 0; i < TIDE_ARRAY_SIZE(table_rows); i++) {
		uint8_t *copy = malloc(len), *got = malloc(65536);
		int rc;

		UNIT_ROW("%s", table_rows[i].text);
		memcpy(copy, data, len);
		put_value(copy + table_rows[i].patch.at, table_rows[i].patch.bytes, table_rows[i].patch.value);
		spew("bad.qcow2", copy, len);
		free(copy);
		rc = sample_open(&s, "bad.qcow2", table_rows[i].write ? TIDE_OPEN_WRITE : 0, &err);
		if (rc == 0) {
			rc = table_rows[i].write ? sample_write(&s, buf, 0, 512, &err)
			                         : sample_read(&s, got, 0, 65536, &err);
			sample_close(&s);
		}
		CHECK_EQ_I64(rc, -1);
		CHECK_ERR(&err, TIDE_E_CORRUPT, table_rows[i].text);
		free(got);
	}
	free(data);
	free(buf);
}

/* An image with extended L2 entries, of the same layout; the first cluster is all there. */
static const struct {
	struct patch patch[2];
	const char *text; /* or NULL: readable */
} extended_rows[] = {
	{ { { 4 * 65536 + 8, 8, 0xffffffff } }, NULL },
	{ { { 4 * 65536 + 8, 8, UINT64_C(0x80000000ffffffff) } },
	  "L2 entry for the cluster at 0: subclusters are both allocated and zero: 0x80000000ffffffff" },
	{ { { 4 * 65536 + 8, 8, UINT64_C(0x0000000100000001) } },
	  "L2 entry for the cluster at 0: subclusters are both allocated and zero: 0x0000000100000001" },
	{ { { 4 * 65536, 8, 0 } },
	  "L2 entry for the cluster at 0: subclusters are allocated, but no cluster is: 0x00000000ffffffff" },
	{ { { 4 * 65536, 8, 0 }, { 4 * 65536 + 8, 8, UINT64_C(0xffffffff00000000) } }, NULL },
	{ { { 4 * 65536, 8, COPIED | 0x50001 } },
	  "L2 entry for the cluster at 0: reserved bits are set: 0x8000000000050001" },
	{ { { 4 * 65536, 8, COPIED | 0x50200 } },
	  "L2 entry for the cluster at 0: the offset 328192 is not a multiple of the cluster size" },
	{ { { 4 * 65536, 8, COPIED }, { 4 * 65536 + 8, 8, 0 } },
	  "L2 entry for the cluster at 0: data at offset 0, the header's" },
	{ { { 4 * 65536, 8, COPIED | 0x60000 }, { 4 * 65536 + 8, 8, UINT64_C(0xfffffffe00000001) } },
	  "L2 entry for the cluster at 0: the offset 393216 lies beyond the end of the file at 393216" },
	{ { { 4 * 65536, 8, COPIED | 0x60000 }, { 4 * 65536 + 8, 8, UINT64_C(0xffffffff00000000) } }, NULL },
	{ { { 4 * 65536, 8, COPIED | 0x60000 }, { 4 * 65536 + 8, 8, 0 } }, NULL },
	{ { { 4 * 65536, 8, UINT64_C(1) << 62 | 0x50000 } },
	  "L2 entry for the cluster at 0: compressed, but with subclusters: 0x00000000ffffffff" },
	{ { { 20, 4, 13 } }, "Unsupported subcluster size: 256" },
	{ { { 24, 8, UINT64_C(4096) << 17 } }, "L1 table is too small: expected 2 entries, found 1" },
};

/* A disk of one cluster of data in the layout of these rows; settings: of the image. */
static uint8_t *make_one_cluster(const char *settings, uint64_t *len)
{
	struct tide_driver_create o = { .size = M, .settings = settings };
	struct tide_error err = TIDE_ERROR_INIT;
	uint8_t *data, *buf = malloc(65536);
	unsigned entry = strstr(settings, "extended") ? 16 : 8;
	struct sample s;

	memset(buf, 5, 65536);
	CHECK_OK(sample_create("g.qcow2", &o, &err), &err);
	if (CHECK_OK(sample_open(&s, "g.qcow2", TIDE_OPEN_WRITE, &err), &err)) {
		CHECK_OK(sample_write(&s, buf, 0, 65536, &err), &err);
		CHECK_OK(qcow2->flush(s.state, &err), &err);
		sample_close(&s);
	}
	data = slurp("g.qcow2", len);
	CHECK_EQ_U64(*len, 6 * 65536);
	memcpy(data + 4 * 65536, data + 5 * 65536, entry);
	memset(data + 4 * 65536 + entry, 0, 65536 - entry);
	memcpy(data + 5 * 65536, buf, 65536);
	put_value(data + 3 * 65536, 8, COPIED | 0x40000);
	put_value(data + 4 * 65536, 8, COPIED | 0x50000);
	free(buf);
	return data;
}

static void test_extended_entries(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	uint8_t *data, *copy, *got = malloc(65536);
	uint64_t len;

	data = make_one_cluster("extended_l2=on", &len);
	copy = malloc(len);
	for (size_t i = 0; i < 2 * TIDE_ARRAY_SIZE(extended_rows); i++) {
		const struct patch *p = extended_rows[i / 2].patch;
		const char *text = extended_rows[i / 2].text;
		struct sample s;
		int rc;

		if (i % 2 && !text && p[0].value == (COPIED | 0x60000))
			text = "The image refers to 393216, which is past the end of its file at 393216: the file was "
			       "cut";
		UNIT_ROW("%zu, %s", i, text ? text : "fine");
		memcpy(copy, data, len);
		for (size_t n = 0; n < 2; n++)
			put_value(copy + p[n].at, p[n].bytes, p[n].value);
		spew("bad.qcow2", copy, len);
		rc = sample_open(&s, "bad.qcow2", i % 2 ? TIDE_OPEN_WRITE : 0, &err);
		if (rc == 0) {
			rc = i % 2 ? sample_write(&s, got, 0, 65536, &err) : sample_read(&s, got, 0, 65536, &err);
			sample_close(&s);
		}
		CHECK_EQ_I64(rc, text ? -1 : 0);
		CHECK_ERR(&err, text ? TIDE_E_CORRUPT : TIDE_E_NONE, text);
	}
	free(data);
	free(copy);
	free(got);
}

/* An image with an external data file: L1 table at 192 KiB, L2 table at 256 KiB. */
static const struct {
	struct patch patch;
	const char *text; /* or NULL: readable */
} data_rows[] = {
	{ { 4 * 65536, 8, COPIED }, NULL },
	{ { 4 * 65536, 8, COPIED | 1 }, NULL },
	{ { 4 * 65536, 8, 1 }, NULL },
	{ { 4 * 65536, 8, 0 }, NULL },
	{ { 4 * 65536, 8, COPIED | 0x10000 },
	  "L2 entry for the cluster at 0: the offset in the external data file, 65536, does not match: expected 0" },
	{ { 4 * 65536, 8, 0x10001 },
	  "L2 entry for the cluster at 0: the offset in the external data file, 65536, does not match: expected 0" },
	{ { 4 * 65536 + 8, 8, COPIED },
	  "L2 entry for the cluster at 65536: the offset in the external data file, 0, does not match: expected "
	  "65536" },
	{ { 4 * 65536 + 8, 8, 0x10000 }, NULL },
	{ { 4 * 65536, 8, COPIED | 0x200 },
	  "L2 entry for the cluster at 0: the offset 512 is not a multiple of the cluster size" },
	{ { 4 * 65536, 8, COPIED | 2 }, "L2 entry for the cluster at 0: reserved bits are set: 0x8000000000000002" },
	{ { 4 * 65536, 8, UINT64_C(1) << 62 | 0x10000 },
	  "L2 entry for the cluster at 0: compressed, in an image with an external data file" },
	{ { 112, 4, 0x12345678 }, "'data-file' is required for this image, and the image does not name it" },
	{ { 125, 1, 0 }, "External data file name contains a NUL byte" },
	{ { 72, 8, 0 }, "L2 entry for the cluster at 0: data at offset 0, the header's" },
};

static void test_data_file_entries(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	uint8_t *data, *copy, *got = malloc(M), *fresh;
	uint64_t len, data_len;

	if (!has_qemu())
		UNIT_SKIP("no qemu-img or qemu-io");
	CHECK_EQ_I64(sh("qemu-img create -q -f qcow2 -o data_file=disk.data g.qcow2 1M && "
	                "qemu-io -f qcow2 -c 'write -q -P 5 0 192k' g.qcow2"),
	             0);
	data = slurp("g.qcow2", &len);
	fresh = slurp("disk.data", &data_len);
	CHECK_EQ_U64(tide_get_be64(data + 3 * 65536), COPIED | 4 * 65536);
	CHECK_EQ_U64(tide_get_be64(data + 4 * 65536 + 8), COPIED | 65536);
	copy = malloc(len);
	for (size_t i = 0; i < 2 * TIDE_ARRAY_SIZE(data_rows); i++) {
		const struct patch *p = &data_rows[i / 2].patch;
		const char *text = data_rows[i / 2].text;
		struct sample s;
		int rc;

		UNIT_ROW("%zu, %s", i, text ? text : "fine");
		memcpy(copy, data, len);
		put_value(copy + p->at, p->bytes, p->value);
		spew("bad.qcow2", copy, len);
		spew("disk.data", fresh, data_len);
		rc = sample_open(&s, "bad.qcow2", i % 2 ? TIDE_OPEN_WRITE : 0, &err);
		if (rc == 0) {
			for (uint64_t off = 0; off < 3 * 65536 && rc == 0; off += 65536)
				rc = i % 2 ? sample_write(&s, got + off, off, 65536, &err)
				           : sample_read(&s, got + off, off, 65536, &err);
			if (i % 2 && rc == 0)
				CHECK_OK(qcow2->flush(s.state, &err), &err);
			sample_close(&s);
		}
		CHECK_EQ_I64(rc, text ? -1 : 0);
		CHECK_ERR(&err, text ? TIDE_E_CORRUPT : TIDE_E_NONE, text);
		/* What was read of a strange entry, or written after it, is what QEMU reads. */
		if (rc == 0) {
			memset(got + 3 * 65536, 0, M - 3 * 65536);
			check_with_qemu("bad.qcow2", NULL, got, M);
		}
	}
	free(data);
	free(copy);
	free(got);
	free(fresh);
}

/* A driver that was not given the file says so, rather than zeroes. */
static void test_data_file_not_given(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_extent e;
	struct sample s = { .data_fd = -1 };

	if (!has_qemu())
		UNIT_SKIP("no qemu-img or qemu-io");
	CHECK_EQ_I64(sh("qemu-img create -q -f qcow2 -o data_file=disk.data g.qcow2 1M"), 0);
	s.fd = open(unit_path("g.qcow2"), O_RDWR | O_CLOEXEC);
	if (!CHECK_OK(qcow2->open(s.fd, unit_dir(), TIDE_OPEN_WRITE, &s.info, &s.state, &err), &err))
		return;
	CHECK_STR(s.info.data_file, "disk.data");
	CHECK_EQ_I64(qcow2->extent(s.state, 0, M, &e, &err), -1);
	CHECK_ERR(&err, TIDE_E_REFUSED, "The external data file 'disk.data' is not open");
	CHECK_EQ_I64(qcow2->write_begin(s.state, 0, M, &e, &err), -1);
	CHECK_ERR(&err, TIDE_E_REFUSED, "The external data file 'disk.data' is not open");
	CHECK_EQ_I64(qcow2->zero(s.state, 0, M, true, &err), -1);
	CHECK_ERR(&err, TIDE_E_REFUSED, "The external data file 'disk.data' is not open");
	sample_close(&s);
	/* And one that has none takes none. */
	CHECK_EQ_I64(sh("rm -f g.qcow2; qemu-img create -q -f qcow2 g.qcow2 1M"), 0);
	if (CHECK_OK(sample_open(&s, "g.qcow2", 0, &err), &err)) {
		CHECK_EQ_I64(qcow2->set_data_file(s.state, s.fd, &err), -1);
		CHECK_ERR(&err, TIDE_E_REFUSED, "'data-file' can only be set for images with an external data file");
		sample_close(&s);
	}
}

/* Each subcluster of a cluster by itself: allocated, zero, neither, in runs of every kind. */
static void test_subcluster_runs(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	uint8_t *data, *below = malloc(M), *want = malloc(M);
	uint64_t len, seed = 23;

	data = make_one_cluster("extended_l2=on", &len);
	memset(below, 9, M);
	for (int i = 0; i < 100; i++) {
		uint32_t alloc = (uint32_t)rnd(&seed), zero = (uint32_t)rnd(&seed) & ~alloc;
		struct sample s;

		UNIT_ROW("alloc %08x zero %08x", alloc, zero);
		put_value(data + 4 * 65536 + 8, 8, (uint64_t)zero << 32 | alloc);
		spew("bad.qcow2", data, len);
		memcpy(want, below, M);
		for (unsigned n = 0; n < 32; n++) {
			if (alloc >> n & 1)
				memset(want + n * 2048, 5, 2048);
			else if (zero >> n & 1)
				memset(want + n * 2048, 0, 2048);
		}
		if (!CHECK_OK(sample_open(&s, "bad.qcow2", 0, &err), &err))
			break;
		s.below = below;
		check_content(&s, want);
		sample_close(&s);
	}
	free(data);
	free(below);
	free(want);
}

/* A cluster that is counted as free and is in use as a table must not be dealt out. */
static void test_free_count_of_metadata(void)
{
	struct tide_driver_create o = { .size = M };
	struct tide_error err = TIDE_ERROR_INIT;
	uint8_t *data, *buf = calloc(1, 65536);
	uint64_t len;
	struct sample s;

	CHECK_OK(sample_create("g.qcow2", &o, &err), &err);
	data = slurp("g.qcow2", &len);
	put_value(data + 2 * 65536 + 2 * 3, 2, 0);
	spew("g.qcow2", data, len);
	free(data);
	if (CHECK_OK(sample_open(&s, "g.qcow2", TIDE_OPEN_WRITE, &err), &err)) {
		CHECK_EQ_I64(sample_write(&s, buf, 0, 65536, &err), -1);
		CHECK_ERR(&err, TIDE_E_CORRUPT,
		          "The clusters at 196608 are counted as free, but hold the image's L1 table");
		sample_close(&s);
	}
	free(buf);
}

/* An image of one cluster of data at 64 KiB of the disk, which is the last cluster of the file, and cut. */
static void make_data_last(const char *name, uint64_t disk, const uint8_t *cluster)
{
	struct tide_driver_create o = { .size = disk };
	struct tide_error err = TIDE_ERROR_INIT;
	struct sample s;
	uint64_t len;
	uint8_t *data;

	CHECK_OK(sample_create(name, &o, &err), &err);
	CHECK_OK(sample_open(&s, name, TIDE_OPEN_NEW, &err), &err);
	CHECK_OK(sample_write(&s, cluster, 65536, TIDE_MIN(disk - 65536, 65536), &err), &err);
	CHECK_OK(qcow2->flush(s.state, &err), &err);
	sample_close(&s);
	/* Data, then the L2 table, in this file: exchange them. */
	data = slurp(name, &len);
	memcpy(data + 4 * 65536, data + 5 * 65536, 65536);
	memcpy(data + 5 * 65536, cluster, 65536);
	put_value(data + 3 * 65536, 8, UINT64_C(1) << 63 | 0x40000);
	put_value(data + 4 * 65536 + 8, 8, UINT64_C(1) << 63 | 0x50000);
	spew(name, data, len - 60000);
	free(data);
}

/* A last cluster of which the file lacks bytes of the disk was cut: it is not read, and the file is not extended. */
static void test_cut_last_cluster(void)
{
	const char *was_cut = "L2 entry for the cluster at 65536: 65536 bytes of data at 327680 end beyond the end of "
	                      "the file at 333216, which was cut";
	struct tide_error err = TIDE_ERROR_INIT;
	uint8_t *buf = malloc(65536), *got = malloc(65536);
	struct sample s;

	memset(buf, 5, 65536);
	make_data_last("g.qcow2", M, buf);
	if (CHECK_OK(sample_open(&s, "g.qcow2", TIDE_OPEN_WRITE, &err), &err)) {
		CHECK(sample_read(&s, got, 65536, 512, &err) < 0);
		CHECK_ERR(&err, TIDE_E_CORRUPT, was_cut);
		CHECK(sample_write(&s, buf, 0, 65536, &err) < 0);
		CHECK_ERR(&err, TIDE_E_CORRUPT, was_cut);
		sample_close(&s);
	}
	/* Bytes beyond the end of the disk may be missing. */
	make_data_last("g.qcow2", 65536 + 512, buf);
	if (CHECK_OK(sample_open(&s, "g.qcow2", TIDE_OPEN_WRITE, &err), &err)) {
		CHECK_OK(sample_read(&s, got, 65536, 512, &err), &err);
		CHECK_EQ_U64(got[511], 5);
		CHECK_OK(sample_write(&s, buf, 0, 65536, &err), &err);
		sample_close(&s);
	}
	free(buf);
	free(got);
}

static void test_create_refusals(void)
{
	static const struct {
		uint64_t size;
		const char *settings, *text;
	} rows[] = {
		{ M, "cluster_size=3k", "Cluster size must be a power of two between 512 and 2048k" },
		{ M, "cluster_size=256", "Cluster size must be a power of two between 512 and 2048k" },
		{ M, "cluster_size=4M", "Cluster size must be a power of two between 512 and 2048k" },
		{ M, "cluster_size=0", "Cluster size must be a power of two between 512 and 2048k" },
		{ M, "cluster_size=xyz", "Parameter 'cluster_size' expects a non-negative number below 2^64" },
		{ M, "cluster_size=4x", "Parameter 'cluster_size' expects a non-negative number below 2^64" },
		{ M, "cluster_size=-1", "Parameter 'cluster_size' expects a non-negative number below 2^64" },
		{ M, "cluster_size=99999999E", "Parameter 'cluster_size' expects a non-negative number below 2^64" },
		{ M, "refcount_bits=3", "Refcount width must be a power of two and may not exceed 64 bits" },
		{ M, "refcount_bits=0", "Refcount width must be a power of two and may not exceed 64 bits" },
		{ M, "refcount_bits=128", "Refcount width must be a power of two and may not exceed 64 bits" },
		{ M, "refcount_bits=abc", "Parameter 'refcount_bits' expects a number" },
		{ M, "compression_type=lzo", "Parameter 'compression-type' does not accept value 'lzo'" },
		{ M, "lazy_refcounts=maybe", "Parameter 'lazy_refcounts' expects 'on' or 'off'" },
		{ M, "compat=1.2", "Parameter 'version' does not accept value '1.2'" },
		{ M, "preallocation=foo", "Parameter 'preallocation' does not accept value 'foo'" },
		{ M, "preallocation=full", "Parameter 'preallocation=full' is not supported by this version" },
		{ M, "extended_l2=foo", "Parameter 'extended_l2' expects 'on' or 'off'" },
		{ M, "extended_l2=on,cluster_size=8k",
		  "Extended L2 entries are only supported with cluster sizes of at least 16384 bytes" },
		{ M, "extended_l2=on,compat=0.10,lazy_refcounts=on",
		  "Extended L2 entries are only supported with compatibility level 1.1 and above (use version=v3 or "
		  "greater)" },
		{ M, "data_file_raw=on", "data-file-raw requires data-file" },
		{ M, "data_file_raw=1,data_file=x", "Parameter 'data_file_raw' expects 'on' or 'off'" },
		{ M, "data_file=x,compat=0.10",
		  "External data files are only supported with compatibility level 1.1 and above (use version=v3 or "
		  "greater)" },
		{ M, "encrypt.format=luks", "Parameter 'encrypt.format' is not supported by this version" },
		{ M, "foo=bar", "Invalid parameter 'foo'" },
		{ M, "compat=0.10,refcount_bits=8",
		  "Different refcount widths than 16 bits require compatibility level 1.1 or above (use version=v3 or "
		  "greater)" },
		{ M, "compat=0.10,lazy_refcounts=on",
		  "Lazy refcounts only supported with compatibility level 1.1 and above (use version=v3 or greater)" },
		{ M, "compat=0.10,compression_type=zstd",
		  "Non-zlib compression type is only supported with compatibility level 1.1 and above (use version=v3 "
		  "or greater)" },
		{ 129 * G, "cluster_size=512",
		  "The image size is too large for file format 'qcow2' (try using a larger cluster size)" },
		{ UINT64_MAX, "cluster_size=2M",
		  "The image size is too large for file format 'qcow2' (try using a larger cluster size)" },
	};
	struct tide_error err = TIDE_ERROR_INIT;

	for (size_t i = 0; i < TIDE_ARRAY_SIZE(rows); i++) {
		struct tide_driver_create o = { .size = rows[i].size, .settings = rows[i].settings };

		UNIT_ROW("%s", rows[i].settings);
		CHECK_EQ_I64(sample_create("n.qcow2", &o, &err), -1);
		CHECK(err.code == TIDE_E_REFUSED || err.code == TIDE_E_UNSUPPORTED);
		CHECK_STR(err.msg, rows[i].text);
		tide_error_release(&err);
	}
}

static void check_created(const struct tide_driver_create *o)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_extent e;
	struct sample s;

	if (!CHECK_OK(sample_create("n.qcow2", o, &err), &err) || !is_clean("n.qcow2"))
		return;
	for (int new = 0; new < 2; new ++) {
		if (!CHECK_OK(sample_open(&s, "n.qcow2", new ? TIDE_OPEN_NEW : 0, &err), &err))
			return;
		CHECK_EQ_U64(s.info.size, tide_range_align_up(o->size, 512));
		CHECK_STR(s.info.backing, o->backing);
		CHECK_STR(s.info.backing_format, o->backing_format);
		if (o->size) {
			CHECK_OK(qcow2->extent(s.state, 0, s.info.size, &e, &err), &err);
			CHECK(e.kind == TIDE_EXTENT_HOLE && e.len == s.info.size);
		}
		if (new)
			CHECK_OK(qcow2->flush(s.state, &err), &err);
		sample_close(&s);
	}
	is_clean("n.qcow2");
}

static void test_creates_clean_images(void)
{
	static const uint64_t clusters[] = { 512, 1024, 4096, 65536, 2 * M };
	static const uint64_t sizes[] = { 0, 1, 512, 1000, M + 512, 100 * G, T, 64 * T };
	static const char *const settings[] = { NULL,
		                                "refcount_bits=1",
		                                "refcount_bits=64",
		                                "compat=0.10",
		                                "compression_type=zstd,lazy_refcounts=on",
		                                "extended_l2=on" };

	if (!has_qemu())
		UNIT_SKIP("no qemu-img or qemu-io");
	make_base();
	for (size_t c = 0; c < TIDE_ARRAY_SIZE(clusters); c++) {
		for (size_t i = 0; i < TIDE_ARRAY_SIZE(sizes); i++) {
			size_t which = (c + i) % TIDE_ARRAY_SIZE(settings);
			struct tide_driver_create o = { .size = sizes[i],
				                        .cluster_size = clusters[c],
				                        .settings = settings[which] };

			if (clusters[c] < 16384 && which == 5)
				continue;
			if (sizes[i] / clusters[c] / clusters[c] > 32 * M / 64)
				continue; /* the L1 table would be too large */
			if (i % 2) {
				o.backing = "base.raw";
				o.backing_format = "raw";
			}
			UNIT_ROW("cluster %" PRIu64 " size %" PRIu64 " %s", clusters[c], sizes[i],
			         settings[which] ? settings[which] : "");
			check_created(&o);
		}
	}
}

static void test_info(void)
{
	struct tide_driver_create o = { .size = M,
		                        .settings = "compression_type=zstd,lazy_refcounts=on,refcount_bits=1" };
	static const char *const keys[] = { "compat",        "compression-type", "lazy-refcounts",
		                            "refcount-bits", "corrupt",          "extended-l2" };
	struct tide_error err = TIDE_ERROR_INIT;
	struct sample s;

	CHECK_OK(sample_create("n.qcow2", &o, &err), &err);
	CHECK_OK(sample_open(&s, "n.qcow2", 0, &err), &err);
	CHECK_EQ_U64(s.info.n_features, TIDE_ARRAY_SIZE(keys));
	for (size_t i = 0; i < s.info.n_features; i++)
		CHECK_STR(s.info.features[i].key, keys[i]);
	CHECK_STR(s.info.features[0].text, "1.1");
	CHECK_STR(s.info.features[1].text, "zstd");
	CHECK_EQ_U64(s.info.features[2].number, 1);
	CHECK_EQ_U64(s.info.features[3].number, 1);
	sample_close(&s);
	o.settings = "compat=0.10";
	CHECK_OK(sample_create("n.qcow2", &o, &err), &err);
	CHECK_OK(sample_open(&s, "n.qcow2", 0, &err), &err);
	CHECK_EQ_U64(s.info.n_features, 3);
	CHECK_STR(s.info.features[0].text, "0.10");
	CHECK_STR(s.info.features[2].key, "refcount-bits");
	sample_close(&s);
}

/* Each allocation fails once: an error, and nothing worse. */
static unsigned long countdown;

static bool fails(void)
{
	return countdown > 0 && --countdown == 0;
}

static void test_out_of_memory(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	uint64_t len;
	uint8_t *data;
	unsigned refused = 0;

	if (!has_qemu())
		UNIT_SKIP("no qemu-img or qemu-io");
	make_base();
	data = make_image(&len);
	for (unsigned long n = 1; n < 60; n++) {
		UNIT_ROW("allocation %lu", n);
		spew("bad.qcow2", data, len);
		countdown = n;
		tide_mem_set_hook(fails);
		refused += visit("bad.qcow2", TIDE_OPEN_WRITE, &err) < 0;
		tide_mem_set_hook(NULL);
		tide_error_release(&err);
		int rc = sh("qemu-img check -f qcow2 bad.qcow2");
		if (!CHECK(rc == 0 || rc == 3))
			show_output();
	}
	CHECK(refused > 10);
	free(data);
}

int main(void)
{
	UNIT_RUN(test_cut_at_every_length);
	UNIT_RUN(test_every_header_byte_flipped);
	UNIT_RUN(test_random_metadata);
	UNIT_RUN(test_header_texts);
	UNIT_RUN(test_unknown_autoclear_is_cleared);
	UNIT_RUN(test_table_texts);
	UNIT_RUN(test_extended_entries);
	UNIT_RUN(test_data_file_entries);
	UNIT_RUN(test_data_file_not_given);
	UNIT_RUN(test_subcluster_runs);
	UNIT_RUN(test_free_count_of_metadata);
	UNIT_RUN(test_cut_last_cluster);
	UNIT_RUN(test_create_refusals);
	UNIT_RUN(test_creates_clean_images);
	UNIT_RUN(test_info);
	UNIT_RUN(test_out_of_memory);
	return unit_done();
}
