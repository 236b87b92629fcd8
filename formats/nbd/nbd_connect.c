/*
 * Connects to an NBD server and reads its properties: size, block sizes, permitted commands and bitmaps. A
 * reconnect checks that the server still has the same export. A URI that an image names may not refer to
 * local files.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/error.h"
#include "base/mem.h"
#include "base/range.h"
#include "nbd.h"

/* How long another connection may take. A server that serves one client at a time lets others wait for ever. */
#define EXTRA_MS 500

static uint64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

static int fail(const struct tide_nbd *nbd, struct tide_error *err, const char *what)
{
	const char *why = nbd->lib.get_error();
	int sys = nbd->lib.get_errno();

	/* libnbd's messages begin with the name of its function. */
	if (why && !strncmp(why, "nbd_", 4) && strstr(why, ": "))
		why = strstr(why, ": ") + 2;
	tide_error_set(err, TIDE_E_IO, "%s: %s", what, why ? why : strerror(EIO));
	if (err)
		err->sys = sys ? sys : EIO;
	return -1;
}

/* Waits until the handshake, or the current option, is done. */
static int wait_connecting(struct tide_nbd *nbd, struct nbd_handle *h, uint64_t deadline, struct tide_error *err)
{
	while (nbd->lib.aio_is_connecting(h) > 0) {
		if (nbd->lib.poll(h, TIDE_NBD_TICK_MS) < 0)
			return fail(nbd, err, "Could not connect to the NBD server");
		if (tide_nbd_is_cancelled(nbd))
			return tide_error_set(err, TIDE_E_CANCELLED, "Cancelled");
		if (deadline && now_ms() > deadline)
			return tide_error_set_sys(err, ETIMEDOUT, "The NBD server accepts no further connection");
	}
	return 0;
}

/* ---- options ------------------------------------------------------------------------ */

static int note_bitmap(void *data, const char *name)
{
	struct tide_nbd *nbd = data;
	size_t n = strlen(TIDE_NBD_BITMAP_PREFIX);

	if (strncmp(name, TIDE_NBD_BITMAP_PREFIX, n) || !name[n] || nbd->n_bitmaps == TIDE_NBD_BITMAPS_MAX)
		return 0;
	nbd->bitmaps[nbd->n_bitmaps] = strdup(name + n);
	if (nbd->bitmaps[nbd->n_bitmaps])
		nbd->n_bitmaps++;
	return 0;
}

/* Servers without bitmaps answer with an error, or nothing. */
static int list_bitmaps(struct tide_nbd *nbd, struct nbd_handle *h, uint64_t deadline, struct tide_error *err)
{
	nbd_context_callback noted = { .callback = note_bitmap, .user_data = nbd };

	if (nbd->lib.add_meta_context(h, TIDE_NBD_BITMAP_PREFIX) < 0 ||
	    nbd->lib.aio_opt_list_meta_context(h, noted, NBD_NULL_COMPLETION) < 0)
		return 0;
	return wait_connecting(nbd, h, deadline, err);
}

/* The first connection asks for everything, unless the bitmaps have a connection of their own. */
static int add_contexts(struct tide_nbd *nbd, struct nbd_handle *h, unsigned index, struct tide_error *err)
{
	bool bitmaps = index == (atomic_load(&nbd->bitmaps_apart) ? TIDE_NBD_BITMAP_CONN : 0);

	nbd->lib.clear_meta_contexts(h);
	if (index != TIDE_NBD_BITMAP_CONN && nbd->lib.add_meta_context(h, LIBNBD_CONTEXT_BASE_ALLOCATION) < 0)
		return fail(nbd, err, "Could not connect to the NBD server");
	for (size_t i = 0; bitmaps && i < nbd->n_bitmaps; i++) {
		TIDE_AUTOFREE char *name = tide_mem_printf(err, TIDE_NBD_BITMAP_PREFIX "%s", nbd->bitmaps[i]);

		if (!name)
			return -1;
		if (nbd->lib.add_meta_context(h, name) < 0)
			return fail(nbd, err, "Could not connect to the NBD server");
	}
	return 0;
}

static int note_error(void *data, int *error)
{
	*(int *)data = *error;
	return 1;
}

static int choose_export(struct tide_nbd *nbd, struct nbd_handle *h, uint64_t deadline, struct tide_error *err)
{
	int sys = 0;
	nbd_completion_callback done = { .callback = note_error, .user_data = &sys };
	char *name;

	if (nbd->lib.aio_opt_go(h, done) < 0)
		return fail(nbd, err, "Could not connect to the NBD server");
	if (wait_connecting(nbd, h, deadline, err) < 0)
		return -1;
	if (nbd->lib.aio_is_ready(h) > 0)
		return 0;
	name = nbd->lib.get_export_name(h);
	tide_error_set_sys(err, sys ? sys : EIO, "The NBD server does not serve the export '%s'", name ? name : "");
	free(name);
	return -1;
}

