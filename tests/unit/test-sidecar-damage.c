/* Sidecars that are damaged, and sidecars that lie: each is refused, with what and where. */
#include "base/compress.h"
#include "sidecar_sample.h"

/* ---- damage ------------------------------------------------------------------------ */

static void test_cut_at_every_length(void)
{
	AUTOSTRBUF struct tide_strbuf bytes = TIDE_STRBUF_INIT;

	encode_sample(&bytes);
	for (size_t len = 0; len < bytes.len; len++) {
		struct tide_error err = TIDE_ERROR_INIT;
		/* Of exactly this length, so that a sanitizer sees a read behind it. */
		TIDE_AUTOFREE uint8_t *cut = malloc(len + !len);

		memcpy(cut, bytes.buf, len);
		UNIT_ROW("%zu bytes", len);
		AUTOSIDECAR struct tide_sidecar *sc = tide_sidecar_decode(cut, len, &err);
		CHECK(!sc);
		CHECK_ERR(&err, TIDE_E_CORRUPT, NULL);
	}
	tide_strbuf_addc(&bytes, 0);
	check_refused(bytes.buf, bytes.len, TIDE_E_CORRUPT, NULL);
}

static void test_every_byte_changed(void)
{
	static const uint8_t flips[] = { 0x01, 0x80, 0xff, 0x20 };
	AUTOSTRBUF struct tide_strbuf bytes = TIDE_STRBUF_INIT;

	encode_sample(&bytes);
	for (size_t i = 0; i < bytes.len; i++) {
		for (size_t k = 0; k < sizeof(flips); k++) {
			struct tide_error err = TIDE_ERROR_INIT;

			bytes.buf[i] ^= (char)flips[k];
			UNIT_ROW("byte %zu ^ %02x", i, flips[k]);
			AUTOSIDECAR struct tide_sidecar *sc = tide_sidecar_decode(bytes.buf, bytes.len, &err);
			CHECK(!sc);
			CHECK_ERR(&err, i >= 8 && i < 12 ? TIDE_E_UNSUPPORTED : TIDE_E_CORRUPT, NULL);
			bytes.buf[i] ^= (char)flips[k];
		}
	}
	AUTOSIDECAR struct tide_sidecar *sc = decode(&bytes);
	CHECK_EQ_U64(sc->n, 3);
}

static void test_not_a_sidecar(void)
{
	uint8_t zeroes[4096] = { 0 };
	AUTOSTRBUF struct tide_strbuf bytes = TIDE_STRBUF_INIT;

	encode_sample(&bytes);
	CHECK(tide_sidecar_is_one(bytes.buf, 8));
	CHECK(!tide_sidecar_is_one(bytes.buf, 7));
	CHECK(!tide_sidecar_is_one(zeroes, sizeof(zeroes)));
	check_refused(NULL, 0, TIDE_E_CORRUPT, "sidecar header at byte 0: expected 128 bytes, found 0");
	check_refused("QFI\xfb", 4, TIDE_E_CORRUPT,
	              "sidecar magic at byte 0: expected 89544944450d0a1a, found 514649fb");
	check_refused(zeroes, sizeof(zeroes), TIDE_E_CORRUPT,
	              "sidecar magic at byte 0: expected 89544944450d0a1a, found 0000000000000000");
	check_refused("\x89TIDE\n\x1a.", 8, TIDE_E_CORRUPT,
	              "sidecar magic at byte 0: expected 89544944450d0a1a, found 89544944450a1a2e");
}

/* Bytes that belong to nothing, although the header counts them. */
static void test_bytes_left_over(void)
{
	AUTOSTRBUF struct tide_strbuf bytes = TIDE_STRBUF_INIT;
	char text[128];

	encode_sample(&bytes);
	snprintf(text, sizeof(text), "sidecar file length at byte 40: expected %zu, found %zu", bytes.len,
	         bytes.len + 1);
	tide_strbuf_addc(&bytes, 0);
	tide_put_le64(bytes.buf + 40, bytes.len);
	seal((uint8_t *)bytes.buf, tide_get_le32(bytes.buf + 104));
	check_refused(bytes.buf, bytes.len, TIDE_E_CORRUPT, text);
}

