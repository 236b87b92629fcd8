/*
 * Helpers for drivers: the information about an opened image, settings strings, and the list of
 * foreign formats that are recognized so that no such file is taken for a raw disk.
 */
#include "driver.h"

#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "birth.h"

void tide_driver_bitmaps_free(struct tide_driver_bitmap *bitmaps, size_t n)
{
	for (size_t i = 0; i < n; i++)
		free(bitmaps[i].name);
	free(bitmaps);
}

void tide_driver_snapshots_free(struct tide_snapshot **list)
{
	for (size_t i = 0; list && list[i]; i++) {
		free(list[i]->id);
		free(list[i]->name);
		free(list[i]);
	}
	free(list);
}

void tide_driver_info_release(struct tide_driver_info *info)
{
	free(info->backing);
	free(info->backing_format);
	free(info->data_file);
	free(info->fingerprint);
	tide_birth_free(info->birth);
	for (size_t i = 0; i < info->n_features; i++) {
		free(info->features[i].key);
		free(info->features[i].text);
	}
	free(info->features);
	tide_driver_bitmaps_free(info->bitmaps, info->n_bitmaps);
	*info = (struct tide_driver_info){ 0 };
}

int tide_driver_info_add(struct tide_driver_info *info, const char *key, enum tide_feature_kind kind, uint64_t number,
                         const char *text, struct tide_error *err)
{
	struct tide_feature *grown = tide_mem_realloc(info->features, info->n_features + 1, sizeof(*grown), err);
	struct tide_feature f = { .kind = kind, .number = number };

	if (!grown)
		return -1;
	info->features = grown;
	f.key = tide_mem_strdup(key, err);
	if (!f.key)
		return -1;
	if (text) {
		f.text = tide_mem_strdup(text, err);
		if (!f.text) {
			free(f.key);
			return -1;
		}
	}
	info->features[info->n_features++] = f;
	return 0;
}

/*
 * Formats whose files must not be taken for raw disks, by how they begin. The bytes of such a file are not the
 * disk's.
 */
static const struct {
	const char *name;
	unsigned off, len;
	const char *magic;
} foreign[] = {
	{ "qcow", 0, 8, "QFI\xfb\0\0\0\1" },
	{ "qed", 0, 4, "QED" },
	{ "vmdk", 0, 4, "KDMV" },
	{ "vmdk", 0, 4, "COWD" },
	{ "vdi", 64, 4, "\x7f\x10\xda\xbe" },
	{ "vpc", 0, 8, "conectix" },
	{ "vhdx", 0, 8, "vhdxfile" },
	{ "luks", 0, 8, "LUKS\xba\xbe\0\1" }, /* version 2 is the content of a disk, as for QEMU */
	{ "parallels", 0, 16, "WithoutFreeSpace" },
	{ "parallels", 0, 16, "WithouFreSpacExt" },
	{ "bochs", 0, 22, "Bochs Virtual HD Image" },
	{ "cloop", 0, 23, "#!/bin/sh\n#V2.0 Format\n" },
	/* Compressed files and archives of backups. */
	{ "gzip", 0, 3, "\x1f\x8b\x08" },
	{ "bzip2", 0, 10, "BZh91AY&SY" },
	{ "xz", 0, 6,
	  "\xfd"
	  "7zXZ\0" },
	{ "zstd", 0, 4, "\x28\xb5\x2f\xfd" },
	{ "lz4", 0, 4, "\x04\x22\x4d\x18" },
	{ "lz4", 0, 4, "\x02\x21\x4c\x18" }, /* as the Linux kernel uses it */
	{ "lzop", 0, 9, "\x89LZO\0\r\n\x1a\n" },
	{ "zip", 0, 4, "PK\x03\x04" },
	{ "7z", 0, 6, "7z\xbc\xaf\x27\x1c" },
	{ "tar", 257, 5, "ustar" },
	{ "cpio", 0, 6, "070701" },
	{ "cpio", 0, 6, "070702" },
	{ "cpio", 0, 6, "070707" },
	{ "android-sparse", 0, 4, "\x3a\xff\x26\xed" },
	{ "ewf", 0, 8, "EVF\x09\r\n\xff\0" },
	{ "ewf", 0, 8, "LVF\x09\r\n\xff\0" },
	{ "ewf", 0, 8, "EVF2\r\n\x81\0" },
	{ "ewf", 0, 8, "LEF2\r\n\x81\0" },
	{ "vma", 0, 4, "VMA\0" },
	{ "rbd-diff", 0, 12, "rbd diff v1\n" },
	{ "rbd-diff", 0, 12, "rbd diff v2\n" },
	{ "rbd-export", 0, 13, "rbd image v2\n" },
	{ "btrfs-stream", 0, 13, "btrfs-stream\0" },
	{ "zfs-stream", 8, 8, "\xac\xcb\xba\xf5\x02\0\0\0" },
};

