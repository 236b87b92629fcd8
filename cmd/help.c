/*
 * --help.  popt puts what an option accepts into its left column, which the longest list makes wider than any terminal:
 * a long one goes behind the option's text instead, where popt wraps it.
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

/* "text: one, two, three", to be freed; NULL: no memory. */
static char *describe(const struct poptOption *option)
{
	const char *list = option->argDescrip, *word;
	/* A bar becomes two characters at most. */
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

/* A table with its long lists moved; what cannot be moved stays as it is. */
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
