#include "commit_record.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/checksum.h"
#include "base/error.h"
#include "base/mem.h"
#include "base/sysio.h"

#define MAGIC      "tidemark group 1\n"
#define RECORD_MAX (16 << 20)

int tide_commit_record_add(struct tide_commit_record *record, const char *from, const char *to, struct tide_error *err)
{
	if (from[0] != '/' || to[0] != '/')
		return tide_error_set(err, TIDE_E_REFUSED, "'%s' has no absolute path", from[0] == '/' ? to : from);
	if (!record->text.len)
		tide_strbuf_adds(&record->text, MAGIC);
	tide_strbuf_add(&record->text, from, strlen(from) + 1);
	tide_strbuf_add(&record->text, to, strlen(to) + 1);
	record->count++;
	return record->text.failed ? tide_error_set_nomem(err) : 0;
}

/* ---- steps inside images ----------------------------------------------------------- */

#define SWITCH "switch "

static void add_hex(struct tide_strbuf *text, const uint8_t *bytes, size_t n)
{
	for (size_t i = 0; i < n; i++)
		tide_strbuf_addf(text, "%02x", bytes[i]);
}

/* Numbers in hexadecimal: offset, length, before, after, the guard's three, and the stamp's four. */
int tide_commit_record_add_switch(struct tide_commit_record *record, const char *image,
                                  const struct tide_driver_switch *sw, const struct tide_stamp *stamp,
                                  struct tide_error *err)
{
	struct tide_strbuf text = TIDE_STRBUF_INIT;
	int rc = -1;

	tide_strbuf_addf(&text, SWITCH "%" PRIx64 " %zx ", sw->offset, sw->len);
	add_hex(&text, sw->before, sw->len);
	tide_strbuf_adds(&text, " ");
	add_hex(&text, sw->after, sw->len);
	tide_strbuf_addf(&text, " %" PRIx64 " %" PRIx64 " %" PRIx32 " %x %" PRIx64 " %" PRIx64 " %" PRIx32,
	                 sw->guard_offset, sw->guard_len, sw->guard_crc, stamp->valid, stamp->size,
	                 (uint64_t)stamp->mtime_sec, stamp->mtime_nsec);
	if (!record->text.len)
		tide_strbuf_adds(&record->text, MAGIC);
	tide_strbuf_add(&record->text, text.buf, text.len + 1);
	tide_strbuf_add(&record->text, image, strlen(image) + 1);
	record->count++;
	rc = text.failed || record->text.failed ? tide_error_set_nomem(err) : 0;
	tide_strbuf_release(&text);
	return rc;
}

static bool parse_number(const char **p, uint64_t *value)
{
	char *end;

	*value = strtoull(*p, &end, 16);
	if (end == *p || (*end && *end != ' '))
		return false;
	*p = *end ? end + 1 : end;
	return true;
}

static bool parse_hex(const char **p, uint8_t *bytes, size_t n)
{
	for (size_t i = 0; i < n; i++, *p += 2) {
		char pair[3] = { (*p)[0], (*p)[0] ? (*p)[1] : '\0', '\0' };
		char *end;

		bytes[i] = (uint8_t)strtoul(pair, &end, 16);
		if (end != pair + 2)
			return false;
	}
	if (**p != ' ')
		return false;
	++*p;
	return true;
}

static bool parse_switch(const char *p, struct tide_driver_switch *sw, struct tide_stamp *stamp)
{
	uint64_t len, crc, valid, sec, nsec;

	p += strlen(SWITCH);
	if (!parse_number(&p, &sw->offset) || !parse_number(&p, &len) || len > sizeof(sw->before))
		return false;
	sw->len = len;
	if (!parse_hex(&p, sw->before, len) || !parse_hex(&p, sw->after, len) || !parse_number(&p, &sw->guard_offset) ||
	    !parse_number(&p, &sw->guard_len) || !parse_number(&p, &crc) || !parse_number(&p, &valid) ||
	    !parse_number(&p, &stamp->size) || !parse_number(&p, &sec) || !parse_number(&p, &nsec))
		return false;
	if (sw->guard_len > RECORD_MAX)
		return false;
	sw->guard_crc = (uint32_t)crc;
	stamp->valid = valid;
	stamp->mtime_sec = (int64_t)sec;
	stamp->mtime_nsec = (uint32_t)nsec;
	return true;
}

