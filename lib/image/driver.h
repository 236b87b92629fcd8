/*
 * The interface that an image format implements: formats/FORMAT.c defines one `const struct
 * tide_image_driver`, and formats.def lists it in the order of probing, raw last.
 *
 * The dispatcher (the files image*.c) is the only caller. It checks ranges against the disk's size and rights against
 * the open flags, walks backing chains, splits requests, and emulates what a driver leaves out; a driver
 * fills in only what is special about its format:
 *
 *   open        parses and checks everything that a later call relies on. The file is not
 *               trusted: each size, offset, count and name is checked against the file's
 *               own limits before it is used, each check with a message of its own that
 *               names the expected and the found value.
 *   set_data_file  hands over the file that info->data_file names, right after open: the image
 *               layer finds, opens and locks it. Before this call no byte of the disk can be read.
 *   open_uri    replaces open, probe and create, for images that a URI names: nbd. *state is
 *               closed after a failure, too. cancel (NULL: never): once it is set, every wait
 *               for a server ends within 100 ms with TIDE_E_CANCELLED.
 *   extent      describes the disk at `off`: at least one byte, at most `len`.
 *   read        reads DATA that is not mapped (compressed clusters) only.
 *   write_begin reserves space for [off, off + len): *out is where the caller must put the bytes
 *               of [out->off, out->off + out->len), a non-empty prefix of the range. Returns 1,
 *               and reserves nothing, when the bytes cannot be written without their neighbours
 *               (part of a cluster that this image does not hold alone): the dispatcher then
 *               reads the whole cluster, or with info->subcluster_size the whole subcluster, through the
 *               chain and calls again with an aligned range.
 *               For a range that starts on a cluster and covers whole clusters, the last one up
 *               to the end of the disk, write_begin never returns 1.
 *   write       replaces the three write_ calls, for images in which others cannot place bytes:
 *               any range. Done when it returns, durable after a flush.
 *   write_commit  makes the bytes, which are in place, the disk's content. Before this call,
 *               and after write_abort, the disk reads as before (except for bytes that are
 *               overwritten in place). After a failure the reservation is gone; the caller has
 *               nothing to abort.
 *   zero        makes the range read as zeroes, even where a backing image has data. Same
 *               alignment rule as write_begin: 1 asks for whole clusters. may_unmap: the space
 *               may be freed; otherwise the range afterwards takes the space that data would.
 *   set_exact_size  stores the size of the disk that the image is made for, which the format
 *               rounds to its size, and updates *info; each prefix of its writes is a valid image.
 *               Raw files get this length. NULL: the format has no such thing.
 *   set_fingerprint  stores the fingerprint of the backing image that the image has. 1: it has no room. NULL: the
 *               format has no place for it.
 *   set_birth   stores the birth record in the image itself, durably, and marks the disk as not changed since. 1: it
 *               has no room. NULL: the format has no place for it.
 *   sums_range  the file, and the range of it, of which the image can have checksums (sums.h), when nothing is left to
 *               be flushed. 1: it cannot have any. NULL: no image of the format can.
 *   sums_store  stores the complete table of that range, and the fact that it describes the image; each later change
 *               of the disk makes the table void. 1: the image has no room for it.
 *   sums_load   *out NULL: the image has no table, or a void one that is not wanted (old) or not there any more.
 *               TIDE_E_DAMAGED: the error is about the image, or its header was changed; others: about the table.
 *   sums_use    from now on, checksums of what is written are collected (or NULL), and what is read must have its
 *               checksum (or NULL): tables, and the data that read returns.
 *   sums_disk   finds the ranges of the disk for which the file has bytes where `bad`, which begins where sums_range
 *               does, has bits.
 *   discard     the range is not needed any more and may read as anything; NULL: zero is used.
 *   pack        compresses one whole cluster, the disk's last one filled up with zeroes, and
 *               changes nothing but its packer: any number of threads, a packer each. The
 *               result depends on the cluster alone. Returns 1 when compression gains nothing;
 *               such a cluster is written plain.
 *   write_packed  makes compressed clusters the disk's content, in ascending order, each of them
 *               at once or not at all. Where they are placed depends only on what was written
 *               before and in which order: a caller that calls this, write_begin and zero in
 *               the order of the disk, one at a time, gets the same file each time.
 *   flush       makes all commits so far durable, in an order in which every prefix of the
 *               writes is a valid image. With TIDE_OPEN_NEW (a file that nobody else can see
 *               yet) the order does not matter, and flush is called once, before the file gets
 *               its name.
 *   bitmaps_token   the next stage puts this token beside the bitmaps, with the same switch; without
 *               bitmaps it gets none. Without this call the image keeps its token, whoever changes the bitmaps. If it
 * has no room, it has no token afterwards, and the switch says so. bitmaps_stage   writes a new set of bitmaps,
 * durably, into clusters that nothing refers to. Only the switch then remains: some bytes within one sector of the
 * file. bitmaps_commit  makes the switch, durably, and frees what only the old set used. -1: it is unknown which set
 * the file holds, but it is one of the two, complete; nothing is freed. bitmaps_abort   frees what was staged; the old
 * set stays. snapshots   lists the internal snapshots, as many as info->snapshots, and a NULL. close       releases
 * everything. It writes nothing and never fails; without flush the commits since the last flush may be lost, and the
 * image stays valid.
 *
 * Threads: extent, read, write, discard, write_begin, write_commit, write_abort, zero and write_packed may
 * be called from several threads at once, on ranges that do not overlap; pack always. No other call may run
 * at the same time as any of these on the same image.
 */
