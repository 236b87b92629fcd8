/*
 * NBD connections and the requests on them. Each connection has a thread that owns its libnbd handle: it
 * issues the requests that callers have queued, and completes a batch when its last request is answered or
 * the connection dies. Callers wait for their batch and watch the cancel flag.
 */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "base/error.h"
#include "nbd.h"

/* How long a flush may take after a cancel, which still tries to keep finished work. */
#define LATE_FLUSH_MS 10000

/* ---- the connection's thread -------------------------------------------------------- */

/* Lock held. */
static void finish(struct tide_nbd_request *r)
{
	struct tide_nbd_batch *batch = r->batch;

	if (r->sys && !batch->sys) {
		batch->sys = r->sys;
		batch->failed = r->off;
	}
	if (--batch->pending == 0)
		pthread_cond_broadcast(&batch->conn->changed);
}

/* Called when libnbd no longer uses the request or its buffer, whether an answer came or never will. */
static void request_over(void *data)
{
	struct tide_nbd_request *r = data;
	struct tide_nbd_conn *conn = r->batch->conn;

	pthread_mutex_lock(&conn->lock);
	finish(r);
	pthread_mutex_unlock(&conn->lock);
}

static int request_answered(void *data, int *error)
{
	struct tide_nbd_request *r = data;

	r->sys = *error;
	return 1;
}

static void issue(const struct tide_nbd_lib *lib, struct nbd_handle *h, struct tide_nbd_request *r)
{
	nbd_completion_callback done = { .callback = request_answered, .user_data = r, .free = request_over };

	r->sys = ENOTCONN; /* until an answer comes */
	/* If a call fails, libnbd has called request_over. */
	switch (r->command) {
	case TIDE_NBD_READ:
		lib->aio_pread(h, r->buf, r->len, r->off, done, 0);
		break;
	case TIDE_NBD_WRITE:
		lib->aio_pwrite(h, r->buf, r->len, r->off, done, r->flags);
		break;
	case TIDE_NBD_ZERO:
		lib->aio_zero(h, r->len, r->off, done, r->flags);
		break;
	case TIDE_NBD_TRIM:
		lib->aio_trim(h, r->len, r->off, done, r->flags);
		break;
	case TIDE_NBD_FLUSH:
		lib->aio_flush(h, done, 0);
		break;
	case TIDE_NBD_STATUS:
		lib->aio_block_status(h, r->len, r->off, r->extents, done, r->flags);
		break;
	}
}

/* Issues the queued requests; false: the thread must end. */
static bool issue_all(struct tide_nbd_conn *conn)
{
	struct tide_nbd_request *r, *next;
	bool go;

	pthread_mutex_lock(&conn->lock);
	go = !conn->kill;
	r = go ? conn->first : NULL;
	if (go)
		conn->first = conn->last = NULL;
	pthread_mutex_unlock(&conn->lock);
	for (; r; r = next) {
		next = r->next; /* r may be freed after this */
		issue(&conn->nbd->lib, conn->h, r);
	}
	return go;
}

/* Waits for the server or for new requests and lets libnbd process them; false: the connection is dead. */
static bool serve(struct tide_nbd_conn *conn)
{
	const struct tide_nbd_lib *lib = &conn->nbd->lib;
	struct nbd_handle *h = conn->h;
	unsigned dir = lib->aio_get_direction(h);
	struct pollfd fds[2] = { { .fd = conn->wake, .events = POLLIN }, { .fd = lib->aio_get_fd(h) } };
	uint64_t count;
	int rc = 0;

	if (lib->aio_is_dead(h) || lib->aio_is_closed(h))
		return false;
	fds[1].events = (short)((dir & LIBNBD_AIO_DIRECTION_READ ? POLLIN : 0) |
	                        (dir & LIBNBD_AIO_DIRECTION_WRITE ? POLLOUT : 0));
	if (poll(fds, 2, -1) < 0)
		return errno == EINTR;
	if (fds[0].revents && read(conn->wake, &count, sizeof(count)) < 0 && errno != EAGAIN)
		return false;
	if (fds[1].revents & POLLNVAL)
		return false;
	if ((dir & LIBNBD_AIO_DIRECTION_READ) && (fds[1].revents & (POLLIN | POLLHUP | POLLERR)))
		rc = lib->aio_notify_read(h);
	else if ((dir & LIBNBD_AIO_DIRECTION_WRITE) && (fds[1].revents & (POLLOUT | POLLHUP | POLLERR)))
		rc = lib->aio_notify_write(h);
	return rc == 0 && !lib->aio_is_dead(h) && !lib->aio_is_closed(h);
}

