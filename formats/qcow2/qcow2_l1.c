/*
 * The active L1 table. A page of it is read when one of its entries is first needed: the table grows with
 * the disk, a MiB for 64 TiB, and the cost of a command should follow the part of the disk it uses. Only a
 * change in place reads all of it, because it must know where the image's tables are (qcow2_meta.c).
 *
 * All calls but opening need the lock.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "base/sysio.h"
#include "qcow2.h"

#define PAGE_BITS 9u /* entries read and written together: 4096 bytes */

static uint64_t page_count(const struct tide_qcow2 *q)
{
	return (q->header.l1_entries >> PAGE_BITS) + 1;
}

static uint64_t page_entries(const struct tide_qcow2 *q, uint64_t page)
{
	return TIDE_MIN(q->header.l1_entries - (page << PAGE_BITS), UINT64_C(1) << PAGE_BITS);
}

static int read_page(struct tide_qcow2 *q, uint64_t page, struct tide_error *err)
{
	uint64_t first = page << PAGE_BITS, n = page_entries(q, page), *entry = q->l1 + first;

	if (q->l1_read[page])
		return 0;
	if (tide_sysio_pread(q->fd, entry, n * 8, q->header.l1_offset + first * 8, false, err) < 0)
		return tide_error_wrap(err, "Could not read L1 table");
	if (tide_qcow2_sums_prove(q, entry, q->header.l1_offset + first * 8, n * 8, err) < 0)
		return -1;
	for (uint64_t i = 0; i < n; i++)
		entry[i] = tide_get_be64(&entry[i]);
	q->l1_read[page] = 1;
	return 0;
}

/* The L1 table of a new image must be empty. */
static int check_empty(struct tide_qcow2 *q, struct tide_error *err)
{
	uint64_t n = q->header.l1_entries, len, i;
	bool data;

	tide_sysio_extent(q->fd, q->header.l1_offset, n * 8, &data, &len);
	if (!data && len == n * 8) {
		memset(q->l1_read, 1, page_count(q));
		return 0;
	}
	if (tide_qcow2_l1_next(q, 0, n, &i, err) < 0)
		return -1;
	if (i < n)
		return tide_error_set(err, TIDE_E_REFUSED, "The new image is not empty: L1 entry %" PRIu64 " is in use",
		                      i);
	return 0;
}

int tide_qcow2_l1_open(struct tide_qcow2 *q, struct tide_error *err)
{
	q->l1 = tide_mem_alloc(q->header.l1_entries, sizeof(*q->l1), err);
	q->l1_read = tide_mem_alloc(page_count(q), 1, err);
	q->l1_dirty = tide_mem_alloc(page_count(q), 1, err);
	if (!q->l1 || !q->l1_read || !q->l1_dirty)
		return -1;
	return q->is_new ? check_empty(q, err) : 0;
}

void tide_qcow2_l1_release(struct tide_qcow2 *q)
{
	free(q->l1);
	free(q->l1_read);
	free(q->l1_dirty);
}

int tide_qcow2_l1_get(struct tide_qcow2 *q, uint64_t index, uint64_t *entry, struct tide_error *err)
{
	if (read_page(q, index >> PAGE_BITS, err) < 0)
		return -1;
	*entry = q->l1[index];
	return 0;
}

int tide_qcow2_l1_next(struct tide_qcow2 *q, uint64_t index, uint64_t end, uint64_t *found, struct tide_error *err)
{
	while (index < end) {
		uint64_t stop = TIDE_MIN(end, ((index >> PAGE_BITS) + 1) << PAGE_BITS);

		if (read_page(q, index >> PAGE_BITS, err) < 0)
			return -1;
		while (index < stop && q->l1[index] == 0)
			index++;
		if (index < stop)
			break;
	}
	*found = index;
	return 0;
}

void tide_qcow2_l1_set(struct tide_qcow2 *q, uint64_t index, uint64_t host)
{
	q->l1[index] = host | TIDE_QCOW2_ENTRY_COPIED;
	q->l1_dirty[index >> PAGE_BITS] = 1;
}

bool tide_qcow2_l1_is_dirty(const struct tide_qcow2 *q)
{
	return memchr(q->l1_dirty, 1, page_count(q)) != NULL;
}

static int write_page(const struct tide_qcow2 *q, uint64_t page, struct tide_error *err)
{
	uint8_t buf[8u << PAGE_BITS];
	uint64_t first = page << PAGE_BITS, n = page_entries(q, page);

	for (uint64_t i = 0; i < n; i++)
		tide_put_be64(buf + 8 * i, q->l1[first + i]);
	return tide_sysio_pwrite(q->fd, buf, 8 * n, q->header.l1_offset + 8 * first, err);
}

int tide_qcow2_l1_write(struct tide_qcow2 *q, struct tide_error *err)
{
	uint8_t *p = q->l1_dirty, *end = p + page_count(q);

	while ((p = memchr(p, 1, (size_t)(end - p)))) {
		if (write_page(q, (uint64_t)(p - q->l1_dirty), err) < 0)
			return -1;
		*p++ = 0;
	}
	return 0;
}
