/*
 * libnbd, loaded when the first NBD image is opened: with the libraries that it needs (TLS, XML, character
 * sets), loading it takes longer than most commands take to run.
 *
 * Its functions are members of a structure, named without "nbd_".
 */
#ifndef TIDE_NBD_LIB_H
#define TIDE_NBD_LIB_H

#include <libnbd.h>

#include "base/compiler.h"
#include "tidemark.h"

#define TIDE_NBD_CALLS(CALL)            \
	CALL(create)                    \
	CALL(close)                     \
	CALL(get_error)                 \
	CALL(get_errno)                 \
	CALL(set_uri_allow_local_file)  \
	CALL(set_opt_mode)              \
	CALL(set_strict_mode)           \
	CALL(get_strict_mode)           \
	CALL(poll)                      \
	CALL(add_meta_context)          \
	CALL(clear_meta_contexts)       \
	CALL(get_export_name)           \
	CALL(get_block_size)            \
	CALL(get_size)                  \
	CALL(is_read_only)              \
	CALL(can_multi_conn)            \
	CALL(can_zero)                  \
	CALL(can_trim)                  \
	CALL(can_flush)                 \
	CALL(can_fua)                   \
	CALL(can_meta_context)          \
	CALL(aio_connect_uri)           \
	CALL(aio_opt_list_meta_context) \
	CALL(aio_opt_go)                \
	CALL(aio_is_connecting)         \
	CALL(aio_is_negotiating)        \
	CALL(aio_is_ready)              \
	CALL(aio_is_dead)               \
	CALL(aio_is_closed)             \
	CALL(aio_get_direction)         \
	CALL(aio_get_fd)                \
	CALL(aio_notify_read)           \
	CALL(aio_notify_write)          \
	CALL(aio_pread)                 \
	CALL(aio_pwrite)                \
	CALL(aio_zero)                  \
	CALL(aio_trim)                  \
	CALL(aio_flush)                 \
	CALL(aio_block_status)

struct tide_nbd_lib {
#define TIDE_NBD_CALL(name) __typeof__(&nbd_##name) name;
	TIDE_NBD_CALLS(TIDE_NBD_CALL)
#undef TIDE_NBD_CALL
};

/* The library stays loaded, because libraries that it depends on cannot be unloaded. */
int tide_nbd_lib_load(struct tide_nbd_lib *lib, struct tide_error *err);

#endif
