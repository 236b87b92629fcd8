/*
 * Checks a qcow2's own structures.
 *
 * Every cluster of the file has a cell, which counts how often something refers to it and records what it
 * holds. The check follows the header, all tables and all their entries, those of internal snapshots and of
 * bitmaps too, and compares the counts with the reference counts in the file.
 *
 * The ends of files: each byte that the disk, a table or a bitmap consists of must be in the file. The last
 * cluster may lack bytes beyond the end of the disk, and the last compressed one the rest of its last sector.
 *
 * An L2 table that several L1 tables share is read once, and its clusters count as often as the table does.
 * So the time depends on the size of the file alone, whatever its tables contain; the memory is five bytes
 * a cluster of the file, for at most CLUSTERS_MAX clusters.
 *
 * This file shares only the header's parser with the code that writes images, so that a fault in one cannot
 * hide from the other.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "base/range.h"
#include "base/sysio.h"
#include "qcow2.h"

#define CLUSTERS_MAX (UINT64_C(1) << 28) /* 16 TiB of 64 KiB */
#define TIMES_MAX    UINT16_MAX          /* counts stop there */
#define CHUNK        65536u              /* bytes of a table in one read */

#define COPIED      (UINT64_C(1) << 63)
#define COMPRESSED  (UINT64_C(1) << 62)
#define PLACE       UINT64_C(0x00fffffffffffe00)
#define L1_RESERVED UINT64_C(0x7f000000000001ff)
#define L2_RESERVED UINT64_C(0x3f000000000001fe)
#define ALL_ZERO    UINT64_C(1)
#define UNKNOWN     UINT64_MAX

#define SNAPSHOT_EXTRA_MAX 1024 /* QEMU's */
#define SNAPSHOT_EXTRA_V3  16   /* qcow2.txt: VM state size and disk size */

/* The contents of a cluster: a byte for each cell. */
enum {
	HOLDS_META = 0x0f, /* one of meta_names */
	HOLDS_DATA = 0x10,
	HOLDS_TWO = 0x20,  /* an overlap that is already reported */
	COUNT_IS_1 = 0x40, /* the reference count in the file */
	ACTIVE_L2 = 0x80,  /* in use by the disk itself, not only by snapshots */
};

enum meta { DATA, HEADER, L1, L2, REFTABLE, REFBLOCK, SNAPSHOTS, BITMAPS };

static const char *const meta_names[] = {
	[DATA] = "data",
	[HEADER] = "the header",
	[L1] = "an L1 table",
	[L2] = "an L2 table",
	[REFTABLE] = "the refcount table",
	[REFBLOCK] = "a refcount block",
	[SNAPSHOTS] = "the snapshot table",
	[BITMAPS] = "a bitmap",
};

/* The table entry that refers to a cluster, for messages. */
struct origin {
	const char *table;
	uint64_t at, entry;
};

struct state {
	int fd;
	const struct tide_check *to;
	uint64_t file_size;
	struct tide_qcow2_header h;
	unsigned bits;
	uint64_t cluster;
	uint64_t clusters; /* of the file; the last one may be incomplete */
	uint64_t cells;
	unsigned entry_size; /* of an L2 table, bytes */
	unsigned l2_bits;    /* log2 of its entries */
	uint64_t data_size;  /* of the external data file */
	struct libdeflate_decompressor *inflate;
	bool has_data_file;
	uint64_t l1_bytes; /* of all L1 tables so far */
	uint16_t *times, *l2_times;
	uint8_t *holds;
	uint8_t *buf; /* of a cluster */
};

static void release(struct state *s)
{
	tide_qcow2_header_release(&s->h);
	tide_qcow2_compressed_release(s->inflate);
	free(s->times);
	free(s->l2_times);
	free(s->holds);
	free(s->buf);
}

static TIDE_PRINTF(6, 7) int report(const struct state *s, enum tide_finding_kind kind, uint64_t off, uint64_t len,
                                    struct tide_error *err, const char *fmt, ...)
{
	char text[256];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	return s->to->found(s->to->data, kind, off, len, text, err);
}

static int check_cancelled(const struct state *s, struct tide_error *err)
{
	if (s->to->cancelled && s->to->cancelled(s->to->data))
		return tide_error_set(err, TIDE_E_CANCELLED, "Cancelled");
	return 0;
}

static void add_times(uint16_t *cell, unsigned n)
{
	*cell = (uint16_t)TIDE_MIN(*cell + n, TIMES_MAX);
}

