/*
 * Replies that only requests in JSON ask for; the others are public (tidemark.h).
 */
#ifndef TIDE_REPLY_H
#define TIDE_REPLY_H

#include "base/json.h"
#include "session.h"

/* Ends the reply, which repeats the request's id, and delivers it. */
int tide_reply_send(struct tide_session *session, struct tide_json_writer *w);
void tide_reply_put_bitmaps(struct tide_json_writer *w, const char *key, const struct tide_bitmap_list *list,
                            bool with_store);

struct tide_reply_node {
	const char *id;
	struct tide_image_info *info;
};

/* query-named-block-nodes (the newest first, as in QEMU) and query-block, in the parts that apply to idle images. */
int tide_reply_nodes(struct tide_session *session, const struct tide_reply_node *nodes, size_t n);
int tide_reply_devices(struct tide_session *session, const struct tide_reply_node *nodes, size_t n);

#endif