#ifndef TIDE_DRIVER_H
#define TIDE_DRIVER_H

#include <stdatomic.h>

#include "base/compiler.h"
#include "base/id.h"
#include "base/json.h"
#include "base/stamp.h"
#include "bitmap/bitmap.h"
#include "extent.h"
#include "sums.h"
#include "tidemark.h"

enum {
	TIDE_OPEN_WRITE = 1 << 0,
	TIDE_OPEN_NEW = 1 << 1,   /* just created by this driver, not visible to other programs yet; implies WRITE */
	TIDE_OPEN_LATER = 1 << 2, /* with WRITE: a reason not to write is an error of the first change, not of open */
	TIDE_OPEN_UNTRUSTED = 1 << 3, /* open_uri: an image, not a person, gave the URI */
	TIDE_OPEN_SALVAGE = 1 << 4,   /* for reading: read what a damaged image has left; see image.h */
};

/* A persistent bitmap inside the image. */
struct tide_driver_bitmap {
	char *name; /* any bytes but NUL, then a NUL */
	uint64_t granularity;
	bool in_use;  /* left open by a program that died: contents unusable */
	bool enabled; /* QEMU's flag `auto` */
};

/* An entry of the image's new bitmap directory, in directory order. */
struct tide_driver_bitmap_put {
	const char *name;
	uint64_t granularity;
	bool in_use, enabled;
	bool keep;                          /* contents (table and clusters) stay those of the stored bitmap `index` */
	size_t index;                       /* of tide_driver_info.bitmaps */
	const struct tide_bitmap *contents; /* !keep */
};

/*
 * The switch that makes a staged set of bitmaps the image's: after[] replaces before[], len bytes at
 * offset, all in one 512-byte sector, so that it happens whole or not at all. A program that performs it
 * later, after a crash, first verifies that before[] is still in place and that the guarded bytes, the old
 * directory, have this CRC-32C; if not, another program has changed the image. len 0: no switch is needed.
 */
struct tide_driver_switch {
	uint64_t offset;
	size_t len;
	uint8_t before[512], after[512];
	bool lacks_token;                 /* there is no room for the one that was to be set */
	uint64_t guard_offset, guard_len; /* guard_len 0: no old directory */
	uint32_t guard_crc;
};

/* The fingerprint of a backing image (fingerprint.h). */
struct tide_fingerprint {
	char disk[65]; /* 64 hexadecimal digits */
	bool has_file; /* the members below are known; false for exports and devices */
	uint64_t dev, ino;
	struct tide_stamp stamp; /* includes its data file's */
};

/* Checksums of the stored data (sums.h). */
enum tide_sums_state {
	TIDE_SUMS_ABSENT = 0,
	TIDE_SUMS_VOID,     /* a program has changed the image since they were computed */
	TIDE_SUMS_DOUBTFUL, /* the file is a copy, or a program may have changed it without a note in it */
	TIDE_SUMS_VALID,
};

/* What to do about data that does not have its checksum (image_sums.c). */
const char *tide_image_sums_hint(enum tide_sums_state state);

struct tide_birth;

struct tide_driver_info {
	uint64_t size;                        /* of the disk, bytes */
	uint64_t exact_size;                  /* of the disk it was made for, where the format rounds up; 0: unknown */
	uint64_t cluster_size;                /* 0: none */
	uint64_t subcluster_size;             /* parts of a cluster that can be written alone; 0: none */
	char *backing;                        /* as written in the image, or NULL */
	char *backing_format;                 /* or NULL */
	char *data_file;                      /* external data file with the disk's bytes, as written, or NULL */
	struct tide_fingerprint *fingerprint; /* of the backing image when this one was made, or NULL */
	enum tide_sums_state sums;
	bool sums_of_birth;       /* bytes that have their checksums are as the birth record describes them */
	struct tide_birth *birth; /* the record in the image itself, or NULL */
	bool dirty, corrupt;
	bool may_change;              /* other programs can change the disk although it is open */
	bool bitmaps_lost;            /* it had bitmaps, but a program without support for them has changed it */
	struct tide_id bitmaps_token; /* zero: none */
	uint32_t snapshots;
	size_t n_features;
	struct tide_feature *features; /* for image-info; see tidemark.h */
	size_t n_bitmaps;
	struct tide_driver_bitmap *bitmaps; /* in directory order */
};

