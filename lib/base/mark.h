/*
 * Marks on files that were made here: an extended attribute with the format, which no guest that writes to the
 * content of the file can set or remove. A mark only ever makes a probe count for less: copies of a file may lack
 * it, and file systems may have no attributes.
 */
#ifndef TIDE_MARK_H
#define TIDE_MARK_H

#include <stdbool.h>

#define TIDE_MARK_DATA_FILE "data-file"

/* False: the file cannot be marked. */
bool tide_mark_set(int fd, const char *format);
bool tide_mark_is(int fd, const char *format);

#endif
