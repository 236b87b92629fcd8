#include "qmp_blockdev.h"

#include <stdlib.h>
#include <string.h>

#include "image/image_formats.h"
#include "base/error.h"
#include "base/mem.h"
#include "base/strbuf.h"

enum { NBD = 2 }; /* its place among the drivers */

static const char *const drivers[] = { "raw", "qcow2", "nbd", NULL };
static const char *const protocols[] = { "file", "host_device", "nbd", NULL };
static const char *const server_types[] = { "inet", "unix", "vsock", "fd", NULL };

enum server_type { INET, UNIX };

/* What the tables below fill in. */
struct parts {
	const char *node_name;
	int driver, protocol;
	const char *filename;
	bool is_nbd;
	int server_type;
	const char *path, *host, *port;
	const char *export;
};

#define AT(member) offsetof(struct parts, member)
#define STRING(n, req, member)                                                                                 \
	{                                                                                                      \
		.name = n, .kind = TIDE_QMP_STRING, .required = req, .to = AT(member), .has = TIDE_QMP_NOWHERE \
	}
#define WORD(n, list, member)                                                                                  \
	{                                                                                                      \
		.name = n, .kind = TIDE_QMP_ENUM, .required = true, .to = AT(member), .has = TIDE_QMP_NOWHERE, \
		.words = list                                                                                  \
	}
#define OTHER(n, fn)                                                                                                  \
	{                                                                                                             \
		.name = n, .kind = TIDE_QMP_OTHER, .required = true, .to = TIDE_QMP_NOWHERE, .has = TIDE_QMP_NOWHERE, \
		.decode = fn                                                                                          \
	}
#define NOT_HERE(n)                                                                                                  \
	{                                                                                                            \
		.name = n, .kind = TIDE_QMP_OTHER, .to = TIDE_QMP_NOWHERE, .has = TIDE_QMP_NOWHERE, .decode = refuse \
	}
#define END                          \
	{                            \
		.kind = TIDE_QMP_END \
	}

static int refuse(const struct tide_qmp_path *path, const struct tide_json *json, void *to, struct tide_error *err)
{
	tide_error_set(err, TIDE_E_UNSUPPORTED, "The option '%s' of driver 'nbd' is not supported", path->name);
	if (!strncmp(path->name, "tls-", 4))
		return tide_error_hint(
		        err, "an export behind TLS can be a drive, by its URI: --drive ID=nbds://HOST/EXPORT");
	return -1;
}

/* ---- a server's address ------------------------------------------------------------- */

static const struct tide_qmp_field inet_fields[] = {
	WORD("type", server_types, server_type),
	STRING("host", true, host),
	STRING("port", true, port),
	NOT_HERE("numeric"),
	NOT_HERE("to"),
	NOT_HERE("ipv4"),
	NOT_HERE("ipv6"),
	NOT_HERE("keep-alive"),
	NOT_HERE("mptcp"),
	END,
};

static const struct tide_qmp_field unix_fields[] = {
	WORD("type", server_types, server_type),
	STRING("path", true, path),
	NOT_HERE("abstract"),
	NOT_HERE("tight"),
	END,
};

static int decode_server(const struct tide_qmp_path *path, const struct tide_json *json, void *to,
                         struct tide_error *err)
{
	struct tide_qmp_path type_path = { path, "type", 0 };
	const struct tide_json *type;
	int place = INET;

	if (tide_json_kind(json) != TIDE_JSON_OBJECT)
		return tide_qmp_decode_bad_type(path, "object", err);
	type = tide_json_member(json, "type");
	if (!type)
		return tide_qmp_decode_missing(&type_path, err);
	if (tide_qmp_decode_word(&type_path, server_types, type, &place, err) < 0)
		return -1;
	if (place > UNIX)
		return tide_error_set(err, TIDE_E_UNSUPPORTED, "A server of type '%s' is not supported",
		                      server_types[place]);
	return tide_qmp_decode(path, place == UNIX ? unix_fields : inet_fields, json, NULL, to, err);
}

/* ---- drivers ------------------------------------------------------------------------ */

#define NBD_FIELDS                                                                                 \
	OTHER("server", decode_server), STRING("export", false, export), NOT_HERE("tls-creds"),    \
	        NOT_HERE("tls-hostname"), NOT_HERE("x-dirty-bitmap"), NOT_HERE("reconnect-delay"), \
	        NOT_HERE("open-timeout")

