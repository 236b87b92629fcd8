/*
 * How bytes get out of the source's files.
 *
 * What is in memory is read from there.  What is not, in a large copy, is read around the page cache (O_DIRECT): nobody
 * has asked for it to be kept, and to find it a place in the cache, copy it out and give the place back costs more than
 * the disk's own time.  A direct read waits for the disk, and nothing is read ahead of it: it takes more workers to
 * keep the disk busy, which the first one asks for.
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "copy_impl.h"
#include "base/error.h"
#include "base/range.h"
#include "base/sysio.h"

#define ALIGN 4096u

/* cachestat(2), Linux 6.5: not yet in the headers of every system. */
#define SYS_CACHESTAT 451

struct cache_range {
	uint64_t off, len;
};

struct cache_stat {
	uint64_t pages, dirty, writeback, evicted, recently_evicted;
};

void tide_copy_get_begin(struct tide_copy_engine *e)
{
	const struct tide_copy *c = e->copy;

	e->get = (struct tide_copy_get){
		.always = c->way == TIDE_COPY_WAY_DIRECT,
		.wants_direct = !c->compress && (c->way == TIDE_COPY_WAY_DIRECT ||
		                                 (c->way == TIDE_COPY_WAY_AUTO && c->len >= TIDE_COPY_LARGE)),
	};
	pthread_mutex_init(&e->get.lock, NULL);
}

void tide_copy_get_end(struct tide_copy_engine *e)
{
	for (size_t i = 0; i < e->get.n; i++)
		tide_sysio_close(e->get.file[i].direct);
	pthread_mutex_destroy(&e->get.lock);
}

bool tide_copy_get_is_direct(struct tide_copy_engine *e)
{
	return atomic_load_explicit(&e->get.wants_direct, memory_order_relaxed);
}

bool tide_copy_get_is_cached(int fd, uint64_t off)
{
	char byte;
	struct iovec v = { &byte, 1 };

	return preadv2(fd, &v, 1, (off_t)off, RWF_NOWAIT) >= 0 || errno != EAGAIN;
}

/* Is a quarter of it in memory, or any of it not on the disk yet?  In doubt it is. */
static bool is_in_memory(struct tide_copy_get *g, int fd, uint64_t off, uint64_t len)
{
	struct cache_range range = { off, len };
	struct cache_stat stat;

	if (!atomic_load_explicit(&g->no_cachestat, memory_order_relaxed)) {
		if (syscall(SYS_CACHESTAT, fd, &range, &stat, 0) == 0)
			return stat.dirty || stat.writeback || stat.pages * (uint64_t)sysconf(_SC_PAGESIZE) >= len / 4;
		atomic_store(&g->no_cachestat, true);
	}
	return tide_copy_get_is_cached(fd, off);
}

/* The same file for direct reads; -1: there is none. */
static int direct_fd(struct tide_copy_get *g, int fd)
{
	int direct = -1;
	size_t i;

	pthread_mutex_lock(&g->lock);
	for (i = 0; i < g->n && g->file[i].fd != fd; i++)
		;
	if (i == g->n && g->n < TIDE_COPY_FILES)
		g->file[g->n++] = (struct tide_copy_file){ fd, tide_sysio_reopen(fd, O_RDONLY | O_DIRECT) };
	if (i < g->n)
		direct = g->file[i].direct;
	if (direct < 0)
		atomic_store(&g->wants_direct, false);
	pthread_mutex_unlock(&g->lock);
	return direct;
}

static void want_workers(struct tide_copy_engine *e)
{
	if (atomic_exchange_explicit(&e->get.has_read, true, memory_order_relaxed))
		return;
	pthread_mutex_lock(&e->work.lock);
	e->work.workers = e->workers_direct;
	pthread_mutex_unlock(&e->work.lock);
}

/* False: not in this way; what is wrong, if something is, another way will tell. */
static bool get_direct(struct tide_copy_engine *e, const struct tide_copy_part *p, uint8_t *buf)
{
	struct tide_error err = TIDE_ERROR_INIT;
	int direct;
	bool ok;

	if (p->zero || p->fd < 0 || (p->at | p->len | (uintptr_t)buf) % ALIGN || !tide_copy_get_is_direct(e))
		return false;
	if (!e->get.always && is_in_memory(&e->get, p->fd, p->at, p->len))
		return false;
	direct = direct_fd(&e->get, p->fd);
	if (direct < 0)
		return false;
	if (!atomic_load_explicit(&e->get.has_read, memory_order_relaxed))
		want_workers(e);
	ok = tide_sysio_pread(direct, buf, p->len, p->at, true, &err) == 0;
	/* This file system, or its disk, wants something else aligned. */
	if (!ok && err.sys == EINVAL)
		atomic_store(&e->get.wants_direct, false);
	tide_error_release(&err);
	return ok;
}

int tide_copy_get(struct tide_copy_engine *e, const struct tide_copy_stretch *s, uint8_t *buf, struct tide_error *err)
{
	struct tide_image *source = e->copy->source;

	if (s->n == 0)
		return s->len ? tide_image_read(source, buf, s->off, s->len, err) : 0;
	for (size_t i = 0; i < s->n; i++) {
		const struct tide_copy_part *p = &s->part[i];
		uint8_t *to = buf + (p->off - s->off);

		if (!get_direct(e, p, to) && tide_copy_look_read(source, p, to, err) < 0)
			return -1;
	}
	tide_copy_ahead_drop(e, s);
	return 0;
}