static void test_damage_is_located(void)
{
	AUTOSTRBUF struct tide_strbuf bytes = TIDE_STRBUF_INIT;
	char text[128];

	encode_sample(&bytes);
	uint8_t *p = (uint8_t *)bytes.buf;
	static const size_t at[] = { 50, 130, 345 };
	static const char *const what[] = { "sidecar header", "sidecar directory", "chunk record" };
	static const size_t crc_at[] = { 124, 112, 340 };
	for (size_t i = 0; i < TIDE_ARRAY_SIZE(at); i++) {
		uint32_t stored = tide_get_le32(p + crc_at[i]);

		p[at[i]] ^= 0x10;
		uint32_t expected = tide_checksum_crc32c(0, p, 124);
		if (i == 1)
			expected = tide_checksum_crc32c(0, p + HEADER, tide_get_le32(p + 104));
		if (i == 2)
			expected = tide_checksum_crc32c(tide_checksum_crc32c(0, p + crc_at[i] - 12, 12),
			                                p + crc_at[i] + 4, tide_get_le16(p + crc_at[i] - 2));
		snprintf(text, sizeof(text), "%s checksum at byte %zu: expected 0x%08x, found 0x%08x", what[i],
		         crc_at[i], expected, stored);
		UNIT_ROW("%s", what[i]);
		check_refused(p, bytes.len, TIDE_E_CORRUPT, text);
		p[at[i]] ^= 0x10;
	}
}

/* ---- files that lie, with every checksum right ------------------------------------- */

/* Where: 'h' the header, 'e' entry i, 'r' record j of entry i. */
struct lie {
	char where;
	unsigned entry, record, off, width;
	uint64_t value;
	enum tide_code code;
	const char *text;
};

