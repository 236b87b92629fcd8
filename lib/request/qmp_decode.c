/*
 * Decodes JSON objects by tables of fields.  Fields are looked at in the order of the table, members that it does not
 * have come last: of several mistakes the one that QEMU reports is reported.
 */
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/mem.h"
#include "qmp.h"

static void add_path(struct tide_strbuf *sb, const struct tide_qmp_path *path)
{
	if (path->up)
		add_path(sb, path->up);
	if (!path->name)
		tide_strbuf_addf(sb, "[%zu]", path->index);
	else
		tide_strbuf_addf(sb, "%s%s", sb->len ? "." : "", path->name);
}

/* fmt has one %s, for the path. */
#define REFUSE(path, err, fmt, ...)                                                          \
	({                                                                                   \
		struct tide_strbuf sb_ = TIDE_STRBUF_INIT;                                   \
		TIDE_AUTOFREE char *text_ = NULL;                                            \
		add_path(&sb_, path);                                                        \
		text_ = tide_strbuf_steal(&sb_, err);                                        \
		text_ ? tide_error_set(err, TIDE_E_REFUSED, fmt, text_, ##__VA_ARGS__) : -1; \
	})

int tide_qmp_decode_bad_type(const struct tide_qmp_path *path, const char *expected, struct tide_error *err)
{
	return REFUSE(path, err, "Invalid parameter type for '%s', expected: %s", expected);
}

int tide_qmp_decode_missing(const struct tide_qmp_path *path, struct tide_error *err)
{
	return REFUSE(path, err, "Parameter '%s' is missing");
}

int tide_qmp_decode_word(const struct tide_qmp_path *path, const char *const *words, const struct tide_json *json,
                         int *place, struct tide_error *err)
{
	const char *text;

	if (!tide_json_get_string(json, &text, NULL))
		return tide_qmp_decode_bad_type(path, "string", err);
	for (int i = 0; words[i]; i++) {
		if (!strcmp(words[i], text)) {
			*place = i;
			return 0;
		}
	}
	return tide_error_set(err, TIDE_E_REFUSED, "Parameter '%s' does not accept value '%s'", path->name, text);
}

static int decode_string(const struct tide_qmp_path *path, const struct tide_json *json, const char **to,
                         struct tide_error *err)
{
	const char *text;

	if (!tide_json_get_string(json, &text, NULL))
		return tide_qmp_decode_bad_type(path, "string", err);
	if (to)
		*to = text;
	return 0;
}

static int decode_bool(const struct tide_qmp_path *path, const struct tide_json *json, bool *to, struct tide_error *err)
{
	bool v;

	if (!tide_json_get_bool(json, &v))
		return tide_qmp_decode_bad_type(path, "boolean", err);
	if (to)
		*to = v;
	return 0;
}

/* As in QEMU, a negative number is read as a large unsigned one, and is then too large. */
static int decode_uint32(const struct tide_qmp_path *path, const struct tide_json *json, uint64_t *to,
                         struct tide_error *err)
{
	uint64_t v;

	if (tide_json_kind(json) != TIDE_JSON_INTEGER)
		return REFUSE(path, err, "Parameter '%s' expects uint64");
	if (!tide_json_get_uint(json, &v) || v > UINT32_MAX)
		return tide_error_set(err, TIDE_E_REFUSED, "Parameter '%s' expects uint32_t", path->name);
	if (to)
		*to = v;
	return 0;
}

static int decode_int64(const struct tide_qmp_path *path, const struct tide_json *json, int64_t *to,
                        struct tide_error *err)
{
	int64_t v;

	if (!tide_json_get_int(json, &v))
		return tide_qmp_decode_bad_type(path, "integer", err);
	if (to)
		*to = v;
	return 0;
}

/* Of 1, 4 or 8 bytes. */
static int decode_uint(const struct tide_qmp_path *path, const struct tide_json *json, size_t size, void *to,
                       struct tide_error *err)
{
	uint64_t v;

	if (!tide_json_get_uint(json, &v) || (size < sizeof(v) && v >> (8 * size)))
		return REFUSE(path, err, "Invalid parameter type for '%s', expected: uint%zu", 8 * size);
	if (size == sizeof(uint64_t))
		*(uint64_t *)to = v;
	else if (size == sizeof(uint32_t))
		*(uint32_t *)to = (uint32_t)v;
	else
		*(uint8_t *)to = (uint8_t)v;
	return 0;
}

static int decode_enum(const struct tide_qmp_path *path, const struct tide_qmp_field *field,
                       const struct tide_json *json, int *to, struct tide_error *err)
{
	int place = 0;

	if (tide_qmp_decode_word(path, field->words, json, &place, err) < 0)
		return -1;
	if (to)
		*to = field->first + place;
	return 0;
}

static int decode_element(const struct tide_qmp_path *path, const struct tide_qmp_field *list,
                          const struct tide_json *json, char *to, struct tide_error *err)
{
	const struct tide_qmp_field *last = list->fields;
	const char *text;

	if (!list->union_name || tide_json_kind(json) == TIDE_JSON_OBJECT)
		return tide_qmp_decode(path, list->fields, json, NULL, to, err);
	/* QEMU has no name for the element either. */
	if (!tide_json_get_string(json, &text, NULL))
		return tide_error_set(err, TIDE_E_REFUSED, "Invalid parameter type for 'null', expected: %s",
		                      list->union_name);
	while (last[1].kind != TIDE_QMP_END)
		last++;
	*(const char **)(to + last->to) = text;
	return 0;
}

static int decode_list(const struct tide_qmp_path *path, const struct tide_qmp_field *field,
                       const struct tide_json *json, char *base, struct tide_error *err)
{
	size_t n = tide_json_count(json);
	char *elements;

	if (tide_json_kind(json) != TIDE_JSON_ARRAY)
		return tide_qmp_decode_bad_type(path, "array", err);
	elements = tide_mem_alloc(n + 1, field->element, err);
	if (!elements)
		return -1;
	*(char **)(base + field->to) = elements;
	*(size_t *)(base + field->count) = n;
	for (size_t i = 0; i < n; i++) {
		struct tide_qmp_path element = { path, NULL, i };

		if (decode_element(&element, field, tide_json_at(json, i), elements + i * field->element, err) < 0)
			return -1;
	}
	return 0;
}

static int decode_field(const struct tide_qmp_path *path, const struct tide_qmp_field *field,
                        const struct tide_json *json, void *base, struct tide_error *err)
{
	void *to = field->to == TIDE_QMP_NOWHERE ? NULL : (char *)base + field->to;

	switch (field->kind) {
	case TIDE_QMP_STRING:
		return decode_string(path, json, to, err);
	case TIDE_QMP_BOOL:
		return decode_bool(path, json, to, err);
	case TIDE_QMP_UINT32:
		return decode_uint32(path, json, to, err);
	case TIDE_QMP_INT64:
		return decode_int64(path, json, to, err);
	case TIDE_QMP_UINT:
		return decode_uint(path, json, field->size, to, err);
	case TIDE_QMP_ENUM:
		return decode_enum(path, field, json, to, err);
	case TIDE_QMP_STRUCT:
		return tide_qmp_decode(path, field->fields, json, NULL, base, err);
	case TIDE_QMP_LIST:
		return decode_list(path, field, json, base, err);
	case TIDE_QMP_OTHER:
		return field->decode(path, json, base, err);
	case TIDE_QMP_FILE:
	case TIDE_QMP_RESULT:
	case TIDE_QMP_INTERNAL:
	case TIDE_QMP_END:
		break;
	}
	return 0;
}

/* The fields that a stream knows end here. */
static bool is_last(const struct tide_qmp_field *field)
{
	return field->kind == TIDE_QMP_END || field->kind == TIDE_QMP_INTERNAL;
}

static bool is_known(const struct tide_qmp_field *fields, const char *name)
{
	for (; !is_last(fields); fields++) {
		if (!strcmp(fields->name, name))
			return true;
	}
	return false;
}

static int refuse_unknown(const struct tide_qmp_path *up, const struct tide_qmp_field *fields,
                          const struct tide_json *object, const char *but, struct tide_error *err)
{
	const struct tide_json *value;
	const void *place = NULL;
	const char *name;

	while (tide_json_next_member(object, &place, &name, &value)) {
		struct tide_qmp_path path = { up, name, 0 };

		if (!is_known(fields, name) && (!but || strcmp(but, name)))
			return REFUSE(&path, err, "Parameter '%s' is unexpected");
	}
	return 0;
}

int tide_qmp_decode(const struct tide_qmp_path *up, const struct tide_qmp_field *fields, const struct tide_json *object,
                    const char *but, void *to, struct tide_error *err)
{
	if (object && tide_json_kind(object) != TIDE_JSON_OBJECT)
		return tide_qmp_decode_bad_type(up, "object", err);
	for (const struct tide_qmp_field *field = fields; !is_last(field); field++) {
		const struct tide_json *value = object ? tide_json_member(object, field->name) : NULL;
		struct tide_qmp_path path = { up, field->name, 0 };

		if (!value && field->required &&
		    !(field->instead && object && tide_json_member(object, field->instead)))
			return tide_qmp_decode_missing(&path, err);
		if (!value)
			continue;
		if (decode_field(&path, field, value, to, err) < 0)
			return -1;
		if (field->has != TIDE_QMP_NOWHERE)
			*(bool *)((char *)to + field->has) = true;
	}
	return object ? refuse_unknown(up, fields, object, but, err) : 0;
}

void tide_qmp_decode_release(const struct tide_qmp_field *fields, void *to)
{
	for (const struct tide_qmp_field *field = fields; !is_last(field); field++) {
		if (field->kind == TIDE_QMP_LIST)
			free(*(void **)((char *)to + field->to));
	}
}
