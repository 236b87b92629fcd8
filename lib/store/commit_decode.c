/*
 * Decoding commit records and pointers, which may be damaged or come from a stranger.
 *
 * Each line is a word and its fields, each after one space (commit_record.c).  A line of another form is refused
 * with the number of its line.  The records of the first version are read too: names that end in NUL, no identities.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/checksum.h"
#include "base/error.h"
#include "base/mem.h"
#include "commit_text.h"

/* ---- fields ------------------------------------------------------------------------ */

/* A line that is being read; failed: it does not have the form that was asked for. */
struct line {
	const char *p, *end;
	bool failed;
	bool nomem;
};

static int digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

static bool is_at_end(const struct line *l)
{
	return l->p == l->end;
}

static bool begins(struct line *l, const char *word)
{
	size_t n = strlen(word);

	if ((size_t)(l->end - l->p) < n || memcmp(l->p, word, n) != 0)
		return false;
	l->p += n;
	return true;
}

static void space(struct line *l)
{
	if (is_at_end(l) || *l->p != ' ')
		l->failed = true;
	else
		l->p++;
}

static uint64_t number(struct line *l, uint64_t max)
{
	uint64_t value = 0;
	int n = 0;

	space(l);
	for (; !is_at_end(l) && digit(*l->p) >= 0; l->p++, n++)
		value = value << 4 | (uint64_t)digit(*l->p);
	l->failed |= n == 0 || n > 16 || value > max;
	return value;
}

static void bytes(struct line *l, uint8_t *to, size_t n)
{
	space(l);
	for (size_t i = 0; i < n && !l->failed; i++, l->p += 2) {
		if (l->end - l->p < 2 || digit(l->p[0]) < 0 || digit(l->p[1]) < 0)
			l->failed = true;
		else
			to[i] = (uint8_t)(digit(l->p[0]) << 4 | digit(l->p[1]));
	}
}

/* Not empty, and without a NUL. */
static char *name(struct line *l, struct tide_error *err)
{
	char *out, *q;

	space(l);
	if (l->failed)
		return NULL;
	out = q = tide_mem_alloc((size_t)(l->end - l->p) + 1, 1, err);
	l->nomem |= !out;
	for (; out && !is_at_end(l) && *l->p != ' '; l->p++) {
		int c = (unsigned char)*l->p;

		if (c == '%') {
			bool is_hex = l->end - l->p >= 3 && digit(l->p[1]) >= 0 && digit(l->p[2]) >= 0;

			c = is_hex ? digit(l->p[1]) << 4 | digit(l->p[2]) : 0;
			l->p += is_hex ? 2 : 0;
		}
		l->failed |= c == 0;
		*q++ = (char)c;
	}
	l->failed |= out && q == out;
	return out;
}

/* ---- lines ------------------------------------------------------------------------- */

static void parse_rename(struct line *l, struct tide_commit_change *change, struct tide_error *err)
{
	change->kind = TIDE_COMMIT_RENAME;
	change->file.inode = number(l, UINT64_MAX);
	change->file.size = number(l, INT64_MAX);
	change->file.birth_sec = (int64_t)number(l, UINT64_MAX);
	change->file.birth_nsec = (uint32_t)number(l, 999999999);
	change->exclusive = begins(l, " x");
	if (!change->exclusive && !begins(l, " r"))
		l->failed = true;
	change->replaced.inode = number(l, UINT64_MAX);
	change->replaced.birth_sec = (int64_t)number(l, UINT64_MAX);
	change->replaced.birth_nsec = (uint32_t)number(l, 999999999);
	change->tmp = name(l, err);
	l->failed |= !change->file.inode || (change->tmp && strchr(change->tmp, '/'));
}

