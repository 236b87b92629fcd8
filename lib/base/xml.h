/*
 * XML, read with expat. No other file calls expat.
 *
 * For the small lists that other programs print, which come from files that cannot be trusted. A document
 * type is refused, and with it every entity but the five that XML defines, so that reading neither expands
 * nor fetches anything. Elements nest at most TIDE_XML_DEPTH_MAX deep. A text that ends before its root
 * element does is an error.
 *
 * Strings that a callback receives are UTF-8 and valid during the call.
 */
#ifndef TIDE_XML_H
#define TIDE_XML_H

#include "compiler.h"
#include "tidemark.h"

#define TIDE_XML_DEPTH_MAX 64

/* A callback ends the reading with -1 and an error, which gets the line number before its message. */
struct tide_xml_handler {
	/* attributes: name, value, name, value, ... NULL.  depth: 0 for the root. */
	int (*start)(void *data, unsigned depth, const char *name, const char *const *attributes,
	             struct tide_error *err);
	int (*end)(void *data, unsigned depth, const char *name, struct tide_error *err);
	int (*text)(void *data, const char *text, size_t len, struct tide_error *err); /* in pieces; may be NULL */
};

int tide_xml_parse(const char *text, size_t len, const struct tide_xml_handler *handler, void *data,
                   struct tide_error *err);

/* NULL when the element has no attribute of that name. */
const char *tide_xml_attribute(const char *const *attributes, const char *name);

#endif
