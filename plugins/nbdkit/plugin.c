/*
 * nbdkit-tidemark-plugin: serves an image over NBD and records the writes of clients in its dirty
 * bitmaps.  struct tide_tracker of tidemark.h does the work; this file connects it to nbdkit's API.
 */
#define NBDKIT_API_VERSION 2
#define THREAD_MODEL       NBDKIT_THREAD_MODEL_PARALLEL

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <nbdkit-plugin.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tidemark.h"

/* nbdkit loads a plugin once in a process, and calls it without a handle until a client connects. */
static struct {
	char *file, *sidecar;
	const char *format;
	bool ignore_stamp, read_only, exclusive;
	unsigned allow;
	enum tide_durability durability;
	struct tide_tracker *tracker;
	struct tide_tracker_info info;
	pthread_mutex_t lock; /* held while the image is reopened */
	unsigned clients;
} served = { .lock = PTHREAD_MUTEX_INITIALIZER };

static int say(struct tide_error *err)
{
	int sys = err->sys ? err->sys : EIO;

	nbdkit_error("%s", err->msg);
	if (err->hint)
		nbdkit_error("%s", err->hint);
	tide_error_release(err);
	nbdkit_set_error(sys);
	return -1;
}

static void warn(void *data, const char *image, const char *text)
{
	fprintf(stderr, "nbdkit: tidemark: %s%s%s\n", image ? image : "", image ? ": " : "", text);
}

/* ---- configuration ---- */

static int config_path(char **to, const char *key, const char *value)
{
	if (*to) {
		nbdkit_error("%s is given twice", key);
		return -1;
	}
	*to = nbdkit_absolute_path(value);
	return *to ? 0 : -1;
}

static int config_durability(const char *value)
{
	if (!strcmp(value, "crash"))
		served.durability = TIDE_DURABILITY_CRASH;
	else if (!strcmp(value, "power"))
		served.durability = TIDE_DURABILITY_POWER;
	else {
		nbdkit_error("durability is crash or power, not '%s'", value);
		return -1;
	}
	return 0;
}

static int config_allow(const char *value)
{
	static const struct {
		const char *word;
		unsigned flag;
	} words[] = {
		{ "outside", TIDE_ALLOW_OUTSIDE },
		{ "protocol", TIDE_ALLOW_PROTOCOL },
		{ "probe", TIDE_ALLOW_PROBE },
		{ "any", TIDE_ALLOW_ANY },
	};

	for (const char *p = value;; p++) {
		size_t n = strcspn(p, ","), i = 0;

		while (i < 4 && (strlen(words[i].word) != n || strncmp(words[i].word, p, n)))
			i++;
		if (i == 4) {
			nbdkit_error("allow-backing is a list of outside, protocol, probe, any, not '%s'", value);
			return -1;
		}
		served.allow |= words[i].flag;
		p += n;
		if (!*p)
			return 0;
	}
}

static int config_bool(bool *to, const char *value)
{
	int yes = nbdkit_parse_bool(value);

	*to = yes > 0;
	return yes < 0 ? -1 : 0;
}

static int tidemark_config(const char *key, const char *value)
{
	if (!strcmp(key, "file"))
		return config_path(&served.file, key, value);
	if (!strcmp(key, "sidecar"))
		return config_path(&served.sidecar, key, value);
	if (!strcmp(key, "durability"))
		return config_durability(value);
	if (!strcmp(key, "allow-backing"))
		return config_allow(value);
	if (!strcmp(key, "format")) {
		served.format = value;
		return 0;
	}
	if (!strcmp(key, "ignore-stamp"))
		return config_bool(&served.ignore_stamp, value);
	if (!strcmp(key, "readonly"))
		return config_bool(&served.read_only, value);
	if (!strcmp(key, "exclusive"))
		return config_bool(&served.exclusive, value);
	nbdkit_error("unknown parameter '%s'", key);
	return -1;
}

static int tidemark_config_complete(void)
{
	if (served.file)
		return 0;
	nbdkit_error("file=IMAGE is missing");
	return -1;
}

