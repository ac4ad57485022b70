// What other processes do to a program's connections: a child that is forked, one that only closes what it has not
// opened, one that executes something else.
#include "check.h"
#include <spawn.h>

extern char **environ;

static int ended(pid_t child) {
    int status = -1;
    MUST(waitpid(child, &status, 0));
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

// Both ways once.
static void talk(int fds[2]) {
    char buffer[8];
    SAY(write(fds[0], "ping", 4));
    SAY(recv(fds[1], buffer, 4, MSG_WAITALL));
    SAY(write(fds[1], "pong", 4));
    SAY(recv(fds[0], buffer, 4, MSG_WAITALL));
}

// Another program: it ends at once after its last byte, and leaves the rest to whoever has it.
static int send_and_end(const char *port) {
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
    inet_pton(AF_INET, address, &name.sin_addr);
    int fd = MUST(socket(AF_INET, SOCK_STREAM, 0));
    MUST(connect(fd, (struct sockaddr *)&name, sizeof name));
    static char bytes[1000000];
    for (size_t sent = 0; sent < sizeof bytes;) sent += MUST(write(fd, bytes + sent, sizeof bytes - sent));
    return 0;
}

// What a child has that was forked while the connection was carried by the SAN.
static int inert(void) {
    int fds[2];
    char byte;
    pair(fds);
    fflush(stdout);
    pid_t child = MUST(fork());
    if (child == 0) {
        SAY(write(fds[0], "x", 1));
        SAY(read(fds[1], &byte, 1));
        SAY(send(fds[0], "x", 1, MSG_NOSIGNAL));
        SAY(shutdown(fds[0], SHUT_WR));
        SAY(close(fds[0]));
        SAY(close(fds[1]));
        _exit(0);
    }
    SAY(ended(child));
    talk(fds);
    return 0;
}

// Sends back what comes, until the end.
static void echo(int fd) {
    char buffer[4096];
    for (ssize_t got; (got = read(fd, buffer, sizeof buffer)) > 0;)
        for (ssize_t at = 0; at < got;) at += MUST(write(fd, buffer + at, got - at));
}

// Asks so many times, and says how many answers were right.
static int ask(int fd, int turns) {
    int right = 0;
    unsigned char asked[700], answer[700];
    for (int turn = 0; turn < turns; turn++) {
        for (size_t at = 0; at < sizeof asked; at++) asked[at] = (unsigned char)(turn * 31 + at);
        if (write(fd, asked, sizeof asked) != sizeof asked) return right;
        if (recv(fd, answer, sizeof answer, MSG_WAITALL) != sizeof answer) return right;
        right += !memcmp(asked, answer, sizeof asked);
    }
    return right;
}

// Another program: it asks until its connection has had time to move, and is killed.
static int ask_and_die(const char *port) {
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
    inet_pton(AF_INET, address, &name.sin_addr);
    int fd = MUST(socket(AF_INET, SOCK_STREAM, 0)), right = 0;
    MUST(connect(fd, (struct sockaddr *)&name, sizeof name));
    for (int turn = 0; turn < 20; turn++) right += ask(fd, 10), usleep(20000);
    SAY(right);
    return -MUST(kill(getpid(), SIGKILL));
}

// Gives a descriptor to whoever has the other end of a pair.
static void give(int to, int fd) {
    char control[CMSG_SPACE(sizeof(int))] = {0}, byte = 'x';
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    head->cmsg_level = SOL_SOCKET, head->cmsg_type = SCM_RIGHTS, head->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(head), &fd, sizeof fd);
    MUST(sendmsg(to, &message, 0));
}

static int given(int from) {
    char control[CMSG_SPACE(sizeof(int))], byte;
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    MUST(recvmsg(from, &message, 0));
    int fd;
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
    return fd;
}

