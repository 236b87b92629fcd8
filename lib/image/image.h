/*
 * Images: probing, locking, backing chains, and checked requests to the drivers.
 *
 * An image is opened with its whole chain. The files of a chain are locked as QEMU locks them (lock.h): the
 * top one for reading or writing, the others for reading. A backing image is opened with the format that
 * its overlay names; a relative name is relative to the directory of the image that holds it. backing.h
 * explains which names are followed and when a format that is not recorded may be probed; without `allow`,
 * no name leads out of the directory. A chain that loops, or is deeper than TIDE_IMAGE_DEPTH_MAX, is
 * refused. An external data file is named, found and locked like the image that it belongs to.
 *
 * An image may also be named by a URI instead of a path. Then nothing here can be locked or stamped;
 * the server controls who shares it. The bitmaps of such an image have a file of their own, which is locked
 * in the image's place (node.h).
 *
 * Every request is checked here, once, against the disk's size and the rights of the opener. Backing
 * images and requests smaller than a cluster are handled here for all drivers.
 *
 * Offsets and lengths are bytes of the disk. Threads: extent, read, write, zero and the write_ calls may
 * run at the same time on ranges that share no write unit.
 */
#ifndef TIDE_IMAGE_H
#define TIDE_IMAGE_H

#include "base/stamp.h"
#include "driver.h"
#include "image_formats.h"

#define TIDE_IMAGE_DEPTH_MAX 200

struct tide_image;

struct tide_image_options {
	const char *path;
	const char *format; /* NULL: probe */
	bool guessed;       /* the format is what an earlier probe found, and counts as probed */
	bool write;
	bool write_later;          /* open the file for writing, lock it for reading: see tide_image_lock_write */
	bool records_bitmaps;      /* the caller records its writes in the image's enabled bitmaps */
	bool force_share;          /* take no locks */
	bool no_backing;           /* open this image only; data of backing images reads as zeroes */
	unsigned allow;            /* enum tide_allow: which names in images may be followed */
	const atomic_bool *cancel; /* set to end waits for a server; NULL: never. Outlives the image */
	int lock_fd;               /* URIs: a file locked in the image's place, if has_lock_fd; stays the caller's */
	bool has_lock_fd;
	bool partial; /* if a backing image cannot be opened, end the chain there; tide_image_broken has the reason */
	/*
	 * For tide_image_salvage_begin: the same if it is missing or damaged, and read what damaged images have left;
	 * an external data file may be missing, too. Only for reading.
	 */
	bool salvage;
};

/* The error names the path, as QEMU's does: Could not open 'PATH': … */
int tide_image_open(const struct tide_image_options *options, struct tide_image **image, struct tide_error *err);

/*
 * Creates an image in the empty file fd, which has no name yet and will get the name path. backing (NULL:
 * none) is opened as the image below it, wherever it is, because the caller has named it. fd stays the
 * caller's. data_fd: the file, without a name too, for the setting data_file; -1 without that setting.
 */
int tide_image_create(int fd, int data_fd, const char *path, const struct tide_image_driver *driver,
                      const struct tide_driver_create *options, struct tide_image **image, struct tide_error *err);

void tide_image_close(struct tide_image *image); /* without flush: recent writes may be lost */
void tide_image_closep(struct tide_image **image);
#define TIDE_AUTOIMAGE TIDE_CLEANUP(tide_image_closep)

/* The path that name means in the image at path; the caller frees it. */
char *tide_image_resolve(const char *path, const char *name, struct tide_error *err);
/* The same for an external data file; refuses a name that may not be followed (backing.h). */
char *tide_image_find_data_file(const char *path, const char *name, unsigned allow, struct tide_error *err);

/* The path that an image's backing name means, for display: relative to path, by which the image was opened. */
char *tide_image_backing_path(const struct tide_image *image, const char *path, struct tide_error *err);

const char *tide_image_path(const struct tide_image *image); /* symbolic links resolved */
const char *tide_image_format_name(const struct tide_image *image);
bool tide_image_is_raw(const struct tide_image *image);
bool tide_image_is_probed(const struct tide_image *image);
/*
 * Refuses an image whose format was only derived from bytes that a guest can have written: a raw image, which a
 * guest can turn into any other, or a block device. name is for the message, option for its hint: "-f".
 */
