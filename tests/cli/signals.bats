#!/usr/bin/env bats
# Signals, and output that no program reads.

load helper

slow_disk() {
	noise 4M > disk.img
	ok bitmap-add disk.img b
	ok bitmap-mark disk.img b 0 2M
}

slow=(backup-run --speed 128K --sync incremental --bitmap b -F qcow2 disk.img inc.qcow2)

as_before() {
	[ ! -e inc.qcow2 ]
	bitmap disk.img b '.count == 2097152 and .recording and (.busy | not) and (has("inconsistent") | not)'
}

@test "SIGINT and SIGTERM cancel a backup, which then ends by the signal" {
	slow_disk
	local number
	for number in 2 15; do
		ended $number "$when_busy" "${slow[@]}"
		assert_equal "$ended" "signal $number"
		assert_equal "$(event_names)" BLOCK_JOB_CANCELLED
		jq -s -e 'map(select(.event))[0].data | keys == ["device", "len", "offset", "speed", "type"] and .device == "disk" and
			.len == 2097152 and .offset < .len and .speed == 131072 and .type == "backup"' <<< "$output"
		as_before
	done
	assert_equal "$(ls ./*qcow2* 2> /dev/null)" ''
	backed_up 2097152 backup-run --sync incremental --bitmap b -F qcow2 disk.img inc.qcow2
	clean inc.qcow2
}

@test "a cancelled backup leaves what stood under the target's name" {
	slow_disk
	echo precious > inc.qcow2
	ended 15 "$when_busy" "${slow[@]}" --overwrite
	assert_equal "$ended" 'signal 15'
	assert_equal "$(cat inc.qcow2)" precious
	assert_equal "$(ls ./*qcow2*)" ./inc.qcow2
}

@test "a cancelled backup into an existing overlay leaves a valid one" {
	slow_disk
	qemu-img create -q -f qcow2 ready.qcow2 4M
	ended 2 "$when_busy" backup-run --speed 128K --sync incremental --bitmap b --mode existing -F qcow2 disk.img ready.qcow2
	assert_equal "$ended" 'signal 2'
	assert_equal "$(event_names)" BLOCK_JOB_CANCELLED
	clean ready.qcow2
	as_before
	backed_up 2097152 backup-run --sync incremental --bitmap b --mode existing -F qcow2 disk.img ready.qcow2
	clean ready.qcow2
}

@test "SIGINT during a full backup without bitmap" {
	noise 4M > disk.img
	ended 2 'sleep 0.5' backup-run --speed 128K disk.img copy.img
	assert_equal "$ended" 'signal 2'
	assert_equal "$(event_names)" BLOCK_JOB_CANCELLED
	assert_equal "$(ls ./*.img)" ./disk.img
}

@test "SIGINT during a restore" {
	noise 64M > disk.img
	qemu-img convert -c -O qcow2 -o cluster_size=4K disk.img top.qcow2
	ended 2 'sleep 0.05' chain-restore top.qcow2 restored.img
	case $ended in
	'signal 2') [ ! -e restored.img ] ;;
	*) cmp disk.img restored.img ;; # faster than the signal
	esac
}

@test "SIGKILL: the next command rolls the bitmap back" {
	slow_disk
	ended 9 "$when_busy" "${slow[@]}"
	assert_equal "$ended" 'signal 9'
	as_before
	ok image-write --pattern 1 disk.img 3M 1
	bitmap disk.img b '.count == 2097152 + 65536'
	backed_up 2162688 backup-run --sync incremental --bitmap b -F qcow2 disk.img inc.qcow2
	clean inc.qcow2
	assert_equal "$(ls)" "$(printf '%s\n' bg.err bg.out busy.json disk.img disk.img.bitmaps inc.qcow2 list.json list.err |
		sort)"
}

@test "SIGKILL: whatever command comes next" {
	slow_disk
	cp disk.img.bitmaps whole
	local stamp
	stamp=$(stat -c %y disk.img)
	while read -r next; do
		cp whole disk.img.bitmaps
		ended 9 "$when_busy" "${slow[@]}"
		assert_equal "$ended" 'signal 9'
		# shellcheck disable=SC2086 # the command is words
		attempt $next
		assert_equal "$status" 0
		assert_equal "$(stat -c %y disk.img)" "$stamp"
	done <<- END
		bitmap-clear disk.img b
		bitmap-remove disk.img b
		bitmap-disable disk.img b
		bitmap-add disk.img c
		bitmap-dump --output=sha256 disk.img b
		backup-run --sync incremental --bitmap b -F qcow2 disk.img inc.qcow2
	END
}

