/*
 * Reads and checks the header of a qcow2 image and its extensions. Each check has a message of its
 * own, QEMU's where QEMU has one. A check here is what later code relies on: tables lie within the
 * file, on clusters, and have sane sizes.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/checksum.h"
#include "base/error.h"
#include "base/mem.h"
#include "base/range.h"
#include "base/strbuf.h"
#include "base/sysio.h"
#include "qcow2.h"

#define HEAD_BYTES UINT64_C(4096)

/* The raw header while it is being read: the part of the first cluster that the file has. */
struct raw {
	const uint8_t *data;
	uint64_t len;
	uint64_t file_size;
	uint64_t header_length;
	bool salvage;
};

bool tide_qcow2_header_probe(const uint8_t *head, size_t len)
{
	return len >= 8 && tide_get_be32(head) == TIDE_QCOW2_MAGIC && tide_get_be32(head + 4) >= 2;
}

void tide_qcow2_header_release(struct tide_qcow2_header *h)
{
	free(h->backing);
	free(h->backing_format);
	free(h->data_file);
	h->backing = h->backing_format = h->data_file = NULL;
}

static int check_base(const uint8_t *head, uint64_t file_size, struct tide_qcow2_header *h, struct tide_error *err)
{
	if (file_size < TIDE_QCOW2_HEADER_V2)
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "qcow2 header too short: expected at least %u bytes, the file has %" PRIu64,
		                      TIDE_QCOW2_HEADER_V2, file_size);
	if (tide_get_be32(head) != TIDE_QCOW2_MAGIC)
		return tide_error_set(err, TIDE_E_CORRUPT, "Image is not in qcow2 format");
	h->version = tide_get_be32(head + 4);
	if (h->version != 2 && h->version != 3)
		return tide_error_set(err, TIDE_E_UNSUPPORTED, "Unsupported qcow2 version %u", h->version);
	h->cluster_bits = tide_get_be32(head + 20);
	if (h->cluster_bits < 9 || h->cluster_bits > 21)
		return tide_error_set(err, TIDE_E_UNSUPPORTED, "Unsupported cluster size: 2^%u", h->cluster_bits);
	return 0;
}

/* The name that the image gives an incompatible feature, or NULL. */
static char *feature_name(const uint8_t *table, uint64_t len, unsigned bit, struct tide_error *err)
{
	for (; len >= 48; table += 48, len -= 48) {
		if (table[0] == 0 && table[1] == bit)
			return tide_mem_strndup((const char *)table + 2, 46, err);
	}
	return NULL;
}

static int refuse_features(uint64_t unknown, const uint8_t *table, uint64_t table_len, struct tide_error *err)
{
	struct tide_strbuf names = TIDE_STRBUF_INIT;
	const char *sep = "";

	for (unsigned bit = 0; bit < 64; bit++) {
		TIDE_AUTOFREE char *own = NULL;

		if (!(unknown >> bit & 1))
			continue;
		own = feature_name(table, table_len, bit, NULL);
		if (own && own[0])
			tide_strbuf_addf(&names, "%s%s", sep, own);
		else
			tide_strbuf_addf(&names, "%sUnknown incompatible feature: %" PRIx64, sep, UINT64_C(1) << bit);
		sep = ", ";
	}
	TIDE_AUTOFREE char *text = tide_strbuf_steal(&names, err);
	if (!text)
		return -1;
	return tide_error_set(err, TIDE_E_UNSUPPORTED, "Unsupported qcow2 feature(s): %s", text);
}

static int check_encryption(uint32_t method, struct tide_error *err)
{
	if (method == 0)
		return 0;
	if (method > 2)
		return tide_error_set(err, TIDE_E_UNSUPPORTED, "Unsupported encryption method %" PRIu32, method);
	return tide_error_set(err, TIDE_E_UNSUPPORTED, "The image is %s encrypted, which this version does not support",
	                      method == 1 ? "AES" : "LUKS");
}

static int read_v3(const struct raw *raw, struct tide_qcow2_header *h, struct tide_error *err)
{
	const uint8_t *d = raw->data;

	h->incompatible = tide_get_be64(d + 72);
	h->compatible = tide_get_be64(d + 80);
	h->autoclear = tide_get_be64(d + 88);
	h->refcount_order = tide_get_be32(d + 96);
	if (h->refcount_order > 6)
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "Reference count entry width too large; may not exceed 64 bits");
	if (raw->header_length > 104)
		h->compression = d[104];
	return 0;
}

