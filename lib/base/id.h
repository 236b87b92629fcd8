/*
 * Identifiers: 128 random bits, which name a backup, a disk or a point in time wherever their files are moved to. Two
 * of them are never equal by accident. All zeroes: no identifier.
 */
#ifndef TIDE_ID_H
#define TIDE_ID_H

#include <stdbool.h>
#include <stdint.h>

#include "error.h"

#define TIDE_ID_BYTES 16u
#define TIDE_ID_TEXT  33u /* 32 hexadecimal digits and a NUL */

struct tide_id {
	uint8_t bytes[TIDE_ID_BYTES];
};

int tide_id_new(struct tide_id *id, struct tide_error *err);
bool tide_id_is_set(const struct tide_id *id);
bool tide_id_is_same(const struct tide_id *a, const struct tide_id *b);
bool tide_id_differs(const struct tide_id *a, const struct tide_id *b); /* false also if one is not set */
void tide_id_format(const struct tide_id *id, char text[TIDE_ID_TEXT]);

#endif
