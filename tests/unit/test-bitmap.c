/* The dirty bitmap: tables of edges, QEMU's hashes, huge disks, lack of memory. */
#include "base/mem.h"
#include "bitmap_sample.h"

/* ---- tables ------------------------------------------------------------------------ */

static void test_granularity_limits(void)
{
	static const uint64_t good[] = { 512, 1024, 4096, 65536, 2 * G };
	static const uint64_t bad[] = {
		0,         1, 3, 256, 511, 513, 3000, 64000, 2 * G - 1, 2 * G + 1, 4 * G - 1, 4 * G, UINT64_C(1) << 63,
		UINT64_MAX
	};

	for (size_t i = 0; i < TIDE_ARRAY_SIZE(good); i++) {
		UNIT_ROW("%" PRIu64, good[i]);
		TIDE_AUTOBITMAP struct tide_bitmap *bm = make(10 * M, good[i]);
		CHECK_EQ_U64(tide_bitmap_granularity(bm), good[i]);
		CHECK_EQ_U64(UINT64_C(1) << tide_bitmap_shift(bm), good[i]);
	}
	for (size_t i = 0; i < TIDE_ARRAY_SIZE(bad); i++) {
		struct tide_error err = TIDE_ERROR_INIT;

		UNIT_ROW("%" PRIu64, bad[i]);
		CHECK(!tide_bitmap_new(10 * M, bad[i], &err));
		CHECK_ERR(&err, TIDE_E_REFUSED, "Granularity must be power of 2 and at least 512");
	}
}

static void test_geometry(void)
{
	static const struct {
		uint64_t size, granularity, bits, chunks;
	} rows[] = {
		{ 0, 512, 0, 0 },
		{ 1, 512, 1, 1 },
		{ 512, 512, 1, 1 },
		{ 513, 512, 2, 1 },
		{ 1000448, 65536, 16, 1 },
		{ 512 * CHUNK, 512, CHUNK, 1 },
		{ 512 * CHUNK + 1, 512, CHUNK + 1, 2 },
		{ 64 * M, 2 * G, 1, 1 },
		{ 100 * G + 123, 2 * G, 51, 1 },
		{ 64 * T, 512, UINT64_C(1) << 37, UINT64_C(1) << 22 },
		{ UINT64_MAX, 2 * G, UINT64_C(1) << 33, UINT64_C(1) << 18 },
		{ UINT64_C(1) << 49, 512, UINT64_C(1) << 40, UINT64_C(1) << 25 },
	};
	struct tide_error err = TIDE_ERROR_INIT;

	for (size_t i = 0; i < TIDE_ARRAY_SIZE(rows); i++) {
		UNIT_ROW("%" PRIu64 " by %" PRIu64, rows[i].size, rows[i].granularity);
		TIDE_AUTOBITMAP struct tide_bitmap *bm = make(rows[i].size, rows[i].granularity);
		CHECK_EQ_U64(tide_bitmap_size(bm), rows[i].size);
		CHECK_EQ_U64(tide_bitmap_bits(bm), rows[i].bits);
		CHECK_EQ_U64(tide_bitmap_chunks(bm), rows[i].chunks);
		CHECK_EQ_U64(tide_bitmap_count(bm), 0);
		CHECK_EQ_U64(tide_bitmap_next_chunk(bm, 0), rows[i].chunks);
		set(bm, 0, rows[i].size);
		CHECK_EQ_U64(tide_bitmap_count(bm), rows[i].bits);
		reset(bm, 0, rows[i].size);
		CHECK_EQ_U64(tide_bitmap_count(bm), 0);
		CHECK_EQ_U64(tide_bitmap_next_chunk(bm, 0), rows[i].chunks);
	}
	CHECK(!tide_bitmap_new((UINT64_C(1) << 49) + 1, 512, &err));
	CHECK_ERR(&err, TIDE_E_REFUSED, "A disk of 562949953421313 bytes is too large for a bitmap of granularity 512");
	CHECK(!tide_bitmap_new(UINT64_MAX, 512, &err));
	CHECK_ERR(&err, TIDE_E_REFUSED,
	          "A disk of 18446744073709551615 bytes is too large for a bitmap of granularity 512");
}

