/*
 * The NBD driver: the disk is an export of a server, named by a URI, and its content is raw. Requests of
 * any size are divided into blocks and batches here; a change of part of a block reads the block, changes
 * it and writes it back.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/mem.h"
#include "base/range.h"
#include "nbd.h"

/* The size of one request: large enough for the network, small enough for several to be in flight. */
#define REQUEST_SIZE (UINT64_C(256) << 10)
#define BATCH_MAX    16u
#define ZERO_MAX     (UINT64_C(1) << 30)

/* ---- opening ------------------------------------------------------------------------ */

static void nbd_driver_close(void *state)
{
	struct tide_nbd *nbd = state;

	tide_nbd_conns_release(nbd);
	pthread_mutex_destroy(&nbd->edge_lock);
	pthread_mutex_destroy(&nbd->map_lock);
	for (size_t i = 0; i < nbd->n_bitmaps; i++)
		free(nbd->bitmaps[i]);
	free(nbd->map);
	free(nbd->uri);
	free(nbd);
}

static struct tide_nbd *state_new(const char *uri, unsigned flags, const atomic_bool *cancel, struct tide_error *err)
{
	struct tide_nbd *nbd = tide_mem_alloc(1, sizeof(*nbd), err);

	if (!nbd)
		return NULL;
	nbd->uri = tide_mem_strdup(uri, err);
	if (!nbd->uri) {
		free(nbd);
		return NULL;
	}
	nbd->flags = flags;
	nbd->cancel = cancel;
	pthread_mutex_init(&nbd->edge_lock, NULL);
	pthread_mutex_init(&nbd->map_lock, NULL);
	if (tide_nbd_conns_init(nbd, err) == 0 && tide_nbd_lib_load(&nbd->lib, err) == 0)
		return nbd;
	nbd_driver_close(nbd);
	return NULL;
}

static int add_number(struct tide_driver_info *info, const char *key, uint64_t n, struct tide_error *err)
{
	return tide_driver_info_add(info, key, TIDE_FEATURE_NUMBER, n, NULL, err);
}

static int add_flag(struct tide_driver_info *info, const char *key, bool is, struct tide_error *err)
{
	return tide_driver_info_add(info, key, TIDE_FEATURE_BOOL, is, NULL, err);
}

static int describe(const struct tide_nbd *nbd, struct tide_driver_info *info, struct tide_error *err)
{
	if (add_flag(info, "read-only", nbd->read_only, err) < 0 ||
	    add_flag(info, "multi-conn", atomic_load(&nbd->n_conns) > 1, err) < 0 ||
	    add_flag(info, "block-status", nbd->can_status, err) < 0 ||
	    add_number(info, "minimum-block-size", nbd->block_min, err) < 0 ||
	    add_number(info, "preferred-block-size", nbd->block_pref, err) < 0)
		return -1;
	return add_number(info, "maximum-block-size", nbd->block_max, err);
}

/*
 * The server reports neither whether its bitmaps record nor their granularity, so both are set to values that are
 * always safe.
 */
static int list_bitmaps(const struct tide_nbd *nbd, struct tide_driver_info *info, struct tide_error *err)
{
	info->bitmaps = tide_mem_alloc(nbd->n_bitmaps + 1, sizeof(*info->bitmaps), err);
	if (!info->bitmaps)
		return -1;
	for (size_t i = 0; i < nbd->n_bitmaps; i++) {
		struct tide_driver_bitmap *b = &info->bitmaps[i];

		b->granularity = 65536;
		b->name = tide_mem_strdup(nbd->bitmaps[i], err);
		if (!b->name)
			return -1;
		info->n_bitmaps++;
	}
	return 0;
}

static int check_uri(const char *uri, struct tide_error *err)
{
	const char *rest = strchr(uri, ':');

	if (!rest || strncmp(rest, "://", 3)) {
		tide_error_set(err, TIDE_E_REFUSED, "It is not the URI of an NBD export");
		return tide_error_hint(
		        err,
		        "such URIs begin with nbd://HOST/EXPORT or nbd+unix:///EXPORT?socket=PATH; a file of "
		        "this name is ./%s",
		        uri);
	}
	if (strchr(uri, '#')) {
		tide_error_set(err, TIDE_E_REFUSED, "A '#' begins the name of a bitmap, but an NBD export is expected");
		return tide_error_hint(err, "remove that part; a '#' in the name of an export is written %%23");
	}
	return 0;
}

