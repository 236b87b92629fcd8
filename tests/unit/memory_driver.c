/*
 * Scripted disks in memory for unit tests (memory_driver.h).
 *
 * The bytes of a disk are in a memfd, so that they can be mapped for the copy engine, and are
 * visible here as plain memory.  All disks are in one table; the mark in an image's file is
 * the place in that table.
 *
 * Locking: a disk's lock holds what is known of its blocks, and the counts.  Bytes are moved
 * without it: requests that run side by side share no block (driver.h).
 */
#include "memory_driver.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/error.h"
#include "base/mem.h"
#include "base/range.h"
#include "base/sysio.h"

#define BLOCK      512u /* of disks without clusters */
#define DISKS_MAX  64u
#define MARK       "memory disk "
#define MARK_LEN   32u
#define FIRST_TIME 1000000000 /* of a disk's file, in seconds; each change adds one */

struct memory_disk {
	unsigned number;
	char *path;                     /* NULL: made by create */
	char *backing, *backing_format; /* of the script, where create has copied them */
	struct memory_script script;
	uint64_t block;
	int fd, full_fd; /* of the bytes; of a file that takes none */
	uint8_t *bytes;
	pthread_mutex_t lock; /* of what follows */
	uint8_t *kind;        /* enum tide_extent_kind of each block */
	unsigned count[MEMORY_OPS];
	uint64_t count_bytes[MEMORY_OPS];
	unsigned met[MEMORY_FAULTS_MAX]; /* how often each fault was met */
	unsigned changes;
};

/* An open image; its disk outlives it. */
struct memory_state {
	struct memory_disk *disk;
	int fd; /* of the file with the mark */
};

static pthread_mutex_t disks_lock = PTHREAD_MUTEX_INITIALIZER;
static struct memory_disk *disks[DISKS_MAX];
static struct memory_script created;

/* ---- Disks ---- */

static void disk_release(struct memory_disk *disk)
{
	if (disk->bytes && disk->bytes != MAP_FAILED)
		munmap(disk->bytes, disk->script.size);
	tide_sysio_close(disk->fd);
	tide_sysio_close(disk->full_fd);
	pthread_mutex_destroy(&disk->lock);
	free(disk->kind);
	free(disk->path);
	free(disk->backing);
	free(disk->backing_format);
	free(disk);
}

static void disk_releasep(struct memory_disk **disk)
{
	if (*disk)
		disk_release(*disk);
}

static int allocate(struct memory_disk *disk, struct tide_error *err)
{
	uint64_t size = disk->script.size;

	disk->kind = tide_mem_alloc(tide_range_div_up(size, disk->block), 1, err);
	if (!disk->kind)
		return -1;
	memset(disk->kind, TIDE_EXTENT_HOLE, tide_range_div_up(size, disk->block));
	disk->fd = memfd_create("memory disk", MFD_CLOEXEC);
	disk->full_fd = open("/dev/full", O_RDWR | O_CLOEXEC);
	if (disk->fd < 0 || disk->full_fd < 0 || ftruncate(disk->fd, (off_t)size) < 0)
		return tide_error_set_sys(err, errno, "No memory disk");
	disk->bytes = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, disk->fd, 0);
	return disk->bytes == MAP_FAILED ? tide_error_set_sys(err, errno, "No memory disk") : 0;
}

static int enter(struct memory_disk *disk, struct tide_error *err)
{
	unsigned i = 0;

	pthread_mutex_lock(&disks_lock);
	while (i < DISKS_MAX && disks[i])
		i++;
	if (i < DISKS_MAX)
		disks[i] = disk;
	disk->number = i;
	pthread_mutex_unlock(&disks_lock);
	return i < DISKS_MAX ? 0 : tide_error_set(err, TIDE_E_NOMEM, "More than %u memory disks", DISKS_MAX);
}

static int mark(int fd, const struct memory_disk *disk, struct tide_error *err)
{
	char text[MARK_LEN + 1] = "";

	snprintf(text, sizeof(text), MARK "%02u %s\n", disk->number, disk->script.remote ? "remote" : "local");
	return tide_sysio_pwrite(fd, text, MARK_LEN, 0, err);
}

/* A new disk in the table, and its mark in the empty file fd. */
static struct memory_disk *disk_new(int fd, const struct memory_script *script, struct tide_error *err)
{
	TIDE_CLEANUP(disk_releasep) struct memory_disk *disk = tide_mem_alloc(1, sizeof(*disk), err);
	struct memory_disk *result;

