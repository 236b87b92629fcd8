/* The sidecar's codec: round trips, kinds of records, memory. */
#include "base/error.h"
#include "sidecar_sample.h"

/* ---- sameness ---------------------------------------------------------------------- */

static void check_same_bitmap(struct tide_sidecar *a, struct tide_sidecar_bitmap *x, struct tide_sidecar *b,
                              struct tide_sidecar_bitmap *y)
{
	struct tide_error err = TIDE_ERROR_INIT;
	char hex[2][65];

	CHECK_STR(x->name, y->name);
	CHECK_EQ_U64(x->enabled, y->enabled);
	CHECK_EQ_U64(x->untracked, y->untracked);
	CHECK_EQ_U64(x->token, y->token);
	CHECK_STR(x->group ? x->group : "", y->group ? y->group : "");
	CHECK_EQ_U64(x->granularity, y->granularity);
	CHECK_EQ_U64(tide_sidecar_bitmap_count(x), tide_sidecar_bitmap_count(y));
	struct tide_bitmap *p = tide_sidecar_bitmap_load(a, x, &err);
	CHECK_PTR(p, &err);
	struct tide_bitmap *q = tide_sidecar_bitmap_load(b, y, &err);
	if (!CHECK_PTR(q, &err))
		exit(1);
	CHECK(x->bitmap == p && !x->encoded && y->bitmap == q && !y->encoded);
	CHECK_EQ_U64(tide_bitmap_size(p), tide_bitmap_size(q));
	CHECK_EQ_U64(tide_bitmap_granularity(q), y->granularity);
	tide_bitmap_sha256(p, hex[0]);
	tide_bitmap_sha256(q, hex[1]);
	CHECK_STR(hex[0], hex[1]);
	CHECK(!x->successor == !y->successor);
	if (x->successor && y->successor)
		check_same_bitmap(a, x->successor, b, y->successor);
}

/* Loads every bitmap of both. */
static void check_same(struct tide_sidecar *a, struct tide_sidecar *b)
{
	CHECK_EQ_U64(a->compatible, b->compatible);
	CHECK_EQ_U64(a->generation, b->generation);
	CHECK_EQ_U64(a->disk_size, b->disk_size);
	CHECK_STR(a->format, b->format);
	CHECK_EQ_U64(a->stamp.valid, b->stamp.valid);
	CHECK_EQ_U64(a->stamp.size, b->stamp.size);
	CHECK_EQ_I64(a->stamp.mtime_sec, b->stamp.mtime_sec);
	CHECK_EQ_U64(a->stamp.mtime_nsec, b->stamp.mtime_nsec);
	CHECK_EQ_U64(a->writer, b->writer);
	if (!CHECK_EQ_U64(a->n, b->n))
		return;
	for (size_t i = 0; i < a->n; i++)
		check_same_bitmap(a, a->items[i], b, b->items[i]);
}

/* There and back; once as the bytes came, once with every bitmap decoded. */
static void check_round_trip(struct tide_sidecar *sc)
{
	AUTOSTRBUF struct tide_strbuf bytes = TIDE_STRBUF_INIT, verbatim = TIDE_STRBUF_INIT, anew = TIDE_STRBUF_INIT;

	encode(sc, &bytes);
	AUTOSIDECAR struct tide_sidecar *back = decode(&bytes);
	for (size_t i = 0; i < back->n; i++)
		CHECK(!back->items[i]->bitmap && back->items[i]->encoded);
	encode(back, &verbatim);
	check_same_bytes(&bytes, &verbatim);
	check_same(sc, back);
	encode(back, &anew);
	check_same_bytes(&bytes, &anew);
}

/* ---- round trips ------------------------------------------------------------------- */

static void test_round_trip_empty(void)
{
	AUTOSIDECAR struct tide_sidecar *sc = make(0);
	AUTOSTRBUF struct tide_strbuf bytes = TIDE_STRBUF_INIT;

	check_round_trip(sc);
	encode(sc, &bytes);
	CHECK_EQ_U64(bytes.len, HEADER);
	add(sc, "b", 512);
	check_round_trip(sc);
}

static void test_round_trip_sample(void)
{
	static const unsigned kinds[][2] = { { FULL, LIST }, { ZSTD, 0 }, { PLAIN, FULL } };
	AUTOSIDECAR struct tide_sidecar *sc = make_sample();
	AUTOSTRBUF struct tide_strbuf bytes = TIDE_STRBUF_INIT;

	check_round_trip(sc);
	encode(sc, &bytes);
	for (unsigned e = 0; e < 3; e++)
		for (unsigned r = 0; r < 2 && kinds[e][r]; r++)
			CHECK_EQ_U64(tide_get_le16(record_at((uint8_t *)bytes.buf, e, r) + 8), kinds[e][r]);
	CHECK_EQ_U64(tide_get_le64(entry_at((uint8_t *)bytes.buf, 3) + 32), 0);
	sc->stamp.valid = false;
	sc->stamp.size = 0;
	sc->stamp.mtime_sec = 0;
	sc->stamp.mtime_nsec = 0;
	check_round_trip(sc);
}

