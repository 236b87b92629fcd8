/*
 * Cuts a stream of bytes into JSON messages and rewrites them as strict JSON for the parser of base/json.c.
 *
 * It follows QEMU's lexer and parser: a message ends with the bracket that closes it, errors have QEMU's texts, and
 * after an error it skips as many bytes as QEMU does.
 */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/mem.h"
#include "qmp.h"

enum {
	MAX_NESTING = 120, /* fewer than json.c accepts */
	MAX_TOKEN = 16 << 20,
	MAX_TEXT = 64 << 20, /* of a message, without its blanks */
	MAX_TOKENS = 2 << 20,
};

/* The results of lex() besides the kinds of tokens. */
enum { NEED_MORE = 0, STRAY = -1, SKIP = -2, REPLY = -3 };

void tide_qmp_json_release(struct tide_qmp_json *in)
{
	tide_strbuf_release(&in->text);
	tide_strbuf_release(&in->kept);
	free(in->tokens);
	*in = (struct tide_qmp_json){ 0 };
}

/* ---- tokens ------------------------------------------------------------------------ */

struct lexer {
	const unsigned char *s;
	size_t len, n; /* n: bytes taken so far */
	bool ended;
};

static int next_byte(const struct lexer *lex)
{
	return lex->n < lex->len ? lex->s[lex->n] : -1;
}

static int stray(struct lexer *lex)
{
	if (lex->n == lex->len)
		return lex->ended ? STRAY : NEED_MORE;
	lex->n++;
	return STRAY;
}

static bool is_digit(int c)
{
	return c >= '0' && c <= '9';
}

static void take_digits(struct lexer *lex)
{
	while (is_digit(next_byte(lex)))
		lex->n++;
}

static int lex_string(struct lexer *lex)
{
	unsigned char quote = lex->s[lex->n++];

	for (; lex->n < lex->len; lex->n++) {
		unsigned char c = lex->s[lex->n];

		if (c == quote) {
			lex->n++;
			return 's';
		}
		if (c == '\\' && lex->n + 1 < lex->len)
			c = lex->s[++lex->n];
		if (c < 0x20 || c > 0xfd)
			return stray(lex);
	}
	return stray(lex);
}

static int lex_number(struct lexer *lex)
{
	char kind = 'i';

	if (next_byte(lex) == '-')
		lex->n++;
	if (!is_digit(next_byte(lex)))
		return stray(lex);
	if (next_byte(lex) == '0') {
		lex->n++;
		if (is_digit(next_byte(lex)))
			return stray(lex);
	}
	take_digits(lex);
	if (next_byte(lex) == '.') {
		kind = 'f';
		lex->n++;
		if (!is_digit(next_byte(lex)))
			return stray(lex);
		take_digits(lex);
	}
	if (next_byte(lex) == 'e' || next_byte(lex) == 'E') {
		kind = 'f';
		lex->n++;
		if (next_byte(lex) == '+' || next_byte(lex) == '-')
			lex->n++;
		if (!is_digit(next_byte(lex)))
			return stray(lex);
		take_digits(lex);
	}
	return lex->n < lex->len || lex->ended ? kind : NEED_MORE;
}

static int lex_keyword(struct lexer *lex)
{
	while (next_byte(lex) >= 'a' && next_byte(lex) <= 'z')
		lex->n++;
	return lex->n < lex->len || lex->ended ? 'k' : NEED_MORE;
}

/* Accepts the marks that documentation puts around commands. */
static int lex_decoration(struct lexer *lex)
{
	static const struct {
		const char *text;
		int what;
	} known[] = { { "->", SKIP }, { "<-", REPLY }, { "...", SKIP } };

	for (size_t i = 0; i < TIDE_ARRAY_SIZE(known); i++) {
		size_t n = strlen(known[i].text), have = n < lex->len ? n : lex->len;

		if (memcmp(lex->s, known[i].text, have))
			continue;
		if (have < n)
			return lex->ended ? STRAY : NEED_MORE;
		lex->n = n;
		return known[i].what;
	}
	return STRAY;
}

/* The token at the start of lex->s, which is not empty. */
static int lex_token(struct lexer *lex, bool outside)
{
	/* NOLINTNEXTLINE(clang-analyzer-core.NullDereference): it is not empty, so there is a text */
	unsigned char c = lex->s[0];
	int what = outside ? lex_decoration(lex) : STRAY;

	if (what != STRAY)
		return what;
	if (c == '"' || c == '\'')
		return lex_string(lex);
	if (c == '-' || is_digit(c))
		return lex_number(lex);
	if (c >= 'a' && c <= 'z')
		return lex_keyword(lex);
	lex->n = 1;
	if (c && strchr("{}[]:,", c))
		return c;
	return c && strchr(" \t\r\n", c) ? SKIP : STRAY;
}

