// Signals of a program whose connections may be the library's: its threads take none of them, and a handler may call
// from a stack of its own.
#include "check.h"
#include <sys/mman.h>
#include <sys/signalfd.h>

static void talk(int fds[2]) {
    char buffer[8];
    SAY(write(fds[0], "ping", 4));
    SAY(recv(fds[1], buffer, 4, MSG_WAITALL));
    SAY(write(fds[1], "pong", 4));
    SAY(recv(fds[0], buffer, 4, MSG_WAITALL));
}

// What is sent to the process waits for the thread that asks for it: any other thread would die of it.
static void sent_to_the_process(const sigset_t *all) {
    struct timespec soon = {.tv_sec = 10};
    int sent[] = {SIGUSR1, SIGTERM, SIGALRM, SIGPIPE, SIGRTMIN};
    for (size_t at = 0; at < sizeof sent / sizeof *sent; at++) {
        MUST(kill(getpid(), sent[at]));
        usleep(20000);
        SAY(sigtimedwait(all, NULL, &soon) == sent[at]);
    }
}

static void blocked(void) {
    int fds[2];
    sigset_t all, before;
    sigfillset(&all);
    part("a program that blocks all signals, after the library's threads have begun");
    pair(fds);
    MUST(-pthread_sigmask(SIG_BLOCK, &all, &before));
    sent_to_the_process(&all);
    talk(fds);
    MUST(close(fds[0]));
    MUST(close(fds[1]));
    part("and before a connection is made");
    pair(fds);
    sent_to_the_process(&all);
    talk(fds);
    part("a descriptor for signals");
    int signals = MUST(signalfd(-1, &all, SFD_CLOEXEC));
    struct signalfd_siginfo one;
    MUST(kill(getpid(), SIGUSR2));
    struct pollfd look[2] = {{.fd = signals, .events = POLLIN}, {.fd = fds[1], .events = POLLIN}};
    SAY(poll(look, 2, 5000));
    SAY(read(signals, &one, sizeof one) == sizeof one && one.ssi_signo == SIGUSR2);
    MUST(write(fds[0], "x", 1));
    SAY(poll(look, 2, 5000));
    SAY(look[1].revents);
    MUST(close(signals));
    MUST(close(fds[0]));
    MUST(close(fds[1]));
    MUST(-pthread_sigmask(SIG_SETMASK, &before, NULL));
}

static int ends[2], loop;
static long results[8];
static char large[8192];

// Each call that a program makes of a connection, on a stack that is small.
static void calls(int signal) {
    (void)signal;
    char buffer[8];
    struct epoll_event got;
    struct pollfd look = {.fd = ends[1], .events = POLLIN};
    results[0] = write(ends[0], "hello", 5);
    results[1] = poll(&look, 1, 5000);
    results[2] = epoll_wait(loop, &got, 1, 5000);
    results[3] = read(ends[1], buffer, 5);
    results[4] = send(ends[1], large, sizeof large, MSG_NOSIGNAL);
    results[5] = recv(ends[0], large, sizeof large, MSG_WAITALL);
    results[6] = send(ends[1], "", 0, MSG_DONTWAIT);
    results[7] = recv(ends[0], buffer, 1, MSG_DONTWAIT) < 0 ? -errno : 1;
}

static void from_another_stack(void) {
    part("calls from an alternate stack");
    // What docs/run.md says that a call may take.
    size_t page = sysconf(_SC_PAGESIZE), whole = 32768;
    char *memory = mmap(NULL, whole + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) exit(1);
    // Whoever takes more than there is dies of it.
    MUST(mprotect(memory, page, PROT_NONE));
    stack_t stack = {.ss_sp = memory + page, .ss_size = whole};
    MUST(sigaltstack(&stack, NULL));
    struct sigaction action = {.sa_handler = calls, .sa_flags = SA_ONSTACK};
    MUST(sigaction(SIGUSR1, &action, NULL));
    pair(ends);
    loop = MUST(epoll_create1(EPOLL_CLOEXEC));
    struct epoll_event wanted = {.events = EPOLLIN};
    MUST(epoll_ctl(loop, EPOLL_CTL_ADD, ends[1], &wanted));
    for (int turn = 0; turn < 3; turn++) {
        MUST(raise(SIGUSR1));
        for (size_t at = 0; at < sizeof results / sizeof *results; at++) SAY(results[at]);
    }
    MUST(close(loop));
    MUST(close(ends[0]));
    MUST(close(ends[1]));
}

int main(int count, char **arguments) {
    if (count > 1) address = arguments[1];
    setvbuf(stdout, NULL, _IOLBF, 0);
    alarm(240);
    blocked();
    from_another_stack();
    printf("done\n");
    return 0;
}
