/*
 * The write log's file: opening, creating, setting bits, and making them durable. The two state slots in the
 * header record who writes. The format is in write_log_codec.c, the rules in write_log.h.
 *
 * A writer has the bits that the file has in memory too, page by page. A bit is set in memory only after it was
 * written to the file, so a thread that finds it set may write its data.
 */
#include "write_log.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/device.h"
#include "base/error.h"
#include "base/lock.h"
#include "base/mem.h"
#include "base/range.h"
#include "base/sysio.h"
#include "store.h"

/* The unit of allocation: the bits of 512 GiB, at 64 KiB a granule. */
#define CHUNK (UINT64_C(1) << 20)
/* The unit in which bits are in memory. */
#define PAGE       TIDE_BITMAP_CHUNK_BYTES
#define PAGE_WORDS (PAGE / 8)
/* The most bits a log has; for a disk with more granules the log uses a coarser granularity. */
#define BITS_MAX (UINT64_C(1) << 39)

struct tide_write_log {
	struct tide_write_log_header h;
	char *path;
	int fd;
	uint64_t bits_at, bits_len; /* in the file, bytes */

	/* Only while active: */
	bool is_new;               /* the file had no bits when this writer began */
	_Atomic uint64_t *bits;    /* those in the file, in pages that are loaded */
	_Atomic uint64_t *durable; /* bits known to be on stable storage; NULL: durability not requested */
	atomic_uchar *loaded;      /* one per page */
	uint8_t *allocated;        /* one per chunk */
	pthread_mutex_t write_lock;
	atomic_ullong writes; /* of bits to the file */

	pthread_mutex_t sync_lock;
	pthread_cond_t synced;
	uint64_t syncs_begun, syncs_done;
	uint64_t writes_synced;
	bool syncing;
	int sync_failed; /* errno, kept: after a failed sync the kernel may have dropped any page */
};

const struct tide_write_log_header *tide_write_log_header(const struct tide_write_log *log)
{
	return &log->h;
}

unsigned tide_write_log_shift(uint64_t disk_size, unsigned wanted)
{
	while (tide_range_div_up(disk_size, UINT64_C(1) << wanted) > BITS_MAX)
		wanted++;
	return wanted;
}

/* ---- where and when it was written ---- */

/* Since Linux 6.8; earlier kernels give the number of a mount again after it has ended. */
#ifndef STATX_MNT_ID_UNIQUE
#define STATX_MNT_ID_UNIQUE 0x4000u
#endif

static int find_place(int fd, struct tide_write_log_state *state, struct tide_error *err)
{
	struct statx stx;

	if (statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS | STATX_MNT_ID_UNIQUE, &stx) < 0)
		return tide_error_set_sys(err, errno, "Could not get its place");
	tide_device_boot(state->boot);
	state->mount = stx.stx_mask & STATX_MNT_ID_UNIQUE ? stx.stx_mnt_id : 0;
	state->device = makedev(stx.stx_dev_major, stx.stx_dev_minor);
	state->inode = stx.stx_ino;
	return 0;
}

const char *tide_write_log_why_lost(const struct tide_write_log *log)
{
	static const uint8_t unknown[16];
	const struct tide_write_log_state *then = &log->h.state;
	struct tide_write_log_state now = { 0 };

	if (then->durable)
		return NULL;
	if (find_place(log->fd, &now, NULL) < 0 || !memcmp(now.boot, unknown, sizeof(now.boot)) ||
	    memcmp(now.boot, then->boot, sizeof(now.boot)) != 0)
		return "the machine went down while writes were being recorded";
	if (!now.mount)
		return "a server was interrupted, and this kernel cannot tell whether its log was on storage that was "
		       "set back";
	if (now.mount != then->mount || now.device != then->device)
		return "the file system of the write log was mounted again, or is another one, since writes were "
		       "recorded";
	return now.inode != then->inode ? "the write log is a copy" : NULL;
}

/* ---- opening and closing ---- */

static struct tide_write_log *log_new(const char *path, struct tide_error *err)
{
	struct tide_write_log *log = tide_mem_alloc(1, sizeof(*log), err);

	if (!log)
		return NULL;
	log->fd = -1;
	pthread_mutex_init(&log->write_lock, NULL);
	pthread_mutex_init(&log->sync_lock, NULL);
	pthread_cond_init(&log->synced, NULL);
	log->path = tide_mem_strdup(path, err);
	if (log->path)
		return log;
	tide_write_log_close(log);
	return NULL;
}

