/*
 * Parsing of command lines (opt.h).
 * The options of a command and the common ones that its flags select are one popt parser.  Every option given is kept
 * in order, and the functions here read, check and convert its value.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmd.h"
#include "opt.h"

static const struct poptOption image_options[] = {
	{ "image-format", 'f', POPT_ARG_STRING, NULL, OPT_IMAGE_FORMAT,
	  "format of IMAGE (default: as pinned in the sidecar, else probed)", OPT_ANY_FORMAT },
	{ "sidecar", 0, POPT_ARG_STRING, NULL, OPT_SIDECAR, "file that keeps the bitmaps (default: IMAGE.bitmaps)",
	  "PATH" },
	{ "device", 'd', POPT_ARG_STRING, NULL, OPT_DEVICE,
	  "name for replies and events (default: the file's name up to its first dot)", "ID" },
	{ "ignore-stamp", 0, POPT_ARG_NONE, NULL, OPT_IGNORE_STAMP,
	  "trust the bitmaps despite unrecorded changes of the image", NULL },
	OPT_ALLOW_BACKING_ENTRY,
	POPT_TABLEEND
};

static const struct poptOption show_options[] = { { "force-share", 'U', POPT_ARG_NONE, NULL, OPT_FORCE_SHARE,
	                                            "read even if another program may be writing", NULL },
	                                          POPT_TABLEEND };

static const struct poptOption change_options[] = {
	{ "dry-run", 0, POPT_ARG_NONE, NULL, OPT_DRY_RUN, "make all checks, but change nothing", NULL }, POPT_TABLEEND
};

static const struct poptOption job_options[] = {
	{ "progress", 0, POPT_ARG_NONE, NULL, OPT_PROGRESS, "draw a progress bar (default on a terminal)", NULL },
	{ "no-progress", 0, POPT_ARG_NONE, NULL, OPT_NO_PROGRESS, "draw no progress bar", NULL },
	POPT_TABLEEND
};

static const struct poptOption other_options[] = {
	{ "quiet", 'q', POPT_ARG_NONE, NULL, OPT_QUIET, "print errors only", NULL },
	{ "help", '?', POPT_ARG_NONE, NULL, OPT_HELP, "show this help and exit", NULL },
	{ "usage", 0, POPT_ARG_NONE, NULL, OPT_USAGE, "show a short usage message and exit", NULL },
	{ "version", 0, POPT_ARG_NONE, NULL, OPT_VERSION, "show the version and exit", NULL },
	{ "complete-options", 0, POPT_ARG_NONE | POPT_ARGFLAG_DOC_HIDDEN, NULL, OPT_COMPLETE_OPTIONS,
	  "for the shells: list the options", NULL },
	{ "complete-values", 0, POPT_ARG_STRING | POPT_ARGFLAG_DOC_HIDDEN, NULL, OPT_COMPLETE_VALUES,
	  "for the shells: list the values of an option", "OPTION" },
	POPT_TABLEEND
};

static const struct {
	const char *description;
	unsigned uses;
} format_lists[] = {
	{ OPT_ANY_FORMAT, 0 },
	{ OPT_FILE_FORMAT, TIDE_FORMAT_FILE },
	{ OPT_NEW_FORMAT, TIDE_FORMAT_CREATE },
};

/* Returns the formats that have these uses as "a|b|c", to be freed; NULL without memory. */
static char *list_formats(unsigned uses)
{
	const char *name;
	size_t size = 1;
	char *list, *end;

	for (size_t i = 0; (name = tide_image_format(i)); i++)
		size += strlen(name) + 1;
	list = end = malloc(size);
	if (!list)
		return NULL;
	*end = '\0';
	for (size_t i = 0; (name = tide_image_format(i)); i++) {
		if ((tide_image_format_uses(name) & uses) != uses)
			continue;
		if (end != list)
			*end++ = '|';
		end = stpcpy(end, name);
	}
	return list;
}

/* Returns the list of formats that replaces a description; NULL for the description itself. */
static const char *find_formats(struct opt_line *line, const char *description)
{
	for (size_t i = 0; description && i < CMD_ARRAY_SIZE(format_lists); i++) {
		if (strcmp(description, format_lists[i].description) != 0)
			continue;
		if (!line->formats[i])
			line->formats[i] = list_formats(format_lists[i].uses);
		return line->formats[i];
	}
	return NULL;
}

/* Returns a copy of a table of n options, including the end. */
static struct poptOption *copy_table(const struct poptOption *table, size_t n)
{
	struct poptOption *copy = calloc(n, sizeof(*copy));

	return copy ? memcpy(copy, table, n * sizeof(*copy)) : NULL;
}

