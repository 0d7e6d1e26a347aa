/* Holds up one system call in SHAKE_ONE_IN (30) for a random time: for most a millisecond,
 * for some fifteen, and for one in a hundred or so up to SHAKE_LONGEST (200) ms. Threads
 * and processes then run in orders that they have on a busy machine only, and there
 * rarely. Preloaded by tools/shake into all that is linked to the C library.
 *
 * All arguments here are integers or pointers, and at most seven, those of syscall(2): what
 * each function wants is where seven integers are, so one form serves for all.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

typedef long call(long, long, long, long, long, long, long);

static unsigned one_in = 30;
static unsigned longest = 200;

static void __attribute__((constructor)) configure(void)
{
    const char *text = getenv("SHAKE_ONE_IN");

    if (text && atoi(text) > 0)
        one_in = atoi(text);
    text = getenv("SHAKE_LONGEST");
    if (text && atoi(text) > 0)
        longest = atoi(text);
}

/* Each thread draws numbers of its own (xorshift), and no two runs the same ones. */
static uint64_t draw(void)
{
    static __thread uint64_t state __attribute__((tls_model("initial-exec")));

    if (!state) {
        struct timespec now;

        clock_gettime(CLOCK_MONOTONIC, &now);
        state = ((uint64_t)now.tv_nsec << 32 ^ (uintptr_t)&state) | 1;
    }
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state * 0x2545f4914f6cdd1d >> 16;
}

static void hold_up(void)
{
    int error = errno;

    if (draw() % one_in == 0) {
        uint64_t kind = draw() % 1000;
        uint64_t limit = kind < 700 ? 1500 : kind < 985 ? 15000 : longest * 1000;
        uint64_t micros = draw() % limit;
        struct timespec time = { micros / 1000000, micros % 1000000 * 1000 };

        /* A signal that comes meanwhile ends it, and not the call behind it: as if it had come
         * just before. */
        clock_nanosleep(CLOCK_MONOTONIC, 0, &time, NULL);
    }
    errno = error;
}

#define HELD(name)                                                                        \
    call held_##name __asm__(#name);                                                      \
    long held_##name(long a, long b, long c, long d, long e, long f, long g)              \
    {                                                                                     \
        static call *next;                                                                \
        if (!next)                                                                        \
            next = (call *)dlsym(RTLD_NEXT, #name);                                       \
        hold_up();                                                                        \
        return next(a, b, c, d, e, f, g);                                                 \
    }

/* Files. */
HELD(open) HELD(open64) HELD(openat) HELD(openat64) HELD(close)
HELD(read) HELD(write) HELD(writev)
HELD(stat) HELD(stat64) HELD(lstat) HELD(lstat64) HELD(fstat) HELD(fstat64) HELD(statx)
HELD(mkdir) HELD(rmdir) HELD(mkfifo) HELD(rename) HELD(unlink) HELD(unlinkat)
HELD(opendir) HELD(readdir64) HELD(chmod) HELD(fchmod) HELD(chown) HELD(flock) HELD(ftruncate64)
HELD(mmap) HELD(mmap64) HELD(munmap) HELD(inotify_add_watch)
/* Sockets. */
HELD(socket) HELD(bind) HELD(listen) HELD(connect) HELD(accept) HELD(accept4) HELD(shutdown)
HELD(getsockname) HELD(getsockopt) HELD(setsockopt) HELD(getifaddrs)
HELD(send) HELD(sendto) HELD(sendmsg) HELD(sendmmsg)
HELD(recv) HELD(recvfrom) HELD(recvmsg) HELD(recvmmsg)
/* Waiting, and whom for: syscall(2) is futex(2) and bpf(2). */
HELD(poll) HELD(ppoll) HELD(epoll_wait) HELD(epoll_ctl) HELD(syscall) HELD(sched_yield)
HELD(waitpid) HELD(waitid) HELD(kill) HELD(fork) HELD(posix_spawn) HELD(posix_spawnp)
HELD(setns) HELD(unshare) HELD(mount) HELD(umount2)

/* A thread is held up at its start, too. */
struct start {
    void *(*run)(void *);
    void *with;
};

static void *begin(void *given)
{
    struct start start = *(struct start *)given;

    free(given);
    for (int i = 0; i < 3; i++)
        hold_up();
    return start.run(start.with);
}

call held_pthread_create __asm__("pthread_create");
long held_pthread_create(long thread, long attributes, long run, long with, long e, long f,
                         long g)
{
    static call *next;
    struct start *start = malloc(sizeof(*start));

    if (!next)
        next = (call *)dlsym(RTLD_NEXT, "pthread_create");
    if (!start)
        return EAGAIN;
    *start = (struct start){ (void *(*)(void *))run, (void *)with };
    return next(thread, attributes, (long)begin, (long)start, e, f, g);
}