static int nbd_driver_open(const char *uri, unsigned flags, const atomic_bool *cancel, struct tide_driver_info *info,
                           void **state, struct tide_error *err)
{
	struct tide_nbd *nbd;

	if (check_uri(uri, err) < 0)
		return -1;
	nbd = state_new(uri, flags, cancel, err);
	if (!nbd)
		return -1;
	*state = nbd; /* the caller closes it after a failure, too */
	if (tide_nbd_conns_begin(nbd, err) < 0)
		return -1;
	info->size = nbd->size;
	info->may_change = !nbd->read_only;
	if ((flags & TIDE_OPEN_WRITE) && nbd->read_only)
		return tide_error_set_sys(err, EACCES, "The NBD server exports the disk read-only");
	return describe(nbd, info, err) < 0 ? -1 : list_bitmaps(nbd, info, err);
}

/* ---- requests of any size ----------------------------------------------------------- */

static bool is_change(enum tide_nbd_command command)
{
	return command == TIDE_NBD_WRITE || command == TIDE_NBD_ZERO || command == TIDE_NBD_TRIM;
}

static int run_batches(struct tide_nbd *nbd, struct tide_nbd_request like, uint64_t most, struct tide_error *err)
{
	struct tide_nbd_request requests[BATCH_MAX];
	uint64_t done = 0;

	while (done < like.len) {
		unsigned n = 0;

		for (; n < BATCH_MAX && done < like.len; n++) {
			requests[n] = like;
			requests[n].off = like.off + done;
			requests[n].len = TIDE_MIN(most, like.len - done);
			requests[n].buf = like.buf ? (uint8_t *)like.buf + done : NULL;
			done += requests[n].len;
		}
		if (tide_nbd_run(nbd, requests, n, false, err) < 0)
			return -1;
	}
	return 0;
}

/* Counts a change, and forgets the map, which may no longer be true. */
static void note_change(struct tide_nbd *nbd)
{
	atomic_fetch_add(&nbd->changes, 1);
	tide_nbd_forget_map(nbd);
}

/* Runs as many requests as the range needs, in batches; the range consists of whole blocks, or ends with the disk. */
static int run_range(struct tide_nbd *nbd, struct tide_nbd_request like, uint64_t most, struct tide_error *err)
{
	int rc;

	if (!is_change(like.command))
		return run_batches(nbd, like, most, err);
	note_change(nbd);
	if (!nbd->can_flush && nbd->can_fua)
		like.flags |= LIBNBD_CMD_FLAG_FUA;
	rc = run_batches(nbd, like, most, err);
	note_change(nbd); /* also if it failed, because parts of it may have succeeded */
	return rc;
}

static uint64_t request_size(const struct tide_nbd *nbd)
{
	uint64_t size = TIDE_MAX(REQUEST_SIZE, tide_range_is_pow2(nbd->block_pref) ? nbd->block_pref : 0);

	return TIDE_MIN(size, nbd->block_max);
}

static int move_blocks(struct tide_nbd *nbd, enum tide_nbd_command command, void *buf, uint64_t off, uint64_t len,
                       struct tide_error *err)
{
	struct tide_nbd_request r = { .command = command, .buf = buf, .off = off, .len = len };

	return run_range(nbd, r, request_size(nbd), err);
}

/*
 * The whole blocks in a range: [*start, *end), empty when it holds none. The last one may be cut short by the
 * disk's end.
 */
static void whole_blocks(const struct tide_nbd *nbd, uint64_t off, uint64_t len, uint64_t *start, uint64_t *end)
{
	*start = tide_range_align_up(off, nbd->block_min);
	*end = off + len == nbd->size ? off + len : tide_range_align_down(off + len, nbd->block_min);
	if (*start >= *end)
		*start = *end = off + len;
}

/* Changes part of one block, at most up to its end: *n bytes. buf NULL: zeroes. */
static int change_part(struct tide_nbd *nbd, bool write, void *buf, uint64_t off, uint64_t len, uint64_t *n,
                       struct tide_error *err)
{
	uint64_t start = tide_range_align_down(off, nbd->block_min),
	         whole = TIDE_MIN(nbd->block_min, nbd->size - start);
	TIDE_AUTOFREE uint8_t *block = tide_mem_alloc(whole, 1, err);
	int rc;

	if (!block)
		return -1;
	*n = TIDE_MIN(len, start + whole - off);
	if (write)
		pthread_mutex_lock(&nbd->edge_lock);
	rc = move_blocks(nbd, TIDE_NBD_READ, block, start, whole, err);
	if (rc == 0 && write && buf)
		memcpy(block + (off - start), buf, *n);
	else if (rc == 0 && write)
		memset(block + (off - start), 0, *n);
	else if (rc == 0)
		memcpy(buf, block + (off - start), *n);
	if (rc == 0 && write)
		rc = move_blocks(nbd, TIDE_NBD_WRITE, block, start, whole, err);
	if (write)
		pthread_mutex_unlock(&nbd->edge_lock);
	return rc;
}

