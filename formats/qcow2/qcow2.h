/*
 * qcow2, versions 2 and 3: the types and calls that the files of the driver share. No other file includes
 * this.
 *
 * A disk is divided into clusters. An L1 table points to L2 tables of one cluster each, whose 64-bit
 * entries contain the offset of a disk's cluster in the file. The reference counts of the file's clusters
 * are in refcount blocks of one cluster each, to which the refcount table points.
 *
 * Extended L2 entries have 128 bits. Their second half describes each 32nd part of the cluster, a
 * subcluster, as allocated, zero, or neither. They are read and written subcluster by subcluster.
 *
 * With an external data file the disk's bytes are in that file, at the same offsets as on the disk; the
 * tables above describe only the rest. The data file has no reference counts.
 *
 * An image is open in one of three ways:
 *
 *   reading   L1 pages and L2 tables are read on demand; the cache of L2 tables is bounded.
 *   in place  (TIDE_OPEN_WRITE) changed tables stay in memory until a flush, which writes
 *             them in the order that qcow2_flush.c explains. A cluster that was released
 *             counts as used until the flush that makes its release durable has finished.
 *   new       (TIDE_OPEN_NEW) clusters are allocated in the order of the requests, without
 *             counts: every allocated cluster is used once. qcow2_build.c writes the counts
 *             at the end, or when the first compressed clusters are written: several of
 *             those share a cluster of the file, so the image continues in place.
 *
 * A failed flush makes the image useless for further writing (`failed`): how much of it reached the disk is
 * unknown, but it is a prefix, so the image is valid.
 *
 * Members from `lock` on are changed only by its holder; those before it are fixed once the image is open.
 */
#ifndef TIDE_QCOW2_H
#define TIDE_QCOW2_H

#include <pthread.h>

#include <sys/stat.h>

#include "image/birth.h"
#include "image/driver.h"
#include "image/sums.h"

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

/*
 * Tidemark's own autoclear flag: nothing has changed the disk since the birth record was written. A program that does
 * not know an autoclear flag clears it before it changes anything; QEMU does so when it opens the image for writing,
 * but not when it reopens it, as for a commit. So the flag alone proves nothing, and the file's time counts too.
 */
#define TIDE_QCOW2_AUTOCLEAR_INTACT (UINT64_C(1) << 62)
/* Another one, of the same kind: the table of checksums describes the file as it is (qcow2_sums.c). */
#define TIDE_QCOW2_AUTOCLEAR_SUMS (UINT64_C(1) << 61)

enum { TIDE_QCOW2_ZLIB = 0, TIDE_QCOW2_ZSTD = 1 };

enum {
	TIDE_QCOW2_EXT_END = 0,
	TIDE_QCOW2_EXT_BACKING_FORMAT = (int)0xe2792aca,
	TIDE_QCOW2_EXT_FEATURES = 0x6803f857,
	TIDE_QCOW2_EXT_BITMAPS = 0x23852875,
	TIDE_QCOW2_EXT_DATA_FILE = 0x44415441,
	/*
	 * Tidemark's own, "TIDE": eight bytes, the size of a disk that is not a multiple of 512. QEMU keeps
	 * extensions that it does not know.
	 */
	TIDE_QCOW2_EXT_EXACT_SIZE = 0x54494445,
	/*
	 * "TIDF": the version; the CRC-32C of the backing file's name, because the rest is only valid for that name
	 * and a rebased image has another; the fingerprint of the backing disk, 64 hexadecimal digits; and in
	 * version 2 its file: 64 bits each for device, inode, size and the seconds of the time of change, 32 for
	 * its nanoseconds, then 32 that are 0.
	 */
	TIDE_QCOW2_EXT_FINGERPRINT = 0x54494446,
	/*
	 * "TIDB": the identity of the file as the record was written, 16 bytes (qcow2_ext.c), then the birth record of
	 * a backup (image/birth.h).
	 */
	TIDE_QCOW2_EXT_BIRTH = 0x54494442,
	/*
	 * "TIDT": 16 random bytes that belong to the bitmaps, see bitmaps_token in image/driver.h.
	 */
	TIDE_QCOW2_EXT_TOKEN = 0x54494454,
	/* "TIDC": where the table of checksums is (qcow2_sums.c). */
	TIDE_QCOW2_EXT_SUMS = 0x54494443,
	/* "TIDV": space of an extension that was replaced. */
	TIDE_QCOW2_EXT_VOID = 0x54494456,
};

#define TIDE_QCOW2_FINGERPRINT_BYTES   72u
#define TIDE_QCOW2_FINGERPRINT_2_BYTES 112u
#define TIDE_QCOW2_HEADER_ROOM         128u /* bytes left free in the first cluster beside a fingerprint */

