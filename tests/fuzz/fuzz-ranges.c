/*
 * Lists of ranges (bitmap-mark --from).  The first byte of the input selects a format, or probing, and a block size or
 * none.  Accepted ranges lie within 2^63.
 */
#include "base/range.h"
#include "fuzz.h"

static void check(const struct tide_range_list *list)
{
	fuzz_must(list);
	for (size_t i = 0; i < list->n; i++) {
		fuzz_must(list->ranges[i].len > 0);
		fuzz_must(tide_range_is_within(list->ranges[i].off, list->ranges[i].len, INT64_MAX));
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct tide_ranges_options options = { NULL, 0 };
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_range_list *list = NULL;
	uint64_t unit;
	size_t n = 0;

	if (size == 0)
		return 0;
	while (tide_ranges_format(n))
		n++;
	options.format = tide_ranges_format((data[0] & 63) % (n + 1)); /* the last one: none */
	options.block_size = data[0] & 64 ? 4096 : 0;
	int fd = fuzz_file(data + 1, size - 1, 0);
	fuzz_must(lseek(fd, 0, SEEK_SET) == 0);
	if (tide_ranges_read(fd, &options, &list, &err) < 0)
		fuzz_failed(&err);
	else
		check(list);
	tide_range_list_free(list);
	if (data[0] & 128) {
		fuzz_must(lseek(fd, 0, SEEK_SET) == 0);
		if (tide_ranges_read_era_dump(fd, &unit, &err) < 0)
			fuzz_failed(&err);
	}
	close(fd);
	return 0;
}
