/*
 * Decodes blockdev-add's tree of drivers.  The formats and their options come from the drivers (image/driver.h); this
 * file knows the rest of QEMU's schema: a format over a file or over another driver.
 */
#include "qmp_blockdev.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/mem.h"
#include "image/backing.h"
#include "image/image_formats.h"

/* The members found so far. */
struct parts {
	const char *node_name, *filename;
	const struct tide_image_driver *driver;   /* of the tree */
	const struct tide_image_driver *protocol; /* the driver whose options lead to the image; NULL: filename does */
	const struct tide_json *tree;             /* the object that holds them */
	const struct tide_driver_option *options; /* those that are being decoded */
};

#define AT(member) offsetof(struct parts, member)
#define STRING(n, req, member)                                                                                 \
	{                                                                                                      \
		.name = n, .kind = TIDE_QMP_STRING, .required = req, .to = AT(member), .has = TIDE_QMP_NOWHERE \
	}
#define OTHER(n, fn)                                                                                                  \
	{                                                                                                             \
		.name = n, .kind = TIDE_QMP_OTHER, .required = true, .to = TIDE_QMP_NOWHERE, .has = TIDE_QMP_NOWHERE, \
		.decode = fn                                                                                          \
	}
#define END                          \
	{                            \
		.kind = TIDE_QMP_END \
	}

/* ---- a driver's own options --------------------------------------------------------- */

/* Refuses an unknown word, or a value of another type, as QEMU does. */
static int refuse_word(const struct tide_qmp_path *path, const struct tide_json *json, struct tide_error *err)
{
	static const char *const none[] = { NULL };
	int place;

	return tide_qmp_decode_word(path, none, json, &place, err);
}

static const struct tide_driver_option *find_option(const struct tide_driver_option *options, const char *name)
{
	while (strcmp(options->name, name))
		options++;
	return options;
}

static int refuse_option(const struct tide_qmp_path *path, const struct tide_json *json, void *to,
                         struct tide_error *err)
{
	const struct parts *parts = to;
	const char *hint = find_option(parts->options, path->name)->hint;

	tide_error_set(err, TIDE_E_UNSUPPORTED, "The option '%s' of driver '%s' is not supported", path->name,
	               parts->protocol->name);
	return hint ? tide_error_hint(err, "%s", hint) : -1;
}

static int decode_variant(const struct tide_qmp_path *path, const struct tide_json *json, void *to,
                          struct tide_error *err);

static struct tide_qmp_field field_of(const struct tide_driver_option *option)
{
	return (struct tide_qmp_field){
		.name = option->name,
		.kind = option->unsupported || option->variants ? TIDE_QMP_OTHER : TIDE_QMP_STRING,
		.required = option->required,
		.to = TIDE_QMP_NOWHERE,
		.has = TIDE_QMP_NOWHERE,
		.decode = option->unsupported ? refuse_option : decode_variant,
	};
}

/* Checks an object that has the fields `before`, then the options, and nothing else. */
static int decode_options(const struct tide_qmp_path *path, const struct tide_qmp_field *before,
                          const struct tide_driver_option *options, const struct tide_json *object, struct parts *parts,
                          struct tide_error *err)
{
	TIDE_AUTOFREE struct tide_qmp_field *fields = NULL;
	const struct tide_driver_option *outer = parts->options;
	size_t n_before = 0, n = 0;
	int rc;

	while (before[n_before].kind != TIDE_QMP_END)
		n_before++;
	while (options[n].name)
		n++;
	fields = tide_mem_alloc(n_before + n + 1, sizeof(*fields), err);
	if (!fields)
		return -1;
	memcpy(fields, before, n_before * sizeof(*fields));
	for (size_t i = 0; i < n; i++)
		fields[n_before + i] = field_of(&options[i]);
	fields[n_before + n] = (struct tide_qmp_field)END;
	parts->options = options;
	rc = tide_qmp_decode(path, fields, object, NULL, parts, err);
	parts->options = outer;
	return rc;
}

/* An object whose member "type" says which options it has. */
static int decode_variant(const struct tide_qmp_path *path, const struct tide_json *json, void *to,
                          struct tide_error *err)
{
	static const struct tide_qmp_field type_fields[] = {
		{ .name = "type", .kind = TIDE_QMP_STRING, .to = TIDE_QMP_NOWHERE, .has = TIDE_QMP_NOWHERE },
		END,
	};
	struct parts *parts = to;
	const struct tide_driver_variant *variant = find_option(parts->options, path->name)->variants;
	struct tide_qmp_path type_path = { path, "type", 0 };
	const struct tide_json *type;
	const char *text;

