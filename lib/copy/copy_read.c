/*
 * Reads data from the source's files.
 *
 * Data in memory is read from there.  A large copy reads the rest around the page cache (O_DIRECT): nobody has asked to
 * keep that data, and allocating a page, copying from it and freeing it costs more than the disk's own time.  A direct
 * read waits for the disk, and nothing is read ahead of it, so more workers are needed to keep the disk busy: the first
 * direct read starts them.
 *
 * A copy through the page cache reads ahead.  Scattered data that is not in memory needs many reads in flight, and the
 * plan says which data comes next.  Data that was in memory before stays there; data that this copy has brought in is
 * dropped after use, because a backup must not push out what others use.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/error.h"
#include "base/range.h"
#include "base/sysio.h"
#include "copy_impl.h"

#define ALIGN      4096u
#define WINDOW     (UINT64_C(16) << 20)
#define STEP       (UINT64_C(1) << 20)
#define CACHED_MIN 64u /* after so many ranges that were in memory, only one in LOOK_EACH is checked */
#define LOOK_EACH  16u

/* cachestat(2), Linux 6.5: not in the headers of every system yet. */
#define SYS_CACHESTAT 451

struct cache_range {
	uint64_t off, len;
};

struct cache_stat {
	uint64_t pages, dirty, writeback, evicted, recently_evicted;
};

void tide_copy_read_begin(struct tide_copy_engine *e)
{
	const struct tide_copy *c = e->copy;

	e->reader = (struct tide_copy_reader){
		.always = c->way == TIDE_COPY_WAY_DIRECT,
		.wants_direct = !c->compress && (c->way == TIDE_COPY_WAY_DIRECT ||
		                                 (c->way == TIDE_COPY_WAY_AUTO && c->len >= TIDE_COPY_LARGE)),
	};
	pthread_mutex_init(&e->reader.lock, NULL);
}

void tide_copy_read_end(struct tide_copy_engine *e)
{
	for (size_t i = 0; i < e->reader.n; i++)
		tide_sysio_close(e->reader.file[i].direct);
	pthread_mutex_destroy(&e->reader.lock);
}

bool tide_copy_read_is_direct(struct tide_copy_engine *e)
{
	return atomic_load_explicit(&e->reader.wants_direct, memory_order_relaxed);
}

/* Is this byte of the file in memory?  True when it is unknown. */
static bool is_cached(int fd, uint64_t off)
{
	char byte;
	struct iovec v = { &byte, 1 };

	return preadv2(fd, &v, 1, (off_t)off, RWF_NOWAIT) >= 0 || errno != EAGAIN;
}

/* Is a quarter of it in memory, or any of it not on the disk yet?  True when it is unknown. */
static bool is_in_memory(struct tide_copy_reader *g, int fd, uint64_t off, uint64_t len)
{
	struct cache_range range = { off, len };
	struct cache_stat stat;

	if (!atomic_load_explicit(&g->no_cachestat, memory_order_relaxed)) {
		if (syscall(SYS_CACHESTAT, fd, &range, &stat, 0) == 0)
			return stat.dirty || stat.writeback || stat.pages * (uint64_t)sysconf(_SC_PAGESIZE) >= len / 4;
		atomic_store(&g->no_cachestat, true);
	}
	return is_cached(fd, off);
}

/* The same file opened for direct reads; -1: not possible or not safe, and the copy stops trying. */
static int direct_fd(struct tide_copy_reader *g, int fd)
{
	int direct = -1;
	size_t i;

	pthread_mutex_lock(&g->lock);
	for (i = 0; i < g->n && g->file[i].fd != fd; i++)
		;
	if (i == g->n && g->n < TIDE_COPY_FILES) {
		bool may = g->always || tide_copy_offload_is_coherent(fd);

		g->file[g->n++] =
		        (struct tide_copy_source_file){ fd, may ? tide_sysio_reopen(fd, O_RDONLY | O_DIRECT) : -1 };
	}
	if (i < g->n)
		direct = g->file[i].direct;
	if (direct < 0)
		atomic_store(&g->wants_direct, false);
	pthread_mutex_unlock(&g->lock);
	return direct;
}

/* The first direct read of the copy asks for more workers. */
static void want_workers(struct tide_copy_engine *e)
{
	if (atomic_exchange_explicit(&e->reader.has_read, true, memory_order_relaxed))
		return;
	pthread_mutex_lock(&e->work.lock);
	e->work.workers = e->workers_direct;
	pthread_mutex_unlock(&e->work.lock);
}

