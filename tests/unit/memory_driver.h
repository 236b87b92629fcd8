/*
 * Two image formats for unit tests: a disk in memory that does what a script says.
 *
 *     struct memory_script script = {
 *             .size = 1 << 20,
 *             .cluster_size = 65536,
 *             .fault = { { .op = MEMORY_READ, .off = 300000, .sys = EIO } },
 *     };
 *     struct memory_disk *disk = memory_disk_new(unit_path("disk"), &script, &err);
 *
 *     memory_disk_fill(disk, 0, 65536, 1);                       // data
 *     memory_disk_set_kind(disk, 65536, 65536, TIDE_EXTENT_ZERO); // the rest is a hole
 *     memory_disk_open(disk, false, &image, &err);               // or by its path, as any image
 *     …
 *     CHECK_EQ_U64(memory_disk_count(disk, MEMORY_READ), 1);
 *     memory_disk_free(disk);                                    // after the image is closed
 *
 * The file at the path holds only a mark, by which the image is probed and its disk is found; it is what the image
 * layer locks and stamps.  Every change of the disk gives it another time, so that a change shows in the stamp.
 *
 *   "memory"         data is mapped, unless the script says `unmapped`; writes are placed by the caller.
 *   "memory-remote"  like an image on a server: nothing is mapped, and the driver itself writes.
 *
 * Both create images, for targets: the new disk takes what memory_disk_script_created was given last, and
 * memory_disk_find finds it by its path.  Both may have backing images, if they have clusters.
 *
 * The contents are kept in blocks (a cluster, or 512 bytes where there are none), each of which is data, zero or hole.
 * Bytes of blocks that are not data are zero in `bytes`.
 *
 * Faults.  A request that covers `off` fails with `sys`, the first `times` times (0: always).  A place whose reading
 * is to fail is not mapped: the read then comes to the driver.  A write that is placed by the caller is led to a
 * file that is always full: it fails with ENOSPC, whatever `sys` is.
 *
 * Makefile: every unit test is linked with an image layer that knows these two formats besides the usual ones
 * (memory_formats.def).
 */
#ifndef TIDE_MEMORY_DRIVER_H
#define TIDE_MEMORY_DRIVER_H

#include "image/driver.h"
#include "image/image.h"

#define MEMORY_FAULTS_MAX 4

enum memory_op {
	MEMORY_EXTENT,
	MEMORY_READ,   /* of data that is not mapped */
	MEMORY_BEGIN,  /* a place is asked for */
	MEMORY_WRITE,  /* remote: by the driver; else into a place: met, and counted, when the place is given */
	MEMORY_COMMIT, /* of a place */
	MEMORY_ABORT,  /* of a place; cannot fail */
	MEMORY_ZERO,
	MEMORY_FLUSH, /* at offset 0 */
	MEMORY_OPS,
};

struct memory_fault {
	enum memory_op op;
	uint64_t off;
	int sys;        /* 0: no fault */
	unsigned times; /* 0: always */
};

struct memory_script {
	uint64_t size;         /* bytes; of a created disk what its creator asks for */
	uint64_t cluster_size; /* bytes, a power of two; 0: none */
	bool remote;           /* "memory-remote"; of a created disk what its creator asks for */
	bool unmapped;
	uint64_t extent_max, place_max; /* bytes that one answer covers at most; 0: no limit */
	const char *backing, *backing_format;
	unsigned delay_us; /* before each request */
	struct memory_fault fault[MEMORY_FAULTS_MAX];
	/* Called before each request, by any thread, with no lock held; may stop what runs.  NULL: none. */
	void (*hook)(void *data, enum memory_op op, uint64_t off, uint64_t len);
	void *hook_data;
};

struct memory_disk;

/* The strings of the script must outlive the disk.  The file at path is created, or replaced. */
struct memory_disk *memory_disk_new(const char *path, const struct memory_script *script, struct tide_error *err);
void memory_disk_free(struct memory_disk *disk);

/* The script of disks that a driver creates from now on; NULL: an empty one. */
void memory_disk_script_created(const struct memory_script *script);
/* The disk of the image at path; NULL: the file is not one of these images. */
struct memory_disk *memory_disk_find(const char *path);

int memory_disk_open(struct memory_disk *disk, bool write, struct tide_image **image, struct tide_error *err);

/* The bytes of the disk; a write to them is neither counted nor recorded. */
uint8_t *memory_disk_bytes(struct memory_disk *disk);
uint64_t memory_disk_size(const struct memory_disk *disk);

/* Whole blocks become data that depends on the offset and the seed, and has no zero byte. */
void memory_disk_fill(struct memory_disk *disk, uint64_t off, uint64_t len, unsigned seed);
/* The same for any kind; the bytes become zero. */
void memory_disk_set_kind(struct memory_disk *disk, uint64_t off, uint64_t len, enum tide_extent_kind kind);
enum tide_extent_kind memory_disk_kind(struct memory_disk *disk, uint64_t off);

/* Replaces the first fault of the script; sys 0: none. */
void memory_disk_fail(struct memory_disk *disk, const struct memory_fault *fault);
/* How many requests there were, failed ones included, and of how many bytes. */
unsigned memory_disk_count(struct memory_disk *disk, enum memory_op op);
uint64_t memory_disk_count_bytes(struct memory_disk *disk, enum memory_op op);

extern const struct tide_image_driver tide_memory_driver;
extern const struct tide_image_driver tide_memory_remote_driver;

#endif
