/*
 * What people see: messages and progress on stderr, sizes in words.
 *
 * Everything that may hold bytes from outside (names, paths, texts of the library) is
 * escaped before it is shown: what is not printable UTF-8 appears as \xNN, so that no
 * file name can move a terminal's cursor.
 */
#ifndef UI_H
#define UI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <time.h>

#include "tidemark.h"

struct ui {
	const char *command;
	const char *image; /* for messages; NULL before it is known */
	bool quiet;
	bool bar;   /* draw a progress bar */
	bool drawn; /* the cursor stands behind a bar */
	uint64_t started_ns, drawn_ns;
	uint64_t first; /* where the job's offset stood when the bar first saw it */
	char job[64];   /* the device that the times belong to */
};

void ui_error(struct ui *ui, const struct tide_error *err);
void ui_warning(struct ui *ui, const char *image, const char *text);

/* Like an error, but of the program itself: "COMMAND: WHAT: strerror". */
void ui_failure(struct ui *ui, const char *what, int sys);

/* A remark for people; silent when quiet. */
void ui_note(struct ui *ui, const char *text);

/* Draws the bar if it is time; with `report`, prints one line as dd does. */
void ui_progress(struct ui *ui, const struct tide_progress *progress, bool report);

/* Takes a drawn bar away before something else is printed. */
void ui_clear(struct ui *ui);

/* A printable copy, to be freed; NULL without memory. */
char *ui_escape(const char *text);

/* The locale's character set, for those who print by it: it takes longer to load than what a small command does. */
void ui_use_locale(void);

/* The columns that a printable text takes. */
int ui_width(const char *text);

/* "448 KiB", in the manner of qemu-img: three digits, the unit changes at 1000. */
#define UI_SIZE_MAX 24
const char *ui_size(char text[UI_SIZE_MAX], uint64_t size);

/* The width to print for: $COLUMNS, the terminal behind fd, or 80. */
int ui_columns(int fd);

/* Whether the locale can show more than ASCII. */
bool ui_is_utf8(void);

#endif
