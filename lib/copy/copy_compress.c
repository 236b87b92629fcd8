#include <stdlib.h>
#include <string.h>

#include "copy_impl.h"
#include "base/mem.h"
#include "base/range.h"
#include "base/sysio.h"

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
	uint8_t *out;
	size_t used;
	struct part *part;
	struct tide_packed *packed;
	size_t n_parts, n_packed;
};

struct tide_copy_compressor *tide_copy_compress_new(struct tide_image *target, uint64_t piece, struct tide_error *err)
{
	struct tide_copy_compressor *pack = tide_mem_alloc(1, sizeof(*pack), err);
	size_t clusters;

	if (!pack)
		return NULL;
	pack->target = target;
	pack->cluster = tide_image_info(target)->cluster_size;
	clusters = piece / pack->cluster;
	pack->out = tide_mem_aligned(4096, piece, err);
	pack->part = tide_mem_alloc(clusters, sizeof(*pack->part), err);
	pack->packed = tide_mem_alloc(clusters, sizeof(*pack->packed), err);
	if (!pack->out || !pack->part || !pack->packed || tide_image_packer_new(target, &pack->packer, err) < 0) {
		tide_copy_compress_free(pack);
		return NULL;
	}
	return pack;
}

void tide_copy_compress_free(struct tide_copy_compressor *pack)
{
	if (!pack)
		return;
	tide_image_packer_free(pack->target, pack->packer);
	free(pack->out);
	free(pack->part);
	free(pack->packed);
	free(pack);
}

static void begin_piece(struct tide_copy_compressor *pack, uint64_t off)
{
	pack->end = off;
	pack->used = pack->n_parts = pack->n_packed = 0;
}

static struct part *add(struct tide_copy_compressor *pack, enum kind kind, uint64_t len, const uint8_t *data)
{
	struct part *last = pack->n_parts ? &pack->part[pack->n_parts - 1] : NULL;

	if (!last || last->kind != kind || (kind == PLAIN && last->data + last->len != data)) {
		last = &pack->part[pack->n_parts++];
		/* NOLINTNEXTLINE(clang-analyzer-core.NullDereference): part has room for all of them from the start */
		*last = (struct part){ .kind = kind, .off = pack->end, .data = data, .first = pack->n_packed };
	}
	last->len += len;
	pack->end += len;
	return last;
}

static void add_zeroes(struct tide_copy_compressor *pack, uint64_t len)
{
	if (len)
		add(pack, ZEROES, len, NULL);
}

/* A cluster, of which the disk has `len` bytes. */
static int add_cluster(struct tide_copy_compressor *pack, const uint8_t *cluster, uint64_t len, struct tide_error *err)
{
	struct tide_packed *p = &pack->packed[pack->n_packed];
	size_t used = pack->cluster;
	int rc;

	if (tide_sysio_is_zero(cluster, len)) {
		add(pack, ZEROES, len, NULL);
		return 0;
	}
	rc = tide_image_pack(pack->target, pack->packer, cluster, pack->out + pack->used, &used, err);
	if (rc < 0)
		return -1;
	if (rc > 0) {
		add(pack, PLAIN, len, cluster);
		return 0;
	}
	*p = (struct tide_packed){ pack->end, pack->out + pack->used, used };
	add(pack, PACKED, len, NULL)->n++;
	pack->n_packed++;
	pack->used += used;
	return 0;
}

static int add_data(struct tide_copy_compressor *pack, uint8_t *buf, uint64_t len, struct tide_error *err)
{
	memset(buf + len, 0, tide_range_align_up(len, pack->cluster) - len);
	for (uint64_t pos = 0; pos < len; pos += pack->cluster) {
		if (add_cluster(pack, buf + pos, TIDE_MIN(pack->cluster, len - pos), err) < 0)
			return -1;
	}
	return 0;
}

static int store_part(struct tide_copy_compressor *pack, const struct part *p, bool reads_zero, struct tide_error *err)
{
	if (p->kind == PACKED)
		return tide_image_write_packed(pack->target, pack->packed + p->first, p->n, err);
	if (p->kind == PLAIN)
		return tide_image_write(pack->target, p->data, p->off, p->len, err);
	return reads_zero ? 0 : tide_image_zero(pack->target, p->off, p->len, true, err);
}

static int store(struct tide_copy_compressor *pack, bool reads_zero, struct tide_error *err)
{
	for (size_t i = 0; i < pack->n_parts; i++) {
		if (store_part(pack, &pack->part[i], reads_zero, err) < 0)
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
