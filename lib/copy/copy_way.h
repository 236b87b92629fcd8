/*
 * The ways in which data gets from one image to another.
 *
 *   reflink   the target's file shares the blocks of the source's file (FICLONERANGE): btrfs,
 *             XFS, bcachefs.  Nothing is read and nothing is written but metadata.
 *   kernel    copy_file_range: the bytes stay in the kernel, or on the server of a network
 *             file system.
 *   rw        read and written by workers, through the page cache.
 *   direct    the same, but written around it (copy_write.c), and read around it (copy_read.c): by default only what is
 * not in memory. uring     direct by another name: with transfers as large as these, four threads keep a disk as busy
 * as a deep queue does (tests/bench/copier.c has both), and are simpler.
 *
 * Chosen per stretch of data: by default what can be shared is shared, what a network file
 * system can copy by itself is copied by it, and the rest goes by direct if it is much, else by rw.  A way that is not
 * possible, for a reason that has nothing to do with the data, makes room for the next one; so
 * does one that fails with an error of input or output, since only rw can tell a source that
 * cannot be read from a target that cannot be written.
 */
#ifndef TIDE_COPY_WAY_H
#define TIDE_COPY_WAY_H

#include "tidemark.h"

enum tide_copy_way {
	TIDE_COPY_WAY_AUTO = 0,
	TIDE_COPY_WAY_REFLINK,
	TIDE_COPY_WAY_KERNEL,
	TIDE_COPY_WAY_RW,
	TIDE_COPY_WAY_DIRECT,
};

/* What the environment variable TIDE_COPY asks for. */
int tide_copy_way_wanted(enum tide_copy_way *way, struct tide_error *err);

/* Does the file system of fd copy by itself what copy_file_range is asked to? */
bool tide_copy_way_is_remote(int fd);

/* The blocks in which the file system of fd shares; a power of two. */
uint64_t tide_copy_way_block(int fd);

enum tide_copy_answer {
	TIDE_COPY_DONE,
	TIDE_COPY_NOT_HERE, /* not this range, or not now */
	TIDE_COPY_NEVER,    /* not between these two files */
};

/* [from, from + len) of one file to `to` of the other. */
enum tide_copy_answer tide_copy_way_reflink(int source, uint64_t from, uint64_t len, int target, uint64_t to);
enum tide_copy_answer tide_copy_way_kernel(int source, uint64_t from, uint64_t len, int target, uint64_t to);

#endif
