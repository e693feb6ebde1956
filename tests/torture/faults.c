// Fail, or kill this process, at the n-th call that changes a file below one folder. Loaded by LD_PRELOAD.
//
// It sees what Python, torch and libstdc++ call. It does not see raw system calls, mapped memory, or what glibc's
// own stdio writes.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum fault { NONE, FULL, BROKEN, KILL_BEFORE, KILL_AFTER, TORN };
enum verdict { GO, FAIL, HALF, GO_AND_DIE, HALF_AND_DIE };

static char folder[PATH_MAX], backups[PATH_MAX];
static int log_file = -1;
static enum fault fault = NONE;
static long point;
static atomic_long calls;
static atomic_int full;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

// Watch `path`. Write a line for each call into `log_path`. Keep each file that a rename replaces in `backup_path`,
// under the number of the call. Apply `what` at call `number`, counted from 1.
void faults_watch(const char* path, const char* log_path, const char* backup_path, int what, long number) {
    log_file = REAL(open)(log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    snprintf(backups, sizeof backups, "%s", backup_path);
    fault = (enum fault)what;
    point = number;
    snprintf(folder, sizeof folder, "%s", path);
}

static int below(const char* path) {
    size_t length = strlen(folder);
    return length && strncmp(path, folder, length) == 0 && (path[length] == '/' || path[length] == '\0');
}

static int name_of(int file, char* path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    path[length < 0 ? 0 : length] = '\0';
    return length > 0 && below(path);
}

static long count(const char* call, const char* path, const char* to, const struct stat* status) {
    long number = atomic_fetch_add(&calls, 1) + 1;
    char line[3 * PATH_MAX];
    unsigned long inode = status ? (unsigned long)status->st_ino : 0;
    long size = status ? (long)status->st_size : 0;
    int length = snprintf(line, sizeof line, "%ld\t%s\t%lu\t%ld\t%s\t%s\n", number, call, inode, size, path, to);
    if (REAL(write)(log_file, line, (size_t)length) != length) raise(SIGABRT);
    return number;
}

static enum verdict judge(long number) {
    if (number != point) {
        if (!atomic_load(&full)) return GO;
        errno = ENOSPC;
        return FAIL;
    }
    switch (fault) {
        case FULL:
            atomic_store(&full, 1);  // and it stays full
            errno = ENOSPC;
            return HALF;
        case BROKEN: errno = EIO; return FAIL;
        case KILL_BEFORE: raise(SIGKILL); return FAIL;
        case KILL_AFTER: return GO_AND_DIE;
        case TORN: return HALF_AND_DIE;
        default: return GO;
    }
}

static int refused(enum verdict verdict) { return verdict == FAIL || verdict == HALF; }

#define FINISH(verdict, call)                                                 \
    do {                                                                      \
        __typeof__(call) result = (call);                                     \
        if (verdict == GO_AND_DIE || verdict == HALF_AND_DIE) raise(SIGKILL); \
        return result;                                                        \
    } while (0)

ssize_t write(int file, const void* content, size_t size) {
    char path[PATH_MAX];
    if (!folder[0] || !name_of(file, path)) return REAL(write)(file, content, size);
    enum verdict verdict = judge(count("write", path, "", NULL));
    if (verdict == FAIL || (verdict == HALF && size < 2)) return -1;
    if (verdict == HALF || verdict == HALF_AND_DIE) size /= 2;
    FINISH(verdict, REAL(write)(file, content, size));
}

ssize_t writev(int file, const struct iovec* parts, int number) {
    char path[PATH_MAX];
    if (!folder[0] || !name_of(file, path)) return REAL(writev)(file, parts, number);
    enum verdict verdict = judge(count("write", path, "", NULL));
    if (refused(verdict)) return -1;
    FINISH(verdict, REAL(writev)(file, parts, number));
}

#define PWRITE(name, offset_type)                                                               \
    ssize_t name(int file, const void* content, size_t size, offset_type offset) {              \
        char path[PATH_MAX];                                                                    \
        if (!folder[0] || !name_of(file, path)) return REAL(name)(file, content, size, offset); \
        enum verdict verdict = judge(count("write", path, "", NULL));                           \
        if (refused(verdict)) return -1;                                                        \
        FINISH(verdict, REAL(name)(file, content, size, offset));                               \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

#define SYNC(name)                                                       \
    int name(int file) {                                                 \
        char path[PATH_MAX];                                             \
        struct stat status;                                              \
        if (!folder[0] || !name_of(file, path)) return REAL(name)(file); \
        if (fstat(file, &status)) return -1;                             \
        enum verdict verdict = judge(count("sync", path, "", &status));  \
        if (refused(verdict)) return -1;                                 \
        FINISH(verdict, REAL(name)(file));                               \
    }
SYNC(fsync)
SYNC(fdatasync)

// A full disk does not prevent this, nor unlink.
#define TRUNCATE(name, offset_type)                                            \
    int name(int file, offset_type size) {                                     \
        char path[PATH_MAX];                                                   \
        if (!folder[0] || !name_of(file, path)) return REAL(name)(file, size); \
        long number = count("truncate", path, "", NULL);                       \
        enum verdict verdict = number == point ? judge(number) : GO;           \
        if (refused(verdict)) return -1;                                       \
        FINISH(verdict, REAL(name)(file, size));                               \
    }
TRUNCATE(ftruncate, off_t)
TRUNCATE(ftruncate64, off64_t)

int unlink(const char* path) {
    if (!folder[0] || !below(path)) return REAL(unlink)(path);
    long number = count("unlink", path, "", NULL);
    enum verdict verdict = number == point ? judge(number) : GO;
    if (refused(verdict)) return -1;
    FINISH(verdict, REAL(unlink)(path));
}

int mkdir(const char* path, mode_t mode) {
    if (!folder[0] || !below(path) || access(path, F_OK) == 0) return REAL(mkdir)(path, mode);
    enum verdict verdict = judge(count("mkdir", path, "", NULL));
    if (refused(verdict)) return -1;
    FINISH(verdict, REAL(mkdir)(path, mode));
}

int rename(const char* from, const char* to) {
    if (!folder[0] || !below(to)) return REAL(rename)(from, to);
    long number = count("rename", from, to, NULL);
    enum verdict verdict = judge(number);
    if (refused(verdict)) return -1;
    char backup[PATH_MAX + 32];
    snprintf(backup, sizeof backup, "%s/%ld", backups, number);
    if (access(to, F_OK) == 0 && link(to, backup)) raise(SIGABRT);
    FINISH(verdict, REAL(rename)(from, to));
}

static int opened(int (*real)(const char*, int, ...), const char* path, int flags, mode_t mode) {
    int changes = (flags & O_ACCMODE) != O_RDONLY || flags & (O_CREAT | O_TRUNC);
    if (!folder[0] || !changes || !below(path)) return real(path, flags, mode);
    struct stat status;
    int there = stat(path, &status) == 0;
    const char* call = !there ? "create" : flags & O_TRUNC ? "empty" : "open";
    enum verdict verdict = judge(count(call, path, "", there ? &status : NULL));
    if (refused(verdict)) return -1;
    FINISH(verdict, real(path, flags, mode));
}

#define OPEN(name)                                                              \
    int name(const char* path, int flags, ...) {                                \
        va_list more;                                                           \
        va_start(more, flags);                                                  \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0; \
        va_end(more);                                                           \
        return opened(REAL(name), path, flags, mode);                           \
    }
OPEN(open)
OPEN(open64)

// Python calls it with AT_FDCWD. Other folders, as shutil.rmtree opens them, are not watched.
#define OPENAT(name, plain)                                                     \
    int name(int from, const char* path, int flags, ...) {                      \
        va_list more;                                                           \
        va_start(more, flags);                                                  \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0; \
        va_end(more);                                                           \
        if (from != AT_FDCWD) return REAL(name)(from, path, flags, mode);       \
        return opened(REAL(plain), path, flags, mode);                          \
    }
OPENAT(openat, open)
OPENAT(openat64, open64)
