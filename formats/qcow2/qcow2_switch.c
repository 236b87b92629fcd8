/*
 * Writes the sector of the header that refers to the bitmaps.
 *
 * A header of QEMU's, with clusters of 4 KiB or more:
 *
 *     fields | backing format | names of features | bitmaps | end | backing file name
 *     0        112              128                 520       552   560
 *
 * From one set of bitmaps to another: the autoclear flag at 88 stays, so only 24 bytes of the extension
 * change, in place, if they lie within one sector; and the token, if it changes, is in the same one.
 *
 * Every other change rewrites the first sector from the flag on: all extensions except the bitmaps and the
 * table of names, in their order, then the bitmaps if there are to be any, then the end mark. The same
 * write makes everything after it invalid. The table of names, which does not fit beside them, is restored
 * after the switch, following the bitmaps: first all of it but its type and length, at the former end of
 * the extensions, sync, then those eight bytes over the end mark.
 *
 * The backing file's name must follow all extensions. If it is in the way, it moves first: a copy to the
 * end, sync, then the eight bytes of its offset; or, when both its places lie in the first sector,
 * everything in one write.
 *
 * The first sector is large enough for any header that QEMU or this driver writes, unless the name of an
 * external data file or a long backing file name in a small cluster fills it.
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

#define SECTOR         UINT64_C(512)
#define EXTENSION_HEAD 8u
#define BITMAPS_BYTES  24u

enum { AT_BACKING = 8, AT_BACKING_LEN = 16, AT_HEADER_LENGTH = 100 };

/* The first cluster. */
struct head {
	uint8_t *data;
	uint64_t size;
	uint64_t length;         /* of the header itself */
	uint64_t name, name_len; /* of the backing file; 0, 0: no name */
	uint64_t end;            /* the end of the extensions, with their end mark */
	uint64_t bitmaps,
	        n_bitmaps; /* offset of the (last) bitmaps extension's data, and the number of these extensions */
	uint64_t token;    /* offset of the token's data; 0: none of this length */
};

static uint64_t padded(uint64_t len)
{
	return EXTENSION_HEAD + tide_range_align_up(len, 8);
}

/* The length of the extension at off, with its head and padding, checked when the image was opened; 0 at the end. */
static uint64_t extension(const struct head *h, uint64_t off, uint32_t *type)
{
	uint64_t limit = h->name ? h->name : h->size;
	uint32_t len;

	if (off > limit || limit - off < EXTENSION_HEAD)
		return 0;
	*type = tide_get_be32(h->data + off);
	len = tide_get_be32(h->data + off + 4);
	if (*type == TIDE_QCOW2_EXT_END || len > limit - off - EXTENSION_HEAD)
		return 0;
	/* The padding of the last extension may be missing. */
	return TIDE_MIN(padded(len), h->size - off);
}

static int read_head(const struct tide_qcow2 *q, struct head *h, struct tide_error *err)
{
	uint64_t off, n;
	uint32_t type;

	h->size = q->cluster_size;
	if (tide_sysio_pread(q->fd, h->data, h->size, 0, true, err) < 0)
		return -1;
	h->length = tide_get_be32(h->data + AT_HEADER_LENGTH);
	h->name = tide_get_be64(h->data + AT_BACKING);
	h->name_len = h->name ? tide_get_be32(h->data + AT_BACKING_LEN) : 0;
	h->bitmaps = h->n_bitmaps = h->token = 0;
	if (h->length > h->size || !tide_range_is_within(h->name, h->name_len, h->size))
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "The header has changed since the image was opened: its length is %" PRIu64
		                      ", the backing file name's offset %" PRIu64,
		                      h->length, h->name);
	for (off = h->length; (n = extension(h, off, &type)) > 0; off += n) {
		if (type == TIDE_QCOW2_EXT_BITMAPS) {
			h->bitmaps = off + EXTENSION_HEAD;
			h->n_bitmaps++;
		} else if (type == TIDE_QCOW2_EXT_TOKEN) {
			h->token = n == padded(TIDE_ID_BYTES) ? off + EXTENSION_HEAD : 0;
		}
	}
	h->end = TIDE_MIN(off + EXTENSION_HEAD, h->size);
	return 0;
}

static void put_bitmaps(uint8_t *p, const struct tide_qcow2_extension *to)
{
	tide_put_be32(p, to->n);
	tide_put_be32(p + 4, 0);
	tide_put_be64(p + 8, to->dir_size);
	tide_put_be64(p + 16, to->dir_offset);
}

