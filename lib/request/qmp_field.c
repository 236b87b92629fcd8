/*
 * Copies of argument structures, as their tables of fields describe them: a transaction keeps the arguments of its
 * actions after the caller has freed its own.
 */
#include "qmp_field.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

const struct tide_qmp_field tide_qmp_field_none[] = { TIDE_FIELD_END };

/* A copy of n bytes that belongs to *owned. */
static void *own(struct tide_qmp_owned *owned, const void *data, size_t n, size_t size, struct tide_error *err)
{
	void **grown = tide_mem_realloc(owned->items, owned->n + 1, sizeof(*grown), err);
	void *copy;

	if (!grown)
		return NULL;
	owned->items = grown;
	copy = tide_mem_alloc(n, size, err);
	if (!copy)
		return NULL;
	if (n)
		memcpy(copy, data, n * size);
	owned->items[owned->n++] = copy;
	return copy;
}

static int copy_string(const char *const *from, const char **to, struct tide_qmp_owned *owned, struct tide_error *err)
{
	*to = *from ? own(owned, *from, strlen(*from) + 1, 1, err) : NULL;
	return *from && !*to ? -1 : 0;
}

static int copy_list(const struct tide_qmp_field *field, const char *from, char *to, struct tide_qmp_owned *owned,
                     struct tide_error *err)
{
	const char *elements = *(const char *const *)(from + field->to);
	size_t n = *(const size_t *)(from + field->count);
	char *copy = own(owned, elements, n, field->element, err);

	if (!copy)
		return -1;
	for (size_t i = 0; i < n; i++) {
		if (tide_qmp_field_copy(field->fields, elements + i * field->element, copy + i * field->element, owned,
		                        err) < 0)
			return -1;
	}
	*(char **)(to + field->to) = copy;
	*(size_t *)(to + field->count) = n;
	return 0;
}

static int copy_field(const struct tide_qmp_field *field, const char *from, char *to, struct tide_qmp_owned *owned,
                      struct tide_error *err)
{
	if (field->kind == TIDE_QMP_STRUCT)
		return tide_qmp_field_copy(field->fields, from, to, owned, err);
	if (field->kind == TIDE_QMP_INTERNAL || field->to == TIDE_QMP_NOWHERE)
		return 0;
	if (field->has != TIDE_QMP_NOWHERE)
		memcpy(to + field->has, from + field->has, sizeof(bool));
	if (field->kind == TIDE_QMP_STRING)
		return copy_string((const char *const *)(from + field->to), (const char **)(to + field->to), owned,
		                   err);
	if (field->kind == TIDE_QMP_LIST)
		return copy_list(field, from, to, owned, err);
	memcpy(to + field->to, from + field->to, field->size);
	return 0;
}

int tide_qmp_field_copy(const struct tide_qmp_field *fields, const void *from, void *to, struct tide_qmp_owned *owned,
                        struct tide_error *err)
{
	for (const struct tide_qmp_field *field = fields; field->kind != TIDE_QMP_END; field++) {
		if (copy_field(field, from, to, owned, err) < 0)
			return -1;
	}
	return 0;
}

void tide_qmp_owned_release(struct tide_qmp_owned *owned)
{
	for (size_t i = 0; i < owned->n; i++)
		free(owned->items[i]);
	free(owned->items);
	*owned = (struct tide_qmp_owned){ 0, NULL };
}

const struct tide_qmp_field *tide_qmp_field_find(const struct tide_qmp_field *fields, const char *name)
{
	for (const struct tide_qmp_field *field = fields; field->kind != TIDE_QMP_END; field++) {
		if (field->kind != TIDE_QMP_INTERNAL && !strcmp(field->name, name))
			return field;
	}
	return NULL;
}