	if (tide_json_kind(json) != TIDE_JSON_OBJECT)
		return tide_qmp_decode_bad_type(path, "object", err);
	type = tide_json_member(json, "type");
	if (!type)
		return tide_qmp_decode_missing(&type_path, err);
	if (!tide_json_get_string(type, &text, NULL))
		return refuse_word(&type_path, type, err);
	while (variant->type && strcmp(variant->type, text))
		variant++;
	if (!variant->type)
		return refuse_word(&type_path, type, err);
	if (!variant->options)
		return tide_error_set(err, TIDE_E_UNSUPPORTED, "A %s of type '%s' is not supported", path->name, text);
	return decode_options(path, type_fields, variant->options, json, parts, err);
}

/* ---- drivers ------------------------------------------------------------------------ */

static const struct tide_image_driver *find_driver(const struct tide_json *json)
{
	const char *name;

	return json && tide_json_get_string(json, &name, NULL) ? tide_image_find_driver(name) : NULL;
}

/* The driver of a tree whose own options lead to the image; NULL: it has a file below it, or should have. */
static const struct tide_image_driver *find_protocol(const struct tide_json *object)
{
	const struct tide_image_driver *driver = object ? find_driver(tide_json_member(object, "driver")) : NULL;

	if (!driver || !driver->options || (driver->open && tide_json_member(object, "file")))
		return NULL;
	return driver;
}

static int decode_driver(const struct tide_qmp_path *path, const struct tide_json *json, void *to,
                         struct tide_error *err)
{
	struct parts *parts = to;

	parts->driver = find_driver(json);
	return parts->driver && (parts->driver->open || parts->driver->options) ? 0 : refuse_word(path, json, err);
}

static int decode_file_driver(const struct tide_qmp_path *path, const struct tide_json *json, void *to,
                              struct tide_error *err)
{
	const char *name;

	if (tide_json_get_string(json, &name, NULL) &&
	    (((struct parts *)to)->protocol || tide_backing_is_file_driver(name)))
		return 0;
	return refuse_word(path, json, err);
}

static int decode_file(const struct tide_qmp_path *path, const struct tide_json *json, void *to, struct tide_error *err)
{
	static const struct tide_qmp_field protocol_fields[] = { OTHER("driver", decode_file_driver), END };
	static const struct tide_qmp_field file_fields[] = {
		OTHER("driver", decode_file_driver),
		STRING("filename", true, filename),
		END,
	};
	struct parts *parts = to;

	if (tide_json_kind(json) != TIDE_JSON_OBJECT)
		return tide_qmp_decode_bad_type(path, "object", err);
	parts->protocol = find_protocol(json);
	parts->tree = json;
	if (parts->protocol)
		return decode_options(path, protocol_fields, parts->protocol->options, json, parts, err);
	return tide_qmp_decode(path, file_fields, json, NULL, to, err);
}

/* ---- the image ---------------------------------------------------------------------- */

static int make_uri(const struct parts *parts, struct tide_qmp_blockdev *out, struct tide_error *err)
{
	out->is_export = true;
	return parts->protocol->options_uri(parts->tree, &out->path, &out->socket, err);
}

/* The name of a file is a path, whatever it looks like. */
static int make_path(const struct parts *parts, struct tide_qmp_blockdev *out, struct tide_error *err)
{
	bool looks_like_uri = tide_image_is_uri(parts->filename) || tide_image_check_scheme(parts->filename, NULL) < 0;

	out->path = tide_mem_printf(err, "%s%s", looks_like_uri ? "./" : "", parts->filename);
	return out->path ? 0 : -1;
}

int tide_qmp_blockdev_decode(const struct tide_json *object, struct tide_qmp_blockdev *out, struct tide_error *err)
{
	static const struct tide_qmp_field protocol_fields[] = {
		OTHER("driver", decode_driver),
		STRING("node-name", false, node_name),
		END,
	};
	static const struct tide_qmp_field format_fields[] = {
		OTHER("driver", decode_driver),
		STRING("node-name", false, node_name),
		OTHER("file", decode_file),
		END,
	};
	struct parts parts = { .protocol = find_protocol(object), .tree = object };
	int rc = parts.protocol ? decode_options(NULL, protocol_fields, parts.protocol->options, object, &parts, err)
	                        : tide_qmp_decode(NULL, format_fields, object, NULL, &parts, err);

	if (rc < 0)
		return -1;
	out->node_name = parts.node_name;
	out->format = parts.driver->name;
	return parts.protocol ? make_uri(&parts, out, err) : make_path(&parts, out, err);
}

void tide_qmp_blockdev_release(struct tide_qmp_blockdev *blockdev)
{
	free(blockdev->path);
	*blockdev = (struct tide_qmp_blockdev)TIDE_QMP_BLOCKDEV_INIT;
}