@test "SIGKILL during a write: what was written is marked" {
	raw disk.img 16M
	cp disk.img before.img
	ok bitmap-add disk.img b
	noise 8M 9 > data
	mkfifo in
	image-write disk.img 1M < in > bg.out 2> bg.err 3>&- &
	bg=$!
	bg_pids+=("$bg")
	exec 9> in
	cat data >&9
	eventually cmp -s -n 65536 -i 1048576:0 disk.img data
	kill -KILL "$bg"
	exec 9>&-
	finish
	assert_equal "$status" 137
	bitmap disk.img b '(.busy | not) and .recording and (has("inconsistent") | not)'
	dirty disk.img b > /dev/null
	# Every byte that changed lies in a dirty range.
	python3 - <<- 'PY'
		import json
		a, b = open("disk.img", "rb").read(), open("before.img", "rb").read()
		dirty = [(r["start"], r["start"] + r["length"]) for r in json.load(open("dump.json"))["return"] if r["dirty"]]
		for at in range(0, len(a), 512):
		    if a[at:at + 512] != b[at:at + 512]:
		        assert any(s <= at and at + 512 <= e for s, e in dirty), at
	PY
	ok image-write --pattern 1 disk.img 15M 1
}

@test "SIGTERM during a write ends it, with what was written marked" {
	raw disk.img 16M
	cp disk.img before.img
	ok bitmap-add disk.img b
	noise 8M 9 > data
	mkfifo in
	env --default-signal=TERM image-write disk.img 1M < in > bg.out 2> bg.err 3>&- &
	bg=$!
	bg_pids+=("$bg")
	exec 9> in
	cat data >&9
	eventually cmp -s -n 65536 -i 1048576:0 disk.img data
	kill -TERM "$bg"
	eventually has_ended "$bg"
	finish
	exec 9>&-
	assert_equal "$status" 143
	bitmap disk.img b '(has("inconsistent") | not) and .count >= 65536'
	cmp -n 1048576 disk.img before.img
}

# holds FILE: another program that lives has this lock, and keeps it.
holds() {
	python3 -c 'import fcntl, struct, sys, time
f = open(sys.argv[1], "r+b")
fcntl.fcntl(f, 37, struct.pack("hhqqi", fcntl.F_WRLCK, 0, int(sys.argv[2]), int(sys.argv[3]), 0))
open("held", "w").close()
time.sleep(60)' "$@" 3>&- &
	bg_pids+=("$!")
	eventually test -e held
	rm held
}

# waits CMD...: it waits for that lock, and SIGTERM ends it at once.
waits() {
	local begin
	begin=$(date +%s%N)
	ended 15 'sleep 0.3' "$@"
	assert_equal "$ended" 'signal 15'
	[ $((($(date +%s%N) - begin) / 1000000)) -lt 3000 ] || fail 'not at once'
}

@test "SIGTERM while a command waits for a lock of another program" {
	raw disk.img 4M
	ok bitmap-add -f raw disk.img b
	holds disk.img.bitmaps 0 1
	waits bitmap-add disk.img c
	waits bitmap-clear disk.img b
	waits image-write --pattern 1 disk.img 0 64K
	waits backup-run --sync incremental --bitmap b -F qcow2 disk.img t.qcow2
	[ ! -e t.qcow2 ]
	kill "${bg_pids[-1]}"
	qcow2 q.qcow2 4M
	ok bitmap-add --store image q.qcow2 b
	holds q.qcow2 $((1 << 62)) 1
	waits bitmap-clear q.qcow2 b
	kill "${bg_pids[-1]}"
	bitmap disk.img b '.recording and .count == 0 and (.busy | not)'
	bitmap q.qcow2 b '.recording'
}

@test "SIGUSR1 prints progress" {
	slow_disk
	start "${slow[@]}"
	eventually is_busy disk.img b
	assert_equal "$(cat bg.err)" ''
	kill -USR1 "$bg"
	eventually test -s bg.err
	grep -Eq '[0-9].*%|[0-9]+.*(of|/).*[0-9]+' bg.err
	kill -INT "$bg"
	finish
	assert_equal "$status" 130
	[ ! -e inc.qcow2 ]
}

