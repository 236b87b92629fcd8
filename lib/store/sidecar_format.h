/*
 * The layout of a sidecar, as man/tidemark-sidecar.5 specifies it: byte offsets, bits and
 * kinds.  Internal to the codec: sidecar_decode.c, sidecar_encode.c, sidecar_chunk.c,
 * sidecar_lineage.c, sidecar_device.c.
 *
 * Header, directory (one entry a bitmap, a successor after its parent), with a feature bit the lineage area, then each
 * entry's chunk records in the directory's order, without gaps.
 */
#ifndef TIDE_SIDECAR_FORMAT_H
#define TIDE_SIDECAR_FORMAT_H

#include <inttypes.h>

#include "base/error.h"
#include "base/lock.h"
#include "sidecar.h"

#define TIDE_SIDECAR_MAGIC   "\x89TIDE\r\n\x1a"
#define TIDE_SIDECAR_VERSION 1u

enum tide_sidecar_header {
	TIDE_SIDECAR_AT_MAGIC = 0,
	TIDE_SIDECAR_AT_VERSION = 8,
	TIDE_SIDECAR_AT_HEADER_LEN = 12,
	TIDE_SIDECAR_AT_INCOMPATIBLE = 16,
	TIDE_SIDECAR_AT_COMPATIBLE = 24,
	TIDE_SIDECAR_AT_GENERATION = 32,
	TIDE_SIDECAR_AT_FILE_LEN = 40,
	TIDE_SIDECAR_AT_DISK_SIZE = 48,
	TIDE_SIDECAR_AT_FORMAT = 56,
	TIDE_SIDECAR_AT_STAMP_SIZE = 72,
	TIDE_SIDECAR_AT_STAMP_SEC = 80,
	TIDE_SIDECAR_AT_STAMP_NSEC = 88,
	TIDE_SIDECAR_AT_FLAGS = 92,
	TIDE_SIDECAR_AT_WRITER = 96,
	TIDE_SIDECAR_AT_DIR_LEN = 104,
	TIDE_SIDECAR_AT_ENTRIES = 108,
	TIDE_SIDECAR_AT_DIR_CRC = 112,
	TIDE_SIDECAR_AT_LOG = 116,
	TIDE_SIDECAR_AT_HEADER_CRC = 124,
	TIDE_SIDECAR_HEADER_LEN = TIDE_SIDECAR_HEAD,
};

#define TIDE_SIDECAR_STAMP_VALID 0x1u

/* The incompatible features: the lineage area follows the directory, and it describes a block device. */
#define TIDE_SIDECAR_LINEAGE  UINT64_C(0x1)
#define TIDE_SIDECAR_DEVICE   UINT64_C(0x2)
#define TIDE_SIDECAR_FEATURES (TIDE_SIDECAR_LINEAGE | TIDE_SIDECAR_DEVICE)

enum tide_sidecar_entry {
	TIDE_SIDECAR_ENTRY_LEN = 0,
	TIDE_SIDECAR_ENTRY_NAME_LEN = 4,
	TIDE_SIDECAR_ENTRY_SHIFT = 6,
	TIDE_SIDECAR_ENTRY_FLAGS = 7,
	TIDE_SIDECAR_ENTRY_TOKEN = 8,
	TIDE_SIDECAR_ENTRY_COUNT = 16,
	TIDE_SIDECAR_ENTRY_DATA_OFF = 24,
	TIDE_SIDECAR_ENTRY_DATA_LEN = 32,
	TIDE_SIDECAR_ENTRY_NAME = 40, /* then the group's path, if any; then zeroes to a multiple of 8 */
};

#define TIDE_SIDECAR_ENABLED   0x01u
#define TIDE_SIDECAR_UNTRACKED 0x02u
#define TIDE_SIDECAR_BUSY      0x04u
#define TIDE_SIDECAR_GROUP     0x08u /* after the name: u16 length, absolute path of the group's record */
#define TIDE_SIDECAR_SUCCESSOR 0x10u /* the next entry is this one's successor */
#define TIDE_SIDECAR_FLAGS_ALL 0x1fu
#define TIDE_SIDECAR_UNCHECKED 0x20u /* only beside the description of a block device */

#define TIDE_SIDECAR_NAME_MAX  1023u
#define TIDE_SIDECAR_GROUP_MAX 4095u
#define TIDE_SIDECAR_DISK_MAX  ((uint64_t)INT64_MAX)

enum tide_sidecar_record {
	TIDE_SIDECAR_RECORD_INDEX = 0,
	TIDE_SIDECAR_RECORD_KIND = 8,
	TIDE_SIDECAR_RECORD_LEN = 10,
	TIDE_SIDECAR_RECORD_CRC = 12, /* over the 12 bytes before it and the payload */
	TIDE_SIDECAR_RECORD_PAYLOAD = 16,
};