/* Offsets of the header fields that are rewritten. */
enum { TIDE_QCOW2_AT_REFTABLE = 48, TIDE_QCOW2_AT_INCOMPATIBLE = 72, TIDE_QCOW2_AT_AUTOCLEAR = 88 };

#define TIDE_QCOW2_ENTRY_COPIED     (UINT64_C(1) << 63)
#define TIDE_QCOW2_ENTRY_COMPRESSED (UINT64_C(1) << 62)
#define TIDE_QCOW2_ENTRY_ZERO       UINT64_C(1)
#define TIDE_QCOW2_ENTRY_OFFSET     UINT64_C(0x00fffffffffffe00)

/* Fields of an extended L2 entry's second half: the allocated subclusters, and the zero ones. */
#define TIDE_QCOW2_SUBCLUSTER_BITS 5u
#define TIDE_QCOW2_SUBCLUSTERS     (1u << TIDE_QCOW2_SUBCLUSTER_BITS)
#define TIDE_QCOW2_BITMAP_ALLOC    UINT64_C(0x00000000ffffffff)
#define TIDE_QCOW2_BITMAP_ZERO     UINT64_C(0xffffffff00000000)

#define TIDE_QCOW2_ID_BYTES   16u /* of the identity of a file (qcow2_ext.c) */
#define TIDE_QCOW2_SUMS_BYTES 64u /* of the extension for checksums */

struct tide_qcow2_sums_place {
	bool exists, known; /* known: the extension is valid, and the rest is set */
	uint64_t offset, len;
	uint64_t sum;          /* the table's own checksum */
	uint64_t guard;        /* the checksum of fields of the header */
	bool of_birth;         /* they are of the backup as it was made */
	uint64_t file_size;    /* as the checksums were stored */
	struct timespec mtime; /* the same; tv_nsec UINT32_MAX: unknown */
};

struct tide_qcow2_header {
	unsigned version, cluster_bits, refcount_order, compression;
	uint64_t size;
	uint64_t exact_size; /* of the disk the image was made for; 0: `size` */
	uint64_t l1_offset, l1_entries;
	uint64_t reftable_offset, reftable_clusters;
	uint32_t snapshots;
	uint64_t snapshots_offset;
	uint64_t incompatible, compatible, autoclear;
	char *backing, *backing_format;      /* or NULL */
	char *data_file;                     /* the external data file, or NULL */
	struct tide_fingerprint fingerprint; /* of the backing image; its digits may be empty */
	uint32_t fingerprint_name;           /* the CRC-32C of the backing name it belongs to */
	uint8_t birth_file[TIDE_QCOW2_ID_BYTES];
	size_t birth_len; /* 0: no birth record */
	uint8_t birth[TIDE_BIRTH_BYTES_MAX];
	struct tide_qcow2_sums_place sums;
	struct tide_id token; /* of the bitmaps; zero: none */
	uint32_t n_bitmaps;   /* 0: none, or not reliable */
	bool bitmaps_lost;    /* a program without support for them has changed the image: they count as gone */
	uint64_t bitmap_dir_offset, bitmap_dir_size;
};

/* An L2 table or a refcount block, with its bytes as in the file. */
struct tide_qcow2_table {
	uint64_t index; /* in the L1 or refcount table */
	uint64_t host;  /* its offset in the file; 0: not allocated yet */
	bool dirty;
	bool unreferenced; /* nothing on the disk points to it yet */
	struct tide_qcow2_table *newer, *older;
	uint8_t data[];
};

struct tide_qcow2_table_list {
	struct tide_qcow2_table *newest, *oldest;
};

/* Tables by index. When there are too many, clean ones are dropped, the least recently used first. */
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
	bool punch; /* when they become free, free their space in the file system too */
};

struct tide_qcow2_runs {
	struct tide_qcow2_run *run;
	size_t n, cap;
};

/* A range of the file that holds metadata. */
struct tide_qcow2_area {
	uint64_t first, n;
	uint64_t bytes;
	const char *what;
	bool is_snapshot; /* a snapshot's L1 table */
};

/* A hash set of clusters. */
struct tide_qcow2_set {
	uint64_t *slot; /* cluster number + 1; 0: free slot */
	size_t cap, n;
};

/* The clusters that hold metadata: never to be allocated, freed as data or written as data. */
struct tide_qcow2_meta {
	struct tide_qcow2_area *area; /* areas that do not move: ascending, disjoint */
	size_t n_areas, cap_areas;
	struct tide_qcow2_set tables;  /* L2 tables and refcount blocks */
	struct tide_qcow2_set bitmaps; /* their directory, tables and data, staged ones too */
};

