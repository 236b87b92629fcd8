/*
 * The list of bitmaps that queries return (struct tide_bitmap_list of tidemark.h): an array of pointers, so that its
 * items can get new members.
 */
#ifndef TIDE_BITMAP_LIST_H
#define TIDE_BITMAP_LIST_H

#include "base/compiler.h"
#include "tidemark.h"

/* An empty list with room for n items. */
struct tide_bitmap_list *tide_bitmap_list_new(size_t n, struct tide_error *err) TIDE_MUST_CHECK;
/* A new item, in the room that the list has, with a copy of the name; else all zero. */
struct tide_bitmap_info *tide_bitmap_list_add(struct tide_bitmap_list *list, const char *name,
                                              struct tide_error *err) TIDE_MUST_CHECK;

#endif
