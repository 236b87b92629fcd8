/*
 * Repairs the reference counts of an image with lazy refcounts whose writer died: it has the dirty flag, which
 * says that the counts may be out of date. QEMU repairs them when it opens the image for writing; here the first
 * change does.
 *
 *   1  check the image: damage of another kind is not repaired
 *   2  count the references of all tables, write the counts, sync
 *   3  correct the flags of the entries of clusters that are used once, in place, sync
 *   4  check the image again: nothing at all may be wrong
 *   5  clear the flag, sync
 *
 * Until step 5 the counts are out of date for everyone, so a crash in between changes nothing.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "base/sysio.h"
#include "qcow2.h"

/* ---- checks ---- */

struct judge {
	bool strict; /* counts must be correct, too */
};

static int judge_finding(void *data, enum tide_finding_kind kind, uint64_t off, uint64_t len, const char *text,
                         struct tide_error *err)
{
	const struct judge *j = data;

	if (kind == TIDE_FINDING_DOUBT)
		return 0;
	if (!j->strict && (kind == TIDE_FINDING_REFCOUNT || kind == TIDE_FINDING_LEAK || kind == TIDE_FINDING_COPIED))
		return 0;
	return tide_error_set(err, TIDE_E_CORRUPT, "%s", text);
}

static int check(const struct tide_qcow2 *q, bool strict, struct tide_error *err)
{
	struct judge j = { .strict = strict };
	struct tide_check to = { .found = judge_finding, .data = &j };

	return tide_qcow2_check(q->fd, q->data_fd, &to, err);
}

/* ---- counts ---- */

static void add(uint16_t *times, uint64_t n, uint64_t first, uint64_t len)
{
	for (uint64_t i = first; i < first + len && i < n; i++)
		times[i] = (uint16_t)(times[i] + (times[i] < UINT16_MAX));
}

static int add_bitmaps(const struct tide_qcow2 *q, uint16_t *times, uint64_t n, struct tide_error *err)
{
	const struct tide_qcow2_set *set = &q->meta.bitmaps;

	for (size_t i = 0; i < q->n_bitmaps; i++) {
		if (q->bitmaps[i].unsound)
			return tide_error_set(err, TIDE_E_CORRUPT, "The table of bitmap '%s' is damaged",
			                      q->bitmaps[i].name);
	}
	for (size_t i = 0; i < set->cap; i++) {
		if (set->slot[i])
			add(times, n, set->slot[i] - 1, 1);
	}
	return 0;
}

static int count_all(struct tide_qcow2 *q, uint16_t **out, uint64_t *n, struct tide_error *err)
{
	if (tide_qcow2_guard_count(q, out, n, err) < 0)
		return -1;
	for (size_t i = 0; i < q->meta.n_areas; i++)
		add(*out, *n, q->meta.area[i].first, q->meta.area[i].n);
	add(*out, *n, q->reftable_offset >> q->cluster_bits, q->reftable_entries * 8 >> q->cluster_bits);
	for (uint64_t i = 0; i < q->reftable_entries; i++) {
		if (q->reftable[i])
			add(*out, *n, q->reftable[i] >> q->cluster_bits, 1);
	}
	return add_bitmaps(q, *out, *n, err);
}

/* ---- flags ---- */

/* Corrects the flag of an entry; returns whether it was wrong. */
static bool correct(uint8_t *p, unsigned bits, const uint16_t *times, uint64_t n)
{
	uint64_t entry = tide_get_be64(p), host = entry & TIDE_QCOW2_ENTRY_OFFSET;
	bool once = host && host >> bits < n && times[host >> bits] == 1;

	if (host == 0 || (entry & TIDE_QCOW2_ENTRY_COMPRESSED) || once == !!(entry & TIDE_QCOW2_ENTRY_COPIED))
		return false;
	tide_put_be64(p, entry ^ TIDE_QCOW2_ENTRY_COPIED);
	return true;
}

static int correct_l2(const struct tide_qcow2 *q, uint64_t host, uint8_t *buf, const uint16_t *times, uint64_t n,
                      struct tide_error *err)
{
	bool wrong = false;

	if (tide_sysio_pread(q->fd, buf, q->cluster_size, host, false, err) < 0)
		return -1;
	for (uint64_t at = 0; at < q->cluster_size; at += q->extended ? 16 : 8)
		wrong |= correct(buf + at, q->cluster_bits, times, n);
	return wrong ? tide_sysio_pwrite(q->fd, buf, q->cluster_size, host, err) : 0;
}

/* The disk's own tables; QEMU does not use the flags of snapshots. */
static int correct_flags(struct tide_qcow2 *q, const uint16_t *times, uint64_t n, struct tide_error *err)
{
	TIDE_AUTOFREE uint8_t *buf = tide_mem_aligned(4096, q->cluster_size, err);

	if (!buf)
		return -1;
	for (uint64_t i = 0; i < q->header.l1_entries; i++) {
		uint8_t word[8];
		uint64_t entry;

		if (tide_qcow2_l1_get(q, i, &entry, err) < 0)
			return -1;
		if (entry == 0)
			continue;
		if (!q->has_data_file && correct_l2(q, entry & TIDE_QCOW2_ENTRY_OFFSET, buf, times, n, err) < 0)
			return -1;
		tide_put_be64(word, entry);
		if (correct(word, q->cluster_bits, times, n) &&
		    tide_sysio_pwrite(q->fd, word, sizeof(word), q->header.l1_offset + 8 * i, err) < 0)
			return -1;
	}
	return 0;
}

/* Forgets what was read from tables that have changed. */
static int forget(struct tide_qcow2 *q, struct tide_error *err)
{
	tide_qcow2_cache_release(&q->l2);
	tide_qcow2_l1_release(q);
	return tide_qcow2_l1_open(q, err) < 0 ||
	                       tide_qcow2_cache_init(&q->l2, q->header.l1_entries, q->cluster_size, err) < 0
	               ? -1
	               : 0;
}

static int clear_flag(struct tide_qcow2 *q, struct tide_error *err)
{
	uint64_t *flags = &q->header.incompatible;

	return tide_qcow2_flush_put_flags(q, TIDE_QCOW2_AT_INCOMPATIBLE, flags,
	                                  *flags & ~(uint64_t)TIDE_QCOW2_INCOMPAT_DIRTY, err);
}

static int repair(struct tide_qcow2 *q, struct tide_error *err)
{
	TIDE_AUTOFREE uint16_t *times = NULL;
	uint64_t n;

	if (check(q, false, err) < 0 || count_all(q, &times, &n, err) < 0 ||
	    tide_qcow2_refcount_set_all(q, times, n, err) < 0 || tide_sysio_fdatasync(q->fd, err) < 0 ||
	    correct_flags(q, times, n, err) < 0 || tide_sysio_fdatasync(q->fd, err) < 0 || forget(q, err) < 0 ||
	    check(q, true, err) < 0)
		return -1;
	return clear_flag(q, err);
}

int tide_qcow2_repair(struct tide_qcow2 *q, struct tide_error *err)
{
	if (!(q->header.incompatible & TIDE_QCOW2_INCOMPAT_DIRTY))
		return 0;
	if (repair(q, err) == 0)
		return 0;
	tide_error_wrap(err, "The image was not closed properly, and its reference counts cannot be repaired");
	return tide_error_hint(err, "repair it first: qemu-img check -r all IMAGE");
}