static void test_round_trip_names(void)
{
	char longest[1024], *every;
	AUTOSIDECAR struct tide_sidecar *sc = make(M);

	memset(longest, 'x', 1023);
	longest[1023] = '\0';
	add(sc, longest, 512);
	add(sc, "\"quoted\" \\ 'and' {json}", 512);
	add(sc, "two\nlines\r\n\ttab", 512);
	add(sc, "invalid \xff\xc0\x80 UTF-8", 512);
	memset(longest, 'y', 255);
	longest[255] = '\0';
	every = add(sc, longest, 512)->name;
	for (unsigned i = 0; i < 255; i++)
		every[i] = (char)(i + 1);
	for (unsigned n = 1; n < 20; n++) {
		memset(longest, 'a' + (int)n, n);
		longest[n] = '\0';
		add(sc, longest, 512);
	}
	check_round_trip(sc);
	CHECK_EQ_I64(tide_sidecar_find(sc, "two\nlines\r\n\ttab"), 2);
}

static void test_round_trip_many(void)
{
	AUTOSIDECAR struct tide_sidecar *sc = make(G + 1);

	for (unsigned i = 0; i < 1000; i++) {
		char name[32];

		snprintf(name, sizeof(name), "bitmap%u", i * 7919 % 1000);
		struct tide_sidecar_bitmap *e = add(sc, name, UINT64_C(512) << i % 23);
		set_bits(e, i % tide_bitmap_bits(e->bitmap), 1);
		if (i % 3 == 0) {
			e->token = i + 1;
			set_bits(add(sc, NULL, e->granularity), 0, 1);
		}
	}
	check_round_trip(sc);
}

static void put_base(struct tide_base **base, unsigned byte, const char *path)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_id id = { { (uint8_t)byte } };

	*base = tide_lineage_base_new(&id, 1700000000 + byte, path, &err);
	CHECK_PTR(*base, &err);
}

/* A sidecar with all that its lineage area can hold. */
static struct tide_sidecar *make_lineage(void)
{
	static struct tide_birth birth = { .id = { { 1 } }, .disk = { { 2 } }, .time = 3, .sync = TIDE_SYNC_TOP };
	struct tide_sidecar *sc = make_sample();
	struct tide_error err = TIDE_ERROR_INIT;

	memset(sc->disk.bytes, 0xd1, sizeof(sc->disk.bytes));
	put_base(&sc->items[0]->base, 7, "/backups/one.qcow2");
	put_base(&sc->items[2]->base, 8, "/b");
	memset(sc->items[2]->base->fingerprint, 'a', 64);
	sc->items[2]->base->paused = (struct tide_stamp){ true, 5, -6, 7, { 0 } };
	sc->birth = tide_birth_copy(&birth, &err);
	sc->last_full = tide_mem_alloc(1, sizeof(*sc->last_full), &err);
	sc->last_full->stamp = (struct tide_stamp){ true, 1, 2, 3, { 0 } };
	CHECK_OK(tide_lineage_named_add(&sc->inside, "in\xc3\xa4", sc->items[0]->base, &err), &err);
	CHECK_OK(tide_lineage_named_add(&sc->inside, "n", sc->items[2]->base, &err), &err);
	sc->last_full->base = (struct tide_base){ .id = { { 9 } }, .time = 10, .path = strdup("/full.img") };
	return sc;
}

static void check_same_base(const struct tide_base *a, const struct tide_base *b)
{
	if (!CHECK(a && b))
		return;
	CHECK(tide_lineage_base_is_same(a, b));
	CHECK_EQ_I64(a->time, b->time);
	CHECK_STR(a->path, b->path);
	CHECK_STR(a->fingerprint, b->fingerprint);
	CHECK_EQ_U64(a->paused.valid, b->paused.valid);
	CHECK(!a->paused.valid || tide_stamp_is_equal(&a->paused, &b->paused));
}

static void test_round_trip_lineage(void)
{
	AUTOSIDECAR struct tide_sidecar *sc = make_lineage();
	AUTOSTRBUF struct tide_strbuf bytes = TIDE_STRBUF_INIT;
	struct tide_error err = TIDE_ERROR_INIT;

	check_round_trip(sc);
	encode(sc, &bytes);
	AUTOSIDECAR struct tide_sidecar *back = decode(&bytes);
	AUTOSIDECAR struct tide_sidecar *copy = tide_sidecar_copy(back, &err);
	CHECK_PTR(copy, &err);
	CHECK(tide_id_is_same(&sc->disk, &copy->disk));
	check_same_base(sc->items[0]->base, copy->items[0]->base);
	CHECK(!copy->items[1]->base);
	check_same_base(sc->items[2]->base, copy->items[2]->base);
	check_same_base(&sc->last_full->base, &copy->last_full->base);
	CHECK_EQ_U64(copy->inside.n, 2);
	check_same_base(sc->items[0]->base, tide_lineage_named_find(&copy->inside, "in\xc3\xa4"));
	check_same_base(sc->items[2]->base, tide_lineage_named_find(&copy->inside, "n"));
	CHECK(!tide_lineage_named_find(&copy->inside, "in"));
	CHECK(tide_stamp_is_equal(&sc->last_full->stamp, &copy->last_full->stamp));
	CHECK(copy->birth && tide_id_is_same(&sc->birth->id, &copy->birth->id));
}

/* A sidecar of a block device. */
static struct tide_sidecar *make_device(void)
{
	struct tide_sidecar *sc = make_sample();

