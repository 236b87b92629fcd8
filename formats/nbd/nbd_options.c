/*
 * An export as blockdev-add describes it: the options of QEMU's driver nbd, and the URI that they come down to.  A
 * character of a name that has a meaning in URIs is escaped, so that no name changes where the URI leads.
 */
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/strbuf.h"
#include "nbd.h"

#define NO_TLS "an export that needs TLS can be a drive, by its URI: --drive ID=nbds://HOST/EXPORT"

static const struct tide_driver_option inet_options[] = {
	{ .name = "host", .required = true },
	{ .name = "port", .required = true },
	{ .name = "numeric", .unsupported = true },
	{ .name = "to", .unsupported = true },
	{ .name = "ipv4", .unsupported = true },
	{ .name = "ipv6", .unsupported = true },
	{ .name = "keep-alive", .unsupported = true },
	{ .name = "mptcp", .unsupported = true },
	{ .name = NULL },
};

static const struct tide_driver_option unix_options[] = {
	{ .name = "path", .required = true },
	{ .name = "abstract", .unsupported = true },
	{ .name = "tight", .unsupported = true },
	{ .name = NULL },
};

static const struct tide_driver_variant server_types[] = {
	{ "inet", inet_options }, { "unix", unix_options }, { "vsock", NULL }, { "fd", NULL }, { NULL, NULL },
};

const struct tide_driver_option tide_nbd_options[] = {
	{ .name = "server", .required = true, .variants = server_types },
	{ .name = "export" },
	{ .name = "tls-creds", .unsupported = true, .hint = NO_TLS },
	{ .name = "tls-hostname", .unsupported = true, .hint = NO_TLS },
	{ .name = "x-dirty-bitmap", .unsupported = true },
	{ .name = "reconnect-delay", .unsupported = true },
	{ .name = "open-timeout", .unsupported = true },
	{ .name = NULL },
};

/* The text of an option, "" when it is not given: kinds have been checked. */
static const char *text_of(const struct tide_json *object, const char *name)
{
	const struct tide_json *value = tide_json_member(object, name);
	const char *text = "";

	if (value)
		tide_json_get_string(value, &text, NULL);
	return text;
}

static void add_escaped(struct tide_strbuf *sb, const char *text)
{
	static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~";

	for (; *text; text++) {
		if (strchr(plain, *text))
			tide_strbuf_addc(sb, *text);
		else
			tide_strbuf_addf(sb, "%%%02X", (unsigned char)*text);
	}
}

/* The words are those of the resolver that QEMU asks. */
static int check_inet(const char *host, const char *port, struct tide_error *err)
{
	static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._:";
	size_t digits = strspn(port, "0123456789");
	unsigned long number = digits && digits <= 5 && !port[digits] ? strtoul(port, NULL, 10) : 0;
	const char *why = number == 0 || number > 65535 ? "Servname not supported for ai_socktype" : NULL;

	if (!*host || strspn(host, plain) != strlen(host))
		why = "Name or service not known";
	if (!why)
		return 0;
	return tide_error_set(err, TIDE_E_REFUSED, "address resolution failed for %s:%s: %s", host, port, why);
}

int tide_nbd_options_uri(const struct tide_json *object, char **uri, const char **socket, struct tide_error *err)
{
	const struct tide_json *server = tide_json_member(object, "server");
	const char *host = text_of(server, "host"), *port = text_of(server, "port");
	bool is_unix = !strcmp(text_of(server, "type"), "unix");
	struct tide_strbuf sb = TIDE_STRBUF_INIT;

	if (!is_unix && check_inet(host, port, err) < 0)
		return -1;
	*socket = is_unix ? text_of(server, "path") : NULL;
	if (is_unix)
		tide_strbuf_adds(&sb, "nbd+unix:///");
	else
		tide_strbuf_addf(&sb, strchr(host, ':') ? "nbd://[%s]:%s/" : "nbd://%s:%s/", host, port);
	add_escaped(&sb, text_of(object, "export"));
	if (is_unix) {
		tide_strbuf_adds(&sb, "?socket=");
		add_escaped(&sb, *socket);
	}
	*uri = tide_strbuf_steal(&sb, err);
	return *uri ? 0 : -1;
}
