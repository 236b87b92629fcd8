/*
 * The sidecar's codec: converts the bytes of IMAGE.bitmaps to structures and back. It does no I/O except
 * through the functions it is given. man/tidemark-sidecar.5 specifies the format, field by field; this is
 * its only implementation.
 *
 * Lineage: a disk has an identifier, a bitmap may know the backup that it counts from, and the image itself may be a
 * backup that has a birth record.
 *
 * Bitmaps are decoded when they are first needed. Until then an entry keeps its checked, encoded chunks,
 * and encoding writes them unchanged, so that a command pays only for the bitmaps it touches.
 */
#ifndef TIDE_SIDECAR_H
#define TIDE_SIDECAR_H

#include "base/stamp.h"
#include "base/strbuf.h"
#include "bitmap/bitmap.h"
#include "image/birth.h"
#include "lineage.h"

struct tide_sidecar_bitmap {
	char *name;             /* 1..1023 bytes and a NUL; NULL for a successor */
	bool enabled;           /* records */
	bool untracked;         /* the image was written without tracking: shown as inconsistent */
	bool unchecked;         /* it may have been, and nobody knows: a block device, whose gap says why */
	uint64_t token;         /* not 0: busy, owned by the job that holds this lock token */
	char *group;            /* busy in a group: the absolute path of the group's record (group.h); else NULL */
	struct tide_base *base; /* the backup that it counts from; NULL: unknown, and for a successor */
	uint64_t granularity;
	uint64_t count;             /* dirty granules; set by decode, then by callers through _bitmap */
	struct tide_bitmap *bitmap; /* NULL while still encoded */
	uint8_t *encoded;           /* the chunk records; NULL once decoded */
	size_t encoded_len;
	struct tide_sidecar_bitmap *successor; /* of a busy bitmap, else NULL */
	bool removed;                          /* the commit drops it; until then its name is taken */

	/* Only for a node's bitmaps inside the image (node_image.h), which are never encoded: */
	bool in_image;
	bool in_use;      /* a program died while it had it open: the contents say nothing */
	bool checked_out; /* marked there as in use by us: the write log records for it */
	bool changed;     /* the contents differ from the stored ones */
	bool is_stored;
	size_t stored; /* its index in the image's directory */
};

#define TIDE_SIDECAR_FORMAT_MAX 15

/* A compatible feature bit: a person gave the format; without it, it may be what a probe found. */
#define TIDE_SIDECAR_FORMAT_GIVEN UINT64_C(0x1)

struct tide_sidecar {
	uint64_t compatible;                      /* feature bits; unknown ones are preserved */
	uint64_t generation;                      /* counts the replacements */
	uint64_t disk_size;                       /* bytes */
	char format[TIDE_SIDECAR_FORMAT_MAX + 1]; /* of the image, recorded so that it is never probed */
	struct tide_stamp stamp;                  /* without a device's counter, which is in `device` */
	struct tide_device device;                /* of a block device: which one, and its counter; else zero */
	uint64_t log;                     /* identity of the write log whose bits were added last (write_log.h), or 0 */
	uint32_t checksum;                /* of the header it was decoded from; 0: not on disk */
	uint64_t writer;                  /* not 0: a tracked write is running, by the holder of this lock token */
	struct tide_id disk;              /* zero: it has none yet */
	struct tide_birth *birth;         /* the image is a backup; NULL: no backup, or one with its record inside */
	struct tide_last_full *last_full; /* or NULL */
	struct tide_named_bases inside;   /* the bases of the bitmaps inside the image */
	size_t n, room;
	struct tide_sidecar_bitmap **items; /* newest first */
	size_t front;                       /* unused places before items, where new bitmaps go */
	struct tide_sidecar_index *index;   /* of the names, once it is needed; else NULL */
};

struct tide_sidecar *tide_sidecar_new(struct tide_error *err);
void tide_sidecar_free(struct tide_sidecar *sc);

/* A deep copy; encoded bitmaps stay encoded. */
struct tide_sidecar *tide_sidecar_copy(const struct tide_sidecar *sc, struct tide_error *err);

