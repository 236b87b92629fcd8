/*
 * The file, little-endian: "TIDEDATA", u16 version 1, u16 0, u32 CRC-32C of the other bytes of the head, then of the
 * image u64 size, u64 seconds and u32 nanoseconds of its time, u32 0; u64 length of the table, u64 XXH3 of its head and
 * directory, u64 0; the table.
 */
#include "sums_file.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/checksum.h"
#include "base/error.h"
#include "base/mem.h"
#include "base/stamp.h"
#include "image/sums.h"
#include "store.h"

#define MAGIC   "TIDEDATA"
#define VERSION 1u
#define HEAD    64u

enum { AT_VERSION = 8, AT_CRC = 12, AT_SIZE = 16, AT_SEC = 24, AT_NSEC = 32, AT_LEN = 40, AT_SUM = 48 };

static char *path_of(const char *image_path, struct tide_error *err)
{
	TIDE_AUTOFREE char *sidecar = tide_mem_printf(err, "%s.bitmaps", image_path);

	return sidecar ? tide_store_beside(sidecar, ".sums", err) : NULL;
}

static uint32_t crc_of(const uint8_t head[HEAD])
{
	uint32_t crc = tide_checksum_crc32c(0, head, AT_CRC);

	return tide_checksum_crc32c(crc, head + AT_CRC + 4, HEAD - AT_CRC - 4);
}

static void encode(uint8_t head[HEAD], const struct tide_stamp *stamp, uint64_t len, uint64_t sum)
{
	memset(head, 0, HEAD);
	memcpy(head, MAGIC, 8);
	tide_put_le16(head + AT_VERSION, VERSION);
	tide_put_le64(head + AT_SIZE, stamp->size);
	tide_put_le64(head + AT_SEC, (uint64_t)stamp->mtime_sec);
	tide_put_le32(head + AT_NSEC, stamp->mtime_nsec);
	tide_put_le64(head + AT_LEN, len);
	tide_put_le64(head + AT_SUM, sum);
	tide_put_le32(head + AT_CRC, crc_of(head));
}

static bool is_of(const uint8_t head[HEAD], const struct tide_stamp *stamp)
{
	return stamp->valid && tide_get_le64(head + AT_SIZE) == stamp->size &&
	       (int64_t)tide_get_le64(head + AT_SEC) == stamp->mtime_sec &&
	       tide_get_le32(head + AT_NSEC) == stamp->mtime_nsec;
}

static int damaged(struct tide_error *err, const char *what)
{
	return tide_error_set(err, TIDE_E_CORRUPT, "the table of checksums is damaged: %s", what);
}

static int load(int fd, struct tide_image *image, bool old, struct tide_sums **sums, bool *changed,
                struct tide_error *err)
{
	struct tide_stamp stamp;
	uint8_t head[HEAD];

	if (tide_sysio_pread(fd, head, sizeof(head), 0, true, err) < 0 ||
	    tide_stamp_take(tide_image_fd(image), &stamp, err) < 0)
		return -1;
	if (memcmp(head, MAGIC, 8) || tide_get_le32(head + AT_CRC) != crc_of(head))
		return damaged(err, "its file does not begin like one");
	if (tide_get_le16(head + AT_VERSION) != VERSION)
		return damaged(err, "its file has an unknown version");
	*changed = !is_of(head, &stamp);
	if (*changed && !old)
		return 0;
	*sums = tide_sums_read(fd, HEAD, tide_get_le64(head + AT_LEN), tide_get_le64(head + AT_SUM), err);
	if (!*sums)
		return -1;
	tide_sums_own(*sums, fd);
	if (tide_sums_start(*sums) == 0 && tide_sums_end(*sums) == tide_get_le64(head + AT_SIZE))
		return 0;
	tide_sums_free(*sums);
	*sums = NULL;
	return damaged(err, "it is of another file");
}

int tide_sums_file_load(struct tide_image *image, bool old, struct tide_sums **sums, bool *changed,
                        struct tide_error *err)
{
	TIDE_AUTOFREE char *path = path_of(tide_image_path(image), err);
	struct stat st;
	int fd, rc;

	*sums = NULL;
	*changed = false;
	if (!path)
		return -1;
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK | O_NOFOLLOW);
	if (fd < 0)
		return errno == ENOENT || errno == ENAMETOOLONG
		               ? 0
		               : tide_error_set_sys(err, errno, "Could not open '%s'", path);
	rc = fstat(fd, &st) == 0 && S_ISREG(st.st_mode) ? load(fd, image, old, sums, changed, err)
	                                                : damaged(err, "its file is not a regular file");
	if (!*sums)
		close(fd);
	return rc;
}

int tide_sums_file_stage(struct tide_staged *staged, const char *image_path, int image_fd, struct tide_sums *sums,
                         struct tide_error *err)
{
	TIDE_AUTOFREE char *path = path_of(image_path, err);
	struct tide_stamp stamp;
	uint8_t head[HEAD];
	uint64_t len, sum;

	if (!path || tide_stamp_take(image_fd, &stamp, err) < 0 || tide_staged_begin(staged, path, 0600, err) < 0 ||
	    tide_sums_write(sums, staged->fd, HEAD, &len, &sum, err) < 0)
		return -1;
	encode(head, &stamp, len, sum);
	if (tide_sysio_pwrite(staged->fd, head, sizeof(head), 0, err) < 0 ||
	    tide_store_set_owner(staged->fd, image_fd, err) < 0)
		return tide_error_wrap(err, "'%s'", path);
	return tide_staged_flush(staged, err);
}

void tide_sums_file_remove(const char *image_path)
{
	TIDE_AUTOFREE char *path = path_of(image_path, NULL);

	if (path)
		unlink(path);
}
