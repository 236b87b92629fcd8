/*
 * Decodes a sidecar. The file is not trusted: the header, the directory and each bitmap's chunk
 * records are checked before they are used, and every failed check has a message of its own. A
 * small file is read at once; of a large one the header and directory are read first, then each
 * entry's chunk records straight into the entry.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/checksum.h"
#include "base/mem.h"
#include "base/range.h"
#include "sidecar_format.h"

/* A sidecar up to this size is read at once. */
#define AT_ONCE ((size_t)256 << 10)

struct decoder {
	const uint8_t *data;
	size_t have; /* bytes in data, which include the directory and the lineage area */
	size_t len;  /* bytes in the file; the reader supplies those after `have` */
	const struct tide_sidecar_reader *reader;
	struct tide_sidecar *sc;
	uint64_t entry_at, dir_end; /* offset of the next directory entry, and the end of the directory */
	uint64_t area_len;          /* of the lineage area after the directory, or 0 */
	uint64_t data_at;           /* where the next entry's chunk records must begin */
	uint32_t n;                 /* entries so far */
};

/* ---- header ------------------------------------------------------------------------ */

static int check_magic(const struct decoder *d, struct tide_error *err)
{
	char hex[17] = "";
	size_t n = TIDE_MIN(d->len, (size_t)8);

	if (n && memcmp(d->data, TIDE_SIDECAR_MAGIC, n)) {
		for (size_t i = 0; i < n; i++)
			snprintf(hex + i * 2, 3, "%02x", d->data[i]);
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "sidecar magic at byte 0: expected 89544944450d0a1a, found %s", hex);
	}
	if (d->len < TIDE_SIDECAR_HEADER_LEN)
		return tide_error_set(err, TIDE_E_CORRUPT, "sidecar header at byte 0: expected %d bytes, found %zu",
		                      TIDE_SIDECAR_HEADER_LEN, d->len);
	return 0;
}

/* Names each unknown feature bit. */
static int refuse_features(uint64_t bits, struct tide_error *err)
{
	char list[64 * 4] = "";
	size_t used = 0;

	for (unsigned i = 0; i < 64; i++)
		if (bits >> i & 1)
			used += (size_t)snprintf(list + used, sizeof(list) - used, used ? ", %u" : "%u", i);
	return tide_error_set(err, TIDE_E_UNSUPPORTED,
	                      "sidecar incompatible features at byte %d: expected none, found 0x%" PRIx64 " (bit %s)",
	                      TIDE_SIDECAR_AT_INCOMPATIBLE, bits, list);
}

/* These fields must be right before any other field has a meaning. */
static int check_header(const struct decoder *d, struct tide_error *err)
{
	const uint8_t *p = d->data;
	uint32_t version = tide_get_le32(p + TIDE_SIDECAR_AT_VERSION);
	uint32_t header_len = tide_get_le32(p + TIDE_SIDECAR_AT_HEADER_LEN);
	uint64_t features = tide_get_le64(p + TIDE_SIDECAR_AT_INCOMPATIBLE);

	if (version != TIDE_SIDECAR_VERSION)
		return tide_error_set(err, TIDE_E_UNSUPPORTED,
		                      "sidecar version at byte %d: expected %u, found %" PRIu32,
		                      TIDE_SIDECAR_AT_VERSION, TIDE_SIDECAR_VERSION, version);
	if (header_len != TIDE_SIDECAR_HEADER_LEN)
		return tide_sidecar_format_bad(err, "sidecar header length", TIDE_SIDECAR_AT_HEADER_LEN,
		                               TIDE_SIDECAR_HEADER_LEN, header_len);
	if (tide_sidecar_format_check_crc(err, "sidecar header", TIDE_SIDECAR_AT_HEADER_CRC,
	                                  tide_checksum_crc32c(0, p, TIDE_SIDECAR_AT_HEADER_CRC),
	                                  tide_get_le32(p + TIDE_SIDECAR_AT_HEADER_CRC)) < 0)
		return -1;
	if (features & ~TIDE_SIDECAR_FEATURES)
		return refuse_features(features & ~TIDE_SIDECAR_FEATURES, err);
	if (tide_get_le64(p + TIDE_SIDECAR_AT_FILE_LEN) != d->len)
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "sidecar: expected %" PRIu64 " bytes according to byte %d, found %zu",
		                      tide_get_le64(p + TIDE_SIDECAR_AT_FILE_LEN), TIDE_SIDECAR_AT_FILE_LEN, d->len);
	return 0;
}

