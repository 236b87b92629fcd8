/*
 * The scripted disks that other unit tests use follow their script, also through the image layer.
 */
#include <fcntl.h>

#include "base/error.h"
#include "memory_driver.h"
#include "unit.h"

#define SIZE    (16u * 4096u + 700u)
#define CLUSTER 4096u

static uint8_t buf[SIZE];

static struct memory_disk *new_disk(const char *name, const struct memory_script *script)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct memory_disk *disk = memory_disk_new(unit_path(name), script, &err);

	CHECK_PTR(disk, &err);
	return disk;
}

static struct tide_image *open_disk(struct memory_disk *disk, bool write)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_image *image = NULL;

	CHECK_OK(memory_disk_open(disk, write, &image, &err), &err);
	return image;
}

static const struct memory_script scripts[] = {
	{ .size = SIZE, .cluster_size = CLUSTER },
	{ .size = SIZE },
	{ .size = SIZE, .unmapped = true, .extent_max = 1000, .place_max = CLUSTER },
	{ .size = SIZE, .cluster_size = CLUSTER, .remote = true },
};

static void test_probed_by_its_mark(void)
{
	for (size_t i = 0; i < TIDE_ARRAY_SIZE(scripts); i++) {
		struct tide_error err = TIDE_ERROR_INIT;
		struct memory_disk *disk = new_disk("disk", &scripts[i]);
		struct tide_image_options options = { .path = unit_path("disk") };
		struct tide_image *image = NULL;

		UNIT_ROW("script %zu", i);
		if (CHECK_OK(tide_image_open(&options, &image, &err), &err)) {
			CHECK_STR(tide_image_format_name(image), scripts[i].remote ? "memory-remote" : "memory");
			CHECK_EQ_U64(tide_image_size(image), SIZE);
			CHECK(memory_disk_find(options.path) == disk);
		}
		tide_image_close(image);
		memory_disk_free(disk);
	}
}

/* Random writes and zeroes against an array. */
static void change_and_compare(struct memory_disk *disk, struct tide_image *image, uint8_t *model)
{
	struct tide_error err = TIDE_ERROR_INIT;
	unsigned seed = 1;

	for (unsigned n = 0; n < 300; n++) {
		uint64_t off = (uint64_t)rand_r(&seed) % SIZE, len = 1 + (uint64_t)rand_r(&seed) % 9000;
		bool zero = rand_r(&seed) % 3 == 0;

		len = TIDE_MIN(len, SIZE - off);
		memset(model + off, zero ? 0 : (int)n % 255 + 1, len);
		CHECK_OK(zero ? tide_image_zero(image, off, len, n % 2, &err)
		              : tide_image_write(image, model + off, off, len, &err),
		         &err);
	}
	CHECK_OK(tide_image_read(image, buf, 0, SIZE, &err), &err);
	CHECK_MEM(buf, model, SIZE);
	for (uint64_t i = 0; i < SIZE; i++)
		CHECK(memory_disk_kind(disk, i) == TIDE_EXTENT_DATA || !memory_disk_bytes(disk)[i]);
}

static void test_holds_what_is_written(void)
{
	static uint8_t model[SIZE];

	for (size_t i = 0; i < TIDE_ARRAY_SIZE(scripts); i++) {
		struct memory_disk *disk = new_disk("disk", &scripts[i]);
		struct tide_image *image = open_disk(disk, true);

		UNIT_ROW("script %zu", i);
		memset(model, 0, sizeof(model));
		if (image)
			change_and_compare(disk, image, model);
		tide_image_close(image);
		memory_disk_free(disk);
	}
}

static void test_holes_come_from_the_backing_image(void)
{
	struct memory_disk *below = new_disk("below", &scripts[1]);
	struct memory_script script = scripts[0];
	struct tide_error err = TIDE_ERROR_INIT;
	struct memory_disk *disk;
	struct tide_image *image;

	script.backing = "below";
	script.backing_format = "memory";
	disk = new_disk("disk", &script);
	memory_disk_fill(below, 0, SIZE, 1);
	memory_disk_fill(disk, CLUSTER, CLUSTER, 2);
	memory_disk_set_kind(disk, 2 * CLUSTER, CLUSTER, TIDE_EXTENT_ZERO);
	image = open_disk(disk, true);
	if (image && CHECK(tide_image_backing(image))) {
		CHECK_OK(tide_image_write(image, "x", 3 * CLUSTER + 5, 1, &err), &err);
		CHECK_OK(tide_image_read(image, buf, 0, SIZE, &err), &err);
		CHECK_MEM(buf, memory_disk_bytes(below), CLUSTER);
		CHECK_MEM(buf + CLUSTER, memory_disk_bytes(disk) + CLUSTER, 2 * CLUSTER);
		CHECK_EQ_U64(buf[3 * CLUSTER + 5], 'x');
		CHECK_MEM(buf + 3 * CLUSTER + 6, memory_disk_bytes(below) + 3 * CLUSTER + 6, SIZE - 3 * CLUSTER - 6);
	}
	tide_image_close(image);
	memory_disk_free(disk);
	memory_disk_free(below);
}

