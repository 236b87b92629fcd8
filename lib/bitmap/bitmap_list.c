/*
 * Lists of bitmaps, as queries return them.
 */
#include "bitmap_list.h"

#include <stdlib.h>

#include "base/mem.h"

struct tide_bitmap_list *tide_bitmap_list_new(size_t n, struct tide_error *err)
{
	struct tide_bitmap_list *list = tide_mem_alloc(1, sizeof(*list), err);

	if (!list)
		return NULL;
	list->items = tide_mem_alloc(n, sizeof(*list->items), err);
	if (list->items)
		return list;
	free(list);
	return NULL;
}

struct tide_bitmap_info *tide_bitmap_list_add(struct tide_bitmap_list *list, const char *name, struct tide_error *err)
{
	struct tide_bitmap_info *item = tide_mem_alloc(1, sizeof(*item), err);

	if (!item)
		return NULL;
	list->items[list->n++] = item;
	item->name = tide_mem_strdup(name, err);
	return item->name ? item : NULL;
}

void tide_bitmap_list_free(struct tide_bitmap_list *list)
{
	if (!list)
		return;
	for (size_t i = 0; i < list->n; i++) {
		free(list->items[i]->name);
		free(list->items[i]->base_id);
		free(list->items[i]->base_path);
		free(list->items[i]);
	}
	free(list->items);
	free(list);
}
