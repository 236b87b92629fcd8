/*
 * The main function of every command (cmd.h).
 * It prepares the standard descriptors, parses the command line, answers --help and the like, opens a session, runs
 * the command, prints replies and messages, handles signals, and turns the error into the exit status.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include "cmd.h"
#include "complete.h"

/* The only variables that signal handlers use. */
static struct tide_session *volatile cancel_session;
static volatile sig_atomic_t caught;
static volatile sig_atomic_t report_wanted;

void cmd_freep(void *p)
{
	free(*(void **)p);
}

/* ---- signals ----------------------------------------------------------------------- */

static void on_cancel(int sig)
{
	int saved = errno;

	if (!caught)
		caught = sig;
	tide_session_cancel(cancel_session);
	errno = saved;
}

static void on_report(int sig)
{
	(void)sig;
	report_wanted = 1;
}

static void on_continue(int sig)
{
	int saved = errno;

	(void)sig;
	if (cancel_session)
		tide_session_resume(cancel_session);
	errno = saved;
}

static void handle(int sig, void (*handler)(int), int flags)
{
	struct sigaction action = { .sa_handler = handler, .sa_flags = flags };

	sigemptyset(&action.sa_mask);
	sigaction(sig, &action, NULL);
}

/* No SA_RESTART: the signal must interrupt a read or write that waits. */
void cmd_catch_signals(struct cmd *c)
{
	struct sigaction hangup;

	cancel_session = c->session;
	handle(SIGINT, on_cancel, 0);
	handle(SIGTERM, on_cancel, 0);
	handle(SIGCONT, on_continue, SA_RESTART);
	if (sigaction(SIGHUP, NULL, &hangup) == 0 && hangup.sa_handler != SIG_IGN)
		handle(SIGHUP, on_cancel, 0);
}

static void die_of(int sig)
{
	sigset_t set;

	handle(sig, SIG_DFL, 0);
	sigemptyset(&set);
	sigaddset(&set, sig);
	sigprocmask(SIG_UNBLOCK, &set, NULL);
	raise(sig);
}

/* ---- standard files ---------------------------------------------------------------- */

/* Opens a closed standard descriptor, because an image that got its number would receive messages. */
static void fill_closed(int fd, int flags)
{
	if (fcntl(fd, F_GETFD) < 0 && errno == EBADF)
		/* cppcheck-suppress leakReturnValNotUsed; it must stay open */
		(void)!open("/dev/null", flags);
}

/* Checks that standard output can be written before anything is changed; /dev/full refuses even an empty write. */
static int check_stdout(struct ui *ui)
{
	int mode = fcntl(STDOUT_FILENO, F_GETFL);
	int sys = mode < 0 ? errno : (mode & O_ACCMODE) == O_RDONLY ? EBADF : 0;

	if (!sys && write(STDOUT_FILENO, "", 0) < 0)
		sys = errno;
	if (sys)
		ui_failure(ui, "standard output", sys);
	return sys ? -1 : 0;
}

static int wait_writable(void)
{
	struct pollfd poll_out = { .fd = STDOUT_FILENO, .events = POLLOUT };

	return poll(&poll_out, 1, -1) < 0 && errno != EINTR ? -1 : 0;
}

/* Writes a line with one write, unless the kernel accepts less. */
static int write_line(const char *json)
{
	struct iovec parts[] = { { (char *)json, strlen(json) }, { "\n", 1 } };
	size_t done = 0;

	while (done < 2) {
		ssize_t n = writev(STDOUT_FILENO, parts + done, (int)(2 - done));

		if (n < 0 && errno == EAGAIN && wait_writable() == 0)
			continue;
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -1;
		while (done < 2 && (size_t)n >= parts[done].iov_len)
			n -= (ssize_t)parts[done++].iov_len;
		if (done < 2) {
			parts[done].iov_base = (char *)parts[done].iov_base + n;
			parts[done].iov_len -= (size_t)n;
		}
	}
	return 0;
}

/* ---- the session's callbacks ------------------------------------------------------- */

static int on_line(void *data, const char *json)
{
	struct cmd *c = data;

	ui_clear(&c->ui);
	if (!c->out_errno && write_line(json))
		c->out_errno = errno;
	return c->out_errno ? -1 : 0;
}

static void on_warning(void *data, const char *image, const char *text)
{
	struct cmd *c = data;

	ui_warning(&c->ui, image, text);
}

static void on_alert(void *data, const char *image, const char *text)
{
	struct cmd *c = data;

	ui_alert(&c->ui, image, text);
}