static void *run_conn(void *data)
{
	struct tide_nbd_conn *conn = data;

	while (issue_all(conn) && serve(conn))
		;
	/* Set before the waiting callers are woken. */
	if (tide_nbd_is_unflushed(conn->nbd))
		atomic_store(&conn->nbd->lost, true);
	conn->nbd->lib.close(conn->h); /* ends all requests in flight */
	pthread_mutex_lock(&conn->lock);
	conn->h = NULL;
	conn->alive = false;
	while (conn->first) {
		struct tide_nbd_request *r = conn->first;

		conn->first = r->next;
		r->sys = ENOTCONN;
		finish(r);
	}
	conn->last = NULL;
	pthread_cond_broadcast(&conn->changed);
	pthread_mutex_unlock(&conn->lock);
	return NULL;
}

static void poke(struct tide_nbd_conn *conn)
{
	uint64_t one = 1;

	/* It can only fail when the counter is full, and then the thread wakes up anyway. */
	if (write(conn->wake, &one, sizeof(one)) < 0)
		return;
}

/* ---- connecting --------------------------------------------------------------------- */

/* Waits for at most a tick; lock held. */
static void wait_tick(struct tide_nbd_conn *conn)
{
	struct timespec until;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_nsec += TIDE_NBD_TICK_MS * 1000000;
	if (until.tv_nsec >= 1000000000) {
		until.tv_nsec -= 1000000000;
		until.tv_sec++;
	}
	pthread_cond_timedwait(&conn->changed, &conn->lock, &until);
}

/* Replaces a connection that has ended or never existed. The lock is held, and released meanwhile. */
static int reconnect(struct tide_nbd_conn *conn, struct tide_error *err)
{
	bool ended = conn->has_thread;
	struct nbd_handle *h;
	int sys = 0;

	conn->connecting = true;
	conn->has_thread = false;
	pthread_mutex_unlock(&conn->lock);
	if (ended)
		pthread_join(conn->thread, NULL);
	h = tide_nbd_connect(conn->nbd, (unsigned)(conn - conn->nbd->conns), err);
	pthread_mutex_lock(&conn->lock);
	conn->connecting = conn->kill = false;
	if (h) {
		conn->h = h;
		sys = pthread_create(&conn->thread, NULL, run_conn, conn);
		conn->alive = conn->has_thread = sys == 0;
	}
	if (h && sys) {
		conn->nbd->lib.close(h);
		conn->h = NULL;
		tide_error_set_sys(err, sys, "Could not start a thread");
	}
	pthread_cond_broadcast(&conn->changed);
	return conn->alive ? 0 : -1;
}

/* Lock held. */
static int make_alive(struct tide_nbd_conn *conn, struct tide_error *err)
{
	while (conn->connecting || (conn->alive && conn->kill)) {
		wait_tick(conn);
		if (tide_nbd_is_cancelled(conn->nbd))
			return tide_error_set(err, TIDE_E_CANCELLED, "Cancelled");
	}
	return conn->alive ? 0 : reconnect(conn, err);
}

/* Returns the connection, locked, when it accepts requests; NULL: it could not be made. */
static struct tide_nbd_conn *lock_conn(struct tide_nbd_conn *conn, struct tide_error *err)
{
	pthread_mutex_lock(&conn->lock);
	if (make_alive(conn, err) == 0)
		return conn;
	pthread_mutex_unlock(&conn->lock);
	return NULL;
}

/* Chooses the connection in turn. */
static struct tide_nbd_conn *lock_any(struct tide_nbd *nbd, struct tide_error *err)
{
	struct tide_nbd_conn *conn = &nbd->conns[atomic_fetch_add(&nbd->turn, 1) % atomic_load(&nbd->n_conns)];
	struct tide_nbd_conn *locked = lock_conn(conn, conn == nbd->conns ? err : NULL);

	if (locked || conn == nbd->conns)
		return locked;
	/* The server does not accept another connection; one is enough. */
	atomic_store(&nbd->n_conns, 1);
	return lock_conn(nbd->conns, err);
}

int tide_nbd_conns_begin(struct tide_nbd *nbd, struct tide_error *err)
{
	struct tide_nbd_conn *conn = lock_conn(nbd->conns, err);

	if (!conn)
		return -1;
	pthread_mutex_unlock(&conn->lock);
	return 0;
}

