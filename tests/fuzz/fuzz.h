/*
 * Shared parts of the libFuzzer targets: the input as a file in memory, complete reading of a driver's
 * image, and a mutator that knows the structure of tables.
 *
 * A target is a function of bytes that returns 0 for any input.  A call may fail.  A bug is a finding of
 * a sanitizer, of the limits of libFuzzer (time, memory, one allocation), or of fuzz_must.
 *
 * Files are memfds: as quick as memory, and in every respect a file to the driver.
 */
#ifndef TIDE_FUZZ_H
#define TIDE_FUZZ_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "image/driver.h"

#define FUZZ_DISK_MAX    (UINT64_C(1) << 20) /* read so much of a disk from each end */
#define FUZZ_EXTENTS_MAX 4096u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t room);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t room, unsigned seed);

#define fuzz_must(condition)                                                                     \
	do {                                                                                     \
		if (!(condition)) {                                                              \
			fprintf(stderr, "%s:%d: must be: %s\n", __FILE__, __LINE__, #condition); \
			abort();                                                                 \
		}                                                                                \
	} while (0)

/* A failure has a code and a message, and is over. */
static inline void fuzz_failed(struct tide_error *err)
{
	fuzz_must(err->code != TIDE_E_NONE && err->msg && *err->msg);
	tide_error_release(err);
}

/* A file of at least `least` bytes that contains the data and then zeroes; the caller closes it. */
static inline int fuzz_file(const uint8_t *data, size_t size, uint64_t least)
{
	int fd = memfd_create("fuzz", MFD_CLOEXEC);

	fuzz_must(fd >= 0 && pwrite(fd, data, size, 0) == (ssize_t)size);
	fuzz_must(size >= least || ftruncate(fd, (off_t)least) == 0);
	return fd;
}

/* Reads [off, end) of the disk; the error is the caller's. */
static inline int fuzz_read(const struct tide_image_driver *driver, void *state, uint64_t off, uint64_t end,
                            struct tide_error *err)
{
	static uint8_t buf[65536];

	for (unsigned n = 0; off < end && n < FUZZ_EXTENTS_MAX; n++) {
		struct tide_extent e;

		if (driver->extent(state, off, end - off, &e, err) < 0)
			return -1;
		fuzz_must(e.off == off && e.len > 0 && e.len <= end - off);
		if (e.kind == TIDE_EXTENT_DATA) {
			uint64_t len = e.len < sizeof(buf) ? e.len : sizeof(buf);

			if (!e.mapped && driver->read(state, buf, off, len, err) < 0)
				return -1;
			/* Less when the file has been allocated further than it reaches yet: zeroes, to the dispatcher.
			 */
			fuzz_must(!e.mapped || pread(e.map_fd, buf, len, (off_t)e.map_off) >= 0);
		}
		off += e.len;
	}
	return 0;
}

/* Both ends of a disk. */
static inline void fuzz_read_disk(const struct tide_image_driver *driver, void *state, uint64_t size)
{
	struct tide_error err = TIDE_ERROR_INIT;
	uint64_t part = size < FUZZ_DISK_MAX ? size : FUZZ_DISK_MAX;

	if (fuzz_read(driver, state, 0, part, &err) < 0)
		fuzz_failed(&err);
	if (fuzz_read(driver, state, size - part, size, &err) < 0)
		fuzz_failed(&err);
}

static inline uint32_t fuzz_random(uint32_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 17;
	*state ^= *state << 5;
	return *state;
}

/* A table's entry as one might find it: a place in the file, or nearly so, with flags or without. */
static inline uint64_t fuzz_entry(size_t size, uint32_t *state)
{
	static const uint64_t flags[] = { 0, 0, 1, UINT64_C(1) << 63, UINT64_C(1) << 62, UINT64_C(3) << 62, 1u << 9 };
	static const uint64_t values[] = { 0, 1, UINT64_MAX, UINT64_C(1) << 56, UINT64_C(0x00fffffffffffe00) };
	uint32_t what = fuzz_random(state);

	if (what % 8 == 0)
		return values[what / 8 % (sizeof(values) / sizeof(*values))];
	return ((fuzz_random(state) % (size + 1024)) & ~UINT64_C(511)) |
	       flags[what / 8 % (sizeof(flags) / sizeof(*flags))];
}

/* Half of the time libFuzzer's own change; else one to four aligned words, from `from` on, become entries. */
static inline size_t fuzz_mutate_tables(uint8_t *data, size_t size, size_t room, unsigned seed, size_t from)
{
	uint32_t state = seed * 2654435761u | 1;

	if (size < from + 8 || fuzz_random(&state) % 2)
		return LLVMFuzzerMutate(data, size, room);
	for (unsigned n = 1 + fuzz_random(&state) % 4; n > 0; n--) {
		size_t at = from + fuzz_random(&state) % (size - from - 7) / 8 * 8;

		tide_put_be64(data + at, fuzz_entry(size, &state));
	}
	return size;
}

#endif