	if (!disk)
		return NULL;
	disk->fd = disk->full_fd = -1;
	pthread_mutex_init(&disk->lock, NULL);
	disk->script = *script;
	disk->block = script->cluster_size ? script->cluster_size : BLOCK;
	if (allocate(disk, err) < 0 || enter(disk, err) < 0)
		return NULL;
	result = disk;
	disk = NULL;
	if (mark(fd, result, err) == 0)
		return result;
	memory_disk_free(result);
	return NULL;
}

/*
 * The name of the disk's format.  The image layer is asked for it, so that who links this file gets the table of
 * formats that goes with it (Makefile, UNIT_OBJ) and not that of the library.
 */
static const char *format_of(const struct memory_script *script)
{
	const struct tide_image_driver *driver = script->remote ? &tide_memory_remote_driver : &tide_memory_driver;

	return tide_image_find_driver(driver->name) ? driver->name : NULL;
}

struct memory_disk *memory_disk_new(const char *path, const struct memory_script *script, struct tide_error *err)
{
	TIDE_CLEANUP(tide_sysio_closep) int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	struct memory_disk *disk;

	if (fd < 0) {
		tide_error_set_sys(err, errno, "Could not create '%s'", path);
		return NULL;
	}
	if (!format_of(script)) {
		tide_error_set(err, TIDE_E_UNSUPPORTED,
		               "The image layer does not know the formats of memory_formats.def");
		return NULL;
	}
	disk = disk_new(fd, script, err);
	if (!disk)
		return NULL;
	disk->path = tide_mem_strdup(path, err);
	if (disk->path)
		return disk;
	memory_disk_free(disk);
	return NULL;
}

void memory_disk_free(struct memory_disk *disk)
{
	if (!disk)
		return;
	pthread_mutex_lock(&disks_lock);
	disks[disk->number] = NULL;
	pthread_mutex_unlock(&disks_lock);
	disk_release(disk);
}

void memory_disk_script_created(const struct memory_script *script)
{
	created = script ? *script : (struct memory_script){ 0 };
}

/* The disk whose mark is in the file; NULL: there is none. */
static struct memory_disk *disk_of(int fd)
{
	struct memory_disk *disk = NULL;
	char text[MARK_LEN + 1] = "";
	unsigned number;

	if (tide_sysio_pread(fd, text, MARK_LEN, 0, true, NULL) < 0 || sscanf(text, MARK "%u", &number) != 1)
		return NULL;
	pthread_mutex_lock(&disks_lock);
	if (number < DISKS_MAX)
		disk = disks[number];
	pthread_mutex_unlock(&disks_lock);
	return disk;
}

struct memory_disk *memory_disk_find(const char *path)
{
	TIDE_CLEANUP(tide_sysio_closep) int fd = open(path, O_RDONLY | O_CLOEXEC);

	return fd < 0 ? NULL : disk_of(fd);
}

int memory_disk_open(struct memory_disk *disk, bool write, struct tide_image **image, struct tide_error *err)
{
	struct tide_image_options options = {
		.path = disk->path,
		.format = format_of(&disk->script),
		.write = write,
	};

	return tide_image_open(&options, image, err);
}

uint8_t *memory_disk_bytes(struct memory_disk *disk)
{
	return disk->bytes;
}

uint64_t memory_disk_size(const struct memory_disk *disk)
{
	return disk->script.size;
}

/* Whole blocks of the range, the last one of the disk too. */
static void set_kind(struct memory_disk *disk, uint64_t off, uint64_t len, enum tide_extent_kind kind)
{
	pthread_mutex_lock(&disk->lock);
	for (uint64_t i = off / disk->block; i * disk->block < off + len; i++)
		disk->kind[i] = (uint8_t)kind;
	pthread_mutex_unlock(&disk->lock);
}

void memory_disk_set_kind(struct memory_disk *disk, uint64_t off, uint64_t len, enum tide_extent_kind kind)
{
	memset(disk->bytes + off, 0, len);
	set_kind(disk, off, len, kind);
}

void memory_disk_fill(struct memory_disk *disk, uint64_t off, uint64_t len, unsigned seed)
{
	for (uint64_t i = off; i < off + len; i++)
		disk->bytes[i] = (uint8_t)(((i * 2654435761u) >> 13 ^ seed * 97u) | 1);
	set_kind(disk, off, len, TIDE_EXTENT_DATA);
}

enum tide_extent_kind memory_disk_kind(struct memory_disk *disk, uint64_t off)
{
	enum tide_extent_kind kind;

