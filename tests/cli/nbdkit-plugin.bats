#!/usr/bin/env bats
# The nbdkit plugin: it records all writes through it, also when it is killed.

load helper

PLUGIN=$BUILD/lib/nbdkit/plugins/nbdkit-tidemark-plugin.so

eval "in_$(declare -f setup)" # the helper's

setup() {
	in_setup
	[ -e "$PLUGIN" ] || skip "built without nbdkit-plugin-dev"
	command -v nbdkit > /dev/null || skip "nbdkit is not there"
	command -v qemu-io > /dev/null || skip "qemu-io is not there"
	# It would have to be loaded before nbdkit, which then hangs at its end, in a library of its own.
	! ldd "$PLUGIN" | grep -qE 'lib[at]san' || skip "built with a sanitizer"
}

# serve [OPTION...] PARAMETER...: starts the server; $uri leads to it, $server is its process.
serve() {
	rm -f serve.pid serve.sock
	nbdkit -f -U "$PWD/serve.sock" -P serve.pid "$PLUGIN" "$@" 2> serve.err 3>&- &
	server=$!
	bg_pids+=("$server")
	uri="nbd+unix:///?socket=$PWD/serve.sock"
	eventually test -s serve.pid
}

# ended SIGNAL: the server gets it, and has ended.
ended() {
	kill -"$1" "$server"
	wait "$server" || true
}

io() {
	local args=() a
	for a; do args+=(-c "$a"); done
	qemu-io -f raw "${args[@]}" "$uri" > io.out 2>&1
	! grep -qiE 'error|failed' io.out || fail "$(cat io.out)"
}

# image FORMAT: disk.img, with a bitmap in each store that it has.
image() {
	"$1" disk.img 8M
	ok bitmap-add disk.img b
	if [ "$1" = qcow2 ]; then ok bitmap-add --store image -g 32K disk.img in; fi
	done_ backup-run -F qcow2 disk.img full.qcow2
}

# chained NAME BACKING: an incremental backup, and the chain restored is the image.
chained() {
	done_ backup-run -q --sync incremental --bitmap b -F qcow2 --backing "$2" disk.img "$1"
	rm -f restored.img
	done_ chain-restore "$1" restored.img
	qemu-img compare -q -F raw -f "${3:-raw}" disk.img restored.img
}

@test "writes, zeroes and trims are recorded, in both stores and live" {
	local f want='1048576+65536 2097152+65536 3145728+65536 4980736+65536'
	for f in raw qcow2; do
		image $f
		serve file=disk.img
		io 'write -P 1 1M 64K' 'write -z 2M 64K' 'discard 3M 64K' 'write -f -P 7 5000001 3' flush 'read -P 7 5000001 3'
		assert_equal "$(dirty disk.img b)" "$want"
		if [ $f = qcow2 ]; then bitmap disk.img in '.recording and .count == 229376 and .store == "image"'; fi
		ended TERM
		[ ! -e disk.img.bitmaps.log ]
		assert_equal "$(dirty disk.img b)" "$want"
		bitmap disk.img b '(has("inconsistent") | not) and .recording'
		if [ $f = qcow2 ]; then
			clean disk.img
			bitmap disk.img in '.count == 229376 and (has("inconsistent") | not)'
		fi
		chained inc.qcow2 full.qcow2 $f
		rm -f -- *.img* *.qcow2
	done
}

# Since Linux 6.8 the kernel gives each mount a number of its own; without one all is dirty after a crash.
mounts_have_numbers() {
	[ "$(printf '%s\n' 6.8 "$(uname -r)" | sort -V | head -n 1)" = 6.8 ]
}