static int negotiate(struct tide_nbd *nbd, struct nbd_handle *h, unsigned index, uint64_t deadline,
                     struct tide_error *err)
{
	if (nbd->lib.aio_connect_uri(h, nbd->uri) < 0)
		return fail(nbd, err, "Could not connect to the NBD server");
	if (wait_connecting(nbd, h, deadline, err) < 0)
		return -1;
	if (nbd->lib.aio_is_negotiating(h) > 0) {
		if (!nbd->known && list_bitmaps(nbd, h, deadline, err) < 0)
			return -1;
		if (add_contexts(nbd, h, index, err) < 0 || choose_export(nbd, h, deadline, err) < 0)
			return -1;
	}
	return nbd->lib.aio_is_ready(h) > 0 ? 0 : fail(nbd, err, "Could not connect to the NBD server");
}

/* ---- what it serves ----------------------------------------------------------------- */

static uint64_t block_size(const struct tide_nbd *nbd, struct nbd_handle *h, int which, uint64_t usual)
{
	int64_t n = nbd->lib.get_block_size(h, which);

	return n > 0 ? (uint64_t)n : usual;
}

static int learn(struct tide_nbd *nbd, struct nbd_handle *h, struct tide_error *err)
{
	int64_t size = nbd->lib.get_size(h);
	bool multi = nbd->lib.can_multi_conn(h) > 0;

	if (size < 0)
		return fail(nbd, err, "The NBD server does not say how large the export is");
	if (nbd->known) {
		if ((uint64_t)size != nbd->size)
			return tide_error_set(err, TIDE_E_IO,
			                      "The size of the NBD export has changed: it is %" PRId64
			                      " bytes, not %" PRIu64,
			                      size, nbd->size);
		return 0;
	}
	nbd->size = (uint64_t)size;
	nbd->block_min = block_size(nbd, h, LIBNBD_SIZE_MINIMUM, 1);
	nbd->block_pref = block_size(nbd, h, LIBNBD_SIZE_PREFERRED, 4096);
	nbd->block_max = TIDE_MIN(block_size(nbd, h, LIBNBD_SIZE_MAXIMUM, UINT64_C(32) << 20), UINT64_C(32) << 20);
	if (!tide_range_is_pow2(nbd->block_min) || nbd->block_min > 65536)
		return tide_error_set(err, TIDE_E_UNSUPPORTED,
		                      "The NBD server asks for requests in blocks of %" PRIu64 " bytes",
		                      nbd->block_min);
	nbd->block_max = TIDE_MAX(tide_range_align_down(nbd->block_max, nbd->block_min), nbd->block_min);
	nbd->read_only = nbd->lib.is_read_only(h) > 0;
	nbd->can_zero = nbd->lib.can_zero(h) > 0;
	nbd->can_trim = nbd->lib.can_trim(h) > 0;
	nbd->can_flush = nbd->lib.can_flush(h) > 0;
	nbd->can_fua = nbd->lib.can_fua(h) > 0;
	nbd->can_status = nbd->lib.can_meta_context(h, LIBNBD_CONTEXT_BASE_ALLOCATION) > 0;
	atomic_store(&nbd->n_conns, multi ? TIDE_NBD_CONNS_MAX : 1);
	nbd->known = true;
	return 0;
}

struct nbd_handle *tide_nbd_connect(struct tide_nbd *nbd, unsigned index, struct tide_error *err)
{
	struct nbd_handle *h = nbd->lib.create();
	uint64_t deadline = index ? now_ms() + EXTRA_MS : 0;
	bool trusted = !(nbd->flags & TIDE_OPEN_UNTRUSTED);

	if (!h) {
		fail(nbd, err, "Could not connect to the NBD server");
		return NULL;
	}
	/* A URI may name local files (with keys). That is not allowed when an image names the URI. */
	if (nbd->lib.set_uri_allow_local_file(h, trusted) < 0 || nbd->lib.set_opt_mode(h, true) < 0 ||
	    nbd->lib.set_strict_mode(h, nbd->lib.get_strict_mode(h) & ~LIBNBD_STRICT_ALIGN) < 0) {
		fail(nbd, err, "Could not connect to the NBD server");
	} else if (negotiate(nbd, h, index, deadline, err) == 0 && learn(nbd, h, err) == 0) {
		return h;
	}
	nbd->lib.close(h);
	return NULL;
}