	pthread_mutex_lock(&disk->lock);
	kind = disk->kind[off / disk->block];
	pthread_mutex_unlock(&disk->lock);
	return kind;
}

void memory_disk_fail(struct memory_disk *disk, const struct memory_fault *fault)
{
	pthread_mutex_lock(&disk->lock);
	disk->script.fault[0] = *fault;
	disk->met[0] = 0;
	pthread_mutex_unlock(&disk->lock);
}

unsigned memory_disk_count(struct memory_disk *disk, enum memory_op op)
{
	unsigned n;

	pthread_mutex_lock(&disk->lock);
	n = disk->count[op];
	pthread_mutex_unlock(&disk->lock);
	return n;
}

uint64_t memory_disk_count_bytes(struct memory_disk *disk, enum memory_op op)
{
	uint64_t n;

	pthread_mutex_lock(&disk->lock);
	n = disk->count_bytes[op];
	pthread_mutex_unlock(&disk->lock);
	return n;
}

/* ---- Faults ---- */

/* Is there a fault for it that has not been met often enough?  Lock held. */
static bool is_due(const struct memory_disk *disk, size_t i, enum memory_op op, uint64_t off, uint64_t len)
{
	const struct memory_fault *f = &disk->script.fault[i];

	return f->sys && f->op == op && f->off >= off && f->off - off < len && (!f->times || disk->met[i] < f->times);
}

/* The fault that this request meets, as an errno; 0: none. */
static int meet(struct memory_disk *disk, enum memory_op op, uint64_t off, uint64_t len)
{
	const struct memory_script *script = &disk->script;
	int sys = 0;

	if (script->hook)
		script->hook(script->hook_data, op, off, len);
	if (script->delay_us) {
		struct timespec nap = { script->delay_us / 1000000, script->delay_us % 1000000 * 1000 };
		nanosleep(&nap, NULL);
	}
	pthread_mutex_lock(&disk->lock);
	disk->count[op]++;
	disk->count_bytes[op] += len;
	for (size_t i = 0; i < MEMORY_FAULTS_MAX && !sys; i++) {
		if (is_due(disk, i, op, off, len)) {
			disk->met[i]++;
			sys = script->fault[i].sys;
		}
	}
	pthread_mutex_unlock(&disk->lock);
	return sys;
}

static int request(struct memory_disk *disk, enum memory_op op, uint64_t off, uint64_t len, struct tide_error *err)
{
	static const char *const names[MEMORY_OPS] = {
		[MEMORY_EXTENT] = "extent", [MEMORY_READ] = "read", [MEMORY_BEGIN] = "begin", [MEMORY_WRITE] = "write",
		[MEMORY_COMMIT] = "commit", [MEMORY_ZERO] = "zero", [MEMORY_FLUSH] = "flush",
	};
	int sys = meet(disk, op, off, len);

	return sys ? tide_error_set_sys(err, sys, "Scripted fault of %s at %" PRIu64, names[op], off) : 0;
}

/* ---- The driver ---- */

static bool has_mark(const uint8_t *head, size_t len, const char *which)
{
	char text[MARK_LEN + 1] = "";

	memcpy(text, head, TIDE_MIN(len, MARK_LEN));
	return !strncmp(text, MARK, strlen(MARK)) && strstr(text, which);
}

static bool memory_probe(const uint8_t *head, size_t len)
{
	return has_mark(head, len, "local");
}

static bool remote_probe(const uint8_t *head, size_t len)
{
	return has_mark(head, len, "remote");
}

static int create(int fd, const struct tide_driver_create *options, bool remote, struct tide_error *err)
{
	struct memory_script script = created;
	struct memory_disk *disk;

	script.size = options->size;
	script.remote = remote;
	if (options->cluster_size)
		script.cluster_size = options->cluster_size;
	script.backing = script.backing_format = NULL;
	disk = disk_new(fd, &script, err);
	if (!disk)
		return -1;
	if (options->backing && !(disk->backing = tide_mem_strdup(options->backing, err)))
		return -1;
	if (options->backing_format && !(disk->backing_format = tide_mem_strdup(options->backing_format, err)))
		return -1;
	disk->script.backing = disk->backing;
	disk->script.backing_format = disk->backing_format;
	return 0;
}

static int memory_create(int fd, const struct tide_driver_create *options, struct tide_error *err)
{
	return create(fd, options, false, err);
}

