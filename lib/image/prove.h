/*
 * Proves the stored data of one image by its checksums: reads the file once, in large pieces and in the order of the
 * file, by a few workers.
 */
#ifndef TIDE_PROVE_H
#define TIDE_PROVE_H

#include "base/event.h"
#include "image.h"

struct tide_prove {
	/* The task. */
	struct tide_image *image;
	struct tide_sums *sums;
	const char *device; /* for progress reports; NULL: no reports */
	struct tide_sink *sink;

	/* The result, over the table's range of the file: blocks that do not have their checksum, and those without. */
	struct tide_bitmap *bad, *unproven;
	uint64_t len, offset; /* bytes to read, read */
};

/* -1: cancelled, or a place cannot be read. release frees the results, also after a failure. */
int tide_prove_run(struct tide_prove *prove, struct tide_error *err);
void tide_prove_release(struct tide_prove *prove);

#endif
