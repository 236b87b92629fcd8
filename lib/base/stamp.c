/*
 * Takes and compares the stamps by which a later command recognizes that an image was written
 * without tracking.
 */
#include "stamp.h"

#include <errno.h>
#include <sys/stat.h>

#include "error.h"

int tide_stamp_take(int fd, struct tide_stamp *stamp, struct tide_error *err)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		return tide_error_set_sys(err, errno, "Could not get the image's times");
	*stamp = (struct tide_stamp){ .valid = S_ISREG(st.st_mode) };
	if (!stamp->valid)
		return 0;
	stamp->size = (uint64_t)st.st_size;
	stamp->mtime_sec = st.st_mtim.tv_sec;
	stamp->mtime_nsec = (uint32_t)st.st_mtim.tv_nsec;
	return 0;
}

void tide_stamp_add(struct tide_stamp *stamp, const struct tide_stamp *other)
{
	uint64_t nsec = (uint64_t)stamp->mtime_nsec + other->mtime_nsec;

	if (!other->valid)
		return;
	if (!stamp->valid) {
		*stamp = *other;
		return;
	}
	stamp->size += other->size;
	stamp->mtime_sec = (int64_t)((uint64_t)stamp->mtime_sec + (uint64_t)other->mtime_sec + nsec / 1000000000u);
	stamp->mtime_nsec = (uint32_t)(nsec % 1000000000u);
}

bool tide_stamp_is_equal(const struct tide_stamp *a, const struct tide_stamp *b)
{
	if (!a->valid || !b->valid)
		return true;
	return a->size == b->size && a->mtime_sec == b->mtime_sec && a->mtime_nsec == b->mtime_nsec;
}