// Connections that another process goes on with: each has carried enough to move before.
static int handed(char *self) {
    int fds[2], both[2], null = MUST(open("/dev/null", O_RDWR | O_CLOEXEC)), low = MUST(dup(null));
    pid_t child;
    part("a child that was forked for a connection");
    struct sockaddr_in name;
    int listener = listening(&name);
    child = MUST(fork());
    if (child == 0) {
        close(listener);
        int fd = MUST(socket(AF_INET, SOCK_STREAM, 0));
        MUST(connect(fd, (struct sockaddr *)&name, sizeof name));
        int right = 0;
        for (int turn = 0; turn < 20; turn++) right += ask(fd, 10), usleep(20000);
        _exit(right);
    }
    int server = MUST(accept(listener, NULL, NULL));
    pid_t worker = MUST(fork());
    if (worker == 0) {
        close(listener);
        echo(server);
        _exit(0);
    }
    MUST(close(server));
    MUST(close(listener));
    SAY(ended(child));
    SAY(ended(worker));
    part("a peer that is killed");
    listener = listening(&name);
    char port[16];
    snprintf(port, sizeof port, "%d", ntohs(name.sin_port));
    char *killed[] = {self, (char *)address, "killed", port, NULL};
    MUST(-posix_spawn(&child, self, NULL, NULL, killed, environ));
    server = MUST(accept(listener, NULL, NULL));
    echo(server);
    char end;
    SAY(read(server, &end, 1));
    SAY(ended(child));
    MUST(close(server));
    MUST(close(listener));
    part("a child uses a connection of its parent's");
    pair(fds);
    child = MUST(fork());
    if (child == 0) {
        close(fds[0]);
        MUST(write(fds[1], "x", 1));
        echo(fds[1]);
        _exit(0);
    }
    char byte;
    SAY(read(fds[0], &byte, 1));
    SAY(ask(fds[0], 50));
    MUST(close(fds[1]));
    SAY(ask(fds[0], 50));
    MUST(close(fds[0]));
    SAY(ended(child));
    part("its parent closes first");
    pair(fds);
    child = MUST(fork());
    if (child == 0) {
        close(fds[0]);
        usleep(300000);
        echo(fds[1]);
        _exit(0);
    }
    MUST(close(fds[1]));
    SAY(ask(fds[0], 50));
    MUST(close(fds[0]));
    SAY(ended(child));
    part("another program has it for its standard streams");
    pair(fds);
    child = MUST(fork());
    if (child == 0) {
        dup2(fds[1], 0);
        dup2(fds[1], 1);
        closefrom(3);
        char *words[] = {"cat", NULL};
        execv("/bin/cat", words);
        _exit(1);
    }
    MUST(close(fds[1]));
    SAY(ask(fds[0], 50));
    MUST(close(fds[0]));
    SAY(ended(child));
    part("the same by execl, after fork and after vfork");
    for (int way = 0; way < 2; way++) {
        pair(fds);
        child = way ? vfork() : MUST(fork());
        if (child == 0) {
            dup2(fds[1], 0);
            dup2(fds[1], 1);
            close(fds[0]);
            close(fds[1]);
            execl("/bin/cat", "cat", (char *)NULL);
            _exit(1);
        }
        MUST(close(fds[1]));
        SAY(ask(fds[0], 50));
        MUST(close(fds[0]));
        SAY(ended(child));
    }
    part("the same by posix_spawn");
    pair(fds);
    MUST(fcntl(fds[0], F_SETFD, FD_CLOEXEC));
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, fds[1], 0);
    posix_spawn_file_actions_adddup2(&actions, fds[1], 1);
    posix_spawn_file_actions_addclose(&actions, fds[1]);
    char *cat[] = {"cat", NULL};
    MUST(-posix_spawnp(&child, "cat", &actions, NULL, cat, environ));
    posix_spawn_file_actions_destroy(&actions);
    MUST(close(fds[1]));
    SAY(ask(fds[0], 50));
    MUST(close(fds[0]));
    SAY(ended(child));
    part("the same by popen and system");
    char command[64];
    for (int way = 0; way < 2; way++) {
        pair(fds);
        MUST(fcntl(fds[0], F_SETFD, FD_CLOEXEC));
        // A shell knows numbers of one digit.
        MUST(dup2(fds[1], low));
        snprintf(command, sizeof command, "cat <&%d >&%d &", low, low);
        if (way) SAY(system(command));
        else SAY(pclose(popen(command, "r")));
        MUST(close(fds[1]));
        MUST(dup2(null, low));
        SAY(ask(fds[0], 50));
        MUST(shutdown(fds[0], SHUT_WR));
        SAY(read(fds[0], &byte, 1));
        MUST(close(fds[0]));
    }
    part("a child asks");
    pair(fds);
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, both));
    child = MUST(fork());
    if (child == 0) {
        close(both[0]);
        close(fds[1]);
        int right = ask(fds[0], 50);
        shutdown(fds[0], SHUT_WR);
        MUST(read(both[1], &byte, 1));
        _exit(right);
    }
    close(fds[0]);
    echo(fds[1]);
    MUST(write(both[0], "x", 1));
    SAY(ended(child));
    MUST(close(fds[1]));
    part("a descriptor that is given away");
    pair(fds);
    child = MUST(fork());
    if (child == 0) {
        close(fds[0]);
        close(fds[1]);
        echo(given(both[1]));
        _exit(0);
    }
    give(both[0], fds[1]);
    MUST(close(fds[1]));
    SAY(ask(fds[0], 50));
    MUST(close(fds[0]));
    SAY(ended(child));
    printf("done\n");
    return 0;
}

