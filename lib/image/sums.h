/*
 * Checksums of stored data: a table with the XXH3 of each block of a backup's file, as the bytes are in the file, so
 * that a later reader proves them without the source and without decompressing anything.
 *
 * The table covers a range of the file in blocks of 64 KiB. In a qcow2 it covers everything after the first cluster:
 * data, compressed data and tables alike. man/tidemark-backup.5 specifies its bytes.
 *
 * Collecting: the writer of a new file notes the bytes that it writes while they are in the processor's cache. Pieces
 * of a block are gathered until the block is whole. `finish` reads the rest back from the file: tables, and blocks of
 * which only a part was noted. Data that the kernel copied, which this program never saw, is skipped: it stays without
 * checksum unless `finish` is asked for everything. Each of these calls may come from any thread; a lack of memory only
 * means that more is read back.
 */
#ifndef TIDE_SUMS_H
#define TIDE_SUMS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tidemark.h"

#define TIDE_SUMS_BLOCK     65536u
#define TIDE_SUMS_NONE      UINT64_C(0) /* no block has this checksum: an XXH3 of 0 counts as 2 */
#define TIDE_SUMS_HEAD      48u         /* bytes of the encoded table before its directory */
#define TIDE_SUMS_PER_CHUNK 8192u       /* checksums */

struct tide_sums;

/* The table is of the file's bytes from start on. */
struct tide_sums *tide_sums_new(uint64_t start, struct tide_error *err);
void tide_sums_free(struct tide_sums *sums); /* NULL: nothing */

/* ---- collecting; sums NULL: nothing happens ---- */

void tide_sums_note(struct tide_sums *sums, const void *buf, uint64_t off, uint64_t len);
/* The bytes there are not what was noted. */
void tide_sums_forget(struct tide_sums *sums, uint64_t off, uint64_t len);
void tide_sums_skip(struct tide_sums *sums, uint64_t off, uint64_t len);
/* Nothing that was noted counts. */
void tide_sums_spoil(struct tide_sums *sums);
/*
 * The file, which is complete, ends at `end`. all: read back what was skipped, too. cancel: ends it early; or NULL.
 */
int tide_sums_finish(struct tide_sums *sums, int fd, uint64_t end, bool all, const atomic_bool *cancel,
                     struct tide_error *err);

/* Is there data that was skipped? */
bool tide_sums_has_skipped(struct tide_sums *sums);

/* ---- a complete table ---- */

uint64_t tide_sums_start(const struct tide_sums *sums);
uint64_t tide_sums_end(const struct tide_sums *sums);
/* The checksums of n blocks within the table's range, the first one at off; or NONE. From any thread. */
int tide_sums_find(struct tide_sums *sums, uint64_t off, uint64_t n, uint64_t *out, struct tide_error *err);
uint64_t tide_sums_of(const void *buf, size_t len);
uint64_t tide_sums_of_zeroes(void); /* of a whole block */
/* Bytes with checksums. */
uint64_t tide_sums_proven(const struct tide_sums *sums);
/*
 * Compares bytes that were read from the file with the table. The rest of a block that the range covers in part
 * is read. Blocks without checksum pass. *bad is the offset of the first block that differs: 1; 0: none does.
 */
int tide_sums_check(struct tide_sums *sums, int fd, const void *buf, uint64_t off, uint64_t len, uint64_t *bad,
                    struct tide_error *err);

/* ---- its bytes in a file ---- */

/* Writes the table at `at`, in *len bytes; *sum is the XXH3 of its head and directory. */
int tide_sums_write(struct tide_sums *sums, int fd, uint64_t at, uint64_t *len, uint64_t *sum, struct tide_error *err);
/*
 * The error says what is wrong with the table, TIDE_E_CORRUPT, or why it cannot be read. All of it is checked, but only
 * a part stays in memory: fd stays open as long as the table is used.
 */
struct tide_sums *tide_sums_read(int fd, uint64_t at, uint64_t len, uint64_t sum, struct tide_error *err);
/* A table that was read closes this file when it is freed. */
void tide_sums_own(struct tide_sums *sums, int fd);

#endif