@test "killed: no bit is lost, and the next command settles it" {
	local f durability=crash
	mounts_have_numbers || durability=power
	for f in raw qcow2; do
		image $f
		serve file=disk.img durability=$durability
		io 'write -P 1 1M 64K' 'write -P 2 5M 200K' flush
		ended KILL
		[ -e disk.img.bitmaps.log ]
		assert_equal "$(dirty disk.img b)" '1048576+65536 5242880+262144'
		if [ $f = qcow2 ]; then bitmap disk.img in '.recording and .count == 294912'; fi
		chained inc.qcow2 full.qcow2 $f
		[ ! -e disk.img.bitmaps.log ]
		if [ $f = qcow2 ]; then
			clean disk.img
			bitmap disk.img in '.recording and .count == 294912'
		fi
		serve file=disk.img durability=$durability
		io 'write -P 9 7M 1'
		ended KILL
		chained inc2.qcow2 inc.qcow2 $f
		rm -f -- *.img* *.qcow2
	done
}

@test "QEMU takes the bitmaps of a server that was killed for inconsistent" {
	image qcow2
	serve file=disk.img
	io 'write -P 1 1M 64K' flush
	ended KILL
	qemu-img info --output=json disk.img > info.json
	jq -e '."format-specific".data.bitmaps[0].flags == ["in-use", "auto"]' info.json
	ok bitmap-add disk.img new
	qemu-img info --output=json disk.img > info.json
	jq -e '."format-specific".data.bitmaps[0].flags == ["auto"]' info.json
	clean disk.img
}

@test "while it serves, others are refused with its name" {
	image raw
	serve file=disk.img
	local cmd
	for cmd in 'backup-run -F qcow2 disk.img x.qcow2' 'bitmap-clear disk.img b' 'bitmap-add disk.img c' 'bitmap-mark disk.img b 0 1' \
		'image-write --pattern 1 disk.img 0 1' 'backup-run --sync incremental --bitmap b -F qcow2 disk.img x.qcow2'; do
		# shellcheck disable=SC2086 # words
		refused_like 'lock' $cmd
		[[ $stderr == *nbdkit* ]] || fail "$stderr"
	done
	[ ! -e x.qcow2 ]
	run nbdkit -f -U "$PWD/second.sock" "$PLUGIN" file=disk.img
	[ "$status" -ne 0 ]
	[[ $output == *"Failed to get \"write\" lock"* ]] || fail "$output"
	ended TERM
	ok bitmap-clear disk.img b
}

# alter: as another program does it that ignores locks.
alter() {
	sleep 0.05
	touch disk.img
	sleep 0.05
}

@test "another program writes to the image while it is served" {
	local f how
	for f in raw qcow2; do
		for how in before between after alone killed; do
			image $f
			serve file=disk.img
			[ $how = alone ] || [ $how = before ] || io 'write -P 1 1M 64K' flush
			alter
			[ $how = alone ] || [ $how = after ] || io 'write -P 2 2M 64K' flush
			if [ $how = killed ]; then ended KILL; else ended TERM; fi
			grep -q 'another program wrote to the image while it was served' serve.err || fail "$f, $how: $(cat serve.err)"
			bitmap disk.img b .inconsistent
			[ $f = raw ] || bitmap disk.img in .inconsistent
			refused_like inconsistent backup-run --sync incremental --bitmap b -F qcow2 disk.img x.qcow2
			rm -f -- *.img* *.qcow2
		done
	done
}

# refused_io COMMAND: the server answers it with an error, and lives.
refused_io() {
	qemu-io -f raw -c "$1" "$uri" > io.out 2>&1 || true
	grep -qE 'failed: (Input/output error|No space left on device)' io.out || fail "$(cat io.out)"
	kill -0 "$server"
}

@test "a log that another program cuts or removes is an error of the write at most" {
	local how
	for how in 'truncate -s 0' 'truncate -s 5000' 'truncate -s 1M' rm; do
		image raw
		serve file=disk.img
		io 'write -P 1 1M 64K'
		$how disk.img.bitmaps.log
		if [ "$how" = rm ]; then
			io 'write -P 2 2M 64K'
			echo other > disk.img.bitmaps.log
		else
			refused_io 'write -P 2 2M 64K'
			io 'write -P 3 1M 64K'
		fi
		ended TERM
		bitmap disk.img b 'has("inconsistent") | not'
		if [ "$how" = rm ]; then assert_equal "$(cat disk.img.bitmaps.log)" other; else [ ! -e disk.img.bitmaps.log ]; fi
		chained inc.qcow2 full.qcow2
		# And if the server cannot end well.
		rm -f disk.img.bitmaps.log
		serve file=disk.img
		io 'write -P 1 3M 64K'
		$how disk.img.bitmaps.log
		ended KILL
		bitmap disk.img b '.inconsistent or .count == 8388608'
		rm -f -- *.img* *.qcow2
	done
}

