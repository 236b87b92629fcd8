/*
 * Creating an image: the checks and the texts of qemu-img create, in its order, and the size that an overlay takes from
 * its backing image.
 */
#include "create.h"

#include <string.h>

#include "base/error.h"
#include "base/mem.h"
#include "base/range.h"
#include "base/strbuf.h"

#define SETTING_MAX 256u

/* The settings that are not the format's, separated from the rest; -b and -F take precedence over them. */
struct settings {
	char backing[SETTING_MAX], backing_format[SETTING_MAX];
	char *rest;
};

static int split_settings(const char *given, struct settings *out, struct tide_error *err)
{
	struct tide_strbuf rest = TIDE_STRBUF_INIT;
	char key[64], value[SETTING_MAX];
	int rc;

	for (const char *next = given; (rc = tide_driver_next_setting(&next, key, value, err)) > 0; given = next) {
		if (!strcmp(key, "backing_file"))
			memcpy(out->backing, value, sizeof(value));
		else if (!strcmp(key, "backing_fmt"))
			memcpy(out->backing_format, value, sizeof(value));
		else
			tide_strbuf_add(&rest, given, (size_t)(next - given));
	}
	if (rc == 0)
		out->rest = tide_strbuf_steal(&rest, err);
	tide_strbuf_release(&rest);
	return rc < 0 || !out->rest ? -1 : 0;
}

static int check_backing(const struct tide_image_create *args, struct tide_error *err)
{
	TIDE_AUTOFREE char *formats = NULL;

	if (!args->backing && args->backing_format)
		return tide_error_set(err, TIDE_E_REFUSED, "Backing format cannot be used without backing file");
	if (!args->backing)
		return 0;
	if (!*args->backing)
		return tide_error_set(err, TIDE_E_REFUSED, "Expected backing file name, got empty string");
	if (!strcmp(args->backing, args->path))
		return tide_error_set(err, TIDE_E_REFUSED,
		                      "Error: Trying to create an image with the same filename as the backing file");
	if (args->backing_format)
		return 0;
	formats = tide_image_format_list(0, err);
	if (!formats)
		return -1;
	tide_error_set(err, TIDE_E_REFUSED, "Backing file specified without backing format");
	return tide_error_hint(err, "add -F FORMAT, one of %s", formats);
}

static int backing_size(const struct tide_image_create *args, uint64_t *size, struct tide_error *err)
{
	TIDE_AUTOFREE char *path = tide_image_resolve(args->path, args->backing, err);
	TIDE_AUTOIMAGE struct tide_image *backing = NULL;
	struct tide_image_options options = { .path = path, .format = args->backing_format, .allow = args->allow };

	if (!path)
		return -1;
	if (tide_image_open(&options, &backing, err) < 0)
		return tide_error_hint(err, "Could not open backing image.");
	*size = tide_image_size(backing);
	return 0;
}

static int create(struct tide_target *target, const struct tide_image_create *args, struct tide_error *err)
{
	struct tide_driver_create create = {
		.size = args->size,
		.backing = args->backing,
		.backing_format = args->backing_format,
		.settings = args->settings,
		.allow = args->allow,
	};
	const char *format = args->format ? args->format : tide_image_raw_driver()->name;
	const struct tide_image_driver *driver = tide_image_find_driver(format);

	if (!driver)
		return tide_error_set(err, TIDE_E_REFUSED, "Unknown file format '%s'", format);
	if (args->backing && !driver->has_backing)
		return tide_error_set(err, TIDE_E_REFUSED, "Backing file not supported for file format '%s'", format);
	if (check_backing(args, err) < 0)
		return -1;
	if (args->backing) {
		uint64_t size = 0;

		if (backing_size(args, &size, err) < 0)
			return -1;
		if (!args->has_size)
			create.size = size;
	} else if (!args->has_size) {
		return tide_error_set(err, TIDE_E_REFUSED, "Image creation needs a size parameter");
	}
	if (create.size > INT64_MAX - 511)
		return tide_error_set(err, TIDE_E_REFUSED, "Image size must be less than 8 EiB!");
	create.size = tide_range_align_up(create.size, 512);
	return tide_target_create(target, args->path, format, &create, NULL, NULL, err);
}

int tide_create_image(struct tide_target *target, const struct tide_image_create *args, struct tide_error *err)
{
	struct tide_image_create all = *args;
	struct settings found = { 0 };

	if (!args->settings)
		return create(target, args, err);
	if (split_settings(args->settings, &found, err) < 0)
		return -1;
	char *rest TIDE_AUTOFREE = found.rest;
	if (!all.backing && found.backing[0])
		all.backing = found.backing;
	if (!all.backing_format && found.backing_format[0])
		all.backing_format = found.backing_format;
	all.settings = rest;
	return create(target, &all, err);
}