static int check_compression(const struct tide_qcow2_header *h, struct tide_error *err)
{
	bool flagged = h->incompatible & TIDE_QCOW2_INCOMPAT_COMPRESSION;

	if (h->compression > TIDE_QCOW2_ZSTD)
		return tide_error_set(err, TIDE_E_UNSUPPORTED, "qcow2: unknown compression type: %u", h->compression);
	if (flagged != (h->compression != TIDE_QCOW2_ZLIB))
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "qcow2: Compression type incompatible feature bit must %sbe set",
		                      flagged ? "not " : "");
	return 0;
}

/* Are the subclusters of clusters of this size whole sectors? */
static int check_subclusters(const struct tide_qcow2_header *h, struct tide_error *err)
{
	unsigned bits = h->cluster_bits - TIDE_QCOW2_SUBCLUSTER_BITS;

	if ((h->incompatible & TIDE_QCOW2_INCOMPAT_EXTENDED_L2) && bits < 9)
		return tide_error_set(err, TIDE_E_CORRUPT, "Unsupported subcluster size: %u", 1u << bits);
	return 0;
}

static int check_aligned(const struct tide_qcow2_header *h, uint64_t off, const char *what, struct tide_error *err)
{
	if ((off & ((UINT64_C(1) << h->cluster_bits) - 1)) == 0)
		return 0;
	return tide_error_set(err, TIDE_E_CORRUPT,
	                      "%s offset invalid: expected a multiple of the cluster size, found %" PRIu64, what, off);
}

/* Checks that a table of `bytes` at off begins on a cluster and lies within the file. */
static int check_table(const struct tide_qcow2_header *h, const struct raw *raw, uint64_t off, uint64_t bytes,
                       const char *what, struct tide_error *err)
{
	if (check_aligned(h, off, what, err) < 0)
		return -1;
	if (!tide_range_is_within(off, bytes, raw->file_size))
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "%s offset invalid: %" PRIu64 " bytes at %" PRIu64
		                      " do not lie within the file of %" PRIu64 " bytes",
		                      what, bytes, off, raw->file_size);
	return 0;
}

static int read_l1(const struct raw *raw, struct tide_qcow2_header *h, struct tide_error *err)
{
	unsigned shift = 2 * h->cluster_bits - (h->incompatible & TIDE_QCOW2_INCOMPAT_EXTENDED_L2 ? 4 : 3);
	uint64_t stored = tide_get_be64(raw->data + 24), size = stored & ~UINT64_C(511);
	uint64_t need = (stored >> shift) + ((stored & ((UINT64_C(1) << shift) - 1)) != 0);

	h->size = size;
	h->l1_entries = tide_get_be32(raw->data + 36);
	h->l1_offset = tide_get_be64(raw->data + 40);
	if (size > INT64_MAX)
		return tide_error_set(err, TIDE_E_CORRUPT, "Image is too big: %" PRIu64 " bytes", size);
	if (h->l1_entries * 8 > TIDE_QCOW2_L1_BYTES_MAX)
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "Active L1 table too large: expected at most %" PRIu64 " bytes, found %" PRIu64,
		                      TIDE_QCOW2_L1_BYTES_MAX, h->l1_entries * 8);
	if (h->l1_entries < need)
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "L1 table is too small: expected %" PRIu64 " entries, found %" PRIu64, need,
		                      h->l1_entries);
	return check_table(h, raw, h->l1_offset, h->l1_entries * 8, "Active L1 table", err);
}

/* A table that the file lacks forbids only writing: see tide_qcow2_refcount_check_table. */
static int read_reftable(const struct raw *raw, struct tide_qcow2_header *h, struct tide_error *err)
{
	uint64_t bytes;

	h->reftable_offset = tide_get_be64(raw->data + 48);
	h->reftable_clusters = tide_get_be32(raw->data + 56);
	bytes = h->reftable_clusters << h->cluster_bits;
	if (bytes == 0)
		return tide_error_set(err, TIDE_E_CORRUPT, "Image does not contain a reference count table");
	if (bytes > TIDE_QCOW2_REFTABLE_BYTES_MAX)
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "Reference count table too large: expected at most %" PRIu64
		                      " bytes, found %" PRIu64,
		                      TIDE_QCOW2_REFTABLE_BYTES_MAX, bytes);
	if (h->reftable_offset > INT64_MAX - bytes)
		return tide_error_set(err, TIDE_E_CORRUPT, "Reference count table offset invalid: %" PRIu64,
		                      h->reftable_offset);
	return check_aligned(h, h->reftable_offset, "Reference count table", err);
}

