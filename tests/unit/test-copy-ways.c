/*
 * The ways of copying, each forced where this system has it, and compressed copies: between scripted disks, and from
 * and to real files.
 */
#include <fcntl.h>
#include <linux/fs.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <time.h>

#include "base/sysio.h"
#include "copy_sample.h"

#define SIZE (5u * 1024u * K + 700u)

/* ---- What the copy asks of the file system ---- */

static long pretended_type; /* of every file system; 0: its own */
static atomic_uint shared, moved;

int fstatfs(int fd, struct statfs *fs)
{
	long rc = syscall(SYS_fstatfs, fd, fs);

	if (rc == 0 && pretended_type)
		fs->f_type = pretended_type;
	return (int)rc;
}

int ioctl(int fd, unsigned long request, ...)
{
	va_list args;
	void *arg;

	va_start(args, request);
	arg = va_arg(args, void *);
	va_end(args);
	shared += request == FICLONERANGE;
	return (int)syscall(SYS_ioctl, fd, request, arg);
}

ssize_t copy_file_range(int from, off_t *from_off, int to, off_t *to_off, size_t len, unsigned flags)
{
	moved++;
	return syscall(SYS_copy_file_range, from, from_off, to, to_off, len, flags);
}

/* ---- TIDE_COPY ---- */

static void test_way_from_the_environment(void)
{
	static const struct {
		const char *value;
		enum tide_copy_way way;
	} rows[] = {
		{ NULL, TIDE_COPY_WAY_AUTO },       { "", TIDE_COPY_WAY_AUTO }, { "reflink", TIDE_COPY_WAY_REFLINK },
		{ "kernel", TIDE_COPY_WAY_KERNEL }, { "rw", TIDE_COPY_WAY_RW }, { "direct", TIDE_COPY_WAY_DIRECT },
		{ "uring", TIDE_COPY_WAY_DIRECT },
	};
	struct tide_error err = TIDE_ERROR_INIT;
	enum tide_copy_way way;

	for (size_t i = 0; i < TIDE_ARRAY_SIZE(rows); i++) {
		UNIT_ROW("%s", rows[i].value ? rows[i].value : "unset");
		if (rows[i].value)
			setenv("TIDE_COPY", rows[i].value, 1);
		else
			unsetenv("TIDE_COPY");
		way = TIDE_COPY_WAY_RW;
		CHECK_OK(tide_copy_way_wanted(&way, &err), &err);
		CHECK_EQ_U64(way, rows[i].way);
	}
	setenv("TIDE_COPY", "pigeon", 1);
	CHECK_EQ_I64(tide_copy_way_wanted(&way, &err), -1);
	CHECK_ERR(&err, TIDE_E_REFUSED, NULL);
	unsetenv("TIDE_COPY");
}

/* ---- Between scripted disks ---- */

static const enum tide_copy_way ways[] = { TIDE_COPY_WAY_AUTO, TIDE_COPY_WAY_REFLINK, TIDE_COPY_WAY_KERNEL,
	                                   TIDE_COPY_WAY_RW, TIDE_COPY_WAY_DIRECT };

static const struct memory_script sources[] = {
	{ .size = SIZE },
	{ .size = SIZE, .unmapped = true },
	{ .size = SIZE, .extent_max = 5 * K },
};

static const struct memory_script targets[] = {
	{ .size = SIZE },
	{ .size = SIZE, .cluster_size = 64 * K, .place_max = 64 * K },
	{ .size = SIZE, .cluster_size = 64 * K, .remote = true },
};

static void check_way(const struct memory_script *from, const struct memory_script *to, enum tide_copy_way way,
                      bool detect_zeroes)
{
	struct sample s;

	if (sample_begin(&s, from, to, 512, 64 * K)) {
		s.copy.way = way;
		s.copy.detect_zeroes = detect_zeroes;
		sample_run(&s);
	}
	sample_end(&s);
}