static int move(struct tide_nbd *nbd, enum tide_nbd_command command, uint8_t *buf, uint64_t off, uint64_t len,
                struct tide_error *err)
{
	while (len) {
		uint64_t start, end, n;

		whole_blocks(nbd, off, len, &start, &end);
		n = end - start;
		if (start == off && n > 0) {
			if (move_blocks(nbd, command, buf, off, n, err) < 0)
				return -1;
		} else if (change_part(nbd, command == TIDE_NBD_WRITE, buf, off, len, &n, err) < 0) {
			return -1;
		}
		buf += n;
		off += n;
		len -= n;
	}
	return 0;
}

/* ---- the driver's calls ------------------------------------------------------------- */

static int nbd_driver_read(void *state, void *buf, uint64_t off, uint64_t len, struct tide_error *err)
{
	return move(state, TIDE_NBD_READ, buf, off, len, err);
}

static int nbd_driver_write(void *state, const void *buf, uint64_t off, uint64_t len, struct tide_error *err)
{
	return move(state, TIDE_NBD_WRITE, (uint8_t *)buf, off, len, err);
}

static int write_zeroes(struct tide_nbd *nbd, uint64_t off, uint64_t len, struct tide_error *err)
{
	uint64_t most = TIDE_MIN(len, BATCH_MAX * REQUEST_SIZE);
	TIDE_AUTOFREE uint8_t *zeroes = tide_mem_alloc(most, 1, err);

	if (!zeroes)
		return -1;
	for (uint64_t n; len; off += n, len -= n) {
		n = TIDE_MIN(len, most);
		if (move_blocks(nbd, TIDE_NBD_WRITE, zeroes, off, n, err) < 0)
			return -1;
	}
	return 0;
}

static int nbd_driver_zero(void *state, uint64_t off, uint64_t len, bool may_unmap, struct tide_error *err)
{
	struct tide_nbd *nbd = state;

	while (len) {
		struct tide_nbd_request r = { .command = TIDE_NBD_ZERO,
			                      .flags = may_unmap ? 0 : LIBNBD_CMD_FLAG_NO_HOLE };
		uint64_t start, end, n;
		int rc;

		whole_blocks(nbd, off, len, &start, &end);
		n = end - start;
		r.off = off;
		r.len = n;
		if (start != off || n == 0)
			rc = change_part(nbd, true, NULL, off, len, &n, err);
		else
			rc = nbd->can_zero ? run_range(nbd, r, ZERO_MAX, err) : write_zeroes(nbd, off, n, err);
		if (rc < 0)
			return -1;
		off += n;
		len -= n;
	}
	return 0;
}

static int nbd_driver_discard(void *state, uint64_t off, uint64_t len, struct tide_error *err)
{
	struct tide_nbd *nbd = state;
	struct tide_nbd_request r = { .command = TIDE_NBD_TRIM };
	uint64_t start, end;

	whole_blocks(nbd, off, len, &start, &end);
	r.off = start;
	r.len = end - start;
	return nbd->can_trim ? run_range(nbd, r, ZERO_MAX, err) : 0;
}

static int nbd_driver_flush(void *state, struct tide_error *err)
{
	struct tide_nbd *nbd = state;
	struct tide_nbd_request r = { .command = TIDE_NBD_FLUSH };
	uint64_t changes = atomic_load(&nbd->changes);

	if (changes == atomic_load(&nbd->flushed))
		return 0;
	if (nbd->can_flush && !atomic_load(&nbd->lost) && tide_nbd_run(nbd, &r, 1, false, err) < 0)
		return -1;
	if (atomic_load(&nbd->lost)) {
		tide_error_set_sys(err, EIO,
		                   "The connection to the NBD server broke before the server had flushed all data");
		return tide_error_hint(err, "some of the data may be lost; write it again");
	}
	/* Of flushes that overlap, the one that began last may end first. */
	for (uint64_t was = atomic_load(&nbd->flushed); was < changes;) {
		if (atomic_compare_exchange_weak(&nbd->flushed, &was, changes))
			break;
	}
	return 0;
}

/* Those of libnbd. */
static const char *const schemes[] = { "nbd",        "nbds",    "nbd+unix", "nbds+unix", "nbd+vsock",
	                               "nbds+vsock", "nbd+ssh", "nbds+ssh", NULL };

const struct tide_image_driver tide_nbd_driver = {
	.name = "nbd",
	.schemes = schemes,
	.options = tide_nbd_options,
	.options_uri = tide_nbd_options_uri,
	.uri_noun = "an NBD export",
	.uri_example = "nbd://HOST/EXPORT or nbd+unix:///EXPORT?socket=PATH",
	.uri_raw_hint = "let the server read the image: qemu-nbd -f FORMAT",
	.open_uri = nbd_driver_open,
	.close = nbd_driver_close,
	.flush = nbd_driver_flush,
	.extent = tide_nbd_extent,
	.read = nbd_driver_read,
	.write = nbd_driver_write,
	.zero = nbd_driver_zero,
	.discard = nbd_driver_discard,
	.bitmap_read = tide_nbd_bitmap_read,
};