static const struct lie lies[] = {
	{ 'h', 0, 0, 8, 4, 0, TIDE_E_UNSUPPORTED, "sidecar version at byte 8: expected 1, found 0" },
	{ 'h', 0, 0, 8, 4, 2, TIDE_E_UNSUPPORTED, "sidecar version at byte 8: expected 1, found 2" },
	{ 'h', 0, 0, 12, 4, 127, TIDE_E_CORRUPT, "sidecar header length at byte 12: expected 128, found 127" },
	{ 'h', 0, 0, 12, 4, UINT64_C(0xffffffff), TIDE_E_CORRUPT,
	  "sidecar header length at byte 12: expected 128, found 4294967295" },
	{ 'h', 0, 0, 16, 8, 1, TIDE_E_CORRUPT, NULL }, /* no lineage area follows */
	{ 'h', 0, 0, 16, 8, 2, TIDE_E_CORRUPT, "sidecar feature bit of a device at byte 16: expected 0, found 1" },
	{ 'h', 0, 0, 16, 8, 4, TIDE_E_UNSUPPORTED,
	  "sidecar incompatible features at byte 16: expected none, found 0x4 (bit 2)" },
	{ 'h', 0, 0, 16, 8, UINT64_C(0x800000000000000c), TIDE_E_UNSUPPORTED,
	  "sidecar incompatible features at byte 16: expected none, found 0x800000000000000c (bit 2, 3, 63)" },
	{ 'h', 0, 0, 16, 8, UINT64_MAX, TIDE_E_UNSUPPORTED, NULL },
	{ 'h', 0, 0, 40, 8, 0, TIDE_E_CORRUPT, "sidecar: expected 0 bytes according to byte 40, found 4514" },
	{ 'h', 0, 0, 40, 8, UINT64_MAX, TIDE_E_CORRUPT,
	  "sidecar: expected 18446744073709551615 bytes according to byte 40, found 4514" },
	{ 'h', 0, 0, 48, 8, UINT64_C(0x8000000000000000), TIDE_E_CORRUPT,
	  "sidecar disk size at byte 48: expected 0 to 9223372036854775807, found 9223372036854775808" },
	{ 'h', 0, 0, 48, 8, UINT64_MAX, TIDE_E_CORRUPT,
	  "sidecar disk size at byte 48: expected 0 to 9223372036854775807, found 18446744073709551615" },
	{ 'h', 0, 0, 48, 8, 0, TIDE_E_CORRUPT,
	  "chunk index at byte 312: expected at least 0 and less than 0, found 0" },
	{ 'h', 0, 0, 48, 8, UINT64_C(0x9c3f0000), TIDE_E_CORRUPT,
	  "bit position at byte 348: expected 10 to 7230, found 7231" },
	{ 'h', 0, 0, 56, 1, 0, TIDE_E_CORRUPT,
	  "sidecar image format at byte 56: expected a name of 1 to 15 bytes, found 0" },
	{ 'h', 0, 0, 56, 8, UINT64_C(0x7800776172), TIDE_E_CORRUPT,
	  "sidecar image format's padding at byte 60: expected 0, found 120" },
	{ 'h', 0, 0, 71, 1, 120, TIDE_E_CORRUPT, "sidecar image format's padding at byte 71: expected 0, found 120" },
	{ 'h', 0, 0, 88, 4, 1000000000, TIDE_E_CORRUPT,
	  "sidecar stamp's nanoseconds at byte 88: expected 0 to 999999999, found 1000000000" },
	{ 'h', 0, 0, 92, 4, 0, TIDE_E_CORRUPT,
	  "sidecar stamp at byte 72: expected zeroes, because byte 92 marks it as invalid" },
	{ 'h', 0, 0, 92, 4, 2, TIDE_E_CORRUPT, "sidecar flags at byte 92: expected 1, found 2" },
	{ 'h', 0, 0, 96, 8, UINT64_C(0x2000000000000000), TIDE_E_CORRUPT,
	  "sidecar writer token at byte 96: expected 0 to 2305843009213693951, found 2305843009213693952" },
	{ 'h', 0, 0, 104, 4, UINT64_C(0xffffffff), TIDE_E_CORRUPT,
	  "sidecar directory length at byte 104: expected 0 to 4386, found 4294967295" },
	{ 'h', 0, 0, 104, 4, 0, TIDE_E_CORRUPT, "sidecar entry count at byte 108: expected 0, found 4" },
	{ 'h', 0, 0, 104, 4, 48, TIDE_E_CORRUPT, "chunk data offset at byte 152: expected 176, found 312" },
	{ 'h', 0, 0, 104, 4, 136, TIDE_E_CORRUPT, "chunk data offset at byte 152: expected 264, found 312" },
	{ 'h', 0, 0, 104, 4, 183, TIDE_E_CORRUPT, "chunk data offset at byte 152: expected 311, found 312" },
	{ 'h', 0, 0, 104, 4, 192, TIDE_E_CORRUPT, "chunk data offset at byte 152: expected 320, found 312" },
	{ 'h', 0, 0, 108, 4, 3, TIDE_E_CORRUPT, "sidecar entry count at byte 108: expected 4, found 3" },
	{ 'h', 0, 0, 108, 4, UINT64_C(0xffffffff), TIDE_E_CORRUPT,
	  "sidecar entry count at byte 108: expected 4, found 4294967295" },
	{ 'e', 0, 0, 0, 4, 0, TIDE_E_CORRUPT, "bitmap entry length at byte 128: expected 48, found 0" },
	{ 'e', 0, 0, 0, 4, 40, TIDE_E_CORRUPT, "bitmap entry length at byte 128: expected 48, found 40" },
	{ 'e', 0, 0, 0, 4, 56, TIDE_E_CORRUPT, "bitmap entry length at byte 128: expected 48, found 56" },
	{ 'e', 0, 0, 0, 4, UINT64_C(0xffffffff), TIDE_E_CORRUPT,
	  "bitmap entry length at byte 128: expected 48, found 4294967295" },
	{ 'e', 0, 0, 4, 2, 0, TIDE_E_CORRUPT, "bitmap name length at byte 132: expected 1 to 1023, found 0" },
	{ 'e', 0, 0, 4, 2, 1, TIDE_E_CORRUPT, "bitmap entry's padding at byte 169: expected 0, found 48" },
	{ 'e', 0, 0, 4, 2, 1024, TIDE_E_CORRUPT, "bitmap name length at byte 132: expected 1 to 1023, found 1024" },
	{ 'e', 0, 0, 4, 2, 1023, TIDE_E_CORRUPT, "bitmap entry length at byte 128: expected 1064, found 48" },
	{ 'e', 1, 0, 4, 2, 1, TIDE_E_CORRUPT, "successor's name length at byte 180: expected 0, found 1" },
	{ 'e', 0, 0, 6, 1, 8, TIDE_E_CORRUPT, "bitmap granularity shift at byte 134: expected 9 to 31, found 8" },
	{ 'e', 0, 0, 6, 1, 32, TIDE_E_CORRUPT, "bitmap granularity shift at byte 134: expected 9 to 31, found 32" },
	{ 'e', 0, 0, 6, 1, 255, TIDE_E_CORRUPT, "bitmap granularity shift at byte 134: expected 9 to 31, found 255" },
	{ 'e', 1, 0, 6, 1, 17, TIDE_E_CORRUPT, "successor's granularity shift at byte 182: expected 16, found 17" },
	{ 'e', 0, 0, 6, 1, 17, TIDE_E_CORRUPT,
	  "chunk index at byte 328: expected at least 1 and less than 1, found 1" },
	{ 'e', 2, 0, 6, 1, 31, TIDE_E_CORRUPT, "chunk 0 at byte 386: expected no dirty bit past bit 1, found one" },
	{ 'e', 0, 0, 7, 1, 32, TIDE_E_CORRUPT, "bitmap flags at byte 135: expected none but 0x7, found 0x20" },
	{ 'e', 0, 0, 7, 1, 128, TIDE_E_CORRUPT, "bitmap flags at byte 135: expected none but 0x7, found 0x80" },
	{ 'e', 2, 0, 7, 1, 8, TIDE_E_CORRUPT, "group path length at byte 258: expected 1 to 4095, found 0" },
	{ 'e', 2, 0, 7, 1, 16, TIDE_E_CORRUPT, "bitmap flags at byte 223: expected none but 0x7, found 0x10" },
	{ 'e', 1, 0, 7, 1, 4, TIDE_E_CORRUPT, "bitmap flags at byte 183: expected none but 0x3, found 0x4" },
	{ 'e', 1, 0, 7, 1, 16, TIDE_E_CORRUPT, "bitmap flags at byte 183: expected none but 0x3, found 0x10" },
	{ 'e', 0, 0, 7, 1, 5, TIDE_E_CORRUPT, "bitmap name length at byte 180: expected 1 to 1023, found 0" },
	{ 'e', 3, 0, 7, 1, 20, TIDE_E_CORRUPT, "bitmap token at byte 272: expected 1 to 2305843009213693951, found 0" },
	{ 'e', 0, 0, 8, 8, 0, TIDE_E_CORRUPT, "bitmap token at byte 136: expected 1 to 2305843009213693951, found 0" },
	{ 'e', 0, 0, 8, 8, UINT64_C(0x2000000000000000), TIDE_E_CORRUPT,
	  "bitmap token at byte 136: expected 1 to 2305843009213693951, found 2305843009213693952" },
	{ 'e', 2, 0, 8, 8, 5, TIDE_E_CORRUPT, "bitmap token at byte 224: expected 0, found 5" },
	{ 'e', 0, 0, 16, 8, 0, TIDE_E_CORRUPT, "dirty count at byte 144: expected 32771, found 0" },
	{ 'e', 0, 0, 16, 8, 32770, TIDE_E_CORRUPT, "dirty count at byte 144: expected 32771, found 32770" },
	{ 'e', 0, 0, 16, 8, 32772, TIDE_E_CORRUPT, "dirty count at byte 144: expected 32771, found 32772" },
	{ 'e', 1, 0, 16, 8, 0, TIDE_E_CORRUPT, "dirty count at byte 192: expected 1 to 32768, found 0" },
	{ 'e', 1, 0, 16, 8, 32769, TIDE_E_CORRUPT, "dirty count at byte 192: expected 1 to 32768, found 32769" },
	{ 'e', 3, 0, 16, 8, 1, TIDE_E_CORRUPT, "dirty count at byte 280: expected 0, found 1" },
	{ 'e', 0, 0, 16, 8, UINT64_MAX, TIDE_E_CORRUPT,
	  "dirty count at byte 144: expected 32771, found 18446744073709551615" },
	{ 'e', 0, 0, 24, 8, 0, TIDE_E_CORRUPT, "chunk data offset at byte 152: expected 312, found 0" },
	{ 'e', 1, 0, 24, 8, 312, TIDE_E_CORRUPT, "chunk data offset at byte 200: expected 350, found 312" },
	{ 'e', 0, 0, 24, 8, UINT64_MAX, TIDE_E_CORRUPT,
	  "chunk data offset at byte 152: expected 312, found 18446744073709551615" },
	{ 'e', 0, 0, 32, 8, 0, TIDE_E_CORRUPT, "dirty count at byte 144: expected 0, found 32771" },
	{ 'e', 0, 0, 32, 8, 37, TIDE_E_CORRUPT, "chunk length at byte 338: expected at most 5, found 6" },
	{ 'e', 0, 0, 32, 8, 39, TIDE_E_CORRUPT, "chunk record at byte 350: expected 16 bytes, found 1" },
	{ 'e', 0, 0, 32, 8, UINT64_MAX, TIDE_E_CORRUPT,
	  "chunk data length at byte 160: expected 0 to 4202, found 18446744073709551615" },
	{ 'e', 2, 0, 32, 8, UINT64_C(0x10000000000), TIDE_E_CORRUPT,
	  "chunk data length at byte 248: expected 0 to 4128, found 1099511627776" },
	{ 'e', 3, 0, 32, 8, 1, TIDE_E_CORRUPT, "chunk data length at byte 296: expected 0, found 1" },
	{ 'e', 0, 0, 40, 1, 0, TIDE_E_CORRUPT, "bitmap name at byte 168: expected no NUL, found one" },
	{ 'e', 0, 0, 41, 1, 0, TIDE_E_CORRUPT, "bitmap name at byte 169: expected no NUL, found one" },
	{ 'e', 0, 0, 42, 1, 1, TIDE_E_CORRUPT, "bitmap entry's padding at byte 170: expected 0, found 1" },
	{ 'e', 0, 0, 47, 1, 255, TIDE_E_CORRUPT, "bitmap entry's padding at byte 175: expected 0, found 255" },
	{ 'e', 2, 0, 41, 1, 48, TIDE_E_CORRUPT,
	  "sidecar directory at byte 128: expected each bitmap name once, found 'b0' again" },
	{ 'r', 0, 0, 0, 8, 2, TIDE_E_CORRUPT, "chunk index at byte 312: expected at least 0 and less than 2, found 2" },
	{ 'r', 0, 0, 0, 8, UINT64_MAX, TIDE_E_CORRUPT,
	  "chunk index at byte 312: expected at least 0 and less than 2, found 18446744073709551615" },
	{ 'r', 0, 0, 0, 8, 1, TIDE_E_CORRUPT, "chunk index at byte 328: expected at least 2 and less than 2, found 1" },
	{ 'r', 0, 1, 0, 8, 0, TIDE_E_CORRUPT, "chunk index at byte 328: expected at least 1 and less than 2, found 0" },
	{ 'r', 0, 0, 8, 2, 0, TIDE_E_UNSUPPORTED, "chunk kind at byte 320: expected 1 to 4, found 0" },
	{ 'r', 0, 0, 8, 2, 5, TIDE_E_UNSUPPORTED, "chunk kind at byte 320: expected 1 to 4, found 5" },
	{ 'r', 0, 0, 8, 2, 65535, TIDE_E_UNSUPPORTED, "chunk kind at byte 320: expected 1 to 4, found 65535" },
	{ 'r', 0, 0, 8, 2, 2, TIDE_E_CORRUPT, "chunk length at byte 322: expected 2 to 65536, found 0" },
	{ 'r', 0, 0, 8, 2, 3, TIDE_E_CORRUPT, "chunk length at byte 322: expected 1 to 4095, found 0" },
	{ 'r', 0, 0, 8, 2, 4, TIDE_E_CORRUPT, "chunk length at byte 322: expected 4096, found 0" },
	{ 'r', 0, 0, 10, 2, 4, TIDE_E_CORRUPT, "chunk length at byte 322: expected 0, found 4" },
	{ 'r', 0, 0, 10, 2, 65535, TIDE_E_CORRUPT, "chunk length at byte 322: expected at most 22, found 65535" },
	{ 'r', 0, 1, 10, 2, 5, TIDE_E_CORRUPT, "chunk length at byte 338: expected an even number, found 5" },
	{ 'r', 0, 1, 10, 2, 4, TIDE_E_CORRUPT, "chunk record at byte 348: expected 16 bytes, found 2" },
	{ 'r', 0, 1, 8, 2, 1, TIDE_E_CORRUPT, "chunk length at byte 338: expected 0, found 6" },
	{ 'r', 0, 1, 8, 2, 4, TIDE_E_CORRUPT, "chunk length at byte 338: expected 4096, found 6" },
	{ 'r', 0, 1, 16, 2, 7232, TIDE_E_CORRUPT, "bit position at byte 344: expected 0 to 7231, found 7232" },
	{ 'r', 0, 1, 16, 2, 9, TIDE_E_CORRUPT, "bit position at byte 346: expected 10 to 7231, found 9" },
	{ 'r', 0, 1, 18, 2, 5, TIDE_E_CORRUPT, "bit position at byte 346: expected 6 to 7231, found 5" },
	{ 'r', 0, 1, 20, 2, 7232, TIDE_E_CORRUPT, "bit position at byte 348: expected 10 to 7231, found 7232" },
	{ 'r', 0, 1, 20, 2, 65535, TIDE_E_CORRUPT, "bit position at byte 348: expected 10 to 7231, found 65535" },
	{ 'r', 2, 0, 8, 2, 3, TIDE_E_CORRUPT, "chunk length at byte 396: expected 1 to 4095, found 4096" },
	{ 'r', 2, 0, 0, 8, 1, TIDE_E_CORRUPT, "chunk 1 at byte 386: expected no dirty bit past bit 7231, found one" },
	{ 'r', 2, 0, 8, 2, 2, TIDE_E_CORRUPT, "bit position at byte 402: expected 0 to 32767, found 63698" },
	{ 'r', 1, 0, 8, 2, 4, TIDE_E_CORRUPT, "chunk length at byte 360: expected 4096, found 20" },
};

