/*
 * Images: probing, locking, backing chains, and checked requests to the drivers.
 *
 * An image is opened with its whole chain.  The files of a chain are locked as QEMU locks
 * them (lock.h): the top one for reading or writing, those below for reading.  Backing
 * images are opened by the format that the overlay names; names are relative to the
 * directory of the image that names them.  Which names are followed, and whether a format
 * that is not recorded may be probed, backing.h explains: without `allow` neither leads
 * out of the directory.  A chain that loops, or is deeper than TIDE_IMAGE_DEPTH_MAX, is refused.
 * An external data file is named, found and locked in the same way as the image that it
 * belongs to.
 *
 * An image may also be no file but what a URI leads to (nbd).  Then there is nothing that could be locked or
 * stamped here; who shares it is the server's affair.  The bitmaps of such an image have a file beside them
 * that stands for the image where locks are concerned (node.h).
 *
 * Every request is checked here, once, against the disk's size and the rights of the
 * opener; what a driver leaves out (backing images, requests that are smaller than a
 * cluster) is done here for all of them.
 *
 * Offsets and lengths are bytes of the disk.  Threads: extent, read, write, zero and the
 * write_ calls may run side by side on ranges that share no cluster.
 */
#ifndef TIDE_IMAGE_H
#define TIDE_IMAGE_H

#include "driver.h"
#include "base/stamp.h"

#define TIDE_IMAGE_DEPTH_MAX 200

struct tide_image;

struct tide_image_options {
	const char *path;
	const char *format; /* NULL: probe */
	bool write;
	bool write_later;          /* open the file for writing, lock it for reading: see tide_image_lock_write */
	bool records_bitmaps;      /* the caller records its writes in the enabled bitmaps inside the image */
	bool force_share;          /* take no locks */
	bool no_backing;           /* open this image only; what it does not hold reads as zeroes */
	unsigned allow;            /* enum tide_allow: names in the images of the chain that may be followed */
	const atomic_bool *cancel; /* set to end what waits for a server; NULL: never.  Outlives the image */
	int lock_fd; /* URIs: a file that is locked in the image's place, if has_lock_fd; stays the caller's */
	bool has_lock_fd;
	bool partial; /* where a backing image cannot be opened the chain ends, and tide_image_broken says why */
};

/* The error names the path, as QEMU's does: Could not open 'PATH': … */
int tide_image_open(const struct tide_image_options *options, struct tide_image **image, struct tide_error *err);

/*
 * An image in the empty, still nameless file fd, which will get the name path; backing
 * (NULL: none) is opened as the image below it, wherever it is: the caller has named it.  fd
 * stays the caller's.  data_fd: the file for the setting data_file, as nameless; -1 without that.
 */
int tide_image_create(int fd, int data_fd, const char *path, const struct tide_image_driver *driver,
                      const struct tide_driver_create *options, struct tide_image **image, struct tide_error *err);

void tide_image_close(struct tide_image *image); /* without flush: recent writes may be lost */
void tide_image_closep(struct tide_image **image);
#define TIDE_AUTOIMAGE TIDE_CLEANUP(tide_image_closep)

/* Is it the URI of an image, and no path? */
bool tide_image_is_uri(const char *path);

/* NULL for a name that no driver has. */
const struct tide_image_driver *tide_image_find_driver(const char *format);

/* Where name leads when the image at path refers to it; the caller frees it. */
char *tide_image_resolve(const char *path, const char *name, struct tide_error *err);
/* The same for an external data file; a name that may not be followed is refused (backing.h). */
char *tide_image_find_data_file(const char *path, const char *name, unsigned allow, struct tide_error *err);

/* Where the backing name of an image leads, for showing: relative to where path is, the path that the image was opened
 * by. */
char *tide_image_backing_path(const struct tide_image *image, const char *path, struct tide_error *err);

const char *tide_image_path(const struct tide_image *image); /* symbolic links resolved */
const char *tide_image_format(const struct tide_image *image);
int tide_image_fd(const struct tide_image *image); /* not a file: of the one that is locked in its place, or -1 */
bool tide_image_is_file(const struct tide_image *image);
uint64_t tide_image_size(const struct tide_image *image);
/* The size to restore: that of the disk the chain was made from, where its format had to round it up. */
uint64_t tide_image_exact_size(const struct tide_image *image);
const struct tide_driver_info *tide_image_info(const struct tide_image *image);
struct tide_image *tide_image_backing(const struct tide_image *image);
/* Does it name a backing image outside its directory?  Then others need TIDE_ALLOW_OUTSIDE to open it. */
bool tide_image_is_backing_outside(const struct tide_image *image);
/* The chain was opened as far as possible: why it goes no further; NULL: it is whole. */
const struct tide_error *tide_image_broken(const struct tide_image *image);
bool tide_image_is_same_file(const struct tide_image *a, const struct tide_image *b);

