/* The dirty bitmap: random programs against a plain array, and threads against one thread. */
#include <pthread.h>

#include "base/checksum.h"
#include "bitmap_sample.h"

/* ---- random programs against a plain array ----------------------------------------- */

struct model {
	uint64_t size, granularity, bits;
	uint8_t *bit;
};

struct machine {
	struct tide_bitmap *bm;
	struct model model;
};

static uint64_t granule_end(const struct model *m, uint64_t i)
{
	return TIDE_MIN((i + 1) * m->granularity, m->size);
}

static void model_init(struct model *m, uint64_t size, uint64_t granularity)
{
	*m = (struct model){ size, granularity, (size + granularity - 1) / granularity, NULL };
	m->bit = calloc(m->bits + 1, 1);
	if (!m->bit)
		exit(1);
}

static void model_set(struct model *m, uint64_t off, uint64_t len)
{
	for (uint64_t i = 0; i < m->bits; i++)
		if (len && i * m->granularity < off + len && granule_end(m, i) > off)
			m->bit[i] = 1;
}

static void model_reset(struct model *m, uint64_t off, uint64_t len)
{
	for (uint64_t i = 0; i < m->bits; i++)
		if (i * m->granularity >= off && granule_end(m, i) <= off + len)
			m->bit[i] = 0;
}

static void model_merge(struct model *dst, const struct model *src)
{
	for (uint64_t i = 0; i < dst->bits; i++) {
		uint64_t first = i * dst->granularity / src->granularity;
		uint64_t last = (granule_end(dst, i) - 1) / src->granularity;

		for (uint64_t j = first; j <= last; j++)
			dst->bit[i] |= src->bit[j];
	}
}

static void model_resize(struct model *m, uint64_t size)
{
	struct model to;

	model_init(&to, size, m->granularity);
	memcpy(to.bit, m->bit, TIDE_MIN(m->bits, to.bits));
	free(m->bit);
	*m = to;
}

static void model_sha256(const struct model *m, char hex[65])
{
	size_t bytes = TIDE_MAX((m->bits + 63) / 64, 1u) * 8;
	uint8_t *packed = calloc(bytes, 1);
	struct tide_sha256 sha;

	for (uint64_t i = 0; packed && i < m->bits; i++)
		packed[i / 8] |= (uint8_t)(m->bit[i] << i % 8);
	tide_checksum_sha256_init(&sha);
	tide_checksum_sha256_update(&sha, packed, packed ? bytes : 0);
	tide_checksum_sha256_final(&sha, hex);
	free(packed);
}

static bool chunks_agree(const struct machine *vm)
{
	uint64_t next = tide_bitmap_next_chunk(vm->bm, 0);

	for (uint64_t i = 0; i < tide_bitmap_chunks(vm->bm); i++) {
		uint64_t end = TIDE_MIN((i + 1) * CHUNK, vm->model.bits);
		bool dirty = memchr(vm->model.bit + i * CHUNK, 1, end - i * CHUNK);

		if (dirty != (next == i))
			return false;
		if (dirty)
			next = tide_bitmap_next_chunk(vm->bm, i + 1);
	}
	return next == tide_bitmap_chunks(vm->bm);
}

/* Does every question the bitmap can answer get the array's answer? */
static bool agrees(const struct machine *vm)
{
	const struct model *m = &vm->model;
	uint64_t count = 0, off = 0, start, len;
	char hex[65], expected[65];

	for (uint64_t i = 0; i < m->bits; i++) {
		count += m->bit[i];
		if (tide_bitmap_test(vm->bm, granule_end(m, i) - 1) != m->bit[i])
			return false;
	}
	if (count != tide_bitmap_count(vm->bm) || m->bits != tide_bitmap_bits(vm->bm) ||
	    m->size != tide_bitmap_size(vm->bm))
		return false;
	for (uint64_t i = 0; i < m->bits;) {
		if (!m->bit[i]) {
			i++;
			continue;
		}
		uint64_t end = i;
		while (end < m->bits && m->bit[end])
			end++;
		if (tide_bitmap_next_dirty(vm->bm, off, UINT64_MAX, &start, &len) != 1 || start != i * m->granularity ||
		    len != granule_end(m, end - 1) - start)
			return false;
		off = start + len;
		i = end;
	}
	if (tide_bitmap_next_dirty(vm->bm, off, UINT64_MAX, &start, &len))
		return false;
	tide_bitmap_sha256(vm->bm, hex);
	model_sha256(m, expected);
	return strcmp(hex, expected) == 0 && chunks_agree(vm);
}

static void machine_init(struct machine *vm, uint64_t size, uint64_t granularity)
{
	vm->bm = make(size, granularity);
	model_init(&vm->model, size, granularity);
}

