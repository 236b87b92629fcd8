/*
 * qcow2, versions 2 and 3: what the parts of the driver share.  Nobody else includes this.
 *
 * A disk is cut into clusters.  An L1 table points at L2 tables of one cluster each, whose
 * 64-bit entries say where a cluster of the disk lies in the file.  Reference counts of the
 * file's clusters stand in blocks of one cluster each that the refcount table points at.
 *
 * With extended L2 entries, of 128 bits, the second half says for each 32nd part of the
 * cluster, a subcluster, whether it is allocated, zero, or neither.  They are read one by
 * one; a write makes whole clusters of them.
 *
 * With an external data file the disk's bytes stand in that file, at the same offsets as in
 * the disk; what is above is about everything else.  It has no reference counts.
 *
 * Three ways of being open:
 *
 *   reading   L1 on demand, L2 tables too, in a bounded cache.
 *   in place  (TIDE_OPEN_WRITE) changed tables stay in memory until a flush, which writes
 *             them in the order that qcow2_flush.c explains.  A cluster that is given up
 *             counts as used until the flush that makes its loss durable is through.
 *   new       (TIDE_OPEN_NEW) clusters are dealt out in the order of the requests, no
 *             counts are kept: all that was dealt out is used once.  qcow2_build.c writes
 *             the counts at the end, or when the first compressed clusters come: several of
 *             those share a cluster of the file, so the image goes on in place.
 *
 * A failed flush makes the image useless for further writing (`failed`): what reached the
 * disk is then unknown, but it is a prefix, so a valid image.
 *
 * Everything from `lock` on is changed only by its holder; what stands before it is fixed
 * once the image is open.
 */
#ifndef TIDE_QCOW2_H
#define TIDE_QCOW2_H

#include <pthread.h>

#include "image/driver.h"

#define TIDE_QCOW2_MAGIC     0x514649fbu
#define TIDE_QCOW2_HEADER_V2 72u
#define TIDE_QCOW2_HEADER_V3 104u

#define TIDE_QCOW2_L1_BYTES_MAX        (UINT64_C(32) << 20)
#define TIDE_QCOW2_REFTABLE_BYTES_MAX  (UINT64_C(8) << 20)
#define TIDE_QCOW2_SNAPSHOTS_MAX       65536u
#define TIDE_QCOW2_SNAPSHOTS_BYTES_MAX (UINT64_C(64) << 20)
#define TIDE_QCOW2_NAME_MAX            1023u

/* Clusters of a file must begin below this. */
#define TIDE_QCOW2_HOST_BITS 56u

enum {
	TIDE_QCOW2_INCOMPAT_DIRTY = 1 << 0,
	TIDE_QCOW2_INCOMPAT_CORRUPT = 1 << 1,
	TIDE_QCOW2_INCOMPAT_DATA_FILE = 1 << 2,
	TIDE_QCOW2_INCOMPAT_COMPRESSION = 1 << 3,
	TIDE_QCOW2_INCOMPAT_EXTENDED_L2 = 1 << 4,
	TIDE_QCOW2_COMPAT_LAZY_REFCOUNTS = 1 << 0,
	TIDE_QCOW2_AUTOCLEAR_BITMAPS = 1 << 0,
	TIDE_QCOW2_AUTOCLEAR_DATA_FILE_RAW = 1 << 1,
};

enum { TIDE_QCOW2_ZLIB = 0, TIDE_QCOW2_ZSTD = 1 };

enum {
	TIDE_QCOW2_EXT_END = 0,
	TIDE_QCOW2_EXT_BACKING_FORMAT = (int)0xe2792aca,
	TIDE_QCOW2_EXT_FEATURES = 0x6803f857,
	TIDE_QCOW2_EXT_BITMAPS = 0x23852875,
	TIDE_QCOW2_EXT_DATA_FILE = 0x44415441,
	/* Tidemark's own, "TIDE": eight bytes, the size of a disk that is no multiple of 512.  QEMU keeps what it does
	   not know. */
	TIDE_QCOW2_EXT_EXACT_SIZE = 0x54494445,
	/* "TIDF": the version; the CRC-32C of the backing file's name, without which the rest means nothing, for a
	   rebased image has another; the fingerprint of the backing disk, 64 hexadecimal digits; and in version 2 its
	   file: 64 bits each for device, inode, size and the seconds of the time of change, and 32 for its nanoseconds,
	   then 32 that are 0. */
	TIDE_QCOW2_EXT_FINGERPRINT = 0x54494446,
};

