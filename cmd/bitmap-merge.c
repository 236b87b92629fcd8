#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "cmd.h"

/* The sources as the library wants them, and the paths that their nodes are named by. */
struct sources {
	size_t n;
	struct tide_bitmap_ref *refs;
	char **paths; /* NULL for a bitmap of IMAGE */
};

static void sources_release(struct sources *s)
{
	for (size_t i = 0; s->paths && i < s->n; i++)
		free(s->paths[i]);
	free(s->paths);
	free(s->refs);
}

static bool same_file(const char *a, const char *b)
{
	struct stat sa, sb;

	if (strcmp(a, b) == 0)
		return true;
	return stat(a, &sa) == 0 && stat(b, &sb) == 0 && sa.st_dev == sb.st_dev && sa.st_ino == sb.st_ino;
}

/* The node of an image: IMAGE's own, that of an earlier source, or a new one whose id is its path. */
static int find_node(struct cmd *c, struct sources *s, size_t i, struct tide_error *err)
{
	struct tide_drive drive = {
		.id = s->paths[i], .path = s->paths[i], .ignore_stamp = opt_has(c->opt, OPT_IGNORE_STAMP),
			.allow = c->allow
	};

	if (same_file(s->paths[i], c->args[0])) {
		s->refs[i].node = c->node;
		return 0;
	}
	for (size_t k = 0; k < i; k++)
		if (s->paths[k] && same_file(s->paths[i], s->paths[k])) {
			s->refs[i].node = s->refs[k].node;
			return 0;
		}
	return tide_session_add_drive(c->session, &drive, &s->refs[i].node, err);
}

/* NAME, or #NAME where the name itself has a #, or PATH#NAME. */
static int add_source(struct cmd *c, struct sources *s, const char *word, struct tide_error *err)
{
	const char *hash = *word == '#' ? word : strrchr(word, '#');
	size_t i = s->n++;

	s->refs[i].name = hash ? hash + 1 : word;
	s->refs[i].node = c->node;
	if (!hash || hash == word)
		return 0;
	s->paths[i] = strndup(word, (size_t)(hash - word));
	if (!s->paths[i])
		return opt_fail(err, TIDE_E_NOMEM, "Out of memory");
	return find_node(c, s, i, err);
}

static int run(struct cmd *c, struct tide_error *err)
{
	CMD_CLEANUP(sources_release) struct sources s = { 0 };
	struct tide_bitmap_merge args = { .target = c->args[1] };
	size_t n = (size_t)c->n_args - 2;

	s.refs = calloc(n, sizeof(*s.refs));
	s.paths = calloc(n, sizeof(*s.paths));
	if (!s.refs || !s.paths)
		return opt_fail(err, TIDE_E_NOMEM, "Out of memory");
	if (cmd_add_image(c, err))
		return -1;
	for (size_t i = 0; i < n; i++)
		if (add_source(c, &s, c->args[2 + i], err))
			return -1;
	if (cmd_begin(c, err))
		return -1;
	args.node = c->node;
	args.n_sources = s.n;
	args.sources = s.refs;
	return tide_txn_bitmap_merge(c->txn, &args, err) ? -1 : tide_txn_run(c->txn, err);
}

const struct command command = {
	.name = "bitmap-merge",
	.summary = "Add the dirty ranges of other bitmaps to a bitmap",
	.arguments = "IMAGE TARGET SOURCE...",
	.completes = "fbs",
	.min_args = 3,
	.max_args = -1,
	.flags = CMD_IMAGE | CMD_CHANGE,
	.run = run,
};