/* ---- references -------------------------------------------------------------------- */

/* L1 tables may share an L2 table, and L2 tables may share data; nothing else may share a cluster. */
static bool may_share(const struct state *s, uint64_t cell, enum meta what)
{
	unsigned meta = s->holds[cell] & HOLDS_META, data = s->holds[cell] & HOLDS_DATA;

	if (what == DATA)
		return !meta;
	return !data && (!meta || (meta == L2 && what == L2));
}

static int mark(struct state *s, uint64_t cell, enum meta what, unsigned times, const struct origin *origin,
                struct tide_error *err)
{
	uint8_t *holds = &s->holds[cell];
	unsigned was = *holds & HOLDS_META;

	add_times(&s->times[cell], times);
	if (may_share(s, cell, what)) {
		*holds |= (uint8_t)(what == DATA ? HOLDS_DATA : what);
		return 0;
	}
	if (*holds & HOLDS_TWO)
		return 0;
	*holds |= HOLDS_TWO;
	return report(s, TIDE_FINDING_OVERLAP, cell << s->bits, s->cluster, err,
	              "%s (entry %" PRIu64 " of %s at %" PRIu64 ") overlaps with %s", meta_names[what], origin->entry,
	              origin->table, origin->at, meta_names[was]);
}

/*
 * Counts a reference to [off, off + len) of the file. The first `need` bytes must be in the file, as the driver has
 * it: a file that lacks a part of them was cut.
 */
static int refer_part(struct state *s, uint64_t off, uint64_t len, uint64_t need, enum meta what, unsigned times,
                      const struct origin *origin, struct tide_error *err)
{
	uint64_t first = off >> s->bits, last;

	if (len == 0)
		return 0;
	last = (off + len - 1) >> s->bits;
	if (off + len < off || last >= s->cells || !tide_range_is_within(off, need, s->file_size))
		return report(s, TIDE_FINDING_BOUNDS, off, len, err,
		              "entry %" PRIu64 " of %s at %" PRIu64
		              " points to %s beyond the end of the file at %" PRIu64,
		              origin->entry, origin->table, origin->at, meta_names[what], s->file_size);
	for (uint64_t cell = first; cell <= last; cell++) {
		if (mark(s, cell, what, times, origin, err) < 0)
			return -1;
	}
	return 0;
}

static int refer(struct state *s, uint64_t off, uint64_t len, enum meta what, unsigned times,
                 const struct origin *origin, struct tide_error *err)
{
	return refer_part(s, off, len, len, what, times, origin, err);
}

static int check_aligned(const struct state *s, uint64_t off, enum meta what, const struct origin *origin, bool *good,
                         struct tide_error *err)
{
	*good = !(off & (s->cluster - 1));
	if (*good)
		return 0;
	return report(s, TIDE_FINDING_ENTRY, off, s->cluster, err,
	              "entry %" PRIu64 " of %s at %" PRIu64 " points to %s that does not begin on a cluster",
	              origin->entry, origin->table, origin->at, meta_names[what]);
}

static int check_reserved(const struct state *s, uint64_t entry, uint64_t reserved, const struct origin *origin,
                          struct tide_error *err)
{
	if (!(entry & reserved))
		return 0;
	return report(s, TIDE_FINDING_ENTRY, origin->at, 0, err,
	              "entry %" PRIu64 " of %s at %" PRIu64 " has reserved bits set: %#018" PRIx64, origin->entry,
	              origin->table, origin->at, entry);
}

static int check_copied(const struct state *s, uint64_t entry, uint64_t off, const struct origin *origin,
                        struct tide_error *err)
{
	uint64_t cell = off >> s->bits;
	bool one = cell < s->cells && (s->holds[cell] & COUNT_IS_1);

	if (cell >= s->cells || one == !!(entry & COPIED))
		return 0;
	return report(s, TIDE_FINDING_COPIED, off, s->cluster, err,
	              "entry %" PRIu64 " of %s at %" PRIu64 " is flagged as used %s, but its reference count is %s1",
	              origin->entry, origin->table, origin->at, entry & COPIED ? "once" : "more than once",
	              one ? "" : "not ");
}

/* Calls fn for every entry of a table of 64-bit entries at off; entries beyond the end of the file are not read. */
static int each_entry(struct state *s, uint64_t off, uint64_t n, struct origin origin,
                      int (*fn)(struct state *s, uint64_t entry, const struct origin *origin, struct tide_error *err),
                      struct tide_error *err)
{
	TIDE_AUTOFREE uint8_t *chunk = tide_mem_alloc(CHUNK, 1, err);

