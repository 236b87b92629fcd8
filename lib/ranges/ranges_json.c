/*
 * Reads lists of JSON objects. The members of an object show which program printed it, and so which of them
 * mark a range as changed.
 */
#include <string.h>

#include "base/error.h"
#include "base/json.h"
#include "base/range.h"
#include "ranges.h"

static int get_number(const struct tide_json *element, const char *key, uint64_t *v, struct tide_error *err)
{
	const struct tide_json *member = tide_json_member(element, key);

	if (!member)
		return tide_error_set(err, TIDE_E_REFUSED, "it has no \"%s\"", key);
	if (!tide_json_get_uint(member, v))
		return tide_error_set(err, TIDE_E_REFUSED, "\"%s\" is not an integer from 0 to 2^63 - 1", key);
	return 0;
}

static int get_flag(const struct tide_json *element, const char *key, bool *v, struct tide_error *err)
{
	const struct tide_json *member = tide_json_member(element, key);

	if (!member || !tide_json_get_bool(member, v))
		return tide_error_set(err, TIDE_E_REFUSED, "\"%s\" is not true or false", key);
	return 0;
}

/* bitmap-dump, and imageio with context=dirty: {"start", "length", "dirty"}. */
static int is_dirty_flagged(const struct tide_json *element, bool *written, struct tide_error *err)
{
	return get_flag(element, "dirty", written, err);
}

/* imageio with context=zero: everything that the image itself holds. */
static int is_no_hole(const struct tide_json *element, bool *written, struct tide_error *err)
{
	bool zero, hole;

	if (get_flag(element, "zero", &zero, err) < 0 || get_flag(element, "hole", &hole, err) < 0)
		return -1;
	*written = !hole;
	return 0;
}

static int get_map_flags(const struct tide_json *element, bool *data, bool *zero, bool *present, bool *own,
                         struct tide_error *err)
{
	uint64_t depth;

	if (get_number(element, "depth", &depth, err) < 0 || get_flag(element, "data", data, err) < 0 ||
	    get_flag(element, "zero", zero, err) < 0)
		return -1;
	*present = *data || *zero; /* QEMU before 6.1 does not print "present" */
	if (tide_json_member(element, "present") && get_flag(element, "present", present, err) < 0)
		return -1;
	*own = depth == 0;
	return 0;
}

/* qemu-img map: the ranges that the top image itself defines. */
static int is_mapped(const struct tide_json *element, bool *written, struct tide_error *err)
{
	bool data, zero, present, own;

	if (get_map_flags(element, &data, &zero, &present, &own, err) < 0)
		return -1;
	*written = own && present;
	/*
	 * With x-dirty-bitmap, qemu-img map prints dirty ranges as holes and nothing else marks them. An
	 * NBD server may also have holes that do not read as zeroes, which look exactly the same.
	 */
	if (data || zero || present)
		return 0;
	tide_error_set(err, TIDE_E_REFUSED,
	               "it is neither data nor zeroes, as in qemu-img map's output of an x-dirty-bitmap "
	               "(nbdinfo --map=qemu:dirty-bitmap:NAME --json is unambiguous)");
	return tide_error_hint(err, "if it is one, specify it: --input-format qemu-img-map-dirty");
}

/* The same for x-dirty-bitmap, where "dirty" replaces "hole" among NBD's flags. */
static int is_mapped_dirty(const struct tide_json *element, bool *written, struct tide_error *err)
{
	bool data, zero, present, own;

	if (get_map_flags(element, &data, &zero, &present, &own, err) < 0)
		return -1;
	if (zero || !own)
		return tide_error_set(err, TIDE_E_REFUSED,
		                      "\"zero\" is true or \"depth\" not 0: this is not a map of an x-dirty-bitmap");
	*written = !data;
	return 0;
}

/* nbdinfo --map: the contexts qemu:dirty-bitmap:*, base:allocation and qemu:allocation-depth. */
static int is_described(const struct tide_json *element, bool *written, struct tide_error *err)
{
	const char *text = NULL;
	const struct tide_json *member = tide_json_member(element, "description");
	uint64_t type;

	if (get_number(element, "type", &type, err) < 0)
		return -1;
	if (!member || !tide_json_get_string(member, &text, NULL))
		return tide_error_set(err, TIDE_E_REFUSED, "it has no \"description\" that is a string");
	if (tide_ranges_is_written(text, written))
		return 0;
	return tide_error_set(err, TIDE_E_REFUSED, "unknown \"description\" '%s'", text);
}

/* rbd diff: every listed range changed, whether it still exists or not. */
static int is_listed(const struct tide_json *element, bool *written, struct tide_error *err)
{
	const struct tide_json *exists = tide_json_member(element, "exists");
	const char *text;
	bool flag;

	*written = true;
	if (tide_json_get_bool(exists, &flag) ||
	    (tide_json_get_string(exists, &text, NULL) && (strcmp(text, "true") == 0 || strcmp(text, "false") == 0)))
		return 0;
	return tide_error_set(err, TIDE_E_REFUSED, "\"exists\" is not true or false");
}

struct form {
	const char *name;
	const char *start, *mark; /* the members that identify this form */
	bool asked;               /* only when it was requested by name */
	bool goes_through;        /* tide_ranges_collector */
	int (*is_written)(const struct tide_json *element, bool *written, struct tide_error *err);
};

static const struct form forms[] = {
	{ "dump", "start", "dirty", false, true, is_dirty_flagged },
	{ "imageio", "start", "dirty", false, true, is_dirty_flagged },
	{ "qemu-img-map-dirty", "start", "depth", true, true, is_mapped_dirty },
	{ "qemu-img-map", "start", "depth", false, true, is_mapped },
	{ "imageio", "start", "hole", false, true, is_no_hole },
	{ "nbdinfo", "offset", "type", false, true, is_described },
	{ "rbd-diff", "offset", "exists", false, false, is_listed },
};

static bool is_form(const struct form *form, const char *asked, const struct tide_json *element)
{
	if (asked ? strcmp(asked, form->name) : form->asked)
		return false;
	return tide_json_member(element, form->start) && tide_json_member(element, form->mark);
}

struct collecting {
	struct tide_ranges_collector *c;
	const char *asked; /* the requested format, or NULL */
};

static int collect_element(void *data, const struct tide_json *element, struct tide_error *err)
{
	const struct collecting *to = data;
	uint64_t off, len;
	bool written;

	if (tide_json_kind(element) != TIDE_JSON_OBJECT)
		return tide_error_set(err, TIDE_E_REFUSED, "it is %s, not an object",
		                      tide_json_kind_name(tide_json_kind(element)));
	for (size_t i = 0; i < TIDE_ARRAY_SIZE(forms); i++) {
		if (!is_form(&forms[i], to->asked, element))
			continue;
		if (get_number(element, forms[i].start, &off, err) < 0 ||
		    get_number(element, "length", &len, err) < 0 || forms[i].is_written(element, &written, err) < 0)
			return -1;
		to->c->goes_through = forms[i].goes_through;
		return (written ? tide_ranges_collect : tide_ranges_skip)(to->c, off, len, err);
	}
	if (to->asked)
		return tide_error_set(err, TIDE_E_REFUSED, "it is not a range as %s has it", to->asked);
	return tide_error_set(err, TIDE_E_REFUSED,
	                      "it is not a range as bitmap-dump, nbdinfo --map, qemu-img map or rbd diff print it");
}

int tide_ranges_read_json(struct tide_ranges_input *in, struct tide_ranges_collector *c, struct tide_error *err)
{
	struct collecting to = { c, in->format };

	return tide_ranges_each_element(in, collect_element, &to, err);
}
