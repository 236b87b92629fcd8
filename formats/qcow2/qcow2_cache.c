/*
 * A cache of tables by index, for L2 tables and refcount blocks. Dirty tables always stay until
 * they are written; clean ones are dropped in the order of their last use. Adjacent dirty tables
 * are written together.
 */
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/mem.h"
#include "base/sysio.h"
#include "qcow2.h"

/* The memory for clean tables; at least TABLES_MIN of them stay. */
#define CACHE_BYTES (UINT64_C(16) << 20)
#define TABLES_MIN  4
/* The most bytes of one write. */
#define WRITE_BYTES (UINT64_C(1) << 20)

int tide_qcow2_cache_init(struct tide_qcow2_cache *c, uint64_t n_slots, size_t table_size, struct tide_error *err)
{
	c->slot = tide_mem_alloc(n_slots, sizeof(*c->slot), err);
	if (!c->slot)
		return -1;
	c->n_slots = n_slots;
	c->table_size = table_size;
	c->n_max = TIDE_MAX(CACHE_BYTES / table_size, TABLES_MIN);
	return 0;
}

static void free_list(struct tide_qcow2_table_list *list)
{
	while (list->newest) {
		struct tide_qcow2_table *t = list->newest;

		list->newest = t->older;
		free(t);
	}
	list->oldest = NULL;
}

void tide_qcow2_cache_release(struct tide_qcow2_cache *c)
{
	free_list(&c->clean);
	free_list(&c->dirty);
	free(c->slot);
	*c = (struct tide_qcow2_cache){ 0 };
}

int tide_qcow2_cache_grow(struct tide_qcow2_cache *c, uint64_t n_slots, struct tide_error *err)
{
	struct tide_qcow2_table **slot = tide_mem_realloc(c->slot, n_slots, sizeof(*slot), err);

	if (!slot)
		return -1;
	c->slot = slot;
	if (n_slots > c->n_slots) {
		memset(slot + c->n_slots, 0, (n_slots - c->n_slots) * sizeof(*slot));
		c->n_slots = n_slots;
	}
	return 0;
}

static struct tide_qcow2_table_list *list_of(struct tide_qcow2_cache *c, const struct tide_qcow2_table *t)
{
	return t->dirty ? &c->dirty : &c->clean;
}

static void unlink_table(struct tide_qcow2_cache *c, struct tide_qcow2_table *t)
{
	struct tide_qcow2_table_list *list = list_of(c, t);

	if (t->newer)
		t->newer->older = t->older;
	else
		list->newest = t->older;
	if (t->older)
		t->older->newer = t->newer;
	else
		list->oldest = t->newer;
	t->newer = t->older = NULL;
}

static void link_newest(struct tide_qcow2_cache *c, struct tide_qcow2_table *t)
{
	struct tide_qcow2_table_list *list = list_of(c, t);

	t->newer = NULL;
	t->older = list->newest;
	if (list->newest)
		list->newest->newer = t;
	else
		list->oldest = t;
	list->newest = t;
}

struct tide_qcow2_table *tide_qcow2_cache_find(struct tide_qcow2_cache *c, uint64_t index)
{
	struct tide_qcow2_table *t = index < c->n_slots ? c->slot[index] : NULL;

	if (t && t->newer) {
		unlink_table(c, t);
		link_newest(c, t);
	}
	return t;
}

void tide_qcow2_cache_drop(struct tide_qcow2_cache *c, struct tide_qcow2_table *t)
{
	unlink_table(c, t);
	c->slot[t->index] = NULL;
	c->n--;
	c->n_dirty -= t->dirty;
	free(t);
}

void tide_qcow2_cache_trim(struct tide_qcow2_cache *c)
{
	while (c->n >= c->n_max && c->clean.oldest)
		tide_qcow2_cache_drop(c, c->clean.oldest);
}