int main(int count, char **arguments) {
    int fds[2];
    if (count > 1) address = arguments[1];
    setvbuf(stdout, NULL, _IOLBF, 0);
    alarm(240);
    if (count > 2 && !strcmp(arguments[2], "inert")) return inert();
    if (count > 2 && !strcmp(arguments[2], "handed")) return handed(arguments[0]);
    if (count > 3 && !strcmp(arguments[2], "killed")) return ask_and_die(arguments[3]);
    if (count > 2) return send_and_end(arguments[2]);
    pair(fds);
    part("a child closes all it has inherited, and ends");
    fflush(stdout);
    pid_t child = MUST(fork());
    if (child == 0) {
        closefrom(3);
        int null = open("/dev/null", O_WRONLY);
        _exit(write(null, "x", 1) == 1 ? 7 : 8);
    }
    SAY(ended(child));
    talk(fds);
    part("a child uses other sockets");
    child = MUST(fork());
    if (child == 0) {
        int own[2];
        pair(own);
        char byte;
        MUST(write(own[0], "z", 1));
        _exit(read(own[1], &byte, 1) == 1 ? 9 : 10);
    }
    SAY(ended(child));
    talk(fds);
    part("a child of vfork closes, and executes");
    child = vfork();
    if (child == 0) {
        close(fds[0]);
        close(fds[1]);
        execl("/bin/true", "true", (char *)NULL);
        _exit(1);
    }
    SAY(ended(child));
    talk(fds);
    part("posix_spawn and system");
    char *words[] = {"true", NULL};
    MUST(-posix_spawn(&child, "/bin/true", NULL, NULL, words, environ));
    SAY(ended(child));
    SAY(system("exit 3") >> 8);
    talk(fds);
    part("a program that ends with bytes under way");
    struct sockaddr_in name;
    int listener = listening(&name);
    struct pollfd look = {.fd = listener, .events = POLLIN};
    MUST(poll(&look, 1, 0));
    size_t all = 0;
    char port[16];
    snprintf(port, sizeof port, "%d", ntohs(name.sin_port));
    char *sender[] = {arguments[0], (char *)address, port, NULL};
    MUST(-posix_spawn(&child, arguments[0], NULL, NULL, sender, environ));
    int server = MUST(accept(listener, NULL, NULL));
    char buffer[65536];
    for (ssize_t got; (got = read(server, buffer, sizeof buffer)) > 0;) all += got;
    SAY(all);
    SAY(ended(child));
    MUST(close(server));
    MUST(close(listener));
    MUST(close(fds[0]));
    MUST(close(fds[1]));
    printf("done\n");
    return 0;
}
