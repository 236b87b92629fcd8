/*
 * The table of all actions, in the order of actions.def.
 */
#include "action.h"

#include <string.h>

static const struct tide_action *const actions[] = {
#define TIDE_ACTION(name) &tide_action_##name,
#include "actions.def"
#undef TIDE_ACTION
};

const struct tide_action *tide_action_at(size_t i)
{
	return i < TIDE_ARRAY_SIZE(actions) ? actions[i] : NULL;
}

const struct tide_action *tide_action_find(const char *name)
{
	for (size_t i = 0; i < TIDE_ARRAY_SIZE(actions); i++) {
		if (!strcmp(actions[i]->name, name))
			return actions[i];
	}
	return NULL;
}
