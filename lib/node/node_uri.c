/*
 * Nodes whose image is a URI: an NBD server has the image, so no file of ours can be locked but SIDECAR.lock.
 *
 * The lock file is created and removed only while the sidecar is locked, so that two programs agree which file it is.
 */
#include "node_uri.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "base/mem.h"

char *tide_node_uri_id(const char *uri, struct tide_error *err)
{
	const char *start = strstr(uri, "://"), *end = uri + strcspn(uri, "?#"), *slash;
	size_t n;

	start = start ? start + 3 : uri;
	slash = start < end ? memrchr(start, '/', (size_t)(end - start)) : NULL;
	n = slash ? strcspn(slash + 1, ".?#") : 0;
	return n ? tide_mem_strndup(slash + 1, n, err) : tide_mem_strdup(tide_image_uri_driver(uri)->name, err);
}

int tide_node_uri_lock(struct tide_node *node, struct tide_error *err)
{
	bool is_read = node->mode == TIDE_NODE_READ;
	TIDE_AUTOFREE char *path = NULL;

	if (!tide_image_is_uri(node->path) || !node->sidecar_path || (!node->has_sidecar && node->store.lock_fd < 0))
		return 0;
	path = tide_mem_printf(err, "%s.lock", node->sidecar_path);
	if (!path)
		return -1;
	if (!is_read) {
		node->lock_fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
		node->lock_made = node->lock_fd >= 0;
	}
	if (node->lock_fd < 0)
		node->lock_fd = open(path, (is_read ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	if (node->lock_fd >= 0 || (is_read && errno == ENOENT))
		return 0;
	return tide_error_set_sys(err, errno, "Could not open '%s'", path);
}

void tide_node_uri_unmake_lock(struct tide_node *node)
{
	TIDE_AUTOFREE char *path =
	        node->lock_made && !node->has_sidecar ? tide_mem_printf(NULL, "%s.lock", node->sidecar_path) : NULL;

	if (path)
		unlink(path);
	node->lock_made = false;
}

void tide_node_uri_hint(const struct tide_node *node, struct tide_error *err)
{
	TIDE_AUTOFREE char *names = tide_mem_strdup("", NULL);
	const char *place = node->sidecar ? "" : "; use --sidecar PATH for bitmaps that are kept in a local file";

	for (size_t i = 0; names && i < node->in_image.list->n; i++) {
		char *more =
		        tide_mem_printf(NULL, "%s%s'%s'", names, i ? ", " : "", node->in_image.list->items[i]->name);

		free(names);
		names = more;
	}
	if (names && *names)
		tide_error_hint(err, "the server exports %s%s", names, place);
	else
		tide_error_hint(err, "the server exports no dirty bitmap%s", place);
}
