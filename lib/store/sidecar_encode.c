/*
 * Encodes a sidecar: checks that it can be stored, then writes each entry's chunk records, and the
 * header and directory last, when offsets and checksums are known. With a writer, chunk records
 * leave memory in parts as they are made; without one the whole sidecar stays in the string buffer.
 */
#include <string.h>

#include "base/bytes.h"
#include "base/checksum.h"
#include "base/range.h"
#include "sidecar_format.h"

/* The encoder refuses whatever the decoder would refuse. */
static int check_entry(const struct tide_sidecar *sc, const struct tide_sidecar_bitmap *e, struct tide_error *err)
{
	const char *name = e->name ? e->name : "(successor)";

	if (!tide_range_is_pow2(e->granularity) || e->granularity < TIDE_BITMAP_GRANULARITY_MIN ||
	    e->granularity > TIDE_BITMAP_GRANULARITY_MAX)
		return tide_error_set(err, TIDE_E_REFUSED, "Bitmap '%s': granularity %" PRIu64 " cannot be stored",
		                      name, e->granularity);
	if (e->bitmap &&
	    (tide_bitmap_size(e->bitmap) != sc->disk_size || tide_bitmap_granularity(e->bitmap) != e->granularity))
		return tide_error_set(err, TIDE_E_REFUSED,
		                      "Bitmap '%s': size %" PRIu64 " and granularity %" PRIu64
		                      " cannot be stored, expected %" PRIu64 " and %" PRIu64,
		                      name, tide_bitmap_size(e->bitmap), tide_bitmap_granularity(e->bitmap),
		                      sc->disk_size, e->granularity);
	if (e->token > TIDE_LOCK_TOKEN_MAX)
		return tide_error_set(err, TIDE_E_REFUSED, "Bitmap '%s': lock token %" PRIu64 " cannot be stored", name,
		                      e->token);
	return 0;
}

static int check_named(const struct tide_sidecar *sc, const struct tide_sidecar_bitmap *e, struct tide_error *err)
{
	const struct tide_sidecar_bitmap *s = e->successor;
	size_t len = e->name ? strlen(e->name) : 0;

	if (len < 1 || len > TIDE_SIDECAR_NAME_MAX)
		return tide_error_set(err, TIDE_E_REFUSED, "A bitmap name of %zu bytes cannot be stored", len);
	if (check_entry(sc, e, err) < 0)
		return -1;
	if (e->group && (!e->token || !*e->group || strlen(e->group) > TIDE_SIDECAR_GROUP_MAX))
		return tide_error_set(err, TIDE_E_REFUSED, "Bitmap '%s': its group's path cannot be stored", e->name);
	if (!s)
		return 0;
	if (!e->token || s->token || s->name || s->successor || s->granularity != e->granularity)
		return tide_error_set(err, TIDE_E_REFUSED, "Bitmap '%s': its successor cannot be stored", e->name);
	return check_entry(sc, s, err);
}

static int check_sidecar(const struct tide_sidecar *sc, struct tide_error *err)
{
	size_t format_len = strnlen(sc->format, sizeof(sc->format));
	const char *twice;

	if (sc->disk_size > TIDE_SIDECAR_DISK_MAX)
		return tide_error_set(err, TIDE_E_REFUSED, "A disk of %" PRIu64 " bytes cannot be stored",
		                      sc->disk_size);
	if (format_len < 1 || format_len > TIDE_SIDECAR_FORMAT_MAX)
		return tide_error_set(err, TIDE_E_REFUSED, "An image format's name of %zu bytes cannot be stored",
		                      format_len);
	if (sc->stamp.valid && sc->stamp.mtime_nsec > 999999999)
		return tide_error_set(err, TIDE_E_REFUSED, "A time with %" PRIu32 " nanoseconds cannot be stored",
		                      sc->stamp.mtime_nsec);
	if (sc->writer > TIDE_LOCK_TOKEN_MAX)
		return tide_error_set(err, TIDE_E_REFUSED, "The writer's lock token %" PRIu64 " cannot be stored",
		                      sc->writer);
	for (size_t i = 0; i < sc->n; i++)
		if (check_named(sc, sc->items[i], err) < 0)
			return -1;
	if (tide_sidecar_names_check(sc, &twice, err) == 0)
		return 0;
	return twice ? tide_error_set(err, TIDE_E_REFUSED, "Bitmap already exists: %s", twice) : -1;
}