static int write_durable(struct tide_commit_record *record, const char *path, bool exclusive, struct tide_error *err)
{
	struct tide_staged st = TIDE_STAGED_INIT;
	uint8_t crc[4];
	int rc = -1;

	tide_put_le32(crc, tide_checksum_crc32c(0, record->text.buf, record->text.len));
	if (tide_staged_begin(&st, path, 0600, err) == 0 &&
	    tide_sysio_pwrite(st.fd, record->text.buf, record->text.len, 0, err) == 0 &&
	    tide_sysio_pwrite(st.fd, crc, sizeof(crc), record->text.len, err) == 0)
		rc = tide_staged_commit(&st, exclusive, err);
	tide_staged_release(&st);
	return rc;
}

int tide_commit_record_write(struct tide_commit_record *record, const char *path, struct tide_error *err)
{
	struct tide_error why = TIDE_ERROR_INIT;

	if (write_durable(record, path, true, &why) < 0) {
		/* It may stand, not durable: the group is undone, and nobody may find that it was decided. */
		if (why.sys != EEXIST)
			unlink(path);
		tide_error_move(err, &why);
		return tide_error_wrap(err, "Could not write the group's record '%s'", path);
	}
	return 0;
}

int tide_commit_record_sync_names(const struct tide_commit_record *record, struct tide_error *err)
{
	const char *p = record->text.buf ? strchr(record->text.buf, '\n') + 1 : NULL;
	const char *end = p ? record->text.buf + record->text.len : NULL;

	while (p < end) {
		if (*p == '/' && tide_sysio_fsync_dir(p, err) < 0)
			return -1;
		p += strlen(p) + 1;
		p += strlen(p) + 1;
	}
	return 0;
}

int tide_commit_record_revoke(const char *path, struct tide_error *err)
{
	if (unlink(path) < 0)
		return tide_error_set_sys(err, errno, "Could not remove '%s'", path);
	/* It is gone for everybody but a loss of power; there is nothing better to do when this fails. */
	tide_sysio_fsync_dir(path, NULL);
	return 0;
}

void tide_commit_record_release(struct tide_commit_record *record)
{
	tide_strbuf_release(&record->text);
}

/* 0: not there. */
static int read_record(const char *path, char **text, size_t *len, struct tide_error *err)
{
	TIDE_AUTOCLOSE int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	TIDE_AUTOFREE char *data = NULL;
	struct stat st;

	if (fd < 0 && errno == ENOENT)
		return 0;
	if (fd < 0 || fstat(fd, &st) < 0)
		return tide_error_set_sys(err, errno, "Could not open '%s'", path);
	if (!S_ISREG(st.st_mode) || st.st_size < (off_t)(sizeof(MAGIC) + 4) || st.st_size > RECORD_MAX)
		return tide_error_set(err, TIDE_E_CORRUPT, "'%s' is no group's record", path);
	*len = (size_t)st.st_size - 4;
	data = tide_mem_alloc((size_t)st.st_size, 1, err);
	if (!data || tide_sysio_pread(fd, data, (size_t)st.st_size, 0, false, err) < 0)
		return -1;
	if (memcmp(data, MAGIC, strlen(MAGIC)) || data[*len - 1] ||
	    tide_get_le32(data + *len) != tide_checksum_crc32c(0, data, *len))
		return tide_error_set(err, TIDE_E_CORRUPT, "The group's record '%s' is damaged", path);
	*text = data;
	data = NULL;
	return 1;
}

int tide_commit_record_find_switch(const char *path, const char *image, struct tide_driver_switch *sw,
                                   struct tide_stamp *stamp, struct tide_error *err)
{
	TIDE_AUTOFREE char *text = NULL;
	TIDE_AUTOFREE char *done = tide_mem_printf(err, "%s.done", path);
	size_t len = 0;
	int rc = done ? read_record(path, &text, &len, err) : -1;