static int get_format(const struct decoder *d, struct tide_error *err)
{
	struct tide_sidecar *sc = d->sc;
	const char *p = (const char *)d->data + TIDE_SIDECAR_AT_FORMAT;
	size_t len = strnlen(p, sizeof(sc->format));

	if (len < 1 || len > TIDE_SIDECAR_FORMAT_MAX)
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "sidecar image format at byte %d: expected a name of 1 to %d bytes, found %zu",
		                      TIDE_SIDECAR_AT_FORMAT, TIDE_SIDECAR_FORMAT_MAX, len);
	for (size_t i = len; i < sizeof(sc->format); i++)
		if (p[i])
			return tide_sidecar_format_bad(err, "sidecar image format's padding",
			                               TIDE_SIDECAR_AT_FORMAT + i, 0, (uint8_t)p[i]);
	memcpy(sc->format, p, sizeof(sc->format));
	return 0;
}

static int get_stamp(const struct decoder *d, struct tide_error *err)
{
	struct tide_stamp *stamp = &d->sc->stamp;
	uint32_t flags = tide_get_le32(d->data + TIDE_SIDECAR_AT_FLAGS);

	if (flags & ~TIDE_SIDECAR_STAMP_VALID)
		return tide_sidecar_format_bad(err, "sidecar flags", TIDE_SIDECAR_AT_FLAGS, TIDE_SIDECAR_STAMP_VALID,
		                               flags);
	stamp->valid = flags & TIDE_SIDECAR_STAMP_VALID;
	stamp->size = tide_get_le64(d->data + TIDE_SIDECAR_AT_STAMP_SIZE);
	stamp->mtime_sec = (int64_t)tide_get_le64(d->data + TIDE_SIDECAR_AT_STAMP_SEC);
	stamp->mtime_nsec = tide_get_le32(d->data + TIDE_SIDECAR_AT_STAMP_NSEC);
	if (!stamp->valid && (stamp->size || stamp->mtime_sec || stamp->mtime_nsec))
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "sidecar stamp at byte %d: expected zeroes, because byte %d marks "
		                      "it as invalid",
		                      TIDE_SIDECAR_AT_STAMP_SIZE, TIDE_SIDECAR_AT_FLAGS);
	return tide_sidecar_format_check_range(err, "sidecar stamp's nanoseconds", TIDE_SIDECAR_AT_STAMP_NSEC, 0,
	                                       999999999, stamp->mtime_nsec);
}

/* The area's length and checksum; its content is read when the bitmaps are complete. */
static int check_area(struct decoder *d, struct tide_error *err)
{
	const uint8_t *p = d->data + d->dir_end;
	uint64_t left = d->len - d->dir_end;

	if (left < TIDE_SIDECAR_AREA_RECORDS || d->have - d->dir_end < TIDE_SIDECAR_AREA_RECORDS)
		return tide_sidecar_format_bad(err, "lineage length", d->dir_end, TIDE_SIDECAR_AREA_RECORDS, left);
	d->area_len = tide_get_le32(p + TIDE_SIDECAR_AREA_LEN);
	if (tide_sidecar_format_check_range(err, "lineage length", d->dir_end, TIDE_SIDECAR_AREA_RECORDS,
	                                    TIDE_MIN(left, d->have - d->dir_end), d->area_len) < 0)
		return -1;
	d->data_at += d->area_len;
	return tide_sidecar_format_check_crc(
	        err, "sidecar lineage", d->dir_end,
	        tide_checksum_crc32c(0, p + TIDE_SIDECAR_AREA_DISK, d->area_len - TIDE_SIDECAR_AREA_DISK),
	        tide_get_le32(p + TIDE_SIDECAR_AREA_CRC));
}