static void test_set_touches_reset_covers(void)
{
	/* A disk of 10 granules of 1024 bytes and one of 100. */
	static const struct {
		uint64_t off, len, touched, covered;
	} rows[] = {
		{ 0, 0, 0, 0 },
		{ 5000, 0, 0, 0 },
		{ 10340, 0, 0, 0 },
		{ 0, 1, 0x001, 0 },
		{ 0, 1024, 0x001, 0x001 },
		{ 1023, 2, 0x003, 0 },
		{ 1023, 1026, 0x007, 0x002 },
		{ 1, 3071, 0x007, 0x006 },
		{ 1024, 2048, 0x006, 0x006 },
		{ 10239, 2, 0x600, 0 },
		{ 10239, 101, 0x600, 0x400 },
		{ 10240, 99, 0x400, 0 },
		{ 10240, 100, 0x400, 0x400 },
		{ 10241, 99, 0x400, 0 },
		{ 0, 10340, 0x7ff, 0x7ff },
		{ 0, 10339, 0x7ff, 0x3ff },
	};

	for (size_t i = 0; i < TIDE_ARRAY_SIZE(rows); i++) {
		UNIT_ROW("%" PRIu64 "+%" PRIu64, rows[i].off, rows[i].len);
		TIDE_AUTOBITMAP struct tide_bitmap *clean = make(10340, 1024), *dirty = make(10340, 1024);
		set(clean, rows[i].off, rows[i].len);
		set(dirty, 0, 10340);
		reset(dirty, rows[i].off, rows[i].len);
		for (unsigned b = 0; b < 11; b++) {
			CHECK_EQ_U64(tide_bitmap_test(clean, b * K), rows[i].touched >> b & 1);
			CHECK_EQ_U64(!tide_bitmap_test(dirty, b * K), rows[i].covered >> b & 1);
		}
		CHECK_EQ_U64(tide_bitmap_count(clean), (unsigned)__builtin_popcountll(rows[i].touched));
		CHECK_EQ_U64(tide_bitmap_count(dirty), 11u - (unsigned)__builtin_popcountll(rows[i].covered));
	}
}

static void test_range_outside_refused(void)
{
	static const struct tide_range rows[] = {
		{ 0, 10341 },      { 10341, 0 },      { 10340, 1 },
		{ 1, UINT64_MAX }, { UINT64_MAX, 1 }, { UINT64_MAX, UINT64_MAX },
	};
	struct tide_error err = TIDE_ERROR_INIT;
	TIDE_AUTOBITMAP struct tide_bitmap *bm = make(10340, 1024);

	set(bm, 2048, 1);
	for (size_t i = 0; i < TIDE_ARRAY_SIZE(rows); i++) {
		UNIT_ROW("%" PRIu64 "+%" PRIu64, rows[i].off, rows[i].len);
		CHECK(tide_bitmap_set(bm, rows[i].off, rows[i].len, &err) == -1);
		CHECK_ERR(&err, TIDE_E_REFUSED, NULL);
		CHECK(tide_bitmap_reset(bm, rows[i].off, rows[i].len, &err) == -1);
		CHECK_ERR(&err, TIDE_E_REFUSED, NULL);
		CHECK_EQ_U64(tide_bitmap_count(bm), 1);
	}
	CHECK(tide_bitmap_set(bm, 10340, 1, &err) == -1);
	CHECK_ERR(&err, TIDE_E_REFUSED, "Range of 1 bytes at 10340 is not within the disk of 10340 bytes");
	CHECK(!tide_bitmap_test(bm, 10340));
	CHECK(!tide_bitmap_test(bm, UINT64_MAX));
}

static void test_next_dirty_clips(void)
{
	/* Disk of 4.5 chunks of 512-byte granules, less 12 bytes; dirty: byte 700, chunks 1 and 2, the end. */
	const uint64_t c = CHUNK * 512, size = 4 * c + c / 2 - 12;
	const struct {
		uint64_t off, len_max;
		int found;
		uint64_t start, len;
	} rows[] = {
		{ 0, UINT64_MAX, 1, 512, 512 },
		{ 512, UINT64_MAX, 1, 512, 512 },
		{ 600, UINT64_MAX, 1, 600, 424 },
		{ 1023, UINT64_MAX, 1, 1023, 1 },
		{ 600, 424, 1, 600, 424 },
		{ 600, 423, 1, 600, 423 },
		{ 600, 1, 1, 600, 1 },
		{ 600, 0, 0, 0, 0 },
		{ 0, 100, 1, 512, 100 },
		{ 1024, UINT64_MAX, 1, c, 2 * c },
		{ c - 1, UINT64_MAX, 1, c, 2 * c },
		{ c + 5, UINT64_MAX, 1, c + 5, 2 * c - 5 },
		{ c + 5, c, 1, c + 5, c },
		{ 2 * c, UINT64_MAX, 1, 2 * c, c },
		{ 3 * c - 1, UINT64_MAX, 1, 3 * c - 1, 1 },
		{ 3 * c, UINT64_MAX, 1, size - 500, 500 },
		{ size - 500, 499, 1, size - 500, 499 },
		{ size - 1, UINT64_MAX, 1, size - 1, 1 },
		{ size, UINT64_MAX, 0, 0, 0 },
		{ UINT64_MAX, UINT64_MAX, 0, 0, 0 },
	};
	TIDE_AUTOBITMAP struct tide_bitmap *bm = make(size, 512);

	set(bm, 700, 1);
	set(bm, c, 2 * c);
	set(bm, size - 1, 1);
	for (size_t i = 0; i < TIDE_ARRAY_SIZE(rows); i++) {
		uint64_t start = 0, len = 0;

		UNIT_ROW("%" PRIu64 " max %" PRIu64, rows[i].off, rows[i].len_max);
		CHECK_EQ_I64(tide_bitmap_next_dirty(bm, rows[i].off, rows[i].len_max, &start, &len), rows[i].found);
		CHECK_EQ_U64(start, rows[i].start);
		CHECK_EQ_U64(len, rows[i].len);
	}
}