struct tide_driver_create {
	uint64_t size;
	uint64_t cluster_size;                      /* 0: the format's default */
	const char *backing;                        /* stored unchanged, or NULL */
	const char *backing_format;                 /* given when backing is */
	const struct tide_fingerprint *fingerprint; /* of the backing image, kept if there is room; or NULL */
	const char *settings; /* "key=value,key=value" or NULL; unknown keys are refused by name */
	unsigned allow;       /* for the dispatcher: enum tide_allow, for names in the chain */
};

/* A compressed cluster of the disk. */
struct tide_packed {
	uint64_t off;
	const uint8_t *data;
	size_t len; /* less than a cluster */
};

/* The receiver of a check's findings; found returns -1 to end the check. */
struct tide_check {
	int (*found)(void *data, enum tide_finding_kind kind, uint64_t off, uint64_t len, const char *text,
	             struct tide_error *err);
	bool (*cancelled)(void *data);
	void *data;
};

/*
 * An option of a driver in blockdev-add's tree of drivers, in the order of QEMU's schema.  Its kind follows from what
 * is filled in: a text, unless there are variants or `unsupported` is set.
 */
struct tide_driver_option {
	const char *name; /* NULL ends a list */
	bool required;
	bool unsupported;                           /* QEMU knows it; it is refused by name */
	const char *hint;                           /* of that refusal, or NULL */
	const struct tide_driver_variant *variants; /* an object, the member "type" of which is one of their names */
};

struct tide_driver_variant {
	const char *type;                         /* NULL ends a list */
	const struct tide_driver_option *options; /* those beside `type`; NULL: QEMU knows it, this version does not */
};

struct tide_image_driver {
	const char *name;
	/* The file is the disk: no header identifies it, and a guest's writes decide how it begins. */
	bool is_raw;
	bool has_backing; /* may new images have a backing image? */
	/* The keys of tide_driver_create.settings, for completion; NULL ends the list. NULL: no settings. */
	const char *const *settings;

	/* With open_uri: the schemes of the URIs that it opens ("nbd", "nbd+unix"), and a NULL. */
	const char *const *schemes;
	const char *uri_noun;     /* for messages: the thing that such a URI names, with its article: "an NBD export" */
	const char *uri_example;  /* for hints: how such URIs begin */
	const char *uri_raw_hint; /* a hint for an image of another format at such a URI, or NULL */

	/*
	 * With open_uri: how blockdev-add gives such an image, or NULL when it cannot.  Makes the URI of an object
	 * that has been checked against the options; *socket: the path of the Unix socket that it leads to, of the
	 * object's, or NULL.
	 */
	const struct tide_driver_option *options;
	int (*options_uri)(const struct tide_json *object, char **uri, const char **socket, struct tide_error *err);

	/* Does the file begin like one of this format?  head: its first len bytes, 512 or all there are. */
	bool (*probe)(const uint8_t *head, size_t len);

	/* Writes an empty image of info->size bytes into the empty file fd. */
	int (*create)(int fd, const struct tide_driver_create *options, struct tide_error *err);

	/*
	 * fd stays the caller's and outlives *state.  dir is the directory that a relative
	 * name in the image is relative to.  Fills *info, whose strings the caller releases
	 * with tide_driver_info_release, also after a failure.
	 */
	int (*open)(int fd, const char *dir, unsigned flags, struct tide_driver_info *info, void **state,
	            struct tide_error *err);
	int (*open_uri)(const char *uri, unsigned flags, const atomic_bool *cancel, struct tide_driver_info *info,
	                void **state, struct tide_error *err);
	/* fd stays the caller's and outlives *state.  NULL for formats that have no such file. */
	int (*set_data_file)(void *state, int fd, struct tide_error *err);
	void (*close)(void *state);
	int (*flush)(void *state, struct tide_error *err);

	int (*extent)(void *state, uint64_t off, uint64_t len, struct tide_extent *out, struct tide_error *err);
	int (*read)(void *state, void *buf, uint64_t off, uint64_t len, struct tide_error *err);

