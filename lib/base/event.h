/*
 * The sink of replies, events, warnings and progress, and their layout: QMP's replies and block-job events
 * as QEMU 7.2 prints them.
 */
#ifndef TIDE_EVENT_H
#define TIDE_EVENT_H

#include <pthread.h>
#include <stdatomic.h>

#include "compiler.h"
#include "json.h"

struct tide_sink {
	struct tide_session_options to;
	pthread_mutex_t lock;
	atomic_bool cancelled;
	atomic_uint resumed; /* counts tide_session_resume */
	bool failed;         /* a line could not be delivered */
	const char *id;      /* JSON: the "id" of the current request, which its reply repeats; or NULL */
};

void tide_event_init(struct tide_sink *sink, const struct tide_session_options *to);
void tide_event_release(struct tide_sink *sink);

/* Delivers a finished line of JSON. */
int tide_event_line(struct tide_sink *sink, const char *json);
int tide_event_return(struct tide_sink *sink, const char *json); /* {"return": json} */
int tide_event_return_empty(struct tide_sink *sink);             /* {"return": {}} */
int tide_event_error_reply(struct tide_sink *sink, const struct tide_error *error);
void tide_event_warning(struct tide_sink *sink, const char *image, const char *fmt, ...) TIDE_PRINTF(3, 4);
/* The same, also for those who want no warnings. */
void tide_event_alert(struct tide_sink *sink, const char *image, const char *fmt, ...) TIDE_PRINTF(3, 4);

/* The data of the two events that end a job. */
struct tide_job_result {
	const char *device; /* the job's id */
	uint64_t len, offset, speed;
	const char *error; /* NULL: none */
};

void tide_event_job_error(struct tide_sink *sink, const char *device, const char *operation, const char *action);
void tide_event_job_completed(struct tide_sink *sink, const struct tide_job_result *result);
void tide_event_job_cancelled(struct tide_sink *sink, const struct tide_job_result *result);
/* JOB_STATUS_CHANGE, only if the session asked for it. */
void tide_event_job_status(struct tide_sink *sink, const char *id, const char *status);
void tide_event_progress(struct tide_sink *sink, const struct tide_progress *progress);

static inline bool tide_event_is_cancelled(struct tide_sink *sink)
{
	return atomic_load_explicit(&sink->cancelled, memory_order_relaxed);
}

#endif