static void test_largest_disk(void)
{
	TIDE_AUTOBITMAP struct tide_bitmap *bm = make(UINT64_MAX, 2 * G), *other = make(UINT64_MAX, G);
	uint64_t start, len;

	set(bm, UINT64_MAX - 1, 1);
	CHECK(tide_bitmap_next_dirty(bm, 0, UINT64_MAX, &start, &len) == 1);
	CHECK_EQ_U64(start, UINT64_MAX - 2 * G + 1);
	CHECK_EQ_U64(len, 2 * G - 1);
	merge(other, bm);
	CHECK_EQ_U64(tide_bitmap_count(other), 2);
	tide_bitmap_clear(bm);
	merge(bm, other);
	CHECK_EQ_U64(tide_bitmap_count(bm), 1);
	set(bm, 0, UINT64_MAX);
	CHECK(tide_bitmap_next_dirty(bm, 1, UINT64_MAX, &start, &len) == 1);
	CHECK_EQ_U64(start, 1);
	CHECK_EQ_U64(len, UINT64_MAX - 1);
	CHECK(tide_bitmap_next_dirty(bm, UINT64_MAX - 1, 5, &start, &len) == 1);
	CHECK_EQ_U64(len, 1);
}

/* What QEMU 7.2's x-debug-block-dirty-bitmap-sha256 answers. */
static void test_sha256_as_qemu(void)
{
	static const struct {
		unsigned bits, n, set[7];
		const char *hex;
	} rows[] = {
		{ 0, 0, { 0 }, "af5570f5a1810b7af78caf4bc70a660f0df51e42baf91d4de5b2328de0e83dfc" },
		{ 16, 0, { 0 }, "af5570f5a1810b7af78caf4bc70a660f0df51e42baf91d4de5b2328de0e83dfc" },
		{ 16, 1, { 0 }, "7c9fa136d4413fa6173637e883b6998d32e1d675f88cddff9dcbcf331820f4b8" },
		{ 16, 1, { 1 }, "d86e8112f3c4c4442126f8e9f44f16867da487f29052bf91b810457db34209a4" },
		{ 16, 3, { 0, 3, 4 }, "bf5b0e89f1caed18c8d6ff15d17ecc5c6e0c89510b4bc6d7b4b51d4ed30999cb" },
		{ 17, 1, { 16 }, "41b8f24b79ae38bb5f3af44cf187d022c20517a6f576791e466d536517b68fb9" },
		{ 64, 1, { 63 }, "e6ad6c9a3a3b7658c35bacf6553fcb8ffe34387534a648fe18f875b8f7a86ddb" },
		{ 65, 1, { 64 }, "9d34149fbd1fe777eb238799054c8cbfbce372255f219f8740838def9bfd02db" },
		{ 66, 1, { 65 }, "c571327cb01ac1de6972713cbf6cc1fc3c2cab8b581ee0bc3fe6d8b56963fd5b" },
		{ 160, 2, { 0, 144 }, "b2f3dbcfb925e91206e13903b7cf697a7fc146768f2a067d3bf078f3cf1816bd" },
		{ 1024, 2, { 0, 1023 }, "fff2dcf70800e6fa77c0a6019d96c37ca6a020529bf02ce3ccd4994ab4188cf5" },
		{ 1024,
		  7,
		  { 0, 15, 16, 512, 513, 1022, 1023 },
		  "7abe3d7e3c794cfaf9b08bc9ce599192c96a2206f07b42d9997ff78fdd7af744" },
		{ 1024, 4, { 0, 16, 512, 1023 }, "3b7b88c192165a0a4640a3c1ef9226de9a5eb4530922c421157fb01ea35cb70a" },
		{ 2048, 3, { 1, 128, 129 }, "f2ff072e23fe73b837297a8a95faa09235d86a22e69c5a7880426a7e8671118d" },
	};

	for (size_t i = 0; i < TIDE_ARRAY_SIZE(rows); i++) {
		TIDE_AUTOBITMAP struct tide_bitmap *bm = make(rows[i].bits * 64 * K, 64 * K);
		char hex[65];

		UNIT_ROW("%u bits, %u set, first %u", rows[i].bits, rows[i].n, rows[i].set[0]);
		for (unsigned b = 0; b < rows[i].n; b++)
			set(bm, rows[i].set[b] * 64 * K, 1);
		tide_bitmap_sha256(bm, hex);
		CHECK_STR(hex, rows[i].hex);
	}
}

