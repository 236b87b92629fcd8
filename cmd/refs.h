/*
 * Bitmaps that a command line refers to: those of IMAGE, and PATH#NAME of other images.
 *
 * A word is split at its last #.  If it begins with a #, the rest is the name of a bitmap of
 * IMAGE, which may contain another #.  The command defines the meaning of a word without #.
 * An image that is referred to twice, or that is IMAGE with another name, is one node of the
 * session.  The id of another image is its path, and its format and sidecar are the defaults.
 */
#ifndef REFS_H
#define REFS_H

#include "cmd.h"

struct refs {
	size_t n, room;
	struct tide_bitmap_ref *items; /* in the form of the library */
	char **paths;                  /* the names of their nodes; NULL for a bitmap of IMAGE */
};

/* Makes room for all calls of refs_add. */
int refs_init(struct refs *refs, size_t room, struct tide_error *err);
void refs_release(struct refs *refs);

/* Call it after cmd_add_image.  If word has no #, it is the PATH of an image with the bitmap name; with name NULL, a
 * NAME. */
int refs_add(struct cmd *c, struct refs *refs, const char *word, const char *name, struct tide_error *err);

#endif