	if (!chunk)
		return -1;
	origin.at = off;
	if (off >= s->file_size)
		return 0;
	n = TIDE_MIN(n, (s->file_size - off) / 8);
	for (uint64_t done = 0; done < n;) {
		uint64_t part = TIDE_MIN(n - done, CHUNK / 8);

		if (check_cancelled(s, err) < 0 ||
		    tide_sysio_pread(s->fd, chunk, part * 8, off + done * 8, false, err) < 0)
			return -1;
		for (uint64_t i = 0; i < part; i++) {
			uint64_t entry = tide_get_be64(chunk + 8 * i);

			origin.entry = done + i;
			if (entry && fn(s, entry, &origin, err) < 0)
				return -1;
		}
		done += part;
	}
	return 0;
}

/* ---- L1 tables --------------------------------------------------------------------- */

static int see_l1_entry(struct state *s, uint64_t entry, const struct origin *origin, bool active,
                        struct tide_error *err)
{
	uint64_t off = entry & PLACE;
	bool good;

	if (check_reserved(s, entry, L1_RESERVED, origin, err) < 0)
		return -1;
	if (off == 0) {
		if (!(entry & COPIED))
			return 0;
		return report(s, TIDE_FINDING_ENTRY, 0, 0, err,
		              "entry %" PRIu64 " of %s at %" PRIu64 " points to an L2 table at offset 0, the header's",
		              origin->entry, origin->table, origin->at);
	}
	if (check_aligned(s, off, L2, origin, &good, err) < 0 || refer(s, off, s->cluster, L2, 1, origin, err) < 0)
		return -1;
	if (active && check_copied(s, entry, off, origin, err) < 0)
		return -1;
	if (good && (off >> s->bits) < s->clusters) {
		add_times(&s->l2_times[off >> s->bits], 1);
		if (active)
			s->holds[off >> s->bits] |= ACTIVE_L2;
	}
	return 0;
}

static int see_active(struct state *s, uint64_t entry, const struct origin *origin, struct tide_error *err)
{
	return see_l1_entry(s, entry, origin, true, err);
}

static int see_snapshot(struct state *s, uint64_t entry, const struct origin *origin, struct tide_error *err)
{
	return see_l1_entry(s, entry, origin, false, err);
}

static int check_l1(struct state *s, uint64_t off, uint64_t entries, const struct origin *origin, bool active,
                    struct tide_error *err)
{
	struct origin here = { active ? "the L1 table" : "a snapshot's L1 table", off, 0 };
	bool good;

	s->l1_bytes += entries * 8;
	if (s->l1_bytes > s->file_size)
		return report(s, TIDE_FINDING_OVERLAP, off, entries * 8, err,
		              "the L1 tables of the snapshots are together larger than the file");
	if (check_aligned(s, off, L1, origin, &good, err) < 0 || refer(s, off, entries * 8, L1, 1, origin, err) < 0)
		return -1;
	return good ? each_entry(s, off, entries, here, active ? see_active : see_snapshot, err) : 0;
}

/* ---- L2 tables --------------------------------------------------------------------- */

/* A cluster may end within its last sector, and the file with it: only decompressing it shows whether bytes are lost.
 */
static int check_unpacks(struct state *s, uint64_t off, uint64_t len, const struct origin *origin,
                         struct tide_error *err)
{
	TIDE_AUTOFREE uint8_t *in = tide_mem_alloc(len, 1, err);
	TIDE_AUTOFREE uint8_t *out = tide_mem_alloc(s->cluster, 1, err);
	struct tide_error cause = TIDE_ERROR_INIT;

	if (!in || !out || tide_sysio_pread(s->fd, in, len, off, true, err) < 0)
		return -1;
	if (tide_qcow2_compressed_unpack(&s->inflate, s->h.compression, out, s->cluster, in, len, &cause) == 0)
		return 0;
	if (cause.code != TIDE_E_CORRUPT)
		return tide_error_move(err, &cause);
	tide_error_release(&cause);
	return report(s, TIDE_FINDING_BOUNDS, off, len, err,
	              "entry %" PRIu64 " of %s at %" PRIu64
	              " points to compressed data at the end of the file, %" PRIu64 ", that cannot be decompressed",
	              origin->entry, origin->table, origin->at, s->file_size);
}

