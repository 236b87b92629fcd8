/*
 * What the source holds at a place: a stretch of data, in parts that are of one kind each,
 * and the zeroes that follow it.
 *
 * The stretch begins and ends on whole blocks of the caller's, who copies no less; a zero
 * part is one that is smaller than a block, or has data in the same block.
 */
#ifndef TIDE_COPY_LOOK_H
#define TIDE_COPY_LOOK_H

#include "image/image.h"

#define TIDE_COPY_PARTS_MAX 256

struct tide_copy_part {
	uint64_t off, len; /* bytes of the disk */
	bool zero;
	int fd;      /* where its plain bytes are; -1: nowhere */
	uint64_t at; /* in that file */
};

struct tide_copy_stretch {
	uint64_t off;
	uint64_t len;    /* of the data; 0: zeroes only */
	uint64_t zeroes; /* that follow */
	size_t n;        /* parts, without gaps; 0: too many to tell apart */
	struct tide_copy_part part[TIDE_COPY_PARTS_MAX];
};

/* At least one block, and at most len, of which the last one may be short.  Behind the source's end there are zeroes.
 */
int tide_copy_look(struct tide_image *source, uint64_t block, uint64_t off, uint64_t len, struct tide_copy_stretch *s,
                   struct tide_error *err);

/* What a part holds into buf. */
int tide_copy_look_read(struct tide_image *source, const struct tide_copy_part *p, uint8_t *buf,
                        struct tide_error *err);

#endif