int tide_image_check_format(const struct tide_image *image, const char *name, const char *option,
                            struct tide_error *err);
/* The same, but a raw image passes, as it is read as the disk that it was taken for. */
int tide_image_check_not_raw(const struct tide_image *image, const char *name, const char *option,
                             struct tide_error *err);
int tide_image_fd(const struct tide_image *image); /* URIs: of the file locked in its place, or -1 */
bool tide_image_is_file(const struct tide_image *image);
uint64_t tide_image_size(const struct tide_image *image);
/*
 * The size to restore or to back up: that of the disk that the image was made for, if the format rounded it up. Only
 * the image itself counts, because the disk may have changed its size since the images below were made; and only if
 * nothing but zeroes follows, because a guest sees the rounded size and may write up to its end.
 */
uint64_t tide_image_exact_size(struct tide_image *image);
/* Has the file of the image exactly the disk's bytes, so that set_exact_size can change its length? */
bool tide_image_can_resize(const struct tide_image *image);
/*
 * Makes size, which the format rounds to the image's size, the exact size of an image that is open for writing; a
 * format or a device without one keeps its own.
 */
int tide_image_set_exact_size(struct tide_image *image, uint64_t size, struct tide_error *err);
/*
 * Stores the fingerprint of the backing image in an image that is open for writing. 1: the image has no place for it.
 */
int tide_image_set_fingerprint(struct tide_image *image, const struct tide_fingerprint *fp, struct tide_error *err);
/*
 * Stores the birth record in an image that is open for writing and flushed. 1: the image has no place for it. Later
 * writes do not change the record, but it is not `intact` any more.
 */
int tide_image_set_birth(struct tide_image *image, const struct tide_birth *birth, struct tide_error *err);
/*
 * Checksums of the stored data (sums.h). begin: from now on they are collected; 1: the image cannot have any. all: of
 * data, too, that the kernel copies, and if the image has no room for them that is an error; cancel: ends storing them.
 * store: nothing if they are not collected; the image is flushed.
 */
int tide_image_sums_begin(struct tide_image *image, bool all, const atomic_bool *cancel, struct tide_error *err);
int tide_image_sums_store(struct tide_image *image, struct tide_error *err);
void tide_image_sums_drop(struct tide_image *image);
/* A raw file has no place for them: store does nothing, and the caller stores what finish returns (store/sums_file.h).
 */
bool tide_image_sums_are_beside(const struct tide_image *image);
/* *sums NULL: they are not collected, or the kernel copied some of the data and nobody asked for all. It stays the
 * image's. */
int tide_image_sums_finish(struct tide_image *image, struct tide_sums **sums, struct tide_error *err);
/* For callers that write to a place themselves: they wrote, let the kernel copy, or nothing they said counts. */
void tide_image_sums_note(struct tide_image *image, int fd, const void *buf, uint64_t off, uint64_t len);
void tide_image_sums_skip(struct tide_image *image, const struct tide_extent *place);
void tide_image_sums_forget(struct tide_image *image, const struct tide_extent *place);
void tide_image_sums_spoil(struct tide_image *image);
/* The driver's calls (driver.h). */
int tide_image_sums_load(struct tide_image *image, bool old, struct tide_sums **sums, struct tide_error *err);
int tide_image_sums_range(struct tide_image *image, int *fd, uint64_t *start, uint64_t *end, struct tide_error *err);
int tide_image_sums_disk(struct tide_image *image, const struct tide_bitmap *bad,
                         int (*found)(void *data, uint64_t off, uint64_t len, struct tide_error *err), void *data,
                         struct tide_error *err);
/* All bytes of the file have their checksums: the backup is what its record says, if both are of the same time. */
void tide_image_sums_confirm(struct tide_image *image);
/*
 * From now on, whatever is read from this image, not from those below it, must have its checksum if it has one; or
 * reading fails with TIDE_E_CORRUPT. An error now is about the table, unless it is TIDE_E_DAMAGED.
 */
