/*
 * The least that a small command can be: links what Tidemark links, and replaces a small file durably.
 *
 *   minimal FILE
 */
#include <err.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <popt.h>
#include <stdio.h>
#include <unistd.h>
#include <zstd.h>

int main(int argc, char **argv)
{
	const struct poptOption options[] = { POPT_AUTOHELP POPT_TABLEEND };
	poptContext context = poptGetContext(NULL, argc, (const char **)argv, options, 0);
	char small[256] = "a small file", packed[512], temp[4096];
	const char *path;
	size_t len = ZSTD_compress(packed, sizeof(packed), small, sizeof(small), 1);
	int fd, dir = open(".", O_RDONLY | O_DIRECTORY);

	while (poptGetNextOpt(context) > 0)
		;
	path = poptGetArg(context);
	if (!path || ZSTD_isError(len))
		return 2;
	snprintf(temp, sizeof(temp), "%s.new", path);
	fd = open(temp, O_WRONLY | O_CREAT | O_TRUNC, 0644);
	if (dir < 0 || fd < 0 || write(fd, packed, len) != (ssize_t)len || fsync(fd) < 0 || rename(temp, path) < 0 ||
	    fsync(dir) < 0)
		err(1, "%s", path);
	puts(json_object_to_json_string(json_tokener_parse("{\"return\": {}}")));
	poptFreeContext(context);
	return 0;
}