enum tide_sidecar_kind {
	TIDE_SIDECAR_KIND_FULL = 1,
	TIDE_SIDECAR_KIND_LIST = 2,
	TIDE_SIDECAR_KIND_ZSTD = 3,
	TIDE_SIDECAR_KIND_PLAIN = 4,
};

/* group_len 0: no group. */
static inline size_t tide_sidecar_entry_len(size_t name_len, size_t group_len)
{
	return (TIDE_SIDECAR_ENTRY_NAME + name_len + (group_len ? 2 + group_len : 0) + 7) & ~(size_t)7;
}

/* The lineage area: its head, then records.  Each record and the area take a multiple of 8 bytes. */
enum tide_sidecar_area {
	TIDE_SIDECAR_AREA_LEN = 0, /* of the whole area */
	TIDE_SIDECAR_AREA_CRC = 4, /* over the bytes after it */
	TIDE_SIDECAR_AREA_DISK = 8,
	TIDE_SIDECAR_AREA_RECORDS = 24,
};

/* The common forms of messages about damage. */
static inline int tide_sidecar_format_bad(struct tide_error *err, const char *what, uint64_t at, uint64_t expected,
                                          uint64_t found)
{
	return tide_error_set(err, TIDE_E_CORRUPT, "%s at byte %" PRIu64 ": expected %" PRIu64 ", found %" PRIu64, what,
	                      at, expected, found);
}

static inline int tide_sidecar_format_check_range(struct tide_error *err, const char *what, uint64_t at, uint64_t min,
                                                  uint64_t max, uint64_t found)
{
	if (found >= min && found <= max)
		return 0;
	if (min == max)
		return tide_sidecar_format_bad(err, what, at, min, found);
	return tide_error_set(err, TIDE_E_CORRUPT,
	                      "%s at byte %" PRIu64 ": expected %" PRIu64 " to %" PRIu64 ", found %" PRIu64, what, at,
	                      min, max, found);
}

static inline int tide_sidecar_format_check_crc(struct tide_error *err, const char *what, uint64_t at,
                                                uint32_t expected, uint32_t found)
{
	if (expected == found)
		return 0;
	return tide_error_set(err, TIDE_E_CORRUPT,
	                      "%s checksum at byte %" PRIu64 ": expected 0x%08" PRIx32 ", found 0x%08" PRIx32, what, at,
	                      expected, found);
}

/* Does each name occur once? 0: yes. -1: *twice is a duplicate name, or NULL with the error set. */
int tide_sidecar_names_check(const struct tide_sidecar *sc, const char **twice, struct tide_error *err);

/*
 * Chunk records (sidecar_chunk.c).
 *
 * check: checks everything that needs no decompression. at is the offset of data in the file; count is the
 * number of dirty granules that the entry at byte entry_at states.
 *
 * load: puts the chunks, checked before, into a clean bitmap.
 *
 * add: appends the records of a bitmap from chunk *next on, until they reach `enough` bytes. Returns 1 with
 * *next as the chunk to continue at, or 0 when no more follow.
 */
int tide_sidecar_chunk_check(const uint8_t *data, size_t len, uint64_t at, uint64_t bits, uint64_t count,
                             uint64_t entry_at, struct tide_error *err);
int tide_sidecar_chunk_load(const uint8_t *data, size_t len, struct tide_bitmap *bm, struct tide_error *err);
int tide_sidecar_chunk_add(struct tide_strbuf *out, const struct tide_bitmap *bm, uint64_t *next, size_t enough,
                           struct tide_error *err);

/*
 * The lineage area (sidecar_lineage.c).
 *
 * is_needed: does this sidecar have anything to put there?  len: the area's length.  put: its bytes.
 *
 * get: checks the area at data, which may have `len` bytes, and moves its content to sc, whose bitmaps are complete. at
 * is its offset in the file.
 */
bool tide_sidecar_lineage_is_needed(const struct tide_sidecar *sc);
size_t tide_sidecar_lineage_len(const struct tide_sidecar *sc);
void tide_sidecar_lineage_put(const struct tide_sidecar *sc, uint8_t *out);
int tide_sidecar_lineage_get(struct tide_sidecar *sc, const uint8_t *data, size_t len, uint64_t at,
                             struct tide_error *err);

/* The payload of the record of a block device there (sidecar_device.c), with the same meaning. */
size_t tide_sidecar_device_len(const struct tide_device *device);
void tide_sidecar_device_put(const struct tide_device *device, uint8_t *out);
int tide_sidecar_device_get(struct tide_device *device, const uint8_t *data, size_t len, uint64_t at,
                            struct tide_error *err);

#endif
