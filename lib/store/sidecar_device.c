/*
 * The record of a block device in the lineage area of a sidecar: which device the bitmaps belong to, and the kernel's
 * counter of its writes after the last change that they recorded. man/tidemark-sidecar.5 specifies it.
 */
#include <string.h>

#include "base/bytes.h"
#include "sidecar_format.h"

enum {
	DEVICE_SIZE = 0,
	DEVICE_START = 8,
	DEVICE_DISKSEQ = 16,
	DEVICE_BOOT = 24,
	DEVICE_OWN = 40,
	DEVICE_WHOLE = 48,
	DEVICE_COUNTED = 56, /* 1: the counters are valid; 0: they are 0 */
	DEVICE_DOUBT = 60,
	DEVICE_GAP = 62,
	DEVICE_SERIAL = 64,
};

size_t tide_sidecar_device_len(const struct tide_device *device)
{
	return DEVICE_SERIAL + strnlen(device->serial, TIDE_DEVICE_SERIAL_MAX);
}

void tide_sidecar_device_put(const struct tide_device *device, uint8_t *p)
{
	const struct tide_counter *counter = &device->counter;
	bool counted = counter->state == TIDE_COUNTER_KNOWN;

	tide_put_le64(p + DEVICE_SIZE, device->size);
	tide_put_le64(p + DEVICE_START, device->start);
	tide_put_le64(p + DEVICE_DISKSEQ, device->diskseq);
	memcpy(p + DEVICE_BOOT, device->boot, sizeof(device->boot));
	tide_put_le64(p + DEVICE_OWN, counted ? counter->own : 0);
	tide_put_le64(p + DEVICE_WHOLE, counted ? counter->whole : 0);
	tide_put_le32(p + DEVICE_COUNTED, counted);
	tide_put_le16(p + DEVICE_DOUBT, (uint16_t)device->doubt);
	tide_put_le16(p + DEVICE_GAP, (uint16_t)device->gap);
	memcpy(p + DEVICE_SERIAL, device->serial, tide_sidecar_device_len(device) - DEVICE_SERIAL);
}

int tide_sidecar_device_get(struct tide_device *device, const uint8_t *p, size_t len, uint64_t at,
                            struct tide_error *err)
{
	if (device->is_one)
		return tide_error_set(err, TIDE_E_CORRUPT, "device at byte %" PRIu64 ": there is one already", at);
	if (tide_sidecar_format_check_range(err, "length of the device", at, DEVICE_SERIAL,
	                                    DEVICE_SERIAL + TIDE_DEVICE_SERIAL_MAX, len) < 0 ||
	    tide_sidecar_format_check_range(err, "device counter's flag", at + DEVICE_COUNTED, 0, 1,
	                                    tide_get_le32(p + DEVICE_COUNTED)) < 0 ||
	    tide_sidecar_format_check_range(err, "device's doubt", at + DEVICE_DOUBT, 0, TIDE_DEVICE_DOUBTS - 1,
	                                    tide_get_le16(p + DEVICE_DOUBT)) < 0 ||
	    tide_sidecar_format_check_range(err, "device's gap", at + DEVICE_GAP, 0, TIDE_DEVICE_GAPS - 1,
	                                    tide_get_le16(p + DEVICE_GAP)) < 0)
		return -1;
	if (memchr(p + DEVICE_SERIAL, 0, len - DEVICE_SERIAL))
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "device's serial number at byte %" PRIu64 ": expected no NUL, found one",
		                      at + DEVICE_SERIAL);
	*device = (struct tide_device){
		.is_one = true,
		.size = tide_get_le64(p + DEVICE_SIZE),
		.start = tide_get_le64(p + DEVICE_START),
		.diskseq = tide_get_le64(p + DEVICE_DISKSEQ),
		.doubt = (enum tide_device_doubt)tide_get_le16(p + DEVICE_DOUBT),
		.gap = (enum tide_device_gap)tide_get_le16(p + DEVICE_GAP),
		.counter = {
			.state = tide_get_le32(p + DEVICE_COUNTED) ? TIDE_COUNTER_KNOWN : TIDE_COUNTER_UNKNOWN,
			.own = tide_get_le64(p + DEVICE_OWN),
			.whole = tide_get_le64(p + DEVICE_WHOLE),
		},
	};
	memcpy(device->boot, p + DEVICE_BOOT, sizeof(device->boot));
	memcpy(device->serial, p + DEVICE_SERIAL, len - DEVICE_SERIAL);
	return 0;
}
