/*
 * Moving a stretch of data without touching it: by reflink, or inside the kernel.
 *
 * All of the stretch has to stand as plain bytes in files.  What cannot be moved this way is
 * told, and nothing is lost by having tried: the target's places are given back, or hold
 * what the next way puts there again.
 */
#ifndef TIDE_COPY_MOVE_H
#define TIDE_COPY_MOVE_H

#include "copy_look.h"
#include "copy_way.h"

#define TIDE_COPY_REFUSED_MAX 16

struct tide_copy_mover {
	struct tide_image *target;
	enum tide_copy_way way; /* reflink or kernel */
	bool reads_zero;        /* the target's places read as zeroes where nothing was written */
	uint64_t block;         /* of the target's file system */
	/* Source files that have nothing to do with the target's. */
	int refused[TIDE_COPY_REFUSED_MAX];
	size_t n_refused;
};

void tide_copy_move_init(struct tide_copy_mover *m, struct tide_image *target, enum tide_copy_way way, bool reads_zero);

/* True when the stretch is in the target, to its end. */
bool tide_copy_move(struct tide_copy_mover *m, const struct tide_copy_stretch *s);

#endif
