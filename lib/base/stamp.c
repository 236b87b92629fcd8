/*
 * Takes and compares the stamps by which a later command recognizes that an image was written
 * without tracking.
 *
 * The kernel takes a file's time from the clock that CLOCK_REALTIME_COARSE reads, or from a finer one that never
 * shows an earlier time, and cuts it to the file system's unit.  A change that comes later than a reading of that clock
 * therefore gets a time that is not earlier than this reading.
 */
#include "stamp.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#include "error.h"
#include "sysio.h"

#define SECOND_NS   UINT64_C(1000000000)
#define CENTI_NS    UINT64_C(10000000)
#define WAIT_MAX_NS (3 * SECOND_NS)

int tide_stamp_take(int fd, struct tide_stamp *stamp, struct tide_error *err)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		return tide_error_set_sys(err, errno, "Could not get the image's times");
	*stamp = (struct tide_stamp){ .valid = S_ISREG(st.st_mode) };
	if (!stamp->valid) {
		tide_device_count(fd, &stamp->counter);
		return 0;
	}
	stamp->size = (uint64_t)st.st_size;
	stamp->mtime_sec = st.st_mtim.tv_sec;
	stamp->mtime_nsec = (uint32_t)st.st_mtim.tv_nsec;
	return 0;
}

static void add_times(struct tide_stamp *stamp, const struct tide_stamp *other)
{
	uint64_t nsec = (uint64_t)stamp->mtime_nsec + other->mtime_nsec;

	stamp->size += other->size;
	stamp->mtime_sec = (int64_t)((uint64_t)stamp->mtime_sec + (uint64_t)other->mtime_sec + nsec / 1000000000u);
	stamp->mtime_nsec = (uint32_t)(nsec % 1000000000u);
}

void tide_stamp_add(struct tide_stamp *stamp, const struct tide_stamp *other)
{
	struct tide_counter counter = stamp->counter;

	tide_device_add_counter(&counter, &other->counter);
	if (other->valid && !stamp->valid)
		*stamp = *other;
	else if (other->valid)
		add_times(stamp, other);
	stamp->counter = counter;
}

bool tide_stamp_is_equal(const struct tide_stamp *a, const struct tide_stamp *b)
{
	if (a->counter.state == TIDE_COUNTER_KNOWN && b->counter.state == TIDE_COUNTER_KNOWN &&
	    a->counter.own != b->counter.own)
		return false;
	if (!a->valid || !b->valid)
		return true;
	return a->size == b->size && a->mtime_sec == b->mtime_sec && a->mtime_nsec == b->mtime_nsec;
}

/* ---- settling ---------------------------------------------------------------------- */

/* How a file system keeps a file's times and writes out its mapped pages. */
enum fs_kind {
	FS_LOCAL,   /* this machine's clock; sync_file_range writes out, and costs nothing for a clean file */
	FS_STACKED, /* the pages belong to a file of another file system, which only fsync reaches */
	FS_OTHER,   /* perhaps another machine's clock */
};

static enum fs_kind kind_of(int fd, uint64_t *unit_ns)
{
	struct statfs fs;

	*unit_ns = SECOND_NS;
	if (fstatfs(fd, &fs) < 0)
		return FS_OTHER;
	switch ((unsigned long)fs.f_type) {
	case MSDOS_SUPER_MAGIC:
		*unit_ns = 2 * SECOND_NS;
		return FS_LOCAL;
	case EXT4_SUPER_MAGIC:
	case XFS_SUPER_MAGIC:
	case BTRFS_SUPER_MAGIC:
	case F2FS_SUPER_MAGIC:
	case EXFAT_SUPER_MAGIC:
	case TMPFS_MAGIC:
	case RAMFS_MAGIC:
		return FS_LOCAL;
	case OVERLAYFS_SUPER_MAGIC:
		return FS_STACKED;
	default:
		return FS_OTHER;
	}
}