static void parse_switch(struct line *l, struct tide_commit_change *change)
{
	struct tide_driver_switch *sw = &change->sw;
	struct tide_stamp *stamp = &change->stamp;

	change->kind = TIDE_COMMIT_SWITCH;
	sw->offset = number(l, INT64_MAX);
	sw->len = number(l, sizeof(sw->before));
	if (l->failed)
		return;
	bytes(l, sw->before, sw->len);
	bytes(l, sw->after, sw->len);
	sw->guard_offset = number(l, INT64_MAX);
	sw->guard_len = number(l, TIDE_COMMIT_TEXT_MAX);
	sw->guard_crc = (uint32_t)number(l, UINT32_MAX);
	stamp->valid = number(l, 1);
	stamp->size = number(l, INT64_MAX);
	stamp->mtime_sec = (int64_t)number(l, UINT64_MAX);
	stamp->mtime_nsec = (uint32_t)number(l, 999999999);
}

static int parse_change(struct line *l, bool is_switch, struct tide_commit_record *record, struct tide_error *err)
{
	struct tide_commit_change *change = tide_commit_text_new_change(record, err);

	if (!change)
		return -1;
	if (is_switch)
		parse_switch(l, change);
	else
		parse_rename(l, change, err);
	change->path = name(l, err);
	change->relative = name(l, err);
	l->failed |= change->path && change->path[0] != '/';
	/* A record may come from a stranger: nothing moves but from temporary names to the names they were made for. */
	if (!is_switch && change->path && change->tmp && !l->failed) {
		const char *base = strrchr(change->path, '/') + 1;

		l->failed |= !tide_staged_is_temp(change->tmp, base);
	}
	return l->nomem ? -1 : 0;
}

static int parse_line(struct line *l, struct tide_commit_record *record, struct tide_error *err)
{
	if (begins(l, "token")) {
		record->token = number(l, UINT64_MAX);
	} else if (begins(l, "rename")) {
		if (parse_change(l, false, record, err) < 0)
			return -1;
	} else if (begins(l, "switch")) {
		if (parse_change(l, true, record, err) < 0)
			return -1;
	} else if (begins(l, "record") && !record->record) {
		record->record_dir.inode = number(l, UINT64_MAX);
		record->record_dir.birth_sec = (int64_t)number(l, UINT64_MAX);
		record->record_dir.birth_nsec = (uint32_t)number(l, 999999999);
		record->record = name(l, err);
		record->relative = name(l, err);
		l->failed |= record->record && record->record[0] != '/';
	} else {
		l->failed = true;
	}
	l->failed |= !is_at_end(l);
	return l->nomem ? -1 : 0;
}

static int damaged(const char *path, unsigned line, struct tide_error *err)
{
	tide_error_set(err, TIDE_E_CORRUPT, "The record of a transaction, '%s', is damaged in line %u", path, line);
	return tide_error_hint(err, "what it had decided is not known; to give it up, move the file away");
}

static int decode_text(const char *data, size_t len, const char *path, struct tide_commit_record *record,
                       struct tide_error *err)
{
	const char *p = data + strlen(TIDE_COMMIT_TEXT_MAGIC), *end = data + len;
	unsigned at = 1;

	for (const char *nl; p < end && (nl = memchr(p, '\n', (size_t)(end - p))); p = nl + 1) {
		struct line l = { .p = p, .end = nl };

		at++;
		if (begins(&l, "crc")) {
			uint32_t crc = tide_checksum_crc32c(0, data, (size_t)(p - data));

			if (number(&l, UINT32_MAX) != crc || l.failed || !is_at_end(&l) || nl + 1 != end ||
			    !record->token || !record->n == !record->record)
				return damaged(path, at, err);
			return 0;
		}
		if (parse_line(&l, record, err) < 0)
			return -1;
		if (l.failed)
			return damaged(path, at, err);
	}
	return damaged(path, at + 1, err);
}

/* ---- the first version ------------------------------------------------------------- */

static int old_switch(const char *p, struct tide_commit_change *change)
{
	struct line l = { .p = p, .end = p + strlen(p) };

	if (!begins(&l, "switch"))
		return -1;
	parse_switch(&l, change);
	return l.failed || !is_at_end(&l) ? -1 : 0;
}

