/*
 * Takes and compares fingerprints of images: a hash of a sample of the disk, and the identity and
 * stamp of the file (fingerprint.h). The places of the sample are part of the format, since
 * overlays store fingerprints.
 */
#include "fingerprint.h"

#include <stdlib.h>
#include <sys/stat.h>

#include "base/bytes.h"
#include "base/checksum.h"
#include "base/mem.h"
#include "base/range.h"
#include "base/stamp.h"

#define HEAD   (UINT64_C(128) << 10)
#define SECOND (UINT64_C(1) << 20)
#define TAIL   (UINT64_C(64) << 10)
#define BLOCK  4096u
#define PARTS  32u

/* A fixed sequence that looks random (splitmix64, public domain, by its formula). */
static uint64_t scatter(uint64_t x)
{
	x += UINT64_C(0x9e3779b97f4a7c15);
	x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
	return x ^ (x >> 31);
}

struct sample {
	struct tide_image *image;
	uint64_t size;
	uint8_t *buf; /* HEAD bytes */
	struct tide_sha256 sha;
};

/* Adds a range to the sample. Bytes past the end of the disk add nothing. */
static int add(struct sample *s, uint64_t off, uint64_t len, struct tide_error *err)
{
	if (off >= s->size)
		return 0;
	len = TIDE_MIN(len, s->size - off);
	if (off >= tide_image_size(s->image))
		return 0;
	if (tide_image_read(s->image, s->buf, off, len, err) < 0)
		return -1;
	tide_checksum_sha256_update(&s->sha, s->buf, len);
	return 0;
}

static int add_all(struct sample *s, struct tide_error *err)
{
	uint64_t part = s->size / PARTS;
	uint8_t size[8];

	tide_put_be64(size, s->size);
	tide_checksum_sha256_update(&s->sha, size, sizeof(size));
	if (add(s, 0, HEAD, err) < 0 || add(s, SECOND, HEAD, err) < 0 ||
	    add(s, s->size > TAIL ? tide_range_align_down(s->size - TAIL, 512) : 0, TAIL, err) < 0)
		return -1;
	for (uint64_t i = 0; i < PARTS && part > BLOCK; i++) {
		if (add(s, tide_range_align_down(i * part + scatter(s->size + i) % part, BLOCK), BLOCK, err) < 0)
			return -1;
	}
	return 0;
}

static void add_file(struct tide_fingerprint *fp, const struct tide_image *image)
{
	const struct tide_stamp *stamp = tide_image_stamp(image);
	struct stat st;

	if (!tide_image_is_file(image) || !stamp->valid || fstat(tide_image_fd(image), &st) < 0)
		return;
	fp->has_file = true;
	fp->dev = st.st_dev;
	fp->ino = st.st_ino;
	fp->stamp = *stamp;
}

int tide_fingerprint_take(struct tide_image *image, struct tide_fingerprint *fp, struct tide_error *err)
{
	struct sample s = { .image = image, .size = tide_range_align_up(tide_image_size(image), 512) };
	TIDE_AUTOFREE uint8_t *buf = tide_mem_alloc(HEAD, 1, err);

	if (!buf)
		return -1;
	s.buf = buf;
	*fp = (struct tide_fingerprint){ .has_file = false };
	add_file(fp, image);
	tide_checksum_sha256_init(&s.sha);
	if (add_all(&s, err) < 0)
		return -1;
	tide_checksum_sha256_final(&s.sha, fp->disk);
	return 0;
}

int tide_fingerprint_remember(struct tide_image *image, struct tide_error *err)
{
	struct tide_fingerprint fp;

	if (!tide_image_backing(image) || tide_image_info(image)->fingerprint ||
	    tide_fingerprint_take(tide_image_backing(image), &fp, NULL) < 0)
		return 0;
	return tide_image_set_fingerprint(image, &fp, err) < 0 ? -1 : 0;
}

bool tide_fingerprint_is_written(const struct tide_fingerprint *then, const struct tide_fingerprint *now)
{
	return then->has_file && now->has_file && then->dev == now->dev && then->ino == now->ino &&
	       !tide_stamp_is_equal(&then->stamp, &now->stamp);
}

static unsigned digit(char c)
{
	return c <= '9' ? (unsigned)(c - '0') : (unsigned)(c - 'a' + 10);
}

void tide_fingerprint_shorten(const struct tide_fingerprint *fp, uint8_t out[TIDE_BIRTH_FINGERPRINT_BYTES])
{
	for (size_t i = 0; i < TIDE_BIRTH_FINGERPRINT_BYTES; i++)
		out[i] = (uint8_t)(digit(fp->disk[2 * i]) << 4 | digit(fp->disk[2 * i + 1]));
}

int tide_fingerprint_take_short(struct tide_image *image, uint8_t out[TIDE_BIRTH_FINGERPRINT_BYTES],
                                struct tide_error *err)
{
	struct tide_fingerprint fp;

	if (tide_fingerprint_take(image, &fp, err) < 0)
		return -1;
	tide_fingerprint_shorten(&fp, out);
	return 0;
}