static const struct tide_qmp_field file_fields[] = {
	WORD("driver", protocols, protocol),
	STRING("filename", true, filename),
	END,
};

static const struct tide_qmp_field nbd_file_fields[] = { WORD("driver", protocols, protocol), NBD_FIELDS, END };

static bool is_nbd(const struct tide_json *object)
{
	const struct tide_json *driver = object ? tide_json_member(object, "driver") : NULL;
	const char *text;

	return driver && tide_json_get_string(driver, &text, NULL) && !strcmp(text, drivers[NBD]);
}

static int decode_file(const struct tide_qmp_path *path, const struct tide_json *json, void *to, struct tide_error *err)
{
	struct parts *parts = to;

	if (tide_json_kind(json) != TIDE_JSON_OBJECT)
		return tide_qmp_decode_bad_type(path, "object", err);
	parts->is_nbd = is_nbd(json);
	return tide_qmp_decode(path, parts->is_nbd ? nbd_file_fields : file_fields, json, NULL, to, err);
}

static const struct tide_qmp_field format_fields[] = {
	WORD("driver", drivers, driver),
	STRING("node-name", false, node_name),
	OTHER("file", decode_file),
	END,
};

static const struct tide_qmp_field nbd_fields[] = {
	WORD("driver", drivers, driver),
	STRING("node-name", false, node_name),
	NBD_FIELDS,
	END,
};

/* ---- a URI -------------------------------------------------------------------------- */

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

static int check_inet(const struct parts *parts, struct tide_error *err)
{
	size_t digits = strspn(parts->port, "0123456789");
	unsigned long port = digits && digits <= 5 && !parts->port[digits] ? strtoul(parts->port, NULL, 10) : 0;
	const char *why = port == 0 || port > 65535 ? "Servname not supported for ai_socktype" : NULL;

	if (!*parts->host ||
	    strspn(parts->host, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._:") !=
	            strlen(parts->host))
		why = "Name or service not known";
	if (!why)
		return 0;
	return tide_error_set(err, TIDE_E_REFUSED, "address resolution failed for %s:%s: %s", parts->host, parts->port,
	                      why);
}

static int make_uri(const struct parts *parts, struct tide_qmp_blockdev *out, struct tide_error *err)
{
	struct tide_strbuf sb = TIDE_STRBUF_INIT;
	bool is_inet = parts->server_type == INET, is_ipv6 = is_inet && strchr(parts->host, ':');

	if (is_inet && check_inet(parts, err) < 0)
		return -1;
	if (is_inet)
		tide_strbuf_addf(&sb, is_ipv6 ? "nbd://[%s]:%s/" : "nbd://%s:%s/", parts->host, parts->port);
	else
		tide_strbuf_adds(&sb, "nbd+unix:///");
	add_escaped(&sb, parts->export ? parts->export : "");
	if (!is_inet) {
		tide_strbuf_adds(&sb, "?socket=");
		add_escaped(&sb, parts->path);
		out->socket = parts->path;
	}
	out->path = tide_strbuf_steal(&sb, err);
	out->is_export = true;
	return out->path ? 0 : -1;
}

/* A file whose name looks like a URI is one all the same. */
static int make_path(const struct parts *parts, struct tide_qmp_blockdev *out, struct tide_error *err)
{
	out->path = tide_mem_printf(err, "%s%s", tide_image_is_uri(parts->filename) ? "./" : "", parts->filename);
	return out->path ? 0 : -1;
}

int tide_qmp_blockdev_decode(const struct tide_json *object, struct tide_qmp_blockdev *out, struct tide_error *err)
{
	struct parts parts = { .is_nbd = is_nbd(object) };

	if (tide_qmp_decode(NULL, parts.is_nbd ? nbd_fields : format_fields, object, NULL, &parts, err) < 0)
		return -1;
	out->node_name = parts.node_name;
	out->format = drivers[parts.driver];
	return parts.is_nbd ? make_uri(&parts, out, err) : make_path(&parts, out, err);
}

void tide_qmp_blockdev_release(struct tide_qmp_blockdev *blockdev)
{
	free(blockdev->path);
	*blockdev = (struct tide_qmp_blockdev)TIDE_QMP_BLOCKDEV_INIT;
}