static int refer_compressed(struct state *s, uint64_t off, uint64_t len, unsigned times, const struct origin *origin,
                            struct tide_error *err)
{
	uint64_t have = off < s->file_size ? s->file_size - off : 0;

	if (refer_part(s, off, len, 1, DATA, times, origin, err) < 0)
		return -1;
	return have && have < len ? check_unpacks(s, off, have, origin, err) : 0;
}

static int see_compressed(struct state *s, uint64_t entry, uint64_t bitmap, unsigned times, const struct origin *origin,
                          struct tide_error *err)
{
	unsigned shift = 62 - (s->bits - 8);
	uint64_t off = entry & ((UINT64_C(1) << shift) - 1);
	uint64_t sectors = ((entry & (COMPRESSED - 1)) >> shift) + 1;

	if (entry & COPIED && report(s, TIDE_FINDING_COPIED, off, 0, err,
	                             "entry %" PRIu64 " of %s at %" PRIu64 " is compressed, but flagged as used once",
	                             origin->entry, origin->table, origin->at) < 0)
		return -1;
	if (s->has_data_file || bitmap)
		return report(s, TIDE_FINDING_ENTRY, off, 0, err,
		              "entry %" PRIu64 " of %s at %" PRIu64 " is compressed, but %s", origin->entry,
		              origin->table, origin->at,
		              bitmap ? "has subclusters" : "the disk's bytes are in another file");
	return refer_compressed(s, off, sectors * 512 - (off & 511), times, origin, err);
}

static int check_standard(struct state *s, uint64_t entry, uint64_t bitmap, const struct origin *origin,
                          struct tide_error *err)
{
	bool zero = entry & ALL_ZERO, extended = s->entry_size == 16;

	if (check_reserved(s, entry, L2_RESERVED | (extended ? ALL_ZERO : 0), origin, err) < 0)
		return -1;
	if (zero && s->h.version < 3)
		return report(s, TIDE_FINDING_ENTRY, entry & PLACE, 0, err,
		              "entry %" PRIu64 " of %s at %" PRIu64 " has the zero flag in a version 2 image",
		              origin->entry, origin->table, origin->at);
	if (bitmap >> 32 & bitmap & UINT32_MAX)
		return report(s, TIDE_FINDING_ENTRY, entry & PLACE, 0, err,
		              "entry %" PRIu64 " of %s at %" PRIu64 " marks a subcluster as both allocated and zero",
		              origin->entry, origin->table, origin->at);
	return 0;
}

/* The bytes of a cluster that can be read; at: its offset on the disk, UNKNOWN for snapshots. */
static uint64_t visible_bytes(const struct state *s, uint64_t entry, uint64_t bitmap, uint64_t at)
{
	uint64_t visible = at < s->h.size ? TIDE_MIN(s->cluster, s->h.size - at) : at == UNKNOWN ? s->cluster : 0;
	uint64_t last = 0;

	if (s->entry_size == 8)
		return entry & ALL_ZERO ? 0 : visible;
	while (last < TIDE_QCOW2_SUBCLUSTERS && (bitmap & UINT32_MAX) >> last)
		last++;
	return TIDE_MIN(visible, last << (s->bits - TIDE_QCOW2_SUBCLUSTER_BITS));
}

/* Data in another file is at the disk's offset, and is used once. */
static int see_outside(struct state *s, uint64_t entry, uint64_t bitmap, uint64_t at, const struct origin *origin,
                       struct tide_error *err)
{
	uint64_t off = entry & PLACE, need = visible_bytes(s, entry, bitmap, at);
	bool good;

	if (check_aligned(s, off, DATA, origin, &good, err) < 0)
		return -1;
	if (!off && !(entry & COPIED)) {
		if (!(bitmap & UINT32_MAX))
			return 0;
		return report(s, TIDE_FINDING_ENTRY, 0, 0, err,
		              "entry %" PRIu64 " of %s at %" PRIu64 " has allocated subclusters, but no cluster",
		              origin->entry, origin->table, origin->at);
	}
	if (!(entry & COPIED) && report(s, TIDE_FINDING_COPIED, off, s->cluster, err,
	                                "entry %" PRIu64 " of %s at %" PRIu64
	                                " is not flagged as used once, but its data is in another file",
	                                origin->entry, origin->table, origin->at) < 0)
		return -1;
	if (at == UNKNOWN)
		return 0;
	if (off != at)
		return report(s, TIDE_FINDING_ENTRY, off, s->cluster, err,
		              "entry %" PRIu64 " of %s at %" PRIu64 " points to %" PRIu64
		              " in the external data file, expected %" PRIu64,
		              origin->entry, origin->table, origin->at, off, at);
	if (tide_range_is_within(off, need, s->data_size))
		return 0;
	return report(s, TIDE_FINDING_BOUNDS, off, need, err,
	              "entry %" PRIu64 " of %s at %" PRIu64
	              " points to data beyond the end of the external data file at %" PRIu64,
	              origin->entry, origin->table, origin->at, s->data_size);
}