static int read_snapshots(const struct raw *raw, struct tide_qcow2_header *h, struct tide_error *err)
{
	h->snapshots = tide_get_be32(raw->data + 60);
	h->snapshots_offset = tide_get_be64(raw->data + 64);
	if (h->snapshots_offset & ((UINT64_C(1) << h->cluster_bits) - 1))
		return tide_error_set(
		        err, TIDE_E_CORRUPT,
		        "Snapshot table offset invalid: expected a multiple of the cluster size, found %" PRIu64,
		        h->snapshots_offset);
	if (h->snapshots == 0)
		return 0;
	if (h->snapshots > TIDE_QCOW2_SNAPSHOTS_MAX)
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "Snapshot table too large: expected at most %u snapshots, found %" PRIu32,
		                      TIDE_QCOW2_SNAPSHOTS_MAX, h->snapshots);
	return check_table(h, raw, h->snapshots_offset, UINT64_C(40) * h->snapshots, "Snapshot table", err);
}

static int read_backing(const struct raw *raw, struct tide_qcow2_header *h, struct tide_error *err)
{
	uint64_t off = tide_get_be64(raw->data + 8);
	uint64_t len = tide_get_be32(raw->data + 16);
	uint64_t cluster = UINT64_C(1) << h->cluster_bits;

	if (off == 0)
		return 0;
	if (off > cluster || off < raw->header_length)
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "Invalid backing file offset: expected %" PRIu64 " to %" PRIu64
		                      ", found %" PRIu64,
		                      raw->header_length, cluster, off);
	if (len > TIDE_MIN(cluster - off, TIDE_QCOW2_NAME_MAX))
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "Backing file name too long: expected at most %" PRIu64 " bytes, found %" PRIu64,
		                      TIDE_MIN(cluster - off, TIDE_QCOW2_NAME_MAX), len);
	if (!tide_range_is_within(off, len, raw->len))
		return tide_error_set(err, TIDE_E_CORRUPT, "Backing file name lies beyond the end of the file");
	if (memchr(raw->data + off, '\0', len))
		return tide_error_set(err, TIDE_E_CORRUPT, "Backing file name contains a NUL byte");
	if (len == 0)
		return 0;
	h->backing = tide_mem_strndup((const char *)raw->data + off, len, err);
	return h->backing ? 0 : -1;
}

static int read_backing_format(const uint8_t *data, uint32_t len, struct tide_qcow2_header *h, struct tide_error *err)
{
	if (len >= 16)
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "ERROR: ext_backing_format: len=%" PRIu32 " too large (>=16)", len);
	if (memchr(data, '\0', len))
		return tide_error_set(err, TIDE_E_CORRUPT, "Backing format name contains a NUL byte");
	if (len == 0)
		return 0;
	free(h->backing_format);
	h->backing_format = tide_mem_strndup((const char *)data, len, err);
	return h->backing_format ? 0 : -1;
}

static int read_data_file(const uint8_t *data, uint32_t len, struct tide_qcow2_header *h, struct tide_error *err)
{
	if (!(h->incompatible & TIDE_QCOW2_INCOMPAT_DATA_FILE) || len == 0)
		return 0;
	if (memchr(data, '\0', len))
		return tide_error_set(err, TIDE_E_CORRUPT, "External data file name contains a NUL byte");
	free(h->data_file);
	h->data_file = tide_mem_strndup((const char *)data, len, err);
	return h->data_file ? 0 : -1;
}

/* Does the header name the file with the disk's bytes? */
static int check_data_file(const struct tide_qcow2_header *h, struct tide_error *err)
{
	if ((h->incompatible & TIDE_QCOW2_INCOMPAT_DATA_FILE) && !h->data_file)
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "'data-file' is required for this image, and the image does not name it");
	if ((h->autoclear & TIDE_QCOW2_AUTOCLEAR_DATA_FILE_RAW) && !h->data_file)
		return tide_error_set(err, TIDE_E_CORRUPT, "data-file-raw requires a data file");
	return 0;
}