#define TIDE_QCOW2_FINGERPRINT_BYTES   72u
#define TIDE_QCOW2_FINGERPRINT_2_BYTES 112u

/* Where the fields of the header that are rewritten stand. */
enum { TIDE_QCOW2_AT_REFTABLE = 48, TIDE_QCOW2_AT_AUTOCLEAR = 88 };

#define TIDE_QCOW2_ENTRY_COPIED     (UINT64_C(1) << 63)
#define TIDE_QCOW2_ENTRY_COMPRESSED (UINT64_C(1) << 62)
#define TIDE_QCOW2_ENTRY_ZERO       UINT64_C(1)
#define TIDE_QCOW2_ENTRY_OFFSET     UINT64_C(0x00fffffffffffe00)

/* Of an extended L2 entry's second half: the subclusters that are allocated, and those that are zero. */
#define TIDE_QCOW2_SUBCLUSTER_BITS 5u
#define TIDE_QCOW2_SUBCLUSTERS     (1u << TIDE_QCOW2_SUBCLUSTER_BITS)
#define TIDE_QCOW2_BITMAP_ALLOC    UINT64_C(0x00000000ffffffff)
#define TIDE_QCOW2_BITMAP_ZERO     UINT64_C(0xffffffff00000000)

struct tide_qcow2_header {
	unsigned version, cluster_bits, refcount_order, compression;
	uint64_t size;
	uint64_t exact_size; /* of the disk that the image was made for; 0: `size` */
	uint64_t l1_offset, l1_entries;
	uint64_t reftable_offset, reftable_clusters;
	uint32_t snapshots;
	uint64_t snapshots_offset;
	uint64_t incompatible, compatible, autoclear;
	char *backing, *backing_format;      /* or NULL */
	char *data_file;                     /* given when there is an external data file, else NULL */
	struct tide_fingerprint fingerprint; /* of the backing image; its digits may be empty */
	uint32_t fingerprint_name;           /* the CRC-32C of the backing name that it is for */
	uint32_t n_bitmaps;                  /* 0: none, or not to be relied on */
	bool bitmaps_lost; /* a program that knows nothing of them has changed the image: they count as gone */
	uint64_t bitmap_dir_offset, bitmap_dir_size;
};

/* An L2 table or a refcount block, as it stands in the file. */
struct tide_qcow2_table {
	uint64_t index; /* in the L1 or refcount table */
	uint64_t host;  /* where it stands, bytes; 0: it has no place yet */
	bool dirty;
	bool unreferenced; /* nothing on the disk points to it yet */
	struct tide_qcow2_table *newer, *older;
	uint8_t data[];
};

struct tide_qcow2_table_list {
	struct tide_qcow2_table *newest, *oldest;
};

/* Tables by index.  Clean ones may go when there are too many, in order of their last use. */
struct tide_qcow2_cache {
	struct tide_qcow2_table **slot;
	uint64_t n_slots;
	size_t table_size;
	size_t n, n_dirty, n_max;
	struct tide_qcow2_table_list clean, dirty;
};

/* Clusters [first, first + n) of the file. */
struct tide_qcow2_run {
	uint64_t first, n;
	bool punch; /* give the space back to the file system when they become free */
};

struct tide_qcow2_runs {
	struct tide_qcow2_run *run;
	size_t n, cap;
};

/* A stretch of the file that holds metadata. */
struct tide_qcow2_area {
	uint64_t first, n;
	const char *what;
};

/* A hash set of clusters. */
struct tide_qcow2_set {
	uint64_t *slot; /* cluster number + 1; 0: free place */
	size_t cap, n;
};

/* Where metadata stands: never to be allocated, freed as data or written as data. */
struct tide_qcow2_meta {
	struct tide_qcow2_area *area; /* ascending, disjoint: what does not change */
	size_t n_areas, cap_areas;
	struct tide_qcow2_set tables;  /* L2 tables and refcount blocks */
	struct tide_qcow2_set bitmaps; /* their directory, tables and data, staged ones too */
};

