#!/usr/bin/env bats
# Formats and URI schemes come from the drivers: a format that is added to a copy of the tree by one file and one line
# of formats.def is known everywhere.

load helper

# Images of the format foo: a block with a mark and the disk's size, then the disk.  foo:///PATH opens one too.
write_foo() {
	cat << 'END'
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/error.h"
#include "base/mem.h"
#include "base/sysio.h"
#include "image/driver.h"

#define MARK "foo\n"
#define HEAD 4096u

struct foo {
	int fd;
	bool own_fd;
};

static bool foo_probe(const uint8_t *head, size_t len)
{
	return len >= 16 && !memcmp(head, MARK, 4);
}

static int foo_create(int fd, const struct tide_driver_create *options, struct tide_error *err)
{
	const char *settings = options->settings;
	char key[64], value[256];
	uint8_t head[HEAD] = MARK;
	int more;

	while ((more = tide_driver_next_setting(&settings, key, value, err)) > 0) {
		if (strcmp(key, "label"))
			return tide_error_set(err, TIDE_E_REFUSED, "Invalid parameter '%s'", key);
		memcpy(head + 16, value, strlen(value) + 1);
	}
	tide_put_le64(head + 8, options->size);
	if (more < 0 || tide_sysio_pwrite(fd, head, sizeof(head), 0, err) < 0)
		return -1;
	return ftruncate(fd, (off_t)(HEAD + options->size)) < 0 ? tide_error_set_sys(err, errno, "ftruncate") : 0;
}

static int foo_open(int fd, const char *dir, unsigned flags, struct tide_driver_info *info, void **state,
                    struct tide_error *err)
{
	uint8_t head[16];
	struct foo *foo;
	uint64_t size;

	if (tide_sysio_pread(fd, head, sizeof(head), 0, true, err) < 0 || tide_sysio_size(fd, &size, err) < 0)
		return -1;
	info->size = tide_get_le64(head + 8);
	if (!foo_probe(head, sizeof(head)) || size < HEAD || info->size != size - HEAD)
		return tide_error_set(err, TIDE_E_CORRUPT, "Image is not in foo format");
	foo = tide_mem_alloc(1, sizeof(*foo), err);
	if (!foo)
		return -1;
	foo->fd = fd;
	*state = foo;
	return 0;
}

static int foo_open_uri(const char *uri, unsigned flags, const atomic_bool *cancel, struct tide_driver_info *info,
                        void **state, struct tide_error *err)
{
	int fd = tide_sysio_open(strstr(uri, "://") + 3, flags & TIDE_OPEN_WRITE ? O_RDWR : O_RDONLY, err);

	if (fd < 0)
		return -1;
	if (foo_open(fd, NULL, flags, info, state, err) < 0) {
		close(fd);
		return -1;
	}
	((struct foo *)*state)->own_fd = true;
	return 0;
}

static void foo_close(void *state)
{
	struct foo *foo = state;

	if (foo->own_fd)
		close(foo->fd);
	free(foo);
}

static int foo_flush(void *state, struct tide_error *err)
{
	return tide_sysio_fdatasync(((struct foo *)state)->fd, err);
}

static int foo_place(void *state, uint64_t off, uint64_t len, struct tide_extent *out, struct tide_error *err)
{
	*out = (struct tide_extent){
		.off = off,
		.len = len,
		.kind = TIDE_EXTENT_DATA,
		.mapped = true,
		.map_fd = ((struct foo *)state)->fd,
		.map_off = HEAD + off,
	};
	return 0;
}

static int foo_write_commit(void *state, const struct tide_extent *place, struct tide_error *err)
{
	return 0;
}

static void foo_write_abort(void *state, const struct tide_extent *place)
{
}

static int foo_zero(void *state, uint64_t off, uint64_t len, bool may_unmap, struct tide_error *err)
{
	return tide_sysio_zero(((struct foo *)state)->fd, HEAD + off, len, may_unmap, err);
}

static int foo_options_uri(const struct tide_json *object, char **uri, const char **socket, struct tide_error *err)
{
	const char *path;

	*socket = NULL;
	tide_json_get_string(tide_json_member(object, "path"), &path, NULL);
	*uri = tide_mem_printf(err, "foo://%s", path);
	return *uri ? 0 : -1;
}

static const char *const settings[] = { "label", NULL };
static const char *const schemes[] = { "foo", "foo+bar", NULL };
static const struct tide_driver_option options[] = { { .name = "path", .required = true }, { .name = NULL } };

const struct tide_image_driver tide_foo_driver = {
	.name = "foo",
	.settings = settings,
	.schemes = schemes,
	.uri_noun = "a foo",
	.uri_example = "foo:///PATH",
	.options = options,
	.options_uri = foo_options_uri,
	.probe = foo_probe,
	.create = foo_create,
	.open = foo_open,
	.open_uri = foo_open_uri,
	.close = foo_close,
	.flush = foo_flush,
	.extent = foo_place,
	.write_begin = foo_place,
	.write_commit = foo_write_commit,
	.write_abort = foo_write_abort,
	.zero = foo_zero,
};
END
}

