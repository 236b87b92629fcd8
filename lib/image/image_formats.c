/*
 * The table of the drivers, made from formats.def, and what others ask of it: a driver by its name, by the scheme of
 * a URI or by how a file begins, and the lists of names that messages and programs show.
 */
#include "image_formats.h"

#include <string.h>

#include "base/error.h"
#include "base/mem.h"
#include "base/strbuf.h"

/* The unit tests build this file with a list of their own, which has formats for tests in it. */
#ifndef TIDE_FORMATS
#define TIDE_FORMATS "../../formats/formats.def"
#endif

static const struct tide_image_driver *const drivers[] = {
#define TIDE_FORMAT(driver) &driver,
#include TIDE_FORMATS
#undef TIDE_FORMAT
};

const struct tide_image_driver *tide_image_find_driver(const char *format)
{
	for (size_t i = 0; i < TIDE_ARRAY_SIZE(drivers); i++) {
		if (!strcmp(drivers[i]->name, format))
			return drivers[i];
	}
	return NULL;
}

const struct tide_image_driver *tide_image_probe_driver(const uint8_t *head, size_t len)
{
	for (size_t i = 0; i < TIDE_ARRAY_SIZE(drivers); i++) {
		if (drivers[i]->probe && drivers[i]->probe(head, len))
			return drivers[i];
	}
	return NULL;
}

const struct tide_image_driver *tide_image_judge(const uint8_t *head, const uint8_t *tail, size_t len,
                                                 const char **foreign)
{
	const struct tide_image_driver *driver = tide_image_probe_driver(head, len);

	*foreign = tide_driver_foreign(head, len);
	if (!*foreign && driver && driver->is_raw)
		*foreign = tide_driver_foreign_end(tail, len);
	return driver;
}

const struct tide_image_driver *tide_image_raw_driver(void)
{
	size_t i = 0;

	while (!drivers[i]->is_raw)
		i++;
	return drivers[i];
}

bool tide_image_is_raw_format(const char *format)
{
	const struct tide_image_driver *driver = format ? tide_image_find_driver(format) : NULL;

	return driver && driver->is_raw;
}

/* ---- URIs --------------------------------------------------------------------------- */

static bool has_scheme(const struct tide_image_driver *driver, const char *scheme, size_t len)
{
	for (const char *const *s = driver->schemes; s && *s; s++) {
		if (strlen(*s) == len && !memcmp(*s, scheme, len))
			return true;
	}
	return false;
}

const struct tide_image_driver *tide_image_uri_driver(const char *name)
{
	size_t len = strcspn(name, ":/");

	for (size_t i = 0; name[len] == ':' && i < TIDE_ARRAY_SIZE(drivers); i++) {
		if (has_scheme(drivers[i], name, len))
			return drivers[i];
	}
	return NULL;
}

bool tide_image_is_uri(const char *name)
{
	return tide_image_uri_driver(name) != NULL;
}

/* As RFC 3986 has it; a path whose first directory ends with a colon looks the same. */
static size_t scheme_length(const char *name)
{
	static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", more[] = "0123456789+-.";
	size_t len = strspn(name, letters);

	while (len && name[len] && (strchr(more, name[len]) || strchr(letters, name[len])))
		len++;
	return strncmp(name + len, "://", 3) ? 0 : len;
}

int tide_image_check_scheme(const char *name, struct tide_error *err)
{
	size_t len = scheme_length(name);
	struct tide_strbuf schemes = TIDE_STRBUF_INIT;
	TIDE_AUTOFREE char *list = NULL;

	if (len == 0 || tide_image_is_uri(name))
		return 0;
	for (size_t i = 0; tide_image_scheme(i); i++)
		tide_strbuf_addf(&schemes, "%s%s", i ? ", " : "", tide_image_scheme(i));
	list = tide_strbuf_steal(&schemes, err);
	if (!list)
		return -1;
	tide_error_set(err, TIDE_E_REFUSED, "Unknown URI scheme '%.*s'", (int)len, name);
	return tide_error_hint(err, "this version opens URIs of the schemes %s; a file of this name is './%s'", list,
	                       name);
}

const char *tide_image_scheme(size_t i)
{
	for (size_t d = 0; d < TIDE_ARRAY_SIZE(drivers); d++) {
		for (const char *const *s = drivers[d]->schemes; s && *s; s++) {
			if (i-- == 0)
				return *s;
		}
	}
	return NULL;
}

/* ---- lists -------------------------------------------------------------------------- */

/* formats.def has raw last, because of the probing; a reader wants the simplest first. */
const char *tide_image_format(size_t i)
{
	size_t n = TIDE_ARRAY_SIZE(drivers);

	return i < n ? drivers[n - 1 - i]->name : NULL;
}

unsigned tide_image_format_uses(const char *format)
{
	const struct tide_image_driver *driver = tide_image_find_driver(format);

	if (!driver)
		return 0;
	return (driver->open ? TIDE_FORMAT_FILE : 0) | (driver->open_uri ? TIDE_FORMAT_URI : 0) |
	       (driver->create ? TIDE_FORMAT_CREATE : 0) | (driver->has_backing ? TIDE_FORMAT_OVERLAY : 0);
}

const char *tide_image_format_setting(const char *format, size_t i)
{
	const struct tide_image_driver *driver = tide_image_find_driver(format);

	for (const char *const *s = driver ? driver->settings : NULL; s && *s; s++) {
		if (i-- == 0)
			return *s;
	}
	return NULL;
}

char *tide_image_format_list(unsigned uses, struct tide_error *err)
{
	struct tide_strbuf sb = TIDE_STRBUF_INIT;
	const char *name;

	for (size_t i = 0; (name = tide_image_format(i)); i++) {
		if ((tide_image_format_uses(name) & uses) == uses)
			tide_strbuf_addf(&sb, "%s%s", sb.len ? ", " : "", name);
	}
	return tide_strbuf_steal(&sb, err);
}
