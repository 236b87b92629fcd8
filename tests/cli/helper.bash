# Shared parts of the command tests.  Each test starts in a directory of its own;
# programs are run through `run --separate-stderr` and never in a pipe; one of these states the
# expected end of a command: ok, refused, refused_like, rejected, usage.
#
# shellcheck shell=bash
# shellcheck disable=SC2154 # status, output and stderr are set by `run`

bats_require_minimum_version 1.5.0
bats_load_library bats-support
bats_load_library bats-assert

: "${BUILD:=$BATS_TEST_DIRNAME/../../build}"
BUILD=$(realpath -m "$BUILD")
ROOT=$(realpath "$BATS_TEST_DIRNAME/../..")
export BUILD ROOT PATH="$BUILD/bin:$PATH" LC_ALL=C.UTF-8
# A sanitizer's report must not pass for a refusal, whose exit status is 1 too.
export ASAN_OPTIONS="exitcode=99:${ASAN_OPTIONS-}" LSAN_OPTIONS="exitcode=99:${LSAN_OPTIONS-}"
export UBSAN_OPTIONS="exitcode=99:print_stacktrace=1:${UBSAN_OPTIONS-}"

# Does data get to a target without a look at it, by a way that is forced (tests/ways), or where the file system shares
# it?  Zeroes are data there then.
moved_unseen() {
	[[ ${TIDE_COPY-} == @(reflink|kernel) ]] || { [ -z "${TIDE_COPY-}" ] && [[ $(stat -f -c %T .) == @(btrfs|xfs) ]]; }
}

setup() {
	here=$BATS_TEST_TMPDIR/here # bats keeps files of its own one level up
	mkdir "$here"
	cd "$here" || return 1
	bg_pids=() mounts=() loops=() list_opts=()
}

teardown() {
	local x
	for x in "${bg_pids[@]}"; do
		kill -KILL "$x" 2> /dev/null || true
		wait "$x" 2> /dev/null || true
	done
	for x in *.pid; do
		[ ! -s "$x" ] || kill "$(cat "$x")" 2> /dev/null || true
	done
	cd / || return 1
	for x in "${loops[@]}"; do losetup -d "$x"; done
	for x in "${mounts[@]}"; do
		umount "$x" || umount -l "$x"
	done
}

# ---- how a command ended ----

# The command's own name is put into $command; words before it, such as `timeout 10`, do not count.
attempt() {
	local i # `run` uses it
	for command; do
		[ ! -x "$BUILD/bin/${command##*/}" ] || break
	done
	command=${command##*/}
	run --separate-stderr "$@"
	# The log of a failing test.
	printf '$ %s\n[%s] %s\n%s\n' "$*" "$status" "$output" "$stderr"
	case $status in
	0 | 1 | 2 | 3 | 4) ;;
	*) fail "ended with status $status" ;;
	esac
	case $stderr in *Sanitizer* | *'runtime error'*) fail 'sanitizer report' ;; esac
}

# ok CMD...: done, and says so as QMP does.
ok() {
	attempt "$@"
	assert_equal "$status" 0
	assert_equal "$output" '{"return": {}}'
}

# same_but_birth A B: the same bytes but for the birth records, which are in the first 4 KiB and never the same.
same_but_birth() {
	cmp -i 4096 "$1" "$2"
	assert_equal "$(stat -c %s "$1")" "$(stat -c %s "$2")"
}

# done_ CMD...: exit status 0; the output is looked at by the caller.
done_() {
	attempt "$@"
	assert_equal "$status" 0
}

# One reply that is an error, whose text is put into $desc.
error_reply() {
	assert_equal "$status" 1
	case $output in '{"error": {"class": "GenericError", "desc": "'*'"}}') ;; *) fail "no error reply: $output" ;; esac
	jq -e '(keys == ["error"]) and (.error | keys == ["class", "desc"])' <<< "$output" > /dev/null ||
		fail "more than an error reply: $output"
	desc=$(jq -rj '.error.desc, "."' <<< "$output")
	desc=${desc%.}
	case $stderr in "$command: "*) ;; *) fail "stderr does not begin with the command's name: $stderr" ;; esac
}

# refused DESC CMD...: exit status 1 and exactly this text in the reply, which people see too.
refused() {
	local want=$1
	shift
	attempt "$@"
	error_reply
	assert_equal "$desc" "$want"
	case $stderr in *"${want% }"*) ;; *) fail "stderr does not say: $want" ;; esac
}