static void on_progress(void *data, const struct tide_progress *progress)
{
	struct cmd *c = data;

	ui_progress(&c->ui, progress, report_wanted);
	report_wanted = 0;
}

/* ---- what commands call ------------------------------------------------------------ */

int cmd_check_format(const char *format, struct tide_error *err)
{
	if (format && !tide_image_format_uses(format))
		return opt_fail(err, TIDE_E_REFUSED, "Unknown driver '%s'", format);
	return 0;
}

int cmd_add_image(struct cmd *c, struct tide_error *err)
{
	struct tide_drive drive = {
		.id = opt_text(c->opt, OPT_DEVICE),
		.path = c->args[0],
		.format = opt_text(c->opt, OPT_IMAGE_FORMAT),
		.sidecar = c->other_sidecar ? NULL : opt_text(c->opt, OPT_SIDECAR),
		.ignore_stamp = opt_has(c->opt, OPT_IGNORE_STAMP),
		.force_share = opt_has(c->opt, OPT_FORCE_SHARE),
		.allow = c->allow,
	};

	return tide_session_add_drive(c->session, &drive, &c->node, err);
}

int cmd_begin(struct cmd *c, struct tide_error *err)
{
	cmd_catch_signals(c);
	c->txn = tide_txn_new(c->session, err);
	if (!c->txn)
		return -1;
	tide_txn_set_dry_run(c->txn, opt_has(c->opt, OPT_DRY_RUN));
	return 0;
}

int cmd_run_bitmap(struct cmd *c,
                   int (*action)(struct tide_txn *, const struct tide_bitmap_edit *, struct tide_error *),
                   struct tide_error *err)
{
	struct tide_bitmap_edit args = { .name = c->args[1] };

	if (cmd_add_image(c, err) || cmd_begin(c, err))
		return -1;
	args.node = c->node;
	return action(c->txn, &args, err) ? -1 : tide_txn_run(c->txn, err);
}

/* ---- running one ------------------------------------------------------------------- */

/* A show command replies in JSON only for the outputs json and sha256. */
static bool is_for_people(const struct opt_line *line)
{
	const char *output = opt_text(line, OPT_OUTPUT);

	return (line->command->flags & CMD_SHOW) && (!output || (strcmp(output, "json") && strcmp(output, "sha256")));
}

/* The command line could not be parsed completely: search it for the option itself. */
static bool asks_for_json(int argc, char **argv)
{
	for (int i = 1; i < argc && argv[i]; i++)
		if (strcmp(argv[i], "--output=json") == 0 || strcmp(argv[i], "--output=sha256") == 0 ||
		    (strcmp(argv[i], "--output") == 0 && argv[i + 1] &&
		     (strcmp(argv[i + 1], "json") == 0 || strcmp(argv[i + 1], "sha256") == 0)))
			return true;
	return false;
}

static int open_session(struct cmd *c, struct tide_error *err)
{
	struct tide_session_options options = {
		.data = c,
		.line = on_line,
		.warning = on_warning,
		.progress = on_progress,
		.job_events = opt_has(c->opt, OPT_JOB_EVENTS),
		.alert = on_alert,
	};

	c->session = tide_session_new(&options, err);
	return c->session ? 0 : -1;
}

static int run(struct cmd *c, struct tide_error *err)
{
	if (opt_check_args(c->opt, err) || opt_flags(c->opt, OPT_ALLOW_BACKING, &c->allow, err))
		return -1;
	if (opt_has(c->opt, OPT_ALLOW_CHANGING))
		c->allow |= TIDE_ALLOW_CHANGING;
	if (opt_has(c->opt, OPT_ALLOW_PART))
		c->allow |= TIDE_ALLOW_PART;
	if (opt_has(c->opt, OPT_ALLOW_BASE)) {
		int other;

		if (opt_choice(c->opt, OPT_ALLOW_BASE, &other, err))
			return -1;
		c->allow |= TIDE_ALLOW_BASE;
	}
	c->ui.image = c->args ? c->args[0] : NULL;
	return command.run(c, err);
}

/* Answers an option that needs no session.  -1: no such option was given. */
static int answer(struct opt_line *line)
{
	if (opt_has(line, OPT_HELP) || opt_has(line, OPT_USAGE) || opt_has(line, OPT_COMPLETE_VALUES))
		opt_list_formats(line);
	if (opt_has(line, OPT_HELP)) {
		opt_print_help(line);
	} else if (opt_has(line, OPT_USAGE)) {
		poptSetOtherOptionHelp(line->popt, command.arguments);
		ui_use_locale();
		poptPrintUsage(line->popt, stdout, 0);
	} else if (opt_has(line, OPT_VERSION)) {
		printf("%s (Tidemark) %s\n", command.name, tide_version());
	} else if (opt_asks_for_settings(line)) {
		opt_print_settings(line);
	} else if (opt_has(line, OPT_COMPLETE_OPTIONS)) {
		complete_options(line);
	} else if (opt_has(line, OPT_COMPLETE_VALUES)) {
		return complete_values(line, opt_text(line, OPT_COMPLETE_VALUES)) ? 2 : 0;
	} else {
		return -1;
	}
	return 0;
}