#define CONFIG_HELP                                                                           \
	"file=IMAGE          (required) The image, a file or block device, to serve.\n"       \
	"sidecar=PATH        The file that keeps its bitmaps, if not the default one.\n"      \
	"format=FORMAT       Its format, one of tidemark_formats of --dump-plugin.\n"         \
	"durability=crash    A crash of the server loses no dirty bit (default); or\n"        \
	"           power    neither does a power loss.\n"                                    \
	"readonly=BOOL       Open it for reading only, as nbdkit's -r does.\n"                \
	"exclusive=BOOL      Refuse a second client while one is connected that can write.\n" \
	"ignore-stamp=BOOL   Trust the bitmaps despite unrecorded changes of the image.\n"    \
	"allow-backing=LIST  Names in the image to follow: outside, protocol, probe, any."

static void tidemark_dump_plugin(void)
{
	const char *format, *separator = "";

	printf("tidemark_version=%s\n", tide_version());
	printf("tidemark_formats=");
	for (size_t i = 0; (format = tide_image_format(i)); i++) {
		if (!(tide_image_format_uses(format) & TIDE_FORMAT_FILE))
			continue;
		printf("%s%s", separator, format);
		separator = " ";
	}
	printf("\n");
	printf("tidemark_durability=crash power\n");
}

/* ---- the life of the server ---- */

static struct tide_drive drive(void)
{
	return (struct tide_drive){
		.path = served.file,
		.format = served.format,
		.sidecar = served.sidecar,
		.ignore_stamp = served.ignore_stamp,
		.allow = served.allow,
	};
}

static int open_image(bool read_only)
{
	struct tide_tracker_options options = {
		.durability = served.durability,
		.read_only = read_only,
		.warning = warn,
	};
	struct tide_drive d = drive();
	struct tide_error err = TIDE_ERROR_INIT;

	if (tide_tracker_open(&d, &options, &served.tracker, &err) < 0)
		return say(&err);
	tide_tracker_get_info(served.tracker, &served.info);
	return 0;
}

/* The command line of the process, its strings one after another; the caller frees it. */
static char *read_command_line(size_t *len)
{
	int fd = open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
	char *text = NULL;
	ssize_t n = 1;

	*len = 0;
	while (fd >= 0 && n > 0) {
		char *grown = realloc(text, *len + 4097);

		if (!grown)
			break;
		text = grown;
		n = read(fd, text + *len, 4096);
		*len += n > 0 ? (size_t)n : 0;
		text[*len] = '\0';
	}
	if (fd >= 0)
		close(fd);
	return text;
}

/* Knows nbdkit's options that have an argument or mean read-only; getopt skips the others. */
static bool asks_for_read_only(int argc, char **argv)
{
	static const char with_argument[][20] = {
		"debug", "export",           "export-name", "exportname", "filter", "group", "ip-addr",       "ipaddr",
		"log",   "mask-handshake",   "pid-file",    "pidfile",    "port",   "run",   "selinux-label", "threads",
		"tls",   "tls-certificates", "tls-psk",     "unix",       "user",
	};
	enum { N = sizeof(with_argument) / sizeof(with_argument[0]) };
	struct option options[N + 3] = { { "read-only", no_argument, NULL, 'r' },
		                         { "readonly", no_argument, NULL, 'r' } };
	int option, was_at = optind, was_loud = opterr;
	bool found = false;

	for (int i = 0; i < N; i++)
		options[2 + i] = (struct option){ with_argument[i], required_argument, NULL, 1 };
	optind = 0; /* nbdkit has used getopt: begin again */
	opterr = 0;
	while (!found && (option = getopt_long(argc, argv, "46D:e:fg:i:nop:P:rst:u:U:vV", options, NULL)) != -1)
		found = option == 'r';
	optind = was_at;
	opterr = was_loud;
	return found;
}

/*
 * Whether nbdkit was started with -r.  nbdkit reports this only when a client connects, which is too late to share the
 * image with other readers from the start.  A wrong result does no harm: see tidemark_open.
 */