static int old_change(const char *from, const char *to, struct tide_commit_record *record, struct tide_error *err)
{
	struct tide_commit_change *change = tide_commit_text_new_change(record, err);
	bool is_switch = !strncmp(from, "switch ", 7);

	if (!change)
		return -1;
	change->path = tide_mem_strdup(to, err);
	if (!is_switch)
		change->tmp = strrchr(from, '/') ? tide_mem_strdup(strrchr(from, '/') + 1, err) : NULL;
	if (to[0] != '/' || (is_switch ? old_switch(from, change) < 0 : !tide_staged_is_temp(from, to)))
		return 1;
	return change->path && (is_switch || change->tmp) ? 0 : -1;
}

static int decode_old(const char *data, size_t len, const char *path, struct tide_commit_record *record,
                      struct tide_error *err)
{
	size_t head = strlen(TIDE_COMMIT_TEXT_OLD);
	const char *p = data + head, *end = data + len - 4;

	record->is_old = true;
	if (len < head + 4 + 2 || end[-1] || tide_get_le32(end) != tide_checksum_crc32c(0, data, len - 4))
		return damaged(path, 1, err);
	if (*p != '/' && strncmp(p, "switch ", 7) != 0) {
		if (end - p < 10 || p[8] != '/')
			return damaged(path, 2, err);
		record->token = tide_get_le64(p);
		record->record = tide_mem_strdup(p + 8, err);
		return record->record ? 0 : -1;
	}
	while (p < end) {
		const char *to = p + strlen(p) + 1;
		int rc = to < end ? old_change(p, to, record, err) : 1;

		if (rc)
			return rc < 0 ? -1 : damaged(path, 2, err);
		p = to + strlen(to) + 1;
	}
	return 0;
}

/* No transaction depends on it: commands that such a file cannot mislead continue. */
static int not_one(const char *path, struct tide_error *err)
{
	tide_error_set(err, TIDE_E_CORRUPT, "'%s' is not the record of a transaction", path);
	return tide_error_hint(err, "the name is Tidemark's: move it away");
}

int tide_commit_record_decode(const char *data, size_t len, const char *path, struct tide_commit_record *record,
                              struct tide_error *err)
{
	size_t magic = strlen(TIDE_COMMIT_TEXT_MAGIC), old = strlen(TIDE_COMMIT_TEXT_OLD);

	if (len >= magic && !memcmp(data, TIDE_COMMIT_TEXT_MAGIC, magic))
		return decode_text(data, len, path, record, err);
	if (len >= old && !memcmp(data, TIDE_COMMIT_TEXT_OLD, old))
		return decode_old(data, len, path, record, err);
	return not_one(path, err);
}

/* ---- files ------------------------------------------------------------------------- */

static int read_file(int fd, const char *path, struct tide_commit_record *record, struct tide_error *err)
{
	TIDE_AUTOFREE char *data = NULL;
	struct stat st;

	if (fstat(fd, &st) < 0)
		return tide_error_set_sys(err, errno, "Could not look at '%s'", path);
	if (!S_ISREG(st.st_mode) || st.st_size > TIDE_COMMIT_TEXT_MAX)
		return not_one(path, err);
	data = tide_mem_alloc((size_t)st.st_size + 1, 1, err);
	if (!data || tide_sysio_pread(fd, data, (size_t)st.st_size, 0, false, err) < 0)
		return -1;
	return tide_commit_record_decode(data, (size_t)st.st_size, path, record, err);
}

int tide_commit_record_read(const char *path, struct tide_commit_record *record, int *out, struct tide_error *err)
{
	int fd TIDE_AUTOCLOSE = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);

	if (fd < 0 && tide_sysio_is_absent(path, errno))
		return 0;
	if (fd < 0 && (errno == EACCES || errno == EROFS || errno == EPERM))
		fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
	if (fd < 0 && tide_sysio_is_never_file(errno))
		return not_one(path, err);
	if (fd < 0)
		return tide_error_set_sys(err, errno, "Could not open '%s', the record of a transaction", path);
	if (read_file(fd, path, record, err) < 0)
		return -1;
	if (out) {
		*out = fd;
		fd = -1;
	}
	return 1;
}
