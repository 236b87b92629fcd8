/*
 * NBD: the types and calls that the files of the driver share. nbd.c is the driver, nbd_map.c asks the
 * server for block status, nbd_conn.c runs the requests, nbd_connect.c makes the handshake.
 *
 * Each connection has a thread of its own, the only one that uses its libnbd handle. Callers on any thread
 * pass it batches of requests and wait, so a few callers keep many requests in flight. If the server
 * guarantees that several connections see the same data (multi-conn), batches take turns among up to
 * TIDE_NBD_CONNS_MAX connections, each made when it is first needed.
 *
 * When a connection dies, its requests in flight fail with an I/O error. The next batch makes a new
 * connection, so that a retry can succeed. Data that the server acknowledged but did not flush may be lost
 * then: the flush at the end fails, and with it the job or command.
 *
 * A server answers a query for all contexts of a connection at once, and an error in one of them is the error
 * of all. QEMU's snapshot-access node describes only what its bitmap contains, so its export fails to answer
 * base:allocation elsewhere. When the first connection fails in this way, the bitmaps are read through a
 * connection that asks for nothing else.
 *
 * Waiting callers check the cancel flag about twenty times a second. A server that does not answer loses
 * its connection then, because nothing else ends a request, and a request's buffer must outlive it.
 */
#ifndef TIDE_NBD_H
#define TIDE_NBD_H

#include <pthread.h>
#include <stdatomic.h>

#include "image/driver.h"
#include "nbd_lib.h"

#define TIDE_NBD_CONNS_MAX     4u
#define TIDE_NBD_BITMAP_CONN   TIDE_NBD_CONNS_MAX /* the index of the connection that is for bitmaps only */
#define TIDE_NBD_BITMAPS_MAX   64u
#define TIDE_NBD_BITMAP_PREFIX "qemu:dirty-bitmap:"
#define TIDE_NBD_TICK_MS       40

enum tide_nbd_command {
	TIDE_NBD_READ,
	TIDE_NBD_WRITE,
	TIDE_NBD_ZERO,
	TIDE_NBD_TRIM,
	TIDE_NBD_FLUSH,
	TIDE_NBD_STATUS,
};

struct tide_nbd_batch {
	struct tide_nbd_conn *conn;
	unsigned pending; /* under the connection's lock */
	int sys;          /* errno of the first failed request; ENOTCONN: the connection died */
	uint64_t failed;  /* its offset */
};

struct tide_nbd_request {
	enum tide_nbd_command command;
	void *buf;
	uint64_t off, len;
	uint32_t flags;              /* LIBNBD_CMD_FLAG_* */
	nbd_extent_callback extents; /* STATUS */
	/* Used by tide_nbd_run only: */
	struct tide_nbd_batch *batch;
	struct tide_nbd_request *next;
	int sys;
};

struct tide_nbd_conn {
	struct tide_nbd *nbd;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	int wake; /* eventfd that wakes the thread */
	/* Under the lock: */
	bool connecting, has_thread;
	bool alive;                            /* accepts requests */
	bool kill;                             /* must end at once */
	struct tide_nbd_request *first, *last; /* waiting to be issued */
	struct nbd_handle *h;                  /* used by the thread alone while it is alive */
	pthread_t thread;
};

/* A range of the disk as base:allocation describes it. */
struct tide_nbd_extent {
	uint64_t off, len;
	bool zero;
};

struct tide_nbd {
	struct tide_nbd_lib lib;
	char *uri;
	unsigned flags;            /* TIDE_OPEN_* */
	const atomic_bool *cancel; /* NULL: never */

	/* The server's first answers, which it must repeat after a reconnect. */
	bool known;
	uint64_t size, block_min, block_pref, block_max;
	bool read_only, can_zero, can_trim, can_flush, can_fua, can_status;
	size_t n_bitmaps;
	char *bitmaps[TIDE_NBD_BITMAPS_MAX]; /* names of dirty bitmaps, in the server's order */

	struct tide_nbd_conn conns[TIDE_NBD_CONNS_MAX + 1];
	_Atomic unsigned n_conns, turn;
	pthread_mutex_t edge_lock; /* held while part of a block is changed: read, change, write back */

	atomic_bool bitmaps_apart; /* the bitmaps have a connection of their own */
	atomic_bool status_narrow; /* the server describes parts of the disk only */

	/*
	 * Each change counts when it begins, because a connection that dies may lose it, and when it ends, because a
	 * flush need not cover changes that end after the flush began.  A flush that succeeds stores the number that it
	 * began with.
	 */
	_Atomic uint64_t changes, flushed;
	atomic_bool lost; /* a connection died while not all changes were flushed */

	pthread_mutex_t map_lock;
	/* Under map_lock: the server's last answer about a part of the disk, without gaps. */
	struct tide_nbd_extent *map;
	size_t n_map;
	uint64_t map_changes; /* counts writes, so that an answer from before a write is not kept */
};

static inline bool tide_nbd_is_cancelled(const struct tide_nbd *nbd)
{
	return nbd->cancel && atomic_load_explicit(nbd->cancel, memory_order_relaxed);
}

/* Is there a change that no flush has covered? */
static inline bool tide_nbd_is_unflushed(const struct tide_nbd *nbd)
{
	return atomic_load(&nbd->changes) != atomic_load(&nbd->flushed);
}

/* nbd_connect.c: makes a handle for conns[index] that is ready for requests. */
struct nbd_handle *tide_nbd_connect(struct tide_nbd *nbd, unsigned index, struct tide_error *err);

/* nbd_conn.c */
int tide_nbd_conns_init(struct tide_nbd *nbd, struct tide_error *err);
void tide_nbd_conns_release(struct tide_nbd *nbd);
/* Makes the first connection unless it exists. */
int tide_nbd_conns_begin(struct tide_nbd *nbd, struct tide_error *err);
/* Runs all requests, at the same time and in no particular order. bitmaps: on the connection that asks for bitmaps. */
int tide_nbd_run(struct tide_nbd *nbd, struct tide_nbd_request *requests, unsigned n, bool bitmaps,
                 struct tide_error *err);

/* nbd_map.c */
int tide_nbd_extent(void *state, uint64_t off, uint64_t len, struct tide_extent *out, struct tide_error *err);
void tide_nbd_forget_map(struct tide_nbd *nbd);
int tide_nbd_bitmap_read(void *state, size_t index, struct tide_bitmap **out, struct tide_error *err);

/* nbd_options.c: see driver.h */
extern const struct tide_driver_option tide_nbd_options[];
int tide_nbd_options_uri(const struct tide_json *object, char **uri, const char **socket, struct tide_error *err);

#endif