static void machine_release(struct machine *vm)
{
	tide_bitmap_free(vm->bm);
	free(vm->model.bit);
}

/* Mostly near the edge of a chunk, and of any remainder. */
static uint64_t random_size(uint64_t granularity, uint64_t *seed)
{
	static const unsigned near[] = { 0, 1, 63, 64, 65, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 100 };
	uint64_t bits = near[rnd(seed) % TIDE_ARRAY_SIZE(near)];

	return bits * granularity + (rnd(seed) % 2 ? rnd(seed) % granularity : 0);
}

static struct tide_range random_range(uint64_t size, uint64_t granularity, uint64_t *seed)
{
	uint64_t off = rnd(seed) % (size + 1), max = size - off, few = rnd(seed) % (granularity * 5);

	switch (rnd(seed) % 4) {
	case 0: /* whole chunks */
		off -= off % (CHUNK * granularity);
		max = TIDE_MIN(size - off, CHUNK * granularity);
		return (struct tide_range){ off, max };
	case 1: /* a few granules */
		return (struct tide_range){ off, TIDE_MIN(max, few) };
	case 2: /* to the end */
		return (struct tide_range){ off, max };
	}
	return (struct tide_range){ off, rnd(seed) % (max + 1) };
}

static void op_copy(struct machine *vm)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_bitmap *copy = tide_bitmap_copy(vm->bm, &err);

	if (!CHECK_PTR(copy, &err))
		return;
	tide_bitmap_clear(vm->bm);
	tide_bitmap_free(vm->bm);
	vm->bm = copy;
}

static void op_copy_chunks(struct machine *vm)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_bitmap *to = make(vm->model.size, vm->model.granularity);
	uint8_t buf[TIDE_BITMAP_CHUNK_BYTES] __attribute__((aligned(8)));
	const uint16_t *positions;
	const uint8_t *data;

	for (uint64_t i = tide_bitmap_next_chunk(vm->bm, 0); i < tide_bitmap_chunks(vm->bm);
	     i = tide_bitmap_next_chunk(vm->bm, i + 1)) {
		enum tide_bitmap_chunk kind = tide_bitmap_get_chunk(vm->bm, i, buf, &data);
		unsigned n = tide_bitmap_get_list(vm->bm, i, &positions);
		CHECK(kind != TIDE_BITMAP_CHUNK_CLEAN);
		if (n)
			CHECK_OK(tide_bitmap_put_list(to, i, positions, n, &err), &err);
		else
			CHECK_OK(tide_bitmap_put_chunk(to, i, kind == TIDE_BITMAP_CHUNK_FULL ? NULL : data, &err),
			         &err);
	}
	tide_bitmap_free(vm->bm);
	vm->bm = to;
}

static void op_merge(struct machine *vm, uint64_t *seed)
{
	struct machine other;

	uint64_t granularity = (vm->model.granularity << rnd(seed) % 6) / 4;
	machine_init(&other, vm->model.size, granularity < 512 ? 512 : granularity);
	for (unsigned n = (unsigned)(rnd(seed) % 5); n > 0; n--) {
		struct tide_range r = random_range(vm->model.size, other.model.granularity, seed);
		set(other.bm, r.off, r.len);
		model_set(&other.model, r.off, r.len);
	}
	CHECK(agrees(&other));
	merge(vm->bm, other.bm);
	model_merge(&vm->model, &other.model);
	CHECK(agrees(&other));
	machine_release(&other);
}

static void op_resize(struct machine *vm, uint64_t *seed)
{
	struct tide_error err = TIDE_ERROR_INIT;
	uint64_t size = random_size(vm->model.granularity, seed);

	CHECK_OK(tide_bitmap_resize(vm->bm, size, &err), &err);
	model_resize(&vm->model, size);
}

enum { OPS = 16, OP_FAULT = OPS };

static void step(struct machine *vm, unsigned op, uint64_t *seed)
{
	struct tide_range r = random_range(vm->model.size, vm->model.granularity, seed);

	switch (op) {
	case OP_FAULT: /* the opcode that makes them differ */
		vm->model.bit[rnd(seed) % vm->model.bits] ^= 1;
		break;
	case 0:
		tide_bitmap_clear(vm->bm);
		model_reset(&vm->model, 0, vm->model.size);
		break;
	case 1:
		op_copy(vm);
		break;
	case 2:
		op_copy_chunks(vm);
		break;
	case 3:
		op_merge(vm, seed);
		break;
	case 4:
		op_resize(vm, seed);
		break;
	case 5:
	case 6:
	case 7:
	case 8:
	case 9:
		reset(vm->bm, r.off, r.len);
		model_reset(&vm->model, r.off, r.len);
		break;
	default:
		set(vm->bm, r.off, r.len);
		model_set(&vm->model, r.off, r.len);
	}
}