/* Chunk records are gathered up to this size before they are written. */
#define PART ((size_t)256 << 10)

struct encoder {
	struct tide_strbuf *out;
	size_t base;                              /* start of the sidecar in out */
	size_t entry;                             /* offset of the next directory entry from base */
	uint32_t n;                               /* entries so far */
	size_t area;                              /* length of the lineage area, or 0 */
	size_t head;                              /* length of header, directory and lineage area, which stay in out */
	uint64_t gone;                            /* bytes after the head that were written and have left out */
	const struct tide_sidecar_writer *writer; /* NULL: everything stays in out */
};

/* The length of the sidecar so far. */
static uint64_t length(const struct encoder *enc)
{
	return enc->out->len - enc->base + enc->gone;
}

static int write_at_end(struct encoder *enc, const void *data, size_t len, struct tide_error *err)
{
	if (enc->writer->write(enc->writer->ctx, data, len, length(enc), err) < 0)
		return -1;
	enc->gone += len;
	return 0;
}

/* Writes the gathered records once they have reached `enough` bytes. */
static int drain(struct encoder *enc, size_t enough, struct tide_error *err)
{
	size_t head = enc->base + enc->head, n = enc->out->len - head;

	if (enc->out->failed)
		return tide_error_set_nomem(err);
	if (!enc->writer || n < enough || n == 0)
		return 0;
	enc->out->len = head;
	return write_at_end(enc, enc->out->buf + head, n, err);
}

static int add_encoded(struct encoder *enc, const struct tide_sidecar_bitmap *e, struct tide_error *err)
{
	if (enc->writer && e->encoded_len >= PART)
		return drain(enc, 0, err) < 0 ? -1 : write_at_end(enc, e->encoded, e->encoded_len, err);
	if (e->encoded_len)
		tide_strbuf_add(enc->out, e->encoded, e->encoded_len);
	return drain(enc, PART, err);
}

static int add_bitmap(struct encoder *enc, const struct tide_bitmap *bm, struct tide_error *err)
{
	uint64_t next = 0;
	int rc;

	do {
		rc = tide_sidecar_chunk_add(enc->out, bm, &next, PART, err);
		if (rc >= 0 && drain(enc, PART, err) < 0)
			rc = -1;
	} while (rc > 0);
	return rc;
}

/* Reserves space for header and directory, which are filled in later. */
static void add_zeroes(struct tide_strbuf *out, uint64_t len)
{
	static const char zeroes[4096];

	while (len > 0 && !out->failed) {
		size_t n = (size_t)TIDE_MIN(len, sizeof(zeroes));

		tide_strbuf_add(out, zeroes, n);
		len -= n;
	}
}

static unsigned entry_flags(const struct tide_sidecar_bitmap *e)
{
	return (e->enabled ? TIDE_SIDECAR_ENABLED : 0) | (e->untracked ? TIDE_SIDECAR_UNTRACKED : 0) |
	       (e->token ? TIDE_SIDECAR_BUSY : 0) | (e->group ? TIDE_SIDECAR_GROUP : 0) |
	       (e->successor ? TIDE_SIDECAR_SUCCESSOR : 0) | (e->unchecked ? TIDE_SIDECAR_UNCHECKED : 0);
}

static size_t group_length(const struct tide_sidecar_bitmap *e)
{
	return e->group ? strlen(e->group) : 0;
}

