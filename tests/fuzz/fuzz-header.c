/*
 * The header of a qcow2 image and its extensions: the input is the beginning of a file whose rest is zeroes.
 * An accepted header must have the properties that the rest of the driver relies on.
 */
#include "fuzz.h"
#include "qcow2/qcow2.h"

/* So much follows the input that tables have room in the file. */
#define FILE_LEAST (UINT64_C(256) << 10)

static void check(const struct tide_driver_info *info)
{
	fuzz_must(info->size <= INT64_MAX && info->size % 512 == 0);
	fuzz_must(info->exact_size <= info->size);
	fuzz_must(info->cluster_size >= 512 && info->cluster_size <= UINT64_C(2) << 20);
	fuzz_must((info->cluster_size & (info->cluster_size - 1)) == 0);
	fuzz_must(!info->backing || (*info->backing && strlen(info->backing) <= TIDE_QCOW2_NAME_MAX));
	fuzz_must(info->snapshots <= TIDE_QCOW2_SNAPSHOTS_MAX);
	for (size_t i = 0; i < info->n_features; i++)
		fuzz_must(info->features[i].key);
	for (size_t i = 0; i < info->n_bitmaps; i++)
		fuzz_must(info->bitmaps[i].name && *info->bitmaps[i].name);
}

static void try_open(int fd, unsigned flags)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_driver_info info = { 0 };
	void *state = NULL;

	if (tide_qcow2_driver.open(fd, "/", flags, &info, &state, &err) < 0) {
		fuzz_failed(&err);
	} else {
		check(&info);
		fuzz_read_disk(&tide_qcow2_driver, state, info.size);
		tide_qcow2_driver.close(state);
	}
	tide_driver_info_release(&info);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	int fd = fuzz_file(data, size, FILE_LEAST);

	tide_qcow2_driver.probe(data, size < 512 ? size : 512);
	try_open(fd, 0);
	try_open(fd, TIDE_OPEN_WRITE);
	close(fd);
	return 0;
}

/* Mutates the words of the header more often than the text after it. */
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t room, unsigned seed)
{
	uint32_t state = seed * 2654435761u | 1;
	size_t reach = size < 112 ? size : 112;

	if (size < 8 || fuzz_random(&state) % 4)
		return LLVMFuzzerMutate(data, size, room);
	if (fuzz_random(&state) % 2)
		tide_put_be64(data + fuzz_random(&state) % (reach - 7) / 8 * 8, fuzz_entry(FILE_LEAST, &state));
	else
		tide_put_be32(data + fuzz_random(&state) % (reach - 3) / 4 * 4, 1u << fuzz_random(&state) % 32);
	return size;
}
