/*
 * Raw images: the file is the disk. SEEK_DATA finds the holes of the file, which read as zeroes; zeroing
 * punches holes.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/error.h"
#include "base/mem.h"
#include "base/range.h"
#include "base/sysio.h"
#include "image/driver.h"

struct raw_image {
	int fd;
	uint64_t size;
	/*
	 * The data found last, [from, to). Each query of the file system costs time in proportion to the length of
	 * the data, and callers that read it in small pieces would query as often. A part that has since become a
	 * hole may still be reported as data; it reads as zeroes.
	 */
	pthread_mutex_t lock;
	uint64_t data_from, data_to;
};

static bool raw_probe(const uint8_t *head, size_t len)
{
	return true;
}

static int raw_create(int fd, const struct tide_driver_create *options, struct tide_error *err)
{
	const char *settings = options->settings;
	char key[64], value[256];
	int more = tide_driver_next_setting(&settings, key, value, err);

	if (more < 0)
		return -1;
	if (more)
		return tide_error_set(err, TIDE_E_REFUSED, "Invalid parameter '%s'", key);
	if (options->backing)
		return tide_error_set(err, TIDE_E_REFUSED, "Backing file not supported for file format 'raw'");
	if (options->size > INT64_MAX)
		return tide_error_set(err, TIDE_E_REFUSED, "A raw image cannot have %llu bytes",
		                      (unsigned long long)options->size);
	if (ftruncate(fd, (off_t)options->size) < 0)
		return tide_error_set_sys(err, errno, "Could not resize file");
	return 0;
}

static int raw_open(int fd, const char *dir, unsigned flags, struct tide_driver_info *info, void **state,
                    struct tide_error *err)
{
	struct raw_image *raw = tide_mem_alloc(1, sizeof(*raw), err);

	if (!raw)
		return -1;
	raw->fd = fd;
	if (tide_sysio_size(fd, &raw->size, err) < 0) {
		free(raw);
		return -1;
	}
	pthread_mutex_init(&raw->lock, NULL);
	info->size = raw->size;
	*state = raw;
	return 0;
}

static void raw_close(void *state)
{
	struct raw_image *raw = state;

	if (raw)
		pthread_mutex_destroy(&raw->lock);
	free(raw);
}

static int raw_flush(void *state, struct tide_error *err)
{
	struct raw_image *raw = state;

	return tide_sysio_fdatasync(raw->fd, err);
}

static void look(struct raw_image *raw, uint64_t off, uint64_t len, bool *data, uint64_t *n)
{
	pthread_mutex_lock(&raw->lock);
	*data = off >= raw->data_from && off < raw->data_to;
	*n = *data ? raw->data_to - off : 0;
	pthread_mutex_unlock(&raw->lock);
	if (!*data) {
		tide_sysio_extent(raw->fd, off, TIDE_MAX(len, raw->size - TIDE_MIN(off, raw->size)), data, n);
		if (*data) {
			pthread_mutex_lock(&raw->lock);
			raw->data_from = off;
			raw->data_to = off + *n;
			pthread_mutex_unlock(&raw->lock);
		}
	}
	*n = TIDE_MIN(*n, len);
}

static int raw_extent(void *state, uint64_t off, uint64_t len, struct tide_extent *out, struct tide_error *err)
{
	struct raw_image *raw = state;
	uint64_t n;
	bool data;

	look(raw, off, len, &data, &n);
	*out = (struct tide_extent){
		.off = off,
		.len = n,
		.kind = data ? TIDE_EXTENT_DATA : TIDE_EXTENT_ZERO,
		.mapped = data,
		.map_fd = raw->fd,
		.map_off = off,
	};
	return 0;
}

static int raw_write_begin(void *state, uint64_t off, uint64_t len, struct tide_extent *out, struct tide_error *err)
{
	struct raw_image *raw = state;

	*out = (struct tide_extent){
		.off = off,
		.len = len,
		.kind = TIDE_EXTENT_DATA,
		.mapped = true,
		.map_fd = raw->fd,
		.map_off = off,
	};
	return 0;
}

static int raw_write_commit(void *state, const struct tide_extent *place, struct tide_error *err)
{
	return 0;
}

static void raw_write_abort(void *state, const struct tide_extent *place)
{
}

static int raw_zero(void *state, uint64_t off, uint64_t len, bool may_unmap, struct tide_error *err)
{
	struct raw_image *raw = state;

	pthread_mutex_lock(&raw->lock);
	raw->data_to = raw->data_from;
	pthread_mutex_unlock(&raw->lock);
	return tide_sysio_zero(raw->fd, off, len, may_unmap, err);
}

/* A device has the size that it has. */
static int raw_set_exact_size(void *state, uint64_t size, struct tide_driver_info *info, struct tide_error *err)
{
	struct raw_image *raw = state;
	struct stat st;

	if (fstat(raw->fd, &st) < 0)
		return tide_error_set_sys(err, errno, "fstat");
	if (size == raw->size || !S_ISREG(st.st_mode))
		return 0;
	if (ftruncate(raw->fd, (off_t)size) < 0)
		return tide_error_set_sys(err, errno, "Could not resize file");
	pthread_mutex_lock(&raw->lock);
	raw->data_to = raw->data_from;
	pthread_mutex_unlock(&raw->lock);
	raw->size = info->size = size;
	return 0;
}

/*
 * Punches a hole beyond the end of the file, which changes nothing but shows whether punching works. No such test
 * exists for zeroes that take space.
 */
static bool raw_can_zero_fast(void *state, bool may_unmap)
{
	struct raw_image *raw = state;
	struct stat st;

	return may_unmap && fstat(raw->fd, &st) == 0 && S_ISREG(st.st_mode) &&
	       fallocate(raw->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)raw->size, 4096) == 0;
}

const struct tide_image_driver tide_raw_driver = {
	.name = "raw",
	.is_raw = true,
	.probe = raw_probe,
	.create = raw_create,
	.open = raw_open,
	.close = raw_close,
	.flush = raw_flush,
	.extent = raw_extent,
	.write_begin = raw_write_begin,
	.write_commit = raw_write_commit,
	.write_abort = raw_write_abort,
	.zero = raw_zero,
	.set_exact_size = raw_set_exact_size,
	.can_zero_fast = raw_can_zero_fast,
};
