/*
 * The write log: what was written to an image since its sidecar was last replaced, one bit a
 * granule, in a file of its own beside the sidecar (man/tidemark-sidecar.5, THE WRITE LOG).
 *
 * Who records writes holds a lock token (lock.h) and says so in the log; a bit is set before
 * the data is written, in memory that is the file's.  So a program that dies loses no bit:
 * the log says that it was being written, nobody holds the token, and whoever opens the node
 * next takes its bits for dirty (node_log.h).  A writer that ends well leaves the log clean,
 * with the image's stamp of that moment, for the next one to go on with.
 *
 * Two things are never left to chance.  Space: the parts of the file in which bits are set
 * are allocated first, so a full file system is an error of the write, not a signal.
 * Durability, where it is asked for: a bit is on stable storage when set returns; one sync
 * serves all bits that were set before it began, and bits that are durable cost none.
 *
 * The file is not trusted.  Its header has checksums; the bits have none, for they
 * change one at a time, and any bits are valid bits: what a lost file would hide the
 * header's size, identity and state tell.
 *
 * Threads: set may be called from any number of threads at once, on any ranges.
 */
#ifndef TIDE_WRITE_LOG_H
#define TIDE_WRITE_LOG_H

#include "bitmap/bitmap.h"
#include "base/stamp.h"

/* Who writes now, or how the last one left it. */
struct tide_write_log_state {
	uint64_t sequence;
	uint64_t token;          /* of who writes; 0: clean */
	bool durable;            /* a bit is on stable storage before its data, so a power loss loses none */
	uint8_t boot[16];        /* of the machine that it is written on; zeroes: not known */
	struct tide_stamp stamp; /* clean: the image's */
};

struct tide_write_log_header {
	uint64_t compatible;
	uint64_t id;          /* random, not 0 */
	uint64_t generation;  /* of the sidecar that it goes with; 0: there is none */
	uint32_t sidecar_crc; /* checksum of that sidecar's header; 0: there is none */
	unsigned shift;       /* granularity, log2 */
	uint64_t disk_size;
	size_t n_inside;  /* bitmaps inside the image that are recorded here and are marked as in use there, */
	uint64_t *inside; /* by their tokens (node_inside.h) */
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
 * Checks everything before the bits.  head: the first len bytes of the file, which has file_len; all up to the bits, or
 * TIDE_WRITE_LOG_HEAD_MAX.  TIDE_E_CORRUPT says what, where, expected and found; TIDE_E_UNSUPPORTED: a later version's.
 */
int tide_write_log_decode(const uint8_t *head, size_t len, uint64_t file_len, struct tide_write_log_header *out,
                          struct tide_error *err);
/* out: bits_at bytes, zeroes.  The state goes to the slot of its sequence number. */
void tide_write_log_encode(const struct tide_write_log_header *h, uint8_t *out);
void tide_write_log_encode_slot(const struct tide_write_log_header *h, uint8_t out[TIDE_WRITE_LOG_SLOT_LEN]);

/* ---- the file ---- */

struct tide_write_log;

/* 1: *out is the log that stands there; 0: there is none.  For a damaged one the error is TIDE_E_CORRUPT. */
int tide_write_log_open(const char *path, struct tide_write_log **out, struct tide_error *err);
/*
 * A new one, durable under its name, active for h->state.token.  h (copied but for `inside`, which is taken) has all
 * but id, sequence and boot; owner and mode become those of image_fd.
 */
int tide_write_log_create(const char *path, struct tide_write_log_header *h, int image_fd, struct tide_write_log **out,
                          struct tide_error *err);
void tide_write_log_close(struct tide_write_log *log); /* NULL is fine; the file stays as it is */
const struct tide_write_log_header *tide_write_log_header(const struct tide_write_log *log);

/* The finest granularity, log2, that a log of this disk can have. */
unsigned tide_write_log_shift(uint64_t disk_size, unsigned wanted);

/* Was it written before the machine was started the last time? */
bool tide_write_log_is_of_another_boot(const struct tide_write_log *log);

/* A clean log becomes active; what is durable of that, the first set that is durable makes so. */
int tide_write_log_activate(struct tide_write_log *log, uint64_t token, bool durable, struct tide_error *err);
/* newly_set, of the same disk and granularity (one thread then), or NULL: gets what was not set before. */
int tide_write_log_set(struct tide_write_log *log, uint64_t off, uint64_t len, struct tide_bitmap *newly_set,
                       struct tide_error *err);
/* Takes whole granules back.  Nobody else writes meanwhile. */
void tide_write_log_unset(struct tide_write_log *log, uint64_t off, uint64_t len);
/* All that was recorded is on stable storage, and so is the image with the times that stamp has. */
int tide_write_log_clean(struct tide_write_log *log, const struct tide_stamp *stamp, struct tide_error *err);

/* Makes dirty in bm, a bitmap of the log's granularity, what the log says; what lies beyond bm's disk is left out. */
int tide_write_log_read(struct tide_write_log *log, struct tide_bitmap *bm, struct tide_error *err);

#endif
