/*
 * One chunk of a dirty bitmap in its smallest form: nothing, a list of positions, a block of bits,
 * or the shared constant for "all dirty" (bitmap_slot.h). Changes move a slot from one form to
 * another as bits are added or removed.
 */
#include "bitmap_slot.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

#define LIST_MAX   TIDE_BITMAP_LIST_MAX
#define LIST_MIN   6u
#define CHUNK_BITS TIDE_BITMAP_CHUNK_BITS

const uint64_t tide_bitmap_slot_ones[TIDE_BITMAP_BLOCK_WORDS] = { [0 ... TIDE_BITMAP_BLOCK_WORDS - 1] = UINT64_MAX };
static const uint64_t zeroes[TIDE_BITMAP_BLOCK_WORDS];

typedef struct tide_bitmap_list_slot list_slot;

static void store(struct tide_bitmap_slot *slot, uintptr_t v)
{
	__atomic_store_n(&slot->v, v, __ATOMIC_RELEASE);
}

/* ---- lists ------------------------------------------------------------------------- */

/* The room is chosen so that the allocation is a power of two in bytes. */
static list_slot *list_new(unsigned n, struct tide_error *err)
{
	unsigned room = LIST_MIN;
	list_slot *list;

	while (room < n)
		room = room * 2 + 2;
	list = tide_mem_alloc(1, sizeof(*list) + room * sizeof(list->pos[0]), err);
	if (list)
		list->room = (uint16_t)room;
	return list;
}