static int read_bitmaps(const uint8_t *data, uint32_t len, const struct raw *raw, struct tide_qcow2_header *h,
                        struct tide_error *err)
{
	h->bitmaps_lost = !(h->autoclear & TIDE_QCOW2_AUTOCLEAR_BITMAPS);
	if (h->bitmaps_lost)
		return 0;
	if (len != 24)
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "bitmaps_ext: Invalid extension length: expected 24, found %" PRIu32, len);
	if (tide_get_be32(data + 4) != 0)
		return tide_error_set(err, TIDE_E_CORRUPT, "bitmaps_ext: Reserved field is not zero");
	h->n_bitmaps = tide_get_be32(data);
	h->bitmap_dir_size = tide_get_be64(data + 8);
	h->bitmap_dir_offset = tide_get_be64(data + 16);
	if (h->n_bitmaps > 65535)
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "bitmaps_ext: Image has %" PRIu32
		                      " bitmaps, exceeding the QEMU supported maximum of 65535",
		                      h->n_bitmaps);
	if (h->n_bitmaps == 0)
		return tide_error_set(err, TIDE_E_CORRUPT, "found bitmaps extension with zero bitmaps");
	if (h->bitmap_dir_offset & ((UINT64_C(1) << h->cluster_bits) - 1))
		return tide_error_set(err, TIDE_E_CORRUPT, "bitmaps_ext: invalid bitmap directory offset");
	if (h->bitmap_dir_size > 65535 * 1024)
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "bitmaps_ext: bitmap directory size (%" PRIu64
		                      ") exceeds the maximum supported size (67107840)",
		                      h->bitmap_dir_size);
	if (h->bitmap_dir_size == 0)
		return tide_error_set(err, TIDE_E_CORRUPT, "Requested bitmap directory size is zero");
	if (!tide_range_is_within(h->bitmap_dir_offset, h->bitmap_dir_size, raw->file_size))
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "bitmaps_ext: the bitmap directory lies beyond the end of the file");
	return 0;
}

/* The end of the header extensions. */
static uint64_t extensions_end(const struct raw *raw)
{
	uint64_t backing = tide_get_be64(raw->data + 8);

	return backing >= raw->header_length && backing < raw->len ? backing : raw->len;
}

/* Gets the extension at *off and moves *off to the next one: 1, or 0 at the end. */
static int next_extension(const struct raw *raw, uint64_t *off, uint32_t *type, const uint8_t **data, uint32_t *len,
                          struct tide_error *err)
{
	uint64_t end = extensions_end(raw);

	if (*off > end || end - *off < 8)
		return 0;
	*type = tide_get_be32(raw->data + *off);
	*len = tide_get_be32(raw->data + *off + 4);
	*data = raw->data + *off + 8;
	if (*len > end - *off - 8)
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "Header extension too large: extension %08" PRIx32 " has %" PRIu32
		                      " bytes, there is room for %" PRIu64,
		                      *type, *len, end - *off - 8);
	if (*type == TIDE_QCOW2_EXT_END)
		return 0;
	*off += 8 + tide_range_align_up(*len, 8);
	return 1;
}

static int check_features(const struct raw *raw, const struct tide_qcow2_header *h, struct tide_error *err)
{
	uint64_t known = TIDE_QCOW2_INCOMPAT_DIRTY | TIDE_QCOW2_INCOMPAT_CORRUPT | TIDE_QCOW2_INCOMPAT_DATA_FILE |
	                 TIDE_QCOW2_INCOMPAT_COMPRESSION | TIDE_QCOW2_INCOMPAT_EXTENDED_L2;
	uint64_t off = raw->header_length;
	const uint8_t *data;
	uint32_t type, len;

	if (!(h->incompatible & ~known))
		return 0;
	/* The names only make the message clearer: damage to them must not hide the refusal. */
	while (next_extension(raw, &off, &type, &data, &len, NULL) > 0) {
		if (type == TIDE_QCOW2_EXT_FEATURES)
			return refuse_features(h->incompatible & ~known, data, len, err);
	}
	return refuse_features(h->incompatible & ~known, NULL, 0, err);
}

