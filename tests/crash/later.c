/*
 * A preload library: for a command, it is LATER seconds later than it is. Only time() is moved, which births and ages
 * of backups are taken from; the times of files and of stamps stay true.
 */
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

time_t time(time_t *out)
{
	const char *later = getenv("LATER");
	struct timeval now;

	gettimeofday(&now, NULL);
	now.tv_sec += later ? atol(later) : 0;
	if (out)
		*out = now.tv_sec;
	return now.tv_sec;
}
