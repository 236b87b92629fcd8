/* Birth records: round trips, damage, and the header of a qcow2 that keeps them. */
#include "base/checksum.h"
#include "base/error.h"
#include "image/birth.h"
#include "qcow2_sample.h"

static struct tide_birth sample(void)
{
	struct tide_birth birth = { .time = -5, .sync = TIDE_SYNC_INCREMENTAL, .is_part = true, .exact_size = 1000001 };
	struct tide_error err = TIDE_ERROR_INIT;

	CHECK_OK(tide_id_new(&birth.id, &err), &err);
	CHECK_OK(tide_id_new(&birth.disk, &err), &err);
	CHECK_OK(tide_id_new(&birth.point, &err), &err);
	CHECK_OK(tide_id_new(&birth.base, &err), &err);
	birth.base_time = -6;
	memset(birth.fingerprint, 0x5a, sizeof(birth.fingerprint));
	birth.device = (char *)"disk";
	birth.bitmap = (char *)"nightly";
	return birth;
}

static void check_same(const struct tide_birth *a, const struct tide_birth *b)
{
	CHECK(tide_id_is_same(&a->id, &b->id) && tide_id_is_same(&a->disk, &b->disk));
	CHECK(tide_id_is_same(&a->point, &b->point) && tide_id_is_same(&a->base, &b->base));
	CHECK_EQ_I64(a->time, b->time);
	CHECK_EQ_I64(a->base_time, b->base_time);
	CHECK_MEM(a->fingerprint, b->fingerprint, sizeof(a->fingerprint));
	CHECK_EQ_U64(a->sync, b->sync);
	CHECK_EQ_U64(a->is_part, b->is_part);
	CHECK_EQ_U64(a->is_incomplete, b->is_incomplete);
	CHECK_EQ_U64(a->exact_size, b->exact_size);
	CHECK_STR(a->device ? a->device : "", b->device ? b->device : "");
	CHECK_STR(a->bitmap ? a->bitmap : "", b->bitmap ? b->bitmap : "");
}

static void test_round_trip(void)
{
	struct tide_birth birth = sample(), *back;
	uint8_t bytes[TIDE_BIRTH_BYTES_MAX + 8] = { 0 };
	struct tide_error err = TIDE_ERROR_INIT;

	for (unsigned i = 0; i < 4; i++) {
		size_t len;

		birth.device = i & 1 ? (char *)"disk" : NULL;
		birth.is_incomplete = i & 2;
		len = tide_birth_encode(&birth, bytes);
		/* A reader may get more bytes than the record has. */
		CHECK_OK(tide_birth_decode(bytes, len + 8, &back, &err), &err);
		if (CHECK(back))
			check_same(&birth, back);
		tide_birth_free(back);
	}
}

static void test_long_names(void)
{
	struct tide_birth birth = sample(), *back;
	uint8_t bytes[TIDE_BIRTH_BYTES_MAX];
	struct tide_error err = TIDE_ERROR_INIT;
	char name[1024] = { 0 };

	/* Characters of three bytes, so that no cut at a fixed length is right. */
	for (size_t i = 0; i + 3 < sizeof(name); i += 3)
		memcpy(name + i, "\xe2\x82\xac", 3);
	birth.bitmap = birth.device = name;
	CHECK(tide_birth_encode(&birth, bytes) <= sizeof(bytes));
	CHECK_OK(tide_birth_decode(bytes, sizeof(bytes), &back, &err), &err);
	if (!CHECK(back))
		return;
	CHECK_EQ_U64(strlen(back->bitmap), 15);
	CHECK_EQ_U64(strlen(back->device), 9);
	tide_birth_free(back);
}

static void test_damage(void)
{
	struct tide_birth birth = sample(), *back;
	uint8_t bytes[TIDE_BIRTH_BYTES_MAX];
	size_t len = tide_birth_encode(&birth, bytes);
	struct tide_error err = TIDE_ERROR_INIT;

	for (size_t i = 0; i < len * 8; i++) {
		bytes[i / 8] ^= (uint8_t)(1 << i % 8);
		CHECK_OK(tide_birth_decode(bytes, len, &back, &err), &err);
		CHECK(back && back->unknown && !tide_id_is_set(&back->id));
		tide_birth_free(back);
		bytes[i / 8] ^= (uint8_t)(1 << i % 8);
	}
	for (size_t i = 0; i < len; i++) {
		CHECK_OK(tide_birth_decode(bytes, i, &back, &err), &err);
		CHECK(back && back->unknown && !back->is_later);
		tide_birth_free(back);
	}
}

static void test_later(void)
{
	struct tide_birth birth = sample(), *back;
	uint8_t bytes[TIDE_BIRTH_BYTES_MAX];
	size_t len = tide_birth_encode(&birth, bytes);
	struct tide_error err = TIDE_ERROR_INIT;

	/* A flag, then a version whose layout is not known. */
	for (unsigned i = 0; i < 2; i++) {
		tide_put_le16(bytes + (i ? 0 : 2), i ? 2 : 4);
		if (!i)
			tide_put_le32(bytes + len - 4, tide_checksum_crc32c(0, bytes, len - 4));
		CHECK_OK(tide_birth_decode(bytes, len, &back, &err), &err);
		CHECK(back && back->unknown && back->is_later && !back->is_part);
		tide_birth_free(back);
	}
}

/* ---- in a qcow2 --------------------------------------------------------------------- */

