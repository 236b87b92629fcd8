/*
 * Writes replies, job events, warnings and progress to a session's callbacks, as QEMU 7.2 lays them
 * out. One lock keeps the lines of several threads apart.
 */
#include "event.h"

#include <stdlib.h>
#include <time.h>

#include "error.h"
#include "mem.h"

void tide_event_init(struct tide_sink *sink, const struct tide_session_options *to)
{
	*sink = (struct tide_sink){ .to = *to };
	pthread_mutex_init(&sink->lock, NULL);
	atomic_init(&sink->cancelled, false);
	atomic_init(&sink->resumed, 0);
}

void tide_event_release(struct tide_sink *sink)
{
	pthread_mutex_destroy(&sink->lock);
}

int tide_event_line(struct tide_sink *sink, const char *json)
{
	int rc;

	if (!sink->to.line)
		return 0;
	pthread_mutex_lock(&sink->lock);
	rc = sink->to.line(sink->to.data, json);
	if (rc < 0)
		sink->failed = true;
	pthread_mutex_unlock(&sink->lock);
	return rc;
}

static int deliver(struct tide_sink *sink, struct tide_strbuf *sb)
{
	TIDE_AUTOFREE char *text = tide_strbuf_steal(sb, NULL);

	return text ? tide_event_line(sink, text)
	            : tide_event_line(sink, "{\"error\": {\"class\": \"GenericError\", "
	                                    "\"desc\": \"Out of memory\"}}");
}

int tide_event_return(struct tide_sink *sink, const char *json)
{
	struct tide_strbuf sb = TIDE_STRBUF_INIT;
	struct tide_json_writer w = { &sb, false };

	tide_json_begin(&w, NULL, '{');
	tide_json_raw(&w, "return", json);
	if (sink->id)
		tide_json_raw(&w, "id", sink->id);
	tide_json_end(&w, '}');
	return deliver(sink, &sb);
}

int tide_event_return_empty(struct tide_sink *sink)
{
	return tide_event_return(sink, "{}");
}

int tide_event_error_reply(struct tide_sink *sink, const struct tide_error *error)
{
	struct tide_strbuf sb = TIDE_STRBUF_INIT;
	struct tide_json_writer w = { &sb, false };

	tide_json_begin(&w, NULL, '{');
	if (sink->id)
		tide_json_raw(&w, "id", sink->id);
	tide_json_begin(&w, "error", '{');
	tide_json_string(&w, "class", tide_error_class(error->code));
	tide_json_string(&w, "desc", error->msg ? error->msg : "Unknown error");
	tide_json_end(&w, '}');
	tide_json_end(&w, '}');
	return deliver(sink, &sb);
}

static void TIDE_PRINTF(4, 0) warn(struct tide_sink *sink, void (*to)(void *, const char *, const char *),
                                   const char *image, const char *fmt, va_list ap)
{
	struct tide_strbuf sb = TIDE_STRBUF_INIT;

	if (!to)
		return;
	tide_strbuf_vaddf(&sb, fmt, ap);
	pthread_mutex_lock(&sink->lock);
	to(sink->to.data, image, sb.buf ? sb.buf : fmt);
	pthread_mutex_unlock(&sink->lock);
	tide_strbuf_release(&sb);
}

void tide_event_warning(struct tide_sink *sink, const char *image, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	warn(sink, sink->to.warning, image, fmt, ap);
	va_end(ap);
}

void tide_event_alert(struct tide_sink *sink, const char *image, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	warn(sink, sink->to.alert ? sink->to.alert : sink->to.warning, image, fmt, ap);
	va_end(ap);
}

static void begin_event(struct tide_json_writer *w, const char *name)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	tide_json_begin(w, NULL, '{');
	tide_json_begin(w, "timestamp", '{');
	tide_json_int(w, "seconds", now.tv_sec);
	tide_json_int(w, "microseconds", now.tv_nsec / 1000);
	tide_json_end(w, '}');
	tide_json_string(w, "event", name);
	tide_json_begin(w, "data", '{');
}

static void end_event(struct tide_sink *sink, struct tide_json_writer *w)
{
	tide_json_end(w, '}');
	tide_json_end(w, '}');
	deliver(sink, w->sb);
}

void tide_event_job_error(struct tide_sink *sink, const char *device, const char *operation, const char *action)
{
	struct tide_strbuf sb = TIDE_STRBUF_INIT;
	struct tide_json_writer w = { &sb, false };

	begin_event(&w, "BLOCK_JOB_ERROR");
	tide_json_string(&w, "device", device);
	tide_json_string(&w, "operation", operation);
	tide_json_string(&w, "action", action);
	end_event(sink, &w);
}

static void job_end(struct tide_sink *sink, const char *name, const struct tide_job_result *r, bool with_error)
{
	struct tide_strbuf sb = TIDE_STRBUF_INIT;
	struct tide_json_writer w = { &sb, false };

	begin_event(&w, name);
	tide_json_string(&w, "device", r->device);
	tide_json_uint(&w, "len", r->len);
	tide_json_uint(&w, "offset", r->offset);
	tide_json_uint(&w, "speed", r->speed);
	tide_json_string(&w, "type", "backup");
	if (with_error && r->error)
		tide_json_string(&w, "error", r->error);
	end_event(sink, &w);
}

void tide_event_job_completed(struct tide_sink *sink, const struct tide_job_result *result)
{
	job_end(sink, "BLOCK_JOB_COMPLETED", result, true);
}

void tide_event_job_cancelled(struct tide_sink *sink, const struct tide_job_result *result)
{
	job_end(sink, "BLOCK_JOB_CANCELLED", result, false);
}

void tide_event_job_status(struct tide_sink *sink, const char *id, const char *status)
{
	struct tide_strbuf sb = TIDE_STRBUF_INIT;
	struct tide_json_writer w = { &sb, false };

	if (!sink->to.job_events)
		return;
	begin_event(&w, "JOB_STATUS_CHANGE");
	tide_json_string(&w, "status", status);
	tide_json_string(&w, "id", id);
	end_event(sink, &w);
}

void tide_event_progress(struct tide_sink *sink, const struct tide_progress *progress)
{
	if (!sink->to.progress)
		return;
	pthread_mutex_lock(&sink->lock);
	sink->to.progress(sink->to.data, progress);
	pthread_mutex_unlock(&sink->lock);
}
