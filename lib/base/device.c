/*
 * Identifies block devices, counts their writes and compares both with what was stored (device.h).
 *
 * Everything comes from /sys/dev/block/MAJOR:MINOR, where the directory of a partition lies in that of its disk.
 */
#include "device.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "compiler.h"
#include "sysio.h"

#ifndef BLKGETDISKSEQ /* since Linux 5.15 */
#define BLKGETDISKSEQ _IOR(0x12, 128, uint64_t)
#endif

#define TEXT_MAX 512u

static const uint8_t no_boot[TIDE_DEVICE_BOOT_BYTES];

void tide_device_boot(uint8_t boot[TIDE_DEVICE_BOOT_BYTES])
{
	TIDE_AUTOCLOSE int fd = tide_sysio_open("/proc/sys/kernel/random/boot_id", O_RDONLY, NULL);
	char text[40] = "";
	unsigned n = 0;

	memset(boot, 0, TIDE_DEVICE_BOOT_BYTES);
	if (fd < 0 || tide_sysio_read(fd, text, sizeof(text) - 1, NULL) < 0)
		return;
	for (const char *p = text; *p && n < 2 * TIDE_DEVICE_BOOT_BYTES; p++) {
		const char *digits = "0123456789abcdef", *d = strchr(digits, *p);

		if (!d)
			continue;
		boot[n / 2] |= (uint8_t)((d - digits) << (n % 2 ? 0 : 4));
		n++;
	}
}

/* ---- what the kernel says ---------------------------------------------------------- */

/* Reads an attribute of the device, without blanks around it; false: it does not exist, or is empty. */
static bool read_attribute(dev_t dev, const char *name, char text[TEXT_MAX])
{
	TIDE_AUTOCLOSE int fd = -1;
	char path[128];
	ssize_t n;

	snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/%s", major(dev), minor(dev), name);
	fd = tide_sysio_open(path, O_RDONLY, NULL);
	n = fd < 0 ? -1 : tide_sysio_read(fd, text, TEXT_MAX - 1, NULL);
	while (n > 0 && (text[n - 1] == '\n' || text[n - 1] == ' '))
		n--;
	text[n > 0 ? n : 0] = '\0';
	memmove(text, text + strspn(text, " "), strlen(text + strspn(text, " ")) + 1);
	return *text;
}

static uint64_t read_number(dev_t dev, const char *name)
{
	char text[TEXT_MAX];

	return read_attribute(dev, name, text) ? strtoull(text, NULL, 10) : 0;
}

/* The serial number, or another name that belongs to the disk and not to its place. */
static void read_serial(dev_t dev, char serial[TIDE_DEVICE_SERIAL_MAX + 1])
{
	static const char *const names[] = {
		"dm/uuid", "wwid", "device/wwid", "serial", "device/serial", "device/cid"
	};
	char path[64], text[TEXT_MAX];
	bool is_part = read_attribute(dev, "partition", text);

	for (size_t i = 0; i < TIDE_ARRAY_SIZE(names); i++) {
		snprintf(path, sizeof(path), "%s%s", is_part ? "../" : "", names[i]);
		if (!read_attribute(dev, path, text))
			continue;
		memcpy(serial, text, TIDE_MIN(strlen(text), (size_t)TIDE_DEVICE_SERIAL_MAX));
		return;
	}
}

void tide_device_identify(int fd, struct tide_device *device)
{
	struct stat st;

	*device = (struct tide_device){ 0 };
	if (fd < 0 || fstat(fd, &st) < 0 || !S_ISBLK(st.st_mode))
		return;
	device->is_one = true;
	if (ioctl(fd, BLKGETSIZE64, &device->size) < 0)
		device->size = 0;
	if (ioctl(fd, BLKGETDISKSEQ, &device->diskseq) < 0)
		device->diskseq = 0;
	device->start = read_number(st.st_rdev, "start");
	tide_device_boot(device->boot);
	read_serial(st.st_rdev, device->serial);
}

/* The sectors written and discarded.  A device whose transfers are all 0 is one that the kernel does not count for. */
static bool read_count(dev_t dev, const char *name, uint64_t *count)
{
	enum { READS, READ_SECTORS = 2, WRITES = 4, WRITTEN = 6, DISCARDS = 11, DISCARDED = 13, FIELDS };
	uint64_t field[FIELDS] = { 0 };
	char text[TEXT_MAX], *p = text;
	size_t n = 0;

	if (!read_attribute(dev, name, text))
		return false;
	for (char *end; n < FIELDS; n++, p = end) {
		field[n] = strtoull(p, &end, 10);
		if (end == p)
			break;
	}
	*count = field[WRITTEN] + field[DISCARDED];
	return n > WRITTEN && (field[READS] || field[WRITES] || field[DISCARDS]);
}

static bool is_counting(dev_t dev)
{
	char text[TEXT_MAX];

	if (!read_attribute(dev, "queue/iostats", text) && !read_attribute(dev, "../queue/iostats", text))
		return false;
	return strcmp(text, "0") != 0;
}

/*
 * Until a page is written out, the kernel has not counted it.  The kernel reports a failure once for each descriptor
 * that was opened, and the report to fd belongs to its next flush.
 */
static bool write_out(int fd)
{
	const unsigned all = SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;
	TIDE_AUTOCLOSE int own = tide_sysio_reopen(fd, O_RDONLY | O_NONBLOCK);

	if (own < 0)
		return false;
	if (sync_file_range(own, 0, 0, all) == 0)
		return true;
	return errno == ENOSYS && fsync(own) == 0;
}

