/*
 * QMP: from JSON to actions and queries.
 *
 * Five parts, each of which knows only those before it:
 *
 *   qmp_json.c      cuts a stream of bytes into messages, as QEMU's monitor does: a message ends with the bracket
 *                   that closes it, so a command runs without waiting for more.  It accepts what QEMU's parser
 *                   accepts (single quotes), and what documentation contains besides: a comma before a closing
 *                   bracket, an arrow "->" before a command, a reply after "<-", a line of dots.
 *   qmp_decode.c    decodes an object into an argument structure by a table of fields (qmp_field.h), with the texts
 *                   of QEMU's QAPI visitors for what is missing, of a wrong type or unexpected.
 *   qmp_blockdev.c  decodes blockdev-add's tree of drivers.
 *   qmp_request.c   finds the command, and decodes it: into actions, by their table (action.h), or into a query.
 *   stream.c        reads commands, takes them out of their envelope {"execute", "arguments", "id"}, and runs them.
 *
 * Nothing runs before a whole command, a transaction with all its actions, has been decoded.
 */
#ifndef TIDE_QMP_H
#define TIDE_QMP_H

#include "base/compiler.h"
#include "base/json.h"
#include "base/strbuf.h"
#include "qmp_field.h"
#include "tidemark.h"

/* ---- messages ---------------------------------------------------------------------- */

struct tide_qmp_token {
	char kind;       /* one of {}[]:, or s string, i integer, f fraction, k keyword */
	size_t off, len; /* in `kept` */
};

struct tide_qmp_json {
	struct tide_strbuf text; /* bytes that are not consumed yet */
	size_t at;               /* where the next token begins */
	bool ended;              /* the input has ended */
	bool recovering;         /* after an unreadable character */
	bool skipping;           /* after "<-": the next value is a reply, not a command */
	size_t n, room;          /* the tokens of the message so far */
	struct tide_qmp_token *tokens;
	struct tide_strbuf kept; /* their texts; blanks are not kept */
	int braces, brackets;
};

void tide_qmp_json_release(struct tide_qmp_json *in);

/*
 * The next message in `text`.  1: *json is the message; 0: more bytes are needed, or nothing is left; -1: the input has
 * an error, which is skipped.
 */
int tide_qmp_json_next(struct tide_qmp_json *in, struct tide_json **json, struct tide_error *err);

/* ---- decoding ---------------------------------------------------------------------- */

/*
 * Fills in *to, which is all zero before.  Its strings belong to the JSON tree; its lists are released by
 * tide_qmp_decode_release, also after an error.  but: a member of the object that is not decoded, or NULL.
 */
int tide_qmp_decode(const struct tide_qmp_path *path, const struct tide_qmp_field *fields,
                    const struct tide_json *object, const char *but, void *to, struct tide_error *err);
void tide_qmp_decode_release(const struct tide_qmp_field *fields, void *to);

/* "Invalid parameter type for 'a.b', expected: object"; -1. */
int tide_qmp_decode_bad_type(const struct tide_qmp_path *path, const char *expected, struct tide_error *err);
int tide_qmp_decode_missing(const struct tide_qmp_path *path, struct tide_error *err);
/* "Parameter 'sync' does not accept value 'x'", or the place of the value among the words. */
int tide_qmp_decode_word(const struct tide_qmp_path *path, const char *const *words, const struct tide_json *json,
                         int *place, struct tide_error *err);

#endif
