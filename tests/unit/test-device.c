/* Block devices: what a stored description and the present one prove together. */
#include <fcntl.h>
#include <string.h>

#include "base/device.h"
#include "unit.h"

static const struct tide_device sample = {
	.is_one = true,
	.size = 1 << 30,
	.diskseq = 7,
	.boot = { 1 },
	.serial = "A",
	.counter = { TIDE_COUNTER_KNOWN, 100, 100 },
};

static void check(const struct tide_device *then, const struct tide_device *present, enum tide_device_verdict wanted,
                  enum tide_device_doubt wanted_doubt)
{
	struct tide_device now = *present;

	CHECK_EQ_U64(tide_device_compare(then, &now), wanted);
	CHECK_EQ_U64(now.doubt, wanted_doubt);
	CHECK((now.gap != TIDE_DEVICE_NO_GAP) == (wanted == TIDE_DEVICE_UNCHECKED));
	CHECK(tide_device_gap_text(now.gap) != NULL);
}

static void test_same_boot(void)
{
	struct tide_device now = sample, then = sample;

	check(&sample, &now, TIDE_DEVICE_UNCHANGED, TIDE_DEVICE_NO_DOUBT);
	now.counter.own++;
	check(&sample, &now, TIDE_DEVICE_WRITTEN, TIDE_DEVICE_NO_DOUBT);
	now.counter.own -= 2;
	check(&sample, &now, TIDE_DEVICE_WRITTEN, TIDE_DEVICE_NO_DOUBT);
	now = sample;
	now.counter.whole++;
	check(&sample, &now, TIDE_DEVICE_UNCHECKED, TIDE_DEVICE_NO_DOUBT);
	now = sample;
	now.size *= 2; /* it was resized */
	check(&sample, &now, TIDE_DEVICE_UNCHANGED, TIDE_DEVICE_NO_DOUBT);
	now.counter.state = TIDE_COUNTER_UNKNOWN;
	check(&sample, &now, TIDE_DEVICE_UNCHECKED, TIDE_DEVICE_NO_DOUBT);
	now = sample;
	then.counter = (struct tide_counter){ .state = TIDE_COUNTER_UNKNOWN };
	check(&then, &now, TIDE_DEVICE_UNCHECKED, TIDE_DEVICE_NO_DOUBT);
	now.diskseq = 8;
	check(&sample, &now, TIDE_DEVICE_REPLACED, TIDE_DEVICE_ATTACHED);
	now.serial[0] = '\0';
	check(&sample, &now, TIDE_DEVICE_REPLACED, TIDE_DEVICE_NEW);
	now.serial[0] = 'B';
	check(&sample, &now, TIDE_DEVICE_REPLACED, TIDE_DEVICE_OTHER);
	now = sample;
	now.start = 2048; /* the partition is another one */
	check(&sample, &now, TIDE_DEVICE_REPLACED, TIDE_DEVICE_OTHER);
}

/* Without the number of the disk only a change proves anything. */
static void test_no_number(void)
{
	struct tide_device now = sample;

	now.diskseq = 0;
	check(&sample, &now, TIDE_DEVICE_UNCHECKED, TIDE_DEVICE_NO_DOUBT);
	now.counter.own++;
	check(&sample, &now, TIDE_DEVICE_WRITTEN, TIDE_DEVICE_NO_DOUBT);
}

static void test_other_boot(void)
{
	struct tide_device now = sample, then = sample;

	for (int i = 0; i < 2; i++) {
		now = sample;
		now.boot[0] = (uint8_t)(2 * i); /* 0: unknown */
		now.diskseq = 9;
		now.counter.own = 3;
		check(&sample, &now, TIDE_DEVICE_UNCHECKED, TIDE_DEVICE_NO_DOUBT);
		now.size *= 2;
		check(&sample, &now, TIDE_DEVICE_UNCHECKED, TIDE_DEVICE_NO_DOUBT);
		now.serial[0] = '\0';
		check(&sample, &now, TIDE_DEVICE_REPLACED, TIDE_DEVICE_OTHER);
		now.size = sample.size;
		check(&sample, &now, TIDE_DEVICE_UNCHECKED, TIDE_DEVICE_NO_DOUBT);
		now.serial[0] = 'B';
		check(&sample, &now, TIDE_DEVICE_REPLACED, TIDE_DEVICE_OTHER);
	}
	memset(then.boot, 0, sizeof(then.boot));
	now = then;
	check(&then, &now, TIDE_DEVICE_UNCHECKED, TIDE_DEVICE_NO_DOUBT);
}

