/*
 * Which backup an image is: the birth record in the image, or in its sidecar.
 */
#ifndef TIDE_IDENTITY_H
#define TIDE_IDENTITY_H

#include "image/birth.h"
#include "image/image.h"

/* *birth NULL: there is no record, or only a damaged one. The caller frees it. */
int tide_identity_find(const struct tide_image *image, struct tide_birth **birth, struct tide_error *err);

/* "2026-11-28 23:00:00 UTC", for messages. */
#define TIDE_IDENTITY_TIME 32u
void tide_identity_format_time(int64_t time, char text[TIDE_IDENTITY_TIME]);

#endif