/* Where QEMU sets whole words for an all-ones table entry, the tail here stays zero. */
static void test_sha256_tail_stays_zero(void)
{
	static const char masked[] = "3d73c71ad63f39a8a47bee131c1705f2b8c446a26c36ce5a9b6e6e4162fc9f86";
	struct tide_error err = TIDE_ERROR_INIT;
	TIDE_AUTOBITMAP struct tide_bitmap *bm = make(M, 64 * K), *other = make(M, 64 * K);
	char hex[65];

	CHECK_OK(tide_bitmap_put_chunk(bm, 0, NULL, &err), &err);
	CHECK_EQ_U64(tide_bitmap_count(bm), 16);
	tide_bitmap_sha256(bm, hex);
	CHECK_STR(hex, masked);
	set(other, 0, M);
	tide_bitmap_sha256(other, hex);
	CHECK_STR(hex, masked);
}

/* ---- merge, resize, chunks --------------------------------------------------------- */

static void test_merge_expands_clipped(void)
{
	static const struct {
		uint64_t granularity, count;
	} rows[] = { { 512, 162 }, { 4 * K, 21 }, { 64 * K, 2 }, { 128 * K, 1 }, { 256 * K, 1 }, { 2 * G, 1 } };
	TIDE_AUTOBITMAP struct tide_bitmap *coarse = make(1000448, 128 * K);

	set(coarse, 7 * 128 * K, 1);
	for (size_t i = 0; i < TIDE_ARRAY_SIZE(rows); i++) {
		UNIT_ROW("granularity %" PRIu64, rows[i].granularity);
		TIDE_AUTOBITMAP struct tide_bitmap *to = make(1000448, rows[i].granularity);
		merge(to, coarse);
		CHECK_EQ_U64(tide_bitmap_count(to), rows[i].count);
		merge(to, coarse);
		CHECK_EQ_U64(tide_bitmap_count(to), rows[i].count);
		/* And back: fine to coarse. */
		TIDE_AUTOBITMAP struct tide_bitmap *back = make(1000448, 128 * K);
		merge(back, to);
		CHECK(tide_bitmap_test(back, 7 * 128 * K));
	}
	CHECK_EQ_U64(tide_bitmap_count(coarse), 1);
}

/* Fine to coarse, where a run of the source ends on the edge of a granule of the target. */
static void test_merge_run_ends_at_edge(void)
{
	static const struct {
		uint64_t off[2], end[2], count;
	} rows[] = {
		{ { 0, 66 * K }, { 64 * K, 67 * K }, 2 },    { { 0, 64 * K + 512 }, { 64 * K, 65 * K }, 2 },
		{ { 0, 129 * K }, { 128 * K, 130 * K }, 3 }, { { 63 * K, 129 * K }, { 65 * K, 130 * K }, 3 },
		{ { 0, 65 * K }, { 1 * K, 128 * K }, 2 },
	};

	for (size_t i = 0; i < TIDE_ARRAY_SIZE(rows); i++) {
		TIDE_AUTOBITMAP struct tide_bitmap *fine = make(130 * K, 512), *coarse = make(130 * K, 64 * K);

		UNIT_ROW("%zu", i);
		for (unsigned k = 0; k < 2; k++)
			set(fine, rows[i].off[k], rows[i].end[k] - rows[i].off[k]);
		merge(coarse, fine);
		CHECK_EQ_U64(tide_bitmap_count(coarse), rows[i].count);
	}
}

