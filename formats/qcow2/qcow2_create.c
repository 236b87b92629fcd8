/*
 * Creates an empty qcow2 image: parses the settings, with QEMU's messages where QEMU refuses the
 * same, lays out header, refcount table, refcount blocks and L1 table, and writes them.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/checksum.h"
#include "base/error.h"
#include "base/mem.h"
#include "base/range.h"
#include "base/sysio.h"
#include "qcow2.h"

#define CLUSTER_DEFAULT 65536u
#define HEADER_LENGTH   112u /* of version 3, with the compression type */

#define EXACT_SIZE_BYTES 16u /* of its extension */

struct config {
	uint64_t exact_size; /* `size` is rounded up to a multiple of 512 */
	uint64_t size, cluster_size, refcount_bits;
	bool has_refcount_bits;
	unsigned version, compression;
	bool lazy_refcounts, extended_l2;
	char preallocation[16]; /* empty: off */
	const char *backing, *backing_format;
	char data_file[256]; /* empty: no data file */
	bool data_file_raw;
	const struct tide_fingerprint *fingerprint; /* or NULL */
};

/* The layout: header, refcount table, refcount blocks and L1 table follow each other in this order, in clusters. */
struct layout {
	unsigned cluster_bits, refcount_order;
	uint64_t l1_entries;
	uint64_t table, blocks, l1, total;
};

struct feature {
	uint8_t type, bit;
	const char *name;
};

/* The names that QEMU uses, so that its messages about our images are the usual ones. */
static const struct feature features[] = {
	{ 0, 0, "dirty bit" },        { 0, 1, "corrupt bit" },         { 0, 2, "external data file" },
	{ 0, 3, "compression type" }, { 0, 4, "extended L2 entries" }, { 1, 0, "lazy refcounts" },
	{ 2, 0, "bitmaps" },          { 2, 1, "raw external data" },
};

#define FEATURE_BYTES 48u

/* ---- settings ---- */

static int parse_size(const char *key, const char *text, uint64_t *out, struct tide_error *err)
{
	if (tide_parse_size(text, out, NULL) == 0)
		return 0;
	return tide_error_set(err, TIDE_E_REFUSED, "Parameter '%s' expects a non-negative number below 2^64", key);
}

static int parse_number(const char *key, const char *text, uint64_t *out, struct tide_error *err)
{
	char *end = NULL;

	errno = 0;
	*out = text[0] >= '0' && text[0] <= '9' ? strtoull(text, &end, 0) : 0;
	if (!end || errno || *end)
		return tide_error_set(err, TIDE_E_REFUSED, "Parameter '%s' expects a number", key);
	return 0;
}

static int parse_switch(const char *key, const char *text, bool *out, struct tide_error *err)
{
	*out = !strcmp(text, "on");
	if (!*out && strcmp(text, "off") != 0)
		return tide_error_set(err, TIDE_E_REFUSED, "Parameter '%s' expects 'on' or 'off'", key);
	return 0;
}

static int refuse_value(const char *key, const char *value, struct tide_error *err)
{
	return tide_error_set(err, TIDE_E_REFUSED, "Parameter '%s' does not accept value '%s'", key, value);
}

static int parse_compat(const char *value, struct config *c, struct tide_error *err)
{
	if (!strcmp(value, "0.10") || !strcmp(value, "v2"))
		c->version = 2;
	else if (!strcmp(value, "1.1") || !strcmp(value, "v3"))
		c->version = 3;
	else
		return refuse_value("version", value, err);
	return 0;
}

static int parse_compression(const char *value, struct config *c, struct tide_error *err)
{
	if (!strcmp(value, "zlib"))
		c->compression = TIDE_QCOW2_ZLIB;
	else if (!strcmp(value, "zstd"))
		c->compression = TIDE_QCOW2_ZSTD;
	else
		return refuse_value("compression-type", value, err);
	return 0;
}

