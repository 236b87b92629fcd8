/*
 * blockdev-add's arguments, a tree of block drivers, and the one image that they come down to.
 *
 * They are decoded as QEMU's schema has them: a format over a file, or a driver with options of its own, alone or
 * below a raw format.  The drivers say which they are, which options they have, and which URI the options come down
 * to.  Options that QEMU knows and this version does not are refused by name.
 */
#ifndef TIDE_QMP_BLOCKDEV_H
#define TIDE_QMP_BLOCKDEV_H

#include "qmp.h"

struct tide_qmp_blockdev {
	const char *node_name; /* NULL: none; like format, not owned */
	const char *format;
	char *path;         /* of a file, or a URI */
	bool is_export;     /* path is a URI */
	const char *socket; /* the path of its server's Unix socket, or NULL; not owned */
};

#define TIDE_QMP_BLOCKDEV_INIT                \
	{                                     \
		NULL, NULL, NULL, false, NULL \
	}

/* object: the arguments; NULL: none. */
int tide_qmp_blockdev_decode(const struct tide_json *object, struct tide_qmp_blockdev *out, struct tide_error *err);
void tide_qmp_blockdev_release(struct tide_qmp_blockdev *blockdev);

#define TIDE_AUTOBLOCKDEV TIDE_CLEANUP(tide_qmp_blockdev_release)

#endif
