/*
 * Completion: prints the candidates for a word of a command line (complete.h).
 * Options and their values come from the option tables, formats and settings from the library, and names of bitmaps
 * from the image on the command line.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmd.h"
#include "complete.h"

static void print_option(const struct poptOption *option, void *data)
{
	(void)data;
	if (option->longName)
		printf("--%s\n", option->longName);
	if (option->shortName)
		printf("-%c\n", option->shortName);
}

void complete_options(const struct opt_line *line)
{
	opt_each(line, print_option, NULL);
}

/* Prints the words that begin with the typed text, each after `before`, for --option=value. */
static void print_choices(const char *list, const char *before, const char *typed)
{
	const char *word;
	size_t len, n = strlen(typed);

	while (opt_next_word(&list, &word, &len))
		if (len >= n && memcmp(word, typed, n) == 0)
			printf("%s%.*s\n", before, (int)len, word);
}

int complete_values(const struct opt_line *line, const char *name)
{
	const struct poptOption *option = opt_find(line, 0, name);

	if (!option)
		return -1;
	if (option->argDescrip && strchr(option->argDescrip, '|'))
		print_choices(option->argDescrip, "", "");
	return 0;
}

/* ---- --complete-words -------------------------------------------------------------- */

struct typed {
	const struct opt_line *line; /* the words before it */
	const char *word;            /* the typed text */
};

static int drop_line(void *data, const char *json)
{
	(void)data;
	(void)json;
	return 0;
}

static void drop_warning(void *data, const char *image, const char *text)
{
	(void)data;
	(void)image;
	(void)text;
}

/* A name with a newline would become two candidates, and one that starts with a dash an option. */
static bool is_offerable(const char *name, const char *typed)
{
	CMD_AUTOFREE char *plain = ui_escape(name);

	return plain && strcmp(plain, name) == 0 && name[0] != '-' && strncmp(name, typed, strlen(typed)) == 0;
}

static void print_names(const struct tide_bitmap_list *list, const char *before, const char *typed)
{
	char count[UI_SIZE_MAX];

	for (size_t i = 0; i < list->n; i++)
		if (is_offerable(list->items[i]->name, typed))
			printf("%s%s\t%s dirty%s\n", before, list->items[i]->name,
			       ui_size(count, list->items[i]->count), list->items[i]->recording ? "" : ", disabled");
}

/* On any error, nothing is offered. */
static void print_bitmaps(const struct opt_line *line, const char *before, const char *typed)
{
	struct tide_session_options options = { .line = drop_line, .warning = drop_warning };
	struct tide_session *session = tide_session_new(&options, NULL);
	struct tide_drive drive = {
		.path = line->n_args ? line->args[0] : NULL,
		.format = opt_text(line, OPT_IMAGE_FORMAT),
		.sidecar = opt_text(line, OPT_SIDECAR),
		.force_share = true,
	};
	struct tide_bitmap_list *list = NULL;
	const char *node;

	if (session && drive.path && tide_session_add_drive(session, &drive, &node, NULL) == 0 &&
	    tide_query_bitmaps(session, node, &list, NULL) == 0)
		print_names(list, before, typed);
	tide_bitmap_list_free(list);
	tide_session_free(session);
}

/* Prints the keys of -o for the format that --format specifies, or for all formats. */
static void print_settings(const struct opt_line *line, const char *before, const char *typed)
{
	const struct poptOption *option = opt_find(line, 0, "--format");
	const char *given = option ? opt_text(line, option->val) : NULL, *comma = strrchr(typed, ',');
	const char *start = comma ? comma + 1 : typed, *format, *key;

	for (size_t i = 0; (format = tide_image_format(i)); i++) {
		if (given && strcmp(given, format) != 0)
			continue;
		for (size_t k = 0; (key = tide_image_format_setting(format, k)); k++)
			if (strncmp(key, start, strlen(start)) == 0)
				printf("%s%.*s%s=\n", before, (int)(start - typed), typed, key);
	}
}

/* Prints the values of format= in a comma-separated list.  False: the typed text is something else. */
static bool print_formats(const char *before, const char *typed)
{
	const char *comma = strrchr(typed, ','), *start, *format;

	if (!comma || strncmp(comma + 1, "format=", strlen("format=")) != 0)
		return false;
	start = comma + 1 + strlen("format=");
	for (size_t i = 0; (format = tide_image_format(i)); i++)
		if (strncmp(format, start, strlen(start)) == 0)
			printf("%s%.*s%s\n", before, (int)(start - typed), typed, format);
	return true;
}

static void complete_value(const struct typed *t, const struct poptOption *option, const char *before,
                           const char *typed)
{
	const char *kind = option && option->argDescrip ? option->argDescrip : "";

	if (strstr(kind, "[,format=") && print_formats(before, typed))
		return;
	if (strncmp(kind, "KEY=", 4) == 0)
		print_settings(t->line, before, typed);
	else if (strchr(kind, '|'))
		print_choices(kind, before, typed);
	else if (strcmp(kind, "NAME") == 0)
		print_bitmaps(t->line, before, typed);
	else if (strncmp(kind, "PATH", 4) == 0 || strcmp(kind, "FILE") == 0)
		puts(":files");
}

static void offer_option(const struct poptOption *option, void *data)
{
	const struct typed *t = data;
	size_t n = strlen(t->word);
	char name[64];

	snprintf(name, sizeof(name), "--%s", option->longName);
	if (strncmp(name, t->word, n) == 0)
		printf("%s\t%s\n", name, option->descrip);
	if (option->shortName && n == 1)
		printf("-%c\t%s\n", option->shortName, option->descrip);
}

static void complete_argument(const struct typed *t)
{
	const char *kinds = t->line->command->completes;
	int i = t->line->n_args, max = t->line->command->max_args;
	char kind;

	if (max >= 0 && i >= max)
		return;
	kind = i < (int)strlen(kinds) ? kinds[i] : kinds[strlen(kinds) - 1];
	if (kind == 'b' || kind == 's')
		print_bitmaps(t->line, "", t->word);
	if (kind == 'f' || kind == 's')
		puts(":files");
}

static bool has_ended_options(int argc, const char **argv)
{
	for (int i = 0; i < argc; i++)
		if (strcmp(argv[i], "--") == 0)
			return true;
	return false;
}

/* popt skips the first word as the name of the program, so the word before the first one is passed. */
void complete_words(const struct command *cmd, int argc, const char **argv)
{
	struct opt_line line;
	struct typed t = { .line = &line, .word = argc > 0 ? argv[argc - 1] : "" };
	const char *bad, *equals = strchr(t.word, '=');
	int before = argc > 0 ? argc - 1 : 0;
	int popt_error = opt_line_parse(&line, cmd, before + 1, argv - 1, &bad);
	CMD_AUTOFREE char *name = strndup(t.word, equals ? (size_t)(equals - t.word) : 0);

	opt_list_formats(&line);
	if (popt_error == POPT_ERROR_NOARG) {
		char short_name[] = { '-', bad[strlen(bad) - 1], '\0' };

		complete_value(&t, opt_find(&line, 0, strncmp(bad, "--", 2) == 0 ? bad : short_name), "", t.word);
	} else if (!has_ended_options(before, argv) && t.word[0] == '-') {
		CMD_AUTOFREE char *prefix = strndup(t.word, equals ? (size_t)(equals + 1 - t.word) : 0);

		if (equals && name && prefix)
			complete_value(&t, opt_find(&line, 0, name), prefix, equals + 1);
		else if (!equals)
			opt_each(&line, offer_option, &t);
	} else {
		complete_argument(&t);
	}
	opt_line_release(&line);
}
