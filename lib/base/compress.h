/*
 * Compression with zstd. No other file calls libzstd.
 */
#ifndef TIDE_COMPRESS_H
#define TIDE_COMPRESS_H

#include "compiler.h"
#include "tidemark.h"

/* Largest size that `len` bytes can compress to. */
size_t tide_compress_bound(size_t len);

/* Compresses into one frame. *out_len: in, the room; out, the bytes used. TIDE_E_REFUSED when the room is too small. */
int tide_compress_zstd(void *out, size_t *out_len, const void *in, size_t len, int level, struct tide_error *err);

/*
 * The same for many inputs, with one context, because making a context of libzstd is slow. Each call makes
 * one frame, which ends with a checksum of the input that libzstd compares when it decompresses, and returns 1 when the
 * room is too small. The result depends on the input and the level alone, not on earlier calls.
 */
struct tide_compress;
struct tide_compress *tide_compress_new(int level, struct tide_error *err);
void tide_compress_free(struct tide_compress *ctx);
int tide_compress_next(struct tide_compress *ctx, void *out, size_t *out_len, const void *in, size_t len,
                       struct tide_error *err);

/*
 * Fills exactly out_len bytes from the frames at `in`; a frame that would give more is refused, as QEMU
 * does. Bytes after the frame that fills `out` are ignored (the exact length of a qcow2 compressed cluster
 * is not known) unless exact.
 */
int tide_compress_unzstd(void *out, size_t out_len, const void *in, size_t len, bool exact, struct tide_error *err);

#endif