struct tide_qcow2_bitmap {
	uint64_t table_offset;
	uint32_t table_entries;
	unsigned granularity_bits;
	bool in_use, enabled;
	bool unsound; /* in use, and its table is damaged: its clusters are unknown and never freed */
	char *name;
};

struct tide_qcow2_stage;
struct libdeflate_decompressor;

struct tide_qcow2 {
	int fd;
	bool writable, is_new;
	bool is_hidden; /* other programs cannot see it yet: no order of writes is needed */
	bool late;      /* check whether it may be written only before the first change */
	bool is_device; /* the file cannot grow */
	bool salvage;   /* open for reading: ignore reserved bits, and read what cut or missing files have left */
	struct tide_qcow2_header header;
	unsigned cluster_bits;
	uint64_t cluster_size;
	bool extended;       /* L2 entries have 128 bits, else 64 */
	unsigned l2_bits;    /* log2 of the entries of an L2 table */
	unsigned block_bits; /* log2 of the entries of a refcount block */
	uint64_t size;       /* of the disk */
	bool has_backing;
	bool has_data_file, data_is_raw; /* data_is_raw: the data file alone is also the disk */
	int data_fd;                     /* holds the disk's bytes: fd, or the data file's, -1 until that is set */
	size_t n_bitmaps;
	struct tide_qcow2_bitmap *bitmaps;

	pthread_mutex_t lock;
	uint64_t file_size;          /* with all allocated clusters; may exceed the file system's size */
	uint64_t data_size;          /* of the external data file */
	uint64_t *l1;                /* header.l1_entries entries in host byte order; for qcow2_l1.c only */
	uint8_t *l1_read, *l1_dirty; /* per page of entries: was it read, has it changed */
	struct tide_qcow2_cache l2;

	/* For writing. */
	bool prepared; /* the file is ready to be changed */
	bool touched;  /* something may have changed since the last flush */
	bool failed;
	struct tide_error failure; /* the reason, if it is not reported yet */
	uint64_t *reftable;        /* offsets of blocks */
	uint64_t reftable_entries;
	uint64_t reftable_offset;
	uint64_t reftable_dirty_from, reftable_dirty_to; /* entries; empty when equal */
	bool reftable_moved;
	struct tide_qcow2_cache blocks;
	uint64_t pack_at; /* where the next compressed cluster begins in the file; 0: in a new cluster */
	uint64_t cursor;  /* where the search for free clusters continues; new: the end of the allocated clusters */
	bool guarded;     /* the next two are known */
	uint64_t floor;   /* clusters before this one are never allocated, whatever their counts are */
	uint64_t cut;     /* the file must not grow beyond this cluster */
	struct tide_qcow2_runs free;     /* new: clusters that were released, ascending */
	struct tide_qcow2_runs deferred; /* in place: clusters that the next flush releases */
	struct tide_qcow2_meta meta;
	struct tide_qcow2_stage *stage; /* a staged change of the bitmaps, or NULL */
	bool has_next_token;            /* the next stage sets the token to: */
	struct tide_id next_token;
	struct tide_sums *collect; /* checksums of what is written go there; or NULL */
	struct tide_sums *proof;   /* what is read must have these checksums; or NULL */
};

static inline uint64_t tide_qcow2_clusters(const struct tide_qcow2 *q, uint64_t bytes)
{
	return (bytes >> q->cluster_bits) + ((bytes & (q->cluster_size - 1)) != 0);
}

/* ---- qcow2.c ---- */

/* Do flags in the header forbid writing? */
int tide_qcow2_check_writable(const struct tide_qcow2 *q, struct tide_error *err);

/* ---- qcow2_header.c ---- */

bool tide_qcow2_header_probe(const uint8_t *head, size_t len);
/*
 * Reads and checks the header and its extensions. Call release after a failure, too. salvage: errors in what the disk's
 * bytes do not depend on, which are reference counts, snapshots and bitmaps, leave the image without these.
 */
int tide_qcow2_header_read(int fd, uint64_t file_size, bool salvage, struct tide_qcow2_header *h,
                           struct tide_error *err);
void tide_qcow2_header_release(struct tide_qcow2_header *h);
int tide_qcow2_header_info(int fd, const struct tide_qcow2_header *h, struct tide_driver_info *info,
                           struct tide_error *err);

/* ---- qcow2_cache.c ---- */

