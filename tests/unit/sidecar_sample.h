/*
 * Sidecars for the tests of the codec: made, encoded, decoded, and their parts found and
 * sealed again after a test has changed them.
 */
#ifndef TIDE_SIDECAR_SAMPLE_H
#define TIDE_SIDECAR_SAMPLE_H

#include "base/bytes.h"
#include "base/checksum.h"
#include "base/mem.h"
#include "store/sidecar.h"
#include "unit.h"

#define K     UINT64_C(1024)
#define M     (K * K)
#define G     (K * M)
#define T     (K * G)
#define CHUNK TIDE_BITMAP_CHUNK_BITS

enum { HEADER = 128, ENTRY_FIXED = 40, RECORD_FIXED = 16 };
enum { FULL = 1, LIST, ZSTD, PLAIN };

static inline uint64_t rnd(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state * UINT64_C(0x2545f4914f6cdd1d) >> 16;
}

static inline void sidecar_freep(struct tide_sidecar **sc)
{
	tide_sidecar_free(*sc);
}
#define AUTOSIDECAR TIDE_CLEANUP(sidecar_freep)
#define AUTOSTRBUF  TIDE_CLEANUP(tide_strbuf_release)

static inline struct tide_sidecar *make(uint64_t disk_size)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_sidecar *sc = tide_sidecar_new(&err);

	if (!CHECK_PTR(sc, &err))
		exit(1);
	sc->disk_size = disk_size;
	strcpy(sc->format, "raw");
	return sc;
}

/* Adds a bitmap at the end; NULL name: the successor of the last one. */
static inline struct tide_sidecar_bitmap *add(struct tide_sidecar *sc, const char *name, uint64_t granularity)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_sidecar_bitmap *e = tide_sidecar_bitmap_new(name, sc->disk_size, granularity, &err);

	if (!CHECK_PTR(e, &err))
		exit(1);
	if (name)
		CHECK_OK(tide_sidecar_insert(sc, sc->n, e, &err), &err);
	else
		sc->items[sc->n - 1]->successor = e;
	return e;
}

static inline void set_bits(struct tide_sidecar_bitmap *e, uint64_t first, uint64_t n)
{
	struct tide_error err = TIDE_ERROR_INIT;
	uint64_t off = first * e->granularity, size = tide_bitmap_size(e->bitmap);

	CHECK_OK(tide_bitmap_set(e->bitmap, off, TIDE_MIN(n * e->granularity, size - off), &err), &err);
}

/* Every third bit: too many for a list, and they compress. */
static inline void set_pattern(struct tide_sidecar_bitmap *e, uint64_t first, uint64_t n)
{
	for (uint64_t i = 0; i < n; i += 3)
		set_bits(e, first + i, 1);
}

static inline void set_random(struct tide_sidecar_bitmap *e, uint64_t first, uint64_t n, uint64_t seed)
{
	for (uint64_t i = 0; i < n; i++)
		if (rnd(&seed) & 1)
			set_bits(e, first + i, 1);
}

/*
 * Two chunks of 64 KiB granules, the second of 7232 bits.  Entries and their records:
 * 0 "b0", busy: full, list of 3; 1 its successor: zstd; 2 "b1", disabled, untracked: plain, full; 3 "b2": none.
 */
static inline struct tide_sidecar *make_sample(void)
{
	struct tide_sidecar *sc = make(40000 * 64 * K - 100);
	struct tide_sidecar_bitmap *e = add(sc, "b0", 64 * K);

	sc->compatible = UINT64_C(0x8000000000000002);
	sc->generation = 41;
	sc->writer = 99;
	sc->stamp = (struct tide_stamp){ true, 2621439900, -5, 999999999, { 0 } };
	e->token = 77;
	set_bits(e, 0, CHUNK);
	set_bits(e, CHUNK + 5, 1);
	set_bits(e, CHUNK + 9, 1);
	set_bits(e, 39999, 1);
	set_pattern(add(sc, NULL, 64 * K), 0, CHUNK);
	e = add(sc, "b1", 64 * K);
	e->enabled = false;
	e->untracked = true;
	set_random(e, 0, CHUNK, 7);
	set_bits(e, CHUNK, 7232);
	add(sc, "b2", 128 * K);
	return sc;
}

static inline void encode(const struct tide_sidecar *sc, struct tide_strbuf *out)
{
	struct tide_error err = TIDE_ERROR_INIT;

	if (!CHECK_OK(tide_sidecar_encode(sc, out, &err), &err))
		exit(1);
}

/* All kinds of records, all kinds of entries, in few bytes. */
static inline void encode_sample(struct tide_strbuf *out)
{
	AUTOSIDECAR struct tide_sidecar *sc = make_sample();

	encode(sc, out);
}

static inline struct tide_sidecar *decode(const struct tide_strbuf *in)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_sidecar *sc = tide_sidecar_decode(in->buf, in->len, &err);

	if (!CHECK_PTR(sc, &err))
		exit(1);
	return sc;
}

static inline void check_refused(const void *data, size_t len, enum tide_code code, const char *text)
{
	struct tide_error err = TIDE_ERROR_INIT;
	AUTOSIDECAR struct tide_sidecar *sc = tide_sidecar_decode(data, len, &err);

	CHECK(!sc);
	CHECK_ERR(&err, code, text);
}

static inline void check_same_bytes(const struct tide_strbuf *a, const struct tide_strbuf *b)
{
	if (CHECK_EQ_U64(a->len, b->len))
		CHECK_MEM(a->buf, b->buf, a->len);
}

/* ---- places in the encoded sample -------------------------------------------------- */

static inline uint8_t *entry_at(uint8_t *file, unsigned entry)
{
	uint8_t *p = file + HEADER;

	while (entry-- > 0)
		p += tide_get_le32(p);
	return p;
}

static inline uint8_t *record_at(uint8_t *file, unsigned entry, unsigned record)
{
	uint8_t *p = file + tide_get_le64(entry_at(file, entry) + 24);

	while (record-- > 0)
		p += RECORD_FIXED + tide_get_le16(p + 10);
	return p;
}

static inline void seal_record(uint8_t *p, size_t payload_len)
{
	uint32_t crc = tide_checksum_crc32c(0, p, 12);

	tide_put_le32(p + 12, tide_checksum_crc32c(crc, p + RECORD_FIXED, payload_len));
}

static inline void seal(uint8_t *file, size_t dir_len)
{
	tide_put_le32(file + 112, tide_checksum_crc32c(0, file + HEADER, dir_len));
	tide_put_le32(file + 124, tide_checksum_crc32c(0, file, 124));
}

#endif