static bool is_blank(uint8_t c)
{
	return c == ' ' || c == '\t' || c == '\r';
}

/* Is this the text, in any case, after blanks? Any number of blanks has the place of a space in it, also none. */
static bool is_text(const uint8_t *p, const uint8_t *end, const char *text)
{
	while (p < end && is_blank(*p))
		p++;
	for (; *text; text++) {
		if (*text == ' ') {
			while (p < end && is_blank(*p))
				p++;
		} else if (p == end || (*p++ | 0x20) != *text) {
			return false;
		}
	}
	return true;
}

/* As QEMU has it: comments and empty lines, then the version; the comment that VMware writes is enough. */
static bool is_vmdk_text(const uint8_t *p, size_t len)
{
	const uint8_t *end = p + len;

	while (p < end) {
		const uint8_t *line = p, *stop = memchr(p, '\n', (size_t)(end - p));

		while (p < end && is_blank(*p))
			p++;
		if (p < end && *p == '#' && is_text(p + 1, end, "disk descriptorfile"))
			return true;
		if (p < end && *p != '#' && *p != '\n')
			return (size_t)(end - line) > 9 && !memcmp(line, "version=", 8) && line[8] >= '1' &&
			       line[8] <= '3';
		if (!stop)
			return false;
		p = stop + 1;
	}
	return false;
}

/* There is no magic number; but programs write the same parameters, a round size of the window, and no huge size. */
static bool is_lzma(const uint8_t *p, size_t len)
{
	uint32_t window = len < 14 ? 0 : tide_get_le32(p + 1), top = window ? 1u << (31 - __builtin_clz(window)) : 0;

	return window >= 4096 && (window == top || window == (top | top >> 1)) && p[0] == 0x5d && p[13] == 0 &&
	       (tide_get_le64(p + 5) == UINT64_MAX ||
	        (tide_get_le64(p + 5) && tide_get_le64(p + 5) < UINT64_C(1) << 38));
}

/* The binary form, of either byte order: a short magic number, and the name of the first file, which ends with zero. */
static bool is_cpio(const uint8_t *p, size_t len)
{
	bool little = len >= 26 && tide_get_le16(p) == 070707, big = len >= 26 && tide_get_be16(p) == 070707;
	size_t name = little ? tide_get_le16(p + 20) : big ? tide_get_be16(p + 20) : 0;

	return name > 1 && name <= len - 26 && memchr(p + 26, 0, name) == p + 26 + name - 1;
}

/* The frames that zstd and lz4 leave to other programs: sixteen magic numbers. */
static bool is_skippable(const uint8_t *p, size_t len)
{
	return len >= 8 && (tide_get_le32(p) & 0xfffffff0) == 0x184d2a50;
}

const char *tide_driver_foreign(const uint8_t *head, size_t len)
{
	if (is_vmdk_text(head, len))
		return "vmdk";
	if (is_lzma(head, len))
		return "lzma";
	if (is_cpio(head, len))
		return "cpio";
	if (is_skippable(head, len))
		return "zstd";
	for (size_t i = 0; i < sizeof(foreign) / sizeof(*foreign); i++) {
		if (len >= foreign[i].off + foreign[i].len &&
		    !memcmp(head + foreign[i].off, foreign[i].magic, foreign[i].len))
			return foreign[i].name;
	}
	return NULL;
}

const char *tide_driver_foreign_end(const uint8_t *tail, size_t len)
{
	/* The trailer of Apple's disk images: the magic number, version 4, and its length, 512. */
	return len == 512 && !memcmp(tail, "koly\0\0\0\4\0\0\2\0", 12) ? "dmg" : NULL;
}

/*
 * Copies up to an unescaped stop character and turns doubled commas into one. Returns the position it stopped at,
 * or NULL when dst is full.
 */
static const char *take_word(const char *s, const char *stops, char *dst, size_t room)
{
	size_t n = 0;

	while (*s) {
		if (s[0] == ',' && s[1] == ',')
			s++;
		else if (strchr(stops, *s))
			break;
		if (n + 1 >= room)
			return NULL;
		dst[n++] = *s++;
	}
	dst[n] = '\0';
	return s;
}

int tide_driver_next_setting(const char **settings, char key[64], char value[256], struct tide_error *err)
{
	const char *s = *settings;

	if (!s || !*s)
		return 0;
	s = take_word(s, "=,", key, 64);
	if (!s)
		return tide_error_set(err, TIDE_E_REFUSED, "A setting's name is longer than 63 bytes in '%s'",
		                      *settings);
	if (*s != '=' || !key[0])
		return tide_error_set(err, TIDE_E_REFUSED, "Expected 'name=value' in '%s'", *settings);
	s = take_word(s + 1, ",", value, 256);
	if (!s)
		return tide_error_set(err, TIDE_E_REFUSED, "The value of '%s' is longer than 255 bytes", key);
	*settings = *s == ',' ? s + 1 : s;
	return 1;
}