/* False: the caller reads it through the cache, which also reports what is wrong. */
static bool get_direct(struct tide_copy_engine *e, const struct tide_copy_part *p, uint8_t *buf)
{
	struct tide_error err = TIDE_ERROR_INIT;
	int direct;
	bool ok;

	if (p->zero || p->fd < 0 || (p->at | p->len | (uintptr_t)buf) % ALIGN || !tide_copy_read_is_direct(e))
		return false;
	if (!e->reader.always && is_in_memory(&e->reader, p->fd, p->at, p->len))
		return false;
	direct = direct_fd(&e->reader, p->fd);
	if (direct < 0)
		return false;
	if (!atomic_load_explicit(&e->reader.has_read, memory_order_relaxed))
		want_workers(e);
	ok = tide_sysio_pread(direct, buf, p->len, p->at, true, &err) == 0;
	/* This file system or its disk has other alignment requirements. */
	if (!ok && err.sys == EINVAL)
		atomic_store(&e->reader.wants_direct, false);
	tide_error_release(&err);
	return ok;
}

/* ---- Reading ahead ---- */

/* Starts reading; false: all of it was in memory. */
static bool fetch(struct tide_copy_engine *e, const struct tide_extent *x)
{
	if (is_cached(x->map_fd, x->map_off)) {
		if (!is_cached(x->map_fd, x->map_off + x->len - 1))
			posix_fadvise(x->map_fd, (off_t)x->map_off, (off_t)x->len, POSIX_FADV_WILLNEED);
		return false;
	}
	if (!is_cached(x->map_fd, x->map_off + x->len - 1) && e->fetched)
		(void)!tide_bitmap_set(e->fetched, x->off, x->len, NULL);
	posix_fadvise(x->map_fd, (off_t)x->map_off, (off_t)x->len, POSIX_FADV_WILLNEED);
	return true;
}

static bool fetch_range(struct tide_copy_engine *e, uint64_t off, uint64_t len)
{
	uint64_t end = TIDE_MIN(off + len, tide_image_size(e->copy->source));
	struct tide_extent x;
	bool fetched = false;

	for (; off < end; off += x.len) {
		if (tide_image_extent(e->copy->source, off, end - off, &x, NULL) < 0)
			break;
		if (x.kind == TIDE_EXTENT_DATA && x.mapped && fetch(e, &x))
			fetched = true;
	}
	return fetched;
}

void tide_copy_read_ahead(struct tide_copy_engine *e)
{
	uint64_t off, len;

	if (tide_copy_read_is_direct(e))
		return;
	pthread_mutex_lock(&e->work.lock);
	/* The lock is released while a range is fetched.  `ahead` has passed that range by then, so it is fetched once.
	 */
	while (e->ahead_bytes < e->taken_bytes + WINDOW &&
	       tide_bitmap_next_dirty(e->plan, e->ahead, STEP, &off, &len)) {
		bool look = e->cached_ranges < CACHED_MIN || e->cached_ranges % LOOK_EACH == 0, fetched = false;

		e->ahead = off + len;
		e->ahead_bytes += len;
		if (look) {
			pthread_mutex_unlock(&e->work.lock);
			fetched = fetch_range(e, off, len);
			pthread_mutex_lock(&e->work.lock);
		}
		e->cached_ranges = fetched ? 0 : e->cached_ranges + 1;
	}
	pthread_mutex_unlock(&e->work.lock);
}

/* Drops what only this copy has brought into memory. */
static void drop_fetched(struct tide_copy_engine *e, const struct tide_copy_stretch *s)
{
	if (!e->fetched || tide_bitmap_count(e->fetched) == 0)
		return;
	for (size_t i = 0; i < s->n; i++) {
		const struct tide_copy_part *p = &s->part[i];

		if (p->fd >= 0 && tide_bitmap_test(e->fetched, p->off))
			posix_fadvise(p->fd, (off_t)p->at, (off_t)p->len, POSIX_FADV_DONTNEED);
	}
}

/* ---- Reading ---- */

/* Reads one part through the page cache. */
static int read_part(struct tide_image *source, const struct tide_copy_part *p, uint8_t *buf, struct tide_error *err)
{
	if (p->zero) {
		memset(buf, 0, p->len);
		return 0;
	}
	if (p->fd >= 0 && tide_sysio_pread(p->fd, buf, p->len, p->at, true, NULL) == 0)
		return 0;
	/* After a failure read it again through the image, whose error names the file. */
	return tide_image_read(source, buf, p->off, p->len, err);
}

int tide_copy_read(struct tide_copy_engine *e, const struct tide_copy_stretch *s, uint8_t *buf, struct tide_error *err)
{
	struct tide_image *source = e->copy->source;

	if (s->n == 0)
		return s->len ? tide_image_read(source, buf, s->off, s->len, err) : 0;
	for (size_t i = 0; i < s->n; i++) {
		const struct tide_copy_part *p = &s->part[i];
		uint8_t *to = buf + (p->off - s->off);

		if (!get_direct(e, p, to) && read_part(source, p, to, err) < 0)
			return -1;
		/* Damage is met again when the image reads the bytes, which also knows what to do about it. */
		if (p->fd >= 0 && !p->zero &&
		    tide_image_prove_bytes(source, p->fd, to, p->at, p->off, p->len, NULL) < 0 &&
		    tide_image_read(source, to, p->off, p->len, err) < 0)
			return -1;
	}
	drop_fetched(e, s);
	return 0;
}
