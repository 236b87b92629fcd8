/*
 * The public calls that append an action to a transaction, one line each.
 */
#include "base/error.h"
#include "base/mem.h"
#include "base/sized.h"
#include "txn.h"

static int append(struct tide_txn *txn, const struct tide_action *action, const void *args, size_t size,
                  struct tide_error *err)
{
	TIDE_AUTOFREE void *own = tide_mem_alloc(1, action->args_size, err);

	if (!own || tide_sized_take(own, action->args_size, args, size, err) < 0)
		return -1;
	return tide_txn_append(txn, action, own, err);
}

#define APPEND(action, type)                                                                      \
	int tide_txn_##action##_sized(struct tide_txn *txn, const struct type *args, size_t size, \
	                              struct tide_error *err)                                     \
	{                                                                                         \
		return append(txn, &tide_action_##action, args, size, err);                       \
	}

APPEND(bitmap_add, tide_bitmap_add)
APPEND(bitmap_remove, tide_bitmap_edit)
APPEND(bitmap_clear, tide_bitmap_edit)
APPEND(bitmap_enable, tide_bitmap_edit)
APPEND(bitmap_disable, tide_bitmap_edit)
APPEND(bitmap_merge, tide_bitmap_merge)
APPEND(bitmap_mark, tide_bitmap_mark)
APPEND(bitmap_rescan, tide_bitmap_rescan)
APPEND(bitmap_import, tide_bitmap_transfer)
APPEND(bitmap_export, tide_bitmap_transfer)
APPEND(chain_restore, tide_chain_restore)
APPEND(image_create, tide_image_create)
APPEND(image_write, tide_image_write)

static bool is_auto(const struct tide_backup *args, size_t size)
{
	return size >= offsetof(struct tide_backup, sync) + sizeof(args->sync) && args->sync == TIDE_SYNC_AUTO;
}

int tide_txn_backup_sized(struct tide_txn *txn, const struct tide_backup *args, size_t size, struct tide_error *err)
{
	return append(txn, &tide_action_backup, args, size, err);
}

int tide_txn_blockdev_backup_sized(struct tide_txn *txn, const struct tide_backup *args, size_t size,
                                   struct tide_error *err)
{
	if (is_auto(args, size))
		return tide_error_set(err, TIDE_E_REFUSED, "Sync mode 'auto' is not for blockdev-backup");
	return append(txn, &tide_action_blockdev_backup, args, size, err);
}

int tide_txn_abort(struct tide_txn *txn, struct tide_error *err)
{
	return tide_txn_append(txn, &tide_action_abort, NULL, err);
}
