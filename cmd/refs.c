/*
 * References to bitmaps on a command line (refs.h): NAME, PATH#NAME and #NAME.
 * Each image that is referred to becomes a node of the session once.
 */
#include "refs.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

int refs_init(struct refs *refs, size_t room, struct tide_error *err)
{
	refs->items = calloc(room, sizeof(*refs->items));
	refs->paths = calloc(room, sizeof(*refs->paths));
	refs->room = room;
	return refs->items && refs->paths ? 0 : opt_fail(err, TIDE_E_NOMEM, "Out of memory");
}

void refs_release(struct refs *refs)
{
	for (size_t i = 0; refs->paths && i < refs->n; i++)
		free(refs->paths[i]);
	free(refs->paths);
	free(refs->items);
}

static bool same_file(const char *a, const char *b)
{
	struct stat sa, sb;

	if (strcmp(a, b) == 0)
		return true;
	return stat(a, &sa) == 0 && stat(b, &sb) == 0 && sa.st_dev == sb.st_dev && sa.st_ino == sb.st_ino;
}

/* Finds the node of an image: that of IMAGE, that of an earlier reference, or a new one whose id is its path. */
static int find_node(struct cmd *c, struct refs *refs, size_t i, struct tide_error *err)
{
	const char *path = refs->paths[i];
	struct tide_drive drive = {
		.path = path,
		.ignore_stamp = opt_has(c->opt, OPT_IGNORE_STAMP),
		.allow = c->allow,
	};
	char *id;
	int rc;

	if (same_file(path, c->args[0])) {
		refs->items[i].node = c->node;
		return 0;
	}
	for (size_t k = 0; k < i; k++)
		if (refs->paths[k] && same_file(path, refs->paths[k])) {
			refs->items[i].node = refs->items[k].node;
			return 0;
		}
	/* The id must differ from that of IMAGE. */
	if (asprintf(&id, "%s%s", strcmp(path, c->node) == 0 ? "./" : "", path) < 0)
		return opt_fail(err, TIDE_E_NOMEM, "Out of memory");
	drive.id = id;
	rc = tide_session_add_drive(c->session, &drive, &refs->items[i].node, err);
	free(id);
	return rc;
}

/* Paths and names may contain a '#': the last one that follows an existing file ends the path, else the last one. */
static const char *find_hash(const char *word)
{
	const char *last = strrchr(word, '#'), *hash = last;
	struct stat st;

	while (hash && hash > word) {
		char *path = strndup(word, (size_t)(hash - word));
		bool is_there = path && stat(path, &st) == 0;

		free(path);
		if (is_there)
			return hash;
		hash = memrchr(word, '#', (size_t)(hash - word));
	}
	return last;
}

int refs_add(struct cmd *c, struct refs *refs, const char *word, const char *name, struct tide_error *err)
{
	const char *hash = *word == '#' ? word : find_hash(word);
	size_t i = refs->n++;

	refs->items[i].name = hash ? hash + 1 : name ? name : word;
	refs->items[i].node = c->node;
	if (hash == word || (!hash && !name))
		return 0;
	if (asprintf(&refs->paths[i], "%.*s", hash ? (int)(hash - word) : -1, word) < 0) {
		refs->paths[i] = NULL;
		return opt_fail(err, TIDE_E_NOMEM, "Out of memory");
	}
	return find_node(c, refs, i, err);
}
