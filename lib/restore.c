#include "restore.h"

#include <stdlib.h>

#include "copy.h"
#include "error.h"
#include "mem.h"
#include "target.h"

struct tide_restore {
	struct tide_node *node;
	struct tide_target target;
	struct tide_copy copy;
};

static int prepare(struct tide_restore *restore, const struct tide_chain_restore *args, struct tide_error *err)
{
	struct tide_image *source = restore->node->image;
	struct tide_driver_create create = { .size = tide_image_exact_size(source) };
	struct tide_copy *copy = &restore->copy;

	if (tide_target_create(&restore->target, args->target, args->format ? args->format : "raw", &create, source,
	                       !args->overwrite, err) < 0)
		return -1;
	copy->source = source;
	copy->target = restore->target.image;
	copy->unit = TIDE_MAX(65536, tide_image_info(copy->target)->cluster_size);
	copy->target_reads_zero = true;
	copy->device = restore->node->id;
	copy->todo = tide_copy_plan(tide_image_size(copy->target), copy->unit, NULL, err);
	return copy->todo ? 0 : -1;
}

int tide_restore_prepare(struct tide_node *node, const struct tide_chain_restore *args, struct tide_sink *sink,
                         struct tide_restore **out, struct tide_error *err)
{
	struct tide_restore *restore = tide_mem_alloc(1, sizeof(*restore), err);

	if (!restore)
		return -1;
	restore->node = node;
	restore->target = (struct tide_target)TIDE_TARGET_INIT;
	restore->copy.sink = sink;
	if (prepare(restore, args, err) < 0) {
		tide_restore_free(restore);
		return -1;
	}
	*out = restore;
	return 0;
}

int tide_restore_run(struct tide_restore *restore, struct tide_error *err)
{
	if (tide_copy_run(&restore->copy, err) < 0 || tide_image_check_unchanged(restore->node->image, err) < 0)
		return -1;
	return tide_target_commit(&restore->target, err);
}

void tide_restore_free(struct tide_restore *restore)
{
	if (!restore)
		return;
	tide_bitmap_free(restore->copy.todo);
	tide_target_release(&restore->target);
	free(restore);
}
