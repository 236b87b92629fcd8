/*
 * The lineage area of a sidecar: the disk's identifier, the bases of the bitmaps, the last full backup, the birth
 * record of an image that is itself a backup, and the block device (sidecar_device.c). man/tidemark-sidecar.5 specifies
 * it. As everywhere in the codec, each field is checked before it is used.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/checksum.h"
#include "base/mem.h"
#include "base/range.h"
#include "sidecar_format.h"

enum record { BASE = 1, LAST_FULL = 2, BIRTH = 3, DEVICE = 4, INSIDE = 5, TOKEN = 6 };

/* A record's head: its kind, zeroes, the length of its payload. */
enum { RECORD_KIND = 0, RECORD_LEN = 4, RECORD_PAYLOAD = 8 };

/* The payload of a base: after the number of the bitmap in the directory, or the stamp of the full backup. */
enum {
	BASE_ID = 0,
	BASE_TIME = 16,
	BASE_FINGERPRINT = 24, /* 32 bytes; zeroes: unknown */
	BASE_PAUSED = 56,
	BASE_PATH = 80,
};

enum { STAMP_SIZE = 0, STAMP_SEC = 8, STAMP_NSEC = 16, STAMP_VALID = 20, STAMP_BYTES = 24 };

#define NUMBER_BYTES 8u

/* Before the base of a bitmap inside the image: its name, zeroes to this length; a u16, the name's length, at 0. */
#define INSIDE_NAME  2u
#define PATH_MAX_LEN 4095u

/* ---- writing ----------------------------------------------------------------------- */

bool tide_sidecar_lineage_is_needed(const struct tide_sidecar *sc)
{
	if (tide_id_is_set(&sc->disk) || sc->birth || sc->last_full || sc->inside.n || sc->device.is_one)
		return true;
	for (size_t i = 0; i < sc->n; i++) {
		if (sc->items[i]->base)
			return true;
	}
	return false;
}

static size_t record_len(size_t payload)
{
	return RECORD_PAYLOAD + (size_t)tide_range_align_up(payload, 8);
}

static size_t base_len(const struct tide_base *base)
{
	return BASE_PATH + strnlen(base->path, PATH_MAX_LEN);
}

/* The length of the name, with its own length, in the payload. */
static size_t inside_name_len(size_t name_len)
{
	return (size_t)tide_range_align_up(INSIDE_NAME + name_len, 8);
}

static size_t inside_len(const struct tide_named_base *item)
{
	return inside_name_len(strlen(item->name)) + base_len(&item->base);
}

/* Without bases it says nothing. */
static bool has_token(const struct tide_sidecar *sc)
{
	return sc->inside.n && tide_id_is_set(&sc->inside.token);
}

size_t tide_sidecar_lineage_len(const struct tide_sidecar *sc)
{
	uint8_t birth[TIDE_BIRTH_BYTES_MAX];
	size_t len = TIDE_SIDECAR_AREA_RECORDS;

	for (size_t i = 0; i < sc->n; i++) {
		if (sc->items[i]->base)
			len += record_len(NUMBER_BYTES + base_len(sc->items[i]->base));
	}
	for (size_t i = 0; i < sc->inside.n; i++)
		len += record_len(inside_len(&sc->inside.items[i]));
	if (has_token(sc))
		len += record_len(TIDE_ID_BYTES);
	if (sc->last_full)
		len += record_len(STAMP_BYTES + base_len(&sc->last_full->base));
	if (sc->device.is_one)
		len += record_len(tide_sidecar_device_len(&sc->device));
	return len + (sc->birth ? record_len(tide_birth_encode(sc->birth, birth)) : 0);
}

static uint8_t *put_head(uint8_t *p, enum record kind, size_t payload)
{
	memset(p, 0, record_len(payload));
	tide_put_le16(p + RECORD_KIND, kind);
	tide_put_le32(p + RECORD_LEN, (uint32_t)payload);
	return p + RECORD_PAYLOAD;
}

static void put_stamp(uint8_t *p, const struct tide_stamp *stamp)
{
	if (!stamp->valid)
		return;
	tide_put_le64(p + STAMP_SIZE, stamp->size);
	tide_put_le64(p + STAMP_SEC, (uint64_t)stamp->mtime_sec);
	tide_put_le32(p + STAMP_NSEC, stamp->mtime_nsec);
	tide_put_le32(p + STAMP_VALID, 1);
}