	if (rc == 0)
		rc = read_record(done, &text, &len, err);
	if (rc <= 0)
		return rc;
	for (const char *p = text + strlen(MAGIC), *end = text + len; p < end;) {
		const char *to = p + strlen(p) + 1;

		if (to >= end)
			break;
		if (!strncmp(p, SWITCH, strlen(SWITCH)) && !strcmp(to, image)) {
			if (parse_switch(p, sw, stamp))
				return 1;
			return tide_error_set(err, TIDE_E_CORRUPT, "The group's record '%s' is damaged", path);
		}
		p = to + strlen(to) + 1;
	}
	return 0;
}

/* ---- pointers ---------------------------------------------------------------------- */

int tide_commit_record_point(const char *pointer, uint64_t token, const char *record, struct tide_error *err)
{
	struct tide_commit_record text = TIDE_COMMIT_RECORD_INIT;
	uint8_t raw[8];
	int rc;

	tide_put_le64(raw, token);
	tide_strbuf_adds(&text.text, MAGIC);
	tide_strbuf_add(&text.text, raw, sizeof(raw));
	tide_strbuf_add(&text.text, record, strlen(record) + 1);
	rc = text.text.failed ? tide_error_set_nomem(err) : write_durable(&text, pointer, false, err);
	tide_commit_record_release(&text);
	return rc;
}

int tide_commit_record_read_pointer(const char *pointer, uint64_t *token, char **record, struct tide_error *err)
{
	TIDE_AUTOFREE char *text = NULL;
	size_t len = 0, head = strlen(MAGIC) + 8;
	int rc = read_record(pointer, &text, &len, err);

	if (rc <= 0)
		return rc;
	if (len < head + 2 || text[head] != '/')
		return tide_error_set(err, TIDE_E_CORRUPT, "'%s' points to no group's record", pointer);
	*token = tide_get_le64(text + strlen(MAGIC));
	*record = tide_mem_strdup(text + head, err);
	return *record ? 1 : -1;
}

/* ---- rolling forward --------------------------------------------------------------- */

static int rename_one(const char *from, const char *to, struct tide_error *err)
{
	if (!strncmp(from, SWITCH, strlen(SWITCH)))
		return 0;
	if (from[0] != '/' || to[0] != '/')
		return tide_error_set(err, TIDE_E_CORRUPT, "'%s' is no absolute path", from[0] == '/' ? to : from);
	/* A sidecar from a stranger leads to a record of his: it must not move anything else. */
	if (!tide_staged_is_temp(from, to))
		return tide_error_set(err, TIDE_E_CORRUPT, "'%s' is no temporary name of '%s'", from, to);
	if (rename(from, to) < 0 && errno != ENOENT)
		return tide_error_set_sys(err, errno, "Could not rename '%s' to '%s'", from, to);
	return tide_sysio_fsync_dir(to, err);
}

int tide_commit_record_roll_forward(const char *path, struct tide_strbuf *names, struct tide_error *err)
{
	TIDE_AUTOFREE char *text = NULL;
	size_t len = 0;
	TIDE_AUTOFREE char *done = tide_mem_printf(err, "%s.done", path);
	int rc = done ? read_record(path, &text, &len, err) : -1;

	if (rc == 0)
		return access(done, F_OK) == 0;
	if (rc < 0)
		return -1;
	for (const char *p = text + strlen(MAGIC), *end = text + len; p < end;) {
		const char *to = p + strlen(p) + 1;

		if (to >= end)
			return tide_error_set(err, TIDE_E_CORRUPT, "The group's record '%s' is damaged", path);
		if (rename_one(p, to, err) < 0)
			return -1;
		if (names)
			tide_strbuf_add(names, to, strlen(to) + 1);
		p = to + strlen(to) + 1;
	}
	if (rename(path, done) < 0 && errno != ENOENT)
		return tide_error_set_sys(err, errno, "Could not rename '%s'", path);
	return 1;
}

void tide_commit_record_forget(const char *path)
{
	TIDE_AUTOFREE char *done = tide_mem_printf(NULL, "%s.done", path);

	unlink(path);
	if (done)
		unlink(done);
}
