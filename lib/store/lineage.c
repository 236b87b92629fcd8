/* Bases of bitmaps, and the last full backup: making, copying and comparing them. */
#include "lineage.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

void tide_lineage_base_free(struct tide_base *base)
{
	if (base)
		free(base->path);
	free(base);
}

struct tide_base *tide_lineage_base_new(const struct tide_id *id, int64_t time, const char *path,
                                        struct tide_error *err)
{
	struct tide_base *base = tide_mem_alloc(1, sizeof(*base), err);

	if (!base)
		return NULL;
	base->id = *id;
	base->time = time;
	base->path = tide_mem_strdup(path, err);
	if (base->path)
		return base;
	free(base);
	return NULL;
}

/* A copy with its own path. */
static int copy_into(struct tide_base *to, const struct tide_base *from, struct tide_error *err)
{
	*to = *from;
	to->path = tide_mem_strdup(from->path, err);
	return to->path ? 0 : -1;
}

int tide_lineage_base_copy(struct tide_base **to, const struct tide_base *from, struct tide_error *err)
{
	*to = NULL;
	if (!from)
		return 0;
	*to = tide_mem_alloc(1, sizeof(**to), err);
	if (*to && copy_into(*to, from, err) == 0)
		return 0;
	free(*to);
	*to = NULL;
	return -1;
}

bool tide_lineage_base_is_same(const struct tide_base *a, const struct tide_base *b)
{
	return a && b && tide_id_is_same(&a->id, &b->id);
}

void tide_lineage_named_free(struct tide_named_bases *named)
{
	for (size_t i = 0; i < named->n; i++) {
		free(named->items[i].name);
		free(named->items[i].base.path);
	}
	free(named->items);
	*named = (struct tide_named_bases){ 0 };
}

int tide_lineage_named_add(struct tide_named_bases *named, const char *name, const struct tide_base *base,
                           struct tide_error *err)
{
	struct tide_named_base *grown = tide_mem_realloc(named->items, named->n + 1, sizeof(*grown), err);
	struct tide_named_base *item;

	if (!grown)
		return -1;
	named->items = grown;
	item = &grown[named->n];
	item->name = tide_mem_strdup(name, err);
	if (item->name && copy_into(&item->base, base, err) == 0) {
		named->n++;
		return 0;
	}
	free(item->name);
	return -1;
}

const struct tide_base *tide_lineage_named_find(const struct tide_named_bases *named, const char *name)
{
	for (size_t i = 0; i < named->n; i++) {
		if (!strcmp(named->items[i].name, name))
			return &named->items[i].base;
	}
	return NULL;
}

void tide_lineage_last_free(struct tide_last_full *last)
{
	if (last)
		free(last->base.path);
	free(last);
}

int tide_lineage_last_copy(struct tide_last_full **to, const struct tide_last_full *from, struct tide_error *err)
{
	struct tide_last_full *last;

	*to = NULL;
	if (!from)
		return 0;
	last = tide_mem_alloc(1, sizeof(*last), err);
	if (!last)
		return -1;
	last->stamp = from->stamp;
	if (copy_into(&last->base, &from->base, err) < 0) {
		free(last);
		return -1;
	}
	*to = last;
	return 0;
}
