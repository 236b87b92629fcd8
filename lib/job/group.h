/*
 * Grouped completion: backup jobs that succeed together or fail together (QMP's
 * completion-mode=grouped), on disk too, power loss included.
 *
 * All jobs copy side by side.  When all copies are complete, one commit (commit.h) names the new targets
 * and puts the settled bitmaps in place, together with the changes of nodes that wait for the end of the
 * group.  If a job fails, the others are stopped, and each bitmap is settled as after a failed job.
 */
#ifndef TIDE_GROUP_H
#define TIDE_GROUP_H

#include "backup.h"

struct tide_group_plan {
	struct tide_backup_job *const *jobs; /* in the order of the actions */
	size_t n_jobs;
	struct tide_node *const *nodes; /* those with deferred changes */
	size_t n_nodes;
};

/* *failed: the number of jobs that did not succeed; err: the cause of the first failure. */
int tide_group_run(const struct tide_group_plan *plan, struct tide_sink *sink, size_t *failed, struct tide_error *err);

#endif
