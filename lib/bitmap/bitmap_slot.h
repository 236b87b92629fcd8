/*
 * What a dirty bitmap keeps of one chunk, 32768 bits: nothing when all are clean, a shared
 * constant when all are dirty, a sorted list of positions when few are dirty, else a block of
 * 4096 bytes (bitmap_block.h).  So a million dirty granules scattered over 64 TiB take a few
 * megabytes, not the 128 that their blocks would.
 *
 * Ranges of bits are half-open, within the chunk, and not empty.  Bits that do not exist (the
 * disk's last chunk is shorter) are the caller's affair.
 *
 * Threads: set and test may run side by side under one lock, and without it where they meet a
 * block, for what holds a block keeps it while threads set.  The rest wants the slot alone.
 * Internal to bitmap.c.
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

/* All bits set.  Never written to: whoever finds it has nothing left to set. */
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

/* NULL: it is none. */
static inline struct tide_bitmap_list_slot *tide_bitmap_slot_list(struct tide_bitmap_slot slot)
{
	return slot.v & 1 ? (struct tide_bitmap_list_slot *)(slot.v - 1) : NULL;
}

/* NULL: it is none; the constant is one that must not be changed. */
static inline uint64_t *tide_bitmap_slot_block(struct tide_bitmap_slot slot)
{
	return slot.v & 1 ? NULL : (uint64_t *)slot.v;
}

unsigned tide_bitmap_slot_count(struct tide_bitmap_slot slot);
bool tide_bitmap_slot_test(struct tide_bitmap_slot slot, unsigned pos);
/* The first dirty (or clean) bit at or after pos, or TIDE_BITMAP_CHUNK_BITS. */
unsigned tide_bitmap_slot_find_dirty(struct tide_bitmap_slot slot, unsigned pos);
unsigned tide_bitmap_slot_find_clean(struct tide_bitmap_slot slot, unsigned pos);
/* The chunk as words: its own, or put together in buf. */
const uint64_t *tide_bitmap_slot_words(struct tide_bitmap_slot slot, uint64_t buf[TIDE_BITMAP_BLOCK_WORDS]);

/* Changes: how many bits became dirty or clean is added to *n.  Out of memory, nothing has changed. */
int tide_bitmap_slot_set(struct tide_bitmap_slot *slot, unsigned lo, unsigned hi, uint64_t *n, struct tide_error *err);
int tide_bitmap_slot_reset(struct tide_bitmap_slot *slot, unsigned lo, unsigned hi, uint64_t *n,
                           struct tide_error *err);
int tide_bitmap_slot_merge(struct tide_bitmap_slot *slot, struct tide_bitmap_slot from, uint64_t *n,
                           struct tide_error *err);
/* The smallest form of these bits; the slot has to be clean. */
int tide_bitmap_slot_put(struct tide_bitmap_slot *slot, const uint64_t *block, struct tide_error *err);
int tide_bitmap_slot_put_list(struct tide_bitmap_slot *slot, const uint16_t *pos, unsigned n, struct tide_error *err);
void tide_bitmap_slot_drop(struct tide_bitmap_slot *slot);

#endif