# small_btrfs DIR: a small file system there.
small_btrfs() {
	[ "$(id -u)" -eq 0 ] || skip 'mounts'
	truncate -s 200M fs.img
	PATH=$PATH:/sbin:/usr/sbin mkfs.btrfs -q fs.img > mkfs.out 2>&1 || skip 'no mkfs.btrfs'
	mkdir -p "$1"
	mount -o loop fs.img "$1" 2> mount.err || skip 'cannot mount'
	mounts+=("$PWD/$1")
}

@test "a full file system that shares the log with a snapshot is an error of the write" {
	small_btrfs m
	chattr +C m
	fallocate -l 32M m/disk.img
	ok bitmap-add -g 4K m/disk.img b
	serve file=m/disk.img
	io 'write -P 1 0 64K' flush
	btrfs subvolume snapshot m m/snapshot > snapshot.out
	cat /dev/zero > m/fill 2> fill.err || true
	sync
	cat /dev/zero > m/fill2 2> fill.err || true
	sync
	refused_io 'write -P 2 16M 64K'
	rm m/fill m/fill2
	sync
	io 'write -P 3 8M 64K'
	ended TERM
	bitmap m/disk.img b '(has("inconsistent") | not) and .count >= 131072'
}

@test "bitmaps that were put back while the image was served are not believed" {
	image raw
	cp disk.img.bitmaps old
	ok bitmap-mark disk.img b 5M 64K
	serve file=disk.img
	io 'write -P 1 1M 64K'
	cp old new
	mv new disk.img.bitmaps
	ended TERM
	grep -q 'another program changed the bitmaps' serve.err || fail "$(cat serve.err)"
	bitmap disk.img b '.inconsistent and .count == 65536'
}

@test "killed, and the log's storage may have been set back: the whole disk is dirty" {
	[ "$(id -u)" -eq 0 ] || skip 'mounts'
	local fs how
	for fs in ext4 btrfs; do
		for how in again copy snapshot power; do
			[ $how != snapshot ] || [ $fs = btrfs ] || continue
			truncate -s 200M fs.img
			PATH=$PATH:/sbin:/usr/sbin mkfs.$fs -q fs.img > mkfs.out 2>&1 || continue
			mkdir -p m m2
			mount -o loop fs.img m 2> mount.err || skip 'cannot mount'
			mounts=("$PWD/m")
			cd m
			image raw
			case $how in power) serve file=disk.img durability=power ;; *) serve file=disk.img ;; esac
			io 'write -P 1 1M 64K' 'write -P 2 5M 200K' flush
			[ $how != snapshot ] || btrfs subvolume snapshot . s > snapshot.out
			[ $how != copy ] || { cp --sparse=always disk.img.bitmaps.log copy.log; }
			ended KILL
			case $how in
			copy) mv copy.log disk.img.bitmaps.log ;;
			snapshot) cd s ;;
			*)
				cd ..
				umount m
				mount -o loop fs.img m
				cd m
				;;
			esac
			attempt bitmap-list disk.img
			case $how in
			power) assert_equal "$(dirty disk.img b)" '1048576+65536 5242880+262144' ;;
			copy) [[ $stderr == *'the write log is a copy'*'the whole disk counts as dirty'* ]] || fail "$stderr" ;;
			*) [[ $stderr == *'mounted again, or is another one'*'the whole disk counts as dirty'* ]] || fail "$stderr" ;;
			esac
			[ $how = power ] || bitmap disk.img b '.count == 8388608 and (has("inconsistent") | not)'
			chained inc.qcow2 full.qcow2
			cd "$here"
			umount m
			mounts=()
		done
	done
}