static void reopen(struct sample *s, int flags)
{
	struct tide_error err = TIDE_ERROR_INIT;

	if (s->state)
		qcow2->close(s->state);
	tide_driver_info_release(&s->info);
	s->state = NULL;
	CHECK_OK(qcow2->open(s->fd, unit_dir(), (unsigned)flags, &s->info, &s->state, &err), &err);
}

static void check_intact(struct sample *s, const struct tide_birth *birth, bool intact)
{
	reopen(s, TIDE_OPEN_WRITE);
	if (!CHECK(s->info.birth))
		return;
	check_same(birth, s->info.birth);
	CHECK_EQ_U64(s->info.birth->intact, intact);
}

static void test_qcow2(const char *options)
{
	struct tide_birth birth = sample();
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_extent place;
	struct sample s = { .data_fd = -1 };

	if (!has_qemu())
		return;
	CHECK_EQ_I64(sh("qemu-img create -f raw base.img 16M && "
	                "qemu-img create -f qcow2 -o %s -b base.img -F raw i.qcow2",
	                options),
	             0);
	s.fd = open(unit_path("i.qcow2"), O_RDWR);
	reopen(&s, TIDE_OPEN_WRITE);
	CHECK(!s.info.birth);
	CHECK_EQ_I64(qcow2->set_birth(s.state, &birth, &err), 0);
	check_intact(&s, &birth, true);
	is_clean("i.qcow2");
	/* Another record, longer or shorter, replaces it. */
	for (unsigned i = 0; i < 6; i++) {
		birth.bitmap = (char *)(i & 1 ? "n" : "another name");
		birth.time++;
		CHECK_EQ_I64(qcow2->set_birth(s.state, &birth, &err), 0);
		check_intact(&s, &birth, true);
	}
	CHECK_EQ_I64(sh("qemu-img info -U i.qcow2 | grep -q 'backing file: base.img'"), 0);
	is_clean("i.qcow2");
	/* A write of our own. */
	CHECK_EQ_I64(qcow2->write_begin(s.state, 0, s.info.cluster_size, &place, &err), 0);
	CHECK_OK(qcow2->write_commit(s.state, &place, &err), &err);
	CHECK_OK(qcow2->flush(s.state, &err), &err);
	check_intact(&s, &birth, false);
	/* A write of QEMU, which knows neither the flag nor the record. */
	CHECK_EQ_I64(qcow2->set_birth(s.state, &birth, &err), 0);
	check_intact(&s, &birth, true);
	CHECK_EQ_I64(sh("qemu-io -f qcow2 -c 'write 1M 64k' i.qcow2"), 0);
	check_intact(&s, &birth, false);
	/* A commit of QEMU, which opens the image for reading first, and leaves the flag. */
	CHECK_EQ_I64(qcow2->set_birth(s.state, &birth, &err), 0);
	check_intact(&s, &birth, true);
	CHECK_EQ_I64(sh("qemu-img create -f qcow2 -b i.qcow2 -F qcow2 top.qcow2 && "
	                "qemu-io -f qcow2 -c 'write 2M 64k' top.qcow2 && qemu-img commit top.qcow2"),
	             0);
	check_intact(&s, &birth, false);
	/* A copy is another file; it is as it was made if it has the same time. */
	CHECK_EQ_I64(qcow2->set_birth(s.state, &birth, &err), 0);
	for (unsigned i = 0; i < 2; i++) {
		CHECK_EQ_I64(sh("sleep 0.02; cp %s i.qcow2 copy.qcow2 && mv copy.qcow2 i.qcow2", i ? "" : "-p"), 0);
		close(s.fd);
		s.fd = open(unit_path("i.qcow2"), O_RDWR);
		check_intact(&s, &birth, i == 0);
	}
	CHECK_EQ_I64(qcow2->set_birth(s.state, &birth, &err), 0);
	CHECK_EQ_I64(sh("qemu-io -r -f qcow2 -c 'read 1M 64k' i.qcow2 && qemu-img bitmap --add i.qcow2 b || true"), 0);
	is_clean("i.qcow2");
	qcow2->close(s.state);
	tide_driver_info_release(&s.info);
	close(s.fd);
}

static void test_in_qcow2(void)
{
	test_qcow2("compat=1.1");
	test_qcow2("compat=1.1,cluster_size=2M");
}

/* A header without room, or without flags that others clear, stays as it was. */
static void test_no_room(const char *options)
{
	struct tide_birth birth = sample();
	struct tide_error err = TIDE_ERROR_INIT;
	struct sample s = { .data_fd = -1 };
	int rc;

	if (!has_qemu())
		return;
	CHECK_EQ_I64(
	        sh("qemu-img create -f qcow2 -o %s -b $(printf 'b%%.0s' $(seq 200)) -F raw -u n.qcow2 1M", options), 0);
	s.fd = open(unit_path("n.qcow2"), O_RDWR);
	reopen(&s, TIDE_OPEN_WRITE);
	rc = qcow2->set_birth(s.state, &birth, &err);
	CHECK_EQ_I64(rc, 1);
	reopen(&s, TIDE_OPEN_WRITE);
	CHECK(!s.info.birth);
	CHECK_EQ_U64(strlen(s.info.backing), 200);
	qcow2->close(s.state);
	tide_driver_info_release(&s.info);
	close(s.fd);
}

static void test_no_place(void)
{
	test_no_room("cluster_size=512");
	test_no_room("compat=0.10");
}

int main(void)
{
	UNIT_RUN(test_round_trip);
	UNIT_RUN(test_long_names);
	UNIT_RUN(test_damage);
	UNIT_RUN(test_later);
	UNIT_RUN(test_in_qcow2);
	UNIT_RUN(test_no_place);
	return unit_done();
}