	sc->stamp = (struct tide_stamp){ 0 };
	sc->device = (struct tide_device){
		.is_one = true,
		.size = 3 * G,
		.start = 2048,
		.diskseq = 77,
		.boot = { 1, 2, 3 },
		.serial = "naa.5000c500a1b2c3d4",
		.counter = { TIDE_COUNTER_KNOWN, 123456, 234567 },
		.doubt = TIDE_DEVICE_ATTACHED,
		.gap = TIDE_DEVICE_NOT_COUNTED,
	};
	sc->items[1]->unchecked = true;
	return sc;
}

static void test_round_trip_device(void)
{
	for (int i = 0; i < 3; i++) {
		AUTOSIDECAR struct tide_sidecar *sc = make_device();
		AUTOSTRBUF struct tide_strbuf bytes = TIDE_STRBUF_INIT;

		if (i > 0)
			sc->device.counter = (struct tide_counter){ .state = TIDE_COUNTER_UNKNOWN };
		memset(sc->device.serial, i > 1 ? 0 : 's', i ? TIDE_DEVICE_SERIAL_MAX : 1);
		check_round_trip(sc);
		encode(sc, &bytes);
		AUTOSIDECAR struct tide_sidecar *back = decode(&bytes);
		CHECK_EQ_U64(tide_get_le64((uint8_t *)bytes.buf + 16), 3);
		CHECK(back->device.is_one);
		CHECK_EQ_U64(back->device.size, 3 * G);
		CHECK_EQ_U64(back->device.start, 2048);
		CHECK_EQ_U64(back->device.diskseq, 77);
		CHECK_MEM(back->device.boot, sc->device.boot, TIDE_DEVICE_BOOT_BYTES);
		CHECK_STR(back->device.serial, sc->device.serial);
		CHECK_EQ_U64(back->device.counter.state, sc->device.counter.state);
		CHECK_EQ_U64(back->device.counter.own, sc->device.counter.own);
		CHECK_EQ_U64(back->device.counter.whole, sc->device.counter.whole);
		CHECK_EQ_U64(back->device.doubt, TIDE_DEVICE_ATTACHED);
		CHECK_EQ_U64(back->device.gap, TIDE_DEVICE_NOT_COUNTED);
		CHECK(!back->items[0]->unchecked && back->items[1]->unchecked);
	}
}

/* A field of the lineage area gets another value, and the area a checksum that fits. */
static void check_field(const struct tide_sidecar *sc, size_t at, unsigned len, uint64_t value, const char *error)
{
	AUTOSTRBUF struct tide_strbuf bytes = TIDE_STRBUF_INIT;
	uint8_t *area;

	encode(sc, &bytes);
	area = (uint8_t *)bytes.buf + HEADER + tide_get_le32((uint8_t *)bytes.buf + 104);
	for (unsigned b = 0; b < len; b++)
		area[at + b] = (uint8_t)(value >> 8 * b);
	tide_put_le32(area + 4, tide_checksum_crc32c(0, area + 8, tide_get_le32(area) - 8));
	UNIT_ROW("%s", error);
	check_refused(bytes.buf, bytes.len, strstr(error, "unknown") ? TIDE_E_UNSUPPORTED : TIDE_E_CORRUPT, error);
}

static void test_device_fields(void)
{
	static const struct {
		size_t at; /* in the payload */
		unsigned len;
		uint64_t value;
		const char *error;
	} rows[] = {
		{ -4, 4, 63, "length of the device at byte 344: expected 64 to 263, found 63" },
		{ 56, 4, 2, "device counter's flag at byte 400: expected 0 to 1, found 2" },
		{ 60, 2, 4, "device's doubt at byte 404: expected 0 to 3, found 4" },
		{ 62, 2, 6, "device's gap at byte 406: expected 0 to 5, found 6" },
		{ 66, 1, 0, "device's serial number at byte 408: expected no NUL, found one" },
	};

	for (size_t i = 0; i < TIDE_ARRAY_SIZE(rows); i++) {
		AUTOSIDECAR struct tide_sidecar *sc = make_device();

		check_field(sc, 32 + rows[i].at, rows[i].len, rows[i].value, rows[i].error);
	}
}

/* No byte of the area can change, and no byte of the file can be missing. */
static void test_lineage_damage(void)
{
	AUTOSIDECAR struct tide_sidecar *sc = make_lineage();
	AUTOSTRBUF struct tide_strbuf bytes = TIDE_STRBUF_INIT;
	size_t area;

	encode(sc, &bytes);
	area = HEADER + tide_get_le32((uint8_t *)bytes.buf + 104);
	for (size_t i = 0; i < tide_get_le32((uint8_t *)bytes.buf + area); i++) {
		bytes.buf[area + i] ^= 1;
		AUTOSIDECAR struct tide_sidecar *back = tide_sidecar_decode(bytes.buf, bytes.len, NULL);
		UNIT_ROW("byte %zu", i);
		CHECK(!back);
		bytes.buf[area + i] ^= 1;
	}
	for (size_t len = area; len < area + 200; len++) {
		AUTOSIDECAR struct tide_sidecar *back = tide_sidecar_decode(bytes.buf, len, NULL);
		UNIT_ROW("cut to %zu", len);
		CHECK(!back);
	}
}

