/*
 * The chunk records of a sidecar: the dirty granules of one bitmap, in chunks of fixed size. A
 * clean chunk has no record; the others are full, a list of positions, compressed with zstd, or
 * plain bits, whichever is smallest. This file checks, loads and makes records.
 */
#include "base/bytes.h"
#include "base/checksum.h"
#include "base/compress.h"
#include "base/range.h"
#include "sidecar_format.h"

#define CHUNK_BITS  TIDE_BITMAP_CHUNK_BITS
#define CHUNK_BYTES TIDE_BITMAP_CHUNK_BYTES

/* Up to this many bits a list takes about 512 bytes and no noticeable time. */
#define LIST_MAX   255u
#define ZSTD_LEVEL 1
/* Room for a record of any kind, and for zstd's output when compression gains nothing. */
#define RECORD_ROOM (TIDE_SIDECAR_RECORD_PAYLOAD + 2 * CHUNK_BYTES)

struct record {
	uint64_t at; /* offset in the file */
	uint64_t index;
	unsigned kind, bits; /* bits: how many this chunk has */
	const uint8_t *payload;
	size_t len;
};

static uint32_t record_crc(const uint8_t *p, size_t payload_len)
{
	uint32_t crc = tide_checksum_crc32c(0, p, TIDE_SIDECAR_RECORD_CRC);

	return tide_checksum_crc32c(crc, p + TIDE_SIDECAR_RECORD_PAYLOAD, payload_len);
}

static unsigned chunk_bits(uint64_t bits, uint64_t index)
{
	return (unsigned)TIDE_MIN((uint64_t)CHUNK_BITS, bits - index * CHUNK_BITS);
}

/* Reads the record at *pos and moves *pos to its end. */
static int next_record(const uint8_t *data, size_t len, uint64_t at, size_t *pos, struct record *r,
                       struct tide_error *err)
{
	const uint8_t *p = data + *pos;
	size_t left = len - *pos;

	*r = (struct record){ .at = at + *pos };
	if (left < TIDE_SIDECAR_RECORD_PAYLOAD)
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "chunk record at byte %" PRIu64 ": expected %d bytes, found %zu", r->at,
		                      TIDE_SIDECAR_RECORD_PAYLOAD, left);
	r->index = tide_get_le64(p + TIDE_SIDECAR_RECORD_INDEX);
	r->kind = tide_get_le16(p + TIDE_SIDECAR_RECORD_KIND);
	r->len = tide_get_le16(p + TIDE_SIDECAR_RECORD_LEN);
	r->payload = p + TIDE_SIDECAR_RECORD_PAYLOAD;
	left -= TIDE_SIDECAR_RECORD_PAYLOAD;
	if (r->len > left)
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "chunk length at byte %" PRIu64 ": expected at most %zu, found %zu",
		                      r->at + TIDE_SIDECAR_RECORD_LEN, left, r->len);
	*pos += TIDE_SIDECAR_RECORD_PAYLOAD + r->len;
	return 0;
}

/* ---- checking ---------------------------------------------------------------------- */

static int check_index(struct record *r, uint64_t bits, uint64_t next_index, struct tide_error *err)
{
	uint64_t chunks = tide_range_div_up(bits, CHUNK_BITS);

	if (r->index >= chunks || r->index < next_index)
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "chunk index at byte %" PRIu64 ": expected at least %" PRIu64
		                      " and less than %" PRIu64 ", found %" PRIu64,
		                      r->at, next_index, chunks, r->index);
	r->bits = chunk_bits(bits, r->index);
	return 0;
}

static int check_len(const struct record *r, size_t min, size_t max, struct tide_error *err)
{
	return tide_sidecar_format_check_range(err, "chunk length", r->at + TIDE_SIDECAR_RECORD_LEN, min, max, r->len);
}

static int check_list(const struct record *r, struct tide_error *err)
{
	unsigned next = 0;

	if (check_len(r, 2, 2 * r->bits, err) < 0)
		return -1;
	if (r->len % 2)
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "chunk length at byte %" PRIu64 ": expected an even number, found %zu",
		                      r->at + TIDE_SIDECAR_RECORD_LEN, r->len);
	for (size_t i = 0; i < r->len; i += 2) {
		unsigned pos = tide_get_le16(r->payload + i);

		if (tide_sidecar_format_check_range(err, "bit position", r->at + TIDE_SIDECAR_RECORD_PAYLOAD + i, next,
		                                    r->bits - 1, pos) < 0)
			return -1;
		next = pos + 1;
	}
	return 0;
}