/* Returns the table, or a copy with its lists of formats where it has any; without memory, the table itself. */
static const struct poptOption *with_formats(struct opt_line *line, size_t n, const struct poptOption *table)
{
	struct poptOption *copy = NULL;
	size_t count = 0;

	while (!opt_is_end(&table[count]))
		count++;
	for (size_t i = 0; i < count; i++) {
		const char *formats = find_formats(line, table[i].argDescrip);

		if (!formats)
			continue;
		if (!copy)
			copy = copy_table(table, count + 1);
		if (!copy)
			return table;
		copy[i].argDescrip = formats;
	}
	line->copies[n] = copy;
	return copy ? copy : table;
}

void opt_list_formats(struct opt_line *line)
{
	for (size_t i = 0; !opt_is_end(&line->tables[i]); i++) {
		if (!line->copies[i])
			line->tables[i].arg = (void *)with_formats(line, i, line->tables[i].arg);
	}
}

static void include(struct opt_line *line, size_t *n, const struct poptOption *table, const char *title)
{
	line->tables[(*n)++] =
	        (struct poptOption){ .argInfo = POPT_ARG_INCLUDE_TABLE, .arg = (void *)table, .descrip = title };
}

static void include_all(struct opt_line *line)
{
	unsigned flags = line->command->flags;
	size_t n = 0;

	if (line->command->options)
		include(line, &n, line->command->options, "Options:");
	if (flags & CMD_IMAGE)
		include(line, &n, image_options, "Image options:");
	if (flags & CMD_SHOW)
		include(line, &n, show_options, NULL);
	if (flags & CMD_CHANGE)
		include(line, &n, change_options, "Common options:");
	if (flags & CMD_JOB)
		include(line, &n, job_options, NULL);
	include(line, &n, other_options, flags & CMD_CHANGE ? NULL : "Common options:");
}

static int keep(struct opt_line *line, int val, char *text)
{
	struct opt_given *given = reallocarray(line->given, line->n + 1, sizeof(*given));

	if (!given) {
		free(text);
		return POPT_ERROR_MALLOC;
	}
	given[line->n] = (struct opt_given){ .val = val, .text = text };
	line->given = given;
	line->n++;
	return 0;
}

int opt_line_parse(struct opt_line *line, const struct command *cmd, int argc, const char **argv, const char **bad)
{
	int val;

	*line = (struct opt_line){ .command = cmd };
	*bad = "";
	include_all(line);
	line->popt = poptGetContext(cmd->name, argc, argv, line->tables, 0);
	if (!line->popt)
		return POPT_ERROR_MALLOC;
	while ((val = poptGetNextOpt(line->popt)) > 0)
		if (keep(line, val, poptGetOptArg(line->popt)))
			return POPT_ERROR_MALLOC;
	if (val != -1)
		*bad = poptBadOption(line->popt, POPT_BADOPTION_NOALIAS);
	line->args = poptGetArgs(line->popt);
	while (line->args && line->args[line->n_args])
		line->n_args++;
	return val == -1 ? 0 : val;
}

void opt_line_release(struct opt_line *line)
{
	for (size_t i = 0; i < line->n; i++)
		free(line->given[i].text);
	free(line->given);
	poptFreeContext(line->popt);
	for (size_t i = 0; i < CMD_ARRAY_SIZE(line->copies); i++)
		free(line->copies[i]);
	for (size_t i = 0; i < CMD_ARRAY_SIZE(line->formats); i++)
		free(line->formats[i]);
	*line = (struct opt_line){ 0 };
}

int opt_check_args(const struct opt_line *line, struct tide_error *err)
{
	const struct command *cmd = line->command;

	if (cmd->max_args >= 0 && line->n_args > cmd->max_args)
		return opt_usage(err, "unexpected argument '%s' after %s", line->args[cmd->max_args], cmd->arguments);
	if (line->n_args < cmd->min_args)
		return opt_usage(err, "expected %s, but %d argument%s given", cmd->arguments, line->n_args,
		                 line->n_args == 1 ? " was" : "s were");
	return 0;
}

static const struct opt_given *last(const struct opt_line *line, int val)
{
	for (size_t i = line->n; i-- > 0;)
		if (line->given[i].val == val)
			return &line->given[i];
	return NULL;
}

bool opt_has(const struct opt_line *line, int val)
{
	return last(line, val) != NULL;
}

const char *opt_text(const struct opt_line *line, int val)
{
	const struct opt_given *given = last(line, val);

	return given ? given->text : NULL;
}

char *opt_join(const struct opt_line *line, int val)
{
	char *joined = NULL;

	for (size_t i = 0; i < line->n; i++) {
		char *longer;

		if (line->given[i].val != val)
			continue;
		if (asprintf(&longer, "%s%s%s", joined ? joined : "", joined ? "," : "", line->given[i].text) < 0)
			longer = NULL;
		free(joined);
		joined = longer;
		if (!joined)
			return NULL;
	}
	return joined;
}

bool opt_next_word(const char **list, const char **word, size_t *len)
{
	if (!*list || !**list)
		return false;
	*word = *list;
	*len = strcspn(*list, "|");
	*list += *len + ((*list)[*len] == '|');
	return true;
}

