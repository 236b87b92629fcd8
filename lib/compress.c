#include <stdlib.h>
#include <zstd.h>
#include <zstd_errors.h>

#include "compress.h"
#include "error.h"
#include "mem.h"

static int set_zstd(struct tide_error *err, const char *what, size_t code)
{
	if (ZSTD_getErrorCode(code) == ZSTD_error_memory_allocation)
		return tide_error_set_nomem(err);
	return tide_error_set(err, TIDE_E_CORRUPT, "%s: %s", what, ZSTD_getErrorName(code));
}

size_t tide_compress_bound(size_t len)
{
	return ZSTD_compressBound(len);
}

int tide_compress_zstd(void *out, size_t *out_len, const void *in, size_t len, int level, struct tide_error *err)
{
	size_t used = ZSTD_compress(out, *out_len, in, len, level);

	if (ZSTD_getErrorCode(used) == ZSTD_error_dstSize_tooSmall)
		return tide_error_set(err, TIDE_E_REFUSED, "zstd: %zu bytes do not compress to %zu", len, *out_len);
	if (ZSTD_isError(used))
		return set_zstd(err, "Could not compress with zstd", used);
	*out_len = used;
	return 0;
}

struct tide_compress {
	ZSTD_CCtx *zstd;
	int level;
};

struct tide_compress *tide_compress_new(int level, struct tide_error *err)
{
	struct tide_compress *ctx = tide_mem_alloc(1, sizeof(*ctx), err);

	if (!ctx)
		return NULL;
	ctx->level = level;
	ctx->zstd = ZSTD_createCCtx();
	if (!ctx->zstd) {
		tide_error_set_nomem(err);
		tide_compress_free(ctx);
		return NULL;
	}
	return ctx;
}

void tide_compress_free(struct tide_compress *ctx)
{
	if (ctx)
		ZSTD_freeCCtx(ctx->zstd);
	free(ctx);
}

int tide_compress_next(struct tide_compress *ctx, void *out, size_t *out_len, const void *in, size_t len,
                       struct tide_error *err)
{
	size_t used = ZSTD_compressCCtx(ctx->zstd, out, *out_len, in, len, ctx->level);

	if (ZSTD_getErrorCode(used) == ZSTD_error_dstSize_tooSmall)
		return 1;
	if (ZSTD_isError(used))
		return set_zstd(err, "Could not compress with zstd", used);
	*out_len = used;
	return 0;
}

static void free_dctx(ZSTD_DCtx **ctx)
{
	ZSTD_freeDCtx(*ctx);
}

int tide_compress_unzstd(void *out, size_t out_len, const void *in, size_t len, bool exact, struct tide_error *err)
{
	ZSTD_DCtx *ctx TIDE_CLEANUP(free_dctx) = ZSTD_createDCtx();
	ZSTD_inBuffer from = { in, len, 0 };
	ZSTD_outBuffer to = { out, out_len, 0 };
	size_t more = 0; /* 0 at the end of a frame */

	if (!ctx)
		return tide_error_set_nomem(err);
	for (bool go_on = out_len > 0 || exact; go_on; go_on = to.pos < out_len) {
		size_t in_before = from.pos, out_before = to.pos;
		more = ZSTD_decompressStream(ctx, &to, &from);
		if (ZSTD_isError(more))
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