static void test_lies(void)
{
	for (size_t i = 0; i < TIDE_ARRAY_SIZE(lies); i++) {
		const struct lie *lie = &lies[i];
		AUTOSTRBUF struct tide_strbuf bytes = TIDE_STRBUF_INIT;
		uint8_t value[8];

		encode_sample(&bytes);
		uint8_t *file = (uint8_t *)bytes.buf, *p = file;
		size_t dir_len = tide_get_le32(file + 104);
		if (lie->where == 'e')
			p = entry_at(file, lie->entry);
		if (lie->where == 'r')
			p = record_at(file, lie->entry, lie->record);
		tide_put_le64(value, lie->value);
		memcpy(p + lie->off, value, lie->width);
		if (lie->where == 'r')
			seal_record(p, TIDE_MIN(tide_get_le16(p + 10), (size_t)(file + bytes.len - p - RECORD_FIXED)));
		if (lie->where == 'h' && lie->off == 104 && lie->value <= bytes.len - HEADER)
			dir_len = lie->value;
		seal(file, dir_len);
		UNIT_ROW("%zu: %c%u.%u+%u", i, lie->where, lie->entry, lie->record, lie->off);
		check_refused(file, bytes.len, lie->code, lie->text);
	}
}

/* ---- what only decoding finds ------------------------------------------------------ */

