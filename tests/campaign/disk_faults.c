/* A layer under every program that is started with LD_PRELOAD of it: files below one folder meet the faults of a disk.

   DISK_FAULTS names a file of five numbers of 64 bits, shared by all processes: how many operations there were, the
   first and the last one that fails, the error that they give (0: none), and the microseconds that each one takes.
   DISK_FAULTS_BELOW names the folder. Operations are what the error can meet: for a full disk what takes room, for one
   that can only be read what changes it, for one that is broken what reads or writes. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { READS = 1, TAKES_ROOM = 2, CHANGES = 4, SYNCS = 8 };

static volatile int64_t *control;
static char below[PATH_MAX];

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

__attribute__((constructor)) static void begin(void) {
    const char *file = getenv("DISK_FAULTS"), *folder = getenv("DISK_FAULTS_BELOW");
    if (!file || !folder || strlen(folder) >= sizeof below) return;
    int fd = REAL(open)(file, O_RDWR | O_CLOEXEC);
    if (fd < 0) return;
    void *mapped = mmap(NULL, 5 * sizeof(int64_t), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (mapped == MAP_FAILED) return;
    strcpy(below, folder);
    control = mapped;
}

static int inside(const char *path) {
    size_t length = strlen(below);
    return !strncmp(path, below, length) && (path[length] == '/' || !path[length]);
}

static int named(int folder, const char *path) {
    char whole[2 * PATH_MAX], link[64];
    if (path[0] == '/') return inside(path);
    if (folder == AT_FDCWD) strcpy(link, "/proc/self/cwd");
    else snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    ssize_t length = readlink(link, whole, PATH_MAX - 1);
    if (length < 0) return 0;
    snprintf(whole + length, sizeof whole - (size_t)length, "/%s", path);
    return inside(whole);
}

static int opened(int fd) {
    char whole[PATH_MAX], link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, whole, sizeof whole - 1);
    if (length < 0) return 0;
    whole[length] = 0;
    return inside(whole);
}

/* Whether an operation fails; -1 where it is the first one that does, of which a part may have been done. */
static int fails(int kind) {
    int error = (int)control[3];
    int met = error == EIO ? READS | TAKES_ROOM | SYNCS : error == EROFS ? TAKES_ROOM | CHANGES : TAKES_ROOM;
    if (error && !(kind & met)) return 0;
    if (control[4]) usleep((useconds_t)control[4]);
    int64_t number = __atomic_add_fetch(&control[0], 1, __ATOMIC_SEQ_CST);
    if (!error || number < control[1] || number > control[2]) return 0;
    errno = error;
    return number == control[1] ? -1 : 1;
}

#define AT(kind, folder, path) (control && named(folder, path) && fails(kind))
#define ON(kind, fd) (control && opened(fd) && fails(kind))

static int open_kind(int folder, const char *path, int flags) {
    struct stat there;
    int made = (flags & O_CREAT) && fstatat(folder, path, &there, 0);
    return (made ? TAKES_ROOM : 0) | ((flags & O_ACCMODE) != O_RDONLY || made ? CHANGES : READS);
}

#define OPENS(name, ...)                                              \
    int name(__VA_ARGS__, int flags, ...) {                           \
        va_list more;                                                 \
        va_start(more, flags);                                        \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0; \
        va_end(more);

OPENS(open, const char *path)
    if (AT(open_kind(AT_FDCWD, path, flags), AT_FDCWD, path)) return -1;
    return REAL(open)(path, flags, mode);
}
OPENS(open64, const char *path)
    if (AT(open_kind(AT_FDCWD, path, flags), AT_FDCWD, path)) return -1;
    return REAL(open64)(path, flags, mode);
}
OPENS(openat, int folder, const char *path)
    if (AT(open_kind(folder, path, flags), folder, path)) return -1;
    return REAL(openat)(folder, path, flags, mode);
}
OPENS(openat64, int folder, const char *path)
    if (AT(open_kind(folder, path, flags), folder, path)) return -1;
    return REAL(openat64)(folder, path, flags, mode);
}

ssize_t write(int fd, const void *bytes, size_t size) {
    int failed = control && opened(fd) ? fails(TAKES_ROOM) : 0;
    if (failed == -1 && errno != EROFS && size > 1) return REAL(write)(fd, bytes, size / 2); /* as a disk that fills */
    return failed ? -1 : REAL(write)(fd, bytes, size);
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
    return ON(TAKES_ROOM, fd) ? -1 : REAL(writev)(fd, parts, count);
}
ssize_t pwrite(int fd, const void *bytes, size_t size, off_t place) {
    return ON(TAKES_ROOM, fd) ? -1 : REAL(pwrite)(fd, bytes, size, place);
}
ssize_t pwrite64(int fd, const void *bytes, size_t size, off64_t place) {
    return ON(TAKES_ROOM, fd) ? -1 : REAL(pwrite64)(fd, bytes, size, place);
}
ssize_t sendfile(int out, int in, off_t *place, size_t size) {
    static ssize_t (*real)(int, int, off_t *, size_t);
    if (!real) real = dlsym(RTLD_NEXT, "sendfile");
    return ON(TAKES_ROOM, out) ? -1 : real(out, in, place, size);
}
ssize_t sendfile64(int out, int in, off64_t *place, size_t size) { /* what Python's shutil copies by */
    static ssize_t (*real)(int, int, off64_t *, size_t);
    if (!real) real = dlsym(RTLD_NEXT, "sendfile64");
    return ON(TAKES_ROOM, out) ? -1 : real(out, in, place, size);
}
ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t size, unsigned flags) {
    return ON(TAKES_ROOM, out) ? -1 : REAL(copy_file_range)(in, from, out, to, size, flags);
}
int ftruncate(int fd, off_t size) { return ON(TAKES_ROOM, fd) ? -1 : REAL(ftruncate)(fd, size); }
int ftruncate64(int fd, off64_t size) { return ON(TAKES_ROOM, fd) ? -1 : REAL(ftruncate64)(fd, size); }
ssize_t read(int fd, void *bytes, size_t size) { return ON(READS, fd) ? -1 : REAL(read)(fd, bytes, size); }
int fsync(int fd) { return ON(SYNCS, fd) ? -1 : REAL(fsync)(fd); }
int fdatasync(int fd) { return ON(SYNCS, fd) ? -1 : REAL(fdatasync)(fd); }

int mkdir(const char *path, mode_t mode) {
    return AT(TAKES_ROOM, AT_FDCWD, path) ? -1 : REAL(mkdir)(path, mode);
}
int link(const char *old, const char *path) {
    return AT(TAKES_ROOM, AT_FDCWD, path) ? -1 : REAL(link)(old, path);
}
int linkat(int before, const char *old, int folder, const char *path, int flags) {
    return AT(TAKES_ROOM, folder, path) ? -1 : REAL(linkat)(before, old, folder, path, flags);
}
int symlink(const char *target, const char *path) {
    return AT(TAKES_ROOM, AT_FDCWD, path) ? -1 : REAL(symlink)(target, path);
}
int rename(const char *old, const char *path) {
    return AT(TAKES_ROOM, AT_FDCWD, path) ? -1 : REAL(rename)(old, path);
}
int unlink(const char *path) { return AT(CHANGES, AT_FDCWD, path) ? -1 : REAL(unlink)(path); }
int unlinkat(int folder, const char *path, int flags) {
    return AT(CHANGES, folder, path) ? -1 : REAL(unlinkat)(folder, path, flags);
}
int rmdir(const char *path) { return AT(CHANGES, AT_FDCWD, path) ? -1 : REAL(rmdir)(path); }