struct tide_qcow2_bitmap {
	uint64_t table_offset;
	uint32_t table_entries;
	unsigned granularity_bits;
	bool in_use, enabled;
	bool unsound; /* in use, and its table is damaged: what it refers to is nobody's, and never freed */
	char *name;
};

struct tide_qcow2_stage;

struct tide_qcow2 {
	int fd;
	bool writable, is_new;
	bool late;      /* whether it may be written is asked before the first change */
	bool is_device; /* the file cannot grow */
	struct tide_qcow2_header header;
	unsigned cluster_bits;
	uint64_t cluster_size;
	bool extended;       /* L2 entries have 128 bits, else 64 */
	unsigned l2_bits;    /* log2 of the entries of an L2 table */
	unsigned block_bits; /* log2 of the entries of a refcount block */
	uint64_t size;       /* of the disk */
	bool has_backing;
	bool has_data_file, data_is_raw; /* data_is_raw: that file alone is the disk, too */
	int data_fd; /* where the disk's bytes stand: fd, or the data file's, -1 until that is set */
	size_t n_bitmaps;
	struct tide_qcow2_bitmap *bitmaps;

	pthread_mutex_t lock;
	uint64_t file_size;          /* with all that is allocated; may be ahead of the file system's */
	uint64_t data_size;          /* of the external data file */
	uint64_t *l1;                /* header.l1_entries of them, in the host's byte order; for qcow2_l1.c only */
	uint8_t *l1_read, *l1_dirty; /* of each page of them: is it here, has it changed */
	struct tide_qcow2_cache l2;

	/* For writing. */
	bool prepared; /* the file is ready to be changed */
	bool touched;  /* something may have changed since the last flush */
	bool failed;
	struct tide_error failure; /* why, if nobody has been told */
	uint64_t *reftable;        /* offsets of blocks */
	uint64_t reftable_entries;
	uint64_t reftable_offset;
	uint64_t reftable_dirty_from, reftable_dirty_to; /* entries; empty when equal */
	bool reftable_moved;
	struct tide_qcow2_cache blocks;
	uint64_t pack_at; /* where the next compressed cluster goes, within a cluster of the file; 0: a new one */
	uint64_t cursor;  /* where the search for free clusters goes on; new: the end of what is dealt out */
	struct tide_qcow2_runs free;     /* new: clusters that were given back, ascending */
	struct tide_qcow2_runs deferred; /* in place: to be given up by the next flush */
	struct tide_qcow2_meta meta;
	struct tide_qcow2_stage *stage; /* a staged change of the bitmaps, or NULL */
};

static inline uint64_t tide_qcow2_clusters(const struct tide_qcow2 *q, uint64_t bytes)
{
	return (bytes >> q->cluster_bits) + ((bytes & (q->cluster_size - 1)) != 0);
}

/* ---- qcow2.c ---- */

/* Do flags in the header forbid to write? */
int tide_qcow2_check_writable(const struct tide_qcow2 *q, struct tide_error *err);

/* ---- qcow2_header.c ---- */

bool tide_qcow2_header_probe(const uint8_t *head, size_t len);
/* Reads and checks the header and its extensions.  Release also after a failure. */
int tide_qcow2_header_read(int fd, uint64_t file_size, struct tide_qcow2_header *h, struct tide_error *err);
void tide_qcow2_header_release(struct tide_qcow2_header *h);
int tide_qcow2_header_info(const struct tide_qcow2_header *h, struct tide_driver_info *info, struct tide_error *err);

/* ---- qcow2_cache.c ---- */

int tide_qcow2_cache_init(struct tide_qcow2_cache *c, uint64_t n_slots, size_t table_size, struct tide_error *err);
void tide_qcow2_cache_release(struct tide_qcow2_cache *c);
int tide_qcow2_cache_grow(struct tide_qcow2_cache *c, uint64_t n_slots, struct tide_error *err);
/* NULL when it is not there.  What is returned stays until the next _add or _trim. */
struct tide_qcow2_table *tide_qcow2_cache_find(struct tide_qcow2_cache *c, uint64_t index);
/* A new, clean table, all zero. */
struct tide_qcow2_table *tide_qcow2_cache_add(struct tide_qcow2_cache *c, uint64_t index, struct tide_error *err);
void tide_qcow2_cache_drop(struct tide_qcow2_cache *c, struct tide_qcow2_table *t);
void tide_qcow2_cache_set_dirty(struct tide_qcow2_cache *c, struct tide_qcow2_table *t, bool dirty);
/* Clean tables go until there is room for one more. */
void tide_qcow2_cache_trim(struct tide_qcow2_cache *c);
/* The dirty tables in ascending order of index; free() the array. NULL also when out of memory. */
struct tide_qcow2_table **tide_qcow2_cache_dirty(const struct tide_qcow2_cache *c, struct tide_error *err);
/* Writes the dirty tables, all or only the unreferenced (those must be clean or have a place), and leaves them clean.
 */
