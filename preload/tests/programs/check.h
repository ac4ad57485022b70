// What the test programs share: a pair of connected sockets, and a line for each result.
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/select.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *address = "127.0.0.1";

// The result of a call, and errno if it failed.
#define SAY(call) do { errno = 0; long result_ = (long)(call); \
    printf("%-34s %ld%s%s\n", #call, result_, result_ < 0 ? " " : "", result_ < 0 ? strerrorname_np(errno) : ""); } while (0)

#define MUST(call) ({ long result_ = (long)(call); \
    if (result_ < 0) { printf("line %d: %s: %s\n", __LINE__, #call, strerror(errno)); exit(1); } result_; })

static void part(const char *name) { printf("-- %s\n", name); fflush(stdout); }

static int listening(struct sockaddr_in *name) {
    int fd = MUST(socket(AF_INET, SOCK_STREAM, 0)), on = 1;
    socklen_t length = sizeof *name;
    memset(name, 0, sizeof *name);
    name->sin_family = AF_INET;
    inet_pton(AF_INET, address, &name->sin_addr);
    MUST(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on));
    MUST(bind(fd, (struct sockaddr *)name, sizeof *name));
    MUST(listen(fd, 16));
    MUST(getsockname(fd, (struct sockaddr *)name, &length));
    return fd;
}

// Requests and answers until a connection that may move has had time to: CHECK_WARM says how many.
static void warm_up(int fds[2]) {
    const char *turns = getenv("CHECK_WARM");
    char bytes[100] = "warm";
    for (int turn = turns ? atoi(turns) : 0; turn > 0; turn--) {
        for (int from = 0; from < 2; from++) {
            MUST(write(fds[from], bytes, sizeof bytes));
            if (MUST(recv(fds[!from], bytes, sizeof bytes, MSG_WAITALL)) != sizeof bytes) exit(1);
        }
        usleep(4000);
    }
}

// What a loop tells after it has told an edge: 0. A connection that moves at that moment may tell it once more.
__attribute__((unused)) static int more_edges(int loop) {
    struct epoll_event got[8];
    int count = epoll_wait(loop, got, 8, 20);
    for (int more = 0; getenv("CHECK_WARM") && count > 0 && more < 10; more++) count = epoll_wait(loop, got, 8, 20);
    return count;
}

// client[0] and server[1] of a connection.
static void pair(int fds[2]) {
    struct sockaddr_in name;
    int listener = listening(&name);
    // Whoever accepts has its companion from the first look on.
    struct pollfd look = {.fd = listener, .events = POLLIN};
    MUST(poll(&look, 1, 0));
    fds[0] = MUST(socket(AF_INET, SOCK_STREAM, 0));
    MUST(connect(fds[0], (struct sockaddr *)&name, sizeof name));
    fds[1] = MUST(accept(listener, NULL, NULL));
    MUST(close(listener));
    warm_up(fds);
}

// Waits until there is something to read.
__attribute__((unused)) static void readable(int fd) {
    struct pollfd look = {.fd = fd, .events = POLLIN};
    MUST(poll(&look, 1, 5000));
}

// Has a thread send this one a signal after a while.
struct Later {
    pthread_t whom, thread;
    int signal, milliseconds;
    int fd; // What is written to after as long again; -1: nothing, and the signal comes until the call is over.
    volatile int over;
};

__attribute__((unused)) static void *send_signal(void *argument) {
    struct Later *later = argument;
    usleep(later->milliseconds * 1000);
    if (later->fd >= 0) {
        pthread_kill(later->whom, later->signal);
        usleep(later->milliseconds * 1000);
        MUST(write(later->fd, "!", 1));
        return NULL;
    }
    // On a slow machine the call may not have come to its wait yet, and a signal before that may go unnoticed.
    while (!later->over) {
        pthread_kill(later->whom, later->signal);
        usleep(later->milliseconds * 1000);
    }
    return NULL;
}

__attribute__((unused)) static void signal_later(struct Later *later, int signal, int fd) {
    *later = (struct Later){.whom = pthread_self(), .signal = signal, .milliseconds = 100, .fd = fd};
    MUST(-pthread_create(&later->thread, NULL, send_signal, later));
}

__attribute__((unused)) static void no_more_signals(struct Later *later) {
    later->over = 1;
    pthread_join(later->thread, NULL);
}
