/*
 * Completion: the shells ask the command itself, so what they offer cannot lag behind.
 *
 *     COMMAND --complete-options        every option, one a line
 *     COMMAND --complete-values=OPTION  the words that an option accepts, one a line
 *     COMMAND --complete-words WORD…    what could stand in place of the last WORD
 *
 * The last one does all the work for completions/tidemark.*: it prints candidates, one a
 * line, a tab and a description behind those that have one; the line ":files" asks the
 * shell to offer file names too.
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