static void test_merge_refuses_other_size(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	TIDE_AUTOBITMAP struct tide_bitmap *dst = make(M, 64 * K), *src = make(2 * M, 64 * K);

	set(src, 0, 2 * M);
	CHECK(tide_bitmap_merge(dst, src, &err) == -1);
	CHECK_ERR(&err, TIDE_E_REFUSED,
	          "Bitmaps are of different sizes (destination size is 1048576, source size is 2097152) "
	          "and can't be merged");
	CHECK_EQ_U64(tide_bitmap_count(dst), 0);
	merge(src, src);
	CHECK_EQ_U64(tide_bitmap_count(src), 32);
}

static void test_merge_full_chunks(void)
{
	const uint64_t c = CHUNK * 512;
	TIDE_AUTOBITMAP struct tide_bitmap *a = make(4 * c, 512), *b = make(4 * c, 512);

	set(a, 0, c); /* full over clean */
	set(a, c, c); /* full over mixed */
	set(b, c + 512, 512);
	set(a, 2 * c + 512, 512); /* mixed over full */
	set(b, 2 * c, c);
	set(a, 3 * c + 512, 1024); /* mixed over mixed */
	set(b, 3 * c + 1024, 1024);
	merge(b, a);
	CHECK_EQ_U64(tide_bitmap_count(b), 3 * CHUNK + 3);
	CHECK_EQ_U64(tide_bitmap_count(a), 2 * CHUNK + 3);
	/* What was copied is not shared. */
	reset(a, 0, 4 * c);
	CHECK_EQ_U64(tide_bitmap_count(b), 3 * CHUNK + 3);
	CHECK(tide_bitmap_test(b, 3 * c + 2047) && !tide_bitmap_test(b, 3 * c + 2048));
}

static void test_resize(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	TIDE_AUTOBITMAP struct tide_bitmap *bm = make(M, 128 * K);

	set(bm, 0, M);
	/* A granule of which 512 bytes are left keeps its bit; what is cut off is gone for good. */
	CHECK_OK(tide_bitmap_resize(bm, 128 * K + 512, &err), &err);
	CHECK_EQ_U64(tide_bitmap_count(bm), 2);
	CHECK_EQ_U64(tide_bitmap_bits(bm), 2);
	CHECK_OK(tide_bitmap_resize(bm, M + 1, &err), &err);
	CHECK_EQ_U64(tide_bitmap_count(bm), 2);
	CHECK_EQ_U64(tide_bitmap_bits(bm), 9);
	CHECK(tide_bitmap_test(bm, 256 * K - 1) && !tide_bitmap_test(bm, 256 * K));
	CHECK_OK(tide_bitmap_resize(bm, 0, &err), &err);
	CHECK_EQ_U64(tide_bitmap_count(bm), 0);
	CHECK_OK(tide_bitmap_resize(bm, M, &err), &err);
	CHECK_EQ_U64(tide_bitmap_count(bm), 0);
}

static void test_resize_cuts_full_chunk(void)
{
	const uint64_t c = CHUNK * 512;
	static const struct {
		uint64_t chunks, bits;
	} rows[] = { { 3, 0 }, { 2, 1 }, { 2, 0 }, { 1, CHUNK - 1 }, { 1, 64 }, { 1, 0 }, { 0, 5 }, { 0, 0 } };
	struct tide_error err = TIDE_ERROR_INIT;

	for (size_t i = 0; i < TIDE_ARRAY_SIZE(rows); i++) {
		uint64_t size = rows[i].chunks * c + rows[i].bits * 512;
		TIDE_AUTOBITMAP struct tide_bitmap *bm = make(3 * c, 512);

		UNIT_ROW("%" PRIu64, size);
		set(bm, 0, 3 * c);
		CHECK_OK(tide_bitmap_resize(bm, size, &err), &err);
		CHECK_EQ_U64(tide_bitmap_count(bm), size / 512);
		CHECK_OK(tide_bitmap_resize(bm, 4 * c, &err), &err);
		CHECK_EQ_U64(tide_bitmap_count(bm), size / 512);
		CHECK(!tide_bitmap_test(bm, size));
		CHECK(!size || tide_bitmap_test(bm, size - 1));
	}
}

