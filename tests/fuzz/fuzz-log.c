/*
 * Write logs.  The input is one up to its bits.  Its checksums and lengths are corrected first, so that a change gets
 * past them (test-write-log tests the checksums).  A decoded log is encoded again, and must decode to the same.
 */
#include "base/checksum.h"
#include "fuzz.h"
#include "store/write_log.h"

enum { AT_FILE_LEN = 72, AT_INSIDE = 80, AT_INSIDE_CRC = 84, AT_CRC = 508 };

static void seal(uint8_t *p, size_t size)
{
	uint64_t n;

	if (size < TIDE_WRITE_LOG_TABLE_AT)
		return;
	n = tide_get_le32(p + AT_INSIDE);
	if (n <= (size - TIDE_WRITE_LOG_TABLE_AT) / 8)
		tide_put_le32(p + AT_INSIDE_CRC, tide_checksum_crc32c(0, p + TIDE_WRITE_LOG_TABLE_AT, 8 * n));
	tide_put_le32(p + AT_CRC, tide_checksum_crc32c(0, p, AT_CRC));
	for (unsigned i = 0; i < 2; i++) {
		uint8_t *slot = p + TIDE_WRITE_LOG_SLOT_AT(i);
		bool any = false;

		for (size_t k = 0; k < AT_CRC; k++)
			any |= slot[k] != 0;
		if (any)
			tide_put_le32(slot + AT_CRC, tide_checksum_crc32c(0, slot, AT_CRC));
	}
}

static void use(const struct tide_write_log_header *h)
{
	uint64_t len = tide_write_log_bits_at(h);
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_write_log_header again;
	uint8_t *out = calloc(1, len);

	fuzz_must(out && len <= TIDE_WRITE_LOG_HEAD_MAX && tide_write_log_file_len(h) > len);
	tide_write_log_encode(h, out);
	fuzz_must(tide_write_log_decode(out, len, tide_write_log_file_len(h), &again, &err) == 0);
	fuzz_must(again.id == h->id && again.shift == h->shift && again.disk_size == h->disk_size &&
	          again.n_in_image == h->n_in_image && again.state.token == h->state.token &&
	          again.state.sequence == h->state.sequence && again.generation == h->generation);
	tide_write_log_header_release(&again);
	free(out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_write_log_header h;
	uint8_t *head = malloc(size + 1);
	uint64_t file_len = size;

	fuzz_must(head);
	memcpy(head, data, size);
	seal(head, size);
	if (size > AT_FILE_LEN + 8)
		file_len = tide_get_le64(head + AT_FILE_LEN);
	if (tide_write_log_decode(head, size, file_len, &h, &err) < 0) {
		fuzz_failed(&err);
	} else {
		use(&h);
		tide_write_log_header_release(&h);
	}
	free(head);
	return 0;
}