int tide_qcow2_cache_write(struct tide_qcow2_cache *c, int fd, bool unreferenced_only, struct tide_error *err);

/* ---- qcow2_l1.c ---- */

int tide_qcow2_l1_open(struct tide_qcow2 *q, struct tide_error *err);
void tide_qcow2_l1_release(struct tide_qcow2 *q);
/* An entry, not checked; 0: there is no L2 table. */
int tide_qcow2_l1_get(struct tide_qcow2 *q, uint64_t index, uint64_t *entry, struct tide_error *err);
/* The first entry in [index, end) that is not 0, or end. */
int tide_qcow2_l1_next(struct tide_qcow2 *q, uint64_t index, uint64_t end, uint64_t *found, struct tide_error *err);
/* The table at host is this image's own.  The entry has been asked for before. */
void tide_qcow2_l1_set(struct tide_qcow2 *q, uint64_t index, uint64_t host);
bool tide_qcow2_l1_is_dirty(const struct tide_qcow2 *q);
int tide_qcow2_l1_write(struct tide_qcow2 *q, struct tide_error *err);

/* ---- qcow2_l2.c ---- */

enum tide_qcow2_kind {
	TIDE_QCOW2_HOLE,
	TIDE_QCOW2_ZEROES,
	TIDE_QCOW2_DATA,
	TIDE_QCOW2_COMPRESSED,
	TIDE_QCOW2_MIXED, /* its subclusters are not all of one kind */
};

struct tide_qcow2_cluster {
	enum tide_qcow2_kind kind;
	bool copied;
	uint64_t host;        /* DATA, COMPRESSED, MIXED: first byte.  Else: a cluster that is set aside, or 0 */
	uint64_t len;         /* COMPRESSED: at most so many bytes */
	uint32_t alloc, zero; /* MIXED: a bit a subcluster; MIXED without a cluster has no bit of alloc */
};

/* An entry of an L2 table; bitmap: extended ones only, else 0. */
struct tide_qcow2_entry {
	uint64_t word, bitmap;
};

static inline uint64_t tide_qcow2_l1_index(const struct tide_qcow2 *q, uint64_t off)
{
	return off >> (q->cluster_bits + q->l2_bits);
}

static inline uint64_t tide_qcow2_l2_index(const struct tide_qcow2 *q, uint64_t off)
{
	return (off >> q->cluster_bits) & ((UINT64_C(1) << q->l2_bits) - 1);
}

/* The entry for the cluster of the disk at off, in its table. */
struct tide_qcow2_entry tide_qcow2_l2_get(const struct tide_qcow2 *q, const struct tide_qcow2_table *t, uint64_t off);
void tide_qcow2_l2_set(const struct tide_qcow2 *q, struct tide_qcow2_table *t, uint64_t off,
                       struct tide_qcow2_entry entry);
/* A cluster of data at host.  A cluster of zeroes; word: 0, or that of the cluster set aside for it. */
struct tide_qcow2_entry tide_qcow2_l2_data_entry(const struct tide_qcow2 *q, uint64_t host);
struct tide_qcow2_entry tide_qcow2_l2_zero_entry(const struct tide_qcow2 *q, uint64_t word);
/* What that entry says; checked. */
int tide_qcow2_l2_decode(const struct tide_qcow2 *q, struct tide_qcow2_entry entry, uint64_t off,
                         struct tide_qcow2_cluster *out, struct tide_error *err);
/* *t NULL: there is no such table, and so nothing in its part of the disk. */
int tide_qcow2_l2_load(struct tide_qcow2 *q, uint64_t l1_index, struct tide_qcow2_table **t, struct tide_error *err);
/* As load, for changing: made or copied when there is none or it is shared; marked dirty. */
int tide_qcow2_l2_load_for_write(struct tide_qcow2 *q, uint64_t l1_index, struct tide_qcow2_table **t,
                                 struct tide_error *err);