int tide_image_prove(struct tide_image *image, struct tide_error *err);
/* The same by a table that the caller has found, and gives away. */
void tide_image_prove_by(struct tide_image *image, struct tide_sums *sums);
/* The same for a caller that has read bytes of the chain at `at` of a file by itself; off: of the disk. */
int tide_image_prove_bytes(struct tide_image *image, int fd, const void *buf, uint64_t at, uint64_t off, uint64_t len,
                           struct tide_error *err);
/* Must bytes of this file have their checksums?  Else a caller need not read them to prove them. */
bool tide_image_proves(const struct tide_image *image, int fd);
const struct tide_driver_info *tide_image_info(const struct tide_image *image);
/* The least that is written without its neighbours: a cluster, or a subcluster; 0: any number of bytes. */
uint64_t tide_image_write_unit(const struct tide_image *image);
struct tide_image *tide_image_backing(const struct tide_image *image);
/* Does it name a backing image outside its directory? If so, others need TIDE_ALLOW_OUTSIDE to open it. */
bool tide_image_is_backing_outside(const struct tide_image *image);
/* The reason why the chain could be opened only partly (options.partial, salvage); NULL: it is complete. */
const struct tide_error *tide_image_broken(const struct tide_image *image);
/* The reason why the external data file could not be opened (options.salvage), or NULL. */
const struct tide_error *tide_image_data_broken(const struct tide_image *image);
bool tide_image_is_same_file(const struct tide_image *a, const struct tide_image *b);

/*
 * The extent at off through the whole chain, at least one byte and at most len. HOLE: no image defines it; it reads
 * as zeroes.
 */
int tide_image_extent(struct tide_image *image, uint64_t off, uint64_t len, struct tide_extent *out,
                      struct tide_error *err);
/*
 * From now on a range of the chain that cannot be read because of damage, or because the image that may hold it is
 * missing, reads as zeroes, and is recorded. The image is open for reading, with options.salvage.
 */
int tide_image_salvage_begin(struct tide_image *image, struct tide_error *err);
/* The recorded ranges, in sectors of the disk, and the error of the first one. */
const struct tide_bitmap *tide_image_salvage_lost(const struct tide_image *image);
const struct tide_error *tide_image_salvage_first(const struct tide_image *image);
/* The extent at off in this image alone. */
int tide_image_extent_top(struct tide_image *image, uint64_t off, uint64_t len, struct tide_extent *out,
                          struct tide_error *err);

/* Bytes past the end of the disk read as zeroes when the range starts within it. */
int tide_image_read(struct tide_image *image, void *buf, uint64_t off, uint64_t len, struct tide_error *err);
/* Does a range of less than a sector read as zeroes? False also if it cannot be read. */
bool tide_image_is_zero(struct tide_image *image, uint64_t off, uint64_t len);
int tide_image_write(struct tide_image *image, const void *buf, uint64_t off, uint64_t len, struct tide_error *err);
int tide_image_zero(struct tide_image *image, uint64_t off, uint64_t len, bool may_unmap, struct tide_error *err);
bool tide_image_can_zero_fast(struct tide_image *image, bool may_unmap);
/*
 * Frees the space of the whole clusters of the range, which then read as zeroes (nbd: as the server likes); the
 * rest stays.
 */
int tide_image_discard(struct tide_image *image, uint64_t off, uint64_t len, struct tide_error *err);
int tide_image_flush(struct tide_image *image, struct tide_error *err);

/*
 * The driver's calls, for the copy engine (driver.h). write_begin returns 1 when tide_image_write must be used
 * instead.
 */
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
 * With write_later, which one program at a time can have (lock.h), the image is locked for reading, beside
 * other readers, until it is to be changed. lock_write then turns its locks into a writer's, waiting for up
 * to ten seconds while another program holds the image, and unlock_write turns them back. In between no
 * other program can have changed the image. Enabled bitmaps inside the image that the caller does not
 * record into are an error of lock_write, and a header flag that forbids writing is an error of the first
 * change; open reports neither.
 */
