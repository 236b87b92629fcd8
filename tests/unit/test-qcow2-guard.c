/*
 * Allocation in a damaged qcow2: whatever its reference counts say, a write destroys nothing else of the disk or of a
 * snapshot, and never extends a file that was cut.
 */
#include "base/error.h"
#include "bitmap/bitmap.h"
#include "qcow2_sample.h"

#define CLUSTER 4096u

static uint64_t at(const uint8_t *data, uint64_t off)
{
	return tide_get_be64(data + off) & UINT64_C(0x00fffffffffffe00);
}

static uint64_t active_l2(const uint8_t *data)
{
	return at(data, tide_get_be64(data + 40));
}

static uint64_t snapshot_l2(const uint8_t *data)
{
	return at(data, tide_get_be64(data + tide_get_be64(data + 64)));
}

/* Sets the reference count, 16 bits, of the cluster at off. */
static void set_count(uint8_t *data, uint64_t off, uint16_t count)
{
	uint64_t cluster = off / CLUSTER, block = at(data, tide_get_be64(data + 48) + 8 * (cluster / 2048));

	tide_put_be16(data + block + 2 * (cluster % 2048), count);
}

/* Clusters 0 to 63 are data, 64 is compressed; the snapshot has others for 0 to 31. */
static uint8_t *make_image(uint64_t *len)
{
	CHECK_EQ_I64(sh("rm -f g.qcow2; qemu-img create -q -f qcow2 -o cluster_size=4096 g.qcow2 1M && "
	                "qemu-io -f qcow2 -c 'write -P 3 0 256k' -c 'write -c -P 9 256k 4k' g.qcow2 && "
	                "qemu-img snapshot -c s1 g.qcow2 && qemu-io -f qcow2 -c 'write -P 4 0 128k' g.qcow2"),
	             0);
	return slurp("g.qcow2", len);
}

static void fill_model(uint8_t *disk, uint8_t *snapshot)
{
	memset(disk, 0, M);
	memset(disk, 3, 256 * K);
	memset(disk + 256 * K, 9, 4 * K);
	memcpy(snapshot, disk, M);
	memset(disk, 4, 128 * K);
}

static void damage_data(uint8_t *data)
{
	set_count(data, at(data, active_l2(data) + 8 * 5), 0);
}

static void damage_compressed(uint8_t *data)
{
	set_count(data, (tide_get_be64(data + active_l2(data) + 8 * 64) & 0xffffffff) & ~(CLUSTER - 1), 0);
}

static void damage_snapshot_data(uint8_t *data)
{
	set_count(data, at(data, snapshot_l2(data) + 8 * 5), 0);
}

static void damage_snapshot_table(uint8_t *data)
{
	set_count(data, snapshot_l2(data), 0);
}

/* The disk and the snapshot both use it: the first release would make it free. */
static void damage_shared(uint8_t *data)
{
	for (unsigned i = 32; i < 64; i++)
		set_count(data, at(data, active_l2(data) + 8 * i), 1);
}

/* No count at all. */
static void damage_all(uint8_t *data)
{
	tide_put_be64(data + tide_get_be64(data + 48), 0);
}

static const struct {
	const char *name;
	void (*damage)(uint8_t *data);
} kinds[] = {
	{ "data", damage_data },
	{ "compressed data", damage_compressed },
	{ "a snapshot's data", damage_snapshot_data },
	{ "a snapshot's table", damage_snapshot_table },
	{ "shared data", damage_shared },
	{ "all", damage_all },
};

static bool check_both(const uint8_t *disk, const uint8_t *snapshot)
{
	return check_with_qemu("bad.qcow2", NULL, disk, M) && check_with_qemu("bad.qcow2", "s1", snapshot, M);
}

/* Releases and allocates clusters in turn; a refusal is as good as a write that harms nothing. */
static void write_much(struct sample *s, uint8_t *disk)
{
	struct tide_error err = TIDE_ERROR_INIT;
	uint8_t *buf = malloc(64 * K);

	for (unsigned i = 0; i < 8; i++) {
		uint64_t off = i % 2 ? 512 * K : 160 * K;

		memset(buf, (int)(16 + i), 64 * K);
		if (i % 4 == 3 && qcow2->zero(s->state, off, 64 * K, true, &err) == 0)
			memset(disk + off, 0, 64 * K);
		if (sample_write(s, buf, off, 64 * K, &err) < 0)
			break;
		memset(disk + off, (int)(16 + i), 64 * K);
		if (qcow2->flush(s->state, &err) < 0)
			break;
	}
	tide_error_release(&err);
	free(buf);
}

static void test_writes(void)
{
	uint8_t *disk = malloc(M), *snapshot = malloc(M), *data;
	struct tide_error err = TIDE_ERROR_INIT;
	struct sample s;
	uint64_t len;

	for (size_t k = 0; k < sizeof(kinds) / sizeof(kinds[0]); k++) {
		UNIT_ROW("%s", kinds[k].name);
		data = make_image(&len);
		fill_model(disk, snapshot);
		kinds[k].damage(data);
		spew("bad.qcow2", data, len);
		free(data);
		if (CHECK_OK(sample_open(&s, "bad.qcow2", TIDE_OPEN_WRITE, &err), &err)) {
			write_much(&s, disk);
			sample_close(&s);
			check_both(disk, snapshot);
		}
	}
	free(disk);
	free(snapshot);
}

