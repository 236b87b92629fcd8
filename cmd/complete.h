/*
 * Completion: the shells ask the command itself, so the candidates are always up to date.
 *
 *     COMMAND --complete-options        every option, one in each line
 *     COMMAND --complete-values=OPTION  the words that an option accepts, one in each line
 *     COMMAND --complete-words WORD…    the candidates for the last WORD
 *
 * completions/tidemark.* use the last one: it prints candidates, one in each line, some
 * followed by a tab and a description.  The line ":files" asks the shell to offer file
 * names too.
 */
#ifndef COMPLETE_H
#define COMPLETE_H

#include "opt.h"

void complete_options(const struct opt_line *line);

/* -1: no such option. */
int complete_values(const struct opt_line *line, const char *option);

/* argv[0] is the first WORD. */
void complete_words(const struct command *command, int argc, const char **argv);

#endif