static void deactivate(struct tide_write_log *log)
{
	if (log->bits)
		munmap((void *)log->bits, log->bits_len);
	if (log->durable)
		munmap((void *)log->durable, log->bits_len);
	if (log->loaded)
		munmap((void *)log->loaded, log->bits_len / PAGE);
	free(log->allocated);
	log->bits = log->durable = NULL;
	log->loaded = NULL;
	log->allocated = NULL;
}

void tide_write_log_close(struct tide_write_log *log)
{
	if (!log)
		return;
	deactivate(log);
	tide_sysio_close(log->fd);
	tide_write_log_header_release(&log->h);
	pthread_mutex_destroy(&log->write_lock);
	pthread_mutex_destroy(&log->sync_lock);
	pthread_cond_destroy(&log->synced);
	free(log->path);
	free(log);
}

static void log_closep(struct tide_write_log **log)
{
	tide_write_log_close(*log);
}

static void find_bits(struct tide_write_log *log)
{
	log->bits_at = tide_write_log_bits_at(&log->h);
	log->bits_len = tide_write_log_file_len(&log->h) - log->bits_at;
}

static int read_head(struct tide_write_log *log, struct tide_error *err)
{
	TIDE_AUTOFREE uint8_t *head = NULL;
	struct stat st;
	size_t len;

	if (fstat(log->fd, &st) < 0)
		return tide_error_set_sys(err, errno, "Could not get its type and size");
	if (!S_ISREG(st.st_mode))
		return 1;
	len = TIDE_MIN((uint64_t)st.st_size, TIDE_WRITE_LOG_HEAD_MAX);
	head = tide_mem_alloc(len + 1, 1, err);
	if (!head || tide_sysio_pread(log->fd, head, len, 0, true, err) < 0)
		return -1;
	if (!tide_write_log_is_one(head, len))
		return 1;
	return tide_write_log_decode(head, len, (uint64_t)st.st_size, &log->h, err);
}

int tide_write_log_open(const char *path, struct tide_write_log **out, struct tide_error *err)
{
	TIDE_CLEANUP(log_closep) struct tide_write_log *log = log_new(path, err);
	const int flags = O_CLOEXEC | O_NOCTTY | O_NONBLOCK | O_NOFOLLOW;
	int foreign;

	*out = NULL;
	if (!log)
		return -1;
	log->fd = open(path, O_RDWR | flags);
	if (log->fd < 0 && (errno == EACCES || errno == EROFS))
		log->fd = open(path, O_RDONLY | flags);
	if (log->fd < 0 && tide_sysio_is_never_file(errno))
		return 2;
	if (log->fd < 0)
		return tide_sysio_is_absent(path, errno) ? 0
		                                         : tide_error_set_sys(err, errno, "Could not open '%s'", path);
	foreign = read_head(log, err);
	if (foreign < 0)
		return tide_error_wrap(err, "The write log '%s'", path);
	if (foreign)
		return 2;
	find_bits(log);
	*out = log;
	log = NULL;
	return 1;
}

/* ---- becoming active ---- */

/* Zeroes, which take memory only where they are written. */
static void *map(uint64_t len, struct tide_error *err)
{
	void *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p != MAP_FAILED)
		return p;
	tide_error_set_sys(err, errno, "Could not map %" PRIu64 " bytes", len);
	return NULL;
}

static int prepare_bits(struct tide_write_log *log, struct tide_error *err)
{
	log->allocated = tide_mem_alloc(tide_range_div_up(log->bits_len, CHUNK), sizeof(*log->allocated), err);
	if (!log->allocated)
		return -1;
	log->bits = map(log->bits_len, err);
	log->loaded = log->bits ? map(log->bits_len / PAGE, err) : NULL;
	if (log->loaded && log->h.state.durable)
		log->durable = map(log->bits_len, err);
	return !log->loaded || (log->h.state.durable && !log->durable) ? -1 : 0;
}

/* Copy on write would need new space when a bit is set later, so it is switched off where the file system has it. */
static void disable_copy_on_write(int fd)
{
	int flags;

	if (ioctl(fd, FS_IOC_GETFLAGS, &flags) < 0)
		return;
	flags |= FS_NOCOW_FL;
	(void)!ioctl(fd, FS_IOC_SETFLAGS, &flags);
}

