/*
 * The sidecar's codec: the bytes of IMAGE.bitmaps to structures and back.  No I/O but through the functions it is
 * given. The format is specified in man/tidemark-sidecar.5, field by field; this is its only implementation.
 *
 * Bitmaps are decoded when they are first needed.  Until then an entry keeps its encoded
 * chunks, checked, and encoding writes them out as they came, so that a command pays for
 * the bitmaps it touches and no others.
 */
#ifndef TIDE_SIDECAR_H
#define TIDE_SIDECAR_H

#include "bitmap/bitmap.h"
#include "base/stamp.h"
#include "base/strbuf.h"

struct tide_sidecar_bitmap {
	char *name;     /* 1..1023 bytes and a NUL; NULL for a successor */
	bool enabled;   /* records */
	bool untracked; /* the image was written around the tracking: shown as inconsistent */
	uint64_t token; /* not 0: busy, owned by the job that holds this lock token */
	char *group;    /* busy in a group: the absolute path of the group's record (group.h); else NULL */
	uint64_t granularity;
	uint64_t count;             /* dirty granules; kept right by the codec on decode, by callers via _bitmap */
	struct tide_bitmap *bitmap; /* NULL while still encoded */
	uint8_t *encoded;           /* the chunk records; NULL once the bitmap has been decoded */
	size_t encoded_len;
	struct tide_sidecar_bitmap *successor; /* of a busy bitmap, else NULL */

	/* For a node's bitmaps inside the image (node_inside.h), which are never encoded. */
	bool inside;
	bool in_use;  /* a program died while it had it open: the contents say nothing */
	bool lent;    /* marked there as in use by us: the write log records for it */
	bool changed; /* the contents are not those that are stored */
	bool is_stored;
	size_t stored; /* its place in the image's directory */
};

#define TIDE_SIDECAR_FORMAT_MAX 15

struct tide_sidecar {
	uint64_t compatible;                      /* unknown compatible feature bits, kept */
	uint64_t generation;                      /* counts the replacements */
	uint64_t disk_size;                       /* bytes */
	char format[TIDE_SIDECAR_FORMAT_MAX + 1]; /* of the image, pinned: "raw", "qcow2" */
	struct tide_stamp stamp;
	uint64_t log;      /* identity of the write log whose bits were added last (write_log.h), or 0 */
	uint32_t checksum; /* of the header that it was decoded from; 0: it is not on disk */
	uint64_t writer;   /* not 0: a tracked write is under way, by the holder of this lock token */
	size_t n, room;
	struct tide_sidecar_bitmap **items; /* newest first */
};

struct tide_sidecar *tide_sidecar_new(struct tide_error *err);
void tide_sidecar_free(struct tide_sidecar *sc);

/* A deep copy; bitmaps still encoded stay so. */
struct tide_sidecar *tide_sidecar_copy(const struct tide_sidecar *sc, struct tide_error *err);

struct tide_sidecar_bitmap *tide_sidecar_bitmap_new(const char *name, uint64_t disk_size, uint64_t granularity,
                                                    struct tide_error *err);
void tide_sidecar_bitmap_free(struct tide_sidecar_bitmap *entry);

/* Puts an entry, now the sidecar's, at index (0: newest). */
int tide_sidecar_insert(struct tide_sidecar *sc, size_t index, struct tide_sidecar_bitmap *entry,
                        struct tide_error *err);
/* Takes it out; the entry is the caller's again. */
struct tide_sidecar_bitmap *tide_sidecar_take(struct tide_sidecar *sc, size_t index);
/* Its index, or -1. */
long tide_sidecar_find(const struct tide_sidecar *sc, const char *name);

/* The decoded bitmap of an entry, decoding it first if need be.  Once called, `bitmap` is what will be stored. */
struct tide_bitmap *tide_sidecar_bitmap_load(const struct tide_sidecar *sc, struct tide_sidecar_bitmap *entry,
                                             struct tide_error *err);
/* The entry holds nothing any more, and what it held is not decoded for that. */
struct tide_bitmap *tide_sidecar_bitmap_clear(const struct tide_sidecar *sc, struct tide_sidecar_bitmap *entry,
                                              struct tide_error *err);
/* A busy entry's job is over: what its successor recorded is added, and successor, token and group are gone. */
int tide_sidecar_bitmap_thaw(const struct tide_sidecar *sc, struct tide_sidecar_bitmap *entry, struct tide_error *err);
/* Dirty granules, without decoding. */
uint64_t tide_sidecar_bitmap_count(const struct tide_sidecar_bitmap *entry);

/* How much of a file says which sidecar it is, and how: its header's checksum; 0 for what is none. */
#define TIDE_SIDECAR_HEAD 128u
uint32_t tide_sidecar_checksum(const void *head, size_t len);

/* Does a file begin like a sidecar? */
bool tide_sidecar_is_one(const void *head, size_t len);

/* A file that is read and written in parts, at byte offsets: all of buf, or -1. */
struct tide_sidecar_reader {
	int (*read)(void *ctx, void *buf, size_t len, uint64_t off, struct tide_error *err);
	void *ctx;
};

struct tide_sidecar_writer {
	int (*write)(void *ctx, const void *buf, size_t len, uint64_t off, struct tide_error *err);
	void *ctx;
};

/*
 * Checks everything: magic, version, features, every checksum, every length, every name.
 * A failure is TIDE_E_CORRUPT or TIDE_E_UNSUPPORTED and says what, where (byte offset),
 * expected and found.
 */
struct tide_sidecar *tide_sidecar_decode(const void *data, size_t len, struct tide_error *err);
int tide_sidecar_encode(const struct tide_sidecar *sc, struct tide_strbuf *out, struct tide_error *err);

/* The same from and to a file; a large one is in memory once, as what the entries keep, not also as a whole. */
struct tide_sidecar *tide_sidecar_read(const struct tide_sidecar_reader *reader, size_t len, struct tide_error *err);
/* checksum: the new header's. */
int tide_sidecar_write(const struct tide_sidecar *sc, const struct tide_sidecar_writer *writer, uint32_t *checksum,
                       struct tide_error *err);

#endif