/* Each field of a record is checked, also where the checksum is right. */
static void test_lineage_fields(void)
{
	static const struct {
		size_t at; /* in the area */
		unsigned len;
		uint64_t value;
		const char *error;
	} rows[] = {
		{ 24, 2, 9, "lineage record at byte 336: unknown kind 9" },
		{ 28, 4, 5000, "length of a lineage record at byte 340: expected 696, found 5000" },
		{ 28, 4, 4, "length of a bitmap's base at byte 344: expected 8 to 4183, found 4" },
		{ 28, 4, 88, "base's length at byte 352: expected 81 to 4175, found 80" },
		{ 32, 8, 3, "number of a base's bitmap at byte 344: expected 0 to 2, found 3" },
		{ 32 + 8 + 56 + 20, 4, 2, "lineage stamp's flag at byte 428: expected 0 to 1, found 2" },
		{ 32 + 8 + 56 + 16, 4, 1000000000,
		  "lineage stamp's nanoseconds at byte 424: expected 0 to 999999999, found 1000000000" },
		{ 32 + 8 + 80, 1, 0, "base's path at byte 432: expected no NUL, found one" },
	};

	for (size_t i = 0; i < TIDE_ARRAY_SIZE(rows); i++) {
		AUTOSIDECAR struct tide_sidecar *sc = make_lineage();

		check_field(sc, rows[i].at, rows[i].len, rows[i].value, rows[i].error);
	}
}

/* One bitmap of each density, over whole and partial chunks. */
static void test_round_trip_densities(void)
{
	static const unsigned one_in[] = { 1, 2, 3, 20, 120, 128, 129, 130, 1000, 30000 };
	uint64_t seed = 99;

	for (unsigned tail = 0; tail < 70; tail += 23) {
		AUTOSIDECAR struct tide_sidecar *sc = make((2 * CHUNK + tail) * UINT64_C(512));
		for (size_t i = 0; i < TIDE_ARRAY_SIZE(one_in); i++) {
			char name[32];

			snprintf(name, sizeof(name), "1 in %u", one_in[i]);
			struct tide_sidecar_bitmap *e = add(sc, name, 512);
			for (uint64_t b = 0; b < tide_bitmap_bits(e->bitmap); b++)
				if (rnd(&seed) % one_in[i] == 0)
					set_bits(e, b, 1);
		}
		UNIT_ROW("tail %u", tail);
		check_round_trip(sc);
	}
}

/* 255 bits go into a list, 256 do not; a chunk whose last bit is set one by one is full. */
static void test_kind_limits(void)
{
	static const struct {
		unsigned bits, kind;
	} rows[] = { { 1, LIST }, { 255, LIST }, { 256, ZSTD }, { CHUNK - 1, ZSTD }, { CHUNK, FULL } };

	for (size_t i = 0; i < TIDE_ARRAY_SIZE(rows); i++) {
		AUTOSIDECAR struct tide_sidecar *sc = make(2 * CHUNK * 512);
		AUTOSTRBUF struct tide_strbuf bytes = TIDE_STRBUF_INIT;
		struct tide_sidecar_bitmap *e = add(sc, "b", 512);

		UNIT_ROW("%u bits", rows[i].bits);
		for (unsigned b = 0; b < rows[i].bits; b++)
			set_bits(e, CHUNK + b, 1);
		encode(sc, &bytes);
		CHECK_EQ_U64(tide_get_le16(record_at((uint8_t *)bytes.buf, 0, 0) + 8), rows[i].kind);
		check_round_trip(sc);
	}
}

static void test_huge_and_sparse(void)
{
	AUTOSIDECAR struct tide_sidecar *sc = make(64 * T);
	AUTOSTRBUF struct tide_strbuf bytes = TIDE_STRBUF_INIT;
	struct tide_sidecar_bitmap *e = add(sc, "fine", 512);

	set_bits(e, 0, 1);
	set_bits(e, UINT64_C(1) << 36, 100000);
	set_bits(e, (UINT64_C(1) << 37) - 1, 1);
	set_bits(add(sc, "coarse", 2 * G), 32767, 1);
	encode(sc, &bytes);
	CHECK(bytes.len < 1000);
	AUTOSIDECAR struct tide_sidecar *back = decode(&bytes);
	struct tide_bitmap *bm = tide_sidecar_bitmap_load(back, back->items[0], NULL);
	CHECK(bm && tide_bitmap_count(bm) == 100002);
	CHECK(bm && tide_bitmap_test(bm, 64 * T - 1) && !tide_bitmap_test(bm, 64 * T - 513));
}

static void test_million_random_bits(void)
{
	AUTOSIDECAR struct tide_sidecar *sc = make(16 * T);
	AUTOSTRBUF struct tide_strbuf bytes = TIDE_STRBUF_INIT;
	struct tide_sidecar_bitmap *e = add(sc, "b", 64 * K);
	uint64_t seed = 5;

	for (unsigned i = 0; i < 1000000; i++)
		set_bits(e, rnd(&seed) % (UINT64_C(1) << 28), 1);
	encode(sc, &bytes);
	/* Two bytes a bit and a small head a chunk. */
	CHECK(bytes.len < 2 * tide_bitmap_count(e->bitmap) + 20 * 8192);
	check_round_trip(sc);
}