/* Checks the bits of a whole chunk: at least one is set, none beyond the end of the disk. *count: how many are set. */
static int check_plain(const struct record *r, const uint8_t *data, unsigned *count, struct tide_error *err)
{
	unsigned past = 0;

	*count = 0;
	for (unsigned i = 0; i < CHUNK_BYTES; i += 8)
		*count += (unsigned)__builtin_popcountll(tide_get_le64(data + i));
	if (r->bits % 8)
		past = data[r->bits / 8] >> r->bits % 8;
	for (unsigned i = (r->bits + 7) / 8; i < CHUNK_BYTES; i++)
		past |= data[i];
	if (past)
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "chunk %" PRIu64 " at byte %" PRIu64
		                      ": expected no dirty bit past bit %u, found one",
		                      r->index, r->at, r->bits - 1);
	if (!*count)
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "chunk %" PRIu64 " at byte %" PRIu64 ": expected a dirty bit, found none",
		                      r->index, r->at);
	return 0;
}

/*
 * Checks the payload and adds the smallest and the largest number of dirty granules that it can contain. A
 * compressed payload is not unpacked here, so the two may differ.
 */
static int check_payload(const struct record *r, uint64_t *least, uint64_t *most, struct tide_error *err)
{
	unsigned min, max;

	switch (r->kind) {
	case TIDE_SIDECAR_KIND_FULL:
		if (check_len(r, 0, 0, err) < 0)
			return -1;
		min = max = r->bits;
		break;
	case TIDE_SIDECAR_KIND_LIST:
		if (check_list(r, err) < 0)
			return -1;
		min = max = (unsigned)r->len / 2;
		break;
	case TIDE_SIDECAR_KIND_ZSTD:
		if (check_len(r, 1, CHUNK_BYTES - 1, err) < 0)
			return -1;
		min = 1;
		max = r->bits;
		break;
	case TIDE_SIDECAR_KIND_PLAIN:
		if (check_len(r, CHUNK_BYTES, CHUNK_BYTES, err) < 0 || check_plain(r, r->payload, &min, err) < 0)
			return -1;
		max = min;
		break;
	default:
		return tide_error_set(
		        err, TIDE_E_UNSUPPORTED, "chunk kind at byte %" PRIu64 ": expected %d to %d, found %u",
		        r->at + TIDE_SIDECAR_RECORD_KIND, TIDE_SIDECAR_KIND_FULL, TIDE_SIDECAR_KIND_PLAIN, r->kind);
	}
	*least += min;
	*most += max;
	return 0;
}

int tide_sidecar_chunk_check(const uint8_t *data, size_t len, uint64_t at, uint64_t bits, uint64_t count,
                             uint64_t entry_at, struct tide_error *err)
{
	uint64_t next_index = 0, least = 0, most = 0;

	for (size_t pos = 0; pos < len;) {
		const uint8_t *p = data + pos;
		struct record r;

		if (next_record(data, len, at, &pos, &r, err) < 0 ||
		    tide_sidecar_format_check_crc(err, "chunk record", r.at + TIDE_SIDECAR_RECORD_CRC,
		                                  record_crc(p, r.len),
		                                  tide_get_le32(p + TIDE_SIDECAR_RECORD_CRC)) < 0 ||
		    check_index(&r, bits, next_index, err) < 0 || check_payload(&r, &least, &most, err) < 0)
			return -1;
		next_index = r.index + 1;
	}
	return tide_sidecar_format_check_range(err, "dirty count", entry_at + TIDE_SIDECAR_ENTRY_COUNT, least, most,
	                                       count);
}

/* ---- loading ----------------------------------------------------------------------- */

static int load_list(const struct record *r, struct tide_bitmap *bm, struct tide_error *err)
{
	uint16_t positions[TIDE_BITMAP_LIST_MAX];
	unsigned n = (unsigned)r->len / 2;

	for (unsigned i = 0; i < n; i++)
		positions[i] = tide_get_le16(r->payload + 2 * i);
	return tide_bitmap_put_list(bm, r->index, positions, n, err);
}

static int load_record(const struct record *r, struct tide_bitmap *bm, struct tide_error *err)
{
	uint8_t block[CHUNK_BYTES] = { 0 };
	const uint8_t *data = block;
	unsigned count;

	switch (r->kind) {
	case TIDE_SIDECAR_KIND_FULL:
		data = NULL;
		break;
	case TIDE_SIDECAR_KIND_LIST:
		if (r->len / 2 <= TIDE_BITMAP_LIST_MAX)
			return load_list(r, bm, err);
		for (size_t i = 0; i < r->len; i += 2) {
			unsigned pos = tide_get_le16(r->payload + i);
			block[pos / 8] |= (uint8_t)(1u << pos % 8);
		}
		break;
	case TIDE_SIDECAR_KIND_ZSTD:
		if (tide_compress_unzstd(block, sizeof(block), r->payload, r->len, true, err) < 0)
			return tide_error_wrap(err, "chunk %" PRIu64 " at byte %" PRIu64, r->index, r->at);
		if (check_plain(r, block, &count, err) < 0)
			return -1;
		break;
	default:
		data = r->payload;
	}
	return tide_bitmap_put_chunk(bm, r->index, data, err);
}

