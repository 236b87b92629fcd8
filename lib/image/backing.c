/*
 * Judges the names of other files that an image holds: unwraps "file:" and "json:" names, resolves
 * symbolic links, and refuses what the caller's flags do not allow (backing.h). The path that was
 * judged, with symbolic links resolved, is the path that is opened.
 */
#include "backing.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/error.h"
#include "base/json.h"
#include "base/mem.h"
#include "base/sysio.h"
#include "image_formats.h"

/* The path and the format in a name, without its wrapping; both may be NULL. */
struct plain {
	char *path, *format;
};

static void plain_release(struct plain *plain)
{
	free(plain->path);
	free(plain->format);
}

void tide_backing_release(struct tide_backing *backing)
{
	free(backing->path);
	free(backing->real);
	free(backing->format);
	*backing = (struct tide_backing)TIDE_BACKING_INIT;
}

bool tide_backing_has_protocol(const char *name)
{
	return name[strcspn(name, ":/")] == ':';
}

char *tide_backing_join(const char *path, const char *name, struct tide_error *err)
{
	const char *slash = strrchr(path, '/');

	if (name[0] == '/' || !slash || tide_image_is_uri(name))
		return tide_mem_strdup(name, err);
	return tide_mem_printf(err, "%.*s/%s", (int)(slash - path), path, name);
}

/* ---- json: ------------------------------------------------------------------------- */

static bool is_word(const char *word, const char *const *list)
{
	for (; *list; list++) {
		if (!strcmp(word, *list))
			return true;
	}
	return false;
}

/* Options for how a file is opened, which do not change what is read. */
static bool is_harmless(const char *key)
{
	static const char *const keys[] = {
		"node-name", "read-only", "auto-read-only", "discard",        "detect-zeroes", "locking",
		"aio",       "cache",     "cache.direct",   "cache.no-flush", "force-share",   NULL
	};

	return is_word(key, keys);
}

static int take_string(char **to, const char *key, const struct tide_json *json, struct tide_error *err)
{
	const char *text;

	if (!tide_json_get_string(json, &text, NULL))
		return tide_error_set(err, TIDE_E_UNSUPPORTED, "'%s' is not a string", key);
	if (*to)
		return tide_error_set(err, TIDE_E_CORRUPT, "'%s' is given twice", key);
	*to = tide_mem_strdup(text, err);
	return *to ? 0 : -1;
}

bool tide_backing_is_file_driver(const char *driver)
{
	static const char *const drivers[] = { "file", "host_device", NULL };

	return is_word(driver, drivers);
}

static int take_protocol(const char *key, const struct tide_json *json, struct tide_error *err)
{
	TIDE_AUTOFREE char *driver = NULL;

	if (take_string(&driver, key, json, err) < 0)
		return -1;
	if (tide_backing_is_file_driver(driver))
		return 0;
	return tide_error_set(err, TIDE_E_UNSUPPORTED, "it needs the driver '%s', which this version does not support",
	                      driver);
}

/* {"driver": "file", "filename": "…"} */
static int take_file(struct plain *plain, const struct tide_json *file, struct tide_error *err)
{
	const struct tide_json *value;
	const void *place = NULL;
	const char *key;
	int rc = 0;

	if (tide_json_kind(file) != TIDE_JSON_OBJECT)
		return tide_error_set(err, TIDE_E_UNSUPPORTED, "'file' is not an object");
	while (rc == 0 && tide_json_next_member(file, &place, &key, &value)) {
		if (!strcmp(key, "driver"))
			rc = take_protocol(key, value, err);
		else if (!strcmp(key, "filename"))
			rc = take_string(&plain->path, key, value, err);
		else if (!is_harmless(key))
			rc = tide_error_set(err, TIDE_E_UNSUPPORTED,
			                    "it needs the option '%s', which this version does not support", key);
	}
	return rc;
}