static int get_header(struct decoder *d, struct tide_error *err)
{
	struct tide_sidecar *sc = d->sc;
	const uint8_t *p = d->data;
	uint32_t dir_len = tide_get_le32(p + TIDE_SIDECAR_AT_DIR_LEN);

	sc->compatible = tide_get_le64(p + TIDE_SIDECAR_AT_COMPATIBLE);
	sc->generation = tide_get_le64(p + TIDE_SIDECAR_AT_GENERATION);
	sc->disk_size = tide_get_le64(p + TIDE_SIDECAR_AT_DISK_SIZE);
	sc->writer = tide_get_le64(p + TIDE_SIDECAR_AT_WRITER);
	sc->log = tide_get_le64(p + TIDE_SIDECAR_AT_LOG);
	sc->checksum = tide_get_le32(p + TIDE_SIDECAR_AT_HEADER_CRC);
	if (tide_sidecar_format_check_range(err, "sidecar disk size", TIDE_SIDECAR_AT_DISK_SIZE, 0,
	                                    TIDE_SIDECAR_DISK_MAX, sc->disk_size) < 0 ||
	    tide_sidecar_format_check_range(err, "sidecar writer token", TIDE_SIDECAR_AT_WRITER, 0, TIDE_LOCK_TOKEN_MAX,
	                                    sc->writer) < 0 ||
	    get_format(d, err) < 0 || get_stamp(d, err) < 0 ||
	    tide_sidecar_format_check_range(err, "sidecar directory length", TIDE_SIDECAR_AT_DIR_LEN, 0,
	                                    d->len - TIDE_SIDECAR_HEADER_LEN, dir_len) < 0)
		return -1;
	d->entry_at = TIDE_SIDECAR_HEADER_LEN;
	d->dir_end = d->data_at = TIDE_SIDECAR_HEADER_LEN + (uint64_t)dir_len;
	if (tide_sidecar_format_check_crc(err, "sidecar directory", TIDE_SIDECAR_AT_DIR_CRC,
	                                  tide_checksum_crc32c(0, p + TIDE_SIDECAR_HEADER_LEN, dir_len),
	                                  tide_get_le32(p + TIDE_SIDECAR_AT_DIR_CRC)) < 0)
		return -1;
	return tide_get_le64(p + TIDE_SIDECAR_AT_INCOMPATIBLE) & TIDE_SIDECAR_LINEAGE ? check_area(d, err) : 0;
}

/* ---- directory --------------------------------------------------------------------- */

/* The length of the group's path, which follows the name; 0: no group. */
static int check_group(const struct decoder *d, size_t name_len, uint64_t left, size_t *group_len,
                       struct tide_error *err)
{
	uint64_t at = TIDE_SIDECAR_ENTRY_NAME + name_len;

	*group_len = 0;
	if (!(d->data[d->entry_at + TIDE_SIDECAR_ENTRY_FLAGS] & TIDE_SIDECAR_GROUP))
		return 0;
	if (at + 2 > left)
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "bitmap entry at byte %" PRIu64 ": expected at least %" PRIu64
		                      " bytes, found %" PRIu64,
		                      d->entry_at, at + 2, left);
	*group_len = tide_get_le16(d->data + d->entry_at + at);
	return tide_sidecar_format_check_range(err, "group path length", d->entry_at + at, 1, TIDE_SIDECAR_GROUP_MAX,
	                                       *group_len);
}

