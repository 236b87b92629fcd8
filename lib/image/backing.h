/*
 * The names of other files that an image holds, of its backing image and of its external data
 * file, and whether they may be followed.
 *
 * An image may come from a guest or from a stranger, and a name in it is followed with the
 * rights of whoever runs the command: left alone, a disk could have any file of the host copied
 * into its own backup.  So a name is followed only when it is a plain path to a file in the
 * directory of the image that holds it or in one below that, judged after all symbolic links are
 * resolved.  What else a caller vouches for, it says with flags of enum tide_allow:
 *
 *   outside   plain paths that lead elsewhere
 *   protocol  names that are not plain paths: "file:…", and the "json:…" that libvirt and QEMU
 *             write for a plain file.  What is in them is then judged as any path.  Also the URI
 *             of an NBD export, which is then connected to.  Other drivers and options are refused
 *             by name: they would change what is read.
 *   probe     images without a recorded format; not judged here
 *
 * Both kinds of names go through here, and no other way.  What a person names (an image, a
 * target, --backing) is not judged.
 */
#ifndef TIDE_BACKING_H
#define TIDE_BACKING_H

#include "base/compiler.h"
#include "tidemark.h"

struct tide_backing {
	char *path; /* where the name leads, as it is to be shown: relative to where the image's path is */
	char *real; /* the same without symbolic links: what is to be opened; NULL when there is no such file, or a URI
	             */
	char *format; /* that the name itself gives, or NULL */
	bool outside; /* it leads out of the image's directory */
};

#define TIDE_BACKING_INIT               \
	{                               \
		NULL, NULL, NULL, false \
	}

/*
 * image: the path of the image that holds the name, symbolic links resolved.  what: "backing
 * file" or "data file", for messages.  The error names the image, the name, and the flag that
 * would allow it.  That the file does not exist is no error.
 */
int tide_backing_find(const char *image, const char *what, const char *name, unsigned allow, struct tide_backing *out,
                      struct tide_error *err);
void tide_backing_release(struct tide_backing *backing);
#define TIDE_AUTOBACKING TIDE_CLEANUP(tide_backing_release)

/* Where a plain path leads when the image at path refers to it; the caller frees it. */
char *tide_backing_join(const char *path, const char *name, struct tide_error *err);

/* The URI of an NBD export, or what begins like one, as it would for QEMU: no path. */
bool tide_backing_is_uri(const char *name);

/* A name with a protocol in front, as QEMU sees it: a colon before any slash. */
bool tide_backing_has_protocol(const char *name);

#endif
