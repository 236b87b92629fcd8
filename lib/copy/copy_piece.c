#include "copy_impl.h"
#include "base/error.h"
#include "base/range.h"
#include "base/sysio.h"

#define ZERO_BLOCK 65536u

static int write_run(struct tide_copy_worker *w, const uint8_t *buf, uint64_t off, uint64_t len, struct tide_error *err)
{
	struct tide_image *target = w->e->copy->target;

	while (len) {
		struct tide_extent place;
		int rc = tide_image_write_begin(target, off, len, &place, err);

		if (rc > 0)
			return tide_image_write(target, buf, off, len, err);
		if (rc < 0)
			return -1;
		if (tide_copy_put(w->e, place.map_fd, buf, place.len, place.map_off, err) < 0) {
			tide_image_write_abort(target, &place);
			return -1;
		}
		if (tide_image_write_commit(target, &place, err) < 0)
			return -1;
		buf += place.len;
		off += place.len;
		len -= place.len;
	}
	return 0;
}

static int zero_run(struct tide_copy_worker *w, uint64_t off, uint64_t len, struct tide_error *err)
{
	if (w->e->copy->target_reads_zero || len == 0)
		return 0;
	return tide_image_zero(w->e->copy->target, off, len, true, err);
}

/* What is looked at for zeroes. */
static uint64_t zero_block(const struct tide_copy_worker *w)
{
	return TIDE_MAX(w->e->align, ZERO_BLOCK);
}

bool tide_copy_has_zeroes(const struct tide_copy_worker *w, const uint8_t *buf, uint64_t len)
{
	uint64_t block = zero_block(w);

	for (uint64_t pos = 0; pos < len; pos += block) {
		if (tide_sysio_is_zero(buf + pos, TIDE_MIN(block, len - pos)))
			return true;
	}
	return false;
}

int tide_copy_store(struct tide_copy_worker *w, const uint8_t *buf, uint64_t off, uint64_t len, struct tide_error *err)
{
	uint64_t block = zero_block(w), pos = 0;

	while (pos < len) {
		uint64_t end = pos;
		bool zero = false;

		while (end < len) {
			uint64_t n = TIDE_MIN(block, len - end);
			bool z = tide_sysio_is_zero(buf + end, n);

			if (end > pos && z != zero)
				break;
			zero = z;
			end += n;
		}
		if ((zero ? zero_run(w, off + pos, end - pos, err)
		          : write_run(w, buf + pos, off + pos, end - pos, err)) < 0)
			return -1;
		pos = end;
	}
	return 0;
}

static int copy_stretch(struct tide_copy_worker *w, bool *reading, struct tide_error *err)
{
	struct tide_copy_stretch *s = &w->stretch;

	if (w->moves && tide_copy_move(&w->mover, s))
		return 0;
	if (tide_copy_get(w->e, s, w->buf, err) < 0)
		return -1;
	*reading = false;
	return tide_copy_store(w, w->buf, s->off, s->len, err);
}

int tide_copy_piece(struct tide_copy_worker *w, uint64_t off, uint64_t len, bool *reading, struct tide_error *err)
{
	struct tide_copy_stretch *s = &w->stretch;

	for (uint64_t end = off + len; off < end; off += s->len + s->zeroes) {
		*reading = true;
		if (tide_copy_look(w->e->copy->source, w->e->align, off, end - off, s, err) < 0)
			return -1;
		if (s->len && copy_stretch(w, reading, err) < 0)
			return -1;
		*reading = false;
		if (zero_run(w, off + s->len, s->zeroes, err) < 0)
			return -1;
	}
	return 0;
}

int tide_copy_piece_pack(struct tide_copy_worker *w, uint64_t number, uint64_t off, uint64_t len, bool *reading,
                         struct tide_error *err)
{
	struct tide_copy_engine *e = w->e;
	struct tide_copy_stretch *s = &w->stretch;

	tide_copy_pack_begin(w->pack, off);
	for (uint64_t pos = 0; pos < len; pos += s->len + s->zeroes) {
		*reading = true;
		if (tide_copy_look(e->copy->source, e->align, off + pos, len - pos, s, err) < 0 ||
		    (s->len && tide_copy_get(e, s, w->buf + pos, err) < 0))
			return -1;
		*reading = false;
		if (tide_copy_pack_add_data(w->pack, w->buf + pos, s->len, err) < 0)
			return -1;
		tide_copy_pack_add_zeroes(w->pack, s->zeroes);
	}
	if (!tide_copy_wait_turn(e, number))
		return 1;
	return tide_copy_pack_store(w->pack, e->copy->target_reads_zero, err);
}