/* Refuses settings that QEMU has and this version does not. */
static int parse_unsupported(const char *key, const char *value, struct config *c, struct tide_error *err)
{
	if (!strcmp(key, "preallocation")) {
		if (strcmp(value, "off") != 0 && strcmp(value, "metadata") != 0 && strcmp(value, "falloc") != 0 &&
		    strcmp(value, "full") != 0)
			return refuse_value(key, value, err);
		memcpy(c->preallocation, value, strlen(value) + 1);
		return 0;
	}
	if (!strcmp(key, "encryption") || !strncmp(key, "encrypt.", 8))
		return tide_error_set(err, TIDE_E_UNSUPPORTED, "Parameter '%s' is not supported by this version", key);
	return tide_error_set(err, TIDE_E_REFUSED, "Invalid parameter '%s'", key);
}

const char *const tide_qcow2_settings[] = { "cluster_size",     "refcount_bits",  "compat",
	                                    "compression_type", "lazy_refcounts", "extended_l2",
	                                    "data_file_raw",    "data_file",      NULL };

static int parse_setting(const char *key, const char *value, struct config *c, struct tide_error *err)
{
	if (!strcmp(key, "cluster_size"))
		return parse_size(key, value, &c->cluster_size, err);
	if (!strcmp(key, "refcount_bits")) {
		c->has_refcount_bits = true;
		return parse_number(key, value, &c->refcount_bits, err);
	}
	if (!strcmp(key, "compat"))
		return parse_compat(value, c, err);
	if (!strcmp(key, "compression_type"))
		return parse_compression(value, c, err);
	if (!strcmp(key, "lazy_refcounts"))
		return parse_switch(key, value, &c->lazy_refcounts, err);
	if (!strcmp(key, "extended_l2"))
		return parse_switch(key, value, &c->extended_l2, err);
	if (!strcmp(key, "data_file_raw"))
		return parse_switch(key, value, &c->data_file_raw, err);
	if (!strcmp(key, "data_file")) {
		memcpy(c->data_file, value, strlen(value) + 1); /* fits: tide_driver_next_setting limits the length */
		return 0;
	}
	return parse_unsupported(key, value, c, err);
}

static int check_extended_l2(const struct config *c, struct tide_error *err)
{
	if (!c->extended_l2)
		return 0;
	if (c->version < 3)
		return tide_error_set(err, TIDE_E_REFUSED,
		                      "Extended L2 entries are only supported with compatibility level 1.1 and above "
		                      "(use version=v3 or greater)");
	if (c->cluster_size < TIDE_QCOW2_SUBCLUSTERS * 512)
		return tide_error_set(err, TIDE_E_REFUSED,
		                      "Extended L2 entries are only supported with cluster sizes of at least %u bytes",
		                      TIDE_QCOW2_SUBCLUSTERS * 512);
	return 0;
}

static int check_preallocation(const struct config *c, struct tide_error *err)
{
	if (!c->preallocation[0] || !strcmp(c->preallocation, "off"))
		return 0;
	if (c->backing && !c->extended_l2)
		return tide_error_set(
		        err, TIDE_E_REFUSED,
		        "Backing file and preallocation can only be used at the same time if extended_l2 is "
		        "on");
	return tide_error_set(err, TIDE_E_UNSUPPORTED, "Parameter 'preallocation=%s' is not supported by this version",
	                      c->preallocation);
}

static int check_data_file(const struct config *c, struct tide_error *err)
{
	if (c->data_file_raw && !c->data_file[0])
		return tide_error_set(err, TIDE_E_REFUSED, "data-file-raw requires data-file");
	if (c->data_file_raw && c->backing)
		return tide_error_set(err, TIDE_E_REFUSED,
		                      "Backing file and data-file-raw cannot be used at the same time");
	if (c->data_file[0] && c->version < 3)
		return tide_error_set(err, TIDE_E_REFUSED,
		                      "External data files are only supported with compatibility level 1.1 and above "
		                      "(use version=v3 or greater)");
	return 0;
}

static int check_version2(const struct config *c, struct tide_error *err)
{
	if (c->version >= 3)
		return 0;
	if (c->lazy_refcounts)
		return tide_error_set(err, TIDE_E_REFUSED,
		                      "Lazy refcounts only supported with compatibility level 1.1 and above "
		                      "(use version=v3 or greater)");
	if (c->refcount_bits != 16)
		return tide_error_set(err, TIDE_E_REFUSED,
		                      "Different refcount widths than 16 bits require compatibility level 1.1 or above "
		                      "(use version=v3 or greater)");
	if (c->compression != TIDE_QCOW2_ZLIB)
		return tide_error_set(
		        err, TIDE_E_REFUSED,
		        "Non-zlib compression type is only supported with compatibility level 1.1 and above "
		        "(use version=v3 or greater)");
	return 0;
}