# refused_like REGEX CMD...
refused_like() {
	local want=$1
	shift
	attempt "$@"
	error_reply
	[[ $desc =~ $want ]] || fail "'$desc' is not like '$want'"
}

# rejected CMD...: refused, or wrong usage; with a message either way.
rejected() {
	attempt "$@"
	case $status in
	1) error_reply ;;
	2) [ -n "$stderr" ] || fail 'no message' ;;
	*) fail "ended with status $status" ;;
	esac
}

# usage CMD...: exit status 2 and a message for people.
usage() {
	attempt "$@"
	assert_equal "$status" 2
	[ -n "$stderr" ] || fail 'no message'
}

# ---- bitmaps ----

# list_with OPTION...: from now on bitmap-list gets these options below.
list_with() {
	list_opts=("$@")
}

# bitmap IMAGE NAME JQ: the node has one bitmap of this name, and JQ holds for it.
bitmap() {
	bitmap-list --output=json "${list_opts[@]}" "$1" > list.json 2> list.err || fail "bitmap-list $1: $(cat list.err)"
	jq -e --arg n "$2" '.return | map(select(.name == $n)) | length == 1' list.json > /dev/null ||
		fail "no bitmap $2 in $(cat list.json)"
	jq -e --arg n "$2" ".return[] | select(.name == \$n) | $3" list.json > /dev/null ||
		fail "$2 is not: $3; $(cat list.json)"
}

# names IMAGE: in list order.
names() {
	bitmap-list --output=json "${list_opts[@]}" "$1" > list.json 2> list.err || fail "bitmap-list $1: $(cat list.err)"
	jq -r '[.return[].name] | join(" ")' list.json
}

# dirty IMAGE NAME: the dirty ranges as START+LENGTH, in one line.
dirty() {
	bitmap-dump --output=json "$1" "$2" > dump.json 2> dump.err || fail "bitmap-dump $1 $2: $(cat dump.err)"
	jq -r '[.return[] | select(.dirty) | "\(.start)+\(.length)"] | join(" ")' dump.json
}

hash_of() {
	bitmap-dump --output=sha256 "$1" "$2" > hash.json 2> hash.err || fail "bitmap-dump $1 $2: $(cat hash.err)"
	jq -er .return.sha256 hash.json
}

# ---- events ----

# event NAME DATA: among the lines of $output there is this event once, with exactly this data.
event() {
	jq -s -e --arg n "$1" --argjson d "$2" 'map(select(.event == $n)) | length == 1 and .[0].data == $d' \
		<<< "$output" > /dev/null || fail "no event $1 with data $2 in: $output"
	jq -s -e 'map(select(.event)) | all((keys == ["data", "event", "timestamp"]) and
		(.timestamp | keys == ["microseconds", "seconds"]) and .timestamp.seconds > 1600000000 and
		.timestamp.microseconds >= 0 and .timestamp.microseconds < 1000000)' <<< "$output" > /dev/null ||
		fail "events of another form: $output"
}

# event_names: those in $output, in order, in one line.
event_names() {
	jq -r -s '[.[] | select(.event) | .event] | join(" ")' <<< "$output"
}

# plain_replies: how many replies in $output have no members but x- ones.
plain_replies() { jq -s 'map(select(.return | objects | keys | all(startswith("x-")))) | length' <<< "$output"; }

# backed_up LEN backup-run...: success, the reply, and one event, with len and offset LEN.
backed_up() {
	local len=$1
	shift
	attempt "$@"
	assert_equal "$status" 0
	assert_equal "$(plain_replies)" 1
	assert_equal "$(event_names)" BLOCK_JOB_COMPLETED
	event BLOCK_JOB_COMPLETED \
		"{\"device\": \"${device:-disk}\", \"len\": $len, \"offset\": $len, \"speed\": 0, \"type\": \"backup\"}"
}

# backup_failed OPERATION ERROR LEN backup-run...: the job started and failed; the events say so.
backup_failed() {
	local operation=$1 error=$2 len=$3
	shift 3
	attempt "$@"
	assert_equal "$status" 1
	assert_equal "$(event_names)" 'BLOCK_JOB_ERROR BLOCK_JOB_COMPLETED'
	assert_equal "$(plain_replies)" 1
	event BLOCK_JOB_ERROR "{\"device\": \"${device:-disk}\", \"operation\": \"$operation\", \"action\": \"report\"}"
	jq -s -e --arg d "${device:-disk}" --arg e "$error" --argjson l "$len" 'map(select(.event == "BLOCK_JOB_COMPLETED"))[0].data |
		.device == $d and .type == "backup" and .len == $l and .offset < .len and .speed == 0 and .error == $e' \
		<<< "$output" > /dev/null || fail "not the event of this failure: $output"
	[ -n "$stderr" ] || fail 'nothing for people'
}

