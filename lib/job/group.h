/*
 * Grouped completion: backup jobs that succeed together or fail together (QMP's
 * completion-mode=grouped), on disk too, power loss included.
 *
 * All jobs copy side by side.  When each has copied all it had to, everything that is to be
 * renamed - new targets, and the sidecars with the settled bitmaps - is made durable; then
 * the group's record is written, and only then the renames are made.  If a job fails, the
 * others are stopped, and each bitmap is what it was.
 */
#ifndef TIDE_GROUP_H
#define TIDE_GROUP_H

#include "backup.h"

struct tide_group_plan {
	struct tide_backup_job *const *jobs; /* in the order of the actions */
	size_t n_jobs;
	struct tide_node *const *nodes; /* those with deferred changes */
	size_t n_nodes;
	const char *record; /* where the decision goes */
};

/* *failed: how many jobs did not succeed; err: why the first one did not. */
int tide_group_run(const struct tide_group_plan *plan, struct tide_sink *sink, size_t *failed, struct tide_error *err);

#endif
