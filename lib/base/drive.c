/*
 * Parses --drive's ID=PATH with its settings: format and sidecar, separated by commas. A comma that
 * belongs to a value is doubled, as in QEMU's options.
 */
#include <string.h>

#include "error.h"
#include "sized.h"

char *tide_parse_cut(char *text)
{
	char *to = text;

	for (; *text; *to++ = *text++) {
		if (*text == ',' && text[1] != ',') {
			*to = '\0';
			return text + 1;
		}
		if (*text == ',')
			text++;
	}
	*to = '\0';
	return NULL;
}

static int parse_setting(const char *setting, struct tide_drive *drive, struct tide_error *err)
{
	if (strncmp(setting, "format=", 7) == 0)
		drive->format = setting + 7;
	else if (strncmp(setting, "sidecar=", 8) == 0)
		drive->sidecar = setting + 8;
	else
		return tide_error_set(
		        err, TIDE_E_USAGE,
		        "'%s' is neither format=FORMAT nor sidecar=PATH; if it is part of the path, double "
		        "the comma before it",
		        setting);
	return 0;
}

static int parse_drive(char *text, struct tide_drive *drive, struct tide_error *err)
{
	char *next = tide_parse_cut(text), *equals = strchr(text, '=');

	if (!equals || equals == text || !equals[1])
		return tide_error_set(err, TIDE_E_USAGE, "'%s' is not ID=PATH", text);
	*equals = '\0';
	drive->id = text;
	drive->path = equals + 1;
	while (next) {
		char *setting = next;

		next = tide_parse_cut(setting);
		if (parse_setting(setting, drive, err) < 0)
			return -1;
	}
	return 0;
}

int tide_parse_drive_sized(char *text, struct tide_drive *drive, size_t size, struct tide_error *err)
{
	struct tide_drive own;

	if (tide_sized_take(&own, sizeof(own), drive, size, err) < 0 || parse_drive(text, &own, err) < 0)
		return -1;
	return tide_sized_give(drive, size, &own, sizeof(own), err);
}