# ---- images ----

# noise SIZE [SEED]: bytes that do not compress, the same ones each time.
noise() {
	python3 -c 'import random, sys
random.seed(int(sys.argv[2]))
sys.stdout.buffer.write(random.randbytes(int(sys.argv[1])))' "$(numfmt --from=iec "$1")" "${2:-1}"
}

# put FILE OFFSET: standard input into the file, around any tracking.
put() {
	dd of="$1" bs=64K seek="$2" oflag=seek_bytes conv=notrunc status=none
}

# raw FILE SIZE: a sparse one, with some data at its start, in its middle and at its end.
raw() {
	truncate -s "$2" "$1"
	local size
	size=$(stat -c %s "$1")
	noise 5000 "$size" | put "$1" 0
	noise 70000 "$((size + 1))" | put "$1" $((size / 2))
	noise 700 "$((size + 2))" | put "$1" $((size - 700))
}

# qcow2 FILE SIZE [qemu-img create option...]: with the same places written.
qcow2() {
	local file=$1 size=$2
	shift 2
	qemu-img create -q -f qcow2 "$@" "$file" "$size"
	size=$(virtual_size qcow2 "$file")
	qemu-io -f qcow2 -c 'write -q -P 0x11 0 5120' -c "write -q -P 0x22 $((size / 2)) 70144" \
		-c "write -q -P 0x33 $((size - 1024)) 1024" "$file"
}

virtual_size() {
	qemu-img info -U -f "$1" --output=json "$2" | jq '."virtual-size"'
}

# same FORMAT IMAGE FORMAT IMAGE: QEMU reads the same from both.
same() {
	local i
	run -0 qemu-img compare -f "$1" "$2" -F "$3" "$4"
}

# differ FORMAT IMAGE FORMAT IMAGE
differ() {
	local i
	run -1 qemu-img compare -f "$1" "$2" -F "$3" "$4"
}

# clean FILE...: qemu-img check finds nothing to complain about in these qcow2 images.
clean() {
	local f i
	for f in "$@"; do
		run qemu-img check -f qcow2 "$f"
		[ "$status" -eq 0 ] || fail "$f: $output"
		[[ $output == *'No errors were found on the image.'* ]] || fail "$f: $output"
	done
}

# allocated FILE: in KiB.
allocated() {
	du -k "$1" | cut -f 1
}

# state: names, sizes and contents of all files here, to be compared before and after.
state() {
	find . -type f ! -name '*.json' ! -name '*.err' ! -name 'bg.*' -exec sha256sum {} + | sort -k 2
}

# unchanged CMD...: as the test's other words, and no file here is another one afterwards.
unchanged() {
	local before
	before=$(state)
	"$@"
	assert_equal "$(state)" "$before"
}

# byte FILE OFFSET: one byte, as two hexadecimal digits.
byte() {
	od -An -tx1 -j "$2" -N 1 "$1" | tr -d ' \n'
}

# flip FILE OFFSET: inverts one byte.
flip() {
	local b=$((0x$(byte "$1" "$2") ^ 0xff))
	printf '%b' "\\x$(printf %02x $b)" | put "$1" "$2"
}