static void test_each_way_copies(void)
{
	for (size_t from = 0; from < TIDE_ARRAY_SIZE(sources); from++) {
		for (size_t to = 0; to < TIDE_ARRAY_SIZE(targets); to++) {
			for (size_t i = 0; i < TIDE_ARRAY_SIZE(ways); i++) {
				UNIT_ROW("source %zu, target %zu, way %d", from, to, (int)ways[i]);
				check_way(&sources[from], &targets[to], ways[i], i % 2);
			}
		}
	}
}

/* Enough for large buffers, batches, and reads around the page cache. */
static void test_each_way_copies_much(void)
{
	const struct memory_script from = { .size = DISK_MAX }, to = { .size = DISK_MAX, .cluster_size = 64 * K };

	for (size_t i = 0; i < TIDE_ARRAY_SIZE(ways); i++) {
		UNIT_ROW("way %d", (int)ways[i]);
		check_way(&from, &to, ways[i], false);
	}
}

static bool kernel_copies_memory(void)
{
	TIDE_CLEANUP(tide_sysio_closep) int a = memfd_create("a", MFD_CLOEXEC);
	TIDE_CLEANUP(tide_sysio_closep) int b = memfd_create("b", MFD_CLOEXEC);

	return ftruncate(a, 4096) == 0 && copy_file_range(a, NULL, b, NULL, 4096, 0) == 4096;
}

/* Zero bytes stay data: nobody has looked at them. */
static void test_kernel_looks_at_nothing(void)
{
	for (unsigned detect = 0; detect < 2; detect++) {
		struct sample s;

		if (sample_begin(&s, &sources[0], &targets[0], 512, 64 * K)) {
			memory_disk_set_kind(s.from, 0, SIZE, TIDE_EXTENT_DATA);
			memset(s.source, 0, SIZE);
			s.copy.way = TIDE_COPY_WAY_KERNEL;
			s.copy.detect_zeroes = detect;
			sample_run(&s);
			if (detect || kernel_copies_memory())
				CHECK(memory_disk_kind(s.to, 0) == (detect ? TIDE_EXTENT_HOLE : TIDE_EXTENT_DATA));
		}
		sample_end(&s);
	}
}

/* What cannot be moved is read and written, which tells the side of an error. */
static void test_errors_of_each_way(void)
{
	static const struct memory_fault read = { MEMORY_READ, 1100 * K, EIO, 0 };
	static const struct memory_fault write = { MEMORY_WRITE, 1100 * K, EIO, 0 };

	for (size_t i = 0; i < TIDE_ARRAY_SIZE(ways); i++) {
		for (unsigned reading = 0; reading < 2; reading++) {
			struct sample s;

			UNIT_ROW("way %d, %s", (int)ways[i], reading ? "source" : "target");
			if (sample_begin(&s, &sources[0], &targets[1], 512, 64 * K)) {
				memory_disk_fill(s.from, 1088 * K, 64 * K, 3);
				sample_model(s.from, NULL, s.source, SIZE);
				memory_disk_fail(reading ? s.from : s.to, reading ? &read : &write);
				s.copy.way = ways[i];
				CHECK_EQ_I64(tide_copy_run(&s.copy, &s.err), -1);
				CHECK_EQ_I64(s.copy.failed_reading, reading);
				CHECK_EQ_I64(s.err.sys, reading ? EIO : ENOSPC);
				tide_error_release(&s.err);
				sample_check(&s);
			}
			sample_end(&s);
		}
	}
}

/* ---- To real files ---- */

/* In the place of the sample's target: an empty image of the format. */
static bool use_file(struct sample *s, const char *name, const char *format, int fd)
{
	struct tide_driver_create options = { .size = memory_disk_size(s->to) };

	tide_image_close(s->copy.target);
	s->copy.target = NULL;
	return CHECK_OK(tide_image_create(fd, -1, unit_path(name), tide_image_find_driver(format), &options,
	                                  &s->copy.target, &s->err),
	                &s->err);
}

