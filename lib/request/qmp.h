/*
 * QMP: JSON in, actions and queries out.
 *
 * Four parts, each knowing the one before it only:
 *
 *   qmp_json.c    cuts a stream of bytes into messages, as QEMU's monitor does: a message
 *                 ends with the bracket that closes it, so a command runs without waiting
 *                 for more.  What QEMU's parser takes is taken (single quotes), and what
 *                 documentation holds besides: a comma before a closing bracket, an arrow
 *                 "->" before a command, a reply behind "<-", a line of dots.
 *   qmp_decode.c  turns an object into an argument structure by a table of fields, with
 *                 the words of QEMU's QAPI visitors for what is missing, of a wrong type
 *                 or unexpected.  Fields are looked at in the order of QEMU's schema, so
 *                 that of several mistakes the same one is reported.
 *   qmp_blockdev.c  blockdev-add's tree of drivers.
 *   qmp.c         the commands: a table of names, fields and what to call; the envelope
 *                 {"execute", "arguments", "id"}; and the stream of commands.
 *
 * Nothing runs before a whole command, a transaction with all its actions, made sense.
 */
#ifndef TIDE_QMP_H
#define TIDE_QMP_H

#include "base/compiler.h"
#include "base/json.h"
#include "base/strbuf.h"
#include "tidemark.h"

/* ---- messages ---------------------------------------------------------------------- */

struct tide_qmp_token {
	char kind; /* one of {}[]:, or s string, i integer, f fraction, k keyword */
	size_t off, len;
};

struct tide_qmp_json {
	struct tide_strbuf text; /* bytes not yet done with */
	size_t at;               /* where the next token begins */
	bool ended;              /* no byte will follow */
	bool recovering;         /* behind a character that could not be read */
	bool skipping;           /* behind "<-": the next value is no command */
	size_t n, room;          /* the tokens of the message so far */
	struct tide_qmp_token *tokens;
	int braces, brackets;
};

void tide_qmp_json_release(struct tide_qmp_json *in);

/*
 * The next message of what stands in `text`.  1: *json is one; 0: more bytes are needed, or
 * nothing is left; -1: an error in the input, which is behind us now.
 */
int tide_qmp_json_next(struct tide_qmp_json *in, struct tide_json **json, struct tide_error *err);

/* ---- fields ------------------------------------------------------------------------ */

/* Where in the arguments a value stands: "actions[0].data.name". */
struct tide_qmp_path {
	const struct tide_qmp_path *up; /* NULL: the arguments themselves */
	const char *name;               /* NULL: an element of a list */
	size_t index;
};

enum tide_qmp_kind {
	TIDE_QMP_END = 0,
	TIDE_QMP_STRING, /* const char * */
	TIDE_QMP_BOOL,   /* bool */
	TIDE_QMP_UINT32, /* uint64_t, and the bool at `has` */
	TIDE_QMP_INT64,  /* int64_t, and the bool at `has` */
	TIDE_QMP_ENUM,   /* int: `first` and up */
	TIDE_QMP_STRUCT, /* `fields`, into the same structure */
	TIDE_QMP_OTHER,  /* `decode` */
};

#define TIDE_QMP_NOWHERE SIZE_MAX

struct tide_qmp_field {
	const char *name;
	enum tide_qmp_kind kind;
	bool required;
	size_t to;                /* offset; TIDE_QMP_NOWHERE: checked, not kept */
	size_t has;               /* offset of a bool that says the member was there; TIDE_QMP_NOWHERE */
	const char *const *words; /* of an enum */
	int first;
	const struct tide_qmp_field *fields;
	int (*decode)(const struct tide_qmp_path *path, const struct tide_json *json, void *to, struct tide_error *err);
};

/* Texts in *to belong to the JSON tree.  but: a member that is none of ours, or NULL. */
int tide_qmp_decode(const struct tide_qmp_path *path, const struct tide_qmp_field *fields,
                    const struct tide_json *object, const char *but, void *to, struct tide_error *err);

/* "Invalid parameter type for 'a.b', expected: object"; -1. */
int tide_qmp_decode_bad_type(const struct tide_qmp_path *path, const char *expected, struct tide_error *err);
int tide_qmp_decode_missing(const struct tide_qmp_path *path, struct tide_error *err);
/* "Parameter 'sync' does not accept value 'x'", or the place of the value among the words. */
int tide_qmp_decode_word(const struct tide_qmp_path *path, const char *const *words, const struct tide_json *json,
                         int *place, struct tide_error *err);

#endif