/* Checks lengths, name and padding of the entry at entry_at. *name_len: 0 for a successor. */
static int check_entry(const struct decoder *d, const struct tide_sidecar_bitmap *parent, size_t *name_len,
                       size_t *group_len, struct tide_error *err)
{
	const uint8_t *p = d->data + d->entry_at;
	uint64_t left = d->dir_end - d->entry_at;

	if (left < TIDE_SIDECAR_ENTRY_NAME)
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "bitmap entry at byte %" PRIu64 ": expected at least %d bytes, found %" PRIu64,
		                      d->entry_at, TIDE_SIDECAR_ENTRY_NAME, left);
	*name_len = tide_get_le16(p + TIDE_SIDECAR_ENTRY_NAME_LEN);
	if (tide_sidecar_format_check_range(err, parent ? "successor's name length" : "bitmap name length",
	                                    d->entry_at + TIDE_SIDECAR_ENTRY_NAME_LEN, !parent,
	                                    parent ? 0 : TIDE_SIDECAR_NAME_MAX, *name_len) < 0)
		return -1;
	if (check_group(d, *name_len, left, group_len, err) < 0)
		return -1;
	size_t len = tide_sidecar_entry_len(*name_len, *group_len);
	size_t used = TIDE_SIDECAR_ENTRY_NAME + *name_len + (*group_len ? 2 + *group_len : 0);
	if (tide_get_le32(p + TIDE_SIDECAR_ENTRY_LEN) != len)
		return tide_sidecar_format_bad(err, "bitmap entry length", d->entry_at + TIDE_SIDECAR_ENTRY_LEN, len,
		                               tide_get_le32(p + TIDE_SIDECAR_ENTRY_LEN));
	if (len > left)
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "bitmap entry at byte %" PRIu64 ": expected %zu bytes, found %" PRIu64,
		                      d->entry_at, len, left);
	const uint8_t *nul = memchr(p + TIDE_SIDECAR_ENTRY_NAME, 0, *name_len);
	if (!nul && *group_len)
		nul = memchr(p + used - *group_len, 0, *group_len);
	if (nul)
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "bitmap name at byte %" PRIu64 ": expected no NUL, found one",
		                      (uint64_t)(nul - d->data));
	for (size_t i = used; i < len; i++)
		if (p[i])
			return tide_sidecar_format_bad(err, "bitmap entry's padding", d->entry_at + i, 0, p[i]);
	return 0;
}

static int check_flags(const struct decoder *d, unsigned flags, uint64_t token,
                       const struct tide_sidecar_bitmap *parent, struct tide_error *err)
{
	unsigned allowed = TIDE_SIDECAR_FLAGS_ALL;

	if (tide_get_le64(d->data + TIDE_SIDECAR_AT_INCOMPATIBLE) & TIDE_SIDECAR_DEVICE)
		allowed |= TIDE_SIDECAR_UNCHECKED;
	if (parent)
		allowed = TIDE_SIDECAR_ENABLED | TIDE_SIDECAR_UNTRACKED;
	else if (!(flags & TIDE_SIDECAR_BUSY))
		allowed &= ~(TIDE_SIDECAR_GROUP | TIDE_SIDECAR_SUCCESSOR);
	if (flags & ~allowed)
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "bitmap flags at byte %" PRIu64 ": expected none but 0x%x, found 0x%x",
		                      d->entry_at + TIDE_SIDECAR_ENTRY_FLAGS, allowed, flags);
	bool busy = flags & TIDE_SIDECAR_BUSY;
	return tide_sidecar_format_check_range(err, "bitmap token", d->entry_at + TIDE_SIDECAR_ENTRY_TOKEN, busy,
	                                       busy ? TIDE_LOCK_TOKEN_MAX : 0, token);
}

static int get_granularity(const struct decoder *d, const struct tide_sidecar_bitmap *parent, uint64_t *granularity,
                           struct tide_error *err)
{
	unsigned shift = d->data[d->entry_at + TIDE_SIDECAR_ENTRY_SHIFT];
	uint64_t at = d->entry_at + TIDE_SIDECAR_ENTRY_SHIFT;
	unsigned min = parent ? tide_range_shift(parent->granularity) : 9;

	if (tide_sidecar_format_check_range(err, parent ? "successor's granularity shift" : "bitmap granularity shift",
	                                    at, min, parent ? min : 31, shift) < 0)
		return -1;
	*granularity = UINT64_C(1) << shift;
	return 0;
}

