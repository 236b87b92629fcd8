/*
 * Output for people: messages and progress on stderr, readable sizes.
 *
 * Every text that may contain bytes from outside (names, paths, texts of the library) is
 * escaped before it is shown: bytes that are not printable UTF-8 appear as \xNN, so that
 * no file name can move a terminal's cursor.
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
	bool drawn; /* the cursor is at the end of a bar */
	uint64_t started_ns, drawn_ns;
	uint64_t first; /* the offset of the job when the bar was first drawn */
	char job[64];   /* the device that the times belong to */
};

void ui_error(struct ui *ui, const struct tide_error *err);
/* A line after an error: how a person can solve the problem. */
void ui_hint(struct ui *ui, const char *text);
void ui_warning(struct ui *ui, const char *image, const char *text);
/* Also after -q. */
void ui_alert(struct ui *ui, const char *image, const char *text);

/* Prints an error of the program itself: "COMMAND: WHAT: strerror". */
void ui_failure(struct ui *ui, const char *what, int sys);

/* Prints a remark for people, unless quiet. */
void ui_note(struct ui *ui, const char *text);

/* Draws the bar if it is due; with `report`, prints one line as dd does. */
void ui_progress(struct ui *ui, const struct tide_progress *progress, bool report);

/* Erases a drawn bar before something else is printed. */
void ui_clear(struct ui *ui);

/* A printable copy, to be freed; NULL without memory. */
char *ui_escape(const char *text);

/* Loads the character set of the locale; called only where it is needed, since a small command takes less time. */
void ui_use_locale(void);

/* The number of columns of a printable text. */
int ui_width(const char *text);

/* "448 KiB", in the manner of qemu-img: three digits, the unit changes at 1000. */
#define UI_SIZE_MAX 24
const char *ui_size(char text[UI_SIZE_MAX], uint64_t size);
/* Seconds since 1970 as "2026-11-28 23:00:00", local time.  If there is no such time, text stays. */
#define UI_TIME_MAX 32
void ui_time(char text[UI_TIME_MAX], int64_t seconds);

/* The width of the output: $COLUMNS, the terminal of fd, or 80. */
int ui_columns(int fd);

/* Whether the locale can show more than ASCII. */
bool ui_is_utf8(void);

#endif
