/*
 * Declarations that the parts of the copy engine share; nothing else includes this.
 *
 *   copy.c           workers: which worker does which piece when; errors, retries, the speed limit
 *   copy_plan.c      what to copy, in pieces of which size, with how many workers
 *   copy_map.c       what the source holds at a place: a stretch of data, divided into parts
 *   copy_pieces.c    copies one piece, or several at once
 *   copy_read.c      gets data from the source's files; reads ahead
 *   copy_write.c     puts data into the target's file; starts writeback
 *   copy_offload.c   reflink and copy_file_range: moves data without reading it
 *   copy_compress.c  copies one compressed piece
 *
 * Locks.  work.lock guards the state of the engine, retry_lock is held by the worker that asks `retry`, place_lock by
 * the one that reserves places for a batch; reader.lock and writer.lock guard the state of their modules.  A thread
 * that holds one of them never takes another.  No I/O happens under work.lock, reader.lock and writer.lock, except
 * that a file is opened once more.
 *
 * Claims.  A worker owns each piece that it has taken from the plan, and its range of the disk, until it ends the
 * piece; pieces never overlap.  Pieces consist of whole copy units, and a unit is no smaller than what the target can
 * write alone, so two workers never write to the same cluster, or subcluster.  A unit is reset in `todo` only after its
 * data has been handed to the target.
 */
#ifndef TIDE_COPY_IMPL_H
#define TIDE_COPY_IMPL_H

#include "copy.h"

#define TIDE_COPY_LARGE       (UINT64_C(16) << 20) /* bytes; larger buffers and direct writes pay from here on */
#define TIDE_COPY_BATCH       32                   /* pieces that a worker takes at once, at most */
#define TIDE_COPY_FILES       16                   /* of a source's chain that can be read directly */
#define TIDE_COPY_SENT        4                    /* ranges of the target whose writeback has been started */
#define TIDE_COPY_PARTS_MAX   256
#define TIDE_COPY_REFUSED_MAX 16

/* ---- copy_map.c ---- */

struct tide_copy_part {
	uint64_t off, len; /* bytes of the disk */
	bool zero;
	int fd;      /* the file that holds its plain bytes; -1: none does */
	uint64_t at; /* their offset in that file */
};

/*
 * A stretch of data in parts of one kind each, and the zeroes that follow it.  It begins and ends on block boundaries
 * of the caller, who copies whole blocks; a zero part is smaller than a block, or shares a block with data.
 */
struct tide_copy_stretch {
	uint64_t off;
	uint64_t len;    /* of the data; 0: zeroes only */
	uint64_t zeroes; /* after the data */
	size_t n;        /* parts, without gaps; 0: there are too many */
	struct tide_copy_part part[TIDE_COPY_PARTS_MAX];
};

/* Covers at least one block and at most len, whose last block may be short.  After the source's end there are zeroes.
 */
int tide_copy_map(struct tide_image *source, uint64_t block, uint64_t off, uint64_t len, struct tide_copy_stretch *s,
                  struct tide_error *err);

/* ---- The engine ---- */

struct tide_copy_piece {
	uint64_t number; /* pieces are numbered in ascending order of the disk */
	uint64_t off, len;
};

/* Together no longer than a worker's buffer. */
struct tide_copy_batch {
	struct tide_copy_piece piece[TIDE_COPY_BATCH];
	size_t n;
	uint64_t len;
};

struct tide_copy_sent {
	int fd;
	uint64_t off, len; /* len 0: none */
};

/* State of copy_write.c. */
struct tide_copy_writer {
	bool always;          /* write directly on every file system */
	pthread_mutex_t lock; /* guards what follows */
	bool wants_direct;
	int fd, direct; /* the target's file, and the same file opened for direct writes; -1 */
	struct tide_copy_sent next, sent[TIDE_COPY_SENT];
	uint64_t gathered; /* bytes written within `next` */
	size_t n_sent;
};

struct tide_copy_source_file {
	int fd, direct; /* direct: the same file opened for direct reads; -1: not possible */
};

/* State of copy_read.c. */
struct tide_copy_reader {
	bool always; /* read directly what is in memory, too, and on every file system */
	atomic_bool wants_direct, has_read, no_cachestat;
	pthread_mutex_t lock; /* guards what follows */
	struct tide_copy_source_file file[TIDE_COPY_FILES];
	size_t n;
};

struct tide_copy_engine {
	struct tide_work work;
	struct tide_copy *copy;
	uint64_t piece;           /* maximum bytes of a piece */
	uint64_t align;           /* of what is written to the target */
	size_t batch;             /* maximum pieces of a batch */
	unsigned workers_direct;  /* when the source is read directly */
	struct tide_bitmap *plan; /* todo as it was at the start, without what was shared */
	struct tide_bitmap
	        *fetched; /* what reading ahead brought into memory, and the copy drops again; NULL: unknown */
	pthread_mutex_t retry_lock;
	pthread_mutex_t place_lock; /* keeps the places of a batch next to each other */
	struct tide_copy_reader reader;
	struct tide_copy_writer writer;
	_Atomic unsigned retries; /* how often `retry` has returned true */
	uint64_t start_ns;
	/* Guarded by work.lock: */
	bool sharing, shared;   /* sharing has begun, has ended */
	uint64_t cursor;        /* where the next piece begins */
	uint64_t ahead;         /* where reading ahead continues */
	uint64_t ahead_bytes;   /* dirty bytes that reading ahead has passed */
	uint64_t taken_bytes;   /* of those, bytes that workers have taken */
	unsigned cached_ranges; /* in a row, that reading ahead found in memory */
	uint64_t issued;        /* bytes handed out, for the speed limit */
	uint64_t taken;         /* pieces that workers have taken; the next piece's number */
	uint64_t turn;          /* number of the piece that may be stored now (compressed copies) */
	uint64_t broken;        /* pieces after this number will not be stored */
	pthread_cond_t turned;  /* turn, broken or shared has changed */
};

