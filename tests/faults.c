/* Lets the n-th call of a kind fail that concerns a folder: preloaded, so that it reaches C, C++ and Rust alike. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { NONE, OPEN, WRITE, FSYNC, RENAME };

static char folder[PATH_MAX];
static atomic_int kind = NONE, lasting, fired;
static atomic_long left;

void faults_arm(const char *below, int what, long n, int stays) {
    kind = NONE;
    strncpy(folder, below, sizeof folder - 1);
    left = n;
    lasting = stays;
    fired = 0;
    kind = what;
}

int faults_disarm(void) {
    kind = NONE;
    return fired;
}

static int fails(int what, const char *path, int number) {
    if (kind != what || strncmp(path, folder, strlen(folder))) return 0;
    long now = atomic_fetch_sub(&left, 1);
    if (now > 1 || (now < 1 && !lasting)) return 0;
    fired = 1;
    errno = number;
    return 1;
}

static int descriptor_fails(int what, int file, int number) {
    if (kind != what) return 0;
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return fails(what, path, number);
}

#define REAL(name) ((typeof(&name))dlsym(RTLD_NEXT, #name))

#define OPENS(name, arguments, passed)                                \
    int name arguments {                                              \
        mode_t mode = 0;                                              \
        if (flags & (O_CREAT | O_TMPFILE)) {                          \
            va_list rest;                                             \
            va_start(rest, flags);                                    \
            mode = va_arg(rest, mode_t);                              \
            va_end(rest);                                             \
        }                                                             \
        return fails(OPEN, path, EMFILE) ? -1 : REAL(name) passed;    \
    }
OPENS(open, (const char *path, int flags, ...), (path, flags, mode))
OPENS(open64, (const char *path, int flags, ...), (path, flags, mode))
OPENS(openat, (int at, const char *path, int flags, ...), (at, path, flags, mode))
OPENS(openat64, (int at, const char *path, int flags, ...), (at, path, flags, mode))

FILE *fopen(const char *path, const char *mode) { return fails(OPEN, path, EMFILE) ? NULL : REAL(fopen)(path, mode); }
FILE *fopen64(const char *path, const char *mode) {
    return fails(OPEN, path, EMFILE) ? NULL : REAL(fopen64)(path, mode);
}
int mkdir(const char *path, mode_t mode) { return fails(OPEN, path, EMFILE) ? -1 : REAL(mkdir)(path, mode); }

#define WRITES(type, name, arguments, passed) \
    type name arguments { return descriptor_fails(WRITE, file, ENOSPC) ? -1 : REAL(name) passed; }
WRITES(ssize_t, write, (int file, const void *data, size_t size), (file, data, size))
WRITES(ssize_t, pwrite, (int file, const void *data, size_t size, off_t at), (file, data, size, at))
WRITES(ssize_t, pwrite64, (int file, const void *data, size_t size, off64_t at), (file, data, size, at))
WRITES(ssize_t, writev, (int file, const struct iovec *parts, int count), (file, parts, count))
WRITES(ssize_t, pwritev, (int file, const struct iovec *parts, int count, off_t at), (file, parts, count, at))
WRITES(ssize_t, pwritev64, (int file, const struct iovec *parts, int count, off64_t at), (file, parts, count, at))
WRITES(int, ftruncate, (int file, off_t size), (file, size))
WRITES(int, ftruncate64, (int file, off64_t size), (file, size))
int posix_fallocate(int file, off_t at, off_t size) {
    return descriptor_fails(WRITE, file, ENOSPC) ? ENOSPC : REAL(posix_fallocate)(file, at, size);
}
int posix_fallocate64(int file, off64_t at, off64_t size) {
    return descriptor_fails(WRITE, file, ENOSPC) ? ENOSPC : REAL(posix_fallocate64)(file, at, size);
}

int fsync(int file) { return descriptor_fails(FSYNC, file, EIO) ? -1 : REAL(fsync)(file); }
int fdatasync(int file) { return descriptor_fails(FSYNC, file, EIO) ? -1 : REAL(fdatasync)(file); }

#define RENAMES(name, arguments, passed) \
    int name arguments { return fails(RENAME, to, EIO) ? -1 : REAL(name) passed; }
RENAMES(rename, (const char *from, const char *to), (from, to))
RENAMES(renameat, (int at, const char *from, int there, const char *to), (at, from, there, to))
RENAMES(renameat2, (int at, const char *from, int there, const char *to, unsigned flags), (at, from, there, to, flags))
RENAMES(link, (const char *from, const char *to), (from, to))
RENAMES(linkat, (int at, const char *from, int there, const char *to, int flags), (at, from, there, to, flags))
RENAMES(symlink, (const char *from, const char *to), (from, to))
RENAMES(symlinkat, (const char *from, int there, const char *to), (from, there, to))