# The copy is built once, without optimization, whatever the tests run with.
setup_file() {
	local tree=$BATS_FILE_TMPDIR/tree
	mkdir "$tree"
	cp -r "$ROOT"/{Makefile,lib,formats,cmd,plugins,man,completions} "$tree"
	write_foo > "$tree/formats/foo.c"
	sed -i '/^TIDE_FORMAT(tide_raw_driver)/i TIDE_FORMAT(tide_foo_driver)' "$tree/formats/formats.def"
	env -u MAKEFLAGS -u MFLAGS -u CFLAGS -u LDFLAGS -u SANITIZE make -C "$tree" -j2 BUILD="$tree/build" CFLAGS=-O0 \
		> "$BATS_FILE_TMPDIR/make.log" 2>&1 || fail "$(tail -n 40 "$BATS_FILE_TMPDIR/make.log")"
}

with_foo() {
	BUILD=$BATS_FILE_TMPDIR/tree/build
	PATH=$BUILD/bin:$PATH
}

# format_is IMAGE FORMAT [OPTION...]
format_is() {
	done_ image-info --output=json "${@:3}" "$1"
	assert_equal "$(jq -r .return.format <<< "$output")" "$2"
}

@test "an image of it is made, probed, named and written" {
	with_foo
	ok image-create -f foo -o label=x disk.foo 1M
	format_is disk.foo foo
	format_is disk.foo foo -f foo
	ok image-write --pattern 0x11 disk.foo 64K 64K
	ok bitmap-add -f foo disk.foo b
	ok image-write --pattern 0x22 disk.foo 128K 64K
	bitmap disk.foo b '.count == 65536'
	done_ backup-run -F foo disk.foo copy.foo
	cmp disk.foo <(head -c 16 copy.foo; tail -c +17 disk.foo)
	cmp <(tail -c +4097 disk.foo) <(tail -c +4097 copy.foo)
	ok chain-restore -F raw copy.foo copy.img
	cmp <(tail -c +4097 disk.foo) copy.img
	ok chain-restore -F foo copy.foo again.foo
	cmp copy.foo again.foo
	refused "Invalid parameter 'size'" image-create -f foo -o size=1 x.foo 1M
	refused "Could not open 'copy.img': Image is not in foo format" image-info --output=json -f foo copy.img
}

@test "it is a backing format, recorded or in a json: name" {
	with_foo
	ok image-create -f foo base.foo 1M
	ok image-write --pattern 0x33 base.foo 0 1M
	ok image-create -f qcow2 -b base.foo -F foo top.qcow2
	done_ chain-info --output=json top.qcow2
	assert_equal "$(jq -c '[.return.images[].format]' <<< "$output")" '["qcow2","foo"]'
	ok chain-restore top.qcow2 top.img
	cmp <(tail -c +4097 base.foo) top.img
	# image-create takes the name for a path, so there has to be such a file while it looks.
	local name='json:{"driver":"foo","file":{"driver":"file","filename":"base.foo"}}'
	cp base.foo "$name"
	ok image-create -f qcow2 -b "$name" -F foo json.qcow2
	rm "$name"
	ok chain-restore --allow-backing=protocol json.qcow2 json.img
	cmp top.img json.img
	refused "Backing file not supported for file format 'foo'" image-create -f foo -b base.foo -F foo x.foo
}

