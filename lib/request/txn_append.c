/*
 * The public calls that append an action to a transaction, one line each.
 */
#include "base/error.h"
#include "txn.h"

#define APPEND(action, args_type)                                                                         \
	int tide_txn_##action(struct tide_txn *txn, const struct args_type *args, struct tide_error *err) \
	{                                                                                                 \
		return tide_txn_append(txn, &tide_action_##action, args, err);                            \
	}

APPEND(bitmap_add, tide_bitmap_add)
APPEND(bitmap_remove, tide_bitmap_ref)
APPEND(bitmap_clear, tide_bitmap_ref)
APPEND(bitmap_enable, tide_bitmap_ref)
APPEND(bitmap_disable, tide_bitmap_ref)
APPEND(bitmap_merge, tide_bitmap_merge)
APPEND(bitmap_mark, tide_bitmap_mark)
APPEND(bitmap_rescan, tide_bitmap_rescan)
APPEND(bitmap_import, tide_bitmap_transfer)
APPEND(bitmap_export, tide_bitmap_transfer)
APPEND(chain_restore, tide_chain_restore)
APPEND(image_create, tide_image_create)
APPEND(image_write, tide_image_write)

int tide_txn_backup(struct tide_txn *txn, const struct tide_backup *args, struct tide_error *err)
{
	return tide_txn_append(txn, args->sync == TIDE_SYNC_AUTO ? &tide_action_backup_auto : &tide_action_backup, args,
	                       err);
}

int tide_txn_blockdev_backup(struct tide_txn *txn, const struct tide_backup *args, struct tide_error *err)
{
	if (args->sync == TIDE_SYNC_AUTO)
		return tide_error_set(err, TIDE_E_REFUSED, "Sync mode 'auto' is not for blockdev-backup");
	return tide_txn_append(txn, &tide_action_blockdev_backup, args, err);
}

int tide_txn_abort(struct tide_txn *txn, struct tide_error *err)
{
	return tide_txn_append(txn, &tide_action_abort, NULL, err);
}
