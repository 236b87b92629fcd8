/*
 * The birth record of an image, as a query of a chain returns it.
 */
#ifndef TIDE_QUERY_BACKUP_H
#define TIDE_QUERY_BACKUP_H

#include "image/image.h"

/* *out stays NULL if the image has no record. */
int tide_query_backup(const struct tide_image *image, struct tide_backup_info **out, struct tide_error *err);
void tide_query_backup_free(struct tide_backup_info *info); /* NULL: nothing */

#endif