static int remote_create(int fd, const struct tide_driver_create *options, struct tide_error *err)
{
	return create(fd, options, true, err);
}

static int memory_open(int fd, const char *dir, unsigned flags, struct tide_driver_info *info, void **state,
                       struct tide_error *err)
{
	struct memory_disk *disk = disk_of(fd);
	const struct memory_script *script;
	struct memory_state *s;

	if (!disk)
		return tide_error_set(err, TIDE_E_CORRUPT, "There is no such memory disk");
	script = &disk->script;
	info->size = script->size;
	info->cluster_size = script->cluster_size;
	info->backing = script->backing ? tide_mem_strdup(script->backing, err) : NULL;
	info->backing_format = script->backing_format ? tide_mem_strdup(script->backing_format, err) : NULL;
	if ((script->backing && !info->backing) || (script->backing_format && !info->backing_format))
		return -1;
	s = tide_mem_alloc(1, sizeof(*s), err);
	if (!s)
		return -1;
	*s = (struct memory_state){ disk, fd };
	*state = s;
	return 0;
}

static void memory_close(void *state)
{
	free(state);
}

static int memory_flush(void *state, struct tide_error *err)
{
	struct memory_state *s = state;

	return request(s->disk, MEMORY_FLUSH, 0, 1, err);
}

/* The file gets a time that it has not had yet. */
static void note_change(struct memory_state *s)
{
	struct timespec times[2];

	pthread_mutex_lock(&s->disk->lock);
	times[0] = times[1] = (struct timespec){ FIRST_TIME + ++s->disk->changes, 0 };
	(void)!futimens(s->fd, times);
	pthread_mutex_unlock(&s->disk->lock);
}

/* May this block be mapped?  Lock held. */
static bool is_mapped(const struct memory_disk *disk, uint64_t block)
{
	if (disk->script.remote || disk->script.unmapped)
		return false;
	for (size_t i = 0; i < MEMORY_FAULTS_MAX; i++) {
		if (is_due(disk, i, MEMORY_READ, block * disk->block, disk->block))
			return false;
	}
	return true;
}

static int memory_extent(void *state, uint64_t off, uint64_t len, struct tide_extent *out, struct tide_error *err)
{
	struct memory_disk *disk = ((struct memory_state *)state)->disk;
	uint64_t i = off / disk->block, end;
	bool mapped;

	if (request(disk, MEMORY_EXTENT, off, len, err) < 0)
		return -1;
	if (disk->script.extent_max)
		len = TIDE_MIN(len, disk->script.extent_max);
	pthread_mutex_lock(&disk->lock);
	mapped = is_mapped(disk, i);
	*out = (struct tide_extent){ .off = off, .kind = disk->kind[i], .map_fd = -1 };
	do
		end = ++i * disk->block;
	while (end < off + len && disk->kind[i] == out->kind && is_mapped(disk, i) == mapped);
	pthread_mutex_unlock(&disk->lock);
	out->len = TIDE_MIN(end - off, len);
	if (out->kind == TIDE_EXTENT_DATA && mapped) {
		out->mapped = true;
		out->map_fd = disk->fd;
		out->map_off = off;
	}
	return 0;
}

/* Does every block of the range hold data? */
static bool is_data(struct memory_disk *disk, uint64_t off, uint64_t len)
{
	bool data = true;

	pthread_mutex_lock(&disk->lock);
	for (uint64_t i = off / disk->block; i * disk->block < off + len; i++)
		data = data && disk->kind[i] == TIDE_EXTENT_DATA;
	pthread_mutex_unlock(&disk->lock);
	return data;
}

static int memory_read(void *state, void *buf, uint64_t off, uint64_t len, struct tide_error *err)
{
	struct memory_disk *disk = ((struct memory_state *)state)->disk;

	if (request(disk, MEMORY_READ, off, len, err) < 0)
		return -1;
	if (!is_data(disk, off, len))
		return tide_error_set(err, TIDE_E_CORRUPT, "There is no data at %" PRIu64, off);
	memcpy(buf, disk->bytes + off, len);
	return 0;
}

/* How much of the range, from its start, can be changed without its neighbours. */
static uint64_t changeable(struct memory_disk *disk, uint64_t off, uint64_t len)
{
	uint64_t block = disk->block, end = off + len;

	if (!disk->script.cluster_size)
		return len;
	if (off % block && !is_data(disk, off, 1))
		return 0;
	if (end % block && end < disk->script.size && !is_data(disk, end, 1))
		end = tide_range_align_down(end, block);
	return end > off ? end - off : 0;
}