static void test_chunks(void)
{
	const uint64_t g = 512, c = CHUNK * g, size = 3 * c + 70 * g - 1;
	struct tide_error err = TIDE_ERROR_INIT;
	TIDE_AUTOBITMAP struct tide_bitmap *bm = make(size, g), *to = make(size, g);
	const uint8_t *data;
	uint8_t block[TIDE_BITMAP_CHUNK_BYTES], buf[TIDE_BITMAP_CHUNK_BYTES] __attribute__((aligned(8)));

	set(bm, c, c);
	set(bm, 2 * c + 9 * g, 1);
	for (unsigned i = 0; i < 70; i++)
		set(bm, 3 * c + i * g, 1);
	CHECK_EQ_U64(tide_bitmap_next_chunk(bm, 0), 1);
	CHECK_EQ_U64(tide_bitmap_next_chunk(bm, 3), 3);
	CHECK_EQ_U64(tide_bitmap_next_chunk(bm, 4), 4);
	CHECK(tide_bitmap_get_chunk(bm, 0, buf, &data) == TIDE_BITMAP_CHUNK_CLEAN);
	CHECK_EQ_U64(data[0], 0);
	CHECK(tide_bitmap_get_chunk(bm, 1, buf, &data) == TIDE_BITMAP_CHUNK_FULL);
	CHECK_EQ_U64(data[4095], 0xff);
	CHECK(tide_bitmap_get_chunk(bm, 2, buf, &data) == TIDE_BITMAP_CHUNK_MIXED);
	CHECK_EQ_U64(data[0], 0);
	CHECK_EQ_U64(data[1], 2);
	CHECK(tide_bitmap_get_chunk(bm, 3, buf, &data) == TIDE_BITMAP_CHUNK_FULL);
	CHECK_EQ_U64(data[8], 0x3f);
	CHECK_EQ_U64(data[9], 0);
	CHECK(tide_bitmap_get_chunk(bm, 4, buf, &data) == TIDE_BITMAP_CHUNK_CLEAN);

	/* Bit by bit is as full as all at once. */
	for (unsigned i = 0; i < CHUNK; i++)
		set(to, c + i * g, 1);
	CHECK(tide_bitmap_get_chunk(to, 1, buf, &data) == TIDE_BITMAP_CHUNK_FULL);

	memset(block, 0, sizeof(block));
	block[7] = 0x81;
	CHECK_OK(tide_bitmap_put_chunk(to, 1, block, &err), &err);
	CHECK_EQ_U64(tide_bitmap_count(to), 2);
	CHECK(tide_bitmap_test(to, c + 56 * g) && tide_bitmap_test(to, c + 63 * g));
	CHECK_OK(tide_bitmap_put_chunk(to, 1, NULL, &err), &err);
	CHECK_EQ_U64(tide_bitmap_count(to), CHUNK);
	memset(block, 0, sizeof(block));
	CHECK_OK(tide_bitmap_put_chunk(to, 1, block, &err), &err);
	CHECK_EQ_U64(tide_bitmap_count(to), 0);
	CHECK_EQ_U64(tide_bitmap_next_chunk(to, 0), 4);
	memset(block, 0xff, sizeof(block));
	CHECK_OK(tide_bitmap_put_chunk(to, 3, block, &err), &err);
	CHECK_EQ_U64(tide_bitmap_count(to), 70);
	CHECK_OK(tide_bitmap_put_chunk(to, 2, block, &err), &err);
	CHECK_EQ_U64(tide_bitmap_count(to), 70 + CHUNK);
	CHECK(tide_bitmap_put_chunk(to, 4, block, &err) == -1);
	CHECK_ERR(&err, TIDE_E_REFUSED, "Chunk 4 is not within the bitmap of 4 chunks");
}

