/*
 * A preload library: it counts the calls of a command that access files of one directory, each kind separately, and
 * makes one of them fail, do less than requested, or kill the process.
 *
 * FAULT_DIR     the directory; relative names count as in it
 * FAULT_COUNTS  a file: at exit, "CALL COUNT" lines
 * FAULT         CALL:N:WHAT, where WHAT is an error's number, short, before or after (SIGKILL); a + after it
 * means the Nth and every later call
 *
 * The kind "alloc" is every allocation by libtidemark; "any" numbers the calls of all other kinds together.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#define CALLS(X)           \
	X(open)            \
	X(pread)           \
	X(pwrite)          \
	X(read)            \
	X(write)           \
	X(fsync)           \
	X(fdatasync)       \
	X(rename)          \
	X(link)            \
	X(unlink)          \
	X(ftruncate)       \
	X(fallocate)       \
	X(copy_file_range) \
	X(mmap)            \
	X(msync)           \
	X(sync_file_range) \
	X(ioctl)           \
	X(fcntl)           \
	X(close)           \
	X(alloc)
#define ENUM(name) CALL_##name,
#define NAME(name) #name,
enum call { CALLS(ENUM) N_CALLS, ANY = N_CALLS };
static const char *const names[] = { CALLS(NAME) };

enum { NOTHING = 0, SHORT = -1, BEFORE = -2, AFTER = -3 };

static atomic_uint counts[N_CALLS], count_any;
static atomic_bool watched[4096];
static const char *dir;
static int fault_call = -1, fault_what;
static unsigned fault_n;
static bool fault_for_good;
static uintptr_t lib_start, lib_end;

static int find_lib(struct dl_phdr_info *info, size_t size, void *data)
{
	if (!strstr(info->dlpi_name, "libtidemark.so"))
		return 0;
	lib_start = info->dlpi_addr;
	for (int i = 0; i < info->dlpi_phnum; i++)
		if (info->dlpi_phdr[i].p_type == PT_LOAD)
			lib_end = info->dlpi_addr + info->dlpi_phdr[i].p_vaddr + info->dlpi_phdr[i].p_memsz;
	return 1;
}

static int what_of(const char *word)
{
	if (!strncmp(word, "short", 5))
		return SHORT;
	if (!strncmp(word, "before", 6))
		return BEFORE;
	return !strncmp(word, "after", 5) ? AFTER : (int)strtol(word, NULL, 10);
}

__attribute__((constructor)) static void begin(void)
{
	const char *fault = getenv("FAULT"), *n = fault ? strchr(fault, ':') : NULL,
	           *what = n ? strchr(n + 1, ':') : NULL;

	dl_iterate_phdr(find_lib, NULL);
	if (what) {
		if (!strncmp(fault, "any:", 4))
			fault_call = ANY;
		for (int i = 0; i < N_CALLS; i++)
			if (strlen(names[i]) == (size_t)(n - fault) && !strncmp(names[i], fault, (size_t)(n - fault)))
				fault_call = i;
		fault_n = (unsigned)strtoul(n + 1, NULL, 10);
		fault_what = what_of(what + 1);
		fault_for_good = strchr(what, '+');
	}
	dir = getenv("FAULT_DIR");
}

__attribute__((destructor)) static void end(void)
{
	const char *path = getenv("FAULT_COUNTS");
	FILE *f = path ? fopen(path, "we") : NULL;

	dir = NULL;
	for (int i = 0; f && i < N_CALLS; i++)
		fprintf(f, "%s %u\n", names[i], atomic_load(&counts[i]));
	if (f)
		fclose(f);
}

static int come_to(enum call call)
{
	unsigned n = atomic_fetch_add(&counts[call], 1) + 1;
	unsigned any = call == CALL_alloc ? 0 : atomic_fetch_add(&count_any, 1) + 1;
	unsigned at = fault_call == ANY ? any : fault_call == (int)call ? n : 0;
	bool hit = at && (at == fault_n || (fault_for_good && at > fault_n));

	if (hit && fault_what == BEFORE)
		kill(getpid(), SIGKILL);
	return hit ? fault_what : NOTHING;
}

static bool in_dir(const char *path)
{
	return dir && (path[0] != '/' || !strncmp(path, dir, strlen(dir)));
}

static bool is_ours(int fd)
{
	return dir && fd >= 0 && fd < 4096 && atomic_load(&watched[fd]);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
/* The call, unless it is the one: then it fails, or the process dies behind it. */
#define FAIL_OR(call, ours, name, ...)                               \
	__extension__({                                              \
		int what_ = (ours) ? come_to(CALL_##call) : NOTHING; \
		__typeof__(name(__VA_ARGS__)) ret_ = -1;             \
		if (what_ > 0)                                       \
			errno = what_;                               \
		else                                                 \
			ret_ = REAL(name)(__VA_ARGS__);              \
		if (what_ == AFTER)                                  \
			kill(getpid(), SIGKILL);                     \
		ret_;                                                \
	})
#define MOVED(call, fd, name, n, ...)                                                                      \
	__extension__({                                                                                    \
		int moved_ = is_ours(fd) ? come_to(CALL_##call) : NOTHING;                                 \
		ssize_t got_ = -1;                                                                         \
		if (moved_ > 0)                                                                            \
			errno = moved_;                                                                    \
		else                                                                                       \
			got_ = REAL(name)(fd, buf, moved_ == SHORT && (n) > 1 ? (n) / 2 : (n)__VA_ARGS__); \
		if (moved_ == AFTER)                                                                       \
			kill(getpid(), SIGKILL);                                                           \
		got_;                                                                                      \
	})

static int opened(int fd, const char *path)
{
	if (!lib_end && in_dir(path)) /* a plugin brings it later */
		dl_iterate_phdr(find_lib, NULL);
	if (fd >= 0 && fd < 4096)
		atomic_store(&watched[fd], in_dir(path));
	return fd;
}

int open64(const char *path, int flags, ...)
{
	va_list ap;

	va_start(ap, flags);
	mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(ap, mode_t) : 0;
	va_end(ap);
	return opened(FAIL_OR(open, in_dir(path), open64, path, flags, mode), path);
}

/* What a fortified build calls when the flags are no constant. */
extern int __open64_2(const char *path, int flags);

int __open64_2(const char *path, int flags)
{
	return opened(FAIL_OR(open, in_dir(path), __open64_2, path, flags), path);
}

int openat64(int at, const char *path, int flags, ...)
{
	va_list ap;

	va_start(ap, flags);
	mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(ap, mode_t) : 0;
	va_end(ap);
	return opened(FAIL_OR(open, in_dir(path), openat64, at, path, flags, mode), path);
}

ssize_t pread64(int fd, void *buf, size_t n, off64_t off)
{
	return MOVED(pread, fd, pread64, n, , off);
}

ssize_t pwrite64(int fd, const void *buf, size_t n, off64_t off)
{
	return MOVED(pwrite, fd, pwrite64, n, , off);
}

ssize_t read(int fd, void *buf, size_t n)
{
	return MOVED(read, fd, read, n, );
}

ssize_t write(int fd, const void *buf, size_t n)
{
	return MOVED(write, fd, write, n, );
}

int fsync(int fd)
{
	return FAIL_OR(fsync, is_ours(fd), fsync, fd);
}

int fdatasync(int fd)
{
	return FAIL_OR(fdatasync, is_ours(fd), fdatasync, fd);
}

int rename(const char *from, const char *to)
{
	return FAIL_OR(rename, in_dir(to), rename, from, to);
}

int renameat2(int fd, const char *from, int fd2, const char *to, unsigned flags)
{
	return FAIL_OR(rename, in_dir(to), renameat2, fd, from, fd2, to, flags);
}

int link(const char *from, const char *to)
{
	return FAIL_OR(link, in_dir(to), link, from, to);
}

int linkat(int fd, const char *from, int fd2, const char *to, int flags)
{
	return FAIL_OR(link, in_dir(to), linkat, fd, from, fd2, to, flags);
}

int unlink(const char *path)
{
	return FAIL_OR(unlink, in_dir(path), unlink, path);
}

int unlinkat(int at, const char *path, int flags)
{
	return FAIL_OR(unlink, in_dir(path), unlinkat, at, path, flags);
}

ssize_t preadv64v2(int fd, const struct iovec *v, int n, off64_t off, int flags)
{
	return FAIL_OR(pread, is_ours(fd), preadv64v2, fd, v, n, off, flags);
}

ssize_t copy_file_range(int from, off64_t *in, int to, off64_t *out, size_t n, unsigned flags)
{
	int what = is_ours(from) || is_ours(to) ? come_to(CALL_copy_file_range) : NOTHING;
	ssize_t got = -1;

	if (what > 0)
		errno = what;
	else
		got = REAL(copy_file_range)(from, in, to, out, what == SHORT && n > 1 ? n / 2 : n, flags);
	if (what == AFTER)
		kill(getpid(), SIGKILL);
	return got;
}

/* The write log is mapped; what is written there is not seen. */
void *mmap64(void *p, size_t len, int prot, int flags, int fd, off64_t off)
{
	int what = is_ours(fd) ? come_to(CALL_mmap) : NOTHING;
	void *got = MAP_FAILED;

	if (what > 0)
		errno = what;
	else
		got = REAL(mmap64)(p, len, prot, flags, fd, off);
	if (what == AFTER)
		kill(getpid(), SIGKILL);
	return got;
}

int msync(void *p, size_t len, int flags)
{
	return FAIL_OR(msync, dir != NULL, msync, p, len, flags);
}

int sync_file_range(int fd, off64_t off, off64_t len, unsigned flags)
{
	return FAIL_OR(sync_file_range, is_ours(fd), sync_file_range, fd, off, len, flags);
}

int ftruncate64(int fd, off64_t len)
{
	return FAIL_OR(ftruncate, is_ours(fd), ftruncate64, fd, len);
}

int fallocate64(int fd, int mode, off64_t off, off64_t len)
{
	return FAIL_OR(fallocate, is_ours(fd), fallocate64, fd, mode, off, len);
}

int ioctl(int fd, unsigned long request, ...)
{
	va_list ap;

	va_start(ap, request);
	void *arg = va_arg(ap, void *);
	va_end(ap);
	return FAIL_OR(ioctl, is_ours(fd), ioctl, fd, request, arg);
}

int fcntl64(int fd, int command, ...)
{
	va_list ap;

	va_start(ap, command);
	void *arg = va_arg(ap, void *);
	va_end(ap);
	return FAIL_OR(fcntl, is_ours(fd), fcntl64, fd, command, arg);
}

/* As Linux does it: the descriptor is gone all the same. */
int close(int fd)
{
	int what = is_ours(fd) ? come_to(CALL_close) : NOTHING;

	if (fd >= 0 && fd < 4096)
		atomic_store(&watched[fd], false);
	int ret = REAL(close)(fd);
	if (what == AFTER)
		kill(getpid(), SIGKILL);
	if (what > 0)
		errno = what;
	return what > 0 ? -1 : ret;
}

/* dlsym allocates: the allocator is reached by its own names. */
extern void *__libc_calloc(size_t n, size_t size);
extern void *__libc_realloc(void *p, size_t size);
extern void *__libc_memalign(size_t align, size_t size);

static bool refused(void *caller)
{
	bool ours = dir && (uintptr_t)caller >= lib_start && (uintptr_t)caller < lib_end;

	return ours && come_to(CALL_alloc) > 0;
}

void *calloc(size_t n, size_t size)
{
	if (!refused(__builtin_return_address(0)))
		return __libc_calloc(n, size);
	errno = ENOMEM;
	return NULL;
}

void *reallocarray(void *p, size_t n, size_t size)
{
	size_t bytes;

	if (!refused(__builtin_return_address(0)) && !__builtin_mul_overflow(n, size, &bytes))
		return __libc_realloc(p, bytes);
	errno = ENOMEM;
	return NULL;
}

int posix_memalign(void **p, size_t align, size_t size)
{
	void *got = refused(__builtin_return_address(0)) ? NULL : __libc_memalign(align, size);

	if (!got)
		return ENOMEM;
	*p = got;
	return 0;
}
