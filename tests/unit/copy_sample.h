/*
 * Copies for tests: a scripted source with a random layout, a target, and what the target has to hold afterwards.
 */
#ifndef TIDE_COPY_SAMPLE_H
#define TIDE_COPY_SAMPLE_H

#include "base/error.h"
#include "base/mem.h"
#include "base/range.h"
#include "copy/copy.h"
#include "memory_driver.h"
#include "unit.h"

#define K        1024u
#define DISK_MAX (24u << 20)

struct sample {
	struct memory_disk *below, *from, *to; /* below: under the source, or NULL */
	struct tide_sink sink;
	struct tide_copy copy;
	struct tide_bitmap *plan; /* what copy.todo was before the copy */
	uint8_t *source, *before; /* what the disks hold before the copy; of the target's size both */
	struct tide_error err;
};

static inline uint64_t sample_random(uint64_t *state, uint64_t limit)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return (*state >> 8) % limit;
}

/* Runs of data, of zero bytes that are data, of zeroes and of holes. */
static inline void sample_fill(struct memory_disk *disk, uint64_t step, unsigned seed)
{
	uint64_t size = memory_disk_size(disk), state = seed * 7919u + 1, len;

	for (uint64_t off = 0; off < size; off += len) {
		len = step * (1 + sample_random(&state, 40));
		len = TIDE_MIN(len, size - off);
		switch (sample_random(&state, 6)) {
		case 0:
			memory_disk_set_kind(disk, off, len, TIDE_EXTENT_ZERO);
			break;
		case 1:
			memory_disk_set_kind(disk, off, len, TIDE_EXTENT_HOLE);
			break;
		case 2:
			memory_disk_set_kind(disk, off, len, TIDE_EXTENT_DATA);
			break;
		default:
			memory_disk_fill(disk, off, len, seed);
		}
	}
}

/* The content of a disk over `below`, up to the end of buf, computed from the extents alone. */
static inline void sample_model(struct memory_disk *disk, struct memory_disk *below, uint8_t *buf, uint64_t len)
{
	memset(buf, 0, len);
	for (uint64_t off = 0; off < TIDE_MIN(len, memory_disk_size(disk)); off += 512) {
		uint64_t n = TIDE_MIN(512, TIDE_MIN(len, memory_disk_size(disk)) - off);
		enum tide_extent_kind kind = memory_disk_kind(disk, off);

		if (kind == TIDE_EXTENT_DATA)
			memcpy(buf + off, memory_disk_bytes(disk) + off, n);
		else if (kind == TIDE_EXTENT_HOLE && below && off < memory_disk_size(below))
			memcpy(buf + off, memory_disk_bytes(below) + off, TIDE_MIN(n, memory_disk_size(below) - off));
	}
}

/* Opens both disks, and plans to copy what is dirty (NULL: all) in the units. */
static inline bool sample_open(struct sample *s, uint64_t unit, const struct tide_bitmap *dirty)
{
	static const struct tide_session_options none;
	uint64_t size = memory_disk_size(s->to);

	tide_event_init(&s->sink, &none);
	s->source = malloc(size);
	s->before = malloc(size);
	sample_model(s->from, s->below, s->source, size);
	sample_model(s->to, NULL, s->before, size);
	s->copy.unit = unit;
	s->copy.sink = &s->sink;
	if (!CHECK_OK(memory_disk_open(s->from, false, &s->copy.source, &s->err), &s->err) ||
	    !CHECK_OK(memory_disk_open(s->to, true, &s->copy.target, &s->err), &s->err))
		return false;
	s->copy.todo = tide_copy_plan(size, unit, dirty, &s->err);
	if (!CHECK_PTR(s->copy.todo, &s->err))
		return false;
	s->plan = tide_bitmap_copy(s->copy.todo, &s->err);
	return CHECK_PTR(s->plan, &s->err);
}

/* A source without a backing image, filled at random in steps, and a target; all of it is to be copied. */
static inline bool sample_begin(struct sample *s, const struct memory_script *from, const struct memory_script *to,
                                uint64_t step, uint64_t unit)
{
	*s = (struct sample){ .err = TIDE_ERROR_INIT };
	s->from = memory_disk_new(unit_path("from"), from, &s->err);
	if (!CHECK_PTR(s->from, &s->err))
		return false;
	sample_fill(s->from, step, 1);
	s->to = memory_disk_new(unit_path("to"), to, &s->err);
	s->copy.target_reads_zero = true;
	return CHECK_PTR(s->to, &s->err) && sample_open(s, unit, NULL);
}

/* Each unit that has been copied is the source's, each that was not planned is as before. */
static inline void sample_check(struct sample *s)
{
	uint64_t size = memory_disk_size(s->to), unit = s->copy.unit, left = 0;
	TIDE_AUTOFREE uint8_t *now = malloc(size);

	if (!CHECK_OK(tide_image_read(s->copy.target, now, 0, size, &s->err), &s->err))
		return;
	for (uint64_t off = 0; off < size; off += unit) {
		uint64_t len = TIDE_MIN(unit, size - off);
		bool planned = tide_bitmap_test(s->plan, off), todo = tide_bitmap_test(s->copy.todo, off);
		const uint8_t *model = planned ? s->source : s->before;

		CHECK(planned || !todo);
		left += todo ? unit : 0;
		if (!todo && !CHECK_MEM(now + off, model + off, len)) {
			printf("# at %" PRIu64 "\n", off);
			return;
		}
	}
	CHECK_EQ_U64(s->copy.len, tide_bitmap_count(s->plan) * unit);
	CHECK_EQ_U64(s->copy.offset, s->copy.len - left);
}

/* Runs the copy, which has to succeed. */
static inline void sample_run(struct sample *s)
{
	CHECK_OK(tide_copy_run(&s->copy, &s->err), &s->err);
	CHECK_EQ_U64(tide_bitmap_count(s->copy.todo), 0);
	CHECK(!s->copy.cancelled);
	sample_check(s);
}

static inline void sample_end(struct sample *s)
{
	tide_image_close(s->copy.source);
	tide_image_close(s->copy.target);
	tide_bitmap_free(s->copy.todo);
	tide_bitmap_free(s->plan);
	if (s->copy.sink)
		tide_event_release(&s->sink);
	memory_disk_free(s->from);
	memory_disk_free(s->to);
	memory_disk_free(s->below);
	free(s->source);
	free(s->before);
	tide_error_release(&s->err);
}

#endif
