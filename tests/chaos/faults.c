/* Faults for one program, loaded by LD_PRELOAD: disk errors, slow renames, a shifted wall clock,
 * and a stop or kill at the n-th change below the output root.
 *
 * CHAOS_CONTROL names a file of CONTROL_SIZE bytes, mapped here and written by the test; its
 * fields are those of `struct control` (see faults.rs). CHAOS_ROOT is the output root; calls on
 * other paths are passed through.
 *
 * The calls of libc are replaced. Of the system calls that the program makes without libc (by
 * rustix) renameat2 alone is reached: a seccomp filter turns it into SIGSYS, whose handler calls
 * the function below. Not reached are statx, flock and CLOCK_BOOTTIME by rustix, and on other
 * machines than x86-64 and AArch64 renameat2.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <link.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <ucontext.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { RENAME = 1, LINK = 2, SYNC = 4, UNLINK = 8, CREATE = 16, WRITE = 32, MAKE_DIR = 64 };
enum { STOP = 1, KILL = 2 };
#define CONTROL_SIZE 4096
#define TEXT_SIZE 1024

struct control {
    int64_t clock_shift_s;   /* added to CLOCK_REALTIME */
    int64_t fault_errno;     /* what the calls of fault_calls fail with; 0: none fails */
    int64_t fault_calls;     /* bits of RENAME.. */
    int64_t fault_permille;  /* how many of them fail */
    int64_t delay_ms;        /* before each rename and link */
    int64_t stop_at;         /* number of the call before which the process stops; 0: none */
    int64_t stop_action;     /* STOP or KILL */
    int64_t calls;           /* changes below the root so far (writes are not counted) */
    int64_t faults;          /* calls that failed by fault_errno */
    char text[TEXT_SIZE];    /* the call at stop_at */
};

static struct control *control;
static const char *root;
static size_t root_length;

static void trap_renames(void);

__attribute__((constructor)) static void start(void) {
    const char *path = getenv("CHAOS_CONTROL");
    const char *below = getenv("CHAOS_ROOT");
    /* The program's children run without this library. */
    unsetenv("LD_PRELOAD");
    /* A test that is killed leaves no program. */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (!path || !below)
        return;
    int fd = syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC, 0);
    if (fd < 0)
        return;
    void *mapped = mmap(NULL, CONTROL_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (mapped == MAP_FAILED)
        return;
    root = strdup(below);
    root_length = strlen(root);
    control = mapped;
    trap_renames();
}

static int64_t get(int64_t *field) { return __atomic_load_n(field, __ATOMIC_SEQ_CST); }

static int below_root(const char *path) {
    return !strncmp(path, root, root_length) && (path[root_length] == '/' || !path[root_length]);
}

/* The path of a descriptor. */
static int path_of(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_MAX - 1);
    if (size < 0)
        return 0;
    path[size] = 0;
    return 1;
}

/* An absolute path for a path that may be relative to a descriptor. */
static int resolve(int dir, const char *name, char *path) {
    if (!name)
        return 0;
    if (name[0] == '/')
        return snprintf(path, PATH_MAX, "%s", name) < PATH_MAX;
    char base[PATH_MAX];
    if (dir == AT_FDCWD ? !getcwd(base, sizeof base) : !path_of(dir, base))
        return 0;
    return snprintf(path, PATH_MAX, "%s/%s", base, name) < PATH_MAX;
}

static int chance(int64_t permille) {
    static __thread uint64_t state;
    if (!state)
        state = 0x9E3779B97F4A7C15u ^ (uint64_t)getpid() << 20 ^ (uint64_t)(uintptr_t)&state;
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return (int64_t)((state * 0x2545F4914F6CDD1Du >> 33) % 1000) < permille;
}

/* The path without the root. */
static const char *short_path(const char *path) {
    if (!below_root(path))
        return path;
    return path[root_length] ? path + root_length : "/";
}

