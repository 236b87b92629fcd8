/*
 * The only code that calls libzstd, which is loaded on first use: one frame, many frames with one
 * context, and decompression into a buffer of exactly known size.
 */
#include <stdlib.h>
#include <zstd.h>
#include <zstd_errors.h>

#include "compress.h"
#include "dynlib.h"
#include "error.h"
#include "mem.h"

#define CALLS(CALL)                          \
	CALL(zstd, ZSTD_, compress)          \
	CALL(zstd, ZSTD_, CCtx_setParameter) \
	CALL(zstd, ZSTD_, compress2)         \
	CALL(zstd, ZSTD_, createCCtx)        \
	CALL(zstd, ZSTD_, createDCtx)        \
	CALL(zstd, ZSTD_, decompressStream)  \
	CALL(zstd, ZSTD_, freeCCtx)          \
	CALL(zstd, ZSTD_, freeDCtx)          \
	CALL(zstd, ZSTD_, getErrorCode)      \
	CALL(zstd, ZSTD_, getErrorName)      \
	CALL(zstd, ZSTD_, isError)

TIDE_DYNLIB_DOOR(zstd, CALLS, "libzstd.so.1", "zstd compression", "libzstd1");

static int set_zstd(struct tide_error *err, const char *what, size_t code)
{
	if (zstd.getErrorCode(code) == ZSTD_error_memory_allocation)
		return tide_error_set_nomem(err);
	return tide_error_set(err, TIDE_E_CORRUPT, "%s: %s", what, zstd.getErrorName(code));
}

size_t tide_compress_bound(size_t len)
{
	return ZSTD_COMPRESSBOUND(len);
}

int tide_compress_zstd(void *out, size_t *out_len, const void *in, size_t len, int level, struct tide_error *err)
{
	size_t used;

	if (tide_dynlib_load(&zstd_library, err) < 0)
		return -1;
	used = zstd.compress(out, *out_len, in, len, level);
	if (zstd.getErrorCode(used) == ZSTD_error_dstSize_tooSmall)
		return tide_error_set(err, TIDE_E_REFUSED, "zstd: %zu bytes do not compress to %zu", len, *out_len);
	if (zstd.isError(used))
		return set_zstd(err, "Could not compress with zstd", used);
	*out_len = used;
	return 0;
}

struct tide_compress {
	ZSTD_CCtx *zstd;
};

struct tide_compress *tide_compress_new(int level, struct tide_error *err)
{
	struct tide_compress *ctx;

	if (tide_dynlib_load(&zstd_library, err) < 0)
		return NULL;
	ctx = tide_mem_alloc(1, sizeof(*ctx), err);
	if (!ctx)
		return NULL;
	ctx->zstd = zstd.createCCtx();
	if (!ctx->zstd || zstd.isError(zstd.CCtx_setParameter(ctx->zstd, ZSTD_c_compressionLevel, level)) ||
	    zstd.isError(zstd.CCtx_setParameter(ctx->zstd, ZSTD_c_checksumFlag, 1))) {
		tide_error_set_nomem(err);
		tide_compress_free(ctx);
		return NULL;
	}
	return ctx;
}

void tide_compress_free(struct tide_compress *ctx)
{
	if (ctx)
		zstd.freeCCtx(ctx->zstd);
	free(ctx);
}

int tide_compress_next(struct tide_compress *ctx, void *out, size_t *out_len, const void *in, size_t len,
                       struct tide_error *err)
{
	size_t used = zstd.compress2(ctx->zstd, out, *out_len, in, len);

	if (zstd.getErrorCode(used) == ZSTD_error_dstSize_tooSmall)
		return 1;
	if (zstd.isError(used))
		return set_zstd(err, "Could not compress with zstd", used);
	*out_len = used;
	return 0;
}

static void free_dctx(ZSTD_DCtx **ctx)
{
	if (*ctx)
		zstd.freeDCtx(*ctx);
}

int tide_compress_unzstd(void *out, size_t out_len, const void *in, size_t len, bool exact, struct tide_error *err)
{
	ZSTD_DCtx *ctx TIDE_CLEANUP(free_dctx) = NULL;
	ZSTD_inBuffer from = { in, len, 0 };
	ZSTD_outBuffer to = { out, out_len, 0 };
	size_t more = 0; /* zstd's result: 0 at the end of a frame */

	if (tide_dynlib_load(&zstd_library, err) < 0)
		return -1;
	ctx = zstd.createDCtx();
	if (!ctx)
		return tide_error_set_nomem(err);
	for (bool unfinished = out_len > 0 || exact; unfinished; unfinished = to.pos < out_len) {
		size_t in_before = from.pos, out_before = to.pos;
		more = zstd.decompressStream(ctx, &to, &from);
		if (zstd.isError(more))
			return set_zstd(err, "The zstd data are damaged", more);
		if (from.pos == in_before && to.pos == out_before)
			break;
	}
	if (to.pos < out_len)
		return tide_error_set(err, TIDE_E_CORRUPT, "The zstd data end after %zu of %zu bytes", to.pos, out_len);
	/* QEMU refuses an unfinished frame too, whatever follows it. */
	if (more != 0 || (exact && from.pos < len))
		return tide_error_set(err, TIDE_E_CORRUPT, "The zstd data do not end after %zu bytes", out_len);
	return 0;
}