static int fill_new(struct tide_write_log *log, int fd, struct tide_error *err)
{
	TIDE_AUTOFREE uint8_t *head = tide_mem_alloc(log->bits_at, 1, err);

	if (!head)
		return -1;
	disable_copy_on_write(fd);
	tide_write_log_encode(&log->h, head);
	if (ftruncate(fd, (off_t)(log->bits_at + log->bits_len)) < 0)
		return tide_error_set_sys(err, errno, "Could not set its length to %" PRIu64,
		                          log->bits_at + log->bits_len);
	return tide_sysio_pwrite(fd, head, log->bits_at, 0, err);
}

static int create_file(struct tide_write_log *log, int image_fd, struct tide_error *err)
{
	struct tide_staged st = TIDE_STAGED_INIT;
	struct stat other;
	int rc = -1;

	/* An older log of ours was removed before, so a file of this name is not ours. */
	if (tide_staged_begin(&st, log->path, 0600, err) == 0 && tide_store_set_owner(st.fd, image_fd, err) == 0 &&
	    find_place(st.fd, &log->h.state, err) == 0 && fill_new(log, st.fd, err) == 0)
		rc = tide_staged_commit(&st, true, err);
	if (rc < 0 && err && !st.named && lstat(log->path, &other) == 0)
		tide_error_hint(err,
		                "the existing file is not a write log of this image, and is unchanged; move it away");
	if (rc == 0) {
		log->fd = st.fd;
		st.fd = -1;
	}
	tide_staged_release(&st);
	return rc;
}

int tide_write_log_create(const char *path, struct tide_write_log_header *h, int image_fd, struct tide_write_log **out,
                          struct tide_error *err)
{
	TIDE_CLEANUP(log_closep) struct tide_write_log *log = log_new(path, err);

	if (!log || tide_lock_token_new(&h->id, err) < 0)
		return -1;
	h->state.sequence = 1;
	log->h = *h;
	log->is_new = true;
	h->in_image = NULL;
	h->n_in_image = 0;
	find_bits(log);
	if (create_file(log, image_fd, err) < 0 || prepare_bits(log, err) < 0)
		return tide_error_wrap(err, "Could not create the write log '%s'", path);
	*out = log;
	log = NULL;
	return 0;
}

/* Writes the next state over the older one; each slot is one sector. */
static int put_state(struct tide_write_log *log, const struct tide_write_log_state *state, struct tide_error *err)
{
	struct tide_write_log_header next = log->h;
	uint8_t slot[TIDE_WRITE_LOG_SLOT_LEN];

	next.state = *state;
	next.state.sequence = log->h.state.sequence + 1;
	if (find_place(log->fd, &next.state, err) < 0)
		return tide_error_wrap(err, "The write log '%s'", log->path);
	tide_write_log_encode_slot(&next, slot);
	if (tide_sysio_pwrite(log->fd, slot, sizeof(slot), TIDE_WRITE_LOG_SLOT_AT(next.state.sequence & 1), err) < 0)
		return tide_error_wrap(err, "The write log '%s'", log->path);
	log->h.state = next.state;
	return 0;
}

int tide_write_log_activate(struct tide_write_log *log, uint64_t token, bool durable, struct tide_error *err)
{
	struct tide_write_log_state state = {
		.token = token,
		.durable = durable,
		.untracked = log->h.state.untracked,
	};

	deactivate(log);
	log->is_new = false;
	if (put_state(log, &state, err) < 0)
		return -1;
	/* So that the first sync also makes this change durable. */
	atomic_fetch_add(&log->writes, 1);
	return prepare_bits(log, err) < 0 ? tide_error_wrap(err, "The write log '%s'", log->path) : 0;
}

int tide_write_log_clean(struct tide_write_log *log, const struct tide_stamp *stamp, struct tide_error *err)
{
	struct tide_write_log_state state = {
		.durable = log->h.state.durable,
		.untracked = log->h.state.untracked,
		.stamp = *stamp,
	};

	return put_state(log, &state, err);
}

int tide_write_log_distrust(struct tide_write_log *log, struct tide_error *err)
{
	struct tide_write_log_state state = log->h.state;

	state.untracked = true;
	return put_state(log, &state, err);
}

/* ---- space ---- */

/*
 * Without fallocate, writing the chunk's present content allocates it. No thread has set a bit in this chunk yet,
 * so no bit is overwritten.
 */