static int memory_write_begin(void *state, uint64_t off, uint64_t len, struct tide_extent *out, struct tide_error *err)
{
	struct memory_disk *disk = ((struct memory_state *)state)->disk;

	if (request(disk, MEMORY_BEGIN, off, len, err) < 0)
		return -1;
	len = changeable(disk, off, len);
	if (len == 0)
		return 1;
	if (disk->script.place_max)
		len = TIDE_MIN(len, disk->script.place_max);
	*out = (struct tide_extent){
		.off = off,
		.len = len,
		.kind = TIDE_EXTENT_DATA,
		.mapped = true,
		.map_fd = meet(disk, MEMORY_WRITE, off, len) ? disk->full_fd : disk->fd,
		.map_off = off,
	};
	return 0;
}

/* Blocks that are not data lose their bytes. */
static void give_up(struct memory_disk *disk, uint64_t off, uint64_t len)
{
	for (uint64_t pos = off, n; pos < off + len; pos += n) {
		n = TIDE_MIN(tide_range_align_down(pos, disk->block) + disk->block, off + len) - pos;
		if (memory_disk_kind(disk, pos) != TIDE_EXTENT_DATA)
			memset(disk->bytes + pos, 0, n);
	}
}

static int memory_write_commit(void *state, const struct tide_extent *place, struct tide_error *err)
{
	struct memory_state *s = state;

	if (request(s->disk, MEMORY_COMMIT, place->off, place->len, err) < 0) {
		give_up(s->disk, place->off, place->len);
		return -1;
	}
	set_kind(s->disk, place->off, place->len, TIDE_EXTENT_DATA);
	note_change(s);
	return 0;
}

static void memory_write_abort(void *state, const struct tide_extent *place)
{
	struct memory_disk *disk = ((struct memory_state *)state)->disk;

	meet(disk, MEMORY_ABORT, place->off, place->len);
	give_up(disk, place->off, place->len);
}

/* The neighbours within a cluster come from the backing image: only the image layer can read them. */
static int remote_write(void *state, const void *buf, uint64_t off, uint64_t len, struct tide_error *err)
{
	struct memory_state *s = state;

	if (request(s->disk, MEMORY_WRITE, off, len, err) < 0)
		return -1;
	if (s->disk->script.backing && changeable(s->disk, off, len) < len)
		return tide_error_set(err, TIDE_E_UNSUPPORTED, "A part of a cluster at %" PRIu64 " is written", off);
	memcpy(s->disk->bytes + off, buf, len);
	set_kind(s->disk, off, len, TIDE_EXTENT_DATA);
	note_change(s);
	return 0;
}

static int memory_zero(void *state, uint64_t off, uint64_t len, bool may_unmap, struct tide_error *err)
{
	struct memory_state *s = state;
	uint64_t size = s->disk->script.size, block = s->disk->block, end = off + len;
	uint64_t first = tide_range_align_up(off, block), last = end == size ? end : tide_range_align_down(end, block);

	if (request(s->disk, MEMORY_ZERO, off, len, err) < 0)
		return -1;
	if (s->disk->script.cluster_size && (first != off || last != end))
		return 1;
	memset(s->disk->bytes + off, 0, len);
	if (!may_unmap)
		set_kind(s->disk, off, len, TIDE_EXTENT_DATA);
	else if (first < last)
		set_kind(s->disk, first, last - first, TIDE_EXTENT_ZERO);
	note_change(s);
	return 0;
}

static bool memory_can_zero_fast(void *state, bool may_unmap)
{
	return may_unmap;
}

const struct tide_image_driver tide_memory_driver = {
	.name = "memory",
	.has_backing = true,
	.probe = memory_probe,
	.create = memory_create,
	.open = memory_open,
	.close = memory_close,
	.flush = memory_flush,
	.extent = memory_extent,
	.read = memory_read,
	.write_begin = memory_write_begin,
	.write_commit = memory_write_commit,
	.write_abort = memory_write_abort,
	.zero = memory_zero,
	.can_zero_fast = memory_can_zero_fast,
};

const struct tide_image_driver tide_memory_remote_driver = {
	.name = "memory-remote",
	.has_backing = true,
	.probe = remote_probe,
	.create = remote_create,
	.open = memory_open,
	.close = memory_close,
	.flush = memory_flush,
	.extent = memory_extent,
	.read = memory_read,
	.write = remote_write,
	.zero = memory_zero,
	.can_zero_fast = memory_can_zero_fast,
};
