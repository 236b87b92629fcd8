/*
 * The replies of chain-info and chain-verify, for which QMP has no command.
 */
#include "reply.h"

static const char *const verdict_names[] = {
	[TIDE_VERDICT_WHOLE] = "whole",
	[TIDE_VERDICT_UNKNOWN] = "unknown",
	[TIDE_VERDICT_DAMAGED] = "damaged",
	[TIDE_VERDICT_PART] = "part",
};

static void put_findings(struct tide_json_writer *w, const struct tide_chain_image *image)
{
	uint64_t leaks = image->counts[TIDE_FINDING_LEAK], corruptions = 0;

	for (int kind = 0; kind < TIDE_FINDING_KINDS; kind++)
		corruptions += kind == TIDE_FINDING_LEAK || kind >= TIDE_FINDING_LINK ? 0 : image->counts[kind];
	tide_json_uint(w, "leaks", leaks);
	tide_json_uint(w, "corruptions", corruptions);
	tide_json_begin(w, "findings", '[');
	for (size_t i = 0; i < image->n_findings; i++) {
		const struct tide_finding *f = image->findings[i];

		tide_json_begin(w, NULL, '{');
		tide_json_string(w, "kind", tide_finding_name(f->kind));
		if (f->len) {
			tide_json_uint(w, "offset", f->off);
			tide_json_uint(w, "length", f->len);
		}
		tide_json_string(w, "text", f->text);
		tide_json_end(w, '}');
	}
	tide_json_end(w, ']');
}

static void put_text(struct tide_json_writer *w, const char *key, const char *text)
{
	if (text)
		tide_json_string(w, key, text);
}

static void put_backup(struct tide_json_writer *w, const struct tide_backup_info *b)
{
	tide_json_begin(w, "backup", '{');
	tide_json_string(w, "id", b->id);
	tide_json_int(w, "time", b->time);
	tide_json_string(w, "sync", b->sync);
	tide_json_bool(w, "part", b->is_part);
	if (b->is_incomplete)
		tide_json_bool(w, "incomplete", true);
	tide_json_bool(w, "unchanged", b->is_unchanged);
	tide_json_uint(w, "size", b->exact_size);
	put_text(w, "base", b->base);
	if (b->base_time)
		tide_json_int(w, "base-time", b->base_time);
	put_text(w, "disk", b->disk);
	put_text(w, "transaction", b->transaction);
	put_text(w, "device", b->device);
	put_text(w, "bitmap", b->bitmap);
	tide_json_end(w, '}');
}

static void put_time(struct tide_json_writer *w, const struct tide_chain_image *image)
{
	tide_json_begin(w, "modified", '{');
	tide_json_int(w, "seconds", image->modified_s);
	tide_json_uint(w, "nanoseconds", image->modified_ns);
	tide_json_end(w, '}');
}

static void put_image(struct tide_json_writer *w, const struct tide_chain_image *image, bool verified)
{
	tide_json_begin(w, NULL, '{');
	tide_json_string(w, "filename", image->filename);
	tide_json_string(w, "path", image->path);
	if (image->format) {
		tide_json_string(w, "format", image->format);
		tide_json_uint(w, "virtual-size", image->virtual_size);
		if (!image->is_remote) {
			tide_json_uint(w, "file-size", image->file_size);
			tide_json_uint(w, "actual-size", image->actual_size);
		}
		if (image->cluster_size)
			tide_json_uint(w, "cluster-size", image->cluster_size);
		if (!verified) {
			tide_json_uint(w, "data", image->data);
			tide_json_uint(w, "zeroes", image->zeroes);
		}
		if (!image->is_remote)
			put_time(w, image);
	}
	if (image->backing_filename)
		tide_json_string(w, "backing-filename", image->backing_filename);
	if (image->backing_format)
		tide_json_string(w, "backing-filename-format", image->backing_format);
	if (image->has_checksums)
		tide_json_bool(w, "checksums", true);
	if (image->backup)
		put_backup(w, image->backup);
	if (image->bitmaps)
		tide_reply_put_bitmaps(w, "bitmaps", image->bitmaps, true);
	tide_json_string(w, "verdict", verdict_names[image->verdict]);
	put_findings(w, image);
	if (image->proven || image->unproven) {
		tide_json_uint(w, "proven", image->proven);
		tide_json_uint(w, "unproven", image->unproven);
	}
	tide_json_end(w, '}');
}

static void put_differences(struct tide_json_writer *w, const struct tide_chain *chain)
{
	tide_json_begin(w, "compared", '{');
	tide_json_uint(w, "length", chain->size);
	tide_json_uint(w, "unit", chain->unit);
	tide_json_uint(w, "differing", chain->differing);
	tide_json_begin(w, "differences", '[');
	for (size_t i = 0; i < chain->n_differences; i++) {
		tide_json_begin(w, NULL, '{');
		tide_json_uint(w, "start", chain->differences[i].off);
		tide_json_uint(w, "length", chain->differences[i].len);
		tide_json_end(w, '}');
	}
	tide_json_end(w, ']');
	tide_json_end(w, '}');
}

int tide_reply_chain(struct tide_session *session, const struct tide_chain *chain)
{
	struct tide_strbuf sb = TIDE_STRBUF_INIT;
	struct tide_json_writer w = { &sb, false };

	tide_json_begin(&w, NULL, '{');
	tide_json_begin(&w, "return", '{');
	tide_json_string(&w, "verdict", verdict_names[chain->verdict]);
	tide_json_bool(&w, "verified", chain->verified);
	if (chain->accepted)
		tide_json_uint(&w, "accepted", chain->accepted);
	if (chain->compared)
		put_differences(&w, chain);
	tide_json_begin(&w, "images", '[');
	for (size_t i = 0; i < chain->n; i++)
		put_image(&w, chain->images[i], chain->verified);
	tide_json_end(&w, ']');
	tide_json_end(&w, '}');
	return tide_reply_send(session, &w);
}
