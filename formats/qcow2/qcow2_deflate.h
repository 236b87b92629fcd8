/*
 * libdeflate, for the code that compresses and decompresses clusters. Its functions are members of a
 * structure, named without "libdeflate_", and are set once the library is loaded.
 */
#ifndef TIDE_QCOW2_DEFLATE_H
#define TIDE_QCOW2_DEFLATE_H

#include <libdeflate.h>

#include "base/compiler.h"
#include "tidemark.h"

#define TIDE_QCOW2_DEFLATE_CALLS(CALL) \
	CALL(alloc_compressor)         \
	CALL(deflate_compress)         \
	CALL(free_compressor)          \
	CALL(alloc_decompressor)       \
	CALL(deflate_decompress)       \
	CALL(free_decompressor)

struct tide_qcow2_deflate {
#define TIDE_QCOW2_DEFLATE_CALL(name) __typeof__(&libdeflate_##name) name;
	TIDE_QCOW2_DEFLATE_CALLS(TIDE_QCOW2_DEFLATE_CALL)
#undef TIDE_QCOW2_DEFLATE_CALL
};

extern struct tide_qcow2_deflate tide_qcow2_deflate;

int tide_qcow2_deflate_load(struct tide_error *err);

#endif