/* Appends the chunk records, then fills in the entry. */
static int put_entry(struct encoder *enc, const struct tide_sidecar_bitmap *e, struct tide_error *err)
{
	size_t name_len = e->name ? strlen(e->name) : 0, group_len = group_length(e);
	uint64_t data = length(enc);

	if ((e->bitmap ? add_bitmap(enc, e->bitmap, err) : add_encoded(enc, e, err)) < 0)
		return -1;

	uint8_t *p = (uint8_t *)enc->out->buf + enc->base + enc->entry;
	tide_put_le32(p + TIDE_SIDECAR_ENTRY_LEN, (uint32_t)tide_sidecar_entry_len(name_len, group_len));
	tide_put_le16(p + TIDE_SIDECAR_ENTRY_NAME_LEN, (uint16_t)name_len);
	p[TIDE_SIDECAR_ENTRY_SHIFT] = (uint8_t)tide_range_shift(e->granularity);
	p[TIDE_SIDECAR_ENTRY_FLAGS] = (uint8_t)entry_flags(e);
	tide_put_le64(p + TIDE_SIDECAR_ENTRY_TOKEN, e->token);
	tide_put_le64(p + TIDE_SIDECAR_ENTRY_COUNT, tide_sidecar_bitmap_count(e));
	tide_put_le64(p + TIDE_SIDECAR_ENTRY_DATA_OFF, data);
	tide_put_le64(p + TIDE_SIDECAR_ENTRY_DATA_LEN, length(enc) - data);
	if (name_len)
		memcpy(p + TIDE_SIDECAR_ENTRY_NAME, e->name, name_len);
	if (group_len) {
		tide_put_le16(p + TIDE_SIDECAR_ENTRY_NAME + name_len, (uint16_t)group_len);
		memcpy(p + TIDE_SIDECAR_ENTRY_NAME + name_len + 2, e->group, group_len);
	}
	enc->entry += tide_sidecar_entry_len(name_len, group_len);
	enc->n++;
	return e->successor ? put_entry(enc, e->successor, err) : 0;
}

static uint64_t features(const struct encoder *enc, const struct tide_sidecar *sc)
{
	return (enc->area ? TIDE_SIDECAR_LINEAGE : 0) | (sc->device.is_one ? TIDE_SIDECAR_DEVICE : 0);
}

static void put_header(const struct encoder *enc, const struct tide_sidecar *sc)
{
	uint8_t *p = (uint8_t *)enc->out->buf + enc->base;
	size_t dir_len = enc->entry - TIDE_SIDECAR_HEADER_LEN;

	memcpy(p + TIDE_SIDECAR_AT_MAGIC, TIDE_SIDECAR_MAGIC, 8);
	tide_put_le32(p + TIDE_SIDECAR_AT_VERSION, TIDE_SIDECAR_VERSION);
	tide_put_le32(p + TIDE_SIDECAR_AT_HEADER_LEN, TIDE_SIDECAR_HEADER_LEN);
	tide_put_le64(p + TIDE_SIDECAR_AT_INCOMPATIBLE, features(enc, sc));
	tide_put_le64(p + TIDE_SIDECAR_AT_COMPATIBLE, sc->compatible);
	tide_put_le64(p + TIDE_SIDECAR_AT_GENERATION, sc->generation);
	tide_put_le64(p + TIDE_SIDECAR_AT_FILE_LEN, length(enc));
	tide_put_le64(p + TIDE_SIDECAR_AT_DISK_SIZE, sc->disk_size);
	memcpy(p + TIDE_SIDECAR_AT_FORMAT, sc->format, strlen(sc->format));
	if (sc->stamp.valid) {
		tide_put_le64(p + TIDE_SIDECAR_AT_STAMP_SIZE, sc->stamp.size);
		tide_put_le64(p + TIDE_SIDECAR_AT_STAMP_SEC, (uint64_t)sc->stamp.mtime_sec);
		tide_put_le32(p + TIDE_SIDECAR_AT_STAMP_NSEC, sc->stamp.mtime_nsec);
		tide_put_le32(p + TIDE_SIDECAR_AT_FLAGS, TIDE_SIDECAR_STAMP_VALID);
	}
	tide_put_le64(p + TIDE_SIDECAR_AT_WRITER, sc->writer);
	tide_put_le64(p + TIDE_SIDECAR_AT_LOG, sc->log);
	tide_put_le32(p + TIDE_SIDECAR_AT_DIR_LEN, (uint32_t)dir_len);
	tide_put_le32(p + TIDE_SIDECAR_AT_ENTRIES, enc->n);
	tide_put_le32(p + TIDE_SIDECAR_AT_DIR_CRC, tide_checksum_crc32c(0, p + TIDE_SIDECAR_HEADER_LEN, dir_len));
	tide_put_le32(p + TIDE_SIDECAR_AT_HEADER_CRC, tide_checksum_crc32c(0, p, TIDE_SIDECAR_AT_HEADER_CRC));
}

