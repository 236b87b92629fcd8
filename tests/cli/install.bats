#!/usr/bin/env bats
# make install and uninstall, and a program that uses the library as installed.

load helper

# A copy of the build, so that another PREFIX does not disturb the tests that run beside.
copy_build() {
	cp -a "$BUILD" b
	make=(make --no-print-directory -C "$ROOT" "BUILD=$PWD/b" "DESTDIR=$PWD/dest" PREFIX=/usr)
}

@test "install, use, compile against, uninstall" {
	copy_build
	run -0 "${make[@]}" install
	raw disk.img 1M
	local c
	for c in bitmap-add bitmap-remove bitmap-clear bitmap-enable bitmap-disable bitmap-merge bitmap-list bitmap-dump bitmap-mark \
		image-create image-info image-write backup-run chain-restore; do
		run -0 "dest/usr/bin/$c" --version
		[ -f "dest/usr/share/man/man1/$c.1" ] || fail "no man page of $c"
		[ -e "dest/usr/share/bash-completion/completions/$c" ] || fail "no completion of $c"
	done
	for c in man5/tidemark-sidecar.5 man7/tidemark.7; do [ -f "dest/usr/share/man/$c" ] || fail "no $c"; done
	mv b b.aside
	ok dest/usr/bin/bitmap-add disk.img b
	ok dest/usr/bin/bitmap-mark disk.img b 0 1
	done_ dest/usr/bin/backup-run --sync incremental --bitmap b -F qcow2 disk.img inc.qcow2
	clean inc.qcow2
	run -0 find dest -type f -perm /022
	assert_output ''
	mv b.aside b

	# The library as another program uses it.
	cat > use.c <<- 'C'
		#include <stdio.h>
		#include <string.h>
		#include <tidemark.h>

		int main(int argc, char **argv)
		{
			struct tide_error err = TIDE_ERROR_INIT;
			struct tide_session_options options = { 0 };
			struct tide_session *session = tide_session_new(&options, &err);
			struct tide_drive drive = { .path = argv[1] };
			struct tide_bitmap_list *list;
			const char *id;

			if (!session || tide_session_add_drive(session, &drive, &id, &err) ||
			    tide_query_bitmaps(session, id, &list, &err)) {
				fprintf(stderr, "%s\n", err.msg);
				return 1;
			}
			printf("%s %s %d\n", id, list->items[0]->name, strcmp(tide_version(), TIDE_VERSION_STRING));
			tide_bitmap_list_free(list);
			tide_session_free(session);
			return 0;
		}
	C
	export PKG_CONFIG_PATH="$PWD/dest/usr/lib/pkgconfig" PKG_CONFIG_SYSROOT_DIR="$PWD/dest"
	export PKG_CONFIG_ALLOW_SYSTEM_CFLAGS=1 PKG_CONFIG_ALLOW_SYSTEM_LIBS=1
	run -0 env -u PKG_CONFIG_SYSROOT_DIR pkg-config --variable=prefix tidemark
	assert_output /usr
	run -0 pkg-config --modversion tidemark
	assert_output "$(sed -n 's/.*TIDE_VERSION_STRING "\(.*\)"/\1/p' "$ROOT/lib/tidemark.h")"
	local san
	san=$(grep -o -e '-fsanitize=[a-z,]*' "$BUILD/flags" || true)
	# shellcheck disable=SC2046,SC2086 # both are words
	run -0 ${CC:-cc} -Wall -Wextra -Wno-unused-parameter -Werror $san -o use use.c $(pkg-config --cflags --libs tidemark)
	run -0 env LD_LIBRARY_PATH="$PWD/dest/usr/lib" ./use disk.img
	assert_output 'disk b 0'
	# It exports what the public header declares, and nothing else.
	nm -D --defined-only dest/usr/lib/libtidemark.so | awk '$2 == "T" { sub(/@.*/, "", $3); print $3 }' | sort > exported
	[ -s exported ]
	# Macros of the header declare some of them.
	${CC:-cc} -E -P dest/usr/include/tidemark.h > declared
	while read -r c; do
		grep -qw "$c" declared || fail "$c is exported and not declared"
	done < exported

	run -0 "${make[@]}" uninstall
	run -0 find dest -type f -o -type l
	assert_output ''
}

@test "install into other places" {
	copy_build
	run -0 "${make[@]}" PREFIX=/opt/tide LIBDIR=/opt/tide/lib64 install
	raw disk.img 1M
	[ -e dest/opt/tide/lib64/libtidemark.so ]
	run -0 env PKG_CONFIG_PATH="$PWD/dest/opt/tide/lib64/pkgconfig" pkg-config --variable=libdir tidemark
	assert_output /opt/tide/lib64
	run -0 "${make[@]}" PREFIX=/opt/tide LIBDIR=/opt/tide/lib64 uninstall
	run -0 find dest -type f -o -type l
	assert_output ''
}