static void test_encode_appends(void)
{
	AUTOSIDECAR struct tide_sidecar *sc = make_sample();
	AUTOSTRBUF struct tide_strbuf bytes = TIDE_STRBUF_INIT, after = TIDE_STRBUF_INIT;

	encode(sc, &bytes);
	tide_strbuf_adds(&after, "in front");
	encode(sc, &after);
	if (CHECK_EQ_U64(after.len, bytes.len + 8))
		CHECK_MEM(after.buf + 8, bytes.buf, bytes.len);
}

/* The sidecar that tidemark-sidecar.5 shows byte by byte: the format must not change unnoticed. */
static void test_bytes_of_manual(void)
{
	static const uint8_t expected[] = {
		0x89, 0x54, 0x49, 0x44, 0x45, 0x0d, 0x0a, 0x1a, 0x01, 0x00, 0x00, 0x00, 0x80, 0x00, 0x00, 0x00, 0x00,
		0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x02, 0x00,
		0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0xd4, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
		0xc0, 0x00, 0x00, 0x00, 0x00, 0x72, 0x61, 0x77, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
		0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0xc0, 0x00, 0x00, 0x00, 0x00, 0x00, 0xf1, 0x53, 0x65, 0x00,
		0x00, 0x00, 0x00, 0x05, 0x00, 0x00, 0x00, 0x01, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
		0x00, 0x00, 0x30, 0x00, 0x00, 0x00, 0x01, 0x00, 0x00, 0x00, 0x29, 0xaa, 0xa3, 0x56, 0x00, 0x00, 0x00,
		0x00, 0x00, 0x00, 0x00, 0x00, 0xf4, 0x95, 0xba, 0x4d, 0x30, 0x00, 0x00, 0x00, 0x02, 0x00, 0x10, 0x01,
		0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x02, 0x40, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0xb0,
		0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x24, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x62, 0x30,
		0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x02, 0x00, 0x04,
		0x00, 0x4a, 0xff, 0x1a, 0x56, 0x00, 0x00, 0x03, 0x00, 0x01, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
		0x01, 0x00, 0x00, 0x00, 0xd5, 0xcb, 0x54, 0xc7,
	};
	AUTOSIDECAR struct tide_sidecar *sc = make(3 * G);
	AUTOSTRBUF struct tide_strbuf bytes = TIDE_STRBUF_INIT;
	struct tide_sidecar_bitmap *e = add(sc, "b0", 64 * K);

	sc->generation = 2;
	sc->stamp = (struct tide_stamp){ true, 3 * G, 1700000000, 5, { 0 } };
	set_bits(e, 0, 1);
	set_bits(e, 3, 1);
	set_bits(e, CHUNK, 16384);
	encode(sc, &bytes);
	if (CHECK_EQ_U64(bytes.len, sizeof(expected)))
		CHECK_MEM(bytes.buf, expected, sizeof(expected));
}

/* ---- the list of bitmaps ----------------------------------------------------------- */

static void test_list(void)
{
	AUTOSIDECAR struct tide_sidecar *sc = make(M);
	struct tide_error err = TIDE_ERROR_INIT;

	CHECK_EQ_I64(tide_sidecar_find(sc, "b"), -1);
	for (unsigned i = 0; i < 20; i++) {
		char name[8];

		snprintf(name, sizeof(name), "%u", i);
		CHECK_OK(tide_sidecar_insert(sc, 0, tide_sidecar_bitmap_new(name, M, 512, NULL), &err), &err);
	}
	CHECK_EQ_I64(tide_sidecar_find(sc, "19"), 0);
	CHECK_EQ_I64(tide_sidecar_find(sc, "0"), 19);
	CHECK_EQ_I64(tide_sidecar_find(sc, "1"), 18);
	struct tide_sidecar_bitmap *e = tide_sidecar_take(sc, 18);
	CHECK_STR(e->name, "1");
	CHECK_EQ_I64(tide_sidecar_find(sc, "1"), -1);
	CHECK_EQ_I64(tide_sidecar_find(sc, "0"), 18);
	CHECK_OK(tide_sidecar_insert(sc, 3, e, &err), &err);
	CHECK_EQ_I64(tide_sidecar_find(sc, "1"), 3);
	CHECK_EQ_I64(tide_sidecar_find(sc, "16"), 4);
	CHECK_EQ_U64(sc->n, 20);
}

static void test_new_bitmap(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	char name[1025], text[1100];

	CHECK(!tide_sidecar_bitmap_new("", M, 3, &err));
	CHECK_ERR(&err, TIDE_E_REFUSED, "Bitmap name cannot be empty");
	CHECK(!tide_sidecar_bitmap_new("b", M, 3, &err));
	CHECK_ERR(&err, TIDE_E_REFUSED, "Granularity must be power of 2 and at least 512");
	memset(name, 'n', 1024);
	name[1024] = '\0';
	snprintf(text, sizeof(text), "Bitmap name too long: %s", name);
	CHECK(!tide_sidecar_bitmap_new(name, M, 512, &err));
	CHECK_ERR(&err, TIDE_E_REFUSED, text);
	struct tide_sidecar_bitmap *e = tide_sidecar_bitmap_new(NULL, M, 512, &err);
	if (!CHECK_PTR(e, &err))
		return;
	CHECK(!e->name && e->enabled && !e->token && e->bitmap && e->granularity == 512);
	tide_sidecar_bitmap_free(e);
	tide_sidecar_bitmap_free(NULL);
	tide_sidecar_free(NULL);
}