/* One bitmap of 7232 bits with one zstd record, its payload replaced. */
static void make_zstd(struct tide_strbuf *out, const void *payload, size_t len, uint64_t count)
{
	AUTOSIDECAR struct tide_sidecar *sc = make(7232 * 512);
	uint8_t *record;

	add(sc, "b", 512);
	encode(sc, out);
	record = calloc(1, RECORD_FIXED + len);
	if (!record)
		exit(1);
	tide_put_le16(record + 8, ZSTD);
	tide_put_le16(record + 10, (uint16_t)len);
	memcpy(record + RECORD_FIXED, payload, len);
	seal_record(record, len);
	tide_strbuf_add(out, record, RECORD_FIXED + len);
	free(record);
	uint8_t *file = (uint8_t *)out->buf;
	tide_put_le64(file + 40, out->len);
	tide_put_le64(file + HEADER + 16, count);
	tide_put_le64(file + HEADER + 32, RECORD_FIXED + len);
	seal(file, 48);
}

static void check_load_refused(const void *payload, size_t len, uint64_t count, const char *text)
{
	struct tide_error err = TIDE_ERROR_INIT;
	AUTOSTRBUF struct tide_strbuf bytes = TIDE_STRBUF_INIT, again = TIDE_STRBUF_INIT;

	make_zstd(&bytes, payload, len, count);
	AUTOSIDECAR struct tide_sidecar *sc = decode(&bytes);
	CHECK(!tide_sidecar_bitmap_load(sc, sc->items[0], &err));
	CHECK_ERR(&err, TIDE_E_CORRUPT, text);
	/* It is still what came, and can go back as it came. */
	CHECK(sc->items[0]->encoded && !sc->items[0]->bitmap);
	encode(sc, &again);
	check_same_bytes(&bytes, &again);
}

