#include "mark.h"

#include <string.h>
#include <sys/xattr.h>

#define NAME "user.tidemark.format"

bool tide_mark_set(int fd, const char *format)
{
	return tide_mark_is(fd, format) || fsetxattr(fd, NAME, format, strlen(format), 0) == 0;
}

bool tide_mark_is(int fd, const char *format)
{
	char value[32];
	ssize_t n = fgetxattr(fd, NAME, value, sizeof(value));

	return n >= 0 && (size_t)n == strlen(format) && !memcmp(value, format, (size_t)n);
}