/* Before a call: stops or kills at the chosen one, waits, and returns the error it fails with. */
static int before(int call, const char *name, const char *path, const char *to) {
    if (!below_root(path) && !(to && below_root(to)))
        return 0;
    if (call != WRITE) {
        int64_t number = __atomic_add_fetch(&control->calls, 1, __ATOMIC_SEQ_CST);
        if (number == get(&control->stop_at)) {
            snprintf(control->text, TEXT_SIZE, to ? "%s %.450s %.450s" : "%s %.450s", name,
                     short_path(path), to ? short_path(to) : "");
            kill(getpid(), get(&control->stop_action) == KILL ? SIGKILL : SIGSTOP);
        }
    }
    /* In small steps, so that a delay that is taken back ends. */
    for (int64_t waited_ms = 0; (call & (RENAME | LINK)) && waited_ms < get(&control->delay_ms);
         waited_ms += 5) {
        struct timespec left = {0, 5000000};
        while (nanosleep(&left, &left) && errno == EINTR)
            ;
    }
    int64_t error = get(&control->fault_errno);
    if (error && (get(&control->fault_calls) & call) && chance(get(&control->fault_permille))) {
        __atomic_add_fetch(&control->faults, 1, __ATOMIC_SEQ_CST);
        return (int)error;
    }
    return 0;
}

#define FAIL_IF(error)                                                                             \
    do {                                                                                           \
        int error_ = (error);                                                                      \
        if (error_) {                                                                              \
            errno = error_;                                                                        \
            return -1;                                                                             \
        }                                                                                          \
    } while (0)

static int before_at(int call, const char *name, int dir, const char *path) {
    char full[PATH_MAX];
    return control && resolve(dir, path, full) ? before(call, name, full, NULL) : 0;
}

static int before_two(int call, const char *name, int dir, const char *path, int to_dir,
                      const char *to) {
    char full[PATH_MAX], full_to[PATH_MAX];
    if (!control || !resolve(dir, path, full) || !resolve(to_dir, to, full_to))
        return 0;
    return before(call, name, full, full_to);
}

static int before_fd(int call, const char *name, int fd) {
    char full[PATH_MAX];
    return control && path_of(fd, full) ? before(call, name, full, NULL) : 0;
}

int renameat2(int from_dir, const char *from, int to_dir, const char *to, unsigned flags) {
    FAIL_IF(before_two(RENAME, "rename", from_dir, from, to_dir, to));
    return syscall(SYS_renameat2, from_dir, from, to_dir, to, flags);
}

#if defined(__x86_64__)
#define ARCHITECTURE AUDIT_ARCH_X86_64
#define REGISTER(name) (((ucontext_t *)context)->uc_mcontext.gregs[name])
#define ARGUMENTS REGISTER(REG_RDI), REGISTER(REG_RSI), REGISTER(REG_RDX), REGISTER(REG_R10), REGISTER(REG_R8)
#define RESULT REGISTER(REG_RAX)
#elif defined(__aarch64__)
#define ARCHITECTURE AUDIT_ARCH_AARCH64
#define REGISTER(name) (((ucontext_t *)context)->uc_mcontext.regs[name])
#define ARGUMENTS REGISTER(0), REGISTER(1), REGISTER(2), REGISTER(3), REGISTER(4)
#define RESULT REGISTER(0)
#endif

#ifdef ARCHITECTURE
static int64_t rename_by(uint64_t from_dir, uint64_t from, uint64_t to_dir, uint64_t to,
                         uint64_t flags) {
    int result = renameat2((int)from_dir, (const char *)from, (int)to_dir, (const char *)to,
                           (unsigned)flags);
    return result < 0 ? -errno : result;
}

static void on_trap(int signal, siginfo_t *info, void *context) {
    (void)signal;
    (void)info;
    int saved = errno;
    RESULT = rename_by(ARGUMENTS);
    errno = saved;
}

/* The program's own code, which comes first. */
static int find_code(struct dl_phdr_info *info, size_t size, void *found) {
    (void)size;
    uint64_t *range = found;
    for (int index = 0; index < info->dlpi_phnum; index++) {
        const ElfW(Phdr) *part = &info->dlpi_phdr[index];
        if (part->p_type == PT_LOAD && (part->p_flags & PF_X)) {
            range[0] = info->dlpi_addr + part->p_vaddr;
            range[1] = range[0] + part->p_memsz;
        }
    }
    return 1;
}

/* renameat2 from the program's own code raises SIGSYS. libc's code and other programs, which
 * inherit the filter, are at other addresses. */
