/*
 * Fields: the names that the members of an argument structure have in QMP, and how they are stored.
 *
 * There is one table for each set of arguments.  It drives the decoding of requests (qmp_decode.c) and the copying of
 * argument structures (below), and it is complete, so that a request can be made from a structure too: a member
 * without a field is neither decoded nor copied.
 *
 * The order is that of QEMU's schema, because it decides which one of several mistakes is reported.  Fields after
 * TIDE_FIELD_INTERNAL are arguments that only the library's calls can set: a stream of requests refuses them as
 * unknown.
 */
#ifndef TIDE_QMP_FIELD_H
#define TIDE_QMP_FIELD_H

#include <stddef.h>
#include <stdint.h>

#include "base/compiler.h"
#include "base/json.h"
#include "tidemark.h"

/* Where in the arguments a value is found: "actions[0].data.name". */
struct tide_qmp_path {
	const struct tide_qmp_path *up; /* NULL: the arguments themselves */
	const char *name;               /* NULL: an element of a list */
	size_t index;
};

enum tide_qmp_kind {
	TIDE_QMP_END = 0,
	TIDE_QMP_INTERNAL, /* no field: those that follow are refused in a stream */
	TIDE_QMP_STRING,   /* const char *; NULL: not given */
	TIDE_QMP_BOOL,     /* bool */
	TIDE_QMP_UINT32,   /* uint64_t that holds 32 bits at most */
	TIDE_QMP_INT64,    /* int64_t, or uint64_t where a negative number is refused later */
	TIDE_QMP_UINT,     /* unsigned, of `size` bytes */
	TIDE_QMP_ENUM,     /* int: `first` and up; less: not given */
	TIDE_QMP_STRUCT,   /* an object whose members, `fields`, are stored in the same structure */
	TIDE_QMP_LIST,     /* an array, and the number of its elements at `count`; each is a structure of `fields` */
	TIDE_QMP_FILE,     /* int: a file descriptor, which no JSON can hold: it is passed beside it */
	TIDE_QMP_RESULT,   /* uint64_t *, or NULL: where the action stores a result */
	TIDE_QMP_OTHER,    /* `decode` does it */
};

#define TIDE_QMP_NOWHERE SIZE_MAX

struct tide_qmp_field {
	const char *name;
	enum tide_qmp_kind kind;
	bool required;
	const char *instead;      /* a member that a required one may be replaced by, or NULL */
	size_t to;                /* offset; TIDE_QMP_NOWHERE: checked, not kept */
	size_t size;              /* of the member at `to` */
	size_t has;               /* offset of a bool that says the member was given; TIDE_QMP_NOWHERE */
	const char *const *words; /* for an enum */
	int first;
	const struct tide_qmp_field *fields;
	/* For a list. */
	size_t count;           /* offset of its size_t */
	size_t element;         /* bytes of an element */
	const char *union_name; /* an element may be a string instead, its last field, and this is QEMU's name for that;
	                           or NULL */
	int (*decode)(const struct tide_qmp_path *path, const struct tide_json *json, void *to, struct tide_error *err);
};

/* ---- the rows of a table ------------------------------------------------------------- */

/* Where a member of the structure type_ is stored. */
#define TIDE_FIELD_AT(type_, member) .to = offsetof(type_, member), .size = sizeof(((type_ *)NULL)->member)

#define TIDE_FIELD(kind_, name_, required_, type_, member)                                         \
	{                                                                                          \
		.name = name_, .kind = kind_, .required = required_, TIDE_FIELD_AT(type_, member), \
		.has = TIDE_QMP_NOWHERE                                                            \
	}
#define TIDE_FIELD_STRING(name_, required_, type_, member) TIDE_FIELD(TIDE_QMP_STRING, name_, required_, type_, member)
#define TIDE_FIELD_BOOL(name_, type_, member)              TIDE_FIELD(TIDE_QMP_BOOL, name_, false, type_, member)
#define TIDE_FIELD_RESULT(name_, type_, member)            TIDE_FIELD(TIDE_QMP_RESULT, name_, false, type_, member)
/* A number for which 0 does not mean "not given". */
#define TIDE_FIELD_OPTIONAL(kind_, name_, type_, member, has_)                                           \
	{                                                                                                \
		.name = name_, .kind = kind_, TIDE_FIELD_AT(type_, member), .has = offsetof(type_, has_) \
	}
#define TIDE_FIELD_ENUM(name_, required_, type_, member, words_, first_)                                   \
	{                                                                                                  \
		.name = name_, .kind = TIDE_QMP_ENUM, .required = required_, TIDE_FIELD_AT(type_, member), \
		.has = TIDE_QMP_NOWHERE, .words = words_, .first = first_                                  \
	}
#define TIDE_FIELD_ENUM_OR(name_, instead_, type_, member, words_, first_)                              \
	{                                                                                               \
		.name = name_, .kind = TIDE_QMP_ENUM, .required = true, .instead = instead_,            \
		TIDE_FIELD_AT(type_, member), .has = TIDE_QMP_NOWHERE, .words = words_, .first = first_ \
	}
#define TIDE_FIELD_STRUCT(name_, required_, fields_)                                                   \
	{                                                                                              \
		.name = name_, .kind = TIDE_QMP_STRUCT, .required = required_, .to = TIDE_QMP_NOWHERE, \
		.has = TIDE_QMP_NOWHERE, .fields = fields_                                             \
	}
#define TIDE_FIELD_LIST(name_, type_, member, count_, fields_, union_)                                \
	{                                                                                             \
		.name = name_, .kind = TIDE_QMP_LIST, .required = true, TIDE_FIELD_AT(type_, member), \
		.has = TIDE_QMP_NOWHERE, .count = offsetof(type_, count_),                            \
		.element = sizeof(*((type_ *)NULL)->member), .fields = fields_, .union_name = union_  \
	}
#define TIDE_FIELD_OTHER(name_, required_, decode_)                                                   \
	{                                                                                             \
		.name = name_, .kind = TIDE_QMP_OTHER, .required = required_, .to = TIDE_QMP_NOWHERE, \
		.has = TIDE_QMP_NOWHERE, .decode = decode_                                            \
	}
/* Has the type that QEMU wants, and makes no difference. */
#define TIDE_FIELD_CHECKED(name_, kind_)                                                      \
	{                                                                                     \
		.name = name_, .kind = kind_, .to = TIDE_QMP_NOWHERE, .has = TIDE_QMP_NOWHERE \
	}
#define TIDE_FIELD_INTERNAL               \
	{                                 \
		.kind = TIDE_QMP_INTERNAL \
	}
#define TIDE_FIELD_END               \
	{                            \
		.kind = TIDE_QMP_END \
	}

extern const struct tide_qmp_field tide_qmp_field_none[];

/* ---- copies -------------------------------------------------------------------------- */

/* The strings and lists of a copied structure.  They live as long as this does, whatever the structure becomes. */
struct tide_qmp_owned {
	size_t n;
	void **items;
};

/*
 * Copies what the fields describe, with its strings and lists, from one structure to another.  All else in *to stays
 * as it was.
 */
int tide_qmp_field_copy(const struct tide_qmp_field *fields, const void *from, void *to, struct tide_qmp_owned *owned,
                        struct tide_error *err);
void tide_qmp_owned_release(struct tide_qmp_owned *owned);

/* The field of this name, of the structure itself; NULL: there is none. */
const struct tide_qmp_field *tide_qmp_field_find(const struct tide_qmp_field *fields, const char *name);

#endif