/* ---- the grammar: tokens to strict JSON -------------------------------------------- */

struct parser {
	const struct tide_qmp_json *in;
	size_t at; /* token */
	struct tide_json_writer *out;
	struct tide_error *err;
};

static int bad(struct parser *p, const char *what)
{
	return tide_error_set(p->err, TIDE_E_REFUSED, "JSON parse error, %s", what);
}

static const struct tide_qmp_token *peek(const struct parser *p)
{
	return p->at < p->in->n ? &p->in->tokens[p->at] : NULL;
}

static bool peek_is(const struct parser *p, char kind)
{
	return p->at < p->in->n && p->in->tokens[p->at].kind == kind;
}

static const char *token_text(const struct parser *p, const struct tide_qmp_token *token)
{
	return p->in->kept.buf + token->off;
}

static int32_t four_digits(const char *s, const char *end)
{
	int32_t cp = 0;

	for (int i = 0; i < 4; i++) {
		int c = s + i < end ? (unsigned char)s[i] : 0;
		int digit = is_digit(c)            ? c - '0'
		            : c >= 'a' && c <= 'f' ? c - 'a' + 10
		            : c >= 'A' && c <= 'F' ? c - 'A' + 10
		                                   : -1;

		if (digit < 0)
			return -1;
		cp = cp << 4 | digit;
	}
	return cp;
}

static void add_code_point(struct tide_strbuf *sb, uint32_t cp)
{
	if (cp < 0x80) {
		tide_strbuf_addc(sb, (char)cp);
		return;
	}
	if (cp < 0x800) {
		tide_strbuf_addc(sb, (char)(0xc0 | cp >> 6));
	} else {
		if (cp < 0x10000) {
			tide_strbuf_addc(sb, (char)(0xe0 | cp >> 12));
		} else {
			tide_strbuf_addc(sb, (char)(0xf0 | cp >> 18));
			tide_strbuf_addc(sb, (char)(0x80 | (cp >> 12 & 0x3f)));
		}
		tide_strbuf_addc(sb, (char)(0x80 | (cp >> 6 & 0x3f)));
	}
	tide_strbuf_addc(sb, (char)(0x80 | (cp & 0x3f)));
}

static bool is_character(int32_t cp)
{
	return cp > 0 && cp <= 0x10ffff && (cp < 0xd800 || cp > 0xdfff) && (cp & 0xfffe) != 0xfffe &&
	       (cp < 0xfdd0 || cp > 0xfdef);
}

/* *s points after "\u". */
static int unescape_code_point(struct parser *p, const char **s, const char *end, struct tide_strbuf *sb)
{
	const char *start = *s - 2;
	int32_t cp = four_digits(*s, end);

	*s += 4;
	if (cp >= 0xd800 && cp <= 0xdbff && *s + 1 < end && (*s)[0] == '\\' && (*s)[1] == 'u') {
		int32_t low = four_digits(*s + 2, end);

		if (low >= 0xdc00 && low <= 0xdfff) {
			cp = 0x10000 + ((cp & 0x3ff) << 10 | (low & 0x3ff));
			*s += 6;
		}
	}
	if (!is_character(cp))
		return tide_error_set(p->err, TIDE_E_REFUSED, "JSON parse error, %.*s is not a valid Unicode character",
		                      (int)((*s <= end ? *s : end) - start), start);
	add_code_point(sb, (uint32_t)cp);
	return 0;
}

/* The string without its quotes and escapes; the caller frees it. */
static char *parse_string(struct parser *p)
{
	static const char letters[] = "\"'\\/bfnrt", meant[] = "\"'\\/\b\f\n\r\t";
	const struct tide_qmp_token *token = peek(p);
	const char *s = token_text(p, token) + 1, *end = s + token->len - 1;
	struct tide_strbuf sb = TIDE_STRBUF_INIT;
	int rc = 0;

	p->at++;
	while (rc == 0 && s < end - 1) {
		const char *letter;

		if (*s != '\\') {
			tide_strbuf_addc(&sb, *s++);
			continue;
		}
		letter = strchr(letters, s[1]);
		s += 2;
		if (letter && *letter)
			tide_strbuf_addc(&sb, meant[letter - letters]);
		else
			rc = s[-1] == 'u' ? unescape_code_point(p, &s, end, &sb)
			                  : bad(p, "invalid escape sequence in string");
	}
	if (rc == 0 && sb.buf && !tide_json_is_utf8(sb.buf))
		rc = bad(p, "invalid UTF-8 sequence in string");
	if (rc < 0) {
		tide_strbuf_release(&sb);
		return NULL;
	}
	return tide_strbuf_steal(&sb, p->err);
}

static bool fits(const char *text)
{
	char *end;

	errno = 0;
	if (*text == '-')
		(void)strtoll(text, &end, 10);
	else
		(void)strtoull(text, &end, 10);
	return errno == 0;
}