int tide_qcow2_cache_init(struct tide_qcow2_cache *c, uint64_t n_slots, size_t table_size, struct tide_error *err);
void tide_qcow2_cache_release(struct tide_qcow2_cache *c);
int tide_qcow2_cache_grow(struct tide_qcow2_cache *c, uint64_t n_slots, struct tide_error *err);
/* NULL when the table is not in memory. A returned table stays valid until the next _add or _trim. */
struct tide_qcow2_table *tide_qcow2_cache_find(struct tide_qcow2_cache *c, uint64_t index);
/* A new, clean table, all zero. */
struct tide_qcow2_table *tide_qcow2_cache_add(struct tide_qcow2_cache *c, uint64_t index, struct tide_error *err);
void tide_qcow2_cache_drop(struct tide_qcow2_cache *c, struct tide_qcow2_table *t);
void tide_qcow2_cache_set_dirty(struct tide_qcow2_cache *c, struct tide_qcow2_table *t, bool dirty);
/* Drops clean tables until there is room for one more. */
void tide_qcow2_cache_trim(struct tide_qcow2_cache *c);
/* The dirty tables, ascending by index; the caller frees the array. NULL also when out of memory. */
struct tide_qcow2_table **tide_qcow2_cache_dirty(const struct tide_qcow2_cache *c, struct tide_error *err);
/*
 * Writes the dirty tables, or only the unreferenced ones, and marks them clean. Every table to be written must have
 * an offset.
 */
int tide_qcow2_cache_write(struct tide_qcow2_cache *c, int fd, bool unreferenced_only, struct tide_error *err);

/* ---- qcow2_l1.c ---- */

int tide_qcow2_l1_open(struct tide_qcow2 *q, struct tide_error *err);
void tide_qcow2_l1_release(struct tide_qcow2 *q);
/* An entry, unchecked; 0: no L2 table. */
int tide_qcow2_l1_get(struct tide_qcow2 *q, uint64_t index, uint64_t *entry, struct tide_error *err);
/* The first entry in [index, end) that is not 0, or end. */
int tide_qcow2_l1_next(struct tide_qcow2 *q, uint64_t index, uint64_t end, uint64_t *found, struct tide_error *err);
/* Sets the entry to the L2 table at host, which this image owns. tide_qcow2_l1_get must have read the entry before. */
void tide_qcow2_l1_set(struct tide_qcow2 *q, uint64_t index, uint64_t host);
bool tide_qcow2_l1_is_dirty(const struct tide_qcow2 *q);
int tide_qcow2_l1_write(struct tide_qcow2 *q, struct tide_error *err);

/* ---- qcow2_l2.c ---- */

enum tide_qcow2_kind {
	TIDE_QCOW2_HOLE,
	TIDE_QCOW2_ZEROES,
	TIDE_QCOW2_DATA,
	TIDE_QCOW2_COMPRESSED,
	TIDE_QCOW2_MIXED, /* its subclusters are of different kinds */
};