/* Whether it has been decoded before or not; the one beside it stays as it came. */
static void test_clear(void)
{
	for (unsigned decoded = 0; decoded < 2; decoded++) {
		struct tide_error err = TIDE_ERROR_INIT;
		AUTOSIDECAR struct tide_sidecar *sample = make_sample();
		AUTOSTRBUF struct tide_strbuf bytes = TIDE_STRBUF_INIT, cleared = TIDE_STRBUF_INIT;

		encode(sample, &bytes);
		AUTOSIDECAR struct tide_sidecar *sc = decode(&bytes);
		struct tide_sidecar_bitmap *e = sc->items[1];
		if (decoded)
			CHECK_PTR(tide_sidecar_bitmap_load(sc, e, &err), &err);
		struct tide_bitmap *bm = tide_sidecar_bitmap_clear(sc, e, &err);
		if (!CHECK_PTR(bm, &err))
			exit(1);
		CHECK(e->bitmap == bm && !e->encoded && sc->items[0]->encoded);
		CHECK_EQ_U64(tide_sidecar_bitmap_count(e), 0);
		CHECK_EQ_U64(tide_bitmap_size(bm), sc->disk_size);
		tide_bitmap_clear(sample->items[1]->bitmap);
		encode(sc, &cleared);
		AUTOSIDECAR struct tide_sidecar *back = decode(&cleared);
		check_same(sample, back);
	}
}

static void test_copy_is_deep(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	AUTOSTRBUF struct tide_strbuf bytes = TIDE_STRBUF_INIT, again = TIDE_STRBUF_INIT;
	AUTOSIDECAR struct tide_sidecar *sc = make_sample();

	encode(sc, &bytes);
	AUTOSIDECAR struct tide_sidecar *back = decode(&bytes);
	CHECK_PTR(tide_sidecar_bitmap_load(back, back->items[0]->successor, &err), &err);
	AUTOSIDECAR struct tide_sidecar *copy = tide_sidecar_copy(back, &err);
	if (!CHECK_PTR(copy, &err))
		return;
	CHECK(copy->items[0]->encoded && !copy->items[0]->bitmap && copy->items[0]->successor->bitmap);
	tide_bitmap_clear(back->items[0]->successor->bitmap);
	back->items[0]->encoded[0] ^= 1;
	back->items[0]->name[0] = 'x';
	tide_sidecar_bitmap_free(tide_sidecar_take(back, 1));
	encode(copy, &again);
	check_same_bytes(&bytes, &again);
	check_same(sc, copy);
}

/* A group's path is stored with a token only, and within its limits. */
static void test_group_path(void)
{
	static const struct {
		size_t len;
		uint64_t token;
		bool ok;
	} rows[] = { { 1, 5, true }, { 4095, 5, true }, { 4096, 5, false }, { 0, 5, false }, { 9, 0, false } };

	for (size_t i = 0; i < TIDE_ARRAY_SIZE(rows); i++) {
		AUTOSIDECAR struct tide_sidecar *sc = make(M);
		AUTOSTRBUF struct tide_strbuf bytes = TIDE_STRBUF_INIT;
		struct tide_sidecar_bitmap *e = add(sc, "b", 512);
		struct tide_error err = TIDE_ERROR_INIT;

		UNIT_ROW("path of %zu bytes, token %d", rows[i].len, (int)rows[i].token);
		e->token = rows[i].token;
		e->group = calloc(1, rows[i].len + 1);
		memset(e->group, '/', rows[i].len);
		if (!rows[i].ok) {
			CHECK(tide_sidecar_encode(sc, &bytes, &err) < 0);
			CHECK_STR(err.msg, "Bitmap 'b': its group's path cannot be stored");
			tide_error_release(&err);
			continue;
		}
		encode(sc, &bytes);
		AUTOSIDECAR struct tide_sidecar *back = decode(&bytes);
		CHECK_STR(back->items[0]->group, e->group);
	}
}

