/*
 * The write log's codec: the header, the two state slots and the list of bitmaps inside the image,
 * to bytes and back, field by field as man/tidemark-sidecar.5 specifies them. It does no I/O.
 * Decoding checks every field and reports the offset, the expected and the found value.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/checksum.h"
#include "base/error.h"
#include "base/lock.h"
#include "base/mem.h"
#include "base/range.h"
#include "base/sysio.h"
#include "write_log.h"

enum {
	AT_VERSION = 8,
	AT_HEADER_LEN = 12,
	AT_INCOMPATIBLE = 16,
	AT_COMPATIBLE = 24,
	AT_ID = 32,
	AT_GENERATION = 40,
	AT_SIDECAR_CRC = 48,
	AT_SHIFT = 52,
	AT_DISK_SIZE = 56,
	AT_BITS_AT = 64,
	AT_FILE_LEN = 72,
	AT_INSIDE = 80,
	AT_INSIDE_CRC = 84,
	AT_RESERVED = 88,
	AT_CRC = 508,
	HEADER_LEN = 512,
};

/* Within a slot. */
enum {
	SLOT_SEQUENCE = 0,
	SLOT_ID = 8,
	SLOT_TOKEN = 16,
	SLOT_FLAGS = 24,
	SLOT_NSEC = 28,
	SLOT_SIZE = 32,
	SLOT_SEC = 40,
	SLOT_BOOT = 48,
	SLOT_MOUNT = 64,
	SLOT_DEVICE = 72,
	SLOT_INODE = 80,
	SLOT_RESERVED = 88,
	SLOT_CRC = 508,
};

#define VERSION        1u
#define FLAG_STAMP     0x1u
#define FLAG_DURABLE   0x2u
#define FLAG_UNTRACKED 0x4u
#define FLAGS_ALL      0x7u
#define PAGE           UINT64_C(4096)
#define DISK_MAX       ((uint64_t)INT64_MAX)

uint64_t tide_write_log_bits_at(const struct tide_write_log_header *h)
{
	return tide_range_align_up(TIDE_WRITE_LOG_TABLE_AT + 8 * (uint64_t)h->n_in_image, PAGE);
}

uint64_t tide_write_log_file_len(const struct tide_write_log_header *h)
{
	uint64_t bits = tide_range_div_up(h->disk_size, UINT64_C(1) << h->shift);

	return tide_write_log_bits_at(h) + TIDE_MAX(tide_range_align_up(tide_range_div_up(bits, 8), PAGE), PAGE);
}

void tide_write_log_header_release(struct tide_write_log_header *h)
{
	free(h->in_image);
	*h = (struct tide_write_log_header)TIDE_WRITE_LOG_HEADER_INIT;
}

/* ---- writing ---- */

void tide_write_log_encode_slot(const struct tide_write_log_header *h, uint8_t out[TIDE_WRITE_LOG_SLOT_LEN])
{
	const struct tide_write_log_state *s = &h->state;

	memset(out, 0, TIDE_WRITE_LOG_SLOT_LEN);
	tide_put_le64(out + SLOT_SEQUENCE, s->sequence);
	tide_put_le64(out + SLOT_ID, h->id);
	tide_put_le64(out + SLOT_TOKEN, s->token);
	tide_put_le32(out + SLOT_FLAGS, (s->stamp.valid ? FLAG_STAMP : 0) | (s->durable ? FLAG_DURABLE : 0) |
	                                        (s->untracked ? FLAG_UNTRACKED : 0));
	if (s->stamp.valid) {
		tide_put_le32(out + SLOT_NSEC, s->stamp.mtime_nsec);
		tide_put_le64(out + SLOT_SIZE, s->stamp.size);
		tide_put_le64(out + SLOT_SEC, (uint64_t)s->stamp.mtime_sec);
	}
	memcpy(out + SLOT_BOOT, s->boot, sizeof(s->boot));
	tide_put_le64(out + SLOT_MOUNT, s->mount);
	tide_put_le64(out + SLOT_DEVICE, s->device);
	tide_put_le64(out + SLOT_INODE, s->inode);
	tide_put_le32(out + SLOT_CRC, tide_checksum_crc32c(0, out, SLOT_CRC));
}