@test "a flush makes the bits durable before the data" {
	command -v strace > /dev/null || skip 'no strace'
	image raw
	printf '%s\n' 'write 1048576 65536 1' flush flush 'write 1048576 65536 2' flush 'write 3145728 65536 1' flush |
		strace -f -y -e trace=fdatasync,fsync -o trace "$BUILD/helpers/tracker" disk.img disk.img.bitmaps > tracker.out 2>&1 ||
		skip 'strace cannot be used here'
	[ ! -s tracker.out ] || fail "$(cat tracker.out)"
	# The log was made without a name.  The last sync is that of the end.
	sed -n 's/.* fdatasync([0-9]*<\(.*\)>.*/\1/p' trace | sed 's,.*/disk.img$,disk,; t; s/.*/log/' > synced
	assert_equal "$(paste -sd ' ' synced)" 'log disk disk disk log disk disk'
}

@test "nobody else writes: nothing is said" {
	local f
	for f in raw qcow2; do
		image $f
		serve file=disk.img
		io 'write -P 1 1M 64K' flush 'write -z 2M 1M' 'discard 3M 1M' 'write -z -u 5M 64K' 'read 0 1M'
		sleep 0.05
		io 'write -f -P 2 1M 64K' 'aio_write 1M 256K' 'aio_write 2M 256K' aio_flush
		nbdinfo "$uri" > info
		ended TERM
		[ ! -s serve.err ] || fail "$(cat serve.err)"
		bitmap disk.img b 'has("inconsistent") | not'
		chained inc.qcow2 full.qcow2 $f
		rm -f -- *.img* *.qcow2
	done
}

@test "a bitmap that is off, none at all, and a changed image" {
	raw disk.img 1M
	serve file=disk.img
	io 'write -P 1 0 64K'
	ended TERM
	[ ! -e disk.img.bitmaps ] && [ ! -e disk.img.bitmaps.log ]
	ok bitmap-add --disabled disk.img off
	ok bitmap-add disk.img b
	serve disk.img
	io 'write -P 1 0 64K'
	ended TERM
	bitmap disk.img off '.count == 0 and (has("inconsistent") | not)'
	touch disk.img
	serve disk.img
	io 'write -P 1 0 64K'
	ended TERM
	grep -q 'without being tracked' serve.err
	bitmap disk.img b '.inconsistent and .count == 65536'
}

@test "read-only: beside other readers, and nothing is changed" {
	image raw
	done_ backup-run -F qcow2 disk.img w.qcow2
	serve -r file=disk.img
	run qemu-io -f raw -c 'write 0 1' "$uri"
	[[ $output == *ead-only* || $output == *ermi* ]] || fail "$output"
	done_ backup-run -F qcow2 disk.img x.qcow2
	cp disk.img.bitmaps before
	ended TERM
	serve readonly=true file=disk.img
	nbdinfo --can multi-conn "$uri"
	! nbdinfo --is writable "$uri" 2> /dev/null || fail "writable"
	ended TERM
	cmp disk.img.bitmaps before
	# A full backup is remembered there.
	serve -r file=disk.img
	done_ backup-run -F qcow2 disk.img y.qcow2
	ended TERM
	run -1 cmp -s disk.img.bitmaps before
}

