/*
 * The persistent bitmaps inside a qcow2 image: directory, tables, bits.  The input is a whole, small image; each
 * bitmap is listed, read, hashed and walked; then the set is changed, as the commands do, and read again.
 */
#include "fuzz.h"

#define RUNS_MAX 4096
#define KEPT_MAX 8

static void use(const struct tide_bitmap *bm, const struct tide_driver_bitmap *b, uint64_t disk_size)
{
	uint64_t off = 0, start, len, last = 0;
	char sha256[65];

	fuzz_must(tide_bitmap_size(bm) == disk_size && tide_bitmap_granularity(bm) == b->granularity);
	fuzz_must(tide_bitmap_count(bm) <= tide_bitmap_bits(bm));
	if (tide_bitmap_bits(bm) < 1u << 20)
		tide_bitmap_sha256(bm, sha256);
	for (unsigned n = 0;
	     n < RUNS_MAX && off < disk_size && tide_bitmap_next_dirty(bm, off, UINT64_MAX, &start, &len); n++) {
		fuzz_must(start >= last && len > 0 && len <= disk_size && start <= disk_size - len);
		last = off = start + len;
	}
}

static void read_bitmaps(int fd)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_driver_info info = { 0 };
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
}

/* The first bitmap goes, a few of the others stay, and a new one comes. */
static int change_bitmaps(void *state, struct tide_driver_info *info, unsigned seed, struct tide_error *err)
{
	TIDE_AUTOBITMAP struct tide_bitmap *bm = tide_bitmap_new(info->size, 65536, err);
	struct tide_driver_bitmap_put put[KEPT_MAX + 1];
	struct tide_driver_switch sw;
	size_t n = 0;

	if (!bm || (info->size && tide_bitmap_set(bm, 0, (info->size - 1) / (1 + seed % 3) + 1, err) < 0))
		return -1;
	for (size_t i = 1; i < info->n_bitmaps && n < KEPT_MAX; i++) {
		const struct tide_driver_bitmap *b = &info->bitmaps[i];

		put[n++] = (struct tide_driver_bitmap_put){ b->name, b->granularity, b->in_use, b->enabled, true, i,
			                                    NULL };
	}
	put[n++] = (struct tide_driver_bitmap_put){ "new", 65536, false, true, false, 0, bm };
	if (tide_qcow2_driver.bitmaps_stage(state, put, seed % 5 ? n : 0, &sw, err) < 0)
		return -1;
	fuzz_must(sw.len <= 512 && sw.offset / 512 == (sw.offset + (sw.len ? sw.len - 1 : 0)) / 512);
	if (seed % 4 == 0) {
		tide_qcow2_driver.bitmaps_abort(state);
		return 0;
	}
	return tide_qcow2_driver.bitmaps_commit(state, info, err);
}

static void write_bitmaps(int fd, unsigned seed)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_driver_info info = { 0 };
	void *state = NULL;

	if (tide_qcow2_driver.open(fd, "/", TIDE_OPEN_WRITE | TIDE_OPEN_LATER, &info, &state, &err) < 0) {
		fuzz_failed(&err);
	} else {
		for (unsigned i = 0; i < 2; i++) {
			if (change_bitmaps(state, &info, seed + i, &err) < 0)
				fuzz_failed(&err);
		}
		tide_qcow2_driver.close(state);
	}
	tide_driver_info_release(&info);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	int fd = fuzz_file(data, size, 0);
	unsigned seed = 0;

	for (size_t i = 0; i < size; i += 61)
		seed = seed * 31 + data[i];
	read_bitmaps(fd);
	write_bitmaps(fd, seed);
	read_bitmaps(fd);
	close(fd);
	return 0;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t room, unsigned seed)
{
	return fuzz_mutate_tables(data, size, room, seed, 112);
}