/* Checks the chunk records and keeps them encoded. */
static int get_data(struct decoder *d, struct tide_sidecar_bitmap *e, struct tide_error *err)
{
	const uint8_t *p = d->data + d->entry_at;
	uint64_t off = tide_get_le64(p + TIDE_SIDECAR_ENTRY_DATA_OFF),
	         len = tide_get_le64(p + TIDE_SIDECAR_ENTRY_DATA_LEN);
	uint64_t bits = tide_range_div_up(d->sc->disk_size, e->granularity);

	if (off != d->data_at)
		return tide_sidecar_format_bad(err, "chunk data offset", d->entry_at + TIDE_SIDECAR_ENTRY_DATA_OFF,
		                               d->data_at, off);
	if (tide_sidecar_format_check_range(err, "chunk data length", d->entry_at + TIDE_SIDECAR_ENTRY_DATA_LEN, 0,
	                                    d->len - off, len) < 0)
		return -1;
	e->count = tide_get_le64(p + TIDE_SIDECAR_ENTRY_COUNT);
	e->encoded = tide_mem_realloc(NULL, (size_t)len, 1, err);
	if (!e->encoded)
		return -1;
	e->encoded_len = (size_t)len;
	if (off + len <= d->have)
		memcpy(e->encoded, d->data + off, (size_t)len);
	else if (d->reader->read(d->reader->ctx, e->encoded, (size_t)len, off, err) < 0)
		return -1;
	if (tide_sidecar_chunk_check(e->encoded, (size_t)len, off, bits, e->count, d->entry_at, err) < 0)
		return -1;
	d->data_at = off + len;
	return 0;
}

static int get_fields(struct decoder *d, struct tide_sidecar_bitmap *e, const struct tide_sidecar_bitmap *parent,
                      unsigned *flags, struct tide_error *err)
{
	const uint8_t *p = d->data + d->entry_at;
	size_t name_len = 0, group_len = 0;

	if (check_entry(d, parent, &name_len, &group_len, err) < 0)
		return -1;
	*flags = p[TIDE_SIDECAR_ENTRY_FLAGS];
	e->token = tide_get_le64(p + TIDE_SIDECAR_ENTRY_TOKEN);
	if (check_flags(d, *flags, e->token, parent, err) < 0 || get_granularity(d, parent, &e->granularity, err) < 0)
		return -1;
	e->enabled = *flags & TIDE_SIDECAR_ENABLED;
	e->untracked = *flags & TIDE_SIDECAR_UNTRACKED;
	e->unchecked = *flags & TIDE_SIDECAR_UNCHECKED;
	if (!parent && !(e->name = tide_mem_strndup((const char *)p + TIDE_SIDECAR_ENTRY_NAME, name_len, err)))
		return -1;
	if (group_len &&
	    !(e->group = tide_mem_strndup((const char *)p + TIDE_SIDECAR_ENTRY_NAME + name_len + 2, group_len, err)))
		return -1;
	if (get_data(d, e, err) < 0)
		return -1;
	d->entry_at += tide_sidecar_entry_len(name_len, group_len);
	d->n++;
	return 0;
}

static void freep(struct tide_sidecar_bitmap **entry)
{
	tide_sidecar_bitmap_free(*entry);
}

/* Decodes one entry, and the next one with it when that is its successor. */
static int get_entry(struct decoder *d, const struct tide_sidecar_bitmap *parent, struct tide_sidecar_bitmap **out,
                     struct tide_error *err)
{
	TIDE_CLEANUP(freep) struct tide_sidecar_bitmap *e = tide_mem_alloc(1, sizeof(*e), err);
	unsigned flags;

	if (!e || get_fields(d, e, parent, &flags, err) < 0)
		return -1;
	if ((flags & TIDE_SIDECAR_SUCCESSOR) && get_entry(d, e, &e->successor, err) < 0)
		return -1;
	*out = e;
	e = NULL;
	return 0;
}

static int get_directory(struct decoder *d, struct tide_error *err)
{
	uint32_t entries = tide_get_le32(d->data + TIDE_SIDECAR_AT_ENTRIES);
	const char *twice;

	while (d->entry_at < d->dir_end) {
		struct tide_sidecar_bitmap *e;

		if (get_entry(d, NULL, &e, err) < 0)
			return -1;
		if (tide_sidecar_insert(d->sc, d->sc->n, e, err) < 0) {
			tide_sidecar_bitmap_free(e);
			return -1;
		}
	}
	if (d->n != entries)
		return tide_sidecar_format_bad(err, "sidecar entry count", TIDE_SIDECAR_AT_ENTRIES, d->n, entries);
	if (d->data_at != d->len)
		return tide_sidecar_format_bad(err, "sidecar file length", TIDE_SIDECAR_AT_FILE_LEN, d->data_at,
		                               d->len);
	if (tide_sidecar_names_check(d->sc, &twice, err) == 0)
		return 0;
	if (!twice)
		return -1;
	return tide_error_set(err, TIDE_E_CORRUPT,
	                      "sidecar directory at byte %d: expected each bitmap name once, found '%s' again",
	                      TIDE_SIDECAR_HEADER_LEN, twice);
}

