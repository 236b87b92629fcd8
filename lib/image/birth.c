/* The codec of birth records. */
#include "birth.h"

#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/checksum.h"
#include "base/mem.h"
#include "base/range.h"

#define VERSION 1u

/*
 * Names are for people, and are cut to this, so that the header of a qcow2 keeps room in its first sector for a list of
 * bitmaps beside the record.
 */
#define NAMES_MAX  24u
#define BITMAP_MAX 16u

enum {
	AT_VERSION = 0,
	AT_FLAGS = 2,
	AT_SYNC = 4,
	AT_LEN = 6,
	AT_ID = 8,
	AT_DISK = 24,
	AT_POINT = 40,
	AT_BASE = 56,
	AT_TIME = 72,
	AT_EXACT_SIZE = 80,
	AT_DEVICE_LEN = 88,
	AT_BITMAP_LEN = 90,
	AT_BASE_TIME = 92,
	AT_FINGERPRINT = 100,
	AT_TEXT = 116, /* the bitmap's name, the device's id, then the checksum */
};

enum { FLAG_PART = 1 << 0, FLAG_INCOMPLETE = 1 << 1, FLAGS_KNOWN = FLAG_PART | FLAG_INCOMPLETE };

void tide_birth_free(struct tide_birth *birth)
{
	if (!birth)
		return;
	free(birth->device);
	free(birth->bitmap);
	free(birth);
}

void tide_birth_freep(struct tide_birth **birth)
{
	tide_birth_free(*birth);
}

bool tide_birth_has_fingerprint(const struct tide_birth *birth)
{
	static const uint8_t none[TIDE_BIRTH_FINGERPRINT_BYTES];

	return memcmp(birth->fingerprint, none, sizeof(none)) != 0;
}

struct tide_birth *tide_birth_copy(const struct tide_birth *birth, struct tide_error *err)
{
	TIDE_AUTOBIRTH struct tide_birth *copy = tide_mem_alloc(1, sizeof(*copy), err);
	struct tide_birth *ret;

	if (!copy)
		return NULL;
	*copy = *birth;
	copy->device = copy->bitmap = NULL;
	if ((birth->device && !(copy->device = tide_mem_strdup(birth->device, err))) ||
	    (birth->bitmap && !(copy->bitmap = tide_mem_strdup(birth->bitmap, err))))
		return NULL;
	ret = copy;
	copy = NULL;
	return ret;
}

/* Puts at most max bytes of a name, whole characters of UTF-8. */
static size_t put_text(uint8_t *out, uint8_t *len, const char *text, size_t max)
{
	size_t n = text ? strlen(text) : 0;

	if (n > max)
		for (n = max; n && ((uint8_t)text[n] & 0xc0) == 0x80;)
			n--;
	tide_put_le16(len, (uint16_t)n);
	if (n)
		memcpy(out, text, n);
	return n;
}

size_t tide_birth_encode(const struct tide_birth *birth, uint8_t *out)
{
	size_t at = AT_TEXT;

	memset(out, 0, AT_TEXT);
	tide_put_le16(out + AT_VERSION, VERSION);
	tide_put_le16(out + AT_FLAGS,
	              (uint16_t)((birth->is_part ? FLAG_PART : 0) | (birth->is_incomplete ? FLAG_INCOMPLETE : 0)));
	out[AT_SYNC] = (uint8_t)birth->sync;
	memcpy(out + AT_ID, birth->id.bytes, TIDE_ID_BYTES);
	memcpy(out + AT_DISK, birth->disk.bytes, TIDE_ID_BYTES);
	memcpy(out + AT_POINT, birth->point.bytes, TIDE_ID_BYTES);
	memcpy(out + AT_BASE, birth->base.bytes, TIDE_ID_BYTES);
	tide_put_le64(out + AT_TIME, (uint64_t)birth->time);
	tide_put_le64(out + AT_EXACT_SIZE, birth->exact_size);
	tide_put_le64(out + AT_BASE_TIME, (uint64_t)birth->base_time);
	memcpy(out + AT_FINGERPRINT, birth->fingerprint, TIDE_BIRTH_FINGERPRINT_BYTES);
	at += put_text(out + at, out + AT_BITMAP_LEN, birth->bitmap, BITMAP_MAX);
	at += put_text(out + at, out + AT_DEVICE_LEN, birth->device, AT_TEXT + NAMES_MAX - at);
	tide_put_le16(out + AT_LEN, (uint16_t)(at + 4));
	tide_put_le32(out + at, tide_checksum_crc32c(0, out, at));
	return at + 4;
}

