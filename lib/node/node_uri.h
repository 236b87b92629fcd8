/*
 * Nodes whose image is a URI instead of a file: their id, the file that is locked in place of the image, and a hint
 * about the server's bitmaps.
 */
#ifndef TIDE_NODE_URI_H
#define TIDE_NODE_URI_H

#include "node.h"

/* The device id: the last part of the path, or the name of the driver if the URI has no path. */
char *tide_node_uri_id(const char *uri, struct tide_error *err);

/* Opens SIDECAR.lock, which is locked in place of the image.  A node that is read needs no lock file if none exists. */
int tide_node_uri_lock(struct tide_node *node, struct tide_error *err);
/* Removes the lock file that this node created if no sidecar was committed.  The sidecar must still be locked: no other
 * program relies on the file yet. */
void tide_node_uri_unmake_lock(struct tide_node *node);

/* Adds a hint to "not found": the bitmaps that the server exports, since users cannot list those of its image. */
void tide_node_uri_hint(const struct tide_node *node, struct tide_error *err);

#endif