void tide_write_log_encode(const struct tide_write_log_header *h, uint8_t *out)
{
	uint8_t *table = out + TIDE_WRITE_LOG_TABLE_AT;

	memcpy(out, TIDE_WRITE_LOG_MAGIC, 8);
	tide_put_le32(out + AT_VERSION, VERSION);
	tide_put_le32(out + AT_HEADER_LEN, HEADER_LEN);
	tide_put_le64(out + AT_COMPATIBLE, h->compatible);
	tide_put_le64(out + AT_ID, h->id);
	tide_put_le64(out + AT_GENERATION, h->generation);
	tide_put_le32(out + AT_SIDECAR_CRC, h->sidecar_crc);
	tide_put_le32(out + AT_SHIFT, h->shift);
	tide_put_le64(out + AT_DISK_SIZE, h->disk_size);
	tide_put_le64(out + AT_BITS_AT, tide_write_log_bits_at(h));
	tide_put_le64(out + AT_FILE_LEN, tide_write_log_file_len(h));
	tide_put_le32(out + AT_INSIDE, (uint32_t)h->n_in_image);
	for (size_t i = 0; i < h->n_in_image; i++)
		tide_put_le64(table + 8 * i, h->in_image[i]);
	tide_put_le32(out + AT_INSIDE_CRC, tide_checksum_crc32c(0, table, 8 * h->n_in_image));
	tide_put_le32(out + AT_CRC, tide_checksum_crc32c(0, out, AT_CRC));
	tide_write_log_encode_slot(h, out + TIDE_WRITE_LOG_SLOT_AT(h->state.sequence & 1));
}

/* ---- reading ---- */

/* Damage may have hit the magic or cut the file, so either of two fields is enough. */
bool tide_write_log_is_one(const uint8_t *head, size_t len)
{
	if (!memcmp(head, TIDE_WRITE_LOG_MAGIC, TIDE_MIN(len, (size_t)8)))
		return true;
	return len >= AT_INCOMPATIBLE && tide_get_le32(head + AT_VERSION) == VERSION &&
	       tide_get_le32(head + AT_HEADER_LEN) == HEADER_LEN;
}

static int bad(struct tide_error *err, const char *what, uint64_t at, uint64_t expected, uint64_t found)
{
	return tide_error_set(err, TIDE_E_CORRUPT, "%s at byte %" PRIu64 ": expected %" PRIu64 ", found %" PRIu64, what,
	                      at, expected, found);
}

static int check_crc(struct tide_error *err, const char *what, uint64_t at, uint32_t expected, uint32_t found)
{
	if (expected == found)
		return 0;
	return tide_error_set(err, TIDE_E_CORRUPT,
	                      "%s checksum at byte %" PRIu64 ": expected 0x%08" PRIx32 ", found 0x%08" PRIx32, what, at,
	                      expected, found);
}

static int check_range(struct tide_error *err, const char *what, uint64_t at, uint64_t min, uint64_t max,
                       uint64_t found)
{
	if (found >= min && found <= max)
		return 0;
	return tide_error_set(err, TIDE_E_CORRUPT,
	                      "%s at byte %" PRIu64 ": expected %" PRIu64 " to %" PRIu64 ", found %" PRIu64, what, at,
	                      min, max, found);
}

static int check_zeroes(struct tide_error *err, const uint8_t *head, uint64_t from, uint64_t to)
{
	for (uint64_t i = from; i < to; i++) {
		if (head[i])
			return bad(err, "reserved byte", i, 0, head[i]);
	}
	return 0;
}