/* at: the cluster's offset on the disk, UNKNOWN for snapshots. */
static int see_standard(struct state *s, uint64_t entry, uint64_t bitmap, unsigned times, uint64_t at,
                        const struct origin *origin, struct tide_error *err)
{
	uint64_t off = entry & PLACE;
	bool good;

	if (check_standard(s, entry, bitmap, origin, err) < 0)
		return -1;
	if (s->has_data_file)
		return see_outside(s, entry, bitmap, at, origin, err);
	if (off == 0) {
		if (!(entry & COPIED) && !(bitmap & UINT32_MAX))
			return 0;
		return report(s, TIDE_FINDING_ENTRY, 0, 0, err,
		              "entry %" PRIu64 " of %s at %" PRIu64 " points to data at offset 0, the header's",
		              origin->entry, origin->table, origin->at);
	}
	if (check_aligned(s, off, DATA, origin, &good, err) < 0 ||
	    refer_part(s, off, s->cluster, visible_bytes(s, entry, bitmap, at), DATA, times, origin, err) < 0)
		return -1;
	return at != UNKNOWN ? check_copied(s, entry, off, origin, err) : 0;
}

/* start: of its part of the disk, UNKNOWN for a snapshot's. */
static int check_l2_table(struct state *s, uint64_t cell, uint64_t start, struct tide_error *err)
{
	uint64_t off = cell << s->bits;
	struct origin origin = { "the L2 table", off, 0 };
	unsigned times = s->l2_times[cell];

	if (check_cancelled(s, err) < 0 || tide_sysio_pread(s->fd, s->buf, s->cluster, off, true, err) < 0)
		return -1;
	for (uint64_t i = 0; i < s->cluster / s->entry_size; i++) {
		const uint8_t *p = s->buf + i * s->entry_size;
		uint64_t entry = tide_get_be64(p), bitmap = s->entry_size == 16 ? tide_get_be64(p + 8) : 0;
		int rc;

		origin.entry = i;
		if (!entry && !bitmap)
			continue;
		if (entry & COMPRESSED)
			rc = see_compressed(s, entry, bitmap, times, &origin, err);
		else
			rc = see_standard(s, entry, bitmap, times, start == UNKNOWN ? UNKNOWN : start + (i << s->bits),
			                  &origin, err);
		if (rc < 0)
			return -1;
	}
	return 0;
}

static int see_l2_table(struct state *s, uint64_t entry, const struct origin *origin, struct tide_error *err)
{
	uint64_t off = entry & PLACE, cell = off >> s->bits;

	if ((off & (s->cluster - 1)) || cell >= s->clusters || !(s->holds[cell] & ACTIVE_L2))
		return 0;
	s->holds[cell] &= (uint8_t)~ACTIVE_L2;
	if (check_l2_table(s, cell, origin->entry << (s->bits + s->l2_bits), err) < 0)
		return -1;
	s->l2_times[cell] = 0;
	return 0;
}

/* Checks each L2 table once: those of the disk in its order, then those that only snapshots use, in the file's. */
static int check_l2_tables(struct state *s, struct tide_error *err)
{
	struct origin origin = { "the L1 table", s->h.l1_offset, 0 };

	if (each_entry(s, s->h.l1_offset, s->h.l1_entries, origin, see_l2_table, err) < 0)
		return -1;
	for (uint64_t cell = 0; cell < s->clusters; cell++) {
		if (s->l2_times[cell] && check_l2_table(s, cell, UNKNOWN, err) < 0)
			return -1;
	}
	return 0;
}

/* ---- snapshots and bitmaps --------------------------------------------------------- */

