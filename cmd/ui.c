/* Output for people on stderr (ui.h): messages, the progress bar, and the escaping of names and texts. */
#include <errno.h>
#include <inttypes.h>
#include <langinfo.h>
#include <locale.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include <wchar.h>

#include "cmd.h"
#include "ui.h"

#define NS_PER_S  1000000000ull
#define REDRAW_NS (NS_PER_S / 10)

/* Code points that move, hide or reorder the text around them. */
static bool is_unprintable(uint32_t c)
{
	return c < 0x20 || (c >= 0x7f && c < 0xa0) || (c >= 0x200e && c <= 0x200f) || (c >= 0x2028 && c <= 0x202e) ||
	       (c >= 0x2066 && c <= 0x2069) || (c >= 0xd800 && c < 0xe000) || c == 0xfeff || c > 0x10ffff;
}

/* The length of the printable UTF-8 sequence at s, or 0. */
static size_t printable(const unsigned char *s)
{
	static const uint32_t smallest[] = { 0, 0, 0x80, 0x800, 0x10000 };
	size_t len = s[0] < 0x80             ? 1
	             : (s[0] & 0xe0) == 0xc0 ? 2
	             : (s[0] & 0xf0) == 0xe0 ? 3
	             : (s[0] & 0xf8) == 0xf0 ? 4
	                                     : 0;
	uint32_t c;

	if (len == 0)
		return 0;
	c = len == 1 ? s[0] : s[0] & (0x7fu >> len);
	for (size_t i = 1; i < len; i++) {
		if ((s[i] & 0xc0) != 0x80)
			return 0;
		c = c << 6 | (s[i] & 0x3f);
	}
	return c < smallest[len] || is_unprintable(c) ? 0 : len;
}

char *ui_escape(const char *text)
{
	const unsigned char *s = (const unsigned char *)text;
	char *out = calloc(strlen(text) + 1, 4), *p = out;

	while (out && *s) {
		size_t len = printable(s);

		if (len) {
			p = mempcpy(p, s, len);
			s += len;
		} else {
			p += sprintf(p, "\\x%02x", *s++);
		}
	}
	return out;
}

void ui_use_locale(void)
{
	static bool known;

	if (!known)
		setlocale(LC_CTYPE, "");
	known = true;
}

int ui_width(const char *text)
{
	wchar_t wide[1024];
	size_t n;

	ui_use_locale();
	n = mbstowcs(wide, text, CMD_ARRAY_SIZE(wide));
	int width = n < CMD_ARRAY_SIZE(wide) ? wcswidth(wide, n) : -1;

	return width < 0 ? (int)strlen(text) : width;
}

static const char *shown(const char *text)
{
	return text ? text : "(out of memory)";
}

/* Writes a message with one write, so that messages of several programs do not mix. */
static void say(struct ui *ui, const char *image, const char *kind, const char *text)
{
	CMD_AUTOFREE char *where = image ? ui_escape(image) : NULL;
	CMD_AUTOFREE char *what = ui_escape(text);

	ui_clear(ui);
	fprintf(stderr, "%s: %s%s%s%s\n", ui->command, image ? shown(where) : "", image ? ": " : "", kind, shown(what));
}

void ui_hint(struct ui *ui, const char *text)
{
	say(ui, NULL, "", text);
}

void ui_error(struct ui *ui, const struct tide_error *err)
{
	say(ui, err->code == TIDE_E_USAGE ? NULL : ui->image, "", err->msg ? err->msg : "out of memory");
	if (err->hint)
		ui_hint(ui, err->hint);
	if (err->code == TIDE_E_USAGE)
		fprintf(stderr, "Try '%s --help' for more information.\n", ui->command);
}

void ui_warning(struct ui *ui, const char *image, const char *text)
{
	if (!ui->quiet)
		say(ui, image, "warning: ", text);
}

void ui_alert(struct ui *ui, const char *image, const char *text)
{
	say(ui, image, "warning: ", text);
}

void ui_failure(struct ui *ui, const char *what, int sys)
{
	say(ui, what, "", strerror(sys));
}

void ui_note(struct ui *ui, const char *text)
{
	if (!ui->quiet)
		say(ui, ui->image, "", text);
}

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

static const char *const units[] = { "B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB" };

static size_t unit_of(uint64_t size)
{
	double value = (double)size;
	size_t unit = 0;

	while (value >= 1000) {
		value /= 1024;
		unit++;
	}
	return unit;
}

static double in_unit(uint64_t size, size_t unit)
{
	return (double)size / (double)(1ull << (10 * unit));
}

const char *ui_size(char text[UI_SIZE_MAX], uint64_t size)
{
	size_t unit = unit_of(size);

	snprintf(text, UI_SIZE_MAX, "%.3g %s", in_unit(size, unit), units[unit]);
	return text;
}