/* The index of the first position at or after pos. */
static unsigned list_find(const list_slot *list, unsigned pos)
{
	unsigned lo = 0, hi = list->n;

	while (lo < hi) {
		unsigned mid = (lo + hi) / 2;

		if (list->pos[mid] < pos)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

static bool list_has(const list_slot *list, unsigned pos)
{
	unsigned i = list_find(list, pos);

	return i < list->n && list->pos[i] == pos;
}

/* Replaces the entries [from, to) by the positions lo … hi - 1. */
static void list_splice(list_slot *list, unsigned from, unsigned to, unsigned lo, unsigned hi)
{
	memmove(list->pos + from + (hi - lo), list->pos + to, (list->n - to) * sizeof(list->pos[0]));
	for (unsigned i = lo; i < hi; i++)
		list->pos[from + i - lo] = (uint16_t)i;
	list->n = (uint16_t)(list->n - (to - from) + (hi - lo));
}

static void list_to_words(const list_slot *list, uint64_t *words)
{
	for (unsigned i = 0; i < list->n; i++)
		words[list->pos[i] / 64] |= htole64(UINT64_C(1) << list->pos[i] % 64);
}

/* Makes a list of the set bits of a block, of which there are at most LIST_MAX. */
static void list_from_words(list_slot *list, const uint64_t *words)
{
	for (unsigned w = 0; w < TIDE_BITMAP_BLOCK_WORDS; w++) {
		for (uint64_t v = le64toh(words[w]); v; v &= v - 1)
			list->pos[list->n++] = (uint16_t)(w * 64 + (unsigned)__builtin_ctzll(v));
	}
}

static void list_union(list_slot *to, const list_slot *a, const list_slot *b)
{
	unsigned i = 0, k = 0;

	while (i < a->n || k < b->n) {
		unsigned x = i < a->n ? a->pos[i] : CHUNK_BITS, y = k < b->n ? b->pos[k] : CHUNK_BITS;

		to->pos[to->n++] = (uint16_t)TIDE_MIN(x, y);
		i += x <= y;
		k += y <= x;
	}
}

/* ---- queries ----------------------------------------------------------------------- */

unsigned tide_bitmap_slot_count(struct tide_bitmap_slot slot)
{
	const list_slot *list = tide_bitmap_slot_list(slot);

	if (list)
		return list->n;
	if (tide_bitmap_slot_is_full(slot))
		return CHUNK_BITS;
	return slot.v ? tide_bitmap_block_count(tide_bitmap_slot_block(slot)) : 0;
}

bool tide_bitmap_slot_test(struct tide_bitmap_slot slot, unsigned pos)
{
	const list_slot *list = tide_bitmap_slot_list(slot);
	const uint64_t *block = tide_bitmap_slot_block(slot);

	if (list)
		return list_has(list, pos);
	return block && (le64toh(__atomic_load_n(&block[pos / 64], __ATOMIC_RELAXED)) >> (pos % 64) & 1);
}

unsigned tide_bitmap_slot_find_dirty(struct tide_bitmap_slot slot, unsigned pos)
{
	const list_slot *list = tide_bitmap_slot_list(slot);
	unsigned i;

	if (!slot.v)
		return CHUNK_BITS;
	if (!list)
		return tide_bitmap_block_find_not(tide_bitmap_slot_block(slot), pos, 0);
	i = list_find(list, pos);
	return i < list->n ? list->pos[i] : CHUNK_BITS;
}

unsigned tide_bitmap_slot_find_clean(struct tide_bitmap_slot slot, unsigned pos)
{
	const list_slot *list = tide_bitmap_slot_list(slot);

	if (!slot.v)
		return pos;
	if (tide_bitmap_slot_is_full(slot))
		return CHUNK_BITS;
	if (!list)
		return tide_bitmap_block_find_not(tide_bitmap_slot_block(slot), pos, UINT64_MAX);
	for (unsigned i = list_find(list, pos); i < list->n && list->pos[i] == pos; i++)
		pos++;
	return pos;
}

const uint64_t *tide_bitmap_slot_words(struct tide_bitmap_slot slot, uint64_t buf[TIDE_BITMAP_BLOCK_WORDS])
{
	const list_slot *list = tide_bitmap_slot_list(slot);

	if (!list)
		return slot.v ? tide_bitmap_slot_block(slot) : zeroes;
	memset(buf, 0, TIDE_BITMAP_CHUNK_BYTES);
	list_to_words(list, buf);
	return buf;
}

/* ---- changing ---------------------------------------------------------------------- */

void tide_bitmap_slot_drop(struct tide_bitmap_slot *slot)
{
	list_slot *list = tide_bitmap_slot_list(*slot);

	if (list)
		free(list);
	else if (!tide_bitmap_slot_is_full(*slot))
		free(tide_bitmap_slot_block(*slot));
	slot->v = 0;
}

/* Replaces a list, or an empty slot, by a block with the same bits. */
static int to_block(struct tide_bitmap_slot *slot, struct tide_error *err)
{
	list_slot *list = tide_bitmap_slot_list(*slot);
	uint64_t *block = tide_mem_alloc(1, TIDE_BITMAP_CHUNK_BYTES, err);

	if (!block)
		return -1;
	if (list)
		list_to_words(list, block);
	store(slot, (uintptr_t)block);
	free(list);
	return 0;
}

static int list_set(struct tide_bitmap_slot *slot, unsigned lo, unsigned hi, uint64_t *n, struct tide_error *err)
{
	list_slot *list = tide_bitmap_slot_list(*slot), *old = list;
	unsigned had = list ? list->n : 0, from = list ? list_find(list, lo) : 0, to = list ? list_find(list, hi) : 0;

	if (to - from == hi - lo)
		return 0;
	if (!list || had - (to - from) + (hi - lo) > list->room) {
		list = list_new(had - (to - from) + (hi - lo), err);
		if (!list)
			return -1;
		list->n = (uint16_t)had;
		if (old)
			memcpy(list->pos, old->pos, had * sizeof(list->pos[0]));
	}
	list_splice(list, from, to, lo, hi);
	*n += hi - lo - (to - from);
	if (list != old) {
		store(slot, (uintptr_t)list + 1);
		free(old);
	}
	return 0;
}

int tide_bitmap_slot_set(struct tide_bitmap_slot *slot, unsigned lo, unsigned hi, uint64_t *n, struct tide_error *err)
{
	struct tide_bitmap_slot now = tide_bitmap_slot_load(slot);
	uint64_t *block = tide_bitmap_slot_block(now);

	if (tide_bitmap_slot_is_full(now))
		return 0;
	if (tide_bitmap_slot_is_clean(now) && hi - lo == CHUNK_BITS) {
		store(slot, (uintptr_t)tide_bitmap_slot_ones);
		*n += CHUNK_BITS;
		return 0;
	}
	if (!block) {
		if (tide_bitmap_slot_count(now) + (hi - lo) <= LIST_MAX)
			return list_set(slot, lo, hi, n, err);
		if (to_block(slot, err) < 0)
			return -1;
		block = tide_bitmap_slot_block(*slot);
	}
	*n += tide_bitmap_block_set(block, lo, hi);
	return 0;
}

static void list_reset(struct tide_bitmap_slot *slot, list_slot *list, unsigned lo, unsigned hi, uint64_t *n)
{
	unsigned from = list_find(list, lo), to = list_find(list, hi);

	*n += to - from;
	list_splice(list, from, to, 0, 0);
	if (list->n == 0)
		tide_bitmap_slot_drop(slot);
}

int tide_bitmap_slot_reset(struct tide_bitmap_slot *slot, unsigned lo, unsigned hi, uint64_t *n, struct tide_error *err)
{
	list_slot *list = tide_bitmap_slot_list(*slot);
	uint64_t *block;
	unsigned removed;

	if (!slot->v)
		return 0;
	if (list) {
		list_reset(slot, list, lo, hi, n);
		return 0;
	}
	if (lo == 0 && hi == CHUNK_BITS) {
		*n += tide_bitmap_slot_count(*slot);
		tide_bitmap_slot_drop(slot);
		return 0;
	}
	if (tide_bitmap_slot_is_full(*slot)) {
		block = tide_mem_alloc(1, TIDE_BITMAP_CHUNK_BYTES, err);
		if (!block)
			return -1;
		memset(block, 0xff, TIDE_BITMAP_CHUNK_BYTES);
		slot->v = (uintptr_t)block;
	}
	block = tide_bitmap_slot_block(*slot);
	removed = tide_bitmap_block_reset(block, lo, hi);
	*n += removed;
	if (removed && tide_bitmap_block_is_clean(block))
		tide_bitmap_slot_drop(slot);
	return 0;
}

int tide_bitmap_slot_put_list(struct tide_bitmap_slot *slot, const uint16_t *pos, unsigned n, struct tide_error *err)
{
	list_slot *list = list_new(n, err);

	if (!list)
		return -1;
	list->n = (uint16_t)n;
	memcpy(list->pos, pos, n * sizeof(*pos));
	store(slot, (uintptr_t)list + 1);
	return 0;
}

int tide_bitmap_slot_put(struct tide_bitmap_slot *slot, const uint64_t *block, struct tide_error *err)
{
	unsigned n = tide_bitmap_block_count(block);
	uint64_t *copy;
	list_slot *list;

	if (n == 0)
		return 0;
	if (n == CHUNK_BITS) {
		store(slot, (uintptr_t)tide_bitmap_slot_ones);
		return 0;
	}
	if (n <= LIST_MAX) {
		list = list_new(n, err);
		if (!list)
			return -1;
		list_from_words(list, block);
		store(slot, (uintptr_t)list + 1);
		return 0;
	}
	copy = tide_mem_realloc(NULL, 1, TIDE_BITMAP_CHUNK_BYTES, err);
	if (!copy)
		return -1;
	memcpy(copy, block, TIDE_BITMAP_CHUNK_BYTES);
	store(slot, (uintptr_t)copy);
	return 0;
}

/* ---- merging ----------------------------------------------------------------------- */

/* Merges two lists; old is the slot's. */
static int merge_lists(struct tide_bitmap_slot *slot, list_slot *old, const list_slot *from, uint64_t *n,
                       struct tide_error *err)
{
	list_slot *both = list_new((unsigned)old->n + from->n, err);

	if (!both)
		return -1;
	list_union(both, old, from);
	*n += (uint64_t)both->n - old->n;
	store(slot, (uintptr_t)both + 1);
	free(old);
	return 0;
}

/* Adds the dirty bits of `from` to a block. */
static void merge_words(uint64_t *to, struct tide_bitmap_slot from, uint64_t *n)
{
	uint64_t buf[TIDE_BITMAP_BLOCK_WORDS];
	const uint64_t *words = tide_bitmap_slot_words(from, buf);

	for (unsigned w = 0; w < TIDE_BITMAP_BLOCK_WORDS; w++) {
		if (!(words[w] & ~to[w]))
			continue;
		*n += tide_bitmap_word_count(words[w] & ~to[w]);
		to[w] |= words[w];
	}
}

int tide_bitmap_slot_merge(struct tide_bitmap_slot *slot, struct tide_bitmap_slot from, uint64_t *n,
                           struct tide_error *err)
{
	const list_slot *list = tide_bitmap_slot_list(from);
	const uint64_t *block = tide_bitmap_slot_block(from);
	list_slot *own = tide_bitmap_slot_list(*slot);

	if (!from.v || tide_bitmap_slot_is_full(*slot))
		return 0;
	if (tide_bitmap_slot_is_full(from)) {
		*n += CHUNK_BITS - tide_bitmap_slot_count(*slot);
		tide_bitmap_slot_drop(slot);
		store(slot, from.v);
		return 0;
	}
	if (!slot->v) {
		if ((list && tide_bitmap_slot_put_list(slot, list->pos, list->n, err) < 0) ||
		    (block && tide_bitmap_slot_put(slot, block, err) < 0))
			return -1;
		*n += tide_bitmap_slot_count(from);
		return 0;
	}
	if (own && list && own->n + list->n <= (int)LIST_MAX)
		return merge_lists(slot, own, list, n, err);
	if (own && to_block(slot, err) < 0)
		return -1;
	merge_words(tide_bitmap_slot_block(*slot), from, n);
	return 0;
}
