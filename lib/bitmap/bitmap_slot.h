/*
 * A slot: one chunk of a dirty bitmap, 32768 bits. A clean chunk is 0, a completely dirty one a shared
 * constant, one with few dirty bits a sorted list of positions, and any other a block of 4096 bytes
 * (bitmap_block.h). So a million dirty granules scattered over 64 TiB take a few megabytes, not the 128
 * that their blocks would.
 *
 * Ranges of bits are half-open, within the chunk, and not empty. The caller must not set bits that do not
 * exist (the disk's last chunk is shorter).
 *
 * Threads: set and test may run at the same time under one lock. They need no lock on a slot that holds a
 * block, because it keeps its block while threads set. No other call may run at the same time as any call
 * on the same slot. Internal to bitmap.c.
 */
#ifndef TIDE_BITMAP_SLOT_H
#define TIDE_BITMAP_SLOT_H

#include "bitmap_block.h"

struct tide_bitmap_slot {
	uintptr_t v; /* 0: clean; lowest bit: a list; else a block */
};

struct tide_bitmap_list_slot {
	uint16_t n, room;
	uint16_t pos[]; /* ascending */
};

/* All bits set. Never written to, because no bit of it is left to set. */
extern const uint64_t tide_bitmap_slot_ones[TIDE_BITMAP_BLOCK_WORDS];

static inline struct tide_bitmap_slot tide_bitmap_slot_load(const struct tide_bitmap_slot *slot)
{
	return (struct tide_bitmap_slot){ __atomic_load_n(&slot->v, __ATOMIC_ACQUIRE) };
}

static inline bool tide_bitmap_slot_is_clean(struct tide_bitmap_slot slot)
{
	return !slot.v;
}

static inline bool tide_bitmap_slot_is_full(struct tide_bitmap_slot slot)
{
	return slot.v == (uintptr_t)tide_bitmap_slot_ones;
}

/* NULL when the slot is not a list. */
static inline struct tide_bitmap_list_slot *tide_bitmap_slot_list(struct tide_bitmap_slot slot)
{
	return slot.v & 1 ? (struct tide_bitmap_list_slot *)(slot.v - 1) : NULL;
}

/* NULL when the slot is not a block. The shared constant is a block that must not be changed. */
static inline uint64_t *tide_bitmap_slot_block(struct tide_bitmap_slot slot)
{
	return slot.v & 1 ? NULL : (uint64_t *)slot.v;
}

unsigned tide_bitmap_slot_count(struct tide_bitmap_slot slot);
bool tide_bitmap_slot_test(struct tide_bitmap_slot slot, unsigned pos);
/* The first dirty (or clean) bit at or after pos, or TIDE_BITMAP_CHUNK_BITS. */
unsigned tide_bitmap_slot_find_dirty(struct tide_bitmap_slot slot, unsigned pos);
unsigned tide_bitmap_slot_find_clean(struct tide_bitmap_slot slot, unsigned pos);
/* The chunk as words: the slot's own block, or a copy made in buf. */
const uint64_t *tide_bitmap_slot_words(struct tide_bitmap_slot slot, uint64_t buf[TIDE_BITMAP_BLOCK_WORDS]);

/*
 * Changes, which add the number of bits that became dirty or clean to *n. After a lack of memory nothing has
 * changed.
 */
int tide_bitmap_slot_set(struct tide_bitmap_slot *slot, unsigned lo, unsigned hi, uint64_t *n, struct tide_error *err);
int tide_bitmap_slot_reset(struct tide_bitmap_slot *slot, unsigned lo, unsigned hi, uint64_t *n,
                           struct tide_error *err);
int tide_bitmap_slot_merge(struct tide_bitmap_slot *slot, struct tide_bitmap_slot from, uint64_t *n,
                           struct tide_error *err);
/* Stores these bits in their smallest form; the slot must be clean. */
int tide_bitmap_slot_put(struct tide_bitmap_slot *slot, const uint64_t *block, struct tide_error *err);
int tide_bitmap_slot_put_list(struct tide_bitmap_slot *slot, const uint16_t *pos, unsigned n, struct tide_error *err);
void tide_bitmap_slot_drop(struct tide_bitmap_slot *slot);

#endif