/* ---- the name of the backing file ---- */

static int refuse_room(uint64_t need, uint64_t room, struct tide_error *err)
{
	tide_error_set(err, TIDE_E_UNSUPPORTED,
	               "The image's header has no room for the list of bitmaps: its extensions would take %" PRIu64
	               " bytes, but only %" PRIu64 " are free",
	               need, room);
	return tide_error_hint(err, "keep bitmaps in a sidecar, or convert the image to one with larger clusters");
}

/* Copies the name, then makes the header refer to the copy. */
static int copy_name(const struct tide_qcow2 *q, const struct head *h, uint64_t to, struct tide_error *err)
{
	uint8_t buf[8];

	tide_put_be64(buf, to);
	if (tide_sysio_pwrite(q->fd, h->data + h->name, h->name_len, to, err) < 0 ||
	    tide_sysio_fdatasync(q->fd, err) < 0 || tide_sysio_pwrite(q->fd, buf, sizeof(buf), AT_BACKING, err) < 0)
		return -1;
	return tide_sysio_fdatasync(q->fd, err);
}

/* The same when the old and the new place are both in the first sector and may overlap. */
static int shift_name(const struct tide_qcow2 *q, struct head *h, uint64_t to, struct tide_error *err)
{
	memmove(h->data + to, h->data + h->name, h->name_len);
	tide_put_be64(h->data + AT_BACKING, to);
	if (tide_sysio_pwrite(q->fd, h->data + AT_BACKING, SECTOR - AT_BACKING, AT_BACKING, err) < 0)
		return -1;
	return tide_sysio_fdatasync(q->fd, err);
}

enum move { STAYS, COPIED, SHIFTED, NO_ROOM };

/* Plans how the name makes room for extensions that end at `need`; *to is its new offset. */
static enum move plan_move(const struct head *h, uint64_t need, uint64_t *to)
{
	uint64_t behind = tide_range_align_up(TIDE_MAX(TIDE_MAX(h->end, h->name + h->name_len), need), 8);
	uint64_t last = h->size - h->name_len;

	*to = behind;
	if (h->name == 0 || h->name >= need)
		return STAYS;
	if (tide_range_is_within(behind, h->name_len, h->size))
		return COPIED;
	*to = last;
	return h->size == SECTOR && last >= TIDE_MAX(need, h->end) ? SHIFTED : NO_ROOM;
}

static int move_name(const struct tide_qcow2 *q, struct head *h, uint64_t need, struct tide_error *err)
{
	uint64_t to;

	switch (plan_move(h, need, &to)) {
	case COPIED:
		return copy_name(q, h, to, err) < 0 ? -1 : read_head(q, h, err);
	case SHIFTED:
		return shift_name(q, h, to, err) < 0 ? -1 : read_head(q, h, err);
	default:
		return 0;
	}
}

/* ---- the switch ---- */

/*
 * Puts the extensions that stay into `sector`, from the header's end on; *end is the offset after them, or beyond
 * the sector.
 */
static void put_others(const struct head *h, bool sets_token, uint8_t *sector, uint64_t *end)
{
	uint64_t n;
	uint32_t type;

	*end = h->length;
	for (uint64_t off = h->length; (n = extension(h, off, &type)) > 0; off += n) {
		if (type == TIDE_QCOW2_EXT_BITMAPS || type == TIDE_QCOW2_EXT_FEATURES ||
		    (type == TIDE_QCOW2_EXT_TOKEN && sets_token))
			continue;
		if (*end + n <= SECTOR)
			memcpy(sector + *end, h->data + off, n);
		*end += n;
	}
}

static int keep_names(const struct head *h, struct tide_qcow2_names *names, struct tide_error *err)
{
	uint64_t n;
	uint32_t type;

	for (uint64_t off = h->length; (n = extension(h, off, &type)) > 0; off += n) {
		if (type != TIDE_QCOW2_EXT_FEATURES || names->data)
			continue;
		names->data = tide_mem_alloc(n, 1, err);
		if (!names->data)
			return -1;
		memcpy(names->data, h->data + off, n);
		names->len = n;
	}
	return 0;
}

