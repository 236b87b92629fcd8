/*
 * The only code that calls expat, which is loaded on first use: reads untrusted XML in pieces,
 * limits its depth, and refuses document types (xml.h).
 */
#include "xml.h"

#include <expat.h>
#include <string.h>

#include "dynlib.h"
#include "error.h"

#define PIECE ((size_t)1 << 20)

#define CALLS(CALL)                                   \
	CALL(expat, XML_, ErrorString)                \
	CALL(expat, XML_, GetCurrentLineNumber)       \
	CALL(expat, XML_, GetErrorCode)               \
	CALL(expat, XML_, Parse)                      \
	CALL(expat, XML_, ParserCreate)               \
	CALL(expat, XML_, ParserFree)                 \
	CALL(expat, XML_, SetCharacterDataHandler)    \
	CALL(expat, XML_, SetElementHandler)          \
	CALL(expat, XML_, SetStartDoctypeDeclHandler) \
	CALL(expat, XML_, SetUserData)                \
	CALL(expat, XML_, StopParser)

TIDE_DYNLIB_DOOR(expat, CALLS, "libexpat.so.1", "XML", "libexpat1");

struct reader {
	XML_Parser parser;
	const struct tide_xml_handler *handler;
	void *data;
	unsigned depth;
	bool failed;
	struct tide_error *err;
};

const char *tide_xml_attribute(const char *const *attributes, const char *name)
{
	for (; *attributes; attributes += 2) {
		if (!strcmp(attributes[0], name))
			return attributes[1];
	}
	return NULL;
}

/* After it was stopped, expat may still deliver what it has parsed already. */
static void stop(struct reader *r)
{
	r->failed = true;
	expat.StopParser(r->parser, XML_FALSE);
}

static void XMLCALL on_start(void *arg, const XML_Char *name, const XML_Char **attributes)
{
	struct reader *r = arg;

	if (r->failed)
		return;
	if (r->depth == TIDE_XML_DEPTH_MAX)
		tide_error_set(r->err, TIDE_E_REFUSED, "its elements nest more than %d deep", TIDE_XML_DEPTH_MAX);
	else if (r->handler->start(r->data, r->depth++, name, (const char *const *)attributes, r->err) == 0)
		return;
	stop(r);
}

static void XMLCALL on_end(void *arg, const XML_Char *name)
{
	struct reader *r = arg;

	if (!r->failed && r->handler->end(r->data, --r->depth, name, r->err) < 0)
		stop(r);
}

static void XMLCALL on_text(void *arg, const XML_Char *text, int len)
{
	struct reader *r = arg;

	if (!r->failed && r->handler->text && r->handler->text(r->data, text, (size_t)len, r->err) < 0)
		stop(r);
}

static void XMLCALL on_doctype(void *arg, const XML_Char *name, const XML_Char *system, const XML_Char *public,
                               int has_internal)
{
	struct reader *r = arg;

	if (r->failed)
		return;
	tide_error_set(r->err, TIDE_E_REFUSED, "it declares a document type, which lists of ranges do not need");
	stop(r);
}

static int fail(struct reader *r)
{
	unsigned long line = (unsigned long)expat.GetCurrentLineNumber(r->parser);
	enum XML_Error code = expat.GetErrorCode(r->parser);

	if (!r->failed && code == XML_ERROR_NO_MEMORY)
		return tide_error_set_nomem(r->err);
	if (!r->failed && (code == XML_ERROR_NO_ELEMENTS || code == XML_ERROR_UNCLOSED_TOKEN)) {
		tide_error_set(r->err, TIDE_E_REFUSED, "the XML is cut off: %s", expat.ErrorString(code));
		tide_error_hint(r->err, "the list is incomplete: let the program that prints it finish");
	} else if (!r->failed) {
		tide_error_set(r->err, TIDE_E_REFUSED, "not well-formed XML: %s", expat.ErrorString(code));
	}
	return tide_error_wrap(r->err, "Line %lu", line);
}

int tide_xml_parse(const char *text, size_t len, const struct tide_xml_handler *handler, void *data,
                   struct tide_error *err)
{
	struct tide_error own = TIDE_ERROR_INIT;
	struct reader r = { .handler = handler, .data = data, .err = &own };
	int rc = 0;

	if (tide_dynlib_load(&expat_library, err) < 0)
		return -1;
	r.parser = expat.ParserCreate(NULL);
	if (!r.parser)
		return tide_error_set_nomem(err);
	expat.SetUserData(r.parser, &r);
	expat.SetElementHandler(r.parser, on_start, on_end);
	expat.SetCharacterDataHandler(r.parser, on_text);
	expat.SetStartDoctypeDeclHandler(r.parser, on_doctype);
	for (size_t done = 0; rc == 0; done += PIECE) {
		size_t piece = len - done < PIECE ? len - done : PIECE;
		bool last = piece == len - done;

		if (expat.Parse(r.parser, text + done, (int)piece, last) != XML_STATUS_OK || r.failed)
			rc = fail(&r);
		if (last)
			break;
	}
	expat.ParserFree(r.parser);
	return rc < 0 ? tide_error_move(err, &own) : 0;
}
