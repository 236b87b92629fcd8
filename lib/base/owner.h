/*
 * Owner and mode of files that are as confidential as another file: sidecars, write logs, backups.
 */
#ifndef TIDE_OWNER_H
#define TIDE_OWNER_H

#include <sys/types.h>

#include "compiler.h"
#include "tidemark.h"

/*
 * Gives fd, a new file that only its maker can open, the owner and mode of the regular file `like`, never a wider one:
 * if the owner cannot be given, the group is tried; if that cannot be given either, only the owner's bits of the mode
 * remain.  least: bits that the mode has in any case, of those of the owner.  If `like` is a device, fd stays as it is.
 */
int tide_owner_copy(int fd, int like, mode_t least, struct tide_error *err);

/* Narrows the mode of fd, which contains what `like` contains too, to what `like` lets its group and others do. */
int tide_owner_narrow(int fd, int like, struct tide_error *err);

#endif