/* What is at off through the whole chain, at least one byte and at most len. HOLE: nobody says, it reads as zeroes. */
int tide_image_extent(struct tide_image *image, uint64_t off, uint64_t len, struct tide_extent *out,
                      struct tide_error *err);
/* What this image alone says. */
int tide_image_extent_top(struct tide_image *image, uint64_t off, uint64_t len, struct tide_extent *out,
                          struct tide_error *err);

/* Bytes past the end of the disk read as zeroes when the range starts within it. */
int tide_image_read(struct tide_image *image, void *buf, uint64_t off, uint64_t len, struct tide_error *err);
int tide_image_write(struct tide_image *image, const void *buf, uint64_t off, uint64_t len, struct tide_error *err);
int tide_image_zero(struct tide_image *image, uint64_t off, uint64_t len, bool may_unmap, struct tide_error *err);
bool tide_image_can_zero_fast(const struct tide_image *image, bool may_unmap);
/* Gives back what whole clusters of the range take; they read as zeroes (nbd: as the server likes), the rest stays. */
int tide_image_discard(struct tide_image *image, uint64_t off, uint64_t len, struct tide_error *err);
int tide_image_flush(struct tide_image *image, struct tide_error *err);

/* The driver's calls, for the copy engine: driver.h.  write_begin returns 1 for what tide_image_write must do. */
int tide_image_write_begin(struct tide_image *image, uint64_t off, uint64_t len, struct tide_extent *place,
                           struct tide_error *err);
int tide_image_write_commit(struct tide_image *image, const struct tide_extent *place, struct tide_error *err);
void tide_image_write_abort(struct tide_image *image, const struct tide_extent *place);

bool tide_image_can_compress(const struct tide_image *image);
int tide_image_packer_new(struct tide_image *image, void **packer, struct tide_error *err);
void tide_image_packer_free(struct tide_image *image, void *packer); /* NULL: nothing */
int tide_image_pack(struct tide_image *image, void *packer, const void *cluster, void *out, size_t *len,
                    struct tide_error *err);
int tide_image_write_packed(struct tide_image *image, const struct tide_packed *clusters, size_t n,
                            struct tide_error *err);

/*
 * With write_later, which one program at a time can have (lock.h), the image is read, beside
 * other readers, until it is to be changed: then
 * lock_write makes its locks those of a writer, waiting for up to ten seconds while another
 * program holds the image, and unlock_write makes them a reader's again.  In between nobody
 * can have changed it.  Bitmaps inside that nobody would record into are an error of lock_write, a
 * flag in the header that forbids to write is one of the first change, neither is one of open.
 */
int tide_image_lock_write(struct tide_image *image, struct tide_error *err);
void tide_image_unlock_write(struct tide_image *image);
/* It will not be changed after all. */
void tide_image_renounce_write(struct tide_image *image);

/* The driver's check of this image alone; nothing to find for formats that have none. */
int tide_image_check(const struct tide_image *image, const struct tide_check *check, struct tide_error *err);

/* Persistent bitmaps inside the image. */
int tide_image_read_bitmap(struct tide_image *image, size_t index, struct tide_bitmap **out, struct tide_error *err);
/* One that was left marked as in use is good all the same: from now on it can be read. */
int tide_image_reclaim_bitmap(struct tide_image *image, size_t index, struct tide_error *err);
/* Does the format have them? */
bool tide_image_can_store_bitmaps(const struct tide_image *image);
/* Changing them, in an image that is open for writing: see driver.h.  After the commit tide_image_info has them.
 */
int tide_image_stage_bitmaps(struct tide_image *image, const struct tide_driver_bitmap_put *put, size_t n,
                             struct tide_driver_switch *sw, struct tide_error *err);
int tide_image_commit_bitmaps(struct tide_image *image, struct tide_error *err);
void tide_image_abort_bitmaps(struct tide_image *image);

/* After a flush: the files' times are durable, too. */
int tide_image_sync_times(struct tide_image *image, struct tide_error *err);

/* The stamp of the top image when it was locked; after a flush of our own writes, that of now. */
const struct tide_stamp *tide_image_stamp(const struct tide_image *image);
/* That of now, when all that can have changed is the image file, by us: its data file counts as it was. */
int tide_image_stamp_now(const struct tide_image *image, struct tide_stamp *stamp, struct tide_error *err);

/* Has a file of the chain changed since it was opened?  Then the error says which. */
int tide_image_check_unchanged(const struct tide_image *image, struct tide_error *err);

#endif