struct tide_qcow2_table *tide_qcow2_cache_add(struct tide_qcow2_cache *c, uint64_t index, struct tide_error *err)
{
	struct tide_qcow2_table *t;

	tide_qcow2_cache_trim(c);
	t = tide_mem_alloc(1, sizeof(*t) + c->table_size, err);
	if (!t)
		return NULL;
	t->index = index;
	c->slot[index] = t;
	c->n++;
	link_newest(c, t);
	return t;
}

void tide_qcow2_cache_set_dirty(struct tide_qcow2_cache *c, struct tide_qcow2_table *t, bool dirty)
{
	if (t->dirty == dirty)
		return;
	unlink_table(c, t);
	t->dirty = dirty;
	link_newest(c, t);
	if (dirty)
		c->n_dirty++;
	else
		c->n_dirty--;
}

static int compare_index(const void *a, const void *b)
{
	const struct tide_qcow2_table *x = *(struct tide_qcow2_table *const *)a;
	const struct tide_qcow2_table *y = *(struct tide_qcow2_table *const *)b;

	return (x->index > y->index) - (x->index < y->index);
}

struct tide_qcow2_table **tide_qcow2_cache_dirty(const struct tide_qcow2_cache *c, struct tide_error *err)
{
	struct tide_qcow2_table **all = tide_mem_alloc(c->n_dirty, sizeof(*all), err);
	size_t n = 0;

	if (!all)
		return NULL;
	for (struct tide_qcow2_table *t = c->dirty.newest; t; t = t->older)
		all[n++] = t;
	if (n > 1)
		qsort(all, n, sizeof(*all), compare_index);
	return all;
}

static size_t keep_unreferenced(struct tide_qcow2_table **table, size_t n)
{
	size_t kept = 0;

	for (size_t i = 0; i < n; i++) {
		if (table[i]->unreferenced)
			table[kept++] = table[i];
	}
	return kept;
}

/* The number of tables, from the first one on, that are contiguous in the file. */
static size_t count_row(const struct tide_qcow2_cache *c, struct tide_qcow2_table *const *table, size_t n)
{
	size_t k = 1;

	while (k < n && table[k]->host == table[0]->host + k * c->table_size)
		k++;
	return k;
}

/* buf: room for all of them, or NULL when memory is short; then each table is written alone. */
static int write_row(const struct tide_qcow2_cache *c, int fd, struct tide_qcow2_table *const *table, size_t n,
                     uint8_t *buf, struct tide_error *err)
{
	for (size_t i = 0; i < n; i++) {
		if (buf)
			memcpy(buf + i * c->table_size, table[i]->data, c->table_size);
		else if (tide_sysio_pwrite(fd, table[i]->data, c->table_size, table[i]->host, err) < 0)
			return -1;
	}
	return buf ? tide_sysio_pwrite(fd, buf, n * c->table_size, table[0]->host, err) : 0;
}

int tide_qcow2_cache_write(struct tide_qcow2_cache *c, int fd, bool unreferenced_only, struct tide_error *err)
{
	TIDE_AUTOFREE struct tide_qcow2_table **dirty = tide_qcow2_cache_dirty(c, err);
	size_t n, room, k;

	if (!dirty)
		return -1;
	n = unreferenced_only ? keep_unreferenced(dirty, c->n_dirty) : c->n_dirty;
	room = TIDE_MIN(n, TIDE_MAX(WRITE_BYTES / c->table_size, 1));
	TIDE_AUTOFREE uint8_t *buf = room > 1 ? tide_mem_aligned(4096, room * c->table_size, NULL) : NULL;
	for (size_t i = 0; i < n; i += k) {
		k = count_row(c, dirty + i, TIDE_MIN(n - i, room));
		if (write_row(c, fd, dirty + i, k, buf, err) < 0)
			return -1;
		for (size_t j = i; j < i + k; j++) {
			dirty[j]->unreferenced = false;
			tide_qcow2_cache_set_dirty(c, dirty[j], false);
		}
	}
	return 0;
}