/* These fields must be right before any other field has a meaning. */
static int check_start(const uint8_t *p, size_t len, struct tide_error *err)
{
	if (len < TIDE_WRITE_LOG_TABLE_AT)
		return bad(err, "length of the header", 0, TIDE_WRITE_LOG_TABLE_AT, len);
	if (memcmp(p, TIDE_WRITE_LOG_MAGIC, 8))
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "magic at byte 0: expected 0x%016" PRIx64 ", found 0x%016" PRIx64,
		                      tide_get_be64(TIDE_WRITE_LOG_MAGIC), tide_get_be64(p));
	if (tide_get_le32(p + AT_VERSION) != VERSION)
		return tide_error_set(err, TIDE_E_UNSUPPORTED, "version at byte %d: expected %u, found %" PRIu32,
		                      AT_VERSION, VERSION, tide_get_le32(p + AT_VERSION));
	if (tide_get_le32(p + AT_HEADER_LEN) != HEADER_LEN)
		return bad(err, "length of the header", AT_HEADER_LEN, HEADER_LEN, tide_get_le32(p + AT_HEADER_LEN));
	if (check_crc(err, "header", AT_CRC, tide_checksum_crc32c(0, p, AT_CRC), tide_get_le32(p + AT_CRC)) < 0)
		return -1;
	if (tide_get_le64(p + AT_INCOMPATIBLE))
		return tide_error_set(err, TIDE_E_UNSUPPORTED,
		                      "incompatible features at byte %d: expected none, found 0x%" PRIx64,
		                      AT_INCOMPATIBLE, tide_get_le64(p + AT_INCOMPATIBLE));
	return check_zeroes(err, p, AT_RESERVED, AT_CRC);
}

static int get_fields(const uint8_t *p, struct tide_write_log_header *h, struct tide_error *err)
{
	h->compatible = tide_get_le64(p + AT_COMPATIBLE);
	h->id = tide_get_le64(p + AT_ID);
	h->generation = tide_get_le64(p + AT_GENERATION);
	h->sidecar_crc = tide_get_le32(p + AT_SIDECAR_CRC);
	h->shift = tide_get_le32(p + AT_SHIFT);
	h->disk_size = tide_get_le64(p + AT_DISK_SIZE);
	h->n_in_image = tide_get_le32(p + AT_INSIDE);
	return check_range(err, "identity", AT_ID, 1, UINT64_MAX, h->id) < 0 ||
	                       check_range(err, "granularity", AT_SHIFT, 9, 31, h->shift) < 0 ||
	                       check_range(err, "size of the disk", AT_DISK_SIZE, 0, DISK_MAX, h->disk_size) < 0 ||
	                       check_range(err, "number of bitmaps inside the image", AT_INSIDE, 0,
	                                   TIDE_WRITE_LOG_INSIDE_MAX, h->n_in_image) < 0
	               ? -1
	               : 0;
}

static int check_lengths(const uint8_t *p, size_t len, uint64_t file_len, const struct tide_write_log_header *h,
                         struct tide_error *err)
{
	uint64_t bits_at = tide_write_log_bits_at(h), expected = tide_write_log_file_len(h);

	if (tide_get_le64(p + AT_BITS_AT) != bits_at)
		return bad(err, "offset of the bits", AT_BITS_AT, bits_at, tide_get_le64(p + AT_BITS_AT));
	if (tide_get_le64(p + AT_FILE_LEN) != expected)
		return bad(err, "length of the file", AT_FILE_LEN, expected, tide_get_le64(p + AT_FILE_LEN));
	if (file_len != expected)
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "the file: expected %" PRIu64 " bytes according to byte %d, found %" PRIu64,
		                      expected, AT_FILE_LEN, file_len);
	return len < bits_at ? bad(err, "bytes before the bits", 0, bits_at, len) : 0;
}

static int get_inside(const uint8_t *p, struct tide_write_log_header *h, struct tide_error *err)
{
	const uint8_t *table = p + TIDE_WRITE_LOG_TABLE_AT;

	if (check_crc(err, "list of bitmaps", AT_INSIDE_CRC, tide_checksum_crc32c(0, table, 8 * h->n_in_image),
	              tide_get_le32(p + AT_INSIDE_CRC)) < 0 ||
	    check_zeroes(err, p, TIDE_WRITE_LOG_TABLE_AT + 8 * h->n_in_image, tide_write_log_bits_at(h)) < 0)
		return -1;
	h->in_image = tide_mem_alloc(h->n_in_image + 1, sizeof(*h->in_image), err);
	for (size_t i = 0; h->in_image && i < h->n_in_image; i++)
		h->in_image[i] = tide_get_le64(table + 8 * i);
	return h->in_image ? 0 : -1;
}