/* The value of a lower-case hexadecimal digit. */
static unsigned digit(char c)
{
	return c <= '9' ? (unsigned)(c - '0') : (unsigned)(c - 'a' + 10);
}

static void put_base(uint8_t *p, const struct tide_base *base)
{
	memcpy(p + BASE_ID, base->id.bytes, TIDE_ID_BYTES);
	tide_put_le64(p + BASE_TIME, (uint64_t)base->time);
	for (size_t i = 0; base->fingerprint[0] && i < 32; i++)
		p[BASE_FINGERPRINT + i] =
		        (uint8_t)(digit(base->fingerprint[2 * i]) << 4 | digit(base->fingerprint[2 * i + 1]));
	put_stamp(p + BASE_PAUSED, &base->paused);
	memcpy(p + BASE_PATH, base->path, base_len(base) - BASE_PATH);
}

static uint8_t *put_bases(const struct tide_sidecar *sc, uint8_t *p)
{
	for (size_t i = 0; i < sc->n; i++) {
		const struct tide_base *base = sc->items[i]->base;
		uint8_t *payload;

		if (!base)
			continue;
		payload = put_head(p, BASE, NUMBER_BYTES + base_len(base));
		tide_put_le64(payload, i);
		put_base(payload + NUMBER_BYTES, base);
		p += record_len(NUMBER_BYTES + base_len(base));
	}
	return p;
}

static uint8_t *put_inside(const struct tide_sidecar *sc, uint8_t *p)
{
	for (size_t i = 0; i < sc->inside.n; i++) {
		const struct tide_named_base *item = &sc->inside.items[i];
		uint8_t *payload = put_head(p, INSIDE, inside_len(item));
		size_t len = strlen(item->name);

		tide_put_le16(payload, (uint16_t)len);
		memcpy(payload + INSIDE_NAME, item->name, len);
		put_base(payload + inside_name_len(len), &item->base);
		p += record_len(inside_len(item));
	}
	if (has_token(sc)) {
		memcpy(put_head(p, TOKEN, TIDE_ID_BYTES), sc->inside.token.bytes, TIDE_ID_BYTES);
		p += record_len(TIDE_ID_BYTES);
	}
	return p;
}

void tide_sidecar_lineage_put(const struct tide_sidecar *sc, uint8_t *out)
{
	uint8_t birth[TIDE_BIRTH_BYTES_MAX];
	size_t len = tide_sidecar_lineage_len(sc);
	uint8_t *p = out + TIDE_SIDECAR_AREA_RECORDS;

	memcpy(out + TIDE_SIDECAR_AREA_DISK, sc->disk.bytes, TIDE_ID_BYTES);
	p = put_inside(sc, put_bases(sc, p));
	if (sc->last_full) {
		size_t n = STAMP_BYTES + base_len(&sc->last_full->base);
		uint8_t *payload = put_head(p, LAST_FULL, n);

		put_stamp(payload, &sc->last_full->stamp);
		put_base(payload + STAMP_BYTES, &sc->last_full->base);
		p += record_len(n);
	}
	if (sc->birth) {
		size_t n = tide_birth_encode(sc->birth, birth);

		memcpy(put_head(p, BIRTH, n), birth, n);
		p += record_len(n);
	}
	if (sc->device.is_one)
		tide_sidecar_device_put(&sc->device, put_head(p, DEVICE, tide_sidecar_device_len(&sc->device)));
	tide_put_le32(out + TIDE_SIDECAR_AREA_LEN, (uint32_t)len);
	tide_put_le32(out + TIDE_SIDECAR_AREA_CRC,
	              tide_checksum_crc32c(0, out + TIDE_SIDECAR_AREA_DISK, len - TIDE_SIDECAR_AREA_DISK));
}

/* ---- reading ----------------------------------------------------------------------- */

static int get_stamp(struct tide_stamp *stamp, const uint8_t *p, uint64_t at, struct tide_error *err)
{
	if (tide_sidecar_format_check_range(err, "lineage stamp's flag", at + STAMP_VALID, 0, 1,
	                                    tide_get_le32(p + STAMP_VALID)) < 0 ||
	    tide_sidecar_format_check_range(err, "lineage stamp's nanoseconds", at + STAMP_NSEC, 0, 999999999,
	                                    tide_get_le32(p + STAMP_NSEC)) < 0)
		return -1;
	stamp->valid = tide_get_le32(p + STAMP_VALID);
	stamp->size = tide_get_le64(p + STAMP_SIZE);
	stamp->mtime_sec = (int64_t)tide_get_le64(p + STAMP_SEC);
	stamp->mtime_nsec = tide_get_le32(p + STAMP_NSEC);
	return 0;
}

