/*
 * Reads the output of rbd export-diff: records of metadata, then records of ranges that were written
 * (followed by the data, which is skipped) or zeroed. Ceph's documentation specifies both versions.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "base/sysio.h"
#include "ranges.h"

#define NAME_LEN_MAX 4096u
#define SKIP         65536u

static const char banner_v1[] = "rbd diff v1\n", banner_v2[] = "rbd diff v2\n";
#define BANNER (sizeof(banner_v1) - 1)

struct rbd {
	struct tide_ranges_input *in;
	struct tide_ranges_collector *c;
	size_t at;        /* offset in the beginning that is in memory */
	uint64_t place;   /* offset in the file */
	bool v2, changes; /* a record of a change has been seen */
};

bool tide_ranges_is_rbd(const struct tide_ranges_input *in)
{
	return in->len >= BANNER && (!memcmp(in->text, banner_v1, BANNER) || !memcmp(in->text, banner_v2, BANNER));
}

static int cut_off(const struct rbd *r, struct tide_error *err)
{
	tide_error_set(err, TIDE_E_REFUSED, "The file is cut off at %" PRIu64 ", before its end record", r->place);
	return tide_error_hint(err, "the list is incomplete: let rbd export-diff finish");
}

static int take(struct rbd *r, void *buf, size_t len, struct tide_error *err)
{
	size_t had = TIDE_MIN(len, r->in->len - r->at);

	memcpy(buf, r->in->text + r->at, had);
	r->at += had;
	r->place += had;
	if (had == len)
		return 0;
	ssize_t n = tide_sysio_read(r->in->fd, (char *)buf + had, len - had, err);
	if (n < 0)
		return -1;
	r->place += (uint64_t)n;
	return (size_t)n == len - had ? 0 : cut_off(r, err);
}

static int skip(struct rbd *r, uint64_t len, struct tide_error *err)
{
	TIDE_AUTOFREE char *buf = len ? tide_mem_alloc(SKIP, 1, err) : NULL;

	if (len && !buf)
		return -1;
	for (size_t piece; len; len -= piece) {
		piece = (size_t)TIDE_MIN(len, SKIP);
		if (take(r, buf, piece, err) < 0)
			return -1;
	}
	return 0;
}

static int bad_length(uint64_t len, char tag, struct tide_error *err)
{
	return tide_error_set(err, TIDE_E_REFUSED, "The length of a record '%c' cannot be %" PRIu64, tag, len);
}

/* From snapshot, to snapshot: a name with its length before it. */
static int skip_name(struct rbd *r, char tag, uint64_t room, struct tide_error *err)
{
	uint8_t len[4];

	if (take(r, len, sizeof(len), err) < 0)
		return -1;
	if (tide_get_le32(len) > NAME_LEN_MAX || (r->v2 && tide_get_le32(len) + UINT64_C(4) != room))
		return bad_length(tide_get_le32(len), tag, err);
	return skip(r, tide_get_le32(len), err);
}

static int read_change(struct rbd *r, char tag, uint64_t room, struct tide_error *err)
{
	uint64_t off, len, data;
	uint8_t buf[16];

	if (take(r, buf, sizeof(buf), err) < 0)
		return -1;
	off = tide_get_le64(buf);
	len = tide_get_le64(buf + 8);
	data = tag == 'w' ? len : 0;
	if (r->v2 && (room < sizeof(buf) || room - sizeof(buf) != data))
		return bad_length(room, tag, err);
	r->changes = true;
	return tide_ranges_collect(r->c, off, len, err) < 0 ? -1 : skip(r, data, err);
}

static int unknown(struct rbd *r, uint8_t tag, uint64_t room, struct tide_error *err)
{
	/* Version 2 lets readers skip unknown metadata. Among the changes an unknown record may be a change. */
	if (r->v2 && !r->changes)
		return skip(r, room, err);
	return tide_error_set(err, TIDE_E_REFUSED, "A record of the unknown kind 0x%02x ends at %" PRIu64, tag,
	                      r->place);
}

/* 0 at the end record. */
static int read_record(struct rbd *r, struct tide_error *err)
{
	uint64_t room = 0;
	uint8_t tag, len[8];

	if (take(r, &tag, 1, err) < 0)
		return -1;
	if (tag == 'e')
		return 0;
	if (r->v2) {
		if (take(r, len, sizeof(len), err) < 0)
			return -1;
		room = tide_get_le64(len);
	}
	switch (tag) {
	case 'f':
	case 't':
		return skip_name(r, (char)tag, room, err) < 0 ? -1 : 1;
	case 's':
		if (r->v2 && room != 8)
			return bad_length(room, 's', err);
		if (take(r, len, sizeof(len), err) < 0)
			return -1;
		r->c->list->covers = tide_get_le64(len);
		return 1;
	case 'w':
	case 'z':
		return read_change(r, (char)tag, room, err) < 0 ? -1 : 1;
	default:
		return unknown(r, tag, room, err) < 0 ? -1 : 1;
	}
}

static int check_over(struct rbd *r, struct tide_error *err)
{
	char more;
	ssize_t n = r->at < r->in->len ? 1 : tide_sysio_read(r->in->fd, &more, 1, err);

	if (n < 0)
		return -1;
	return n == 0 ? 0
	              : tide_error_set(err, TIDE_E_REFUSED, "The file continues after the end record at %" PRIu64,
	                               r->place);
}

int tide_ranges_read_rbd(struct tide_ranges_input *in, struct tide_ranges_collector *c, struct tide_error *err)
{
	struct rbd r = { .in = in, .c = c, .at = BANNER, .place = BANNER };
	int rc;

	if (!tide_ranges_is_rbd(in))
		return tide_error_set(err, TIDE_E_REFUSED, "It does not begin with 'rbd diff v1' or 'rbd diff v2'");
	r.v2 = !memcmp(in->text, banner_v2, BANNER);
	while ((rc = read_record(&r, err)) > 0)
		;
	return rc < 0 ? -1 : check_over(&r, err);
}