/* Is this a whole record whose bytes are as they were written? */
static bool is_sound(const uint8_t *data, size_t len)
{
	size_t n;

	if (len < AT_TEXT + 4 || tide_get_le16(data + AT_VERSION) != VERSION)
		return false;
	n = tide_get_le16(data + AT_LEN);
	if (n > len ||
	    n != (size_t)AT_TEXT + tide_get_le16(data + AT_DEVICE_LEN) + tide_get_le16(data + AT_BITMAP_LEN) + 4)
		return false;
	return tide_get_le32(data + n - 4) == tide_checksum_crc32c(0, data, n - 4) && data[AT_SYNC] <= TIDE_SYNC_AUTO;
}

static int get_text(char **text, const uint8_t *data, size_t len, struct tide_error *err)
{
	if (len == 0)
		return 0;
	*text = tide_mem_strndup((const char *)data, strnlen((const char *)data, len), err);
	return *text ? 0 : -1;
}

struct tide_birth *tide_birth_unknown(bool is_later, struct tide_error *err)
{
	struct tide_birth *birth = tide_mem_alloc(1, sizeof(*birth), err);

	if (birth) {
		birth->unknown = is_later ? "was made by a later version" : "is damaged";
		birth->is_later = is_later;
	}
	return birth;
}

/* May the record be one that only a later version understands? */
static bool is_later(const uint8_t *data, size_t len)
{
	if (len < AT_FLAGS || tide_get_le16(data + AT_VERSION) < VERSION)
		return false;
	return tide_get_le16(data + AT_VERSION) > VERSION ||
	       (is_sound(data, len) && (tide_get_le16(data + AT_FLAGS) & ~(unsigned)FLAGS_KNOWN));
}

int tide_birth_decode(const uint8_t *data, size_t len, struct tide_birth **out, struct tide_error *err)
{
	TIDE_AUTOBIRTH struct tide_birth *birth = NULL;
	bool later = is_later(data, len);
	size_t bitmap;

	if (later || !is_sound(data, len)) {
		*out = tide_birth_unknown(later, err);
		return *out ? 0 : -1;
	}
	*out = NULL;
	birth = tide_mem_alloc(1, sizeof(*birth), err);
	if (!birth)
		return -1;
	memcpy(birth->id.bytes, data + AT_ID, TIDE_ID_BYTES);
	memcpy(birth->disk.bytes, data + AT_DISK, TIDE_ID_BYTES);
	memcpy(birth->point.bytes, data + AT_POINT, TIDE_ID_BYTES);
	memcpy(birth->base.bytes, data + AT_BASE, TIDE_ID_BYTES);
	birth->time = (int64_t)tide_get_le64(data + AT_TIME);
	birth->sync = data[AT_SYNC];
	birth->is_part = tide_get_le16(data + AT_FLAGS) & FLAG_PART;
	birth->is_incomplete = tide_get_le16(data + AT_FLAGS) & FLAG_INCOMPLETE;
	birth->exact_size = tide_get_le64(data + AT_EXACT_SIZE);
	birth->base_time = (int64_t)tide_get_le64(data + AT_BASE_TIME);
	memcpy(birth->fingerprint, data + AT_FINGERPRINT, TIDE_BIRTH_FINGERPRINT_BYTES);
	bitmap = tide_get_le16(data + AT_BITMAP_LEN);
	if (get_text(&birth->bitmap, data + AT_TEXT, bitmap, err) < 0 ||
	    get_text(&birth->device, data + AT_TEXT + bitmap, tide_get_le16(data + AT_DEVICE_LEN), err) < 0)
		return -1;
	*out = birth;
	birth = NULL;
	return 0;
}