/* An integer that does not fit into 64 bits becomes a floating-point number, as in QEMU. */
static int parse_number(struct parser *p, const char *key)
{
	const struct tide_qmp_token *token = peek(p);
	TIDE_AUTOFREE char *text = tide_mem_strndup(token_text(p, token), token->len, p->err);
	TIDE_AUTOFREE char *real = NULL;

	p->at++;
	if (!text)
		return -1;
	if (!isfinite(strtod(text, NULL)))
		return bad(p, "number out of range");
	if (token->kind == 'f' || fits(text)) {
		tide_json_raw(p->out, key, text);
		return 0;
	}
	real = tide_mem_printf(p->err, "%s.0", text);
	if (real)
		tide_json_raw(p->out, key, real);
	return real ? 0 : -1;
}

static int parse_keyword(struct parser *p, const char *key)
{
	static const char *const words[] = { "true", "false", "null" };
	const struct tide_qmp_token *token = peek(p);

	p->at++;
	for (size_t i = 0; i < TIDE_ARRAY_SIZE(words); i++) {
		if (token->len == strlen(words[i]) && !memcmp(token_text(p, token), words[i], token->len)) {
			tide_json_raw(p->out, key, words[i]);
			return 0;
		}
	}
	return tide_error_set(p->err, TIDE_E_REFUSED, "JSON parse error, invalid keyword '%.*s'", (int)token->len,
	                      token_text(p, token));
}

static int parse_value(struct parser *p, const char *key);

static int parse_pair(struct parser *p)
{
	TIDE_AUTOFREE char *key = NULL;

	if (!peek_is(p, 's'))
		return parse_value(p, NULL) < 0 ? -1 : bad(p, "key is not a string in object");
	key = parse_string(p);
	if (!key)
		return -1;
	if (!peek_is(p, ':'))
		return bad(p, peek(p) ? "missing : in object pair" : "premature EOI");
	p->at++;
	return parse_value(p, key);
}

/* Called after the opening bracket. */
static int parse_members(struct parser *p, char close)
{
	bool object = close == '}';

	if (peek_is(p, close)) {
		p->at++;
		return 0;
	}
	for (;;) {
		if ((object ? parse_pair(p) : parse_value(p, NULL)) < 0)
			return -1;
		if (!peek(p))
			return bad(p, "premature EOI");
		if (!peek_is(p, ',') && !peek_is(p, close))
			return bad(p, object ? "expected separator in dict" : "expected separator in list");
		if (peek_is(p, ','))
			p->at++;
		if (peek_is(p, close)) {
			p->at++;
			return 0;
		}
	}
}

static int parse_value(struct parser *p, const char *key)
{
	const struct tide_qmp_token *token = peek(p);
	TIDE_AUTOFREE char *text = NULL;
	char close;

	if (!token)
		return bad(p, "premature EOI");
	switch (token->kind) {
	case '{':
	case '[':
		close = token->kind == '{' ? '}' : ']';
		tide_json_begin(p->out, key, token->kind);
		p->at++;
		if (parse_members(p, close) < 0)
			return -1;
		tide_json_end(p->out, close);
		return 0;
	case 's':
		text = parse_string(p);
		if (text)
			tide_json_string(p->out, key, text);
		return text ? 0 : -1;
	case 'i':
	case 'f':
		return parse_number(p, key);
	case 'k':
		return parse_keyword(p, key);
	default:
		return bad(p, "expecting value");
	}
}

static int parse_message(const struct tide_qmp_json *in, struct tide_json **json, struct tide_error *err)
{
	struct tide_strbuf sb = TIDE_STRBUF_INIT;
	struct tide_json_writer w = { &sb, false };
	struct parser p = { .in = in, .out = &w, .err = err };
	struct tide_error strict = TIDE_ERROR_INIT;
	TIDE_AUTOFREE char *text = NULL;

	if (parse_value(&p, NULL) < 0) {
		tide_strbuf_release(&sb);
		return -1;
	}
	text = tide_strbuf_steal(&sb, err);
	if (!text)
		return -1;
	*json = tide_json_parse(text, strlen(text), &strict);
	if (*json)
		return 1;
	/* The only error that is left: an object has the same key twice. */
	if (strict.code == TIDE_E_REFUSED)
		bad(&p, "duplicate key");
	else
		return tide_error_move(err, &strict);
	tide_error_release(&strict);
	return -1;
}

/* ---- messages ---------------------------------------------------------------------- */

/* Forgets the text up to here. */
static void forget_text(struct tide_qmp_json *in)
{
	if (in->text.buf && in->at) {
		memmove(in->text.buf, in->text.buf + in->at, in->text.len - in->at + 1);
		in->text.len -= in->at;
	}
	in->at = 0;
}

