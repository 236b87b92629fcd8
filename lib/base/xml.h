/*
 * XML: the door to expat.
 *
 * For the small lists that other programs print, which come from files nobody vouches for: a
 * document type is refused, and with it every entity but the five that XML has, so that nothing
 * grows while it is read and nothing else is fetched.  Elements nest TIDE_XML_DEPTH_MAX deep at most.
 * What breaks off before its root element ends is an error.
 *
 * Strings that a callback gets are UTF-8 and last as long as the call.
 */
#ifndef TIDE_XML_H
#define TIDE_XML_H

#include "compiler.h"
#include "tidemark.h"

#define TIDE_XML_DEPTH_MAX 64

/* -1 and an error end the reading; the line is put before the message. */
struct tide_xml_handler {
	/* attributes: name, value, name, value, ... NULL.  depth: 0 for the root. */
	int (*start)(void *data, unsigned depth, const char *name, const char *const *attributes,
	             struct tide_error *err);
	int (*end)(void *data, unsigned depth, const char *name, struct tide_error *err);
	int (*text)(void *data, const char *text, size_t len, struct tide_error *err); /* in pieces; may be NULL */
};

int tide_xml_parse(const char *text, size_t len, const struct tide_xml_handler *handler, void *data,
                   struct tide_error *err);

/* NULL when the element has none of that name. */
const char *tide_xml_attribute(const char *const *attributes, const char *name);

#endif
