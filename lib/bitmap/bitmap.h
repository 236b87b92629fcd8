/*
 * A dirty bitmap in memory: one bit a granule of a disk.
 *
 * It has two levels: a table of chunks of 32768 bits (4096 bytes). A clean chunk is absent, a completely
 * dirty one is a shared constant, and one with few dirty bits is a list of them, so memory and time follow
 * the dirty part of the disk, not its size. A summary (one bit a chunk) keeps the search for the next dirty
 * granule fast, even over an empty 64 TiB. The last bit covers the partial granule at the end of the disk;
 * bits past the end are never set.
 *
 * Offsets and lengths are bytes of the disk and need no alignment: set covers every granule it touches,
 * reset only granules it covers completely (the last, partial one counts as complete when the range reaches
 * the end of the disk). The range must lie within the disk.
 *
 * Threads: tide_bitmap_set may be called from several threads at once, also with test and count. No other
 * call may run at the same time as any call on the same bitmap.
 *
 * Count, hash and merge are QEMU's (block/dirty-bitmap.c, util/hbitmap.c of 7.2): count is bits times
 * granularity, not clipped to the disk; merging across granularities sets every bit of the target that a
 * dirty byte range of the source touches, clipped at the disk's end.
 */
#ifndef TIDE_BITMAP_H
#define TIDE_BITMAP_H

#include "base/compiler.h"
#include "tidemark.h"

#define TIDE_BITMAP_GRANULARITY_MIN 512u
#define TIDE_BITMAP_GRANULARITY_MAX (UINT64_C(1) << 31)
#define TIDE_BITMAP_CHUNK_BYTES     4096u
#define TIDE_BITMAP_CHUNK_BITS      (TIDE_BITMAP_CHUNK_BYTES * 8u)
#define TIDE_BITMAP_LIST_MAX        254u /* a list this long takes an eighth of a chunk's bytes */

struct tide_bitmap;

/* Creates a clean bitmap. granularity: a power of two within the limits (else TIDE_E_REFUSED with QEMU's text). */
struct tide_bitmap *tide_bitmap_new(uint64_t disk_size, uint64_t granularity, struct tide_error *err);
struct tide_bitmap *tide_bitmap_copy(const struct tide_bitmap *bm, struct tide_error *err);
void tide_bitmap_free(struct tide_bitmap *bm);
void tide_bitmap_freep(struct tide_bitmap **bm);
#define TIDE_AUTOBITMAP TIDE_CLEANUP(tide_bitmap_freep)

uint64_t tide_bitmap_size(const struct tide_bitmap *bm);        /* of the disk */
uint64_t tide_bitmap_granularity(const struct tide_bitmap *bm); /* bytes */
unsigned tide_bitmap_shift(const struct tide_bitmap *bm);       /* log2 of it */
uint64_t tide_bitmap_bits(const struct tide_bitmap *bm);        /* granules of the disk */
uint64_t tide_bitmap_count(const struct tide_bitmap *bm);       /* dirty granules; costs nothing */

/* May fail for lack of memory; part of the range may be set then. */
int tide_bitmap_set(struct tide_bitmap *bm, uint64_t off, uint64_t len, struct tide_error *err) TIDE_MUST_CHECK;
int tide_bitmap_reset(struct tide_bitmap *bm, uint64_t off, uint64_t len, struct tide_error *err) TIDE_MUST_CHECK;
void tide_bitmap_clear(struct tide_bitmap *bm);
bool tide_bitmap_test(const struct tide_bitmap *bm, uint64_t off);

/*
 * The first dirty run at or after off: 1 and [*start, *start + *len), clipped to off and to the end of the
 * disk; 0 when no granule is dirty. len_max limits how far a run is followed.
 */
int tide_bitmap_next_dirty(const struct tide_bitmap *bm, uint64_t off, uint64_t len_max, uint64_t *start,
                           uint64_t *len);

/* dst := dst ∪ src.  Sizes must be equal (else QEMU's text, nothing changed). Same bitmap twice: no effect. */
int tide_bitmap_merge(struct tide_bitmap *dst, const struct tide_bitmap *src, struct tide_error *err);

/* Changes the size: the common part keeps its bits, a new part is clean, and the bits of a removed part are dropped. */
int tide_bitmap_resize(struct tide_bitmap *bm, uint64_t disk_size, struct tide_error *err);

/* As QEMU's x-debug-block-dirty-bitmap-sha256: over little-endian 64-bit words, at least one, up to the last bit. */
void tide_bitmap_sha256(const struct tide_bitmap *bm, char hex[65]);

/* Chunks, for code that stores bitmaps. Bit i of the disk is bit i % 8 of byte i / 8. */
enum tide_bitmap_chunk { TIDE_BITMAP_CHUNK_CLEAN, TIDE_BITMAP_CHUNK_FULL, TIDE_BITMAP_CHUNK_MIXED };

uint64_t tide_bitmap_chunks(const struct tide_bitmap *bm);
/* The first chunk at or after index that is not clean; tide_bitmap_chunks() when all are. */
uint64_t tide_bitmap_next_chunk(const struct tide_bitmap *bm, uint64_t index);
/*
 * *data: 4096 bytes, valid until the bitmap changes, or in buf (aligned to 8).  The disk's last chunk is FULL when all
 * bits that exist are set.
 */
enum tide_bitmap_chunk tide_bitmap_get_chunk(const struct tide_bitmap *bm, uint64_t index,
                                             uint8_t buf[TIDE_BITMAP_CHUNK_BYTES], const uint8_t **data);
/*
 * The positions of the dirty bits, ascending, of a chunk that is stored as a list and is not FULL; 0 for other
 * chunks.
 */
unsigned tide_bitmap_get_list(const struct tide_bitmap *bm, uint64_t index, const uint16_t **positions);
/* Replace a chunk.  Bits past the end are ignored. NULL data: all dirty.  positions: ascending, at most 254. */
int tide_bitmap_put_chunk(struct tide_bitmap *bm, uint64_t index, const uint8_t *data, struct tide_error *err);
int tide_bitmap_put_list(struct tide_bitmap *bm, uint64_t index, const uint16_t *positions, unsigned n,
                         struct tide_error *err);

#endif
