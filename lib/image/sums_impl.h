/*
 * Shared by sums.c, sums_chunks.c and sums_codec.c; no other file includes this.
 */
#ifndef TIDE_SUMS_IMPL_H
#define TIDE_SUMS_IMPL_H

#include <pthread.h>

#include "sums.h"

#define TIDE_SUMS_SKIPPED UINT64_C(1) /* while collecting: the kernel copied it */
#define TIDE_SUMS_PARTS   32u

/* A block of which [from, to) was noted. */
struct tide_sums_part {
	bool used;
	uint64_t block;
	uint32_t from, to;
	uint8_t *data;
};

#define TIDE_SUMS_ZEROES UINT64_C(1) /* in place of a chunk's XXH3: the chunk is of blocks of zeroes, and absent */

/* Checksums of TIDE_SUMS_PER_CHUNK blocks. Those that are not in memory are in a file, or are all NONE. */
struct tide_sums_chunk {
	uint64_t *sum; /* NULL: not in memory */
	uint64_t at;   /* in the table's file */
	uint64_t want; /* the XXH3 of its bytes there; 0: it is not there */
	bool spilled;  /* it is in the spill file */
	bool dirty;    /* the file lacks what is in memory */
};

struct tide_sums {
	uint64_t start, end;
	uint64_t proven; /* bytes with checksums, when the table is complete */
	struct tide_sums_chunk *chunk;
	uint64_t n_chunks;
	uint64_t n_resident, hand; /* chunks in memory, and where the search for one to drop continues */
	int table_fd;              /* the file that a table was read from, which its reader keeps open */
	int owned_fd;              /* -1: none */
	int spill_fd;              /* a file without a name; -1: none yet */
	pthread_mutex_t lock;      /* guards all of it */
	bool spoilt, skipped;
	uint64_t zeroes; /* the checksum of a block of zeroes */
	struct tide_sums_part part[TIDE_SUMS_PARTS];
	size_t next_part;
};

/* ---- sums_chunks.c; lock held, unless no other thread has the table ---- */

uint64_t tide_sums_chunk_blocks(const struct tide_sums *s, uint64_t i);
/* Copies the checksums of n blocks. */
int tide_sums_get(struct tide_sums *s, uint64_t block, uint64_t n, uint64_t *out, struct tide_error *err);
int tide_sums_set(struct tide_sums *s, uint64_t block, uint64_t sum, struct tide_error *err);
/* There are this many chunks. */
int tide_sums_grow(struct tide_sums *s, uint64_t n, struct tide_error *err);
/* *out NULL: all are NONE, and create is false. */
int tide_sums_chunk_use(struct tide_sums *s, uint64_t i, bool create, uint64_t **out, struct tide_error *err);
/* Drops it from memory if its file has all of it. */
void tide_sums_chunk_drop(struct tide_sums *s, uint64_t i);
void tide_sums_chunks_release(struct tide_sums *s);

#endif
