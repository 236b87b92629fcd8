/*
 * Writes data to the target.
 *
 * A large copy writes around the page cache (O_DIRECT), because data that is written once and not
 * read again gains nothing from the cache.  Data that is not aligned, and all data of a small
 * copy, is written through the cache.  Then writeback is started every few MiB, so that little is
 * left for the sync at the end, and older ranges are dropped from the cache, because a backup must
 * not push out what others use.
 *
 * Direct and cached writes never share a page: a direct write consists of whole pages, and
 * ranges that workers write to do not overlap.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "base/error.h"
#include "base/range.h"
#include "base/sysio.h"
#include "copy_impl.h"

#define ALIGN      4096u
#define SEND       (UINT64_C(8) << 20)
#define ZERO_BLOCK 65536u

void tide_copy_write_begin(struct tide_copy_engine *e)
{
	const struct tide_copy *c = e->copy;

	e->writer = (struct tide_copy_writer){
		.direct = -1,
		.fd = -1,
		.always = c->way == TIDE_COPY_WAY_DIRECT,
		.wants_direct =
		        c->way == TIDE_COPY_WAY_DIRECT || (c->way == TIDE_COPY_WAY_AUTO && c->len >= TIDE_COPY_LARGE),
	};
	pthread_mutex_init(&e->writer.lock, NULL);
}

void tide_copy_write_end(struct tide_copy_engine *e)
{
	tide_sysio_close(e->writer.direct);
	pthread_mutex_destroy(&e->writer.lock);
}

/* The file opened for direct writes; -1: not possible.  Only the first file that is written to is opened so. */
static int direct_fd(struct tide_copy_writer *p, int fd)
{
	int direct;

	pthread_mutex_lock(&p->lock);
	if (p->wants_direct && p->fd < 0) {
		p->fd = fd;
		p->direct = p->always || tide_copy_offload_is_coherent(fd) ? tide_sysio_reopen(fd, O_WRONLY | O_DIRECT)
		                                                           : -1;
	}
	direct = p->wants_direct && p->fd == fd ? p->direct : -1;
	pthread_mutex_unlock(&p->lock);
	return direct;
}

/* 1: the caller writes it through the cache. */
static int put_direct(struct tide_copy_writer *p, int fd, const uint8_t *buf, uint64_t len, uint64_t off,
                      struct tide_error *err)
{
	struct tide_error mine = TIDE_ERROR_INIT;
	int direct = (off | len | (uintptr_t)buf) % ALIGN == 0 ? direct_fd(p, fd) : -1;

	if (direct < 0)
		return 1;
	if (tide_sysio_pwrite(direct, buf, len, off, &mine) == 0)
		return 0;
	if (mine.sys != EINVAL)
		return tide_error_move(err, &mine);
	/* This file system or its disk has other alignment requirements. */
	tide_error_release(&mine);
	pthread_mutex_lock(&p->lock);
	p->wants_direct = false;
	pthread_mutex_unlock(&p->lock);
	return 1;
}

/*
 * Starts writeback of what has gathered, and drops from the cache what was started SENT ranges ago.  Errors of these
 * hints are ignored: the sync at the end reports them.
 */
static void wrote(struct tide_copy_writer *p, int fd, uint64_t off, uint64_t len)
{
	struct tide_copy_sent now, old;

	pthread_mutex_lock(&p->lock);
	if (p->next.len && p->next.fd == fd) {
		uint64_t end = TIDE_MAX(p->next.off + p->next.len, off + len);
		p->next.off = TIDE_MIN(p->next.off, off);
		p->next.len = end - p->next.off;
	} else {
		p->next = (struct tide_copy_sent){ fd, off, len };
		p->gathered = 0;
	}
	p->gathered += len;
	now = p->next;
	if (p->gathered < SEND) {
		pthread_mutex_unlock(&p->lock);
		return;
	}
	p->next.len = 0;
	old = p->sent[p->n_sent % TIDE_COPY_SENT];
	p->sent[p->n_sent++ % TIDE_COPY_SENT] = now;
	pthread_mutex_unlock(&p->lock);
	sync_file_range(fd, (off_t)now.off, (off_t)now.len, SYNC_FILE_RANGE_WRITE);
	if (old.len)
		posix_fadvise(old.fd, (off_t)old.off, (off_t)old.len, POSIX_FADV_DONTNEED);
}

int tide_copy_write_file(struct tide_copy_engine *e, int fd, const uint8_t *buf, uint64_t len, uint64_t off,
                         struct tide_error *err)
{
	int rc;

	/* The data is in the cache now, and then for the write. After a failure nothing that was noted counts. */
	tide_image_sums_note(e->copy->target, fd, buf, off, len);
	rc = put_direct(&e->writer, fd, buf, len, off, err);
	if (rc > 0) {
		rc = tide_sysio_pwrite(fd, buf, len, off, err);
		if (rc == 0)
			wrote(&e->writer, fd, off, len);
	}
	if (rc == 0)
		return 0;
	tide_image_sums_spoil(e->copy->target);
	return tide_error_wrap(err, "'%s'", tide_image_path(e->copy->target));
}

/* ---- Buffers of the disk ---- */

/* Writes data in places that the target gives; it says 1 where it has to write the data itself. */
static int write_run(struct tide_copy_worker *w, const uint8_t *buf, uint64_t off, uint64_t len, struct tide_error *err)
{
	struct tide_image *target = w->e->copy->target;

	while (len) {
		struct tide_extent place;
		int rc = tide_image_write_begin(target, off, len, &place, err);

		if (rc > 0)
			return tide_image_write(target, buf, off, len, err);
		if (rc < 0)
			return -1;
		if (tide_copy_write_file(w->e, place.map_fd, buf, place.len, place.map_off, err) < 0) {
			tide_image_write_abort(target, &place);
			return -1;
		}
		if (tide_image_write_commit(target, &place, err) < 0)
			return -1;
		buf += place.len;
		off += place.len;
		len -= place.len;
	}
	return 0;
}

int tide_copy_write_zeroes(struct tide_copy_worker *w, uint64_t off, uint64_t len, struct tide_error *err)
{
	if (w->e->copy->target_reads_zero || len == 0)
		return 0;
	return tide_image_zero(w->e->copy->target, off, len, true, err);
}

/* Data is searched for zeroes in blocks of this size. */
static uint64_t zero_block(const struct tide_copy_worker *w)
{
	return TIDE_MAX(w->e->align, ZERO_BLOCK);
}

bool tide_copy_write_has_zeroes(const struct tide_copy_worker *w, const uint8_t *buf, uint64_t len)
{
	uint64_t block = zero_block(w);

	for (uint64_t pos = 0; pos < len; pos += block) {
		if (tide_sysio_is_zero(buf + pos, TIDE_MIN(block, len - pos)))
			return true;
	}
	return false;
}

int tide_copy_write(struct tide_copy_worker *w, const uint8_t *buf, uint64_t off, uint64_t len, struct tide_error *err)
{
	uint64_t block = zero_block(w), pos = 0;

	while (pos < len) {
		uint64_t end = pos;
		bool zero = false;

		while (end < len) {
			uint64_t n = TIDE_MIN(block, len - end);
			bool z = tide_sysio_is_zero(buf + end, n);

			if (end > pos && z != zero)
				break;
			zero = z;
			end += n;
		}
		if ((zero ? tide_copy_write_zeroes(w, off + pos, end - pos, err)
		          : write_run(w, buf + pos, off + pos, end - pos, err)) < 0)
			return -1;
		pos = end;
	}
	return 0;
}
