/*
 * blockdev-add's arguments, a tree of block drivers, and the one image that they come down to.
 *
 * Decoded as QEMU's schema has them: a format (raw, qcow2) over a protocol (file, host_device, nbd), or nbd by
 * itself.  An export becomes its URI, in which whatever is not a plain character is escaped.  What QEMU knows and
 * this version does not is refused by name.
 */
#ifndef TIDE_QMP_BLOCKDEV_H
#define TIDE_QMP_BLOCKDEV_H

#include "qmp.h"

struct tide_qmp_blockdev {
	const char *node_name; /* NULL: none; like format, not owned */
	const char *format;
	char *path; /* of a file, or a URI */
	bool is_export;
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
