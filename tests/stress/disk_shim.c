/* Preloaded into a process: notes its calls on files below one folder, and has the n-th of them fail.
 *
 * Python, pyarrow and libstdc++ all come through the C library's open, write, fsync..., so one place sees them all.
 * The real calls are made as system calls.  Only the process that called disk_watch is watched, not its children. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OPEN = 'o', WRITE = 'w', FSYNC = 'f', RENAME = 'r', UNLINK = 'u', MKDIR = 'm', LINK = 'l', TRUNCATE = 't',
       CLOSE = 'c', RMDIR = 'd' };
enum { ONCE, FROM_THEN_ON, HALF };

#define FDS 4096
static char root[PATH_MAX];
static size_t root_length;
static pid_t watched;
static int log_fd = -1;
static long count, fail_at;
static int fail_errno, fail_how;
static char *paths[FDS];   /* of descriptors that are open below the root */
static char writes[FDS];   /* whether they were opened for writing, and have a name: their closing may fail */
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

struct header { uint8_t op; uint8_t pad[3]; int32_t fd; int64_t number; uint32_t path, second, data; };

/* The interface, by ctypes or by the environment. */

void disk_watch(const char *folder, int log) {
    pthread_mutex_lock(&mutex);
    strncpy(root, folder, sizeof root - 1);
    root_length = strlen(root);
    log_fd = log;
    count = fail_at = 0;
    watched = getpid();
    pthread_mutex_unlock(&mutex);
}

void disk_fail(long call, int error, int how) { fail_at = call; fail_errno = error; fail_how = how; }

long disk_rest(void) { watched = 0; return count; }

__attribute__((constructor)) static void from_environment(void) {
    const char *folder = getenv("DISK_FOLDER"), *process = getenv("DISK_PROCESS");
    if (!folder || !process) return;
    static char line[8192];
    int fd = syscall(SYS_openat, AT_FDCWD, "/proc/self/cmdline", O_RDONLY);
    ssize_t length = syscall(SYS_read, fd, line, sizeof line - 1);
    syscall(SYS_close, fd);
    for (ssize_t i = 0; i < length; i++) if (!line[i]) line[i] = ' ';
    if (length <= 0 || !strstr(line, process)) return;
    disk_watch(folder, -1);
    disk_fail(atol(getenv("DISK_CALL")), atoi(getenv("DISK_ERRNO")), atoi(getenv("DISK_HOW")));
}

/* What calls have in common. */

static int is_below(const char *path) {
    return watched && path && watched == getpid() && !strncmp(path, root, root_length)
        && (path[root_length] == '/' || !path[root_length]);
}

static int is_known(int fd) { return fd >= 0 && fd < FDS && paths[fd] && watched && watched == getpid(); }

static const char *resolved(int at, const char *path, char *space) {
    if (!path || path[0] == '/' || !is_known(at)) return path;
    snprintf(space, PATH_MAX, "%s/%s", paths[at], path);
    return space;
}

/* Counts the call; 0 if it is to be made, 1 if it is to fail (errno is set), 2 if half of it is to be done. */
static int count_call(int op) {
    count++;
    int is_it = fail_at && (count == fail_at || (fail_how == FROM_THEN_ON && count > fail_at));
    if (!is_it) return 0;
    if (fail_how == FROM_THEN_ON && (op == UNLINK || op == CLOSE || op == RMDIR)) return 0; /* a full disk lets go */
    if (fail_how == HALF && op == WRITE) return 2;
    errno = fail_errno;
    return 1;
}

static void note(int op, int fd, long number, const char *path, const char *second, const void *data, size_t size) {
    if (log_fd < 0) return;
    int kept = errno;
    path = path ? path : "", second = second ? second : "";
    struct header header = { op, {0}, fd, number, strlen(path), strlen(second), size };
    struct iovec parts[] = {{&header, sizeof header}, {(void *)path, header.path}, {(void *)second, header.second},
                            {(void *)data, size}};
    syscall(SYS_writev, log_fd, parts, 4);
    errno = kept;
}

/* The calls. */

static int do_open(int at, const char *given, int flags, mode_t mode) {
    char space[PATH_MAX];
    const char *path = resolved(at, given, space);
    if (!is_below(path)) return syscall(SYS_openat, at, given, flags, mode);
    pthread_mutex_lock(&mutex);
    int fd = -1;
    if (!count_call(OPEN)) {
        fd = syscall(SYS_openat, at, given, flags, mode);
        if (fd >= 0 && fd < FDS) {
            free(paths[fd]);
            paths[fd] = strdup(path);
            writes[fd] = (flags & O_ACCMODE) != O_RDONLY && (flags & O_TMPFILE) != O_TMPFILE;
        }
        note(OPEN, fd, flags, path, NULL, NULL, 0);
    } else note(OPEN, -2, flags, path, NULL, NULL, 0);
    pthread_mutex_unlock(&mutex);
    return fd;
}

static mode_t mode_of(int flags, va_list more) { return flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0; }
#define OPENS(name) int name(const char *path, int flags, ...) { \
    va_list more; va_start(more, flags); mode_t mode = mode_of(flags, more); va_end(more); \
    return do_open(AT_FDCWD, path, flags, mode); }
