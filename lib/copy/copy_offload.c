#include "copy_move.h"

#include <fcntl.h>

#include "base/range.h"
#include "base/sysio.h"

void tide_copy_move_init(struct tide_copy_mover *m, struct tide_image *target, enum tide_copy_way way, bool reads_zero)
{
	*m = (struct tide_copy_mover){
		.target = target,
		.way = way,
		.reads_zero = reads_zero && tide_image_info(target)->cluster_size == 0,
		.block = way == TIDE_COPY_WAY_REFLINK ? tide_copy_way_block(tide_image_fd(target)) : 1,
	};
}

static bool is_refused(const struct tide_copy_mover *m, int fd)
{
	for (size_t i = 0; i < m->n_refused; i++) {
		if (m->refused[i] == fd)
			return true;
	}
	return false;
}

/* Is there a chance?  Then nothing need be asked of the target in vain. */
static bool is_movable(const struct tide_copy_mover *m, const struct tide_copy_stretch *s)
{
	for (size_t i = 0; i < s->n; i++) {
		const struct tide_copy_part *p = &s->part[i];

		if (p->zero)
			continue;
		if (p->fd < 0 || is_refused(m, p->fd) || p->at % m->block || p->off % m->block)
			return false;
	}
	return s->n > 0;
}

/* Less than a block, at the end of the disk. */
static bool copy_bytes(int source, uint64_t from, uint64_t len, int target, uint64_t to)
{
	uint8_t buf[65536];

	return len <= sizeof(buf) && tide_sysio_pread(source, buf, len, from, true, NULL) == 0 &&
	       tide_sysio_pwrite(target, buf, len, to, NULL) == 0;
}

static bool move_data(struct tide_copy_mover *m, const struct tide_copy_part *p, uint64_t off, uint64_t len, int target,
                      uint64_t to)
{
	uint64_t from = p->at + (off - p->off), rest = len % m->block;
	enum tide_copy_answer answer = TIDE_COPY_DONE;

	if (to % m->block || off % m->block)
		return false;
	if (len > rest)
		answer = m->way == TIDE_COPY_WAY_REFLINK ? tide_copy_way_reflink(p->fd, from, len - rest, target, to)
		                                         : tide_copy_way_kernel(p->fd, from, len - rest, target, to);
	if (answer == TIDE_COPY_NEVER && m->n_refused < TIDE_COPY_REFUSED_MAX)
		m->refused[m->n_refused++] = p->fd;
	return answer == TIDE_COPY_DONE &&
	       (!rest || copy_bytes(p->fd, from + len - rest, rest, target, to + len - rest));
}

/* The parts from part[*i] on that lie in this place; *i: where to go on. */
static bool fill(struct tide_copy_mover *m, const struct tide_copy_stretch *s, const struct tide_extent *place,
                 size_t *i)
{
	uint64_t pos = place->off, end = place->off + place->len;

	for (; pos < end; (*i)++) {
		const struct tide_copy_part *p = &s->part[*i];
		uint64_t stop = TIDE_MIN(p->off + p->len, end), to = place->map_off + (pos - place->off);

		if (!p->zero && !move_data(m, p, pos, stop - pos, place->map_fd, to))
			return false;
		if (p->zero && !m->reads_zero && tide_sysio_zero(place->map_fd, to, stop - pos, true, NULL) < 0)
			return false;
		pos = stop;
		if (stop < p->off + p->len)
			break;
	}
	return true;
}

bool tide_copy_move(struct tide_copy_mover *m, const struct tide_copy_stretch *s)
{
	uint64_t pos = s->off, end = s->off + s->len;
	size_t i = 0;

	if (!is_movable(m, s))
		return false;
	while (pos < end) {
		struct tide_extent place;

		if (tide_image_write_begin(m->target, pos, end - pos, &place, NULL) != 0)
			return false;
		if (!fill(m, s, &place, &i)) {
			tide_image_write_abort(m->target, &place);
			return false;
		}
		if (tide_image_write_commit(m->target, &place, NULL) < 0)
			return false;
		if (m->way == TIDE_COPY_WAY_KERNEL)
			sync_file_range(place.map_fd, (off_t)place.map_off, (off_t)place.len, SYNC_FILE_RANGE_WRITE);
		pos += place.len;
	}
	return true;
}
