/*
 * A preload library: it counts the comparisons of names and of memory of a command, and writes their number to the file
 * COMPARES at exit. Unlike seconds, it is the same on each machine: a list that is searched for each of its members
 * shows in it.
 */
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static atomic_ulong calls;

int strcmp(const char *a, const char *b)
{
	calls++;
	for (; *a && *a == *b; a++)
		b++;
	return (unsigned char)*a - (unsigned char)*b;
}

int memcmp(const void *a, const void *b, size_t len)
{
	const unsigned char *p = a, *q = b;

	calls++;
	for (; len; len--, p++, q++) {
		if (*p != *q)
			return *p - *q;
	}
	return 0;
}

__attribute__((destructor)) static void report(void)
{
	const char *path = getenv("COMPARES");
	FILE *f = path ? fopen(path, "w") : NULL;

	if (!f)
		return;
	fprintf(f, "%lu\n", calls);
	fclose(f);
}