struct tide_qcow2_cluster {
	enum tide_qcow2_kind kind;
	bool copied;
	uint64_t host;        /* DATA, COMPRESSED, MIXED: first byte. Else: a preallocated cluster, or 0 */
	uint64_t len;         /* COMPRESSED: an upper limit of the bytes */
	uint32_t alloc, zero; /* MIXED: a bit a subcluster; without a cluster, alloc is 0 */
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
/*
 * The entry for a cluster of data at host, and for a cluster of zeroes (word: 0, or that of the cluster
 * preallocated for it).
 */
struct tide_qcow2_entry tide_qcow2_l2_data_entry(const struct tide_qcow2 *q, uint64_t host);
struct tide_qcow2_entry tide_qcow2_l2_zero_entry(const struct tide_qcow2 *q, uint64_t word);
/* Checks and decodes an entry. */
int tide_qcow2_l2_decode(const struct tide_qcow2 *q, struct tide_qcow2_entry entry, uint64_t off,
                         struct tide_qcow2_cluster *out, struct tide_error *err);
/* *t NULL: the table does not exist, and no cluster in its part of the disk does. */
int tide_qcow2_l2_load(struct tide_qcow2 *q, uint64_t l1_index, struct tide_qcow2_table **t, struct tide_error *err);
/* As load, for a change: makes the table if it does not exist, copies it if it is shared, and marks it dirty. */
int tide_qcow2_l2_load_for_write(struct tide_qcow2 *q, uint64_t l1_index, struct tide_qcow2_table **t,
                                 struct tide_error *err);
/* Describes the cluster of the disk at off. */
int tide_qcow2_l2_lookup(struct tide_qcow2 *q, uint64_t off, struct tide_qcow2_cluster *out, struct tide_error *err);
/* New images: allocates a cluster for every dirty table and writes the tables. */
int tide_qcow2_l2_write_all_new(struct tide_qcow2 *q, struct tide_error *err);

/* ---- qcow2_data.c: the external data file ---- */

int tide_qcow2_data_set_file(void *state, int fd, struct tide_error *err); /* see driver.h */
/* Lock held, before any access to the disk's bytes: checks that a file for them is set. */
int tide_qcow2_data_check(const struct tide_qcow2 *q, struct tide_error *err);
/* Before a write: extends the data file to the length of the disk, so that all of it can be mapped. */
int tide_qcow2_data_prepare(struct tide_qcow2 *q, struct tide_error *err);
/* Zeroes the part of a range that is in the data file, if it must not keep or need not keep its old content. */
int tide_qcow2_data_zero(struct tide_qcow2 *q, uint64_t off, uint64_t len, bool may_unmap, struct tide_error *err);
int tide_qcow2_data_sync(const struct tide_qcow2 *q, struct tide_error *err);

/* ---- qcow2_read.c, qcow2_compressed.c, qcow2_bitmap.c: see driver.h ---- */

int tide_qcow2_read_extent(void *state, uint64_t off, uint64_t len, struct tide_extent *out, struct tide_error *err);
int tide_qcow2_compressed_read(void *state, void *buf, uint64_t off, uint64_t len, struct tide_error *err);
/* Decompresses exactly a cluster. *inflate: NULL at first, used again by later calls, then released. */
int tide_qcow2_compressed_unpack(struct libdeflate_decompressor **inflate, unsigned compression, void *out,
                                 size_t cluster_size, const void *in, size_t len, struct tide_error *err);
void tide_qcow2_compressed_release(struct libdeflate_decompressor *inflate);
/* Lock held: reads a whole compressed cluster. */
int tide_qcow2_compressed_get(struct tide_qcow2 *q, const struct tide_qcow2_cluster *c, void *buf,
                              struct tide_error *err);
/* Lock held: refuses a compressed cluster that the end of the file cuts, if zeroes after that end would hide it. */
int tide_qcow2_compressed_check(struct tide_qcow2 *q, const struct tide_qcow2_cluster *c, struct tide_error *err);
int tide_qcow2_bitmap_open(struct tide_qcow2 *q, struct tide_error *err);
int tide_qcow2_bitmap_info(const struct tide_qcow2 *q, struct tide_driver_info *info, struct tide_error *err);
int tide_qcow2_bitmap_reclaim(void *state, size_t index, struct tide_error *err);
int tide_qcow2_bitmap_read(void *state, size_t index, struct tide_bitmap **out, struct tide_error *err);
void tide_qcow2_bitmap_release(struct tide_qcow2 *q);
void tide_qcow2_bitmap_free(struct tide_qcow2_bitmap *bitmaps, size_t n);
/* The number of table entries of a bitmap of this granularity. */
uint64_t tide_qcow2_bitmap_entries(const struct tide_qcow2 *q, unsigned granularity_bits);
/* Reads a bitmap's table, in host byte order, and checks its entries; the caller frees it. */
uint64_t *tide_qcow2_bitmap_table(const struct tide_qcow2 *q, const struct tide_qcow2_bitmap *b,
                                  struct tide_error *err);

/* ---- qcow2_bitmap_put.c, qcow2_stage.c, qcow2_switch.c: changing bitmaps ---- */

#define TIDE_QCOW2_BITMAP_TYPE_DIRTY 1u
#define TIDE_QCOW2_BITMAP_HEAD       24u /* of a directory entry, before the name */
#define TIDE_QCOW2_BITMAPS_MAX       65535u
#define TIDE_QCOW2_BITMAP_DIR_MAX    UINT64_C(67107840)
#define TIDE_QCOW2_BITMAP_DATA_MAX   (UINT64_C(512) << 20)
/* Flags of a bitmap; fields of its table's entries. */
enum { TIDE_QCOW2_BITMAP_IN_USE = 1 << 0, TIDE_QCOW2_BITMAP_AUTO = 1 << 1 };
#define TIDE_QCOW2_BITMAP_OFFSET   UINT64_C(0x00fffffffffffe00)
#define TIDE_QCOW2_BITMAP_RESERVED UINT64_C(0xff000000000001fe)
#define TIDE_QCOW2_BITMAP_ALL_ONES UINT64_C(1)

/* Can the image, and QEMU, hold this set of bitmaps? */
int tide_qcow2_put_check(const struct tide_qcow2 *q, const struct tide_driver_bitmap_put *put, size_t n,
                         struct tide_error *err);
/* Could the contents that a bitmap keeps be used once it is no longer in use? */
int tide_qcow2_put_check_kept(const struct tide_qcow2 *q, const struct tide_qcow2_bitmap *b, struct tide_error *err);
/* Writes a bitmap's data and table and adds their clusters to `used`, also on failure. */
int tide_qcow2_put_contents(struct tide_qcow2 *q, const struct tide_bitmap *bm, struct tide_qcow2_bitmap *b,
                            struct tide_qcow2_runs *used, struct tide_error *err);
/* Writes a directory; the same for its clusters. */
int tide_qcow2_put_directory(struct tide_qcow2 *q, const struct tide_qcow2_bitmap *bitmaps, size_t n, uint64_t *offset,
                             uint64_t *size, struct tide_qcow2_runs *used, struct tide_error *err);

int tide_qcow2_stage_bitmaps(void *state, const struct tide_driver_bitmap_put *put, size_t n,
                             struct tide_driver_switch *sw, struct tide_error *err);
int tide_qcow2_stage_commit(void *state, struct tide_driver_info *info, struct tide_error *err);
void tide_qcow2_stage_abort(void *state);
void tide_qcow2_stage_release(struct tide_qcow2 *q); /* frees the memory only */

int tide_qcow2_stage_token(void *state, const struct tide_id *token, struct tide_error *err);

/* The new content of the bitmaps extension; n 0: no extension. */
struct tide_qcow2_extension {
	uint32_t n;
	uint64_t dir_offset, dir_size;
	bool sets_token;      /* else the header keeps the one that it has */
	struct tide_id token; /* zero: none */
};

/* The extension with the names of features, if the switch removes it; the caller frees data. */
struct tide_qcow2_names {
	uint8_t *data; /* its bytes, from its type on; NULL: it stays, or did not exist */
	uint64_t len;
	uint64_t at; /* where it can be written after the switch: the end of the extensions */
};

/* Does the extension fit into the header? Changes nothing. */
int tide_qcow2_switch_check(const struct tide_qcow2 *q, const struct tide_qcow2_extension *to, struct tide_error *err);
/*
 * Prepares the switch to this extension, and moves the backing file's name first if that is in the way. If the header
 * has no room for the token, it has none afterwards, and to->token becomes zero.
 */
int tide_qcow2_switch_plan(struct tide_qcow2 *q, struct tide_qcow2_extension *to, struct tide_driver_switch *sw,
                           struct tide_qcow2_names *names, struct tide_error *err);
/* After the switch: restores the feature names, which only help programs that do not know a feature. */
void tide_qcow2_switch_restore_names(struct tide_qcow2 *q, const struct tide_qcow2_names *names);

/* ---- qcow2_ends.c ---- */

/* Lock held, before the file is extended for the first time: refuses a file that was cut within its last cluster. */
int tide_qcow2_ends_check(struct tide_qcow2 *q, struct tide_error *err);

/* ---- qcow2_ext.c: see driver.h ---- */

int tide_qcow2_ext_set_exact_size(void *state, uint64_t size, struct tide_driver_info *info, struct tide_error *err);
/* The bytes of the extension, at most TIDE_QCOW2_FINGERPRINT_2_BYTES. Returns their number. */
size_t tide_qcow2_ext_encode_fingerprint(const struct tide_fingerprint *fp, const char *backing, uint8_t *out);
int tide_qcow2_ext_set_fingerprint(void *state, const struct tide_fingerprint *fp, struct tide_error *err);
/*
 * *is_copy: the file is another one than that whose identity this is.  *is_changed: it has another size or time, which
 * a copy keeps if it is made that way.  Both are true if the identity is not known, as on a block device.
 */
void tide_qcow2_ext_compare_file(int fd, const uint8_t id[TIDE_QCOW2_ID_BYTES], bool *is_changed, bool *is_copy);
int tide_qcow2_ext_set_birth(void *state, const struct tide_birth *birth, struct tide_error *err);
/*
 * Lock held, after the last write: stores the file's identity beside the birth record, if that is intact, and the table
 * of checksums, if that is valid, and sets the file's time: to this one, or to now (NULL). is_copy: the record is of
 * another file, whose identity stays.
 */
int tide_qcow2_ext_seal(struct tide_qcow2 *q, const struct timespec *mtime, bool is_copy, struct tide_error *err);
/* Lock held: adds or replaces an extension of the header.  1: the header has no room. */
int tide_qcow2_ext_put(struct tide_qcow2 *q, uint32_t type, const uint8_t *data, size_t len, struct tide_error *err);

/* ---- qcow2_sums.c: see driver.h ---- */

/* Lock held: writes the extension, with this size and time of the file; NULL: they are unknown. */
int tide_qcow2_sums_put(struct tide_qcow2 *q, const struct stat *st, struct tide_error *err);
void tide_qcow2_sums_read_extension(const uint8_t *data, uint32_t len, struct tide_qcow2_header *h);
enum tide_sums_state tide_qcow2_sums_state(int fd, const struct tide_qcow2_header *h);
int tide_qcow2_sums_range(void *state, int *fd, uint64_t *start, uint64_t *end, struct tide_error *err);
int tide_qcow2_sums_store(void *state, struct tide_sums *sums, struct tide_error *err);
int tide_qcow2_sums_load(void *state, bool old, struct tide_sums **out, struct tide_error *err);
int tide_qcow2_sums_use(void *state, struct tide_sums *collect, struct tide_sums *proof, struct tide_error *err);
int tide_qcow2_sums_disk(void *state, const struct tide_bitmap *bad,
                         int (*found)(void *data, uint64_t off, uint64_t len, struct tide_error *err), void *data,
                         struct tide_error *err);
/* Have bytes that were read from the file their checksums, if it has any that count? */
int tide_qcow2_sums_prove(const struct tide_qcow2 *q, const void *buf, uint64_t off, uint64_t len,
                          struct tide_error *err);

/* ---- qcow2_check.c: see driver.h ---- */

int tide_qcow2_check(int fd, int data_fd, const struct tide_check *check, struct tide_error *err);

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

/* ---- qcow2_subcluster.c ---- */

/* The least that can be written alone: a cluster, unless L2 entries are extended. */
uint64_t tide_qcow2_subcluster_size(const struct tide_qcow2 *q);
/* The subclusters that the bytes [from, to) of a cluster touch, as a bitmap. */
uint32_t tide_qcow2_subcluster_mask(const struct tide_qcow2 *q, uint64_t from, uint64_t to);
struct tide_qcow2_entry tide_qcow2_subcluster_entry(uint64_t host, bool copied, uint32_t alloc, uint32_t zero);
/*
 * Lock held. write_begin for a part of one cluster, a prefix of the range: sets len and map_off. zero: of whole
 * subclusters of one cluster; 1: it is compressed, so zeroes must be written.
 */
int tide_qcow2_subcluster_begin(struct tide_qcow2 *q, uint64_t off, uint64_t len, struct tide_extent *out,
                                struct tide_error *err);
int tide_qcow2_subcluster_zero(struct tide_qcow2 *q, uint64_t off, uint64_t len, struct tide_error *err);

/* ---- qcow2_zero.c ---- */

bool tide_qcow2_can_zero_fast(void *state, bool may_unmap);
int tide_qcow2_zero_range(void *state, uint64_t off, uint64_t len, bool may_unmap, struct tide_error *err);

/* ---- qcow2_flush.c ---- */

int tide_qcow2_flush_image(void *state, struct tide_error *err);
/* -1: an earlier change did not reach the file. */
int tide_qcow2_check_failed(const struct tide_qcow2 *q, struct tide_error *err);
int tide_qcow2_flush_locked(struct tide_qcow2 *q, struct tide_error *err); /* lock held */
/* Lock held, before each change: prepares the file, refuses after a failure, flushes when memory is full. */
int tide_qcow2_flush_prepare(struct tide_qcow2 *q, struct tide_error *err);
/* The same before a change that leaves the disk as it is. */
int tide_qcow2_flush_prepare_meta(struct tide_qcow2 *q, struct tide_error *err);
/* Lock held: replaces a word of feature flags in the header, at this offset, and syncs; version 2 has none. */
int tide_qcow2_flush_put_flags(struct tide_qcow2 *q, uint64_t at, uint64_t *flags, uint64_t to, struct tide_error *err);
/* Sets and clears autoclear flags, durably. */
int tide_qcow2_flush_set_autoclear(struct tide_qcow2 *q, uint64_t set, uint64_t clear, struct tide_error *err);

/* ---- qcow2_alloc.c: the same questions for in-place and new images; lock held ---- */

/* Allocates up to `want` contiguous clusters, at least one, and marks them as used. */
int tide_qcow2_alloc_clusters(struct tide_qcow2 *q, uint64_t want, uint64_t *first, uint64_t *got,
                              struct tide_error *err);
/* Frees clusters that were never referenced on the disk, at once. */
void tide_qcow2_alloc_undo(struct tide_qcow2 *q, uint64_t first, uint64_t n);
/* Reserves memory for n more calls of _drop, which then cannot fail; valid until the next _clusters. */
int tide_qcow2_alloc_reserve(struct tide_qcow2 *q, size_t n, struct tide_error *err);
/* Drops one reference to each cluster; the next flush makes it effective. */
void tide_qcow2_alloc_drop(struct tide_qcow2 *q, uint64_t first, uint64_t n, bool punch);
/*
 * The same for the clusters that a cluster of the disk uses; first check, before any change, that this frees no
 * metadata.
 */
int tide_qcow2_alloc_check_drop(const struct tide_qcow2 *q, const struct tide_qcow2_cluster *c, struct tide_error *err);
void tide_qcow2_alloc_drop_cluster(struct tide_qcow2 *q, const struct tide_qcow2_cluster *c, bool punch);
/* May this cluster of data be written where it is? It must be referenced once; metadata is an error. */
int tide_qcow2_alloc_is_exclusive(struct tide_qcow2 *q, uint64_t host, bool *exclusive, struct tide_error *err);
int tide_qcow2_runs_add(struct tide_qcow2_runs *runs, uint64_t first, uint64_t n, struct tide_error *err);
int tide_qcow2_runs_reserve(struct tide_qcow2_runs *runs, size_t more, struct tide_error *err);

/* ---- qcow2_refcount.c: in place ---- */

int tide_qcow2_refcount_open(struct tide_qcow2 *q, struct tide_error *err);
/*
 * Before a change: the refcount table must lie within the file, and the header must be counted, which it is not if the
 * table or the first block is lost. Such an image can be read.
 */
int tide_qcow2_refcount_check_table(const struct tide_qcow2 *q, struct tide_error *err);
int tide_qcow2_refcount_check_header(const struct tide_qcow2 *q, struct tide_error *err);
/* Adds a hint to an error that reports lost counts; returns -1. */
int tide_qcow2_refcount_hint(struct tide_error *err);
int tide_qcow2_refcount_get(struct tide_qcow2 *q, uint64_t cluster, uint64_t *count, struct tide_error *err);
int tide_qcow2_refcount_alloc(struct tide_qcow2 *q, uint64_t want, uint64_t *first, uint64_t *got,
                              struct tide_error *err);
/* Allocates exactly n contiguous clusters. */
int tide_qcow2_refcount_alloc_row(struct tide_qcow2 *q, uint64_t n, uint64_t *first, struct tide_error *err);
int tide_qcow2_refcount_decrease(struct tide_qcow2 *q, uint64_t cluster, bool *is_free, struct tide_error *err);
/* Adds a reference to a cluster in use. */
int tide_qcow2_refcount_increase(struct tide_qcow2 *q, uint64_t cluster, struct tide_error *err);
uint64_t tide_qcow2_refcount_max(const struct tide_qcow2 *q);
/* Gets or sets entry `index` of a refcount block. */
uint64_t tide_qcow2_refcount_entry(unsigned order, const uint8_t *block, uint64_t index);
void tide_qcow2_refcount_set_entry(unsigned order, uint8_t *block, uint64_t index, uint64_t count);

/* Is the count of one of the first n clusters lower than `times` has it? */
int tide_qcow2_refcount_find_low(struct tide_qcow2 *q, const uint16_t *times, uint64_t n, bool *low,
                                 struct tide_error *err);

/* Sets the counts of the n clusters of the file, and 0 for all after them, and writes the blocks. */
int tide_qcow2_refcount_set_all(struct tide_qcow2 *q, const uint16_t *times, uint64_t n, struct tide_error *err);

/* ---- qcow2_repair.c ---- */

/* Lock held, before the first change: repairs the reference counts of an image that was not closed properly. */
int tide_qcow2_repair(struct tide_qcow2 *q, struct tide_error *err);

/* ---- qcow2_guard.c ---- */

/* Counts the references to L2 tables, and from them, for the n clusters of the file; the caller frees them. */
int tide_qcow2_guard_count(struct tide_qcow2 *q, uint16_t **times, uint64_t *n, struct tide_error *err);

/* Before each allocation in place: finds out, once, which free clusters may be used. */
int tide_qcow2_guard_open(struct tide_qcow2 *q, struct tide_error *err);

/* ---- qcow2_build.c: new images ---- */

int tide_qcow2_build_alloc(struct tide_qcow2 *q, uint64_t want, uint64_t *first, uint64_t *got, struct tide_error *err);
void tide_qcow2_build_free(struct tide_qcow2 *q, uint64_t first, uint64_t n);
int tide_qcow2_build_flush(struct tide_qcow2 *q, struct tide_error *err);

/* ---- qcow2_snapshot.c: see driver.h ---- */

int tide_qcow2_snapshot_list(void *state, struct tide_snapshot ***out, struct tide_error *err);

/* ---- qcow2_meta.c ---- */

int tide_qcow2_meta_open(struct tide_qcow2 *q, struct tide_error *err);
void tide_qcow2_meta_release(struct tide_qcow2 *q);
/* The kind of metadata in these clusters; NULL: none. */
const char *tide_qcow2_meta_find(const struct tide_qcow2 *q, uint64_t first, uint64_t n);
/* L2 tables and refcount blocks. */
int tide_qcow2_meta_add(struct tide_qcow2 *q, uint64_t cluster, struct tide_error *err);
void tide_qcow2_meta_remove(struct tide_qcow2 *q, uint64_t cluster);
/* Clusters of bitmaps. */
int tide_qcow2_meta_add_bitmap(struct tide_qcow2 *q, uint64_t cluster, struct tide_error *err);
bool tide_qcow2_meta_remove_bitmap(struct tide_qcow2 *q, uint64_t cluster); /* returns whether it was one */

#endif