/* The driver at the top: a format, or the driver of a plain file, which does not determine the format. */
static int take_driver(struct plain *plain, const struct tide_json *json, struct tide_error *err)
{
	const struct tide_image_driver *driver;
	const char *name;

	driver = tide_json_get_string(json, &name, NULL) ? tide_image_find_driver(name) : NULL;
	if (!driver || !driver->open)
		return take_protocol("driver", json, err);
	return take_string(&plain->format, "driver", json, err);
}

static int take_member(struct plain *plain, const char *key, const struct tide_json *value, struct tide_error *err)
{
	bool flat = !strncmp(key, "file.", 5);

	if (!strcmp(key, "driver"))
		return take_driver(plain, value, err);
	if (!strcmp(key, "file"))
		return take_file(plain, value, err);
	if (!strcmp(key, "file.driver"))
		return take_protocol(key, value, err);
	if (!strcmp(key, "file.filename") || !strcmp(key, "filename"))
		return take_string(&plain->path, key, value, err);
	if (is_harmless(flat ? key + 5 : key))
		return 0;
	return tide_error_set(err, TIDE_E_UNSUPPORTED, "it needs the option '%s', which this version does not support",
	                      key);
}

static int take_json(struct plain *plain, const char *text, struct tide_error *err)
{
	TIDE_AUTOJSON struct tide_json *json = tide_json_parse_qemu(text, strlen(text), err);
	const struct tide_json *value;
	const void *place = NULL;
	const char *key;

	if (!json)
		return -1;
	if (tide_json_kind(json) != TIDE_JSON_OBJECT)
		return tide_error_set(err, TIDE_E_CORRUPT, "it is not an object");
	while (tide_json_next_member(json, &place, &key, &value)) {
		if (take_member(plain, key, value, err) < 0)
			return -1;
	}
	return plain->path ? 0 : tide_error_set(err, TIDE_E_CORRUPT, "it has no file name");
}

/* ---- judging ----------------------------------------------------------------------- */

static int unwrap(struct plain *plain, const char *name, struct tide_error *err)
{
	if (!strncmp(name, "json:", 5))
		return take_json(plain, name + 5, err);
	if (tide_image_is_uri(name)) {
		plain->path = tide_mem_strdup(name, err);
		return plain->path ? 0 : -1;
	}
	if (strncmp(name, "file:", 5)) {
		tide_error_set(err, TIDE_E_UNSUPPORTED,
		               "it needs the driver '%.*s', which this version does not support",
		               (int)strcspn(name, ":"), name);
		return tide_error_hint(err, "to name a file, write './%s'", name);
	}
	plain->path = tide_mem_strdup(name + 5, err);
	return plain->path ? 0 : -1;
}

/* Is path the directory or below it? Both are without symbolic links. */
static bool is_below(const char *path, const char *dir)
{
	size_t n = strlen(dir);

	return !strcmp(dir, "/") || (!strncmp(path, dir, n) && (path[n] == '\0' || path[n] == '/'));
}

static bool climbs(const char *name)
{
	for (const char *p = name; *p; p += strcspn(p, "/"), p += *p == '/') {
		if (strcspn(p, "/") == 2 && p[0] == '.' && p[1] == '.')
			return true;
	}
	return name[0] == '/';
}

/*
 * Fills in real and outside. A path to a file that does not exist is judged by its directory, and if that does not
 * exist either, by the words of the path. A path that nobody can resolve is not followed.
 */
static int judge(struct tide_backing *backing, const char *image, const char *name, struct tide_error *err)
{
	TIDE_AUTOFREE char *home = NULL;
	TIDE_AUTOFREE char *dir = NULL;

	backing->outside = true;
	if (tide_sysio_real_path(backing->path, &backing->real, err) < 0 ||
	    tide_sysio_real_dir(image, &home, err) < 0 ||
	    tide_sysio_real_dir(backing->real ? backing->real : backing->path, &dir, err) < 0)
		return -1;
	backing->outside = !home || (dir ? !is_below(dir, home) : climbs(name));
	return 0;
}