static int get_base(struct tide_base **out, const uint8_t *p, size_t len, uint64_t at, struct tide_error *err)
{
	static const uint8_t none[32];
	TIDE_AUTOFREE char *path = NULL;
	struct tide_base *base;
	struct tide_stamp paused;
	struct tide_id id;

	if (tide_sidecar_format_check_range(err, "base's length", at, BASE_PATH + 1, BASE_PATH + PATH_MAX_LEN, len) < 0)
		return -1;
	if (memchr(p + BASE_PATH, 0, len - BASE_PATH))
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "base's path at byte %" PRIu64 ": expected no NUL, found one", at + BASE_PATH);
	if (get_stamp(&paused, p + BASE_PAUSED, at + BASE_PAUSED, err) < 0)
		return -1;
	path = tide_mem_strndup((const char *)p + BASE_PATH, len - BASE_PATH, err);
	memcpy(id.bytes, p + BASE_ID, TIDE_ID_BYTES);
	base = path ? tide_lineage_base_new(&id, (int64_t)tide_get_le64(p + BASE_TIME), path, err) : NULL;
	if (!base)
		return -1;
	base->paused = paused;
	if (memcmp(p + BASE_FINGERPRINT, none, sizeof(none)) != 0) {
		for (size_t i = 0; i < 32; i++)
			snprintf(base->fingerprint + 2 * i, 3, "%02x", p[BASE_FINGERPRINT + i]);
	}
	*out = base;
	return 0;
}

static int get_bitmap_base(struct tide_sidecar *sc, const uint8_t *p, size_t len, uint64_t at, struct tide_error *err)
{
	struct tide_sidecar_bitmap *entry;

	if (tide_sidecar_format_check_range(err, "length of a bitmap's base", at, NUMBER_BYTES,
	                                    NUMBER_BYTES + BASE_PATH + PATH_MAX_LEN, len) < 0 ||
	    (sc->n == 0 ? tide_sidecar_format_bad(err, "number of bases", at, 0, 1)
	                : tide_sidecar_format_check_range(err, "number of a base's bitmap", at, 0, sc->n - 1,
	                                                  tide_get_le64(p))) < 0)
		return -1;
	entry = sc->items[tide_get_le64(p)];
	if (entry->base)
		return tide_error_set(err, TIDE_E_CORRUPT, "base at byte %" PRIu64 ": bitmap '%s' has one already", at,
		                      entry->name);
	return get_base(&entry->base, p + NUMBER_BYTES, len - NUMBER_BYTES, at + NUMBER_BYTES, err);
}

static int get_inside(struct tide_sidecar *sc, const uint8_t *p, size_t len, uint64_t at, struct tide_error *err)
{
	size_t name_len = len >= INSIDE_NAME ? tide_get_le16(p) : 0, before = inside_name_len(name_len);
	TIDE_AUTOFREE char *name = NULL;
	struct tide_base *base;
	int rc;

	if (tide_sidecar_format_check_range(err, "length of a name inside the image", at, 1, TIDE_SIDECAR_NAME_MAX,
	                                    name_len) < 0 ||
	    tide_sidecar_format_check_range(err, "length of a base inside the image", at, before + BASE_PATH + 1,
	                                    before + BASE_PATH + PATH_MAX_LEN, len) < 0)
		return -1;
	name = tide_mem_strndup((const char *)p + INSIDE_NAME, name_len, err);
	if (!name || get_base(&base, p + before, len - before, at + before, err) < 0)
		return -1;
	rc = tide_lineage_named_find(&sc->inside, name)
	             ? tide_error_set(err, TIDE_E_CORRUPT,
	                              "base at byte %" PRIu64 ": bitmap '%s' inside the image has one already", at,
	                              name)
	             : tide_lineage_named_add(&sc->inside, name, base, err);
	tide_lineage_base_free(base);
	return rc;
}