/*
 * The exact size only helps to restore. It is ignored when it does not match the size, because the image was
 * resized.
 */
static void read_exact_size(const uint8_t *data, uint32_t len, struct tide_qcow2_header *h)
{
	uint64_t exact = len == 8 ? tide_get_be64(data) : 0;

	if (exact && tide_range_align_up(exact, 512) == h->size)
		h->exact_size = exact;
}

/* The fingerprint only helps to verify, too: anything unknown is ignored. */
static void read_fingerprint(const uint8_t *data, uint32_t len, struct tide_qcow2_header *h)
{
	struct tide_fingerprint *fp = &h->fingerprint;
	bool has_file = len == TIDE_QCOW2_FINGERPRINT_2_BYTES;

	if ((!has_file && len != TIDE_QCOW2_FINGERPRINT_BYTES) || tide_get_be32(data) != (has_file ? 2 : 1))
		return;
	for (int i = 0; i < 64; i++) {
		if (!memchr("0123456789abcdef", data[8 + i], 16))
			return;
	}
	memcpy(fp->disk, data + 8, 64);
	h->fingerprint_name = tide_get_be32(data + 4);
	fp->has_file = fp->stamp.valid = has_file;
	if (!has_file)
		return;
	fp->dev = tide_get_be64(data + 72);
	fp->ino = tide_get_be64(data + 80);
	fp->stamp.size = tide_get_be64(data + 88);
	fp->stamp.mtime_sec = (int64_t)tide_get_be64(data + 96);
	fp->stamp.mtime_nsec = tide_get_be32(data + 104);
}

/* Checked when it is decoded. */
static void read_birth(const uint8_t *data, uint32_t len, struct tide_qcow2_header *h)
{
	if (len <= sizeof(h->birth_file))
		return;
	memcpy(h->birth_file, data, sizeof(h->birth_file));
	h->birth_len = TIDE_MIN(len - sizeof(h->birth_file), TIDE_BIRTH_BYTES_MAX);
	memcpy(h->birth, data + sizeof(h->birth_file), h->birth_len);
}

static int try_bitmaps(const uint8_t *data, uint32_t len, const struct raw *raw, struct tide_qcow2_header *h,
                       struct tide_error *err)
{
	if (!raw->salvage)
		return read_bitmaps(data, len, raw, h, err);
	if (read_bitmaps(data, len, raw, h, NULL) < 0)
		h->n_bitmaps = 0;
	return 0;
}

static int read_extensions(const struct raw *raw, struct tide_qcow2_header *h, struct tide_error *err)
{
	uint64_t off = raw->header_length;
	const uint8_t *data;
	uint32_t type, len;
	int rc;

	while ((rc = next_extension(raw, &off, &type, &data, &len, err)) > 0) {
		if (type == (uint32_t)TIDE_QCOW2_EXT_BACKING_FORMAT)
			rc = read_backing_format(data, len, h, err);
		else if (type == TIDE_QCOW2_EXT_BITMAPS)
			rc = try_bitmaps(data, len, raw, h, err);
		else if (type == TIDE_QCOW2_EXT_DATA_FILE)
			rc = read_data_file(data, len, h, err);
		else if (type == TIDE_QCOW2_EXT_EXACT_SIZE)
			read_exact_size(data, len, h);
		else if (type == TIDE_QCOW2_EXT_FINGERPRINT)
			read_fingerprint(data, len, h);
		else if (type == TIDE_QCOW2_EXT_BIRTH)
			read_birth(data, len, h);
		else if (type == TIDE_QCOW2_EXT_TOKEN && len == TIDE_ID_BYTES)
			memcpy(h->token.bytes, data, TIDE_ID_BYTES);
		else if (type == TIDE_QCOW2_EXT_SUMS)
			tide_qcow2_sums_read_extension(data, len, h);
		if (rc < 0)
			return -1;
	}
	return rc;
}

