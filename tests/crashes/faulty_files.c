// Makes one file operation below a folder fail, or kills the process there. Preloaded (LD_PRELOAD),
// so that it sees the operations of Python, C++ and Rust alike.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { COUNT, FAIL, KILL, LOST_REPLY, HIDE };

static char root[PATH_MAX], hidden[PATH_MAX], log_[1 << 16];
static int mode, error, reads, armed;
static long at, count;

void faulty_arm(const char* folder, long index, int what, int code, int count_reads) {
  snprintf(root, sizeof root, "%s/", folder);
  hidden[0] = log_[0] = 0;
  at = index, mode = what, error = code, reads = count_reads, count = 0, armed = 1;
}
const char* faulty_disarm(void) {
  armed = 0;
  return log_;
}

#define NEXT(name)                                    \
  static __typeof__(&name) next;                      \
  if (!next) next = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

static int inside(int folder, const char* path, char* full) {
  if (!armed || !path) return 0;
  if (path[0] == '/') {
    snprintf(full, PATH_MAX, "%s", path);
  } else {
    char link[64];
    snprintf(link, sizeof link, folder == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", folder);
    ssize_t size = readlink(link, full, PATH_MAX - 1);
    if (size < 0) return 0;
    snprintf(full + size, PATH_MAX - size, "/%s", path);
  }
  return strncmp(full, root, strlen(root)) == 0;
}
static int inside_fd(int fd, char* full) {
  if (!armed) return 0;
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t size = readlink(link, full, PATH_MAX - 1);
  if (size < 0) return 0;
  full[size] = 0;
  return strncmp(full, root, strlen(root)) == 0;
}
// Counts an operation; returns the fault that it must have.
static int fault(const char* name, const char* path) {
  size_t used = strlen(log_);
  snprintf(log_ + used, sizeof log_ - used, "%s %s\n", name, path + strlen(root));
  if (count++ != at) return COUNT;
  if (mode == FAIL) errno = error;
  return mode;
}
static void end(void) { kill(getpid(), SIGKILL); }

#define PATH_OPERATION(name, folder, path, call)   \
  char full[PATH_MAX];                             \
  if (inside(folder, path, full)) {                \
    int what = fault(#name, full);                 \
    if (what == FAIL) return -1;                   \
    if (what == KILL) end();                       \
  }                                                \
  return call

#define FD_OPERATION(name, fd, call) \
  char full[PATH_MAX];               \
  if (inside_fd(fd, full)) {         \
    int what = fault(#name, full);   \
    if (what == FAIL) return -1;     \
    if (what == KILL) end();         \
  }                                  \
  return call

static int opens(int folder, const char* path, int flags) {
  char full[PATH_MAX];
  if (!inside(folder, path, full)) return COUNT;
  if (hidden[0] && !strcmp(full, hidden) && !(flags & O_CREAT)) {
    errno = ENOENT;
    return FAIL;
  }
  if (!reads && !(flags & (O_WRONLY | O_RDWR | O_CREAT))) return COUNT;
  int what = fault("open", full);
  if (what == KILL) end();
  return what;
}
#define OPEN(name)                               \
  int name(const char* path, int flags, ...) {   \
    NEXT(name);                                  \
    va_list list;                                \
    va_start(list, flags);                       \
    mode_t permissions = va_arg(list, mode_t);   \
    va_end(list);                                \
    if (opens(AT_FDCWD, path, flags) == FAIL) return -1; \
    return next(path, flags, permissions);       \
  }
OPEN(open)
OPEN(open64)
#define OPENAT(name)                                       \
  int name(int folder, const char* path, int flags, ...) { \
    NEXT(name);                                            \
    va_list list;                                          \
    va_start(list, flags);                                 \
    mode_t permissions = va_arg(list, mode_t);             \
    va_end(list);                                          \
    if (opens(folder, path, flags) == FAIL) return -1;     \
    return next(folder, path, flags, permissions);         \
  }
OPENAT(openat)
OPENAT(openat64)
#define FOPEN(name)                                                                     \
  FILE* name(const char* path, const char* how) {                                       \
    NEXT(name);                                                                         \
    int flags = *how == 'r' && !strchr(how, '+') ? O_RDONLY : O_RDWR | (*how != 'r') * O_CREAT; \
    return opens(AT_FDCWD, path, flags) == FAIL ? NULL : next(path, how);               \
  }
FOPEN(fopen)
FOPEN(fopen64)

ssize_t write(int fd, const void* data, size_t size) {
  NEXT(write);
  char full[PATH_MAX];
  if (inside_fd(fd, full)) {
    int what = fault("write", full);
    if (what == FAIL || what == KILL) {
      // A part of it is on the disk.
      if (size > 1) next(fd, data, size / 2);
      if (what == KILL) end();
      errno = error;
      return -1;
    }
  }
  return next(fd, data, size);
}
ssize_t writev(int fd, const struct iovec* parts, int number) {
  NEXT(writev);
  FD_OPERATION(writev, fd, next(fd, parts, number));
}
size_t fwrite(const void* data, size_t size, size_t number, FILE* file) {
  NEXT(fwrite);
  char full[PATH_MAX];
  if (inside_fd(fileno(file), full)) {
    int what = fault("fwrite", full);
    if (what == FAIL || what == KILL) {
      size_t half = next(data, size, number / 2, file);
      fflush(file);
      if (what == KILL) end();
      errno = error;
      return half;
    }
  }
  return next(data, size, number, file);
}
int fclose(FILE* file) {
  NEXT(fclose);
  char full[PATH_MAX];
  if (inside_fd(fileno(file), full) && (reads || (fcntl(fileno(file), F_GETFL) & O_ACCMODE))) {
    int what = fault("fclose", full);
    if (what == KILL) end();
    if (what == FAIL) {
      next(file);
      errno = error;
      return EOF;
    }
  }
  return next(file);
}
ssize_t read(int fd, void* data, size_t size) {
  NEXT(read);
  if (!reads) return next(fd, data, size);
  FD_OPERATION(read, fd, next(fd, data, size));
}
size_t fread(void* data, size_t size, size_t number, FILE* file) {
  NEXT(fread);
  char full[PATH_MAX];
  if (reads && inside_fd(fileno(file), full)) {
    int what = fault("fread", full);
    if (what == KILL) end();
    if (what == FAIL) {
      errno = error;
      return 0;
    }
  }
  return next(data, size, number, file);
}
int close(int fd) {
  NEXT(close);
  char full[PATH_MAX];
  if (inside_fd(fd, full) && (fcntl(fd, F_GETFL) & O_ACCMODE)) {
    int what = fault("close", full);
    if (what == KILL) end();
    if (what == FAIL) {
      next(fd);
      errno = error;
      return -1;
    }
  }
  return next(fd);
}
int fsync(int fd) {
  NEXT(fsync);
  FD_OPERATION(fsync, fd, next(fd));
}
int ftruncate64(int fd, off64_t size) {
  NEXT(ftruncate64);
  FD_OPERATION(ftruncate, fd, next(fd, size));
}

static int renames(const char* from, const char* to, int (*next)(const char*, const char*)) {
  char full[PATH_MAX];
  if (!inside(AT_FDCWD, to, full)) return next(from, to);
  int what = fault("rename", full);
  if (what == FAIL) return -1;
  if (what == KILL) end();
  int result = next(from, to);
  if (what == LOST_REPLY) {
    errno = error;
    return -1;
  }
  if (what == HIDE) strcpy(hidden, full);
  return result;
}
int rename(const char* from, const char* to) {
  NEXT(rename);
  return renames(from, to, next);
}
#define STAT(name, type)                                               \
  int name(const char* path, struct type* result) {                    \
    NEXT(name);                                                        \
    char full[PATH_MAX];                                               \
    if (hidden[0] && inside(AT_FDCWD, path, full) && !strcmp(full, hidden)) { \
      errno = ENOENT;                                                  \
      return -1;                                                       \
    }                                                                  \
    return next(path, result);                                         \
  }
STAT(stat, stat)
STAT(stat64, stat64)
STAT(lstat, stat)
STAT(lstat64, stat64)
int unlink(const char* path) {
  NEXT(unlink);
  PATH_OPERATION(unlink, AT_FDCWD, path, next(path));
}
int unlinkat(int folder, const char* path, int flags) {
  NEXT(unlinkat);
  PATH_OPERATION(unlinkat, folder, path, next(folder, path, flags));
}
int rmdir(const char* path) {
  NEXT(rmdir);
  PATH_OPERATION(rmdir, AT_FDCWD, path, next(path));
}
int mkdir(const char* path, mode_t permissions) {
  NEXT(mkdir);
  PATH_OPERATION(mkdir, AT_FDCWD, path, next(path, permissions));
}
int chmod(const char* path, mode_t permissions) {
  NEXT(chmod);
  PATH_OPERATION(chmod, AT_FDCWD, path, next(path, permissions));
}