static bool started_read_only(void)
{
	size_t len, argc = 0;
	char *text = read_command_line(&len), **argv;
	bool found = false;

	for (size_t i = 0; i < len; i++)
		argc += text[i] == '\0';
	argv = calloc(argc + 2, sizeof(*argv));
	if (argv && argc) {
		char *next = text;

		for (size_t i = 0; i < argc; i++, next += strlen(next) + 1)
			argv[i] = next;
		found = asks_for_read_only((int)argc, argv);
	}
	free(argv);
	free(text);
	return found;
}

/* A write beyond RLIMIT_FSIZE fails with EFBIG instead of killing the server, unless nbdkit handles the signal. */
static void ignore_size_signal(void)
{
	struct sigaction action;

	if (sigaction(SIGXFSZ, NULL, &action) < 0 || action.sa_handler != SIG_DFL)
		return;
	action.sa_handler = SIG_IGN;
	sigaction(SIGXFSZ, &action, NULL);
}

static int tidemark_get_ready(void)
{
	ignore_size_signal();
	return open_image(served.read_only || started_read_only());
}

static void close_image(void)
{
	struct tide_error err = TIDE_ERROR_INIT;
	struct tide_tracker *tracker = served.tracker;

	served.tracker = NULL;
	if (tracker && tide_tracker_close(tracker, &err) < 0) {
		say(&err);
		nbdkit_error("the next program that uses the image adds the recorded writes to the bitmaps");
	}
}

static void tidemark_unload(void)
{
	close_image();
	free(served.file);
	free(served.sidecar);
}

/* exclusive: a client that reads while another one writes sees the disk of no single moment. */
static bool is_taken(void)
{
	if (!served.exclusive || !served.tracker || served.info.read_only || served.clients == 0)
		return false;
	nbdkit_error("another client is connected, and can write: exclusive=true accepts no second one");
	return true;
}

/* The image is reopened for a client that must not write, if no other client is connected. */
static void *tidemark_open(int readonly)
{
	int rc = 0;

	pthread_mutex_lock(&served.lock);
	if (is_taken())
		rc = -1;
	else if (readonly && served.tracker && !served.info.read_only && served.clients == 0) {
		close_image();
		rc = open_image(true);
	} else if (!served.tracker) {
		rc = open_image(readonly || served.read_only);
	}
	if (rc == 0)
		served.clients++;
	pthread_mutex_unlock(&served.lock);
	return rc == 0 ? &served : NULL;
}

static void tidemark_close(void *handle)
{
	pthread_mutex_lock(&served.lock);
	served.clients--;
	pthread_mutex_unlock(&served.lock);
}

/* ---- facts ---- */

static int64_t tidemark_get_size(void *handle)
{
	return (int64_t)served.info.size;
}

static int tidemark_block_size(void *handle, uint32_t *minimum, uint32_t *preferred, uint32_t *maximum)
{
	uint64_t cluster = served.info.cluster_size;

	*minimum = 1;
	*preferred = cluster < 4096 ? 4096 : cluster > 65536 ? 65536 : (uint32_t)cluster;
	*maximum = UINT32_MAX;
	return 0;
}

static int tidemark_can_write(void *handle)
{
	return !served.info.read_only;
}

static int tidemark_can_fua(void *handle)
{
	return NBDKIT_FUA_NATIVE;
}

static int tidemark_can_cache(void *handle)
{
	return NBDKIT_CACHE_NATIVE;
}

/* A client with several connections would be refused the second one. */
static int tidemark_can_multi_conn(void *handle)
{
	return !served.exclusive || served.info.read_only;
}

static int yes(void *handle)
{
	return 1;
}

/* ---- requests ---- */

static unsigned flags_of(uint32_t flags)
{
	return (flags & NBDKIT_FLAG_FUA ? TIDE_TRACKER_FUA : 0) |
	       (flags & NBDKIT_FLAG_MAY_TRIM ? TIDE_TRACKER_MAY_TRIM : 0) |
	       (flags & NBDKIT_FLAG_FAST_ZERO ? TIDE_TRACKER_FAST_ZERO : 0);
}