static int read_header_length(struct raw *raw, const struct tide_qcow2_header *h, struct tide_error *err)
{
	raw->header_length = TIDE_QCOW2_HEADER_V2;
	if (h->version == 2)
		return 0;
	if (raw->len < TIDE_QCOW2_HEADER_V3)
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "qcow2 header too short: expected at least %u bytes, the file has %" PRIu64,
		                      TIDE_QCOW2_HEADER_V3, raw->len);
	raw->header_length = tide_get_be32(raw->data + 100);
	if (raw->header_length < TIDE_QCOW2_HEADER_V3)
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "qcow2 header too short: expected at least %u bytes, found %" PRIu64,
		                      TIDE_QCOW2_HEADER_V3, raw->header_length);
	if (raw->header_length > UINT64_C(1) << h->cluster_bits)
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "qcow2 header exceeds cluster size: it has %" PRIu64 " bytes",
		                      raw->header_length);
	if (raw->header_length % 8)
		return tide_error_set(err, TIDE_E_CORRUPT, "qcow2 header length %" PRIu64 " is not a multiple of 8",
		                      raw->header_length);
	if (raw->header_length > raw->len)
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "qcow2 header too short: expected %" PRIu64 " bytes, the file has %" PRIu64,
		                      raw->header_length, raw->len);
	return 0;
}

/* Reference counts and snapshots. */
static int read_counts(const struct raw *raw, struct tide_qcow2_header *h, struct tide_error *err)
{
	if (!raw->salvage)
		return read_reftable(raw, h, err) < 0 || read_snapshots(raw, h, err) < 0 ? -1 : 0;
	(void)!read_reftable(raw, h, NULL);
	if (read_snapshots(raw, h, NULL) < 0)
		h->snapshots = 0;
	return 0;
}

static int read_all(struct raw *raw, struct tide_qcow2_header *h, struct tide_error *err)
{
	h->refcount_order = 4;
	if (read_header_length(raw, h, err) < 0 || (h->version >= 3 && read_v3(raw, h, err) < 0) ||
	    check_features(raw, h, err) < 0 || check_compression(h, err) < 0 || check_subclusters(h, err) < 0 ||
	    check_encryption(tide_get_be32(raw->data + 32), err) < 0)
		return -1;
	if (read_l1(raw, h, err) < 0 || read_counts(raw, h, err) < 0)
		return -1;
	if (read_extensions(raw, h, err) < 0 || check_data_file(h, err) < 0)
		return -1;
	return read_backing(raw, h, err);
}

/* Are the extensions and the backing file's name complete in the first `have` bytes? */
static bool is_whole(const uint8_t *data, uint64_t have)
{
	uint64_t backing_end = (uint64_t)tide_get_be64(data + 8) + tide_get_be32(data + 16);
	uint64_t off = tide_get_be32(data + 4) == 2 ? TIDE_QCOW2_HEADER_V2 : tide_get_be32(data + 100);

	if (backing_end < tide_get_be64(data + 8) || backing_end > have)
		return false;
	while (off <= have - 8 && tide_get_be32(data + off) != TIDE_QCOW2_EXT_END)
		off += 8 + tide_range_align_up(tide_get_be32(data + off + 4), 8);
	return off <= have - 8;
}

/* Reads the beginning of the first cluster, and the rest only when it is needed, which is rare. */
static int read_raw(int fd, struct raw *raw, uint8_t *data, struct tide_error *err)
{
	uint64_t have = TIDE_MIN(raw->len, HEAD_BYTES);

	raw->data = data;
	if (tide_sysio_pread(fd, data, have, 0, false, err) < 0)
		return -1;
	if (have == raw->len || is_whole(data, have))
		return 0;
	return tide_sysio_pread(fd, data + have, raw->len - have, have, false, err);
}

int tide_qcow2_header_read(int fd, uint64_t file_size, bool salvage, struct tide_qcow2_header *h,
                           struct tide_error *err)
{
	uint8_t base[TIDE_QCOW2_HEADER_V2];
	TIDE_AUTOFREE uint8_t *data = NULL;
	struct raw raw = { .file_size = file_size, .salvage = salvage };

	if (tide_sysio_pread(fd, base, sizeof(base), 0, true, err) < 0 || check_base(base, file_size, h, err) < 0)
		return -1;
	raw.len = TIDE_MIN(UINT64_C(1) << h->cluster_bits, file_size);
	data = tide_mem_alloc(raw.len, 1, err);
	if (!data || read_raw(fd, &raw, data, err) < 0)
		return -1;
	return read_all(&raw, h, err);
}