static int read_config(const struct tide_driver_create *options, struct config *c, struct tide_error *err)
{
	const char *settings = options->settings;
	char key[64], value[256];
	int rc;

	*c = (struct config){ .version = 3, .refcount_bits = 16, .cluster_size = CLUSTER_DEFAULT };
	if (options->cluster_size)
		c->cluster_size = options->cluster_size;
	while ((rc = tide_driver_next_setting(&settings, key, value, err)) > 0) {
		if (parse_setting(key, value, c, err) < 0)
			return -1;
	}
	if (rc < 0)
		return -1;
	if (!tide_range_is_pow2(c->cluster_size) || c->cluster_size < 512 || c->cluster_size > 2 << 20)
		return tide_error_set(err, TIDE_E_REFUSED, "Cluster size must be a power of two between 512 and 2048k");
	if (!tide_range_is_pow2(c->refcount_bits) || c->refcount_bits > 64)
		return tide_error_set(err, TIDE_E_REFUSED,
		                      "Refcount width must be a power of two and may not exceed 64 bits");
	c->size = tide_range_align_up(options->size, 512);
	c->exact_size = options->size;
	c->backing = options->backing;
	c->backing_format = options->backing_format;
	c->fingerprint = options->fingerprint;
	if (check_preallocation(c, err) < 0 || check_extended_l2(c, err) < 0 || check_data_file(c, err) < 0)
		return -1;
	return check_version2(c, err);
}

/* ---- layout ---- */

static int plan(const struct config *c, struct layout *l, struct tide_error *err)
{
	unsigned bits = tide_range_shift(c->cluster_size), order = tide_range_shift(c->refcount_bits);
	uint64_t per_block = c->cluster_size * 8 / c->refcount_bits;

	*l = (struct layout){ .cluster_bits = bits, .refcount_order = order, .blocks = 1 };
	l->l1_entries = TIDE_MAX(tide_range_div_up(c->size, UINT64_C(1) << (2 * bits - (c->extended_l2 ? 4 : 3))), 1);
	if (c->size > INT64_MAX || l->l1_entries * 8 > TIDE_QCOW2_L1_BYTES_MAX)
		return tide_error_set(
		        err, TIDE_E_REFUSED,
		        "The image size is too large for file format 'qcow2' (try using a larger cluster size)");
	l->l1 = tide_range_div_up(l->l1_entries * 8, c->cluster_size);
	for (;;) {
		l->table = tide_range_div_up(l->blocks * 8, c->cluster_size);
		l->total = 1 + l->table + l->blocks + l->l1;
		if (l->blocks * per_block >= l->total)
			return 0;
		l->blocks++;
	}
}

/* ---- header ---- */

static uint8_t *put_extension(uint8_t *p, uint32_t type, const void *data, size_t len)
{
	tide_put_be32(p, type);
	tide_put_be32(p + 4, (uint32_t)len);
	if (len)
		memcpy(p + 8, data, len);
	return p + 8 + tide_range_align_up(len, 8);
}

static uint8_t *put_features(uint8_t *p)
{
	uint8_t table[TIDE_ARRAY_SIZE(features) * FEATURE_BYTES] = { 0 };

	for (size_t i = 0; i < TIDE_ARRAY_SIZE(features); i++) {
		uint8_t *f = table + i * FEATURE_BYTES;

		f[0] = features[i].type;
		f[1] = features[i].bit;
		memcpy(f + 2, features[i].name, strlen(features[i].name));
	}
	return put_extension(p, TIDE_QCOW2_EXT_FEATURES, table, sizeof(table));
}