/* Forgets the tokens of the message, too. */
static void forget(struct tide_qmp_json *in)
{
	in->n = 0;
	in->braces = in->brackets = 0;
	tide_strbuf_reset(&in->kept);
	forget_text(in);
}

static int add_token(struct tide_qmp_json *in, char kind, size_t len, struct tide_error *err)
{
	in->braces += (kind == '{') - (kind == '}');
	in->brackets += (kind == '[') - (kind == ']');
	if (in->n >= MAX_TOKENS)
		return tide_error_set(err, TIDE_E_REFUSED, "JSON token count limit exceeded");
	if (len > MAX_TEXT - in->kept.len)
		return tide_error_set(err, TIDE_E_REFUSED, "JSON token size limit exceeded");
	if (in->braces + in->brackets > MAX_NESTING)
		return tide_error_set(err, TIDE_E_REFUSED, "JSON nesting depth limit exceeded");
	if (in->n == in->room) {
		size_t room = in->room ? in->room * 2 : 64;
		struct tide_qmp_token *grown = tide_mem_realloc(in->tokens, room, sizeof(*grown), err);

		if (!grown)
			return -1;
		in->tokens = grown;
		in->room = room;
	}
	in->tokens[in->n++] = (struct tide_qmp_token){ kind, in->kept.len, len };
	tide_strbuf_add(&in->kept, in->text.buf + in->at, len);
	return in->kept.failed ? tide_error_set_nomem(err) : 0;
}

static bool is_complete(const struct tide_qmp_json *in)
{
	return (in->braces <= 0 && in->brackets <= 0) || in->braces < 0 || in->brackets < 0;
}

/* Skips what follows an unreadable token, up to a structural or control character, as QEMU does. */
static void recover(struct tide_qmp_json *in)
{
	for (; in->at < in->text.len; in->at++) {
		unsigned char c = (unsigned char)in->text.buf[in->at];

		if ((c < 0x20 && c != '\t') || c > 0xfd || strchr("{}[]:,", c)) {
			in->recovering = false;
			break;
		}
	}
	if (in->n == 0)
		forget(in);
}

static int finish(struct tide_qmp_json *in, struct tide_json **json, struct tide_error *err)
{
	int rc = parse_message(in, json, err);

	forget(in);
	if (!in->skipping)
		return rc;
	in->skipping = false;
	if (rc < 0)
		tide_error_release(err);
	else
		tide_json_free(*json);
	*json = NULL;
	return 0;
}

/* Takes one token.  1: *json is a message; 0: the message continues; -1: an error. */
static int step(struct tide_qmp_json *in, const struct lexer *lex, int what, struct tide_json **json,
                struct tide_error *err)
{
	if (what == SKIP || what == REPLY) {
		in->at += lex->n;
		in->skipping |= what == REPLY;
		return 0;
	}
	if (what == STRAY) {
		tide_error_set(err, TIDE_E_REFUSED, "JSON parse error, stray '%.*s'", (int)lex->n, lex->s);
		in->at += lex->n;
		in->recovering = true;
		in->skipping = false;
		forget(in);
		return -1;
	}
	if (add_token(in, (char)what, lex->n, err) < 0) {
		in->at += lex->n;
		forget(in);
		return -1;
	}
	in->at += lex->n;
	return is_complete(in) ? finish(in, json, err) : 0;
}

static int end_of_input(struct tide_qmp_json *in, struct tide_error *err)
{
	bool open = in->n > 0 && !in->skipping;

	in->at = in->text.len;
	forget(in);
	return open ? tide_error_set(err, TIDE_E_REFUSED, "JSON parse error, premature EOI") : 0;
}

int tide_qmp_json_next(struct tide_qmp_json *in, struct tide_json **json, struct tide_error *err)
{
	if (in->text.failed) {
		tide_qmp_json_release(in);
		in->ended = true;
		return tide_error_set_nomem(err);
	}
	for (;;) {
		struct lexer lex;
		int what, rc;

		if (in->recovering)
			recover(in);
		if (in->at == in->text.len) {
			forget_text(in);
			return in->ended ? end_of_input(in, err) : 0;
		}
		lex = (struct lexer){ (const unsigned char *)in->text.buf + in->at, in->text.len - in->at, 0,
			              in->ended };
		what = lex_token(&lex, in->n == 0 || in->skipping);
		if (what == NEED_MORE && in->text.len - in->at > MAX_TOKEN) {
			in->at = in->text.len;
			in->recovering = true;
			forget(in);
			return tide_error_set(err, TIDE_E_REFUSED, "JSON token size limit exceeded");
		}
		if (what == NEED_MORE) {
			forget_text(in);
			return 0;
		}
		rc = step(in, &lex, what, json, err);
		if (rc)
			return rc;
	}
}
