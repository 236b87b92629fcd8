/*
 * Creating a new, empty image, as qemu-img create does.
 */
#ifndef TIDE_CREATE_H
#define TIDE_CREATE_H

#include "target.h"

/* Checks the arguments and creates the image, still without its name; a commit gives it (commit.h). */
int tide_create_image(struct tide_target *target, const struct tide_image_create *args, struct tide_error *err);

#endif
