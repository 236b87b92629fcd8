/*
 * CRC-32C (Castagnoli polynomial, RFC 3720 appendix B.4), the checksum of the sidecar, and SHA-256 (FIPS
 * 180-4), with which QEMU identifies the contents of a bitmap.
 */
#ifndef TIDE_CHECKSUM_H
#define TIDE_CHECKSUM_H

#include <stddef.h>
#include <stdint.h>

/* Start with crc 0; to continue, pass the previous result. */
uint32_t tide_checksum_crc32c(uint32_t crc, const void *data, size_t len);

struct tide_sha256 {
	uint32_t state[8];
	uint64_t bytes;
	uint8_t block[64];
};

void tide_checksum_sha256_init(struct tide_sha256 *sha);
void tide_checksum_sha256_update(struct tide_sha256 *sha, const void *data, size_t len);
/* Lower-case hexadecimal and a NUL. */
void tide_checksum_sha256_final(struct tide_sha256 *sha, char hex[65]);

#endif