static void test_nothing_stored(void)
{
	struct tide_device then = { 0 };

	check(&then, &sample, TIDE_DEVICE_UNCHECKED, TIDE_DEVICE_NO_DOUBT);
}

/* The description of two files changes with either. */
static void test_two(void)
{
	struct tide_device none = { 0 }, both = sample, sum = none;
	struct tide_counter unknown = { .state = TIDE_COUNTER_UNKNOWN };

	tide_device_add(&sum, &none);
	CHECK(!sum.is_one);
	tide_device_add(&sum, &sample);
	check(&sample, &sum, TIDE_DEVICE_UNCHANGED, TIDE_DEVICE_NO_DOUBT);
	tide_device_add(&sum, &none);
	check(&sample, &sum, TIDE_DEVICE_UNCHANGED, TIDE_DEVICE_NO_DOUBT);
	tide_device_add(&sum, &sample);
	tide_device_add(&both, &sample);
	check(&sum, &both, TIDE_DEVICE_UNCHANGED, TIDE_DEVICE_NO_DOUBT);
	CHECK_STR(sum.serial, "AA");
	CHECK_EQ_U64(sum.counter.own, 200);
	tide_device_add_counter(&sum.counter, &unknown);
	check(&both, &sum, TIDE_DEVICE_UNCHECKED, TIDE_DEVICE_NO_DOUBT);
	both.serial[0] = '\0';
	tide_device_add(&both, &sample);
	CHECK_STR(both.serial, "");
}

/* A long serial number is cut, also when another one is added. */
static void test_long_serial(void)
{
	struct tide_device a = sample, b = sample;

	memset(a.serial, 'x', TIDE_DEVICE_SERIAL_MAX - 1);
	memset(b.serial, 'y', TIDE_DEVICE_SERIAL_MAX);
	tide_device_add(&a, &b);
	CHECK_EQ_U64(strlen(a.serial), TIDE_DEVICE_SERIAL_MAX);
	CHECK(a.serial[TIDE_DEVICE_SERIAL_MAX - 1] == 'y');
}

static void test_no_device(void)
{
	const int fds[] = { -1, open("/dev/null", O_RDONLY), open("/proc/self/exe", O_RDONLY) };

	for (size_t i = 0; i < 3; i++) {
		struct tide_device device = sample;
		struct tide_counter counter = sample.counter;

		tide_device_identify(fds[i], &device);
		tide_device_count(fds[i], &counter);
		CHECK(!device.is_one && device.size == 0);
		CHECK(counter.state == TIDE_COUNTER_NONE && counter.own == 0);
	}
}

static void test_boot(void)
{
	uint8_t a[TIDE_DEVICE_BOOT_BYTES], b[TIDE_DEVICE_BOOT_BYTES], none[TIDE_DEVICE_BOOT_BYTES] = { 0 };

	tide_device_boot(a);
	tide_device_boot(b);
	CHECK_MEM(a, b, sizeof(a));
	CHECK(memcmp(a, none, sizeof(a)) != 0);
}

int main(void)
{
	UNIT_RUN(test_same_boot);
	UNIT_RUN(test_no_number);
	UNIT_RUN(test_other_boot);
	UNIT_RUN(test_nothing_stored);
	UNIT_RUN(test_two);
	UNIT_RUN(test_long_serial);
	UNIT_RUN(test_no_device);
	UNIT_RUN(test_boot);
	return unit_done();
}
