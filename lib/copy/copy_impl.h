/*
 * What the parts of the copy engine share; nobody else includes this.
 *
 *   copy.c        workers: who does which piece when, errors, the speed limit
 *   copy_plan.c   what there is to do
 *   copy_share.c  first of all, one worker alone: what the target can share with the source
 *   copy_ahead.c  reads ahead of the workers, and behind them gives the memory back
 *   copy_read.c    bytes from the source's files
 *   copy_pieces.c  several pieces at once, where nothing is in the way of that
 *   copy_piece.c  one piece, whatever the way
 *   copy_write.c    bytes to the target's file
 *   copy_map.c, copy_offload.c, copy_way.c   stretches of data, and how they get from file to file
 */
#ifndef TIDE_COPY_IMPL_H
#define TIDE_COPY_IMPL_H

#include "copy.h"
#include "copy_move.h"
#include "copy_pack.h"

#define TIDE_COPY_LARGE \
	(UINT64_C(16) << 20) /* bytes; a copy of less is done before larger buffers and direct writes pay */
#define TIDE_COPY_BATCH 32   /* pieces that a worker takes at once, at most */
#define TIDE_COPY_FILES 16   /* of a source's chain that can be read directly */
#define TIDE_COPY_SENT  4    /* stretches of the target that are on their way to the disk */

struct tide_copy_piece {
	uint64_t number; /* its place in the order in which they begin */
	uint64_t off, len;
};

/* All in all no more than a worker's buffer. */
struct tide_copy_batch {
	struct tide_copy_piece piece[TIDE_COPY_BATCH];
	size_t n;
	uint64_t len;
};

struct tide_copy_sent {
	int fd;
	uint64_t off, len; /* len 0: nothing */
};

struct tide_copy_put {
	pthread_mutex_t lock; /* of what follows */
	bool wants_direct;
	int fd, direct; /* of the target, and the same for direct writes; -1 */
	struct tide_copy_sent next, sent[TIDE_COPY_SENT];
	uint64_t gathered; /* bytes written within `next` */
	size_t n_sent;
};

struct tide_copy_file {
	int fd, direct; /* the same for direct reads; -1: there is none */
};

struct tide_copy_get {
	bool always; /* also what is in memory */
	atomic_bool wants_direct, has_read, no_cachestat;
	pthread_mutex_t lock; /* of what follows */
	struct tide_copy_file file[TIDE_COPY_FILES];
	size_t n;
};

struct tide_copy_engine {
	struct tide_work work;
	struct tide_copy *copy;
	uint64_t piece;              /* most bytes a worker takes at once */
	uint64_t align;              /* of what goes to the target */
	size_t batch;                /* pieces that a worker takes at once */
	unsigned workers_direct;     /* when the source is read directly */
	struct tide_bitmap *plan;    /* todo as it was at the start, without what was shared */
	struct tide_bitmap *brought; /* what was read into memory for this copy and is to leave it again */
	pthread_mutex_t retry_lock;
	pthread_mutex_t place_lock; /* so that the places of a batch are in a row */
	struct tide_copy_get get;
	struct tide_copy_put put;
	_Atomic unsigned retries; /* how often `retry` has said yes */
	uint64_t start_ns;
	/* Under the lock: */
	bool sharing, shared; /* begun, ended */
	uint64_t cursor;
	uint64_t ahead;       /* where reading ahead goes on, and */
	uint64_t ahead_bytes; /* how much it has seen; of that */
	uint64_t taken_bytes; /* so much was taken */
	unsigned at_hand;     /* reading ahead, the ranges in a row that were in memory already */
	uint64_t issued;      /* bytes handed out, for the speed limit */
	uint64_t taken, turn; /* pieces that have begun, that have ended; a piece's number is its place in that order */
	uint64_t broken;      /* those after this one will not get their turn */
	pthread_cond_t turned;
};

struct tide_copy_worker {
	struct tide_copy_engine *e;
	uint8_t *buf;
	struct tide_copy_pack *pack; /* or NULL */
	struct tide_copy_mover mover;
	bool moves;   /* by the mover, what it can */
	bool batches; /* several pieces at once, where that can be */
	struct tide_copy_stretch stretch;
};

/* ---- copy.c ---- */

/* Waits until the speed limit lets `len` more bytes go; returns false when there is no reason to go on. */
bool tide_copy_throttle(struct tide_copy_engine *e, uint64_t number, uint64_t len);
/* Until all pieces before number `n` are stored; false when one of them will not be. */
bool tide_copy_wait_turn(struct tide_copy_engine *e, uint64_t n);

/* ---- copy_plan.c ---- */

/* Piece size: large, but with a speed limit no more than a tenth of a second's worth. */
uint64_t tide_copy_plan_piece(const struct tide_copy *c, uint64_t most);
/*
 * Where the target reads as zeroes by itself, units that the source says are zeroes need nobody's visit: an empty disk
 * of any size costs one look.  An error here is met again, and told, by the worker that comes to the place.
 */
void tide_copy_plan_skip_zeroes(struct tide_copy_engine *e);

/* ---- copy_share.c ---- */

/* Takes out of the plan what could be shared.  Never fails: what it could not do is left to the workers. */
void tide_copy_share(struct tide_copy_engine *e);

/* ---- copy_ahead.c ---- */

/* Before a piece is begun: those that come after it are on their way into memory. */
void tide_copy_ahead(struct tide_copy_engine *e);
/* What was read of the source for this copy's sake only need not stay in memory. */
void tide_copy_ahead_drop(struct tide_copy_engine *e, const struct tide_copy_stretch *s);

/* ---- copy_read.c ---- */

void tide_copy_get_begin(struct tide_copy_engine *e); /* copy->len is known */
void tide_copy_get_end(struct tide_copy_engine *e);
/* Reads what is not in memory without bringing it there: then there is no sense in reading ahead. */
bool tide_copy_get_is_direct(struct tide_copy_engine *e);
/* Is this byte of the file in memory?  In doubt it is. */
bool tide_copy_get_is_cached(int fd, uint64_t off);
/* All of the stretch's data. */
int tide_copy_get(struct tide_copy_engine *e, const struct tide_copy_stretch *s, uint8_t *buf, struct tide_error *err);

/* ---- copy_write.c ---- */

void tide_copy_put_begin(struct tide_copy_engine *e); /* copy->len is known */
void tide_copy_put_end(struct tide_copy_engine *e);
/* fd: of the target.  Writeback is a matter of this module. */
int tide_copy_put(struct tide_copy_engine *e, int fd, const uint8_t *buf, uint64_t len, uint64_t off,
                  struct tide_error *err);

/* ---- copy_pieces.c ---- */

/* False: no harm is done, but the pieces must be done one by one, which also tells what is wrong. */
bool tide_copy_batch(struct tide_copy_worker *w, const struct tide_copy_batch *b);

/* ---- copy_piece.c ---- */

/* Writes what was read, stretches of zero bytes as zeroes. */
int tide_copy_store(struct tide_copy_worker *w, const uint8_t *buf, uint64_t off, uint64_t len, struct tide_error *err);
/* Is there a stretch in it that tide_copy_store would not write? */
bool tide_copy_has_zeroes(const struct tide_copy_worker *w, const uint8_t *buf, uint64_t len);

int tide_copy_piece(struct tide_copy_worker *w, uint64_t off, uint64_t len, bool *reading, struct tide_error *err);
/* The same, but compressed, and stored in order; 1: it will not be its turn. */
int tide_copy_piece_pack(struct tide_copy_worker *w, uint64_t number, uint64_t off, uint64_t len, bool *reading,
                         struct tide_error *err);

#endif