/* Computes where the extensions will end; *others is the end of those that stay. */
static int check_room(const struct head *h, const struct tide_qcow2_extension *to, uint8_t *sector, uint64_t *others,
                      uint64_t *end, struct tide_error *err)
{
	uint64_t unused;

	put_others(h, to->sets_token, sector, others);
	*end = *others + (to->n ? padded(BITMAPS_BYTES) : 0) +
	       (tide_id_is_set(&to->token) ? padded(TIDE_ID_BYTES) : 0) + EXTENSION_HEAD;
	if (*end > SECTOR)
		return refuse_room(*end - h->length, h->length < SECTOR ? SECTOR - h->length : 0, err);
	if (plan_move(h, *end, &unused) == NO_ROOM)
		return refuse_room(*end - h->length, h->name - h->length, err);
	return 0;
}

static uint64_t put_head(uint8_t *sector, uint64_t at, uint32_t type, uint32_t len)
{
	tide_put_be32(sector + at, type);
	tide_put_be32(sector + at + 4, len);
	return at + EXTENSION_HEAD;
}

/* Does without the token if there is no room. */
static int make_room(const struct head *h, struct tide_qcow2_extension *to, uint8_t *sector, uint64_t *others,
                     uint64_t *end, struct tide_error *err)
{
	if (check_room(h, to, sector, others, end, NULL) == 0)
		return 0;
	to->sets_token = true;
	to->token = (struct tide_id){ { 0 } };
	return check_room(h, to, sector, others, end, err);
}

/* The token is in another sector than the bitmaps, or is to be removed: it goes first, so that it never says more. */
static int retire_token(const struct tide_qcow2 *q, const struct head *h, struct tide_error *err)
{
	uint8_t type[4];

	if (!h->token)
		return 0;
	tide_put_be32(type, TIDE_QCOW2_EXT_VOID);
	if (tide_sysio_pwrite(q->fd, type, sizeof(type), h->token - EXTENSION_HEAD, err) < 0)
		return -1;
	return tide_sysio_fdatasync(q->fd, err);
}

static int plan_sector(const struct tide_qcow2 *q, struct head *h, struct tide_qcow2_extension *to,
                       struct tide_driver_switch *sw, struct tide_qcow2_names *names, struct tide_error *err)
{
	uint8_t sector[SECTOR];
	uint64_t flags, at, end;

	if (make_room(h, to, sector, &at, &end, err) < 0 || move_name(q, h, end, err) < 0 ||
	    keep_names(h, names, err) < 0)
		return -1;
	memcpy(sector, h->data, h->length);
	flags = tide_get_be64(sector + TIDE_QCOW2_AT_AUTOCLEAR) & ~(uint64_t)TIDE_QCOW2_AUTOCLEAR_BITMAPS;
	tide_put_be64(sector + TIDE_QCOW2_AT_AUTOCLEAR, flags | (to->n ? TIDE_QCOW2_AUTOCLEAR_BITMAPS : 0));
	if (to->n) {
		at = put_head(sector, at, TIDE_QCOW2_EXT_BITMAPS, BITMAPS_BYTES);
		put_bitmaps(sector + at, to);
		at += BITMAPS_BYTES;
	}
	if (tide_id_is_set(&to->token)) {
		at = put_head(sector, at, TIDE_QCOW2_EXT_TOKEN, TIDE_ID_BYTES);
		memcpy(sector + at, to->token.bytes, TIDE_ID_BYTES);
	}
	names->at = end - EXTENSION_HEAD;
	memset(sector + names->at, 0, EXTENSION_HEAD);
	sw->offset = TIDE_QCOW2_AT_AUTOCLEAR;
	sw->len = end - sw->offset;
	memcpy(sw->before, h->data + sw->offset, sw->len);
	memcpy(sw->after, sector + sw->offset, sw->len);
	return 0;
}

/*
 * Without bitmaps before and after, nothing changes. With bitmaps before and after, the extension may be changed in
 * place.
 */
enum way { NOTHING, IN_PLACE, WHOLE_SECTOR };

static enum way choose(const struct tide_qcow2 *q, const struct head *h, const struct tide_qcow2_extension *to)
{
	uint64_t first = h->bitmaps, last = h->bitmaps + BITMAPS_BYTES - 1;