int tide_sidecar_chunk_load(const uint8_t *data, size_t len, struct tide_bitmap *bm, struct tide_error *err)
{
	uint64_t bits = tide_bitmap_bits(bm), next_index = 0, least = 0, most = 0;

	for (size_t pos = 0; pos < len;) {
		struct record r;

		if (next_record(data, len, 0, &pos, &r, err) < 0 || check_index(&r, bits, next_index, err) < 0 ||
		    check_payload(&r, &least, &most, err) < 0 || load_record(&r, bm, err) < 0)
			return -1;
		next_index = r.index + 1;
	}
	return 0;
}

/* ---- encoding ---------------------------------------------------------------------- */

/*
 * A mask of the words among 64 that are not zero. It has no branch per word, because set bits come at random and a
 * branch would be mispredicted.
 */
static uint64_t nonzero_words(const uint8_t *data)
{
	uint64_t mask = 0;

	for (unsigned i = 0; i < 64; i++)
		mask |= (uint64_t)(tide_get_le64(data + i * 8) != 0) << i;
	return mask;
}

/* Writes the positions of the set bits. Returns their length in bytes, or 0 when there are more than LIST_MAX. */
static size_t make_list(uint8_t *out, const uint8_t *data)
{
	size_t len = 0;

	for (unsigned i = 0; i < CHUNK_BYTES; i += 64 * 8) {
		for (uint64_t words = nonzero_words(data + i); words; words &= words - 1) {
			unsigned at = i + (unsigned)__builtin_ctzll(words) * 8;

			for (uint64_t word = tide_get_le64(data + at); word; word &= word - 1) {
				if (len == 2 * LIST_MAX)
					return 0;
				tide_put_le16(out + len, (uint16_t)(at * 8 + (unsigned)__builtin_ctzll(word)));
				len += 2;
			}
		}
	}
	return len;
}

/* Chooses the smallest record of a chunk that is not full, in the order: few bits, compressible, neither. */
static int make_payload(uint8_t *out, const uint8_t *data, unsigned *kind, size_t *len, struct tide_error *err)
{
	*kind = TIDE_SIDECAR_KIND_LIST;
	*len = make_list(out, data);
	if (*len)
		return 0;
	*kind = TIDE_SIDECAR_KIND_ZSTD;
	*len = 2 * CHUNK_BYTES;
	if (tide_compress_zstd(out, len, data, CHUNK_BYTES, ZSTD_LEVEL, err) < 0)
		return -1;
	if (*len < CHUNK_BYTES)
		return 0;
	*kind = TIDE_SIDECAR_KIND_PLAIN;
	*len = CHUNK_BYTES;
	memcpy(out, data, CHUNK_BYTES);
	return 0;
}

/* Makes the payload of a chunk that is not clean. */
static int make_record(uint8_t *out, const struct tide_bitmap *bm, uint64_t index, unsigned *kind, size_t *len,
                       struct tide_error *err)
{
	uint8_t buf[CHUNK_BYTES] __attribute__((aligned(8)));
	const uint16_t *positions;
	const uint8_t *data;
	unsigned n = tide_bitmap_get_list(bm, index, &positions);

	*kind = n ? TIDE_SIDECAR_KIND_LIST : TIDE_SIDECAR_KIND_FULL;
	*len = 2 * n;
	for (unsigned i = 0; i < n; i++)
		tide_put_le16(out + 2 * i, positions[i]);
	if (n || tide_bitmap_get_chunk(bm, index, buf, &data) == TIDE_BITMAP_CHUNK_FULL)
		return 0;
	return make_payload(out, data, kind, len, err);
}

int tide_sidecar_chunk_add(struct tide_strbuf *out, const struct tide_bitmap *bm, uint64_t *next, size_t enough,
                           struct tide_error *err)
{
	uint64_t chunks = tide_bitmap_chunks(bm);
	size_t before = out->len;

	for (uint64_t i = tide_bitmap_next_chunk(bm, *next); i < chunks; i = tide_bitmap_next_chunk(bm, i + 1)) {
		uint8_t p[RECORD_ROOM];
		unsigned kind;
		size_t len;

		if (make_record(p + TIDE_SIDECAR_RECORD_PAYLOAD, bm, i, &kind, &len, err) < 0)
			return -1;
		tide_put_le64(p + TIDE_SIDECAR_RECORD_INDEX, i);
		tide_put_le16(p + TIDE_SIDECAR_RECORD_KIND, (uint16_t)kind);
		tide_put_le16(p + TIDE_SIDECAR_RECORD_LEN, (uint16_t)len);
		tide_put_le32(p + TIDE_SIDECAR_RECORD_CRC, record_crc(p, len));
		tide_strbuf_add(out, p, TIDE_SIDECAR_RECORD_PAYLOAD + len);
		*next = i + 1;
		if (out->len - before >= enough)
			return 1;
	}
	return 0;
}