/* QEMU does not open an image with more extra data than it knows; version 3 must have what qcow2.txt requires. */
static int check_snapshot_extra(struct state *s, uint64_t off, uint32_t i, uint32_t extra, struct tide_error *err)
{
	if (extra <= SNAPSHOT_EXTRA_MAX && (s->h.version < 3 || extra >= SNAPSHOT_EXTRA_V3))
		return 0;
	return report(s, TIDE_FINDING_HEADER, off, 0, err,
	              "snapshot %" PRIu32 " has %" PRIu32 " bytes of extra data, which is %s", i, extra,
	              extra > SNAPSHOT_EXTRA_MAX ? "too much" : "less than version 3 requires");
}

static int check_snapshots(struct state *s, struct tide_error *err)
{
	uint64_t start = s->h.snapshots_offset, off = start, end = start;
	struct origin origin = { "the snapshot table", start, 0 };

	for (uint32_t i = 0; i < s->h.snapshots; i++) {
		uint8_t head[40];

		origin.entry = i;
		if (!tide_range_is_within(off, sizeof(head), s->file_size) ||
		    off - start > TIDE_QCOW2_SNAPSHOTS_BYTES_MAX)
			return report(s, TIDE_FINDING_HEADER, start, off - start, err,
			              "the snapshot table ends at snapshot %" PRIu32 " of %" PRIu32, i, s->h.snapshots);
		if (tide_sysio_pread(s->fd, head, sizeof(head), off, false, err) < 0 ||
		    check_snapshot_extra(s, off, i, tide_get_be32(head + 36), err) < 0)
			return -1;
		end = off + sizeof(head) + tide_get_be16(head + 12) + tide_get_be16(head + 14) +
		      tide_get_be32(head + 36);
		off = tide_range_align_up(end, 8);
		if (tide_get_be32(head + 8) * UINT64_C(8) > TIDE_QCOW2_L1_BYTES_MAX) {
			if (report(s, TIDE_FINDING_HEADER, off, 0, err,
			           "snapshot %" PRIu32 " has an L1 table of %" PRIu32 " entries, which is too large", i,
			           tide_get_be32(head + 8)) < 0)
				return -1;
		} else if (check_l1(s, tide_get_be64(head), tide_get_be32(head + 8), &origin, false, err) < 0) {
			return -1;
		}
	}
	/* QEMU does not write the padding of the last entry. */
	return refer_part(s, start, off - start, end - start, SNAPSHOTS, 1, &origin, err);
}

static int see_bitmap_data(struct state *s, uint64_t entry, const struct origin *origin, struct tide_error *err)
{
	uint64_t off = entry & PLACE;
	bool good;

	if (check_reserved(s, entry, UINT64_C(0xff000000000001fe) | (off ? 1 : 0), origin, err) < 0)
		return -1;
	if (off == 0)
		return 0;
	return check_aligned(s, off, BITMAPS, origin, &good, err) < 0
	               ? -1
	               : refer(s, off, s->cluster, BITMAPS, 1, origin, err);
}

static int check_bitmap(struct state *s, const uint8_t *entry, const struct origin *origin, uint64_t *table_bytes,
                        struct tide_error *err)
{
	uint64_t off = tide_get_be64(entry), n = tide_get_be32(entry + 8);
	struct origin here = { "a bitmap's table", off, 0 };
	bool good;

	*table_bytes += n * 8;
	if (*table_bytes > s->file_size)
		return report(s, TIDE_FINDING_OVERLAP, off, n * 8, err,
		              "the bitmaps' tables are together larger than the file");
	if (check_aligned(s, off, BITMAPS, origin, &good, err) < 0 || refer(s, off, n * 8, BITMAPS, 1, origin, err) < 0)
		return -1;
	return good ? each_entry(s, off, n, here, see_bitmap_data, err) : 0;
}

static int check_bitmaps(struct state *s, struct tide_error *err)
{
	uint64_t start = s->h.bitmap_dir_offset, size = s->h.bitmap_dir_size, off = 0, table_bytes = 0;
	struct origin origin = { "the bitmap directory", start, 0 };
	TIDE_AUTOFREE uint8_t *dir = NULL;

	if (s->h.n_bitmaps == 0)
		return 0;
	if (refer(s, start, size, BITMAPS, 1, &origin, err) < 0)
		return -1;
	dir = tide_mem_alloc(size, 1, err);
	if (!dir || tide_sysio_pread(s->fd, dir, size, start, true, err) < 0)
		return -1;
	for (; origin.entry < s->h.n_bitmaps; origin.entry++) {
		uint64_t len = 24;

		if (size - off >= len)
			len = tide_range_align_up(
			        len + tide_get_be16(dir + off + 18) + (uint64_t)tide_get_be32(dir + off + 20), 8);
		if (len > size - off)
			break;
		if (check_bitmap(s, dir + off, &origin, &table_bytes, err) < 0)
			return -1;
		off += len;
	}
	if (origin.entry == s->h.n_bitmaps && off == size)
		return 0;
	return report(s, TIDE_FINDING_HEADER, start, size, err,
	              "the bitmap directory of %" PRIu64 " bytes does not hold the %" PRIu32
	              " bitmaps that the header counts",
	              size, s->h.n_bitmaps);
}

