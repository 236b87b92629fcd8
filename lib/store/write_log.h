/*
 * The write log: which granules of an image were written since its sidecar was last replaced. It is a file
 * of its own beside the sidecar, one bit a granule (man/tidemark-sidecar.5, THE WRITE LOG).
 *
 * A writer holds a lock token (lock.h) and stores it in the log. It writes a bit to the file before it writes the
 * data. So a program that dies loses no bit: the log still holds a token that nobody holds any more, and the next
 * program that opens the node counts the log's bits as dirty (node_log.h). A writer that ends well marks the log as
 * clean and stores the image's stamp of that moment, so that the next writer can continue the log.
 *
 * Two things are never left to chance. Space: the parts of the file in which bits are set are allocated
 * first, and the file is never mapped, so a full file system and a file that another program cuts are errors of the
 * write, not signals. Durability, where the caller asks for it: a bit is on stable storage when set returns; one sync
 * serves all bits that were set before it began, and bits that are durable already need none. Without that a log
 * counts only while its file is the one that was written, on the same mount and in the same boot; elsewhere the
 * storage may have been set back, and bits may be lost.
 *
 * The file is not trusted. Its header has checksums. The bits have none, because they change one at a time,
 * and any bits are valid bits; a lost or replaced file shows in the header's size, identity and state.
 *
 * Threads: set may be called from any number of threads at once, on any ranges.
 */
#ifndef TIDE_WRITE_LOG_H
#define TIDE_WRITE_LOG_H

#include "base/stamp.h"
#include "bitmap/bitmap.h"

/* The current writer, or how the last one left the log. */
struct tide_write_log_state {
	uint64_t sequence;
	uint64_t token;          /* the writer's; 0: clean */
	bool durable;            /* bits reach stable storage before the data: a power loss loses none */
	uint8_t boot[16];        /* of the machine's boot during which it was written; zeroes: unknown */
	uint64_t mount;          /* the kernel's unique number of the mount through which; 0: unknown */
	uint64_t device, inode;  /* of the file */
	bool untracked;          /* another program wrote to the image meanwhile */
	struct tide_stamp stamp; /* the image's, when clean */
};

struct tide_write_log_header {
	uint64_t compatible;
	uint64_t id;          /* random, not 0 */
	uint64_t generation;  /* of the sidecar it belongs to; 0: no sidecar */
	uint32_t sidecar_crc; /* checksum of that sidecar's header; 0: no sidecar */
	unsigned shift;       /* granularity, log2 */
	uint64_t disk_size;
	size_t n_in_image;  /* bitmaps inside the image that this log records for and that are marked */
	uint64_t *in_image; /* as in use there: their tokens (node_image.h) */
	struct tide_write_log_state state;
};

#define TIDE_WRITE_LOG_HEADER_INIT \
	{                          \
		0                  \
	}

#define TIDE_WRITE_LOG_MAGIC      "\x89TLOG\r\n\x1a"
#define TIDE_WRITE_LOG_SLOT_LEN   512u
#define TIDE_WRITE_LOG_SLOT_AT(i) (512u * (1 + (i)))
#define TIDE_WRITE_LOG_TABLE_AT   1536u
#define TIDE_WRITE_LOG_INSIDE_MAX 65535u
/* The longest part before the bits. */
#define TIDE_WRITE_LOG_HEAD_MAX (((TIDE_WRITE_LOG_TABLE_AT + 8u * TIDE_WRITE_LOG_INSIDE_MAX) + 4095u) & ~4095u)

/* ---- the codec (write_log_codec.c): no I/O ---- */

uint64_t tide_write_log_bits_at(const struct tide_write_log_header *h);
uint64_t tide_write_log_file_len(const struct tide_write_log_header *h);
void tide_write_log_header_release(struct tide_write_log_header *h);

/*
 * Checks everything before the bits. head: the first len bytes of a file of file_len bytes; len covers all
 * up to the bits, or is TIDE_WRITE_LOG_HEAD_MAX. TIDE_E_CORRUPT names the field, its offset, the expected
 * and the found value; TIDE_E_UNSUPPORTED: a later version wrote the log.
 */
int tide_write_log_decode(const uint8_t *head, size_t len, uint64_t file_len, struct tide_write_log_header *out,
                          struct tide_error *err);
/* out: bits_at bytes, zeroed by the caller. The state is written to the slot of its sequence number. */
void tide_write_log_encode(const struct tide_write_log_header *h, uint8_t *out);
void tide_write_log_encode_slot(const struct tide_write_log_header *h, uint8_t out[TIDE_WRITE_LOG_SLOT_LEN]);

/* ---- the file ---- */

struct tide_write_log;

/* Do these bytes begin like a write log, which may be damaged? */
bool tide_write_log_is_one(const uint8_t *head, size_t len);

/* 1: *out is the log at path; 0: no such file; 2: the file is not a write log. A damaged log gives TIDE_E_CORRUPT. */
int tide_write_log_open(const char *path, struct tide_write_log **out, struct tide_error *err);
/*
 * Creates a log, durable with its name and active for h->state.token. The caller fills h but for id,
 * sequence and boot; h is copied, and the log takes over `inside`. Owner and mode become those of image_fd.
 */
int tide_write_log_create(const char *path, struct tide_write_log_header *h, int image_fd, struct tide_write_log **out,
                          struct tide_error *err);
void tide_write_log_close(struct tide_write_log *log); /* NULL is fine; the file stays as it is */
const struct tide_write_log_header *tide_write_log_header(const struct tide_write_log *log);

/* The finest granularity, log2, that a log of this disk can have. */
unsigned tide_write_log_shift(uint64_t disk_size, unsigned wanted);

/* Why bits may be lost that were set before now; NULL: none are. */
const char *tide_write_log_why_lost(const struct tide_write_log *log);

/* Makes a clean log active. The first durable set, or sync, also makes this change durable. */
int tide_write_log_activate(struct tide_write_log *log, uint64_t token, bool durable, struct tide_error *err);
/*
 * newly_set (or NULL) has the log's disk size and granularity and receives the bits that were not set before; one
 * thread only.
 */
int tide_write_log_set(struct tide_write_log *log, uint64_t off, uint64_t len, struct tide_bitmap *newly_set,
                       struct tide_error *err);
/* Makes all bits durable that were set before. */
int tide_write_log_sync(struct tide_write_log *log, struct tide_error *err);
/* Clears the bits of whole granules. No other thread may write meanwhile. */
void tide_write_log_unset(struct tide_write_log *log, uint64_t off, uint64_t len);
/* Marks the log as clean. The caller has made all recorded writes durable, and the image with the times in stamp. */
int tide_write_log_clean(struct tide_write_log *log, const struct tide_stamp *stamp, struct tide_error *err);
/* Stores in an active log that another program has written to the image: its bitmaps lack these writes. */
int tide_write_log_distrust(struct tide_write_log *log, struct tide_error *err);

/* Sets the log's bits in bm, a bitmap of the log's granularity, up to the end of bm's disk. */
int tide_write_log_read(struct tide_write_log *log, struct tide_bitmap *bm, struct tide_error *err);

/* Removes the file, unless its name leads to another one now. */
void tide_write_log_unlink(const struct tide_write_log *log);

#endif