	int (*write)(void *state, const void *buf, uint64_t off, uint64_t len, struct tide_error *err);
	int (*write_begin)(void *state, uint64_t off, uint64_t len, struct tide_extent *out, struct tide_error *err);
	int (*write_commit)(void *state, const struct tide_extent *place, struct tide_error *err);
	void (*write_abort)(void *state, const struct tide_extent *place);
	int (*zero)(void *state, uint64_t off, uint64_t len, bool may_unmap, struct tide_error *err);
	/* Is zeroing whole clusters (bytes, without clusters) free of writing them? NULL: unknown. */
	bool (*can_zero_fast)(void *state, bool may_unmap);

	int (*set_exact_size)(void *state, uint64_t size, struct tide_driver_info *info, struct tide_error *err);

	int (*set_fingerprint)(void *state, const struct tide_fingerprint *fp, struct tide_error *err);

	int (*set_birth)(void *state, const struct tide_birth *birth, struct tide_error *err);

	int (*sums_range)(void *state, int *fd, uint64_t *start, uint64_t *end, struct tide_error *err);
	int (*sums_store)(void *state, struct tide_sums *sums, struct tide_error *err);
	int (*sums_load)(void *state, bool old, struct tide_sums **out, struct tide_error *err);
	int (*sums_use)(void *state, struct tide_sums *collect, struct tide_sums *proof, struct tide_error *err);
	int (*sums_disk)(void *state, const struct tide_bitmap *bad,
	                 int (*found)(void *data, uint64_t off, uint64_t len, struct tide_error *err), void *data,
	                 struct tide_error *err);

	int (*discard)(void *state, uint64_t off, uint64_t len, struct tide_error *err);

	/* Compression: all four are NULL in formats without it. A packer may be used with this image only. */
	int (*packer_new)(void *state, void **packer, struct tide_error *err);
	void (*packer_free)(void *packer);
	/* *len: in, the room at out, where a cluster is enough; out, the bytes used. */
	int (*pack)(void *packer, const void *cluster, void *out, size_t *len, struct tide_error *err);
	int (*write_packed)(void *state, const struct tide_packed *clusters, size_t n, struct tide_error *err);

	/*
	 * Checks whether the image's own structures are consistent, and reports each finding. It reads the
	 * file itself, so that the findings do not depend on the code that wrote the file. data_fd: its external
	 * data file, or -1. -1: it could not check. NULL: nothing to check.
	 */
	int (*check)(int fd, int data_fd, const struct tide_check *check, struct tide_error *err);

	int (*snapshots)(void *state, struct tide_snapshot ***list, struct tide_error *err); /* NULL: it has none */

	/* Reads the contents of persistent bitmap `index` into *out (new). NULL for formats without bitmaps. */
	int (*bitmap_read)(void *state, size_t index, struct tide_bitmap **out, struct tide_error *err);
	/* The caller knows that a bitmap marked as in use is sound: checks it and lets bitmap_read read it. */
	int (*bitmap_reclaim)(void *state, size_t index, struct tide_error *err);
	/*
	 * Change the bitmaps; NULL for formats without them. The errors of stage are QEMU's about a bitmap,
	 * without its "Can't make bitmap 'NAME' persistent in 'NODE': ". commit replaces info->bitmaps by
	 * the new list.
	 */
	int (*bitmaps_token)(void *state, const struct tide_id *token, struct tide_error *err);
	int (*bitmaps_stage)(void *state, const struct tide_driver_bitmap_put *put, size_t n,
	                     struct tide_driver_switch *sw, struct tide_error *err);
	int (*bitmaps_commit)(void *state, struct tide_driver_info *info, struct tide_error *err);
	void (*bitmaps_abort)(void *state);
};

/* The name of the foreign format of a file that begins like this, or NULL. */
const char *tide_driver_foreign(const uint8_t *head, size_t len);
/* The same of a file that ends like this: its last 512 bytes. */
const char *tide_driver_foreign_end(const uint8_t *tail, size_t len);

void tide_driver_info_release(struct tide_driver_info *info);
void tide_driver_snapshots_free(struct tide_snapshot **list);
void tide_driver_bitmaps_free(struct tide_driver_bitmap *bitmaps, size_t n);

/* Appends a feature; key and text are copied. */
int tide_driver_info_add(struct tide_driver_info *info, const char *key, enum tide_feature_kind kind, uint64_t number,
                         const char *text, struct tide_error *err);

/*
 * Removes the next "key=value" from a settings string: 1 with copies in key and value, 0 at the end, -1 on
 * a malformed setting. A comma in a value is doubled, as in QEMU.
 */
int tide_driver_next_setting(const char **settings, char key[64], char value[256], struct tide_error *err);

#define TIDE_FORMAT(driver) extern const struct tide_image_driver driver;
#include "../../formats/formats.def"
#undef TIDE_FORMAT

#endif