/* The cluster of the disk at off. */
int tide_qcow2_l2_lookup(struct tide_qcow2 *q, uint64_t off, struct tide_qcow2_cluster *out, struct tide_error *err);
/* New images: gives every dirty table a place and writes it. */
int tide_qcow2_l2_write_all_new(struct tide_qcow2 *q, struct tide_error *err);

/* ---- qcow2_data.c: the external data file ---- */

int tide_qcow2_data_set_file(void *state, int fd, struct tide_error *err); /* see driver.h */
/* Before the disk's bytes are looked for, lock held: is there a file that holds them? */
int tide_qcow2_data_check(const struct tide_qcow2 *q, struct tide_error *err);
/* Before a write: that file gets the length of the disk, so that all of it is there to be mapped. */
int tide_qcow2_data_prepare(struct tide_qcow2 *q, struct tide_error *err);
/* The part of a zeroed range that stands in the file, where it must not or need not stay. */
int tide_qcow2_data_zero(struct tide_qcow2 *q, uint64_t off, uint64_t len, bool may_unmap, struct tide_error *err);
int tide_qcow2_data_sync(const struct tide_qcow2 *q, struct tide_error *err);

/* ---- qcow2_read.c, qcow2_compressed.c, qcow2_bitmap.c: see driver.h ---- */

int tide_qcow2_read_extent(void *state, uint64_t off, uint64_t len, struct tide_extent *out, struct tide_error *err);
int tide_qcow2_compressed_read(void *state, void *buf, uint64_t off, uint64_t len, struct tide_error *err);
int tide_qcow2_bitmap_open(struct tide_qcow2 *q, struct tide_error *err);
int tide_qcow2_bitmap_info(const struct tide_qcow2 *q, struct tide_driver_info *info, struct tide_error *err);
int tide_qcow2_bitmap_reclaim(void *state, size_t index, struct tide_error *err);
int tide_qcow2_bitmap_read(void *state, size_t index, struct tide_bitmap **out, struct tide_error *err);
void tide_qcow2_bitmap_release(struct tide_qcow2 *q);
void tide_qcow2_bitmap_free(struct tide_qcow2_bitmap *bitmaps, size_t n);
/* Table entries that a bitmap of this granularity needs. */
uint64_t tide_qcow2_bitmap_entries(const struct tide_qcow2 *q, unsigned granularity_bits);
/* Reads a bitmap's table, in the host's byte order, and checks its entries; free() it. */
uint64_t *tide_qcow2_bitmap_table(const struct tide_qcow2 *q, const struct tide_qcow2_bitmap *b,
                                  struct tide_error *err);

/* ---- qcow2_bitmap_put.c, qcow2_stage.c, qcow2_switch.c: changing bitmaps ---- */

#define TIDE_QCOW2_BITMAP_TYPE_DIRTY 1u
#define TIDE_QCOW2_BITMAP_HEAD       24u /* of a directory entry, before the name */
#define TIDE_QCOW2_BITMAPS_MAX       65535u
#define TIDE_QCOW2_BITMAP_DIR_MAX    UINT64_C(67107840)
#define TIDE_QCOW2_BITMAP_DATA_MAX   (UINT64_C(512) << 20)
/* Of a bitmap's flags and of its table's entries. */
enum { TIDE_QCOW2_BITMAP_IN_USE = 1 << 0, TIDE_QCOW2_BITMAP_AUTO = 1 << 1 };
#define TIDE_QCOW2_BITMAP_OFFSET   UINT64_C(0x00fffffffffffe00)
#define TIDE_QCOW2_BITMAP_RESERVED UINT64_C(0xff000000000001fe)
#define TIDE_QCOW2_BITMAP_ALL_ONES UINT64_C(1)

/* Is this set of bitmaps one that the image, and QEMU, can hold? */
int tide_qcow2_put_check(const struct tide_qcow2 *q, const struct tide_driver_bitmap_put *put, size_t n,
                         struct tide_error *err);
