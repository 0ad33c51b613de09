/* A disk that fails: preloaded into a process, it makes chosen calls on chosen files fail or come back short.

   cc -shared -fPIC -O1 -o disk_faults.so disk_faults.c -ldl

   `fault_arm(pattern, kind, nth, fault)`: the call number `nth`, from 1, of this kind, on files whose path matches the
   shell pattern, fails with the error number `fault`, or comes back short (SHORT), or as if the file ended (END); of
   number 0 none. `fault_calls()` tells how many calls matched so far, by this process and those forked from it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fnmatch.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { READ, WRITE, SYNC, TRUNCATE, RENAME, UNLINK };
enum { SHORT = -1, END = -2, NONE = 0 };

static struct {
    char pattern[PATH_MAX];
    int kind, fault;
    long nth;
    atomic_long calls;
} *armed;

__attribute__((constructor)) static void begin(void)
{
    void *page = mmap(NULL, sizeof *armed, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED)
        _exit(99);
    armed = page;
}

void fault_arm(const char *pattern, int kind, long nth, int fault)
{
    snprintf(armed->pattern, sizeof armed->pattern, "%s", pattern);
    armed->kind = kind;
    armed->nth = nth;
    armed->fault = fault;
    armed->calls = 0;
}

long fault_calls(void)
{
    return armed->calls;
}

/* What this call is to meet with, NONE for most. */
static int meets(int kind, const char *path)
{
    if (!armed || !armed->pattern[0] || kind != armed->kind || fnmatch(armed->pattern, path, 0))
        return NONE;
    return atomic_fetch_add(&armed->calls, 1) + 1 == armed->nth ? armed->fault : NONE;
}

static int meets_at(int kind, int descriptor)
{
    char link[64], path[PATH_MAX];
    int saved = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = armed && kind == armed->kind ? readlink(link, path, sizeof path - 1) : -1;
    errno = saved;
    if (length < 0)
        return NONE;
    path[length] = 0;
    return meets(kind, path);
}

/* Of a name, which may be relative to the folder that the process is in. */
static int meets_name(int kind, const char *name)
{
    char folder[PATH_MAX], path[2 * PATH_MAX];
    if (!armed || kind != armed->kind || name[0] == '/' || !getcwd(folder, sizeof folder))
        return meets(kind, name);
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return meets(kind, path);
}

static size_t part(size_t count)
{
    return count > 1 ? count / 2 : count;
}

#define REAL(name) __typeof__(&name) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define FAIL_WITH(fault) \
    do { \
        errno = (fault); \
        return -1; \
    } while (0)

/* A call that moves `count` bytes: real(first, buffer, count, rest...) */
#define MOVES(kind, name, parameters, descriptor, count, ...) \
    ssize_t name parameters \
    { \
        REAL(name); \
        int fault = meets_at(kind, descriptor); \
        if (fault > 0) \
            FAIL_WITH(fault); \
        if (fault == END) \
            return 0; \
        if (fault == SHORT) \
            count = part(count); \
        return real(__VA_ARGS__); \
    }

/* The same for vectors: short are the first of several parts, or half of one. */
#define MOVES_PARTS(kind, name, parameters, ...) \
    ssize_t name parameters \
    { \
        REAL(name); \
        int fault = meets_at(kind, d); \
        struct iovec half; \
        if (fault > 0) \
            FAIL_WITH(fault); \
        if (fault == END) \
            return 0; \
        if (fault == SHORT && n > 0) { \
            half = v[0]; \
            half.iov_len = n > 1 ? half.iov_len : part(half.iov_len); \
            v = &half; \
            n = 1; \
        } \
        return real(__VA_ARGS__); \
    }

/* A call that has nothing to give but success. */
#define ACTS(kind, name, parameters, descriptor, ...) \
    int name parameters \
    { \
        REAL(name); \
        int fault = meets_at(kind, descriptor); \
        if (fault > 0) \
            FAIL_WITH(fault); \
        return real(__VA_ARGS__); \
    }

#define ACTS_ON_NAME(kind, name, parameters, path, ...) \
    int name parameters \
    { \
        REAL(name); \
        int fault = meets_name(kind, path); \
        if (fault > 0) \
            FAIL_WITH(fault); \
        return real(__VA_ARGS__); \
    }

MOVES(READ, read, (int d, void *to, size_t count), d, count, d, to, count)
MOVES(READ, pread, (int d, void *to, size_t count, off_t at), d, count, d, to, count, at)
MOVES(READ, pread64, (int d, void *to, size_t count, off64_t at), d, count, d, to, count, at)
MOVES(WRITE, write, (int d, const void *from, size_t count), d, count, d, from, count)
MOVES(WRITE, pwrite, (int d, const void *from, size_t count, off_t at), d, count, d, from, count, at)
MOVES(WRITE, pwrite64, (int d, const void *from, size_t count, off64_t at), d, count, d, from, count, at)
MOVES_PARTS(READ, readv, (int d, const struct iovec *v, int n), d, v, n)
MOVES_PARTS(READ, preadv, (int d, const struct iovec *v, int n, off_t at), d, v, n, at)
MOVES_PARTS(READ, preadv64, (int d, const struct iovec *v, int n, off64_t at), d, v, n, at)
MOVES_PARTS(READ, preadv2, (int d, const struct iovec *v, int n, off_t at, int flags), d, v, n, at, flags)
MOVES_PARTS(READ, preadv64v2, (int d, const struct iovec *v, int n, off64_t at, int flags), d, v, n, at, flags)
MOVES_PARTS(WRITE, writev, (int d, const struct iovec *v, int n), d, v, n)
MOVES_PARTS(WRITE, pwritev, (int d, const struct iovec *v, int n, off_t at), d, v, n, at)
MOVES_PARTS(WRITE, pwritev64, (int d, const struct iovec *v, int n, off64_t at), d, v, n, at)
ACTS(SYNC, fsync, (int d), d, d)
ACTS(SYNC, fdatasync, (int d), d, d)
ACTS(TRUNCATE, ftruncate, (int d, off_t size), d, d, size)
ACTS(TRUNCATE, ftruncate64, (int d, off64_t size), d, d, size)
ACTS_ON_NAME(RENAME, rename, (const char *from, const char *to), to, from, to)
ACTS_ON_NAME(RENAME, renameat, (int a, const char *from, int b, const char *to), to, a, from, b, to)
ACTS_ON_NAME(UNLINK, unlink, (const char *path), path, path)
ACTS_ON_NAME(UNLINK, unlinkat, (int d, const char *path, int flags), path, d, path, flags)