# refuses_output REDIRECTION CMD...: exit status 1, a message, and nothing changed.
refuses_output() {
	run --separate-stderr bash -c "exec \"\$@\" $1" - "${@:2}"
	printf '$ %s %s\n[%s] %s\n' "${*:2}" "$1" "$status" "$stderr"
	assert_equal "$status" 1
	[ -n "$stderr" ]
}

@test "a closed standard output, and /dev/full: nothing changed" {
	raw disk.img 1M
	ok bitmap-add disk.img b
	ok bitmap-add --disabled disk.img c
	ok bitmap-mark disk.img b 0 1
	qcow2 top.qcow2 1M
	local to
	for to in '>&-' '> /dev/full'; do
		unchanged refuses_output "$to" bitmap-add disk.img n
		unchanged refuses_output "$to" bitmap-remove disk.img b
		unchanged refuses_output "$to" bitmap-clear disk.img b
		unchanged refuses_output "$to" bitmap-enable disk.img c
		unchanged refuses_output "$to" bitmap-disable disk.img b
		unchanged refuses_output "$to" bitmap-merge disk.img c b
		unchanged refuses_output "$to" bitmap-mark disk.img c 0 1
		unchanged refuses_output "$to" image-create -f qcow2 new.qcow2 1M
		unchanged refuses_output "$to" image-write --pattern 1 disk.img 0 1
		unchanged refuses_output "$to" backup-run -F qcow2 disk.img new.qcow2
		unchanged refuses_output "$to" backup-run --sync incremental --bitmap b -F qcow2 disk.img new.qcow2
		unchanged refuses_output "$to" chain-restore top.qcow2 new.img
		unchanged refuses_output "$to" bitmap-list disk.img
		unchanged refuses_output "$to" bitmap-list --output=json disk.img
		unchanged refuses_output "$to" bitmap-dump --output=json disk.img b
		unchanged refuses_output "$to" bitmap-dump --output=map disk.img b
		unchanged refuses_output "$to" image-info disk.img
	done
	[ ! -e new.qcow2 ] && [ ! -e new.img ]
	bitmap disk.img b '.count == 65536 and (.busy | not)'
}

@test "a closed standard output is never taken for a file to write to" {
	raw disk.img 1M
	cp disk.img before.img
	ok bitmap-add disk.img b
	local closed
	for closed in '>&-' '<&- >&-' '<&- >&- 2>&-' '2>&-'; do
		run bash -c "bitmap-mark disk.img b 0 1 $closed"
		run bash -c "bitmap-list disk.img $closed"
		run bash -c "backup-run disk.img copy.img $closed"
		cmp disk.img before.img
		[ ! -e copy.img ] || cmp disk.img copy.img
		bitmap disk.img b '(.busy | not)'
	done
}

# unread CMD...: runs CMD with a standard output that nobody reads.
unread() {
	attempt python3 -c 'import os, subprocess, sys
r, w = os.pipe()
os.close(r)
sys.exit(subprocess.call(sys.argv[1:], stdout=w))' "$@"
}

# done_unreported CMD...: all was done, but the report of it could not be delivered.
done_unreported() {
	unread "$@"
	assert_equal "$status" 4
	[[ $stderr == *"$1: standard output: Broken pipe"* ]] || fail "no reason: $stderr"
	[[ $stderr == *'all was done, and only its report could not be delivered: do not run the command again'* ]] ||
		fail "no way on: $stderr"
}

