// A program that does with the numbers of descriptors what programs do that were there before this library.
//
//   numbers ADDRESS closed   closes all that it has not opened, as a daemon does, before it has connections
//   numbers ADDRESS few      may open few descriptors
//   numbers ADDRESS taken    puts another file under the number of a connection, and the connection under its own number
//   numbers ADDRESS stale    closes connections that are in an epoll set, when they have just come back to TCP
#include "check.h"
#include <sys/resource.h>

// Both ways, so often.
static void talk(int fds[2], int turns) {
    char asked[500], answer[500];
    int right = 0;
    for (int turn = 0; turn < turns; turn++) {
        memset(asked, turn, sizeof asked);
        MUST(write(fds[0], asked, sizeof asked));
        if (MUST(recv(fds[1], answer, sizeof answer, MSG_WAITALL)) != sizeof answer) break;
        MUST(write(fds[1], answer, sizeof answer));
        if (MUST(recv(fds[0], answer, sizeof answer, MSG_WAITALL)) != sizeof answer) break;
        right += !memcmp(asked, answer, sizeof asked);
    }
    SAY(right == turns);
}

static void closed(void) {
    int fds[2];
    part("all others are closed");
    for (int fd = 3; fd < 1024; fd++) close(fd);
    pair(fds);
    talk(fds, 100);
    MUST(close(fds[0]));
    char byte;
    SAY(read(fds[1], &byte, 1));
    MUST(close(fds[1]));
}

static void few(void) {
    int fds[2], copies[64], count = 0;
    struct rlimit limit = {20, 20};
    part("twenty descriptors");
    MUST(setrlimit(RLIMIT_NOFILE, &limit));
    pair(fds);
    talk(fds, 100);
    // The number of those that are left depends on whose they are; that they end does not.
    while (count < 64 && (copies[count] = dup(fds[0])) >= 0) count++;
    int is_full = errno == EMFILE;
    SAY(count < 20 && is_full);
    talk(fds, 10);
    for (int at = 0; at < count; at++) MUST(close(copies[at]));
    talk(fds, 10);
    MUST(shutdown(fds[0], SHUT_WR));
    char byte;
    SAY(read(fds[1], &byte, 1));
}

static void taken(void) {
    int fds[2];
    part("numbers are taken");
    pair(fds);
    int nothing = MUST(open("/dev/null", O_RDWR)), copy = MUST(dup(fds[0])), number = fds[0];
    SAY(dup2(nothing, number) == number);
    SAY(write(number, "nobody", 6));
    SAY(read(number, &copy, 0));
    fds[0] = copy;
    talk(fds, 50);
    SAY(dup2(copy, number) == number);
    MUST(close(copy));
    fds[0] = number;
    talk(fds, 50);
    // A high number that is nobody's.
    SAY(dup2(number, 200));
    MUST(close(number));
    fds[0] = 200;
    talk(fds, 50);
    SAY(close(number));
    MUST(close(200));
    char byte;
    SAY(read(fds[1], &byte, 1));
}

enum { AT_ONCE = 24, ROUNDS = 4, QUESTION = 100 };

// Has the kernel have each connection for good, and closes it.
static void *give_back_and_close(void *argument) {
    int *fds = argument;
    for (int at = 0; at < AT_ONCE; at++) {
        FILE *file = fdopen(fds[at], "r");
        if (!file || fclose(file)) exit(1);
    }
    return NULL;
}

// One end of each connection is in an epoll set, and is closed as soon as it has ended. What an epoll set has for a closed
// number it tells as long as the file is open anywhere, and the library has had the file, too.
static void stale(void) {
    int asks[AT_ONCE], answers[AT_ONCE], set = MUST(epoll_create1(0)), ended = 0, stale = 0;
    const char *turns = getenv("CHECK_WARM");
    char bytes[QUESTION] = "asked";
    struct sockaddr_in name;
    struct epoll_event event = {.events = EPOLLIN}, got[AT_ONCE];
    int listener = listening(&name);
    part("closed numbers tell nothing");
    for (int round = 0; round < ROUNDS; round++) {
        pthread_t thread;
        char is_closed[AT_ONCE] = {0};
        for (int at = 0; at < AT_ONCE; at++) {
            asks[at] = MUST(socket(AF_INET, SOCK_STREAM, 0));
            MUST(connect(asks[at], (struct sockaddr *)&name, sizeof name));
            answers[at] = MUST(accept(listener, NULL, NULL));
            event.data.u64 = round * AT_ONCE + at;
            MUST(epoll_ctl(set, EPOLL_CTL_ADD, answers[at], &event));
        }
        for (int turn = turns ? atoi(turns) / 3 : 0; turn > 0; turn--, usleep(4000)) {
            for (int at = 0; at < AT_ONCE; at++) {
                MUST(write(asks[at], bytes, sizeof bytes));
                if (MUST(recv(answers[at], bytes, sizeof bytes, MSG_WAITALL)) != sizeof bytes) exit(1);
                MUST(write(answers[at], bytes, sizeof bytes));
                if (MUST(recv(asks[at], bytes, sizeof bytes, MSG_WAITALL)) != sizeof bytes) exit(1);
            }
        }
        MUST(-pthread_create(&thread, NULL, give_back_and_close, asks));
        for (int left = AT_ONCE; left > 0;) {
            int count = MUST(epoll_wait(set, got, AT_ONCE, 10000));
            if (count == 0) exit(1);
            for (int one = 0; one < count; one++) {
                long at = (long)got[one].data.u64 - round * AT_ONCE;
                if (at < 0 || is_closed[at]) {
                    stale++;
                } else if (recv(answers[at], bytes, sizeof bytes, MSG_DONTWAIT) == 0) {
                    MUST(close(answers[at]));
                    is_closed[at] = 1, ended++, left--;
                }
            }
        }
        MUST(-pthread_join(thread, NULL));
    }
    SAY(ended);
    SAY(stale);
}

int main(int count, char **words) {
    if (count < 3) return 64;
    address = words[1];
    setvbuf(stdout, NULL, _IOLBF, 0);
    alarm(120);
    if (!strcmp(words[2], "closed")) closed();
    if (!strcmp(words[2], "few")) few();
    if (!strcmp(words[2], "taken")) taken();
    if (!strcmp(words[2], "stale")) stale();
    printf("done\n");
    return 0;
}