/* Once it is not in use any more, could the contents that it keeps be used? */
int tide_qcow2_put_check_kept(const struct tide_qcow2 *q, const struct tide_qcow2_bitmap *b, struct tide_error *err);
/* Writes a bitmap's data and table; its clusters are added to `used`, also on failure. */
int tide_qcow2_put_contents(struct tide_qcow2 *q, const struct tide_bitmap *bm, struct tide_qcow2_bitmap *b,
                            struct tide_qcow2_runs *used, struct tide_error *err);
/* Writes a directory; likewise. */
int tide_qcow2_put_directory(struct tide_qcow2 *q, const struct tide_qcow2_bitmap *bitmaps, size_t n, uint64_t *offset,
                             uint64_t *size, struct tide_qcow2_runs *used, struct tide_error *err);

int tide_qcow2_stage_bitmaps(void *state, const struct tide_driver_bitmap_put *put, size_t n,
                             struct tide_driver_switch *sw, struct tide_error *err);
int tide_qcow2_stage_commit(void *state, struct tide_driver_info *info, struct tide_error *err);
void tide_qcow2_stage_abort(void *state);
void tide_qcow2_stage_release(struct tide_qcow2 *q); /* gives up the memory only */

/* What the bitmaps extension is to say; n 0: there is to be none. */
struct tide_qcow2_extension {
	uint32_t n;
	uint64_t dir_offset, dir_size;
};

/* The extension with the names of features, when the switch takes it away; free() data. */
struct tide_qcow2_names {
	uint8_t *data; /* as it stood, from its type on; NULL: it stays, or there is none */
	uint64_t len;
	uint64_t at; /* where it can go after the switch: where the extensions end then */
};

/* Is there room in the header?  Changes nothing. */
int tide_qcow2_switch_check(const struct tide_qcow2 *q, const struct tide_qcow2_extension *to, struct tide_error *err);
/* Works out the switch to this extension, and moves the backing file's name first where that is needed. */
int tide_qcow2_switch_plan(struct tide_qcow2 *q, const struct tide_qcow2_extension *to, struct tide_driver_switch *sw,
                           struct tide_qcow2_names *names, struct tide_error *err);
/* After the switch.  Only a courtesy to those who do not know a feature. */
void tide_qcow2_switch_restore_names(struct tide_qcow2 *q, const struct tide_qcow2_names *names);

/* ---- qcow2_check.c: see driver.h ---- */

int tide_qcow2_check(int fd, const struct tide_check *check, struct tide_error *err);

/* ---- qcow2_create.c ---- */

/* The keys that create_image knows, and a NULL. */
extern const char *const tide_qcow2_settings[];
int tide_qcow2_create_image(int fd, const struct tide_driver_create *options, struct tide_error *err);

/* ---- qcow2_write.c ---- */

int tide_qcow2_write_begin(void *state, uint64_t off, uint64_t len, struct tide_extent *out, struct tide_error *err);
int tide_qcow2_write_commit(void *state, const struct tide_extent *place, struct tide_error *err);
void tide_qcow2_write_abort(void *state, const struct tide_extent *place);

/* ---- qcow2_pack.c: compressed clusters ---- */

int tide_qcow2_pack_new(void *state, void **packer, struct tide_error *err);
void tide_qcow2_pack_free(void *packer);
int tide_qcow2_pack_cluster(void *packer, const void *cluster, void *out, size_t *len, struct tide_error *err);
int tide_qcow2_pack_write(void *state, const struct tide_packed *clusters, size_t n, struct tide_error *err);

/* ---- qcow2_zero.c ---- */

bool tide_qcow2_can_zero_fast(void *state, bool may_unmap);
int tide_qcow2_zero_range(void *state, uint64_t off, uint64_t len, bool may_unmap, struct tide_error *err);

/* ---- qcow2_flush.c ---- */

int tide_qcow2_flush_image(void *state, struct tide_error *err);
/* -1: an earlier change did not get to the file. */
int tide_qcow2_check_failed(const struct tide_qcow2 *q, struct tide_error *err);
int tide_qcow2_flush_locked(struct tide_qcow2 *q, struct tide_error *err); /* lock held */
/* Before each change, lock held: makes the file ready, refuses after a failure, flushes when memory is full. */
int tide_qcow2_flush_prepare(struct tide_qcow2 *q, struct tide_error *err);

/* ---- qcow2_alloc.c: the same questions for in-place and new images; lock held ---- */

