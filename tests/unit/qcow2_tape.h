/*
 * A tape of all changes of one image file (and of the times of those of its external data file), and
 * the file as a power cut at any point of the tape could leave it: with all synced changes and any subset of the later
 * ones, in sectors.  This header defines pwrite, fdatasync, ftruncate and fallocate for its program.
 */
#ifndef TIDE_QCOW2_TAPE_H
#define TIDE_QCOW2_TAPE_H

#include <sys/syscall.h>

#include "qcow2_sample.h"

#define SECTOR UINT64_C(512)

enum kind { WRITE, TRUNCATE, PUNCH, SYNC, MARK, DATA_CHANGE, DATA_SYNC };

struct event {
	enum kind kind;
	uint64_t off, len;
	uint8_t *data;
	unsigned op; /* MARK: what the test wants to know later, and len, too */
};

static struct {
	int fd;      /* -1: nothing is recorded */
	int data_fd; /* of an external data file, or -1 */
	size_t n, cap;
	struct event *event;
	unsigned fail_in; /* the fail_in-th write or sync from now fails; 0: none */
} tape = { .fd = -1, .data_fd = -1 };

static inline bool fails(int fd)
{
	if (fd != tape.fd || tape.fail_in == 0 || --tape.fail_in > 0)
		return false;
	errno = EIO;
	return true;
}

static inline void record(enum kind kind, uint64_t off, uint64_t len, const void *data, unsigned op)
{
	struct event *e;

	if (tape.n == tape.cap) {
		tape.cap = tape.cap ? 2 * tape.cap : 1024;
		tape.event = realloc(tape.event, tape.cap * sizeof(*tape.event));
	}
	e = &tape.event[tape.n++];
	*e = (struct event){ .kind = kind, .off = off, .len = len, .op = op };
	if (data) {
		e->data = malloc(len);
		memcpy(e->data, data, len);
	}
}

static inline void forget(void)
{
	for (size_t i = 0; i < tape.n; i++)
		free(tape.event[i].data);
	tape.n = 0;
}

/* The C library's calls, as the driver makes them. */
ssize_t pwrite(int fd, const void *buf, size_t len, off_t off)
{
	if (fails(fd))
		return -1;
	if (fd == tape.fd)
		record(WRITE, (uint64_t)off, len, buf, 0);
	else if (fd == tape.data_fd)
		record(DATA_CHANGE, (uint64_t)off, len, NULL, 0);
	return syscall(SYS_pwrite64, fd, buf, len, off);
}

int fdatasync(int fd)
{
	if (fails(fd))
		return -1;
	if (fd == tape.fd)
		record(SYNC, 0, 0, NULL, 0);
	else if (fd == tape.data_fd)
		record(DATA_SYNC, 0, 0, NULL, 0);
	return 0;
}

int ftruncate(int fd, off_t len)
{
	if (fd == tape.fd)
		record(TRUNCATE, 0, (uint64_t)len, NULL, 0);
	return (int)syscall(SYS_ftruncate, fd, len);
}

int fallocate(int fd, int mode, off_t off, off_t len)
{
	if (fd == tape.fd)
		record(PUNCH, (uint64_t)off, (uint64_t)len, NULL, 0);
	else if (fd == tape.data_fd)
		record(DATA_CHANGE, (uint64_t)off, (uint64_t)len, NULL, 0);
	return (int)syscall(SYS_fallocate, fd, mode, off, len);
}

/* ---- the image after the cut ---- */

struct disk {
	uint8_t *data;
	uint64_t len, cap;
};

static inline void resize(struct disk *d, uint64_t len)
{
	if (len > d->cap) {
		d->cap = len * 2;
		d->data = realloc(d->data, d->cap);
	}
	if (len > d->len)
		memset(d->data + d->len, 0, len - d->len);
	d->len = len;
}

static inline void put(struct disk *d, uint64_t off, const uint8_t *data, uint64_t len)
{
	if (off + len > d->len)
		resize(d, off + len);
	if (data)
		memcpy(d->data + off, data, len);
	else
		memset(d->data + off, 0, len);
}

/* all: the whole event, else each of its sectors with even chances. */
static inline void apply(struct disk *d, const struct event *e, bool all, uint64_t *seed)
{
	switch (e->kind) {
	case TRUNCATE:
		if (all || rnd(seed) % 2)
			resize(d, e->len);
		break;
	case WRITE:
		for (uint64_t at = 0; at < e->len;) {
			uint64_t n = TIDE_MIN(SECTOR - (e->off + at) % SECTOR, e->len - at);

			if (all || rnd(seed) % 2)
				put(d, e->off + at, e->data + at, n);
			at += n;
		}
		break;
	case PUNCH:
		if ((all || rnd(seed) % 2) && e->off < d->len)
			put(d, e->off, NULL, TIDE_MIN(e->len, d->len - e->off));
		break;
	default:
		break;
	}
}

struct cut {
	size_t at;        /* events before it were issued */
	unsigned durable; /* operations, for the test's own use */
	bool torn;        /* what was not synced arrived in part, else all of it */
	bool cut_last;    /* of the last event, a write, only the first `sectors` arrived */
	uint64_t sectors;
};

/* The first sectors of a write. */
static inline void apply_head(struct disk *d, const struct event *e, uint64_t sectors)
{
	uint64_t len = sectors ? TIDE_MIN(e->len, sectors * SECTOR - e->off % SECTOR) : 0;

	if (len)
		put(d, e->off, e->data, len);
}

static inline void make_cut_image(const char *name, const uint8_t *file, uint64_t len, const struct cut *c,
                                  uint64_t *seed)
{
	struct disk d = { 0 };
	size_t synced = 0;

	for (size_t i = 0; i < c->at; i++) {
		if (tape.event[i].kind == SYNC)
			synced = i;
	}
	resize(&d, len);
	memcpy(d.data, file, len);
	for (size_t i = 0; i < c->at; i++) {
		if (c->cut_last && i + 1 == c->at)
			apply_head(&d, &tape.event[i], c->sectors);
		else
			apply(&d, &tape.event[i], i < synced || !c->torn, seed);
	}
	spew(name, d.data, d.len);
	free(d.data);
}

#endif