static void put_fields(uint8_t *h, const struct config *c, const struct layout *l)
{
	uint64_t size = c->cluster_size;

	tide_put_be32(h, TIDE_QCOW2_MAGIC);
	tide_put_be32(h + 4, c->version);
	tide_put_be32(h + 20, l->cluster_bits);
	tide_put_be64(h + 24, c->size);
	tide_put_be32(h + 36, (uint32_t)l->l1_entries);
	tide_put_be64(h + 40, (1 + l->table + l->blocks) * size);
	tide_put_be64(h + 48, size);
	tide_put_be32(h + 56, (uint32_t)l->table);
	if (c->version < 3)
		return;
	tide_put_be64(h + 72, (c->compression ? TIDE_QCOW2_INCOMPAT_COMPRESSION : 0) |
	                              (c->extended_l2 ? TIDE_QCOW2_INCOMPAT_EXTENDED_L2 : 0) |
	                              (c->data_file[0] ? TIDE_QCOW2_INCOMPAT_DATA_FILE : 0));
	tide_put_be64(h + 80, c->lazy_refcounts ? TIDE_QCOW2_COMPAT_LAZY_REFCOUNTS : 0);
	tide_put_be64(h + 88, c->data_file_raw ? TIDE_QCOW2_AUTOCLEAR_DATA_FILE_RAW : 0);
	tide_put_be32(h + 96, l->refcount_order);
	tide_put_be32(h + 100, HEADER_LENGTH);
	h[104] = (uint8_t)c->compression;
}

/* The size of the header beside the exact size; with the table of feature names, if they fit. */
static uint64_t other_bytes(const struct config *c, bool names)
{
	uint64_t n = (c->version < 3 ? TIDE_QCOW2_HEADER_V2 : HEADER_LENGTH) + 8;

	if (c->data_file[0])
		n += 8 + tide_range_align_up(strlen(c->data_file), 8);
	if (names)
		n += 8 + TIDE_ARRAY_SIZE(features) * FEATURE_BYTES;
	if (c->backing)
		n += 8 + tide_range_align_up(strlen(c->backing_format), 8) + strlen(c->backing);
	return n;
}

/* Always, so that the image itself says that its size is exact; left out only where it says nothing and is in the way.
 */
static bool has_exact_size(const struct config *c)
{
	uint64_t need = other_bytes(c, c->cluster_size > 512) + EXACT_SIZE_BYTES + TIDE_QCOW2_HEADER_ROOM;

	return c->exact_size && (c->exact_size != c->size || need <= c->cluster_size);
}

static uint64_t header_bytes(const struct config *c, bool names)
{
	return other_bytes(c, names) + (has_exact_size(c) ? EXACT_SIZE_BYTES : 0);
}

/* Do the names fit into the first cluster? */
static int check_room(const struct config *c, struct tide_error *err)
{
	if (header_bytes(c, false) <= c->cluster_size)
		return 0;
	return tide_error_set(err, TIDE_E_REFUSED,
	                      "The %s file name of %zu bytes does not fit into the first cluster of %" PRIu64
	                      " (try using a larger cluster size)",
	                      c->backing ? "backing" : "data", strlen(c->backing ? c->backing : c->data_file),
	                      c->cluster_size);
}

static int check_backing(const struct config *c, struct tide_error *err)
{
	uint64_t len;

	if (!c->backing)
		return 0;
	if (!c->backing_format)
		return tide_error_set(err, TIDE_E_REFUSED, "Backing file specified without backing format");
	len = strlen(c->backing);
	if (len == 0 || len > TIDE_QCOW2_NAME_MAX)
		return tide_error_set(err, TIDE_E_REFUSED, "Backing file name: expected 1 to %u bytes, found %" PRIu64,
		                      TIDE_QCOW2_NAME_MAX, len);
	if (strlen(c->backing_format) > 15)
		return tide_error_set(err, TIDE_E_REFUSED, "Backing format name: expected at most 15 bytes, found '%s'",
		                      c->backing_format);
	return 0;
}

/*
 * A fingerprint is stored only if QEMU, which rewrites the header, still has room for the features' names, a bitmap
 * extension, and more.
 */
static bool has_fingerprint(const struct config *c)
{
	return c->backing && c->fingerprint &&
	       header_bytes(c, c->cluster_size > 512) + 8 + TIDE_QCOW2_FINGERPRINT_2_BYTES + TIDE_QCOW2_HEADER_ROOM <=
	               c->cluster_size;
}

static uint8_t *put_fingerprint(uint8_t *p, const struct config *c)
{
	uint8_t data[TIDE_QCOW2_FINGERPRINT_2_BYTES];

	if (!has_fingerprint(c))
		return p;
	return put_extension(p, TIDE_QCOW2_EXT_FINGERPRINT, data,
	                     tide_qcow2_ext_encode_fingerprint(c->fingerprint, c->backing, data));
}