@test "read-only, in all the ways that nbdkit's command line can say it" {
	image raw
	chmod 444 disk.img
	local options long
	long=$(printf '%05000d' 0)
	# nbdkit opens no socket with -s, and no client comes: only a start for reading leaves the server running.
	for options in -sr -rs '-s -r' '-fsvr' '-s --readonly' '-s --read-only' '-s --rea' "-s -D tidemark.x=$long -r" \
		'-s -e r --filter cow -r' '-se x -r' '--single --exportname x --read-only'; do
		# shellcheck disable=SC2086 # they are words
		mortal nbdkit $options "$PLUGIN" file=disk.img < /dev/null > s.out 2> s.err 3>&- || fail "$options: $(cat s.err)"
		! grep -qi 'permission denied\|could not open' s.err || fail "$options: $(cat s.err)"
	done
	for options in -s '-s -e -r' '-se r' '-s -P -r' '-s --exportname -r'; do
		# shellcheck disable=SC2086
		! mortal nbdkit $options "$PLUGIN" file=disk.img < /dev/null > s.out 2> s.err 3>&- ||
			fail "$options: started for reading"
	done
}

@test "a file size limit: the client gets an error, and the server lives" {
	image raw
	ulimit -f 4096
	serve file=disk.img
	run qemu-io -f raw -c 'write -P 1 6M 64K' "$uri"
	[[ $output == *'write failed'* ]] || fail "$output"
	io 'write -P 2 1M 64K' 'read -P 2 1M 64K'
	ended TERM
	# What failed may have been written in part.
	assert_equal "$(dirty disk.img b)" '1048576+65536 6291456+65536'
}

@test "exclusive: no second client while one can write" {
	image raw
	serve exclusive=true file=disk.img
	! nbdinfo --can multi-conn "$uri" || fail 'several connections'
	exec 8> >(exec qemu-io -f raw "$uri" > io.out 2>&1)
	bg_pids+=($!)
	echo 'write -P 1 0 64K' >&8
	eventually grep -q wrote io.out
	run nbdinfo --size "$uri"
	[ "$status" -ne 0 ]
	grep -q 'exclusive=true accepts no second one' serve.err
	refused_like . backup-run --allow-changing-source "$uri" copy.img
	exec 8>&-
	eventually nbdinfo --size "$uri"
	done_ backup-run --allow-changing-source "$uri" copy.img
	cmp copy.img disk.img
	ended TERM
	# Readers do not disturb each other, and without the parameter nobody is refused.
	serve -r exclusive=true file=disk.img
	nbdinfo --can multi-conn "$uri"
	ended TERM
	serve file=disk.img
	nbdinfo --can multi-conn "$uri"
}

@test "extents, and what a server can do" {
	truncate -s 1M disk.img
	noise 65536 | put disk.img 131072
	serve file=disk.img
	nbdinfo --map --json "$uri" > map.json
	assert_equal "$(jq -r '[.[] | "\(.offset)+\(.length):\(.type)"] | join(" ")' map.json)" '0+131072:3 131072+65536:0 196608+851968:3'
	local can
	for can in cache fast-zero flush fua multi-conn trim write zero; do nbdinfo --can $can "$uri"; done
	nbdcopy "$uri" copy.img
	cmp copy.img disk.img
	ended TERM
}

@test "zeroes keep their space, unless the client lets it go" {
	local f before
	for f in raw qcow2; do
		"$f" disk.img 2M
		qemu-io -f $f -c 'write -q -P 1 0 2M' disk.img
		sync disk.img
		before=$(allocated disk.img)
		serve file=disk.img
		io 'write -z 0 1M' flush 'read -P 0 0 1M' 'read -P 1 1M 1M'
		sync disk.img
		[ "$(allocated disk.img)" -ge "$before" ]
		# What cannot be done fast that way is left to the client.
		if [ $f = raw ]; then
			run qemu-io -f raw -c 'write -z -n 0 64K' "$uri"
			[[ $output == *'not supported'* ]] || fail "$output"
		fi
		io 'write -z -n -u 0 1M' flush 'read -P 0 0 1M' 'read -P 1 1M 1M'
		ended TERM
		sync disk.img
		[ "$(allocated disk.img)" -le $((before - 900)) ]
		rm disk.img
	done
}

