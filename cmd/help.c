/*
 * Printing of --help.  popt prints the list of accepted words in its left column, which the longest list would make
 * wider than any terminal.  A long list is therefore moved to the end of the option's text, where popt wraps it.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmd.h"

enum { LIST_MAX = 16 };

static bool is_long(const struct poptOption *option)
{
	return option->argDescrip && strchr(option->argDescrip, '|') && strlen(option->argDescrip) > LIST_MAX;
}

/* Returns "text: one, two, three", to be freed; NULL without memory. */
static char *describe(const struct poptOption *option)
{
	const char *list = option->argDescrip, *word;
	/* A bar becomes at most two characters. */
	char *text = malloc(strlen(option->descrip) + 2 + 2 * strlen(list) + 1), *at;
	size_t len;

	if (!text)
		return NULL;
	at = stpcpy(text, option->descrip);
	at = stpcpy(at, ": ");
	while (opt_next_word(&list, &word, &len)) {
		at = mempcpy(at, word, len);
		at = stpcpy(at, *list ? ", " : "");
	}
	return text;
}

/* Returns a copy of a table with its long lists moved; without memory an entry is unchanged. */
static struct poptOption *copy_table(const struct poptOption *table)
{
	struct poptOption *copy;
	size_t n = 0;

	while (!opt_is_end(&table[n]))
		n++;
	copy = calloc(n + 1, sizeof(*copy));
	if (!copy)
		return NULL;
	memcpy(copy, table, n * sizeof(*copy));
	for (size_t i = 0; i < n; i++) {
		char *text = is_long(&table[i]) ? describe(&table[i]) : NULL;
		if (text) {
			copy[i].descrip = text;
			copy[i].argDescrip = "WORD";
		}
	}
	return copy;
}

static void free_table(struct poptOption *copy, const struct poptOption *table)
{
	for (size_t i = 0; !opt_is_end(&copy[i]); i++)
		if (copy[i].descrip != table[i].descrip)
			free((char *)copy[i].descrip);
	free(copy);
}

void opt_print_help(struct opt_line *line)
{
	enum { TABLES = sizeof(line->tables) / sizeof(line->tables[0]) };
	struct poptOption *copies[TABLES] = { NULL };
	void *tables[TABLES] = { NULL };
	CMD_AUTOFREE char *text = NULL;

	for (size_t i = 0; i < TABLES && !opt_is_end(&line->tables[i]); i++) {
		tables[i] = line->tables[i].arg;
		copies[i] = copy_table(tables[i]);
		if (copies[i])
			line->tables[i].arg = copies[i];
	}
	if (asprintf(&text, "[OPTION...] %s\n\n%s.", line->command->arguments, line->command->summary) < 0)
		text = NULL;
	poptSetOtherOptionHelp(line->popt, text ? text : line->command->arguments);
	ui_use_locale();
	poptPrintHelp(line->popt, stdout, 0);
	for (size_t i = 0; i < TABLES; i++) {
		if (copies[i]) {
			line->tables[i].arg = tables[i];
			free_table(copies[i], tables[i]);
		}
	}
}

/* ---- -o help ----------------------------------------------------------------------- */

static bool has_help(const char *list)
{
	for (size_t n; *list; list += n + (list[n] == ',')) {
		n = strcspn(list, ",");
		if ((n == 4 && !strncmp(list, "help", n)) || (n == 1 && *list == '?'))
			return true;
	}
	return false;
}

bool opt_asks_for_settings(const struct opt_line *line)
{
	const struct poptOption *option = opt_find(line, 0, "--settings");

	for (size_t i = 0; option && i < line->n; i++) {
		if (line->given[i].val == option->val && has_help(line->given[i].text))
			return true;
	}
	return false;
}

static void print_settings_of(const char *format)
{
	const char *key = tide_image_format_setting(format, 0);

	printf(key ? "Settings of the format %s:\n" : "The format %s has no settings.\n", format);
	for (size_t i = 0; (key = tide_image_format_setting(format, i)); i++)
		printf("  %s=VALUE\n", key);
}

void opt_print_settings(const struct opt_line *line)
{
	const struct poptOption *option = opt_find(line, 0, "--format");
	const char *given = option ? opt_text(line, option->val) : NULL, *format;

	if (given) {
		print_settings_of(given);
		return;
	}
	for (size_t i = 0; (format = tide_image_format(i)); i++) {
		if (tide_image_format_setting(format, 0))
			print_settings_of(format);
	}
}
