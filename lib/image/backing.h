/*
 * The names of other files that an image holds, for its backing image and its external data file, and
 * whether they may be followed.
 *
 * An image may come from a guest or from a stranger, and a name in it is followed with the rights of
 * whoever runs the command: without a check, a disk could have any file of the host copied into its own
 * backup. Therefore a name is followed only when it is a plain path to a file in the directory of the image
 * that holds it, or below that directory, judged after all symbolic links are resolved. A caller allows
 * more with flags of enum tide_allow:
 *
 *   outside   plain paths that lead out of the directory
 *   protocol  names that are not plain paths: "file:…", and the "json:…" that libvirt and QEMU
 *             write for a plain file; the path in them is then judged like any other. Also URIs,
 *             which are then connected to. Other drivers and options are refused by name,
 *             because they would change what is read.
 *   probe     images without a recorded format; not judged here
 *
 * Names of both kinds go through here, and no other way. A name that a person gives (an image, a target,
 * --backing) is not judged.
 */
#ifndef TIDE_BACKING_H
#define TIDE_BACKING_H

#include "base/compiler.h"
#include "tidemark.h"

struct tide_backing {
	char *path;   /* the path the name means, for display: relative like the image's path */
	char *real;   /* the same without symbolic links, to be opened; NULL: no such file, or a URI */
	char *format; /* given by the name itself, or NULL */
	bool outside; /* outside the image's directory */
};

#define TIDE_BACKING_INIT               \
	{                               \
		NULL, NULL, NULL, false \
	}

/*
 * image: the path of the image that holds the name, symbolic links resolved. what: "backing file" or "data
 * file", for messages. The error names the image, the name, and the flag that would allow it. A file that
 * does not exist is not an error.
 */
int tide_backing_find(const char *image, const char *what, const char *name, unsigned allow, struct tide_backing *out,
                      struct tide_error *err);
/*
 * also: the path by which the image was opened. If that is a symbolic link, a relative name that means another
 * file beside it, where QEMU looks, is refused.
 */
int tide_backing_find_opened(const char *image, const char *also, const char *what, const char *name, unsigned allow,
                             struct tide_backing *out, struct tide_error *err);
void tide_backing_release(struct tide_backing *backing);
#define TIDE_AUTOBACKING TIDE_CLEANUP(tide_backing_release)

/* The path that a plain name means in the image at path; the caller frees it. */
char *tide_backing_join(const char *path, const char *name, struct tide_error *err);

/* Is it QEMU's driver of plain files, or that of block devices?  Neither is a format. */
bool tide_backing_is_file_driver(const char *driver);

/* Does the name begin with a protocol, as QEMU sees it: is its first colon before any slash? */
bool tide_backing_has_protocol(const char *name);

#endif