#define OPENS_AT(name) int name(int at, const char *path, int flags, ...) { \
    va_list more; va_start(more, flags); mode_t mode = mode_of(flags, more); va_end(more); \
    return do_open(at, path, flags, mode); }
OPENS(open) OPENS(open64) OPENS(__open_2) OPENS(__open64_2) OPENS_AT(openat) OPENS_AT(openat64)
int creat(const char *path, mode_t mode) { return do_open(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }

static ssize_t do_write(int fd, const void *data, size_t size, off_t at, int is_at) {
#define REAL(bytes) (is_at ? syscall(SYS_pwrite64, fd, data, bytes, at) : syscall(SYS_write, fd, data, bytes))
    if (!is_known(fd)) return REAL(size);
    pthread_mutex_lock(&mutex);
    struct stat about;
    int flags = fcntl(fd, F_GETFL);
    fstat(fd, &about);
    off_t place = is_at ? at : flags & O_APPEND ? about.st_size : lseek(fd, 0, SEEK_CUR);
    ssize_t written = -1;
    int verdict = count_call(WRITE);
    if (verdict != 1) {
        written = REAL(verdict == 2 && size > 1 ? size / 2 : size);
        if (verdict == 2) fail_at = count + 1, fail_how = ONCE; /* the rest of it fails */
    }
    note(WRITE, fd, place, NULL, NULL, data, written < 0 ? 0 : written);
    pthread_mutex_unlock(&mutex);
    return written;
}
ssize_t write(int fd, const void *data, size_t size) { return do_write(fd, data, size, 0, 0); }
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) { return do_write(fd, data, size, at, 1); }
ssize_t pwrite64(int fd, const void *data, size_t size, off_t at) { return do_write(fd, data, size, at, 1); }

#define ON_FD(op, number, call) \
    if (!is_known(fd)) return call; \
    pthread_mutex_lock(&mutex); \
    int result = count_call(op) ? -1 : call; \
    note(op, result ? -2 : fd, number, paths[fd], NULL, NULL, 0); \
    pthread_mutex_unlock(&mutex); \
    return result;
int fsync(int fd) { ON_FD(FSYNC, 0, syscall(SYS_fsync, fd)) }
int fdatasync(int fd) { ON_FD(FSYNC, 0, syscall(SYS_fdatasync, fd)) }
int ftruncate(int fd, off_t size) { ON_FD(TRUNCATE, size, syscall(SYS_ftruncate, fd, size)) }
int ftruncate64(int fd, off_t size) { ON_FD(TRUNCATE, size, syscall(SYS_ftruncate, fd, size)) }

int close(int fd) {
    if (!is_known(fd)) return syscall(SYS_close, fd);
    pthread_mutex_lock(&mutex);
    int fails = writes[fd] && count_call(CLOSE), error = errno;
    note(CLOSE, fd, writes[fd], paths[fd], NULL, NULL, 0);
    free(paths[fd]);
    paths[fd] = NULL;
    int result = syscall(SYS_close, fd);
    if (fails) errno = error, result = -1;
    pthread_mutex_unlock(&mutex);
    return result;
}

#define ON_PATHS(op, a, b, call) \
    char space[PATH_MAX], more[PATH_MAX]; \
    const char *one = resolved a, *two = resolved b; \
    if (!is_below(one) && !is_below(two)) return call; \
    pthread_mutex_lock(&mutex); \
    int result = count_call(op) ? -1 : call; \
    note(op, result ? -2 : 0, 0, one, two, NULL, 0); \
    pthread_mutex_unlock(&mutex); \
    return result;
#define NONE (-1, NULL, more)
int renameat2(int at, const char *from, int to_at, const char *to, unsigned flags) {
    ON_PATHS(RENAME, (at, from, space), (to_at, to, more), syscall(SYS_renameat2, at, from, to_at, to, flags)) }
int renameat(int at, const char *from, int to_at, const char *to) { return renameat2(at, from, to_at, to, 0); }
int rename(const char *from, const char *to) { return renameat2(AT_FDCWD, from, AT_FDCWD, to, 0); }
int linkat(int at, const char *from, int to_at, const char *to, int flags) {
    ON_PATHS(LINK, (at, from, space), (to_at, to, more), syscall(SYS_linkat, at, from, to_at, to, flags)) }
int link(const char *from, const char *to) { return linkat(AT_FDCWD, from, AT_FDCWD, to, 0); }
static int do_remove(int at, const char *path, int flags) {
    ON_PATHS(flags & AT_REMOVEDIR ? RMDIR : UNLINK, (at, path, space), NONE, syscall(SYS_unlinkat, at, path, flags)) }
int unlinkat(int at, const char *path, int flags) { return do_remove(at, path, flags); }
int unlink(const char *path) { return do_remove(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return do_remove(AT_FDCWD, path, AT_REMOVEDIR); }
int mkdirat(int at, const char *path, mode_t mode) {
    ON_PATHS(MKDIR, (at, path, space), NONE, syscall(SYS_mkdirat, at, path, mode)) }
int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }
