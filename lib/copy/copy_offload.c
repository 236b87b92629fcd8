/*
 * Moves data from file to file without reading it: by reflink, or by copy_file_range inside
 * the kernel.
 *
 * Sharing comes first and is done for the whole plan by one worker alone, because file systems
 * share one range at a time.  Ranges that cannot be shared stay in the plan.  Moving inside the kernel
 * is a way for the pieces of the workers.  A failed attempt does no harm: nothing is committed
 * in the target, or the next way writes the same place again.
 *
 * Data that must have its checksum is read and compared before it is moved.  Rot stays for the way that reads, which
 * reports it.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/compiler.h"
#include "base/error.h"
#include "base/range.h"
#include "base/sysio.h"
#include "copy_impl.h"

#define BLOCK_MIN  4096u
#define SHARE_MAX  (UINT64_C(1) << 30)
#define MISSES_MAX 64u

enum answer {
	DONE,
	NOT_HERE, /* not this range, or not now */
	NEVER,    /* not between these two files */
};

/* ---- From file to file ---- */

/* There a server moves the data, and its copy of it may differ from what the page cache has. */
static bool is_remote(int fd)
{
	static const unsigned types[] = { 0x6969 /* NFS */, 0xff534d42 /* CIFS */, 0xfe534d42 /* SMB2 */,
		                          0x517b /* SMB */, 0x00c36400 /* Ceph */, 0x65735546 /* FUSE */ };
	struct statfs fs;

	if (fstatfs(fd, &fs) < 0)
		return false;
	for (size_t i = 0; i < TIDE_ARRAY_SIZE(types); i++) {
		if ((unsigned)fs.f_type == types[i])
			return true;
	}
	return false;
}

/*
 * O_DIRECT sees what other programs wrote through the page cache, and they see what it wrote: on the local file systems
 * of the kernel, and on block devices.  In FUSE and on network file systems a server, its own cache and the page cache
 * may differ.
 */
bool tide_copy_offload_is_coherent(int fd)
{
	static const unsigned types[] = { 0xef53 /* ext2, ext3, ext4 */, 0x58465342 /* XFS */, 0x9123683e /* btrfs */,
		                          0xf2f52010 /* F2FS */ };
	struct statfs fs;
	struct stat st;

	if (fstat(fd, &st) < 0 || fstatfs(fd, &fs) < 0)
		return false;
	if (S_ISBLK(st.st_mode))
		return true;
	for (size_t i = 0; i < TIDE_ARRAY_SIZE(types); i++) {
		if ((unsigned)fs.f_type == types[i])
			return true;
	}
	return false;
}

/* The block size in which the file system of fd shares; a power of two. */
static uint64_t block_of(int fd)
{
	struct statfs fs;

	if (fstatfs(fd, &fs) < 0 || !tide_range_is_pow2((uint64_t)fs.f_bsize))
		return BLOCK_MIN;
	return TIDE_MAX((uint64_t)fs.f_bsize, BLOCK_MIN);
}

static enum answer answer_of(int sys)
{
	switch (sys) {
	case EXDEV:
	case EOPNOTSUPP:
	case ENOTTY:
	case ENOSYS:
	case EPERM:
	case ETXTBSY:
		return NEVER;
	default:
		return NOT_HERE;
	}
}

/* Both: [from, from + len) of the source to `to` of the target. */
static enum answer reflink(int source, uint64_t from, uint64_t len, int target, uint64_t to)
{
	struct file_clone_range range = { .src_fd = source, .src_offset = from, .src_length = len, .dest_offset = to };
	int rc;

	do
		rc = ioctl(target, FICLONERANGE, &range);
	while (rc < 0 && errno == EINTR);
	return rc == 0 ? DONE : answer_of(errno);
}

static enum answer copy_in_kernel(int source, uint64_t from, uint64_t len, int target, uint64_t to)
{
	loff_t in = (loff_t)from, out = (loff_t)to;

	while (len) {
		ssize_t n = copy_file_range(source, &in, target, &out, len, 0);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return answer_of(errno);
		/* The source ends here; some file systems also answer so where they cannot copy. */
		if (n == 0)
			return NOT_HERE;
		len -= (uint64_t)n;
	}
	return DONE;
}

/* ---- A stretch ---- */

void tide_copy_offload_init(struct tide_copy_mover *m, const struct tide_copy *copy, enum tide_copy_way way)
{
	*m = (struct tide_copy_mover){
		.source = copy->source,
		.target = copy->target,
		.way = way,
		.reads_zero = copy->target_reads_zero && tide_image_info(copy->target)->cluster_size == 0,
		.block = way == TIDE_COPY_WAY_REFLINK ? block_of(tide_image_fd(copy->target)) : 1,
	};
}

static bool is_refused(const struct tide_copy_mover *m, int fd)
{
	for (size_t i = 0; i < m->n_refused; i++) {
		if (m->refused[i] == fd)
			return true;
	}
	return false;
}

/* Can it succeed?  Checked first, so that the target does not reserve places in vain. */
static bool is_movable(const struct tide_copy_mover *m, const struct tide_copy_stretch *s)
{
	for (size_t i = 0; i < s->n; i++) {
		const struct tide_copy_part *p = &s->part[i];

		if (p->zero)
			continue;
		if (p->fd < 0 || is_refused(m, p->fd) || p->at % m->block || p->off % m->block)
			return false;
	}
	return s->n > 0;
}

/* Is nothing in the source's range other than its checksums say? */
static bool is_proven(const struct tide_copy_mover *m, int fd, uint64_t from, uint64_t off, uint64_t len)
{
	uint8_t buf[65536];

	if (!tide_image_proves(m->source, fd))
		return true;
	for (uint64_t n; len; from += n, off += n, len -= n) {
		n = TIDE_MIN(sizeof(buf) - from % sizeof(buf), len);
		if (tide_sysio_pread(fd, buf, n, from, true, NULL) < 0 ||
		    tide_image_prove_bytes(m->source, fd, buf, from, off, n, NULL) < 0)
			return false;
	}
	return true;
}

/* For the end of the disk, where less than a block is left. */
static bool copy_bytes(int source, uint64_t from, uint64_t len, int target, uint64_t to)
{
	uint8_t buf[65536];

	return len <= sizeof(buf) && tide_sysio_pread(source, buf, len, from, true, NULL) == 0 &&
	       tide_sysio_pwrite(target, buf, len, to, NULL) == 0;
}

static bool move_data(struct tide_copy_mover *m, const struct tide_copy_part *p, uint64_t off, uint64_t len, int target,
                      uint64_t to)
{
	uint64_t from = p->at + (off - p->off), rest = len % m->block;
	enum answer answer;

	/* Less than a block would only be read and written. */
	if (to % m->block || off % m->block || len == rest || !is_proven(m, p->fd, from, off, len))
		return false;
	answer = m->way == TIDE_COPY_WAY_REFLINK ? reflink(p->fd, from, len - rest, target, to)
	                                         : copy_in_kernel(p->fd, from, len - rest, target, to);
	if (answer == NEVER && m->n_refused < TIDE_COPY_REFUSED_MAX)
		m->refused[m->n_refused++] = p->fd;
	return answer == DONE && (!rest || copy_bytes(p->fd, from + len - rest, rest, target, to + len - rest));
}

/* Fills a place from part[*i] on; *i becomes the part to continue with. */
static bool fill(struct tide_copy_mover *m, const struct tide_copy_stretch *s, const struct tide_extent *place,
                 size_t *i)
{
	uint64_t pos = place->off, end = place->off + place->len;

	for (; pos < end; (*i)++) {
		const struct tide_copy_part *p = &s->part[*i];
		uint64_t stop = TIDE_MIN(p->off + p->len, end), to = place->map_off + (pos - place->off);

		if (!p->zero && !move_data(m, p, pos, stop - pos, place->map_fd, to))
			return false;
		if (p->zero && !m->reads_zero && tide_sysio_zero(place->map_fd, to, stop - pos, true, NULL) < 0)
			return false;
		pos = stop;
		if (stop < p->off + p->len)
			break;
	}
	return true;
}

bool tide_copy_offload(struct tide_copy_mover *m, const struct tide_copy_stretch *s)
{
	uint64_t pos = s->off, end = s->off + s->len;
	size_t i = 0;

	if (!is_movable(m, s))
		return false;
	while (pos < end) {
		struct tide_extent place;

		if (tide_image_write_begin(m->target, pos, end - pos, &place, NULL) != 0)
			return false;
		if (!fill(m, s, &place, &i)) {
			tide_image_write_abort(m->target, &place);
			return false;
		}
		tide_image_sums_skip(m->target, &place);
		if (tide_image_write_commit(m->target, &place, NULL) < 0)
			return false;
		if (m->way == TIDE_COPY_WAY_KERNEL)
			sync_file_range(place.map_fd, (off_t)place.map_off, (off_t)place.len, SYNC_FILE_RANGE_WRITE);
		pos += place.len;
	}
	return true;
}

/* ---- What the target can share ---- */

static void note_done(struct tide_copy_engine *e, uint64_t off, uint64_t len)
{
	struct tide_copy *c = e->copy;

	pthread_mutex_lock(&e->work.lock);
	/* If there is no memory to note it, a worker copies it once more. */
	if (tide_bitmap_reset(e->plan, off, len, NULL) == 0)
		(void)!tide_bitmap_reset(c->todo, off, len, NULL);
	c->offset = c->len - tide_bitmap_count(c->todo) * c->unit;
	pthread_mutex_unlock(&e->work.lock);
}

/* Shares a run of the plan.  False: further attempts are pointless, or the copy ends. */
static bool share_run(struct tide_copy_engine *e, struct tide_copy_mover *m, uint64_t off, uint64_t len,
                      unsigned *misses)
{
	struct tide_copy *c = e->copy;
	struct tide_copy_stretch s;
	uint64_t most = tide_copy_plan_piece(c, SHARE_MAX);

	for (uint64_t end = off + len; off < end; off += s.len + s.zeroes) {
		if (tide_copy_map(c->source, c->unit, off, TIDE_MIN(end - off, most), &s, NULL) < 0 ||
		    !tide_copy_throttle(e, UINT64_MAX, 0))
			return false;
		if (s.len == 0)
			continue;
		if (tide_copy_offload(m, &s)) {
			*misses = 0;
			note_done(e, off, s.len);
			if (!tide_copy_throttle(e, UINT64_MAX, s.len))
				return false;
		} else if (++*misses == MISSES_MAX || (m->n_refused && !tide_image_backing(c->source))) {
			return false;
		}
	}
	return true;
}

void tide_copy_offload_share(struct tide_copy_engine *e)
{
	struct tide_copy *c = e->copy;
	struct tide_copy_mover m;
	uint64_t off = 0, start, len;
	unsigned misses = 0;

	if (c->compress || c->detect_zeroes || (c->way != TIDE_COPY_WAY_AUTO && c->way != TIDE_COPY_WAY_REFLINK) ||
	    (c->way == TIDE_COPY_WAY_AUTO && is_remote(tide_image_fd(c->target))))
		return;
	tide_copy_offload_init(&m, c, TIDE_COPY_WAY_REFLINK);
	while (tide_bitmap_next_dirty(e->plan, off, UINT64_MAX, &start, &len) && share_run(e, &m, start, len, &misses))
		off = start + len;
}