static int refuse(struct tide_error *err, const char *image, const char *what, const char *name, const char *why,
                  const char *word)
{
	tide_error_set(err, TIDE_E_REFUSED, "The %s '%s' that '%s' names %s", what, name, image, why);
	return tide_error_hint(err, "use --allow-backing=%s if you trust '%s'", word, image);
}

/* A colon makes the name look like a protocol, but may also be part of a file's name. */
static int refuse_wrapped(struct tide_error *err, const char *image, const char *what, const char *name)
{
	const char *why = "is not a plain path";

	if (!strncmp(name, "json:", 5) || !strncmp(name, "file:", 5) || strstr(name, "://"))
		return refuse(err, image, what, name, why, "protocol");
	tide_error_set(err, TIDE_E_REFUSED, "The %s '%s' that '%s' names %s", what, name, image, why);
	return tide_error_hint(err,
	                       "to name a file, write './%s'; otherwise use --allow-backing=protocol if you trust '%s'",
	                       name, image);
}

/*
 * A relative name has a second reading, QEMU's: relative to the directory of a symbolic link to the image, or to the
 * current directory if it is not a plain path. Two files: nobody can know which one is meant.
 */
static int check_reading(struct tide_backing *backing, const char *image, const char *also, const char *what,
                         const char *name, bool wrapped, struct tide_error *err)
{
	TIDE_AUTOFREE char *other = NULL;
	struct stat a, b;
	bool have;

	if (name[0] == '/' || (!wrapped && (!also || !strcmp(also, image))))
		return 0;
	other = wrapped ? tide_mem_strdup(name, err) : tide_backing_join(also, name, err);
	if (!other)
		return -1;
	have = stat(backing->path, &a) == 0;
	if (stat(other, &b) < 0)
		return 0;
	if (have && (a.st_dev != b.st_dev || a.st_ino != b.st_ino)) {
		tide_error_set(err, TIDE_E_REFUSED, "The %s '%s' that '%s' names could be '%s' or '%s'", what, name,
		               image, backing->path, other);
		return tide_error_hint(
		        err,
		        wrapped ? "the second is in the current directory, where QEMU looks: change to another one, or "
		                  "record an absolute path"
		                : "the second is beside the symbolic link, where QEMU looks: specify the image by its "
		                  "own path, or record an absolute path");
	}
	if (!have) {
		free(backing->path);
		backing->path = other;
		other = NULL;
	}
	return 0;
}

int tide_backing_find_opened(const char *image, const char *also, const char *what, const char *name, unsigned allow,
                             struct tide_backing *out, struct tide_error *err)
{
	TIDE_CLEANUP(plain_release) struct plain plain = { NULL, NULL };
	bool wrapped = tide_backing_has_protocol(name);

	*out = (struct tide_backing)TIDE_BACKING_INIT;
	if (wrapped && !(allow & TIDE_ALLOW_PROTOCOL))
		return refuse_wrapped(err, image, what, name);
	if (wrapped && unwrap(&plain, name, err) < 0)
		return tide_error_wrap(err, "The %s '%s' that '%s' names cannot be followed", what, name, image);
	out->path = tide_backing_join(image, plain.path ? plain.path : name, err);
	if (!out->path)
		return -1;
	if (tide_image_is_uri(name))
		return 0;
	if (check_reading(out, image, also, what, plain.path ? plain.path : name, wrapped, err) < 0) {
		tide_backing_release(out);
		return -1;
	}
	if (judge(out, image, plain.path ? plain.path : name, err) < 0) {
		tide_backing_release(out);
		return -1;
	}
	if (out->outside && !(allow & TIDE_ALLOW_OUTSIDE)) {
		tide_backing_release(out);
		return refuse(err, image, what, name, "lies outside the directory of the image", "outside");
	}
	out->format = plain.format;
	plain.format = NULL;
	return 0;
}

int tide_backing_find(const char *image, const char *what, const char *name, unsigned allow, struct tide_backing *out,
                      struct tide_error *err)
{
	return tide_backing_find_opened(image, NULL, what, name, allow, out, err);
}
