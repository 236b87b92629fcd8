# Tidemark.  `make help` lists what can be made.  GNU make; gcc or clang.
#
# Variables: BUILD (where results go), CC, CFLAGS, LDFLAGS, WERROR=1, SAN=address,undefined
# or SAN=thread, LTO=1, V=1 (show the commands), FUZZ_CC and FUZZ_SECONDS, PREFIX, DESTDIR, BINDIR, LIBDIR, INCLUDEDIR, MANDIR.

VERSION := $(shell sed -n 's/.*TIDE_VERSION_STRING "\(.*\)"/\1/p' lib/tidemark.h)
SONAME := libtidemark.so.0

BUILD ?= build
# An absolute name in here and the relative one are one directory, and its dependency files name one of them.
override BUILD := $(patsubst $(CURDIR)/%,%,$(BUILD))
PREFIX ?= /usr/local
BINDIR ?= $(PREFIX)/bin
LIBDIR ?= $(PREFIX)/lib
INCLUDEDIR ?= $(PREFIX)/include
MANDIR ?= $(PREFIX)/share/man
BASHCOMPDIR ?= $(PREFIX)/share/bash-completion/completions
ZSHCOMPDIR ?= $(PREFIX)/share/zsh/site-functions
FISHCOMPDIR ?= $(PREFIX)/share/fish/vendor_completions.d
DOCDIR ?= $(PREFIX)/share/doc/tidemark
# Where nbdkit looks for plugins; under /usr that is the system's own directory.
NBDKITDIR ?= $(if $(filter /usr,$(PREFIX)),$(shell env -u PKG_CONFIG_SYSROOT_DIR pkg-config --variable=plugindir nbdkit 2>/dev/null),$(LIBDIR)/nbdkit/plugins)

CFLAGS ?= -O2 -g
WARN := -Wall -Wextra -Wshadow -Wvla -Wmissing-prototypes -Wstrict-prototypes -Wformat=2 -Wundef -Wno-unused-parameter
HARDEN := -fstack-protector-strong -D_FORTIFY_SOURCE=2 -fPIC
LDHARDEN := -Wl,-z,relro -Wl,-z,now -Wl,--as-needed
ifdef WERROR
WARN += -Werror
endif
ifdef SAN
# Fortified calls hide what the sanitizers look for.
HARDEN := -fPIC
SANFLAGS := -fsanitize=$(SAN) -fno-sanitize-recover=all -fno-omit-frame-pointer
LDHARDEN := -Wl,--as-needed
endif

ifdef LTO
HARDEN += -flto=auto
endif
# Each command is one short line, so that warnings show; V=1 shows it whole.
ifdef V
say =
else
say = @printf '  %-5s %s\n' '$(1)' '$(2)';
endif

ALL_CFLAGS = -std=gnu11 -pthread $(WARN) $(HARDEN) $(SANFLAGS) -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64 $(CPPFLAGS) $(CFLAGS)
LIB_CFLAGS = $(ALL_CFLAGS) -Ilib -Iformats
CMD_CFLAGS = $(ALL_CFLAGS) -Ilib
LIB_LIBS := -pthread

