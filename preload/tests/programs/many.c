// A server with many connections in one epoll set, and its clients, in two processes: how many answers, how fast, and
// in what memory. Prints one line for each part. Used by ci/programs.
//
//   many serve ADDRESS PORT COUNT          until COUNT connections have come and gone
//   many ask ADDRESS PORT COUNT BUSY TURNS  COUNT connections; BUSY of them ask TURNS times each, and are checked
//   many short ADDRESS PORT COUNT          one question on each of COUNT connections, one after the other
//   many fork ADDRESS PORT COUNT TURNS     how long a fork takes with COUNT connections that have asked TURNS times
#include "check.h"
#include <sys/resource.h>
#include <time.h>

enum { LENGTH = 100 };

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static void memory(const char *who) {
    char line[200];
    FILE *file = fopen("/proc/self/status", "r");
    while (fgets(line, sizeof line, file))
        if (!strncmp(line, "VmHWM:", 6)) printf("%s: most memory %ld KiB\n", who, atol(line + 6));
    fclose(file);
}

static int serve(struct sockaddr_in *name, int count) {
    int listener = MUST(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0)), on = 1, loop = MUST(epoll_create1(0)), gone = 0, live = 0, most = 0;
    MUST(setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on));
    MUST(bind(listener, (struct sockaddr *)name, sizeof *name));
    MUST(listen(listener, 4096));
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener}, got[256];
    MUST(epoll_ctl(loop, EPOLL_CTL_ADD, listener, &event));
    printf("ready\n");
    while (gone < count) {
        int ready = MUST(epoll_wait(loop, got, 256, 60000));
        if (ready == 0) {
            printf("nothing for a minute: %d of %d are gone\n", gone, count);
            return 1;
        }
        for (int at = 0; at < ready; at++) {
            if (got[at].data.fd == listener) {
                int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
                if (fd < 0) continue;
                event = (struct epoll_event){.events = EPOLLIN, .data.fd = fd};
                MUST(epoll_ctl(loop, EPOLL_CTL_ADD, fd, &event));
                if (++live > most) most = live;
                continue;
            }
            char buffer[4096];
            ssize_t came = read(got[at].data.fd, buffer, sizeof buffer);
            if (came > 0 && write(got[at].data.fd, buffer, came) == came) continue;
            if (came < 0 && errno == EAGAIN) continue;
            MUST(close(got[at].data.fd));
            gone++, live--;
        }
    }
    printf("server: %d connections at most\n", most);
    memory("server");
    return 0;
}

static int connected(struct sockaddr_in *name) {
    int fd = MUST(socket(AF_INET, SOCK_STREAM, 0));
    MUST(connect(fd, (struct sockaddr *)name, sizeof *name));
    return fd;
}

static int asked(int fd, int number, int turn) {
    unsigned char question[LENGTH], answer[LENGTH];
    for (int at = 0; at < LENGTH; at++) question[at] = (unsigned char)(number * 7 + turn * 31 + at);
    if (write(fd, question, LENGTH) != LENGTH) return 0;
    return recv(fd, answer, LENGTH, MSG_WAITALL) == LENGTH && !memcmp(question, answer, LENGTH);
}

static int ask(struct sockaddr_in *name, int count, int busy, int turns) {
    int *fds = calloc(count, sizeof *fds);
    double start = now();
    for (int number = 0; number < count; number++) fds[number] = connected(name);
    printf("client: %d connects in %.2f s\n", count, now() - start);
    long right = 0;
    start = now();
    for (int turn = 0; turn < turns; turn++)
        for (int number = 0; number < busy; number++) right += asked(fds[number], number, turn);
    printf("client: %ld of %ld answers in %.2f s\n", right, (long)busy * turns, now() - start);
    memory("client");
    for (int number = 0; number < count; number++) MUST(close(fds[number]));
    return right != (long)busy * turns;
}

static int briefly(struct sockaddr_in *name, int count) {
    double start = now();
    int right = 0;
    for (int number = 0; number < count; number++) {
        int fd = connected(name);
        right += asked(fd, number, 0);
        MUST(close(fd));
    }
    printf("client: %d of %d short connections, %.0f a second\n", right, count, count / (now() - start));
    return right != count;
}

static int compare(const void *one, const void *other) {
    double difference = *(const double *)one - *(const double *)other;
    return (difference > 0) - (difference < 0);
}

static int forks(struct sockaddr_in *name, int count, int turns) {
    enum { FORKS = 101 };
    double times[FORKS];
    int *fds = calloc(count, sizeof *fds), right = 0;
    for (int number = 0; number < count; number++) fds[number] = connected(name);
    for (int turn = 0; turn < turns; turn++, usleep(1000))
        for (int number = 0; number < count; number++) right += asked(fds[number], number, turn);
    for (int at = 0; at < FORKS; at++) {
        double start = now();
        pid_t child = MUST(fork());
        if (child == 0) _exit(0);
        times[at] = now() - start;
        MUST(waitpid(child, NULL, 0));
    }
    qsort(times, FORKS, sizeof *times, compare);
    printf("client: a fork with %d connections takes %.0f us (median of %d)\n", count, times[FORKS / 2] * 1e6, FORKS);
    for (int number = 0; number < count; number++) right += asked(fds[number], number, turns), MUST(close(fds[number]));
    return right != count * (turns + 1);
}

int main(int count, char **words) {
    struct rlimit limit = {20000, 20000};
    struct sockaddr_in name = {.sin_family = AF_INET};
    if (count < 5) return 64;
    setvbuf(stdout, NULL, _IOLBF, 0);
    alarm(300);
    setrlimit(RLIMIT_NOFILE, &limit);
    inet_pton(AF_INET, words[2], &name.sin_addr);
    name.sin_port = htons(atoi(words[3]));
    int number = atoi(words[4]);
    if (!strcmp(words[1], "serve")) return serve(&name, number);
    if (!strcmp(words[1], "short")) return briefly(&name, number);
    if (!strcmp(words[1], "fork") && count > 5) return forks(&name, number, atoi(words[5]));
    if (!strcmp(words[1], "ask") && count > 6) return ask(&name, number, atoi(words[5]), atoi(words[6]));
    return 64;
}