static int add_bool(struct tide_driver_info *info, const char *key, bool value, struct tide_error *err)
{
	return tide_driver_info_add(info, key, TIDE_FEATURE_BOOL, value, NULL, err);
}

static int add_features(const struct tide_qcow2_header *h, struct tide_driver_info *info, struct tide_error *err)
{
	bool v3 = h->version >= 3;
	bool lazy = h->compatible & TIDE_QCOW2_COMPAT_LAZY_REFCOUNTS;

	if (tide_driver_info_add(info, "compat", TIDE_FEATURE_TEXT, 0, v3 ? "1.1" : "0.10", err) < 0 ||
	    tide_driver_info_add(info, "compression-type", TIDE_FEATURE_TEXT, 0,
	                         h->compression == TIDE_QCOW2_ZSTD ? "zstd" : "zlib", err) < 0 ||
	    (v3 && add_bool(info, "lazy-refcounts", lazy, err) < 0) ||
	    tide_driver_info_add(info, "refcount-bits", TIDE_FEATURE_NUMBER, UINT64_C(1) << h->refcount_order, NULL,
	                         err) < 0)
		return -1;
	if (!v3)
		return 0;
	if (h->data_file &&
	    (tide_driver_info_add(info, "data-file", TIDE_FEATURE_TEXT, 0, h->data_file, err) < 0 ||
	     add_bool(info, "data-file-raw", h->autoclear & TIDE_QCOW2_AUTOCLEAR_DATA_FILE_RAW, err) < 0))
		return -1;
	return add_bool(info, "corrupt", info->corrupt, err) < 0 ||
	                       add_bool(info, "extended-l2", h->incompatible & TIDE_QCOW2_INCOMPAT_EXTENDED_L2, err) < 0
	               ? -1
	               : 0;
}

static int add_birth(int fd, const struct tide_qcow2_header *h, struct tide_driver_info *info, struct tide_error *err)
{
	bool is_changed;

	if (h->birth_len == 0)
		return 0;
	if (tide_birth_decode(h->birth, h->birth_len, &info->birth, err) < 0)
		return -1;
	tide_qcow2_ext_compare_file(fd, h->birth_file, &is_changed, &info->birth->is_copy);
	info->birth->intact = !info->birth->unknown && (h->autoclear & TIDE_QCOW2_AUTOCLEAR_INTACT) && !is_changed;
	return 0;
}

int tide_qcow2_header_info(int fd, const struct tide_qcow2_header *h, struct tide_driver_info *info,
                           struct tide_error *err)
{
	info->size = h->size;
	info->exact_size = h->exact_size;
	info->cluster_size = UINT64_C(1) << h->cluster_bits;
	if (h->incompatible & TIDE_QCOW2_INCOMPAT_EXTENDED_L2)
		info->subcluster_size = info->cluster_size >> TIDE_QCOW2_SUBCLUSTER_BITS;
	info->dirty = h->incompatible & TIDE_QCOW2_INCOMPAT_DIRTY;
	info->corrupt = h->incompatible & TIDE_QCOW2_INCOMPAT_CORRUPT;
	info->bitmaps_lost = h->bitmaps_lost;
	info->bitmaps_token = h->token;
	info->snapshots = h->snapshots;
	info->sums = tide_qcow2_sums_state(fd, h);
	info->sums_of_birth = h->sums.of_birth && (h->autoclear & TIDE_QCOW2_AUTOCLEAR_INTACT);
	if (h->backing) {
		info->backing = tide_mem_strdup(h->backing, err);
		if (!info->backing)
			return -1;
	}
	if (h->data_file) {
		info->data_file = tide_mem_strdup(h->data_file, err);
		if (!info->data_file)
			return -1;
	}
	if (h->backing && h->backing_format) {
		info->backing_format = tide_mem_strdup(h->backing_format, err);
		if (!info->backing_format)
			return -1;
	}
	if (h->backing && h->fingerprint.disk[0] &&
	    h->fingerprint_name == tide_checksum_crc32c(0, h->backing, strlen(h->backing))) {
		info->fingerprint = tide_mem_alloc(1, sizeof(*info->fingerprint), err);
		if (!info->fingerprint)
			return -1;
		*info->fingerprint = h->fingerprint;
	}
	return add_birth(fd, h, info, err) < 0 ? -1 : add_features(h, info, err);
}