static uint64_t directory_len(const struct tide_sidecar *sc)
{
	uint64_t len = 0;

	for (size_t i = 0; i < sc->n; i++) {
		len += tide_sidecar_entry_len(strlen(sc->items[i]->name), group_length(sc->items[i]));
		if (sc->items[i]->successor)
			len += tide_sidecar_entry_len(0, 0);
	}
	return len;
}

static int encode(const struct tide_sidecar *sc, struct encoder *enc, struct tide_error *err)
{
	uint64_t dir_len = directory_len(sc);

	if (dir_len > UINT32_MAX)
		return tide_error_set(err, TIDE_E_REFUSED, "%zu bitmaps are too many for a sidecar", sc->n);
	enc->area = tide_sidecar_lineage_is_needed(sc) ? tide_sidecar_lineage_len(sc) : 0;
	enc->head = TIDE_SIDECAR_HEADER_LEN + (size_t)dir_len + enc->area;
	add_zeroes(enc->out, enc->head);
	if (enc->out->failed)
		return tide_error_set_nomem(err);
	for (size_t i = 0; i < sc->n; i++)
		if (put_entry(enc, sc->items[i], err) < 0)
			return -1;
	if (enc->out->failed)
		return tide_error_set_nomem(err);
	if (enc->area)
		tide_sidecar_lineage_put(sc, (uint8_t *)enc->out->buf + enc->base + enc->entry);
	put_header(enc, sc);
	return 0;
}

/*
 * The head is written last, because only now its checksums are known. If nothing was written before, everything is
 * written at once.
 */
static int write_head(struct encoder *enc, struct tide_error *err)
{
	if (enc->gone && drain(enc, 0, err) < 0)
		return -1;
	return enc->writer->write(enc->writer->ctx, enc->out->buf, enc->out->len, 0, err);
}

int tide_sidecar_encode(const struct tide_sidecar *sc, struct tide_strbuf *out, struct tide_error *err)
{
	struct encoder enc = { .out = out, .base = out->len, .entry = TIDE_SIDECAR_HEADER_LEN };

	if (check_sidecar(sc, err) < 0)
		return -1;
	return encode(sc, &enc, err);
}

int tide_sidecar_write(const struct tide_sidecar *sc, const struct tide_sidecar_writer *writer, uint32_t *checksum,
                       struct tide_error *err)
{
	struct tide_strbuf out = TIDE_STRBUF_INIT;
	struct encoder enc = { .out = &out, .entry = TIDE_SIDECAR_HEADER_LEN, .writer = writer };
	int rc = check_sidecar(sc, err);

	if (rc == 0)
		rc = encode(sc, &enc, err);
	if (rc == 0)
		rc = write_head(&enc, err);
	if (rc == 0)
		*checksum = tide_sidecar_checksum(out.buf, out.len);
	tide_strbuf_release(&out);
	return rc;
}