static int new_file(const char *name)
{
	int fd = open(unit_path(name), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	CHECK(fd >= 0);
	return fd;
}

/* In the place of the sample's source: the same disk as a raw file. */
static bool use_raw_source(struct sample *s, int fd)
{
	struct tide_image_options options = { .path = unit_path("source.raw"), .format = "raw" };

	tide_image_close(s->copy.source);
	s->copy.source = NULL;
	if (!CHECK_OK(ftruncate(fd, (off_t)memory_disk_size(s->to)), &s->err))
		return false;
	for (uint64_t off = 0; off < memory_disk_size(s->to); off += 4096) {
		uint64_t len = TIDE_MIN(4096, memory_disk_size(s->to) - off);

		if (!tide_sysio_is_zero(s->source + off, len))
			CHECK_OK(tide_sysio_pwrite(fd, s->source + off, len, off, &s->err), &s->err);
	}
	CHECK_OK(tide_sysio_fdatasync(fd, &s->err), &s->err);
	return CHECK_OK(tide_image_open(&options, &s->copy.source, &s->err), &s->err);
}

static bool can_share(int from, int to)
{
	struct file_clone_range range = { .src_fd = from, .src_length = 64 * K };

	return ioctl(to, FICLONERANGE, &range) == 0 && ftruncate(to, 0) == 0;
}

static void check_files(enum tide_copy_way way, const char *format, bool cold)
{
	TIDE_CLEANUP(tide_sysio_closep) int from = new_file("source.raw");
	TIDE_CLEANUP(tide_sysio_closep) int to = new_file("target");
	struct memory_script script = { .size = DISK_MAX - 3 * K };
	struct sample s;

	if (sample_begin(&s, &script, &script, 64 * K, 64 * K) && use_raw_source(&s, from)) {
		bool share = can_share(from, to);

		if (use_file(&s, "target", format, to)) {
			if (cold)
				posix_fadvise(from, 0, 0, POSIX_FADV_DONTNEED);
			s.copy.way = way;
			sample_run(&s);
			if (way == TIDE_COPY_WAY_REFLINK)
				printf("# %s: %s\n", format, share ? "shared" : "no reflink on this file system");
		}
	}
	sample_end(&s);
}

static void test_each_way_between_files(void)
{
	for (size_t i = 0; i < TIDE_ARRAY_SIZE(ways); i++) {
		UNIT_ROW("way %d", (int)ways[i]);
		check_files(ways[i], "raw", false);
		check_files(ways[i], "raw", true);
		check_files(ways[i], "qcow2", true);
	}
}

/* A server's data, its caches and the page cache may differ: reading and writing alone is coherent. */
static void test_network_file_systems_are_read_and_written(void)
{
	static const long types[] = { 0x6969, 0xff534d42, 0xfe534d42, 0x517b, 0x00c36400, 0x65735546 };

	for (size_t i = 0; i < TIDE_ARRAY_SIZE(types); i++) {
		UNIT_ROW("type %lx", (unsigned long)types[i]);
		pretended_type = types[i];
		shared = moved = 0;
		check_files(TIDE_COPY_WAY_AUTO, "raw", true);
		check_files(TIDE_COPY_WAY_AUTO, "qcow2", true);
		CHECK_EQ_U64(shared, 2); /* can_share */
		CHECK_EQ_U64(moved, 0);
		check_files(TIDE_COPY_WAY_KERNEL, "raw", true);
		CHECK(moved > 0);
		check_files(TIDE_COPY_WAY_REFLINK, "raw", true);
		CHECK(shared > 4);
	}
	pretended_type = 0;
	moved = 0;
	check_files(TIDE_COPY_WAY_AUTO, "raw", true);
	CHECK_EQ_U64(moved, 0);
}

/* ---- Compressed ---- */

/* Some workers are faster than others. */
static void dawdle(void *data, enum memory_op op, uint64_t off, uint64_t len)
{
	struct timespec nap = { 0, (long)(off >> 16) * 7919 % 13 * 100000 };

	if (op == MEMORY_READ)
		nanosleep(&nap, NULL);
}

/* Fills the file with a compressed copy; returns what the copy returned. */
static int compress(struct sample *s, const char *name, int fd, const struct memory_fault *fault, unsigned workers)
{
	struct memory_script from = { .size = DISK_MAX - 3 * K, .unmapped = true, .hook = dawdle }, to = from;

	if (fault)
		from.fault[0] = *fault;
	if (!sample_begin(s, &from, &to, 64 * K, 64 * K) || !use_file(s, name, "qcow2", fd))
		return -1;
	s->copy.compress = true;
	s->copy.workers = workers;
	return tide_copy_run(&s->copy, &s->err);
}

static void test_compressed_file_depends_on_the_source_alone(void)
{
	static uint8_t files[2][DISK_MAX];
	uint64_t size[2] = { 0, 0 };

	for (unsigned i = 0; i < 2; i++) {
		TIDE_CLEANUP(tide_sysio_closep) int fd = new_file("packed");
		struct sample s;

		UNIT_ROW("%u workers", i ? 4 : 1);
		CHECK_OK(compress(&s, "packed", fd, NULL, i ? 4 : 1), &s.err);
		sample_check(&s);
		CHECK_EQ_U64(tide_bitmap_count(s.copy.todo), 0);
		CHECK_OK(tide_image_flush(s.copy.target, &s.err), &s.err);
		CHECK_OK(tide_sysio_size(fd, &size[i], &s.err), &s.err);
		if (CHECK(size[i] < DISK_MAX))
			CHECK_OK(tide_sysio_pread(fd, files[i], size[i], 0, false, &s.err), &s.err);
		sample_end(&s);
	}
	CHECK_EQ_U64(size[0], size[1]);
	CHECK_MEM(files[0], files[1], size[0]);
}

static unsigned first_data(struct sample *s, unsigned from)
{
	while (memory_disk_kind(s->from, from) != TIDE_EXTENT_DATA)
		from += 64 * K;
	return from;
}

static void test_compressed_error_of_the_source(void)
{
	for (unsigned workers = 1; workers <= 4; workers += 3) {
		TIDE_CLEANUP(tide_sysio_closep) int fd = new_file("packed");
		struct memory_fault fault = { MEMORY_READ, 0, EIO, 0 };
		struct sample s;

		UNIT_ROW("%u workers", workers);
		/* Every layout of sample_begin is the same: look for data in one, then let it fail. */
		CHECK_OK(compress(&s, "packed", fd, NULL, workers), &s.err);
		fault.off = first_data(&s, 9 * 1024 * K);
		sample_end(&s);
		CHECK_OK(ftruncate(fd, 0), &s.err);
		CHECK_EQ_I64(compress(&s, "packed", fd, &fault, workers), -1);
		CHECK_EQ_I64(s.err.sys, EIO);
		CHECK(s.copy.failed_reading);
		CHECK(tide_bitmap_test(s.copy.todo, fault.off));
		tide_error_release(&s.err);
		sample_check(&s);
		sample_end(&s);
	}
}

int main(void)
{
	UNIT_RUN(test_way_from_the_environment);
	UNIT_RUN(test_each_way_copies);
	UNIT_RUN(test_each_way_copies_much);
	UNIT_RUN(test_kernel_looks_at_nothing);
	UNIT_RUN(test_errors_of_each_way);
	UNIT_RUN(test_each_way_between_files);
	UNIT_RUN(test_network_file_systems_are_read_and_written);
	UNIT_RUN(test_compressed_file_depends_on_the_source_alone);
	UNIT_RUN(test_compressed_error_of_the_source);
	return unit_done();
}
