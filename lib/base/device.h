/*
 * A block device: which one it is, and how much was written to it, as far as the kernel knows.  A device has no
 * modification time; its identity and the kernel's counters take that place (tidemark.7, Trust).
 *
 * The number of the disk (diskseq) is never given twice in one boot, and the counters start again with it, so both
 * count within one boot only.  The serial number, the size and the start of a partition last longer, and prove only
 * that a device is another one.
 *
 * The kernel counts what passes through the device: no writes of another machine, none to the devices or files that it
 * consists of.
 */
#ifndef TIDE_DEVICE_H
#define TIDE_DEVICE_H

#include <stdbool.h>
#include <stdint.h>

#define TIDE_DEVICE_SERIAL_MAX 199u
#define TIDE_DEVICE_BOOT_BYTES 16u

enum tide_counter_state {
	TIDE_COUNTER_NONE = 0, /* there is no device */
	TIDE_COUNTER_UNKNOWN,  /* the kernel does not count */
	TIDE_COUNTER_KNOWN,
};

/* The sectors that were written or discarded. */
struct tide_counter {
	enum tide_counter_state state;
	uint64_t own;   /* of the device */
	uint64_t whole; /* of the disk that it is a partition of; equal to own for a whole disk */
};

/* Why the bitmaps of a device are not trusted. */
enum tide_device_doubt {
	TIDE_DEVICE_NO_DOUBT = 0,
	TIDE_DEVICE_OTHER,    /* it is another disk */
	TIDE_DEVICE_ATTACHED, /* it was detached and attached again */
	TIDE_DEVICE_NEW,      /* one of the two */
	TIDE_DEVICE_DOUBTS,
};

/* Why it is unknown whether a device was written. */
enum tide_device_gap {
	TIDE_DEVICE_NO_GAP = 0,
	TIDE_DEVICE_NOT_DESCRIBED,
	TIDE_DEVICE_RESTARTED,
	TIDE_DEVICE_NOT_COUNTED,
	TIDE_DEVICE_NOT_NUMBERED,
	TIDE_DEVICE_PART_OF_WRITTEN,
	TIDE_DEVICE_GAPS,
};

struct tide_device {
	bool is_one;                             /* false: it is not a block device, and all else is zero */
	uint64_t size;                           /* bytes */
	uint64_t start;                          /* of a partition, in sectors */
	uint64_t diskseq;                        /* 0: unknown */
	uint8_t boot[TIDE_DEVICE_BOOT_BYTES];    /* zeroes: unknown */
	char serial[TIDE_DEVICE_SERIAL_MAX + 1]; /* or another name that lasts, such as its WWN; empty: unknown */
	struct tide_counter counter;
	/* In a sidecar, as long as a bitmap is inconsistent, or unchecked: */
	enum tide_device_doubt doubt;
	enum tide_device_gap gap;
};

enum tide_device_verdict {
	TIDE_DEVICE_UNCHANGED,
	TIDE_DEVICE_UNCHECKED, /* nothing is known; gap says why */
	TIDE_DEVICE_WRITTEN,
	TIDE_DEVICE_REPLACED, /* doubt says how */
};

/* A field that cannot be found out stays unknown; all are zero if fd is not a block device.  The counter is not read.
 */
void tide_device_identify(int fd, struct tide_device *device);
/* Writes out the pages of the device and reads its counter. */
void tide_device_count(int fd, struct tide_counter *counter);
/* Adds an image's second file: the result describes both, so that a change of either file changes it. */
void tide_device_add(struct tide_device *device, const struct tide_device *other);
void tide_device_add_counter(struct tide_counter *counter, const struct tide_counter *other);

/* then: as it was stored.  now: gets doubt and gap. */
enum tide_device_verdict tide_device_compare(const struct tide_device *then, struct tide_device *now);
/* The gap as a clause. */
const char *tide_device_gap_text(enum tide_device_gap gap);

/* The identifier of the machine's present boot; all zeroes if it is unknown. */
void tide_device_boot(uint8_t boot[TIDE_DEVICE_BOOT_BYTES]);

#endif
