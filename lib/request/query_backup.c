/* The birth record of an image, as a query of a chain returns it. */
#include "query_backup.h"

#include <stdlib.h>

#include "base/mem.h"
#include "job/backup.h"
#include "store/identity.h"

static int copy_id(char **to, const struct tide_id *id, struct tide_error *err)
{
	char text[TIDE_ID_TEXT];

	if (!tide_id_is_set(id))
		return 0;
	tide_id_format(id, text);
	*to = tide_mem_strdup(text, err);
	return *to ? 0 : -1;
}

static int copy_text(char **to, const char *from, struct tide_error *err)
{
	if (!from)
		return 0;
	*to = tide_mem_strdup(from, err);
	return *to ? 0 : -1;
}

static int copy(struct tide_backup_info *to, const struct tide_birth *birth, struct tide_error *err)
{
	to->sync = birth->sync <= TIDE_SYNC_NONE ? tide_backup_sync_names[birth->sync] : "unknown";
	to->time = birth->time;
	to->base_time = birth->base_time;
	to->exact_size = birth->exact_size;
	to->is_part = birth->is_part;
	to->is_incomplete = birth->is_incomplete;
	to->is_unchanged = birth->intact;
	if (copy_id(&to->id, &birth->id, err) < 0 || copy_id(&to->disk, &birth->disk, err) < 0 ||
	    copy_id(&to->base, &birth->base, err) < 0 || copy_id(&to->transaction, &birth->point, err) < 0)
		return -1;
	return copy_text(&to->device, birth->device, err) < 0 ? -1 : copy_text(&to->bitmap, birth->bitmap, err);
}

int tide_query_backup(const struct tide_image *image, struct tide_backup_info **out, struct tide_error *err)
{
	TIDE_AUTOBIRTH struct tide_birth *birth = NULL;

	if (tide_identity_find(image, &birth, err) < 0)
		return -1;
	if (!birth || birth->unknown)
		return 0;
	*out = tide_mem_alloc(1, sizeof(**out), err);
	return *out ? copy(*out, birth, err) : -1;
}

void tide_query_backup_free(struct tide_backup_info *info)
{
	if (!info)
		return;
	free(info->id);
	free(info->disk);
	free(info->base);
	free(info->transaction);
	free(info->device);
	free(info->bitmap);
	free(info);
}