@test "requests name it" {
	with_foo
	ok image-create -f foo disk.foo 1M
	cat > in <<- 'END'
		{"execute": "block-dirty-bitmap-add", "arguments": {"node": "d", "name": "b"}}
		{"execute": "blockdev-add", "arguments": {"driver": "foo", "node-name": "n",
		  "file": {"driver": "file", "filename": "disk2.foo"}}}
		{"execute": "block-dirty-bitmap-add", "arguments": {"node": "n", "name": "b"}}
		{"execute": "blockdev-add", "arguments": {"driver": "foo", "node-name": "o", "path": "disk3.foo"}}
		{"execute": "blockdev-backup", "arguments": {"device": "d", "target": "o", "sync": "full"}}
		{"execute": "blockdev-add", "arguments": {"driver": "raw", "node-name": "q",
		  "file": {"driver": "foo", "path": "disk2.foo"}}}
		{"execute": "blockdev-add", "arguments": {"driver": "foo", "node-name": "p"}}
		{"execute": "blockdev-add", "arguments": {"driver": "foo", "node-name": "p", "path": "x", "color": "y"}}
	END
	cp disk.foo disk2.foo
	ok image-create -f foo disk3.foo 1M
	attempt txn-apply --drive d=disk.foo,format=foo in
	assert_equal "$status" 1
	assert_equal "$(jq -r 'select(.error) | .error.desc' <<< "$output")" \
		"Parameter 'path' is missing"$'\n'"Parameter 'color' is unexpected"
	assert_equal "$(jq -c -s '[.[] | select(.return)] | length' <<< "$output")" 6
	bitmap disk2.foo b true
}

@test "a URI of it is opened by it" {
	with_foo
	ok image-create -f foo disk.foo 1M
	format_is "foo://$PWD/disk.foo" foo
	format_is "foo+bar://$PWD/disk.foo" foo
	ok image-write --pattern 0x44 --sidecar side "foo://$PWD/disk.foo" 0 64K
	done_ backup-run -F raw "foo://$PWD/disk.foo" copy.img
	cmp <(tail -c +4097 disk.foo) copy.img
	done_ backup-run --mode existing copy.img "foo://$PWD/disk.foo"
	refused_like 'a foo cannot be created, only written' backup-run -F foo copy.img "foo://$PWD/disk.foo"
	refused_like 'leads to a raw disk: a qcow2 image in it cannot be used' image-info --output=json -f qcow2 foo://x
}

# shellcheck disable=SC2154 # stderr is set by `run`
@test "--help, messages and completion list it" {
	local c
	with_foo
	for c in image-info bitmap-add backup-run chain-restore chain-verify bitmap-rescan image-create; do
		done_ $c --help
		[[ $output = *foo* ]] || fail "$c --help does not list foo"
	done
	done_ image-info --complete-words -f f
	assert_equal "$output" foo
	done_ image-create --complete-words --format=fo
	assert_equal "$output" --format=foo
	done_ txn-apply --complete-words --drive d=disk.foo,format=f
	assert_equal "$output" d=disk.foo,format=foo
	done_ image-create --complete-words -f foo -o ''
	assert_equal "$output" label=
	refused_like "Unknown URI scheme 'bar'" image-info --output=json bar://x
	[[ $stderr = *' foo, foo+bar'* ]] || fail "$stderr"
	refused "Unknown driver 'bar'" image-info --output=json -f bar disk.img
}

@test "without it, nothing knows it" {
	truncate -s 1M disk.img
	refused "Unknown driver 'foo'" image-info --output=json -f foo disk.img
	refused "Could not open 'foo:///x': Unknown URI scheme 'foo'" image-info --output=json foo:///x
	refused "Could not create 'foo:///x': Unknown URI scheme 'foo'" backup-run disk.img foo:///x
	refused "Unknown file format 'foo'" image-create -f foo x 1M
}

@test "a file whose name looks like a URI is opened by a longer name" {
	mkdir -p foo:
	truncate -s 1M foo:/x
	refused "Could not open 'foo://x': Unknown URI scheme 'foo'" image-info --output=json foo://x
	format_is ./foo://x raw
}

@test "every setting that completion offers is one that its format knows" {
	local format setting
	for format in $(image-info --complete-words -f ''); do
		for setting in $(image-create --complete-words -f "$format" -o ''); do
			attempt image-create -f "$format" -o "$setting?" "$format.img" 1M
			[[ $stderr != *"Invalid parameter '${setting%=}'"* ]] || fail "$format does not know $setting"
		done
	done
}
