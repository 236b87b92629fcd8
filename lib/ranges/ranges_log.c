/*
 * Reads the log of nbdkit's log filter, which writes one line when a request arrives and one when it is
 * answered. A write counts whatever its answer is, or without one, because a failed write may have written
 * part of its range.
 */
#include <ctype.h>
#include <string.h>

#include "base/error.h"
#include "base/mem.h"
#include "ranges.h"

struct log {
	struct tide_ranges_collector *c;
	char *export; /* the export that clients have opened, as the log shows it */
};

/* 2026-11-22 04:28:56.608381 */
bool tide_ranges_is_log(const char *line)
{
	static const char shape[] = "0000-00-00 00:00:00.";

	for (size_t i = 0; shape[i]; i++) {
		if (shape[i] == '0' ? !isdigit((unsigned char)line[i]) : line[i] != shape[i])
			return false;
	}
	return true;
}

/* The value of a word KEY=VALUE. Another word must follow it, which shows that the value is complete. */
static int get_value(const char *words, const char *key, uint64_t *v, struct tide_error *err)
{
	size_t len = strlen(key);
	const char *p = words;

	while ((p = strstr(p, key)) && (p == words || p[-1] != ' ' || p[len] != '='))
		p++;
	if (!p || !strchr(p, ' '))
		return tide_error_set(err, TIDE_E_REFUSED, "a request without its '%s='", key);
	TIDE_AUTOFREE char *value = tide_mem_strndup(p + len + 1, strcspn(p + len + 1, " "), err);
	return value ? tide_ranges_parse_size(value, v, err) : -1;
}

/* Different exports are different disks. */
static int check_export(struct log *log, const char *words, struct tide_error *err)
{
	const char *p = strstr(words, "export=");
	const char *end = p ? strstr(p, " tls=") : NULL;

	if (!end)
		return 0;
	TIDE_AUTOFREE char *export = tide_mem_strndup(p + 7, (size_t)(end - p - 7), err);
	if (!export)
		return -1;
	if (!log->export) {
		log->export = export;
		export = NULL;
		return 0;
	}
	if (strcmp(log->export, export) == 0)
		return 0;
	tide_error_set(err, TIDE_E_REFUSED, "the log is about several disks: the exports %s and %s", log->export,
	               export);
	return tide_error_hint(err, "use only the lines of one of them");
}

static bool is_one_of(const char *word, const char *const *words)
{
	for (; *words; words++) {
		if (strcmp(word, *words) == 0)
			return true;
	}
	return false;
}

static int collect_request(void *data, char *line, struct tide_error *err)
{
	static const char *const writes[] = { "Write", "Zero", "Trim", NULL };
	static const char *const reads[] = { "Read", "Extents", "Cache", NULL };
	struct log *log = data;
	uint64_t off, len;

	if (!line[strspn(line, TIDE_RANGES_BLANKS)])
		return 0;
	if (!tide_ranges_is_log(line))
		return tide_error_set(err, TIDE_E_REFUSED,
		                      "it does not begin with a date and a time, as nbdkit's log does");
	tide_ranges_next_word(&line);
	tide_ranges_next_word(&line);
	if (strncmp(line, "connection=", 11) == 0)
		tide_ranges_next_word(&line);
	char *verb = tide_ranges_next_word(&line);
	if (!verb)
		return tide_error_set(err, TIDE_E_REFUSED, "nothing follows the time");
	if (strncmp(verb, "...", 3) == 0 || is_one_of(verb, reads))
		return 0;
	if (strcmp(verb, "Connect") == 0)
		return check_export(log, line, err);
	if (!is_one_of(verb, writes)) {
		if (strstr(line, "offset="))
			return tide_error_set(err, TIDE_E_REFUSED, "unknown request '%s'", verb);
		return 0;
	}
	if (get_value(line, "offset", &off, err) < 0 || get_value(line, "count", &len, err) < 0)
		return -1;
	return tide_ranges_collect(log->c, off, len, err);
}

int tide_ranges_read_log(struct tide_ranges_input *in, struct tide_ranges_collector *c, struct tide_error *err)
{
	struct log log = { .c = c };
	int rc;

	if (tide_ranges_check_ended(in, err) < 0)
		return -1;
	rc = tide_ranges_each_line(in, collect_request, &log, err);
	tide_mem_freep(&log.export);
	return rc;
}