void tide_device_count(int fd, struct tide_counter *counter)
{
	struct stat st;
	bool is_part;

	*counter = (struct tide_counter){ 0 };
	if (fd < 0 || fstat(fd, &st) < 0 || !S_ISBLK(st.st_mode))
		return;
	counter->state = TIDE_COUNTER_UNKNOWN;
	/* The disk's counter includes those of its partitions.  Read first, it differs later if this one grows now. */
	if (!write_out(fd) || !is_counting(st.st_rdev))
		return;
	is_part = read_count(st.st_rdev, "../stat", &counter->whole);
	if (!read_count(st.st_rdev, "stat", &counter->own))
		return;
	if (!is_part)
		counter->whole = counter->own;
	counter->state = TIDE_COUNTER_KNOWN;
}

/* ---- two files ----------------------------------------------------------------------- */

void tide_device_add_counter(struct tide_counter *counter, const struct tide_counter *other)
{
	if (other->state == TIDE_COUNTER_NONE)
		return;
	if (counter->state == TIDE_COUNTER_NONE) {
		*counter = *other;
		return;
	}
	if (other->state == TIDE_COUNTER_UNKNOWN)
		counter->state = TIDE_COUNTER_UNKNOWN;
	counter->own += other->own;
	counter->whole += other->whole;
}

void tide_device_add(struct tide_device *device, const struct tide_device *other)
{
	size_t len = strlen(device->serial);

	if (!other->is_one)
		return;
	if (!device->is_one) {
		*device = *other;
		return;
	}
	device->size += other->size;
	device->start += other->start;
	device->diskseq = device->diskseq && other->diskseq ? device->diskseq + other->diskseq : 0;
	if (!len || !*other->serial)
		memset(device->serial, 0, sizeof(device->serial));
	else
		memcpy(device->serial + len, other->serial,
		       TIDE_MIN(strlen(other->serial), TIDE_DEVICE_SERIAL_MAX - len));
	tide_device_add_counter(&device->counter, &other->counter);
}

/* ---- comparing ----------------------------------------------------------------------- */

static bool is_same_boot(const struct tide_device *a, const struct tide_device *b)
{
	return memcmp(a->boot, no_boot, sizeof(no_boot)) != 0 && !memcmp(a->boot, b->boot, sizeof(a->boot));
}

static enum tide_device_doubt doubt_identity(const struct tide_device *then, const struct tide_device *now,
                                             bool same_boot)
{
	bool named = *then->serial && *now->serial, same_name = named && !strcmp(then->serial, now->serial);
	bool numbered = same_boot && then->diskseq && now->diskseq;

	if ((named && !same_name) || then->start != now->start)
		return TIDE_DEVICE_OTHER;
	if (numbered && then->diskseq != now->diskseq)
		return same_name ? TIDE_DEVICE_ATTACHED : TIDE_DEVICE_NEW;
	/* The same disk may have been resized. */
	return numbered || same_name || then->size == now->size ? TIDE_DEVICE_NO_DOUBT : TIDE_DEVICE_OTHER;
}

static enum tide_device_gap find_gap(const struct tide_device *then, const struct tide_device *now, bool same_boot)
{
	if (!same_boot)
		return TIDE_DEVICE_RESTARTED;
	if (then->counter.state != TIDE_COUNTER_KNOWN || now->counter.state != TIDE_COUNTER_KNOWN)
		return TIDE_DEVICE_NOT_COUNTED;
	if (!then->diskseq || !now->diskseq)
		return TIDE_DEVICE_NOT_NUMBERED;
	return then->counter.whole != now->counter.whole ? TIDE_DEVICE_PART_OF_WRITTEN : TIDE_DEVICE_NO_GAP;
}

enum tide_device_verdict tide_device_compare(const struct tide_device *then, struct tide_device *now)
{
	bool same_boot = is_same_boot(then, now);
	const struct tide_counter *a = &then->counter, *b = &now->counter;

	now->doubt = TIDE_DEVICE_NO_DOUBT;
	now->gap = TIDE_DEVICE_NO_GAP;
	if (!then->is_one) {
		now->gap = TIDE_DEVICE_NOT_DESCRIBED;
		return TIDE_DEVICE_UNCHECKED;
	}
	now->doubt = doubt_identity(then, now, same_boot);
	if (now->doubt != TIDE_DEVICE_NO_DOUBT)
		return TIDE_DEVICE_REPLACED;
	if (same_boot && a->state == TIDE_COUNTER_KNOWN && b->state == TIDE_COUNTER_KNOWN && a->own != b->own)
		return TIDE_DEVICE_WRITTEN;
	now->gap = find_gap(then, now, same_boot);
	return now->gap == TIDE_DEVICE_NO_GAP ? TIDE_DEVICE_UNCHANGED : TIDE_DEVICE_UNCHECKED;
}

const char *tide_device_gap_text(enum tide_device_gap gap)
{
	static const char *const texts[TIDE_DEVICE_GAPS] = {
		[TIDE_DEVICE_NO_GAP] = "nothing is missing",
		[TIDE_DEVICE_NOT_DESCRIBED] = "an earlier version stored its sidecar",
		[TIDE_DEVICE_RESTARTED] = "the machine was started again while nobody recorded its writes",
		[TIDE_DEVICE_NOT_COUNTED] = "the kernel does not count its writes",
		[TIDE_DEVICE_NOT_NUMBERED] = "the kernel does not say whether it was detached",
		[TIDE_DEVICE_PART_OF_WRITTEN] = "the disk that it is a part of was written",
	};

	return texts[gap];
}