/* As a list up to so many bits, as a block from then on; in whatever form, the same bits. */
static void test_lists(void)
{
	const uint64_t g = 512, size = CHUNK * g + 5 * g;
	TIDE_AUTOBITMAP struct tide_bitmap *bm = make(size, g), *copy = NULL;
	struct tide_error err = TIDE_ERROR_INIT;
	const uint16_t *pos;
	uint64_t start, len;

	for (unsigned i = 0; i < TIDE_BITMAP_LIST_MAX; i++) /* from both ends inwards */
		set(bm, (i % 2 ? CHUNK - i : i) * g, 1);
	CHECK_EQ_U64(tide_bitmap_get_list(bm, 0, &pos), TIDE_BITMAP_LIST_MAX);
	for (unsigned i = 1; i < TIDE_BITMAP_LIST_MAX; i++)
		CHECK(pos[i - 1] < pos[i]);
	set(bm, 0, g);
	CHECK_EQ_U64(tide_bitmap_count(bm), TIDE_BITMAP_LIST_MAX);
	copy = tide_bitmap_copy(bm, &err);
	CHECK(copy && tide_bitmap_get_list(copy, 0, &pos) == TIDE_BITMAP_LIST_MAX);
	set(bm, 1000 * g, 1);
	CHECK_EQ_U64(tide_bitmap_get_list(bm, 0, &pos), 0);
	CHECK_EQ_U64(tide_bitmap_count(bm), TIDE_BITMAP_LIST_MAX + 1);
	merge(bm, copy);
	CHECK_EQ_U64(tide_bitmap_count(bm), TIDE_BITMAP_LIST_MAX + 1);
	reset(copy, 2 * g, size - 2 * g);
	CHECK_EQ_U64(tide_bitmap_count(copy), 1);
	CHECK_EQ_U64(tide_bitmap_next_dirty(copy, 0, UINT64_MAX, &start, &len), 1);
	CHECK_EQ_U64(start, 0);
	reset(copy, 0, g);
	CHECK_EQ_U64(tide_bitmap_next_chunk(copy, 0), 2);
	/* All five bits of the last chunk: full, whatever it is kept as. */
	set(copy, CHUNK * g, 5 * g);
	CHECK_EQ_U64(tide_bitmap_get_list(copy, 1, &pos), 0);
	CHECK_OK(tide_bitmap_put_list(copy, 1, (const uint16_t[]){ 1, 3, 5, 900 }, 4, &err), &err);
	CHECK_EQ_U64(tide_bitmap_count(copy), 2);
	CHECK(tide_bitmap_put_list(copy, 2, (const uint16_t[]){ 1 }, 1, &err) == -1);
	CHECK_ERR(&err, TIDE_E_REFUSED, "Chunk 2 is not within the bitmap of 2 chunks");
}

/* ---- size and memory --------------------------------------------------------------- */

#ifndef __SANITIZE_THREAD__
static uint64_t resident_bytes(void)
{
	FILE *f = fopen("/proc/self/statm", "r");
	unsigned long total = 0, resident = 0;

	if (!f || fscanf(f, "%lu %lu", &total, &resident) != 2)
		resident = 0;
	if (f)
		fclose(f);
	return resident * (uint64_t)sysconf(_SC_PAGESIZE);
}
#endif

/* The whole table would be 32 MiB, all the bits 16 GiB. */
static void test_sparse_64_tib(void)
{
#ifndef __SANITIZE_THREAD__
	uint64_t before = resident_bytes();
#endif
	TIDE_AUTOBITMAP struct tide_bitmap *bm = make(64 * T, 512), *coarse = make(64 * T, 64 * K);
	uint64_t start, len;

	for (unsigned i = 0; i < 1000; i++) {
		CHECK(!tide_bitmap_next_dirty(bm, i * G, UINT64_MAX, &start, &len));
	}
	for (unsigned i = 1; i <= 64; i++)
		set(bm, i * T - 1, 1);
	set(bm, 3 * T, 20 * G);
	CHECK_EQ_U64(tide_bitmap_count(bm), 64 + 20 * G / 512);
	CHECK(tide_bitmap_next_dirty(bm, 10 * T, UINT64_MAX, &start, &len) == 1);
	CHECK_EQ_U64(start, 11 * T - 512);
	CHECK_EQ_U64(len, 512);
	CHECK(tide_bitmap_next_dirty(bm, 2 * T, UINT64_MAX, &start, &len) == 1);
	CHECK_EQ_U64(start, 3 * T - 512);
	CHECK_EQ_U64(len, 20 * G + 512);
	merge(coarse, bm);
	CHECK_EQ_U64(tide_bitmap_count(coarse), 64 + 20 * G / (64 * K));
	tide_bitmap_clear(bm);
	merge(bm, coarse);
	CHECK_EQ_U64(tide_bitmap_count(bm), (64 + 20 * G / (64 * K)) * 128);
	TIDE_AUTOBITMAP struct tide_bitmap *copy = tide_bitmap_copy(bm, NULL);
	CHECK(copy && tide_bitmap_count(copy) == tide_bitmap_count(bm));
#ifndef __SANITIZE_THREAD__
	CHECK(before > 0 && resident_bytes() < before + 24 * M);
#endif
}

/* As blocks they would be 128 MiB. */
static void test_million_scattered(void)
{
#if !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
	uint64_t before = resident_bytes();
#endif
	TIDE_AUTOBITMAP struct tide_bitmap *bm = make(64 * T, 64 * K);
	uint64_t seed = 7, n = 0, off = 0, start, len;

	for (unsigned i = 0; i < 1000000; i++)
		set(bm, rnd(&seed) % (64 * T), 1);
	CHECK(tide_bitmap_count(bm) > 990000);
	while (tide_bitmap_next_dirty(bm, off, UINT64_MAX, &start, &len)) {
		n += len / (64 * K);
		off = start + len;
	}
	CHECK_EQ_U64(n, tide_bitmap_count(bm));
#if !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
	CHECK(before > 0 && resident_bytes() < before + 8 * M);
#endif
}

