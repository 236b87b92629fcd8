/*
 * Copies one compressed piece.
 *
 * In parallel with others, a worker divides its piece into zeroes, clusters that compress and
 * clusters that do not.  Once all earlier pieces are stored, it stores these parts in the order
 * of the disk, so the file does not depend on which worker was faster.
 *
 * Memory: a buffer of the piece's size for compressed data.  Plain data stays in the worker's
 * buffer until it is stored: the worker begins no other piece before that.
 */
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "base/range.h"
#include "base/sysio.h"
#include "copy_impl.h"

enum kind { ZEROES, PLAIN, PACKED };

/* Neighbours of one kind. */
struct part {
	enum kind kind;
	uint64_t off, len;
	const uint8_t *data; /* PLAIN */
	size_t first, n;     /* PACKED: which ones */
};

struct tide_copy_compressor {
	struct tide_image *target;
	void *packer;
	uint64_t cluster, end; /* end: of the parts so far */
	uint8_t *out;          /* compressed clusters, one after the other */
	size_t used;           /* bytes of it */
	struct part *part;     /* both: as many as a piece has clusters */
	struct tide_packed *packed;
	size_t n_parts, n_packed;
};

struct tide_copy_compressor *tide_copy_compress_new(struct tide_image *target, uint64_t piece, struct tide_error *err)
{
	struct tide_copy_compressor *c = tide_mem_alloc(1, sizeof(*c), err);
	size_t clusters;

	if (!c)
		return NULL;
	c->target = target;
	c->cluster = tide_image_info(target)->cluster_size;
	clusters = piece / c->cluster;
	c->out = tide_mem_aligned(4096, piece, err);
	c->part = tide_mem_alloc(clusters, sizeof(*c->part), err);
	c->packed = tide_mem_alloc(clusters, sizeof(*c->packed), err);
	if (!c->out || !c->part || !c->packed || tide_image_packer_new(target, &c->packer, err) < 0) {
		tide_copy_compress_free(c);
		return NULL;
	}
	return c;
}

void tide_copy_compress_free(struct tide_copy_compressor *c)
{
	if (!c)
		return;
	tide_image_packer_free(c->target, c->packer);
	free(c->out);
	free(c->part);
	free(c->packed);
	free(c);
}

/* The parts of a piece are then added in order and without gaps. */
static void begin_piece(struct tide_copy_compressor *c, uint64_t off)
{
	c->end = off;
	c->used = c->n_parts = c->n_packed = 0;
}

/* Adds to the last part what continues it, else begins a part; a piece has no more parts than clusters. */
static struct part *add(struct tide_copy_compressor *c, enum kind kind, uint64_t len, const uint8_t *data)
{
	struct part *last = c->n_parts ? &c->part[c->n_parts - 1] : NULL;

	if (!last || last->kind != kind || (kind == PLAIN && last->data + last->len != data)) {
		last = &c->part[c->n_parts++];
		/* NOLINTNEXTLINE(clang-analyzer-core.NullDereference): there is a part for each cluster of a piece */
		*last = (struct part){ .kind = kind, .off = c->end, .data = data, .first = c->n_packed };
	}
	last->len += len;
	c->end += len;
	return last;
}

static void add_zeroes(struct tide_copy_compressor *c, uint64_t len)
{
	if (len)
		add(c, ZEROES, len, NULL);
}

/* Adds a cluster, of which `len` bytes are within the disk. */
static int add_cluster(struct tide_copy_compressor *c, const uint8_t *cluster, uint64_t len, struct tide_error *err)
{
	struct tide_packed *p = &c->packed[c->n_packed];
	size_t used = c->cluster;
	int rc;

	if (tide_sysio_is_zero(cluster, len)) {
		add(c, ZEROES, len, NULL);
		return 0;
	}
	rc = tide_image_pack(c->target, c->packer, cluster, c->out + c->used, &used, err);
	if (rc < 0)
		return -1;
	if (rc > 0) {
		add(c, PLAIN, len, cluster);
		return 0;
	}
	*p = (struct tide_packed){ c->end, c->out + c->used, used };
	add(c, PACKED, len, NULL)->n++;
	c->n_packed++;
	c->used += used;
	return 0;
}

/* Fills buf up with zeroes to whole clusters: at the end of the disk, the last one reaches beyond it. */
static int add_data(struct tide_copy_compressor *c, uint8_t *buf, uint64_t len, struct tide_error *err)
{
	memset(buf + len, 0, tide_range_align_up(len, c->cluster) - len);
	for (uint64_t pos = 0; pos < len; pos += c->cluster) {
		if (add_cluster(c, buf + pos, TIDE_MIN(c->cluster, len - pos), err) < 0)
			return -1;
	}
	return 0;
}

static int store_part(struct tide_copy_compressor *c, const struct part *p, bool reads_zero, struct tide_error *err)
{
	if (p->kind == PACKED)
		return tide_image_write_packed(c->target, c->packed + p->first, p->n, err);
	if (p->kind == PLAIN)
		return tide_image_write(c->target, p->data, p->off, p->len, err);
	return reads_zero ? 0 : tide_image_zero(c->target, p->off, p->len, true, err);
}

/* reads_zero: zeroes need not be stored.  After a failure the piece may be compressed and stored again. */
static int store(struct tide_copy_compressor *c, bool reads_zero, struct tide_error *err)
{
	for (size_t i = 0; i < c->n_parts; i++) {
		if (store_part(c, &c->part[i], reads_zero, err) < 0)
			return -1;
	}
	return 0;
}

int tide_copy_compress_piece(struct tide_copy_worker *w, const struct tide_copy_piece *piece, bool *reading,
                             struct tide_error *err)
{
	struct tide_copy_engine *e = w->e;
	struct tide_copy_stretch *s = &w->stretch;
	uint64_t off = piece->off, len = piece->len;

	begin_piece(w->compressor, off);
	for (uint64_t pos = 0; pos < len; pos += s->len + s->zeroes) {
		*reading = true;
		if (tide_copy_map(e->copy->source, e->align, off + pos, len - pos, s, err) < 0 ||
		    (s->len && tide_copy_read(e, s, w->buf + pos, err) < 0))
			return -1;
		*reading = false;
		if (add_data(w->compressor, w->buf + pos, s->len, err) < 0)
			return -1;
		add_zeroes(w->compressor, s->zeroes);
	}
	if (!tide_copy_wait_turn(e, piece->number))
		return 1;
	return store(w->compressor, e->copy->target_reads_zero, err);
}
