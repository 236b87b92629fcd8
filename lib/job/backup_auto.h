/*
 * The decision of sync mode auto: an increment on the backup that the bitmap counts from, or a full backup.
 *
 * Everything that makes an increment doubtful leads to a full backup and is its reason, so a nightly job is not refused
 * every night because of the state of its chain.
 */
#ifndef TIDE_BACKUP_AUTO_H
#define TIDE_BACKUP_AUTO_H

#include "base/event.h"
#include "node/node.h"

struct tide_backup_decision {
	bool full;
	char *reason;
	char *backing; /* of an increment in a new target, or NULL */
	const char *backing_format;
};

/*
 * The node is open.  bitmap: args->bitmap, or NULL if it does not exist.  will_change: an earlier action of the
 * transaction changes the bitmap before the backup.  Release it also after a failure.
 */
int tide_backup_auto_decide(struct tide_node *node, const struct tide_backup *args, struct tide_sidecar_bitmap *bitmap,
                            bool will_change, struct tide_sink *sink, struct tide_backup_decision *decision,
                            struct tide_error *err);
void tide_backup_auto_release(struct tide_backup_decision *decision);

#endif