static long allocations_left;

static bool fails_now(void)
{
	return allocations_left-- <= 0;
}

typedef int nomem_fn(struct tide_bitmap *bm, const struct tide_bitmap *other, struct tide_error *err);

static int nomem_new(struct tide_bitmap *bm, const struct tide_bitmap *other, struct tide_error *err)
{
	TIDE_AUTOBITMAP struct tide_bitmap *made = tide_bitmap_new(M, 512, err);
	return made ? 0 : -1;
}

static int nomem_copy(struct tide_bitmap *bm, const struct tide_bitmap *other, struct tide_error *err)
{
	TIDE_AUTOBITMAP struct tide_bitmap *made = tide_bitmap_copy(other, err);
	return made ? 0 : -1;
}

static int nomem_set(struct tide_bitmap *bm, const struct tide_bitmap *other, struct tide_error *err)
{
	return tide_bitmap_set(bm, 0, tide_bitmap_size(bm) - 1, err);
}

static int nomem_reset(struct tide_bitmap *bm, const struct tide_bitmap *other, struct tide_error *err)
{
	return tide_bitmap_reset(bm, 512, 512, err);
}

static int nomem_merge(struct tide_bitmap *bm, const struct tide_bitmap *other, struct tide_error *err)
{
	return tide_bitmap_merge(bm, other, err);
}

static int nomem_resize(struct tide_bitmap *bm, const struct tide_bitmap *other, struct tide_error *err)
{
	return tide_bitmap_resize(bm, 512, err);
}

static int nomem_put_chunk(struct tide_bitmap *bm, const struct tide_bitmap *other, struct tide_error *err)
{
	return tide_bitmap_put_chunk(bm, 1, NULL, err);
}

/* Each allocation fails in turn; the bitmap stays whole and its count right. */
static void test_out_of_memory(void)
{
	static nomem_fn *const rows[] = { nomem_new,   nomem_copy,   nomem_set,      nomem_reset,
		                          nomem_merge, nomem_resize, nomem_put_chunk };
	const uint64_t c = CHUNK * UINT64_C(512), size = 2 * c + 5000;
	struct tide_error err = TIDE_ERROR_INIT;

	for (size_t i = 0; i < TIDE_ARRAY_SIZE(rows); i++) {
		int ret = -1;

		for (long n = 0; ret != 0 && n < 20; n++) {
			TIDE_AUTOBITMAP struct tide_bitmap *bm = make(size, 512), *other = make(size, 512);
			uint64_t off = 0, start, len, count = 0;

			UNIT_ROW("row %zu, allocation %ld", i, n);
			set(bm, 0, c);
			set(other, c + 700, 1);
			set(other, 2 * c, 5000);
			allocations_left = n;
			tide_mem_set_hook(fails_now);
			ret = rows[i](bm, other, &err);
			tide_mem_set_hook(NULL);
			if (ret < 0) {
				CHECK_ERR(&err, TIDE_E_NOMEM, NULL);
				CHECK_EQ_U64(tide_bitmap_size(bm), size);
				CHECK(tide_bitmap_count(bm) >= CHUNK);
			}
			while (tide_bitmap_next_dirty(bm, off, UINT64_MAX, &start, &len)) {
				count += (len + 511) / 512;
				off = start + len;
			}
			CHECK_EQ_U64(tide_bitmap_count(bm), count);
		}
		CHECK_OK(ret, &err);
	}
}

int main(void)
{
	UNIT_RUN(test_granularity_limits);
	UNIT_RUN(test_geometry);
	UNIT_RUN(test_set_touches_reset_covers);
	UNIT_RUN(test_range_outside_refused);
	UNIT_RUN(test_next_dirty_clips);
	UNIT_RUN(test_largest_disk);
	UNIT_RUN(test_sha256_as_qemu);
	UNIT_RUN(test_sha256_tail_stays_zero);
	UNIT_RUN(test_merge_expands_clipped);
	UNIT_RUN(test_merge_run_ends_at_edge);
	UNIT_RUN(test_merge_refuses_other_size);
	UNIT_RUN(test_merge_full_chunks);
	UNIT_RUN(test_resize);
	UNIT_RUN(test_resize_cuts_full_chunk);
	UNIT_RUN(test_chunks);
	UNIT_RUN(test_lists);
	UNIT_RUN(test_sparse_64_tib);
	UNIT_RUN(test_million_scattered);
	UNIT_RUN(test_out_of_memory);
	return unit_done();
}
