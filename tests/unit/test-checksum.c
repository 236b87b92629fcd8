/* CRC-32C against a bitwise model and published vectors, SHA-256 against published vectors. */
#include "base/checksum.h"
#include "unit.h"

static uint8_t noise[4096];

static void fill_noise(void)
{
	uint64_t x = 88172645463325252u;

	for (size_t i = 0; i < sizeof(noise); i++) {
		x ^= x << 13, x ^= x >> 7, x ^= x << 17;
		noise[i] = (uint8_t)x;
	}
}

/* Bit by bit, from the polynomial. */
static uint32_t slow_crc32c(const uint8_t *p, size_t len)
{
	uint32_t crc = ~0u;

	while (len-- > 0) {
		crc ^= *p++;
		for (int i = 0; i < 8; i++)
			crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78 : 0);
	}
	return ~crc;
}

/* The vectors of RFC 3720, appendix B.4, and the usual check value. */
static void test_crc32c_vectors(void)
{
	uint8_t buf[32];

	CHECK_EQ_U64(tide_checksum_crc32c(0, "", 0), 0);
	CHECK_EQ_U64(tide_checksum_crc32c(0, "123456789", 9), 0xe3069283);
	memset(buf, 0, sizeof(buf));
	CHECK_EQ_U64(tide_checksum_crc32c(0, buf, 32), 0x8a9136aa);
	memset(buf, 0xff, sizeof(buf));
	CHECK_EQ_U64(tide_checksum_crc32c(0, buf, 32), 0x62a8ab43);
	for (int i = 0; i < 32; i++)
		buf[i] = (uint8_t)i;
	CHECK_EQ_U64(tide_checksum_crc32c(0, buf, 32), 0x46dd794e);
	for (int i = 0; i < 32; i++)
		buf[i] = (uint8_t)(31 - i);
	CHECK_EQ_U64(tide_checksum_crc32c(0, buf, 32), 0x113fdb5c);
}

static void test_crc32c_pieces(void)
{
	for (size_t len = 0; len < 300; len++)
		for (size_t off = 0; off < 9; off++) {
			UNIT_ROW("%zu bytes at %zu", len, off);
			uint32_t want = slow_crc32c(noise + off, len), bytewise = 0;
			for (size_t i = 0; i < len; i++)
				bytewise = tide_checksum_crc32c(bytewise, noise + off + i, 1);
			uint32_t half = tide_checksum_crc32c(0, noise + off, len / 2);
			if (!CHECK_EQ_U64(tide_checksum_crc32c(0, noise + off, len), want) ||
			    !CHECK_EQ_U64(bytewise, want) ||
			    !CHECK_EQ_U64(tide_checksum_crc32c(half, noise + off + len / 2, len - len / 2), want))
				return;
		}
}

/* FIPS 180-4's examples and the edges of the padding (made with sha256sum). */
static void test_sha256_vectors(void)
{
	static const struct {
		char c;
		size_t len;
		const char *hex;
	} rows[] = {
		{ 'a', 0, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" },
		{ 'a', 55, "9f4390f8d30c2dd92ec9f095b65e2b9ae9b0a925a5258e241c9f1e910f734318" },
		{ 'a', 56, "b35439a4ac6f0948b6d6f9e3c6af0f5f590ce20f1bde7090ef7970686ec6738a" },
		{ 'a', 64, "ffe054fe7ae0cb6dc65c3af9b61d5209f439851db43d0ba5997337df154668eb" },
		{ 'a', 1000000, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0" },
	};
	struct tide_sha256 sha;
	char hex[65];

	for (size_t i = 0; i < TIDE_ARRAY_SIZE(rows); i++) {
		UNIT_ROW("%zu bytes", rows[i].len);
		tide_checksum_sha256_init(&sha);
		for (size_t n = 0; n < rows[i].len; n++)
			tide_checksum_sha256_update(&sha, &rows[i].c, 1);
		tide_checksum_sha256_final(&sha, hex);
		CHECK_STR(hex, rows[i].hex);
	}
	tide_checksum_sha256_init(&sha);
	tide_checksum_sha256_update(&sha, "abc", 3);
	tide_checksum_sha256_final(&sha, hex);
	CHECK_STR(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

static void test_sha256_pieces(void)
{
	char whole[65], parts[65];
	struct tide_sha256 sha;

	tide_checksum_sha256_init(&sha);
	tide_checksum_sha256_update(&sha, noise, 1000);
	tide_checksum_sha256_final(&sha, whole);
	for (size_t step = 1; step < 200; step++) {
		UNIT_ROW("steps of %zu", step);
		tide_checksum_sha256_init(&sha);
		for (size_t off = 0; off < 1000; off += step)
			tide_checksum_sha256_update(&sha, noise + off, TIDE_MIN(step, 1000 - off));
		tide_checksum_sha256_final(&sha, parts);
		if (!CHECK_STR(parts, whole))
			return;
	}
}

int main(void)
{
	fill_noise();
	UNIT_RUN(test_crc32c_vectors);
	UNIT_RUN(test_crc32c_pieces);
	UNIT_RUN(test_sha256_vectors);
	UNIT_RUN(test_sha256_pieces);
	return unit_done();
}
