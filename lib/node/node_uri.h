/*
 * Nodes whose image is no file but a URI: what node.h says is different about them.
 */
#ifndef TIDE_NODE_URI_H
#define TIDE_NODE_URI_H

#include "node.h"

/* The device id: the last part of the path, or the name of the format where there is none. */
char *tide_node_uri_id(const char *uri, struct tide_error *err);

/* Opens what is locked in the place of the image; who only looks does without, where nobody made it. */
int tide_node_uri_lock(struct tide_node *node, struct tide_error *err);
/* While the sidecar is still locked, so that nobody else has begun to rely on the file: takes it away with no sidecar.
 */
void tide_node_uri_unmake_lock(struct tide_node *node);

/* After "not found", what the server does export, for who cannot look into its image. */
void tide_node_uri_hint(const struct tide_node *node, struct tide_error *err);

#endif