static void trap_renames(void) {
    uint64_t code[2] = {0, 0};
    dl_iterate_phdr(find_code, code);
    uint32_t high = code[0] >> 32, low = (uint32_t)code[0], end = (uint32_t)code[1];
    if (!code[0] || code[1] >> 32 != high)
        return;
    size_t address = offsetof(struct seccomp_data, instruction_pointer);
    struct sock_filter steps[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCHITECTURE, 0, 8),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_renameat2, 0, 6),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, address + 4),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, high, 0, 4),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, address),
        BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, low, 0, 2),
        BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, end, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog filter = {sizeof steps / sizeof *steps, steps};
    struct sigaction action = {.sa_sigaction = on_trap, .sa_flags = SA_SIGINFO | SA_NODEFER};
    if (sigaction(SIGSYS, &action, NULL) || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        return;
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter);
}
#else
static void trap_renames(void) {}
#endif

int renameat(int from_dir, const char *from, int to_dir, const char *to) {
    return renameat2(from_dir, from, to_dir, to, 0);
}

int rename(const char *from, const char *to) {
    return renameat2(AT_FDCWD, from, AT_FDCWD, to, 0);
}

int linkat(int from_dir, const char *from, int to_dir, const char *to, int flags) {
    FAIL_IF(before_two(LINK, "link", from_dir, from, to_dir, to));
    return syscall(SYS_linkat, from_dir, from, to_dir, to, flags);
}

int link(const char *from, const char *to) { return linkat(AT_FDCWD, from, AT_FDCWD, to, 0); }

int unlinkat(int dir, const char *path, int flags) {
    FAIL_IF(before_at(UNLINK, flags & AT_REMOVEDIR ? "rmdir" : "unlink", dir, path));
    return syscall(SYS_unlinkat, dir, path, flags);
}

int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }

int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }

int mkdirat(int dir, const char *path, mode_t mode) {
    FAIL_IF(before_at(MAKE_DIR, "mkdir", dir, path));
    return syscall(SYS_mkdirat, dir, path, mode);
}

int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

int fsync(int fd) {
    FAIL_IF(before_fd(SYNC, "fsync", fd));
    return syscall(SYS_fsync, fd);
}

int fdatasync(int fd) {
    FAIL_IF(before_fd(SYNC, "fdatasync", fd));
    return syscall(SYS_fdatasync, fd);
}

static int open_at(int dir, const char *path, int flags, mode_t mode) {
    if (flags & O_CREAT)
        FAIL_IF(before_at(CREATE, "create", dir, path));
    return syscall(SYS_openat, dir, path, flags, mode);
}

#define OPEN(name, dir_parameter, dir)                                                             \
    int name(dir_parameter const char *path, int flags, ...) {                                     \
        mode_t mode = 0;                                                                           \
        if (flags & (O_CREAT | __O_TMPFILE)) {                                                     \
            va_list more;                                                                          \
            va_start(more, flags);                                                                 \
            mode = va_arg(more, mode_t);                                                           \
            va_end(more);                                                                          \
        }                                                                                          \
        return open_at(dir, path, flags, mode);                                                    \
    }
#define DIR_PARAMETER int dir,
OPEN(open, , AT_FDCWD)
OPEN(open64, , AT_FDCWD)
OPEN(openat, DIR_PARAMETER, dir)
OPEN(openat64, DIR_PARAMETER, dir)

/* Only looked at while writes fail: a descriptor's path costs a system call. */
static int before_write(int fd) {
    int fails = control && get(&control->fault_errno) && (get(&control->fault_calls) & WRITE);
    return fails ? before_fd(WRITE, "write", fd) : 0;
}

ssize_t write(int fd, const void *bytes, size_t size) {
    FAIL_IF(before_write(fd));
    return syscall(SYS_write, fd, bytes, size);
}

ssize_t pwrite64(int fd, const void *bytes, size_t size, off64_t at) {
    FAIL_IF(before_write(fd));
    return syscall(SYS_pwrite64, fd, bytes, size, at);
}

ssize_t pwrite(int fd, const void *bytes, size_t size, off_t at) {
    return pwrite64(fd, bytes, size, at);
}

static int64_t shift_s(void) { return control ? get(&control->clock_shift_s) : 0; }

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = syscall(SYS_clock_gettime, clock, now);
    if (!result && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += shift_s();
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    (void)zone;
    struct timespec real;
    clock_gettime(CLOCK_REALTIME, &real);
    now->tv_sec = real.tv_sec;
    now->tv_usec = real.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now) {
    struct timespec real;
    clock_gettime(CLOCK_REALTIME, &real);
    if (now)
        *now = real.tv_sec;
    return real.tv_sec;
}
