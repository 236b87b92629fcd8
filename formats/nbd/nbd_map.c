/*
 * NBD block status: base:allocation reports zeroes, qemu:dirty-bitmap:NAME reports dirty ranges. The last
 * answer about zeroes is kept until the next write, because callers ask for small pieces in a row.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/mem.h"
#include "base/range.h"
#include "nbd.h"

/* The most bytes of one query: lengths in the protocol have 32 bits. */
#define STATUS_MAX (UINT64_C(1) << 31)
/* The most ranges of one answer, or of one bitmap, that are accepted. */
#define RANGES_MAX (UINT64_C(1) << 24)
/*
 * The server does not report a bitmap's granularity: it is taken as the largest power of two that divides all its
 * ranges, within these limits.
 */
#define GRANULARITY_MIN UINT64_C(512)
#define GRANULARITY_MAX UINT64_C(65536)

/* The ranges of an answer, as they arrive. */
struct answer {
	const char *context;
	uint64_t off, end;             /* the answers so far end at off; end: of the query */
	uint32_t mask;                 /* flags that matter */
	struct tide_nbd_extent *items; /* zero: one of the flags is set; all: also ranges without it */
	size_t n, room;
	bool all, failed, too_many;
};

static bool grow(struct answer *a)
{
	size_t room = a->room ? a->room * 2 : 256;
	struct tide_nbd_extent *grown;

	if (a->n < a->room)
		return true;
	a->too_many = a->n >= RANGES_MAX;
	grown = a->too_many ? NULL : tide_mem_realloc(a->items, room, sizeof(*grown), NULL);
	if (!grown)
		return false;
	a->items = grown;
	a->room = room;
	return true;
}

static bool add(struct answer *a, uint64_t len, bool set)
{
	struct tide_nbd_extent *last = a->n ? &a->items[a->n - 1] : NULL;
	uint64_t off = a->off;

	a->off += len;
	if (!set && !a->all)
		return true;
	if (last && last->off + last->len == off && last->zero == set) {
		last->len += len;
		return true;
	}
	if (!grow(a))
		return false;
	/* NOLINTNEXTLINE(clang-analyzer-core.NullDereference): where there is room there are items */
	a->items[a->n++] = (struct tide_nbd_extent){ off, len, set };
	return true;
}

static int take_extents(void *data, const char *context, uint64_t off, uint32_t *entries, size_t n, int *error)
{
	struct answer *a = data;

	if (strcmp(context, a->context) || off != a->off)
		return 0;
	for (size_t i = 0; i + 1 < n && a->off < a->end && !a->failed; i += 2)
		a->failed = !add(a, TIDE_MIN(entries[i], a->end - a->off), (entries[i + 1] & a->mask) != 0);
	return 0;
}

/* Asks the server about the range; the answer covers at least its beginning. */
static int ask(struct tide_nbd *nbd, struct answer *a, uint64_t len, bool bitmap, struct tide_error *err)
{
	uint64_t off = a->off;
	struct tide_nbd_request request = {
		.command = TIDE_NBD_STATUS,
		.off = off,
		.len = len,
		.extents = { .callback = take_extents, .user_data = a },
	};

	a->end = off + len;
	if (tide_nbd_run(nbd, &request, 1, bitmap, err) < 0)
		return -1;
	if (a->too_many)
		return tide_error_set(err, TIDE_E_CORRUPT, "The NBD server describes more than %" PRIu64 " ranges",
		                      RANGES_MAX);
	if (a->failed)
		return tide_error_set_nomem(err);
	if (a->off == off)
		return tide_error_set(err, TIDE_E_CORRUPT, "The NBD server does not describe the range at %" PRIu64,
		                      off);
	return 0;
}

/* ---- where zeroes are --------------------------------------------------------------- */

void tide_nbd_forget_map(struct tide_nbd *nbd)
{
	pthread_mutex_lock(&nbd->map_lock);
	nbd->n_map = 0;
	nbd->map_changes++;
	pthread_mutex_unlock(&nbd->map_lock);
}

/* Lock held: the extent that holds off, or NULL. */
static const struct tide_nbd_extent *find(const struct tide_nbd *nbd, uint64_t off)
{
	size_t low = 0, high = nbd->n_map;

	while (low < high) {
		size_t mid = low + (high - low) / 2;
		const struct tide_nbd_extent *x = &nbd->map[mid];

		if (off < x->off)
			high = mid;
		else if (off - x->off >= x->len)
			low = mid + 1;
		else
			return x;
	}
	return NULL;
}

static void fill(struct tide_extent *out, const struct tide_nbd_extent *x, uint64_t off, uint64_t len)
{
	*out = (struct tide_extent){
		.off = off,
		.len = TIDE_MIN(len, x->off + x->len - off),
		.kind = x->zero ? TIDE_EXTENT_ZERO : TIDE_EXTENT_DATA,
	};
}

static bool look_up(struct tide_nbd *nbd, uint64_t off, uint64_t len, struct tide_extent *out, uint64_t *changes)
{
	const struct tide_nbd_extent *x;

	pthread_mutex_lock(&nbd->map_lock);
	*changes = nbd->map_changes;
	x = find(nbd, off);
	if (x)
		fill(out, x, off, len);
	pthread_mutex_unlock(&nbd->map_lock);
	return x != NULL;
}