static int close_stdout(struct cmd *c)
{
	errno = 0;
	if ((fflush(stdout) || ferror(stdout)) && !c->out_errno)
		c->out_errno = errno ? errno : EIO;
	if (close(STDOUT_FILENO) && !c->out_errno)
		c->out_errno = errno;
	if (c->out_errno)
		ui_failure(&c->ui, "standard output", c->out_errno);
	return c->out_errno ? -1 : 0;
}

/*
 * The exit status of a command whose standard output could not be written.  A command that did all its work is not
 * one that failed: repeating a backup would replace its target with an empty increment.
 */
static int status_of_lost(struct cmd *c, int status)
{
	bool changed = (command.flags & CMD_CHANGE) && !opt_has(c->opt, OPT_DRY_RUN);

	if (status != 0 && status != tide_error_exit_status(TIDE_E_UNREPORTED))
		return status;
	ui_hint(&c->ui,
	        changed ? "all was done, and only its report could not be delivered: do not run the command again"
	                : "nothing was changed: run the command again");
	return tide_error_exit_status(TIDE_E_UNREPORTED);
}

static void set_up(struct cmd *c)
{
	const struct opt_line *line = c->opt;
	bool wanted = isatty(STDERR_FILENO) ? !opt_has(line, OPT_NO_PROGRESS) : opt_has(line, OPT_PROGRESS);

	c->args = line->args;
	c->n_args = line->n_args;
	c->ui.quiet = opt_has(line, OPT_QUIET);
	c->ui.bar = (command.flags & CMD_JOB) && wanted && !c->ui.quiet;
}

/* Runs the command and reports its error, or the usage error, as a reply and as a message. */
static int serve(struct cmd *c, int popt_error, const char *bad, bool reply)
{
	struct tide_error err = TIDE_ERROR_INIT;
	int status = 0, failed = open_session(c, &err);

	if (!failed && popt_error)
		failed = opt_usage(&err, "%s: %s", bad, poptStrerror(popt_error));
	else if (!failed)
		failed = run(c, &err);
	if (failed) {
		if (c->session && reply && err.msg)
			tide_session_reply_error(c->session, &err);
		/* Otherwise it has been reported, or is when standard output is closed. */
		if ((err.msg && err.code != TIDE_E_UNREPORTED) || err.code == TIDE_E_NOMEM)
			ui_error(&c->ui, &err);
		status = tide_error_exit_status(err.code);
	}
	ui_clear(&c->ui);
	tide_txn_free(c->txn);
	tide_session_free(c->session);
	cancel_session = NULL;
	tide_error_release(&err);
	return status;
}

int main(int argc, char **argv)
{
	struct opt_line line;
	struct cmd c = { .command = &command, .opt = &line, .ui = { .command = command.name } };
	const char *bad;
	int popt_error, answered, status;

	fill_closed(STDIN_FILENO, O_RDONLY);
	if (check_stdout(&c.ui))
		return 1;
	fill_closed(STDERR_FILENO, O_WRONLY);
	handle(SIGPIPE, SIG_IGN, 0);
	handle(SIGXFSZ, SIG_IGN, 0); /* a write beyond RLIMIT_FSIZE fails with EFBIG instead */
	handle(SIGUSR1, on_report, SA_RESTART);
	if (argc > 1 && strcmp(argv[1], "--complete-words") == 0) {
		complete_words(&command, argc - 2, (const char **)argv + 2);
		return 0;
	}
	popt_error = opt_line_parse(&line, &command, argc, (const char **)argv, &bad);
	set_up(&c);
	answered = popt_error ? -1 : answer(&line);
	status = answered >= 0 ? answered
	                       : serve(&c, popt_error, bad,
	                               popt_error ? !(command.flags & CMD_SHOW) || asks_for_json(argc, argv)
	                                          : !is_for_people(&line));
	if (close_stdout(&c))
		status = answered >= 0 ? 1 : status_of_lost(&c, status);
	opt_line_release(&line);
	if (caught && status != 0 && status != tide_error_exit_status(TIDE_E_UNREPORTED))
		die_of(caught);
	return status;
}