static int write_header(int fd, const struct config *c, const struct layout *l, struct tide_error *err)
{
	TIDE_AUTOFREE uint8_t *h = tide_mem_alloc(1, c->cluster_size, err);
	uint8_t *p;

	if (!h)
		return -1;
	put_fields(h, c, l);
	p = h + (c->version < 3 ? TIDE_QCOW2_HEADER_V2 : HEADER_LENGTH);
	if (c->backing)
		p = put_extension(p, (uint32_t)TIDE_QCOW2_EXT_BACKING_FORMAT, c->backing_format,
		                  strlen(c->backing_format));
	if (c->data_file[0])
		p = put_extension(p, TIDE_QCOW2_EXT_DATA_FILE, c->data_file, strlen(c->data_file));
	p = put_fingerprint(p, c);
	if (c->version >= 3 && c->cluster_size > 512 && header_bytes(c, true) <= c->cluster_size)
		p = put_features(p);
	if (has_exact_size(c)) {
		uint8_t exact[8];

		tide_put_be64(exact, c->exact_size);
		p = put_extension(p, TIDE_QCOW2_EXT_EXACT_SIZE, exact, sizeof(exact));
	}
	p = put_extension(p, TIDE_QCOW2_EXT_END, NULL, 0);
	if (c->backing) {
		memcpy(p, c->backing, strlen(c->backing));
		tide_put_be64(h + 8, (uint64_t)(p - h));
		tide_put_be32(h + 16, (uint32_t)strlen(c->backing));
	}
	return tide_sysio_pwrite(fd, h, c->cluster_size, 0, err);
}

/* ---- tables ---- */

/* Writes the refcount table and its blocks. */
static int write_counts(int fd, const struct config *c, const struct layout *l, struct tide_error *err)
{
	uint64_t clusters = l->table + l->blocks, per_block = c->cluster_size * 8 / c->refcount_bits;
	TIDE_AUTOFREE uint8_t *buf = tide_mem_alloc(clusters, c->cluster_size, err);
	uint8_t *blocks;

	if (!buf)
		return -1;
	blocks = buf + l->table * c->cluster_size;
	for (uint64_t i = 0; i < l->blocks; i++)
		tide_put_be64(buf + 8 * i, (1 + l->table + i) * c->cluster_size);
	for (uint64_t i = 0; i < l->total; i++)
		tide_qcow2_refcount_set_entry(l->refcount_order, blocks + i / per_block * c->cluster_size,
		                              i % per_block, 1);
	return tide_sysio_pwrite(fd, buf, clusters * c->cluster_size, c->cluster_size, err);
}

/* Writes an L1 table of zeroes. In a file, unwritten bytes read as zeroes, but a device may hold other bytes. */
static int write_l1(int fd, const struct config *c, const struct layout *l, struct tide_error *err)
{
	TIDE_AUTOFREE uint8_t *zeroes = NULL;
	struct stat st;

	if (fstat(fd, &st) < 0)
		return tide_error_set_sys(err, errno, "fstat");
	if (S_ISREG(st.st_mode)) {
		if (ftruncate(fd, (off_t)(l->total * c->cluster_size)) < 0)
			return tide_error_set_sys(err, errno, "Could not set the file's length to %" PRIu64,
			                          l->total * c->cluster_size);
		return 0;
	}
	zeroes = tide_mem_alloc(l->l1, c->cluster_size, err);
	if (!zeroes)
		return -1;
	return tide_sysio_pwrite(fd, zeroes, l->l1 * c->cluster_size, (l->total - l->l1) * c->cluster_size, err);
}

int tide_qcow2_create_image(int fd, const struct tide_driver_create *options, struct tide_error *err)
{
	struct config c;
	struct layout l;

	if (read_config(options, &c, err) < 0 || plan(&c, &l, err) < 0 || check_backing(&c, err) < 0 ||
	    check_room(&c, err) < 0)
		return -1;
	return write_header(fd, &c, &l, err) < 0 || write_counts(fd, &c, &l, err) < 0 ? -1 : write_l1(fd, &c, &l, err);
}