@test "nobody reads the report: the work is done, and the status 4" {
	raw disk.img 1M
	done_unreported image-create -f qcow2 new.qcow2 1M
	clean new.qcow2
	done_unreported bitmap-add disk.img b
	done_unreported bitmap-add --disabled disk.img c
	done_unreported bitmap-mark disk.img b 0 1
	bitmap disk.img b '.count == 65536'
	done_unreported bitmap-merge disk.img c b
	bitmap disk.img c '.count == 65536'
	done_unreported bitmap-enable disk.img c
	bitmap disk.img c .recording
	done_unreported bitmap-disable disk.img c
	bitmap disk.img c '.recording | not'
	done_unreported image-write --pattern 7 disk.img 512K 1
	assert_equal "$(byte disk.img 524288)" 07
	bitmap disk.img b '.count == 131072'
	done_unreported backup-run --bitmap b --bitmap-mode on-success -F qcow2 disk.img full.qcow2
	bitmap disk.img b '.count == 0 and (.busy | not)'
	same raw disk.img qcow2 full.qcow2
	ok image-write --pattern 8 disk.img 64K 1
	done_unreported backup-run --sync incremental --bitmap b -F qcow2 --backing full.qcow2 disk.img inc.qcow2
	same raw disk.img qcow2 inc.qcow2
	done_unreported chain-restore inc.qcow2 back.img
	cmp disk.img back.img
	done_unreported bitmap-rescan --against full.qcow2 disk.img b
	bitmap disk.img b '.count == 65536'
	done_unreported bitmap-export disk.img b --to back.img#copied
	done_unreported bitmap-import disk.img d --from back.img#copied
	bitmap disk.img d '.count == 65536'
	done_unreported bitmap-clear disk.img d
	bitmap disk.img d '.count == 0'
	done_unreported bitmap-remove disk.img d
	assert_equal "$(names disk.img)" 'b c'
}

@test "nobody reads the report: what failed keeps its status" {
	raw disk.img 1M
	ok bitmap-add disk.img b
	unread bitmap-add disk.img b
	assert_equal "$status" 1
	unread bitmap-add disk.img
	assert_equal "$status" 2
	unread backup-run --sync incremental --bitmap nosuch -F qcow2 disk.img new.qcow2
	assert_equal "$status" 1
	[[ $stderr != *'all was done'* ]]
	qcow2 top.qcow2 1M
	unread chain-verify --against disk.img -F raw top.qcow2
	assert_equal "$status" 3
	unread bitmap-add --help
	assert_equal "$status" 1
}

@test "nobody reads what a command shows: status 4, and it can be run again" {
	raw disk.img 1M
	ok bitmap-add disk.img b
	qcow2 top.qcow2 1M
	while read -r words; do
		# shellcheck disable=SC2086 # the command is words
		unchanged unread $words
		assert_equal "$status" 4
		[[ $stderr == *'nothing was changed: run the command again'* ]] || fail "no way on: $stderr"
	done <<- END
		bitmap-list disk.img
		bitmap-list --output=json disk.img
		bitmap-dump disk.img b
		bitmap-dump --output=json disk.img b
		bitmap-dump --output=sha256 disk.img b
		image-info disk.img
		chain-info top.qcow2
		chain-verify top.qcow2
		bitmap-clear --dry-run disk.img b
		backup-run --dry-run disk.img copy.img
	END
}

@test "the report does not fit on its disk: status 4" {
	raw disk.img 1M
	ok bitmap-add disk.img b
	tiny_fs small 64K
	! cat /dev/zero > small/log 2> full.err || fail 'endless room'
	local size
	size=$(stat -c %s small/log)
	attempt bash -c 'exec "$@" >> small/log' - backup-run --bitmap b --bitmap-mode on-success -F qcow2 disk.img full.qcow2
	assert_equal "$status" 4
	[[ $stderr == *'No space left on device'*'do not run the command again'* ]] || fail "$stderr"
	assert_equal "$(stat -c %s small/log)" "$size"
	same raw disk.img qcow2 full.qcow2
}

@test "nobody reads the replies of txn-apply" {
	raw disk.img 1M
	cat > good.json <<- 'END'
		{"execute": "block-dirty-bitmap-add", "arguments": {"node": "disk", "name": "x"}}
		{"execute": "query-block"}
		{"execute": "drive-backup", "arguments": {"device": "disk", "target": "t.img", "format": "raw", "sync": "full"}}
	END
	done_unreported txn-apply --drive disk=disk.img good.json
	assert_equal "$(names disk.img)" x
	cmp disk.img t.img
	# One command failed: that is the status, and the message says that the others must not be repeated.
	sed -i 's/"x"/"y"/; s/query-block/nosuch/; s/t\.img/u.img/' good.json
	unread txn-apply --drive disk=disk.img good.json
	assert_equal "$status" 1
	[[ $stderr == *'2 commands succeeded, but the report could not be delivered: do not repeat them'* ]] || fail "$stderr"
	assert_equal "$(names disk.img)" 'y x'
	cmp disk.img u.img
	echo '{"execute": "query-block"}' > query.json
	unread txn-apply --drive disk=disk.img query.json
	assert_equal "$status" 4
}