# lib/ is one folder a layer; a format is a file of formats/, or a folder where it has several.
LIB_SRC := $(wildcard lib/*/*.c) $(wildcard formats/*.c) $(wildcard formats/*/*.c)
HEADERS := $(wildcard lib/*.h lib/*/*.h formats/*.h formats/*/*.h formats/*.def cmd/*.h)
LIB_OBJ := $(LIB_SRC:%.c=$(BUILD)/obj/%.o)
CMD_SHARED := $(patsubst %.c,$(BUILD)/obj/%.o,$(filter-out $(wildcard cmd/*-*.c),$(wildcard cmd/*.c)))
CMD_SRC := $(wildcard cmd/*-*.c)
COMMANDS := $(CMD_SRC:cmd/%.c=%)
BINS := $(COMMANDS:%=$(BUILD)/bin/%)
UNIT_SRC := $(wildcard tests/unit/test-*.c)
UNITS := $(UNIT_SRC:tests/unit/%.c=$(BUILD)/unit/%)
# The unit tests' own image layer: each file that has the formats in it, built with another list of them.
FORMATS_SRC := $(shell grep -l 'include TIDE_FORMATS' lib/*/*.c)
UNIT_OBJ := $(BUILD)/obj/tests/unit/memory_driver.o $(FORMATS_SRC:%.c=$(BUILD)/unit/%.o)
UNIT_FORMATS := -Itests/unit -include tests/unit/memory_driver.h -DTIDE_FORMATS='"memory_formats.def"'
# One program, built against other versions of the public header.
ABI_HEADERS := $(wildcard tests/abi/*/tidemark.h)
ABI_NAMES := $(ABI_HEADERS:tests/abi/%/tidemark.h=%) shorter longer
ABI_TESTS := $(ABI_NAMES:%=$(BUILD)/unit/test-abi-%)
HELPER_SRC := $(wildcard tests/helpers/*.c)
HELPERS := $(HELPER_SRC:tests/helpers/%.c=$(BUILD)/helpers/%)
PRELOADS := $(BUILD)/helpers/faults.so $(BUILD)/helpers/record.so $(BUILD)/helpers/compares.so $(BUILD)/helpers/later.so
FUZZ_SRC := $(wildcard tests/fuzz/fuzz-*.c)
FUZZERS := $(FUZZ_SRC:tests/fuzz/%.c=$(BUILD)/fuzz/%)
FUZZ_OBJ := $(LIB_SRC:%.c=$(BUILD)/fuzz/obj/%.o)
FUZZ_CC ?= clang
FUZZ_SECONDS ?= 60
FUZZ_CFLAGS = -std=gnu11 -pthread $(WARN) -O1 -g -fno-omit-frame-pointer -fsanitize=fuzzer-no-link,address,undefined \
	-fno-sanitize-recover=all -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64 $(CPPFLAGS) -Ilib -Iformats
# The nbdkit plugin, where nbdkit's header is there.
PLUGIN := $(if $(shell pkg-config --exists nbdkit 2>/dev/null && echo yes),$(BUILD)/lib/nbdkit/plugins/nbdkit-tidemark-plugin.so)
# Text that several pages share is in man/common; the pages are complete in $(BUILD)/man.
MANPAGES := $(patsubst man/%,$(BUILD)/man/%,$(wildcard man/*.1 man/*.5 man/*.7))

DEPS_BUILD := gcc libc6-dev pkg-config libpopt-dev libjson-c-dev libexpat1-dev libzstd-dev libdeflate-dev libxxhash-dev libnbd-dev nbdkit-plugin-dev
DEPS_TEST := bats bats-support bats-assert mandoc shellcheck qemu-utils qemu-system-x86 python3 jq strace parallel \
	e2fsprogs xfsprogs btrfs-progs libnbd-bin gnutls-bin liburing-dev nbdkit fio fuse3 util-linux clang clang-format libclang-rt-dev zstd netbase
# What `analyze` and `valgrind` need besides.
DEPS_MORE := clang-tidy cppcheck valgrind

.PHONY: FORCE all help deps deps-more demo check check-build check-quick lint format analyze valgrind ways asan tsan fuzz fuzz-build fuzz-smoke sweep power soak model bench bench-quick cov install uninstall dist clean
all: $(BUILD)/lib/libtidemark.so $(BUILD)/lib/libtidemark.a $(BUILD)/lib/pkgconfig/tidemark.pc $(BINS) $(PLUGIN) $(MANPAGES)

help:
	@sed -n 's/^#: //p' Makefile

#: all          the library in $(BUILD)/lib, the commands in $(BUILD)/bin, the man pages in $(BUILD)/man
#: deps         install the Debian packages that building and testing need
#: deps-more    those that analyze and valgrind need
#: demo         build, then play the session of the README on a real ext4 image
#: check        build everything and run all tests
#: check-quick  the unit and command tests only
#: lint         layers, man pages, shell scripts, completeness
#: format       put every C file into the form that the lint asks for
#: analyze      gcc -fanalyzer, clang-tidy and cppcheck, without a finding
#: valgrind     the command tests under valgrind; MATCH=REGEX chooses
#: ways         the tests of copying on ext4, XFS and btrfs in loop devices, each way forced; root
#: asan, tsan   `check` under ASan+UBSan; the unit tests under TSan
#: fuzz         each libFuzzer target for FUZZ_SECONDS (default 60); fuzz-build only builds them, in $(BUILD)/fuzz
#: fuzz-smoke   damaged files through the commands, and each target for a short time
#: sweep        every fault, every failed allocation and every death at every call: hours; ONLY=REGEX chooses
#: power        the disks that a power cut leaves: POWER_STATES=N a command (default 1000), SEED=N
#: soak         random programs of all commands with faults and kills: SECONDS=N (default 600), SEED=N repeats one
#: model        random backups, and what people do to them, against a model: STEPS=N (default 10000), SEED=N is the first program
#: bench        ratios to qemu-img and QEMU, measured side by side; bench-quick in little time
#: cov          line coverage of the tests
#: install      to $(DESTDIR)$(PREFIX); uninstall takes it away
#: dist         a source archive of HEAD
#: clean        remove $(BUILD)

# A change of compiler or flags rebuilds everything.
FLAGS_NOW := $(CC) $(ALL_CFLAGS) $(LDFLAGS) $(LDHARDEN)
$(BUILD)/flags: FORCE
	@mkdir -p $(@D)
	@echo '$(FLAGS_NOW)' | cmp -s - $@ || echo '$(FLAGS_NOW)' > $@
FORCE:

$(BUILD)/obj/lib/%.o: lib/%.c $(BUILD)/flags
	@mkdir -p $(@D)
	$(call say,CC,$<)$(CC) $(LIB_CFLAGS) -MMD -MP -c -o $@ $<
$(BUILD)/obj/formats/%.o: formats/%.c $(BUILD)/flags
	@mkdir -p $(@D)
	$(call say,CC,$<)$(CC) $(LIB_CFLAGS) -MMD -MP -c -o $@ $<
$(BUILD)/obj/cmd/%.o: cmd/%.c $(BUILD)/flags
	@mkdir -p $(@D)
	$(call say,CC,$<)$(CC) $(CMD_CFLAGS) -MMD -MP -c -o $@ $<
$(BUILD)/obj/tests/%.o: tests/%.c $(BUILD)/flags
	@mkdir -p $(@D)
	$(call say,CC,$<)$(CC) $(LIB_CFLAGS) -Itests/unit -MMD -MP -c -o $@ $<

$(BUILD)/lib/$(SONAME): $(LIB_OBJ) lib/libtidemark.map
	@mkdir -p $(@D)
	$(call say,LINK,$@)$(CC) $(ALL_CFLAGS) -shared -Wl,-soname,$(SONAME) -Wl,--version-script=lib/libtidemark.map -o $@ $(LIB_OBJ) \
		$(LDHARDEN) $(LDFLAGS) $(LIB_LIBS)
$(BUILD)/lib/libtidemark.so: $(BUILD)/lib/$(SONAME)
	@ln -sf $(SONAME) $@
$(BUILD)/lib/libtidemark.a: $(LIB_OBJ)
	@mkdir -p $(@D)
	$(call say,AR,$@)rm -f $@ && ar rcs $@ $(LIB_OBJ)
PLACES_NOW := $(PREFIX) $(LIBDIR) $(INCLUDEDIR)
$(BUILD)/places: FORCE
	@mkdir -p $(@D)
	@echo '$(PLACES_NOW)' | cmp -s - $@ || echo '$(PLACES_NOW)' > $@
$(BUILD)/lib/pkgconfig/tidemark.pc: lib/tidemark.pc.in lib/tidemark.h $(BUILD)/places
	@mkdir -p $(@D)
	$(call say,GEN,$@)sed -e 's|@PREFIX@|$(PREFIX)|; s|@LIBDIR@|$(LIBDIR)|; s|@INCLUDEDIR@|$(INCLUDEDIR)|; s|@VERSION@|$(VERSION)|' $< > $@

$(MANPAGES): $(BUILD)/man/%: man/% man/expand.awk $(wildcard man/common/*)
	@mkdir -p $(@D)
	@awk -f man/expand.awk $< > $@ || { rm -f $@; exit 1; }

$(BINS): $(BUILD)/bin/%: $(BUILD)/obj/cmd/%.o $(CMD_SHARED) $(BUILD)/lib/libtidemark.so
	@mkdir -p $(@D)
	$(call say,LINK,$@)$(CC) $(ALL_CFLAGS) -o $@ $< $(CMD_SHARED) -L$(BUILD)/lib -ltidemark -lpopt '-Wl,-rpath,$$ORIGIN/../lib' $(LDHARDEN) $(LDFLAGS)
$(PLUGIN): plugins/nbdkit/plugin.c $(BUILD)/lib/libtidemark.so $(BUILD)/flags
	@mkdir -p $(@D)
	$(call say,LINK,$@)$(CC) $(CMD_CFLAGS) $(shell pkg-config --cflags nbdkit) -MMD -MP -MF $(BUILD)/obj/plugin.d -shared -o $@ $< \
		-L$(BUILD)/lib -ltidemark '-Wl,-rpath,$$ORIGIN/../..' $(LDHARDEN) $(LDFLAGS)
$(BUILD)/unit/lib/%.o: lib/%.c $(BUILD)/flags
	@mkdir -p $(@D)
	$(call say,CC,$< (for unit tests))$(CC) $(LIB_CFLAGS) $(UNIT_FORMATS) -MMD -MP -c -o $@ $<
# First in the link: who needs a file of the library that is in here too gets this one.
$(BUILD)/unit/libmemory.a: $(UNIT_OBJ)
	$(call say,AR,$@)rm -f $@ && ar rcs $@ $(UNIT_OBJ)
$(UNITS): $(BUILD)/unit/%: $(BUILD)/obj/tests/unit/%.o $(BUILD)/unit/libmemory.a $(BUILD)/lib/libtidemark.a
	@mkdir -p $(@D)
	$(call say,LINK,$@)$(CC) $(ALL_CFLAGS) -o $@ $< $(BUILD)/unit/libmemory.a $(BUILD)/lib/libtidemark.a $(LDFLAGS) $(LIB_LIBS)
$(BUILD)/abi/shorter/tidemark.h $(BUILD)/abi/longer/tidemark.h: $(BUILD)/abi/%/tidemark.h: lib/tidemark.h tests/abi/make-header
	@mkdir -p $(@D)
	$(call say,GEN,$@)tests/abi/make-header $* $@
$(BUILD)/abi/%/tidemark.h: tests/abi/%/tidemark.h
	@mkdir -p $(@D)
	@cp $< $@
$(ABI_TESTS): $(BUILD)/unit/test-abi-%: $(BUILD)/abi/%/tidemark.h tests/abi/caller.c tests/unit/unit.h $(BUILD)/lib/libtidemark.so $(BUILD)/flags
	@mkdir -p $(@D)
	$(call say,LINK,$@)$(CC) $(ALL_CFLAGS) -I$(BUILD)/abi/$* -Ilib -Itests/unit -o $@ tests/abi/caller.c -L$(BUILD)/lib -ltidemark \
		'-Wl,-rpath,$$ORIGIN/../lib' $(LDHARDEN) $(LDFLAGS)
$(HELPERS): $(BUILD)/helpers/%: $(BUILD)/obj/tests/helpers/%.o $(BUILD)/lib/libtidemark.a
	@mkdir -p $(@D)
	$(call say,LINK,$@)$(CC) $(ALL_CFLAGS) -o $@ $< $(BUILD)/lib/libtidemark.a $(LDFLAGS) $(LIB_LIBS)

# In front of the commands, never of a sanitizer: without its flags.
$(PRELOADS): $(BUILD)/helpers/%.so: tests/crash/%.c
	@mkdir -p $(@D)
	$(call say,LINK,$@)$(CC) -std=gnu11 $(WARN) -O1 -g -fPIC -shared -D_GNU_SOURCE -o $@ $<

$(BUILD)/fuzz/flags: FORCE
	@mkdir -p $(@D)
	@echo '$(FUZZ_CC) $(FUZZ_CFLAGS)' | cmp -s - $@ || echo '$(FUZZ_CC) $(FUZZ_CFLAGS)' > $@
$(BUILD)/fuzz/obj/%.o: %.c $(BUILD)/fuzz/flags
	@mkdir -p $(@D)
	$(call say,CC,$<)$(FUZZ_CC) $(FUZZ_CFLAGS) -MMD -MP -c -o $@ $<
$(FUZZERS): $(BUILD)/fuzz/%: $(BUILD)/fuzz/obj/tests/fuzz/%.o $(FUZZ_OBJ)
	$(call say,LINK,$@)$(FUZZ_CC) $(FUZZ_CFLAGS) -fsanitize=fuzzer -o $@ $^ $(LIB_LIBS)
.SECONDARY:

deps:
	@sh tests/deps.sh $(DEPS_BUILD) $(DEPS_TEST)
deps-more: deps
	@sh tests/deps.sh $(DEPS_MORE)

# Every fault and every death, at every call: hours, where `check` takes a sample.
sweep: all $(PRELOADS)
	SWEEP=full BUILD=$(abspath $(BUILD)) tests/crash/sweep

# The disks that a power cut leaves, POWER_STATES a scenario; `check` tries a few.
power: export POWER_STATES ?= 1000
power: all $(PRELOADS)
	BUILD=$(abspath $(BUILD)) tests/crash/power

# No executable, so that `check` leaves it out.  SECONDS is bash's own, and not one that it hands on.
soak: all $(PRELOADS)
	SECONDS=$(or $(SECONDS),600) SEED=$(SEED) BUILD=$(abspath $(BUILD)) python3 tests/crash/soak

model: all
	STEPS=$(or $(STEPS),10000) SEED=$(SEED) BUILD=$(abspath $(BUILD)) tests/crash/model

demo: all
	@sh tests/demo.sh $(abspath $(BUILD))/bin

SUITES := lint unit cli interop crash fuzz
# A make that was not told how many jobs to run at once takes one a processor for what `check` needs.
PARALLEL = $(if $(filter -j% --jobserver%,$(MAKEFLAGS)),,-j$(shell nproc))
# The targets have sanitizers of their own: once, in the plain build, is enough.
check:
	@$(MAKE) $(PARALLEL) check-build
	@BUILD=$(abspath $(BUILD)) tests/run $(SUITES)
check-build: all $(UNITS) $(ABI_TESTS) $(HELPERS) $(PRELOADS) $(if $(SAN),,$(FUZZERS))
check-quick: all $(UNITS) $(ABI_TESTS) $(HELPERS)
	@BUILD=$(abspath $(BUILD)) tests/run unit cli
lint: all
	@BUILD=$(abspath $(BUILD)) tests/run lint
format:
	clang-format -i $$(git ls-files '*.c' '*.h')
# A file's stamp says that the compiler and clang-tidy found nothing in it.
ANALYZED := $(LIB_SRC) $(wildcard cmd/*.c) $(if $(PLUGIN),plugins/nbdkit/plugin.c)
ANALYZE_CFLAGS = -std=gnu11 -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64 $(CPPFLAGS) -Ilib -Iformats
$(BUILD)/analyze/%.ok: %.c $(HEADERS) .clang-tidy
	@mkdir -p $(@D)
	$(CC) $(ANALYZE_CFLAGS) $(WARN) -Werror -O1 -fanalyzer -c -o /dev/null $<
	clang-tidy --quiet --warnings-as-errors='*' $< -- $(ANALYZE_CFLAGS) > $(@:.ok=.log) 2>&1 || { cat $(@:.ok=.log); exit 1; }
	@touch $@
# cppcheck does not know the cleanup attribute; the two others look for leaks.
$(BUILD)/analyze/cppcheck.ok: $(ANALYZED) $(HEADERS)
	@mkdir -p $(@D)
	cppcheck --quiet --error-exitcode=1 --inline-suppr --suppress=resourceLeak --enable=warning,performance --std=c11 \
		--library=posix,gnu -D_GNU_SOURCE -D__x86_64__ -D__GNUC__=12 -Ilib -Iformats $(ANALYZED)
	@touch $@
analyze: $(ANALYZED:%.c=$(BUILD)/analyze/%.ok) $(BUILD)/analyze/cppcheck.ok
valgrind: all $(HELPERS)
	@BUILD=$(abspath $(BUILD)) tests/valgrind
ways: all $(HELPERS)
	@BUILD=$(abspath $(BUILD)) tests/ways
asan:
	$(MAKE) BUILD=$(BUILD)/asan SAN=address,undefined CFLAGS='-O1 -g' check
tsan:
	$(MAKE) BUILD=$(BUILD)/tsan SAN=thread CFLAGS='-O1 -g' check-quick
fuzz-build: $(FUZZERS)
fuzz: $(FUZZERS) $(BUILD)/flags
	@BUILD=$(abspath $(BUILD)) FUZZ_SECONDS=$(FUZZ_SECONDS) tests/fuzz/targets
fuzz-smoke: all $(if $(SAN),,$(FUZZERS))
	@BUILD=$(abspath $(BUILD)) tests/run fuzz
$(BUILD)/bench/copier: tests/bench/copier.c $(BUILD)/flags
	@mkdir -p $(@D)
	$(call say,LINK,$@)$(CC) $(ALL_CFLAGS) -o $@ $< -luring
$(BUILD)/bench/minimal: tests/bench/minimal.c $(BUILD)/flags
	@mkdir -p $(@D)
	$(call say,LINK,$@)$(CC) $(ALL_CFLAGS) -o $@ $< -lpopt -ljson-c -lzstd
BENCH := $(BUILD)/bench/minimal $(if $(shell pkg-config --exists liburing 2>/dev/null && echo yes),$(BUILD)/bench/copier)
bench bench-quick: $(BENCH)
bench: all
	@BUILD=$(abspath $(BUILD)) BENCH_ONLY=$(BENCH_ONLY) tests/bench/run
bench-quick: all
	@BUILD=$(abspath $(BUILD)) BENCH_ONLY=$(BENCH_ONLY) tests/bench/run --quick
cov:
	$(MAKE) BUILD=$(BUILD)/cov CFLAGS='-O0 -g --coverage' LDFLAGS=--coverage check-quick
	cd $(BUILD)/cov/obj && gcov -n -r $$(find lib formats -name '*.gcda') | sed -n '/^File/{N;p;}'

install: all
	install -d $(DESTDIR)$(BINDIR) $(DESTDIR)$(LIBDIR)/pkgconfig $(DESTDIR)$(INCLUDEDIR) $(DESTDIR)$(DOCDIR)
	install -m 755 $(BINS) $(DESTDIR)$(BINDIR)
	install -m 755 $(BUILD)/lib/$(SONAME) $(DESTDIR)$(LIBDIR)/libtidemark.so.$(VERSION)
	ln -sf libtidemark.so.$(VERSION) $(DESTDIR)$(LIBDIR)/$(SONAME)
	ln -sf $(SONAME) $(DESTDIR)$(LIBDIR)/libtidemark.so
	install -m 644 $(BUILD)/lib/libtidemark.a $(DESTDIR)$(LIBDIR)
	install -m 644 $(BUILD)/lib/pkgconfig/tidemark.pc $(DESTDIR)$(LIBDIR)/pkgconfig
	install -m 644 lib/tidemark.h $(DESTDIR)$(INCLUDEDIR)
	$(if $(PLUGIN),install -D -m 755 $(PLUGIN) $(DESTDIR)$(NBDKITDIR)/nbdkit-tidemark-plugin.so)
	for m in $(MANPAGES); do \
		install -D -m 644 $$m $(DESTDIR)$(MANDIR)/man$${m##*.}/$${m##*/} || exit 1; done
	install -D -m 644 completions/tidemark.bash $(DESTDIR)$(BASHCOMPDIR)/tidemark
	for c in $(COMMANDS); do ln -sf tidemark $(DESTDIR)$(BASHCOMPDIR)/$$c || exit 1; done
	install -D -m 644 completions/tidemark.zsh $(DESTDIR)$(ZSHCOMPDIR)/_tidemark
	for c in $(COMMANDS); do \
		install -D -m 644 completions/tidemark.fish $(DESTDIR)$(FISHCOMPDIR)/$$c.fish || exit 1; done
	install -m 644 README.md NEWS.md LICENSE $(DESTDIR)$(DOCDIR)