bool tide_stamp_is_local(int fd)
{
	uint64_t unit_ns;
	struct stat st;

	if (fstat(fd, &st) == 0 && S_ISBLK(st.st_mode))
		return false;
	return kind_of(fd, &unit_ns) != FS_OTHER;
}

static uint64_t ns_of(const struct timespec *t)
{
	return t->tv_sec < 0 ? 0 : (uint64_t)t->tv_sec * SECOND_NS + (uint64_t)t->tv_nsec;
}

static uint64_t clock_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME_COARSE, &now);
	return ns_of(&now);
}

static void sleep_ns(uint64_t ns)
{
	struct timespec t = { .tv_sec = (time_t)(ns / SECOND_NS), .tv_nsec = (long)(ns % SECOND_NS) };

	while (nanosleep(&t, &t) < 0 && errno == EINTR)
		;
}

static int write_out(int fd, enum fs_kind kind, struct tide_error *err)
{
	const unsigned all = SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;

	if (kind != FS_LOCAL)
		return tide_sysio_fdatasync(fd, err);
	if (sync_file_range(fd, 0, 0, all) == 0)
		return 0;
	return errno == ENOSYS ? tide_sysio_fdatasync(fd, err)
	                       : tide_error_set_sys(err, errno, "Could not write out its pages");
}

/* The unit in which the file's time is counted, as far as the time itself shows. */
static uint64_t unit_of(uint64_t mtime_ns, uint64_t second_ns)
{
	if (mtime_ns % SECOND_NS == 0)
		return second_ns;
	return mtime_ns % CENTI_NS == 0 ? CENTI_NS : 1;
}

/* The time before which a change could leave the file's time as it is. */
static int settled_at(int fd, uint64_t second_ns, uint64_t *ns, struct tide_error *err)
{
	struct stat st;
	uint64_t mtime, unit;

	if (fstat(fd, &st) < 0)
		return tide_error_set_sys(err, errno, "Could not get the image's times");
	mtime = ns_of(&st.st_mtim);
	unit = unit_of(mtime, second_ns);
	*ns = mtime - mtime % unit + unit;
	return 0;
}

/* Without a clock to compare with: no time may be given twice during the pause. */
static int pause_after(int fd, struct tide_error *err)
{
	uint64_t at, now = clock_ns();

	if (settled_at(fd, SECOND_NS, &at, err) < 0)
		return -1;
	sleep_ns(at % SECOND_NS == 0 && at + 3600 * SECOND_NS > now ? SECOND_NS : CENTI_NS);
	return 0;
}

static void wait_until(uint64_t at)
{
	for (uint64_t now = clock_ns(); now < at; now = clock_ns()) {
		uint64_t left = at - now + 1;

		sleep_ns(TIDE_MIN(left, CENTI_NS));
	}
}

static int settle(int fd, struct tide_error *err)
{
	uint64_t second_ns, before, at;
	enum fs_kind kind;
	struct stat st;

	if (fd < 0 || (fstat(fd, &st) == 0 && !S_ISREG(st.st_mode)))
		return 0;
	kind = kind_of(fd, &second_ns);
	/*
	 * The second round sees the next tick.  If the time has changed again by then, it differs from every stamp
	 * that was taken before.
	 */
	for (unsigned round = 0; round < 2; round++) {
		before = clock_ns();
		if (write_out(fd, kind, err) < 0)
			return -1;
		if (kind == FS_OTHER)
			return pause_after(fd, err);
		if (settled_at(fd, second_ns, &at, err) < 0)
			return -1;
		/* A time far ahead of the clock is not given again soon. */
		if (before >= at || at - before > WAIT_MAX_NS)
			return 0;
		if (round == 0)
			wait_until(at);
	}
	return 0;
}

int tide_stamp_settle(const int *fds, size_t n, struct tide_error *err)
{
	for (size_t i = 0; i < n; i++) {
		if (settle(fds[i], err) < 0)
			return -1;
	}
	return 0;
}