# break_cluster FILE OFFSET: makes the compressed cluster at OFFSET of this qcow2 impossible to unpack.
break_cluster() {
	python3 - "$@" <<- 'PY'
		import struct, sys
		name, offset = sys.argv[1], int(sys.argv[2])
		with open(name, "r+b") as f:
		    head = f.read(104)
		    bits, = struct.unpack_from(">I", head, 20)
		    l1, = struct.unpack_from(">Q", head, 40)
		    per_l2 = 1 << (bits - 3)
		    cluster = offset >> bits
		    f.seek(l1 + 8 * (cluster // per_l2))
		    l2 = struct.unpack(">Q", f.read(8))[0] & 0x00fffffffffffe00
		    f.seek(l2 + 8 * (cluster % per_l2))
		    entry, = struct.unpack(">Q", f.read(8))
		    assert entry >> 62 == 1, "not compressed"
		    where = entry & ((1 << (62 - (bits - 8))) - 1)
		    f.seek(where)
		    f.write(b"\xff" * 64)
	PY
}

# ---- programs beside ----

# ended SIGNAL WHEN CMD...: runs CMD, sends SIGNAL as soon as the shell command WHEN succeeds, and puts into $ended
# how CMD came to its end: "signal 2", "exit 1", or "too early".  Its output: $output, $stderr.
ended() {
	: > bg.out
	: > bg.err
	ended=$(python3 - "$@" 3>&- <<- 'PY'
		import subprocess, sys, time
		number, when, command = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
		with open("bg.out", "wb") as out, open("bg.err", "wb") as err:
		    p = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
		deadline = time.time() + 20
		while subprocess.call(["sh", "-c", when], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
		    if p.poll() is not None or time.time() > deadline:
		        p.kill()
		        print("too early")
		        sys.exit()
		    time.sleep(0.03)
		p.send_signal(number)
		try:
		    status = p.wait(10)
		    print(f"signal {-status}" if status < 0 else f"exit {status}")
		except subprocess.TimeoutExpired:
		    p.kill()
		    print("never")
	PY
	)
	output=$(cat bg.out) stderr=$(cat bg.err)
	printf '[%s] %s\n%s\n' "$ended" "$output" "$stderr"
}

# For WHEN: the bitmap b of disk.img is in use by a job.
# shellcheck disable=SC2034
when_busy='bitmap-list --output=json disk.img > busy.json && grep -q "\"busy\": true" busy.json'

# start CMD...: in the background, able to be interrupted; its output goes to bg.out and bg.err.
start() {
	: > bg.out
	: > bg.err
	env --default-signal=INT,TERM "$@" > bg.out 2> bg.err 3>&- < /dev/null &
	bg=$!
	bg_pids+=("$bg")
}

# hold_write ARG...: image-write with these arguments has got 4 MiB of its data, and waits for more on descriptor 7.
hold_write() {
	mkfifo input
	image-write "$@" < input > bg.out 2> bg.err 3>&- &
	bg=$!
	bg_pids+=("$bg")
	exec 7> input
	noise 4M >&7
}

# finish: waits for what `start` started; its end is in $status, $output and $stderr.
finish() {
	status=0
	wait "$bg" || status=$?
	output=$(cat bg.out) stderr=$(cat bg.err)
	printf '[%s] %s\n%s\n' "$status" "$output" "$stderr"
}

# eventually CMD...: repeated until it succeeds, for at most ten seconds.
eventually() {
	local i
	for ((i = 0; i < 200; i++)); do
		! "$@" > eventually.out 2> eventually.err || return 0
		sleep 0.05
	done
	fail "never: $*"
}

# has_ended PID: this child has come to its end, waited for or not.
has_ended() {
	[ ! -e "/proc/$1" ] || grep -q '^State:.Z' "/proc/$1/status"
}

is_busy() {
	bitmap-list --output=json "$1" > busy.json
	jq -e --arg n "$2" '.return[] | select(.name == $n) | .busy' busy.json
}

# serve FORMAT IMAGE: QEMU's NBD server holds the image for writing until the test ends.
serve() {
	qemu-nbd --fork --pid-file=nbd.pid -t -f "$1" -k "$PWD/nbd.sock" "$2" 3>&-
}

served_no_more() {
	local pid
	pid=$(cat nbd.pid)
	kill "$pid"
	while kill -0 "$pid" 2> /dev/null; do sleep 0.02; done
	rm -f nbd.pid
}

# tiny_fs DIR SIZE: a file system with this much room, or the test is skipped.
tiny_fs() {
	mkdir -p "$1"
	mount -t tmpfs -o "size=$2" tidemark-test "$1" 2> /dev/null || skip 'cannot mount'
	mounts+=("$PWD/$1")
}

# loop FILE: a block device of it, in $loop, or the test is skipped.
loop() {
	loop=$(losetup -f --show "$1" 2> /dev/null) || skip 'no loop device'
	loops+=("$loop")
}

# name_loop: gives $loop a name that lasts, some-disk, for commands run with `named`, or the test is skipped.
name_loop() {
	mkdir -p dev/disk/by-id var/tidemark
	{ cp -a /dev/null "$loop" dev && ln -s "../../${loop##*/}" dev/disk/by-id/some-disk && named true; } || skip 'no namespaces'
}

# named CMD...: where the device has a name that lasts, and so a usual place for its bitmaps.
named() {
	unshare -m sh -c 'mount --bind "$0/dev" /dev && mount --bind "$0/var" /var/lib && exec "$@"' "$here" "$@"
}

# mortal CMD...: a prefix for commands that must respect file modes also when root runs the tests.
mortal() {
	if [ "$(id -u)" -ne 0 ]; then
		"$@"
	else
		setpriv --bounding-set=-dac_override,-dac_read_search,-fowner "$@"
	fi
}