/* Up to `want` clusters in a row, at least one, none of them in use; marked as used. */
int tide_qcow2_alloc_clusters(struct tide_qcow2 *q, uint64_t want, uint64_t *first, uint64_t *got,
                              struct tide_error *err);
/* Never referenced on the disk: free at once. */
void tide_qcow2_alloc_undo(struct tide_qcow2 *q, uint64_t first, uint64_t n);
/* Room for n more calls of _drop, which then cannot fail; until the next _clusters. */
int tide_qcow2_alloc_reserve(struct tide_qcow2 *q, size_t n, struct tide_error *err);
/* The clusters lose a reference, once the next flush has made it so. */
void tide_qcow2_alloc_drop(struct tide_qcow2 *q, uint64_t first, uint64_t n, bool punch);
/* The same for what a cluster of the disk was made of; check that this frees no metadata before changing anything. */
int tide_qcow2_alloc_check_drop(const struct tide_qcow2 *q, const struct tide_qcow2_cluster *c, struct tide_error *err);
void tide_qcow2_alloc_drop_cluster(struct tide_qcow2 *q, const struct tide_qcow2_cluster *c, bool punch);
/* May this cluster of data be written where it is?  It is used once and no metadata, else an error. */
int tide_qcow2_alloc_is_exclusive(struct tide_qcow2 *q, uint64_t host, bool *exclusive, struct tide_error *err);
int tide_qcow2_runs_add(struct tide_qcow2_runs *runs, uint64_t first, uint64_t n, struct tide_error *err);
int tide_qcow2_runs_reserve(struct tide_qcow2_runs *runs, size_t more, struct tide_error *err);

/* ---- qcow2_refcount.c: in place ---- */

int tide_qcow2_refcount_open(struct tide_qcow2 *q, struct tide_error *err);
int tide_qcow2_refcount_get(struct tide_qcow2 *q, uint64_t cluster, uint64_t *count, struct tide_error *err);
int tide_qcow2_refcount_alloc(struct tide_qcow2 *q, uint64_t want, uint64_t *first, uint64_t *got,
                              struct tide_error *err);
/* Exactly n clusters in a row. */
int tide_qcow2_refcount_alloc_row(struct tide_qcow2 *q, uint64_t n, uint64_t *first, struct tide_error *err);
int tide_qcow2_refcount_decrease(struct tide_qcow2 *q, uint64_t cluster, bool *is_free, struct tide_error *err);
/* One more reference to a cluster in use. */
int tide_qcow2_refcount_increase(struct tide_qcow2 *q, uint64_t cluster, struct tide_error *err);
uint64_t tide_qcow2_refcount_max(const struct tide_qcow2 *q);
/* The entry `index` of a refcount block. */
uint64_t tide_qcow2_refcount_entry(unsigned order, const uint8_t *block, uint64_t index);
void tide_qcow2_refcount_set_entry(unsigned order, uint8_t *block, uint64_t index, uint64_t count);

/* ---- qcow2_build.c: new images ---- */

int tide_qcow2_build_alloc(struct tide_qcow2 *q, uint64_t want, uint64_t *first, uint64_t *got, struct tide_error *err);
void tide_qcow2_build_free(struct tide_qcow2 *q, uint64_t first, uint64_t n);
int tide_qcow2_build_flush(struct tide_qcow2 *q, struct tide_error *err);

/* ---- qcow2_meta.c ---- */

int tide_qcow2_meta_open(struct tide_qcow2 *q, struct tide_error *err);
void tide_qcow2_meta_release(struct tide_qcow2 *q);
/* What metadata stands in these clusters; NULL: none. */
const char *tide_qcow2_meta_find(const struct tide_qcow2 *q, uint64_t first, uint64_t n);
/* L2 tables and refcount blocks. */
int tide_qcow2_meta_add(struct tide_qcow2 *q, uint64_t cluster, struct tide_error *err);
void tide_qcow2_meta_remove(struct tide_qcow2 *q, uint64_t cluster);
/* What belongs to bitmaps. */
int tide_qcow2_meta_add_bitmap(struct tide_qcow2 *q, uint64_t cluster, struct tide_error *err);
bool tide_qcow2_meta_remove_bitmap(struct tide_qcow2 *q, uint64_t cluster); /* was it there? */

#endif