static int get_token(struct tide_sidecar *sc, const uint8_t *p, size_t len, uint64_t at, struct tide_error *err)
{
	if (tide_id_is_set(&sc->inside.token))
		return tide_error_set(err, TIDE_E_CORRUPT, "token at byte %" PRIu64 ": there is one already", at);
	if (tide_sidecar_format_check_range(err, "length of the token", at, TIDE_ID_BYTES, TIDE_ID_BYTES, len) < 0)
		return -1;
	memcpy(sc->inside.token.bytes, p, TIDE_ID_BYTES);
	return 0;
}

static int get_last_full(struct tide_sidecar *sc, const uint8_t *p, size_t len, uint64_t at, struct tide_error *err)
{
	struct tide_stamp stamp;
	struct tide_base *base;

	if (sc->last_full)
		return tide_error_set(err, TIDE_E_CORRUPT, "last full backup at byte %" PRIu64 ": there is one already",
		                      at);
	if (tide_sidecar_format_check_range(err, "length of the last full backup", at, STAMP_BYTES,
	                                    STAMP_BYTES + BASE_PATH + PATH_MAX_LEN, len) < 0 ||
	    get_stamp(&stamp, p, at, err) < 0 ||
	    get_base(&base, p + STAMP_BYTES, len - STAMP_BYTES, at + STAMP_BYTES, err) < 0)
		return -1;
	sc->last_full = tide_mem_alloc(1, sizeof(*sc->last_full), err);
	if (!sc->last_full) {
		tide_lineage_base_free(base);
		return -1;
	}
	sc->last_full->stamp = stamp;
	sc->last_full->base = *base;
	free(base);
	return 0;
}

static int get_birth(struct tide_sidecar *sc, const uint8_t *p, size_t len, uint64_t at, struct tide_error *err)
{
	if (sc->birth)
		return tide_error_set(err, TIDE_E_CORRUPT, "birth record at byte %" PRIu64 ": there is one already",
		                      at);
	if (tide_birth_decode(p, len, &sc->birth, err) < 0)
		return -1;
	if (!sc->birth->unknown)
		return 0;
	/* It could not be written again. */
	return tide_error_set(err, sc->birth->is_later ? TIDE_E_UNSUPPORTED : TIDE_E_CORRUPT,
	                      "birth record at byte %" PRIu64 ": it %s", at, sc->birth->unknown);
}

static int get_record(struct tide_sidecar *sc, const uint8_t *p, size_t len, uint64_t at, struct tide_error *err)
{
	unsigned kind = tide_get_le16(p + RECORD_KIND);

	at += RECORD_PAYLOAD;
	switch (kind) {
	case BASE:
		return get_bitmap_base(sc, p + RECORD_PAYLOAD, len, at, err);
	case LAST_FULL:
		return get_last_full(sc, p + RECORD_PAYLOAD, len, at, err);
	case INSIDE:
		return get_inside(sc, p + RECORD_PAYLOAD, len, at, err);
	case TOKEN:
		return get_token(sc, p + RECORD_PAYLOAD, len, at, err);
	case BIRTH:
		return get_birth(sc, p + RECORD_PAYLOAD, len, at, err);
	case DEVICE:
		return tide_sidecar_device_get(&sc->device, p + RECORD_PAYLOAD, len, at, err);
	default:
		return tide_error_set(err, TIDE_E_UNSUPPORTED, "lineage record at byte %" PRIu64 ": unknown kind %u",
		                      at - RECORD_PAYLOAD, kind);
	}
}

int tide_sidecar_lineage_get(struct tide_sidecar *sc, const uint8_t *data, size_t len, uint64_t at,
                             struct tide_error *err)
{
	memcpy(sc->disk.bytes, data + TIDE_SIDECAR_AREA_DISK, TIDE_ID_BYTES);
	for (size_t off = TIDE_SIDECAR_AREA_RECORDS; off < len;) {
		size_t left = len - off, payload;

		if (left < RECORD_PAYLOAD)
			return tide_sidecar_format_bad(err, "end of the lineage", at + off, RECORD_PAYLOAD, left);
		payload = tide_get_le32(data + off + RECORD_LEN);
		if (payload > left - RECORD_PAYLOAD || record_len(payload) > left)
			return tide_sidecar_format_bad(err, "length of a lineage record", at + off + RECORD_LEN,
			                               left - RECORD_PAYLOAD, payload);
		if (get_record(sc, data + off, payload, at + off, err) < 0)
			return -1;
		off += record_len(payload);
	}
	return 0;
}