/* ---- reference counts -------------------------------------------------------------- */

static uint64_t count_at(const uint8_t *block, unsigned order, uint64_t i)
{
	switch (order) {
	case 3:
		return block[i];
	case 4:
		return tide_get_be16(block + 2 * i);
	case 5:
		return tide_get_be32(block + 4 * i);
	case 6:
		return tide_get_be64(block + 8 * i);
	default: /* several in a byte; the first one has the lowest bits */
		return block[(i << order) >> 3] >> ((i << order) & 7) & ((1u << (1u << order)) - 1);
	}
}

/* Reads the refcount block for the cells from first on into s->buf; zeroes when it does not exist. */
static int read_block(struct state *s, const uint64_t *table, uint64_t index, struct tide_error *err)
{
	uint64_t entries = (s->h.reftable_clusters << s->bits) / 8;
	uint64_t off = index < entries ? table[index] & ~UINT64_C(511) : 0;

	memset(s->buf, 0, s->cluster);
	if (off == 0 || (off & (s->cluster - 1)) || off >= s->file_size)
		return 0;
	return tide_sysio_pread(s->fd, s->buf, s->cluster, off, true, err);
}

/* Calls fn for every cell with its count from the file. */
static int each_count(struct state *s, const uint64_t *table,
                      int (*fn)(struct state *s, uint64_t cell, uint64_t count, struct tide_error *err),
                      struct tide_error *err)
{
	uint64_t per_block = s->cluster * 8 >> s->h.refcount_order;

	for (uint64_t first = 0, index = 0; first < s->cells; first += per_block, index++) {
		uint64_t end = TIDE_MIN(first + per_block, s->cells);

		if (check_cancelled(s, err) < 0 || read_block(s, table, index, err) < 0)
			return -1;
		for (uint64_t cell = first; cell < end; cell++) {
			if (fn(s, cell, count_at(s->buf, s->h.refcount_order, cell - first), err) < 0)
				return -1;
		}
	}
	return 0;
}

static int note_one(struct state *s, uint64_t cell, uint64_t count, struct tide_error *err)
{
	(void)err;
	if (count == 1)
		s->holds[cell] |= COUNT_IS_1;
	return 0;
}

static int compare_count(struct state *s, uint64_t cell, uint64_t count, struct tide_error *err)
{
	uint64_t times = s->times[cell];

	if (TIDE_MIN(count, TIMES_MAX) == times)
		return 0;
	if (count < times)
		return report(s, TIDE_FINDING_REFCOUNT, cell << s->bits, s->cluster, err,
		              "reference count %" PRIu64 ", expected %" PRIu64, count, times);
	if (cell >= s->clusters)
		return 0; /* no data can be lost past the end of the file */
	return report(s, TIDE_FINDING_LEAK, cell << s->bits, s->cluster, err,
	              "reference count %" PRIu64 ", expected %" PRIu64, count, times);
}

static int check_blocks(struct state *s, const uint64_t *table, struct tide_error *err)
{
	struct origin origin = { "the refcount table", s->h.reftable_offset, 0 };

	for (uint64_t n = (s->h.reftable_clusters << s->bits) / 8; origin.entry < n; origin.entry++) {
		uint64_t entry = table[origin.entry], off = entry & ~UINT64_C(511);
		bool good;

		if (check_reserved(s, entry, 511, &origin, err) < 0)
			return -1;
		if (off && (check_aligned(s, off, REFBLOCK, &origin, &good, err) < 0 ||
		            refer(s, off, s->cluster, REFBLOCK, 1, &origin, err) < 0))
			return -1;
	}
	return 0;
}