void ui_time(char text[UI_TIME_MAX], int64_t seconds)
{
	time_t when = (time_t)seconds;
	struct tm tm;

	if (localtime_r(&when, &tm))
		strftime(text, UI_TIME_MAX, "%Y-%m-%d %H:%M:%S", &tm);
}

static int percent(const struct tide_progress *p)
{
	if (p->len == 0 || p->offset >= p->len)
		return 100;
	return (int)((double)p->offset / (double)p->len * 100);
}

/* "123 of 456 MiB" */
static void amount(char *text, size_t room, const struct tide_progress *p)
{
	size_t unit = unit_of(p->len);
	double done = in_unit(p->offset, unit);

	snprintf(text, room, "%.*f of %.3g %s", unit > 0 && done < 10 ? 2 : 0, done, in_unit(p->len, unit),
	         units[unit]);
}

static void report_line(struct ui *ui, const struct tide_progress *p)
{
	CMD_AUTOFREE char *device = ui_escape(p->device);
	char done[64];

	amount(done, sizeof(done), p);
	ui_clear(ui);
	fprintf(stderr, "%s: %s: %s, %d %%\n", ui->command, shown(device), done, percent(p));
}

/* "88 MiB/s, 0:12 left" once the rate is known. */
static void pace(char *text, size_t room, const struct ui *ui, const struct tide_progress *p, uint64_t now)
{
	double seconds = (double)(now - ui->started_ns) / NS_PER_S;
	double rate = p->offset > ui->first && seconds > 0.2 ? (double)(p->offset - ui->first) / seconds : 0;
	char each[UI_SIZE_MAX];
	uint64_t left;

	text[0] = '\0';
	if (rate < 1)
		return;
	left = p->offset < p->len ? (uint64_t)((double)(p->len - p->offset) / rate + 0.5) : 0;
	if (left >= 3600)
		snprintf(text, room, ", %s/s, %" PRIu64 ":%02u:%02u left", ui_size(each, (uint64_t)rate), left / 3600,
		         (unsigned)(left / 60 % 60), (unsigned)(left % 60));
	else
		snprintf(text, room, ", %s/s, %u:%02u left", ui_size(each, (uint64_t)rate), (unsigned)(left / 60),
		         (unsigned)(left % 60));
}

static void draw(struct ui *ui, const struct tide_progress *p, uint64_t now)
{
	char done[64], speed[80], line[512], bar[256] = "";
	int columns = ui_columns(STDERR_FILENO) - 1;
	int used, room;

	amount(done, sizeof(done), p);
	pace(speed, sizeof(speed), ui, p, now);
	used = (int)(strlen("100 % [] ") + strlen(done) + strlen(speed));
	if (used > columns)
		speed[0] = '\0';
	room = columns - used < 50 ? columns - used : 50;
	if (room >= 8) {
		int full = room * percent(p) / 100;

		bar[0] = '[';
		memset(bar + 1, '=', (size_t)full);
		memset(bar + 1 + full, ' ', (size_t)(room - full));
		memcpy(bar + 1 + room, "] ", 3);
	}
	snprintf(line, sizeof(line), "%3d %% %s%s%s", percent(p), bar, done, speed);
	fprintf(stderr, "\r%.*s\033[K", columns > 0 ? columns : 0, line);
	ui->drawn = true;
	ui->drawn_ns = now;
}

static void draw_bar(struct ui *ui, const struct tide_progress *p)
{
	uint64_t now = now_ns();

	if (ui->started_ns == 0 || strncmp(ui->job, p->device, sizeof(ui->job) - 1) != 0) {
		snprintf(ui->job, sizeof(ui->job), "%s", p->device);
		ui->started_ns = now;
		ui->first = p->offset;
		ui->drawn_ns = 0;
	}
	if (p->finished || ui->drawn_ns == 0 || now - ui->drawn_ns >= REDRAW_NS)
		draw(ui, p, now);
	if (p->finished) {
		fputc('\n', stderr);
		ui->drawn = false;
		ui->started_ns = 0;
	}
}

void ui_progress(struct ui *ui, const struct tide_progress *p, bool report)
{
	if (report)
		report_line(ui, p);
	if (ui->bar)
		draw_bar(ui, p);
}

void ui_clear(struct ui *ui)
{
	if (ui->drawn)
		fputs("\r\033[K", stderr);
	ui->drawn = false;
	ui->drawn_ns = 0;
}

int ui_columns(int fd)
{
	const char *columns = getenv("COLUMNS");
	struct winsize size;
	char *end;
	long n = columns && *columns ? strtol(columns, &end, 10) : 0;

	if (n > 0 && n < 10000 && *end == '\0')
		return (int)n;
	return ioctl(fd, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

bool ui_is_utf8(void)
{
	ui_use_locale();
	return strcmp(nl_langinfo(CODESET), "UTF-8") == 0;
}