static int tidemark_pread(void *handle, void *buf, uint32_t count, uint64_t offset, uint32_t flags)
{
	struct tide_error err = TIDE_ERROR_INIT;

	return tide_tracker_read(served.tracker, buf, offset, count, &err) < 0 ? say(&err) : 0;
}

static int tidemark_pwrite(void *handle, const void *buf, uint32_t count, uint64_t offset, uint32_t flags)
{
	struct tide_error err = TIDE_ERROR_INIT;

	return tide_tracker_write(served.tracker, buf, offset, count, flags_of(flags), &err) < 0 ? say(&err) : 0;
}

/* EOPNOTSUPP is a valid result, not a failure. */
static int tidemark_zero(void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
	struct tide_error err = TIDE_ERROR_INIT;

	if (tide_tracker_zero(served.tracker, offset, count, flags_of(flags), &err) == 0)
		return 0;
	if (err.sys != EOPNOTSUPP)
		return say(&err);
	tide_error_release(&err);
	nbdkit_set_error(EOPNOTSUPP);
	return -1;
}

static int tidemark_trim(void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
	struct tide_error err = TIDE_ERROR_INIT;

	return tide_tracker_trim(served.tracker, offset, count, flags_of(flags), &err) < 0 ? say(&err) : 0;
}

static int tidemark_flush(void *handle, uint32_t flags)
{
	struct tide_error err = TIDE_ERROR_INIT;

	return tide_tracker_flush(served.tracker, &err) < 0 ? say(&err) : 0;
}

static int tidemark_cache(void *handle, uint32_t count, uint64_t offset, uint32_t flags)
{
	struct tide_error err = TIDE_ERROR_INIT;

	return tide_tracker_cache(served.tracker, offset, count, &err) < 0 ? say(&err) : 0;
}

static uint32_t extent_type(unsigned kind)
{
	return (kind & TIDE_EXTENT_IS_HOLE ? NBDKIT_EXTENT_HOLE : 0) |
	       (kind & TIDE_EXTENT_IS_ZERO ? NBDKIT_EXTENT_ZERO : 0);
}

static int tidemark_extents(void *handle, uint32_t count, uint64_t offset, uint32_t flags,
                            struct nbdkit_extents *extents)
{
	struct tide_error err = TIDE_ERROR_INIT;

	for (uint64_t left = count, n; left; offset += n, left -= n) {
		unsigned kind;

		if (tide_tracker_extent(served.tracker, offset, left, &kind, &n, &err) < 0)
			return say(&err);
		if (nbdkit_add_extent(extents, offset, n, extent_type(kind)) < 0)
			return -1;
		if (flags & NBDKIT_FLAG_REQ_ONE)
			break;
	}
	return 0;
}

static struct nbdkit_plugin plugin = {
	.name = "tidemark",
	.longname = "Tidemark",
	.version = TIDE_VERSION_STRING,
	.description = "serve a disk image and record writes in its dirty bitmaps",
	.unload = tidemark_unload,
	.dump_plugin = tidemark_dump_plugin,
	.config = tidemark_config,
	.config_complete = tidemark_config_complete,
	.config_help = CONFIG_HELP,
	.magic_config_key = "file",
	.get_ready = tidemark_get_ready,
	.cleanup = close_image,
	.open = tidemark_open,
	.close = tidemark_close,
	.get_size = tidemark_get_size,
	.block_size = tidemark_block_size,
	.can_write = tidemark_can_write,
	.can_flush = yes,
	.can_trim = yes,
	.can_zero = yes,
	.can_fast_zero = yes,
	.can_extents = yes,
	.can_fua = tidemark_can_fua,
	.can_multi_conn = tidemark_can_multi_conn,
	.can_cache = tidemark_can_cache,
	.pread = tidemark_pread,
	.pwrite = tidemark_pwrite,
	.zero = tidemark_zero,
	.trim = tidemark_trim,
	.flush = tidemark_flush,
	.cache = tidemark_cache,
	.extents = tidemark_extents,
	.errno_is_preserved = 0,
};

/* The macro defines this function and nbdkit looks it up, but nbdkit's header does not declare it. */
struct nbdkit_plugin *plugin_init(void);
NBDKIT_REGISTER_PLUGIN(plugin)