/* Makes the sample one that cannot be stored; NULL when there is no such case. */
static const char *spoil(struct tide_sidecar *sc, unsigned how)
{
	struct tide_sidecar_bitmap *e = sc->items[0];

	switch (how) {
	case 0:
		sc->items[2]->name[1] = '0';
		return "Bitmap already exists: b0";
	case 1:
		e->name[0] = '\0';
		return "A bitmap name of 0 bytes cannot be stored";
	case 2:
		e->token = 0;
		return "Bitmap 'b0': its successor cannot be stored";
	case 3:
		e->successor->token = 1;
		return "Bitmap 'b0': its successor cannot be stored";
	case 4:
		e->granularity = 0;
		return "Bitmap 'b0': granularity 0 cannot be stored";
	case 5:
		e->granularity = 256;
		return "Bitmap 'b0': granularity 256 cannot be stored";
	case 6:
		e->granularity = 4 * G;
		return "Bitmap 'b0': granularity 4294967296 cannot be stored";
	case 7:
		e->granularity = 32 * K;
		return "Bitmap 'b0': size 2621439900 and granularity 65536 cannot be stored, "
		       "expected 2621439900 and 32768";
	case 8:
		sc->disk_size++;
		return "Bitmap 'b0': size 2621439900 and granularity 65536 cannot be stored, "
		       "expected 2621439901 and 65536";
	case 9:
		e->token = UINT64_C(1) << 61;
		return "Bitmap 'b0': lock token 2305843009213693952 cannot be stored";
	case 10:
		sc->writer = UINT64_C(1) << 61;
		return "The writer's lock token 2305843009213693952 cannot be stored";
	case 11:
		sc->format[0] = '\0';
		return "An image format's name of 0 bytes cannot be stored";
	case 12:
		memset(sc->format, 'x', sizeof(sc->format));
		return "An image format's name of 16 bytes cannot be stored";
	case 13:
		sc->stamp.mtime_nsec++;
		return "A time with 1000000000 nanoseconds cannot be stored";
	case 14:
		sc->disk_size = UINT64_C(1) << 63;
		return "A disk of 9223372036854775808 bytes cannot be stored";
	}
	return NULL;
}

static void test_encode_refuses(void)
{
	for (unsigned how = 0;; how++) {
		struct tide_error err = TIDE_ERROR_INIT;
		AUTOSTRBUF struct tide_strbuf out = TIDE_STRBUF_INIT;
		AUTOSIDECAR struct tide_sidecar *sc = make_sample();
		const char *text = spoil(sc, how);

		if (!text)
			break;
		UNIT_ROW("%u", how);
		CHECK(tide_sidecar_encode(sc, &out, &err) == -1);
		CHECK_ERR(&err, TIDE_E_REFUSED, text);
		CHECK_EQ_U64(out.len, 0);
	}
}

/* ---- features, memory -------------------------------------------------------------- */

static void test_compatible_features_kept(void)
{
	AUTOSTRBUF struct tide_strbuf bytes = TIDE_STRBUF_INIT, again = TIDE_STRBUF_INIT;

	encode_sample(&bytes);
	tide_put_le64(bytes.buf + 24, UINT64_MAX);
	seal((uint8_t *)bytes.buf, tide_get_le32(bytes.buf + 104));
	AUTOSIDECAR struct tide_sidecar *sc = decode(&bytes);
	CHECK_EQ_U64(sc->compatible, UINT64_MAX);
	encode(sc, &again);
	check_same_bytes(&bytes, &again);
}

static long allocations_left;

static bool fails_now(void)
{
	return allocations_left-- <= 0;
}

/* Decodes, copies, loads and encodes with few allocations left. */
static int work(const struct tide_strbuf *bytes, struct tide_strbuf *out, struct tide_error *err)
{
	AUTOSIDECAR struct tide_sidecar *sc = tide_sidecar_decode(bytes->buf, bytes->len, err);
	AUTOSIDECAR struct tide_sidecar *copy = NULL, *loaded = NULL;

	if (!sc || !(copy = tide_sidecar_copy(sc, err)))
		return -1;
	for (size_t i = 0; i < copy->n; i++)
		if (!tide_sidecar_bitmap_load(copy, copy->items[i], err))
			return -1;
	loaded = tide_sidecar_copy(copy, err);
	return loaded ? tide_sidecar_encode(loaded, out, err) : -1;
}

/* ---- in parts ---------------------------------------------------------------------- */

static int read_part(void *ctx, void *buf, size_t len, uint64_t off, struct tide_error *err)
{
	const struct tide_strbuf *file = ctx;

	if (off > file->len || len > file->len - off)
		return tide_error_set(err, TIDE_E_IO, "read behind the end");
	memcpy(buf, file->buf + off, len);
	return 0;
}

/* Parts come in any order. */
static int write_part(void *ctx, const void *buf, size_t len, uint64_t off, struct tide_error *err)
{
	struct tide_strbuf *file = ctx;

	while (file->len < off + len)
		tide_strbuf_addc(file, '?');
	memcpy(file->buf + off, buf, len);
	return file->failed ? tide_error_set_nomem(err) : 0;
}

/* What is written in parts is what encode makes, and reading in parts brings it back. */
static void check_parts(const struct tide_sidecar *sc)
{
	struct tide_error err = TIDE_ERROR_INIT;
	AUTOSTRBUF struct tide_strbuf whole = TIDE_STRBUF_INIT, file = TIDE_STRBUF_INIT, again = TIDE_STRBUF_INIT;
	struct tide_sidecar_writer writer = { write_part, &file }, second = { write_part, &again };
	struct tide_sidecar_reader reader = { read_part, &file };
	uint32_t checksum = 0;

	encode(sc, &whole);
	CHECK_OK(tide_sidecar_write(sc, &writer, &checksum, &err), &err);
	check_same_bytes(&whole, &file);
	CHECK_EQ_U64(checksum, tide_sidecar_checksum(whole.buf, whole.len));
	AUTOSIDECAR struct tide_sidecar *back = tide_sidecar_read(&reader, file.len, &err);
	if (!CHECK_PTR(back, &err))
		exit(1);
	for (size_t i = 0; i < back->n; i++)
		CHECK(back->items[i]->encoded && !back->items[i]->bitmap);
	CHECK_OK(tide_sidecar_write(back, &second, &checksum, &err), &err);
	check_same_bytes(&whole, &again);
}