/* A program of n steps, the last of which may be the fault.  Did bitmap and array agree to its end? */
static bool run_program(uint64_t seed, unsigned n, bool fault)
{
	struct machine vm;
	bool held = true;
	uint64_t granularity = UINT64_C(512) << rnd(&seed) % 6;

	machine_init(&vm, random_size(granularity, &seed) + 1, granularity);
	for (unsigned i = 0; i < n && held; i++) {
		step(&vm, (unsigned)(rnd(&seed) % OPS), &seed);
		held = rnd(&seed) % 4 || agrees(&vm);
	}
	if (fault && held && vm.model.bits)
		step(&vm, OP_FAULT, &seed);
	held = held && agrees(&vm);
	bool faulty = fault && vm.model.bits;
	machine_release(&vm);
	return held != faulty;
}

#ifdef __SANITIZE_THREAD__
enum { PROGRAMS = 20 };
#else
enum { PROGRAMS = 250 };
#endif

static void test_random_programs(void)
{
	for (uint64_t seed = 1; seed <= PROGRAMS; seed++) {
		UNIT_ROW("seed %" PRIu64, seed);
		CHECK(run_program(seed * UINT64_C(0x9e3779b97f4a7c15), 24, false));
	}
}

static void test_planted_fault_is_found(void)
{
	for (uint64_t seed = 1; seed <= PROGRAMS / 5; seed++) {
		UNIT_ROW("seed %" PRIu64, seed);
		CHECK(run_program(seed * UINT64_C(0x9e3779b97f4a7c15), 8, true));
	}
}

/* ---- threads ----------------------------------------------------------------------- */

enum { THREADS = 4, CHUNKS = 24, SETS = 400 };

struct setter {
	struct tide_bitmap *bm;
	uint64_t seed;
	bool failed, unseen;
};

/* Few bits, long runs and whole chunks, all threads in the same places. */
static struct tide_range setter_range(uint64_t *seed, uint64_t size)
{
	uint64_t chunk = rnd(seed) % CHUNKS, c = CHUNK * 512, off = chunk * c;

	switch (rnd(seed) % 8) {
	case 0:
		return (struct tide_range){ off, TIDE_MIN(c, size - off) };
	case 1:
		return (struct tide_range){ off + 512 * 100, TIDE_MIN(c, size - off - 512 * 100) };
	}
	return (struct tide_range){ off + rnd(seed) % (c / 4), 1 + rnd(seed) % 5000 };
}

static void *setter_main(void *arg)
{
	struct setter *s = arg;
	uint64_t seed = s->seed, size = tide_bitmap_size(s->bm);

	for (unsigned i = 0; i < SETS; i++) {
		struct tide_range r = setter_range(&seed, size);

		s->failed |= tide_bitmap_set(s->bm, r.off, r.len, NULL) < 0;
		s->unseen |= !tide_bitmap_test(s->bm, r.off) || !tide_bitmap_test(s->bm, r.off + r.len - 1);
		s->unseen |= tide_bitmap_count(s->bm) > tide_bitmap_bits(s->bm);
	}
	return NULL;
}

static void test_threads_set(void)
{
	const uint64_t size = (CHUNKS - 1) * (CHUNK * UINT64_C(512)) + CHUNK / 2 * 512;

	for (unsigned round = 0; round < 20; round++) {
		TIDE_AUTOBITMAP struct tide_bitmap *bm = make(size, 512), *one = make(size, 512);
		struct setter s[THREADS];
		pthread_t t[THREADS];
		char hex[65], expected[65];

		UNIT_ROW("round %u", round);
		for (unsigned i = 0; i < THREADS; i++) {
			uint64_t seed = UINT64_C(0x9e3779b97f4a7c15) * (round * THREADS + i + 1);

			s[i] = (struct setter){ .bm = bm, .seed = seed };
			if (!CHECK(pthread_create(&t[i], NULL, setter_main, &s[i]) == 0))
				exit(1);
		}
		for (unsigned i = 0; i < THREADS; i++) {
			pthread_join(t[i], NULL);
			CHECK(!s[i].failed && !s[i].unseen);
			s[i].bm = one;
			setter_main(&s[i]);
		}
		CHECK_EQ_U64(tide_bitmap_count(bm), tide_bitmap_count(one));
		tide_bitmap_sha256(bm, hex);
		tide_bitmap_sha256(one, expected);
		CHECK_STR(hex, expected);
	}
}

int main(void)
{
	UNIT_RUN(test_random_programs);
	UNIT_RUN(test_planted_fault_is_found);
	UNIT_RUN(test_threads_set);
	return unit_done();
}
