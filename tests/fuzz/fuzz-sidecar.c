/*
 * Sidecars.  The lengths and checksums of the input are corrected first, so that a change gets past them
 * (test-sidecar-damage tests the checksums).  A decoded sidecar is used as the commands use it, is encoded again, and
 * must decode again.
 */
#include "base/checksum.h"
#include "bitmap/bitmap.h"
#include "fuzz.h"
#include "store/sidecar.h"
#include "store/sidecar_format.h"

#define USED_MAX (UINT64_C(1) << 22) /* granules */

/* The checksums of an entry's chunk records. */
static void seal_records(uint8_t *file, size_t size, uint64_t at, uint64_t len)
{
	uint64_t end = at <= size && len <= size - at ? at + len : 0;

	while (end && end - at >= TIDE_SIDECAR_RECORD_PAYLOAD) {
		uint8_t *p = file + at;
		size_t payload = tide_get_le16(p + TIDE_SIDECAR_RECORD_LEN);
		uint32_t crc = tide_checksum_crc32c(0, p, TIDE_SIDECAR_RECORD_CRC);

		if (payload > end - at - TIDE_SIDECAR_RECORD_PAYLOAD)
			return;
		crc = tide_checksum_crc32c(crc, p + TIDE_SIDECAR_RECORD_PAYLOAD, payload);
		tide_put_le32(p + TIDE_SIDECAR_RECORD_CRC, crc);
		at += TIDE_SIDECAR_RECORD_PAYLOAD + payload;
	}
}

static void seal(uint8_t *file, size_t size)
{
	uint64_t dir_len, at = TIDE_SIDECAR_HEADER_LEN, end;

	if (size < TIDE_SIDECAR_HEADER_LEN)
		return;
	dir_len = tide_get_le32(file + TIDE_SIDECAR_AT_DIR_LEN);
	tide_put_le64(file + TIDE_SIDECAR_AT_FILE_LEN, size);
	if (dir_len <= size - TIDE_SIDECAR_HEADER_LEN) {
		end = at + dir_len;
		while (end - at >= TIDE_SIDECAR_ENTRY_NAME) {
			uint64_t len = tide_get_le32(file + at + TIDE_SIDECAR_ENTRY_LEN);

			seal_records(file, size, tide_get_le64(file + at + TIDE_SIDECAR_ENTRY_DATA_OFF),
			             tide_get_le64(file + at + TIDE_SIDECAR_ENTRY_DATA_LEN));
			if (len < TIDE_SIDECAR_ENTRY_NAME || len > end - at)
				break;
			at += len;
		}
		tide_put_le32(file + TIDE_SIDECAR_AT_DIR_CRC,
		              tide_checksum_crc32c(0, file + TIDE_SIDECAR_HEADER_LEN, dir_len));
	}
	tide_put_le32(file + TIDE_SIDECAR_AT_HEADER_CRC, tide_checksum_crc32c(0, file, TIDE_SIDECAR_AT_HEADER_CRC));
}

static void use_bitmap(struct tide_sidecar *sc, struct tide_sidecar_bitmap *entry)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_bitmap *bm = tide_sidecar_bitmap_load(sc, entry, &err);
	uint64_t size = sc->disk_size;

	if (!bm) {
		fuzz_failed(&err);
		return;
	}
	fuzz_must(tide_bitmap_count(bm) == entry->count && tide_bitmap_size(bm) == size);
	if (size == 0 || tide_bitmap_bits(bm) > USED_MAX)
		return;
	fuzz_must(tide_bitmap_set(bm, size / 2, size - size / 2, NULL) == 0);
	fuzz_must(tide_bitmap_reset(bm, 0, size / 3, NULL) == 0);
	fuzz_must(tide_bitmap_test(bm, size - 1));
	if (entry->token && tide_sidecar_bitmap_thaw(sc, entry, &err) < 0)
		fuzz_failed(&err);
}

static struct tide_sidecar *again(struct tide_sidecar *sc, struct tide_strbuf *text)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_sidecar *other;

	fuzz_must(tide_sidecar_encode(sc, text, &err) == 0);
	other = tide_sidecar_decode(text->buf, text->len, &err);
	if (!other)
		fprintf(stderr, "%s\n", err.msg);
	fuzz_must(other && other->n == sc->n && other->disk_size == sc->disk_size);
	return other;
}

static void use(struct tide_sidecar *sc)
{
	struct tide_strbuf first = TIDE_STRBUF_INIT, second = TIDE_STRBUF_INIT;
	struct tide_sidecar *copy = tide_sidecar_copy(sc, NULL), *other;
	uint64_t bits = 0;

	fuzz_must(copy);
	other = again(copy, &first);
	tide_sidecar_free(other);
	tide_sidecar_free(copy);
	for (size_t i = 0; i < sc->n; i++)
		bits += sc->disk_size / sc->items[i]->granularity;
	if (bits > USED_MAX * 8) {
		tide_strbuf_release(&first);
		return;
	}
	for (size_t i = 0; i < sc->n; i++) {
		fuzz_must(tide_sidecar_find(sc, sc->items[i]->name) == (long)i);
		use_bitmap(sc, sc->items[i]);
	}
	for (size_t i = 0; i < sc->n; i++) {
		/* A bitmap that cannot be loaded cannot be encoded either; it is kept unchanged. */
		if (sc->items[i]->bitmap || sc->items[i]->encoded)
			continue;
		fuzz_must(false);
	}
	other = again(sc, &second);
	tide_sidecar_free(other);
	tide_strbuf_release(&first);
	tide_strbuf_release(&second);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct tide_error err = TIDE_ERROR_INIT;
	uint8_t *file = malloc(size + 1);
	struct tide_sidecar *sc;

	fuzz_must(file);
	memcpy(file, data, size);
	seal(file, size);
	tide_sidecar_is_one(file, size);
	sc = tide_sidecar_decode(file, size, &err);
	free(file);
	if (!sc) {
		fuzz_failed(&err);
		return 0;
	}
	use(sc);
	tide_sidecar_free(sc);
	return 0;
}