uninstall:
	rm -f $(COMMANDS:%=$(DESTDIR)$(BINDIR)/%) $(COMMANDS:%=$(DESTDIR)$(BASHCOMPDIR)/%) \
		$(COMMANDS:%=$(DESTDIR)$(FISHCOMPDIR)/%.fish) $(DESTDIR)$(BASHCOMPDIR)/tidemark \
		$(DESTDIR)$(ZSHCOMPDIR)/_tidemark $(DESTDIR)$(LIBDIR)/libtidemark.* \
		$(DESTDIR)$(LIBDIR)/pkgconfig/tidemark.pc $(DESTDIR)$(INCLUDEDIR)/tidemark.h \
		$(DESTDIR)$(NBDKITDIR)/nbdkit-tidemark-plugin.so
	for m in $(MANPAGES); do rm -f $(DESTDIR)$(MANDIR)/man$${m##*.}/$${m##*/}; done
	rm -rf $(DESTDIR)$(DOCDIR)

dist:
	git archive --prefix=tidemark-$(VERSION)/ -o tidemark-$(VERSION).tar.gz HEAD

clean:
	rm -rf $(BUILD)

-include $(BUILD)/obj/plugin.d $(LIB_OBJ:.o=.d) $(CMD_SHARED:.o=.d) $(CMD_SRC:%.c=$(BUILD)/obj/%.d) $(UNIT_SRC:%.c=$(BUILD)/obj/%.d) $(UNIT_OBJ:.o=.d) \
	$(HELPER_SRC:%.c=$(BUILD)/obj/%.d) $(FUZZ_OBJ:.o=.d) $(FUZZ_SRC:%.c=$(BUILD)/fuzz/obj/%.d)