int tide_nbd_conns_init(struct tide_nbd *nbd, struct tide_error *err)
{
	pthread_condattr_t attr;

	for (unsigned i = 0; i <= TIDE_NBD_BITMAP_CONN; i++)
		nbd->conns[i].wake = -1;
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	for (unsigned i = 0; i <= TIDE_NBD_BITMAP_CONN; i++) {
		struct tide_nbd_conn *conn = &nbd->conns[i];

		conn->nbd = nbd;
		pthread_mutex_init(&conn->lock, NULL);
		pthread_cond_init(&conn->changed, &attr);
	}
	pthread_condattr_destroy(&attr);
	for (unsigned i = 0; i <= TIDE_NBD_BITMAP_CONN; i++) {
		nbd->conns[i].wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		if (nbd->conns[i].wake < 0)
			return tide_error_set_sys(err, errno, "eventfd");
	}
	atomic_store(&nbd->n_conns, 1);
	return 0;
}

static void end_conn(struct tide_nbd_conn *conn)
{
	bool has_thread;

	pthread_mutex_lock(&conn->lock);
	conn->kill = true;
	has_thread = conn->has_thread;
	pthread_mutex_unlock(&conn->lock);
	if (has_thread) {
		poke(conn);
		pthread_join(conn->thread, NULL);
	}
	if (conn->wake >= 0)
		close(conn->wake);
	pthread_cond_destroy(&conn->changed);
	pthread_mutex_destroy(&conn->lock);
}

void tide_nbd_conns_release(struct tide_nbd *nbd)
{
	for (unsigned i = 0; i <= TIDE_NBD_BITMAP_CONN; i++)
		end_conn(&nbd->conns[i]);
}

/* ---- requests ----------------------------------------------------------------------- */

static int explain(const struct tide_nbd_batch *batch, enum tide_nbd_command command, struct tide_error *err)
{
	static const char *const words[] = {
		[TIDE_NBD_READ] = "read", [TIDE_NBD_WRITE] = "write", [TIDE_NBD_ZERO] = "zero",
		[TIDE_NBD_TRIM] = "trim", [TIDE_NBD_FLUSH] = "flush", [TIDE_NBD_STATUS] = "look",
	};

	if (batch->sys == ENOTCONN)
		return tide_error_set_sys(err, EIO, "The connection to the NBD server broke");
	return tide_error_set_sys(err, batch->sys, "The NBD server could not %s at %" PRIu64, words[command],
	                          batch->failed);
}

/* Lock held. false: cancelled, and the connection is ended. */
static bool wait_batch(struct tide_nbd_conn *conn, struct tide_nbd_batch *batch, unsigned late_ms)
{
	unsigned left = late_ms / TIDE_NBD_TICK_MS;
	bool cancelled = false;

	while (batch->pending) {
		wait_tick(conn);
		if (!batch->pending || conn->kill || !tide_nbd_is_cancelled(conn->nbd))
			continue;
		/* Waits a little longer: an answer that arrives now saves the connection. */
		if (left > 0) {
			left--;
			continue;
		}
		conn->kill = cancelled = true;
		poke(conn);
	}
	return !cancelled;
}

int tide_nbd_run(struct tide_nbd *nbd, struct tide_nbd_request *requests, unsigned n, bool bitmaps,
                 struct tide_error *err)
{
	bool late = tide_nbd_is_cancelled(nbd), answered;
	struct tide_nbd_batch batch = { .pending = n };
	struct tide_nbd_conn *conn;

	/* Work that was done before a cancel may still be made durable. */
	if (late && requests[0].command != TIDE_NBD_FLUSH)
		return tide_error_set(err, TIDE_E_CANCELLED, "Cancelled");
	if (bitmaps)
		conn = lock_conn(&nbd->conns[atomic_load(&nbd->bitmaps_apart) ? TIDE_NBD_BITMAP_CONN : 0], err);
	else
		conn = lock_any(nbd, err);
	if (!conn)
		return -1;
	batch.conn = conn;
	for (unsigned i = 0; i < n; i++) {
		requests[i].batch = &batch;
		requests[i].next = NULL;
		if (conn->last)
			conn->last->next = &requests[i];
		else
			conn->first = &requests[i];
		conn->last = &requests[i];
	}
	poke(conn);
	answered = wait_batch(conn, &batch, late ? LATE_FLUSH_MS : TIDE_NBD_TICK_MS);
	pthread_mutex_unlock(&conn->lock);
	if (!answered)
		return tide_error_set(err, TIDE_E_CANCELLED, "Cancelled");
	return batch.sys ? explain(&batch, requests[0].command, err) : 0;
}
