/*
 * The drive specification, ID=PATH[,format=FORMAT][,sidecar=PATH], and sizes.  A valid one is written out again,
 * commas doubled, and must have the same meaning; an invalid one results in a message.
 */
#include "base/strbuf.h"
#include "fuzz.h"

static void add_doubled(struct tide_strbuf *out, const char *text)
{
	for (; *text; text++) {
		tide_strbuf_addc(out, *text);
		if (*text == ',')
			tide_strbuf_addc(out, ',');
	}
}

static char *write_drive(const struct tide_drive *drive)
{
	struct tide_strbuf out = TIDE_STRBUF_INIT;

	add_doubled(&out, drive->id);
	tide_strbuf_addc(&out, '=');
	add_doubled(&out, drive->path);
	if (drive->format) {
		tide_strbuf_adds(&out, ",format=");
		add_doubled(&out, drive->format);
	}
	if (drive->sidecar) {
		tide_strbuf_adds(&out, ",sidecar=");
		add_doubled(&out, drive->sidecar);
	}
	return tide_strbuf_steal(&out, NULL);
}

static bool same(const char *a, const char *b)
{
	return a && b ? !strcmp(a, b) : a == b;
}

static void try_drive(char *text)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_drive drive = { 0 }, again = { 0 };
	char *written;

	if (tide_parse_drive(text, &drive, &err) < 0) {
		fuzz_failed(&err);
		return;
	}
	fuzz_must(drive.id && *drive.id && drive.path && *drive.path);
	written = write_drive(&drive);
	fuzz_must(written && tide_parse_drive(written, &again, &err) == 0);
	fuzz_must(same(drive.id, again.id) && same(drive.path, again.path) && same(drive.format, again.format) &&
	          same(drive.sidecar, again.sidecar));
	free(written);
}

static void try_size(const char *text)
{
	struct tide_error err = TIDE_ERROR_INIT;
	uint64_t size;

	if (tide_parse_size(text, &size, &err) < 0)
		fuzz_failed(&err);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char *text = malloc(size + 1);

	if (!text)
		return 0;
	memcpy(text, data, size);
	text[size] = '\0';
	try_size(text);
	try_drive(text);
	free(text);
	return 0;
}