/* ---- copy_offload.c ---- */

struct tide_copy_mover {
	struct tide_image *source, *target;
	enum tide_copy_way way; /* reflink or kernel */
	bool reads_zero;        /* the target's places read as zeroes where nothing was written */
	uint64_t block;         /* of the target's file system */
	/* Source files that cannot be moved from to the target's file. */
	int refused[TIDE_COPY_REFUSED_MAX];
	size_t n_refused;
};

/* Do direct transfers and the page cache show the same data? */
bool tide_copy_offload_is_coherent(int fd);
void tide_copy_offload_init(struct tide_copy_mover *m, const struct tide_copy *copy, enum tide_copy_way way);
/*
 * Moves a stretch whose data is plain bytes in files.  True: all of it is in the target.  False: copy it in another
 * way; places of the target were given back, or hold what the other way writes there again.
 */
bool tide_copy_offload(struct tide_copy_mover *m, const struct tide_copy_stretch *s);
/* Shares what it can and takes it out of the plan.  Never fails: the workers copy what is left. */
void tide_copy_offload_share(struct tide_copy_engine *e);

/* ---- Workers: copy.c ---- */

struct tide_copy_worker {
	struct tide_copy_engine *e;
	uint8_t *buf;                            /* work.buf_size bytes */
	struct tide_copy_compressor *compressor; /* or NULL */
	struct tide_copy_mover mover;
	bool moves;   /* try the mover first */
	bool batches; /* several pieces at once, where that is possible */
	struct tide_copy_stretch stretch;
};

/* Waits until the speed limit permits `len` more bytes.  False: the copy ends before piece `number`. */
bool tide_copy_throttle(struct tide_copy_engine *e, uint64_t number, uint64_t len);
/* Waits until all pieces before number `n` are stored.  False: one of them will not be. */
bool tide_copy_wait_turn(struct tide_copy_engine *e, uint64_t n);

/* ---- copy_plan.c ---- */

/* The piece size: large, but at most a tenth of a second's worth under a speed limit. */
uint64_t tide_copy_plan_piece(const struct tide_copy *c, uint64_t most);
/* The maximum number of workers. */
unsigned tide_copy_plan_workers(const struct tide_copy *c);
/* Decides the size of pieces and buffers; before anything is taken out of the plan. */
void tide_copy_plan_pieces(struct tide_copy_engine *e, unsigned workers);
/* Decides how many workers start, once the plan is complete. */
void tide_copy_plan_work(struct tide_copy_engine *e, unsigned workers);
/*
 * For a target that reads as zeroes by itself: takes what the source reports as zeroes out of the plan, so an empty
 * disk of any size costs one look.  Stops at an error; the worker that comes to that place meets and reports it.
 */
void tide_copy_plan_skip_zeroes(struct tide_copy_engine *e);

/* ---- copy_read.c ---- */

void tide_copy_read_begin(struct tide_copy_engine *e); /* copy->len is known */
void tide_copy_read_end(struct tide_copy_engine *e);
/* Does the engine read around the page cache?  Then reading ahead is pointless. */
bool tide_copy_read_is_direct(struct tide_copy_engine *e);
/* Before a piece begins: asks the kernel to read what the next pieces need. */
void tide_copy_read_ahead(struct tide_copy_engine *e);
/* Reads all data of the stretch. */
int tide_copy_read(struct tide_copy_engine *e, const struct tide_copy_stretch *s, uint8_t *buf, struct tide_error *err);

/* ---- copy_write.c ---- */

void tide_copy_write_begin(struct tide_copy_engine *e); /* copy->len is known */
void tide_copy_write_end(struct tide_copy_engine *e);
/* Writes to a place of the target's file fd, and starts writeback. */
int tide_copy_write_file(struct tide_copy_engine *e, int fd, const uint8_t *buf, uint64_t len, uint64_t off,
                         struct tide_error *err);
/* Writes what was read to the target's disk, and stores blocks of zero bytes as zeroes. */
int tide_copy_write(struct tide_copy_worker *w, const uint8_t *buf, uint64_t off, uint64_t len, struct tide_error *err);
/* Nothing, where the target reads as zeroes by itself. */
int tide_copy_write_zeroes(struct tide_copy_worker *w, uint64_t off, uint64_t len, struct tide_error *err);
/* Does the buffer hold a block that tide_copy_write would store as zeroes? */
bool tide_copy_write_has_zeroes(const struct tide_copy_worker *w, const uint8_t *buf, uint64_t len);

/* ---- copy_pieces.c ---- */

/* *reading: after a failure, whether the source failed. */
int tide_copy_pieces_one(struct tide_copy_worker *w, uint64_t off, uint64_t len, bool *reading, struct tide_error *err);
/* False: copy the pieces one by one, from the beginning; that also reports what is wrong. */
bool tide_copy_pieces_batch(struct tide_copy_worker *w, const struct tide_copy_batch *b);

/* ---- copy_compress.c ---- */

struct tide_copy_compressor;

/* For one worker; piece: maximum bytes of a piece, whole clusters. */
struct tide_copy_compressor *tide_copy_compress_new(struct tide_image *target, uint64_t piece, struct tide_error *err);
void tide_copy_compress_free(struct tide_copy_compressor *c);
/* Compresses a piece and stores it in its turn; 1: it will not get its turn. */
int tide_copy_compress_piece(struct tide_copy_worker *w, const struct tide_copy_piece *piece, bool *reading,
                             struct tide_error *err);

#endif
