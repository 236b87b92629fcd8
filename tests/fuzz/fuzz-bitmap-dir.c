/*
 * The persistent bitmaps inside a qcow2 image: directory, tables, bits.  The input is a whole, small image; each
 * bitmap is listed, read, hashed and walked.
 */
#include "fuzz.h"

#define RUNS_MAX 4096

static void use(const struct tide_bitmap *bm, const struct tide_driver_bitmap *b, uint64_t disk_size)
{
	uint64_t off = 0, start, len, last = 0;
	char sha256[65];

	fuzz_must(tide_bitmap_size(bm) == disk_size && tide_bitmap_granularity(bm) == b->granularity);
	fuzz_must(tide_bitmap_count(bm) <= tide_bitmap_bits(bm));
	if (tide_bitmap_bits(bm) < 1u << 20)
		tide_bitmap_sha256(bm, sha256);
	for (unsigned n = 0; n < RUNS_MAX && off < disk_size && tide_bitmap_next_dirty(bm, off, UINT64_MAX, &start, &len);
	     n++) {
		fuzz_must(start >= last && len > 0 && len <= disk_size && start <= disk_size - len);
		last = off = start + len;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_driver_info info = { 0 };
	int fd = fuzz_file(data, size, 0);
	void *state = NULL;

	if (tide_qcow2_driver.open(fd, "/", 0, &info, &state, &err) < 0) {
		fuzz_failed(&err);
	} else {
		for (size_t i = 0; i < info.n_bitmaps; i++) {
			TIDE_AUTOBITMAP struct tide_bitmap *bm = NULL;

			fuzz_must(info.bitmaps[i].name && *info.bitmaps[i].name);
			if (tide_qcow2_driver.bitmap_read(state, i, &bm, &err) < 0)
				fuzz_failed(&err);
			else
				use(bm, &info.bitmaps[i], info.size);
		}
		tide_qcow2_driver.close(state);
	}
	tide_driver_info_release(&info);
	close(fd);
	return 0;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t room, unsigned seed)
{
	return fuzz_mutate_tables(data, size, room, seed, 112);
}