	if (to->n == 0 && h->n_bitmaps == 0 && !(to->sets_token && h->token))
		return NOTHING;
	if (to->sets_token) {
		first = TIDE_MIN(first, h->token);
		last = TIDE_MAX(last, h->token + TIDE_ID_BYTES - 1);
		if (!h->token || !tide_id_is_set(&to->token))
			return WHOLE_SECTOR;
	}
	if (to->n && q->n_bitmaps && h->n_bitmaps == 1 && first / SECTOR == last / SECTOR)
		return IN_PLACE;
	return WHOLE_SECTOR;
}

static void plan_in_place(const struct head *h, const struct tide_qcow2_extension *to, struct tide_driver_switch *sw)
{
	uint64_t end = h->bitmaps + BITMAPS_BYTES;

	sw->offset = to->sets_token ? TIDE_MIN(h->bitmaps, h->token) : h->bitmaps;
	if (to->sets_token)
		end = TIDE_MAX(end, h->token + TIDE_ID_BYTES);
	sw->len = end - sw->offset;
	memcpy(sw->before, h->data + sw->offset, sw->len);
	memcpy(sw->after, sw->before, sw->len);
	put_bitmaps(sw->after + (h->bitmaps - sw->offset), to);
	if (to->sets_token)
		memcpy(sw->after + (h->token - sw->offset), to->token.bytes, TIDE_ID_BYTES);
}

int tide_qcow2_switch_check(const struct tide_qcow2 *q, const struct tide_qcow2_extension *to, struct tide_error *err)
{
	TIDE_AUTOFREE uint8_t *data = tide_mem_alloc(1, q->cluster_size, err);
	struct tide_qcow2_extension tried = *to;
	struct head h = { .data = data };
	uint8_t sector[SECTOR];
	uint64_t at, end;

	if (!data)
		return -1;
	if (q->header.version < 3) /* version 2 has no bitmaps, and gets none */
		return 0;
	if (read_head(q, &h, err) < 0)
		return -1;
	return choose(q, &h, to) == WHOLE_SECTOR ? make_room(&h, &tried, sector, &at, &end, err) : 0;
}

int tide_qcow2_switch_plan(struct tide_qcow2 *q, struct tide_qcow2_extension *to, struct tide_driver_switch *sw,
                           struct tide_qcow2_names *names, struct tide_error *err)
{
	TIDE_AUTOFREE uint8_t *data = tide_mem_alloc(1, q->cluster_size, err);
	struct tide_qcow2_extension plain = *to;
	struct head h = { .data = data };
	uint8_t sector[SECTOR];
	uint64_t at, end;
	enum way way;

	*sw = (struct tide_driver_switch){ 0 };
	if (!data)
		return -1;
	if (q->header.version < 3)
		return 0;
	if (read_head(q, &h, err) < 0)
		return -1;
	way = choose(q, &h, to);
	plain.sets_token = false;
	if (way == WHOLE_SECTOR && to->sets_token && choose(q, &h, &plain) == IN_PLACE &&
	    make_room(&h, to, sector, &at, &end, NULL) < 0) {
		if (retire_token(q, &h, err) < 0)
			return -1;
		plan_in_place(&h, &plain, sw);
		return 0;
	}
	if (way == WHOLE_SECTOR)
		return plan_sector(q, &h, to, sw, names, err);
	if (way == IN_PLACE)
		plan_in_place(&h, to, sw);
	return 0;
}

void tide_qcow2_switch_restore_names(struct tide_qcow2 *q, const struct tide_qcow2_names *names)
{
	TIDE_AUTOFREE uint8_t *buf = names->data ? tide_mem_alloc(1, names->len + EXTENSION_HEAD, NULL) : NULL;
	TIDE_AUTOFREE uint8_t *data = tide_mem_alloc(1, q->cluster_size, NULL);
	struct head h = { .data = data };
	uint64_t limit;

	if (!buf || !data || read_head(q, &h, NULL) < 0)
		return;
	limit = h.name ? h.name : h.size;
	/* The table overwrites the end mark at `at`; a new mark follows it. */
	if (h.end != names->at + EXTENSION_HEAD || h.end + names->len > limit)
		return;
	memcpy(buf, names->data, names->len);
	if (tide_sysio_pwrite(q->fd, buf + EXTENSION_HEAD, names->len, names->at + EXTENSION_HEAD, NULL) < 0 ||
	    tide_sysio_fdatasync(q->fd, NULL) < 0)
		return;
	tide_sysio_pwrite(q->fd, buf, EXTENSION_HEAD, names->at, NULL);
}