int tide_image_lock_write(struct tide_image *image, struct tide_error *err);
void tide_image_unlock_write(struct tide_image *image);
/*
 * Called when a file of the chain, which is only read, is also open as `owner`, with write_later, by the same program:
 * for a change of the bitmaps inside a backing image while its overlay is read. The locks of the chain on this file
 * would refuse the change, so they are dropped; those of the owner protect the file from others. A change through the
 * owner does not count as one by another program. The owner is closed only when the chain is no longer read.
 */
void tide_image_share_owner(struct tide_image *chain, struct tide_image *owner);
/* Does the chain read this file, beside being open for it? */
bool tide_image_reads_file(const struct tide_image *chain, uint64_t dev, uint64_t ino);
/* Gives up write_later: this opener will not change the image. */
void tide_image_renounce_write(struct tide_image *image);

/* Runs the driver's check on this image alone; formats without a check have no findings. */
int tide_image_check(const struct tide_image *image, const struct tide_check *check, struct tide_error *err);

/* The internal snapshots, then a NULL; tide_driver_snapshots_free releases the list. */
int tide_image_snapshots(const struct tide_image *image, struct tide_snapshot ***list, struct tide_error *err);

/* Persistent bitmaps inside the image. */
int tide_image_read_bitmap(struct tide_image *image, size_t index, struct tide_bitmap **out, struct tide_error *err);
/* Makes a bitmap that was left marked as in use readable; the caller knows that its contents are right. */
int tide_image_reclaim_bitmap(struct tide_image *image, size_t index, struct tide_error *err);
/* Does the format have persistent bitmaps? */
bool tide_image_can_store_bitmaps(const struct tide_image *image);
/*
 * Change the bitmaps of an image that is open for writing (driver.h). After the commit tide_image_info has the new
 * list.
 */
int tide_image_set_bitmaps_token(struct tide_image *image, const struct tide_id *token, struct tide_error *err);
int tide_image_stage_bitmaps(struct tide_image *image, const struct tide_driver_bitmap_put *put, size_t n,
                             struct tide_driver_switch *sw, struct tide_error *err);
int tide_image_commit_bitmaps(struct tide_image *image, struct tide_error *err);
void tide_image_abort_bitmaps(struct tide_image *image);

/* After a flush: makes the files' times durable, too. */
int tide_image_sync_times(struct tide_image *image, struct tide_error *err);

/* The block devices of the top image and its data file, without their counter, which is in the stamp. */
const struct tide_device *tide_image_device(const struct tide_image *image);
/* The stamp of the top image when it was locked; after a flush of our own writes, the stamp after that flush. */
const struct tide_stamp *tide_image_stamp(const struct tide_image *image);
/*
 * From now on the image notices changes by other programs; called while its stamp is the one after our last change.
 * change_begin and change_end enclose each change that is not a call of this header; a change ends as flushed if
 * nothing of it is left to be written.  watch_closely: each change of a block device is written out at its end, so that
 * changes of others are noticed between any two of ours, and not only after a flush.  others_wrote: has another program
 * changed the image?
 */
void tide_image_watch(struct tide_image *image);
void tide_image_watch_closely(struct tide_image *image);
void tide_image_change_begin(struct tide_image *image, bool is_flush);
void tide_image_change_end(struct tide_image *image, bool is_flushed);
bool tide_image_others_wrote(const struct tide_image *image);

/*
 * Makes sure that every later change of the image's files, or of those of its whole chain, differs from the stamp that
 * was taken (stamp.h).
 */
int tide_image_settle(const struct tide_image *image, struct tide_error *err);
int tide_image_settle_chain(const struct tide_image *image, struct tide_error *err);

/* The present stamp, when only we can have changed the image file; the data file counts with its earlier stamp. */
int tide_image_stamp_now(const struct tide_image *image, struct tide_stamp *stamp, struct tide_error *err);

/* Has a file of the chain changed since it was opened? If so, the error names it. */
int tide_image_check_unchanged(const struct tide_image *image, struct tide_error *err);

#endif
