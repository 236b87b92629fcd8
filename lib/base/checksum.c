/*
 * CRC-32C with the processor's instruction where there is one, and SHA-256 in plain C. Both are
 * small enough that a library for them is not worth its loading time.
 */
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "bytes.h"
#include "checksum.h"
#include "compiler.h"

/* ---- CRC-32C: the processor's instruction on whole words, a table of half bytes for the rest ---- */

static uint32_t crc_bytes(uint32_t crc, const uint8_t *p, size_t len)
{
	static const uint32_t table[16] = {
		0x00000000, 0x105ec76f, 0x20bd8ede, 0x30e349b1, 0x417b1dbc, 0x5125dad3, 0x61c69362, 0x7198540d,
		0x82f63b78, 0x92a8fc17, 0xa24bb5a6, 0xb21572c9, 0xc38d26c4, 0xd3d3e1ab, 0xe330a81a, 0xf36e6f75,
	};

	while (len-- > 0) {
		crc ^= *p++;
		crc = table[crc & 15] ^ (crc >> 4);
		crc = table[crc & 15] ^ (crc >> 4);
	}
	return crc;
}

#if defined(__x86_64__)
#if __has_include(<sys/platform/x86.h>)
#include <sys/platform/x86.h>
/*
 * Asks the C library, which knows already: asking the processor itself takes dozens of microseconds in a virtual
 * machine.
 */
#define HAS_SSE4_2 CPU_FEATURE_ACTIVE(SSE4_2)
#else
#define HAS_SSE4_2 __builtin_cpu_supports("sse4.2")
#endif

__attribute__((target("sse4.2"))) static uint32_t crc_words(uint32_t crc, const uint8_t *p, size_t n)
{
	uint64_t c = crc;

	for (; n > 0; n--, p += 8)
		c = __builtin_ia32_crc32di(c, tide_get_le64(p));
	return (uint32_t)c;
}

static bool has_crc_words(void)
{
	return HAS_SSE4_2;
}
#elif defined(__ARM_FEATURE_CRC32)
#include <arm_acle.h>

static uint32_t crc_words(uint32_t crc, const uint8_t *p, size_t n)
{
	for (; n > 0; n--, p += 8)
		crc = __crc32cd(crc, tide_get_le64(p));
	return crc;
}

static bool has_crc_words(void)
{
	return true;
}
#else
static uint32_t crc_words(uint32_t crc, const uint8_t *p, size_t n)
{
	return crc_bytes(crc, p, n * 8);
}

static bool has_crc_words(void)
{
	return false;
}
#endif

uint32_t tide_checksum_crc32c(uint32_t crc, const void *data, size_t len)
{
	const uint8_t *p = data;
	size_t words = len >= 8 && has_crc_words() ? len / 8 : 0;

	crc = crc_words(~crc, p, words);
	return ~crc_bytes(crc, p + words * 8, len - words * 8);
}

/* ---- SHA-256 ----------------------------------------------------------------------- */

static uint32_t ror(uint32_t v, unsigned n)
{
	return v >> n | v << (32 - n);
}

static const uint32_t sha_k[64] = {
	0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
	0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
	0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
	0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
	0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
	0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
	0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
	0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

/* One round; the next round takes the eight words in another order, which saves moving them. */
#define ROUND(a, b, c, d, e, f, g, h, i)                                                                        \
	do {                                                                                                    \
		uint32_t t = h + (ror(e, 6) ^ ror(e, 11) ^ ror(e, 25)) + (g ^ (e & (f ^ g))) + sha_k[i] + w[i]; \
		d += t;                                                                                         \
		h = t + (ror(a, 2) ^ ror(a, 13) ^ ror(a, 22)) + ((a & b) | (c & (a | b)));                      \
	} while (0)

static void sha_block(uint32_t state[8], const uint8_t *block)
{
	uint32_t w[64];
	uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
	uint32_t e = state[4], f = state[5], g = state[6], h = state[7];

	for (int i = 0; i < 16; i++)
		w[i] = tide_get_be32(block + i * 4);
	for (int i = 16; i < 64; i++)
		w[i] = w[i - 16] + w[i - 7] + (ror(w[i - 15], 7) ^ ror(w[i - 15], 18) ^ w[i - 15] >> 3) +
		       (ror(w[i - 2], 17) ^ ror(w[i - 2], 19) ^ w[i - 2] >> 10);
	for (int i = 0; i < 64; i += 8) {
		ROUND(a, b, c, d, e, f, g, h, i);
		ROUND(h, a, b, c, d, e, f, g, i + 1);
		ROUND(g, h, a, b, c, d, e, f, i + 2);
		ROUND(f, g, h, a, b, c, d, e, i + 3);
		ROUND(e, f, g, h, a, b, c, d, i + 4);
		ROUND(d, e, f, g, h, a, b, c, i + 5);
		ROUND(c, d, e, f, g, h, a, b, i + 6);
		ROUND(b, c, d, e, f, g, h, a, i + 7);
	}
	state[0] += a, state[1] += b, state[2] += c, state[3] += d;
	state[4] += e, state[5] += f, state[6] += g, state[7] += h;
}

void tide_checksum_sha256_init(struct tide_sha256 *sha)
{
	static const uint32_t start[8] = {
		0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
	};

	memset(sha, 0, sizeof(*sha));
	memcpy(sha->state, start, sizeof(start));
}

void tide_checksum_sha256_update(struct tide_sha256 *sha, const void *data, size_t len)
{
	const uint8_t *p = data;

	while (len > 0) {
		size_t used = sha->bytes % 64, n = TIDE_MIN(len, 64 - used);
		if (n == 64) {
			sha_block(sha->state, p);
		} else {
			memcpy(sha->block + used, p, n);
			if (used + n == 64)
				sha_block(sha->state, sha->block);
		}
		sha->bytes += n;
		p += n;
		len -= n;
	}
}

void tide_checksum_sha256_final(struct tide_sha256 *sha, char hex[65])
{
	static const uint8_t padding[64] = { 0x80 };
	uint8_t bits[8];

	tide_put_be64(bits, sha->bytes * 8);
	tide_checksum_sha256_update(sha, padding, 64 - (sha->bytes + 8) % 64);
	tide_checksum_sha256_update(sha, bits, sizeof(bits));
	for (int i = 0; i < 8; i++)
		snprintf(hex + i * 8, 9, "%08x", sha->state[i]);
}