static int allocate_by_writing(struct tide_write_log *log, uint64_t off, uint64_t len, struct tide_error *err)
{
	TIDE_AUTOFREE uint8_t *buf = tide_mem_alloc(len, 1, err);

	if (!buf || tide_sysio_pread(log->fd, buf, len, off, true, err) < 0)
		return -1;
	return tide_sysio_pwrite(log->fd, buf, len, off, err);
}

static int allocate_chunk(struct tide_write_log *log, uint64_t chunk, struct tide_error *err)
{
	uint64_t off = log->bits_at + chunk * CHUNK, len = TIDE_MIN(CHUNK, log->bits_len - chunk * CHUNK);
	int rc;

	do
		rc = fallocate(log->fd, 0, (off_t)off, (off_t)len);
	while (rc < 0 && errno == EINTR);
	if (rc == 0)
		return 0;
	if (errno == EOPNOTSUPP || errno == ENOSYS)
		return allocate_by_writing(log, off, len, err);
	return tide_error_set_sys(err, errno, "Could not allocate %" PRIu64 " bytes", len);
}

/* ---- bits ---- */

/* The bits of word w within [first, last], in the file's byte order. */
static uint64_t mask_of(uint64_t w, uint64_t first, uint64_t last)
{
	uint64_t mask = UINT64_MAX;

	if (w == first / 64)
		mask &= UINT64_MAX << first % 64;
	if (w == last / 64)
		mask &= UINT64_MAX >> (63 - last % 64);
	return htole64(mask);
}

static bool all_set(_Atomic uint64_t *bits, uint64_t first, uint64_t last)
{
	for (uint64_t w = first / 64; w <= last / 64; w++) {
		uint64_t mask = mask_of(w, first, last);

		if ((atomic_load_explicit(&bits[w], memory_order_acquire) & mask) != mask)
			return false;
	}
	return true;
}

static int note_newly_set(const struct tide_write_log *log, uint64_t w, uint64_t bits, struct tide_bitmap *newly_set,
                          struct tide_error *err)
{
	for (bits = le64toh(bits); bits; bits &= bits - 1) {
		uint64_t off = (w * 64 + (unsigned)__builtin_ctzll(bits)) << log->h.shift;

		if (tide_bitmap_set(newly_set, off, 1, err) < 0)
			return -1;
	}
	return 0;
}

/* A file that another program has cut would grow again, without its header. */
static int check_whole(const struct tide_write_log *log, struct tide_error *err)
{
	struct stat st;

	if (fstat(log->fd, &st) < 0)
		return tide_error_set_sys(err, errno, "Could not get its size");
	if ((uint64_t)st.st_size == log->bits_at + log->bits_len)
		return 0;
	return tide_error_set_sys(err, EIO, "Another program changed its size from %" PRIu64 " to %" PRIu64 " bytes",
	                          log->bits_at + log->bits_len, (uint64_t)st.st_size);
}

/* Makes sure that the page is in memory. */
static int load(struct tide_write_log *log, uint64_t page, struct tide_error *err)
{
	if (atomic_load_explicit(&log->loaded[page], memory_order_relaxed))
		return 0;
	/* No other thread uses these words until the page counts as loaded. */
	if (!log->is_new && tide_sysio_pread(log->fd, (void *)&log->bits[page * PAGE_WORDS], PAGE,
	                                     log->bits_at + page * PAGE, false, err) < 0)
		return -1;
	atomic_store_explicit(&log->loaded[page], 1, memory_order_release);
	return 0;
}

static bool is_loaded(struct tide_write_log *log, uint64_t first, uint64_t last)
{
	for (uint64_t page = first / 64 / PAGE_WORDS; page <= last / 64 / PAGE_WORDS; page++) {
		if (!atomic_load_explicit(&log->loaded[page], memory_order_acquire))
			return false;
	}
	return true;
}

static int make_room(struct tide_write_log *log, uint64_t page, struct tide_error *err)
{
	uint64_t chunk = page * PAGE / CHUNK;

	if (log->allocated[chunk])
		return 0;
	if (allocate_chunk(log, chunk, err) < 0)
		return -1;
	log->allocated[chunk] = 1;
	return 0;
}

/* Writes the words [w, w + n) as they shall be, to the file first. */
static int put_words(struct tide_write_log *log, uint64_t w, uint64_t n, const uint64_t *words, struct tide_error *err)
{
	if (tide_sysio_pwrite(log->fd, words, n * 8, log->bits_at + w * 8, err) < 0)
		return -1;
	atomic_fetch_add(&log->writes, 1);
	for (uint64_t i = 0; i < n; i++)
		atomic_store_explicit(&log->bits[w + i], words[i], memory_order_release);
	return 0;
}

