/*
 * image-info: shows an image, its backing images and its bitmaps.
 * The library returns the facts or a reply in JSON; this file prints them in the form of qemu-img info.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "cmd.h"

static const struct poptOption options[] = { { "output", 0, POPT_ARG_STRING, NULL, OPT_OUTPUT,
	                                       "text, or the reply (default: human)", "human|json" },
	                                     POPT_TABLEEND };

static void print_text(const char *key, const char *text)
{
	CMD_AUTOFREE char *plain = ui_escape(text);

	printf("%s: %s\n", key, plain ? plain : "");
}

static void print_features(const struct tide_image_info *info)
{
	if (info->n_features)
		puts("Format specific information:");
	for (size_t i = 0; i < info->n_features; i++) {
		const struct tide_feature *f = info->features[i];

		fputs("    ", stdout);
		for (const char *p = f->key; *p; p++)
			putchar(*p == '-' ? ' ' : *p);
		if (f->kind == TIDE_FEATURE_TEXT)
			print_text("", f->text);
		else if (f->kind == TIDE_FEATURE_NUMBER)
			printf(": %" PRIu64 "\n", f->number);
		else
			printf(": %s\n", f->number ? "true" : "false");
	}
}

static void print_bitmaps(const struct tide_bitmap_list *list)
{
	char count[UI_SIZE_MAX];

	if (list && list->n)
		puts("Bitmaps:");
	for (size_t i = 0; list && i < list->n; i++) {
		const struct tide_bitmap_info *b = list->items[i];

		printf("    [%zu]:\n", i);
		print_text("        name", b->name);
		printf("        granularity: %" PRIu64 "\n", b->granularity);
		printf("        dirty: %s (%" PRIu64 " bytes)\n", ui_size(count, b->count), b->count);
		printf("        flags: %s%s%s\n", b->recording ? "recording" : "disabled", b->busy ? ", busy" : "",
		       b->inconsistent ? ", inconsistent" : "");
		printf("        store: %s\n", b->store == TIDE_STORE_IMAGE ? "image" : "sidecar");
	}
}

static void print_backing(const struct tide_image_info *info)
{
	CMD_AUTOFREE char *name = info->backing_filename ? ui_escape(info->backing_filename) : NULL;
	CMD_AUTOFREE char *path = info->backing_path ? ui_escape(info->backing_path) : NULL;

	if (!name)
		return;
	if (path && strcmp(path, name) != 0)
		printf("backing file: %s (actual path: %s)\n", name, path);
	else
		printf("backing file: %s\n", name);
	if (info->backing_format)
		print_text("backing file format", info->backing_format);
}

static void print_snapshot(const struct tide_snapshot *s)
{
	CMD_AUTOFREE char *id = ui_escape(s->id);
	CMD_AUTOFREE char *name = ui_escape(s->name);
	char size[UI_SIZE_MAX], date[UI_TIME_MAX] = "", clock[40];

	ui_time(date, (int64_t)s->date_sec);
	snprintf(clock, sizeof(clock), "%02" PRIu64 ":%02" PRIu64 ":%02" PRIu64 ".%03" PRIu64, s->vm_clock_sec / 3600,
	         s->vm_clock_sec / 60 % 60, s->vm_clock_sec % 60, s->vm_clock_nsec / 1000000);
	printf("%-9s %-16s %8s %19s %12s", id ? id : "", name ? name : "", ui_size(size, s->vm_state_size), date,
	       clock);
	if (s->has_icount)
		printf(" %10" PRIu64, s->icount);
	putchar('\n');
}

static void print_snapshots(const struct tide_image_info *info)
{
	if (!info->snapshots)
		return;
	puts("Snapshot list:");
	printf("%-9s %-16s %8s %19s %12s %10s\n", "ID", "TAG", "VM SIZE", "DATE", "VM CLOCK", "ICOUNT");
	for (uint32_t i = 0; i < info->snapshots; i++)
		print_snapshot(info->snapshot[i]);
}

static void print_image(const struct tide_image_info *info)
{
	char size[UI_SIZE_MAX];

	print_text("image", info->filename);
	print_text("file format", info->format);
	printf("virtual size: %s (%" PRIu64 " bytes)\n", ui_size(size, info->virtual_size), info->virtual_size);
	printf("disk size: %s\n", info->is_remote ? "unavailable" : ui_size(size, info->actual_size));
	if (info->cluster_size)
		printf("cluster_size: %" PRIu64 "\n", info->cluster_size);
	if (info->dirty)
		puts("cleanly shut down: no");
	print_backing(info);
	print_snapshots(info);
	print_features(info);
	if (info->sidecar)
		print_text("sidecar", info->sidecar);
	print_bitmaps(info->bitmaps);
}

static int run(struct cmd *c, struct tide_error *err)
{
	struct tide_image_info *info = NULL;
	int output = CMD_OUTPUT_HUMAN;

	if (opt_choice(c->opt, OPT_OUTPUT, &output, err) || cmd_add_image(c, err) ||
	    tide_query_image(c->session, c->node, &info, err))
		return -1;
	if (output != CMD_OUTPUT_HUMAN)
		tide_reply_image(c->session, info);
	for (const struct tide_image_info *i = output == CMD_OUTPUT_HUMAN ? info : NULL; i; i = i->backing) {
		if (i != info)
			putchar('\n');
		print_image(i);
	}
	tide_image_info_free(info);
	return 0;
}

const struct command command = {
	.name = "image-info",
	.summary = "Show an image, its backing chain and its bitmaps",
	.arguments = "IMAGE",
	.completes = "f",
	.options = options,
	.min_args = 1,
	.max_args = 1,
	.flags = CMD_IMAGE | CMD_SHOW,
	.run = run,
};