static void test_changes_show_in_the_stamp(void)
{
	struct memory_disk *disk = new_disk("disk", &scripts[0]);
	struct tide_image *reader = NULL, *writer = open_disk(disk, true);
	struct tide_image_options options = { .path = unit_path("disk"), .force_share = true };
	struct tide_error err = TIDE_ERROR_INIT;

	CHECK_OK(tide_image_open(&options, &reader, &err), &err);
	if (reader && writer) {
		CHECK_OK(tide_image_check_unchanged(reader, &err), &err);
		CHECK_OK(tide_image_write(writer, "x", 0, 1, &err), &err);
		CHECK(tide_image_check_unchanged(reader, &err) < 0);
		tide_error_release(&err);
	}
	tide_image_close(reader);
	tide_image_close(writer);
	memory_disk_free(disk);
}

static void check_fault(size_t i, enum memory_op op)
{
	struct memory_fault fault = { op, 5 * CLUSTER, EDQUOT, 1 };
	struct memory_disk *disk = new_disk("disk", &scripts[i]);
	struct tide_image *image = open_disk(disk, true);
	bool placed = op == MEMORY_WRITE && !scripts[i].remote;
	struct tide_error err = TIDE_ERROR_INIT;

	memory_disk_fill(disk, 0, SIZE, 1);
	memory_disk_fail(disk, &fault);
	for (unsigned n = 0; n < 2 && image; n++) {
		int rc = op == MEMORY_READ ? tide_image_read(image, buf, 0, SIZE, &err)
		                           : tide_image_write(image, buf, 0, SIZE, &err);

		CHECK_EQ_I64(rc, n == 0 ? -1 : 0);
		CHECK_EQ_I64(err.sys, n > 0 ? 0 : placed ? ENOSPC : EDQUOT);
		tide_error_release(&err);
	}
	if (op != MEMORY_READ)
		CHECK_MEM(memory_disk_bytes(disk), buf, SIZE);
	tide_image_close(image);
	memory_disk_free(disk);
}

static void test_faults(void)
{
	for (size_t i = 0; i < TIDE_ARRAY_SIZE(scripts); i++) {
		UNIT_ROW("script %zu", i);
		check_fault(i, MEMORY_READ);
		check_fault(i, MEMORY_WRITE);
		if (scripts[i].remote)
			continue;
		check_fault(i, MEMORY_BEGIN);
		check_fault(i, MEMORY_COMMIT);
	}
}

static void test_created_by_the_driver(void)
{
	struct memory_script script = { .cluster_size = CLUSTER, .place_max = CLUSTER };
	struct tide_driver_create options = { .size = SIZE };
	struct tide_error err = TIDE_ERROR_INIT;
	const char *path = unit_path("created");
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
	struct tide_image *image = NULL;
	struct memory_disk *disk;

	memory_disk_script_created(&script);
	CHECK_OK(tide_image_create(fd, -1, path, tide_image_find_driver("memory"), &options, &image, &err), &err);
	disk = memory_disk_find(path);
	if (image && CHECK(disk)) {
		memset(buf, 7, SIZE);
		CHECK_OK(tide_image_write(image, buf, 0, SIZE, &err), &err);
		CHECK_EQ_U64(memory_disk_count(disk, MEMORY_COMMIT), 17);
		CHECK_EQ_U64(memory_disk_count_bytes(disk, MEMORY_COMMIT), SIZE);
		CHECK_MEM(memory_disk_bytes(disk), buf, SIZE);
	}
	memory_disk_script_created(NULL);
	tide_image_close(image);
	memory_disk_free(disk);
	close(fd);
}

int main(void)
{
	UNIT_RUN(test_probed_by_its_mark);
	UNIT_RUN(test_holds_what_is_written);
	UNIT_RUN(test_holes_come_from_the_backing_image);
	UNIT_RUN(test_changes_show_in_the_stamp);
	UNIT_RUN(test_faults);
	UNIT_RUN(test_created_by_the_driver);
	return unit_done();
}