/* Sets those bits of [first, last] that lie in the page, from the first changed word to the last one. */
static int set_in_page(struct tide_write_log *log, uint64_t page, uint64_t first, uint64_t last,
                       struct tide_bitmap *newly_set, struct tide_error *err)
{
	uint64_t begin = TIDE_MAX(first / 64, page * PAGE_WORDS), from = 0, to = 0;
	uint64_t end = TIDE_MIN(last / 64 + 1, (page + 1) * PAGE_WORDS), words[PAGE_WORDS];

	if (make_room(log, page, err) < 0 || load(log, page, err) < 0)
		return -1;
	for (uint64_t w = begin; w < end; w++) {
		uint64_t was = atomic_load_explicit(&log->bits[w], memory_order_relaxed),
		         mask = mask_of(w, first, last);

		words[w - begin] = was | mask;
		if ((was & mask) == mask)
			continue;
		from = to ? from : w;
		to = w + 1;
		if (newly_set && note_newly_set(log, w, mask & ~was, newly_set, err) < 0)
			return -1;
	}
	return to ? put_words(log, from, to - from, words + (from - begin), err) : 0;
}

static int set_bits(struct tide_write_log *log, uint64_t first, uint64_t last, struct tide_bitmap *newly_set,
                    struct tide_error *err)
{
	int rc;

	if (is_loaded(log, first, last) && all_set(log->bits, first, last))
		return 0;
	pthread_mutex_lock(&log->write_lock);
	rc = check_whole(log, err);
	for (uint64_t page = first / 64 / PAGE_WORDS; rc == 0 && page <= last / 64 / PAGE_WORDS; page++)
		rc = set_in_page(log, page, first, last, newly_set, err);
	pthread_mutex_unlock(&log->write_lock);
	return rc < 0 ? tide_error_wrap(err, "The write log '%s'", log->path) : 0;
}

/* ---- durability ---- */

/*
 * One sync serves all threads that set their bits before it began. A thread that comes while a sync runs waits for
 * the next one, because the running one may have missed its bits.
 */
static int sync_bits(struct tide_write_log *log, struct tide_error *err)
{
	uint64_t mine;
	int failed;

	pthread_mutex_lock(&log->sync_lock);
	mine = log->syncs_begun + 1;
	while (log->syncs_done < mine && !log->sync_failed) {
		if (log->syncing) {
			pthread_cond_wait(&log->synced, &log->sync_lock);
			continue;
		}
		uint64_t now = ++log->syncs_begun;

		log->syncing = true;
		pthread_mutex_unlock(&log->sync_lock);
		int sys = tide_sysio_fdatasync(log->fd, NULL) < 0 ? errno : 0;
		pthread_mutex_lock(&log->sync_lock);
		log->syncing = false;
		log->syncs_done = now;
		if (sys)
			log->sync_failed = sys;
		pthread_cond_broadcast(&log->synced);
	}
	failed = log->sync_failed;
	pthread_mutex_unlock(&log->sync_lock);
	return failed ? tide_error_set_sys(err, failed, "Could not flush the write log '%s'", log->path) : 0;
}

int tide_write_log_sync(struct tide_write_log *log, struct tide_error *err)
{
	uint64_t mine = atomic_load(&log->writes);
	bool is_synced;

	pthread_mutex_lock(&log->sync_lock);
	is_synced = log->writes_synced >= mine && !log->sync_failed;
	pthread_mutex_unlock(&log->sync_lock);
	if (is_synced)
		return 0;
	if (sync_bits(log, err) < 0)
		return -1;
	pthread_mutex_lock(&log->sync_lock);
	log->writes_synced = TIDE_MAX(log->writes_synced, mine);
	pthread_mutex_unlock(&log->sync_lock);
	return 0;
}

static int make_durable(struct tide_write_log *log, uint64_t first, uint64_t last, struct tide_error *err)
{
	if (all_set(log->durable, first, last))
		return 0;
	if (sync_bits(log, err) < 0)
		return -1;
	for (uint64_t w = first / 64; w <= last / 64; w++)
		atomic_fetch_or_explicit(&log->durable[w], mask_of(w, first, last), memory_order_acq_rel);
	return 0;
}

