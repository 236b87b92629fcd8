/*
 * An extent: what an image holds for a range of the disk, and where those bytes are.
 */
#ifndef TIDE_EXTENT_H
#define TIDE_EXTENT_H

#include <stdbool.h>
#include <stdint.h>

enum tide_extent_kind {
	TIDE_EXTENT_DATA, /* the image holds bytes for it */
	TIDE_EXTENT_ZERO, /* the image defines it as zeroes */
	TIDE_EXTENT_HOLE, /* not in this image: the backing image decides, else zeroes */
};

struct tide_extent {
	uint64_t off, len; /* bytes of the disk */
	enum tide_extent_kind kind;
	bool mapped;      /* DATA: are the plain bytes at map_off of map_fd? (not when compressed) */
	int map_fd;       /* owned by the driver */
	uint64_t map_off; /* bytes */
	unsigned depth;   /* the image of the chain it comes from, 0: the top; set by the image layer */
};

#endif