/* The bit lets older versions refuse the file before they find the record. */
static int check_device_bit(const struct decoder *d, struct tide_error *err)
{
	bool bit = tide_get_le64(d->data + TIDE_SIDECAR_AT_INCOMPATIBLE) & TIDE_SIDECAR_DEVICE;

	return bit == d->sc->device.is_one
	               ? 0
	               : tide_sidecar_format_bad(err, "sidecar feature bit of a device", TIDE_SIDECAR_AT_INCOMPATIBLE,
	                                         d->sc->device.is_one, bit);
}

static struct tide_sidecar *decode(struct decoder *d, struct tide_error *err)
{
	if (check_magic(d, err) < 0 || check_header(d, err) < 0)
		return NULL;
	d->sc = tide_sidecar_new(err);
	if (!d->sc)
		return NULL;
	if (get_header(d, err) == 0 && get_directory(d, err) == 0 &&
	    (!d->area_len ||
	     tide_sidecar_lineage_get(d->sc, d->data + d->dir_end, d->area_len, d->dir_end, err) == 0) &&
	    check_device_bit(d, err) == 0)
		return d->sc;
	tide_sidecar_free(d->sc);
	return NULL;
}

struct tide_sidecar *tide_sidecar_decode(const void *data, size_t len, struct tide_error *err)
{
	struct decoder d = { .data = data, .have = len, .len = len };

	return decode(&d, err);
}

/*
 * The end of the directory, or of the lineage area, according to fields that are not checked yet; at most len. If
 * more bytes are needed to know it, their end.
 */
static size_t head_end(const uint8_t *head, size_t have, size_t len)
{
	uint64_t end;

	if (have < TIDE_SIDECAR_HEADER_LEN)
		return have;
	end = TIDE_SIDECAR_HEADER_LEN + (uint64_t)tide_get_le32(head + TIDE_SIDECAR_AT_DIR_LEN);
	if (tide_get_le64(head + TIDE_SIDECAR_AT_INCOMPATIBLE) & TIDE_SIDECAR_LINEAGE) {
		if (end + TIDE_SIDECAR_AREA_RECORDS <= have)
			end += TIDE_MAX(tide_get_le32(head + end + TIDE_SIDECAR_AREA_LEN),
			                (uint32_t)TIDE_SIDECAR_AREA_RECORDS);
		else
			end += TIDE_SIDECAR_AREA_RECORDS;
	}
	return (size_t)TIDE_MIN((uint64_t)len, end);
}

/* The first `have` bytes of the file. */
static uint8_t *read_head(const struct tide_sidecar_reader *reader, size_t have, struct tide_error *err)
{
	uint8_t *data = tide_mem_aligned(64, have + 1, err);

	if (data && reader->read(reader->ctx, data, have, 0, err) < 0) {
		free(data);
		data = NULL;
	}
	return data;
}

struct tide_sidecar *tide_sidecar_read(const struct tide_sidecar_reader *reader, size_t len, struct tide_error *err)
{
	size_t have = TIDE_MIN(len, AT_ONCE), need;
	TIDE_AUTOFREE uint8_t *data = read_head(reader, have, err);
	struct decoder d = { .data = data, .have = have, .len = len, .reader = reader };

	if (!data)
		return NULL;
	while ((need = head_end(data, have, len)) > have) {
		free(data);
		d.data = data = read_head(reader, need, err);
		if (!data)
			return NULL;
		d.have = have = need;
	}
	return decode(&d, err);
}

bool tide_sidecar_is_one(const void *head, size_t len)
{
	return len >= 8 && !memcmp(head, TIDE_SIDECAR_MAGIC, 8);
}

uint32_t tide_sidecar_checksum(const void *head, size_t len)
{
	const uint8_t *p = head;

	return len >= TIDE_SIDECAR_HEADER_LEN && tide_sidecar_is_one(head, len)
	               ? tide_get_le32(p + TIDE_SIDECAR_AT_HEADER_CRC)
	               : 0;
}