struct tide_sidecar_bitmap *tide_sidecar_bitmap_new(const char *name, uint64_t disk_size, uint64_t granularity,
                                                    struct tide_error *err);
void tide_sidecar_bitmap_free(struct tide_sidecar_bitmap *entry);

/* Inserts an entry at index (0: newest); the sidecar then owns it. */
int tide_sidecar_insert(struct tide_sidecar *sc, size_t index, struct tide_sidecar_bitmap *entry,
                        struct tide_error *err);
/* Removes the entry from the list; the caller then owns it. */
struct tide_sidecar_bitmap *tide_sidecar_take(struct tide_sidecar *sc, size_t index);
/* Its index, or -1. */
long tide_sidecar_find(const struct tide_sidecar *sc, const char *name);
/* The same entry, or NULL, in a time that does not depend on the number of entries. */
struct tide_sidecar_bitmap *tide_sidecar_lookup(struct tide_sidecar *sc, const char *name);
/* Removes and frees the entries that are marked as removed. */
void tide_sidecar_drop_removed(struct tide_sidecar *sc);

/* The bitmap of an entry, decoded now if it was not yet. From then on `bitmap` is what encoding stores. */
struct tide_bitmap *tide_sidecar_bitmap_load(const struct tide_sidecar *sc, struct tide_sidecar_bitmap *entry,
                                             struct tide_error *err);
/* Replaces the entry's bitmap by a clean one, without decoding the old one. */
struct tide_bitmap *tide_sidecar_bitmap_clear(const struct tide_sidecar *sc, struct tide_sidecar_bitmap *entry,
                                              struct tide_error *err);
/* Ends a busy entry's freeze: merges its successor into it and resets successor, token and group. */
int tide_sidecar_bitmap_thaw(const struct tide_sidecar *sc, struct tide_sidecar_bitmap *entry, struct tide_error *err);
/* The number of dirty granules, without decoding. */
uint64_t tide_sidecar_bitmap_count(const struct tide_sidecar_bitmap *entry);

/*
 * The first bytes of a file that identify a sidecar and its version, and the checksum of its header; 0 when the
 * file is not a sidecar.
 */
#define TIDE_SIDECAR_HEAD 128u
uint32_t tide_sidecar_checksum(const void *head, size_t len);

/* Does a file begin like a sidecar? */
bool tide_sidecar_is_one(const void *head, size_t len);

/* Could the format be what a guest has written? Raw cannot: nothing in such an image leads elsewhere. */
bool tide_sidecar_is_guess(const struct tide_sidecar *sc);

/* Does a write have to be recorded in this bitmap, or in one of these? */
bool tide_sidecar_bitmap_records(const struct tide_sidecar_bitmap *entry);
bool tide_sidecar_records(const struct tide_sidecar *sc);
/* All bitmaps become inconsistent: something was written that they did not record. */
void tide_sidecar_distrust(struct tide_sidecar *sc);

/* A file read or written in parts, at byte offsets. Each call transfers all of buf or returns -1. */
struct tide_sidecar_reader {
	int (*read)(void *ctx, void *buf, size_t len, uint64_t off, struct tide_error *err);
	void *ctx;
};

struct tide_sidecar_writer {
	int (*write)(void *ctx, const void *buf, size_t len, uint64_t off, struct tide_error *err);
	void *ctx;
};

/*
 * Checks everything: magic, version, features, every checksum, every length, every name. A failure is
 * TIDE_E_CORRUPT or TIDE_E_UNSUPPORTED and names the field, its byte offset, the expected and the found
 * value.
 */
struct tide_sidecar *tide_sidecar_decode(const void *data, size_t len, struct tide_error *err);
int tide_sidecar_encode(const struct tide_sidecar *sc, struct tide_strbuf *out, struct tide_error *err);

/*
 * The same from and to a file. A large file is held in memory once, as the entries' encoded chunks, and never as a
 * whole beside them.
 */
struct tide_sidecar *tide_sidecar_read(const struct tide_sidecar_reader *reader, size_t len, struct tide_error *err);
/* checksum: the new header's. */
int tide_sidecar_write(const struct tide_sidecar *sc, const struct tide_sidecar_writer *writer, uint32_t *checksum,
                       struct tide_error *err);

#endif