/* The option with this value; the caller knows that the command has it. */
static const struct poptOption *own(const struct opt_line *line, int val)
{
	const struct poptOption *option = opt_find(line, val, NULL);

	if (!option)
		abort();
	return option;
}

int opt_choice(const struct opt_line *line, int val, int *choice, struct tide_error *err)
{
	const struct poptOption *option = own(line, val);
	const char *text = opt_text(line, val), *list = option->argDescrip, *word;
	size_t len;

	if (!text)
		return 0;
	for (int i = 0; opt_next_word(&list, &word, &len); i++)
		if (strlen(text) == len && memcmp(text, word, len) == 0) {
			*choice = i;
			return 0;
		}
	return opt_usage(err, "Parameter '%s' does not accept value '%s'", option->longName, text);
}

/* Returns the bit of a word, all bits for the last word of the list, or 0 for an unknown word. */
static unsigned flag_of(const char *list, const char *text, size_t text_len)
{
	const char *word;
	size_t len;

	for (unsigned bit = 1; opt_next_word(&list, &word, &len); bit <<= 1)
		if (text_len == len && memcmp(text, word, len) == 0)
			return *list ? bit : bit - 1;
	return 0;
}

int opt_flags(const struct opt_line *line, int val, unsigned *flags, struct tide_error *err)
{
	const struct poptOption *option = own(line, val);

	*flags = 0;
	for (size_t i = 0; i < line->n; i++) {
		const char *text = line->given[i].text;

		while (line->given[i].val == val && text) {
			size_t len = strcspn(text, ",");
			unsigned flag = flag_of(option->argDescrip, text, len);

			if (!flag)
				return opt_usage(err, "Parameter '%s' does not accept value '%.*s'", option->longName,
				                 (int)len, text);
			*flags |= flag;
			text = text[len] ? text + len + 1 : NULL;
		}
	}
	return 0;
}

int opt_parse_size(const char *what, const char *text, uint64_t *size, struct tide_error *err)
{
	struct tide_error why = TIDE_ERROR_INIT;

	if (tide_parse_size(text, size, &why) == 0)
		return 0;
	opt_usage(err, "%s: %s", what, why.msg ? why.msg : "not a size");
	tide_error_release(&why);
	return -1;
}

int opt_size(const struct opt_line *line, int val, uint64_t *size, bool *has, struct tide_error *err)
{
	const char *text = opt_text(line, val);

	if (!text)
		return 0;
	if (has)
		*has = true;
	return opt_parse_size(own(line, val)->longName, text, size, err);
}

bool opt_is_end(const struct poptOption *option)
{
	return !option->longName && !option->shortName && !option->arg;
}

static bool matches(const struct poptOption *option, int val, const char *name)
{
	if (!name)
		return option->val == val;
	if (name[0] == '-' && name[1] == '-')
		name += 2;
	else if (name[0] == '-')
		return name[1] && option->shortName == name[1] && !name[2];
	return option->longName && strcmp(option->longName, name) == 0;
}

const struct poptOption *opt_find(const struct opt_line *line, int val, const char *name)
{
	for (const struct poptOption *table = line->tables; !opt_is_end(table); table++)
		for (const struct poptOption *option = table->arg; !opt_is_end(option); option++)
			if (matches(option, val, name))
				return option;
	return NULL;
}

void opt_each(const struct opt_line *line, void (*fn)(const struct poptOption *option, void *data), void *data)
{
	for (const struct poptOption *table = line->tables; !opt_is_end(table); table++)
		for (const struct poptOption *option = table->arg; !opt_is_end(option); option++)
			if (!(option->argInfo & POPT_ARGFLAG_DOC_HIDDEN))
				fn(option, data);
}

int opt_seconds(const struct opt_line *line, int val, uint32_t *seconds, struct tide_error *err)
{
	uint64_t given = *seconds;

	if (opt_size(line, val, &given, NULL, err))
		return -1;
	if (given > UINT32_MAX)
		return opt_usage(err, "--%s: %s is more than %u seconds", own(line, val)->longName, opt_text(line, val),
		                 UINT32_MAX);
	*seconds = (uint32_t)given;
	return 0;
}

__attribute__((format(printf, 3, 0))) static int fail(struct tide_error *err, enum tide_code code, const char *fmt,
                                                      va_list ap)
{
	char *msg;

	if (vasprintf(&msg, fmt, ap) < 0) {
		msg = NULL;
		code = TIDE_E_NOMEM;
	}
	tide_error_release(err);
	*err = (struct tide_error){ .code = code, .msg = msg };
	return -1;
}

int opt_usage(struct tide_error *err, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	fail(err, TIDE_E_USAGE, fmt, ap);
	va_end(ap);
	return -1;
}

int opt_fail(struct tide_error *err, enum tide_code code, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	fail(err, code, fmt, ap);
	va_end(ap);
	return -1;
}