static void test_parts(void)
{
	AUTOSIDECAR struct tide_sidecar *small = make_sample(), *large = make(UINT64_C(1) << 40),
	                                *names = make(1 << 30);
	struct tide_error err = TIDE_ERROR_INIT;
	char name[16];

	check_parts(small);
	/* Large ones between small ones: lists, a bitmap that is not, none. */
	for (unsigned n = 0; n < 5; n++) {
		struct tide_sidecar_bitmap *e;

		snprintf(name, sizeof(name), "b%u", n);
		e = add(large, name, 64 * K);
		for (uint64_t bit = n; bit < (UINT64_C(1) << 24) && n % 2; bit += 100 + n)
			set_bits(e, bit, 1);
		if (n == 3)
			set_random(e, 0, 300000, 5);
		if (n == 4)
			set_bits(e, 7, 1);
	}
	check_parts(large);
	/* A directory that is longer than what is read at once. */
	for (unsigned n = 0; n < 9000; n++) {
		snprintf(name, sizeof(name), "b%u", n);
		add(names, name, 64 * K);
	}
	set_bits(names->items[0], 3, 1);
	check_parts(names);

	/* Any damage is found, wherever it is. */
	AUTOSTRBUF struct tide_strbuf file = TIDE_STRBUF_INIT;
	struct tide_sidecar_reader reader = { read_part, &file };
	encode(large, &file);
	for (size_t at = 0; at < file.len; at += 9973) {
		file.buf[at] ^= 0x10;
		AUTOSIDECAR struct tide_sidecar *bad = tide_sidecar_read(&reader, file.len, &err);
		file.buf[at] ^= 0x10;
		UNIT_ROW("byte %zu", at);
		CHECK(!bad);
		tide_error_release(&err);
	}
}

static void test_out_of_memory(void)
{
	AUTOSTRBUF struct tide_strbuf bytes = TIDE_STRBUF_INIT;
	int ret = -1;
	long n = 0;

	encode_sample(&bytes);
	for (; ret < 0 && n < 1000; n++) {
		struct tide_error err = TIDE_ERROR_INIT;
		AUTOSTRBUF struct tide_strbuf out = TIDE_STRBUF_INIT;

		allocations_left = n;
		tide_mem_set_hook(fails_now);
		ret = work(&bytes, &out, &err);
		tide_mem_set_hook(NULL);
		UNIT_ROW("allocation %ld", n);
		if (ret < 0)
			CHECK_ERR(&err, TIDE_E_NOMEM, NULL);
		else
			check_same_bytes(&bytes, &out);
	}
	CHECK(ret == 0 && n > 30);
}

static void test_random_sidecars(void)
{
	for (uint64_t seed = 1; seed <= 100; seed++) {
		uint64_t s = seed * UINT64_C(0x9e3779b97f4a7c15);
		AUTOSIDECAR struct tide_sidecar *sc = make(rnd(&s) % (3 * CHUNK * 512));

		sc->generation = rnd(&s);
		for (unsigned i = (unsigned)(rnd(&s) % 5); i > 0; i--) {
			char name[3] = { (char)('a' + i), (char)(1 + rnd(&s) % 255), '\0' };
			struct tide_sidecar_bitmap *e = add(sc, name, UINT64_C(512) << rnd(&s) % 8);
			uint64_t bits = tide_bitmap_bits(e->bitmap);

			e->enabled = rnd(&s) & 1;
			for (unsigned k = (unsigned)(rnd(&s) % 6); k > 0 && bits; k--)
				set_bits(e, rnd(&s) % bits, 1 + rnd(&s) % CHUNK);
			for (unsigned k = (unsigned)(rnd(&s) % 600); k > 0 && bits; k--)
				set_bits(e, rnd(&s) % bits, 1);
		}
		UNIT_ROW("seed %" PRIu64, seed);
		check_round_trip(sc);
	}
}

int main(void)
{
	UNIT_RUN(test_round_trip_empty);
	UNIT_RUN(test_round_trip_sample);
	UNIT_RUN(test_round_trip_names);
	UNIT_RUN(test_round_trip_many);
	UNIT_RUN(test_round_trip_lineage);
	UNIT_RUN(test_round_trip_device);
	UNIT_RUN(test_device_fields);
	UNIT_RUN(test_lineage_damage);
	UNIT_RUN(test_lineage_fields);
	UNIT_RUN(test_round_trip_densities);
	UNIT_RUN(test_kind_limits);
	UNIT_RUN(test_huge_and_sparse);
	UNIT_RUN(test_million_random_bits);
	UNIT_RUN(test_encode_appends);
	UNIT_RUN(test_bytes_of_manual);
	UNIT_RUN(test_list);
	UNIT_RUN(test_new_bitmap);
	UNIT_RUN(test_clear);
	UNIT_RUN(test_copy_is_deep);
	UNIT_RUN(test_group_path);
	UNIT_RUN(test_encode_refuses);
	UNIT_RUN(test_compatible_features_kept);
	UNIT_RUN(test_parts);
	UNIT_RUN(test_out_of_memory);
	UNIT_RUN(test_random_sidecars);
	return unit_done();
}
