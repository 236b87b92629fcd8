/*
 * JSON: a writer, and a reader with json-c. No other file calls json-c.
 *
 * The writer lays JSON out as QEMU's QMP server does, to the byte: {"key": value, "key": [1, 2]}.
 * Everything outside printable ASCII is escaped as \uHHHH with upper-case digits, beyond the first plane as
 * a pair; a sequence of bytes that is not UTF-8 becomes one \uFFFD.
 *
 * The reader accepts strict JSON (RFC 8259) in UTF-8. A value belongs to the tree that tide_json_parse
 * returned and lives as long as that.
 */
#ifndef TIDE_JSON_H
#define TIDE_JSON_H

#include "compiler.h"
#include "strbuf.h"
#include "tidemark.h"

/* The writer appends to a strbuf and inserts commas itself. key NULL: an element of an array, or the top. */
struct tide_json_writer {
	struct tide_strbuf *sb;
	bool comma;
};

void tide_json_begin(struct tide_json_writer *w, const char *key, char bracket); /* '{' or '[' */
void tide_json_end(struct tide_json_writer *w, char bracket);                    /* '}' or ']' */
void tide_json_string(struct tide_json_writer *w, const char *key, const char *value);
void tide_json_uint(struct tide_json_writer *w, const char *key, uint64_t value);
void tide_json_int(struct tide_json_writer *w, const char *key, int64_t value);
void tide_json_bool(struct tide_json_writer *w, const char *key, bool value);
/* As QEMU prints it: 1.5, and 1 for 1.0. */
void tide_json_real(struct tide_json_writer *w, const char *key, double value);
/* A value that is JSON already. */
void tide_json_raw(struct tide_json_writer *w, const char *key, const char *json);

/* Is this well-formed UTF-8 (no surrogates, no overlong forms)? */
bool tide_json_is_utf8(const char *s);

/* ---- reading ----------------------------------------------------------------------- */

struct tide_json;

enum tide_json_kind {
	TIDE_JSON_NULL,
	TIDE_JSON_BOOL,
	TIDE_JSON_INTEGER, /* from INT64_MIN to UINT64_MAX; the parser refuses others */
	TIDE_JSON_REAL,
	TIDE_JSON_STRING,
	TIDE_JSON_ARRAY,
	TIDE_JSON_OBJECT,
};

/* The text holds one value and nothing after it. */
struct tide_json *tide_json_parse(const char *text, size_t len, struct tide_error *err);
/* The same in QEMU's dialect, in which strings may also be in single quotes, and \' stands for one. */
struct tide_json *tide_json_parse_qemu(const char *text, size_t len, struct tide_error *err);
void tide_json_free(struct tide_json *json);
void tide_json_freep(struct tide_json **json);
#define TIDE_AUTOJSON TIDE_CLEANUP(tide_json_freep)

enum tide_json_kind tide_json_kind(const struct tide_json *json);
/* For messages: "a string". */
const char *tide_json_kind_name(enum tide_json_kind kind);

/* True with the exact value; false when the value is of another kind or does not fit, and *v is then undefined. */
bool tide_json_get_uint(const struct tide_json *json, uint64_t *v);
bool tide_json_get_int(const struct tide_json *json, int64_t *v);
bool tide_json_get_bool(const struct tide_json *json, bool *v);
bool tide_json_get_real(const struct tide_json *json, double *v);
/* len (may be NULL) counts bytes; without it a string that holds a NUL byte is refused. */
bool tide_json_get_string(const struct tide_json *json, const char **v, size_t *len);

/* Elements of an array or members of an object; 0 for other kinds. */
size_t tide_json_count(const struct tide_json *json);
/* NULL when it does not exist, or json is not an array or object. A null is a value of kind TIDE_JSON_NULL. */
const struct tide_json *tide_json_at(const struct tide_json *array, size_t i);
const struct tide_json *tide_json_member(const struct tide_json *object, const char *key);

/* Visits each member, in the order of the text: start with *place NULL; false after the last one. */
bool tide_json_next_member(const struct tide_json *object, const void **place, const char **key,
                           const struct tide_json **value);

/* Writes a value that was read, laid out as QEMU would. */
void tide_json_copy(struct tide_json_writer *w, const char *key, const struct tide_json *json);

#endif