static void test_bitmaps(void)
{
	uint8_t *disk = malloc(M), *snapshot = malloc(M), *data;
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_driver_bitmap_put put = { .name = "b", .granularity = 4096, .enabled = true };
	struct tide_driver_switch sw;
	struct tide_bitmap *bm = tide_bitmap_new(M, 4096, &err);
	struct sample s;
	uint64_t len;

	put.contents = bm;
	CHECK_OK(tide_bitmap_set(bm, 0, 4096, &err), &err);
	fill_model(disk, snapshot);
	for (size_t k = 0; k < sizeof(kinds) / sizeof(kinds[0]); k++) {
		UNIT_ROW("%s", kinds[k].name);
		data = make_image(&len);
		kinds[k].damage(data);
		spew("bad.qcow2", data, len);
		free(data);
		if (!CHECK_OK(sample_open(&s, "bad.qcow2", TIDE_OPEN_WRITE, &err), &err))
			continue;
		if (qcow2->bitmaps_stage(s.state, &put, 1, &sw, &err) == 0)
			qcow2->bitmaps_commit(s.state, &s.info, &err);
		tide_error_release(&err);
		sample_close(&s);
		check_both(disk, snapshot);
	}
	tide_bitmap_free(bm);
	free(disk);
	free(snapshot);
}

/* Without damage free clusters are used again: the file does not grow. */
static void test_holes_are_used(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	uint8_t *buf = calloc(1, 64 * K), *data;
	struct sample s;
	uint64_t len, after;

	CHECK_EQ_I64(sh("rm -f g.qcow2; qemu-img create -q -f qcow2 -o cluster_size=4096 g.qcow2 1M && "
	                "qemu-io -f qcow2 -d unmap -c 'write -P 3 0 512k' -c 'discard 128k 64k' g.qcow2"),
	             0);
	free(slurp("g.qcow2", &len));
	if (CHECK_OK(sample_open(&s, "g.qcow2", TIDE_OPEN_WRITE, &err), &err)) {
		CHECK_OK(sample_write(&s, buf, 768 * K, 64 * K, &err), &err);
		CHECK_OK(qcow2->flush(s.state, &err), &err);
		sample_close(&s);
	}
	data = slurp("g.qcow2", &after);
	CHECK_EQ_U64(after, len);
	is_clean("g.qcow2");
	free(data);
	free(buf);
}

/* A file that was cut, at the end of a cluster or within one: a write must not extend it. */
static void test_cut(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	uint8_t *buf = calloc(1, 64 * K), *data;
	uint64_t len;
	struct sample s;

	for (unsigned cut = 1; cut < 40; cut++) {
		UNIT_ROW("%u KiB", cut);
		CHECK_EQ_I64(sh("rm -f g.qcow2; qemu-img create -q -f qcow2 -o cluster_size=4096 g.qcow2 1M && "
		                "qemu-io -f qcow2 -c 'write -P 3 0 256k' g.qcow2"),
		             0);
		data = slurp("g.qcow2", &len);
		spew("bad.qcow2", data, len - cut * K);
		free(data);
		if (!CHECK_OK(sample_open(&s, "bad.qcow2", TIDE_OPEN_WRITE, &err), &err))
			break;
		CHECK_EQ_I64(sample_write(&s, buf, 512 * K, 64 * K, &err), -1);
		CHECK_EQ_I64(err.code, TIDE_E_CORRUPT);
		CHECK(err.hint && strstr(err.hint, "restore the image from a copy"));
		tide_error_release(&err);
		sample_close(&s);
	}
	free(buf);
}

/* Tables of more than 16 MiB are not read for one write: it goes to the end of the file. */
static void test_many_tables(void)
{
	struct tide_driver_create o = { .size = 9 * G, .cluster_size = CLUSTER };
	struct tide_error err = TIDE_ERROR_INIT;
	uint8_t *buf = calloc(1, CLUSTER), *data;
	uint64_t len, host;
	struct sample s;

	memset(buf, 7, CLUSTER);
	CHECK_OK(sample_create("g.qcow2", &o, &err), &err);
	CHECK_OK(sample_open(&s, "g.qcow2", TIDE_OPEN_NEW, &err), &err);
	for (uint64_t off = 0; off < 8200 * M; off += 2 * M) {
		if (!CHECK_OK(sample_write(&s, buf, off, CLUSTER, &err), &err))
			break;
	}
	CHECK_OK(qcow2->flush(s.state, &err), &err);
	sample_close(&s);
	data = slurp("g.qcow2", &len);
	host = at(data, active_l2(data));
	set_count(data, host, 0);
	spew("g.qcow2", data, len);
	free(data);
	if (CHECK_OK(sample_open(&s, "g.qcow2", TIDE_OPEN_WRITE, &err), &err)) {
		struct tide_extent e;

		memset(buf, 8, CLUSTER);
		CHECK_OK(sample_write(&s, buf, 8 * K, CLUSTER, &err), &err);
		CHECK_OK(qcow2->extent(s.state, 8 * K, CLUSTER, &e, &err), &err);
		CHECK(e.map_off >= len);
		CHECK_OK(sample_read(&s, buf, 0, CLUSTER, &err), &err);
		CHECK_EQ_U64(buf[0], 7);
		sample_close(&s);
	}
	free(buf);
}

int main(void)
{
	if (!has_qemu()) {
		printf("1..0 # SKIP qemu-img and qemu-io are not installed\n");
		return 0;
	}
	UNIT_RUN(test_writes);
	UNIT_RUN(test_bitmaps);
	UNIT_RUN(test_holes_are_used);
	UNIT_RUN(test_cut);
	UNIT_RUN(test_many_tables);
	return unit_done();
}
