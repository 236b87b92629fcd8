/*
 * Prints the table of actions, for the lint that compares it with the documents: a line for each action with where a
 * stream may name it (transaction, command), and lines for its arguments: "argument ACTION NAME[.NAME]", or "internal"
 * instead where a stream refuses it.
 */
#include <stdio.h>

#include "request/action.h"

static void print_fields(const char *action, const char *up, const struct tide_qmp_field *fields)
{
	const char *word = "argument";

	for (const struct tide_qmp_field *f = fields; f->kind != TIDE_QMP_END; f++) {
		if (f->kind == TIDE_QMP_INTERNAL) {
			word = "internal";
			continue;
		}
		printf("%s %s %s%s\n", word, action, up, f->name);
		if (f->kind == TIDE_QMP_STRUCT || f->kind == TIDE_QMP_LIST) {
			char path[256];

			snprintf(path, sizeof(path), "%s%s.", up, f->name);
			print_fields(action, path, f->fields);
		}
	}
}

int main(void)
{
	const struct tide_action *action;

	for (size_t i = 0; (action = tide_action_at(i)); i++) {
		printf("action %s%s%s\n", action->name, action->use & TIDE_ACTION_IN_TRANSACTION ? " transaction" : "",
		       action->use & TIDE_ACTION_AS_COMMAND ? " command" : "");
		print_fields(action->name, "", action->fields);
	}
	return 0;
}