/* 1: *s is the slot's state; 0: the slot was never written. */
static int get_slot(const uint8_t *head, unsigned i, uint64_t id, struct tide_write_log_state *s,
                    struct tide_error *err)
{
	uint64_t at = TIDE_WRITE_LOG_SLOT_AT(i);
	const uint8_t *p = head + at;
	uint32_t flags = tide_get_le32(p + SLOT_FLAGS);

	if (tide_sysio_is_zero(p, TIDE_WRITE_LOG_SLOT_LEN))
		return 0;
	if (check_crc(err, "state", at + SLOT_CRC, tide_checksum_crc32c(0, p, SLOT_CRC), tide_get_le32(p + SLOT_CRC)) <
	    0)
		return -1;
	if (tide_get_le64(p + SLOT_ID) != id)
		return bad(err, "identity of the state", at + SLOT_ID, id, tide_get_le64(p + SLOT_ID));
	*s = (struct tide_write_log_state){
		.sequence = tide_get_le64(p + SLOT_SEQUENCE),
		.token = tide_get_le64(p + SLOT_TOKEN),
		.durable = flags & FLAG_DURABLE,
		.untracked = flags & FLAG_UNTRACKED,
		.mount = tide_get_le64(p + SLOT_MOUNT),
		.device = tide_get_le64(p + SLOT_DEVICE),
		.inode = tide_get_le64(p + SLOT_INODE),
		.stamp = {
			.valid = flags & FLAG_STAMP,
			.size = tide_get_le64(p + SLOT_SIZE),
			.mtime_sec = (int64_t)tide_get_le64(p + SLOT_SEC),
			.mtime_nsec = tide_get_le32(p + SLOT_NSEC),
		},
	};
	memcpy(s->boot, p + SLOT_BOOT, sizeof(s->boot));
	if (check_range(err, "flags of the state", at + SLOT_FLAGS, 0, FLAGS_ALL, flags) < 0 ||
	    check_range(err, "token", at + SLOT_TOKEN, 0, TIDE_LOCK_TOKEN_MAX, s->token) < 0 ||
	    check_range(err, "nanoseconds of the stamp", at + SLOT_NSEC, 0, 999999999, s->stamp.mtime_nsec) < 0 ||
	    check_zeroes(err, head, at + SLOT_RESERVED, at + SLOT_CRC) < 0)
		return -1;
	return (s->sequence & 1) == i ? 1
	                              : bad(err, "sequence number of the state", at + SLOT_SEQUENCE, i, s->sequence);
}

/*
 * The newer of the two states. Both slots must be sound: a slot fits in one sector, which no crash tears, so a bad
 * checksum is damage and not an interrupted write.
 */
static int get_state(const uint8_t *head, struct tide_write_log_header *h, struct tide_error *err)
{
	struct tide_write_log_state s[2];
	int found[2];

	for (unsigned i = 0; i < 2; i++) {
		found[i] = get_slot(head, i, h->id, &s[i], err);
		if (found[i] < 0)
			return -1;
	}
	if (!found[0] && !found[1])
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "states at bytes %u and %u: expected at least one, found none",
		                      TIDE_WRITE_LOG_SLOT_AT(0), TIDE_WRITE_LOG_SLOT_AT(1));
	h->state = !found[1] || (found[0] && s[0].sequence > s[1].sequence) ? s[0] : s[1];
	return 0;
}

int tide_write_log_decode(const uint8_t *head, size_t len, uint64_t file_len, struct tide_write_log_header *out,
                          struct tide_error *err)
{
	*out = (struct tide_write_log_header)TIDE_WRITE_LOG_HEADER_INIT;
	if (check_start(head, len, err) == 0 && get_fields(head, out, err) == 0 &&
	    check_lengths(head, len, file_len, out, err) == 0 && get_inside(head, out, err) == 0 &&
	    get_state(head, out, err) == 0)
		return 0;
	tide_write_log_header_release(out);
	return -1;
}
