/*
 * The tables of a qcow2 image: L1, L2, refcounts, compressed clusters.  The input is a whole, small image; it is read
 * from end to end, then written, zeroed, discarded, flushed and read again, as a tracked write would.
 */
#include "fuzz.h"

#define WRITES 12

static uint8_t content[16384];

/* Whole clusters, as the dispatcher would ask for them. */
static int write_some(void *state, uint64_t off, uint64_t len, struct tide_error *err)
{
	while (len) {
		struct tide_extent place;
		int rc = tide_qcow2_driver.write_begin(state, off, len, &place, err);

		if (rc)
			return rc;
		fuzz_must(place.off == off && place.len > 0 && place.len <= len && place.mapped);
		if (len % 3 == 0) {
			tide_qcow2_driver.write_abort(state, &place);
			return 0;
		}
		fuzz_must(pwrite(place.map_fd, content, place.len, (off_t)place.map_off) == (ssize_t)place.len);
		if (tide_qcow2_driver.write_commit(state, &place, err) < 0)
			return -1;
		off += place.len;
		len -= place.len;
	}
	return 0;
}

static int change(void *state, const struct tide_driver_info *info, uint32_t *random, struct tide_error *err)
{
	uint64_t cluster = info->cluster_size, n = info->size / cluster + 1;
	uint64_t off = fuzz_random(random) % n * cluster, len = cluster << fuzz_random(random) % 3;
	uint32_t what = fuzz_random(random) % 4;

	if (off >= info->size)
		return 0;
	len = len < info->size - off ? len : info->size - off;
	if (what != 1)
		len = len < sizeof(content) ? len : sizeof(content);
	if (what == 0 && len > 64)
		return write_some(state, off + 3, len - 7, err);
	if (what == 1)
		return tide_qcow2_driver.zero(state, off, len, fuzz_random(random) % 2, err);
	return write_some(state, off, len, err);
}

static void change_image(int fd, uint32_t seed)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_driver_info info = { 0 };
	void *state = NULL;

	if (tide_qcow2_driver.open(fd, "/", TIDE_OPEN_WRITE, &info, &state, &err) < 0) {
		fuzz_failed(&err);
	} else {
		for (unsigned i = 0; i < WRITES; i++) {
			if (change(state, &info, &seed, &err) < 0)
				fuzz_failed(&err);
			if (i % 5 == 4 && tide_qcow2_driver.flush(state, &err) < 0)
				fuzz_failed(&err);
		}
		fuzz_read_disk(&tide_qcow2_driver, state, info.size);
		if (tide_qcow2_driver.flush(state, &err) < 0)
			fuzz_failed(&err);
		tide_qcow2_driver.close(state);
	}
	tide_driver_info_release(&info);
}

static void read_image(int fd)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_driver_info info = { 0 };
	void *state = NULL;

	if (tide_qcow2_driver.open(fd, "/", 0, &info, &state, &err) < 0) {
		fuzz_failed(&err);
	} else {
		fuzz_read_disk(&tide_qcow2_driver, state, info.size);
		tide_qcow2_driver.close(state);
	}
	tide_driver_info_release(&info);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	int fd = fuzz_file(data, size, 0);
	uint32_t seed = 1;

	for (size_t i = 0; i < size; i += 61)
		seed = seed * 31 + data[i];
	memset(content, 0x5a, sizeof(content));
	read_image(fd);
	change_image(fd, seed | 1);
	read_image(fd);
	close(fd);
	return 0;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t room, unsigned seed)
{
	return fuzz_mutate_tables(data, size, room, seed, 512);
}
