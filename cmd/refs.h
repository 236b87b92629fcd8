/*
 * Bitmaps that a command line refers to: those of IMAGE, and PATH#NAME of other images.
 *
 * A word is cut at its last #.  What has nothing before it is a bitmap of IMAGE, whose name
 * may have a # in it when it begins with one; a word without # means what the command says.
 * An image that is referred to twice, or that is IMAGE under another name, is one node of the
 * session; another one's id is its path, and its format and sidecar are found as usual.
 */
#ifndef REFS_H
#define REFS_H

#include "cmd.h"

struct refs {
	size_t n, room;
	struct tide_bitmap_ref *items; /* as the library wants them */
	char **paths;                  /* which their nodes are named by; NULL for a bitmap of IMAGE */
};

/* All that refs_add will be called for. */
int refs_init(struct refs *refs, size_t room, struct tide_error *err);
void refs_release(struct refs *refs);

/* After cmd_add_image.  name: that of the bitmap when word has no # and so is a PATH; NULL: word is a NAME. */
int refs_add(struct cmd *c, struct refs *refs, const char *word, const char *name, struct tide_error *err);

#endif
