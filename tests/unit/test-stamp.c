/* Stamps: what settling promises, that every later change of the file differs from the stamp. */
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <time.h>

#include "base/stamp.h"
#include "unit.h"

#define TMPFS 0x01021994

static int make_file(size_t size)
{
	int fd = open(unit_path("file"), O_RDWR | O_CREAT | O_TRUNC, 0600);

	CHECK(fd >= 0 && ftruncate(fd, (off_t)size) == 0);
	return fd;
}

static struct tide_stamp take(int fd)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_stamp stamp = { 0 };

	CHECK_OK(tide_stamp_take(fd, &stamp, &err), &err);
	return stamp;
}

static void settle(int fd)
{
	struct tide_error err = TIDE_ERROR_INIT;
	const int fds[] = { fd, -1 };

	CHECK_OK(tide_stamp_settle(fds, 2, &err), &err);
}

/* The clock that the kernel takes times from has advanced, whatever else this kernel does to tell times apart. */
static void test_tick(void)
{
	int fd = make_file(4096);

	for (int i = 0; i < 20; i++) {
		struct timespec now;
		struct tide_stamp was, now_is;
		char byte = (char)i;

		CHECK(pwrite(fd, &byte, 1, 0) == 1);
		was = take(fd);
		settle(fd);
		clock_gettime(CLOCK_REALTIME_COARSE, &now);
		CHECK(now.tv_sec > was.mtime_sec ||
		      (now.tv_sec == was.mtime_sec && now.tv_nsec > (long)was.mtime_nsec));
		CHECK(pwrite(fd, &byte, 1, 0) == 1);
		now_is = take(fd);
		CHECK(!tide_stamp_is_equal(&was, &now_is));
	}
	close(fd);
}

/* A time without a fraction may come from a file system that counts in seconds. */
static void test_whole_second(void)
{
	int fd = make_file(4096);
	struct timespec now, times[2];
	struct tide_stamp was;

	clock_gettime(CLOCK_REALTIME_COARSE, &now);
	times[0] = times[1] = (struct timespec){ .tv_sec = now.tv_sec };
	CHECK(futimens(fd, times) == 0);
	was = take(fd);
	settle(fd);
	clock_gettime(CLOCK_REALTIME_COARSE, &now);
	CHECK(now.tv_sec > was.mtime_sec);

	/* Old times need no pause, and those far ahead would need a long one. */
	for (int i = 0; i < 2; i++) {
		times[0].tv_sec = times[1].tv_sec = i ? 1000000000 : now.tv_sec + 1000;
		CHECK(futimens(fd, times) == 0);
		clock_gettime(CLOCK_MONOTONIC, &times[0]);
		settle(fd);
		clock_gettime(CLOCK_MONOTONIC, &times[1]);
		CHECK(times[1].tv_sec - times[0].tv_sec < 2);
	}
	close(fd);
}

/* Stores to a page that is dirty already do not reach the kernel. */
static void test_mapping(void)
{
	int fd = make_file(4096);
	volatile char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	struct statfs fs;

	CHECK(page != MAP_FAILED && fstatfs(fd, &fs) == 0);
	if (fs.f_type == TMPFS)
		UNIT_SKIP("tmpfs does not notice such stores");
	for (int i = 0; i < 5; i++) {
		struct tide_stamp was, now_is;

		page[0] = (char)i;
		was = take(fd);
		settle(fd);
		page[1] = (char)i;
		now_is = take(fd);
		CHECK(!tide_stamp_is_equal(&was, &now_is));
	}
	munmap((void *)page, 4096);
	close(fd);
}

/* Files without times that count. */
static void test_nothing_to_settle(void)
{
	int fd = open("/dev/null", O_RDWR);

	settle(fd);
	settle(-1);
	close(fd);
}

int main(void)
{
	UNIT_RUN(test_tick);
	UNIT_RUN(test_whole_second);
	UNIT_RUN(test_mapping);
	UNIT_RUN(test_nothing_to_settle);
	return unit_done();
}