@test "what it is told, and cannot do" {
	raw disk.img 1M
	local p
	for p in nosuch=1 durability=maybe file=nosuch.img format=vmdk ignore-stamp=perhaps allow-backing=all; do
		case $p in file=*) run nbdkit -f -U "$PWD/s" "$PLUGIN" "$p" ;; *) run nbdkit -f -U "$PWD/s" "$PLUGIN" file=disk.img "$p" ;; esac
		assert_equal "$status" 1
		[[ $output == *"${p%%=*}"* || $output == *"${p#*=}"* ]] || fail "$p: $output"
	done
	run nbdkit -f -U "$PWD/s" "$PLUGIN"
	assert_equal "$status" 1
	[[ $output == *file=* ]]
	run nbdkit --dump-plugin "$PLUGIN"
	[[ $output == *tidemark_durability=* ]]
	assert_equal "$status" 0
	ok bitmap-add disk.img b
	flip disk.img.bitmaps 20
	run nbdkit -f -U "$PWD/s" "$PLUGIN" file=disk.img
	assert_equal "$status" 1
	[[ $output == *disk.img.bitmaps* ]] || fail "$output"
}

@test "fio, two jobs at once: the increment holds what they wrote" {
	fio --enghelp 2> /dev/null | grep -qw nbd || skip "this fio has no nbd engine"
	local f
	for f in raw qcow2; do
		image $f
		serve file=disk.img durability=power
		run fio --name=j --ioengine=nbd --uri="$uri" --rw=randwrite --bs=4k --size=8M --io_size=2M --numjobs=2 --iodepth=8 \
			--verify=crc32c --do_verify=0 --output=fio.out
		assert_equal "$status" 0
		ended KILL
		bitmap disk.img b '.count > 1000000'
		chained inc.qcow2 full.qcow2 $f
		rm -f -- *.img* *.qcow2
	done
}

@test "a real file system on the served disk, over several increments" {
	[ "$(id -u)" -eq 0 ] || skip "mounts"
	[ -c /dev/fuse ] || skip "no /dev/fuse"
	command -v nbdfuse > /dev/null || skip "nbdfuse is not there"
	truncate -s 48M disk.img
	PATH=$PATH:/sbin:/usr/sbin mkfs.ext4 -q disk.img
	ok bitmap-add disk.img b
	done_ backup-run -F qcow2 disk.img inc0.qcow2
	mkdir fuse fs
	local i fuse
	for i in 1 2 3; do
		serve file=disk.img
		nbdfuse fuse/disk "$uri" 3>&- &
		fuse=$!
		bg_pids+=("$fuse")
		eventually test -s fuse/disk
		mount -o loop,discard fuse/disk fs || skip "loop devices cannot be used here"
		mounts+=("$PWD/fs" "$PWD/fuse")
		mkdir fs/$i
		cp "$ROOT"/lib/*/*.c fs/$i
		noise 300000 $i > fs/$i/noise
		[ $i = 1 ] || rm -r fs/$((i - 1))
		fstrim fs 2> /dev/null || true
		umount fs
		umount fuse
		wait "$fuse" || true
		mounts=()
		if [ $i = 2 ]; then ended KILL; else ended TERM; fi
		chained inc$i.qcow2 inc$((i - 1)).qcow2
		PATH=$PATH:/sbin:/usr/sbin e2fsck -fn restored.img > fsck.out 2>&1 || fail "$(cat fsck.out)"
	done
	mount -o loop,ro restored.img fs
	mounts+=("$PWD/fs")
	cmp <(noise 300000 3) fs/3/noise
	local file
	for file in "$ROOT"/lib/*/*.c; do cmp "$file" "fs/3/${file##*/}"; done
}

@test "ignore-stamp=true vouches for all bitmaps" {
	image raw
	touch disk.img
	serve file=disk.img ignore-stamp=true
	io 'write -P 2 1M 64K'
	ended TERM
	[ ! -s serve.err ] || fail "$(cat serve.err)"
	bitmap disk.img b '.recording and .count == 65536 and (has("inconsistent") | not)'
	# It does not hide writes that come later.
	serve file=disk.img ignore-stamp=true
	alter
	ended TERM
	bitmap disk.img b .inconsistent
}
