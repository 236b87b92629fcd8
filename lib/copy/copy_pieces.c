/*
 * Copies pieces, one at a time or several at once.
 *
 * Scattered dirty granules need a read each, but their clusters are next to each other in the
 * target: a batch is written there with one large write that keeps the disk busy.  A batch holds
 * plain data only.  Whenever something else comes up (zeroes, errors, places that are taken), the
 * pieces are copied one by one from the beginning.  That is safe at any point of the batch: each
 * place is committed or aborted, and its worker still owns the pieces.
 */
#include "base/error.h"
#include "base/range.h"
#include "base/sysio.h"
#include "copy_impl.h"

#define PLACES (2u * TIDE_COPY_BATCH)

/* *reading stays true only while the source can be the one that fails. */
static int copy_stretch(struct tide_copy_worker *w, bool *reading, struct tide_error *err)
{
	struct tide_copy_stretch *s = &w->stretch;

	if (w->moves && tide_copy_offload(&w->mover, s))
		return 0;
	if (tide_copy_read(w->e, s, w->buf, err) < 0)
		return -1;
	*reading = false;
	return tide_copy_write(w, w->buf, s->off, s->len, err);
}

int tide_copy_pieces_one(struct tide_copy_worker *w, uint64_t off, uint64_t len, bool *reading, struct tide_error *err)
{
	struct tide_copy_stretch *s = &w->stretch;

	for (uint64_t end = off + len; off < end; off += s->len + s->zeroes) {
		*reading = true;
		if (tide_copy_map(w->e->copy->source, w->e->align, off, end - off, s, err) < 0)
			return -1;
		if (s->len && copy_stretch(w, reading, err) < 0)
			return -1;
		*reading = false;
		if (tide_copy_write_zeroes(w, off + s->len, s->zeroes, err) < 0)
			return -1;
	}
	return 0;
}

/* ---- Several at once ---- */

/* Reads all pieces into the worker's buffer, one after the other; take_batch has made sure that they fit. */
static bool gather(struct tide_copy_worker *w, const struct tide_copy_batch *b)
{
	struct tide_image *source = w->e->copy->source;
	uint8_t *buf = w->buf;

	for (size_t i = 0; i < b->n; i++) {
		const struct tide_copy_piece *p = &b->piece[i];

		if (tide_copy_map(source, w->e->align, p->off, p->len, &w->stretch, NULL) < 0 ||
		    w->stretch.len != p->len || tide_copy_read(w->e, &w->stretch, buf, NULL) < 0)
			return false;
		buf += p->len;
	}
	return true;
}

/* Aborts place[from] and those after it.  A place whose commit has failed is not aborted (driver.h). */
static void abort_from(struct tide_copy_worker *w, const struct tide_extent *place, size_t from, size_t n)
{
	while (n-- > from)
		tide_image_write_abort(w->e->copy->target, &place[n]);
}

/*
 * Reserves *n places for all pieces, in order.  place_lock keeps other batches out, so that a target that allocates in
 * order puts them next to each other.
 */
static bool find_places(struct tide_copy_worker *w, const struct tide_copy_batch *b, struct tide_extent *place,
                        size_t *n)
{
	struct tide_image *target = w->e->copy->target;
	bool found = true;

	*n = 0;
	pthread_mutex_lock(&w->e->place_lock);
	for (size_t i = 0; i < b->n && found; i++) {
		const struct tide_copy_piece *p = &b->piece[i];

		for (uint64_t done = 0; done < p->len && found; done += place[(*n)++].len) {
			found = *n < PLACES &&
			        tide_image_write_begin(target, p->off + done, p->len - done, &place[*n], NULL) == 0;
			if (!found)
				break;
		}
	}
	if (!found)
		abort_from(w, place, 0, *n);
	pthread_mutex_unlock(&w->e->place_lock);
	return found;
}

/* Writes the buffer; adjoining places are written at once. */
static bool fill_places(struct tide_copy_worker *w, const struct tide_extent *place, size_t n)
{
	const uint8_t *buf = w->buf;

	for (size_t i = 0, k; i < n; i = k) {
		uint64_t len = place[i].len;

		for (k = i + 1;
		     k < n && place[k].map_fd == place[i].map_fd && place[k].map_off == place[i].map_off + len; k++)
			len += place[k].len;
		if (tide_copy_write_file(w->e, place[i].map_fd, buf, len, place[i].map_off, NULL) < 0)
			return false;
		buf += len;
	}
	return true;
}

static bool has_zeroes(const struct tide_copy_worker *w, const struct tide_copy_batch *b)
{
	const uint8_t *buf = w->buf;

	for (size_t i = 0; i < b->n; buf += b->piece[i++].len) {
		if (tide_copy_write_has_zeroes(w, buf, b->piece[i].len))
			return true;
	}
	return false;
}

static bool store_each(struct tide_copy_worker *w, const struct tide_copy_batch *b)
{
	const uint8_t *buf = w->buf;

	for (size_t i = 0; i < b->n; buf += b->piece[i++].len) {
		if (tide_copy_write(w, buf, b->piece[i].off, b->piece[i].len, NULL) < 0)
			return false;
	}
	return true;
}

bool tide_copy_pieces_batch(struct tide_copy_worker *w, const struct tide_copy_batch *b)
{
	struct tide_extent place[PLACES];
	size_t n;

	if (!gather(w, b))
		return false;
	if (has_zeroes(w, b))
		return store_each(w, b);
	if (!find_places(w, b, place, &n))
		return false;
	if (!fill_places(w, place, n)) {
		abort_from(w, place, 0, n);
		return false;
	}
	for (size_t i = 0; i < n; i++) {
		if (tide_image_write_commit(w->e->copy->target, &place[i], NULL) < 0) {
			abort_from(w, place, i + 1, n);
			return false;
		}
	}
	return true;
}