int tide_write_log_set(struct tide_write_log *log, uint64_t off, uint64_t len, struct tide_bitmap *newly_set,
                       struct tide_error *err)
{
	uint64_t first = off >> log->h.shift, last = (off + len - 1) >> log->h.shift;

	if (len == 0)
		return 0;
	if (!log->bits || !tide_range_is_within(off, len, log->h.disk_size))
		return tide_error_set(err, TIDE_E_REFUSED,
		                      "The write log '%s' does not cover %" PRIu64 " bytes at %" PRIu64, log->path, len,
		                      off);
	if (set_bits(log, first, last, newly_set, err) < 0)
		return -1;
	return log->durable ? make_durable(log, first, last, err) : 0;
}

/* It does not fail: a bit that stays set only makes too much dirty. */
void tide_write_log_unset(struct tide_write_log *log, uint64_t off, uint64_t len)
{
	uint64_t first = off >> log->h.shift, last = (off + len - 1) >> log->h.shift;

	if (len == 0 || !log->bits)
		return;
	for (uint64_t w = first / 64; w <= last / 64; w++) {
		uint64_t mask = mask_of(w, first, last), left;

		if (load(log, w / PAGE_WORDS, NULL) < 0 || check_whole(log, NULL) < 0)
			return;
		left = log->bits[w] & ~mask;
		if (left != log->bits[w] && put_words(log, w, 1, &left, NULL) < 0)
			return;
		if (log->durable)
			atomic_fetch_and_explicit(&log->durable[w], ~mask, memory_order_acq_rel);
	}
}

/* ---- reading ---- */

/*
 * The file's bits are laid out as chunks of a bitmap. When bm is for a smaller disk, the chunks beyond its end are
 * dropped.
 */
static int read_piece(struct tide_bitmap *bm, uint64_t first_chunk, const uint8_t *buf, uint64_t len,
                      struct tide_error *err)
{
	for (uint64_t at = 0; at < len && first_chunk < tide_bitmap_chunks(bm);
	     at += TIDE_BITMAP_CHUNK_BYTES, first_chunk++) {
		if (!tide_sysio_is_zero(buf + at, TIDE_BITMAP_CHUNK_BYTES) &&
		    tide_bitmap_put_chunk(bm, first_chunk, buf + at, err) < 0)
			return -1;
	}
	return 0;
}

static int read_file(struct tide_write_log *log, struct tide_bitmap *bm, struct tide_error *err)
{
	TIDE_AUTOFREE uint8_t *buf = tide_mem_aligned(4096, CHUNK, err);
	uint64_t at = 0;

	if (!buf)
		return -1;
	while (at < log->bits_len) {
		uint64_t n;
		bool data;

		tide_sysio_extent(log->fd, log->bits_at + at, log->bits_len - at, &data, &n);
		/* Skip whole bitmap chunks only, whatever the file system's block size is. */
		if (!data && n >= TIDE_BITMAP_CHUNK_BYTES) {
			at += tide_range_align_down(n, TIDE_BITMAP_CHUNK_BYTES);
			continue;
		}
		n = TIDE_MIN(CHUNK, log->bits_len - at);
		if (tide_sysio_pread(log->fd, buf, n, log->bits_at + at, false, err) < 0)
			return tide_error_wrap(err, "The write log '%s'", log->path);
		if (read_piece(bm, at / TIDE_BITMAP_CHUNK_BYTES, buf, n, err) < 0)
			return -1;
		at += n;
	}
	return 0;
}

/* Memory has every bit that this writer set, also if another program has damaged the file since. */
static int read_memory(struct tide_write_log *log, struct tide_bitmap *bm, struct tide_error *err)
{
	for (uint64_t page = 0; page < log->bits_len / PAGE; page++) {
		if (log->loaded[page] &&
		    read_piece(bm, page, (const void *)&log->bits[page * PAGE_WORDS], PAGE, err) < 0)
			return -1;
	}
	return 0;
}

int tide_write_log_read(struct tide_write_log *log, struct tide_bitmap *bm, struct tide_error *err)
{
	if (!(log->bits && log->is_new) && read_file(log, bm, err) < 0)
		return -1;
	return log->bits ? read_memory(log, bm, err) : 0;
}

/* ---- removing ---- */

void tide_write_log_unlink(const struct tide_write_log *log)
{
	struct stat mine, named;

	if (fstat(log->fd, &mine) == 0 && lstat(log->path, &named) == 0 && mine.st_dev == named.st_dev &&
	    mine.st_ino == named.st_ino)
		unlink(log->path);
}