/* Does the error mean that the server refuses to answer, rather than that the disk or the connection is broken? */
static bool is_refusal(const struct tide_error *err)
{
	return err->sys == EINVAL || err->sys == EPERM || err->sys == ENOTSUP;
}

/*
 * A server that refuses to describe a large range may describe a part: QEMU's snapshot-access node describes what its
 * bitmap contains. The other parts are taken for data, and reading them fails if the server refuses that too.
 */
static int ask_for_zeroes(struct tide_nbd *nbd, struct answer *a, uint64_t len, struct tide_error *err)
{
	uint64_t wide = TIDE_MIN(nbd->size - a->off, STATUS_MAX);
	uint64_t narrow = TIDE_MIN(tide_range_align_up(len, nbd->block_min), wide);
	struct tide_error why = TIDE_ERROR_INIT;
	int rc = -1;

	if (!atomic_load(&nbd->status_narrow)) {
		rc = ask(nbd, a, wide, false, &why);
		if (rc < 0 && is_refusal(&why)) {
			tide_error_release(&why);
			atomic_store(&nbd->status_narrow, true);
		}
	}
	if (rc < 0 && !why.code)
		rc = ask(nbd, a, narrow, false, &why);
	if (rc == 0)
		return 0;
	if (!is_refusal(&why))
		return tide_error_move(err, &why);
	tide_error_release(&why);
	return 0;
}

int tide_nbd_extent(void *state, uint64_t off, uint64_t len, struct tide_extent *out, struct tide_error *err)
{
	struct tide_nbd *nbd = state;
	struct answer a = { .context = LIBNBD_CONTEXT_BASE_ALLOCATION, .mask = 2 /* NBD_STATE_ZERO */, .all = true };
	uint64_t changes;
	int rc = 0;

	*out = (struct tide_extent){ .off = off, .len = len, .kind = TIDE_EXTENT_DATA };
	if (!nbd->can_status || look_up(nbd, off, len, out, &changes))
		return 0;
	a.off = tide_range_align_down(off, nbd->block_min);
	rc = ask_for_zeroes(nbd, &a, off + len - a.off, err);
	for (size_t i = 0; rc == 0 && i < a.n; i++) {
		if (off >= a.items[i].off && off - a.items[i].off < a.items[i].len)
			fill(out, &a.items[i], off, len);
	}
	/* Keeps the answer for the next queries. */
	pthread_mutex_lock(&nbd->map_lock);
	if (rc == 0 && changes == nbd->map_changes) {
		struct tide_nbd_extent *old = nbd->map;

		nbd->map = a.items;
		nbd->n_map = a.n;
		a.items = old;
	}
	pthread_mutex_unlock(&nbd->map_lock);
	free(a.items);
	return rc;
}

/* ---- dirty bitmaps ------------------------------------------------------------------ */

static struct tide_bitmap *build(const struct tide_nbd *nbd, const struct answer *a, struct tide_error *err)
{
	TIDE_AUTOBITMAP struct tide_bitmap *bm = NULL;
	uint64_t granularity = GRANULARITY_MAX, edges = 0;
	struct tide_bitmap *result;

	for (size_t i = 0; i < a->n; i++) {
		uint64_t end = a->items[i].off + a->items[i].len;

		edges |= a->items[i].off | (end < nbd->size ? end : 0);
	}
	while (granularity > GRANULARITY_MIN && edges % granularity)
		granularity /= 2;
	bm = tide_bitmap_new(nbd->size, granularity, err);
	for (size_t i = 0; bm && i < a->n; i++) {
		if (tide_bitmap_set(bm, a->items[i].off, a->items[i].len, err) < 0)
			return NULL;
	}
	result = bm;
	bm = NULL;
	return result;
}

static struct tide_bitmap *read_all(struct tide_nbd *nbd, const char *context, struct tide_error *err)
{
	struct answer a = { .context = context, .mask = 1 };
	struct tide_bitmap *bm = NULL;
	int rc = 0;

	while (rc == 0 && a.off < nbd->size)
		rc = ask(nbd, &a, TIDE_MIN(nbd->size - a.off, STATUS_MAX), true, err);
	if (rc == 0)
		bm = build(nbd, &a, err);
	free(a.items);
	return bm;
}

int tide_nbd_bitmap_read(void *state, size_t index, struct tide_bitmap **out, struct tide_error *err)
{
	struct tide_nbd *nbd = state;
	TIDE_AUTOFREE char *context = tide_mem_printf(err, TIDE_NBD_BITMAP_PREFIX "%s", nbd->bitmaps[index]);
	struct tide_error why = TIDE_ERROR_INIT;

	*out = NULL;
	if (!context)
		return -1;
	*out = read_all(nbd, context, &why);
	if (!*out && is_refusal(&why) && !atomic_exchange(&nbd->bitmaps_apart, true)) {
		tide_error_release(&why);
		*out = read_all(nbd, context, &why);
	}
	if (!*out)
		tide_error_move(err, &why);
	if (*out)
		return 0;
	return tide_error_wrap(err, "The bitmap '%s' could not be read from the NBD server", nbd->bitmaps[index]);
}
