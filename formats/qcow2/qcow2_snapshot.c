/*
 * The table of internal snapshots, for display. Its entries have different lengths: a fixed part, extra data that later
 * versions added, the id and the name, and padding to a multiple of eight.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "base/range.h"
#include "base/sysio.h"
#include "qcow2.h"

enum { FIXED = 40, EXTRA = 24 /* the part of the extra data that is known */ };

static void fill(struct tide_snapshot *s, const uint8_t *fixed, const uint8_t *extra, uint32_t extra_len)
{
	uint64_t clock = tide_get_be64(fixed + 24);

	s->date_sec = tide_get_be32(fixed + 16);
	s->date_nsec = tide_get_be32(fixed + 20);
	s->vm_clock_sec = clock / 1000000000;
	s->vm_clock_nsec = clock % 1000000000;
	s->vm_state_size = extra_len >= 8 ? tide_get_be64(extra) : tide_get_be32(fixed + 32);
	s->icount = extra_len >= EXTRA ? tide_get_be64(extra + 16) : UINT64_MAX;
	s->has_icount = s->icount != UINT64_MAX;
	if (!s->has_icount)
		s->icount = 0;
}

static char *read_text(const struct tide_qcow2 *q, uint64_t off, size_t len, struct tide_error *err)
{
	char *text = tide_mem_alloc(len + 1, 1, err);

	if (text && tide_sysio_pread(q->fd, text, len, off, false, err) < 0) {
		free(text);
		return NULL;
	}
	return text;
}

/* Reads the entry at *off, and moves *off to the next one. */
static int read_entry(const struct tide_qcow2 *q, uint64_t *off, struct tide_snapshot *s, struct tide_error *err)
{
	uint8_t fixed[FIXED], extra[EXTRA];
	uint32_t extra_len;
	uint64_t at = *off;
	size_t id, name;

	if (tide_sysio_pread(q->fd, fixed, sizeof(fixed), at, false, err) < 0)
		return -1;
	extra_len = tide_get_be32(fixed + 36);
	id = tide_get_be16(fixed + 12);
	name = tide_get_be16(fixed + 14);
	at += FIXED;
	if (tide_sysio_pread(q->fd, extra, TIDE_MIN(extra_len, (uint32_t)EXTRA), at, false, err) < 0)
		return -1;
	fill(s, fixed, extra, extra_len);
	at += extra_len;
	s->id = read_text(q, at, id, err);
	s->name = s->id ? read_text(q, at + id, name, err) : NULL;
	*off += tide_range_align_up((uint64_t)FIXED + extra_len + id + name, 8);
	return s->name ? 0 : -1;
}

int tide_qcow2_snapshot_list(void *state, struct tide_snapshot ***out, struct tide_error *err)
{
	const struct tide_qcow2 *q = state;
	uint64_t start = q->header.snapshots_offset, off = start;
	uint32_t n = q->header.snapshots;
	struct tide_snapshot **list = tide_mem_alloc((size_t)n + 1, sizeof(*list), err);

	for (uint32_t i = 0; list && i < n; i++) {
		list[i] = tide_mem_alloc(1, sizeof(*list[i]), err);
		if (list[i] && read_entry(q, &off, list[i], err) == 0 && off - start <= TIDE_QCOW2_SNAPSHOTS_BYTES_MAX)
			continue;
		tide_error_set(err, TIDE_E_CORRUPT, "The table is larger than %" PRIu64 " bytes",
		               TIDE_QCOW2_SNAPSHOTS_BYTES_MAX);
		tide_driver_snapshots_free(list);
		return tide_error_wrap(err, "Could not read snapshot table entry %" PRIu32, i);
	}
	*out = list;
	return list ? 0 : -1;
}