static int load_table(struct state *s, uint64_t **out, struct tide_error *err)
{
	uint64_t n = (s->h.reftable_clusters << s->bits) / 8;

	*out = tide_mem_alloc(n, sizeof(**out), err);
	if (!*out || tide_sysio_pread(s->fd, *out, n * 8, s->h.reftable_offset, true, err) < 0)
		return -1;
	for (uint64_t i = 0; i < n; i++)
		(*out)[i] = tide_get_be64(*out + i);
	return 0;
}

/* ---- all of it --------------------------------------------------------------------- */

static int check_header(const struct state *s, struct tide_error *err)
{
	if ((s->h.autoclear & TIDE_QCOW2_AUTOCLEAR_DATA_FILE_RAW) && s->data_size < s->h.size &&
	    report(s, TIDE_FINDING_BOUNDS, 0, 0, err,
	           "the external data file ends at %" PRIu64 ", before the disk does at %" PRIu64, s->data_size,
	           s->h.size) < 0)
		return -1;
	if ((s->h.incompatible & TIDE_QCOW2_INCOMPAT_CORRUPT) &&
	    report(s, TIDE_FINDING_HEADER, 0, 0, err, "the header marks the image as corrupt") < 0)
		return -1;
	if (s->h.incompatible & TIDE_QCOW2_INCOMPAT_DIRTY)
		return report(s, TIDE_FINDING_DOUBT, 0, 0, err,
		              "the image was not closed properly: its reference counts may be out of date");
	return 0;
}

static int check_all(struct state *s, struct tide_error *err)
{
	struct origin origin = { "the header", 0, 0 };
	TIDE_AUTOFREE uint64_t *table = NULL;

	if (check_header(s, err) < 0 || load_table(s, &table, err) < 0 || each_count(s, table, note_one, err) < 0)
		return -1;
	if (refer_part(s, 0, s->cluster, 0, HEADER, 1, &origin, err) < 0 ||
	    refer(s, s->h.reftable_offset, s->h.reftable_clusters << s->bits, REFTABLE, 1, &origin, err) < 0 ||
	    check_blocks(s, table, err) < 0 || check_l1(s, s->h.l1_offset, s->h.l1_entries, &origin, true, err) < 0 ||
	    check_snapshots(s, err) < 0 || check_bitmaps(s, err) < 0 || check_l2_tables(s, err) < 0)
		return -1;
	return each_count(s, table, compare_count, err);
}

static int prepare(struct state *s, int data_fd, struct tide_error *err)
{
	if (tide_sysio_size(s->fd, &s->file_size, err) < 0 ||
	    tide_qcow2_header_read(s->fd, s->file_size, false, &s->h, err) < 0)
		return -1;
	s->bits = s->h.cluster_bits;
	s->cluster = UINT64_C(1) << s->bits;
	s->clusters = (s->file_size >> s->bits) + ((s->file_size & (s->cluster - 1)) != 0);
	s->cells = s->clusters + 1;
	s->entry_size = s->h.incompatible & TIDE_QCOW2_INCOMPAT_EXTENDED_L2 ? 16 : 8;
	s->l2_bits = s->bits - (s->entry_size == 16 ? 4 : 3);
	s->has_data_file = s->h.incompatible & TIDE_QCOW2_INCOMPAT_DATA_FILE;
	if (s->has_data_file && (data_fd < 0 || tide_sysio_size(data_fd, &s->data_size, err) < 0))
		return data_fd < 0 ? tide_error_set(err, TIDE_E_REFUSED, "The external data file is not open") : -1;
	if (s->clusters > CLUSTERS_MAX)
		return tide_error_set(err, TIDE_E_UNSUPPORTED,
		                      "The file has %" PRIu64 " clusters, and no more than %" PRIu64 " are checked",
		                      s->clusters, CLUSTERS_MAX);
	s->times = tide_mem_alloc(s->cells, sizeof(*s->times), err);
	s->l2_times = tide_mem_alloc(s->cells, sizeof(*s->l2_times), err);
	s->holds = tide_mem_alloc(s->cells, sizeof(*s->holds), err);
	s->buf = tide_mem_alloc(s->cluster, 1, err);
	return s->times && s->l2_times && s->holds && s->buf ? 0 : -1;
}

int tide_qcow2_check(int fd, int data_fd, const struct tide_check *check, struct tide_error *err)
{
	struct state s TIDE_CLEANUP(release) = { .fd = fd, .to = check };

	return prepare(&s, data_fd, err) < 0 ? -1 : check_all(&s, err);
}