static size_t compress(uint8_t out[8192], const uint8_t *in, size_t len)
{
	struct tide_error err = TIDE_ERROR_INIT;
	size_t out_len = 8192;

	CHECK_OK(tide_compress_zstd(out, &out_len, in, len, 1, &err), &err);
	return out_len;
}

static void test_load_checks(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	uint8_t block[2 * TIDE_BITMAP_CHUNK_BYTES] = { 0 }, frame[8192];

	for (unsigned i = 0; i < 500; i++)
		block[i] = 0x11;
	size_t len = compress(frame, block, 4096);
	AUTOSTRBUF struct tide_strbuf bytes = TIDE_STRBUF_INIT;
	make_zstd(&bytes, frame, len, 1000);
	AUTOSIDECAR struct tide_sidecar *sc = decode(&bytes);
	struct tide_bitmap *bm = tide_sidecar_bitmap_load(sc, sc->items[0], &err);
	if (CHECK_PTR(bm, &err))
		CHECK_EQ_U64(tide_bitmap_count(bm), 1000);

	check_load_refused(frame, len, 999, "Bitmap 'b' in the sidecar: expected 999 dirty granules, found 1000");
	check_load_refused("not a frame", 11, 1000, NULL);
	check_load_refused(frame, len - 1, 1000, NULL);
	memset(frame + len, 0, 10);
	check_load_refused(frame, len + 10, 1000, NULL);
	check_load_refused(frame, compress(frame, block, 4095), 1000, NULL);
	check_load_refused(frame, compress(frame, block, 4097), 1000, NULL);
	check_load_refused(frame, compress(frame, block, 8192), 1000, NULL);
	check_load_refused(frame, compress(frame, block + 4096, 4096), 1000,
	                   "Bitmap 'b' in the sidecar cannot be read: chunk data: chunk 0 at byte 0: "
	                   "expected a dirty bit, found none");
	block[7232 / 8] = 1;
	check_load_refused(frame, compress(frame, block, 4096), 1001,
	                   "Bitmap 'b' in the sidecar cannot be read: chunk data: chunk 0 at byte 0: "
	                   "expected no dirty bit past bit 7231, found one");
}

int main(void)
{
	UNIT_RUN(test_cut_at_every_length);
	UNIT_RUN(test_every_byte_changed);
	UNIT_RUN(test_not_a_sidecar);
	UNIT_RUN(test_bytes_left_over);
	UNIT_RUN(test_damage_is_located);
	UNIT_RUN(test_lies);
	UNIT_RUN(test_load_checks);
	return unit_done();
}
